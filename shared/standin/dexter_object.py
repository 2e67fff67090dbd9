"""Writes a tiny Dexter+Object in the layout public readers describe: two cameras, semicolon-separated label lines.

    python -m shared.standin.all --out DIR --datasets dexter_object

3-D labels have x left and y up, as those readers undo; z = 32001 marks a missing tip, and the last frame has no tip at
all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared.camera import project
from shared.datasets.dexter_object import COLOR_SIZE, DEPTH_SIZE, K_COLOR, K_DEPTH, MISSING, depth_to_color
from shared.safe_io import atomic_write_text
from shared.skeletons import reorder
from shared.standin.views import sample_hand, save_image, view

SEQUENCES = ("Grasp1", "Rotate")


def write_dexter_object(root: str | Path, *, frames: int = 8, seed: int = 0) -> None:
    """Lays out ``frames`` frames over two of the six sequences below ``root``."""
    lines: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in SEQUENCES}
    data = Path(root) / "data"
    for index in range(frames):
        sequence, n = SEQUENCES[index % 2], index // 2
        rng = np.random.default_rng((seed, index, 9))
        x, y, z = rng.uniform((-40, -30, 420), (40, 30, 520))
        hand = sample_hand(seed, index, side="left", center_mm=(x, y, z))
        tips = reorder(hand.joints_mm, "mano", "fingertips")
        depth = view(hand, K_DEPTH, DEPTH_SIZE, seed=seed, index=index).depth_mm
        color = view(hand.moved(depth_to_color), K_COLOR, COLOR_SIZE, seed=seed, index=index).rgb
        whole = np.where(depth > 0, depth.round(), MISSING).astype(np.uint16)
        save_image(data / sequence / "depth" / f"image_{n:05d}_depth.png", whole, compress_level=1)
        save_image(data / sequence / "color" / f"image_{n:05d}_color.bmp", color)
        seen = (rng.uniform(size=5) > 0.2) & (index < frames - 1)
        uv = project(tips, K_DEPTH).round().astype(int)
        flat = [f"{u}, {v}" if ok else "-1, -1" for (u, v), ok in zip(uv, seen, strict=True)]
        solid = [
            f"{-a:.4f}, {-b:.4f}, {c:.4f}" if ok else f"0, 0, {MISSING}"
            for (a, b, c), ok in zip(tips, seen, strict=True)
        ]
        corners = [f"{c}, {c}, {400 + c}" for c in range(3)]  # of the object; readers of hands pass them over
        lines[sequence][0].append("; ".join(flat))
        lines[sequence][1].append("; ".join(solid + corners))
    for sequence, (flat, solid) in lines.items():
        folder = data / sequence / "annotations"
        atomic_write_text(folder / f"{sequence}2D.txt", "".join(f"{line}\n" for line in flat))
        atomic_write_text(folder / f"{sequence}3D.txt", "".join(f"{line}\n" for line in solid))
