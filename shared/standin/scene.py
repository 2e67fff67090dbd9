"""Posed stand-in hands before a camera: pose, mesh, joints, depth, and colour where wanted.

Every scene follows from (seed, subject, index) alone, so frames can be made in any order and
by any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from shared.errors import DataError
from shared.mano import ManoLayer, ManoModel, load_mano, mirror_model, mirror_pose
from shared.skeletons import SKELETONS, reorder
from shared.standin.build_hand import FINGERS, WRIST, boundary_loop, flexion_axes, skeleton
from shared.standin.render import (
    box_mesh,
    cylinder_mesh,
    join_meshes,
    noise_background,
    render_depth,
    shade,
    skin_colors,
)

Float = NDArray[np.float64]
Side = Literal["right", "left"]

TIPS = "wild"  # of the fingertip sets, the one whose vertices are nearest to the fingers' ends in the stand-in hand

# How far each finger is bent, 0 straight to 1 fist: thumb, index, middle, ring, pinky. The names are MSRA's gestures.
GESTURES: dict[str, tuple[float, float, float, float, float]] = {
    "1": (0.8, 0.0, 1.0, 1.0, 1.0),
    "2": (0.8, 0.0, 0.0, 1.0, 1.0),
    "3": (0.8, 0.0, 0.0, 0.0, 1.0),
    "4": (0.9, 0.0, 0.0, 0.0, 0.0),
    "5": (0.0, 0.0, 0.0, 0.0, 0.0),
    "6": (0.0, 1.0, 1.0, 1.0, 0.0),
    "7": (0.5, 0.45, 0.45, 1.0, 1.0),
    "8": (0.0, 0.0, 0.0, 1.0, 1.0),
    "9": (0.7, 0.55, 1.0, 1.0, 1.0),
    "I": (0.7, 1.0, 1.0, 1.0, 0.0),
    "IP": (0.8, 0.0, 1.0, 1.0, 0.0),
    "L": (0.0, 0.0, 1.0, 1.0, 1.0),
    "MP": (0.8, 1.0, 0.0, 1.0, 0.0),
    "RP": (0.8, 1.0, 1.0, 0.0, 0.0),
    "T": (0.0, 1.0, 1.0, 1.0, 1.0),
    "TIP": (0.0, 0.0, 1.0, 1.0, 0.0),
    "Y": (0.0, 1.0, 1.0, 1.0, 0.1),
}
_LETTER = {"thumb": 0, "index": 1, "middle": 2, "ring": 3, "little": 4}
# Degrees (low, high, at full bend) of flexion of a finger's three joints, and of the thumb's.
Flexion = tuple[tuple[tuple[float, float, float], ...], tuple[tuple[float, float, float], ...]]
_FLEXION: Flexion = (((-12, 88, 78), (0, 105, 92), (0, 75, 55)), ((-8, 40, 30), (-5, 60, 48), (-5, 75, 55)))
_SPREAD_LIMIT = 14.0
# Rest pose to camera: palm to the camera, fingers up (model x, y, z become down, forward, right).
FACING = Rotation.from_matrix([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])


@dataclass(frozen=True)
class Scene:
    """One hand before a camera (OpenCV axes, mm).

    Attributes:
        verts_mm: (778, 3) float64.
        joints_mm: (21, 3) float64, order ``"mano"``.
        pose: (48,) axis-angle for a layer with ``flat_hand_mean=True``, of the model of ``side``.
        betas: (10,) shape of the subject.
        transl_mm: (3,).
        depth_mm: (H, W) float32 without noise, hand and object; 0 where there is nothing.
        mask: (H, W) bool, visible hand (the wrist is closed by a lid).
        rgb: (H, W, 3) uint8, or None.
        object_verts_mm: (n, 3) or None; ``object_faces`` (m, 3) or None; ``object_mask`` (H, W) bool, visible object.
        side: which hand.
        gesture: the named pose it started from.
    """

    verts_mm: Float
    joints_mm: Float
    pose: Float
    betas: Float
    transl_mm: Float
    depth_mm: NDArray[np.float32]
    mask: NDArray[np.bool_]
    rgb: NDArray[np.uint8] | None
    object_verts_mm: Float | None
    object_faces: NDArray[np.int64] | None
    object_mask: NDArray[np.bool_]
    side: Side
    gesture: str


@lru_cache(2)
def standin_model(side: Side = "right") -> ManoModel:
    """The stand-in hand of one side; the left one is the mirror image of the right one."""
    model = load_mano("standin")
    return model if side == "right" else mirror_model(model)


@lru_cache(8)
def standin_layer(side: Side = "right", tips: str = TIPS) -> ManoLayer:
    """The stand-in hand as a float64 layer in mm for full poses over the flat hand, order "mano"."""
    return ManoLayer(standin_model(side), n_pca=None, flat_hand_mean=True, tips=tips, unit="mm", dtype=torch.float64)


@lru_cache(2)
def closed_faces(side: Side = "right") -> NDArray[np.int64]:
    """(1552, 3) triangles of the hand with a lid of 14 on the wrist, so that no picture looks into the hand."""
    faces = standin_layer(side).faces.numpy()
    rim = boundary_loop(faces)
    lid = [(rim[0], b, a) for a, b in pairwise(rim[1:])]
    return np.concatenate((faces, np.array(lid)))


@lru_cache(1)
def _axes() -> tuple[Float, Float]:
    return flexion_axes()


def subject_betas(subject: int) -> Float:
    """(10,) shape of subject 0, 1, ...: the same person in every set. Sizes differ by up to 12 % either way."""
    rng = np.random.default_rng((4711, subject))
    betas = rng.normal(0, 0.8, 10).clip(-2, 2)
    betas[0] = rng.uniform(-2.4, 2.4)
    return betas


def sample_articulation(rng: np.random.Generator, gesture: str, flexion: Flexion = _FLEXION) -> Float:
    """(15, 3) axis-angle of the joints: a named gesture with the looseness of a living hand, within joint limits.

    Args:
        rng: all of it is drawn from here.
        gesture: one of :data:`GESTURES`.
        flexion: degrees (low, high, at full bend) of the three joints of a finger, and of the thumb.
    """
    flex, spread = _axes()
    bends = np.array(GESTURES[gesture])
    loose = bends + rng.normal(0, 0.09, 5)
    if rng.uniform() < 0.35:  # on the way to another gesture
        other = np.array(list(GESTURES.values())[rng.integers(len(GESTURES))])
        loose += rng.uniform(0, 0.6) * (other - bends)
    pose = np.zeros((15, 3))
    fan = rng.normal(0, 5)
    for i, name in enumerate(FINGERS):
        bend = loose[_LETTER[name]]
        for k, (low, high, full) in enumerate(flexion[name == "thumb"]):
            angle = np.clip(full * bend + rng.normal(0, 5), low, high)
            pose[3 * i + k] = np.deg2rad(angle) * flex[3 * i + k]
        side = {"index": 1.0, "middle": 0.2, "ring": -0.6, "little": -1.2, "thumb": 1.0}[name] * fan + rng.normal(0, 3)
        # A bent finger cannot spread, and the spread rest pose comes together.
        closing = {"index": -5, "middle": 0, "ring": 5, "little": 11, "thumb": 0}[name] * np.clip(bend, 0, 1)
        angle = np.clip(side * (1 - 0.8 * np.clip(bend, 0, 1)), -_SPREAD_LIMIT, _SPREAD_LIMIT) + closing
        base = Rotation.from_rotvec(np.deg2rad(angle) * spread[3 * i])
        pose[3 * i] = (base * Rotation.from_rotvec(pose[3 * i])).as_rotvec()
    return pose


def sample_scene(
    seed: int,
    index: int,
    *,
    K: NDArray[np.floating],
    image_size: tuple[int, int],
    subject: int = 0,
    distance_mm: tuple[float, float] = (280.0, 480.0),
    side: Side = "right",
    gesture: str | None = None,
    rgb: bool = False,
    with_object: bool = False,
) -> Scene:
    """Hand ``index`` of a set: pose, place and pictures drawn from (seed, subject, index).

    The palm mostly faces the camera, fingers up, turned by up to a right angle or so; every vertex lies in the image.
    A hand that would not fit at the distance drawn is moved away until it does.

    Args:
        seed, index: which scene.
        K: (3, 3) pinhole matrix without skew, pixels.
        image_size: (width, height).
        subject: whose hand (:func:`subject_betas`).
        distance_mm: range of the distance of the middle of the hand.
        side: ``"left"`` is the mirror image of the same scene.
        gesture: one of :data:`GESTURES`; drawn by default.
        rgb: also make a colour picture with a background.
        with_object: a box or a cylinder at the palm, which may hide parts of the hand.

    Raises:
        DataError: a side, gesture, K or image size that is not possible.
    """
    if side not in ("right", "left"):
        raise DataError(f'side must be "right" or "left", got {side!r}')
    if gesture is not None and gesture not in GESTURES:
        raise DataError(f"gesture must be one of {', '.join(GESTURES)}, got {gesture!r}")
    camera: Float = np.asarray(K, np.float64)
    if camera.shape != (3, 3) or not (camera[0, 0] > 0 and camera[1, 1] > 0):
        raise DataError("K must be a (3, 3) matrix with positive focal lengths")
    if min(image_size) < 32:
        raise DataError(f"image_size must be at least 32 x 32 pixels, got {image_size}")
    rng = np.random.default_rng((seed, subject, index))
    chosen = gesture if gesture is not None else list(GESTURES)[rng.integers(len(GESTURES))]
    articulation = sample_articulation(rng, chosen)
    swing = np.array([28.0, 22, 30]) * (1.7 if rng.uniform() < 0.15 else 1.0)
    turn = Rotation.from_euler("yxz", np.clip(rng.normal(0, swing), -95, 95), degrees=True) * FACING
    pose = np.concatenate((turn.as_rotvec(), articulation.ravel()))
    if side == "left":
        pose = mirror_pose(torch.from_numpy(pose)).numpy()
    betas = subject_betas(subject)
    layer = standin_layer(side)
    out = layer(torch.from_numpy(pose)[None], torch.from_numpy(betas)[None])
    assert out.verts is not None
    verts, joints = out.verts[0].numpy(), out.joints[0].numpy()
    transl = _place(verts, camera, image_size, float(rng.uniform(*distance_mm)), rng)
    verts, joints = verts + transl, joints + transl

    mesh, faces = verts, closed_faces(side)
    hand_faces = len(faces)
    thing: tuple[Float, NDArray[np.int64]] | None = None
    if with_object:
        thing = _held_object(joints, side, rng)
        mesh, faces = join_meshes((verts, faces), thing)
    depth, mask, thing_mask, picture = _look(mesh, faces, hand_faces, camera, image_size, rng if rgb else None, subject)
    return Scene(
        verts_mm=verts,
        joints_mm=joints,
        pose=pose,
        betas=betas,
        transl_mm=transl,
        depth_mm=depth,
        mask=mask,
        rgb=picture,
        object_verts_mm=thing[0] if thing else None,
        object_faces=thing[1] if thing else None,
        object_mask=thing_mask,
        side=side,
        gesture=chosen,
    )


def _place(
    verts: Float, K: Float, image_size: tuple[int, int], distance: float, rng: np.random.Generator, margin: float = 3.0
) -> Float:
    """(3,) translation that puts the middle of the mesh at ``distance`` and all of it into the image."""
    middle = (verts.min(0) + verts.max(0)) / 2
    wish = rng.uniform(-0.8, 0.8, 2)  # where in the room that is left, -1 to 1
    while True:
        shift = np.array([0.0, 0.0, distance]) - middle
        z = verts[:, 2] + shift[2]
        ok = bool(z.min() > 20)
        for axis in range(2):
            # u = f (x + d) / z + c has to stay within the margins for every vertex: bounds for d
            lower = ((margin - K[axis, 2]) * z / K[axis, axis] - verts[:, axis] - shift[axis]).max()
            upper = (
                (image_size[axis] - 1 - margin - K[axis, 2]) * z / K[axis, axis] - verts[:, axis] - shift[axis]
            ).min()
            ok = ok and bool(lower <= upper)
            shift[axis] += (lower + upper) / 2 + wish[axis] * (upper - lower) / 2
        if ok:
            return np.asarray(shift)
        distance *= 1.08


def _held_object(joints: Float, side: Side, rng: np.random.Generator) -> tuple[Float, NDArray[np.int64]]:
    """A box or a cylinder across the palm, just in front of it."""
    name = {joint: joints[i] for i, joint in enumerate(SKELETONS["mano"].joints)}
    across = name["index_mcp"] - name["pinky_mcp"]
    across /= np.linalg.norm(across)
    along = name["middle_mcp"] - name["wrist"]
    normal = np.cross(across, along) * (1 if side == "right" else -1)  # out of the palm
    normal /= np.linalg.norm(normal)
    middle = 0.3 * name["wrist"] + 0.7 * name["middle_mcp"]
    thick = float(rng.uniform(16, 32))
    if rng.uniform() < 0.5:
        verts, faces = cylinder_mesh(thick, float(rng.uniform(90, 180)))
    else:
        verts, faces = box_mesh((2 * thick, float(rng.uniform(80, 160)), float(rng.uniform(1.2, 2.4)) * thick))
    lengthwise = np.stack((np.cross(across, normal), across, normal), 1)  # y of the object lies across the palm
    tilt = Rotation.from_euler("xyz", rng.normal(0, 12, 3), degrees=True).as_matrix()
    return verts @ (lengthwise @ tilt).T + middle + normal * (thick + 14), faces


def _look(
    mesh: Float,
    faces: NDArray[np.integer],
    hand_faces: int,
    K: Float,
    image_size: tuple[int, int],
    rng: np.random.Generator | None,
    subject: int,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint8] | None]:
    """Depth, hand mask, object mask and (with ``rng``) colour picture of a mesh whose first faces are the hand."""
    width, height = image_size
    uv = mesh @ K.T
    uv = uv[:, :2] / uv[:, 2:].clip(1)
    left, top = np.clip(np.floor(uv.min(0)).astype(int) - 1, 0, (width - 1, height - 1)).tolist()
    right, bottom = np.clip(np.ceil(uv.max(0)).astype(int) + 2, (left + 1, top + 1), (width, height)).tolist()
    verts, triangles = torch.from_numpy(mesh), torch.from_numpy(faces.astype(np.int64))
    seen = render_depth(verts, triangles, torch.from_numpy(K), image_size, crop_ltrb=(left, top, right, bottom))
    window = (slice(top, bottom), slice(left, right))
    depth = np.zeros((height, width), np.float32)
    depth[window] = seen.depth_mm[0].numpy()
    face = np.full((height, width), -1, np.int32)
    face[window] = seen.face[0].numpy()
    picture = None
    if rng is not None:
        rest = standin_model().v_template
        colors = np.full((len(mesh), 3), rng.uniform(0.1, 0.9, 3), np.float32)
        colors[: len(rest)] = skin_colors(rest, np.random.default_rng((815, subject)))
        picture = noise_background(image_size, rng)
        light = (float(rng.uniform(-0.9, 0.9)), float(rng.uniform(-1, 0.1)), -1.0)
        picture[window] = shade(
            seen, verts, triangles, torch.from_numpy(colors), background=picture[window], light=light
        )[0]
    return depth, (face >= 0) & (face < hand_faces), face >= hand_faces, picture


# ------------------------------------------------------------------------------------------------- skeletons, sensors


def to_skeleton(joints_mm: NDArray[np.floating], name: str) -> Float:
    """Joints (..., 21, 3) in the order "mano" as another set labels them, (..., J, 3).

    Sets with the same 21 joints are reordered by name. The others are placed where their pictures show them: STB's and
    ICVL's "palm" is the mean of the wrist and the four knuckles; ICVL's "root" and "mid" are the knuckle and the middle
    of the second phalanx (thumb: its second joint and the middle of the next bone). NYU has two points a bone, whose
    outermost lie inside the fingertips, and six in the palm; "wrist_side_1" is the little finger's side, as in NYU.

    Raises:
        DataError: an unknown order, or joints of another shape.
    """
    joints = np.asarray(joints_mm, np.float64)
    if joints.ndim < 2 or joints.shape[-2:] != (21, 3):
        raise DataError(f'expected joints (..., 21, 3) in the order "mano", got shape {joints.shape}')
    if name in ("mano", "thumb_first", "wild", "msra", "hands2017", "fingertips"):
        return reorder(joints, "mano", name)
    if name not in ("stb", "icvl", "nyu14", "nyu36"):
        raise DataError(f"the stand-in hand has no joints in the order {name!r}")
    p = {joint: joints[..., i, :] for i, joint in enumerate(SKELETONS["mano"].joints)}
    if name.startswith("nyu"):
        return np.stack([_nyu_joint(joint, p) for joint in SKELETONS[name].joints], -2)
    knuckles = [p[joint] for joint in _PALM_JOINTS[1:]]
    p["palm"] = np.mean([p["wrist"], *knuckles], axis=0)
    for finger in ("thumb", "index", "middle", "ring", "pinky"):
        base, middle, last = (p[f"{finger}_{part}"] for part in ("mcp", "pip", "dip"))
        p[f"{finger}_root"] = middle if finger == "thumb" else base
        p[f"{finger}_mid"] = last if finger == "thumb" else (middle + last) / 2
    return np.stack([p[joint] for joint in SKELETONS[name].joints], -2)


_PALM_JOINTS = ("wrist", "index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp")
# Where NYU's annotations lie on a finger: bone, and share of its length. The thumb has them under other names.
_NYU_ALONG = {"knu1_b": (0, 0.08), "knu1_a": (0, 0.6), "mid": (1, 0.0), "knu2_a": (1, 0.5), "knu3_b": (2, 0.05)}
_NYU_ALONG |= {"tip": (2, 0.68)}
_NYU_THUMB = {"root": "mid", "mid": "knu3_b"}
# And in the palm, in the frame of :mod:`.build_hand` at rest (x to the wrist, y out of the back, z to the thumb), mm.
_NYU_PALM = {
    "wrist_side_1": (89.0, 0.0, -15.0),
    "wrist_side_2": (89.0, 0.0, 15.0),
    "palm": (25.0, 0.5, 1.0),
    "palm_4": (33.0, -2.5, -21.0),
    "palm_5": (47.0, 2.0, 0.0),
    "palm_6": (92.0, 0.0, 0.0),
}


@lru_cache(1)
def _nyu_palm_mixes() -> dict[str, Float]:
    """Shares (5,) of the palm's joints that make up NYU's points of the palm; the same in every pose."""
    chains = skeleton()
    rest = np.array([WRIST, *(chains[finger][0] for finger in ("index", "middle", "ring", "little"))])
    solve = np.linalg.pinv(np.vstack((rest.T, np.ones(5))))
    return {name: solve @ np.array([*place, 1.0]) for name, place in _NYU_PALM.items()}


def _nyu_joint(joint: str, p: dict[str, Float]) -> Float:
    """One of NYU's points, of the 21 joints by name."""
    if joint in _NYU_PALM:
        mixed: Float = np.tensordot(_nyu_palm_mixes()[joint], np.stack([p[name] for name in _PALM_JOINTS]), 1)
        return mixed
    finger, part = joint.split("_", 1)
    bone, share = _NYU_ALONG[_NYU_THUMB.get(part, part) if finger == "thumb" else part]
    near, far = (p[f"{finger}_{end}"] for end in ("mcp", "pip", "dip", "tip")[bone : bone + 2])
    return near + share * (far - near)


