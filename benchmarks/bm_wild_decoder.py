"""hand3d_wild's decoder beside the original's way, smplx's way and the project's general MANO layer, in one run.

    python -m benchmarks.bm_wild_decoder [--threads 2] [--rounds 40] [--batch 64] [--out FILE]

"original's way": every basis copied once per sample, the chain joint by joint, Rodrigues separately for pose features
and chain, the second rotation applied to 799 points. "smplx's way": shared bases in einsum form, the chain joint by
joint with 4x4 matrices, homogeneous points, then the same second rotation and camera. All give the same numbers; they
take turns within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hand3d_wild.decoder import Decoder, Params
from shared.mano import ORDERS, PARENTS, TIPS, ManoLayer, ManoModel, load_mano, rotvec_to_rotmat
from shared.safe_io import atomic_write_text

Run = Callable[[], object]


def measure(variants: Mapping[str, Run], rounds: int, baseline: str) -> dict[str, dict[str, float]]:
    """Best and median milliseconds of each variant, run by turns, and how many times faster than ``baseline``."""
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    rows = {name: {"best_ms": min(t), "median_ms": sorted(t)[len(t) // 2]} for name, t in times.items()}
    for row in rows.values():
        row["times_faster"] = rows[baseline]["median_ms"] / row["median_ms"]
    return rows


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Prints what :func:`measure` found."""
    print(f"\n{title:44s} best ms  median ms   faster")
    for name, row in rows.items():
        print(f"  {name:41s} {row['best_ms']:8.2f} {row['median_ms']:10.2f} {row['times_faster']:7.2f}x")


def save(out: Path, threads: int, results: Mapping[str, Any]) -> None:
    """Writes the tables with what they were measured on."""
    about = {"torch": torch.__version__, "threads": threads, "load": os.getloadavg()[0]}
    atomic_write_text(out, json.dumps({"about": about, **results}, indent=1) + "\n")
    print(f"\n{out}")


