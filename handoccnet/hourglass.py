"""2D pose by an hourglass, and the encoder that turns heat maps and features into one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handoccnet.backbone import ConvNorm, leaky

JOINTS = 21


class ResidualUnit(nn.Module):
    """Pre-activation bottleneck: norm, 1x1 to half the channels, 3x3, 1x1 back, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.norm = nn.BatchNorm2d(channels)
        self.reduce = ConvNorm(channels, half, 1)
        self.spatial = ConvNorm(half, half, 3)
        self.expand = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expand(leaky(self.spatial(leaky(self.reduce(leaky(self.norm(x)))))))
        return x + out


class Hourglass(nn.Module):
    """``depth`` halvings and back; level 0 is the smallest and has a fourth unit at the bottom."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(ResidualUnit(channels) for _ in range(4 if level == 0 else 3)) for level in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._level(x, len(self.levels) - 1)

    def _level(self, x: Tensor, level: int) -> Tensor:
        units = self.levels[level]
        assert isinstance(units, nn.ModuleList)
        low = units[1](F.max_pool2d(x, 2))
        low = self._level(low, level - 1) if level else units[3](low)
        out: Tensor = units[0](x) + F.interpolate(units[2](low), scale_factor=2, mode="nearest")
        return out


class PoseHead(nn.Module):
    """Heat maps, 2D joints as fractions of the crop, and the features they were read from.

    Args:
        channels: of the map.
        size: edge of the map, a power of two.
    """

    grid: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.hourglass = Hourglass(channels, size.bit_length() - 2)  # 2x2 at the bottom
        self.residual = ResidualUnit(channels)
        self.encoding = ConvNorm(channels, channels, 1)
        self.score = nn.Conv2d(channels, JOINTS, 1)
        self.sharpness = nn.Parameter(torch.ones(JOINTS, 1))  # inverse temperature; the original's "betas"
        middle = (torch.arange(size) + 0.5) / size
        grid = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).reshape(-1, 2)
        self.register_buffer("grid", grid, persistent=False)  # (N, 2): x, y of the cells' middles

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heat maps (B, 21, H, W) that sum to 1, joints (B, 21, 2) x first, both float32; encoding (B, C, H, W)."""
        encoding = leaky(self.encoding(self.residual(self.hourglass(x))))
        latents = self.score(encoding.to(self.score.weight.dtype))
        with torch.autocast(x.device.type, enabled=False):
            logits = latents.flatten(2).float() * self.sharpness.float()
            heatmaps = logits.softmax(-1)
            joints = heatmaps @ self.grid.float()
        return heatmaps.view(latents.shape), joints, encoding


class PoseEncoder(nn.Module):
    """(B, 4 C) from heat maps and encoding: residual units in pairs with a halving after each pair, down to 2x2."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.from_heatmaps = nn.Conv2d(JOINTS, channels, 1)
        self.from_encoding = nn.Conv2d(channels, channels, 1)
        self.units = nn.ModuleList(ResidualUnit(channels) for _ in range(2 * (size.bit_length() - 2)))

    def forward(self, heatmaps: Tensor, encoding: Tensor) -> Tensor:
        x = self.from_heatmaps(heatmaps.to(encoding.dtype)) + self.from_encoding(encoding)
        for i, unit in enumerate(self.units):
            x = unit(x)
            if i % 2:
                x = F.max_pool2d(x, 2)
        features: Tensor = x.flatten(1)  # channel by channel
        return features
