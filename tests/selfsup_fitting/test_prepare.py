"""Crops against the original's, and the conversion of a small tree: parallel, interrupted, damaged, incomplete."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from selfsup_fitting.config import PrepareConfig
from selfsup_fitting.multiview import transform
from selfsup_fitting.predict import find_center
from selfsup_fitting.prepare import EMPTY, MISSING, OUTSIDE, UNLABELLED, camera_matrix, crop, main, prepare
from selfsup_fitting.shards import Shards, read_manifest, shard_path, spread
from shared import camera
from shared.datasets.nyu import read_depth
from shared.errors import DataError, MissingFileError
from tests.golden.fill import uniform
from tests.selfsup_fitting.trees import nyu_tree, prepared, write_original

FOLDER = Path(__file__).parents[1] / "golden/selfsup_fitting"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nyu_tree(tmp_path_factory.mktemp("nyu"))


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """The same tree to damage."""
    return Path(shutil.copytree(tree, tmp_path / "nyu"))


# --- crops ------------------------------------------------------------------------------------------------------------


def scene() -> np.ndarray:
    v, u = np.mgrid[0:480, 0:640].astype(np.float32)
    plane = np.float32(700) + np.float32(0.15) * (u - 320) + np.float32(0.1) * (v - 240)
    plane[(u - 340) ** 2 + (v - 230) ** 2 < 3600] -= 80
    return np.asarray(plane.astype(np.float32))


@pytest.mark.parametrize("name", ["crop_random", "crop_plane", "crop_plane_border"])
def test_crop_against_the_original(name: str) -> None:
    picture = uniform("selfsup.crop.depth", (480, 640), 600, 1000) if name == "crop_random" else scene()
    with np.load(FOLDER / "dataset.npz") as file:
        center, expected = file[f"{name}_center"].astype(np.float64), file[name]
    made = crop(picture, center, camera_matrix("reference"), clamp_far=False)
    print(f"{name}: max diff {np.abs(made - expected).max():.3g}")
    np.testing.assert_allclose(made, expected, atol=1e-3)
    np.testing.assert_array_equal(crop(picture, center, camera_matrix("reference")), np.minimum(made, 100))


def test_camera_against_the_original() -> None:
    with np.load(FOLDER / "dataset.npz") as file:
        points = file["rigid_p1"] + [0, 0, 700]
        uv = camera.project(points, camera_matrix("reference"))
        print(f"projection: max diff {np.abs(uv - file['perspective_uvd'][:, :2]).max():.3g}")
        np.testing.assert_allclose(uv, file["perspective_uvd"][:, :2], atol=1e-3)
    assert not np.allclose(camera_matrix("reference"), camera_matrix("official"))


def test_last_pixel_wins_or_the_nearest() -> None:
    K = camera.intrinsics(10000, 10000, 50, 50)  # so close that all pixels share a cell
    picture = np.full((100, 100), 5000.0, np.float32)
    picture[10, 10], picture[90, 90] = 980.0, 1020.0
    center = np.array([0.0, 0.0, 1000.0])
    last, nearest = crop(picture, center, K), crop(picture, center, K, zbuffer=True)
    assert last.min() == nearest.min() == -20.0
    picture[:] = 1000.0
    picture[0, 0] = 900.0
    assert crop(picture, center, K).min() == 0.0
    assert crop(picture, center, K, zbuffer=True).min() == -100.0


def test_crop_outside_the_picture_is_empty() -> None:
    assert (crop(scene(), np.array([9000.0, 0.0, 700.0]), camera_matrix("official")) == 100).all()


# --- whole trees ------------------------------------------------------------------------------------------------------


def test_shards_hold_what_the_tree_says(tree: Path, tmp_path: Path) -> None:
    shards = Shards(prepared(tree, tmp_path) / "test")
    xyz = loadmat(tree / "test/joint_data.mat")["joint_xyz"] * [1, -1, 1]
    assert len(shards) == 3
    assert shards.manifest.rig_rms_mm[0][2] < 1e-6
    for i in range(3):
        record = shards[i]
        assert record["number"] == i + 1
        assert shards.name(i) == f"test/{i + 1:07d}"
        np.testing.assert_allclose(record["center_mm"], xyz[:, i, 32], atol=1e-3)
        np.testing.assert_allclose(record["joints_mm"], xyz[:, i] - xyz[:, i, 32:33], atol=1e-3)
        picture = read_depth(tree / f"test/depth_2_{i + 1:07d}.png")
        expected = crop(picture, xyz[1, i, 32], camera_matrix("official"))
        np.testing.assert_allclose(record["depth_mm"][1], expected, atol=1e-4)
        import torch

        back = transform(torch.tensor(record["T_canon_view"]), torch.tensor(record["joints_mm"]))
        np.testing.assert_allclose(back[1:], np.broadcast_to(record["joints_mm"][0], back[1:].shape), atol=0.01)
    assert (shards.field("depth_mm") < 100).any((2, 3)).all()


def test_two_processes_and_small_shards_give_the_same(tree: Path, tmp_path: Path) -> None:
    one = Shards(prepared(tree, tmp_path / "a") / "train")
    prepare(PrepareConfig(data=str(tree), out=str(tmp_path / "b"), splits=["train"], jobs=2, shard_size=2))
    two = Shards(tmp_path / "b/train")
    assert two.manifest.frames == (2, 1)
    for i in range(3):
        assert one[i].tobytes() == two[i].tobytes()


def test_interrupted_conversion_continues(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tree, tmp_path, splits=["train"], shard_size=1)
    before = Shards(tmp_path / "train").field("depth_mm")
    (tmp_path / "train/manifest.json").unlink()
    shard_path(tmp_path / "train", 1).unlink()
    kept = shard_path(tmp_path / "train", 0).stat().st_mtime_ns
    with pytest.raises(MissingFileError, match="interrupted"):
        Shards(tmp_path / "train")
    capsys.readouterr()
    prepared(tree, tmp_path, splits=["train"], shard_size=1)
    assert "2 shards are there already, 1 to do" in capsys.readouterr().out
    assert shard_path(tmp_path / "train", 0).stat().st_mtime_ns == kept
    np.testing.assert_array_equal(Shards(tmp_path / "train").field("depth_mm"), before)


def test_other_options_do_not_mix(tree: Path, tmp_path: Path) -> None:
    prepared(tree, tmp_path, splits=["train"])
    with pytest.raises(DataError, match=r"made with zbuffer False -- choose another --out"):
        prepared(tree, tmp_path, splits=["train"], zbuffer=True)


@pytest.mark.parametrize("name", ["plan.json", "shard_0000.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"kept": -1}'])
def test_damaged_notes_of_an_earlier_run(tree: Path, tmp_path: Path, name: str, content: str) -> None:
    prepared(tree, tmp_path, splits=["train"])
    (tmp_path / "train" / name).write_text(content)
    other = name == "plan.json" and content.startswith('{"kept"')  # a sound note, of other options
    with pytest.raises(DataError, match="holds shards made with" if other else rf"{name}: damaged note.*delete it"):
        prepared(tree, tmp_path, splits=["train"])


def test_crops_around_centres_that_are_found(tree: Path, copy: Path, tmp_path: Path) -> None:
    exact = Shards(prepared(tree, tmp_path / "palm", splits=["train"]) / "train")
    assert "centers" not in exact.manifest.options
    (copy / "train/depth_1_0000002.png").write_bytes((copy / "train/depth_1_0000001.png").read_bytes())
    found = Shards(prepared(copy, tmp_path / "near", splits=["train"], centers="nearest") / "train")
    assert found.manifest.options["centers"] == "nearest"
    picture = read_depth(copy / "train/depth_1_0000001.png")
    expected = find_center(picture, camera_matrix("official"), "picture")
    for frame in (0, 1):  # the second has the first's picture: labels do not place the crop
        np.testing.assert_allclose(found[frame]["center_mm"][0], expected, atol=1e-3)
    moved = exact[0]["joints_mm"] + exact[0]["center_mm"][:, None]  # in the cameras
    np.testing.assert_allclose(found[0]["joints_mm"] + found[0]["center_mm"][:, None], moved, atol=1e-3)
    assert 1 < np.linalg.norm(found[0]["center_mm"] - exact[0]["center_mm"], axis=-1).max() < 120
    for shards in (exact, found):  # all views agree on where the labels are, whatever the centres
        joints, T = (torch.from_numpy(shards[0][name].copy()) for name in ("joints_mm", "T_canon_view"))
        canon = transform(T, joints)
        torch.testing.assert_close(canon, canon[:1].expand_as(canon), rtol=0, atol=0.5)
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(copy / "train/depth_3_0000003.png")
    part = read_manifest(prepared(copy, tmp_path / "part", splits=["train"], centers="nearest") / "train")
    assert part.skipped == {EMPTY: ["train/0000003"]}


def test_crops_around_given_centres(tree: Path, tmp_path: Path) -> None:
    exact = Shards(prepared(tree, tmp_path / "palm", splits=["train"]) / "train")
    shift = np.array([5.0, -3.0, 10.0])
    centers = exact.field("center_mm") + shift
    folder = tmp_path / "centres ü"
    folder.mkdir()
    with pytest.raises(MissingFileError, match=r"train_1\.txt: expected the centres of a camera.*palm, nearest"):
        prepared(tree, tmp_path / "none", splits=["train"], centers=str(folder))
    for view in (1, 2, 3):
        np.savetxt(folder / f"train_{view}.txt", centers[:, view - 1], fmt="%.4f")
    given = Shards(prepared(tree, tmp_path / "given", splits=["train"], centers=str(folder)) / "train")
    np.testing.assert_allclose(given.field("center_mm"), centers, atol=1e-3)
    np.testing.assert_allclose(given[0]["joints_mm"], exact[0]["joints_mm"] - shift, atol=1e-2)
    np.savetxt(folder / "train_2.txt", centers[:2, 1])
    with pytest.raises(DataError, match=r"train_2\.txt: expected 3 lines, one a frame, found 2"):
        prepared(tree, tmp_path / "short", splits=["train"], centers=str(folder))


def test_options_reach_the_crops(tree: Path, tmp_path: Path) -> None:
    plain = Shards(prepared(tree, tmp_path / "a", splits=["train"]) / "train")
    for name, value in (("zbuffer", True), ("intrinsics", "reference")):
        other = Shards(prepared(tree, tmp_path / name, splits=["train"], **{name: value}) / "train")
        assert not np.array_equal(plain.field("depth_mm"), other.field("depth_mm")), name
    frame = Shards(prepared(tree, tmp_path / "c", splits=["train"], calibration="frame", limit=2) / "train")
    assert len(frame) == 2
    np.testing.assert_allclose(frame.field("T_canon_view"), plain.field("T_canon_view")[:2], atol=1e-2)
    assert frame.field("T_canon_view").tobytes() != plain.field("T_canon_view")[:2].tobytes()


def test_frames_outside_the_image_are_skipped_and_counted(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "train/joint_data.mat"
    labels = loadmat(path)
    for name, shift in (("joint_xyz", (900.0, 0, 0)), ("joint_uvd", (900.0 / 700 * 588, 0, 0))):
        labels[name][1, 2] += shift
    savemat(path, {name: labels[name] for name in ("joint_xyz", "joint_uvd")})
    shards = Shards(prepared(copy, tmp_path / "out", splits=["train"], calibration="frame") / "train")
    assert shards.manifest.skipped == {OUTSIDE: ["train/0000003"]}
    assert shards.field("number").tolist() == [1, 2]
    assert f"skipped: 1 {OUTSIDE} (train/0000003)" in capsys.readouterr().out


@pytest.mark.parametrize("calibration", ["sequence", "frame"])
def test_frames_without_labels_are_skipped_and_counted(copy: Path, tmp_path: Path, calibration: str) -> None:
    exact = Shards(prepared(copy, tmp_path / "exact", splits=["train"], calibration=calibration) / "train")
    path = copy / "train/joint_data.mat"
    labels = loadmat(path)
    for name in ("joint_xyz", "joint_uvd"):
        labels[name][:, 1] = 0
    savemat(path, {name: labels[name] for name in ("joint_xyz", "joint_uvd")})
    for centers in ("palm", "nearest"):
        folder = prepared(copy, tmp_path / centers, splits=["train"], calibration=calibration, centers=centers)
        shards = Shards(folder / "train")
        assert shards.manifest.skipped == {UNLABELLED: ["train/0000002"]}
        assert shards.field("number").tolist() == [1, 3]
        assert np.max(shards.manifest.rig_rms_mm) < 0.5
    placed = Shards(tmp_path / "palm/train").field("T_canon_view")
    np.testing.assert_allclose(placed, exact.field("T_canon_view")[[0, 2]], atol=1e-2)  # zeros pull at no camera


def test_the_number_of_frames_is_kept_where_some_were_left_out(tree: Path, tmp_path: Path) -> None:
    for limit, kept in ((2, 2), (0, None), (3, None)):
        folder = prepared(tree, tmp_path / str(limit), splits=["train"], limit=limit)
        assert read_manifest(folder / "train").options.get("limit") == kept


def test_folders_of_other_options_say_which(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "centres"
    folder.mkdir()
    for view in (1, 2, 3):
        np.savetxt(folder / f"train_{view}.txt", np.full((3, 3), 700.0))
    with pytest.raises(DataError):  # no hand is there; the options are noted
        prepared(tree, tmp_path / "out", splits=["train"], centers=str(folder))
    with pytest.raises(DataError, match=rf"holds shards made with centers '{folder}' -- choose another --out"):
        prepared(tree, tmp_path / "out", splits=["train"])


def test_a_shard_without_frames(copy: Path, tmp_path: Path) -> None:
    for view in (1, 2, 3):
        (copy / f"train/depth_{view}_0000002.png").unlink()
    with pytest.raises(MissingFileError, match="depth_1_0000002"):
        prepared(copy, tmp_path / "a", splits=["train"])
    shards = Shards(prepared(copy, tmp_path / "b", splits=["train"], missing="skip", shard_size=1) / "train")
    assert shards.manifest.frames == (1, 0, 1)
    assert shards.manifest.skipped == {MISSING: ["train/0000002"]}
    assert [int(shards[i]["number"]) for i in range(2)] == [1, 3]


def test_moved_cameras_are_announced(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "train/joint_data.mat"
    labels = loadmat(path)
    labels["joint_xyz"][2, 0] += (0, 30.0, 0)
    savemat(path, {name: labels[name] for name in ("joint_xyz", "joint_uvd")})
    prepared(copy, tmp_path / "out", splits=["train"])
    assert "the cameras moved within a sequence" in capsys.readouterr().out


def test_root_one_level_off(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset").symlink_to(tree)
    assert len(Shards(prepared(tmp_path, tmp_path / "out", splits=["train"], limit=1) / "train")) == 1
    with pytest.raises(MissingFileError, match="no folder of NYU here; looked for"):
        prepared(tree / "train", tmp_path / "deep")


def test_missing_labels(copy: Path, tmp_path: Path) -> None:
    (copy / "train/joint_data.mat").unlink()
    with pytest.raises(MissingFileError, match=r"joint_data\.mat"):
        prepared(copy, tmp_path / "out")


def test_truncated_picture(copy: Path, tmp_path: Path) -> None:
    path = copy / "train/depth_2_0000001.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="depth_2_0000001"):
        prepared(copy, tmp_path / "out")


def test_single_view_where_three_are_asked(copy: Path, tmp_path: Path) -> None:
    for path in copy.glob("train/depth_[23]_*"):
        path.unlink()
    with pytest.raises(MissingFileError, match=r"cameras 1, 2, 3, found none of 2, 3.*--views"):
        prepared(copy, tmp_path / "a", splits=["train"])
    single = Shards(prepared(copy, tmp_path / "b", splits=["train"], views=[1]) / "train")
    assert single[0]["depth_mm"].shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "", "out": "x"}, "one of --data"),
        ({"data": "x", "original": "y", "out": "x"}, "one of --data"),
        ({"data": "x"}, "--out is missing"),
        ({"original": "x", "out": "y", "centers": "nearest"}, "--centers needs the pictures"),
        ({"original": "x", "out": "y", "views": [1]}, "--views says how pictures are cut: --original holds crops"),
        ({"original": "x", "out": "y", "limit": 5}, "--limit says how pictures are cut"),
        ({"original": "x", "out": "y", "shard_size": 5}, "--shard_size says"),
        ({"original": "x", "out": "y", "zbuffer": True}, "--zbuffer says"),
        ({"original": "x", "out": "y", "calibration": "frame"}, "--calibration says"),
        ({"original": "x", "out": "y", "intrinsics": "reference"}, "--intrinsics says"),
        ({"original": "x", "out": "y", "jobs": 2}, "--jobs says"),
        ({"original": "x", "out": "y", "missing": "skip"}, "--missing says"),
        ({"data": "x", "out": "y", "splits": ["val"]}, "--splits"),
        ({"data": "x", "out": "y", "views": [1, 1]}, "--views"),
        ({"data": "x", "out": "y", "shard_size": 0}, "--shard_size"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(PrepareConfig(**options))  # type: ignore[arg-type]


def test_program(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "prepare",
        "--data",
        str(tree),
        "--out",
        str(tmp_path),
        "--jobs",
        "1",
        "--splits",
        "test",
        "--views",
        "1",
        "3",
    ]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert read_manifest(tmp_path / "test").views == (1, 3)


# --- shards that are not whole ----------------------------------------------------------------------------------------


def change_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "shards of version 99, this program reads version 1"),
        ({"format": "other"}, "no manifest of prepared frames"),
        ({"views": []}, "damaged manifest"),
        ({"frames": [-1]}, "damaged manifest"),
        ({"frames": "many"}, "damaged manifest"),
        ({"frames": [float("inf")]}, "damaged manifest"),
        ({"frames": [10**30]}, "damaged manifest: 3 views, 10{30} frames"),
        ({"frames": [2]}, "expected 2 records"),
        ({"frames": [3, 4]}, "a shard is missing"),
    ],
)
def test_manifests_that_do_not_fit(tree: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    prepared(tree, tmp_path, splits=["train"])
    change_manifest(tmp_path / "train", **changes)
    with pytest.raises(DataError, match=message):
        Shards(tmp_path / "train")[0]


def test_manifests_that_are_none(tree: Path, tmp_path: Path) -> None:
    prepared(tree, tmp_path, splits=["train"])
    for content in (b"{", b"[]", b"[" * 100_000, b"\xff\xfe"):
        (tmp_path / "train/manifest.json").write_bytes(content)
        with pytest.raises(DataError, match=r"manifest\.json: damaged manifest") as caught:
            Shards(tmp_path / "train")
        assert "\n" not in str(caught.value)


def test_shards_that_are_other_files(tree: Path, tmp_path: Path) -> None:
    prepared(tree, tmp_path, splits=["train"])
    path = shard_path(tmp_path / "train", 0)
    with path.open("wb") as file:
        np.savez(file, a=1)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b" " * 64
    for content in (path.read_bytes(), b"", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"shard_0000\.npy: damaged shard"):
            Shards(tmp_path / "train")[0]


def test_truncated_shard(tree: Path, tmp_path: Path) -> None:
    prepared(tree, tmp_path, splits=["train"])
    path = shard_path(tmp_path / "train", 0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged shard"):
        Shards(tmp_path / "train")[0]


def test_pickled_shards_read_the_files_again(tree: Path, tmp_path: Path) -> None:
    shards = Shards(prepared(tree, tmp_path, splits=["train"]) / "train")
    first = shards[0]
    data = pickle.dumps(shards)
    assert len(data) < 5000
    assert pickle.loads(data)[0].tobytes() == first.tobytes()


def test_spread() -> None:
    assert spread(5, 0).tolist() == [0, 1, 2, 3, 4]
    assert spread(5, 3).tolist() == [0, 2, 4]
    assert spread(3, 9).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"a limit of frames must be 0 \(all\) or more, got -1"):
        spread(3, -1)


# --- the original's files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old_layout", [True, False])
def test_files_of_the_original(
    tree: Path, tmp_path: Path, old_layout: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Shards(prepared(tree, tmp_path / "ours", splits=["train"]) / "train")
    write_original(tmp_path / "npy-64/train", shards, old_layout=old_layout)
    prepare(PrepareConfig(original=str(tmp_path), out=str(tmp_path / "new"), splits=["train"]))
    assert f"of {int(old_layout)} files had" in capsys.readouterr().out
    again = Shards(tmp_path / "new/train")
    for name in ("depth_mm", "joints_mm", "T_canon_view"):
        np.testing.assert_array_equal(again.field(name), shards.field(name))


def test_pickle_with_a_foreign_global(tree: Path, tmp_path: Path) -> None:
    shards = Shards(prepared(tree, tmp_path / "ours", splits=["train"]) / "train")
    write_original(tmp_path / "train", shards, old_layout=False)
    (tmp_path / "train/mv_data_0_shape.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"os\.system"):
        prepare(PrepareConfig(original=str(tmp_path), out=str(tmp_path / "new"), splits=["train"]))


def test_files_of_the_original_that_do_not_fit(tree: Path, tmp_path: Path) -> None:
    options = PrepareConfig(original=str(tmp_path), out=str(tmp_path / "new"), splits=["train"])
    with pytest.raises(MissingFileError, match="no folder train"):
        prepare(options)
    (tmp_path / "train").mkdir()
    with pytest.raises(MissingFileError, match="no mv_data"):
        prepare(options)
    (tmp_path / "train").rmdir()
    write_original(
        tmp_path / "train", Shards(prepared(tree, tmp_path / "o", splits=["train"]) / "train"), old_layout=False
    )
    poses = tmp_path / "train/mv_data_0_camera_poses.npy"
    sound = np.load(poses)
    for bad in (np.zeros((3, 3, 3, 3)), np.full_like(sound, np.nan), np.full(sound.shape, "x")):
        np.save(poses, bad)
        with pytest.raises(DataError, match=r"camera_poses\.npy: expected finite numbers \(3, 3, 4, 4\)"):
            prepare(options)
    both = sound.copy()
    both[..., 3, :3] = both[..., :3, 3] = 1
    np.save(poses, both)
    with pytest.raises(DataError, match=r"camera_poses\.npy: camera poses with numbers in both"):
        prepare(options)
    np.save(poses, sound)
    depth = np.fromfile(tmp_path / "train/mv_data_0_dms.bat", "<f4")
    depth[7] = np.nan
    depth.tofile(tmp_path / "train/mv_data_0_dms.bat")
    with pytest.raises(DataError, match=r"mv_data_0_dms\.bat: holds depth that is not finite"):
        prepare(options)
    depth[7] = 0
    depth.tofile(tmp_path / "train/mv_data_0_dms.bat")
    for name in ("dms.bat", "joint_poses.npy", "camera_poses.npy"):
        shutil.copy(tmp_path / f"train/mv_data_0_{name}", tmp_path / f"train/mv_data_1_{name}")
    (tmp_path / "train/mv_data_1_shape.pkl").write_bytes(pickle.dumps([(3, 2, 64, 64)], protocol=2))
    with pytest.raises(DataError, match=r"mv_data_1_shape\.pkl: has 2 views, the files before it 3"):
        prepare(options)
    (tmp_path / "train/mv_data_1_shape.pkl").rename(tmp_path / "train/mv_data_x_shape.pkl")
    with pytest.raises(DataError, match=r"expected mv_data_<number>_shape\.pkl, found mv_data_x_shape\.pkl"):
        prepare(options)
    (tmp_path / "train/mv_data_x_shape.pkl").unlink()
    (tmp_path / "train/mv_data_0_dms.bat").write_bytes(b"x")
    with pytest.raises(DataError, match="expected 147456 bytes, found 1"):
        prepare(options)
    (tmp_path / "train/mv_data_0_shape.pkl").write_bytes(pickle.dumps([(3, 3, 32, 32)], protocol=2))
    with pytest.raises(DataError, match=r"expected the shape \(n, views, 64, 64\)"):
        prepare(options)
    for frames in (0, 10**9, float("nan"), "a"):
        (tmp_path / "train/mv_data_0_shape.pkl").write_bytes(pickle.dumps([(frames, 3, 64, 64)], protocol=2))
        with pytest.raises(DataError, match="a number of frames and views"):
            prepare(options)
