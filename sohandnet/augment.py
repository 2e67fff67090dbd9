"""Augmentation of normalised clouds, set right, and the original's for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sohandnet.config import AugmentOptions

CUT, NODE_CUT = 5.0, 2.5  # jitter is cut at this many standard deviations (0.05 and 0.1 box lengths in the original)
_POINTS = ("pc", "sn", "node", "gt_xyz")


def augment(sample: dict[str, Any], options: AugmentOptions, rng: np.random.Generator) -> None:
    """Changes one sample of ``sohandnet.data`` in place.

    ``corrected``: a turn about z, jitter, and one scale. Positions, normals, nodes and joints turn together and normals
    stay unit vectors. ``rotation`` turns along and ``offset`` turns and scales along, so that what is de-normalised is
    the frame's hand, larger or smaller by the scale as seen from the camera. ``length`` stays: joints are scaled, so
    length times a normalised distance is the distance in mm on that hand. ``node_knn`` stays that of the stored nodes.

    ``reference`` (README, ledger Q19): jitter and scale also act on the normals, and the scale on length *and*
    offset, by which errors in mm come out scaled twice; there is no turn.

    Args:
        sample: arrays (3, ...) float32, see ``sohandnet.data``.
        options: ranges; its mode is one of the two above.
        rng: of this sample.
    """
    correct = options.mode == "corrected"
    sample["pc"] = sample["pc"] + _jitter(rng, sample["pc"].shape, options.jitter, CUT)
    sample["sn"] = sample["sn"] + _jitter(rng, sample["sn"].shape, options.jitter, CUT)
    sample["node"] = sample["node"] + _jitter(rng, sample["node"].shape, options.node_jitter, NODE_CUT)
    scale = np.float32(rng.uniform(options.scale_min, options.scale_max))
    for key in ("pc", "node", "gt_xyz", "offset"):
        sample[key] = sample[key] * scale
    if not correct:
        sample["sn"] = sample["sn"] * scale
        sample["length"] = sample["length"] * scale
        return
    sample["sn"] = sample["sn"] / np.maximum(np.linalg.norm(sample["sn"], axis=0, keepdims=True), np.float32(1e-6))
    angle = np.deg2rad(rng.uniform(-options.rotate_deg, options.rotate_deg))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
    for key in _POINTS:
        sample[key] = turn @ sample[key]
    sample["offset"] = turn @ sample["offset"]
    sample["rotation"] = sample["rotation"] @ turn.T


def _jitter(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, cut: float) -> NDArray[np.float32]:
    noise = rng.standard_normal(shape, np.float32)
    return np.clip(noise, -cut, cut) * np.float32(sigma)
