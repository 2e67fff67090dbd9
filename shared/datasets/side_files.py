"""Label files of the RGB-D mesh sets: arrays from untrusted values, big JSON files, frames without a label.

* ``checked_array`` makes what a pickle, YAML or JSON file held a float64 array of a given shape, or says why not.
* ``read_json_array`` reads a nested list of numbers of one shape (``evaluation_verts.json`` is 500 MB of text) in
  pieces, without building Python lists.
* ``iter_json_records`` walks through a COCO-like annotation file one record at a time.
* ``labelled_frames`` asks every frame once whether it has a label, and keeps the answers in an index file if wanted.

All raise :class:`~shared.errors.DataError` that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.datasets.labels import require_file
from shared.errors import DataError
from shared.safe_io import atomic_path

Float = NDArray[np.float64]

_INDEX_VERSION = 1
_BLOCK = 4 << 20


def checked_array(value: object, shape: tuple[int, ...], *, path: str | Path, field: str) -> Float:
    """``value`` as a float64 array of exactly ``shape``; axes of length one in the file may be missing or too many.

    Nested lists are measured before they are walked, so that a YAML file whose aliases unfold to gigabytes is refused.

    Raises:
        DataError: not numbers, another shape, or a value that is not finite; names ``path`` and ``field``.
    """
    if not isinstance(value, np.ndarray | np.generic):
        flat: list[float] = []
        if not _flatten(value, shape, flat):
            got = f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple) else "")
            raise DataError(f"{field}: expected numbers of shape {shape}, got {got}", path=path)
        value = np.array(flat, np.float64).reshape(shape)
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{field}: expected numbers, got dtype {array.dtype}", path=path)
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise DataError(f"{field}: expected shape {shape}, got {array.shape}", path=path)
    array = array.astype(np.float64).reshape(shape)
    if not np.isfinite(array).all():
        raise DataError(f"{field}: holds values that are not finite numbers", path=path)
    return array


def _flatten(value: object, shape: tuple[int, ...], out: list[float]) -> bool:
    if not shape:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            return False
        try:
            out.append(float(value))
        except OverflowError:  # an integer of 400 digits
            out.append(float("inf"))
        return True
    if not isinstance(value, list | tuple):
        return False
    if len(value) != shape[0]:
        return len(value) == 1 and shape[0] != 1 and _flatten(value[0], shape, out)
    return all(_flatten(item, shape[1:], out) for item in value)


# ------------------------------------------------------------------------------------------------ numbers in JSON


def read_json_array(
    path: str | Path, tail: tuple[int, ...], *, page: str, dtype: type[np.floating[Any]] = np.float64
) -> NDArray[Any]:
    """A JSON list of N equally shaped nested lists as an array (N, *tail).

    The brackets and commas are compared with what N entries of shape ``tail`` must look like, the rest is parsed as one
    run of numbers: ten times less memory than the JSON module, and no other structure gets through.

    Raises:
        MissingFileError: there is no such file; the message ends with ``page``.
        DataError: not such a list (an entry of another shape, text, NaN, cut off).
    """
    path = require_file(path, page=page)
    period = _pattern(tail) + b","
    numbers_per_entry = prod(tail)
    parts: list[NDArray[Any]] = []
    position = found = 0

    def consume(piece: bytes) -> None:
        nonlocal position, found
        signature = piece.translate(None, b"0123456789+-.eE \t\r\n")
        offset = position % len(period)
        expected = (period * (len(signature) // len(period) + 2))[offset : offset + len(signature)]
        if signature != expected:
            first = next(i for i, (a, b) in enumerate(zip(signature, expected, strict=True)) if a != b)
            raise DataError(
                f"expected a list of entries of shape {tail}, entry {(position + first) // len(period)} is not",
                path=path,
                remedy="download the file again",
            )
        position += len(signature)
        values = _numbers(piece.translate(_NO_BRACKETS).rstrip(b", \t\r\n"), path)
        found += len(values)
        parts.append(values.astype(dtype))

    with open(path, "rb") as file:
        rest = file.read(_BLOCK).lstrip(b" \t\r\n")
        if not rest.startswith(b"["):
            raise DataError(f"expected a JSON list, the file starts with {rest[:12]!r}", path=path)
        rest = rest[1:]
        while True:
            cut = rest.rfind(b",") + 1
            if cut:
                consume(rest[:cut])
            rest = rest[cut:]
            block = file.read(_BLOCK)
            if not block:
                break
            if len(rest) > 1 << 16:  # no number is that long
                raise DataError("expected numbers separated by commas", path=path)
            rest += block
    rest = rest.rstrip(b" \t\r\n")
    if not rest.endswith(b"]"):
        raise DataError("the list is cut off before its closing bracket", path=path, remedy="download the file again")
    if rest[:-1].strip() or found:
        consume(rest[:-1] + b",")
    count, left_over = divmod(position, len(period))
    if left_over or found != count * numbers_per_entry:
        raise DataError(
            f"expected whole entries of shape {tail}, found {count} entries with {found} numbers",
            path=path,
            remedy="download the file again",
        )
    array = np.concatenate(parts) if parts else np.zeros(0, dtype)
    if not np.isfinite(array).all():
        raise DataError("holds values that are not finite numbers", path=path)
    return array.reshape(count, *tail)


_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")


def _pattern(tail: tuple[int, ...]) -> bytes:
    return b"[" + b",".join([_pattern(tail[1:])] * tail[0]) + b"]" if tail else b""


def _numbers(text: bytes, path: Path) -> Float:
    if not text.strip():
        return np.zeros(0)
    try:
        # float() is what JSON readers use and refuses "1 2"; NumPy's own text parser stops there silently
        return np.array(text.split(b","), dtype="S").astype(np.float64)
    except ValueError as error:
        raise DataError(f"holds something that is not a number ({error})", path=path) from None


def iter_json_records(path: str | Path, *, page: str, max_record: int = 1 << 20) -> Iterator[tuple[str, Any]]:
    """(key, element) for every element of every list of a JSON file of the form ``{"images": [...], "annotations":
    [...]}``.

    One record is held in memory at a time: HandOccNet's DexYCB file is above a gigabyte. Values that are not lists are
    passed over.

    Raises:
        MissingFileError: there is no such file; the message ends with ``page``.
        DataError: not JSON of that form, cut off, or a record of more than ``max_record`` characters.
    """
    path = require_file(path, page=page)
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8", errors="replace") as file:
        buffer, at, ended = "", 0, False

        def refill() -> None:
            nonlocal buffer, at, ended
            more = file.read(max(1 << 18, len(buffer) - at))
            buffer, at, ended = buffer[at:] + more, 0, not more

        def peek() -> str:
            nonlocal at
            while True:
                while at < len(buffer) and buffer[at] in " \t\r\n":
                    at += 1
                if at < len(buffer):
                    return buffer[at]
                refill()
                if ended:
                    raise DataError("the JSON text is cut off", path=path, remedy="download the file again")

        def expect(characters: str) -> str:
            nonlocal at
            character = peek()
            if character not in characters:
                wanted = " or ".join(characters)
                raise DataError(f"expected {wanted} in the JSON text, got {buffer[at : at + 20]!r}", path=path)
            at += 1
            return character

        def value() -> Any:
            nonlocal at
            peek()
            while True:
                try:
                    result, end = decoder.raw_decode(buffer, at)
                    if end < len(buffer) or ended:  # "12" at the end of the buffer may be the start of "123"
                        at = end
                        return result
                except RecursionError:
                    raise DataError("the JSON text is nested too deeply", path=path) from None
                except ValueError as error:
                    if ended or len(buffer) - at > max_record:
                        raise DataError(f"not valid JSON ({error})"[:300], path=path) from None
                refill()

        expect("{")
        while peek() == '"':
            key = value()
            expect(":")
            if peek() == "[":
                expect("[")
                while peek() != "]":
                    yield key, value()
                    if peek() != "]":
                        expect(",")
                expect("]")
            else:
                value()
            if expect(",}") == "}":
                return
        expect("}" if peek() == "}" else '"')


def file_names(folder: Path) -> set[str]:
    """Names of everything in a folder; none if there is no such folder."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


