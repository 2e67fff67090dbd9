"""Pictures of a hand as this method's camera sees it: the orthographic camera, mesh and sphere depth, heat maps.

Millimetres in the camera frame (x right, y down, z forward) around the centre of the crop. A picture of side n shows a
cube of 300 mm; its pixel (column i, row j) has its sample at x = (i - n / 2) 300 / n, y = (j - n / 2) 300 / n, with no
shift by half a pixel (original: ``mesh/camera.py``). From view to view: :mod:`selfsup_fitting.multiview`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfsup_fitting.kernels import ops
from shared.errors import DataError

CUBE_MM = 300.0
IMAGE = 64  # side of depth crops
CELLS = 16  # side of heat maps
FACTOR = 10  # a mesh is rasterised this many times larger than the crop, then reduced
HEAT_THRESHOLD = 0.05  # a depth map holds depth where its heat map is higher


def _zoomed(points: Tensor, size: int, zoom: Tensor | None) -> Tensor | float:
    if zoom is None:
        return size / CUBE_MM
    if zoom.shape != points.shape[:1]:
        raise DataError(f"zoom: expected ({len(points)},), one factor for each picture, got {tuple(zoom.shape)}")
    return (size / CUBE_MM * zoom).view(-1, *[1] * (points.dim() - 1))


def project(points_mm: Tensor, size: int, zoom: Tensor | None = None) -> Tensor:
    """Column, row and depth (B, ..., 3) of points (B, ..., 3) in a picture of side ``size``.

    Args:
        points_mm: camera frame.
        size: of the picture, pixels.
        zoom: (B,) factor on x and y only, by which the synthesiser varies the size of hands; None for 1.

    Raises:
        DataError: another number of factors.
    """
    return torch.cat((points_mm[..., :2] * _zoomed(points_mm, size, zoom) + size / 2, points_mm[..., 2:]), -1)


def unproject(points_uvd: Tensor, size: int, zoom: Tensor | None = None) -> Tensor:
    """The inverse of :func:`project`."""
    return torch.cat(((points_uvd[..., :2] - size / 2) / _zoomed(points_uvd, size, zoom), points_uvd[..., 2:]), -1)


def mesh_depth(
    verts_mm: Tensor,
    faces: Tensor,
    zoom: Tensor | None = None,
    *,
    interpolation: ops.Interpolation = "linear",
    cull: bool = True,
    size: int = IMAGE,
) -> Tensor:
    """Depth crops (B, size, size) of a skinned hand, mm, background 100, differentiable.

    Args:
        verts_mm: (B, V, 3) as :func:`selfsup_fitting.kinematics.skin` gives them.
        faces: (F, 3) of the same hand. Its winding is that of model space, which is mirrored; two columns are swapped
            on the way to the rasteriser, as the original does once and in place.
        zoom: see :func:`project`.
        interpolation: ``harmonic`` is the original's, wrong for this camera where depth changes its sign (README, Q1).
        cull: leave out the faces turned away.
        size: side of the crops.
    """
    verts_uvd = project(verts_mm, size * FACTOR, zoom)
    faces = torch.stack((faces[:, 1], faces[:, 0], faces[:, 2]), 1)
    return ops.rasterize_resized(verts_uvd, faces, size=size, factor=FACTOR, interpolation=interpolation, cull=cull)


def sphere_depth(centers_mm: Tensor, radii_mm: Tensor, size: int = IMAGE) -> Tensor:
    """Depth crops (..., size, size) of spheres (..., J, 3), background 100; gradients for the centres."""
    return ops.render_spheres(centers_mm, radii_mm, size=size, cube_mm=CUBE_MM)[0]


def heatmaps(points_uvd: Tensor, size: int = CELLS) -> Tensor:
    """(..., size, size) [row, column]: exp(-((i - u)^2 + (j - v)^2) / 2) around points (..., 2 or more), in cells."""
    cells = torch.arange(size, dtype=points_uvd.dtype, device=points_uvd.device)
    falloff = torch.exp(-0.5 * (cells - points_uvd[..., :2, None]).square())  # (..., 2, size)
    return falloff[..., 1, :, None] * falloff[..., 0, None, :]


def depth_maps(maps: Tensor, z: Tensor) -> Tensor:
    """(..., size, size): depth ``z`` (...) where the heat map exceeds 0.05, 0 elsewhere; any unit."""
    return torch.where(maps > HEAT_THRESHOLD, z[..., None, None], torch.zeros_like(maps))
