"""Weights of any method in files that are not trusted: what every checkpoint is checked for before it is used.

A method's own format is a dict with ``format`` (its name), ``version``, ``state_dict`` and what its network needs;
which entries these are, the method's ``convert.py`` says. Everything is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE_BYTES = 2**31  # the largest published snapshot, with its Adam state, has 480 MB
AGAIN = "write or download the file again"


def to_cpu(value: Tensor) -> Tensor:
    """A copy on the CPU; floating-point numbers as float32."""
    value = value.detach().to("cpu", copy=True)
    return value.float() if value.is_floating_point() else value


def check_file(path: Path) -> bytes:
    """The first bytes of a file that exists, is not empty, not a web page and not absurdly large.

    Raises:
        MissingFileError, DataError: anything else, each with what to do.
    """
    if not path.is_file():
        raise MissingFileError("no such checkpoint file", path=path, remedy="check the path")
    with open(path, "rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if not head:
        raise DataError("is empty", path=path, remedy=AGAIN)
    if head.lstrip()[:1] == b"<":
        raise DataError(
            "is a web page, not a checkpoint", path=path, remedy="download the file itself (not its preview page) again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError("is a Git LFS pointer, not a checkpoint", path=path, remedy="run git lfs pull")
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"has {size} bytes, more than the {MAX_FILE_BYTES} that a checkpoint may have",
            path=path,
            remedy="check that this is the right file",
        )
    return head


def read_torch(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote; :func:`check_file` first, and tensors only."""
    import torch

    check_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types here, all of them mean that the file cannot be used
        raise DataError(
            f"cannot be read as a PyTorch checkpoint ({type(error).__name__}: {str(error).splitlines()[0][:200]})",
            path=path,
            remedy="it may be truncated, or hold more than tensors; " + AGAIN,
        ) from error


def read_safetensors(path: Path) -> Any:
    """The JSON under ``handpose`` in the header of a safetensors file, with the tensors as its ``state_dict``."""
    check_file(path)
    from safetensors import safe_open

    try:
        with safe_open(str(path), "pt") as file:
            content = json.loads((file.metadata() or {}).get("handpose", "{}"))
            if isinstance(content, dict):
                content["state_dict"] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            return content
    except Exception as error:  # SafetensorError, JSON errors and OS errors alike
        raise DataError(
            f"cannot be read as a safetensors file ({type(error).__name__}: {error})", path=path, remedy=AGAIN
        ) from error


def read_own(path: Path, name: str, version: int, *, convert: str) -> dict[str, Any]:
    """The dict of our own format in a ``.safetensors`` or torch file, also under ``"handpose"`` in a run's checkpoint.

    Args:
        path: the file.
        name: ``format`` it must have, such as ``"handpose/v2v_posenet"``.
        version: the one that is read.
        convert: the program that converts other people's weights, named in the remedy.

    Raises:
        MissingFileError, DataError: unreadable, of another program or method, of another version.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if isinstance(content, dict) and isinstance(content.get("handpose"), dict):
        content = content["handpose"]
    remedy = f"convert weights of other programs with python -m {convert}"
    return check_own(content, path, name, version, remedy=remedy)


def check_own(
    content: Any, path: Path, name: str, version: int, *, remedy: str, found: str = "a {!r} checkpoint"
) -> dict[str, Any]:
    """The content of a file if it is a dict of our own format with this ``format`` and ``version``.

    Args:
        content, path: what was read, and from where.
        name, version: as for :func:`read_own`.
        remedy: what to do with a file that is not in our format.
        found: how the message names a file of another format.

    Raises:
        DataError: of another program or method, of another version.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise DataError(
            "is not a handpose checkpoint (it has no 'format' entry)",
            path=path,
            remedy=remedy,
        )
    if content["format"] != name:
        raise DataError(
            f"is {found.format(content['format'])}, expected {name!r}",
            path=path,
            remedy="use the method that wrote it, or give another file",
        )
    if content.get("version") != version:
        raise DataError(
            f"has format version {content.get('version')!r}, this program reads version {version}",
            path=path,
            remedy="convert it with the program version that wrote it, or update handpose",
        )
    return content


def check_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, what: str, remedy: str
) -> None:
    """Strict comparison with the names and shapes of ``expected``; every mismatch and non-finite tensor is listed.

    Raises:
        DataError: "does not fit ``what``: ...", with the first eight problems.
    """
    import torch

    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems += [f"{key} is not finite" for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise DataError(f"does not fit {what}: {'; '.join(problems[:8])}{more}", path=path, remedy=remedy)
