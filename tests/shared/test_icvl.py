"""ICVL: real label files, the stand-in tree read back, axes, filters, and files that are not what they should be."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared import camera
from shared.datasets import icvl
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.standin.icvl import write_icvl
from tests.shared.depth_checks import on_surface

FRAMES = 5
LABEL = " ".join(["100.5 60.25 400"] * 16)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("icvl")
    write_icvl(root, frames=FRAMES, seed=1)
    return root


def test_real_labels(real_data: Path) -> None:
    expected = json.loads((real_data / "icvl_labels" / "expected.json").read_text())
    file = real_data / "icvl_labels" / expected["file"]
    assert hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest() == expected["sha256"]
    names, uvd, ignored = icvl.read_labels(file)
    assert (len(names), names[0], names[-1]) == (expected["records"], expected["first_name"], expected["last_name"])
    assert uvd.shape == (702, 16, 3)
    assert ignored == 0
    difference = np.abs(uvd[[0, -1], [0, -1]] - [expected["first_joint"], expected["last_joint"]]).max()
    print(f"labels max diff {difference:.3g}")
    assert difference == 0


def test_real_labels_agree_with_the_public_evaluation(real_data: Path) -> None:
    """The evaluation's ground-truth file was made by other people from both test files; sequence 1 comes first."""
    _, uvd, _ = icvl.read_labels(real_data / "icvl_labels" / "test_seq_1.txt.gz")
    truth = gzip.decompress((real_data / "predictions" / "icvl" / "icvl_test_groundtruth_label.txt.gz").read_bytes())
    other = np.array([line.split() for line in truth.splitlines()], float).reshape(-1, 16, 3)
    difference = np.abs(other[:702] - uvd).max()
    print(f"evaluation labels max diff {difference:.3g}")
    assert difference < 2e-3


def test_a_copy_in_text_mode_reads_the_same(tree: Path, tmp_path: Path) -> None:
    file = tree / "Testing" / "test_seq_1.txt"
    assert file.read_bytes().count(b" \r\r\n") == 3
    (tmp_path / "l.txt").write_text(file.read_text())  # universal newlines leave an empty line after each record
    assert "\n\n" in (tmp_path / "l.txt").read_text()
    assert icvl.read_labels(tmp_path / "l.txt")[0] == icvl.read_labels(file)[0]
    assert np.array_equal(icvl.read_labels(tmp_path / "l.txt")[1], icvl.read_labels(file)[1])


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_fall_on_the_hand(tree: Path, split: icvl.Split) -> None:
    dataset = icvl.open(tree, split, include_rotated=True)
    assert isinstance(dataset, FrameDataset)
    good, flipped, mirrored, far = [], [], [], []
    for index in range(len(dataset)):
        frame = dataset[index]
        assert frame.joints_mm is not None
        assert frame.keypoints_2d is not None
        assert np.abs(camera.project(frame.joints_mm, frame.K) - frame.keypoints_2d).max() < 1e-9
        good.append(on_surface(frame, frame.joints_mm, 25))
        flipped.append(on_surface(frame, frame.joints_mm * [1, -1, 1], 25))
        mirrored.append(on_surface(frame, frame.joints_mm * [-1, 1, 1], 25))
        far.append(on_surface(frame, frame.joints_mm + np.array([0, 0, 40]), 25))
    print(f"{split}: on surface {np.mean(good):.2f}, y up {np.mean(flipped):.2f}, mirrored {np.mean(mirrored):.2f}")
    assert np.mean(good) > 0.75  # the rest is hidden by other fingers
    assert max(np.mean(flipped), np.mean(mirrored), np.mean(far)) < np.mean(good) - 0.25


