"""Times HandOccNet's samples, metrics and translation fit: ``python -m benchmarks.bm_handoccnet_data``.

The baselines are the original's ways of computing the same things, written again: the whole picture reversed and turned
to floats before the crop is cut; one frame, one hand after the other. Ratios are of one run on one core, medians of the
CPU time of alternating blocks (so that other programs on the machine count less); they go to
``benchmarks/results/handoccnet_data.json``.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import grid_sample

from handoccnet.affine import crop_affine, sampling_grid
from handoccnet.data import Augmentation, cut
from handoccnet.fit import fit_translation
from shared import metrics
from shared.datasets.images import read_rgb

Array = NDArray[np.float64]
RESULTS = Path(__file__).parent / "results" / "handoccnet_data.json"
BOX = (230.0, 150.0, 170.0, 170.0)
AUGMENTATION = Augmentation(1.1, 20.0, (0.9, 1.1, 1.0))


def photo(path: Path) -> None:
    """A 640 x 480 JPEG with the detail of a photograph, about 90 KB."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (60, 80, 3)).astype(np.uint8))
    smooth = np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC), np.float64)
    noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=85)


def our_sample(path: Path) -> torch.Tensor:
    """A training sample's picture as handoccnet.data makes it."""
    return cut(read_rgb(path, expected_size=(640, 480)), BOX, augmentation=AUGMENTATION).image


def whole_picture_sample(path: Path) -> torch.Tensor:
    """The original's order: decode to BGR, reverse, whole picture to floats, copy, warp, colour, tensor."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    rgb = bgr[:, :, ::-1].astype(np.float32)
    picture = rgb.copy()
    A, _ = crop_affine(BOX, scale=AUGMENTATION.scale, angle_deg=AUGMENTATION.rotate_deg)
    inverse = np.linalg.inv(np.concatenate([A.astype(np.float64), [[0, 0, 1]]]))[:2]
    inverse[:, 2] += 0.5  # from here on in grid_sample's -1..1 over the whole picture
    to_grid = inverse * 2 / np.array([[640], [480]]) - [[0, 0, 1], [0, 0, 1]]
    places = torch.from_numpy(sampling_grid(to_grid, 256))
    whole = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
    warped = grid_sample(whole, places, align_corners=False)[0].permute(1, 2, 0).numpy()
    coloured = np.clip(warped * np.array([[AUGMENTATION.colour]], np.float32), 0, 255)
    return torch.from_numpy(np.ascontiguousarray(coloured.astype(np.float32).transpose(2, 0, 1))) / 255


def loop_mpjpe(pred: Array, gt: Array) -> Array:
    """Root-aligned and similarity-aligned error of one frame after the other."""
    out = []
    for p, g in zip(pred, gt, strict=True):
        p = p - p[0] + g[0]
        a, b = p - p.mean(0), g - g.mean(0)
        u, s, vt = np.linalg.svd(a.T @ b / len(p))
        R = vt.T @ u.T
        if np.linalg.det(R) < 0:
            s[-1], vt[2] = -s[-1], -vt[2]
            R = vt.T @ u.T
        scale = s.sum() / p.var(0).sum()
        aligned = scale * p @ R.T - scale * R @ p.mean(0) + g.mean(0)
        out.append((np.linalg.norm(p - g, axis=1).mean(), np.linalg.norm(aligned - g, axis=1).mean()))
    return np.array(out)


def loop_f_scores(pred: Array, gt: Array) -> Array:
    """Two thresholds, a full 778 x 778 x 3 array for each call, as the official program does it."""
    out = []
    for p, g in zip(pred, gt, strict=True):
        pair = []
        for threshold in (5.0, 15.0):
            distances = np.linalg.norm(p[:, None] - g[None], axis=-1)
            precision, recall = (distances.min(1) < threshold).mean(), (distances.min(0) < threshold).mean()
            pair.append(2 * precision * recall / max(precision + recall, 1e-9))
        out.append(pair)
    return np.array(out)


def compare(slow: Callable[[], object], fast: Callable[[], object], repeats: int, per: int = 1) -> dict[str, float]:
    """Median CPU milliseconds of both, in alternating blocks, divided by ``per``, and their ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):  # in blocks, so that each works on its own warm caches, as in a loader
        for call, kept in zip((slow, fast), times, strict=True):
            call()
            for _ in range(repeats):
                start = time.process_time()
                call()
                kept.append(1000 * (time.process_time() - start) / per)
    baseline, ours = (float(np.median(kept)) for kept in times)
    return {"baseline_ms": round(baseline, 4), "ours_ms": round(ours, 4), "ratio": round(baseline / ours, 2)}


