"""The losses against the measurements on the port, and their switches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shared.errors import DataError
from tests.golden.fill import uniform
from tests.v2v_posenet.test_model import FOLDER, NS, filled, fixture, occupancy, relative
from v2v_posenet.convert import port_key_to_ours
from v2v_posenet.kernels import ops
from v2v_posenet.losses import AUTHOR_OFFSET, dense_heatmap_loss, heatmap_loss, integral_loss, training_loss


@pytest.mark.parametrize("weight", [0.5, 0.05, 1.0, 0.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mixed_loss_golden(weight: float, layout: str) -> None:
    golden = fixture("loss.npz")
    n, k, r = golden["shape"]
    logits = torch.from_numpy(uniform(NS + "loss/heatmap", (n, k, r, r, r), -4, 4))
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last_3d)
        assert not logits.is_contiguous()
    logits.requires_grad_()
    cells = torch.from_numpy(uniform(NS + "loss/target_coord", (n, k, 3), 0, r - 2))
    result = integral_loss(logits, cells, weight=weight)
    result.loss.backward()
    difference = abs(result.loss.item() / golden[f"mixed_{weight}"] - 1)
    print(f"mixed loss {weight} {layout}: max diff {difference:.3g} (relative)")
    assert difference < 1e-5
    assert relative(logits.grad, golden[f"mixed_{weight}_grad"], f"mixed gradient {weight} {layout}") < 1e-4
    assert np.abs(result.coords.detach().numpy() - golden["pred_coord"]).max() < 1e-4


def test_dense_mse_golden() -> None:
    golden = fixture("loss.npz")
    shape = (*golden["shape"], golden["shape"][2], golden["shape"][2])
    pred = torch.from_numpy(uniform(NS + "loss/heatmap", shape, -4, 4)).requires_grad_()
    loss = dense_heatmap_loss(pred, torch.from_numpy(uniform(NS + "loss/mse_target", shape)))
    loss.backward()
    print(f"mean squared error: max diff {abs(loss.item() / golden['mse'] - 1):.3g} (relative)")
    assert abs(loss.item() / golden["mse"] - 1) < 1e-5
    assert relative(pred.grad[0, 0], golden["mse_grad_first"], "mse gradient") < 1e-4
    assert abs(pred.grad.double().sum().item() - golden["mse_grad_sum"]) < 1e-4


def test_heatmap_loss_is_the_dense_one() -> None:
    torch.manual_seed(0)
    cells = torch.rand(2, 3, 3) * 50 - 3  # some outside
    pred = torch.rand(2, 3, 44, 44, 44)
    for offset in (0.5, AUTHOR_OFFSET):
        target = ops.gaussian_heatmaps(cells, offset=offset)
        fused, dense = (value.clone().requires_grad_() for value in (pred, pred))
        a, b = heatmap_loss(fused, cells, offset=offset), dense_heatmap_loss(dense, target)
        (a * 3).backward()
        (b * 3).backward()
        assert torch.allclose(a, b, rtol=1e-5)
        assert torch.allclose(fused.grad, dense.grad, atol=1e-9)
    assert abs(heatmap_loss(pred, cells) - heatmap_loss(pred, cells, offset=AUTHOR_OFFSET)) > 1e-7
    assert abs(heatmap_loss(pred, cells) - heatmap_loss(pred, cells, sigma=1.0)) > 1e-6


def test_integral_training_golden() -> None:
    golden = fixture("net_integral.npz")
    network = filled("net_integral").train()
    grid = occupancy("net_integral/small_input", (2, 1, 24, 24, 24), 0.05)
    cells = torch.from_numpy(uniform(NS + "net_integral/small_target_coord", (2, 21, 3), 0, 10))
    step = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for iteration in range(5):
        logits = network(grid)
        logits.retain_grad()
        parts = training_loss("integral", logits, cells)
        step.zero_grad()
        parts["loss"].backward()
        if iteration == 0:
            assert relative(logits[..., ::2, ::2, ::2], golden["small_train_heatmap_stride2"], "small logits") < 1e-4
            coords = ops.soft_argmax(logits)[0].detach().numpy()
            assert np.abs(coords - golden["small_train_coord"]).max() < 1e-3
            assert abs(parts["loss"].item() / golden["small_train_loss"] - 1) < 1e-4
            assert relative(logits.grad[:, 0], golden["small_grad_heatmap_joint0"], "logit gradient, joint 0") < 1e-4
            parameters = dict(network.named_parameters())
            order = json.loads((Path(FOLDER) / "net_v2v.params.json").read_text())
            norms = np.array([parameters[port_key_to_ours(key)].grad.norm().item() for key in order])
            counts = golden["small_grad_l2"] > 1e-4
            assert np.abs(norms / golden["small_grad_l2"] - 1)[counts].max() < 1e-3
        step.step()
        losses.append(parts["loss"].item())
    difference = np.abs(np.array(losses) / golden["small_adam_losses"] - 1).max()
    print(f"five integral steps: max diff {difference:.3g} (relative)")
    assert difference < 1e-2


def test_half_precision_logits_are_computed_in_float32() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(1, 2, 12, 12, 12) * 20).bfloat16()
    cells = torch.rand(1, 2, 3) * 10
    with torch.autocast("cpu", torch.bfloat16):
        low = integral_loss(logits, cells)
        mse = heatmap_loss(logits, cells)
    exact = integral_loss(logits.float(), cells)
    assert low.loss.dtype == mse.dtype == torch.float32
    assert torch.allclose(low.loss, exact.loss, rtol=1e-5)
    assert torch.allclose(low.coords, exact.coords, atol=1e-4)
    assert torch.allclose(mse, heatmap_loss(logits.float(), cells), rtol=1e-5)
    dense = dense_heatmap_loss(logits, torch.zeros(logits.shape))
    assert torch.allclose(dense, F.mse_loss(logits.float(), torch.zeros(logits.shape)))


def test_training_loss_names_its_parts() -> None:
    pred, cells = torch.rand(1, 2, 8, 8, 8), torch.rand(1, 2, 3) * 6
    gaussian = training_loss("gaussian", pred, cells, sigma=1.0, offset=0.0)
    assert gaussian == {"loss": heatmap_loss(pred, cells, sigma=1.0, offset=0.0)}
    integral = training_loss("integral", pred, cells, weight=0.05)
    assert torch.allclose(integral["loss"], 0.05 * integral["cross_entropy"] + 0.95 * integral["l1_cells"])
    with pytest.raises(DataError, match="variant must be 'gaussian' or 'integral', got 'l2'"):
        training_loss("l2", pred, cells)  # type: ignore[arg-type]
