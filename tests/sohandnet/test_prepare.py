"""Preparation: the golden geometry, stores that no number of workers or interruption changes, and bad input."""

from __future__ import annotations

import dataclasses
import filecmp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from scipy.spatial import cKDTree

from shared import camera
from shared.datasets import icvl
from shared.datasets.base import Frame
from shared.errors import DataError, MissingFileError
from shared.standin.views import save_image
from sohandnet import orient
from sohandnet import prepare as program
from sohandnet.orient import ICVL_K, MIN_POINTS, make_space
from sohandnet.prepare import Job, Prepare, frame_rng, from_depth, open_processed, prepare, store_options
from sohandnet.store import DTYPES, open_store
from tests.sohandnet.tiny_tree import GOLDEN, DeadlyFrames, golden_frame, label_line, make_store, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("prepare") / "icvl")


@pytest.fixture(scope="module")
def store(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tree, tmp_path_factory.mktemp("prepare") / "store").root


def same_store(a: Path, b: Path) -> bool:
    files = [str(p.relative_to(a)) for p in a.rglob("*") if p.is_file()]
    assert len(files) == len([p for p in b.rglob("*") if p.is_file()])
    return not any(filecmp.cmpfiles(a, b, files, shallow=False)[1:])


# --- geometry against the original's numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 4])
def test_golden_preprocessing(number: int) -> None:
    """Crop, box, axes and normalisation of the original's MATLAB code, in its space (Q1, Q2)."""
    golden = np.load(GOLDEN / f"preprocess_{number}.npz")
    space = make_space("reference")
    joints = space.from_camera(camera.uvd_to_xyz(golden["joints_uvd"], ICVL_K))
    low, high = orient.joint_box(joints)
    points = orient.crop_points(golden["depth"], space, low, high)
    assert points.shape == golden["points_xyz"].shape
    box = orient.oriented_box(points)
    cloud = orient.normalise(points[golden["sample_index"]], box)
    pairs = {
        "joints": (joints, golden["joints_xyz"]),
        "corners": (np.stack([low, high], 1).ravel(), golden["box"]),
        "points": (points, golden["points_xyz"]),
        "rotation": (box.rotation, golden["coeff"]),
        "length": (box.length, golden["volume_length"]),
        "offset": (box.offset, golden["volume_offset"]),
        "normalised joints": (orient.normalise(joints, box), golden["gt_xyz"]),
        "cloud": (cloud, golden["point_cloud"][:, :3]),
        "round trip": (orient.denormalise(orient.normalise(points, box), box), points),
    }
    for name, (ours, theirs) in pairs.items():
        difference = float(np.abs(ours - theirs).max())
        print(f"frame {number} {name}: max diff {difference:.3g}")
        assert difference <= 1e-6 * np.abs(theirs).max(), name


@pytest.mark.parametrize("number", [0, 2, 4])
def test_golden_normals(number: int) -> None:
    """Equal where the 30 nearest points are certain; where the 30th and the 31st are equally far, within 5 degrees."""
    golden = np.load(GOLDEN / f"preprocess_{number}.npz")
    points = golden["points_xyz"].astype(np.float64)
    normals = orient.normals_at(points, np.arange(len(points)))
    cosine = (normals * golden["normals_oriented"]).sum(1)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    distance, _ = cKDTree(points).query(points, 31)
    certain = distance[:, 30] - distance[:, 29] > 1e-4
    print(f"frame {number}: max diff {angle[certain].max():.3g} degrees of {certain.sum()} certain points,")
    print(f"  {angle.max():.3g} of all {len(points)}; within 0.1 degrees {(angle < 0.1).mean():.4f}")
    assert certain.mean() > 0.5
    assert angle[certain].max() < 0.1
    assert angle.max() < 5
    assert (angle < 0.1).mean() > 0.98
    turned = (normals @ golden["coeff"])[golden["sample_index"]]
    stored = np.degrees(np.arccos(np.clip((turned * golden["point_cloud"][:, 3:]).sum(1), -1, 1)))
    assert np.median(stored) < 0.05  # they are turned with the cloud
    assert (np.einsum("ij,ij->i", normals, points) <= 0).all()  # and look at the camera


