"""The operations of SO-HandNet in plain torch: the readable oracle, and what runs where no native kernel was built.

Clouds are (B, 3, N): one row each for x, y and z. A *node* is a unit of the self-organising map (M of them), a *pair* a
point together with one of its k nodes (L = k N, k copies of the point axis side by side). Equal distances and equal
values always give the lowest index, whatever the device.

Nothing is validated here: :mod:`sohandnet.kernels.ops` does that and explains every argument.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS_COUNT = 1e-5  # added to the number of points of a node before dividing
EPS_CHAMFER = 1e-8  # added to squared distances before the square root
SEED_FLOOR = -1000.0  # where the original's maximum starts (spec Q31)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(..., 3, N) and (..., 3, M) to (..., N, M): direct differences, summed over x, y, z in this order."""
    x, y, z = (a[..., axis, :, None] - b[..., axis, None, :] for axis in range(3))
    return x * x + y * y + z * z


def _first(hits: Tensor) -> Tensor:
    """Index of the first True along the last axis (the last place where there is none: all NaN), int64."""
    index = torch.arange(hits.shape[-1], device=hits.device)
    return torch.where(hits, index, hits.shape[-1] - 1).amin(dim=-1)


def _summed(values: Tensor, index: Tensor, size: int) -> Tensor:
    """(..., N) values added up by index (..., N) into (..., size), float64.

    Numbers of float32 added in float64 and rounded once: no order of additions can be seen in the result.
    """
    return values.new_zeros((*values.shape[:-1], size), dtype=torch.float64).scatter_add(-1, index, values.double())


# -------------------------------------------------------------------------------------------------------- association


