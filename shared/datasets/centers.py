"""Centre files of V2V-PoseNet: one estimated reference point of the hand (or body) per frame.

One line per frame of the split, in the order of the labels: ``x y z`` in the data set's own world, or a line whose
first word is ``invalid``. Format: the files of mks0601/V2V-PoseNet_RELEASE. The reader of each data set knows its
world:

============  ========  ====
data set      y         unit
============  ========  ====
ICVL          down      mm
NYU, MSRA     up        mm
HANDS2017     down      mm
ITOP          up        m
============  ========  ====

They are estimates of a detector, not ground truth, and belong to one release of a data set: they are matched by line
number alone, which is why a file of another length is refused.
"""

from __future__ import annotations

import math
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.datasets.rows import read_lines
from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_write_text

PAGE = "https://github.com/mks0601/V2V-PoseNet_RELEASE"
_INVALID = "invalid invalid invalid\n"  # three words, so that every line has as many
MAX_ROWS = 1_000_000  # the longest real file has 957,032 (HANDS2017)


def read_centers(
    path: str | Path, *, y_up: bool, unit_mm: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """All lines of a centre file, in OpenCV axes and millimetres.

    Args:
        path: the file; ``.gz`` is unpacked.
        y_up: the file's y axis points up (NYU, ITOP, MSRA) and is turned down here.
        unit_mm: millimetres in one unit of the file: 1, or 1000 for metres.

    Returns:
        xyz_mm: (n, 3) float64 camera frame, NaN in invalid rows.
        valid: (n,) bool.

    Raises:
        MissingFileError: there is no such file.
        DataError: names the line that is neither three finite numbers nor ``invalid``; or an empty file.
    """
    values, count = array("d"), 0
    for number, line in read_lines(path):
        count += 1
        if number != count:
            raise DataError(f"line {count}: blank, expected one line per frame", path=path)
        if count > MAX_ROWS:
            raise DataError(f"more than {MAX_ROWS:,} lines, not a centre file", path=path)
        words = line.split(None, 3)
        if words[0].lower() == b"invalid":
            values.extend((math.nan,) * 3)
            continue
        try:
            row = tuple(map(float, words))
        except ValueError:
            row = ()
        if len(row) != 3 or not all(map(math.isfinite, row)):
            raise DataError(f"line {number}: expected 'x y z' or 'invalid', got {line[:60]!r}", path=path)
        values.extend(row)
    if not count:
        raise DataError("no line in the file, expected one per frame", path=path)
    xyz = np.array(values).reshape(-1, 3)
    scale = np.array([1.0, -1.0 if y_up else 1.0, 1.0]) * unit_mm
    return xyz * scale, ~np.isnan(xyz[:, 0])


def write_centers(
    path: str | Path, xyz_mm: ArrayLike, valid: NDArray[np.bool_] | None = None, *, y_up: bool, unit_mm: float = 1.0
) -> None:
    """Writes a centre file, the inverse of :func:`read_centers`, with the authors' 14 significant digits.

    Args:
        path: the file.
        xyz_mm: (n, 3) mm in OpenCV axes; rows that are not finite become ``invalid``.
        valid: (n,) bool; rows that are False become ``invalid`` too.
        y_up: see :func:`read_centers`.
        unit_mm: see :func:`read_centers`.

    Raises:
        DataError: another shape.
    """
    points = np.asarray(xyz_mm, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"centres must have shape (n, 3), got {points.shape}", path=path)
    good = np.asarray(np.isfinite(points).all(1))
    if valid is not None:
        if np.shape(valid) != (len(points),):
            raise DataError(f"valid must have shape ({len(points)},), got {np.shape(valid)}", path=path)
        good &= valid
    scaled = points / (np.array([1.0, -1.0 if y_up else 1.0, 1.0]) * unit_mm)
    lines = ["{:.14g} {:.14g} {:.14g}\n".format(*p) if ok else _INVALID for p, ok in zip(scaled, good, strict=True)]
    atomic_write_text(path, "".join(lines))


def centers_for(
    source: str | Path | None, file_name: str, labels: int, *, y_up: bool, unit_mm: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
    """What a reader's ``centers`` option means: None, a centre file, or a folder that holds ``file_name``.

    Args:
        source: the option.
        file_name: the published name of the split's file.
        labels: lines the split's label file has; the centre file must have as many.
        y_up: see :func:`read_centers`.
        unit_mm: see :func:`read_centers`.

    Raises:
        MissingFileError: there is no such file in the folder.
        DataError: another number of lines, with both counts; or what :func:`read_centers` refuses.
    """
    if source is None:
        return None
    path = Path(source)
    if path.is_dir():
        path = path / file_name
    if not path.is_file():
        raise MissingFileError("no centre file here", path=path, remedy=f"the published ones: {PAGE}")
    xyz_mm, valid = read_centers(path, y_up=y_up, unit_mm=unit_mm)
    if len(valid) != labels:
        raise DataError(
            f"{len(valid)} centres for {labels} labelled frames",
            path=path,
            remedy="centres are matched by line: this file belongs to another split, view or release",
        )
    return xyz_mm, valid
