"""SO-HandNet's networks beside the original's way of computing them: a joint training step, inference, a step with v3.

    python -m benchmarks.bm_sohandnet_network [--threads 2] [--rounds 3] [--out FILE]

The baseline does the same arithmetic on the same weights as the original orders it, re-created from its description:
channels-first 1x1 convolutions, distances and centres through (B, 3, L, M) tensors that are masked and summed, node
features copied to all pairs whether or not the estimator reads them, the neighbour convolution on gathered neighbours,
v3's pair layer on all pairs, the decoder's 64 x 64 level and the Chamfer distance of the 32 x 32 level alone, an Adam
for each network. Its masked maximum and its nearest neighbours are this project's kernels, which is kinder than the
original's. The variants take turns within a round, so that another load of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.safe_io import atomic_write_text
from sohandnet.config import Recipe
from sohandnet.kernels import ops
from sohandnet.model import Decoder, Dense, SoHandNet, folded
from sohandnet.train import make_optimizer, stage_loss

Run = Callable[[], Tensor]


def clouds(batch: int, seed: int = 0) -> dict[str, Any]:
    """Random clouds of the published sizes, nodes among the points."""
    generator = torch.Generator().manual_seed(seed)
    pc = torch.randn(batch, 3, 1024, generator=generator).mul_(0.15)
    pc[:, 2] *= 0.3  # flat, like a hand
    node = pc[:, :, :64].clone()
    return {
        "pc": pc,
        "sn": F.normalize(torch.randn(batch, 3, 1024, generator=generator), dim=1),
        "node": node,
        "node_knn": ops.node_knn(node, 9),
        "gt_xyz": torch.rand(batch, 3, 16, generator=generator) - 0.5,
        "labelled": torch.ones(batch, dtype=torch.bool),
    }


# ------------------------------------------------------------------------------------- the original's way


def norm_relu(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    y = F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum or 0.1, norm.eps
    )
    return F.relu(y)


def pointwise(x: Tensor, layer: nn.Module) -> Tensor:
    """A 1x1 convolution (B, C, ...) with batch norm and ReLU where the layer has them."""
    assert isinstance(layer, Dense)
    weight = layer.linear.weight
    if x.dim() == 3:
        y = F.conv1d(x, weight[:, :, None], layer.linear.bias)
    else:
        y = F.conv2d(x, weight[:, :, None, None], layer.linear.bias)
    return y if layer.norm is None else norm_relu(y, layer.norm)


def plain_encoder(network: SoHandNet, batch: dict[str, Any]) -> dict[str, Tensor]:
    encoder, pc, node = network.encoder, batch["pc"], batch["node"]
    k, (size, _, points), nodes = encoder.pair_nodes, pc.shape, node.shape[2]
    distance = (pc[:, :, :, None] - node[:, :, None]).square().sum(1)  # (B, N, M)
    index = distance.topk(k, dim=2, largest=False).indices.transpose(1, 2).reshape(size, k * points)
    mask = F.one_hot(index, nodes).float()  # (B, L, M)
    copies = pc.repeat(1, 1, k)
    total = (copies[:, :, :, None] * mask[:, None]).sum(2)  # through (B, 3, L, M)
    mean = total / (mask.sum(1)[:, None] + 1e-5)
    centres = (mean[:, :, None] * mask[:, None]).sum(3)  # the same again
    x = torch.cat((copies - centres, batch["sn"].repeat(1, 1, k)), 1)
    low = pointwise(x, encoder.points[0])
    high = pointwise(pointwise(low, encoder.points[1]), encoder.points[2])
    first = pointwise(torch.cat((low, high), 1), encoder.points_out)  # (B, 384, L)
    with torch.no_grad():
        winner = ops.index_max(first.detach(), index, nodes)[1].long()
    pooled = first.gather(2, winner) * (mask.sum(1) > 0)[:, None]

    def neighbours_of(values: Tensor) -> Tensor:
        rows = batch["node_knn"].flatten(1)[:, None].expand(-1, values.shape[1], -1)
        return values.gather(2, rows).unflatten(2, (nodes, -1))  # (B, C, M, K)

    near = torch.cat((neighbours_of(mean) - mean[..., None], neighbours_of(pooled)), 1)
    knn = pointwise(pointwise(near, encoder.knn[0]), encoder.knn[1]).max(3).values
    final = pointwise(pointwise(torch.cat((mean, knn), 1), encoder.nodes[0]), encoder.nodes[1])
    to_pairs = index[:, None]
    on_pairs = [part.gather(2, to_pairs.expand(-1, part.shape[1], -1)) for part in (pooled, knn, final)]
    return {"pooled": pooled, "pairs": torch.cat(on_pairs, 1), "feature": final.max(2).values}


def plain_estimator(network: SoHandNet, features: dict[str, Tensor]) -> Tensor:
    rows = features["pooled"] if network.sizes["estimator"] == "v2.1" else features["pairs"]
    glob = features["feature"].detach()[:, :, None].expand(-1, -1, rows.shape[2])
    assert network.estimator.layer is not None
    return network.estimator.head(pointwise(torch.cat((rows, glob), 1), network.estimator.layer).mean(2))


def plain_decoder(decoder: Decoder, feature: Tensor) -> list[Tensor]:
    """The dense branch's points and the 16 x 16, 32 x 32 and 64 x 64 levels."""
    fc = decoder.dense(feature).unflatten(1, (3, -1))
    x, levels = feature[:, :, None, None], [fc]
    for level, up in enumerate(decoder.up):
        x = norm_relu(up.conv(F.interpolate(x, scale_factor=2, mode="nearest")), up.norm)  # type: ignore[arg-type]
        if level >= 3:
            head: Any = decoder.heads[level - 3]
            levels.append(pointwise(pointwise(x, head.hidden), head.out).flatten(2))
    return levels


