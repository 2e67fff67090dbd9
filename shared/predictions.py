"""Prediction files: the public text format, DexYCB's result lines, and the JSON of HO-3D and FreiHAND.

The files may come from anyone, so they are read in blocks with a bound on everything: a damaged or hostile file
(truncated gzip, zip bomb, endless line, brackets without numbers, NaN) ends in a DataError that names file and line,
soon and in little memory. Plain files and gzip are told apart by their first bytes, not by the name.

Formats
    Text rows: one line per frame in the order of the test list, J groups of 3 (or 2) blank-separated numbers, "u v d"
    (pixels, pixels, mm) or "x y z" (mm); optionally a first column with the image's name. Exponents, trailing
    blanks, empty lines and ``\\r\\n`` (ICVL's ``\\r\\r\\n`` too) are accepted.
    DexYCB: one line per frame, the index and 63 numbers, comma separated, mm.
    HO-3D, FreiHAND: ``pred.json``, alone or in a zip: a list of two lists, N x 21 x 3 joints and N x 778 x 3 vertices,
    metres, in OpenGL axes (HO-3D, joints in "mano" order) or OpenCV axes (FreiHAND, "thumb_first").
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.camera import opengl_to_opencv
from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_path

Array = NDArray[np.float64]
Axes = Literal["opengl", "opencv"]

_BLOCK = 1 << 20
_LINE_BYTES = 1 << 16  # a line of 63 numbers has about 1,500; longer than this is no prediction
_BYTES_PER_NUMBER = 64  # on average over a block; catches files of blanks, empty lines or brackets
_EXPANSION, _EXPANSION_FROM = 20, 16 << 20  # beyond 16 MB, a file that grows more than 20 times is a bomb (usual: 3)
_BLANK = np.zeros(256, np.bool_)
_BLANK[[9, 10, 11, 12, 13, 32]] = True


@dataclass(frozen=True)
class Rows:
    """What a text file holds.

    Attributes:
        values: (N, J, D) numbers as they are in the file (uvd, xyz or uv).
        names: the N image names of the first column with ``/``, or None.
        lines: (N,) line numbers in the file, from 1.
    """

    values: Array
    names: list[str] | None
    lines: NDArray[np.int64]


# ----------------------------------------------------------------------------------------------------- reading


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """The uncompressed bytes of a file, and its compressed size (None if it is not compressed)."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError("there is no such file", path=path, remedy="check the path of the prediction file")
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            size = path.stat().st_size
            if magic[:2] == b"\x1f\x8b":
                with gzip.open(file) as plain:
                    yield cast(IO[bytes], plain), size
            elif magic == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    members = [m for m in archive.infolist() if m.filename.rsplit("/", 1)[-1] == "pred.json"]
                    if len(members) != 1:
                        names = ", ".join(archive.namelist()[:5])[:200]
                        raise DataError(f"expected one pred.json in the zip, it has: {names}", path=path)
                    with archive.open(members[0]) as unpacked:
                        yield unpacked, size
            else:
                yield file, None
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        message = f"the compressed file is damaged or cut off ({error})"
        raise DataError(message, path=path, remedy="fetch or write it again") from None


def _refuse_bomb(path: Path) -> None:
    """Refuses a compressed file that grows beyond reason, by unpacking it once without keeping or parsing anything."""
    total = 0
    with _open(path) as (file, packed):
        while packed is not None and (block := file.read(_BLOCK)):
            total += len(block)
            if total > max(_EXPANSION_FROM, packed * _EXPANSION):
                message = f"{packed:,} compressed bytes unpack to more than {total:,}: possibly a bomb"
                raise DataError(message, path=path, remedy="unpack it yourself if you trust it")


def _blocks(path: Path, bounded: bool) -> Iterator[bytes]:
    """The unpacked file in blocks; ``bounded`` says that the caller stops at an expected number of rows."""
    if not bounded:
        _refuse_bomb(path)
    with _open(path) as (file, _):
        while block := file.read(_BLOCK):
            yield block


def _numbers(text: bytes) -> Array | None:
    """All blank-separated numbers of ``text``, or None if something in it is not a number."""
    # np.fromstring reads numbers far faster than Python and stops at the first word that is none.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.fromstring(text, np.float64, sep=" ") if text.strip() else np.empty(0)
        except (DeprecationWarning, ValueError):
            return None


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return b"_" not in word  # Python would take 1_000


