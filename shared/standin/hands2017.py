"""A small HANDS2017 tree without HANDS2017: stand-in hands in the format of ``shared.datasets.hands2017``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared import camera
from shared.datasets.hands2017 import SIZE, K
from shared.errors import DataError
from shared.safe_io import atomic_write_text
from shared.standin.scene import to_skeleton
from shared.standin.views import depth_picture, sample_hand, save_image, write_noisy_centers

_PARTS = (("train", "training", "Training_Annotation.txt"), ("test", "frame", "BoundingBox.txt"))


def write_hands2017(root: str | Path, *, frames: int = 6, seed: int = 0) -> None:
    """Writes ``frames`` training frames with tab-separated labels and ``frames`` test frames with boxes.

    Centre files of V2V-PoseNet are in ``hands2017_center``. 0 where nothing is seen.
    """
    if frames < 1:
        raise DataError(f"frames: expected at least 1, got {frames}")
    root = Path(root)
    for part, (split, folder, label_file) in enumerate(_PARTS):
        lines, every = [], []
        for i in range(frames):
            index = part * frames + i
            rng = np.random.default_rng((seed, index, 4))
            center = rng.uniform([-150, -120, 400], [150, 120, 800])
            hand = sample_hand(seed, index, side="right", center_mm=center)
            joints = to_skeleton(hand.joints_mm, "hands2017")
            name = f"image_D{i + 1:08d}.png"
            save_image(root / folder / "images" / name, depth_picture(hand.verts_mm, K, SIZE))
            every.append(joints)
            if split == "train":
                lines.append("\t".join([name, *(f"{x:.4f}" for x in joints.ravel())]))
            else:
                uv = camera.project(joints, K)
                box = [*(uv.min(0) - 10), *(np.ptp(uv, axis=0) + 20)]
                lines.append("\t".join([name, *(f"{x:.2f}" for x in box)]))
        atomic_write_text(root / folder / label_file, "".join(line + "\n" for line in lines))
        path = root / "hands2017_center" / f"center_{split}_refined.txt"
        write_noisy_centers(path, np.stack(every), np.random.default_rng((seed, part, 5)), y_up=False)
