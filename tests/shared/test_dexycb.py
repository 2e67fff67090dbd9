"""DexYCB: splits, single files, safe YAML, broken trees, mirroring, and round trips through the stand-in writer."""

from __future__ import annotations

import io
import pickle
import shutil
import time
import zipfile
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
from shared.datasets import dexycb
from shared.datasets.base import Frame, FrameDataset
from shared.datasets.mirror import mirror_frame
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano, mirror_model
from shared.standin.dexycb import frames_per_folder, write_dexycb
from tests.shared.rgbd_checks import depth_agreement, mano_of, share_on, surface

K = np.array([[616.641, 0, 308.548], [0, 616.258, 248.523], [0, 0, 1]])
INTRINSICS = """color:
  fx: 616.641
  fy: 616.258
  ppx: 308.548
  ppy: 248.523
depth: {fx: 389.1, fy: 389.2, ppx: 320.5, ppy: 240.25}
extrinsics: !!python/tuple
- 0.99998
- 0.0012
- -0.0052
- -0.0013
- 0.9999
- -0.007
- 0.0052
- 0.007
- 0.9999
- 0.0148
- 0.0003
- 0.0004
"""


def labels(rng: np.random.Generator, **changes: Any) -> dict[str, Any]:
    joints = rng.uniform(-0.1, 0.1, (1, 21, 3)) + np.array([0, 0, 0.7])
    uvw = joints @ K.T
    return {
        "seg": rng.integers(0, 22, (480, 640)).astype(np.uint8),
        "pose_y": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "pose_m": rng.normal(size=(1, 51)).astype(np.float32),
        "joint_3d": joints.astype(np.float32),
        "joint_2d": (uvw[..., :2] / uvw[..., 2:]).astype(np.float32),
    } | changes


NO_HAND = {
    "pose_m": np.zeros((1, 51), np.float32),
    "joint_3d": np.full((1, 21, 3), -1, np.float32),
    "joint_2d": np.full((1, 21, 2), -1, np.float32),
}


# ------------------------------------------------------------------------------------------------ splits


def test_splits_of_the_toolkit() -> None:
    everyone, all_cameras, hundred = list(range(10)), list(range(8)), set(range(100))
    subjects, cameras, sequences = dexycb.split_indices("s0_train")
    assert (subjects, cameras) == (everyone, all_cameras)
    assert len(sequences) == 80
    assert 4 not in sequences
    assert dexycb.split_indices("s0_val") == ([0, 1], all_cameras, list(range(4, 100, 5)))
    assert dexycb.split_indices("s0_test") == (list(range(2, 10)), all_cameras, list(range(4, 100, 5)))
    assert [dexycb.split_indices(f"s1_{p}")[0] for p in ("train", "val", "test")] == [
        [0, 1, 2, 3, 4, 5, 9],
        [6],
        [7, 8],
    ]
    assert [dexycb.split_indices(f"s2_{p}")[1] for p in ("train", "val", "test")] == [[0, 1, 2, 3, 4, 5], [6], [7]]
    assert dexycb.split_indices("s3_val")[2] == [*range(15, 20), *range(95, 100)]
    assert dexycb.split_indices("s3_test")[2] == [*range(35, 40), *range(55, 60), *range(75, 80)]
    for setup in ("s0", "s1", "s2", "s3"):  # nothing is in two parts, and (but for s0) nothing is in none
        parts = [dexycb.split_indices(f"{setup}_{p}") for p in ("train", "val", "test")]
        triples = [{(a, b, c) for a in s for b in k for c in q} for s, k, q in parts]
        assert len(set.union(*triples)) == sum(map(len, triples)) == 8000
        assert set.union(*(set(q) for _, _, q in parts)) == hundred


@pytest.mark.parametrize("name", ["s4_train", "s0", "s0_eval", "train", ""])
def test_unknown_split(name: str) -> None:
    with pytest.raises(DataError, match="s0 to s3 with _train, _val or _test"):
        dexycb.split_indices(name)


