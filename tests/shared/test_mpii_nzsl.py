"""The MPII+NZSL reader: one real label's numbers, the official layout, and everything that can be wrong with a file."""

import json
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.datasets import mpii_nzsl
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.standin.mpii_nzsl import write_mpii_nzsl


def label(**changes: object) -> dict:
    """An official label file's fields with made-up numbers."""
    points = [[10.5 + i, 20.25 + 2 * i, 1.0] for i in range(21)]
    fields: dict = {
        "hand_pts": points,
        "is_left": 1,
        "is_mpii": 0,
        "hand_box_center": [20.0, 40.5],
        "head_box": [[1.0, 2.0], [3.0, 4.0]],
        "head_size": 159.0,
        "mpii_body_pts": [[0.0, 0.0, 0.0]] * 16,
    }
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not None}


def write(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_label_file_gives_its_numbers(tmp_path: Path) -> None:
    got = mpii_nzsl.read_labels(write(tmp_path / "a.json", label()))
    np.testing.assert_array_equal(got.keypoints_2d[[0, 20]], [[10.5, 20.25], [30.5, 60.25]])
    assert got.valid.all()
    assert (got.side, got.is_mpii, got.box_center, got.head_size) == ("left", False, (20.0, 40.5), 159.0)
    right = mpii_nzsl.read_labels(write(tmp_path / "b.json", label(is_left=0, is_mpii=1)))
    assert (right.side, right.is_mpii) == ("right", True)


def test_a_third_value_of_zero_is_a_missing_joint(tmp_path: Path) -> None:
    points = label()["hand_pts"]
    points[7] = [0.0, 0.0, 0.0]
    got = mpii_nzsl.read_labels(write(tmp_path / "a.json", label(hand_pts=points)))
    assert not got.valid[7]
    assert got.valid.sum() == 20
    assert np.isnan(got.keypoints_2d[7]).all()


def test_optional_fields_may_be_missing_or_odd(tmp_path: Path) -> None:
    got = mpii_nzsl.read_labels(write(tmp_path / "a.json", label(head_size="x", hand_box_center=[1.0])))
    assert (got.head_size, got.box_center) == (None, None)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "not a readable JSON"),
        ('{"hand_pts": ', "not a readable JSON"),
        ("[1, 2]", "expected a JSON object with 'hand_pts'"),
        (label(hand_pts=None), "expected a JSON object with 'hand_pts'"),
        (label(hand_pts=[[1, 2, 1]] * 20), "expected 21 x .* got a list of 20"),
        (label(hand_pts=[[1, 2]] * 21), "expected 21 x"),
        (label(hand_pts="abc"), "got str 'abc'"),
        (label(hand_pts=[[1, "x", 1]] * 21), "expected 21 x"),
        (label(hand_pts=[[1, 10**400, 1]] * 21), "expected 21 x"),
        (json.dumps(label()).replace("10.5", "NaN"), "NaN is not a number"),
        (json.dumps(label()).replace("10.5", "1e999"), "not finite"),
        (label(is_left=None), "is_left: expected 0 or 1"),
        (label(is_left=2), "is_left: expected 0 or 1, got '2'"),
        ("[" * 100_000, "not a readable JSON"),
    ],
)
def test_a_bad_label_file_is_named(tmp_path: Path, document: object, message: str) -> None:
    path = write(tmp_path / "bad.json", document)
    with pytest.raises(DataError, match=message) as error:
        mpii_nzsl.read_labels(path)
    assert str(path) in str(error.value)


