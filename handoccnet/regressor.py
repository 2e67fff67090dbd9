"""From a feature vector to a hand: rotations, shape, and the MANO layer behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handoccnet.backbone import SLOPE
from shared.mano import ORDERS, ManoLayer, ManoModel, rotvec_to_rotmat


def rot6d_to_rotmat(rot6d: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) whose columns are a/|a|, the part of b across it, and their cross product.

    (a, b) are the first and the last three of the six numbers (..., 6); norms are kept from below at 1e-12.
    """
    a, b = rot6d[..., :3], rot6d[..., 3:]
    x = F.normalize(a, dim=-1)
    y = F.normalize(b - (x * b).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y)), -1)


def rotmat_to_rotvec(rotmat: Tensor) -> Tensor:
    """Axis-angle (..., 3) of rotation matrices (..., 3, 3), angles in [0, pi]; NaN becomes 0.

    Through the quaternion whose largest component is taken from the diagonal, so that the one square root is of a
    number of at least 1 and the gradient stays finite, at the identity too.
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = rotmat.flatten(-2).unbind(-1)
    z_low, x_over_y, x_under_y = r22 < 1e-6, r00 > r11, r00 < -r11
    x, y, z = z_low & x_over_y, z_low & ~x_over_y, ~z_low & x_under_y  # which component is large; w where none
    squares = (1 + r00 - r11 - r22, 1 - r00 + r11 - r22, 1 - r00 - r11 + r22, 1 + r00 + r11 + r22)
    rows = (
        (r21 - r12, squares[0], r01 + r10, r02 + r20),
        (r02 - r20, r01 + r10, squares[1], r12 + r21),
        (r10 - r01, r02 + r20, r12 + r21, squares[2]),
        (squares[3], r21 - r12, r02 - r20, r10 - r01),
    )

    def choose(values: tuple[Tensor, ...]) -> Tensor:
        return torch.where(x, values[0], torch.where(y, values[1], torch.where(z, values[2], values[3])))

    quaternion = torch.stack([choose(parts) for parts in zip(*rows, strict=True)], -1)
    quaternion = quaternion * (0.5 * choose(squares).rsqrt())[..., None]
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    square = (axis * axis).sum(-1, keepdim=True)
    small = square < 1e-12
    sine = torch.where(small, torch.ones_like(square), square).sqrt()
    factor = torch.where(small, 2 + square / 3, 2 * torch.atan2(sine, w) / sine)
    rotvec = axis * factor
    return torch.where(rotvec.isnan(), torch.zeros_like(rotvec), rotvec)


class Hand(nn.Module):
    """The right MANO hand in this method's convention: mean pose added, manopth's tips, uncentred, joints thumb first.

    Args:
        model: from :func:`shared.mano.load_mano`.
        tips: fingertip vertices, a name of :data:`shared.mano.TIPS` or five ids. The published networks use
            ``"manopth"``.
    """

    def __init__(self, model: ManoModel, tips: str | tuple[int, int, int, int, int] = "manopth") -> None:
        super().__init__()
        self.layer = ManoLayer(model, n_pca=None, flat_hand_mean=False, tips=tips, joint_order="thumb_first", unit="mm")
        chain = torch.tensor([ORDERS["thumb_first"].index(j) for j in range(16)])  # MANO's 16 joints among our 21
        self.register_buffer("chain", chain, persistent=False)

    chain: Tensor

    def forward(self, pose: Tensor, betas: Tensor) -> dict[str, Tensor]:
        """Mesh and joints of pose (B, 48) axis-angle, root first, mean pose not included, and shape (B, 10).

        Returns:
            ``joints_mm`` (B, 21, 3) and ``verts_mm`` (B, 778, 3): mm, OpenCV axes, the wrist at its rest place;
            ``transforms`` (B, 16, 4, 4): the chain's joint frames, millimetres, MANO's order.
        """
        rotmats = self.layer.pose_to_rotmats(pose)
        verts_mm, joints_mm = self.layer.from_rotmats(rotmats, betas)
        assert verts_mm is not None
        fingers = rotmats[:, 1:].reshape(-1, 5, 3, 3, 3)
        first = rotmats[:, :1] @ fingers[:, :, 0]
        second = first @ fingers[:, :, 1]
        turns = torch.stack((first, second, second @ fingers[:, :, 2]), 2).flatten(1, 2)
        turns = torch.cat((rotmats[:, :1], turns), 1)
        upper = torch.cat((turns, joints_mm[:, self.chain, :, None]), -1)
        last = upper.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(pose.shape[0], 16, 1, 4)
        return {"joints_mm": joints_mm, "verts_mm": verts_mm, "transforms": torch.cat((upper, last), 2)}

    def targets(self, pose: Tensor, betas: Tensor) -> dict[str, Tensor]:
        """What :func:`handoccnet.losses.hand_losses` compares with, of annotated pose (B, 48) and shape (B, 10):
        ``verts_mm``, ``joints_mm``, ``rotmats`` (B, 16, 3, 3) of ``pose`` itself (mean pose not added), ``betas``."""
        with torch.no_grad(), torch.autocast(pose.device.type, enabled=False):
            pose, betas = pose.float(), betas.float()
            hand = self(pose, betas)
            return {
                "verts_mm": hand["verts_mm"],
                "joints_mm": hand["joints_mm"],
                "rotmats": rotvec_to_rotmat(pose.reshape(-1, 16, 3)),
                "betas": betas,
            }


class HandHead(nn.Module):
    """Features to 16 rotations in six numbers and 10 shape numbers, and through MANO to a hand; float32 throughout."""

    def __init__(self, inputs: int, hidden: tuple[int, int], hand: Hand) -> None:
        super().__init__()
        self.base = nn.Sequential(
            nn.Linear(inputs, hidden[0]),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Linear(hidden[0], hidden[1]),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        self.pose = nn.Linear(hidden[1], 96)
        self.shape = nn.Linear(hidden[1], 10)
        self.hand = hand

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """``pose`` (B, 48), ``rotmats`` (B, 16, 3, 3), ``betas`` (B, 10) and :class:`Hand`'s outputs."""
        with torch.autocast(features.device.type, enabled=False):
            x = self.base(features.float())
            rotmats = rot6d_to_rotmat(self.pose(x).reshape(-1, 16, 6))
            betas = self.shape(x)
            pose = rotmat_to_rotvec(rotmats).flatten(1)
            return {"pose": pose, "rotmats": rotmats, "betas": betas, **self.hand(pose, betas)}