# ------------------------------------------------------------------------------------------------ YAML


def test_intrinsics_with_the_tuple_tag(tmp_path: Path) -> None:
    path = tmp_path / "836212060125_640x480.yml"
    path.write_text(INTRINSICS)
    camera = dexycb.read_intrinsics(path)
    np.testing.assert_array_equal(camera.K, K)
    np.testing.assert_array_equal(camera.K_depth, [[389.1, 0, 320.5], [0, 389.2, 240.25], [0, 0, 1]])
    assert camera.extrinsics is not None
    assert camera.extrinsics[[0, 11]].tolist() == [0.99998, 0.0004]
    path.write_text("color: {fx: 1, fy: 2, ppx: 3, ppy: 4}")
    bare = dexycb.read_intrinsics(path)
    assert bare.K_depth is None
    assert bare.extrinsics is None


def _aliases(levels: int, start: str) -> str:
    lines = [f"a0: &a0 {start}"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color: !!python/object/apply:os.system ['touch owned']", "python/object/apply:os.system"),
        ("color: !!python/name:os.system", "python/name"),
        ("color: !!python/object/new:tuple [[1]]", "python/object/new"),
        ("color: !!python/tuple {a: 1}", "must be a list"),
        ("? !!python/tuple [1, 2]\n: 3", "unhashable"),
        ("color: {fx: 1, fy: 2, ppx: 3}", "color: fx, fy, ppx, ppy"),
        ("color: {fx: 1, fy: '2', ppx: 3, ppy: 4}", "color: fx, fy, ppx, ppy"),
        ("color: {fx: 1, fy: .nan, ppx: 3, ppy: 4}", "not finite"),
        ("color: {fx: 0, fy: 1, ppx: 3, ppy: 4}", "positive focal"),
        ("color: [1, 2]", "expected a mapping color"),
        ("depth: {}", "expected a mapping color"),
        ("- color", "expected a YAML mapping, got list"),
        ("", "expected a YAML mapping, got NoneType"),
        ("color: {fx: 1", "not a YAML file"),
        ("\x00", "not a YAML file"),
        ("<html>: <<: &", "not a YAML file"),
        ("a: " + "[" * 3000, "not a YAML file"),
        ("x" * 70_000, "more than 64 KiB"),
        (INTRINSICS.replace("- 0.99998\n", ""), r"extrinsics: expected numbers of shape \(12,\)"),
        (_aliases(12, "[1, 1]") + "color: *a11", "expected a mapping color"),
        (_aliases(12, "[1, 1]") + "color: {fx: *a11, fy: 1, ppx: 1, ppy: 1}", "color: fx, fy, ppx, ppy"),
        ("a: &a {x: 1}\nb: {<<: *a}\ncolor: {fx: 1, fy: 1, ppx: 1, ppy: 1}", "merge keys are not read"),
        ("color: {fx: 1" + ":59" * 2000 + ", fy: 1, ppx: 1, ppy: 1}", "not finite"),
    ],
)
def test_yaml_is_read_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "i.yml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(DataError, match=message) as error:
        dexycb.read_intrinsics(path)
    assert time.process_time() - start < 1
    assert str(path) in str(error.value)
    assert not (tmp_path / "owned").exists()


META = {
    "serials": list(dexycb.SERIALS),
    "num_frames": 2,
    "extrinsics": "20200709",
    "mano_calib": ["cal_a"],
    "mano_sides": ["right"],
    "ycb_ids": [3, 8],
    "ycb_grasp_ind": 1,
}


