"""HandOccNet's annotation files of HO-3D and DexYCB: read them, or make them from the data sets themselves.

The files (``HO3D_{train,evaluation}_data.json``, ``DEX_YCB_s0_{train,test}_data.json``) are COCO-like: ``images`` and
``annotations`` joined by ``image_id``. They are the author's own and hard to find, so :func:`write_annotations` makes
them from the frames of ``shared.datasets.ho3d`` and ``shared.datasets.dexycb``. Metres in the files, mm here; OpenCV
axes and thumb-first joints in both.

* ``open(root, annotations, ...) -> HandOccNetFrames``: a :class:`~shared.datasets.base.FrameDataset`.
* ``read_annotations(path) -> Annotations``
* ``annotation_of(frame, hands_mean) -> dict``, ``write_annotations(path, frames, hands_mean)``

``Frame.extra`` holds ``pose`` (48,) axis-angle for a layer with ``flat_hand_mean=False``, ``betas`` (10,),
``flat_hand_mean`` False, ``root_mm`` (3,), ``bbox_xywh`` (4,) pixels (HO-3D evaluation), ``annotation_id``. Left hands
come out as they are; see ``shared.datasets.mirror``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.camera import intrinsics
from shared.datasets.base import Frame
from shared.datasets.images import read_rgb
from shared.datasets.side_files import Float, checked_array, iter_json_records
from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_path
from shared.skeletons import reorder

PAGE = "https://github.com/namepllet/HandOccNet (readme, annotations)"
SKELETON = "thumb_first"
_FIELDS = {"joints": 63, "joints_img": 42, "root": 3, "focal": 2, "princpt": 2, "pose": 48, "shape": 10, "bbox": 4}
_START = dict(zip(_FIELDS, np.cumsum([0, *list(_FIELDS.values())[:-1]]).tolist(), strict=True))
_WIDTH = sum(_FIELDS.values())
_OWN = "handpose"  # what only our files hold: a list of one record, as the reader takes nothing but lists
_open = open  # the built-in; this module's own open() is below


@dataclass(frozen=True)
class Annotations:
    """All annotations of one file in its order; ``values`` is one row each, NaN where a field is not there.

    Attributes:
        file_names: picture of each annotation, as in the file.
        ids: (N,) annotation ids.
        sizes: (N, 2) width and height.
        sides: ``"right"`` or ``"left"`` each (HO-3D has no such field: right).
        values: (N, 174) float64, see :meth:`get`.
        complete: False where the file says that it was made from a part of its split.
    """

    file_names: list[str]
    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    sides: list[Literal["right", "left"]]
    values: Float
    complete: bool = True

    def __len__(self) -> int:
        return len(self.file_names)

    def get(self, index: int, field: str) -> Float | None:
        """One annotation's ``joints`` (63,) m, ``joints_img`` (42,) px, ``root`` (3,) m, ``focal`` (2,) px, ``princpt``
        (2,) px, ``pose`` (48,), ``shape`` (10,) or ``bbox`` (4,) px; None where the file does not have it."""
        row = self.values[index, _START[field] : _START[field] + _FIELDS[field]]
        return None if np.isnan(row[0]) else row


def read_annotations(path: str | Path) -> Annotations:
    """Reads one annotation file record by record (DexYCB's has more than a gigabyte of text and takes a minute).

    Raises:
        MissingFileError, DataError: no such file; not such a JSON file, a field missing or of another shape,
            an annotation whose image is not listed.
    """
    path = Path(path)
    images: dict[int, tuple[str, int, int]] = {}
    rows: list[Float] = []
    image_ids: list[int] = []
    ids: list[int] = []
    sides: list[Literal["right", "left"]] = []
    complete = True
    for key, record in iter_json_records(path, page=PAGE):
        if key not in ("images", "annotations", _OWN):
            continue
        if not isinstance(record, dict):
            raise DataError(f"{key}: expected records, got {type(record).__name__}", path=path)
        if key == _OWN:
            complete = record.get("complete") is not False
            continue
        where = f"{key}, id {str(record.get('id'))[:20]}"

        def integer(field: str, record: dict[str, Any] = record, where: str = where) -> int:
            value = record.get(field)
            if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 62:
                raise DataError(f"{where}: {field}: expected an integer, got {str(value)[:20]!r}", path=path)
            return value

        if key == "images":
            name = record.get("file_name")
            if not isinstance(name, str) or not _is_inside(name):
                raise DataError(f"{where}: file_name: expected a relative path, got {str(name)[:60]!r}", path=path)
            images[integer("id")] = (name, integer("width"), integer("height"))
            continue
        row, side = _row(record, path, where)
        rows.append(row)
        sides.append(side)
        ids.append(integer("id"))
        image_ids.append(integer("image_id"))
    if not rows:
        raise DataError("has no annotations", path=path, remedy=f"the file comes from {PAGE}")
    lost = [i for i in image_ids if i not in images]
    if lost:
        raise DataError(f"{len(lost)} annotations belong to images that are not listed, first id {lost[0]}", path=path)
    return Annotations(
        file_names=[images[i][0] for i in image_ids],
        ids=np.array(ids, np.int64),
        sizes=np.array([images[i][1:] for i in image_ids], np.int64),
        sides=sides,
        values=np.stack(rows),
        complete=complete,
    )


def _is_inside(name: str) -> bool:
    return (
        bool(name)
        and not name.startswith("/")
        and "\\" not in name
        and ".." not in name.split("/")
        and "\0" not in name
    )


def _row(record: dict[str, Any], path: Path, where: str) -> tuple[Float, Literal["right", "left"]]:
    row = np.full(_WIDTH, np.nan)

    def put(field: str, value: object, shape: tuple[int, ...], name: str) -> None:
        if value is not None:
            array = checked_array(value, shape, path=path, field=f"{where}: {name}")
            row[_START[field] : _START[field] + _FIELDS[field]] = array.ravel()

    def part(name: str) -> dict[str, Any]:
        value = record.get(name, {})
        if not isinstance(value, dict):
            raise DataError(f"{where}: {name}: expected a record, got {type(value).__name__}", path=path)
        return value

    camera, mano = part("cam_param"), part("mano_param")
    if "focal" not in camera or "princpt" not in camera:
        raise DataError(f"{where}: cam_param: expected focal and princpt", path=path)
    if "joints_coord_cam" not in record and "root_joint_cam" not in record:
        raise DataError(f"{where}: expected joints_coord_cam or root_joint_cam", path=path)
    put("joints", record.get("joints_coord_cam"), (21, 3), "joints_coord_cam")
    put("joints_img", record.get("joints_img"), (21, 2), "joints_img")
    put("root", record.get("root_joint_cam"), (3,), "root_joint_cam")
    put("focal", camera["focal"], (2,), "focal")
    put("princpt", camera["princpt"], (2,), "princpt")
    put("pose", mano.get("pose"), (48,), "mano_param.pose")
    put("shape", mano.get("shape"), (10,), "mano_param.shape")
    put("bbox", record.get("bbox"), (4,), "bbox")
    side = record.get("hand_type", "right")
    if side not in ("right", "left"):
        raise DataError(f"{where}: hand_type: expected right or left, got {str(side)[:20]!r}", path=path)
    return row, side


# ------------------------------------------------------------------------------------------------ the data set


def open(
    root: str | Path,
    annotations: str | Path,
    *,
    rgb: bool = True,
    missing: Literal["skip", "error"] = "error",
) -> HandOccNetFrames:
    """Opens the pictures of one annotation file.

    Args:
        root: folder that the file's picture names start from: ``HO3D/data/train``, ``HO3D/data/evaluation`` or
            ``DEX_YCB/data`` in HandOccNet's layout.
        annotations: the JSON file.
        rgb: decode colour.
        missing: stop with an error if pictures are not on disk, or skip and count them.

    Raises:
        MissingFileError: annotation file or pictures are not there.
        DataError: the file is not such a file.
    """
    return HandOccNetFrames(Path(root), Path(annotations), rgb, missing)


class HandOccNetFrames:
    """The annotated frames by index, in the order of the file; see :func:`open`."""

    skeleton = SKELETON

    def __init__(self, root: Path, annotations: Path, rgb: bool, missing: str) -> None:
        if missing not in ("skip", "error"):
            raise DataError(f"missing must be skip or error, got {missing!r}")
        self.root, self.rgb, self._source = root, rgb, annotations
        self.annotations = read_annotations(annotations)
        there = [not rgb or (root / name).is_file() for name in self.annotations.file_names]
        self.missing = len(there) - sum(there)
        if self.missing and (missing == "error" or self.missing == len(there)):
            first = self.annotations.file_names[there.index(False)]
            raise MissingFileError(
                f"{self.missing} of {len(there)} pictures of {annotations.name} are not there, the first is {first}",
                path=root,
                remedy="name the folder that the file names start from, or open it with missing='skip'",
            )
        self.rows = np.flatnonzero(there)

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> list[str]:
        """The pictures' names without suffix, in the order of the file."""
        return [_stem(self.annotations.file_names[i]) for i in self.rows]

    def summary(self) -> str:
        """Frames used and left out."""
        left = sum(self.annotations.sides[i] == "left" for i in self.rows)
        part = "" if self.annotations.complete else ", made from a part of its split"
        missing = f"{self.missing} pictures missing on disk"
        return f"{self._source.name}: {len(self)} frames ({left} left hands){part}, {missing}"

    def labels(self, index: int) -> Frame:
        """The frame without its picture."""
        row = int(self.rows[index])
        get: Callable[[str], Float | None] = lambda field: self.annotations.get(row, field)  # noqa: E731
        joints, pixels, root, bbox = get("joints"), get("joints_img"), get("root"), get("bbox")
        pose, betas = get("pose"), get("shape")
        joints_mm = None if joints is None else joints.reshape(21, 3) * 1000
        focal, centre = get("focal"), get("princpt")
        assert focal is not None
        assert centre is not None
        extra: dict[str, Any] = {"annotation_id": int(self.annotations.ids[row])}
        if joints_mm is not None:
            extra["root_mm"] = joints_mm[0]
        elif root is not None:
            extra["root_mm"] = root * 1000
        if pose is not None and betas is not None:
            extra |= {"pose": pose, "betas": betas, "flat_hand_mean": False}
        if bbox is not None:
            extra["bbox_xywh"] = bbox
        width, height = self.annotations.sizes[row].tolist()
        return Frame(
            name=_stem(self.annotations.file_names[row]),
            image_size=(width, height),
            K=intrinsics(*focal, *centre),
            skeleton=SKELETON,
            joints_mm=joints_mm,
            keypoints_2d=None if pixels is None else pixels.reshape(21, 2),
            side=self.annotations.sides[row],
            extra=extra,
        )

    def __getitem__(self, index: int) -> Frame:
        frame = self.labels(index)
        if not self.rgb:
            return frame
        name = self.annotations.file_names[int(self.rows[index])]
        return replace(frame, rgb=read_rgb(self.root / name, expected_size=frame.image_size))


def _stem(name: str) -> str:
    return re.sub(r"\.\w+$", "", name)


# ------------------------------------------------------------------------------------------------ making the files


def annotation_of(frame: Frame, hands_mean: ArrayLike) -> dict[str, Any]:
    """The annotation record of a frame of HO-3D or DexYCB, without ids (as HandOccNet's annotation scripts make it).

    HO-3D's poses are for a flat mean hand and HandOccNet's layer adds the mean, so it is subtracted; DexYCB's PCA poses
    already are without it.

    Args:
        frame: of ``shared.datasets.ho3d`` or ``shared.datasets.dexycb`` (opened with ``hands_components``).
        hands_mean: (45,) of the right hand's MANO file.

    Raises:
        DataError: the frame has neither joints nor a wrist, or no axis-angle pose for its joints.
    """
    record: dict[str, Any] = {}
    if frame.joints_mm is not None and "bbox_xywh" not in frame.extra:
        joints = reorder(frame.joints_mm, frame.skeleton, SKELETON) / 1000
        record["joints_coord_cam"] = joints.tolist()
        if "pose" not in frame.extra:
            raise DataError(f"{frame.name} has no axis-angle pose", remedy="open DexYCB with hands_components")
        pose = np.array(frame.extra["pose"], np.float64)
        if frame.extra["flat_hand_mean"]:
            pose[3:] -= np.asarray(hands_mean, np.float64)
        record["mano_param"] = {"pose": pose.tolist(), "shape": frame.extra["betas"].tolist()}
    elif "bbox_xywh" in frame.extra:
        record["root_joint_cam"] = (frame.extra["root_mm"] / 1000).tolist()
        record["bbox"] = frame.extra["bbox_xywh"].tolist()
    else:
        raise DataError(f"{frame.name} has neither joints nor a wrist with a box")
    if frame.keypoints_2d is not None:
        record["joints_img"] = frame.keypoints_2d.tolist()
        record["hand_type"] = frame.side
    K = frame.K
    record["cam_param"] = {"focal": [K[0, 0], K[1, 1]], "princpt": [K[0, 2], K[1, 2]]}
    return record


def write_annotations(
    path: str | Path,
    frames: Iterable[Frame],
    hands_mean: ArrayLike,
    file_name: Callable[[Frame], str],
    *,
    part: str = "",
) -> int:
    """Writes an annotation file from frames; returns how many. One frame is held in memory at a time.

    Args:
        path: the JSON file.
        frames: frames of one split; their pictures are not needed (``dataset.labels(i)``). Iterated once.
        hands_mean: (45,) of the right hand's MANO file.
        file_name: the picture's path relative to the folder that HandOccNet's loader starts from;
            :func:`ho3d_file_name` or :func:`dexycb_file_name`.
        part: what is left out of the split; the file then says that it is not complete.
    """
    count = 0
    with atomic_path(path) as temporary, _open(temporary, "w", encoding="utf-8") as file:
        images = []
        own = f'"{_OWN}": {json.dumps([{"complete": False, "part": part}])}, ' if part else ""
        file.write(f'{{{own}"annotations": [')
        for number, frame in enumerate(frames):
            index = int(frame.extra.get("toolkit_index", number))  # DexYCB: the toolkit's numbers, with gaps
            record = {"id": index, "image_id": index, **annotation_of(frame, hands_mean)}
            file.write((", " if number else "") + json.dumps(record))
            width, height = frame.image_size
            images.append({"id": index, "file_name": file_name(frame), "width": width, "height": height})
            count += 1
        file.write('], "images": ' + json.dumps(images) + "}")
    return count


def ho3d_file_name(frame: Frame, suffix: str = ".png") -> str:
    """``SEQ/rgb/FID.png`` of an HO-3D frame (``.jpg`` for v3)."""
    sequence, _, number = frame.name.rpartition("/")
    return f"{sequence}/rgb/{number}{suffix}"


def dexycb_file_name(frame: Frame) -> str:
    """``subject/sequence/serial/color_FFFFFF.jpg`` of a DexYCB frame."""
    folder, _, number = frame.name.rpartition("/")
    return f"{folder}/color_{number}.jpg"
