"""Pinhole cameras: points to pixels and back, K after a crop, turns, and the axes conventions of the data sets.

Camera frame: OpenCV (x right, y down, z forward), millimetres unless a caller says otherwise. Pixels count from 0, a
whole number is the centre of a pixel. Every function takes leading batch dimensions and works in float64; the leading
dimensions of ``K`` (..., 3, 3) are the first ones of the points, so one K per frame and one K for all are both fine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataError

Array = NDArray[np.float64]


def intrinsics(fx: float, fy: float, u0: float, v0: float) -> Array:
    """The (3, 3) pinhole matrix of focal lengths and principal point, pixels."""
    if not (fx > 0 and fy > 0 and np.isfinite([fx, fy, u0, v0]).all()):
        raise DataError(f"expected positive focal lengths and a finite centre, got fx={fx} fy={fy} u0={u0} v0={v0}")
    return np.array([[fx, 0, u0], [0, fy, v0], [0, 0, 1]], np.float64)


def _arrays(points: ArrayLike, K: ArrayLike, what: str) -> tuple[Array, Array]:
    """Both as float64, K with axes put in so that ``K @ point`` broadcasts over everything between batch and point."""
    p, k = np.asarray(points, np.float64), np.asarray(K, np.float64)
    if p.ndim < 1 or p.shape[-1] != 3:
        raise DataError(f"expected {what} of shape (..., 3), got {p.shape}")
    if k.shape[-2:] != (3, 3) or k.shape[:-2] != p.shape[: k.ndim - 2]:
        raise DataError(f"expected K of shape (3, 3), or one per first axis of the points; got {k.shape} for {p.shape}")
    k = k.reshape(k.shape[:-2] + (1,) * (p.ndim - 1 - (k.ndim - 2)) + (3, 3))
    return p, k


def _check_depth(z: Array, what: str) -> None:
    bad = np.argwhere(~(z > 0))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise DataError(
            f"{len(bad)} of {z.size} {what} have a depth that is not positive (first at {at}: z = {z[at]:g})",
            remedy="z points away from the camera: convert with flip_y or opengl_to_opencv first, or mask the points",
        )


def project(points_mm: ArrayLike, K: ArrayLike, *, check_depth: bool = True) -> Array:
    """Pixels (..., 2) of camera-frame points (..., 3); u = (K p)_x / z, v = (K p)_y / z.

    Args:
        points_mm: camera frame.
        K: (3, 3) or one per leading axis.
        check_depth: refuse depths that are not positive. What judges labels turns it off: wrong ones give wrong pixels
            (or infinite ones, or NaN) there.

    Raises:
        DataError: shapes, or (with ``check_depth``) a depth that is not positive (NaN included).
    """
    p, k = _arrays(points_mm, K, "points")
    if check_depth:
        _check_depth(p[..., 2], "points")
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels: Array = np.einsum("...ij,...j->...i", k[..., :2, :], p) / p[..., 2:]
    return pixels


def backproject(uvd: ArrayLike, K: ArrayLike, *, check_depth: bool = True) -> Array:
    """Camera-frame points (..., 3) of pixels and depths (..., 3): x = (u - u0) d / fx, y = (v - v0) d / fy, z = d.

    Args:
        uvd: u, v in pixels, d along z in mm (the result has the unit of d).
        K: (3, 3) or one per leading axis.
        check_depth: refuse depths that are not positive. Scoring a prediction file turns it off: the formula is defined
            there, and a nonsensical prediction has to count as a large error.

    Raises:
        DataError: shapes, a singular K, or (with ``check_depth``) a depth that is not positive.
    """
    p, k = _arrays(uvd, K, "uvd")
    if check_depth:
        _check_depth(p[..., 2], "pixels")
    try:
        inverse = np.linalg.inv(k)
    except np.linalg.LinAlgError:
        raise DataError(f"K cannot be inverted: {np.asarray(K).tolist()}") from None
    rays = np.concatenate([p[..., :2], np.ones_like(p[..., 2:])], -1)
    points: Array = np.einsum("...ij,...j->...i", inverse, rays) * p[..., 2:]
    return points


def uvd_to_xyz(uvd: ArrayLike, K: ArrayLike, *, check_depth: bool = True) -> Array:
    """Another name of :func:`backproject`: (u, v, d) -> (x, y, z)."""
    return backproject(uvd, K, check_depth=check_depth)


def xyz_to_uvd(points_mm: ArrayLike, K: ArrayLike) -> Array:
    """(u, v, d) of camera-frame points, both (..., 3); inverse of :func:`uvd_to_xyz`."""
    return np.concatenate([project(points_mm, K), np.asarray(points_mm, np.float64)[..., 2:]], -1)


def flip_y(points: ArrayLike) -> Array:
    """(x, -y, z): y-up worlds (NYU, ITOP, V2V centre files of NYU, MSRA and ITOP) <-> OpenCV. Its own inverse."""
    return np.asarray(points, np.float64) * [1, -1, 1]


def opengl_to_opencv(points: ArrayLike) -> Array:
    """(x, -y, -z): OpenGL camera (HO-3D, and MSRA's labels) <-> OpenCV. Its own inverse."""
    return np.asarray(points, np.float64) * [1, -1, -1]


def affine_K(K: ArrayLike, A: ArrayLike) -> Array:
    """K (..., 3, 3) of the image that ``pixel_new = A @ (u, v, 1)`` makes, A (..., 2, 3) or (..., 3, 3)."""
    k, a = np.asarray(K, np.float64), np.asarray(A, np.float64)
    if k.shape[-2:] != (3, 3) or a.shape[-2:] not in ((2, 3), (3, 3)):
        raise DataError(f"expected K (..., 3, 3) and A (..., 2, 3) or (..., 3, 3), got {k.shape} and {a.shape}")
    if a.shape[-2] == 2:
        a = np.concatenate([a, np.broadcast_to([[0.0, 0.0, 1.0]], (*a.shape[:-2], 1, 3))], -2)
    moved: Array = a @ k
    return moved


def crop_K(K: ArrayLike, left: float, top: float) -> Array:
    """K of a crop whose pixel (0, 0) is pixel (left, top) of the full image."""
    return affine_K(K, [[1, 0, -left], [0, 1, -top]])


def resize_K(K: ArrayLike, scale_x: float, scale_y: float) -> Array:
    """K of a resized image. The edges stay edges: u_new = (u + 0.5) scale - 0.5."""
    return affine_K(K, [[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5]])


def rotvec_to_rotmat(rotvec: ArrayLike) -> Array:
    """(3, 3) rotation about the direction of ``rotvec`` (3,) by its length in radians (Rodrigues)."""
    vector = np.asarray(rotvec, np.float64)
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation
