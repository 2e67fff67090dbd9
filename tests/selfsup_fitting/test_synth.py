"""Synthetic batches: the original's targets and augmentation, what each draw depends on, noise statistics, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfsup_fitting import synth
from selfsup_fitting.hand import Hand, load_hand
from selfsup_fitting.render import depth_maps, heatmaps, project
from selfsup_fitting.synth import Draws, depth_noise, draw, pixel_draws, resample, shrink, synthesize, synthetic_batch
from shared.errors import DataError
from tests.golden.fill import uniform
from tests.selfsup_fitting.test_ops import arrays


@pytest.fixture(scope="module")
def hand() -> Hand:
    return load_hand("standin")


def test_targets_golden(golden: Path) -> None:
    folder = golden / "selfsup_fitting"
    stored, targets = arrays(folder / "raster_hand.npz"), arrays(folder / "synth_targets.npz")
    pose = stored["pose"].clone()
    pose[:, 5] = -10
    batch = synthesize(Draws(pose, stored["scale"], stored["rand_f"]), load_hand(folder / "hand.npz"))
    depths = depth_maps(batch.heatmaps, 0.01 * batch.spheres_mm[..., 2])
    found = {
        "heat maps": (batch.heatmaps[:, ::5] - targets["uv_heatmaps_every_5th"], 1e-4),
        "depth maps": (depths[:, ::5] - targets["d_heatmaps_every_5th"], 1e-4),
        "xyz": (batch.spheres_mm - targets["xyz"], 2e-3),
        "depth": (100 * batch.depth - stored["depth64_linear_tz_m10"], 5e-3),
    }
    for name, (difference, bound) in found.items():
        print(f"synthetic {name} max diff {difference.abs().max():.3g}")
        assert (difference.abs() > bound).float().mean() <= (1e-3 if name == "depth" else 0)


def test_augmentation_golden(golden: Path) -> None:
    stored = arrays(golden / "selfsup_fitting" / "augment.npz")
    depth = torch.from_numpy(uniform("selfsup.aug.dm", (4, 64, 64), -1, 1))
    assert torch.equal(shrink(depth, stored["u_scale"], stored["v_scale"]), stored["resized"])
    for kernel in (3, 5):
        smooth = resample(depth, kernel, padding="zero")  # type: ignore[arg-type]
        difference = float((smooth - stored[f"smooth{kernel}"]).abs().max())
        print(f"shrunk images equal; smoothing {kernel} max diff {difference:.3g}")
        assert difference <= 1e-5


# ------------------------------------------------------------------------------------------------- draws


def test_a_sample_depends_on_seed_epoch_and_index_alone(hand: Hand) -> None:
    whole = synthetic_batch(hand, 3, 1, [0, 5, 2000, 1023, 1024])
    for row, index in ((0, 0), (2, 2000), (4, 1024)):
        synth._block.cache_clear()  # nor on what was drawn before
        alone = synthetic_batch(hand, 3, 1, [index])
        for ours, theirs in zip(alone, whole, strict=True):
            torch.testing.assert_close(ours[0], theirs[row], rtol=0, atol=1e-3)  # products of other sizes round anew
    poses = [draw(*key).pose for key in ((3, 1, [0]), (3, 1, [1]), (3, 2, [0]), (4, 1, [0]), (3, 1, [1024]))]
    noises = [pixel_draws(*key).flatten()[:26] for key in ((3, 1, [0]), (3, 1, [1]), (3, 2, [0]), (4, 1, [0]))]
    for values in (poses, noises):
        assert len({tuple(value.flatten().tolist()) for value in values}) == len(values)
    assert torch.equal(draw(3, 1, [7]).pose, draw(3, 1, [7]).pose)
    assert torch.equal(pixel_draws(3, 1, [7]), pixel_draws(3, 1, [6, 7])[1:])
    extra = draw(3, 1, range(64), extra_mode=True).pose
    assert not torch.equal(extra, draw(3, 1, range(64)).pose)


def test_draws_have_the_stated_ranges() -> None:
    draws = draw(0, 0, range(4096))
    assert draws.pose.shape == (4096, 26)
    for values, low, high in ((draws.scale, 0.85, 0.95), (draws.zoom, 0.9, 1.1)):
        assert low <= values.min() < low + 0.002
        assert high - 0.002 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.003)
    empty = synthetic_batch(load_hand("standin"), 0, 0, [])
    assert [tuple(value.shape) for value in empty] == [(0, 64, 64), (0, 41, 16, 16), (0, 41, 3)]


def test_normal_numbers_are_normal() -> None:
    normal = pixel_draws(0, 0, range(16))
    assert normal.shape == (16, 3, 64, 64)
    assert abs(float(normal.mean())) < 0.01
    assert float(normal.std()) == pytest.approx(1, abs=0.01)


# ------------------------------------------------------------------------------------------------- images


def test_images_and_targets_belong_together(hand: Hand) -> None:
    clean = synthetic_batch(hand, 0, 0, range(32), noise_rounding=None)
    assert not any(value.requires_grad for value in clean)
    assert clean.depth.max() == 1
    for image, spheres in zip(clean.depth, clean.spheres_mm, strict=True):
        uvd = project(spheres[None], 64)[0]
        u, v = uvd[:, 0].round().long(), uvd[:, 1].round().long()
        inside = (u >= 0) & (u < 64) & (v >= 0) & (v < 64)
        surface = 100 * image[v[inside], u[inside]]
        covered = surface < 100
        assert covered.float().mean() > 0.8  # the picture is drawn with the same zoom
        assert (surface <= spheres[inside, 2] + 3)[covered].float().mean() > 0.9  # spheres lie behind the surface
    torch.testing.assert_close(clean.heatmaps, heatmaps(project(clean.spheres_mm, 16)), rtol=0, atol=1e-5)
    noisy = synthetic_batch(hand, 0, 0, range(32))
    assert torch.equal(noisy.heatmaps, clean.heatmaps)
    assert not torch.equal(noisy.depth, clean.depth)
    other = synthetic_batch(hand, 0, 0, range(32), noise_rounding="trunc")
    assert not torch.equal(noisy.depth, other.depth)
    harmonic = synthetic_batch(hand, 0, 0, range(32), noise_rounding=None, interpolation="harmonic")
    assert float((harmonic.depth - clean.depth).abs().max()) > 0.05


def test_center(hand: Hand) -> None:
    draws = draw(0, 0, range(16))
    mean, palm = (synthesize(draws, hand, center=center) for center in ("mean", "palm"))
    jitter = draws.pose[:, 3:6] * draws.scale
    expected = torch.stack([-jitter[:, 0] * draws.zoom, jitter[:, 1] * draws.zoom, jitter[:, 2]], dim=1)
    torch.testing.assert_close(palm.spheres_mm[:, synth.PALM], expected, rtol=0, atol=1e-3)
    offsets = palm.spheres_mm - mean.spheres_mm
    torch.testing.assert_close(offsets, offsets[:, :1].expand_as(offsets), rtol=0, atol=1e-3)
    assert offsets.abs().max() > 10
    assert not torch.equal(palm.depth, mean.depth)


@pytest.mark.gpu
def test_the_gpu_makes_the_same_images(hand: Hand) -> None:
    ours, theirs = (synthetic_batch(hand, 0, 0, range(16), device=device) for device in ("cuda", "cpu"))
    for a, b in zip(ours, theirs, strict=True):
        assert ((a.cpu() - b).abs() > 1e-3).float().mean() < 1e-3


# ------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("rounding", "drift"), [("symmetric", 0.0), ("trunc", 0.157)])
def test_noise_statistics(rounding: synth.Rounding, drift: float) -> None:
    columns = torch.arange(64.0).expand(8, 64, 64) / -1000  # a pixel's value tells where it came from
    normal = pixel_draws(1, 0, range(8))
    normal[:, 2] = 0
    shift = (-1000 * (depth_noise(columns, normal, rounding) - columns)).round()[:, :, 4:-4]
    share = {k: float((shift == k).float().mean()) for k in (-1, 0, 1)}
    print(f"{rounding}: shifts {share}, mean {float(shift.mean()):.3f}")
    assert float(shift.mean()) == pytest.approx(drift, abs=0.01)
    assert share[1] == pytest.approx(0.157, abs=0.01)
    assert share[-1] == pytest.approx(0.157 if rounding == "symmetric" else 0.001, abs=0.01)


def test_noise_by_hand() -> None:
    depth = torch.ones(1, 3, 3)
    depth[0, 1, 1] = 0.5
    normal = torch.zeros(1, 3, 3, 3)
    assert torch.equal(depth_noise(depth, normal), depth)
    normal[0, 2] = 2.0
    noisy = depth_noise(depth, normal)
    assert noisy[0, 1, 1] == pytest.approx(0.6)
    assert (noisy == 1).sum() == 8  # background stays
    normal[0, 0, 1, 0] = 2.0  # this pixel reads one to its right
    normal[0, 1, 0, 1] = 2.0  # and this one the one below
    normal[0, 0, 2, 2] = 99.0  # beyond the image: its last column
    noisy = depth_noise(depth, normal)
    assert torch.nonzero(noisy < 1).tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]


# ------------------------------------------------------------------------------------------------- captured images


def test_shrink_by_hand() -> None:
    depth = torch.rand(3, 64, 64) - 0.5
    ones = torch.ones(3)
    assert torch.equal(shrink(depth, ones, ones), depth)
    half = shrink(depth, 0.5 * ones, torch.tensor([0.5, 1.0, 0.25]))
    assert torch.equal(half[0, 16:48, 16:48], depth[0, ::2, ::2])
    assert torch.equal(half[1, :, 16:48], depth[1, :, ::2])
    assert torch.equal(half[2, 24:40, 16:48], depth[2, ::4, ::2])
    assert (half[0, :16] == 1).all()
    assert torch.equal(half[1:2], shrink(depth[1:2], 0.5 * ones[:1], ones[:1]))  # a single image keeps its batch


def test_resample_by_hand() -> None:
    depth = torch.full((2, 8, 8), 0.5)
    dropped = torch.zeros(2, 8, 8, dtype=torch.bool)
    dropped[1, 3, 4] = True
    for kernel, middle in ((3, 6 / 18), (5, 41 / 273)):
        smooth = resample(depth, kernel, dropped, padding="replicate")  # type: ignore[arg-type]
        torch.testing.assert_close(smooth[0], depth[0])  # borders as well
        assert smooth[1, 3, 4] == pytest.approx(0.5 + 0.5 * middle)
        assert resample(depth, kernel, padding="zero")[0, 0, 0] < 0.4  # type: ignore[arg-type]
    assert torch.equal(depth, torch.full((2, 8, 8), 0.5))


IMAGES, ONES = torch.zeros(2, 8, 8), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: depth_noise(IMAGES[0], torch.zeros(1, 3, 8, 8)), r"depth: expected float images \(B, H, W\)"),
        (lambda: depth_noise(IMAGES, torch.zeros(2, 3, 8, 7)), r"normal: expected \(2, 3, 8, 8\), got \(2, 3, 8, 7\)"),
        (
            lambda: depth_noise(IMAGES, torch.zeros(2, 3, 8, 8), "floor"),  # type: ignore[arg-type]
            "rounding: expected symmetric or trunc, got 'floor'",
        ),
        (lambda: shrink(IMAGES.int(), ONES, ONES), "depth: expected float images"),
        (lambda: shrink(IMAGES, ONES[:1], ONES), r"u_scale: expected \(2,\) factors in \(0, 1\], got \(1,\)"),
        (lambda: shrink(IMAGES, ONES, 1.5 * ONES), r"v_scale: expected .* got \(2,\) \[1.5, 1.5\]"),
        (lambda: shrink(IMAGES, 0 * ONES, ONES), "u_scale: expected"),
        (lambda: resample(IMAGES, 4, padding="zero"), "kernel: expected 3 or 5, got 4"),  # type: ignore[arg-type]
        (
            lambda: resample(IMAGES, 3, padding="mirror"),  # type: ignore[arg-type]
            "padding: expected replicate or zero, got 'mirror'",
        ),
        (lambda: resample(IMAGES, 3, ONES, padding="zero"), r"dropped: expected bool \(2, 8, 8\)"),
        (
            lambda: synthetic_batch(load_hand("standin"), 0, 0, [0], center="wrist"),  # type: ignore[arg-type]
            "center: expected mean or palm, got 'wrist'",
        ),
    ],
)
def test_errors(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
