"""Prepared frames on disk: a folder a split, ``manifest.json`` and files of up to a thousand frames, memory-mapped.

A shard is one ``.npy`` of records (:func:`record_type`), written whole or not at all. Depth is mm around the crop's
centre with 100 for background; joints are the 36 annotations, centred likewise and used for reports only.
"""

from __future__ import annotations

import bisect
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_path, atomic_write_text

FORMAT, VERSION = "handpose/selfsup_fitting/shards", 1
IMAGE = 64
CUBE_MM = 300.0
BACKGROUND_MM = 100.0
ANNOTATIONS = 36
MOST_FRAMES = 100_000_000  # of a split; a damaged manifest may claim any number
_AGAIN = "prepare them again: python -m selfsup_fitting.prepare --data <NYU> --out <folder>"


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        split: train or test.
        views: camera numbers, the first is the canonical one.
        frames: of each shard.
        options: how the frames were cut and calibrated.
        skipped: reason -> names of frames that were left out.
        rig_rms_mm: what the calibration of each sequence leaves, one number a view.
    """

    split: str
    views: tuple[int, ...]
    frames: tuple[int, ...]
    options: dict[str, Any]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    rig_rms_mm: list[list[float]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.frames)

    def summary(self) -> str:
        left_out = "".join(f", {len(names)} {reason}" for reason, names in self.skipped.items() if names)
        return f"{self.split}: {self.total} frames of camera {'+'.join(map(str, self.views))}{left_out}"


def record_type(views: int) -> np.dtype[Any]:
    """One frame: number in the data set, depth, crop centres in each camera, joints, ``T_canon_view``."""
    return np.dtype(
        [
            ("number", "<i4"),
            ("depth_mm", "<f4", (views, IMAGE, IMAGE)),
            ("center_mm", "<f4", (views, 3)),
            ("joints_mm", "<f4", (views, ANNOTATIONS, 3)),
            ("T_canon_view", "<f4", (views, 4, 4)),
        ]
    )


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard_{index:04d}.npy"


def write_shard(path: Path, records: NDArray[Any]) -> None:
    """The file is complete or not there."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, records, allow_pickle=False)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Written last: a folder without it is unfinished."""
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    atomic_write_text(folder / "manifest.json", json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Raises MissingFileError where nothing was prepared (or not to the end), DataError for another version."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise MissingFileError("no prepared frames here, or the preparation was interrupted", path=path, remedy=_AGAIN)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise DataError(f"is no manifest of prepared frames (format {content.get('format')!r})", path=path)
        if content.get("version") != VERSION:
            raise DataError(
                f"shards of version {content.get('version')!r}, this program reads version {VERSION}",
                path=path,
                remedy=_AGAIN,
            )
        manifest = Manifest(
            split=str(content["split"]),
            views=tuple(int(v) for v in content["views"]),
            frames=tuple(int(n) for n in content["frames"]),
            options=dict(content["options"]),
            skipped={str(k): list(v) for k, v in content["skipped"].items()},
            rig_rms_mm=content["rig_rms_mm"],
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"damaged manifest ({type(error).__name__}: {error})", path=path, remedy=_AGAIN) from None
    sound = manifest.views and min(manifest.frames, default=0) >= 0 and 0 < manifest.total < MOST_FRAMES
    if not sound:
        raise DataError(
            f"damaged manifest: {len(manifest.views)} views, {manifest.total} frames", path=path, remedy=_AGAIN
        )
    return manifest


class Shards:
    """Prepared frames by index; files are mapped when they are first read, in each process by itself.

    ``shards[i]`` is a record: ``shards[i]["depth_mm"]`` (V, 64, 64) and so on.

    Raises:
        MissingFileError: the folder or one of its files is not there.
        DataError: another version, or a file of another size than the manifest says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.starts = np.concatenate([[0], np.cumsum(self.manifest.frames)]).tolist()
        self.maps: dict[int, NDArray[Any]] = {}
        for index, frames in enumerate(self.manifest.frames):  # a shard without frames has no file
            if frames and not shard_path(self.folder, index).is_file():
                raise MissingFileError("a shard is missing", path=shard_path(self.folder, index), remedy=_AGAIN)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maps": {}}  # a pickled map would be a copy of the file

    def __len__(self) -> int:
        return self.manifest.total

    def __getitem__(self, index: int) -> Any:
        shard = bisect.bisect_right(self.starts, index) - 1
        return self.shard(shard)[index - self.starts[shard]]

    def name(self, index: int) -> str:
        return f"{self.manifest.split}/{int(self[index]['number']):07d}"

    def shard(self, index: int) -> NDArray[Any]:
        """The records of one file, (frames,)."""
        if index not in self.maps:
            path = shard_path(self.folder, index)
            expected = (self.manifest.frames[index],)
            try:
                records = np.lib.format.open_memmap(path, mode="r")
            except (OSError, ValueError, EOFError, SyntaxError, TokenError, OverflowError) as error:
                raise DataError(f"damaged shard ({error})", path=path, remedy=_AGAIN) from None
            if records.shape != expected or records.dtype != record_type(len(self.manifest.views)):
                raise DataError(
                    f"expected {expected[0]} records of {len(self.manifest.views)} views, found {records.dtype} "
                    f"{records.shape}",
                    path=path,
                    remedy=_AGAIN,
                )
            self.maps[index] = records
        return self.maps[index]

    def field(self, name: str, indices: NDArray[np.intp] | None = None) -> NDArray[Any]:
        """One field of all frames, or of some, in memory."""
        chosen = range(len(self)) if indices is None else indices
        return np.stack([self[int(i)][name] for i in chosen])


def spread(count: int, limit: int) -> NDArray[np.intp]:
    """Indices of ``limit`` out of ``count`` frames, evenly; all for 0.

    Raises:
        DataError: a negative limit.
    """
    if limit < 0:
        raise DataError(f"a limit of frames must be 0 (all) or more, got {limit}")
    if not limit or limit >= count:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.intp)
