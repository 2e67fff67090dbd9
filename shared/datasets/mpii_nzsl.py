"""MPII+NZSL hand labels ("hand_labels"): real pictures, 21 hand-labelled 2-D joints, no 3-D.

- ``open(root, split)`` -> :class:`MpiiNzsl`: the pairs of ``manual_train`` or ``manual_test``, by index.
- ``read_labels(path)`` -> :class:`HandLabel`: one label file.

Layout (seen on three real pairs): ``hand_labels/{manual_train,manual_test}/<name>.jpg`` and ``<name>.json``, one pair
a hand. ``hand_pts`` is 21 x [x, y, 1] in pixels of the picture, order ``thumb_first`` (wrist; thumb, index, middle,
ring, little from base to tip). Hypotheses, from memory: a third value of 0 means that a joint is missing; the
published counts are 1,912 and 846.

There is no camera: ``Frame.K`` is all NaN, ``joints_mm`` None. ``Frame.extra``: ``is_mpii`` (bool; the picture is
from MPII rather than from New Zealand Sign Language), ``box_center`` (2,) pixels, ``head_size`` pixels or None.
Page: http://domedb.perception.cs.cmu.edu/handdb.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import Frame
from shared.datasets.images import read_rgb
from shared.datasets.labels import find_folder, one_of, read_json, to_keypoints
from shared.errors import DataError, MissingFileError

PAGE = "http://domedb.perception.cs.cmu.edu/handdb.html"
SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class HandLabel:
    """One label file. ``keypoints_2d`` (21, 2) pixels, NaN where ``valid`` (21,) is False; order thumb_first."""

    keypoints_2d: NDArray[np.float64]
    valid: NDArray[np.bool_]
    side: Literal["right", "left"]
    is_mpii: bool
    box_center: tuple[float, float] | None
    head_size: float | None


def read_labels(path: str | Path) -> HandLabel:
    """Decodes one ``<name>.json``.

    Raises:
        MissingFileError: there is no such file.
        DataError: not JSON, or without 21 x [x, y, visible] and ``is_left``.
    """
    document = read_json(path, max_bytes=2**20)
    if not isinstance(document, dict) or "hand_pts" not in document:
        raise DataError("expected a JSON object with 'hand_pts'", path=path, remedy=f"official labels: {PAGE}")
    keypoints, valid = to_keypoints(document["hand_pts"], path, "hand_pts")
    is_left = document.get("is_left")
    if is_left not in (0, 1):
        raise DataError(f"is_left: expected 0 or 1, got {str(is_left)[:40]!r}", path=path)
    return HandLabel(
        keypoints,
        valid,
        "left" if is_left else "right",
        document.get("is_mpii") == 1,
        _pair(document.get("hand_box_center")),
        _number(document.get("head_size")),
    )


def open(root: str | Path, split: Literal["train", "test"] = "train") -> MpiiNzsl:
    """The pairs below ``root`` (the ``hand_labels`` folder or its parent), sorted by name.

    Raises:
        MissingFileError: no ``manual_<split>`` folder, or not a single pair in it.
        DataError: another split.
    """
    one_of(split=(split, SPLITS))
    folder = f"manual_{split}"
    return MpiiNzsl(find_folder(root, [f"hand_labels/{folder}", folder], what="MPII+NZSL", page=PAGE))


class MpiiNzsl:
    """A sequence of :class:`~shared.datasets.base.Frame`; opens nothing until a frame is asked for."""

    skeleton = "thumb_first"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stems: dict[str, set[str]] = {".jpg": set(), ".json": set()}
        for entry in folder.iterdir():
            if entry.suffix in stems:
                stems[entry.suffix].add(entry.stem)
        self._names = sorted(stems[".jpg"] & stems[".json"])
        self.without_label = sorted(stems[".jpg"] - stems[".json"])
        self.without_image = sorted(stems[".json"] - stems[".jpg"])
        if not self._names:
            raise MissingFileError(
                f"no pair of <name>.jpg and <name>.json ({len(self.without_label)} pictures without label, "
                f"{len(self.without_image)} labels without picture)",
                path=folder,
                remedy=f"download: {PAGE}",
            )

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        return [f"{self.folder.name}/{name}" for name in self._names]

    def labels(self, index: int) -> HandLabel:
        """The label of one hand, without its picture."""
        return read_labels(self.folder / f"{self._names[index]}.json")

    def __getitem__(self, index: int) -> Frame:
        label = self.labels(index)
        rgb = read_rgb(self.folder / f"{self._names[index]}.jpg")
        return Frame(
            name=f"{self.folder.name}/{self._names[index]}",
            image_size=(rgb.shape[1], rgb.shape[0]),
            K=np.full((3, 3), np.nan),
            skeleton=self.skeleton,
            rgb=rgb,
            keypoints_2d=label.keypoints_2d,
            joints_valid=label.valid,
            side=label.side,
            extra={"is_mpii": label.is_mpii, "box_center": label.box_center, "head_size": label.head_size},
        )

    def summary(self) -> str:
        return (
            f"MPII+NZSL {self.folder.name}: {len(self)} hands; skipped {len(self.without_label)} pictures without "
            f"label, {len(self.without_image)} labels without picture"
        )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _pair(value: Any) -> tuple[float, float] | None:
    numbers = [_number(item) for item in value] if isinstance(value, list) else []
    if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None:
        return numbers[0], numbers[1]
    return None
