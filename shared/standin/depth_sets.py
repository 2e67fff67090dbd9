"""What the writers of the depth sets share: one stand-in hand at a chosen place, and its depth picture."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.datasets.centers import write_centers
from shared.mano import load_mano
from shared.safe_io import atomic_path
from shared.standin.render import render_depth
from shared.standin.scene import sample_scene

Float = NDArray[np.float64]


@lru_cache(1)
def _faces() -> torch.Tensor:
    return torch.from_numpy(np.array(load_mano("standin").faces, np.int64))


def hand_at(seed: int, index: int, K: Float, image_size: tuple[int, int], center_mm: Float) -> tuple[Float, Float]:
    """Vertices (778, 3) and joints (21, 3, order ``mano``) in mm of hand ``index``, its joints' mean at ``center_mm``.

    Pose and shape come from (seed, index); there are four subjects, taken in turns.
    """
    scene = sample_scene(seed, index, K=K, image_size=image_size, subject=index % 4)
    shift = center_mm - scene.joints_mm.mean(0)
    return scene.verts_mm + shift, scene.joints_mm + shift


def depth_picture(verts_mm: Float, K: Float, image_size: tuple[int, int]) -> Float:
    """(H, W) depth of the hand in mm, 0 elsewhere."""
    seen = render_depth(torch.from_numpy(verts_mm), _faces(), torch.from_numpy(K), image_size)
    return seen.depth_mm[0].numpy().astype(np.float64)


def save_png(path: Path, pixels: NDArray[np.generic]) -> None:
    """Grey 16-bit or RGB 8-bit PNG, complete or not there at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, "PNG")


def write_noisy_centers(path: Path, joints_mm: Float, rng: np.random.Generator, *, y_up: bool) -> None:
    """A V2V-PoseNet centre file: the mean of each frame's joints (n, J, 3), off by a few mm as a detector's are."""
    center = joints_mm.mean(1) + rng.normal(0, 5, (len(joints_mm), 3))
    write_centers(path, center, np.ones(len(center), bool), y_up=y_up)
