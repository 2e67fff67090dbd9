"""The operations of V2V-PoseNet for programs: checked arguments, the fastest implementation that is there, gradients.

Every operation is a ``torch.library`` custom operator under the namespace ``v2v_posenet``, so that ``torch.compile``
and ``opcheck`` know it. Behind it stand three implementations that agree: :mod:`.reference` (plain torch, any device),
C++ (``v2v_cpu.cpp``) and CUDA (``v2v_cuda.cu``); :mod:`shared.kernels` chooses. The native ones read float32 and
bfloat16 maps and accumulate in float32 or better; float64 and float16 maps always take the reference.

A *fine voxel* is the unit of the grid (edge ``grid``), a *cell* two of them, the unit of the heat maps. Volumes are
indexed [x, y, z]. *World* means the grid's own: camera frame, mm, z forward, y up where ``y_up`` is set (MSRA, NYU,
ITOP) and down elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from shared.errors import DataError
from shared.kernels import Kernels
from shared.kernels_ops import FLOAT_CODE, need, where

from . import reference
from .reference import SIGMA, DecodeMode, Rounding, clip_cells

__all__ = [
    "KERNELS",
    "SIGMA",
    "DecodeMode",
    "IntegralLoss",
    "Rounding",
    "argmax3d",
    "clip_cells",
    "decode",
    "gaussian_heatmaps",
    "gaussian_mse",
    "integral_loss",
    "joint_coordinates",
    "soft_argmax",
    "voxelize",
]

KERNELS = Kernels("v2v_posenet.kernels", "v2v", abi=1)
_VOXEL_TYPES: dict[torch.dtype, tuple[int, int]] = {  # bytes, bits of the number one
    torch.uint8: (1, 1),
    torch.bool: (1, 1),
    torch.bfloat16: (2, 0x3F80),
    torch.float16: (2, 0x3C00),
    torch.float32: (4, 0x3F800000),
    torch.float64: (8, 0x3FF0000000000000),
}


# ------------------------------------------------------------------------------------------------------- helpers


def _volumes(maps: Tensor, argument: str) -> None:
    need(maps.dim() == 5, argument, "a tensor (B, J, X, Y, Z)", maps)
    need(maps.is_floating_point(), argument, "a floating point type", maps)
    need(min(maps.shape[2:]) > 0, argument, "volumes with at least one cell", maps)


def _cells_of(maps: Tensor, cells: Tensor, argument: str) -> Tensor:
    """The targets of ``maps``, checked, as float64 on the same device and without history."""
    need(tuple(cells.shape) == (*maps.shape[:2], 3), argument, f"{(*maps.shape[:2], 3)} for these maps", cells)
    return cells.detach().to(maps.device, torch.float64)


def _chain(
    ref_mm: Tensor, cube_mm: Tensor, scale: Tensor, angle_rad: Tensor, shift: Tensor, batch: int, device: torch.device
) -> Tensor:
    """The cube and its augmentation as one float64 table (B, 9): ref, cube, scale, angle, shift."""
    for name, value, shape in (
        ("ref_mm", ref_mm, (batch, 3)),
        ("cube_mm", cube_mm, (batch,)),
        ("scale", scale, (batch,)),
        ("angle_rad", angle_rad, (batch,)),
        ("shift", shift, (batch, 3)),
    ):
        need(tuple(value.shape) == shape, name, str(shape), value)
    columns = (ref_mm, cube_mm[:, None], scale[:, None], angle_rad[:, None], shift)
    chain = torch.cat([column.to(device, torch.float64) for column in columns], dim=1)
    if chain.device.type == "cpu" and not torch.compiler.is_compiling():
        table = chain.numpy()
        _rows(np.isfinite(table).all(axis=1), "ref_mm, cube_mm, scale, angle_rad and shift", "finite numbers", table)
        _rows(table[:, 3] > 0, "cube_mm", "a positive edge in mm", table[:, 3])
        _rows(table[:, 4] > 0, "scale", "a positive factor", table[:, 4])
    return chain


def _rows(good: Any, argument: str, expected: str, values: np.ndarray[Any, Any]) -> None:
    """Complains about the first row that is not good."""
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(f"{argument}: expected {expected}, got {values[row].tolist()} for sample {row} of the batch")


def _grid_size(grid: int, margin: int) -> None:
    need(0 < grid <= 1024, "grid", "an edge of 1 to 1024 fine voxels", grid)
    need(margin >= 0, "margin", "0 or more fine voxels", margin)


# --------------------------------------------------------------------------------------------------- voxels and joints


def voxelize(
    depth: Tensor,
    boxes_ltrb: Tensor,
    image_wh: Tensor,
    camera: Tensor,
    ref_mm: Tensor,
    cube_mm: Tensor,
    scale: Tensor,
    angle_rad: Tensor,
    shift: Tensor,
    max_depth_mm: Tensor,
    y_up: Tensor | bool,
    *,
    pixel_origin: int = 1,
    rounding: Rounding = "trunc",
    author: bool = False,
    grid: int = 88,
    margin: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Occupancy grids of a batch of depth crops: 1 where a point falls into a fine voxel, 0 elsewhere.

    A pixel becomes a point, the point goes through cube, scale, turn and shift, and the voxel it ends in is set. All
    in float64 with the points rounded to float32 on the way, which fills exactly the voxels of the original (port,
    sections "points" and "voxelise" of its loader). Pixels without a measurement (depth 0), inside the crop and in the
    rest of the image, lie on the plane z = max_depth; they are drawn if and only if that plane reaches into the cube.
    A NaN depth is no point.

    The tensors beside ``depth`` may stay on the CPU while ``depth`` is on a GPU: they are checked there and moved.
    Values that are on a GPU already are not checked (that would wait for the device); a box that does not fit its crop
    then gives an empty grid.

    Args:
        depth: (total,) float32 mm, the crops of all samples one after another, each in row order.
        boxes_ltrb: (B, 4) int64 left, top, right, bottom of each crop in its image, zero-based, right and bottom
            excluded.
        image_wh: (B, 2) int64 width and height of the full images.
        camera: (B, 4) fx, fy, u0, v0 in pixels (the port has u0 = w/2, v0 = h/2).
        ref_mm: (B, 3) centre of the cube in the world of the grid, mm.
        cube_mm: (B,) edge of the cube, mm.
        scale: (B,) factor about the centre of the grid (new_size/100, in the integral variant 100/new_size).
        angle_rad: (B,) turn in the x-y plane, from x towards y (the author's mode: the other way round).
        shift: (B, 3) fine voxels, subtracted at the end; ``margin`` on all axes means none. The author's t is shift +
            1.
        max_depth_mm: (B,) where pixels without a measurement lie, mm.
        y_up: (B,) bool or one bool for all: whether y of this world points up.
        pixel_origin: number of the first pixel (1 in the port, a quirk; 0 is right).
        rounding: ``trunc`` puts coordinates in (-1, 0) into voxel 0 like the port, ``floor`` leaves them out.
        author: the chain of the torch7 code (floor, then integer moves, then round); ``rounding`` has no effect.
        grid: edge of the grid in fine voxels.
        margin: of the virtual outer grid (edge grid + 2 margin) on each side.
        dtype: of the result: float32, bfloat16, float16, float64, uint8 or bool.

    Returns:
        (B, 1, grid, grid, grid) with values 0 and 1, indexed [x, y, z].

    Raises:
        DataError: for shapes, types or boxes that do not fit together.
    """
    need(depth.dim() == 1 and depth.dtype == torch.float32, "depth", "packed crops (total,) float32", depth)
    need(boxes_ltrb.dim() == 2 and boxes_ltrb.shape[1] == 4, "boxes_ltrb", "(B, 4)", boxes_ltrb)
    need(boxes_ltrb.dtype == torch.int64, "boxes_ltrb", "int64", boxes_ltrb)
    batch = boxes_ltrb.shape[0]
    need(tuple(image_wh.shape) == (batch, 2), "image_wh", f"({batch}, 2)", image_wh)
    need(image_wh.dtype == torch.int64, "image_wh", "int64", image_wh)
    need(tuple(camera.shape) == (batch, 4), "camera", f"({batch}, 4) fx, fy, u0, v0", camera)
    need(tuple(max_depth_mm.shape) == (batch,), "max_depth_mm", f"({batch},)", max_depth_mm)
    need(pixel_origin in (0, 1), "pixel_origin", "0 or 1", pixel_origin)
    need(rounding in get_args(Rounding), "rounding", "trunc or floor", repr(rounding))
    need(dtype in _VOXEL_TYPES, "dtype", "float32, bfloat16, float16, float64, uint8 or bool", dtype)
    _grid_size(grid, margin)
    if isinstance(y_up, bool):
        y_up = torch.full((batch,), y_up, dtype=torch.bool)
    need(tuple(y_up.shape) == (batch,) and y_up.dtype == torch.bool, "y_up", f"({batch},) bool or a bool", y_up)

    frames = torch.cat([boxes_ltrb, image_wh.to(boxes_ltrb.device)], dim=1)
    if frames.device.type == "cpu" and not torch.compiler.is_compiling():
        left, top, right, bottom, width, height = (table := frames.numpy()).T
        good = (left >= 0) & (left <= right) & (right <= width) & (top >= 0) & (top <= bottom) & (bottom <= height)
        _rows(good, "boxes_ltrb", "0 <= left <= right <= width and 0 <= top <= bottom <= height", table)
        pixels = int(((right - left) * (bottom - top)).sum())
        need(pixels == depth.numel(), "depth", f"{pixels} values, the sum of the areas of boxes_ltrb", depth)
    columns = (camera, max_depth_mm[:, None], y_up[:, None])
    cameras = torch.cat([column.to(depth.device, torch.float64) for column in columns], dim=1)
    if cameras.device.type == "cpu" and not torch.compiler.is_compiling():
        table = cameras.numpy()
        _rows(np.isfinite(table).all(axis=1), "camera and max_depth_mm", "finite numbers", table[:, :5])
        _rows((table[:, :2] > 0).all(axis=1), "camera", "positive focal lengths fx, fy", table[:, :4])
    chain = _chain(ref_mm, cube_mm, scale, angle_rad, shift, batch, depth.device)
    floor = rounding == "floor"
    volumes = torch.ops.v2v_posenet.voxelize(
        depth, frames.to(depth.device), cameras, chain, pixel_origin, floor, author, grid, margin, dtype
    )
    return cast(Tensor, volumes)


