"""Makes ``hand.npz``: a hand model in MANO's format that owes nothing to MANO's numbers.

    python -m shared.standin.build_hand --out shared/standin/hand.npz

The skin is the zero level of a signed distance made of tapered capsules along the bones of an average adult hand (190
mm from wrist crease to middle fingertip). It is meshed densely, thinned by edge collapse to MANO's 778 vertices with
a wrist opening of 16, relaxed on the surface, and numbered so that the vertex ids people publish for MANO
(fingertips, wrist, palm) mean the same here. Weights, regressor and blend shapes follow from the bones. All lengths
in this file are in millimetres until the last step; one fixed seed, so the result is the same every time.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.safe_io import atomic_path

Array = NDArray[np.float64]
Index = NDArray[np.int64]

PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
FINGERS = ("index", "middle", "little", "ring", "thumb")  # MANO's order of chains: joints 3 i + 1 to 3 i + 3
WRIST_LOOP = (38, 92, 234, 239, 279, 215, 214, 121, 78, 79, 108, 120, 119, 117, 118, 122)
# Published vertex ids near each tip; the first is nearest to the finger's end.
TIP_IDS = {
    "thumb": (745, 744, 728),
    "index": (333, 317, 320, 353),
    "middle": (444, 445, 443, 442),
    "ring": (555, 556, 554, 576),
    "little": (672, 673, 671, 694),
}
PALM_IDS = (22, 95)  # back and palm side of the middle of the palm

# Rest pose: fingers along -x, back of the hand +y, thumb side +z. Joint centres, then the end of the finger.
WRIST = (92.0, 2.0, 0.0)
_BASE = {"index": (7.0, 4.5, 25.0), "middle": (3.0, 6.5, 4.0), "ring": (9.0, 4.5, -16.0), "little": (19.0, 0.0, -33.0)}
_LENGTHS = {"index": (42, 25, 22), "middle": (46, 28, 23), "ring": (42, 27, 23), "little": (34, 20, 20)}
_SPREAD = {"index": 8.0, "middle": 0.5, "ring": -7.5, "little": -17.0}  # degrees towards the thumb
_DROOP = {"index": (2, 6, 9), "middle": (2, 6, 9), "ring": (3, 7, 10), "little": (4, 8, 11)}  # degrees below the palm
_THUMB = ((74.0, -6.0, 21.0), (39.0, -17.0, 45.0), (10.0, -22.0, 58.0), (-15.0, -25.0, 66.0))
# Half thickness at the three joints and at the tip.
_RADII = {
    "index": (10.0, 9.2, 8.2, 6.8),
    "middle": (10.3, 9.4, 8.4, 7.0),
    "ring": (9.8, 8.9, 8.0, 6.6),
    "little": (8.8, 7.8, 7.0, 5.9),
    "thumb": (15.0, 11.2, 10.2, 8.0),
}
WRIST_PLANE = 100.0  # x of the opening
STEP = 2.5  # grid of the dense mesh


def skeleton() -> dict[str, Array]:
    """Four points of each finger, base to end, (4, 3) mm."""
    chains = {}
    for name in _BASE:
        points = [np.array(_BASE[name])]
        side = np.deg2rad(_SPREAD[name])
        for length, droop in zip(_LENGTHS[name], np.deg2rad(_DROOP[name]), strict=True):
            step = np.array([-np.cos(side) * np.cos(droop), -np.sin(droop), np.sin(side) * np.cos(droop)])
            points.append(points[-1] + length * step)
        chains[name] = np.array(points)
    chains["thumb"] = np.array(_THUMB)
    return chains


def joint_targets() -> Array:
    """(16, 3) mm joint centres in MANO's order."""
    chains = skeleton()
    return np.concatenate([np.array([WRIST])] + [chains[name][:3] for name in FINGERS])


def _capsule(points: Array, a: Array, b: Array, ra: float, rb: float, flat: float = 1.0) -> Array:
    """Distance to a tapered capsule from ``a`` to ``b``; ``flat`` below 1 makes it thinner along y."""
    stretch = np.array([1.0, 1.0 / flat, 1.0])
    axis = (b - a) * stretch
    offset = (points - a) * stretch
    t = np.clip(offset @ axis / (axis @ axis), 0, 1)
    distance = np.linalg.norm(offset - t[:, None] * axis, axis=1) - (ra + t * (rb - ra))
    return np.asarray(distance * (flat if flat < 1 else 1.0))


