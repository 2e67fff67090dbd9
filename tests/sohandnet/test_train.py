"""The training program: schedules, labels, mixtures of batches, exact resuming, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import DataError, MissingFileError
from shared.options import parse
from shared.training import EpochBatches
from sohandnet.config import OptimOptions, Recipe, StageOptions, TrainConfig, bn_momentum, positional_labels, stairs
from sohandnet.convert import load_checkpoint, save_checkpoint
from sohandnet.labels import LabelledBatches, check_same_labels, label_record, labelled_flags
from sohandnet.model import SoHandNet
from sohandnet.train import freeze_untrained, lr_factor, make_optimizer, set_bn_momentum, stage_loss, train
from tests.sohandnet.common import GOLDEN, make_store
from tests.sohandnet.test_model import random_batch

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "sohandnet/configs/tiny.yaml")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"))


def tiny(store: Path, run: Path, stage: str, *more: str) -> Any:
    words = ["--config", TINY, "--data.store", str(store), "--run", str(run), "--stage", stage, *more]
    return parse(TrainConfig, prog="train", description="", argv=words)


def run_stage(store: Path, run: Path, stage: str, *more: str) -> dict[str, float]:
    parsed = tiny(store, run, stage, *more)
    return train(parsed.options, parsed.yaml)


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of the first two stages with half of the labels."""
    root = tmp_path_factory.mktemp("runs")
    run_stage(store, root / "a", "autoencoder", "--label-ratio", "0.5")
    found = {"autoencoder": str(root / "a/checkpoints/last.pt")}
    run_stage(store, root / "e", "estimator", "--label-ratio", "0.5", "--init", found["autoencoder"])
    return {**found, "estimator": str(root / "e/checkpoints/last.pt")}


# ------------------------------------------------------------------------------------------------- schedules


def test_learning_rates_are_the_originals() -> None:
    expected = json.loads((GOLDEN / "schedule.json").read_text())["lr_per_epoch"]
    stages = {
        "en_de": StageOptions(60, 12, 1e-3, 0.5, 10),
        "en_es": StageOptions(30, 40, 1e-5, 0.5, 5),
        "train_all": StageOptions(200, 18, 1e-5, 0.1, 30, 1e-7),
        "semi_en_de": StageOptions(30, 24, 1e-3, 0.5, 10),
        "semi_en_es": StageOptions(60, 24, 1e-5, 0.5, 10),
        "semi_train_all": StageOptions(40, 24, 1e-6, 0.1, 30, 1e-7),
    }
    worst = 0.0
    for name, stage in stages.items():
        for epoch, rate in enumerate(expected[name]):
            for step in (7 * epoch, 7 * epoch + 6):  # all steps of an epoch alike
                ours = stage.lr * lr_factor(OptimOptions(), stage, step, 7, len(expected[name]))
                worst = max(worst, abs(ours / rate - 1))
    # the twin script decays one epoch later: its first epoch counts twice
    twin = [1e-5, *(stairs(epoch, 1e-5, 0.1, 30) for epoch in range(69))]
    worst = max(worst, float(np.abs(np.array(twin) / expected["semi_train_all2"] - 1).max()))
    print(f"learning rates max relative diff {worst:.3g}")
    assert worst < 1e-9


def test_presets_are_the_originals_stages() -> None:
    for name, rates in (("paper", (1e-3, 1e-5, 1e-5)), ("paper-semi", (1e-3, 1e-5, 1e-6))):
        recipe = parse(Recipe, prog="x", description="", argv=["--config", f"sohandnet/configs/{name}.yaml"]).options
        assert (recipe.autoencoder.lr, recipe.estimator.lr, recipe.joint.lr) == rates
        assert not recipe.optim.decoupled
        assert recipe.optim.weight_decay == 5e-4
        assert recipe.augment.mode == "none"
    assert recipe.label_ratio == 0.25


