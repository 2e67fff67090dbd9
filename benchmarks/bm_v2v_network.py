"""The V2V-PoseNet network beside plain float32 torch: a forward pass and a training step, one run, paper size.

    python -m benchmarks.bm_v2v_network [--threads 2] [--rounds 5] [--out benchmarks/results/v2v_network.json]

The variants take turns within a round, so that another load of the machine meets all of them; the table has the best
and the median round. "plain" is what one writes first: float32, contiguous memory, every layer on its own, the dense
7^3 convolution, and in training the mean squared error to a stored target volume.

Predicted before measuring, for two cores of a Zen 4 EPYC (AVX-512 with bfloat16 products, no AMX): bfloat16 doubles
the multiply-adds per cycle at most, and the convolutions are 80 % of the plain pass; removing the passes of batch norm,
ReLU and the 88^3 stem was expected to give the rest, 3 x forward and 2 x for training in all.
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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.safe_io import atomic_write_text
from v2v_posenet.inference import fold_batch_norms, prepare
from v2v_posenet.kernels import ops
from v2v_posenet.model import V2VPoseNet

CHANNELS_LAST = torch.channels_last_3d


def hand_like_grid(batch: int) -> Tensor:
    """(B, 1, 88, 88, 88): a rough palm and five fingers seen by a depth camera; a real frame has about 3,300 voxels."""
    x, y = torch.meshgrid(torch.arange(88.0), torch.arange(88.0), indexing="ij")
    hand = ((x - 44) / 19) ** 2 + ((y - 26) / 17) ** 2 < 1
    for i in range(5):
        hand |= ((x - 16 - 14 * i).abs() < 4) & (y > 30) & (y < 66 + 6 * min(i, 4 - i))
    z = 44 + 8 * torch.sin(x / 9) + 6 * torch.cos(y / 7) + (x - 44) / 6
    grid = torch.zeros(batch, 1, 88, 88, 88)
    for back in (0, 1):  # slopes fill two voxels here and there
        part = hand & ((x + y) % 3 < 3 - 2 * back)
        grid[:, 0, x[part].long(), y[part].long(), z[part].long() + back] = 1
    return grid


def trained_like(joints: int) -> V2VPoseNet:
    """Weights with the activations of a trained network (fresh ones nearly vanish), batch norms not neutral."""
    torch.manual_seed(0)
    network = V2VPoseNet(joints)
    for name, value in network.state_dict().items():
        if name.endswith("norm.weight") or "running_var" in name:
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.ndim > 1:
            nn.init.normal_(value, std=(1 / value[0].numel()) ** 0.5)
    return network


def forward_variants(network: V2VPoseNet, grid: Tensor) -> dict[str, Callable[[], Tensor]]:
    plain = copy.deepcopy(network).eval()
    plain.stem.mode = "dense"
    sparse = copy.deepcopy(network).eval()
    last = copy.deepcopy(plain).to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    folded = fold_batch_norms(network).to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    folded.stem.mode = "dense"
    half = copy.deepcopy(folded).bfloat16()
    grid_last = grid.contiguous(memory_format=CHANNELS_LAST)
    exact, fast = prepare(network, precision="float32"), prepare(network, precision="bfloat16")
    return {
        "plain float32": lambda: plain(grid),
        "sparse stem": lambda: sparse(grid),
        "channels last": lambda: last(grid_last),
        "channels last, folded": lambda: folded(grid_last),
        "channels last, folded, bfloat16": lambda: half(grid_last.bfloat16()).float(),
        "prepare(float32)": lambda: exact(grid),
        "prepare(bfloat16)": lambda: fast(grid),
    }


def training_variants(network: V2VPoseNet, grid: Tensor) -> dict[str, Callable[[], Tensor]]:
    cells = torch.rand(len(grid), network.joints, 3) * 40
    target = ops.gaussian_heatmaps(cells)

    def variant(sparse: bool, last: bool, half: bool, fused: bool) -> Callable[[], Tensor]:
        model = copy.deepcopy(network).train()
        model.stem.mode = "sparse" if sparse else "dense"
        batch = grid
        if last:
            model, batch = model.to(memory_format=CHANNELS_LAST), grid.contiguous(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]

        def step() -> Tensor:
            model.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                pred = model(batch)
            loss = ops.gaussian_mse(pred, cells) if fused else F.mse_loss(pred.float(), target)
            loss.backward()
            return loss.detach()

        return step

    return {
        "plain float32": variant(False, False, False, False),
        "sparse stem": variant(True, False, False, False),
        "channels last, bfloat16": variant(False, True, True, False),
        "channels last, bfloat16, sparse stem, fused loss": variant(True, True, True, True),
    }


def measure(variants: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of wall time (best and median) and of processor time (best) per variant, and its largest difference to
    the first one, relative to the largest value."""
    outputs = {name: run() for name, run in variants.items()}  # also the warm-up
    reference = next(iter(outputs.values()))
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    base = min(next(iter(wall.values())))
    base_cpu = min(next(iter(cpu.values())))
    return {
        name: {
            "best_s": min(wall[name]),
            "median_s": sorted(wall[name])[rounds // 2],
            "cpu_s": min(cpu[name]),
            "times_faster": base / min(wall[name]),
            "times_faster_cpu": base_cpu / min(cpu[name]),
            "max_relative_difference": float((outputs[name] - reference).abs().max() / reference.abs().max()),
        }
        for name in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_v2v_network", description="Times of the network.")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the forward pass; training runs two fifths")
    parser.add_argument("--batch", type=int, default=1, help="samples in the forward pass; training has one more")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/v2v_network.json"), help="file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network, grid = trained_like(21), hand_like_grid(args.batch)
    load = os.getloadavg()[0]
    print(f"{int(grid[0].sum())} occupied voxels, {args.threads} threads, load of the machine {load:.2f}")
    with torch.inference_mode():
        forward = measure(forward_variants(network, grid), args.rounds)
    training = measure(training_variants(network, hand_like_grid(args.batch + 1)), max(2, args.rounds * 2 // 5))
    results = {"forward": forward, "training step": training}
    for title, rows in results.items():
        print(f"\n{title:50s} best ms  median ms  CPU ms   faster  faster (CPU)  max diff")
        for name, row in rows.items():
            print(
                f"  {name:48s} {row['best_s'] * 1e3:7.0f} {row['median_s'] * 1e3:10.0f} {row['cpu_s'] * 1e3:7.0f} "
                f"{row['times_faster']:7.2f}x {row['times_faster_cpu']:11.2f}x {row['max_relative_difference']:10.2g}"
            )
    about = {
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": args.threads,
        "batch": args.batch,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "native_kernels": ops.KERNELS.native("cpu") is not None,
    }
    atomic_write_text(args.out, json.dumps({"about": about, **results}, indent=1) + "\n")
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
