"""Checkpoints: our own format, and the conversion of other people's.

    python -m v2v_posenet.convert --input epoch14.pth --output msra_s3.pt --dataset msra --convention port

Sources: the PyTorch port's ``epoch{n}.pth`` (both variants) and the author's torch7 ``model.net``. Nothing in a file is
executed: PyTorch files are read with ``weights_only=True``, torch7 files by an inert, bounded reader.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from shared.checkpoints import AGAIN, check_entries, check_file, check_state, cpu_state, read_own, read_torch, to_cpu
from shared.errors import DataError, exit_on_error
from shared.options import parse
from shared.safe_io import atomic_path
from v2v_posenet.config import CONVENTIONS, DATASETS, Convention, ConvertConfig, Source, Variant

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help does not
    from torch import Tensor, nn

    from v2v_posenet.model import V2VPoseNet, Widths

FORMAT, VERSION = "handpose/v2v_posenet", 1

# --- our format -------------------------------------------------------------------------------------------------------


@dataclass
class Checkpoint:
    """A trained network and everything needed to use it.

    Attributes:
        state_dict: of :class:`V2VPoseNet`, float32 on the CPU.
        joints, widths: its arguments.
        variant: ``"gaussian"`` (arg-max of heat values) or ``"integral"`` (soft-argmax of logits).
        convention: how its training data was turned into voxels.
        dataset, skeleton: the data set's name and the name of its joint order.
        cube_mm: edge of the cube in mm.
        grid: edge of the grid in fine voxels.
        y_up: whether y of the grids points up; OpenCV's points down.
        max_depth_mm: where the training put pixels without a measurement (0: nowhere).
        extra: anything else that was stored, unread (epoch, metrics, the source of a conversion).
    """

    state_dict: dict[str, Tensor]
    joints: int
    widths: Widths
    variant: Variant
    convention: Convention
    dataset: str
    skeleton: str
    cube_mm: float
    grid: int = 88
    y_up: bool = False
    max_depth_mm: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def build(self) -> V2VPoseNet:
        """The network with its weights, in evaluation mode."""
        from v2v_posenet.model import V2VPoseNet

        network = V2VPoseNet(self.joints, self.widths)
        network.load_state_dict(self.state_dict)
        return network.eval()

    def as_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, as stored in a file or under ``"handpose"`` in a training checkpoint."""
        return {
            **self.extra,
            "format": FORMAT,
            "version": VERSION,
            "state_dict": self.state_dict,
            "model": {"joints": self.joints, "widths": list(self.widths), "variant": self.variant},
            "convention": asdict(self.convention),
            "dataset": self.dataset,
            "skeleton": self.skeleton,
            "cube_mm": self.cube_mm,
            "grid": self.grid,
            "y_up": self.y_up,
            "max_depth_mm": self.max_depth_mm,
        }


