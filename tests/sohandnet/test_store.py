"""The store's files: what is refused, and what a split is for other programs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import DataError, MissingFileError
from sohandnet.orient import denormalise, normalise
from sohandnet.store import DTYPES, check_same, open_store, protocol_line, space_of, write_split
from tests.sohandnet.tiny_tree import make_store, write_tree


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    return make_store(write_tree(folder / "icvl", train=3, test=2), folder / "store").root


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(original, tmp_path / "store"))


def edit(store: Path, **changes: Any) -> None:
    path = store / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def test_missing_folders_and_manifests(store: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere: no such folder -- python -m sohandnet\.prepare"):
        open_store(store / "nowhere")
    (store / "manifest.json").unlink()
    with pytest.raises(MissingFileError, match="not a store, or one whose preparation was not finished"):
        open_store(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "a store of version 2, this program reads version 1 -- prepare it again"),
        ({"format": "other"}, "expected the format 'sohandnet-store', found 'other'"),
        ({"format": None}, "found None"),
        ({"version": None}, "not a complete manifest"),
        ({"options": {"intrinsics": "true"}}, "not a complete manifest .*K, crop, cube_mm"),
        ({"splits": {"train": {"frames": 0, "shapes": {}, "skipped": {}}}}, "a split without frames"),
        ({"splits": {"train": {"frames": 3}}}, "not a complete manifest"),
        ({"splits": [1]}, "not a complete manifest"),
        ({"splits": {"../train": {}}}, "a split called '../train'"),
    ],
)
def test_bad_manifests(store: Path, changes: dict[str, Any], message: str) -> None:
    edit(store, **changes)
    with pytest.raises(DataError, match=message) as error:
        open_store(store)
    assert "manifest.json" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("intrinsics", "inverted", "manifest.json: intrinsics: expected true or reference, got 'inverted' -- prepare"),
        ("crop", "hand", "not a complete manifest .*hand"),
        ("cube_mm", "wide", "not a complete manifest"),
        ("K", [1, 2], "expected a 3x3 pinhole matrix .* got .1.0, 2.0."),
        ("K", [[float("nan")] * 3] * 3, "expected a 3x3 pinhole matrix"),
        ("K", [[-240, 0, 160], [0, 240, 120], [0, 0, 1]], "positive focal lengths"),
        ("nodes", 49, "node of .* where the options and the number of frames say .3, 3, 49."),
    ],
)
def test_bad_options_of_a_manifest(store: Path, key: str, value: Any, message: str) -> None:
    options = json.loads((store / "manifest.json").read_text())["options"] | {key: value}
    edit(store, options={**options, **({"crop": "depth"} if key == "cube_mm" else {})})
    with pytest.raises(DataError, match=message):
        open_store(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 2}, "cloud of .3, 6, 1024. where the options and the number of frames say .2, 6"),
        ({"frames": "many"}, "not a complete manifest"),
        ({"skipped": {"empty crops": 3}}, "skipped frames that are no lists"),
        ({"shapes": dict.fromkeys(DTYPES, 3)}, "not a complete manifest"),
    ],
)
def test_bad_records_of_a_split(store: Path, changes: dict[str, Any], message: str) -> None:
    splits = json.loads((store / "manifest.json").read_text())["splits"]
    splits["train"] |= changes
    edit(store, splits=splits)
    with pytest.raises(DataError, match=message):
        open_store(store)


def test_no_store_is_given() -> None:
    with pytest.raises(DataError, match="no store is given"):
        open_store("")


def test_a_damaged_manifest(store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="not a complete manifest"):
        open_store(store)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5])
def test_truncated_arrays(store: Path, keep: float) -> None:
    path = store / "train/cloud.npy"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    split = open_store(store).split("train")
    with pytest.raises(DataError, match=r"cloud\.npy: truncated or damaged .* -- prepare it again"):
        _ = split.arrays


def test_other_arrays(store: Path) -> None:
    np.save(store / "train/length.npy", np.ones(3, np.float32))
    np.save(store / "test/node.npy", np.ones((2, 3, 16), np.float32))
    opened = open_store(store)
    with pytest.raises(DataError, match=r"length\.npy: expected \(3,\) of float64, found \(3,\) of float32"):
        _ = opened.split("train").arrays
    with pytest.raises(DataError, match=r"node\.npy: expected \(2, 3, 64\) of float32, found \(2, 3, 16\)"):
        _ = opened.split("test").arrays
    (store / "test/node.npy").unlink()
    with pytest.raises(MissingFileError, match=r"node\.npy: this file of the store is missing"):
        _ = open_store(store).split("test").arrays


def test_names(store: Path) -> None:
    path = store / "train/names.txt"
    names = open_store(store).split("train").names
    assert len(names) == len(set(names)) == 3
    path.write_text("\n".join(names[:2]) + "\n")
    with pytest.raises(DataError, match=r"names\.txt: 2 names for 3 frames"):
        _ = open_store(store).split("train").names
    path.unlink()
    with pytest.raises(MissingFileError, match=r"names\.txt: this file of the store is missing"):
        _ = open_store(store).split("train").names


def test_splits_that_are_not_there(store: Path) -> None:
    with pytest.raises(DataError, match=r"has no val split, it has train, test -- .* --split val"):
        open_store(store).split("val")


def test_splits_travel_without_their_content(original: Path) -> None:
    split = open_store(original).split("train")
    assert len(split.arrays["cloud"]) == 3
    packed = pickle.dumps(split)
    assert len(packed) < 5000
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again.arrays["cloud"], split.arrays["cloud"])
    assert again.names == split.names


def test_boxes_of_many_frames_at_once(original: Path) -> None:
    split = open_store(original).split("train")
    points = np.random.default_rng(0).normal(size=(3, 7, 3))
    together = denormalise(points, split.box())
    for i in range(3):
        np.testing.assert_allclose(together[i], denormalise(points[i], split.box(i)), rtol=1e-12)
    np.testing.assert_allclose(normalise(together, split.box()), points, atol=1e-9)
    np.testing.assert_allclose(split.joints_mm(index=[2, 0]), split.joints_mm()[[2, 0]], rtol=1e-12)
    own = np.swapaxes(split.arrays["joints"], 1, 2)
    np.testing.assert_allclose(split.joints_mm(own), split.joints_mm(), rtol=1e-12)


def test_one_line_about_the_protocol(original: Path) -> None:
    options = open_store(original).options
    assert protocol_line(options) == (
        "crop: the box of the labelled joints + 20 mm (optimistic: needs the answer); clouds with true intrinsics"
    )
    other = protocol_line({**options, "crop": "depth", "cube_mm": 180.0, "intrinsics": "reference"})
    assert "a cube of 180 mm around the nearest object" in other
    assert "the original's (x shrunk to 0.567)" in other
    assert "centres from a file" in protocol_line({**options, "crop": "centers"})
    assert space_of(options).name == "true"


def test_writing_checks_the_options(store: Path) -> None:
    opened = open_store(store)
    with pytest.raises(
        DataError, match="the store was made with points = 1024, this is 512 -- write to another folder"
    ):
        check_same(opened, {**opened.options, "points": 512})
    parts = [{name: opened.split("train").arrays[name] for name in DTYPES}]
    names = opened.split("train").names
    with pytest.raises(DataError, match="the store was made with seed = 0, this is 1"):
        write_split(store, "more", {**opened.options, "seed": 1}, parts, names, {})
    with pytest.raises(DataError, match="no frame is left for the more split: 2 empty crops"):
        write_split(store, "more", opened.options, [], [], {"empty crops": ["a", "b"]})
    with pytest.raises(DataError, match="the source has none"):
        write_split(store, "more", opened.options, [], [], {})
    again = write_split(store, "more", opened.options, parts, names, {})
    assert list(again.splits) == ["train", "test", "more"]


def test_half_a_split_is_never_left(store: Path) -> None:
    opened = open_store(store)
    arrays = opened.split("train").arrays

    def parts() -> Any:
        yield {name: arrays[name][:1] for name in DTYPES}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_split(store, "train", opened.options, parts(), opened.split("train").names, {})
    assert not list(store.glob(".*"))
    assert len(open_store(store).split("train").arrays["cloud"]) == 3
