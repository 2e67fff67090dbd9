"""Frames per second of the RGB keypoint readers beside the straightforward way, in one run.

    python -m benchmarks.bm_rgb_readers [--out benchmarks/results/rgb_readers.json]

Both sides read the same stand-in trees (written to a temporary folder). The straightforward way is what a first script
does: label files are read again for each frame, and STB's depth is put together pixel by pixel in Python. Pictures are
decoded by Pillow on both sides, so where a set is mostly pictures the two come close. Times are CPU times of one
process, because the machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from shared.datasets import dexter_object, egodexter, mpii_nzsl, panoptic, stb
from shared.datasets.base import FrameDataset
from shared.safe_io import atomic_write_text
from shared.standin.all import write_sets


def naive_stb_color(root: Path, index: int) -> object:
    joints = loadmat(root / "labels" / "B1Counting_BB.mat")["handPara"][:, :, index]
    return joints.T, np.array(Image.open(root / "images" / "B1Counting" / f"BB_left_{index}.png"))


def naive_stb_depth(root: Path, index: int) -> object:
    joints = loadmat(root / "labels" / "B1Counting_SK.mat")["handPara"][:, :, index]
    image = Image.open(root / "images" / "B1Counting" / f"SK_depth_{index}.png")
    rows = np.asarray(image).tolist()
    return joints.T, np.array([[red + 256 * green for red, green, _ in row] for row in rows], np.float32)


def naive_panoptic(root: Path, index: int) -> object:
    folder = root / "hand143_panopticdb"
    entry = json.loads((folder / panoptic.LABEL_FILE).read_text())["root"][index]
    return np.array(entry["joint_self"]), np.array(Image.open(folder / entry["img_paths"]))


def naive_mpii(root: Path, index: int) -> object:
    path = sorted((root / "hand_labels" / "manual_train").glob("*.json"))[index]
    return np.array(json.loads(path.read_text())["hand_pts"]), np.array(Image.open(path.with_suffix(".jpg")))


def _naive_tips(path: Path, index: int) -> object:
    fields = path.read_text().splitlines()[index].split(";")[:5]
    return np.array([[float(number) for number in field.split(",")] for field in fields])


def naive_dexter_object(root: Path, index: int) -> object:
    folder = root / "data" / "Grasp1"
    image = Image.open(folder / "color" / f"image_{index:05d}_color.bmp")
    return _naive_tips(folder / "annotations" / "Grasp13D.txt", index), np.array(image)


def naive_egodexter(root: Path, index: int) -> object:
    folder = root / "data" / "Desk"
    image = Image.open(folder / "color" / f"image_{index:05d}_color.png")
    return _naive_tips(folder / "annotation.txt_3D.txt", index), np.array(image)


CASES: dict[str, tuple[str, Callable[[Path], FrameDataset], Callable[[Path, int], object]]] = {
    "STB colour": ("stb", lambda root: stb.open(root, "test"), naive_stb_color),
    "STB depth": ("stb", lambda root: stb.open(root, "test", camera="SK_depth"), naive_stb_depth),
    "Panoptic": ("panoptic", panoptic.open, naive_panoptic),
    "MPII+NZSL": ("mpii_nzsl", mpii_nzsl.open, naive_mpii),
    "Dexter+Object": ("dexter_object", dexter_object.open, naive_dexter_object),
    "EgoDexter": ("egodexter", egodexter.open, naive_egodexter),
}


def frames_per_second(read: Callable[[int], object], count: int, seconds: float = 1.0) -> float:
    """Reads frames 0 .. count - 1 in turns for about ``seconds``; the best of three."""
    best = 0.0
    for _ in range(3):
        done, start = 0, time.process_time()
        while (took := time.process_time() - start) < seconds / 3:
            read(done % count)
            done += 1
        best = max(best, done / took)
    return best


def pad_panoptic(root: Path, entries: int = 14_817) -> None:
    """Gives the label file its real length by repeating its entries; only the first ones have pictures of their own."""
    path = root / "hand143_panopticdb" / panoptic.LABEL_FILE
    document = json.loads(path.read_text())
    document["root"] = (document["root"] * (entries // len(document["root"]) + 1))[:entries]
    path.write_text(json.dumps(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rgb_readers.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_sets(folder, sorted({case[0] for case in CASES.values()}), frames=12)
        pad_panoptic(Path(folder) / "panoptic")
        for name, (tree, opener, naive) in CASES.items():
            root = Path(folder) / tree
            start = time.process_time()
            dataset = opener(root)
            opened = time.process_time() - start
            count = 3  # frames that every one of these trees has in its first sequence
            ours = frames_per_second(dataset.__getitem__, count)
            theirs = frames_per_second(partial(naive, root), count)
            rows.append({"set": name, "open_s": opened, "ours_fps": ours, "naive_fps": theirs, "ratio": ours / theirs})
            speed = f"ours {ours:8.1f}   naive {theirs:8.1f} frames/s   x{ours / theirs:.1f}"
            print(f"{name:14} open {opened:6.3f} s   {speed}")
    atomic_write_text(options.out, json.dumps({"machine": platform.machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
