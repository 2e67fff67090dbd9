"""HANDS2017: the stand-in tree read back, both separators, test frames without labels, and bad files."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared import camera
from shared.datasets import hands2017
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.skeletons import get
from shared.standin.hands2017 import write_hands2017
from tests.shared.depth_checks import on_surface

FRAMES = 4


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hands2017")
    write_hands2017(root, frames=FRAMES, seed=1)
    return root


def test_labels_fall_on_the_hand(tree: Path) -> None:
    dataset = hands2017.open(tree, "train")
    assert isinstance(dataset, FrameDataset)
    assert dataset.joints_mm is not None
    assert dataset.joints_mm.shape == (FRAMES, 21, 3)
    good, flipped, mirrored = [], [], []
    for index in range(len(dataset)):
        frame = dataset[index]
        assert frame.joints_mm is not None
        good.append(on_surface(frame, frame.joints_mm, 25))
        flipped.append(on_surface(frame, frame.joints_mm * [1, -1, 1], 25))
        mirrored.append(on_surface(frame, frame.joints_mm * [-1, 1, 1], 25))
    print(f"on surface {np.mean(good):.2f}, y up {np.mean(flipped):.2f}, mirrored {np.mean(mirrored):.2f}")
    assert np.mean(good) > 0.75  # the rest is hidden by other fingers
    assert max(np.mean(flipped), np.mean(mirrored)) < 0.4


def test_order_has_the_knuckles_first(tree: Path) -> None:
    """Bones of the named order are bones; read as thumb-first, wrist to index mcp would be one joint after another."""
    joints = hands2017.open(tree, "train").joints_mm
    assert joints is not None
    skeleton = get("hands2017")
    bones = np.linalg.norm(
        joints[:, [a for a, _ in skeleton.edges]] - joints[:, [b for _, b in skeleton.edges]], axis=-1
    )
    assert bones.max() < 125
    assert np.linalg.norm(np.diff(joints[:, 5:9], axis=1), axis=-1).max() > 1.2 * bones[:, 1:].mean()


def test_frames(tree: Path) -> None:
    train, test = hands2017.open(tree, "train"), hands2017.open(tree, "test")
    frame = test[1]
    assert frame.joints_mm is None
    assert test.joints_mm is None
    assert frame.name == test.names()[1] == "frame/images/image_D00000002"
    assert train[0].name == "training/images/image_D00000001"
    assert frame.depth_mm is not None
    assert frame.depth_mm.shape == (480, 640)
    left, top, width, height = frame.extra["bbox_xywh"]
    rows, columns = np.nonzero(frame.depth_mm)
    assert left - 25 < columns.min()
    assert columns.max() < left + width + 25
    hand = rows[(columns > left) & (columns < left + width)]
    assert ((hand > top - 25) & (hand < top + height + 25)).mean() > 0.7  # the arm may reach out of the joints' box
    assert "bbox_xywh" not in train[0].extra
    assert train.summary() == "HANDS2017 train: 4 frames labelled"
    assert test.summary() == "HANDS2017 test: 4 frames with boxes, without labels"
    assert np.array_equal(pickle.loads(pickle.dumps(test))[1].depth_mm, frame.depth_mm)
    assert np.allclose(camera.project([[0, 0, 500]], frame.K), [[315.944855, 245.287079]])


def test_tabs_and_blanks(tree: Path, tmp_path: Path) -> None:
    text = (tree / "training" / "Training_Annotation.txt").read_text()
    assert text.count("\t") == 63 * FRAMES
    (tmp_path / "l.txt").write_text(text.replace("\t", " "))
    for read, expected in zip(
        hands2017.read_labels(tmp_path / "l.txt"),
        hands2017.read_labels(tree / "training" / "Training_Annotation.txt"),
        strict=True,
    ):
        assert np.array_equal(read, expected)
    assert hands2017.read_boxes(tree / "frame" / "BoundingBox.txt")[1].shape == (FRAMES, 4)
    with pytest.raises(DataError, match="line 1: expected a name and 63 numbers, got 4 after it"):
        hands2017.read_labels(tree / "frame" / "BoundingBox.txt")
    with pytest.raises(DataError, match="line 1: expected a name and 4 numbers, got 63 after it"):
        hands2017.read_boxes(tmp_path / "l.txt")


def test_centers_and_missing_pictures(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "training", tmp_path / "hands2017" / "training")
    (tmp_path / "hands2017" / "training" / "images" / "image_D00000002.png").unlink()
    lines = (tree / "hands2017_center" / "center_train_refined.txt").read_text().splitlines()
    (tmp_path / "center_train_refined.txt").write_text("\n".join(["invalid", *lines[1:]]) + "\n")
    dataset = hands2017.open(tmp_path, "train", centers=tmp_path)
    assert dataset.skipped == {
        "frames without a centre": ["image_D00000001.png"],
        "missing pictures": ["image_D00000002.png"],
    }
    assert dataset.centers_mm is not None
    assert dataset.joints_mm is not None
    assert np.linalg.norm(dataset.centers_mm - dataset.joints_mm.mean(1), axis=-1).max() < 30
    assert np.linalg.norm(dataset.centers_mm * [1, -1, 1] - dataset.joints_mm.mean(1), axis=-1).max() > 30
    assert np.array_equal(dataset[1].center_mm, dataset.centers_mm[1])
    (tmp_path / "short.txt").write_text("0 0 500\n")
    with pytest.raises(DataError, match="1 centres for 4 labelled frames"):
        hands2017.open(tree, "test", centers=tmp_path / "short.txt")


def test_missing_folders_and_options(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no folder of HANDS2017 \(frame\).*codalab"):
        hands2017.open(tmp_path, "test")
    (tmp_path / "training").mkdir()
    with pytest.raises(MissingFileError, match=r"Training_Annotation\.txt: missing: HANDS2017 labels"):
        hands2017.open(tmp_path, "train")
    with pytest.raises(DataError, match="split: expected train or test, got 'val'"):
        hands2017.open(tmp_path, "val")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="frames: expected at least 1"):
        write_hands2017(tmp_path, frames=0)


def test_depth_is_millimetres_as_stored(tmp_path: Path) -> None:
    stored = np.arange(480 * 640, dtype=np.uint32).reshape(480, 640).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.png")
    depth = hands2017.read_depth(tmp_path / "a.png")
    assert depth.dtype == np.float32
    assert np.array_equal(depth, stored)
    Image.fromarray(stored[:240, :320].copy()).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="expected 640x480 pixels, the header says 320x240"):
        hands2017.read_depth(tmp_path / "b.png")


def test_same_seed_same_bytes(tree: Path, tmp_path: Path) -> None:
    write_hands2017(tmp_path, frames=FRAMES, seed=1)
    for file in sorted(tree.rglob("*.*")):
        assert (tmp_path / file.relative_to(tree)).read_bytes() == file.read_bytes()


@settings(max_examples=40, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100), st.integers(0, 60))
def test_arbitrary_box_files(tmp_path: Path, junk: bytes, at: int) -> None:
    good = b"image_D00000001.png\t1\t2\t3\t4\nimage_D00000002.png 5 6 7 8\n"
    (tmp_path / "l.txt").write_bytes(good[:at] + junk + good[at:])
    with contextlib.suppress(DataError):  # anything else fails the test
        names, boxes = hands2017.read_boxes(tmp_path / "l.txt")
        assert boxes.shape == (len(names), 4)
