"""What the prediction programs of all methods do with file names and numbers on their command lines."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.errors import DataError


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts ``frame_2`` before ``frame_10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def unfold(folder: Path, suffixes: Sequence[str], keep: Callable[[Path], bool]) -> list[tuple[Path, str]]:
    """(file, its place below the folder without the suffix) of all files that count, in natural order.

    Args:
        folder: searched at any depth.
        suffixes: in lower case, with the dot.
        keep: false for files to pass over, such as a program's own results.
    """
    files = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and keep(path)]
    pairs = [(path, path.relative_to(folder).with_suffix("").as_posix()) for path in files]
    return sorted(pairs, key=lambda pair: natural_key(pair[1]))


def outside(out: Path) -> Callable[[Path], bool]:
    """Whether a file lies elsewhere than under the folder ``out``, neither itself nor, as a link, what it leads to."""
    place = out.resolve()
    return lambda path: place not in path.absolute().parents and place not in path.resolve().parents


def parse_numbers(flag: str, text: str, names: str) -> list[float]:
    """``"1,2,3"`` as finite numbers, as many as ``names`` (such as ``"x y z"``) has words.

    Raises:
        DataError: anything else; names the flag.
    """
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != len(names.split()) or not all(map(math.isfinite, numbers)):
        raise DataError(f"--{flag} takes {','.join(names.split())}, got {text!r}")
    return numbers
