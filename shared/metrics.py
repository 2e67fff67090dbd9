"""Errors, curves and alignments, to the printed digit of the public evaluations.

Predictions ``pred`` and ground truth ``gt`` are (N, J, D) arrays in one frame and one unit (millimetres in this
project; pixels with D = 2 for the 2-D sets; V vertices instead of J joints for meshes). ``e`` is what
:func:`joint_errors` returns, (N, J), with NaN where a joint is masked out; a masked joint takes part in nothing. A
prediction that is not finite is an error to raise: leaving such frames out would make a result better.

Two groups of definitions must not be mixed. Depth sets (ICVL, NYU, MSRA, HANDS2017, ITOP): absolute errors, no
alignment. RGB sets (STB, HO-3D, FreiHAND, DexYCB ...): errors after an alignment, PCK and the area under it.
Comparisons are ``<=`` in every curve and ``<`` in F-scores and in ITOP's rule.

Sources: evaluation programs of xinghaochen/awesome-hand-pose-estimation, shreyashampali/ho3d, lmb-freiburg/freihand,
NVlabs/dex-ycb-toolkit and namepllet/HandOccNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind = Literal["max", "mean", "joint"]

MESH_VERTICES = 778  # of the MANO hand
_FRAMES_AT_ONCE = 128  # keeps the temporaries of a mesh alignment in the cache


class AucGrid(NamedTuple):
    """Thresholds ``linspace(lo, hi, n)`` of an area under a PCK curve; mm, or pixels for the 2-D sets."""

    lo: float
    hi: float
    n: int

    @property
    def thresholds(self) -> Array:
        """(n,) thresholds, both ends included."""
        return np.linspace(self.lo, self.hi, self.n)

    def __str__(self) -> str:
        return f"{self.lo:.6g}..{self.hi:g}, {self.n} thresholds"


# The grid matters in the third decimal, so results always print it.
AUC_GRIDS: dict[str, AucGrid] = {
    "0-50x100": AucGrid(0, 50, 100),  # FreiHAND, HO-3D, DexYCB; our default
    "0-50x20": AucGrid(0, 50, 20),  # hand3d (Zimmermann & Brox)
    "20-50x12": AucGrid(8 * 50 / 19, 50, 12),  # hand3d: points 8..19 of the grid above, so it starts at 21.05
    "20-50x20": AucGrid(20, 50, 20),  # bihand
    "20-50x31": AucGrid(20, 50, 31),  # the published curves of the 3-D-hand-in-the-wild paper
    "0-30px": AucGrid(0, 30, 31),  # MPII+NZSL, that paper's figure 8
    "0-30px-hand3d": AucGrid(0, 30, 20),
}


# ---------------------------------------------------------------------------------------------------------- errors


def _pair(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> tuple[Array, Array, Mask]:
    """Both as float64 and the mask as booleans, checked for shape and for numbers that are not finite."""
    p, g = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    if p.ndim != 3 or p.shape != g.shape:
        raise DataError(f"expected prediction and ground truth of one shape (N, J, D), got {p.shape} and {g.shape}")
    m = np.ones(p.shape[:2], np.bool_) if mask is None else np.broadcast_to(np.asarray(mask), p.shape[:2])
    if m.dtype != np.bool_:
        raise DataError(
            f"expected a boolean mask of visible joints, got {m.dtype}", remedy="compare first: visible > 0"
        )
    for name, values in (("prediction", p), ("ground truth", g)):
        if np.isfinite(values.sum()):
            continue  # quick: a sum that is finite has finite terms
        bad = np.argwhere(~np.isfinite(values).all(-1) & m)
        if len(bad):
            frame, joint = (int(i) for i in bad[0])
            raise DataError(
                f"the {name} of frame {frame}, joint {joint} is not finite: {values[frame, joint].tolist()}",
                remedy=f"{len(set(bad[:, 0].tolist()))} frames are affected; joints without label need a mask",
            )
    return p, g, m


def joint_errors(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Euclidean distances (N, J) in the unit of the input; NaN where ``mask`` (N, J) or (J,) is False.

    Raises:
        DataError: shapes that differ, a mask that is not boolean, or a value that is not finite (frame and joint
            named).
    """
    p, g, m = _pair(pred, gt, mask)
    d = p - g
    return np.where(m, np.sqrt(np.einsum("njd,njd->nj", d, d)), np.nan)


