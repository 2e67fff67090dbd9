"""From the 26 numbers of a pose to bone transforms, spheres and skin.

Source: the released ``mesh/kinematicsTransformation.py``. Everything is batched, differentiable torch. Model space has
x negated against camera space (x right, y down, z forward, origin at the crop's centre); the sign is applied once, at
the end. Millimetres and radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from selfsup_fitting.hand import Hand
from selfsup_fitting.spheres import FINGERS
from shared.errors import DataError

POSE_SIZE = 26


@dataclass(frozen=True)
class HandTensors:
    """The constants of a hand in one dtype on one device.

    Attributes:
        linear, quadratic: (23, 4, 4); rotation k by an angle t is I + sin t * linear[k] + (1 - cos t) * quadratic[k] in
            model space: palm x, y, z, then abduction and three flexions of each finger.
        skin: (68, V); row 4 b + k holds weight of bone b times homogeneous rest coordinate k.
        spheres: (41, 4) homogeneous rest positions, sphere_bone (41,) and radius_mm (41,).
        faces: (F, 3) int64.
    """

    linear: Tensor
    quadratic: Tensor
    skin: Tensor
    spheres: Tensor
    sphere_bone: Tensor
    radius_mm: Tensor
    faces: Tensor


@lru_cache(32)
def hand_tensors(hand: Hand, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> HandTensors:
    """The hand's constants, prepared once per (hand, dtype, device)."""
    axes = torch.eye(3, dtype=torch.float64)
    frames = torch.from_numpy(hand.offsets)
    linear, quadratic = [], []
    for axis, frame in [(axis, torch.eye(4, dtype=torch.float64)) for axis in axes] + [
        (axis, frames[2 + 3 * finger + joint])
        for finger, name in enumerate(FINGERS)
        for joint, axis in (
            (0, -axes[1] if name in ("ring", "little") else axes[2]),
            (0, axes[0]),
            (1, axes[0]),
            (2, axes[0]),
        )
    ]:
        x, y, z = axis.tolist()
        cross = torch.tensor([[0, -z, y, 0], [z, 0, -x, 0], [-y, x, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
        back = torch.linalg.inv(frame)
        linear.append(back @ cross @ frame)
        quadratic.append(back @ cross @ cross @ frame)

    homogeneous = torch.nn.functional.pad(torch.from_numpy(hand.verts_mm), (0, 1), value=1.0)  # (V, 4)
    skin = torch.einsum("vb,vk->bkv", torch.from_numpy(hand.weights), homogeneous).flatten(0, 1)
    spheres = torch.nn.functional.pad(torch.from_numpy(hand.sphere_mm), (0, 1), value=1.0)

    def put(values: Tensor) -> Tensor:
        return values.to(device, dtype if values.is_floating_point() else torch.int64).contiguous()

    return HandTensors(
        put(torch.stack(linear)),
        put(torch.stack(quadratic)),
        put(skin),
        put(spheres),
        put(torch.from_numpy(hand.sphere_bone)),
        put(torch.from_numpy(hand.sphere_radius_mm)),
        put(torch.from_numpy(hand.faces)),
    )


def forward_kinematics(pose: Tensor, hand: Hand, scale: Tensor | None = None) -> Tensor:
    """(B, 17, 4, 4) transforms of the bones in model space: rest point -> posed point; the identity at the zero pose.

    Args:
        pose: (B, 26) palm rotation about model x, y, z (radians), palm translation (mm, model axes), then abduction and
            three flexions of index, middle, ring, little finger and thumb.
        hand: whose bones.
        scale: (B, 3) factors along the axes, applied after everything else, translation included; None for 1.

    Raises:
        DataError: another shape.
    """
    if pose.ndim != 2 or pose.shape[1] != POSE_SIZE:
        raise DataError(f"pose must have shape (B, {POSE_SIZE}), got {tuple(pose.shape)}")
    if scale is not None and scale.shape != (len(pose), 3):
        raise DataError(f"scale must have shape ({len(pose)}, 3), got {tuple(scale.shape)}")
    constants = hand_tensors(hand, pose.dtype, pose.device)
    angles = torch.cat((pose[:, :3], pose[:, 6:]), 1)[..., None, None]  # (B, 23, 1, 1)
    turns = angles.sin() * constants.linear + (1 - angles.cos()) * constants.quadratic
    turns = turns + torch.eye(4, dtype=pose.dtype, device=pose.device)

    palm = turns[:, 2] @ turns[:, 1] @ turns[:, 0]
    palm = palm + torch.nn.functional.pad(pose[:, 3:6, None], (3, 0, 0, 1))
    if scale is not None:
        palm = torch.nn.functional.pad(scale, (0, 1), value=1.0)[..., None] * palm
    fingers = turns[:, 3:].unflatten(1, (5, 4))  # (B, 5, 4, 4, 4)
    first = palm[:, None] @ fingers[:, :, 0] @ fingers[:, :, 1]
    second = first @ fingers[:, :, 2]
    third = second @ fingers[:, :, 3]
    chains = torch.stack((first, second, third), 2).flatten(1, 2)  # (B, 15, 4, 4)
    return torch.cat((palm[:, None], palm[:, None], chains), 1)


def pose_spheres(transforms: Tensor, hand: Hand) -> Tensor:
    """(B, 41, 3) sphere centres in camera space, mm, of (B, 17, 4, 4) transforms from :func:`forward_kinematics`."""
    constants = hand_tensors(hand, transforms.dtype, transforms.device)
    posed = (transforms[:, constants.sphere_bone, :3] @ constants.spheres[..., None])[..., 0]
    return _to_camera(posed)


def skin(transforms: Tensor, hand: Hand) -> Tensor:
    """(B, V, 3) skin in camera space, mm: linear blend skinning as one matrix product over distinct vertices."""
    constants = hand_tensors(hand, transforms.dtype, transforms.device)
    rows = transforms[:, :, :3].transpose(1, 2).flatten(2)  # (B, 3, 68)
    rows = torch.cat((-rows[:, :1], rows[:, 1:]), 1)  # model to camera
    return (rows.flatten(0, 1) @ constants.skin).unflatten(0, (-1, 3)).transpose(1, 2)


def _to_camera(points: Tensor) -> Tensor:
    """Model space <-> camera space (..., 3): x changes its sign."""
    return torch.cat((-points[..., :1], points[..., 1:]), -1)
