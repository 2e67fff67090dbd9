"""C++ and CUDA against the plain torch reference on drawn cases; gradients; torch.library and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sohandnet import som
from sohandnet.kernels import ops, reference
from tests.sohandnet.test_ops import drawn

SIZES = [0, 1, 31, 32, 33, 1024]  # around the lanes of a vector and a warp, and the real one
FLOATS = [torch.float32, torch.bfloat16]
LAYOUTS = [False, True]
Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def native(request: pytest.FixtureRequest) -> str:
    """A device whose native kernels are there."""
    if isinstance(why := ops.KERNELS.load(request.param), str):
        pytest.skip(f"{request.param} kernels: {why}")
    return str(request.param)


@pytest.fixture
def both(native: str, monkeypatch: pytest.MonkeyPatch) -> Both:
    """Runs a function with the native kernels and with the reference."""

    def run(call: Callable[[], Any]) -> tuple[Any, Any]:
        monkeypatch.setenv("HANDPOSE_KERNELS", native)
        ours = call()
        monkeypatch.setenv("HANDPOSE_KERNELS", "reference")
        return ours, call()

    return run


def quantised(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Coordinates on a coarse grid, so that equal distances and equal values abound."""
    return ((drawn(*shape, seed=seed) * 8).round() / 8).to(device)


def feature_of(shape: tuple[int, ...], dtype: torch.dtype, last: bool, device: str, seed: int = 0) -> Tensor:
    """(B, C, L) with ties and some NaN, contiguous or channels last."""
    values = quantised(*shape, seed=seed) * 20
    values.view(-1)[::97] = torch.nan
    values = values.to(device, dtype)
    return values.transpose(1, 2).contiguous().transpose(1, 2) if last else values


def integers(high: int, *shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def same(ours: Tensor, theirs: Tensor) -> None:
    """Equal bit for bit, a NaN where a NaN is."""
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert ours.stride() == theirs.stride() or ours.numel() == 0


def near(ours: Tensor, theirs: Tensor, what: str, relative: float = 1e-6) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if ours.numel():
        difference = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30))
        print(f"{what}: max diff {difference:.3g} of the largest")
        assert difference <= relative


# ------------------------------------------------------------------------------------------------- equal results


@pytest.mark.parametrize("points", SIZES)
@pytest.mark.parametrize(("nodes", "k"), [(1, 1), (2, 2), (16, 3), (64, 3), (64, 9), (1024, 4)])
def test_association_equals_the_reference(native: str, both: Both, points: int, nodes: int, k: int) -> None:
    cloud, table = quantised(2, 3, points, device=native), quantised(2, 3, nodes, device=native, seed=1)
    ours, theirs = both(lambda: ops.associate(cloud, table, k))
    same(ours.nearest, theirs.nearest)
    same(ours.pairs, theirs.pairs)
    near(ours.mean, theirs.mean, f"{native} means")
    assert (ours.mean.transpose(1, 2)[ours.pairs == 0] == 0).all()
    assert int(ours.pairs.sum()) == 2 * points * k


@pytest.mark.parametrize("length", [*SIZES, 3072])
@pytest.mark.parametrize("last", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed_rule", [False, True])
def test_index_max_equals_the_reference(
    native: str, both: Both, length: int, last: bool, dtype: torch.dtype, seed_rule: bool
) -> None:
    for channels, nodes in ((1, 1), (17, 16), (32, 64)):
        data = feature_of((2, channels, length), dtype, last, native) * (200 if seed_rule else 1)
        index = integers(nodes, 2, length, device=native)
        ours, theirs = both(
            lambda d=data, i=index, m=nodes: ops.index_max(d, i, m, seed_rule=seed_rule)  # type: ignore[misc]
        )
        for mine, plain in zip(ours, theirs, strict=True):
            same(mine, plain)
        if seed_rule:
            continue
        data = data.detach().nan_to_num().requires_grad_()
        pull = torch.randn(2, channels, nodes, generator=torch.Generator().manual_seed(1)).to(native, dtype)
        for grads in (pull, pull.transpose(1, 2).contiguous().transpose(1, 2)):
            ours, theirs = both(
                lambda d=data, i=index, m=nodes, g=grads: torch.autograd.grad(  # type: ignore[misc]
                    ops.index_max(d, i, m)[0], d, g
                )[0]
            )
            same(ours, theirs)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("channels", "nodes"), [(70, 16), (40, 1024), (100, 5000)])
