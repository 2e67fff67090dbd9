"""Where a network runs, and in which floating-point type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from shared.errors import DataError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def choose_device(name: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes cuda where there is one.

    Raises:
        DataError: cuda where torch sees none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"--device {name}, but torch sees no CUDA device", remedy="use --device cpu or auto")
    return name


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 where the processor multiplies it natively, float16 on older GPUs, float32 elsewhere.

    Raises:
        DataError: a precision that is none of :data:`Precision`.
    """
    import torch

    if precision not in get_args(Precision):
        raise DataError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32
