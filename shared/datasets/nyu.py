"""NYU hand pose (Tompson et al. 2014): right hands seen by three depth cameras, 640x480, 36 joints (14 are scored).

Public functions:

* :func:`open` -- the frames of a split from one or several cameras, lazily, as :class:`shared.datasets.base.Frame`;
* :func:`read_labels` -- ``joint_data.mat``; :func:`read_depth` -- one depth PNG;
* :func:`rigid_fit`, :func:`rig_poses`, :func:`frame_poses` -- where cameras 2 and 3 stand, from the labels;
* :func:`prepare` -- cuts the hands out of the 640x480 pictures once (``python -m shared.datasets.nyu prepare --root ...
  --out ...``); ``open(store=...)`` then reads one memory-mapped file instead of decoding PNGs.

Layout (also accepted with the folder ``dataset`` above it)::

    train/joint_data.mat   train/depth_{1,2,3}_NNNNNNN.png   72,757 frames a camera, numbered from 1
    test/joint_data.mat    test/depth_{1,2,3}_NNNNNNN.png    8,252 frames a camera

Depth is G * 256 + B of an 8-bit RGB PNG, mm (verified on one real test frame). Everything far is 2001: that is kept,
here and in ``Frame.depth_mm``, because it says that the space in front is empty; 0 is no measurement.
``joint_data.mat`` has ``joint_xyz`` and ``joint_uvd`` (3 cameras, frames, 36, 3), mm with **y up** and pixels; each
camera in its own frame (no file at hand: reported alike by several readers, so the two variables are checked against
each other on opening). A frame whose joints are all 0 has no labels: it is left out and counted.
Intrinsics: the official MATLAB script's, taken for all three cameras (a hypothesis for cameras 2 and 3).

The order of the six joints of a finger in ``nyu36`` is known only from the 14 that are scored. Test frames 1 to 2,440
are subject 1, who is also the training subject; 2,441 to 8,252 subject 2, a smaller hand (verified on the public
labels).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import camera
from shared.datasets.base import Frame
from shared.datasets.centers import centers_for
from shared.datasets.images import read_rgb
from shared.datasets.labels import find_folder, require_file
from shared.datasets.matlab import read_array
from shared.datasets.rows import Selection, skipped_text
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.safe_io import atomic_path, atomic_write_text
from shared.skeletons import order

PAGE = "https://jonathantompson.github.io/NYU_Hand_Pose_Dataset.htm"
SIZE = (640, 480)
K = camera.intrinsics(588.036865, 587.075073, 320, 240)
FAR_MM = 2001
PALM = 32  # of the 36 joints: PALM_3, the middle of the palm, where crops are centred
SUBJECT_2_FROM = 2441  # number of the first test frame of the second subject
STORE_VERSION = 1

Split = Literal["train", "test"]
Joints = Literal["nyu14", "nyu36"]
_MAX_FRAMES = 100_000
_MAX_MAT_BYTES = 2 * _MAX_FRAMES * 3 * 36 * 3 * 8 + 2**20  # both variables and the joints' names, uncompressed
_MAX_DISAGREEMENT_PX = 2.0


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """(480, 640) float32 mm, as stored: 2001 where the scene is far, 0 (rare) where nothing was measured.

    Raises:
        DataError: not an 8-bit RGB picture of 640x480, or damaged.
    """
    rgb = read_rgb(path, expected_size=SIZE, any_mode=False)
    return (rgb[..., 1].astype(np.uint16) << 8 | rgb[..., 2]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Labels:
    """``joint_data.mat``.

    Attributes:
        xyz_mm: (3, n, 36, 3) float64, each camera's own frame in OpenCV axes (y turned down), mm.
        uvd: (3, n, 36, 3) float64 pixels, pixels, mm as stored.
    """

    xyz_mm: NDArray[np.float64]
    uvd: NDArray[np.float64]


def read_labels(path: str | Path) -> Labels:
    """The labels of all three cameras.

    Raises:
        MissingFileError: there is no such file.
        DataError: not a MATLAB 5 file, a variable is missing or has another shape, a value is not finite, or
            ``joint_uvd`` is not the projection of ``joint_xyz`` (median distance above 2 pixels in some camera, over
            the joints that have a depth).
    """
    path = Path(path)
    xyz, uvd = (read_array(path, name, max_bytes=_MAX_MAT_BYTES) for name in ("joint_xyz", "joint_uvd"))
    shape = xyz.shape
    right = len(shape) == 4 and (shape[0], *shape[2:]) == (3, 36, 3) and 0 < shape[1] <= _MAX_FRAMES
    if not right or uvd.shape != shape:
        raise DataError(
            f"expected joint_xyz and joint_uvd of shape (3, frames, 36, 3), got {shape} and {uvd.shape}", path=path
        )
    xyz, uvd = np.ascontiguousarray(xyz), np.ascontiguousarray(uvd)
    for name, array in (("joint_xyz", xyz), ("joint_uvd", uvd)):
        if not np.isfinite(array).all():
            raise DataError(f"{name}: expected finite numbers", path=path)
    xyz[..., 1] *= -1
    _check_projection(path, xyz, uvd)
    return Labels(xyz, uvd)


def _check_projection(path: Path, xyz: NDArray[np.float64], uvd: NDArray[np.float64]) -> None:
    """Refuses labels whose two variables disagree: another y axis, camera order or unit would pass unnoticed."""
    step = max(1, xyz.shape[1] // 2000)
    for view in range(3):
        points, pixels = xyz[view, ::step], uvd[view, ::step]
        uv = camera.project(points, K, check_depth=False)
        each = np.linalg.norm(uv - pixels[..., :2], axis=-1)
        each = each[~np.isnan(each)]  # frames without labels are 0 0 0
        distance = float(np.median(each)) if each.size else np.nan
        if not distance <= _MAX_DISAGREEMENT_PX:
            raise DataError(
                f"camera {view + 1}: joint_uvd and the projection of joint_xyz are {distance:.1f} pixels apart "
                f"(median), expected below {_MAX_DISAGREEMENT_PX:g}",
                path=path,
                remedy="is this the official file (y up, mm, one frame of reference per camera)?",
            )


def labelled(xyz_mm: ArrayLike) -> NDArray[np.bool_]:
    """Which skeletons (..., P, 3) are there: those whose joints are not all 0 0 0, shape (...)."""
    return np.asarray(np.asarray(xyz_mm).any((-2, -1)))


def rigid_fit(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """T (..., 4, 4) of the rotation and translation that move ``source`` (..., P, 3) best onto ``target`` (..., P, 3).

    Least squares (Kabsch 1976), never a reflection; the translation is in the last column, so T @ (x, y, z, 1).
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim < 2 or a.shape[-1] != 3 or a.shape[-2] < 3:
        raise DataError(f"expected two arrays (..., P, 3) with P >= 3, got {a.shape} and {b.shape}")
    mean_a, mean_b = a.mean(-2, keepdims=True), b.mean(-2, keepdims=True)
    u, _, vt = np.linalg.svd(np.swapaxes(b - mean_b, -1, -2) @ (a - mean_a))
    sign = np.ones((*a.shape[:-2], 3))
    sign[..., 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[..., None, :]) @ vt
    T = np.zeros((*a.shape[:-2], 4, 4))
    T[..., :3, :3] = rotation
    T[..., :3, 3] = (mean_b - mean_a @ np.swapaxes(rotation, -1, -2))[..., 0, :]
    T[..., 3, 3] = 1
    return T


