"""The fast network gives the same hands as the plain one, and keeps its hands off the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from handoccnet.backbone import ConvNorm
from handoccnet.hourglass import ResidualUnit
from handoccnet.inference import FastNetwork, choose_dtype, folded, prepare, simplify
from shared.errors import DataError
from tests.handoccnet.snapshots import arrays, golden_network, max_diff, named, tiny


def test_folding_a_norm_changes_nothing() -> None:
    torch.manual_seed(0)
    for bias, stride, kernel in ((True, 1, 1), (False, 2, 3), (False, 2, 7)):
        unit = ConvNorm(3, 5, kernel, stride=stride, bias=bias).eval().double()
        assert isinstance(unit.norm, nn.BatchNorm2d)
        for value in (unit.norm.weight.data, unit.norm.running_var):
            assert value is not None
            value.uniform_(0.5, 1.5)
        for value in (unit.norm.bias.data, unit.norm.running_mean):
            assert value is not None
            value.normal_()
        x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
        assert max_diff("folded", folded(unit)(x), unit(x)) < 1e-13


def test_exact_in_float32() -> None:
    network = tiny()
    image = torch.rand(2, 3, 64, 64)
    fast = prepare(network, precision="float32")
    with torch.inference_mode():
        expected, found = network(image), fast(image)
    assert found.keys() == expected.keys()
    for key, bound in {"joints_mm": 2e-3, "verts_mm": 2e-3, "pose": 1e-5, "joints_img": 1e-5, "gate": 1e-5}.items():
        assert max_diff(key, found[key], expected[key]) < bound


def test_exact_on_the_golden_snapshot(tmp_path: Path) -> None:
    gold = arrays("model")
    fast = prepare(golden_network(tmp_path).network, precision="float32")  # type: ignore[arg-type]
    with torch.inference_mode():
        out = fast(named("img", (2, 3, 256, 256), 0, 1))
    assert max_diff("joints_img", out["joints_img"], gold["joints_coord_img"]) < 1e-4
    assert max_diff("joints, m", out["joints_mm"] / 1000, gold["joints_coord_cam"]) < 2e-5
    assert max_diff("mesh, m", out["verts_mm"][:, ::4] / 1000, gold["mesh_coord_cam"]) < 2e-5


def test_bfloat16_runs_in_bfloat16_and_stays_close() -> None:
    network = tiny()
    image = torch.rand(2, 3, 64, 64)
    fast = prepare(network, precision="bfloat16")
    kept = {n: p.dtype for n, p in fast.network.named_parameters() if p.dtype == torch.float32}
    assert {n.split(".")[0] for n in kept} == {"hand_head", "head", "fit"}
    assert all(n.startswith(("hand_head", "head.s")) or ".gate_" in n for n in kept)
    assert next(fast.network.backbone.parameters()).dtype == torch.bfloat16
    with torch.inference_mode():
        expected, found = network(image), fast(image)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert 1e-4 < max_diff("joints_img", found["joints_img"], expected["joints_img"]) < 0.03
    assert max_diff("joints_mm", found["joints_mm"], expected["joints_mm"]) < 30


def test_nothing_unused_is_left() -> None:
    fast = simplify(tiny())
    assert not [n for n in fast.state_dict() if "smooth" in n]
    # norms before a residual unit have no convolution before them and stay; all others are folded
    units = {f"{n}.norm" for n, m in fast.named_modules() if isinstance(m, ResidualUnit)}
    assert {n for n, m in fast.named_modules() if isinstance(m, nn.BatchNorm2d)} == units
    assert not [p for p in fast.parameters() if p.requires_grad]


def test_the_trained_network_is_not_touched() -> None:
    network = tiny().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prepare(network, precision="bfloat16")
    assert network.training
    assert network.backbone.stem.conv.weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.backbone.pooled is None


def test_training_mode_and_gradients_do_not_leak_in() -> None:
    fast = prepare(tiny().train())
    assert not any(module.training for module in fast.modules())
    assert not fast(torch.rand(1, 3, 64, 64))["verts_mm"].requires_grad


def test_precision_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float16", cpu) == torch.float16
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native)
        assert choose_dtype("auto", cpu) == expected
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        assert choose_dtype("auto", torch.device("cuda")) == expected
    with pytest.raises(DataError, match="precision must be one of auto, float32, bfloat16, float16, got 'half'"):
        choose_dtype("half", cpu)  # type: ignore[arg-type]


def test_compiling_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def compiled(module: nn.Module, **_: Any) -> nn.Module:
        seen.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    prepare(tiny(), precision="float32")
    assert not seen
    fast = prepare(tiny(), precision="float32", compile_network=True)
    assert seen == [fast.network]
    assert isinstance(fast, FastNetwork)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu() -> None:
    network = tiny()
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(image)
        found = prepare(network, device="cuda", precision="float32")(image.cuda())
        half = prepare(network, device="cuda")(image.cuda())
    assert max_diff("joints_mm", found["joints_mm"].cpu(), expected["joints_mm"]) < 1.0  # TF32 may be on
    assert max_diff("joints_img", half["joints_img"].cpu(), expected["joints_img"]) < 0.03
