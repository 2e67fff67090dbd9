"""A hand's mesh drawn over its picture, and the OBJ file of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from shared.draw import crop_around
from shared.errors import DataError
from shared.safe_io import atomic_write_text
from shared.standin.render import render_depth, shade

RGB = NDArray[np.uint8]
COLOUR = (0.45, 0.62, 0.85)


def mesh_overlay(
    rgb: RGB,
    verts_mm: ArrayLike,
    faces: ArrayLike,
    K: ArrayLike,
    *,
    alpha: float = 0.85,
    colour: tuple[float, float, float] = COLOUR,
) -> RGB:
    """A copy of the picture with the lit mesh over it; what lies behind the camera or outside is not drawn.

    Args:
        rgb: (H, W, 3) uint8.
        verts_mm: (V, 3) camera frame, mm.
        faces: (F, 3).
        K: (3, 3) of the picture.
        alpha: opacity of the mesh.
        colour: its reflectance in 0..1.
    """
    verts = torch.from_numpy(np.asarray(verts_mm, np.float64))
    triangles = torch.from_numpy(np.ascontiguousarray(faces, np.int64))
    height, width = rgb.shape[:2]
    seen = render_depth(verts, triangles, torch.from_numpy(np.asarray(K, np.float64)), (width, height))
    lit = shade(seen, verts, triangles, torch.tensor(colour).expand(len(verts), 3))[0]
    mask = seen.mask[0].numpy()
    out = rgb.copy()
    out[mask] = np.rint(alpha * lit[mask] + (1 - alpha) * rgb[mask]).astype(np.uint8)
    return out


def around(rgb: RGB, verts_mm: ArrayLike, K: ArrayLike, *, margin: int = 30) -> tuple[slice, slice]:
    """(rows, columns) of the picture around a mesh."""
    verts = np.asarray(verts_mm, np.float64)
    points = verts @ np.asarray(K, np.float64).T
    front = points[:, 2] > 1.0
    crop, (left, top) = crop_around(rgb, points[front, :2] / points[front, 2:], margin=margin)
    return slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1])


def obj_text(verts_m: ArrayLike, faces: ArrayLike) -> str:
    """OBJ text as the author's demo writes it: y and z negated (OpenGL axes), ``f a/a b/b c/c`` from 1.

    Numbers are the shortest decimals of the float32 values widened to double; a reader gets the float32 back.

    Raises:
        DataError: vertices that are not finite.
    """
    verts = np.asarray(verts_m, np.float32)
    if verts.ndim != 2 or verts.shape[1] != 3 or not np.isfinite(verts).all():
        raise DataError(f"expected finite vertices (V, 3), got shape {verts.shape}")
    flipped = (verts * np.array([1, -1, -1], np.float32)).astype(np.float64) + 0.0  # no negative zeros
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in flipped.tolist()]
    lines += ["f " + " ".join(f"{v}/{v}" for v in face) for face in (np.asarray(faces) + 1).tolist()]
    return "\n".join(lines) + "\n"


def write_obj(path: str | Path, verts_m: ArrayLike, faces: ArrayLike) -> None:
    """Writes :func:`obj_text`."""
    atomic_write_text(Path(path), obj_text(verts_m, faces))
