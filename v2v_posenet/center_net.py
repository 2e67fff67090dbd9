"""The network that turns a rough hand position into a centre, after the description of DeepPrior++.

Neither the authors of V2V-PoseNet nor its PyTorch port publish theirs, only its output; this one follows DeepPrior++ as
it is generally described: three crops of one patch, one small convolutional branch each, three linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_path
from v2v_posenet.centers import crop_patch

FORMAT = "handpose/v2v_posenet/center"
PATCH = 128


def _branch(filters: int, pools: Sequence[int], kernels: Sequence[int]) -> nn.Sequential:
    """Valid convolutions, each followed by max pooling (where above 1) and then the ReLU."""
    layers: list[nn.Module] = []
    channels = 1
    for kernel, pool in zip(kernels, pools, strict=True):
        layers += [nn.Conv2d(channels, filters, kernel), nn.MaxPool2d(pool) if pool > 1 else nn.Identity(), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten())


class CenterNet(nn.Module):
    """(B, 1, 128, 128) patches in [-1, 1] to (B, 3) offsets of the centre in half cube edges, OpenCV axes.

    The input and its central 64 and 32 pixels go through a branch each (8 x 11 x 11, 8 x 11 x 11 and 8 x 8 x 8 features
    with the default ``filters``), then 1024, 1024 and 3 units. ``filters`` and ``hidden`` can be small for tests.
    """

    def __init__(self, filters: int = 8, hidden: int = 1024) -> None:
        super().__init__()
        self.config = {"filters": filters, "hidden": hidden}
        self.branches = nn.ModuleList(_branch(filters, pools, (5, 5, 3)) for pools in ((4, 2, 1), (2, 2, 1), (2, 1, 1)))
        features = filters * (11 * 11 + 11 * 11 + 8 * 8)
        self.head = nn.Sequential(
            *(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        )

    def forward(self, patch: Tensor) -> Tensor:
        if patch.shape[1:] != (1, PATCH, PATCH):
            raise ValueError(f"expected patches of shape (B, 1, {PATCH}, {PATCH}), got {tuple(patch.shape)}")
        pyramid = patch, patch[..., 32:96, 32:96], patch[..., 48:80, 48:80]
        return self.head(torch.cat([branch(x) for branch, x in zip(self.branches, pyramid, strict=True)], 1))


def center_loss(model: nn.Module, pred: Tensor, gt: Tensor, weight_decay: float = 1e-4) -> Tensor:
    """Squared error summed over x, y, z and averaged over the batch, plus ``weight_decay`` times all squared weights.

    Biases are not weights. The penalty is part of the loss (and so of Adam's moments), as in the original.
    """
    squared = (pred - gt).square().sum(1).mean()
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    return squared + weight_decay * torch.stack([w.square().sum() for w in weights]).sum()


def learning_rate(epoch: int, base: float = 5e-4) -> float:
    """Adam's step size in ``epoch`` (from 0): a tenth of ``base`` first, then ``base * exp(-0.04 epoch)``."""
    return base * (0.1 if epoch == 0 else float(np.exp(-0.04 * epoch)))


@dataclass
class CenterRefiner:
    """A trained network and what it was trained for.

    Attributes:
        model: in evaluation mode.
        cube_mm: edge of the cube its patches show.
        target: ``mean`` of all joints, or ``middle_mcp``.
        dataset, test_subject: what it was trained on, and the person it has not seen (-1: none was left out).
        min_pixels, mass_iterations: how the rough centres of its training were made.
    """

    model: CenterNet
    cube_mm: float
    target: str
    dataset: str
    test_subject: int
    min_pixels: int
    mass_iterations: int

    def patch(
        self, depth_mm: NDArray[np.floating], K: NDArray[np.float64], crop_xy: tuple[int, int], center_mm: ArrayLike
    ) -> NDArray[np.float32]:
        """(128, 128) input for a rough centre."""
        return crop_patch(depth_mm, K, crop_xy, center_mm, self.cube_mm, size=PATCH)

    @torch.inference_mode()
    def refine(self, patches: ArrayLike, centers_mm: ArrayLike) -> NDArray[np.float64]:
        """(B, 128, 128) patches made at (B, 3) rough centres -> (B, 3) centres, mm."""
        device = next(self.model.parameters()).device
        batch = torch.as_tensor(np.asarray(patches, np.float32)).unsqueeze(1).to(device)
        offset = self.model(batch).double().cpu().numpy()
        refined: NDArray[np.float64] = np.asarray(centers_mm, np.float64) + offset * self.cube_mm / 2
        return refined

    def __call__(
        self,
        depth_mm: NDArray[np.floating],
        K: NDArray[np.float64],
        crop_xy: tuple[int, int],
        center_mm: ArrayLike,
        *,
        iterations: int = 1,
    ) -> NDArray[np.float64]:
        """One depth map and rough centre -> centre (3,) mm; ``iterations`` above 1 crop again around the result."""
        center = np.asarray(center_mm, np.float64)
        for _ in range(iterations):
            center = self.refine(self.patch(depth_mm, K, crop_xy, center)[None], center[None])[0]
        return center


def save_center_checkpoint(path: str | Path, refiner: CenterRefiner, training: dict[str, Any] | None = None) -> None:
    """Writes weights, settings and, for resuming, ``training`` (optimiser, epoch, options); whole or not at all."""
    content = {
        "format": FORMAT,
        "version": 1,
        "state_dict": {name: value.detach().cpu() for name, value in refiner.model.state_dict().items()},
        "model": refiner.model.config,
        "cube_mm": refiner.cube_mm,
        "target": refiner.target,
        "dataset": refiner.dataset,
        "test_subject": refiner.test_subject,
        "min_pixels": refiner.min_pixels,
        "mass_iterations": refiner.mass_iterations,
        "training": training,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_center_checkpoint(path: str | Path, device: str = "cpu") -> tuple[CenterRefiner, dict[str, Any] | None]:
    """The network of a checkpoint in evaluation mode, and its training state.

    Raises:
        MissingFileError: no such file. DataError: not a centre checkpoint, damaged, or its weights do not fit.
    """
    remedy = "give a checkpoint written by python -m v2v_posenet.train_center"
    if not Path(path).is_file():
        raise MissingFileError("no such centre checkpoint", path=path, remedy=remedy)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError and more on foreign bytes
        raise DataError(f"not a readable checkpoint ({type(error).__name__})", path=path, remedy=remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != 1:
        found = content.get("format", "no format entry") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"expected a {FORMAT} checkpoint of version 1, found {found}", path=path, remedy=remedy)
    try:
        model = CenterNet(**content["model"])
        model.load_state_dict(content["state_dict"])
        settings = {name: content[name] for name in CenterRefiner.__dataclass_fields__ if name != "model"}
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"the checkpoint's entries do not fit: {error}", path=path, remedy=remedy) from error
    return CenterRefiner(model.eval().to(device), **settings), content.get("training")
