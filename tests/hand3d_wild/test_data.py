"""The training loader: targets against the original's numbers, what randomness depends on, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hand3d_wild.config import DataOptions, HeatmapOptions
from hand3d_wild.crop import cut_points, cut_rgb
from hand3d_wild.data import WildSamples, choose_val, cut_maps, noise_pool, with_noise
from hand3d_wild.losses import joints_3d_loss
from hand3d_wild.prepare import prepare
from hand3d_wild.store import Split, open_split
from shared.errors import DataError, MissingFileError
from tests.hand3d_wild.conftest import config


@pytest.fixture
def split(wild_store: Path) -> Split:
    return open_split(wild_store, "train")


def test_targets_follow_the_cut_of_each_epoch(split: Split) -> None:
    samples = WildSamples(split, DataOptions(noise=0), seed=5)
    starts = set()
    for index in range(len(samples)):
        for epoch in range(3):
            sample, row = samples[(epoch, index)], split.rows[index]
            start = 7 - (sample["joints_2d"][0] - cut_points(row["points"][0])) * 306 / 256
            whole = np.rint(start)
            assert np.abs(start - whole).max() < 1e-3
            assert whole.min() >= 0
            assert whole.max() <= 10
            starts.add(tuple(whole))
            u, v = whole.astype(int).tolist()
            assert np.abs(sample["image"] * 255 - cut_rgb(split.pictures[index], (u, v))).max() < 1e-3
            assert (sample["mask"] == cut_rgb(split.mask(index), (u, v))).all()
            assert (sample["visible"] == row["visible"]).all()
    assert len(starts) > 15


def test_augmented_points_are_the_originals(golden: Path) -> None:
    g = np.load(golden / "hand3d_wild/geometry.npz")
    worst = 0.0
    for i, start in enumerate(g["aug_start_u_v"].tolist()):
        worst = max(worst, float(np.abs(cut_points(g["aug_pts"][:, :2], start) - g[f"aug{i}/train_pts"][:, :2]).max()))
        scaled = g["aug_xyz"] * [256 / 306, 256 / 306, 1]  # what data.depth reference does to 3-D labels
        worst = max(worst, float(np.abs(scaled / g[f"aug{i}/train_xyz"] - 1).max()))
    print(f"augmented points and 3-D labels: max diff {worst:.3g}")
    assert worst < 1e-4


def test_samples_depend_on_seed_epoch_and_index_alone(split: Split) -> None:
    a, b = WildSamples(split, DataOptions(), seed=1), WildSamples(split, DataOptions(), seed=1)
    for _ in range(2):
        b[(0, 3)]
    assert (a[(2, 1)]["image"] == b[(2, 1)]["image"]).all()
    assert (a[(2, 1)]["image"] != a[(3, 1)]["image"]).any()
    other = WildSamples(split, DataOptions(), seed=2)
    assert (a[(2, 1)]["image"] != other[(2, 1)]["image"]).any()
    assert (a[1]["image"] == other[1]["image"]).all()  # validation has no randomness


def test_noise_has_the_references_size() -> None:
    grey = np.full((256, 256, 3), 128, np.uint8)
    pool = noise_pool(0)
    assert len(noise_pool(0, 1024)) >= 2 * 3 * 1024**2  # large inputs find a stretch of their length
    assert np.array_equal(noise_pool(0, 64), pool)
    noise = with_noise(grey, 1.0, pool, 777) * 255 - 128
    assert abs(noise.std() - 1) < 0.02
    assert abs(noise.mean()) < 0.02
    assert with_noise(grey * 0 + 255, 1.0, pool, 0).max() <= 1
    assert (with_noise(grey, 0.0, pool, 0) == np.float32(128) * np.float32(1 / 255)).all()


def test_depth_is_scaled_with_the_crop(split: Split) -> None:
    """A perfect prediction of the scaled picture has no 3-D loss; with the reference's labels it has one."""
    samples = WildSamples(split, DataOptions())
    index = int(np.flatnonzero(split.rows["has_3d"])[0])
    batch = WildSamples.collate([samples[index]])
    joints, z = batch["joints_mm"], batch["joints_mm"][..., 2].mean()
    metres = (joints - joints.mean(1, keepdim=True)) / 1000
    scale = (822.79041 * 1000 * batch["depth_ratio"] / z).float()  # pixels per metre of this crop
    flat = batch["joints_2d"] - batch["joints_2d"].mean(1, keepdim=True)
    worst = float((flat - scale * metres[..., :2]).abs().max())
    print(f"scaled orthographic against perspective: max diff {worst:.3g} px of 256")
    assert worst < 8  # the perspective within a hand
    loss = joints_3d_loss(metres, scale, joints, batch["valid_3d"], depth_ratio=batch["depth_ratio"])
    assert float(loss) < 1e-10
    old = WildSamples(split, DataOptions(depth="reference"))
    reference = WildSamples.collate([old[index]])
    assert float(reference["depth_ratio"]) == 1
    loss = joints_3d_loss(
        metres, scale, reference["joints_mm"], batch["valid_3d"], depth_ratio=reference["depth_ratio"]
    )
    assert float(loss) > 1e-7


