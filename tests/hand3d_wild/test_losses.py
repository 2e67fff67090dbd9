"""The losses against the original's values and gradients, and the properties they are there for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hand3d_wild.decoder import Decoder, Params, Prediction
from hand3d_wild.losses import (
    FOCAL,
    SLACK,
    SOFTNESS,
    distance_mask_loss,
    joints_2d_loss,
    joints_3d_loss,
    pretrain_losses,
    regulariser,
    sample_mask_loss,
    signed_distance,
    wild_losses,
)
from shared.errors import DataError
from tests.hand3d_wild.golden_files import FOLDER, arrays, golden_hand, max_diff

GOLD = arrays("losses")
KINDS_3D = ("perspective", "3d_norm", "3d_norm_no_detach")


def target() -> dict[str, Tensor]:
    mask = np.unpackbits(GOLD["mask_bits"], axis=-1)
    return {
        "joints_2d": torch.from_numpy(GOLD["gt2d"][..., :2]),
        "visible": torch.from_numpy(GOLD["gt2d"][..., 2] == 1),
        "joints_mm": torch.from_numpy(GOLD["gt3d"]),
        "valid_3d": torch.from_numpy(GOLD["valid"][:, 0]),
        "mask": torch.from_numpy(mask).float(),
        "valid_mask": torch.from_numpy(GOLD["valid"][:, 1]),
    }


def prediction() -> tuple[dict[str, Tensor], Prediction]:
    """The decoder's output for the golden parameters, which require gradients."""
    leaves = {k: torch.from_numpy(GOLD[k]).requires_grad_() for k in ("scale", "trans", "rot", "pose", "beta")}
    params = Params(leaves["scale"], leaves["trans"], leaves["rot"], leaves["pose"], leaves["beta"])
    return leaves, Decoder(golden_hand())(params.vector)


def losses(pred: Prediction) -> dict[str, Tensor]:
    t = target()
    scale = pred.params.scale
    found = {
        "2d": joints_2d_loss(pred.joints_2d, t["joints_2d"], t["visible"]),
        "mask": sample_mask_loss(pred.verts_2d, t["mask"], t["valid_mask"]),
        "reg": regulariser(pred.params.pose, pred.params.betas),
    }
    for kind in KINDS_3D:
        name = "3d_perspective" if kind == "perspective" else kind
        found[name] = joints_3d_loss(pred.joints_m, scale, t["joints_mm"], t["valid_3d"], kind=kind)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("name", ["2d", "3d_perspective", "3d_norm", "3d_norm_no_detach", "mask", "reg"])
def test_golden_values_and_gradients(name: str) -> None:
    leaves, pred = prediction()
    value = losses(pred)[name]
    expected = float(GOLD[f"{name}/value"])
    print(f"{name}: max diff {abs(float(value.detach()) - expected):.3g} of {expected:.3g}")
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    value.backward()
    for key, leaf in leaves.items():
        gold = GOLD.get(f"{name}/grad_{key}")
        if gold is None:
            assert leaf.grad is None or not leaf.grad.any()
        else:
            assert max_diff(f"d {key}", leaf.grad, gold) < 1e-4 * np.abs(gold).max()


@pytest.mark.parametrize("name", ["2d", "3d_perspective", "3d_norm", "3d_norm_no_detach", "mask"])
def test_golden_gradients_of_the_points(name: str) -> None:
    x2d = torch.from_numpy(GOLD["x2d"]).requires_grad_()
    x3d = torch.from_numpy(GOLD["x3d"]).requires_grad_()
    pixels = x2d.view(6, 799, 2)
    params = Params(*(torch.from_numpy(GOLD[k]) for k in ("scale", "trans", "rot", "pose", "beta")))
    losses(Prediction(pixels[:, :21], pixels[:, 21:], x3d[:, :21], x3d[:, 21:], params))[name].backward()
    for key, leaf in (("x2d", x2d), ("x3d", x3d)):
        gold = GOLD.get(f"{name}/grad_{key}")
        if gold is None:
            assert leaf.grad is None or not leaf.grad.any()
        else:
            assert max_diff(f"d {key}", leaf.grad, gold) < 1e-4 * np.abs(gold).max()


