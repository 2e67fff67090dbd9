"""The loss terms against the original's numbers and by their laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup_fitting import losses
from selfsup_fitting.kernels import ops
from selfsup_fitting.multiview import mutual_transforms
from selfsup_fitting.spheres import REFERENCE_LENGTHS_MM
from tests.golden.fill import uniform

FOLDER = Path(__file__).parents[1] / "golden/selfsup_fitting"
LENGTHS = torch.tensor(REFERENCE_LENGTHS_MM)


def golden(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def named(name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.from_numpy(uniform(f"selfsup.{name}", shape, low, high))


@pytest.fixture(scope="module")
def measured() -> dict[str, Tensor]:
    return golden("losses") | golden("camera_multiview")


def check(name: str, value: Tensor, expected: Tensor, relative: float = 2e-4) -> None:
    off = float((value.detach() - expected).abs() / expected.abs().clamp(min=1e-9))
    print(f"{name}: {float(value.detach()):.6g}, max diff {off:.3g} relative")
    assert off <= relative


def check_gradient(name: str, value: Tensor, spheres: Tensor, expected: Tensor) -> None:
    (grad,) = torch.autograd.grad(value, spheres)
    off = float((grad - expected).abs().max() / expected.abs().max())
    print(f"{name} gradient: max diff {off:.3g} of the largest entry")
    assert off <= 1e-3


@pytest.mark.parametrize("multiview", [True, False])
def test_projection(measured: dict[str, Tensor], multiview: bool) -> None:
    spheres = measured["joints"].clone().requires_grad_()
    name = f"mv_projection_{'multi' if multiview else 'single'}"
    value, by_view = losses.projection(
        spheres, measured["camera_poses"], measured["sphere_radius"], measured["real_depth"], multiview=multiview
    )
    check(name, value, measured[name])
    check_gradient(name, value, spheres, measured[f"{name}_grad"])
    assert by_view.shape == ((3, 3) if multiview else (3,))
    assert float(9 * by_view.mean()) == pytest.approx(float(value), rel=1e-5)
    assert not by_view.requires_grad


def test_both_directions_of_the_projection(measured: dict[str, Tensor]) -> None:
    pairs = mutual_transforms(measured["camera_poses"])
    terms = ops.projection_loss(measured["joints"], pairs, measured["sphere_radius"], measured["real_depth"])
    check("model to data", 9 * terms.model_to_data.mean(), measured["model_to_data_x9"])
    check("data to model", 9 * terms.data_to_model.mean(), measured["data_to_model_x9"])
    own = ops.projection_loss(measured["joints"], None, measured["sphere_radius"], measured["real_depth"])
    check("data to model, own views", own.data_to_model.mean(), measured["data_to_model_plain"])


def test_consistency(measured: dict[str, Tensor]) -> None:
    spheres = measured["joints"].clone().requires_grad_()
    value = losses.consistency(spheres, measured["camera_poses"])
    check("mv_consistency", value, measured["mv_consistency"])
    check_gradient("mv_consistency", value, spheres, measured["mv_consistency_grad"])
    whole = losses.consistency(spheres, measured["camera_poses"], "sum", "frame")
    torch.testing.assert_close(whole, value * spheres.numel() * 25 / len(spheres))
    again = losses.consistency(spheres.repeat(3, 1, 1, 1), measured["camera_poses"].repeat(3, 1, 1, 1), "sum", "frame")
    torch.testing.assert_close(again, whole)  # whatever the batch
    total = losses.consistency(spheres, measured["camera_poses"], "sum")
    assert float(total) == pytest.approx(float(value) * spheres.numel(), rel=1e-5)


def test_weighted_consistency(measured: dict[str, Tensor]) -> None:
    spheres = measured["joints"].clone().requires_grad_()
    weights = named("loss.hm_weight", (2, 3, 41, 1), 0.0, 1.0)[..., 0]
    median = losses.weighted_consistency(spheres, measured["camera_poses"], weights, "median")
    check("weighted by the median's view", median, measured["mv_consistency_weighted_sum"])
    best = losses.weighted_consistency(spheres, measured["camera_poses"], weights, "best")
    check("against the best view", best, measured["weighted_mv_consistency"])
    check_gradient("against the best view", best, spheres, measured["weighted_mv_consistency_grad"])


def test_collision(measured: dict[str, Tensor]) -> None:
    spheres = measured["collision_joints"].clone().requires_grad_()
    value = losses.collision(spheres, views="first", reduction="reference")
    check("collision", value, measured["collision"])
    check_gradient("collision", value, spheres, measured["collision_grad"])


def test_bone_length(measured: dict[str, Tensor]) -> None:
    spheres = measured["joints"].clone().requires_grad_()
    value = losses.bone_length(spheres, LENGTHS, views="first")
    check("bone length", value, measured["bone_length"])
    check_gradient("bone length", value, spheres, measured["bone_length_grad"])


@pytest.mark.parametrize("term", ["collision", "bone_length"])
def test_all_views_count_by_default(measured: dict[str, Tensor], term: str) -> None:
    spheres = measured["collision_joints"].clone().requires_grad_()

    def value(points: Tensor, **how: str) -> Tensor:
        if term == "collision":
            return losses.collision(points, **how)  # type: ignore[arg-type]
        return losses.bone_length(points, LENGTHS, **how)  # type: ignore[arg-type]

    (grad,) = torch.autograd.grad(value(spheres), spheres)
    assert (grad.abs().amax((0, 2, 3)) > 0).all()  # README, Q3: the original's is zero for views 1 and 2
    same = spheres.detach()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(value(same), value(same, views="first"))  # a mean: the weight keeps its meaning


def test_sums_do_not_grow_with_the_batch(measured: dict[str, Tensor]) -> None:
    spheres = measured["collision_joints"]
    one, twice = losses.collision(spheres), losses.collision(torch.cat([spheres, spheres]))
    torch.testing.assert_close(one, twice)
    many = spheres.repeat(13, 1, 1, 1)[:25]
    torch.testing.assert_close(
        losses.collision(many), losses.collision(many, reduction="reference"), rtol=1e-5, atol=0.0
    )
    x, mu, logvar = torch.zeros(75, 123), torch.randn(75, 32), torch.randn(75, 32)
    torch.testing.assert_close(
        losses.vae_objective(x, x, mu, logvar, reduction="frame", views=3), losses.vae_objective(x, x, mu, logvar)
    )
    part = losses.vae_objective(x[:6], x[:6], mu[:6], logvar[:6], reduction="frame", views=3)
    twice_mu, twice_logvar = mu[:6].repeat(2, 1), logvar[:6].repeat(2, 1)
    doubled = losses.vae_objective(x[:12], x[:12], twice_mu, twice_logvar, reduction="frame", views=3)
    torch.testing.assert_close(part, doubled)
    y = x + 0.3
    assert float(losses.vae_objective(y, x, mu, logvar, kl_share=0.0)) == pytest.approx(0.09, rel=1e-5)
    whole, half = (float(losses.vae_objective(y, x, mu, logvar, kl_share=share)) for share in (1.0, 0.5))
    assert whole - half == pytest.approx(half - 0.09, rel=1e-4)


def test_temporal(measured: dict[str, Tensor]) -> None:
    sequence = named("loss.sequence", (5, 3, 41, 3), -100.0, 100.0)
    smooth = losses.TemporalSmoothness()
    check("temporal, first batch", smooth(sequence), measured["temporal_first"])
    check("temporal, second batch", smooth(sequence.flip(0) * 30), measured["temporal_second"])
    smooth.reset()
    check("temporal after a reset", smooth(sequence), measured["temporal_first"])
    smooth.reset()
    assert float(smooth(sequence[:1])) == 0.0
    assert float(smooth(sequence[:1])) == 0.0  # the same frame again: nothing moved
    assert float(smooth(sequence[1:2])) > 0.0


def test_an_empty_batch_divides_nothing_by_zero() -> None:
    assert float(losses.collision(torch.zeros(0, 3, 41, 3))) == 0
    mu = torch.zeros(0, 32)
    assert torch.isnan(losses.vae_objective(torch.zeros(0, 123), torch.zeros(0, 123), mu, mu, reduction="frame"))


def test_latent_distance() -> None:
    a = torch.randn(4, 8, 4, 4)
    assert float(losses.latent_distance(a, a.flip(0).flip(2))) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.latent_distance(a, a + 2)) == pytest.approx(4.0, rel=1e-5)
