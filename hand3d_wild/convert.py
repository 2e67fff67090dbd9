"""Checkpoints: our own format, and the weights of the original programs.

    python -m hand3d_wild.convert --input model-0.pth --output official.pt --form rgb

Nothing in a file is executed (``weights_only=True``). The authors' weights are not part of this project; a user gives
the file. A checkpoint carries no MANO array: the hand always comes from the user's MANO file.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.checkpoints import AGAIN, check_state, read_own, read_torch, to_cpu
from shared.errors import DataError, exit_on_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hand3d_wild.model import WildNet
    from shared.mano import ManoModel

FORMAT, VERSION = "handpose/hand3d_wild", 1
_REMEDY = "give a file of the network that was asked for, with all its layers"
_ENTRIES = {"format", "version", "state_dict", "model", "mano_sha256"}

# --- our format -------------------------------------------------------------------------------------------------------


@dataclass
class Checkpoint:
    """A trained network and what is needed to use it, without the hand model.

    Attributes:
        state_dict: of :class:`hand3d_wild.model.WildNet`, float32 on the CPU.
        model: its keyword arguments.
        mano_sha256: of the MANO file it was trained with; empty where that is not known (the original's weights).
        extra: anything else that was stored, unread (epoch, metrics, the source of a conversion).
    """

    state_dict: dict[str, Tensor]
    model: dict[str, Any]
    mano_sha256: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def build(self, mano: ManoModel | str | Path, **changes: Any) -> WildNet:
        """The network with its weights, in evaluation mode, on the user's hand model.

        ``changes`` replace arguments that do not touch the weights, such as ``form``. Warns where ``mano`` is another
        file than the one of the training: the 22 numbers then mean another hand.
        """
        from hand3d_wild.model import WildNet

        hand = _mano(mano)
        if self.mano_sha256 and hand.sha256 != self.mano_sha256:
            warnings.warn(
                f"the network was trained with a MANO file of sha256 {self.mano_sha256[:12]}..., this one "
                f"({hand.source}) has {hand.sha256[:12]}...; its hands are not those of the training, unless one file "
                "was made from the other",
                stacklevel=2,
            )
        network = WildNet(hand, **{**self.model, **changes})
        network.load_state_dict(self.state_dict)
        return network.eval()

    def as_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, as stored in a file."""
        return {
            **self.extra,
            "format": FORMAT,
            "version": VERSION,
            "state_dict": self.state_dict,
            "model": self.model,
            "mano_sha256": self.mano_sha256,
        }


def checkpoint_of(network: WildNet, **extra: Any) -> Checkpoint:
    """A :class:`Checkpoint` of a network in memory; the weights are copied to the CPU as float32."""
    state = {key: to_cpu(value) for key, value in network.state_dict().items()}
    return Checkpoint(state, dict(network.sizes), network.mano_sha256, dict(extra))


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a ``torch.save`` dict that loads with ``weights_only=True``. The file is complete or untouched."""
    import torch

    from shared.safe_io import atomic_path

    with atomic_path(Path(path)) as temporary:
        torch.save(checkpoint.as_dict(), temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads our format; a training run's checkpoints are in it too.

    Raises:
        MissingFileError: no such file.
        DataError: the file is truncated, a web page, of another program or method, or does not fit together.
    """
    path = Path(path)
    content = read_own(path, FORMAT, VERSION, convert="hand3d_wild.convert")
    try:
        checkpoint = Checkpoint(
            state_dict={str(key): to_cpu(value) for key, value in content["state_dict"].items()},
            model={str(key): value for key, value in content["model"].items()},
            mano_sha256=str(content["mano_sha256"]),
            extra={key: value for key, value in content.items() if key not in _ENTRIES},
        )
        expected = _empty_state(checkpoint.model)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"has a missing or malformed entry ({type(error).__name__}: {error})", path=path, remedy=AGAIN
        ) from error
    check_state(checkpoint.state_dict, expected, path, "a network of the sizes it names", _REMEDY)
    return checkpoint


def _mano(mano: ManoModel | str | Path) -> ManoModel:
    from shared.mano import ManoModel, load_mano

    return mano if isinstance(mano, ManoModel) else load_mano(mano)