# ------------------------------------------------------------------------------------------------ unlabelled frames


def labelled_frames(
    names: Sequence[str], is_labelled: Callable[[str], bool], *, index: str | Path | None = None
) -> NDArray[np.bool_]:
    """(N,) bool: which of the frames have a label, found out by asking every one once.

    Args:
        names: all frames.
        is_labelled: reads one frame's label file.
        index: where to keep the answers for the next run. It is stamped with a version and the names; a file that does
            not belong to them is refused rather than rewritten.

    Raises:
        DataError: ``index`` belongs to other frames or is damaged; whatever ``is_labelled`` raises.
    """
    stamp = hashlib.sha256("\n".join([str(_INDEX_VERSION), *names]).encode()).hexdigest()
    if index is not None and Path(index).exists():
        try:
            stored = json.loads(Path(index).read_text(encoding="utf-8"))
            unlabelled = np.array(stored["unlabelled"], np.int64)
            fits = stored["stamp"] == stamp and (
                not len(unlabelled) or 0 <= unlabelled.min() <= unlabelled.max() < len(names)
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            fits = False
        if not fits:
            raise DataError(
                f"this index of unlabelled frames does not belong to these {len(names)} frames",
                path=index,
                remedy="delete it or name another file; it is made again from the label files",
            )
        answers = np.ones(len(names), np.bool_)
        answers[unlabelled] = False
        return answers
    answers = np.fromiter(map(is_labelled, _with_progress(names)), np.bool_, len(names))
    if index is not None:
        with atomic_path(index) as temporary:
            temporary.write_text(
                json.dumps({"stamp": stamp, "frames": len(names), "unlabelled": np.flatnonzero(~answers).tolist()}),
                encoding="utf-8",
            )
    return answers


def _with_progress(names: Sequence[str]) -> Iterator[str]:
    if len(names) < 20_000:
        return iter(names)
    from tqdm import tqdm

    return iter(tqdm(names, desc="looking for unlabelled frames", unit="frame"))
