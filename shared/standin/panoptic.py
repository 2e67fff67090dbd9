"""Writes a tiny Panoptic hand143 in the official layout: full HD JPEGs of right hands and one label file.

python -m shared.standin.all --out DIR --datasets panoptic
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from shared.camera import intrinsics, project
from shared.datasets.panoptic import LABEL_FILE
from shared.safe_io import atomic_write_text
from shared.skeletons import reorder
from shared.standin.views import sample_hand, save_image, view

SIZE = (1920, 1080)
K = intrinsics(1400, 1400, 960, 540)  # made up: the set tells no camera


def write_panoptic(root: str | Path, *, frames: int = 4, seed: int = 0) -> None:
    """Lays out ``frames`` entries below ``root/hand143_panopticdb``. Every second entry lacks one or two joints."""
    folder = Path(root) / "hand143_panopticdb"
    entries = []
    for index in range(frames):
        rng = np.random.default_rng((seed, index, 9))
        x, y, z = rng.uniform((-400, -200, 1000), (400, 200, 1400))
        hand = sample_hand(seed, index, side="right", center_mm=(x, y, z))
        points = project(reorder(hand.joints_mm, "mano", "thumb_first"), K)
        seen = np.ones(21)
        seen[rng.choice(21, index % 2 * (1 + index // 2 % 2), replace=False)] = 0
        path = f"imgs/{index:08d}.jpg"
        entries.append(
            {
                "dataset": "hand143_panopticdb",
                "img_paths": path,
                "img_width": float(SIZE[0]),
                "img_height": float(SIZE[1]),
                "objpos": points.mean(0).tolist(),
                "scale_provided": float(np.ptp(points, axis=0).max() / 200),
                "joint_self": [
                    [*(point if v else (0.0, 0.0)), v] for point, v in zip(points.tolist(), seen, strict=True)
                ],
            }
        )
        save_image(folder / path, view(hand, K, SIZE, seed=seed, index=index).rgb, quality=90)
    atomic_write_text(folder / LABEL_FILE, json.dumps({"root": entries}))
