"""Writes a tiny EgoDexter in the layout public readers describe: colour, depth, colour warped onto depth, label lines.

    python -m shared.standin.all --out DIR --datasets egodexter

2-D labels are whole pixels with -1 for a missing tip, 3-D labels have 0 there; the last frame has no tip at all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.camera import project
from shared.datasets.egodexter import IMAGE_SIZE, K_COLOR, K_DEPTH, depth_to_color
from shared.safe_io import atomic_write_text
from shared.skeletons import reorder
from shared.standin.views import sample_hand, save_image, view

SEQUENCES = ("Desk", "Rotunda")


def write_egodexter(root: str | Path, *, frames: int = 8, seed: int = 0) -> None:
    """Lays out ``frames`` frames over two of the four sequences below ``root``."""
    lines: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in SEQUENCES}
    data = Path(root) / "data"
    for index in range(frames):
        sequence, n = SEQUENCES[index % 2], index // 2
        rng = np.random.default_rng((seed, index, 9))
        x, y, z = rng.uniform((-40, -30, 420), (40, 30, 520))
        hand = sample_hand(seed, index, side="left", center_mm=(x, y, z))
        tips = reorder(hand.joints_mm, "mano", "fingertips")
        depth = view(hand, K_DEPTH, IMAGE_SIZE, seed=seed, index=index, room=False)
        color = view(hand.moved(depth_to_color), K_COLOR, IMAGE_SIZE, seed=seed, index=index).rgb
        pictures: dict[str, NDArray[np.uint8] | NDArray[np.uint16]] = {
            "color": color,
            "depth": depth.depth_mm.round().astype(np.uint16),
            "color_on_depth": np.where(depth.mask[..., None], np.maximum(depth.rgb, 1), 0).astype(np.uint8),
        }
        for kind, pixels in pictures.items():
            save_image(data / sequence / kind / f"image_{n:05d}_{kind}.png", pixels, compress_level=1)
        seen = (rng.uniform(size=5) > 0.2) & (index < frames - 1)
        uv = project(tips, K_DEPTH).round().astype(int)
        lines[sequence][0].append("".join(f"{u},{v};" if ok else "-1,-1;" for (u, v), ok in zip(uv, seen, strict=True)))
        lines[sequence][1].append(
            "".join(f"{a:.4f},{b:.4f},{c:.4f};" if ok else "0,0,0;" for (a, b, c), ok in zip(tips, seen, strict=True))
        )
    for sequence, (flat, solid) in lines.items():
        atomic_write_text(data / sequence / "annotation.txt", "".join(f"{line}\n" for line in flat))
        atomic_write_text(data / sequence / "annotation.txt_3D.txt", "".join(f"{line}\n" for line in solid))
