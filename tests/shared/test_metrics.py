import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import metrics as M
from shared.errors import DataError
from tests.golden.fill import uniform


def hands(n=6, j=21, seed=0, noise=5.0):
    """Random hands in front of the camera and noisy predictions of them, mm."""
    rng = np.random.default_rng(seed)
    gt = rng.normal(scale=40.0, size=(n, j, 3)) + np.array([0, 0, 500])
    return gt + rng.normal(scale=noise, size=gt.shape), gt


def rotations(n, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, 3, 3)))[0]
    return q * np.where(np.linalg.det(q) < 0, -1.0, 1.0)[:, None, None]


# ------------------------------------------------------------------------------------------------ golden numbers


def test_v2v_golden(golden):
    g = np.load(golden / "v2v_posenet" / "metrics.npz")
    shape = (200, 21, 3)
    gt = uniform("v2v_posenet/public/metrics/gt", shape, -80, 80).astype(np.float64)
    pred = gt + uniform("v2v_posenet/public/metrics/noise", shape, -25, 25).astype(np.float64)
    pred[3, 2] = gt[3, 2]
    e = M.joint_errors(pred, gt)
    t = np.arange(81)
    ap_mean, ap = M.itop_map(e, 25)
    pairs = {
        "err": (e, g["err"]),
        "mean_err": (M.per_joint_error(e), g["mean_err"]),
        "mean_err_all": (M.mean_error(e), g["mean_err_all"]),
        "acc": (M.accuracy(e, g["dist"]), g["acc"]),
        "max": (M.success_rate(e, t, "max"), g["own_max_frame_success_le"]),
        "mean": (M.success_rate(e, t, "mean"), g["own_mean_frame_success_le"]),
        "joint": (M.success_rate(e, t, "joint"), g["own_joint_success_le"]),
        "ap": (ap, g["own_ap_lt_25"]),
        "map": (ap_mean, g["own_map_lt_25"]),
    }
    for name, (ours, theirs) in pairs.items():
        print(f"v2v {name} max diff {np.abs(ours - theirs).max():.3g}")
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_official_rgb_scores(real_data):
    z = np.load(real_data / "metrics_golden" / "inputs.npz")
    expected = json.loads((real_data / "metrics_golden" / "expected.json").read_text())
    arrays = {k: z[k].astype(np.float64) * 1000 for k in z.files}
    worst = 0.0
    for case, frames in (("all_frames", slice(None)), ("without_mirrored_frame", slice(0, 7))):
        want = expected[case]
        a = {k: v[frames] for k, v in arrays.items()}
        scores = M.ho3d_scores(a["pred_joints"], a["gt_joints"], a["pred_verts"], a["gt_verts"])
        for key, value in want["ho3d_eval"].items():
            worst = max(worst, abs(scores[key.removesuffix("_cm")] - value))
        dex = M.dexycb_scores(a["pred_joints"], a["gt_joints"])
        for line, values in want["dexycb_hpe"].items():
            worst = max([worst] + [abs(dex[line][k] - v) for k, v in values.items()])
        own, aligned = M.handoccnet_errors(a["pred_joints"], a["gt_joints"])
        worst = max(worst, abs(own.mean() - want["handoccnet_dexycb"]["mpjpe_mm"]))
        worst = max(worst, np.abs(aligned - want["handoccnet_dexycb"]["pa_mpjpe_mm_per_frame"]).max())
        rigid = M.joint_errors(M.align_rigid(a["pred_joints"], a["gt_joints"]), a["gt_joints"])
        worst = max(worst, abs(rigid.mean() - want["kabsch_no_scale_mpjpe_mm"]))
    print(f"official HO-3D, DexYCB and HandOccNet scores, max diff {worst:.3g}")
    assert worst < 1e-5


