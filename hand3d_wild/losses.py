"""The losses of both stages. Pixels are those of the 256-pixel frame, metres the decoder's.

Boukhayma et al., CVPR 2019, equations 4 to 8; formulas and constants as in the training code of yueyang130 (README,
ledger). Every loss is a mean over what is valid, and 0 where nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hand3d_wild.decoder import N_PARAMS, Params, Prediction
from shared.errors import DataError
from shared.mano import rotvec_to_rotmat

FOCAL = 822.79041
"""Focal length of STB's stereo camera in pixels, the one camera with 3D labels."""
Loss3D = Literal["perspective", "3d_norm", "3d_norm_no_detach"]
LossMask = Literal["sample", "distance"]
SOFTNESS = 16.0  # pixels outside the silhouette at which a vertex costs as much as the sampling loss asks: 1
SLACK = 4.0  # pixels from a silhouette point to the nearest vertex that cost nothing: the mesh's own spacing
PRETRAIN_WEIGHTS: dict[str, float] = {"scale": 0.1, "trans": 0.2, "rot": 5000.0, "pose": 1000.0, "betas": 100000.0}


def joints_2d_loss(joints_2d: Tensor, gt_2d: Tensor, visible: Tensor) -> Tensor:
    """Mean absolute difference in pixels over both coordinates of all visible joints of the batch.

    Args:
        joints_2d, gt_2d: (B, 21, 2) pixels.
        visible: (B, 21); others take no part, whatever their coordinates.
    """
    seen = visible.bool()[..., None]
    difference = torch.where(seen, joints_2d - gt_2d, 0.0).abs()
    return difference.sum() / (2 * seen.sum()).clamp(min=1)


def joints_3d_loss(
    joints_m: Tensor,
    scale: Tensor,
    gt_mm: Tensor,
    valid: Tensor,
    *,
    kind: Loss3D = "perspective",
    depth_ratio: Tensor | None = None,
    common_std: bool = False,
) -> Tensor:
    """Mean squared difference of 3D joints, over the valid samples, joints and axes.

    ``perspective``: labels seen through the predicted scale, about their mean: ``(gt - mean) f / (z scale)`` in metres,
    with z the labels' mean depth; the gradient reaches the scale too. ``3d_norm``: both sides have each axis' mean over
    the joints taken out and are divided by its standard deviation (n - 1), with the prediction's mean and deviation as
    constants; ``3d_norm_no_detach``: the same with the gradient through them.

    Args:
        joints_m: (B, 21, 3) predicted, metres.
        scale: (B,) predicted, pixels per metre.
        gt_mm: (B, 21, 3) labels in the camera frame, mm.
        valid: (B,) samples that have 3D labels.
        kind: see above.
        depth_ratio: (B,) pixels of the 256-pixel frame per pixel of the labelled camera; 1 by default. The original
            scaled the labels' x and y and not z instead, which squeezes the hand.
        common_std: one standard deviation for the three axes (the root of the mean of their squares), which keeps the
            hand's proportions.

    Raises:
        DataError: an unknown kind.
    """
    if kind not in ("perspective", "3d_norm", "3d_norm_no_detach"):
        raise DataError(f"there is no 3D loss {kind!r}", remedy="choose perspective, 3d_norm or 3d_norm_no_detach")
    keep = valid.bool()
    # Labels that are not there may be anything, also zeros, whose depth and spread could not be divided by.
    gt = torch.where(keep[:, None, None], gt_mm, joints_m.detach() + 1.0)
    mean_gt, mean = gt.mean(1, keepdim=True), joints_m.mean(1, keepdim=True)
    if kind == "perspective":
        factor = FOCAL / (mean_gt[..., 2:] * scale[:, None, None])
        if depth_ratio is not None:
            factor = factor * depth_ratio[:, None, None]
        difference = (joints_m - mean) - (gt - mean_gt) * factor
    else:

        def deviation(joints: Tensor) -> Tensor:
            variance = joints.var(1, keepdim=True)
            return (variance.mean(-1, keepdim=True) if common_std else variance).sqrt()

        std = deviation(joints_m)
        if kind == "3d_norm":
            mean, std = mean.detach(), std.detach()
        difference = (joints_m - mean) / std - (gt - mean_gt) / deviation(gt)
    squares = torch.where(keep[:, None, None], difference * difference, 0.0)
    return squares.sum() / (keep.sum() * gt.shape[1:].numel()).clamp(min=1)


