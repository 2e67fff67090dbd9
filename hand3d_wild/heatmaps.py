"""The 21 heat maps of the second input form: Gaussian blobs from 2D joints, and the original's PNG groups.

The original feeds OpenPose's hand detector's maps, as seven RGB pictures of three maps each (official samples of
boukhayma/3dhand; ``heat_map.py`` of the training code). On those samples the blobs are Gaussians with a standard
deviation of about 8.6 pixels of the 320-pixel crop and peaks of 0.4 to 0.87. Joints of any 2D detector give the same
input here, without OpenPose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.datasets.images import read_rgb
from shared.errors import DataError, MissingFileError
from shared.skeletons import order

SIGMA = 8.6 / 320
"""Standard deviation of a blob as a share of the picture's edge."""
PEAKS = (0.4, 0.87)
GROUPS: tuple[tuple[int, int, int], ...] = tuple(
    (int(a), int(b), int(c)) for a, b, c in order("thumb_first", "wild").reshape(7, 3)
)
"""The maps of each PNG's red, green and blue, as numbers of OpenPose's joints: consecutive joints of ``"wild"``."""


def gaussian_maps(points: ArrayLike, peaks: ArrayLike, size: int, *, sigma: float = SIGMA) -> NDArray[np.float32]:
    """(size, size, J) blobs of height ``peaks`` around 2D joints; channel j belongs to joint j.

    Args:
        points: (J, 2) u, v in pixels of a picture of edge ``size``; may lie outside it.
        peaks: (J,) heights in 0..1; 0 leaves a joint's map empty, whatever its coordinates.
        size: edge of the maps in pixels.
        sigma: standard deviation as a share of the edge.

    Raises:
        DataError: shapes that do not fit, a joint that has a peak and no finite place, peaks outside 0..1.
    """
    points, peaks = np.asarray(points, np.float32), np.asarray(peaks, np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or peaks.shape != points.shape[:1]:
        raise DataError(f"expected points (J, 2) and peaks (J,), got {points.shape} and {peaks.shape}")
    if not ((peaks >= 0) & (peaks <= 1)).all():
        raise DataError(f"peaks of heat maps must lie in 0..1, got {peaks.min():g} to {peaks.max():g}")
    if not np.isfinite(points[peaks > 0]).all():
        raise DataError(f"joint {np.flatnonzero(~np.isfinite(points).all(1) & (peaks > 0))[0]} is not finite")
    points = np.where((peaks > 0)[:, None], points, 0)
    # A Gaussian is a product of one over columns and one over rows: 2 S J exponentials instead of S S J.
    offset = (np.arange(size, dtype=np.float32)[:, None, None] - points) / np.float32(sigma * size)
    falloff = np.exp(-0.5 * offset * offset)  # (S, J, 2)
    maps: NDArray[np.float32] = (falloff[..., 1] * peaks)[:, None] * falloff[None, :, :, 0]
    return maps


def pack(maps: NDArray[Any], skeleton: str = "wild") -> NDArray[np.uint8]:
    """The seven PNGs (7, H, W, 3) of maps (21, H, W) in 0..1: floor of 255 times the value, as the original stores.

    Args:
        maps: in the order ``skeleton`` (``"thumb_first"`` is OpenPose's).
        skeleton: a name of :mod:`shared.skeletons`.

    Raises:
        DataError: not 21 maps, or values outside 0..1.
    """
    if maps.ndim != 3 or len(maps) != 21:
        raise DataError(f"expected 21 heat maps (21, H, W), got {maps.shape}")
    if not (np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1):
        raise DataError("heat maps must be finite and lie in 0..1")
    maps = maps[order(skeleton, "wild")]
    return np.asarray(255 * maps, np.uint8).reshape(7, 3, *maps.shape[1:]).transpose(0, 2, 3, 1).copy()


def unpack(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 21) maps in 0..1, order ``"wild"``, of the seven PNGs (7, H, W, 3).

    Raises:
        DataError: anything else than seven RGB pictures of 8 bits.
    """
    if pictures.ndim != 4 or pictures.shape[0] != 7 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise DataError(f"expected seven RGB pictures (7, H, W, 3) uint8, got {pictures.dtype} {pictures.shape}")
    height, width = pictures.shape[1:3]
    return pictures.transpose(1, 2, 0, 3).reshape(height, width, 21).astype(np.float32) / np.float32(255)


def group_paths(folder: str | Path, stem: str) -> list[Path]:
    """The original's eight files of a picture: ``<stem>.png`` and ``<stem>_0.png`` to ``<stem>_6.png``."""
    return [Path(folder) / f"{stem}.png", *(Path(folder) / f"{stem}_{k}.png" for k in range(7))]


def require_groups(folder: str | Path, stems: Sequence[str]) -> None:
    """Refuses pictures without all of their seven heat-map files.

    Raises:
        MissingFileError: how many are missing, of how many pictures; some are named.
    """
    missing = {stem: [path.name for path in group_paths(folder, stem)[1:] if not path.is_file()] for stem in stems}
    names = [name for some in missing.values() for name in some]
    if names:
        count = sum(bool(some) for some in missing.values())
        raise MissingFileError(
            f"{len(names)} of {7 * len(missing)} heat-map files are missing, of {count} of {len(missing)} pictures: "
            + ", ".join(names[:8])
            + (", ..." if len(names) > 8 else ""),
            path=folder,
            remedy="the second input form needs seven heat-map files, <name>_0.png to <name>_6.png, for each picture",
        )


def read_maps(folder: str | Path, stem: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """(7, H, W, 3): the seven heat-map files of a picture, for :func:`unpack`.

    Args:
        folder, stem: see :func:`group_paths`.
        size: (width, height) that they must have; by default that of the first.

    Raises:
        MissingFileError: some of the seven are missing; all of those are named.
        DataError: one cannot be read, or has another size.
    """
    require_groups(folder, [stem])
    pictures = []
    for path in group_paths(folder, stem)[1:]:
        pictures.append(read_rgb(path))
        height, width = pictures[-1].shape[:2]
        size = size or (width, height)
        if (width, height) != size:
            raise DataError(
                f"is {width} x {height} pixels, its picture {size[0]} x {size[1]}",
                path=path,
                remedy="write the heat maps again at the picture's size",
            )
    return np.stack(pictures)


def read_group(folder: str | Path, stem: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """((H, W, 3) picture, (H, W, 21) maps in 0..1, order ``"wild"``) of the original's eight files.

    Raises:
        MissingFileError: some of the eight are missing.
        DataError: one cannot be read, or has another size than the picture.
    """
    picture = read_rgb(group_paths(folder, stem)[0])
    return picture, unpack(read_maps(folder, stem, (picture.shape[1], picture.shape[0])))


def peaks_of(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """(J, 3) u, v and height of the highest place of maps (H, W, J), pixels; zeros where a map is empty.

    The place is the mean of what is above half the height around it: stored maps have flat tops.
    """
    height, width, count = maps.shape
    radius = math.ceil(2 * SIGMA * max(height, width))
    out = np.zeros((count, 3))
    for joint in range(count):
        row, column = np.unravel_index(maps[..., joint].argmax(), (height, width))
        top = float(maps[row, column, joint])
        if top <= 0:
            continue
        first = max(0, row - radius), max(0, column - radius)
        part = maps[first[0] : row + radius + 1, first[1] : column + radius + 1, joint]
        weight = np.where(part > top / 2, part, 0).astype(np.float64)
        v, u = np.mgrid[: part.shape[0], : part.shape[1]]
        out[joint] = (weight * u).sum() / weight.sum() + first[1], (weight * v).sum() / weight.sum() + first[0], top
    return out


def write_group(folder: str | Path, stem: str, maps: NDArray[Any], skeleton: str = "wild") -> None:
    """Writes the seven PNGs of maps (21, H, W) in 0..1 beside a picture; see :func:`pack`."""
    from PIL import Image

    from shared.safe_io import atomic_path

    for path, picture in zip(group_paths(folder, stem)[1:], pack(maps, skeleton), strict=True):
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
