"""Times the operations of SO-HandNet on the CPU: ``python -m benchmarks.bm_sohandnet_kernels``.

Each beside the plain way, written in words of our own: one map after the other in torch; a compiled serial scan for the
masked maximum (where a C compiler is found); full distance tables with autograd and, where it is installed, faiss for
Chamfer; the (B, 3, L, M) masks of the original for the association; dense products before the masked maximum; scipy's
tree and numpy's eigenvectors for the normals. Results are compared before anything is timed. All are measured in turns
in one run; the table has the best round in wall time and the median processor time. Writes
``benchmarks/results/sohandnet_kernels.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from shared.safe_io import atomic_write_text
from sohandnet import som
from sohandnet.kernels import ops

RESULT = Path(__file__).parent / "results" / "sohandnet_kernels.json"
B, N, M, K, CHANNELS, WIDTH, CLOUDS, FRAMES = 8, 1024, 64, 3, 384, 320, 64, 8
LENGTH = K * N
Case = dict[str, Callable[[], object]]

SERIAL_SCAN = """
void scan(const float *data, const int *index, long batch, long channels, long length, long nodes, float *value,
          int *argmax) {
  for (long row = 0; row < batch * channels; ++row) {
    const float *values = data + row * length;
    const int *owner = index + row / channels * length;
    for (long m = 0; m < nodes; ++m) { value[row * nodes + m] = -1000.0f; argmax[row * nodes + m] = 0; }
    for (long l = 0; l < length; ++l) {
      long at = row * nodes + owner[l];
      if (values[l] > value[at]) { value[at] = values[l]; argmax[at] = (int)l; }
    }
  }
}
"""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


# ------------------------------------------------------------------------------------------------- the plain ways


def plain_som(cloud: Tensor) -> Tensor:
    """One cloud (3, N) at a time: full distance table, one-hot table, 80 updates."""
    nodes = som.initial_nodes(M)
    factors, rates = som.schedule(8)
    gap = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    for factor, rate in zip(factors, rates, strict=True):
        nearest = ((cloud[:, :, None] - nodes[:, None]) ** 2).sum(dim=0).argmin(dim=1)
        owned = torch.nn.functional.one_hot(nearest, M).float()
        count = owned.sum(dim=0)
        mean = (cloud @ owned) / (count + 1e-5)
        weights = torch.kron(factor[gap], factor[gap]) * (count > 0).float()[:, None]
        nodes = nodes + rate * (((mean[:, :, None] - nodes[:, None]) * weights).sum(dim=1))
    return nodes


def plain_association(points: Tensor, nodes: Tensor) -> Tensor:
    """Top-k of the distance table, then the masks of all pairs and nodes."""
    distance = ((points[:, :, :, None] - nodes[:, :, None]) ** 2).sum(dim=1)
    nearest = distance.topk(K, dim=2, largest=False).indices.transpose(1, 2).flatten(1)  # (B, L)
    mask = (nearest[:, :, None] == torch.arange(M)).float()  # (B, L, M)
    copies = points.repeat(1, 1, K)
    return (copies[..., None] * mask[:, None]).sum(dim=2) / (mask.sum(dim=1) + 1e-5)[:, None]


def plain_chamfer(pred: Tensor, cloud: Tensor) -> Tensor:
    """The full distance table, its minima both ways, autograd."""
    distance = torch.sqrt(((pred[:, :, :, None] - cloud[:, :, None]) ** 2).sum(dim=1) + 1e-8)
    return distance.amin(dim=2).mean() + distance.amin(dim=1).mean()


def plain_normals(cloud: NDArray[np.float64]) -> NDArray[np.float64]:
    """A tree for the neighbours, one batched eigenvector call."""
    _, nearest = cKDTree(cloud).query(cloud, 30)
    groups = cloud[nearest]
    groups = groups - groups.mean(axis=1, keepdims=True)
    normals = np.linalg.eigh(groups.transpose(0, 2, 1) @ groups)[1][..., 0]
    facing = (normals * cloud).sum(axis=1, keepdims=True) > 0
    turned: NDArray[np.float64] = np.where(facing, -normals, normals)
    return turned


def compiled_scan(folder: Path) -> ctypes.CDLL | None:
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source, library = folder / "scan.c", folder / "scan.so"
    source.write_text(SERIAL_SCAN)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def run_scan(scan: ctypes.CDLL, data: Tensor, index: Tensor, value: Tensor, argmax: Tensor) -> None:
    first, second, third, fourth = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (data, index, value, argmax))
    sizes = [ctypes.c_long(number) for number in (*data.shape, value.shape[2])]
    scan.scan(first, second, *sizes, third, fourth)


def hand_surface(seed: int) -> NDArray[np.float64]:
    """About 3,500 points (n, 3) of a palm and fingers as a depth camera sees them, mm."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[0:110, 0:80]
    hand = ((u - 40) / 30) ** 2 + ((v - 80) / 28) ** 2 < 1
    for finger in range(5):
        hand |= (np.abs(u - 12 - 14 * finger) < 4) & (v > 6 * abs(finger - 2)) & (v < 80)
    depth = 380 + 25 * np.sin(u / 15.0) * np.cos(v / 18.0) + rng.normal(0, 0.8, hand.shape)
    x, y = (u - 40) * depth / 241, (v - 55) * depth / 241
    points: NDArray[np.float64] = np.stack([x, y, depth], axis=-1)[hand]
    return points


# ------------------------------------------------------------------------------------------------- measuring


def expect(what: str, ours: Tensor, theirs: Tensor, bound: float) -> None:
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"{what}: max diff {difference:.3g}")
    assert difference <= bound, f"{what}: the results differ by {difference}"