def hands(count: int) -> tuple[Array, Array, Array]:
    """Joints, pixels and the camera of hands at various places, with 2 pixels of noise."""
    rng = np.random.default_rng(1)
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    joints = rng.normal(0, 40, (count, 21, 3))
    points = joints + rng.uniform([-100, -80, 400], [100, 80, 900], (count, 3))[:, None]
    pixels = points @ K.T
    return joints, pixels[..., :2] / pixels[..., 2:] + 2 * rng.normal(size=(count, 21, 2)), K


def one_lbfgs_per_hand(joints: Array, pixels: Array, K: Array) -> None:
    """The original's fit, hand by hand, from a guess of half a metre."""
    for hand, points in zip(torch.from_numpy(joints / 1000), torch.from_numpy(pixels), strict=True):
        t = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([t], lr=0.1, line_search_fn="strong_wolfe")
        camera, before = torch.from_numpy(K), float("inf")

        def closure(
            t: torch.Tensor = t, hand: torch.Tensor = hand, points: torch.Tensor = points,
            optimizer: torch.optim.LBFGS = optimizer, camera: torch.Tensor = camera,
        ) -> torch.Tensor:  # fmt: skip
            optimizer.zero_grad()
            projected = (hand + t) @ camera.T
            loss = (projected[:, :2] / projected[:, 2:] - points).abs().sum() + 1000 * (t[2] - t[2].clone()) ** 2
            loss.backward()
            return loss

        for _ in range(300):
            loss = float(optimizer.step(closure).detach())
            if not (before - loss) / max(abs(before), abs(loss), 1) > 1e-10:
                break
            before = loss


def main() -> None:
    """All comparisons, less than a minute on one core."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        photo(path)
        difference = float((our_sample(path) - whole_picture_sample(path)).abs().max()) * 255
        print(f"both samples: max diff {difference:.3g} grey levels")
        results["sample from a 640x480 JPEG"] = compare(
            lambda: whole_picture_sample(path), lambda: our_sample(path), 40
        )
        decode = compare(lambda: None, lambda: read_rgb(path), 40)["ours_ms"]
        print(f"of which decoding the JPEG (Pillow): {decode:.2f} ms")
    joints = rng.normal(scale=40, size=(1000, 21, 3))
    pred = joints + rng.normal(scale=8, size=joints.shape)
    results["MPJPE and PA-MPJPE per sample"] = compare(
        lambda: loop_mpjpe(pred, joints), lambda: metrics.handoccnet_errors(pred, joints), 3, per=1000
    )
    verts = rng.normal(scale=30, size=(24, 778, 3))
    pred_verts = verts + rng.normal(scale=4, size=verts.shape)
    results["F-scores at 5 and 15 mm per sample"] = compare(
        lambda: loop_f_scores(pred_verts, verts), lambda: metrics.f_score(pred_verts, verts, [5, 15]), 1, per=24
    )
    points, pixels, K = hands(64)
    results["translation fit per hand, 64 hands"] = compare(
        lambda: one_lbfgs_per_hand(points[:8], pixels[:8], K), lambda: None, 1, per=8
    )
    fitted = compare(lambda: None, lambda: fit_translation(points, pixels, K), 5, per=64)["ours_ms"]
    row = results["translation fit per hand, 64 hands"]
    row |= {"ours_ms": fitted, "ratio": round(row["baseline_ms"] / fitted, 1)}
    for name, row in results.items():
        print(f"{name:40} {row['baseline_ms']:9.3f} -> {row['ours_ms']:8.3f} ms, {row['ratio']:.1f} times faster")
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": 1}
    record = {"machine": machine, "jpeg_decode_ms": decode, "sample_max_diff_grey": difference, "results": results}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
