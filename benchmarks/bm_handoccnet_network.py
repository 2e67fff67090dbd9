"""HandOccNet's network beside the original's way of computing it: forward passes and a training step, one run.

    python -m benchmarks.bm_handoccnet_network [--threads 2] [--rounds 5] [--out FILE]
    python -m benchmarks.bm_handoccnet_network --checkpoint FILE --data STANDIN_HO3D   (what bfloat16 changes)

"original's way": query, key and value each as a product, both (B, heads, N, N) maps of a FIT layer in memory,
contiguous float32, batch norms as layers, the 3x3 smoothing at full size and the one whose result nobody reads. It has
the same weights and gives the same numbers. The variants take turns within a round, so that another load of the machine
meets all of them; the table has the best and the median round, and processor time, which another load disturbs least
(where threads wait without spinning: OMP_WAIT_POLICY=PASSIVE).

Predicted before measuring, for two cores of a Zen 4 EPYC (AVX-512, bfloat16 products, no AMX): 36.2 GFLOP become 30.7,
and the attention maps (84 MB a sample, written and read) disappear: 1.5x at batch 1, 2x at batch 8 in float32.
bfloat16 doubles the products per cycle at most, where AMX gives eight times: 2.5x and 3.5x. A training step gains less
from the smaller smoothing and more from the maps that are not kept: 1.5x, in bfloat16 2.2x.
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
from torch import Tensor, nn
from torch.nn import functional as F

from handoccnet.attention import AttentionLayer
from handoccnet.backbone import Backbone
from handoccnet.convert import load_checkpoint
from handoccnet.inference import prepare
from handoccnet.losses import hand_losses
from handoccnet.model import HandOccNet
from shared.mano import load_mano
from shared.safe_io import atomic_write_text

Run = Callable[[], Tensor]
TABLES = {1: "batch 1", 8: "batch 8", 4: "training step, batch 4"}


class MapLayer(AttentionLayer):
    """The attention maps written out; the gate as a second map that is summed over its keys."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2).contiguous()

        def products(a: Tensor, b: Tensor) -> Tensor:
            return torch.matmul(a, b.transpose(2, 3)) * a.shape[-1] ** -0.5

        placed, keyed = query + self.query_embedding, key + self.key_embedding
        mixed = products(split(self.query(placed)), split(self.key(keyed))).softmax(-1) @ split(self.value(key))
        if self.gated:
            second = products(split(self.gate_query(placed)), split(self.gate_key(keyed)))
            mixed = mixed * torch.sigmoid(second.sum(-1, keepdim=True))
        x = mixed.transpose(1, 2).flatten(2)
        x = x if self.gated else query + x
        refined: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return refined


class WholeBackbone(Backbone):
    """Smoothing at full size before the averaging, and the smoothing of P3 that is thrown away."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.pyramid(image)[::-1]
        tops = [self.lateral[0](maps[0])]
        for lateral, x in zip(list(self.lateral)[1:], maps[1:], strict=True):
            side = lateral(x)
            tops.append(side + F.interpolate(tops[-1], size=side.shape[2:], mode="bilinear", align_corners=False))
        self.unused_smooth(tops[-2])
        features = F.avg_pool2d(self.smooth(tops[-1]), 2)
        summary = torch.cat((features.amax(1, keepdim=True), features.mean(1, keepdim=True)), 1)
        return features, torch.sigmoid(self.gate(summary))


def original_way(network: HandOccNet) -> HandOccNet:
    """A copy with the same weights that computes as the original does."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, AttentionLayer):
            module.__class__ = MapLayer
        elif isinstance(module, Backbone):
            module.__class__ = WholeBackbone
    return network


def trained_like() -> HandOccNet:
    """The published size with activations of ordinary size (fresh weights nearly vanish behind the backbone)."""
    torch.manual_seed(0)
    network = HandOccNet(load_mano("standin"))
    for name, value in network.state_dict().items():
        if value.ndim > 1 and not name.startswith("backbone") and "embedding" not in name:
            nn.init.normal_(value, std=(0.5 / value[0].numel()) ** 0.5)
        elif "gate" in name and value.ndim == 1 and not name.startswith("backbone"):
            value.zero_()
        if "gate_key.weight" in name:
            value.mul_(0.02)  # a thousand keys are summed: keeps the gate off its ends
    return network


def forward_variants(network: HandOccNet, image: Tensor) -> dict[str, Run]:
    base, plain = original_way(network).eval(), copy.deepcopy(network).eval()

    def run(model: nn.Module) -> Run:
        return lambda: model(image)["joints_mm"]

    variants = {"original's way": run(base), "HandOccNet in eval mode": run(plain)}
    for precision in ("float32", "bfloat16"):
        variants[f"prepare({precision})"] = run(prepare(network, precision=precision))  # type: ignore[arg-type]
        compiled = prepare(network, precision=precision, compile_network=True)  # type: ignore[arg-type]
        variants[f"prepare({precision}), compiled"] = run(compiled)
    return variants


