"""Samples and batches: the original's loader, randomness by counter, and true millimetres out of a batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from shared.errors import DataError
from sohandnet.config import AugmentOptions
from sohandnet.data import StoreSamples, batch_joints_mm, collate, fixed_points, limited
from sohandnet.store import Split
from tests.sohandnet.tiny_tree import GOLDEN, make_store, write_tree


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("data")
    return make_store(write_tree(folder / "icvl", train=5, test=2), folder / "store", split="train").split("train")


CORRECTED = AugmentOptions(mode="corrected")


def test_golden_loader(tmp_path: Path) -> None:
    """One frame of the published layout through our store gives what the original's loader gives."""
    folder = tmp_path / "archive" / "Test1" / "pc"
    folder.mkdir(parents=True)
    shutil.copy(GOLDEN / "loader_frame.npz", folder / "1.npz")
    frames = make_store(tmp_path / "archive", tmp_path / "store", source="archive", split="test").split("test")
    sample = StoreSamples(frames)[0]
    golden = np.load(GOLDEN / "loader_expected.npz")
    pairs = {
        **{"pc": "pc", "sn": "sn", "node": "som_node", "gt_xyz": "gt_xyz"},
        **{"length": "volume_length", "offset": "volume_offset"},
    }
    for ours, theirs in pairs.items():
        difference = float(np.abs(sample[ours] - golden[theirs]).max())
        print(f"{ours}: max diff {difference:.3g}")
        assert difference == 0
        assert sample[ours].dtype == np.float32
    np.testing.assert_array_equal(sample["rotation"].T, golden["volume_rotate"])  # theirs is transposed
    np.testing.assert_array_equal(np.sort(sample["node_knn"], 1), np.sort(golden["som_knn_I"], 1))
    np.testing.assert_array_equal(sample["node_knn"][:, 0], golden["som_knn_I"][:, 0])
    assert sample["node_knn"].dtype == np.int64


def test_a_batch(split: Split) -> None:
    labelled = np.array([True, False, True, False, False])
    samples = StoreSamples(split, labelled=labelled)
    batch = collate([samples[i] for i in (3, 2)])
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items() if key != "name"}
    assert shapes == {
        "pc": ((2, 3, 1024), torch.float32),
        "sn": ((2, 3, 1024), torch.float32),
        "node": ((2, 3, 64), torch.float32),
        "node_knn": ((2, 64, 9), torch.int64),
        "gt_xyz": ((2, 3, 16), torch.float32),
        "rotation": ((2, 3, 3), torch.float32),
        "length": ((2,), torch.float32),
        "offset": ((2, 3), torch.float32),
        "index": ((2,), torch.int64),
        "labelled": ((2,), torch.bool),
    }
    assert batch["index"].tolist() == [3, 2]
    assert batch["labelled"].tolist() == [False, True]
    assert batch["name"] == [split.names[3], split.names[2]]
    joints = batch_joints_mm(batch["gt_xyz"], batch, split.options)
    difference = np.abs(joints - split.joints_mm(index=[3, 2])).max()
    print(f"joints of the batch: max diff {difference:.3g} mm")
    assert difference < 1e-3
    moved = batch["gt_xyz"].clone()
    moved[0, :, 5] += torch.tensor([0.01, -0.02, 0.03])
    error = np.linalg.norm(batch_joints_mm(moved, batch, split.options) - joints, axis=-1)
    expected = float(batch["length"][0] * torch.tensor([0.01, -0.02, 0.03]).norm())
    assert error[0, 5] == pytest.approx(expected, rel=1e-4)  # millimetres = length * distance, in the true space
    assert error[1].max() == 0


def test_augmentation_depends_on_the_counter_alone(split: Split) -> None:
    """Not on the subset, the order, or who asks; an epoch, a seed or another frame changes it."""
    whole = StoreSamples(split, augment=CORRECTED, seed=3)
    part = StoreSamples(split, augment=CORRECTED, seed=3, indices=[4, 1])
    for key in ("pc", "sn", "node", "gt_xyz", "rotation", "offset"):
        np.testing.assert_array_equal(whole[(2, 4)][key], part[(2, 0)][key])
    assert not np.array_equal(whole[(2, 4)]["pc"], whole[(3, 4)]["pc"])
    assert not np.array_equal(whole[(2, 4)]["pc"], StoreSamples(split, augment=CORRECTED, seed=4)[(2, 4)]["pc"])
    np.testing.assert_array_equal(whole[4]["pc"], split.arrays["cloud"][4, :3])  # validation is not augmented
    plain = StoreSamples(split, augment=AugmentOptions(mode="none"), seed=3)
    np.testing.assert_array_equal(plain[(2, 4)]["pc"], split.arrays["cloud"][4, :3])
    assert split.arrays["cloud"].flags.writeable is False


def test_loader_processes_give_the_same(split: Split) -> None:
    samples = StoreSamples(split, augment=CORRECTED)
    keys = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]

    def batches(workers: int) -> list[dict[str, Any]]:
        return list(DataLoader(samples, batch_sampler=keys, num_workers=workers, collate_fn=collate))  # type: ignore[arg-type]

    for one, two in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one["pc"], two["pc"])
        assert one["name"] == two["name"]


def test_samples_refuse_what_does_not_fit(split: Split) -> None:
    with pytest.raises(DataError, match=r"labelled: expected a flag for each of 5 frames, got \(4,\)"):
        StoreSamples(split, labelled=np.ones(4, bool))
    with pytest.raises(DataError, match="indices: expected places from 0 to 4, got 0 to 5"):
        StoreSamples(split, indices=[0, 5])
    with pytest.raises(DataError, match="got -1 to 1"):
        StoreSamples(split, indices=[-1, 1])
    assert len(StoreSamples(split, indices=[])) == 0


def test_other_numbers_of_points() -> None:
    """Q6: positions and normals are subsampled together; fewer points are padded with repeats."""
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(1500, 6)).astype(np.float32)
    rows = {row.tobytes() for row in cloud}
    few = fixed_points(cloud, 1024, rng)
    assert few.shape == (1024, 6)
    assert {row.tobytes() for row in few} <= rows
    assert len({row.tobytes() for row in few}) == 1024
    padded = fixed_points(cloud[:1000], 1024, rng)
    np.testing.assert_array_equal(padded[:1000], cloud[:1000])
    assert {row.tobytes() for row in padded} == {row.tobytes() for row in cloud[:1000]}
    np.testing.assert_array_equal(fixed_points(cloud[:1024], 1024, rng), cloud[:1024])


def test_limited_sets_are_spread() -> None:
    assert limited(10, 0).tolist() == list(range(10))
    assert limited(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert limited(3, 10).tolist() == [0, 1, 2]
    assert limited(0, 4).tolist() == []
    with pytest.raises(DataError, match="must not be negative, got -2"):
        limited(10, -2)