@pytest.mark.parametrize("config", ["train_model0_3d", "train_model0_3d_norm", "train_model0_author"])
def test_golden_totals(config: str) -> None:
    shipped = json.loads((FOLDER / "configs.json").read_text())[config]
    weights = {name: shipped[f"w_{key}"] for name, key in
               (("joints_2d", "2d"), ("joints_3d", "3d"), ("mask", "mask"), ("reg", "reg"))}  # fmt: skip
    kind = shipped.get("3d_loss", "perspective")
    found = wild_losses(prediction()[1], target(), weights, loss_3d=kind)
    total, expected = float(sum(v.detach() for v in found.values())), float(GOLD[f"total/{config}"])
    print(f"{config}: max diff {abs(total - expected):.3g} of {expected:.5g}")
    assert total == pytest.approx(expected, rel=1e-5)
    intended = "train_model0_3d_norm_no_detach"
    if kind == "3d_norm":
        found = wild_losses(prediction()[1], target(), weights, loss_3d="3d_norm_no_detach")
        total = float(sum(v.detach() for v in found.values()))
        assert total == pytest.approx(float(GOLD[f"total_as_intended/{intended}"]), rel=1e-5)


def test_nothing_valid_costs_nothing() -> None:
    _, pred = prediction()
    t = target()
    none = torch.zeros(6)
    t |= {"visible": torch.zeros(6, 21), "valid_3d": none, "valid_mask": none}
    t["joints_2d"] = torch.full((6, 21, 2), torch.nan)  # what is not there may hold anything
    t["joints_mm"] = torch.full((6, 21, 3), torch.nan)
    weights = {"joints_2d": 1.0, "joints_3d": 1.0, "mask": 1.0, "reg": 0.0}
    for kind in KINDS_3D:
        for mask in ("sample", "distance"):
            leaves, pred = prediction()
            found = wild_losses(pred, t, weights, loss_3d=kind, loss_mask=mask)  # type: ignore[arg-type]
            total = torch.stack(list(found.values())).sum()
            assert float(total.detach()) == 0
            total.backward()
            assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves.values())


def test_samples_without_label_do_not_change_the_others() -> None:
    t = target()
    valid = torch.tensor([1, 0, 1, 0, 0, 1])
    spoiled = t["joints_mm"].clone()
    spoiled[valid == 0] = torch.inf
    for kind in KINDS_3D:
        _, pred = prediction()
        scale = pred.params.scale
        whole = joints_3d_loss(pred.joints_m, scale, spoiled, valid, kind=kind)  # type: ignore[arg-type]
        keep = valid.bool()
        part = joints_3d_loss(pred.joints_m[keep], scale[keep], t["joints_mm"][keep], torch.ones(3), kind=kind)  # type: ignore[arg-type]
        assert float(whole.detach()) == pytest.approx(float(part.detach()), rel=1e-6)


def test_depth_ratio_turns_camera_pixels_into_crop_pixels() -> None:
    """A hand that is projected with its own scale has no perspective loss, on all three axes, at any crop."""
    _, pred = prediction()
    joints = pred.joints_m.detach()
    ratio = torch.linspace(0.6, 1.2, 6)
    z_mm = 600.0
    gt_mm = joints * 1000 + torch.tensor([0.0, 0.0, z_mm])
    gt_mm[..., 2] += z_mm - gt_mm[..., 2].mean(1, keepdim=True)
    scale = ratio * FOCAL / z_mm * 1000  # pixels of the crop per metre at that depth
    one = torch.ones(6)
    assert float(joints_3d_loss(joints, scale, gt_mm, one, depth_ratio=ratio)) < 1e-12
    assert float(joints_3d_loss(joints, scale, gt_mm, one)) > 1e-6


def test_common_std_keeps_proportions() -> None:
    joints = torch.randn(2, 21, 3, generator=torch.Generator().manual_seed(0))
    flat = joints * torch.tensor([1.0, 1.0, 0.1])
    one = torch.ones(2)
    for kind in ("3d_norm", "3d_norm_no_detach"):
        assert float(joints_3d_loss(flat, one, joints, one, kind=kind)) < 1e-8  # type: ignore[arg-type]
        assert float(joints_3d_loss(flat, one, joints, one, kind=kind, common_std=True)) > 0.1  # type: ignore[arg-type]
        assert float(joints_3d_loss(joints * 7 + 1, one, joints, one, kind=kind, common_std=True)) < 1e-8  # type: ignore[arg-type]


