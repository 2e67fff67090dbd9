"""The ONNX file gives torch's numbers; without the packages, or where it does not, the program says so."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from handoccnet.convert import checkpoint_of, save_checkpoint
from handoccnet.export import OUTPUTS, check_onnx, export_onnx, main, need
from handoccnet.model import HandOccNet
from shared.errors import DataError
from tests.handoccnet.snapshots import tiny


@pytest.fixture(scope="module")
def network() -> HandOccNet:
    return tiny()


@pytest.fixture(scope="module")
def checkpoint(network: HandOccNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "tiny.pt"
    save_checkpoint(path, checkpoint_of(network))
    return path


def test_program_writes_and_checks_a_file(
    network: HandOccNet, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = checkpoint.with_suffix(".onnx")
    assert main(["--checkpoint", str(checkpoint), "--mano", "standin", "--onnx", str(path)]) == 0
    text = capsys.readouterr().out
    print(text)
    assert "tiny.onnx: image (batch, 3, 64, 64) in 0..1 -> joints_mm, verts_mm, pose" in text
    assert "the MANO arrays of standin are inside" in text
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert tuple(output.name for output in session.get_outputs()) == OUTPUTS
    for batch in (1, 2, 5):  # of any size, one included
        image = torch.rand(batch, 3, 64, 64)
        found = session.run(["joints_mm", "verts_mm"], {"image": image.numpy()})
        assert found[1].shape == (batch, 778, 3)
        with torch.inference_mode():
            assert torch.allclose(torch.from_numpy(found[0]), network(image)["joints_mm"], atol=0.02)
    with pytest.raises(DataError, match=r"tiny\.onnx: onnxruntime differs from torch in joints_mm by .*allowed 0\.02"):
        check_onnx(tiny(1), path)  # another network is not taken for this one


def test_without_mano_none_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hands: list[Any] = []
    monkeypatch.setattr("handoccnet.export.need", lambda package: None)
    monkeypatch.setattr("handoccnet.export.export_onnx", lambda network, path, with_mano: ("pose", "betas"))
    monkeypatch.setattr("handoccnet.export.check_onnx", lambda network, path: hands.append(network) or {})
    checkpoint = checkpoint_of(tiny())
    checkpoint.mano_sha256 = "0" * 64  # of the user's own file
    save_checkpoint(tmp_path / "mano.pt", checkpoint)
    words = ["--checkpoint", str(tmp_path / "mano.pt"), "--onnx", str(tmp_path / "a.onnx")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([*words, "--no-mano"]) == 0
    assert len(hands) == 1
    assert "arrays" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(words)
    assert "required: --mano (or --no-mano)" in capsys.readouterr().err


@pytest.mark.slow
def test_without_mano_nothing_licensed_is_inside(network: HandOccNet, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    outputs = export_onnx(network, tmp_path / "open.onnx", with_mano=False)
    assert outputs == ("pose", "betas", "joints_img", "gate")
    assert set(check_onnx(network, tmp_path / "open.onnx")) == set(outputs)
    graph = onnx.load(tmp_path / "open.onnx").graph
    assert not [tensor.name for tensor in graph.initializer if 778 in tensor.dims or 2334 in tensor.dims]


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def fake(name: str, *args: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", fake)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(
    package: str, network: HandOccNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(package, monkeypatch)
    with pytest.raises(DataError, match=f"export needs the package '{package}'.*pip install onnx onnxscript"):
        export_onnx(network, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_program_asks_for_onnxruntime_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("onnxruntime", monkeypatch)
    with pytest.raises(DataError, match="export needs the package 'onnxruntime'"):
        main(["--checkpoint", str(checkpoint), "--mano", "standin", "--onnx", str(tmp_path / "a.onnx")])
    assert not (tmp_path / "a.onnx").exists()
    assert need("json").dumps({}) == "{}"


def test_a_checkpoint_of_another_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handoccnet.export.need", lambda package: None)
    torch.save({"format": "handpose/v2v_posenet", "version": 1}, tmp_path / "v2v.pt")
    with pytest.raises(DataError, match="is a checkpoint of 'handpose/v2v_posenet'"):
        main(["--checkpoint", str(tmp_path / "v2v.pt"), "--mano", "standin", "--onnx", str(tmp_path / "a.onnx")])
