"""Depth and colour pictures of small meshes without a graphics library: a z-buffer in torch, on CPU or GPU.

A hand covers a few thousand pixels, so the renderer lists every (triangle, pixel) pair inside the triangles' bounding
rectangles, intersects ray and triangle for all pairs at once in float64, and keeps the nearest hit of each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import DataError

_CHUNK = 100_000  # (triangle, pixel) pairs intersected at a time; larger ones fall out of the cache


@dataclass(frozen=True)
class Render:
    """What each pixel sees.

    Attributes:
        depth_mm: (B, h, w) float32 depth along z; 0 where there is nothing.
        face: (B, h, w) int32 index of the triangle; -1 where there is nothing.
        bary: (B, h, w, 3) float32 perspective-correct weights of the triangle's corners; 0 where there is nothing.
        crop_ltrb: the rectangle of the full image that h and w cover: columns [left, right), rows [top, bottom).
    """

    depth_mm: Tensor
    face: Tensor
    bary: Tensor
    crop_ltrb: tuple[int, int, int, int]

    @property
    def mask(self) -> Tensor:
        """(B, h, w) bool: where the mesh is seen."""
        return self.face >= 0


@torch.no_grad()
def render_depth(
    verts_mm: Tensor,
    faces: Tensor,
    K: Tensor,
    image_size: tuple[int, int],
    *,
    crop_ltrb: tuple[int, int, int, int] | None = None,
) -> Render:
    """Nearest surface of a triangle mesh along the ray of every pixel centre.

    The centre of column u, row v is the point (u, v); depth is where its ray meets the triangle's plane, so it is exact
    and not interpolated. Both sides of a triangle are seen. Triangles that reach behind the camera are clipped by the
    rays themselves. Neighbouring triangles leave no gap; where two are equally near, the lower index wins.

    Args:
        verts_mm: (B, V, 3) or (V, 3) vertices, camera frame (OpenCV axes), mm.
        faces: (F, 3) integer corners.
        K: (3, 3) or (B, 3, 3) pinhole matrix of the full image, pixels.
        image_size: (width, height) of the full image.
        crop_ltrb: render columns [left, right) and rows [top, bottom) only; may reach beyond the image.

    Returns:
        A :class:`Render` on the device of ``verts_mm``; not differentiable (``face`` and ``bary`` let a caller be).

    Raises:
        DataError: shapes that do not fit, vertices that are not finite, an empty rectangle, a last row of K other than
            (0, 0, 1).
    """
    if verts_mm.ndim == 2:
        verts_mm = verts_mm[None]
    if verts_mm.ndim != 3 or verts_mm.shape[-1] != 3:
        raise DataError(f"verts_mm must have shape (B, V, 3), got {tuple(verts_mm.shape)}")
    if faces.ndim != 2 or faces.shape[-1] != 3:
        raise DataError(f"faces must have shape (F, 3), got {tuple(faces.shape)}")
    batch, count = verts_mm.shape[:2]
    if K.shape not in ((3, 3), (batch, 3, 3)):
        raise DataError(f"K must have shape (3, 3) or ({batch}, 3, 3), got {tuple(K.shape)}")
    left, top, right, bottom = crop_ltrb if crop_ltrb is not None else (0, 0, *image_size)
    w, h = right - left, bottom - top
    if w <= 0 or h <= 0:
        raise DataError(f"nothing to render: the rectangle (left, top, right, bottom) is {(left, top, right, bottom)}")
    if not bool((K[..., 2, :] == K.new_tensor([0, 0, 1])).all()):
        raise DataError(f"the last row of K must be (0, 0, 1), got {K[..., 2, :].tolist()}")
    if not bool(torch.isfinite(verts_mm).all()):
        raise DataError("verts_mm holds values that are not finite")
    if faces.numel() and not 0 <= int(faces.min()) <= int(faces.max()) < count:
        raise DataError(f"faces must index {count} vertices, got {int(faces.min())} to {int(faces.max())}")

    device = verts_mm.device
    verts = verts_mm.double()
    K = K.to(device, torch.float64).expand(batch, 3, 3)
    faces = faces.to(device, torch.int64)
    corners = verts[:, faces]  # (B, F, 3 corners, 3)
    box = _pixel_boxes(corners, K, (left, top, right, bottom)).view(-1, 4)  # (B*F, 4), half-open
    size = (box[:, 2:] - box[:, :2]).clamp(min=0)
    pairs = size[:, 0] * size[:, 1]
    kept = torch.nonzero(pairs).flatten()
    a, b, c = corners.reshape(-1, 3, 3).unbind(1)
    edges = torch.stack((torch.cross(b, c, dim=-1), torch.cross(c, a, dim=-1), torch.cross(a, b, dim=-1)), 1)
    volume = (a * edges[:, 0]).sum(-1)
    to_ray = torch.linalg.inv(K).repeat_interleave(len(faces), 0)  # (B*F, 3, 3)
    edges = (edges[..., None] * to_ray[:, None]).sum(-2)  # applied to (u, v, 1) instead of to the ray

    depth = torch.full((batch * h * w,), torch.inf, dtype=torch.float64, device=device)
    hits: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for part in _chunks(pairs[kept], kept):
        index = torch.repeat_interleave(part, pairs[part])  # triangle of each pair, in b * F + f
        first = torch.cumsum(pairs[part], 0) - pairs[part]
        nth = torch.arange(len(index), device=device) - torch.repeat_interleave(first, pairs[part])
        u = box[index, 0] + nth % size[index, 0]
        v = box[index, 1] + nth // size[index, 0]
        image = index // len(faces)
        # The ray d meets the plane of a, b, c at t d with barycentric weights proportional to d.(b x c), d.(c x a) and
        # d.(a x b); the cross product of a shared edge is the same number with the other sign, so no pixel is lost.
        e = edges[index]  # (N, 3 edges, 3)
        weight = e[..., 0] * u[:, None] + e[..., 1] * v[:, None] + e[..., 2]
        total = weight.sum(-1)
        z = volume[index] / total
        inside = ((weight >= 0).all(-1) | (weight <= 0).all(-1)) & (total != 0) & (z > 0) & torch.isfinite(z)
        pixel = (image * h + (v - top)) * w + (u - left)
        hits.append((pixel[inside], z[inside], index[inside], weight[inside] / total[inside, None]))
        depth.scatter_reduce_(0, pixel[inside], z[inside], "amin")

    face = torch.full((batch * h * w,), batch * len(faces), dtype=torch.int64, device=device)
    nearest = [
        (pixel[near], index[near], bary[near]) for pixel, z, index, bary in hits if (near := z == depth[pixel]).any()
    ]
    for pixel, index, _ in nearest:
        face.scatter_reduce_(0, pixel, index, "amin")
    weights = torch.zeros((batch * h * w, 3), dtype=torch.float32, device=device)
    for pixel, index, bary in nearest:
        wins = index == face[pixel]
        weights[pixel[wins]] = bary[wins].float()
    empty = torch.isinf(depth)
    face = torch.where(empty, -1, face % max(len(faces), 1)).to(torch.int32)
    return Render(
        torch.where(empty, 0.0, depth).float().view(batch, h, w),
        face.view(batch, h, w),
        weights.view(batch, h, w, 3),
        (left, top, right, bottom),
    )


def _pixel_boxes(corners: Tensor, K: Tensor, crop: tuple[int, int, int, int]) -> Tensor:
    """(B, F, 4) int64 pixel rectangles (left, top, right, bottom; half-open) of the triangles within ``crop``."""
    left, top, right, bottom = crop
    projected = corners @ K[:, None].transpose(-1, -2)  # (B, F, 3, 3)
    z = projected[..., 2]
    uv = projected[..., :2] / z.clamp(min=1e-6)[..., None]
    low = torch.tensor((left, top), dtype=torch.float64, device=corners.device)
    high = torch.tensor((right, bottom), dtype=torch.float64, device=corners.device)
    first = torch.ceil(uv.amin(-2) - 1e-6).clamp(low, high)
    last = (torch.floor(uv.amax(-2) + 1e-6) + 1).clamp(low, high)
    box = torch.cat((first, last), -1)
    behind = (z <= 1e-3).all(-1)[..., None]
    across = ((z <= 1e-3).any(-1))[..., None] & ~behind  # its projection is unbounded: try every pixel
    box = torch.where(across, torch.cat((low, high)), box)
    return torch.where(behind, 0.0, box).long()


def _chunks(pairs: Tensor, kept: Tensor) -> list[Tensor]:
    """``kept`` split so that each part has about ``_CHUNK`` pairs at most (or is a single triangle)."""
    if not len(kept):
        return []
    group = torch.cumsum(pairs, 0) // _CHUNK
    return list(torch.split(kept, torch.unique_consecutive(group, return_counts=True)[1].tolist()))


def vertex_normals(verts: Tensor, faces: Tensor) -> Tensor:
    """(B, V, 3) unit normals, area-weighted over the triangles around each vertex; outwards where faces are
    counter-clockwise seen from outside."""
    a, b, c = verts[:, faces].unbind(2)
    flat = torch.cross(b - a, c - a, dim=-1)  # (B, F, 3), length twice the area
    normals = torch.zeros_like(verts)
    for corner in range(3):
        normals.index_add_(1, faces[:, corner], flat)
    return torch.nn.functional.normalize(normals, dim=-1)


@torch.no_grad()
def shade(
    render: Render,
    verts_mm: Tensor,
    faces: Tensor,
    colors: Tensor,
    *,
    background: NDArray[np.uint8] | None = None,
    light: tuple[float, float, float] = (-0.4, -0.7, -0.6),
    ambient: float = 0.35,
) -> NDArray[np.uint8]:
    """A lit colour picture of a rendered mesh: smooth normals, one distant light, a little light from everywhere.

    Args:
        render: from :func:`render_depth` of the same mesh.
        verts_mm: (B, V, 3) or (V, 3) camera frame, mm.
        faces: (F, 3).
        colors: (V, 3) reflectance in 0..1, red green blue.
        background: (h, w, 3) uint8 behind the mesh; black by default.
        light: direction **towards** the light, camera frame (-y is up).
        ambient: share of light that comes from everywhere, 0..1.

    Returns:
        (B, h, w, 3) uint8.
    """
    verts = verts_mm[None] if verts_mm.ndim == 2 else verts_mm
    batch, h, w = render.face.shape
    faces, colors = faces.to(verts.device).long(), colors.to(verts.device)
    normals = vertex_normals(verts.float(), faces)
    image, row, column = torch.nonzero(render.mask, as_tuple=True)
    corner = faces[render.face[image, row, column].long()]  # (N, 3)
    bary = render.bary[image, row, column][..., None]
    normal = torch.nn.functional.normalize((normals[image[:, None], corner] * bary).sum(1), dim=-1)
    color = (colors.float()[corner] * bary).sum(1)
    towards = torch.nn.functional.normalize(torch.tensor(light, dtype=torch.float32, device=verts.device), dim=0)
    lambert = (normal @ towards).clamp(min=0)
    gleam = lambert**20 * 0.12
    value = color * (ambient + (1 - ambient) * lambert)[:, None] + gleam[:, None]
    picture = np.zeros((batch, h, w, 3), np.uint8)
    if background is not None:
        if background.shape != (h, w, 3):
            raise DataError(f"background must have shape {(h, w, 3)}, got {background.shape}")
        picture[:] = background
    pixels = (value.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    picture[image.cpu().numpy(), row.cpu().numpy(), column.cpu().numpy()] = pixels
    return picture


def skin_colors(rest_verts: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
    """(V, 3) reflectance in 0..1: a skin tone drawn at random, with the soft unevenness of skin.

    Args:
        rest_verts: (V, 3) rest-pose vertices in any unit; the pattern is fixed to them and moves with the hand.
        rng: tone and pattern.
    """
    fair, dark = np.array([0.93, 0.74, 0.64]), np.array([0.36, 0.22, 0.15])
    tone = dark + (fair - dark) * rng.uniform() ** 0.8
    scaled = (rest_verts - rest_verts.mean(0)) / np.ptp(rest_verts)
    waves = rng.normal(0, 12, (6, 3))
    pattern = np.cos(scaled @ waves.T + rng.uniform(0, 2 * np.pi, 6)).mean(1)
    colors = tone * (1 + 0.12 * pattern[:, None]) + np.array([0.04, -0.01, -0.01]) * pattern[:, None]
    return np.asarray(colors.clip(0, 1), np.float32)


def noise_background(image_size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: smooth noise of muted colours at several scales, in place of a room."""
    from scipy.ndimage import zoom

    width, height = image_size
    picture = np.broadcast_to(rng.uniform(50, 190) + rng.normal(0, 15, 3), (height, width, 3)).copy()
    for cells, strength in ((3, 60.0), (8, 30.0), (24, 12.0)):
        coarse = strength * (rng.normal(size=(cells, cells, 1)) + 0.35 * rng.normal(size=(cells, cells, 3)))
        picture += zoom(coarse, (height / cells, width / cells, 1), order=1, grid_mode=True, mode="nearest")
    return np.asarray(picture.clip(0, 255), np.uint8)


