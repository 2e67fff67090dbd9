"""The operations of SO-HandNet for programs: checked arguments, the fastest implementation that is there, gradients.

Every operation is a ``torch.library`` custom operator under the namespace ``sohandnet``, so that ``torch.compile`` and
``opcheck`` know it. Behind it stand three implementations that agree: :mod:`.reference` (plain torch, any device), C++
(``sohandnet_cpu.cpp``) and CUDA (``sohandnet_cuda.cu``); :mod:`shared.kernels` chooses. Indices are the same bit for
bit in all three: distances are direct differences in float32, and equal distances or values give the lowest index.

Clouds, nodes and features are (B, 3, N), (B, 3, M) and (B, C, L): channels first. A feature may *lie* channels last in
memory, which is the faster way: pass ``x.transpose(1, 2)`` of a contiguous (B, L, C) tensor, and the result lies that
way too. A *node* is a unit of the self-organising map, a *pair* a point together with one of its k nodes; pair j N + n
is point n with its j-th node, L = k N (:func:`pair_index`).

Clouds are computed in float32 whatever autocast says; features may be float32 or bfloat16 (sums in float32). float64
always takes the reference.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from shared.errors import DataError
from shared.kernels import Kernels
from shared.kernels_ops import FLOAT_CODE, need, where

from . import reference

__all__ = [
    "KERNELS",
    "Association",
    "Chamfer",
    "ChamferBackend",
    "associate",
    "batch_som",
    "chamfer_distance",
    "chamfer_nn",
    "estimate_normals",
    "index_max",
    "knn_gather",
    "knn_max",
    "linear_index_max",
    "node_knn",
    "pair_index",
]

ChamferBackend = Literal["native", "faiss", "reference"]

KERNELS = Kernels("sohandnet.kernels", "sohandnet", abi=1)
_MAX_NODES = 1024
_HALF = (torch.float16, torch.bfloat16)


# ------------------------------------------------------------------------------------------------------- helpers


def _cloud(points: Tensor, argument: str) -> Tensor:
    """(B, 3, N) checked, at least float32."""
    need(points.dim() == 3 and points.shape[1] == 3, argument, "a tensor (B, 3, N)", points)
    need(points.is_floating_point(), argument, "a floating point type", points)
    return points.float() if points.dtype in _HALF else points


def _same(argument: str, value: Tensor, like: Tensor, batch: bool = True) -> None:
    need(value.device == like.device, argument, f"a tensor on {like.device}", value)
    if batch:
        need(value.shape[0] == like.shape[0], argument, f"a batch of {like.shape[0]}", value)


def _indices(argument: str, index: Tensor, limit: int) -> Tensor:
    """Integers checked (their values only on the CPU: a look at those on a GPU would wait for it), as int32."""
    need(index.dtype in (torch.int32, torch.int64), argument, "int32 or int64", index)
    if index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in index.aminmax())
        need(low >= 0 and high < limit, argument, f"indices from 0 to {limit - 1}", f"{low} to {high}")
    return index.int()


def _features(feature: Tensor, argument: str) -> None:
    need(feature.dim() == 3, argument, "a tensor (B, C, L)", feature)
    need(feature.is_floating_point(), argument, "a floating point type", feature)


def _channels_last(feature: Tensor) -> bool:
    """Whether (B, C, L) lies in memory as (B, L, C)."""
    return not feature.is_contiguous() and feature.transpose(1, 2).is_contiguous()


def _laid(feature: Tensor, last: bool) -> Tensor:
    """``feature`` (B, C, ...) contiguous, or lying as (B, ..., C)."""
    return feature.movedim(1, -1).contiguous().movedim(-1, 1) if last else feature.contiguous()


def _empty(like: Tensor, shape: tuple[int, ...], last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """A new (B, C, ...), lying as (B, ..., C) where ``last`` says so."""
    if last:
        return like.new_empty((shape[0], *shape[2:], shape[1]), dtype=dtype).movedim(-1, 1)
    return like.new_empty(shape, dtype=dtype)


# ------------------------------------------------------------------------------------------------------- association


class Association(NamedTuple):
    """What :func:`associate` gives."""

    nearest: Tensor  # (B, N, k) int32, the nodes of each point, nearest first
    pairs: Tensor  # (B, M) int32, how many pairs a node has
    mean: Tensor  # (B, 3, M), mean of the points of each node; exactly 0 for a node without any


def associate(points: Tensor, nodes: Tensor, k: int) -> Association:
    """Attaches every point to its k nearest nodes and recomputes the nodes as the means of their points (spec 2.3).

    Args:
        points: (B, 3, N).
        nodes: (B, 3, M) with M of at most 1024.
        k: 1 to M.

    Returns:
        An :class:`Association`, without gradients. A point's nodes are sorted by (squared distance, node index); the
        mean is sum / (count + 1e-5). NaN coordinates give some indices, all of them valid.

    Raises:
        DataError: for shapes that do not fit together.
    """
    points, nodes = _cloud(points, "points").detach(), _cloud(nodes, "nodes").detach()
    _same("nodes", nodes, points)
    need(0 < nodes.shape[2] <= _MAX_NODES, "nodes", f"1 to {_MAX_NODES} nodes", nodes)
    need(0 < k <= nodes.shape[2], "k", f"1 to {nodes.shape[2]}, the number of nodes", k)
    return Association(*torch.ops.sohandnet.associate(points, nodes.to(points.dtype), k))


@torch.library.custom_op("sohandnet::associate", mutates_args=())
def _associate(points: Tensor, nodes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    module = KERNELS.native_for(points, torch.float32)
    if module is None:
        index, count, mean = reference.associate(points, nodes, k)
        return index.contiguous(), count, mean
    points, nodes = points.contiguous(), nodes.contiguous()
    batch, _, length = points.shape
    m = nodes.shape[2]
    index = points.new_empty((batch, length, k), dtype=torch.int32)
    count = points.new_empty((batch, m), dtype=torch.int32)
    mean = torch.empty_like(nodes)
    pointers = [value.data_ptr() for value in (points, nodes)]
    results = [value.data_ptr() for value in (index, count, mean)]
    module.associate(*pointers, batch, length, m, k, *results, *where(points))
    return index, count, mean


@_associate.register_fake
def _(points: Tensor, nodes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, length = points.shape
    index = points.new_empty((batch, length, k), dtype=torch.int32)
    return index, points.new_empty((batch, nodes.shape[2]), dtype=torch.int32), points.new_empty(nodes.shape)


def pair_index(nearest: Tensor) -> Tensor:
    """Node (B, L) int32 of every pair, from ``nearest`` (B, N, k) of :func:`associate`: k copies of the point axis."""
    return nearest.transpose(1, 2).flatten(1)


def node_knn(nodes: Tensor, k: int) -> Tensor:
    """The k nearest nodes of each node of the same cloud (B, M, k) int64, sorted by (distance, index).

    The first is the node itself, unless a twin at the same place has a lower index.

    Args:
        nodes: (B, 3, M), M at most 1024.
        k: 1 to M.

    Raises:
        DataError: for another shape or k.
    """
    return associate(nodes, nodes, k).nearest.long()


# ------------------------------------------------------------------------------------------------------- masked max


def index_max(data: Tensor, index: Tensor, nodes: int, *, seed_rule: bool = False) -> tuple[Tensor, Tensor]:
    """Largest value among the pairs of each node, channel by channel, and which pair it is; differentiable in ``data``.

    Equal values give the lowest pair. A node without pairs has value 0 and argmax 0. A NaN counts as the largest value
    and comes out. The gradient of a value goes to its pair, that of an empty node nowhere. Also the maximum over groups
    of equal size, with ``index`` = position // size.

    Args:
        data: (B, C, L) float32 or bfloat16, contiguous or lying channels last.
        index: (B, L) int32 or int64, the node of each pair.
        nodes: M, their number.
        seed_rule: the original's argmax (spec Q31): values of at most -1000 and NaN are passed over, and a node that
            has no other gives pair 0, whoever owns it (without a gradient, if it owns it not).

    Returns:
        Values (B, C, M) in the type and memory layout of ``data``, and argmax (B, C, M) int32, always a valid pair if
        L > 0.

    Raises:
        DataError: for shapes, types or indices that do not fit together. On a GPU pairs with a wrong index are
            passed over.
    """
    _features(data, "data")
    need(tuple(index.shape) == (data.shape[0], data.shape[2]), "index", f"(B, L) for data {tuple(data.shape)}", index)
    _same("index", index, data)
    need(nodes > 0, "nodes", "at least one node", nodes)
    index = _indices("index", index, nodes)
    value, argmax = torch.ops.sohandnet.index_max(data, index, nodes, seed_rule)
    return value, argmax


@torch.library.custom_op("sohandnet::index_max", mutates_args=())
def _index_max(data: Tensor, index: Tensor, nodes: int, seed_rule: bool) -> tuple[Tensor, Tensor]:
    last = _channels_last(data)
    module = KERNELS.native_for(data, *FLOAT_CODE)
    if module is None:
        value, argmax = reference.index_max(data, index, nodes, seed_rule=seed_rule)
        return _laid(value, last), _laid(argmax, last)
    data, index = _laid(data, last), index.contiguous()
    batch, channels, length = data.shape
    value = _empty(data, (batch, channels, nodes), last)
    argmax = _empty(data, (batch, channels, nodes), last, torch.int32)
    module.index_max(
        data.data_ptr(),
        FLOAT_CODE[data.dtype],
        index.data_ptr(),
        batch,
        channels,
        length,
        nodes,
        last,
        seed_rule,
        value.data_ptr(),
        argmax.data_ptr(),
        *where(data),
    )
    return value, argmax


@_index_max.register_fake
def _(data: Tensor, index: Tensor, nodes: int, seed_rule: bool) -> tuple[Tensor, Tensor]:
    shape, last = (*data.shape[:2], nodes), _channels_last(data)
    return _empty(data, shape, last), _empty(data, shape, last, torch.int32)


@torch.library.custom_op("sohandnet::index_max_backward", mutates_args=())
def _index_max_backward(grad: Tensor, argmax: Tensor, index: Tensor, length: int) -> Tensor:
    last = _channels_last(argmax)
    module = KERNELS.native_for(grad, *FLOAT_CODE)
    if module is None:
        return _laid(reference.index_max_backward(grad, argmax, index, length), last)
    grad, argmax, index = _laid(grad, last), _laid(argmax, last), index.contiguous()
    batch, channels, nodes = grad.shape
    out = _empty(grad, (batch, channels, length), last)
    pointers = (argmax.data_ptr(), index.data_ptr(), batch, channels, length, nodes, last, out.data_ptr())
    module.index_max_backward(grad.data_ptr(), FLOAT_CODE[grad.dtype], *pointers, *where(grad))
    return out


@_index_max_backward.register_fake
def _(grad: Tensor, argmax: Tensor, index: Tensor, length: int) -> Tensor:
    return _empty(grad, (*grad.shape[:2], length), _channels_last(argmax))


def _index_max_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    data, index, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], index)
    ctx.length = data.shape[2]


def _index_max_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    argmax, index = ctx.saved_tensors
    return torch.ops.sohandnet.index_max_backward(grad, argmax, index, ctx.length), None, None, None


_index_max.register_autograd(_index_max_gradient, setup_context=_index_max_context)


def linear_index_max(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, nodes: int) -> Tensor:
    """:func:`index_max` of a linear layer over pairs, whose backward pass works on the chosen pairs only.

    Of the L C outputs of the layer at most M C survive the maximum. The gradients of weight and input are therefore
    sums over M C rows, where the dense ones take L C: with 64 nodes, 3072 pairs a forty-eighth of the work. The output
    of the layer is not kept. For a layer that stands directly before the maximum (no batch norm in between).

    Args:
        x: (B, L, D) float32 or bfloat16, channels last (this is the layout of matrix products).
        weight: (C, D).
        bias: (C,).
        index: (B, L) int32 or int64, the node of each pair.
        nodes: M, their number.

    Returns:
        (B, C, M), lying channels last; 0 for a node without pairs. Differentiable in x, weight and bias, once.

    Raises:
        DataError: for shapes, types or indices that do not fit together.
    """
    need(x.dim() == 3, "x", "a tensor (B, L, D)", x)
    need(x.is_floating_point(), "x", "a floating point type", x)
    need(weight.dim() == 2 and weight.shape[1] == x.shape[2], "weight", f"(C, {x.shape[2]})", weight)
    need(tuple(bias.shape) == (weight.shape[0],), "bias", f"({weight.shape[0]},)", bias)
    need(tuple(index.shape) == tuple(x.shape[:2]), "index", f"{tuple(x.shape[:2])} as x has it", index)
    for name, value in (("weight", weight), ("bias", bias), ("index", index)):
        need(value.device == x.device, name, f"a tensor on {x.device}", value)
    need(nodes > 0, "nodes", "at least one node", nodes)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    index = _indices("index", index, nodes)
    tensors = (value.to(dtype) for value in (x, weight, bias))
    return cast(Tensor, torch.ops.sohandnet.linear_index_max(*tensors, index, nodes)[0])


@torch.library.custom_op("sohandnet::linear_index_max", mutates_args=())
def _linear_index_max(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    module = KERNELS.native_for(x, *FLOAT_CODE)
    if module is None or x.device.type != "cpu":
        data = torch.nn.functional.linear(x, weight, bias).transpose(1, 2)
        value, argmax = torch.ops.sohandnet.index_max(data, index, nodes, False)
        return _laid(value, True), _laid(argmax, True)
    index = index.contiguous()
    (batch, length, _), channels = x.shape, weight.shape[0]
    value = _empty(x, (batch, channels, nodes), True)
    argmax = _empty(x, (batch, channels, nodes), True, torch.int32)
    data = x.new_empty((length, channels))  # of one sample after the other, which stays in the cache
    sizes = (1, channels, length, nodes, True, False)
    for b in range(batch):
        torch.addmm(bias, x[b], weight.T, out=data)
        results = (value[b].data_ptr(), argmax[b].data_ptr())
        module.index_max(data.data_ptr(), FLOAT_CODE[x.dtype], index[b].data_ptr(), *sizes, *results, *where(x))
    return value, argmax


@_linear_index_max.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0], nodes)
    return _empty(x, shape, True), _empty(x, shape, True, torch.int32)


@torch.library.custom_op("sohandnet::linear_index_max_backward", mutates_args=())
def _linear_index_max_backward(
    grad: Tensor, argmax: Tensor, x: Tensor, weight: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    module = KERNELS.native_for(x, *FLOAT_CODE)
    (batch, length, width), (_, channels, nodes) = x.shape, grad.shape
    if module is None or x.device.type != "cpu" or 8 * nodes > length:  # then the dense products are as quick
        dense = torch.ops.sohandnet.index_max_backward(grad, argmax, index, length).transpose(1, 2)  # (B, L, C)
        rows = dense.reshape(-1, channels)
        return dense @ weight, rows.T @ x.reshape(-1, width), rows.sum(dim=0)
    x, weight, index = x.contiguous(), weight.contiguous(), index.contiguous()
    grad, argmax = _laid(grad, True), _laid(argmax, True)
    grad_x = torch.empty_like(x)
    grad_weight, grad_bias = (x.new_empty(shape, dtype=torch.float32) for shape in ((channels, width), (channels,)))
    inputs = [value.data_ptr() for value in (argmax, x, weight, index)]
    results = [value.data_ptr() for value in (grad_x, grad_weight, grad_bias)]
    sizes = (batch, channels, length, nodes, width)
    module.linear_max_backward(grad.data_ptr(), FLOAT_CODE[x.dtype], *inputs, *sizes, *results, *where(x))
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


@_linear_index_max_backward.register_fake
def _(grad: Tensor, argmax: Tensor, x: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty((weight.shape[0],))


def _linear_index_max_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, index, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], x, weight, index)


def _linear_index_max_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *torch.ops.sohandnet.linear_index_max_backward(grad, *ctx.saved_tensors), None, None


_linear_index_max.register_autograd(_linear_index_max_gradient, setup_context=_linear_index_max_context)


# ------------------------------------------------------------------------------------------------------- neighbours


def _neighbours(feature: Tensor, neighbours: Tensor) -> Tensor:
    _features(feature, "feature")
    need(neighbours.dim() == 3 and neighbours.shape[2] > 0, "neighbours", "(B, R, K) with K of at least 1", neighbours)
    _same("neighbours", neighbours, feature)
    return _indices("neighbours", neighbours, feature.shape[2])


def knn_gather(feature: Tensor, neighbours: Tensor) -> Tensor:
    """Features of the neighbours of each node: out[b, c, r, k] = feature[b, c, neighbours[b, r, k]].

    The gradient of a node is the sum over the places where it was read, in ascending order of (r, k): always the same
    bits.

    Args:
        feature: (B, C, M) float32 or bfloat16, contiguous or lying channels last.
        neighbours: (B, R, K) int32 or int64.

    Returns:
        (B, C, R, K); lies as (B, R, K, C) if the feature lies channels last (torch.channels_last).

    Raises:
        DataError: for shapes, types or indices that do not fit together.
    """
    return cast(Tensor, torch.ops.sohandnet.knn_gather(feature, _neighbours(feature, neighbours)))


@torch.library.custom_op("sohandnet::knn_gather", mutates_args=())
def _knn_gather(feature: Tensor, neighbours: Tensor) -> Tensor:
    last = _channels_last(feature)
    module = KERNELS.native_for(feature, *FLOAT_CODE)
    if module is None:
        return _laid(reference.knn_gather(feature, neighbours), last)
    feature, neighbours = _laid(feature, last), neighbours.contiguous()
    (batch, channels, m), (_, rows, k) = feature.shape, neighbours.shape
    out = _empty(feature, (batch, channels, rows, k), last)
    module.knn_gather(
        feature.data_ptr(),
        FLOAT_CODE[feature.dtype],
        neighbours.data_ptr(),
        batch,
        channels,
        m,
        rows * k,
        last,
        out.data_ptr(),
        *where(feature),
    )
    return out


@_knn_gather.register_fake
def _(feature: Tensor, neighbours: Tensor) -> Tensor:
    return _empty(feature, (*feature.shape[:2], *neighbours.shape[1:]), _channels_last(feature))


@torch.library.custom_op("sohandnet::knn_gather_backward", mutates_args=())
def _knn_gather_backward(grad: Tensor, neighbours: Tensor, nodes: int, last: bool) -> Tensor:
    module = KERNELS.native_for(grad, *FLOAT_CODE)
    if module is None:
        return _laid(reference.knn_gather_backward(grad, neighbours, nodes), last)
    grad, neighbours = _laid(grad, last), neighbours.contiguous()
    batch, channels, rows, k = grad.shape
    out = _empty(grad, (batch, channels, nodes), last)
    module.knn_gather_backward(
        grad.data_ptr(),
        FLOAT_CODE[grad.dtype],
        neighbours.data_ptr(),
        batch,
        channels,
        nodes,
        rows * k,
        last,
        out.data_ptr(),
        *where(grad),
    )
    return out


@_knn_gather_backward.register_fake
def _(grad: Tensor, neighbours: Tensor, nodes: int, last: bool) -> Tensor:
    return _empty(grad, (*grad.shape[:2], nodes), last)


def _knn_gather_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    feature, neighbours = inputs
    ctx.save_for_backward(neighbours)
    ctx.nodes, ctx.last = feature.shape[2], _channels_last(feature)


def _knn_gather_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (neighbours,) = ctx.saved_tensors
    return torch.ops.sohandnet.knn_gather_backward(grad, neighbours, ctx.nodes, ctx.last), None


_knn_gather.register_autograd(_knn_gather_gradient, setup_context=_knn_gather_context)


def knn_max(feature: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Largest feature among the neighbours of each node, without building the (B, C, R, K) tensor; differentiable.

    The order of the neighbours has no influence: of equal values the lowest node counts. A NaN counts as the largest.
    The gradient adds up in ascending order of r: always the same bits.

    Args:
        feature: (B, C, M) float32 or bfloat16, contiguous or lying channels last.
        neighbours: (B, R, K) int32 or int64.

    Returns:
        Values (B, C, R) in the type and memory layout of ``feature``, and argmax (B, C, R) int32, a node.

    Raises:
        DataError: for shapes, types or indices that do not fit together.
    """
    value, argmax = torch.ops.sohandnet.knn_max(feature, _neighbours(feature, neighbours))
    return value, argmax


