"""Checks of a frame against its own pictures, used by the tests of the RGB-D mesh sets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from shared.camera import project
from shared.datasets.base import Frame
from shared.mano import ManoLayer, load_mano, mirror_model
from shared.standin.render import render_depth

Float = NDArray[np.float64]


def mano_of(frame: Frame, tips: str, order: str) -> tuple[Float, Float]:
    """((778, 3) vertices, (21, 3) joints) in mm that a MANO layer gives for the frame's parameters."""
    model = load_mano("standin")
    layer = ManoLayer(
        model if frame.side == "right" else mirror_model(model),
        n_pca=None,
        flat_hand_mean=frame.extra["flat_hand_mean"],
        tips=tips,
        joint_order=order,
        dtype=torch.float64,
    )
    pose, betas = (torch.tensor(frame.extra[key], dtype=torch.float64)[None] for key in ("pose", "betas"))
    if "transl_mm" in frame.extra:
        transl = torch.tensor(frame.extra["transl_mm"])[None]
    else:  # the layer's translation is the wrist minus the wrist at rest
        transl = torch.tensor(frame.extra["root_mm"]) - layer.rest(betas)[1][:, 0] * 1000
    verts, joints = layer(pose, betas, transl)
    return verts[0].numpy(), joints[0].numpy()


def share_on(mask: NDArray[np.bool_], points_mm: Float, K: Float, slack: int = 2) -> float:
    """Share of points whose pixel is within ``slack`` pixels of the mask."""
    wide = binary_dilation(mask, iterations=slack)
    u, v = project(points_mm, K).round().astype(int).T
    inside = (u >= 0) & (u < mask.shape[1]) & (v >= 0) & (v < mask.shape[0])
    hits = np.zeros(len(u), bool)
    hits[inside] = wide[v[inside], u[inside]]
    return float(hits.mean())


def surface(frame: Frame, verts_mm: Float) -> NDArray[np.float32]:
    """(H, W) depth in mm of the hand alone, 0 elsewhere."""
    faces = load_mano("standin").faces
    render = render_depth(
        torch.from_numpy(np.ascontiguousarray(verts_mm)),
        torch.tensor(faces),
        torch.from_numpy(frame.K),
        frame.image_size,
    )
    depth: NDArray[np.float32] = render.depth_mm[0].numpy()
    return depth


def depth_agreement(frame: Frame, verts_mm: Float, tolerance_mm: float) -> tuple[float, float]:
    """Of the pixels where the hand would be seen and the sensor measured: the share whose depth is that of the hand,
    and the share whose depth is behind it. The rest is in front: an object."""
    hand = surface(frame, verts_mm)
    assert frame.depth_mm is not None
    use = (hand > 0) & (frame.depth_mm > 0)
    difference = frame.depth_mm[use] - hand[use]
    return float((np.abs(difference) <= tolerance_mm).mean()), float((difference > tolerance_mm).mean())