@pytest.mark.parametrize("last", LAYOUTS)
def test_index_max_in_several_blocks_of_channels(
    native: str, both: Both, batch: int, channels: int, nodes: int, last: bool
) -> None:
    data = feature_of((batch, channels, 700), torch.float32, last, native)
    index = integers(nodes, batch, 700, device=native)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for mine, plain in zip(*both(lambda: ops.index_max(data, index, nodes)), strict=True):
            same(mine, plain)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("nodes", SIZES[1:5])
@pytest.mark.parametrize("last", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_neighbours_equal_the_reference(native: str, both: Both, nodes: int, last: bool, dtype: torch.dtype) -> None:
    for channels, rows, k in ((1, 1, 1), (33, 7, 9), (16, 0, 2), (16, 64, 3)):
        feature = feature_of((2, channels, nodes), dtype, last, native)
        neighbours = integers(nodes, 2, rows, k, device=native)
        ours, theirs = both(
            lambda f=feature, n=neighbours: (ops.knn_gather(f, n), *ops.knn_max(f, n))  # type: ignore[misc]
        )
        for mine, plain in zip(ours, theirs, strict=True):
            same(mine, plain)
        clean = feature.nan_to_num().requires_grad_()
        pulls = [torch.randn_like(value, dtype=torch.float32).to(dtype) for value in ours[:2]]
        ours, theirs = both(
            lambda f=clean, n=neighbours, p=pulls: [  # type: ignore[misc]
                torch.autograd.grad(value, f, pull)[0]
                for value, pull in zip((ops.knn_gather(f, n), ops.knn_max(f, n)[0]), p, strict=True)
            ]
        )
        bound = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
        for mine, plain, name in zip(ours, theirs, ("gather", "max"), strict=True):
            near(mine, plain, f"{native} {dtype} gradient of knn {name}", bound)


@pytest.mark.parametrize(("length", "nodes"), [(31, 1), (257, 16), (768, 64), (96, 64)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_index_max_equals_the_plain_way(
    native: str, both: Both, length: int, nodes: int, dtype: torch.dtype
) -> None:
    x, weight, bias = (drawn(*shape).to(native, dtype) for shape in ((2, length, 70), (33, 70), (33,)))
    tensors = [value.requires_grad_() for value in (x, weight, bias)]
    index = integers(max(1, nodes - 2), 2, length, device=native)  # the last nodes are empty
    pull = drawn(2, 33, nodes, seed=2).to(native, dtype)

    def run(fused: bool) -> list[Tensor]:
        if fused:
            value = ops.linear_index_max(tensors[0], tensors[1], tensors[2], index, nodes)
        else:
            value = ops.index_max(torch.nn.functional.linear(*tensors).transpose(1, 2), index, nodes)[0]
        return [value, *torch.autograd.grad(value, tensors, pull)]

    ours, theirs = both(lambda: (run(True), run(False)))
    bound = {torch.float32: 2e-6, torch.bfloat16: 2**-6}[dtype]
    for name, *values in zip(("value", "x", "weight", "bias"), *ours, *theirs, strict=True):
        for value in values[:-1]:
            near(value.detach(), values[-1].detach(), f"{native} {dtype} {name}", bound)
    if nodes > 1:
        assert (ours[0][0][..., nodes - 2 :] == 0).all()


def test_linear_index_max_follows_autocast(native: str) -> None:
    x, weight, bias = drawn(1, 64, 16).to(native), drawn(8, 16).to(native), drawn(8).to(native)
    weight.requires_grad_()
    index = integers(4, 1, 64, device=native)
    with torch.autocast(native, torch.bfloat16):
        value = ops.linear_index_max(x, weight, bias, index, 4)
    assert value.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(value.float().sum(), weight)
    assert gradient.dtype == torch.float32
    near(value.detach().float(), ops.linear_index_max(x, weight, bias, index, 4).detach(), "autocast", 2e-2)


@pytest.mark.parametrize("points", SIZES[1:])
@pytest.mark.parametrize("side", [1, 4, 8])
def test_map_equals_the_reference(native: str, both: Both, points: int, side: int) -> None:
    cloud = drawn(2, 3, points).to(native)
    ours, theirs = both(lambda: som.train_som(cloud, side * side))
    near(ours, theirs, f"{native} {points} points, {side} x {side} nodes", 1e-5)


@pytest.mark.parametrize("p", SIZES[1:5])
@pytest.mark.parametrize("q", [1, 33, 600])
def test_chamfer_equals_the_reference(native: str, both: Both, p: int, q: int) -> None:
    pred, cloud = quantised(2, 3, p, device=native), quantised(2, 3, q, device=native, seed=1)
    ours, theirs = both(lambda: ops.chamfer_nn(pred, cloud))
    for mine, plain in zip(ours, theirs, strict=True):
        same(mine, plain)
    moved = [(value + drawn(*value.shape, seed=2).to(native) * 1e-3).requires_grad_() for value in (pred, cloud)]
    pull = torch.tensor([0.3, -2.0], device=native)

    def run() -> list[Tensor]:
        found = ops.chamfer_distance(moved[0], moved[1])
        loss = (found.forward * pull).sum() + (found.backward * pull.flip(0)).sum()
        return [*found, *torch.autograd.grad(loss, moved)]

    ours, theirs = both(run)
    for mine, plain, name in zip(ours, theirs, ("forward", "backward", "gradient", "gradient"), strict=True):
        near(mine.detach(), plain.detach(), f"{native} {p} to {q} {name}", 2e-6)


def test_faiss_finds_the_same_neighbours() -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    p, g = drawn(3, 3, 300), drawn(3, 3, 200, seed=1)
    for ours, theirs in zip(ops.chamfer_nn(p, g), ops.chamfer_nn(p, g, backend="faiss"), strict=True):
        same(ours, theirs)
    assert ops.chamfer_nn(p[:0], g[:0], backend="faiss")[1].shape == (0, 300)


@pytest.mark.parametrize("count", [1, 2, 29, 30, 31, 700])
@pytest.mark.parametrize("neighbours", [1, 30, 64])
def test_normals_equal_the_reference(both: Both, native: str, count: int, neighbours: int) -> None:
    if native != "cpu":
        pytest.skip("normals are computed on the CPU")
    cloud = drawn(count, 3, seed=count).double()
    cloud[:, 2] = 0.3 * cloud[:, 0] ** 2 + 0.01 * cloud[:, 2]
    cloud = cloud * 100 + torch.tensor([20.0, -5.0, 400.0])
    far = cloud.clone()
    far[-1] = 1e7  # one point far away must not need more memory
    lattice = (cloud / 8).round() * 8  # many equal distances, several points at one place
    shifted = cloud - cloud.mean(dim=0) + 1.0  # around the camera
    packed = torch.cat([cloud, far, lattice, shifted])
    ours, theirs = both(lambda: ops.estimate_normals(packed, torch.full((4,), count), neighbours=neighbours))
    alike = ((ours - theirs).norm(dim=1) < 1e-6).double().mean()
    print(f"{count} points, {neighbours} neighbours: {100 * alike:.2f} % equal")
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(4 * count, dtype=torch.float64))
    assert ((ours * packed).sum(dim=1) <= 1e-9).all()
    if min(count, neighbours) > 2:  # fewer points leave the direction open
        apart = (ours - theirs).norm(dim=1).reshape(4, count)
        assert (apart[0] < 1e-6).all()
        # Side on, whether a normal faces the camera is a matter of rounding.
        side_on = (ours * packed).sum(dim=1).reshape(4, count)[3].abs() < 1e-6
        assert ((apart[3] < 1e-6) | side_on).all()
        # Points on a line, and a point far away among a few, leave the direction open.
        assert alike > (0.95 if count > 2 * neighbours else 0.7)


def test_empty_batches(native: str, both: Both) -> None:
    cloud, nodes = torch.zeros(0, 3, 5, device=native), torch.zeros(0, 3, 4, device=native)
    index, neighbours = (torch.zeros(0, *shape, dtype=torch.int64, device=native) for shape in ((5,), (4, 2)))
    data = torch.zeros(0, 3, 5, device=native, requires_grad=True)

    def run() -> list[Tensor]:
        layer = (torch.zeros(6, 3, device=native), torch.zeros(6, device=native))
        results = [*ops.associate(cloud, nodes, 2), *ops.index_max(data, index, 4), *ops.chamfer_nn(cloud, nodes)]
        results += [ops.knn_gather(nodes, neighbours), *ops.knn_max(nodes, neighbours), som.train_som(cloud)]
        results += [ops.linear_index_max(data.transpose(1, 2), *layer, index, 4)]
        results += [*ops.chamfer_distance(data, nodes)]
        return [*results, torch.autograd.grad(results[3].sum() + results[-3].sum() + results[-1].sum(), data)[0]]

    for ours, theirs in zip(*both(run), strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert ours.numel() == 0
    assert ops.chamfer_distance(data, nodes).total.isnan()  # as torch's own mean


def everything(points: Tensor, data: Tensor, pair: Tensor, layer: list[Tensor]) -> list[Tensor]:
    """Results and gradients of all operations."""
    nodes = som.train_som(points)
    attached = ops.associate(points, nodes, 3)
    neighbours = ops.node_knn(nodes, 9)
    value, argmax = ops.index_max(data, pair, 64)
    linear = ops.linear_index_max(layer[0], layer[1], layer[2], pair, 64)
    gathered, largest = ops.knn_gather(value, neighbours), ops.knn_max(value, neighbours)
    pred = points[..., ::2] * 1.01
    chamfer = ops.chamfer_distance(pred, points)
    loss = (gathered**2).sum() + (largest[0] ** 3).sum() + (linear**2).sum() + chamfer.total
    gradients = torch.autograd.grad(loss, [data, points, *layer])
    return [nodes, *attached, neighbours, value, argmax, linear, gathered, *largest, *chamfer, *gradients]


def drawn_inputs(device: str) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    points, data = drawn(3, 3, 1024).to(device), drawn(3, 40, 3072).to(device)
    layer = [drawn(*shape).to(device).requires_grad_() for shape in ((3, 3072, 24), (32, 24), (32,))]
    return points.requires_grad_(), data.requires_grad_(), integers(64, 3, 3072, device=device), layer


def test_repeated_and_threaded_runs_give_the_same_bits(native: str) -> None:
    inputs = drawn_inputs(native)
    cloud = drawn(900, 3) + torch.tensor([0.0, 0.0, 3.0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = [*everything(*inputs), ops.estimate_normals(cloud, torch.tensor([400, 500]))]
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = [*everything(*inputs), ops.estimate_normals(cloud, torch.tensor([400, 500]))]
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_a_sample_of_a_batch_equals_the_sample_alone(native: str) -> None:
    points, data, pair, layer = drawn_inputs(native)
    whole = everything(points, data, pair, layer)
    alone = everything(
        points[1:2].detach().requires_grad_(),
        data[1:2].detach().requires_grad_(),
        pair[1:2],
        [layer[0][1:2].detach().requires_grad_(), layer[1], layer[2]],
    )
    for one, many in zip(alone[:13], whole[:13], strict=True):
        torch.testing.assert_close(one, many[1:2], rtol=1e-6, atol=1e-6)


def test_non_contiguous_input(native: str) -> None:
    points, data, pair, layer = drawn_inputs(native)

    def odd(value: Tensor) -> Tensor:
        spread = torch.stack([value.detach(), value.detach()], dim=-1)[..., 0]
        assert not spread.is_contiguous()
        return spread.requires_grad_(value.requires_grad)

    plain = everything(points, data, pair, layer)
    strange = everything(odd(points), odd(data), odd(pair), [odd(value) for value in layer])
    for one, other in zip(strange, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_memory_layout_of_results(native: str) -> None:
    for last in LAYOUTS:
        data = feature_of((2, 5, 12), torch.float32, last, native)
        value, argmax = ops.index_max(data, integers(4, 2, 12, device=native), 4)
        gathered = ops.knn_gather(value, integers(4, 2, 4, 3, device=native))
        largest, _ = ops.knn_max(value, integers(4, 2, 4, 3, device=native))
        for result in (value, argmax, largest):
            assert result.transpose(1, 2).is_contiguous() == last
            assert result.is_contiguous() != last
        assert gathered.is_contiguous(memory_format=torch.channels_last) == last
        assert gathered.is_contiguous() != last


@pytest.mark.gpu
def test_wild_indices_on_the_gpu_are_harmless() -> None:
    data = drawn(1, 4, 40).cuda()
    wild = integers(2_000_000, 1, 40, device="cuda") - 1_000_000
    assert (ops.index_max(data, wild, 4)[0] == 0).all()
    assert (ops.knn_gather(data, wild[..., None]) == 0).all()
    assert (ops.knn_max(data, wild[..., None])[1] == 0).all()


# ------------------------------------------------------------------------------------------------- gradients


def test_gradcheck_in_float64() -> None:
    data = drawn(2, 3, 12).double().requires_grad_()
    index, neighbours = integers(4, 2, 12), integers(12, 2, 3, 2)
    assert torch.autograd.gradcheck(lambda v: ops.index_max(v, index, 5)[0], data)
    assert torch.autograd.gradcheck(lambda v: ops.knn_gather(v, neighbours), data)
    assert torch.autograd.gradcheck(lambda v: ops.knn_max(v, neighbours)[0], data)
    layer = [drawn(*shape, seed=3).double().requires_grad_() for shape in ((2, 12, 3), (4, 3), (4,))]
    assert torch.autograd.gradcheck(lambda x, w, b: ops.linear_index_max(x, w, b, index, 5), layer)
    cloud = drawn(2, 3, 9, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, g: tuple(ops.chamfer_distance(p, g)), (data, cloud))


def test_written_gradients_equal_autograd_through_torch() -> None:
    data, neighbours = drawn(2, 6, 20).requires_grad_(), integers(20, 2, 8, 3)
    index = torch.arange(20).expand(2, 20) // 5
    pull = drawn(2, 6, 4, seed=2)
    pairs = [
        ((ops.index_max(data, index, 4)[0] * pull).sum(), (data.reshape(2, 6, 4, 5).amax(dim=3) * pull).sum()),
        (
            ops.knn_max(data, neighbours)[0].prod(dim=2).sum(),
            reference.knn_gather(data, neighbours).amax(dim=3).prod(dim=2).sum(),
        ),
        (ops.knn_gather(data, neighbours).prod(dim=3).sum(), reference.knn_gather(data, neighbours).prod(3).sum()),
    ]
    for written, plain in pairs:
        ours, theirs = (torch.autograd.grad(value, data)[0] for value in (written, plain))
        print(f"written gradient max diff {(ours - theirs).abs().max():.3g}")
        torch.testing.assert_close(ours, theirs)


# ------------------------------------------------------------------------------------------------- torch.library


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_opcheck(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDPOSE_KERNELS", backend)
    space = torch.ops.sohandnet
    cloud, nodes = drawn(2, 3, 40), drawn(2, 3, 4, seed=1)
    index, neighbours = integers(4, 2, 40).int(), integers(40, 2, 4, 3).int()
    small = [drawn(*shape).requires_grad_() for shape in ((2, 40, 7), (5, 7), (5,))]
    value, argmax = space.linear_index_max(*small, index, 4)
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (space.associate, (cloud, nodes, 3)),
        (space.batch_som, (cloud, nodes[0], *som.schedule(2))),
        (space.chamfer_nn, (cloud, nodes, "native")),
        (space.chamfer_distance, (cloud.clone().requires_grad_(), nodes.clone().requires_grad_(), "native")),
        (space.linear_index_max, (*small, index, 4)),
        (space.linear_index_max_backward, (value.detach(), argmax, *(v.detach() for v in small[:2]), index)),
        (space.estimate_normals, (cloud[0].T.double().contiguous(), torch.tensor([30, 10]), 5)),
    ]
    _, to_nodes, _, to_cloud = ops.chamfer_nn(cloud, nodes)
    cases.append((space.chamfer_backward, (cloud, nodes, to_nodes, to_cloud, torch.ones(2), torch.ones(2))))
    for last, dtype in zip(LAYOUTS, FLOATS, strict=True):
        data = feature_of((2, 6, 40), dtype, last, "cpu").nan_to_num()
        value, argmax = ops.index_max(data, index, 4)
        gathered, (largest, place) = ops.knn_gather(data, neighbours), ops.knn_max(data, neighbours)
        cases += [
            (space.index_max, (data.clone().requires_grad_(), index, 4, False)),
            (space.index_max_backward, (value, argmax, index, 40)),
            (space.knn_gather, (data.clone().requires_grad_(), neighbours)),
            (space.knn_gather_backward, (gathered, neighbours, 40, last)),
            (space.knn_max, (data.clone().requires_grad_(), neighbours)),
            (space.knn_max_backward, (largest, place, 40)),
        ]
    for operator, arguments in cases:
        torch.library.opcheck(operator, arguments)


def test_a_training_step_compiles_without_a_break() -> None:
    points, data, pair, layer = drawn_inputs("cpu")
    neighbours = integers(64, 3, 64, 9)
    tables = som.initial_nodes(), *som.schedule(8)

    def step() -> Tensor:
        value, _ = ops.index_max(data, pair, 64)
        linear = ops.linear_index_max(layer[0], layer[1], layer[2], pair, 64)
        attached = ops.associate(points, ops.batch_som(points, *tables), 3)
        loss = ops.chamfer_distance(points * 1.01, attached.mean).total
        return loss + (ops.knn_max(value, neighbours)[0] ** 2).sum() + (ops.knn_gather(linear, neighbours) ** 2).sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), step())
    wanted = [data, points, *layer]
    for ours, theirs in zip(torch.autograd.grad(compiled(), wanted), torch.autograd.grad(step(), wanted), strict=True):
        torch.testing.assert_close(ours, theirs)
