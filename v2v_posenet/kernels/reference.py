"""The operations of V2V-PoseNet in plain torch: the readable oracle, and what runs where no native kernel was built.

Words used throughout: a *fine voxel* is the unit of the occupancy grid (edge ``grid``, 88 in the paper), a *cell* the
unit of the heat maps (two fine voxels, edge 44). Volumes are indexed [x, y, z]. The *world* of the grid is the camera
frame in mm with y up where ``y_up`` is set and down elsewhere; ``ref_mm`` and ``joints_mm`` live in it.

Nothing is validated here: :mod:`v2v_posenet.kernels.ops` does that and explains every argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["trunc", "floor"]
DecodeMode = Literal["port", "integral", "author"]

SIGMA = 1.7  # of the Gaussian targets, in cells (paper 3.3; both codes)


def _compute_dtype(values: Tensor) -> torch.dtype:
    """Half precision is computed in float32, everything else in its own type."""
    return torch.float32 if values.dtype in (torch.bfloat16, torch.float16) else values.dtype


# ------------------------------------------------------------------------------------------------ points and joints


def grid_coordinates(
    points_mm: Tensor,
    ref_mm: Tensor,
    cube_mm: Tensor,
    scale: Tensor,
    angle_rad: Tensor,
    shift: Tensor,
    *,
    author: bool,
    grid: int,
    margin: int,
) -> Tensor:
    """World points in fine voxels: cube to grid, scale, turn in the x-y plane, shift; float64, in this order.

    The order of the operations is part of the contract: with it, every implementation fills the same voxels as the
    original. Divisors are tensors because torch on CUDA divides by a Python number through its reciprocal.

    Args:
        points_mm: (B, N, 3) float64.
        ref_mm, shift: (B, 3) float64; cube_mm, scale, angle_rad: (B,) float64.

    Returns:
        (B, N, 3) float64. With ``author`` the values are those of the torch7 code: floored before they are moved.
    """
    full = grid + 2 * margin
    ref_mm, shift = ref_mm[:, None], shift[:, None]
    cube_mm, scale, angle_rad = (value[:, None, None] for value in (cube_mm, scale, angle_rad))

    q = (points_mm - ref_mm) / (cube_mm * 0.5)
    g = (q + 1.0) / torch.full_like(cube_mm, 2.0 / grid)
    if author:
        g = torch.floor(g) + margin
        whole = torch.floor(full * scale)
        half = 0.5 * full
        offset = torch.where(scale < 1.0, torch.floor(half - half * scale), -torch.floor(half * scale - half))
        g = torch.where(scale == 1.0, g, g / torch.full_like(cube_mm, float(full)) * whole + offset)
        centre = 0.5 * (full - 1)
    else:
        g = g + margin
        centre = 0.5 * full
        g = g * scale + centre * (1.0 - scale)

    # The author mirrors y, turns, and mirrors back: the opposite sense.
    mirrored = (full - 1.0) - g[..., 1:2] if author else g[..., 1:2]
    x, y = g[..., 0:1] - centre, mirrored - centre
    cos, sin = torch.cos(angle_rad), torch.sin(angle_rad)
    turned_x = centre + x * cos - y * sin
    turned_y = centre + x * sin + y * cos
    if author:
        turned_y = (full - 1.0) - turned_y
    turned = torch.cat([turned_x, turned_y, g[..., 2:3]], dim=-1)
    return torch.where(angle_rad == 0.0, g, turned) - shift


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
    """Joints in fine voxels, (B, J, 3) float64, by the chain that also places the points."""
    return grid_coordinates(
        joints_mm.double(), ref_mm, cube_mm, scale, angle_rad, shift, author=author, grid=grid, margin=margin
    )


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
    y_up: Tensor,
    *,
    pixel_origin: int = 1,
    rounding: Rounding = "trunc",
    author: bool = False,
    grid: int = 88,
    margin: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Occupancy grids (B, 1, grid, grid, grid) of a batch of packed depth crops; see :func:`..ops.voxelize`."""
    device = depth.device
    batch = boxes_ltrb.shape[0]
    volume = torch.zeros((batch, grid**3), dtype=dtype, device=device)
    start = 0
    for b, ((left, top, right, bottom), (width, height)) in enumerate(
        zip(boxes_ltrb.tolist(), image_wh.tolist(), strict=True)
    ):
        area = (right - left) * (bottom - top)
        crop = depth[start : start + area].reshape(bottom - top, right - left)
        start += area
        one = slice(b, b + 1)
        chain = (ref_mm[one], cube_mm[one], scale[one], angle_rad[one], shift[one])

        # Pixels without a measurement lie on the plane z = max_depth. Turning does not move z, so one point decides
        # whether any of them can be inside the cube; only then is the whole image drawn.
        plane = torch.zeros((1, 1, 3), dtype=torch.float64, device=device)
        far = max_depth_mm[b].float().double()  # depth images hold float32
        plane[..., 2] = far
        z_plane = grid_coordinates(plane, *chain, author=author, grid=grid, margin=margin)[..., 2]
        if bool(_voxel_index(z_plane, rounding, author, grid)[1].all()):
            image = torch.zeros((height, width), dtype=torch.float32, device=device)
            image[top:bottom, left:right] = crop
            rows, columns = torch.where(torch.ones_like(image, dtype=torch.bool))
            z = image[rows, columns].double()
            z = torch.where(z == 0.0, far, z)
        else:
            rows, columns = torch.where(crop != 0.0)
            z = crop[rows, columns].double()
            rows, columns = rows + top, columns + left

        fx, fy, u0, v0 = camera[b]
        x = (columns + pixel_origin - u0) * z / fx
        rise = rows + pixel_origin - v0
        y = torch.where(y_up[b], -rise, rise) * z / fy
        # The original stores its points in float32 and computes the chain in float64.
        points = torch.stack([x, y, z], dim=-1).float().double()[None]
        g = grid_coordinates(points, *chain, author=author, grid=grid, margin=margin)[0]
        index, inside = _voxel_index(g, rounding, author, grid)
        index = index[inside.all(dim=-1)].long()
        volume[b, (index[:, 0] * grid + index[:, 1]) * grid + index[:, 2]] = 1
    return volume.view(batch, 1, grid, grid, grid)


