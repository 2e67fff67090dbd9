"""Where the hand is: rough centres from the depth map, cube crops, and the next frame's start when tracking.

V2V-PoseNet needs one reference point per frame. It comes from a rough position (centre of mass, :func:`mass_center` for
an image that is cropped already, :func:`detect_hand` for a full one) that a small network (``center_net``) improves.
The steps follow the description of DeepPrior++ (Oberweger and Lepetit, 2017), which the authors of V2V-PoseNet used.

Depth maps are (h, w) float32 in mm with 0 = no measurement, placed in the image at ``crop_xy`` (left, top). Points are
in OpenCV camera axes, mm; pixels are counted from 0. Numpy only: torch is not needed to find a centre of mass.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.camera import project
from shared.errors import DataError

NEAR_MM, FAR_MM = 10.0, 1500.0  # depths outside count as empty
MIN_PIXELS = 50  # fewer hand pixels than this are no hand: a hand at 1 m still covers about 1,000 in a 320x240 image

Floats = NDArray[np.floating]
Point = NDArray[np.float64]


def _measured(depth_mm: Floats, near_mm: float, far_mm: float) -> NDArray[np.bool_]:
    return (depth_mm >= near_mm) & (depth_mm <= far_mm)


def _mean_point(
    depth_mm: Floats, inside: NDArray[np.bool_], K: Point, crop_xy: tuple[int, int], min_pixels: int
) -> Point | None:
    rows, columns = np.nonzero(inside)
    if len(rows) < min_pixels:
        return None
    z = float(depth_mm[inside].mean(dtype=np.float64))
    u, v = columns.mean() + crop_xy[0], rows.mean() + crop_xy[1]
    return np.array([(u - K[0, 2]) * z / K[0, 0], (v - K[1, 2]) * z / K[1, 1], z])


def cube_box(center_mm: ArrayLike, cube_mm: float, K: Point) -> tuple[int, int, int, int]:
    """left, top, right, bottom (the last two excluded) of the cube's front-on outline; may reach outside the image."""
    x, y, z = np.asarray(center_mm, np.float64)
    if not z > 0:
        raise DataError(f"a centre must lie in front of the camera (z > 0 mm), got z = {z:g}")
    (u, v), half = project((x, y, z), K), cube_mm / 2 / z * np.array([K[0, 0], K[1, 1]])
    left, top = np.floor([u - half[0] + 0.5, v - half[1] + 0.5]).astype(int).tolist()
    right, bottom = np.floor([u + half[0] + 0.5, v + half[1] + 0.5]).astype(int).tolist()
    return left, top, right, bottom


def mass_center(
    depth_mm: Floats,
    K: Point,
    crop_xy: tuple[int, int] = (0, 0),
    *,
    start_mm: ArrayLike | None = None,
    cube_mm: float = 250.0,
    iterations: int = 1,
    near_mm: float = NEAR_MM,
    far_mm: float = FAR_MM,
    min_pixels: int = MIN_PIXELS,
) -> Point | None:
    """Centre of mass (mean column, mean row, mean depth, then to space) of a crop that shows a hand and little else.

    From ``start_mm``, or from all measured pixels, ``iterations`` times: cut the cube around the point and take the
    centre of mass of what is in it. None when fewer than ``min_pixels`` remain: there is no hand.
    """
    measured = _measured(depth_mm, near_mm, far_mm)
    point = None if start_mm is None else np.asarray(start_mm, np.float64)
    if point is None:
        point = _mean_point(depth_mm, measured, K, crop_xy, min_pixels)
    height, width = depth_mm.shape
    for _ in range(iterations):
        if point is None:
            return None
        box = np.array(cube_box(point, cube_mm, K)) - [*crop_xy, *crop_xy]
        left, top, right, bottom = np.clip(box, 0, [width, height, width, height]).tolist()
        part = depth_mm[top:bottom, left:right]
        inside = measured[top:bottom, left:right] & (np.abs(part - point[2]) <= cube_mm / 2)
        point = _mean_point(part, inside, K, (crop_xy[0] + left, crop_xy[1] + top), min_pixels)
    return point


