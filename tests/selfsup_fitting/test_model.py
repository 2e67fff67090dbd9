"""The estimator against the original's outputs, and its shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup_fitting.convert import load_reference
from selfsup_fitting.model import Estimator, heatmap_variance, peak_share, positive_share, recover_spheres
from shared.errors import DataError
from tests.golden.fill import fill_state_dict, uniform

FOLDER = Path(__file__).parents[1] / "golden/selfsup_fitting"


def named(name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.from_numpy(uniform(f"selfsup.{name}", shape, low, high))


def write_reference(folder: Path, name: str) -> Path:
    """A checkpoint as the original program writes it, filled from its keys."""
    spec = json.loads((FOLDER / f"{name}.keys.json").read_text())
    state = {key: torch.from_numpy(np.array(value)) for key, value in fill_state_dict(spec).items()}
    path = folder / f"{name}.pth"
    torch.save({"epoch": 4, "network_state_dict": state, "optimizer_state_dict": {}}, path)
    return path


def near(name: str, value: Tensor, expected: np.ndarray, bound: float) -> None:
    off = float((value - torch.from_numpy(expected)).abs().max())
    print(f"{name}: max diff {off:.3g}")
    assert off <= bound


@pytest.mark.parametrize(("name", "stacks", "count"), [("hourglass", 1, 4), ("hourglass_s2", 2, 2)])
def test_estimator_against_the_original(name: str, stacks: int, count: int, tmp_path: Path) -> None:
    """In float64, because z of a sphere whose heat map is nearly nowhere positive hangs on the last bit of float32."""
    network = load_reference(write_reference(tmp_path, name), "estimator").double()
    synthetic, real = named(f"{name}.synt", (count, 64, 64), -1, 1), named(f"{name}.real", (2, 3, 64, 64), -1, 1)
    images = torch.cat([synthetic, real.flatten(0, 1)]).double()
    with np.load(FOLDER / f"{name}.npz") as file:
        measured = dict(file)
    with torch.inference_mode():
        preds, single = network(images), network.float()(images.float())
    assert len(preds) == stacks
    for i, pred in enumerate(preds):
        first, second = pred.part(0, count), pred.part(count, None)
        near(f"{name} heat maps {i}", first.heatmaps, measured[f"synt_uv_hms_{i}"], 5e-5)
        near(f"{name} depth maps {i}", first.depths[:, ::4], measured[f"synt_d_hms_{i}"], 5e-5)
        near(f"{name} spheres {i} (mm)", first.spheres_mm, measured[f"synt_xyz_{i}"], 0.02)
        maps, spheres = second.heatmaps.unflatten(0, (2, 3)), second.spheres_mm.unflatten(0, (2, 3))
        near(f"{name} real heat maps {i}", maps[:, :, ::8], measured[f"real_uv_hms_{i}"], 5e-5)
        near(f"{name} real spheres {i} (mm)", spheres, measured[f"real_xyz_{i}"], 0.02)
        near(f"{name} latent {i}", first.latent[:, ::8], measured[f"latent_synt_{i}"], 5e-5)
        near(f"{name} real latent {i}", second.latent[:, ::8], measured[f"latent_real_{i}"], 5e-5)
        near(f"{name} float32 heat maps {i}", single[i].heatmaps, pred.heatmaps.numpy(), 5e-5)
        steady = pred.heatmaps.relu().sum((-2, -1)) > 1e-3
        near(f"{name} float32 spheres {i}", single[i].spheres_mm[steady], pred.spheres_mm[steady].numpy(), 0.02)


def test_coordinates_against_the_original() -> None:
    with np.load(FOLDER / "camera.npz") as file:
        measured = dict(file)
    maps, depths = named("camera.noisehm", (3, 41, 16, 16), -0.3, 1.2), named("camera.noised", (3, 41, 16, 16), -1, 1)
    near("recovered spheres (mm)", recover_spheres(maps, depths), measured["recovered_xyz_noise"], 0.005)


def test_coordinates_of_a_single_peak() -> None:
    maps, depths = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    maps[0, 0, 3, 12], depths[0, 0, 3, 12] = 10.0, 0.25  # row 3, column 12
    expected = torch.tensor([[[(12 - 8) * 18.75, (3 - 8) * 18.75, 25.0]]])
    torch.testing.assert_close(recover_spheres(maps, depths), expected, rtol=0, atol=1e-3)
    assert torch.equal(recover_spheres(-torch.ones(1, 1, 16, 16), depths)[..., 2], torch.zeros(1, 1))


def test_shares_and_variance_against_the_original() -> None:
    with np.load(FOLDER / "camera.npz") as file:
        measured = dict(file)
    maps = named("camera.noisehm", (3, 41, 16, 16), -0.3, 1.2)
    near("softmax", peak_share(maps)[:, :2], measured["softmax20_first2"], 1e-5)
    near("positive share", positive_share(maps)[:, :2], measured["normalised_first2"], 1e-5)
    near("variance", heatmap_variance(maps), measured["heatmap_variance"], 1e-5)


def test_variance_of_peaks() -> None:
    cells = torch.arange(16.0)
    peak = torch.exp(-0.5 * ((cells - 7) ** 2 + (cells[:, None] - 6) ** 2))
    clean, two = (
        heatmap_variance(peak[None, None]),
        heatmap_variance(torch.maximum(peak, 0.9 * peak.flip(1))[None, None]),
    )
    assert float(clean) == pytest.approx(2 / 256, rel=0.01)  # one cell squared each way
    far = heatmap_variance((peak + 0.8 * peak.roll(7, 1))[None, None])
    assert clean < two < far
    for empty in (-torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 1e-9)):
        assert float(heatmap_variance(empty)) == torch.inf  # an empty map says nothing
    faint, fainter = (heatmap_variance(size * peak[None, None]) for size in (1e-3, 1e-5))
    assert float(fainter) == pytest.approx(float(faint), rel=0.02)


@pytest.mark.parametrize(("stacks", "parameters"), [(1, 2_308_946), (2, 4_199_588)])
def test_published_size(stacks: int, parameters: int) -> None:
    assert sum(p.numel() for p in Estimator(stacks).parameters()) == parameters


def test_one_image_of_a_batch_is_the_image_alone() -> None:
    torch.manual_seed(0)
    network = Estimator(channels=64)
    images = torch.rand(3, 64, 64)
    with torch.inference_mode():
        together, alone = network(images)[0], network(images[1:2])[0]
    torch.testing.assert_close(together.spheres_mm[1:2], alone.spheres_mm, rtol=1e-4, atol=1e-3)


def test_every_parameter_learns() -> None:
    network = Estimator(stacks=2, channels=64)
    preds = network(torch.rand(2, 64, 64))
    sum((p.heatmaps.square().sum() + p.spheres_mm.square().sum() for p in preds), torch.zeros(())).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 3, 64, 64), (64, 64)])
def test_refuses_other_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected depth crops \(N, 64, 64\)"):
        Estimator(channels=64)(torch.zeros(shape))


@pytest.mark.parametrize(("stacks", "channels"), [(0, 64), (1, 100), (1, 0)])
def test_refuses_sizes_that_cannot_be_built(stacks: int, channels: int) -> None:
    with pytest.raises(DataError, match=r"--model\.stacks and --model\.channels"):
        Estimator(stacks, channels)
