"""The MSRA reader: parity with the port on its own tree, both releases, centre files, and hostile bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import resource
import struct
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.datasets import msra
from shared.datasets.centers import read_centers, write_centers
from shared.errors import DataError, MissingFileError
from tests.golden.fill import uniform

NS = "v2v_posenet/public/msra/"
FLIP_Y = np.array([1.0, -1.0, 1.0])


def bin_bytes(depth: np.ndarray, left: int = 0, top: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    """A file as the readme describes it, for a crop at (left, top)."""
    h, w = depth.shape
    return struct.pack("<6I", *size, left, top, left + w, top + h) + depth.astype("<f4").tobytes()


def label_text(labels: np.ndarray) -> str:
    rows = [" ".join(f"{x:.4f}" for x in row.ravel()) for row in labels]
    return "\n".join([str(len(rows)), *rows]) + "\n"


def write_folder(folder: Path, labels: np.ndarray, *, depth: bool = True) -> None:
    """One gesture folder: labels in the file's world (y up, z negative) and a small crop per frame."""
    folder.mkdir(parents=True)
    (folder / "joint.txt").write_text(label_text(labels))
    for i, joints in enumerate(labels if depth else []):
        crop = np.full((4, 5), -joints[:, 2].mean(), np.float32)
        crop[0, 0] = 0
        (folder / f"{i:06d}_depth.bin").write_bytes(bin_bytes(crop, 10 + i, 20))


def some_labels(count: int, seed: int = 0) -> np.ndarray:
    labels = np.random.default_rng(seed).uniform(-80, 80, (count, 21, 3))
    labels[..., 1] -= 60  # the hand hangs low: an upside-down centre file is then plainly wrong
    labels[..., 2] -= 330
    return labels


def tiny_tree(root: Path, subjects: tuple[int, ...] = (0, 1, 3), gestures: tuple[str, ...] = ("1", "IP", "Y")) -> Path:
    for s in subjects:
        for k, gesture in enumerate(gestures):
            write_folder(root / f"P{s}" / gesture, some_labels(2 + (s + k) % 2, seed=10 * s + k))
    return root


def golden_tree(root: Path, golden: Path) -> dict[str, np.ndarray]:
    """The nine-subject tree of msra_tree.json, rebuilt as its README says."""
    plan = json.loads((golden / "v2v_posenet/msra_tree.json").read_text())
    for name, count in plan["frames_per_gesture"].items():
        labels = uniform(f"{NS}{name}", (count, 63), -90, 90).reshape(count, 21, 3)
        labels[..., 2] = -(labels[..., 2] + np.float32(330))
        write_folder(root / name, labels, depth=False)
    (root / "msra_center").mkdir()
    for name, count in plan["centers_per_file"].items():
        points = uniform(NS + name.removesuffix("_refined.txt"), (count, 3), -50, 50)
        points[:, 2] += 330
        text = "".join(" ".join(f"{x:.6f}" for x in row) + "\n" for row in points)
        (root / "msra_center" / name).write_text(text)
    return dict(np.load(golden / "v2v_posenet/msra_tree.npz"))


def assert_split(data: msra.MsraDataset, want: dict[str, np.ndarray], key: str) -> None:
    """The port's arrays have y up and z positive."""
    joints = np.abs(data.joints_mm * FLIP_Y - want[f"{key}_joints"]).max()
    assert data.centers_mm is not None
    centers = np.abs(data.centers_mm * FLIP_Y - want[f"{key}_refpoints"]).max()
    print(f"msra {key}: joints max diff {joints:.3g}, centres max diff {centers:.3g}")
    assert joints <= 1e-9
    assert centers <= 1e-6  # printed with six decimals
    assert [f"{name}_depth.bin" for name in data.names()] == want[f"{key}_names"].tolist()


@pytest.mark.parametrize("split", ["train", "test"])
def test_golden_tree(golden: Path, tmp_path: Path, split: str) -> None:
    want = golden_tree(tmp_path, golden)
    data = msra.open(tmp_path, split, test_subject=3, centers="auto", require_depth=False)  # type: ignore[arg-type]
    assert len(data) == want[f"{split}_len"]
    assert_split(data, want, split)
    assert data.release == "subset"


