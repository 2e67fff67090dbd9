"""Prepares training data: crops, masks, joints and detections of Panoptic, MPII+NZSL and STB.

    python -m hand3d_wild.prepare --panoptic DIR --mpii DIR --stb DIR --out STORE --workers 8

Any subset of the three. Crops follow the authors' rule (2.2 times the joints' box, :mod:`hand3d_wild.crop`), left
hands become right ones (STB's before the crop, MPII's after it, as in the reference), joints get the network's order,
masks come from GrabCut. Whatever cannot be used is skipped, counted and listed in ``manifest.json``. ``--resume``
continues a killed run, tries skipped pictures again and makes masks and detections that are still missing.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hand3d_wild.config import PrepareConfig
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hand3d_wild.store import Split
    from shared.datasets.base import Frame, FrameDataset

    Float = NDArray[np.float64]

CHUNK = 8  # pictures a worker takes at a time
CAMERAS = {"both": ("BB_left", "BB_right"), "left": ("BB_left",), "right": ("BB_right",)}


@dataclass(frozen=True)
class Source:
    """An open data set, the split it goes to and its name in :data:`hand3d_wild.store.SOURCES`."""

    split: str
    name: str
    frames: FrameDataset


def main(argv: Sequence[str] | None = None) -> int:
    parsed = parse(
        PrepareConfig,
        prog="python -m hand3d_wild.prepare",
        description="Crops, masks and joints of Panoptic hand143, MPII+NZSL and STB for training.",
        argv=argv,
    )
    prepare(parsed.options)
    return 0


def open_sources(options: PrepareConfig) -> list[Source]:
    """The data sets that the options name, in the reference's order (Panoptic, MPII+NZSL, STB).

    Raises:
        DataError: none is named, or one cannot be used.
    """
    from shared.datasets import mpii_nzsl, panoptic, stb

    found: list[Source] = []
    if options.panoptic:
        found.append(Source("train", "panoptic", panoptic.open(options.panoptic)))
    if options.mpii:
        found += [
            Source("train", "mpii", mpii_nzsl.open(options.mpii, "train")),
            Source("test", "mpii", mpii_nzsl.open(options.mpii, "test")),
        ]
    if options.stb:
        for split, target in (("train", "train"), ("test", "stb_test")):
            for camera in CAMERAS[options.stb_cameras]:
                found.append(Source(target, "stb", stb.open(options.stb, split, camera=camera)))  # type: ignore[arg-type]
    if not found:
        raise DataError("no data set is named", remedy="give --panoptic DIR, --mpii DIR or --stb DIR, or several")
    return found


def to_wild(points: Any, skeleton: str) -> Any:
    """Joints (21, C) of a set in the order ``wild``; STB's palm centre becomes joint 0 (mind ``palm``)."""
    from shared import skeletons

    have = skeletons.get(skeleton)
    return points[[0, *(have.index(joint) for joint in skeletons.get("wild").joints[1:])]]


# ------------------------------------------------------------------------------------------------ one picture


def fill(row: Any, frame: Frame, *, mirror: bool) -> NDArray[np.uint8]:
    """Writes a frame's numbers into its row and returns the crop (320, 320, 3).

    Raises:
        DataError: no visible joint, or a crop without area.
    """
    import numpy as np

    from hand3d_wild.crop import STORED, crop_box, crop_rgb, mirror_points, to_crop
    from shared.camera import project

    rgb = frame.rgb
    assert rgb is not None
    points = frame.keypoints_2d
    if points is None:
        assert frame.joints_mm is not None
        points = project(frame.joints_mm, frame.K)
    points = to_wild(points, frame.skeleton)
    visible = np.isfinite(points).all(-1)
    if frame.joints_valid is not None:
        visible &= to_wild(frame.joints_valid, frame.skeleton)
    points = np.where(visible[:, None], points, np.nan)
    width = frame.image_size[0]
    turn = mirror and frame.side == "left"
    first = turn and frame.joints_mm is not None  # STB: the whole picture; MPII+NZSL: the crop
    if first:
        rgb, points = rgb[:, ::-1], mirror_points(points, width)
    box = crop_box(points, visible, frame.image_size, name=frame.name)
    picture, points = crop_rgb(rgb, box), to_crop(points, box)
    if turn and not first:
        picture, points = np.ascontiguousarray(picture[:, ::-1]), mirror_points(points, STORED)
    row["box"], row["points"], row["visible"] = box, points, visible
    row["left"] = frame.side == "left" and not turn
    row["palm"] = "palm" in frame.skeleton or frame.skeleton == "stb"
    row["has_3d"] = frame.joints_mm is not None
    row["joints_mm"] = np.nan
    if frame.joints_mm is not None:
        row["joints_mm"] = to_wild(frame.joints_mm, frame.skeleton) * ([-1, 1, 1] if turn else [1, 1, 1])
    return picture


