"""HANDS2017 challenge (Yuan et al.): single right hands, 640x480 depth, 21 joints in camera-frame millimetres.

Public functions:

* :func:`open` -- the frames of a split, lazily, as :class:`shared.datasets.base.Frame`;
* :func:`read_labels` -- ``Training_Annotation.txt``;
* :func:`read_boxes` -- ``BoundingBox.txt`` of the test frames;
* :func:`read_depth` -- one depth PNG.

Layout (also accepted with the folder ``HANDS2017`` or ``hands2017`` above it)::

    training/Training_Annotation.txt   training/images/image_DNNNNNNNN.png   957,032 labelled frames
    frame/BoundingBox.txt              frame/images/image_DNNNNNNNN.png      295,510 test frames, labels never released

A label line is the picture's name and 21 x (x, y, z) in mm, x right, y down, z forward, separated by tabs or blanks; a
box line the name and u, v, width, height. Depth is 16 bits, mm, 0 where nothing was measured. None of this could be
checked on real bytes: it is what several public readers agree on, hence a hypothesis. That the box's u and v are its
top-left corner, and not its middle, is one too; boxes are handed out as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared import camera
from shared.datasets.base import Frame
from shared.datasets.centers import centers_for
from shared.datasets.images import read_png16
from shared.datasets.labels import find_folder, require_file
from shared.datasets.rows import Selection, read_named_rows, skipped_text
from shared.errors import DataError

PAGE = "https://competitions.codalab.org/competitions/17356"
SIZE = (640, 480)
K = camera.intrinsics(475.065948, 475.065857, 315.944855, 245.287079)

Split = Literal["train", "test"]
_PARTS = {
    "train": ("training", "Training_Annotation.txt", "center_train_refined.txt"),
    "test": ("frame", "BoundingBox.txt", "center_test_refined.txt"),
}


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """(480, 640) float32 mm; 0 where nothing was measured.

    Raises:
        DataError: not a one-channel 16-bit PNG of 640x480, or damaged.
    """
    return read_png16(path, expected_size=SIZE).astype(np.float32)


def read_labels(path: str | Path) -> tuple[list[str], NDArray[np.float64]]:
    """``Training_Annotation.txt``: n picture names and their joints (n, 21, 3) float64, camera-frame mm (OpenCV axes).

    Raises:
        DataError: names the line: not a name and 63 finite numbers, or a name outside the folder.
    """
    names, values, _ = read_named_rows(path, 63)
    return names, values.reshape(-1, 21, 3)


def read_boxes(path: str | Path) -> tuple[list[str], NDArray[np.float64]]:
    """``BoundingBox.txt``: n picture names and (n, 4) float64 u, v, width, height in pixels.

    Raises:
        DataError: names the line: not a name and 4 finite numbers, or a name outside the folder.
    """
    names, values, _ = read_named_rows(path, 4)
    return names, values


@dataclass(frozen=True, eq=False)
class Hands2017Dataset:
    """The frames of one split; see :func:`open`. Pictures are read by index and nothing of them is kept.

    Attributes:
        folder: the ``images`` folder.
        split: which one.
        files: n picture names in ``folder``.
        joints_mm: (n, 21, 3) camera-frame mm; None for the test frames.
        boxes: (n, 4) u, v, width, height in pixels of the test frames; None for training.
        centers_mm: (n, 3) camera-frame mm of the centre file, or None.
        skipped: reason -> label names that were left out.
        skeleton: ``"hands2017"``.
    """

    folder: Path
    split: str
    files: list[str]
    joints_mm: NDArray[np.float64] | None
    boxes: NDArray[np.float64] | None
    centers_mm: NDArray[np.float64] | None
    skipped: dict[str, list[str]] = field(default_factory=dict)
    skeleton: str = "hands2017"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Frame:
        """The frame; a test frame has no joints and ``extra["bbox_xywh"]`` (4,) pixels."""
        file = self.files[index]
        return Frame(
            name=self._name(file),
            image_size=SIZE,
            K=K.copy(),
            skeleton=self.skeleton,
            depth_mm=read_depth(self.folder / file),
            joints_mm=None if self.joints_mm is None else self.joints_mm[index].copy(),
            center_mm=None if self.centers_mm is None else self.centers_mm[index].copy(),
            extra={} if self.boxes is None else {"bbox_xywh": self.boxes[index].copy()},
        )

    def _name(self, file: str) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}/{file.rpartition('.')[0]}"

    def names(self) -> list[str]:
        return [self._name(file) for file in self.files]

    def summary(self) -> str:
        labelled = "labelled" if self.joints_mm is not None else "with boxes, without labels"
        return f"HANDS2017 {self.split}: {len(self)} frames {labelled}{skipped_text(self.skipped)}"


def open(root: str | Path, split: Split, *, centers: str | Path | None = None) -> Hands2017Dataset:
    """The frames of a split whose pictures are there; the others are skipped and counted.

    Args:
        root: the folder with ``training`` and ``frame``, or the one above it.
        split: ``train`` (labels) or ``test`` (boxes, no labels: they were never released).
        centers: a V2V-PoseNet centre file, or the folder with ``center_train_refined.txt`` and
            ``center_test_refined.txt``: one line per line of the label or box file. Frames it calls invalid are
            skipped.

    Raises:
        MissingFileError: a folder, the label file, or every picture is missing; says where it was looked for.
        DataError: a damaged label file, or centres of another length.
    """
    if split not in _PARTS:
        raise DataError(f"split: expected train or test, got {split!r}")
    part, label_file, center_file = _PARTS[split]
    base = find_folder(root, (part, f"HANDS2017/{part}", f"hands2017/{part}"), what=f"HANDS2017 ({part})", page=PAGE)
    labels = require_file(base / label_file, what="HANDS2017 labels", page=PAGE)
    names, values = read_labels(labels) if split == "train" else read_boxes(labels)
    center = centers_for(centers, center_file, len(names), y_up=False)

    selection = Selection(names)
    if center is not None:
        selection.drop("frames without a centre", ~center[1])
    selection.drop_missing(base / "images", names, page=PAGE)
    chosen = np.flatnonzero(selection.keep)
    return Hands2017Dataset(
        folder=base / "images",
        split=split,
        files=[names[i] for i in chosen],
        joints_mm=values[chosen] if split == "train" else None,
        boxes=values[chosen] if split == "test" else None,
        centers_mm=None if center is None else center[0][chosen],
        skipped=selection.skipped,
    )
