"""The loss terms of training by fitting, each by itself; weights and switches are the caller's.

Spheres are (B, V, 41, 3) mm, each view in its own crop frame (OpenCV axes). Everything is a mean except where the
original sums: :func:`collision`, the KL of :func:`vae_objective` and a summed :func:`consistency` grow with the batch,
so the published weights belong to 25 frames; ``"frame"`` divides by the frames and multiplies by 25, equal at that
batch.
Source: the released code's criterion (README, ledger Q2, Q3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from selfsup_fitting.kernels import ops
from selfsup_fitting.multiview import mutual_transforms, transform
from selfsup_fitting.spheres import BONE_PAIRS, GROUPS

Views = Literal["all", "first"]
Reduction = Literal["reference", "frame"]
REFERENCE_FRAMES = 25  # batch that the published weights are meant for
COLLISION_MM = 6.0  # distance below which two spheres of different groups repel, whatever their radii
BAND = (0.8, 1.05)  # of the reference length: where the bone length costs nothing
FIT_DATA = 500.0  # weight of data -> model against model -> data
_COLLIDING = tuple(
    (a, b) for a in range(len(GROUPS)) for b in range(a + 1, len(GROUPS)) if GROUPS[a] != GROUPS[b]
)  # 690 pairs


def _sized(total: Tensor, frames: int, reduction: Reduction) -> Tensor:
    """A sum over a batch of ``frames``, or what it would be with 25 of them."""
    return total * (REFERENCE_FRAMES / max(1, frames)) if reduction == "frame" else total


def heatmap_loss(pred: Tensor, target: Tensor) -> Tensor:
    """``synt_uv``: mean squared difference of heat maps (N, 41, 16, 16)."""
    return (pred - target).square().mean()


def depth_loss(pred_mm: Tensor, target_mm: Tensor) -> Tensor:
    """``synt_d``: mean squared difference of the centres' z, of (N, 41, 3); mm squared."""
    return (pred_mm[..., 2] - target_mm[..., 2]).square().mean()


def position_loss(pred_mm: Tensor, target_mm: Tensor) -> Tensor:
    """``synt_xy``: mean squared difference of the centres' x and y, of (N, 41, 3); mm squared. Not in the original."""
    return (pred_mm[..., :2] - target_mm[..., :2]).square().mean()


def heatmap_energy(heatmaps: Tensor) -> Tensor:
    """``uv_hm_mean``: mean square of the heat maps of captured images, which keeps them from filling up."""
    return heatmaps.square().mean()


def latent_distance(synthetic: Tensor, captured: Tensor) -> Tensor:
    """``domain_loss``: between the means over batch and space of two latents (N, C, 4, 4); its weight is 0."""
    return (synthetic.mean((0, 2, 3)) - captured.mean((0, 2, 3))).square().mean()


def projection(
    spheres_mm: Tensor, T_canon_view: Tensor, radii_mm: Tensor, depth_mm: Tensor, *, multiview: bool = True
) -> tuple[Tensor, Tensor]:
    """``mv_projection``: spheres drawn as depth against the captured depth, and captured points against the spheres.

    Args:
        spheres_mm: (B, V, 41, 3).
        T_canon_view: (B, V, 4, 4); constants.
        radii_mm: (41,).
        depth_mm: (B, V, 64, 64) captured, background 100.
        multiview: every view's spheres in every view; False: in their own only. Both count as V^2 images.

    Returns:
        The term (model -> data + 500 data -> model) and its mean by view, detached: (V, V) [from, in], or (V,) without
        ``multiview``.
    """
    views = spheres_mm.shape[1]
    pairs = mutual_transforms(T_canon_view) if multiview else None
    terms = ops.projection_loss(spheres_mm, pairs, radii_mm, depth_mm)
    each = (terms.model_to_data + FIT_DATA * terms.data_to_model).mean(0)  # (V, V), or (V,) without pairs
    return views**2 * each.mean(), each.detach()


def consistency(
    spheres_mm: Tensor,
    T_canon_view: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
    sums: Reduction = "reference",
) -> Tensor:
    """``mv_consistency``: squared distance to the median over the views, coordinate by coordinate, in the first view.

    The median is not detached: the view that supplies it is moved as well. The release takes the mean over all numbers,
    the author's logged run the sum (README, Q2); ``sums="frame"`` gives the sum the size that it has with 25 frames.
    """
    points = transform(T_canon_view, spheres_mm)
    squares = (points - points.median(1, keepdim=True).values).square()
    return squares.mean() if reduction == "mean" else _sized(squares.sum(), len(spheres_mm), sums)


