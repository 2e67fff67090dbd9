"""Writes a tiny DexYCB in the official layout: colour, aligned depth, label archives, calibration with its tuple tag.

    python -m shared.standin.all --out DIR --datasets dexycb

Two subjects (one whose held-out sequences are val in s0, one whose are test), six sequences each, two of the eight
cameras; every third sequence is a left hand. Both cameras of a sequence see hands of their own, so the set has no
multi-view truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from shared.camera import intrinsics, project
from shared.datasets.dexycb import SERIALS as ALL_SERIALS
from shared.errors import DataError
from shared.mano import ORDERS
from shared.safe_io import atomic_path, atomic_write_text
from shared.standin.grasp import place_in_view, sample_grasp, take_picture
from shared.standin.scene import Float, Side, standin_model
from shared.standin.views import save_image

SIZE = (640, 480)
SUBJECTS = ("20200709-subject-01", "20200820-subject-03")
SERIALS = ("836212060125", "932122061900")
SEQUENCES = 6
_INTRINSICS = {
    "836212060125": (616.641, 616.258, 308.548, 248.523),
    "932122061900": (612.203, 611.917, 321.266, 243.119),
}


class _Dumper(yaml.SafeDumper):
    """Writes tuples as the official calibration has them: with the tag ``!!python/tuple``."""


_Dumper.add_representer(tuple, lambda d, value: d.represent_sequence("tag:yaml.org,2002:python/tuple", value))


def write_dexycb(root: str | Path, *, frames: int = 24, seed: int = 0, unlabelled: int = 1) -> None:
    """Lays out at least ``frames`` frames: as many in each of the 24 camera folders as that takes.

    The first ``unlabelled`` frames have no hand label although the hand is seen.

    Raises:
        DataError: fewer than one frame.
    """
    if frames < 1 or unlabelled < 0:
        raise DataError(f"expected frames >= 1 and unlabelled >= 0, got {frames} and {unlabelled}")
    root = Path(root)
    each = frames_per_folder(frames)
    for serial, (fx, fy, cx, cy) in _INTRINSICS.items():
        camera = {"fx": fx, "fy": fy, "ppx": cx, "ppy": cy}
        depth = {"fx": 0.63 * fx, "fy": 0.63 * fy, "ppx": cx + 9, "ppy": cy - 7}
        extrinsics = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0149, 0.0002, 0.0005)
        _write_yaml(
            root / "calibration" / "intrinsics" / f"{serial}_640x480.yml",
            {"color": camera, "depth": depth, "extrinsics": extrinsics},
        )
    index = 0
    for s, subject in enumerate(SUBJECTS):
        for q in range(SEQUENCES):
            sequence = root / subject / f"{subject[:8]}_{140000 + 100 * q}"
            side: Side = "left" if q % 3 == 1 else "right"
            calibration = f"{subject[:8]}_{subject[-10:]}_{side}"
            meta = {
                "serials": list(ALL_SERIALS),
                "num_frames": each,
                "extrinsics": subject[:8],
                "mano_calib": [calibration],
                "mano_sides": [side],
                "ycb_ids": [1 + (q + s) % 21],
                "ycb_grasp_ind": 0,
            }
            _write_yaml(sequence / "meta.yml", meta)
            for serial in SERIALS:
                for frame in range(each):
                    betas = _write_frame(
                        sequence / serial, serial, frame, side, s, meta["ycb_ids"], seed, index, index < unlabelled
                    )
                    index += 1
            _write_yaml(root / "calibration" / f"mano_{calibration}" / "mano.yml", {"betas": betas.tolist()})


def frames_per_folder(frames: int) -> int:
    """How many frames each camera folder gets so that there are at least ``frames``."""
    return -(-frames // (len(SUBJECTS) * SEQUENCES * len(SERIALS)))


def _write_frame(
    folder: Path,
    serial: str,
    frame: int,
    side: Side,
    subject: int,
    ycb_ids: Any,
    seed: int,
    index: int,
    unlabelled: bool,
) -> Float:
    """One camera's files; returns the betas, which are the subject's."""
    K = intrinsics(*_INTRINSICS[serial])
    center = place_in_view(np.random.default_rng((seed, index, 40)), K, SIZE, (600.0, 850.0))
    grasp = sample_grasp(seed, index, tips="manopth", center_mm=center, side=side, subject=subject)
    picture = take_picture(grasp, K, SIZE, seed=seed, index=index)
    # coefficients c with hands_mean + c @ hands_components = the angles of the flat-mean pose; the rows are orthonormal
    coefficients = np.linalg.solve(
        standin_model(side).hands_components.T, grasp.pose[3:] - standin_model(side).hands_mean
    )
    joints_m = grasp.joints_mm[list(ORDERS["thumb_first"])] / 1000
    labels: dict[str, NDArray[Any]] = {
        "seg": np.where(picture.seg == 1, ycb_ids[0], picture.seg).astype(np.uint8),
        "pose_y": (grasp.T_cam_object[None, :3] / [1, 1, 1, 1000]).astype(np.float32),
        "pose_m": np.concatenate([grasp.pose[:3], coefficients, grasp.transl_mm / 1000])[None].astype(np.float32),
        "joint_3d": joints_m[None].astype(np.float32),
        "joint_2d": project(joints_m, K)[None].astype(np.float32),
    }
    if unlabelled:
        labels["pose_m"][:] = 0
        labels["joint_3d"][:] = labels["joint_2d"][:] = -1
    with atomic_path(folder / f"labels_{frame:06d}.npz") as part:
        np.savez_compressed(part, **labels)  # type: ignore[arg-type]
    save_image(folder / f"color_{frame:06d}.jpg", picture.rgb, quality=95)
    depth = picture.depth_mm.round().astype(np.uint16)
    save_image(folder / f"aligned_depth_to_color_{frame:06d}.png", depth, compress_level=1)
    return grasp.betas


def _write_yaml(path: Path, content: object) -> None:
    atomic_write_text(path, yaml.dump(content, Dumper=_Dumper, default_flow_style=False))
