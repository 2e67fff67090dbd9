"""HO-3D: single files, the two lists, broken trees, and round trips through the stand-in writer."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.camera import project
from shared.datasets import ho3d
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.standin.ho3d import write_ho3d
from tests.shared.rgbd_checks import depth_agreement, mano_of, share_on

K = np.float32([[617.343, 0, 312.42], [0, 617.343, 241.42], [0, 0, 1]])


def write_depth(path: Path, value: np.ndarray, channels: int = 3) -> None:
    picture = np.full((*value.shape, channels), 255, np.uint8)
    picture[..., 0], picture[..., 1], picture[..., 2] = value & 255, value >> 8, 77
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def evaluation_meta(**changes: Any) -> dict[str, Any]:
    rest = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * [0.03, 0.05, 0.1]
    angle = 0.7
    R = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return {
        "camMat": K,
        "handJoints3D": np.float32([0.05, 0.1, -0.6]),
        "handBoundingBox": [np.float64(300), np.float64(100), np.float64(420), np.float64(250)],
        "objRot": np.float32([[angle], [0], [0]]),
        "objTrans": np.float32([0.01, 0.02, -0.5]),
        "objName": "021_bleach_cleanser",
        "objLabel": 12,
        "objCorners3DRest": rest,
        "objCorners3D": rest @ R.T + np.float32([0.01, 0.02, -0.5]),
    } | changes


def training_meta(rng: np.random.Generator) -> dict[str, Any]:
    joints = rng.uniform(-0.1, 0.1, (21, 3)) - [0, 0, 0.5]
    return evaluation_meta(
        handJoints3D=joints.astype(np.float32),
        handPose=rng.normal(0, 0.5, 48).astype(np.float32),
        handTrans=rng.normal(0, 0.1, 3).astype(np.float32),
        handBeta=rng.normal(0, 1, 10).astype(np.float32),
    )


def dump(path: Path, content: object, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        pickle.dumps(content, protocol).replace(b"numpy._core", b"numpy.core")
        if protocol < 4
        else pickle.dumps(content, protocol)
    )
    return path


# ------------------------------------------------------------------------------------------------ single files


@pytest.mark.parametrize("channels", [3, 4])
def test_depth_is_red_plus_256_green(tmp_path: Path, channels: int) -> None:
    value = np.array([[0, 1, 255, 256], [257, 4000, 65280, 65535]], np.uint16)
    write_depth(tmp_path / "d.png", value, channels)
    depth = ho3d.read_depth(tmp_path / "d.png", expected_size=(4, 2))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, value.astype(np.float64) * 0.12498664727900177, rtol=1e-7)
    assert depth[0, 0] == 0


def test_depth_of_another_kind_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 4), np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((2, 4), np.uint16)).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        with pytest.raises(DataError, match=f"{name}.*RGB"):
            ho3d.read_depth(tmp_path / name)
    write_depth(tmp_path / "d.png", np.zeros((2, 4), np.uint16))
    with pytest.raises(DataError, match="expected 640x480"):
        ho3d.read_depth(tmp_path / "d.png", expected_size=(640, 480))
    with pytest.raises(MissingFileError, match=r"none\.png"):
        ho3d.read_depth(tmp_path / "none.png")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_evaluation_meta(tmp_path: Path, protocol: int) -> None:
    meta = ho3d.read_meta(dump(tmp_path / "m.pkl", evaluation_meta(), protocol))
    assert meta.labelled
    np.testing.assert_array_equal(meta.K, K.astype(np.float64))
    np.testing.assert_allclose(meta.root_mm, [50, -100, 600], atol=1e-4)
    assert meta.joints_mm is None
    assert meta.pose is None
    np.testing.assert_array_equal(meta.bbox_xyxy, [300, 100, 420, 250])
    assert meta.object_name == "021_bleach_cleanser"
    # the object's corners, once from the file and once from its pose
    rest_mm = np.c_[evaluation_meta()["objCorners3DRest"] * 1000, np.ones(8)]
    assert meta.T_cam_object is not None
    np.testing.assert_allclose((rest_mm @ meta.T_cam_object.T)[:, :3], meta.object_corners_mm, atol=1e-3)
    assert (meta.object_corners_mm[:, 2] > 0).all()


def test_training_meta(tmp_path: Path) -> None:
    raw = training_meta(np.random.default_rng(0))
    meta = ho3d.read_meta(dump(tmp_path / "m.pkl", raw))
    np.testing.assert_allclose(meta.joints_mm, raw["handJoints3D"].astype(float) * [1000, -1000, -1000])
    np.testing.assert_array_equal(meta.root_mm, meta.joints_mm[0])
    np.testing.assert_allclose(meta.betas, raw["handBeta"])
    np.testing.assert_allclose(meta.hand_trans_mm, raw["handTrans"].astype(float) * 1000)
    np.testing.assert_array_equal(meta.pose[3:], raw["handPose"][3:])


@pytest.mark.parametrize("none", [("handJoints3D", "handPose", "objRot"), ("objRot",), ("handJoints3D",)])
def test_frames_without_annotation(tmp_path: Path, none: tuple[str, ...]) -> None:
    raw = training_meta(np.random.default_rng(0)) | dict.fromkeys(none)
    assert not ho3d.read_meta(dump(tmp_path / "m.pkl", raw)).labelled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camMat": np.zeros((3, 3))}, "camMat.*positive focal"),
        ({"camMat": np.eye(4)}, r"camMat: expected shape \(3, 3\)"),
        ({"camMat": None}, "camMat"),
        ({"handJoints3D": np.float32([1, 2, np.nan])}, "handJoints3D.*not finite"),
        ({"handJoints3D": np.zeros((20, 3))}, r"handJoints3D: expected shape \(21, 3\)"),
        ({"handJoints3D": "wrist"}, "handJoints3D: expected numbers"),
        ({"handPose": np.zeros(45)}, r"handPose: expected shape \(48,\)"),
        ({"handBoundingBox": [1, 2, 3]}, "handBoundingBox"),
        ({"objTrans": np.full(3, np.inf)}, "objTrans.*not finite"),
    ],
)
def test_damaged_meta_names_file_and_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = dump(tmp_path / "m.pkl", evaluation_meta(**changes))
    with pytest.raises(DataError, match=message) as error:
        ho3d.read_meta(path)
    assert str(path) in str(error.value)


def test_other_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="camMat and handJoints3D"):
        ho3d.read_meta(dump(tmp_path / "list.pkl", [1, 2]))
    with pytest.raises(DataError, match="camMat and handJoints3D"):
        ho3d.read_meta(dump(tmp_path / "dict.pkl", {"camMat": K}))
    with pytest.raises(MissingFileError, match=r"none.pkl.*github.com/shreyashampali/ho3d"):
        ho3d.read_meta(tmp_path / "none.pkl")


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_hostile_meta_runs_nothing(tmp_path: Path) -> None:
    path = dump(tmp_path / "m.pkl", evaluation_meta(handBeta=_Evil(tmp_path / "owned")))
    with pytest.raises(DataError, match="mkdir"):
        ho3d.read_meta(path)
    assert not (tmp_path / "owned").exists()


def test_a_list_of_shared_lists_in_a_meta_is_refused_at_once(tmp_path: Path) -> None:
    bomb: list[object] = [0.0] * 21
    for _ in range(20):
        bomb = [bomb] * 21
    path = dump(tmp_path / "m.pkl", evaluation_meta(handJoints3D=bomb))
    start = time.process_time()
    with pytest.raises(DataError, match=r"m\.pkl"):
        ho3d.read_meta(path)
    assert time.process_time() - start < 1


def error_of(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except DataError as error:
        return str(error)
    return None


@settings(max_examples=60, deadline=1000)
@given(data=st.data())
def test_damaged_bytes_give_a_data_error_or_a_result(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("h")
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "png")
    originals = (
        (ho3d.read_meta, pickle.dumps(evaluation_meta(), 2)),
        (ho3d.read_depth, picture.getvalue()),
        (ho3d.read_list, b"ABF10/0000\nABF10/0001\n"),
        (ho3d.read_evaluation_xyz, json.dumps(np.ones((2, 21, 3)).tolist()).encode()),
    )
    read, original = data.draw(st.sampled_from(originals))
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "file"
    path.write_bytes(damaged)
    assert str(path) in (error_of(read, path) or str(path))


def test_a_picture_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    write_depth(tmp_path / "d.png", np.zeros((2, 4), np.uint16))
    data = bytearray((tmp_path / "d.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    (tmp_path / "d.png").write_bytes(data)
    with pytest.raises(DataError, match="60000x60000"):
        ho3d.read_depth(tmp_path / "d.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("ABF10/0000\n../../etc/passwd\n", "line 2: expected SEQ/FID"),
        ("ABF10\n", "line 1: expected SEQ/FID"),
        ("A/1\nB/1\n\nA/1\n", "line 4: A/1 is already in line 1"),
    ],
)
def test_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        ho3d.read_list(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("B/0001\r\n\r\nA/0000\r\n")
    assert ho3d.read_list(tmp_path / "train.txt") == ["B/0001", "A/0000"]


def test_evaluation_files_are_turned_to_opencv_and_mm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for count, read in ((21, ho3d.read_evaluation_xyz), (778, ho3d.read_evaluation_verts)):
        values = rng.normal(0, 0.1, (3, count, 3))
        (tmp_path / "e.json").write_text(json.dumps(values.tolist()))
        np.testing.assert_allclose(read(tmp_path / "e.json"), values * [1000, -1000, -1000], rtol=1e-6)
        (tmp_path / "e.json").write_text(json.dumps(values[:, 1:].tolist()))
        with pytest.raises(DataError, match="entry 0"):
            read(tmp_path / "e.json")


# ------------------------------------------------------------------------------------------------ MANO


def test_pose_conversion_matches_scipy_and_the_golden_numbers(golden: Path) -> None:
    from scipy.spatial.transform import Rotation

    from tests.golden.fill import uniform

    flip = Rotation.from_matrix(np.diag([1.0, -1, -1]))
    rng = np.random.default_rng(0)
    poses = np.concatenate([rng.normal(0, 1.5, (200, 48)), np.zeros((1, 48)), rng.normal(0, 1e-9, (5, 48))])
    expected = (flip * Rotation.from_rotvec(poses[:, :3])).as_matrix()
    turned = ho3d.pose_to_opencv(poses)
    np.testing.assert_allclose(Rotation.from_rotvec(turned[:, :3]).as_matrix(), expected, atol=1e-12)
    assert np.linalg.norm(turned[:, :3], axis=1).max() <= np.pi + 1e-12
    np.testing.assert_array_equal(turned[:, 3:], poses[:, 3:])

    raw = uniform("handoccnet/convert/handPose", (5, 48), -0.8, 0.8)
    raw[:, :3] *= 2
    mean = np.load(golden / "handoccnet" / "mano_standin.npz")["hands_mean"]
    pose = ho3d.pose_to_opencv(raw)
    pose[:, 3:] -= mean
    difference = np.abs(pose - np.load(golden / "handoccnet" / "convert.npz")["ho3d_pose"]).max()
    print(f"HO-3D pose conversion: max diff {difference:.3g}")
    assert difference < 1e-5


# ------------------------------------------------------------------------------------------------ broken trees


def small_tree(root: Path, version: str = "v2") -> Path:
    """Two sequences of two frames; the list has another order than the folders; one frame has no annotation."""
    rng = np.random.default_rng(0)
    suffix = "png" if version == "v2" else "jpg"
    for name in ("B/0000", "B/0001", "A/0000", "A/0001"):
        seq, fid = name.split("/")
        for split, meta in (("train", training_meta(rng)), ("evaluation", evaluation_meta())):
            if split == "train" and name == "A/0000":
                meta |= {"handJoints3D": None, "handPose": None, "handTrans": None, "handBeta": None, "objRot": None}
            dump(root / split / seq / "meta" / f"{fid}.pkl", meta)
            write_depth(root / split / seq / "depth" / f"{fid}.png", np.full((480, 640), 4800, np.uint16))
            (root / split / seq / "rgb").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((480, 640, 3), 90, np.uint8)).save(root / split / seq / "rgb" / f"{fid}.{suffix}")
    for split in ("train", "evaluation"):
        (root / f"{split}.txt").write_text("B/0001\nA/0000\nA/0001\nB/0000\n")
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("ho3d"))


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    shutil.copytree(tree, tmp_path / "HO3D")
    return tmp_path / "HO3D"


def test_the_list_gives_the_order_and_unlabelled_frames_are_skipped(tree: Path, tmp_path: Path) -> None:
    data = ho3d.open(tree, "train", index=tmp_path / "index.json")
    assert isinstance(data, FrameDataset)
    assert data.names() == ["B/0001", "A/0001", "B/0000"]
    assert [data[i].name for i in range(3)] == data.names()
    assert [data[i].extra["list_index"] for i in range(3)] == [0, 2, 3]
    assert "HO-3D v2 train: 3 of 4 listed frames" in data.summary()
    assert "0 missing on disk, 1 without label" in data.summary()
    again = pickle.loads(pickle.dumps(ho3d.open(tree, "train", index=tmp_path / "index.json")))
    assert again.names() == data.names()
    np.testing.assert_array_equal(again[1].joints_mm, data[1].joints_mm)
    frame = data[0]
    assert frame.rgb is not None
    assert frame.rgb.shape == (480, 640, 3)
    assert frame.depth_mm is not None
    assert frame.depth_mm[0, 0] == pytest.approx(599.936, abs=1e-3)
    bare = ho3d.open(tree, "train", rgb=False, depth=False, version="v2")[0]
    assert bare.rgb is None
    assert bare.depth_mm is None


def test_version_3_has_jpeg_colour(tmp_path: Path) -> None:
    data = ho3d.open(small_tree(tmp_path, "v3"), "train")
    assert data.version == "v3"
    assert data[0].rgb is not None
    with pytest.raises(MissingFileError, match=r"B/rgb/0001\.png.*unpack all of HO-3D v2"):
        ho3d.open(tmp_path, "train", version="v2")


def test_absent_frames(own_tree: Path) -> None:
    (own_tree / "train" / "B" / "depth" / "0001.png").unlink()
    (own_tree / "evaluation" / "B" / "meta" / "0000.pkl").unlink()
    data = ho3d.open(own_tree, "train")
    assert data.names() == ["A/0001", "B/0000"]
    assert "1 missing on disk" in data.summary()
    with pytest.raises(MissingFileError, match=r"1 of 4 frames of train.txt.*B/depth/0001\.png.*missing='skip'"):
        ho3d.open(own_tree, "train", missing="error")
    with pytest.raises(MissingFileError, match=r"B/meta/0000\.pkl"):
        ho3d.open(own_tree, "evaluation")
    assert ho3d.open(own_tree, "evaluation", missing="skip").names() == ["B/0001", "A/0000", "A/0001"]
    assert len(ho3d.open(own_tree, "train", depth=False)) == 3  # depth is not asked for, so it may be absent


def test_missing_root_list_and_folder(own_tree: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere.*train\.txt.*github\.com/shreyashampali/ho3d"):
        ho3d.open(own_tree / "nowhere", "train")
    shutil.rmtree(own_tree / "train" / "A")
    shutil.rmtree(own_tree / "train" / "B")
    with pytest.raises(MissingFileError, match="none of the 4 listed frames"):
        ho3d.open(own_tree, "train")
    with pytest.raises(MissingFileError, match="4 of 4 frames"):
        ho3d.open(own_tree, "train", version="v3", missing="skip")
    shutil.rmtree(own_tree / "train")
    with pytest.raises(MissingFileError, match=r"train.*no such folder"):
        ho3d.open(own_tree, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "splits train and evaluation, got 'test'"),
        ({"version": "v1"}, "versions v2 and v3, got 'v1'"),
        ({"missing": "ignore"}, "skip or error, got 'ignore'"),
        ({"verts": True}, "vertices for the evaluation split only"),
    ],
)
def test_unknown_options(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ho3d.open(**({"root": tree, "split": "train"} | options))


def test_evaluation_ground_truth(own_tree: Path) -> None:
    data = ho3d.open(own_tree, "evaluation")
    assert data[0].joints_mm is None
    np.testing.assert_allclose(data[0].extra["root_mm"], [50, -100, 600], atol=1e-4)
    np.testing.assert_array_equal(data[0].extra["bbox_xywh"], [300, 100, 120, 150])
    assert "wrist only" in data.summary()
    with pytest.raises(MissingFileError, match=r"evaluation_verts\.json"):
        ho3d.open(own_tree, "evaluation", verts=True)
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-0.05, 0.05, (4, 21, 3)) + evaluation_meta()["handJoints3D"]
    xyz[:, 0] = evaluation_meta()["handJoints3D"]
    verts = rng.uniform(-0.1, 0.1, (4, 778, 3))
    (own_tree / "evaluation_xyz.json").write_text(json.dumps(xyz.tolist()))
    (own_tree / "evaluation_verts.json").write_text(json.dumps(verts.tolist()))
    (own_tree / "evaluation" / "A" / "meta" / "0000.pkl").unlink()  # truth is found by list line, not by position
    data = ho3d.open(own_tree, "evaluation", verts=True, missing="skip")
    assert data.names()[1] == "A/0001"
    np.testing.assert_allclose(data[1].joints_mm, xyz[2] * [1000, -1000, -1000])
    np.testing.assert_allclose(data[1].verts_mm, verts[2] * [1000, -1000, -1000], rtol=1e-6)
    assert "joints from evaluation_xyz.json" in data.summary()
    (own_tree / "evaluation_xyz.json").write_text(json.dumps(xyz[:3].tolist()))
    with pytest.raises(DataError, match=r"evaluation_xyz\.json: has 3 frames, evaluation\.txt has 4.*v3"):
        ho3d.open(own_tree, "evaluation", missing="skip")
    (own_tree / "evaluation_xyz.json").write_text(json.dumps((xyz * [1, -1, -1]).tolist()))
    with pytest.raises(DataError, match="puts the wrist of line 1"):
        ho3d.open(own_tree, "evaluation", missing="skip")[0]


def test_labels_that_changed_after_opening(own_tree: Path) -> None:
    data = ho3d.open(own_tree, "train")
    path = own_tree / "train" / "B" / "meta" / "0001.pkl"
    dump(path, evaluation_meta())
    with pytest.raises(DataError, match="expected 21 joints in a training meta"):
        data[0]
    dump(path, evaluation_meta(handJoints3D=None))
    with pytest.raises(DataError, match="the label is gone"):
        data[0]


# ------------------------------------------------------------------------------------------------ stand-in round trips


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("standin")
    write_ho3d(root, frames=6, seed=3)
    return root


def test_the_standin_is_in_the_official_format(standin: Path) -> None:
    raw = (standin / "train" / "SS1" / "meta" / "0000.pkl").read_bytes()
    assert raw[:2] == b"\x80\x02"
    names = set(re.findall(rb"c([a-zA-Z_.]+\n[a-zA-Z_]+)\n", raw))
    assert names == {
        b"numpy.core.multiarray\n_reconstruct",
        b"numpy\nndarray",
        b"numpy\ndtype",
        b"_codecs\nencode",
    }
    assert Image.open(standin / "train" / "SS1" / "depth" / "0000.png").mode == "RGB"
    assert sorted(p.name for p in standin.iterdir()) == [
        "evaluation",
        "evaluation.txt",
        "evaluation_verts.json",
        "evaluation_xyz.json",
        "train",
        "train.txt",
    ]
    data = ho3d.open(standin, "train")
    assert (len(data), data.unlabelled) == (6, 1)
    assert data.names() != sorted(data.names())


def test_mano_parameters_give_the_labels(standin: Path) -> None:
    for frame in ho3d.open(standin, "train"):  # type: ignore[attr-defined]
        _, joints = mano_of(frame, "ho3d", "mano")
        difference = np.abs(joints - frame.joints_mm).max()
        print(f"{frame.name}: MANO joints max diff {difference:.3g} mm")
        assert difference < 0.01
        # the layer of another package's tips, an unconverted pose and the flat-mean mix-up would all be noticed
        assert np.abs(mano_of(frame, "manopth", "mano")[1] - frame.joints_mm)[16:].max() > 0.3
        wrong = replace(frame, extra=frame.extra | {"flat_hand_mean": False})
        assert np.abs(mano_of(wrong, "ho3d", "mano")[1] - frame.joints_mm).max() > 5
        path = standin / "train" / (frame.name.replace("/", "/meta/") + ".pkl")
        meta = ho3d.read_meta(path)
        still = replace(frame, extra=frame.extra | {"pose": np.zeros(48), "transl_mm": np.zeros(3)})
        rest = mano_of(still, "ho3d", "mano")
        raw = pickle.loads(path.read_bytes())
        pose, transl = ho3d.mano_to_opencv(raw["handPose"], meta.hand_trans_mm, rest[1][0])
        np.testing.assert_allclose(transl, frame.joints_mm[0] - rest[1][0], atol=1e-3)
        np.testing.assert_allclose(pose, frame.extra["pose"], atol=1e-12)


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_labels_lie_on_the_pictures(standin: Path, split: str) -> None:
    data = ho3d.open(standin, split, verts=split == "evaluation")  # type: ignore[arg-type]
    flipped = []
    for i in range(len(data)):
        frame = data[i]
        assert frame.depth_mm is not None
        assert frame.joints_mm is not None
        seen = (frame.depth_mm > 0) & (frame.depth_mm < 950)  # hand and object in front of the wall
        assert share_on(seen, frame.joints_mm, frame.K) == 1
        flipped += [share_on(seen, frame.joints_mm * sign, frame.K) for sign in ([-1, 1, 1], [1, -1, 1])]
        verts = mano_of(frame, "ho3d", "mano")[0] if split == "train" else frame.verts_mm
        assert verts is not None
        same, behind = depth_agreement(frame, verts, 0.3)
        print(f"{frame.name}: {same:.0%} of the hand's pixels have its depth, {behind:.2%} are behind it")
        assert same > 0.4
        assert behind == 0
        turned = (verts - verts.mean(0)) * [1, 1, -1] + verts.mean(0)
        assert depth_agreement(frame, turned, 0.3)[0] < 0.2
        corners = frame.extra["object_corners_mm"]
        assert share_on(seen, corners.mean(0)[None], frame.K) == 1
        if split == "evaluation":
            x, y, w, h = frame.extra["bbox_xywh"]
            u, v = project(frame.verts_mm, frame.K).T
            np.testing.assert_allclose([u.min(), v.min(), u.max(), v.max()], [x, y, x + w, y + h], atol=1e-2)
    assert np.mean(flipped) < 0.6


def test_standin_is_reproducible_and_checks_its_options(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_ho3d(tmp_path / name, frames=1, seed=1, version="v3")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 4 * 3 + 4
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    assert ho3d.open(tmp_path / "a", "train").version == "v3"
    with pytest.raises(DataError, match="expected frames >= 1"):
        write_ho3d(tmp_path / "c", frames=0)
    with pytest.raises(DataError, match="v2 or v3"):
        write_ho3d(tmp_path / "c", version="v4")  # type: ignore[arg-type]
