"""HandOccNet's annotation files: the golden miniature sets, making the files, and files that are not such files."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from shared.camera import project
from shared.datasets import dexycb, handoccnet_json, ho3d
from shared.datasets.base import Frame, FrameDataset
from shared.datasets.mirror import mirror_frame
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano, mirror_model
from shared.skeletons import order, reorder
from shared.standin.dexycb import write_dexycb
from shared.standin.ho3d import write_ho3d
from tests.golden.fill import uniform
from tests.shared.rgbd_checks import mano_of

FILES = {
    "ho3d_train": "HO3D_train_data.json",
    "ho3d_eval": "HO3D_evaluation_data.json",
    "dex_train": "DEX_YCB_s0_train_data.json",
    "dex_test": "DEX_YCB_s0_test_data.json",
}


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, NDArray[Any]]:
    return dict(np.load(golden / "handoccnet" / "datasets.npz"))


def frames(golden: Path, which: str) -> list[Frame]:
    data = handoccnet_json.open(golden, golden / "handoccnet" / FILES[which], rgb=False)
    assert isinstance(data, FrameDataset)
    return [data[i] for i in range(len(data))]


@pytest.mark.parametrize("which", list(FILES))
def test_wrists_match_the_golden_numbers(golden: Path, expected: dict[str, NDArray[Any]], which: str) -> None:
    roots = np.stack([frame.extra["root_mm"] for frame in frames(golden, which)]) / 1000
    difference = np.abs(roots - expected[f"{which}_root"]).max()
    print(f"{which}: root max diff {difference:.3g} m")
    assert difference < 1e-6


@pytest.mark.parametrize("which", ["ho3d_train", "dex_train"])
def test_training_targets_match_the_golden_numbers(golden: Path, expected: dict[str, NDArray[Any]], which: str) -> None:
    """Left hands mirrored, then the fixture's in-plane rotation: pose, shape and joints are those of the reference."""
    sides = []
    for i, frame in enumerate(frames(golden, which)):
        sides.append(frame.side)
        right = mirror_frame(frame) if frame.side == "left" else frame
        turn = Rotation.from_euler("z", -expected["aug_rot"][i], degrees=True)
        pose = right.extra["pose"].copy()
        pose[:3] = (turn * Rotation.from_rotvec(pose[:3])).as_rotvec()
        assert right.joints_mm is not None
        joints = turn.apply(right.joints_mm - right.joints_mm[0]) / 1000
        worst = {
            "mano_pose": np.abs(pose - expected[f"{which}_mano_pose"][i]).max(),
            "mano_shape": np.abs(right.extra["betas"] - expected[f"{which}_mano_shape"][i]).max(),
            "joints_coord_cam": np.abs(joints - expected[f"{which}_joints_coord_cam"][i]).max(),
        }
        for name, difference in worst.items():
            print(f"{which} {i} {frame.side}: {name} max diff {difference:.3g}")
            assert difference < (1e-5 if name == "mano_pose" else 2e-6)
        if frame.side == "left":  # unmirrored it would not do
            assert np.abs(frame.extra["pose"][3:] - expected[f"{which}_mano_pose"][i][3:]).max() > 0.1
    if which == "dex_train":
        assert "left" in sides


def test_pixels_camera_and_boxes(golden: Path) -> None:
    raw = json.loads((golden / "handoccnet" / FILES["dex_train"]).read_text())
    for record, frame in zip(raw["annotations"], frames(golden, "dex_train"), strict=True):
        assert frame.joints_mm is not None
        np.testing.assert_allclose(project(frame.joints_mm, frame.K), record["joints_img"], atol=0.05)
        np.testing.assert_array_equal(frame.keypoints_2d, record["joints_img"])
        assert frame.image_size == (640, 480)
    first = frames(golden, "ho3d_eval")[0]
    np.testing.assert_array_equal(first.extra["bbox_xywh"], [287.666, 180.122, 120.201, 145.969])
    assert first.joints_mm is None
    assert first.name == "EV0/rgb/0000"


# ------------------------------------------------------------------------------------------------ making the files