def disc(radius: float, centre: tuple[float, float] = (128.0, 128.0), size: int = 256) -> Tensor:
    v, u = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (((u - centre[0]) ** 2 + (v - centre[1]) ** 2) <= radius**2).float()[None]


def test_signed_distance_of_a_disc() -> None:
    field = signed_distance(disc(60))[0]
    v, u = torch.meshgrid(torch.arange(64) * 4 + 1.5, torch.arange(64) * 4 + 1.5, indexing="ij")
    exact = ((u - 128) ** 2 + (v - 128) ** 2).sqrt() - 60
    print(f"signed distance: max diff {float((field - exact).abs().max()):.3g} px")
    assert float((field - exact).abs().max()) < 4
    assert float((field - exact).abs().mean()) < 1
    both = signed_distance(torch.cat((disc(30), torch.zeros(1, 256, 256), torch.ones(1, 256, 256))))
    assert torch.equal(both[:1], signed_distance(disc(30)))  # independent of the others of the batch
    assert float(both[1].min()) > 256  # no silhouette: far away everywhere
    assert float(both[2].max()) < -256


def test_mask_sampling_is_by_pixel_centres_and_column_first() -> None:
    mask = torch.zeros(1, 256, 256)
    mask[0, 40, 200] = 1  # row 40, column 200
    for u, v, inside in ((200, 40, 1.0), (40, 200, 0.0), (200.5, 40, 0.5), (199.75, 40.25, 0.5625), (201, 40, 0.0)):
        loss = sample_mask_loss(torch.tensor([[[u, v]]]), mask, torch.ones(1))
        assert float(loss) == pytest.approx(1 - inside, abs=1e-4)
    edge = torch.zeros(1, 256, 256)
    edge[0, :, 255] = 1
    points = torch.tensor([[[300.0, 5.0]]], requires_grad=True)
    loss = sample_mask_loss(points, edge, torch.ones(1))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert points.grad is not None
    assert float(points.grad[0, 0, 0]) == 0


@pytest.mark.parametrize("place", [(128.0, 128.0), (10.0, 200.0), (-40.0, 128.0), (300.0, 300.0)])
def test_distance_loss_pulls_from_everywhere(place: tuple[float, float]) -> None:
    """The sampling loss has no gradient at these points; the distance loss points at the silhouette."""
    mask = disc(20, (60.0, 60.0))
    points = torch.tensor([[place]], requires_grad=True)
    sample_mask_loss(points, mask, torch.ones(1)).backward()
    assert points.grad is not None
    assert not points.grad.any()
    points.grad = None
    loss = distance_mask_loss(points, mask, torch.ones(1), coverage=0)
    loss.backward()
    away = points.detach()[0, 0] - 60
    assert float(loss.detach()) * SOFTNESS == pytest.approx(float(away.norm()) - 20, rel=0.25, abs=4)
    cosine = torch.nn.functional.cosine_similarity(points.grad[0, 0], away, dim=0)
    assert float(cosine) > 0.6
    inside = torch.tensor([[[60.0, 65.0]]])
    assert float(distance_mask_loss(inside, mask, torch.ones(1), coverage=0)) == 0


def test_shrinking_pays_only_for_the_sampling_loss() -> None:
    """Vertices that fill a disc, drawn together: the sampling loss falls, the two-sided one rises."""
    spread = torch.randn(1, 3000, 2, generator=torch.Generator().manual_seed(1))
    spread = spread / spread.norm(dim=-1, keepdim=True) * 60 * torch.rand(1, 3000, 1).sqrt()
    mask, one = disc(58), torch.ones(1)
    sizes = (1.0, 0.8, 0.6, 0.3)
    sampled = [float(sample_mask_loss(128 + s * spread, mask, one)) for s in sizes]
    both = [float(distance_mask_loss(128 + s * spread, mask, one)) for s in sizes]
    assert sampled[0] > 1e-3
    assert max(sampled[1:]) < 1e-6  # all the smaller hands are equally good
    assert both == sorted(both)
    assert both[3] > both[0] + 0.5
    points = (128 + 0.5 * spread).requires_grad_()
    distance_mask_loss(points, mask, one).backward()
    assert points.grad is not None
    outwards = -(points.grad * spread).sum()
    assert float(outwards) > 0


