"""Where a hand stands before the camera: the translation that makes its 3D joints project onto its 2D joints.

The network's joints have no place; this finds one t for each hand by minimising what the author's second demo does,

    sum over joints |u - project(J + t)|_1  +  1000 (t_z - D)^2        (pixels; metres)

for all hands at once. The prior's D is constant here; in the original it is a copy of t that moves along, so that its
gradient vanishes and the fit stalls when it starts far off (README, ledger).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shared.errors import DataError

Float = NDArray[np.float64]
DEPTH_WEIGHT = 1000.0  # of the prior, per squared metre
FOCAL = 500.0  # pixels, of the original's camera
_STEPS = 120  # of Newton; a slower fall of its floor ends nearer to the corner that an L1 optimum is
_NEAR_M = 0.02  # nothing is put nearer to the camera than this


@dataclass(frozen=True)
class Fit:
    """Fitted translations.

    Attributes:
        translation_mm: (B, 3), to be added to the joints and vertices.
        objective: (B,) value reached, prior included.
        reprojection_px: (B,) mean absolute distance along u and v.
    """

    translation_mm: Float
    objective: Float
    reprojection_px: Float


def fit_translation(
    joints_mm: ArrayLike,
    keypoints_2d: ArrayLike,
    K: ArrayLike,
    *,
    depth_mm: ArrayLike | None = None,
    depth_weight: float = DEPTH_WEIGHT,
    method: Literal["newton", "lbfgs"] = "newton",
) -> Fit:
    """The best translation of each hand.

    The equations fx (X + tx) = (u - cx) (Z + tz) are linear in t, which gives a start without any guess. ``newton``
    then repeats re-weighted Gauss-Newton steps, whose weights turn squares into absolute values; ``lbfgs`` runs the
    original's optimiser (strong-Wolfe L-BFGS with its settings) over the sum of all hands from the same start.

    Args:
        joints_mm: (B, J, 3) joints without a place.
        keypoints_2d: (B, J, 2) pixels.
        K: (3, 3) or (B, 3, 3).
        depth_mm: expected t_z, one or (B,); None drops the prior.
        depth_weight: of the prior, per squared metre.
        method: see above.

    Raises:
        DataError: shapes, values that are not finite, an expected depth that is not positive.
    """
    joints, pixels, camera = _check(joints_mm, keypoints_2d, K)
    prior = None
    if depth_mm is not None:
        prior = torch.as_tensor(np.broadcast_to(np.asarray(depth_mm, np.float64), (len(joints),)) / 1000)
        if not bool((torch.isfinite(prior) & (prior > 0)).all()):
            raise DataError(f"the expected depth must be positive, got {np.asarray(depth_mm).tolist()} mm")
    problem = _Problem(joints, pixels, camera, prior, depth_weight)
    starts = [problem.linear(prior=False)]
    if prior is not None:
        starts.append(problem.linear(prior=True))
    if method == "lbfgs":
        results = [problem.lbfgs(start) for start in starts]
    else:
        results = [problem.newton(start) for start in starts]
    best = results[0]
    for other in results[1:]:
        best = torch.where((problem.objective(other) < problem.objective(best))[:, None], other, best)
    return Fit(
        (best * 1000).numpy(),
        problem.objective(best).numpy(),
        problem.residuals(best).abs().mean((1, 2)).numpy(),
    )


def _check(joints_mm: ArrayLike, keypoints_2d: ArrayLike, K: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    joints, pixels = np.asarray(joints_mm, np.float64), np.asarray(keypoints_2d, np.float64)
    camera = np.asarray(K, np.float64)
    if joints.ndim != 3 or joints.shape[-1] != 3 or pixels.shape != (*joints.shape[:2], 2) or joints.shape[1] < 2:
        raise DataError(f"expected joints (B, J, 3) and keypoints (B, J, 2), got {joints.shape} and {pixels.shape}")
    if camera.shape not in ((3, 3), (len(joints), 3, 3)) or not (camera[..., 0, 0] * camera[..., 1, 1] > 0).all():
        raise DataError(f"expected K (3, 3) or ({len(joints)}, 3, 3) with positive focal lengths, got {camera.shape}")
    for name, array in (("joints", joints), ("keypoints", pixels)):
        bad = ~np.isfinite(array).all((1, 2))
        if bad.any():
            raise DataError(f"the {name} of hand {int(bad.argmax())} are not finite")
    return (
        torch.from_numpy(joints / 1000),
        torch.from_numpy(pixels),
        torch.from_numpy(np.broadcast_to(camera, (len(joints), 3, 3)).copy()),
    )


@dataclass
class _Problem:
    """The objective of B independent hands; metres inside."""

    joints: Tensor
    pixels: Tensor
    K: Tensor
    prior: Tensor | None
    weight: float

    def residuals(self, t: Tensor) -> Tensor:
        """(B, J, 2) projection minus pixel."""
        points = self.joints + t[:, None]
        z = points[..., 2:].clamp(min=_NEAR_M)
        return (points @ self.K.mT)[..., :2] / z - self.pixels

    def objective(self, t: Tensor) -> Tensor:
        """(B,) what is minimised."""
        total = self.residuals(t).abs().sum((1, 2))
        if self.prior is not None:
            total = total + self.weight * (t[:, 2] - self.prior) ** 2
        return total

    def linear(self, *, prior: bool) -> Tensor:
        """(B, 3) least-squares solution of the linear equations, or with t_z held at the prior."""
        focal = torch.stack((self.K[:, 0, 0], self.K[:, 1, 1]), -1)[:, None]  # (B, 1, 2)
        rays = (self.pixels - self.K[:, None, :2, 2]) / focal  # (B, J, 2)
        right = rays * self.joints[..., 2:] - self.joints[..., :2]
        if prior:
            assert self.prior is not None
            xy = (right + rays * self.prior[:, None, None]).mean(1)
            return torch.cat((xy, self.prior[:, None]), 1)
        zero, one = torch.zeros_like(rays[..., 0]), torch.ones_like(rays[..., 0])
        rows = torch.stack(
            (torch.stack((one, zero, -rays[..., 0]), -1), torch.stack((zero, one, -rays[..., 1]), -1)), 2
        ).flatten(1, 2)  # (B, 2 J, 3)
        t = torch.linalg.lstsq(rows, right.flatten(1)[..., None]).solution[..., 0]
        nearest = _NEAR_M - self.joints[..., 2].amin(1)
        return torch.cat((t[:, :2], torch.maximum(t[:, 2], nearest)[:, None]), 1)

    def newton(self, t: Tensor) -> Tensor:
        """Re-weighted Gauss-Newton: 1 / |r| turns squares into absolute values; its floor falls step by step."""
        best, value = t, self.objective(t)
        for step in range(_STEPS):
            points = self.joints + t[:, None]
            z = points[..., 2].clamp(min=_NEAR_M)
            residual = self.residuals(t)
            floor = 10.0 * 0.85**step + 1e-6
            w = 1 / (residual.abs() + floor)  # (B, J, 2)
            fx, fy = self.K[:, 0, 0, None] / z, self.K[:, 1, 1, None] / z  # (B, J)
            zero = torch.zeros_like(z)
            du = torch.stack((fx, zero, -fx * points[..., 0] / z), -1)
            dv = torch.stack((zero, fy, -fy * points[..., 1] / z), -1)
            J = torch.stack((du, dv), 2).flatten(1, 2)  # (B, 2 J, 3)
            weighted = J * w.flatten(1)[..., None]
            hessian, gradient = J.mT @ weighted, (weighted * residual.flatten(1)[..., None]).sum(1)
            if self.prior is not None:
                hessian[:, 2, 2] += 2 * self.weight
                gradient[:, 2] += 2 * self.weight * (t[:, 2] - self.prior)
            hessian = hessian + 1e-9 * torch.eye(3, dtype=t.dtype)
            t = t - torch.linalg.solve(hessian, gradient)
            t[:, 2] = torch.maximum(t[:, 2], _NEAR_M - self.joints[..., 2].amin(1))
            now = self.objective(t)
            best = torch.where((now < value)[:, None], t, best)
            value = torch.minimum(now, value)
        return best

    def lbfgs(self, start: Tensor) -> Tensor:
        """The original's optimiser and settings on the sum of all hands, with its rule for stopping."""
        t = start.clone().requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [t], lr=0.1, max_iter=20, max_eval=25, history_size=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.objective(t).sum()
            loss.backward()
            return loss

        best, value, before = start, self.objective(start), float("inf")
        for _ in range(300):
            loss = float(optimizer.step(closure).detach())
            with torch.no_grad():
                now = self.objective(t)
                best = torch.where((now < value)[:, None], t, best)
                value = torch.minimum(torch.nan_to_num(now, torch.inf), value)
            if not np.isfinite(loss) or (before - loss) / max(abs(before), abs(loss), 1) <= 1e-10:
                break
            before = loss
        return best.detach()