def test_golden_invalid_centers_drop_their_frames(golden: Path, tmp_path: Path) -> None:
    want = golden_tree(tmp_path, golden)
    path = tmp_path / "msra_center/center_test_3_refined.txt"
    lines = path.read_text().splitlines()
    lines[1], lines[-1] = "invalid", "invalid invalid invalid"
    path.write_text("\n".join(lines) + "\n")
    data = msra.open(tmp_path, "test", test_subject=3, centers=tmp_path / "msra_center", require_depth=False)
    assert len(data) == want["invalid_right_len"] == want["invalid_reported_len_by_port"] - 2
    assert_split(data, want, "invalid")
    assert "2 dropped: invalid centre" in data.summary()


def test_golden_bin(golden: Path, tmp_path: Path) -> None:
    want = np.load(golden / "v2v_posenet/msra_bin.npz")
    path = tmp_path / "000000_depth.bin"
    path.write_bytes(want["bin_bytes"].tobytes())
    crop, (left, top, right, bottom), (width, height) = msra.read_depth(path)
    assert crop.dtype == np.float32
    assert (width, height) == (320, 240)
    image = np.zeros((height, width), np.float32)
    image[top:bottom, left:right] = crop
    image[image == 0] = 700  # the port's background
    start = int(want["depth_rows_start"])
    rows = np.abs(image[start : start + len(want["depth_rows"])] - want["depth_rows"]).max()
    print(f"msra_bin rows max diff {rows:.3g}")
    assert rows == 0
    assert image.sum(dtype=np.float64) == pytest.approx(float(want["depth_sum"]), rel=1e-12)
    z = want["points_crop"][..., 2]
    np.testing.assert_array_equal(np.where(crop == 0, 700, crop), z)
    # the port numbers pixels from 1: its points, projected, sit one past ours
    columns = want["pixels_of_points_crop"].reshape(*z.shape, 2)[0, :, 0]
    np.testing.assert_allclose(columns - 1, np.arange(left, right), atol=1e-5)


def test_frame_is_lazy_and_in_opencv_axes(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path / "db")
    data = msra.open(root, "test", test_subject=3)
    raw = msra.read_labels(root / "P3/1/joint.txt")
    frame = data[1]
    assert frame.name == "P3/1/000001"
    assert frame.subject == "P3"
    assert frame.skeleton == data.skeleton == "msra"
    assert frame.image_size == (320, 240)
    assert frame.crop_xy == (11, 20)
    assert frame.center_mm is None
    np.testing.assert_array_equal(frame.joints_mm, raw[1] * [1, -1, -1])
    np.testing.assert_array_equal(data.joints_mm[1], frame.joints_mm)
    np.testing.assert_array_equal(frame.K, [[241.42, 0, 160], [0, 241.42, 120], [0, 0, 1]])
    assert frame.full_depth_mm()[21, 11] == frame.depth_mm[1, 0] > 0
    assert not frame.valid[0, 0]
    (root / "P3/1/000001_depth.bin").unlink()
    data[0]
    with pytest.raises(MissingFileError, match=r"000001_depth\.bin"):
        data[1]
    with pytest.raises(IndexError):
        data[len(data)]


def test_dataset_can_be_pickled(tmp_path: Path) -> None:
    data = msra.open(tiny_tree(tmp_path), "train")
    copy = pickle.loads(pickle.dumps(data))
    assert copy.names() == data.names()
    np.testing.assert_array_equal(copy[-1].depth_mm, data[-1].depth_mm)


def test_splits_leave_one_subject_out_in_ascending_order(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path)
    train, test, both = (msra.open(root, split, test_subject=1) for split in ("train", "test", "all"))
    assert list(dict.fromkeys(train.subjects.tolist())) == [0, 3]
    assert set(test.subjects.tolist()) == {1}
    assert sorted(train.names() + test.names()) == sorted(both.names())
    order = [name.split("/")[1] for name in test.names()]
    assert order == sorted(order, key=msra.GESTURES.index)
    assert "P0 P3" in train.summary()


def test_only_some_subjects_and_gestures_keep_their_centers(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path)
    full = msra.open(root, "train", test_subject=3)
    write_centers(root / "msra_center/center_train_3_refined.txt", full.joints_mm.mean(1), y_up=True)
    part = msra.open(root, "train", test_subject=3, centers="auto", subjects=[1], gestures=["Y", "1"])
    assert set(part.names()) == {n for n in full.names() if n.startswith("P1/") and n.split("/")[1] in ("1", "Y")}
    np.testing.assert_allclose(part.centers_mm, part.joints_mm.mean(1), atol=1e-9)


