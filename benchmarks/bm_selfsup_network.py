"""The hourglass beside the original's way of computing it: forward passes and a training step, one run.

    python -m benchmarks.bm_selfsup_network [--threads 2] [--rounds 5] [--out FILE]

"original's way": ReLU into new memory, contiguous float32, an optimiser that loops over the tensors, and coordinates
from products with whole grids (N, 41, 16, 16). It has the same weights and gives the same numbers. The variants take
turns within a round, so that another load of the machine meets all of them; the table has the best and the
median round.

Predicted before measuring: the convolutions are 70 to 75 percent of a step and the same in all variants: at most 1.3x
in float32; bfloat16 products (AVX-512 with bf16) up to 1.7x where the channels are many.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup_fitting import model as model_module
from selfsup_fitting.model import CELLS, CUBE_MM, Estimator
from shared.safe_io import atomic_write_text

Run = Callable[[], Tensor]


def plain_relu(x: Tensor) -> Tensor:
    return F.relu(x)


def grid_spheres(heatmaps: Tensor, depths: Tensor) -> Tensor:
    """Coordinates by products with whole coordinate grids."""
    cells = torch.arange(CELLS, dtype=heatmaps.dtype)
    v, u = torch.meshgrid(cells, cells, indexing="ij")
    share = (20 * heatmaps.flatten(-2)).softmax(-1).view_as(heatmaps)
    x, y = (share * u).sum((-2, -1)), (share * v).sum((-2, -1))
    positive = F.relu(heatmaps)
    weight = positive / (positive.sum((-2, -1), keepdim=True) + 1e-5)
    z = (depths * weight).sum((-2, -1)) * 100
    step = CUBE_MM / CELLS
    return torch.stack([(x - CELLS / 2) * step, (y - CELLS / 2) * step, z], -1)


def variants(channels: int, batch: int, training: bool) -> dict[str, Run]:
    """Name -> a step or a forward pass that returns a number to compare."""
    torch.manual_seed(0)
    network = Estimator(channels=channels)
    image = torch.rand(batch, 64, 64)

    def make(ours: bool, half: bool = False, layout: torch.memory_format = torch.contiguous_format) -> Run:
        net = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(net.parameters(), lr=0.0, fused=ours, foreach=False if not ours else None)

        def step() -> Tensor:
            originals = model_module.relu, model_module.recover_spheres
            if not ours:
                model_module.relu, model_module.recover_spheres = plain_relu, grid_spheres
            try:
                with torch.set_grad_enabled(training):
                    with torch.autocast("cpu", torch.bfloat16, enabled=half):
                        pred = net(image)[-1]
                    loss = pred.heatmaps.square().mean() + 1e-3 * pred.spheres_mm.square().mean()
                    if training:
                        loss.backward()
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
            finally:
                model_module.relu, model_module.recover_spheres = originals
            result: Tensor = loss.detach()
            return result

        return step

    return {
        "original's way": make(False),
        "ours, float32": make(True),
        "the same, channels last": make(True, layout=torch.channels_last),
        "the same, bfloat16": make(True, half=True),
    }


def measure(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, best and median of the rounds, and the relative difference to the first variant."""
    outputs = {name: float(run()) for name, run in runs.items()}  # also the warm-up
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    first = next(iter(runs))
    return {
        name: {
            "best_ms": min(values) * 1e3,
            "median_ms": sorted(values)[rounds // 2] * 1e3,
            "times_faster": min(times[first]) / min(values),
            "relative_difference": abs(outputs[name] - outputs[first]) / abs(outputs[first]),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bm_selfsup_network", description="Times of the sphere estimator."
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each variant")
    parser.add_argument("--batch", type=int, default=24, help="images a step")
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[64, 256], help="widths: the stand-in's, the published"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/selfsup_network.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    for channels in args.channels:
        for training in (False, True):
            title = f"{channels} channels, batch {args.batch}, {'training step' if training else 'forward'}"
            load = os.getloadavg()[0]
            rows = measure(variants(channels, args.batch, training), args.rounds)
            print(f"\n{title:44s} best ms  median ms   faster  difference")
            for name, row in rows.items():
                print(
                    f"  {name:42s} {row['best_ms']:7.1f} {row['median_ms']:10.1f} {row['times_faster']:7.2f}x "
                    f"{row['relative_difference']:10.2g}"
                )
            about = {
                "machine": platform.machine(),
                "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                "torch": torch.__version__,
                "threads": args.threads,
                "load_before": load,
                "load_after": os.getloadavg()[0],
            }
            results[title] = {"about": about, **rows}
            atomic_write_text(args.out, json.dumps(results, indent=1) + "\n")
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