def test_palm_samples_are_marked_unless_the_wrist_is_asked_for(split: Split) -> None:
    palms = [WildSamples(split, DataOptions(root=root)) for root in ("palm", "wrist")]  # type: ignore[arg-type]
    marks = [[samples[i]["palm"] for i in range(len(samples))] for samples in palms]
    assert marks[0] == split.rows["palm"].tolist()
    assert sum(marks[0]) == 4
    assert not any(marks[1])


def test_batches(split: Split) -> None:
    samples = WildSamples(split, DataOptions(), size=128, form="heatmaps")
    batch = WildSamples.collate([samples[(0, i)] for i in range(5)])
    assert batch["image"].shape == (5, 24, 128, 128)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["mask"].shape == (5, 256, 256)
    assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
    assert len(batch["name"]) == 5
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            assert torch.isfinite(value).all(), key


def test_turned_and_zoomed_samples_fit_together(split: Split) -> None:
    """Picture, mask, joints, depth and heat maps move as one; without the options nothing moves."""
    options = DataOptions(noise=0, turn=60, zoom=0.2)
    maps = HeatmapOptions(jitter=0, missing=0)
    samples = WildSamples(split, options, form="heatmaps", heatmaps=maps)
    straight = WildSamples(split, DataOptions(noise=0))
    index = int(np.flatnonzero(split.rows["has_3d"])[0])
    upright, turns = straight[index], []

    def plane(points: np.ndarray) -> np.ndarray:
        """Points about their mean as complex numbers: a turn with a zoom is a factor."""
        flat = points[:, :2].astype(np.float64)
        return np.asarray((flat - flat.mean(0)) @ [1, 1j])

    for epoch in range(6):
        sample = samples[(epoch, index)]
        before, after = plane(upright["joints_2d"]), plane(sample["joints_2d"])
        turn = np.vdot(before, after) / np.vdot(before, before)
        turns.append(turn)
        assert np.abs(after - turn * before).max() < 1e-3
        assert sample["depth_ratio"] / upright["depth_ratio"] == pytest.approx(abs(turn), rel=1e-4)
        assert np.abs(plane(sample["joints_mm"]) - turn / abs(turn) * plane(upright["joints_mm"])).max() < 1e-2
        assert np.abs(sample["joints_mm"][:, 2] - upright["joints_mm"][:, 2]).max() < 1e-3
        inside = np.rint(sample["joints_2d"]).astype(int)
        assert sample["mask"][inside[:, 1], inside[:, 0]].mean() > 0.7
        assert sample["mask"].sum() == pytest.approx(abs(turn) ** 2 * upright["mask"].sum(), rel=0.3)
        shown, colour = (s["image"][s["mask"] > 0][:, :3].mean(0) for s in (sample, upright))
        assert np.abs(shown - colour).max() < 0.02
        for joint in range(21):
            peak = np.unravel_index(sample["image"][..., 3 + joint].argmax(), (256, 256))[::-1]
            assert np.abs(peak - sample["joints_2d"][joint]).max() <= 0.5
    angles, zooms = np.rad2deg(np.angle(turns)), np.abs(turns)
    assert 20 < np.ptp(angles) < 120
    assert 0.8 <= zooms.min() < zooms.max() <= 1.2
    assert (samples[index]["image"][..., :3] == straight[index]["image"]).all()  # validation does not move