@torch.library.custom_op("v2v_posenet::voxelize", mutates_args=())
def _voxelize(
    depth: Tensor,
    frames: Tensor,
    cameras: Tensor,
    chain: Tensor,
    pixel_origin: int,
    floor: bool,
    author: bool,
    grid: int,
    margin: int,
    dtype: torch.dtype,
) -> Tensor:
    module = KERNELS.native(depth.device.type)
    if module is None:
        ref_mm, cube_mm, scale, angle_rad, shift = chain.split([3, 1, 1, 1, 3], dim=1)
        return reference.voxelize(
            depth,
            frames[:, :4],
            frames[:, 4:],
            cameras[:, :4],
            ref_mm,
            cube_mm[:, 0],
            scale[:, 0],
            angle_rad[:, 0],
            shift,
            cameras[:, 4],
            cameras[:, 5] != 0,
            pixel_origin=pixel_origin,
            rounding="floor" if floor else "trunc",
            author=author,
            grid=grid,
            margin=margin,
            dtype=dtype,
        )
    depth, frames, cameras, chain = (value.contiguous() for value in (depth, frames, cameras, chain))
    batch = frames.shape[0]
    areas = (frames[:, 2] - frames[:, 0]) * (frames[:, 3] - frames[:, 1])
    starts = areas.cumsum(0) - areas
    volumes = depth.new_empty((batch, 1, grid, grid, grid), dtype=dtype)
    size, one = _VOXEL_TYPES[dtype]
    module.voxelize(
        depth.data_ptr(),
        depth.numel(),
        starts.data_ptr(),
        frames.data_ptr(),
        cameras.data_ptr(),
        chain.data_ptr(),
        batch,
        pixel_origin,
        floor,
        author,
        grid,
        margin,
        volumes.data_ptr(),
        size,
        one,
        *where(depth),
    )
    return volumes


