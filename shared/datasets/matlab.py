"""Numeric arrays from MATLAB 5 files that are not trusted.

``scipy.io.loadmat`` (1.17) inflates whatever a few bytes claim and, measured with altered sizes in the header of a
small label file, takes the whole process down with a segmentation fault. Label files hold plain real arrays, for
which the published format is short enough to read here: every size is checked against the bytes that are there.

Source: "MAT-File Format" (The MathWorks), level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.labels import read_label_bytes
from shared.errors import DataError

_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_HEAD = 512  # bytes inflated to see a variable's name and shape
_MAX_RATIO = 32  # of compression; coordinates compress by 2 or 3, a bomb by 1000
_REMEDY = "unpack it again from the official archive"


def read_array(path: str | Path, name: str, *, max_bytes: int = 32 * 2**20) -> NDArray[np.float64]:
    """The real numeric variable ``name`` as float64, with MATLAB's shape; other variables are not inflated.

    Args:
        path: a MATLAB 5 file, compressed elements or not, either byte order.
        name: the variable.
        max_bytes: limit for the file and for what a compressed element inflates to.

    Raises:
        MissingFileError: there is no such file.
        DataError: another format, truncated or damaged, too large, no such variable, or not a real numeric array.
    """
    path = Path(path)
    content = read_label_bytes(path, max_bytes)
    if content.startswith(b"\x89HDF") or b"MATLAB 7.3" in content[:128]:
        raise DataError("a MATLAB 7.3 (HDF5) file, expected MATLAB 5", path=path, remedy="save it again with -v7")
    if len(content) < 136 or content[126:128] not in (b"IM", b"MI"):
        raise DataError("not a MATLAB 5 file", path=path, remedy=_REMEDY)
    order = "<" if content[126:128] == b"IM" else ">"
    seen, data, at = [], memoryview(content), 128
    try:
        while at + 8 <= len(data):
            kind, element, at = _element(data, at, order)
            packed, inflater = len(element), zlib.decompressobj()
            if kind == _COMPRESSED:  # its header first, so that a bomb is refused by what it claims
                head = memoryview(inflater.decompress(element, _HEAD))
                kind, claimed = struct.unpack_from(f"{order}II", head)
                if claimed > max_bytes:
                    raise _DamagedError("it inflates to more than the limit")
                element = head[8:]
            if kind != _MATRIX:
                continue
            found, shape, numeric, values = _header(element, order)
            if found != name:
                seen.append(found)
                continue
            if not numeric:
                raise DataError(f"{name} is not a real numeric array", path=path)
            if inflater.unconsumed_tail:
                if claimed > max(2**20, _MAX_RATIO * packed):
                    size = struct.unpack_from(f"{order}I", element, values + 4)[0]
                    raise DataError(f"{name} claims the shape {shape} and {size} bytes of data, in {packed}", path=path)
                rest = inflater.decompress(inflater.unconsumed_tail, claimed - len(element))
                element = memoryview(bytes(element) + rest)
            return _numbers(name, shape, element[values:], order)
    except (struct.error, zlib.error, UnicodeDecodeError, _DamagedError) as error:
        raise DataError(f"damaged MATLAB file ({error})", path=path, remedy=_REMEDY) from None
    raise DataError(f"no variable {name}; it has {', '.join(seen)[:80] or 'none'}", path=path)


class _DamagedError(Exception):
    pass


def _element(data: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """(type, content, position of the next element) of the element at a position."""
    kind, count = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # up to four bytes are packed into the tag itself
        kind, count, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
        start, end = at + 8, at + 8 + count + (-count % 8 if kind != _COMPRESSED else 0)
    if start + count > len(data):
        raise _DamagedError(f"an element of {count} bytes where {max(len(data) - start, 0)} are left")
    return kind, data[start : start + count], end


def _header(content: memoryview, order: str) -> tuple[str, tuple[int, ...], bool, int]:
    """Name, shape, whether it is a real numeric array, and where its numbers begin."""
    _, flags, after = _element(content, 0, order)
    _, dims, after = _element(content, after, order)
    _, label, after = _element(content, after, order)
    flag = struct.unpack_from(f"{order}I", flags)[0]
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    numeric = 6 <= flag & 0xFF <= 15 and not flag & 0x800  # double to uint64; bit 11 is complex
    return bytes(label).decode("ascii"), shape, numeric, after


def _numbers(name: str, shape: tuple[int, ...], data: memoryview, order: str) -> NDArray[np.float64]:
    kind, content, _ = _element(data, 0, order)
    dtype = _DTYPES.get(kind)
    if dtype is None or any(n < 0 for n in shape):
        raise _DamagedError(f"{name} has the shape {shape} and numbers of type {kind}")
    if math.prod(shape) * int(dtype[1]) != len(content):
        raise _DamagedError(f"{name} of shape {shape} with {len(content)} bytes of data")
    return np.frombuffer(content, np.dtype(order + dtype)).astype(np.float64).reshape(shape, order="F")
