"""Checkpoints: the port's, the author's (torch7), ours, and everything that is none of them."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.errors import DataError, MissingFileError
from tests.golden.fill import fill_state_dict
from tests.v2v_posenet.test_model import FOLDER, TINY, fixture, occupancy, relative
from v2v_posenet import convert
from v2v_posenet.config import CONVENTIONS
from v2v_posenet.convert import (
    Checkpoint,
    Torch7Object,
    Torch7Reader,
    checkpoint_of,
    load_checkpoint,
    load_reference,
    read_foreign,
    save_checkpoint,
)
from v2v_posenet.model import IntegralV2V, V2VPoseNet


def reference_state(name: str) -> dict[str, torch.Tensor]:
    keys = json.loads((FOLDER / f"{name}.keys.json").read_text())
    return {key: torch.from_numpy(np.asarray(value)) for key, value in fill_state_dict(keys).items()}


def tiny_checkpoint(seed: int = 0, **extra: Any) -> Checkpoint:
    torch.manual_seed(seed)
    network = V2VPoseNet(21, TINY, init="author")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return checkpoint_of(
        network,
        variant="gaussian",
        convention=CONVENTIONS["zero"],
        dataset="msra",
        skeleton="msra",
        cube_mm=200,
        **extra,
    )


# --- the port ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["epoch", "bare", "module"])
def test_port_checkpoint(tmp_path: Path, wrap: str) -> None:
    state = reference_state("net_v2v")
    content: dict[str, Any] = dict(state)
    if wrap == "epoch":
        content = {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}, "epoch": 14}
    if wrap == "module":
        content = {f"module.{key}": value for key, value in state.items()}
    torch.save(content, tmp_path / "epoch14.pth")
    model = load_reference(tmp_path / "epoch14.pth")
    assert not model.training
    with torch.inference_mode():
        out = model(occupancy("net_v2v/small_input", (2, 1, 24, 24, 24), 0.05))
    assert relative(out, fixture("net_v2v.npz")["small_eval"], f"port checkpoint, {wrap}") < 1e-4


@pytest.mark.parametrize("buffers", [True, False])
def test_integral_checkpoint(tmp_path: Path, buffers: bool) -> None:
    state = reference_state("net_integral")
    if buffers:
        derived = json.loads((FOLDER / "net_integral.derived.json").read_text())
        state |= {key: torch.zeros(entry["shape"]) for key, entry in derived.items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "epoch3.pth")
    model = load_reference(tmp_path / "epoch3.pth")
    assert isinstance(model, IntegralV2V)
    with torch.inference_mode():
        logits, coords = model(occupancy("net_integral/input", (1, 1, 88, 88, 88), 0.02))
    golden = fixture("net_integral.npz")
    assert relative(logits[..., ::4, ::4, ::4], golden["heatmap_stride4"], "integral checkpoint") < 1e-4
    assert np.abs(coords.numpy() - golden["coord"]).max() < 1e-3
    with pytest.raises(DataError, match=r"of kind 'integral', but 'port' was asked for.*--from integral"):
        load_reference(tmp_path / "epoch3.pth", source="port")


def test_any_number_of_joints_and_old_files_without_batch_counts(tmp_path: Path) -> None:
    state = {key: value for key, value in reference_state("net_v2v").items() if "num_batches" not in key}
    state["output_layer.weight"], state["output_layer.bias"] = torch.randn(5, 32, 1, 1, 1), torch.randn(5)
    torch.save(state, tmp_path / "j5.pth", _use_new_zipfile_serialization=False)  # the port's own torch wrote this kind
    network, variant, source = read_foreign(tmp_path / "j5.pth")
    assert (network.joints, variant, source) == (5, "gaussian", "port")
    assert torch.equal(network.output.bias, state["output_layer.bias"])


def test_mismatches_are_listed(tmp_path: Path) -> None:
    state = reference_state("net_v2v")
    del state["back_layers.1.block.0.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["encoder_decoder.mid_res.res_branch.0.weight"] = torch.zeros(128, 128, 1, 1, 1)
    state["back_layers.2.block.1.bias"] = torch.full((32,), float("nan"))
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(DataError) as caught:
        load_reference(tmp_path / "bad.pth")
    message = str(caught.value)
    assert "missing point1.conv.bias" in message
    assert "unexpected extra.weight" in message
    assert "middle.first.conv.weight has shape (128, 128, 1, 1, 1), expected (128, 128, 3, 3, 3)" in message
    assert "point2.norm.bias is not finite" in message
    assert "all its layers" in message


def test_long_lists_of_mismatches_are_cut(tmp_path: Path) -> None:
    state = reference_state("net_v2v")
    torch.save({k: v for k, v in state.items() if not k.startswith("back_layers.0")}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match="and 6 more"):
        load_reference(tmp_path / "bad.pth")


def test_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"has no weight for .*stem.conv.weight.*its first keys are fc.weight"):
        load_reference(tmp_path / "other.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(DataError, match="holds no state dict"):
        load_reference(tmp_path / "epoch.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds no state dict"):
        load_reference(tmp_path / "list.pth")


# --- torch7 -----------------------------------------------------------------------------------------------------------


class Torch7Writer:
    """Writes the public torch7 binary format: what Torch7Reader documents, the other way round."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.index = 0

    def pack(self, layout: str, *values: Any) -> None:
        self.out += struct.pack("<" + layout, *values)

    def text(self, value: str) -> None:
        self.pack("i", len(value))
        self.out += value.encode()

    def new(self, tag: int) -> None:
        self.index += 1
        self.pack("ii", tag, self.index)

    def write(self, value: Any) -> None:
        if value is None:
            self.pack("i", 0)
        elif isinstance(value, bool):
            self.pack("ii", 5, value)
        elif isinstance(value, (int, float)):
            self.pack("id", 1, value)
        elif isinstance(value, str):
            self.pack("i", 2)
            self.text(value)
        elif isinstance(value, dict):
            self.new(3)
            self.pack("i", len(value))
            for key, item in value.items():
                self.write(key)
                self.write(item)
        elif isinstance(value, Torch7Object):
            self.new(4)
            self.text("V 1")
            self.text(value.class_name)
            self.write(value.fields)
        else:
            self.tensor(value)

    def tensor(self, value: np.ndarray, kind: str = "Cuda") -> None:
        value = np.ascontiguousarray(value, np.float32)
        self.new(4)
        self.text("V 1")
        self.text(f"torch.{kind}Tensor")
        self.pack("i", value.ndim)
        self.pack(f"{value.ndim}q", *value.shape)
        self.pack(f"{value.ndim}q", *(stride // 4 for stride in value.strides))
        self.pack("q", 3)  # the storage starts two elements earlier
        self.new(4)
        self.text("V 1")
        self.text(f"torch.{kind}Storage")
        self.pack("q", value.size + 2)
        self.out += struct.pack("<2f", np.nan, np.nan) + value.tobytes()


def to_torch7(value: Any) -> bytes:
    writer = Torch7Writer()
    writer.write(value)
    return bytes(writer.out)


class Author:
    """The author's nesting, with the weights of a network of ours whose kernels are turned to [z, y, x]."""

    def __init__(self, network: V2VPoseNet, package: str = "cudnn", matrix: bool = False) -> None:
        self.network, self.package, self.matrix = network, package, matrix

    def conv(self, layer: nn.Conv3d | nn.ConvTranspose3d) -> Torch7Object:
        weight = layer.weight.detach().permute(0, 1, 4, 3, 2).contiguous().numpy()
        transposed = isinstance(layer, nn.ConvTranspose3d)
        kind = "VolumetricFullConvolution" if transposed else "VolumetricConvolution"
        fields = {"bias": layer.bias.detach().numpy(), "gradInput": None, "dT": 1, "train": True}
        if self.matrix and not transposed:
            fields |= dict(zip(("kT", "kH", "kW"), weight.shape[2:], strict=True))
            kind, weight = kind + "MM", weight.reshape(weight.shape[0], -1)
        return Torch7Object(f"{self.package}.{kind}", {"weight": weight, **fields})

    def norm(self, layer: nn.BatchNorm3d) -> Torch7Object:
        names = ("weight", "bias", "running_mean", "running_var")
        fields: dict[Any, Any] = {name: getattr(layer, name).detach().numpy() for name in names}
        return Torch7Object("nn.VolumetricBatchNormalization", {**fields, "eps": 1e-5, "momentum": 0.1, "affine": True})

    def container(self, kind: str, *modules: Torch7Object) -> Torch7Object:
        return Torch7Object(f"nn.{kind}", {"modules": {i + 1: m for i, m in enumerate(modules)}, "train": False})

    def leaf(self, kind: str) -> Torch7Object:
        return Torch7Object(f"nn.{kind}", {"inplace": True, "output": None})

    def unit(self, unit: Any) -> Torch7Object:
        parts = self.conv(unit.conv), self.norm(unit.norm), self.leaf("ReLU")
        return self.container("Sequential", *parts)

    def residual(self, unit: Any) -> Torch7Object:
        first, second, skip = unit.first, unit.second, unit.skip
        parts = self.conv(first.conv), self.norm(first.norm), self.leaf("ReLU"), self.conv(second.conv)
        main = self.container("Sequential", *parts, self.norm(second.norm))
        identity = isinstance(skip, nn.Identity)
        other = self.leaf("Identity") if identity else self.container("Sequential", *self.skip(skip))
        return self.container(
            "Sequential", self.container("ConcatTable", main, other), self.leaf("CAddTable"), self.leaf("ReLU")
        )

    def skip(self, unit: Any) -> tuple[Torch7Object, Torch7Object]:
        return self.conv(unit.conv), self.norm(unit.norm)

    def model(self) -> Torch7Object:
        net, res = self.network, self.residual
        pool, add = self.leaf("VolumetricMaxPooling"), self.leaf("CAddTable")
        deep = pool, res(net.encode2), res(net.middle), res(net.decode2), self.unit(net.up2)
        inner = self.container("ConcatTable", self.container("Sequential", *deep), res(net.skip2))
        shallow = pool, res(net.encode1), inner, add, res(net.decode1), self.unit(net.up1)
        outer = self.container("ConcatTable", self.container("Sequential", *shallow), res(net.skip1))
        back = self.container("Sequential", outer, add, res(net.back), self.unit(net.point1), self.unit(net.point2))
        front = [self.unit(net.stem), pool, *(res(unit) for unit in net.front)]
        return self.container("Sequential", *front, back, self.conv(net.output))


def random_network(joints: int = 4) -> V2VPoseNet:
    torch.manual_seed(5)
    network = V2VPoseNet(joints, TINY)
    for name, value in network.state_dict().items():
        if "num_batches" not in name:
            (nn.init.uniform_(value, 0.5, 1.5) if "running_var" in name else nn.init.normal_(value, std=0.5))
    return network.eval()


@pytest.mark.parametrize(("package", "matrix", "parallel"), [("cudnn", False, False), ("nn", True, True)])
def test_torch7_network(tmp_path: Path, package: str, matrix: bool, parallel: bool) -> None:
    """The author's program runs the kernels of its file on [z, y, x] volumes; ours must agree on [x, y, z] ones."""
    network = random_network()
    author = Author(network, package, matrix)
    root = author.model()
    if parallel:
        root = author.container("DataParallelTable", root, author.model())
    path = tmp_path / "model.net"
    path.write_bytes(to_torch7(root))
    converted, variant, source = read_foreign(path)
    assert (variant, source, converted.widths, converted.joints) == ("gaussian", "torch7", TINY, 4)

    zyx = V2VPoseNet(4, TINY).eval()  # the file's kernels as they are: the author's own evaluation
    stored = {k: v.permute(0, 1, 4, 3, 2) if v.ndim == 5 else v for k, v in network.state_dict().items()}
    zyx.load_state_dict(stored)
    grid = (torch.rand(1, 1, 16, 24, 8) < 0.1).float()
    with torch.inference_mode():
        ours = converted(grid)
        theirs = zyx(grid.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        unturned = zyx(grid)
    print(f"torch7 {package}: max diff {(ours - theirs).abs().max():.3g}")
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert (ours - unturned).abs().max() > 0.05 * theirs.abs().max()
    assert isinstance(load_reference(path, source="torch7"), V2VPoseNet)


def test_torch7_values() -> None:
    value = {"a": 1.5, 2: "two", "yes": True, "none": None, "list": {1: "x", 2: "y"}}
    assert Torch7Reader(to_torch7(value)).read() == value
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(Torch7Reader(to_torch7(array)).read(), array)


def test_torch7_shared_and_recursive_objects() -> None:
    writer = Torch7Writer()
    writer.new(3)
    writer.pack("i", 2)
    writer.write("self")
    writer.pack("ii", 3, 1)
    writer.write("function")
    writer.new(8)
    writer.pack("i", 5)
    writer.out += b"\x1bLua!"
    writer.write({})
    value = Torch7Reader(bytes(writer.out)).read()
    assert value["self"] is value
    assert value["function"] is None
    old = struct.pack("<ii", 4, 1) + struct.pack("<i", 9) + b"nn.Module" + struct.pack("<iii", 3, 2, 0)
    assert Torch7Reader(old).read() == Torch7Object("nn.Module", {})  # without a version string
    plain = struct.pack("<iii", 6, 0, 0)
    assert Torch7Reader(plain).read() is None


def tensor_bytes(shape: tuple[int, ...], strides: tuple[int, ...], offset: int, count: int) -> bytes:
    writer = Torch7Writer()
    writer.new(4)
    writer.text("V 1")
    writer.text("torch.FloatTensor")
    writer.pack("i", len(shape))
    writer.pack(f"{len(shape)}q{len(strides)}qq", *shape, *strides, offset)
    writer.new(4)
    writer.text("V 1")
    writer.text("torch.FloatStorage")
    writer.pack("q", count)
    writer.out += bytes(4 * 6)
    return bytes(writer.out)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an int32 of 4 bytes does not fit in a file of 0 bytes at byte 0"),
        (struct.pack("<i", 99), "unknown type tag 99"),
        (struct.pack("<ii", 2, 1000), "a string of 1000 bytes does not fit"),
        (struct.pack("<ii", 2, -1), "a string of -1 bytes does not fit"),
        (struct.pack("<iii", 3, 1, 2**30), "a table of 1073741824 entries does not fit"),
        (struct.pack("<iii", 3, 1, -1), "a table of -1 entries does not fit"),
        (struct.pack("<iiii", 3, 1, 1, 0) + struct.pack("<i", 0), "a table has a key of type NoneType"),
        (b"".join(struct.pack("<iiiid", 3, i, 1, 1, 1.0) for i in range(1, 80)), "nested deeper than 64 levels"),
        (tensor_bytes((2, 3), (3, 1), 2, 6), "shape [2, 3], strides [3, 1] does not fit its storage of 6"),
        (tensor_bytes((2, 3), (3, 1), 0, 6), "does not fit its storage"),
        (tensor_bytes((2, 3), (3, -1), 1, 6), "does not fit its storage"),
        (tensor_bytes((2**40,), (0,), 1, 6), "does not fit its storage"),
        (tensor_bytes((0, 3), (3, 1), 1, 6), "does not fit its storage"),
        (tensor_bytes((2, 3), (3, 1), 1, 2**60), "a storage of 4611686018427387904 bytes does not fit"),
        (tensor_bytes((1,) * 9, (1,) * 9, 1, 6), "a tensor has 9 dimensions"),
        (
            struct.pack("<ii", 4, 1) + struct.pack("<i", 4) + b"nn.X" + struct.pack("<id", 1, 2.0),
            "class 'nn.X' has no table of fields",
        ),
        (
            struct.pack("<ii", 4, 1)
            + struct.pack("<i", 17)
            + b"torch.FloatTensor"
            + struct.pack("<iqqq", 1, 1, 1, 1)
            + struct.pack("<ii", 5, 1),
            "a tensor has no storage",
        ),
    ],
)
def test_hostile_torch7_bytes(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        Torch7Reader(data, "model.net").read()
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.net: ")
    assert "saved by torch7 in binary form" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_damaged_torch7_files_raise_nothing_else(noise: bytes, position: int, truncate: bool) -> None:
    data = bytearray(to_torch7({"a": np.zeros((2, 2)), "b": Torch7Object("nn.X", {1: "t"})}))
    position = min(position, len(data))
    data = data[:position] if truncate else data[:position] + noise + data[position + len(noise) :]
    with contextlib.suppress(DataError):
        Torch7Reader(bytes(data)).read()


def test_torch7_of_another_network(tmp_path: Path) -> None:
    author = Author(random_network())
    path = tmp_path / "model.net"

    def message(root: Any) -> str:
        path.write_bytes(to_torch7(root))
        with pytest.raises(DataError) as caught:
            read_foreign(path)
        assert str(caught.value).startswith(str(path))
        return str(caught.value)

    root = author.model()
    modules = root.fields["modules"]
    assert "layer of class 'nn.Linear', which V2V-PoseNet does not use" in message(
        author.container("Sequential", author.leaf("Linear"))
    )
    assert "holds a dict where a torch7 module was expected" in message(
        Torch7Object("nn.Sequential", {"modules": {1: {"a": 1}}})
    )
    assert "without a numbered list of modules" in message(Torch7Object("nn.Sequential", {"modules": {2: root}}))
    assert "has more layers than V2V-PoseNet" in message(author.container("Sequential", root, modules[7]))
    assert "has nn.VolumetricBatchNormalization where the conv layer of 'output'" in message(
        author.container("Sequential", *[modules[i] for i in range(1, 7)], author.norm(nn.BatchNorm3d(2)))
    )
    assert "has the end where the conv layer of 'output'" in message(
        author.container("Sequential", *[modules[i] for i in range(1, 7)])
    )
    swapped = [modules[i] for i in (1, 2, 4, 3, 5, 6, 7)]
    assert "does not fit a network" in message(author.container("Sequential", *swapped))

    stem = modules[1].fields["modules"]
    bias, eps = stem[1].fields.pop("bias"), stem[2].fields["eps"]
    assert "without a tensor 'bias'" in message(root)
    stem[1].fields["bias"] = bias
    stem[2].fields["eps"] = 1e-3
    assert "batch norm with eps 0.001, expected 1e-5" in message(root)
    stem[2].fields["eps"] = eps
    stem[1].fields["weight"] = np.zeros((2, 343))
    assert "of unknown kernel size" in message(root)
    stem[1].fields["weight"] = np.zeros((2, 7, 7))
    assert "with a 3-D weight" in message(root)


# --- our format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "lightning.ckpt"])
def test_own_checkpoint_round_trip(tmp_path: Path, name: str) -> None:
    checkpoint = tiny_checkpoint(epoch=7)
    path = tmp_path / name
    if name.startswith("lightning"):
        torch.save({"epoch": 1, "state_dict": {}, "handpose": checkpoint.as_dict()}, path)
    else:
        save_checkpoint(path, checkpoint)
    again = load_checkpoint(path)
    assert again.state_dict.keys() == checkpoint.state_dict.keys()
    assert all(torch.equal(again.state_dict[key], value) for key, value in checkpoint.state_dict.items())
    for field in ("joints", "widths", "variant", "convention", "dataset", "skeleton", "cube_mm", "grid", "extra"):
        assert getattr(again, field) == getattr(checkpoint, field), field
    assert again.extra == {"epoch": 7}
    network = again.build()
    assert not network.training
    assert torch.equal(network.output.bias, checkpoint.state_dict["output.bias"])


def test_checkpoint_is_a_copy() -> None:
    network = V2VPoseNet(2, TINY)
    checkpoint = checkpoint_of(
        network, variant="integral", convention=CONVENTIONS["port"], dataset="msra", skeleton="msra", cube_mm=200
    )
    with torch.no_grad():
        network.output.bias.add_(1)
    assert not checkpoint.state_dict["output.bias"].any()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    with pytest.raises(MissingFileError, match="no such checkpoint file"):
        load_checkpoint(path)
    save_checkpoint(path, tiny_checkpoint())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot be read as a (PyTorch checkpoint|safetensors file).*again"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        load_checkpoint(path)
    path.write_bytes(b"\n<!DOCTYPE html><html>sign in</html>")
    with pytest.raises(DataError, match=r"is a web page, not a checkpoint.*download the file itself"):
        load_checkpoint(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match=r"Git LFS pointer.*git lfs pull"):
        load_checkpoint(path)


def test_absurdly_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt"
    save_checkpoint(path, tiny_checkpoint())
    monkeypatch.setattr("shared.checkpoints.MAX_FILE_BYTES", 1000)
    with pytest.raises(DataError, match="more than the 1000 that a checkpoint may have"):
        load_checkpoint(path)


class Touch:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    torch.save({"model_state_dict": Touch(trap)}, tmp_path / "evil.pth")
    for load in (load_checkpoint, load_reference):
        with pytest.raises(DataError, match="cannot be read as a PyTorch checkpoint"):
            load(tmp_path / "evil.pth")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "handpose/handoccnet"}, "is a 'handpose/handoccnet' checkpoint, expected 'handpose/v2v_posenet'"),
        ({"version": 2}, "has format version 2, this program reads version 1"),
        ({"model": {"joints": 21}}, "malformed entry (KeyError: 'widths')"),
        ({"convention": {"name": "port", "pixel": 3}}, "malformed entry (TypeError"),
        ({"cube_mm": "big"}, "malformed entry (ValueError"),
        ({"state_dict": {"a": 3}}, "malformed entry (AttributeError"),
        ({"cube_mm": -1.0}, "cube -1.0 mm"),
        ({"grid": 90}, "grid 90"),
        ({"model": {"joints": 21, "widths": [2, 3, 4, 5], "variant": "both"}}, "has variant 'both'"),
        (
            {"model": {"joints": 20, "widths": [2, 3, 4, 5], "variant": "gaussian"}},
            "does not fit a network of 20 joints",
        ),
        ({"model": {"joints": 0, "widths": [2, 3, 4, 5], "variant": "gaussian"}}, "describes no possible network"),
    ],
)
def test_wrong_content(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "net.pt"
    torch.save({**tiny_checkpoint().as_dict(), **change}, path)
    with pytest.raises(DataError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_foreign_checkpoints_point_to_the_converter(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {}}, tmp_path / "epoch1.pth")
    with pytest.raises(DataError, match=r"is not a handpose checkpoint.*python -m v2v_posenet.convert"):
        load_checkpoint(tmp_path / "epoch1.pth")


# --- command line -----------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "model.net", tmp_path / "out" / "net.safetensors"
    network = random_network(16)
    source.write_bytes(to_torch7(Author(network).model()))
    words = ["--input", str(source), "--output", str(target), "--convention", "author"]
    assert convert.main([*words, "--dataset", "icvl", "--from", "torch7"]) == 0
    assert "gaussian, 16 joints, cube 200 mm, from torch7" in capsys.readouterr().out
    checkpoint = load_checkpoint(target)
    assert (checkpoint.convention, checkpoint.skeleton) == (CONVENTIONS["author"], "icvl")
    assert checkpoint.extra == {"source": "torch7"}
    assert torch.equal(checkpoint.state_dict["stem.conv.weight"], network.stem.conv.weight)
    convert.main([*words, "--dataset", "icvl", "--cube", "180"])
    assert load_checkpoint(target).cube_mm == 180
    with pytest.raises(DataError, match="has 16 joints, but nyu has 14"):
        convert.main([*words, "--dataset", "nyu"])
    with pytest.raises(DataError, match="use --from torch7"):
        convert.main([*words, "--dataset", "icvl", "--from", "port"])
    with pytest.raises(SystemExit):  # the convention is never guessed
        convert.main([*words[:4], "--dataset", "icvl"])
