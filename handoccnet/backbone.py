"""The picture's features: a ResNet-50 feature pyramid brought to one map, and the gate that finds the visible hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01  # of every leaky ReLU; the ImageNet weights were trained with plain ReLU


class ConvNorm(nn.Module):
    """A convolution ("same" padding) and its batch norm; the pair that inference folds into one convolution."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = True, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU in place."""
    return F.leaky_relu(x, SLOPE, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the width, plus the input."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(inputs, width, 1, bias=False)
        self.spatial = ConvNorm(width, width, 3, stride=stride, bias=False)
        self.expand = ConvNorm(width, 4 * width, 1, bias=False)
        changes = stride != 1 or inputs != 4 * width
        self.skip = ConvNorm(inputs, 4 * width, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(leaky(self.spatial(leaky(self.reduce(x)))))
        return leaky(out + (x if self.skip is None else self.skip(x)))


class Backbone(nn.Module):
    """ResNet with a top-down path to one map at an eighth of the input's size, and the spatial gate on it.

    Args:
        stem: channels after the first convolution; the stages have 4, 8, 16 and 32 times as many.
        blocks: bottlenecks of the four stages.
        channels: of the map.
    """

    def __init__(self, stem: int = 64, blocks: Sequence[int] = (3, 4, 6, 3), channels: int = 256) -> None:
        super().__init__()
        self.stem = ConvNorm(3, stem, 7, stride=2, bias=False)
        stages, inputs = [], stem
        for level, count in enumerate(blocks):
            width = stem * 2**level
            units = []
            for i in range(count):
                units.append(Bottleneck(inputs, width, stride=2 if level > 0 and i == 0 else 1))
                inputs = 4 * width
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(nn.Conv2d(stem * 4 * 2**level, channels, 1) for level in (3, 2, 1, 0))
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        # The original computes this one on P3 and drops the result. Kept to load and save, never run, never trained.
        self.unused_smooth = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
        self.pooled: nn.Conv2d | None = None  # in inference: smoothing and averaging as one convolution
        self.gate = ConvNorm(2, 1, 7, bias=False, momentum=0.01)
        for part in (self.stem, self.stages):  # as torchvision starts a ResNet; ImageNet weights replace it
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """C2 to C5 of an image (B, 3, S, S): edges S/4, S/8, S/16, S/32."""
        x = F.max_pool2d(leaky(self.stem(image)), 3, 2, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooling_kernel(self) -> Tensor:
        """(C, C, 4, 4): the smoothing convolution and the 2x2 averaging after it as one kernel of stride 2, padding 1.

        An average of four neighbouring 3x3 windows is one window of 4x4: the same sums with less than half the
        products.
        """
        w = F.pad(self.smooth.weight, (1, 1, 1, 1))
        return (w[..., 1:, 1:] + w[..., 1:, :-1] + w[..., :-1, 1:] + w[..., :-1, :-1]) * 0.25

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The map (B, C, S/8, S/8) and the gate (B, 1, S/8, S/8) in 0..1: 1 where the hand is seen."""
        maps = self.pyramid(image)
        features: Tensor
        top: Tensor | None = None
        for lateral, x in zip(self.lateral, reversed(maps), strict=True):
            side = lateral(x)
            if top is not None:
                side = side + F.interpolate(top, size=side.shape[2:], mode="bilinear", align_corners=False)
            top = side
        assert top is not None
        if self.pooled is not None:
            features = self.pooled(top)
        elif self.training:
            features = F.conv2d(top, self.pooling_kernel(), self.smooth.bias, stride=2, padding=1)
        else:  # as the original, for its last digits: FIT's gate magnifies the rounding of the longer sums
            features = F.avg_pool2d(self.smooth(top), 2)
        # CBAM's spatial attention: maximum first, then mean
        summary = torch.cat((features.amax(1, keepdim=True), features.mean(1, keepdim=True)), 1)
        return features, torch.sigmoid(self.gate(summary))