def test_parent_folder_and_sibling_centers_are_found(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path / "cvpr15_MSRAHandGestureDB")
    data = msra.open(tmp_path, "test", test_subject=3, centers="auto")
    assert data.root == root
    assert data.centers_mm is None
    assert "no centre file" in data.summary()
    write_centers(tmp_path / "msra_center/center_test_3_refined.txt", data.joints_mm.mean(1), y_up=True)
    assert msra.open(tmp_path, "test", test_subject=3, centers="auto").centers_mm is not None


def test_split_all_takes_each_persons_test_centers(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path)
    for s in (0, 1, 3):
        joints = msra.open(root, "test", test_subject=s).joints_mm
        write_centers(root / f"msra_center/center_test_{s}_refined.txt", joints.mean(1) + s, y_up=True)
    data = msra.open(root, "all", centers="auto")
    np.testing.assert_allclose(data.centers_mm, data.joints_mm.mean(1) + data.subjects[:, None], atol=1e-9)
    one = msra.open(root, "all", centers="auto", subjects=[1])
    np.testing.assert_allclose(one.centers_mm, one.joints_mm.mean(1) + 1, atol=1e-9)


def test_handless_frames_are_dropped_on_request(tmp_path: Path) -> None:
    assert len(msra.HANDLESS) == 22
    write_folder(tmp_path / "P8/4", np.repeat(some_labels(1), 170, 0))
    kept = msra.open(tmp_path, "test", test_subject=8)
    dropped = msra.open(tmp_path, "test", test_subject=8, drop_handless=True)
    assert set(kept.names()) - set(dropped.names()) == {"P8/4/000168"}
    assert "1 dropped: no hand" in dropped.summary()


# --- releases and centre files ---


def release_counts(name: str) -> dict[int, dict[str, int]]:
    counts = {s: {g: msra.FIRST_RELEASE_COUNTS.get(f"P{s}/{g}", 500) for g in msra.GESTURES} for s in msra.SUBJECTS}
    for s, total in enumerate(msra.RELEASES[name]):
        counts[s]["Y"] += total - sum(counts[s].values())
    return counts


def test_release_tables_add_up() -> None:
    assert sum(msra.RELEASES["first"]) == 76375
    assert sum(msra.RELEASES["second"]) == 76391
    by_gesture = release_counts("first")  # the per-gesture table gives the sums without a correction
    assert by_gesture[1]["Y"] == 498
    assert by_gesture[2]["Y"] == 500


@pytest.mark.parametrize("name", ["first", "second"])
def test_release_is_recognised(name: str) -> None:
    counts = release_counts(name)
    assert msra.detect_release(counts) == name
    assert msra.detect_release({3: counts[3]}) == name
    assert msra.detect_release({0: counts[0]}) == "subset"  # P0 is alike in both
    assert msra.detect_release({}) == "subset"
    del counts[5]["L"]
    assert msra.detect_release(counts) == "subset"


def test_first_release_needs_its_gesture_counts() -> None:
    counts = release_counts("first")
    counts[1]["1"], counts[1]["4"] = 499, 500
    assert msra.detect_release(counts) == "subset"


def release_tree(root: Path, name: str) -> Path:
    """P3 of a release with its true counts and one repeated label line (no depth files: half a gigabyte)."""
    for gesture, count in release_counts(name)[3].items():
        write_folder(root / "P3" / gesture, np.repeat(some_labels(1), count, 0), depth=False)
    return root


def test_real_centers_are_refused_on_the_first_release(real_data: Path, tmp_path: Path) -> None:
    root = release_tree(tmp_path, "first")
    with pytest.raises(DataError) as error:
        msra.open(root, "test", centers=real_data / "msra_center", require_depth=False)
    for words in ("8498 centres for 8488 labelled frames", "second release", "labels: first", "make_centers"):
        assert words in str(error.value)


