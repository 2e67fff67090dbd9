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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError

_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_REMEDY = "unpack it again from the official archive"


@dataclass(frozen=True)
class _Matrix:
    """The header of one variable and its bytes after the name."""

    name: str
    shape: tuple[int, ...]
    numeric: bool
    data: memoryview


def read_array(path: str | Path, name: str, *, max_bytes: int = 32 * 2**20) -> NDArray[np.float64]:
    """The real numeric variable ``name`` as float64, with MATLAB's shape.

    Args:
        path: a MATLAB 5 file, compressed elements or not, either byte order.
        name: the variable.
        max_bytes: limit for the file and for what its compressed elements inflate to.

    Raises:
        MissingFileError: there is no such file.
        DataError: another format, truncated or damaged, too large, no such variable, or not a real numeric array.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError("no such label file", path=path)
    size = path.stat().st_size
    if size > max_bytes:
        raise DataError(f"{size} bytes, expected a label file of at most {max_bytes}", path=path)
    data = path.read_bytes()
    if data.startswith(b"\x89HDF") or b"MATLAB 7.3" in data[:128]:
        raise DataError("a MATLAB 7.3 (HDF5) file, expected MATLAB 5", path=path, remedy="save it again with -v7")
    if len(data) < 136 or data[126:128] not in (b"IM", b"MI"):
        raise DataError("not a MATLAB 5 file", path=path, remedy=_REMEDY)
    order = "<" if data[126:128] == b"IM" else ">"
    seen = []
    try:
        for matrix in _matrices(memoryview(data)[128:], order, max_bytes):
            if matrix.name != name:
                seen.append(matrix.name)
                continue
            if not matrix.numeric:
                raise DataError(f"{name} is not a real numeric array", path=path)
            return _numbers(matrix, order)
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


def _matrices(data: memoryview, order: str, limit: int) -> Iterator[_Matrix]:
    at = 0
    while at + 8 <= len(data):
        kind, content, at = _element(data, at, order)
        if kind == _COMPRESSED:
            inflated = zlib.decompressobj().decompress(content, limit + 1)
            limit -= len(inflated)
            if limit < 0:
                raise _DamagedError("it inflates to more than the limit")
            kind, content, _ = _element(memoryview(inflated), 0, order)
        if kind != _MATRIX:
            continue
        _, flags, after = _element(content, 0, order)
        _, dims, after = _element(content, after, order)
        _, label, after = _element(content, after, order)
        flag = struct.unpack_from(f"{order}I", flags)[0]
        shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
        numeric = 6 <= flag & 0xFF <= 15 and not flag & 0x800  # double to uint64; bit 11 is complex
        yield _Matrix(bytes(label).decode("ascii"), shape, numeric, content[after:])


def _numbers(matrix: _Matrix, order: str) -> NDArray[np.float64]:
    kind, content, _ = _element(matrix.data, 0, order)
    dtype = _DTYPES.get(kind)
    if dtype is None or any(n < 0 for n in matrix.shape):
        raise _DamagedError(f"{matrix.name} has the shape {matrix.shape} and numbers of type {kind}")
    count = math.prod(matrix.shape)
    if count * int(dtype[1]) != len(content):
        raise _DamagedError(f"{matrix.name} of shape {matrix.shape} with {len(content)} bytes of data")
    values = np.frombuffer(content, np.dtype(order + dtype))
    return values.astype(np.float64).reshape(matrix.shape, order="F")