def _empty_state(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a network of these sizes, without memory behind its tensors."""
    import torch

    from hand3d_wild.model import WildNet
    from shared.mano import load_mano

    hand = load_mano("standin")
    with torch.device("meta"):
        return WildNet(hand, **sizes).state_dict()


# --- the original's weights -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """What was found in a file of the original's weights.

    Attributes:
        matched: entries that were loaded.
        prefixed: entries that carried ``module.`` (saved from DataParallel: the official files).
        counters: batch counters that the file does not have and that were set to 0 (PyTorch 0.3 knew none).
    """

    matched: int
    prefixed: int
    counters: int

    def __str__(self) -> str:
        parts = [f"{self.matched} entries matched by name and shape, all of the network's weights among them"]
        if self.prefixed:
            parts.append(f"{self.prefixed} of them under module.")
        if self.counters:
            parts.append(f"{self.counters} batch counters are not in the file and were set to 0")
        return "; ".join(parts)


def read_reference(path: str | Path, *, mano: ManoModel | str | Path, **sizes: Any) -> tuple[WildNet, Match]:
    """The network of an original ``model-*.pth``, in evaluation mode, and what was matched.

    Three forms are read: the network's own names; the same under ``module.``; without ``num_batches_tracked``.

    Args:
        path: a state dict as ``torch.save`` wrote it, in the old or the new container.
        mano: the user's hand, from :func:`shared.mano.load_mano` or its path.
        sizes: of :class:`hand3d_wild.model.WildNet`; ``form`` says which input the weights were trained for, the file
            does not.

    Raises:
        MissingFileError, DataError: no such file; not the weights of this network, with everything that is missing or
            unexpected.
    """
    import torch

    from hand3d_wild.model import WildNet

    path, hand = Path(path), _mano(mano)
    content = read_torch(path)
    if isinstance(content, dict) and "format" in content:
        raise DataError(
            f"is a checkpoint of {str(content['format'])!r}, not weights of the original program",
            path=path,
            remedy="nothing has to be converted: use it as it is, or load it with load_checkpoint",
        )
    if not isinstance(content, Mapping) or not any(isinstance(v, torch.Tensor) for v in content.values()):
        raise DataError(
            "is not a state dict of weights", path=path, remedy="give a model-*.pth of the original program"
        )
    strangers = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise DataError(f"has entries that are no tensors: {', '.join(strangers[:8])}", path=path, remedy=AGAIN)
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = str(key).removeprefix("module.")
        if name in state:
            raise DataError(f"has {name} both with and without module.", path=path, remedy=AGAIN)
        state[name] = to_cpu(value)
    found = len(state)
    network = WildNet(hand, **sizes)
    expected = network.state_dict()
    absent = [key for key in expected if key.endswith(".num_batches_tracked") and key not in state]
    for key in absent:
        state[key] = torch.zeros_like(expected[key])
    check_state(state, expected, path, "the network of 3D hands in the wild", _REMEDY)
    network.load_state_dict(state)
    prefixed = sum(str(key).startswith("module.") for key in content)
    return network.eval(), Match(found, prefixed, len(absent))


def load_reference(path: str | Path, *, mano: ManoModel | str | Path, **sizes: Any) -> nn.Module:
    """The original model from its own weights, in evaluation mode, with the original's inputs and outputs.

    Takes (B, 3, 256, 256), or (B, 24, 256, 256) with ``form="heatmaps"``, in 0..1; gives (B, 1598) pixels as u0, v0,
    u1, v1, ..., (B, 799, 3) metres and (B, 22) numbers, 21 joints before 778 vertices. ``.network`` is our network,
    ``.match`` says what was found in the file. Arguments and errors as :func:`read_reference`.
    """
    from torch import nn

    network, match = read_reference(path, mano=mano, **sizes)

    class ReferenceOutputs(nn.Module):
        """Our network with the original's return value."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.match = network, match

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.network(image).flat()

    return ReferenceOutputs().eval()


# --- command line -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hand3d_wild.convert",
        description="Converts weights of the original programs to our checkpoint and says what was matched.",
    )
    parser.add_argument("--input", required=True, type=Path, help="model-*.pth of the original programs")
    parser.add_argument("--output", required=True, type=Path, help="our checkpoint, .pt")
    parser.add_argument(
        "--form", choices=("rgb", "heatmaps"), default="rgb", help="input the weights were trained for (default: rgb)"
    )
    args = parser.parse_args(argv)
    network, match = read_reference(args.input, mano="standin", form=args.form)
    checkpoint = checkpoint_of(network, source=args.input.name)
    checkpoint.mano_sha256 = ""  # the hand they were trained with is not in the file
    save_checkpoint(args.output, checkpoint)
    print(f"{args.input}: {match}")
    print(f"{args.output}: written, for the {args.form} form")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
