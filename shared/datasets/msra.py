"""MSRA15 (``cvpr15_MSRAHandGestureDB``): nine people, 17 gestures, right hand, 21 joints, cropped depth.

Public functions:

- :func:`open` -> :class:`MsraDataset`: one split as a lazy, picklable sequence of :class:`shared.datasets.base.Frame`.
- :func:`read_depth`: one ``NNNNNN_depth.bin`` -> crop, box, image size.
- :func:`read_labels` / :func:`read_joints_mm`: one ``joint.txt`` in the file's own world / in OpenCV axes.
- :func:`detect_release`: which of the two releases a table of frame counts belongs to.

Layout on disk: ``P{0..8}/{1..9,I,IP,L,MP,RP,T,TIP,Y}/NNNNNN_depth.bin`` (six digits, from 0) with a ``joint.txt``.
Three worlds meet here: the labels are y up with *negative* z, the centre files (:mod:`shared.datasets.centers`) y up
with positive z, and everything handed out is in OpenCV axes (x right, y down, z forward), millimetres.

Sources: the data set's readme (layout, box, intrinsics); V2V-PoseNet's published centre files (order, second release);
the test list of the public hand pose evaluation (first release); deep-prior-pp (frames without a hand). No real
``.bin`` file was at hand when this was written: the format follows the readme and two public readers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared import camera
from shared.datasets.base import Frame
from shared.datasets.centers import read_centers
from shared.errors import DataError, MissingFileError

GESTURES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "I", "IP", "L", "MP", "RP", "T", "TIP", "Y")
SUBJECTS = tuple(range(9))
IMAGE_SIZE = (320, 240)  # width, height
K = camera.intrinsics(241.42, 241.42, 160, 120)
DOWNLOAD = "the data set is linked from https://jimmysuen.github.io (cvpr15_MSRAHandGestureDB)"

Release = Literal["first", "second", "subset"]
# Frames of P0 to P8. The second release removed and re-annotated frames of the first; a centre file belongs to one.
RELEASES: dict[str, tuple[int, ...]] = {
    "first": (8499, 8492, 8412, 8488, 8500, 8497, 8497, 8498, 8492),
    "second": (8499, 8499, 8406, 8498, 8500, 8497, 8498, 8498, 8496),
}
# Gestures of the first release that do not have 500 frames (of the second only the sums above are known).
FIRST_RELEASE_COUNTS: dict[str, int] = {
    **{"P0/T": 499, "P1/4": 499, "P1/6": 498, "P1/9": 499, "P1/L": 498, "P1/Y": 498, "P2/MP": 417, "P2/RP": 498},
    **{"P2/T": 497, "P3/5": 499, "P3/6": 497, "P3/7": 499, "P3/8": 497, "P3/9": 498, "P3/I": 499, "P3/Y": 499},
    **{"P5/1": 499, "P5/3": 499, "P5/T": 499, "P6/2": 499, "P6/4": 499, "P6/Y": 499, "P7/1": 498},
    **{"P8/2": 497, "P8/3": 498, "P8/4": 499, "P8/5": 499, "P8/Y": 499},
}
# Frames in which deep-prior-pp found no hand. It reads the first release; numbers in the second may differ in P2.
HANDLESS = frozenset(
    f"{folder}/{number:06d}"
    for folder, numbers in {
        "P2/TIP": (172, 173, 174),
        "P2/MP": (173, 174, 175, *range(345, 355), 356, 359, 360),
        "P3/T": (120, 489),
        "P8/4": (168,),
    }.items()
    for number in numbers
)

_MAX_BIN_BYTES = 24 + 4 * IMAGE_SIZE[0] * IMAGE_SIZE[1]
_MAX_DEPTH_MM = 1e5  # a hand camera sees a few metres: more means another unit or other bytes
_MAX_LABEL_BYTES = 4 << 20  # 500 lines of 63 numbers are about 0.3 MB
_MAX_CENTER_MEDIAN_MM = 75.0  # between a centre and the mean of its joints: published ones are near 10 mm


def read_depth(path: str | Path) -> tuple[NDArray[np.float32], tuple[int, int, int, int], tuple[int, int]]:
    """One ``.bin`` file: the hand's rectangle of a depth image.

    Returns:
        crop: (h, w) float32 depth in mm, 0 where there is no measurement. What lies outside the box is unknown.
        box_ltrb: left, top, right, bottom in pixels of the image, from 0, right and bottom excluded.
        image_wh: (320, 240).

    Raises:
        DataError: the header, the box, the length or a depth value is impossible.
        MissingFileError: there is no such file.

    Source: the data set's readme (six little-endian uint32, then float32 in row order).
    """
    size = _file_size(path)
    if size == 4 * IMAGE_SIZE[0] * IMAGE_SIZE[1]:
        raise DataError(
            "the file has no header and holds a full 320x240 image",
            path=path,
            remedy="this is the format of the group's 2014 tracking set; MSRA15 files start with image size and box",
        )
    if not 24 <= size <= _MAX_BIN_BYTES or size % 4:
        raise DataError(
            f"expected 24 header bytes and 4 bytes a pixel (at most {_MAX_BIN_BYTES}), found {size} bytes",
            path=path,
            remedy="the file is damaged or from another set: unpack the archive again",
        )
    words = np.fromfile(path, "<u4")
    width, height, left, top, right, bottom = words[:6].tolist()
    if (width, height) != IMAGE_SIZE:
        raise DataError(f"the header says {width}x{height} pixels, expected 320x240", path=path, remedy=DOWNLOAD)
    if not (left <= right <= width and top <= bottom <= height):
        raise DataError(
            f"the box left {left}, top {top}, right {right}, bottom {bottom} does not lie in a 320x240 image",
            path=path,
            remedy="unpack the archive again",
        )
    h, w = bottom - top, right - left
    if words.size != 6 + h * w:
        raise DataError(
            f"the box holds {w}x{h} pixels, {24 + 4 * h * w} bytes with the header, but the file has {size} bytes",
            path=path,
            remedy="the file is truncated or has a tail: unpack the archive again",
        )
    crop = words[6:].view("<f4").reshape(h, w)
    if crop.size and not (crop.min() >= 0 and crop.max() <= _MAX_DEPTH_MM):  # false for NaN, which min and max pass on
        raise DataError(
            "a depth is NaN, infinite, negative or beyond 100 m (expected millimetres, 0 for empty)",
            path=path,
            remedy="unpack the archive again",
        )
    return crop.astype(np.float32, copy=False), (left, top, right, bottom), (width, height)


def read_labels(path: str | Path) -> NDArray[np.float64]:
    """One ``joint.txt``: (n, 21, 3) mm in the file's own world (x right, y up, z *negative*), joint order ``msra``.

    Raises:
        DataError: the header is not the number of lines, a line has not 63 finite numbers, or z is mostly positive.
    """
    lines = _text_lines(path, _MAX_LABEL_BYTES)
    count = _label_count(path, lines)
    if len(lines) - 1 != count:
        raise DataError(
            f"line 1 says {count} frames but {len(lines) - 1} lines follow",
            path=path,
            remedy="the file is truncated or edited: unpack the archive again",
        )
    flat = _numbers(path, lines[1:], 63, first_line=2)
    labels = flat.reshape(-1, 21, 3)
    if count and np.median(labels[..., 2]) > 0:
        raise DataError(
            "the depths are positive; MSRA labels look along negative z",
            path=path,
            remedy="restore the original joint.txt: this one was converted",
        )
    return labels


def read_joints_mm(path: str | Path) -> NDArray[np.float64]:
    """:func:`read_labels` turned into OpenCV axes (x right, y down, z forward): (n, 21, 3) mm."""
    return camera.opengl_to_opencv(read_labels(path))


def detect_release(counts: Mapping[int, Mapping[str, int]]) -> Release:
    """``"first"`` (76,375 frames), ``"second"`` (76,391) or ``"subset"`` from frame counts per subject and gesture.

    A few complete subjects are enough when they tell the releases apart (P0 does not; P3 does).
    """
    fits = [
        name
        for name, sums in RELEASES.items()
        if counts and all(len(c) == 17 and sum(c.values()) == sums[s] for s, c in counts.items())
    ]
    by_gesture = all(
        n == FIRST_RELEASE_COUNTS.get(f"P{s}/{gesture}", 500) for s, c in counts.items() for gesture, n in c.items()
    )
    if fits == ["first"] and by_gesture:
        return "first"
    return "second" if fits == ["second"] else "subset"


@dataclass(frozen=True)
class MsraDataset:
    """One split of MSRA15; ``dataset[i]`` reads one ``.bin`` file. Made by :func:`open`.

    Attributes:
        root: the folder that holds P0 to P8.
        split: ``train``, ``test`` or ``all``; ``test_subject`` is the person left out.
        joints_mm: (N, 21, 3) float64 labels of all frames, OpenCV axes, without decoding an image.
        centers_mm: (N, 3) float64 reference points, OpenCV axes, or None.
        subjects: (N,) int64 person of every frame.
        release: ``first``, ``second`` or ``subset`` (of the whole folder, not of the split).
        dropped: reason -> number of frames left out.
    """

    root: Path
    split: str
    test_subject: int
    frame_names: tuple[str, ...]
    joints_mm: NDArray[np.float64]
    centers_mm: NDArray[np.float64] | None
    subjects: NDArray[np.int64]
    release: Release
    center_files: tuple[Path, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    skeleton: str = "msra"

    def __len__(self) -> int:
        return len(self.frame_names)

    def path(self, index: int) -> Path:
        """The depth file of frame ``index``."""
        return self.root / f"{self.frame_names[index]}_depth.bin"

    def __getitem__(self, index: int) -> Frame:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        crop, (left, top, _, _), size = read_depth(self.path(index))
        return Frame(
            name=self.frame_names[index],
            image_size=size,
            K=K.copy(),
            skeleton=self.skeleton,
            depth_mm=crop,
            crop_xy=(left, top),
            joints_mm=self.joints_mm[index].copy(),
            center_mm=None if self.centers_mm is None else self.centers_mm[index].copy(),
            subject=f"P{self.subjects[index]}",
        )

    def names(self) -> list[str]:
        """``P3/1/000000`` and so on, in order."""
        return list(self.frame_names)

    def summary(self) -> str:
        """One line for the log: frames, people, release, centre files, what was left out and why."""
        people = " ".join(f"P{s}" for s in dict.fromkeys(self.subjects.tolist()))
        release = {"first": "first release (76,375)", "second": "second release (76,391)", "subset": "subset"}
        parts = [f"msra {self.split}: {len(self)} frames of {people or 'nobody'}", release[self.release]]
        files = ", ".join(p.name for p in self.center_files)
        parts.append(f"centres {files}" if files else "no centre file")
        parts += [f"{count} dropped: {reason}" for reason, count in self.dropped.items() if count]
        return "; ".join(parts)


def open(
    root: str | Path,
    split: Literal["train", "test", "all"] = "train",
    *,
    test_subject: int = 3,
    centers: str | Path | None = None,
    drop_handless: bool = False,
    subjects: Iterable[int] | None = None,
    gestures: Iterable[str] | None = None,
    require_depth: bool = True,
) -> MsraDataset:
    """Opens one split, leave-one-subject-out, in the order of subject, gesture (:data:`GESTURES`) and frame.

    Args:
        root: the folder with P0 ... P8 (or its parent, as unpacked).
        split: ``train`` = all but ``test_subject`` in ascending order, ``test`` = that person, ``all`` = everybody.
        test_subject: 0 to 8.
        centers: a folder with ``center_{train,test}_{s}_refined.txt`` (or ``.txt.gz``), or that file itself; ``"auto"``
            looks in ``root/msra_center`` and ``root/../msra_center`` and goes without centres where neither is there
            (the summary says so); None reads none. For ``all`` each person's ``center_test`` file is taken.
            ``invalid`` lines drop their frames.
        drop_handless: leave out the 22 frames of :data:`HANDLESS`.
        subjects, gestures: only these, out of the split.
        require_depth: check that every labelled frame has its depth file; False opens a copy that has labels only.

    Raises:
        MissingFileError: no such folder, label, depth or centre file.
        DataError: bad labels; a centre file that does not belong to these labels; a bad argument.
    """
    if split not in ("train", "test", "all"):
        raise DataError(f'split must be "train", "test" or "all", got {split!r}')
    if test_subject not in SUBJECTS:
        raise DataError(f"test_subject must be 0 to 8, got {test_subject!r}")
    wanted_gestures = _choice("gestures", gestures, GESTURES)
    wanted_subjects = _choice("subjects", subjects, SUBJECTS)
    base = _find_root(Path(root))
    found = [s for s in SUBJECTS if (base / f"P{s}").is_dir()]
    if split == "all":
        people = [s for s in found if s in wanted_subjects]
    else:  # the whole split is counted even where a part is wanted: centre files are matched by line
        people = [s for s in found if (s == test_subject) == (split == "test")]
    if not people:
        raise MissingFileError(
            f"no person of the {split} split is here (test_subject {test_subject}; found "
            f"{' '.join(f'P{s}' for s in found)})",
            path=base,
            remedy=DOWNLOAD,
        )

    counts = {s: _frame_counts(base / f"P{s}", strict=s in people) for s in found}
    names, labels, chosen, owners = [], [], [], []
    for s in people:
        for gesture, count in counts[s].items():
            folder = base / f"P{s}" / gesture
            take = s in wanted_subjects and gesture in wanted_gestures
            joints = read_joints_mm(folder / "joint.txt") if take else np.zeros((count, 21, 3))
            if take and require_depth:
                _check_depth_files(folder, count)
            names += [f"P{s}/{gesture}/{i:06d}" for i in range(count)]
            labels.append(joints)
            chosen.append(np.full(count, take))
            owners.append(np.full(count, s, np.int64))
    joints_mm, keep, owner = np.concatenate(labels), np.concatenate(chosen), np.concatenate(owners)

    release = detect_release(counts)
    dropped = {}
    centers_mm, files = None, _center_files(base, centers, split, test_subject, people)
    if files:
        centers_mm, valid = _matched_centers(files, people, joints_mm, keep, owner, release)
        dropped["invalid centre"] = int((keep & ~valid).sum())
        keep &= valid
    if drop_handless:
        handless = np.array([name in HANDLESS for name in names], dtype=bool)
        dropped["no hand (known list)"] = int((keep & handless).sum())
        keep &= ~handless
    index = np.flatnonzero(keep)
    return MsraDataset(
        root=base,
        split=split,
        test_subject=test_subject,
        frame_names=tuple(names[i] for i in index),
        joints_mm=joints_mm[index],
        centers_mm=None if centers_mm is None else centers_mm[index],
        subjects=owner[index],
        release=release,
        center_files=tuple(files),
        dropped=dropped,
    )


def _find_root(root: Path) -> Path:
    for folder in (root, root / "cvpr15_MSRAHandGestureDB"):
        if any((folder / f"P{s}").is_dir() for s in SUBJECTS):
            return folder
    raise MissingFileError("no folder P0 to P8 here or in cvpr15_MSRAHandGestureDB below", path=root, remedy=DOWNLOAD)


def _choice(name: str, chosen: Iterable[int] | Iterable[str] | None, known: Sequence[int | str]) -> set[int | str]:
    picked = set(known if chosen is None else chosen)
    if not picked or picked - set(known):
        raise DataError(f"{name} must be some of {', '.join(map(str, known))}, got {sorted(map(str, picked))}")
    return picked


def _frame_counts(folder: Path, *, strict: bool) -> dict[str, int]:
    """Gesture -> frames, from the first line of every joint.txt; where not ``strict``, bad files count as 0."""
    counts: dict[str, int] = {}
    for gesture in GESTURES:
        path = folder / gesture / "joint.txt"
        if not path.parent.is_dir():
            continue
        try:
            _file_size(path)
            with path.open("rb") as file:
                counts[gesture] = _label_count(path, [file.readline(64)])
        except DataError:
            if strict:
                raise
            counts[gesture] = 0
    if strict and not counts:
        raise MissingFileError("none of the 17 gesture folders is here", path=folder, remedy=DOWNLOAD)
    return counts


def _check_depth_files(folder: Path, count: int) -> None:
    present = set(os.listdir(folder))
    missing = [name for i in range(count) if (name := f"{i:06d}_depth.bin") not in present]
    if missing:
        raise MissingFileError(
            f"the depth file is missing ({len(missing)} of {count} in this folder)",
            path=folder / missing[0],
            remedy="unpack the archive again, or remove the gesture folder to work on a subset",
        )


def _center_files(
    base: Path, centers: str | Path | None, split: str, test_subject: int, people: list[int]
) -> list[Path]:
    if centers is None:
        return []
    if Path(centers).is_file():
        return [Path(centers)]
    stems = [f"center_test_{s}" for s in people] if split == "all" else [f"center_{split}_{test_subject}"]
    auto = str(centers) == "auto"
    for folder in (base / "msra_center", base.parent / "msra_center") if auto else (Path(centers),):
        candidates = [[folder / f"{stem}_refined.txt{end}" for end in ("", ".gz")] for stem in stems]
        files = [next((p for p in pair if p.is_file()), None) for pair in candidates]
        if any(files) or not auto:
            for pair, file in zip(candidates, files, strict=True):
                if file is None:
                    raise MissingFileError(
                        "the centre file is missing",
                        path=pair[0],
                        remedy="make one with python -m v2v_posenet.make_centers, or fetch the author's",
                    )
            return [file for file in files if file is not None]
    return []


def _matched_centers(
    files: list[Path],
    people: list[int],
    joints_mm: NDArray[np.float64],
    keep: NDArray[np.bool_],
    owner: NDArray[np.int64],
    release: Release,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(N, 3) centres in OpenCV axes and which are valid, refused where count or position does not fit the labels."""
    parts = [owner == s for s in people] if len(files) == len(people) > 1 else [np.ones(len(owner), bool)]
    centers, valid = np.empty((len(owner), 3)), np.empty(len(owner), bool)
    for file, part in zip(files, parts, strict=True):
        xyz, good = read_centers(file, y_up=True)
        if len(xyz) != part.sum():
            there = np.unique(owner[part])
            other = [name for name, sums in RELEASES.items() if sum(sums[s] for s in there) == len(xyz)]
            cause = (
                f"{len(xyz)} is the count of the {other[0]} release and these labels are not of it"
                if other
                else "the file is of another release or fold, or this copy of the data is incomplete"
            )
            raise DataError(
                f"{len(xyz)} centres for {part.sum()} labelled frames",
                path=file,
                remedy=f"likely cause: {cause} (labels: {release}); centres are matched line by line, so make your own "
                "with python -m v2v_posenet.make_centers",
            )
        centers[part], valid[part] = xyz, good
        rows = np.flatnonzero(part)[good & keep[part]]
        _check_near(file, centers[rows], joints_mm[rows].mean(1))
    return centers, valid


