"""The Makefile hands on what a user says: dry runs (`make -n`) of the targets on real data."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def lines(*words: str) -> list[str]:
    """The commands that `make` would run."""
    result = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [line for line in result.stdout.splitlines() if " -m " in line]


@pytest.mark.parametrize("target", ["train-wild", "eval-wild"])
def test_every_step_in_the_wild_gets_the_hand_model(target: str, tmp_path: Path) -> None:
    mano = tmp_path / "MANO_RIGHT.pkl"
    steps = lines(target, f"DATA={tmp_path}", f"MANO={mano}", f"RUN={tmp_path}/run", "CKPT=x.pt")
    assert "hand3d_wild.eval" in steps[-1]
    for step in steps:
        assert "hand3d_wild.prepare" in step or f"mano {mano}" in step, step


def test_any_subset_of_the_wild_sets(tmp_path: Path) -> None:
    def trees(data: Path) -> set[str]:
        (step,) = lines("prepare-wild", f"DATA={data}", f"STORE={tmp_path}/store", "WORKERS=7")
        assert "--workers 7" in step
        return {flag for flag in ("--panoptic", "--mpii", "--stb") if f"{flag} {data}/" in step}

    assert trees(tmp_path / "nothing") == {"--panoptic", "--mpii", "--stb"}  # prepare names what it misses
    (tmp_path / "mpii_nzsl").mkdir()
    assert trees(tmp_path) == {"--mpii"}
    (tmp_path / "stb").mkdir()
    assert trees(tmp_path) == {"--mpii", "--stb"}


def test_both_stages_of_training_by_fitting_get_the_seed_and_the_second_one_the_preset(tmp_path: Path) -> None:
    run = f"RUN={tmp_path}/run"
    stages = [step for step in lines("train-selfsup", run, "SEED=3") if "selfsup_fitting.train " in step]
    assert [step.count("--seed 3") for step in stages] == [1, 1]
    assert "standin_synthetic.yaml" in stages[0]
    assert "standin_selfsup.yaml" in stages[1]
    data = [step for step in lines("train-selfsup", run, "DATA=/x") if "selfsup_fitting.train " in step]
    assert "author_log.yaml" in data[1]
    assert "--seed" not in data[1]
    named = [step for step in lines("train-selfsup", run, "DATA=/x", "CONFIG=release") if ".train " in step]
    assert "release.yaml" in named[1]


@pytest.mark.parametrize("method", ["v2v", "handoccnet", "sohandnet", "selfsup", "wild"])
def test_evaluation_of_your_data_never_starts_a_training(method: str, tmp_path: Path) -> None:
    where = (f"RUN={tmp_path}/run", f"STORE={tmp_path}/store")
    assert any(".train " in step or ".pipeline " in step for step in lines(f"eval-{method}", *where))
    words = ["make", "-n", f"eval-{method}", *where, "DATA=/x", "MANO=/x/m.npz"]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"error: no checkpoint at {tmp_path}/run" in printed
    assert f"make train-{method} DATA=/x trains one, CKPT=file names another" in printed
    assert ".train " not in printed
    assert ".pipeline " not in printed
