"""CMU Panoptic hands (hand143_panopticdb): 1920x1080 pictures, 21 2-D joints of one right hand each, no 3-D.

- ``open(root)`` -> :class:`Panoptic`: the entries of the label file whose pictures are there, by index.
- ``read_labels(path)`` -> :class:`Labels`: the one label file.

Layout (from several public readers; nothing was checked on real bytes): ``hand143_panopticdb/imgs/########.jpg`` and
``hand143_panopticdb/hands_v143_14817.json`` = ``{"root": [entry, ...]}``, 14,817 entries with ``img_paths``
(relative) and ``joint_self`` (21 x [x, y, v]; v = 0 is missing), order ``thumb_first``. Hypotheses, from memory:
``img_width`` and ``img_height`` are there too (used as a check when they are), all hands are right hands, v is 0 or
1.

The picture is found by ``img_paths``, never by the running index. There is no camera: ``Frame.K`` is all NaN,
``joints_mm`` None. The set has no official split; ``"train"`` is all of it.
Page: http://domedb.perception.cs.cmu.edu/handdb.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import Frame
from shared.datasets.images import read_rgb
from shared.datasets.labels import find_folder, read_json, require_file, to_keypoints
from shared.errors import DataError, MissingFileError

PAGE = "http://domedb.perception.cs.cmu.edu/handdb.html"
LABEL_FILE = "hands_v143_14817.json"
SPLITS = ("train",)


@dataclass(frozen=True, slots=True)
class Labels:
    """The label file as arrays, n entries in file order.

    Attributes:
        paths: relative paths of the pictures.
        keypoints_2d: (n, 21, 2) pixels, NaN where missing.
        valid: (n, 21) bool.
        sizes: (n, 2) int64 width and height as the file says; 0 where it does not.
    """

    paths: list[str]
    keypoints_2d: NDArray[np.float64]
    valid: NDArray[np.bool_]
    sizes: NDArray[np.int64]


def read_labels(path: str | Path, *, max_bytes: int = 64 * 2**20) -> Labels:
    """Decodes ``hands_v143_14817.json``.

    Raises:
        MissingFileError: there is no such file.
        DataError: not JSON, no ``root`` list, an entry without 21 joints, a picture path that leaves the folder.
    """
    document = read_json(path, max_bytes=max_bytes)
    entries = document.get("root") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError("expected {'root': [entry, ...]}", path=path, remedy=f"official labels: {PAGE}")
    paths, sizes = [], []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"entry {i}: expected an object, got {type(entry).__name__}", path=path)
        paths.append(_inside(entry.get("img_paths"), path, i))
        sizes.append([_size(entry.get(key)) for key in ("img_width", "img_height")])
    joints = [entry.get("joint_self") for entry in entries]
    try:  # all at once: a third of the time of one by one
        keypoints, valid = to_keypoints(joints, path, "joint_self", count=len(entries))
    except DataError:  # one by one, to say which
        for i, value in enumerate(joints):
            to_keypoints(value, path, f"entry {i}, joint_self")
        raise
    return Labels(paths, keypoints, valid, np.array(sizes, np.int64))


def open(root: str | Path, split: Literal["train"] = "train") -> Panoptic:
    """The set below ``root`` (the ``hand143_panopticdb`` folder or its parent).

    Raises:
        MissingFileError: no folder, no label file, or none of its pictures.
        DataError: another split, or a label file that cannot be used.
    """
    if split not in SPLITS:
        raise DataError(f"split: Panoptic hand143 has no official split, expected 'train' (all of it), got {split!r}")
    folder = find_folder(root, ["hand143_panopticdb", "."], what="Panoptic hand143", page=PAGE)
    require_file(folder / LABEL_FILE, what="the label file of Panoptic hand143", page=PAGE)
    return Panoptic(folder, read_labels(folder / LABEL_FILE))


class Panoptic:
    """A sequence of :class:`~shared.datasets.base.Frame`; pictures are decoded when a frame is asked for."""

    skeleton = "thumb_first"

    def __init__(self, folder: Path, labels: Labels) -> None:
        self.folder = folder
        present = {
            str(parent / entry.name)
            for parent in {PurePosixPath(path).parent for path in labels.paths}
            if (folder / parent).is_dir()
            for entry in (folder / parent).iterdir()
        }
        kept = [i for i, path in enumerate(labels.paths) if path in present]
        self.missing_images = len(labels.paths) - len(kept)
        if not kept:
            raise MissingFileError(
                f"none of the {len(labels.paths)} pictures of {LABEL_FILE} is here, first looked for "
                f"{folder / labels.paths[0]}",
                path=folder,
                remedy=f"download: {PAGE}",
            )
        self._labels = Labels(
            [labels.paths[i] for i in kept], labels.keypoints_2d[kept], labels.valid[kept], labels.sizes[kept]
        )

    def __len__(self) -> int:
        return len(self._labels.paths)

    def names(self) -> list[str]:
        return [str(PurePosixPath(path).with_suffix("")) for path in self._labels.paths]

    def __getitem__(self, index: int) -> Frame:
        path = self._labels.paths[index]
        width, height = (int(value) for value in self._labels.sizes[index])
        rgb = read_rgb(self.folder / path, expected_size=(width, height) if width and height else None)
        return Frame(
            name=str(PurePosixPath(path).with_suffix("")),
            image_size=(rgb.shape[1], rgb.shape[0]),
            K=np.full((3, 3), np.nan),
            skeleton=self.skeleton,
            rgb=rgb,
            keypoints_2d=self._labels.keypoints_2d[index].copy(),
            joints_valid=self._labels.valid[index].copy(),
            side="right",
        )

    def summary(self) -> str:
        return f"Panoptic hand143: {len(self)} hands; skipped {self.missing_images} labels without picture"


def _inside(value: Any, path: str | Path, entry: int) -> str:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 512:
        raise DataError(f"entry {entry}: expected img_paths, got {str(value)[:40]!r}", path=path)
    parts = PurePosixPath(value.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(f"entry {entry}: img_paths {value!r} leaves the data set's folder", path=path)
    return str(parts)


def _size(value: Any) -> int:
    if isinstance(value, int | float) and 0 < value < 2**20:  # public JSON files of this family write 1920.0
        return int(value)
    return 0
