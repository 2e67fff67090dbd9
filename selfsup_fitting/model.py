"""The hourglass estimator: a 64 x 64 depth crop to a heat map and a depth map for each of 41 spheres.

Group norms everywhere, so that neither the batch size nor train/eval matters. Names of the original's checkpoint are
translated by ``selfsup_fitting.convert``. Source: the author's released network (README, ledger); sizes other than the
published ones are ours, for the stand-in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import DataError

SPHERES = 41
IMAGE = 64  # side of the input, pixels
CELLS = 16  # side of the heat maps
CUBE_MM = 300.0  # side of the cube that image and heat maps cover
DEPTH_SCALE = 0.01  # normalised depth per mm
SHARPNESS = 20.0  # of the softmax that finds x and y
VARIANCE_SHARPNESS = 25.0  # the original's, where it measures how wide a heat map is


class Pred(NamedTuple):
    """What one stack says about N images.

    Attributes:
        heatmaps: (N, 41, 16, 16); a peak of 1 cell standard deviation at the sphere's x, y.
        depths: (N, 41, 16, 16) normalised depth (mm / 100) of the sphere, meant where its heat map is high.
        spheres_mm: (N, 41, 3) centres in the crop's frame: OpenCV axes, origin at the crop's centre, mm.
        latent: (N, C, 4, 4) the innermost feature map.
    """

    heatmaps: Tensor
    depths: Tensor
    spheres_mm: Tensor
    latent: Tensor

    def part(self, start: int, end: int | None) -> Pred:
        """The images ``start`` to ``end``, for batches that hold synthetic and captured ones."""
        return Pred(*(value[start:end] for value in self))


def norm(channels: int) -> nn.GroupNorm:
    """Group norm as published (16 groups), of at least four channels a group in smaller networks."""
    return nn.GroupNorm(16 if channels >= 64 else channels // 4, channels)


def relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)  # always behind a norm, which keeps its input and not its output


class Bottleneck(nn.Module):
    """Pre-activation residual unit, ``inputs`` to ``2 * planes`` channels (spec of the original: 1x1, 3x3, 1x1)."""

    def __init__(self, inputs: int, planes: int) -> None:
        super().__init__()
        self.norm1, self.reduce = norm(inputs), nn.Conv2d(inputs, planes, 1)
        self.norm2, self.spatial = norm(planes), nn.Conv2d(planes, planes, 3, padding=1)
        self.norm3, self.expand = norm(planes), nn.Conv2d(planes, 2 * planes, 1)
        self.skip = nn.Conv2d(inputs, 2 * planes, 1) if inputs != 2 * planes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(relu(self.norm1(x)))
        y = self.spatial(relu(self.norm2(y)))
        y = self.expand(relu(self.norm3(y)))
        total: Tensor = y + (x if self.skip is None else self.skip(x))
        return total


class Hourglass(nn.Module):
    """Two levels: 16 x 16 to 4 x 4 and back. Returns the result and the innermost feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def unit() -> Bottleneck:
            return Bottleneck(channels, channels // 2)

        self.up = nn.ModuleList([unit(), unit()])  # outer, inner
        self.down = nn.ModuleList([unit(), unit()])
        self.back = nn.ModuleList([unit(), unit()])
        self.middle = unit()

    def level(self, x: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        low = self.down[depth](F.max_pool2d(x, 2))
        if depth:
            low = latent = self.middle(low)
        else:
            low, latent = self.level(low, 1)
        low = F.interpolate(self.back[depth](low), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.up[depth](x) + low, latent

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.level(x, 0)


class Stack(nn.Module):
    """An hourglass and its two heads; ``remap`` and ``remap_score`` feed the next stack (absent in the last)."""

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.hourglass = Hourglass(channels)
        self.residual = Bottleneck(channels, channels // 2)
        self.fc, self.fc_norm = nn.Conv2d(channels, channels, 1), norm(channels)
        self.score = nn.Conv2d(channels, 2 * SPHERES, 1)
        self.remap = None if last else nn.Conv2d(channels, channels, 1)
        self.remap_score = None if last else nn.Conv2d(2 * SPHERES, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score maps (N, 82, 16, 16), the input of the next stack, the latent."""
        y, latent = self.hourglass(x)
        y = relu(self.fc_norm(self.fc(self.residual(y))))
        score = self.score(y)
        if self.remap is not None and self.remap_score is not None:
            x = x + self.remap(y) + self.remap_score(score)
        return score, x, latent


class Estimator(nn.Module):
    """Depth crops to spheres.

    Args:
        stacks: hourglasses one after the other; 1 as published, each is supervised.
        channels: of the 16 x 16 maps, a multiple of 64; 256 as published, less for the stand-in.

    Raises:
        DataError: sizes that cannot be built.
    """

    def __init__(self, stacks: int = 1, channels: int = 256) -> None:
        super().__init__()
        if stacks < 1 or channels < 64 or channels % 64:
            raise DataError(
                f"expected at least 1 stack and a multiple of 64 channels, got {stacks} and {channels}",
                remedy="set --model.stacks and --model.channels",
            )
        self.sizes = {"stacks": stacks, "channels": channels}
        stem = channels // 4
        self.stem, self.stem_norm = nn.Conv2d(1, stem, 5, stride=2, padding=2), nn.GroupNorm(4, stem)
        self.layers = nn.ModuleList(
            [Bottleneck(stem, stem), Bottleneck(2 * stem, 2 * stem), Bottleneck(channels, channels // 2)]
        )
        self.stacks = nn.ModuleList(Stack(channels, last=i == stacks - 1) for i in range(stacks))

    def forward(self, depth: Tensor) -> list[Pred]:
        """Predictions of every stack.

        Args:
            depth: (N, 64, 64) or (N, 1, 64, 64) normalised depth (mm / 100, background 1).

        Raises:
            DataError: depth of another shape.
        """
        if depth.shape[-2:] != (IMAGE, IMAGE) or depth.ndim not in (3, 4) or (depth.ndim == 4 and depth.shape[1] != 1):
            raise DataError(f"expected depth crops (N, 64, 64) or (N, 1, 64, 64), got {tuple(depth.shape)}")
        x = depth if depth.ndim == 4 else depth[:, None]
        x = self.layers[0](relu(self.stem_norm(self.stem(x))))
        x = self.layers[2](self.layers[1](F.max_pool2d(x, 2)))
        preds = []
        for stack in self.stacks:
            score, x, latent = stack(x)
            score = score.to(torch.promote_types(score.dtype, torch.float32))  # of bfloat16 networks
            heatmaps, depths = score.split(SPHERES, dim=1)
            preds.append(Pred(heatmaps, depths, recover_spheres(heatmaps, depths), latent))
        return preds


def peak_share(heatmaps: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """softmax(sharpness H) over the cells of heat maps (..., 16, 16): nearly all at the highest cells."""
    return (sharpness * heatmaps.flatten(-2)).softmax(-1).view_as(heatmaps)


def positive_share(heatmaps: Tensor) -> Tensor:
    """The positive part of heat maps (..., 16, 16) divided by its sum; all 0 where no cell is positive."""
    positive = heatmaps.relu()
    return positive / (positive.sum((-2, -1), keepdim=True) + 1e-5)


def mean_cell(share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean column and row (...) under shares (..., 16, 16)."""
    cells = torch.arange(share.shape[-1], dtype=share.dtype, device=share.device)
    return (share.sum(-2) * cells).sum(-1), (share.sum(-1) * cells).sum(-1)


def recover_spheres(heatmaps: Tensor, depths: Tensor) -> Tensor:
    """(..., J, 3) centres in mm from heat maps and depth maps (..., J, 16, 16).

    x and y are the mean under softmax(20 H); z is the mean of the depth map under the positive part of H, not under
    the softmax, so that z also teaches the heat map. Where no cell is positive z is 0.
    """
    u, v = mean_cell(peak_share(heatmaps))
    z = (depths * positive_share(heatmaps)).sum((-2, -1)) / DEPTH_SCALE
    step = CUBE_MM / CELLS
    return torch.stack([(u - CELLS / 2) * step, (v - CELLS / 2) * step, z], -1)


def heatmap_variance(heatmaps: Tensor) -> Tensor:
    """(..., J) how little a heat map (..., J, 16, 16) says where its sphere is; in squares of the map's side.

    The positive part's mean squared distance from the mean cell under softmax(25 H): about 2 / 256 for a clean peak,
    infinite where nothing is positive. The original chooses by it the view that it believes
    (:func:`selfsup_fitting.multiview.fuse_views`), and there an empty map has variance 0: it is believed most.
    """
    u, v = mean_cell(peak_share(heatmaps, VARIANCE_SHARPNESS))
    cells = torch.arange(CELLS, dtype=heatmaps.dtype, device=heatmaps.device)
    across, down = (cells - u[..., None]).square(), (cells - v[..., None]).square()
    share = positive_share(heatmaps)
    total = share.sum((-2, -1))  # 1, or less where the whole positive part is as small as what guards the division
    variance = ((share.sum(-2) * across).sum(-1) + (share.sum(-1) * down).sum(-1)) / (total * CELLS**2)
    return torch.where(total > 0.5, variance, torch.inf)
