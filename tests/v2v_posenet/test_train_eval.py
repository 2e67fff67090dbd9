"""Training and evaluation of V2V-PoseNet: repeatable, resumable, and stopped by bad input; on a stand-in MSRA tree."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.datasets.base import Frame, FrameDataset
from shared.errors import DataError
from shared.options import Parsed, parse
from shared.standin.msra import write_msra
from shared.training import sample_rng
from v2v_posenet import data as data_module
from v2v_posenet.center_net import CenterNet, CenterRefiner, save_center_checkpoint
from v2v_posenet.config import CONVENTIONS, DATASETS, AugmentOptions, DataOptions, EvalConfig, EvalData, TrainConfig
from v2v_posenet.data import Subset, VoxelSamples, grids, limited, open_frames, split_validation
from v2v_posenet.eval import evaluate
from v2v_posenet.results import read_world
from v2v_posenet.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people, two gestures, two frames each: eight to train on, four to test on."""
    return write_msra(
        tmp_path_factory.mktemp("train_eval") / "msra", subjects=3, gestures=("1", "5"), frames_per_gesture=2
    )


def words(tree: Path, run: Path, *more: str) -> list[str]:
    """A command line on the tiny preset."""
    base = ["--config", str(ROOT / "v2v_posenet/configs/tiny.yaml"), "--data.root", str(tree), "--run", str(run)]
    return [*base, "--data.test_subject", "2", "--batch_size", "2", "--threads", "1", "--accelerator", "cpu", *more]


def run_tiny(tree: Path, run: Path, *more: str) -> dict[str, float]:
    parsed: Parsed[TrainConfig] = parse(TrainConfig, prog="train", description="", argv=words(tree, run, *more))
    return train(parsed.options, parsed.yaml)


def losses(run: Path) -> list[float]:
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]


@pytest.fixture(scope="session")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run: two epochs of four steps, loader processes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_tiny(tree, run, "--workers", "2")["error_mm"] > 0
    return run


