"""NYU frames to 64 x 64 crops of all views: ``python -m selfsup_fitting.prepare --data NYU --out DIR``.

Crops are cut around the annotated palm joint with an orthographic camera, as in the original's converter, or around
other centres (``--centers``). In several processes; a run that was interrupted continues with the shards that are
missing. ``--original`` reads the npy-64 files of the original's converter instead.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup_fitting.config import PrepareConfig
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse
from shared.pool import in_processes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PALM = 32  # PALM_3, the annotation that crops are centred on
OF_PICTURES = ("views", "shard_size", "jobs", "zbuffer", "intrinsics", "calibration", "missing", "limit")
REFERENCE_INTRINSICS = (588.235, 587.084, 320.0, 240.0)
OUTSIDE = "frames whose centre is outside the image"
MISSING = "frames with a missing picture"
UNLABELLED = "frames without labels"
EMPTY = "frames of which a picture is empty"


def crop(
    depth_mm: NDArray[np.float32],
    center_mm: NDArray[np.float64],
    K: NDArray[np.float64],
    *,
    zbuffer: bool = False,
    clamp_far: bool = True,
) -> NDArray[np.float32]:
    """(64, 64) orthographic depth around a centre, mm from it, 100 where nothing is.

    Every pixel of the perspective picture inside the cube lands in the cell of its x and y (truncated towards zero, so
    that (-1, 0) counts as cell 0). Cells that several pixels hit keep the last in row-major order, or the nearest with
    ``zbuffer``; cells that none hits stay background.

    Args:
        depth_mm: (H, W).
        center_mm: (3,), in front of the camera by more than 150 mm.
        K: (3, 3) pixels.
        zbuffer: see above; the original has none.
        clamp_far: depth beyond +100 becomes background, as in synthetic images; the original keeps it.
    """
    import numpy as np

    from selfsup_fitting.shards import BACKGROUND_MM, CUBE_MM, IMAGE

    height, width = depth_mm.shape
    half, (x, y, z) = CUBE_MM / 2, center_mm.astype(np.float64)
    near = max(z - half, 1.0)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    left, right = int(max(fx * (x - half) / near + cx, 0)), int(min(fx * (x + half) / near + cx, width))
    top, bottom = int(max(fy * (y - half) / near + cy, 0)), int(min(fy * (y + half) / near + cy, height))
    out = np.full((IMAGE, IMAGE), BACKGROUND_MM, np.float32)
    if left >= right or top >= bottom:
        return out
    part = depth_mm[top:bottom, left:right]
    rows, columns = np.nonzero((part >= z - half) & (part < z + half))
    d = part[rows, columns].astype(np.float64)
    scale = IMAGE / CUBE_MM
    u = ((((columns + left) - cx) * d / fx - x) * scale + IMAGE / 2).astype(np.int64)
    v = ((((rows + top) - cy) * d / fy - y) * scale + IMAGE / 2).astype(np.int64)
    inside = (u >= 0) & (u < IMAGE) & (v >= 0) & (v < IMAGE)
    cells, values = v[inside] * IMAGE + u[inside], (d - z)[inside]
    if zbuffer:
        order = np.argsort(-values, kind="stable")
        cells, values = cells[order], values[order]
    out.reshape(-1)[cells] = values  # of repeated cells NumPy keeps the last
    return np.minimum(out, BACKGROUND_MM, dtype=np.float32) if clamp_far else out


def camera_matrix(which: str) -> NDArray[np.float64]:
    """(3, 3) of the official MATLAB script, or the rounded one of the original."""
    from shared import camera
    from shared.datasets import nyu

    return nyu.K if which == "official" else camera.intrinsics(*REFERENCE_INTRINSICS)


@dataclass(frozen=True)
class _Job:
    """What a process needs for one shard."""

    source: Path
    target: Path
    index: int
    numbers: tuple[int, ...]
    views: tuple[int, ...]
    K: Any
    joints_mm: Any  # (frames, V, 36, 3) in each camera
    centers_mm: Any  # (frames, V, 3) in each camera, None to find them in the pictures
    T_cam1_cam: Any  # (frames, V, 4, 4)
    zbuffer: bool
    clamp_far: bool
    skip_missing: bool


def _write(job: _Job) -> tuple[int, int, dict[str, list[str]]]:
    """Cuts the frames of one shard; (index, frames kept, reason -> names left out)."""
    import numpy as np

    from selfsup_fitting.multiview import crop_poses
    from selfsup_fitting.predict import find_center
    from selfsup_fitting.shards import record_type, shard_path, write_shard
    from shared.datasets.nyu import SIZE, labelled, read_depth
    from shared.safe_io import atomic_write_text

    skipped: dict[str, list[str]] = {}
    records = np.zeros(len(job.numbers), record_type(len(job.views)))
    kept = 0
    for i, number in enumerate(job.numbers):
        centers = None if job.centers_mm is None else job.centers_mm[i]
        name = f"{job.source.name}/{number:07d}"
        if not labelled(job.joints_mm[i]).all():
            skipped.setdefault(UNLABELLED, []).append(name)
            continue
        if centers is not None and not _inside(centers, job.K, SIZE):
            skipped.setdefault(OUTSIDE, []).append(name)
            continue
        try:
            pictures = [read_depth(job.source / f"depth_{view}_{number:07d}.png") for view in job.views]
        except MissingFileError:
            if not job.skip_missing:
                raise
            skipped.setdefault(MISSING, []).append(name)
            continue
        if centers is None:
            if not all(picture.any() for picture in pictures):
                skipped.setdefault(EMPTY, []).append(name)
                continue
            centers = np.stack([find_center(picture, job.K, name) for picture in pictures])
            if (centers[:, 2] <= 150).any():
                skipped.setdefault(OUTSIDE, []).append(name)
                continue
        record = records[kept]
        record["number"] = number
        for view, picture in enumerate(pictures):
            record["depth_mm"][view] = crop(picture, centers[view], job.K, zbuffer=job.zbuffer, clamp_far=job.clamp_far)
        record["center_mm"] = centers
        record["joints_mm"] = job.joints_mm[i] - centers[:, None]
        record["T_canon_view"] = crop_poses(job.T_cam1_cam[i], centers)
        kept += 1
    if kept:
        write_shard(shard_path(job.target, job.index), records[:kept])
    report = {"kept": kept, "skipped": skipped}
    atomic_write_text(_report_path(job.target, job.index), json.dumps(report) + "\n")
    return job.index, kept, skipped


def _inside(centers_mm: NDArray[np.float64], K: NDArray[np.float64], size: tuple[int, int]) -> bool:
    """Whether all centres (V, 3) are in their pictures and far enough away for a crop."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        uv = centers_mm[:, :2] / centers_mm[:, 2:] * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]
    return bool(((uv >= 0) & (uv < size)).all() and (centers_mm[:, 2] > 150).all())