def plain_losses(network: SoHandNet, batch: dict[str, Any]) -> Tensor:
    features = plain_encoder(network, batch)
    fc, coarse, fine, _ = plain_decoder(network.decoder, features["feature"])
    chamfer = [ops.chamfer_distance(x, batch["pc"]).total for x in (torch.cat((fc, fine), 2), coarse, fine)]
    pose = (plain_estimator(network, features) - batch["gt_xyz"].flatten(1)).square().mean()
    return chamfer[0] + chamfer[1] + 100 * pose  # the third is computed for the log


# ------------------------------------------------------------------------------------- variants


def original_step(network: SoHandNet, batch: dict[str, Any]) -> Run:
    network = copy.deepcopy(network).train().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parts = (network.encoder, network.decoder, network.estimator)
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-5, weight_decay=5e-4) for part in parts]

    def step() -> Tensor:
        loss = plain_losses(network, batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    return step


def our_step(network: SoHandNet, batch: dict[str, Any], half: bool = False) -> Run:
    ours = SoHandNet(**{**network.sizes, "finest": False}).train()
    own = ours.state_dict()
    ours.load_state_dict({name: value for name, value in network.state_dict().items() if name in own})
    options = Recipe()
    optimizer = make_optimizer(options.optim, ours, 1e-5)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = stage_loss(ours, batch, "joint", options)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def inference(network: SoHandNet, batch: dict[str, Any]) -> dict[str, Run]:
    plain = copy.deepcopy(network).eval()
    exact, half = folded(network), folded(network, torch.bfloat16)

    def original() -> Tensor:
        features = plain_encoder(plain, batch)
        plain_decoder(plain.decoder, features["feature"])
        return plain_estimator(plain, features).view(-1, 3, 16).transpose(1, 2)

    return {"original": original, "float32": lambda: exact(batch), "bfloat16": lambda: half(batch)}


def measure(variants: dict[str, Run], rounds: int, *, grad: bool) -> dict[str, dict[str, float]]:
    """Best and median milliseconds of each variant, times faster than the first, largest relative difference to it."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode(not grad):
        outputs = {name: run().float() for name, run in variants.items()}  # also the warm-up
        for _ in range(rounds):
            for name, run in variants.items():
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
    first = next(iter(variants))
    return {
        name: {
            "best_ms": min(taken),
            "median_ms": sorted(taken)[len(taken) // 2],
            "times_faster": sorted(times[first])[rounds // 2] / sorted(taken)[rounds // 2],
            "max_relative_difference": float((outputs[name] - outputs[first]).abs().max() / outputs[first].abs().max()),
        }
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_sohandnet_network", description="Times.")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the variants take turns")
    parser.add_argument("--batch", type=int, default=18, help="frames of the joint step, at least 2")
    parser.add_argument("--v3-batch", type=int, default=8, help="frames of the step with estimator v3, at least 2")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sohandnet_network.json"), help="file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    for title, estimator, batch in (("joint step", "v2.1", args.batch), ("joint step v3", "v3", args.v3_batch)):
        network, data = SoHandNet(estimator=estimator, finest=True), clouds(batch)  # type: ignore[arg-type]
        steps = {
            "original": original_step(network, data),
            "float32": our_step(network, data),
            "bfloat16": our_step(network, data, half=True),
        }
        results[f"{title}, batch {batch}"] = measure(steps, args.rounds, grad=True)
        if estimator == "v2.1":
            results["inference, batch 8"] = measure(inference(network, clouds(8)), 3 * args.rounds, grad=False)
    for title, rows in results.items():
        print(f"\n{title:32s} best ms  median ms   faster   max diff")
        for name, row in rows.items():
            numbers = f"{row['best_ms']:9.0f} {row['median_ms']:10.0f} {row['times_faster']:7.2f}x"
            print(f"  {name:29s} {numbers} {row['max_relative_difference']:10.2g}")
    about = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": args.threads,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "native_kernels": ops.KERNELS.native("cpu") is not None,
    }
    atomic_write_text(args.out, json.dumps({"about": about, **results}, indent=1) + "\n")
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