def _blend(a: Array, b: Array, width: float) -> Array:
    """Smooth minimum: fills the crease between two bodies over ``width`` mm."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return np.asarray(b + (a - b) * h - width * h * (1 - h))


def _finger_distance(points: Array, name: str) -> Array:
    chain, radii = skeleton()[name], _RADII[name]
    end = chain[3] - chain[2]
    last = chain[3] - end / np.linalg.norm(end) * radii[3]  # so that the skin ends at the finger's end
    stops = [*chain[:3], last]
    parts = [_capsule(points, stops[i], stops[i + 1], radii[i], radii[i + 1]) for i in range(3)]
    distance = parts[0]
    for part in parts[1:]:
        distance = _blend(distance, part, 2.5)
    return distance


def _palm_distance(points: Array) -> Array:
    chains = skeleton()
    carpus = {"index": (82, 2, 11), "middle": (82, 3, 3), "ring": (82, 3, -6), "little": (82, 0, -13)}
    parts = []
    for name, start in carpus.items():
        end = chains[name][0] + np.array([1.0, -2.5, 0])
        parts.append(_capsule(points, np.array(start, float), end, 14.0, _RADII[name][0] + 1.2, 0.95))
    heel = np.array([80.0, -7, -14]), np.array([34.0, -7.5, -29.0])
    parts.append(_capsule(points, *heel, 13.0, 10.5))
    ball = np.array([78.0, -7, 13]), np.array([44.0, -14.0, 37.0])
    parts.append(_capsule(points, *ball, 13.0, 12.5))
    web = np.array([58.0, -6, 22]), np.array([28.0, -6.0, 32.0])
    parts.append(_capsule(points, *web, 11.0, 7.5))
    pad = np.array([24.0, -5.0, 20]), np.array([30.0, -5.0, -24.0])
    parts.append(_capsule(points, *pad, 9.5, 9.0))
    for z in (-11.0, 0.0, 11.0):  # the forearm's end, wider than thick
        parts.append(_capsule(points, np.array([85.0, 1, z]), np.array([130.0, 1.0, z]), 17.0, 17.5, 1.0))
    distance = parts[0]
    for part in parts[1:]:
        distance = _blend(distance, part, 7.0)
    return distance


def skin_distance(points: Array) -> Array:
    """(N,) mm signed distance (about) of points (N, 3) to the skin, negative inside."""
    palm = _palm_distance(points)
    # Each finger melts into the palm and hardly into its neighbour.
    fingers = [_blend(palm, _finger_distance(points, name), 10.0 if name == "thumb" else 6.0) for name in FINGERS]
    distance = fingers[0]
    for finger in fingers[1:]:
        distance = _blend(distance, finger, 3.0)
    return distance


def _gradient(points: Array) -> Array:
    """(N, 3) unit outward normals of the distance field."""
    steps = np.eye(3) * 0.05
    slope = np.stack([skin_distance(points + s) - skin_distance(points - s) for s in steps], 1)
    return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9))


def _project(points: Array, pinned: NDArray[np.bool_]) -> Array:
    """Points moved onto the skin; pinned ones stay in the wrist plane."""
    for _ in range(4):
        normal = _gradient(points)
        normal[pinned, 0] = 0
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        points = points - np.clip(skin_distance(points), -2, 2)[:, None] * normal
    points[pinned, 0] = WRIST_PLANE
    return points


def _spacing(points: Array) -> Array:
    """(N,) relative edge length wanted: fine at the tips, coarse on the palm."""
    tips = np.stack([chain[3] for chain in skeleton().values()])
    to_tip = np.linalg.norm(points[:, None] - tips, axis=2).min(1)
    finger = np.min([_finger_distance(points, name) for name in FINGERS], axis=0)
    return np.asarray(5.6 + 0.2 * np.clip(finger, 0, 12) - 1.0 * np.exp(-((to_tip / 12) ** 2)))


# ------------------------------------------------------------------------------------------------------------- meshing


def surface_nets(
    distance: Callable[[Array], Array], low: Array, shape: tuple[int, int, int], step: float
) -> tuple[Array, Index]:
    """Zero level of ``distance`` on a grid: a vertex in each cell that the level crosses, a quad for each crossed edge.

    Open where the grid ends. Returns ((V, 3) vertices, (F, 3) triangles, counter-clockwise from outside).
    """
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    value = distance(low + step * grid).reshape(shape)
    inside = value < 0
    offsets = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    total = np.zeros((*(n - 1 for n in shape), 3))
    count = np.zeros(total.shape[:3])
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(offsets[a] - offsets[b]).sum() != 1:
                continue
            at = [tuple(slice(o, n - 1 + o) for o, n in zip(offsets[c], shape, strict=True)) for c in (a, b)]
            va, vb = value[at[0]], value[at[1]]
            crossed = inside[at[0]] != inside[at[1]]
            t = np.where(crossed, va / np.where(crossed, va - vb, 1), 0)
            total += crossed[..., None] * (offsets[a] + t[..., None] * (offsets[b] - offsets[a]))
            count += crossed
    cells = np.argwhere(count > 0)
    number = np.full(count.shape, -1)
    number[tuple(cells.T)] = np.arange(len(cells))
    where = tuple(cells.T)
    verts = low + step * (cells + total[where] / count[where][:, None])
    faces = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        ahead = np.roll(inside, -1, axis)
        crossed = inside != ahead
        keep = np.argwhere(crossed)
        keep = keep[(keep[:, axis] < shape[axis] - 1) & (keep[:, u] > 0) & (keep[:, v] > 0)]
        keep = keep[(keep[:, u] < shape[u] - 1) & (keep[:, v] < shape[v] - 1)]
        du, dv = np.eye(3, dtype=int)[u], np.eye(3, dtype=int)[v]
        quad = np.stack([number[tuple((keep - o).T)] for o in (du + dv, dv, 0 * du, du)], 1)
        flip = ~inside[tuple(keep.T)]
        quad[flip] = quad[flip][:, ::-1]
        faces += [quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]
    return verts, np.concatenate(faces)


def boundary_loop(faces: Index) -> list[int]:
    """Vertices of the one boundary of a mesh in the direction of its half edges (the surface on their left)."""
    directed = {(int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)}
    follow = {a: b for a, b in directed if (b, a) not in directed}
    start = min(follow)
    loop = [start]
    while follow[loop[-1]] != start:
        loop.append(follow[loop[-1]])
    assert len(loop) == len(follow), "more than one boundary"
    return loop


def _cross(a: Array, b: Array) -> Array:
    """np.cross for two single vectors, without its overhead."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def decimate(verts: Array, faces: Index, count: int, rim: int) -> tuple[Array, Index]:
    """Collapses edges, shortest first (for the wanted spacing), to ``count`` vertices with ``rim`` at the opening."""
    points, normals = verts, _gradient(verts)
    triangles: dict[int, tuple[int, int, int]] = {i: (int(f[0]), int(f[1]), int(f[2])) for i, f in enumerate(faces)}
    around: list[set[int]] = [set() for _ in verts]
    for i, f in triangles.items():
        for v in f:
            around[v].add(i)
    border = set(boundary_loop(faces))
    spacing = _spacing(verts)
    version = np.zeros(len(verts), int)
    alive = len(verts)

    def neighbours(v: int) -> set[int]:
        return {w for i in around[v] for w in triangles[i]} - {v}

    def cost(a: int, b: int) -> float:
        return float(np.linalg.norm(points[a] - points[b]) / (spacing[a] + spacing[b]))

    def collapse(a: int, b: int) -> bool:
        """Moves b into a, unless that would fold or pinch the surface. (Mid points would shrink the fingertips.)"""
        shared = around[a] & around[b]
        if neighbours(a) & neighbours(b) != {w for i in shared for w in triangles[i]} - {a, b}:
            return False
        if any(len(around[w]) <= 4 and w not in border for i in shared for w in triangles[i] if w not in (a, b)):
            return False
        for i in around[b] - shared:
            corners = [a if w == b else w for w in triangles[i]]
            x, y, z = points[corners]
            across = _cross(y - x, z - x)
            if (normals[corners] @ across).min() <= 0.5 * np.sqrt(across @ across):
                return False  # the triangle would stand more than 60 degrees off the skin
        for i in shared:
            for w in triangles.pop(i):
                around[w].discard(i)
        for i in around[b]:
            x, y, z = (a if w == b else w for w in triangles[i])
            triangles[i] = (x, y, z)
            around[a].add(i)
        around[b] = set()
        return True

    def drain(edges: list[tuple[int, int]], goal: Callable[[], bool], along_border: bool) -> None:
        nonlocal alive
        heap = [(cost(a, b), a, b, 0, 0) for a, b in edges]
        heapq.heapify(heap)
        while heap and not goal():
            _, a, b, va, vb = heapq.heappop(heap)
            if not around[a] or not around[b] or version[a] != va or version[b] != vb or not around[a] & around[b]:
                continue
            on_rim = len(around[a] & around[b]) == 1
            if on_rim != along_border or (a in border and b in border and not on_rim):
                continue
            if b in border and a not in border:
                a, b = b, a
            if not collapse(a, b):
                continue
            border.discard(b)
            alive -= 1
            version[a] += 1
            for w in neighbours(a):
                heapq.heappush(heap, (cost(a, w), a, w, int(version[a]), int(version[w])))

    def edges() -> list[tuple[int, int]]:
        version[:] = 0
        return sorted(
            {(min(a, b), max(a, b)) for f in triangles.values() for a, b in zip(f, f[1:] + f[:1], strict=True)}
        )

    drain(edges(), lambda: alive <= 2 * count, False)
    drain(edges(), lambda: len(border) <= rim, True)
    drain(edges(), lambda: alive <= count, False)
    assert (alive, len(border)) == (count, rim), "collapsing stopped early"
    kept = [v for v in range(len(verts)) if around[v]]
    renumber = np.full(len(verts), -1)
    renumber[kept] = np.arange(len(kept))
    return points[kept], renumber[np.array([triangles[i] for i in sorted(triangles)])]


