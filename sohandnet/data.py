"""Frames of a store as samples and batches of SO-HandNet.

A batch is what the networks take, float32 tensors unless said otherwise:

===========  ==========  ==========================================================================
pc           (B, 3, N)   normalised positions
sn           (B, 3, N)   unit normals in the same axes
node         (B, 3, M)   SOM nodes
node_knn     (B, M, K)   int64, nearest nodes of each node, itself first
gt_xyz       (B, 3, J)   normalised joints
rotation     (B, 3, 3)   axes of the oriented box as columns
length       (B,)        edge that was divided by, mm of the store's space: error in mm = length * |difference|
offset       (B, 3)      world = ((p + offset) * length) @ rotation^T
index        (B,)        int64, place in the split
labelled     (B,)        bool, whether the label may be used
name         list        names of the frames
===========  ==========  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataError
from shared.training import SampleKey, sample_rng
from sohandnet.augment import augment
from sohandnet.orient import Box, denormalise
from sohandnet.store import Split, space_of

if TYPE_CHECKING:
    from sohandnet.config import AugmentOptions

Sample = dict[str, Any]


class StoreSamples:
    """A split's frames as samples: ``samples[index]`` as they are, ``samples[(epoch, index)]`` augmented.

    The augmentation is a function of (seed, epoch, place in the split) alone, whatever subset or loader asks for it.

    Args:
        split: of a store.
        indices: places in the split, in order; all by default.
        labelled: (len(split),) bool, which frames' labels may be used; all by default.
        augment: ranges; None or mode ``"none"`` leaves samples as they are.
        seed: of the augmentation.

    Raises:
        DataError: places or flags that do not fit the split.
    """

    def __init__(
        self,
        split: Split,
        *,
        indices: ArrayLike | None = None,
        labelled: ArrayLike | None = None,
        augment: AugmentOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.split, self.augment, self.seed = split, augment, seed
        self.indices = np.arange(len(split)) if indices is None else np.asarray(indices, np.int64)
        self.labelled = np.ones(len(split), np.bool_) if labelled is None else np.asarray(labelled, np.bool_)
        if self.labelled.shape != (len(split),):
            raise DataError(f"labelled: expected a flag for each of {len(split)} frames, got {self.labelled.shape}")
        if len(self.indices) and (self.indices.min() < 0 or self.indices.max() >= len(split)):
            raise DataError(
                f"indices: expected places from 0 to {len(split) - 1}, got {self.indices.min()} to {self.indices.max()}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        epoch, place = (None, key) if isinstance(key, (int, np.integer)) else key
        index = int(self.indices[place])
        arrays = self.split.arrays
        cloud = arrays["cloud"][index]
        sample: Sample = {
            "pc": np.array(cloud[:3]),
            "sn": np.array(cloud[3:]),
            "node": np.array(arrays["node"][index]),
            "node_knn": arrays["node_knn"][index].astype(np.int64),
            "gt_xyz": np.array(arrays["joints"][index]),
            "rotation": arrays["rotation"][index].astype(np.float32),
            "length": np.float32(arrays["length"][index]),
            "offset": arrays["offset"][index].astype(np.float32),
            "index": index,
            "labelled": bool(self.labelled[index]),
            "name": self.split.names[index],
        }
        if epoch is not None and self.augment is not None and self.augment.mode != "none":
            augment(sample, self.augment, sample_rng(self.seed, epoch, index))
        return sample


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples -> the batch of the module's table."""
    import torch

    batch: dict[str, Any] = {
        key: torch.from_numpy(np.stack([s[key] for s in samples]))
        for key in ("pc", "sn", "node", "node_knn", "gt_xyz", "rotation", "length", "offset")
    }
    batch["index"] = torch.tensor([s["index"] for s in samples])
    batch["labelled"] = torch.tensor([s["labelled"] for s in samples])
    batch["name"] = [s["name"] for s in samples]
    return batch


def batch_joints_mm(pred: ArrayLike, batch: dict[str, Any], options: Mapping[str, Any]) -> NDArray[np.float64]:
    """(B, J, 3) camera-frame mm (OpenCV axes, true) of normalised joints (B, 3, J), laid out as ``gt_xyz``.

    Args:
        pred: array or CPU tensor without gradient.
        batch: of these frames.
        options: of their store.
    """
    box = Box(*(np.asarray(batch[name], np.float64) for name in ("rotation", "length", "offset")))
    return space_of(options).to_camera(denormalise(np.swapaxes(np.asarray(pred, np.float64), 1, 2), box))


def fixed_points(cloud: ArrayLike, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(count, 6) of a stored cloud (n, 6): itself, a random subset, or padded with random repeats.

    Positions and normals share one index set; the original subsampled neither and overwrote normals (ledger Q6).
    """
    points = np.asarray(cloud, np.float32)
    if len(points) > count:
        return points[rng.permutation(len(points))[:count]]
    return np.concatenate([points, points[rng.integers(0, len(points), count - len(points))]])


def limited(count: int, limit: int) -> NDArray[np.int64]:
    """Places of ``limit`` of ``count`` frames, evenly spread; all for 0 or more than there are."""
    if limit < 0:
        raise DataError(f"a limit of frames must not be negative, got {limit}")
    size = min(limit or count, count)
    return np.arange(size, dtype=np.int64) * count // max(size, 1)
