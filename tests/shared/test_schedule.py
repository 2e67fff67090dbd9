"""The learning rate over a run (shared/training.py), and that both methods' programs use it."""

from __future__ import annotations

import pytest
import torch

from handoccnet.config import OptimOptions as HandOptions
from handoccnet.train import lr_factor
from shared.training import schedule_factor
from v2v_posenet.config import OptimOptions as VoxelOptions
from v2v_posenet.train import make_schedule


def test_values() -> None:
    assert [schedule_factor("constant", step, total_steps=3) for step in range(5)] == [1.0] * 5
    rising = [schedule_factor("constant", step, total_steps=9, warmup_steps=4) for step in range(6)]
    assert rising == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = [schedule_factor("cosine", step, total_steps=6) for step in range(8)]
    root = 0.75**0.5
    assert cosine == pytest.approx([1, (1 + root) / 2, 0.75, 0.5, 0.25, (1 - root) / 2, 0, 0], abs=1e-15)
    both = [schedule_factor("cosine", step, total_steps=6, warmup_steps=2) for step in range(6)]
    assert both == pytest.approx([cosine[0] / 2, *cosine[1:6]], abs=1e-15)
    assert schedule_factor("cosine", 0, total_steps=0) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_programs_follow_it(schedule: str) -> None:
    expected = [schedule_factor(schedule, step, total_steps=12, warmup_steps=5) for step in range(14)]  # type: ignore[arg-type]
    hand = HandOptions(schedule=schedule, warmup_steps=5)  # type: ignore[arg-type]
    assert [lr_factor(hand, "ho3d", step, 4, 3) for step in range(14)] == expected
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make_schedule(VoxelOptions(schedule=schedule, warmup_steps=5), optimizer, 12)  # type: ignore[arg-type]
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == expected
