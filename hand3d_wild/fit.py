"""The 22 numbers fitted to 2-D joints, to a silhouette, or to both: the paper's "2D fit" as a tool.

Minimises, for a batch of hands at once and starting from the network's numbers or from a hand in the middle,

    mean over joints of w |joint - label|   (pixels; Huber below 2 pixels)
  + mask_weight * the two-sided distance to the silhouette (hand3d_wild.losses)
  + prior * (|pose|^2 + |betas|^2)

first over camera and rotation alone, then over everything, with L-BFGS, each hand by itself. Depth is what a scaled
orthographic camera cannot see: bends towards and away from it fit alike, and only the prior and the start decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hand3d_wild.decoder import OFFSET, Decoder, Params
from hand3d_wild.losses import distance_mask_loss
from shared.errors import DataError

CAMERA = 6  # scale, translation and rotation come first
_UNITS = (50.0, 10.0, 10.0, 0.3, 0.3, 0.3, *(1.0,) * 16)  # steps of like size in each number
_HUBER = 2.0
_HISTORY = 20  # steps that L-BFGS remembers


@dataclass(frozen=True)
class Fit:
    """Fitted numbers (B, 22), and what is left: mean joint distance (B,) in pixels (NaN without joints), and the
    objective (B,) before and after."""

    params: Tensor
    error_px: Tensor
    start: Tensor
    objective: Tensor


def fit_hands(
    decoder: Decoder,
    *,
    joints_2d: Tensor | None = None,
    confidence: Tensor | None = None,
    mask: Tensor | None = None,
    start: Tensor | None = None,
    prior: float = 0.3,
    mask_weight: float = 10.0,
    steps: int = 60,
) -> Fit:
    """Fits hands to 2-D joints and silhouettes in the network's frame of 256 pixels.

    Args:
        decoder: of the network.
        joints_2d: (B, 21, 2) in the order ``wild``.
        confidence: (B, 21) weights of the joints, 0 for unknown ones; ones by default.
        mask: (B, 256, 256) of 0 and 1.
        start: (B, 22); by default a hand in the middle, tried in four directions.
        prior, mask_weight: see above.
        steps: iterations of each of the two stages.

    Raises:
        DataError: neither joints nor mask, shapes that do not fit, a hand without any known joint or silhouette.
    """
    if joints_2d is None and mask is None:
        raise DataError("there is nothing to fit to", remedy="give 2-D joints, a mask, or both")
    count = len(joints_2d) if joints_2d is not None else len(mask) if mask is not None else 0
    if joints_2d is not None:
        if joints_2d.shape != (count, 21, 2):
            raise DataError(f"expected joints (B, 21, 2), got {tuple(joints_2d.shape)}")
        confidence = torch.ones(count, 21) if confidence is None else confidence.float()
        if confidence.shape != (count, 21) or bool((confidence < 0).any()) or not bool(confidence.any(1).all()):
            raise DataError(
                "expected weights (B, 21) of at least 0 of the joints, with a joint of weight above 0 for each hand"
            )
        joints_2d = torch.where(confidence[..., None] > 0, joints_2d.float(), 0.0)
    if mask is not None and (mask.shape != (count, 256, 256) or not bool(mask.flatten(1).any(1).all())):
        raise DataError(f"expected masks (B, 256, 256), each with hand pixels, got {tuple(mask.shape)}")
    starts = [start.float()] if start is not None else _starts(count, joints_2d, confidence, mask)

    def objective(vector: Tensor) -> Tensor:  # (B,)
        pred = decoder(vector)
        out = prior * (pred.params.pose.square().sum(1) + pred.params.betas.square().sum(1))
        if joints_2d is not None and confidence is not None:
            distance = torch.linalg.vector_norm(pred.joints_2d - joints_2d + 1e-6, dim=-1)
            huber = torch.where(distance < _HUBER, distance.square() / (2 * _HUBER), distance - _HUBER / 2)
            out = out + (huber * confidence).sum(1) / confidence.sum(1)
        if mask is not None:
            yes = torch.ones(1, dtype=torch.bool)
            terms = [distance_mask_loss(v[None], m[None], yes) for v, m in zip(pred.verts_2d, mask, strict=True)]
            out = out + mask_weight * torch.stack(terms)
        return out

    best: Tensor | None = None
    best_value, before = torch.full((count,), torch.inf), torch.full((count,), torch.inf)
    for first in starts:
        with torch.no_grad():
            before = torch.minimum(before, objective(first))
        vector = _minimise(objective, first, steps, slice(0, CAMERA))
        vector = _minimise(objective, vector, steps, slice(0, 22))
        with torch.no_grad():
            value = objective(vector)
        better = value < best_value
        best = vector if best is None else torch.where(better[:, None], vector, best)
        best_value = torch.minimum(value, best_value)
    assert best is not None
    error = torch.full((count,), torch.nan)
    if joints_2d is not None and confidence is not None:
        with torch.no_grad():
            distance = torch.linalg.vector_norm(decoder(best).joints_2d - joints_2d, dim=-1)
        error = (distance * confidence).sum(1) / confidence.sum(1)
    return Fit(best, error, before, best_value)


def _starts(count: int, joints_2d: Tensor | None, confidence: Tensor | None, mask: Tensor | None) -> list[Tensor]:
    """A mean hand over the joints (or the silhouette), turned by quarter turns in the picture."""
    vector = torch.tensor(OFFSET).repeat(count, 1)
    if joints_2d is not None and confidence is not None:
        vector[:, 1:3] = (joints_2d * confidence[..., None]).sum(1) / confidence.sum(1, keepdim=True)
    elif mask is not None:
        ticks = torch.arange(256.0)
        share = mask.float() / mask.float().sum((1, 2), keepdim=True)
        vector[:, 1] = (share.sum(1) * ticks).sum(1)
        vector[:, 2] = (share.sum(2) * ticks).sum(1)
    starts = []
    for quarter in range(4):
        turned = vector.clone()
        turned[:, 5] = quarter * torch.pi / 2
        starts.append(turned)
    return starts


def _minimise(objective: Callable[[Tensor], Tensor], start: Tensor, steps: int, part: slice) -> Tensor:
    """L-BFGS over some of the numbers, every hand with its own curvature and step length: what is found for a hand does
    not depend on its neighbours. An evaluation of the whole batch is one trial step of each hand, taken where it
    satisfies the weak Wolfe conditions, else halved or lengthened (bisection)."""
    units = torch.zeros(22)
    units[part] = torch.tensor(_UNITS)[part]

    def evaluate(move: Tensor) -> tuple[Tensor, Tensor]:
        move = move.detach().requires_grad_()
        value = objective(start + move * units)
        return value.detach(), torch.autograd.grad(value.sum(), move)[0]

    def inner(one: Tensor, other: Tensor) -> Tensor:  # (B, 1)
        return (one * other).sum(-1, keepdim=True)

    move = torch.zeros_like(start)
    value, slope = evaluate(move)
    # a hand's last steps, changes of slope and 1 / (step . change), newest last; zeros where there are none yet
    history = torch.zeros(_HISTORY, len(start), 2 * 22 + 1)
    direction, length = -slope, (1 / slope.abs().sum(1).clamp(min=1e-12)).clamp(max=1.0)
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    for _ in range(5 * steps // 4):
        step = length[:, None] * direction
        new_value, new_slope = evaluate(move + step)
        descent = inner(slope, direction)[:, 0]
        far = ~(new_value <= value + 1e-4 * length * descent)  # so is a value that is not finite
        near = ~far & (inner(new_slope, direction)[:, 0] < 0.9 * descent)
        taken = ~(far | near)
        high, low = torch.where(far, length, high), torch.where(near, length, low)
        length = torch.where(high.isinf(), 2 * length, (low + high) / 2)

        change = new_slope - slope
        curve = inner(step, change)
        entry = torch.cat((step, change, 1 / curve), 1)
        good = taken & (curve[:, 0] > 1e-10)
        history[:, good] = torch.cat((history[1:, good], entry[None, good]))
        move = torch.where(taken[:, None], move + step, move)
        value = torch.where(taken, new_value, value)
        slope = torch.where(taken[:, None], new_slope, slope)
        direction = torch.where(taken[:, None], -_newton(slope, history), direction)
        length, low, high = (
            torch.where(taken, fresh, kept) for fresh, kept in ((1.0, length), (0.0, low), (torch.inf, high))
        )
    return (start + move * units).detach()


def _newton(slope: Tensor, history: Tensor) -> Tensor:
    """(B, 22): the inverse Hessian that each hand's history tells of, times its slope (two loops, Nocedal)."""
    steps, changes, inverse = history.split((22, 22, 1), -1)
    out = slope
    shares = []
    for step, change, rho in zip(reversed(steps), reversed(changes), reversed(inverse), strict=True):
        shares.append(rho * (step * out).sum(-1, keepdim=True))
        out = out - shares[-1] * change
    norm = changes[-1].square().sum(-1, keepdim=True)
    known = inverse[-1] > 0
    out = out * torch.where(known, 1 / torch.where(known, inverse[-1] * norm, 1.0), 1.0)
    for step, change, rho, share in zip(steps, changes, inverse, reversed(shares), strict=True):
        out = out + step * (share - rho * (change * out).sum(-1, keepdim=True))
    return out


def params_of(vector: Tensor) -> dict[str, list[float]]:
    """One hand's 22 numbers by name, as plain lists."""
    named = Params.split(vector.reshape(1, 22))
    return {name: value.flatten().tolist() for name, value in named._asdict().items()}
