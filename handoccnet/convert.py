"""Checkpoints: our own format, the author's snapshots, and ImageNet weights of the backbone.

    python -m handoccnet.convert --input snapshot_demo.pth.tar --output demo.pt --mano MANO_RIGHT.pkl

Nothing in a file is executed (``weights_only=True``). The MANO arrays and grids that a snapshot carries are compared
with the user's own and then left out: the hand always comes from the user's MANO file.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from shared.checkpoints import (
    WHOLE_NETWORK,
    ManoCheckpoint,
    add_counters,
    check_own,
    check_state,
    check_tensors,
    cpu_state,
    hand_model,
    read_safetensors,
    read_torch,
    refuse_own,
    save_checkpoint,
    to_cpu,
)
from shared.errors import DataError, exit_on_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from handoccnet.model import HandOccNet
    from shared.mano import ManoModel

FORMAT, VERSION = "handpose/handoccnet", 1

# --- our format -------------------------------------------------------------------------------------------------------


class Checkpoint(ManoCheckpoint["HandOccNet"]):
    """A trained :class:`handoccnet.model.HandOccNet` without its hand model; ``build`` can give it other ``tips``."""

    format, version = FORMAT, VERSION

    @staticmethod
    def network() -> type[HandOccNet]:
        from handoccnet.model import HandOccNet

        return HandOccNet


def checkpoint_of(network: HandOccNet, **extra: Any) -> Checkpoint:
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
    remedy = "convert the author's snapshots with python -m handoccnet.convert"
    content = check_own(read_torch(path), path, FORMAT, VERSION, remedy=remedy, found="a checkpoint of {!r}")
    return Checkpoint.from_content(content, path)


# --- the author's names -----------------------------------------------------------------------------------------------

_RULES: list[tuple[str, str]] = [
    (r"backbone\.layer0\.0\.", "backbone.stem.conv."),
    (r"backbone\.layer0\.1\.", "backbone.stem.norm."),
    (r"backbone\.layer(\d)\.0\.(\d+)\.downsample\.0\.", "backbone.stages.{0-}.{1}.skip.conv."),
    (r"backbone\.layer(\d)\.0\.(\d+)\.downsample\.1\.", "backbone.stages.{0-}.{1}.skip.norm."),
    (r"backbone\.layer(\d)\.0\.(\d+)\.conv(\d)\.", "backbone.stages.{0-}.{1}.{2unit}.conv."),
    (r"backbone\.layer(\d)\.0\.(\d+)\.bn(\d)\.", "backbone.stages.{0-}.{1}.{2unit}.norm."),
    (r"backbone\.toplayer\.", "backbone.lateral.0."),
    (r"backbone\.latlayer(\d)\.", "backbone.lateral.{0}."),
    (r"backbone\.smooth2\.", "backbone.unused_smooth."),
    (r"backbone\.smooth3\.", "backbone.smooth."),
    (r"backbone\.attention_module\.spatial\.conv\.", "backbone.gate.conv."),
    (r"backbone\.attention_module\.spatial\.bn\.", "backbone.gate.norm."),
    (r"FIT\.layers\.(\d)\.", "fit.transformer.layers.{0}."),
    (r"FIT\.conv1\.0\.", "fit.merge1."),
    (r"FIT\.conv1\.2\.", "fit.merge2."),
    (r"FIT\.conv2\.0\.", "fit.skip."),
    (r"SET\.layers\.(\d)\.", "set.layers.{0}."),
    (r"regressor\.hand_regHead\.hg\.0\.hg\.(\d)\.(\d)\.0\.", "head.hourglass.levels.{0}.{1}."),
    (r"regressor\.hand_regHead\.res\.0\.0\.", "head.residual."),
    (r"regressor\.hand_regHead\.fc\.0\.block\.0\.", "head.encoding.conv."),
    (r"regressor\.hand_regHead\.fc\.0\.block\.1\.", "head.encoding.norm."),
    (r"regressor\.hand_regHead\.score\.0\.", "head.score."),
    (r"regressor\.hand_regHead\.betas$", "head.sharpness"),
    (r"regressor\.hand_Encoder\.heatmap_conv\.", "encoder.from_heatmaps."),
    (r"regressor\.hand_Encoder\.encoding_conv\.", "encoder.from_encoding."),
    (r"regressor\.hand_Encoder\.reg\.(\d+)\.", "encoder.units.{0}."),
    (r"regressor\.mano_regHead\.mano_base_layer\.(\d)\.", "hand_head.base.{0}."),
    (r"regressor\.mano_regHead\.pose_reg\.", "hand_head.pose."),
    (r"regressor\.mano_regHead\.shape_reg\.", "hand_head.shape."),
]
_UNITS = {"1": "reduce", "2": "spatial", "3": "expand"}
# The layers of a residual unit: the hourglass counts its norms from 1, the encoder from none.
_HEAD_LAYERS = {"bn1.": "norm.", "bn2.": "reduce.norm.", "bn3.": "spatial.norm."}
_ENCODER_LAYERS = {"bn.": "norm.", "bn1.": "reduce.norm.", "bn2.": "spatial.norm."}
_CONVS = {"conv1.": "reduce.conv.", "conv2.": "spatial.conv.", "conv3.": "expand."}
_ATTENTION_LAYERS = {
    "q_embedding": "query_embedding",
    "k_embedding": "key_embedding",
    "encode_query.": "query.",
    "encode_key.": "key.",
    "encode_value.": "value.",
    "encode_query2.": "gate_query.",
    "encode_key2.": "gate_key.",
    "norm2.": "norm.",
    "mlp.": "",
}
_MANO_BUFFERS: dict[str, Callable[[ManoModel], Any]] = {
    "th_betas": lambda m: None,
    "th_shapedirs": lambda m: m.shapedirs,
    "th_posedirs": lambda m: m.posedirs,
    "th_v_template": lambda m: m.v_template[None],
    "th_J_regressor": lambda m: m.J_regressor,
    "th_weights": lambda m: m.weights,
    "th_faces": lambda m: m.faces,
    "th_hands_mean": lambda m: m.hands_mean[None],
    "th_selected_comps": lambda m: None,
}
"""MANO arrays in a snapshot and what they should equal; None where the network does not use them."""


def reference_key_to_ours(key: str) -> str | None:
    """The name in :class:`handoccnet.model.HandOccNet` of a snapshot's entry (without ``module.``); None if it has
    none."""
    for pattern, ours in _RULES:
        match = re.match(pattern, key)
        if match is None:
            continue
        for i, group in enumerate(match.groups()):
            ours = ours.replace(f"{{{i}}}", group).replace(f"{{{i}unit}}", _UNITS.get(group, group))
            ours = ours.replace(f"{{{i}-}}", str(int(group) - 1))
        rest = key[match.end() :]
        layers: dict[str, str] = {}
        if ours.startswith(("head.hourglass", "head.residual")):
            layers = _HEAD_LAYERS | _CONVS
        elif ours.startswith("encoder.units"):
            layers = _ENCODER_LAYERS | _CONVS
        elif ".layers." in ours:
            layers = _ATTENTION_LAYERS
        for theirs, name in layers.items():
            if rest.startswith(theirs):
                return ours + name + rest[len(theirs) :]
        return ours + rest if not layers else None
    return None


def _reshape(ours: str, value: Tensor) -> Tensor:
    """The original's 1x1 convolutions and embedded maps as our matrices over tokens."""
    if ".layers." in ours:
        if ours.endswith("_embedding") and value.ndim == 4:
            return value[0].flatten(1).T.contiguous()
        if value.ndim == 4 and value.shape[2:] == (1, 1):
            return value[:, :, 0, 0].contiguous()
    return value


