"""Frames per second of the RGB-D mesh readers beside the usual way of reading these sets, in one run.

    python -m benchmarks.bm_rgbd_readers [--out benchmarks/results/rgbd_readers.json]

Both sides read the same stand-in trees. The usual way is how the public scripts do it: a plain ``pickle.load`` of
HO-3D's metas and its depth from three-channel arithmetic in floating point, ``numpy.load`` and the YAML calibration of
DexYCB for every frame with an unsafe loader, FreiHAND's lists as Python lists. Pictures are decoded by Pillow on both
sides. The last two entries are a big text file, in megabytes per second and megabytes of memory at the peak.
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from shared.datasets import dexycb, freihand, ho3d
from shared.safe_io import atomic_write_text
from shared.standin.dexycb import write_dexycb
from shared.standin.freihand import write_freihand
from shared.standin.ho3d import write_ho3d


def usual_ho3d(root: Path, name: str) -> object:
    sequence, fid = name.split("/")
    folder = root / "train" / sequence
    with open(folder / "meta" / f"{fid}.pkl", "rb") as file:
        meta = pickle.load(file, encoding="latin1")
    packed = np.asarray(Image.open(folder / "depth" / f"{fid}.png"))
    depth = (packed[:, :, 0] + packed[:, :, 1].astype(float) * 256) * 0.00012498664727900177
    joints = meta["handJoints3D"].dot(np.diag([1.0, -1, -1]))
    return np.asarray(Image.open(folder / "rgb" / f"{fid}.png")), depth, joints


def usual_dexycb(root: Path, name: str) -> object:
    folder, _, frame = name.rpartition("/")
    labels = {key: value for key, value in np.load(root / folder / f"labels_{frame}.npz").items()}
    text = (root / "calibration" / "intrinsics" / f"{folder.split('/')[-1]}_640x480.yml").read_text()
    intrinsics = yaml.load(text, Loader=yaml.FullLoader)
    color = np.asarray(Image.open(root / folder / f"color_{frame}.jpg"))
    depth = np.asarray(Image.open(root / folder / f"aligned_depth_to_color_{frame}.png")) / 1000.0
    return color, depth, labels, intrinsics


def usual_freihand(root: Path) -> Callable[[str], object]:
    K, xyz, mano = (json.loads((root / f"training_{key}.json").read_text()) for key in ("K", "xyz", "mano"))

    def read(name: str) -> object:
        rgb = np.asarray(Image.open(root / "training" / "rgb" / f"{name}.jpg"))
        return rgb, np.array(K[int(name)]), np.array(xyz[int(name)]), np.array(mano[int(name)])

    return read


def frames_per_second(read: Callable[[int], object], count: int, seconds: float = 3.0) -> float:
    """Reads frames 0 .. count - 1 in turns; the best of three runs that share ``seconds``."""
    best = 0.0
    for _ in range(3):
        done, start = 0, time.perf_counter()
        while (took := time.perf_counter() - start) < seconds / 3:
            read(done % count)
            done += 1
        best = max(best, done / took)
    return best


def _by_index(read: Callable[[str], object], names: list[str], index: int) -> object:
    return read(names[index])


READ_LIST = {
    "ours": "from shared.datasets.ho3d import read_evaluation_verts as read; read(path)",
    "usual": "import json, numpy as np; np.array(json.load(open(path)))",
}


def big_list(path: Path, way: str) -> dict[str, float]:
    """Time and peak memory of reading a list of meshes, in a process of its own."""
    code = (
        f"import sys, time; path = sys.argv[1]; start = time.perf_counter(); {READ_LIST[way]}; "
        "print(time.perf_counter() - start, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    seconds, peak = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    ).stdout.split()
    return {"mb_per_s": round(path.stat().st_size / 1e6 / float(seconds), 1), "peak_mb": round(float(peak) / 1e3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rgbd_readers.json"))
    out = parser.parse_args().out
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_ho3d(root / "ho3d", frames=8)
        write_dexycb(root / "dexycb")
        write_freihand(root / "freihand", frames=8)
        hand, dex = ho3d.open(root / "ho3d", "train"), dexycb.open(root / "dexycb", "s0_train")
        frei = freihand.open(root / "freihand", "training")
        usual: dict[str, tuple[Any, Callable[[str], object]]] = {
            "HO-3D": (hand, lambda name: usual_ho3d(root / "ho3d", name)),
            "DexYCB": (dex, lambda name: usual_dexycb(root / "dexycb", name)),
            "FreiHAND": (frei, usual_freihand(root / "freihand")),
        }
        for name, (data, read) in usual.items():
            names = data.names()
            ours = frames_per_second(data.__getitem__, len(names))
            theirs = frames_per_second(partial(_by_index, read, names), len(names))
            labels = frames_per_second(data.labels, len(names))
            results[name] = {
                "ours_fps": round(ours, 1),
                "usual_fps": round(theirs, 1),
                "ratio": round(ours / theirs, 2),
                "ours_labels_only_fps": round(labels, 1),
            }
            print(f"{name}: {results[name]}")
        meshes = np.random.default_rng(0).normal(0, 0.1, (1500, 778, 3))
        (root / "verts.json").write_text(json.dumps(meshes.tolist()))
        for way in READ_LIST:
            results[f"evaluation_verts.json, 1500 meshes, {way}"] = big_list(root / "verts.json", way)
            print(way, results[f"evaluation_verts.json, 1500 meshes, {way}"])
    results["machine"] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    atomic_write_text(out, json.dumps(results, indent=2) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
