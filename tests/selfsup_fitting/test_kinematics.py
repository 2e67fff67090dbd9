"""Kinematics and skinning: the released code's numbers, gradients, and the laws that hold for any hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from selfsup_fitting.hand import Hand, load_hand
from selfsup_fitting.kinematics import forward_kinematics, hand_tensors, pose_spheres, skin
from selfsup_fitting.sampler import sample_poses
from selfsup_fitting.standin_hand import standin_hand
from shared.errors import DataError
from tests.golden.fill import uniform

GOLDEN = Path(__file__).parents[1] / "golden/selfsup_fitting"


@pytest.fixture(scope="module")
def toy() -> Hand:
    return load_hand(GOLDEN / "hand.npz")


def poses(count: int = 5) -> torch.Tensor:
    return sample_poses(count, torch.Generator().manual_seed(3)).double()


def test_golden(toy: Hand) -> None:
    expected = np.load(GOLDEN / "kinematics.npz")
    pose = torch.from_numpy(expected["pose"])
    transforms = forward_kinematics(pose, toy)
    scaled = forward_kinematics(pose, toy, torch.from_numpy(expected["scale"]))
    rotation, translation = np.split(np.abs(transforms.numpy() - expected["transforms"]), [3], axis=3)
    differences = {
        "rotation": (rotation.max(), 1e-4),
        "translation": (translation.max(), 2e-3),
        "spheres": (np.abs(pose_spheres(transforms, toy).numpy() - expected["spheres"]).max(), 2e-3),
        "vertices": (np.abs(skin(transforms, toy)[:, ::7].numpy() - expected["vertices_every_7th"]).max(), 2e-3),
        "scaled": (np.abs(pose_spheres(scaled, toy).numpy() - expected["spheres_scaled"]).max(), 2e-3),
    }
    for name, (difference, bound) in differences.items():
        print(f"kinematics {name} max diff {difference:.3g}")
        assert difference <= bound


def test_golden_gradient(toy: Hand) -> None:
    expected = np.load(GOLDEN / "kinematics.npz")
    pose = torch.from_numpy(expected["pose"]).requires_grad_()
    weight = torch.from_numpy(uniform("selfsup.fk.gradweight", (10, 41, 3), -1, 1))
    (pose_spheres(forward_kinematics(pose, toy), toy) * weight).sum().backward()
    difference = np.abs(pose.grad.numpy() - expected["pose_grad"]).max() / np.abs(expected["pose_grad"]).max()
    print(f"kinematics gradient max diff {difference:.3g} of the largest entry")
    assert difference <= 1e-4


def test_gradcheck() -> None:
    hand = load_hand("standin")
    scale = torch.full((2, 3), 0.9, dtype=torch.float64, requires_grad=True)

    def outputs(pose: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        transforms = forward_kinematics(pose, hand, scale)
        return pose_spheres(transforms, hand), skin(transforms, hand)[:, ::100]

    assert gradcheck(outputs, (poses(2).requires_grad_(), scale))


def test_rest_pose_is_the_identity() -> None:
    hand = load_hand("standin")
    transforms = forward_kinematics(torch.zeros(1, 26, dtype=torch.float64), hand)
    torch.testing.assert_close(transforms[0], torch.eye(4, dtype=torch.float64).expand(17, 4, 4))
    camera = hand.verts_mm * [-1, 1, 1]
    torch.testing.assert_close(skin(transforms, hand)[0], torch.from_numpy(camera))


def test_skin_is_the_weighted_sum_of_the_bones() -> None:
    hand, pose = load_hand("standin"), poses()
    transforms = forward_kinematics(pose, hand)
    homogeneous = torch.from_numpy(np.pad(hand.verts_mm, ((0, 0), (0, 1)), constant_values=1))
    slow = torch.einsum("vb,nbij,vj->nvi", torch.from_numpy(hand.weights), transforms, homogeneous)[..., :3]
    torch.testing.assert_close(skin(transforms, hand), slow * torch.tensor([-1.0, 1, 1], dtype=torch.float64))


def test_spheres_follow_their_bone_and_the_carpals_the_metacarpals() -> None:
    hand, pose = load_hand("standin"), poses()
    transforms = forward_kinematics(pose, hand)
    torch.testing.assert_close(transforms[:, 0], transforms[:, 1])
    posed = pose_spheres(transforms, hand)
    for bone in range(17):
        chosen = torch.from_numpy(hand.sphere_bone == bone)
        rest = torch.from_numpy(hand.sphere_mm)[chosen]
        # no scale: distances within a bone stay
        torch.testing.assert_close(torch.cdist(posed[:, chosen], posed[:, chosen])[0], torch.cdist(rest, rest))


def test_palm_moves_the_whole_hand_rigidly() -> None:
    """Rz Ry Rx about the model's origin, then the translation, in model axes."""
    from scipy.spatial.transform import Rotation

    hand, pose = load_hand("standin"), poses()
    still = pose.clone()
    still[:, :6] = 0
    model = torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    before = pose_spheres(forward_kinematics(still, hand), hand) * model
    after = pose_spheres(forward_kinematics(pose, hand), hand) * model
    turn = torch.from_numpy(Rotation.from_euler("xyz", pose[:, :3].numpy()).as_matrix())
    torch.testing.assert_close(after, before @ turn.mT + pose[:, None, 3:6])


