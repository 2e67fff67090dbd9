"""Times SO-HandNet's preparation and loader on the CPU: ``python -m benchmarks.bm_sohandnet_prepare``.

Preparation: the whole program, from PNGs and labels to the store, on 1,000 frames with two worker processes (wall
time), and a single frame's steps in one thread. The baseline is the plain way, in numpy and torch: normals of every
point of the crop by comparing all pairs, then the map of nodes of one cloud at a time; it is timed in turns with ours.
Pictures are rendered stand-in hands, moved about to make many of them.

Loader: one sample out of the store, against reading a frame's ``.npz``, computing the neighbours of its nodes and
turning everything round, as the original does for every sample. Writes ``benchmarks/results/sohandnet_prepare.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bm_v2v_voxels import cpu_name
from shared.datasets import icvl
from shared.datasets.icvl import SESSIONS
from shared.safe_io import atomic_write_text
from shared.standin.icvl import write_icvl
from shared.standin.views import save_image
from sohandnet import orient
from sohandnet.data import StoreSamples, collate
from sohandnet.kernels import ops, reference
from sohandnet.prepare import Prepare, prepare
from sohandnet.som import initial_nodes, schedule, train_som

RESULT = Path(__file__).parent / "results" / "sohandnet_prepare.json"
Call = Callable[[], object]


def write_tree(root: Path, rendered: Path, frames: int) -> None:
    """``frames`` training pictures: the rendered ones, each time moved by a few pixels."""
    source = icvl.open(rendered, "train")
    pictures = [icvl.read_depth(source.folder / file) for file in source.files]
    lines = []
    for i in range(frames):
        which, turn = i % len(pictures), i // len(pictures)
        shift = (turn % 7 - 3, turn // 7 % 7 - 3)
        name = f"{SESSIONS[i % len(SESSIONS)]}/image_{i:05d}.png"
        save_image(root / "Training/Depth" / name, np.roll(pictures[which], shift, (0, 1)).astype(np.uint16))
        uvd = source.joints_uvd[which] + np.array([shift[1], shift[0], 0])
        lines.append(f"{name} " + " ".join(f"{x:.3f}" for x in uvd.ravel()) + "\n")
    (root / "Training/labels.txt").write_text("".join(lines))


def baseline_normals(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of all points, from the full table of distances."""
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)
    near = np.argpartition(distance, orient.NORMAL_NEIGHBOURS, axis=1)[:, : orient.NORMAL_NEIGHBOURS]
    group = points[near]
    centred = group - group.mean(1, keepdims=True)
    normals = np.linalg.eigh(np.swapaxes(centred, 1, 2) @ centred)[1][..., 0]
    return np.where((normals * points).sum(1, keepdims=True) > 0, -normals, normals)