def checkpoint_of(
    network: V2VPoseNet,
    *,
    variant: Variant,
    convention: Convention,
    dataset: str,
    skeleton: str,
    cube_mm: float,
    grid: int = 88,
    y_up: bool | None = None,
    max_depth_mm: float | None = None,
    **extra: Any,
) -> Checkpoint:
    """A :class:`Checkpoint` of a network in memory; the weights are copied to the CPU as float32.

    ``y_up`` and ``max_depth_mm`` are the data set's (:data:`DATASETS`) where they are not given.
    """
    spec = DATASETS.get(dataset)  # None for a set of the user's own: OpenCV axes, zeros are never points
    if y_up is None:
        y_up = spec is not None and spec.y_up
    if max_depth_mm is None:
        max_depth_mm = 0.0 if spec is None else spec.background_mm
    widths = cast("Widths", network.widths)
    return Checkpoint(
        state_dict=cpu_state(network.state_dict()),
        joints=network.joints,
        widths=widths,
        variant=variant,
        convention=convention,
        dataset=dataset,
        skeleton=skeleton,
        cube_mm=float(cube_mm),
        grid=grid,
        y_up=y_up,
        max_depth_mm=float(max_depth_mm),
        extra=dict(extra),
    )


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes ``.safetensors`` (everything but the weights as JSON in its header) or, for any other suffix, a
    ``torch.save`` dict that loads with ``weights_only=True``. The file is complete or untouched."""
    content = checkpoint.as_dict()
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import save_file

            state = {key: value.contiguous() for key, value in content.pop("state_dict").items()}
            save_file(state, str(temporary), metadata={"handpose": json.dumps(content)})
        else:
            import torch

            torch.save(content, temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads our format: ``.pt``, ``.safetensors``, or a training checkpoint with a ``"handpose"`` entry.

    Raises:
        MissingFileError: no such file.
        DataError: the file is truncated, a web page, of another program or method, or does not fit together.
    """
    path = Path(path)
    content = read_own(path, FORMAT, VERSION, convert="v2v_posenet.convert")
    with check_entries(path):
        model, convention = content["model"], Convention(**content["convention"])
        checkpoint = Checkpoint(
            state_dict=cpu_state(content["state_dict"]),
            joints=int(model["joints"]),
            widths=cast("Widths", tuple(int(width) for width in model["widths"])),
            variant=model["variant"],
            convention=convention,
            dataset=str(content["dataset"]),
            skeleton=str(content["skeleton"]),
            cube_mm=float(content["cube_mm"]),
            grid=int(content["grid"]),
            y_up=bool(content["y_up"]),
            max_depth_mm=float(content["max_depth_mm"]),
            extra={key: value for key, value in content.items() if key not in _ENTRIES},
        )
    if checkpoint.variant not in ("gaussian", "integral") or not 0 < checkpoint.cube_mm < 1e5 or checkpoint.grid % 8:
        raise DataError(
            f"has variant {checkpoint.variant!r}, cube {checkpoint.cube_mm} mm and grid {checkpoint.grid}; expected "
            "'gaussian' or 'integral', a positive cube and a grid divisible by 8",
            path=path,
            remedy=AGAIN,
        )
    _check_state(checkpoint.state_dict, checkpoint.joints, checkpoint.widths, path)
    return checkpoint


_ENTRIES = {"format", "version", "state_dict", "model", "convention", "dataset", "skeleton", "cube_mm", "grid"}
_ENTRIES |= {"y_up", "max_depth_mm"}


def _check_state(state: Mapping[str, Tensor], joints: int, widths: Sequence[int], path: Path) -> None:
    """Strict comparison with the network these sizes give, every mismatch listed."""
    import torch

    from v2v_posenet.model import V2VPoseNet

    try:
        with torch.device("meta"):
            expected = V2VPoseNet(joints, cast("Widths", tuple(widths))).state_dict()
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"describes no possible network ({error})", path=path, remedy=AGAIN) from error
    what = f"a network of {joints} joints and widths {tuple(widths)}"
    check_state(state, expected, path, what, "give a checkpoint of V2V-PoseNet with all its layers")


# --- the PyTorch port -------------------------------------------------------------------------------------------------

_PORT_UNITS = {
    "front_layers.0.": "stem.",
    "front_layers.2.": "front.0.",
    "front_layers.3.": "front.1.",
    "front_layers.4.": "front.2.",
    "encoder_decoder.skip_res1.": "skip1.",
    "encoder_decoder.skip_res2.": "skip2.",
    "encoder_decoder.encoder_res1.": "encode1.",
    "encoder_decoder.encoder_res2.": "encode2.",
    "encoder_decoder.mid_res.": "middle.",
    "encoder_decoder.decoder_res2.": "decode2.",
    "encoder_decoder.decoder_res1.": "decode1.",
    "encoder_decoder.decoder_upsample2.": "up2.",
    "encoder_decoder.decoder_upsample1.": "up1.",
    "back_layers.0.": "back.",
    "back_layers.1.": "point1.",
    "back_layers.2.": "point2.",
    "output_layer.": "output.",
}
_PORT_LAYERS = {
    "block.0.": "conv.",
    "block.1.": "norm.",
    "res_branch.0.": "first.conv.",
    "res_branch.1.": "first.norm.",
    "res_branch.3.": "second.conv.",
    "res_branch.4.": "second.norm.",
    "skip_con.0.": "skip.conv.",
    "skip_con.1.": "skip.norm.",
}


