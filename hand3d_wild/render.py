"""Colour picture and silhouette of a mesh seen orthographically, in one pass and without a graphics library.

Semantics of the original's pictures (OpenDR with lighting overwritten by plain vertex colours), by a plain rasteriser:
pixel (row i, column j) looks at the mesh at u = j, v = i, the smaller z is nearer, colours are interpolated linearly,
both sides of a triangle are seen. OpenDR's extra line along the silhouette is not drawn (README, ledger).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataError

Float = NDArray[np.float64]
_CHUNK = 200_000  # (triangle, pixel) pairs at a time; a hand in a picture of 320 has fewer


class Picture(NamedTuple):
    """What each pixel sees.

    Attributes:
        colors: (H, W, 3) float32, interpolated; 0 where there is nothing.
        mask: (H, W) bool, where the mesh is.
        face: (H, W) int32 index of the triangle; -1 where there is nothing.
    """

    colors: NDArray[np.float32]
    mask: NDArray[np.bool_]
    face: NDArray[np.int32]


def render(verts_uvz: ArrayLike, faces: ArrayLike, colors: ArrayLike, size: int | tuple[int, int] = 320) -> Picture:
    """The nearest triangle of each pixel centre with its interpolated vertex colours.

    A pixel on a shared edge belongs to both triangles, so neighbours leave no gap; where two triangles are equally
    near, the one with the lower index is seen. Parts outside the picture are cut off.

    Args:
        verts_uvz: (V, 3) columns, rows (pixel centres at integers) and depth in any unit.
        faces: (F, 3) corners.
        colors: (V, C) values at the vertices; C is 3 for red, green, blue.
        size: edge of a square picture, or (width, height), pixels.

    Raises:
        DataError: shapes that do not fit, vertices that are not finite, faces that name no vertex.
    """
    verts, colors = np.asarray(verts_uvz, np.float64), np.asarray(colors, np.float32)
    faces = np.asarray(faces)
    width, height = (size, size) if isinstance(size, int) else size
    if verts.ndim != 2 or verts.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise DataError(f"expected vertices (V, 3) and faces (F, 3), got {verts.shape} and {faces.shape}")
    if colors.ndim != 2 or len(colors) != len(verts):
        raise DataError(f"expected colors ({len(verts)}, C), one row for each vertex, got {colors.shape}")
    if not np.isfinite(verts).all():
        raise DataError("the vertices to draw are not finite")
    if faces.size and not 0 <= faces.min() <= faces.max() < len(verts):
        raise DataError(f"faces must name {len(verts)} vertices, got {faces.min()} to {faces.max()}")
    if width < 1 or height < 1:
        raise DataError(f"the picture must have at least one pixel, got {width} x {height}")

    # Planes of coordinates, one array a corner: NumPy is slow along axes of length 3.
    (ua, va, za), (ub, vb, zb), (uc, vc, zc) = (verts[faces[:, k]].T.copy() for k in range(3))  # (F,) each
    first_u = np.ceil(np.minimum(np.minimum(ua, ub), uc)).clip(0, None).astype(np.int64)
    first_v = np.ceil(np.minimum(np.minimum(va, vb), vc)).clip(0, None).astype(np.int64)
    wide = np.floor(np.maximum(np.maximum(ua, ub), uc)).clip(-1, width - 1).astype(np.int64) - first_u + 1
    high = np.floor(np.maximum(np.maximum(va, vb), vc)).clip(-1, height - 1).astype(np.int64) - first_v + 1
    # Weight of each corner at (u, v) as x u + y v + constant: the far edge's. Both triangles of an edge get the same
    # number with the other sign, so that no pixel is lost between them.
    edges = (
        (vb - vc, uc - ub, ub * vc - vb * uc),
        (vc - va, ua - uc, uc * va - vc * ua),
        (va - vb, ub - ua, ua * vb - va * ub),
    )
    area = edges[0][2] + edges[1][2] + edges[2][2]
    pairs = np.where((wide > 0) & (high > 0) & (area != 0), wide * high, 0)

    hits = []
    for part in _parts(pairs):
        # Every (triangle, pixel of its rectangle) as one row of a list: small and large triangles cost what they cover.
        count = pairs[part]
        face = np.repeat(part, count)
        nth = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
        down = nth // wide[face]
        column = first_u[face] + (nth - down * wide[face])
        row = first_v[face] + down
        wa, wb, wc = (x[face] * column + y[face] * row + constant[face] for x, y, constant in edges)
        low, most = np.minimum(np.minimum(wa, wb), wc), np.maximum(np.maximum(wa, wb), wc)
        kept = np.flatnonzero((low >= 0) | (most <= 0))
        face = face[kept]
        wa, wb, wc = (weight[kept] / area[face] for weight in (wa, wb, wc))
        depth = wa * za[face] + wb * zb[face] + wc * zc[face]
        hits.append((row[kept] * width + column[kept], face, depth, wa, wb, wc))

    out = np.zeros((height * width, colors.shape[1]), np.float32)
    index = np.full(height * width, -1, np.int32)
    if hits:
        pixel, face, depth, wa, wb, wc = (np.concatenate(column) for column in zip(*hits, strict=True))
        buffer = np.full(height * width, np.inf)
        np.minimum.at(buffer, pixel, depth)
        nearest = np.flatnonzero(depth == buffer[pixel])[::-1]
        chosen = np.full(height * width, -1, np.int64)
        chosen[pixel[nearest]] = nearest  # of repeated pixels the last stays: the lowest triangle
        at = np.flatnonzero(chosen >= 0)
        hit = chosen[at]
        index[at] = face[hit]
        corner = faces[face[hit]]
        for k, weight in enumerate((wa, wb, wc)):
            out[at] += weight[hit, None].astype(np.float32) * colors[corner[:, k]]
    shape = (height, width)
    return Picture(out.reshape(*shape, -1), (index >= 0).reshape(shape), index.reshape(shape))


def _parts(pairs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The triangles that cover anything, split so that each part has about ``_CHUNK`` pairs (or is one triangle)."""
    there = np.flatnonzero(pairs)
    group = np.cumsum(pairs[there]) // _CHUNK
    return [part for part in np.split(there, np.flatnonzero(np.diff(group)) + 1) if len(part)]