def test_originals_and_rotated_copies(tree: Path) -> None:
    originals, every = icvl.open(tree, "train"), icvl.open(tree, "train", include_rotated=True)
    assert (len(originals), len(every)) == (FRAMES, 2 * FRAMES)
    assert len(originals.skipped["rotated copies"]) == FRAMES
    assert originals.summary() == "ICVL train: 5 frames (0 rotated copies), skipped 5 rotated copies"
    assert every.summary() == "ICVL train: 10 frames (5 rotated copies)"
    first, turned = every[0], every[FRAMES]
    assert (first.extra["session"], first.extra["rotated"]) == ("201403121135", False)
    assert (turned.extra["session"], turned.extra["rotated"]) == ("201403121135", True)
    assert first.joints_mm is not None
    assert turned.joints_mm is not None
    assert np.abs(first.joints_mm[:, 2] - turned.joints_mm[:, 2]).max() < 1e-9  # turned in the plane
    assert np.abs(first.joints_mm - turned.joints_mm).max() > 5


@pytest.mark.parametrize("name", ["201403121135/45/image_0000.png", "45/201403121135/image_0000.png"])
def test_angle_before_or_after_the_session(tree: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tree / "Training" / "Depth" / "45" / "201403121135", (tmp_path / "Training/Depth" / name).parent)
    (tmp_path / "Training" / "labels.txt").write_text(f"{name} {LABEL}\n")
    assert len(icvl.open(tmp_path, "train")) == 0
    assert icvl.open(tmp_path, "train", include_rotated=True)[0].extra == {"session": "201403121135", "rotated": True}


def test_test_is_sequence_one_then_two(tree: Path) -> None:
    one, two, both = (icvl.open(tree, split) for split in ("test_seq_1", "test_seq_2", "test"))
    assert (len(one), len(two)) == (3, 2)
    assert both.names() == one.names() + two.names()
    assert both.names()[3] == "test_seq_2/image_0000"
    assert np.array_equal(both.joints_mm, np.concatenate([one.joints_mm, two.joints_mm]))
    assert both[4].name == both.names()[4]