def test_conversion_of_raw_labels_matches_the_golden_numbers(golden: Path) -> None:
    convert = np.load(golden / "handoccnet" / "convert.npz")
    standin = np.load(golden / "handoccnet" / "mano_standin.npz")
    poses = uniform("handoccnet/convert/handPose", (5, 48), -0.8, 0.8)
    poses[:, :3] *= 2
    joints = uniform("handoccnet/convert/handJoints3D", (5, 21, 3), -0.1, 0.1) - np.array([0, 0, 0.5], np.float32)
    pca = uniform("handoccnet/convert/pose_m", (5, 48), -1, 1)
    common: dict[str, Any] = {"name": "A/0000", "image_size": (640, 480), "K": np.eye(3)}
    worst = dict.fromkeys(("ho3d_pose", "ho3d_joints", "dex_pose"), 0.0)
    for i in range(5):
        extra = {"pose": ho3d.pose_to_opencv(poses[i]), "betas": np.zeros(10), "flat_hand_mean": True}
        frame = Frame(skeleton="mano", joints_mm=joints[i] * np.array([1000, -1000, -1000]), extra=extra, **common)
        record = handoccnet_json.annotation_of(frame, standin["hands_mean"])
        pose = np.array(record["mano_param"]["pose"])
        worst["ho3d_pose"] = max(worst["ho3d_pose"], np.abs(pose - convert["ho3d_pose"][i]).max())
        difference = np.abs(np.array(record["joints_coord_cam"]) - convert["ho3d_joints"][i]).max()
        worst["ho3d_joints"] = max(worst["ho3d_joints"], difference)
        pose = dexycb.pca_to_pose(pca[i], standin["hands_components"])
        extra = {"pose": pose, "betas": np.zeros(10), "flat_hand_mean": False}
        frame = Frame(skeleton="thumb_first", joints_mm=np.ones((21, 3)), extra=extra, **common)
        record = handoccnet_json.annotation_of(frame, standin["hands_mean"])
        difference = np.abs(np.array(record["mano_param"]["pose"]) - convert["dex_pose"][i]).max()
        worst["dex_pose"] = max(worst["dex_pose"], difference)
    for name, difference in worst.items():
        print(f"{name}: max diff {difference:.3g}")
        assert difference < 1e-5


def test_written_files_are_read_back(golden: Path, tmp_path: Path) -> None:
    mean = np.linspace(-0.2, 0.2, 45)
    source = frames(golden, "dex_train")
    for which in FILES:
        source = frames(golden, which)
        path = tmp_path / "a.json"

        def file_name(frame: Frame) -> str:
            return frame.name + ".png"

        assert handoccnet_json.write_annotations(path, iter(source), mean, file_name) == 3
        for before, after in zip(source, handoccnet_json.open(tmp_path, path, rgb=False), strict=True):  # type: ignore[call-overload]
            assert before.name == after.name
            assert before.side == after.side
            np.testing.assert_allclose(after.K, before.K)
            for key in before.extra.keys() - {"annotation_id"}:
                np.testing.assert_allclose(after.extra[key], before.extra[key], rtol=1e-12)
            if before.joints_mm is not None:
                np.testing.assert_allclose(after.joints_mm, before.joints_mm)


def test_flat_poses_lose_the_mean_and_joints_change_order() -> None:
    rng = np.random.default_rng(0)
    joints, pose, mean = rng.normal(size=(21, 3)), rng.normal(size=48), rng.normal(size=45)
    extra = {"pose": pose, "betas": np.zeros(10), "flat_hand_mean": True, "root_mm": joints[0]}
    frame = Frame("A/0001", (640, 480), np.eye(3), "mano", joints_mm=joints, extra=extra)
    record = handoccnet_json.annotation_of(frame, mean)
    np.testing.assert_allclose(record["joints_coord_cam"], joints[order("mano", "thumb_first")] / 1000)
    np.testing.assert_allclose(record["mano_param"]["pose"], np.r_[pose[:3], pose[3:] - mean])
    assert "hand_type" not in record
    assert handoccnet_json.ho3d_file_name(frame) == "A/rgb/0001.png"
    assert (
        handoccnet_json.dexycb_file_name(Frame("s/q/c/000002", (1, 1), np.eye(3), "mano")) == "s/q/c/color_000002.jpg"
    )
    del extra["pose"]
    with pytest.raises(DataError, match="open DexYCB with hands_components"):
        handoccnet_json.annotation_of(frame, mean)
    with pytest.raises(DataError, match="neither joints nor a wrist"):
        handoccnet_json.annotation_of(Frame("x", (1, 1), np.eye(3), "mano"), mean)


def test_files_made_from_the_official_ones_serve_the_same_hands(tmp_path: Path) -> None:
    """Released sets to HandOccNet's files to frames: the same joints, and MANO with its mean gives them."""
    right = load_mano("standin")
    write_ho3d(tmp_path / "ho3d", frames=2)
    write_dexycb(tmp_path / "dex")
    components = {"right": right.hands_components, "left": mirror_model(right).hands_components}
    hand = ho3d.open(tmp_path / "ho3d", "train")
    dex = dexycb.open(tmp_path / "dex", "s0_train", hands_components=components)
    for data, folder, tips, file_name in (
        (hand, tmp_path / "ho3d" / "train", "ho3d", handoccnet_json.ho3d_file_name),
        (dex, tmp_path / "dex", "manopth", handoccnet_json.dexycb_file_name),
    ):
        labels = [data.labels(i) for i in range(len(data))]
        handoccnet_json.write_annotations(tmp_path / "a.json", labels, right.hands_mean, file_name)
        made = handoccnet_json.open(folder, tmp_path / "a.json")
        assert len(made) == len(data)
        for i in range(len(data)):
            frame, source = made[i], data[i]
            np.testing.assert_array_equal(frame.rgb, source.rgb)
            assert frame.side == source.side
            assert source.joints_mm is not None
            np.testing.assert_allclose(frame.joints_mm, reorder(source.joints_mm, data.skeleton, "thumb_first"))
            _, joints = mano_of(frame, tips, "thumb_first")
            np.testing.assert_allclose(joints, frame.joints_mm, atol=0.01)
            if data is dex:
                assert frame.extra["annotation_id"] == source.extra["toolkit_index"]


