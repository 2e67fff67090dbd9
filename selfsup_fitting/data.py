"""Samples of both kinds: synthetic images made on the fly, and captured views, which enter without their labels.

Everything random follows from counters: a synthetic image from (seed, epoch, index), and which synthetic images stand
beside a batch of captured frames from the batch's place in its epoch. So a resumed run sees what the first would have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsup_fitting.config import AugmentOptions, SynthOptions
from selfsup_fitting.hand import Hand
from selfsup_fitting.model import DEPTH_SCALE
from selfsup_fitting.shards import Shards, spread
from selfsup_fitting.synth import draw, pixel_draws, resample, shrink, synthesize
from shared.errors import DataError
from shared.training import EpochBatches, SampleKey

VALIDATION_SEED = 7_919  # added to the run's seed: validation images are none of training's
DROPPED = 0.05  # share of the pixels that depth_resample loses


@dataclass(frozen=True)
class Synthetic:
    """What a sample of the synthesiser is a function of."""

    seed: int
    epoch: int
    index: int


@dataclass(frozen=True)
class Captured:
    """A captured frame of all its views.

    Attributes:
        name: split and number.
        depth_mm: (V, 64, 64) around the crops' centres, background 100.
        T_canon_view: (V, 4, 4).
        joints_mm: (V, 36, 3) for validation, None in training.
        synthetic: the synthetic samples that stand beside the batch this frame is in (the same for all its frames).
        iteration: place of that batch in its epoch.
    """

    name: str
    depth_mm: NDArray[np.float32]
    T_canon_view: NDArray[np.float32]
    joints_mm: NDArray[np.float32] | None = None
    synthetic: tuple[Synthetic, ...] = ()
    epoch: int = 0
    iteration: int = 0


class SyntheticSet:
    """``count`` images an epoch; the same in every epoch with ``repeat_first`` and, as ``data[index]``, for validation.

    Validation images are none of training's.
    """

    def __init__(self, count: int, seed: int, *, validation: bool = False, repeat_first: bool = False) -> None:
        self.count, self.validation, self.repeat_first = count, validation, repeat_first
        self.seed = seed + VALIDATION_SEED if validation else seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> Synthetic:
        if self.validation:
            return Synthetic(self.seed, 0, key)
        epoch, index = key
        return Synthetic(self.seed, 0 if self.repeat_first else epoch, index)


@dataclass
class CapturedSet:
    """Frames of a split; training samples carry no labels.

    Args:
        shards: prepared frames.
        limit: use this many, evenly spread; 0 for all.
        labels: give the annotations (validation).
        seed, batch_size, world, repeat_first: of the run, so that a frame knows which batch it will be in; a first
            batch that is repeated has the same synthetic images in every epoch.
        synthetic_images: that stand beside each batch.
        in_order: deal the frames in the order of the recording whatever the run's permutation (``--temporal``).
    """

    shards: Shards
    limit: int = 0
    labels: bool = False
    seed: int = 0
    batch_size: int = 1
    world: int = 1
    repeat_first: bool = False
    synthetic_images: int = 0
    in_order: bool = False
    indices: NDArray[np.intp] = field(init=False)

    def __post_init__(self) -> None:
        self.indices = spread(len(self.shards), self.limit)
        self._places = lru_cache(2)(self._epoch_places)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_places"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._places = lru_cache(2)(self._epoch_places)

    def __len__(self) -> int:
        return len(self.indices)

    def _epoch_places(self, epoch: int) -> NDArray[np.intp]:
        """Place in the epoch's order of every sample."""
        order = EpochBatches(
            len(self), self.batch_size, seed=self.seed, epoch=epoch, world=self.world, repeat_first=self.repeat_first
        ).order()
        return np.argsort(order)

    def __getitem__(self, key: SampleKey | int) -> Captured:
        if isinstance(key, tuple):
            epoch, index = key
            place = int(self._places(epoch)[index])
            iteration, within = divmod(place, self.batch_size * self.world)
            first = (iteration * self.world + within % self.world) * self.synthetic_images
            drawn = 0 if self.repeat_first else epoch
            beside = tuple(Synthetic(self.seed, drawn, first + i) for i in range(self.synthetic_images))
            return self.frame(place if self.in_order else index, beside, epoch, iteration)
        return self.frame(key)

    def frame(self, index: int, beside: tuple[Synthetic, ...] = (), epoch: int = 0, iteration: int = 0) -> Captured:
        where = int(self.indices[index])
        record, name = self.shards[where], self.shards.name(where)
        depth = np.array(record["depth_mm"])
        if not np.isfinite(depth).all():
            raise DataError(
                f"frame {name} has depth that is not finite", path=self.shards.folder, remedy="prepare the shards again"
            )
        joints = np.array(record["joints_mm"]) if self.labels else None
        return Captured(name, depth, np.array(record["T_canon_view"]), joints, beside, epoch, iteration)


