"""Training: terms and switches, the original's weighted numbers, exact resume, divergence, clear errors."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup_fitting.config import FitConfig, LossOptions, OptimOptions, TrainConfig
from selfsup_fitting.convert import checkpoint_of, load_checkpoint, load_reference, save_checkpoint
from selfsup_fitting.hand import load_hand
from selfsup_fitting.model import Estimator, Pred
from selfsup_fitting.prior_config import PriorConfig
from selfsup_fitting.priors import PoseVAE, save_prior
from selfsup_fitting.spheres import REFERENCE_LENGTHS_MM
from selfsup_fitting.train import Criterion, Divergence, check_options, lr_factor, main, nyu_errors, train
from shared.errors import DataError
from shared.options import parse
from shared.training import load_payload
from tests.selfsup_fitting.test_losses import golden
from tests.selfsup_fitting.test_model import FOLDER, named, write_reference
from tests.selfsup_fitting.trees import nyu_tree, prepared

CONFIGS = Path(__file__).parents[2] / "selfsup_fitting/configs"


def configured(name: str, *words: str) -> TrainConfig:
    return parse(
        TrainConfig, prog="x", description="x", argv=["--config", str(CONFIGS / f"{name}.yaml"), *words]
    ).options


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a VAE and an estimator to begin from."""
    folder = tmp_path_factory.mktemp("train")
    prepared(nyu_tree(folder / "nyu", 4), folder / "shards")
    torch.manual_seed(0)
    save_prior(folder / "vae.pt", PoseVAE())
    save_checkpoint(folder / "start.pt", checkpoint_of(Estimator(1, 64)))
    return folder


def selfsup(place: Path, run: Path, **changes: Any) -> TrainConfig:
    config = configured("tiny", "--mode", "self-supervised", "--data.root", str(place / "shards"))
    config = dataclasses.replace(config, run=str(run), vae=str(place / "vae.pt"), init=str(place / "start.pt"))
    return dataclasses.replace(config, **changes)


# --- terms ------------------------------------------------------------------------------------------------------------


class Answer(torch.nn.Module):
    """A network whose answer is given."""

    def __init__(self, pred: Pred) -> None:
        super().__init__()
        self.pred = pred

    def forward(self, images: Tensor) -> list[Pred]:
        assert len(images) == len(self.pred.heatmaps)
        return [self.pred]