def test_handoccnet_golden(golden):
    g = np.load(golden / "handoccnet" / "metrics.npz")
    a = uniform("handoccnet/align/A", (6, 21, 3), -0.1, 0.1).astype(np.float64)
    b = uniform("handoccnet/align/B", (6, 21, 3), -0.1, 0.1).astype(np.float64)
    b[0], b[1] = 1.3 * a[0] + 0.2, a[1] * [-1, 1, 1]
    s, R, t = M.similarity_transform(a, b)
    aligned = M.align_procrustes(a, b)
    for name, ours in (("align_scale_f64", s), ("align_R_f64", R), ("align_t_f64", t), ("aligned_f64", aligned)):
        print(f"handoccnet {name} max diff {np.abs(ours - g[name]).max():.3g}")
        np.testing.assert_allclose(ours, g[name], atol=1e-6)


def test_sohandnet_golden(golden):
    g = np.load(golden / "sohandnet" / "metric.npz")
    e = M.joint_errors(g["world_pred"], g["world_gt"])
    worst = max(
        np.abs(e - g["joint_error"]).max(),
        abs(M.mean_error(e) - g["mean_error_mm"]),
        np.abs(M.per_joint_error(e) - g["per_joint_mean"]).max(),
    )
    print(f"sohandnet joint errors, max diff {worst:.3g} mm")
    assert worst < 1e-4


def test_selfsup_golden(golden):
    g = np.load(golden / "selfsup_fitting" / "metric.npz")
    joints = [0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32]
    spheres = [33, 32, 27, 26, 21, 20, 15, 14, 39, 40, 38, 0, 1, 2]
    e = M.joint_errors(g["est"][:, 0, spheres], g["gt"][:, 0, joints])
    twelve = e[:, [*range(11), 13]]
    worst = max(
        abs(M.mean_error(e) - g["mean_error_14"]),
        abs(M.mean_error(twelve) - g["mean_error_12"]),
        np.abs(M.per_joint_error(twelve) - g["per_joint_12"]).max(),
        np.abs(M.frame_error(twelve, "max") - g["max_error_12"]).max(),
        np.abs(M.success_rate(e, g["thresholds"]) - g["fraction_below_14"]).max(),
        np.abs(M.success_rate(twelve, g["thresholds"]) - g["fraction_below_12"]).max(),
    )
    print(f"selfsup errors and success rates, max diff {worst:.3g}")
    assert worst < 1e-4


# ------------------------------------------------------------------------------------------- definitions by hand


def test_thresholds_are_inclusive_in_curves_and_strict_in_accuracy():
    e = np.array([[10.0, 20.0], [30.0, 5.0]])
    assert M.success_rate(e, [20, 30], "max").tolist() == [0.5, 1.0]
    assert M.success_rate(e, [15, 17.5], "mean").tolist() == [0.5, 1.0]
    assert M.success_rate(e, [5, 10], "joint").tolist() == [0.25, 0.5]
    assert M.accuracy(e, [10, 30]).tolist() == [[0.0, 0.5], [0.5, 1.0]]
    assert M.pck_curve(e, [20]).tolist() == [0.75]
    assert M.itop_map(np.array([[100.0], [99.9]]))[0] == 0.5


def test_masked_joints_take_part_in_nothing():
    pred, gt = hands(4, 3)
    mask = np.ones((4, 3), bool)
    mask[0, 1] = mask[2, 1] = False
    mask[3] = False
    wild, hurt = pred.copy(), gt.copy()
    wild[~mask] = np.nan  # what lies under the mask may be anything
    hurt[~mask] = 1e9
    e, plain = M.joint_errors(wild, hurt, mask), M.joint_errors(pred, gt)
    np.testing.assert_array_equal(np.isnan(e), ~mask)
    np.testing.assert_allclose(M.per_joint_error(e), [plain[:3, 0].mean(), plain[1, 1], plain[:3, 2].mean()])
    assert M.mean_error(e) == pytest.approx(plain[mask].mean())
    assert M.mean_error(e, "joints") == pytest.approx(M.per_joint_error(e).mean())
    assert M.mean_error(e) != pytest.approx(M.mean_error(e, "joints"))
    np.testing.assert_allclose(M.frame_error(e, "max")[:2], [plain[0, [0, 2]].max(), plain[1].max()])
    assert np.isnan(M.frame_error(e, "max")[3])
    assert np.isnan(M.frame_error(e, "mean")[3])
    assert M.success_rate(e, [1e6]) == 1.0  # the frame without a label is not counted
    assert M.success_rate(e, [-1.0]) == 0.0
    assert M.median_error(e) == pytest.approx(np.median(plain[mask]))
    np.testing.assert_array_equal(M.pck_curve(plain, [5.0], mask), M.pck_curve(e, [5.0]))
    assert M.auc(plain, 0, 20, 9, mask) == M.auc(e, 0, 20, 9)
    assert M.auc(plain, 0, 20, 9) != M.auc(e, 0, 20, 9)


