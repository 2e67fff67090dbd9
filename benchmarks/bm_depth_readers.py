"""Frames per second of the depth readers on two cores beside the straightforward way, in one run.

    python -m benchmarks.bm_depth_readers [--out benchmarks/results/depth_readers.json]

Both sides read the same stand-in trees (written to a temporary folder) in two processes. The straightforward ways are
those of published decoders, in our own words: one-channel PNGs unpacked value by value with ``struct``, NYU's colour
channels combined after splitting the picture into three integer pictures (what most NYU scripts do) and pixel by pixel,
ITOP's depth file read whole before a frame is taken from it. Label lines are split and converted word by word.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from shared.datasets import hands2017, icvl, itop, nyu
from shared.safe_io import atomic_write_text
from shared.standin.hands2017 import write_hands2017
from shared.standin.icvl import write_icvl
from shared.standin.itop import write_itop
from shared.standin.nyu import write_nyu

FRAMES = 8


def struct_png(folder: Path, index: int) -> object:
    image = Image.open(sorted(folder.glob("*.png"))[index])
    raw = image.tobytes()
    values = [float(struct.unpack("<H", raw[2 * i : 2 * i + 2])[0]) for i in range(len(raw) // 2)]
    return np.array(values, np.float32).reshape(image.size[::-1])


def split_nyu(folder: Path, index: int) -> object:
    _, green, blue = Image.open(folder / f"depth_1_{index + 1:07d}.png").split()
    return np.array(np.asarray(green, np.int32) * 256 + np.asarray(blue, np.int32), np.float32)


def pixel_nyu(folder: Path, index: int) -> object:
    rows = np.asarray(Image.open(folder / f"depth_1_{index + 1:07d}.png")).tolist()
    return np.array([[green * 256 + blue for _, green, blue in row] for row in rows], np.float32)


def whole_itop(file: Path, index: int) -> object:
    with h5py.File(file, "r") as h5:
        return h5["data"][()][index].astype(np.float32) * 1000


def split_labels(file: Path, index: int) -> object:
    rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    return [row[0] for row in rows], np.array([[float(word) for word in row[1:]] for row in rows])


def read_labels(file: Path, index: int) -> object:
    return icvl.read_labels(file)


def _speed(read: Callable[[int], object], count: int, seconds: float) -> float:
    read(0)  # opens what stays open
    done, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        read(done % count)
        done += 1
    return done / took


def frames_per_second(pool: ProcessPoolExecutor, read: Callable[[int], object], count: int) -> float:
    """Both processes read frames in turns for a second; the better of two rounds."""
    return max(sum(pool.map(_speed, [read] * 2, [count] * 2, [1.0] * 2)) for _ in range(2))


def cases(root: Path) -> dict[str, tuple[Callable[[int], object], Callable[[int], object]]]:
    """Writes the trees; name -> (our way, the straightforward way), both a function of the frame's index."""
    write_icvl(root, frames=FRAMES)
    write_nyu(root, frames=FRAMES)
    write_hands2017(root, frames=FRAMES)
    write_itop(root, frames=FRAMES)
    nyu.prepare(root, root / "store", ["train"], cameras=(1,), jobs=1, progress=False)
    labels = root / "labels.txt"
    labels.write_text((root / "Training" / "labels.txt").read_text() * 200)
    stored = nyu.open(None, "train", store=root / "store")
    plain = nyu.open(root, "train")
    session = root / "Training" / "Depth" / icvl.SESSIONS[0]
    hands = root / "training" / "images"
    body = itop.open(root, "train", valid_only=False)
    return {
        "ICVL": (icvl.open(root, "train").__getitem__, partial(struct_png, session)),
        "NYU": (plain.__getitem__, partial(split_nyu, root / "train")),
        "NYU, per pixel": (plain.__getitem__, partial(pixel_nyu, root / "train")),
        "NYU, prepared": (stored.__getitem__, partial(split_nyu, root / "train")),
        "HANDS2017": (hands2017.open(root, "train").__getitem__, partial(struct_png, hands)),
        "ITOP": (body.__getitem__, partial(whole_itop, body.depth_file)),
        f"ICVL labels ({200 * 2 * FRAMES} lines)": (partial(read_labels, labels), partial(split_labels, labels)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/depth_readers.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2) as pool:
        for name, (ours, theirs) in cases(Path(folder)).items():
            count = FRAMES // 2  # ICVL's first session has half of the frames
            fast, slow = (frames_per_second(pool, way, count) for way in (ours, theirs))
            rows.append({"case": name, "ours_fps": fast, "straightforward_fps": slow, "ratio": fast / slow})
            print(f"{name:26} ours {fast:9.1f}   straightforward {slow:8.1f} per second   x{fast / slow:.1f}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    atomic_write_text(options.out, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