class OriginalWay:
    """The published decoder's steps on constants that are copied for every sample."""

    def __init__(self, mano: ManoModel) -> None:
        def constant(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float32)

        self.template = constant(mano.v_template.reshape(1, -1))
        self.shapes = constant(mano.shapedirs.reshape(2334, 10).T.copy())
        self.poses = constant(mano.posedirs)
        self.regressor = constant(mano.J_regressor.T.copy())
        self.weights = constant(mano.weights)
        self.components = constant(mano.hands_components[:6])
        self.mean = constant(mano.hands_mean)

    def __call__(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        n = len(vector)
        params = Params.split(vector)
        shaped = torch.bmm(params.betas[:, None], self.shapes.repeat(n, 1, 1)) + self.template.repeat(n, 1, 1)
        shaped = shaped.view(n, 778, 3)
        rest = torch.bmm(shaped.transpose(1, 2), self.regressor.repeat(n, 1, 1)).transpose(1, 2)
        components = self.components.repeat(n, 1, 1)
        angles = self.mean.repeat(n, 1) + torch.bmm(params.pose[:, None], components)[:, 0]
        features = rotvec_to_rotmat(angles.view(n, 15, 3)) - torch.eye(3).repeat(n, 15, 1, 1)
        posed = shaped + (self.poses.repeat(n, 1, 1, 1) @ features.view(n, 1, 135, 1))[..., 0]
        angles = torch.cat((torch.tensor([[torch.pi, 0.0, 0.0]]).repeat(n, 1), angles), 1).view(n, 16, 3)
        last = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(n, 1, 1)
        globals_: list[Tensor] = []
        for joint, parent in enumerate(PARENTS):
            offset = rest[:, joint] - rest[:, parent] if joint else rest[:, 0]
            local = torch.cat((torch.cat((rotvec_to_rotmat(angles[:, joint]), offset[..., None]), 2), last), 1)
            globals_.append(torch.bmm(globals_[parent], local) if joint else local)
        transforms = []
        for joint, matrix in enumerate(globals_):
            point = torch.cat((rest[:, joint], torch.zeros(n, 1)), 1)[..., None]
            transforms.append(matrix - F.pad(torch.bmm(matrix, point), (3, 0)))
        weights = self.weights.repeat(n, 1, 1)
        mixed = torch.bmm(weights, torch.stack(transforms, 1).view(n, 16, 16)).view(n, 778, 4, 4)
        homogeneous = torch.cat((posed, torch.ones(n, 778, 1)), 2)
        verts = (mixed @ homogeneous[..., None])[:, :, :3, 0]
        joints = torch.stack([matrix[:, :3, 3] for matrix in globals_], 1)
        joints = torch.cat((joints, verts[:, list(TIPS["wild"])]), 1)[:, list(ORDERS["wild"])]
        points = torch.bmm(torch.cat((joints, verts), 1), rotvec_to_rotmat(params.rot).transpose(1, 2))
        pixels = params.trans[:, None].repeat(1, 799, 1) + params.scale[:, None, None] * points[..., :2]
        return pixels, points


class SmplxWay(OriginalWay):
    """Linear blend skinning as smplx does it, with this method's root, tips, order and camera."""

    def __call__(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        n = len(vector)
        params = Params.split(vector)
        shaped = self.template.view(778, 3) + torch.einsum("bl,lmk->bmk", params.betas, self.shapes.view(10, 778, 3))
        rest = torch.einsum("bik,ij->bjk", shaped, self.regressor)
        hand = torch.einsum("bi,ij->bj", params.pose, self.components) + self.mean
        full = torch.cat((torch.tensor([[torch.pi, 0.0, 0.0]]).expand(n, -1), hand), 1)
        rotmats = rotvec_to_rotmat(full.view(-1, 3)).view(n, 16, 3, 3)
        features = (rotmats[:, 1:] - torch.eye(3)).view(n, -1)
        posed = shaped + (features @ self.poses.view(2334, 135).T).view(n, 778, 3)
        relative = torch.cat((rest[:, :1], rest[:, 1:] - rest[:, list(PARENTS[1:])]), 1)
        local = torch.cat(
            (F.pad(rotmats.view(-1, 3, 3), (0, 0, 0, 1)), F.pad(relative.reshape(-1, 3, 1), (0, 0, 0, 1), value=1)), 2
        )
        local = local.view(n, 16, 4, 4)
        chain = [local[:, 0]]
        for joint in range(1, 16):
            chain.append(chain[PARENTS[joint]] @ local[:, joint])
        globals_ = torch.stack(chain, 1)
        shift = globals_ @ F.pad(rest[..., None], (0, 0, 0, 1))
        transforms = globals_ - F.pad(shift, (3, 0))
        mixed = (self.weights.expand(n, -1, -1) @ transforms.view(n, 16, 16)).view(n, 778, 4, 4)
        homogeneous = torch.cat((posed, torch.ones(n, 778, 1)), 2)
        verts = (mixed @ homogeneous[..., None])[:, :, :3, 0]
        joints = torch.cat((globals_[:, :, :3, 3], verts[:, list(TIPS["wild"])]), 1)[:, list(ORDERS["wild"])]
        points = torch.cat((joints, verts), 1) @ rotvec_to_rotmat(params.rot).transpose(1, 2)
        return params.trans[:, None] + params.scale[:, None, None] * points[..., :2], points


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_wild_decoder", description="Times of the decoder.")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each variant")
    parser.add_argument("--batch", type=int, default=64, help="hands per call")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/wild_decoder.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    mano = load_mano("standin")
    vector = torch.randn(args.batch, 22) * 0.3
    decoder, original, smplx = Decoder(mano), OriginalWay(mano), SmplxWay(mano)
    layer = ManoLayer(mano, n_pca=6, flat_hand_mean=False, tips="wild", joint_order="wild", unit="m")
    ways: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
        "original's way": original,
        "smplx's way": smplx,
        "ours": lambda v: decoder(v).flat()[:2],
    }
    expected = original(vector)
    for name, way in ways.items():
        worst = max(
            float((a.reshape(-1) - b.reshape(-1)).abs().max()) for a, b in zip(way(vector), expected, strict=True)
        )
        print(f"{name}: largest difference to the original's way {worst:.2g}")
    ways["ours"] = lambda v: (decoder(v).verts_2d, decoder.template)  # without the copy into the original's layout
    ways["shared.mano.ManoLayer, one rotation"] = lambda v: layer(v[:, 3:12], v[:, 12:])  # type: ignore[assignment]
    grown = vector.clone().requires_grad_()

    def backward(way: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Run:
        return lambda: torch.autograd.grad(way(grown)[0].sum(), grown)

    results = {}
    with torch.no_grad():
        forward = measure({n: (lambda w=w: w(vector)) for n, w in ways.items()}, args.rounds, "original's way")
    results[f"forward, batch {args.batch}"] = forward
    both = measure({n: backward(w) for n, w in ways.items()}, args.rounds, "original's way")
    results[f"forward and backward, batch {args.batch}"] = both
    for title, rows in results.items():
        table(title, rows)
    save(args.out, args.threads, results)


if __name__ == "__main__":
    main()
