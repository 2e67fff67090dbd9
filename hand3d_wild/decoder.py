"""From the network's 22 numbers to a hand: MANO with this method's conventions, and a scaled orthographic camera.

Boukhayma, de Bem, Torr, "3D Hand Shape and Pose from Images in the Wild", CVPR 2019, section 3; original file
``model.py`` of boukhayma/3dhand. What differs from other MANO layers: the chain starts turned by (pi, 0, 0), six PCA
coefficients on top of the mean hand, fingertips of its own (``TIPS["wild"]``), the order ``"wild"``, and a second
rotation about the **origin**, not about the wrist.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import DataError
from shared.mano import ORDERS, PALM_VERTS, TIPS, ManoModel, rotvec_to_rotmat

IMAGE_SIZE = 256
"""Edge of the frame that scale, translation and all 2D outputs are in, whatever resolution the network sees."""
OFFSET = (545.0, 128.0, 128.0, *(0.0,) * 19)
"""Added to the last layer's output: a hand of usual size in the middle of the picture."""
N_PARAMS, N_POSE, N_SHAPE = 22, 6, 10


class Params(NamedTuple):
    """The 22 numbers by name.

    Attributes:
        scale: (B,) pixels of the 256-pixel frame per metre.
        trans: (B, 2) u, v in pixels of that frame.
        rot: (B, 3) axis-angle about the origin, rad.
        pose: (B, 6) MANO PCA coefficients.
        betas: (B, 10) MANO shape.
    """

    scale: Tensor
    trans: Tensor
    rot: Tensor
    pose: Tensor
    betas: Tensor

    @classmethod
    def split(cls, vector: Tensor) -> Params:
        """Names for the columns of (B, 22) vectors; views, no copies."""
        if vector.ndim != 2 or vector.shape[1] != N_PARAMS:
            raise DataError(f"expected hand parameters of shape (B, {N_PARAMS}), got {tuple(vector.shape)}")
        return cls(vector[:, 0], vector[:, 1:3], vector[:, 3:6], vector[:, 6:12], vector[:, 12:22])

    @property
    def vector(self) -> Tensor:
        """(B, 22), the columns in the network's order."""
        return torch.cat((self.scale[:, None], self.trans, self.rot, self.pose, self.betas), 1)


class Prediction(NamedTuple):
    """A batch of hands. Joints are in the order ``"wild"``: wrist, index, middle, pinky, ring, thumb, base to tip.

    Attributes:
        joints_2d: (B, 21, 2) u, v in pixels of the 256-pixel frame.
        verts_2d: (B, 778, 2) likewise.
        joints_m: (B, 21, 3) metres, OpenCV axes (x right, y down, z away), origin as MANO's.
        verts_m: (B, 778, 3) likewise.
        params: the numbers they follow from.
    """

    joints_2d: Tensor
    verts_2d: Tensor
    joints_m: Tensor
    verts_m: Tensor
    params: Params

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """The original's return value: (B, 1598) pixels as u0, v0, u1, v1, ..., (B, 799, 3) metres, (B, 22) numbers;
        21 joints first, then 778 vertices."""
        points_2d = torch.cat((self.joints_2d, self.verts_2d), 1)
        return points_2d.flatten(1), torch.cat((self.joints_m, self.verts_m), 1), self.params.vector

    def with_palm(self, palm: Tensor) -> Prediction:
        """The same with joint 0 in the middle of the palm (mean of vertices 22 and 95) where ``palm`` (B,) is true.

        For labels such as STB's, whose joint 0 is the palm's centre and not the wrist.
        """
        ids = list(PALM_VERTS)

        def moved(joints: Tensor, verts: Tensor) -> Tensor:
            root = torch.where(palm.bool()[:, None], verts[:, ids].mean(1), joints[:, 0])
            return torch.cat((root[:, None], joints[:, 1:]), 1)

        return self._replace(
            joints_2d=moved(self.joints_2d, self.verts_2d), joints_m=moved(self.joints_m, self.verts_m)
        )