def _flip_edges(verts: Array, faces: Index) -> Index:
    """One pass of edge flips towards larger smallest angles; the surface stays a manifold."""
    faces = faces.copy()
    wing = {(int(a), int(b)): i for i, f in enumerate(faces) for a, b in zip(f, np.roll(f, -1), strict=True)}

    def smallest_angle(*corners: int) -> float:
        p = verts[list(corners)]
        side = np.roll(p, -1, 0) - p
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        return float(np.arccos(np.clip(-(side * np.roll(side, 1, 0)).sum(1), -1, 1)).min())

    touched: set[int] = set()
    for (a, b), i in list(wing.items()):
        j = wing.get((b, a))
        if j is None or i in touched or j in touched or a > b:
            continue
        c = next(int(w) for w in faces[i] if w not in (a, b))
        d = next(int(w) for w in faces[j] if w not in (a, b))
        if (c, d) in wing or (d, c) in wing:
            continue
        normals = [np.cross(verts[y] - verts[x], verts[z] - verts[x]) for x, y, z in ((c, d, b), (d, c, a), (a, b, c))]
        if min(normals[0] @ normals[2], normals[1] @ normals[2]) <= 0:
            continue
        now = min(smallest_angle(a, b, c), smallest_angle(b, a, d))
        if min(smallest_angle(c, d, b), smallest_angle(d, c, a)) > now + 0.02:
            faces[i], faces[j] = (c, d, b), (d, c, a)
            touched |= {i, j} | {wing[e] for e in ((b, c), (c, a), (a, d), (d, b)) if e in wing}
            wing = {e: k for e, k in wing.items() if k not in (i, j)}
            for k in (i, j):
                x, y, z = (int(w) for w in faces[k])
                wing |= {(x, y): k, (y, z): k, (z, x): k}
    return faces


