"""The operations of training by fitting for programs: checked arguments, the fastest implementation, gradients.

Every operation is a ``torch.library`` custom operator under the namespace ``selfsup_fitting``, so that
``torch.compile`` and ``opcheck`` know it. Behind it stand three implementations that agree: :mod:`.reference` (plain
torch, any device), C++ (``selfsup_cpu.cpp``) and CUDA (``selfsup_cuda.cu``); :mod:`shared.kernels` chooses. The native
ones take float32; float64 always goes through the reference.

Millimetres in the camera frame (x right, y down, z forward), the origin at the centre of the crop. A crop of side n
shows a cube of ``cube_mm``: column i has its sample at x = (i - n / 2) cube_mm / n, rows alike.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor

from shared.kernels import Kernels
from shared.kernels_ops import need, where

from . import reference
from .reference import BACKGROUND_MM, FAR_DATA_MM, MAX_DISTANCE_MM, Interpolation

__all__ = [
    "BACKGROUND_MM",
    "FAR_DATA_MM",
    "KERNELS",
    "MAX_DISTANCE_MM",
    "Interpolation",
    "ProjectionTerms",
    "Raster",
    "barycentric_weights",
    "projection_loss",
    "rasterize",
    "rasterize_resized",
    "render_spheres",
]

KERNELS = Kernels("selfsup_fitting.kernels", "selfsup", abi=1)
MAX_SIZE = 8192  # of a picture, pixels


class Raster(NamedTuple):
    """A rasterised mesh.

    Attributes:
        depth: (B, H, W), the background value where there is no face.
        face: (B, H, W) int32 index of the nearest face, -1 for none.
    """

    depth: Tensor
    face: Tensor


class ProjectionTerms(NamedTuple):
    """Fitting terms of :func:`projection_loss`, one number for each image: (B, V, V), or (B, V) for own views only.

    Attributes:
        model_to_data: mean squared difference between rendered and captured depth, mm^2.
        data_to_model: mean distance of the captured pixels to the nearest sphere surface, mm.
    """

    model_to_data: Tensor
    data_to_model: Tensor


# ------------------------------------------------------------------------------------------------------- helpers


def _scratch(values: Tensor, pixels: int) -> Tensor:
    """Eight bytes of working memory for each pixel, which only CUDA needs."""
    return values.new_empty(pixels if values.device.type == "cuda" else 0, dtype=torch.int64)


def _floats(values: Tensor, argument: str) -> None:
    need(values.dtype in (torch.float32, torch.float64), argument, "float32 or float64", values)


def _mesh(verts_uvd: Tensor, faces: Tensor, interpolation: Interpolation) -> Tensor:
    """The faces as contiguous int64 on the device of the vertices, everything checked."""
    need(verts_uvd.dim() == 3 and verts_uvd.shape[2] == 3, "verts_uvd", "(B, V, 3)", verts_uvd)
    _floats(verts_uvd, "verts_uvd")
    need(faces.dim() == 2 and faces.shape[1] == 3, "faces", "(F, 3)", faces)
    need(faces.dtype in (torch.int32, torch.int64), "faces", "int32 or int64", faces)
    need(interpolation in get_args(Interpolation), "interpolation", "linear or harmonic", repr(interpolation))
    if faces.device.type == "cpu" and faces.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in faces.aminmax())
        inside = low >= 0 and high < verts_uvd.shape[1]
        need(inside, "faces", f"indices of the {verts_uvd.shape[1]} vertices", f"{low} to {high}")
    return faces.to(verts_uvd.device, torch.int64).contiguous()


def _picture(value: int, argument: str) -> None:
    need(0 < value <= MAX_SIZE, argument, f"1 to {MAX_SIZE} pixels", value)


# ------------------------------------------------------------------------------------------------------- mesh


def rasterize(
    verts_uvd: Tensor,
    faces: Tensor,
    width: int,
    height: int,
    *,
    interpolation: Interpolation = "linear",
    cull: bool = True,
    background: float = 1000.0,
) -> Raster:
    """Depth pictures of a triangle mesh, evaluated at integer pixel coordinates, with gradients.

    The scan conversion of the original: per face the columns between its leftmost and rightmost corner, per column the
    rows between two edges, ends included, the nearest face wins (of equally near ones the lowest index). Samples on an
    edge belong to both faces, a span that ends in (-1, 0) bleeds into row or column 0, slivers between samples draw
    nothing. Faces without an area, with a number that is not finite, or a million pixels away are left out. There is
    no near or far plane; a depth of ``background`` or more is not drawn.

    The gradient is exact for the winning face: for z, and inside faces for u and v. Silhouettes have none.

    Args:
        verts_uvd: (B, V, 3) column, row (pixels) and depth (mm), float32 or float64, any strides.
        faces: (F, 3) integer corners.
        width, height: of the pictures.
        interpolation: ``linear`` in the picture, right for an orthographic camera; ``harmonic`` is the original's rule
            1 / sum(w / z), which is only meaningful where all depths of a face share a sign and are away from 0.
        cull: leave out faces whose corners run anticlockwise as seen in the picture (v pointing down).
        background: depth where there is no face.

    Returns:
        A :class:`Raster`; :func:`barycentric_weights` gives the weights of the corners.

    Raises:
        DataError: shapes or types that do not fit, another interpolation, faces that index no vertex (checked where
            ``faces`` is on the CPU).
    """
    faces = _mesh(verts_uvd, faces, interpolation)
    _picture(width, "width")
    _picture(height, "height")
    harmonic = interpolation == "harmonic"
    depth, face = torch.ops.selfsup_fitting.rasterize(verts_uvd, faces, width, height, harmonic, cull, background)
    return Raster(depth, face)


def rasterize_resized(
    verts_uvd: Tensor,
    faces: Tensor,
    *,
    size: int = 64,
    factor: int = 10,
    interpolation: Interpolation = "linear",
    cull: bool = True,
    far: float = BACKGROUND_MM,
) -> Tensor:
    """Small depth crops of a mesh: rasterised at ``size * factor``, clamped at ``far``, bilinearly reduced.

    Only the samples that the reduction reads are evaluated (two rows and two columns out of ``factor``); the result is
    the same to the bit as rasterising everything, clamping and ``interpolate(mode="bilinear")``.

    Args:
        verts_uvd: (B, V, 3) as in :func:`rasterize`, in pixels of the large picture.
        faces, interpolation, cull: as in :func:`rasterize`.
        size: side of the result.
        factor: an even number.
        far: depths beyond, and the background, become this.

    Returns:
        (B, size, size), differentiable like :func:`rasterize`.

    Raises:
        DataError: as :func:`rasterize`, and for an odd factor.
    """
    faces = _mesh(verts_uvd, faces, interpolation)
    _picture(size, "size")
    need(factor >= 2 and factor % 2 == 0, "factor", "an even number", factor)
    _picture(size * factor, "size * factor")
    harmonic = interpolation == "harmonic"
    wanted = verts_uvd.requires_grad and torch.is_grad_enabled()
    crop, _ = torch.ops.selfsup_fitting.rasterize_resized(verts_uvd, faces, size, factor, harmonic, cull, far, wanted)
    return cast(Tensor, crop)


def barycentric_weights(verts_uvd: Tensor, faces: Tensor, face: Tensor) -> Tensor:
    """Weights (B, H, W, 3) of the corners of each sample's winning face; 0 where there is none. Differentiable.

    Args:
        verts_uvd, faces: as given to :func:`rasterize`.
        face: its result of that name.

    Raises:
        DataError: shapes or types that do not fit.
    """
    faces = _mesh(verts_uvd, faces, "linear")
    need(face.dim() == 3 and len(face) == len(verts_uvd), "face", f"({len(verts_uvd)}, H, W)", face)
    rows, columns = (torch.arange(side, device=face.device) for side in face.shape[1:])
    flat, index, x, y = reference.winners(face, columns, rows)
    image = flat // max(1, len(rows) * len(columns))
    weights = reference.barycentric(verts_uvd[image[:, None], faces[index]], x, y).clamp(0.0, 1.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return verts_uvd.new_zeros((face.numel(), 3)).index_put((flat,), weights).view(*face.shape, 3)


def _forward(
    verts_uvd: Tensor,
    faces: Tensor,
    width: int,
    height: int,
    factor: int,
    harmonic: bool,
    cull: bool,
    background: float,
    far: float,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Depth and, if ``wanted``, face at the samples; with a factor above 1 the depth is clamped and reduced."""
    module = KERNELS.native_for(verts_uvd, torch.float32)
    if module is None:
        depth, face = reference.rasterize(
            verts_uvd,
            faces,
            width,
            height,
            factor=factor,
            interpolation="harmonic" if harmonic else "linear",
            cull=cull,
            background=background,
        )
        return (depth if factor == 1 else reference.mean_2x2(depth, far)), face if wanted else face[:, :0, :0].clone()
    verts_uvd = verts_uvd.contiguous()
    batch, count = verts_uvd.shape[:2]
    out = verts_uvd.new_empty((batch, height // factor, width // factor))
    kept = 1 if factor == 1 else 2
    samples = (batch, kept * (height // factor), kept * (width // factor))
    face = verts_uvd.new_empty(samples if wanted else (batch, 0, 0), dtype=torch.int32)
    scratch = _scratch(verts_uvd, math.prod(samples))
    module.rasterize(
        verts_uvd.data_ptr(),
        batch,
        count,
        faces.data_ptr(),
        len(faces),
        width,
        height,
        factor,
        harmonic,
        cull,
        background,
        far,
        out.data_ptr(),
        face.data_ptr() if wanted else 0,
        scratch.data_ptr(),
        *where(verts_uvd),
    )
    return out, face


@torch.library.custom_op("selfsup_fitting::rasterize", mutates_args=())
def _rasterize(
    verts_uvd: Tensor, faces: Tensor, width: int, height: int, harmonic: bool, cull: bool, background: float
) -> tuple[Tensor, Tensor]:
    return _forward(verts_uvd, faces, width, height, 1, harmonic, cull, background, 0.0, True)


@_rasterize.register_fake
def _(
    verts_uvd: Tensor, faces: Tensor, width: int, height: int, harmonic: bool, cull: bool, background: float
) -> tuple[Tensor, Tensor]:
    shape = (len(verts_uvd), height, width)
    return verts_uvd.new_empty(shape), verts_uvd.new_empty(shape, dtype=torch.int32)


def _rasterize_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    verts_uvd, faces, ctx.width, ctx.height, ctx.harmonic, _, _ = inputs
    ctx.save_for_backward(verts_uvd, faces, output[1])
    ctx.mark_non_differentiable(output[1])


def _rasterize_gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    verts_uvd, faces, face = ctx.saved_tensors
    pull = torch.ops.selfsup_fitting.rasterize_backward(
        grad, verts_uvd, faces, face, ctx.width, ctx.height, 1, ctx.harmonic, None
    )
    return pull, *[None] * 6


_rasterize.register_autograd(_rasterize_gradient, setup_context=_rasterize_context)


@torch.library.custom_op("selfsup_fitting::rasterize_resized", mutates_args=())
def _rasterize_resized(
    verts_uvd: Tensor, faces: Tensor, size: int, factor: int, harmonic: bool, cull: bool, far: float, wanted: bool
) -> tuple[Tensor, Tensor]:
    large = size * factor
    # Whatever lies beyond `far` is clamped to it: it may as well be the background.
    return _forward(verts_uvd, faces, large, large, factor, harmonic, cull, far, far, wanted)


@_rasterize_resized.register_fake
def _(
    verts_uvd: Tensor, faces: Tensor, size: int, factor: int, harmonic: bool, cull: bool, far: float, wanted: bool
) -> tuple[Tensor, Tensor]:
    side = 2 * size if wanted else 0
    samples = verts_uvd.new_empty((len(verts_uvd), side, side), dtype=torch.int32)
    return verts_uvd.new_empty((len(verts_uvd), size, size)), samples


def _resized_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    verts_uvd, faces, size, ctx.factor, ctx.harmonic, _, ctx.far, _ = inputs
    ctx.large = size * ctx.factor
    ctx.save_for_backward(verts_uvd, faces, output[1])
    ctx.mark_non_differentiable(output[1])


def _resized_gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    verts_uvd, faces, face = ctx.saved_tensors
    samples = 0.25 * grad.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    pull = torch.ops.selfsup_fitting.rasterize_backward(
        samples, verts_uvd, faces, face, ctx.large, ctx.large, ctx.factor, ctx.harmonic, ctx.far
    )
    return pull, *[None] * 7


_rasterize_resized.register_autograd(_resized_gradient, setup_context=_resized_context)


@torch.library.custom_op("selfsup_fitting::rasterize_backward", mutates_args=())
def _rasterize_backward(
    grad: Tensor,
    verts_uvd: Tensor,
    faces: Tensor,
    face: Tensor,
    width: int,
    height: int,
    factor: int,
    harmonic: bool,
    far: float | None,
) -> Tensor:
    interpolation: Interpolation = "harmonic" if harmonic else "linear"
    # Torch on every device: only the covered samples are visited, and each once.
    return reference.rasterize_backward(
        grad, verts_uvd.contiguous(), faces, face, width, height, factor, interpolation, far
    )


@_rasterize_backward.register_fake
def _(
    grad: Tensor,
    verts_uvd: Tensor,
    faces: Tensor,
    face: Tensor,
    width: int,
    height: int,
    factor: int,
    harmonic: bool,
    far: float | None,
) -> Tensor:
    return torch.empty_like(verts_uvd, memory_format=torch.contiguous_format)


# ------------------------------------------------------------------------------------------------------- spheres


def _spheres(centers_mm: Tensor, radii_mm: Tensor, cube_mm: float) -> Tensor:
    """The radii on device and in the type of the centres, everything checked."""
    need(centers_mm.dim() >= 2 and centers_mm.shape[-1] == 3, "centers_mm", "(..., J, 3)", centers_mm)
    _floats(centers_mm, "centers_mm")
    need(centers_mm.shape[-2] > 0, "centers_mm", "at least one sphere", centers_mm)
    expected = f"({centers_mm.shape[-2]},), one for each sphere"
    need(tuple(radii_mm.shape) == (centers_mm.shape[-2],), "radii_mm", expected, radii_mm)
    need(cube_mm > 0, "cube_mm", "a positive edge in mm", cube_mm)
    return radii_mm.detach().to(centers_mm.device, centers_mm.dtype).contiguous()


def render_spheres(
    centers_mm: Tensor, radii_mm: Tensor, *, size: int = 64, cube_mm: float = 300.0
) -> tuple[Tensor, Tensor]:
    """Depth pictures of spheres seen by an orthographic camera, differentiable in the centres.

    A sphere covers a pixel where q = r^2 - dx^2 - dy^2 > 0.01 and has the depth z - sqrt(q) there; the nearest surface
    wins, of equally near ones the lowest index. Elsewhere, and where every surface is farther, the depth is 100. The
    gradient goes to the winning sphere only: 1 in z, -(gx - x) / sqrt(q) in x, the same in y; none for radii and
    silhouettes.

    Args:
        centers_mm: (..., J, 3) float32 or float64.
        radii_mm: (J,); constants.
        size: side of the pictures.
        cube_mm: what they show.

    Returns:
        Depth (..., size, size) mm and the winning sphere (..., size, size) int32, -1 for none.

    Raises:
        DataError: shapes or types that do not fit.
    """
    radii = _spheres(centers_mm, radii_mm, cube_mm)
    _picture(size, "size")
    lead = centers_mm.shape[:-2]
    flat = centers_mm.reshape(-1, *centers_mm.shape[-2:])
    depth, winner = torch.ops.selfsup_fitting.render_spheres(flat, radii, size, float(cube_mm))
    return depth.view(*lead, size, size), winner.view(*lead, size, size)


@torch.library.custom_op("selfsup_fitting::render_spheres", mutates_args=())
def _render_spheres(centers: Tensor, radii: Tensor, size: int, cube_mm: float) -> tuple[Tensor, Tensor]:
    module = KERNELS.native_for(centers, torch.float32)
    if module is None:
        return reference.render_spheres(centers, radii, size, cube_mm)
    centers = centers.contiguous()
    count, spheres = centers.shape[:2]
    depth = centers.new_empty((count, size, size))
    winner = torch.empty_like(depth, dtype=torch.int32)
    module.render_spheres(
        centers.data_ptr(),
        radii.data_ptr(),
        count,
        spheres,
        size,
        cube_mm,
        depth.data_ptr(),
        winner.data_ptr(),
        *where(centers),
    )
    return depth, winner


@_render_spheres.register_fake
def _(centers: Tensor, radii: Tensor, size: int, cube_mm: float) -> tuple[Tensor, Tensor]:
    shape = (len(centers), size, size)
    return centers.new_empty(shape), centers.new_empty(shape, dtype=torch.int32)


def _render_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    centers, radii, _, ctx.cube_mm = inputs
    ctx.save_for_backward(centers, radii, output[1])
    ctx.mark_non_differentiable(output[1])


def _render_gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    centers, radii, winner = ctx.saved_tensors
    pull = torch.ops.selfsup_fitting.render_spheres_backward(grad, centers, radii, winner, ctx.cube_mm)
    return pull, None, None, None


_render_spheres.register_autograd(_render_gradient, setup_context=_render_context)


@torch.library.custom_op("selfsup_fitting::render_spheres_backward", mutates_args=())
def _render_spheres_backward(grad: Tensor, centers: Tensor, radii: Tensor, winner: Tensor, cube_mm: float) -> Tensor:
    module = KERNELS.native_for(centers, torch.float32)
    if module is None:
        return reference.render_spheres_backward(grad, centers, radii, winner, cube_mm).contiguous()
    grad, centers, winner = grad.contiguous(), centers.contiguous(), winner.contiguous()
    out = torch.empty_like(centers)
    module.render_spheres_backward(
        grad.data_ptr(),
        centers.data_ptr(),
        radii.data_ptr(),
        winner.data_ptr(),
        *centers.shape[:2],
        winner.shape[-1],
        cube_mm,
        out.data_ptr(),
        *where(centers),
    )
    return out


@_render_spheres_backward.register_fake
def _(grad: Tensor, centers: Tensor, radii: Tensor, winner: Tensor, cube_mm: float) -> Tensor:
    return torch.empty_like(centers, memory_format=torch.contiguous_format)


def projection_loss(
    centers_mm: Tensor,
    transforms: Tensor | None,
    radii_mm: Tensor,
    depth_mm: Tensor,
    *,
    cube_mm: float = 300.0,
) -> ProjectionTerms:
    """How well spheres explain captured depth, seen from every view, without ever holding a rendered picture a sphere.

    For each pair (i, j) the spheres of view i are moved into view j and compared with its captured image in both
    directions. Model to data: mean over all pixels of (rendered - captured)^2, with the pictures of
    :func:`render_spheres`. Data to model: for each captured pixel, the distance to the nearest sphere surface, 0 where
    the captured depth exceeds 99, at most 50 (and no gradient beyond), mean over all pixels. The gradient of each term
    is computed on the way, so that the backward pass is a product. Differentiable once, in ``centers_mm``.

    The released loss of one stack is 9 mean(model_to_data) + 500 * 9 mean(data_to_model) over all pairs with the
    multi-view flag, and the same over own views without it.

    Args:
        centers_mm: (B, V, J, 3) float32 or float64, each in its own view's frame.
        transforms: (B, V, V, 4, 4), [b, i, j] maps points of view i to view j (:mod:`..multiview`);
            None compares each view with its own image only.
        radii_mm: (J,); constants.
        depth_mm: (B, V, H, H) captured depth, background 100; a constant.
        cube_mm: what the images show.

    Returns:
        :class:`ProjectionTerms` with (B, V, V), or (B, V) without transforms. An image or a sphere that is not finite
        makes its terms NaN.

    Raises:
        DataError: shapes or types that do not fit.
    """
    radii = _spheres(centers_mm, radii_mm, cube_mm)
    need(centers_mm.dim() == 4, "centers_mm", "(B, V, J, 3)", centers_mm)
    batch, views, spheres = centers_mm.shape[:3]
    good = depth_mm.dim() == 4 and depth_mm.shape[:2] == (batch, views) and depth_mm.shape[2] == depth_mm.shape[3] > 0
    need(good, "depth_mm", f"({batch}, {views}, H, H)", depth_mm)
    _picture(depth_mm.shape[2], "depth_mm")
    device, dtype = centers_mm.device, centers_mm.dtype
    depth = depth_mm.detach().to(device, dtype).flatten(0, 1)
    image = torch.arange(batch * views, device=device).view(batch, views)
    if transforms is not None:
        shape = (batch, views, views, 4, 4)
        need(tuple(transforms.shape) == shape, "transforms", str(shape), transforms)
        pose = transforms.detach().to(device, dtype)
        centers_mm = centers_mm[:, :, None] @ pose[..., :3, :3].mT + pose[..., None, :3, 3]  # (B, V, V, J, 3)
        image = image[:, None].expand(batch, views, views)
    flat = centers_mm.reshape(-1, spheres, 3)
    model, data, _, _ = torch.ops.selfsup_fitting.projection_terms(
        flat, radii, depth, image.flatten().contiguous(), float(cube_mm)
    )
    return ProjectionTerms(model.view(image.shape), data.view(image.shape))


@torch.library.custom_op("selfsup_fitting::projection_terms", mutates_args=())
def _projection_terms(
    centers: Tensor, radii: Tensor, depth: Tensor, image: Tensor, cube_mm: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    module = KERNELS.native_for(centers, torch.float32)
    if module is None:
        return reference.projection_terms(centers, radii, depth, image, cube_mm)
    centers, depth = centers.contiguous(), depth.contiguous()
    count, spheres = centers.shape[:2]
    model, data = centers.new_empty(count), centers.new_empty(count)
    model_slope, data_slope = torch.empty_like(centers), torch.empty_like(centers)
    scratch = _scratch(centers, count * depth.shape[-1] ** 2)
    module.projection_terms(
        centers.data_ptr(),
        radii.data_ptr(),
        depth.data_ptr(),
        image.data_ptr(),
        count,
        spheres,
        depth.shape[-1],
        cube_mm,
        model.data_ptr(),
        data.data_ptr(),
        model_slope.data_ptr(),
        data_slope.data_ptr(),
        scratch.data_ptr(),
        *where(centers),
    )
    return model, data, model_slope, data_slope


@_projection_terms.register_fake
def _(
    centers: Tensor, radii: Tensor, depth: Tensor, image: Tensor, cube_mm: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    each, slope = centers.new_empty(len(centers)), torch.empty_like(centers, memory_format=torch.contiguous_format)
    return each, torch.empty_like(each), slope, torch.empty_like(slope)


def _projection_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, *slopes = output
    ctx.mark_non_differentiable(*slopes)
    ctx.save_for_backward(*slopes)


def _projection_gradient(
    ctx: Any, g_model: Tensor, g_data: Tensor, g_model_slope: Any, g_data_slope: Any
) -> tuple[Tensor | None, ...]:
    model_slope, data_slope = ctx.saved_tensors
    return g_model[:, None, None] * model_slope + g_data[:, None, None] * data_slope, None, None, None, None


_projection_terms.register_autograd(_projection_gradient, setup_context=_projection_context)