def depth_noise(
    depth_mm: NDArray[np.floating],
    rng: np.random.Generator,
    *,
    background: Literal["none", "plane", "body"] = "none",
    step_mm: float = 1.0,
    edge_dropout: float = 0.25,
) -> NDArray[np.float32]:
    """A depth image as a sensor gives it: noise that grows with distance, losses at edges, whole steps.

    Args:
        depth_mm: (H, W), 0 where there is nothing.
        rng: all of it is drawn from here.
        background: what fills the empty pixels: nothing, a tilted wall at 0.9 to 1.5 m, or a person's rounded body at
            0.55 to 0.8 m before such a wall.
        step_mm: quantisation; 0 for none.
        edge_dropout: share of the pixels at a depth edge that are lost (0).

    Returns:
        (H, W) float32, mm.
    """
    depth = np.array(depth_mm, np.float64)
    height, width = depth.shape
    if background != "none":
        v, u = np.mgrid[0:height, 0:width]
        x, y = u / width - 0.5, v / height - 0.5
        tilt = rng.uniform(-0.15, 0.15, 2)
        behind = rng.uniform(900, 1500) / (1 + tilt[0] * x + tilt[1] * y)
        if background == "body":
            center, size = rng.uniform(-0.2, 0.2), rng.uniform(0.25, 0.4)
            bulge = 1 - ((x - center) / size) ** 2 - ((y - 0.35) / 0.75).clip(None, 0) ** 2
            body = rng.uniform(550, 800) - 90 * np.sqrt(bulge.clip(0))
            behind = np.where(bulge > 0, body, behind)
        depth = np.where(depth > 0, depth, behind)
    around = np.pad(depth, 1, mode="edge")
    windows = [
        around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
    ]
    edge = np.max([np.abs(w - depth) for w in windows], axis=0) > 15
    # Axial noise of a structured-light or time-of-flight sensor: about 1 mm at 0.4 m, quadratic in distance.
    noisy = depth + rng.normal(size=depth.shape) * (0.4 + 4e-6 * depth**2)
    lost = edge & (rng.uniform(size=depth.shape) < edge_dropout)
    if step_mm > 0:
        noisy = np.round(noisy / step_mm) * step_mm
    return np.where((depth > 0) & ~lost, noisy, 0).astype(np.float32)
