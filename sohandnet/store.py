"""The store: prepared frames of SO-HandNet in a few memory-mapped arrays instead of a file per frame.

::

    STORE/manifest.json            format, version, the options it was made with, splits with counts and skipped frames
    STORE/<split>/cloud.npy        (n, 6, N) float32   normalised positions, unit normals in the same axes
    STORE/<split>/node.npy         (n, 3, M) float32   SOM nodes
    STORE/<split>/node_knn.npy     (n, M, K) int16     nearest nodes of each node, itself first
    STORE/<split>/joints.npy       (n, 3, J) float32   normalised labels
    STORE/<split>/rotation.npy     (n, 3, 3) float64   axes of the oriented box, as columns
    STORE/<split>/length.npy       (n,)      float64   edge that was divided by, mm of the store's space
    STORE/<split>/offset.npy       (n, 3)    float64   what was subtracted, in lengths
    STORE/<split>/crop_points.npy  (n,)      int32     points of the crop before sampling; 0 if unknown
    STORE/<split>/names.txt        n names of frames, one a line

The arrays are plain ``.npy`` files, so that any program can look at them; ``sohandnet.orient`` explains the spaces.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_write_text
from sohandnet.orient import Box, Space, denormalise, make_space

FORMAT, VERSION = "sohandnet-store", 1
MANIFEST, NAMES = "manifest.json", "names.txt"
DTYPES = {
    **{"cloud": "<f4", "node": "<f4", "node_knn": "<i2", "joints": "<f4"},
    **{"rotation": "<f8", "length": "<f8", "offset": "<f8", "crop_points": "<i4"},
}
_AGAIN = "prepare it again: python -m sohandnet.prepare"
_MAX_TEXT = 64 << 20


@dataclass(frozen=True, eq=False)
class Split:
    """The frames of one split; arrays are memory-mapped and read-only. Cheap to send to another process.

    Attributes:
        root: folder of the store.
        name: ``"train"`` or ``"test"``.
        options: the store's options (see :class:`Store`).
        record: the split's part of the manifest.
    """

    root: Path
    name: str
    options: Mapping[str, Any]
    record: Mapping[str, Any]

    def __len__(self) -> int:
        return int(self.record["frames"])

    def __reduce__(self) -> tuple[Any, ...]:  # a pickled memory map would carry its whole content along
        return Split, (self.root, self.name, self.options, self.record)

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the module's table by name.

        Raises:
            MissingFileError, DataError: a file is missing, truncated or of another shape than the manifest says.
        """
        return {name: self._open(name) for name in DTYPES}

    @cached_property
    def names(self) -> list[str]:
        """n names, ``session/picture`` without suffix."""
        path = self.root / self.name / NAMES
        if not path.is_file():
            raise MissingFileError("this file of the store is missing", path=path, remedy=_AGAIN)
        names = path.read_bytes()[:_MAX_TEXT].decode("utf-8", "replace").splitlines()
        if len(names) != len(self):
            raise DataError(f"{len(names)} names for {len(self)} frames", path=path, remedy=_AGAIN)
        return names

    @property
    def skipped(self) -> dict[str, list[str]]:
        """Reason -> names of the frames that are not in the store."""
        return dict(self.record["skipped"])

    def box(self, index: Any = slice(None)) -> Box:
        """The boxes of some frames, float64 with a leading dimension for slices and index arrays."""
        return Box(*(np.asarray(self.arrays[name][index]) for name in ("rotation", "length", "offset")))

    def joints_mm(self, normalised: NDArray[Any] | None = None, index: Any = slice(None)) -> NDArray[np.float64]:
        """(n, J, 3) camera-frame mm (OpenCV axes, true) of normalised joints (n, J, 3); of the labels for None."""
        joints = np.swapaxes(self.arrays["joints"][index], -1, -2) if normalised is None else normalised
        return space_of(self.options).to_camera(denormalise(joints, self.box(index)))

    def _open(self, name: str) -> NDArray[Any]:
        path = self.root / self.name / f"{name}.npy"
        shape = tuple(self.record["shapes"][name])
        if not path.is_file():
            raise MissingFileError("this file of the store is missing", path=path, remedy=_AGAIN)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError) as error:
            raise DataError(f"truncated or damaged ({error})", path=path, remedy=_AGAIN) from None
        if array.shape != shape or array.dtype != np.dtype(DTYPES[name]):
            message = f"expected {shape} of {np.dtype(DTYPES[name])}, found {array.shape} of {array.dtype}"
            raise DataError(message, path=path, remedy=_AGAIN)
        return array