@pytest.mark.parametrize("number", [0, 4])
def test_a_whole_frame_in_the_originals_space(number: int) -> None:
    golden = np.load(GOLDEN / f"preprocess_{number}.npz")
    raw = from_depth(frame_of(golden["depth"], golden["joints_uvd"]), settings(intrinsics="reference"))
    assert not isinstance(raw, str)
    assert raw.cloud.shape == (6, 1024)
    assert raw.crop_points == len(golden["points_xyz"])
    print(f"joints max diff {np.abs(raw.joints.T - golden['gt_xyz']).max():.3g}")
    np.testing.assert_allclose(raw.joints.T, golden["gt_xyz"], atol=1e-6)
    every = orient.normalise(golden["points_xyz"], raw.box)
    nearest, _ = cKDTree(every).query(raw.cloud[:3].T)
    assert nearest.max() < 1e-5  # each point is one of the crop
    np.testing.assert_allclose(np.linalg.norm(raw.cloud[3:], axis=0), 1, atol=1e-5)


def settings(**changes: Any) -> dict[str, Any]:
    return store_options(Prepare(data="x", out="y", **changes))


def frame_of(depth: Any, uvd: Any, **changes: Any) -> Frame:
    return Frame(
        name=changes.pop("name", "session/image_0000"),
        image_size=(320, 240),
        K=ICVL_K,
        skeleton="icvl",
        depth_mm=np.asarray(depth, np.float32),
        joints_mm=camera.uvd_to_xyz(uvd, ICVL_K, check_depth=False),
        joints_valid=np.asarray(uvd)[:, 2] > 0,
        **changes,
    )


def test_the_originals_space_is_out_of_scale_and_one_pixel_off() -> None:
    """Q1: x shrinks to 0.567, y grows by 0.8 %. Q2: cloud pixels are numbered from one there, labels are not."""
    true, reference = make_space("true"), make_space("reference")
    u, v, d = 200, 100, 400.0
    depth = np.zeros((240, 320), np.float32)
    depth[v, u] = d
    everywhere = [-1e4] * 3, [1e4] * 3
    formula = [((u + 1) / 320 - 0.5) * d * 0.7531, (0.5 - (v + 1) / 240) * d * 1.004, d]
    np.testing.assert_allclose(orient.crop_points(depth, reference, *everywhere), [formula], rtol=1e-12)
    np.testing.assert_allclose(
        orient.crop_points(depth, true, *everywhere), [[40 / 240.99 * d, 20 / 240.96 * d, d]], rtol=1e-12
    )
    point = camera.uvd_to_xyz([u, v, d], ICVL_K)
    label = [(u / 320 - 0.5) * d * 0.7531, (0.5 - v / 240) * d * 1.004, d]
    np.testing.assert_allclose(reference.from_camera(point), label, rtol=1e-12)
    np.testing.assert_allclose(reference.to_camera(label), point, rtol=1e-12)
    assert reference.scale[0] == pytest.approx(0.567, abs=5e-4)
    with pytest.raises(DataError, match="expected true or reference, got 'exact'"):
        make_space("exact")  # type: ignore[arg-type]