def detections_folder(root: str | Path, dataset: str) -> Path:
    """Where a set's detections lie below ``root``; those of MPII+NZSL in ``mpii`` or ``mpii_nzsl``."""
    names = [dataset, *(name for name in ("mpii", "mpii_nzsl") if dataset.startswith("mpii"))]
    return next((Path(root) / name for name in names if (Path(root) / name).is_dir()), Path(root) / dataset)


def read_detections(path: Path, side: str | None) -> Float:
    """(21, 3) u, v, confidence in OpenPose order of the surest hand of that side in an OpenPose JSON file.

    Raises:
        MissingFileError, DataError: no such file; no person, no hand keypoints, or not 63 finite numbers.
    """
    hand = find_hand(path, side)
    if hand is None:
        raise DataError(_NO_HAND.format(_key(side)), path=path)
    return hand


_NO_HAND = "holds no 'people' with 63 numbers under {!r} and a confidence above 0"


def _key(side: str | None) -> str:
    return f"hand_{side or 'right'}_keypoints_2d"


def find_hand(path: Path, side: str | None) -> Float | None:
    """What :func:`read_detections` gives, or None where the detector has written that it sees no such hand.

    Raises:
        MissingFileError, DataError: no such file; no list of people.
    """
    import numpy as np

    from shared.datasets.labels import read_json

    if not path.is_file():
        raise MissingFileError("no such keypoint file", path=path)
    content = read_json(path, max_bytes=2**22)
    people = content.get("people") if isinstance(content, dict) else None
    key = _key(side)
    if not isinstance(people, list):
        raise DataError(_NO_HAND.format(key), path=path)
    found = []
    for person in people:
        try:
            hand = np.array(person[key], np.float64).reshape(21, 3)
        except (KeyError, TypeError, ValueError):
            continue
        if np.isfinite(hand).all() and (hand[:, 2] > 0).any():
            found.append(hand)
    return max(found, key=lambda hand: float(hand[:, 2].sum()), default=None)


def fill_detections(row: Any, frame: Frame, folder: Path, *, mirror: bool) -> None:
    """Writes the 2-D detector's joints, brought into the crop exactly as the labels are.

    They come from ``<name>_keypoints.json`` in the picture, or from the peaks of the original's seven heat-map files
    ``<name>_0.png`` to ``<name>_6.png`` of the stored crop (right hands).

    Raises:
        MissingFileError, DataError: neither is there; see :func:`read_detections` and
            :func:`hand3d_wild.heatmaps.read_maps`.
    """
    import numpy as np

    from hand3d_wild.crop import STORED, mirror_points, to_crop
    from hand3d_wild.heatmaps import group_paths, peaks_of, read_maps, unpack

    file = folder / f"{frame.name}_keypoints.json"
    if not file.is_file() and any(path.is_file() for path in group_paths(folder, frame.name)[1:]):
        row["detections"] = peaks_of(unpack(read_maps(folder, frame.name, (STORED, STORED)))).astype(np.float32)
        row["detected"] = True
        return
    hand = to_wild(read_detections(file, frame.side), "thumb_first")
    points, turn = hand[:, :2], mirror and frame.side == "left"
    first = turn and frame.joints_mm is not None
    if first:
        points = mirror_points(points, frame.image_size[0])
    points = to_crop(points, tuple(row["box"].tolist()))
    if turn and not first:
        points = mirror_points(points, STORED)
    row["detections"][:, :2], row["detections"][:, 2] = points, hand[:, 2]
    row["detected"] = True