def port_key_to_ours(key: str) -> str:
    """The name in :class:`V2VPoseNet` of an entry of the port's state dict, without ``basic_model.`` and ``module.``;
    a key that is none of the port's comes back as it is."""
    for theirs, ours in _PORT_UNITS.items():
        if key.startswith(theirs):
            rest = key[len(theirs) :]
            for layer, name in _PORT_LAYERS.items():
                if rest.startswith(layer):
                    return ours + name + rest[len(layer) :]
            return ours + rest
    return key


def _from_port(content: Any, path: Path) -> tuple[dict[str, Tensor], Variant]:
    """The port's dict, or a bare state dict, to our state dict and the variant its keys show."""
    import torch

    state = content.get("model_state_dict", content.get("state_dict", content)) if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not state or not all(map(torch.is_tensor, state.values())):
        raise DataError(
            "holds no state dict (expected 'model_state_dict' or a dict of tensors)",
            path=path,
            remedy="give an epoch{n}.pth of the port or a bare state dict",
        )
    keys = {key: key.removeprefix("module.") for key in state}
    integral = any(key.startswith("basic_model.") for key in keys.values())
    ours = {
        port_key_to_ours(short.removeprefix("basic_model.").removeprefix("module.")): to_cpu(state[key])
        for key, short in keys.items()
        if not short.startswith("spatial_softmax.pos_")  # constant index grids
    }
    for key in [key for key in ours if key.endswith("running_var")]:  # torch 0.4.0 did not count batches
        ours.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return ours, "integral" if integral else "gaussian"


def _sizes_of(state: Mapping[str, Tensor], path: Path) -> tuple[int, Widths]:
    """J and the four widths, read from the shapes of four convolutions."""
    try:
        stem, low, mid, high, joints = (
            int(state[f"{name}.weight"].shape[0])
            for name in ("stem.conv", "front.0.first.conv", "encode1.first.conv", "encode2.first.conv", "output")
        )
    except (KeyError, IndexError) as error:
        raise DataError(
            f"has no weight for {error}; its first keys are {', '.join(list(map(str, state))[:4])}",
            path=path,
            remedy="give a checkpoint of V2V-PoseNet",
        ) from error
    return joints, (stem, low, mid, high)


def read_foreign(path: str | Path, source: Source = "auto") -> tuple[V2VPoseNet, Variant, str]:
    """The network of a checkpoint of the port or the author, in evaluation mode, its variant and its source.

    Args:
        path: an ``epoch{n}.pth`` of the port (base or integral program), a bare state dict, with or without a
            ``module.`` prefix and the constant buffers, or a torch7 ``model.net``.
        source: ``"auto"`` looks at the bytes and the keys; the others insist.

    Raises:
        DataError: unreadable, of another kind than ``source``, or not a V2V-PoseNet (mismatches are listed).
    """
    path = Path(path)
    found: str
    variant: Variant
    if check_file(path)[:4] == struct.pack("<i", 4):
        state, variant, found = _from_torch7(path), "gaussian", "torch7"
    else:
        state, variant = _from_port(read_torch(path), path)
        found = "port" if variant == "gaussian" else "integral"
    if source not in ("auto", found):
        raise DataError(
            f"is a checkpoint of kind {found!r}, but {source!r} was asked for", path=path, remedy=f"use --from {found}"
        )
    from v2v_posenet.model import V2VPoseNet

    joints, widths = _sizes_of(state, path)
    _check_state(state, joints, widths, path)
    network = V2VPoseNet(joints, widths)
    network.load_state_dict(state)
    return network.eval(), variant, found


def load_reference(path: str | Path, source: Source = "auto") -> nn.Module:
    """The original model from its own checkpoint, in evaluation mode.

    Takes the original's input (B, 1, 88, 88, 88) and gives its output: heat maps (B, J, 44, 44, 44), or for the
    integral program the pair (heat-map logits, coordinates (B, J, 3) in cells). Errors as :func:`read_foreign`.
    """
    from v2v_posenet.model import IntegralV2V

    network, variant, _ = read_foreign(path, source)
    return network if variant == "gaussian" else IntegralV2V(network).eval()


