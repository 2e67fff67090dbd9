"""The whole synthetic sample of training by fitting: images a second, against the original's way on the same draws.

The baseline skins the triangle soup bone by bone with dense broadcasts, draws the whole 640 x 640 picture in C++ (see
bm_selfsup_render), clamps and reduces it with torch, and makes noise and targets with plain torch, as the original
does; drawing poses one by one in Python, 0.4 ms each there, is left out of it. Ours is everything:
``synth.synthetic_batch``. Images are compared before anything is timed. Writes
``benchmarks/results/selfsup_synth.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bm_selfsup_render import baseline_raster, compile_baseline, cpu_name
from selfsup_fitting.hand import Hand, load_hand
from selfsup_fitting.kernels import ops
from selfsup_fitting.kinematics import forward_kinematics, hand_tensors, pose_spheres
from selfsup_fitting.synth import Draws, draw, pixel_draws, synthesize, synthetic_batch
from shared.safe_io import atomic_write_text

RESULT = Path(__file__).parent / "results" / "selfsup_synth.json"


class Baseline:
    """The original's way, for a hand."""

    def __init__(self, hand: Hand, rasterize: Any) -> None:
        faces = hand_tensors(hand).faces[:, [1, 0, 2]].flatten()
        verts = torch.from_numpy(hand.verts_mm).float()[faces]
        self.soup = torch.nn.functional.pad(verts, (0, 1), value=1.0)  # (3 F, 4): every face has its own corners
        self.weights = torch.from_numpy(hand.weights).float()[faces]
        self.hand, self.rasterize = hand, rasterize

    def __call__(self, draws: Draws, noise: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        transforms = forward_kinematics(draws.pose, self.hand, draws.scale)
        verts = torch.zeros(len(draws.pose), len(self.soup), 4)
        for bone in range(transforms.shape[1]):
            moved = (transforms[:, bone, None] @ self.soup[..., None])[..., 0]
            verts = verts + moved * self.weights[:, bone, None]
        zoom = draws.zoom[:, None] * 640 / 300
        corners = torch.stack([320 - verts[..., 0] * zoom, 320 + verts[..., 1] * zoom, verts[..., 2]], dim=-1)
        depth = baseline_raster(self.rasterize, corners.view(len(corners), -1, 3, 3).contiguous()) * 0.01
        if noise:
            batch = torch.arange(len(depth))[:, None, None]
            y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
            shift_x, shift_y = ((torch.randn(depth.shape) * 0.5).round().long() for _ in range(2))
            depth = depth[batch, (y + shift_y).clamp(0, 63), (x + shift_x).clamp(0, 63)]
            depth = torch.where(depth < 1, depth + 0.05 * torch.randn(depth.shape), depth)
        spheres = pose_spheres(transforms, self.hand)
        u, v = (8 + spheres[..., k] * draws.zoom[:, None] * 16 / 300 for k in (0, 1))
        cells = torch.arange(16.0)
        squares = (cells - u[..., None, None]) ** 2 + (cells[:, None] - v[..., None, None]) ** 2
        targets = torch.stack([(u - 8) * 300 / 16, (v - 8) * 300 / 16, spheres[..., 2]], dim=-1)
        return depth, torch.exp(-0.5 * squares), targets


def per_second(calls: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, float]:
    """Images a second, by the median wall time of calls in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: images / float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--batch", type=int, default=128, help="images a batch")
    parser.add_argument("--rounds", type=int, default=7, help="timed repetitions of everything")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hand, indices = load_hand("standin"), range(options.batch)
    draws = draw(0, 0, indices)
    with tempfile.TemporaryDirectory() as folder:
        baseline = Baseline(hand, compile_baseline(Path(folder)))
        ours, theirs = synthesize(draws, hand), baseline(draws, noise=False)
        share = float(((ours.depth - theirs[0]).abs() > 1e-4).float().mean())
        others = max(float((a - b).abs().max()) for a, b in zip(ours[1:], theirs[1:], strict=True))
        print(f"images differ by more than 0.01 mm in {share:.2g} of the pixels, targets max diff {others:.3g}")
        assert share < 1e-3, "the images differ"
        assert others < 1e-3, "the targets differ"
        normal, epochs = pixel_draws(0, 0, indices), itertools.count(1)
        rates = per_second(
            {
                "baseline, given draws": lambda: baseline(draws),
                # another epoch in every call: poses of one that was seen would come from a cache
                "ours, everything": lambda: synthetic_batch(hand, 0, next(epochs), indices),
                "ours, given draws": lambda: synthesize(draws, hand, noise=normal),
            },
            options.batch,
            options.rounds,
        )
    for name, value in rates.items():
        print(f"{name:24} {value:10.0f} images a second")
    ratio = rates["ours, everything"] / rates["baseline, given draws"]
    print(f"whole sample {ratio:.1f} times faster")
    result = {
        "images_per_second": {name: round(value) for name, value in rates.items()},
        "times_faster": round(ratio, 1),
        "threads": options.threads,
        "batch": options.batch,
        "clock": "median wall time, in turns",
        "kernels": "native" if ops.KERNELS.native("cpu") else "torch reference",
        "machine": cpu_name(),
        "torch": torch.__version__,
    }
    atomic_write_text(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
