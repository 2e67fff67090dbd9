"""The operations of training by fitting in plain torch: the readable oracle, and what runs without a native kernel.

Everything is in the camera frame, mm, centred on the crop. A *sample* is a point of integer pixel coordinates at which
a picture is evaluated. Nothing is validated here: :mod:`selfsup_fitting.kernels.ops` does that and explains every
argument. The order of the operations is part of the contract: with it, and without fused multiply-adds, C++ and CUDA
cover the same samples (and give the same bits, but that torch 2.13 on x86 rounds some square roots the other way).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["linear", "harmonic"]

BACKGROUND_MM = 100.0  # of captured and rendered crops
MAX_PIXEL = 1e6  # a corner farther away than this many pixels is garbage: its face is not drawn
MIN_Q = 0.01  # a sphere covers a pixel where r^2 - distance^2 exceeds this (mm^2); it bounds the slope of the surface
FAR_DATA_MM = 99.0  # captured pixels beyond are background for the distance to the model
MAX_DISTANCE_MM = 50.0  # of a captured pixel to the model; farther ones pull no harder, and not at all in the gradient

_CHUNK = 1 << 22  # (image, sphere, pixel) triples held at a time


# ------------------------------------------------------------------------------------------------ mesh


def sample_positions(size: int, factor: int, device: torch.device) -> Tensor:
    """Which of ``size`` rows or columns are evaluated, ascending int64: all (factor 1), or those a resize reads.

    A bilinear reduction by an even ``factor`` with half-pixel centres reads two neighbours for each result, number
    factor i + factor / 2 - 1 and the next, and takes their mean.
    """
    every = torch.arange(size, device=device)
    if factor == 1:
        return every
    offset = every % factor
    return every[(offset == factor // 2 - 1) | (offset == factor // 2)]


def rasterize(
    verts_uvd: Tensor,
    faces: Tensor,
    width: int,
    height: int,
    *,
    factor: int = 1,
    interpolation: Interpolation = "linear",
    cull: bool = True,
    background: float = 1000.0,
) -> tuple[Tensor, Tensor]:
    """Depth (B, h, w) and winning face (B, h, w) int32, -1 for none, at the samples; see :func:`..ops.rasterize`."""
    columns = sample_positions(width, factor, verts_uvd.device)
    rows = sample_positions(height, factor, verts_uvd.device)
    depth = verts_uvd.new_full((len(verts_uvd), len(rows) * len(columns)), background)
    face = torch.full_like(depth, -1, dtype=torch.int32)
    for b, verts in enumerate(verts_uvd):
        corners = verts[faces]  # (F, 3 corners, 3)
        kept = torch.nonzero(_drawn(corners, cull)).flatten()
        index, c, r = _covered(corners[kept], columns, rows, width, height)
        index = kept[index]
        weights = barycentric(corners[index], columns[c], rows[r]).clamp(0.0, 1.0)
        z = interpolated(weights, corners[index][..., 2], interpolation)
        pixel, solid = r * len(columns) + c, z < background  # a NaN never wins
        pixel, z, index = pixel[solid], z[solid], index[solid]
        depth[b].scatter_reduce_(0, pixel, z, "amin")
        first = torch.full_like(depth[b], len(faces), dtype=torch.int64)
        nearest = z == depth[b, pixel]  # of several equally near faces the lowest index wins
        first.scatter_reduce_(0, pixel[nearest], index[nearest], "amin")
        face[b] = torch.where(first < len(faces), first, -1).int()
    shape = (-1, len(rows), len(columns))
    return depth.view(shape), face.view(shape)


def _drawn(corners: Tensor, cull: bool) -> Tensor:
    """(F,) which faces are drawn at all: sound numbers, with an area, and with ``cull`` turned to the viewer."""
    u, v = corners[..., 0], corners[..., 1]
    right, left = (v[:, 2] - v[:, 0]) * (u[:, 1] - u[:, 0]), (v[:, 1] - v[:, 0]) * (u[:, 2] - u[:, 0])
    sound = (corners.abs() <= corners.new_tensor([MAX_PIXEL, MAX_PIXEL, torch.inf])).all(dim=-1).all(dim=-1)
    sound &= torch.isfinite(corners[..., 2]).all(dim=-1) & (_denominator(u, v) != 0)
    return sound & (right >= left) if cull else sound


def _covered(corners: Tensor, columns: Tensor, rows: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """All (face, sample column, sample row) that the scan conversion of the original visits, as three lists."""
    u, v = corners[..., 0], corners[..., 1]
    u0, u1, u2 = u.unbind(-1)
    rising = u0 < u1
    left = torch.where(rising, torch.where(u2 < u0, 2, 0), torch.where(u2 < u1, 2, 1))
    right = torch.where(rising, torch.where(u1 < u2, 2, 1), torch.where(u0 < u2, 2, 0))
    (ul, vl), (um, vm), (ur, vr) = (
        (u.gather(1, k[:, None])[:, 0], v.gather(1, k[:, None])[:, 0]) for k in (left, 3 - left - right, right)
    )

    def spread(start: Tensor, stop: Tensor, positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """For each row of the table, its samples from ceil(start) to stop inside the picture, both inclusive.

        A stop in (-1, 0) counts as 0, as in the original, whose conversion to integers rounds towards zero.
        """
        start = start.ceil().nan_to_num(nan=size).clamp(0, size)  # NaN: an edge of no length, nothing to draw
        first = torch.searchsorted(positions, start.long())
        last = torch.searchsorted(positions, stop.nan_to_num(nan=-1).clamp(-1, size - 1).long(), right=True)
        count = (last - first).clamp(min=0)
        owner = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        begin = count.cumsum(0) - count
        return owner, torch.arange(len(owner), device=count.device) - begin[owner] + first[owner]

    face, column = spread(ul, ur, columns, width)
    ul, vl, um, vm, ur, vr = (value[face] for value in (ul, vl, um, vm, ur, vr))
    x = columns[column].to(u.dtype)
    on_first = x <= um
    first = torch.where(um == ul, vm, vl + (vm - vl) * ((x - ul) / (um - ul)))
    second = torch.where(ur == um, vm, vm + (vr - vm) * ((x - um) / (ur - um)))
    y1, y2 = torch.where(on_first, first, second), vl + (vr - vl) * ((x - ul) / (ur - ul))
    pair, row = spread(torch.minimum(y1, y2), torch.maximum(y1, y2), rows, height)
    return face[pair], column[pair], row


def _denominator(u: Tensor, v: Tensor) -> Tensor:
    return (v[..., 1] - v[..., 2]) * (u[..., 0] - u[..., 2]) + (u[..., 2] - u[..., 1]) * (v[..., 0] - v[..., 2])


def barycentric(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(N, 3) weights of the corners (N, 3, 3) at the samples (x, y); a NaN becomes 0."""
    u, v = corners[..., 0], corners[..., 1]
    dx, dy, inverse = x - u[..., 2], y - v[..., 2], 1.0 / _denominator(u, v)
    w0 = ((v[..., 1] - v[..., 2]) * dx + (u[..., 2] - u[..., 1]) * dy) * inverse
    w1 = ((v[..., 2] - v[..., 0]) * dx + (u[..., 0] - u[..., 2]) * dy) * inverse
    return torch.nan_to_num(torch.stack([w0, w1, 1.0 - w0 - w1], dim=-1))


