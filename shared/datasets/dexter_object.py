"""Dexter+Object: six RGB-D sequences of a left hand with an object, five fingertips labelled. For evaluation only.

- ``open(root, camera=..., labels=...)`` -> :class:`DexterObject`: the labelled frames, by index.
- ``read_labels(path)`` -> (n, 5, 3) mm in the depth camera, OpenCV axes, NaN where missing: one ``<SEQ>3D.txt``.
- ``read_keypoints(path)`` -> (n, 5, 2) pixels of the depth picture, NaN where missing: one ``<SEQ>2D.txt``.
- ``read_depth(path)`` -> (240, 320) float32 mm. ``read_color(path)`` -> (480, 640, 3) uint8.
- ``depth_to_color(points_mm)``: the rigid transform between the cameras.

Nothing here was checked on real bytes. From public readers: ``data/<SEQ>/{color,depth}/``,
``data/<SEQ>/annotations/<SEQ>{2D,3D}.txt``, fields separated by ``;``, the first five are the tips of thumb, index,
middle, ring, little; mm in the depth camera, z = 32001 marks a missing tip; colour pictures are BMP; left hand; 3,014
frames. The same readers negate x and y (one of them in pixels, calling it a correction that works), so the labels
have x left and y up. That is a **hypothesis**, hence ``axes="auto"``: of the four sign patterns the one whose
projection lies nearest to the 2-D labels is taken, and ``summary()`` tells which and how near. Hypotheses too: the
2-D labels are pixels of the depth picture, depth is a 16-bit PNG in mm with 0 and values from 32001 on missing, and
the number in a picture's name is its line (numbers that do not run from 0: the sorted position is).

Some labels are plainly wrong. ``labels="corrected"`` reads the ``my_<SEQ>3D.txt`` files of
MengHao666/Minimal-Hand-pytorch where a user has put them; results on those are not comparable with the papers.

``Frame.extra``: ``keypoints_2d_depth`` (5, 2), the 2-D labels as they are (NaN where missing). Skeleton ``fingertips``.
Page: https://handtracker.mpi-inf.mpg.de/projects/RealtimeHO/dexter+object.htm
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.camera import intrinsics, project
from shared.datasets.base import Frame
from shared.datasets.fingertips import FingertipFrames, read_tips
from shared.datasets.images import read_png16, read_rgb
from shared.datasets.labels import find_folder, one_of
from shared.errors import DataError

PAGE = "https://handtracker.mpi-inf.mpg.de/projects/RealtimeHO/dexter+object.htm"
SEQUENCES = ("Grasp1", "Grasp2", "Occlusion", "Rigid", "Pinch", "Rotate")
SPLITS = ("test",)
MISSING = 32001
COLOR_SIZE, DEPTH_SIZE = (640, 480), (320, 240)
K_COLOR = intrinsics(587.45209, 600.67456, 325, 249)
K_DEPTH = intrinsics(224.502, 230.494, 160, 120)
T_COLOR_DEPTH = np.array(  # as published, four decimals: not orthonormal to more than 1e-4
    [[0.9999, 0.0034, 0.0161, 19.0473], [-0.0033, 1.0, -0.0079, -1.8514], [-0.0162, 0.0079, 0.9998, -4.7501]]
)
AXES: dict[str, tuple[int, int]] = {"left-up": (-1, -1), "opencv": (1, 1), "right-up": (1, -1), "left-down": (-1, 1)}
Axes = Literal["left-up", "opencv", "right-up", "left-down"]


def read_labels(path: str | Path, *, axes: Axes = "left-up") -> NDArray[np.float64]:
    """One ``<SEQ>3D.txt`` as (n, 5, 3) float64 mm in the depth camera, OpenCV axes; NaN for a missing tip.

    Args:
        path: the file.
        axes: where x and y of the file point to.

    Raises:
        MissingFileError: there is no such file.
        DataError: a line without five tips of three numbers, or unknown axes.
    """
    if axes not in AXES:
        raise DataError(f"axes: expected one of {', '.join(AXES)}, got {axes!r}")
    tips = read_tips(path, 3)
    z = tips[..., 2]
    tips[~((z > 0) & (z < MISSING))] = np.nan  # z = 32001 is the marker; nothing is behind the camera
    return tips * (*AXES[axes], 1)


def read_keypoints(path: str | Path) -> NDArray[np.float64]:
    """One ``<SEQ>2D.txt`` as (n, 5, 2) float64 pixels; NaN for a missing tip (negative or 32001)."""
    tips = read_tips(path, 2)
    tips[((tips < 0) | (tips >= MISSING)).any(axis=-1)] = np.nan
    return tips


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """One depth picture: (240, 320) float32 mm, 0 where nothing was measured (0 or from 32001 on in the file)."""
    values = read_png16(path, expected_size=DEPTH_SIZE)
    return np.where(values < MISSING, values, 0).astype(np.float32)


def read_color(path: str | Path) -> NDArray[np.uint8]:
    """One colour picture (BMP, PNG or JPEG): (480, 640, 3) uint8, red green blue."""
    return read_rgb(path, expected_size=COLOR_SIZE, formats=("PNG", "JPEG", "BMP"))


def depth_to_color(points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 3) of the depth camera in the colour camera, mm."""
    result: NDArray[np.float64] = points_mm @ T_COLOR_DEPTH[:, :3].T + T_COLOR_DEPTH[:, 3]
    return result


