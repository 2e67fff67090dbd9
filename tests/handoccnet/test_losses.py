"""The losses against the original's numbers, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from handoccnet.losses import WEIGHTS, hand_losses
from handoccnet.regressor import rot6d_to_rotmat
from shared.errors import DataError
from shared.mano import rotvec_to_rotmat
from tests.handoccnet.snapshots import arrays, max_diff, named


def inputs() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    pred = {
        "verts_mm": 1000 * named("loss/pred_verts", (3, 778, 3), -0.1, 0.1),
        "joints_mm": 1000 * named("loss/pred_joints", (3, 21, 3), -0.1, 0.1),
        "rotmats": rot6d_to_rotmat(named("loss/pred_r6", (48, 6), -1, 1)).view(3, 16, 3, 3),
        "betas": named("loss/pred_shape", (3, 10), -2, 2),
        "joints_img": named("loss/pred_img", (3, 21, 2), 0, 1),
    }
    target = {
        "verts_mm": 1000 * named("loss/gt_verts", (3, 778, 3), -0.1, 0.1),
        "joints_mm": 1000 * named("loss/gt_joints", (3, 21, 3), -0.1, 0.1),
        "rotmats": rotvec_to_rotmat(named("loss/gt_aa", (48, 3), -1, 1)).view(3, 16, 3, 3),
        "betas": named("loss/gt_shape", (3, 10), -2, 2),
        "joints_img": named("loss/gt_img", (3, 21, 2), 0, 1),
    }
    return pred, target


def test_each_loss_is_the_originals() -> None:
    gold = arrays("losses")
    losses = hand_losses(*inputs())
    assert list(losses) == [str(name) for name in gold["names"]]
    relative = torch.stack(list(losses.values())) / torch.from_numpy(gold["values"])
    assert max_diff("losses, relative", relative, np.ones(5)) < 1e-5


def test_weights_replace_the_originals_one_by_one() -> None:
    pred, target = inputs()
    plain, changed = hand_losses(pred, target), hand_losses(pred, target, {"mano_pose": 1.0})
    assert changed["mano_pose"] == pytest.approx(float(plain["mano_pose"]) / WEIGHTS["mano_pose"])
    assert all(changed[name] == plain[name] for name in WEIGHTS if name != "mano_pose")


def test_half_precision_predictions_are_compared_in_float32() -> None:
    pred, target = inputs()
    losses = hand_losses({key: value.bfloat16() for key, value in pred.items()}, target)
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_an_unknown_weight() -> None:
    with pytest.raises(DataError, match="there is no loss mano_vert -- choose among mano_verts"):
        hand_losses(*inputs(), {"mano_vert": 1.0})


def test_shapes_that_would_broadcast() -> None:
    pred, target = inputs()
    target["betas"] = target["betas"][:1]
    with pytest.raises(DataError, match=r"betas is \(3, 10\) in the prediction and \(1, 10\) in the target"):
        hand_losses(pred, target)
