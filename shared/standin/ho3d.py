"""Writes a tiny HO-3D in the official layout: colour, depth, pickled metas, lists and the evaluation ground truth.

    python -m shared.standin.all --out DIR --datasets ho3d

The truth is computed the way the files mean it: poses and joints in an OpenGL camera come from a MANO layer fed with
``handPose``, ``handTrans`` and ``handBeta``, and only the pictures are made in OpenCV axes. Metas are pickles of
protocol 2 with the module names of NumPy 1, as the official ones.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from shared.errors import DataError
from shared.safe_io import atomic_path, atomic_write_text
from shared.standin.grasp import Grasp, mesh, pixel_box, place_in_view, sample_grasp, take_picture
from shared.standin.scene import Float
from shared.standin.views import draw_all, save_image

K = np.array([[617.343, 0, 312.42], [0, 617.343, 241.42], [0, 0, 1]])
SIZE = (640, 480)
DEPTH_SCALE_M = 0.00012498664727900177
SEQUENCES = {"train": ("SS1", "BB11"), "evaluation": ("SM1", "AP10")}
_GL = np.diag([1.0, -1, -1])


def write_ho3d(
    root: str | Path,
    *,
    frames: int = 6,
    seed: int = 0,
    version: Literal["v2", "v3"] = "v2",
    unlabelled: int = 1,
    workers: int = 1,
) -> None:
    """Lays out ``frames`` training frames, half as many (at least 2) evaluation frames, and ``unlabelled`` listed
    training frames whose annotation is None; in ``workers`` processes, which change no byte.

    Raises:
        DataError: fewer than one frame, or an unknown version.
    """
    if frames < 1 or unlabelled < 0 or version not in ("v2", "v3"):
        raise DataError(f"expected frames >= 1, unlabelled >= 0 and v2 or v3, got {frames}, {unlabelled}, {version!r}")
    root = Path(root)
    first = 0
    for split, count in (("train", frames + unlabelled), ("evaluation", max(2, frames // 2))):
        names = [f"{SEQUENCES[split][number % 2]}/{number // 2:04d}" for number in range(count)]
        jobs = [
            (root / split, name, seed, first + number, version, split == "train" and number < frames)
            for number, name in enumerate(names)
        ]
        xyz, verts = zip(*draw_all(_write_frame, jobs, workers), strict=True)
        first += count
        order = np.random.default_rng((seed, 30)).permutation(count)  # the lists are not sorted
        atomic_write_text(root / f"{split}.txt", "".join(f"{names[i]}\n" for i in order))
        if split == "evaluation":
            for what, values in (("xyz", xyz), ("verts", verts)):
                atomic_write_text(root / f"evaluation_{what}.json", json.dumps([values[i].tolist() for i in order]))


def _center(seed: int, index: int) -> Float:
    return place_in_view(np.random.default_rng((seed, index, 31)), K, SIZE, (450.0, 700.0))


def _annotate(grasp: Grasp, index: int) -> tuple[Float, Float, dict[str, Any]]:
    """((778, 3) vertices m, (21, 3) joints m, the meta of a training frame), all in OpenGL axes."""
    pose = grasp.pose.copy()
    pose[:3] = (Rotation.from_matrix(_GL) * Rotation.from_rotvec(pose[:3])).as_rotvec()
    transl_mm = (
        _GL @ grasp.joints_mm[0] - grasp.rest_root_mm
    )  # the wrist is where the layer's rest pose has it, plus this
    verts_mm, joints_mm = mesh("right", "ho3d", pose, grasp.betas, transl_mm)
    rotation = _GL @ grasp.T_cam_object[:3, :3]
    translation = _GL @ grasp.T_cam_object[:3, 3] / 1000
    rest = grasp.object_corners_rest_mm / 1000
    meta = {
        "camMat": K.astype(np.float32),
        "handJoints3D": (joints_mm / 1000).astype(np.float32),
        "handPose": pose.astype(np.float32),
        "handTrans": (transl_mm / 1000).astype(np.float32),
        "handBeta": grasp.betas.astype(np.float32),
        "objRot": Rotation.from_matrix(rotation).as_rotvec()[:, None].astype(np.float32),
        "objTrans": translation.astype(np.float32),
        "objName": ("006_mustard_bottle", "021_bleach_cleanser")[index % 2],
        "objLabel": (5, 12)[index % 2],
        "objCorners3DRest": rest,
        "objCorners3D": rest @ rotation.T + translation,
    }
    return verts_mm / 1000, joints_mm / 1000, meta


def _write_frame(root: Path, name: str, seed: int, index: int, version: str, labelled: bool) -> tuple[Float, Float]:
    """The files of one frame; gives its joints (21, 3) and vertices (778, 3), metres, OpenGL axes."""
    sequence, fid = name.split("/")
    folder = root / sequence
    grasp = sample_grasp(seed, index, tips="ho3d", center_mm=_center(seed, index))
    verts_gl, joints_gl, meta = _annotate(grasp, index)
    if root.name == "evaluation":
        meta["handJoints3D"] = joints_gl[0].astype(np.float32)
        meta["handBoundingBox"] = list(pixel_box(verts_gl @ _GL, K))
        for key in ("handPose", "handTrans", "handBeta"):
            del meta[key]
    elif not labelled:
        meta |= dict.fromkeys(("handJoints3D", "handPose", "handTrans", "handBeta", "objRot", "objTrans"))
    picture = take_picture(grasp, K, SIZE, seed=seed, index=index)
    if version == "v2":
        save_image(folder / "rgb" / f"{fid}.png", picture.rgb, compress_level=1)
    else:
        save_image(folder / "rgb" / f"{fid}.jpg", picture.rgb, quality=95)
    value = (picture.depth_mm / 1000 / DEPTH_SCALE_M).round().astype(np.uint16)
    encoded = np.stack([value & 255, value >> 8, np.zeros_like(value)], -1).astype(np.uint8)
    save_image(folder / "depth" / f"{fid}.png", encoded, compress_level=1)
    if version == "v3":
        meta = meta | {"handVertContact": np.zeros(778, np.bool_)}
    with atomic_path(folder / "meta" / f"{fid}.pkl") as part:
        part.write_bytes(pickle.dumps(meta, 2).replace(b"cnumpy._core.", b"cnumpy.core."))
    return joints_gl, verts_gl
