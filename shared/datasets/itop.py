"""ITOP (Haque et al., ECCV 2016): whole bodies from the front and from above, 320x240 depth, 15 joints.

Public functions:

* :func:`open` -- the frames of a split and view, lazily, as :class:`shared.datasets.base.Frame`;
* :func:`read_labels` -- a ``labels.h5``; :func:`read_depth` -- one row of a ``depth_map.h5``;
* :func:`to_joints_mm`, :func:`to_depth_mm` -- the arrays of these files to millimetres in OpenCV axes.

Layout (the official files are gzipped: unpack them; also accepted with a folder ``ITOP`` above them)::

    ITOP_{side,top}_{train,test}_depth_map.h5    data (n, 240, 320) float16 metres; id (n,) bytes "PP_FFFFF"
    ITOP_{side,top}_{train,test}_labels.h5       id; is_valid (n,) uint8; visible_joints (n, 15) int16;
                                                 image_coordinates (n, 15, 2) int16 pixels, x then y;
                                                 real_world_coordinates (n, 15, 3) float16 metres, y up

``side`` is what papers call the front view. 39,795 training and 10,501 test frames a view; only those with
``is_valid`` = 1 may be used (4,863 of the test set, verified; 17,991 of the training set, from memory). The files are
joined by ``id``. Depth 0 is no measurement. Label precision is float16, 2 mm at 3 m. Joints may lie outside the image.
Types and layout of the HDF5 files are a hypothesis (quoted alike by several readers), the joint arrays were verified.
Right and left are the person's (from memory). The point clouds, colour pictures and ``segmentation`` are not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import camera
from shared.datasets.base import Frame
from shared.datasets.centers import centers_for
from shared.datasets.labels import find_folder
from shared.datasets.rows import Selection, skipped_text
from shared.errors import DataError, MissingFileError

PAGE = "https://zenodo.org/records/3932973"
SIZE = (320, 240)
K = camera.intrinsics(1 / 0.0035, 1 / 0.0035, 160, 120)

Split = Literal["train", "test"]
View = Literal["side", "top"]
_MAX_FRAMES = 200_000
_MAX_CHUNK = 64 * 2**20  # bytes; one chunk is inflated whole


def to_joints_mm(real_world: ArrayLike) -> NDArray[np.float64]:
    """``real_world_coordinates`` (..., 3), metres with y up, as (..., 3) float64 mm in OpenCV axes."""
    return camera.flip_y(np.asarray(real_world, np.float64) * 1000)


def to_depth_mm(data: ArrayLike) -> NDArray[np.float32]:
    """``data`` of a depth map (..., 240, 320), metres, as float32 mm; 0 stays 0 (nothing measured)."""
    # float16 ends at 65.5, which is why the product is formed in the wider type
    return np.asarray(data).astype(np.float32) * np.float32(1000)


@dataclass(frozen=True, eq=False)
class Labels:
    """A label file, all n frames of it.

    Attributes:
        ids: n names ``PP_FFFFF``: person, frame.
        joints_mm: (n, 15, 3) float64 camera-frame mm (OpenCV axes); meaningful where ``is_valid``.
        keypoints_2d: (n, 15, 2) float64 pixels.
        visible: (n, 15) bool; False means occluded, the joint is labelled all the same.
        is_valid: (n,) bool: checked by a person.
    """

    ids: list[str]
    joints_mm: NDArray[np.float64]
    keypoints_2d: NDArray[np.float64]
    visible: NDArray[np.bool_]
    is_valid: NDArray[np.bool_]


def read_labels(path: str | Path) -> Labels:
    """A ``labels.h5``.

    Raises:
        MissingFileError: there is no such file.
        DataError: not HDF5, a data set is missing or has another shape or type, or a valid joint is not finite.
    """
    with _opened(path) as file:
        ids = _read_ids(path, file)
        n = len(ids)
        world = _read(path, file, "real_world_coordinates", (n, 15, 3), "f")
        pixels = _read(path, file, "image_coordinates", (n, 15, 2), "iuf")
        visible = _read(path, file, "visible_joints", (n, 15), "iub")
        is_valid = _read(path, file, "is_valid", (n,), "iub") == 1
    if not np.isfinite(world[is_valid]).all():
        raise DataError("real_world_coordinates: a joint of a valid frame is not finite", path=path)
    return Labels(ids, to_joints_mm(world), pixels.astype(np.float64), visible > 0, is_valid)


def read_depth(path: str | Path, row: int) -> NDArray[np.float32]:
    """Row ``row`` of a ``depth_map.h5``: (240, 320) float32 mm, 0 where nothing was measured.

    Raises:
        MissingFileError: there is no such file.
        DataError: not HDF5, another shape or type, a row that is not there, or a value that is no depth.
    """
    with _opened(path) as file:
        return _depth_row(path, _dataset(path, file, "data", (None, 240, 320), "f"), row)


@dataclass(eq=False)
class ItopDataset:
    """The frames of one split and view; see :func:`open`. The depth file is opened once in every process that reads.

    Attributes:
        depth_file: the ``depth_map.h5``.
        split: which one.
        view: which one.
        ids: n names ``PP_FFFFF``.
        rows: (n,) row of each frame in ``depth_file``.
        joints_mm: (n, 15, 3) camera-frame mm (OpenCV axes).
        keypoints_2d: (n, 15, 2) pixels; may lie outside the picture.
        visible: (n, 15) bool.
        is_valid: (n,) bool; all True unless ``valid_only`` was off.
        centers_mm: (n, 3) of the centre file, or None.
        skipped: reason -> ids that were left out.
        skeleton: ``"itop"``.
    """

    depth_file: Path
    split: str
    view: str
    ids: list[str]
    rows: NDArray[np.intp]
    joints_mm: NDArray[np.float64]
    keypoints_2d: NDArray[np.float64]
    visible: NDArray[np.bool_]
    is_valid: NDArray[np.bool_]
    centers_mm: NDArray[np.float64] | None
    skipped: dict[str, list[str]] = field(default_factory=dict)
    skeleton: str = "itop"
    _opened_in: tuple[int, Any, Any] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened_in": None}  # an HDF5 handle belongs to its process

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Frame:
        """The frame; ``extra`` has ``visible`` (15,) bool and ``is_valid``. ``side`` is None: it is a body."""
        ident = self.ids[index]
        return Frame(
            name=self._name(ident),
            image_size=SIZE,
            K=K.copy(),
            skeleton=self.skeleton,
            depth_mm=_depth_row(self.depth_file, self._data(), int(self.rows[index])),
            joints_mm=self.joints_mm[index].copy(),
            keypoints_2d=self.keypoints_2d[index].copy(),
            center_mm=None if self.centers_mm is None else self.centers_mm[index].copy(),
            side=None,
            subject=ident.partition("_")[0],
            extra={"visible": self.visible[index].copy(), "is_valid": bool(self.is_valid[index])},
        )

    def _data(self) -> Any:
        # a forked worker inherits the parent's handle, which two processes must not share
        if self._opened_in is None or self._opened_in[0] != os.getpid():
            file = _opened(self.depth_file)
            data = _dataset(self.depth_file, file, "data", (None, 240, 320), "f")
            self._opened_in = (os.getpid(), file, data)
        return self._opened_in[2]

    def _name(self, ident: str) -> str:
        return f"{self.view}/{self.split}/{ident}"

    def names(self) -> list[str]:
        return [self._name(ident) for ident in self.ids]

    def summary(self) -> str:
        return f"ITOP {self.view} {self.split}: {len(self)} frames{skipped_text(self.skipped)}"


def open(
    root: str | Path,
    split: Split,
    view: View = "side",
    *,
    valid_only: bool = True,
    centers: str | Path | None = None,
) -> ItopDataset:
    """The frames of a split and view that may be used; the others are skipped and counted.

    Args:
        root: the folder with the unpacked ``.h5`` files, or the one above ``ITOP``.
        split: ``train`` or ``test``.
        view: ``side`` (the front view of papers) or ``top``.
        valid_only: leave out frames whose labels nobody checked (``is_valid`` = 0); nothing else is comparable.
        centers: a V2V-PoseNet centre file (metres), or the view's folder with ``center_train.txt`` and
            ``center_test.txt``: one line per frame of the label file. Frames it calls invalid are skipped.

    Raises:
        MissingFileError: a file is missing; says where it was looked for, and whether it only has to be unpacked.
        DataError: damaged files, ids that do not match, or centres of another length.
    """
    if split not in ("train", "test"):
        raise DataError(f"split: expected train or test, got {split!r}")
    if view not in ("side", "top"):
        raise DataError(f"view: expected side (the front view) or top, got {view!r}")
    stem = f"ITOP_{view}_{split}"
    base = Path(root)
    if not (base / f"{stem}_labels.h5").is_file() and (base / "ITOP").is_dir():
        base = base / "ITOP"
    find_folder(base, (".",), what="ITOP", page=PAGE)
    label_file, depth_file = (_require(base / f"{stem}_{part}.h5") for part in ("labels", "depth_map"))
    labels = read_labels(label_file)
    center = centers_for(centers, f"center_{split}.txt", len(labels.ids), y_up=True, unit_mm=1000.0)
    with _opened(depth_file) as file:
        _dataset(depth_file, file, "data", (None, 240, 320), "f")
        depth_ids = _read_ids(depth_file, file)
        if file["data"].shape[0] != len(depth_ids):
            raise DataError(f"{file['data'].shape[0]} pictures but {len(depth_ids)} ids", path=depth_file)
    row_of = {ident: row for row, ident in enumerate(depth_ids)}
    rows = np.array([row_of.get(ident, -1) for ident in labels.ids], np.intp)
    if (rows < 0).all():
        raise DataError(
            f"none of its ids is in {label_file.name}: {depth_ids[0]!r} ... against {labels.ids[0]!r} ...",
            path=depth_file,
            remedy="the two files belong to different views or splits",
        )

    selection = Selection(labels.ids)
    if valid_only:
        selection.drop("frames without valid labels", ~labels.is_valid)
    if center is not None:
        selection.drop("frames without a centre", ~center[1])
    selection.drop("missing pictures", rows < 0)
    chosen = np.flatnonzero(selection.keep)
    return ItopDataset(
        depth_file=depth_file,
        split=split,
        view=view,
        ids=[labels.ids[i] for i in chosen],
        rows=rows[chosen],
        joints_mm=labels.joints_mm[chosen],
        keypoints_2d=labels.keypoints_2d[chosen],
        visible=labels.visible[chosen],
        is_valid=labels.is_valid[chosen],
        centers_mm=None if center is None else center[0][chosen],
        skipped=selection.skipped,
    )


def _require(path: Path) -> Path:
    if path.is_file():
        return path
    packed = path.with_name(path.name + ".gz")
    if packed.is_file():
        raise MissingFileError(f"only {packed.name} is here", path=path, remedy=f"unpack it: gunzip -k {packed}")
    raise MissingFileError("missing: an ITOP file", path=path, remedy=f"download: {PAGE}")


def _opened(path: str | Path) -> Any:
    import h5py

    path = Path(path)
    if not path.is_file():
        raise MissingFileError("no such HDF5 file", path=path, remedy=f"download: {PAGE}")
    return _guarded(path, "not a readable HDF5 file", lambda: h5py.File(path, "r"))


def _guarded(path: str | Path, what: str, action: Callable[[], Any]) -> Any:
    """Runs ``action``; whatever the HDF5 library makes of a damaged file becomes a DataError."""
    try:
        return action()
    except DataError:
        raise
    except Exception as error:  # a library fed with arbitrary bytes raises arbitrary exceptions
        raise DataError(f"{what} ({error})", path=path, remedy="unpack it again from the official archive") from None


def _dataset(path: str | Path, file: Any, name: str, shape: tuple[int | None, ...], kinds: str) -> Any:
    """The data set ``name``, whose shape, type, storage and chunks have been judged before anything of it is read."""
    import h5py

    def get() -> Any:
        link = file.get(name, getlink=True)
        found = file[name] if isinstance(link, h5py.HardLink) else None  # a link may point to any file of the machine
        if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
            raise DataError(f"no data set {name!r} in it; it has {sorted(file)[:10]}", path=path)
        wanted = tuple("n" if s is None else s for s in shape)
        right = len(found.shape) == len(shape) and all(
            s is None or s == actual for s, actual in zip(shape, found.shape, strict=True)
        )
        if not right or found.dtype.kind not in kinds or not 0 < found.shape[0] <= _MAX_FRAMES:
            raise DataError(f"{name}: expected {wanted}, got {found.dtype} {found.shape}", path=path)
        chunk = int(np.prod(found.chunks or (0,), dtype=object)) * found.dtype.itemsize
        if chunk > _MAX_CHUNK or found.dtype.itemsize > 64:
            raise DataError(f"{name}: chunks of {chunk} bytes, the limit is {_MAX_CHUNK}", path=path)
        return found

    return _guarded(path, f"{name} cannot be read", get)


def _read(path: str | Path, file: Any, name: str, shape: tuple[int | None, ...], kinds: str) -> NDArray[Any]:
    data = _dataset(path, file, name, shape, kinds)
    array: NDArray[Any] = _guarded(path, f"{name} cannot be read", lambda: data[()])
    return array


def _read_ids(path: str | Path, file: Any) -> list[str]:
    """``id`` as text; fixed-length bytes or variable-length strings."""
    raw = _read(path, file, "id", (None,), "SO")
    ids = [r.decode("ascii", "replace") if isinstance(r, bytes) else str(r) for r in raw.tolist()]
    if len(set(ids)) != len(ids):
        raise DataError(f"{len(ids) - len(set(ids))} ids occur twice", path=path)
    return ids


def _depth_row(path: str | Path, data: Any, row: int) -> NDArray[np.float32]:
    if not 0 <= row < data.shape[0]:
        raise DataError(f"row {row} of {data.shape[0]}", path=path)
    depth = to_depth_mm(_guarded(path, f"row {row} cannot be read", lambda: data[row]))
    if not (depth >= 0).all() or not np.isfinite(depth).all():  # NaN fails the first
        raise DataError(f"row {row}: a depth is negative or not finite", path=path)
    return depth
