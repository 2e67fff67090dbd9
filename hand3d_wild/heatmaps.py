"""The 21 heat maps of the second input form: Gaussian blobs from 2D joints, and the original's PNG groups.

The original feeds OpenPose's hand detector's maps, as seven RGB pictures of three maps each (official samples of
boukhayma/3dhand; ``heat_map.py`` of the training code). On those samples the blobs are Gaussians with a standard
deviation of about 8.6 pixels of the 320-pixel crop and peaks of 0.4 to 0.87. Joints of any 2D detector give the same
input here, without OpenPose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def read_group(folder: str | Path, stem: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """((H, W, 3) picture, (H, W, 21) maps in 0..1, order ``"wild"``) of the original's eight files.

    Raises:
        MissingFileError: some of the eight are missing; all of those are named.
        DataError: one cannot be read, or has another size than the picture.
    """
    from PIL import Image

    paths = group_paths(folder, stem)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of the 8 files of picture {stem} are missing: {', '.join(missing)}",
            path=folder,
            remedy="the second input form needs the picture and its seven heat-map files",
        )
    pictures: list[NDArray[np.uint8]] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot be read as a picture ({error})", path=path, remedy="write it again") from error
        if pictures[-1].shape != pictures[0].shape:
            size = "{1} x {0}".format(*pictures[-1].shape)
            raise DataError(
                f"is {size} pixels, its picture {paths[0].name} is {pictures[0].shape[1]} x {pictures[0].shape[0]}",
                path=path,
                remedy="write the heat maps again at the picture's size",
            )
    return pictures[0], unpack(np.stack(pictures[1:]))


def write_group(folder: str | Path, stem: str, maps: NDArray[Any], skeleton: str = "wild") -> None:
    """Writes the seven PNGs of maps (21, H, W) in 0..1 beside a picture; see :func:`pack`."""
    from PIL import Image

    from shared.safe_io import atomic_path

    for path, picture in zip(group_paths(folder, stem)[1:], pack(maps, skeleton), strict=True):
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