def test_other_schedules() -> None:
    stage = StageOptions(4, 4, 1e-3)

    def factors(**options: Any) -> list[float]:
        return [lr_factor(OptimOptions(**options), stage, step, 5, 4) for step in range(20)]

    assert factors(schedule="constant") == [1.0] * 20
    assert factors(schedule="constant", warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = factors(schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)


def test_batch_norm_momentum() -> None:
    expected = json.loads((GOLDEN / "schedule.json").read_text())["bn_momentum_decay_step20_decay0.6"]
    np.testing.assert_allclose([bn_momentum(epoch, 20, 0.6) for epoch in range(len(expected))], expected, rtol=1e-12)
    assert bn_momentum(50, None) == 0.1
    network = SoHandNet(width=0.1)
    set_bn_momentum(network, OptimOptions(), 40)
    assert network.encoder.points[0].norm.momentum == 0.1  # type: ignore[union-attr]
    set_bn_momentum(network, OptimOptions(bn_decay_every=20), 40)
    assert network.encoder.points[0].norm.momentum == pytest.approx(0.036)  # type: ignore[union-attr]


def test_stage_options_are_the_defaults_of_a_run() -> None:
    options = TrainConfig(stage="estimator")
    assert (options.epochs, options.batch_size, options.lr) == (30, 40, 1e-5)
    assert TrainConfig(stage="joint", epochs=2, lr=1e-4).schedule.lr == 1e-4
    stage = Recipe(batch_size=6).of_stage("joint", run="x")
    assert (stage.batch_size, stage.epochs, stage.run) == (6, 45, "x")


def test_decoupled_decay_leaves_norms_and_biases_alone() -> None:
    network = SoHandNet(width=0.1, parts=("encoder",))
    groups = make_optimizer(OptimOptions(decoupled=True), network, 1e-3).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert [g["weight_decay"] for g in make_optimizer(OptimOptions(), network, 1e-3).param_groups] == [5e-4]


@pytest.mark.parametrize("variant", ["v2.1", "v3", "v4", "v5", "v6"])
def test_what_is_frozen_is_what_gets_no_gradient(variant: Any) -> None:
    torch.manual_seed(0)
    network = SoHandNet(estimator=variant, width=0.1, parts=("encoder", "estimator"))
    batch = {**random_batch(3), "labelled": torch.ones(3, dtype=torch.bool)}
    stage_loss(network, batch, "estimator", Recipe())[0].backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    frozen = freeze_untrained(network, "estimator")
    assert without == {name for name, p in network.named_parameters() if not p.requires_grad}
    assert bool(frozen) == (variant in ("v2.1", "v5"))


# ------------------------------------------------------------------------------------------------- labels


def test_positional_labels_are_the_originals() -> None:
    for key, places in json.loads((GOLDEN / "schedule.json").read_text())["labelled_positions"].items():
        count, batch, ratio = (float(part.split("=")[1]) for part in key.split(","))
        assert list(positional_labels(int(count), int(batch), ratio)) == places
        options = Recipe(label_rule="positional", label_ratio=ratio)
        flags = labelled_flags(options, [str(i) for i in range(int(count))], int(batch))
        assert np.flatnonzero(flags).tolist() == places


def test_the_list_is_drawn_by_its_seed() -> None:
    names = [f"s/{i}" for i in range(40)]
    first, again, other = (labelled_flags(Recipe(label_ratio=0.25, label_seed=s), names, 8) for s in (3, 3, 4))
    assert first.sum() == 10
    assert (first == again).all()
    assert not (first == other).all()
    assert labelled_flags(Recipe(), names, 8).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [("s/1\ns/99\n", "line 2 names 's/99'"), ("s/1\n\ns/1\n", "line 3 names 's/1' for the second"), ("\n", "lists no")],
)
def test_lists_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        labelled_flags(Recipe(labelled_list=str(path)), [f"s/{i}" for i in range(4)], 8)