def training_variants(network: HandOccNet, image: Tensor) -> dict[str, Run]:
    batch = len(image)
    target = network.hand.targets(0.3 * torch.randn(batch, 48), torch.randn(batch, 10))
    target["joints_img"] = torch.rand(batch, 21, 2)

    def variant(model: HandOccNet, layout: torch.memory_format, *, fused: bool = False, half: bool = False) -> Run:
        model = model.train().to(memory_format=layout)  # type: ignore[call-overload]
        x = image.contiguous(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=fused)  # the same weights for every round

        def step() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                pred = model(x)
            loss = torch.stack(list(hand_losses(pred, target).values())).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    return {
        "original's way": variant(original_way(network), torch.contiguous_format),
        "float32, channels last": variant(copy.deepcopy(network), torch.channels_last),
        "the same, fused Adam": variant(copy.deepcopy(network), torch.channels_last, fused=True),
        "the same, bfloat16 autocast": variant(copy.deepcopy(network), torch.channels_last, fused=True, half=True),
    }


def half_precision_on(checkpoint: Path, root: str) -> dict[str, float]:
    """What bfloat16 changes on trained weights: joints with the wrist subtracted, mm, over a HO-3D evaluation split."""
    from handoccnet.config import DataOptions
    from handoccnet.data import HandSamples, load_labels, open_mano

    saved = load_checkpoint(checkpoint)
    data = DataOptions(**{**saved.extra["data"], "root": root})
    right, left = open_mano(data)
    samples = HandSamples(load_labels(data, "test", right, left), size=int(saved.model["image_size"]))
    network = saved.build(right)
    models = {"float32": prepare(network, precision="float32"), "bfloat16": prepare(network, precision="bfloat16")}
    found: dict[str, list[Tensor]] = {"plain": [], **{name: [] for name in models}}
    with torch.inference_mode():
        for first in range(0, len(samples), 16):
            image = samples.collate([samples[i] for i in range(first, min(first + 16, len(samples)))])["image"]
            for name, model in {"plain": network, **models}.items():
                joints = model(image)["joints_mm"]
                found[name].append(joints - joints[:, :1])
    plain = torch.cat(found["plain"])
    rows: dict[str, float] = {"frames": float(len(plain))}
    for name in models:
        distance = (torch.cat(found[name]) - plain).norm(dim=-1)
        rows[f"{name}_mean_mm"], rows[f"{name}_max_mm"] = float(distance.mean()), float(distance.max())
    return rows


def measure(variants: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of wall time (best and median) and of processor time (best) per variant, and the largest difference of
    its output to the first one's, relative to the largest value."""
    outputs = {name: run() for name, run in variants.items()}  # also the warm-up
    reference = next(iter(outputs.values()))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - start_cpu))
    wall = {name: sorted(t[0] for t in values) for name, values in times.items()}
    cpu = {name: min(t[1] for t in values) for name, values in times.items()}
    first = next(iter(variants))
    return {
        name: {
            "best_ms": wall[name][0] * 1e3,
            "median_ms": wall[name][rounds // 2] * 1e3,
            "cpu_ms": cpu[name] * 1e3,
            "times_faster": wall[first][0] / wall[name][0],
            "times_faster_median": wall[first][rounds // 2] / wall[name][rounds // 2],
            "times_faster_cpu": cpu[first] / cpu[name],
            "max_relative_difference": float((outputs[name] - reference).abs().max() / reference.abs().max()),
        }
        for name in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bm_handoccnet_network", description="Times of HandOccNet."
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each forward pass; training runs half as many")
    parser.add_argument("--only", choices=list(TABLES.values()), help="one of the tables; the others in the file stay")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/handoccnet_network.json"))
    parser.add_argument("--checkpoint", type=Path, help="with --data: only state what bfloat16 changes on its weights")
    parser.add_argument("--data", default="data/standin/ho3d", help="root of the HO-3D tree for --checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if args.checkpoint is not None:
        results["bfloat16 on trained weights"] = half_precision_on(args.checkpoint, args.data)
        print(results["bfloat16 on trained weights"])
        atomic_write_text(args.out, json.dumps(results, indent=1) + "\n")
        return
    network = trained_like()
    for batch, title in TABLES.items():
        if args.only not in (None, title):
            continue
        load = os.getloadavg()[0]
        image = torch.rand(batch, 3, 256, 256, generator=torch.Generator().manual_seed(batch))
        if title.startswith("training"):
            rows = measure(training_variants(network, image), max(1, args.rounds // 2))
        else:
            with torch.inference_mode():
                rows = measure(forward_variants(network, image), args.rounds)
        print(f"\n{title:36s} best ms  median ms   CPU ms   faster  (median)    (CPU)  max diff")
        for name, row in rows.items():
            print(
                f"  {name:33s} {row['best_ms']:8.0f} {row['median_ms']:10.0f} {row['cpu_ms']:8.0f} "
                f"{row['times_faster']:7.2f}x {row['times_faster_median']:7.2f}x {row['times_faster_cpu']:7.2f}x "
                f"{row['max_relative_difference']:9.2g}"
            )
        about = {
            "machine": platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "bfloat16_products": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            "torch": torch.__version__,
            "threads": args.threads,
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
            "load_before": load,
            "load_after": os.getloadavg()[0],
        }
        results[title] = {"about": about, **rows}
        atomic_write_text(args.out, json.dumps(results, indent=1) + "\n")
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
