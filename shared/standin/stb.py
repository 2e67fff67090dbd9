"""Writes a tiny STB in the official layout: four cameras, ``handPara`` label files, left hands.

    python -m shared.standin.all --out DIR --datasets stb

The label files are MATLAB 5 with a fixed header text, so that the same seed gives the same bytes.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.stb import BASELINE_MM, IMAGE_SIZE, Camera, K, color_to_depth, depth_to_color, left_to_right
from shared.errors import DataError
from shared.safe_io import atomic_path
from shared.skeletons import reorder
from shared.standin.views import Hand, draw_all, sample_hand, save_image, view

SEQUENCES = tuple(f"B{i}{kind}" for i in range(1, 7) for kind in ("Counting", "Random"))  # B1: the test split
SMALL, FEW = 120, 4  # fewer moments than this are spread over the first sequences only, two of them the test split's


def write_stb(root: str | Path, *, frames: int = 8, seed: int = 0, workers: int = 1) -> None:
    """Lays out ``frames`` moments (four pictures each) below ``root``, over the twelve sequences; below 120 moments
    over four. All four people are in every sequence: as in STB, sequences differ in what the hand does and where.

    Args:
        root: folder.
        frames: moments.
        seed: the same seed gives the same bytes, with any number of workers.
        workers: processes.

    Raises:
        DataError: fewer frames than sequences.
    """
    if frames < FEW:
        raise DataError(f"frames: at least {FEW}, one for each sequence; got {frames}")
    root = Path(root)
    labels: dict[str, list[NDArray[np.float64]]] = {}
    jobs = [(root, seed, index, *_place(index, frames)) for index in range(frames)]
    for job, pairs in zip(jobs, draw_all(_write_moment, jobs, workers), strict=True):
        for pair, joints in pairs.items():
            labels.setdefault(f"{job[3]}_{pair}", []).append(joints)
    for name, all_joints in labels.items():
        with atomic_path(root / "labels" / f"{name}.mat") as path:
            path.write_bytes(mat_bytes(np.stack(all_joints).transpose(2, 1, 0)))


def masks(*, frames: int, seed: int, camera: Camera) -> dict[str, NDArray[np.bool_]]:
    """{frame name: (480, 640) bool} where the hand is in one camera's pictures of ``write_stb(frames, seed)``."""
    found = {}
    for index in range(frames):
        sequence, n = _place(index, frames)
        hand = _moment(seed, index, n)[camera]
        found[f"{sequence}/{camera}_{n}"] = view(hand, K[camera], IMAGE_SIZE, seed=seed, index=index).mask
    return found


def to_stb(joints_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """``mano`` joints (21, 3) in STB's order; the palm centre is midway between wrist and middle base.

    With that palm the reader's wrist extrapolation (factor 2) gives the wrist back.
    """
    thumb_first = reorder(joints_mm, "mano", "thumb_first")
    fingers = [thumb_first[1 + 4 * i : 5 + 4 * i] for i in range(5)]
    palm = (thumb_first[0] + thumb_first[9]) / 2
    return np.concatenate([palm[None], *fingers[::-1]])


def encode_depth(depth_mm: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 with depth = R + 256 G in whole mm."""
    whole = depth_mm.round().astype(np.uint16)
    return np.stack((whole & 255, whole >> 8, np.zeros_like(whole)), -1).astype(np.uint8)


def mat_bytes(hand_para: NDArray[np.float64]) -> bytes:
    """A MATLAB 5 file with the variable ``handPara`` and no date in its header."""
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"handPara": hand_para})
    header = b"MATLAB 5.0 MAT-file, stand-in of the STB hand labels".ljust(116)
    return header + file.getvalue()[116:]


def _place(index: int, frames: int) -> tuple[str, int]:
    """The sequence of moment ``index`` and its number there."""
    count = FEW if frames < SMALL else len(SEQUENCES)
    return SEQUENCES[index % count], index // count


def _moment(seed: int, index: int, person: int) -> dict[Camera, Hand]:
    """The hand in each camera's frame; ``person`` modulo four."""
    rng = np.random.default_rng((seed, index, 9))
    place = rng.uniform((-20, -20, 620), (20, 20, 720))
    # the middle of the stereo base, so that both of its cameras see the hand
    at_left, at_color = (BASELINE_MM / 2 + place[0], place[1], place[2]), (place[0], place[1], place[2] - 150)
    left = sample_hand(seed, index, side="left", center_mm=at_left, person=person)
    depth = sample_hand(seed, index, side="left", center_mm=at_color, person=person).moved(color_to_depth)
    return {
        "BB_left": left,
        "BB_right": left.moved(left_to_right),
        "SK_color": depth.moved(depth_to_color),
        "SK_depth": depth,
    }


def _write_moment(root: Path, seed: int, index: int, sequence: str, n: int) -> dict[str, NDArray[np.float64]]:
    """The four pictures of a moment; gives the labels of both pairs of cameras."""
    cameras = _moment(seed, index, n)
    for camera, hand in cameras.items():
        picture = view(hand, K[camera], IMAGE_SIZE, seed=seed, index=index)
        rgb = picture.rgb if camera != "SK_depth" else encode_depth(picture.depth_mm)
        save_image(root / "images" / sequence / f"{camera}_{n}.png", rgb, compress_level=1)
    return {"BB": to_stb(cameras["BB_left"].joints_mm), "SK": to_stb(cameras["SK_depth"].joints_mm)}
