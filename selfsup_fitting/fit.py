"""Fits the hand to one depth frame without any network: ``python -m selfsup_fitting.fit depth.png``.

Optimises the 26 numbers of the pose, or the 41 spheres themselves, against the two projection terms of the training
loss, from several poses at once (or from a network's answer, ``--init``), and keeps the best.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup_fitting.config import FitConfig
from shared.errors import DataError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    from torch import Tensor

    from selfsup_fitting.hand import Hand

MILLIMETRES = 30.0  # an optimiser's unit of translation and of spheres, beside radians
TRACE = 20  # numbers of the loss that are written


def residual(spheres_mm: Tensor, radii_mm: Tensor, depth_mm: Tensor) -> Tensor:
    """(S,) projection loss of S candidates (S, 41, 3) against one crop (64, 64), both directions."""
    from selfsup_fitting.kernels import ops
    from selfsup_fitting.losses import FIT_DATA

    images = depth_mm.expand(len(spheres_mm), 1, *depth_mm.shape)
    terms = ops.projection_loss(spheres_mm[:, None], None, radii_mm, images)
    return (terms.model_to_data + FIT_DATA * terms.data_to_model)[:, 0]


def plausibility(spheres_mm: Tensor, lengths_mm: Tensor) -> Tensor:
    """(S,) collision and bone length of each of S candidates (S, 41, 3)."""
    import torch

    from selfsup_fitting.losses import bone_length, collision

    def of_one(centers_mm: Tensor) -> Tensor:
        alone = centers_mm[None, None]
        return collision(alone, reduction="reference") + bone_length(alone, lengths_mm)

    each: Tensor = torch.vmap(of_one)(spheres_mm)
    return each


def start_poses(starts: int, seed: int, hand: Hand) -> Tensor:
    """(S, 26) sampled poses, moved so that sphere 2 (the palm) lies at the crop's centre."""
    import torch

    from selfsup_fitting.sampler import sample_poses

    pose = sample_poses(starts, torch.Generator().manual_seed(seed))
    pose[:, 3:6] = 0
    palm = pose_to_spheres(pose, hand)[:, 2]
    pose[:, 3:6] = -palm * pose.new_tensor([-1.0, 1.0, 1.0]) / 0.9  # camera to model; the scale comes after
    return pose


def pose_to_spheres(pose: Tensor, hand: Hand) -> Tensor:
    """(S, 41, 3) in the crop's frame, of poses (S, 26) of a hand of the mean size that training has."""
    from selfsup_fitting.kinematics import forward_kinematics, pose_spheres
    from selfsup_fitting.spheres import MEAN_SCALE

    return pose_spheres(forward_kinematics(pose, hand, pose.new_full((len(pose), 3), MEAN_SCALE)), hand)


def fit_pose(
    depth_mm: Tensor, hand: Hand, start: Tensor, *, steps: int = 200, lr: float = 0.03, target_mm: Tensor | None = None
) -> tuple[Tensor, Tensor, list[float]]:
    """The poses after the fit, what is left of each, and the best one's loss on the way.

    Args:
        depth_mm: (64, 64) crop, background 100.
        hand: whose spheres.
        start: (S, 26).
        steps, lr: of Adam with a half cosine to zero.
        target_mm: (41, 3) fits these spheres instead of the crop.

    Returns:
        pose (S, 26), loss (S,), and about twenty losses of the best candidate.
    """
    import torch

    radii = torch.tensor(hand.sphere_radius_mm, dtype=depth_mm.dtype)
    lengths = torch.tensor(hand.bone_lengths_mm(), dtype=depth_mm.dtype)
    unit = torch.ones(26, dtype=depth_mm.dtype)
    unit[3:6] = MILLIMETRES

    def loss(values: Tensor) -> tuple[Tensor, Tensor]:
        spheres = pose_to_spheres(values * unit, hand)
        if target_mm is not None:
            each = (spheres - target_mm).square().mean((1, 2))
            return each, each
        each = residual(spheres, radii, depth_mm)
        return each, each + plausibility(spheres, lengths)

    values, each, trace = _descend((start / unit).clone(), loss, steps, lr)
    return values * unit, each, trace


def fit_spheres(
    depth_mm: Tensor, hand: Hand, start_mm: Tensor, *, steps: int = 200, lr: float = 0.03
) -> tuple[Tensor, Tensor, list[float]]:
    """As :func:`fit_pose` for the centres themselves: (S, 41, 3) in, (S, 41, 3) out."""
    import torch

    radii = torch.tensor(hand.sphere_radius_mm, dtype=depth_mm.dtype)
    lengths = torch.tensor(hand.bone_lengths_mm(), dtype=depth_mm.dtype)

    def loss(values: Tensor) -> tuple[Tensor, Tensor]:
        spheres = values * MILLIMETRES
        each = residual(spheres, radii, depth_mm)
        return each, each + plausibility(spheres, lengths)

    values, each, trace = _descend((start_mm / MILLIMETRES).clone(), loss, steps, lr)
    return values * MILLIMETRES, each, trace


