"""Which kernels run: the choice, the reasons, and what a user reads when there are none."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared import kernels
from shared.errors import DataError
from shared.kernels import VARIABLE, Kernels

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_selected", "auto")


class Importer:
    """Stands in for importlib.import_module: knows some modules and counts the questions."""

    def __init__(self, **modules: Any) -> None:
        self.modules = modules
        self.asked: list[str] = []

    def __call__(self, name: str) -> Any:
        self.asked.append(name)
        stem = name.rsplit(".", 1)[-1]
        if stem not in self.modules:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return self.modules[stem]


@pytest.fixture
def having(monkeypatch: pytest.MonkeyPatch) -> Any:
    """having(cuda=bool, <module>=object, ...) gives Kernels that find just these modules, and the importer."""

    def build(cuda: bool = False, **modules: Any) -> tuple[Kernels, Importer]:
        import torch

        importer = Importer(**modules)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(importlib, "import_module", importer)
        return Kernels("some.kernels", "op", abi=3), importer

    return build


def test_a_module_is_imported_at_the_first_use_and_once(having: Any) -> None:
    module = SimpleNamespace(abi=3)
    ours, importer = having(op_cpu=module)
    assert importer.asked == []
    assert ours.native("cpu") is module
    assert ours.native("cpu") is module
    assert importer.asked == ["some.kernels.op_cpu"]


def test_a_failure_is_remembered_and_told_once(having: Any, caplog: pytest.LogCaptureFixture) -> None:
    ours, importer = having()
    with caplog.at_level(logging.INFO):
        assert ours.native("cpu") is None
        assert ours.native("cpu") is None
    assert importer.asked == ["some.kernels.op_cpu"]  # cuda is not imported where there is no device
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "torch reference, slower" in record.message
    assert "op_cpu: it was not built, or cannot be loaded (No module named 'some.kernels.op_cpu')" in record.message
    assert "op_cuda: this machine has no CUDA device that torch can use" in record.message
    assert "make kernels" in record.message


def test_the_kernel_in_use_is_logged_once(having: Any, caplog: pytest.LogCaptureFixture) -> None:
    ours, _ = having(op_cpu=SimpleNamespace(abi=3))
    with caplog.at_level(logging.INFO):
        ours.native("cpu")
        ours.native("cpu")
    assert [record.message for record in caplog.records] == ["some.kernels: native cpu"]


def test_insisting_on_a_missing_kernel_gives_both_reasons(having: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = having()
    for kind in ("cpu", "cuda"):
        monkeypatch.setenv(VARIABLE, kind)
        with pytest.raises(
            DataError, match=rf"no {kind} kernels. op_cpu: it was not built.*op_cuda: .*no CUDA device.*make"
        ):
            ours.native(kind)


def test_a_stale_build_is_refused(having: Any) -> None:
    for module in (SimpleNamespace(abi=2), SimpleNamespace()):
        ours, _ = having(op_cpu=module)
        assert ours.native("cpu") is None
        assert "op_cpu: it was built from other sources (interface" in ours.reasons()


def test_a_cuda_runtime_that_does_not_work_is_refused(having: Any) -> None:
    broken = SimpleNamespace(abi=3, probe=lambda: "driver too old")
    ours, _ = having(cuda=True, op_cuda=broken)
    assert ours.native("cuda") is None
    assert "op_cuda: its CUDA runtime does not work here (driver too old)" in ours.reasons()
    working = SimpleNamespace(abi=3, probe=lambda: "")
    ours, _ = having(cuda=True, op_cuda=working)
    assert ours.native("cuda") is working


def test_types_that_no_native_function_takes_go_to_the_reference(having: Any) -> None:
    import torch

    ours, _ = having(op_cpu=(module := SimpleNamespace(abi=3)))
    assert ours.native_for(torch.ones(1), torch.bfloat16, torch.float32) is module
    assert ours.native_for(torch.ones(1), torch.bfloat16) is None


def test_reference_takes_nothing_native(having: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, importer = having(op_cpu=SimpleNamespace(abi=3))
    monkeypatch.setenv(VARIABLE, "reference")
    assert ours.native("cpu") is None
    assert importer.asked == []


def test_the_variable_goes_before_the_choice_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.selected() == "auto"
    kernels.select("reference")
    assert kernels.selected() == "reference"
    monkeypatch.setenv(VARIABLE, "cpu")
    assert kernels.selected() == "cpu"
    monkeypatch.setenv(VARIABLE, "")
    assert kernels.selected() == "reference"


def test_another_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the kernel backend is 'gpu', expected one of auto, reference, cpu, cuda"):
        kernels.select("gpu")  # type: ignore[arg-type]
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(DataError, match="HANDPOSE_KERNELS is 'fast', expected one of auto, reference, cpu, cuda"):
        kernels.selected()


def test_kernels_of_one_device_do_not_take_tensors_of_another(having: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = having(op_cpu=SimpleNamespace(abi=3))
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(
        DataError, match=r"the cuda kernels were asked for, but the tensors are on cpu.*HANDPOSE_KERNELS=auto"
    ):
        ours.native("cpu")


def test_other_devices_take_the_reference(having: Any, caplog: pytest.LogCaptureFixture) -> None:
    ours, importer = having(op_cpu=SimpleNamespace(abi=3))
    with caplog.at_level(logging.INFO):
        assert ours.native("mps") is None
    assert importer.asked == []
    assert "torch reference (no kernels for mps)" in caplog.text


def test_report_lists_every_module_of_every_method() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "shared.kernels"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert lines[0] == "backend: auto"
    names = [line.split(": ")[0] for line in lines[1:]]
    folders = sorted(path.parts[-3] for path in ROOT.glob("*/kernels/ops.py"))
    assert [name.split(".")[0] for name in names[::2]] == folders
    assert "v2v_posenet.kernels.v2v_cpu" in names
    assert "v2v_posenet.kernels.v2v_cuda" in names
    for line in lines[1:]:
        name, state = line.split(": ", 1)
        module = name.rsplit(".", 1)[-1]
        assert state.startswith(("it was not built", "this machine has no CUDA", "its CUDA")) or module in state


@pytest.mark.parametrize("source", sorted(ROOT.glob("*/kernels/*_cuda.cu")), ids=lambda path: path.stem)
def test_cuda_modules_import_without_a_device(source: Path) -> None:
    package = ".".join(source.relative_to(ROOT).parent.parts)
    if not list(source.parent.glob(f"{source.stem}*.so")):
        pytest.skip(f"{source.stem} was not built")
    code = f"import {package}.{source.stem} as m; print(m.abi, type(m.probe()).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(importlib.import_module(f"{package}.ops").KERNELS.abi), "str"]


def test_importing_the_loader_is_quick() -> None:
    code = "import sys, shared.kernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
