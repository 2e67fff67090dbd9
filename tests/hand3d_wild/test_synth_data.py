"""Samples of the synthetic set: the original's augmentation, the right translation, the cache, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hand3d_wild.config import HeatmapOptions
from hand3d_wild.crop import cut_rgb
from hand3d_wild.decoder import Decoder
from hand3d_wild.synth_data import SynthSamples, cut_params, read_picture
from hand3d_wild.synthesize import synthesize
from hand3d_wild.synthesize_config import SynthesizeConfig
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano
from tests.hand3d_wild.golden_files import arrays, max_diff


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    synthesize(SynthesizeConfig(out=str(out), mano="standin", train=6, test=2, workers=1))
    return out


@pytest.mark.parametrize("case", range(3))
def test_golden_augmentation(case: int) -> None:
    gold, images = arrays("geometry"), arrays("images")
    start = tuple(gold["aug_start_u_v"][case].tolist())
    right = cut_params(gold["aug_vec"], start)
    assert max_diff("corrected", right, gold[f"aug{case}/pretrain_vec_corrected"]) < 1e-4
    wrong = cut_params(gold["aug_vec"], start, reference_translation=True)
    assert max_diff("reference", wrong, gold[f"aug{case}/pretrain_vec_reference"]) < 1e-4
    picture = images["aug_img"].repeat(10, 0).repeat(10, 1)
    assert max_diff("picture", cut_rgb(picture, start)[::4, ::4], images[f"aug{case}/img_sub4"]) <= 1


@pytest.mark.parametrize("key", [2, (0, 2), (5, 2)])
def test_numbers_follow_the_picture(root: Path, key: int | tuple[int, int]) -> None:
    """Decoded in the 256-pixel frame, the numbers meet the joints; the hand in the picture is where they say."""
    samples = SynthSamples(root)
    sample = samples[key]
    hand = Decoder(load_mano("standin"))(torch.from_numpy(sample["params"])[None])
    assert max_diff("joints, px", hand.joints_2d[0], sample["joints_2d"]) < 1e-3
    mask = np.asarray(Image.open(root / "train/masks/000002.png"))
    assert set(np.unique(mask)) == {0, 255}
    rng_start = (7, 7) if isinstance(key, int) else None
    if rng_start is not None:
        rows, columns = np.nonzero(cut_rgb(mask, rng_start) > 127)
        verts = hand.verts_2d[0].numpy()
        assert np.abs(verts.min(0) - [columns.min(), rows.min()]).max() < 2
        assert np.abs(verts.max(0) - [columns.max(), rows.max()]).max() < 2


def test_augmentation_repeats_and_varies(root: Path) -> None:
    samples, again, other = SynthSamples(root, seed=3), SynthSamples(root, seed=3), SynthSamples(root, seed=4)
    a, b, c, d = samples[0, 1], again[0, 1], other[0, 1], samples[1, 1]
    assert a["image"].shape == (256, 256, 3)
    assert a["image"].dtype == np.float32
    assert np.array_equal(a["image"], b["image"])
    assert not np.array_equal(a["image"], c["image"])
    assert not np.array_equal(a["image"], d["image"])
    assert a["image"].min() >= 0
    assert a["image"].max() <= 1
    starts = set()
    for epoch in range(300):
        shift = (samples.params[1][1:3] - samples[epoch, 1]["params"][1:3] * 306 / 256).round(2)
        starts.add(tuple(shift.tolist()))
    us, vs = {s[0] for s in starts}, {s[1] for s in starts}
    assert us == vs == {float(k) for k in range(11)}  # 0 to 10, both included, independently
    assert len(starts) > 80
    plain = samples[1]
    assert np.array_equal(plain["image"], samples[1]["image"])
    assert np.array_equal((plain["image"] * 255).round(), cut_rgb(samples.picture(1), (7, 7)).astype(np.float32))


def test_noise_has_the_asked_deviation(root: Path) -> None:
    quiet, loud = SynthSamples(root, noise=0.0), SynthSamples(root, noise=2.0)
    difference = 255 * (loud[0, 0]["image"] - quiet[0, 0]["image"])
    inner = (quiet[0, 0]["image"] > 0.1) & (quiet[0, 0]["image"] < 0.9)
    assert difference[inner].std() == pytest.approx(2, rel=0.05)
    assert abs(difference[inner].mean()) < 0.05


def test_reference_translation_is_the_originals_mistake(root: Path) -> None:
    right, wrong = SynthSamples(root)[0], SynthSamples(root, reference_translation=True)[0]
    assert right["params"][0] == wrong["params"][0]
    assert np.allclose(right["params"][1:3] * 306 / 256, wrong["params"][1:3], atol=1e-3)
    assert np.abs(right["params"][1:3] - wrong["params"][1:3]).max() > 5


def test_heat_maps_stand_at_the_joints(root: Path) -> None:
    samples = SynthSamples(root, form="heatmaps", size=128, heatmaps=HeatmapOptions(jitter=2.0, missing=0.3))
    inside = [i for i in range(6) if samples[i]["joints_2d"].min() > 20 and samples[i]["joints_2d"].max() < 236]
    index = inside[0]
    sample = samples[index]
    assert sample["image"].shape == (128, 128, 24)
    maps = sample["image"][..., 3:]
    for joint in range(21):
        row, column = np.unravel_index(maps[..., joint].argmax(), (128, 128))
        assert np.abs(np.array([column, row]) - sample["joints_2d"][joint] / 2).max() < 1
        assert maps[..., joint].max() > 0.97
    empty, shaken = 0, []
    for epoch in range(20):
        trained = samples[epoch, index]
        peaks = trained["image"][..., 3:].max((0, 1))
        empty += int((peaks == 0).sum())
        assert peaks.max() <= 0.9
        assert peaks[peaks > 0].min() > 0.35
        for joint in np.flatnonzero(peaks > 0.0):
            row, column = np.unravel_index(trained["image"][..., 3 + joint].argmax(), (128, 128))
            shaken.append(np.array([column, row]) - trained["joints_2d"][joint] / 2)
    assert empty / (20 * 21) == pytest.approx(0.3, abs=0.08)
    assert np.std(shaken) == pytest.approx(2.0 * 128 / 306, rel=0.25)


def test_cache_gives_the_same_pictures(root: Path, tmp_path: Path) -> None:
    plain, cached = SynthSamples(root), SynthSamples(root, cache=tmp_path)
    files = list(tmp_path.iterdir())
    assert [f.name[:6] for f in files] == ["train_"]
    assert isinstance(cached.cache, np.memmap)
    assert "memory map" in cached.summary
    for i in range(6):
        assert np.array_equal(plain[2, i]["image"], cached[2, i]["image"])
    before = files[0].stat().st_mtime_ns
    SynthSamples(root, cache=tmp_path)
    assert files[0].stat().st_mtime_ns == before  # made once
    SynthSamples(root, "test", cache=tmp_path)
    SynthSamples(root, cache=tmp_path, limit=2)
    assert len(list(tmp_path.iterdir())) == 3  # never mistaken for one another
    files[0].write_bytes(files[0].read_bytes()[:5000])
    with pytest.raises(DataError, match=r"damaged.*delete it"):
        SynthSamples(root, cache=tmp_path)
    np.save(files[0], np.zeros((1, 2), np.uint8))
    with pytest.raises(DataError, match=r"expected \(6, 320, 320, 3\) of uint8, got \(1, 2\)"):
        SynthSamples(root, cache=tmp_path)


def test_splits_limits_and_batches(root: Path) -> None:
    test = SynthSamples(root, "test", size=64)
    assert len(test) == 2
    assert test.summary == "test: 2 synthetic pictures of standin"
    assert test[1]["name"] == "test/000001"
    assert not np.array_equal(test.params[0], SynthSamples(root).params[0])
    few = SynthSamples(root, limit=3)
    assert [few[i]["name"] for i in range(3)] == ["train/000000", "train/000002", "train/000005"]
    batch = test.collate([test[0], test[0, 1]])
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["params"].dtype == torch.float32
    assert batch["joints_2d"].shape == (2, 21, 2)
    assert batch["name"] == ["test/000000", "test/000001"]


def test_incomplete_and_damaged_sets(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no synthetic set here"):
        SynthSamples(tmp_path)
    with pytest.raises(DataError, match='split must be "train" or "test"'):
        SynthSamples(root, "val")
    copy = tmp_path / "set"
    shutil.copytree(root, copy)
    (copy / "train/images/000003.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 6 pictures are missing \(000003\.png\).*--resume"):
        SynthSamples(copy)
    picture = copy / "test/images/000000.png"
    samples = SynthSamples(copy, "test")
    whole = picture.read_bytes()
    for content, message in ((b"", "cannot be read"), (b"text", "cannot be read"), (whole[:-4000], "cannot be read")):
        picture.write_bytes(content)
        with pytest.raises(DataError, match=rf"000000\.png: {message}.*--resume"):
            samples[0]
    Image.new("RGB", (256, 320)).save(picture)
    with pytest.raises(DataError, match="expected 320 x 320 pixels, got 256 x 320"):
        samples[0]
    picture.unlink()
    with pytest.raises(MissingFileError, match="no such picture"):
        read_picture(picture)
    numbers = dict(np.load(copy / "test/numbers.npz"))
    np.savez(copy / "test/numbers.npz", **numbers | {"params": numbers["params"][:, :21]})
    with pytest.raises(DataError, match=r"numbers\.npz: expected params \(N, 22\) of finite numbers, got \(2, 21\)"):
        SynthSamples(copy, "test")
    del numbers["joints_2d"]
    np.savez(copy / "test/numbers.npz", **numbers)
    with pytest.raises(DataError, match=r"expected joints_2d \(N, 21, 2\) of finite numbers, got none"):
        SynthSamples(copy, "test")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    with pytest.raises(DataError, match=r"not complete.*--resume"):
        SynthSamples(copy)
    empty = tmp_path / "empty"
    synthesize(SynthesizeConfig(out=str(empty), mano="standin", train=1, test=0, workers=1))
    with pytest.raises(MissingFileError, match="the split holds no picture"):
        SynthSamples(empty, "test")
