"""FreiHAND: single files, versions of the pictures, broken trees, and round trips through the stand-in writer."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.camera import project
from shared.datasets import freihand
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.standin.freihand import write_freihand
from tests.shared.rgbd_checks import mano_of, share_on, surface


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values.tolist() if isinstance(values, np.ndarray) else values))
    return path


def test_intrinsics_scale_and_points(tmp_path: Path) -> None:
    K = np.array([[[500.5, 0, 112], [0, 501.25, 112], [0, 0, 1]]] * 2)
    np.testing.assert_array_equal(freihand.read_intrinsics(write(tmp_path / "K.json", K)), K)
    np.testing.assert_allclose(freihand.read_scale(write(tmp_path / "s.json", [0.0281, 0.03])), [28.1, 30])
    for count, read in ((21, freihand.read_xyz), (778, freihand.read_verts)):
        values = np.random.default_rng(0).normal(0, 0.1, (3, count, 3))
        np.testing.assert_allclose(read(write(tmp_path / "p.json", values)), values * 1000, rtol=1e-6)
        write(tmp_path / "p.json", values[:, :-1])
        with pytest.raises(DataError, match=r"p\.json.*entry 0"):
            read(tmp_path / "p.json")
    K[1, 1, 1] = -3
    write(tmp_path / "K.json", K)
    with pytest.raises(DataError, match="entry 1: expected positive focal lengths"):
        freihand.read_intrinsics(tmp_path / "K.json")
    for read in (freihand.read_intrinsics, freihand.read_mano):
        with pytest.raises(MissingFileError, match=r"none\.json.*lmb\.informatik\.uni-freiburg\.de"):
            read(tmp_path / "none.json")


@pytest.mark.parametrize("nested", [True, False])
def test_mano_with_and_without_the_extra_list(tmp_path: Path, nested: bool) -> None:
    values = np.arange(2 * 61.0).reshape(2, 61)
    mano = freihand.read_mano(write(tmp_path / "m.json", values[:, None] if nested else values))
    np.testing.assert_array_equal(mano.pose, values[:, :48])
    np.testing.assert_array_equal(mano.betas, values[:, 48:58])
    np.testing.assert_array_equal(mano.uv_root, values[:, 58:60])
    np.testing.assert_array_equal(mano.scale, values[:, 60])
    write(tmp_path / "m.json", values[:, :60])
    with pytest.raises(DataError, match=r"shape \(61,\)"):
        freihand.read_mano(tmp_path / "m.json")


def test_masks_are_decided_at_one_half(tmp_path: Path) -> None:
    grey = np.zeros((224, 224), np.uint8)
    grey[100:150, 50:90] = 255
    for picture in (grey, np.stack([grey] * 3, -1)):
        Image.fromarray(picture).save(tmp_path / "m.jpg", quality=70)
        mask = freihand.read_mask(tmp_path / "m.jpg", expected_size=(224, 224))
        assert mask.dtype == np.bool_
        assert (mask != (grey > 0)).mean() < 0.002
    with pytest.raises(DataError, match="expected 10x10"):
        freihand.read_mask(tmp_path / "m.jpg", expected_size=(10, 10))


def small_tree(root: Path) -> Path:
    """Three samples with all four versions, two evaluation samples; the grey level of a picture says which it is."""
    rng = np.random.default_rng(0)
    for split, count in (("training", 3), ("evaluation", 2)):
        (root / split / "rgb").mkdir(parents=True)
        for number in range(count * (4 if split == "training" else 1)):
            picture = np.full((224, 224, 3), 10 * number, np.uint8)
            Image.fromarray(picture).save(root / split / "rgb" / f"{number:08d}.jpg")
        K = np.array([[[500.0 + i, 0, 112], [0, 500, 112], [0, 0, 1]] for i in range(count)])
        write(root / f"{split}_K.json", K)
        write(root / f"{split}_scale.json", np.full(count, 0.03))
    write(root / "training_xyz.json", rng.uniform(-0.05, 0.05, (3, 21, 3)) + np.array([0, 0, 0.6]))
    write(root / "training_mano.json", rng.normal(size=(3, 1, 61)))
    write(root / "training_verts.json", rng.normal(size=(3, 778, 3)))
    (root / "training" / "mask").mkdir()
    for number in range(3):
        Image.fromarray(np.full((224, 224), 100 * number, np.uint8)).save(
            root / "training" / "mask" / f"{number:08d}.jpg"
        )
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("freihand"))


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    shutil.copytree(tree, tmp_path / "f")
    return tmp_path / "f"


def test_versions_share_labels_and_masks(tree: Path) -> None:
    data = freihand.open(tree, "training", versions=(0, 2), mask=True, verts=True)
    assert isinstance(data, FrameDataset)
    assert data.names() == [f"{i:08d}" for i in (0, 1, 2, 6, 7, 8)]
    first, second = data[1], data[4]
    assert (first.extra["sample"], first.extra["version"]) == (1, 0)
    assert (second.extra["sample"], second.extra["version"]) == (1, 2)
    np.testing.assert_array_equal(first.joints_mm, second.joints_mm)
    np.testing.assert_array_equal(first.verts_mm, second.verts_mm)
    assert first.K[0, 0] == second.K[0, 0] == 501
    assert first.rgb is not None
    assert second.rgb is not None
    assert abs(int(first.rgb[0, 0, 0]) - 10) < 3
    assert abs(int(second.rgb[0, 0, 0]) - 70) < 3
    assert not first.extra["mask"].any()
    assert data[2].extra["mask"].all()
    assert first.extra["flat_hand_mean"] is False
    assert first.extra["scale_mm"] == 30
    np.testing.assert_array_equal(first.extra["root_mm"], first.joints_mm[0])
    assert data.summary() == (
        "FreiHAND training: 6 pictures of 3 samples, 0 missing on disk; with joints, MANO, scale, vertices"
    )
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again[3].rgb, data[3].rgb)
    assert freihand.open(tree, "training", rgb=False)[0].rgb is None


def test_evaluation_with_and_without_truth(own_tree: Path) -> None:
    data = freihand.open(own_tree, "evaluation")
    assert data[1].joints_mm is None
    assert data.summary().endswith("with scale")
    xyz = np.random.default_rng(1).uniform(size=(2, 21, 3))
    write(own_tree / "evaluation_xyz.json", xyz)
    np.testing.assert_allclose(freihand.open(own_tree, "evaluation")[1].joints_mm, xyz[1] * 1000)
    (own_tree / "evaluation_scale.json").unlink()
    (own_tree / "evaluation_xyz.json").unlink()
    assert freihand.open(own_tree, "evaluation").summary().endswith("with intrinsics only")
    with pytest.raises(MissingFileError, match=r"evaluation_verts\.json"):
        freihand.open(own_tree, "evaluation", verts=True)


def test_absent_files(own_tree: Path) -> None:
    (own_tree / "training" / "rgb" / "00000001.jpg").unlink()
    (own_tree / "evaluation" / "rgb" / "00000001.jpg").unlink()
    data = freihand.open(own_tree, "training")
    assert data.names() == ["00000000", "00000002"]
    assert "1 missing on disk" in data.summary()
    with pytest.raises(MissingFileError, match=r"1 of 3 pictures are not there, the first is rgb/00000001\.jpg"):
        freihand.open(own_tree, "training", missing="error")
    with pytest.raises(MissingFileError, match=r"1 of 2 pictures.*missing='skip'"):
        freihand.open(own_tree, "evaluation")
    (own_tree / "training" / "mask" / "00000000.jpg").unlink()
    assert freihand.open(own_tree, "training", mask=True).names() == ["00000002"]
    shutil.rmtree(own_tree / "training" / "rgb")
    with pytest.raises(MissingFileError, match="3 of 3 pictures"):
        freihand.open(own_tree, "training")
    write(own_tree / "training_mano.json", np.zeros((4, 61)))
    with pytest.raises(DataError, match=r"training_mano\.json: has 4 entries, training_K\.json has 3"):
        freihand.open(own_tree, "training")
    (own_tree / "training_xyz.json").unlink()
    with pytest.raises(MissingFileError, match=r"training_xyz\.json.*uni-freiburg"):
        freihand.open(own_tree, "training")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "train"}, "splits training and evaluation, got 'train'"),
        ({"versions": ()}, "expected 0 to 3"),
        ({"versions": (4,)}, "expected 0 to 3"),
        ({"split": "evaluation", "versions": (1,)}, "expected only 0"),
        ({"split": "evaluation", "mask": True}, "masks for the training split only"),
        ({"missing": "x"}, "skip or error, got 'x'"),
    ],
)
def test_unknown_options(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        freihand.open(**({"root": tree, "split": "training"} | options))


# ------------------------------------------------------------------------------------------------ stand-in round trips


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("standin")
    write_freihand(root, frames=6, seed=4)
    return root


def test_the_standin_holds_what_it_should(standin: Path) -> None:
    assert len(list((standin / "training" / "rgb").iterdir())) == 24
    assert len(freihand.open(standin, "training", versions=range(4))) == 24
    assert np.array(json.loads((standin / "training_mano.json").read_text())).shape == (6, 1, 61)
    first, other = (freihand.open(standin, "training", versions=(k,), mask=True)[0] for k in (0, 1))
    assert first.rgb is not None
    assert other.rgb is not None
    mask = first.extra["mask"]
    difference = np.abs(first.rgb.astype(int) - other.rgb).mean(-1)
    assert difference[mask].mean() < 4  # JPEG
    assert difference[~mask].mean() > 20


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_labels_lie_on_the_pictures(standin: Path, split: str) -> None:
    data = freihand.open(standin, split, mask=split == "training", verts=True)  # type: ignore[arg-type]
    flipped = []
    for i in range(len(data)):
        frame = data[i]
        assert frame.joints_mm is not None
        assert frame.verts_mm is not None
        verts, joints = mano_of(frame, "freihand", "thumb_first")
        print(f"{frame.name}: MANO joints max diff {np.abs(joints - frame.joints_mm).max():.3g} mm")
        np.testing.assert_allclose(joints, frame.joints_mm, atol=1e-3)
        np.testing.assert_allclose(verts, frame.verts_mm, atol=1e-3)
        assert np.abs(mano_of(frame, "manopth", "thumb_first")[1] - frame.joints_mm).max() > 0.3
        np.testing.assert_allclose(np.linalg.norm(frame.joints_mm[10] - frame.joints_mm[9]), frame.extra["scale_mm"])
        np.testing.assert_allclose(project(frame.joints_mm[0], frame.K), frame.extra["uv_root"])
        if split == "training":
            mask = frame.extra["mask"]
            hand = surface(frame, frame.verts_mm) > 0
            assert not (mask & ~hand).any() or (mask & ~hand).mean() < 0.002
            if i % 2 == 0:  # nothing hides these hands
                assert share_on(mask, frame.joints_mm, frame.K) == 1
                flipped += [share_on(mask, frame.joints_mm * sign, frame.K) for sign in ([-1, 1, 1], [1, -1, 1])]
    if split == "training":
        assert np.mean(flipped) < 0.9


def test_standin_is_reproducible_and_checks_its_options(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_freihand(tmp_path / name, frames=1, seed=1)
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 4 + 1 + 2 + 10
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path
    with pytest.raises(DataError, match="expected frames >= 1"):
        write_freihand(tmp_path / "c", frames=0)
