"""HandOccNet, assembled: picture -> features and gate -> FIT -> SET -> 2D pose -> MANO hand.

Park, Oh, Moon, Choi, Lee, "HandOccNet: Occlusion-Robust 3D Hand Mesh Estimation Network", CVPR 2022. Where paper and
original code disagree this follows the code, as its snapshots do (README, ledger).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from handoccnet.attention import Injection, Transformer, to_map, to_tokens
from handoccnet.backbone import Backbone
from handoccnet.hourglass import PoseEncoder, PoseHead
from handoccnet.regressor import Hand, HandHead
from shared.errors import DataError
from shared.mano import ManoModel


class HandOccNet(nn.Module):
    """A right hand from one square crop. The defaults are the published network, 39.3 million parameters.

    Args:
        mano: the hand model, from :func:`shared.mano.load_mano`; its arrays never enter the state dict.
        image_size: edge of the input in pixels, a power of two of at least 64; the maps have an eighth of it.
        stem: channels of the first convolution; the stages have 4, 8, 16, 32 times as many.
        blocks: bottlenecks of the four stages.
        channels: of the map and the transformers; a multiple of 2 and of ``heads``.
        heads: attention heads.
        hidden: widths of the two layers before pose and shape.
        tips: fingertip vertices, see :class:`handoccnet.regressor.Hand`.

    Raises:
        DataError: sizes that do not fit together, or a left-hand model.
    """

    def __init__(
        self,
        mano: ManoModel,
        *,
        image_size: int = 256,
        stem: int = 64,
        blocks: tuple[int, ...] | list[int] = (3, 4, 6, 3),
        channels: int = 256,
        heads: int = 4,
        hidden: tuple[int, ...] | list[int] = (1024, 512),
        tips: str | tuple[int, int, int, int, int] = "manopth",
    ) -> None:
        super().__init__()
        if image_size < 64 or image_size & (image_size - 1):
            raise DataError(f"image_size must be a power of two of at least 64, got {image_size}")
        if heads < 1 or channels < 2 or channels % heads or channels % 2:
            raise DataError(f"channels must be even and a multiple of heads, got {channels} and {heads}")
        if len(blocks) != 4 or len(hidden) != 2 or min(stem, *blocks, *hidden) < 1:
            raise DataError(
                f"expected four numbers of blocks, two hidden widths and a stem of at least 1, "
                f"got {list(blocks)}, {list(hidden)}, {stem}"
            )
        if mano.side != "right":
            raise DataError(
                f"the network needs a right hand, got the {mano.side} one of {mano.source}",
                remedy="give MANO_RIGHT; left hands are mirrored pictures of right ones",
            )
        size = image_size // 8
        self.sizes: dict[str, Any] = {
            "image_size": image_size,
            "stem": stem,
            "blocks": list(blocks),
            "channels": channels,
            "heads": heads,
            "hidden": list(hidden),
            "tips": tips if isinstance(tips, str) else list(tips),
        }
        self.mano_sha256 = mano.sha256
        self.image_size = image_size
        self.backbone = Backbone(stem, blocks, channels)
        self.fit = Injection(channels, size, heads)
        self.set = Transformer(channels, size * size, heads)
        self.head = PoseHead(channels, size)
        self.encoder = PoseEncoder(channels, size)
        tip_ids = tips if isinstance(tips, str) else (tips[0], tips[1], tips[2], tips[3], tips[4])
        self.hand_head = HandHead(4 * channels, (hidden[0], hidden[1]), Hand(mano, tip_ids))
        for part in (self.fit, self.set, self.head, self.encoder, self.hand_head):
            part.apply(_init)
        for module in self.modules():  # 1x1 convolutions in the original, and set up as such
            if type(module).__name__ == "AttentionLayer":
                for name in ("query", "key", "value", "gate_query", "gate_key"):
                    if hasattr(module, name):
                        nn.init.normal_(getattr(module, name).weight, std=0.001)

    @property
    def hand(self) -> Hand:
        """The MANO layer in this network's convention, for targets."""
        return self.hand_head.hand

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Everything about a batch of crops.

        Args:
            image: (B, 3, S, S) RGB in 0..1, not normalised, right hands (left ones mirrored); any memory layout.

        Returns:
            ``joints_mm`` (B, 21, 3), order ``"thumb_first"``, and ``verts_mm`` (B, 778, 3): mm, OpenCV axes,
            uncentred; ``pose`` (B, 48) axis-angle without the mean pose; ``rotmats`` (B, 16, 3, 3) of it; ``betas``
            (B, 10); ``transforms`` (B, 16, 4, 4) mm; ``joints_img`` (B, 21, 2) fractions of the crop, x first;
            ``heatmaps`` (B, 21, S/8, S/8); ``gate`` (B, 1, S/8, S/8), 1 where the hand is seen.
        """
        expected = (3, self.image_size, self.image_size)
        if image.ndim != 4 or image.shape[1:] != expected or not image.is_floating_point():
            raise DataError(
                f"image must be floating point of shape (B, 3, {self.image_size}, {self.image_size}), "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        features, gate = self.backbone(image)
        primary = features * gate
        hidden = self.fit(features - primary, primary)
        tokens = to_tokens(hidden)
        enhanced = to_map(self.set(tokens, tokens), hidden.shape[-1])
        heatmaps, joints_img, encoding = self.head(enhanced)
        hand = self.hand_head(self.encoder(heatmaps, encoding))
        return {**hand, "joints_img": joints_img, "heatmaps": heatmaps, "gate": gate}


def _init(module: nn.Module) -> None:
    """The original's starting weights of everything behind the backbone (spec of its code, not in the paper)."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.001 if isinstance(module, nn.Conv2d) else 0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