def write_yaml(path: Path, content: object) -> Path:
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def test_sequence_meta_and_betas(tmp_path: Path) -> None:
    meta = dexycb.read_meta(write_yaml(tmp_path / "meta.yml", META))
    assert meta == dexycb.SequenceMeta(dexycb.SERIALS, 2, "right", "cal_a", (3, 8), 1)
    betas = dexycb.read_betas(write_yaml(tmp_path / "mano.yml", {"betas": [0.1 * i for i in range(10)]}))
    np.testing.assert_allclose(betas, 0.1 * np.arange(10))
    with pytest.raises(DataError, match="betas: expected numbers"):
        dexycb.read_betas(write_yaml(tmp_path / "mano.yml", {"betas": [1, 2]}))
    for changes, message in (
        ({"mano_sides": ["both"]}, "expected right or left, got 'both'"),
        ({"mano_sides": []}, "mano_sides: expected a list of names"),
        ({"mano_calib": "x"}, "mano_calib: expected a list of names"),
        ({"num_frames": -1}, "num_frames: expected a number"),
        ({"num_frames": True}, "num_frames: expected a number"),
        ({"num_frames": 10**9}, "num_frames: expected a number"),
        ({"ycb_ids": ["a"]}, "ycb_ids: expected a list of integers"),
    ):
        with pytest.raises(DataError, match=message):
            dexycb.read_meta(write_yaml(tmp_path / "meta.yml", META | changes))


# ------------------------------------------------------------------------------------------------ one frame


def test_labels(tmp_path: Path) -> None:
    raw = labels(np.random.default_rng(0))
    np.savez_compressed(tmp_path / "l.npz", **raw)
    read = dexycb.read_labels(tmp_path / "l.npz")
    assert read.valid
    np.testing.assert_allclose(read.joints_mm, raw["joint_3d"][0].astype(float) * 1000)
    np.testing.assert_array_equal(read.keypoints_2d, raw["joint_2d"][0])
    np.testing.assert_array_equal(read.pose_pca, raw["pose_m"][0, :48])
    np.testing.assert_allclose(read.transl_mm, raw["pose_m"][0, 48:].astype(float) * 1000)
    np.testing.assert_array_equal(read.T_cam_objects[:, :3, :3], raw["pose_y"][:, :, :3])
    np.testing.assert_allclose(read.T_cam_objects[:, :3, 3], raw["pose_y"][:, :, 3].astype(float) * 1000)
    np.testing.assert_array_equal(read.T_cam_objects[:, 3], [[0, 0, 0, 1]] * 2)
    np.testing.assert_array_equal(read.seg, raw["seg"])
    np.savez(tmp_path / "l.npz", **(raw | NO_HAND))
    read = dexycb.read_labels(tmp_path / "l.npz")
    assert not read.valid
    assert read.joints_mm is read.keypoints_2d is read.pose_pca is read.transl_mm is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint_3d": np.zeros((1, 20, 3))}, r"joint_3d: expected shape \(21, 3\)"),
        ({"pose_m": np.full((1, 51), np.nan)}, "pose_m: holds values that are not finite"),
        ({"joint_3d": np.full((1, 21, 3), -0.5)}, "behind the camera"),
        ({"seg": np.zeros((480, 640))}, "seg: expected a picture of uint8"),
        ({"pose_y": np.zeros((2, 4, 4))}, r"pose_y: expected shape \(2, 3, 4\)"),
        ({"pose_y": np.array(["a", "b"])}, "pose_y: expected numbers"),
    ],
)
def test_damaged_labels(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "l.npz", **labels(np.random.default_rng(0), **changes))
    with pytest.raises(DataError, match=message) as error:
        dexycb.read_labels(tmp_path / "l.npz")
    assert "l.npz" in str(error.value)


