"""Checkpoints: our own format, and the weights of the original programs.

    python -m hand3d_wild.convert --input model-0.pth --output official.pt --form rgb

Nothing in a file is executed (``weights_only=True``). The authors' weights are not part of this project; a user gives
the file. A checkpoint carries no MANO array: the hand always comes from the user's MANO file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.checkpoints import (
    AGAIN,
    WHOLE_NETWORK,
    ManoCheckpoint,
    add_counters,
    check_state,
    check_tensors,
    cpu_state,
    hand_model,
    read_own,
    read_torch,
    refuse_own,
    save_checkpoint,
    to_cpu,
)
from shared.errors import DataError, exit_on_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hand3d_wild.model import WildNet
    from shared.mano import ManoModel

FORMAT, VERSION = "handpose/hand3d_wild", 1

# --- our format -------------------------------------------------------------------------------------------------------


class Checkpoint(ManoCheckpoint["WildNet"]):
    """A trained :class:`hand3d_wild.model.WildNet` without its hand model; ``build`` can give it another ``form``."""

    format, version = FORMAT, VERSION

    @staticmethod
    def network() -> type[WildNet]:
        from hand3d_wild.model import WildNet

        return WildNet


def checkpoint_of(network: WildNet, **extra: Any) -> Checkpoint:
    """A :class:`Checkpoint` of a network in memory; the weights are copied to the CPU as float32."""
    state = cpu_state(network.state_dict())
    return Checkpoint(state, dict(network.sizes), network.mano_sha256, extra=extra)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads our format; a training run's checkpoints are in it too.

    Raises:
        MissingFileError: no such file.
        DataError: the file is truncated, a web page, of another program or method, or does not fit together.
    """
    path = Path(path)
    content = read_own(path, FORMAT, VERSION, convert="hand3d_wild.convert")
    return Checkpoint.from_content(content, path)


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
    from hand3d_wild.model import WildNet

    path, hand = Path(path), hand_model(mano)
    content = read_torch(path)
    remedy = "nothing has to be converted: use it as it is, or load it with load_checkpoint"
    refuse_own(content, path, "weights of the original program", remedy)
    remedy = "give a model-*.pth of the original program"
    content = check_tensors(content, path, "is not a state dict of weights", remedy)
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = str(key).removeprefix("module.")
        if name in state:
            raise DataError(f"has {name} both with and without module.", path=path, remedy=AGAIN)
        state[name] = to_cpu(value)
    found = len(state)
    network = WildNet(hand, **sizes)
    expected = network.state_dict()
    counters = add_counters(state, expected)
    check_state(state, expected, path, "the network of 3D hands in the wild", WHOLE_NETWORK)
    network.load_state_dict(state)
    prefixed = sum(str(key).startswith("module.") for key in content)
    return network.eval(), Match(found, prefixed, counters)


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
