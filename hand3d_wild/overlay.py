"""A hand's mesh drawn over its picture, and the files it is exported to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import overlay
from shared.safe_io import atomic_path, atomic_write_text

RGB = NDArray[np.uint8]
Float = NDArray[np.float64]
_FAR = 1e6  # pixels: the pinhole renderer's distance, at which its rays are as good as parallel


def verts_uvz(verts_2d: ArrayLike, verts_m: ArrayLike, scale: float) -> Float:
    """(V, 3) u, v and depth in pixels of projected vertices (V, 2); ``scale`` is pixels per metre."""
    flat, solid = np.asarray(verts_2d, np.float64), np.asarray(verts_m, np.float64)
    return np.concatenate((flat, scale * solid[:, 2:]), 1)


def mesh_overlay(rgb: RGB, uvz: ArrayLike, faces: ArrayLike) -> RGB:
    """A copy of the picture with the lit mesh over it, seen by parallel rays as the network's camera does.

    Args:
        rgb: (H, W, 3) uint8.
        uvz: (V, 3) from :func:`verts_uvz`, pixels of ``rgb``.
        faces: (F, 3), counter-clockwise from outside.
    """
    points = np.asarray(uvz, np.float64)
    depth = _FAR + points[:, 2:] - points[:, 2:].min()
    return overlay.mesh_overlay(
        rgb, np.concatenate((points[:, :2] * depth / _FAR, depth), 1), faces, np.diag([_FAR, _FAR, 1.0])
    )


def mask_overlay(rgb: RGB, mask: ArrayLike) -> RGB:
    """A copy of the picture, dark where the mask (H, W) is 0."""
    out = rgb.copy()
    dark = ~np.asarray(mask, np.bool_)
    out[dark] = out[dark] // 4
    return out


def obj_text(verts_m: ArrayLike, faces: ArrayLike) -> str:
    """OBJ text as the authors' tester writes it: metres, y and z negated (upright), ``%f``, faces from 1.

    Raises:
        DataError: vertices that are not finite (V, 3).
    """
    lines = ["v %f %f %f" % tuple(row) for row in (overlay.check_verts(verts_m) * [1, -1, -1]).tolist()]  # noqa: UP031
    lines += [f"f {a} {b} {c}" for a, b, c in (np.asarray(faces, np.int64) + 1).tolist()]
    return "\n".join(lines) + "\n"


def write_obj(path: str | Path, verts_m: ArrayLike, faces: ArrayLike) -> None:
    """Writes :func:`obj_text`."""
    atomic_write_text(Path(path), obj_text(verts_m, faces))


def write_ply(path: str | Path, verts_m: ArrayLike, faces: ArrayLike) -> None:
    """Binary PLY, little endian; metres, y and z negated like the OBJ.

    Raises:
        DataError: vertices that are not finite (V, 3).
    """
    verts = (overlay.check_verts(verts_m) * [1, -1, -1]).astype("<f4")
    triangles = np.asarray(faces, "<i4")
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(verts)}\nproperty float x\nproperty float y\n"
        f"property float z\nelement face {len(triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(triangles), np.dtype([("count", "u1"), ("index", "<i4", (3,))]))
    rows["count"], rows["index"] = 3, triangles
    with atomic_path(path) as temporary:
        temporary.write_bytes(header.encode() + verts.tobytes() + rows.tobytes())
