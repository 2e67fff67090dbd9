"""What lies behind the synthetic hands: the user's pictures, or procedural ones.

The original used the Stanford background set, 715 outdoor pictures, resized to the picture's square without keeping
their shape (``prepare_background`` of boukhayma/3dhand); any folder serves.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hand3d_wild.colors import _number
from shared.errors import DataError, MissingFileError

RGB = NDArray[np.uint8]
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def list_pictures(folder: str | Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names; each can be opened.

    Raises:
        MissingFileError: no picture there.
        DataError: one that cannot be read as a picture, by name.
    """
    from PIL import Image

    paths = sorted((p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES), key=_number)
    if not paths:
        raise MissingFileError(
            "no picture here", path=folder, remedy="leave out --backgrounds for procedural ones, or give another folder"
        )
    for path in paths:
        try:
            with Image.open(path) as image:
                if image.mode[0] in "IF":  # made RGB, they would be all white
                    raise ValueError(f"expected 8 bits, its mode is {image.mode}")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot be read as a picture ({error})", path=path, remedy="remove it") from error
    return paths


@lru_cache(maxsize=64)
def load_background(path: Path, size: int) -> RGB:
    """(size, size, 3): a picture resized to a square, its shape not kept.

    Raises:
        DataError: it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read as a picture ({error})", path=path, remedy="remove it") from error


def procedural_background(rng: np.random.Generator, size: int = 320) -> RGB:
    """(size, size, 3): smooth colour noise at four scales, with some rectangles and discs, in place of a room."""
    import cv2

    picture = np.full((size, size, 3), rng.uniform(40, 200) + rng.normal(0, 20, 3), np.float32)
    for cells, strength in ((3, 70.0), (8, 35.0), (24, 15.0), (80, 8.0)):
        coarse = rng.standard_normal((cells, cells, 3), np.float32) * np.float32(0.25 * strength)
        coarse += rng.standard_normal((cells, cells, 1), np.float32) * np.float32(strength)
        picture += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    ticks = np.arange(size, dtype=np.float32)
    for _ in range(int(rng.integers(2, 7))):
        centre, half = rng.uniform(0, size, 2), rng.uniform(0.04, 0.3, 2) * size
        u, v = (ticks - centre[0]) / half[0], (ticks - centre[1]) / half[1]
        box = rng.uniform() < 0.6
        inside = (abs(v) < 1)[:, None] & (abs(u) < 1) if box else (v * v)[:, None] + u * u < 1
        picture[inside] += (rng.uniform(20, 235) + rng.normal(0, 30, 3) - picture[inside]) * rng.uniform(0.5, 1)
    return np.asarray(picture.clip(0, 255), np.uint8)