# ------------------------------------------------------------------------------------------------ broken files


def content(**changes: Any) -> dict[str, Any]:
    record = {
        "id": 5,
        "image_id": 7,
        "joints_coord_cam": [[0.0, 0, 0.5]] * 21,
        "cam_param": {"focal": [600, 600], "princpt": [320, 240]},
        "mano_param": {"pose": [0.1] * 48, "shape": [0.0] * 10},
    } | changes
    return {
        "images": [{"id": 7, "file_name": "A/rgb/0000.png", "width": 640, "height": 480}],
        "annotations": [{k: v for k, v in record.items() if v is not ...}],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cam_param": ...}, "annotations, id 5: cam_param: expected focal and princpt"),
        ({"cam_param": [1]}, "cam_param: expected a record, got list"),
        ({"cam_param": {"focal": [1], "princpt": [1, 2]}}, "focal: expected numbers of shape"),
        ({"joints_coord_cam": ...}, "expected joints_coord_cam or root_joint_cam"),
        ({"joints_coord_cam": [[0, 0, 1]] * 20}, "joints_coord_cam: expected numbers"),
        ({"joints_coord_cam": [[0, 0, float("nan")]] * 21}, "joints_coord_cam: holds values that are not finite"),
        ({"mano_param": {"pose": [0] * 45, "shape": [0] * 10}}, "mano_param.pose"),
        ({"hand_type": "both"}, "hand_type: expected right or left, got 'both'"),
        ({"id": "x"}, "id: expected an integer"),
        ({"image_id": 10**30}, "image_id: expected an integer"),
        ({"image_id": 8}, "1 annotations belong to images that are not listed, first id 8"),
    ],
)
def test_damaged_annotations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content(**changes)))
    with pytest.raises(DataError, match=message) as error:
        handoccnet_json.read_annotations(tmp_path / "a.json")
    assert "a.json" in str(error.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.png", "a/../../x.png", "", 3, None, "a\\..\\x", "a\0b"])
def test_file_names_stay_inside_the_root(tmp_path: Path, name: object) -> None:
    bad = content()
    bad["images"][0]["file_name"] = name
    (tmp_path / "a.json").write_text(json.dumps(bad))
    with pytest.raises(DataError, match=r"images, id 7: file_name: expected a relative path"):
        handoccnet_json.read_annotations(tmp_path / "a.json")


def test_other_files(tmp_path: Path) -> None:
    for text, message in (
        ('{"images": []}', "has no annotations"),
        ('{"annotations": [1]}', "annotations: expected records, got int"),
        ("[]", r"expected \{"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match=message):
            handoccnet_json.read_annotations(tmp_path / "a.json")
    with pytest.raises(MissingFileError, match=re.escape("none.json: no such file -- download: https")):
        handoccnet_json.open(tmp_path, tmp_path / "none.json")


def test_pictures(golden: Path, tmp_path: Path) -> None:
    source = golden / "handoccnet" / FILES["dex_train"]
    with pytest.raises(MissingFileError, match=r"3 of 3 pictures of DEX_YCB_s0_train_data\.json are not there"):
        handoccnet_json.open(tmp_path, source, missing="skip")
    with pytest.raises(DataError, match="skip or error, got 'x'"):
        handoccnet_json.open(tmp_path, source, missing="x")  # type: ignore[arg-type]
    names = handoccnet_json.read_annotations(source).file_names
    for i in (0, 2):
        (tmp_path / names[i]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((480, 640, 3), 10 * i, np.uint8)).save(tmp_path / names[i])
    with pytest.raises(MissingFileError, match=f"1 of 3 pictures.*{names[1]}"):
        handoccnet_json.open(tmp_path, source)
    data = pickle.loads(pickle.dumps(handoccnet_json.open(tmp_path, source, missing="skip")))
    assert data.names() == [names[i].removesuffix(".png") for i in (0, 2)]
    assert data[1].rgb[0, 0, 0] == 20
    assert data[1].extra["annotation_id"] == 2
    assert "2 frames" in data.summary()
    assert "1 pictures missing" in data.summary()
