"""The five training losses of HandOccNet: means of squared differences, weighted, to be summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shared.errors import DataError

WEIGHTS: dict[str, float] = {
    "mano_verts": 1e4,
    "mano_joints": 1e4,
    "mano_pose": 10.0,
    "mano_shape": 0.1,
    "joints_img": 100.0,
}
"""The original's weights, under its own names."""

_TERMS = {
    "mano_verts": ("verts_mm", 1e-3),  # the weights are for metres
    "mano_joints": ("joints_mm", 1e-3),
    "mano_pose": ("rotmats", 1.0),
    "mano_shape": ("betas", 1.0),
    "joints_img": ("joints_img", 1.0),
}


def hand_losses(
    pred: Mapping[str, Tensor], target: Mapping[str, Tensor], weights: Mapping[str, float] = WEIGHTS
) -> dict[str, Tensor]:
    """The weighted losses by name; their sum is the training loss.

    Vertices and joints are compared uncentred in the hand's own frame, in metres; the annotated 3D joints take no part.

    Args:
        pred: the network's output.
        target: ``verts_mm`` (B, 778, 3), ``joints_mm`` (B, 21, 3), ``rotmats`` (B, 16, 3, 3), ``betas`` (B, 10) from
            :meth:`handoccnet.regressor.Hand.targets`, and ``joints_img`` (B, 21, 2) fractions of the crop.
        weights: any of :data:`WEIGHTS`; those not named keep the original's value.

    Returns:
        Scalars under the names of :data:`WEIGHTS`, float32.

    Raises:
        DataError: an unknown weight; prediction and target of different shapes.
    """
    unknown = sorted(set(weights) - set(WEIGHTS))
    if unknown:
        raise DataError(f"there is no loss {', '.join(unknown)}", remedy=f"choose among {', '.join(WEIGHTS)}")
    losses = {}
    for name, (key, unit) in _TERMS.items():
        if pred[key].shape != target[key].shape:
            raise DataError(
                f"{key} is {tuple(pred[key].shape)} in the prediction and {tuple(target[key].shape)} in the target"
            )
        difference = (pred[key].float() - target[key].float()) * unit
        losses[name] = torch.mean(difference * difference) * {**WEIGHTS, **weights}[name]
    return losses
