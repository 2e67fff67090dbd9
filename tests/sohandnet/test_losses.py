"""The losses against the original's numbers, and one training step of each stage with all its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sohandnet.config import Recipe
from sohandnet.convert import reference_key_to_ours
from sohandnet.losses import BONES, bone_lengths, bone_loss, decoder_loss, pose_loss, reference_pose_loss
from sohandnet.model import Clouds, SoHandNet
from sohandnet.train import make_optimizer, stage_loss, unlabelled_step
from tests.golden.fill import uniform
from tests.sohandnet.common import batch_of, golden, reference_network, relative


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.mark.parametrize("case", ["a", "b"])
def test_chamfer_against_the_original(case: str) -> None:
    expected = golden("chamfer.npz")
    size = {"a": 256, "b": 1280}[case]
    pred = torch.from_numpy(uniform(f"sohandnet/chamfer/{case}", (2, 3, size), -0.5, 0.5)).requires_grad_()
    cloud = torch.from_numpy(expected[f"{case}_gt"])
    loss = decoder_loss(Clouds(pred, pred.detach(), None), cloud)
    found = relative(loss, 2 * expected[f"{case}_total"])
    loss.backward()
    assert pred.grad is not None
    gradient = relative(pred.grad, expected[f"{case}_grad_pred"])
    print(f"Chamfer {case} max diff {found:.3g}, gradient {gradient:.3g}")
    assert found < 1e-6
    assert gradient < 1e-5


def test_the_originals_loss_versions() -> None:
    expected = golden("metric.npz")
    pred, gt = torch.from_numpy(expected["pred"]).view(5, 3, 16), torch.from_numpy(expected["gt_xyz"])
    for name, bones in (("loss", None), ("icvl", BONES["icvl"])):
        found = relative(reference_pose_loss(pred, gt, bones), expected[f"loss_{name}"])
        print(f"loss {name} max diff {found:.3g}")
        assert found < 1e-5
    for name, joints in (("msra", 21), ("nyu", 14)):
        pair = (uniform(f"sohandnet/loss/{name}/{which}", (5, 3 * joints), -0.5, 0.5) for which in ("pred", "gt"))
        pred, gt = (torch.from_numpy(value).view(5, 3, joints) for value in pair)
        found = relative(reference_pose_loss(pred, gt, BONES[name]), expected[f"loss_{name}"])
        print(f"loss {name} max diff {found:.3g}")
        assert found < 1e-5


def test_bones() -> None:
    assert BONES["icvl"][:6] == ((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6))
    assert BONES["msra"][4:8] == ((0, 5), (5, 6), (6, 7), (7, 8))
    assert [len(BONES[name]) for name in ("icvl", "msra", "nyu")] == [15, 20, 13]


def test_bone_loss_by_hand_and_its_gradient() -> None:
    gt = torch.zeros(1, 3, 16)
    gt[0, 0] = torch.arange(16.0)  # lengths along x: the difference of the numbers
    pred = (1.5 * gt).requires_grad_()
    loss = bone_loss(pred, gt, BONES["icvl"])
    assert float(loss.detach()) == pytest.approx(0.5)
    loss.backward()
    assert pred.grad is not None
    assert float(pred.grad.abs().sum()) > 0
    with torch.no_grad():
        assert float(bone_loss(gt * 0.5, gt, BONES["icvl"])) == pytest.approx(0.5)
        two = bone_loss(torch.cat((gt, pred)), torch.cat((gt, gt)), BONES["icvl"])
        assert float(two) == pytest.approx(0.25)  # averaged over samples and bones


def test_bones_of_length_zero() -> None:
    pred = torch.zeros(2, 3, 16, requires_grad=True)
    assert bool((bone_lengths(pred, BONES["icvl"]) == 0).all())
    loss = bone_loss(pred, torch.zeros(2, 3, 16), BONES["icvl"])
    loss.backward()
    assert float(loss.detach()) == 0
    assert pred.grad is not None
    assert bool((pred.grad == 0).all())  # and not NaN


def test_pose_loss_is_the_mean_over_all_numbers() -> None:
    gt = torch.zeros(2, 3, 16)
    assert float(pose_loss(gt + 0.5, gt)) == pytest.approx(0.25)


# ------------------------------------------------------------------------------------------------- training steps


def check_step(network: SoHandNet, before: dict[str, Tensor], part: str, expected: dict[str, Any]) -> None:
    """Gradients, updates and batch statistics of one network after a step, against the fixture's norms and slices."""
    named = dict(network.named_parameters())
    norms = expected[f"{part}.grad_norm"]
    largest, worst, slices, updates, compared = np.nanmax(norms), 0.0, 0.0, 0.0, 0
    for name, norm, update in zip(expected[f"{part}.param_names"], norms, expected[f"{part}.update_norm"], strict=True):
        ours = reference_key_to_ours(str(name))
        if ours is None or ours not in named:  # the networks that are not built have no gradient there either
            assert np.isnan(norm), name
            continue
        grad = named[ours].grad
        if np.isnan(norm):
            assert grad is None, name
            assert torch.equal(named[ours].detach(), before[ours]), name
            continue
        assert grad is not None, name
        if norm < 1e-4 * largest:
            continue
        compared += 1
        worst = max(worst, abs(float(grad.norm()) - norm) / norm)
        change = float((named[ours].detach() - before[ours]).norm())
        updates = max(updates, abs(change - update) / update)
        head = expected.get(f"{part}.grad[:64].{name}")
        if head is None:
            continue
        # a slice of the whole, so its rounding noise is measured against the tensor's typical entry as well
        scale = max(float(np.abs(head).max()), norm / grad.numel() ** 0.5)
        slices = max(slices, float((grad.flatten()[:64] - torch.from_numpy(head)).abs().max()) / scale)
    print(f"{part}: {compared} gradients max diff {worst:.3g}, slices {slices:.3g}, updates {updates:.3g}")
    assert compared > 5
    assert worst < 1e-2
    assert slices < 1e-2
    assert updates < 1e-2
    buffers, state, found = 0, network.state_dict(), 0.0
    for name, norm, changed in zip(
        expected[f"{part}.buffer_names"],
        expected[f"{part}.buffer_norm_after"],
        expected[f"{part}.buffer_changed"],
        strict=True,
    ):
        ours = reference_key_to_ours(str(name))
        if ours is None or ours not in state or ours.endswith("num_batches_tracked"):
            continue
        buffers += 1
        found = max(found, abs(float(state[ours].norm()) - norm) / norm)
        assert torch.equal(state[ours], before[ours]) != bool(changed), name
    print(f"{part}: {buffers} buffers max diff {found:.3g}")
    assert found < 1e-5