def _check_ignored(state: dict[str, Tensor], mano: ManoModel, path: Path) -> bool:
    """Takes the constants out of a snapshot's state; warns where its hand is not the user's, True where it is."""
    import torch

    compared, differences = 0, []
    for name, of in _MANO_BUFFERS.items():
        value, expected = state.pop(f"regressor.mano_regHead.mano_layer.{name}", None), of(mano)
        if value is None or expected is None:
            continue
        compared += 1
        ours = torch.as_tensor(expected)
        if value.shape != ours.shape:
            differences.append(f"{name} has shape {tuple(value.shape)}, not {tuple(ours.shape)}")
        elif not torch.allclose(value.double(), ours.double(), rtol=0, atol=1e-6):
            differences.append(f"{name} differs by up to {float((value.double() - ours.double()).abs().max()):.3g}")
    if differences:
        warnings.warn(
            f"{path}: the hand inside this snapshot is not that of {mano.source} ({'; '.join(differences)}); the "
            "latter is used, and the network was trained with another",
            stacklevel=4,
        )
    for name in ("uu", "vv"):
        grid = state.pop(f"regressor.hand_regHead.{name}", None)
        if grid is None:
            continue
        size = grid.shape[-1]
        middle = ((torch.arange(size) + 0.5) / size).expand(size, size)
        if grid.shape != middle.shape or not torch.allclose(grid, middle if name == "uu" else middle.T, atol=1e-6):
            raise DataError(
                f"has a grid {name} of other coordinates than the middles of its cells",
                path=path,
                remedy="give a snapshot of the published network",
            )
    for name in [key for key in state if key.startswith("fitting_loss.")]:  # in snapshots since October 2023
        del state[name]
    return compared > 0 and not differences