def make_mask(row: Any, picture: NDArray[np.uint8], source: str, masks: str) -> NDArray[np.bool_]:
    """GrabCut's mask, or the user's from ``<masks>/<source>/<name>.png`` (any value above half is hand).

    Raises:
        DataError: GrabCut cannot start or finds no hand; the user's file is missing, damaged or of another size.
    """
    from hand3d_wild.crop import STORED
    from hand3d_wild.masks import hand_mask
    from shared.datasets.images import read_rgb

    if masks == "grabcut":
        mask = hand_mask(picture, row["points"], visible=row["visible"])
    else:
        file = Path(masks) / source / f"{os.fsdecode(bytes(row['name']))}.png"
        values = read_rgb(file, expected_size=(STORED, STORED)).max(-1)
        mask = values > values.max() / 2  # 0 and 255, or 0 and 1
    if not mask.any():
        raise DataError("no pixel is hand")
    return mask


# ------------------------------------------------------------------------------------------------ all pictures


class _Worker:
    """What one process needs: open data sets and the store's arrays, writable."""

    def __init__(self, options: PrepareConfig) -> None:
        import cv2

        from hand3d_wild.store import SPLITS, open_split

        cv2.setNumThreads(1)  # processes share the cores
        self.options = options
        self.places: dict[str, list[tuple[Source, int]]] = {split: [] for split in SPLITS}
        for source in open_sources(options):
            self.places[source.split] += [(source, i) for i in _chosen(source, options.limit)]
        self.splits: dict[str, Split] = {
            name: open_split(options.out, name, write=True) for name, places in self.places.items() if places
        }

    def __call__(self, chunk: tuple[str, list[int]]) -> int:
        for index in chunk[1]:
            self.one(chunk[0], index)
        return len(chunk[1])

    def one(self, split: str, index: int) -> None:
        """Picture, mask and numbers of one label; the row's marks are written last."""
        from hand3d_wild.store import MADE, NAME_BYTES, SKIPPED

        source, number = self.places[split][index]
        arrays, options = self.splits[split], self.options
        row = arrays.rows[index : index + 1].copy()[0]
        row["problem"] = row["mask_problem"] = b""
        frame = None
        try:
            if row["picture"] != MADE:
                frame = source.frames[number]
                if len(os.fsencode(frame.name)) > NAME_BYTES:
                    raise DataError(f"the name has {len(os.fsencode(frame.name))} bytes, at most {NAME_BYTES} are kept")
                arrays.pictures[index] = fill(row, frame, mirror=options.mirror)
                row["picture"] = MADE
        except DataError as error:
            row["picture"], row["problem"] = SKIPPED, _brief(error)
        if row["picture"] == MADE and options.detections and not row["detected"]:
            row["detection_problem"] = b""
            try:
                frame = frame or source.frames[number]
                fill_detections(row, frame, detections_folder(options.detections, source.name), mirror=options.mirror)
            except DataError as error:
                row["detection_problem"] = _brief(error)
        if row["picture"] == MADE and options.masks != "none" and row["mask"] != MADE:
            import numpy as np

            try:
                mask = make_mask(row, arrays.pictures[index], source.name, options.masks)
                arrays.masks[index] = np.packbits(mask, axis=-1)
                row["mask"] = MADE
            except DataError as error:
                row["mask"], row["mask_problem"] = SKIPPED, _brief(error)
        arrays.rows[index] = row


def _brief(error: DataError) -> bytes:
    """As much of a message as a row holds; names of files need not be UTF-8."""
    return os.fsencode(str(error))[:240]


