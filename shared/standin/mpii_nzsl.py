"""Writes a tiny MPII+NZSL in the official layout: JPEGs of several sizes, left and right hands, one JSON each.

python -m shared.standin.all --out DIR --datasets mpii_nzsl
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.camera import intrinsics, project
from shared.safe_io import atomic_write_text
from shared.skeletons import reorder
from shared.standin.scene import Side
from shared.standin.views import sample_hand, save_image, view

SIZES = ((1280, 720), (640, 480), (720, 1280), (500, 375))


@dataclass(frozen=True)
class LabelledPicture:
    """What goes into one pair of files."""

    name: str
    rgb: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    keypoints_2d: NDArray[np.float64]
    side: Side
    is_mpii: bool


def write_mpii_nzsl(root: str | Path, *, frames: int = 8, seed: int = 0) -> None:
    """Lays out ``frames`` pairs below ``root/hand_labels``; a quarter of them is the test part."""
    for index, picture in enumerate(scenes(frames=frames, seed=seed)):
        folder = Path(root) / "hand_labels" / ("manual_test" if index % 4 == 3 else "manual_train")
        save_image(folder / f"{picture.name}.jpg", picture.rgb, quality=90)
        points = picture.keypoints_2d
        low, high = points.min(0), points.max(0)
        label = {
            "hand_pts": [[*point, 1.0] for point in points.tolist()],
            "hand_box_center": ((low + high) / 2).tolist(),
            "is_left": int(picture.side == "left"),
            "is_mpii": int(picture.is_mpii),
            "head_box": [[0.0, 0.0], [60.0, 80.0]],
            "head_size": 100.0,
            "mpii_body_pts": [[0.0, 0.0, 0.0]] * 16,
        }
        if picture.is_mpii:
            label |= {"mpii_image": f"{index:09d}.jpg", "mpii_annorect_idx": 0}
        atomic_write_text(folder / f"{picture.name}.json", json.dumps(label))


def scenes(*, frames: int, seed: int) -> Iterator[LabelledPicture]:
    """The pictures of ``write_mpii_nzsl(frames, seed)`` with the mask of the hand."""
    for index in range(frames):
        rng = np.random.default_rng((seed, index, 9))
        side: Side = "left" if index % 2 else "right"
        width, height = SIZES[index % len(SIZES)]
        K = intrinsics(width, width, (width - 1) / 2, (height - 1) / 2)
        x, y, z = rng.uniform((-60, -30, 600), (60, 30, 800))
        hand = sample_hand(seed, index, side=side, center_mm=(x, y, z))
        picture = view(hand, K, (width, height), seed=seed, index=index)
        points = project(reorder(hand.joints_mm, "mano", "thumb_first"), K)
        yield LabelledPicture(f"{index:09d}_01_{side[0]}", picture.rgb, picture.mask, points, side, index % 3 == 0)