def _voxel_index(g: Tensor, rounding: Rounding, author: bool, grid: int) -> tuple[Tensor, Tensor]:
    """The voxel of a coordinate (still float64) and whether it is in the grid; a NaN is not."""
    if author:
        index = torch.floor(g + 0.5)
    else:
        index = torch.trunc(g) if rounding == "trunc" else torch.floor(g)
    return index, (index >= 0.0) & (index < grid)


# ------------------------------------------------------------------------------------------------ heat maps


def _gaussian_axis(position: Tensor, size: int, sigma: float, offset: float) -> Tensor:
    """exp(-(i + offset - position)^2 / (2 sigma^2)) for i = 0..size-1, float64, on a new last axis."""
    index = torch.arange(size, dtype=torch.float64, device=position.device)
    return torch.exp(-((index + offset - position[..., None].double()) ** 2) / (2.0 * sigma**2))


def _gaussian(cells: Tensor, shape: Sequence[int], sigma: float, offset: float) -> Tensor:
    """(B, J, X, Y, Z) float64: the outer product of three axes."""
    x, y, z = (_gaussian_axis(cells[..., axis], shape[axis], sigma, offset) for axis in range(3))
    return x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]


def gaussian_heatmaps(
    cells: Tensor, *, size: int = 44, sigma: float = SIGMA, offset: float = 0.5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """exp(-|v + offset - c|^2 / (2 sigma^2)) for every cell v, (B, J, size, size, size)."""
    return _gaussian(cells, (size, size, size), sigma, offset).to(dtype)


def gaussian_mse(pred: Tensor, cells: Tensor, *, sigma: float = SIGMA, offset: float = 0.5) -> Tensor:
    """Mean squared difference between heat maps (B, J, X, Y, Z) and the Gaussians around ``cells``, a scalar."""
    target = _gaussian(cells, pred.shape[2:], sigma, offset)
    return ((pred.double() - target) ** 2).mean().to(_compute_dtype(pred))


def gaussian_mse_backward(grad: Tensor, pred: Tensor, cells: Tensor, sigma: float, offset: float) -> Tensor:
    """Gradient of :func:`gaussian_mse` for ``pred``: 2 (o - h) / n times the incoming scalar."""
    target = _gaussian(cells, pred.shape[2:], sigma, offset)
    return (grad.double() * 2.0 / max(1, pred.numel()) * (pred.double() - target)).to(pred.dtype)


def argmax3d(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Index (B, J, 3) int64 of the first maximum in C order, and its value (B, J). A NaN counts as the maximum.

    torch.argmax may return any of several equal maxima on CUDA, hence the smallest index is searched for.
    """
    _, height, depth = heatmaps.shape[2:]
    flat = heatmaps.flatten(2)
    values = flat.amax(dim=-1)  # a NaN if there is one
    peak = torch.where(values.isnan()[..., None], flat.isnan(), flat == values[..., None])
    index = torch.arange(flat.shape[-1], device=flat.device)
    first = torch.where(peak, index, flat.shape[-1]).amin(dim=-1)
    return torch.stack([first // (height * depth), first // depth % height, first % depth], dim=-1), values


# ------------------------------------------------------------------------------------------------ integral


def soft_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Expected cell index (B, J, 3) of the softmax over each volume, and the logsumexp (B, J).

    float32 for half precision logits. Marginal sums per axis replace three products with the whole volume.
    """
    values = logits.to(_compute_dtype(logits))
    lse = torch.logsumexp(values.flatten(2), dim=-1)
    p = torch.exp(values - lse[..., None, None, None])
    coords = []
    for axis, others in enumerate(((3, 4), (2, 4), (2, 3))):
        index = torch.arange(p.shape[2 + axis], dtype=p.dtype, device=p.device)
        coords.append((p.sum(dim=others) * index).sum(dim=-1))
    # Divided by the sum of p, so that a rounding of logsumexp (of magnitude 20 and more) does not scale the result.
    return torch.stack(coords, dim=-1) / p.sum(dim=(2, 3, 4))[..., None], lse


def soft_argmax_backward(logits: Tensor, coords: Tensor, lse: Tensor, g_coords: Tensor, g_lse: Tensor) -> Tensor:
    """Gradient of :func:`soft_argmax` for the logits: p_v (g_lse + sum over axes of g_axis (v_axis - coord_axis))."""
    values = logits.to(_compute_dtype(logits))
    p = torch.exp(values - lse[..., None, None, None])
    factor = (g_lse - (g_coords * coords).sum(dim=-1))[..., None, None, None]
    for axis in range(3):
        index = torch.arange(p.shape[2 + axis], dtype=p.dtype, device=p.device)
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = -1
        factor = factor + g_coords[..., axis, None, None, None] * index.view(shape)
    return (p * factor).to(logits.dtype)


def clip_cells(cells: Tensor, size: int = 44) -> Tensor:
    """Target coordinates of the integral variant: at least 0 and at most size - 2 (the original's limit)."""
    return cells.clamp(0.0, float(size - 2))


def corner_weights(cells: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The eight cells around a coordinate, as flat indices (B, J, 8), and their trilinear weights (B, J, 8).

    The base cell stays below the last one, so that all eight exist; a NaN coordinate gives NaN weights on cell 0.
    """
    flat: Tensor | None = None
    weight: Tensor | None = None
    for axis, size in enumerate(shape):
        position = cells[..., axis]
        base = torch.nan_to_num(torch.floor(position)).clamp(0, size - 2)
        corner = torch.stack([base, base + 1.0], dim=-1)
        part = 1.0 - (corner - position[..., None]).abs()
        corner = corner.long()
        if flat is None or weight is None:
            flat, weight = corner, part
        else:
            flat = (flat[..., :, None] * size + corner[..., None, :]).flatten(-2)
            weight = (weight[..., :, None] * part[..., None, :]).flatten(-2)
    assert flat is not None
    assert weight is not None
    return flat, weight


def integral_terms(logits: Tensor, coords: Tensor, lse: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and L1 (cells), both means, from the results of :func:`soft_argmax`.

    Only eight cells of a target map are not zero, hence CE = logsumexp - sum of weight * logit over these eight.
    """
    flat, weight = corner_weights(cells, logits.shape[2:])
    picked = logits.flatten(2).gather(-1, flat).to(lse.dtype)
    cross_entropy = (lse - (weight.to(lse.dtype) * picked).sum(dim=-1)).mean()
    return cross_entropy, (coords - cells.to(coords.dtype)).abs().mean()


def integral_loss(
    logits: Tensor, target_cells: Tensor, *, weight: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight * CE + (1 - weight) * L1, and the coordinates, CE and L1; see :func:`..ops.integral_loss`."""
    cells = torch.stack([clip_cells(target_cells[..., a], logits.shape[2 + a]) for a in range(3)], dim=-1)
    coords, lse = soft_argmax(logits)
    cross_entropy, l1 = integral_terms(logits, coords, lse, cells)
    return weight * cross_entropy + (1.0 - weight) * l1, coords, cross_entropy, l1


# ------------------------------------------------------------------------------------------------ decoding


def decode(cells: Tensor, ref_mm: Tensor, cube_mm: Tensor, *, grid: int, mode: DecodeMode = "port") -> Tensor:
    """Cells (B, J, 3) back to world mm, float64.

    ``port`` takes arg-max indices and puts the joint in the middle of the cell, ``author`` takes indices and adds a
    quarter of a cell, ``integral`` takes soft-argmax coordinates, where index i is position i.
    """
    cells = cells.double()
    fine = {"port": (cells + 0.5) * 2.0, "integral": cells * 2.0, "author": cells * 2.0 + 0.5}[mode]
    half = (cube_mm.double() * 0.5)[:, None, None]
    return (fine * (2.0 / grid) - 1.0) * half + ref_mm.double()[:, None]
