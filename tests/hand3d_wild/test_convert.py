"""Checkpoints: the original's three forms, our own, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hand3d_wild.convert import (
    checkpoint_of,
    load_checkpoint,
    load_reference,
    main,
    read_reference,
    save_checkpoint,
)
from hand3d_wild.model import WildNet
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano
from tests.golden.fill import uniform
from tests.hand3d_wild.golden_files import TINY, arrays, golden_hand, golden_state, max_diff

State = dict[str, Tensor]


def plain(state: State) -> State:
    return state


def data_parallel(state: State) -> State:
    return {f"module.{key}": value for key, value in state.items()}


def old(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def official(state: State) -> State:
    return data_parallel(old(state))


@pytest.mark.parametrize(
    ("form", "matched", "prefixed", "counters"),
    [(plain, 219, 0, 0), (data_parallel, 219, 219, 0), (old, 183, 0, 36), (official, 183, 183, 36)],
)
def test_three_forms(
    tmp_path: Path, form: Callable[[State], State], matched: int, prefixed: int, counters: int
) -> None:
    path = tmp_path / "model-0.pth"
    torch.save(OrderedDict(form(golden_state())), path, _use_new_zipfile_serialization=form is plain)
    network, match = read_reference(path, mano=golden_hand())
    assert (match.matched, match.prefixed, match.counters) == (matched, prefixed, counters)
    text = str(match)
    assert text.startswith(f"{matched} entries matched")
    assert ("module." in text) == bool(prefixed)
    assert (f"{counters} batch counters" in text) == bool(counters)
    assert not network.training
    expected = golden_state()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_reference_outputs_are_golden(tmp_path: Path) -> None:
    gold = arrays("resnet34_mano")
    path = tmp_path / "model-1.pth"
    torch.save(official(golden_state()), path)
    model = load_reference(path, mano=golden_hand(), form="heatmaps")
    with torch.inference_mode():
        x2d, x3d, params = model(torch.from_numpy(uniform(str(gold["input_name_stack"]), (2, 24, 256, 256))))
    assert max_diff("x2d", x2d, gold["stack/x2d"]) < 1e-2
    assert max_diff("x3d", x3d, gold["stack/x3d"]) < 1e-5
    assert max_diff("params", params, gold["stack/params"]) < 1e-3
    assert model.match.matched == 183  # type: ignore[union-attr]


def _without(key: str) -> Callable[[State], Any]:
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("conv11.weight"), "missing conv11.weight"),
        (_without("layer1.0.bn1.running_var"), "missing layer1.0.bn1.running_var"),
        (lambda s: s | {"head.weight": torch.zeros(2)}, "unexpected head.weight"),
        (lambda s: s | {"fc.weight": torch.zeros(21, 512)}, r"fc.weight has shape \(21, 512\), expected \(22, 512\)"),
        (lambda s: s | {"fc.bias": torch.full((22,), torch.nan)}, "fc.bias is not finite"),
        (lambda s: s | {"module.fc.bias": s["fc.bias"]}, "fc.bias both with and without module."),
        (lambda s: s | {"epoch": 3}, "entries that are no tensors: epoch"),
        (lambda s: {"epoch": 3}, "not a state dict"),
        (lambda s: [1, 2], "not a state dict"),
        (lambda s: {"format": "handpose/hand3d_wild"}, "not weights of the original.*load_checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, spoil: Callable[[State], Any], message: str) -> None:
    path = tmp_path / "model.pth"
    torch.save(spoil(golden_state()), path)
    with pytest.raises(DataError, match=message) as caught:
        read_reference(path, mano="standin")
    assert str(path) in str(caught.value)


def test_wrong_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        read_reference(path, mano="standin")
    path.write_bytes(b"<html>login</html>")
    with pytest.raises(DataError, match="web page"):
        read_reference(path, mano="standin")
    torch.save(golden_state(), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match="truncated"):
        read_reference(path, mano="standin")


def test_our_format_there_and_back(tmp_path: Path) -> None:
    network = WildNet(load_mano("standin"), **TINY, form="heatmaps").eval()
    network.bn1.running_mean.normal_()  # type: ignore[union-attr]
    path = tmp_path / "net.pt"
    save_checkpoint(path, checkpoint_of(network, epoch=3))
    loaded = load_checkpoint(path)
    assert loaded.extra == {"epoch": 3}
    again = loaded.build("standin")
    assert again.sizes == network.sizes
    assert not again.training
    x = torch.rand(1, 24, 64, 64)
    assert torch.equal(again(x).verts_2d, network(x).verts_2d)
    assert not any(v.shape and 778 in v.shape for v in loaded.state_dict.values())  # no licensed array
    assert loaded.build("standin", form="rgb").form == "rgb"
    with pytest.warns(UserWarning, match="trained with a MANO file of sha256"):
        loaded.build(golden_hand())
    torch.save({"handpose": loaded.as_dict(), "step": 7}, path)  # as a run's checkpoint has it
    assert load_checkpoint(path).model == loaded.model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"width": 32}}, "does not fit a network of the sizes it names"),
        ({"model": {"depth": 3}}, "malformed entry"),
        ({"state_dict": 5}, "malformed entry"),
        ({"format": "handpose/handoccnet"}, "expected 'handpose/hand3d_wild'"),
        ({"version": 9}, "format version 9"),
    ],
)
def test_bad_own_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = checkpoint_of(WildNet(load_mano("standin"), **TINY)).as_dict()
    torch.save(content | change, tmp_path / "net.pt")
    with pytest.raises(DataError, match=message):
        load_checkpoint(tmp_path / "net.pt")


def test_original_weights_are_no_own_checkpoint(tmp_path: Path) -> None:
    torch.save(golden_state(), tmp_path / "net.pt")
    with pytest.raises(DataError, match=r"python -m hand3d_wild\.convert"):
        load_checkpoint(tmp_path / "net.pt")


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "model-0.pth", tmp_path / "official.pt"
    torch.save(official(golden_state()), source)
    assert main(["--input", str(source), "--output", str(out), "--form", "heatmaps"]) == 0
    printed = capsys.readouterr().out
    assert "183 entries matched" in printed
    assert "for the heatmaps form" in printed
    checkpoint = load_checkpoint(out)
    assert checkpoint.mano_sha256 == ""
    assert checkpoint.model["form"] == "heatmaps"
    assert np.array_equal(checkpoint.state_dict["fc.bias"], golden_state()["fc.bias"])
