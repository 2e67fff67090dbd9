"""The operations of SO-HandNet against measurements of the original, hand-made cases, and wrong arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.errors import DataError
from sohandnet.kernels import ops, reference
from tests.golden.fill import uniform

Fixture = dict[str, Any]


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The torch reference, then the C++ kernels where they were built."""
    if request.param == "cpu" and isinstance(why := ops.KERNELS.load("cpu"), str):
        pytest.skip(f"cpu kernels: {why}")
    monkeypatch.setenv("HANDPOSE_KERNELS", request.param)
    return str(request.param)


def load(golden: Path, name: str) -> Fixture:
    with np.load(golden / "sohandnet" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def tensors(*arrays: Any) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def close(ours: Tensor, expected: Any, relative: float, what: str) -> None:
    theirs = torch.from_numpy(np.asarray(expected)).double()
    scale = theirs.abs().max().clamp_min(1e-30)
    difference = float((ours.detach().double() - theirs).abs().max() / scale)
    print(f"{what}: max diff {difference:.3g} of the largest value")
    assert ours.shape == theirs.shape
    assert difference <= relative


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


# ------------------------------------------------------------------------------------------------- measurements


@pytest.mark.parametrize("name", ["association", "encoder"])
def test_association_equals_the_original(golden: Path, backend: str, name: str) -> None:
    f = load(golden, name)
    points, nodes = tensors(f["pc" if name == "encoder" else "x"], f["node"])
    found = ops.associate(points, nodes, 3)
    assert np.array_equal(found.nearest.sort(dim=-1).values.numpy(), f["assoc_sorted"])
    assert np.array_equal(found.pairs.numpy(), f["node_count" if name == "encoder" else "count"])
    assert (found.pairs == 0).any()
    assert (found.mean.transpose(1, 2)[found.pairs == 0] == 0.0).all()
    close(found.mean, f["cluster_mean"], 1e-6, f"{backend} {name}: means of the nodes")


@pytest.mark.parametrize("last", [False, True])
def test_index_max_equals_the_original(golden: Path, backend: str, last: bool) -> None:
    f = load(golden, "association")
    data, clean, index, grad = tensors(f["im_data"], f["im_data_nonan"], f["im_index"], f["im_grad_out"])
    if last:
        data, clean = (value.transpose(1, 2).contiguous().transpose(1, 2) for value in (data, clean))
    nodes = int(f["im_M"])
    _, seed_argmax = ops.index_max(data, index, nodes, seed_rule=True)
    filled = torch.from_numpy(f["im_nonempty"])[:, None].expand_as(seed_argmax)
    assert np.array_equal(seed_argmax[filled].numpy(), f["im_argmax"][filled.numpy()])
    seed_value, seed_argmax = ops.index_max(clean, index, nodes, seed_rule=True)
    assert np.array_equal(seed_argmax[filled].numpy(), f["im_argmax_nonan"][filled.numpy()])
    assert np.array_equal(seed_value.numpy(), f["im_pooled_nonan"])

    clean.requires_grad_()
    value, argmax = ops.index_max(clean, index, nodes)
    (gradient,) = torch.autograd.grad((value * grad).sum(), clean)
    same = [0, 4, 5, 6]  # the channels above -1000, where the original takes the maximum too
    assert np.array_equal(value[:, same].detach().numpy(), f["im_pooled_nonan"][:, same])
    assert np.array_equal(argmax[:, same].numpy(), np.where(filled, f["im_argmax_nonan"], 0)[:, same])
    assert np.array_equal(gradient[:, same].numpy(), f["im_grad_data"][:, same])


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("finder", ["native", "reference", "faiss"])
def test_chamfer_equals_the_original(golden: Path, backend: str, case: str, finder: ops.ChamferBackend) -> None:
    if finder == "faiss":
        pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    f = load(golden, "chamfer")
    points = {"a": 256, "b": 1280}[case]
    pred, cloud = tensors(uniform(f"sohandnet/chamfer/{case}", (2, 3, points), -0.5, 0.5), f[f"{case}_gt"])
    _, idx_pg, _, idx_gp = ops.chamfer_nn(pred, cloud, backend=finder)
    assert np.array_equal(idx_pg.numpy(), f[f"{case}_nn_gt_of_pred"])
    assert np.array_equal(idx_gp.numpy(), f[f"{case}_nn_pred_of_gt"])
    pred.requires_grad_()
    cloud.requires_grad_()
    found = ops.chamfer_distance(pred, cloud, backend=finder)
    label = f"{backend} {finder} {case}"
    close(found.forward.mean(), f[f"{case}_forward"], 1e-6, f"{label} forward")
    close(found.backward.mean(), f[f"{case}_backward"], 1e-6, f"{label} backward")
    close(found.total, f[f"{case}_total"], 1e-6, f"{label} total")
    close(found.forward + found.backward, f[f"{case}_per_sample"], 1e-6, f"{label} per sample")
    for gradient, name in zip(torch.autograd.grad(found.total, (pred, cloud)), ("pred", "gt"), strict=True):
        close(gradient, f[f"{case}_grad_{name}"], 1e-5, f"{label} gradient of {name}")


@pytest.mark.parametrize("frame", [0, 2, 4])
def test_normals_equal_the_original(golden: Path, backend: str, frame: int) -> None:
    f = load(golden, f"preprocess_{frame}")
    depth = f["depth"].astype(np.float64)
    v, u = np.mgrid[1:241, 1:321]  # the original's own constants and pixel numbers (spec Q1, Q2)
    world = np.stack([(u / 320 - 0.5) * depth * 0.7531, (0.5 - v / 240) * depth * 1.004, depth], axis=-1)
    world = world.transpose(1, 0, 2).reshape(-1, 3)  # column by column
    points, expected = tensors(
        world[((world >= f["box"][::2]) & (world <= f["box"][1::2])).all(axis=1)], f["normals_oriented"]
    )
    normals = ops.estimate_normals(points, torch.tensor([len(points)]))
    cosine = (normals.double() * expected.double()).sum(dim=1).clamp(-1, 1)
    degrees = torch.rad2deg(torch.arccos(cosine))
    share = float((degrees < 0.1).double().mean())
    print(f"{backend} frame {frame}: {100 * share:.2f} % within 0.1 degrees, max diff {degrees.max():.3g} degrees")
    assert share >= 0.99
    assert degrees.max() <= 5.0
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(points), dtype=torch.float64))
    assert ((normals * points).sum(dim=1) <= 0).all()