def test_has_hand_agrees_with_the_labels(tmp_path: Path) -> None:
    raw = labels(np.random.default_rng(0), seg=np.zeros((4, 4), np.uint8))
    one = np.full((1, 21, 3), -1.0)
    one[0, 20, 2] = 0.5
    one[0, :20, 2] = 0.4
    doubles = {"joint_3d": np.full((1, 21, 3), -1.0)}
    for changes, expected in ((raw, True), (NO_HAND, False), ({"joint_3d": one}, True), (doubles, False)):
        for save in (np.savez, np.savez_compressed):
            save(tmp_path / "l.npz", **(raw | changes))  # type: ignore[arg-type]
            assert dexycb.has_hand(tmp_path / "l.npz") == dexycb.read_labels(tmp_path / "l.npz").valid == expected
    np.savez(tmp_path / "l.npz", **(raw | {"joint_3d": np.asfortranarray(raw["joint_3d"][0])}))
    assert dexycb.has_hand(tmp_path / "l.npz")
    np.savez(tmp_path / "l.npz", **(raw | {"joint_3d": np.zeros((1, 20, 3))}))
    with pytest.raises(DataError, match="joint_3d"):
        dexycb.has_hand(tmp_path / "l.npz")
    with pytest.raises(MissingFileError, match=r"none\.npz"):
        dexycb.has_hand(tmp_path / "none.npz")


def test_labels_without_an_array_or_with_objects(tmp_path: Path) -> None:
    raw = labels(np.random.default_rng(0))
    np.savez(tmp_path / "l.npz", **{k: v for k, v in raw.items() if k != "joint_2d"})
    with pytest.raises(DataError, match="has no array joint_2d, only seg, pose_y"):
        dexycb.read_labels(tmp_path / "l.npz")
    np.savez(tmp_path / "l.npz", **raw, extra=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"l\.npz"):
        dexycb.read_labels(tmp_path / "l.npz")
    with pytest.raises(MissingFileError, match=r"none\.npz.*dex-ycb\.github\.io"):
        dexycb.read_labels(tmp_path / "none.npz")


def test_a_zip_bomb_is_refused_at_once(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 30,)})
    with (
        zipfile.ZipFile(tmp_path / "l.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("seg.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(64):
            member.write(bytes(1 << 20))
    start = time.process_time()
    with pytest.raises(DataError, match=r"l\.npz"):
        dexycb.read_labels(tmp_path / "l.npz")
    assert time.process_time() - start < 1


def test_depth_is_millimetres_as_stored(tmp_path: Path) -> None:
    value = np.array([[0, 1, 700], [9999, 10001, 65535]], np.uint16)
    Image.fromarray(value).save(tmp_path / "d.png")
    depth = dexycb.read_depth(tmp_path / "d.png")
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, value)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "d.png")
    with pytest.raises(DataError, match="one channel of 16 bits"):
        dexycb.read_depth(tmp_path / "d.png")


