"""Samples of both kinds and their batches."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfsup_fitting.config import AugmentOptions, SynthOptions
from selfsup_fitting.data import (
    CapturedSet,
    Collate,
    SyntheticSet,
    augmented,
    normalised,
    open_shards,
)
from selfsup_fitting.hand import load_hand
from selfsup_fitting.shards import Shards, shard_path
from shared.errors import DataError, MissingFileError
from shared.training import EpochBatches
from tests.selfsup_fitting.trees import nyu_tree, prepared


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return prepared(nyu_tree(folder / "nyu", 5), folder / "shards", shard_size=2)


@pytest.fixture(scope="module")
def collate() -> Collate:
    return Collate(load_hand("standin"), SynthOptions(images=3))


def test_synthetic_batches_follow_from_counters(collate: Collate) -> None:
    data = SyntheticSet(10, seed=1)
    one, two = collate([data[(2, 4)], data[(2, 7)]]), collate([data[(2, 7)]])
    assert one["name"] == ["synthetic 1/2/4", "synthetic 1/2/7"]
    # matrix products may sum in another order in another batch, so that an edge moves over a pixel
    assert float((one["synthetic"].depth[1] - two["synthetic"].depth[0]).abs().mean()) < 1e-3
    other = collate([data[(3, 7)]])
    assert not torch.equal(two["synthetic"].depth, other["synthetic"].depth)
    check = SyntheticSet(10, seed=1, validation=True)
    assert torch.equal(collate([check[7]])["synthetic"].depth, collate([check[7]])["synthetic"].depth)
    assert not torch.equal(collate([check[7]])["synthetic"].depth, collate([data[(0, 7)]])["synthetic"].depth)


def test_options_reach_the_synthesiser() -> None:
    hand, data = load_hand("standin"), SyntheticSet(4, seed=0)
    plain = Collate(hand, SynthOptions())([data[(0, 1)]])["synthetic"]
    changes: list[dict[str, Any]] = [{"interpolation": "harmonic"}, {"noise_rounding": "trunc"}, {"center": "palm"}]
    for options in (SynthOptions(**change) for change in changes):
        other = Collate(hand, options)([data[(0, 1)]])["synthetic"]
        assert not torch.equal(plain.depth, other.depth), options


def test_jitter_moves_hands_less() -> None:
    hand, data = load_hand("standin"), SyntheticSet(16, seed=0)
    keys = [data[(0, i)] for i in range(16)]

    def palms(jitter: float) -> torch.Tensor:
        spheres: torch.Tensor = Collate(hand, SynthOptions(center="palm", jitter=jitter))(keys)["synthetic"].spheres_mm
        return spheres[:, 2]

    assert palms(1.0).norm(dim=-1).max() > 10
    torch.testing.assert_close(palms(0.2), 0.2 * palms(1.0), rtol=0, atol=1e-3)
    assert palms(0.0).abs().max() < 1e-3


def test_training_frames_carry_no_labels(shards: Path, collate: Collate) -> None:
    data = CapturedSet(open_shards(str(shards), "train"), synthetic_images=3, batch_size=2)
    sample = data[(0, 1)]
    assert sample.joints_mm is None
    batch = collate([data[(0, 1)], data[(0, 0)]])
    assert "joints_mm" not in batch
    assert batch["depth_mm"].shape == (2, 3, 64, 64)
    assert batch["T_canon_view"].shape == (2, 3, 4, 4)
    assert batch["synthetic"].depth.shape == (3, 64, 64)
    labelled = CapturedSet(open_shards(str(shards), "test"), labels=True)
    assert collate([labelled[0]])["joints_mm"].shape == (1, 3, 36, 3)


@pytest.mark.parametrize("world", [1, 2])
def test_each_batch_has_synthetic_images_of_its_own(shards: Path, world: int) -> None:
    data = CapturedSet(Shards(shards / "train"), 4, seed=3, batch_size=2, world=world, synthetic_images=3)
    seen: list[int] = []
    for rank in range(world):
        for number, keys in enumerate(EpochBatches(len(data), 2, seed=3, epoch=1, rank=rank, world=world)):
            samples = [data[key] for key in keys]
            assert {s.iteration for s in samples} == {number}
            assert len({s.synthetic for s in samples}) == 1  # one set a batch, whichever frame is asked
            assert {s.epoch for s in samples[0].synthetic} == {1}
            seen += [s.index for s in samples[0].synthetic]
    assert len(seen) == len(set(seen))


def test_frames_in_order(shards: Path) -> None:
    data = CapturedSet(Shards(shards / "train"), seed=3, batch_size=2, in_order=True)
    dealt = [data[key].name for keys in EpochBatches(len(data), 2, seed=3, epoch=0) for key in keys]
    assert dealt == [f"train/{i + 1:07d}" for i in range(5)]
    shuffled = CapturedSet(Shards(shards / "train"), seed=3, batch_size=2)
    assert [shuffled[key].name for keys in EpochBatches(5, 2, seed=3, epoch=0) for key in keys] != dealt


def test_sets_travel_to_loader_processes(shards: Path) -> None:
    data = CapturedSet(Shards(shards / "train"), limit=3, batch_size=2)
    assert len(data) == 3
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again[(1, 2)].depth_mm, data[(1, 2)].depth_mm)


def test_depth_that_is_not_finite(shards: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(shards / "train", tmp_path / "train"))
    records = np.load(shard_path(folder, 0))
    records["depth_mm"][1, 2, 5, 5] = np.nan
    np.save(shard_path(folder, 0), records)
    with pytest.raises(DataError, match="frame train/0000002 has depth that is not finite"):
        CapturedSet(Shards(folder))[1]


def test_nothing_prepared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"python -m selfsup_fitting\.prepare"):
        open_shards("", "train")
    with pytest.raises(MissingFileError, match="no prepared frames here"):
        open_shards(str(tmp_path), "train")


def test_single_view_where_more_are_asked(tmp_path: Path) -> None:
    folder = prepared(nyu_tree(tmp_path / "nyu", 1), tmp_path / "shards", views=[1])
    assert len(open_shards(str(folder), "train")) == 1
    with pytest.raises(DataError, match=r"has 1 view \(camera 1\) where at least 2.*--no-mv-consistency"):
        open_shards(str(folder), "train", views=2)


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_shrunken_images_and_their_factors() -> None:
    torch.manual_seed(0)
    depth = torch.full((6, 64, 64), 0.2)
    seen, factors = augmented(depth, AugmentOptions(resize_share=1.0))
    assert ((factors > 0.7) & (factors < 1.0)).all()
    kept = (seen == 0.2).float().mean((1, 2))
    torch.testing.assert_close(kept, factors.prod(1), rtol=0.06, atol=0.0)
    same, ones = augmented(depth, AugmentOptions(resize_share=0.0))
    assert torch.equal(same, depth)
    assert torch.equal(ones, torch.ones(6, 2))


def test_about_the_asked_share_of_batches_shrinks() -> None:
    torch.manual_seed(0)
    depth = torch.zeros(1, 64, 64)
    shrunk = sum(float(augmented(depth, AugmentOptions(resize_share=0.25))[1].min()) < 1 for _ in range(200))
    assert 30 <= shrunk <= 70


@pytest.mark.parametrize("kernel", [3, 5])
def test_smoothing(kernel: int) -> None:
    torch.manual_seed(0)
    depth = torch.full((2, 64, 64), 0.2)
    options = AugmentOptions(resize_share=0.0, depth_resample=kernel)  # type: ignore[arg-type]
    seen, _ = augmented(depth, options)
    assert 0.02 < float((seen - 0.2).mean()) / 0.8 < 0.08  # 5 percent became background
    torch.manual_seed(0)
    zero, _ = augmented(depth, AugmentOptions(resize_share=0.0, depth_resample=kernel, padding="zero"))  # type: ignore[arg-type]
    assert float(zero[:, 0].mean()) < float(seen[:, 0].mean())  # README, Q15: mid-depth around the image


def test_far_depth_reaches_the_network_if_the_crops_have_it() -> None:
    assert normalised(torch.tensor([-50.0, 99.0, 100.0, 140.0])).tolist() == pytest.approx([-0.5, 0.99, 1.0, 1.4])


def test_a_repeated_batch_is_the_same_in_every_epoch(shards: Path, collate: Collate) -> None:
    captured = CapturedSet(Shards(shards / "train"), batch_size=2, repeat_first=True, synthetic_images=3)
    for data in (SyntheticSet(6, seed=1, repeat_first=True), captured):
        first, second = (
            collate([data[key] for key in next(iter(EpochBatches(len(data), 2, seed=1, epoch=e, repeat_first=True)))])
            for e in (0, 1)
        )
        assert torch.equal(first["synthetic"].depth, second["synthetic"].depth)
        assert first["name"] == second["name"]
        if "depth_mm" in first:
            assert torch.equal(first["depth_mm"], second["depth_mm"])
