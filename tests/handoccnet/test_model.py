"""The network layer by layer against the original's numbers, and what its parts must do whatever the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handoccnet.attention import AttentionLayer, Transformer, attend, injection_gate, to_map, to_tokens
from handoccnet.backbone import Backbone
from handoccnet.losses import hand_losses
from handoccnet.model import HandOccNet
from handoccnet.regressor import Hand, rot6d_to_rotmat, rotmat_to_rotvec
from shared.errors import DataError
from shared.mano import ORDERS, TIPS, load_mano, mirror_model, rotvec_to_rotmat
from tests.handoccnet.snapshots import TINY, arrays, golden_hand, golden_network, max_diff, named, tiny


def sub(x: Tensor, channels: int = 16, step: int = 4) -> Tensor:
    return x[:, ::channels, ::step, ::step]


def stats(x: Tensor) -> Tensor:
    return torch.stack((x.mean(), x.std(correction=0), x.min(), x.max()))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return golden_network(tmp_path_factory.mktemp("snapshot"))


@pytest.fixture(scope="module")
def network(reference: nn.Module) -> HandOccNet:
    inner = reference.network
    assert isinstance(inner, HandOccNet)
    return inner


def test_parameter_counts(network: HandOccNet) -> None:
    parts = {
        "backbone": 25_672_356, "fit": 4_659_968, "set": 2_495_488, "head": 3_075_114, "encoder": 1_787_648,
        "hand_head": 1_628_778,
    }  # fmt: skip
    assert {n: sum(p.numel() for p in getattr(network, n).parameters()) for n in parts} == parts


# --- golden -----------------------------------------------------------------------------------------------------------


def test_backbone_and_gate(network: HandOccNet) -> None:
    gold = arrays("backbone")
    with torch.inference_mode():
        image = named("img", (2, 3, 256, 256), 0, 1)
        for name, c, channels, step in zip(
            ("c2", "c3", "c4", "c5"), network.backbone.pyramid(image), (32, 64, 128, 256), (8, 4, 4, 2), strict=True
        ):
            assert max_diff(name, sub(c, channels, step), gold[name]) < 1e-4 * np.abs(gold[name]).max()
            last = c
        features, gate = network.backbone(image)
        primary, secondary = features * gate, features - features * gate
    assert max_diff("p2_pooled", sub(features), gold["p2_pooled"]) < 5e-5
    assert max_diff("gate", gate, gold["gate"]) < 1e-5
    assert max_diff("primary", sub(primary), gold["primary"]) < 5e-5
    assert max_diff("secondary", sub(secondary), gold["secondary"]) < 5e-5
    for name, x in (("primary", primary), ("secondary", secondary), ("gate", gate), ("c5", last)):
        assert max_diff(f"{name}_stats", stats(x), gold[f"{name}_stats"]) < 1e-4 * np.abs(gold[f"{name}_stats"]).max()


def test_attention_product() -> None:
    gold = arrays("attention")
    q, k = (named(f"attn/{n}", (2, 48, 256), -1.5, 1.5) for n in "qk")
    v = named("attn/v", (2, 48, 256), -1, 1)
    q2, k2 = (named(f"attn/{n}", (2, 48, 256), -0.15, 0.15) for n in ("q2", "k2"))
    plain = attend(q, k, v, 4)
    gate = injection_gate(q2, k2.sum(1), torch.eye(256), torch.zeros(256), 4)
    assert 0.01 < float(gate.min()) < float(gate.max()) < 0.99  # unsaturated, so the test sees it
    gated = (plain.reshape(2, 48, 4, 64) * gate[..., None]).flatten(2)
    assert max_diff("plain", plain, gold["plain"]) < 1e-5
    assert max_diff("gated", gated, gold["gated"]) < 1e-5


def test_transformers(network: HandOccNet) -> None:
    gold = arrays("transformers")
    with torch.inference_mode():
        secondary, primary = (named(f"fit/{n}", (1, 256, 32, 32), -3, 3) for n in ("secondary", "primary"))
        x, key = to_tokens(secondary), to_tokens(primary)
        for i, layer in enumerate(network.fit.transformer.layers):
            x = layer(x, key)
            assert max_diff(f"fit_layer{i}", sub(to_map(x, 32), 16, 2), gold[f"fit_layer{i}"]) < 5e-4
        fit = network.fit(secondary, primary)
        assert max_diff("fit", sub(fit, 8, 2), gold["fit"]) < 1e-3
        assert max_diff("fit_stats", stats(fit), gold["fit_stats"]) < 1e-3
        tokens = to_tokens(named("set/feats", (1, 256, 32, 32), -3, 3))
        first = network.set.layers[0](tokens, tokens)
        assert max_diff("set_layer0", sub(to_map(first, 32), 16, 2), gold["set_layer0"]) < 5e-4
        enhanced = to_map(network.set(tokens, tokens), 32)
        assert max_diff("set", sub(enhanced, 8, 2), gold["set"]) < 1e-4
        assert max_diff("set_stats", stats(enhanced), gold["set_stats"]) < 1e-4


def test_hourglass_heatmaps_and_encoder(network: HandOccNet) -> None:
    gold = arrays("hand_head")
    head = network.head
    with torch.inference_mode():
        x = named("head/feats", (2, 256, 32, 32), -1.5, 1.5)
        hourglass = head.hourglass(x)
        heatmaps, joints, encoding = head(x)
        latents = head.score(encoding)
        vector = network.encoder(heatmaps, encoding)
        alone = network.encoder(
            named("encoder/heatmap_logits", (2, 21, 1024), -6, 6).softmax(-1).view(2, 21, 32, 32),
            named("encoder/encoding", (2, 256, 32, 32), -2, 2),
        )
    assert max_diff("hourglass", sub(hourglass), gold["hourglass"]) < 5e-4
    assert max_diff("latents", latents[:, :, ::4, ::4], gold["latents"]) < 5e-4
    assert max_diff("heatmaps", heatmaps[:, :, ::2, ::2], gold["heatmaps"]) < 2e-5
    assert max_diff("sums", heatmaps.sum((2, 3)), gold["heatmap_sum_check"]) < 1e-5
    assert max_diff("encoding", sub(encoding), gold["encoding"]) < 5e-4
    assert max_diff("encoding_stats", stats(encoding), gold["encoding_stats"]) < 5e-4
    assert max_diff("joints_img", joints, gold["joints_img"]) < 2e-5
    assert max_diff("encoder_from_head", vector, gold["encoder_from_head"]) < 5e-4
    assert max_diff("encoder_alone", alone, gold["encoder_alone"]) < 5e-4


def test_rotations() -> None:
    gold = arrays("rotations")
    rotmats = rot6d_to_rotmat(torch.from_numpy(gold["r6"]))
    assert max_diff("r6_to_mat", rotmats, gold["r6_to_mat"]) < 1e-5
    from_aa = rotvec_to_rotmat(torch.from_numpy(gold["aa"]))
    assert max_diff("aa_to_mat", from_aa, gold["aa_to_mat"]) < 1e-5
    for name, source in (("r6_to_aa", rotmats), ("aa_to_mat_to_aa", from_aa)):
        found, expected = rotmat_to_rotvec(source), torch.from_numpy(gold[name])
        turn = expected.norm(dim=-1) > np.pi - 1e-3  # the axis may point either way there
        assert int(turn.sum()) >= 1
        assert max_diff(name, found[~turn], expected[~turn]) < 1e-5
        assert max_diff(name, rotvec_to_rotmat(found[turn]), rotvec_to_rotmat(expected[turn])) < 1e-5


def test_mano_layer() -> None:
    gold = arrays("mano_layer")
    out = Hand(golden_hand())(torch.from_numpy(gold["pose"]), torch.from_numpy(gold["betas"]))
    assert max_diff("verts_mm", out["verts_mm"], gold["verts_mm"]) < 1e-3
    assert max_diff("joints_mm", out["joints_mm"], gold["joints_mm"]) < 1e-3
    transforms = out["transforms"].clone()
    transforms[:, :, :3, 3] /= 1000
    assert max_diff("transforms", transforms, gold["transforms"]) < 1e-5
    rows = np.concatenate((golden_hand().J_regressor, np.eye(778)[list(TIPS["ho3d"])]))[list(ORDERS["thumb_first"])]
    assert max_diff("regressor of the other tips", rows[:, ::8], gold["joint_regressor"]) < 1e-6


def test_hand_head(network: HandOccNet) -> None:
    gold = arrays("mano_head")
    with torch.inference_mode():
        pred = network.hand_head(named("mano_head/features", (3, 1024), -2, 2))
        pose, betas = named("mano_head/gt_pose", (3, 48), -0.9, 0.9), named("mano_head/gt_shape", (3, 10), -1.5, 1.5)
        target = network.hand.targets(pose, betas)
    for kind, out in (("pred", pred), ("gt", target)):
        assert max_diff(f"{kind} verts", out["verts_mm"][:, ::4] / 1000, gold[f"{kind}_verts3d"]) < 1e-6
        assert max_diff(f"{kind} joints", out["joints_mm"] / 1000, gold[f"{kind}_joints3d"]) < 1e-6
        assert max_diff(f"{kind} pose", out["rotmats"], gold[f"{kind}_mano_pose"]) < 2e-5
        assert max_diff(f"{kind} shape", out["betas"], gold[f"{kind}_mano_shape"]) < 2e-6
    assert max_diff("pose_aa", pred["pose"], gold["pred_mano_pose_aa"]) < 2e-5


TOLERANCES = {
    "joints_coord_img": 1e-4, "mano_pose_aa": 2e-4, "mano_shape": 1e-3, "joints_coord_cam": 2e-5,
    "mesh_coord_cam": 2e-5, "manojoints2cam": 2e-4,
}  # fmt: skip


def test_whole_network(reference: nn.Module) -> None:
    gold = arrays("model")
    with torch.inference_mode():
        out = reference(named("img", (2, 3, 256, 256), 0, 1))
    assert out["mano_pose"] is out["mano_pose_aa"]
    out["mesh_coord_cam"] = out["mesh_coord_cam"][:, ::4]
    for name, tolerance in TOLERANCES.items():
        assert max_diff(name, out[name], gold[name]) < tolerance, name


def golden_losses(network: HandOccNet) -> Tensor:
    target = network.hand.targets(named("gt_pose", (2, 48), -0.8, 0.8), named("gt_shape", (2, 10), -1.5, 1.5))
    target["joints_img"] = named("gt_joints_img", (2, 21, 2), 0.1, 0.9)
    return torch.stack(list(hand_losses(network(named("img", (2, 3, 256, 256), 0, 1)), target).values()))


def test_losses_and_gradients_of_the_whole_network(network: HandOccNet) -> None:
    gold = arrays("model")
    losses = golden_losses(network)
    assert max_diff("losses, relative", losses / torch.from_numpy(gold["losses_bn_eval"]), np.ones(5)) < 1e-4
    losses.sum().backward()
    parts = {
        "FIT": "fit", "SET": "set", "backbone": "backbone", "regressor.hand_Encoder": "encoder",
        "regressor.hand_regHead": "head", "regressor.mano_regHead": "hand_head",
    }  # fmt: skip
    for name, expected in zip(gold["gradnorm_names"], gold["gradnorm_bn_eval"], strict=True):
        grads = [p.grad for p in getattr(network, parts[str(name)]).parameters() if p.grad is not None]
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        bound = 0.1 if name in ("backbone", "FIT") else 0.01
        assert max_diff(f"gradient norm of {name}, relative", norm / expected, np.ones(())) < bound
    unused = [n for n, p in network.named_parameters() if p.grad is None]
    assert unused == ["backbone.unused_smooth.weight", "backbone.unused_smooth.bias"]
    network.zero_grad(set_to_none=True)


def test_training_mode_of_the_whole_network(network: HandOccNet) -> None:
    gold = arrays("model")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        with torch.no_grad():
            losses = golden_losses(network.train())
        norm = network.backbone.stem.norm
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert max_diff("losses, relative", losses / torch.from_numpy(gold["losses_bn_train"]), np.ones(5)) < 1e-2
        assert max_diff("running mean", norm.running_mean, gold["stem_running_mean_after_train"]) < 1e-5
        assert max_diff("running var", norm.running_var, gold["stem_running_var_after_train"]) < 1e-5
    finally:
        network.load_state_dict(before)
        network.eval()


def test_first_steps_of_adam(network: HandOccNet) -> None:
    gold = arrays("train_steps")
    state = {key: value.clone() for key, value in network.hand_head.state_dict().items()}
    features = named("mano_head/features", (3, 1024), -2, 2)
    target = network.hand.targets(
        named("mano_head/gt_pose", (3, 48), -0.9, 0.9), named("mano_head/gt_shape", (3, 10), -1.5, 1.5)
    )
    target["joints_img"] = torch.zeros(3, 21, 2)
    optimizer = torch.optim.Adam(network.hand_head.parameters(), lr=1e-4)
    history = []
    for step in range(6):
        pred = {**network.hand_head(features.clone()), "joints_img": target["joints_img"]}
        losses = torch.stack(list(hand_losses(pred, target).values())[:4])
        history.append(losses.detach())
        optimizer.zero_grad()
        losses.sum().backward()
        if step == 0:
            norms = torch.stack([p.grad.norm() for p in network.hand_head.parameters() if p.grad is not None])
            relative = norms / torch.from_numpy(gold["first_grad_norms"])
            assert max_diff("first gradient norms, relative", relative, np.ones(8)) < 1e-3
        optimizer.step()
    relative = torch.stack(history) / torch.from_numpy(gold["losses"])
    network.hand_head.load_state_dict(state)
    network.zero_grad(set_to_none=True)
    assert max_diff("losses, relative", relative, np.ones((6, 4))) < 1e-3


# --- laws -------------------------------------------------------------------------------------------------------------


def test_one_fused_convolution_is_smoothing_and_averaging() -> None:
    torch.manual_seed(0)
    backbone = Backbone(2, (1, 1, 1, 1), 6).double()
    x = torch.randn(2, 6, 16, 16, dtype=torch.float64)
    fused = F.conv2d(x, backbone.pooling_kernel(), backbone.smooth.bias, stride=2, padding=1)
    assert max_diff("fused", fused, F.avg_pool2d(backbone.smooth(x), 2)) < 1e-13


def test_training_and_evaluation_compute_the_same_map() -> None:
    network = tiny()
    image = torch.rand(2, 3, 64, 64)
    expected = network.backbone(image)[0]
    for module in network.backbone.modules():
        module.training = module is network.backbone  # the fused convolution, but the norms as in evaluation
    assert max_diff("map", network.backbone(image)[0], expected) < 1e-5


def test_the_gate_is_the_sum_over_a_sigmoid_map() -> None:
    torch.manual_seed(1)
    layer = AttentionLayer(16, 9, 2, gated=True).double()
    query, key = torch.randn(2, 3, 9, 16, dtype=torch.float64)
    q2, k2 = (f(x).reshape(3, 9, 2, 8).transpose(1, 2) for f, x in ((layer.gate_query, query), (layer.gate_key, key)))
    expected = torch.sigmoid((q2 @ k2.transpose(2, 3) / 8**0.5).sum(-1)).transpose(1, 2)
    assert max_diff("gate", layer.gate(query, key), expected) < 1e-5  # the layer computes it in float32


@pytest.mark.parametrize("gated", [True, False])
def test_keys_and_values_stay_the_input(gated: bool) -> None:
    torch.manual_seed(2)
    layers = Transformer(8, 4, 2, gated=gated)
    query, key = torch.randn(2, 1, 4, 8)
    assert torch.equal(layers(query, key), layers.layers[1](layers.layers[0](query, key), key))


def test_fit_does_not_add_its_query_back_and_set_does() -> None:
    for gated in (True, False):
        layer = AttentionLayer(8, 4, 2, gated=gated)
        for linear in (layer.value, layer.fc1, layer.fc2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        query = torch.randn(1, 4, 8)
        assert torch.equal(layer(query, torch.randn(1, 4, 8)), torch.zeros(1, 4, 8) if gated else query)


def test_value_has_no_embedding_and_key_has() -> None:
    torch.manual_seed(3)
    layer = AttentionLayer(8, 4, 2, gated=False)
    query, key = torch.randn(2, 1, 4, 8)
    q, k, v = layer.query(query + layer.query_embedding), layer.key(key + layer.key_embedding), layer.value(key)
    x = query + attend(q, k, v, 2)
    assert torch.allclose(layer(query, key), x + layer.fc2(F.gelu(layer.fc1(layer.norm(x)))), atol=1e-6)


def test_tokens_run_row_by_row() -> None:
    x = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    assert torch.equal(to_tokens(x)[0, 4 * 1 + 2], x[0, :, 1, 2])
    assert torch.equal(to_map(to_tokens(x), 4), x)


def test_soft_argmax_gives_x_first_and_the_middle_of_a_cell() -> None:
    head = tiny().head
    with torch.no_grad():
        latents = torch.zeros(1, 21, 8, 8)
        latents[:, :, 2, 5] = 100.0
        head.score.forward = lambda _: latents  # type: ignore[method-assign,assignment]
        heatmaps, joints, _ = head(torch.zeros(1, 16, 8, 8))
    assert max_diff("joint", joints[0, 0], torch.tensor([5.5 / 8, 2.5 / 8])) < 1e-6
    assert float(heatmaps[0, 0, 2, 5]) == pytest.approx(1.0)


def test_sharpness_multiplies_before_the_softmax() -> None:
    head = tiny().head
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        _, _, encoding = head(x)
        head.sharpness[3] = 2.5
        heatmaps, _, _ = head(x)
        expected = (2.5 * head.score(encoding)[:, 3].flatten(1)).softmax(-1)
    assert max_diff("heat map", heatmaps[:, 3].flatten(1), expected) < 1e-6


def test_rotation_round_trip_and_its_gradient_everywhere() -> None:
    torch.manual_seed(4)
    axis = F.normalize(torch.randn(500, 3, dtype=torch.float64), dim=-1)
    angle = torch.cat(
        (torch.rand(490) * 3.1, torch.tensor([0.0, 0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 3.14, 3.141, 1e-3]))
    )
    rotvec = (axis * angle[:, None].double()).requires_grad_()
    found = rotmat_to_rotvec(rotvec_to_rotmat(rotvec))
    assert max_diff("round trip", found, rotvec) < 1e-6
    (gradient,) = torch.autograd.grad(found.sum(), rotvec)
    assert max_diff("gradient", gradient[:497], torch.ones(497, 3)) < 1e-5  # the round trip is the identity
    assert bool(torch.isfinite(gradient).all())


def test_identity_rotation_has_a_finite_gradient_in_float32() -> None:
    six = torch.tensor([[1.0, 0, 0, 0, 1, 0]], requires_grad=True)
    rotvec = rotmat_to_rotvec(rot6d_to_rotmat(six))
    assert torch.equal(rotvec, torch.zeros(1, 3))
    rotvec.sum().backward()
    assert six.grad is not None
    assert bool(torch.isfinite(six.grad).all())
    assert float(six.grad.abs().sum()) > 0


def test_degenerate_six_numbers_give_finite_values() -> None:
    rotmats = rot6d_to_rotmat(torch.tensor([[0.0] * 6, [1, 0, 0, 1, 0, 0]]))
    assert bool(torch.isfinite(rotmat_to_rotvec(rotmats)).all())
    assert torch.equal(rotmat_to_rotvec(torch.full((1, 3, 3), torch.nan)), torch.zeros(1, 3))


def test_hand_is_in_millimetres_uncentred_with_the_mean_pose() -> None:
    model = load_mano("standin")
    hand = Hand(model)
    out = hand(torch.zeros(1, 48), torch.zeros(1, 10))
    wrist = torch.tensor(model.joints[0] * 1000, dtype=torch.float32)
    assert torch.allclose(out["joints_mm"][0, 0], wrist, atol=1e-3)
    flat = torch.cat((torch.zeros(1, 3), -torch.tensor(model.hands_mean, dtype=torch.float32)[None]), 1)
    rest = torch.tensor(model.v_template * 1000, dtype=torch.float32)
    assert torch.allclose(hand(flat, torch.zeros(1, 10))["verts_mm"][0], rest, atol=1e-3)
    assert (out["verts_mm"][0] - rest).abs().max() > 1
    tips = out["joints_mm"][0, [4, 8, 12, 16, 20]]
    assert torch.equal(tips, out["verts_mm"][0, list(TIPS["manopth"])])
    other = Hand(model, tips="ho3d")(torch.zeros(1, 48), torch.zeros(1, 10))
    assert torch.equal(other["joints_mm"][0, [4, 8, 12, 16, 20]], out["verts_mm"][0, list(TIPS["ho3d"])])


def test_transforms_carry_the_rest_joints_to_the_posed_ones() -> None:
    torch.manual_seed(5)
    hand = Hand(load_mano("standin"))
    pose = 0.5 * torch.randn(2, 48)
    out = hand(pose, torch.randn(2, 10))
    transforms = out["transforms"]
    assert torch.allclose(transforms[:, :, :3, 3], out["joints_mm"][:, hand.chain], atol=1e-3)
    assert torch.allclose(transforms[:, 0, :3, :3], rotvec_to_rotmat(pose[:, :3]), atol=1e-6)
    assert torch.equal(transforms[:, :, 3], torch.tensor([0.0, 0, 0, 1]).expand(2, 16, 4))


# --- the whole --------------------------------------------------------------------------------------------------------


def test_batch_of_one_equals_one_of_a_batch_and_layouts_agree() -> None:
    network = tiny()
    image = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        whole, one = network(image), network(image[1:2])
        other = network(image.contiguous(memory_format=torch.channels_last))
    for key in ("joints_mm", "verts_mm", "joints_img", "pose"):
        assert max_diff(key, one[key], whole[key][1:2]) < 2e-3
        assert max_diff(key, other[key], whole[key]) < 2e-3


def test_outputs_have_the_documented_shapes() -> None:
    with torch.inference_mode():
        out = tiny()(torch.rand(2, 3, 64, 64))
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "joints_mm": (2, 21, 3), "verts_mm": (2, 778, 3), "transforms": (2, 16, 4, 4), "pose": (2, 48),
        "rotmats": (2, 16, 3, 3), "betas": (2, 10), "joints_img": (2, 21, 2), "heatmaps": (2, 21, 8, 8),
        "gate": (2, 1, 8, 8),
    }  # fmt: skip


def test_autocast_keeps_heatmaps_and_hand_in_float32() -> None:
    network = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.rand(2, 3, 64, 64))
    assert {out[k].dtype for k in ("joints_mm", "verts_mm", "pose", "joints_img", "heatmaps")} == {torch.float32}
    assert out["gate"].dtype == torch.bfloat16  # so the trunk did run in half precision
    torch.stack([v.float().square().mean() for v in out.values()]).sum().backward()


def test_fresh_weights_are_the_originals() -> None:
    torch.manual_seed(0)
    network = HandOccNet(load_mano("standin"), image_size=64, blocks=[1, 1, 1, 1], channels=64, hidden=[512, 512])
    state = network.state_dict()
    for name, std in {
        "fit.merge1.weight": 0.001, "fit.transformer.layers.0.query.weight": 0.001, "set.layers.1.value.weight": 0.001,
        "fit.transformer.layers.1.gate_key.weight": 0.001, "set.layers.0.fc1.weight": 0.01,
        "hand_head.base.0.weight": 0.01, "hand_head.pose.weight": 0.01, "head.score.weight": 0.001,
        "encoder.units.0.expand.weight": 0.001, "set.layers.0.key_embedding": 1.0,
    }.items():  # fmt: skip
        assert float(state[name].std()) == pytest.approx(std, rel=0.1), name
    assert float(state["fit.merge1.bias"].abs().sum()) == 0
    assert torch.equal(state["head.sharpness"], torch.ones(21, 1))
    assert network.backbone.gate.norm.momentum == 0.01
    assert network.backbone.stem.norm.momentum == 0.1


def test_mano_never_enters_the_state_dict() -> None:
    names = tiny().state_dict()
    assert not [n for n in names if ".hand." in n or "layer.v_template" in n or n.endswith("grid")]


def test_the_unused_convolution_is_saved_but_never_run_or_trained() -> None:
    network = tiny()
    assert "backbone.unused_smooth.weight" in network.state_dict()
    network.backbone.unused_smooth.forward = None  # type: ignore[method-assign,assignment]
    network(torch.rand(1, 3, 64, 64))
    assert not network.backbone.unused_smooth.weight.requires_grad


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 96}, "image_size must be a power of two of at least 64, got 96"),
        ({"image_size": 32}, "image_size must be a power of two of at least 64, got 32"),
        ({"heads": 3}, "channels must be even and a multiple of heads, got 16 and 3"),
        ({"blocks": [1, 1, 1]}, "expected four numbers of blocks"),
        ({"hidden": [8]}, "two hidden widths"),
        ({"stem": 0}, "a stem of at least 1"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HandOccNet(load_mano("standin"), **{**TINY, **sizes})


def test_left_hand_model_is_refused() -> None:
    with pytest.raises(DataError, match="needs a right hand, got the left one of standin"):
        HandOccNet(mirror_model(load_mano("standin")), **TINY)


@pytest.mark.parametrize(
    "image", [torch.rand(1, 3, 32, 32), torch.rand(3, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
)
def test_images_of_another_shape_or_type(image: Tensor) -> None:
    with pytest.raises(DataError, match=r"image must be floating point of shape \(B, 3, 64, 64\), got"):
        tiny()(image)


def test_an_overfit_batch_learns() -> None:
    torch.manual_seed(6)
    network = HandOccNet(load_mano("standin"), **TINY).train()
    image = torch.rand(2, 3, 64, 64)
    target = network.hand.targets(0.3 * torch.randn(2, 48), torch.randn(2, 10))
    target["joints_img"] = 0.2 + 0.6 * torch.rand(2, 21, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    totals = []
    for _ in range(60):
        loss = torch.stack(list(hand_losses(network(image), target).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    print(f"loss {totals[0]:.3g} -> {totals[-1]:.3g}")
    assert totals[-1] < 0.3 * totals[0]
