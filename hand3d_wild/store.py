"""Prepared crops on disk: one memory-mapped array of pictures, one of masks, one table, and a manifest.

    STORE/manifest.json                 what was prepared from what, counts, every skipped picture with its reason
    STORE/<split>/pictures.npy          (N, 320, 320, 3) uint8, RGB, right hands
    STORE/<split>/masks.npy             (N, 320, 40) uint8: silhouettes, eight pixels a byte (numpy.packbits)
    STORE/<split>/rows.npy              (N,) of :data:`ROW`

Splits are ``train``, ``test`` (MPII+NZSL's test part, 2-D only) and ``stb_test`` (sequence B1, held out). Row i of the
three files belongs to label i of the sources, whether or not its picture could be used, so that several processes can
write at once and a killed preparation goes on where it stopped. Unwritten pictures take no space (sparse files).
Joints are in the order ``wild``; joint 0 of STB rows is the palm's centre, not the wrist (``palm``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hand3d_wild.crop import STORED
from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_write_text

FORMAT, VERSION = "handpose/hand3d_wild/store", 1
SPLITS = ("train", "test", "stb_test")
SOURCES = ("panoptic", "mpii", "stb")
TODO, MADE, SKIPPED = 0, 1, 2
NAME_BYTES = 200  # of a picture's name; longer ones are skipped
ROW = np.dtype(
    [
        ("picture", "u1"),  # TODO, MADE or SKIPPED
        ("mask", "u1"),  # likewise
        ("source", "u1"),  # index in SOURCES
        ("left", "?"),  # the stored picture shows a left hand: only without mirroring
        ("palm", "?"),  # joint 0 is the palm's centre
        ("has_3d", "?"),
        ("detected", "?"),  # detections are there
        ("box", "<i4", (4,)),  # top, bottom, left, right in the picture (STB: in the mirrored one), ends included
        ("points", "<f8", (21, 2)),  # joints in pixels of the crop; NaN where not visible
        ("visible", "?", (21,)),
        ("joints_mm", "<f8", (21, 3)),  # mirrored like the picture, camera frame; NaN without 3-D
        ("detections", "<f4", (21, 3)),  # a 2-D detector's u, v, confidence in pixels of the crop
        ("name", f"S{NAME_BYTES}"),
        ("problem", "S240"),  # why the picture was skipped
        ("mask_problem", "S240"),
        ("detection_problem", "S240"),
    ]
)
REMEDY = "make the store again: python -m hand3d_wild.prepare"


@dataclass(frozen=True)
class Split:
    """One split, open; the arrays are memory-mapped (``r`` or ``r+``)."""

    name: str
    pictures: NDArray[np.uint8]  # (N, 320, 320, 3)
    masks: NDArray[np.uint8]  # (N, 320, 40)
    rows: NDArray[Any]  # (N,) of ROW

    def mask(self, index: int) -> NDArray[np.uint8]:
        """(320, 320) uint8 of 0 and 1; zeros where none was made."""
        return np.unpackbits(self.masks[index], axis=-1)


def text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def make_folder(path: str | Path) -> Path:
    """The folder for a program's results.

    Raises:
        DataError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot be a folder ({error.strerror})", path=path, remedy="give another --out") from None
    return Path(path)


def create_split(root: Path, name: str, rows: NDArray[Any]) -> None:
    """Lays out the three files of a split for ``rows``; pictures and masks are holes at first."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, shape in (("pictures", (len(rows), STORED, STORED, 3)), ("masks", (len(rows), STORED, STORED // 8))):
        np.lib.format.open_memmap(folder / f"{file}.npy", mode="w+", dtype=np.uint8, shape=shape)
    table = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=ROW, shape=rows.shape)
    table[:] = rows
    table.flush()


def write_manifest(root: Path, content: dict[str, Any]) -> None:
    record = {"format": FORMAT, "version": VERSION, "size": STORED, **content}
    atomic_write_text(root / "manifest.json", json.dumps(record, indent=1) + "\n")


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        MissingFileError: no store there.
        DataError: not a manifest of this format and version.
    """
    path = Path(root) / "manifest.json"
    if not path.is_file():
        raise MissingFileError("no prepared store here", path=path, remedy="python -m hand3d_wild.prepare makes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not a readable manifest ({error})", path=path, remedy=REMEDY) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DataError(f"not a manifest of {FORMAT} version {VERSION}", path=path, remedy=REMEDY)
    return content


def open_split(root: str | Path, name: str, *, write: bool = False) -> Split:
    """The three arrays of a split.

    Raises:
        MissingFileError: no store, or a store without this split.
        DataError: a damaged file, or one whose shape does not belong to the others (masks of another size).
    """
    read_manifest(root)
    folder = Path(root) / name
    if not folder.is_dir():
        have = [split for split in SPLITS if (Path(root) / split).is_dir()]
        raise MissingFileError(
            f"the store has no split {name}", path=root, remedy=f"it has {', '.join(have) or 'none'}"
        )
    mode: Any = "r+" if write else "r"
    arrays = {}
    for file in ("pictures", "masks", "rows"):
        path = folder / f"{file}.npy"
        if not path.is_file():
            raise MissingFileError("a part of the store is missing", path=path, remedy=REMEDY)
        try:
            arrays[file] = np.load(path, mmap_mode=mode, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"damaged ({error})", path=path, remedy=REMEDY) from None
    count = arrays["rows"].shape[0] if arrays["rows"].ndim == 1 else -1
    expected = {"pictures": (count, STORED, STORED, 3), "masks": (count, STORED, STORED // 8), "rows": (count,)}
    for file, array in arrays.items():
        dtype = ROW if file == "rows" else np.dtype(np.uint8)
        if array.shape != expected[file] or array.dtype != dtype:
            raise DataError(
                f"expected {expected[file]} of {'the row layout' if file == 'rows' else 'uint8'}, "
                f"got {array.shape} of {array.dtype}"[:300],
                path=folder / f"{file}.npy",
                remedy=REMEDY,
            )
    return Split(name, **arrays)