def gradient_of(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def cases(scan: ctypes.CDLL | None) -> dict[str, Case]:
    """Name of the operation: the plain way first, ours last."""
    found: dict[str, Case] = {}
    clouds = drawn(CLOUDS, 3, N)
    expect("map", som.train_som(clouds[:2]), torch.stack([plain_som(cloud) for cloud in clouds[:2]]), 1e-4)
    found[f"map, {CLOUDS} clouds"] = {
        "one cloud after the other": lambda: [plain_som(cloud) for cloud in clouds],
        "ours": lambda: som.train_som(clouds),
    }

    points = clouds[:B]
    nodes = som.train_som(points)
    attached = ops.associate(points, nodes, K)
    expect("association", attached.mean, plain_association(points, nodes), 1e-5)
    found[f"association, batch {B}"] = {
        "top-k and masks": lambda: plain_association(points, nodes),
        "ours": lambda: ops.associate(points, nodes, K),
    }

    data, index = drawn(B, CHANNELS, LENGTH, seed=1), ops.pair_index(attached.nearest)
    lying = data.transpose(1, 2).contiguous().transpose(1, 2)
    case: Case = {}
    value, argmax = torch.empty(B, CHANNELS, M), torch.empty(B, CHANNELS, M, dtype=torch.int32)
    if scan is not None:
        serial = partial(run_scan, scan, data, index, value, argmax)
        serial()
        filled = (attached.pairs > 0)[:, None].expand_as(value)
        for layout in (data, lying):
            expect("masked max", ops.index_max(layout, index, M)[0][filled], value[filled], 0.0)
        case["serial scan, compiled"] = serial
    case["ours, channels first"] = lambda: ops.index_max(data, index, M)
    case["ours"] = lambda: ops.index_max(lying, index, M)
    found[f"masked max, batch {B}"] = case

    layer = [drawn(*shape, seed=2).requires_grad_() for shape in ((B, LENGTH, WIDTH), (CHANNELS, WIDTH), (CHANNELS,))]
    pull = drawn(B, CHANNELS, M, seed=3)

    def dense() -> tuple[Tensor, ...]:
        values = torch.nn.functional.linear(*layer).transpose(1, 2)
        return gradient_of((ops.index_max(values, index, M)[0] * pull).sum(), *layer)

    def sparse() -> tuple[Tensor, ...]:
        return gradient_of((ops.linear_index_max(layer[0], layer[1], layer[2], index, M) * pull).sum(), *layer)

    for ours, theirs in zip(sparse(), dense(), strict=True):
        expect("gradient of linear and max", ours, theirs, 1e-5)
    found[f"linear layer and masked max, both ways, batch {B}"] = {"dense products": dense, "ours": sparse}

    for count in (1280, 256):
        pred = drawn(B, 3, count, seed=4).requires_grad_()
        ours, theirs = (
            gradient_of(loss, pred)[0]
            for loss in (ops.chamfer_distance(pred, points).total, plain_chamfer(pred, points))
        )
        expect(f"Chamfer {count} gradient", ours, theirs, 1e-5)
        case = {"full table, autograd": lambda p=pred: gradient_of(plain_chamfer(p, points), p)}  # type: ignore[misc]
        if find_spec("faiss"):
            case["faiss"] = lambda p=pred: gradient_of(  # type: ignore[misc]
                ops.chamfer_distance(p, points, backend="faiss").total, p
            )
        case["ours"] = lambda p=pred: gradient_of(ops.chamfer_distance(p, points).total, p)  # type: ignore[misc]
        found[f"Chamfer {count} to {N}, both ways, batch {B}"] = case

    frames = [hand_surface(seed) for seed in range(FRAMES)]
    packed, counts = torch.from_numpy(np.concatenate(frames)), torch.tensor([len(frame) for frame in frames])
    plain = torch.from_numpy(np.concatenate([plain_normals(frame) for frame in frames]))
    alike = float(((ops.estimate_normals(packed, counts) - plain).norm(dim=1) < 1e-6).double().mean())
    print(f"normals: {100 * alike:.2f} % equal, {len(packed) // FRAMES} points a frame")
    assert alike > 0.999
    found[f"normals, {FRAMES} frames"] = {
        "tree and eigenvectors": lambda: [plain_normals(frame) for frame in frames],
        "ours": lambda: ops.estimate_normals(packed, counts),
    }
    return found


def measure(case: Case, rounds: int) -> dict[str, tuple[float, float]]:
    """Best wall time and median processor time, ms, of each way, all in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in case}
    for number in range(rounds + 1):
        for name, call in case.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            if number:
                times[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)))
    return {
        name: (min(wall for wall, _ in pairs), statistics.median(processor for _, processor in pairs))
        for name, pairs in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed repetitions of everything")
    parser.add_argument("--threads", type=int, default=2, help="torch threads, which the kernels use too")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for operation, case in cases(compiled_scan(Path(folder))).items():
            times = measure(case, options.rounds)
            best, _ = times["ours"]
            table[operation] = {}
            for way, (wall, used) in times.items():
                table[operation][way] = {
                    "best_ms": round(wall, 3),
                    "processor_ms": round(used, 3),
                    "ours_times_faster": round(wall / best, 1),
                }
                print(
                    f"{operation:48} {way:26} {wall:9.2f} ms, processor {used:9.2f} ms, {wall / best:6.1f} x ours",
                    flush=True,
                )
    result = {
        "operations": table,
        "threads": options.threads,
        "rounds": options.rounds,
        "kernels": "native" if ops.KERNELS.native("cpu") else "torch reference",
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    atomic_write_text(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
