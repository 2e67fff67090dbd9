"""The hand that ships with handpose, in this method's form, made from the same geometry as the MANO-format stand-in.

Mesh, weights and joints are those of :mod:`shared.standin`; added are a forearm, the bend of the rest pose, bone frames
and spheres. Proportions can be chosen, so that what is trained on one hand can be tested on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

from selfsup_fitting.hand import Array, Hand, Index
from selfsup_fitting.sampler import REST_BEND
from selfsup_fitting.spheres import FINGERS, PARENTS, SPHERE_BONES
from shared.errors import DataError
from shared.mano import load_mano
from shared.standin import build_hand

_THUMB_BEND = (0.0, 0.15, 0.15)  # radians, so that the rest thumb lies as beside a loose hand
_RING_MM, _RINGS = 18.0, 5  # the forearm: it leaves every crop, as real ones do
_ORIGIN = np.array([0.0, -15.0, 0.0])  # of model space, in the stand-in's own frame

# Everything below is in the stand-in's own frame (x to the wrist, y out of the back of the hand, z to the thumb), mm.
# Palm spheres 0 to 10: centre and radius.
_PALM = np.array(
    [
        (89.0, 0.0, -15.0, 18.5),
        (89.0, 0.0, 15.0, 18.5),
        (25.0, 0.5, 1.0, 16.0),
        (33.0, -2.5, -21.0, 15.0),
        (47.0, 2.0, 0.0, 16.0),
        (92.0, 0.0, 0.0, 20.0),
        (73.0, 0.5, 2.0, 18.0),
        (73.0, -1.0, -11.0, 18.0),
        (55.0, -2.0, -17.0, 17.0),
        (30.0, 0.0, 18.0, 16.0),
        (49.0, -1.5, 17.0, 17.0),
    ]
)
# The six spheres of a finger: which bone, where along it (share of its length; the far one of a bone comes first), and
# radius as a multiple of the finger's half thickness there.
_ALONG = ((0, 0.6, 1.25), (0, 0.08, 1.3), (1, 0.5, 1.15), (1, 0.0, 1.15), (2, 0.68, 1.15), (2, 0.05, 1.15))


def standin_hand(
    *, lengths: float | Sequence[float] = 1.0, thickness: float = 1.0, side: Literal["right", "left"] = "right"
) -> Hand:
    """A hand of average proportions, or of others.

    Args:
        lengths: factor on all lengths, or six: of the palm, and of index, middle, ring, little finger and thumb.
        thickness: factor on the fingers' width, the palm's thickness and the fingers' spheres.
        side: a left hand is the mirror image in model y; equal finger angles bend it the same way.

    Raises:
        DataError: factors that are not one or six numbers in 0.5 to 2, another side.
    """
    factors = np.array(lengths, np.float64).reshape(-1)
    factors = np.broadcast_to(factors, 6) if factors.size == 1 else factors
    if factors.size != 6 or not np.all((factors >= 0.5) & (factors <= 2)) or not 0.5 <= thickness <= 2:
        raise DataError(
            f"expected one or six lengths and one thickness, factors in 0.5 to 2; got {lengths} and {thickness}"
        )
    if side not in ("right", "left"):
        raise DataError(f'side must be "right" or "left", got {side!r}')
    chains = build_hand.skeleton()
    origins = np.stack([build_hand.WRIST] * 2 + [chains[f][k] for f in FINGERS for k in range(3)])
    flex, spread = _axes()

    # The rest pose, bone by bone outwards: x -> moved + turn @ stretch @ (x - origin).
    turns = np.tile(np.eye(3), (17, 1, 1))
    stretches = np.tile(np.diag([factors[0], thickness, factors[0]]), (17, 1, 1))
    moved = origins.copy()
    for bone in range(2, 17):
        (finger, joint), parent = divmod(bone - 2, 3), PARENTS[bone]
        chain = chains[FINGERS[finger]]
        along = (chain[joint + 1] - chain[joint]) / np.linalg.norm(chain[joint + 1] - chain[joint])
        stretches[bone] = thickness * np.eye(3) + (factors[1 + finger] - thickness) * np.outer(along, along)
        # The thumb's second and third joint bend towards the fingers at negative angles.
        bend = -_THUMB_BEND[joint] if FINGERS[finger] == "thumb" else REST_BEND[joint]
        turns[bone] = turns[parent] @ _rotation(flex[bone - 2], bend)
        moved[bone] = moved[parent] + turns[parent] @ stretches[parent] @ (origins[bone] - origins[parent])

    # Model space is camera space mirrored: x to the wrist, y away from the thumb, z to the palm. The left hand is
    # mirrored once more. Under a reflection an axis changes its sign as well, so that angles keep theirs.
    mirror = -1.0 if side == "left" else 1.0
    to_model = np.array([[1.0, 0, 0], [0, 0, -mirror], [0, -1, 0]])
    offsets = np.tile(np.eye(4), (17, 1, 1))
    for bone in range(2, 17):
        x, side_axis = (-mirror * to_model @ turns[bone] @ axes[bone - 2] for axes in (flex, spread))
        if FINGERS[(bone - 2) // 3] in ("ring", "little"):
            offsets[bone, :3, :3] = np.stack((x, -side_axis, np.cross(x, -side_axis)))
        else:
            offsets[bone, :3, :3] = np.stack((x, np.cross(side_axis, x), side_axis))
    offsets[:, :3, 3] = -np.einsum("bij,bj->bi", offsets[:, :3, :3], (moved - _ORIGIN) @ to_model.T)

    def place(points: Array, weights: Array) -> Array:
        """Points (N, 3) that hang on the bones by weights (N, 17), at rest, in model space."""
        each = (points[None] - origins[:, None]) @ (turns @ stretches).swapaxes(1, 2) + moved[:, None]
        return np.asarray((np.einsum("nb,bni->ni", weights, each) - _ORIGIN) @ to_model.T)

    verts, faces, weights = _mesh_with_forearm()
    sphere_bone = np.array(SPHERE_BONES)
    centers, radii = _spheres()
    radii[sphere_bone >= 2] *= thickness
    radii[sphere_bone < 2] *= np.sqrt(factors[0] * thickness)  # the palm grows in two directions with its length
    return Hand(
        f"standin ({side}, lengths {np.unique(factors).round(3).tolist()}, thickness {thickness:g})",
        offsets,
        place(verts, weights),
        faces if side == "right" else faces[:, ::-1].copy(),
        weights,
        sphere_bone,
        place(centers, np.eye(17)[sphere_bone]),
        radii,
    )


def _rotation(axis: Array, angle: float) -> Array:
    """(3, 3) right-handed rotation about a unit axis."""
    cross = np.cross(np.eye(3), axis)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def _axes() -> tuple[Array, Array]:
    """(15, 3) axes of flexion and of abduction, bone by bone in this method's order."""
    flex, spread = (
        np.stack([axes[3 * build_hand.FINGERS.index(f) + k] for f in FINGERS for k in range(3)])
        for axes in build_hand.flexion_axes()
    )
    # The thumb's root: flexion goes to the palm's side, abduction opens it in the palm's plane.
    chain = build_hand.skeleton()["thumb"]
    along = (chain[1] - chain[0]) / np.linalg.norm(chain[1] - chain[0])
    spread[12] = np.array([0.0, 1.0, 0.0]) - along[1] * along
    spread[12] /= np.linalg.norm(spread[12])
    flex[12] = np.cross(spread[12], along)
    flex[13:] = -flex[13:]
    return flex, spread