# ------------------------------------------------------------------------------------------------- by hand


def test_ties_of_the_association_give_the_lowest_nodes(backend: str) -> None:
    nodes = torch.tensor([[1.0, -1.0, 0.0, 1.0, 9.0], [0, 0, 1.0, 0, 9.0], [0, 0, 0, 0, 9.0]])[None]
    points = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])[None]
    found = ops.associate(points, nodes, 3)
    assert found.nearest.tolist() == [[[0, 1, 2], [0, 3, 2]]]
    assert found.pairs.tolist() == [[2, 1, 2, 1, 0]]
    assert found.mean[0, :, 4].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(found.mean[0, 0, :4], torch.tensor([1 / 2.00001, 0.0, 1 / 2.00001, 1 / 1.00001]))
    assert ops.pair_index(found.nearest).tolist() == [[0, 0, 1, 3, 2, 2]]
    assert ops.node_knn(nodes, 2).tolist() == [[[0, 3], [1, 2], [2, 0], [0, 3], [4, 0]]]
    assert ops.node_knn(nodes, 2).dtype == torch.int64


def test_nan_coordinates_give_valid_indices(backend: str) -> None:
    points = drawn(1, 3, 40)
    points[0, 1, ::3] = torch.nan
    points[0, :, 1] = torch.inf
    nodes = drawn(1, 3, 7, seed=1)
    nodes[0, 0, 2] = torch.nan
    for k in (1, 2, 3, 7):
        index = ops.associate(points, nodes, k).nearest
        assert (index >= 0).all()
        assert (index < 7).all()
    _, to_nodes, _, to_points = ops.chamfer_nn(points, nodes)
    assert (to_nodes >= 0).all() and (to_nodes < 7).all()  # noqa: PT018 - one fact
    assert (to_points >= 0).all() and (to_points < 40).all()  # noqa: PT018
    assert ops.batch_som(points, drawn(3, 4), torch.ones(3, 2), torch.ones(3)).shape == (1, 3, 4)


