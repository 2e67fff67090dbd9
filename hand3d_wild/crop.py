"""The square that is cut out around a hand, and what that does to pictures and points.

The rule is the authors' (``crop.py`` of 3dhand, ``get_crop_pos`` of the training code): 2.2 times the longer side of
the box of the visible joints, moved inside the picture. **The factor matters**: a network trained on it is poor on
crops of 1.5 times (3dhand, issue 12). Boxes are (top, bottom, left, right) pixel indices, both ends included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataError

Float = NDArray[np.float64]
RGB = NDArray[np.uint8]
Box = tuple[int, int, int, int]

STORED = 320  # edge of a stored crop, pixels
NETWORK = 256  # edge of the network's picture: the unit of all 2-D outputs
CUT = 306  # edge of the part of a stored crop that training shows
FACTOR = 2.2
MIDDLE = (STORED - CUT) / 2


def _round(value: float) -> int:
    """To the nearest integer, halves away from zero as in Python 2."""
    return math.floor(abs(value) + 0.5) * (1 if value >= 0 else -1)


class NoCropError(DataError):
    """Joints around which nothing can be cut out."""


def crop_box(
    points: ArrayLike,
    visible: ArrayLike,
    image_size: tuple[int, int],
    *,
    factor: float = FACTOR,
    smallest: float = 0.0,
    name: str = "picture",
) -> Box:
    """The square (top, bottom, left, right), ends included, around the visible points; always inside the picture.

    Args:
        points: (J, 2) pixels.
        visible: (J,) bool.
        image_size: (width, height).
        factor: edge of the square over the longer side of the points' box.
        smallest: the longer side counts at least this (fingertips alone do not show how large a hand is), pixels.
        name: of the picture, for the errors.

    Raises:
        NoCropError: no visible point, points at infinity, or a square without area.
    """
    shown = np.asarray(points, np.float64)[np.asarray(visible, np.bool_)]
    if not len(shown):
        raise NoCropError(f"{name}: no joint is visible, so there is nothing to crop around")
    if not np.isfinite(shown).all():
        raise NoCropError(f"{name}: a visible joint is not finite")
    low, high = shown.min(0), shown.max(0)
    size = _round(factor * max(float((high - low).max()), smallest))
    if size < 2:
        raise NoCropError(f"{name}: the visible joints span {float((high - low).max()):g} pixels, too few for a crop")
    centre = ((low + high) / 2).tolist()
    smaller = min(image_size)
    edges = []
    for middle, side in zip(centre, image_size, strict=True):
        if size < smaller - 1:
            edges.append(_inside(_round(max(0.0, middle - size / 2)), size, side))
        elif side == smaller and image_size[0] != image_size[1]:
            edges.append((0, smaller - 1))  # the shorter side, whole
        else:  # integer division of Python 2
            edges.append(_inside(_round(max(0.0, middle - (smaller - 1) // 2)), smaller - 1, side))
    (left, right), (top, bottom) = edges
    return top, bottom, left, right


def _inside(start: int, size: int, side: int) -> tuple[int, int]:
    end = start + size
    return (side - 1 - size, side - 1) if end > side - 1 else (start, end)


def crop_rgb(rgb: RGB, box: Box, *, size: int = STORED) -> RGB:
    """(size, size, 3): the box, resized with OpenCV's bilinear rule (never smoothed), as the seed does."""
    import cv2

    top, bottom, left, right = box
    part = np.ascontiguousarray(rgb[top : bottom + 1, left : right + 1])
    resized: RGB = np.asarray(cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
    return resized


def to_crop(points: ArrayLike, box: Box, *, size: int = STORED, corners: bool = False) -> Float:
    """Points (..., 2) of the picture in the crop resized to ``size``.

    Two conventions exist: (u - left) size / width (the seed's, for its training data), and with ``corners`` the first
    and last pixel centres meet those of the crop, (u - left) (size - 1) / (width - 1) (the official sample crops).
    """
    top, _, left, right = box
    scale = (size - 1) / (right - left) if corners else size / (right - left + 1)
    return np.asarray((np.asarray(points, np.float64) - [left, top]) * scale)


def from_crop(points: ArrayLike, box: Box, *, size: int = STORED) -> Float:
    """Inverse of :func:`to_crop` (training convention)."""
    top, _, left, right = box
    return np.asarray(np.asarray(points, np.float64) * ((right - left + 1) / size) + [left, top])


def mirror_points(points: ArrayLike, width: int) -> Float:
    """Points (..., 2) of the mirrored picture: u' = width - u, as in the reference (not width - 1 - u)."""
    return np.asarray(np.asarray(points, np.float64) * [-1, 1] + [width, 0])


def cut_points(points: ArrayLike, start: tuple[float, float] = (MIDDLE, MIDDLE)) -> Float:
    """Points (..., 2) of a stored crop in the network's 256 pixels, for a cut of 306 from ``start`` (u, v)."""
    return np.asarray((np.asarray(points, np.float64) - start) * (NETWORK / CUT))


def cut_rgb(
    rgb: NDArray[np.uint8], start: tuple[int, int], *, size: int = NETWORK, matrix: Float | None = None
) -> NDArray[np.uint8]:
    """(size, size[, 3]): 306 x 306 of a stored crop (or mask) from ``start`` (u, v), resized as in :func:`crop_rgb`.

    Networks with a smaller input than the published 256 see averaged pixels instead of picked ones.

    Args:
        rgb: (320, 320[, 3]).
        start: of the part that is cut out.
        size: edge of the result.
        matrix: (2, 3) from :func:`turn_matrix`, moves the crop before; what comes into view is its mirror image.
    """
    import cv2

    if matrix is None:
        u, v = start
        part = rgb[v : v + CUT, u : u + CUT]
        how = cv2.INTER_LINEAR if size >= NETWORK else cv2.INTER_AREA
        return np.asarray(cv2.resize(part, (size, size), interpolation=how), np.uint8)
    shrink = max(1, STORED // size)  # averaged by whole steps first, then everything else in one resampling
    small = cv2.resize(rgb, (STORED // shrink, STORED // shrink), interpolation=cv2.INTER_AREA) if shrink > 1 else rgb
    whole = _about_centres(size / CUT, [-x * size / CUT for x in start]) @ np.vstack((matrix, [0, 0, 1]))
    whole = whole @ _about_centres(shrink, (0, 0))
    moved = cv2.warpAffine(small, whole[:2], (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, np.uint8)


def _about_centres(factor: float, shift: Sequence[float]) -> Float:
    """(3, 3) that scales and shifts pictures whose pixel k covers k to k + 1, for coordinates of pixel centres."""
    half = (factor - 1) / 2
    return np.array([[factor, 0, half + shift[0]], [0, factor, half + shift[1]], [0, 0, 1]])


def turn_matrix(angle_rad: float, zoom: float) -> Float:
    """(2, 3) that turns a stored crop clockwise about its middle and enlarges it there; maps points to points."""
    middle = (STORED - 1) / 2
    turn = zoom * np.array([[math.cos(angle_rad), -math.sin(angle_rad)], [math.sin(angle_rad), math.cos(angle_rad)]])
    return np.concatenate((turn, (middle - turn @ [middle, middle])[:, None]), 1)


def resize_as_tester(rgb: RGB, size: int = NETWORK) -> RGB:
    """(size, size, 3): a whole crop resized by Pillow's smoothing bilinear filter, as the authors' tester does."""
    from PIL import Image

    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR))
