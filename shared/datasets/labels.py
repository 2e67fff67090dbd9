"""Small label files that are not trusted, and the folder and options a user meant.

What several readers need and none should import from another: whole files of bounded size, JSON with 2-D key points,
the folder meant by ``root``, options with a few values. Everything wrong is a :class:`~shared.errors.DataError`.
"""

from __future__ import annotations

import json
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


def require_file(path: str | Path, *, page: str, what: str = "") -> Path:
    """``path`` if it is a file; otherwise the error that names it and the page it comes from."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"missing: {what}" if what else "no such file", path=path, remedy=f"download: {page}")
    return path


def one_of(**options: tuple[object, Sequence[str]]) -> None:
    """Refuses the first option, given as ``name=(value, allowed)``, whose value is not allowed."""
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise DataError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def read_label_bytes(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of a label file of at most ``max_bytes``; a larger one is refused unread."""
    path = Path(path)
    try:
        size = path.stat().st_size if path.is_file() else -1
        content = path.read_bytes() if 0 <= size <= max_bytes else b""
    except OSError as error:  # no permission, a disk that fails
        raise DataError(f"cannot be read ({error.strerror})", path=path) from None
    if size < 0:
        raise MissingFileError("no such label file", path=path)
    if size > max_bytes:
        raise DataError(f"{size} bytes, expected a label file of at most {max_bytes}", path=path)
    return content


def read_text(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A text file of at most ``max_bytes`` bytes of UTF-8 (or ASCII)."""
    try:
        return read_label_bytes(path, max_bytes).decode("utf-8")
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


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {value!r}"[:60]