def open(
    root: str | Path,
    split: Literal["test"] = "test",
    *,
    camera: Literal["color", "depth"] = "color",
    labels: Literal["original", "corrected"] = "original",
    axes: Literal["auto"] | Axes = "auto",
) -> DexterObject:
    """The frames with at least one labelled tip below ``root`` (the set's folder, its ``data`` or its parent).

    Args:
        root: where the set was unpacked.
        split: ``"test"``, all there is.
        camera: whose pictures, and in whose frame ``joints_mm`` is.
        labels: the original files or ``my_<SEQ>3D.txt``.
        axes: where x and y of the label files point to; ``"auto"`` compares with the 2-D labels.

    Raises:
        MissingFileError: no sequence folder, a sequence without its label file, or no labelled frame at all.
        DataError: an unknown option, files that cannot be used, numbers of lines and pictures that do not fit.
    """
    one_of(
        split=(split, SPLITS),
        camera=(camera, ("color", "depth")),
        labels=(labels, ("original", "corrected")),
        axes=(axes, ("auto", *AXES)),
    )
    folders = [f"{base}{name}" for base in ("data/", "", "dexter+object/data/") for name in SEQUENCES]
    return DexterObject(find_folder(root, folders, what="Dexter+Object", page=PAGE).parent, camera, labels, axes)


class DexterObject(FingertipFrames):
    """A sequence of :class:`~shared.datasets.base.Frame`; pictures are decoded when a frame is asked for."""

    sequences, suffixes, page = SEQUENCES, (".bmp", ".png", ".jpg"), PAGE

    def __init__(self, root: Path, camera: str, labels: str, axes: str) -> None:
        def files(name: str, prefix: str) -> tuple[Path, Path]:
            folder = root / name / "annotations"
            return folder / f"{prefix}{name}3D.txt", folder / f"{name}2D.txt"

        super().__init__(root, camera, labels, files, partial(read_labels, axes="opencv"), read_keypoints)
        tips_mm = self.tips_mm
        distances = {name: _distance(tips_mm * (*sign, 1), self.keypoints_2d_depth) for name, sign in AXES.items()}
        # without 2-D labels all distances are NaN and the public readers' reading stands
        self.axes = axes if axes != "auto" else min(distances, key=lambda name: np.nan_to_num(distances[name], nan=0.0))
        self.axes_distance_px = distances[self.axes]
        tips_mm = tips_mm * (*AXES[self.axes], 1)
        self.joints_mm = depth_to_color(tips_mm) if camera == "color" else tips_mm  # (n, 5, 3), NaN where missing

    def __getitem__(self, index: int) -> Frame:
        path, color = self.path(index), self.camera == "color"
        joints_mm = self.joints_mm[index].copy()
        return Frame(
            name=f"{path.parts[-3]}/{path.stem}",
            image_size=COLOR_SIZE if color else DEPTH_SIZE,
            K=(K_COLOR if color else K_DEPTH).copy(),
            skeleton=self.skeleton,
            rgb=read_color(path) if color else None,
            depth_mm=None if color else read_depth(path),
            joints_mm=joints_mm,
            joints_valid=~np.isnan(joints_mm[:, 0]),
            side="left",
            extra={"keypoints_2d_depth": self.keypoints_2d_depth[index].copy()},
        )

    def summary(self) -> str:
        there, skipped = self.counts()
        fit = "no 2-D labels to compare with"
        if np.isfinite(self.axes_distance_px):
            fit = f"median {self.axes_distance_px:.1f} px from the 2-D labels"
        return f"Dexter+Object {there}, label axes {self.axes} ({fit}); {skipped}"


def _distance(tips_mm: NDArray[np.float64], points: NDArray[np.float64]) -> float:
    """Median pixel distance of the tips, projected into the depth picture, from the 2-D labels; NaN without any."""
    distance = np.linalg.norm(project(tips_mm, K_DEPTH, check_depth=False) - points, axis=-1)
    return float(np.median(distance[np.isfinite(distance)])) if np.isfinite(distance).any() else float("nan")
