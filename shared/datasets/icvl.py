"""ICVL (Tang et al., CVPR 2014): single right hands, 320x240 depth, 16 joints labelled in pixels and millimetres.

Public functions:

* :func:`open` -- the frames of a split, lazily, as :class:`shared.datasets.base.Frame`;
* :func:`read_labels` -- one label file (``labels.txt``, ``test_seq_1.txt``, ``test_seq_2.txt``; also ``.gz``);
* :func:`read_depth` -- one depth PNG;
* :func:`joints_mm` -- labels (u, v, d) to camera-frame millimetres;
* :func:`intrinsics` -- K, with the focal lengths for geometry or those for published errors.

Layout (also accepted with the folder ``ICVL`` above it)::

    Training/labels.txt   Training/Depth/<session>/image_NNNN.png            original pictures, 12 sessions
                          Training/Depth/<angle>/<session>/image_NNNN.png    copies rotated in the plane
    Testing/test_seq_{1,2}.txt   Testing/Depth/test_seq_{1,2}/image_NNNN.png 702 and 894 frames

A label is the picture's path below ``Depth`` and 16 x (u, v, d). Two parts in the path mean an original, three a
rotated copy; the angle may stand before or after the session. Only the first 331,006 training lines count
(V2V-PoseNet); 22,068 of them are originals. Verified on real bytes: the test label files (also their CR CR LF line
ends). Hypotheses without a file at hand: the depth PNGs, and that 32001 and above mean "no reading" as 0 does
(DeepPrior++ lists 32001, V2V-PoseNet 0; both are treated as missing here).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import camera
from shared.datasets.base import Frame
from shared.datasets.centers import centers_for
from shared.datasets.images import read_png16
from shared.datasets.labels import find_folder, require_file
from shared.datasets.rows import Selection, read_named_rows, skipped_text
from shared.errors import DataError

PAGE = "https://labicvl.github.io/hand.html"
SIZE = (320, 240)
TRAIN_LINES = 331_006
NO_READING = 32001
SESSIONS = (
    *("201403121135", "201403121140", "201405151126", "201406030937", "201406031456", "201406031503"),
    *("201406031747", "201406041509", "201406181554", "201406181600", "201406191014", "201406191044"),
)

Split = Literal["train", "test", "test_seq_1", "test_seq_2"]
Focal = Literal["geometry", "evaluation"]
_SEQUENCES = {"test": ("test_seq_1", "test_seq_2"), "test_seq_1": ("test_seq_1",), "test_seq_2": ("test_seq_2",)}
_FOCALS = {"geometry": (241.42, 241.42), "evaluation": (240.99, 240.96)}


def intrinsics(focal: Focal = "geometry") -> NDArray[np.float64]:
    """K (3, 3): 241.42 of V2V-PoseNet for geometry, 240.99/240.96 of the public evaluation to quote errors.

    The choice moves a published mean error by less than 0.02 mm.
    """
    if focal not in _FOCALS:
        raise DataError(f"focal: expected one of {', '.join(_FOCALS)}, got {focal!r}")
    return camera.intrinsics(*_FOCALS[focal], 160, 120)


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """(240, 320) float32 mm; 0 where nothing was measured (0, and 32001 and above, in the file).

    Raises:
        DataError: not a one-channel 16-bit PNG of 320x240, or damaged.
    """
    stored = read_png16(path, expected_size=SIZE)
    depth = stored.astype(np.float32)
    depth[stored >= NO_READING] = 0
    return depth


def read_labels(path: str | Path, *, max_rows: int | None = None) -> tuple[list[str], NDArray[np.float64], int]:
    """One label file as it stands.

    Args:
        path: ``labels.txt`` or ``test_seq_<n>.txt``.
        max_rows: read only so many records (331,006 of the training file).

    Returns:
        names: n picture paths below ``Depth``, with ``/`` and suffix.
        uvd: (n, 16, 3) float64: u and v in pixels of the 320x240 picture, d in mm.
        ignored: records after ``max_rows``.

    Raises:
        DataError: names the line: not a name and 48 finite numbers, or a name outside the folder.
    """
    names, values, ignored = read_named_rows(path, 48, max_rows=max_rows)
    return names, values.reshape(-1, 16, 3), ignored


def joints_mm(uvd: ArrayLike, focal: Focal = "geometry") -> NDArray[np.float64]:
    """(..., 3) camera-frame mm (OpenCV axes) of labels (u, v, d); pixels are y down already."""
    return camera.uvd_to_xyz(uvd, intrinsics(focal), check_depth=False)


@dataclass(frozen=True, eq=False)
class IcvlDataset:
    """The frames of one split; see :func:`open`. Pictures are read by index and nothing of them is kept.

    Attributes:
        folder: the ``Depth`` folder.
        split: which one.
        files: n picture paths below ``folder``.
        joints_uvd: (n, 16, 3) labels: pixels, pixels, mm.
        joints_mm: (n, 16, 3) camera-frame mm.
        centers_mm: (n, 3) camera-frame mm of the centre file, or None.
        K: (3, 3).
        skipped: reason -> label names that were left out.
        ignored: label lines after the 331,006th.
        skeleton: ``"icvl"``.
    """

    folder: Path
    split: str
    files: list[str]
    joints_uvd: NDArray[np.float64]
    joints_mm: NDArray[np.float64]
    centers_mm: NDArray[np.float64] | None
    K: NDArray[np.float64]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    ignored: int = 0
    skeleton: str = "icvl"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Frame:
        """The frame; ``extra`` has ``session`` (the recording) and ``rotated`` (a copy turned in the plane)."""
        file = self.files[index]
        uvd = self.joints_uvd[index]
        parts = file.split("/")
        session = next((part for part in parts[:-1] if part in SESSIONS), parts[-2] if len(parts) > 1 else "")
        return Frame(
            name=file.rpartition(".")[0],
            image_size=SIZE,
            K=self.K,
            skeleton=self.skeleton,
            depth_mm=read_depth(self.folder / file),
            joints_mm=self.joints_mm[index].copy(),
            joints_valid=uvd[:, 2] > 0,
            keypoints_2d=uvd[:, :2].copy(),
            center_mm=None if self.centers_mm is None else self.centers_mm[index].copy(),
            extra={"session": session, "rotated": len(parts) > 2},
        )

    def names(self) -> list[str]:
        return [file.rpartition(".")[0] for file in self.files]

    def summary(self) -> str:
        rotated = sum(file.count("/") > 1 for file in self.files)
        tail = f", {self.ignored} lines after the {TRAIN_LINES}th ignored" if self.ignored else ""
        return f"ICVL {self.split}: {len(self)} frames ({rotated} rotated copies){skipped_text(self.skipped)}{tail}"


def open(  # the project's readers are all called icvl.open, nyu.open, ...
    root: str | Path,
    split: Split,
    *,
    include_rotated: bool = False,
    centers: str | Path | None = None,
    focal: Focal = "geometry",
) -> IcvlDataset:
    """The frames of a split whose pictures are there; the others are skipped and counted.

    Args:
        root: the folder with ``Training`` and ``Testing``, or the one above it.
        split: ``train``, ``test`` (sequence 1, then 2), ``test_seq_1`` or ``test_seq_2``.
        include_rotated: also the rotated copies of the training pictures (V2V-PoseNet: yes; SO-HandNet, DeepPrior: no).
        centers: a V2V-PoseNet centre file, or the folder with ``center_train_refined.txt`` and
            ``center_test_refined.txt``. It has one line per *label* (rotated copies and missing pictures included; the
            test file both sequences); frames it calls invalid are skipped.
        focal: see :func:`intrinsics`.

    Raises:
        MissingFileError: a folder, a label file, or every picture is missing; says where it was looked for.
        DataError: a damaged label file, or centres of another length.
    """
    if split != "train" and split not in _SEQUENCES:
        raise DataError(f"split: expected train, {', '.join(_SEQUENCES)}, got {split!r}")
    part = "Training" if split == "train" else "Testing"
    base = find_folder(root, (part, f"ICVL/{part}"), what=f"ICVL ({part})", page=PAGE)
    ignored = 0
    if split == "train":
        label_files = [base / "labels.txt"]
    else:
        label_files = [base / f"{sequence}.txt" for sequence in _SEQUENCES[split]]
    names: list[str] = []
    parts: list[NDArray[np.float64]] = []
    for file in label_files:
        require_file(file, what="ICVL labels", page=PAGE)
        some, values, ignored = read_labels(file, max_rows=TRAIN_LINES if split == "train" else None)
        names += some
        parts.append(values)
    uvd = np.concatenate(parts)
    file_name = f"center_{'train' if split == 'train' else 'test'}_refined.txt"
    center = centers_for(centers, file_name, len(names), y_up=False)

    selection = Selection(names)
    if not include_rotated:
        selection.drop("rotated copies", np.array([name.count("/") > 1 for name in names]))
    if center is not None:
        selection.drop("frames without a centre", ~center[1])
    selection.drop_missing(base / "Depth", names, page=PAGE)
    chosen = np.flatnonzero(selection.keep)
    return IcvlDataset(
        folder=base / "Depth",
        split=split,
        files=[names[i] for i in chosen],
        joints_uvd=uvd[chosen],
        joints_mm=joints_mm(uvd[chosen], focal),
        centers_mm=None if center is None else center[0][chosen],
        K=intrinsics(focal),
        skipped=selection.skipped,
        ignored=ignored,
    )
