"""ITOP: the stand-in tree read back, axes and units, joining by id, and files that are not what they should be."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import camera
from shared.datasets import itop
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.skeletons import get
from shared.standin.itop import write_itop
from tests.shared.depth_checks import on_surface

FRAMES = 5  # the fourth is not valid


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("itop")
    write_itop(root, frames=FRAMES, seed=1)
    return root


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    """A small correct label file that a test may damage."""
    path = tmp_path / "ITOP_side_test_labels.h5"
    with h5py.File(path, "w") as file:
        file["id"] = np.array([b"00_00001", b"00_00002"])
        file["is_valid"] = np.array([1, 0], np.uint8)
        file["visible_joints"] = np.ones((2, 15), np.int16)
        file["image_coordinates"] = np.zeros((2, 15, 2), np.int16)
        file["real_world_coordinates"] = np.ones((2, 15, 3), np.float16)
    return path


@pytest.mark.parametrize("view", ["side", "top"])
def test_labels_fall_on_the_body(tree: Path, view: Any) -> None:
    dataset = itop.open(tree, "test", view)
    assert isinstance(dataset, FrameDataset)
    good, flipped, mirrored, naive = [], [], [], []
    for index in range(len(dataset)):
        frame = dataset[index]
        assert frame.joints_mm is not None
        assert frame.keypoints_2d is not None
        # the label is float16 and the pixel label whole pixels
        assert np.abs(camera.project(frame.joints_mm, frame.K) - frame.keypoints_2d).max() < 1
        seen = frame.joints_mm[frame.extra["visible"]]
        good.append(on_surface(frame, seen, 160))
        flipped.append(on_surface(frame, seen * [1, -1, 1], 160))
        mirrored.append(on_surface(frame, seen * [-1, 1, 1], 160))
        naive.append(on_surface(frame, seen - [0, 0, -400], 160))
    print(f"{view}: on surface {np.mean(good):.2f}, y up {np.mean(flipped):.2f}, mirrored {np.mean(mirrored):.2f}")
    assert np.mean(good) > 0.98
    assert max(np.mean(flipped), np.mean(mirrored), np.mean(naive)) < 0.6


def test_right_is_the_persons_right(tree: Path) -> None:
    skeleton = get("itop")
    joints = itop.open(tree, "train", "side").joints_mm  # people who face the camera
    assert (joints[:, skeleton.index("right_shoulder"), 0] < joints[:, skeleton.index("left_shoulder"), 0]).all()
    assert (joints[:, skeleton.index("head"), 1] < joints[:, skeleton.index("torso"), 1]).all()  # y down
    top = itop.open(tree, "train", "top").joints_mm
    assert np.abs(top[..., 0] - joints[..., 0]).max() < 1  # both views share x, as the real set does
    assert (top[:, skeleton.index("head"), 2] < top[:, skeleton.index("torso"), 2]).all()


def test_units() -> None:
    world = np.array([[0.25, -0.5, 3.0]], np.float16)
    assert itop.to_joints_mm(world).tolist() == [[250, 500, 3000]]
    depth = itop.to_depth_mm(np.array([0, 3.0, 60000], np.float16))  # 60000 * 1000 does not fit float16
    assert depth.dtype == np.float32
    assert np.allclose(depth, [0, 3000, 6e7])
    assert np.allclose(camera.project([[0, 0, 1000], [35, 35, 10000]], itop.K), [[160, 120], [161, 121]])


def test_frame_and_summary(tree: Path) -> None:
    dataset = itop.open(tree, "test", "top")
    assert len(dataset) == FRAMES - 1
    frame = dataset[3]
    assert frame.depth_mm is not None
    assert frame.depth_mm.shape == (240, 320)
    assert (frame.depth_mm == 0).any()  # no measurement stays 0
    assert frame.side is None
    assert frame.subject == dataset.ids[3][:2]
    assert frame.name == dataset.names()[3] == f"top/test/{dataset.ids[3]}"
    assert dataset.summary() == "ITOP top test: 4 frames, skipped 1 frames without valid labels"
    every = itop.open(tree, "test", "top", valid_only=False)
    assert len(every) == FRAMES
    assert every[3].extra["is_valid"] is False
    row = every.rows[3]
    assert np.array_equal(every[3].depth_mm, itop.read_depth(every.depth_file, int(row)))


def test_same_seed_same_arrays(tree: Path, tmp_path: Path) -> None:
    write_itop(tmp_path, frames=2, seed=1)
    write_itop(tmp_path / "other", frames=2, seed=2)
    first, again, other = (itop.open(root, "train") for root in (tree, tmp_path, tmp_path / "other"))
    assert np.array_equal(first.joints_mm[:2], again.joints_mm)
    assert np.array_equal(first[1].depth_mm, again[1].depth_mm)
    assert not np.array_equal(again.joints_mm, other.joints_mm)
    with pytest.raises(DataError, match="frames: expected at least 1"):
        write_itop(tmp_path, frames=0)


def test_files_are_joined_by_id(tree: Path, tmp_path: Path) -> None:
    for kind in ("labels", "depth_map"):
        name = f"ITOP_side_test_{kind}.h5"
        (tmp_path / name).write_bytes((tree / name).read_bytes())
    with h5py.File(
        tmp_path / "ITOP_side_test_depth_map.h5", "r+"
    ) as file:  # reversed, and the first frame is not there
        for key in ("id", "data"):
            values = file[key][1:][::-1]
            del file[key]
            file[key] = values
    straight, turned = itop.open(tree, "test"), itop.open(tmp_path, "test")
    assert turned.ids == straight.ids[1:]
    assert turned.skipped["missing pictures"] == straight.ids[:1]
    assert np.array_equal(turned[0].depth_mm, straight[1].depth_mm)
    assert not np.array_equal(turned[0].depth_mm, straight[0].depth_mm)


def test_files_of_different_splits(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "ITOP_side_test_labels.h5").write_bytes((tree / "ITOP_side_test_labels.h5").read_bytes())
    (tmp_path / "ITOP_side_test_depth_map.h5").write_bytes((tree / "ITOP_side_train_depth_map.h5").read_bytes())
    with pytest.raises(DataError, match=r"depth_map\.h5: none of its ids is in ITOP_side_test_labels\.h5.*different"):
        itop.open(tmp_path, "test")


def test_centers_in_metres_y_up(tree: Path) -> None:
    dataset = itop.open(tree, "train", "top", valid_only=False, centers=tree / "itop_center" / "top")
    assert len(dataset) == FRAMES - 1
    assert dataset.skipped["frames without a centre"] == [f"{3 % 3:02d}_00003"]
    assert dataset.centers_mm is not None
    torso = dataset.joints_mm[:, get("itop").index("torso")]
    assert np.linalg.norm(dataset.centers_mm - torso, axis=-1).max() < 150
    assert np.array_equal(dataset[1].center_mm, dataset.centers_mm[1])
    lines = (tree / "itop_center" / "top" / "center_train.txt").read_text().splitlines()
    assert abs(float(lines[0].split()[2])) < 10  # metres
    assert lines[3] == "invalid invalid invalid"


def test_centers_of_another_length(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("0 0 3\n")
    with pytest.raises(DataError, match=rf"c\.txt: 1 centres for {FRAMES} labelled frames"):
        itop.open(tree, "train", centers=tmp_path / "c.txt")


def _depth_sum(job: tuple[itop.ItopDataset, int]) -> float:
    dataset, index = job
    return float(np.sum(dataset[index].depth_mm))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_the_file_themselves(tree: Path, method: str) -> None:
    dataset = itop.open(tree, "test")
    expected = [_depth_sum((dataset, i)) for i in range(len(dataset))]  # the handle is open in this process now
    assert dataset._opened_in is not None
    assert pickle.loads(pickle.dumps(dataset))._opened_in is None
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_depth_sum, [(dataset, i) for i in range(len(dataset))]) == expected


def test_missing_and_packed_files(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"ITOP_side_test_labels\.h5: missing: an ITOP file.*zenodo"):
        itop.open(tmp_path, "test")
    (tmp_path / "ITOP_side_test_labels.h5.gz").touch()
    with pytest.raises(MissingFileError, match=r"only ITOP_side_test_labels\.h5\.gz is here.*gunzip -k"):
        itop.open(tmp_path, "test")
    with pytest.raises(MissingFileError, match="no such HDF5 file"):
        itop.read_labels(tmp_path / "none.h5")
    with pytest.raises(MissingFileError, match="no folder of ITOP"):
        itop.open(tmp_path / "nowhere", "test")
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "ITOP").symlink_to(tree)
    assert len(itop.open(tmp_path / "above", "test")) == FRAMES - 1


def test_options() -> None:
    with pytest.raises(DataError, match="split: expected train or test, got 'val'"):
        itop.open(".", "val")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="view: expected side"):
        itop.open(".", "test", "front")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("real_world_coordinates", np.ones((2, 14, 3), np.float16), r"expected \(2, 15, 3\), got float16 \(2, 14, 3\)"),
        ("real_world_coordinates", np.ones((3, 15, 3), np.float16), r"expected \(2, 15, 3\)"),
        ("real_world_coordinates", np.ones((2, 15, 3), np.int16), "got int16"),
        ("real_world_coordinates", np.full((2, 15, 3), np.nan, np.float16), "a joint of a valid frame is not finite"),
        ("is_valid", np.ones(3, np.uint8), r"is_valid: expected \(2,\)"),
        ("visible_joints", None, "no data set 'visible_joints' in it"),
        ("visible_joints", h5py.ExternalLink("/etc/passwd", "x"), "no data set 'visible_joints'"),
        ("visible_joints", h5py.SoftLink("/is_valid"), "no data set 'visible_joints'"),
        ("id", np.array([b"00_00001", b"00_00001"]), "1 ids occur twice"),
        ("id", np.array([], "S8"), "id: expected"),
    ],
)
def test_bad_labels(labels_file: Path, name: str, value: Any, message: str) -> None:
    itop.read_labels(labels_file)
    with h5py.File(labels_file, "r+") as file:
        del file[name]
        if value is not None:
            file[name] = value
    with pytest.raises(DataError, match=message) as caught:
        itop.read_labels(labels_file)
    assert "labels.h5" in str(caught.value)


def test_nan_in_frames_nobody_checked_is_no_error(labels_file: Path) -> None:
    with h5py.File(labels_file, "r+") as file:
        file["real_world_coordinates"][1] = np.nan
    assert itop.read_labels(labels_file).is_valid.tolist() == [True, False]


@pytest.mark.parametrize("bad", [np.nan, -1, np.inf])
def test_bad_depth(tmp_path: Path, bad: float) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["data"] = np.full((2, 240, 320), bad, np.float16)
    with pytest.raises(DataError, match=r"d\.h5: row 1: a depth is negative or not finite"):
        itop.read_depth(tmp_path / "d.h5", 1)
    with pytest.raises(DataError, match=r"d\.h5: row 2 of 2"):
        itop.read_depth(tmp_path / "d.h5", 2)


def test_depth_without_as_many_ids(tree: Path, tmp_path: Path) -> None:
    for kind in ("labels", "depth_map"):
        name = f"ITOP_side_test_{kind}.h5"
        (tmp_path / name).write_bytes((tree / name).read_bytes())
    with h5py.File(tmp_path / "ITOP_side_test_depth_map.h5", "r+") as file:
        ids = file["id"][:2]
        del file["id"]
        file["id"] = ids
    with pytest.raises(DataError, match=rf"{FRAMES} pictures but 2 ids"):
        itop.open(tmp_path, "test")


def test_bombs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "chunk.h5", "w") as file:  # one chunk inflates to 150 MB
        shape = (1000, 240, 320)
        file.create_dataset("data", shape, np.float16, chunks=shape, compression="gzip")
    with pytest.raises(DataError, match=r"chunk\.h5: data: chunks of 153600000 bytes"):
        itop.read_depth(tmp_path / "chunk.h5", 0)
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file.create_dataset("data", (300_000, 240, 320), np.float16, chunks=(1, 240, 320))
    with pytest.raises(DataError, match=r"many\.h5: data: expected"):
        itop.read_depth(tmp_path / "many.h5", 0)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((1, 240, 320), np.float16)
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (1, 240, 320))
        file.create_virtual_dataset("data", layout)
    with pytest.raises(DataError, match="no data set 'data'"):
        itop.read_depth(tmp_path / "virtual.h5", 0)


@settings(max_examples=40, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 12000), junk=st.binary(max_size=64))
def test_truncated_and_wrong_files(labels_file: Path, tmp_path: Path, cut: int, junk: bytes) -> None:
    (tmp_path / "bad.h5").write_bytes(labels_file.read_bytes()[:cut] + junk)
    with contextlib.suppress(DataError):  # anything else fails the test
        itop.read_labels(tmp_path / "bad.h5")


def test_truncated_is_named(labels_file: Path) -> None:
    labels_file.write_bytes(labels_file.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"labels\.h5: not a readable HDF5 file .*unpack it again"):
        itop.read_labels(labels_file)