def sample_mask_loss(verts_2d: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    """1 - mean of the silhouette at the projected vertices (paper, equation 8), over the valid samples.

    The mask is sampled bilinearly, so there is a gradient only within a pixel of its border, and none for vertices
    that were clamped to the picture; it asks for nothing but small hands (README, ledger). Pixel k has coordinate k.

    Args:
        verts_2d: (B, V, 2) pixels.
        mask: (B, 256, 256) 0 or 1.
        valid: (B,) samples that have a mask.
    """
    size = mask.shape[-1]
    points = torch.where(verts_2d < 0, 0.0, torch.where(verts_2d >= size, size - 1.0, verts_2d))
    inside = _sample(mask.to(points.dtype), points)
    return torch.where(valid.bool()[:, None], 1 - inside, 0.0).sum() / (valid.sum() * inside.shape[1]).clamp(min=1)


def _sample(image: Tensor, points: Tensor) -> Tensor:
    """(B, N) bilinear values of images (B, S, S) at pixels (B, N, 2); constant beyond the border."""
    grid = points / (image.shape[-1] - 1) * 2 - 1
    values = F.grid_sample(image[:, None], grid[:, None], padding_mode="border", align_corners=True)
    return values[:, 0, 0]


@torch.no_grad()
def signed_distance(mask: Tensor, step: int = 4) -> Tensor:
    """(B, S/step, S/step) pixels to the silhouette's border, negative inside, of masks (B, S, S).

    Exact Euclidean distances between cells of ``step`` pixels that are more than half covered, in two passes over rows
    and columns. A picture without silhouette is twice its edge away from it everywhere.
    """
    covered = F.avg_pool2d(mask[:, None].float(), step)[:, 0] > 0.5
    cells = covered.shape[-1]
    far = 2.0 * cells
    line = torch.arange(cells, device=mask.device, dtype=torch.float32)
    squares = (line[:, None] - line) ** 2  # (cells, cells)

    def nearest(there: Tensor) -> Tensor:
        at = line[:, None].expand_as(there)
        before = torch.where(there, at, -far).cummax(1).values  # in the column, the last one so far
        after = -torch.where(there.flip(1), -at.flip(1), -far - cells).cummax(1).values.flip(1)
        along = torch.minimum(at - before, after - at).clamp(max=far) ** 2  # (B, rows, columns)
        # One row of pictures at a time stays in the cache.
        across = [(row[:, None] + squares).amin(-1) for row in along.unbind(1)]
        return (torch.stack(across, 1).clamp(max=far * far).sqrt() - 0.5).clamp(min=0)

    return step * (nearest(covered) - nearest(~covered))


def distance_mask_loss(
    verts_2d: Tensor, mask: Tensor, valid: Tensor, *, coverage: float = 1.0, spacing: int = 12
) -> Tensor:
    """Distances between silhouette and projected mesh, both ways, in units of 16 pixels: a gradient wherever they
    disagree, and no reward for a small hand.

    Mean distance of the vertices that lie outside the silhouette, plus ``coverage`` times the mean distance of
    silhouette points to their nearest vertex, as far as that is more than 4 pixels. Not in the paper.

    Args:
        verts_2d: (B, V, 2) pixels.
        mask: (B, 256, 256) 0 or 1.
        valid: (B,) samples that have a mask.
        coverage: weight of the second term; 0 leaves it out.
        spacing: pixels between the silhouette points that the second term looks at.
    """
    size, keep = mask.shape[-1], valid.bool()
    field = signed_distance(mask).to(verts_2d.dtype)
    inside = verts_2d.clamp(0, size - 1)
    grid = (inside + 0.5) / size * 2 - 1
    depth = F.grid_sample(field[:, None], grid[:, None], padding_mode="border", align_corners=False)[:, 0, 0]
    beyond = torch.linalg.vector_norm(verts_2d - inside, dim=-1)  # outside the picture the field goes on as a cone
    outside = (depth + beyond).clamp(min=0)
    loss = torch.where(keep[:, None], outside, 0.0).sum() / (keep.sum() * outside.shape[1]).clamp(min=1)
    if coverage:
        ticks = torch.arange(spacing // 2, size, spacing, device=mask.device)
        hand, row, column = ((mask[:, ticks][:, :, ticks] > 0.5) & keep[:, None, None]).nonzero(as_tuple=True)
        points = torch.stack((ticks[column], ticks[row]), -1).to(verts_2d.dtype)  # (P, 2) of all pictures
        with torch.no_grad():  # only the distance to the nearest vertex has a gradient
            u, v = verts_2d.unbind(-1)
            nearest = ((u[hand] - points[:, :1]) ** 2 + (v[hand] - points[:, 1:]) ** 2).argmin(1)
        gap = (torch.linalg.vector_norm(points - verts_2d[hand, nearest], dim=-1) - SLACK).clamp(min=0)
        loss = loss + coverage * gap.sum() / max(len(gap), 1)
    return loss / SOFTNESS


def regulariser(pose: Tensor, betas: Tensor, *, shape_weight: float = 1e4) -> Tensor:
    """Mean square of the pose coefficients plus ``shape_weight`` times that of the shape.

    The original's 10^4 is for its synthetic shapes of up to 0.03; 1 measures them in MANO's standard deviations.
    """
    return _mean(pose * pose) + shape_weight * _mean(betas * betas)


def _mean(values: Tensor) -> Tensor:
    """The mean, and 0 of an empty batch."""
    return values.sum() / max(values.numel(), 1)


def wild_losses(
    pred: Prediction,
    target: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    loss_3d: Loss3D = "perspective",
    loss_mask: LossMask = "sample",
    coverage: float = 1.0,
    common_std: bool = False,
    shape_weight: float = 1e4,
) -> dict[str, Tensor]:
    """The weighted losses of the second stage by name; their sum is the training loss.

    Args:
        pred: the network's output.
        target: ``joints_2d`` (B, 21, 2) pixels, ``visible`` (B, 21), ``joints_mm`` (B, 21, 3) camera frame,
            ``valid_3d`` (B,), ``mask`` (B, 256, 256), ``valid_mask`` (B,); where needed ``depth_ratio`` (B,), see
            :func:`joints_3d_loss`, and ``palm`` (B,), samples whose joint 0 is the palm's centre.
        weights: of ``joints_2d``, ``joints_3d``, ``mask``, ``reg``; a weight of 0 skips the term's computation.
        loss_3d: see :func:`joints_3d_loss`.
        loss_mask: ``sample`` (the paper's) or ``distance`` (:func:`distance_mask_loss`).
        coverage, common_std, shape_weight: see the single losses.

    Returns:
        Scalars under the names of ``weights``.

    Raises:
        DataError: a missing or unknown weight; an unknown kind of loss.
    """
    names = ("joints_2d", "joints_3d", "mask", "reg")
    if set(weights) != set(names):
        raise DataError(f"expected weights of {', '.join(names)}, got {', '.join(sorted(weights)) or 'none'}")
    if loss_mask not in ("sample", "distance"):
        raise DataError(f"there is no mask loss {loss_mask!r}", remedy="choose sample or distance")
    if "palm" in target:
        pred = pred.with_palm(target["palm"])

    def joints_3d() -> Tensor:
        return joints_3d_loss(
            pred.joints_m,
            pred.params.scale,
            target["joints_mm"],
            target["valid_3d"],
            kind=loss_3d,
            depth_ratio=target.get("depth_ratio"),
            common_std=common_std,
        )

    def mask() -> Tensor:
        if loss_mask == "sample":
            return sample_mask_loss(pred.verts_2d, target["mask"], target["valid_mask"])
        return distance_mask_loss(pred.verts_2d, target["mask"], target["valid_mask"], coverage=coverage)

    terms = {
        "joints_2d": lambda: joints_2d_loss(pred.joints_2d, target["joints_2d"], target["visible"]),
        "joints_3d": joints_3d,
        "mask": mask,
        "reg": lambda: regulariser(pred.params.pose, pred.params.betas, shape_weight=shape_weight),
    }
    zero = pred.joints_2d.new_zeros(())
    return {name: terms[name]() * weights[name] if weights[name] else zero for name in names}


def _angle(difference: Tensor) -> Tensor:
    """(B,) angles, rad, between rotation matrices, of their differences (B, 3, 3).

    The squares of the nine entries sum to 8 sin^2 of half the angle. The slope of the angle is cut off at 0 and at pi,
    where it is not defined.
    """
    sine_squared = (difference * difference).sum((1, 2)) / 8
    return 2 * sine_squared.clamp(1e-14, 1 - 1e-6).sqrt().asin()


def pretrain_losses(
    params: Tensor,
    gt_params: Tensor,
    weights: Mapping[str, float] = PRETRAIN_WEIGHTS,
    *,
    norm: Literal["L2", "L1"] = "L2",
    rotation: Literal["vector", "matrix", "geodesic"] = "vector",
) -> dict[str, Tensor]:
    """The weighted losses of the first stage by name: differences between predicted and true numbers, group by group.

    Args:
        params, gt_params: (B, 22).
        weights: any of :data:`PRETRAIN_WEIGHTS`; those not named keep the original's value.
        norm: mean of squares, or of absolute values.
        rotation: ``vector`` compares axis-angle vectors as the original does, which punishes equal rotations with
            different vectors; ``matrix`` compares rotation matrices (half the sum of the nine differences' squares, or
            absolute values, over three: equal to ``vector`` for small angles with L2); ``geodesic`` the angle between
            the two rotations (a third of its square; with L1, a third of it).

    Returns:
        Scalars ``scale``, ``trans``, ``rot``, ``pose``, ``betas``.

    Raises:
        DataError: an unknown weight, norm or rotation; shapes other than (B, 22).
    """
    unknown = sorted(set(weights) - set(PRETRAIN_WEIGHTS))
    if unknown:
        raise DataError(f"there is no loss {', '.join(unknown)}", remedy=f"choose among {', '.join(PRETRAIN_WEIGHTS)}")
    if norm not in ("L1", "L2") or rotation not in ("vector", "matrix", "geodesic"):
        raise DataError(f"norm must be L1 or L2 and rotation vector, matrix or geodesic, got {norm!r} and {rotation!r}")
    if params.shape != gt_params.shape or params.shape[1:] != (N_PARAMS,):
        raise DataError(
            f"expected predicted and true numbers of shape (B, {N_PARAMS}), "
            f"got {tuple(params.shape)} and {tuple(gt_params.shape)}"
        )
    pred, gt = Params.split(params), Params.split(gt_params)
    losses = {}
    for name, weight in PRETRAIN_WEIGHTS.items():
        a, b = getattr(pred, name), getattr(gt, name)
        difference, share = a - b, 1.0
        if name == "rot" and rotation != "vector":
            difference = rotvec_to_rotmat(a) - rotvec_to_rotmat(b)
            share = 1.5  # nine entries, twice each of the three angles
            if rotation == "geodesic":
                difference, share = _angle(difference), 1 / 3
        value = _mean(difference * difference if norm == "L2" else difference.abs()) * share
        losses[name] = value * weights.get(name, weight)
    return losses
