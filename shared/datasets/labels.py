"""Label files of the RGB keypoint sets: small, plain and not trusted.

What several readers need and none should import from another: bounded JSON, the ``x, y, z;`` lines of the two Dexter
sets, the folder a user meant by ``root``, and which picture belongs to which line. Everything wrong with a file is a
:class:`~shared.errors.DataError` that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError

MAX_TEXT_BYTES = 8 * 2**20  # the largest real file of the Dexter sets has about a thousand lines of 100 characters


def find_folder(root: str | Path, candidates: Sequence[str], *, what: str, page: str) -> Path:
    """The first of ``root/candidate`` that is a folder (``"."`` is root itself); the error lists all of them."""
    root = Path(root)
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    looked = ", ".join(str(root / candidate) for candidate in candidates)
    raise MissingFileError(f"no folder of {what} here; looked for {looked}", path=root, remedy=f"download: {page}")


def require_file(path: Path, *, what: str, page: str) -> Path:
    """``path`` if it is a file; otherwise the error that names it and the page it comes from."""
    if not path.is_file():
        raise MissingFileError(f"missing: {what}", path=path, remedy=f"download: {page}")
    return path


def read_text(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A text file of at most ``max_bytes`` bytes of UTF-8 (or ASCII)."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError("no such label file", path=path)
    size = path.stat().st_size
    if size > max_bytes:
        raise DataError(f"{size} bytes, expected a label file of at most {max_bytes}", path=path)
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file ({error})", path=path, remedy="unpack it again") from None


def read_json(path: str | Path, *, max_bytes: int) -> Any:
    """A JSON document of at most ``max_bytes`` bytes; NaN, Infinity and absurd nesting are refused."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a number")

    text = read_text(path, max_bytes=max_bytes)
    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a readable JSON file ({error})", path=path, remedy="unpack it again") from None


def to_keypoints(
    value: Any, path: str | Path, what: str, *, count: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """21 x [x, y, v] from JSON as (21, 2) pixels (NaN where missing) and (21,) bool; v = 0 marks a missing joint.

    With ``count`` it is a list of so many of these, and the arrays have a first axis of that length.
    """
    try:
        points = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.shape != ((21, 3) if count is None else (count, 21, 3)):
        raise DataError(f"{what}: expected 21 x [x, y, visible], got {_brief(value)}", path=path)
    valid = points[..., 2] > 0
    if not np.isfinite(points).all():
        raise DataError(f"{what}: a coordinate is not finite", path=path)
    return np.where(valid[..., None], points[..., :2], np.nan), valid


def read_tips(path: str | Path, columns: int) -> NDArray[np.float64]:
    """Five fingertips a line, ``x, y[, z]; x, y[, z]; ...``: (lines, 5, columns) float64, NaN for a blank field.

    Fields after the fifth (the object's corners in Dexter+Object) and empty lines at the end are ignored.

    Raises:
        DataError: a line with fewer than five fields, another number of coordinates, or a number that is none.
    """
    lines = read_text(path).rstrip().splitlines()
    rows = np.full((len(lines), 5, columns), np.nan)
    for i, line in enumerate(lines):
        fields = line.split(";", 5)
        # the last of exactly five fields may be followed by nothing or by ";": both give five here
        if len(fields) < 5:
            raise DataError(f"line {i + 1}: expected 5 fingertips separated by ';', got {len(fields)}", path=path)
        for j, entry in enumerate(fields[:5]):
            if not entry.replace(",", "").strip():
                continue  # blank: no label
            try:
                numbers = [float(part) for part in entry.split(",")]
            except ValueError:
                numbers = []
            if len(numbers) != columns or not all(map(math.isfinite, numbers)):
                raise DataError(
                    f"line {i + 1}, fingertip {j + 1}: expected {columns} numbers, got {entry[:60]!r}", path=path
                )
            rows[i, j] = numbers
    return rows


def numbered_files(folder: Path, suffixes: Sequence[str], lines: int) -> list[tuple[int, str]]:
    """(line, file name) of every picture in ``folder``, sorted by line (from 0).

    The number in the file's name is the line. Where the numbers do not run from 0 the sorted position is, provided
    that there are as many pictures as lines.

    Raises:
        DataError: neither rule fits; the message has both counts.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in suffixes)
    numbers = [int(match.group()) if (match := re.search(r"\d{1,9}", name)) else -1 for name in names]
    if len(set(numbers)) == len(numbers) and all(0 <= number < lines for number in numbers):
        return sorted(zip(numbers, names, strict=True))
    if len(names) == lines:
        return list(enumerate(names))
    raise DataError(
        f"{len(names)} pictures numbered {min(numbers)} to {max(numbers)} do not fit {lines} label lines",
        path=folder,
        remedy="labels and pictures come from different downloads: unpack both again",
    )


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {value!r}"[:60]
