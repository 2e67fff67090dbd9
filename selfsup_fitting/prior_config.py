"""Options of the programs around the hand model (no heavy import: ``--help`` is quick)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.errors import DataError


@dataclass
class PriorConfig:
    """Options of train_prior.

    The original trains 5 epochs with lr 1e-3, schedule constant, latent_noise 0 and kl_weight 1. A VAE trained like
    that collapses (latents a hundred times smaller than the noise that the prior term adds to them), so the defaults
    differ.

    Args:
        kind: vae or denoiser
        hand: standin, a hand .npz, or the original's preprocessed_hand.pkl
        run: folder of the result; empty means runs/selfsup/<kind>
        epochs: passes; every sample is drawn anew [epochs]
        samples: poses an epoch [poses]
        batch_size: poses a step; the KL is summed over them, so it weighs with the batch [poses]
        lr: learning rate of Adam
        schedule: cosine to zero, or constant
        center: mean (hands lie as the sampler puts them, as in the original) or palm (sphere 2 lies at the crop's
            centre, as in captured crops, which the prior term looks at)
        scale_range: half width of the random axis scale around 0.9 [no unit]
        input_noise: denoiser only: standard deviation of what is added to its input [mm]
        latent_noise: VAE only: times the noise that the prior term adds to the latent; 0 decodes mu
        kl_weight: VAE only: of the KL term
        eval_samples: poses that the quality report is made on [poses]
        seed: of weights and poses
        threads: CPU threads; 0 leaves torch's choice [threads]
    """

    kind: list[str] = field(default_factory=list)
    hand: str = "standin"
    run: str = ""
    epochs: int = 1
    samples: int = 400_000
    batch_size: int = 128
    lr: float = 2e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    center: Literal["mean", "palm"] = "mean"
    scale_range: float = 0.1
    input_noise: float = 10.0
    latent_noise: float = 1.0
    kl_weight: float = 3e-5
    eval_samples: int = 20_000
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ([], ["vae"], ["denoiser"]):
            raise DataError(f"expected one word, vae or denoiser, got {' '.join(self.kind)!r}")
        for name in ("epochs", "samples", "batch_size", "eval_samples"):
            if getattr(self, name) < 1:
                raise DataError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("scale_range", "input_noise", "latent_noise", "kl_weight", "threads"):
            if getattr(self, name) < 0:
                raise DataError(f"--{name} must not be negative, got {getattr(self, name)}")
        if not self.scale_range < 0.9 or not self.lr > 0:
            raise DataError(f"--lr must be positive and --scale_range below 0.9, got {self.lr} and {self.scale_range}")


@dataclass
class HandImportConfig:
    """Options of hand_import.

    Args:
        input: the original's preprocessed_hand.pkl, a hand .npz, or the word standin
        output: .npz to write; empty only checks and prints
        lengths: standin only: one factor on all lengths, or six: palm, index, middle, ring, little finger, thumb
        thickness: standin only: factor on the thickness
        side: standin only: which hand
    """

    input: str = "standin"
    output: str = ""
    lengths: list[float] = field(default_factory=lambda: [1.0])
    thickness: float = 1.0
    side: Literal["right", "left"] = "right"