@_voxelize.register_fake
def _(
    depth: Tensor,
    frames: Tensor,
    cameras: Tensor,
    chain: Tensor,
    pixel_origin: int,
    floor: bool,
    author: bool,
    grid: int,
    margin: int,
    dtype: torch.dtype,
) -> Tensor:
    return depth.new_empty((frames.shape[0], 1, grid, grid, grid), dtype=dtype)


def joint_coordinates(
    joints_mm: Tensor,
    ref_mm: Tensor,
    cube_mm: Tensor,
    scale: Tensor,
    angle_rad: Tensor,
    shift: Tensor,
    *,
    author: bool = False,
    grid: int = 88,
    margin: int = 4,
) -> Tensor:
    """Joints in fine voxels, by the chain that places the points of :func:`voxelize`; half of that is the target.

    Args:
        joints_mm: (B, J, 3) mm, in the world of the grid. They need not lie in the cube.
        ref_mm, cube_mm, scale, angle_rad, shift, author, grid, margin: as in :func:`voxelize`.

    Returns:
        (B, J, 3) float64 on the device of ``joints_mm``; 0 to ``grid`` inside the cube, not clipped.

    Raises:
        DataError: for shapes that do not fit together.
    """
    need(joints_mm.dim() == 3 and joints_mm.shape[2] == 3, "joints_mm", "(B, J, 3)", joints_mm)
    _grid_size(grid, margin)
    chain = _chain(ref_mm, cube_mm, scale, angle_rad, shift, joints_mm.shape[0], joints_mm.device)
    joints_mm = joints_mm.detach().double()
    return cast(Tensor, torch.ops.v2v_posenet.joint_coordinates(joints_mm, chain, author, grid, margin))