def read_reference(
    path: str | Path, *, mano: ManoModel | str | Path, **sizes: Any
) -> tuple[HandOccNet, dict[str, Any]]:
    """The network of an author's ``snapshot_*.pth.tar``, in evaluation mode, and its other entries (``epoch``).

    Args:
        path: the snapshot as it is: ``{"epoch", "network", "optimizer"}``, keys with ``module.``; a bare state dict
            and keys without the prefix are read as well.
        mano: the user's hand, from :func:`shared.mano.load_mano` or its path.
        sizes: of :class:`handoccnet.model.HandOccNet`, where they are not the published ones.

    Raises:
        MissingFileError, DataError: no such file; not a snapshot of this network, with everything that is missing or
            unexpected.
    """
    return _read_reference(path, mano, **sizes)[:2]


def _read_reference(
    path: str | Path, mano: ManoModel | str | Path, **sizes: Any
) -> tuple[HandOccNet, dict[str, Any], bool]:
    """:func:`read_reference` and whether the snapshot's hand is the user's."""
    from handoccnet.model import HandOccNet

    path, hand = Path(path), hand_model(mano)
    content = read_torch(path)
    refuse_own(content, path, "a snapshot of the original program", "load it with load_checkpoint")
    outer = content if isinstance(content, dict) and isinstance(content.get("network"), Mapping) else {}
    remedy = "give a snapshot_*.pth.tar of the original program"
    network = check_tensors(outer.get("network", content), path, "has no 'network' entry with the weights", remedy)
    theirs = {str(key).removeprefix("module."): to_cpu(value) for key, value in network.items()}
    same_hand = _check_ignored(theirs, hand, path)
    state: dict[str, Tensor] = {}
    for key, value in theirs.items():
        ours = reference_key_to_ours(key)
        state[key if ours is None else ours] = value if ours is None else _reshape(ours, value)
    model = HandOccNet(hand, **sizes)
    check_state(state, model.state_dict(), path, "HandOccNet", WHOLE_NETWORK)
    model.load_state_dict(state)
    rest = {key: value for key, value in outer.items() if key not in ("network", "optimizer")}
    return model.eval(), rest, same_hand


def load_reference(path: str | Path, *, mano: ManoModel | str | Path, **sizes: Any) -> nn.Module:
    """The original model from its own snapshot, in evaluation mode, with the original's inputs and outputs.

    Takes images (B, 3, 256, 256) in 0..1, or the original's ``{"img": images}``. Gives a dict: ``joints_coord_img``
    (B, 21, 2) fractions of the crop; ``mano_pose`` and ``mano_pose_aa`` (B, 48); ``mano_shape`` (B, 10);
    ``joints_coord_cam`` (B, 21, 3), ``mesh_coord_cam`` (B, 778, 3) and ``manojoints2cam`` (B, 16, 4, 4) in metres.
    ``.network`` is our network. Arguments and errors as :func:`read_reference`.
    """
    return _reference_outputs(read_reference(path, mano=mano, **sizes)[0])