def baseline_loader(path: Path) -> dict[str, torch.Tensor]:
    """A sample from a file of its own."""
    with np.load(path) as file:
        found = {key: torch.from_numpy(file[key].T.copy()) for key in file.files}
    node = found["som_node"]
    distance = ((node[:, :, None] - node[:, None]) ** 2).sum(0)
    found["som_knn_I"] = distance.topk(9, largest=False).indices
    return found


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median milliseconds of process CPU time of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:
                times[name].append(1000 * (time.process_time() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def frame_times(tree: Path, rounds: int) -> dict[str, float]:
    """Milliseconds per frame of the steps, ours and the baseline's."""
    frames = icvl.open(tree, "train", focal="evaluation")
    space = orient.make_space("true")
    frame = frames[0]
    depth_mm, joints_mm = frame.depth_mm, frame.joints_mm
    assert depth_mm is not None
    assert joints_mm is not None
    corners = orient.joint_box(space.from_camera(joints_mm))
    points = orient.crop_points(depth_mm, space, *corners)
    cloud, _ = orient.oriented_cloud(points, np.random.default_rng(0))
    pc = torch.from_numpy(cloud[None, :3].copy())
    many = pc.repeat(64, 1, 1)
    start, (factors, rates) = initial_nodes(64), schedule(8)
    ours, theirs = train_som(pc), reference.batch_som(pc, start, factors, rates)
    difference = float((ours - theirs).abs().max())
    assert difference < 1e-5, f"the nodes differ by {difference}"
    print(f"a crop of {len(points)} points; nodes max diff {difference:.3g}")
    times = in_turns(
        {
            "read": lambda: icvl.read_depth(frames.folder / frames.files[0]),
            "crop": lambda: orient.crop_points(depth_mm, space, *corners),
            "box, normals, sample": lambda: orient.oriented_cloud(points, np.random.default_rng(0)),
            "nodes (64 clouds at once)": lambda: ops.node_knn(train_som(many), 9),
            "baseline: normals": lambda: baseline_normals(points),
            "baseline: nodes": lambda: reference.batch_som(pc, start, factors, rates),
        },
        rounds,
    )
    times["nodes (64 clouds at once)"] /= 64
    return times


def loader_times(tree: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds per sample of both loaders, over 64 samples."""
    store = prepare(Prepare(data=str(tree), out=str(folder / "loader"), split="train", limit=64, workers=0), False)
    split = store.split("train")
    arrays = split.arrays
    for i in range(len(split)):
        np.savez(
            folder / f"{i}.npz",
            pc=arrays["cloud"][i, :3].T,
            sn=arrays["cloud"][i, 3:].T,
            som_node=arrays["node"][i].T,
            gt_xyz=arrays["joints"][i].T,
            volume_length=arrays["length"][i : i + 1].astype(np.float32),
            volume_offset=arrays["offset"][i].astype(np.float32),
            volume_rotate=arrays["rotation"][i].astype(np.float32),
        )
    samples = StoreSamples(split)
    count = len(samples)
    times = in_turns(
        {
            "loader": lambda: [samples[i] for i in range(count)],
            "loader, collated in batches of 16": lambda: [
                collate([samples[i] for i in range(first, min(first + 16, count))]) for first in range(0, count, 16)
            ],
            "baseline: loader": lambda: [baseline_loader(folder / f"{i}.npz") for i in range(count)],
        },
        rounds,
    )
    return {name: value / count for name, value in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000, help="frames of the whole preparation; 0 leaves it out")
    parser.add_argument("--rendered", type=int, default=12, help="pictures rendered to make them of")
    parser.add_argument("--workers", type=int, default=2, help="processes of the whole preparation")
    parser.add_argument("--rounds", type=int, default=10, help="timed repetitions")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_icvl(folder / "rendered", frames=options.rendered)
        tree = folder / "icvl"
        write_tree(tree, folder / "rendered", max(options.frames, 64))
        times = frame_times(tree, options.rounds) | loader_times(tree, folder, options.rounds)
        whole = None
        if options.frames:
            start = time.monotonic()
            prepare(Prepare(data=str(tree), out=str(folder / "store"), split="train", workers=options.workers), False)
            whole = time.monotonic() - start
            print(f"{options.frames} frames with {options.workers} workers: {whole:.1f} s")
    ratios = {
        "normals and nodes of a frame": (times["baseline: normals"] + times["baseline: nodes"])
        / (times["box, normals, sample"] + times["nodes (64 clouds at once)"]),
        "loader": times["baseline: loader"] / times["loader"],
    }
    for name_, value in times.items():
        print(f"{name_:36} {value:8.3f} ms")
    for name_, value in ratios.items():
        print(f"{name_:36} {value:8.1f} times faster")
    result: dict[str, Any] = {
        "ms_per_frame": {key: round(value, 4) for key, value in times.items()},
        "times_faster": {key: round(value, 1) for key, value in ratios.items()},
        "whole_preparation": {"frames": options.frames, "workers": options.workers, "seconds": whole},
        "clock": "median process CPU time, one thread, in turns; the whole preparation in wall time",
        "rounds": options.rounds,
        "kernels": "native" if ops.KERNELS.native("cpu") else "torch reference",
        "machine": cpu_name(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    atomic_write_text(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