@torch.library.custom_op("v2v_posenet::joint_coordinates", mutates_args=())
def _joint_coordinates(joints_mm: Tensor, chain: Tensor, author: bool, grid: int, margin: int) -> Tensor:
    module = KERNELS.native(joints_mm.device.type)
    if module is None:
        ref_mm, cube_mm, scale, angle_rad, shift = chain.split([3, 1, 1, 1, 3], dim=1)
        rest = (cube_mm[:, 0], scale[:, 0], angle_rad[:, 0], shift)
        return reference.joint_coordinates(joints_mm, ref_mm, *rest, author=author, grid=grid, margin=margin)
    joints_mm, chain = joints_mm.contiguous(), chain.contiguous()
    batch, joints, _ = joints_mm.shape
    out = torch.empty_like(joints_mm)
    module.joint_coordinates(
        joints_mm.data_ptr(), chain.data_ptr(), batch, joints, author, grid, margin, out.data_ptr(), *where(joints_mm)
    )
    return out


@_joint_coordinates.register_fake
def _(joints_mm: Tensor, chain: Tensor, author: bool, grid: int, margin: int) -> Tensor:
    return torch.empty_like(joints_mm, memory_format=torch.contiguous_format)


# ---------------------------------------------------------------------------------------------------- Gaussian variant


