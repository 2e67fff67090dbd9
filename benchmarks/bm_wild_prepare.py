"""Mask preparation and the training loader of hand3d_wild beside the reference's way, in one run.

    python -m benchmarks.bm_wild_prepare [--out benchmarks/results/wild_prepare.json] [--rounds 5] [--pictures 12]

The reference's way of a mask: bones drawn with OpenCV, then every pixel asked, in pure Python, whether it lies in one
of five triangles (each of them in its list three times), then GrabCut. Its way of a training sample: PNG files of
picture and mask decoded, float64 noise drawn for every pixel, cut and resize with OpenCV. Both are re-created here,
and our side does the same work on the same pictures; the two take turns, and medians are compared. Times are CPU times
of one process, because the machine may be shared; OpenCV and NumPy use one thread on both sides.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from hand3d_wild.config import DataOptions, PrepareConfig
from hand3d_wild.data import WildSamples
from hand3d_wild.masks import PALM, SKELETON, grabcut, hand_mask, start_map
from hand3d_wild.prepare import prepare
from hand3d_wild.store import open_split
from shared import skeletons
from shared.safe_io import atomic_write_text
from shared.standin.all import write_sets

Point = tuple[int, int]


def inside(x: int, y: int, corners: list[Point]) -> bool:
    """Even-odd rule, one pixel at a time."""
    odd, j = False, len(corners) - 1
    for i in range(len(corners)):
        (xi, yi), (xj, yj) = corners[i], corners[j]
        if (yi > y) != (yj > y) and x < (xj - xi) * (y - yi) / (yj - yi) + xi:
            odd = not odd
        j = i
    return odd


def reference_start_map(joints: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The start map with a pure Python loop over all pixels and fifteen polygons."""
    whole = [(int(u), int(v)) for u, v in joints]
    out = np.zeros((320, 320), np.uint8)
    for value, thickness in ((3, 70), (1, 1)):
        for a, b in skeletons.get(SKELETON).edges:
            cv2.line(out, whole[a], whole[b], value, thickness)
    polygons = [[whole[j] for j in corners] for corners in PALM for _ in range(3)]
    for y in range(320):
        for x in range(320):
            for polygon in polygons:
                if inside(x, y, polygon):
                    out[y, x] = 1
    return out


def reference_sample(folder: Path, index: int, points: NDArray[np.float64], rng: np.random.Generator) -> object:
    """One training sample from PNG files, with float64 noise."""
    bgr = cv2.imread(str(folder / f"{index}.png"))
    mask = cv2.imread(str(folder / f"mask_{index}.png"), cv2.IMREAD_GRAYSCALE)
    assert bgr is not None
    assert mask is not None
    u, v = rng.integers(11, size=2)
    part = cv2.resize(bgr[v : v + 306, u : u + 306, ::-1], (256, 256)).astype(np.float64)
    part = np.clip(part + rng.normal(0, 1, part.shape), 0, 255) / 255
    seen = cv2.resize(mask[v : v + 306, u : u + 306], (256, 256))
    return part.transpose(2, 0, 1).astype(np.float32), seen, (points - [u, v]) * 256 / 306


def compare(
    ours: Callable[[int], object], theirs: Callable[[int], object], count: int, rounds: int
) -> dict[str, float]:
    """Median CPU milliseconds of one picture, the two sides taking turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for index in range(count):
            for side, work in enumerate((ours, theirs)):
                begin = time.process_time()
                work(index)
                times[side].append(1000 * (time.process_time() - begin))
    a, b = median(times[0]), median(times[1])
    return {"ours_ms": a, "reference_ms": b, "ratio": b / a}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/wild_prepare.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=12)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_sets(root, ["mpii_nzsl"], frames=-(-options.pictures * 4 // 3) + 4)
        prepare(PrepareConfig(mpii=str(root / "mpii_nzsl"), out=str(root / "store"), masks="none", workers=1))
        split = open_split(root / "store", "train", write=True)
        count = min(options.pictures, len(split.rows))
        points = split.rows["points"]
        rows["mask"] = compare(
            lambda i: hand_mask(split.pictures[i], points[i]),
            lambda i: grabcut(split.pictures[i], reference_start_map(points[i])),
            count,
            max(1, options.rounds // 3),
        )
        rows["start map alone"] = compare(
            lambda i: start_map(points[i]), lambda i: reference_start_map(points[i]), count, 1
        )
        for i in range(count):
            mask = hand_mask(split.pictures[i], points[i])
            split.masks[i] = np.packbits(mask, axis=-1)
            split.rows["mask"][i] = 1
            cv2.imwrite(str(root / f"{i}.png"), split.pictures[i][..., ::-1])
            cv2.imwrite(str(root / f"mask_{i}.png"), mask.astype(np.uint8))
        samples, rng = WildSamples(split, DataOptions()), np.random.default_rng(0)
        rows["training sample"] = compare(
            lambda i: samples[(0, i)], lambda i: reference_sample(root, i, points[i], rng), count, 4 * options.rounds
        )
    for name, row in rows.items():
        print(
            f"{name:16} ours {row['ours_ms']:8.2f} ms   reference {row['reference_ms']:8.2f} ms   x{row['ratio']:.1f}"
        )
    report = {"machine": platform.machine(), "rounds": options.rounds, "pictures": count, "rows": rows}
    atomic_write_text(options.out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