def adjacency(faces: Index, count: int) -> Array:
    """(V, V) 0/1 matrix: which vertices share an edge."""
    matrix = np.zeros((count, count))
    for a, b in ((0, 1), (1, 2), (2, 0)):
        matrix[faces[:, a], faces[:, b]] = matrix[faces[:, b], faces[:, a]] = 1
    return matrix


def relax(verts: Array, faces: Index, rounds: int = 60) -> tuple[Array, Index]:
    """Evens out the triangles: flips, moves towards the neighbours' mean, and back onto the skin."""
    rim = boundary_loop(faces)
    pinned = np.zeros(len(verts), bool)
    pinned[rim] = True
    for turn in range(rounds):
        if turn % 4 == 0 and turn < rounds - 3:
            faces = _flip_edges(verts, faces)
            near = adjacency(faces, len(verts))
        # Long edges pull more, in units of the wanted spacing, so that crowded places spread out.
        length = np.linalg.norm(verts[:, None] - verts, axis=2) / _spacing(verts)
        weight = near * length**2
        mean = weight @ verts / weight.sum(1, keepdims=True)
        move, normal = mean - verts, _gradient(verts)
        move -= (move * normal).sum(1, keepdims=True) * normal  # along the skin only
        verts = np.where(pinned[:, None], verts, verts + 0.35 * move)
        loop = verts[rim]
        for _ in range(3):  # equal steps along the rim
            ahead, back = np.roll(loop, -1, 0), np.roll(loop, 1, 0)
            loop = loop + 0.4 * ((ahead + back) / 2 - loop)
        verts[rim] = loop
        verts = _project(verts, pinned)
    return verts, faces