def _word_counts(block: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words on each line of a block that ends with a newline, and each line's end position."""
    raw = np.frombuffer(block, np.uint8)
    blank = _BLANK[raw]
    starts = ~blank
    starts[1:] &= blank[:-1]
    ends = np.flatnonzero(raw == 10)
    counts = np.diff(np.cumsum(starts)[ends], prepend=0)
    return counts.astype(np.int64), ends.astype(np.int64)


def _read_table(
    path: Path, columns: int | None, named: bool | None, max_rows: int | None, separator: bytes, what: str, finite: bool
) -> tuple[Array, list[str] | None, NDArray[np.int64]]:
    """Rows of numbers with an optional first column of names: (N, columns), names, line numbers.

    ``columns`` None: as many as the first line has (without the name). ``named`` None: decided on the first line.
    """
    tables: list[Array] = []
    names: list[str] = []
    lines: list[NDArray[np.int64]] = []
    rest, line, rows = b"", 0, 0

    def use(block: bytes) -> None:
        nonlocal columns, named, line, rows
        if separator != b" ":
            block = block.replace(separator, b" ")
        counts, ends = _word_counts(block)
        used = np.flatnonzero(counts)
        first_line = line
        line += len(counts)
        if len(block) > _LINE_BYTES and counts.sum() * _BYTES_PER_NUMBER < len(block):
            raise DataError(
                f"{len(block):,} bytes before line {line} hold only {counts.sum():,} words: not a prediction file",
                path=path,
            )
        if not len(used):
            return
        lines_of_block, begins = block, np.concatenate([[0], ends[:-1] + 1])

        def row(i: np.signedinteger[Any]) -> bytes:
            return lines_of_block[begins[i] : ends[i]]

        if named is None:
            first = row(used[0]).split()
            named = len(first) != columns and (not _is_number(first[0]) or len(first) - 1 == columns)
        skip = int(named)
        if columns is None:
            columns = int(counts[used[0]]) - skip
        if columns < 1:
            raise DataError(f"line {first_line + used[0] + 1} has no numbers", path=path)
        wrong = used[counts[used] != columns + skip]
        if len(wrong):
            found = counts[wrong[0]] - skip
            raise DataError(
                f"line {first_line + wrong[0] + 1} has {found} numbers, expected {columns} ({what})",
                path=path,
                remedy="is this the file of another data set, or is a line cut off?",
            )
        if max_rows is not None and rows + len(used) > max_rows:
            raise DataError(
                f"more than {max_rows} rows", path=path, remedy="expected one row per frame of the test list"
            )
        if named:
            pairs = [row(i).split(None, 1) for i in used]
            names.extend(name.decode("utf-8", "replace").replace("\\", "/") for name, _ in pairs)
            block = b"\n".join(numbers for _, numbers in pairs)
        values = _numbers(block)
        if values is None or values.size != len(used) * columns or (finite and not np.isfinite(values).all()):
            _explain(path, [row(i).split()[skip:] for i in used], first_line + used + 1, finite)
        assert values is not None
        tables.append(values.reshape(len(used), columns))
        lines.append(first_line + used + 1)
        rows += len(used)

    for number, block in enumerate(_blocks(path, bounded=max_rows is not None)):
        if number == 0:
            block = block.removeprefix(b"\xef\xbb\xbf")
            if block[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in block:
                raise DataError("not a text file of single-byte characters", path=path, remedy="save it as UTF-8 text")
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if len(rest) > _LINE_BYTES:
            raise DataError(f"line {line + whole.count(10) + 1} is longer than {_LINE_BYTES:,} bytes", path=path)
        if newline:
            use(whole + newline)
    if rest.strip():
        use(rest + b"\n")
    if not rows:
        raise DataError("the file has no rows", path=path)
    return np.concatenate(tables), names if named else None, np.concatenate(lines).astype(np.int64)


def _explain(path: Path, rows: list[list[bytes]], lines: NDArray[np.int64], finite: bool) -> None:
    """Raises the error that names the first word that is not a (finite) number."""
    for words, line in zip(rows, lines, strict=True):
        for column, word in enumerate(words, 1):
            shown = word[:40].decode("utf-8", "replace")
            if not _is_number(word) or _numbers(word) is None:
                raise DataError(f"line {line}, number {column}: {shown!r} is not a number", path=path)
            if finite and not np.isfinite(float(word)):
                raise DataError(
                    f"line {line}, number {column}: {shown!r} is not finite",
                    path=path,
                    remedy="a prediction has to name a place for every joint; frames cannot be left out",
                )
    raise DataError(f"lines {lines[0]} to {lines[-1]} cannot be read as numbers", path=path)


def read_rows(
    path: str | Path,
    joints: int | None = None,
    dims: int = 3,
    *,
    max_rows: int | None = None,
    finite: bool = True,
) -> Rows:
    """Reads a text file of predictions or labels, plain or gzip.

    Args:
        path: the file.
        joints: expected joints J; None takes what the first line has.
        dims: numbers per joint (3, or 2 for 2-D key points).
        max_rows: refuse more rows than this (the number of test frames, to bound what an unknown file may cost).
        finite: refuse NaN and infinities; False is for ground truth that marks missing joints with ``nan``.

    Raises:
        MissingFileError: no such file.
        DataError: a wrong number of columns, a word that is no number, a number that is not finite (file and line
            named), an empty file, damaged compression, or a file that grows beyond reason.
    """
    path = Path(path)
    columns = None if joints is None else joints * dims
    what = f"{joints} joints x {dims}" if joints is not None else "as many as the first line"
    values, names, lines = _read_table(path, columns, None, max_rows, b" ", what, finite)
    if values.shape[1] % dims:
        raise DataError(f"line {lines[0]} has {values.shape[1]} numbers, expected a multiple of {dims}", path=path)
    return Rows(values.reshape(len(values), -1, dims), names, lines)


def read_predictions(path: str | Path, joints: int | None = None) -> Array:
    """(N, J, 3) values of a text file as they are (uvd or xyz); see :func:`read_rows`."""
    return read_rows(path, joints).values


def write_predictions(
    path: str | Path,
    values: ArrayLike,
    *,
    decimals: int = 3,
    names: list[str] | None = None,
    trailing_blank: bool = False,
) -> None:
    """Writes text rows, gzip if the name ends in ``.gz``; the file is complete or untouched.

    Args:
        path: the file.
        values: (N, J, D) numbers, uvd or xyz.
        decimals: 3 in the public evaluation, 4 in the V2V port's ``test_res.txt``.
        names: a first column, one name per row.
        trailing_blank: a blank after the last number, as in the V2V author's ``result.txt``.

    Raises:
        DataError: shape, values that are not finite, or names that cannot be a column.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 3 or not array.size:
        raise DataError(f"expected values (N, J, D) to write, got shape {array.shape}", path=path)
    bad = ~np.isfinite(array).all((1, 2))
    if bad.any():
        raise DataError(f"row {int(bad.argmax())} to be written is not finite", path=path)
    if names is not None and (len(names) != len(array) or any(len(n.split()) != 1 for n in names)):
        raise DataError(f"expected {len(array)} names without blanks for the first column", path=path)
    rows = array.reshape(len(array), -1)
    form = " ".join([f"%.{decimals}f"] * rows.shape[1]) + (" \n" if trailing_blank else "\n")
    text = "".join((f"{names[i]} " if names else "") + form % tuple(row) for i, row in enumerate(rows.tolist()))
    data = text.encode()
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


# ------------------------------------------------------------------------------------------------------ DexYCB


def read_dexycb(path: str | Path, *, max_rows: int | None = None) -> tuple[NDArray[np.int64], Array]:
    """DexYCB's result lines "index,63 numbers": indices (N,) and joints (N, 21, 3) mm, OpenCV, thumb first.

    Raises:
        DataError: as :func:`read_rows`; an index that is no whole number, or one that comes twice.
    """
    path = Path(path)
    table, _, lines = _read_table(path, 64, False, max_rows, b",", "index and 21 joints x 3", True)
    index = table[:, 0].astype(np.int64)
    wrong = np.flatnonzero(index != table[:, 0])
    if len(wrong):
        raise DataError(f"line {lines[wrong[0]]}: the frame index {table[wrong[0], 0]} is no whole number", path=path)
    values, first = np.unique(index, return_index=True)
    if len(values) < len(index):
        again = np.setdiff1d(np.arange(len(index)), first)[0]
        raise DataError(f"line {lines[again]}: frame {index[again]} comes a second time", path=path)
    return index, table[:, 1:].reshape(-1, 21, 3)


def write_dexycb(path: str | Path, index: ArrayLike, joints_mm: ArrayLike) -> None:
    """Writes DexYCB result lines: index and 63 numbers with four decimals, comma separated."""
    rows = np.asarray(joints_mm, np.float64)
    indices = np.asarray(index, np.int64)
    if rows.shape != (len(indices), 21, 3) or not np.isfinite(rows).all():
        raise DataError(f"expected finite joints ({len(indices)}, 21, 3), got shape {rows.shape}", path=path)
    lines = (
        f"{i}," + ",".join(f"{v:.4f}" for v in row)
        for i, row in zip(indices.tolist(), rows.reshape(-1, 63).tolist(), strict=True)
    )
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")


# ------------------------------------------------------------------------------------- JSON of HO-3D and FreiHAND


def _frame_brackets(points: int) -> bytes:
    """What is left of one frame's JSON without its numbers: ``[[,,],[,,],...]``."""
    return b"[" + b",".join([b"[,,]"] * points) + b"]"


_TO_BLANK = bytes.maketrans(b"[],\t\r\n", b"      ")
_EMPTY_PLACE = re.compile(rb"[\[,][,\]]")
_NUMBER_BYTES = b"0123456789+-.eE \t\r\n"


def _read_json_numbers(path: Path, max_numbers: int | None, start: bytes) -> tuple[Array, bytes]:
    """Numbers and brackets of a JSON file of nested lists, read in blocks: (n,) values and e.g. ``[[,,],[,,]]``.

    Python's own parser would need ten times the memory and would happily build a tree of any shape.
    """
    parts: list[Array] = []
    brackets = bytearray()
    count, rest = 0, b""

    def use(block: bytes) -> None:
        nonlocal count
        structure = block.translate(None, _NUMBER_BYTES)
        brackets.extend(structure)
        head = min(len(brackets), len(start))
        odd = structure.strip(b"[],")[:20].decode("utf-8", "replace")
        if odd or brackets[:head] != start[:head]:
            found = f"found {odd!r}" if odd else f"it starts with {bytes(brackets[:24]).decode()!r} around the numbers"
            raise DataError(f"expected nested lists of numbers only; {found}", path=path, remedy=_JSON_REMEDY)
        values = _numbers(block.translate(_TO_BLANK))
        gap = _EMPTY_PLACE.search((b"," if parts else b"") + block.translate(None, b" \t\r\n"))
        if values is None or gap or not np.isfinite(values).all():
            raise DataError(f"something after number {count} is missing or not a finite number", path=path)
        if len(block) > _LINE_BYTES and values.size * _BYTES_PER_NUMBER < len(block):
            raise DataError(f"{len(block):,} bytes hold only {values.size:,} numbers: not a prediction file", path=path)
        count += values.size
        if max_numbers is not None and count > max_numbers:
            raise DataError(f"more than the expected {max_numbers:,} numbers", path=path, remedy=_JSON_REMEDY)
        parts.append(values)

    for block in _blocks(path, bounded=max_numbers is not None):
        whole, comma, rest = (rest + block).rpartition(b",")
        if len(rest) > _LINE_BYTES:
            raise DataError(f"no comma in {len(rest):,} bytes after number {count}", path=path, remedy=_JSON_REMEDY)
        if comma:
            use(whole + comma)
    if rest:
        use(rest)
    return np.concatenate(parts or [np.empty(0)]), bytes(brackets)


_JSON_REMEDY = "expected the layout of the official evaluation: [N x 21 x 3 joints, N x 778 x 3 vertices], metres"


def read_mesh_json(
    path: str | Path, axes: Axes, *, vertices: int = 778, frames: int | None = None
) -> tuple[Array, Array]:
    """A submission ``pred.json`` (plain, gzip or in a zip): (N, 21, 3) joints and (N, 778, 3) vertices, OpenCV mm.

    Args:
        path: the file.
        axes: of the file: "opengl" for HO-3D, "opencv" for FreiHAND. Joints stay in the file's order.
        vertices: of a mesh.
        frames: expected N, if known: bounds what an unknown file may cost.

    Raises:
        DataError: another structure than the official one, counts that differ (both named), numbers that are not
            finite, damaged compression, or a file that grows beyond reason.
    """
    path = Path(path)
    limit = None if frames is None else (frames + 1) * (21 + vertices) * 3
    values, brackets = _read_json_numbers(path, limit, b"[[" + _frame_brackets(21))
    # The first list ends at "]]]"; N frames in it leave N brackets-strings, N - 1 commas and the list's own brackets.
    n = (brackets.find(b"]]],[[[") + 1) // (len(_frame_brackets(21)) + 1)
    first = b"[" + b",".join([_frame_brackets(21)] * n) + b"]"
    m, left = divmod(len(values) - n * 63, vertices * 3)
    second = b"[" + b",".join([_frame_brackets(vertices)] * max(m, 0)) + b"]"
    if left or brackets != b"[" + first + b"," + second + b"]":
        raise DataError(f"the lists have another shape ({len(values):,} numbers)", path=path, remedy=_JSON_REMEDY)
    if m != n:
        raise DataError(f"{n} frames of joints but {m} frames of vertices", path=path, remedy=_JSON_REMEDY)
    joints, verts = values[: n * 63].reshape(n, 21, 3) * 1000, values[n * 63 :].reshape(n, vertices, 3) * 1000
    if axes == "opengl":
        joints, verts = opengl_to_opencv(joints), opengl_to_opencv(verts)
    return joints, verts


def read_points_json(path: str | Path, points: int, axes: Axes, *, frames: int | None = None) -> Array:
    """``evaluation_xyz.json`` (points = 21) or ``evaluation_verts.json`` (778): (N, points, 3) mm, OpenCV axes.

    Raises:
        DataError: as :func:`read_mesh_json`.
    """
    path = Path(path)
    limit = None if frames is None else (frames + 1) * points * 3
    values, brackets = _read_json_numbers(path, limit, b"[" + _frame_brackets(points))
    n, left = divmod(len(values), points * 3)
    if left or not n or brackets != b"[" + b",".join([_frame_brackets(points)] * n) + b"]":
        message = f"expected a list of N x {points} x 3 numbers, got {len(values):,} in another arrangement"
        raise DataError(message, path=path)
    mm = values.reshape(n, points, 3) * 1000
    return opengl_to_opencv(mm) if axes == "opengl" else mm


def _nested(points_m: Array, decimals: int) -> str:
    form = "[" + ", ".join(["[" + ", ".join([f"%.{decimals}f"] * 3) + "]"] * points_m.shape[1]) + "]"
    return "[" + ", ".join(form % tuple(frame) for frame in points_m.reshape(len(points_m), -1).tolist()) + "]"


def write_mesh_json(
    path: str | Path, joints_mm: ArrayLike, verts_mm: ArrayLike, axes: Axes, *, decimals: int = 6
) -> None:
    """Writes a submission: joints (N, 21, 3) and vertices (N, 778, 3), mm and OpenCV axes, become metres in ``axes``.

    A name ending in ``.zip`` gives a zip with ``pred.json`` in it, as the challenge servers take it.

    Raises:
        DataError: shapes or values that are not finite.
    """
    joints, verts = np.asarray(joints_mm, np.float64), np.asarray(verts_mm, np.float64)
    if joints.shape[1:] != (21, 3) or verts.ndim != 3 or verts.shape[::2] != (len(joints), 3) or not len(joints):
        raise DataError(
            f"expected (N, 21, 3) joints and (N, V, 3) vertices, got {joints.shape}, {verts.shape}", path=path
        )
    for name, array in (("joints", joints), ("vertices", verts)):
        bad = ~np.isfinite(array).all((1, 2))
        if bad.any():
            raise DataError(f"the {name} of frame {int(bad.argmax())} are not finite", path=path)
    if axes == "opengl":
        joints, verts = opengl_to_opencv(joints), opengl_to_opencv(verts)
    data = f"[{_nested(joints / 1000, decimals)}, {_nested(verts / 1000, decimals)}]".encode("ascii")
    if str(path).endswith(".zip"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo("pred.json"), data, zipfile.ZIP_DEFLATED)
        data = packed.getvalue()
    elif str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