@pytest.mark.parametrize("last", [False, True])
def test_index_max_by_hand(backend: str, last: bool) -> None:
    data = torch.tensor([[[-5.0, -3, -3, -7, 2, torch.nan, torch.nan], [-torch.inf, 4, 4, -torch.inf, -1, 0, 1]]])
    index = torch.tensor([[0, 2, 2, 0, 4, 4, 4]])
    if last:
        data = data.transpose(1, 2).contiguous().transpose(1, 2)
    value, argmax = ops.index_max(data, index, 5)
    nan = torch.nan
    expected = torch.tensor([[[-5.0, 0, -3, 0, nan], [-torch.inf, 0, 4, 0, 1]]])
    torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
    assert argmax.tolist() == [[[0, 0, 1, 0, 5], [0, 0, 1, 0, 6]]]
    value, argmax = ops.index_max(torch.where(data == -7, -1000.0, data) * 1000, index, 5, seed_rule=True)
    assert argmax.tolist() == [[[0, 0, 0, 0, 4], [0, 0, 1, 0, 6]]]  # pair 0 for node 2, though it is of node 0
    assert value[0, :, 2].tolist() == [-5000.0, 4000.0]
    clean = torch.nan_to_num(data, neginf=-9).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.index_max(clean, index, 5)[0].sum(), clean)
    assert gradient.tolist() == [[[1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1]]]  # an empty node sends nothing


@pytest.mark.parametrize("last", [False, True])
def test_neighbours_by_hand(backend: str, last: bool) -> None:
    feature = torch.tensor([[[5.0, 7, 7, 1]]])
    if last:
        feature = feature.expand(1, 2, 4).transpose(1, 2).contiguous().transpose(1, 2)
    neighbours = torch.tensor([[[2, 1, 0], [3, 3, 0]]])
    feature.requires_grad_()
    gathered = ops.knn_gather(feature, neighbours)
    assert gathered[0, 0].tolist() == [[7, 7, 5], [1, 1, 5]]
    value, argmax = ops.knn_max(feature, neighbours)
    assert value[0, 0].tolist() == [7, 5]
    assert argmax[0, 0].tolist() == [1, 0]  # of two equal ones the lower node, whatever their order
    assert torch.autograd.grad(gathered.sum(), feature)[0][0, 0].tolist() == [2, 1, 1, 2]
    assert torch.autograd.grad(value.sum(), feature)[0][0, 0].tolist() == [1, 1, 0, 0]
    odd = torch.tensor([[[1.0, torch.nan, 3, torch.nan]]])
    value, argmax = ops.knn_max(odd, torch.tensor([[[3, 0, 1], [2, 0, 0]]]))
    assert value[0, 0, 0].isnan()
    assert value[0, 0, 1] == 3
    assert argmax.tolist() == [[[1, 2]]]


def test_chamfer_by_hand(backend: str) -> None:
    p = torch.tensor([[0.0, 3.0], [0, 0], [0, 0]])[None]
    g = torch.tensor([[1.0, -1.0, 3.0], [0, 0, 4.0], [0, 0, 0]])[None]
    found = ops.chamfer_nn(p, g)
    assert [value.tolist() for value in found] == [[[1, 4]], [[0, 0]], [[1, 1, 16]], [[0, 0, 1]]]
    result = ops.chamfer_distance(p, g)
    torch.testing.assert_close(result.forward, torch.tensor([1.5]))
    torch.testing.assert_close(result.backward, torch.tensor([2.0]))
    torch.testing.assert_close(result.total, torch.tensor(3.5))
    half = ops.chamfer_distance(p.bfloat16(), g.half())
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, torch.tensor(3.5))