def number_vertices(verts: Array, faces: Index) -> tuple[Array, Index]:
    """Reorders the vertices so that the published ids lie where MANO's do; the others go from wrist to tips."""
    order = np.full(len(verts), -1)  # order[new id] = old id
    free = np.ones(len(verts), bool)

    def assign(new: int, old: int) -> None:
        order[new] = old
        free[old] = False

    rim = boundary_loop(faces)
    # Vertex 38 is on the thumb side.
    start = int(np.argmax(verts[rim, 2])) + 1
    for new, old in zip(WRIST_LOOP, (rim[start:] + rim[:start])[::-1], strict=True):
        assign(new, old)
    for name, ids in TIP_IDS.items():
        end = skeleton()[name][3]
        for new, old in zip(ids, np.argsort(np.linalg.norm(verts - end, axis=1), kind="stable"), strict=False):
            assign(new, int(old))
    middle = (np.array(WRIST) + skeleton()["middle"][0]) / 2
    for new, sign in zip(PALM_IDS, (1, -1), strict=True):
        height = np.where(free & (sign * (verts[:, 1] - middle[1]) > 0), 0, 1e6)
        assign(new, int(np.argmin(height + np.linalg.norm(verts[:, [0, 2]] - middle[[0, 2]], axis=1))))
    rest = np.flatnonzero(free)
    order[order < 0] = rest[np.argsort(-verts[rest, 0], kind="stable")]
    new_of = np.argsort(order)
    return verts[order], new_of[faces]


# ---------------------------------------------------------------------------------------------- weights, blend shapes


def along_chain(points: Array, name: str) -> tuple[Array, Array]:
    """Position of points along a finger's axis (mm past its base joint, negative before it) and distance to it."""
    line = np.concatenate([[WRIST], skeleton()[name]])
    best, where = np.full(len(points), np.inf), np.zeros(len(points))
    start = -float(np.linalg.norm(line[1] - line[0]))
    for a, b in pairwise(line):
        length = float(np.linalg.norm(b - a))
        t = np.clip((points - a) @ (b - a) / length**2, 0, 1)
        distance = np.linalg.norm(points - a - t[:, None] * (b - a), axis=1)
        where = np.where(distance < best, start + t * length, where)
        best = np.minimum(distance, best)
        start += length
    return where, best


