"""What the ``kernels/ops.py`` of all methods share: argument checks, and how native functions learn type and place."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.errors import DataError

FLOAT_CODE = {torch.float32: 0, torch.bfloat16: 1}  # with_type in kernels_common.h


def where(values: Tensor) -> tuple[int, ...]:
    """The last arguments of every native function: threads on the CPU; device and stream on CUDA."""
    if values.device.type == "cuda":
        index = values.device.index
        return index, torch.cuda.current_stream(index).cuda_stream
    return (torch.get_num_threads(),)


def need(condition: bool, argument: str, expected: str, value: object) -> None:
    """Nothing if ``condition`` holds; a tensor as ``value`` is described by shape, type and device.

    Raises:
        DataError: naming the argument, what was expected and what came.
    """
    if not condition:
        if isinstance(value, Tensor):
            value = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
        raise DataError(f"{argument}: expected {expected}, got {value}")
