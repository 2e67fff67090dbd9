"""The three stages one after another: ``python -m sohandnet.pipeline --config FILE --data.store DIR``.

Autoencoder, estimator, joint; each starts from the last checkpoints of those before it. Run again after an
interruption: finished stages are skipped, the one that was under way is continued. At the end the joint networks are
evaluated.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from shared.errors import DataError, exit_on_error
from shared.options import parse
from sohandnet.config import STAGES, PipelineConfig, Stage, TrainConfig

START_FROM: dict[Stage, tuple[Stage, ...]] = {
    "autoencoder": (),
    "estimator": ("autoencoder",),
    "joint": ("estimator", "autoencoder"),
}
CONFIG, METRICS = "pipeline.yaml", "eval/metrics.json"


def as_yaml(options: Any) -> str:
    """Options as YAML that ``--config`` reads again."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(options), sort_keys=False)


def epochs_done(last: Path) -> int:
    """Finished epochs of a run, by its last checkpoint; 0 without one."""
    from shared.training import load_payload

    return int(load_payload(last)["training"]["epoch"]) if last.is_file() else 0


def stage_options(options: PipelineConfig, stage: Stage) -> TrainConfig:
    """The options of one stage's run in the pipeline's folder, from the first step on."""
    root = Path(options.run)
    start = [str(root / name / "checkpoints/last.pt") for name in START_FROM[stage]]
    return options.of_stage(stage, run=str(root / stage), init=start)


def check_same_options(options: PipelineConfig, path: Path) -> None:
    """Writes the options beside the runs, or refuses others than those the folder was started with.

    Raises:
        DataError: the first option that differs.
    """
    from shared.safe_io import atomic_write_text

    text = as_yaml(options)
    if not path.is_file():
        atomic_write_text(path, text)
        return
    before = path.read_text("utf-8").splitlines()
    for old, new in zip(before, text.splitlines(), strict=False):
        if old != new:
            raise DataError(
                f"this folder was started with '{old.strip()}', now it is '{new.strip()}'",
                path=path,
                remedy="continue with the same options, or choose another --run",
            )


def pipeline(options: PipelineConfig) -> dict[str, Any] | None:
    """Trains what is not trained yet and evaluates; returns ``metrics.json``'s content, None where that is off.

    Raises:
        DataError: other options than those the folder was started with; whatever the stages refuse.
    """
    from sohandnet.train import train

    root = Path(options.run)
    check_same_options(options, root / CONFIG)
    for stage in STAGES:
        config = stage_options(options, stage)
        last = Path(config.run) / "checkpoints/last.pt"
        if (done := epochs_done(last)) >= config.epochs:
            print(f"{stage}: finished, {done} epochs")
            continue
        print(f"{stage}: {f'continued after epoch {done}' if last.is_file() else 'from the start'}", flush=True)
        if last.is_file():
            config = dataclasses.replace(config, resume=True, init=[])
        train(config, as_yaml(config))
        if epochs_done(last) < config.epochs:
            raise DataError(
                f"the {stage} stage stopped after {epochs_done(last)} of {config.epochs} epochs",
                path=last,
                remedy="run the same command again to continue",
            )
    if not options.evaluate:
        return None
    from sohandnet.eval import evaluate
    from sohandnet.eval_config import EvalConfig

    checkpoint = str(root / "joint/checkpoints/last.pt")
    found = EvalConfig(checkpoints=[checkpoint], store=options.data.store, out=str(root / "eval"))
    return evaluate(dataclasses.replace(found, allow_missing=options.allow_missing, report=options.report))


def main() -> None:
    pipeline(
        parse(
            PipelineConfig,
            prog="python -m sohandnet.pipeline",
            description="Train the three stages of SO-HandNet and evaluate. Presets: sohandnet/configs/*.yaml.",
        ).options
    )


if __name__ == "__main__":
    exit_on_error(main)
