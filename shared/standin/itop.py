"""A small ITOP tree without ITOP: a body of capsules, seen from the front and from above.

The body is made of our own round numbers (an adult of 1.75 m); it is no model of a person, only something whose joints
lie inside its limbs. Format: that of ``shared.datasets.itop``. The two views show the same moments; x is the same in
both, as in the real set. Point clouds and colour pictures are not written, nothing reads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shared import camera
from shared.datasets.centers import write_centers
from shared.datasets.itop import SIZE, K
from shared.errors import DataError
from shared.safe_io import atomic_path
from shared.skeletons import get
from shared.standin.render import render_depth

Array = NDArray[np.float64]

# Rest pose in mm: x to the person's left (so the right side is negative), y up, z to the front; feet on the ground.
_REST = {
    "head": (0, 1640, 0),
    "neck": (0, 1450, 0),
    "right_shoulder": (-190, 1420, 0),
    "left_shoulder": (190, 1420, 0),
    "right_elbow": (-230, 1130, 0),
    "left_elbow": (230, 1130, 0),
    "right_hand": (-240, 870, 30),
    "left_hand": (240, 870, 30),
    "torso": (0, 1180, 0),
    "right_hip": (-110, 930, 0),
    "left_hip": (110, 930, 0),
    "right_knee": (-120, 500, 10),
    "left_knee": (120, 500, 10),
    "right_foot": (-130, 60, 20),
    "left_foot": (130, 60, 20),
}
# (joint, joint, radius in mm); the first joint's index is the body part of ``segmentation``
_LIMBS = [("head", "head", 110.0), ("neck", "head", 60.0), ("torso", "neck", 130.0), ("torso", "right_hip", 115.0)]
_LIMBS += [("torso", "left_hip", 115.0)]
for _side in ("right", "left"):
    _LIMBS += [(f"{_side}_shoulder", "neck", 70.0), (f"{_side}_elbow", f"{_side}_shoulder", 50.0)]
    _LIMBS += [(f"{_side}_hand", f"{_side}_elbow", 42.0), (f"{_side}_knee", f"{_side}_hip", 75.0)]
    _LIMBS += [(f"{_side}_foot", f"{_side}_knee", 52.0)]
_NAMES = get("itop").joints
_CAMERA_HEIGHT = {"side": 1000.0, "top": 3100.0}
_WALL_MM = 4200.0


def sample_body(rng: np.random.Generator) -> Array:
    """(15, 3) joints in mm: the rest pose with moved limbs, turned and shifted; x left, y up, z to the front."""
    joints = {name: np.array(at, float) for name, at in _REST.items()}

    def swing(root: str, parts: tuple[str, ...], rotvec: Array) -> None:
        R = camera.rotvec_to_rotmat(rotvec)
        for part in parts:
            joints[part] = joints[root] + R @ (joints[part] - joints[root])

    for side, sign in (("right", -1.0), ("left", 1.0)):
        out, front = rng.uniform(0.1, 1.6), rng.uniform(-0.2, 1.2)
        swing(f"{side}_shoulder", (f"{side}_elbow", f"{side}_hand"), np.array([-front, 0.0, sign * out]))
        swing(f"{side}_elbow", (f"{side}_hand",), np.array([-rng.uniform(0, 1.5), 0.0, 0.0]))
        swing(f"{side}_hip", (f"{side}_knee", f"{side}_foot"), np.array([-rng.uniform(0, 0.5), 0, sign * 0.15]))
        swing(f"{side}_knee", (f"{side}_foot",), np.array([rng.uniform(0, 0.4), 0.0, 0.0]))
    body = np.stack([joints[name] for name in _NAMES]) * rng.uniform(0.92, 1.05)
    body[:, 1] += 60 - body[:, 1].min()  # the lower foot stands on the ground
    turned = body @ camera.rotvec_to_rotmat(np.array([0.0, rng.uniform(-0.6, 0.6), 0.0])).T
    moved: Array = turned + np.array([rng.uniform(-350, 350), 0, rng.uniform(-250, 250)])
    return moved


def to_view(body: Array, view: str) -> Array:
    """Room coordinates of :func:`sample_body` to the camera of a view (OpenCV axes, mm).

    The front camera stands 3 m before the person and looks at them: the person's left is at its right. The camera
    above looks straight down; up in its picture is away from the front camera, so that both have the same x.
    """
    x, up, front = body[..., 0], body[..., 1], body[..., 2]
    if view == "side":
        return np.stack([x, _CAMERA_HEIGHT["side"] - up, 3000 - front], -1)
    return np.stack([x, front, _CAMERA_HEIGHT["top"] - up], -1)


def body_mesh(joints: Array) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Vertices (V, 3), triangles (F, 3) and the body part (F,) of every triangle, for joints (15, 3) in any frame."""
    verts, faces, parts = [], [], []
    count = 0
    for first, second, radius in _LIMBS:
        v, f = _capsule(joints[_NAMES.index(first)], joints[_NAMES.index(second)], radius)
        verts.append(v)
        faces.append(f + count)
        parts.append(np.full(len(f), _NAMES.index(first)))
        count += len(v)
    return np.concatenate(verts), np.concatenate(faces), np.concatenate(parts)