def test_a_label_file_that_is_missing_binary_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no such label file"):
        mpii_nzsl.read_labels(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="not a text file"):
        mpii_nzsl.read_labels(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(DataError, match="at most 1048576"):
        mpii_nzsl.read_labels(tmp_path / "a.json")


@settings(max_examples=100, deadline=2000)
@given(data=st.data())
def test_damaged_label_bytes_raise_only_data_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = json.dumps(label()).encode()
    cut = data.draw(st.integers(0, len(good)))
    noise = data.draw(st.binary(max_size=20))
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    path.write_bytes(good[:cut] + noise + good[cut + data.draw(st.integers(0, 20)) :])
    start = time.process_time()
    try:
        got = mpii_nzsl.read_labels(path)
        assert np.isfinite(got.keypoints_2d[got.valid]).all()
    except DataError:
        pass
    assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mpii")
    write_mpii_nzsl(root, frames=8, seed=1)
    return root


def test_the_stand_in_set_reads_back(tree: Path) -> None:
    train, test = mpii_nzsl.open(tree, "train"), mpii_nzsl.open(tree, "test")
    assert isinstance(train, FrameDataset)
    assert len(train) + len(test) == 8
    sides = set()
    for dataset in (train, test):
        assert dataset.names() == sorted(dataset.names())
        for i, name in enumerate(dataset.names()):
            frame = dataset[i]
            assert frame.name == name
            assert frame.rgb is not None
            assert frame.rgb.shape == (*frame.image_size[::-1], 3)
            assert (frame.skeleton, frame.keypoints_2d.shape, frame.joints_mm) == ("thumb_first", (21, 2), None)
            assert frame.name.endswith("_l" if frame.side == "left" else "_r")
            assert np.isnan(frame.K).all()
            sides.add(frame.side)
    assert sides == {"left", "right"}
    assert len({train[i].image_size for i in range(len(train))}) > 1  # sizes vary in the real set
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train))[0].rgb, train[0].rgb)
    assert mpii_nzsl.open(tree / "hand_labels", "train").names() == train.names()


def test_joints_fall_on_the_drawn_hand_and_flipped_ones_do_not(tree: Path) -> None:
    from shared.standin.mpii_nzsl import scenes

    hit = {"as labelled": [], "mirrored": [], "upside down": []}
    for scene in scenes(frames=8, seed=1):
        pixels, mask = scene.keypoints_2d, scene.mask
        height, width = mask.shape
        for name, points in {
            "as labelled": pixels,
            "mirrored": [width - 1, 0] + pixels * [-1, 1],
            "upside down": [0, height - 1] + pixels * [1, -1],
        }.items():
            column, row = np.rint(points).astype(int).T
            inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
            grown = np.zeros(len(points), bool)
            for du in (-2, 0, 2):
                for dv in (-2, 0, 2):
                    grown |= inside & mask[(row + dv).clip(0, height - 1), (column + du).clip(0, width - 1)]
            hit[name].append(grown.mean())
    assert np.mean(hit["as labelled"]) > 0.95, hit
    assert np.mean(hit["mirrored"]) < 0.7, hit
    assert np.mean(hit["upside down"]) < 0.7, hit


def test_half_pairs_are_counted_and_left_out(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    folder = root / "hand_labels" / "manual_train"
    names = [name.split("/")[1] for name in mpii_nzsl.open(root).names()]
    (folder / f"{names[0]}.json").unlink()
    (folder / f"{names[1]}.jpg").unlink()
    dataset = mpii_nzsl.open(root)
    assert len(dataset) == len(names) - 2
    assert "skipped 1 pictures without label, 1 labels without picture" in dataset.summary()


def test_what_is_missing_is_named_with_the_download_page(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"looked for .*hand_labels/manual_train, .*domedb"):
        mpii_nzsl.open(tmp_path)
    (tmp_path / "manual_test").mkdir()
    with pytest.raises(MissingFileError, match="no pair of"):
        mpii_nzsl.open(tmp_path, "test")
    with pytest.raises(DataError, match="split: expected one of train, test, got 'val'"):
        mpii_nzsl.open(tree, "val")


def test_a_truncated_picture_is_named(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    dataset = mpii_nzsl.open(root)
    path = next((root / "hand_labels" / "manual_train").glob("*.jpg"))
    index = [name.split("/")[1] for name in dataset.names()].index(path.stem)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=str(path)):
        dataset[index]
    Image.new("RGB", (4, 4)).save(path, "GIF")
    with pytest.raises(DataError, match="not a readable PNG or JPEG"):
        dataset[index]