def test_a_list_of_another_editor(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa/1\r\n\r\na/0 \r\n".encode())  # Windows: a mark at the start, carriage returns
    flags = labelled_flags(Recipe(labelled_list=str(path)), ["a/0", "a/1", "a/2"], 2)
    assert flags.tolist() == [True, True, False]


def test_a_damaged_record_of_labels() -> None:
    ours = label_record(np.array([True, False]), ["a", "b"])
    with pytest.raises(DataError, match="the labels of None of None training frames; this run has 1 of 2"):
        check_same_labels({"digest": "0"}, ours, "start.pt")


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such list"):
        labelled_flags(Recipe(labelled_list=str(tmp_path / "x")), ["a"], 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_ratio": 0.0}, "label_ratio"),
        ({"label_ratio": 0.5, "labelled_list": "x"}, "exclude"),
        ({"label_rule": "positional", "labelled_list": "x"}, "reads no list"),
        ({"epochs": -1}, "epochs"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Recipe(**options)
    with pytest.raises(DataError, match="decay_every"):
        StageOptions(decay_every=0)


class Names:
    """Samples that say who they are."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"key": key}


def dealt(batches: LabelledBatches, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    sampler = EpochBatches(len(batches), batches.batch_size, seed=batches.seed, epoch=epoch, rank=rank, world=world)
    return [[batches[key]["key"][1] for key in keys] for keys in sampler]


def flat(batches: list[list[int]]) -> list[int]:
    return [place for batch in batches for place in batch]


def test_mixed_batches_have_their_share_and_reach_every_frame() -> None:
    options = Recipe(label_ratio=0.25)
    flags = labelled_flags(options, [str(i) for i in range(52)], 8)
    batches = LabelledBatches(Names(), flags, "joint", options, batch_size=8)
    epochs = [dealt(batches, epoch) for epoch in (0, 1)]
    for epoch in epochs:
        assert [(len(batch), int(flags[batch].sum())) for batch in epoch] == [(8, 2)] * 7
        seen = Counter(place for batch in epoch for place in batch)
        assert set(seen) == set(range(52))
    assert epochs[0] != epochs[1]


def test_two_processes_share_both_kinds_of_frames() -> None:
    flags = np.arange(48) < 24
    batches = LabelledBatches(Names(), flags, "joint", Recipe(), batch_size=4, world=2)
    ranks = [dealt(batches, 0, rank, 2) for rank in (0, 1)]
    for mine, theirs in zip(*ranks, strict=True):
        assert int(flags[mine].sum()) == int(flags[theirs].sum()) == 2
        assert not set(mine) & set(theirs)


@pytest.mark.parametrize(("stage", "unlabelled"), [("estimator", "on"), ("joint", "off"), ("autoencoder", "off")])
def test_labelled_frames_alone(stage: Any, unlabelled: Any) -> None:
    flags = np.arange(40) % 2 == 0
    batches = LabelledBatches(Names(), flags, stage, Recipe(unlabelled=unlabelled), batch_size=8)
    places = [place for batch in dealt(batches, 0) for place in batch]
    assert sorted(places) == np.flatnonzero(flags).tolist()
    assert batches.batch_size == 4  # as many labelled frames a step as beside unlabelled ones


def test_the_autoencoder_sees_all_frames() -> None:
    flags = np.arange(16) < 4
    batches = LabelledBatches(Names(), flags, "autoencoder", Recipe(), batch_size=8)
    assert sorted(flat(dealt(batches, 3))) == list(range(16))


def test_a_last_batch_of_one_is_dropped_and_changes() -> None:
    batches = LabelledBatches(Names(), np.ones(17, np.bool_), "estimator", Recipe(), batch_size=8)
    assert len(batches) == 16
    left = [set(range(17)) - {p for batch in dealt(batches, epoch) for p in batch} for epoch in range(8)]
    assert all(len(one) == 1 for one in left)
    assert len(set().union(*left)) > 1
    assert len(LabelledBatches(Names(), np.ones(18, np.bool_), "estimator", Recipe(), batch_size=8)) == 18


def test_positional_batches_keep_the_order_and_drop_a_lonely_unlabelled_frame() -> None:
    options = Recipe(label_rule="positional", label_ratio=0.25)
    for count, expected in ((16, 16), (17, 16), (18, 18), (19, 18), (20, 20)):
        flags = labelled_flags(options, [str(i) for i in range(count)], 8)
        batches = LabelledBatches(Names(), flags, "joint", options, batch_size=8)
        assert batches.mixed
        assert flat(dealt(batches, 5)) == list(range(expected)), count


@pytest.mark.parametrize(
    ("flags", "stage", "batch", "message"),
    [
        (np.arange(40) < 4, "joint", 8, "0 labelled frame"),
        (np.arange(40) < 38, "joint", 8, "1 unlabelled frame"),
        (np.arange(40) < 4, "estimator", 8, "a step has 0"),
        (np.ones(1, np.bool_), "autoencoder", 8, "batch norm needs two"),
        (np.ones(8, np.bool_), "autoencoder", 1, "batch norm needs two"),
    ],
)
def test_steps_of_one_frame_are_refused(flags: Any, stage: Any, batch: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelledBatches(Names(), flags, stage, Recipe(), batch_size=batch)


def test_overfitting_repeats_the_first_batch() -> None:
    options = Recipe(overfit_batch=True)
    batches = LabelledBatches(Names(), np.ones(16, np.bool_), "joint", options, batch_size=4)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(4)]
    places = [batches[key]["key"][1] for key in keys]
    assert places[:4] == places[4:]


# ------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("stage", ["autoencoder", "joint"])
@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_a_run_that_was_stopped_continues_to_the_same_bytes(
    store: Path, trained: dict[str, str], tmp_path: Path, stage: str, ema: str
) -> None:
    more = ["--epochs", "2", "--label-ratio", "0.5", "--optim.ema", ema, "--augment.mode", "corrected"]
    init = ["--init", trained["estimator"], trained["autoencoder"]] if stage == "joint" else []
    whole = run_stage(store, tmp_path / "whole", stage, *more, *init)
    run_stage(store, tmp_path / "parts", stage, *more, *init, "--max-steps", "2")
    for steps in ("3", "5", "0"):  # 3 is the end of an epoch
        found = run_stage(store, tmp_path / "parts", stage, *more, "--resume", "--max-steps", steps)
    assert found == whole
    files = [(tmp_path / name / "checkpoints/last.pt").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    if ema != "0":
        content = torch.load(tmp_path / "whole/checkpoints/last.pt", weights_only=True)["state_dict"]
        name = "encoder.points.0.linear.weight"
        assert not torch.equal(content[name], content[f"raw.{name}"])
        assert torch.equal(load_checkpoint(tmp_path / "whole/checkpoints/last.pt").state_dict[name], content[name])


def test_the_run_folder_tells_the_labels(store: Path, trained: dict[str, str], tmp_path: Path) -> None:
    folder = Path(trained["autoencoder"]).parents[1]
    names = (folder / "labelled.txt").read_text().split()
    assert len(names) == 6
    record = load_checkpoint(trained["autoencoder"]).extra["labels"]
    assert (record["labelled"], record["frames"]) == (6, 12)
    more = ["--labelled-list", str(folder / "labelled.txt"), "--init", trained["autoencoder"]]
    results = run_stage(store, tmp_path / "run", "estimator", *more)  # the same labels, given as a list
    assert set(results) == {"error_mm"}
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").extra["labels"] == record


def test_validation_is_in_true_millimetres(store: Path, trained: dict[str, str], tmp_path: Path) -> None:
    from sohandnet.data import StoreSamples, collate
    from sohandnet.store import open_store
    from sohandnet.train import validation_errors

    network = load_checkpoint(trained["estimator"]).build()
    batch = collate([StoreSamples(open_store(store).split("test"))[i] for i in range(3)])
    with torch.inference_mode():
        found = validation_errors(network, batch, open_store(store).options)
        expected = (network(batch) - batch["gt_xyz"].transpose(1, 2)).norm(dim=2).mean(1) * 200
    torch.testing.assert_close(found["error_mm"].float(), expected, rtol=1e-5, atol=1e-3)
    inverted = open_store(make_store(tmp_path / "inverted", intrinsics="reference"))
    with torch.inference_mode():
        other = validation_errors(network, batch, inverted.options)
    torch.testing.assert_close(other["reference_mm"], expected, rtol=1e-5, atol=1e-3)
    assert float(other["error_mm"].mean()) > 1.2 * float(other["reference_mm"].mean())  # x was shrunk to 0.567


@pytest.mark.parametrize("step", ["own", "shared"])
def test_joint_stage_learns_on_one_batch(store: Path, tmp_path: Path, step: str) -> None:
    more = ["--label-ratio", "0.5", "--loss.unlabelled-step", step, "--overfit-batch", "--epochs", "12"]
    more += ["--batch-size", "8", "--lr", "0.003", "--data.val-limit", "-1", "--log-every", "1"]
    run_stage(store, tmp_path / "run", "joint", *more)
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[1:]]
    losses = [float(row[3]) for row in rows if row[2] == "train/pose"]
    assert len(losses) > 10
    assert losses[-1] < 0.5 * losses[0], losses


def test_two_ranks_train_on_both_kinds_of_frames(store: Path, tmp_path: Path) -> None:
    """Half of every batch on each of two ranks: the losses of one rank, where batch statistics take no part."""
    more = ["--label-ratio", "0.5", "--freeze-batchnorm", "--data.val-limit", "-1"]  # and an own unlabelled step
    run_stage(store, tmp_path / "1", "joint", *more, "--batch-size", "8")
    words = ["--config", TINY, "--data.store", str(store), "--stage", "joint", "--run", str(tmp_path / "2"), *more]
    command = [sys.executable, "-m", "sohandnet.train", *words, "--batch-size", "4", "--devices", "2"]
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=single, check=False)
    assert done.returncode == 0, done.stderr
    curves = []
    for ranks in ("1", "2"):
        rows = [line.split(",") for line in (tmp_path / ranks / "metrics.csv").read_text().splitlines()[1:]]
        curves.append({(row[0], row[2]): float(row[3]) for row in rows if row[2] in ("train/pose", "train/decoder")})
    one, two = curves
    assert len(one) == 4  # two steps, both losses
    worst = max(abs(two[key] / one[key] - 1) for key in one)
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert two == pytest.approx(one, rel=1e-4)


def test_a_last_batch_of_labelled_frames_alone(store: Path, tmp_path: Path) -> None:
    # 12 frames in batches of 8, 5 labelled: by the positional rule the last batch has 4 labelled frames and no other.
    more = ["--label-rule", "positional", "--label-ratio", "0.7", "--batch-size", "8", "--data.val-limit", "-1"]
    run_stage(store, tmp_path / "run", "joint", *more)
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[1:]]
    losses = [float(row[3]) for row in rows if row[2] == "train/loss"]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_point_dropout_takes_the_same_points_of_all_samples() -> None:
    torch.manual_seed(0)
    network = SoHandNet(width=0.1, parts=("encoder", "decoder"))
    seen: list[Any] = []
    network.encode = lambda batch: seen.append(batch) or SoHandNet.encode(network, batch)  # type: ignore
    batch = random_batch(2)
    recipe = Recipe()
    recipe.augment.keep_points = 0.3
    stage_loss(network, batch, "autoencoder", recipe)
    kept = seen[0]["pc"]
    assert 12 <= kept.shape[2] < 40
    where = [(batch["pc"][:, 0, None] == kept[:, 0, :, None]).nonzero()[:, 2].view(2, -1)]
    assert torch.equal(where[0][0], where[0][1])
    stage_loss(network, batch, "autoencoder", Recipe())
    assert seen[1]["pc"].shape[2] == 40


def test_bone_loss_is_added_where_it_is_asked_for() -> None:
    from sohandnet.losses import BONES

    torch.manual_seed(0)
    network = SoHandNet(width=0.1, parts=("encoder", "estimator")).eval()
    batch = {**random_batch(3), "labelled": torch.ones(3, dtype=torch.bool)}
    recipe = Recipe()
    recipe.loss.bone_weight = 2.0
    with torch.no_grad():
        plain, terms = stage_loss(network, batch, "estimator", recipe, BONES["icvl"])
    assert float(plain) == pytest.approx(float(terms["pose"]) + 2 * float(terms["bone"]))
    assert float(terms["bone"]) > 0


def test_unlabelled_frames_do_not_reach_the_pose_loss() -> None:
    torch.manual_seed(0)
    network = SoHandNet(width=0.1).eval()
    batch = {**random_batch(4), "labelled": torch.tensor([True, False, True, False])}

    def pose() -> float:
        with torch.no_grad():
            return float(stage_loss(network, batch, "joint", Recipe())[1]["pose"])

    first = pose()
    batch["gt_xyz"][1] = 1e6
    assert pose() == first
    batch["gt_xyz"][0] = 1e6
    assert pose() > 1e6


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("stage", "start", "more", "message"),
    [
        ("estimator", "autoencoder", ["--label-ratio", "0.75"], "6 of 12 training frames; this run has 9 of 12"),
        ("estimator", "autoencoder", ["--label-ratio", "0.5", "--label-seed", "8"], "another draw"),
        ("estimator", "autoencoder", ["--label-ratio", "0.5", "--model.node-centre", "avg"], "node_centre = center"),
        ("estimator", "autoencoder", ["--label-ratio", "0.5", "--model.width", "0.2"], "width = 0.1, this run has 0.2"),
        ("joint", "estimator", ["--label-ratio", "0.5"], "no --init checkpoint holds the decoder"),
        ("joint", "estimator", ["--label-ratio", "0.5", "--model.estimator", "v5"], "estimator = v2.1"),
        ("autoencoder", "estimator", ["--label-ratio", "0.5"], "holds the decoder"),
        ("estimator", "autoencoder", ["--resume"], "leave out --init"),
        ("joint", "estimator", ["--label-ratio", "0.5", "--precision", "16"], "unlabelled_step shared"),
    ],
)
def test_starts_that_are_refused(
    store: Path, trained: dict[str, str], tmp_path: Path, stage: str, start: str, more: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run_stage(store, tmp_path / "run", stage, "--init", trained[start], *more)
    assert not (tmp_path / "run/checkpoints").exists()


def test_other_intrinsics_are_refused(trained: dict[str, str], tmp_path: Path) -> None:
    other = make_store(tmp_path / "store", intrinsics="reference")
    with pytest.raises(DataError, match="true intrinsics, this store has reference"):
        run_stage(other, tmp_path / "run", "estimator", "--label-ratio", "0.5", "--init", trained["autoencoder"])


def test_a_checkpoint_without_labels_starts_any_run(store: Path, trained: dict[str, str], tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained["autoencoder"])
    checkpoint.extra = {}  # as of a converted one
    save_checkpoint(tmp_path / "start.pt", checkpoint)
    run_stage(store, tmp_path / "run", "estimator", "--init", str(tmp_path / "start.pt"), "--data.val-limit", "-1")
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").parts == ["encoder", "estimator"]


def test_a_skeleton_without_bones_is_refused(tmp_path: Path) -> None:
    root = make_store(tmp_path / "store")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["options"]["skeleton"] = "starfish"
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no bones are known for the skeleton 'starfish'"):
        run_stage(root, tmp_path / "run", "estimator", "--loss.bone-weight", "1")


def test_not_finite_samples_stop_the_run_and_are_named(tmp_path: Path) -> None:
    root = make_store(tmp_path / "store", train=8)
    clouds = np.lib.format.open_memmap(root / "train/cloud.npy", "r+")
    clouds[3, 4, 0] = np.nan
    del clouds
    for stage in ("autoencoder", "joint"):  # in the joint stage also in the step on the unlabelled frames
        with pytest.raises(DataError, match=r"not finite.*train/0003"):
            run_stage(root, tmp_path / stage, stage, "--label-ratio", "0.5", "--batch-size", "8")


def test_deterministic_mode(store: Path, tmp_path: Path) -> None:
    try:
        first = run_stage(store, tmp_path / "a", "joint", "--deterministic", "--label-ratio", "0.5")
        assert torch.are_deterministic_algorithms_enabled()
        assert first == run_stage(store, tmp_path / "b", "joint", "--deterministic", "--label-ratio", "0.5")
    finally:
        torch.use_deterministic_algorithms(False)


def test_bfloat16_trains(store: Path, tmp_path: Path) -> None:
    results = run_stage(store, tmp_path / "run", "joint", "--precision", "bf16", "--label-ratio", "0.5")
    assert np.isfinite(list(results.values())).all()
    state = load_checkpoint(tmp_path / "run/checkpoints/last.pt").state_dict
    assert all(value.dtype != torch.bfloat16 for value in state.values())