def skin_weights(verts: Array, faces: Index) -> Array:
    """(V, 16): a vertex follows the bones of its own finger, softly from one to the next; smoothed over the surface."""
    distance = np.stack([_finger_distance(verts, name) for name in FINGERS], 1)
    own = distance.argmin(1)
    weights = np.zeros((len(verts), 16))
    for i, name in enumerate(FINGERS):
        s, _ = along_chain(verts, name)
        lengths = np.linalg.norm(np.diff(skeleton()[name], axis=0), axis=1)
        starts = np.concatenate([[0.0], np.cumsum(lengths)[:2]])
        widths = (14.0, 8.0, 7.0) if name == "thumb" else (8.0, 5.5, 4.5)
        gates = [np.ones(len(verts))]
        for start, width in zip(starts, widths, strict=True):
            t = np.clip((s - start) / (2 * width) + 0.5, 0, 1)
            gates.append(t * t * (3 - 2 * t))
        if name == "thumb":  # the palm beside the thumb's root stays with the palm
            gates[1:] = [g * np.clip(1 - distance[:, i] / 9.0, 0, 1) for g in gates[1:]]
        mine = own == i
        weights[mine, 0] = (gates[0] - gates[1])[mine]
        for k in range(3):
            after = gates[k + 2] if k < 2 else 0.0
            weights[mine, 3 * i + 1 + k] = (gates[k + 1] - after)[mine]
    near = adjacency(faces, len(verts))
    for _ in range(2):
        weights = 0.5 * weights + 0.5 * near @ weights / near.sum(1, keepdims=True)
    fourth = np.sort(weights, axis=1)[:, -4:-3]
    weights = np.where((weights >= fourth) & (weights > 0.003), weights, 0)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def joint_regressor(verts: Array) -> Array:
    """(16, V) non-negative rows that sum to 1 and give the joints from the 24 nearest vertices (thumb root: 60).

    The thumb's root lies deep under the ball of the thumb: the nearest vertices are all on one side of it.
    """
    from scipy.optimize import nnls

    regressor = np.zeros((16, len(verts)))
    for joint, (row, target) in enumerate(zip(regressor, joint_targets(), strict=True)):
        count = 60 if joint == 13 else 24
        distance = np.linalg.norm(verts - target, axis=1)
        near = np.argsort(distance, kind="stable")[:count]
        # Position and sum exactly; and, weakly, equal shares, so that no joint hangs on three vertices.
        system = np.concatenate([(verts[near] - target).T, np.full((1, count), 30.0), 0.6 * np.eye(count)])
        goal = np.concatenate([np.zeros(3), [30.0], np.full(count, 0.6 / count)])
        row[near] = nnls(system, goal)[0]
    return np.asarray(regressor / regressor.sum(1, keepdims=True))


def shape_directions(verts: Array, faces: Index, rng: np.random.Generator) -> Array:
    """(V, 3, 10) mm per unit: size, finger length, thickness, breadth, thumb, single fingers, two random fields."""
    wrist = np.array(WRIST)
    towards = np.zeros((5, len(verts), 3))  # how far along its own finger a vertex lies, as a vector
    distance = np.stack([_finger_distance(verts, name) for name in FINGERS], 1)
    for i, name in enumerate(FINGERS):
        s, _ = along_chain(verts, name)
        chain = skeleton()[name]
        axis = (chain[3] - chain[0]) / np.linalg.norm(chain[3] - chain[0])
        belongs = np.clip(1 - (distance[:, i] - distance.min(1)) / 5, 0, 1)
        towards[i] = (np.clip(s, 0, None) * belongs)[:, None] * axis
    normal = _gradient(verts)
    finger = np.clip(1 - distance.min(1) / 6, 0, 1)[:, None]
    modes = [
        0.05 * (verts - wrist),
        0.06 * (towards[0] + towards[1] + towards[2] + towards[3]),
        0.7 * normal * np.array([0.3, 1.0, 0.3]),
        0.05 * (verts - wrist) * np.array([0.0, 0.0, 1.0]),
        0.6 * normal * finger,
        0.06 * towards[4],
        0.05 * (towards[0] - towards[3]),
        0.06 * towards[2],
    ]
    near = adjacency(faces, len(verts)) + np.eye(len(verts))
    near /= near.sum(1, keepdims=True)
    for amplitude in (0.5, 0.35):
        field = rng.normal(size=verts.shape)
        for _ in range(40):
            field = near @ field
        modes.append(field / np.abs(field).max() * amplitude)
    return np.stack(modes, -1)


def pose_directions(verts: Array, faces: Index, rng: np.random.Generator) -> Array:
    """(V, 3, 135) mm per unit: smooth fields of at most 1 mm around the joint that causes them, zero 22 mm away."""
    near = adjacency(faces, len(verts)) + np.eye(len(verts))
    near /= near.sum(1, keepdims=True)
    field = rng.normal(size=(len(verts), 3 * 135))
    for _ in range(12):
        field = near @ field
    field = (field / np.abs(field).max(0)).reshape(len(verts), 3, 135)
    reach = np.linalg.norm(verts[:, None] - joint_targets()[None, 1:], axis=2)  # (V, 15)
    local = np.clip(1 - (reach / 22) ** 2, 0, None) ** 2
    return np.asarray(field * np.repeat(local, 9, axis=1)[:, None, :])


