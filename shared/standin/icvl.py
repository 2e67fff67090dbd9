"""A small ICVL tree without ICVL: stand-in hands in the format of ``shared.datasets.icvl``.

Two training sessions; one rotated copy (by 45 degrees in the plane of the picture) of each original; two test sequences
whose label lines end in a blank and CR CR LF like the real ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared import camera
from shared.datasets.icvl import NO_READING, SESSIONS, SIZE, intrinsics
from shared.errors import DataError
from shared.safe_io import atomic_path
from shared.standin.scene import Float, to_skeleton
from shared.standin.views import depth_picture, sample_hand, save_image, write_noisy_centers

_ANGLE = 45


def write_icvl(root: str | Path, *, frames: int = 6, seed: int = 0) -> None:
    """Writes ``frames`` original training frames with their rotated copies, and ``frames`` test frames.

    Centre files of V2V-PoseNet are in ``icvl_center``. Half of the pictures have 0 where nothing is seen, half 32001.
    """
    if frames < 2:
        raise DataError(f"frames: expected at least 2 (there are two test sequences), got {frames}")
    root = Path(root)
    half = (frames + 1) // 2
    names = {"train": [], "test_seq_1": [], "test_seq_2": []}  # type: dict[str, list[str]]
    for i in range(frames):
        session, number = (SESSIONS[0], i) if i < half else (SESSIONS[1], i - half)
        sequence = "test_seq_1" if i < half else "test_seq_2"
        names["train"].append(f"{session}/image_{number:04d}.png")
        names[sequence].append(f"{sequence}/image_{number:04d}.png")
    folder = root / "Training" / "Depth"
    hands = [_hand(seed, i) for i in range(frames)]
    labels = [_write(folder / name, *hand, i) for i, (name, hand) in enumerate(zip(names["train"], hands, strict=True))]
    turned = [f"{_ANGLE}/{name}" for name in names["train"]]
    labels += [_write(folder / name, *_rotated(*hand), 0) for name, hand in zip(turned, hands, strict=True)]
    _write_labels(root / "Training" / "labels.txt", names["train"] + turned, labels, "\n")
    _centers(root / "icvl_center" / "center_train_refined.txt", labels, seed)

    every: list[Float] = []
    for sequence in ("test_seq_1", "test_seq_2"):
        labels = []
        for name in names[sequence]:
            index = frames + len(every) + len(labels)
            labels.append(_write(root / "Testing" / "Depth" / name, *_hand(seed, index), index))
        _write_labels(root / "Testing" / f"{sequence}.txt", names[sequence], labels, " \r\r\n")
        every += labels
    _centers(root / "icvl_center" / "center_test_refined.txt", every, seed + 1)


def _hand(seed: int, index: int) -> tuple[Float, Float]:
    rng = np.random.default_rng((seed, index, 2))
    center = rng.uniform([-40, -30, 300], [40, 30, 420])
    hand = sample_hand(seed, index, side="right", center_mm=center)
    return hand.verts_mm, to_skeleton(hand.joints_mm, "icvl")


def _rotated(verts: Float, joints: Float) -> tuple[Float, Float]:
    """Turned about the optical axis, which turns the picture about its principal point."""
    angle = np.deg2rad(_ANGLE)
    R = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return verts @ R.T, joints @ R.T


def _write(path: Path, verts: Float, joints: Float, index: int) -> Float:
    """Writes the picture; returns the label (16, 3) u, v, d."""
    depth = depth_picture(verts, intrinsics(), SIZE)
    depth[depth == 0] = NO_READING if index % 2 else 0
    save_image(path, depth)
    return camera.xyz_to_uvd(joints, intrinsics())


def _write_labels(path: Path, names: list[str], labels: list[NDArray[np.float64]], ending: str) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="") as file:
        for name, uvd in zip(names, labels, strict=True):
            file.write(f"{name} " + " ".join(f"{x:.3f}" for x in uvd.ravel()) + ending)


def _centers(path: Path, labels: list[Float], seed: int) -> None:
    joints = camera.uvd_to_xyz(np.stack(labels), intrinsics())
    write_noisy_centers(path, joints, np.random.default_rng((seed, 3)), y_up=False)
