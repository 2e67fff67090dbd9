"""Transforms between views and calibration, against the original's numbers and by their laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfsup_fitting.model import heatmap_variance
from selfsup_fitting.multiview import (
    calibrate,
    column_layout,
    crop_poses,
    fuse_views,
    mutual_transforms,
    rigid_inverse,
    sequences,
    transform,
)
from shared.datasets.nyu import rigid_fit
from shared.errors import DataError
from tests.golden.fill import uniform

FOLDER = Path(__file__).parents[1] / "golden/selfsup_fitting"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    T = np.tile(np.eye(4), (count, 1, 1))
    q, _ = np.linalg.qr(rng.normal(size=(count, 3, 3)))
    T[:, :3, :3] = q * np.sign(np.linalg.det(q))[:, None, None]
    T[:, :3, 3] = rng.normal(0, 100, (count, 3))
    return T


def test_transforms_between_views() -> None:
    measured = load("camera_multiview")
    poses = torch.from_numpy(measured["camera_poses"])
    for name, value in (("inv_camera_poses", rigid_inverse(poses)), ("mutual_transforms", mutual_transforms(poses))):
        off = float((value - torch.from_numpy(measured[name])).abs().max())
        print(f"{name}: max diff {off:.3g}")
        assert off <= 1e-4


def test_there_and_back() -> None:
    T = torch.from_numpy(random_poses(6)).view(2, 3, 4, 4)
    points = torch.randn(2, 3, 41, 3, dtype=torch.float64)
    pairs = mutual_transforms(T)
    torch.testing.assert_close(transform(rigid_inverse(T), transform(T, points)), points)
    for i in range(3):
        torch.testing.assert_close(pairs[:, i, i], torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
        for j in range(3):
            there = transform(pairs[:, i, j], points[:, i])
            torch.testing.assert_close(transform(T[:, j], there), transform(T[:, i], points[:, i]))


def test_fused_views_of_the_original() -> None:
    measured, poses = load("losses"), torch.from_numpy(load("camera_multiview")["camera_poses"])
    maps = torch.from_numpy(uniform("selfsup.loss.fuse_hm", (2, 3, 41, 16, 16), -0.3, 1.2))
    fused = fuse_views(torch.from_numpy(measured["joints"]), poses, heatmap_variance(maps))
    off = float((fused - torch.from_numpy(measured["fused_joints"])).abs().max())
    print(f"fused joints: max diff {off:.3g} mm")
    assert off <= 1e-3


def test_the_view_of_least_variance_is_believed() -> None:
    T = torch.from_numpy(random_poses(4)).view(2, 2, 4, 4)
    spheres, variance = torch.randn(2, 2, 5, 3, dtype=torch.float64), torch.ones(2, 2, 5)
    variance[:, 1, 2:] = 0.5
    fused = fuse_views(spheres, T, variance)
    torch.testing.assert_close(fused[:, 0, :2], spheres[:, 0, :2])
    torch.testing.assert_close(fused[:, 1, 2:], spheres[:, 1, 2:])
    torch.testing.assert_close(transform(T, fused)[:, 0], transform(T, fused)[:, 1])


def test_rigid_fit_of_the_original() -> None:
    measured = load("dataset")
    fitted = rigid_fit(measured["rigid_p1"], measured["rigid_p2"])
    off = np.abs(fitted - measured["rigid_column"]).max()
    print(f"rigid fit: max diff {off:.3g}")
    assert off <= 1e-4
    turned, was_row = column_layout(measured["rigid_row_as_reference"])
    assert was_row
    print(f"old pose layout: max diff {np.abs(turned - measured['rigid_column']).max():.3g}")
    np.testing.assert_allclose(turned, measured["rigid_column"], atol=1e-4)
    lost, _ = column_layout(measured["rigid_row_as_reference"], keep_translation=False)
    np.testing.assert_array_equal(lost[:3, 3], 0)
    np.testing.assert_allclose(lost[:3, :3], measured["rigid_column"][:3, :3], atol=1e-4)


def test_new_layout_stays() -> None:
    T = random_poses(5)
    same, was_row = column_layout(T)
    assert not was_row
    np.testing.assert_array_equal(same, T)


def test_layouts_that_are_none() -> None:
    T = random_poses(2)
    T[0, 3, 0] = 5.0
    with pytest.raises(DataError, match="both the last row and the last column"):
        column_layout(T)
    T[0, 3, 0] = np.nan
    with pytest.raises(DataError, match="finite camera poses"):
        column_layout(T)


def test_crops_follow_from_cameras_and_centres() -> None:
    cameras = random_poses(3)
    cameras[0] = np.eye(4)
    rng = np.random.default_rng(1)
    centers = rng.normal(0, 50, (4, 3, 3))
    points = rng.normal(0, 80, (4, 1, 10, 3))  # in camera 1
    inverse = np.linalg.inv(cameras)
    local = points @ np.swapaxes(inverse[:, :3, :3], 1, 2) + inverse[:, None, :3, 3] - centers[:, :, None]
    T = torch.from_numpy(crop_poses(cameras, centers))
    back = transform(T, torch.from_numpy(local))
    np.testing.assert_allclose(back, np.broadcast_to(points - centers[:, :1, None], back.shape), atol=1e-9)


def labels(frames: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(3, frames, 36, 3) labels of a rig, each view with its own noise, and the rig."""
    rng = np.random.default_rng(3)
    cameras = random_poses(3, seed=7)
    cameras[0] = np.eye(4)
    points = rng.normal(0, 60, (frames, 36, 3)) + np.array([0, 0, 700])
    inverse = np.linalg.inv(cameras)
    views = points @ np.swapaxes(inverse[:, None, :3, :3], -1, -2) + inverse[:, None, None, :3, 3]
    return views + rng.normal(0, noise, views.shape), cameras


def test_a_sequence_is_calibrated_better_than_its_frames() -> None:
    xyz, cameras = labels(50, 3.0)
    errors = {}
    for how in ("sequence", "frame"):
        T, rms = calibrate(xyz, [slice(0, 50)], how)  # type: ignore[arg-type]
        errors[how] = np.abs(T[:, 1:, :3, :3] - cameras[1:, :3, :3]).max()
        assert rms.shape == (1, 3)
        assert rms[0, 0] == 0
        assert 3 < rms[0, 1:].min() < 8
    print(f"rotation error: {errors}")
    assert errors["sequence"] < 0.3 * errors["frame"]
    exact, rms = calibrate(labels(4, 0.0)[0], [slice(0, 4)])
    np.testing.assert_allclose(exact[2], cameras, atol=1e-9)
    assert rms.max() < 1e-9


def test_each_sequence_has_its_own_cameras() -> None:
    xyz = np.concatenate([labels(5, 0.0)[0], np.broadcast_to(labels(5, 0.0)[0][:1], (3, 5, 36, 3))], 1)
    T, _ = calibrate(xyz, [slice(0, 5), slice(5, 10)])
    np.testing.assert_allclose(T[7, 1], np.eye(4), atol=1e-9)  # the second part: three times the same camera
    assert np.abs(T[2, 1] - np.eye(4)).max() > 0.1


def test_a_single_view_cannot_be_calibrated() -> None:
    with pytest.raises(DataError, match="at least two views"):
        calibrate(labels(3, 0.0)[0][:1], [slice(0, 3)])


def test_sequences_of_nyu() -> None:
    assert sequences("train", 72757) == [slice(0, 72757)]
    assert sequences("test", 8252) == [slice(0, 2440), slice(2440, 8252)]
    assert sequences("test", 100) == [slice(0, 100)]