def box_mesh(size_mm: tuple[float, float, float]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """((8, 3) vertices around the origin in mm, (12, 3) faces) of a box with the given side lengths."""
    corners = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * size_mm
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = [(q[0], q[i], q[i + 1]) for q in quads for i in (1, 2)]
    return corners, np.array(faces)


def cylinder_mesh(radius_mm: float, length_mm: float, sides: int = 32) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """((2 n + 2, 3) vertices around the origin in mm, (4 n, 3) faces) of a cylinder along y with n ``sides``."""
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.stack((np.cos(angle) * radius_mm, np.zeros(sides), np.sin(angle) * radius_mm), 1)
    half = np.array([0.0, length_mm / 2, 0.0])
    verts = np.concatenate((ring - half, ring + half, [-half, half]))
    i = np.arange(sides)
    j = (i + 1) % sides
    low, high = np.full(sides, 2 * sides), np.full(sides, 2 * sides + 1)
    faces = [(i, i + sides, j), (j, i + sides, j + sides), (low, i, j), (high, j + sides, i + sides)]
    return verts, np.concatenate([np.stack(triple, 1) for triple in faces])


def join_meshes(
    *parts: tuple[NDArray[np.floating], NDArray[np.integer]],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """One mesh from several (vertices, faces), in the order given."""
    offsets = np.cumsum([0] + [len(verts) for verts, _ in parts[:-1]])
    verts = np.concatenate([np.asarray(verts, np.float64) for verts, _ in parts])
    faces = np.concatenate(
        [np.asarray(faces, np.int64) + offset for (_, faces), offset in zip(parts, offsets, strict=True)]
    )
    return verts, faces
