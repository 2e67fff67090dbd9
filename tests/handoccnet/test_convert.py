"""Reading the author's snapshots, ImageNet weights and our own checkpoints; and refusing everything else."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handoccnet.convert import (
    FORMAT,
    checkpoint_of,
    load_backbone,
    load_checkpoint,
    load_reference,
    main,
    read_reference,
    reference_key_to_ours,
    save_checkpoint,
)
from handoccnet.model import HandOccNet
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano, mirror_model, save_npz
from tests.handoccnet.snapshots import (
    GOLDEN,
    TINY,
    golden_hand,
    golden_network,
    golden_state,
    grids,
    mano_buffers,
    max_diff,
    tiny,
    write_snapshot,
)

PREFIX = "module.regressor.mano_regHead.mano_layer."


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return golden_network(tmp_path_factory.mktemp("snapshot"))


# --- a snapshot of a tiny network, so that each test is quick ---------------------------------------------------------


def their_names(network: HandOccNet) -> dict[str, Tensor]:
    """A tiny network as the original would save it: names and shapes turned back, constants added."""
    names = {}
    for key in golden_state():
        ours = reference_key_to_ours(key.removeprefix("module."))
        if ours:
            names[ours] = key
    size = network.image_size // 8
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        theirs = names[name]
        if theirs.endswith("_embedding"):
            value = value.T.reshape(1, -1, size, size)
        elif ".layers." in name and ".encode_" in theirs and value.ndim == 2:
            value = value[:, :, None, None]
        state[theirs] = value.clone()
    buffers = {PREFIX + key: value for key, value in mano_buffers(load_mano("standin")).items()}
    return {**state, **buffers, **{f"module.regressor.hand_regHead.{k}": v for k, v in grids(size).items()}}


SIZES: dict[str, Any] = {**TINY, "blocks": [3, 4, 6, 3], "image_size": 256}  # the blocks and depth of the published one


@pytest.fixture(scope="module")
def small() -> HandOccNet:
    return tiny(**SIZES)


@pytest.fixture
def state(small: HandOccNet) -> dict[str, Tensor]:
    return their_names(small)


def read(path: Path, **changes: Any) -> HandOccNet:
    return read_reference(path, mano="standin", **{**SIZES, **changes})[0]


def test_every_key_of_a_snapshot_has_one_place_of_ours(reference: nn.Module) -> None:
    keys = [key.removeprefix("module.") for key in golden_state()]
    ours = [reference_key_to_ours(key) for key in keys]
    unnamed = {key.rpartition(".")[2] for key, name in zip(keys, ours, strict=True) if name is None}
    assert unnamed == {"uu", "vv", *(key.removeprefix(PREFIX) for key in golden_state() if key.startswith(PREFIX))}
    named = [name for name in ours if name is not None]
    assert len(set(named)) == len(named)
    assert set(named) == set(reference.network.state_dict())  # type: ignore[union-attr]


def test_weights_come_back_as_they_were(small: HandOccNet, state: dict[str, Tensor], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the hand inside is the user's
        loaded = read(write_snapshot(tmp_path / "snapshot_1.pth.tar", state))
    assert not loaded.training
    for key, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_entries_of_later_snapshots_are_tolerated(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["module.fitting_loss.data_weight"] = torch.tensor(1.0)
    state["module.fitting_loss.init_joints_idxs"] = torch.arange(21)
    state["module.fitting_loss.depth_loss_weight"] = torch.tensor(1000.0)
    read(write_snapshot(tmp_path / "later.pth.tar", state))


def test_other_wrappings_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    torch.save(bare, tmp_path / "bare.pth")
    torch.save({"network": bare, "epoch": 3}, tmp_path / "no_prefix.pth")
    old = {key: value for key, value in bare.items() if "mano_layer" not in key and not key.endswith((".uu", ".vv"))}
    torch.save({"network": old}, tmp_path / "no_constants.pth")
    torch.save({"network": state}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("bare", "no_prefix", "no_constants", "legacy"):
        read(tmp_path / f"{name}.pth")
    assert read_reference(tmp_path / "no_prefix.pth", mano="standin", **SIZES)[1] == {"epoch": 3}


def test_the_users_hand_wins_over_the_one_inside(small: HandOccNet, state: dict[str, Tensor], tmp_path: Path) -> None:
    state[PREFIX + "th_v_template"] = state[PREFIX + "th_v_template"] + 0.01
    state[PREFIX + "th_faces"] = state[PREFIX + "th_faces"][:10]
    path = write_snapshot(tmp_path / "other_hand.pth.tar", state)
    with pytest.warns(UserWarning, match=r"th_v_template differs by up to 0.01.*th_faces has shape \(10, 3\)") as seen:
        loaded = read(path)
    message = str(next(w.message for w in seen if "th_faces" in str(w.message)))
    assert "the hand inside this snapshot is not that of standin" in message
    image = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        assert torch.equal(loaded(image)["verts_mm"], small(image)["verts_mm"])


def test_mano_may_be_a_path_a_model_or_another_hand(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "snapshot_1.pth.tar", state)
    save_npz(load_mano("standin"), tmp_path / "right.npz")
    other = replace(load_mano("standin"), v_template=load_mano("standin").v_template * 1.1)
    image = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        a = load_reference(path, mano=tmp_path / "right.npz", **SIZES)(image)
        b = load_reference(path, mano=load_mano("standin"), **SIZES)(image)
        with pytest.warns(UserWarning, match="th_v_template differs"):
            c = load_reference(path, mano=other, **SIZES)(image)
    assert torch.equal(a["mesh_coord_cam"], b["mesh_coord_cam"])
    assert torch.equal(b["mano_pose"], c["mano_pose"])
    assert float((b["mesh_coord_cam"] - c["mesh_coord_cam"]).abs().max()) > 1e-3


def test_reference_outputs_are_in_metres_under_the_originals_names(
    small: HandOccNet, state: dict[str, Tensor], tmp_path: Path
) -> None:
    wrapped = load_reference(write_snapshot(tmp_path / "s.pth.tar", state), mano="standin", **SIZES)
    image = torch.rand(2, 3, 256, 256)
    with torch.inference_mode():
        out, ours = wrapped(image), small(image)
        again = wrapped({"img": image}, {}, {}, "test")  # as the original is called
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "joints_coord_img": (2, 21, 2), "mano_pose": (2, 48), "mano_pose_aa": (2, 48), "mano_shape": (2, 10),
        "joints_coord_cam": (2, 21, 3), "mesh_coord_cam": (2, 778, 3), "manojoints2cam": (2, 16, 4, 4),
    }  # fmt: skip
    assert torch.equal(again["mesh_coord_cam"], out["mesh_coord_cam"])
    assert torch.allclose(out["joints_coord_cam"] * 1000, ours["joints_mm"], atol=1e-4)
    assert torch.allclose(out["manojoints2cam"][:, :, :3, 3] * 1000, ours["transforms"][:, :, :3, 3], atol=1e-4)
    assert torch.equal(out["manojoints2cam"][:, :, 3], torch.tensor([0.0, 0, 0, 1]).expand(2, 16, 4))


# --- refused ----------------------------------------------------------------------------------------------------------


def test_missing_and_unexpected_entries_are_listed(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["module.FIT.conv1.0.bias"]
    state["module.backbone.extra.weight"] = torch.zeros(1)
    state["module.SET.layers.0.norm2.weight"] = torch.zeros(7)
    state["module.regressor.hand_regHead.score.0.bias"][3] = torch.nan
    with pytest.raises(DataError) as caught:
        read(write_snapshot(tmp_path / "bad.pth.tar", state))
    message = str(caught.value)
    for part in (
        "bad.pth.tar: does not fit HandOccNet", "missing fit.merge1.bias", "unexpected backbone.extra.weight",
        "set.layers.0.norm.weight has shape (7,), expected (16,)", "head.score.bias is not finite",
    ):  # fmt: skip
        assert part in message


def test_another_prefix_leaves_no_random_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    renamed = {key.replace("module.", "model."): value for key, value in state.items()}
    with pytest.raises(DataError, match=r"missing backbone\.stem\.conv\.weight.* and \d+ more"):
        read(write_snapshot(tmp_path / "prefix.pth.tar", renamed))


def test_another_size_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has shape"):
        read(write_snapshot(tmp_path / "size.pth.tar", state), channels=32)


def test_a_grid_of_other_coordinates(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["module.regressor.hand_regHead.uu"], state["module.regressor.hand_regHead.vv"] = (
        state["module.regressor.hand_regHead.vv"],
        state["module.regressor.hand_regHead.uu"],
    )
    with pytest.raises(DataError, match="has a grid uu of other coordinates"):
        read(write_snapshot(tmp_path / "grid.pth.tar", state))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "has no 'network' entry with the weights"),
        ([1, 2], "has no 'network' entry with the weights"),
        ({"network": {"module.a": torch.zeros(1), "module.b": "text"}}, "has entries that are no tensors: module.b"),
        ({"format": "handpose/v2v_posenet"}, "is a checkpoint of 'handpose/v2v_posenet', not a snapshot"),
    ],
)
def test_files_of_another_kind(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth.tar")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.pth.tar")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("hostile_was_here", "w"))


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="no such checkpoint file"):
        read(tmp_path / "absent.pth.tar")
    for name, data, message in (
        ("empty", b"", "is empty"),
        ("page", b"\n <!DOCTYPE html>", "is a web page, not a checkpoint"),
        ("noise", b"\x80\x02junk", "cannot be read as a PyTorch checkpoint"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)
    torch.save({"network": Hostile()}, tmp_path / "hostile.pth.tar")
    with pytest.raises(DataError, match="cannot be read as a PyTorch checkpoint"):
        read(tmp_path / "hostile.pth.tar")
    assert not (tmp_path / "hostile_was_here").exists()
    monkeypatch.setattr("shared.checkpoints.MAX_FILE_BYTES", 10)
    with pytest.raises(
        DataError, match="more than the 10 that a checkpoint may have -- check that this is the right file"
    ):
        read(tmp_path / "hostile.pth.tar")


# --- our format -------------------------------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    network = tiny()
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(network, epoch=4, dataset="ho3d"))
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.extra == {"epoch": 4, "dataset": "ho3d"}
    assert checkpoint.mano_sha256 == load_mano("standin").sha256
    image = torch.rand(1, 3, 64, 64)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        loaded = checkpoint.build("standin")
        assert not loaded.training
        assert torch.equal(loaded(image)["verts_mm"], network(image)["verts_mm"])
        other = checkpoint.build("standin", tips="ho3d")(image)
    assert not torch.equal(other["joints_mm"], network(image)["joints_mm"])


def test_another_hand_than_in_training_is_said() -> None:
    with pytest.warns(UserWarning, match=r"trained with a MANO file of sha256 .* this one \(golden\) has golden"):
        checkpoint_of(tiny()).build(golden_hand())


def break_format(content: dict[str, Any]) -> None:
    content["format"] = "handpose/sohandnet"


def break_version(content: dict[str, Any]) -> None:
    content["version"] = 2


def break_entry(content: dict[str, Any]) -> None:
    del content["mano_sha256"]


def break_sizes(content: dict[str, Any]) -> None:
    content["model"]["heads"] = 5


def break_option(content: dict[str, Any]) -> None:
    content["model"]["layers"] = 5


def break_shape(content: dict[str, Any]) -> None:
    content["model"]["channels"] = 32


def break_format_entry(content: dict[str, Any]) -> None:
    del content["format"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_format, "is a checkpoint of 'handpose/sohandnet', expected 'handpose/handoccnet'"),
        (break_version, "has format version 2, this program reads version 1"),
        (break_entry, "has a missing or malformed entry .*mano_sha256"),
        (break_sizes, "has a missing or malformed entry .*multiple of heads"),
        (break_option, "has a missing or malformed entry .*layers"),
        (break_shape, "does not fit a network of the sizes it names"),
        (break_format_entry, "is not a handpose checkpoint"),
    ],
)
def test_checkpoints_that_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    content = checkpoint_of(tiny()).as_dict()
    assert content["format"] == FORMAT
    change(content)
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(DataError, match=message):
        load_checkpoint(tmp_path / "b.pt")


def test_a_snapshot_is_not_our_checkpoint(tmp_path: Path) -> None:
    torch.save({"network": {}}, tmp_path / "snapshot_1.pth.tar")
    with pytest.raises(DataError, match=r"convert the author's snapshots with python -m handoccnet\.convert"):
        load_checkpoint(tmp_path / "snapshot_1.pth.tar")


# --- ImageNet weights -------------------------------------------------------------------------------------------------


def torchvision_state(network: HandOccNet) -> dict[str, Tensor]:
    """ResNet entries under torchvision's names, with a classifier."""
    units = {"reduce": "1", "spatial": "2", "expand": "3"}
    state = {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
    for key, value in network.backbone.state_dict().items():
        parts = key.split(".")
        if parts[0] == "stem":
            state[("conv1" if parts[1] == "conv" else "bn1") + f".{parts[2]}"] = value
        elif parts[0] == "stages":
            block = f"layer{int(parts[1]) + 1}.{parts[2]}"
            if parts[3] == "skip":
                state[f"{block}.downsample.{int(parts[4] == 'norm')}.{parts[5]}"] = value
            else:
                state[f"{block}.{'conv' if parts[4] == 'conv' else 'bn'}{units[parts[3]]}.{parts[5]}"] = value
    return state


def test_backbone_weights_from_torchvisions_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, before = tiny(1), tiny(2)
    state = torchvision_state(source)
    assert "layer2.0.downsample.0.weight" in state
    old = {key: value for key, value in state.items() if "num_batches" not in key}  # as the 2016 file is
    torch.save(state, tmp_path / "new.pth")
    torch.save(old, tmp_path / "old.pth")
    save_file({key: value.contiguous() for key, value in state.items()}, str(tmp_path / "new.safetensors"))
    for name in ("new.pth", "old.pth", "new.safetensors"):
        network = tiny(2)
        line = load_backbone(network, tmp_path / name)
        assert line.endswith(f"tensors from {tmp_path / name}")
        for key, value in network.state_dict().items():
            from_file = key.startswith(("backbone.stem.", "backbone.stages.")) and "num_batches" not in key
            assert torch.equal(value, (source if from_file else before).state_dict()[key]), key


def test_no_backbone_weights_is_said() -> None:
    network, before = tiny(), tiny()
    for nothing in (None, ""):
        assert load_backbone(network, nothing).startswith("backbone: random weights")
    assert torch.equal(network.backbone.stem.conv.weight, before.backbone.stem.conv.weight)


def test_backbone_weights_that_do_not_fit(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = torchvision_state(tiny())
    del state["layer1.0.conv2.weight"]
    state["layer5.0.conv1.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(4, 1, 7, 7)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(DataError) as caught:
        load_backbone(tiny(), tmp_path / "bad.pth")
    message = str(caught.value)
    for part in (
        "does not fit a ResNet of [1, 1, 1, 1] blocks, stem 4", "missing backbone.stages.0.0.spatial.conv.weight",
        "unexpected layer5.0.conv1.weight", "backbone.stem.conv.weight has shape (4, 1, 7, 7), expected (4, 3, 7, 7)",
    ):  # fmt: skip
        assert part in message
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(DataError, match="is not a plain state dict"):
        load_backbone(tiny(), tmp_path / "list.pth")
    save_file({}, str(tmp_path / "other.safetensors"), metadata={"handpose": "[]"})
    with pytest.raises(DataError, match="is not a plain state dict"):
        load_backbone(tiny(), tmp_path / "other.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"0123456789")
    with pytest.raises(DataError, match="cannot be read as a safetensors file"):
        load_backbone(tiny(), tmp_path / "bad.safetensors")
    with pytest.raises(MissingFileError, match="no such checkpoint file"):
        load_backbone(tiny(), tmp_path / "absent.safetensors")


# --- command line -----------------------------------------------------------------------------------------------------


def test_program_converts_a_published_snapshot(
    reference: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = write_snapshot(tmp_path / "snapshot_70.pth.tar")
    save_npz(golden_hand(), tmp_path / "MANO_RIGHT.npz")
    mano = str(tmp_path / "MANO_RIGHT.npz")
    assert main(["--input", str(snapshot), "--output", str(tmp_path / "out.pt"), "--mano", mano]) == 0
    assert "out.pt: 39,319,352 parameters from" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "out.pt")
    assert checkpoint.extra == {"source": "snapshot_70.pth.tar", "epoch": 70}  # snapshots count from 0, names from 1
    assert checkpoint.mano_sha256 == load_mano(mano).sha256  # its arrays are the snapshot's
    assert not [key for key in checkpoint.state_dict if "mano_layer" in key or "th_" in key]
    for key, value in reference.network.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(checkpoint.state_dict[key], value)


def test_a_snapshot_of_mano_is_not_the_stand_ins(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "snapshot_70.pth.tar")
    output = tmp_path / "out.pt"
    with pytest.warns(UserWarning, match="the hand inside this snapshot is not that of standin"):
        assert main(["--input", str(snapshot), "--output", str(output), "--mano", "standin"]) == 0
    checkpoint = load_checkpoint(output)
    assert (checkpoint.mano_sha256, checkpoint.extra["hand"]) == ("", "mano")
    with pytest.warns(UserWarning, match="was trained on MANO and meets the stand-in hand"):
        checkpoint.build("standin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.build(golden_hand())
    left = tmp_path / "left.npz"
    save_npz(mirror_model(golden_hand()), left)
    with pytest.raises(DataError, match=r"left\.npz: this is the left hand, expected the right one"):
        checkpoint.build(left)


def test_key_list_has_the_published_number_of_entries() -> None:
    assert len(json.loads((GOLDEN / "handoccnet.keys.json").read_text())) == len(golden_state()) == 901
    assert max_diff("grid", golden_state()["module.regressor.hand_regHead.uu"][0, :2], np.array([0.5, 1.5]) / 32) == 0