def rig_poses(xyz_mm: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One calibration of the rig from labels (3, n, 36, 3): all joints of all labelled frames at once.

    Returns:
        T_cam1_cam: (3, 4, 4), maps points of each camera's frame to camera 1's; the first is the identity.
        rms_mm: (3,) root mean square distance left. Large values mean that the cameras moved: use :func:`frame_poses`.
    """
    xyz = np.asarray(xyz_mm, np.float64)
    points = xyz[:, labelled(xyz).all(0)].reshape(3, -1, 3)
    T = rigid_fit(points, np.broadcast_to(points[:1], points.shape))
    T[0] = np.eye(4)
    moved = points @ np.swapaxes(T[:, :3, :3], 1, 2) + T[:, None, :3, 3]
    return T, np.sqrt(((moved - points[0]) ** 2).sum(-1).mean(-1))


def frame_poses(xyz_mm: ArrayLike) -> NDArray[np.float64]:
    """T_cam1_cam (3, n, 4, 4) fitted to every frame by itself, as sphereHand's converter does; labels (3, n, 36, 3)."""
    xyz = np.asarray(xyz_mm, np.float64)
    T = rigid_fit(xyz, np.broadcast_to(xyz[:1], xyz.shape))
    T[0] = np.eye(4)
    return T


@dataclass(eq=False)
class NyuDataset:
    """The frames of one split; see :func:`open`. Pictures are read by index and nothing of them is kept.

    Attributes:
        folder: where the PNGs are; None when a store is read.
        split: which one.
        cameras: numbers (1 to 3) of the cameras in use; ``dataset[i]`` is the first one's picture.
        numbers: (n,) frame numbers, from 1.
        skeleton: ``"nyu14"`` or ``"nyu36"``.
        joints_mm: (n, J, 3) of the first camera, its own frame, mm.
        xyz36_mm: (C, n, 36, 3) all joints of the cameras in use, each in its own frame.
        uvd36: (C, n, 36, 3) pixels, pixels, mm.
        centers_mm: (n, 3) of the centre file (camera 1), or None.
        T_cam1_cam: (C, 4, 4) one pose a camera in use, from the labels of all frames of the split.
        rig_rms_mm: (C,) what that fit leaves.
        store: the prepared crops, or None.
        skipped: reason -> frame names that were left out.
    """

    folder: Path | None
    split: str
    cameras: tuple[int, ...]
    numbers: NDArray[np.int64]
    skeleton: str
    xyz36_mm: NDArray[np.float64]
    uvd36: NDArray[np.float64]
    centers_mm: NDArray[np.float64] | None
    T_cam1_cam: NDArray[np.float64]
    rig_rms_mm: NDArray[np.float64]
    store: Store | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)

    joints_mm: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self._chosen = order("nyu36", self.skeleton)
        self.joints_mm = self.xyz36_mm[0][:, self._chosen]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Frame:
        """The frame of the first camera; ``extra`` has ``camera``, ``number`` and ``T_cam1_cam`` (4, 4)."""
        return self._frame(index, 0)

    def views(self, index: int) -> tuple[Frame, ...]:
        """The same moment from every camera in use, in the order of ``cameras``."""
        return tuple(self._frame(index, view) for view in range(len(self.cameras)))

    def _frame(self, index: int, view: int) -> Frame:
        number, cam = int(self.numbers[index]), self.cameras[view]
        name = f"{self.split}/{_file_name(cam, number)}".removesuffix(".png")
        crop_xy = (0, 0)
        if self.store is not None:
            depth, crop_xy = self.store.read(cam, number)
        else:
            assert self.folder is not None
            depth = read_depth(self.folder / _file_name(cam, number))
        center = None
        if self.centers_mm is not None and cam == 1:
            center = self.centers_mm[index].copy()
        return Frame(
            name=name,
            image_size=SIZE,
            K=K.copy(),
            skeleton=self.skeleton,
            depth_mm=depth,
            crop_xy=crop_xy,
            joints_mm=self.xyz36_mm[view, index, self._chosen],
            keypoints_2d=self.uvd36[view, index, self._chosen, :2],
            center_mm=center,
            subject="2" if self.split == "test" and number >= SUBJECT_2_FROM else "1",
            extra={"camera": cam, "number": number, "T_cam1_cam": self.T_cam1_cam[view].copy()},
        )

    def names(self) -> list[str]:
        cam = self.cameras[0]
        return [f"{self.split}/{_file_name(cam, int(n))}".removesuffix(".png") for n in self.numbers]

    def summary(self) -> str:
        cams = "+".join(map(str, self.cameras))
        source = "" if self.store is None else f" from the store {self.store.folder}"
        rig = "" if len(self.cameras) == 1 else f", rig fitted to {self.rig_rms_mm.max():.2f} mm rms"
        skipped = skipped_text(self.skipped)
        return f"NYU {self.split}: {len(self)} frames, camera {cams}, {self.skeleton}{source}{rig}{skipped}"


