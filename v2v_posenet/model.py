"""The V2V-PoseNet network: a 3D convolutional encoder-decoder from an occupancy grid to one heat map per joint.

Moon, Chang, Lee, "V2V-PoseNet", CVPR 2018, section 4 and figure 3. Volumes are indexed ``[x, y, z]``, z fastest. With
the paper's widths and 21 joints: 3,410,453 parameters, 36.4 G multiply-adds for one 88^3 grid.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import DataError
from v2v_posenet.kernels.ops import soft_argmax

PAPER_WIDTHS = (16, 32, 64, 128)
Widths = tuple[int, int, int, int]


class ConvNorm(nn.Module):
    """A "same" convolution with bias, then a batch norm. The bias is redundant, but reference weights have it."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, padding=(kernel - 1) // 2)
        self.norm = nn.BatchNorm3d(outputs, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """Two 3^3 convolutions beside an identity, or beside a 1^3 convolution where the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3)
        self.second = ConvNorm(outputs, outputs, 3)
        self.skip = nn.Identity() if inputs == outputs else ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        main = self.second(F.relu_(self.first(x)))
        return F.relu_(main.add_(self.skip(x)))  # in place: a third less memory traffic, the gradients do not need them


class Upsample(nn.Module):
    """A transposed convolution that doubles the edge, a batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
        self.norm = nn.BatchNorm3d(outputs, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


MOMENTUM = 0.1  # of every batch norm (torch's default, both sources)
BLOCK = 8  # edge of the blocks of the sparse stem, in fine voxels: 4 and 16 were slower on a hand


def occupied_blocks(grid: Tensor) -> Tensor:
    """(B, X/8, Y/8, Z/8) bool: the blocks of (B, 1, X, Y, Z) within reach (3 voxels) of a non-zero voxel."""
    batch, _, *edges = grid.shape
    blocks = grid.new_zeros([batch] + [edge // BLOCK for edge in edges], dtype=torch.bool)
    sample, _, *position = grid.nonzero(as_tuple=True)
    near = [
        (((axis - 3) // BLOCK).clamp_(min=0), ((axis + 3) // BLOCK).clamp_(max=edge // BLOCK - 1))
        for axis, edge in zip(position, edges, strict=True)
    ]
    for x, y, z in product(*near):
        blocks[sample, x, y, z] = True
    return blocks


class Stem(ConvNorm):
    """The 7^3 block with its ReLU and pooling, computed where the grid is not empty.

    A hand fills less than one percent of the grid, and 80 to 90 percent of the 8^3 blocks see empty space only. There
    the convolution gives its bias and everything after it a constant, so those blocks are filled in; the batch
    statistics count them. The result is that of the dense formula for any input, up to rounding; on the CPU it takes
    an eighth of the time. ``mode="auto"`` is sparse on the CPU, and dense on a GPU, under ``torch.compile`` and in
    exports.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(1, outputs, 7)
        self.mode: Literal["auto", "dense", "sparse"] = "auto"

    def forward(self, grid: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) to (B, C, X/2, Y/2, Z/2)."""
        auto = grid.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.mode == "sparse" or (self.mode == "auto" and auto):
            return self.sparse(grid)
        return F.max_pool3d(F.relu_(super().forward(grid)), 2)

    def sparse(self, grid: Tensor) -> Tensor:
        batch, _, *edges = grid.shape
        active = occupied_blocks(grid)
        patches = F.pad(grid, (3,) * 6)[:, 0]
        for axis in (1, 2, 3):
            patches = patches.unfold(axis, BLOCK + 6, BLOCK)
        assert self.conv.bias is not None
        values = F.conv3d(patches[active][:, None], self.conv.weight, self.conv.bias)  # (N, C, 8, 8, 8)
        empty = self.conv.bias
        if isinstance(self.norm, nn.BatchNorm3d):
            precise = values.to(torch.promote_types(values.dtype, torch.float32))
            scale, shift = self.scale_and_shift(precise, empty, grid.numel())
            values = torch.addcmul(shift.view(-1, 1, 1, 1), precise, scale.view(-1, 1, 1, 1)).to(values.dtype)
            empty = empty * scale + shift
        values = F.max_pool3d(F.relu_(values), 2)
        half = BLOCK // 2
        counts = active.shape[1:]
        pooled = F.relu(empty).to(values.dtype).repeat(batch, *(edge // 2 for edge in edges), 1)
        blocks = pooled.unflatten(3, (counts[2], half)).unflatten(2, (counts[1], half)).unflatten(1, (counts[0], half))
        blocks.permute(0, 1, 3, 5, 2, 4, 6, 7)[active] = values.permute(0, 2, 3, 4, 1)
        return pooled.permute(0, 4, 1, 2, 3)  # channels last in memory

    def scale_and_shift(self, values: Tensor, empty: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """The batch norm as y = x * scale + shift, its batch statistics taken over ``total`` voxels per channel:
        ``values`` (N, C, 8, 8, 8) and ``empty`` (C,) everywhere else. Updates the running statistics in training."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            rest = total - values.numel() // values.shape[1]
            mean = (values.sum((0, 2, 3, 4)) + rest * empty) / total
            squares = (values - mean.view(-1, 1, 1, 1)).square().sum((0, 2, 3, 4))
            var = (squares + rest * (empty - mean).square()) / total
            with torch.no_grad():
                norm.num_batches_tracked += 1
                norm.running_mean.lerp_(mean, MOMENTUM)
                norm.running_var.lerp_(var * (total / (total - 1)), MOMENTUM)
        scale = norm.weight * torch.rsqrt(var + norm.eps)
        return scale, norm.bias - mean * scale


class V2VPoseNet(nn.Module):
    """Occupancy grid to heat maps.

    Args:
        joints: number of heat maps J.
        widths: channels of the stem and of the three resolutions; the paper's are (16, 32, 64, 128).
        init: how fresh weights are drawn. Both draw every convolution from N(0, 0.001^2) with zero bias; ``"port"``
            starts the batch norms at weight 1, ``"author"`` draws their weight from U(0, 1) as torch7 does.

    Input (B, 1, X, Y, Z) with edges divisible by 8, values 0 or 1; output (B, J, X/2, Y/2, Z/2), no activation.
    """

    def __init__(self, joints: int, widths: Widths = PAPER_WIDTHS, init: Literal["port", "author"] = "port") -> None:
        super().__init__()
        if joints < 1 or len(widths) != 4 or min(widths) < 1:
            raise DataError(f"joints must be positive and widths four positive numbers, got {joints} and {widths}")
        if init not in ("port", "author"):
            raise DataError(f"init must be 'port' or 'author', got {init!r}")
        self.joints, self.widths = joints, tuple(widths)
        stem, low, mid, high = widths
        self.stem = Stem(stem)
        self.front = nn.Sequential(Residual(stem, low), Residual(low, low), Residual(low, low))
        self.skip1 = Residual(low, low)
        self.encode1 = Residual(low, mid)
        self.skip2 = Residual(mid, mid)
        self.encode2 = Residual(mid, high)
        self.middle = Residual(high, high)
        self.decode2 = Residual(high, high)
        self.up2 = Upsample(high, mid)
        self.decode1 = Residual(mid, mid)
        self.up1 = Upsample(mid, low)
        self.back = Residual(low, low)
        self.point1 = ConvNorm(low, low, 1)
        self.point2 = ConvNorm(low, low, 1)
        self.output = nn.Conv3d(low, joints, 1)
        self.reset_parameters(init)

    def reset_parameters(self, init: Literal["port", "author"] = "port") -> None:
        """Draws fresh weights (port and author differ in the batch norms only)."""
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                nn.init.normal_(module.weight, std=0.001)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm3d):
                module.reset_parameters()
                if init == "author":
                    nn.init.uniform_(module.weight)

    def features(self, grid: Tensor) -> Tensor:
        """The front part: (B, 1, X, Y, Z) to (B, widths[1], X/2, Y/2, Z/2)."""
        return self.front(self.stem(grid))

    def encode_decode(self, x: Tensor) -> Tensor:
        """The hourglass between the front and the back part; keeps the shape."""
        half = self.encode1(F.max_pool3d(x, 2))
        quarter = self.decode2(self.middle(self.encode2(F.max_pool3d(half, 2))))
        half = self.decode1(self.up2(quarter) + self.skip2(half))
        return self.up1(half) + self.skip1(x)

    def last_features(self, x: Tensor) -> Tensor:
        """The back part before the output layer; keeps the shape."""
        x = F.relu_(self.point1(self.back(x)))
        return F.relu_(self.point2(x))

    def heads(self, x: Tensor) -> Tensor:
        """The back part and the output layer: (B, widths[1], ...) to (B, J, ...)."""
        return self.output(self.last_features(x))

    def check_grid(self, grid: Tensor) -> None:
        """Refuses a shape that the network cannot halve three times."""
        if grid.ndim != 5 or grid.shape[1] != 1 or any(edge % 8 for edge in grid.shape[2:]):
            raise DataError(
                f"grid must be (B, 1, X, Y, Z) with edges divisible by 8 (the network halves them three times), "
                f"got {tuple(grid.shape)}"
            )

    def forward(self, grid: Tensor) -> Tensor:
        self.check_grid(grid)
        return self.heads(self.encode_decode(self.features(grid)))


class IntegralV2V(nn.Module):
    """The integral variant as its original returns it: logits (B, J, ...) and their soft-argmax (B, J, 3) in cells."""

    def __init__(self, network: V2VPoseNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(grid)
        return logits, soft_argmax(logits)[0]