class Collate:
    """Samples of either set to a batch; synthetic images are made here, a whole batch at once.

    A batch has ``name`` and, as far as there are such samples, ``synthetic`` (:class:`.synth.SynthBatch`), ``depth_mm``
    (B, V, 64, 64), ``T_canon_view`` (B, V, 4, 4), ``joints_mm`` (B, V, 36, 3), ``epoch`` and ``iteration``.
    """

    def __init__(self, hand: Hand, options: SynthOptions) -> None:
        self.hand, self.options = hand, options

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        first = samples[0]
        if isinstance(first, Synthetic):
            names = [f"synthetic {s.seed}/{s.epoch}/{s.index}" for s in samples]
            return {"name": names, "synthetic": self.synthesize(samples), "epoch": first.epoch, "iteration": 0}
        batch: dict[str, Any] = {
            "name": [s.name for s in samples],
            "depth_mm": torch.from_numpy(np.stack([s.depth_mm for s in samples])),
            "T_canon_view": torch.from_numpy(np.stack([s.T_canon_view for s in samples])),
            "epoch": first.epoch,
            "iteration": first.iteration,
        }
        if first.joints_mm is not None:
            batch["joints_mm"] = torch.from_numpy(np.stack([s.joints_mm for s in samples]))
        if first.synthetic:
            batch["synthetic"] = self.synthesize(list(first.synthetic))
        return batch

    def synthesize(self, samples: list[Synthetic]) -> Any:
        o = self.options
        counters = samples[0].seed, samples[0].epoch, [s.index for s in samples]
        draws = draw(*counters, extra_mode=o.extra_mode)
        if o.jitter != 1.0:
            pose = draws.pose.clone()
            pose[:, 3:6] *= o.jitter
            draws = draws._replace(pose=pose)
        return synthesize(
            draws,
            self.hand,
            interpolation=o.interpolation,
            center=o.center,
            noise=pixel_draws(*counters),
            noise_rounding=o.noise_rounding,
        )


def open_shards(root: str, split: str, *, views: int = 1) -> Shards:
    """The prepared frames of a split, of at least so many views.

    Raises:
        MissingFileError, DataError: no root, nothing prepared there, another version, or fewer views.
    """
    if not root:
        raise DataError(
            "no captured frames are given",
            remedy="name a folder made by python -m selfsup_fitting.prepare, or train with --mode synthetic",
        )
    shards = Shards(Path(root) / split)
    found = shards.manifest.views
    if len(found) < views:
        raise DataError(
            f"has {len(found)} view (camera {', '.join(map(str, found))}) where at least {views} are asked for",
            path=shards.folder,
            remedy="prepare it with --views 1,2,3, or train with --no-mv-consistency",
        )
    return shards


def augmented(depth: Tensor, options: AugmentOptions) -> tuple[Tensor, Tensor]:
    """Captured crops as the network sees them in training, and what x and y of its answer are divided by.

    Draws from torch's generator, which the training loop seeds for every step.

    Args:
        depth: (N, 64, 64) normalised.
        options: shares and kernels.

    Returns:
        (N, 64, 64) and (N, 2) factors of u and v (ones where nothing shrank).
    """
    device = depth.device
    factors = torch.ones(len(depth), 2)
    shrunk, spread_uv, chance = torch.rand(len(depth), 1), torch.rand(len(depth), 2), torch.rand(())
    if float(chance) < options.resize_share:
        factors = 0.75 + 0.2 * shrunk + 0.1 * (spread_uv - 0.5)
        depth = shrink(depth, factors[:, 0].to(device), factors[:, 1].to(device))
    if options.depth_resample:
        lost = (torch.rand(depth.shape) < DROPPED).to(device)
        depth = resample(depth, options.depth_resample, lost, padding=options.padding)
    return depth, factors.to(device)


def normalised(depth_mm: Tensor) -> Tensor:
    """(..., 64, 64) mm to the network's input; what is behind the background stays there if the crops kept it."""
    return depth_mm * DEPTH_SCALE
