"""The Panoptic hand143 reader on the official layout and on broken label files."""

import json
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.datasets import panoptic
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.standin.panoptic import write_panoptic


def entry(**changes: object) -> dict:
    fields: dict = {"img_paths": "imgs/00000000.jpg", "joint_self": [[1.5 * i, 2.0 * i, 1] for i in range(21)]}
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not None}


def write(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_the_label_file_gives_its_numbers(tmp_path: Path) -> None:
    points = entry()["joint_self"]
    points[3] = [0, 0, 0]
    path = write(tmp_path / "a.json", {"root": [entry(img_width=1920.0, img_height=1080.0), entry(joint_self=points)]})
    got = panoptic.read_labels(path)
    assert got.paths == ["imgs/00000000.jpg"] * 2
    assert got.sizes.tolist() == [[1920, 1080], [0, 0]]
    np.testing.assert_array_equal(got.keypoints_2d[0, [0, 20]], [[0, 0], [30, 40]])
    assert got.valid.sum() == 41
    assert np.isnan(got.keypoints_2d[1, 3]).all()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"root": [', "not a readable JSON"),
        ([entry()], r"expected \{'root'"),
        ({"root": []}, r"expected \{'root'"),
        ({"root": [3]}, "entry 0: expected an object, got int"),
        ({"root": [entry(), entry(joint_self=None)]}, "entry 1, joint_self: expected 21 x"),
        ({"root": [entry(img_paths=None)]}, "entry 0: expected img_paths"),
        ({"root": [entry(img_paths="../../secret.jpg")]}, "leaves the data set's folder"),
        ({"root": [entry(img_paths="/etc/a.jpg")]}, "leaves the data set's folder"),
        ({"root": [entry(img_paths="a\0b")]}, "expected img_paths"),
    ],
)
def test_a_bad_label_file_is_named(tmp_path: Path, document: object, message: str) -> None:
    path = write(tmp_path / "bad.json", document)
    with pytest.raises(DataError, match=message) as error:
        panoptic.read_labels(path)
    assert str(path) in str(error.value)


def test_the_size_limit_can_be_raised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"root": [entry()]})
    with pytest.raises(DataError, match="at most 100"):
        panoptic.read_labels(path, max_bytes=100)


@settings(max_examples=100, deadline=2000)
@given(data=st.data())
def test_damaged_bytes_raise_only_data_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = json.dumps({"root": [entry(), entry()]}).encode()
    cut = data.draw(st.integers(0, len(good)))
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    path.write_bytes(good[:cut] + data.draw(st.binary(max_size=20)) + good[cut + data.draw(st.integers(0, 20)) :])
    start = time.process_time()
    try:
        got = panoptic.read_labels(path)
        assert np.isfinite(got.keypoints_2d[got.valid]).all()
    except DataError:
        pass
    assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("panoptic")
    write_panoptic(root, frames=4, seed=2)
    return root


def test_the_stand_in_set_reads_back(tree: Path) -> None:
    dataset = panoptic.open(tree)
    assert isinstance(dataset, FrameDataset)
    assert dataset.names() == [f"imgs/{i:08d}" for i in range(4)]
    frame = dataset[2]
    assert frame.name == "imgs/00000002"
    assert (frame.image_size, frame.skeleton, frame.side) == ((1920, 1080), "thumb_first", "right")
    assert frame.rgb.shape == (1080, 1920, 3)
    assert np.isfinite(frame.keypoints_2d[frame.joints_valid]).all()
    assert np.isnan(frame.keypoints_2d[~frame.joints_valid]).all()
    assert not all(dataset[i].joints_valid.all() for i in range(4))  # the writer hides some joints
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[1].keypoints_2d, dataset[1].keypoints_2d)
    assert panoptic.open(tree / "hand143_panopticdb").names() == dataset.names()


def test_pictures_are_found_by_path_and_not_by_index(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    (root / "hand143_panopticdb" / "imgs" / "00000001.jpg").unlink()
    dataset = panoptic.open(root)
    assert dataset.names() == ["imgs/00000000", "imgs/00000002", "imgs/00000003"]
    np.testing.assert_array_equal(dataset[1].keypoints_2d, panoptic.open(tree)[2].keypoints_2d)
    assert "skipped 1 labels without picture" in dataset.summary()


def test_what_is_missing_is_named_with_the_download_page(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no official split"):
        panoptic.open(tree, "test")
    with pytest.raises(MissingFileError, match=r"hands_v143_14817.json: missing.*domedb"):
        panoptic.open(tmp_path)
    write(tmp_path / panoptic.LABEL_FILE, {"root": [entry()]})
    with pytest.raises(MissingFileError, match=r"none of the 1 pictures .*imgs/00000000.jpg"):
        panoptic.open(tmp_path)


def test_a_picture_of_another_size_than_labelled_is_refused(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    path = root / "hand143_panopticdb" / panoptic.LABEL_FILE
    document = json.loads(path.read_text())
    document["root"][0]["img_width"] = 1280
    write(path, document)
    with pytest.raises(DataError, match=r"00000000.jpg: expected 1280x1080 pixels, the header says 1920x1080"):
        panoptic.open(root)[0]
