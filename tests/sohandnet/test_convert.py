"""Checkpoints: our own format and the original's three files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import DataError, MissingFileError
from sohandnet.convert import (
    checkpoint_of,
    load_checkpoint,
    load_reference,
    main,
    reference_key_to_ours,
    save_checkpoint,
)
from sohandnet.model import SoHandNet
from tests.golden.fill import fill_state_dict
from tests.sohandnet.common import batch_of, golden, keys, reference_file

NAMES = ("encoder", "decoder", "estimator_v21", "estimator_v3", "estimator_v4", "estimator_v5", "estimator_v6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


def original(name: str) -> dict[str, Any]:
    return {key: torch.from_numpy(value) for key, value in fill_state_dict(keys(name)).items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_original_entry_has_a_place_or_is_known_to_be_unused(name: str) -> None:
    ours = [reference_key_to_ours(key) for key in keys(name)]
    unknown = [key for key, value in zip(keys(name), ours, strict=True) if value is None]
    assert len([key for key in unknown if key.startswith("transformer.")]) == (41 if name == "encoder" else 0)
    assert not [key for key in unknown if not key.startswith("transformer.")]
    named = [key for key in ours if key is not None]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize(("name", "variant"), list(zip(NAMES[2:], ("v2.1", "v3", "v4", "v5", "v6"), strict=True)))
def test_the_variant_is_recognised(folder: Path, name: str, variant: str) -> None:
    network = load_reference(reference_file(name, folder))
    assert network.parts == ("estimator",)
    assert network.sizes["estimator"] == variant
    assert not network.training


def test_three_files_in_any_order(folder: Path) -> None:
    paths = [reference_file(name, folder) for name in ("estimator_v3", "encoder", "decoder")]
    network = load_reference(paths, node_centre="avg")
    assert network.parts == ("encoder", "decoder", "estimator")
    assert network.encoder.node_centre == "avg"
    weight = original("encoder")["knnlayer.layers.0.conv.weight"]
    assert torch.equal(network.encoder.knn[0].linear.weight, weight[:, :, 0, 0])


def test_counters_transformer_and_prefix_are_optional(tmp_path: Path, folder: Path) -> None:
    state = {
        f"module.{key}": value
        for key, value in original("encoder").items()
        if not key.startswith("transformer.") and not key.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "x.pth")
    batch = batch_of(golden("encoder.npz"))
    networks = [load_reference(tmp_path / "x.pth"), load_reference(reference_file("encoder", folder))]
    with torch.inference_mode():
        assert torch.equal(*(network.encode(batch).feature for network in networks))


REFUSED: dict[str, tuple[Any, str]] = {
    "missing": (lambda s: s.__delitem__("net_FC.0.bias"), "missing estimator.head.0.linear.bias"),
    "unexpected": (lambda s: s.update(stranger=torch.zeros(1)), "unexpected stranger"),
    "shape": (lambda s: s.update({"net_FC.6.bias": torch.zeros(5)}), "estimator.head.2.linear.bias has shape"),
    "not finite": (lambda s: s.update({"net_FC.6.bias": torch.full((48,), torch.nan)}), "not finite"),
    "variant": (lambda s: s.update({"pslayer1.conv.weight": torch.zeros(1024, 999, 1)}), "999 inputs; known are"),
    "nothing": (lambda s: {"a": torch.zeros(1)}, "holds none of SO-HandNet's networks"),
    "several": (lambda s: s.update(original("decoder")), "several networks"),
    "no tensors": (lambda s: {"a": 1}, "not a plain state dict"),
    "ours": (lambda s: {"format": "handpose/x"}, "not one of the original program"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_original_files_that_are_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    state = original("estimator_v21")
    state = change(state) or state
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(DataError, match=message):
        load_reference(tmp_path / "x.pth")


def test_lists_of_files_that_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint was given"):
        load_reference([])
    with pytest.raises(DataError, match="is a second estimator"):
        load_reference([reference_file("estimator_v4", folder), reference_file("estimator_v5", folder)])
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        load_reference(tmp_path / "nothing.pth")


# ------------------------------------------------------------------------------------------------- our format


def small(tmp_path: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    network = SoHandNet(width=0.1, node_centre="avg", parts=("encoder", "estimator"))
    content = {**checkpoint_of(network, intrinsics="true", stage="estimator").as_dict(), **changes}
    torch.save(content, tmp_path / "own.pt")
    return tmp_path / "own.pt"


def test_our_format_remembers_everything(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(small(tmp_path))
    assert checkpoint.parts == ["encoder", "estimator"]
    assert checkpoint.model["node_centre"] == "avg"
    assert checkpoint.intrinsics == "true"
    assert checkpoint.extra == {"stage": "estimator"}
    network = checkpoint.build()
    assert network.encoder.node_centre == "avg"
    assert not network.training
    save_checkpoint(tmp_path / "again.pt", checkpoint)
    assert load_checkpoint(tmp_path / "again.pt").model == checkpoint.model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "handpose/v2v_posenet"}, "expected 'handpose/sohandnet'"),
        ({"version": 9}, "format version 9"),
        ({"parts": ["encoder", "decoder"]}, "missing decoder"),
        ({"model": {"bogus": 1}}, "malformed entry"),
        ({"model": {"width": 0.2}}, "has shape"),
        ({"model": {"node_centre": "middle"}}, "node centre 'middle' and intrinsics 'true' are not known"),
        ({"intrinsics": "inverted"}, "node centre 'avg' and intrinsics 'inverted' are not known"),
        ({"state_dict": {}}, "missing encoder"),
    ],
)
def test_our_files_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_checkpoint(small(tmp_path, **changes))


def test_truncated_and_foreign_files(tmp_path: Path, folder: Path) -> None:
    path = small(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="truncated"):
        load_checkpoint(path)
    with pytest.raises(DataError, match=r"python -m sohandnet\.convert"):
        load_checkpoint(reference_file("encoder", folder))


def test_a_checkpoint_without_the_networks_that_are_needed(tmp_path: Path) -> None:
    path = small(tmp_path)
    checkpoint = load_checkpoint(path)
    checkpoint.need("encoder", "estimator", path=path)
    with pytest.raises(DataError, match="holds encoder and estimator, not the decoder"):
        checkpoint.need("decoder", path=path)


def test_the_program(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(reference_file(name, folder)) for name in ("encoder", "estimator_v21")]
    assert main([*files, "--output", str(tmp_path / "o.pt"), "--node-centre", "avg"]) == 0
    assert "estimator v2.1" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "o.pt")
    assert (checkpoint.intrinsics, checkpoint.model["node_centre"]) == ("reference", "avg")
    assert checkpoint.extra["sources"] == [Path(name).name for name in files]
    with pytest.raises(DataError, match="--output"):
        main(files)
