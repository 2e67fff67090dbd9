"""Checkpoints: our own format, and the author's files of the estimator, the pose VAE and the pose denoiser.

    python -m selfsup_fitting.convert --input self-supervised.pth --output estimator.pt

Nothing in a file is executed (``weights_only=True``). Pixel grids and index lists that the author's files carry are
constants and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsup_fitting.config import ConvertConfig
from shared.checkpoints import (
    AGAIN,
    WHOLE_NETWORK,
    OwnCheckpoint,
    check_entries,
    check_own,
    check_state,
    check_tensors,
    cpu_state,
    read_torch,
    refuse_own,
    to_cpu,
)
from shared.errors import DataError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    from torch import Tensor, nn

    from selfsup_fitting.model import Estimator
    from selfsup_fitting.priors import PoseDenoiser, PoseVAE

Kind = Literal["estimator", "vae", "denoiser"]
FORMAT, VERSION = "handpose/selfsup_fitting", 1

# --- our format -------------------------------------------------------------------------------------------------------


class Checkpoint(OwnCheckpoint):
    """A trained :class:`selfsup_fitting.model.Estimator`."""

    format, version = FORMAT, VERSION

    def build(self) -> Estimator:
        """The network with its weights, in evaluation mode."""
        from selfsup_fitting.model import Estimator

        network = Estimator(**self.model)
        network.load_state_dict(self.state_dict)
        return network.eval()


def checkpoint_of(network: Estimator, **extra: Any) -> Checkpoint:
    """A :class:`Checkpoint` of a network in memory; the weights are copied to the CPU as float32."""
    return Checkpoint(cpu_state(network.state_dict()), dict(network.sizes), extra=extra)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a ``torch.save`` dict that loads with ``weights_only=True``. The file is complete or untouched."""
    from shared.training import save_checkpoint as save

    save(Path(path), checkpoint.as_dict())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads our format; a training run's checkpoints are in it too.

    Raises:
        MissingFileError: no such file.
        DataError: truncated, a web page, of another program or method or version, or it does not fit together.
    """
    import torch

    from selfsup_fitting.model import Estimator

    path = Path(path)
    remedy = "convert the author's files with python -m selfsup_fitting.convert"
    content = check_own(read_torch(path), path, FORMAT, VERSION, remedy=remedy, found="a checkpoint of {!r}")
    with check_entries(path):
        checkpoint = Checkpoint(
            state_dict=cpu_state(content["state_dict"]),
            model={str(key): int(value) for key, value in content["model"].items()},
            extra=Checkpoint.extra_of(content),
        )
        with torch.device("meta"):
            expected = Estimator(**checkpoint.model).state_dict()
    check_state(checkpoint.state_dict, expected, path, "an estimator of the sizes it names", WHOLE_NETWORK)
    return checkpoint


# --- the author's files -----------------------------------------------------------------------------------------------

_UNIT = {
    "bn1": "norm1",
    "conv1": "reduce",
    "bn2": "norm2",
    "conv2": "spatial",
    "bn3": "norm3",
    "conv3": "expand",
    "downsample.0": "skip",
}
# hg[n - 1][k] of the original: n = 2 is the outer level; k = 0 up, 1 down, 2 back, 3 innermost (n = 1 only)
_PLACE = {"0": "up", "1": "down", "2": "back"}
_CONSTANTS = {
    "estimator": ("xyz_recover.u_grid", "xyz_recover.v_grid"),
    "vae": (),
    "denoiser": ("input_indices", "output_indices"),
}
_MARKS: dict[Kind, str] = {"estimator": "hg.conv1.weight", "vae": "logvar.weight", "denoiser": "network.0.weight"}


def estimator_key(key: str) -> str | None:
    """The name in :class:`selfsup_fitting.model.Estimator` of an entry of the author's file; None if it has none."""
    unit = r"(?P<unit>bn[123]|conv[123]|downsample\.0)\.(?P<kind>weight|bias)$"
    if match := re.match(r"hg\.(conv1|bn1)\.(weight|bias)$", key):
        return f"{'stem' if match[1] == 'conv1' else 'stem_norm'}.{match[2]}"
    if match := re.match(rf"hg\.layer([123])\.0\.{unit}", key):
        return f"layers.{int(match[1]) - 1}.{_UNIT[match['unit']]}.{match['kind']}"
    if match := re.match(rf"hg\.hg\.(\d+)\.hg\.([01])\.([0123])\.0\.{unit}", key):
        where = "middle" if match[3] == "3" else f"{_PLACE[match[3]]}.{1 - int(match[2])}"
        return f"stacks.{match[1]}.hourglass.{where}.{_UNIT[match['unit']]}.{match['kind']}"
    if match := re.match(rf"hg\.res\.(\d+)\.0\.{unit}", key):
        return f"stacks.{match[1]}.residual.{_UNIT[match['unit']]}.{match['kind']}"
    if match := re.match(r"hg\.fc\.(\d+)\.([01])\.(weight|bias)$", key):
        return f"stacks.{match[1]}.{'fc' if match[2] == '0' else 'fc_norm'}.{match[3]}"
    if match := re.match(r"hg\.(score|fc_|score_)\.(\d+)\.(weight|bias)$", key):
        name = {"score": "score", "fc_": "remap", "score_": "remap_score"}[match[1]]
        return f"stacks.{match[2]}.{name}.{match[3]}"
    return None