class Decoder(nn.Module):
    """22 numbers to joints and mesh: batched, differentiable, without weights of its own.

    Written for speed at small batches: coordinates are planes (B, 3, V), so that every product is one contiguous pass;
    each basis exists once; five fingers move together, level by level; the second rotation goes into the chain's root
    instead of turning 799 points.

    Args:
        mano: a right hand from :func:`shared.mano.load_mano`; its arrays never enter the state dict.
        dtype: of its arrays, and so of what it computes.

    Raises:
        DataError: a left hand.
    """

    template: Tensor
    blend: Tensor
    weights: Tensor
    joint_template: Tensor
    joint_shape: Tensor
    components: Tensor
    hands_mean: Tensor
    faces: Tensor
    root: Tensor
    tip_index: Tensor
    order: Tensor

    def __init__(self, mano: ManoModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if mano.side != "right":
            raise DataError(
                f"the decoder needs a right hand, got the {mano.side} one of {mano.source}",
                remedy="give MANO_RIGHT; left hands are mirrored pictures of right ones",
            )
        self.mano_sha256 = mano.sha256
        self.source = mano.source

        def constant(name: str, values: NDArray[Any], dtype: torch.dtype = dtype) -> None:
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(values), dtype=dtype), persistent=False)

        constant("template", mano.v_template.T)  # (3, 778)
        directions = np.concatenate((mano.shapedirs, mano.posedirs), -1)  # (778, 3, 10 betas + 135 pose features)
        constant("blend", directions.transpose(2, 1, 0).reshape(145, 3 * 778))
        constant("weights", mano.weights.T)  # (16, 778)
        constant("joint_template", mano.joints)
        constant("joint_shape", np.einsum("jv,vdb->bjd", mano.J_regressor, mano.shapedirs).reshape(N_SHAPE, 48))
        constant("components", mano.hands_components[:N_POSE])
        constant("hands_mean", mano.hands_mean)
        constant("root", np.diag([1.0, -1.0, -1.0]))  # exp of (pi, 0, 0): MANO's y-up frame to the picture's
        constant("faces", mano.faces, torch.int64)
        constant("tip_index", np.array(TIPS["wild"]), torch.int64)
        constant("order", np.array(ORDERS["wild"]), torch.int64)

    def forward(self, params: Tensor) -> Prediction:
        """Hands of (B, 22) parameter vectors, in the precision of the buffers (autocast has no effect here)."""
        with torch.autocast(params.device.type, enabled=False):
            return self._decode(Params.split(params.to(self.template.dtype)))

    def _decode(self, params: Params) -> Prediction:
        planes, joints = self._pose(params.rot, params.pose, params.betas)
        scale, trans = params.scale[:, None, None], params.trans
        verts_2d = torch.addcmul(trans[:, :, None], scale, planes[:, :2])
        joints_2d = torch.addcmul(trans[:, None], scale, joints[..., :2])
        return Prediction(joints_2d, verts_2d.transpose(1, 2), joints, planes.transpose(1, 2), params)

    def _pose(self, rot: Tensor, pose: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """((B, 3, 778) vertices as planes, (B, 21, 3) joints in the order ``"wild"``) in metres, without the camera."""
        batch = len(pose)
        fingers = rotvec_to_rotmat((self.hands_mean + pose @ self.components).view(batch, 15, 3))
        eye = torch.eye(3, dtype=pose.dtype, device=pose.device)
        features = torch.cat((betas, (fingers - eye).view(batch, 135)), 1)
        points = torch.addmm(self.template.view(-1), features, self.blend).view(batch, 3, 1, 778)
        rest = torch.addmm(self.joint_template.view(-1), betas, self.joint_shape).view(batch, 16, 3)

        turn, place = self._chain(rotvec_to_rotmat(rot), fingers, rest)
        shift = place - (turn * rest[:, :, None]).sum(-1)  # the rest joint goes to its place
        transforms = torch.cat((turn.transpose(2, 3), shift[:, :, None]), 2).view(batch, 16, 12)
        mix = transforms.transpose(1, 2).reshape(batch * 12, 16) @ self.weights
        # Columns of the mixed transforms by unbind: slices would cost a zeroed copy each on the way back.
        columns, (x, y, z) = mix.view(batch, 4, 3, 778).unbind(1), points.unbind(1)
        planes = torch.addcmul(torch.addcmul(torch.addcmul(columns[3], columns[0], x), columns[1], y), columns[2], z)
        joints = torch.cat((place, planes[:, :, self.tip_index].transpose(1, 2)), 1)[:, self.order]
        return planes, joints

    def _chain(self, rot: Tensor, fingers: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Global rotations (B, 16, 3, 3) and joints (B, 16, 3), m; the wrist and its frame are turned by ``rot``."""
        batch = len(rot)
        local = fingers.view(batch, 5, 3, 3, 3)  # (B, 5 fingers, 3 levels, 3, 3)
        wrist = rest[:, :1]
        bones = rest[:, 1:].view(batch, 5, 3, 3) - torch.cat(
            (wrist[:, None].expand(batch, 5, 1, 3), rest[:, 1:].view(batch, 5, 3, 3)[:, :, :2]), 2
        )
        turn = (rot @ self.root)[:, None]  # (B, 1, 3, 3)
        place = (rot @ wrist.transpose(1, 2)).transpose(1, 2)
        turns, places = [turn], [place]
        for level in range(3):
            # A sum over a broadcast product: torch's batched matmul of 3x3 matrices is several times slower here.
            place = place + (turn * bones[:, :, None, level]).sum(-1)
            turn = (turn[..., None] * local[:, :, None, level]).sum(-2)
            turns.append(turn)
            places.append(place)
        return (
            torch.cat((turns[0], torch.stack(turns[1:], 2).view(batch, 15, 3, 3)), 1),
            torch.cat((places[0], torch.stack(places[1:], 2).view(batch, 15, 3)), 1),
        )
