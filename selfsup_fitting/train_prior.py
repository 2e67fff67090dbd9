"""Trains the pose VAE or the palm denoiser on sampled poses; no data set is needed.

    python -m selfsup_fitting.train_prior vae
    python -m selfsup_fitting.train_prior denoiser --hand hand.npz --run runs/selfsup/denoiser

400 000 poses, drawn as they are needed, take less than a minute on one core. The run's folder gets ``prior.pt``,
``metrics.json`` with the quality report, ``config.yaml`` and ``log.csv``. Source: the author's ``network/pose_vae.py``
and ``network/pose_denoiser.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup_fitting.prior_config import PriorConfig
from shared.errors import DataError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from selfsup_fitting.hand import Hand
    from selfsup_fitting.priors import PoseDenoiser, PoseVAE

_BLOCK = 16  # batches whose poses are drawn at once: small tensors cost their overhead
_LOG_EVERY = 200  # steps


def sample_spheres(count: int, hand: Hand, config: PriorConfig, generator: torch.Generator) -> Tensor:
    """(count, 41, 3) camera-space centres of sampled poses, mm, each axis scaled by 0.9 - r to 0.9 + r."""
    import torch

    from selfsup_fitting.kinematics import forward_kinematics, pose_spheres
    from selfsup_fitting.sampler import sample_poses
    from selfsup_fitting.spheres import MEAN_SCALE
    from selfsup_fitting.synth import PALM

    pose = sample_poses(count, generator)
    scale = MEAN_SCALE + config.scale_range * (2 * torch.rand(count, 3, generator=generator) - 1)
    spheres = pose_spheres(forward_kinematics(pose, hand, scale), hand)
    return spheres - spheres[:, PALM : PALM + 1] if config.center == "palm" else spheres


def train(config: PriorConfig, hand: Hand, log: Any = None) -> PoseVAE | PoseDenoiser:
    """The trained network, in evaluation mode. Equal seeds give equal weights on one machine.

    Args:
        config: with one ``kind``.
        hand: whose spheres.
        log: called with (step, loss) every 200 steps.

    Raises:
        DataError: the loss is not finite any more.
    """
    import torch

    from selfsup_fitting.losses import vae_objective
    from selfsup_fitting.priors import LATENT, SCALE, PoseDenoiser, PoseVAE
    from selfsup_fitting.spheres import PALM
    from shared.training import schedule_factor

    torch.manual_seed(config.seed)
    network = PoseVAE() if config.kind == ["vae"] else PoseDenoiser()
    generator = torch.Generator().manual_seed(config.seed)
    per_epoch = max(1, config.samples // config.batch_size)
    steps = config.epochs * per_epoch
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    batches: list[Tensor] = []
    for step in range(steps):
        if not batches:
            count = min(_BLOCK, steps - step)
            spheres = sample_spheres(count * config.batch_size, hand, config, generator)
            batches = list(spheres.split(config.batch_size))
        spheres = batches.pop()
        if isinstance(network, PoseVAE):
            target = SCALE * spheres.flatten(1)
            noise = config.latent_noise * torch.randn(len(target), LATENT, generator=generator)
            recon, mu, logvar = network(target, noise if config.latent_noise else None)
            mse = (recon - target).square().mean()
            loss = mse + config.kl_weight * (vae_objective(recon, target, mu, logvar) - mse)
        else:
            noise = SCALE * config.input_noise * torch.randn(len(spheres), 112, generator=generator)
            loss = (network(spheres, noise) - spheres)[:, : len(PALM)].square().mean()
        optimizer.param_groups[0]["lr"] = config.lr * schedule_factor(config.schedule, step, total_steps=steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % _LOG_EVERY == 0 or step == steps - 1:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DataError(f"the loss is {value} at step {step}", remedy="use a smaller --lr")
            if log is not None:
                log(step, value)
    return network.eval()


def evaluate(network: PoseVAE | PoseDenoiser, config: PriorConfig, hand: Hand) -> dict[str, float]:
    """Quality on poses that were not trained on (another seed): mm, and nats a sample for the KL.

    The author's weights on the author's hand: VAE 7.2 mm, KL 0.64 nats, latent deviations 0.14 to 0.29; denoiser
    5.7 mm, and 7.6 mm with 10 mm of noise on its input.
    """
    import torch

    from selfsup_fitting.priors import LATENT, SCALE, PoseVAE
    from selfsup_fitting.spheres import PALM

    generator = torch.Generator().manual_seed(config.seed + 1_000_003)
    spheres = sample_spheres(config.eval_samples, hand, config, generator)
    with torch.no_grad():
        if isinstance(network, PoseVAE):
            recon, mu, logvar = network(SCALE * spheres.flatten(1))
            error = recon.unflatten(1, (-1, 3)) / SCALE - spheres
            kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
            spread = mu.std(0)
            again, _, _ = network(SCALE * spheres.flatten(1), torch.randn(len(mu), LATENT, generator=generator))
            sampled = again.unflatten(1, (-1, 3)) / SCALE - spheres
            return {
                "error_mm": float(error.norm(dim=-1).mean()),
                "kl_nats": float(kl.mean()),
                "latent_std_min": float(spread.min()),
                "latent_std_max": float(spread.max()),
                "error_sampled_mm": float(sampled.norm(dim=-1).mean()),
            }
        noise = SCALE * 10.0 * torch.randn(len(spheres), 112, generator=generator)
        clean, noisy = (
            float((network(spheres, n) - spheres)[:, : len(PALM)].norm(dim=-1).mean()) for n in (None, noise)
        )
        return {"palm_error_mm": clean, "palm_error_10mm_noise_mm": noisy}


def main(argv: list[str] | None = None) -> int:
    parsed = parse(
        PriorConfig,
        prog="python -m selfsup_fitting.train_prior",
        description="Train the pose VAE or the palm denoiser on sampled poses.",
        argv=argv,
        positional="kind",
        positional_help="vae or denoiser",
    )
    config = parsed.options
    if not config.kind:
        raise DataError("which network?", remedy="give the word vae or denoiser")
    import time

    import torch

    from selfsup_fitting.hand import load_hand
    from selfsup_fitting.priors import save_prior
    from shared.safe_io import atomic_write_text

    hand = load_hand(config.hand)
    folder = Path(config.run or f"runs/selfsup/{config.kind[0]}")
    if (folder / "prior.pt").exists():
        raise DataError("this folder holds a prior already", path=folder, remedy="choose another --run, or remove it")
    if config.threads:
        torch.set_num_threads(config.threads)
    start, lines = time.perf_counter(), ["step,loss"]

    def log(step: int, loss: float) -> None:
        lines.append(f"{step},{loss:.6g}")
        if step % (10 * _LOG_EVERY) == 0:
            print(f"step {step:6d}  loss {loss:.5g}", flush=True)

    network = train(config, hand, log)
    quality = evaluate(network, config, hand)
    seconds = time.perf_counter() - start
    report = {"kind": config.kind[0], "hand": hand.name, **quality, "seconds": round(seconds, 1)}
    atomic_write_text(folder / "config.yaml", parsed.yaml)
    atomic_write_text(folder / "log.csv", "\n".join(lines) + "\n")
    atomic_write_text(folder / "metrics.json", json.dumps(report, indent=1) + "\n")
    save_prior(folder / "prior.pt", network, hand=hand.name, quality=quality, center=config.center)
    print("  ".join(f"{key} {value:.3f}" for key, value in quality.items()) + f"  ({seconds:.0f} s)")
    print(f"written: {folder / 'prior.pt'}")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
