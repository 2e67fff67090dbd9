"""The encoder against the original's numbers, and what it must do whatever the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hand3d_wild.decoder import OFFSET
from hand3d_wild.model import INITS, WildNet, folded, initialise
from shared.errors import DataError
from shared.mano import load_mano, mirror_model
from tests.golden.fill import uniform
from tests.hand3d_wild.golden_files import TINY, arrays, golden_hand, golden_network, golden_state, max_diff

FORMS = {"rgb": ("rgb", 3), "stack": ("heatmaps", 24)}
GRADIENTS = {
    "fc_weight": ("fc.weight", ...),
    "fc_bias": ("fc.bias", ...),
    "layer1_0_conv1_0_64_8": ("layer1.0.conv1.weight", np.s_[::8]),
    "layer4_2_conv2_sub": ("layer4.2.conv2.weight", np.s_[::64, ::64]),
    "bn1_weight": ("bn1.weight", ...),
    "layer3_0_downsample_0_sub": ("layer3.0.downsample.0.weight", np.s_[::16, ::16]),
}


def image(kind: str) -> torch.Tensor:
    gold = arrays("resnet34_mano")
    name = str(gold["input_name_rgb" if kind == "rgb" else "input_name_stack"])
    return torch.from_numpy(uniform(name, (2, FORMS[kind][1], 256, 256)))


def test_keys_and_parameters() -> None:
    network = WildNet(golden_hand())
    assert list(network.state_dict()) == list(golden_state())
    assert sum(p.numel() for p in network.parameters()) == 21_371_222


@pytest.mark.parametrize("kind", FORMS)
def test_golden_float32(kind: str) -> None:
    gold = arrays("resnet34_mano")
    network, x = golden_network(FORMS[kind][0]).eval(), image(kind)
    with torch.inference_mode():
        features = network.features(x)
        pooled = features[..., : network.pool, : network.pool].mean((2, 3))
        x2d, x3d, params = network(x).flat()
    assert max_diff("layer4", features[:, ::32], gold[f"{kind}/layer4_sub"]) < 1e-3
    assert max_diff("pooled", pooled, gold[f"{kind}/pooled"]) < 1e-3
    assert max_diff("params", params, gold[f"{kind}/params"]) < 1e-3
    assert max_diff("x2d", x2d, gold[f"{kind}/x2d"]) < 1e-2
    assert max_diff("x3d", x3d, gold[f"{kind}/x3d"]) < 1e-5
    network.train()
    with torch.no_grad():
        train_params = network.encode(x)
    assert max_diff("train_params", train_params, gold[f"{kind}/train_params"]) < 5e-3
    for name in ("running_mean", "running_var"):
        assert max_diff(name, getattr(network.bn1, name), gold[f"{kind}/bn1_{name}"]) < 1e-5


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", FORMS)
def test_golden_gradients_float64(kind: str, mode: str) -> None:
    gold = arrays("resnet34_mano")
    network = golden_network(FORMS[kind][0]).double().train(mode == "train")
    params = network.encode(image(kind).double())
    (params * torch.from_numpy(gold["grad_weight"]).double()).sum().backward()
    group = f"{kind}/f64_{mode}"
    assert max_diff("params", params, gold[f"{group}/params"]) < 1e-9
    stem = network.conv1 if kind == "rgb" else network.conv11
    assert stem.weight.grad is not None
    found = {"conv_first_0_3": stem.weight.grad[:, :3]}
    weights = dict(network.named_parameters())
    for name, (key, part) in GRADIENTS.items():
        grad = weights[key].grad
        assert grad is not None
        found[name] = grad[part]
    for name, grad in found.items():
        expected = gold[f"{group}/grad_{name}"]
        assert max_diff(f"d {name}", grad, expected) < 1e-5 * np.abs(expected).max()


def test_pool_leaves_last_row_and_column_out() -> None:
    for size, full, window in ((256, False, 7), (256, True, 8), (224, False, 7), (128, False, 4), (64, True, 2)):
        assert WildNet(golden_hand(), **{**TINY, "image_size": size}, full_pool=full).pool == window
    network = WildNet(golden_hand(), **{**TINY, "image_size": 256}).eval()
    features = torch.rand(1, 128, 8, 8)
    network.features = lambda _: features  # type: ignore[method-assign, assignment]
    before = network.encode(torch.empty(0))
    features[:, :, 7] += 100
    features[:, :, :, 7] -= 50
    assert torch.equal(network.encode(torch.empty(0)), before)
    features[:, :, 6, 6] += 100
    assert not torch.equal(network.encode(torch.empty(0)), before)


def test_zero_features_give_the_offset() -> None:
    network = WildNet(golden_hand(), **TINY).eval()
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    out = network(torch.rand(3, 3, 64, 64))
    assert torch.equal(out.params.vector, torch.tensor(OFFSET).expand(3, 22))
    assert "offset" not in network.state_dict()


def test_the_camera_gain_enlarges_the_cameras_steps_alone() -> None:
    torch.manual_seed(0)
    network = WildNet(golden_hand(), **TINY).eval()
    steep = WildNet(golden_hand(), **TINY, camera_gain=30.0).eval()
    steep.load_state_dict(network.state_dict())
    x = torch.rand(3, 3, 64, 64)
    plain, ours = (net.encode(x) - torch.tensor(OFFSET) for net in (network, steep))
    assert torch.equal(ours[:, 3:], plain[:, 3:])
    assert max_diff("camera", ours[:, :3] / 30, plain[:, :3].detach().numpy()) < 1e-4
    assert steep.sizes["camera_gain"] == 30


@pytest.mark.parametrize("form", ["rgb", "heatmaps"])
def test_only_the_stem_in_use_is_trained(form: str) -> None:
    network = WildNet(golden_hand(), **TINY, form=form)  # type: ignore[arg-type]
    x = torch.rand(2, 3 if form == "rgb" else 24, 64, 64)
    network(x).joints_2d.sum().backward()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name for name, p in network.named_parameters() if p.grad is not None} == trained
    assert ("conv1.weight" in trained) == (form == "rgb")
    assert ("conv11.weight" in trained) == (form != "rgb")


def test_one_sample_is_one_of_a_batch_in_any_memory_layout() -> None:
    network = WildNet(golden_hand(), **TINY).eval()
    x = torch.rand(3, 3, 64, 64)
    whole = network(x)
    for layout in (torch.contiguous_format, torch.channels_last):
        one = network(x[1:2].contiguous(memory_format=layout))
        assert max_diff("params", one.params.vector, whole.params.vector[1:2].detach().numpy()) < 1e-3


@pytest.mark.parametrize("form", ["rgb", "heatmaps"])
def test_folded_norms_change_nothing(form: str) -> None:
    torch.manual_seed(0)
    network = WildNet(golden_hand(), **TINY, form=form)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    x = torch.rand(2, 3 if form == "rgb" else 24, 64, 64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    quick = folded(network.train())
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in quick.modules()) == 0
    with torch.inference_mode():
        assert max_diff("params", quick.encode(x), network.eval().encode(x).numpy()) < 1e-3


def test_autocast_leaves_the_last_layer_and_the_decoder_in_float32() -> None:
    network = WildNet(golden_hand(), **TINY).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        out = network(x)
        pooled = network.features(x).float().mean((2, 3))
    assert torch.equal(out.params.vector, network.offset + network.fc(pooled))
    assert out.verts_m.dtype == torch.float32
    exact = network.decoder(out.params.vector)
    assert torch.equal(exact.verts_2d, out.verts_2d)


def test_initialisations() -> None:
    torch.manual_seed(0)
    network = WildNet(golden_hand(), blocks=[1, 1, 1, 1])
    measured = {}
    for name in INITS:
        network.bn1.weight.data.fill_(3)
        network.bn1.running_mean.fill_(3)  # type: ignore[union-attr]
        initialise(network, name)
        assert float(network.bn1.weight.detach().std()) == 0
        assert float(network.bn1.weight.detach()[0]) == 1
        assert float(network.bn1.running_mean[0]) == 0  # type: ignore[index]
        assert bool(network.fc.bias.any()) == (name == "default")
        weights = (network.conv1.weight, network.layer4[0].conv1.weight, network.fc.weight)  # type: ignore[index, union-attr]
        measured[name] = [float(weight.detach().std()) for weight in weights]
    assert measured["kaiming"] == pytest.approx([0.117, 0.0294, 0.063], rel=0.05)
    assert measured["gaussian"] == pytest.approx([0.02] * 3, rel=0.05)
    assert measured["xavier"] == pytest.approx(
        [(4 / (49 * 67)) ** 0.5, (4 / (9 * 768)) ** 0.5, (4 / 534) ** 0.5], rel=0.05
    )
    assert measured["orthogonal"] == pytest.approx([(2 / 147) ** 0.5, (2 / 2304) ** 0.5, (2 / 512) ** 0.5], rel=0.05)
    assert measured["default"][:2] == pytest.approx([(2 / (49 * 64)) ** 0.5, (2 / (9 * 512)) ** 0.5], rel=0.05)
    with pytest.raises(DataError, match=r"no initialisation 'kaimng'.*choose among kaiming, gaussian"):
        initialise(network, "kaimng")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "depth"}, "form must be one of rgb, heatmaps"),
        ({"image_size": 250}, "multiple of 32, got 250"),
        ({"width": 20}, "width must be a multiple of 16"),
        ({"blocks": [1, 1, 1]}, "four numbers"),
        ({"blocks": [1, 1, 0, 1]}, "four numbers"),
        ({"camera_gain": 0.0}, "camera_gain must be positive, got 0.0"),
    ],
)
def test_bad_sizes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        WildNet(golden_hand(), **{**TINY, **changes})


@pytest.mark.parametrize(
    ("form", "shape", "dtype"),
    [
        ("rgb", (2, 24, 64, 64), torch.float32),
        ("heatmaps", (2, 3, 64, 64), torch.float32),
        ("rgb", (2, 3, 128, 128), torch.float32),
        ("rgb", (3, 64, 64), torch.float32),
        ("rgb", (2, 3, 64, 64), torch.uint8),
    ],
)
def test_bad_images(form: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    network = WildNet(golden_hand(), **TINY, form=form)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"for the {form} form, got {dtype}"):
        network(torch.zeros(shape, dtype=dtype))


def test_left_hand_is_refused() -> None:
    with pytest.raises(DataError, match=r"needs a right hand, got the left one.*mirrored pictures"):
        WildNet(mirror_model(load_mano("standin")), **TINY)
