"""Pose VAE and denoiser: the released networks' numbers, files, and that a short training learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfsup_fitting import train_prior
from selfsup_fitting.hand import load_hand
from selfsup_fitting.losses import vae_objective
from selfsup_fitting.prior_config import PriorConfig
from selfsup_fitting.priors import PoseDenoiser, PoseVAE, load_prior, save_prior
from shared.errors import DataError, MissingFileError
from shared.training import load_payload
from tests.golden.fill import fill_state_dict, uniform

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/selfsup_fitting"


def given(name: str, *shape: int, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy(uniform(f"selfsup.{name}", shape, low, high))


def filled(name: str) -> dict[str, torch.Tensor]:
    """The reference's state dict, with the contents that the constant index lists have in it."""
    spec = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    state = {key: torch.from_numpy(value) for key, value in fill_state_dict(spec).items()}
    assert ("input_indices" in state) == (name == "pose_denoiser")
    return state


def reference_file(tmp_path: Path, name: str) -> Path:
    torch.save({"epoch": 4, "network_state_dict": filled(name)}, tmp_path / f"{name}.pth")
    return tmp_path / f"{name}.pth"


def close(name: str, found: torch.Tensor, expected: np.ndarray, bound: float, relative: bool = False) -> None:
    difference = float(np.abs(found.detach().numpy() - expected).max()) / (np.abs(expected).max() if relative else 1)
    print(f"{name} max diff {difference:.3g}")
    assert difference <= bound


def test_golden_vae(tmp_path: Path) -> None:
    network = load_prior(reference_file(tmp_path, "pose_vae"), "vae")
    expected = np.load(GOLDEN / "pose_vae.npz")
    x = given("pose_vae.input", 8, 123, low=-1, high=1)
    recon, mu, logvar = network(x)
    close("vae recon", recon, expected["recon"], 1e-4)
    close("vae recons", recon.view(1, 8, 41, 3), expected["recons"], 1e-4)
    close("vae mu", mu, expected["mu"], 1e-4)
    close("vae logvar", logvar, expected["logvar"], 1e-4)
    close("vae likelihood", vae_objective(recon, x, mu, logvar), expected["likelihood"], 1e-4, relative=True)
    close("vae decoder", network.decoder(given("pose_vae.z", 4, 32, low=-2, high=2)), expected["decoded_z"], 1e-4)

    x.requires_grad_()
    recon, mu, logvar = network(x, given("pose_vae.eps", 8, 32, low=-2, high=2))
    loss = vae_objective(recon, x, mu, logvar)
    loss.backward()
    close("vae recon, sampled", recon, expected["recon_sampled"], 1e-4)
    close("vae likelihood, sampled", loss, expected["likelihood_sampled"], 1e-4, relative=True)
    close("vae prior loss", loss, expected["prior_loss"], 1e-4, relative=True)
    assert x.grad is not None
    close("vae prior gradient", x.grad, expected["prior_loss_grad"], 1e-4, relative=True)
    assert not any(p.requires_grad for p in network.parameters())


def test_golden_denoiser(tmp_path: Path) -> None:
    network = load_prior(reference_file(tmp_path, "pose_denoiser"), "denoiser")
    expected = np.load(GOLDEN / "pose_denoiser.npz")
    spheres = given("pose_denoiser.input", 5, 41, 3, low=-120, high=120)
    target = given("pose_denoiser.target", 5, 41, 3, low=-120, high=120)
    output = network(spheres)
    close("denoiser output", output, expected["output"], 0.01)
    loss = (output - target)[:, :11].square().mean()
    close("denoiser loss", loss, expected["loss"], 1e-4, relative=True)
    assert torch.equal(output[:, 11:], spheres[:, 11:])


def test_denoiser_does_not_see_the_depth_of_the_palm() -> None:
    torch.manual_seed(0)
    network, spheres = PoseDenoiser(), torch.randn(3, 41, 3) * 50
    other = spheres.clone()
    other[:, :11, 2] += 40
    assert torch.equal(network(spheres)[:, :11], network(other)[:, :11])
    other[:, 5, 0] += 10
    assert not torch.equal(network(spheres), network(other))
    assert not torch.equal(network(spheres, 0.1 * torch.randn(3, 112)), network(spheres))