def test_axes_follow_the_sign_rules() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(size=(200, 3)) * [30, 20, 5] @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + [10, 20, 400]
        box = orient.oriented_box(points)
        np.testing.assert_allclose(box.rotation.T @ box.rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(box.rotation) == pytest.approx(1)
        assert box.rotation[1, 0] >= 0
        assert box.rotation[2, 2] >= 0
        normalised = orient.normalise(points, box)
        assert np.ptp(normalised[:, 0]) == pytest.approx(1 / 1.2)
        np.testing.assert_allclose(normalised.mean(0), 0, atol=1e-12)
        assert (np.diff(normalised.var(0)) <= 0).all()


def test_boxes_of_too_little() -> None:
    with pytest.raises(DataError, match="crop of 3 points has no principal axes, at least 10"):
        orient.oriented_box(np.eye(3))
    with pytest.raises(DataError, match="all lie in one place"):
        orient.oriented_box(np.ones((MIN_POINTS, 3)))


def test_sampling_takes_whole_copies_and_a_subset() -> None:
    rng = np.random.default_rng(0)
    index = orient.sample_indices(10, 34, rng)
    assert index[:30].tolist() == list(range(10)) * 3
    assert len(set(index[30:])) == 4
    many = orient.sample_indices(5000, 1024, rng)
    assert len(set(many)) == 1024
    assert many.max() < 5000
    assert orient.sample_indices(1024, 1024, rng).tolist() == list(range(1024))


# --- stores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intrinsics", ["true", "reference"])
def test_labels_come_back_in_true_millimetres(tree: Path, tmp_path: Path, intrinsics: str) -> None:
    """Whatever the space of the clouds, joints of a store are the data set's in the camera."""
    made = make_store(tree, tmp_path / "store", intrinsics=intrinsics)
    for name in ("train", "test"):
        frames = icvl.open(tree, name, focal="evaluation")  # type: ignore[arg-type]
        split = made.split(name)
        assert split.names == frames.names()
        difference = np.abs(split.joints_mm() - frames.joints_mm).max()
        print(f"{intrinsics} {name}: labels max diff {difference:.3g} mm")
        assert difference < 1e-3
    assert made.options["intrinsics"] == intrinsics
    assert made.split("train").skipped == {}  # rotated copies are left out by choice


def test_what_is_stored(store: Path) -> None:
    split = open_store(store).split("train")
    arrays = split.arrays
    assert {name: array.shape for name, array in arrays.items()} == {
        **{"cloud": (5, 6, 1024), "node": (5, 3, 64), "node_knn": (5, 64, 9), "joints": (5, 3, 16)},
        **{"rotation": (5, 3, 3), "length": (5,), "offset": (5, 3), "crop_points": (5,)},
    }
    assert {name: array.dtype.str for name, array in arrays.items()} == DTYPES
    assert all(isinstance(array, np.memmap) for array in arrays.values())
    np.testing.assert_allclose(np.linalg.norm(arrays["cloud"][:, 3:], axis=1), 1, atol=1e-5)
    assert (arrays["node_knn"][:, :, 0] == np.arange(64)).all()
    assert np.abs(arrays["node"]).max() < 1
    distance = np.linalg.norm(arrays["node"][:, :, :, None] - arrays["cloud"][:, :3, None], axis=1).min(-1)
    assert np.median(distance) < 0.05  # nodes lie on the cloud


def test_workers_and_order_change_nothing(tree: Path, store: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Two processes and another division of the frames; a seed draws other points, and a limit the same."""
    monkeypatch.setattr(program, "CHUNK", 2)
    spread = make_store(tree, tmp_path / "spread", workers=2, split="train")
    assert same_store(store / "train", spread.root / "train")
    other = make_store(tree, tmp_path / "other", seed=1, split="test").split("test")
    assert not np.array_equal(other.arrays["cloud"], open_store(store).split("test").arrays["cloud"])
    few = make_store(tree, tmp_path / "few", limit=2).split("train")
    whole = open_store(store).split("train")
    assert few.names == [whole.names[0], whole.names[2]]
    for name in ("cloud", "node", "joints"):
        np.testing.assert_array_equal(few.arrays[name], whole.arrays[name][[0, 2]])


def test_an_interrupted_preparation_goes_on(tree: Path, store: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(program, "CHUNK", 2)
    real, made = program.make_part, []

    def part(job: Job, chunk: int) -> int:
        if chunk == 2:
            raise KeyboardInterrupt
        made.append(chunk)
        return real(job, chunk)

    out = tmp_path / "store"
    monkeypatch.setattr(program, "make_part", part)
    with pytest.raises(KeyboardInterrupt):
        make_store(tree, out)
    assert made == [0, 1]
    with pytest.raises(MissingFileError, match="no manifest here"):
        open_store(out)
    with pytest.raises(DataError, match="a preparation of the train split was interrupted here -- go on with --resume"):
        make_store(tree, out)
    with pytest.raises(DataError, match="the interrupted preparation has seed = 0, this one 7"):
        make_store(tree, out, seed=7, resume=True)
    note = out / ".parts-train/job.json"
    told = note.read_text()
    for damaged in (told[:20], "[1]", ""):
        note.write_text(damaged)
        with pytest.raises(DataError, match=r"job\.json: damaged -- remove .*\.parts-train and prepare again"):
            make_store(tree, out, resume=True)
    note.write_text(told)
    labels = tree / "Training/labels.txt"
    before = labels.read_text()
    try:
        labels.write_text(before.replace(".0000", ".0001", 1))
        with pytest.raises(DataError, match="has names and labels = "):
            make_store(tree, out, resume=True)
    finally:
        labels.write_text(before)
    monkeypatch.setattr(program, "make_part", lambda job, chunk: made.append(chunk) or real(job, chunk))
    make_store(tree, out, resume=True)
    assert made == [0, 1, 2, 0, 1]  # the third chunk of train, the two of test
    assert same_store(store, out)
    assert not list(out.glob(".*"))


def test_what_is_there_is_not_overwritten(tree: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "store"
    make_store(tree, out, split="train")
    with pytest.raises(DataError, match="the train split is there already -- --resume keeps it"):
        make_store(tree, out, split="train")
    with pytest.raises(DataError, match="the store was made with intrinsics = true, this is reference"):
        make_store(tree, out, split="test", intrinsics="reference")
    before = (out / "train/cloud.npy").stat().st_mtime_ns
    both = make_store(tree, out, resume=True)
    assert "train: 5 frames are there already" in capsys.readouterr().out
    assert list(both.splits) == ["train", "test"]
    assert (out / "train/cloud.npy").stat().st_mtime_ns == before
    assert len(make_store(tree, out, resume=True).splits) == 2  # nothing left to do


def test_frames_that_cannot_be_used_are_counted(tree: Path, tmp_path: Path, capsys: Any) -> None:
    """An empty crop, one of too few points, and a joint without depth; the rest is as without them."""
    broken = write_tree(tmp_path / "icvl")
    names = icvl.open(broken, "train").names()
    depth, uvd = golden_frame(0)
    save_image(broken / f"Training/Depth/{names[0]}.png", np.zeros_like(depth))
    few = np.zeros_like(depth)
    inside = np.argwhere((depth > 0) & (depth < 500))[: MIN_POINTS - 1]
    moved, _ = golden_frame(3)
    few[tuple(np.argwhere((moved > 0) & (moved < 500))[: MIN_POINTS - 1].T)] = 380
    assert len(inside) == MIN_POINTS - 1
    save_image(broken / f"Training/Depth/{names[3]}.png", few)
    lines = (broken / "Training/labels.txt").read_text().splitlines(keepends=True)
    uvd[5, 2] = 0
    place = next(i for i, line in enumerate(lines) if line.startswith(names[4]))
    lines[place] = label_line(f"{names[4]}.png", uvd)
    (broken / "Training/labels.txt").write_text("".join(lines))
    uvd[5, 2] = 1e6
    frame = frame_of(np.zeros((240, 320)), uvd)
    assert from_depth(frame, settings()) == "labels with a joint more than 10 m away"
    split = make_store(broken, tmp_path / "store", split="train").split("train")
    assert split.skipped == {
        "empty crops": [names[0]],
        f"crops of fewer than {MIN_POINTS} points": [names[3]],
        "labels with a joint without depth": [names[4]],
    }
    assert split.names == names[1:3]
    out = capsys.readouterr().out
    assert f"skipped 1 empty crops: {names[0]}" in out
    assert "train: 2 frames" in out


def test_no_frame_is_left(tmp_path: Path) -> None:
    broken = write_tree(tmp_path / "icvl", train=1, test=2)
    for path in broken.rglob("*.png"):
        save_image(path, np.zeros((240, 320), np.uint16))
    with pytest.raises(DataError, match="no frame is left for the train split: 1 empty crops"):
        make_store(broken, tmp_path / "store")


def test_rotated_copies(tree: Path, tmp_path: Path) -> None:
    split = make_store(tree, tmp_path / "store", split="train", include_rotated=True).split("train")
    assert len(split) == 6
    assert sum(name.startswith("90/") for name in split.names) == 1


# --- crops without labels --------------------------------------------------------------------------------------------


def test_crop_around_centres_of_a_file(tree: Path, tmp_path: Path) -> None:
    frames = icvl.open(tree, "test")
    lines = ["{:.3f} {:.3f} {:.3f}\n".format(*joints.mean(0)) for joints in frames.joints_mm]
    lines[1] = "invalid invalid invalid\n"
    centers = tmp_path / "center_test_refined.txt"
    centers.write_text("".join(lines))
    for source in (centers, tmp_path):
        out = tmp_path / f"store-{source.name}"
        made = make_store(tree, out, split="test", crop="centers", centers=str(source)).split("test")
        assert made.skipped == {"frames without a centre": [frames.names()[1]]}
        assert len(made) == 2
    center = frames.joints_mm[0].mean(0)
    inside = orient.denormalise(made.arrays["cloud"][0, :3].T, made.box(0)) / [1, -1, 1]
    assert np.abs(inside - center).max() <= 100 + 1e-3
    tight = make_store(tree, tmp_path / "tight", split="test", crop="centers", centers=str(centers), cube_mm=80)
    assert (tight.split("test").arrays["crop_points"] < made.arrays["crop_points"]).all()


@pytest.mark.parametrize("intrinsics", ["true", "reference"])
def test_crop_around_the_nearest_object(tree: Path, tmp_path: Path, intrinsics: str) -> None:
    made = make_store(tree, tmp_path / "store", crop="depth", intrinsics=intrinsics).split("train")
    labels = icvl.open(tree, "train", focal="evaluation").joints_mm
    np.testing.assert_allclose(made.joints_mm(), labels, atol=1e-3)
    truth = make_store(tree, tmp_path / "gt", split="train", intrinsics=intrinsics).split("train")
    share = made.arrays["crop_points"] / truth.arrays["crop_points"]
    print(f"{intrinsics}: points of the cube over points of the labelled box {share.round(2)}")
    assert (share > 0.9).all()


def test_the_nearest_object() -> None:
    depth = np.full((240, 320), 900, np.float32)
    depth[100:140, 150:200] = 400
    depth[10:14, 10:14] = 200  # too small
    found = orient.find_hand(depth, ICVL_K)
    middle = camera.uvd_to_xyz([174.5, 119.5, 400], ICVL_K)
    np.testing.assert_allclose(found, middle, atol=0.5)
    assert orient.find_hand(np.zeros((240, 320)), ICVL_K) is None
    assert orient.find_hand(np.full((240, 320), 2000.0), ICVL_K) is None
    assert orient.find_hand(np.where(depth == 200, 200, 0), ICVL_K) is None
    frame = frame_of(np.zeros((240, 320)), golden_frame(0)[1])
    assert from_depth(frame, settings(crop="depth")) == "frames in which no hand was found"


def test_a_hand_at_a_forearm() -> None:
    """The cube ends at the fingertips, whatever hangs at the other side; a body behind and a wall do not count."""
    depth = np.full((240, 320), 1400, np.float32)
    depth[:, 250:] = 700  # a body
    depth[60:240, 140:180] = 400  # a hand with its forearm, down to the border
    found = orient.find_hand(depth, ICVL_K)
    tips = camera.uvd_to_xyz([159.5, 60, 400], ICVL_K)
    np.testing.assert_allclose(found, np.add(tips, [0, 100, 0]), atol=4)


def test_a_slanted_hand_is_found() -> None:
    """Every slice of depth is smaller than the smallest region."""
    v = np.arange(240)[:, None]
    depth = np.where((v >= 40) & (v < 200) & (abs(np.arange(320) - 160) < 10), 300.0 + v, 0)
    found = orient.find_hand(depth, ICVL_K)
    assert abs(found[2] - 400) < 40
    assert orient.find_hand(np.where(v < 50, depth, 0), ICVL_K) is None  # 190 pixels


# --- the original's processed files ----------------------------------------------------------------------------------


def write_mat(root: Path, name: str, frames: int = 3, **changes: Any) -> dict[str, np.ndarray]:
    """The five files of a sequence, in MATLAB's shapes."""
    rng = np.random.default_rng(len(name))
    cloud = rng.uniform(-0.4, 0.4, (frames, 1024, 6))
    arrays = {
        "Point_Cloud": cloud,
        "Volume_rotate": np.linalg.qr(rng.normal(size=(frames, 3, 3)))[0],
        "Volume_length": rng.uniform(100, 150, (frames, 1)),
        "Volume_offset": rng.uniform(0, 3, (frames, 3)),
        "Volume_GT_XYZ": rng.uniform(-0.4, 0.4, (frames, 16, 3)),
    } | changes
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        variable = "Point_Cloud_FPS" if key == "Point_Cloud" else key
        scipy.io.savemat(folder / f"{name}_{key}.mat", {variable: array}, do_compression=True)
    return arrays


def test_matlab_sequences(tmp_path: Path) -> None:
    train, test = write_mat(tmp_path / "mat", "201403121135"), write_mat(tmp_path / "mat", "Test1", 2)
    made = make_store(tmp_path / "mat", tmp_path / "store", source="mat")
    assert made.options["intrinsics"] == "reference"
    for split, arrays in (("train", train), ("test", test)):
        frames = made.split(split)
        np.testing.assert_allclose(frames.arrays["cloud"].swapaxes(1, 2), arrays["Point_Cloud"].astype(np.float32))
        np.testing.assert_allclose(frames.arrays["joints"].swapaxes(1, 2), arrays["Volume_GT_XYZ"].astype(np.float32))
        np.testing.assert_array_equal(frames.arrays["rotation"], arrays["Volume_rotate"])
        np.testing.assert_array_equal(frames.arrays["length"], arrays["Volume_length"][:, 0])
        np.testing.assert_array_equal(frames.arrays["offset"], arrays["Volume_offset"])
        assert np.abs(frames.arrays["node"]).max() < 0.5
    assert made.split("train").names == [f"201403121135/{i}" for i in range(3)]
    fewer = make_store(tmp_path / "mat", tmp_path / "fewer", source="mat", split="test", points=512).split("test")
    assert fewer.arrays["cloud"].shape == (2, 6, 512)


def write_archive(root: Path, name: str, **changes: Any) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "loader_frame.npz") as file:
        arrays: dict[str, Any] = {key: file[key] for key in file.files} | changes
    folder = root / name / "pc"
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 10):
        np.savez(folder / f"{number}.npz", **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_the_published_archive(tmp_path: Path) -> None:
    arrays = write_archive(tmp_path / "out", "Test2")
    split = make_store(tmp_path / "out", tmp_path / "store", source="archive", split="test").split("test")
    assert split.names == ["Test2/1", "Test2/2", "Test2/10"]
    np.testing.assert_array_equal(split.arrays["node"][2].T, arrays["som_node"])  # its own nodes are kept
    np.testing.assert_array_equal(split.arrays["cloud"][0].T, np.concatenate([arrays["pc"], arrays["sn"]], 1))
    again = make_store(tmp_path / "out", tmp_path / "other", source="archive", split="test", nodes=16).split("test")
    assert again.arrays["node"].shape == (3, 3, 16)  # another number of nodes is trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Volume_rotate": np.zeros((2, 3, 3))}, "sequence 2014 have different numbers of frames"),
        ({"Volume_GT_XYZ": np.zeros((3, 14, 3))}, r"expected .*\(16, 3\).* found .*\(14, 3\)"),
        ({"Volume_length": np.full((3, 1), np.nan)}, "frame 0: the box has numbers that are not finite"),
        ({"Point_Cloud": np.full((3, 9, 6), np.inf)}, "frame 0: the cloud has numbers that are not finite"),
        ({"Volume_offset": np.zeros((3, 2))}, "found .* 1 and 2"),
        ({"Volume_length": np.zeros((3, 1))}, "frame 0: the box has the length 0"),
        ({"Volume_rotate": np.ones((3, 3, 3))}, "frame 0: the axes of the box are not at right angles"),
    ],
)
def test_bad_matlab_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_mat(tmp_path / "mat", "2014", **changes)
    with pytest.raises(DataError, match=message) as error:
        make_store(tmp_path / "mat", tmp_path / "store", source="mat", split="train")
    assert "2014_Point_Cloud.mat" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"som_node": None}, r"1\.npz: has no som_node; found pc, sn"),
        ({"sn": np.zeros((3, 3))}, r"positions \(1024, 3\), normals \(3, 3\)"),
        ({"gt_xyz": np.full((16, 3), np.nan)}, "the label has numbers that are not finite"),
        ({"som_node": np.full((64, 3), np.inf)}, "the map has numbers that are not finite"),
        ({"pc": np.full((1024, 3), "a")}, r"1\.npz: pc has no numbers, but <U1"),
        ({"pc": np.zeros((0, 3)), "sn": np.zeros((0, 3))}, "no frame is left for the test split: 3 empty crops"),
    ],
)
def test_bad_archives(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_archive(tmp_path / "out", "Test1", **changes)
    with pytest.raises(DataError, match=message):
        make_store(tmp_path / "out", tmp_path / "store", source="archive", split="test")


def test_folders_without_processed_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no \*_Point_Cloud.mat of a train sequence here"):
        open_processed(tmp_path / "nowhere", "mat", "train")
    write_archive(tmp_path, "Test1")
    with pytest.raises(MissingFileError, match=r"no \*/pc/\*.npz of a train sequence"):
        open_processed(tmp_path, "archive", "train")
    (tmp_path / "Test1/pc/extra.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected <number>.npz, found extra.npz"):
        open_processed(tmp_path, "archive", "test")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "--data is empty"),
        ({"out": ""}, "--out is empty"),
        ({"nodes": 60}, "--nodes must be a square number from 1 to 1024, got 60"),
        ({"nodes": 0}, "--nodes must be a square number .* got 0"),
        ({"nodes": 33 * 33}, "--nodes must be a square number .* got 1089"),
        ({"out": str(Path(__file__))}, "--out is a file"),
        ({"out": f"{__file__}/store"}, "--out is a file, or lies in one"),
        ({"neighbours": 65}, r"--neighbours must be between 1 and 64 \(--nodes\), got 65"),
        ({"points": 0}, "--points must be at least 1"),
        ({"workers": -1}, "--workers must be at least 0"),
        ({"limit": -1}, "--limit must be at least 0"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"cube_mm": float("nan")}, "--cube_mm must be at least 1, got nan"),
        ({"crop": "centers"}, "--crop centers and --centers FILE belong together"),
        ({"centers": "x.txt"}, "--crop centers and --centers FILE belong together"),
        ({"source": "mat", "intrinsics": "true"}, "--source mat was cropped by labels"),
        ({"source": "archive", "crop": "depth"}, "--source archive was cropped by labels"),
        ({"source": "mat", "include_rotated": True}, "--source mat was cropped by labels"),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        store_options(dataclasses.replace(Prepare(data="icvl", out="store"), **changes))


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        make_store(tmp_path / "nowhere", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_is_named(tmp_path: Path, workers: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(program, "CHUNK", 2)
    broken = write_tree(tmp_path / "icvl", train=3, test=2)
    path = broken / "Training/Depth" / f"{icvl.open(broken, 'train').names()[2]}.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{path.name}: damaged or truncated picture"):
        make_store(broken, tmp_path / "store", split="train", workers=workers)
    save_image(path, golden_frame(2)[0])
    assert len(make_store(broken, tmp_path / "store", split="train", resume=True).split("train")) == 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda line: line.rsplit(" ", 1)[0] + "\n", "line 2: expected a name and 48 numbers, got 47"),
        (lambda line: line.rsplit(" ", 1)[0] + " nan\n", "line 2: expected a finite number, got b'nan'"),
    ],
)
def test_bad_label_lines(tmp_path: Path, edit: Any, message: str) -> None:
    broken = write_tree(tmp_path / "icvl", train=3, test=2)
    path = broken / "Training/labels.txt"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = edit(lines[1])
    path.write_text("".join(lines))
    with pytest.raises(DataError, match=message):
        make_store(broken, tmp_path / "store")


def test_a_worker_that_dies(tmp_path: Path) -> None:
    job = Job(DeadlyFrames(), np.arange(4), settings(), tmp_path, 2)
    with pytest.raises(DataError, match=r"a worker was killed .* -- go on with --resume, and fewer --workers"):
        program.run_job(job, 2, "train", progress=False)


def test_the_generator_of_a_frame() -> None:
    draws = {(seed, name): frame_rng(seed, name).random() for seed in (0, 1) for name in ("a/1", "a/2")}
    assert len(set(draws.values())) == 4
    assert frame_rng(0, "a/1").random() == draws[0, "a/1"]


def test_the_program(tree: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    words = ["--data", str(tree), "--out", str(tmp_path / "store"), "--workers", "0", "--split", "test"]
    monkeypatch.setattr("sys.argv", ["prepare", *words])
    program.main()
    out = capsys.readouterr().out
    assert "test: 3 frames in" in out
    assert "crop: the box of the labelled joints + 20 mm (optimistic" in out
    assert prepare(Prepare(data=str(tree), out=str(tmp_path / "store"), split="test", resume=True)).split("test")
