"""Synthetic training images on the fly: random poses, skinned, rasterised, as noisy as a sensor's, with targets.

Everything random is a function of (seed, epoch, index): a sample is the same in whatever batch, process or resumed run
it is made. The two ways to spoil captured images, shrinking and smoothing, live here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup_fitting.hand import Hand
from selfsup_fitting.kernels.ops import Interpolation
from selfsup_fitting.kinematics import forward_kinematics, hand_tensors, pose_spheres, skin
from selfsup_fitting.render import CELLS, IMAGE, heatmaps, mesh_depth, project, unproject
from selfsup_fitting.sampler import sample_poses
from selfsup_fitting.spheres import MEAN_SCALE
from shared.errors import DataError

Rounding = Literal["symmetric", "trunc"]
Center = Literal["mean", "palm"]

DEPTH_SCALE = 0.01  # normalised depth per mm
SCALE_SPREAD = 0.05  # of the three axis factors around 0.9
ZOOM = (0.9, 1.1)
SHIFT_PIXELS, NOISE = 0.5, 0.05  # standard deviations of the depth noise: pixels, normalised depth
PALM = 2  # the sphere that captured crops are centred on (NYU joint 32)

_BLOCK = 1024  # poses drawn together
_POSES, _PIXELS = 1, 2  # two streams of random numbers


class Draws(NamedTuple):
    """What is random about a batch, the noise apart.

    Attributes:
        pose: (B, 26).
        scale: (B, 3) factors along the axes.
        zoom: (B,) factor on x and y in the picture.
    """

    pose: Tensor
    scale: Tensor
    zoom: Tensor


class SynthBatch(NamedTuple):
    """Synthetic images and what the network shall say about them; no gradients.

    Attributes:
        depth: (B, 64, 64) normalised (mm / 100), background 1.
        heatmaps: (B, 41, 16, 16).
        spheres_mm: (B, 41, 3) camera frame; x and y contain the zoom, as seen in the picture.
    """

    depth: Tensor
    heatmaps: Tensor
    spheres_mm: Tensor


def _seed_of(*counters: int) -> int:
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0] >> np.uint64(1))


@lru_cache(256)
def _block(seed: int, epoch: int, block: int, extra_mode: bool) -> Draws:
    """The draws of samples 1024 ``block`` to 1024 ``block`` + 1023; small batches of poses are slow to draw."""
    generator = torch.Generator().manual_seed(_seed_of(seed, epoch, block, _POSES))
    pose = sample_poses(_BLOCK, generator, extra_mode=extra_mode)
    scale = MEAN_SCALE + SCALE_SPREAD * (2 * torch.rand(_BLOCK, 3, generator=generator) - 1)
    zoom = ZOOM[0] + (ZOOM[1] - ZOOM[0]) * torch.rand(_BLOCK, generator=generator)
    return Draws(pose, scale, zoom)


def draw(seed: int, epoch: int, indices: Sequence[int], *, extra_mode: bool = False) -> Draws:
    """Poses, axis factors U(0.85, 0.95) and zooms U(0.9, 1.1) of the samples ``indices`` of an epoch."""
    if not len(indices):
        return Draws(torch.empty(0, 26), torch.empty(0, 3), torch.empty(0))
    places = [divmod(int(index), _BLOCK) for index in indices]
    blocks = [_block(seed, epoch, block, extra_mode) for block, _ in places]
    picked = [[values[row] for values in block] for block, (_, row) in zip(blocks, places, strict=True)]
    return Draws(*(torch.stack(column) for column in zip(*picked, strict=True)))


def pixel_draws(seed: int, epoch: int, indices: Sequence[int], size: int = IMAGE) -> Tensor:
    """(B, 3, size, size) standard normal float32 numbers for :func:`depth_noise`."""
    out, generator = torch.empty(len(indices), 3, size, size), torch.Generator()
    for image, index in zip(out, indices, strict=True):
        image.normal_(generator=generator.manual_seed(_seed_of(seed, epoch, int(index), _PIXELS)))
    return out


def depth_noise(depth: Tensor, normal: Tensor, rounding: Rounding = "symmetric") -> Tensor:
    """Normalised depth images as a sensor might see them: pixels read beside their place, then 5 mm noise.

    Args:
        depth: (B, H, W); background is 1 and gets no noise.
        normal: (B, 3, H, W) standard normal numbers: shift in x, shift in y, noise.
        rounding: of the shifts N(0, 0.5). ``symmetric`` to the nearest pixel; ``trunc`` adds 0.5 and rounds towards
            zero, the original's way, which moves the image by 0.16 pixels on average.

    Raises:
        DataError: shapes that do not fit, another rounding.
    """
    batch, height, width = _images(depth)
    if normal.shape != (batch, 3, height, width):
        raise DataError(f"normal: expected {(batch, 3, height, width)}, got {tuple(normal.shape)}")
    if rounding not in get_args(Rounding):
        raise DataError(f"rounding: expected symmetric or trunc, got {rounding!r}")
    shift = normal[:, :2] * SHIFT_PIXELS
    shift = shift.round() if rounding == "symmetric" else (shift + 0.5).trunc()
    x = (torch.arange(width, device=depth.device) + shift[:, 0]).clamp(0, width - 1)
    y = (torch.arange(height, device=depth.device)[:, None] + shift[:, 1]).clamp(0, height - 1)
    moved = depth.flatten(1).gather(1, (y * width + x).long().flatten(1)).view_as(depth)
    return torch.where(moved < 1.0, moved + NOISE * normal[:, 2], moved)


@torch.no_grad()
def synthesize(
    draws: Draws,
    hand: Hand,
    *,
    interpolation: Interpolation = "linear",
    center: Center = "mean",
    noise: Tensor | None = None,
    noise_rounding: Rounding = "symmetric",
) -> SynthBatch:
    """Images and targets of given draws, on the device of the poses.

    Args:
        draws: see :func:`draw`.
        hand: who is seen.
        interpolation: of depth inside triangles.
        center: ``mean`` leaves the hand where kinematics puts it, its mean vertex near the centre; ``palm`` moves
            sphere 2 to the centre, as captured crops are cut (README, Q14). Both add the pose's translation.
        noise: (B, 3, 64, 64) standard normal numbers for :func:`depth_noise`; None leaves the images clean.
        noise_rounding: see there.

    Raises:
        DataError: another ``center``, or what :func:`depth_noise` and the kernels refuse.
    """
    if center not in get_args(Center):
        raise DataError(f"center: expected mean or palm, got {center!r}")
    pose, scale, zoom = draws
    transforms = forward_kinematics(pose, hand, scale)
    verts, spheres = skin(transforms, hand), pose_spheres(transforms, hand)
    if center == "palm":
        jitter = pose[:, 3:6] * scale * pose.new_tensor([-1.0, 1.0, 1.0])  # model to camera: x is mirrored
        shift = (jitter - spheres[:, PALM])[:, None]
        verts, spheres = verts + shift, spheres + shift
    faces = hand_tensors(hand, pose.dtype, pose.device).faces
    depth = mesh_depth(verts, faces, zoom, interpolation=interpolation) * DEPTH_SCALE
    if noise is not None:
        depth = depth_noise(depth, noise.to(depth.device), noise_rounding)
    uvd = project(spheres, CELLS, zoom)
    return SynthBatch(depth, heatmaps(uvd), unproject(uvd, CELLS))


def synthetic_batch(
    hand: Hand,
    seed: int,
    epoch: int,
    indices: Sequence[int],
    *,
    interpolation: Interpolation = "linear",
    center: Center = "mean",
    noise_rounding: Rounding | None = "symmetric",
    extra_mode: bool = False,
    device: str | torch.device = "cpu",
) -> SynthBatch:
    """The samples ``indices`` of an epoch, the same numbers whatever else is in the batch.

    Args:
        hand, interpolation, center: see :func:`synthesize`.
        seed, epoch, indices: what each sample is a function of.
        noise_rounding: see :func:`depth_noise`; None for clean images.
        extra_mode: see :func:`selfsup_fitting.sampler.sample_poses`.
        device: where the images are made; random numbers are drawn on the CPU, so that it makes no difference.
    """
    draws = Draws(*(values.to(device) for values in draw(seed, epoch, indices, extra_mode=extra_mode)))
    noise = None if noise_rounding is None else pixel_draws(seed, epoch, indices)
    return synthesize(
        draws,
        hand,
        interpolation=interpolation,
        center=center,
        noise=noise,
        noise_rounding=noise_rounding or "symmetric",
    )


# ---------------------------------------------------------------------------------------------- captured images


def _images(depth: Tensor) -> tuple[int, int, int]:
    if depth.dim() != 3 or not depth.is_floating_point():
        raise DataError(f"depth: expected float images (B, H, W), got {tuple(depth.shape)} {depth.dtype}")
    batch, height, width = depth.shape
    return batch, height, width


def _axis_source(size: int, scale: Tensor) -> Tensor:
    """(B, size) int64: which row or column of the image each row or column of the shrunken one shows, -1 for none."""
    scaled = scale.float() * size
    whole, rounded = scaled.floor().long(), (scaled + 0.5).floor().long()
    offset = (size - rounded).div(2, rounding_mode="floor")
    place = torch.arange(size, device=scale.device) - offset[:, None]
    step = (size / rounded.clamp(min=1).float())[:, None]  # torch's nearest neighbour: floor(i * old / new) in float32
    source = (place.float() * step).floor().long().clamp(max=size - 1)
    return torch.where((place >= 0) & (place < whole[:, None]), source, -1)


def shrink(depth: Tensor, u_scale: Tensor, v_scale: Tensor) -> Tensor:
    """Normalised depth images made smaller on a background of 1, each by its own factors; depth stays.

    Args:
        depth: (B, H, W) normalised.
        u_scale, v_scale: (B,) factors of width and height, at most 1.

    Raises:
        DataError: shapes that do not fit, factors outside (0, 1].
    """
    batch, height, width = _images(depth)
    for name, scale in (("u_scale", u_scale), ("v_scale", v_scale)):
        if scale.shape != (batch,) or not bool(((scale > 0) & (scale <= 1)).all()):
            raise DataError(f"{name}: expected ({batch},) factors in (0, 1], got {tuple(scale.shape)} {scale.tolist()}")
    rows, columns = (
        _axis_source(size, scale.to(depth.device)) for size, scale in ((height, v_scale), (width, u_scale))
    )
    flat = rows.clamp(min=0)[:, :, None] * width + columns.clamp(min=0)[:, None]
    picked = depth.flatten(1).gather(1, flat.flatten(1)).view_as(depth)
    inside = (rows >= 0)[:, :, None] & (columns >= 0)[:, None]
    return torch.where(inside, picked, torch.ones_like(picked))


_KERNELS = {
    3: ((1, 2, 1), (2, 6, 2), (1, 2, 1)),
    5: ((1, 4, 7, 4, 1), (4, 16, 26, 16, 4), (7, 26, 41, 26, 7), (4, 16, 26, 16, 4), (1, 4, 7, 4, 1)),
}


def resample(
    depth: Tensor, kernel: Literal[3, 5], dropped: Tensor | None = None, *, padding: Literal["replicate", "zero"]
) -> Tensor:
    """Normalised depth images with pixels lost and then smoothed (the original's ``--depth_resample``).

    Args:
        depth: (B, H, W).
        kernel: side of the fixed smoothing kernel.
        dropped: (B, H, W) bool, pixels that become background first; None for no pixel.
        padding: ``zero`` is the original's, which puts middle depth around the image.

    Raises:
        DataError: another kernel or padding, shapes that do not fit.
    """
    _images(depth)
    if kernel not in _KERNELS:
        raise DataError(f"kernel: expected 3 or 5, got {kernel!r}")
    if padding not in ("replicate", "zero"):
        raise DataError(f"padding: expected replicate or zero, got {padding!r}")
    if dropped is not None:
        if dropped.shape != depth.shape or dropped.dtype != torch.bool:
            raise DataError(f"dropped: expected bool {tuple(depth.shape)}, got {tuple(dropped.shape)} {dropped.dtype}")
        depth = torch.where(dropped, torch.ones_like(depth), depth)
    weights = torch.tensor(_KERNELS[kernel], dtype=depth.dtype, device=depth.device)
    mode = "constant" if padding == "zero" else "replicate"
    padded = F.pad(depth[:, None], (kernel // 2,) * 4, mode=mode)
    return F.conv2d(padded, (weights / weights.sum())[None, None])[:, 0]