def _file_name(cam: int, number: int) -> str:
    return f"depth_{cam}_{number:07d}.png"


def _check_options(split: str, cameras: Sequence[int]) -> None:
    if split not in ("train", "test"):
        raise DataError(f"split: expected train or test, got {split!r}")
    if not cameras or len(set(cameras)) != len(cameras) or not set(cameras) <= {1, 2, 3}:
        raise DataError(f"cameras: expected different numbers out of 1, 2, 3, got {tuple(cameras)}")


def _find(root: str | Path, split: str) -> Path:
    return find_folder(root, (split, f"dataset/{split}", f"NYU/{split}", f"NYU/dataset/{split}"), what="NYU", page=PAGE)


def open(
    root: str | Path | None,
    split: Split,
    *,
    cameras: Sequence[int] = (1,),
    joints: Joints = "nyu14",
    centers: str | Path | None = None,
    store: str | Path | None = None,
) -> NyuDataset:
    """The frames of a split of which every camera in use has its picture and labels; others are skipped and counted.

    Args:
        root: the folder with ``train`` and ``test``, or the one above it. None when ``store`` is given, which has the
            labels too.
        split: ``train`` or ``test``.
        cameras: 1 is the frontal one, the only one with published results.
        joints: the 14 scored joints, or all 36.
        centers: a V2V-PoseNet centre file (camera 1), or the folder with ``center_train_refined.txt`` and
            ``center_test_refined.txt``: one line per labelled frame. Frames it calls invalid are skipped.
        store: the output folder of :func:`prepare`; depth is then a crop (``Frame.crop_xy``).

    Raises:
        MissingFileError: a folder, the label file, the store or every picture is missing; says where it was looked for.
        DataError: options, a damaged label file, centres of another length, or an unfinished or foreign store.
    """
    _check_options(split, cameras)
    if joints not in ("nyu14", "nyu36"):
        raise DataError(f"joints: expected nyu14 or nyu36, got {joints!r}")
    folder, opened = None, None
    if store is not None:
        opened = Store.load(Path(store) / split, cameras)
        labels = opened.labels()
    elif root is None:
        raise DataError("root: expected the data set's folder, got None", remedy="only a store can do without")
    else:
        folder = _find(root, split)
        labels = read_labels(require_file(folder / "joint_data.mat", what="NYU labels", page=PAGE))
    count = labels.xyz_mm.shape[1]
    center = centers_for(centers, f"center_{split}_refined.txt", count, y_up=True)

    first = [_file_name(cameras[0], n) for n in range(1, count + 1)]
    selection = Selection([f"{split}/{name}".removesuffix(".png") for name in first])
    use = [cam - 1 for cam in cameras]
    selection.drop("frames without labels", np.asarray(~labelled(labels.xyz_mm[use]).all(0)))
    if center is not None:
        selection.drop("frames without a centre", ~center[1])
    if opened is not None:
        selection.drop("frames that are not in the store", ~opened.has(cameras))
    else:
        assert folder is not None
        for cam in cameras:
            files = [_file_name(cam, n) for n in range(1, count + 1)]
            reason = "" if len(cameras) == 1 else f" of camera {cam}"
            selection.drop_missing(folder, files, page=PAGE, reason=f"missing pictures{reason}")
    chosen = np.flatnonzero(selection.keep)
    poses, rms = rig_poses(labels.xyz_mm)
    return NyuDataset(
        folder=folder,
        split=split,
        cameras=tuple(cameras),
        numbers=chosen + 1,
        skeleton=joints,
        xyz36_mm=labels.xyz_mm[use][:, chosen],
        uvd36=labels.uvd[use][:, chosen],
        centers_mm=None if center is None else center[0][chosen],
        T_cam1_cam=poses[use],
        rig_rms_mm=rms[use],
        store=opened,
        skipped=selection.skipped,
    )