def associate(points: Tensor, nodes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest nodes of each point, and the points of each node; see :func:`..ops.associate`."""
    order = torch.sort(squared_distances(points, nodes), dim=-1, stable=True).indices[..., :k]  # (B, N, k)
    pairs = order.transpose(1, 2).flatten(1)
    count = _summed(torch.ones_like(pairs, dtype=torch.float64), pairs, nodes.shape[-1])
    total = _summed(points.repeat(1, 1, k), pairs[:, None].expand(-1, 3, -1), nodes.shape[-1])
    return order.int(), count.int(), (total / (count[:, None] + EPS_COUNT)).to(points.dtype)


# -------------------------------------------------------------------------------------------------------- masked max


def index_max(data: Tensor, index: Tensor, nodes: int, *, seed_rule: bool = False) -> tuple[Tensor, Tensor]:
    """Maximum (B, C, nodes) of the pairs of each node and where it is, int32; see :func:`..ops.index_max`."""
    batch, channels, length = data.shape
    valid = (index >= 0) & (index < nodes)
    slot = torch.where(valid, index, nodes).long()[:, None].expand(-1, channels, -1)  # strangers go to one more node
    lowest = torch.full((batch, channels, nodes + 1), -torch.inf, dtype=data.dtype, device=data.device)
    seen = torch.where(data > SEED_FLOOR, data, -torch.inf) if seed_rule else data
    best = lowest.scatter_reduce(2, slot, seen, "amax")
    top = best.gather(2, slot)
    hit = (seen == top) | (seen.isnan() & top.isnan())
    place = torch.arange(length, device=data.device).expand_as(seen)
    argmax = torch.full_like(best, length, dtype=torch.int64)
    argmax = argmax.scatter_reduce(2, slot, torch.where(hit, place, length), "amin")[..., :nodes]
    if length == 0:
        return best.new_zeros((batch, channels, nodes)), torch.zeros_like(argmax, dtype=torch.int32)
    filled = argmax < length
    if seed_rule:  # nothing above the floor: pair 0, whoever owns it
        argmax = torch.where(best[..., :nodes] == -torch.inf, 0, argmax)
    argmax = torch.where(filled, argmax, 0)
    return torch.where(filled, data.gather(2, argmax), 0), argmax.int()


def index_max_backward(grad: Tensor, argmax: Tensor, index: Tensor, length: int) -> Tensor:
    """Gradient (B, C, length) of :func:`index_max`: each value sends its gradient to the pair it came from.

    A pair belongs to one node, hence nothing is added up. A node whose argmax is not its own (an empty one, or the
    original's pair 0) sends nothing.
    """
    batch, channels, nodes = grad.shape
    out = grad.new_zeros((batch, channels, length + 1))
    if length == 0:
        return out[..., :0]
    argmax = argmax.long()
    owner = index.long()[:, None].expand(-1, channels, -1).gather(2, argmax)
    own = owner == torch.arange(nodes, device=grad.device)
    return out.scatter_(2, torch.where(own, argmax, length), grad)[..., :length]


# -------------------------------------------------------------------------------------------------------- neighbours


def _columns(feature: Tensor, neighbours: Tensor) -> Tensor:
    """``neighbours`` (B, R, K) as gather indices (B, C, R * K)."""
    return neighbours.long().flatten(1)[:, None].expand(-1, feature.shape[1], -1)


def knn_gather(feature: Tensor, neighbours: Tensor) -> Tensor:
    """feature (B, C, M) at neighbours (B, R, K): (B, C, R, K)."""
    return feature.gather(2, _columns(feature, neighbours)).unflatten(2, neighbours.shape[1:])


def knn_gather_backward(grad: Tensor, neighbours: Tensor, nodes: int) -> Tensor:
    """Gradient (B, C, nodes) of :func:`knn_gather`: the sum over the places where a node was read."""
    return _summed(grad.flatten(2), _columns(grad, neighbours), nodes).to(grad.dtype)


def knn_max(feature: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Largest of the K neighbours (B, C, R), and the lowest node that has this value, int32."""
    gathered = knn_gather(feature, neighbours)
    value = gathered.amax(dim=-1)
    hit = (gathered == value[..., None]) | gathered.isnan()
    nodes = torch.where(hit, neighbours[:, None].long(), feature.shape[2])
    return value, nodes.amin(dim=-1).int()


def knn_max_backward(grad: Tensor, argmax: Tensor, nodes: int) -> Tensor:
    """Gradient (B, C, nodes) of :func:`knn_max`."""
    return _summed(grad, argmax.long(), nodes).to(grad.dtype)


# -------------------------------------------------------------------------------------------- self-organising map


def batch_som(cloud: Tensor, initial: Tensor, factors: Tensor, rates: Tensor) -> Tensor:
    """Nodes (B, 3, M) after one update for each rate; see :func:`..ops.batch_som` and :mod:`sohandnet.som`.

    Node m sits at row m // side, column m % side of the grid; the weight of a source for a target is the product of two
    factors, one for the distance in rows and one for that in columns.
    """
    steps, side = factors.shape
    gap = torch.arange(side, device=cloud.device)
    gap = (gap[:, None] - gap).abs()
    nodes = initial.expand(len(cloud), -1, -1)
    for step in range(steps):
        axis = factors[step][gap]
        weights = torch.kron(axis, axis)  # (M, M)
        distance = squared_distances(cloud, nodes)
        nearest = _first(distance == distance.amin(dim=-1, keepdim=True))
        count = _summed(torch.ones_like(nearest, dtype=torch.float64), nearest, side * side)
        total = _summed(cloud, nearest[:, None].expand(-1, 3, -1), side * side)
        mean = (total / (count[:, None] + EPS_COUNT)).to(cloud.dtype)  # (B, 3, M)
        source = (count > 0).to(cloud.dtype)  # an empty node pulls nobody
        pull = mean @ weights - nodes * (source @ weights)[:, None]
        nodes = nodes + rates[step] * pull
    return nodes.contiguous()


# -------------------------------------------------------------------------------------------------------- Chamfer


def chamfer_nn(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distance to the nearest point of the other cloud and its index, both ways; sample by sample."""
    results: list[tuple[Tensor, ...]] = []
    for one, other in zip(p, g, strict=True):
        distance = squared_distances(one, other)  # (P, Q)
        to_other, to_one = distance.amin(dim=1), distance.amin(dim=0)
        results.append(
            (
                to_other,
                _first(distance == to_other[:, None]).int(),
                to_one,
                _first((distance == to_one).T).int(),
            )
        )
    if not results:
        rows, columns = p.new_empty((0, p.shape[2])), p.new_empty((0, g.shape[2]))
        return rows, rows.int(), columns, columns.int()
    d2_pg, idx_pg, d2_gp, idx_gp = (torch.stack(parts) for parts in zip(*results, strict=True))
    return d2_pg, idx_pg, d2_gp, idx_gp


def distances_at(p: Tensor, g: Tensor, index: Tensor) -> Tensor:
    """Squared distance (B, P) of every point of ``p`` (B, 3, P) to the point of ``g`` that ``index`` (B, P) names."""
    x, y, z = (p - g.gather(2, index.long()[:, None].expand(-1, 3, -1))).unbind(dim=1)
    return x * x + y * y + z * z


def chamfer_backward(
    p: Tensor, g: Tensor, idx_pg: Tensor, idx_gp: Tensor, scale_pg: Tensor, scale_gp: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients for both clouds of sum over i of scale_pg sqrt(d2_i + eps), and the same the other way.

    Args:
        p, g: (B, 3, P) and (B, 3, Q).
        idx_pg, idx_gp: (B, P) and (B, Q), the neighbours.
        scale_pg, scale_gp: (B,), what a unit of one distance counts for.
    """
    grads = []
    for one, other, there, back, scale_there, scale_back in (
        (p, g, idx_pg, idx_gp, scale_pg, scale_gp),
        (g, p, idx_gp, idx_pg, scale_gp, scale_pg),
    ):
        away = one - other.gather(2, there.long()[:, None].expand(-1, 3, -1))
        own = away / torch.sqrt((away * away).sum(dim=1, keepdim=True) + EPS_CHAMFER) * scale_there[:, None, None]
        # The points of the other cloud that have this one as their neighbour, many to one.
        target = back.long()[:, None].expand(-1, 3, -1)
        far = one.gather(2, target) - other
        pulled = far / torch.sqrt((far * far).sum(dim=1, keepdim=True) + EPS_CHAMFER) * scale_back[:, None, None]
        total = _summed(pulled, target, one.shape[2])
        grads.append((own.double() + total).to(one.dtype))
    return grads[0], grads[1]


# -------------------------------------------------------------------------------------------------------- normals


def normals(points: Tensor, counts: Tensor, neighbours: int) -> Tensor:
    """Unit normals (T, 3) float64 of packed clouds; see :func:`..ops.estimate_normals`."""
    out: list[Tensor] = []
    for cloud in points.double().split(counts.tolist()):
        out.extend(_normals_of(queries, cloud, neighbours) for queries in cloud.split(512) if len(queries))
    return torch.cat(out) if out else points.double()


def _normals_of(queries: Tensor, cloud: Tensor, neighbours: int) -> Tensor:
    distance = squared_distances(queries.T, cloud.T)
    k = min(neighbours, len(cloud))
    # The k nearest, among equally far ones those with the lowest indices: these first, then the rest in any order.
    limit = distance.kthvalue(k, dim=1, keepdim=True).values
    index = torch.arange(len(cloud), device=cloud.device)
    rank = torch.where(distance < limit, index, torch.where(distance == limit, index + len(cloud), 2 * len(cloud)))
    nearest = cloud[rank.topk(k, dim=1, largest=False).indices.sort(dim=1).values]  # (Q, k, 3)
    centred = nearest - nearest.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    normal = vectors[..., 0]  # of the smallest variance
    view = -queries / queries.norm(dim=1, keepdim=True).clamp_min(1e-300)
    normal = torch.where(values[:, 2:] > 0, normal, view)  # all neighbours at one place: towards the camera
    return torch.where((normal * queries).sum(dim=1, keepdim=True) > 0, -normal, normal)