def flexion_axes() -> tuple[Array, Array]:
    """Per moving joint the rest-pose axes (15, 3) of flexion (positive bends towards the palm) and of spreading.

    Positive spreading moves a finger towards the thumb side; the thumb, away from the palm's plane.
    """
    chains = skeleton()
    flex, spread = [], []
    for name in FINGERS:
        bones = np.diff(chains[name], axis=0)
        bones /= np.linalg.norm(bones, axis=1, keepdims=True)
        # The thumb bends across the palm: its own "palm side" looks down and to the little finger.
        palm = np.array([0.45, -0.3, -0.85]) if name == "thumb" else np.array([0.0, -1.0, 0.0])
        for bone in bones:
            axis = np.cross(bone, palm)
            flex.append(axis / np.linalg.norm(axis))
            spread.append(np.cross(bone, flex[-1]) if name != "thumb" else np.cross(flex[-1], bone))
    return np.array(flex), np.array(spread)


def hand_components() -> tuple[Array, Array]:
    """((45, 45) orthonormal rows, the everyday movements first; (45,) mean pose, slightly bent)."""
    flex, spread = flexion_axes()

    def pose(axes: Array, amounts: dict[int, float]) -> Array:
        rows = np.zeros((15, 3))
        for joint, amount in amounts.items():
            rows[joint] = amount * axes[joint]
        return rows.ravel()

    fingers = range(12)
    first = [
        pose(flex, dict.fromkeys(fingers, 1.0)),
        pose(spread, {0: 1.0, 3: 0.1, 6: -1.2, 9: -0.6}),
        pose(flex, {12: 0.5, 13: 1.0, 14: 1.0}),
        pose(spread, {12: 1.0}),
        pose(flex, {0: 1.0, 1: 1.0, 2: 0.6, 6: -1.0, 7: -1.0, 8: -0.6}),
        pose(flex, {0: 1.0, 3: 1.0, 6: 1.0, 9: 1.0, 1: -1.0, 4: -1.0, 7: -1.0, 10: -1.0}),
        pose(flex, {3: 1.0, 4: 1.0, 0: -1.0, 1: -1.0, 9: 0.5, 10: 0.5}),
    ]
    basis = np.linalg.qr(np.concatenate([np.array(first), np.eye(45)]).T)[0].T
    basis *= np.sign((basis[: len(first)] * np.array(first)).sum(1).tolist() + [1.0] * (45 - len(first)))[:, None]
    mean = pose(flex, {j: (0.25, 0.3, 0.15)[j % 3] for j in fingers}) + pose(flex, {12: 0.05, 13: 0.1, 14: 0.15})
    return basis, mean


def _round(values: Array, step_bits: int) -> Array:
    """Values on a grid of 2^-bits, so that the file compresses."""
    return np.asarray(np.round(values * 2.0**step_bits) / 2.0**step_bits)


def build_hand() -> dict[str, NDArray[np.generic]]:
    """The thirteen arrays of MANO's file (metres, radians), made from the numbers in this module."""
    rng = np.random.default_rng(778)
    low = np.array([-105.0, -42.6, -68.0])
    shape = (83, 30, 60)  # the grid ends in the wrist plane, x = 100
    verts, faces = surface_nets(skin_distance, low, shape, STEP)
    verts, faces = decimate(verts, faces, 778, 16)
    verts, faces = relax(verts, faces)
    verts, faces = number_vertices(verts, faces)
    verts = _round(verts / 1000, 22) * 1000  # a quarter of a micrometre
    components, mean = hand_components()
    regressor = joint_regressor(verts)
    spread = 1.2 * 0.88 ** np.arange(45)
    template = verts / 1000
    return {
        "v_template": template,
        "f": faces.astype(np.uint32),
        "shapedirs": _round(shape_directions(verts, faces, rng) / 1000, 22),
        "posedirs": _round(pose_directions(verts, faces, rng) / 1000, 17),
        "J_regressor": regressor,
        "J": regressor @ template,
        "weights": skin_weights(verts, faces),
        "kintree_table": np.array([[p % 2**32 for p in PARENTS], list(range(16))]),
        "hands_components": components,
        "hands_mean": mean,
        "hands_coeffs": _round(rng.normal(size=(1554, 45)) * spread, 5),
        "bs_style": np.array("lbs"),
        "bs_type": np.array("lrotmin"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shared.standin.build_hand", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("hand.npz"), help="file to write")
    out: Path = parser.parse_args(argv).out
    arrays = build_hand()
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    print(f"{out}: {out.stat().st_size:,} bytes, {len(arrays['v_template'])} vertices, {len(arrays['f'])} faces")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