@dataclass(frozen=True, eq=False)
class Store:
    """A prepared data set.

    Attributes:
        root: its folder.
        options: what it was made with: source, intrinsics, crop, cube_mm, points, nodes, neighbours, seed, skeleton,
            K (true pinhole matrix), ...
        splits: name -> frames.
    """

    root: Path
    options: Mapping[str, Any]
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """Raises DataError with the splits that are there."""
        if name not in self.splits:
            raise DataError(
                f"the store has no {name} split, it has {', '.join(self.splits) or 'none'}",
                path=self.root,
                remedy=f"prepare it: python -m sohandnet.prepare --split {name}",
            )
        return self.splits[name]


def space_of(options: Mapping[str, Any]) -> Space:
    """The space of a store's clouds, from its options."""
    return make_space(options["intrinsics"], options["K"])


def protocol_line(options: Mapping[str, Any]) -> str:
    """How the frames were cropped and in which space, in one line: to be printed with every number."""
    crops = {
        "ground-truth": "the box of the labelled joints + 20 mm (optimistic: needs the answer)",
        "centers": f"a cube of {options['cube_mm']:g} mm around centres from a file",
        "depth": f"a cube of {options['cube_mm']:g} mm around the nearest object of the depth image",
    }
    intrinsics = {"true": "true", "reference": "the original's (x shrunk to 0.567)"}
    return f"crop: {crops[options['crop']]}; clouds with {intrinsics[options['intrinsics']]} intrinsics"


def check_folder(path: str | Path, flag: str) -> None:
    """Raises DataError if results cannot go into the folder because it, or one above it, is a file."""
    if any(part.is_file() for part in (Path(path), *Path(path).parents)):
        raise DataError(f"--{flag} is a file, or lies in one", path=path, remedy="name a folder")


def open_store(root: str | Path) -> Store:
    """A store for reading.

    Raises:
        MissingFileError: no such folder, or no manifest in it.
        DataError: not a store, of another version, or with a manifest that is not complete.
    """
    if not str(root):
        raise DataError("no store is given", remedy="name the folder that python -m sohandnet.prepare wrote")
    root = Path(root)
    path = root / MANIFEST
    if not root.is_dir():
        raise MissingFileError("no such folder", path=root, remedy="python -m sohandnet.prepare writes a store")
    if not path.is_file():
        raise MissingFileError(
            "no manifest here: not a store, or one whose preparation was not finished",
            path=path,
            remedy="python -m sohandnet.prepare writes a store; --resume finishes one",
        )
    try:
        manifest = json.loads(path.read_bytes()[:_MAX_TEXT])
        if manifest.get("format") != FORMAT:
            raise DataError(f"expected the format {FORMAT!r}, found {manifest.get('format')!r}", path=path)
        if manifest["version"] != VERSION:
            raise DataError(
                f"a store of version {manifest['version']}, this program reads version {VERSION}",
                path=path,
                remedy=_AGAIN,
            )
        options = manifest["options"]
        missing = {"intrinsics", "crop", "cube_mm", "points", "nodes", "neighbours", "K", "skeleton"} - set(options)
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        space_of(options)
        protocol_line(options)
        splits = {
            name: Split(root, name, options, _checked(name, record, options))
            for name, record in manifest["splits"].items()
        }
    except DataError as error:
        raise error if error.path else DataError(str(error), path=path, remedy=_AGAIN) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"not a complete manifest ({error!r})", path=path, remedy=_AGAIN) from None
    return Store(root, options, splits)