def test_coverage_counts_what_no_vertex_is_near() -> None:
    mask, one = disc(100), torch.ones(1)
    centre = torch.tensor([[[128.0, 128.0]]])
    alone = float(distance_mask_loss(centre, mask, one, coverage=0))
    assert alone == 0
    expected = (2 / 3 * 100 - SLACK) / SOFTNESS  # mean distance of a disc's points to its centre
    assert float(distance_mask_loss(centre, mask, one)) == pytest.approx(expected, rel=0.05)
    assert float(distance_mask_loss(centre, mask, one, coverage=0.5)) == pytest.approx(expected / 2, rel=0.05)


def test_distances_keep_their_precision_under_autocast() -> None:
    points = 128 + 30 * torch.randn(2, 778, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.cat((disc(60), disc(40, (100.0, 140.0))))
    exact = distance_mask_loss(points, mask, torch.ones(2))
    with torch.autocast("cpu", torch.bfloat16):
        half = distance_mask_loss(points, mask, torch.ones(2))
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=1e-6)


@torch.no_grad()
def test_weights_and_kinds_are_checked_and_used() -> None:
    _, pred = prediction()
    weights = {"joints_2d": 2.0, "joints_3d": 3.0, "mask": 5.0, "reg": 7.0}
    ones = wild_losses(pred, target(), dict.fromkeys(weights, 1.0))
    found = wild_losses(pred, target(), weights)
    for name, weight in weights.items():
        assert float(found[name].detach()) == pytest.approx(weight * float(ones[name].detach()), rel=1e-6)
    assert float(wild_losses(pred, target(), weights | {"mask": 0.0})["mask"]) == 0
    assert float(wild_losses(pred, target(), weights, shape_weight=0.0)["reg"]) < float(found["reg"])
    covered = wild_losses(pred, target(), weights, loss_mask="distance", coverage=0.0)["mask"]
    assert float(covered) < float(wild_losses(pred, target(), weights, loss_mask="distance")["mask"])
    with pytest.raises(DataError, match="expected weights of joints_2d, joints_3d, mask, reg, got joints_2d, mask"):
        wild_losses(pred, target(), {"joints_2d": 1.0, "mask": 1.0})
    with pytest.raises(DataError, match="no 3D loss '3d'"):
        wild_losses(pred, target(), weights, loss_3d="3d")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no mask loss 'soft'"):
        wild_losses(pred, target(), weights, loss_mask="soft")  # type: ignore[arg-type]


@torch.no_grad()
def test_palm_labels_are_compared_with_the_palm() -> None:
    _, pred = prediction()
    t = target()
    palm = pred.with_palm(torch.ones(6, dtype=torch.bool))
    t |= {"joints_2d": palm.joints_2d.detach(), "visible": torch.ones(6, 21)}
    weights = {"joints_2d": 1.0, "joints_3d": 0.0, "mask": 0.0, "reg": 0.0}
    assert float(wild_losses(pred, t, weights)["joints_2d"]) > 0.1
    assert float(wild_losses(pred, t | {"palm": torch.ones(6)}, weights)["joints_2d"]) < 1e-6


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_pretraining_golden(norm: Any) -> None:
    gold = arrays("pretrain_losses")
    params = torch.from_numpy(gold["pred"]).requires_grad_()
    plain = pretrain_losses(params, torch.from_numpy(gold["gt"]), {n: 1.0 for n in
                            ("scale", "trans", "rot", "pose", "betas")}, norm=norm)  # fmt: skip
    parts = torch.stack([plain[n] for n in ("scale", "trans", "rot", "pose", "betas")])
    expected = gold[f"{norm}/parts_s_t_r_pose_beta"]
    assert (np.abs(parts.detach().numpy() / expected - 1) < 1e-5).all()
    total = torch.stack(list(pretrain_losses(params, torch.from_numpy(gold["gt"]), norm=norm).values())).sum()
    print(f"{norm} total: max diff {abs(float(total.detach()) - float(gold[f'{norm}/total'])):.3g}")
    assert float(total.detach()) == pytest.approx(float(gold[f"{norm}/total"]), rel=1e-5)
    total.backward()
    assert max_diff("grad", params.grad, gold[f"{norm}/grad"]) < 1e-5 * np.abs(gold[f"{norm}/grad"]).max()


