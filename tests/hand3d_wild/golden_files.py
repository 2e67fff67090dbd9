"""The golden hand and arrays of hand3d_wild, and the state dict of the golden network."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hand3d_wild.model import WildNet
from shared.mano import ManoModel, load_mano
from tests.conftest import GOLDEN
from tests.golden.fill import fill_state_dict

FOLDER = GOLDEN / "hand3d_wild"
TINY: dict[str, Any] = {"image_size": 64, "width": 16, "blocks": [1, 1, 1, 1]}


@cache
def arrays(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@cache
def golden_hand() -> ManoModel:
    return load_mano(GOLDEN / "mano/standin_right.npz")


@cache
def _state() -> dict[str, Tensor]:
    spec = json.loads((FOLDER / "resnet34_mano.keys.json").read_text())
    return {key: torch.from_numpy(np.array(value)) for key, value in fill_state_dict(spec).items()}


def golden_state() -> dict[str, Tensor]:
    """The 219 entries; a new dict of tensors that must not be changed."""
    return dict(_state())


def golden_network(form: str) -> WildNet:
    network = WildNet(golden_hand(), form=form)  # type: ignore[arg-type]
    network.load_state_dict(golden_state())
    return network


def max_diff(name: str, ours: Any, gold: Any) -> float:
    """Largest absolute difference, printed; NaN anywhere is infinite."""
    a = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    assert a.shape == np.shape(gold), f"{name}: {a.shape} and {np.shape(gold)}"
    x = float(np.abs(a.astype(np.float64) - np.asarray(gold, np.float64)).max())
    print(f"{name}: max diff {x:.3g} of {float(np.abs(gold).max()):.3g}")
    return x if np.isfinite(x) else np.inf
