"""The encoder: a ResNet-34 with two stems whose last layer gives the 22 numbers of :mod:`hand3d_wild.decoder`.

Boukhayma et al., CVPR 2019; original file ``resnet.py`` of boukhayma/3dhand. Layer names are its names, so a state dict
here has the keys of the published checkpoints. (Later papers call the encoder a ResNet-50; code and weights are a
ResNet-34.)
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hand3d_wild.decoder import N_PARAMS, OFFSET, Decoder, Prediction
from shared.errors import DataError
from shared.mano import ManoModel

Form = Literal["rgb", "heatmaps"]
CHANNELS: dict[str, int] = {"rgb": 3, "heatmaps": 24}
"""Input channels of each form: red, green, blue; with "heatmaps" 21 maps follow, in the order ``"wild"``."""
INITS = ("kaiming", "gaussian", "xavier", "orthogonal", "default")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class WildNet(nn.Module):
    """A right hand from one square crop. The defaults are the published network, 21 371 222 parameters.

    Args:
        mano: the hand model, from :func:`shared.mano.load_mano`; its arrays never enter the state dict.
        form: ``"rgb"``, or ``"heatmaps"`` for RGB and 21 heat maps. Both stems exist either way, as in the published
            checkpoints; the unused one is not trained.
        image_size: edge of the input in pixels, a multiple of 32; the outputs stay in the 256-pixel frame.
        width: channels of the stem, a multiple of 16; the stages have 1, 2, 4, 8 times as many.
        blocks: blocks of the four stages.
        full_pool: average the whole last map. The published network leaves its last row and column out: a window of 7
            on a map of 8. Maps of 7 and less are averaged whole anyway.
        camera_gain: what the last layer's scale and translation are multiplied by. They are pixels, tens to hundreds,
            beside angles of about 1; with Adam's steps of equal size for all weights they take thousands of steps to
            get there, which the published training has and short ones do not.

    Raises:
        DataError: sizes that cannot be, an unknown form, or a left hand.
    """

    def __init__(
        self,
        mano: ManoModel,
        *,
        form: Form = "rgb",
        image_size: int = 256,
        width: int = 64,
        blocks: tuple[int, ...] | list[int] = (3, 4, 6, 3),
        full_pool: bool = False,
        camera_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if form not in CHANNELS:
            raise DataError(f"form must be one of {', '.join(CHANNELS)}, got {form!r}")
        if image_size < 32 or image_size % 32:
            raise DataError(f"image_size must be a multiple of 32, got {image_size}")
        if width < 16 or width % 16 or len(blocks) != 4 or min(blocks) < 1:
            raise DataError(
                f"width must be a multiple of 16 and blocks four numbers of at least 1, got {width} and {list(blocks)}"
            )
        if not (math.isfinite(camera_gain) and camera_gain > 0):
            raise DataError(f"camera_gain must be positive, got {camera_gain}")
        self.sizes: dict[str, Any] = {
            "form": form,
            "image_size": image_size,
            "width": width,
            "blocks": list(blocks),
            "full_pool": full_pool,
            "camera_gain": camera_gain,
        }
        self.mano_sha256 = mano.sha256
        self.form: Form = form
        self.image_size = image_size
        self.conv1 = nn.Conv2d(CHANNELS["rgb"], width, 7, 2, 3, bias=False)
        self.conv11 = nn.Conv2d(CHANNELS["heatmaps"], width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = [width * 2**stage for stage in range(4)]
        inputs = [width, *channels[:3]]
        for stage in range(4):
            layers = [
                BasicBlock(inputs[stage] if i == 0 else channels[stage], channels[stage], 2 if stage and not i else 1)
                for i in range(blocks[stage])
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.pool = image_size // 32 if full_pool else min(image_size // 32, 7)
        self.fc = nn.Linear(channels[3], N_PARAMS)
        self.register_buffer("offset", torch.tensor(OFFSET), persistent=False)
        gain = [camera_gain] * 3 + [1.0] * (N_PARAMS - 3)
        self.register_buffer("gain", torch.tensor(gain), persistent=False)
        self.decoder = Decoder(mano)
        # The stem that is not in use gets no gradient in the original either; said here, so that two ranks can train.
        (self.conv11 if form == "rgb" else self.conv1).requires_grad_(False)
        initialise(self, "default")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    offset: Tensor
    gain: Tensor

    def features(self, image: Tensor) -> Tensor:
        """(B, 8 width, S/32, S/32): the last stage's map of a batch of crops."""
        expected = (CHANNELS[self.form], self.image_size, self.image_size)
        if image.ndim != 4 or image.shape[1:] != expected or not image.is_floating_point():
            raise DataError(
                f"image must be floating point of shape (B, {', '.join(map(str, expected))}) for the {self.form} form, "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        image = image.contiguous(memory_format=torch.channels_last)
        x = self.conv1(image) if self.form == "rgb" else self.conv11(image)
        x = F.max_pool2d(F.relu(self.bn1(x), inplace=True), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x

    def encode(self, image: Tensor) -> Tensor:
        """(B, 22) parameter vectors, offset included."""
        features = self.features(image)[..., : self.pool, : self.pool]
        with torch.autocast(image.device.type, enabled=False):  # half precision would round angles to a hundredth
            pooled = features.to(self.fc.weight.dtype).mean((2, 3))
            return self.offset + self.gain * self.fc(pooled)

    def forward(self, image: Tensor) -> Prediction:
        """Everything about a batch of crops.

        Args:
            image: (B, 3, S, S) RGB in 0..1, or (B, 24, S, S) with heat maps in 0..1 behind; right hands (left ones
                mirrored), the hand's box enlarged 2.2 times; no mean is subtracted. Any memory layout.

        Raises:
            DataError: another shape or type.
        """
        return self.decoder(self.encode(image))


def folded(network: WildNet) -> WildNet:
    """A copy in evaluation mode whose convolutions contain their batch norms: the same numbers up to rounding, sooner.
    It has another state dict and cannot be trained on."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    stem = "conv1" if network.form == "rgb" else "conv11"
    pairs: list[tuple[nn.Module, str, str]] = [(network, stem, "bn1")]
    for block in network.modules():
        if isinstance(block, BasicBlock):
            pairs += [(block, "conv1", "bn1"), (block, "conv2", "bn2")]
            if block.downsample is not None:
                pairs.append((block.downsample, "0", "1"))
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    return network.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def initialise(network: WildNet, name: str) -> None:
    """Sets new starting weights of a kind that the original's configurations know (``init``).

    ``kaiming`` (normal, fan-in, the one that was used), ``gaussian`` (standard deviation 0.02), ``xavier`` (normal,
    gain sqrt 2), ``orthogonal`` (gain sqrt 2), ``default`` (the constructor's: normal with standard deviation
    sqrt(2 / (k k out)) for convolutions, torch's own for the last layer). Norms start at 1 and 0; biases at 0, but for
    ``default``.

    Raises:
        DataError: another name.
    """
    if name not in INITS:
        raise DataError(f"there is no initialisation {name!r}", remedy=f"choose among {', '.join(INITS)}")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight
            if name == "kaiming":
                nn.init.kaiming_normal_(weight)
            elif name == "gaussian":
                nn.init.normal_(weight, std=0.02)
            elif name == "xavier":
                nn.init.xavier_normal_(weight, gain=math.sqrt(2))
            elif name == "orthogonal":
                flat = torch.empty(weight.shape, device=weight.device)  # torch 2.13 fails on channels-last memory
                weight.data.copy_(nn.init.orthogonal_(flat, gain=math.sqrt(2)))
            elif isinstance(module, nn.Conv2d):
                nn.init.normal_(weight, std=math.sqrt(2 / (weight[0, 0].numel() * module.out_channels)))
            else:
                module.reset_parameters()
            if module.bias is not None and name != "default":
                nn.init.zeros_(module.bias)