# --- the store: hands cut out once ------------------------------------------------------------------------------------
#
# <out>/<split>/plan.json      options and counts; a later run must agree with it to continue
#               index.npy      (frames * cameras, 5) int64: offset in values, left, top, width, height
#               xyz_mm.npy uvd.npy   the labels of all three cameras
#               depth.u16      little-endian uint16 mm, crop after crop; made in its final size at once
#               status.u8      one byte a crop: 0 to do, 1 stored, 2 no picture, 3 damaged picture
#               manifest.json  written last; without it the store is unfinished
#
# A crop is the rectangle of pixels that a cube of ``cube_mm`` around the palm joint covers, as stored in the PNG:
# nothing is resampled, so a method can choose centres, cubes and augmentation later. 340 mm hold V2V-PoseNet's cube of
# 250 mm at its smallest augmentation scale 0.8 (313 mm) and the 300 mm of the fitting method. The rectangles follow
# from the labels alone; that is why workers can write into one file without waiting for each other.

_TODO, _STORED, _MISSING, _DAMAGED, _OUTSIDE = range(5)
_STATUS_NAMES = {_MISSING: "missing pictures", _DAMAGED: "damaged pictures", _OUTSIDE: "hands outside the picture"}
_SHARD = 256  # crops a worker writes before it marks them as done


