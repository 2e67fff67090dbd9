"""The decoder against the original's and the official layer's numbers, and by its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hand3d_wild.decoder import N_PARAMS, Decoder, Params
from shared.errors import DataError
from shared.mano import TIPS, ManoLayer, load_mano, mirror_model, rotvec_to_rotmat
from shared.skeletons import order
from tests.conftest import GOLDEN
from tests.golden.fill import uniform
from tests.hand3d_wild.golden_files import arrays, golden_hand, max_diff


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(count, N_PARAMS, generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor([30.0, 20, 20, *[0.8] * 3, *[1.0] * 6, *[1.0] * 10]) + torch.tensor(
        [545.0, 128, 128, *[0.0] * 19]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(dtype: torch.dtype) -> None:
    gold = arrays("decoder")
    decoder = Decoder(golden_hand(), dtype)
    rot, pose, betas = (torch.from_numpy(gold[k]).to(dtype).requires_grad_() for k in ("rot", "pose", "beta"))
    params = torch.cat((torch.ones(4, 1), torch.zeros(4, 2), rot, pose, betas), 1)
    _, x3d, _ = decoder(params).flat()
    assert max_diff("x3d", x3d, gold["x3d"]) < 1e-6
    weight = torch.from_numpy(uniform(str(gold["grad_weight_name"]), (4, 799, 3), -1, 1))
    (x3d * weight).sum().backward()
    for name, x in (("rot", rot), ("pose", pose), ("beta", betas)):
        assert max_diff(f"d {name}", x.grad, gold[f"grad_{name}"]) < 1e-5 * np.abs(gold[f"grad_{name}"]).max()


def test_zero_is_golden_and_has_a_finite_gradient() -> None:
    zero = torch.zeros(1, N_PARAMS, requires_grad=True)
    hand = Decoder(golden_hand())(zero)
    assert max_diff("zero_x3d", hand.flat()[1], arrays("decoder")["zero_x3d"]) < 1e-6
    (hand.joints_m.sum() + hand.verts_m.square().sum()).backward()
    assert zero.grad is not None
    assert bool(torch.isfinite(zero.grad).all())
    assert bool(zero.grad[0, 3:6].abs().min() > 0)  # the limit, not a patched zero


def test_gradient_of_the_rotation_is_right_at_and_near_zero() -> None:
    decoder = Decoder(golden_hand(), torch.float64)
    base = vectors(1).double()

    def joints(rot: torch.Tensor) -> torch.Tensor:
        return decoder(torch.cat((base[:, :3], rot, base[:, 6:]), 1)).joints_m

    for size in (0.0, 1e-9, 1e-3, 1.0):
        rot = torch.full((1, 3), size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(joints, (rot,))


def test_official_layer_golden() -> None:
    """The same mathematics as the official model: its global rotation undone, ours put in its place."""
    with np.load(GOLDEN / "mano/official_chumpy_model.npz") as gold:
        pose, betas, verts, joints = (torch.from_numpy(gold[k]) for k in ("pose", "betas", "verts", "joints16"))
    decoder = Decoder(golden_hand(), torch.float64)
    rot = pose[:, :3]
    params = torch.cat((torch.ones(len(pose), 3), rot, pose[:, 3:], betas), 1).double()
    hand = decoder(params)
    # Official: R (x - J0) + J0. Ours: R P (x - J0) + R J0 with P = diag(1, -1, -1), the rotation (pi, 0, 0).
    R, P = rotvec_to_rotmat(rot), torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    wrist = joints[:, :1]
    ours = hand.verts_m - hand.joints_m[:, :1]
    expected = (verts - wrist) @ R @ P @ R.transpose(1, 2)
    # The file's skinning weights sum to 1 within 4e-8: another wrist position shows that much in the vertices.
    assert max_diff("verts, m", ours, expected.numpy()) < 2e-8
    kinematic = [0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19]  # the 16 without tips, in this order already
    chain = (joints - wrist) @ R @ P @ R.transpose(1, 2)
    assert max_diff("joints, m", (hand.joints_m - hand.joints_m[:, :1])[:, kinematic], chain.numpy()) < 1e-12
    assert max_diff("wrist, m", hand.joints_m[:, :1], (wrist @ R.transpose(1, 2)).numpy()) < 1e-12


def test_agrees_with_the_shared_layer() -> None:
    hand = load_mano("standin")
    vector = vectors(5)
    params = Params.split(vector)
    layer = ManoLayer(hand, n_pca=6, flat_hand_mean=False, tips="wild", joint_order="wild", unit="m")
    root = torch.tensor([[torch.pi, 0.0, 0.0]]).expand(5, 3)
    out = layer(torch.cat((root, params.pose), 1), params.betas)
    R = rotvec_to_rotmat(params.rot).transpose(1, 2)
    ours = Decoder(hand)(vector)
    assert out.verts is not None
    assert max_diff("verts, m", ours.verts_m, (out.verts @ R).numpy()) < 1e-6
    assert max_diff("joints, m", ours.joints_m, (out.joints @ R).numpy()) < 1e-6


def test_camera_order_and_flat_layout() -> None:
    vector = vectors(3)
    hand = Decoder(golden_hand())(vector)
    x2d, x3d, back = hand.flat()
    assert torch.equal(back, vector)
    assert x2d.shape == (3, 1598)
    assert x3d.shape == (3, 799, 3)
    pixels = vector[:, 1:3, None] + vector[:, :1, None] * x3d[..., :2].transpose(1, 2)  # (3, 2, 799)
    assert torch.allclose(x2d[:, 0::2], pixels[:, 0], atol=1e-4)
    assert torch.allclose(x2d[:, 1::2], pixels[:, 1], atol=1e-4)
    assert torch.equal(x3d[:, :21], hand.joints_m)
    assert torch.equal(x3d[:, 21:], hand.verts_m)
    for row, vertex in ((4, 333), (8, 444), (12, 672), (16, 555), (20, 745)):
        assert torch.equal(x3d[:, row], x3d[:, 21 + vertex])
    assert TIPS["wild"] == (745, 333, 444, 555, 672)
    assert order("thumb_first", "wild").tolist()[1] == 5  # index first


def test_rotation_composes_about_the_origin() -> None:
    decoder = Decoder(golden_hand())
    vector = vectors(2)
    turned, plain = decoder(vector), vector.clone()
    plain[:, 3:6] = 0
    R = rotvec_to_rotmat(vector[:, 3:6]).transpose(1, 2)
    assert max_diff("verts, m", turned.verts_m, (decoder(plain).verts_m @ R).numpy()) < 1e-6


def test_palm_replaces_joint_0_where_asked() -> None:
    hand = Decoder(golden_hand())(vectors(3))
    out = hand.with_palm(torch.tensor([True, False, True]))
    assert torch.equal(out.joints_m[1], hand.joints_m[1])
    assert torch.equal(out.joints_2d[:, 1:], hand.joints_2d[:, 1:])
    middle = (hand.verts_m[:, 22] + hand.verts_m[:, 95]) / 2
    assert torch.allclose(out.joints_m[[0, 2], 0], middle[[0, 2]])
    assert torch.allclose(out.joints_2d[0, 0], (hand.verts_2d[0, 22] + hand.verts_2d[0, 95]) / 2)


def test_bad_input_and_state() -> None:
    decoder = Decoder(golden_hand())
    assert decoder.state_dict() == {}  # no licensed array in a checkpoint
    with pytest.raises(DataError, match=r"shape \(B, 22\), got \(2, 23\)"):
        decoder(torch.zeros(2, 23))
    with pytest.raises(DataError, match="needs a right hand"):
        Decoder(mirror_model(golden_hand()))
    assert decoder(torch.zeros(0, 22)).verts_m.shape == (0, 778, 3)
