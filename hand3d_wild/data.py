"""From a prepared store to batches: cut, resize, noise, heat maps, targets (the reference's loader, ``datasets.py``).

A training sample is a random 306 x 306 part of the 320 x 320 crop, resized to the network's input, with Gaussian pixel
noise; the 22 numbers and all 2-D targets are in the frame of 256 pixels whatever the input's size. Validation takes
the middle part without noise. There are no flips or colour changes, as in the reference; turns and changes of size on
request.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hand3d_wild.config import DataOptions, HeatmapOptions
from hand3d_wild.crop import CUT, MIDDLE, NETWORK, STORED, cut_points, cut_rgb, turn_matrix
from hand3d_wild.heatmaps import SIGMA, gaussian_maps
from hand3d_wild.store import MADE, SOURCES, SPLITS, Split, open_split, text
from shared.errors import DataError
from shared.training import sample_rng

Batch = dict[str, Any]
_NOISE = 1 << 20  # numbers in the pool that pixel noise is taken from, at least


def noise_pool(seed: int, size: int = NETWORK) -> NDArray[np.float32]:
    """Standard normal numbers; a sample takes a stretch from a random place (drawing its own costs ten times more).

    There are at least twice as many as a picture of edge ``size`` needs.
    """
    return np.random.default_rng((seed, 0x2015E)).standard_normal(max(_NOISE, 6 * size * size), np.float32)


def with_noise(picture: NDArray[np.uint8], sigma: float, pool: NDArray[np.float32], start: int) -> NDArray[np.float32]:
    """A picture in 0..1 with noise of standard deviation ``sigma`` (of 255) on it, clipped like the reference's."""
    out = picture.astype(np.float32)
    if sigma:
        count = out.size
        out += sigma * pool[start : start + count].reshape(out.shape)
        np.clip(out, 0, 255, out=out)
    out *= np.float32(1 / 255)
    return out


def cut_maps(
    points: NDArray[np.floating], peaks: NDArray[np.floating], start: tuple[float, float], size: int
) -> NDArray[np.float32]:
    """(size, size, 21) heat maps beside a cut of a stored crop: joints (21, 2) in the crop's pixels, peaks in 0..1."""
    return gaussian_maps((points - start) * (size / CUT), peaks, size, sigma=SIGMA * STORED / CUT)