@pytest.fixture(scope="session")
def other(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another seed."""
    run = tmp_path_factory.mktemp("other") / "run"
    run_tiny(tree, run, "--seed", "5", "--epochs", "1")
    return run


# --- training ---------------------------------------------------------------------------------------------------------


def test_killed_and_resumed_equals_uninterrupted(tree: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL inside the fourth step, half an epoch behind a checkpoint in the middle of it, with loader processes."""
    program = (
        "import os, signal\n"
        "from v2v_posenet.kernels import ops\n"
        "from v2v_posenet.train import main\n"
        "real, calls = ops.gaussian_mse, []\n"
        "def loss(*arguments, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*arguments, **options)\n"
        "ops.gaussian_mse = loss\n"
        "main()\n"
    )
    run = tmp_path / "run"
    command = [sys.executable, "-c", program, *words(tree, run, "--workers", "2")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)["training"]
    assert (state["epoch"], state["batch"], state["step"]) == (0, 2, 2)
    run_tiny(tree, run, "--workers", "2", "--resume")
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "metrics.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_number_of_workers_changes_nothing(tree: Path, whole: Path, tmp_path: Path) -> None:
    run_tiny(tree, tmp_path / "run", "--workers", "0")
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == (whole / "checkpoints/last.pt").read_bytes()


@pytest.mark.parametrize(("variant", "rate", "share"), [("gaussian", "5e-3", 0.6), ("integral", "3e-2", 0.75)])
def test_loss_falls_on_one_batch(tree: Path, tmp_path: Path, variant: str, rate: str, share: float) -> None:
    """The same two samples in every step; the integral loss has a floor, the entropy of its trilinear targets."""
    still = ["--augment.rotate_deg", "0", "--augment.scale_min", "100", "--augment.scale_max", "100"]
    more = ["--variant", variant, "--optim.lr", rate, "--overfit_batch", "--epochs", "10", "--data.validation", "none"]
    run_tiny(tree, tmp_path / "run", *more, *still, "--augment.shift", "0", "--workers", "0", "--checkpoint_every", "0")
    curve = losses(tmp_path / "run")
    print(f"{variant}: loss {curve[0]:.4g} -> {curve[-1]:.4g} in {len(curve)} steps")
    assert len(curve) == 40
    assert np.mean(curve[-4:]) < share * curve[0]


class Spoiled:
    """Frames of which one has a label that is not a number."""

    def __init__(self, frames: FrameDataset, bad: str) -> None:
        self.frames, self.bad, self.skeleton = frames, bad, frames.skeleton

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        frame = self.frames[index]
        if frame.name != self.bad:
            return frame
        assert frame.joints_mm is not None
        joints = frame.joints_mm.copy()
        joints[3, 1] = np.nan
        return dataclasses.replace(frame, joints_mm=joints)

    def names(self) -> list[str]:
        return self.frames.names()

    def summary(self) -> str:
        return self.frames.summary()


@pytest.mark.parametrize("variant", ["gaussian", "integral"])
def test_a_label_that_is_not_a_number_stops_the_run(
    tree: Path, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open_frames
    monkeypatch.setattr(data_module, "open_frames", lambda options, split: Spoiled(real(options, split), "P1/5/000001"))
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"(loss|gradient) is not finite .*samples: .*P1/5/000001"):
        run_tiny(tree, run, "--variant", variant, "--workers", "0", "--data.validation", "none")
    assert list(run.glob("stopped_step*.json"))
    if (run / "checkpoints/last.pt").exists():
        weights = torch.load(run / "checkpoints/last.pt", weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())


def test_a_depth_that_is_not_a_number_is_named(tree: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "msra"
    shutil.copytree(tree, root)
    picture = root / "P0/5/000000_depth.bin"
    content = bytearray(picture.read_bytes())
    content[24:28] = np.float32(np.nan).tobytes()
    picture.write_bytes(content)
    with pytest.raises(DataError, match=r"P0/5/000000_depth\.bin: a depth is NaN"):
        run_tiny(root, tmp_path / "run", "--workers", "0")


def test_options_that_cannot_be(tree: Path, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(DataError, match=r"--model\.grid must be divisible by 8 and at least 16, got 20"):
        run_tiny(tree, tmp_path / "a", "--model.grid", "20")
    start = str(whole / "checkpoints/last.pt")
    with pytest.raises(DataError, match=r"21 joints and widths \[4, 4, 8, 8\]; this run has 21 and \[2, 2, 4, 4\]"):
        run_tiny(tree, tmp_path / "b", "--init_from", start, "--model.widths", "[2, 2, 4, 4]")


def test_init_from_starts_where_the_other_run_ended(tree: Path, whole: Path, tmp_path: Path) -> None:
    start = whole / "checkpoints/last.pt"
    run_tiny(
        tree, tmp_path / "run", "--init_from", str(start), "--optim.lr", "1e-12", "--epochs", "1", "--workers", "0"
    )
    ours, theirs = (
        torch.load(path, weights_only=True)["state_dict"] for path in (tmp_path / "run/checkpoints/last.pt", start)
    )
    weights = [name for name in ours if name.endswith(("conv.weight", "output.weight"))]
    assert len(weights) > 10
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-8) for name in weights)


# --- validation -------------------------------------------------------------------------------------------------------


def test_what_is_validated_on(tree: Path) -> None:
    options = DataOptions(root=str(tree), test_subject=2, val_limit=3)
    frames = open_frames(options, "train")
    rest, test = split_validation(options, frames)
    assert len(rest) == 8
    assert test is not None
    assert [name[:2] for name in test.names()] == ["P2"] * 3
    rest, none = split_validation(dataclasses.replace(options, validation="none"), frames)
    assert (len(rest), none) == (8, None)
    rest, held = split_validation(dataclasses.replace(options, validation="subject", val_subject=1), frames)
    assert held is not None
    assert {name[:2] for name in rest.names()} == {"P0"}
    assert {name[:2] for name in held.names()} == {"P1"}
    assert held.summary().startswith("3 of: 4 of: msra train: 8 frames")
    with pytest.raises(DataError, match="P2 is not one of several training subjects"):
        split_validation(dataclasses.replace(options, validation="subject", val_subject=2), frames)


def test_limited_frames_are_spread(tree: Path) -> None:
    frames = open_frames(DataOptions(root=str(tree), test_subject=2), "train")
    assert limited(frames, 0) is limited(frames, 8) is frames
    few = limited(frames, 3)
    assert isinstance(few, Subset)
    assert few.indices == [0, 4, 7]
    assert few[2].name == few.names()[2] == frames.names()[7]


# --- samples ----------------------------------------------------------------------------------------------------------


def samples(tree: Path, seed: int = 0, convention: str = "zero", **augment: float) -> VoxelSamples:
    frames = open_frames(DataOptions(root=str(tree), test_subject=2), "train")
    return VoxelSamples(
        frames,
        DATASETS["msra"],
        grid=88,
        convention=CONVENTIONS[convention],
        augment=AugmentOptions(**augment),
        seed=seed,
    )


def drawn(sample: dict[str, Any]) -> tuple[float, ...]:
    return (sample["scale"], sample["angle_rad"], *sample["shift"].tolist())


def test_augmentation_depends_on_seed_epoch_and_index_alone(tree: Path) -> None:
    first, again = samples(tree), samples(tree)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(8)]
    expected = {key: drawn(first[key]) for key in keys}
    assert {key: drawn(again[key]) for key in reversed(keys)} == expected
    assert len(set(expected.values())) == len(keys)
    assert drawn(samples(tree, seed=1)[(0, 0)]) != expected[0, 0]
    assert drawn(first[0]) == (1.0, 0.0, 4.0, 4.0, 4.0)  # a plain index is not augmented
    one, two = first[(1, 5)], again[(1, 5)]
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert drawn(one) == (*first.draw(sample_rng(0, 1, 5))[:2], *first.draw(sample_rng(0, 1, 5))[2].tolist())


