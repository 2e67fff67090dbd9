"""Pictures from files that are not trusted: the header is judged before a single pixel is decoded.

``read_png16`` gives the 16-bit depth PNGs of ICVL and HANDS2017 as stored, ``read_rgb`` colour pictures (PNG or JPEG).
Both raise :class:`~shared.errors.DataError` with the file's name for whatever is wrong with it, and neither spends
memory on a picture whose header asks for more than ``MAX_PIXELS``: a few hundred bytes of PNG can claim gigabytes.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.errors import DataError, MissingFileError

MAX_PIXELS = 4096 * 4096
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_REMEDY = "unpack the file again from the official archive"


def read_png16(
    path: str | Path, *, expected_size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint16]:
    """The values of a one-channel 16-bit PNG, (H, W) uint16, as stored.

    Args:
        path: the file.
        expected_size: (width, height) the picture must have; None accepts any size up to ``max_pixels``.
        max_pixels: pictures whose header claims more are refused undecoded.

    Raises:
        MissingFileError: there is no such file.
        DataError: not a one-channel 16-bit PNG, the wrong size, truncated or damaged.
    """
    with _opened(path, ("PNG",), expected_size, max_pixels) as image:
        # IHDR is the first chunk of every PNG: bit depth is byte 24, colour type (0 = grey) byte 25. Pillow would cut
        # 16-bit colour to 8 bits silently and widen 8-bit grey, so the header is asked.
        header = _head(Path(path))
        depth, colour = header[24], header[25]
        if (depth, colour) != (16, 0):
            kind = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}.get(colour, "unknown")
            raise DataError(f"expected one channel of 16 bits, the PNG has {depth} bits, {kind}", path=path)
        values = _decode(image, path)
    return cast("NDArray[np.uint16]", values.astype(np.uint16, copy=False))


def read_rgb(
    path: str | Path,
    *,
    expected_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    any_mode: bool = True,
    formats: tuple[str, ...] = ("PNG", "JPEG"),
    remedy: str = _REMEDY,
) -> NDArray[np.uint8]:
    """A colour picture, (H, W, 3) uint8 in the order red, green, blue.

    Alpha is dropped without blending, so colours that encode numbers (NYU, HO-3D depth) come out as stored. A rotation
    noted in EXIF is ignored: labels are in the stored pixels.

    Args:
        path: the file.
        expected_size: (width, height) the picture must have; None accepts any size up to ``max_pixels``.
        max_pixels: pictures whose header claims more are refused undecoded.
        any_mode: convert grey, palette and CMYK pictures of 8 bits; False refuses all but 8-bit RGB and RGBA.
        formats: Pillow's names of the formats that are read.
        remedy: what the user can try with a damaged file.

    Raises:
        MissingFileError: there is no such file.
        DataError: none of these formats, the wrong size or mode, truncated or damaged.
    """
    with _opened(path, formats, expected_size, max_pixels, remedy) as image:
        if image.mode not in ("RGB", "RGBA") and (not any_mode or image.mode[0] in "IF"):
            # Pillow's conversion clips 16-bit, 32-bit and float grey at 255: all white
            wanted = "a picture" if any_mode else "an RGB picture"
            raise DataError(f"expected {wanted} of 8 bits, the picture's mode is {image.mode}", path=path)
        values = _decode(image, path, convert=image.mode not in ("RGB", "RGBA"), remedy=remedy)
    return cast("NDArray[np.uint8]", np.ascontiguousarray(values[..., :3]))


def _opened(
    path: str | Path,
    formats: tuple[str, ...],
    expected_size: tuple[int, int] | None,
    max_pixels: int,
    remedy: str = _REMEDY,
) -> Image.Image:
    path = Path(path)
    wanted = " or ".join(formats)
    head = _head(path)
    if head.startswith(_PNG_MAGIC) and len(head) == 26:
        width, height = struct.unpack(">II", head[16:24])
        _check_size(path, width, height, expected_size, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a smaller limit of our own
            image = Image.open(path, formats=formats)
    except Exception as error:  # a decoder fed with arbitrary bytes raises arbitrary exceptions
        raise DataError(f"not a readable {wanted} ({error})", path=path, remedy=remedy) from None
    try:
        _check_size(path, image.size[0], image.size[1], expected_size, max_pixels)
    except DataError:
        image.close()
        raise
    return image


def _head(path: Path) -> bytes:
    """The first 26 bytes of a file."""
    try:
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(26)
    except OSError as error:  # no permission, a disk that fails
        raise DataError(f"cannot be read ({error.strerror})", path=path) from None
    raise MissingFileError("no such picture", path=path)


def _check_size(path: Path, width: int, height: int, expected_size: tuple[int, int] | None, max_pixels: int) -> None:
    if expected_size is not None and (width, height) != tuple(expected_size):
        raise DataError(
            f"expected {expected_size[0]}x{expected_size[1]} pixels, the header says {width}x{height}", path=path
        )
    if width * height > max_pixels:
        raise DataError(f"the header claims {width}x{height} pixels, more than the limit of {max_pixels}", path=path)


def _decode(
    image: Image.Image, path: str | Path, *, convert: bool = False, remedy: str = _REMEDY
) -> NDArray[np.generic]:
    try:
        if convert:
            return np.array(image.convert("RGB"))
        return np.array(image)
    except Exception as error:  # see _opened
        raise DataError(f"damaged or truncated picture ({error})", path=path, remedy=remedy) from None