@dataclass(frozen=True)
class Plan:
    """What a store holds."""

    version: int
    split: str
    frames: int
    cameras: tuple[int, ...]
    cube_mm: float
    values: int  # uint16 numbers in depth.u16


class Store:
    """Crops of one split, memory-mapped; opened once in every process that reads it, so it can be pickled."""

    def __init__(self, folder: Path, plan: Plan, index: NDArray[np.int64], status: NDArray[np.uint8]) -> None:
        self.folder, self.plan, self.index, self.status = folder, plan, index, status
        self._depth: np.memmap[Any, np.dtype[np.uint16]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_depth": None}  # a pickled memmap would be a copy of the whole file

    @classmethod
    def load(cls, folder: Path, cameras: Sequence[int]) -> Store:
        """Checks and opens a finished store that has these cameras."""
        remedy = f"python -m shared.datasets.nyu prepare --root <data set> --out {folder.parent} --splits {folder.name}"
        for name in ("manifest.json", "index.npy", "status.u8", "depth.u16", "xyz_mm.npy", "uvd.npy"):
            if not (folder / name).is_file():
                raise MissingFileError("missing from the store, or the store is not finished", path=folder / name,
                                       remedy=f"run or rerun: {remedy}")  # fmt: skip
        plan = _read_plan(folder / "manifest.json")
        if not set(cameras) <= set(plan.cameras):
            raise DataError(f"the store has camera {plan.cameras}, asked for {tuple(cameras)}", path=folder,
                            remedy=f"prepare another one: {remedy} --cameras ...")  # fmt: skip
        crops = plan.frames * len(plan.cameras)
        index = _load_array(folder / "index.npy", (crops, 5), np.dtype(np.int64))
        status = np.fromfile(folder / "status.u8", np.uint8)
        size = (folder / "depth.u16").stat().st_size
        ends = index[:, 0] + index[:, 3] * index[:, 4]
        inside = (index >= 0).all() and (ends <= plan.values).all()
        if size != 2 * plan.values or len(status) != crops or not inside:
            raise DataError(
                f"damaged store: depth.u16 has {size} bytes and status.u8 {len(status)}, expected {2 * plan.values} "
                f"and {crops}",
                path=folder,
                remedy=f"delete it and prepare it again: {remedy}",
            )
        return cls(folder, plan, index, status)

    def labels(self) -> Labels:
        shape = (3, self.plan.frames, 36, 3)
        xyz, uvd = (_load_array(self.folder / f"{n}.npy", shape, np.dtype(np.float64)) for n in ("xyz_mm", "uvd"))
        return Labels(xyz, uvd)

    def has(self, cameras: Sequence[int]) -> NDArray[np.bool_]:
        """(frames,) bool: stored for every one of the cameras."""
        stored = (self.status == _STORED).reshape(self.plan.frames, -1)
        kept: NDArray[np.bool_] = stored[:, [self.plan.cameras.index(cam) for cam in cameras]].all(1)
        return kept

    def read(self, cam: int, number: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """The crop (h, w) float32 mm and its (left, top) in the full picture."""
        if self._depth is None:
            self._depth = np.memmap(self.folder / "depth.u16", "<u2", "r")
        row = (number - 1) * len(self.plan.cameras) + self.plan.cameras.index(cam)
        offset, left, top, width, height = self.index[row].tolist()
        crop = self._depth[offset : offset + width * height].reshape(height, width)
        return crop.astype(np.float32), (left, top)


def _load_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"damaged ({error})", path=path, remedy="prepare the store again") from None
    if array.shape != shape or array.dtype != dtype:
        raise DataError(f"expected {dtype} {shape}, got {array.dtype} {array.shape}", path=path,
                        remedy="prepare the store again")  # fmt: skip
    return np.array(array)


def _read_plan(path: Path) -> Plan:
    remedy = "prepare the store again"
    try:
        if path.stat().st_size > 10_000:
            raise ValueError("too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["version"]
        plan = Plan(**{**{k: content[k] for k in Plan.__dataclass_fields__}, "cameras": tuple(content["cameras"])})
        valid = isinstance(plan.frames, int) and isinstance(plan.values, int) and 0 < plan.frames <= _MAX_FRAMES
        if not valid or not set(plan.cameras) <= {1, 2, 3}:
            raise ValueError("absurd counts")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not a manifest of a store ({error})", path=path, remedy=remedy) from None
    if version != STORE_VERSION:
        raise DataError(f"store version {version}, this program reads {STORE_VERSION}", path=path, remedy=remedy)
    return plan


def crop_rectangles(center_mm: NDArray[np.float64], cube_mm: float) -> NDArray[np.int64]:
    """left, top, width, height (n, 4): the pixels that a cube around each centre (n, 3) covers, clipped to the picture.

    Both the near and the far face are projected: off the axis the far one reaches further in. Width and height are 0
    where that is outside the picture or behind the camera.
    """
    half = cube_mm / 2
    depths = np.maximum(center_mm[:, 2:] + [-half, half], 1.0)[..., None]  # (n, 2, 1): near, far
    scale, middle = [K[0, 0], K[1, 1]], [K[0, 2], K[1, 2]]
    first = ((center_mm[:, None, :2] - half) / depths * scale + middle).min(1)
    last = ((center_mm[:, None, :2] + half) / depths * scale + middle).max(1)
    low, high = np.clip(np.floor(first), 0, SIZE), np.clip(np.ceil(last) + 1, 0, SIZE)
    extent = np.where((center_mm[:, 2:] > 0) & ((high - low).min(1, keepdims=True) > 0), high - low, 0)
    return np.concatenate([low, extent], 1).astype(np.int64)


def prepare(
    root: str | Path,
    out: str | Path,
    splits: Sequence[Split] = ("train", "test"),
    *,
    cameras: Sequence[int] = (1, 2, 3),
    cube_mm: float = 340.0,
    jobs: int | None = None,
    progress: bool = True,
) -> None:
    """Cuts the hands out of the depth PNGs once, in several processes; a rerun continues an interrupted one.

    Decoding a PNG takes tens of times as long as reading its crop from the store. Space: about 0.25 MB a crop, so
    18 GB a camera for the training split (``depth.u16`` has its final size from the start).

    Args:
        root: as in :func:`open`.
        out: receives one folder per split.
        splits: which ones.
        cameras: which ones.
        cube_mm: side of the cube around the annotated palm joint whose pixels are kept.
        jobs: processes; default as many as there are cores, at most 16.
        progress: draw a bar on stderr.

    Raises:
        DataError: what :func:`open` refuses; ``out`` has a store made with other options or from other labels.
    """
    for split in splits:
        _check_options(split, cameras)
        if not 50 <= cube_mm <= 2000:
            raise DataError(f"cube_mm: expected 50 to 2000, got {cube_mm}")
        folder = _find(root, split)
        labels = read_labels(require_file(folder / "joint_data.mat", what="NYU labels", page=PAGE))
        _prepare_split(folder, Path(out) / split, split, labels, tuple(cameras), float(cube_mm), jobs, progress)


def _prepare_split(
    source: Path,
    target: Path,
    split: str,
    labels: Labels,
    cameras: tuple[int, ...],
    cube_mm: float,
    jobs: int | None,
    progress: bool,
) -> None:
    use = [cam - 1 for cam in cameras]
    frames = labels.xyz_mm.shape[1]
    boxes = crop_rectangles(labels.xyz_mm[use, :, PALM].swapaxes(0, 1).reshape(-1, 3), cube_mm)
    areas = boxes[:, 2] * boxes[:, 3]
    index = np.concatenate([(np.cumsum(areas) - areas)[:, None], boxes], 1)
    plan = Plan(STORE_VERSION, split, frames, cameras, cube_mm, int(areas.sum()))
    target.mkdir(parents=True, exist_ok=True)
    if (target / "plan.json").is_file():
        old = _read_plan(target / "plan.json")
        same = old == plan and np.array_equal(_load_array(target / "index.npy", index.shape, index.dtype), index)
        if not same:
            raise DataError(f"holds a store of {old}, asked for {plan}", path=target,
                            remedy="choose another --out, or delete it")  # fmt: skip
    else:
        for name, array in (("index", index), ("xyz_mm", labels.xyz_mm), ("uvd", labels.uvd)):
            with atomic_path(target / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, array)
        for name, size in (("depth.u16", 2 * plan.values), ("status.u8", len(index))):
            with (target / name).open("wb") as file:
                file.truncate(size)
        atomic_write_text(target / "plan.json", json.dumps(asdict(plan)))

    status = np.fromfile(target / "status.u8", np.uint8)
    if len(status) != len(index) or (target / "depth.u16").stat().st_size != 2 * plan.values:
        raise DataError("damaged store: depth.u16 or status.u8 has another size than planned", path=target,
                        remedy="delete it and prepare it again")  # fmt: skip
    # what was missing or damaged may have been repaired since, so it is tried again
    todo = np.flatnonzero(~np.isin(status, (_STORED, _OUTSIDE)))
    shards = [todo[i : i + _SHARD] for i in range(0, len(todo), _SHARD)]
    tasks = [(source, target, cameras, shard, index[shard]) for shard in shards]
    jobs = min(jobs or os.cpu_count() or 1, 16, max(1, len(shards)))
    with _bar(len(index), len(index) - len(todo), split, progress) as bar:
        if jobs == 1:
            for task in tasks:
                bar.update(_write_shard(task))
        else:
            with ProcessPoolExecutor(jobs) as pool:
                for done in pool.map(_write_shard, tasks):
                    bar.update(done)
    status = np.fromfile(target / "status.u8", np.uint8)
    counts = {text: int((status == code).sum()) for code, text in _STATUS_NAMES.items()}
    atomic_write_text(target / "manifest.json", json.dumps(asdict(plan) | {"skipped": counts}, indent=1))
    skipped = "".join(f", {number} {text}" for text, number in counts.items() if number)
    print(f"NYU {split}: {int((status == _STORED).sum())} crops stored in {target}{skipped}", file=sys.stderr)


def _bar(total: int, done: int, split: str, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=f"NYU {split}", unit="crop", disable=not progress)


def _write_shard(task: tuple[Path, Path, tuple[int, ...], NDArray[np.int64], NDArray[np.int64]]) -> int:
    """Writes the crops of some rows, then marks them: a crop is marked only when its values are on disk."""
    source, target, cameras, rows, index = task
    status = np.empty(len(rows), np.uint8)
    with (target / "depth.u16").open("r+b") as file:
        for i, (row, (offset, left, top, width, height)) in enumerate(zip(rows.tolist(), index.tolist(), strict=True)):
            if width * height == 0:
                status[i] = _OUTSIDE
                continue
            path = source / _file_name(cameras[row % len(cameras)], row // len(cameras) + 1)
            try:
                depth = read_depth(path)
            except MissingFileError:
                status[i] = _MISSING
                continue
            except DataError as error:
                print(f"skipped: {error}", file=sys.stderr)
                status[i] = _DAMAGED
                continue
            file.seek(2 * offset)
            file.write(depth[top : top + height, left : left + width].astype("<u2").tobytes())
            status[i] = _STORED
        file.flush()
        os.fsync(file.fileno())
    with (target / "status.u8").open("r+b") as file:
        for row, code in zip(rows.tolist(), status.tolist(), strict=True):
            file.seek(row)
            file.write(bytes([code]))
    return len(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ``prepare`` is its only command."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m shared.datasets.nyu", description="NYU hand pose data set")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare", help="cut the hands out of the depth pictures once; a rerun continues")
    command.add_argument("--root", required=True, help="the folder with train and test, or the one above it")
    command.add_argument("--out", required=True, help="receives one folder per split")
    command.add_argument("--splits", nargs="+", default=["train", "test"], choices=["train", "test"])
    command.add_argument("--cameras", nargs="+", type=int, default=[1, 2, 3], choices=[1, 2, 3])
    command.add_argument("--cube-mm", type=float, default=340.0, help="cube around the palm that is kept (%(default)s)")
    command.add_argument("--jobs", type=int, help="processes (default: the cores, at most 16)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    prepare(args.root, args.out, args.splits, cameras=args.cameras, cube_mm=args.cube_mm, jobs=args.jobs,
            progress=not args.quiet)  # fmt: skip
    return 0


if __name__ == "__main__":
    exit_on_error(main)