def test_joint_that_is_never_visible_and_nothing_visible_at_all():
    pred, gt = hands(4, 3)
    e = M.joint_errors(pred, gt, np.array([True, False, True]))
    assert np.isnan(M.per_joint_error(e)[1])
    assert np.isfinite(
        [M.mean_error(e), M.mean_error(e, "joints"), M.median_error(e, "joints"), M.auc(e, 0, 50, 5)]
    ).all()
    nothing = M.joint_errors(pred, gt, np.zeros(3, bool))
    assert np.isnan([M.mean_error(nothing), M.median_error(nothing), M.success_rate(nothing, [1.0])[0]]).all()


def test_median_of_freihand_is_the_mean_of_joint_medians():
    e = np.array([[1.0, 10.0], [2.0, 20.0], [9.0, 90.0]])
    assert M.median_error(e) == 9.5
    assert M.median_error(e, "joints") == 11.0


def test_auc_grids():
    assert len(M.AUC_GRIDS["20-50x12"].thresholds) == 12
    np.testing.assert_allclose(M.AUC_GRIDS["20-50x12"].thresholds, np.linspace(0, 50, 20)[8:])
    np.testing.assert_allclose(M.AUC_GRIDS["20-50x31"].thresholds, np.arange(20, 51))
    np.testing.assert_allclose(M.AUC_GRIDS["0-30px"].thresholds, np.arange(31))
    e = np.full((5, 2), 10.0)
    assert M.auc(e, 0, 50, 6) == pytest.approx(0.9)  # 0 at 0, 1 from 10 on: the first trapezoid counts half
    assert M.auc(e, *M.AUC_GRIDS["0-50x100"]) == pytest.approx(1 - 19.5 / 99)  # 10 lies between points 19 and 20
    assert str(M.AUC_GRIDS["0-50x100"]) == "0..50, 100 thresholds"
    with pytest.raises(DataError, match=r"at least two thresholds .* n=1"):
        M.auc(e, 0, 50, 1)


@pytest.mark.parametrize("where", ["prediction", "ground truth"])
def test_values_that_are_not_finite_are_refused_with_their_frame(where):
    pred, gt = hands()
    (pred if where == "prediction" else gt)[4, 7, 1] = np.nan
    with pytest.raises(DataError, match=rf"{where} of frame 4, joint 7 is not finite.*1 frames"):
        M.joint_errors(pred, gt)
    with pytest.raises(DataError, match="frame 4"):
        M.align_procrustes(pred, gt)


def test_shape_and_mask_errors():
    pred, gt = hands()
    with pytest.raises(DataError, match=r"one shape \(N, J, D\), got \(6, 21, 3\) and \(5, 21, 3\)"):
        M.joint_errors(pred, gt[:5])
    with pytest.raises(DataError, match="boolean mask of visible joints, got int64"):
        M.joint_errors(pred, gt, np.ones((6, 21), np.int64))
    with pytest.raises(DataError, match="joint 21 does not exist: there are 21"):
        M.align_root(pred, gt, 21)
    with pytest.raises(DataError, match=r"778 vertices, got shape \(6, 500, 3\).*shrink"):
        M.ho3d_scores(pred, gt, np.zeros((6, 500, 3)), np.zeros((6, 778, 3)))
    with pytest.raises(DataError, match=r"vertices \(N, V, 3\) for the same N frames"):
        M.f_score(np.zeros((2, 9, 3)), np.zeros((3, 9, 3)), 5)
    with pytest.raises(DataError, match="true vertices of frame 1 are not finite"):
        M.f_score(np.zeros((2, 9, 3)), np.array([np.zeros((9, 3)), np.full((9, 3), np.inf)]), 5)


