"""Writes a stand-in for MSRA15: rendered hands in exactly that set's tree, with V2V-PoseNet's centre files.

    python -m shared.standin.msra --out data/standin/msra --frames 2000 --seed 0 --workers 2 [--subjects 4]

Each subject is one hand shape, each gesture folder one named pose with the looseness of :mod:`shared.standin.scene`.
Every frame depends on (seed, subject, gesture, number) alone: the number of workers changes nothing. An interrupted
run is continued by the same command; a finished folder is left alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.datasets.centers import write_centers
from shared.datasets.msra import GESTURES, IMAGE_SIZE, K, read_joints_mm
from shared.errors import DataError, exit_on_error
from shared.pool import in_processes
from shared.safe_io import atomic_path, atomic_write_text

MARKER = "standin.json"
_UNFINISHED = "standin.unfinished.json"
_CENTER_SIGMA_MM = 4.0  # of the published centre files: about 7 mm between two folds' estimates of one frame
_FRAMES_APART = 10_000  # scene numbers of a gesture


@dataclass(frozen=True)
class _Folder:
    """One gesture folder to be written."""

    path: Path
    subject: int
    gesture: str
    frames: int
    seed: int
    noise: bool


def write_msra(
    root: str | Path,
    *,
    subjects: int = 9,
    frames_per_gesture: int = 2,
    total_frames: int | None = None,
    gestures: Sequence[str] = GESTURES,
    seed: int = 0,
    workers: int = 1,
    noise: bool = True,
    progress: bool = False,
) -> Path:
    """Writes the set, or does nothing if it is there already with the same parameters.

    Written: ``P{s}/{gesture}/NNNNNN_depth.bin`` and ``joint.txt`` (y up, z negative), ``msra_center/center_train_{s}``
    and ``center_test_{s}_refined.txt`` (y up, z positive; the mean of the joints, off by a few millimetres, differently
    in each fold, as the originals are), and last ``standin.json``, which says how it was made.

    Args:
        root: folder of P0 to P8.
        subjects: how many of the nine, from P0.
        frames_per_gesture: frames of every gesture folder.
        total_frames: instead, so many frames in all, spread evenly over subjects and gestures.
        gestures: which of the 17.
        seed: of the poses, places, noise and centres.
        workers: processes; 1 works in this one.
        noise: sensor noise; without it the depth is exact.
        progress: show a progress bar.

    Returns:
        ``root``.

    Raises:
        DataError: impossible numbers; a folder that holds something else or was made with other parameters.
    """
    root = Path(root)
    if not 1 <= subjects <= 9:
        raise DataError(f"subjects must be 1 to 9, got {subjects}")
    unknown = [g for g in gestures if g not in GESTURES]
    if unknown or not gestures or len(set(gestures)) != len(gestures):
        raise DataError(f"gestures must be some of {' '.join(GESTURES)}, each once, got {' '.join(gestures)!r}")
    gestures = [g for g in GESTURES if g in gestures]  # the order of the centre files
    folders = subjects * len(gestures)
    total = total_frames if total_frames is not None else frames_per_gesture * folders
    if not folders <= total <= 500 * folders:
        raise DataError(
            f"frames must be {folders} to {500 * folders} for {subjects} subjects and {len(gestures)} gestures "
            f"(1 to 500 in each folder), got {total}"
        )
    if workers < 1:
        raise DataError(f"workers must be 1 or more, got {workers}")
    parameters = {
        "version": 1,
        "subjects": subjects,
        "gestures": gestures,
        "frames": total,
        "seed": seed,
        "noise": noise,
    }
    if _already_there(root, parameters):
        return root
    atomic_write_text(root / _UNFINISHED, json.dumps(parameters, indent=1) + "\n")

    per_folder = [total // folders + (i < total % folders) for i in range(folders)]
    plan = [
        _Folder(root / f"P{i // len(gestures)}" / gesture, i // len(gestures), gesture, per_folder[i], seed, noise)
        for i, gesture in enumerate(list(gestures) * subjects)
    ]
    missing = [folder for folder in plan if not (folder.path / "joint.txt").is_file()]  # written last in each
    _write_folders(missing, workers, progress)
    _write_centers(root, plan, seed)
    atomic_write_text(root / MARKER, json.dumps(parameters, indent=1) + "\n")
    (root / _UNFINISHED).unlink()
    return root


def _already_there(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether ``root`` is finished with these parameters; refuses a folder that holds anything else."""
    for name in (MARKER, _UNFINISHED):
        path = root / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != parameters:
            had = found if isinstance(found, dict) else {}
            different = [f"{k} {had.get(k)!r} instead of {v!r}" for k, v in parameters.items() if had.get(k) != v]
            raise DataError(
                f"this folder was made with other parameters ({'; '.join(different) or 'unknown ones'})",
                path=path,
                remedy=f"remove {root} to make it again, or give another --out",
            )
        return name == MARKER
    if any((root / f"P{s}").exists() for s in range(9)):
        raise DataError(
            "this folder holds an MSRA tree that is no stand-in; it is not overwritten",
            path=root,
            remedy="give another --out",
        )
    return False


