"""Mirroring: its own inverse, and picture, camera, joints and boxes stay together."""

from __future__ import annotations

import numpy as np
import pytest

from shared.camera import project
from shared.datasets.base import Frame
from shared.datasets.mirror import mirror_frame, mirror_pose
from shared.errors import DataError


def frame(**changes: object) -> Frame:
    rng = np.random.default_rng(0)
    joints = rng.uniform(-50, 50, (21, 3)) + np.array([0, 0, 500])
    K = np.array([[600.0, 2, 310], [0, 610, 245], [0, 0, 1]])
    fields: dict[str, object] = {
        "name": "a",
        "image_size": (640, 480),
        "K": K,
        "skeleton": "thumb_first",
        "joints_mm": joints,
        "keypoints_2d": project(joints, K),
        "rgb": rng.integers(0, 255, (480, 640, 3)).astype(np.uint8),
        "depth_mm": rng.uniform(0, 900, (20, 30)).astype(np.float32),
        "crop_xy": (600, 100),
        "center_mm": joints.mean(0),
        "verts_mm": rng.normal(size=(778, 3)),
        "side": "left",
        "extra": {
            "pose": rng.normal(size=48),
            "betas": np.ones(10),
            "flat_hand_mean": False,
            "root_mm": joints[0],
            "transl_mm": joints[1],
            "bbox_xywh": np.array([10.0, 20, 30, 40]),
            "uv_root": np.array([3.0, 4]),
            "seg": rng.integers(0, 255, (480, 640)).astype(np.uint8),
        },
    }
    return Frame(**(fields | changes))  # type: ignore[arg-type]


def test_mirrored_joints_fall_on_the_mirrored_pixels() -> None:
    original = frame()
    mirrored = mirror_frame(original)
    assert mirrored.side == "right"
    assert original.keypoints_2d is not None
    assert mirrored.joints_mm is not None
    expected = original.keypoints_2d * [-1, 1] + [639, 0]
    np.testing.assert_allclose(project(mirrored.joints_mm, mirrored.K), expected, atol=1e-9)
    np.testing.assert_allclose(mirrored.keypoints_2d, expected)
    assert original.rgb is not None
    assert mirrored.rgb is not None
    np.testing.assert_array_equal(mirrored.rgb[7, 639 - 5], original.rgb[7, 5])
    np.testing.assert_array_equal(mirrored.full_depth_mm(), original.full_depth_mm()[:, ::-1])
    np.testing.assert_array_equal(mirrored.extra["seg"], original.extra["seg"][:, ::-1])
    # the box covers the same pixels: both its edges are mirrored
    x, _, w, _ = mirrored.extra["bbox_xywh"]
    assert (x, x + w) == (639 - 40, 639 - 10)
    np.testing.assert_array_equal(mirrored.extra["root_mm"], mirrored.joints_mm[0])
    # without the change of K the joints would be elsewhere
    assert np.abs(project(mirrored.joints_mm, original.K) - expected).max() > 10


def test_mirroring_twice_changes_nothing() -> None:
    original = frame()
    again = mirror_frame(mirror_frame(original))
    for name in ("K", "joints_mm", "keypoints_2d", "rgb", "depth_mm", "center_mm", "verts_mm"):
        np.testing.assert_allclose(getattr(again, name), getattr(original, name), atol=1e-9)
    assert again.side == original.side
    assert again.crop_xy == original.crop_xy
    assert again.extra.keys() == original.extra.keys()
    for key, value in original.extra.items():
        np.testing.assert_allclose(again.extra[key], value, atol=1e-9)


def test_a_rotation_mirrored_is_the_mirror_conjugate() -> None:
    from scipy.spatial.transform import Rotation

    pose = np.random.default_rng(0).normal(size=(4, 48))
    M = np.diag([-1.0, 1, 1])
    left = Rotation.from_rotvec(mirror_pose(pose).reshape(-1, 3)).as_matrix()
    right = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix()
    np.testing.assert_allclose(left, M @ right @ M, atol=1e-12)


def test_what_cannot_be_mirrored_is_left_out_or_refused() -> None:
    mirrored = mirror_frame(frame(extra={"pose_pca": np.zeros(48), "T_cam_objects": np.zeros((1, 4, 4)), "sample": 3}))
    assert mirrored.extra == {"sample": 3}
    with pytest.raises(DataError, match="extra\\['contact'\\] of a"):
        mirror_frame(frame(extra={"contact": 1}))


def test_frames_with_little_in_them() -> None:
    bare = Frame(name="b", image_size=(10, 5), K=np.eye(3), skeleton="mano", side=None)
    mirrored = mirror_frame(bare)
    assert mirrored.side is None
    assert mirrored.rgb is mirrored.depth_mm is mirrored.joints_mm is None
