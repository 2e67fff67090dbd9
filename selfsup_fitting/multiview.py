"""Several cameras around one hand: from crop to crop, and where the cameras stand.

A pose ``T_canon_view`` (4, 4) maps points of one view's crop frame (origin at that view's crop centre) to the first
view's; the translation is in the last column. Calibration needs the labels of a sequence once; a known rig needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shared.errors import DataError

Array = NDArray[np.float64]


def rigid_inverse(T: Tensor) -> Tensor:
    """The inverse of rigid transforms (..., 4, 4)."""
    R = T[..., :3, :3].mT
    out = torch.zeros_like(T)
    out[..., :3, :3] = R
    out[..., :3, 3:] = -R @ T[..., :3, 3:]
    out[..., 3, 3] = 1
    return out


def mutual_transforms(T_canon_view: Tensor) -> Tensor:
    """(B, V, V, 4, 4): entry [b, i, j] maps points of view i to view j; from (B, V, 4, 4)."""
    return rigid_inverse(T_canon_view)[:, None] @ T_canon_view[:, :, None]


def transform(T: Tensor, points: Tensor) -> Tensor:
    """Points (..., P, 3) moved by (..., 4, 4)."""
    return points @ T[..., :3, :3].mT + T[..., None, :3, 3]


def fuse_views(spheres_mm: Tensor, T_canon_view: Tensor, variance: Tensor) -> Tensor:
    """(B, V, J, 3) the same hand in every view: each sphere as the view of the least variance sees it.

    Args:
        spheres_mm: (B, V, J, 3), each in its own view.
        T_canon_view: (B, V, 4, 4).
        variance: (B, V, J), for example :func:`selfsup_fitting.model.heatmap_variance`.
    """
    points = transform(T_canon_view, spheres_mm)
    best = variance.argmin(1, keepdim=True)[..., None].expand(-1, -1, -1, 3)
    return transform(rigid_inverse(T_canon_view), points.gather(1, best).expand_as(points))


def crop_poses(T_cam1_cam: ArrayLike, center_mm: ArrayLike) -> Array:
    """(n, V, 4, 4) ``T_canon_view`` of crops around ``center_mm`` (n, V, 3), from poses of the cameras (..., V, 4, 4).

    The crops' centres are known exactly, so the translation between two crops follows from the cameras alone.
    """
    cameras, centers = np.asarray(T_cam1_cam, np.float64), np.asarray(center_mm, np.float64)
    T = np.broadcast_to(cameras, (*centers.shape[:-1], 4, 4)).copy()
    T[..., :3, 3] += (T[..., :3, :3] @ centers[..., None])[..., 0] - centers[..., :1, :]
    return T


def sequences(split: str, frames: int) -> list[slice]:
    """The recordings of a NYU split: one for training, two subjects in the test split (the second from frame 2441)."""
    from shared.datasets.nyu import SUBJECT_2_FROM

    cut = SUBJECT_2_FROM - 1
    if split == "test" and frames > cut:
        return [slice(0, cut), slice(cut, frames)]
    return [slice(0, frames)]


def calibrate(
    joints_mm: ArrayLike, parts: Sequence[slice], how: Literal["sequence", "frame"] = "sequence"
) -> tuple[Array, Array]:
    """Camera poses from labels, once per sequence (default) or for every frame by itself as the original does.

    Frames without labels (all 0 in some view) count for nothing; with ``frame`` their poses are the identity.

    Args:
        joints_mm: (V, n, P, 3), each view in its own camera's frame.
        parts: the sequences, slices of the frames.
        how: ``frame`` copies annotation noise into the extrinsics; for cameras that moved.

    Returns:
        T_cam1_cam (n, V, 4, 4) and what each sequence's fit leaves, (parts, V) mm rms.

    Raises:
        DataError: fewer than two views.
    """
    from shared.datasets.nyu import labelled, rigid_fit  # here: the losses import this module and need no reader

    xyz = np.asarray(joints_mm, np.float64)
    if xyz.ndim != 4 or len(xyz) < 2:
        raise DataError(
            f"calibration needs labels (views, frames, joints, 3) of at least two views, got {xyz.shape}",
            remedy="give --views 1,2,3",
        )
    T = np.tile(np.eye(4), (xyz.shape[1], len(xyz), 1, 1))
    rms = np.zeros((len(parts), len(xyz)))
    there = np.asarray(labelled(xyz).all(0))
    for i, part in enumerate(parts):
        known = np.arange(xyz.shape[1])[part][there[part]]
        if not len(known):
            continue
        first = xyz[0, known]
        for view in range(1, len(xyz)):
            points = xyz[view, known]
            if how == "frame":
                fitted = rigid_fit(points, first)
                T[known, view] = fitted
            else:
                fitted = rigid_fit(points.reshape(-1, 3), first.reshape(-1, 3))
                T[part, view] = fitted
            moved = points @ np.swapaxes(fitted[..., :3, :3], -1, -2) + fitted[..., None, :3, 3]
            rms[i, view] = np.sqrt(((moved - first) ** 2).sum(-1).mean())
    return T, rms


def column_layout(T: ArrayLike, *, keep_translation: bool = True) -> tuple[Array, bool]:
    """Poses (..., 4, 4) with the translation in the last column, and whether it was in the last row.

    The original's converter writes the translation into the last row, where nothing reads it (README, Q4).

    Args:
        T: poses as stored.
        keep_translation: False drops the translation of such files, which is what the original trained with.

    Raises:
        DataError: both the last row and the last column hold numbers, or something is not finite.
    """
    poses = np.array(T, np.float64)
    if poses.shape[-2:] != (4, 4) or not np.isfinite(poses).all():
        raise DataError(f"expected finite camera poses (..., 4, 4), got shape {poses.shape}")
    row, column = poses[..., 3, :3].copy(), poses[..., :3, 3]
    if not row.any():
        return poses, False
    if column.any():
        raise DataError("camera poses with numbers in both the last row and the last column are no rigid transforms")
    poses[..., 3, :3] = 0
    poses[..., :3, 3] = row if keep_translation else 0
    return poses, True
