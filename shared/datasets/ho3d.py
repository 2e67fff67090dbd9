"""HO-3D v2 and v3: colour and depth of a right hand holding an object, with MANO and object poses.

Layout (the data set's readme): ``{train,evaluation}/<SEQ>/{rgb,depth,meta}/<FID>.{png|jpg,png,pkl}`` and the lists
``train.txt`` and ``evaluation.txt`` with lines ``SEQ/FID``; colour is PNG in v2 and JPEG in v3. The lists, not the
folders, say which frames there are, and their order is the order of submissions. The files are in metres and in an
OpenGL camera (y up, z towards the viewer); everything here comes out in millimetres and OpenCV axes.

Whole data set:

* ``open(root, split, ...) -> HO3D``: a :class:`~shared.datasets.base.FrameDataset`.

Single files:

* ``read_list(path)``, ``read_rgb(path)``, ``read_depth(path)``, ``read_meta(path) -> Meta``
* ``read_evaluation_xyz(path)``, ``read_evaluation_verts(path)``: the public ground truth of the evaluation split.

MANO: ``pose_to_opencv(hand_pose)``, ``mano_to_opencv(hand_pose, hand_trans_mm, rest_root_mm)``.

``Frame.extra`` holds (where the file has it): ``pose`` (48,) axis-angle for a MANO layer with ``flat_hand_mean=True``,
its global rotation in OpenCV axes; ``flat_hand_mean`` True; ``betas`` (10,); ``root_mm`` (3,) the wrist, also for
evaluation frames without joints; ``bbox_xywh`` (4,) pixels, evaluation only; ``object_name``; ``T_cam_object`` (4, 4)
mm; ``object_corners_mm`` (8, 3); ``list_index``: the line in the list. The layer's translation is ``root_mm`` minus
the wrist of its rest pose.

Not seen on real files, only described by the official scripts: training metas and the lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.camera import opengl_to_opencv, rotvec_to_rotmat
from shared.datasets.base import Frame
from shared.datasets.images import read_rgb
from shared.datasets.labels import require_file
from shared.datasets.side_files import Float, checked_array, file_names, labelled_frames, read_json_array
from shared.errors import DataError, MissingFileError
from shared.safe_io import load_restricted_pickle

PAGE = "https://github.com/shreyashampali/ho3d"
SKELETON = "mano"
IMAGE_SIZE = (640, 480)
DEPTH_SCALE_MM = 0.12498664727900177
WRIST_MM = 50.0  # between the ground truth's wrist and the label's: more means that they are not of one frame
LISTED = {"v2": {"train": 66_034, "evaluation": 11_524}, "v3": {"train": 78_297, "evaluation": 20_137}}
_open = open  # the built-in; this module's own open() is below


# ------------------------------------------------------------------------------------------------ single files


def read_list(path: str | Path) -> list[str]:
    """The frame names ``SEQ/FID`` of ``train.txt`` or ``evaluation.txt`` in its order, without empty lines.

    Raises:
        MissingFileError, DataError: no such file; a line of another form, a name that comes twice, no name at all.
    """
    path = require_file(path, page=PAGE)
    names: dict[str, int] = {}
    with _open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            name = line[:200].strip()
            if not name:
                continue
            if not re.fullmatch(r"[\w-]+/\w+", name):
                raise DataError(f"line {number}: expected SEQ/FID, got {name[:40]!r}", path=path)
            if names.setdefault(name, number) != number:
                raise DataError(f"line {number}: {name} is already in line {names[name]}", path=path)
    if not names:
        raise DataError("expected lines SEQ/FID, the list is empty", path=path)
    return list(names)


def read_depth(path: str | Path, *, expected_size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """(H, W) float32 depth along z in mm, 0 where nothing was measured.

    The value is (R + 256 G) times 0.125 mm (scale of the official script). The PNG may have three or four channels; B
    and alpha hold nothing.

    Raises:
        MissingFileError, DataError: no such file; not an 8-bit RGB or RGBA picture, damaged, another size.
    """
    rgb = read_rgb(path, expected_size=expected_size, any_mode=False)
    # wide first: NumPy 2 refuses uint8 * 256
    value = rgb[..., 1].astype(np.uint16) << 8 | rgb[..., 0]
    return (value * DEPTH_SCALE_MM).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Meta:
    """A ``meta/<FID>.pkl`` in OpenCV axes, mm and pixels; None for what the file does not have.

    Attributes:
        labelled: False for the frames whose hand or object fields are None in the file: to be skipped.
        K: (3, 3).
        joints_mm: (21, 3), order "mano"; None in evaluation metas, which hold the wrist only.
        root_mm: (3,) the wrist.
        pose: (48,) axis-angle, global rotation in OpenCV axes, hand mean **not** subtracted (``flat_hand_mean=True``).
        betas: (10,).
        hand_trans_mm: (3,) ``handTrans`` as in the file, that is in OpenGL axes; see :func:`mano_to_opencv`.
        bbox_xyxy: (4,) hand box x1, y1, x2, y2, evaluation only.
        object_name: YCB name.
        T_cam_object: (4, 4) object to camera, mm.
        object_corners_mm: (8, 3) corners of the object's box in the camera.
    """

    labelled: bool
    K: Float | None = None
    joints_mm: Float | None = None
    root_mm: Float | None = None
    pose: Float | None = None
    betas: Float | None = None
    hand_trans_mm: Float | None = None
    bbox_xyxy: Float | None = None
    object_name: str | None = None
    T_cam_object: Float | None = None
    object_corners_mm: Float | None = None


def read_meta(path: str | Path) -> Meta:
    """Reads a frame's annotation; the pickle is interpreted by ``shared.safe_io``, nothing in it is run.

    Raises:
        MissingFileError, DataError: no such file; hostile or damaged pickle, a field of another shape or not finite.
    """
    path = require_file(path, page=PAGE)
    raw = load_restricted_pickle(path, max_bytes=4 << 20)
    if not isinstance(raw, dict) or "handJoints3D" not in raw or "camMat" not in raw:
        raise DataError(
            "expected a dictionary with camMat and handJoints3D, as HO-3D's metas are", path=path, remedy=f"see {PAGE}"
        )

    def get(field: str, shape: tuple[int, ...]) -> Float | None:
        value = raw.get(field)
        return None if value is None else checked_array(value, shape, path=path, field=field)

    K = get("camMat", (3, 3))
    if raw["handJoints3D"] is None or ("objRot" in raw and raw["objRot"] is None):
        return Meta(labelled=False, K=K)
    if K is None or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise DataError("camMat: expected positive focal lengths", path=path)
    joints = raw["handJoints3D"]
    size = joints.size if isinstance(joints, np.ndarray) else len(joints) if isinstance(joints, list | tuple) else 0
    shape = (3,) if size == 3 else (21, 3)
    joints_mm = opengl_to_opencv(checked_array(joints, shape, path=path, field="handJoints3D") * 1000)
    pose, trans, corners = get("handPose", (48,)), get("handTrans", (3,)), get("objCorners3D", (8, 3))
    rotation, translation = get("objRot", (3,)), get("objTrans", (3,))
    T_cam_object = None
    if rotation is not None and translation is not None:
        T_cam_object = np.eye(4)
        T_cam_object[:3, :3] = np.diag([1.0, -1, -1]) @ rotvec_to_rotmat(rotation)
        T_cam_object[:3, 3] = opengl_to_opencv(translation * 1000)
    name = raw.get("objName")
    return Meta(
        labelled=True,
        K=K,
        joints_mm=joints_mm if shape == (21, 3) else None,
        root_mm=joints_mm[0] if shape == (21, 3) else joints_mm,
        pose=None if pose is None else pose_to_opencv(pose),
        betas=get("handBeta", (10,)),
        hand_trans_mm=None if trans is None else trans * 1000,
        bbox_xyxy=get("handBoundingBox", (4,)),
        object_name=name if isinstance(name, str) else None,
        T_cam_object=T_cam_object,
        object_corners_mm=None if corners is None else opengl_to_opencv(corners * 1000),
    )


def read_evaluation_xyz(path: str | Path) -> Float:
    """(N, 21, 3) mm, OpenCV, order "mano", in the order of ``evaluation.txt``: the released ``evaluation_xyz.json``.

    Raises:
        MissingFileError, DataError: no such file; not a list of 21 x 3 numbers per frame.
    """
    return opengl_to_opencv(read_json_array(path, (21, 3), page=PAGE) * 1000)


def read_evaluation_verts(path: str | Path) -> NDArray[np.float32]:
    """(N, 778, 3) float32 mm, OpenCV, in the order of ``evaluation.txt``: the released ``evaluation_verts.json``.

    The real file is 500 MB of text: allow a quarter of a minute and 300 MB of memory.

    Raises:
        MissingFileError, DataError: no such file; not a list of 778 x 3 numbers per frame.
    """
    verts: NDArray[np.float32] = read_json_array(path, (778, 3), page=PAGE, dtype=np.float32)
    verts *= np.array([1000, -1000, -1000], np.float32)
    return verts


# ------------------------------------------------------------------------------------------------ MANO


def pose_to_opencv(hand_pose: ArrayLike) -> Float:
    """MANO pose (..., 48) of an OpenGL camera for an OpenCV one: diag(1, -1, -1) times its global rotation.

    That matrix is a half turn about x, so its unit quaternion is i and the product with (w, x, y, z) is (-x, w, -z,
    y). The angle of the result is in [0, pi].
    """
    pose = np.array(hand_pose, np.float64)
    rotvec = pose[..., :3]
    angle = np.linalg.norm(rotvec, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(rotvec * np.sinc(angle / (2 * np.pi)) / 2, -1, 0)  # sin(a/2)/a * rotvec, finite at 0
    w = np.cos(angle[..., 0] / 2)
    turned = np.stack([-x, w, -z, y], -1)
    turned *= np.where(turned[..., :1] < 0, -1.0, 1.0)
    length = np.linalg.norm(turned[..., 1:], axis=-1, keepdims=True)
    half = np.arctan2(length, turned[..., :1])
    pose[..., :3] = turned[..., 1:] * np.where(length > 1e-12, 2 * half / np.maximum(length, 1e-12), 2.0)
    return pose


def mano_to_opencv(hand_pose: ArrayLike, hand_trans_mm: ArrayLike, rest_root_mm: ArrayLike) -> tuple[Float, Float]:
    """HO-3D's ``handPose`` and ``handTrans`` (in mm) as OpenCV's (pose (..., 48), transl_mm (..., 3)) of a layer.

    A MANO layer turns the hand about its wrist at rest J0(betas) and not about the origin: x = R (v - J0) + J0 + t.
    With F = diag(1, -1, -1), F x = (F R)(v - J0) + J0 + t' for t' = F (J0 + t) - J0.

    Args:
        hand_pose: (..., 48) as in the file.
        hand_trans_mm: (..., 3) ``handTrans`` times 1000.
        rest_root_mm: (..., 3) J0 in mm, that is the wrist the layer gives for these betas with zero pose and
            translation.
    """
    rest = np.asarray(rest_root_mm, np.float64)
    return pose_to_opencv(hand_pose), opengl_to_opencv(rest + np.asarray(hand_trans_mm, np.float64)) - rest


# ------------------------------------------------------------------------------------------------ the data set


def open(
    root: str | Path,
    split: Literal["train", "evaluation"],
    *,
    version: Literal["v2", "v3"] | None = None,
    rgb: bool = True,
    depth: bool = True,
    verts: bool = False,
    missing: Literal["skip", "error"] | None = None,
    index: str | Path | None = None,
) -> HO3D:
    """Opens one split of HO-3D.

    Every listed frame's meta is read once to find those without a label, which are skipped and counted (a minute or two
    for the whole training split; ``index`` remembers the answer).

    Args:
        root: folder with ``train.txt``, ``evaluation.txt``, ``train/`` and ``evaluation/``.
        split: which list.
        version: v2 (PNG colour) or v3 (JPEG); None looks at the first colour file.
        rgb: decode colour.
        depth: decode depth.
        verts: give the evaluation frames their vertices from ``evaluation_verts.json`` (a large file).
        missing: what to do with listed frames that are not on disk: skip and count them (default for train), or stop
            with an error that names the first ones (default for evaluation, whose results must not leave frames out).
        index: file that keeps which frames have no label, see :func:`shared.datasets.side_files.labelled_frames`.

    The evaluation split takes its joints from ``root/evaluation_xyz.json`` where that file is; otherwise its frames
    have the wrist only (``extra["root_mm"]``).

    Raises:
        MissingFileError: list, split folder or (``missing="error"``) frames are not there.
        DataError: unknown option; ground truth whose length is not that of the list.
    """
    return HO3D(Path(root), split, version, rgb, depth, verts, missing, index)


class HO3D:
    """One split of HO-3D by index; see :func:`open`. Frames are read when they are asked for."""

    skeleton = SKELETON

    def __init__(
        self,
        root: Path,
        split: str,
        version: str | None,
        rgb: bool,
        depth: bool,
        verts: bool,
        missing: str | None,
        index: str | Path | None,
    ) -> None:
        if split not in ("train", "evaluation"):
            raise DataError(f"HO-3D has the splits train and evaluation, got {split!r}")
        if version not in (None, "v2", "v3"):
            raise DataError(f"HO-3D has the versions v2 and v3, got {version!r}")
        if missing not in (None, "skip", "error"):
            raise DataError(f"missing must be skip or error, got {missing!r}")
        self.root, self.split, self.rgb, self.depth = root, split, rgb, depth
        listed = read_list(root / f"{split}.txt")
        folder = root / split
        if not folder.is_dir():
            raise MissingFileError("no such folder", path=folder, remedy=f"unpack HO-3D there; it comes from {PAGE}")
        self.version = version or _guess_version(folder, listed)
        kinds = {"meta": ".pkl"}
        if rgb:
            kinds["rgb"] = ".png" if self.version == "v2" else ".jpg"
        if depth:
            kinds["depth"] = ".png"
        sequences = {name.split("/")[0] for name in listed}
        on_disk = {(s, kind): file_names(folder / s / kind) for s in sequences for kind in kinds}
        absent = []
        present = []
        for position, name in enumerate(listed):
            seq, fid = name.split("/")
            lacking = [f"{seq}/{k}/{fid}{suffix}" for k, suffix in kinds.items() if fid + suffix not in on_disk[seq, k]]
            absent += lacking[:1]
            if not lacking:
                present.append(position)
        if absent and ((missing or ("skip" if split == "train" else "error")) == "error" or not present):
            raise MissingFileError(
                f"{len(absent)} of {len(listed)} frames of {split}.txt are not there, the first is {absent[0]}",
                path=folder,
                remedy=f"unpack all of HO-3D {self.version} (from {PAGE}), or open it with missing='skip'",
            )
        labelled = labelled_frames([listed[i] for i in present], self._is_labelled, index=index)
        self._list_index = np.array(present, np.int64)[labelled]
        self._names = [listed[i] for i in self._list_index]
        self.listed, self.missing, self.unlabelled = len(listed), len(absent), int((~labelled).sum())
        self._xyz = self._verts = None
        if split == "evaluation":
            if (root / "evaluation_xyz.json").is_file():
                self._xyz = of_length(read_evaluation_xyz(root / "evaluation_xyz.json"), len(listed), root, "xyz")
            if verts:
                self._verts = of_length(
                    read_evaluation_verts(root / "evaluation_verts.json"), len(listed), root, "verts"
                )
        elif verts:
            raise DataError("HO-3D has vertices for the evaluation split only; make those of train with a MANO layer")

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        """``SEQ/FID`` in the order of the list."""
        return list(self._names)

    def summary(self) -> str:
        """Frames used and left out, and where the joints come from."""
        truth = {True: "joints from evaluation_xyz.json", False: "wrist only (no evaluation_xyz.json)"}
        joints = "joints from the metas" if self.split == "train" else truth[self._xyz is not None]
        official = LISTED[self.version][self.split]
        return (
            f"HO-3D {self.version} {self.split}: {len(self)} of {self.listed} listed frames "
            f"(official list: {official}), {self.missing} missing on disk, {self.unlabelled} without label; {joints}"
        )

    def path(self, name: str, kind: Literal["rgb", "depth", "meta"]) -> Path:
        """The file of a frame ``SEQ/FID``."""
        seq, fid = name.split("/")
        suffix = {"meta": ".pkl", "depth": ".png", "rgb": ".png" if self.version == "v2" else ".jpg"}[kind]
        return self.root / self.split / seq / kind / (fid + suffix)

    def labels(self, index: int) -> Frame:
        """The frame without its pictures (``image_size`` is the data set's 640 x 480)."""
        name = self._names[index]
        path = self.path(name, "meta")
        meta = read_meta(path)
        if not meta.labelled or meta.K is None or meta.root_mm is None:
            raise DataError("the label is gone", path=path, remedy="delete the index of unlabelled frames")
        line = int(self._list_index[index])
        joints_mm = meta.joints_mm if self._xyz is None else self._xyz[line]
        if self.split == "train" and joints_mm is None:
            raise DataError("handJoints3D: expected 21 joints in a training meta, got the wrist only", path=path)
        if joints_mm is not None and np.linalg.norm(joints_mm[0] - meta.root_mm) > WRIST_MM:
            raise DataError(
                f"evaluation_xyz.json puts the wrist of line {line + 1} at {joints_mm[0].round().tolist()} mm, the "
                f"meta at {meta.root_mm.round().tolist()} mm",
                path=path,
                remedy="the ground truth belongs to another list or version of HO-3D",
            )
        extra: dict[str, Any] = {"root_mm": meta.root_mm, "list_index": line}
        if meta.pose is not None and meta.betas is not None:
            extra |= {"pose": meta.pose, "betas": meta.betas, "flat_hand_mean": True}
        if meta.bbox_xyxy is not None:
            extra["bbox_xywh"] = np.concatenate([meta.bbox_xyxy[:2], meta.bbox_xyxy[2:] - meta.bbox_xyxy[:2]])
        for key in ("object_name", "T_cam_object", "object_corners_mm"):
            if getattr(meta, key) is not None:
                extra[key] = getattr(meta, key)
        return Frame(
            name=name,
            image_size=IMAGE_SIZE,
            K=meta.K,
            skeleton=SKELETON,
            joints_mm=joints_mm,
            verts_mm=None if self._verts is None else self._verts[line].astype(np.float64),
            side="right",
            extra=extra,
        )

    def __getitem__(self, index: int) -> Frame:
        frame = self.labels(index)
        name = frame.name
        return replace(
            frame,
            rgb=read_rgb(self.path(name, "rgb"), expected_size=IMAGE_SIZE) if self.rgb else None,
            depth_mm=read_depth(self.path(name, "depth"), expected_size=IMAGE_SIZE) if self.depth else None,
        )

    def _is_labelled(self, name: str) -> bool:
        return read_meta(self.path(name, "meta")).labelled


def _guess_version(folder: Path, listed: list[str]) -> Literal["v2", "v3"]:
    for name in listed:
        seq, fid = name.split("/")
        if (folder / seq / "rgb" / f"{fid}.jpg").is_file():
            return "v3"
        if (folder / seq / "rgb" / f"{fid}.png").is_file():
            return "v2"
    raise MissingFileError(
        f"none of the {len(listed)} listed frames has a colour picture, the first would be {listed[0]}",
        path=folder,
        remedy=f"unpack HO-3D (from {PAGE}) there, or name the version",
    )


def of_length(array: NDArray[Any], length: int, root: Path, what: str) -> NDArray[Any]:
    """``evaluation_{what}.json``'s content if it has as many frames as the list."""
    if len(array) != length:
        raise DataError(
            f"has {len(array)} frames, evaluation.txt has {length}",
            path=root / f"evaluation_{what}.json",
            remedy="it belongs to the other version of HO-3D (v2: 11,524 frames, v3: 20,137)",
        )
    return array
