"""The author's checkpoints in all their layouts, our own, and files that are neither."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfsup_fitting.convert import (
    checkpoint_of,
    load_checkpoint,
    load_estimator,
    load_reference,
    main,
    save_checkpoint,
)
from selfsup_fitting.losses import vae_objective
from selfsup_fitting.model import Estimator
from selfsup_fitting.priors import PoseDenoiser, PoseVAE
from shared.errors import DataError, MissingFileError
from tests.selfsup_fitting.test_model import FOLDER, named, near, write_reference


def rewritten(path: Path, change: Any) -> Path:
    """The same file with its weights changed by ``change(state)``."""
    content = torch.load(path, weights_only=True)
    change(content["network_state_dict"])
    torch.save(content, path)
    return path


def test_vae_against_the_original(tmp_path: Path) -> None:
    network = load_reference(write_reference(tmp_path, "pose_vae"), "vae")
    assert isinstance(network, PoseVAE)
    x = named("pose_vae.input", (8, 123), -1, 1).requires_grad_()
    eps = named("pose_vae.eps", (8, 32), -2, 2)
    with np.load(FOLDER / "pose_vae.npz") as file:
        measured = dict(file)
    plain, mu, logvar = network(x)
    near("VAE reconstruction", plain.detach(), measured["recon"], 1e-4)
    near("VAE mu", mu.detach(), measured["mu"], 1e-4)
    recon, mu, logvar = network(x, eps)
    near("VAE sampled reconstruction", recon.detach(), measured["recon_sampled"], 1e-4)
    loss = vae_objective(recon, x, mu, logvar)
    assert float(loss.detach()) == pytest.approx(float(measured["prior_loss"]), rel=1e-4)
    loss.backward()
    assert x.grad is not None
    scale = float(np.abs(measured["prior_loss_grad"]).max())
    near("VAE prior gradient", x.grad / scale, measured["prior_loss_grad"] / scale, 1e-4)


def test_denoiser_against_the_original(tmp_path: Path) -> None:
    network = load_reference(write_reference(tmp_path, "pose_denoiser"))
    assert isinstance(network, PoseDenoiser)
    with np.load(FOLDER / "pose_denoiser.npz") as file, torch.inference_mode():
        near("denoiser (mm)", network(named("pose_denoiser.input", (5, 41, 3), -120, 120)), file["output"], 0.01)


def test_layouts_of_the_authors_files(tmp_path: Path) -> None:
    path = write_reference(tmp_path, "hourglass_s2")
    whole = load_reference(path)
    content = torch.load(path, weights_only=True)["network_state_dict"]
    torch.save(content, tmp_path / "bare.pth")
    torch.save({"network_state_dict": {f"module.{k}": v for k, v in content.items()}}, tmp_path / "parallel.pth")
    for name in ("bare.pth", "parallel.pth"):
        other = load_reference(tmp_path / name)
        assert isinstance(other, Estimator)
        assert other.sizes == {"stacks": 2, "channels": 256}
        for key, value in whole.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


def test_own_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Estimator(2, 64)
    save_checkpoint(tmp_path / "own.pt", checkpoint_of(network, epoch=3))
    again = load_checkpoint(tmp_path / "own.pt")
    assert again.extra == {"epoch": 3}
    built = again.build()
    assert not built.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, built.state_dict()[key]), key
    save_checkpoint(tmp_path / "twice.pt", again)
    assert (tmp_path / "own.pt").read_bytes() == (tmp_path / "twice.pt").read_bytes()


def test_program_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_reference(tmp_path, "hourglass")
    monkeypatch.setattr(sys, "argv", ["convert", "--input", str(path), "--output", str(tmp_path / "new.pt")])
    main()
    assert "estimator of 1 stack" in capsys.readouterr().out
    assert load_estimator(tmp_path / "new.pt").model == load_estimator(path).model
    assert "hourglass.pth" in load_checkpoint(tmp_path / "new.pt").extra["source"]


def test_program_needs_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", "--input", "a.pth"])
    with pytest.raises(DataError, match="--output is missing"):
        main()


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        load_reference(tmp_path / "none.pth")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(DataError, match="web page"):
        load_reference(tmp_path / "page.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(DataError, match="no 'network_state_dict'"):
        load_reference(tmp_path / "empty.pth")
    torch.save({"network_state_dict": {"a": torch.zeros(1), "b": "text"}}, tmp_path / "text.pth")
    with pytest.raises(DataError, match="no tensors: b"):
        load_reference(tmp_path / "text.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="neither the estimator, nor the pose VAE"):
        load_reference(tmp_path / "other.pth")


def test_foreign_objects_are_not_loaded(tmp_path: Path) -> None:
    torch.save({"network_state_dict": {"x": Path("/tmp")}}, tmp_path / "foreign.pth")
    with pytest.raises(DataError, match="hold more than tensors"):
        load_reference(tmp_path / "foreign.pth")


def test_truncated_file(tmp_path: Path) -> None:
    path = write_reference(tmp_path, "pose_vae")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="may be truncated"):
        load_reference(path)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    path = rewritten(write_reference(tmp_path, "hourglass"), lambda state: state.pop("hg.score.0.bias"))
    with pytest.raises(DataError, match=r"missing stacks\.0\.score\.bias"):
        load_reference(path)
    path = rewritten(write_reference(tmp_path, "hourglass"), lambda state: state.update(extra=torch.zeros(1)))
    with pytest.raises(DataError, match="unexpected extra"):
        load_reference(path)
    path = rewritten(write_reference(tmp_path, "hourglass"), lambda state: state["hg.conv1.weight"].fill_(float("nan")))
    with pytest.raises(DataError, match="not finite"):
        load_reference(path)
    huge = {"hg.score.99.weight": torch.zeros(1)}
    path = rewritten(write_reference(tmp_path, "hourglass"), lambda state: state.update(huge))
    with pytest.raises(DataError, match="names 100 stacks"):
        load_reference(path)


def test_another_network_than_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the vae, expected the estimator"):
        load_reference(write_reference(tmp_path, "pose_vae"), "estimator")


def test_ours_and_theirs_are_not_confused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "own.pt", checkpoint_of(Estimator(1, 64)))
    with pytest.raises(DataError, match="not one of the original program"):
        load_reference(tmp_path / "own.pt")
    with pytest.raises(DataError, match=r"python -m selfsup_fitting\.convert"):
        load_checkpoint(write_reference(tmp_path, "pose_vae"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "format version 99"),
        ({"format": "handpose/v2v_posenet"}, "v2v_posenet"),
        ({"model": {"stacks": 1, "channels": 100}}, "malformed entry"),
        ({"model": {"stacks": 2, "channels": 64}}, "missing stacks.1"),
        ({"state_dict": None}, "malformed entry"),
    ],
)
def test_own_checkpoint_that_was_changed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    content = checkpoint_of(Estimator(1, 64)).as_dict() | change
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(DataError, match=message):
        load_checkpoint(tmp_path / "own.pt")