_worker: _Worker | None = None


def _start_worker(options: PrepareConfig) -> None:
    global _worker
    _worker = _Worker(options)


def _run(chunk: tuple[str, list[int]]) -> int:
    assert _worker is not None
    return _worker(chunk)


def _chosen(source: Source, limit: int) -> list[int]:
    """Indices of the frames that are used: all, or ``limit`` of them, evenly spread."""
    count = len(source.frames)
    return list(range(count)) if not limit or limit >= count else [i * count // limit for i in range(limit)]


def _plan(sources: Iterable[Source], options: PrepareConfig) -> list[list[Any]]:
    """What a store holds, in order: a resumed run must find the same."""
    plan = []
    for source in sources:
        names = source.frames.names()
        chosen = "\n".join(names[i] for i in _chosen(source, options.limit))
        plan.append([source.split, source.name, len(_chosen(source, options.limit)), zlib.crc32(os.fsencode(chosen))])
    return plan


def prepare(options: PrepareConfig) -> dict[str, Any]:
    """Makes or continues a store; returns its manifest.

    Raises:
        DataError: no or unusable data sets, a folder that is taken, ``--resume`` with other data or another source of
            masks, a process that was killed.
    """
    from hand3d_wild.store import SPLITS, create_split, make_folder, read_manifest, write_manifest

    if not options.out:
        raise DataError("--out is empty: it names the folder of the store", remedy="give --out STORE")
    if options.workers < 1 or options.limit < 0:
        raise DataError(
            f"--workers must be at least 1 and --limit not negative, got {options.workers}, {options.limit}"
        )
    for flag, folder in (("masks", options.masks), ("detections", options.detections)):
        if folder not in ("", "grabcut", "none") and not Path(folder).is_dir():
            raise MissingFileError(f"--{flag}: no such folder", path=folder, remedy="check the path")
    root = Path(options.out)
    sources = open_sources(options)
    for source in sources:
        print(source.frames.summary())
    plan = {"plan": _plan(sources, options), "mirror": options.mirror}
    before: dict[str, Any] = {}
    if (root / "manifest.json").is_file():
        if not options.resume:
            raise DataError("this folder holds a store already", path=root, remedy="continue it with --resume")
        before = read_manifest(root)
        if {key: before.get(key) for key in plan} != plan:
            raise DataError(
                "the store was begun with other data sets, cameras, --limit or --mirror",
                path=root,
                remedy="resume with the options it was begun with, or choose another --out",
            )
        masks = before.get("masks", "none")
        if options.masks not in ("none", masks) and masks != "none" and _made_masks(root):
            raise DataError(
                f"the store holds masks of --masks {masks}",
                path=root,
                remedy=f"resume with --masks {masks} or none, or choose another --out",
            )
    elif options.resume:
        raise MissingFileError("there is no store to resume", path=root, remedy="leave out --resume")
    else:
        make_folder(root)
        for split in SPLITS:
            mine = [source for source in sources if source.split == split]
            if mine:
                create_split(root, split, _empty_rows(mine, options.limit))
    # where masks and detections come from; a resumed run that makes none leaves the note of those that are there
    made = {
        "masks": options.masks if options.masks != "none" else before.get("masks", "none"),
        "detections": options.detections or before.get("detections", ""),
    }
    write_manifest(root, {**before, **plan, **made})
    todo = list(_chunks(root, options))
    _work(todo, options)
    manifest = {**plan, **made, **_count(root)}
    write_manifest(root, manifest)
    _print(manifest)
    if not any(manifest["splits"][split]["pictures"] for split in manifest["splits"]):
        first = manifest["skipped"][0]
        raise DataError(f"not a single picture could be used; the first: {first['problem']}", path=root)
    return manifest


def _made_masks(root: Path) -> bool:
    from hand3d_wild.store import MADE, SPLITS, open_split

    return any((open_split(root, split).rows["mask"] == MADE).any() for split in SPLITS if (root / split).is_dir())


def _empty_rows(sources: Sequence[Source], limit: int) -> NDArray[Any]:
    import numpy as np

    from hand3d_wild.store import NAME_BYTES, ROW, SOURCES

    parts = []
    for source in sources:
        names = source.frames.names()
        chosen = _chosen(source, limit)
        rows = np.zeros(len(chosen), ROW)
        rows["source"] = SOURCES.index(source.name)
        rows["name"] = [os.fsencode(names[i])[:NAME_BYTES] for i in chosen]
        parts.append(rows)
    return np.concatenate(parts)


def _chunks(root: Path, options: PrepareConfig) -> Iterator[tuple[str, list[int]]]:
    """What is left to do; skipped pictures are tried again."""
    import numpy as np

    from hand3d_wild.store import MADE, SPLITS, open_split

    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        rows = open_split(root, split).rows
        todo = rows["picture"] != MADE
        if options.masks != "none":
            todo |= rows["mask"] != MADE
        if options.detections:
            todo |= ~rows["detected"]
        indices = np.flatnonzero(todo).tolist()
        yield from ((split, indices[i : i + CHUNK]) for i in range(0, len(indices), CHUNK))


def _work(todo: list[tuple[str, list[int]]], options: PrepareConfig) -> None:
    import sys

    from tqdm import tqdm

    from shared.pool import in_processes

    quiet = not sys.stderr.isatty()
    total = sum(len(indices) for _, indices in todo)
    with tqdm(total=total, unit="picture", desc="prepare", mininterval=20 if quiet else 0.2, dynamic_ncols=True) as bar:
        if options.workers == 1 or len(todo) < 2:
            worker = _Worker(options)
            for chunk in todo:
                bar.update(worker(chunk))
            return
        for done in in_processes(_run, [(chunk,) for chunk in todo], options.workers, start=(_start_worker, options)):
            bar.update(done)


def _count(root: Path) -> dict[str, Any]:
    """Counts by split and source, and the list of what was skipped."""
    from hand3d_wild.store import MADE, SOURCES, SPLITS, open_split, text

    splits: dict[str, Any] = {}
    skipped: list[dict[str, str]] = []
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        rows = open_split(root, split).rows
        made = rows["picture"] == MADE
        splits[split] = {
            "labels": len(rows),
            "pictures": int(made.sum()),
            "masks": int((made & (rows["mask"] == MADE)).sum()),
            "with_3d": int((made & rows["has_3d"]).sum()),
            "detections": int((made & rows["detected"]).sum()),
            "left": int((made & rows["left"]).sum()),
            "by_source": {name: int((made & (rows["source"] == i)).sum()) for i, name in enumerate(SOURCES)},
        }
        for what, key in (("picture", "problem"), ("mask", "mask_problem"), ("detections", "detection_problem")):
            for index in (rows[key] != b"").nonzero()[0].tolist():
                skipped.append(
                    {
                        "split": split,
                        "name": text(rows["name"][index]),
                        "what": what,
                        "problem": text(rows[key][index]),
                    }
                )
    return {"splits": splits, "skipped": skipped}


def _print(manifest: dict[str, Any]) -> None:
    for split, counts in manifest["splits"].items():
        parts = ", ".join(f"{name} {count}" for name, count in counts["by_source"].items() if count)
        print(
            f"{split}: {counts['pictures']} of {counts['labels']} pictures ({parts}), {counts['masks']} masks, "
            f"{counts['with_3d']} with 3-D joints, {counts['detections']} with detections"
        )
    kinds = Counter(item["what"] for item in manifest["skipped"])
    if kinds:
        print(f"skipped: {', '.join(f'{count} {what}' for what, count in kinds.items())} (listed in manifest.json)")
        for item in manifest["skipped"][:5]:
            print(f"  {item['split']}/{item['name']}: {item['what']}: {item['problem']}")


if __name__ == "__main__":
    exit_on_error(main)