def test_rotation_matrices_do_not_punish_the_same_rotation() -> None:
    a, b = torch.zeros(2, 22), torch.zeros(2, 22)
    a[:, 3:6] = torch.tensor([[0.0, 0.0, 3.0], [0.01, 0.0, 0.0]])
    b[:, 3:6] = torch.tensor([[0.0, 0.0, 3.0 - 2 * torch.pi], [0.0, 0.02, 0.0]])
    vector, matrix = (pretrain_losses(a, b, rotation=r)["rot"] for r in ("vector", "matrix"))  # type: ignore[arg-type]
    assert float(vector) > 1e4
    small = pretrain_losses(a[1:], b[1:])["rot"]
    assert float(matrix) == pytest.approx(float(small) / 2, rel=1e-3)  # only the second sample counts, as it does there


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 2.0, 3.1])
def test_geodesic_rotation_loss_is_the_angle(angle: float) -> None:
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    a, b = torch.zeros(1, 22, dtype=torch.float64), torch.zeros(1, 22, dtype=torch.float64)
    a[0, 3:6], b[0, 3:6] = 0.4 * axis, (0.4 + angle - 2 * torch.pi * (angle > 2.5)) * axis  # the last: the long way
    a.requires_grad_()
    for norm, expected in (("L2", angle**2 / 3), ("L1", angle / 3)):
        loss = pretrain_losses(a, b, {"rot": 1.0}, norm=norm, rotation="geodesic")["rot"]  # type: ignore[arg-type]
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        (grad,) = torch.autograd.grad(loss, a)
        assert torch.isfinite(grad).all()
        slope = (2 * angle / 3 if norm == "L2" else 1 / 3) if angle else 0.0  # along the axis
        assert float(-(grad[0, 3:6] * axis).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_an_empty_batch_costs_nothing() -> None:
    pred = Decoder(golden_hand())(torch.zeros(0, 22, requires_grad=True))
    target = {
        "joints_2d": torch.zeros(0, 21, 2),
        "visible": torch.zeros(0, 21, dtype=torch.bool),
        "joints_mm": torch.zeros(0, 21, 3),
        "valid_3d": torch.zeros(0, dtype=torch.bool),
        "mask": torch.zeros(0, 256, 256),
        "valid_mask": torch.zeros(0, dtype=torch.bool),
    }
    weights = {"joints_2d": 1.0, "joints_3d": 1.0, "mask": 1.0, "reg": 1.0}
    for kind in ("perspective", "3d_norm", "3d_norm_no_detach"):
        for mask in ("sample", "distance"):
            losses = wild_losses(pred, target, weights, loss_3d=kind, loss_mask=mask)  # type: ignore[arg-type]
            assert [float(value.detach()) for value in losses.values()] == [0.0] * 4
    assert all(float(v) == 0 for v in pretrain_losses(torch.zeros(0, 22), torch.zeros(0, 22)).values())


def test_pretraining_refuses() -> None:
    zero = torch.zeros(2, 22)
    for call, message in (
        (lambda: pretrain_losses(zero, zero, {"rotation": 1.0}), "no loss rotation.*scale, trans, rot"),
        (lambda: pretrain_losses(zero, zero, norm="l2"), "norm must be L1 or L2"),  # type: ignore[arg-type]
        (lambda: pretrain_losses(zero, zero, rotation="euler"), "rotation vector, matrix or geodesic"),  # type: ignore[arg-type]
        (lambda: pretrain_losses(zero, zero[:1]), r"shape \(B, 22\), got \(2, 22\) and \(1, 22\)"),
        (lambda: pretrain_losses(zero[:, :21], zero[:, :21]), r"shape \(B, 22\)"),
    ):
        with pytest.raises(DataError, match=message):
            call()