# --- torch7 -----------------------------------------------------------------------------------------------------------
#
# The torch7 binary format, as its public documentation ("serialization") and the loaders of several frameworks have it.
# Little endian. Every value is an int32 tag and a payload:
#   0 nil, no payload            1 number, a double         2 string, int32 length and bytes      5 boolean, an int32
#   3 table: int32 index; if the index is new: int32 count, then count pairs of values
#   4 object: int32 index; if new: a string "V <n>" and a string with the class name (old files: the class name only),
#     then the content. A tensor has int32 dimensions, int64 sizes, int64 strides, int64 offset (from 1), and its
#     storage (a value: object or nil); a storage has an int64 count and the raw elements; any other class has a table
#   6 function: int32 size, bytes, a value; 7 and 8: int32 index before that. We skip the bytes.

_T7_STORAGES = {
    "Float": "<f4", "Cuda": "<f4", "Double": "<f8", "CudaDouble": "<f8", "Half": "<f2", "CudaHalf": "<f2",
    "Long": "<i8", "CudaLong": "<i8", "Int": "<i4", "CudaInt": "<i4", "Short": "<i2", "CudaShort": "<i2",
    "Char": "<i1", "CudaChar": "<i1", "Byte": "<u1", "CudaByte": "<u1",
}  # fmt: skip
_T7_MAX_DEPTH = 64  # the author's network is about 25 deep


@dataclass
class Torch7Object:
    """An object of a class we do not interpret, such as ``nn.Sequential``, with its fields."""

    class_name: str
    fields: dict[Any, Any]


class Torch7Reader:
    """Reads one value from torch7 bytes without running anything; damaged bytes raise :class:`DataError`."""

    def __init__(self, data: bytes, path: str | Path = "torch7 data") -> None:
        self.data, self.path, self.position = data, path, 0
        self.seen: dict[int, Any] = {}

    def bad(self, message: str) -> DataError:
        remedy = "download the file again; it must be saved by torch7 in binary form on a 64-bit machine"
        return DataError(f"{message} at byte {self.position}", path=self.path, remedy=remedy)

    def take(self, count: int, what: str) -> bytes:
        if count < 0 or count > len(self.data) - self.position:
            raise self.bad(f"{what} of {count} bytes does not fit in a file of {len(self.data)} bytes")
        self.position += count
        return self.data[self.position - count : self.position]

    def int32(self) -> int:
        return int.from_bytes(self.take(4, "an int32"), "little", signed=True)

    def int64s(self, count: int) -> list[int]:
        return np.frombuffer(self.take(8 * count, "a list of int64"), "<i8").tolist()

    def text(self) -> str:
        return self.take(self.int32(), "a string").decode("latin-1")

    def read(self, depth: int = 0) -> Any:
        """The next value: None, float, str, bool, dict, numpy array or :class:`Torch7Object`."""
        if depth > _T7_MAX_DEPTH:
            raise self.bad(f"values are nested deeper than {_T7_MAX_DEPTH} levels")
        tag = self.int32()
        if tag == 0:
            return None
        if tag == 1:
            return struct.unpack("<d", self.take(8, "a number"))[0]
        if tag == 2:
            return self.text()
        if tag == 5:
            return self.int32() == 1
        if tag == 6:
            return self.function(depth)
        if tag not in (3, 4, 7, 8):
            raise self.bad(f"unknown type tag {tag}")
        index = self.int32()
        if index in self.seen:
            return self.seen[index]
        if tag == 3:
            return self.table(index, depth)
        if tag == 4:
            return self.object(index, depth)
        self.seen[index] = None
        return self.function(depth)

    def function(self, depth: int) -> None:
        self.take(self.int32(), "a function")
        self.read(depth + 1)

    def table(self, index: int, depth: int) -> dict[Any, Any]:
        table: dict[Any, Any] = {}
        self.seen[index] = table  # before its content, which may refer to it
        count = self.int32()
        if not 0 <= count <= len(self.data) - self.position:
            raise self.bad(f"a table of {count} entries does not fit in the file")
        for _ in range(count):
            key, value = self.read(depth + 1), self.read(depth + 1)
            if not isinstance(key, (str, float, bool)):
                raise self.bad(f"a table has a key of type {type(key).__name__}")
            table[int(key) if isinstance(key, float) and key.is_integer() else key] = value
        return table

    def object(self, index: int, depth: int) -> Any:
        name = self.text()
        if name.startswith("V "):
            name = self.text()
        kind = name.removeprefix("torch.")
        if kind.removesuffix("Storage") in _T7_STORAGES and kind.endswith("Storage"):
            dtype = np.dtype(_T7_STORAGES[kind.removesuffix("Storage")])
            (count,) = self.int64s(1)
            self.seen[index] = np.frombuffer(self.take(count * dtype.itemsize, "a storage"), dtype)
        elif kind.removesuffix("Tensor") in _T7_STORAGES and kind.endswith("Tensor"):
            self.seen[index] = self.tensor(depth)
        else:
            thing = self.seen[index] = Torch7Object(name, {})
            fields = self.read(depth + 1)
            if not isinstance(fields, dict):
                raise self.bad(f"an object of class {name!r} has no table of fields")
            thing.fields = fields
        return self.seen[index]

    def tensor(self, depth: int) -> np.ndarray:
        """A view of the storage, so that a small file cannot ask for a lot of memory."""
        dimensions = self.int32()
        if not 0 <= dimensions <= 8:
            raise self.bad(f"a tensor has {dimensions} dimensions")
        shape, strides, (offset,) = self.int64s(dimensions), self.int64s(dimensions), self.int64s(1)
        storage = self.read(depth + 1)
        if storage is None or dimensions == 0:
            return np.zeros(0, np.float32)
        if not isinstance(storage, np.ndarray):
            raise self.bad("a tensor has no storage")
        last = offset - 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        elements = 1
        for size in shape:
            elements *= max(size, 0)
        if offset < 1 or min(shape) < 1 or min(strides) < 0 or last >= storage.size or elements > storage.size:
            raise self.bad(f"a tensor of shape {shape}, strides {strides} does not fit its storage of {storage.size}")
        byte_strides = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[offset - 1 :], shape, byte_strides, writeable=False)


