"""The two training losses of V2V-PoseNet, both from joint coordinates and without a dense target in memory.

Coordinates are in cells: fine voxels divided by 2, (0, 44) inside the cube (``ops.joint_coordinates(...) / 2``). Both
losses are computed in float32 or better whatever the autocast around them, and both run in the native kernels of
:mod:`v2v_posenet.kernels.ops` where they were built.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from shared.errors import DataError
from v2v_posenet.kernels import ops
from v2v_posenet.kernels.ops import SIGMA, IntegralLoss

AUTHOR_OFFSET = 0.0  # the author evaluates the Gaussian at the cell's index
PORT_OFFSET = 0.5  # the port in the middle of the cell


def heatmap_loss(
    pred_heatmaps: Tensor, target_cells: Tensor, *, sigma: float = SIGMA, offset: float = PORT_OFFSET
) -> Tensor:
    """Mean over all B*J*44^3 cells of (prediction - Gaussian)^2 (the paper writes a sum, both codes a mean).

    Args:
        pred_heatmaps: (B, J, X, Y, Z), any float type and memory layout.
        target_cells: (B, J, 3); joints outside the cube leave whatever tail of the Gaussian reaches in.
        sigma: width of the Gaussian in cells.
        offset: position of a cell of index 0, :data:`PORT_OFFSET` or :data:`AUTHOR_OFFSET`.

    Returns:
        Scalar.
    """
    return ops.gaussian_mse(pred_heatmaps, target_cells, sigma=sigma, offset=offset)


def dense_heatmap_loss(pred_heatmaps: Tensor, target_heatmaps: Tensor) -> Tensor:
    """The same for given target maps: their mean squared difference, in float32 at least."""
    return (pred_heatmaps.to(torch.promote_types(pred_heatmaps.dtype, torch.float32)) - target_heatmaps).square().mean()


def integral_loss(pred_logits: Tensor, target_cells: Tensor, *, weight: float = 0.5) -> IntegralLoss:
    """The mixed loss of the integral variant: weight * CE + (1 - weight) * L1.

    The cross entropy is taken against the trilinear one-hot map of the clipped target, whose at most eight non-zero
    cells are gathered. The target is clipped to [0, size - 2] as in the port.

    Args:
        pred_logits: (B, J, X, Y, Z).
        target_cells: (B, J, 3).
        weight: of the cross entropy; 0.5 in the port.

    Returns:
        ``loss``, ``coords`` (B, J, 3), ``cross_entropy`` and ``l1`` (cells).
    """
    return ops.integral_loss(pred_logits, target_cells, weight=weight)


def training_loss(
    variant: Literal["gaussian", "integral"],
    pred: Tensor,
    target_cells: Tensor,
    *,
    sigma: float = SIGMA,
    offset: float = PORT_OFFSET,
    weight: float = 0.5,
) -> dict[str, Tensor]:
    """The loss of a variant under ``"loss"``, with its parts for the log (``"cross_entropy"``, ``"l1_cells"``)."""
    if variant == "gaussian":
        return {"loss": heatmap_loss(pred, target_cells, sigma=sigma, offset=offset)}
    if variant == "integral":
        parts = integral_loss(pred, target_cells, weight=weight)
        return {"loss": parts.loss, "cross_entropy": parts.cross_entropy.detach(), "l1_cells": parts.l1.detach()}
    raise DataError(f"variant must be 'gaussian' or 'integral', got {variant!r}")
