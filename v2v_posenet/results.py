"""The text files of the original programs: predictions and labels, one frame per line.

The port writes ``x y z`` of every joint in mm with four decimals, in the *world of the data set* (y up for MSRA, NYU
and ITOP). In memory everything has OpenCV axes: y changes its sign here and nowhere else. The author writes ``u v z``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.camera import flip_y
from shared.errors import DataError
from shared.predictions import read_predictions, write_predictions
from shared.safe_io import atomic_write_text
from v2v_posenet.config import DATASETS, DataSpec

TEST_RESULT, TRAIN_RESULT = "test_res.txt", "fit_res.txt"  # the port's names


def ground_truth_name(split: str, subject: int) -> str:
    """The port's name of the labels of a split: ``test_s3_gt.txt``, ``train_s3_gt.txt``."""
    if split not in ("test", "train"):
        raise DataError(f"split must be 'test' or 'train', got {split!r}")
    return f"{split}_s{subject}_gt.txt"


def spec_of(dataset: str) -> DataSpec:
    """What the method fixes for a data set; DataError with the known names for another one."""
    if dataset not in DATASETS:
        raise DataError(f"unknown data set {dataset!r}", remedy=f"use one of {', '.join(DATASETS)}")
    return DATASETS[dataset]


def write_world(path: str | Path, joints_mm: ArrayLike, dataset: str) -> None:
    """Writes joints as the port does.

    Args:
        path: ``test_res.txt``, ``test_s3_gt.txt`` and so on; gzip if the name ends in ``.gz``.
        joints_mm: (N, J, 3) camera frame, OpenCV axes, mm, frames in the order of the data set.
        dataset: decides the sign of y in the file and J.

    Raises:
        DataError: an unknown data set, a wrong shape, numbers that are not finite.
    """
    joints, spec = np.asarray(joints_mm, np.float64), spec_of(dataset)
    if joints.ndim != 3 or joints.shape[1:] != (spec.joints, 3):
        raise DataError(f"expected joints (N, {spec.joints}, 3) for {dataset}, got shape {joints.shape}", path=path)
    write_predictions(path, flip_y(joints) if spec.y_up else joints, decimals=4)


def read_world(path: str | Path, dataset: str) -> NDArray[np.float64]:
    """Joints (N, J, 3) in OpenCV axes, mm, of a file in the port's format; errors name file and line."""
    spec = spec_of(dataset)
    values = read_predictions(path, spec.joints)
    return flip_y(values) if spec.y_up else values


def write_author_result(path: str | Path, uvz: ArrayLike) -> None:
    """Writes the author's ``result.txt``: (N, J, 3) rows ``u v z``, 12 significant digits, a space after every number.

    u and v are pixels from 0, z is mm (ITOP: metres), whatever the data set.
    """
    values = np.asarray(uvz, np.float64)
    if values.ndim != 3 or values.shape[2] != 3 or not np.isfinite(values).all():
        raise DataError(f"expected finite values (N, J, 3), got shape {values.shape}", path=path)
    rows = values.reshape(len(values), -1)
    form = "%.12g " * rows.shape[1] + "\n"
    atomic_write_text(path, "".join(form % tuple(row) for row in rows.tolist()))
