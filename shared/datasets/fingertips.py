"""Sets of RGB-D sequences with five labelled fingertips a frame: what Dexter+Object and EgoDexter have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.datasets.labels import read_text, require_file
from shared.errors import DataError, MissingFileError

Points = NDArray[np.float64]


class FingertipFrames:
    """The labelled frames of all sequences that are there, one sequence after the other, without their pictures.

    Attributes:
        root: the folder of the sequences.
        camera: ``"color"`` or ``"depth"``, whose pictures are counted and matched with label lines.
        missing_sequences: those without a folder.
        unlabelled: pictures left out because no tip is labelled.
        tips_mm: (n, 5, 3) as the label files have them, NaN where missing.
        keypoints_2d_depth: (n, 5, 2) pixels of the depth picture, NaN where missing.
    """

    skeleton = "fingertips"
    sequences: ClassVar[tuple[str, ...]]
    suffixes: ClassVar[tuple[str, ...]]
    page: ClassVar[str]

    def __init__(
        self,
        root: Path,
        camera: str,
        labels: str,
        files: Callable[[str, str], tuple[Path, Path]],
        read_labels: Callable[[Path], Points],
        read_keypoints: Callable[[Path], Points],
    ) -> None:
        """Reads the labels; ``files`` gives the 3-D and the 2-D file of a sequence and a prefix (``my_`` or none)."""
        self.root, self.camera = root, camera
        self.missing_sequences = [name for name in self.sequences if not (root / name).is_dir()]
        self.unlabelled = 0
        self._frames: list[tuple[str, str]] = []  # sequence, file name
        tips, keypoints = [], []
        for name in self.sequences:
            if name in self.missing_sequences:
                continue
            path, path_2d = files(name, "my_" if labels == "corrected" else "")
            tips_mm = read_labels(require_file(path, what=f"{labels} 3-D labels of {name}", page=self.page))
            points = read_keypoints(path_2d) if path_2d.is_file() else np.full((len(tips_mm), 5, 2), np.nan)
            if len(points) != len(tips_mm):
                raise DataError(
                    f"{len(tips_mm)} lines, but {path_2d.name} has {len(points)}", path=path, remedy="unpack both again"
                )
            folder = root / name / camera
            if not folder.is_dir():
                raise MissingFileError(f"no {camera} pictures of {name}", path=folder, remedy=f"download: {self.page}")
            here = numbered_files(folder, self.suffixes, len(tips_mm))
            kept = [(line, file) for line, file in here if not np.isnan(tips_mm[line]).all()]
            self.unlabelled += len(here) - len(kept)
            self._frames += [(name, file) for _, file in kept]
            tips.append(tips_mm[[line for line, _ in kept]])
            keypoints.append(points[[line for line, _ in kept]])
        if not self._frames:
            raise MissingFileError("no picture with a labelled fingertip", path=root, remedy=f"download: {self.page}")
        self.tips_mm, self.keypoints_2d_depth = np.concatenate(tips), np.concatenate(keypoints)

    def __len__(self) -> int:
        return len(self._frames)

    def names(self) -> list[str]:
        return [f"{sequence}/{Path(file).stem}" for sequence, file in self._frames]

    def path(self, index: int) -> Path:
        """The picture of a frame."""
        sequence, file = self._frames[index]
        return self.root / sequence / self.camera / file

    def counts(self) -> tuple[str, str]:
        """For a summary: what there is, and what was left out."""
        missing = f"; missing sequences: {', '.join(self.missing_sequences)}" if self.missing_sequences else ""
        tips = int((~np.isnan(self.tips_mm[..., 0])).sum())
        return (
            f"{self.camera}: {len(self)} frames, {tips} fingertips",
            f"skipped {self.unlabelled} frames without a label{missing}",
        )


def read_tips(path: str | Path, columns: int) -> Points:
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
