"""What the prediction programs of all methods do with file names and numbers on their command lines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import DataError, MissingFileError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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


def refuse_same_results(files: Sequence[tuple[Path, str]]) -> None:
    """Stops where two of the (file, name of its results) have one name.

    Raises:
        DataError: names both files.
    """
    owners: dict[str, Path] = {}
    for path, name in files:
        if name in owners:
            raise DataError(f"would write the same {name}.json as {owners[name]}", path=path, remedy="use two --out")
        owners[name] = path


def refuse_overwriting(
    out: Path, files: Sequence[tuple[Path, str]], endings: Sequence[str], inputs: Sequence[str] = ()
) -> None:
    """Stops where a result would replace a file that the program reads.

    Args:
        out: folder of the results.
        files: (file, name of its results); those of frames are ``NAME/000000`` and so on.
        endings: of the results, such as ``"_mesh.png"``.
        inputs: what else is read; empty words are passed over.

    Raises:
        DataError: names the file.
    """
    results = {(out / f"{name}{ending}").resolve() for _, name in files for ending in endings}
    folders = {(out / name).resolve() for _, name in files}
    for path in [*(path for path, _ in files), *(Path(word) for word in inputs if word)]:
        for place in (path.resolve(), path.parent.resolve() / path.name):  # a link itself would be replaced, too
            frame = re.fullmatch(r"\d{6,}(.+)", place.name)
            if place in results or (place.parent in folders and frame and frame[1] in endings):
                raise DataError("would be overwritten by the results", path=path, remedy="give another --out")


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


def parse_bbox(text: str) -> tuple[int, int, int, int]:
    """``--bbox left,top,right,bottom`` in whole pixels, right and bottom excluded.

    Raises:
        DataError: not four finite numbers, or nothing between them.
    """
    left, top, right, bottom = (round(v) for v in parse_numbers("bbox", text, "left top right bottom"))
    if left >= right or top >= bottom:
        raise DataError(f"--bbox must have left < right and top < bottom, got {text!r}")
    return left, top, right, bottom


def read_intrinsics(path: Path) -> NDArray[np.float64]:
    """(3, 3) pinhole matrix of a JSON file with ``fx``, ``fy``, ``u0``, ``v0``, or with a matrix ``K``; pixels.

    Raises:
        MissingFileError, DataError: no such file; another structure, skew, numbers that are no camera's.
    """
    import numpy as np

    from shared.camera import intrinsics

    remedy = 'write {"fx": 475.1, "fy": 475.1, "u0": 315.9, "v0": 245.3} or {"K": [[...], [...], [...]]}'
    if not path.is_file():
        raise MissingFileError("no such intrinsics file", path=path, remedy=remedy)
    try:
        content = json.loads(path.read_bytes()[: 1 << 20])
        if "K" in content:
            K = np.array(content["K"], np.float64)
            if K.shape != (3, 3) or K[0, 1] or K[1, 0] or K[2].tolist() != [0, 0, 1]:
                raise ValueError("K must be 3x3 without skew and end with 0 0 1")
            return intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        return intrinsics(*(float(content[name]) for name in ("fx", "fy", "u0", "v0")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not usable as intrinsics ({error!r})", path=path, remedy=remedy) from None
