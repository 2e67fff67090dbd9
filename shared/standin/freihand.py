"""Writes a tiny FreiHAND in the official layout: four versions of each training picture, masks, and the JSON files.

python -m shared.standin.all --out DIR --datasets freihand
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from shared.camera import project
from shared.errors import DataError
from shared.mano import ORDERS
from shared.safe_io import atomic_write_text
from shared.standin.grasp import room, sample_grasp, take_picture
from shared.standin.scene import standin_model
from shared.standin.views import save_image

SIZE = (224, 224)
VERSIONS = 4


def write_freihand(root: str | Path, *, frames: int = 4, seed: int = 0) -> None:
    """Lays out ``frames`` training samples with four backgrounds each and half as many (at least 2) evaluation samples.

    Every second hand is beside an object, which may hide part of it; the mask shows the visible part.

    Raises:
        DataError: fewer than one frame.
    """
    if frames < 1:
        raise DataError(f"expected frames >= 1, got {frames}")
    root = Path(root)
    index = 0
    for split, count in (("training", frames), ("evaluation", max(2, frames // 2))):
        lists: dict[str, list[Any]] = {key: [] for key in ("K", "xyz", "verts", "mano", "scale")}
        for sample in range(count):
            rng = np.random.default_rng((seed, index, 50))
            f = rng.uniform(350, 600)
            K = np.array([[f, 0, 112.0], [0, f * rng.uniform(0.998, 1.002), 112], [0, 0, 1]])
            center = np.array([*rng.uniform(-10, 10, 2), f * 1.35])  # a hand of 190 mm is 140 pixels long
            grasp = sample_grasp(seed, index, tips="freihand", center_mm=center)
            picture = take_picture(grasp, K, SIZE, seed=seed, index=index, with_object=index % 2 == 1)
            hand = picture.seg == 255
            for version in range(VERSIONS if split == "training" else 1):
                rgb = picture.rgb
                if version:  # another room; what is not background stays
                    other = room(SIZE, np.random.default_rng((seed, index, 51, version)))
                    rgb = np.where((picture.seg > 0)[..., None], rgb, other)
                save_image(root / split / "rgb" / f"{sample + version * count:08d}.jpg", rgb, quality=95)
            if split == "training":
                mask = np.repeat(hand[..., None], 3, 2) * np.uint8(255)
                save_image(root / split / "mask" / f"{sample:08d}.jpg", mask, quality=95)
            joints_m = grasp.joints_mm[list(ORDERS["thumb_first"])] / 1000
            pose = grasp.pose.copy()
            pose[3:] -= standin_model().hands_mean
            # 61 numbers: what the last three mean is a hypothesis, the wrist's pixel and its depth
            mano = [*pose, *grasp.betas, *project(joints_m[0], K), joints_m[0, 2]]
            lists["K"].append(K.tolist())
            lists["xyz"].append(joints_m.tolist())
            lists["verts"].append((grasp.verts_mm / 1000).tolist())
            lists["mano"].append([[float(value) for value in mano]])
            lists["scale"].append(float(np.linalg.norm(joints_m[10] - joints_m[9])))
            index += 1
        for key, values in lists.items():
            atomic_write_text(root / f"{split}_{key}.json", json.dumps(values))
