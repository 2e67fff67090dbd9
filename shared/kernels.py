"""Finding the native kernels of a method, and saying which are there: ``python -m shared.kernels``.

A method keeps ``<stem>_cpu`` and ``<stem>_cuda`` beside its ``ops.py``, two small extension modules that the build may
or may not have produced. Nothing is imported before the first call that could use it; a failure is remembered, and the
reason is given once in the log, or in the error when the user insists on a kernel. Without them the torch reference
runs.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast, get_args

from shared.errors import DataError, exit_on_error

if TYPE_CHECKING:
    import torch

Backend = Literal["auto", "reference", "cpu", "cuda"]
Kind = Literal["cpu", "cuda"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
KINDS: tuple[Kind, ...] = get_args(Kind)
VARIABLE = "HANDPOSE_KERNELS"

log = logging.getLogger(__name__)
_selected: Backend = "auto"


def _checked(name: str, where: str) -> Backend:
    if name not in BACKENDS:
        message = f"{where} is {name!r}, expected one of {', '.join(BACKENDS)}"
        raise DataError(message, remedy="auto takes what is there")
    return name


def select(backend: Backend) -> None:
    """Chooses the kernels of all methods in this process; the variable HANDPOSE_KERNELS goes before it.

    ``auto`` takes the native kernel of a tensor's device if there is one and the reference otherwise; ``reference``
    never takes a native one; ``cpu`` and ``cuda`` raise where theirs cannot be used.

    Raises:
        DataError: for another word.
    """
    global _selected
    _selected = _checked(backend, "the kernel backend")


def selected() -> Backend:
    """The choice in force: HANDPOSE_KERNELS if it is set and not empty, otherwise what :func:`select` was given.

    Raises:
        DataError: when the variable holds another word.
    """
    name = os.environ.get(VARIABLE)
    return _checked(name, VARIABLE) if name else _selected


class Kernels:
    """The two native modules of one method.

    Args:
        package: where they lie, ``"v2v_posenet.kernels"``.
        stem: their name without ``_cpu`` or ``_cuda``.
        abi: the number both must carry as ``abi``; it changes with every signature, so that a stale build is refused.
    """

    def __init__(self, package: str, stem: str, abi: int) -> None:
        self.package, self.stem, self.abi = package, stem, abi
        self._loaded: dict[str, ModuleType | str] = {}  # the module, or why there is none
        self._told: set[str] = set()

    def load(self, kind: Kind) -> ModuleType | str:
        """The module, or the reason why it cannot be used; found out once."""
        if kind not in self._loaded:
            self._loaded[kind] = self._load(kind)
        return self._loaded[kind]

    def _load(self, kind: Kind) -> ModuleType | str:
        if kind == "cuda":
            import torch

            if not torch.cuda.is_available():  # the module would import, but it has nothing to run on
                return "this machine has no CUDA device that torch can use"
        try:
            module = importlib.import_module(f"{self.package}.{self.stem}_{kind}")
        except ImportError as error:
            return f"it was not built, or cannot be loaded ({error})"
        found = getattr(module, "abi", None)
        if found != self.abi:
            return f"it was built from other sources (interface {found}, expected {self.abi}): build again"
        if kind == "cuda" and (problem := module.probe()):
            return f"its CUDA runtime does not work here ({problem})"
        return module

    def native(self, device_type: str) -> ModuleType | None:
        """The native module for tensors on ``device_type``, or None for the torch reference.

        Raises:
            DataError: when the user asked for kernels that cannot be used; the message says why, for both kinds.
        """
        choice = selected()
        if choice == "reference":
            return None
        if choice in ("cpu", "cuda") and choice != device_type:
            raise DataError(
                f"{self.package}: the {choice} kernels were asked for, but the tensors are on {device_type}",
                remedy=f"move them, or set {VARIABLE}=auto",
            )
        if device_type not in ("cpu", "cuda"):
            self._tell(device_type, logging.INFO, f"torch reference (no kernels for {device_type})")
            return None
        kind = cast(Kind, device_type)
        module = self.load(kind)
        if isinstance(module, str):
            if choice != "auto":
                raise DataError(f"{self.package}: no {kind} kernels. {self.reasons()}", remedy=INSTALL)
            self._tell(kind, logging.WARNING, f"torch reference, slower. {self.reasons()} -- {INSTALL}")
            return None
        self._tell(kind, logging.INFO, f"native {kind}")
        return module

    def native_for(self, values: torch.Tensor, *dtypes: torch.dtype) -> ModuleType | None:
        """The native module for a tensor, as :meth:`native`; None also where its type is none of ``dtypes``."""
        module = self.native(values.device.type)
        return module if values.dtype in dtypes else None

    def reasons(self) -> str:
        """Why each missing module is missing, in one line."""
        states = {kind: self.load(kind) for kind in KINDS}
        return "; ".join(f"{self.stem}_{kind}: {why}" for kind, why in states.items() if isinstance(why, str))

    def _tell(self, kind: str, level: int, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            log.log(level, "%s: %s", self.package, message)


INSTALL = (
    "run `make kernels`, or `pip install -e . --no-build-isolation --no-deps`, with a C++ compiler (and nvcc for CUDA)"
)


def report(root: Path | None = None) -> str:
    """The backend in force, and one line for each native module that a method beside ``shared`` asks for."""
    root = Path(__file__).parents[1] if root is None else root
    lines = [f"backend: {selected()}"]
    for ops in sorted(root.glob("*/kernels/ops.py")):
        package = f"{ops.parents[1].name}.kernels"
        kernels = importlib.import_module(f"{package}.ops").KERNELS
        for kind in KINDS:
            state = kernels.load(kind)
            told = state if isinstance(state, str) else f"ready ({state.__file__})"
            lines.append(f"{package}.{kernels.stem}_{kind}: {told}")
    return "\n".join(lines)


@dataclass
class Options:
    """The program has no options; HANDPOSE_KERNELS chooses the backend."""


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    from shared.options import parse

    parse(Options, prog="python -m shared.kernels", description="Says which native kernels can be used.", argv=argv)
    print(report())
    return 0


if __name__ == "__main__":
    exit_on_error(main)
