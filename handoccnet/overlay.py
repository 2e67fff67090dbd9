"""A hand's mesh drawn over its picture, and the OBJ file of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.draw import crop_around
from shared.overlay import check_verts, mesh_overlay
from shared.safe_io import atomic_write_text

__all__ = ["around", "mesh_overlay", "obj_text", "write_obj"]
RGB = NDArray[np.uint8]


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
        DataError: vertices that are not finite (V, 3).
    """
    flipped = check_verts(np.asarray(verts_m, np.float32)) * [1, -1, -1] + 0.0  # no negative zeros
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in flipped.tolist()]
    lines += ["f " + " ".join(f"{v}/{v}" for v in face) for face in (np.asarray(faces) + 1).tolist()]
    return "\n".join(lines) + "\n"


def write_obj(path: str | Path, verts_m: ArrayLike, faces: ArrayLike) -> None:
    """Writes :func:`obj_text`."""
    atomic_write_text(Path(path), obj_text(verts_m, faces))
