"""Checkpoints: our own format, and the original's three files.

    python -m sohandnet.convert 45_7.73_net_encoder.pth 45_7.73_net_estimater.pth --output icvl.pt --node-centre avg

The original stores every network in a file of its own; ours holds those that a stage trained, with what is needed to
use them: sizes, node centre, intrinsics of the frames. Nothing in a file is executed (``weights_only=True``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from shared.checkpoints import (
    OwnCheckpoint,
    add_counters,
    check_entries,
    check_own,
    check_state,
    cpu_state,
    read_torch,
    refuse_own,
    save_checkpoint,
    to_cpu,
)
from shared.errors import DataError, exit_on_error
from sohandnet.config import ConvertConfig, Intrinsics, NodeCentre

if TYPE_CHECKING:
    from torch import Tensor

    from sohandnet.model import SoHandNet

FORMAT, VERSION = "handpose/sohandnet", 1
RAW = "raw."  # weights beside averaged ones in a run's checkpoint, for its continuation
_REMEDY = "give a checkpoint of SO-HandNet with all its layers"

# --- our format -------------------------------------------------------------------------------------------------------


@dataclass
class Checkpoint(OwnCheckpoint):
    """Trained networks and what is needed to use them.

    Attributes:
        state_dict: of :class:`sohandnet.model.SoHandNet`; averaged weights where a run kept them.
        parts: the networks it holds, of encoder, decoder and estimator.
        intrinsics: of the frames it was trained on, ``true`` or ``reference`` (README, ledger Q1).
    """

    format, version = FORMAT, VERSION
    parts: list[str]
    intrinsics: str = "true"

    def build(self) -> SoHandNet:
        """The networks with their weights, in evaluation mode."""
        from sohandnet.model import SoHandNet

        network = SoHandNet(**self.model, parts=self.parts)
        network.load_state_dict(self.state_dict)
        return network.eval()

    def need(self, *parts: str, path: str | Path) -> None:
        """Refuses a checkpoint without these networks.

        Raises:
            DataError: what it lacks, and which stage gives it.
        """
        if missing := [part for part in parts if part not in self.parts]:
            raise DataError(
                f"holds {' and '.join(self.parts)}, not the {' and '.join(missing)}",
                path=path,
                remedy="give a checkpoint of another stage: autoencoder (encoder, decoder), estimator (encoder, "
                "estimator) or joint (all three)",
            )


def checkpoint_of(network: SoHandNet, *, intrinsics: str, **extra: Any) -> Checkpoint:
    """A :class:`Checkpoint` of networks in memory; the weights are copied to the CPU as float32."""
    state = cpu_state(network.state_dict())
    return Checkpoint(state, dict(network.sizes), list(network.parts), intrinsics, extra=extra)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads our format; a training run's checkpoints are in it too.

    Raises:
        MissingFileError: no such file.
        DataError: the file is truncated, a web page, of another program or method, or does not fit together.
    """
    import torch

    from sohandnet.model import SoHandNet

    path = Path(path)
    remedy = "convert the original's files with python -m sohandnet.convert"
    content = check_own(read_torch(path), path, FORMAT, VERSION, remedy=remedy, found="a checkpoint of {!r}")
    with check_entries(path):
        checkpoint = Checkpoint(
            state_dict=cpu_state({k: v for k, v in content["state_dict"].items() if not str(k).startswith(RAW)}),
            model={str(key): value for key, value in content["model"].items()},
            parts=[str(part) for part in content["parts"]],
            intrinsics=str(content["intrinsics"]),
            extra=Checkpoint.extra_of(content),
        )
        centre, space = checkpoint.model.get("node_centre", "center"), checkpoint.intrinsics
        if centre not in get_args(NodeCentre) or space not in get_args(Intrinsics):
            raise ValueError(f"node centre {centre!r} and intrinsics {space!r} are not known")
        with torch.device("meta"):
            expected = SoHandNet(**checkpoint.model, parts=checkpoint.parts).state_dict()
    check_state(checkpoint.state_dict, expected, path, "the networks and sizes it names", _REMEDY)
    return checkpoint