def _checked(name: str, record: Mapping[str, Any], options: Mapping[str, Any]) -> Mapping[str, Any]:
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"a split called {name!r}")
    count, shapes = int(record["frames"]), record["shapes"]
    if count < 1 or set(shapes) != set(DTYPES) or not isinstance(record["skipped"], dict):
        raise ValueError("a split without frames, shapes or skipped frames")
    if not all(isinstance(names, list) for names in record["skipped"].values()):
        raise ValueError("skipped frames that are no lists of names")
    points, nodes, neighbours = (int(options[key]) for key in ("points", "nodes", "neighbours"))
    expected: dict[str, list[int]] = {
        **{"cloud": [count, 6, points], "node": [count, 3, nodes], "node_knn": [count, nodes, neighbours]},
        **{"joints": [count, 3, shapes["joints"][-1]], "rotation": [count, 3, 3], "offset": [count, 3]},
        **{"length": [count], "crop_points": [count]},
    }
    for key, shape in expected.items():
        if list(shapes[key]) != shape:
            raise ValueError(f"{key} of {shapes[key]} where the options and the number of frames say {shape}")
    return record


def write_split(
    root: str | Path,
    name: str,
    options: Mapping[str, Any],
    parts: Iterable[Mapping[str, NDArray[Any]]],
    names: Sequence[str],
    skipped: Mapping[str, Sequence[str]],
) -> Store:
    """Writes one split beside those that are there; the manifest comes last, so that half a split is never opened.

    Args:
        root: folder of the store; made if need be.
        name: of the split.
        options: of the store; must be those of the splits that are there.
        parts: pieces of all arrays of the module's table, in order; together ``len(names)`` frames.
        names: of the frames.
        skipped: reason -> names.

    Raises:
        DataError: no frame at all, or a store with other options in that folder.
    """
    root = Path(root)
    if not names:
        reasons = ", ".join(f"{len(some)} {reason}" for reason, some in skipped.items()) or "the source has none"
        raise DataError(f"no frame is left for the {name} split: {reasons}", path=root)
    records = {}
    if (root / MANIFEST).is_file():
        there = open_store(root)
        check_same(there, options)
        records = {key: split.record for key, split in there.splits.items() if key != name}
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        shapes = _write_arrays(folder, parts, len(names))
        (folder / NAMES).write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
        folder.chmod(0o755)
        if (root / name).exists():
            shutil.rmtree(root / name)
        os.replace(folder, root / name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    record = {"frames": len(names), "shapes": shapes, "skipped": {k: list(v) for k, v in skipped.items()}}
    manifest = {"format": FORMAT, "version": VERSION, "options": dict(options), "splits": {**records, name: record}}
    atomic_write_text(root / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return open_store(root)


def check_same(store: Store, options: Mapping[str, Any]) -> None:
    """Raises DataError naming the first option in which a store differs from ``options``."""
    for key in sorted({*options, *store.options}):
        if store.options.get(key) != options.get(key):
            raise DataError(
                f"the store was made with {key} = {store.options.get(key)}, this is {options.get(key)}",
                path=store.root,
                remedy="write to another folder, or give the store's options",
            )


def _write_arrays(folder: Path, parts: Iterable[Mapping[str, NDArray[Any]]], count: int) -> dict[str, list[int]]:
    """The arrays as memory maps filled part by part, so that memory holds one part only; their shapes."""
    maps: dict[str, Any] = {}
    row = 0
    for part in parts:
        size = len(part["length"])
        for key, dtype in DTYPES.items():
            if key not in maps:
                shape = (count, *part[key].shape[1:])
                maps[key] = np.lib.format.open_memmap(folder / f"{key}.npy", "w+", dtype, shape)
            maps[key][row : row + size] = part[key]
        row += size
    assert row == count, f"{row} frames in the parts, {count} names"
    for array in maps.values():
        array.flush()
    return {key: list(array.shape) for key, array in maps.items()}
