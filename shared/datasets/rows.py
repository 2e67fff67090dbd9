"""Long label files of the depth sets: one picture a line, its name and then numbers; and which pictures are there.

Files are read line by line, so that a file of the wrong kind is refused at its first bad line however long it is.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError

MAX_ROWS = 2_000_000  # twice the longest real file (HANDS2017, 957,032 frames)
MAX_LINE = 4096  # bytes; the longest real line has about 700
_BLOCK = 4096  # lines parsed at a time
_PLAIN = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_./-]*")


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without surrounding white space) of every line that is not blank; ``.gz`` is unpacked.

    The test labels of ICVL end their records with CR CR LF; copies that went through a text editor have an empty line
    after each record instead. Both come out the same.

    Raises:
        MissingFileError: there is no such file.
        DataError: a line of more than ``MAX_LINE`` bytes, more than ``MAX_ROWS`` lines, mostly blank lines, or
            damaged gzip.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError("no such label file", path=path)
    rows = number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise DataError(f"line {number}: longer than {MAX_LINE} bytes, not a label file", path=path)
                if stripped := line.strip():
                    rows += 1
                    yield number, stripped
                if rows > MAX_ROWS or number - rows > rows + 1000:
                    raise DataError(f"{rows} records in the first {number} lines, not a label file", path=path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"damaged gzip file ({error})", path=path, remedy="copy the file again") from None


def read_named_rows(
    path: str | Path, columns: int, *, max_rows: int | None = None
) -> tuple[list[str], NDArray[np.float64], int]:
    """Names and numbers of a file whose lines are ``name number number ...``, separated by blanks or tabs.

    Args:
        path: the file; ``.gz`` is unpacked.
        columns: numbers a line must have.
        max_rows: read only so many records; the rest is counted and not looked at.

    Returns:
        names: n picture names as they stand, with ``/``.
        values: (n, columns) float64, all finite.
        ignored: records after ``max_rows``.

    Raises:
        MissingFileError: there is no such file.
        DataError: names the line: another number of columns, a word that is no finite number, a name that leaves the
            data set's folder; or no record at all.
    """
    names: list[str] = []
    parts: list[NDArray[np.float64]] = []
    block: list[tuple[int, bytes]] = []
    ignored = 0
    for number, line in read_lines(path):
        if max_rows is not None and len(names) + len(block) >= max_rows:
            ignored += 1
            continue
        block.append((number, line))
        if len(block) == _BLOCK:
            _parse(path, block, columns, names, parts)
            block = []
    if block:
        _parse(path, block, columns, names, parts)
    if not names:
        raise DataError("no record in the file", path=path, remedy="unpack it again from the official archive")
    return names, np.concatenate(parts), ignored


def _parse(
    path: str | Path, block: list[tuple[int, bytes]], columns: int, names: list[str], parts: list[NDArray[np.float64]]
) -> None:
    split = [line.split(None, 1) for _, line in block]
    try:
        texts = [part[1].decode("ascii") for part in split]
        values = np.loadtxt(texts, np.float64, comments=None, ndmin=2)
        if values.shape != (len(split), columns) or not np.isfinite(values).all():
            _refuse(path, block, columns)
    except (IndexError, ValueError):  # UnicodeDecodeError is one
        _refuse(path, block, columns)
    parts.append(values)
    names += [safe_name(path, number, part[0]) for (number, _), part in zip(block, split, strict=True)]


def _refuse(path: str | Path, block: list[tuple[int, bytes]], columns: int) -> NoReturn:
    """Finds the first bad line, word by word; slow, and only on the way to an error."""
    for number, line in block:
        words = line.split()[1:]
        if len(words) != columns:
            raise DataError(
                f"line {number}: expected a name and {columns} numbers, got {len(words)} after it", path=path
            )
        for word in words:
            try:
                good = np.isfinite(float(word))
            except ValueError:
                good = False
            if not good:
                raise DataError(f"line {number}: expected a finite number, got {word[:40]!r}", path=path)
    raise DataError(f"lines {block[0][0]} to {block[-1][0]}: cannot be read as numbers", path=path)


def safe_name(path: str | Path, number: int, name: bytes) -> str:
    """The picture's name with ``/``; refused if it is absolute or climbs out of its folder."""
    if _PLAIN.fullmatch(name) and b".." not in name and len(name) <= 200:  # nearly always; a path object is slow
        return name.decode("ascii")
    text = name.decode("utf-8", "replace").replace("\\", "/")
    pure = PurePosixPath(text)
    if pure.is_absolute() or ".." in pure.parts or "\0" in text or ":" in text or len(text) > 200:
        raise DataError(f"line {number}: {text[:60]!r} is not a picture inside the data set's folder", path=path)
    return text


class Selection:
    """Which label lines of a split remain, and why the others do not.

    Attributes:
        keep: (n,) bool.
        skipped: reason -> names of what was dropped for it first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.keep = np.ones(len(names), bool)
        self.skipped: dict[str, list[str]] = {}

    def drop(self, reason: str, bad: NDArray[np.bool_]) -> None:
        """Drops what is ``bad`` and still there."""
        indices = np.flatnonzero(bad & self.keep).tolist()
        if indices:
            self.skipped[reason] = [self.names[i] for i in indices]
            self.keep &= ~bad

    def drop_missing(self, folder: Path, files: Sequence[str], *, page: str, reason: str = "missing pictures") -> None:
        """Drops the labels whose picture ``folder/file`` is not there; an error if none remains for that reason."""
        self.drop(reason, ~files_present(folder, files))
        missing = self.skipped.get(reason, [])
        if missing and not self.keep.any():
            raise MissingFileError(
                f"none of the {len(missing)} labelled pictures is here ({reason}), the first is {missing[0]}",
                path=folder,
                remedy=f"unpack the pictures too; download: {page}",
            )


def skipped_text(skipped: dict[str, list[str]]) -> str:
    """``", skipped 3 missing pictures"`` for a summary line; empty if nothing was."""
    return "".join(f", skipped {len(names)} {reason}" for reason, names in skipped.items())


def files_present(folder: str | Path, names: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) bool: which of ``folder/name`` exist; every folder is listed once instead of asking for every file."""
    found: dict[str, set[str]] = {}
    present = np.zeros(len(names), bool)
    for i, name in enumerate(names):
        parent, _, file = name.rpartition("/")
        if parent not in found:
            try:
                found[parent] = set(os.listdir(Path(folder, parent)))
            except OSError:
                found[parent] = set()
        present[i] = file in found[parent]
    return present
