"""The self-organising map against measurements of the original, and by its laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import DataError
from sohandnet import som
from sohandnet.kernels import ops
from tests.sohandnet.test_ops import drawn, load, tensors


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The torch reference, then the C++ kernels where they were built."""
    if request.param == "cpu" and isinstance(why := ops.KERNELS.load("cpu"), str):
        pytest.skip(f"cpu kernels: {why}")
    monkeypatch.setenv("HANDPOSE_KERNELS", request.param)
    return str(request.param)


def updates(cloud: torch.Tensor, nodes: int, count: int) -> torch.Tensor:
    """Nodes (B, nodes, 3) after the first ``count`` updates."""
    factors, rates = som.schedule(som.grid_side(nodes))
    found = ops.batch_som(cloud.transpose(1, 2), som.initial_nodes(nodes), factors[:count], rates[:count])
    return found.transpose(1, 2)


@pytest.mark.parametrize(("name", "nodes"), [("8x8", 64), ("4x4", 16)])
def test_the_map_equals_the_original(golden: Path, backend: str, name: str, nodes: int) -> None:
    f = load(golden, "som")
    field = som.potential_field(nodes)
    first = som.initial_nodes(nodes).numpy().T
    found = {"field": np.abs(field - f[f"init_{name}"]).max(), "initial": np.abs(first - f[f"init_{name}"]).max()}
    assert max(found.values()) <= 1e-6

    axis = som.schedule(som.grid_side(nodes))[0][0]
    gap = torch.arange(len(axis))
    weights = torch.kron(axis[(gap[:, None] - gap).abs()], axis[(gap[:, None] - gap).abs()])
    expected = torch.from_numpy(f[f"weights_{name}"])
    large = expected > 1e-30  # smaller ones may be flushed to 0
    found["weights"] = float(((weights - expected).abs() / expected)[large].max())
    assert found["weights"] <= 1e-6
    assert (weights[~large] <= 1e-29).all()

    (cloud,) = tensors(f[f"clouds_{name}"])
    for count, key in ((1, "after1"), (20, "after20"), (80, "final")):
        found[key] = float((updates(cloud, nodes, count) - torch.from_numpy(f[f"{key}_{name}"])).abs().max())
        assert found[key] <= 1e-5
    trained = som.train_som(cloud.transpose(1, 2), nodes).transpose(1, 2)
    assert torch.equal(trained, updates(cloud, nodes, 80))
    print(f"{backend} {name}: " + ", ".join(f"{key} max diff {value:.3g}" for key, value in found.items()))


def test_the_shipped_table_is_what_the_generator_gives() -> None:
    difference = np.abs(np.loadtxt(som.TABLE) - som.potential_field(64)).max()
    print(f"table max diff {difference:.3g}")
    assert difference <= 1e-6


def test_generator_leaves_the_global_stream_alone() -> None:
    np.random.seed(3)  # noqa: NPY002 - the stream that must not be touched
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    som.potential_field(16)
    assert np.random.rand() == expected  # noqa: NPY002


def test_the_order_of_points_and_the_rest_of_the_batch_do_not_matter() -> None:
    cloud = drawn(3, 3, 200)
    nodes = som.train_som(cloud)
    assert nodes.shape == (3, 3, 64)
    torch.testing.assert_close(som.train_som(cloud[1:2]), nodes[1:2], rtol=0, atol=1e-6)
    shuffled = cloud[..., torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(som.train_som(shuffled), nodes, rtol=0, atol=1e-5)
    half = som.train_som(cloud.double())
    assert half.dtype == torch.float64
    torch.testing.assert_close(half.float(), nodes, rtol=0, atol=1e-5)


def test_training_brings_the_nodes_to_the_points() -> None:
    cloud = drawn(2, 3, 500) * torch.tensor([1.0, 0.5, 0.1])[:, None]
    start = som.initial_nodes(64).expand(2, 3, 64)
    before, after = (ops.chamfer_distance(cloud, nodes) for nodes in (start, som.train_som(cloud)))
    print(f"points to nodes {before.forward.mean():.3f} before, {after.forward.mean():.3f} after")
    assert (after.forward < 0.5 * before.forward).all()
    assert (after.backward < 0.2 * before.backward).all()


def test_wrong_arguments() -> None:
    for number in (-1, 0, 63, 1025, 33 * 33):
        with pytest.raises(DataError, match=f"expected a square number from 1 to 1024, got {number} -- take 64"):
            som.grid_side(number)
    with pytest.raises(DataError, match="expected a square number"):
        som.train_som(drawn(1, 3, 9), 10)
    with pytest.raises(DataError, match=r"cloud: expected at least one point in each cloud, got \(1, 3, 0\)"):
        som.train_som(torch.zeros(1, 3, 0))
    with pytest.raises(DataError, match=r"cloud: expected a tensor \(B, 3, N\)"):
        som.train_som(drawn(3, 9))