# --- the original's names ---------------------------------------------------------------------------------------------

_RULES: list[tuple[str, str]] = [
    (r"first_pointnet\.layers\.([012])\.conv\.", "encoder.points.{0}.linear."),
    (r"first_pointnet\.layers\.([012])\.norm\.", "encoder.points.{0}.norm."),
    (r"first_pointnet\.layers\.3\.conv\.", "encoder.points_out.linear."),
    (r"knnlayer\.layers\.([01])\.conv\.", "encoder.knn.{0}.linear."),
    (r"knnlayer\.layers\.([01])\.norm\.", "encoder.knn.{0}.norm."),
    (r"final_pointnet\.layers\.([01])\.conv\.", "encoder.nodes.{0}.linear."),
    (r"final_pointnet\.layers\.0\.norm\.", "encoder.nodes.0.norm."),
    (r"fc_decoder\.linear([123])\.linear\.", "decoder.dense.{0-1}.linear."),
    (r"fc_decoder\.linear([123])\.norm\.", "decoder.dense.{0-1}.norm."),
    (r"fc_decoder\.linear_out\.linear\.", "decoder.dense.3.linear."),
    (r"conv_decoder\.deconv([1-6])\.conv\.(conv|norm)\.", "decoder.up.{0-1}.{1}."),
    (r"conv_decoder\.conv2pc([456])\.conv1\.conv\.", "decoder.heads.{0-4}.hidden.linear."),
    (r"conv_decoder\.conv2pc([456])\.conv1\.norm\.", "decoder.heads.{0-4}.hidden.norm."),
    (r"conv_decoder\.conv2pc([456])\.conv2\.conv\.", "decoder.heads.{0-4}.out.linear."),
    (r"pslayer1\.conv\.", "estimator.layer.linear."),
    (r"pslayer1\.norm\.", "estimator.layer.norm."),
    (r"net_FC\.([036])\.", "estimator.head.{0/3}.linear."),
    (r"net_FC\.([14])\.", "estimator.head.{0/3}.norm."),
]
_VARIANTS = {1408: "v2.1", 2944: "v3", 384: "v5", 3340: "v6"}  # inputs of the estimator's first layer; v4 has none
_UNUSED = "transformer."  # a network that the original builds and never calls (ledger Q14)
_FINEST = ("decoder.up.5.", "decoder.heads.2.")  # the 64 x 64 level, which no loss reads (ledger Q15)


