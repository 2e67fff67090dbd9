"""Prepares ICVL for SO-HandNet: depth images and labels in, a store of oriented clouds with SOM nodes out.

    python -m sohandnet.prepare --data ICVL --out stores/icvl
    python -m sohandnet.prepare --data processed --source mat --out stores/icvl_reference

Every frame: crop, oriented box, 1,024 points with normals, 64 SOM nodes and their neighbours (``sohandnet.orient``; the
original needs two MATLAB toolboxes for the first half and lost the program for the second, README, ledger Q4). A
frame's random points depend on the seed and its name alone, so the number of workers changes no byte. A killed
preparation goes on with ``--resume``. Frames that cannot be used are counted, listed in the store's manifest, and never
replaced.

``--source mat`` and ``archive`` read what the original's programs wrote: MATLAB files per sequence, or the published
archive with a file per frame.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.datasets import icvl
from shared.datasets.base import Frame
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse
from shared.safe_io import atomic_path, atomic_write_text, load_npz
from sohandnet import orient
from sohandnet.data import fixed_points, limited
from sohandnet.orient import MIN_POINTS, Box, Intrinsics, Space
from sohandnet.store import (
    DTYPES,
    MANIFEST,
    Store,
    check_folder,
    check_same,
    open_store,
    protocol_line,
    space_of,
    write_split,
)

CHUNK = 64  # frames whose nodes are trained together, and the unit of --resume
MAX_MAT_BYTES = 1 << 30  # the largest of the original's MATLAB files have about 100 MB
JOINTS = 16
FARTHEST_MM = 10_000.0  # of a label; the camera's range ends at one metre
_PROCESSED = ("Point_Cloud", "Volume_rotate", "Volume_length", "Volume_offset", "Volume_GT_XYZ")


@dataclass
class Prepare:
    """Options of the program.

    Args:
        data: folder of the ICVL data set, or of the original's processed files
        out: folder of the store; the splits are written beside one another
        split: train, test, or both
        source: icvl (depth images), mat (the original's MATLAB files), or archive (its published .npz files)
        intrinsics: true millimetres (default for icvl), or reference, the original's inverted factors, which its
            published networks need (always so for mat and archive)
        crop: which points are the hand: ground-truth (box of the labelled joints + 20 mm, as in the original, also for
            testing), centers (cube around centres from a file), or depth (cube around the nearest object)
        centers: V2V-PoseNet centre files: a file, or the folder with center_{train,test}_refined.txt
        cube_mm: edge of the cube of the last two [mm]
        include_rotated: also the copies rotated in the plane of the picture (training)
        limit: prepare this many frames of each split, evenly spread; 0 means all [frames]
        points: points per cloud [points]
        nodes: SOM nodes, a square number [nodes]
        neighbours: nearest nodes stored for each node [nodes]
        workers: processes; 0 works in this one [processes]
        seed: of the random points
        resume: go on with a preparation that was interrupted; finished splits are kept
    """

    data: str = ""
    out: str = ""
    split: Literal["train", "test", "both"] = "both"
    source: Literal["icvl", "mat", "archive"] = "icvl"
    intrinsics: Literal["true", "reference"] | None = None
    crop: Literal["ground-truth", "centers", "depth"] = "ground-truth"
    centers: str = ""
    cube_mm: float = 200.0
    include_rotated: bool = False
    limit: int = 0
    points: int = orient.POINTS
    nodes: int = 64
    neighbours: int = 9
    workers: int = 2
    seed: int = 0
    resume: bool = False


def main() -> None:
    parsed = parse(
        Prepare,
        prog="python -m sohandnet.prepare",
        description="Prepare depth images for SO-HandNet: oriented clouds with normals and SOM nodes, in one store.",
    )
    prepare(parsed.options)


class Raw(NamedTuple):
    """A frame on the way in: points (6, N), its box, normalised joints (3, J), points of its crop, nodes (3, M).

    The cloud of a processed file is (n, 6) as stored until it is brought to N points.
    """

    cloud: NDArray[np.float32]
    box: Box
    joints: NDArray[np.float32]
    crop_points: int
    node: NDArray[np.float32] | None = None


# ---------------------------------------------------------------------------------------------------- depth images


def crop_box(
    frame: Frame, space: Space, crop: str, cube_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | str:
    """Corners of the hand's box in ``space``, or why there is none."""
    if crop == "ground-truth":
        assert frame.joints_mm is not None
        return orient.joint_box(space.from_camera(frame.joints_mm))
    assert frame.depth_mm is not None
    center = frame.center_mm if crop == "centers" else orient.find_hand(frame.depth_mm, frame.K, cube_mm=cube_mm)
    if center is None:
        return "frames in which no hand was found"
    return orient.cube_box(center, cube_mm, space)


def from_depth(frame: Frame, options: Mapping[str, Any]) -> Raw | str:
    """A labelled depth frame oriented, or the reason for which it cannot be used."""
    if frame.joints_valid is not None and not frame.joints_valid.all():
        return "labels with a joint without depth"
    if frame.joints_mm is not None and np.abs(frame.joints_mm).max() > FARTHEST_MM:
        return f"labels with a joint more than {FARTHEST_MM / 1000:g} m away"
    space = space_of(options)
    corners = crop_box(frame, space, options["crop"], options["cube_mm"])
    if isinstance(corners, str):
        return corners
    assert frame.depth_mm is not None
    assert frame.joints_mm is not None
    points = orient.crop_points(frame.depth_mm, space, *corners)
    if not len(points):
        return "empty crops"
    if len(points) < MIN_POINTS:
        return f"crops of fewer than {MIN_POINTS} points"
    cloud, box = orient.oriented_cloud(points, frame_rng(options["seed"], frame.name), options["points"])
    joints = orient.normalise(space.from_camera(frame.joints_mm), box).T
    return Raw(cloud, box, joints.astype(np.float32), len(points))


def frame_rng(seed: int, name: str) -> np.random.Generator:
    """The generator of one frame: of the seed and its name, whoever prepares it and whatever else is there."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


# -------------------------------------------------------------------------------------------------- processed files


@dataclass(frozen=True)
class ProcessedSet:
    """Frames that the original's programs prepared; :func:`open_processed` makes one. Read sequence by sequence.

    Attributes:
        kind: ``"mat"`` or ``"archive"``.
        sequences: folder and name of each sequence.
        frames: (sequence, number) of each frame; the number is the row (mat) or the file's name (archive).
    """

    kind: str
    sequences: list[tuple[Path, str]]
    frames: list[tuple[int, int]]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def names(self) -> list[str]:
        return [f"{self.sequences[s][1]}/{number}" for s, number in self.frames]

    def __getitem__(self, index: int) -> Raw:
        """The frame with its cloud (n, 6) as stored.

        Raises:
            DataError: a file of other shapes, or with numbers that are not finite.
        """
        sequence, number = self.frames[index]
        folder, name = self.sequences[sequence]
        if self.kind == "archive":
            path = folder / "pc" / f"{number}.npz"
            found = load_npz(path)
            wanted = ("pc", "sn", "som_node", "gt_xyz", "volume_rotate", "volume_length", "volume_offset")
            missing = [key for key in wanted if key not in found]
            if missing:
                raise DataError(f"has no {', '.join(missing)}; found {', '.join(found)[:80]}", path=path)
            text = [key for key in wanted if found[key].dtype.kind not in "fiu"]
            if text:
                raise DataError(f"{text[0]} has no numbers, but {found[text[0]].dtype}", path=path)
            pc, sn, node, joints, rotation, length, offset = (np.asarray(found[key], np.float64) for key in wanted)
            if pc.shape != sn.shape or node.ndim != 2 or node.shape[1] != 3:
                raise DataError(f"positions {pc.shape}, normals {sn.shape}, nodes {node.shape} do not fit", path=path)
            cloud = np.concatenate([pc, sn], -1)
        else:
            path = folder / f"{name}_Point_Cloud.mat"
            parts = _mat_sequence(folder, name)
            cloud, rotation, length, offset, joints = (parts[key][number] for key in _PROCESSED)
            node = np.zeros((0, 3))
        shapes = {"cloud": cloud.shape[1:], "rotation": rotation.shape, "joints": joints.shape}
        expected = {"cloud": (6,), "rotation": (3, 3), "joints": (JOINTS, 3)}
        if shapes != expected or length.size != 1 or offset.size != 3:
            message = f"frame {number}: expected {expected}, one length and three offsets, found {shapes}"
            raise DataError(f"{message}, {length.size} and {offset.size}", path=path)
        for what, values in (
            ("cloud", cloud),
            ("box", rotation),
            ("box", length),
            ("offset", offset),
            ("label", joints),
            ("map", node),
        ):
            if not np.isfinite(values).all():
                raise DataError(f"frame {number}: the {what} has numbers that are not finite", path=path)
        if not float(length.reshape(())) > 0:
            raise DataError(f"frame {number}: the box has the length {float(length.reshape(())):g}", path=path)
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2:
            raise DataError(f"frame {number}: the axes of the box are not at right angles", path=path)
        box = Box(rotation, float(length.reshape(())), offset.reshape(3))
        return Raw(
            *(cloud.astype(np.float32), box, joints.T.astype(np.float32), 0),
            node.T.astype(np.float32) if len(node) else None,
        )


@lru_cache(maxsize=1)
def _mat_sequence(folder: Path, name: str) -> dict[str, NDArray[np.float64]]:
    """The five arrays of a sequence, one row a frame; the last sequence is kept."""
    from shared.datasets.matlab import read_array

    variables = ("Point_Cloud_FPS", *_PROCESSED[1:])
    paths = [folder / f"{name}_{file}.mat" for file in _PROCESSED]
    arrays = {
        file: read_array(path, variable, max_bytes=MAX_MAT_BYTES)
        for file, path, variable in zip(_PROCESSED, paths, variables, strict=True)
    }
    rows = {key: len(array) for key, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"the files of sequence {name} have different numbers of frames: {rows}", path=paths[0])
    return arrays


def open_processed(root: str | Path, kind: Literal["mat", "archive"], split: str) -> ProcessedSet:
    """What the original's programs wrote, wherever below ``root``; sequences called Test... are the test split.

    Raises:
        MissingFileError: no such folder, or nothing of that kind and split in it.
        DataError: a MATLAB file that cannot be read, or files of a sequence that do not fit together.
    """
    root = Path(root)
    pattern = "*_Point_Cloud.mat" if kind == "mat" else "*/pc/*.npz"
    found = sorted(root.rglob(pattern)) if root.is_dir() else []
    if kind == "mat":
        sequences = [(path.parent, path.name.removesuffix("_Point_Cloud.mat")) for path in found]
    else:
        sequences = sorted({(path.parent.parent, path.parent.parent.name) for path in found})
    sequences = [(folder, name) for folder, name in sequences if name.startswith("Test") == (split == "test")]
    if not sequences:
        raise MissingFileError(
            f"no {pattern} of a {split} sequence here", path=root, remedy="check --data and --source"
        )
    frames = []
    for place, (folder, name) in enumerate(sequences):
        if kind == "mat":
            numbers = list(range(len(_mat_sequence(folder, name)["Point_Cloud"])))
        else:
            stems = [path.stem for path in (folder / "pc").glob("*.npz")]
            strange = [stem for stem in stems if not stem.isdecimal()]
            if strange:
                raise DataError(f"expected <number>.npz, found {strange[0]}.npz", path=folder / "pc")
            numbers = sorted(map(int, stems))
        frames += [(place, number) for number in numbers]
    return ProcessedSet(kind, sequences, frames)


# ---------------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True)
class Job:
    """What a worker needs: frames, which of them, the store's options, and the folder of the parts."""

    frames: Any
    indices: NDArray[np.int64]
    options: Mapping[str, Any]
    folder: Path
    size: int  # of a chunk, frames

    def chunks(self) -> int:
        return -(-len(self.indices) // self.size)

    def chunk(self, number: int) -> NDArray[np.int64]:
        return self.indices[number * self.size : (number + 1) * self.size]

    def part(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.npz"


def prepare(options: Prepare, progress: bool = True) -> Store:
    """Writes the splits and returns the store.

    Raises:
        MissingFileError: the data set, its label files or its pictures are not there.
        DataError: options that do not fit, a damaged picture or label file (named), a store or an interrupted
            preparation of other options in the folder.
    """
    settings = store_options(options)
    out = Path(options.out)
    splits = ("train", "test") if options.split == "both" else (options.split,)
    jobs = {}
    for split in splits:
        job = open_job(options, settings, split, out)
        if job is not None:
            jobs[split] = job
    store = None
    for split, job in jobs.items():
        start = time.monotonic()
        run_job(job, options.workers, split, progress)
        store = finish(job, split, out)
        _print_report(store, split, job.frames, time.monotonic() - start)
    return store or open_store(out)


def store_options(options: Prepare) -> dict[str, Any]:
    """What decides the content of a store, checked, as it is written into the manifest."""
    for name in ("data", "out"):
        if not getattr(options, name):
            raise DataError(f"--{name} is empty", remedy="it names the folder of the data set or of the store")
    check_folder(options.out, "out")
    side = round(min(max(options.nodes, 0), 2000) ** 0.5)
    if side * side != options.nodes or not 1 <= side <= 32:
        raise DataError(
            f"--nodes must be a square number from 1 to 1024, got {options.nodes}", remedy="64 in the paper"
        )
    if not 1 <= options.neighbours <= options.nodes:
        raise DataError(f"--neighbours must be between 1 and {options.nodes} (--nodes), got {options.neighbours}")
    for name, low in (("points", 1), ("workers", 0), ("seed", 0), ("limit", 0), ("cube_mm", 1)):
        if not low <= getattr(options, name) < 1e9:
            raise DataError(f"--{name} must be at least {low}, got {getattr(options, name)}")
    if bool(options.centers) != (options.crop == "centers"):
        raise DataError("--crop centers and --centers FILE belong together", remedy="give both, or neither of them")
    processed = options.source != "icvl"
    if processed and (options.intrinsics == "true" or options.crop != "ground-truth" or options.include_rotated):
        raise DataError(
            f"--source {options.source} was cropped by labels in the original's space already",
            remedy="leave out --intrinsics true, --crop and --include_rotated",
        )
    intrinsics: Intrinsics = options.intrinsics or ("reference" if processed else "true")
    return {
        "source": options.source,
        "intrinsics": intrinsics,
        "crop": options.crop,
        "cube_mm": float(options.cube_mm),
        "include_rotated": options.include_rotated,
        "limit": options.limit,
        "points": options.points,
        "nodes": options.nodes,
        "neighbours": options.neighbours,
        "seed": options.seed,
        "skeleton": "icvl",
        "K": orient.ICVL_K.tolist(),
    }


def open_job(options: Prepare, settings: dict[str, Any], split: str, out: Path) -> Job | None:
    """The work of a split with the folder of its parts ready; None if it is done already.

    Raises:
        DataError: the split is there (without ``--resume``), or what is there belongs to other options or data.
    """
    folder = out / f".parts-{split}"
    if (out / MANIFEST).is_file():
        store = open_store(out)
        check_same(store, settings)
        if split in store.splits:
            if options.resume:
                print(f"{split}: {len(store.splits[split])} frames are there already")
                return None
            raise DataError(
                f"the {split} split is there already", path=out, remedy="--resume keeps it; or choose --out"
            )
    frames: Any
    if options.source == "icvl":
        frames = icvl.open(
            options.data,
            "train" if split == "train" else "test",
            include_rotated=options.include_rotated,
            centers=options.centers or None,
            focal="evaluation",
        )
    else:
        frames = open_processed(options.data, options.source, split)
    indices = limited(len(frames), options.limit)
    names = frames.names()
    checked = "\n".join(names[i] for i in indices).encode()
    for key in ("joints_uvd", "centers_mm"):
        if getattr(frames, key, None) is not None:
            checked += getattr(frames, key).tobytes()
    description = {**settings, "chunk": CHUNK, "frames": len(indices), "names and labels": zlib.crc32(checked)}
    note = folder / "job.json"
    if note.is_file():
        if not options.resume:
            raise DataError(
                f"a preparation of the {split} split was interrupted here",
                path=folder,
                remedy="go on with --resume, or remove this folder",
            )
        try:
            before = dict(json.loads(note.read_bytes()))
        except (ValueError, TypeError, RecursionError):
            raise DataError("damaged", path=note, remedy=f"remove {folder} and prepare again") from None
        for key, value in description.items():
            if before.get(key) != value:
                raise DataError(
                    f"the interrupted preparation has {key} = {before.get(key)}, this one {value}",
                    path=folder,
                    remedy="resume with the same options and data, or remove this folder",
                )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(note, json.dumps(description, indent=1) + "\n")
    return Job(frames, indices, settings, folder, CHUNK)


def run_job(job: Job, workers: int, split: str, progress: bool) -> None:
    """Makes the parts that are not there yet, in this process or in ``workers`` others."""
    from tqdm import tqdm

    from shared.pool import in_processes

    todo = [chunk for chunk in range(job.chunks()) if not job.part(chunk).is_file()]
    done = len(job.indices) - sum(len(job.chunk(number)) for number in todo)
    quiet = not sys.stderr.isatty()
    bar = tqdm(
        total=len(job.indices),
        initial=done,
        desc=f"prepare {split}",
        unit="frame",
        mininterval=20 if quiet else 0.2,
        disable=not progress,
    )
    with bar:
        if workers == 0 or len(todo) < 2:
            for chunk in todo:
                bar.update(make_part(job, chunk))
            return
        for count in in_processes(_work, [(chunk,) for chunk in todo], workers, start=(_start, job)):
            bar.update(count)


_JOB: Job | None = None  # of this worker process


def _start(job: Job) -> None:
    global _JOB
    os.environ["OMP_NUM_THREADS"] = "1"  # torch is not imported yet in a fresh process
    _JOB = job


def _work(chunk: int) -> int:
    assert _JOB is not None
    return make_part(_JOB, chunk)


def make_part(job: Job, chunk: int) -> int:
    """Prepares one chunk and writes its part; returns how many frames it had, usable or not."""
    all_names = job.frames.names()
    raws, names, skipped = [], [], []
    for index in job.chunk(chunk):
        name = all_names[index]
        frame: Frame | Raw = job.frames[index]
        raw: Raw | str
        if isinstance(frame, Frame):
            raw = from_depth(frame, job.options)
        elif not len(frame.cloud):
            raw = "empty crops"
        else:
            cloud = fixed_points(frame.cloud, job.options["points"], frame_rng(job.options["seed"], name)).T
            raw = frame._replace(cloud=cloud)
        if isinstance(raw, str):
            skipped.append((raw, name))
        else:
            raws.append(raw)
            names.append(name)
    arrays = _arrays(raws, job.options) if raws else {}
    text = {"names": names, "skipped_reason": [r for r, _ in skipped], "skipped_name": [n for _, n in skipped]}
    with atomic_path(job.part(chunk)) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **{key: np.array(some, np.str_) for key, some in text.items()})
    return len(job.chunk(chunk))


def _arrays(raws: list[Raw], options: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The stored arrays of a chunk: the frames' own, and the nodes of their clouds where they have none."""
    import torch

    from sohandnet.kernels import ops
    from sohandnet.som import train_som

    clouds = np.stack([raw.cloud for raw in raws])
    stored = [raw.node for raw in raws if raw.node is not None and raw.node.shape[1] == options["nodes"]]
    if len(stored) == len(raws):
        nodes = torch.from_numpy(np.stack(stored))
    else:
        nodes = train_som(torch.from_numpy(np.ascontiguousarray(clouds[:, :3])), options["nodes"])
    arrays = {
        "cloud": clouds,
        "node": nodes.numpy(),
        "node_knn": ops.node_knn(nodes, options["neighbours"]).numpy(),
        "joints": np.stack([raw.joints for raw in raws]),
        "rotation": np.stack([raw.box.rotation for raw in raws]),
        "length": np.array([raw.box.length for raw in raws]),
        "offset": np.stack([raw.box.offset for raw in raws]),
        "crop_points": np.array([raw.crop_points for raw in raws]),
    }
    return {key: np.ascontiguousarray(array, DTYPES[key]) for key, array in arrays.items()}


def finish(job: Job, split: str, out: Path) -> Store:
    """Puts the parts together into the store and removes them."""
    names: list[str] = []
    skipped: dict[str, list[str]] = {
        reason: [name.removesuffix(".png") for name in some] for reason, some in job.frames.skipped.items()
    }
    for chunk in range(job.chunks()):
        part = load_npz(job.part(chunk))
        names += part["names"].tolist()
        for reason, name in zip(part["skipped_reason"].tolist(), part["skipped_name"].tolist(), strict=True):
            skipped.setdefault(reason, []).append(name)
    skipped.pop("rotated copies", None)  # left out by choice, and 300,000 names long

    def parts() -> Iterator[Mapping[str, NDArray[Any]]]:
        for chunk in range(job.chunks()):
            part = load_npz(job.part(chunk))
            if "cloud" in part:
                yield part

    store = write_split(out, split, job.options, parts(), names, skipped)
    shutil.rmtree(job.folder)
    return store


def _print_report(store: Store, split: str, frames: Any, seconds: float) -> None:
    part = store.splits[split]
    size = sum(os.path.getsize(store.root / split / f"{name}.npy") for name in DTYPES) / 2**20
    print(f"{split}: {len(part)} frames in {seconds:.1f} s, {size:.0f} MB in {store.root / split}")
    print(f"  {protocol_line(store.options)}; median crop {int(np.median(part.arrays['crop_points']))} points")
    for reason, names in part.skipped.items():
        print(f"  skipped {len(names)} {reason}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    if getattr(frames, "ignored", 0):
        print(f"  {frames.ignored} label lines after the {icvl.TRAIN_LINES}th ignored")


if __name__ == "__main__":
    exit_on_error(main)
