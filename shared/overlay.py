"""A mesh drawn over its picture, and the check of vertices that are exported."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataError

COLOUR = (0.45, 0.62, 0.85)  # reflectance of the mesh in 0..1
ALPHA = 0.85  # its opacity


def mesh_overlay(rgb: NDArray[np.uint8], verts: ArrayLike, faces: ArrayLike, K: ArrayLike) -> NDArray[np.uint8]:
    """A copy of the picture with the lit mesh over it; what lies behind the camera or outside is not drawn.

    Args:
        rgb: (H, W, 3) uint8.
        verts: (V, 3) camera frame, any unit.
        faces: (F, 3), counter-clockwise from outside.
        K: (3, 3) of the picture.
    """
    import torch

    from shared.standin.render import render_depth, shade

    points = torch.from_numpy(np.asarray(verts, np.float64))
    triangles = torch.from_numpy(np.ascontiguousarray(faces, np.int64))
    height, width = rgb.shape[:2]
    seen = render_depth(points, triangles, torch.from_numpy(np.asarray(K, np.float64)), (width, height))
    lit = shade(seen, points, triangles, torch.tensor(COLOUR).expand(len(points), 3))[0]
    mask = seen.mask[0].numpy()
    out = rgb.copy()
    out[mask] = np.rint(ALPHA * lit[mask] + (1 - ALPHA) * rgb[mask]).astype(np.uint8)
    return out


def check_verts(verts_m: ArrayLike) -> NDArray[np.float64]:
    """Vertices as float64.

    Raises:
        DataError: not finite or not (V, 3).
    """
    verts = np.asarray(verts_m, np.float64)
    if verts.ndim != 2 or verts.shape[1] != 3 or not np.isfinite(verts).all():
        raise DataError(f"expected finite vertices (V, 3), got shape {verts.shape}")
    return verts