_T7_CONTAINERS = ("Sequential", "ConcatTable", "ParallelTable", "DataParallelTable")
_T7_PLAIN = ("Identity", "ReLU", "CAddTable", "VolumetricMaxPooling")  # no weights
_T7_CONVOLUTIONS = ("VolumetricConvolution", "VolumetricConvolutionMM", "VolumetricFullConvolution")
# Depth-first order of the author's nesting: 0 stem, 1 pool, 2-4 residuals, 5 the encoder-decoder and the back part (a
# pair of branch and skip 1, sum, residual, two 1^3 blocks), 6 output. A branch stands before its skip.
_T7_ORDER = (
    *("stem", "front.0", "front.1", "front.2", "encode1", "encode2", "middle", "decode2", "up2", "skip2"),
    *("decode1", "up1", "skip1", "back", "point1", "point2", "output"),
)


def _torch7_layers(module: Any, path: Path, depth: int = 0) -> list[Torch7Object]:
    """The convolutions and batch norms of nested containers, depth first."""
    if not isinstance(module, Torch7Object) or depth > _T7_MAX_DEPTH:
        raise DataError(
            f"holds a {type(module).__name__} where a torch7 module was expected", path=path,
            remedy="give the model.net that the author's program saves",
        )  # fmt: skip
    name = module.class_name.rpartition(".")[2]
    if name in _T7_CONTAINERS:
        children = module.fields.get("modules")
        if not isinstance(children, dict) or not children or set(children) != set(range(1, len(children) + 1)):
            raise DataError(f"has a {module.class_name} without a numbered list of modules", path=path, remedy=AGAIN)
        if name == "DataParallelTable":  # the same network once a GPU
            children = {1: children[1]}
        return [leaf for i in sorted(children) for leaf in _torch7_layers(children[i], path, depth + 1)]
    if name in _T7_CONVOLUTIONS or name.endswith("BatchNormalization"):
        return [module]
    if name in _T7_PLAIN:
        return []
    raise DataError(
        f"has a layer of class {module.class_name!r}, which V2V-PoseNet does not use", path=path,
        remedy="give the model.net that the author's program saves",
    )  # fmt: skip


def _torch7_tensor(layer: Torch7Object, name: str, path: Path) -> Tensor:
    import torch

    value = layer.fields.get(name)
    if not isinstance(value, np.ndarray) or value.size == 0 or value.dtype.kind != "f":
        raise DataError(f"has a {layer.class_name} without a tensor {name!r}", path=path, remedy=AGAIN)
    return torch.from_numpy(value.astype(np.float32))