@pytest.mark.parametrize("convention", ["port", "port-integral", "author"])
def test_augmentation_keeps_its_ranges(tree: Path, convention: str) -> None:
    data = samples(tree, convention=convention)
    draws = [data.draw(sample_rng(0, 0, i)) for i in range(2000)]
    scale, angle = np.array([d[0] for d in draws]), np.rad2deg([d[1] for d in draws])
    shift = np.stack([d[2] for d in draws])
    sizes = 100 / scale if convention == "port-integral" else 100 * scale
    assert 80 <= sizes.min() < 81
    assert 118.9 < sizes.max() < 120.0001
    assert -40 <= angle.min() < -39
    assert 39 < angle.max() < 40
    assert (shift.min(), shift.max()) == ((0, 8) if convention == "author" else pytest.approx((0, 8), abs=0.01))
    assert np.array_equal(shift, shift.round()) == (convention == "author")
    assert np.allclose(sizes, sizes.round()) == (convention == "author")


@pytest.mark.parametrize(
    ("options", "scale", "angle", "shift"),
    [
        ({"rotate_deg": 0.0, "scale_min": 100.0, "scale_max": 100.0, "shift": 0.0}, (1, 1), (0, 0), (4, 4)),
        ({"rotate_deg": 10.0, "scale_min": 90.0, "scale_max": 95.0, "shift": 0.5}, (0.9, 0.95), (-10, 10), (2, 6)),
    ],
)
def test_augmentation_options_do_what_they_say(
    tree: Path, options: dict[str, float], scale: Any, angle: Any, shift: Any
) -> None:
    data = samples(tree, **options)
    draws = [data.draw(sample_rng(0, 0, i)) for i in range(500)]
    for values, (low, high) in (
        (np.array([d[0] for d in draws]), scale),
        (np.rad2deg([d[1] for d in draws]), angle),
        (np.stack([d[2] for d in draws]), shift),
    ):
        assert low - 1e-9 <= values.min() <= low + 0.1 * (high - low) + 1e-9
        assert high - 0.1 * (high - low) - 1e-9 <= values.max() <= high + 1e-9


class OneFrame:
    """A data set of one frame that is already in memory."""

    skeleton = "msra"

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Frame:
        return self.frame

    def names(self) -> list[str]:
        return [self.frame.name]

    def summary(self) -> str:
        return "one frame"


