"""hand3d_wild's network with its decoder beside the original's way: forward passes and a training step, in one run.

    python -m benchmarks.bm_wild_network [--threads 2] [--rounds 5] [--batch 8] [--out FILE]

"original's way": contiguous float32, batch norms as layers, and the decoder that copies its bases once per sample (see
bm_wild_decoder). Same weights, same numbers; the variants take turns within a round.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bm_wild_decoder import OriginalWay, Run, measure, save, table
from hand3d_wild.model import WildNet, folded
from shared.mano import load_mano

BASE = "original's way"


class OriginalNet(WildNet):
    """Contiguous memory all the way, like a first port."""

    def features(self, image: Tensor) -> Tensor:
        x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x


def original_way(network: WildNet) -> tuple[OriginalNet, OriginalWay]:
    """A copy with the same weights in contiguous memory, and the slow decoder."""
    twin = copy.deepcopy(network)
    twin.__class__ = OriginalNet
    assert isinstance(twin, OriginalNet)
    return twin.to(memory_format=torch.contiguous_format), OriginalWay(load_mano("standin"))  # type: ignore[call-overload]


def steps(network: WildNet, image: Tensor) -> dict[str, Run]:
    """Training steps with Adam on joints in pixels; a rate of 0 keeps the weights the same for every round."""
    twin, decode = original_way(network)
    target = 128 + 40 * torch.randn(len(image), 799, 2)

    def step(model: WildNet, pixels: Callable[[], Tensor], fused: bool) -> Run:
        model.train()
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.0, fused=fused)

        def run() -> Tensor:
            loss = (pixels() - target).abs().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return run

    def ours(model: WildNet, half: bool) -> Callable[[], Tensor]:
        def pixels() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                hand = model(image)
            return torch.cat((hand.joints_2d, hand.verts_2d), 1)

        return pixels

    plain, half = copy.deepcopy(network), copy.deepcopy(network)
    return {
        BASE: step(twin, lambda: decode(twin.encode(image))[0], False),
        "channels last, own decoder, fused Adam": step(plain, ours(plain, False), True),
        "the same, bfloat16 autocast": step(half, ours(half, True), True),
    }


def forwards(network: WildNet, image: Tensor) -> dict[str, Run]:
    """Forward passes in evaluation mode; prints how far each is from the original's way."""
    network = copy.deepcopy(network).eval()
    twin, decode = original_way(network)
    quick = folded(network)

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return quick(image).verts_2d

    runs: dict[str, Callable[[], Tensor]] = {
        BASE: lambda: decode(twin.encode(image))[0][:, 21:],
        "channels last, own decoder": lambda: network(image).verts_2d,
        "the same, norms folded": lambda: quick(image).verts_2d,
        "the same, bfloat16 autocast": half,
    }
    expected = runs[BASE]()
    for name, run in runs.items():
        print(f"{name}: vertices differ by at most {float((run() - expected).abs().max()):.2g} px")
    return dict(runs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_wild_network", description="Times of the network.")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each variant")
    parser.add_argument("--batch", type=int, default=8, help="pictures per call")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/wild_network.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = WildNet(load_mano("standin"))
    torch.nn.init.normal_(network.fc.weight, std=1e-2)
    results = {}
    for batch in (1, args.batch):
        image = torch.rand(batch, 3, 256, 256)
        with torch.inference_mode():
            results[f"forward, batch {batch}"] = measure(forwards(network, image), args.rounds, BASE)
    image = torch.rand(args.batch, 3, 256, 256)
    results[f"training step, batch {args.batch}"] = measure(steps(network, image), args.rounds, BASE)
    for title, rows in results.items():
        table(title, rows)
    save(args.out, args.threads, results)


if __name__ == "__main__":
    main()