@pytest.mark.parametrize("multiview", [True, False])
def test_weighted_terms_of_the_original(multiview: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``release`` gives every number of the original's criterion, with its quirks."""
    measured = golden("multitask") | golden("losses") | golden("camera_multiview")
    maps = [named("mt.synt_uv", (4, 41, 16, 16), -0.2, 0.9), named("mt.real_uv", (2, 3, 41, 16, 16), -0.2, 0.9)]
    spheres = [named("mt.synt_xyz", (4, 41, 3), -90, 90), measured["joints"]]
    heat = torch.cat([maps[0], maps[1].flatten(0, 1)])
    centers = torch.cat([spheres[0], spheres[1].flatten(0, 1)])
    pred = Pred(heat, heat, centers, torch.zeros(10, 8, 4, 4))
    target = SimpleNamespace(
        depth=torch.zeros(4, 64, 64),
        heatmaps=named("mt.target_uv", (4, 41, 16, 16), 0, 1),
        spheres_mm=named("mt.target_xyz", (4, 41, 4), -90, 90)[..., :3],
    )
    batch = {
        "synthetic": target,
        "depth_mm": measured["real_depth"],
        "T_canon_view": measured["camera_poses"],
        "epoch": 0,
        "iteration": 1499 if multiview else 1500,
    }
    vae = load_reference(write_reference(tmp_path, "pose_vae"), "vae")
    assert isinstance(vae, PoseVAE)
    noise = named("mt.eps", (6, 32), -2, 2)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    hand = dataclasses.replace(load_hand("standin"), sphere_radius_mm=measured["sphere_radius"].numpy())
    options = configured("release", "--augment.resize_share", "0")
    criterion = Criterion(options, hand, vae)
    criterion.lengths = torch.tensor(REFERENCE_LENGTHS_MM)
    _, terms = criterion(Answer(pred), batch)
    prefix = "mv_" if multiview else "sv_"
    for name, expected in golden("multitask").items():
        if not name.startswith(prefix):
            continue
        value = float(terms[name.removeprefix(prefix)])
        off = abs(value - float(expected)) / max(abs(float(expected)), 1e-9)
        print(f"{name}: {value:.6g}, max diff {off:.3g} relative")
        assert off <= 2e-4, name


SWITCHES = {
    "mv_projection": "mv_projection",
    "mv_consistency": "mv_consistency",
    "prior": "pose_prior",
    "collision": "collision",
    "bone_length": "bone_length",
    "temporal": "temporal_smooth",
    "synthesize": "synt_uv",
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_turns_its_term_off_and_on(place: Path, switch: str) -> None:
    from selfsup_fitting.data import CapturedSet, Collate, open_shards

    hand = load_hand("standin")
    found = {}
    for word in (f"--{switch.replace('_', '-')}", f"--no-{switch.replace('_', '-')}"):
        options = configured("tiny", "--mode", "self-supervised", word)
        shards = open_shards(str(place / "shards"), "train")
        data = CapturedSet(shards, batch_size=2, synthetic_images=2 if options.synthesize else 0)
        torch.manual_seed(0)
        criterion = Criterion(options, hand, PoseVAE().requires_grad_(False))
        batch = Collate(hand, options.synth)([data[(0, 0)], data[(0, 1)]])
        loss, found[word] = criterion(Estimator(1, 64), batch)
        assert bool(torch.isfinite(loss))
    on, off = found.values()
    assert SWITCHES[switch] in on
    assert SWITCHES[switch] not in off
    assert len(on) > len(off)


def test_x_and_y_of_shrunken_images_are_enlarged_again() -> None:
    options = configured("tiny", "--mode", "self-supervised", "--no-mv-projection", "--no-mv-consistency", "--no-prior",
                         "--no-collision", "--bone-length")  # fmt: skip
    criterion = Criterion(options, load_hand("standin"))
    spheres = torch.randn(2, 41, 3) * 40
    pred = Pred(torch.zeros(2, 41, 16, 16), torch.zeros(2, 41, 16, 16), spheres, torch.zeros(2, 8, 4, 4))
    factors = torch.tensor([[0.8, 0.9], [0.75, 0.85]])
    shrunk = pred._replace(spheres_mm=torch.cat([spheres[..., :2] * factors[:, None], spheres[..., 2:]], -1))
    batch = {
        "depth_mm": torch.full((1, 2, 64, 64), 100.0),
        "T_canon_view": torch.eye(4).expand(1, 2, 4, 4),
        "iteration": 0,
    }
    whole = criterion.captured_terms(pred, batch, torch.ones(2, 2), 0, {})
    again = criterion.captured_terms(shrunk, batch, factors, 0, {})
    torch.testing.assert_close(whole["bone_length"], again["bone_length"])


# --- schedules, errors of the metric ----------------------------------------------------------------------------------


def test_learning_rates() -> None:
    step = OptimOptions(schedule="step")
    assert [lr_factor(step, s, 10, 75) for s in (0, 249, 250, 499, 500, 749)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert lr_factor(step, 179, 10, 20) == pytest.approx(0.01)
    assert lr_factor(step, 180, 10, 20) == pytest.approx(0.001)  # 20 epochs in steps of 6: there is a fourth stair
    assert lr_factor(step, 5, 10, 2) == 1  # fewer than three epochs: the first step is one epoch long
    cosine = OptimOptions(schedule="cosine", warmup_steps=4)
    assert lr_factor(cosine, 0, 10, 2) == pytest.approx(0.25)
    assert lr_factor(cosine, 20, 10, 2) == pytest.approx(0.0, abs=1e-9)
    assert lr_factor(OptimOptions(schedule="constant"), 999, 10, 2) == 1


def test_metric_of_the_original() -> None:
    with np.load(FOLDER / "metric.npz") as file:
        errors = nyu_errors(torch.from_numpy(file["est"]), torch.from_numpy(file["gt"]))
        off = abs(float(errors.mean()) - float(file["mean_error_14"]))
    print(f"mean error of 14 joints: max diff {off:.3g}")
    assert off < 1e-4


# --- divergence -------------------------------------------------------------------------------------------------------


def test_divergence_is_noticed() -> None:
    watch = Divergence(3.0, steps=10)
    for loss in [100.0] * 20 + [60.0] * 50:
        watch(loss)
    growing = iter([300.0] * 100)
    with pytest.raises(DataError, match=r"diverges: the loss is .* times its lowest -- lower --optim\.lr"):
        all(watch(loss) is None for loss in growing)
    assert next(growing) == 300.0  # it did not take all of them


def test_a_resumed_run_remembers_the_lowest_loss(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["step,epoch,name,value", *(f"{10 * i},0,train/loss,{100 if i < 30 else 50}" for i in range(1, 61))]
    (tmp_path / "metrics.csv").write_text("\n".join([*lines, "900,0,train/loss,1", "20,0,val/error_mm,1"]) + "\n")
    watch = Divergence(3.0)
    watch.recall(tmp_path / "metrics.csv", 600)
    assert watch.lowest == 50
    for _ in range(99):
        watch(160.0)  # the running mean begins anew
    with pytest.raises(DataError, match=r"diverges: the loss is 160 .*, 3\.2 times its lowest"):
        watch(160.0)
    short = Divergence(3.0)
    short.recall(tmp_path / "metrics.csv", 50)  # five lines say too little
    short.recall(tmp_path / "none.csv", 50)
    assert short.lowest == float("inf")

    recalled: list[int] = []
    monkeypatch.setattr(Divergence, "recall", lambda self, path, step: recalled.append(step) or path.read_text())
    options = dataclasses.replace(configured("tiny", "--data.val_limit", "-1"), run=str(tmp_path / "run"), max_steps=2)
    train(options, "")
    train(dataclasses.replace(options, resume=True, max_steps=4), "")
    assert recalled == [2]


def test_a_spike_and_a_switched_off_watch_are_no_divergence() -> None:
    watch = Divergence(3.0, steps=50)
    for loss in [100.0] * 60 + [1000.0] + [100.0] * 60:
        watch(loss)
    silent = Divergence(0.0, steps=5)
    for loss in [1.0] * 20 + [1e9] * 20:
        silent(loss)


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_synthetic_run_needs_no_data(tmp_path: Path) -> None:
    results = train(dataclasses.replace(configured("tiny"), run=str(tmp_path / "run")), "")
    assert 0 < results["error_mm"] < 300
    checkpoint = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert checkpoint.extra["mode"] == "synthetic"
    log = (tmp_path / "run/metrics.csv").read_text()
    assert "train/synt_uv" in log
    assert "val/error_mm" in log


def test_selfsupervised_run(place: Path, tmp_path: Path) -> None:
    results = train(selfsup(place, tmp_path / "run"), "")
    assert set(results) == {"error_mm", "error_view1_mm", "error_view2_mm", "error_view3_mm", "projection"}
    log = (tmp_path / "run/metrics.csv").read_text()
    for name in ("synt_uv", "synt_d", "uv_hm_mean", "mv_projection", "mv_consistency", "pose_prior", "collision",
                 "bone_length", "domain", "projection_view1", "projection_view3"):  # fmt: skip
        assert f"train/{name}," in log, name
    assert len(list((tmp_path / "run/images").glob("*.png"))) == 2  # one a validation
    best = load_payload(tmp_path / "run/checkpoints/best.pt")
    rows = [row.split(",") for row in log.splitlines() if ",val/projection," in row]
    lowest = min(rows, key=lambda row: float(row[3]))
    assert best["epoch"] == int(lowest[1]) + 1  # chosen without labels


@pytest.mark.parametrize("mode", ["synthetic", "self-supervised"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_run_has_the_same_bytes(place: Path, tmp_path: Path, mode: str, stop: int) -> None:
    options = selfsup(place, tmp_path / "whole")
    if mode == "synthetic":
        options = dataclasses.replace(configured("tiny"), run=str(tmp_path / "whole"), synth=options.synth)
    options = dataclasses.replace(options, data=dataclasses.replace(options.data, val_limit=-1))
    train(options, "")
    part = dataclasses.replace(options, run=str(tmp_path / "part"))
    train(dataclasses.replace(part, max_steps=stop), "")
    train(dataclasses.replace(part, resume=True, init=""), "")
    first, second = (Path(o.run) / "checkpoints/last.pt" for o in (options, part))
    assert first.read_bytes() == second.read_bytes()
    assert (Path(options.run) / "metrics.csv").read_text() == (Path(part.run) / "metrics.csv").read_text()


def test_temporal_run(place: Path, tmp_path: Path) -> None:
    train(selfsup(place, tmp_path / "run", temporal=True, synthesize=False), "")
    log = (tmp_path / "run/metrics.csv").read_text()
    assert "train/temporal_smooth" in log
    assert "synt_uv" not in log  # and the original crashed here (README, Q9)


@pytest.mark.slow
def test_a_few_hundred_steps_halve_the_heatmap_loss(tmp_path: Path) -> None:
    options = configured("tiny", "--batch_size", "16", "--synth.epoch_images", "4800", "--epochs", "1",
                         "--optim.lr", "2e-3", "--checkpoint_every", "0")  # fmt: skip
    train(dataclasses.replace(options, run=str(tmp_path / "run")), "")
    rows = [r.split(",") for r in (tmp_path / "run/metrics.csv").read_text().splitlines() if ",train/synt_uv," in r]
    values = [float(row[3]) for row in rows]
    print(f"synt_uv: {values[0]:.1f} -> {np.mean(values[-20:]):.1f}")
    assert np.mean(values[-20:]) < 0.5 * values[0]


def test_one_batch_can_be_learnt(tmp_path: Path) -> None:
    options = configured("tiny", "--batch_size", "4", "--synth.epoch_images", "4", "--epochs", "30",
                         "--overfit_batch", "--optim.lr", "3e-3", "--data.val_limit", "-1")  # fmt: skip
    train(dataclasses.replace(options, run=str(tmp_path / "run")), "")
    rows = [r.split(",") for r in (tmp_path / "run/metrics.csv").read_text().splitlines() if ",train/loss," in r]
    assert float(rows[-1][3]) < 0.7 * float(rows[0][3])


def test_starts_from_the_given_weights(place: Path, tmp_path: Path) -> None:
    options = selfsup(place, tmp_path / "run", optim=OptimOptions(lr=0.0, weight_decay=0.0), max_steps=1)
    train(options, "")
    start, end = load_checkpoint(place / "start.pt"), load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    for key, value in start.state_dict.items():
        assert torch.equal(value, end.state_dict[key]), key


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "synthetic", "--no-synthesize"], "nothing to train on"),
        (["--mode", "self-supervised"], "--prior needs a pose VAE"),
        (["--mode", "self-supervised", "--no-mv-projection", "--no-mv-consistency", "--no-prior", "--no-collision",
          "--no-bone-length"], "every term off"),
        (["--resume", "--init", "x.pt"], "--resume continues with the run's own weights"),
        (["--synth.images", "0"], r"--synth\.images must be at least 1, got 0"),
        (["--augment.resize_share", "-1"], r"--augment\.resize_share must be 0 to 1"),
        (["--optim.lr", "-1"], r"--optim\.lr must be at least 0, got -1"),
        (["--optim.lr", ".nan"], r"--optim\.lr must be at least 0, got nan"),
        (["--optim.weight_decay", "-1"], r"--optim\.weight_decay must be at least 0"),
        (["--optim.warmup_steps", "-1"], r"--optim\.warmup_steps must be at least 0"),
        (["--data.val_limit", "-2"], r"--data\.val_limit must be at least -1"),
        (["--data.train_limit", "-1"], r"--data\.train_limit must be at least 0"),
        (["--mode", "self-supervised", "--temporal", "--no-prior", "--devices", "2"], "--temporal needs the frames"),
    ],
)  # fmt: skip
def test_options_that_contradict(words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_options(configured("tiny", *words))


def test_no_frames_are_given(place: Path, tmp_path: Path) -> None:
    options = selfsup(place, tmp_path / "run")
    with pytest.raises(DataError, match="no captured frames are given"):
        train(dataclasses.replace(options, data=dataclasses.replace(options.data, root="")), "")


def test_single_view_where_three_are_asked(place: Path, tmp_path: Path) -> None:
    folder = prepared(place / "nyu", tmp_path / "single", views=[1])
    options = selfsup(place, tmp_path / "run")
    single = dataclasses.replace(options.data, root=str(folder))
    with pytest.raises(DataError, match="has 1 view"):
        train(dataclasses.replace(options, data=single), "")
    train(dataclasses.replace(options, data=single, mv_consistency=False, max_steps=1), "")


def test_weights_of_another_size(place: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "large.pt", checkpoint_of(Estimator(2, 64)))
    with pytest.raises(DataError, match=r"--model\.stacks and --model\.channels"):
        train(selfsup(place, tmp_path / "run", init=str(tmp_path / "large.pt")), "")


def test_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", str(CONFIGS / "tiny.yaml"), "--run", str(tmp_path / "run"), "--max_steps", "1"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert "6 synthetic images an epoch" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["standin_synthetic", "standin_selfsup", "synthetic", "release", "author_log", "tiny"])
def test_presets_can_be_read(name: str) -> None:
    configured(name)


def test_the_defaults_are_the_authors_log() -> None:
    preset, default = configured("author_log"), TrainConfig(mode="self-supervised", workers=4)
    assert preset == default
    assert preset.loss == LossOptions()
    assert {lr_factor(preset.optim, step, 100, preset.epochs) for step in range(100 * preset.epochs)} == {1.0}


def test_stacks_do_not_lengthen_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = configured("tiny", "--model.stacks", "2", "--max_steps", "1", "--data.val_limit", "-1")
    train(dataclasses.replace(options, run=str(tmp_path / "run")), "")
    assert "6 synthetic images an epoch" in capsys.readouterr().out


def test_labels_choose_nothing_in_either_stage(place: Path, tmp_path: Path) -> None:
    options = configured("tiny", "--data.root", str(place / "shards"), "--epochs", "3", "--optim.lr", "3e-3")
    train(dataclasses.replace(options, run=str(tmp_path / "run")), "")
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()]
    values = {row[1]: float(row[3]) for row in rows if row[2] == "val/projection"}
    best = load_payload(tmp_path / "run/checkpoints/best.pt")
    assert best["epoch"] == int(min(values, key=lambda epoch: values[epoch])) + 1
    last = load_payload(tmp_path / "run/checkpoints/last.pt")
    assert last["training"]["best"] == min(values.values())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (LossOptions, [f.name for f in dataclasses.fields(LossOptions) if isinstance(f.default, float)]),
        (FitConfig, ["steps", "lr", "starts"]),
        (PriorConfig, ["epochs", "samples", "eval_samples", "threads", "scale_range", "batch_size", "input_noise"]),
    ],
)
def test_help_gives_the_units_of_numbers(options: type, names: list[str]) -> None:
    entries = re.split(r"\n {8}(?=\w+:)", (options.__doc__ or "").split("Args:")[1])
    helped = {entry.strip().split(":")[0]: entry.strip() for entry in entries}
    assert not [name for name in names if not helped[name].endswith("]")]


