"""One stand-in hand seen by any camera, and its files: what the writers of depth and RGB keypoint sets share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from shared.datasets.centers import write_centers
from shared.pool import in_processes
from shared.safe_io import atomic_path
from shared.standin.render import noise_background, render_depth, shade, skin_colors
from shared.standin.scene import Float, Side, sample_scene, standin_layer, standin_model

T = TypeVar("T")


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


def sample_hand(seed: int, index: int, *, side: Side, center_mm: ArrayLike, person: int | None = None) -> Hand:
    """Hand ``index`` of a set: pose drawn from (seed, index), four people in turns unless said whose it is; its joints'
    mean lies at a point."""
    K = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
    scene = sample_scene(
        seed, index, K=K, image_size=(320, 240), subject=(index if person is None else person) % 4, side=side
    )
    shift = np.asarray(center_mm) - scene.joints_mm.mean(0)
    return Hand(scene.verts_mm + shift, scene.joints_mm + shift, side)


def view(hand: Hand, K: Float, image_size: tuple[int, int], *, seed: int, index: int, room: bool = True) -> View:
    """Renders a hand; skin and background (``room``; black without) are drawn from (seed, index)."""
    rng = np.random.default_rng((seed, index, 77))
    faces = standin_layer(hand.side).faces
    colors = torch.from_numpy(skin_colors(standin_model().v_template, rng))
    background = None
    if room:  # drawn small and repeated: a full HD picture of noise would take longer than the hand
        small = noise_background((-(-image_size[0] // 4), -(-image_size[1] // 4)), rng)
        background = np.ascontiguousarray(small.repeat(4, 0).repeat(4, 1)[: image_size[1], : image_size[0]])
    verts = torch.from_numpy(np.ascontiguousarray(hand.verts_mm))
    render = render_depth(verts, faces, torch.from_numpy(K), image_size)
    rgb = shade(render, verts, faces, colors, background=background)[0]
    return View(render.depth_mm[0].numpy(), rgb, render.mask[0].numpy())


def depth_picture(verts_mm: Float, K: Float, image_size: tuple[int, int]) -> NDArray[np.uint16]:
    """(H, W) depth of a right hand in whole mm, 0 elsewhere."""
    seen = render_depth(torch.from_numpy(verts_mm), standin_layer().faces, torch.from_numpy(K), image_size)
    whole: NDArray[np.uint16] = np.rint(seen.depth_mm[0].numpy()).astype(np.uint16)
    return whole


def draw_all(draw: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """``draw(*job)`` of every frame in their order, by several processes of one thread each: a frame is milliseconds of
    small operations, and threads that wait for each other cost more than they bring."""
    start = (torch.set_num_threads, 1) if workers > 1 else None
    return in_processes(draw, jobs, workers, start=start, chunk=8, remedy="use fewer --workers")


def save_image(path: Path, pixels: NDArray[Any], **options: Any) -> None:
    """A picture in the format of the path's suffix, complete or not there at all; ``options`` are Pillow's."""
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, **options)


def write_noisy_centers(path: Path, joints_mm: Float, rng: np.random.Generator, *, y_up: bool) -> None:
    """A V2V-PoseNet centre file: the mean of each frame's joints (n, J, 3), off by a few mm as a detector's are."""
    write_centers(path, joints_mm.mean(1) + rng.normal(0, 5, (len(joints_mm), 3)), y_up=y_up)