def test_normals_of_planes_and_of_few_points(backend: str) -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij"), dim=-1).reshape(-1, 2)
    tilted = torch.cat([grid, 300 + 0.5 * grid[:, :1]], dim=1)
    truth = torch.tensor([0.5, 0.0, -1.0]) / 1.25**0.5
    triangle = torch.tensor([[0.0, 0, 10], [1, 0, 10], [0, 1, 10]])
    same = torch.tensor([[0.0, 3, 4]]).expand(5, 3)
    cloud = torch.cat([tilted, triangle, same, torch.zeros(1, 3)])
    normals = ops.estimate_normals(cloud, torch.tensor([81, 0, 3, 5, 1]))
    torch.testing.assert_close(normals[:81], truth.expand(81, 3))
    torch.testing.assert_close(normals[81:84], torch.tensor([[0.0, 0, -1]]).expand(3, 3))
    torch.testing.assert_close(normals[84:89], torch.tensor([[0.0, -0.6, -0.8]]).expand(5, 3))  # towards the camera
    assert normals[89].tolist() == [0, 0, 0]  # a point at the camera itself
    assert ops.estimate_normals(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


# ------------------------------------------------------------------------------------------------- wrong arguments


CLOUD, NODES = drawn(2, 3, 5), drawn(2, 3, 4)
INDEX, NEIGHBOURS = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 4, 3, dtype=torch.int32)
WHOLE = torch.zeros(2, 3, 5, dtype=torch.int64)
ZERO = torch.zeros(2, 3, 0)
LINEAR = (torch.zeros(2, 5, 6), torch.zeros(4, 6), torch.zeros(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.associate(CLOUD[0], NODES, 1), r"points: expected a tensor \(B, 3, N\), got \(3, 5\)"),
        (lambda: ops.associate(WHOLE, NODES, 1), "points: expected a floating point type, got .* int64"),
        (lambda: ops.associate(CLOUD, NODES[:1], 1), "nodes: expected a batch of 2"),
        (lambda: ops.associate(CLOUD, NODES, 0), "k: expected 1 to 4, the number of nodes, got 0"),
        (lambda: ops.associate(CLOUD, NODES, 5), "k: expected 1 to 4, the number of nodes, got 5"),
        (lambda: ops.associate(CLOUD, ZERO, 1), "nodes: expected 1 to 1024 nodes"),
        (lambda: ops.associate(CLOUD, drawn(2, 3, 1025), 1), "nodes: expected 1 to 1024 nodes"),
        (lambda: ops.index_max(CLOUD[0], INDEX, 4), r"data: expected a tensor \(B, C, L\)"),
        (lambda: ops.index_max(WHOLE, INDEX, 4), "data: expected a floating point type"),
        (lambda: ops.index_max(CLOUD, INDEX[:, :4], 4), r"index: expected \(B, L\) for data \(2, 3, 5\)"),
        (lambda: ops.index_max(CLOUD, INDEX.float(), 4), "index: expected int32 or int64, got .* float32"),
        (lambda: ops.index_max(CLOUD, INDEX - 1, 4), "index: expected indices from 0 to 3, got -1 to -1"),
        (lambda: ops.index_max(CLOUD, INDEX + 4, 4), "index: expected indices from 0 to 3, got 4 to 4"),
        (lambda: ops.index_max(CLOUD, INDEX, 0), "nodes: expected at least one node, got 0"),
        (lambda: ops.linear_index_max(CLOUD[0], *LINEAR[1:], INDEX, 4), r"x: expected a tensor \(B, L, D\)"),
        (lambda: ops.linear_index_max(WHOLE, *LINEAR[1:], INDEX, 4), "x: expected a floating point type"),
        (lambda: ops.linear_index_max(LINEAR[0], LINEAR[1].T, LINEAR[2], INDEX, 4), r"weight: expected \(C, 6\)"),
        (lambda: ops.linear_index_max(*LINEAR[:2], LINEAR[2][:3], INDEX, 4), r"bias: expected \(4,\)"),
        (lambda: ops.linear_index_max(*LINEAR, INDEX[:, :4], 4), r"index: expected \(2, 5\) as x has it"),
        (lambda: ops.linear_index_max(*LINEAR, INDEX + 4, 4), "index: expected indices from 0 to 3"),
        (lambda: ops.linear_index_max(*LINEAR, INDEX, 0), "nodes: expected at least one node"),
        (lambda: ops.knn_gather(NODES[0], NEIGHBOURS), r"feature: expected a tensor \(B, C, L\)"),
        (lambda: ops.knn_gather(NODES, NEIGHBOURS[..., 0]), r"neighbours: expected \(B, R, K\)"),
        (lambda: ops.knn_gather(NODES, NEIGHBOURS[..., :0]), "neighbours: expected .* K of at least 1"),
        (lambda: ops.knn_gather(NODES, NEIGHBOURS[:1]), "neighbours: expected a batch of 2"),
        (lambda: ops.knn_gather(NODES, NEIGHBOURS + 4), "neighbours: expected indices from 0 to 3, got 4 to 4"),
        (lambda: ops.knn_max(NODES, NEIGHBOURS - 1), "neighbours: expected indices from 0 to 3, got -1 to -1"),
        (lambda: ops.batch_som(CLOUD[0], NODES[0], torch.ones(1, 2), torch.ones(1)), "cloud: expected a tensor"),
        (lambda: ops.batch_som(CLOUD, NODES[0], torch.ones(2), torch.ones(1)), r"factors: expected \(steps, side\)"),
        (lambda: ops.batch_som(CLOUD, NODES[0], torch.ones(1, 33), torch.ones(1)), "factors: .* side of 1 to 32"),
        (lambda: ops.batch_som(CLOUD, NODES[0], torch.ones(1, 3), torch.ones(1)), r"initial: expected \(3, 9\)"),
        (lambda: ops.batch_som(CLOUD, NODES[0], torch.ones(1, 2), torch.ones(2)), r"rates: expected \(1,\)"),
        (lambda: ops.chamfer_nn(CLOUD[0], CLOUD), r"p: expected a tensor \(B, 3, N\)"),
        (lambda: ops.chamfer_nn(CLOUD, ZERO), "g: expected at least one point in each cloud"),
        (lambda: ops.chamfer_distance(ZERO, CLOUD), "pred: expected at least one point in each cloud"),
        (lambda: ops.chamfer_distance(CLOUD, CLOUD[:1]), "cloud: expected a batch of 2"),
        (
            lambda: ops.chamfer_distance(CLOUD, CLOUD, backend=cast(ops.ChamferBackend, "cuda")),
            "backend: expected native, faiss or reference, got 'cuda'",
        ),
        (lambda: ops.estimate_normals(CLOUD, INDEX[0]), r"points: expected packed clouds \(T, 3\)"),
        (lambda: ops.estimate_normals(WHOLE[0].T, INDEX[0]), "points: expected a floating point type"),
        (lambda: ops.estimate_normals(CLOUD[0].T, INDEX[0].int()), r"counts: expected \(B,\) int64"),
        (lambda: ops.estimate_normals(CLOUD[0].T, torch.tensor([4])), "counts: .* add up to the 5 points, got 4"),
        (lambda: ops.estimate_normals(CLOUD[0].T, torch.tensor([6, -1])), "counts: expected sizes of at least 0"),
        (lambda: ops.estimate_normals(CLOUD[0].T / 0, torch.tensor([5])), "points: expected finite coordinates"),
        (lambda: ops.estimate_normals(CLOUD[0].T, torch.tensor([5]), neighbours=65), "neighbours: expected 1 to 64"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_faiss_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(DataError, match=r"faiss cannot be imported.*pip install faiss-cpu"):
        ops.chamfer_distance(CLOUD, CLOUD, backend="faiss")


def test_the_meta_device_is_refused_where_devices_are_mixed() -> None:
    with pytest.raises(DataError, match="nodes: expected a tensor on cpu"):
        ops.associate(CLOUD, NODES.to("meta"), 1)
    with pytest.raises(DataError, match="weight: expected a tensor on cpu"):
        ops.linear_index_max(LINEAR[0], LINEAR[1].to("meta"), LINEAR[2], INDEX, 4)


def test_the_reference_backend_of_chamfer_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = reference.chamfer_nn

    def counted(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        calls.append(1)
        return plain(p, g)

    monkeypatch.setattr(reference, "chamfer_nn", counted)
    ops.chamfer_nn(CLOUD, CLOUD, backend="reference")
    assert calls == [1]
