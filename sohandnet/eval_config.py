"""Options of the evaluation; apart from it, because jsonargparse resolves what ``sohandnet.eval`` imports for types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class EvalConfig:
    """What is evaluated and where the results go.

    Args:
        checkpoints: one or several checkpoints with encoder and estimator (several: their joints are averaged)
        store: folder that python -m sohandnet.prepare wrote
        split: test, or train
        out: folder of the results; empty means eval/ in the run's folder, or beside the checkpoint
        data: folder of the ICVL data set, for pictures on depth images; without it they show the stored points
        node_centre: evaluate with another node centre than the checkpoint's (for published weights, which do not say)
        precision: of the dense layers: float32 or bfloat16
        device: cpu, cuda, or auto
        batch_size: frames per network call [frames]
        workers: loader processes [processes]
        limit: this many frames, evenly spread; 0 means all [frames]
        baseline: compare with the mean pose of the training split
        allow_missing: score a split of which preparation skipped frames; metrics.json says how many
        report: write the HTML page with pictures
    """

    checkpoints: list[str] = field(default_factory=list)
    store: str = ""
    split: Literal["test", "train"] = "test"
    out: str = ""
    data: str = ""
    node_centre: Literal["center", "avg"] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 32
    workers: int = 0
    limit: int = 0
    baseline: bool = True
    allow_missing: bool = False
    report: bool = True