def _check_near(file: Path, centers: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
    if not len(centers):
        return
    apart = float(np.median(np.linalg.norm(centers - truth, axis=1)))
    flipped = float(np.median(np.linalg.norm(camera.flip_y(centers) - truth, axis=1)))
    if apart > 20 and flipped < apart / 2:
        raise DataError(
            f"the centres lie {apart:.0f} mm (median) from the middle of their joints, {flipped:.0f} mm with y turned",
            path=file,
            remedy="centre files have y up: negate the second number of every line",
        )
    if apart > _MAX_CENTER_MEDIAN_MM:
        raise DataError(
            f"the centres lie {apart:.0f} mm (median) from the middle of their joints, expected below "
            f"{_MAX_CENTER_MEDIAN_MM:.0f} mm",
            path=file,
            remedy="likely cause: the file of another fold or release, another order or another axis convention",
        )


def _file_size(path: str | Path) -> int:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise MissingFileError("no such file", path=path, remedy=DOWNLOAD) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError("this is not a file", path=path, remedy="give the path of one file")
    return status.st_size


def _text_lines(path: str | Path, limit: int) -> list[bytes]:
    """The lines of a small text file, without the blank ones at its end."""
    size = _file_size(path)
    if size > limit:
        raise DataError(
            f"{size} bytes, expected at most {limit}", path=path, remedy="check that this is the right file"
        )
    return Path(path).read_bytes().rstrip().splitlines()


def _label_count(path: Path | str, lines: list[bytes]) -> int:
    words = lines[0].split() if lines else []
    if len(words) != 1 or not words[0].isdigit() or len(words[0]) > 4:
        found = b" ".join(words[:4])[:40].decode("ascii", "replace")
        raise DataError(
            f"line 1 must be the number of frames (0 to 9999), found {found!r}",
            path=path,
            remedy="unpack the archive again",
        )
    return int(words[0])


def _numbers(path: str | Path, lines: list[bytes], columns: int, *, first_line: int) -> NDArray[np.float64]:
    """(len(lines), columns) float64, or a DataError that names the file and the line."""
    rows = []
    for number, line in enumerate(lines, first_line):
        words = line.split(None, columns)  # one more than needed shows a line that is too long, and never a million
        if len(words) != columns:
            count = f"more than {columns}" if len(words) > columns else str(len(words))
            raise DataError(
                f"line {number} has {count} values, expected {columns}", path=path, remedy="fetch the file again"
            )
        rows.append(words)
    try:
        table = np.array(rows, dtype=np.float64).reshape(-1, columns)
    except ValueError:
        table = None
    if table is not None and np.isfinite(table).all():
        return table
    for number, words in enumerate(rows, first_line):
        for word in words:
            if not _finite(word):
                text = word[:40].decode("ascii", "replace")
                raise DataError(
                    f"line {number}: {text!r} is not a finite number", path=path, remedy="fetch the file again"
                )
    raise AssertionError("numpy refused numbers that Python reads")


def _finite(word: bytes) -> bool:
    try:
        return bool(np.isfinite(float(word)))
    except ValueError:
        return False