def gaussian_heatmaps(
    cells: Tensor, *, size: int = 44, sigma: float = SIGMA, offset: float = 0.5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Target maps exp(-|v + offset - c|^2 / (2 sigma^2)) over all cells v: no cut-off, no normalisation.

    A training with :func:`gaussian_mse` does not need them. The native kernels set factors below 1e-19 to 0.

    Args:
        cells: (B, J, 3) joint positions in cells, anywhere.
        size: edge of the maps, half of the grid's.
        sigma: in cells.
        offset: position of cell 0: 0.5, or 0 for the author's targets.
        dtype: float32, bfloat16, float16 or float64.

    Returns:
        (B, J, size, size, size), indexed [x, y, z].

    Raises:
        DataError: for a wrong shape, size, sigma or type.
    """
    need(cells.dim() == 3 and cells.shape[2] == 3, "cells", "(B, J, 3)", cells)
    need(0 < size <= 512, "size", "an edge of 1 to 512 cells", size)
    need(sigma > 0, "sigma", "a positive width in cells", sigma)
    need(dtype.is_floating_point, "dtype", "a floating point type", dtype)
    cells = cells.detach().double()
    return cast(Tensor, torch.ops.v2v_posenet.gaussian_heatmaps(cells, size, sigma, offset, dtype))


@torch.library.custom_op("v2v_posenet::gaussian_heatmaps", mutates_args=())
def _gaussian_heatmaps(cells: Tensor, size: int, sigma: float, offset: float, dtype: torch.dtype) -> Tensor:
    module = KERNELS.native(cells.device.type)
    if module is None or dtype not in FLOAT_CODE:
        return reference.gaussian_heatmaps(cells, size=size, sigma=sigma, offset=offset, dtype=dtype)
    cells = cells.contiguous()
    maps = cells.new_empty((*cells.shape[:2], size, size, size), dtype=dtype)
    count = cells.shape[0] * cells.shape[1]
    module.gaussian_heatmaps(
        cells.data_ptr(), count, size, sigma, offset, maps.data_ptr(), FLOAT_CODE[dtype], *where(cells)
    )
    return maps


@_gaussian_heatmaps.register_fake
def _(cells: Tensor, size: int, sigma: float, offset: float, dtype: torch.dtype) -> Tensor:
    return cells.new_empty((*cells.shape[:2], size, size, size), dtype=dtype)


def gaussian_mse(pred: Tensor, cells: Tensor, *, sigma: float = SIGMA, offset: float = 0.5) -> Tensor:
    """Mean squared difference between heat maps and the Gaussians around ``cells``, without storing the targets.

    Equal to ``mse_loss(pred, gaussian_heatmaps(cells))`` (paper 3.3; the mean, as both codes, where the paper has a
    sum). Differentiable once, in ``pred`` only.

    Args:
        pred: (B, J, X, Y, Z) heat maps.
        cells: (B, J, 3) joint positions in cells; a target, its gradient is not formed.
        sigma, offset: as in :func:`gaussian_heatmaps`.

    Returns:
        Scalar, float32 (float64 for float64 maps). NaN for an empty batch, like torch's.

    Raises:
        DataError: for shapes that do not fit together.
    """
    _volumes(pred, "pred")
    need(sigma > 0, "sigma", "a positive width in cells", sigma)
    cells = _cells_of(pred, cells, "cells")
    return cast(Tensor, torch.ops.v2v_posenet.gaussian_mse(pred, cells, sigma, offset))


@torch.library.custom_op("v2v_posenet::gaussian_mse", mutates_args=())
def _gaussian_mse(pred: Tensor, cells: Tensor, sigma: float, offset: float) -> Tensor:
    module = KERNELS.native_for(pred, *FLOAT_CODE)
    if module is None:
        return reference.gaussian_mse(pred, cells, sigma=sigma, offset=offset)
    pred, cells = pred.contiguous(), cells.contiguous()
    batch, joints, *shape = pred.shape
    # One sum for each x plane; adding them here keeps the order fixed whatever the threads do.
    sums = cells.new_empty((batch * joints, shape[0]))
    code = FLOAT_CODE[pred.dtype]
    module.gaussian_mse(
        pred.data_ptr(), code, cells.data_ptr(), batch * joints, *shape, sigma, offset, sums.data_ptr(), *where(pred)
    )
    return (sums.sum() / pred.numel() if pred.numel() else sums.sum() * float("nan")).float()


@_gaussian_mse.register_fake
def _(pred: Tensor, cells: Tensor, sigma: float, offset: float) -> Tensor:
    return pred.new_empty((), dtype=reference._compute_dtype(pred))


@torch.library.custom_op("v2v_posenet::gaussian_mse_backward", mutates_args=())
def _gaussian_mse_backward(grad: Tensor, pred: Tensor, cells: Tensor, sigma: float, offset: float) -> Tensor:
    module = KERNELS.native_for(pred, *FLOAT_CODE)
    if module is None:
        return reference.gaussian_mse_backward(grad, pred, cells, sigma, offset).contiguous()
    pred, cells, grad = pred.contiguous(), cells.contiguous(), grad.float().contiguous()
    batch, joints, *shape = pred.shape
    out = torch.empty_like(pred)
    code = FLOAT_CODE[pred.dtype]
    module.gaussian_mse_backward(
        grad.data_ptr(),
        pred.data_ptr(),
        code,
        cells.data_ptr(),
        batch * joints,
        *shape,
        sigma,
        offset,
        out.data_ptr(),
        *where(pred),
    )
    return out


@_gaussian_mse_backward.register_fake
def _(grad: Tensor, pred: Tensor, cells: Tensor, sigma: float, offset: float) -> Tensor:
    return torch.empty_like(pred, memory_format=torch.contiguous_format)


def _gaussian_mse_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pred, cells, ctx.sigma, ctx.offset = inputs
    ctx.save_for_backward(pred, cells)


def _gaussian_mse_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    pred, cells = ctx.saved_tensors
    return torch.ops.v2v_posenet.gaussian_mse_backward(grad, pred, cells, ctx.sigma, ctx.offset), None, None, None


_gaussian_mse.register_autograd(_gaussian_mse_gradient, setup_context=_gaussian_mse_context)


def argmax3d(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Where each map is largest. Equal maxima give the first in C order on every device; a NaN counts as the largest.

    Args:
        heatmaps: (B, J, X, Y, Z).

    Returns:
        Indices (B, J, 3) int64 along x, y, z, and the maxima (B, J) in the type of the maps. Neither has a gradient.

    Raises:
        DataError: when the argument is not a batch of volumes.
    """
    _volumes(heatmaps, "heatmaps")
    return cast(tuple[Tensor, Tensor], torch.ops.v2v_posenet.argmax3d(heatmaps.detach()))


@torch.library.custom_op("v2v_posenet::argmax3d", mutates_args=())
def _argmax3d(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    module = KERNELS.native_for(heatmaps, *FLOAT_CODE)
    if module is None:
        return reference.argmax3d(heatmaps)
    heatmaps = heatmaps.contiguous()
    batch, joints, *shape = heatmaps.shape
    index = torch.empty((batch, joints, 3), dtype=torch.int64, device=heatmaps.device)
    values = heatmaps.new_empty((batch, joints))
    code = FLOAT_CODE[heatmaps.dtype]
    module.argmax3d(
        heatmaps.data_ptr(), code, batch * joints, *shape, index.data_ptr(), values.data_ptr(), *where(heatmaps)
    )
    return index, values


@_argmax3d.register_fake
def _(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    shape = heatmaps.shape[:2]
    return heatmaps.new_empty((*shape, 3), dtype=torch.int64), heatmaps.new_empty(shape)


# ---------------------------------------------------------------------------------------------------- integral variant


def soft_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Expected cell of the softmax over each volume: sum over v of p_v * v, where cell index i is the position i.

    Args:
        logits: (B, J, X, Y, Z), any memory layout; half precision is computed in float32.

    Returns:
        Coordinates (B, J, 3) in cells, 0 to size - 1, and the logsumexp of each volume (B, J); float32 (float64 for
        float64 logits). Both are differentiable, once.

    Raises:
        DataError: when the argument is not a batch of volumes.
    """
    _volumes(logits, "logits")
    return cast(tuple[Tensor, Tensor], torch.ops.v2v_posenet.soft_argmax(logits))


def _soft_argmax_forward(logits: Tensor) -> tuple[Tensor, Tensor]:
    module = KERNELS.native_for(logits, *FLOAT_CODE)
    if module is None:
        return reference.soft_argmax(logits)
    logits = logits.contiguous()
    batch, joints, *shape = logits.shape
    coords = torch.empty((batch, joints, 3), dtype=torch.float32, device=logits.device)
    lse = torch.empty((batch, joints), dtype=torch.float32, device=logits.device)
    code = FLOAT_CODE[logits.dtype]
    module.soft_argmax(
        logits.data_ptr(), code, batch * joints, *shape, coords.data_ptr(), lse.data_ptr(), *where(logits)
    )
    return coords, lse


def _soft_argmax_gradient_of(logits: Tensor, coords: Tensor, lse: Tensor, g_coords: Tensor, g_lse: Tensor) -> Tensor:
    module = KERNELS.native_for(logits, *FLOAT_CODE)
    if module is None:
        return reference.soft_argmax_backward(logits, coords, lse, g_coords, g_lse).contiguous()
    logits, coords, lse = logits.contiguous(), coords.contiguous(), lse.contiguous()
    g_coords, g_lse = g_coords.float().contiguous(), g_lse.float().contiguous()
    batch, joints, *shape = logits.shape
    out = torch.empty_like(logits)
    module.soft_argmax_backward(
        logits.data_ptr(),
        FLOAT_CODE[logits.dtype],
        coords.data_ptr(),
        lse.data_ptr(),
        g_coords.data_ptr(),
        g_lse.data_ptr(),
        batch * joints,
        *shape,
        out.data_ptr(),
        *where(logits),
    )
    return out


@torch.library.custom_op("v2v_posenet::soft_argmax", mutates_args=())
def _soft_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    return _soft_argmax_forward(logits)


@_soft_argmax.register_fake
def _(logits: Tensor) -> tuple[Tensor, Tensor]:
    dtype = reference._compute_dtype(logits)
    return logits.new_empty((*logits.shape[:2], 3), dtype=dtype), logits.new_empty(logits.shape[:2], dtype=dtype)


@torch.library.custom_op("v2v_posenet::soft_argmax_backward", mutates_args=())
def _soft_argmax_backward(logits: Tensor, coords: Tensor, lse: Tensor, g_coords: Tensor, g_lse: Tensor) -> Tensor:
    return _soft_argmax_gradient_of(logits, coords, lse, g_coords, g_lse)


@_soft_argmax_backward.register_fake
def _(logits: Tensor, coords: Tensor, lse: Tensor, g_coords: Tensor, g_lse: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _soft_argmax_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _soft_argmax_gradient(ctx: Any, g_coords: Tensor, g_lse: Tensor) -> Tensor:
    logits, coords, lse = ctx.saved_tensors
    return cast(Tensor, torch.ops.v2v_posenet.soft_argmax_backward(logits, coords, lse, g_coords, g_lse))


_soft_argmax.register_autograd(_soft_argmax_gradient, setup_context=_soft_argmax_context)


class IntegralLoss(NamedTuple):
    """What :func:`integral_loss` gives; train on ``loss``, log the rest."""

    loss: Tensor  # scalar
    coords: Tensor  # (B, J, 3) cells, as soft_argmax
    cross_entropy: Tensor  # scalar
    l1: Tensor  # scalar, cells


def integral_loss(logits: Tensor, target_cells: Tensor, *, weight: float = 0.5) -> IntegralLoss:
    """weight * CE + (1 - weight) * L1 of the integral variant, without a dense target map.

    CE is the cross entropy against the map that spreads the target over its eight neighbouring cells (trilinear
    weights), L1 the distance of the soft-argmax coordinates in cells; both are means. The target is clipped to 0 ..
    size - 2 first, as the port does (:func:`clip_cells`). Differentiable once, in ``logits`` only.

    Args:
        logits: (B, J, X, Y, Z) with at least two cells along each axis.
        target_cells: (B, J, 3) joints in cells (fine voxels / 2), where cell index i is the position i.
        weight: of the cross entropy, 0 to 1.

    Returns:
        An :class:`IntegralLoss`; float32 (float64 for float64 logits).

    Raises:
        DataError: for shapes that do not fit together, or a weight outside 0 to 1.
    """
    _volumes(logits, "logits")
    need(min(logits.shape[2:]) > 1, "logits", "volumes with at least two cells along each axis", logits)
    need(0.0 <= weight <= 1.0, "weight", "a number from 0 to 1", weight)
    cells = _cells_of(logits, target_cells, "target_cells")
    if logits.shape[2] == logits.shape[3] == logits.shape[4]:
        cells = clip_cells(cells, logits.shape[2])
    else:
        cells = torch.stack([clip_cells(cells[..., axis], logits.shape[2 + axis]) for axis in range(3)], dim=-1)
    cross_entropy, l1, coords, _ = torch.ops.v2v_posenet.integral_loss(logits, cells)
    return IntegralLoss(weight * cross_entropy + (1.0 - weight) * l1, coords, cross_entropy, l1)


@torch.library.custom_op("v2v_posenet::integral_loss", mutates_args=())
def _integral_loss(logits: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    coords, lse = _soft_argmax_forward(logits)
    cross_entropy, l1 = reference.integral_terms(logits, coords, lse, cells)
    return cross_entropy, l1, coords, lse


@_integral_loss.register_fake
def _(logits: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = reference._compute_dtype(logits)
    scalar, pairs = logits.new_empty((), dtype=dtype), logits.new_empty(logits.shape[:2], dtype=dtype)
    return scalar, torch.empty_like(scalar), logits.new_empty((*logits.shape[:2], 3), dtype=dtype), pairs


@torch.library.custom_op("v2v_posenet::integral_loss_backward", mutates_args=())
def _integral_loss_backward(
    logits: Tensor,
    cells: Tensor,
    coords: Tensor,
    lse: Tensor,
    g_cross_entropy: Tensor,
    g_l1: Tensor,
    g_coords: Tensor,
    g_lse: Tensor,
) -> Tensor:
    pairs = max(1, lse.numel())
    g_coords = g_coords + g_l1 / (3 * pairs) * torch.sign(coords - cells.to(coords.dtype))
    out = _soft_argmax_gradient_of(logits, coords, lse, g_coords, g_lse + g_cross_entropy / pairs)
    flat, weights = reference.corner_weights(cells, logits.shape[2:])
    share = weights.to(lse.dtype) * (-g_cross_entropy / pairs)
    volumes = out.flatten(2)
    volumes.scatter_(-1, flat, (volumes.gather(-1, flat) + share).to(out.dtype))  # the eight cells all differ
    return out


@_integral_loss_backward.register_fake
def _(
    logits: Tensor,
    cells: Tensor,
    coords: Tensor,
    lse: Tensor,
    g_cross_entropy: Tensor,
    g_l1: Tensor,
    g_coords: Tensor,
    g_lse: Tensor,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _integral_loss_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, coords, lse = output
    ctx.save_for_backward(*inputs, coords, lse)


def _integral_loss_gradient(
    ctx: Any, g_cross_entropy: Tensor, g_l1: Tensor, g_coords: Tensor, g_lse: Tensor
) -> tuple[Tensor, None]:
    gradients = (g_cross_entropy, g_l1, g_coords, g_lse)
    return torch.ops.v2v_posenet.integral_loss_backward(*ctx.saved_tensors, *gradients), None


_integral_loss.register_autograd(_integral_loss_gradient, setup_context=_integral_loss_context)


# ------------------------------------------------------------------------------------------------------------ decoding


def decode(cells: Tensor, ref_mm: Tensor, cube_mm: Tensor, *, grid: int, mode: DecodeMode = "port") -> Tensor:
    """Cells of the heat maps back to millimetres in the world of the grid.

    Args:
        cells: (B, J, 3) indices of :func:`argmax3d` (or refined ones, on the same scale), for ``integral`` the
            coordinates of :func:`soft_argmax`.
        ref_mm: (B, 3) centre of the cube, mm.
        cube_mm: (B,) edge of the cube, mm.
        grid: edge of the grid in fine voxels, twice the edge of the heat maps.
        mode: ``port`` puts the joint in the middle of its cell, (2 i + 1) fine voxels; ``author`` at 2 i + 0.5;
            ``integral`` at twice the coordinate, because there cell index i is the position i.

    Returns:
        (B, J, 3) float64 mm.

    Raises:
        DataError: for shapes that do not fit together, or another mode.
    """
    need(cells.dim() == 3 and cells.shape[2] == 3, "cells", "(B, J, 3)", cells)
    need(tuple(ref_mm.shape) == (len(cells), 3), "ref_mm", f"({len(cells)}, 3)", ref_mm)
    need(tuple(cube_mm.shape) == (len(cells),), "cube_mm", f"({len(cells)},)", cube_mm)
    need(grid > 0, "grid", "a positive edge in fine voxels", grid)
    need(mode in get_args(DecodeMode), "mode", "port, integral or author", repr(mode))
    return reference.decode(cells, ref_mm.to(cells.device), cube_mm.to(cells.device), grid=grid, mode=mode)