def reference_key_to_ours(key: str) -> str | None:
    """The name in :class:`sohandnet.model.SoHandNet` of an original entry; None if it has none."""
    for pattern, ours in _RULES:
        if match := re.match(pattern, key):
            for i, group in enumerate(match.groups()):
                ours = ours.replace(f"{{{i}}}", group)
                if group.isdigit():
                    number = int(group)
                    ours = ours.replace(f"{{{i}-1}}", str(number - 1)).replace(f"{{{i}-4}}", str(number - 4))
                    ours = ours.replace(f"{{{i}/3}}", str(number // 3))
            return ours + key[match.end() :]
    return None


def _read_one(path: Path) -> dict[str, Tensor]:
    """One of the original's files with our names; ``transformer`` dropped, 1x1 convolutions as matrices."""
    import torch

    content = read_torch(path)
    refuse_own(content, path, "one of the original program", "use it as it is")
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DataError("is not a plain state dict", path=path, remedy="give a *_net_*.pth of the original program")
    state: dict[str, Tensor] = {}
    for name, tensor in content.items():
        key = str(name).removeprefix("module.")
        if key.startswith(_UNUSED):
            continue
        ours, value = reference_key_to_ours(key) or key, to_cpu(tensor)
        state[ours] = value.flatten(1) if value.ndim > 2 and ".up." not in ours else value
    return state


def load_reference(
    paths: str | Path | Sequence[str | Path],
    *,
    node_centre: str = "center",
    finest: bool = False,
) -> SoHandNet:
    """The networks of the original's ``*_net_{encoder,decoder,estimater}.pth``, in evaluation mode.

    The estimator's variant, the number of joints and whether points carry normals are read off the shapes. Counters of
    the batch norms may be missing.

    Args:
        paths: one to three files, in any order; what each holds is recognised by its keys.
        node_centre: how they were trained, ``center`` or ``avg``; the files do not say (ledger Q5).
        finest: keep the decoder's 64 x 64 level.

    Raises:
        MissingFileError, DataError: no such file, not a checkpoint of these networks (with everything that is missing
            or unexpected), or a network twice.
    """
    from sohandnet.model import PARTS, SoHandNet

    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not files:
        raise DataError("no checkpoint was given", remedy="give one to three *_net_*.pth of the original program")
    states: dict[str, tuple[Path, dict[str, Tensor]]] = {}
    for path in files:
        state = _read_one(path)
        found = {part for part in PARTS if any(key.startswith(f"{part}.") for key in state)}
        if len(found) != 1:
            raise DataError(
                f"holds none of SO-HandNet's networks (its first entry is {next(iter(state), 'missing')!r})"
                if not found
                else f"holds several networks ({', '.join(sorted(found))})",
                path=path,
                remedy="give the original's files, one network each",
            )
        part = found.pop()
        if part in states:
            raise DataError(f"is a second {part}, beside {states[part][0]}", path=path, remedy="give one of each")
        states[part] = path, state

    sizes: dict[str, Any] = {"node_centre": node_centre, "finest": finest}
    if "encoder" in states:
        first = states["encoder"][1].get("encoder.points.0.linear.weight")
        sizes["normals"] = first is None or first.shape[-1] != 3
    if "estimator" in states:
        path, state = states["estimator"]
        layer, last = state.get("estimator.layer.linear.weight"), state.get("estimator.head.2.linear.weight")
        if layer is not None and layer.shape[-1] not in _VARIANTS:
            raise DataError(
                f"an estimator of {layer.shape[-1]} inputs; known are {sorted(_VARIANTS)}", path=path, remedy=_REMEDY
            )
        sizes["estimator"] = "v4" if layer is None else _VARIANTS[layer.shape[-1]]
        sizes["joints"] = 16 if last is None else max(1, len(last) // 3)
    network = SoHandNet(**sizes, parts=list(states))
    expected = network.state_dict()
    merged: dict[str, Tensor] = {}
    for part, (path, state) in states.items():
        own = {key: value for key, value in expected.items() if key.startswith(f"{part}.")}
        if not finest:
            state = {key: value for key, value in state.items() if not key.startswith(_FINEST)}
        add_counters(state, own)  # the original's own norms never count, some of its files have no counter at all
        check_state(state, own, path, f"SO-HandNet's {part}", _REMEDY)
        merged |= state
    network.load_state_dict(merged)
    return network.eval()


# --- command line -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    from shared.options import parse

    options = parse(
        ConvertConfig,
        prog="python -m sohandnet.convert",
        description="Converts the original's checkpoints to one of ours.",
        argv=argv,
        positional="input",
        positional_help="the original's files",
    ).options
    if not options.output:
        raise DataError("--output is needed", remedy="give the file to write, such as --output sohandnet.pt")
    network = load_reference(options.input, node_centre=options.node_centre)
    names = [Path(path).name for path in options.input]
    save_checkpoint(options.output, checkpoint_of(network, intrinsics=options.intrinsics, sources=names))
    count = sum(parameter.numel() for parameter in network.parameters())
    estimator = f", estimator {network.sizes['estimator']}" if "estimator" in network.parts else ""
    print(f"{options.output}: {' and '.join(network.parts)}{estimator}, {count:,} parameters")
    print(f"node centre {options.node_centre} and intrinsics {options.intrinsics}, as you said; the files do not say")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
