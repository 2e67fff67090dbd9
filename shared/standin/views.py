"""One stand-in hand seen by any camera: what the writers of the RGB keypoint sets share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from shared.mano import load_mano
from shared.standin.render import noise_background, render_depth, shade, skin_colors
from shared.standin.scene import sample_scene

Float = NDArray[np.float64]
Side = Literal["right", "left"]


@dataclass(frozen=True)
class Hand:
    """A posed hand: (778, 3) vertices and (21, 3) joints (order ``mano``) in a camera frame, mm."""

    verts_mm: Float
    joints_mm: Float
    side: Side

    def moved(self, transform: Callable[[Float], Float]) -> Hand:
        """The same hand in another camera's frame; ``transform`` maps (..., 3) points."""
        return Hand(transform(self.verts_mm), transform(self.joints_mm), self.side)


@dataclass(frozen=True)
class View:
    """A picture of a hand: depth (h, w) float32 mm with 0 elsewhere, colour (h, w, 3) uint8, mask (h, w) bool."""

    depth_mm: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@lru_cache(1)
def _model() -> tuple[torch.Tensor, Float]:
    model = load_mano("standin")
    return torch.as_tensor(np.asarray(model.faces, np.int64)), np.asarray(model.v_template, np.float64)


def sample_hand(seed: int, index: int, *, side: Side, center_mm: tuple[float, float, float]) -> Hand:
    """Hand ``index`` of a set: pose and shape drawn from (seed, index), the middle of its joints put at a point."""
    K = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
    scene = sample_scene(seed, index, K=K, image_size=(320, 240), subject=index % 4, side=side)
    shift = np.asarray(center_mm) - scene.joints_mm.mean(0)
    return Hand(scene.verts_mm + shift, scene.joints_mm + shift, side)


def view(hand: Hand, K: Float, image_size: tuple[int, int], *, seed: int, index: int, room: bool = True) -> View:
    """Renders a hand; skin and background (``room``; black without) are drawn from (seed, index)."""
    rng = np.random.default_rng((seed, index, 77))
    faces, rest = _model()
    if hand.side == "left":
        faces = faces.flip(1)  # a mirrored mesh turns its triangles inside out
    colors = torch.from_numpy(skin_colors(rest, rng))
    background = None
    if room:  # drawn small and repeated: a full HD picture of noise would take longer than the hand
        small = noise_background((-(-image_size[0] // 4), -(-image_size[1] // 4)), rng)
        background = np.ascontiguousarray(small.repeat(4, 0).repeat(4, 1)[: image_size[1], : image_size[0]])
    verts = torch.from_numpy(np.ascontiguousarray(hand.verts_mm))
    render = render_depth(verts, faces, torch.from_numpy(K), image_size)
    rgb = shade(render, verts, faces, colors, background=background)[0]
    return View(render.depth_mm[0].numpy(), rgb, render.mask[0].numpy())
