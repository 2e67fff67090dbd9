"""Tiny NYU trees and prepared frames for the tests of this folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from selfsup_fitting.config import PrepareConfig
from selfsup_fitting.prepare import prepare
from selfsup_fitting.shards import Shards
from shared.standin.nyu import write_nyu


def nyu_tree(root: Path, frames: int = 3) -> Path:
    """A stand-in NYU folder with a training and a test split."""
    write_nyu(root, frames=frames, seed=0)
    return root


def prepared(root: Path, out: Path, **options: object) -> Path:
    """Its shards."""
    prepare(PrepareConfig(data=str(root), out=str(out), jobs=1, **options))  # type: ignore[arg-type]
    return out


def write_original(folder: Path, shards: Shards, *, old_layout: bool) -> None:
    """The same frames as the original's converter writes them, which does not keep where the crops were."""
    folder.mkdir(parents=True)
    depth, joints, poses = (shards.field(name) for name in ("depth_mm", "joints_mm", "T_canon_view"))
    if old_layout:
        poses = poses.copy()
        poses[..., 3, :3], poses[..., :3, 3] = poses[..., :3, 3].copy(), 0
    (folder / "mv_data_0_shape.pkl").write_bytes(pickle.dumps([depth.shape, joints.shape, poses.shape], protocol=2))
    depth.astype("<f4").tofile(folder / "mv_data_0_dms.bat")
    np.save(folder / "mv_data_0_joint_poses.npy", joints)
    np.save(folder / "mv_data_0_camera_poses.npy", poses)