def error_of(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except DataError as error:
        return str(error)
    return None


def _originals() -> list[tuple[Callable[[Path], object], bytes]]:
    npz = io.BytesIO()
    np.savez_compressed(npz, **labels(np.random.default_rng(0), seg=np.zeros((48, 64), np.uint8)))
    png = io.BytesIO()
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(png, "png")
    return [
        (dexycb.read_labels, npz.getvalue()),
        (dexycb.has_hand, npz.getvalue()),
        (dexycb.read_depth, png.getvalue()),
        (dexycb.read_intrinsics, INTRINSICS.encode()),
        (dexycb.read_meta, str(META).encode()),
    ]


ORIGINALS = _originals()


@settings(max_examples=100, deadline=1000)
@given(data=st.data())
def test_damaged_bytes_give_a_data_error_or_a_result(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    read, original = data.draw(st.sampled_from(ORIGINALS))
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("h") / "file"
    path.write_bytes(damaged)
    assert str(path) in (error_of(read, path) or str(path))


def test_pca_pose_matches_the_golden_numbers(golden: Path) -> None:
    from tests.golden.fill import uniform

    components = np.load(golden / "handoccnet" / "mano_standin.npz")["hands_components"]
    pose = dexycb.pca_to_pose(uniform("handoccnet/convert/pose_m", (5, 48), -1, 1), components)
    difference = np.abs(pose - np.load(golden / "handoccnet" / "convert.npz")["dex_pose"]).max()
    print(f"DexYCB pose conversion: max diff {difference:.3g}")
    assert difference < 1e-5
    with pytest.raises(DataError, match=r"components \(45, 45\), got \(48,\) and \(6, 45\)"):
        dexycb.pca_to_pose(np.zeros(48), components[:6])


# ------------------------------------------------------------------------------------------------ trees


def small_tree(root: Path) -> Path:
    """Subject 1, six sequences (s0 holds out number 4), two of eight cameras, two frames; sequence 1 is a left hand."""
    rng = np.random.default_rng(0)
    subject = root / dexycb.SUBJECTS[0]
    for i in range(6):
        sequence = subject / f"20200709_14{i:04d}"
        meta = META | {"mano_sides": ["left" if i == 1 else "right"], "mano_calib": [f"cal_{i % 2}"]}
        write_yaml(sequence / "meta.yml", meta)
        for serial in dexycb.SERIALS[2:4]:
            (sequence / serial).mkdir()
            for frame in range(2):
                empty = i == 2 and frame == 1
                content = labels(rng, seg=np.full((480, 640), 255, np.uint8)) | (NO_HAND if empty else {})
                np.savez_compressed(sequence / serial / f"labels_{frame:06d}.npz", **content)
                Image.fromarray(np.full((480, 640, 3), 40 * i, np.uint8)).save(
                    sequence / serial / f"color_{frame:06d}.jpg"
                )
                depth = np.full((480, 640), 700, np.uint16)
                depth[0, :3] = 0, 10_000, 65_535
                Image.fromarray(depth).save(sequence / serial / f"aligned_depth_to_color_{frame:06d}.png")
    for serial in dexycb.SERIALS[2:4]:
        path = root / "calibration" / "intrinsics" / f"{serial}_640x480.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(INTRINSICS)
    for i in range(2):
        write_yaml(root / "calibration" / f"mano_cal_{i}" / "mano.yml", {"betas": [float(i)] * 10})
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("dexycb"))


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    shutil.copytree(tree, tmp_path / "dex")
    return tmp_path / "dex"


def test_order_numbers_and_what_is_left_out(tree: Path, tmp_path: Path) -> None:
    data = dexycb.open(tree, "s0_train", index=tmp_path / "i.json")
    assert isinstance(data, FrameDataset)
    names = data.names()
    assert len(names) == 5 * 4 - 2  # five of six sequences, two frames of two cameras, two without a hand
    assert names[0] == "20200709-subject-01/20200709_140000/840412060917/000000"
    assert names == sorted(names)
    assert not any("140004" in name for name in names)
    # the toolkit numbers all eight cameras, whether there or not: camera 2 of sequence 0 starts at 4
    assert [data.labels(i).extra["toolkit_index"] for i in range(5)] == [4, 5, 6, 7, 20]
    summary = data.summary()
    assert "18 of 80 frames" in summary
    assert "2 without hand label" in summary
    assert f"{5 * 6 * 2 + 9} missing on disk" in summary  # six absent cameras, and nine absent subjects
    assert "subjects without 100 sequences: subject-01 6, 9 absent" in summary
    again = pickle.loads(pickle.dumps(dexycb.open(tree, "s0_train", index=tmp_path / "i.json")))
    assert again.names() == names
    right = dexycb.open(tree, "s0_train", sides=("right",))
    assert {frame.side for frame in map(right.labels, range(len(right)))} == {"right"}
    assert "16 of the other hand" in right.summary()


def test_one_frame(tree: Path) -> None:
    components = np.random.default_rng(0).normal(size=(45, 45))
    data = dexycb.open(tree, "s0_train", hands_components={"right": components}, seg=True)
    frame = data[4]
    assert frame.side == "left"
    assert frame.name.split("/")[1] == "20200709_140001"
    assert "pose" not in frame.extra  # components of the right hand only
    np.testing.assert_array_equal(frame.extra["betas"], np.ones(10))
    frame = data[0]
    raw = np.load(tree / (frame.name.rpartition("/")[0]) / "labels_000000.npz")
    np.testing.assert_allclose(frame.extra["pose"][3:], raw["pose_m"][0, 3:48] @ components, rtol=1e-6)
    np.testing.assert_array_equal(frame.K, K)
    assert frame.subject == "20200709-subject-01"
    assert frame.rgb is not None
    assert frame.depth_mm is not None
    assert frame.depth_mm[0, :4].tolist() == [0, 10_000, 0, 700]  # junk beyond ten metres is not a measurement
    assert frame.extra["seg"][0, 0] == 255
    assert dexycb.open(tree, "s0_train", max_depth_mm=1e9)[0].depth_mm[0, 2] == 65_535
    bare = dexycb.open(tree, "s0_train", rgb=False, depth=False)[0]
    assert bare.rgb is None
    assert bare.depth_mm is None
    assert "seg" not in bare.extra


def test_absent_files(own_tree: Path) -> None:
    with pytest.raises(MissingFileError, match=r"of s0_val are not there.*missing='skip'"):
        dexycb.open(own_tree, "s0_val")
    assert len(dexycb.open(own_tree, "s0_val", missing="skip")) == 4
    with pytest.raises(MissingFileError, match="s1_test are not there, the first is 20201002-subject-08"):
        dexycb.open(own_tree, "s1_test", missing="skip")  # nothing at all is left
    sequence = own_tree / dexycb.SUBJECTS[0] / "20200709_140000"
    (sequence / dexycb.SERIALS[2] / "color_000001.jpg").unlink()
    assert len(dexycb.open(own_tree, "s0_train")) == 17
    assert len(dexycb.open(own_tree, "s0_train", rgb=False)) == 18
    (own_tree / "calibration" / "mano_cal_1" / "mano.yml").unlink()
    with pytest.raises(MissingFileError, match=r"mano_cal_1.mano\.yml.*dex-ycb"):
        dexycb.open(own_tree, "s0_train")
    shutil.rmtree(own_tree / "calibration" / "intrinsics")
    with pytest.raises(MissingFileError, match=r"840412060917_640x480\.yml|mano\.yml"):
        dexycb.open(own_tree, "s0_train")
    (sequence / "meta.yml").unlink()
    with pytest.raises(MissingFileError, match=r"20200709_140000.meta\.yml"):
        dexycb.open(own_tree, "s0_train")
    with pytest.raises(MissingFileError, match=r"nowhere.*no such folder.*dex-ycb\.github\.io"):
        dexycb.open(own_tree / "nowhere", "s0_train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "train"}, "s0 to s3"),
        ({"missing": "no"}, "skip or error, got 'no'"),
        ({"sides": ("both",)}, "sides must be of right and left"),
        ({"sides": ()}, "sides must be of right and left"),
    ],
)
def test_unknown_options(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dexycb.open(**({"root": tree, "split": "s0_train"} | options))


def test_labels_that_changed_after_opening(own_tree: Path) -> None:
    data = dexycb.open(own_tree, "s0_train")
    np.savez(data.path(data.names()[0], "labels"), **labels(np.random.default_rng(0), **NO_HAND))
    with pytest.raises(DataError, match="the label is gone"):
        data[0]


# ------------------------------------------------------------------------------------------------ stand-in round trips


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("standin")
    write_dexycb(root, seed=2)
    return root


@pytest.fixture(scope="module")
def frames(standin: Path) -> list[Frame]:
    right = load_mano("standin")
    components = {"right": right.hands_components, "left": mirror_model(right).hands_components}
    data = dexycb.open(standin, "s0_train", hands_components=components, seg=True)
    return [data[i] for i in range(len(data))]


def test_the_standin_is_in_the_official_format(standin: Path) -> None:
    text = (standin / "calibration" / "intrinsics" / "836212060125_640x480.yml").read_text()
    assert "extrinsics: !!python/tuple\n- 1.0\n" in text
    labels = np.load(standin / dexycb.SUBJECTS[0] / "20200709_140100" / "836212060125" / "labels_000000.npz")
    shapes = {key: (labels[key].shape, labels[key].dtype.name) for key in labels}
    assert shapes == {
        "seg": ((480, 640), "uint8"),
        "pose_y": ((1, 3, 4), "float32"),
        "pose_m": ((1, 51), "float32"),
        "joint_3d": ((1, 21, 3), "float32"),
        "joint_2d": ((1, 21, 2), "float32"),
    }
    data = dexycb.open(standin, "s0_train")
    assert (len(data), data.unlabelled) == (2 * 5 * 2 - 1, 1)
    assert (
        len(dexycb.open(standin, "s0_val", missing="skip")) == len(dexycb.open(standin, "s0_test", missing="skip")) == 2
    )


def test_mano_parameters_give_the_labels(frames: list[Frame]) -> None:
    sides = set()
    for frame in frames:
        sides.add(frame.side)
        _, joints = mano_of(frame, "manopth", "thumb_first")
        difference = np.abs(joints - frame.joints_mm).max()
        print(f"{frame.name} {frame.side}: MANO joints max diff {difference:.3g} mm")
        assert difference < 0.01
        swapped = replace(frame, side="left" if frame.side == "right" else "right")
        assert np.abs(mano_of(swapped, "manopth", "thumb_first")[1] - frame.joints_mm).max() > 10
        flat = replace(frame, extra=frame.extra | {"flat_hand_mean": True})
        assert np.abs(mano_of(flat, "manopth", "thumb_first")[1] - frame.joints_mm).max() > 5
    assert sides == {"right", "left"}


def test_left_hands_become_right_hands(frames: list[Frame]) -> None:
    tip = 12  # the middle finger's, another vertex on the left hand
    for frame in (f for f in frames if f.side == "left"):
        right = mirror_frame(frame)
        assert right.joints_mm is not None
        _, joints = mano_of(right, "manopth", "thumb_first")
        error = np.linalg.norm(joints - right.joints_mm, axis=1)
        assert np.delete(error, tip).max() < 0.01
        assert error[tip] < 15
        assert share_on(right.extra["seg"] > 0, right.joints_mm, right.K) == 1


def test_labels_lie_on_the_pictures(frames: list[Frame]) -> None:
    flipped, on_hand = [], []
    for frame in frames:
        assert frame.joints_mm is not None
        seg = frame.extra["seg"]
        assert share_on(seg > 0, frame.joints_mm, frame.K) == 1
        on_hand.append(share_on(seg == 255, frame.joints_mm, frame.K))
        flipped += [share_on(seg > 0, frame.joints_mm * sign, frame.K) for sign in ([-1, 1, 1], [1, -1, 1])]
        np.testing.assert_allclose(project(frame.joints_mm, frame.K), frame.keypoints_2d, atol=1e-3)
        verts, _ = mano_of(frame, "manopth", "thumb_first")
        same, behind = depth_agreement(frame, verts, 0.7)  # stored in whole millimetres
        assert same > 0.3
        assert behind == 0
        hand = surface(frame, verts) > 0
        assert set(np.unique(seg[hand])) <= {255, frame.extra["ycb_ids"][0]}
        assert not (seg[~hand] == 255).any()
        centre = frame.extra["T_cam_objects"][0, :3, 3]
        assert share_on(seg > 0, centre[None], frame.K) == 1
    assert np.mean(on_hand) > 0.6
    assert np.mean(flipped) < 0.5


def test_standin_is_reproducible_and_checks_its_options(standin: Path, tmp_path: Path) -> None:
    write_dexycb(tmp_path, seed=2)
    files = [p for p in standin.rglob("*") if p.is_file()]
    assert len(files) == 24 * 3 + 12 + 4 + 2  # frames, sequences, calibrations of two sides, cameras
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(standin)).read_bytes(), path
    assert [frames_per_folder(n) for n in (1, 24, 25)] == [1, 1, 2]
    with pytest.raises(DataError, match="expected frames >= 1"):
        write_dexycb(tmp_path, frames=0)