SHARES = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)  # of a range, with its ends


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["msra", "icvl", "nyu", "itop-front"]),
    convention=st.sampled_from(sorted(CONVENTIONS)),
    size=SHARES,
    angle=SHARES,
    shifts=st.tuples(SHARES, SHARES, SHARES),
    background_in_cube=st.booleans(),
    aside=SHARES,
)
def test_cutting_to_the_cube_changes_no_voxel(
    seed: int,
    name: str,
    convention: str,
    size: float,
    angle: float,
    shifts: tuple[float, float, float],
    background_in_cube: bool,
    aside: float,
) -> None:
    """Dense random depths around the cube, any augmentation up to its ends, the background plane inside it and not."""
    rng, spec = np.random.default_rng(seed), DATASETS[name]
    f, far = (285.7, 3000.0) if name.startswith("itop") else (241.42, 380.0)
    far = spec.background_mm - 30.0 if background_in_cube and spec.background_mm else far
    K = np.array([[f, 0, 160.0], [0, f * 1.01, 120.0], [0, 0, 1]])
    center = np.array([(aside - 0.5) * far * 0.6, (rng.random() - 0.5) * far * 0.4, far])
    depth = center[2] + rng.uniform(-0.9, 0.9, (240, 320)) * spec.cube_mm
    depth = np.where(rng.random(depth.shape) < 0.2, 0, depth.clip(1)).astype(np.float32)
    left, top = rng.integers(0, 40, 2).tolist()  # the picture may be a crop already
    frame = Frame("f", (320, 240), K, "msra", depth_mm=depth[top:, left:], crop_xy=(left, top), center_mm=center)
    options = AugmentOptions()
    data = VoxelSamples(OneFrame(frame), spec, grid=88, convention=CONVENTIONS[convention], augment=options)
    percent = 80 + 40 * size
    scale = 100 / percent if data.convention.invert_scale else percent / 100
    shift = 8 * np.array(shifts)
    if convention == "author":
        scale, shift = np.floor(percent) / 100, np.round(shift)
    parameters = float(scale), float(np.deg2rad(-40 + 80 * angle)), shift
    data.draw = lambda rng: parameters  # type: ignore[method-assign]

    cut = data[(0, 0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "crop_to_cube", lambda depth, corner, *_: (depth, corner))
        uncut = data[(0, 0)]
    assert drawn(cut) == drawn(uncut) == (parameters[0], parameters[1], *shift.tolist())
    one, two = (grids(data.collate([sample]), data.convention, 88) for sample in (cut, uncut))
    assert two.sum() > 100
    assert torch.equal(one, two), f"{int((one != two).sum())} of {int(two.sum())} voxels differ"


def test_cutting_to_the_cube_cuts() -> None:
    """The property above would also hold for a function that cuts nothing."""
    depth = np.full((240, 320), 300.0, np.float32)
    K = np.array([[241.42, 0, 160.0], [0, 241.42, 120.0], [0, 0, 1]])
    part, corner = data_module.crop_to_cube(depth, (0, 0), K, np.array([0.0, 0, 400]), 100.0)
    assert part.shape == (167, 167)  # 2 * 100 / 300 * 241.42 = 161 pixels, and the slack
    assert corner == (77, 37)
    whole, corner = data_module.crop_to_cube(depth, (5, 6), K, np.array([0.0, 0, 90]), 100.0)
    assert whole is depth
    assert corner == (5, 6)


# --- evaluation -------------------------------------------------------------------------------------------------------


def eval_options(tree: Path, out: Path, *runs: Path, **changes: Any) -> EvalConfig:
    values: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 3, "data": EvalData(root=str(tree))}
    checkpoints = [str(run / "checkpoints/last.pt") for run in runs]
    return EvalConfig(checkpoints=checkpoints, out=str(out), **values | changes)