class WildSamples:
    """A split of a store as samples; ``samples[(epoch, index)]`` is a training sample, ``samples[index]`` a test one.

    Args:
        split: from :func:`hand3d_wild.store.open_split`.
        options, heatmaps: see :mod:`hand3d_wild.config`.
        size: edge of the network's input.
        form: ``"rgb"`` or ``"heatmaps"``.
        seed: of the augmentation.
        limit: this many, evenly spread; 0 for all.

    Raises:
        DataError: no picture in the split, left hands that were not mirrored, or no picture with detections where
            these are asked for.
    """

    def __init__(
        self,
        split: Split,
        options: DataOptions,
        *,
        heatmaps: HeatmapOptions | None = None,
        size: int = NETWORK,
        form: str = "rgb",
        seed: int = 0,
        limit: int = 0,
    ) -> None:
        self.split, self.options, self.size, self.seed = split, options, size, seed
        self.heatmaps = (heatmaps or HeatmapOptions()) if form == "heatmaps" else None
        made = split.rows["picture"] == MADE
        if (made & split.rows["left"]).any():
            count = int((made & split.rows["left"]).sum())
            raise DataError(
                f"{count} of {int(made.sum())} pictures of the split {split.name} show left hands; the network knows "
                "right ones only",
                remedy="prepare the store again without --no-mirror",
            )
        self.without = 0
        if self.heatmaps is not None and self.heatmaps.source == "detections":
            self.without = int((made & ~split.rows["detected"]).sum())
            made &= split.rows["detected"]
            if not made.any():
                raise DataError(
                    f"no picture of the split {split.name} has detections",
                    remedy="prepare the store with --detections DIR, or take --heatmaps.source labels",
                )
        indices = np.flatnonzero(made)
        if not len(indices):
            raise DataError(f"the split {split.name} holds no picture", remedy="prepare the store again")
        if limit and limit < len(indices):
            indices = indices[np.linspace(0, len(indices) - 1, limit).round().astype(int)]
        self.indices = indices
        self.rows = split.rows[indices]  # in memory: 1 kB each
        self.pool = noise_pool(seed, size)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def has_3d(self) -> bool:
        return bool(self.rows["has_3d"].all())

    @property
    def summary(self) -> str:
        """One line for the log."""
        parts = ", ".join(
            f"{name} {count}" for i, name in enumerate(SOURCES) if (count := int((self.rows["source"] == i).sum()))
        )
        masks = int((self.rows["mask"] == MADE).sum())
        left_out = f"; left out {self.without} without detections" if self.without else ""
        return (
            f"{self.split.name}: {len(self)} pictures ({parts}), {int(self.rows['has_3d'].sum())} with 3-D joints, "
            f"{masks} with masks{left_out}"
        )

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        train = isinstance(key, tuple)
        index = key[1] if isinstance(key, tuple) else key
        row, place = self.rows[index], int(self.indices[index])
        start, offset = (int(MIDDLE), int(MIDDLE)), 0
        rng, turn, zoom = None, 0.0, 1.0
        if isinstance(key, tuple):
            rng = sample_rng(self.seed, *key)
            start = (int(rng.integers(11)), int(rng.integers(11)))
            offset = int(rng.integers(len(self.pool) - 3 * self.size * self.size))
            if self.options.turn or self.options.zoom:
                turn = math.radians(rng.uniform(-self.options.turn, self.options.turn))
                zoom = 1 + rng.uniform(-self.options.zoom, self.options.zoom)
        crop, points = self.split.pictures[place], row["points"]
        mask = self.split.mask(place) if row["mask"] == MADE else np.zeros((STORED, STORED), np.uint8)
        ratio = zoom * NETWORK / CUT * STORED / (int(row["box"][3] - row["box"][2]) + 1)  # pixels per camera pixel
        joints_mm = row["joints_mm"] if row["has_3d"] else np.zeros((21, 3))
        matrix = None
        if turn != 0 or zoom != 1:
            matrix = turn_matrix(turn, zoom)
            points = points @ matrix[:, :2].T + matrix[:, 2]
            middle = joints_mm.mean(0) * [1, 1, 0]  # seen as by the scaled camera of the network: depth stays
            flat = (joints_mm - middle)[:, :2] @ matrix[:, :2].T / zoom
            joints_mm = np.concatenate((flat, joints_mm[:, 2:]), 1) + middle
        picture = cut_rgb(crop, start, size=self.size, matrix=matrix)
        image = with_noise(picture, self.options.noise if train else 0.0, self.pool, offset)
        if self.heatmaps is not None:
            maps = self.maps(row, start, rng, matrix)
            image = np.concatenate((image, maps), -1)
        if self.options.depth == "reference":  # x and y scaled, z not: README, ledger
            joints_mm, ratio = joints_mm * [ratio, ratio, 1], 1.0
        points = np.where(row["visible"][:, None], cut_points(points, start), 0)
        return {
            "name": text(row["name"]),
            "image": image,
            "joints_2d": points.astype(np.float32),
            "visible": row["visible"],
            "joints_mm": joints_mm.astype(np.float32),
            "valid_3d": bool(row["has_3d"]),
            "depth_ratio": np.float32(ratio),
            "mask": cut_rgb(mask, start, matrix=matrix),
            "valid_mask": row["mask"] == MADE,
            "palm": bool(row["palm"]) and self.options.root == "palm",
        }

    def maps(
        self,
        row: Any,
        start: tuple[int, int],
        rng: np.random.Generator | None,
        matrix: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """(size, size, 21) heat maps of a row's joints or detections, in 0..1; ``rng`` shakes and drops them,
        ``matrix`` (2, 3) moves them as the picture."""
        assert self.heatmaps is not None
        if self.heatmaps.source == "detections":
            points, peaks = row["detections"][:, :2].astype(np.float64), row["detections"][:, 2].astype(np.float64)
        else:
            points, peaks = row["points"].copy(), row["visible"].astype(np.float64)
        if matrix is not None:
            points = points @ matrix[:, :2].T + matrix[:, 2]
        if rng is not None and self.heatmaps.source == "labels":
            points += rng.normal(0, self.heatmaps.jitter, (21, 2))
            peaks = np.where(rng.uniform(size=21) < self.heatmaps.missing, 0, peaks * rng.uniform(0.4, 0.9, 21))
        return cut_maps(points, np.clip(peaks, 0, 1), start, self.size)

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """A batch; pictures (B, C, S, S) float32 in channels-last memory, masks (B, 256, 256) float32."""
        batch: Batch = {"name": [sample["name"] for sample in samples]}
        for key in samples[0]:
            if key != "name":
                batch[key] = torch.from_numpy(np.stack([sample[key] for sample in samples]))
        batch["image"] = batch["image"].permute(0, 3, 1, 2)
        batch["mask"] = batch["mask"].float()
        return batch


def choose_val(options: DataOptions) -> Split | None:
    """The validation split that the options name, or None.

    Raises:
        DataError: the split that is named is not in the store.
    """
    from pathlib import Path

    if options.val_limit < 0:
        return None
    if options.val_split != "auto":
        return open_split(options.store, options.val_split)
    there = [name for name in SPLITS[::-1] if name != "train" and (Path(options.store) / name).is_dir()]
    return open_split(options.store, there[0]) if there else None