def test_only_the_first_lines_count(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert icvl.TRAIN_LINES == 331_006
    monkeypatch.setattr(icvl, "TRAIN_LINES", 3)
    dataset = icvl.open(tree, "train")
    assert len(dataset) == 3
    assert dataset.ignored == 7
    assert dataset.summary().endswith("7 lines after the 3th ignored")
    assert len(icvl.open(tree, "test")) == FRAMES  # a rule of the training file only


def test_missing_pictures_are_counted(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "Testing", tmp_path / "ICVL" / "Testing")  # also: the folder above
    (tmp_path / "ICVL" / "Testing" / "Depth" / "test_seq_1" / "image_0001.png").unlink()
    dataset = icvl.open(tmp_path, "test", centers=tree / "icvl_center")
    assert dataset.skipped == {"missing pictures": ["test_seq_1/image_0001.png"]}
    assert dataset.summary() == "ICVL test: 4 frames (0 rotated copies), skipped 1 missing pictures"
    assert dataset.names()[1] == "test_seq_1/image_0002"
    assert dataset.centers_mm is not None
    near = np.linalg.norm(dataset.centers_mm - dataset.joints_mm.mean(1), axis=-1)
    assert near.max() < 30  # the centre of the missing frame was passed over too
    shutil.rmtree(tmp_path / "ICVL" / "Testing" / "Depth")
    with pytest.raises(MissingFileError, match=r"Depth: none of the 5 labelled pictures.*test_seq_1/image_0000"):
        icvl.open(tmp_path, "test")


def test_centers(tree: Path, tmp_path: Path) -> None:
    lines = (tree / "icvl_center" / "center_train_refined.txt").read_text().splitlines()
    lines[1] = "invalid"
    (tmp_path / "c.txt").write_text("\n".join(lines) + "\n")
    dataset = icvl.open(tree, "train", centers=tmp_path / "c.txt")
    assert len(lines) == 2 * FRAMES  # one per label, rotated copies included
    assert dataset.skipped["frames without a centre"] == ["201403121135/image_0001.png"]
    assert dataset.centers_mm is not None
    assert np.linalg.norm(dataset.centers_mm - dataset.joints_mm.mean(1), axis=-1).max() < 30  # and y is not turned
    assert np.linalg.norm(dataset.centers_mm * [1, -1, 1] - dataset.joints_mm.mean(1), axis=-1).max() > 30
    assert np.array_equal(dataset[2].center_mm, dataset.centers_mm[2])
    with pytest.raises(DataError, match="5 centres for 3 labelled frames"):
        icvl.open(tree, "test_seq_1", centers=tree / "icvl_center")


def test_focal_lengths() -> None:
    uvd = [[160 + 24.142, 120, 100.0]]
    assert np.allclose(icvl.joints_mm(uvd), [[10, 0, 100]])
    assert np.allclose(icvl.joints_mm(uvd, "evaluation"), [[24.142 / 240.99 * 100, 0, 100]])
    assert icvl.intrinsics("evaluation")[1, 1] == 240.96
    with pytest.raises(DataError, match="focal: expected one of geometry, evaluation, got 'x'"):
        icvl.intrinsics("x")  # type: ignore[arg-type]


def test_joints_without_a_depth_are_not_valid(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "Testing", tmp_path / "Testing")
    (tmp_path / "Testing" / "test_seq_1.txt").write_text(f"test_seq_1/image_0000.png {LABEL[:-3]}0\n")
    frame = icvl.open(tmp_path, "test_seq_1")[0]
    assert frame.joints_valid is not None
    assert frame.joints_valid.tolist() == [True] * 15 + [False]


def test_depth_without_reading_is_zero(tmp_path: Path) -> None:
    stored = np.full((240, 320), 400, np.uint16)
    stored[0, :4] = [0, 32000, 32001, 65535]
    Image.fromarray(stored).save(tmp_path / "a.png")
    depth = icvl.read_depth(tmp_path / "a.png")
    assert depth.dtype == np.float32
    assert depth[0, :5].tolist() == [0, 32000, 0, 0, 400]
    Image.fromarray(stored.T.copy()).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: expected 320x240 pixels, the header says 240x320"):
        icvl.read_depth(tmp_path / "b.png")


def test_pickle_and_determinism(tree: Path, tmp_path: Path) -> None:
    dataset = icvl.open(tree, "test")
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy[1].depth_mm, dataset[1].depth_mm)
    write_icvl(tmp_path, frames=FRAMES, seed=1)
    for file in sorted(tree.rglob("*.*")):
        assert (tmp_path / file.relative_to(tree)).read_bytes() == file.read_bytes()
    with pytest.raises(DataError, match="frames: expected at least 2"):
        write_icvl(tmp_path, frames=1)


def test_missing_folders_and_options(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no folder of ICVL \(Training\).*ICVL/Training.*labicvl"):
        icvl.open(tmp_path, "train")
    (tmp_path / "Training").mkdir()
    with pytest.raises(MissingFileError, match=r"labels\.txt: missing: ICVL labels.*labicvl"):
        icvl.open(tmp_path, "train")
    with pytest.raises(DataError, match="split: expected train, test, test_seq_1, test_seq_2, got 'val'"):
        icvl.open(tmp_path, "val")  # type: ignore[arg-type]


def test_a_short_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(f"a.png {LABEL}\nb.png {LABEL[:-4]}\n")
    with pytest.raises(DataError, match=r"l\.txt: line 2: expected a name and 48 numbers, got 47"):
        icvl.read_labels(tmp_path / "l.txt")


@settings(max_examples=40, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100), st.integers(0, 600))
def test_arbitrary_label_files(tmp_path: Path, junk: bytes, at: int) -> None:
    good = f"a/b.png {LABEL}\r\r\nc.png {LABEL}\n".encode()
    (tmp_path / "l.txt").write_bytes(good[:at] + junk + good[at:])
    with contextlib.suppress(DataError):  # anything else fails the test
        names, uvd, _ = icvl.read_labels(tmp_path / "l.txt")
        assert uvd.shape == (len(names), 16, 3)