def test_heat_maps_peak_at_the_joints(split: Split) -> None:
    samples = WildSamples(split, DataOptions(), form="heatmaps", heatmaps=HeatmapOptions(jitter=0, missing=0))
    sample = samples[0]
    maps = sample["image"][..., 3:]
    for joint in range(21):
        peak = np.array(np.unravel_index(maps[..., joint].argmax(), (256, 256)))[::-1]
        if sample["visible"][joint]:
            assert np.abs(peak - sample["joints_2d"][joint]).max() <= 0.5
        else:
            assert maps[..., joint].max() == 0
    at_256 = cut_maps(np.full((1, 2), 160.0), np.ones(1), (7, 7), 256)[..., 0]
    sigma = np.sqrt(at_256.sum() / (2 * np.pi))
    assert abs(sigma - 8.6 * 256 / 306) < 0.01
    shaken = WildSamples(split, DataOptions(), form="heatmaps", heatmaps=HeatmapOptions(jitter=4, missing=0.5))
    assert (shaken[(0, 0)]["image"][..., 3:].max((0, 1)) == 0).sum() > 2


def test_detections_feed_the_heat_maps(wild_store: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    (root / "train").mkdir(parents=True)
    shutil.copy(wild_store / "manifest.json", root)
    for file in (wild_store / "train").iterdir():
        shutil.copy(file, root / "train" / file.name)
    options = HeatmapOptions(source="detections")
    with pytest.raises(DataError, match="has detections"):
        WildSamples(open_split(root, "train"), DataOptions(), form="heatmaps", heatmaps=options)
    arrays = open_split(root, "train", write=True)
    arrays.rows["detected"][:3] = True
    arrays.rows["detections"][:3] = [100, 200, 1.5]
    samples = WildSamples(arrays, DataOptions(), form="heatmaps", heatmaps=options)
    assert len(samples) == 3
    assert "left out 8 without detections" in samples.summary
    maps = samples[0]["image"][..., 3:]
    assert maps.max() <= 1
    assert np.unravel_index(maps[..., 0].argmax(), (256, 256)) == (round(193 * 256 / 306), round(93 * 256 / 306))


def test_left_hands_are_refused(wild_trees: Path, tmp_path: Path) -> None:
    prepare(config(wild_trees, tmp_path / "store", panoptic="", mpii="", masks="none", mirror=False))
    with pytest.raises(DataError, match="4 of 4 pictures of the split train show left hands"):
        WildSamples(open_split(tmp_path / "store", "train"), DataOptions())


def test_a_picture_without_mask_counts_as_having_none(wild_trees: Path, tmp_path: Path) -> None:
    prepare(config(wild_trees, tmp_path / "store", panoptic="", stb="", masks="none"))
    samples = WildSamples(open_split(tmp_path / "store", "train"), DataOptions())
    assert not samples[0]["valid_mask"]
    assert not samples[0]["mask"].any()
    assert "0 with masks" in samples.summary


def test_the_validation_split(wild_store: Path) -> None:
    def name(**options: object) -> str | None:
        split = choose_val(DataOptions(store=str(wild_store), **options))  # type: ignore[arg-type]
        return None if split is None else split.name

    assert name() == "stb_test"
    assert name(val_split="test") == "test"
    assert name(val_limit=-1) is None
    with pytest.raises(MissingFileError, match="no prepared store"):
        choose_val(DataOptions(store="/nowhere", val_split="test"))


def test_limits_are_spread_evenly(split: Split) -> None:
    samples = WildSamples(split, DataOptions(), limit=3)
    assert samples.indices.tolist() == [0, 5, 10]
    assert len(WildSamples(split, DataOptions(), limit=100)) == 11
