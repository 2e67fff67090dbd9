"""A stand-in hand beside an object, seen by one camera: what the writers of the RGB-D mesh sets share.

Pose, shape, object and picture are drawn from (seed, index) alone, so frames can be made in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from shared.camera import project
from shared.datasets.mirror import mirror_pose
from shared.standin.render import (
    box_mesh,
    cylinder_mesh,
    join_meshes,
    noise_background,
    render_depth,
    shade,
    skin_colors,
)
from shared.standin.scene import FACING, Float, Side, standin_layer, standin_model

_WALL_MM = 1100.0


@dataclass(frozen=True)
class Grasp:
    """A hand and an object in the camera frame, mm.

    Attributes:
        pose: (48,) axis-angle for a layer with ``flat_hand_mean=True``.
        betas: (10,).
        transl_mm: (3,) added after posing.
        verts_mm: (778, 3).
        joints_mm: (21, 3), order "mano", tips as asked for.
        rest_root_mm: (3,) the wrist before translation.
        object_verts_mm: (n, 3) in the camera.
        object_faces: (m, 3).
        object_corners_rest_mm: (8, 3) box around the object in its own frame.
        T_cam_object: (4, 4) object to camera, mm.
        side: which hand.
    """

    pose: Float
    betas: Float
    transl_mm: Float
    verts_mm: Float
    joints_mm: Float
    rest_root_mm: Float
    object_verts_mm: Float
    object_faces: NDArray[np.int64]
    object_corners_rest_mm: Float
    T_cam_object: Float
    side: Side


def mesh(side: Side, tips: str, pose: Float, betas: Float, transl_mm: Float) -> tuple[Float, Float]:
    """((778, 3) vertices, (21, 3) joints in the order "mano") of one hand, mm."""
    given = [torch.from_numpy(np.asarray(v, np.float64))[None] for v in (pose, betas, transl_mm)]
    verts, joints = standin_layer(side, tips)(*given)
    return verts[0].numpy(), joints[0].numpy()


def sample_grasp(
    seed: int, index: int, *, tips: str, center_mm: Float, side: Side = "right", subject: int | None = None
) -> Grasp:
    """Hand ``index`` of a set, the middle of its joints at ``center_mm``, with an object at its fingers.

    Args:
        seed: of the set.
        index: of the frame.
        tips: fingertip vertices by name (``shared.mano.TIPS``).
        center_mm: (3,) camera frame.
        side: which hand.
        subject: frames of one subject share betas; by default each frame has its own.
    """
    rng = np.random.default_rng((seed, index, 20))
    right = standin_model()
    assert right.hands_coeffs is not None
    hand = right.hands_mean + 0.8 * right.hands_coeffs[rng.integers(len(right.hands_coeffs))] @ right.hands_components
    turn = Rotation.from_euler("zyx", rng.uniform((-180, -45, -45), (180, 45, 45)), degrees=True)
    flip = Rotation.from_euler("y", 180 * rng.integers(2), degrees=True)  # the back of the hand in half of the frames
    pose = np.concatenate([(turn * flip * FACING).as_rotvec(), hand])
    if side == "left":
        pose = mirror_pose(pose)
    shape = rng if subject is None else np.random.default_rng((seed, subject, 21))
    betas = shape.normal(0, 0.8, 10)
    _, joints = mesh(side, tips, pose, betas, np.zeros(3))
    transl_mm = np.asarray(center_mm, np.float64) - joints.mean(0)
    verts, joints = mesh(side, tips, pose, betas, transl_mm)

    if rng.integers(2):
        size = rng.uniform((35, 60, 20), (70, 140, 50))
        object_verts, object_faces = box_mesh((float(size[0]), float(size[1]), float(size[2])))
    else:
        radius, length = rng.uniform((18, 60), (32, 130))
        size = np.array([2 * radius, length, 2 * radius])
        object_verts, object_faces = cylinder_mesh(float(radius), float(length))
    T_cam_object = np.eye(4)
    T_cam_object[:3, :3] = Rotation.random(random_state=np.random.RandomState(rng.integers(1 << 31))).as_matrix()
    beside = rng.normal(size=3) * [25, 25, 10] + [0, 0, rng.choice([-45, 45])]  # in front of the fingers or behind
    T_cam_object[:3, 3] = joints[16:].mean(0) + beside
    corners = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * size
    return Grasp(
        pose=pose,
        betas=betas,
        transl_mm=transl_mm,
        verts_mm=verts,
        joints_mm=joints,
        rest_root_mm=joints[0] - transl_mm,
        object_verts_mm=object_verts @ T_cam_object[:3, :3].T + T_cam_object[:3, 3],
        object_faces=np.asarray(object_faces, np.int64),
        object_corners_rest_mm=corners,
        T_cam_object=T_cam_object,
        side=side,
    )


@dataclass(frozen=True)
class Picture:
    """What the camera sees: ``rgb`` (h, w, 3) uint8, ``depth_mm`` (h, w) float64 with a wall behind and 0 where the
    sensor failed, ``seg`` (h, w) uint8 with 0 background, 1 object, 255 hand."""

    rgb: NDArray[np.uint8]
    depth_mm: Float
    seg: NDArray[np.uint8]


def take_picture(
    grasp: Grasp, K: Float, image_size: tuple[int, int], *, seed: int, index: int, with_object: bool = True
) -> Picture:
    """Renders a grasp in front of a wall, lit, with a random skin, object and background."""
    rng = np.random.default_rng((seed, index, 22))
    faces = standin_model(grasp.side).faces
    skin = skin_colors(standin_model().v_template, rng)
    verts = grasp.verts_mm
    colors = skin
    if with_object:
        verts, faces = join_meshes((verts, faces), (grasp.object_verts_mm, grasp.object_faces))
        stripes = rng.uniform(0.1, 0.9, (2, 3))[np.arange(len(grasp.object_verts_mm)) // 2 % 2]
        colors = np.concatenate([skin, stripes.astype(np.float32)])
    points, triangles = torch.from_numpy(verts), torch.from_numpy(np.ascontiguousarray(faces))
    render = render_depth(points, triangles, torch.from_numpy(K), image_size)
    rgb = shade(render, points, triangles, torch.from_numpy(colors), background=room(image_size, rng))[0]
    face = render.face[0].numpy()
    seg = np.select([face < 0, face < 1538], [0, 255], 1).astype(np.uint8)
    width, height = image_size
    slope = rng.uniform(-0.2, 0.2, 2)  # of the wall, mm per pixel
    wall = _WALL_MM + slope[0] * (np.arange(width) - width / 2) + slope[1] * (np.arange(height)[:, None] - height / 2)
    depth = np.where(seg > 0, render.depth_mm[0].numpy().astype(np.float64), wall)
    depth[rng.uniform(size=depth.shape) < np.where(seg > 0, 0.005, 0.05)] = 0
    return Picture(rgb, depth, seg)


def room(image_size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 smooth noise in place of a room, made at a quarter of the size in a tenth of the time."""
    small = noise_background((image_size[0] // 4, image_size[1] // 4), rng)
    return np.asarray(Image.fromarray(small).resize(image_size, Image.Resampling.BILINEAR))


def place_in_view(
    rng: np.random.Generator, K: Float, image_size: tuple[int, int], depth_mm: tuple[float, float]
) -> Float:
    """(3,) mm: a point whose pixel lies in the middle two fifths of the picture, at a random depth."""
    z = rng.uniform(*depth_mm)
    u, v = rng.uniform(0.3, 0.7, 2) * image_size
    point: Float = np.linalg.inv(K) @ [u, v, 1] * z
    return point


def pixel_box(verts_mm: Float, K: Float) -> Float:
    """(4,) x1, y1, x2, y2 around the projected vertices."""
    pixels = project(verts_mm, K)
    return np.concatenate([pixels.min(0), pixels.max(0)])