def test_lengths_of_the_original() -> None:
    options = configured("tiny", "--loss.lengths", "nyu_reference")
    assert Criterion(options, load_hand("standin")).lengths.tolist() == pytest.approx(REFERENCE_LENGTHS_MM)
    assert Criterion(configured("tiny"), load_hand("standin")).lengths.tolist() != pytest.approx(REFERENCE_LENGTHS_MM)


@pytest.mark.parametrize(("center", "warned"), [("mean", True), ("palm", False), (None, False)])
def test_a_vae_of_other_centres_is_announced(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], center: str | None, warned: bool
) -> None:
    save_prior(tmp_path / "vae.pt", PoseVAE(), center=center)
    train(selfsup(place, tmp_path / "run", vae=str(tmp_path / "vae.pt"), max_steps=1), "")
    assert ("knows hands around their mean vertex" in capsys.readouterr().out) == warned


def test_position_loss_has_a_weight_of_its_own() -> None:
    spheres, maps = torch.zeros(2, 41, 3), torch.zeros(2, 41, 16, 16)
    target = SimpleNamespace(heatmaps=maps, spheres_mm=spheres + torch.tensor([3.0, 4.0, 0.0]))
    pred = Pred(maps, maps, spheres, torch.zeros(2, 8, 4, 4))
    hand = load_hand("standin")
    assert "synt_xy" not in Criterion(configured("author_log"), hand).synthetic_terms(pred, target)
    ours = Criterion(configured("standin_synthetic"), hand).synthetic_terms(pred, target)
    assert float(ours["synt_xy"]) == pytest.approx(0.1 * 12.5)
    assert float(ours["synt_d"]) == 0.0