def _torch7_convolution(layer: Torch7Object, path: Path) -> dict[str, Tensor]:
    """Weight and bias, the kernel's axes turned from the author's [z, y, x] to our [x, y, z]."""
    weight = _torch7_tensor(layer, "weight", path)
    if weight.ndim == 2:  # VolumetricConvolutionMM keeps a matrix
        try:
            kernel = [int(layer.fields[edge]) for edge in ("kT", "kH", "kW")]
            weight = weight.reshape(weight.shape[0], -1, *kernel)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"has a {layer.class_name} of unknown kernel size", path=path, remedy=AGAIN) from error
    if weight.ndim != 5:
        raise DataError(f"has a {layer.class_name} with a {weight.ndim}-D weight", path=path, remedy=AGAIN)
    return {"weight": weight.permute(0, 1, 4, 3, 2).contiguous(), "bias": _torch7_tensor(layer, "bias", path)}


def _torch7_norm(layer: Torch7Object, path: Path) -> dict[str, Tensor]:
    import torch

    if abs(float(layer.fields.get("eps", 1e-5)) - 1e-5) > 1e-9:
        raise DataError(f"has a batch norm with eps {layer.fields['eps']}, expected 1e-5", path=path)
    values = {name: _torch7_tensor(layer, name, path) for name in ("weight", "bias", "running_mean", "running_var")}
    return {**values, "num_batches_tracked": torch.tensor(0)}


def _from_torch7(path: Path) -> dict[str, Tensor]:
    """The author's layers, taken depth first, under our names."""
    layers = iter(_torch7_layers(Torch7Reader(path.read_bytes(), path).read(), path))
    state: dict[str, Tensor] = {}

    def put(name: str, kind: Literal["conv", "norm"]) -> None:
        layer = next(layers, None)
        found = "the end" if layer is None else layer.class_name
        if layer is None or layer.class_name.endswith("BatchNormalization") != (kind == "norm"):
            raise DataError(
                f"has {found} where the {kind} layer of {name!r} was expected", path=path,
                remedy="give the model.net that the author's program saves",
            )  # fmt: skip
        values = _torch7_norm(layer, path) if kind == "norm" else _torch7_convolution(layer, path)
        state.update({f"{name}.{key}": value for key, value in values.items()})

    for unit in _T7_ORDER:
        if unit == "output":
            put(unit, "conv")
            continue
        residual = unit not in ("stem", "point1", "point2", "up1", "up2")
        for part in ("first.", "second.") if residual else ("",):
            put(f"{unit}.{part}conv", "conv")
            put(f"{unit}.{part}norm", "norm")
        if residual:
            outputs, inputs = state[f"{unit}.first.conv.weight"].shape[:2]
            if outputs != inputs:
                put(f"{unit}.skip.conv", "conv")
                put(f"{unit}.skip.norm", "norm")
    if next(layers, None) is not None:
        raise DataError("has more layers than V2V-PoseNet", path=path, remedy="check which network it holds")
    return state


# --- command line -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(
        ConvertConfig,
        prog="python -m v2v_posenet.convert",
        description="Converts a checkpoint of the PyTorch port or of the author (torch7) to ours.",
        argv=argv,
        aliases={"from": "source", "cube": "cube_mm"},
    ).options
    network, variant, source = read_foreign(args.input, args.source)
    spec = DATASETS[args.dataset]
    if network.joints != spec.joints:
        raise DataError(
            f"has {network.joints} joints, but {args.dataset} has {spec.joints}", path=args.input,
            remedy="give the --dataset it was trained on",
        )  # fmt: skip
    checkpoint = checkpoint_of(
        network, variant=variant, convention=CONVENTIONS[args.convention], dataset=args.dataset,
        skeleton=spec.skeleton, cube_mm=args.cube_mm or spec.cube_mm, source=source,
    )  # fmt: skip
    save_checkpoint(args.output, checkpoint)
    print(f"{args.output}: {variant}, {spec.joints} joints, cube {checkpoint.cube_mm:g} mm, from {source} {args.input}")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