# ----------------------------------------------------------------------------------------------------- alignments


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5), st.floats(-300, 300))
def test_procrustes_undoes_any_similarity(seed, s, t):
    _, gt = hands(3, seed=seed)
    moved = s * gt @ rotations(3, seed).transpose(0, 2, 1) + t
    np.testing.assert_allclose(M.align_procrustes(moved, gt), gt, atol=1e-6)
    np.testing.assert_allclose(M.align_official(moved, gt), gt, atol=1e-6)
    rigid = gt @ rotations(3, seed).transpose(0, 2, 1) + t
    np.testing.assert_allclose(M.align_rigid(rigid, gt), gt, atol=1e-6)


def test_only_the_official_alignment_forgives_a_mirrored_hand():
    _, gt = hands()
    mirrored = gt * [-1, 1, 1]
    assert M.joint_errors(M.align_official(mirrored, gt), gt).max() < 1e-6
    assert M.joint_errors(M.align_procrustes(mirrored, gt), gt).mean() > 10
    assert (np.linalg.det(M.similarity_transform(mirrored, gt)[1]) > 0).all()


def test_procrustes_is_the_best_and_matches_scipy():
    from scipy.linalg import orthogonal_procrustes

    pred, gt = hands(noise=30)
    ours = M.align_official(pred, gt)
    for i in range(len(gt)):  # the official recipe, frame by frame
        g, p = gt[i] - gt[i].mean(0), pred[i] - pred[i].mean(0)
        ng, npred = np.linalg.norm(g), np.linalg.norm(p)
        R, s = orthogonal_procrustes(g / ng, p / npred)
        np.testing.assert_allclose(ours[i], p / npred @ R.T * s * ng + gt[i].mean(0), atol=1e-9)


def test_rigid_keeps_lengths_and_is_never_better_than_similarity():
    pred, gt = hands(noise=20)
    rigid = M.align_rigid(2 * pred, gt)
    np.testing.assert_allclose(
        np.linalg.norm(rigid[:, 3] - rigid[:, 9], axis=-1), 2 * np.linalg.norm(pred[:, 3] - pred[:, 9], axis=-1)
    )
    square = [(M.joint_errors(a, gt) ** 2).sum(1) for a in (M.align_procrustes(2 * pred, gt), rigid)]
    assert (square[0] <= square[1] + 1e-9).all()


def test_alignment_with_a_mask_ignores_hidden_joints():
    _, gt = hands()
    pred = 1.4 * gt @ rotations(6).transpose(0, 2, 1) + 7
    mask = np.random.default_rng(2).random((6, 21)) > 0.4
    pred[~mask] += 500
    aligned = M.align_procrustes(pred, gt, mask=mask)
    assert np.nanmax(M.joint_errors(aligned, gt, mask)) < 1e-6
    assert np.nanmax(M.joint_errors(M.align_procrustes(pred, gt), gt, mask)) > 1


def test_all_zero_submission_lands_on_the_centroid():
    _, gt = hands()
    for align in (M.align_official, M.align_procrustes):
        np.testing.assert_allclose(align(np.zeros_like(gt), gt), np.broadcast_to(gt.mean(1, keepdims=True), gt.shape))


def test_root_alignment():
    pred, gt = hands()
    moved = M.align_root(pred, gt, 5)
    np.testing.assert_allclose(moved[:, 5], gt[:, 5])
    np.testing.assert_allclose(
        M.joint_errors(moved, gt), M.joint_errors(M.root_relative(pred, 5), M.root_relative(gt, 5)), atol=1e-9
    )
    np.testing.assert_allclose(M.align_root(pred, gt, -1)[:, 20], gt[:, 20])