def test_real_centers_pass_the_count_on_the_second_release(real_data: Path, tmp_path: Path) -> None:
    root = release_tree(tmp_path, "second")
    xyz, _ = read_centers(real_data / "msra_center/center_test_3_refined.txt.gz", y_up=True)
    row = 0
    for gesture, count in release_counts("second")[3].items():
        labels = (some_labels(1)[0] - some_labels(1)[0].mean(0)) + xyz[row : row + count, None] * [1, -1, -1]
        (root / f"P3/{gesture}/joint.txt").write_text(label_text(labels))
        row += count
    data = msra.open(root, "test", centers=real_data / "msra_center", require_depth=False)
    assert data.release == "second"
    assert "second release (76,391)" in data.summary()
    np.testing.assert_allclose(data.centers_mm, data.joints_mm.mean(1), atol=1e-3)


def test_real_center_file(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "msra_center"
    expected = json.loads((folder / "expected.json").read_text())
    xyz, valid = read_centers(folder / "center_test_3_refined.txt.gz", y_up=False)
    assert xyz.shape == (expected["rows"], 3)
    assert valid.all()
    assert xyz[0].tolist() == expected["first"]
    assert xyz[-1].tolist() == expected["last"]
    np.testing.assert_allclose(xyz.mean(0), expected["mean"], atol=1e-6)
    turned, _ = read_centers(folder / "center_test_3_refined.txt.gz", y_up=True)
    uv = turned[0] @ msra.K.T
    np.testing.assert_allclose(uv[:2] / uv[2], expected["first_uv"], atol=1e-3)
    copy = tmp_path / "copy.txt"  # our writer prints the author's digits
    write_centers(copy, turned, y_up=True)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == expected["sha256"]


def test_centers_round_trip_with_invalid_rows(tmp_path: Path) -> None:
    xyz = np.array([[1.25, -2.0, 300.0], [np.nan, 0, 0], [4, 5, 600]])
    write_centers(tmp_path / "a.txt", xyz * [1, -1, 1], np.array([True, True, False]), y_up=True)
    assert (tmp_path / "a.txt").read_text() == "1.25 -2 300\n" + 2 * "invalid invalid invalid\n"
    back, valid = read_centers(tmp_path / "a.txt", y_up=True)
    assert valid.tolist() == [True, False, False]
    np.testing.assert_array_equal(back[0], [1.25, 2.0, 300.0])
    assert np.isnan(back[1:]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "7 centres for 8 labelled frames.*another release or fold"),
        (lambda c: np.concatenate([c, c[:1]]), "9 centres for 8"),
        (lambda c: c * [1, -1, 1], r"with y turned.*y up"),
        (lambda c: c * [1, 1, -1], "mm \\(median\\) from the middle of their joints, expected below 75"),
        (lambda c: c + np.array([0, 0, 90]), "another fold or release"),
    ],
)
def test_centers_that_do_not_belong_are_refused(tmp_path: Path, change, message: str) -> None:
    root = tiny_tree(tmp_path)
    truth = msra.open(root, "test", test_subject=3).joints_mm.mean(1)
    path = root / "msra_center/center_test_3_refined.txt"
    write_centers(path, truth + 5, y_up=True)
    msra.open(root, "test", test_subject=3, centers="auto")
    write_centers(path, change(truth), y_up=True)
    with pytest.raises(DataError, match=message):
        msra.open(root, "test", test_subject=3, centers="auto")


def test_centers_as_one_file_and_all_invalid(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path)
    (tmp_path / "mine.txt").write_text("invalid\n" * 8)
    assert len(msra.open(root, "test", test_subject=3, centers=tmp_path / "mine.txt")) == 0
    with pytest.raises(MissingFileError, match=r"center_test_3_refined\.txt.*make_centers"):
        msra.open(root, "test", test_subject=3, centers=tmp_path)
    with pytest.raises(DataError, match="centres must have shape"):
        write_centers(tmp_path / "x.txt", np.zeros(3), y_up=True)
    with pytest.raises(DataError, match="valid must have shape"):
        write_centers(tmp_path / "x.txt", np.zeros((2, 3)), np.array([True]), y_up=True)


# --- what a user does wrong ---


