"""A small training program for the tests of shared.training: 23 numbered samples, a net with dropout and batch norm.

``--kill N`` ends the process with SIGKILL inside step N, as a power cut would.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import exit_on_error
from shared.options import TrainOptions, parse
from shared.training import RunFolder, Task, fit, sample_rng


@dataclasses.dataclass
class Options(TrainOptions):
    """Options.

    Args:
        run: run folder
        resume: continue
        kill: step inside which to die; negative never
        interrupt: step inside which to send SIGINT; negative never
        nan: index of a sample with a NaN; negative none
        dropout: probability
        samples: size of the set
        seen: file prefix for the indices seen
    """

    run: str = "runs/tiny"
    resume: bool = False
    kill: int = -1
    interrupt: int = -1
    nan: int = -1
    dropout: float = 0.3
    samples: int = 23
    seen: str = ""


class Numbers:
    def __init__(self, count: int, seed: int, nan: int) -> None:
        self.count, self.seed, self.nan = count, seed, nan

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        noise = sample_rng(self.seed, epoch, index).normal(size=4)
        x = torch.linspace(0, 1, 4) * (index + 1) / self.count + 0.01 * torch.tensor(noise, dtype=torch.float32)
        if index == self.nan:
            x[0] = float("nan")
        return {"name": f"sample{index:02d}", "x": x, "y": torch.tensor([index / self.count])}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": [s["name"] for s in samples],
        "x": torch.stack([s["x"] for s in samples]),
        "y": torch.stack([s["y"] for s in samples]),
    }


def main() -> None:
    options = parse(Options, prog="tiny", description="tiny")
    o = options.options
    torch.manual_seed(o.seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(o.dropout), nn.Linear(8, 1))
    step = 0

    def loss(net: nn.Module, batch: dict[str, Any]) -> Any:
        nonlocal step
        if o.seen:
            with open(f"{o.seen}.{os.environ.get('LOCAL_RANK', '0')}", "a") as file:
                file.write("".join(f"{name}\n" for name in batch["name"]))
        if step == o.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == o.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        step += 1
        error = (net(batch["x"]) - batch["y"]).square().mean()
        return error, {"double": 2 * error}

    task = Task(
        model=model,
        train_set=Numbers(o.samples, o.seed, o.nan),
        val_set=Numbers(7, 99, -1),
        collate=collate,
        loss=loss,
        evaluate=lambda net, batch: {"error_mm": (net(batch["x"]) - batch["y"]).abs().flatten()},
        optimizer=lambda net: torch.optim.Adam(net.parameters(), 1e-2),
        scheduler=lambda optimizer, per_epoch: torch.optim.lr_scheduler.StepLR(optimizer, per_epoch, 0.5),
        payload=lambda net: {"format": "tiny", "state_dict": net.state_dict()},
        load=lambda net, payload: net.load_state_dict(payload["state_dict"]) and None,
    )
    run = RunFolder(Path(o.run))
    run.start(options.yaml, seed=o.seed, resume=o.resume)
    fit(task, o, run, resume=o.resume)


if __name__ == "__main__":
    exit_on_error(main)