@torch.library.custom_op("sohandnet::knn_max", mutates_args=())
def _knn_max(feature: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    last = _channels_last(feature)
    module = KERNELS.native_for(feature, *FLOAT_CODE)
    if module is None:
        value, argmax = reference.knn_max(feature, neighbours)
        return _laid(value, last), _laid(argmax, last)
    feature, neighbours = _laid(feature, last), neighbours.contiguous()
    (batch, channels, m), (_, rows, k) = feature.shape, neighbours.shape
    value = _empty(feature, (batch, channels, rows), last)
    argmax = _empty(feature, (batch, channels, rows), last, torch.int32)
    module.knn_max(
        feature.data_ptr(),
        FLOAT_CODE[feature.dtype],
        neighbours.data_ptr(),
        batch,
        channels,
        m,
        rows,
        k,
        last,
        value.data_ptr(),
        argmax.data_ptr(),
        *where(feature),
    )
    return value, argmax


@_knn_max.register_fake
def _(feature: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    shape, last = (*feature.shape[:2], neighbours.shape[1]), _channels_last(feature)
    return _empty(feature, shape, last), _empty(feature, shape, last, torch.int32)


@torch.library.custom_op("sohandnet::knn_max_backward", mutates_args=())
def _knn_max_backward(grad: Tensor, argmax: Tensor, nodes: int) -> Tensor:
    last = _channels_last(argmax)
    module = KERNELS.native_for(grad, *FLOAT_CODE)
    if module is None:
        return _laid(reference.knn_max_backward(grad, argmax, nodes), last)
    grad, argmax = _laid(grad, last), _laid(argmax, last)
    batch, channels, rows = grad.shape
    out = _empty(grad, (batch, channels, nodes), last)
    pointers = (argmax.data_ptr(), batch, channels, nodes, rows, last, out.data_ptr())
    module.knn_max_backward(grad.data_ptr(), FLOAT_CODE[grad.dtype], *pointers, *where(grad))
    return out


@_knn_max_backward.register_fake
def _(grad: Tensor, argmax: Tensor, nodes: int) -> Tensor:
    return _empty(grad, (*grad.shape[:2], nodes), _channels_last(argmax))


def _knn_max_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.nodes = inputs[0].shape[2]


def _knn_max_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    (argmax,) = ctx.saved_tensors
    return torch.ops.sohandnet.knn_max_backward(grad, argmax, ctx.nodes), None


_knn_max.register_autograd(_knn_max_gradient, setup_context=_knn_max_context)


# -------------------------------------------------------------------------------------------- self-organising map


def batch_som(cloud: Tensor, initial: Tensor, factors: Tensor, rates: Tensor) -> Tensor:
    """Trains one self-organising map for each cloud (spec 2.2); :func:`sohandnet.som.train_som` has the right numbers.

    An update attaches every point to its nearest node (equal distances: the lowest) and moves every node j by
    rate * sum over nodes i with points of w_ij (mean_i - x_j), all at once. A node without points pulls nobody.

    Args:
        cloud: (B, 3, N).
        initial: (3, M) nodes of a grid with M = side * side of at most 1024, node m at row m // side, column m % side.
        factors: (steps, side) float32; w_ij = factors[t, distance in rows] * factors[t, distance in columns].
        rates: (steps,) float32.

    Returns:
        (B, 3, M) in the type of ``cloud``, without gradients.

    Raises:
        DataError: for shapes that do not fit together.
    """
    cloud, initial = _cloud(cloud, "cloud").detach(), initial.detach()
    need(factors.dim() == 2 and 0 < factors.shape[1] <= 32, "factors", "(steps, side), side of 1 to 32", factors)
    steps, side = factors.shape
    need(tuple(initial.shape) == (3, side * side), "initial", f"(3, {side * side}) for side {side}", initial)
    need(tuple(rates.shape) == (steps,), "rates", f"({steps},)", rates)
    tables = [value.detach().to(cloud.device, cloud.dtype) for value in (initial, factors, rates)]
    return cast(Tensor, torch.ops.sohandnet.batch_som(cloud, *tables))


@torch.library.custom_op("sohandnet::batch_som", mutates_args=())
def _batch_som(cloud: Tensor, initial: Tensor, factors: Tensor, rates: Tensor) -> Tensor:
    module = KERNELS.native_for(cloud, torch.float32)
    if module is None:
        return reference.batch_som(cloud, initial, factors, rates).clone()
    cloud, initial, factors, rates = (value.contiguous() for value in (cloud, initial, factors, rates))
    batch, _, length = cloud.shape
    steps, side = factors.shape
    nodes = cloud.new_empty((batch, 3, side * side))
    tables = [value.data_ptr() for value in (cloud, initial, factors, rates)]
    nearest = cloud.new_empty((batch, length), dtype=torch.int32)  # scratch memory, of use on CUDA only
    module.batch_som(*tables, batch, length, side, steps, nearest.data_ptr(), nodes.data_ptr(), *where(cloud))
    return nodes


@_batch_som.register_fake
def _(cloud: Tensor, initial: Tensor, factors: Tensor, rates: Tensor) -> Tensor:
    return cloud.new_empty((cloud.shape[0], *initial.shape))


# ------------------------------------------------------------------------------------------------------- Chamfer


class Chamfer(NamedTuple):
    """What :func:`chamfer_distance` gives, in the unit of the clouds."""

    forward: Tensor  # (B,), mean distance from a point of pred to the nearest of cloud
    backward: Tensor  # (B,), mean distance from a point of cloud to the nearest of pred

    @property
    def total(self) -> Tensor:
        """The loss: both, averaged over the batch."""
        return (self.forward + self.backward).mean()


def _two_clouds(p: Tensor, g: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    p, g = _cloud(p, names[0]), _cloud(g, names[1])
    _same(names[1], g, p)
    for name, value in zip(names, (p, g), strict=True):
        need(value.shape[2] > 0, name, "at least one point in each cloud", value)
    dtype = torch.promote_types(p.dtype, g.dtype)
    return p.to(dtype), g.to(dtype)


def _backend(backend: ChamferBackend) -> None:
    need(backend in get_args(ChamferBackend), "backend", "native, faiss or reference", repr(backend))
    if backend == "faiss":
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise DataError(
                "Chamfer distance: the faiss backend was asked for, but faiss cannot be imported",
                remedy="pip install faiss-cpu, or take the backend native",
            ) from error


def chamfer_nn(p: Tensor, g: Tensor, *, backend: ChamferBackend = "native") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest neighbours between two clouds, both ways; exact, equal distances give the lowest index.

    Args:
        p: (B, 3, P), P of at least 1.
        g: (B, 3, Q), Q of at least 1.
        backend: ``native`` (the torch reference where no kernel is there), ``reference``, or ``faiss`` (its flat L2
            index on the CPU, sample by sample; a neighbour that is as near to within rounding may differ).

    Returns:
        Squared distance (B, P) and index (B, P) int32 from p to g, then (B, Q) and (B, Q) from g to p; no gradients.

    Raises:
        DataError: for shapes that do not fit together, another backend, or faiss where it is not installed.
    """
    p, g = _two_clouds(p.detach(), g.detach(), ("p", "g"))
    _backend(backend)
    d2_pg, idx_pg, d2_gp, idx_gp = torch.ops.sohandnet.chamfer_nn(p, g, backend)
    return d2_pg, idx_pg, d2_gp, idx_gp


@torch.library.custom_op("sohandnet::chamfer_nn", mutates_args=())
def _chamfer_nn(p: Tensor, g: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend == "faiss":
        idx_pg, idx_gp = _faiss_neighbours(p, g), _faiss_neighbours(g, p)
        return reference.distances_at(p, g, idx_pg), idx_pg, reference.distances_at(g, p, idx_gp), idx_gp
    module = KERNELS.native_for(p, torch.float32) if backend == "native" else None
    if module is None:
        return reference.chamfer_nn(p, g)
    p, g = p.contiguous(), g.contiguous()
    shapes = (p.shape[0], p.shape[2]), (g.shape[0], g.shape[2])
    results = [p.new_empty(shape, dtype=dtype) for shape in shapes for dtype in (torch.float32, torch.int32)]
    pointers = [value.data_ptr() for value in results]
    module.chamfer_nn(p.data_ptr(), g.data_ptr(), *shapes[0], shapes[1][1], *pointers, *where(p))
    return results[0], results[1], results[2], results[3]


@_chamfer_nn.register_fake
def _(p: Tensor, g: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = p.new_empty((p.shape[0], p.shape[2])), g.new_empty((g.shape[0], g.shape[2]))
    return rows, torch.empty_like(rows, dtype=torch.int32), columns, torch.empty_like(columns, dtype=torch.int32)


def _faiss_neighbours(p: Tensor, g: Tensor) -> Tensor:
    import faiss

    found = []
    for queries, points in zip(p.transpose(1, 2).float().cpu(), g.transpose(1, 2).float().cpu(), strict=True):
        index = faiss.IndexFlatL2(3)
        index.add(points.contiguous().numpy())
        found.append(torch.from_numpy(index.search(queries.contiguous().numpy(), 1)[1][:, 0]).int())
    return torch.stack(found).to(p.device) if found else p.new_empty((0, p.shape[2]), dtype=torch.int32)


def chamfer_distance(pred: Tensor, cloud: Tensor, *, backend: ChamferBackend = "native") -> Chamfer:
    """Chamfer distance between two clouds, in their unit (spec 3): means of sqrt(squared distance + 1e-8), both ways.

    Differentiable in both clouds, once; the neighbours are constants. Sums have a fixed order.

    Args:
        pred: (B, 3, P), P of at least 1. Half precision is computed in float32.
        cloud: (B, 3, Q), Q of at least 1.
        backend: who finds the neighbours, as in :func:`chamfer_nn`.

    Returns:
        A :class:`Chamfer`, one number per sample and direction; train on ``total``.

    Raises:
        DataError: as :func:`chamfer_nn`.
    """
    pred, cloud = _two_clouds(pred, cloud, ("pred", "cloud"))
    _backend(backend)
    forward, backward, _, _ = torch.ops.sohandnet.chamfer_distance(pred, cloud, backend)
    return Chamfer(forward, backward)


@torch.library.custom_op("sohandnet::chamfer_distance", mutates_args=())
def _chamfer_distance(p: Tensor, g: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d2_pg, idx_pg, d2_gp, idx_gp = torch.ops.sohandnet.chamfer_nn(p, g, backend)
    forward, backward = (torch.sqrt(d2 + reference.EPS_CHAMFER).mean(dim=1) for d2 in (d2_pg, d2_gp))
    return forward, backward, idx_pg, idx_gp


@_chamfer_distance.register_fake
def _(p: Tensor, g: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    forward = p.new_empty((p.shape[0],))
    idx_pg = p.new_empty((p.shape[0], p.shape[2]), dtype=torch.int32)
    idx_gp = p.new_empty((p.shape[0], g.shape[2]), dtype=torch.int32)
    return forward, torch.empty_like(forward), idx_pg, idx_gp


@torch.library.custom_op("sohandnet::chamfer_backward", mutates_args=())
def _chamfer_backward(
    p: Tensor, g: Tensor, idx_pg: Tensor, idx_gp: Tensor, scale_pg: Tensor, scale_gp: Tensor
) -> tuple[Tensor, Tensor]:
    module = KERNELS.native_for(p, torch.float32)
    if module is None:
        grad_p, grad_g = reference.chamfer_backward(p, g, idx_pg, idx_gp, scale_pg, scale_gp)
        return grad_p.contiguous(), grad_g.contiguous()
    tensors = [value.contiguous() for value in (p, g, idx_pg, idx_gp, scale_pg, scale_gp)]
    grad_p, grad_g = p.new_empty(p.shape), g.new_empty(g.shape)
    pointers = [value.data_ptr() for value in tensors]
    sizes = (p.shape[0], p.shape[2], g.shape[2])
    module.chamfer_backward(*pointers, *sizes, grad_p.data_ptr(), grad_g.data_ptr(), *where(p))
    return grad_p, grad_g


@_chamfer_backward.register_fake
def _(
    p: Tensor, g: Tensor, idx_pg: Tensor, idx_gp: Tensor, scale_pg: Tensor, scale_gp: Tensor
) -> tuple[Tensor, Tensor]:
    return p.new_empty(p.shape), g.new_empty(g.shape)


def _chamfer_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    p, g, _ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(p, g, *output[2:])


def _chamfer_gradient(
    ctx: Any, forward: Tensor, backward: Tensor, _: Tensor, __: Tensor
) -> tuple[Tensor, Tensor, None]:
    p, g, idx_pg, idx_gp = ctx.saved_tensors
    scales = forward / p.shape[2], backward / g.shape[2]
    grad_p, grad_g = torch.ops.sohandnet.chamfer_backward(p, g, idx_pg, idx_gp, *scales)
    return grad_p, grad_g, None


_chamfer_distance.register_autograd(_chamfer_gradient, setup_context=_chamfer_context)


# ------------------------------------------------------------------------------------------------------- normals


def estimate_normals(points: Tensor, counts: Tensor, *, neighbours: int = 30) -> Tensor:
    """Surface normals of packed clouds, one plane fit per point, facing the camera (spec 5.5).

    The plane is that of the nearest points, the point itself included (all points of a smaller cloud); among equally
    far ones the lowest index goes first. The normal is the direction of the smallest variance, turned so that the angle
    between it and the way to the camera at the origin is at most 90 degrees. Computed in float64. A point whose
    neighbours all lie at its place gets the direction to the camera (0 at the camera itself). Neighbours on a line
    leave the direction open.

    Args:
        points: (T, 3), the clouds of all frames one after another, camera frame (either sign of y), any unit.
        counts: (B,) int64 number of points of each frame, their sum T; 0 is allowed.
        neighbours: 1 to 64.

    Returns:
        (T, 3) unit normals in the type of ``points`` and on its device (computed on the CPU), without gradients.

    Raises:
        DataError: for shapes that do not fit together, or a coordinate that is not finite.
    """
    need(points.dim() == 2 and points.shape[1] == 3, "points", "packed clouds (T, 3)", points)
    need(points.is_floating_point(), "points", "a floating point type", points)
    need(counts.dim() == 1 and counts.dtype == torch.int64, "counts", "(B,) int64", counts)
    need(0 < neighbours <= 64, "neighbours", "1 to 64", neighbours)
    counts = counts.cpu()
    sizes = counts.tolist()
    need(min(sizes, default=0) >= 0, "counts", "sizes of at least 0", sizes)
    need(sum(sizes) == len(points), "counts", f"sizes that add up to the {len(points)} points", sum(sizes))
    wide = points.detach().to("cpu", torch.float64)
    need(bool(wide.isfinite().all()), "points", "finite coordinates", "a NaN or an infinity")
    normals = torch.ops.sohandnet.estimate_normals(wide, counts, neighbours)
    return cast(Tensor, normals.to(points))


@torch.library.custom_op("sohandnet::estimate_normals", mutates_args=())
def _estimate_normals(points: Tensor, counts: Tensor, neighbours: int) -> Tensor:
    module = KERNELS.native_for(points, torch.float64)
    if module is None:
        return reference.normals(points, counts, neighbours).clone()
    points, counts = points.contiguous(), counts.contiguous()
    out = torch.empty_like(points)
    pointers = (points.data_ptr(), counts.data_ptr(), len(counts), neighbours, out.data_ptr())
    module.estimate_normals(*pointers, *where(points))
    return out


@_estimate_normals.register_fake
def _(points: Tensor, counts: Tensor, neighbours: int) -> Tensor:
    return points.new_empty(points.shape)
