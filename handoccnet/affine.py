"""Boxes around a hand, and the square crop of a picture that the network sees.

Pixels count from 0 and their centres are the whole numbers; ``bbox_xywh`` is left, top, width, height in pixels of the
full picture. An affine is (2, 3): crop = A (x, y, 1). Source: section "Preprocessing" of the author's code (README,
ledger), measured in ``tests/golden/handoccnet``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.functional import grid_sample

from shared.errors import DataError

Float = NDArray[np.float64]
BoxRule = Literal["reference", "clipped"]
SIZE = 256  # edge of the network's input


def bbox_of_points(points: ArrayLike, expansion: float, valid: ArrayLike | None = None) -> Float:
    """(4,) box of the valid points (J, 2) with the centre kept and both sides times ``expansion``, float32 rounded.

    Raises:
        DataError: no valid point, or one that is not finite.
    """
    xy = np.asarray(points, np.float32)
    if valid is not None:
        xy = xy[np.asarray(valid).astype(bool)]
    if not len(xy) or not np.isfinite(xy).all():
        raise DataError(f"expected finite points (J, 2) for a box, got {len(xy)} valid ones")
    low, high = xy.min(0), xy.max(0)
    # float32 throughout, as the original's arrays: a box feeds the affine that every pixel goes through
    size = (high - low) * np.float32(expansion)
    return np.concatenate([(low + high) / np.float32(2) - size / np.float32(2), size]).astype(np.float64)


def square_bbox(
    bbox_xywh: ArrayLike, image_size: tuple[int, int], expansion: float, *, rule: BoxRule = "reference"
) -> Float:
    """(..., 4) square boxes for (..., 4) boxes; rows of NaN where nothing of the picture is left.

    ``reference`` is the author's helper with its two habits, which published numbers contain: one pixel of width and of
    height is lost, and a box that starts left of or above the picture is moved in instead of cut. ``clipped`` keeps the
    pixel and intersects box and picture. The square may reach beyond the picture; the crop is black there.

    Args:
        bbox_xywh: boxes; always taken as floating point (the original cuts integers to integers on the way).
        image_size: (width, height).
        expansion: factor on the longer side.
        rule: see above.
    """
    x, y, w, h = np.moveaxis(np.asarray(bbox_xywh, np.float64), -1, 0)
    width, height = image_size
    x1, y1 = np.maximum(x, 0), np.maximum(y, 0)
    if rule == "reference":
        x2 = np.minimum(width - 1, x1 + np.maximum(0, w - 1))
        y2 = np.minimum(height - 1, y1 + np.maximum(0, h - 1))
        side = np.maximum(x2 - x1, y2 - y1)
    else:
        x2, y2 = np.minimum(width - 1, x + w - 1), np.minimum(height - 1, y + h - 1)
        side = np.maximum(x2 - x1, y2 - y1) + 1  # pixels from x1 to x2, both included
    side = side * expansion
    box = np.stack([(x1 + x2) / 2 - side / 2, (y1 + y2) / 2 - side / 2, side, side], -1)
    box[~((w * h > 0) & (x2 >= x1) & (y2 >= y1) & (side > 0))] = np.nan
    return box


def check_bbox(bbox_xywh: ArrayLike, image_size: tuple[int, int], *, name: str) -> Float:
    """A user's or a data set's box (4,), after the checks that must come before hours of work.

    Raises:
        DataError: not four finite numbers, no extent, or no pixel of the picture inside; names ``name``.
    """
    box = np.asarray(bbox_xywh, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise DataError(f"{name}: the box must be four finite numbers x,y,w,h, got {np.round(box, 3).tolist()}")
    x, y, w, h = box.tolist()
    if w <= 0 or h <= 0:
        raise DataError(f"{name}: the box has no extent: width {w:g}, height {h:g}", remedy="give x,y,w,h in pixels")
    width, height = image_size
    if x > width - 1 or y > height - 1 or x + w <= 0 or y + h <= 0:
        raise DataError(
            f"{name}: the box {x:g},{y:g},{w:g},{h:g} lies outside the picture of {width} x {height} pixels",
            remedy="give x,y,w,h of a box that shows the hand, counted from the top left corner",
        )
    return box


def crop_affine(
    bbox_xywh: ArrayLike, *, scale: float = 1.0, angle_deg: float = 0.0, size: int = SIZE
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """((2, 3) picture to crop, (2, 3) crop to picture) float32 of a box, enlarged and turned about its centre.

    The box's centre goes to the middle of the crop; a scale above 1 shows more around it. Three point pairs rounded to
    float32 are solved in double and rounded again, as in the original.
    """
    x, y, w, h = np.asarray(bbox_xywh, np.float64)
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([x + w / 2, y + h / 2], np.float32)
    down = (turn @ [0, h * scale / 2]).astype(np.float32)
    right = (turn @ [w * scale / 2, 0]).astype(np.float32)
    source = np.stack([center, center + down, center + right]).astype(np.float64)
    target = np.array([[0.5, 0.5], [0.5, 1.0], [1.0, 0.5]]) * size
    return _solve(source, target), _solve(target, source)


def _solve(source: Float, target: Float) -> NDArray[np.float32]:
    """The affine that takes three points to three others."""
    return np.linalg.solve(np.concatenate([source, np.ones((3, 1))], 1), target).T.astype(np.float32)


def apply_affine(affine: ArrayLike, points: ArrayLike) -> Float:
    """(..., 2) points after a (2, 3) affine."""
    A = np.asarray(affine, np.float64)
    return np.asarray(points, np.float64) @ A[:, :2].T + A[:, 2]


def warp(rgb: NDArray[np.uint8], affine: ArrayLike, *, size: int = SIZE) -> torch.Tensor:
    """(3, size, size) float32 grey levels 0..255: the crop of an (H, W, 3) picture, bilinear, black outside.

    Only the part of the picture that the crop shows is converted; its values equal those of OpenCV 5's warp of the
    whole picture as floats to 0.02 grey levels (4.x rounds positions to 1/32 pixel).
    """
    height, width = rgb.shape[:2]
    A = np.asarray(affine, np.float64)
    inverse = np.linalg.inv(np.concatenate([A, [[0, 0, 1]]]))[:2]
    corners = apply_affine(inverse, [[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]])
    left, top = np.clip(np.floor(corners.min(0)), 0, [width, height]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(0)) + 1, 0, [width, height]).astype(int).tolist()
    w, h = right - left, bottom - top
    if w <= 0 or h <= 0:
        return torch.zeros(3, size, size)
    part = torch.from_numpy(rgb[top:bottom, left:right]).permute(2, 0, 1)[None].float()
    # crop pixel -> picture pixel -> grid_sample's -1..1 over the part, whose pixel centres lie at (2 x + 1) / w - 1
    inverse[:, 2] -= [left, top]
    to_grid = inverse * 2 / np.array([[w], [h]])
    to_grid[:, 2] += [1 / w - 1, 1 / h - 1]
    grid = torch.from_numpy(sampling_grid(to_grid, size))
    return grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def sampling_grid(affine: ArrayLike, size: int) -> NDArray[np.float32]:
    """(1, size, size, 2) float32: where a (2, 3) affine puts each pixel of a square, the sums made in double."""
    A, step = np.asarray(affine, np.float64), np.arange(size, dtype=np.float64)
    grid = np.empty((1, size, size, 2), np.float32)
    for axis in range(2):
        along_row = A[axis, 0] * step + A[axis, 2]
        np.add(along_row, A[axis, 1] * step[:, None], out=grid[0, :, :, axis], casting="same_kind")
    return grid