def read_reference(path: str | Path) -> tuple[Kind, dict[str, Tensor], dict[str, Any]]:
    """What network an author's file is of, its weights under the author's names, and its other entries (``epoch``).

    Accepts ``{epoch, network_state_dict, optimizer_state_dict}`` and bare state dicts, with or without ``module.``.

    Raises:
        MissingFileError, DataError: no such file; unreadable; ours; no weights of one of the three networks in it.
    """
    path = Path(path)
    content = read_torch(path)
    refuse_own(content, path, "one of the original program", "load it with load_checkpoint")
    outer = content if isinstance(content, dict) and isinstance(content.get("network_state_dict"), Mapping) else {}
    remedy = "give a .pth of the original program (synthetic.pth, self-supervised.pth, pose_vae.pth, ...)"
    state = check_tensors(
        outer.get("network_state_dict", content), path, "has no 'network_state_dict' with the weights", remedy
    )
    weights = {str(key).removeprefix("module."): to_cpu(value) for key, value in state.items()}
    kinds = [kind for kind, mark in _MARKS.items() if mark in weights]
    if not kinds:
        raise DataError(
            f"is neither the estimator, nor the pose VAE, nor the denoiser (entries: {', '.join([*weights][:4])})",
            path=path,
            remedy=WHOLE_NETWORK,
        )
    rest = {k: v for k, v in outer.items() if k not in ("network_state_dict", "optimizer_state_dict")}
    return kinds[0], {k: v for k, v in weights.items() if k not in _CONSTANTS[kinds[0]]}, rest


def load_reference(path: str | Path, kind: Kind | None = None) -> Estimator | PoseVAE | PoseDenoiser:
    """The network of an author's file, in evaluation mode, with as many stacks as the file has.

    Args:
        path: the file.
        kind: what it must be; None takes what it is.

    Raises:
        MissingFileError, DataError: as :func:`read_reference`; another network than ``kind``; layers that are missing
            or unexpected, listed.
    """
    import torch

    path = Path(path)
    found, theirs, _ = read_reference(path)
    if kind is not None and found != kind:
        raise DataError(f"holds the {found}, expected the {kind}", path=path, remedy="give the other file")
    if found == "estimator":
        from selfsup_fitting.model import Estimator

        stacks = 1 + max((int(m[1]) for key in theirs if (m := re.match(r"hg\.score\.(\d+)\.", key))), default=0)
        if stacks > 16:
            raise DataError(f"names {stacks} stacks", path=path, remedy=AGAIN)
        network: nn.Module = Estimator(stacks=stacks)
        state = {estimator_key(key) or key: value for key, value in theirs.items()}
    else:
        from selfsup_fitting import priors

        network, state = (priors.PoseVAE() if found == "vae" else priors.PoseDenoiser()), theirs
    check_state(state, network.state_dict(), path, f"the published {found}", WHOLE_NETWORK)
    network.load_state_dict(state)
    with torch.no_grad():
        return network.eval()  # type: ignore[return-value]


def load_estimator(path: str | Path) -> Checkpoint:
    """Our checkpoint or the author's, whichever the file is."""
    from selfsup_fitting.model import Estimator

    path = Path(path)
    content = read_torch(path)
    if isinstance(content, dict) and "format" in content:
        return load_checkpoint(path)
    network = load_reference(path, "estimator")
    assert isinstance(network, Estimator)
    return checkpoint_of(network, source=f"the original program ({path.name})")


def main() -> None:
    options = parse(
        ConvertConfig,
        prog="python -m selfsup_fitting.convert",
        description="Convert the author's synthetic.pth or self-supervised.pth to our format.",
    ).options
    for name in ("input", "output"):
        if not getattr(options, name):
            raise DataError(f"--{name} is missing", remedy="see python -m selfsup_fitting.convert --help")
    checkpoint = load_estimator(options.input)
    save_checkpoint(options.output, checkpoint)
    print(f"{options.output}: estimator of {checkpoint.model['stacks']} stack(s), from {options.input}")


if __name__ == "__main__":
    exit_on_error(main)