def weighted_consistency(
    spheres_mm: Tensor, T_canon_view: Tensor, weights: Tensor, kind: Literal["median", "best"]
) -> Tensor:
    """Variants of :func:`consistency` in the original that nothing uses; summed.

    Args:
        spheres_mm: (B, V, 41, 3).
        T_canon_view: (B, V, 4, 4).
        weights: (B, V, 41).
        kind: ``median`` weighs each difference with the weight of the view that supplies the median; ``best`` replaces
            the median by the view of the largest weight.
    """
    points = transform(T_canon_view, spheres_mm)
    if kind == "best":
        index = weights.argmax(1, keepdim=True)[..., None].expand(-1, -1, -1, 3)
        return (points - points.gather(1, index)).square().sum()
    middle = points.median(1, keepdim=True)
    chosen = weights[..., None].expand_as(points).gather(1, middle.indices)
    return (chosen * (points - middle.values).square()).sum()


def collision(spheres_mm: Tensor, *, views: Views = "all", reduction: Reduction = "frame") -> Tensor:
    """``collision``: sum over pairs of different groups (palm, five fingers) of relu(36 mm^2 - d^2).

    ``views="all"`` takes the mean over the views, so that the weight keeps its meaning; ``"first"`` looks at view 0
    only, as the original does (README, Q3).
    """
    chosen = spheres_mm if views == "all" else spheres_mm[:, :1]
    pairs = torch.tensor(_COLLIDING, device=spheres_mm.device)
    squares = (chosen[..., pairs[:, 0], :] - chosen[..., pairs[:, 1], :]).square().sum(-1)
    total = (COLLISION_MM**2 - squares).relu().sum() / chosen.shape[1]
    return _sized(total, len(spheres_mm), reduction)


def bone_length(spheres_mm: Tensor, lengths_mm: Tensor, *, views: Views = "all") -> Tensor:
    """``bone_length``: squared lengths outside (0.8 L)^2 to (1.05 L)^2, means over batch, views and the 35 pairs, mm^2.

    Args:
        spheres_mm: (B, V, 41, 3).
        lengths_mm: (35,) reference lengths L, in the order of ``spheres.BONE_PAIRS``.
        views: ``first`` looks at view 0 only, as the original does (README, Q3).
    """
    chosen = spheres_mm if views == "all" else spheres_mm[:, :1]
    pairs = torch.tensor(BONE_PAIRS, device=spheres_mm.device)
    squares = (chosen[..., pairs[:, 0], :] - chosen[..., pairs[:, 1], :]).square().sum(-1)
    low, high = (BAND[0] * lengths_mm).square(), (BAND[1] * lengths_mm).square()
    return (low - squares).relu().mean() + (squares - high).relu().mean()


def vae_objective(
    recon: Tensor,
    target: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    reduction: Reduction = "reference",
    views: int = 1,
    kl_share: float = 1.0,
) -> Tensor:
    """``pose_prior``: mean squared error plus the KL summed over batch and latent.

    Args:
        recon, target: (N, 123) spheres / 100 mm.
        mu, logvar: (N, 32).
        reduction: ``frame`` gives the KL the size that it has with 25 frames.
        views: N is frames times views.
        kl_share: factor on the KL, 1 in the original.
    """
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
    if reduction == "frame":
        kl = kl * (REFERENCE_FRAMES * views / max(1, len(mu)))
    return (recon - target).square().mean() + kl_share * kl


class TemporalSmoothness:
    """``temporal_smooth``: mean of clamp(previous - current, +-2500)^2 over a batch in temporal order.

    The previous skeleton of a batch's first frame is the last of the batch before (detached); without one the first
    frame is left out. :meth:`reset` at the start of an epoch and of a sequence, one object a stack.
    """

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def reset(self) -> None:
        self.last = None

    def __call__(self, spheres_mm: Tensor) -> Tensor:
        """(B, V, 41, 3) in temporal order -> scalar, mm squared; 0 for a single frame without a predecessor."""
        current, before = spheres_mm, spheres_mm[:-1].detach()
        if self.last is None:
            current = current[1:]
        else:
            before = torch.cat([self.last, before])
        self.last = spheres_mm[-1:].detach()
        if not len(current):
            return spheres_mm.sum() * 0.0
        return (before - current).clamp(-2500, 2500).square().mean()