def interpolated(weights: Tensor, z: Tensor, interpolation: Interpolation) -> Tensor:
    """Depth (N,) at weights (N, 3), of any sum, between corner depths (N, 3)."""
    (w0, w1, w2), (z0, z1, z2) = weights.unbind(-1), z.unbind(-1)
    if interpolation == "linear":
        return (w0 * z0 + w1 * z1 + w2 * z2) / (w0 + w1 + w2)
    return ((w0 + w1 + w2).double() / (w0 / z0 + w1 / z1 + w2 / z2).double()).to(z.dtype)


def winners(face: Tensor, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The covered samples of ``face`` (B, h, w): flat index, face, and where they lie in the picture, each (n,)."""
    flat = torch.nonzero(face.flatten() >= 0).flatten()
    row, column = flat % (len(rows) * len(columns)) // len(columns), flat % len(columns)
    return flat, face.flatten()[flat].long(), columns[column], rows[row]


def rasterize_backward(
    grad: Tensor,
    verts_uvd: Tensor,
    faces: Tensor,
    face: Tensor,
    width: int,
    height: int,
    factor: int,
    interpolation: Interpolation,
    far: float | None,
) -> Tensor:
    """Gradient for the vertices of the depths (B, h, w) at the samples; none for samples beyond ``far``.

    Where corner k moves by d in the picture, the weights at a sample change as if the sample had moved by -w_k d.
    """
    columns = sample_positions(width, factor, face.device)
    rows = sample_positions(height, factor, face.device)
    flat, index, x, y = winners(face, columns, rows)
    corner = faces[index] + (flat // (len(rows) * len(columns)) * verts_uvd.shape[1])[:, None]
    corners = verts_uvd.reshape(-1, 3)[corner]
    u, v, z = corners.unbind(-1)
    raw = barycentric(corners, x, y)
    kept = raw.clamp(0.0, 1.0)
    depth = interpolated(kept, z, interpolation)[:, None]
    total = kept.sum(dim=-1, keepdim=True)
    if interpolation == "linear":
        by_weight, by_z = (z - depth) / total, kept / total
    else:
        harmonic = (kept / z).sum(dim=-1, keepdim=True)
        by_weight, by_z = (1.0 - depth / z) / harmonic, depth * kept / (harmonic * z * z)
    by_weight = torch.where((raw >= 0) & (raw <= 1), by_weight, torch.zeros_like(by_weight))
    g0, g1 = by_weight[:, 0] - by_weight[:, 2], by_weight[:, 1] - by_weight[:, 2]  # the third weight is the rest
    inverse = 1.0 / _denominator(u, v)
    by_x = (g0 * (v[:, 1] - v[:, 2]) + g1 * (v[:, 2] - v[:, 0])) * inverse
    by_y = (g0 * (u[:, 2] - u[:, 1]) + g1 * (u[:, 0] - u[:, 2])) * inverse
    slopes = torch.stack([-raw * by_x[:, None], -raw * by_y[:, None], by_z], dim=-1)  # (n, 3 corners, 3)

    pull = grad.flatten()[flat]
    if far is not None:
        pull = torch.where(depth[:, 0] <= far, pull, torch.zeros_like(pull))
    sums = verts_uvd.new_zeros((verts_uvd.shape[0] * verts_uvd.shape[1], 3), dtype=torch.float64)
    sums.index_add_(0, corner.flatten(), (slopes * pull[:, None, None]).double().flatten(0, 1))
    return sums.to(verts_uvd.dtype).view_as(verts_uvd)


def mean_2x2(samples: Tensor, far: float) -> Tensor:
    """(B, h, w) clamped to at most ``far``, then averaged two by two: what clamp and bilinear reduction give."""
    kept = samples.clamp(max=far)
    top, bottom = kept[..., 0::2, :], kept[..., 1::2, :]  # added up in the order of torch's bilinear interpolation
    return (top[..., 0::2] + top[..., 1::2] + bottom[..., 0::2] + bottom[..., 1::2]) * 0.25


# ------------------------------------------------------------------------------------------------ spheres


def pixel_grid(size: int, cube_mm: float, like: Tensor) -> Tensor:
    """(size,) where the samples of an orthographic crop lie, mm: (i - size / 2) cube / size."""
    return (torch.arange(size, device=like.device, dtype=like.dtype) - size / 2) * (cube_mm / size)


def render_spheres(centers: Tensor, radii: Tensor, size: int, cube_mm: float) -> tuple[Tensor, Tensor]:
    """Depth (N, size, size) of spheres (N, J, 3) and the winning sphere, int32, -1 for none."""
    depth = centers.new_full((len(centers), size, size), BACKGROUND_MM)
    winner = torch.full_like(depth, -1, dtype=torch.int32)
    g = pixel_grid(size, cube_mm, centers)
    for j in range(centers.shape[1]):  # ascending with a strict comparison: the lowest index wins a tie
        x, y, z = (value[:, None, None] for value in centers[:, j].unbind(-1))
        q = radii[j] ** 2 - (g - x) ** 2 - (g[:, None] - y) ** 2
        covered = q > MIN_Q
        surface = z - torch.where(covered, q, torch.ones_like(q)).sqrt()
        nearer = covered & (surface < depth)
        depth = torch.where(nearer, surface, depth)
        winner = torch.where(nearer, j, winner)
    return depth, winner.int()


def sphere_slopes(centers: Tensor, radii: Tensor, winner: Tensor, cube_mm: float) -> Tensor:
    """(N, H, W, 3): derivative of the rendered depth for the centre of the winning sphere; 0 where there is none."""
    n, size = winner.shape[0], winner.shape[-1]
    index = winner.clamp(min=0).long().flatten(1)
    won = centers.gather(1, index[..., None].expand(-1, -1, 3)).view(n, size, size, 3)
    g = pixel_grid(size, cube_mm, centers)
    dx, dy = g - won[..., 0], g[:, None] - won[..., 1]
    root = (radii[index].view_as(dx) ** 2 - dx**2 - dy**2).clamp(min=MIN_Q).sqrt()
    slopes = torch.stack([-dx / root, -dy / root, torch.ones_like(dx)], dim=-1)
    return torch.where((winner >= 0)[..., None], slopes, torch.zeros_like(slopes))


def _per_sphere(values: Tensor, winner: Tensor, spheres: int) -> Tensor:
    """(N, H, W, 3) added up by winning sphere, (N, J, 3), in float64 and in a fixed order."""
    n = len(values)
    index = winner.clamp(min=0).long().flatten(1)[..., None].expand(-1, -1, 3)
    sums = values.new_zeros((n, spheres, 3), dtype=torch.float64)
    return sums.scatter_add_(1, index, values.double().flatten(1, 2))


def render_spheres_backward(grad: Tensor, centers: Tensor, radii: Tensor, winner: Tensor, cube_mm: float) -> Tensor:
    """Gradient of the rendered depth (N, H, W) for the centres (N, J, 3)."""
    slopes = sphere_slopes(centers, radii, winner, cube_mm)
    return _per_sphere(slopes * grad[..., None], winner, centers.shape[1]).to(centers.dtype)


def _distances(centers: Tensor, radii: Tensor, depth: Tensor, cube_mm: float) -> tuple[Tensor, Tensor, Tensor]:
    """For the pixels of (N, H, W): distance to the nearest sphere surface, that sphere, and its derivative (.., 3)."""
    n, size = depth.shape[0], depth.shape[-1]
    g = pixel_grid(size, cube_mm, centers)
    best = torch.full_like(depth, torch.inf)
    nearest = torch.zeros_like(depth, dtype=torch.int64)
    slopes = depth.new_zeros((*depth.shape, 3))
    for j in range(centers.shape[1]):
        x, y, z = (value[:, None, None] for value in centers[:, j].unbind(-1))
        dx, dy, dz = g - x, g[:, None] - y, depth - z
        length = (dx * dx + dy * dy + dz * dz).sqrt()
        e = (length - radii[j]).abs()
        nearer = e < best
        best = torch.where(nearer, e, best)
        nearest = torch.where(nearer, j, nearest)
        toward = torch.stack([dx.expand_as(dz), dy.expand_as(dz), dz], dim=-1) / length.clamp(min=1e-12)[..., None]
        slope = -toward * torch.sign(length - radii[j])[..., None]
        slopes = torch.where(nearer[..., None], slope, slopes)
    return best, nearest.view(n, size, size), slopes


def projection_terms(
    centers: Tensor, radii: Tensor, depth: Tensor, image: Tensor, cube_mm: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both fitting terms (N,) of spheres (N, J, 3) against captured images ``depth[image]``, and their gradients.

    Each gradient is (N, J, 3). An image or a set of centres that is not finite gives NaN.
    """
    parts = []
    step = max(1, _CHUNK // max(1, centers.shape[1] * depth.shape[-1] ** 2))
    for begin in range(0, max(1, len(centers)), step):
        part = slice(begin, begin + step)
        parts.append(_projection_terms(centers[part], radii, depth[image[part]], cube_mm))
    model, data, model_slope, data_slope = (torch.cat(values) for values in zip(*parts, strict=True))
    return model, data, model_slope, data_slope


def _projection_terms(
    centers: Tensor, radii: Tensor, depth: Tensor, cube_mm: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, spheres, pixels = centers.dtype, centers.shape[1], depth.shape[-1] ** 2
    rendered, winner = render_spheres(centers, radii, depth.shape[-1], cube_mm)
    error = rendered - depth
    slopes = sphere_slopes(centers, radii, winner, cube_mm) * (2.0 * error)[..., None]
    model, model_slope = (error.double() ** 2).sum(dim=(1, 2)), _per_sphere(slopes, winner, spheres)

    e, nearest, slopes = _distances(centers, radii, depth, cube_mm)
    measured = depth <= FAR_DATA_MM
    e = torch.where(measured, e, torch.zeros_like(e))
    slopes = torch.where((measured & (e <= MAX_DISTANCE_MM))[..., None], slopes, torch.zeros_like(slopes))
    data, data_slope = e.clamp(max=MAX_DISTANCE_MM).double().sum(dim=(1, 2)), _per_sphere(slopes, nearest, spheres)

    sound = torch.isfinite(depth).all(dim=-1).all(dim=-1) & torch.isfinite(centers).all(dim=-1).all(dim=-1)
    poison = torch.where(sound, 1.0, torch.nan).to(torch.float64) / pixels
    model, data = ((value * poison).to(dtype) for value in (model, data))
    model_slope, data_slope = ((value * poison[:, None, None]).to(dtype) for value in (model_slope, data_slope))
    return model, data, model_slope, data_slope
