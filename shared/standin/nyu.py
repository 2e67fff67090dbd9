"""A small NYU tree without NYU: the same stand-in hand seen by three cameras, in the format of ``shared.datasets.nyu``.

The side cameras look at a point 700 mm before camera 1 from 35 degrees to its left and right; the hands are near that
point. As in NYU, fingers point towards the camera, turned any way; the forearm is in the picture; the sensor is noisy;
and the test split has a person whom the training split does not have. Only what a reader uses is written: ``depth_*``
pictures and ``joint_data.mat``.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from shared import camera
from shared.datasets.nyu import FAR_MM, SIZE, K
from shared.errors import DataError
from shared.safe_io import atomic_path
from shared.standin.build_hand import boundary_loop
from shared.standin.render import render_depth
from shared.standin.scene import (
    GESTURES,
    Flexion,
    Float,
    depth_noise,
    sample_articulation,
    standin_layer,
    subject_betas,
    to_skeleton,
)
from shared.standin.views import Hand, draw_all, save_image, write_noisy_centers

_PIVOT_MM = np.array([0.0, 0.0, 700.0])
_FINGERS = [f"F{finger}_KNU{knuckle}_{end}" for finger in (1, 2, 3, 4) for knuckle in (3, 2, 1) for end in "AB"]
_THUMB = ["TH_KNU3_A", "TH_KNU3_B", "TH_KNU2_A", "TH_KNU2_B", "TH_KNU1_A", "TH_KNU1_B"]
JOINT_NAMES = [*_FINGERS, *_THUMB, *(f"PALM_{i}" for i in range(1, 7))]

# Rest pose to camera: fingers to the right, back of the hand to the camera, thumb up.
_REST = Rotation.from_matrix([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]])
_TILT_DEG = (35.0, 145.0)  # of the fingers towards camera 1; 35 more or less for the side cameras
# The first principal shape is size: 0.94 to 0.99 of the average hand. People of the other sets are 0.88 to 1.12 of it.
_SIZES = (-0.8, -0.2, -1.2)
_TRAIN_PEOPLE, _TEST_PEOPLE = (0, 1), (0, 2)
# Degrees, see sample_articulation. The last joints bend further than in the other sets, as far as in the sampler with
# which "training by fitting" imitates NYU's poses: the palm hides these tips, and no picture could correct them.
_FLEXION: Flexion = (((-12, 100, 88), (0, 120, 105), (0, 140, 122)), ((-8, 40, 28), (-5, 20, 10), (-5, 85, 70)))
_ARM_MM, _RINGS = 220.0, 6  # the forearm leaves every crop
_ARM_WIDER = np.array([0.5, 0.35])  # at its end: thickness, breadth


def rig() -> Float:
    """T_cam_cam1 (3, 4, 4): maps points of camera 1's frame to the frame of each camera."""
    T = np.tile(np.eye(4), (3, 1, 1))
    for view, angle in ((1, np.deg2rad(35)), (2, np.deg2rad(-35))):
        T[view, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        T[view, :3, 3] = _PIVOT_MM - T[view, :3, :3] @ _PIVOT_MM
    return T


@lru_cache(1)
def _arm_faces() -> tuple[list[int], NDArray[np.int64]]:
    """The wrist's opening, and triangles of the hand with a forearm of ``_RINGS`` rings, closed at its end."""
    faces = standin_layer().faces.numpy()
    rim = boundary_loop(faces)
    count, verts = len(rim), int(faces.max()) + 1
    loops = [rim, *(list(range(verts + k * count, verts + (k + 1) * count)) for k in range(_RINGS))]
    arm = []
    for near, far in pairwise(loops):
        for i in range(count):
            j = (i + 1) % count
            arm += [(near[j], near[i], far[i]), (near[j], far[i], far[j])]
    arm += [(loops[-1][0], b, a) for a, b in pairwise(loops[-1][1:])]
    return rim, np.concatenate((faces, np.array(arm)))


def sample_nyu_hand(seed: int, index: int, *, person: int, center_mm: Float) -> tuple[Hand, NDArray[np.int64]]:
    """Hand ``index`` with its forearm, and the triangles of both; its joints' mean lies at a point of camera 1's frame.

    Orientations are spread like those of NYU: any way round in the picture, any roll, fingers 35 to 145 degrees towards
    the camera, 90 straight at it.
    """
    rng = np.random.default_rng((seed, index, 8))
    articulation = sample_articulation(rng, list(GESTURES)[rng.integers(len(GESTURES))], _FLEXION)
    roll, turn = rng.uniform(-180, 180, 2)
    swing = Rotation.from_euler("xyz", [roll, rng.uniform(*_TILT_DEG), turn], degrees=True) * _REST
    betas = subject_betas(person)
    betas[0] = _SIZES[person]
    pose = np.concatenate((swing.as_rotvec(), articulation.ravel()))
    out = standin_layer()(torch.from_numpy(pose)[None], torch.from_numpy(betas)[None])
    assert out.verts is not None
    verts, joints = out.verts[0].numpy(), out.joints[0].numpy()

    rim, faces = _arm_faces()
    along, across = swing.apply([1.0, 0, 0]), swing.apply([[0.0, 1, 0], [0, 0, 1]])
    middle = verts[rim].mean(0)
    t = np.arange(1, _RINGS + 1)[:, None, None] / _RINGS
    sides = (verts[rim] - middle) @ across.T  # (n, 2)
    rings = middle + _ARM_MM * t * along + (sides * (1 + t * _ARM_WIDER)) @ across
    verts = np.concatenate((verts, rings.reshape(-1, 3)))
    shift = center_mm - joints.mean(0)
    return Hand(verts + shift, joints + shift, "right"), faces


def _window(verts_mm: Float) -> tuple[int, int, int, int]:
    """The part of the picture (left, top, right, bottom) with the mesh and a pixel around it."""
    uv = camera.project(verts_mm, K)
    low, high = np.floor(uv.min(0)).astype(int) - 1, np.ceil(uv.max(0)).astype(int) + 2
    left, top = np.clip(low, 0, np.array(SIZE) - 1).tolist()
    right, bottom = np.clip(high, (left + 1, top + 1), SIZE).tolist()
    return left, top, right, bottom


def _write_frame(root: Path, split: str, number: int, index: int, person: int, seed: int, noise: bool) -> Float:
    """The pictures of one frame; gives its labels in the three cameras (3, 36, 3)."""
    rng = np.random.default_rng((seed, index, 6))
    hand, faces = sample_nyu_hand(seed, index, person=person, center_mm=_PIVOT_MM + rng.uniform(-60, 60, 3))
    joints = to_skeleton(hand.joints_mm, "nyu36")
    xyz = np.empty((3, 36, 3))
    for view, T in enumerate(rig()):
        R, t = T[:3, :3], T[:3, 3]
        xyz[view] = joints @ R.T + t
        verts = hand.verts_mm @ R.T + t
        left, top, right, bottom = window = _window(verts)
        seen = render_depth(
            torch.from_numpy(verts), torch.from_numpy(faces), torch.from_numpy(K), SIZE, crop_ltrb=window
        )
        part = seen.depth_mm[0].numpy()
        part = np.rint(depth_noise(part, rng) if noise else part).astype(np.uint16)
        depth = np.full(SIZE[::-1], FAR_MM, np.uint16)
        depth[top:bottom, left:right] = np.where((part == 0) | (part > FAR_MM), FAR_MM, part)
        rgb = np.stack([np.zeros_like(depth), depth >> 8, depth & 255], -1).astype(np.uint8)
        save_image(root / split / f"depth_{view + 1}_{number:07d}.png", rgb, compress_level=1)  # three times faster
    return xyz


def write_nyu(root: str | Path, *, frames: int = 6, seed: int = 0, noise: bool = True, workers: int = 1) -> None:
    """Writes ``frames`` training and ``frames`` test frames of three cameras.

    Centre files of V2V-PoseNet (camera 1) are in ``nyu_center``. Far is 2001, as in the real pictures.

    Args:
        root: folder.
        frames: of each split.
        seed: the same seed gives the same bytes, with any number of workers.
        noise: of the sensor; without it depth is exact to a millimetre.
        workers: processes.
    """
    from scipy.io import savemat

    if frames < 1:
        raise DataError(f"frames: expected at least 1, got {frames}")
    root = Path(root)
    for part, (split, people) in enumerate((("train", _TRAIN_PEOPLE), ("test", _TEST_PEOPLE))):
        jobs = [
            (root, split, i + 1, part * frames + i, people[i * len(people) // frames], seed, noise)
            for i in range(frames)
        ]
        xyz = np.stack(list(draw_all(_write_frame, jobs, workers)), 1)
        names = np.empty((1, 36), object)
        names[0] = JOINT_NAMES
        variables = {"joint_names": names, "joint_uvd": camera.xyz_to_uvd(xyz, K), "joint_xyz": camera.flip_y(xyz)}
        with atomic_path(root / split / "joint_data.mat") as temporary:
            savemat(temporary, variables, do_compression=True)
            with temporary.open("r+b") as file:  # scipy writes the time there; the same seed gives the same bytes
                file.write(b"MATLAB 5.0 MAT-file, stand-in hand".ljust(116))
        path = root / "nyu_center" / f"center_{split}_refined.txt"
        write_noisy_centers(path, xyz[0], np.random.default_rng((seed, part, 7)), y_up=True)
