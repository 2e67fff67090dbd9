"""The MSRA stand-in: the official tree, the same bytes however it is made, and the right axes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.camera import project
from shared.datasets import msra as reader
from shared.errors import DataError
from shared.standin import msra as writer
from shared.standin.msra import main, write_msra
from shared.standin.scene import sample_scene, to_skeleton


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msra(
        tmp_path_factory.mktemp("msra") / "set", subjects=3, frames_per_gesture=2, gestures=("5", "1", "Y")
    )


def test_tree_and_formats_are_the_official_ones(root: Path) -> None:
    files = tree(root)
    folders = [f"P{s}/{g}" for s in range(3) for g in ("1", "5", "Y")]
    expected = {f"{f}/{name}" for f in folders for name in ("000000_depth.bin", "000001_depth.bin", "joint.txt")}
    expected |= {f"msra_center/center_{split}_{s}_refined.txt" for s in range(3) for split in ("train", "test")}
    assert set(files) == expected | {"standin.json"}
    lines = files["P1/5/joint.txt"].decode().splitlines()
    assert lines[0] == "2"
    assert len(lines) == 3
    labels = np.array([line.split() for line in lines[1:]], float)
    assert labels.shape == (2, 63)
    assert (labels.reshape(-1, 21, 3)[..., 2] < 0).all(), "z is negative in the file"
    data = files["P1/5/000001_depth.bin"]
    width, height, left, top, right, bottom = struct.unpack("<6I", data[:24])
    assert (width, height) == (320, 240)
    assert len(data) == 24 + 4 * (right - left) * (bottom - top)
    box = np.frombuffer(data[24:], "<f4").reshape(bottom - top, right - left)
    assert box[box > 0].min() > 100
    assert len(files["msra_center/center_train_1_refined.txt"].splitlines()) == 12
    assert len(files["msra_center/center_test_1_refined.txt"].splitlines()) == 6


def test_box_is_half_open_and_in_its_place(tmp_path: Path) -> None:
    root = write_msra(tmp_path / "exact", subjects=1, frames_per_gesture=1, gestures=("5",), noise=False)
    number = reader.GESTURES.index("5") * 10_000
    scene = sample_scene(0, number, K=reader.K, image_size=(320, 240), subject=0, gesture="5")
    crop, (left, top, right, bottom), _ = reader.read_depth(root / "P0" / "5" / "000000_depth.bin")
    full = np.zeros((240, 320), np.float32)
    full[top:bottom, left:right] = crop
    assert np.array_equal(full, scene.depth_mm)
    joints = reader.read_joints_mm(root / "P0" / "5" / "joint.txt")[0]
    assert np.abs(joints - to_skeleton(scene.joints_mm, "msra")).max() < 1e-4


def test_labels_lie_in_the_picture(root: Path) -> None:
    """Wrong axes or orders would be noticed: every joint falls on the hand, a little behind the surface."""
    on_hand, gaps = [], []
    data = reader.open(root, "all", centers=None)
    assert len(data) == 18
    for i in range(len(data)):
        frame = data[i]
        assert frame.joints_mm is not None
        uv = project(frame.joints_mm, frame.K).round().astype(int)
        depth = frame.full_depth_mm()
        for (u, v), z in zip(uv, frame.joints_mm[:, 2], strict=True):
            window = depth[max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2]  # within a pixel
            on_hand.append((window > 0).any())
            if depth[v, u] > 0:
                gaps.append(z - depth[v, u])
    print(f"joints on the hand {np.mean(on_hand):.3f}, median depth behind the surface {np.median(gaps):.1f} mm")
    assert np.mean(on_hand) > 0.97
    assert 3 < np.median(gaps) < 16
    assert np.mean(np.array(gaps) > -8) > 0.98


def test_a_right_hand_in_msra_order(root: Path) -> None:
    joints = reader.read_joints_mm(root / "P0" / "5" / "joint.txt")[0]
    reach = np.linalg.norm(joints - joints[0], axis=1).reshape(-1)
    for finger in range(4):  # index, middle, ring, little: base to tip
        assert (np.diff(reach[1 + 4 * finger : 5 + 4 * finger]) > 0).all()
    lengths = [np.linalg.norm(np.diff(joints[1 + 4 * f : 5 + 4 * f], axis=0), axis=1).sum() for f in range(4)]
    assert int(np.argmax(lengths)) == 1
    assert int(np.argmin(lengths)) == 3
    # Chirality of a right hand: (towards the thumb) x (towards the fingers) points out of the palm, where the thumb is.
    normal = np.cross(joints[1] - joints[13], joints[5] - joints[0])
    assert (joints[18] - joints[5]) @ normal > 0


def test_centres_are_near_the_hand_and_differ_by_fold(root: Path) -> None:
    folds = {}
    for s in range(3):
        for split in ("train", "test"):
            data = reader.open(root, split, test_subject=s, centers="auto")
            assert data.centers_mm is not None
            offset = np.linalg.norm(data.centers_mm - data.joints_mm.mean(1), axis=1)
            assert 2 < offset.mean() < 12
            for name, center in zip(data.frame_names, data.centers_mm, strict=True):
                folds[s, name] = center
    assert np.linalg.norm(folds[0, "P0/1/000000"] - folds[1, "P0/1/000000"]) > 0.5
    text = (root / "msra_center" / "center_test_0_refined.txt").read_text()
    first = np.array(text.splitlines()[0].split(), float)
    assert first[2] > 0, "z is positive in centre files"
    assert np.allclose(first * [1, -1, 1], folds[0, "P0/1/000000"])


def test_same_bytes_again_and_with_other_workers(root: Path, tmp_path: Path) -> None:
    options = {"subjects": 3, "frames_per_gesture": 2, "gestures": ("5", "1", "Y")}
    assert tree(write_msra(tmp_path / "again", **options)) == tree(root)
    assert tree(write_msra(tmp_path / "two", **options, workers=2)) == tree(root)
    other = tree(write_msra(tmp_path / "seed", **options, seed=1))
    same = [name for name, data in tree(root).items() if other[name] == data]
    assert same == []


def test_a_frame_does_not_depend_on_how_many_there_are(root: Path, tmp_path: Path) -> None:
    few = tree(write_msra(tmp_path / "few", subjects=2, frames_per_gesture=1, gestures=("Y",)))
    assert few["P1/Y/000000_depth.bin"] == tree(root)["P1/Y/000000_depth.bin"]


def test_finished_is_left_alone_and_other_parameters_are_refused(root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    write_msra(root, subjects=3, frames_per_gesture=2, gestures=("Y", "1", "5"))
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    with pytest.raises(DataError, match=r"other parameters \(seed 0 instead of 7\).*remove .* to make it again"):
        write_msra(root, subjects=3, frames_per_gesture=2, gestures=("5", "1", "Y"), seed=7)
    with pytest.raises(DataError, match="frames 18 instead of 9"):
        write_msra(root, subjects=3, frames_per_gesture=1, gestures=("5", "1", "Y"))


def test_interrupted_run_is_continued(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"subjects": 3, "frames_per_gesture": 2, "gestures": ("5", "1", "Y")}
    whole, done = writer._write_folder, []

    def failing(folder: writer._Folder) -> int:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(folder)
        return whole(folder)

    monkeypatch.setattr(writer, "_write_folder", failing)
    with pytest.raises(KeyboardInterrupt):
        write_msra(tmp_path / "set", **options)
    assert not (tmp_path / "set" / "standin.json").exists()
    with pytest.raises(DataError, match="other parameters"):
        write_msra(tmp_path / "set", **options, seed=5)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("joint.txt")}
    assert len(kept) == 4
    monkeypatch.setattr(writer, "_write_folder", whole)
    write_msra(tmp_path / "set", **options)
    assert tree(tmp_path / "set") == tree(root)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())


def test_does_not_touch_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "P3").mkdir()
    with pytest.raises(DataError, match="no stand-in; it is not overwritten"):
        write_msra(tmp_path, subjects=1, frames_per_gesture=1)
    (tmp_path / "standin.json").write_text("not json")
    with pytest.raises(DataError, match="other parameters"):
        write_msra(tmp_path, subjects=1, frames_per_gesture=1)


def test_refuses_impossible_numbers(tmp_path: Path) -> None:
    for options, message in (
        ({"subjects": 10}, "subjects must be 1 to 9"),
        ({"subjects": 0}, "subjects must be 1 to 9"),
        ({"gestures": ("1", "Z")}, "gestures must be some of"),
        ({"gestures": ("1", "1")}, "each once"),
        ({"gestures": ()}, "gestures must be some of"),
        ({"total_frames": 100}, "frames must be 153 to 76500 for 9 subjects and 17 gestures"),
        ({"frames_per_gesture": 501}, "frames must be"),
        ({"workers": 0}, "workers must be 1 or more"),
    ):
        with pytest.raises(DataError, match=message):
            write_msra(tmp_path / "never", **options)
    assert not (tmp_path / "never").exists()


def test_command_line_spreads_the_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cli"
    arguments = ["--out", str(out), "--frames", "20", "--subjects", "1", "--workers", "1"]
    assert main(arguments) == 0
    assert "20 frames of 1 subjects" in capsys.readouterr().out
    counts = [int((out / "P0" / g / "joint.txt").read_text().split("\n")[0]) for g in reader.GESTURES]
    assert counts == [2, 2, 2] + [1] * 14
    assert json.loads((out / "standin.json").read_text())["frames"] == 20
    assert reader.open(out, "test", test_subject=0, centers="auto").centers_mm is not None
    assert main(arguments) == 0


def test_program_reports_errors_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shared.standin.msra", "--out", str(tmp_path / "x"), "--subjects", "12"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: subjects must be 1 to 9")