def _reference_outputs(network: HandOccNet) -> nn.Module:
    import torch
    from torch import nn

    class ReferenceOutputs(nn.Module):
        """Our network under the original's names and units."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Tensor | Mapping[str, Tensor], *_: Any) -> dict[str, Tensor]:
            image = inputs if isinstance(inputs, torch.Tensor) else inputs["img"]
            out = self.network(image)
            transforms = out["transforms"] * out["transforms"].new_tensor([1.0, 1.0, 1.0, 1e-3])
            transforms = torch.cat((transforms[:, :, :3], out["transforms"][:, :, 3:]), 2)
            return {
                "joints_coord_img": out["joints_img"],
                "mano_pose": out["pose"],
                "mano_pose_aa": out["pose"],
                "mano_shape": out["betas"],
                "joints_coord_cam": out["joints_mm"] / 1000,
                "mesh_coord_cam": out["verts_mm"] / 1000,
                "manojoints2cam": transforms,
            }

    return ReferenceOutputs().eval()


# --- ImageNet weights of the backbone ---------------------------------------------------------------------------------


def load_backbone(network: HandOccNet, path: str | Path | None) -> str:
    """ImageNet weights for a network that is to be trained; returns the line for the log.

    Args:
        network: changed in place; only stem and stages have such weights.
        path: a ResNet-50 file with torchvision's names, ``.pth`` or ``.safetensors`` (the original took
            ``resnet50-19c8e357.pth``); None or ``""`` leaves the random start.

    Raises:
        MissingFileError, DataError: no such file, not readable, or not exactly the network's ResNet.
    """
    if not path:
        return "backbone: random weights (no file of ImageNet weights was given)"
    path = Path(path)
    safetensors = path.suffix == ".safetensors"
    content = read_safetensors(path) if safetensors else read_torch(path)
    if safetensors and isinstance(content, dict):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(hasattr(value, "shape") for value in content.values()):
        raise DataError(
            "is not a plain state dict", path=path, remedy="give torchvision's resnet50 file, .pth or .safetensors"
        )
    state = {}
    for key, value in content.items():
        name = str(key)
        if name in ("fc.weight", "fc.bias"):
            continue
        name = re.sub(r"^conv1\.", "layer0.0.", re.sub(r"^bn1\.", "layer0.1.", name))
        name = re.sub(r"^layer([1-4])\.(\d+)\.", r"layer\1.0.\2.", name)
        state[reference_key_to_ours(f"backbone.{name}") or str(key)] = to_cpu(cast("Tensor", value))
    own = network.backbone.state_dict()
    expected = {f"backbone.{key}": value for key, value in own.items() if key.startswith(("stem.", "stages."))}
    add_counters(state, expected)  # torchvision's first files are older than these
    what = f"a ResNet of {network.sizes['blocks']} blocks, stem {network.sizes['stem']}"
    check_state(state, expected, path, what, WHOLE_NETWORK)
    network.backbone.load_state_dict({key.removeprefix("backbone."): v for key, v in state.items()}, strict=False)
    return f"backbone: {len(state)} tensors from {path}"


# --- command line -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m handoccnet.convert",
        description="Converts a snapshot of the original program to our checkpoint, without the MANO arrays in it.",
    )
    parser.add_argument("--input", type=Path, required=True, help="snapshot_*.pth.tar of the original program")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .pt")
    parser.add_argument(
        "--mano", required=True, help='your MANO_RIGHT.pkl (or its .npz), compared with the one inside; or "standin"'
    )
    args = parser.parse_args(argv)
    network, rest, same_hand = _read_reference(args.input, args.mano)
    epoch = rest.get("epoch")
    known: dict[str, Any] = {"epoch": epoch + 1} if isinstance(epoch, int) else {}  # theirs count from 0, names from 1
    found = f", epoch {epoch + 1}" if isinstance(epoch, int) else ""
    if not same_hand:
        known["hand"] = "mano"
    checkpoint = checkpoint_of(network, source=args.input.name, **known)
    if not same_hand:  # it was trained with a MANO file, and not with this one
        checkpoint.mano_sha256 = ""
    save_checkpoint(args.output, checkpoint)
    count = sum(p.numel() for p in network.parameters())
    print(f"{args.output}: {count:,} parameters from {args.input}" + found)
    return 0


if __name__ == "__main__":
    exit_on_error(main)