@pytest.mark.parametrize("kind", ["vae", "denoiser"])
def test_file_round_trip(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    network = PoseVAE() if kind == "vae" else PoseDenoiser()
    path = tmp_path / "prior.pt"
    save_prior(path, network, hand="standin")
    loaded = load_prior(path, kind)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert not loaded.training
    other = "denoiser" if kind == "vae" else "vae"
    with pytest.raises(DataError, match=rf"holds the {kind}, expected the {other} -- train one with .* {other}"):
        load_prior(path, other)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        load_prior(tmp_path / "none.pt", "vae")
    path, network = tmp_path / "prior.pt", PoseVAE()
    save_prior(path, network)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 9}, path)
    with pytest.raises(DataError, match="format version 9, this program reads version 1"):
        load_prior(path, "vae")
    torch.save({**content, "format": "handpose/v2v_posenet"}, path)
    with pytest.raises(DataError, match="'handpose/v2v_posenet'"):
        load_prior(path, "vae")
    torch.save({**content, "state_dict": 3}, path)
    with pytest.raises(DataError, match="no weights under 'state_dict'"):
        load_prior(path, "vae")
    state = dict(content["state_dict"])
    state["mu.bias"] = torch.zeros(31)
    torch.save({**content, "state_dict": state}, path)
    with pytest.raises(DataError, match=r"mu\.bias has shape \(31,\), expected \(32,\)"):
        load_prior(path, "vae")
    with pytest.raises(DataError, match="holds the vae, expected the denoiser"):
        load_prior(reference_file(tmp_path, "pose_vae"), "denoiser")


@pytest.mark.parametrize(("kind", "name"), [("vae", "error_mm"), ("denoiser", "palm_error_mm")])
def test_training_learns_and_repeats(kind: str, name: str) -> None:
    hand = load_hand("standin")
    config = PriorConfig(kind=[kind], epochs=1, samples=40 * 64, batch_size=64, eval_samples=500)
    network = train_prior.train(config, hand)
    losses: list[float] = []
    untrained = train_prior.train(PriorConfig(**{**vars(config), "lr": 1e-12}), hand)
    before, after = (train_prior.evaluate(n, config, hand)[name] for n in (untrained, network))
    print(f"{kind}: {before:.1f} mm untrained, {after:.1f} mm after 40 steps")
    assert after < 0.75 * before
    again = train_prior.train(config, hand, log=lambda step, loss: losses.append(loss))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert len(losses) == 2
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("vae", {"latent_noise": 0.0}),
        ("vae", {"kl_weight": 0.0}),
        ("denoiser", {"input_noise": 0.0}),
        ("vae", {"schedule": "constant"}),
        ("vae", {"scale_range": 0.0}),
        ("denoiser", {"center": "palm"}),
    ],
)
def test_every_switch_changes_the_result(kind: str, change: dict[str, Any]) -> None:
    hand = load_hand("standin")
    base: dict[str, Any] = {"kind": [kind], "epochs": 1, "samples": 3 * 16, "batch_size": 16}
    plain, other = (train_prior.train(PriorConfig(**options), hand) for options in (base, {**base, **change}))
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))


def test_hands_lie_where_captured_crops_have_them() -> None:
    hand, config = load_hand("standin"), PriorConfig(kind=["vae"], center="palm")
    centred, usual = (
        train_prior.sample_spheres(50, hand, c, torch.Generator().manual_seed(0)) for c in (config, PriorConfig())
    )
    assert centred[:, 2].abs().max() == 0
    torch.testing.assert_close(centred, usual - usual[:, 2:3])
    assert usual[:, 2].norm(dim=-1).mean() > 15


def test_a_diverging_training_stops() -> None:
    config = PriorConfig(kind=["denoiser"], samples=2000, batch_size=16, lr=1e30)
    with pytest.raises(DataError, match=r"the loss is (nan|inf) at step .* -- use a smaller --lr"):
        train_prior.train(config, load_hand("standin"))


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["denoiser", "--run", str(tmp_path / "run"), "--epochs", "1", "--samples", "640", "--eval_samples", "200"]
    assert train_prior.main(words) == 0
    assert "palm_error_mm" in capsys.readouterr().out
    report = json.loads((tmp_path / "run/metrics.json").read_text())
    assert report["kind"] == "denoiser"
    assert report["palm_error_10mm_noise_mm"] > 0
    assert isinstance(load_prior(tmp_path / "run/prior.pt", "denoiser"), PoseDenoiser)
    assert (tmp_path / "run/log.csv").read_text().startswith("step,loss\n0,")
    assert load_payload(tmp_path / "run/prior.pt")["center"] == "mean"
    assert "samples: 640" in (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(DataError, match="holds a prior already -- choose another --run"):
        train_prior.main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which network? -- give the word vae or denoiser"),
        (["pca"], "expected one word, vae or denoiser, got 'pca'"),
        (["vae", "denoiser"], "got 'vae denoiser'"),
        (["vae", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["vae", "--kl_weight", "-1"], "--kl_weight must not be negative"),
        (["vae", "--scale_range", "0.9"], "--scale_range below 0.9"),
        (["vae", "--hand", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_messages(words: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "selfsup_fitting.train_prior", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