def test_bad_arguments_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no folder P0 to P8.*jimmysuen"):
        msra.open(tmp_path / "nowhere")
    root = tiny_tree(tmp_path, subjects=(3,))
    for arguments, message in [
        ({"split": "val"}, "split must be"),
        ({"test_subject": 9}, "test_subject must be 0 to 8"),
        ({"gestures": ["1", "A"]}, r"gestures must be some of 1, 2.*'A'"),
        ({"subjects": []}, "subjects must be some of 0"),
        ({"split": "train"}, r"no person of the train split.*found P3"),
        ({"split": "test", "test_subject": 4}, "no person of the test split"),
    ]:
        with pytest.raises(DataError, match=message):
            msra.open(root, **{"split": "test", **arguments})  # type: ignore[arg-type]
    (tmp_path / "P7").mkdir()
    with pytest.raises(MissingFileError, match=r"P7.*none of the 17 gesture folders"):
        msra.open(root, "test", test_subject=7)
    with pytest.raises(MissingFileError, match="none of the 17"):
        msra.open(root, "all")
    assert msra.open(root, "test", test_subject=3).release == "subset"  # a bad folder outside the split does not matter


def test_missing_depth_file_is_named_at_open(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path)
    (root / "P3/IP/000001_depth.bin").unlink()
    with pytest.raises(MissingFileError, match=r"P3/IP/000001_depth\.bin.*missing \(1 of"):
        msra.open(root, "test", test_subject=3)
    assert len(msra.open(root, "test", test_subject=3, require_depth=False)) == 8
    (root / "P3/1/joint.txt").unlink()
    with pytest.raises(MissingFileError, match=r"P3/1/joint\.txt"):
        msra.open(root, "test", test_subject=3, require_depth=False)


LINE = " ".join(["1", "1", "-1"] * 21)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must be the number of frames"),
        ("two\n", "line 1 must be the number of frames.*'two'"),
        ("-1\n", "line 1 must be"),
        ("1 2\n", "line 1 must be"),
        ("99999\n", "line 1 must be"),
        (f"2\n{LINE}\n", "line 1 says 2 frames but 1 lines follow"),
        (f"1\n{LINE}\n{LINE}\n", "line 1 says 1 frames but 2 lines follow"),
        (f"2\n{LINE}\n{LINE} 5\n", "line 3 has more than 63 values"),
        (f"2\n{LINE}\n1 2 3\n", "line 3 has 3 values, expected 63"),
        (f"2\n{LINE}\n{LINE[:-2]}nan\n", "line 3: 'nan' is not a finite number"),
        (f"2\n{LINE[:-2]}-1e999\n{LINE}\n", "line 2: '-1e999' is not a finite number"),
        (f"1\n{LINE[:-2]}hello\n", "line 2: 'hello' is not"),
        ("1\n" + " ".join(["1"] * 63) + "\n", "depths are positive"),
    ],
)
def test_bad_labels_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "joint.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        msra.read_labels(path)
    assert str(path) in str(error.value)


def test_labels_of_an_empty_gesture_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "joint.txt"
    path.write_text("0\n")
    assert msra.read_labels(path).shape == (0, 21, 3)
    path.write_bytes(f" 1 \r\n{LINE} \r\n\r\n".encode())
    labels = msra.read_labels(path)
    assert labels.shape == (1, 21, 3)
    np.testing.assert_array_equal(msra.read_joints_mm(path), labels * [1, -1, -1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n4 5\n", "line 2: expected 'x y z' or 'invalid', got b'4 5'"),
        ("1 2 3\n\n4 5 6\n", "line 2: blank, expected one line per frame"),
        ("1 2 3 4\n", "line 1: expected 'x y z'"),
        ("1 2 inf\n", "line 1: expected 'x y z' or 'invalid', got b'1 2 inf'"),
        ("1 2 3\ninvalidate\n", "line 2: expected 'x y z' or 'invalid', got b'invalidate'"),
    ],
)
def test_bad_centers_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_centers(path, y_up=True)


def test_center_files_that_are_bombs_or_damaged(tmp_path: Path) -> None:
    bomb = tmp_path / "c.txt.gz"
    bomb.write_bytes(gzip.compress(b"1 2 3\n" * 5_000_000))
    with pytest.raises(DataError, match="more than 1,000,000 lines, not a centre file"):
        read_centers(bomb, y_up=True)
    packed = gzip.compress(b"1 2 3\n" * 1000)
    for content in (packed[:-12], b"<html>", packed[:30] + b"\xff" * 9 + packed[39:]):
        bomb.write_bytes(content)
        with pytest.raises(DataError, match="damaged gzip file"):
            read_centers(bomb, y_up=True)
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(20 << 20)
    with pytest.raises(DataError, match="line 1: longer than 4096 bytes"):
        read_centers(tmp_path / "big.txt", y_up=True)
    with pytest.raises(DataError, match="no such label file"):
        read_centers(tmp_path, y_up=True)


