"""A tiny ICVL tree made of the golden depth maps, written in a moment (the stand-in's renderer takes longer).

Imports no torch, so that a worker process which looks something up here starts quickly.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import Frame
from shared.datasets.icvl import SESSIONS
from sohandnet.prepare import Prepare, prepare
from sohandnet.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "sohandnet"


def golden_frame(index: int) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """Depth (240, 320) and labels (16, 3) u, v, d; the three golden frames in turn, each time moved a little."""
    with np.load(GOLDEN / f"preprocess_{(0, 2, 4)[index % 3]}.npz") as file:
        depth, uvd = file["depth"], file["joints_uvd"]
    shift = 5 * (index // 3)
    return np.roll(depth, (shift, -shift), (0, 1)), uvd + np.array([-shift, shift, 0])


def label_line(name: str, uvd: NDArray[np.float64]) -> str:
    return f"{name} " + " ".join(f"{x:.4f}" for x in uvd.ravel()) + "\n"


def write_tree(root: Path, *, train: int = 5, test: int = 3) -> Path:
    """The tree with ``train`` frames in two sessions and a rotated copy, and ``test`` in one sequence (two files)."""
    from shared.standin.views import save_image

    lines = []
    for i in range(train):
        name = f"{SESSIONS[i % 2]}/image_{i:04d}.png"
        depth, uvd = golden_frame(i)
        save_image(root / "Training/Depth" / name, depth)
        lines.append(label_line(name, uvd))
        if i == 0:
            save_image(root / "Training/Depth/90" / name, depth)
            lines.append(label_line(f"90/{name}", uvd))
    (root / "Training/labels.txt").write_text("".join(lines))
    lines = []
    for i in range(test):
        name = f"test_seq_1/image_{i:04d}.png"
        depth, uvd = golden_frame(i + train)
        save_image(root / "Testing/Depth" / name, depth)
        lines.append(label_line(name, uvd))
    (root / "Testing/test_seq_1.txt").write_text("".join(lines[:-1]))
    (root / "Testing/test_seq_2.txt").write_text(lines[-1])
    return root


def make_store(root: Path, out: Path, **options: object) -> Store:
    """Prepares a tree in this process."""
    given: dict[str, object] = {"workers": 0, **options}
    return prepare(Prepare(data=str(root), out=str(out), **given), progress=False)  # type: ignore[arg-type]


class DeadlyFrames:
    """Frames whose reader takes the whole process down."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Frame:
        os._exit(9)

    def names(self) -> list[str]:
        return [f"s/{i}" for i in range(4)]