def detect_hand(
    depth_mm: Floats,
    K: Point,
    crop_xy: tuple[int, int] = (0, 0),
    *,
    cube_mm: float = 250.0,
    slices: int = 20,
    min_region: int = 200,
    window: int = 200,
    iterations: int = 5,
    near_mm: float = NEAR_MM,
    far_mm: float = FAR_MM,
) -> Point | None:
    """The nearest object of a full image, taken to be the hand: its centre of mass, or None.

    The depth range is cut into ``slices``; the first one, from near to far, with a connected region of more than
    ``min_region`` pixels gives a centroid; the slice's centre of mass in a window of ``window`` pixels around it is the
    start of :func:`mass_center`'s iterations. Wrong where something else is nearer to the camera than the hand.
    """
    from scipy import ndimage

    measured = _measured(depth_mm, near_mm, far_mm)
    if not measured.any():
        return None
    near, far = float(depth_mm[measured].min()), float(depth_mm[measured].max())
    edges = np.linspace(near, far, slices + 1)
    for low, high in pairwise(edges):
        layer = measured & (depth_mm >= low) & (depth_mm <= high)
        regions, count = ndimage.label(layer)
        sizes = np.bincount(regions.ravel())[1:]
        if not count or sizes.max() <= min_region:
            continue
        rows, columns = np.nonzero(regions == 1 + sizes.argmax())
        top, left = max(0, round(rows.mean() - window / 2)), max(0, round(columns.mean() - window / 2))
        cut = np.s_[top : top + window, left : left + window]
        start = _mean_point(depth_mm[cut], layer[cut], K, (crop_xy[0] + left, crop_xy[1] + top), 1)
        return mass_center(
            *(depth_mm, K, crop_xy),
            start_mm=start,
            cube_mm=cube_mm,
            iterations=iterations,
            near_mm=near_mm,
            far_mm=far_mm,
        )
    return None


def crop_patch(
    depth_mm: Floats,
    K: Point,
    crop_xy: tuple[int, int],
    center_mm: ArrayLike,
    cube_mm: float,
    *,
    size: int = 128,
    angle_rad: float = 0.0,
) -> NDArray[np.float32]:
    """The cube around a point as the network sees it: (size, size) float32 in [-1, 1].

    The longer side of :func:`cube_box` fills the patch, nearest neighbour. Depth is measured from the centre in half
    cube edges: nearer than the cube is -1; background, farther and unmeasured is +1. A positive ``angle_rad`` turns the
    picture from x towards y, clockwise as seen on the screen (see :func:`rotate_about`).
    """
    left, top, right, bottom = cube_box(center_mm, cube_mm, K)
    z = float(np.asarray(center_mm, np.float64)[2])
    scale = max(right - left, bottom - top, 1) / size
    steps = (np.arange(size) + 0.5 - size / 2) * scale
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    dx, dy = steps[None, :], steps[:, None]
    columns = np.floor((left + right) / 2 + cos * dx + sin * dy).astype(np.int64) - crop_xy[0]
    rows = np.floor((top + bottom) / 2 - sin * dx + cos * dy).astype(np.int64) - crop_xy[1]
    height, width = depth_mm.shape
    known = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    values = np.zeros((size, size), np.float32)
    values[known] = depth_mm[rows[known], columns[known]]
    offset = np.clip((values - z) / (cube_mm / 2), -1, 1)
    return np.where(values > 0, offset, 1).astype(np.float32)


def rotate_about(point_mm: ArrayLike, center_mm: ArrayLike, K: Point, angle_rad: float) -> Point:
    """Where a camera point goes when the image turns by ``angle_rad`` about the centre's pixel; its depth stays."""
    point = np.asarray(point_mm, np.float64)
    middle = project(center_mm, K)
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    u, v = middle + np.array([[cos, -sin], [sin, cos]]) @ (project(point, K) - middle)
    z = point[2]
    return np.array([(u - K[0, 2]) * z / K[0, 0], (v - K[1, 2]) * z / K[1, 1], z])


def track_center(previous_joints_mm: ArrayLike) -> Point:
    """Start for the next frame of a sequence: the mean of the last frame's (J, 3) joints."""
    joints = np.asarray(previous_joints_mm, np.float64)
    if joints.ndim != 2 or joints.shape[1] != 3 or not np.isfinite(joints).all():
        raise DataError(f"tracking needs finite joints of shape (J, 3), got {joints.shape}")
    return joints.mean(0)
