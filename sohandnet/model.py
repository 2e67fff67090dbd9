"""SO-HandNet's three networks: point encoder on self-organising map nodes, cloud decoder, pose estimators.

Shapes follow the letters B batch, N points, M nodes, k nodes a point is attached to, L = k N pairs of point and node,
K neighbours of a node, J joints. Inputs and outputs keep the original's layout (B, 3, N); inside, features are rows
(..., C), because a layer is then one matrix product over contiguous memory.

What the original computes and nobody reads is not computed (README, "Speed"): node features are not copied to the
pairs, the global feature enters each estimator once a sample, the pair layer of v3 runs on the M nodes weighted by how
many pairs each has, the first layer of the neighbour convolution runs on the M nodes and is gathered, and the decoder's
64 x 64 level exists on request only.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sohandnet.kernels import ops

ESTIMATORS = ("v2.1", "v3", "v4", "v5", "v6")
PARTS = ("encoder", "decoder", "estimator")


def scaled(channels: int, width: float) -> int:
    """A hidden width times ``width``, rounded up to a multiple of 16; the published width at 1."""
    return channels if width == 1.0 else max(16, -(-int(channels * width) // 16) * 16)


def _he(weight: Tensor, fan: int) -> None:
    nn.init.normal_(weight, std=(2.0 / fan) ** 0.5)


def rows_at(table: Tensor, index: Tensor) -> Tensor:
    """(B, L, C): rows of ``table`` (B, M, C) at ``index`` (B, L); the gradient is a sum in fixed order."""
    return ops.knn_gather(table.transpose(1, 2), index[:, :, None]).squeeze(3).transpose(1, 2)


class Dense(nn.Module):
    """A linear layer on rows (..., C), with batch norm over all rows and ReLU unless ``linear``.

    The original's 1x1 convolutions and fully connected layers; weights N(0, sqrt(2 / inputs)) and bias 0, or torch's
    own initialisation (the estimator's fully connected layers).
    """

    def __init__(self, inputs: int, outputs: int, *, linear: bool = False, torch_init: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm: nn.BatchNorm1d | None = None if linear else nn.BatchNorm1d(outputs)
        self.relu = not linear
        if not torch_init:
            _he(self.linear.weight, inputs)
            nn.init.zeros_(self.linear.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.activate(F.linear(rows, self.linear.weight, self.linear.bias))

    def activate(self, rows: Tensor) -> Tensor:
        """Batch norm and ReLU on what a caller multiplied itself; ``rows`` (..., C) may be overwritten."""
        if self.norm is not None:
            rows = self.norm(rows.flatten(0, -2)).view(rows.shape)
        return F.relu(rows, inplace=True) if self.relu else rows

    def activate_weighted(self, rows: Tensor, weights: Tensor) -> Tensor:
        """As :meth:`activate` for rows (R, C) that each stand for ``weights`` (R,) equal rows."""
        norm = self.norm
        if norm is not None and norm.training:
            total = weights.sum()
            share = (weights / total)[:, None]
            mean = (rows * share).sum(0)
            variance = ((rows - mean).square() * share).sum(0)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.momentum is not None
            with torch.no_grad():
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
                unbiased = (variance * (total / (total - 1))).to(norm.running_var.dtype)
                norm.running_var.lerp_(unbiased, norm.momentum)
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked += 1
            rows = (rows - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias
        elif norm is not None:
            rows = norm(rows)
        return F.relu(rows, inplace=True)


class Features(NamedTuple):
    """What the encoder gives; ``pair_*`` only where the estimator reads them (v6), else None."""

    pooled: Tensor  # (B, M, 384) maximum over each node's pairs; 0 for a node without pairs
    neighbours: Tensor  # (B, M, 512) neighbour convolution
    final: Tensor  # (B, M, 1024)
    feature: Tensor  # (B, 1024) the hand feature
    mean: Tensor  # (B, M, 3) mean of each node's points; the origin for a node without
    centre: Tensor  # (B, M, 3) what a node's neighbours are measured from
    pairs: Tensor  # (B, M) how many pairs each node has
    pair_node: Tensor  # (B, L) node of each pair; pair j N + n is point n with its j-th node
    pair_input: Tensor | None  # (B, L, 6) point minus node, normal
    pair_feature: Tensor | None  # (B, L, 384)


class Encoder(nn.Module):
    """Points, normals and nodes to node features and one hand feature (spec of the original: ``networks.Encoder``).

    Args:
        node_centre: ``center`` measures a node's neighbours from the node itself, ``avg`` from their mean.
        pair_nodes: nodes each point is attached to.
        normals: whether points carry normals.
        width: factor of the hidden widths.
    """

    def __init__(
        self,
        *,
        node_centre: Literal["center", "avg"] = "center",
        pair_nodes: int = 3,
        normals: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        c64, c128, c256, c384, c512, c768, c1024 = (scaled(c, width) for c in (64, 128, 256, 384, 512, 768, 1024))
        self.node_centre, self.pair_nodes, self.normals = node_centre, pair_nodes, normals
        self.points = nn.ModuleList([Dense(6 if normals else 3, c64), Dense(c64, c128), Dense(c128, c256)])
        self.points_out = Dense(c64 + c256, c384, linear=True)
        self.knn = nn.ModuleList([Dense(3 + c384, c512), Dense(c512, c512)])
        self.nodes = nn.ModuleList([Dense(3 + c512, c768), Dense(c768, c1024, linear=True)])

    def forward(self, pc: Tensor, sn: Tensor, node: Tensor, node_knn: Tensor, *, keep_pairs: bool = False) -> Features:
        """One batch of clouds.

        Args:
            pc: (B, 3, N) points, in box lengths.
            sn: (B, 3, N) unit normals in the same axes; not read with ``normals`` off.
            node: (B, 3, M) nodes stored with the frames.
            node_knn: (B, M, K) int64 neighbours of each stored node, itself among them.
            keep_pairs: keep the features of the pairs.
        """
        first, second, third = (cast(Dense, layer) for layer in self.points)
        with torch.no_grad():
            attached, count, mean = ops.associate(pc.float(), node.float(), self.pair_nodes)
            mean = mean.transpose(1, 2).contiguous()
            points = pc.float().transpose(1, 2)
            batch, size = mean.shape[:2]
            index = ops.pair_index(attached)  # (B, L)
            pair_input = points.repeat(1, self.pair_nodes, 1) - rows_at(mean, index)
            if self.normals:
                normals = sn.transpose(1, 2).to(points.dtype).repeat(1, self.pair_nodes, 1)
                pair_input = torch.cat((pair_input, normals), 2)
            centre = mean
            if self.node_centre == "avg":
                centre = rows_at(mean, node_knn.flatten(1)).view(batch, size, -1, 3).mean(2)

        low = first(pair_input.to(first.linear.weight.dtype))
        both = torch.cat((low, third(second(low))), 2)  # (B, L, 320)
        out = self.points_out.linear
        pair_feature = None
        if keep_pairs:
            pair_feature = F.linear(both, out.weight, out.bias)
            pooled = ops.index_max(pair_feature.transpose(1, 2), index, size)[0]
        else:
            pooled = ops.linear_index_max(both, out.weight, out.bias, index, size)
        pooled = pooled.transpose(1, 2)  # (B, M, 384)
        dtype = pooled.dtype

        conv, conv2 = (cast(Dense, layer) for layer in self.knn)
        weight, bias = conv.linear.weight, conv.linear.bias
        # W [n - centre, f] = (W [n, f]) of the neighbour - (W_xyz centre) of the node: M rows instead of M K
        of_node = F.linear(torch.cat((mean.to(dtype), pooled), 2), weight, bias)
        of_centre = F.linear(centre.to(dtype), weight[:, :3])
        gathered = ops.knn_gather(of_node.transpose(1, 2), node_knn).permute(0, 2, 3, 1)  # (B, M, K, 512)
        gathered = gathered - of_centre[:, :, None]
        neighbours = conv2(conv.activate(gathered)).max(2).values

        final = torch.cat((centre.to(dtype), neighbours), 2)
        for layer in self.nodes:
            final = layer(final)
        return Features(
            pooled=pooled,
            neighbours=neighbours,
            final=final,
            feature=final.max(1).values,
            mean=mean,
            centre=centre,
            pairs=count,
            pair_node=index,
            pair_input=pair_input if keep_pairs else None,
            pair_feature=pair_feature,
        )


class Clouds(NamedTuple):
    """What the decoder gives, in box lengths."""

    full: Tensor  # (B, 3, 1280) the 256 points of the dense branch, then the 32 x 32 level
    coarse: Tensor  # (B, 3, 256) the 16 x 16 level
    finest: Tensor | None  # (B, 3, 4096) the 64 x 64 level, row-major, on request


# Upsampling by two repeats rows and columns, so a 3x3 convolution after it reads two rows of the small map only: output
# row 2 i reads row i - 1 with the first tap and row i with the other two, output row 2 i + 1 reads row i with the first
# two and row i + 1 with the last. [parity of the output row, row of the small map, tap]
_TAPS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class UpConv(nn.Module):
    """Nearest-neighbour upsampling by two, 3x3 convolution, batch norm, ReLU.

    Computed on the small map with 2x2 kernels that are sums of the 3x3 ones, one for each parity of row and column:
    4/9 of the multiplications. From a single pixel even less: one matrix product.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        _he(self.conv.weight, 9 * outputs)  # by fan-out, as the original
        nn.init.constant_(self.conv.bias, 0.001)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height == width == 1:
            y = self.from_pixel(x)
        elif min(height, width) >= 4:
            y = self.from_parities(x)
        else:  # the border of the small map outweighs what is saved
            y = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return F.relu(self.norm(y), inplace=True)

    def summed(self, table: Tensor) -> Tensor:
        """(outputs, R, inputs) sums of the nine taps with the factors ``table`` (R, 9)."""
        taps = self.conv.weight.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.matmul(table.to(taps), taps)

    def from_pixel(self, x: Tensor) -> Tensor:
        # rows of the small map that are inside it: the second for even output rows, the first for odd ones
        inside = torch.tensor([_TAPS[0][1], _TAPS[1][0]], device=x.device)
        weight = self.summed(torch.kron(inside, inside)).flatten(0, 1)
        assert self.conv.bias is not None
        y = F.linear(x.flatten(1), weight, self.conv.bias.repeat_interleave(4))
        return y.view(len(x), self.conv.out_channels, 2, 2)

    def from_parities(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        taps = torch.tensor(_TAPS, device=x.device)
        table = torch.einsum("prk,qsl->pqrskl", taps, taps).reshape(16, 9)
        weight = self.summed(table).unflatten(1, (4, 4)).transpose(0, 1)  # (parities, outputs, 2x2 taps, inputs)
        weight = weight.reshape(-1, 2, 2, weight.shape[3]).permute(0, 3, 1, 2)
        assert self.conv.bias is not None
        y = F.conv2d(x, weight, self.conv.bias.repeat(4), padding=1)  # (B, 4 outputs, height + 1, width + 1)
        rows = y.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
        parts = [torch.stack([rows[:, p : p + height, q : q + width, p, q] for q in (0, 1)], dim=3) for p in (0, 1)]
        return (
            torch.stack(parts, dim=2).reshape(len(x), 2 * height, 2 * width, self.conv.out_channels).permute(0, 3, 1, 2)
        )


class PointHead(nn.Module):
    """A map (B, C, H, W) to H W points (B, 3, H W), row-major."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.out = Dense(channels, channels), Dense(channels, 3, linear=True)
        nn.init.uniform_(self.out.linear.bias, -1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x.permute(0, 2, 3, 1).flatten(1, 2))).transpose(1, 2)


class Decoder(nn.Module):
    """The hand feature to a cloud (the original's ``DecoderLinear`` and ``DecoderConv``).

    Args:
        width: factor of the hidden widths.
        finest: also build the 64 x 64 level, which no loss reads.
    """

    def __init__(self, *, width: float = 1.0, finest: bool = False) -> None:
        super().__init__()
        c128, c256, c512, c768, c1024 = (scaled(c, width) for c in (128, 256, 512, 768, 1024))
        self.dense = nn.Sequential(
            Dense(c1024, c512), Dense(c512, c768), Dense(c768, c1024), Dense(c1024, 768, linear=True)
        )
        nn.init.uniform_(cast(Dense, self.dense[3]).linear.bias, -1.0, 1.0)
        widths = [c1024, c1024, c512, c256, c128, c128, *([c128] if finest else [])]
        self.up = nn.ModuleList([UpConv(a, b) for a, b in pairwise(widths)])
        self.heads = nn.ModuleList([PointHead(c128) for _ in range(3 if finest else 2)])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, feature: Tensor) -> Clouds:
        """(B, 1024) features to clouds."""
        fc = self.dense(feature).unflatten(1, (3, -1))
        x = feature[:, :, None, None]
        clouds = []
        for level, up in enumerate(self.up):
            x = up(x)
            if level >= 3:
                clouds.append(self.heads[level - 3](x))
        coarse, fine, *finest = clouds
        return Clouds(torch.cat((fc, fine), 2), coarse, finest[0] if finest else None)


class Estimator(nn.Module):
    """Node features to joints; ``v2.1`` is the published one.

    Args:
        variant: v2.1 (pooled, global), v3 (pooled, neighbours, final, global; averaged over the pairs), v4 (global
            alone), v5 (pooled alone), v6 (as v3, with the pair's own coordinates, normal and features).
        detach_global: stop the gradient at the global feature (not in v4, which has nothing else).
        normals: whether points carry normals (v6 reads them).
        joints: J.
        width: factor of the hidden widths.
    """

    def __init__(
        self,
        variant: Literal["v2.1", "v3", "v4", "v5", "v6"] = "v2.1",
        *,
        detach_global: bool = True,
        normals: bool = True,
        joints: int = 16,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        c256, c384, c512, c1024 = (scaled(c, width) for c in (256, 384, 512, 1024))
        self.variant, self.detach_global, self.joints, self.normals = variant, detach_global, joints, normals
        on_node = {"v2.1": [c384], "v3": [c384, c512, c1024], "v4": [], "v5": [c384], "v6": [c384, c512, c1024]}
        inputs = sum(on_node[variant]) + (c1024 if variant in ("v2.1", "v3", "v6") else 0)
        self.pair_inputs = (12 if normals else 9) + c384 if variant == "v6" else 0
        self.layer: Dense | None = None if variant == "v4" else Dense(self.pair_inputs + inputs, c1024)
        self.head = nn.Sequential(
            Dense(c1024, c512, torch_init=True),
            Dense(c512, c256, torch_init=True),
            Dense(c256, 3 * joints, linear=True, torch_init=True),
        )

    def forward(self, features: Features) -> Tensor:
        """(B, 3, J) joints in box lengths, the original's 48 numbers unflattened."""
        return self.head(self.mean_feature(features)).unflatten(1, (3, self.joints))

    def mean_feature(self, f: Features) -> Tensor:
        """(B, 1024) what the head reads."""
        layer = self.layer
        if layer is None:
            return f.feature
        weight, bias = layer.linear.weight, layer.linear.bias
        rows = f.pooled if self.variant in ("v2.1", "v5") else torch.cat((f.pooled, f.neighbours, f.final), 2)
        start = self.pair_inputs
        out = F.linear(rows, weight[:, start : start + rows.shape[2]])  # (B, M, 1024)
        once: Tensor = bias
        if self.variant != "v5":
            feature = f.feature.detach() if self.detach_global else f.feature
            once = F.linear(feature, weight[:, start + rows.shape[2] :], bias)[:, None]
        out = out + once
        if self.variant in ("v2.1", "v5"):
            return layer.activate(out).mean(1)
        if self.variant == "v3":
            count = f.pairs.to(out.dtype)
            out = layer.activate_weighted(out.flatten(0, 1), count.flatten()).view(out.shape)
            return (out * (count / f.pair_node.shape[1])[..., None]).sum(1)
        assert f.pair_input is not None
        assert f.pair_feature is not None
        # decentred d, position x = d + c, centre c, normal: the three 3-vectors need two products
        w_d, w_x, w_c = weight[:, :3], weight[:, 3:6], weight[:, 6:9]
        out = out + F.linear(f.mean.to(out.dtype), w_x + w_c)
        own = torch.cat((f.pair_input.to(out.dtype), f.pair_feature), 2)
        own_weight = torch.cat((w_d + w_x, weight[:, 9:start]), 1)
        return layer.activate(rows_at(out, f.pair_node) + F.linear(own, own_weight)).mean(1)


class SoHandNet(nn.Module):
    """Encoder, decoder and estimator, those of them that ``parts`` names.

    Args:
        parts: which networks to build.
        joints: J.
        estimator, node_centre, detach_global, pair_nodes, normals, width, finest: see the networks.
    """

    encoder: Encoder
    decoder: Decoder
    estimator: Estimator

    def __init__(
        self,
        *,
        estimator: Literal["v2.1", "v3", "v4", "v5", "v6"] = "v2.1",
        node_centre: Literal["center", "avg"] = "center",
        detach_global: bool = True,
        pair_nodes: int = 3,
        normals: bool = True,
        width: float = 1.0,
        joints: int = 16,
        finest: bool = False,
        parts: tuple[str, ...] | list[str] = PARTS,
    ) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {
            "estimator": estimator,
            "node_centre": node_centre,
            "detach_global": detach_global,
            "pair_nodes": pair_nodes,
            "normals": normals,
            "width": width,
            "joints": joints,
            "finest": finest,
        }
        self.parts = tuple(part for part in PARTS if part in parts)
        if "encoder" in parts:
            self.encoder = Encoder(node_centre=node_centre, pair_nodes=pair_nodes, normals=normals, width=width)
        if "decoder" in parts:
            self.decoder = Decoder(width=width, finest=finest)
        if "estimator" in parts:
            self.estimator = Estimator(
                estimator, detach_global=detach_global, normals=normals, joints=joints, width=width
            )

    def encode(self, batch: Mapping[str, Tensor]) -> Features:
        """Of a batch with ``pc`` (B, 3, N), ``sn`` (B, 3, N), ``node`` (B, 3, M), ``node_knn`` (B, M, K)."""
        pairs = "estimator" in self.parts and self.sizes["estimator"] == "v6"
        return self.encoder(batch["pc"], batch["sn"], batch["node"], batch["node_knn"], keep_pairs=pairs)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, J, 3) float32 joints in box lengths, in the oriented frame."""
        return self.estimator(self.encode(batch)).transpose(1, 2).float()


def folded(network: SoHandNet, dtype: torch.dtype = torch.float32) -> SoHandNet:
    """A copy for inference: encoder and estimator alone, batch norms folded into the layers before them.

    Geometry (association, node positions) stays float32 whatever ``dtype`` the layers have.
    """
    copy = SoHandNet(**network.sizes, parts=("encoder", "estimator")).eval()
    copy.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("decoder.")})
    with torch.no_grad():
        for layer in copy.modules():
            if isinstance(layer, Dense) and layer.norm is not None:
                norm, layer.norm = layer.norm, None
                assert norm.running_mean is not None
                assert norm.running_var is not None
                factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                layer.linear.weight.mul_(factor[:, None])
                layer.linear.bias.sub_(norm.running_mean).mul_(factor).add_(norm.bias)
    return copy.to(dtype).requires_grad_(False)