def test_evaluation_is_repeatable(tree: Path, whole: Path, tmp_path: Path) -> None:
    first = evaluate(eval_options(tree, tmp_path / "a", whole), "")
    again = evaluate(eval_options(tree, tmp_path / "b", whole, workers=2), "")
    assert first == again
    assert first["frames"] == 4  # the person left out in training, without saying so again
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"metrics.json", "test_res.txt", "result.txt", "test_s2_gt.txt", "report.html"} < set(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.report.write_report", lambda path, **_: path)


@pytest.mark.usefixtures("no_report")
def test_several_checkpoints_are_averaged(tree: Path, whole: Path, other: Path, tmp_path: Path) -> None:
    for name, runs in (("one", [whole]), ("two", [other]), ("both", [whole, other])):
        metrics = evaluate(eval_options(tree, tmp_path / name, *runs), "")
    one, two, both = (read_world(tmp_path / name / "test_res.txt", "msra") for name in ("one", "two", "both"))
    assert np.abs(one - two).max() > 1
    difference = np.abs(both - (one + two) / 2).max()
    print(f"ensemble against the mean of its members: max diff {difference:.3g} mm")
    assert difference < 1.1e-4  # four decimals in each file
    assert metrics["checkpoints"] == [str(run / "checkpoints/last.pt") for run in (whole, other)]


@pytest.mark.usefixtures("no_report")
def test_switches_of_the_evaluation(tree: Path, whole: Path, tmp_path: Path) -> None:
    plain = evaluate(eval_options(tree, tmp_path / "plain", whole), "")
    bare = evaluate(eval_options(tree, tmp_path / "bare", whole, baseline=False), "")
    assert "baseline_mean_pose_mm" in plain
    assert "baseline_mean_pose_mm" not in bare
    few = evaluate(eval_options(tree, tmp_path / "few", whole, data=EvalData(root=str(tree), limit=2)), "")
    assert (few["frames"], few["frames_in_split"]) == (2, 4)
    fit = evaluate(eval_options(tree, tmp_path / "fit", whole, split="train"), "")
    assert (fit["split"], fit["frames"]) == ("train", 8)
    assert (tmp_path / "fit/fit_res.txt").is_file()
    assert (tmp_path / "fit/train_s2_gt.txt").is_file()
    labels = evaluate(eval_options(tree, tmp_path / "gt", whole, data=EvalData(root=str(tree), centers="gt")), "")
    assert labels["protocol"].endswith("centre: labels")
    assert plain["protocol"].endswith("centre: file")
    fine = evaluate(eval_options(tree, tmp_path / "fine", whole, refine="softargmax"), "")
    assert fine["mean_error_mm"] != plain["mean_error_mm"]
    person = EvalData(root=str(tree), test_subject=0)
    assert evaluate(eval_options(tree, tmp_path / "p0", whole, data=person), "")["frames"] == 4
    assert (tmp_path / "p0/test_s0_gt.txt").is_file()


def test_checkpoints_that_do_not_fit(tree: Path, whole: Path, tmp_path: Path) -> None:
    def refused(message: str, *checkpoints: Path) -> None:
        options = eval_options(tree, tmp_path / "out")
        with pytest.raises(DataError, match=message):
            evaluate(dataclasses.replace(options, checkpoints=[str(path) for path in checkpoints]), "")
        assert not (tmp_path / "out").exists()

    refused("no checkpoint given -- name one")
    refused("none.pt", tmp_path / "none.pt")
    foreign = torch.load(whole / "checkpoints/last.pt", weights_only=True)
    torch.save({**foreign, "format": "handpose/handoccnet"}, tmp_path / "foreign.pt")
    refused("is a 'handpose/handoccnet' checkpoint, expected 'handpose/v2v_posenet'", tmp_path / "foreign.pt")
    refiner = CenterRefiner(CenterNet(1, 4), 250.0, "mean", "msra", 3, 50, 1)
    save_center_checkpoint(tmp_path / "center.pt", refiner)
    refused("is a 'handpose/v2v_posenet/center' checkpoint", tmp_path / "center.pt")
    torch.save({**foreign, "dataset": "icvl", "skeleton": "icvl"}, tmp_path / "icvl.pt")
    refused("checkpoint 1 has .*icvl.*an ensemble needs", whole / "checkpoints/last.pt", tmp_path / "icvl.pt")
