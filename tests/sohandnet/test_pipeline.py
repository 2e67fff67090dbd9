"""The three stages in a row, and the table over shares of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DataError
from shared.options import parse
from sohandnet import train as train_module
from sohandnet.ablation import ablation, combinations, folder_name, row_of, table_text
from sohandnet.config import AblationConfig, PipelineConfig, Recipe
from sohandnet.convert import load_checkpoint
from sohandnet.pipeline import pipeline
from tests.sohandnet.common import make_store

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "sohandnet/configs/tiny.yaml")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"))


def options(cls: Any, store: Path, run: Path, *more: str) -> Any:
    words = ["--config", TINY, "--data.store", str(store), "--run", str(run), *more]
    return parse(cls, prog="x", description="", argv=words).options


def test_stages_hand_their_checkpoints_on_and_are_not_repeated(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = options(PipelineConfig, store, run, "--label-ratio", "0.5", "--no-report")
    stopped = options(PipelineConfig, store, run, "--label-ratio", "0.5", "--no-report")
    real, calls = train_module.train, []

    def counted(stage_options: Any, text: str) -> Any:
        calls.append((stage_options.stage, stage_options.resume))
        if stage_options.stage == "estimator" and not stage_options.resume:
            stage_options.max_steps = 1  # interrupted in its first epoch
        return real(stage_options, text)

    monkeypatch.setattr(train_module, "train", counted)
    with pytest.raises(DataError, match=r"estimator stage stopped after 0 of 1 epochs.*run the same command again"):
        pipeline(stopped)
    metrics = pipeline(config)
    assert calls == [("autoencoder", False), ("estimator", False), ("estimator", True), ("joint", False)]
    assert metrics is not None
    assert metrics["frames"] == 5
    assert json.loads((run / "eval/metrics.json").read_text())["mean_error_mm"] == metrics["mean_error_mm"]
    assert load_checkpoint(run / "joint/checkpoints/last.pt").parts == ["encoder", "decoder", "estimator"]
    out = capsys.readouterr().out
    assert f"encoder: weights of {run}/estimator" in out
    assert f"decoder: weights of {run}/autoencoder" in out
    assert pipeline(config) == metrics  # evaluated again, trained nothing
    assert len(calls) == 4
    assert (run / "joint/config.yaml").read_text().count("unlabelled: 'on'") == 1


def test_other_options_are_refused(store: Path, tmp_path: Path) -> None:
    more = ["--no-evaluate", "--data.val-limit", "-1"]
    assert pipeline(options(PipelineConfig, store, tmp_path / "run", *more)) is None
    with pytest.raises(DataError, match=r"started with 'label_ratio: 1\.0', now it is 'label_ratio: 0\.5'"):
        pipeline(options(PipelineConfig, store, tmp_path / "run", *more, "--label-ratio", "0.5"))


@pytest.mark.parametrize("name", ["standin", "standin-semi", "tiny", "paper", "paper-semi"])
def test_presets_can_be_read(name: str) -> None:
    words = ["--config", str(ROOT / f"sohandnet/configs/{name}.yaml")]
    for cls in (Recipe, PipelineConfig, AblationConfig):
        parse(cls, prog="x", description="", argv=words)


def test_all_labels_need_one_row() -> None:
    found = combinations(AblationConfig())
    assert found == [*[(ratio, mode) for ratio in (0.25, 0.5, 0.75) for mode in ("on", "off")], (1.0, "on")]
    assert combinations(AblationConfig(modes=["off"], ratios=[0.5, 1.0])) == [(0.5, "off"), (1.0, "off")]
    assert folder_name(0.25, "off", 3) == "labels25-off-seed3"


def test_rows_have_mean_and_spread() -> None:
    runs = [
        {"mean_error_mm": error, "baseline_mean_pose_mm": 30.0, "frames": 7, "protocol": "boxes"}
        for error in (10.0, 12.0)
    ]
    row = row_of(0.5, "on", runs)
    assert row["mean_error_mm"] == 11.0
    assert row["spread_mm"] == pytest.approx(2**0.5)
    assert row_of(1.0, "on", runs[:1])["spread_mm"] is None
    assert row_of(1.0, "on", runs)["unlabelled"] == "none left"
    text = table_text([row, row_of(1.0, "on", runs[:1])], [0, 1])
    assert "50 %   on          11.00     1.41   10.00 12.00" in text
    assert "30.00 mm" in text


def test_the_ablation_runs_every_combination_once(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "ablation"
    more = ["--ratios", "0.5", "1.0", "--seeds", "0", "2", "--data.val-limit", "-1", "--no-report"]
    config = options(AblationConfig, store, run, *more[:-1])
    rows = ablation(config)
    assert [(row["labels"], row["unlabelled"], len(row["errors_mm"])) for row in rows] == [
        (0.5, "on", 2),
        (0.5, "off", 2),
        (1.0, "none left", 2),
    ]
    assert json.loads((run / "ablation.json").read_text())["rows"] == rows
    assert (run / "ablation.png").stat().st_size > 5000
    assert table_text(rows, [0, 2]) == (run / "ablation.txt").read_text()
    # equal labels in both modes: the same list, in the same number of steps
    lists = [(run / f"labels50-{mode}-seed2/joint/labelled.txt").read_text() for mode in ("on", "off")]
    assert lists[0] == lists[1]
    assert lists[0] != (run / "labels50-on-seed0/joint/labelled.txt").read_text()
    steps = {
        mode: load_checkpoint(run / f"labels50-{mode}-seed2/joint/checkpoints/last.pt").extra["step"]
        for mode in ("on", "off")
    }
    assert steps["on"] == steps["off"]
    capsys.readouterr()
    assert ablation(config) == rows
    assert capsys.readouterr().out.count("finished") == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ratios", "0.5", "0.5"], "--ratios must list different values"),
        (["--ratios", "0", "1"], "above 0"),
        (["--labelled-list", "x"], "draws its own"),
    ],
)
def test_ablations_that_are_refused(store: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ablation(options(AblationConfig, store, tmp_path / "run", *more))