def _descend(values: Tensor, loss: Any, steps: int, lr: float) -> tuple[Tensor, Tensor, list[float]]:
    """Where each candidate cost least on its way, what was left there, and the best one's trace, which ends there.

    ``loss`` gives (S,) what is reported and (S,) what is descended. A learning rate that is too large thus never ends
    with more than there was at the start.
    """
    import torch

    from shared.training import schedule_factor

    values.requires_grad_()
    optimizer = torch.optim.Adam([values], lr=lr)
    history: list[Tensor] = []
    kept, lowest = values.detach().clone(), torch.full((len(values),), torch.inf, dtype=values.dtype)
    left = lowest.clone()

    def keep(each: Tensor, cost: Tensor) -> None:
        nonlocal kept, lowest, left
        history.append(each.detach())
        better = cost.detach() < lowest  # never where it is not a number
        shape = (-1, *(1,) * (values.ndim - 1))
        kept = torch.where(better.view(shape), values.detach(), kept)
        lowest, left = torch.where(better, cost.detach(), lowest), torch.where(better, each.detach(), left)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * schedule_factor("cosine", step, total_steps=steps)
        optimizer.zero_grad()
        each, cost = loss(values)
        keep(each, cost)
        cost.sum().backward()
        optimizer.step()
    with torch.no_grad():
        keep(*loss(values))
    history[-1] = left
    best = int(left.argmin())
    picked = torch.linspace(0, steps, min(TRACE, steps + 1)).round().long()
    return kept, left, torch.stack(history)[picked, best].tolist()


def main() -> None:
    options = parse(
        FitConfig,
        prog="python -m selfsup_fitting.fit",
        description="Fit the pose or the spheres of the hand to one depth frame, without a network.",
        positional="image",
        positional_help="one depth picture (.png, .npy)",
    ).options
    fit(options)


def fit(options: FitConfig) -> dict[str, Any]:
    """Fits one frame; writes ``<name>.json``, ``.png``, ``_crop.npz`` and ``<name>_fit.json``; returns the last.

    Raises:
        DataError: no picture or several, options out of range, results that would overwrite what is read, and what
            reading refuses.
    """
    if len(options.image) != 1:
        raise DataError(f"expected one depth picture, got {len(options.image)}")
    if options.steps < 1 or options.starts < 1 or not options.lr > 0:
        raise DataError("--steps and --starts must be at least 1, --lr must be positive")
    import torch

    from selfsup_fitting.data import normalised
    from selfsup_fitting.hand import load_hand
    from selfsup_fitting.predict import ENDINGS, camera_of, load_crop, write_hand
    from shared.inputs import refuse_overwriting
    from shared.safe_io import atomic_write_text

    out, name = Path(options.out), Path(options.image[0]).stem
    endings = (*ENDINGS, "_fit.json")
    refuse_overwriting(out, [(Path(options.image[0]), name)], endings, [options.init, options.hand])
    crop_mm, center = load_crop(options.image[0], options.center, options.intrinsics)
    hand, depth = load_hand(options.hand), torch.from_numpy(crop_mm)
    poses = start_poses(options.starts, options.seed, hand)
    begin = None
    if options.init:
        from selfsup_fitting.convert import load_estimator

        with torch.inference_mode():
            found = load_estimator(options.init).build()(normalised(depth)[None])[-1].spheres_mm[0]
        begin = found.clone()
        near, left, _ = fit_pose(depth, hand, poses, steps=options.steps, lr=options.lr, target_mm=begin)
        poses = near[left.argmin()][None]
    settings: dict[str, Any] = {"steps": options.steps, "lr": options.lr}
    result: dict[str, Any] = {"image": options.image[0], "parameters": options.parameters, **settings}
    if options.parameters == "pose":
        pose, each, trace = fit_pose(depth, hand, poses, **settings)
        best = int(each.argmin())
        spheres = pose_to_spheres(pose[best : best + 1], hand)[0]
        result["pose"] = pose[best].tolist()
    else:
        start = pose_to_spheres(poses, hand) if begin is None else begin[None]
        fitted, each, trace = fit_spheres(depth, hand, start, **settings)
        best = int(each.argmin())
        spheres = fitted[best]
    result |= {"loss": float(each[best]), "losses": trace, "starts": len(each)}
    camera = camera_of(options.intrinsics)
    write_hand(out, name, spheres.double().numpy(), center, camera, crop_mm, hand.sphere_radius_mm)
    atomic_write_text(out / f"{name}_fit.json", json.dumps(result, indent=1) + "\n")
    print(f"{options.image[0]}: loss {trace[0]:.0f} -> {result['loss']:.0f}, best of {len(each)}; {out / name}.json")
    return result


if __name__ == "__main__":
    exit_on_error(main)
