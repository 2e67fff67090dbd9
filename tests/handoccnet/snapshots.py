"""The reference snapshot that the golden measurements belong to, rebuilt from its list of keys, and a tiny network."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handoccnet.convert import load_reference
from handoccnet.model import HandOccNet
from shared.mano import ManoModel, load_mano
from tests.golden.fill import fill, uniform

GOLDEN = Path(__file__).parents[1] / "golden" / "handoccnet"
TINY: dict[str, Any] = {
    "image_size": 64,
    "stem": 4,
    "blocks": [1, 1, 1, 1],
    "channels": 16,
    "heads": 2,
    "hidden": [32, 16],
}


def arrays(name: str) -> dict[str, np.ndarray]:
    """A golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def named(name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """A named input of the golden measurements."""
    return torch.from_numpy(uniform(f"handoccnet/{name}", shape, low, high))


@lru_cache
def golden_hand() -> ManoModel:
    """The random hand that the reference was run with."""
    data = {key: value.astype(np.float64) for key, value in arrays("mano_standin").items()}
    posedirs = uniform("handoccnet/mano/posedirs", (778, 3, 135), -0.0004, 0.0004).astype(np.float64)
    fields = ("v_template", "shapedirs", "J_regressor", "weights", "hands_mean", "hands_components")
    return replace(
        load_mano("standin"), posedirs=posedirs, faces=data["f"].astype(np.int64), source="golden", sha256="golden",
        **{key: data[key] for key in fields},  # type: ignore[arg-type]
    )  # fmt: skip


def grids(size: int = 32) -> dict[str, Tensor]:
    middle = ((torch.arange(size) + 0.5) / size).expand(size, size)
    return {"uu": middle.contiguous(), "vv": middle.T.contiguous()}


def mano_buffers(hand: ManoModel) -> dict[str, Tensor]:
    """The MANO arrays as a snapshot has them."""
    values = {
        "th_betas": np.zeros((1, 10)),
        "th_shapedirs": hand.shapedirs,
        "th_posedirs": hand.posedirs,
        "th_v_template": hand.v_template[None],
        "th_J_regressor": hand.J_regressor,
        "th_weights": hand.weights,
        "th_hands_mean": hand.hands_mean[None],
        "th_selected_comps": hand.hands_components[:6],
    }
    buffers = {key: torch.tensor(value, dtype=torch.float32) for key, value in values.items()}
    return {**buffers, "th_faces": torch.from_numpy(hand.faces)}


@lru_cache
def golden_state() -> dict[str, Tensor]:
    """The 901 entries of a published snapshot, filled by the fixtures' recipe."""
    specs: dict[str, Any] = json.loads((GOLDEN / "handoccnet.keys.json").read_text())
    constants = grids() | mano_buffers(golden_hand())
    state = {}
    for key, spec in specs.items():
        if "source" in spec:
            state[key] = constants[key.rpartition(".")[2]]
        else:
            state[key] = torch.from_numpy(np.asarray(fill(key, tuple(spec["shape"]), spec["dtype"])))
    return state


def write_snapshot(path: Path, network: dict[str, Tensor] | None = None) -> Path:
    """A ``snapshot_*.pth.tar`` as the original writes it; the optimiser's state is shortened."""
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "params": [0, 1]}
    moments = {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    optimizer = {"state": {0: {"step": 7, **moments}}, "param_groups": [group]}
    torch.save({"epoch": 69, "network": network or golden_state(), "optimizer": optimizer}, path)
    return path


_LOADED: dict[str, nn.Module] = {}


def golden_network(folder: Path) -> nn.Module:
    """What ``load_reference`` makes of the golden snapshot; read once."""
    if not _LOADED:
        _LOADED["network"] = load_reference(write_snapshot(folder / "snapshot_70.pth.tar"), mano=golden_hand())
    return _LOADED["network"]


def tiny(seed: int = 0, **changes: Any) -> HandOccNet:
    """A small network with activations of ordinary size and batch norms that are not neutral."""
    torch.manual_seed(seed)
    network = HandOccNet(load_mano("standin"), **{**TINY, **changes})
    for name, value in network.state_dict().items():
        if name.endswith("norm.weight") or "running_var" in name:
            nn.init.uniform_(value, 0.5, 1.5)
        elif "running_mean" in name or name.endswith("bias"):
            nn.init.normal_(value, std=0.1)
        elif value.ndim > 1:
            nn.init.normal_(value, std=(1 / value[0].numel()) ** 0.5)
    return network.eval()


def max_diff(name: str, found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """The largest absolute difference, printed."""
    found, expected = (np.asarray(x.detach() if isinstance(x, Tensor) else x, np.float64) for x in (found, expected))
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    difference = float(np.abs(found - expected).max())
    print(f"{name}: max diff {difference:.3g}")
    return difference
