"""STB, the stereo tracking benchmark: 18,000 stereo pairs and as many RGB-D pairs of one left hand.

- ``open(root, split, camera=..., root_joint=...)`` -> :class:`Stb`: frames of one of the four cameras, by index.
- ``read_labels(path)`` -> (n, 21, 3) mm: one ``<SEQ>_BB.mat`` or ``<SEQ>_SK.mat``.
- ``read_depth(path)`` -> (480, 640) float32 mm: one ``SK_depth_<n>.png``.
- ``depth_to_color(points_mm)``, ``left_to_right(points_mm)``: the rigid transforms between the cameras.
- ``palm_to_wrist(joints_mm, factor)``: the wrist that readers extrapolate.

Layout (official readme; nothing was checked on real bytes): ``labels/<SEQ>_{BB,SK}.mat`` and
``images/<SEQ>/{BB_left,BB_right,SK_color,SK_depth}_<n>.png``; SEQ is B1..B6 times Counting, Random; n is 0..1499
without padding. Sequence folders directly below the root, as some tools unpack them, are read too. B1 is the test
set, B2 to B6 are training (the split of hand3d and bihand).

``handPara`` is (3, 21, n) in mm: BB in the left camera of the pair, SK in the **depth** camera, x right, y down, z
forward. Order ``stb``: palm centre (not wrist), then little, ring, middle, index, thumb from base to tip. The
readme's rotation and translation take colour-camera coordinates to the depth camera, so colour = R^T (depth - t);
users have read it the other way round as well, so this direction is a hypothesis until real pictures confirm it.

Wrist: not labelled. ``root_joint="wrist"`` replaces the palm by ``middle_mcp + factor * (palm - middle_mcp)`` and
hands out ``thumb_first`` order; the factor is 2.0 in hand3d (default), 2.2 in bihand.
Page: https://github.com/zhjwustc/icip17_stereo_hand_pose_dataset
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.camera import intrinsics, rotvec_to_rotmat
from shared.datasets.base import Frame
from shared.datasets.images import read_rgb
from shared.datasets.labels import find_folder, one_of
from shared.datasets.matlab import read_array
from shared.errors import DataError, MissingFileError

PAGE = "https://github.com/zhjwustc/icip17_stereo_hand_pose_dataset"
SPLITS = ("train", "test")
SEQUENCES = {
    "train": tuple(f"B{i}{kind}" for i in range(2, 7) for kind in ("Counting", "Random")),
    "test": ("B1Counting", "B1Random"),
}
IMAGE_SIZE = (640, 480)
BASELINE_MM = 120.054
Camera = Literal["BB_left", "BB_right", "SK_color", "SK_depth"]


_K_BB = intrinsics(822.79041, 822.79041, 318.47345, 250.31296)
K = {
    "BB_left": _K_BB,
    "BB_right": _K_BB,
    "SK_color": intrinsics(607.92271, 607.88192, 314.78337, 236.42484),
    "SK_depth": intrinsics(475.62768, 474.77709, 336.41179, 238.77962),
}
_TRANSLATION_MM = np.array([-24.0381, -0.4563, -1.2326])
_TO_THUMB_FIRST = [0, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4]
_PALM, _MIDDLE_MCP = 0, 9


R_DEPTH_COLOR = rotvec_to_rotmat([0.00531, -0.01196, 0.00301])


def depth_to_color(points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 3) of the SK depth camera in the SK colour camera, mm: R^T (x - t)."""
    result: NDArray[np.float64] = (points_mm - _TRANSLATION_MM) @ R_DEPTH_COLOR
    return result


def color_to_depth(points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 3) of the SK colour camera in the SK depth camera, mm: R x + t, as the readme gives it."""
    result: NDArray[np.float64] = points_mm @ R_DEPTH_COLOR.T + _TRANSLATION_MM
    return result


def left_to_right(points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 3) of the left BB camera in the right one, mm: x - baseline."""
    result: NDArray[np.float64] = points_mm - np.array([BASELINE_MM, 0.0, 0.0])
    return result


def palm_to_wrist(joints_mm: NDArray[np.float64], factor: float = 2.0) -> NDArray[np.float64]:
    """``stb`` joints (..., 21, 3) with the palm moved to the extrapolated wrist.

    wrist = middle_mcp + factor * (palm - middle_mcp): 2.0 is hand3d's factor, 2.2 bihand's; 1.0 leaves the palm.
    """
    joints = joints_mm.copy()
    base = joints[..., _MIDDLE_MCP, :]
    joints[..., _PALM, :] = base + factor * (joints[..., _PALM, :] - base)
    return joints


def read_labels(path: str | Path) -> NDArray[np.float64]:
    """``handPara`` of one label file as (n, 21, 3) float64 mm, order ``stb``.

    Raises:
        MissingFileError: there is no such file.
        DataError: not a MATLAB 5 file with a finite numeric ``handPara`` of shape (3, 21, n).
    """
    values = read_array(path, "handPara")
    if values.ndim != 3 or values.shape[:2] != (3, 21) or values.shape[2] == 0:
        raise DataError(
            f"expected handPara of shape (3, 21, n), got {values.shape}", path=path, remedy=f"official labels: {PAGE}"
        )
    if not np.isfinite(values).all():
        raise DataError("handPara holds values that are not finite", path=path)
    return np.ascontiguousarray(values.transpose(2, 1, 0))


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """One ``SK_depth_<n>.png``: (480, 640) float32 mm, 0 where nothing was measured. Depth is R + 256 G."""
    rgb = read_rgb(path, expected_size=IMAGE_SIZE, any_mode=False)
    # wide type first: with NumPy 2 uint8 * 256 raises OverflowError
    return (rgb[..., 0].astype(np.uint16) | rgb[..., 1].astype(np.uint16) << 8).astype(np.float32)


