"""What the methods' checkpoints have in common; files and messages are tested through the methods' ``convert.py``."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.checkpoints import (
    ManoCheckpoint,
    OwnCheckpoint,
    add_counters,
    check_entries,
    cpu_state,
    hand_model,
    read_torch,
    save_checkpoint,
)
from shared.errors import DataError
from shared.mano import load_mano, save_npz


@dataclass
class Example(OwnCheckpoint):
    format, version = "handpose/example", 3
    parts: list[str]
    space: str = "true"


def test_entries_of_a_file_and_their_order() -> None:
    content = Example({}, {"width": 2}, ["a"], extra={"epoch": 4, "format": "stored before"}).as_dict()
    assert list(content) == ["epoch", "format", "version", "state_dict", "model", "parts", "space"]
    assert (content["format"], content["version"], content["parts"]) == ("handpose/example", 3, ["a"])
    assert Example.extra_of(content) == {"epoch": 4}
    assert Example.extra_of({"extra": 1, "mano_sha256": ""}) == {"extra": 1, "mano_sha256": ""}


def test_unsafe_advice_is_not_repeated(tmp_path: Path) -> None:
    torch.save({"path": tmp_path, "run": subprocess.Popen}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt: cannot be read as a PyTorch checkpoint \(UnpicklingError\)") as error:
        read_torch(tmp_path / "a.pt")
    assert "weights_only" not in str(error.value)
    assert "may be truncated, or hold more than tensors" in str(error.value)


def test_a_network_class_is_needed() -> None:
    with pytest.raises(NotImplementedError):
        ManoCheckpoint[nn.Linear]({}, {}).build("standin")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "net.pt"
    save_checkpoint(path, Example({"w": torch.ones(2)}, {}, []))
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError)):  # pickle's error for what it cannot write
        save_checkpoint(path, Example({}, {"f": (x for x in ())}, []))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["net.pt"]


def test_copies_of_a_state() -> None:
    state = {"a": torch.ones(2, dtype=torch.float64, requires_grad=True), 3: torch.tensor(7)}
    copy = cpu_state(state)
    state[3] += 1
    assert list(copy) == ["a", "3"]
    assert (copy["a"].dtype, copy["a"].requires_grad, int(copy["3"])) == (torch.float32, False, 7)


def test_missing_counters_are_zero_and_counted() -> None:
    norm = nn.BatchNorm1d(2)
    norm(torch.rand(3, 2))
    whole = cpu_state(norm.state_dict())
    old = {key: value for key, value in whole.items() if key != "num_batches_tracked"}
    assert (add_counters(old, whole), add_counters(whole, whole)) == (1, 0)
    assert torch.equal(old["num_batches_tracked"], torch.tensor(0))
    assert int(whole["num_batches_tracked"]) == 1
    norm.load_state_dict(old)


def test_only_errors_of_the_content_are_the_files() -> None:
    for error in (KeyError("k"), TypeError("t"), DataError("sizes"), NotImplementedError("meta")):
        message = f"net.pt: has a missing or malformed entry .{type(error).__name__}"
        with pytest.raises(DataError, match=message), check_entries(Path("net.pt")):
            raise error
    with pytest.raises(ZeroDivisionError), check_entries(Path("net.pt")):
        raise ZeroDivisionError


def test_a_hand_may_be_a_model_a_path_or_the_standin(tmp_path: Path) -> None:
    hand = load_mano("standin")
    save_npz(hand, tmp_path / "right.npz")
    assert hand_model(hand) is hand
    for given in ("standin", tmp_path / "right.npz", str(tmp_path / "right.npz")):
        assert (hand_model(given).v_template == hand.v_template).all()


def test_reading_a_file_first_leaves_nothing_on_meta(tmp_path: Path) -> None:
    """Sizes are checked on the meta device; a method's modules imported there would keep their constants on it."""
    from hand3d_wild import convert as wild
    from hand3d_wild.model import WildNet
    from handoccnet import convert as handoccnet
    from tests.handoccnet.snapshots import tiny

    small = WildNet(load_mano("standin"), image_size=64, width=16, blocks=(1, 1, 1, 1))
    for method, checkpoint in (
        ("handoccnet", handoccnet.checkpoint_of(tiny())),
        ("hand3d_wild", wild.checkpoint_of(small)),
    ):
        path = tmp_path / f"{method}.pt"
        save_checkpoint(path, checkpoint)
        program = (
            f"from {method}.convert import load_checkpoint; network = load_checkpoint({str(path)!r}).build('standin'); "
            "print([name for name, value in network.named_buffers() if value.is_meta])"
        )
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
        assert (result.returncode, result.stdout.strip()) == (0, "[]"), (method, result.stderr)
