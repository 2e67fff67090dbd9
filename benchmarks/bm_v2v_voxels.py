"""Times one training sample of V2V-PoseNet on the CPU: ``python -m benchmarks.bm_v2v_voxels``.

From the file to the grid and the target, on a drawn MSRA-sized crop with about 7,000 hand pixels and 21 joints. The
baseline works as the original loader does, in words of our own: every pixel of the full image becomes a point, grid and
target are float64, the Gaussian takes one exponential for each cell and joint. Both are measured in turns in one run;
the figures are medians of process CPU time per sample, in one thread. Grids and targets are compared before anything is
timed. Writes ``benchmarks/results/v2v_voxels.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.datasets.msra import read_depth
from shared.safe_io import atomic_write_text
from v2v_posenet.kernels import ops

Array = NDArray[Any]

WIDTH, HEIGHT, FOCAL, FAR, CUBE, SIGMA = 320, 240, 241.42, 700.0, 200.0, 1.7
SCALE, ANGLE, SHIFT = 0.937, 0.31, (1.2, 6.6, 3.3)  # one drawn augmentation
REFERENCE = np.array([5.0, -8.0, 350.0])
BATCH = 8  # the paper's
RESULT = Path(__file__).parent / "results" / "v2v_voxels.json"


def write_crop(path: Path, seed: int) -> None:
    """A .bin file: a 115 x 170 box of an image with a blob of about 7,000 pixels at hand distance."""
    rng = np.random.default_rng(seed)
    left, top, right, bottom = 120, 50, 235, 220
    y, x = np.mgrid[top:bottom, left:right]
    # a palm and five fingers: an ellipse and bars
    hand = ((x - 163) / 36) ** 2 + ((y - 150) / 46) ** 2 < 1
    for finger in range(5):
        hand |= (np.abs(x - 133 - 15 * finger) < 4) & (y > 64 + 6 * abs(finger - 2)) & (y < 150)
    depth = 350 + 40 * np.sin(x / 25.0) * np.cos(y / 30.0) + rng.normal(0, 1.5, hand.shape)
    header = np.array([WIDTH, HEIGHT, left, top, right, bottom], "<u4")
    path.write_bytes(header.tobytes() + np.where(hand, depth, 0).astype("<f4").tobytes())


# ------------------------------------------------------------------------------------------------- the original's way


def baseline_read(path: Path) -> Array:
    """The full image with the background filled in, unpacked number by number."""
    data = path.read_bytes()
    _, _, left, top, right, bottom = struct.unpack("<6I", data[:24])
    count = (right - left) * (bottom - top)
    image = np.zeros((HEIGHT, WIDTH), np.float32)
    image[top:bottom, left:right] = np.array(struct.unpack(f"<{count}f", data[24:])).reshape(bottom - top, right - left)
    image[image == 0] = FAR
    return image


def baseline_points(image: Array) -> Array:
    """(76800, 3) float32."""
    column, row = np.meshgrid(np.arange(1, WIDTH + 1), np.arange(1, HEIGHT + 1))
    points = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    points[..., 0] = (column - WIDTH / 2) * image.astype(np.float64) / FOCAL
    points[..., 1] = (HEIGHT / 2 - row) * image.astype(np.float64) / FOCAL
    points[..., 2] = image
    return np.asarray(points.reshape(-1, 3))


def baseline_chain(points: Array) -> Array:
    """Points or joints in fine voxels, float64."""
    g = ((points - REFERENCE) / (CUBE / 2) + 1) / (2 / 88) + 4
    g = g * SCALE + 48 * (1 - SCALE)
    moved = g.copy()
    x, y = g[:, 0] - 48, g[:, 1] - 48
    moved[:, 0] = 48 + x * np.cos(ANGLE) - y * np.sin(ANGLE)
    moved[:, 1] = 48 + x * np.sin(ANGLE) + y * np.cos(ANGLE)
    return np.asarray(moved - np.array(SHIFT))


def baseline_grid(points: Array) -> Array:
    index = baseline_chain(points).astype(np.int32)
    index = index[((index >= 0) & (index < 88)).all(axis=1)]
    grid = np.zeros((1, 88, 88, 88))
    grid[0, index[:, 0], index[:, 1], index[:, 2]] = 1
    return grid


def baseline_gaussian(joints: Array) -> Array:
    cells = baseline_chain(joints) / 2
    x, y, z = np.meshgrid(*[np.arange(44) + 0.5] * 3, indexing="ij")
    maps = np.zeros((len(cells), 44, 44, 44))
    for joint, (cx, cy, cz) in enumerate(cells):
        maps[joint] = np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * SIGMA**2))
    return maps


def baseline_trilinear(joints: Array) -> tuple[Array, Array]:
    cells = np.clip(baseline_chain(joints) / 2, 0, 42)
    corners = np.floor(cells)[:, None].astype(int) + np.array(list(np.ndindex(2, 2, 2)))
    weights = (1 - np.abs(corners - cells[:, None])).prod(axis=2)
    maps = np.zeros((len(cells), 44, 44, 44))
    weights /= weights.sum(axis=1, keepdims=True)
    maps[np.arange(len(cells))[:, None], corners[..., 0], corners[..., 1], corners[..., 2]] = weights
    return maps, cells


# ------------------------------------------------------------------------------------------------- ours


def our_batch(paths: list[Path]) -> dict[str, Any]:
    """Arguments of voxelize, packed crops and not one full image."""
    crops, boxes, sizes = zip(*(read_depth(path) for path in paths), strict=True)
    batch = len(paths)

    def rows(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).expand(batch, len(values))

    return {
        "depth": torch.from_numpy(np.concatenate([crop.reshape(-1) for crop in crops])),
        "boxes_ltrb": torch.tensor(boxes),
        "image_wh": torch.tensor(sizes),
        "camera": rows(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2),
        "ref_mm": rows(*REFERENCE),
        "cube_mm": rows(CUBE)[:, 0],
        "scale": rows(SCALE)[:, 0],
        "angle_rad": rows(ANGLE)[:, 0],
        "shift": rows(*SHIFT),
        "max_depth_mm": rows(FAR)[:, 0],
        "y_up": True,
    }


def our_cells(batch: dict[str, Any], joints: torch.Tensor) -> torch.Tensor:
    return ops.joint_coordinates(joints, *(batch[n] for n in ("ref_mm", "cube_mm", "scale", "angle_rad", "shift"))) / 2


def ours(paths: list[Path], joints: torch.Tensor, *, dtype: torch.dtype, dense: bool) -> tuple[torch.Tensor, ...]:
    """Grids and targets of a batch: dense Gaussian maps, or only the coordinates, which both fused losses take."""
    batch = our_batch(paths)
    cells = our_cells(batch, joints)
    return ops.voxelize(**batch, dtype=dtype), ops.gaussian_heatmaps(cells) if dense else cells


# ------------------------------------------------------------------------------------------------- measuring


def cpu_times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of process CPU time of each call, all of them in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number >= 2:
                times[name].append(1000 * (time.process_time() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="timed repetitions of everything")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number:06d}_depth.bin" for number in range(BATCH)]
        for number, path in enumerate(paths):
            write_crop(path, number)
        joints = np.random.default_rng(0).uniform(-70, 70, (21, 3)) + REFERENCE
        one, several = torch.from_numpy(joints)[None], torch.from_numpy(joints).expand(BATCH, 21, 3)

        grid, maps = ours(paths[:1], one, dtype=torch.float32, dense=True)
        expected = baseline_grid(baseline_points(baseline_read(paths[0])))
        hand_pixels = int((read_depth(paths[0])[0] > 0).sum())
        assert np.array_equal(grid[0].numpy(), expected), "the grids differ"
        difference = float(np.abs(maps[0].numpy() - baseline_gaussian(joints)).max())
        assert difference <= 1e-6, f"the targets differ by {difference}"
        print(f"{hand_pixels} hand pixels, {int(expected.sum())} voxels equal, targets max diff {difference:.3g}")

        image = baseline_read(paths[0])
        points = baseline_points(image)
        batch = our_batch(paths)
        cells = our_cells(batch, several)
        samples: dict[str, Callable[[], object]] = {
            "baseline: Gaussian sample": lambda: (
                baseline_grid(baseline_points(baseline_read(paths[0]))),
                baseline_gaussian(joints),
            ),
            "baseline: integral sample": lambda: (
                baseline_grid(baseline_points(baseline_read(paths[0]))),
                baseline_trilinear(joints),
            ),
            f"ours, batch {BATCH}: uint8 grid, fused loss": lambda: ours(
                paths, several, dtype=torch.uint8, dense=False
            ),
            f"ours, batch {BATCH}: float32 grid, fused loss": lambda: ours(
                paths, several, dtype=torch.float32, dense=False
            ),
            f"ours, batch {BATCH}: float32 grid, dense target": lambda: ours(
                paths, several, dtype=torch.float32, dense=True
            ),
        }
        alone: dict[str, Callable[[], object]] = {
            "ours, alone: float32 grid, fused loss": lambda: ours(paths[:1], one, dtype=torch.float32, dense=False),
            "ours, alone: float32 grid, dense target": lambda: ours(paths[:1], one, dtype=torch.float32, dense=True),
        }
        steps: dict[str, Callable[[], object]] = {
            "baseline: read": lambda: baseline_read(paths[0]),
            "baseline: points": lambda: baseline_points(image),
            "baseline: grid": lambda: baseline_grid(points),
            "baseline: Gaussian target": lambda: baseline_gaussian(joints),
            "baseline: trilinear target": lambda: baseline_trilinear(joints),
            f"ours, batch {BATCH}: read and pack": lambda: our_batch(paths),
            f"ours, batch {BATCH}: uint8 grid": lambda: ops.voxelize(**batch, dtype=torch.uint8),
            f"ours, batch {BATCH}: float32 grid": lambda: ops.voxelize(**batch),
            f"ours, batch {BATCH}: joints": lambda: our_cells(batch, several),
            f"ours, batch {BATCH}: dense Gaussian target": lambda: ops.gaussian_heatmaps(cells),
        }
        times: dict[str, float] = {}
        for calls in (samples, alone, steps):
            times |= cpu_times(calls, options.rounds)
    times = {name: value / (BATCH if f"batch {BATCH}" in name else 1) for name, value in times.items()}
    for name, value in times.items():
        print(f"{name:42} {value:8.3f} ms per sample")
    ratios = {
        f"{variant} sample, {name.removeprefix('ours, ')}": times[f"baseline: {variant} sample"] / times[name]
        for variant in ("Gaussian", "integral")
        for name in (*samples, *alone)
        if name.startswith("ours") and (variant == "Gaussian" or "fused" in name)
    }
    for name, value in ratios.items():
        print(f"{name:56} {value:6.1f} times faster")
    result = {
        "ms_per_sample": {name: round(value, 4) for name, value in times.items()},
        "times_faster": {name: round(value, 1) for name, value in ratios.items()},
        "hand_pixels": hand_pixels,
        "clock": "median process CPU time, one thread, in turns",
        "rounds": options.rounds,
        "kernels": "native" if ops.KERNELS.native("cpu") else "torch reference",
        "machine": cpu_name(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    atomic_write_text(options.out, json.dumps(result, indent=2) + "\n")


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
