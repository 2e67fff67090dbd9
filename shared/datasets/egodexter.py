"""EgoDexter: four egocentric RGB-D sequences of a left hand, five fingertips labelled. For evaluation only.

- ``open(root, camera=..., labels=...)`` -> :class:`EgoDexter`: the labelled frames, by index.
- ``read_labels(path)`` -> (n, 5, 3) mm in the depth camera, NaN where missing: one ``annotation.txt_3D.txt``.
- ``read_keypoints(path)`` -> (n, 5, 2) pixels of the depth picture, NaN where missing: one ``annotation.txt``.
- ``read_depth(path)`` -> (480, 640) float32 mm.
- ``depth_to_color(points_mm)``: the rigid transform between the cameras.

Nothing here was checked on real bytes. From public readers: ``data/{Desk,Fruits,Kitchen,Rotunda}/`` with ``color``,
``depth`` and ``color_on_depth`` pictures ``image_#####_{color,depth,color_on_depth}.png`` (from 0, 640x480),
``annotation.txt`` and ``annotation.txt_3D.txt``, one line a picture, fields separated by ``;``, the tips of thumb,
index, middle, ring, little. 2-D: -1 is missing. 3-D: mm in the depth camera, x right, y down (these readers project
without a sign change), 0 is missing. Left hand; 1,485 of 3,190 frames are annotated. The depth camera's intrinsics
are those of the authors' SynthHands release, which several EgoDexter readers use. Hypotheses, from memory: depth is a
16-bit PNG in mm with 0 and values from 32001 on missing; the 2-D labels are pixels of the depth picture.

Some labels are wrong. ``labels="corrected"`` reads the ``my_annotation.txt_3D.txt`` files of
MengHao666/Minimal-Hand-pytorch where a user has put them; results on those are not comparable with the papers.

``Frame.extra``: ``keypoints_2d_depth`` (5, 2), the 2-D labels as they are (NaN where missing). Skeleton ``fingertips``.
Page: https://handtracker.mpi-inf.mpg.de/projects/OccludedHands/EgoDexter.htm (scientific non-commercial use)
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.camera import intrinsics
from shared.datasets.base import Frame
from shared.datasets.fingertips import FingertipFrames, read_tips
from shared.datasets.images import read_png16, read_rgb
from shared.datasets.labels import find_folder, one_of

PAGE = "https://handtracker.mpi-inf.mpg.de/projects/OccludedHands/EgoDexter.htm"
SEQUENCES = ("Desk", "Fruits", "Kitchen", "Rotunda")
SPLITS = ("test",)
MISSING_DEPTH = 32001
IMAGE_SIZE = (640, 480)
K_COLOR = intrinsics(617.173, 617.173, 315.453, 242.259)
K_DEPTH = intrinsics(475.62, 475.62, 311.125, 245.965)
T_COLOR_DEPTH = np.array(  # as published, four decimals
    [[1.0, 0.00090442, -0.0074, 20.2365], [-0.00071933, 0.9997, 0.0248, 1.2846], [0.0075, -0.0248, 0.9997, 5.7360]]
)


def read_labels(path: str | Path) -> NDArray[np.float64]:
    """One ``annotation.txt_3D.txt`` as (n, 5, 3) float64 mm in the depth camera; NaN for a missing tip (0, 0, 0).

    Raises:
        MissingFileError: there is no such file.
        DataError: a line without five tips of three numbers.
    """
    tips = read_tips(path, 3)
    tips[~(tips[..., 2] > 0)] = np.nan
    return tips


def read_keypoints(path: str | Path) -> NDArray[np.float64]:
    """One ``annotation.txt`` as (n, 5, 2) float64 pixels; NaN for a missing tip (-1)."""
    tips = read_tips(path, 2)
    tips[(tips < 0).any(axis=-1)] = np.nan
    return tips


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """One depth picture: (480, 640) float32 mm, 0 where nothing was measured (0 or from 32001 on in the file)."""
    values = read_png16(path, expected_size=IMAGE_SIZE)
    return np.where(values < MISSING_DEPTH, values, 0).astype(np.float32)


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
) -> EgoDexter:
    """The frames with at least one labelled tip below ``root`` (the set's folder, its ``data`` or its parent).

    Args:
        root: where the set was unpacked.
        split: ``"test"``, all there is.
        camera: ``"color"``: colour pictures, ``joints_mm`` in the colour camera. ``"depth"``: depth pictures with the
            colour pictures warped onto them (``color_on_depth``; None where that is missing), joints as labelled.
        labels: the original files or ``my_annotation.txt_3D.txt``.

    Raises:
        MissingFileError: no sequence folder, a sequence without its label file, or no labelled frame at all.
        DataError: an unknown option, files that cannot be used, numbers of lines and pictures that do not fit.
    """
    one_of(split=(split, SPLITS), camera=(camera, ("color", "depth")), labels=(labels, ("original", "corrected")))
    folders = [f"{base}{name}" for base in ("data/", "", "EgoDexter/data/") for name in SEQUENCES]
    return EgoDexter(find_folder(root, folders, what="EgoDexter", page=PAGE).parent, camera, labels)


class EgoDexter(FingertipFrames):
    """A sequence of :class:`~shared.datasets.base.Frame`; pictures are decoded when a frame is asked for."""

    sequences, suffixes, page = SEQUENCES, (".png",), PAGE

    def __init__(self, root: Path, camera: str, labels: str) -> None:
        def files(name: str, prefix: str) -> tuple[Path, Path]:
            return root / name / f"{prefix}annotation.txt_3D.txt", root / name / "annotation.txt"

        super().__init__(root, camera, labels, files, read_labels, read_keypoints)
        # (n, 5, 3), NaN where missing
        self.joints_mm = depth_to_color(self.tips_mm) if camera == "color" else self.tips_mm

    def __getitem__(self, index: int) -> Frame:
        path, color = self.path(index), self.camera == "color"
        warped = path.parents[1] / "color_on_depth" / path.name.replace("_depth", "_color_on_depth")
        joints_mm = self.joints_mm[index].copy()
        return Frame(
            name=f"{path.parts[-3]}/{path.stem}",
            image_size=IMAGE_SIZE,
            K=(K_COLOR if color else K_DEPTH).copy(),
            skeleton=self.skeleton,
            rgb=read_rgb(path if color else warped, expected_size=IMAGE_SIZE) if color or warped.is_file() else None,
            depth_mm=None if color else read_depth(path),
            joints_mm=joints_mm,
            joints_valid=~np.isnan(joints_mm[:, 0]),
            side="left",
            extra={"keypoints_2d_depth": self.keypoints_2d_depth[index].copy()},
        )

    def summary(self) -> str:
        return f"EgoDexter {'; '.join(self.counts())}"