def write_itop(root: str | Path, *, frames: int = 8, seed: int = 0) -> None:
    """Writes both views and both splits, ``frames`` frames each, and V2V-PoseNet centre files in ``itop_center``.

    Every fourth frame is not valid: its labels are displaced and its centre line reads invalid. The same seed gives the
    same arrays.
    """
    import h5py

    if frames < 1:
        raise DataError(f"frames: expected at least 1, got {frames}")
    root = Path(root)
    for number, split in enumerate(("train", "test")):
        rngs = [np.random.default_rng((seed, number, i)) for i in range(frames)]
        bodies = np.stack([sample_body(rng) for rng in rngs])
        valid = np.arange(frames) % 4 != 3
        ids = np.array([f"{4 * number + i % 3:02d}_{i:05d}".encode() for i in range(frames)])
        for view in ("side", "top"):
            joints = to_view(bodies, view)
            seen = [_picture(joint, view, rng) for joint, rng in zip(joints, rngs, strict=True)]
            labels = joints.copy()
            labels[~valid] += [400.0, 0.0, 300.0]
            uv = camera.project(labels, K)
            data = {
                "depth_map": {"data": np.stack([depth for depth, _ in seen]).astype(np.float16) / np.float16(1)},
                "labels": {
                    "is_valid": valid.astype(np.uint8),
                    "visible_joints": _visible(joints, np.stack([depth for depth, _ in seen])),
                    "image_coordinates": np.rint(uv).astype(np.int16),
                    "real_world_coordinates": (camera.flip_y(labels) / 1000).astype(np.float16),
                    "segmentation": np.stack([part for _, part in seen]),
                },
            }
            for kind, arrays in data.items():
                with (
                    atomic_path(root / f"ITOP_{view}_{split}_{kind}.h5") as temporary,
                    h5py.File(temporary, "w") as file,
                ):
                    for name, array in ({"id": ids} | arrays).items():
                        file.create_dataset(name, data=array, track_times=False)
            torso = joints[:, _NAMES.index("torso")] + np.stack([rng.normal(0, 30, 3) for rng in rngs])
            write_centers(root / "itop_center" / view / f"center_{split}.txt", torso, valid, y_up=True, unit_mm=1000)


def _picture(joints: Array, view: str, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Depth (240, 320) in metres with the room behind and a few unmeasured pixels, and the body part of each pixel."""
    verts, faces, parts = body_mesh(joints)
    seen = render_depth(torch.from_numpy(verts), torch.from_numpy(faces), torch.from_numpy(K), SIZE)
    depth, face = seen.depth_mm[0].numpy().copy(), seen.face[0].numpy()
    if view == "side":
        down = (np.arange(SIZE[1])[:, None] - K[1, 2]) / K[1, 1] + np.zeros((1, SIZE[0]))
        floor = np.divide(_CAMERA_HEIGHT["side"], down, out=np.full_like(down, np.inf), where=down > 0)
        room = np.minimum(floor, _WALL_MM)
    else:
        room = np.full_like(depth, _CAMERA_HEIGHT["top"])
    depth = np.where(face >= 0, depth, room)
    depth[rng.random(depth.shape) < 0.01] = 0
    return (depth / 1000).astype(np.float32), np.where(face >= 0, parts[face], -1).astype(np.int8)


def _visible(joints: Array, depth_m: NDArray[np.float32]) -> NDArray[np.int16]:
    """1 where the surface at a joint's pixel is less than 20 cm in front of it."""
    uv = np.rint(camera.project(joints, K)).astype(int)
    inside = ((uv >= 0) & (uv < SIZE)).all(-1)
    u, v = (np.clip(uv[..., i], 0, SIZE[i] - 1) for i in (0, 1))
    surface = depth_m[np.arange(len(joints))[:, None], v, u] * 1000
    seen: NDArray[np.bool_] = inside & (surface > 0) & (np.abs(joints[..., 2] - surface) < 200)
    return seen.astype(np.int16)


def _capsule(a: Array, b: Array, radius: float, sides: int = 16, rings: int = 4) -> tuple[Array, NDArray[np.int64]]:
    """A tube from ``a`` to ``b`` with round ends; a sphere where they are the same point."""
    axis = b - a
    length = float(np.linalg.norm(axis))
    axis = axis / length if length else np.array([0.0, 1.0, 0.0])
    helper = np.eye(3)[np.argmin(np.abs(axis))]
    right = np.cross(axis, helper)
    right /= np.linalg.norm(right)
    front = np.cross(axis, right)
    low = np.linspace(-np.pi / 2, 0, rings + 1)[1:]
    latitude = np.concatenate([low, -low[::-1]])
    around = np.arange(sides) * 2 * np.pi / sides
    ring = np.cos(around)[:, None] * right + np.sin(around)[:, None] * front
    ends = np.where((np.arange(len(latitude)) < rings)[:, None], a, b)
    tube = ends[:, None] + radius * (np.cos(latitude)[:, None, None] * ring + np.sin(latitude)[:, None, None] * axis)
    verts = np.concatenate([tube.reshape(-1, 3), [a - radius * axis, b + radius * axis]])
    here = np.arange(len(latitude) * sides).reshape(len(latitude), sides)
    here_next = np.roll(here, -1, 1)
    p, q, r, s = here[:-1].ravel(), here_next[:-1].ravel(), here[1:].ravel(), here_next[1:].ravel()
    bottom, top = len(verts) - 2, len(verts) - 1
    caps = [np.stack([here_next[0], here[0], np.full(sides, bottom)], 1)]
    caps.append(np.stack([here[-1], here_next[-1], np.full(sides, top)], 1))
    return verts, np.concatenate([np.stack([p, q, r], 1), np.stack([q, s, r], 1), *caps])
