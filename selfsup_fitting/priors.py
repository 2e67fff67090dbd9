"""What keeps predicted spheres a hand: the pose VAE of the prior term, and the denoiser of the palm at evaluation.

Both look at sphere centres in camera space, mm, and are trained on sampled poses alone (:mod:`.train_prior`). Source:
the author's ``network/pose_vae.py`` and ``network/pose_denoiser.py``; the names of the weights are theirs, but for the
denoiser's two index lists, which are constants.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from selfsup_fitting.spheres import NUM_SPHERES, PALM
from shared.errors import DataError

Kind = Literal["vae", "denoiser"]
Center = Literal["mean", "palm"]
FORMAT, VERSION = "handpose/selfsup_fitting/prior", 1
SCALE = 0.01  # network units per mm
LATENT = 32
LATENT_NOISE = 0.1  # of the sampled latent, in standard deviations of the posterior
INPUT_NOISE = 0.1  # of the denoiser's input in training: 10 mm
_WIDTH, _GROUPS = 256, 16


def _trunk(inputs: int) -> list[nn.Module]:
    """Two layers of 256 with group norm and ReLU."""
    layers: list[nn.Module] = []
    for size in (inputs, _WIDTH):
        layers += [nn.Linear(size, _WIDTH), nn.GroupNorm(_GROUPS, _WIDTH), nn.ReLU(inplace=True)]
    return layers


class PoseVAE(nn.Module):
    """Auto-encoder of 41 sphere centres (as 123 numbers, spheres in order, x y z each), not root-relative.

    Attributes:
        center: what was in the middle of the hands it was trained on: ``mean`` (the mean vertex), ``palm`` (sphere 2),
            or None where that is not known.
    """

    center: Center | None

    def __init__(self) -> None:
        super().__init__()
        self.center = None
        self.base = nn.Sequential(*_trunk(3 * NUM_SPHERES))
        self.mu, self.logvar = nn.Linear(_WIDTH, LATENT), nn.Linear(_WIDTH, LATENT)
        self.decoder = nn.Sequential(*_trunk(LATENT), nn.Linear(_WIDTH, 3 * NUM_SPHERES))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 123) centres / 100 mm -> their reconstruction (N, 123), mu and logvar (N, 32).

        Args:
            x: see above; views and frames are all rows.
            noise: (N, 32) standard normal draws; the latent is mu + 0.1 sigma noise. None decodes mu.
        """
        features = self.base(x)
        mu, logvar = self.mu(features), self.logvar(features)
        latent = mu if noise is None else mu + LATENT_NOISE * (0.5 * logvar).exp() * noise
        return self.decoder(latent), mu, logvar


class PoseDenoiser(nn.Module):
    """Replaces the 11 palm spheres by what the other spheres, and the palm's own x and y, say."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(*_trunk(112), nn.Linear(_WIDTH, 3 * len(PALM)))

    def forward(self, spheres_mm: Tensor, noise: Tensor | None = None) -> Tensor:
        """(N, 41, 3) camera space, mm -> the same with other palm spheres.

        Args:
            spheres_mm: see above.
            noise: (N, 112) added to the network's input (in units of 100 mm), for training.
        """
        palm = len(PALM)
        x = SCALE * torch.cat((spheres_mm[:, palm:].mT.flatten(1), spheres_mm[:, :palm, :2].mT.flatten(1)), 1)
        predicted = self.network(x if noise is None else x + noise).unflatten(1, (palm, 3)) / SCALE
        return torch.cat((predicted, spheres_mm[:, palm:]), 1)


def save_prior(path: str | Path, network: PoseVAE | PoseDenoiser, **extra: Any) -> None:
    """Writes a file that :func:`load_prior` reads; ``extra`` are plain values stored beside the weights.

    ``center`` among them becomes the VAE's.
    """
    from shared.checkpoints import cpu_state
    from shared.training import save_checkpoint

    state = cpu_state(network.state_dict())
    kind = "vae" if isinstance(network, PoseVAE) else "denoiser"
    save_checkpoint(Path(path), {**extra, "format": FORMAT, "version": VERSION, "kind": kind, "state_dict": state})


@overload
def load_prior(path: str | Path, kind: Literal["vae"]) -> PoseVAE: ...
@overload
def load_prior(path: str | Path, kind: Literal["denoiser"]) -> PoseDenoiser: ...
def load_prior(path: str | Path, kind: Kind) -> PoseVAE | PoseDenoiser:
    """A frozen network in evaluation mode from our file, or from the author's ``pose_vae.pth``, ``pose_denoiser.pth``.

    Raises:
        MissingFileError, DataError: no such file; unreadable, of another program, version or kind; weights that do not
            fit, listed.
    """
    from shared.checkpoints import check_own, check_state, read_torch

    path = Path(path)
    content = read_torch(path)
    if not (isinstance(content, dict) and "format" in content):
        from selfsup_fitting.convert import load_reference

        network = load_reference(path, kind)
        assert isinstance(network, PoseVAE | PoseDenoiser)
        if isinstance(network, PoseVAE):
            network.center = "mean"
        return network.requires_grad_(False)
    remedy = f"train one with python -m selfsup_fitting.train_prior {kind}"
    content = check_own(content, path, FORMAT, VERSION, remedy=remedy)
    if content.get("kind") != kind:
        raise DataError(f"holds the {content.get('kind')}, expected the {kind}", path=path, remedy=remedy)
    network = PoseVAE() if kind == "vae" else PoseDenoiser()
    center = content.get("center")  # files of before it was stored have none
    if center not in (None, *get_args(Center)):
        raise DataError(f"names a centre {center!r}, expected mean or palm", path=path, remedy=remedy)
    if isinstance(network, PoseVAE):
        network.center = center
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError("has no weights under 'state_dict'", path=path, remedy=remedy)
    check_state(state, network.state_dict(), path, f"the {kind}", remedy)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
