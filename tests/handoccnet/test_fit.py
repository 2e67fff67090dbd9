"""The translation fit against the original's objective, gradients, results and the true optima."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from handoccnet.fit import _Problem, fit_translation
from shared.camera import project
from shared.errors import DataError

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


@pytest.fixture(scope="module")
def z(golden: Path) -> dict[str, NDArray[Any]]:
    return dict(np.load(golden / "handoccnet/fitting.npz"))


def problem(z: dict[str, NDArray[Any]], depth_m: float | None) -> _Problem:
    prior = None if depth_m is None else torch.tensor([depth_m], dtype=torch.float64)
    joints, pixels = (torch.from_numpy(z[name].astype(np.float64))[None] for name in ("joints_cam", "joints_img"))
    return _Problem(joints, pixels, torch.from_numpy(K)[None], prior, 1000.0)


def test_objective_and_gradient_are_the_originals(z: dict[str, NDArray[Any]]) -> None:
    worst = [0.0, 0.0]
    for i, point in enumerate(z["points"].astype(np.float64)):
        for j, depth in enumerate(z["prior_depths"].tolist()):
            t = torch.from_numpy(point)[None].requires_grad_(True)
            value = problem(z, depth).objective(t).sum()
            (gradient,) = torch.autograd.grad(value, t)
            expected = z["grad_with_prior"][i, j]
            worst[0] = max(worst[0], abs(float(value.detach()) / z["objective"][i, j] - 1))
            worst[1] = max(worst[1], float(np.abs(gradient[0].numpy() - expected).max() / np.abs(expected).max()))
    print(f"fit objective: max relative diff {worst[0]:.3g}, gradient {worst[1]:.3g}")
    assert worst[0] < 1e-5
    assert worst[1] < 1e-4


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_every_start_reaches_the_optimum(z: dict[str, NDArray[Any]], method: Any) -> None:
    depths = [*z["inits"].tolist(), None]
    for i, depth in enumerate(depths):
        fit = fit_translation(
            z["joints_cam"][None] * 1000.0,
            z["joints_img"][None],
            K,
            depth_mm=None if depth is None else depth * 1000,
            method=method,
        )
        excess = fit.objective[0] / z["optimum_objective"][i] - 1
        print(f"{method} fit, expected depth {depth}: {100 * excess:.3f} % above the optimum")
        assert excess < (0.005 if depth is not None or method == "newton" else 0.02)
        if i < 5:
            # the original stalls far off; L-BFGS stops a little before the corner that an L1 optimum is
            slack = {"newton": 1e-6, "lbfgs": 2e-3}[method]
            assert fit.objective[0] <= z["reference_objective"][i] * (1 + slack)
        np.testing.assert_allclose(fit.translation_mm[0] / 1000, z["optimum"][i], atol=0.006)


def random_hands(count: int, noise_px: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    joints = rng.normal(0, 40, (count, 21, 3))
    truth = rng.uniform([-200, -150, 350], [200, 150, 1500], (count, 3))
    pixels = project(joints + truth[:, None], K) + noise_px * rng.normal(size=(count, 21, 2))
    return joints, pixels, truth


def test_many_hands_at_once_are_the_same_as_one_by_one() -> None:
    joints, pixels, _ = random_hands(20, 2.0)
    together = fit_translation(joints, pixels, K, depth_mm=700.0)
    for i in range(20):
        alone = fit_translation(joints[i : i + 1], pixels[i : i + 1], np.stack([K]), depth_mm=[700.0])
        np.testing.assert_allclose(alone.translation_mm[0], together.translation_mm[i], atol=1e-3)


def test_exact_pixels_give_the_exact_place_without_a_guess() -> None:
    joints, pixels, truth = random_hands(30, 0.0)
    fit = fit_translation(joints, pixels, K)
    np.testing.assert_allclose(fit.translation_mm, truth, atol=1e-3)
    assert fit.reprojection_px.max() < 1e-4


def test_prior_pulls_and_its_weight_counts() -> None:
    joints, pixels, truth = random_hands(10, 3.0)
    free = fit_translation(joints, pixels, K).translation_mm[:, 2]
    held = fit_translation(joints, pixels, K, depth_mm=truth[:, 2], depth_weight=1e9).translation_mm[:, 2]
    np.testing.assert_allclose(held, truth[:, 2], atol=0.5)
    assert np.abs(free - truth[:, 2]).max() > 1


def test_an_outlier_does_not_move_the_hand_much() -> None:
    joints, pixels, truth = random_hands(5, 0.2)
    pixels[:, 3] += 200
    fit = fit_translation(joints, pixels, K)
    assert np.abs(fit.translation_mm - truth).max() < 15  # a least-squares fit is off by decimetres here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints_mm": np.zeros((2, 21, 2))}, r"expected joints \(B, J, 3\)"),
        ({"keypoints_2d": np.zeros((1, 21, 2))}, r"keypoints \(B, J, 2\)"),
        ({"K": np.zeros((3, 3))}, "positive focal lengths"),
        ({"depth_mm": -5.0}, "expected depth must be positive"),
        ({"joints_mm": np.full((2, 21, 3), np.nan)}, "joints of hand 0 are not finite"),
        ({"keypoints_2d": np.full((2, 21, 2), np.inf)}, "keypoints of hand 0 are not finite"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    joints, pixels, _ = random_hands(2, 0.0)
    with pytest.raises(DataError, match=message):
        fit_translation(**{"joints_mm": joints, "keypoints_2d": pixels, "K": K, **change})