def test_scale_translation_uses_one_bone():
    _, gt = hands()
    np.testing.assert_allclose(M.align_scale_translation(3 * gt + 50, gt), gt, atol=1e-9)
    flat = 3 * gt
    flat[:, 4] = flat[:, 0]  # no bone: the scale stays 3
    out = M.align_scale_translation(flat, gt)
    np.testing.assert_allclose(out[:, 9] - out[:, 0], 3 * (gt[:, 9] - gt[:, 0]))


@pytest.mark.parametrize("name", M.ALIGNMENTS)
def test_alignments_by_name(name):
    pred, gt = hands()
    a, b = M.ALIGNMENTS[name](pred, gt, 0)
    e = M.joint_errors(a, b)
    direct = {
        "none": pred - gt,
        "root": M.align_root(pred, gt) - gt,
        "scale-translation": M.align_scale_translation(pred, gt, 0, 4) - gt,
        "rigid": M.align_procrustes(pred, gt, scale=False) - gt,
        "procrustes": M.align_procrustes(pred, gt) - gt,
        "procrustes-reflection": M.align_procrustes(pred, gt, reflection=True) - gt,
    }[name]
    np.testing.assert_allclose(e, np.linalg.norm(direct, axis=-1), atol=1e-9)


def test_chunked_alignment_equals_frame_by_frame():
    pred, gt = hands(600, 5)
    whole = M.align_procrustes(pred, gt)
    for i in (0, 127, 128, 599):
        np.testing.assert_allclose(whole[i], M.align_procrustes(pred[i : i + 1], gt[i : i + 1])[0], atol=1e-9)


# --------------------------------------------------------------------------------------------------------- meshes


def naive_f(p, g, t):
    d = np.linalg.norm(p[:, None] - g[None], axis=-1)
    precision, recall = (d.min(1) < t).mean(), (d.min(0) < t).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_f_score_matches_the_definition():
    rng = np.random.default_rng(0)
    g = rng.normal(scale=30, size=(4, 200, 3))
    p = g[:, :150] + rng.normal(scale=4, size=(4, 150, 3))
    p[3] += 1e4
    both = M.f_score(p, g, [5.0, 15.0])
    for k, t in enumerate((5.0, 15.0)):
        expected = [naive_f(p[i], g[i], t) for i in range(4)]
        np.testing.assert_allclose(both[:, k], expected)
        np.testing.assert_allclose(M.f_score(p, g, t), expected)
    assert both[3].tolist() == [0.0, 0.0]


def test_f_score_decides_ties_as_float64_does():
    # Every vertex is exactly at the threshold, or one part in 1e10 nearer, and the hand is far from the origin.
    g = np.arange(50.0)[:, None] * [40.0, 0, 0] + np.array([0, 0, 5e4])
    p = g + np.array([3.0, 4.0, 0.0])
    near = g + np.array([3.0, 4.0, 0.0]) * (1 - 1e-10)
    f = M.f_score(np.stack([p, near]), np.stack([g, g]), [5.0, 15.0])
    assert f.tolist() == [[naive_f(p, g, 5.0), 1.0], [1.0, 1.0]] == [[0.0, 1.0], [1.0, 1.0]]


def test_f_score_threshold_is_strict():
    g = np.zeros((1, 1, 3))
    p = np.array([[[3.0, 4.0, 0.0]]])
    assert M.f_score(p, g, 5.0)[0] == 0.0
    assert M.f_score(p, g, 5.0 + 1e-9)[0] == 1.0


def test_speed_of_meshes():
    rng = np.random.default_rng(0)
    gt = rng.normal(scale=30, size=(500, 778, 3))
    pred = gt + rng.normal(scale=3, size=gt.shape)
    start = time.perf_counter()
    M.align_procrustes(pred, gt)
    seconds = (time.perf_counter() - start) * 20
    print(f"Procrustes of 10,000 meshes would take {seconds:.2f} s")
    assert seconds < 10  # measured 1 s; the bound only catches a loop over frames on a busy machine