CROP = np.full((3, 4), 300, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found 0 bytes"),
        (bin_bytes(CROP)[:20], "found 20 bytes"),
        (bin_bytes(CROP)[:-1], "found 71 bytes"),
        (bin_bytes(CROP)[:-4], r"the box holds 4x3 pixels, 72 bytes.*68 bytes.*truncated"),
        (bin_bytes(CROP) + b"\0" * 4, "the box holds 4x3"),
        (bin_bytes(CROP, size=(640, 480)), "the header says 640x480 pixels"),
        (bin_bytes(CROP, left=318), "does not lie in a 320x240 image"),
        (struct.pack("<6I", 320, 240, 9, 0, 5, 3) + b"\0" * 48, "left 9, top 0, right 5"),
        (struct.pack("<6I", 320, 240, 0, 9, 4, 6) + b"\0" * 48, "top 9, right 4, bottom 6"),
        (struct.pack("<6I", 320, 240, 0, 0, 2**32 - 1, 2**32 - 1) + b"\0" * 48, "does not lie"),
        (struct.pack("<6I", 320, 240, 0, 0, 320, 240), "307224 bytes with the header, but the file has 24"),
        (bin_bytes(np.where(np.eye(3, 4), np.nan, CROP)), "NaN, infinite, negative"),
        (bin_bytes(np.where(np.eye(3, 4), np.inf, CROP)), "NaN, infinite, negative"),
        (bin_bytes(np.where(np.eye(3, 4), -1, CROP)), "NaN, infinite, negative"),
        (bin_bytes(CROP * 1e6), "beyond 100 m"),
        (b"\0" * (4 * 320 * 240), "2014 tracking set"),
        (b"\0" * (4 * 320 * 241), "at most 307224"),
    ],
)
def test_bad_bins_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "000000_depth.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        msra.read_depth(path)
    assert str(path) in str(error.value)


def test_whole_image_and_empty_box_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bin_bytes(np.ones((240, 320))))
    assert msra.read_depth(path)[0].shape == (240, 320)
    path.write_bytes(bin_bytes(np.ones((0, 0)), 5, 5))
    assert msra.read_depth(path)[0].size == 0


def bounded(read, path: Path) -> None:
    """Runs a decoder on hostile bytes: a result or a DataError, within a second and 200 MB more than before."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read(path)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 - a result is allowed too
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@settings(max_examples=150, deadline=None)
@given(
    header=st.lists(st.sampled_from([0, 1, 3, 4, 240, 319, 320, 321, 2**31, 2**32 - 1]), min_size=6, max_size=6),
    official=st.booleans(),
    tail=st.binary(max_size=64),
)
def test_hostile_headers(
    tmp_path_factory: pytest.TempPathFactory, header: list[int], official: bool, tail: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.bin"
    path.write_bytes(struct.pack("<6I", *([320, 240] if official else header[:2]), *header[2:]) + tail)
    bounded(msra.read_depth, path)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 72), at=st.integers(0, 71), value=st.integers(0, 255))
def test_damaged_bins(tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, value: int) -> None:
    content = bytearray(bin_bytes(CROP, 7, 8))
    content[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(bytes(content[:cut]))
    bounded(msra.read_depth, path)


@settings(max_examples=150, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text("0123456789 .-+e\nainvld", max_size=400).map(str.encode)))
def test_hostile_text(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.txt"
    path.write_bytes(content)
    bounded(msra.read_labels, path)
    bounded(partial(read_centers, y_up=True), path)


def test_absurdly_long_text_is_cheap(tmp_path: Path) -> None:
    path = tmp_path / "joint.txt"
    for content in (b"1\n" + b"1 " * 1_900_000, b"9999\n" * 800_000, b"7" * 4_000_000, b"1\n" * 2_000_000):
        path.write_bytes(content)
        bounded(msra.read_labels, path)
        bounded(partial(read_centers, y_up=True), path)