def open(
    root: str | Path,
    split: Literal["train", "test"] = "train",
    *,
    camera: Camera = "BB_left",
    root_joint: Literal["palm", "wrist"] = "palm",
    wrist_factor: float = 2.0,
) -> Stb:
    """The frames of one camera below ``root`` (the folder with ``labels/``).

    Args:
        root: the folder that holds ``labels/`` and ``images/`` (or the sequence folders themselves).
        split: ``"train"`` is B2 to B6, ``"test"`` is B1.
        camera: whose pictures, and in whose frame the joints are. ``SK_depth`` has depth and no colour.
        root_joint: ``"palm"`` as labelled (skeleton ``stb``) or ``"wrist"`` extrapolated (skeleton ``thumb_first``).
        wrist_factor: see :func:`palm_to_wrist`; used with ``"wrist"`` only.

    Raises:
        MissingFileError: no ``labels`` folder, or no frame of the split is here.
        DataError: an unknown split, camera or root joint, or a label file that cannot be used.
    """
    one_of(split=(split, SPLITS), camera=(camera, tuple(K)), root_joint=(root_joint, ("palm", "wrist")))
    root = find_folder(root, ["labels", "STB/labels", "stb/labels"], what="STB", page=PAGE).parent
    return Stb(root, split, camera, root_joint, wrist_factor)


class Stb:
    """A sequence of :class:`~shared.datasets.base.Frame`; pictures are decoded when a frame is asked for."""

    def __init__(self, root: Path, split: str, camera: Camera, root_joint: str, wrist_factor: float) -> None:
        self.root, self.split, self.camera = root, split, camera
        self.root_joint, self.wrist_factor = root_joint, wrist_factor
        self.skeleton = "stb" if root_joint == "palm" else "thumb_first"
        self.without_pictures: list[str] = []
        self.without_labels: list[str] = []
        self.missing_images = 0
        self._frames: list[tuple[str, int]] = []  # folder below root, n
        joints = []
        for sequence in SEQUENCES[split]:
            label = root / "labels" / f"{sequence}_{camera[:2]}.mat"
            folder = next((f for f in (f"images/{sequence}", sequence) if (root / f).is_dir()), None)
            if folder is None:
                self.without_pictures.append(sequence)
                continue
            if not label.is_file():
                self.without_labels.append(label.name)
                continue
            labels = read_labels(label)
            pattern = re.compile(rf"{camera}_(\d{{1,6}})\.png")
            here = sorted(int(m[1]) for entry in (root / folder).iterdir() if (m := pattern.fullmatch(entry.name)))
            if here and here[-1] >= len(labels):
                raise DataError(
                    f"picture {camera}_{here[-1]}.png has no label: {label.name} has {len(labels)} frames",
                    path=root / folder,
                    remedy="labels and pictures come from different downloads: unpack both again",
                )
            self.missing_images += len(labels) - len(here)
            self._frames += [(folder, n) for n in here]
            joints.append(labels[here])
        if not self._frames:
            raise MissingFileError(
                f"no {camera} frame of the {split} split{self._missing() or '; no pictures'}",
                path=root,
                remedy=f"download: {PAGE}",
            )
        self.joints_mm = self._to_camera(np.concatenate(joints))  # (n, 21, 3) in the camera's frame and order

    def _to_camera(self, joints_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.camera == "BB_right":
            joints_mm = left_to_right(joints_mm)
        elif self.camera == "SK_color":
            joints_mm = depth_to_color(joints_mm)
        if self.root_joint == "wrist":
            joints_mm = palm_to_wrist(joints_mm, self.wrist_factor)[:, _TO_THUMB_FIRST]
        return joints_mm

    def _missing(self) -> str:
        parts = ""
        if self.without_pictures:
            parts += f"; no folder images/<SEQ> for {', '.join(self.without_pictures)}"
        if self.without_labels:
            parts += f"; no labels/{', '.join(self.without_labels)}"
        return parts

    def __len__(self) -> int:
        return len(self._frames)

    def names(self) -> list[str]:
        return [f"{Path(folder).name}/{self.camera}_{n}" for folder, n in self._frames]

    def __getitem__(self, index: int) -> Frame:
        folder, n = self._frames[index]
        path = self.root / folder / f"{self.camera}_{n}.png"
        is_depth = self.camera == "SK_depth"
        return Frame(
            name=f"{Path(folder).name}/{self.camera}_{n}",
            image_size=IMAGE_SIZE,
            K=K[self.camera].copy(),
            skeleton=self.skeleton,
            depth_mm=read_depth(path) if is_depth else None,
            rgb=None if is_depth else read_rgb(path, expected_size=IMAGE_SIZE),
            joints_mm=self.joints_mm[index].copy(),
            side="left",
        )

    def summary(self) -> str:
        joint = "palm as labelled" if self.root_joint == "palm" else f"wrist extrapolated with {self.wrist_factor:g}"
        return (
            f"STB {self.split} {self.camera}: {len(self)} frames, joint 0 is the {joint}; skipped "
            f"{self.missing_images} labels without picture{self._missing()}"
        )