def _average(values: Array, axis: int | None = None) -> Any:
    """Mean without the NaNs; NaN where nothing is left (without NumPy's warning)."""
    seen = ~np.isnan(values)
    count = seen.sum(axis)
    total = np.where(seen, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mean_error(e: Array, over: Literal["all", "joints"] = "all") -> float:
    """Mean over everything visible, or ("joints", FreiHAND's and HO-3D's way) the mean of the per-joint means.

    The two are the same number unless joints are masked out.
    """
    return float(_average(e if over == "all" else per_joint_error(e)))


def per_joint_error(e: Array) -> Array:
    """(J,) mean over the frames in which the joint is visible; NaN for a joint that never is."""
    return np.asarray(_average(e, 0))


def median_error(e: Array, over: Literal["all", "joints"] = "all") -> float:
    """Median of everything visible, or ("joints", FreiHAND's way) the mean of the per-joint medians."""
    columns = [e.ravel()] if over == "all" else list(e.T)
    medians = [np.median(c[~np.isnan(c)]) for c in columns if not np.isnan(c).all()]
    return float(np.mean(medians)) if medians else float("nan")


def frame_error(e: Array, kind: Literal["max", "mean"]) -> Array:
    """(N,) error of each frame's worst joint ("max") or of its mean joint; NaN for a frame without a visible joint."""
    if kind == "mean":
        return np.asarray(_average(e, 1))
    worst = np.where(np.isnan(e), -np.inf, e).max(1, initial=-np.inf)
    return np.where(np.isneginf(worst), np.nan, worst)


def _share_within(values: Array, thresholds: ArrayLike, strict: bool = False) -> Array:
    """(K,) share of the values that are not NaN and <= (or <) each threshold, by sorting once."""
    t = np.asarray(thresholds, np.float64)
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return np.full(t.shape, np.nan)
    return np.searchsorted(known, t, side="left" if strict else "right") / known.size


def success_rate(e: Array, thresholds: ArrayLike, kind: Kind = "max") -> Array:
    """(K,) success rates with ``<=``.

    Args:
        e: (N, J) errors.
        thresholds: (K,), unit of ``e``.
        kind: "max": share of frames whose worst joint is within, the "fraction of frames within distance" of the
            hand-pose papers; "mean": share of frames whose mean error is; "joint": share of all joints.
    """
    return _share_within(e.ravel() if kind == "joint" else frame_error(e, kind), thresholds)


def accuracy(e: Array, thresholds: ArrayLike) -> Array:
    """(J, K) share of frames whose error of that joint is **strictly** below the threshold.

    The accuracy curves of the V2V-PoseNet port, and ITOP's rule with the single threshold 100 mm.
    """
    t = np.atleast_1d(np.asarray(thresholds, np.float64))
    return np.stack([_share_within(column, t, strict=True) for column in e.T])


def itop_map(e_mm: Array, threshold_mm: float = 100.0) -> tuple[float, Array]:
    """ITOP's mAP and (J,) AP per joint, as shares: error strictly below 10 cm, then the mean over joints."""
    per_joint = accuracy(e_mm, threshold_mm)[:, 0]
    return float(_average(per_joint)), per_joint


def pck_per_joint(e: Array, thresholds: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """(J, K) share of a joint's visible samples with ``e <= t``; rows of joints that are never visible are NaN."""
    masked = e if mask is None else np.where(np.broadcast_to(np.asarray(mask, np.bool_), e.shape), e, np.nan)
    return np.stack([_share_within(column, thresholds) for column in masked.T])


def pck_curve(e: Array, thresholds: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """(K,) PCK: mean over the joints of :func:`pck_per_joint`."""
    return np.asarray(_average(pck_per_joint(e, thresholds, mask), 0))


def auc(e: Array, lo: float, hi: float, n: int, mask: ArrayLike | None = None) -> float:
    """Area under the PCK curve: trapezoids over ``linspace(lo, hi, n)`` divided by hi - lo, then the mean over joints.

    ``auc(e, *AUC_GRIDS["0-50x100"])`` is the number of FreiHAND, HO-3D and DexYCB. A grid names lo, hi and n because
    n changes the third decimal.
    """
    if not (hi > lo and n >= 2):
        raise DataError(f"expected lo < hi and at least two thresholds for an area, got lo={lo:g} hi={hi:g} n={n}")
    thresholds = np.linspace(lo, hi, n)
    areas = np.asarray(np.trapezoid(pck_per_joint(e, thresholds, mask), thresholds, axis=1))
    return float(_average(areas / (hi - lo)))


# ------------------------------------------------------------------------------------------------------ alignments


def _joint(points: Array, joint: int) -> Array:
    if not -points.shape[-2] <= joint < points.shape[-2]:
        raise DataError(f"joint {joint} does not exist: there are {points.shape[-2]} joints")
    return points[..., joint : joint + 1 if joint != -1 else None, :]


def root_relative(points: ArrayLike, joint: int = 0) -> Array:
    """(N, J, D) minus the joint ``joint`` of the same frame (DexYCB's "relative": both sides are treated so)."""
    p = np.asarray(points, np.float64)
    return p - _joint(p, joint)


def align_root(pred: ArrayLike, gt: ArrayLike, joint: int = 0) -> Array:
    """``pred`` moved so that its joint ``joint`` lies on the true one; HandOccNet does this before every evaluation.

    Joint errors equal the root-relative ones; a mesh must be moved by the same offset, the joint's.
    """
    p, g, _ = _pair(pred, gt)
    return p - _joint(p, joint) + _joint(g, joint)


def align_scale_translation(pred: ArrayLike, gt: ArrayLike, root: int = 0, other: int = 4) -> Array:
    """HO-3D's "scale-translation": one bone gives the scale, the root the translation; no rotation.

    The bone is from ``root`` to ``other``, in HO-3D's order wrist to middle mcp (joint 4). In thumb-first order joint
    4 is the thumb's tip and the number means nothing: reorder first. A predicted bone of length 0 leaves the scale.
    """
    p, g, _ = _pair(pred, gt)
    length = np.linalg.norm(_joint(p, other) - _joint(p, root), axis=-1, keepdims=True)
    target = np.linalg.norm(_joint(g, other) - _joint(g, root), axis=-1, keepdims=True)
    scaled = p * np.where(length > 0, target / np.where(length > 0, length, 1.0), 1.0)
    return scaled - _joint(scaled, root) + _joint(g, root)


def similarity_transform(
    pred: ArrayLike,
    gt: ArrayLike,
    scale: bool = True,
    reflection: bool = False,
    mask: ArrayLike | None = None,
) -> tuple[Array, Array, Array]:
    """Least-squares ``gt ~ s * pred @ R.T + t`` for each frame: scales (N,), rotations (N, D, D), translations (N, D).

    Args:
        pred, gt: (N, J, D).
        scale: False leaves the scale 1 (Kabsch).
        reflection: True allows det R = -1, as the official FreiHAND, HO-3D and DexYCB programs do; False keeps proper
            rotations (Umeyama), as HandOccNet and most mesh papers do.
        mask: (N, J) the joints that take part; all by default.

    A prediction without extent (all points equal, as in an all-zero submission) gets scale 0 and thus the true
    centroid.
    """
    p, g, m = _pair(pred, gt, mask)
    # Weights are needed only with a mask; without one they would double the memory traffic of meshes.
    count = np.maximum(m.sum(1), 1)[:, None, None]
    if mask is not None:
        p, g = (np.where(m[..., None], x, 0.0) for x in (p, g))
    mean_p, mean_g = p.sum(1, keepdims=True) / count, g.sum(1, keepdims=True) / count
    p, g = p - mean_p, g - mean_g
    if mask is not None:
        p, g = (np.where(m[..., None], x, 0.0) for x in (p, g))
    u, singular, vt = np.linalg.svd(g.transpose(0, 2, 1) @ p)
    if not reflection:
        sign = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)  # the smallest singular direction is turned round
        u[:, :, -1] *= sign[:, None]
        singular[:, -1] *= sign
    R = u @ vt
    if scale:
        extent = np.einsum("njd,njd->n", p, p)
        s = np.where(extent > 0, singular.sum(1) / np.where(extent > 0, extent, 1.0), 0.0)
    else:
        s = np.ones(len(p))
    t = mean_g[:, 0] - s[:, None] * np.einsum("nij,nj->ni", R, mean_p[:, 0])
    return s, R, t


def align_procrustes(
    pred: ArrayLike,
    gt: ArrayLike,
    scale: bool = True,
    reflection: bool = False,
    mask: ArrayLike | None = None,
) -> Array:
    """``pred`` after the best similarity (or rigid) transform of each frame; see :func:`similarity_transform`.

    The default (proper rotation, with scale) is the "PA" of most mesh papers. ``reflection=True`` is the "aligned" of
    the FreiHAND, HO-3D and DexYCB programs: **a mirrored hand then gets a small error**. The two agree when no mirror
    image fits better. Meshes are aligned by their own transform, never by the joints'.
    """
    p, g, _ = _pair(pred, gt, mask)
    out = np.empty_like(p)
    for part in _slices(len(p)):
        m = None if mask is None else np.broadcast_to(np.asarray(mask), p.shape[:2])[part]
        s, R, t = similarity_transform(p[part], g[part], scale, reflection, m)
        np.matmul(p[part], (s[:, None, None] * R).transpose(0, 2, 1), out=out[part])
        out[part] += t[:, None]
    return out


def align_rigid(pred: ArrayLike, gt: ArrayLike) -> Array:
    """Rotation and translation only (Kabsch), proper rotation."""
    return align_procrustes(pred, gt, scale=False)


def align_official(pred: ArrayLike, gt: ArrayLike) -> Array:
    """The alignment of the official FreiHAND, HO-3D and DexYCB programs: similarity, mirror images allowed."""
    return align_procrustes(pred, gt, reflection=True)


def _slices(n: int) -> Iterator[slice]:
    return (slice(i, i + _FRAMES_AT_ONCE) for i in range(0, n, _FRAMES_AT_ONCE))


# Alignments by the names protocols use; each takes (pred, gt, root) and returns the pair to compare.
ALIGNMENTS: dict[str, Callable[[Array, Array, int], tuple[Array, Array]]] = {
    "none": lambda p, g, root: (p, g),
    "root": lambda p, g, root: (root_relative(p, root), root_relative(g, root)),
    "scale-translation": lambda p, g, root: (align_scale_translation(p, g, root, 4), g),
    "rigid": lambda p, g, root: (align_rigid(p, g), g),
    "procrustes": lambda p, g, root: (align_procrustes(p, g), g),
    "procrustes-reflection": lambda p, g, root: (align_official(p, g), g),
}


# ---------------------------------------------------------------------------------------------------------- meshes


def f_score(pred_verts: ArrayLike, gt_verts: ArrayLike, threshold: ArrayLike) -> Array:
    """F-score of each frame: (N,) for one threshold, (N, K) for K thresholds; same unit as the vertices.

    Precision is the share of predicted vertices whose nearest true vertex is strictly closer than the threshold, recall
    the reverse, F = 2PR / (P + R), 0 where both are 0. The two meshes may have different vertex counts.

    All distances of a frame come from one float32 matrix product; vertices whose nearest distance is too close to a
    threshold for float32 to decide are decided in float64, so the result is that of a float64 search.

    Raises:
        DataError: shapes, or vertices that are not finite (frame named).
    """
    p, g = np.asarray(pred_verts, np.float64), np.asarray(gt_verts, np.float64)
    if p.ndim != 3 or g.ndim != 3 or len(p) != len(g) or p.shape[-1] != g.shape[-1] or not p.shape[1] * g.shape[1]:
        raise DataError(f"expected vertices (N, V, 3) for the same N frames, got {p.shape} and {g.shape}")
    for name, values in (("predicted", p), ("true", g)):
        bad = ~np.isfinite(values).all((1, 2))
        if bad.any():
            raise DataError(f"the {name} vertices of frame {int(bad.argmax())} are not finite")
    t = np.atleast_1d(np.asarray(threshold, np.float64))
    f = np.empty((len(p), len(t)))
    for i in range(0, len(p), 8):
        f[i : i + 8] = _f_scores(p[i : i + 8], g[i : i + 8], t)
    return f if np.ndim(threshold) else f[:, 0]


def _f_scores(p: Array, g: Array, t: Array) -> Array:
    """(n, K) F-scores of a few frames."""
    centre = g.mean(1, keepdims=True)
    p, g = p - centre, g - centre
    pp, gg = (p * p).sum(-1, keepdims=True), (g * g).sum(-1, keepdims=True)
    left = np.concatenate([p, pp, np.ones_like(pp)], -1).astype(np.float32)
    right = np.concatenate([-2 * g, np.ones_like(gg), gg], -1).astype(np.float32)
    squared = left @ right.transpose(0, 2, 1)  # (n, V_pred, V_gt): |p|^2 - 2 p.g + |g|^2
    # Five float32 products and sums err by less than 16 half-units in the last place of |p|^2 + |g|^2.
    doubt = 1e-6 * (pp.max(1) + gg.max(1))
    shares = []
    for own, other, axis in ((p, g, 2), (g, p, 1)):
        nearest = squared.min(axis)
        close = nearest[..., None] < t * t  # (n, V, K)
        unsure = np.abs(nearest[..., None] - t * t) <= doubt[:, None]
        for frame in np.flatnonzero(unsure.any((1, 2))):
            vertex = np.flatnonzero(unsure[frame].any(-1))
            exact = np.linalg.norm(own[frame, vertex, None] - other[frame], axis=-1).min(-1)
            close[frame, vertex] = exact[:, None] < t
        shares.append(close.mean(1))
    precision, recall = shares
    both = precision + recall
    return np.asarray(2 * precision * recall / np.where(both > 0, both, 1.0))


def _check_mesh(pred_verts: ArrayLike, gt_verts: ArrayLike) -> None:
    for name, verts in (("predicted", pred_verts), ("true", gt_verts)):
        shape = np.shape(verts)
        if len(shape) != 3 or shape[1:] != (MESH_VERTICES, 3):
            raise DataError(
                f"expected {name} meshes of {MESH_VERTICES} vertices, got shape {shape}",
                remedy="the official programs align other meshes by the joints' transform and shrink them (a bug); "
                "score joints only, or give the MANO mesh",
            )


def _mean_and_auc(pred: ArrayLike, gt: ArrayLike) -> tuple[float, float, float]:
    """Mean (cm), area 0..50 mm, and median (cm) as FreiHAND's program has them, of inputs in mm."""
    e = joint_errors(pred, gt)
    return mean_error(e, "joints") / 10, auc(e, *AUC_GRIDS["0-50x100"]), median_error(e, "joints") / 10


def ho3d_scores(
    pred_mm: ArrayLike,
    gt_mm: ArrayLike,
    pred_verts_mm: ArrayLike | None = None,
    gt_verts_mm: ArrayLike | None = None,
    *,
    scale_translation: bool = True,
) -> dict[str, float]:
    """The official ``scores.txt`` of HO-3D: lengths in **centimetres**, areas over 0..50 mm with 100 thresholds.

    Args:
        pred_mm, gt_mm: (N, 21, 3) joints in HO-3D's ("mano") order, mm. ``xyz_mean3d`` is absolute, not root-relative.
        pred_verts_mm, gt_verts_mm: (N, 778, 3); without them the mesh entries are left out.
        scale_translation: False leaves out that alignment, as FreiHAND's program does (any joint order will do then).

    Raises:
        DataError: shapes, values that are not finite, meshes of another size.
    """
    scores: dict[str, float] = {}

    def add(prefix: str, infix: str, pred: ArrayLike, gt: ArrayLike) -> None:
        mean, area, median = _mean_and_auc(pred, gt)
        scores.update(
            {f"{prefix}_{infix}mean3d": mean, f"{prefix}_{infix}auc3d": area, f"{prefix}_{infix}median3d": median}
        )

    add("xyz", "", pred_mm, gt_mm)
    add("xyz", "procrustes_al_", align_official(pred_mm, gt_mm), gt_mm)
    if scale_translation:
        add("xyz", "scale_trans_al_", align_scale_translation(pred_mm, gt_mm), gt_mm)
    if pred_verts_mm is not None and gt_verts_mm is not None:
        _check_mesh(pred_verts_mm, gt_verts_mm)
        aligned = align_official(pred_verts_mm, gt_verts_mm)
        add("mesh", "", pred_verts_mm, gt_verts_mm)
        add("mesh", "al_", aligned, gt_verts_mm)
        for name, verts in (("f", pred_verts_mm), ("f_al", aligned)):
            at_5, at_15 = f_score(verts, gt_verts_mm, [5.0, 15.0]).mean(0)
            scores.update({f"{name}_score_5": float(at_5), f"{name}_score_15": float(at_15)})
    return scores


def dexycb_scores(pred_mm: ArrayLike, gt_mm: ArrayLike) -> dict[str, dict[str, float]]:
    """The three lines of DexYCB's hand evaluation, each ``mpjpe_mm`` and ``auc`` (0..50 mm, 100 thresholds).

    (N, 21, 3) mm, wrist first. "procrustes" allows mirror images, as the official program does.
    """
    p, g, _ = _pair(pred_mm, gt_mm)
    lines = {"absolute": "none", "root_relative": "root", "procrustes": "procrustes-reflection"}
    scores = {}
    for line, alignment in lines.items():
        e = joint_errors(*ALIGNMENTS[alignment](p, g, 0))
        scores[line] = {"mpjpe_mm": mean_error(e), "auc": auc(e, *AUC_GRIDS["0-50x100"])}
    return scores


def handoccnet_errors(pred_mm: ArrayLike, gt_mm: ArrayLike, root: int = 0) -> tuple[Array, Array]:
    """HandOccNet's DexYCB errors of each frame, (N,) mm: root-aligned, and Procrustes-aligned with proper rotations.

    Left hands are mirrored back before by the caller.
    """
    moved = align_root(pred_mm, gt_mm, root)
    own = frame_error(joint_errors(moved, gt_mm), "mean")
    return own, frame_error(joint_errors(align_procrustes(moved, gt_mm), gt_mm), "mean")