def given_centers(
    centers: str, split: str, views: tuple[int, ...], joints_mm: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """(frames, V, 3) what crops are cut around, mm in each camera; None for ``nearest``: to be found in the pictures.

    Args:
        centers: ``palm`` (the annotated joint), ``nearest``, or a folder with a file ``<split>_<camera>.txt`` for each
            camera, x y z of a frame a line.
        split, views: which files.
        joints_mm: (V, frames, 36, 3) labels; a file must have as many lines as there are frames.

    Raises:
        MissingFileError, DataError: no such file, other lines.
    """
    import numpy as np

    from shared.predictions import read_predictions

    if centers == "nearest":
        return None
    if centers == "palm":
        return np.ascontiguousarray(joints_mm[:, :, PALM].swapaxes(0, 1))
    found = []
    for view in views:
        path = Path(centers) / f"{split}_{view}.txt"
        if not path.is_file():
            raise MissingFileError(
                "expected the centres of a camera, found no such file",
                path=path,
                remedy="--centers: palm, nearest, or a folder of <split>_<camera>.txt, x y z (mm) of a frame a line",
            )
        found.append(read_predictions(path, 1)[:, 0])
        if len(found[-1]) != joints_mm.shape[1]:
            raise DataError(f"expected {joints_mm.shape[1]} lines, one a frame, found {len(found[-1])}", path=path)
    return np.stack(found, 1)


def _report_path(folder: Path, index: int) -> Path:
    return folder / f"shard_{index:04d}.json"


def _done(folder: Path, index: int) -> tuple[int, int, dict[str, list[str]]] | None:
    """What an earlier run wrote for a shard, or None."""
    from selfsup_fitting.shards import shard_path

    path = _report_path(folder, index)
    if not path.is_file():
        return None
    report = _read_json(path)
    kept, skipped = report.get("kept"), report.get("skipped")
    if not isinstance(kept, int) or kept < 0 or not isinstance(skipped, dict):
        raise DataError("damaged note of an earlier run", path=path, remedy="delete it and prepare again")
    if kept and not shard_path(folder, index).is_file():
        return None
    return index, kept, skipped


def _read_json(path: Path) -> dict[str, Any]:
    """A note of an earlier run; raises DataError for a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DataError("damaged note of an earlier run", path=path, remedy="delete it and prepare again")
    return content


def prepare_split(options: PrepareConfig, split: str) -> None:
    """Converts one split; writes ``<out>/<split>/manifest.json`` at the end.

    Raises:
        MissingFileError: the split, its labels or a picture is not where it has to be.
        DataError: damaged labels or pictures, or ``out`` holds shards made with other options.
    """
    import numpy as np
    from tqdm import tqdm

    from selfsup_fitting.multiview import calibrate, sequences
    from selfsup_fitting.shards import Manifest, write_manifest
    from shared.datasets import nyu
    from shared.datasets.labels import find_folder, require_file

    source = find_folder(
        options.data, (split, f"dataset/{split}", f"NYU/{split}", f"NYU/dataset/{split}"), what="NYU", page=nyu.PAGE
    )
    labels = nyu.read_labels(require_file(source / "joint_data.mat", what="NYU labels", page=nyu.PAGE))
    views = tuple(options.views)
    xyz = labels.xyz_mm[[view - 1 for view in views]]
    count = xyz.shape[1] if not options.limit else min(options.limit, xyz.shape[1])
    _check_views(source, views, count, options.missing)
    if len(views) > 1:
        T, rms = calibrate(xyz[:, :count], sequences(split, count), options.calibration)
    else:
        T, rms = np.tile(np.eye(4), (count, 1, 1, 1)), np.zeros((1, 1))
    target = Path(options.out) / split
    target.mkdir(parents=True, exist_ok=True)
    plan = {
        name: getattr(options, name)
        for name in ("zbuffer", "clamp_far", "intrinsics", "calibration", "shard_size", "missing")
    }
    if options.centers != "palm":
        plan["centers"] = options.centers
    centers = given_centers(options.centers, split, views, xyz)
    _check_plan(target, {**plan, "views": list(views), "frames": count, "source": str(source.resolve())})

    size = options.shard_size
    jobs, results = [], []
    for index, start in enumerate(range(0, count, size)):
        earlier = _done(target, index)
        if earlier is not None:
            results.append(earlier)
            continue
        part = slice(start, min(start + size, count))
        jobs.append(
            _Job(
                source=source,
                target=target,
                index=index,
                numbers=tuple(range(part.start + 1, part.stop + 1)),
                views=views,
                K=camera_matrix(options.intrinsics),
                joints_mm=np.ascontiguousarray(xyz[:, part].swapaxes(0, 1)),
                centers_mm=None if centers is None else centers[part],
                T_cam1_cam=T[part],
                zbuffer=options.zbuffer,
                clamp_far=options.clamp_far,
                skip_missing=options.missing == "skip",
            )
        )
    processes = min(options.jobs or os.cpu_count() or 1, max(1, len(jobs)))
    if results:
        print(f"{split}: {len(results)} shards are there already, {len(jobs)} to do", flush=True)
    with tqdm(total=len(jobs) + len(results), initial=len(results), unit="shard", desc=f"NYU {split}") as bar:
        for result in in_processes(_write, [(job,) for job in jobs], processes):
            results.append(result)
            bar.update()
    results.sort()
    skipped: dict[str, list[str]] = {}
    for _, _, left_out in results:
        for reason, listed in left_out.items():
            skipped.setdefault(reason, []).extend(listed)
    if not any(kept for _, kept, _ in results):
        raise DataError(
            f"none of the {count} frames could be converted: "
            + ", ".join(f"{len(names)} {reason}" for reason, names in skipped.items()),
            path=source,
            remedy="is this the official joint_data.mat, and are the pictures there?",
        )
    if count < xyz.shape[1]:
        plan["limit"] = count  # what is left out cannot be seen in the shards
    manifest = Manifest(split, views, tuple(kept for _, kept, _ in results), plan, skipped, rms.tolist())
    write_manifest(target, manifest)
    print(f"{manifest.summary()}; calibration per {options.calibration}, {rms.max():.2f} mm rms left")
    if rms.max() > 5:
        print(
            "warning: the cameras moved within a sequence, or their labels disagree; --calibration frame fits every "
            "frame by itself"
        )
    for reason, names in skipped.items():
        print(f"skipped: {len(names)} {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")


def _check_views(source: Path, views: tuple[int, ...], count: int, missing: str) -> None:
    """Refuses a tree with fewer cameras than asked for, before hours of work."""
    absent = [view for view in views if not any((source / f"depth_{view}_{n:07d}.png").is_file() for n in (1, count))]
    if absent and (missing == "error" or len(absent) == len(views)):
        raise MissingFileError(
            f"expected the pictures of cameras {', '.join(map(str, views))}, "
            f"found none of {', '.join(map(str, absent))} (looked for depth_{absent[0]}_{1:07d}.png)",
            path=source,
            remedy="unpack all cameras, or give --views with those that are there (multi-view terms need two at least)",
        )


def _check_plan(target: Path, plan: dict[str, Any]) -> None:
    """Notes the options, or refuses to mix shards of other options into a folder."""
    from shared.safe_io import atomic_write_text

    path = target / "plan.json"
    if path.is_file():
        old = _read_json(path)
        if old != plan:
            names = [name for name in {**old, **plan} if old.get(name) != plan.get(name)]
            other = ", ".join(f"{name} {old.get(name)!r}" for name in names)
            raise DataError(f"holds shards made with {other}", path=target, remedy="choose another --out, or delete it")
        return
    atomic_write_text(path, json.dumps(plan, indent=1) + "\n")


# --- the original's own files -----------------------------------------------------------------------------------------


def convert_original(options: PrepareConfig, split: str) -> None:
    """``<original>/<split>/mv_data_<k>_{shape.pkl, dms.bat, joint_poses.npy, camera_poses.npy}`` to shards.

    The pickle is read by the restricted reader; camera poses whose translation is in the last row are turned.

    Raises:
        MissingFileError, DataError: no such files; sizes that do not fit; a pickle with anything but the shapes.
    """
    import numpy as np

    from selfsup_fitting.multiview import column_layout
    from selfsup_fitting.shards import (
        ANNOTATIONS,
        BACKGROUND_MM,
        IMAGE,
        Manifest,
        record_type,
        shard_path,
        write_manifest,
        write_shard,
    )
    from shared.safe_io import load_npy

    root = Path(options.original)
    source = next((f for f in (root / split, root / "npy-64" / split) if f.is_dir()), None)
    if source is None:
        raise MissingFileError(
            f"no folder {split} or npy-64/{split} here", path=root, remedy="give the folder npy-64 with train and test"
        )
    found = {path.name.split("_")[2]: path for path in source.glob("mv_data_*_shape.pkl")}
    if odd := [path.name for number, path in found.items() if not (number.isascii() and number.isdigit())]:
        raise DataError(f"expected mv_data_<number>_shape.pkl, found {odd[0]}", path=source, remedy="move it away")
    shapes = [found[number] for number in sorted(found, key=int)]
    if not shapes:
        raise MissingFileError("no mv_data_*_shape.pkl here", path=source, remedy="give the original's npy-64 folder")
    target = Path(options.out) / split
    target.mkdir(parents=True, exist_ok=True)
    how = {"source": "original", "clamp_far": options.clamp_far, "keep_translation": options.keep_translation}
    _check_plan(target, {**how, "original": str(source.resolve())})
    frames: list[int] = []
    turned = views = 0
    for path in shapes:
        stem = path.name.removesuffix("_shape.pkl")
        n, here = _original_shape(path)
        if frames and here != views:
            raise DataError(f"has {here} views, the files before it {views}", path=path, remedy="convert it again")
        views = here
        bat = source / f"{stem}_dms.bat"
        expected = n * views * IMAGE * IMAGE * 4
        if not bat.is_file() or bat.stat().st_size != expected:
            size = bat.stat().st_size if bat.is_file() else "no such file"
            raise DataError(f"expected {expected} bytes, found {size}", path=bat, remedy="convert it again")
        records = np.zeros(n, record_type(views))
        records["number"] = np.arange(n) + sum(frames) + 1
        depth = np.fromfile(bat, "<f4").reshape(n, views, IMAGE, IMAGE)
        if not np.isfinite(depth).all():
            raise DataError("holds depth that is not finite (NaN)", path=bat, remedy="convert it again")
        records["depth_mm"] = np.minimum(depth, BACKGROUND_MM) if options.clamp_far else depth
        for field, name, shape in (
            ("joints_mm", "joint_poses", (n, views, ANNOTATIONS, 3)),
            ("T_canon_view", "camera_poses", (n, views, 4, 4)),
        ):
            file = source / f"{stem}_{name}.npy"
            array = load_npy(file)
            if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
                raise DataError(f"expected finite numbers {shape}, found {array.dtype} {array.shape}", path=file)
            if field == "T_canon_view":
                try:
                    array, was_row = column_layout(array, keep_translation=options.keep_translation)
                except DataError as error:
                    raise DataError(str(error), path=file) from None
                turned += was_row
            records[field] = array
        write_shard(shard_path(target, len(frames)), records)
        frames.append(n)
    manifest = Manifest(split, tuple(range(1, views + 1)), tuple(frames), how)
    write_manifest(target, manifest)
    print(f"{manifest.summary()}; camera poses of {turned} files had their translation in the last row")


def _original_shape(path: Path) -> tuple[int, int]:
    """(frames, views) of a ``shape.pkl``: the shapes of depth, joints and poses."""
    from shared.safe_io import load_restricted_pickle

    content = load_restricted_pickle(path, max_bytes=10_000)
    values = list(content.values()) if isinstance(content, dict) else content
    first = values[0] if isinstance(values, (list, tuple)) and values else None
    if not isinstance(first, (list, tuple)) or len(first) != 4 or list(first[2:]) != [64, 64]:
        raise DataError(f"expected the shape (n, views, 64, 64) first, found {content!r:.100}", path=path)
    n, views = first[:2]
    if not all(isinstance(value, int) for value in (n, views)) or not (0 < n <= 100_000 and 0 < views <= 16):
        raise DataError(f"expected a number of frames and views, found {first!r}", path=path)
    return n, views


def main() -> None:
    options = parse(
        PrepareConfig,
        prog="python -m selfsup_fitting.prepare",
        description="Cut the hands out of NYU's depth pictures, all views, into shards for training by fitting.",
    ).options
    prepare(options)


def prepare(options: PrepareConfig) -> None:
    """All splits; checks the options first.

    Raises:
        DataError: options that contradict one another, and everything the splits raise.
    """
    if bool(options.data) == bool(options.original):
        raise DataError("expected one of --data (NYU itself) and --original (npy-64 files)")
    if options.original and options.centers != "palm":
        raise DataError("--centers needs the pictures: --original holds crops around the palm", remedy="give --data")
    if options.original:
        for name, default in vars(PrepareConfig()).items():
            if name in OF_PICTURES and getattr(options, name) != default:
                raise DataError(
                    f"--{name} says how pictures are cut: --original holds crops, all of which are taken as they are",
                    remedy="leave it out, or give --data",
                )
    if not options.out:
        raise DataError("--out is missing", remedy="name a folder for the shards")
    if not set(options.splits) <= {"train", "test"} or not options.splits:
        raise DataError(f"--splits: expected train and test, or one of them, got {options.splits}")
    if not options.views or len(set(options.views)) != len(options.views) or not set(options.views) <= {1, 2, 3}:
        raise DataError(f"--views: expected different numbers out of 1, 2, 3, got {options.views}")
    if options.shard_size < 1 or options.jobs < 0 or options.limit < 0:
        raise DataError("--shard_size must be at least 1, --jobs and --limit must not be negative")
    for split in options.splits:
        (prepare_split if options.data else convert_original)(options, split)


if __name__ == "__main__":
    exit_on_error(main)