def _spheres() -> tuple[Array, Array]:
    """(41, 3) centres and (41,) radii of the undeformed stand-in."""
    chains = build_hand.skeleton()
    centers = [np.asarray(_PALM[:, :3])]
    for finger in FINGERS:
        chain = chains[finger]
        centers.append(np.stack([chain[k] + share * (chain[k + 1] - chain[k]) for k, share, _ in _ALONG]))
    fingers = np.concatenate(centers[1:])
    swell = np.array([factor for _, _, factor in _ALONG] * 5)
    return np.concatenate(centers), np.concatenate((_PALM[:, 3], -swell * build_hand.skin_distance(fingers)))


@lru_cache(1)
def _mesh_with_forearm() -> tuple[Array, Index, Array]:
    """Vertices, faces (counter-clockwise from outside), weights (V, 17): the wrist's opening drawn out and closed."""
    model = load_mano("standin")
    hand, rim = 1000 * model.v_template, build_hand.boundary_loop(model.faces)
    center = hand[rim].mean(0)
    t = np.arange(1, _RINGS + 1)[:, None, None] / _RINGS  # an arm gets thicker towards the elbow
    rings = center + (hand[rim] - center) * (1 + t * np.array([0.0, 0.35, 0.25]))
    rings[..., 0] = build_hand.WRIST_PLANE + _RING_MM * _RINGS * t[..., 0]
    end = rings[-1].mean(0) + np.array([4.0, 0, 0])
    verts = np.concatenate((hand, rings.reshape(-1, 3), end[None]))

    count = len(rim)
    loops = [rim, *(list(range(len(hand) + k * count, len(hand) + (k + 1) * count)) for k in range(_RINGS))]
    faces = [model.faces]
    for near, far in pairwise(loops):
        for (a, b), (c, d) in zip(
            zip(near, near[1:] + near[:1], strict=True), zip(far, far[1:] + far[:1], strict=True), strict=True
        ):
            faces.append(np.array([(b, a, c), (b, c, d)]))
    last = loops[-1]
    faces.append(np.array([(b, a, len(verts) - 1) for a, b in zip(last, last[1:] + last[:1], strict=True)]))

    weights = np.zeros((len(verts), 17))
    first = [1 + 3 * build_hand.FINGERS.index(finger) for finger in FINGERS]
    weights[: len(hand), 2:] = model.weights[:, [j + k for j in first for k in range(3)]]
    palm = 1 - weights.sum(1)
    carpal = np.clip((verts[:, 0] - 80) / 20, 0, 1)
    weights[:, 0], weights[:, 1] = palm * (1 - carpal), palm * carpal
    return verts, np.concatenate(faces), weights
