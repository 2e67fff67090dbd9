"""DexYCB: eight RGB-D cameras around a person who picks up objects, right or left hand, with MANO and object poses.

Layout (the data set's toolkit): ``<date>-subject-NN/<date>_<time>/meta.yml`` and, for each camera, ``<serial>/`` with
``color_FFFFFF.jpg``, ``aligned_depth_to_color_FFFFFF.png`` and ``labels_FFFFFF.npz``; ``calibration/intrinsics/``
``<serial>_640x480.yml``, ``calibration/mano_<id>/mano.yml``. Files are in metres and OpenCV axes; here everything is
in mm.

Whole data set:

* ``open(root, "s0_train", ...) -> DexYCB``: a :class:`~shared.datasets.base.FrameDataset`.
* ``split_indices(split)``: subjects, cameras and sequences of ``s0`` ... ``s3`` by the toolkit's rule.

Single files:

* ``read_rgb(path)``, ``read_depth(path)``, ``read_labels(path) -> Labels``, ``has_hand(path)``
* ``read_intrinsics(path) -> Intrinsics``, ``read_meta(path) -> SequenceMeta``, ``read_betas(path)``

MANO: ``pca_to_pose(pose_pca, hands_components)``.

Left hands come out as they are, with ``Frame.side == "left"``; ``shared.datasets.mirror`` makes right hands of them.

``Frame.extra`` holds ``transl_mm`` (3,), ``betas`` (10,), ``pose_pca`` (48,) = global rotation and 45 coefficients,
``flat_hand_mean`` False, ``pose`` (48,) axis-angle if ``open`` got the hand model's components, ``root_mm`` (3,) the
wrist, ``toolkit_index`` (the frame's number in the toolkit's enumeration of the split, which result files use),
``ycb_ids``, ``T_cam_objects`` (n, 4, 4) mm, and ``seg`` (480, 640) uint8 where asked for (0 background, 1 to 21
object, 255 hand).

Not seen on real files, only described by the toolkit: ``meta.yml`` and ``mano.yml``.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from shared.camera import intrinsics
from shared.datasets.base import Frame
from shared.datasets.images import read_png16, read_rgb
from shared.datasets.labels import require_file
from shared.datasets.side_files import Float, checked_array, file_names, labelled_frames
from shared.errors import DataError, MissingFileError
from shared.safe_io import load_npz

PAGE = "https://dex-ycb.github.io"
SKELETON = "thumb_first"
IMAGE_SIZE = (640, 480)
SUBJECTS = (
    "20200709-subject-01",
    "20200813-subject-02",
    "20200820-subject-03",
    "20200903-subject-04",
    "20200908-subject-05",
    "20200918-subject-06",
    "20200928-subject-07",
    "20201002-subject-08",
    "20201015-subject-09",
    "20201022-subject-10",
)
SERIALS = (
    "836212060125",
    "839512060362",
    "840412060917",
    "841412060263",
    "932122060857",
    "932122060861",
    "932122061900",
    "932122062010",
)
SEQUENCES = 100  # of each subject
MAX_DEPTH_MM = 10_000.0
_open = open  # the built-in; this module's own open() is below


def split_indices(split: str) -> tuple[list[int], list[int], list[int]]:
    """(subjects, cameras, sequences) of a split such as ``"s0_train"``: indices into SUBJECTS, SERIALS and the
    sorted sequences of each subject.

    s0: every fifth sequence is held out, of subjects 1 and 2 for val, of the others for test. s1 holds out subjects, s2
    cameras, s3 objects (the toolkit's rule).

    Raises:
        DataError: there is no split of that name.
    """
    setup, _, part = split.partition("_")
    if setup not in ("s0", "s1", "s2", "s3") or part not in ("train", "val", "test"):
        raise DataError(f"DexYCB has the splits s0 to s3 with _train, _val or _test (s0_train), got {split!r}")
    subjects, cameras, sequences = list(range(10)), list(range(8)), list(range(SEQUENCES))
    if setup == "s0":
        subjects = {"train": subjects, "val": [0, 1], "test": list(range(2, 10))}[part]
        sequences = [i for i in sequences if (i % 5 == 4) == (part != "train")]
    elif setup == "s1":
        subjects = {"train": [0, 1, 2, 3, 4, 5, 9], "val": [6], "test": [7, 8]}[part]
    elif setup == "s2":
        cameras = {"train": [0, 1, 2, 3, 4, 5], "val": [6], "test": [7]}[part]
    else:
        objects = {"train": set(range(20)) - {3, 7, 11, 15, 19}, "val": {3, 19}, "test": {7, 11, 15}}[part]
        sequences = [i for i in sequences if i // 5 in objects]
    return subjects, cameras, sequences


# ------------------------------------------------------------------------------------------------ YAML


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader that also knows ``!!python/tuple`` (as a list) and refuses merge keys.

    The intrinsics have that one tag, at which the safe loader stops. Merge keys are how a few hundred bytes unfold to
    gigabytes while the file is read; aliases alone do not.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys are not read", node.start_mark)


def _python_tuple(loader: _Loader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a python/tuple must be a list", node.start_mark)
    items: list[Any] = loader.construct_sequence(node)
    return items


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _python_tuple)


def _read_yaml(path: str | Path) -> dict[Any, Any]:
    path = require_file(path, page=PAGE)
    with _open(path, "rb") as file:
        data = file.read((1 << 16) + 1)
    if len(data) > 1 << 16:
        raise DataError("expected a small YAML file, it has more than 64 KiB", path=path, remedy=f"see {PAGE}")
    try:
        content = yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"not a YAML file of DexYCB ({reason})", path=path, remedy=f"see {PAGE}") from None
    if not isinstance(content, dict):
        raise DataError(f"expected a YAML mapping, got {type(content).__name__}", path=path)
    return content


@dataclass(frozen=True, slots=True)
class Intrinsics:
    """Pinhole matrices of one camera, pixels of the 640 x 480 pictures.

    Attributes:
        K: (3, 3) of the colour camera, to which depth is aligned.
        K_depth: (3, 3) of the depth camera; None where the file has none.
        extrinsics: (12,) between the two cameras as stored (their meaning is not documented and nothing here uses
            them).
    """

    K: Float
    K_depth: Float | None = None
    extrinsics: Float | None = None


def read_intrinsics(path: str | Path) -> Intrinsics:
    """Reads ``calibration/intrinsics/<serial>_640x480.yml``; its ``!!python/tuple`` is read without running anything.

    Raises:
        MissingFileError, DataError: no such file; other tags, no ``color`` mapping with fx, fy, ppx, ppy, absurd
        numbers.
    """
    content = _read_yaml(path)

    def camera(part: str) -> Float:
        values = content.get(part)
        if not isinstance(values, dict):
            raise DataError(f"expected a mapping {part} with fx, fy, ppx, ppy", path=path)
        numbers = [values.get(key) for key in ("fx", "fy", "ppx", "ppy")]
        fx, fy, cx, cy = checked_array(numbers, (4,), path=path, field=f"{part}: fx, fy, ppx, ppy")
        if fx <= 0 or fy <= 0:
            raise DataError(f"{part}: expected positive focal lengths, got {fx:g} and {fy:g}", path=path)
        return intrinsics(fx, fy, cx, cy)

    extrinsics = content.get("extrinsics")
    return Intrinsics(
        K=camera("color"),
        K_depth=camera("depth") if "depth" in content else None,
        extrinsics=None if extrinsics is None else checked_array(extrinsics, (12,), path=path, field="extrinsics"),
    )


@dataclass(frozen=True, slots=True)
class SequenceMeta:
    """A sequence's ``meta.yml``: cameras, frames per camera, the hand's side and calibration, the objects."""

    serials: tuple[str, ...]
    num_frames: int
    side: Literal["right", "left"]
    mano_calib: str
    ycb_ids: tuple[int, ...] = ()
    ycb_grasp_ind: int | None = None


def read_meta(path: str | Path) -> SequenceMeta:
    """Reads ``meta.yml`` of a sequence.

    Raises:
        MissingFileError, DataError: no such file; a field missing or of another kind, a side that is not right or left.
    """
    content = _read_yaml(path)

    def strings(key: str) -> list[str]:
        value = content.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str | int) for v in value):
            raise DataError(f"{key}: expected a list of names", path=path)
        return [str(v) for v in value]

    side, frames, ids = strings("mano_sides")[0], content.get("num_frames"), content.get("ycb_ids", [])
    if side not in ("right", "left"):
        raise DataError(f"mano_sides: expected right or left, got {side[:20]!r}", path=path)
    if not isinstance(frames, int) or isinstance(frames, bool) or not 0 <= frames <= 1_000_000:
        raise DataError(f"num_frames: expected a number of frames, got {str(frames)[:20]!r}", path=path)
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise DataError("ycb_ids: expected a list of integers", path=path)
    grasp = content.get("ycb_grasp_ind")
    return SequenceMeta(
        serials=tuple(strings("serials")),
        num_frames=frames,
        side="right" if side == "right" else "left",
        mano_calib=strings("mano_calib")[0],
        ycb_ids=tuple(ids),
        ycb_grasp_ind=grasp if isinstance(grasp, int) else None,
    )


def read_betas(path: str | Path) -> Float:
    """The ten shape numbers of ``calibration/mano_<id>/mano.yml``, (10,).

    Raises:
        MissingFileError, DataError: no such file; no ``betas`` of ten numbers.
    """
    return checked_array(_read_yaml(path).get("betas"), (10,), path=path, field="betas")


# ------------------------------------------------------------------------------------------------ one frame


def read_depth(path: str | Path, *, expected_size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """(H, W) float32 depth along z in mm as stored, 0 where nothing was measured; rare junk values reach 65,535.

    Raises:
        MissingFileError, DataError: no such file; not a one-channel 16-bit PNG, damaged, another size.
    """
    return read_png16(path, expected_size=expected_size).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Labels:
    """A ``labels_FFFFFF.npz`` in mm.

    Attributes:
        valid: False where the file has no hand label (joints all -1, pose all 0), which happens with visible hands too.
        joints_mm: (21, 3), order "thumb_first"; None when not valid.
        keypoints_2d: (21, 2) pixels, may lie outside the picture; None when not valid.
        pose_pca: (48,) global rotation and 45 PCA coefficients; None when not valid.
        transl_mm: (3,) added after posing about the model's own origin; None when not valid.
        T_cam_objects: (n, 4, 4) mm, in the order of ``ycb_ids``.
        seg: (H, W) uint8, 0 background, 1 to 21 YCB object, 255 hand.
    """

    valid: bool
    joints_mm: Float | None
    keypoints_2d: Float | None
    pose_pca: Float | None
    transl_mm: Float | None
    T_cam_objects: Float
    seg: NDArray[np.uint8]


def read_labels(path: str | Path) -> Labels:
    """Reads one frame's labels.

    Raises:
        MissingFileError, DataError: no such file; not an npz, an array missing, of another shape or not finite.
    """
    path = require_file(path, page=PAGE)
    arrays = load_npz(path, max_bytes=8 << 20)

    def get(field: str, shape: tuple[int, ...]) -> Float:
        if field not in arrays:
            raise DataError(f"has no array {field}, only {', '.join(arrays)[:200]}", path=path, remedy=f"see {PAGE}")
        return checked_array(arrays[field], shape, path=path, field=field)

    joints, pixels, pose = get("joint_3d", (21, 3)), get("joint_2d", (21, 2)), get("pose_m", (51,))
    seg = arrays.get("seg")
    if seg is None or seg.ndim != 2 or seg.dtype != np.uint8:
        raise DataError("seg: expected a picture of uint8", path=path)
    count = len(arrays["pose_y"]) if "pose_y" in arrays and arrays["pose_y"].ndim else 0
    T_cam_objects = np.tile(np.eye(4), (count, 1, 1))
    T_cam_objects[:, :3] = get("pose_y", (count, 3, 4)) * [1, 1, 1, 1000]
    valid = not (joints == -1).all()
    if valid and (joints[:, 2] <= 0).any():
        raise DataError("joint_3d: joints behind the camera; expected metres with z forward", path=path)
    return Labels(
        valid=valid,
        joints_mm=joints * 1000 if valid else None,
        keypoints_2d=pixels if valid else None,
        pose_pca=pose[:48] if valid else None,
        transl_mm=pose[48:] * 1000 if valid else None,
        T_cam_objects=T_cam_objects,
        seg=seg,
    )


def has_hand(path: str | Path) -> bool:
    """Whether a label file has a hand label: ``read_labels(path).valid``, but unpacking the joints only.

    Raises:
        MissingFileError, DataError: as :func:`read_labels`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("joint_3d.npy")
            stream = io.BytesIO(archive.read(member) if member.file_size < 4096 else b"")
            np.lib.format.read_magic(stream)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            if shape == (1, 21, 3) and not fortran and dtype.kind == "f":
                return not bool((np.frombuffer(stream.read(), dtype, 63) == -1).all())
    except (OSError, LookupError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # the full reader says what is wrong
    return read_labels(path).valid


def pca_to_pose(pose_pca: ArrayLike, hands_components: ArrayLike) -> Float:
    """(..., 48) axis-angle of (..., 48) global rotation and PCA coefficients; the mean pose is **not** added.

    Give the result to a MANO layer of the same side with ``flat_hand_mean=False``.

    Args:
        pose_pca: (..., 48).
        hands_components: (45, 45), one component a row, of the hand model of that side.
    """
    pose = np.array(pose_pca, np.float64)
    components = np.asarray(hands_components, np.float64)
    if pose.shape[-1:] != (48,) or components.shape != (45, 45):
        raise DataError(f"expected a pose (..., 48) and components (45, 45), got {pose.shape} and {components.shape}")
    pose[..., 3:] = pose[..., 3:] @ components
    return pose


# ------------------------------------------------------------------------------------------------ the data set


def open(
    root: str | Path,
    split: str = "s0_train",
    *,
    rgb: bool = True,
    depth: bool = True,
    seg: bool = False,
    sides: tuple[str, ...] = ("right", "left"),
    hands_components: Mapping[str, ArrayLike] | None = None,
    max_depth_mm: float = MAX_DEPTH_MM,
    missing: Literal["skip", "error"] | None = None,
    index: str | Path | None = None,
) -> DexYCB:
    """Opens one split of DexYCB.

    Every frame's labels are read once to find those without a hand, which are skipped and counted. In the whole data
    set that takes minutes: name an ``index`` to keep the answer. The split counts each subject's sorted sequence
    folders, so a part of the data set gives other sequences than the whole; ``summary()`` says when folders are not
    the 100 expected.

    Args:
        root: folder with the subjects' folders and ``calibration/``.
        split: ``s0_train``, ``s0_val``, ... ``s3_test``.
        rgb: decode colour.
        depth: decode depth.
        seg: give the segmentation as ``extra["seg"]``.
        sides: which hands to keep.
        hands_components: (45, 45) PCA components by side, from the MANO files; with them frames have ``extra["pose"]``.
        max_depth_mm: larger depths count as not measured (the sensor's junk).
        missing: skip and count frames that are not on disk (default for train), or stop with an error (default for val
            and test, whose results must not leave frames out).
        index: file that keeps which frames have no label, see :func:`shared.datasets.side_files.labelled_frames`.

    Raises:
        MissingFileError: root, calibration or (``missing="error"``) frames are not there.
        DataError: unknown split or option, damaged meta.yml.
    """
    return DexYCB(Path(root), split, rgb, depth, seg, sides, hands_components, max_depth_mm, missing, index)


class DexYCB:
    """One split of DexYCB by index, in the toolkit's order; see :func:`open`. Frames are read when asked for."""

    skeleton = SKELETON

    def __init__(
        self,
        root: Path,
        split: str,
        rgb: bool,
        depth: bool,
        seg: bool,
        sides: tuple[str, ...],
        hands_components: Mapping[str, ArrayLike] | None,
        max_depth_mm: float,
        missing: str | None,
        index: str | Path | None,
    ) -> None:
        subjects, cameras, sequences = split_indices(split)
        if missing not in (None, "skip", "error"):
            raise DataError(f"missing must be skip or error, got {missing!r}")
        if not sides or not set(sides) <= {"right", "left"}:
            raise DataError(f"sides must be of right and left, got {sides!r}")
        if not root.is_dir():
            raise MissingFileError("no such folder", path=root, remedy=f"unpack DexYCB there; it comes from {PAGE}")
        self.root, self.split, self.rgb, self.depth, self.seg = root, split, rgb, depth, seg
        self.max_depth_mm = max_depth_mm
        self._components = {k: np.asarray(v, np.float64) for k, v in (hands_components or {}).items()}
        kinds = ["labels"] + ["color"] * rgb + ["aligned_depth_to_color"] * depth
        self._sequences: list[tuple[str, SequenceMeta]] = []
        self.partial: dict[str, int] = {}  # subjects whose folder does not hold 100 sequences
        rows: list[tuple[int, int, int, int]] = []  # sequence, camera, frame, number in the toolkit's enumeration
        absent: list[str] = []
        other_side = number = 0
        for subject in (SUBJECTS[i] for i in subjects):
            found = sorted(_folders(root / subject))
            if len(found) != SEQUENCES:
                self.partial[subject] = len(found)
            if not found:
                absent.append(subject)
            for name in (f"{subject}/{found[i]}" for i in sequences if i < len(found)):
                meta = read_meta(root / name / "meta.yml")
                self._sequences.append((name, meta))
                for camera in cameras:
                    folder = root / name / SERIALS[camera]
                    files = file_names(folder)
                    for frame in range(meta.num_frames):
                        lacking = [_file(kind, frame) for kind in kinds if _file(kind, frame) not in files]
                        if meta.side not in sides:
                            other_side += 1
                        elif lacking:
                            absent.append(f"{name}/{SERIALS[camera]}/{lacking[0]}")
                        else:
                            rows.append((len(self._sequences) - 1, camera, frame, number))
                        number += 1
        if absent and ((missing or ("skip" if split.endswith("train") else "error")) == "error" or not rows):
            raise MissingFileError(
                f"{len(absent)} frames or folders of {split} are not there, the first is {absent[0]}",
                path=root,
                remedy=f"unpack all of DexYCB (from {PAGE}) there, or open it with missing='skip'",
            )
        self._rows = np.array(rows, np.int32).reshape(-1, 4)
        labelled = labelled_frames(self.names(), self._is_labelled, index=index)
        self._rows = self._rows[labelled]
        self.enumerated, self.missing, self.other_side = number, len(absent), other_side
        self.unlabelled = int((~labelled).sum())
        # read now, so that a missing calibration is found before the training starts
        used = {self._sequences[i][1].mano_calib for i in np.unique(self._rows[:, 0])}
        self._betas = {c: read_betas(root / "calibration" / f"mano_{c}" / "mano.yml") for c in sorted(used)}
        self._K = {
            int(c): read_intrinsics(root / "calibration" / "intrinsics" / f"{SERIALS[c]}_640x480.yml").K
            for c in np.unique(self._rows[:, 1])
        }

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> list[str]:
        """``subject/sequence/serial/FFFFFF`` in the toolkit's order: subject, sequence, camera, frame."""
        return [f"{self._sequences[s][0]}/{SERIALS[c]}/{f:06d}" for s, c, f, _ in self._rows.tolist()]

    def summary(self) -> str:
        """Frames used and left out, and which subjects' folders are not whole."""
        partial = ", ".join(f"{name[-10:]} {count}" for name, count in self.partial.items() if count)
        gone = sum(not count for count in self.partial.values())
        return (
            f"DexYCB {self.split}: {len(self)} of {self.enumerated} frames, {self.missing} missing on disk, "
            f"{self.unlabelled} without hand label, {self.other_side} of the other hand"
            + (f"; subjects without {SEQUENCES} sequences: {partial or 'none'}, {gone} absent" if self.partial else "")
        )

    def path(self, name: str, kind: Literal["color", "aligned_depth_to_color", "labels"]) -> Path:
        """The file of a frame ``subject/sequence/serial/FFFFFF``."""
        folder, _, frame = name.rpartition("/")
        return self.root / folder / _file(kind, int(frame))

    def labels(self, index: int) -> Frame:
        """The frame without its colour and depth."""
        sequence, camera, frame, number = (int(v) for v in self._rows[index])
        folder, meta = self._sequences[sequence]
        name = f"{folder}/{SERIALS[camera]}/{frame:06d}"
        path = self.path(name, "labels")
        labels = read_labels(path)
        if labels.joints_mm is None or labels.pose_pca is None:
            raise DataError("the label is gone", path=path, remedy="delete the index of unlabelled frames")
        extra: dict[str, Any] = {
            "pose_pca": labels.pose_pca,
            "flat_hand_mean": False,
            "transl_mm": labels.transl_mm,
            "betas": self._betas[meta.mano_calib],
            "root_mm": labels.joints_mm[0],
            "toolkit_index": number,
            "ycb_ids": meta.ycb_ids,
            "T_cam_objects": labels.T_cam_objects,
        }
        if meta.side in self._components:
            extra["pose"] = pca_to_pose(labels.pose_pca, self._components[meta.side])
        if self.seg:
            extra["seg"] = labels.seg
        return Frame(
            name=name,
            image_size=IMAGE_SIZE,
            K=self._K[camera],
            skeleton=SKELETON,
            joints_mm=labels.joints_mm,
            keypoints_2d=labels.keypoints_2d,
            side=meta.side,
            subject=folder.split("/")[0],
            extra=extra,
        )

    def __getitem__(self, index: int) -> Frame:
        frame = self.labels(index)
        rgb = read_rgb(self.path(frame.name, "color"), expected_size=IMAGE_SIZE) if self.rgb else None
        depth_mm = None
        if self.depth:
            depth_mm = read_depth(self.path(frame.name, "aligned_depth_to_color"), expected_size=IMAGE_SIZE)
            depth_mm[depth_mm > self.max_depth_mm] = 0
        return replace(frame, rgb=rgb, depth_mm=depth_mm)

    def _is_labelled(self, name: str) -> bool:
        return has_hand(self.path(name, "labels"))


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []


@cache
def _file(kind: str, frame: int) -> str:
    suffix = {"color": "jpg", "aligned_depth_to_color": "png", "labels": "npz"}[kind]
    return f"{kind}_{frame:06d}.{suffix}"
