"""The training program: the original's schedule, runs that resume exactly, and what is refused before they start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handoccnet.config import DataOptions, OptimOptions, TrainConfig
from handoccnet.convert import checkpoint_of, load_checkpoint, save_checkpoint
from handoccnet.model import HandOccNet
from handoccnet.prepare import prepare
from handoccnet.train import hand_errors, lr_factor, scaled_lr, train
from shared.errors import DataError
from shared.mano import load_mano
from shared.options import parse
from shared.standin.ho3d import write_ho3d

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "handoccnet/configs/tiny.yaml")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ho3d")
    write_ho3d(root, frames=5, seed=1)
    return root


def tiny(tree: Path, run: Path, *more: str) -> Any:
    words = ["--config", TINY, "--data.root", str(tree), "--run", str(run), *more]
    return parse(TrainConfig, prog="train", description="", argv=words)


def test_learning_rates_are_the_originals(golden: Path) -> None:
    schedule = json.loads((golden / "handoccnet/schedule.json").read_text())
    worst = 0.0
    for key, dataset in (("HO3D", "ho3d"), ("DEX_YCB", "dexycb")):
        expected = schedule[key]["lr"]
        for epoch, rate in enumerate(expected):
            for step in (7 * epoch, 7 * epoch + 6):  # all steps of an epoch alike
                ours = 1e-4 * lr_factor(OptimOptions(), dataset, step, 7, len(expected))  # type: ignore[arg-type]
                worst = max(worst, abs(ours / rate - 1))
    print(f"learning rates: max relative diff {worst:.3g}")
    assert worst < 1e-12


def test_other_schedules_and_warmup() -> None:
    def factors(**options: Any) -> list[float]:
        return [lr_factor(OptimOptions(**options), "ho3d", step, 5, 4) for step in range(20)]

    assert factors(schedule="constant") == [1.0] * 20
    cosine = factors(schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.01
    assert factors(schedule="constant", warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_factor(OptimOptions(schedule="dexycb"), "ho3d", 5, 5, 4) == 0.9


def test_the_rate_follows_the_global_batch() -> None:
    assert scaled_lr(OptimOptions(), 64) == 1e-4
    assert scaled_lr(OptimOptions(), 16) == pytest.approx(2.5e-5)
    assert scaled_lr(OptimOptions(reference_batch=0), 16) == 1e-4


def test_presets_parse_and_the_paper_is_the_papers() -> None:
    for name in ("standin", "paper", "tiny"):
        words = ["--config", str(ROOT / f"handoccnet/configs/{name}.yaml")]
        options = parse(TrainConfig, prog="train", description="", argv=words).options
        if name == "paper":
            assert (options.epochs, options.batch_size, options.optim.lr) == (70, 16, 1e-4)
            assert options.model.blocks == [3, 4, 6, 3]
            assert options.model.image_size == 256
            assert (options.loss.mano_verts, options.loss.mano_shape) == (1e4, 0.1)


def test_validation_errors_have_the_wrists_aligned() -> None:
    rng = np.random.default_rng(0)
    joints = torch.from_numpy(rng.normal(0, 40, (3, 21, 3)))
    centred = joints - joints[:, :1]
    errors = hand_errors({"joints_mm": joints + 100}, {"joints_root_mm": centred})
    assert errors["error_mm"].abs().max() < 1e-4
    errors = hand_errors({"joints_mm": 1.1 * joints}, {"joints_root_mm": centred})
    assert errors["error_mm"].min() > 1
    assert errors["pa_mm"].max() < 1e-4


def test_a_run_trains_resumes_exactly_and_its_checkpoint_loads(tree: Path, tmp_path: Path) -> None:
    whole = tiny(tree, tmp_path / "whole")
    results = train(whole.options, whole.yaml)
    assert set(results) == {"error_mm", "pa_mm"}
    for word in (["--max_steps", "3"], ["--resume"]):
        part = tiny(tree, tmp_path / "part", *word)
        train(part.options, part.yaml)
    last = [tmp_path / name / "checkpoints/last.pt" for name in ("whole", "part")]
    assert last[0].read_bytes() == last[1].read_bytes()
    checkpoint = load_checkpoint(last[0])
    assert checkpoint.extra["epoch"] == 2
    assert checkpoint.extra["data"]["mano"] == "standin"
    network = checkpoint.build("standin")
    assert network(torch.zeros(1, 3, 64, 64))["verts_mm"].shape == (1, 778, 3)
    lines = (tmp_path / "whole/metrics.csv").read_text()
    for name in ("train/loss", "train/mano_verts", "train/mano_pose", "train/joints_img", "val/error_mm", "val/pa_mm"):
        assert name in lines
    again = tiny(tree, tmp_path / "whole")
    with pytest.raises(DataError, match="holds a run already"):
        train(again.options, again.yaml)


def test_loss_falls_on_one_batch(tree: Path, tmp_path: Path) -> None:
    words = (
        "--overfit_batch",
        "--epochs",
        "30",
        "--data.val_limit=-1",
        "--checkpoint_every",
        "0",
        "--optim.lr",
        "3e-3",
    )
    parsed = tiny(tree, tmp_path / "run", *words, "--optim.schedule", "constant")
    train(parsed.options, parsed.yaml)
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()]
    losses = [float(row[3]) for row in rows if row[2] == "train/loss"]
    print(f"overfit: loss {losses[0]:.1f} -> {losses[-1]:.1f}")
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_what_is_refused(tree: Path, tmp_path: Path) -> None:
    other = HandOccNet(
        load_mano("standin"), image_size=64, stem=2, blocks=(1, 1, 1, 1), channels=8, heads=2, hidden=(8, 8)
    )
    save_checkpoint(tmp_path / "other.pt", checkpoint_of(other))
    backbone = ("--backbone_weights", "resnet50.pth")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--init_from", "a.pt", *backbone), "exclude one another"),
        (("--resume", *backbone), "continues with the run's own weights"),
        (("--resume",), "no checkpoint to resume from"),
        (("--init_from", str(tmp_path / "other.pt")), "a network of the sizes"),
        (("--data.mano", ""), "no MANO model is named"),
        (("--backbone_weights", "nowhere.pth"), "nowhere.pth"),
    ]
    for number, (words, message) in enumerate(cases):
        parsed = tiny(tree, tmp_path / f"run{number}", *words)
        with pytest.raises(DataError, match=message):
            train(parsed.options, parsed.yaml)


@pytest.mark.parametrize(
    ("word", "bounds"),
    [
        ("--data.train_limit=-5", "at least 0"),
        ("--data.test_limit=-2", "at least 0"),
        ("--data.val_limit=-7", "at least -1"),
        ("--augment.scale=1.5", "0 to 0.99"),
        ("--augment.scale=-3", "0 to 0.99"),
        ("--augment.rotate_deg=-10", "0 to 180"),
        ("--augment.rotate_share=7", "0 to 1"),
        ("--augment.colour=5", "0 to 1"),
        ("--optim.lr=-1", "at least 0"),
        ("--optim.reference_batch=-4", "at least 0"),
        ("--optim.warmup_steps=-5", "at least 0"),
    ],
)
def test_numbers_that_mean_nothing(tree: Path, tmp_path: Path, word: str, bounds: str) -> None:
    with pytest.raises(DataError, match=f"{word.split('=')[0]} must be {bounds}, got "):
        tiny(tree, tmp_path, word)


def test_no_validation_says_why(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(tree, root, ignore=shutil.ignore_patterns("*.json"))
    prepare(DataOptions(root=str(root), mano="standin"), tmp_path / "annotations")
    words = ("--max_steps", "1", "--data.annotations", str(tmp_path / "annotations"), "--data.missing", "skip")
    parsed = tiny(root, tmp_path / "run", *words)
    train(parsed.options, parsed.yaml)
    printed = capsys.readouterr().out
    assert "validation: none (no true joints in " in printed
    assert "wrist only (no evaluation_xyz.json)" in printed
    stored = load_checkpoint(tmp_path / "run/checkpoints/last.pt").extra["data"]
    expected = {"annotations": str(tmp_path / "annotations"), "missing": "skip", "dexycb_split": "test"}
    assert {name: stored[name] for name in expected} == expected


def test_init_from_starts_with_the_weights(tree: Path, tmp_path: Path) -> None:
    first = tiny(tree, tmp_path / "first", "--max_steps", "1", "--data.val_limit=-1")
    train(first.options, first.yaml)
    start = load_checkpoint(tmp_path / "first/checkpoints/last.pt")
    words = ("--init_from", str(tmp_path / "first/checkpoints/last.pt"), "--optim.lr", "0", "--max_steps", "1")
    second = tiny(tree, tmp_path / "second", *words, "--data.val_limit=-1", "--seed", "9")
    train(second.options, second.yaml)
    ours = load_checkpoint(tmp_path / "second/checkpoints/last.pt").state_dict
    for key, value in start.state_dict.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(ours[key], value), key


def test_two_ranks_share_each_epoch(tmp_path: Path) -> None:
    """Batch statistics are each rank's own: only terms that hardly depend on the features can be compared closely."""
    size = {1: "4", 2: "2"}
    curves = {}
    tree = tmp_path / "ho3d"
    write_ho3d(tree, frames=6, seed=1)  # six: no batch of one, which would be merged differently
    for ranks, batch in size.items():
        command = [sys.executable, "-m", "handoccnet.train", "--config", TINY, "--data.root", str(tree)]
        command += [
            "--run",
            str(tmp_path / f"{ranks}"),
            "--devices",
            f"{ranks}",
            "--batch_size",
            batch,
            "--epochs",
            "1",
        ]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / f"{ranks}/metrics.csv").read_text().splitlines()[1:]
        curves[ranks] = {(row[0], row[2]): float(row[3]) for row in (line.split(",") for line in lines)}
    assert curves[1].keys() == curves[2].keys()  # as many steps, the same terms
    one, two = (curves[ranks]["1", "train/mano_pose"] for ranks in size)  # both ranks' samples, not the first rank's
    print(f"pose term of the first step: {one:.6f} and {two:.6f}")
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tree: Path, tmp_path: Path) -> None:
    def start(run: Path, *more: str) -> subprocess.Popen[bytes]:
        words = ["--config", TINY, "--data.root", str(tree), "--run", str(run), *more]
        words += ["--optim.schedule", "constant"]  # cosine would depend on the number of epochs, which differs below
        command = [sys.executable, "-m", "handoccnet.train", *words]
        log = open(tmp_path / "log.txt", "ab")  # noqa: SIM115 the process owns it
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole = start(tmp_path / "whole")
    assert whole.wait(300) == 0, (tmp_path / "log.txt").read_text()
    killed = start(tmp_path / "killed", "--epochs", "400")  # longer, so that it is surely killed in the middle
    metrics = tmp_path / "killed/metrics.csv"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and "\n2," in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    step = int(torch.load(tmp_path / "killed/checkpoints/last.pt", weights_only=True)["training"]["step"])
    print(f"killed after step {step} of 6")
    assert step >= 1
    if step < 6:
        resumed = start(tmp_path / "killed", "--resume")
        assert resumed.wait(300) == 0, (tmp_path / "log.txt").read_text()
        last = [(tmp_path / name / "checkpoints/last.pt").read_bytes() for name in ("whole", "killed")]
        assert last[0] == last[1]
    else:
        pytest.fail("the machine was too slow to kill the run in time")
