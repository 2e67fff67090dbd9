"""The losses of SO-HandNet, in box lengths.

Every mean is over what was counted, so that a smaller last batch weighs what it holds (the original divided by full
batches, README ledger Q11 and Q12).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sohandnet.kernels import ops
from sohandnet.model import Clouds

BONES: dict[str, tuple[tuple[int, int], ...]] = {
    # palm to the root of each finger, then along it
    "icvl": tuple((0 if i == 0 else 3 * f + i, 3 * f + i + 1) for f in range(5) for i in range(3)),
    "msra": tuple((0 if i == 0 else 4 * f + i, 4 * f + i + 1) for f in range(5) for i in range(4)),
    "nyu": (
        *((0, 1), (1, 13), (11, 13), (3, 13), (2, 3), (4, 5), (5, 13)),
        *((6, 7), (7, 13), (8, 9), (9, 10), (10, 12), (12, 13)),
    ),
}
"""Joint pairs of each skeleton that the original names (its loss versions)."""


def decoder_loss(clouds: Clouds, pc: Tensor, backend: ops.ChamferBackend = "native") -> Tensor:
    """L_dec: Chamfer distance of all 1280 points plus that of the 16 x 16 level, to the input cloud (B, 3, N)."""
    full = ops.chamfer_distance(clouds.full, pc, backend=backend)
    return full.total + ops.chamfer_distance(clouds.coarse, pc, backend=backend).total


def pose_loss(pred: Tensor, gt: Tensor) -> Tensor:
    """L_est: mean squared error over all coordinates of ``pred`` and ``gt`` (B, 3, J)."""
    return (pred.float() - gt.float()).square().mean()


def bone_lengths(joints: Tensor, bones: Sequence[tuple[int, int]]) -> Tensor:
    """(B, bones) lengths of (B, 3, J) joints; the gradient of a bone of length 0 is 0."""
    first, second = torch.tensor(bones, device=joints.device).T
    squares = (joints[:, :, first] - joints[:, :, second]).float().square().sum(1)
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def bone_loss(pred: Tensor, gt: Tensor, bones: Sequence[tuple[int, int]]) -> Tensor:
    """Mean over samples and bones of |length - labelled length| / labelled length, for (B, 3, J) joints.

    With gradient; the original computed it outside autograd and divided by 3 J too often (README, ledger Q13).
    Bones whose labelled length is 0 are left out.
    """
    length = bone_lengths(gt, bones)
    usable = length > 0
    error = (bone_lengths(pred, bones) - length).abs() / torch.where(usable, length, 1.0)
    return (error * usable).sum() / usable.sum().clamp(min=1)


def reference_pose_loss(pred: Tensor, gt: Tensor, bones: Sequence[tuple[int, int]] | None = None) -> Tensor:
    """The value that the original prints: the mean squared error, with ``bones`` plus its mis-scaled bone term.

    The bone term is divided by B * 3J * bones and sends no gradient. Only for comparison with its logs.
    """
    loss = pose_loss(pred, gt)
    if bones is None:
        return loss
    return loss + bone_loss(pred.detach(), gt, bones) / pred[0].numel()
