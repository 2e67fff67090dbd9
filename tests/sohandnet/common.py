"""Golden measurements of the original and small batches."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sohandnet.convert import load_reference
from sohandnet.model import SoHandNet
from tests.golden.fill import fill_state_dict

GOLDEN = Path(__file__).parents[1] / "golden/sohandnet"


def golden(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / name) as file:
        return {key: file[key] for key in file.files}


def keys(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.keys.json").read_text())


@cache
def reference_file(name: str, folder: Path) -> Path:
    """A checkpoint as the original writes it, with the fixtures' weights."""
    path = folder / f"45_7.7_net_{name}.pth"
    torch.save({key: torch.from_numpy(value) for key, value in fill_state_dict(keys(name)).items()}, path)
    return path


def reference_network(folder: Path, *names: str, **options: Any) -> SoHandNet:
    return load_reference([reference_file(name, folder) for name in names], **options)


def batch_of(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """The batch of a fixture with our names."""
    batch = {name: torch.from_numpy(arrays[name]) for name in ("pc", "sn", "node")}
    batch["node_knn"] = torch.from_numpy(arrays["node_knn_I"])
    if "gt_xyz" in arrays:
        batch["gt_xyz"] = torch.from_numpy(arrays["gt_xyz"])
    return batch


def relative(found: Any, expected: Any) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    found = found.detach().double().numpy() if isinstance(found, Tensor) else np.asarray(found, np.float64)
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def make_store(root: Path, *, train: int = 12, test: int = 5, seed: int = 0, intrinsics: str = "true") -> Path:
    """A store of random clouds whose joints follow from the cloud, small enough for tests of programs."""
    from sohandnet.store import write_split

    K = [[240.99, 0.0, 160.0], [0.0, 240.96, 120.0], [0.0, 0.0, 1.0]]
    sizes = {"points": 48, "nodes": 16, "neighbours": 5}
    options = {"intrinsics": intrinsics, "crop": "ground-truth", "cube_mm": 200.0, "K": K, "skeleton": "icvl", **sizes}
    rng = np.random.default_rng(seed)
    for name, count in (("train", train), ("test", test)):
        size = rng.uniform(0.5, 1.0, (count, 1, 1))
        points = rng.uniform(-0.5, 0.5, (count, 3, 48)) * size
        normals = rng.normal(size=(count, 3, 48))
        nodes = points[:, :, :16]
        distance = np.square(nodes[:, :, :, None] - nodes[:, :, None]).sum(1)
        arrays = {
            "cloud": np.concatenate([points, normals / np.linalg.norm(normals, axis=1, keepdims=True)], 1),
            "node": nodes,
            "node_knn": distance.argsort(-1, kind="stable")[:, :, :5],
            "joints": np.linspace(-0.4, 0.4, 48).reshape(1, 3, 16) * size,
            "rotation": np.broadcast_to(np.eye(3), (count, 3, 3)),
            "length": np.full(count, 200.0),
            "offset": np.broadcast_to([0.0, 0.0, 2.0], (count, 3)),
            "crop_points": np.full(count, 48),
        }
        write_split(root, name, options, [arrays], [f"{name}/{i:04d}" for i in range(count)], {})
    return root