STEPS: list[tuple[str, Any, tuple[str, ...], float]] = [
    ("en_de", "autoencoder", ("encoder", "decoder"), 1e-3),
    ("en_es", "estimator", ("encoder", "estimator_v21"), 1e-5),
    ("train_all", "joint", ("encoder", "decoder", "estimator_v21"), 1e-5),
    ("semi_unlabelled", "autoencoder", ("encoder", "decoder"), 1e-5),
]


@pytest.mark.parametrize(("name", "stage", "parts", "lr"), STEPS, ids=[step[0] for step in STEPS])
def test_one_training_step(folder: Path, name: str, stage: Any, parts: tuple[str, ...], lr: float) -> None:
    expected = golden(f"train_step_{name}.npz")
    network = reference_network(folder, *parts).train()
    batch = {**batch_of(expected), "labelled": torch.ones(4, dtype=torch.bool)}
    options = Recipe()
    optimizer = make_optimizer(options.optim, network, lr)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    loss, terms = stage_loss(network, batch, stage, options)
    pairs = {"decoder": "loss_decoder", "pose": "loss_estimator"}
    for term, value in terms.items():
        found = relative(torch.as_tensor(value), expected[pairs[term]])
        print(f"{name}: {term} loss max diff {found:.3g}")
        assert found < 1e-5
    total = {"joint": "loss_all", "estimator": "loss_estimator", "autoencoder": "loss_decoder"}[stage]
    assert relative(loss, expected[total]) < 1e-5
    loss.backward()
    optimizer.step()
    for part in parts:
        check_step(network, before, part.split("_")[0], expected)


def test_poses_in_training_mode(folder: Path) -> None:
    expected = golden("train_step_train_all.npz")
    network = reference_network(folder, "encoder", "estimator_v21").train()
    with torch.no_grad():
        pose = network.estimator(network.encode(batch_of(expected))).flatten(1)
    found = relative(pose, expected["pose"])
    print(f"pose in training mode max diff {found:.3g}")
    assert found < 1e-4


def test_the_unlabelled_step_is_the_originals_but_leaves_the_estimator_alone(folder: Path) -> None:
    expected = golden("train_step_semi_unlabelled.npz")
    assert bool(expected["estimator.buffer_changed"].any())  # ledger Q18: the original's statistics absorb these frames
    network = reference_network(folder, "encoder", "decoder", "estimator_v21").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    options = Recipe()
    optimizer = make_optimizer(options.optim, network, 1e-5)
    assert unlabelled_step(network, batch_of(expected), optimizer, options, world=1) is None
    assert all(p.grad is None for p in network.parameters())
    after = network.state_dict()
    for name, value in before.items():
        if name.startswith("estimator."):
            assert torch.equal(after[name], value), name
    for part in ("encoder", "decoder"):
        for name, update in zip(expected[f"{part}.param_names"], expected[f"{part}.update_norm"], strict=True):
            ours = reference_key_to_ours(str(name))
            if ours in after and update > 1e-4:
                change = float((after[ours] - before[ours]).norm())
                assert change == pytest.approx(update, rel=1e-2), name


def test_an_unlabelled_step_that_is_not_finite_changes_nothing(folder: Path) -> None:
    network = reference_network(folder, "encoder", "decoder").train()
    batch = batch_of(golden("train_step_semi_unlabelled.npz"))
    batch["sn"][1] = float("nan")
    before = {name: value.clone() for name, value in network.named_parameters()}
    loss = unlabelled_step(network, batch, make_optimizer(Recipe().optim, network, 1e-5), Recipe(), world=1)
    assert loss is not None
    assert not bool(torch.isfinite(loss))
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
