"""A small NYU tree without NYU: the same stand-in hand seen by three cameras, in the format of ``shared.datasets.nyu``.

The side cameras look at a point 700 mm before camera 1 from 35 degrees to its left and right; the hands are near that
point. Only what a reader uses is written: ``depth_*`` pictures and ``joint_data.mat``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared import camera
from shared.datasets.nyu import FAR_MM, SIZE, K
from shared.errors import DataError
from shared.safe_io import atomic_path
from shared.standin.scene import Float, to_skeleton
from shared.standin.views import depth_picture, sample_hand, save_image, write_noisy_centers

_PIVOT_MM = np.array([0.0, 0.0, 700.0])
_FINGERS = [f"F{finger}_KNU{knuckle}_{end}" for finger in (1, 2, 3, 4) for knuckle in (3, 2, 1) for end in "AB"]
_THUMB = ["TH_KNU3_A", "TH_KNU3_B", "TH_KNU2_A", "TH_KNU2_B", "TH_KNU1_A", "TH_KNU1_B"]
JOINT_NAMES = [*_FINGERS, *_THUMB, *(f"PALM_{i}" for i in range(1, 7))]


def rig() -> Float:
    """T_cam_cam1 (3, 4, 4): maps points of camera 1's frame to the frame of each camera."""
    T = np.tile(np.eye(4), (3, 1, 1))
    for view, angle in ((1, np.deg2rad(35)), (2, np.deg2rad(-35))):
        T[view, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        T[view, :3, 3] = _PIVOT_MM - T[view, :3, :3] @ _PIVOT_MM
    return T


def write_nyu(root: str | Path, *, frames: int = 6, seed: int = 0) -> None:
    """Writes ``frames`` training and ``frames`` test frames of three cameras.

    Centre files of V2V-PoseNet (camera 1) are in ``nyu_center``. Far is 2001, as in the real pictures.
    """
    from scipy.io import savemat

    if frames < 1:
        raise DataError(f"frames: expected at least 1, got {frames}")
    root = Path(root)
    T = rig()
    for part, split in enumerate(("train", "test")):
        xyz = np.empty((3, frames, 36, 3))
        for i in range(frames):
            index = part * frames + i
            rng = np.random.default_rng((seed, index, 6))
            hand = sample_hand(seed, index, side="right", center_mm=_PIVOT_MM + rng.uniform(-60, 60, 3))
            joints = to_skeleton(hand.joints_mm, "nyu36")
            for view in range(3):
                R, t = T[view, :3, :3], T[view, :3, 3]
                xyz[view, i] = joints @ R.T + t
                depth = depth_picture(hand.verts_mm @ R.T + t, K, SIZE)
                depth[(depth == 0) | (depth > FAR_MM)] = FAR_MM
                rgb = np.stack([np.zeros_like(depth), depth >> 8, depth & 255], -1).astype(np.uint8)
                save_image(root / split / f"depth_{view + 1}_{i + 1:07d}.png", rgb)
        names = np.empty((1, 36), object)
        names[0] = JOINT_NAMES
        variables = {"joint_names": names, "joint_uvd": camera.xyz_to_uvd(xyz, K), "joint_xyz": camera.flip_y(xyz)}
        with atomic_path(root / split / "joint_data.mat") as temporary:
            savemat(temporary, variables, do_compression=True)
            with temporary.open("r+b") as file:  # scipy writes the time there; the same seed gives the same bytes
                file.write(b"MATLAB 5.0 MAT-file, stand-in hand".ljust(116))
        path = root / "nyu_center" / f"center_{split}_refined.txt"
        write_noisy_centers(path, xyz[0], np.random.default_rng((seed, part, 7)), y_up=True)