def test_scale_acts_last_and_along_camera_axes() -> None:
    hand, pose = load_hand("standin"), poses()
    scale = torch.rand(5, 3, dtype=torch.float64) + 0.5
    plain, scaled = (forward_kinematics(pose, hand, s) for s in (None, scale))
    torch.testing.assert_close(pose_spheres(scaled, hand), pose_spheres(plain, hand) * scale[:, None])
    torch.testing.assert_close(skin(scaled, hand), skin(plain, hand) * scale[:, None])


def test_batch_of_one_equals_one_of_a_batch() -> None:
    hand, pose = load_hand("standin"), poses().float()
    whole = forward_kinematics(pose, hand)
    torch.testing.assert_close(forward_kinematics(pose[2:3], hand), whole[2:3])
    torch.testing.assert_close(skin(whole, hand)[2:3], skin(whole[2:3], hand), atol=1e-4, rtol=0)
    empty = forward_kinematics(pose[:0], hand)
    assert skin(empty, hand).shape == (0, len(hand.verts_mm), 3)
    assert pose_spheres(empty, hand).shape == (0, 41, 3)


@pytest.mark.parametrize("side", ["right", "left"])
def test_meaning_of_the_angles(side: str) -> None:
    """Spec 1.5, in camera space: thumb side -y (right hand), palm +z, fingers +x."""
    hand = standin_hand(side=side)
    thumb_side = -1 if side == "right" else 1

    def tip(index: int, value: float, sphere: int) -> torch.Tensor:
        pose = torch.zeros(2, 26, dtype=torch.float64)
        pose[1, index] = value
        rest, moved = pose_spheres(forward_kinematics(pose, hand), hand)[:, sphere]
        return moved - rest

    rest = pose_spheres(forward_kinematics(torch.zeros(1, 26, dtype=torch.float64), hand), hand)[0]
    assert (rest[[15, 21, 27, 33], 0] > rest[5, 0] + 120).all()
    for finger in range(4):
        sphere = 15 + 6 * finger
        for joint in (1, 2, 3):
            assert tip(6 + 4 * finger + joint, 0.4, sphere)[2] > 0.5, "flexion goes to the palm"
        assert tip(6 + 4 * finger, 0.4, sphere)[1] * thumb_side > 15, "abduction goes to the thumb side"
    assert tip(22, 0.4, 39)[1] * thumb_side > 15  # the thumb opens
    assert tip(22, 0.4, 39)[0] < -10
    assert tip(23, 0.4, 39)[2] > 15  # its flexion 1 goes palmwards
    for joint in (24, 25):  # negative flexion 2 and 3 bend towards the fingers
        assert tip(joint, -0.4, 39)[1] * thumb_side < -3


def test_constants_are_made_once_and_where_they_are_asked_for() -> None:
    hand = load_hand("standin")
    assert hand_tensors(hand, torch.float32, "cpu") is hand_tensors(hand, torch.float32, "cpu")
    assert hand_tensors(hand, torch.float64, "cpu").skin.dtype == torch.float64
    assert hand_tensors(hand, torch.float64, "cpu").faces.dtype == torch.int64


def test_messages() -> None:
    hand = load_hand("standin")
    with pytest.raises(DataError, match=r"pose must have shape \(B, 26\), got \(3, 25\)"):
        forward_kinematics(torch.zeros(3, 25), hand)
    with pytest.raises(DataError, match=r"scale must have shape \(3, 3\), got \(3,\)"):
        forward_kinematics(torch.zeros(3, 26), hand, torch.ones(3))