def _write_folders(folders: list[_Folder], workers: int, progress: bool) -> None:
    from tqdm import tqdm

    with tqdm(total=sum(f.frames for f in folders), unit=" frames", disable=not progress) as bar:
        for frames in in_processes(_write_folder, [(folder,) for folder in folders], workers):
            bar.update(frames)


def _write_folder(folder: _Folder) -> int:
    """Writes one gesture folder, the labels last, and returns its number of frames."""
    import torch

    from shared.standin.scene import depth_noise, sample_scene, to_skeleton

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pictures are small, and the sums come out the same in every process
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lines = [f"{folder.frames}"]
        for i in range(folder.frames):
            number = GESTURES.index(folder.gesture) * _FRAMES_APART + i
            scene = sample_scene(
                folder.seed, number, K=K, image_size=IMAGE_SIZE, subject=folder.subject, gesture=folder.gesture
            )
            depth = scene.depth_mm
            if folder.noise:
                depth = depth_noise(depth, np.random.default_rng((folder.seed, folder.subject, number, 1)), step_mm=0)
            _write_bin(folder.path / f"{i:06d}_depth.bin", depth, scene.mask)
            world = to_skeleton(scene.joints_mm, "msra") * [1, -1, -1]
            lines.append(" ".join(f"{value:.4f}" for value in world.ravel()))
        atomic_write_text(folder.path / "joint.txt", "\n".join(lines) + "\n")
    finally:
        torch.set_num_threads(threads)
    return folder.frames


def _write_bin(path: Path, depth_mm: np.ndarray[Any, np.dtype[np.float32]], mask: np.ndarray[Any, Any]) -> None:
    """The ``.bin`` format: six uint32, then the hand's rectangle as float32."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    width, height = IMAGE_SIZE
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            struct.pack("<6I", width, height, left, top, right, bottom)
            + np.ascontiguousarray(depth_mm[top:bottom, left:right], "<f4").tobytes()
        )


def _write_centers(root: Path, plan: list[_Folder], seed: int) -> None:
    """The centre files of every fold, from the labels as they were written."""
    middles = {folder.path: read_joints_mm(folder.path / "joint.txt").mean(1) for folder in plan}
    people = sorted({folder.subject for folder in plan})
    for fold in people:
        for number, split in enumerate(("train", "test")):
            chosen = [f for f in plan if (f.subject == fold) == (split == "test")]
            points = np.concatenate([middles[f.path] for f in chosen]) if chosen else np.zeros((0, 3))
            rng = np.random.default_rng((seed, fold, number, 2))
            points = points + rng.normal(0, _CENTER_SIGMA_MM, points.shape)
            path = root / "msra_center" / f"center_{split}_{fold}_refined.txt"
            write_centers(path, points, y_up=True)


@dataclass
class Options:
    """What to write.

    Args:
        out: folder of P0 to P8.
        frames: frames in all, spread evenly over subjects and gestures.
        subjects: how many of the nine.
        seed: the same seed gives the same files.
        workers: processes.
        noise: sensor noise on the depth.
    """

    out: Path
    frames: int = 2000
    subjects: int = 9
    seed: int = 0
    workers: int = 2
    noise: bool = True


def main(argv: list[str] | None = None) -> int:
    from shared.options import parse

    options: Options = parse(
        Options,
        prog="python -m shared.standin.msra",
        description="Writes a stand-in for MSRA15, rendered from a hand that needs no licence.",
        argv=argv,
    ).options
    values = asdict(options)
    write_msra(values.pop("out"), total_frames=values.pop("frames"), progress=True, **values)
    print(f"{options.out}: {options.frames} frames of {options.subjects} subjects, centre files in msra_center")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
