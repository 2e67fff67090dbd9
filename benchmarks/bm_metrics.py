"""Times the metrics: ``python -m benchmarks.bm_metrics``. Random hands; the loops over frames are the comparison.

Prints milliseconds per frame. Run with OMP_NUM_THREADS set to the cores that may be used.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared import metrics

Array = NDArray[np.float64]


def loop_procrustes(pred: Array, gt: Array) -> Array:
    """One frame after the other with SciPy, as the official programs do it."""
    from scipy.linalg import orthogonal_procrustes

    out = np.empty_like(pred)
    for i in range(len(pred)):
        g, p = gt[i] - gt[i].mean(0), pred[i] - pred[i].mean(0)
        size_g, size_p = np.linalg.norm(g), np.linalg.norm(p)
        R, s = orthogonal_procrustes(g / size_g, p / size_p)
        out[i] = p / size_p @ R.T * s * size_g + gt[i].mean(0)
    return out


def loop_f_score(pred: Array, gt: Array) -> Array:
    """One frame after the other with the full distance matrix in float64."""
    out = []
    for p, g in zip(pred, gt, strict=True):
        distances = np.linalg.norm(p[:, None] - g[None], axis=-1)
        precision, recall = (distances.min(1) < 5).mean(), (distances.min(0) < 5).mean()
        out.append(2 * precision * recall / max(precision + recall, 1e-9))
    return np.array(out)


def timed(name: str, call: Callable[[], object], frames: int, note: str = "") -> float:
    """Runs ``call`` twice and prints the better time."""
    best = np.inf
    for _ in range(2):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    print(f"{name:48} {1000 * best / frames:9.4f} ms/frame {best:8.2f} s for {frames}{note}")
    return best / frames


def main() -> None:
    """All benchmarks, about a minute on one core."""
    rng = np.random.default_rng(0)
    joints = rng.normal(scale=40, size=(10_000, 21, 3))
    pred = joints + rng.normal(scale=8, size=joints.shape)
    verts = rng.normal(scale=30, size=(1000, metrics.MESH_VERTICES, 3))
    pred_verts = verts + rng.normal(scale=4, size=verts.shape)

    e = metrics.joint_errors(pred, joints)
    timed("joint errors, 21 joints", lambda: metrics.joint_errors(pred, joints), len(pred))
    timed("AUC, 100 thresholds", lambda: metrics.auc(e, 0, 50, 100), len(e))
    timed("success rates, 81 thresholds", lambda: metrics.success_rate(e, np.arange(81)), len(e))
    fast = timed("Procrustes, 21 joints", lambda: metrics.align_official(pred, joints), len(pred))
    slow = timed("  the same, a loop over frames", lambda: loop_procrustes(pred[:1000], joints[:1000]), 1000)
    print(f"  {slow / fast:.0f} times faster")
    fast = timed("Procrustes, 778 vertices", lambda: metrics.align_official(pred_verts, verts), len(verts))
    slow = timed("  the same, a loop over frames", lambda: loop_procrustes(pred_verts[:500], verts[:500]), 500)
    print(f"  {slow / fast:.0f} times faster")
    fast = timed(
        "F-scores at 5 and 15 mm, 778 vertices", lambda: metrics.f_score(pred_verts, verts, [5, 15]), len(verts)
    )
    slow = timed("  one threshold, a loop over frames", lambda: loop_f_score(pred_verts[:50], verts[:50]), 50)
    print(f"  {slow / fast:.0f} times faster")


if __name__ == "__main__":
    main()
