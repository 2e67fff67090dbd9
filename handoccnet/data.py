"""From the frames of HO-3D and DexYCB to the network's samples: boxes, crops, augmentation, targets, left hands.

All labels of a split are read and checked once at the start (:func:`load_labels`), from the data set's own metas or
from HandOccNet's annotation files, so that a broken one stops the program before hours of work; a sample then costs
one picture. Left hands are mirrored to right ones; the network knows no others. Frames are in mm and OpenCV axes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from handoccnet.affine import SIZE, apply_affine, bbox_of_points, check_bbox, crop_affine, square_bbox, warp
from handoccnet.config import AugmentOptions, DataOptions
from shared.camera import project
from shared.datasets import dexycb, handoccnet_json, ho3d
from shared.datasets.base import Frame
from shared.datasets.images import read_rgb
from shared.datasets.mirror import mirror_pose
from shared.errors import DataError, MissingFileError
from shared.mano import ManoModel, load_mano, mirror_model
from shared.skeletons import reorder
from shared.training import sample_rng

Float = NDArray[np.float64]
Split = Literal["train", "test"]
Batch = dict[str, Any]
SKELETON = "thumb_first"
JOINTS_EXPANSION = 1.5  # box around joints
HO3D_TEST_EXPANSION = 1.5  # of HO-3D's annotated evaluation boxes
MANO_REMEDY = (
    "give --data.mano MANO_RIGHT.pkl, which mano.is.tue.mpg.de gives out after registration; "
    "--data.mano standin is a free hand, for the stand-in data"
)


def open_mano(options: DataOptions) -> tuple[ManoModel, ManoModel | None]:
    """(right hand, left hand or None) that the options name; the stand-in's left hand is its mirror image.

    Raises:
        DataError: no MANO named, or a file that is none.
    """
    if not options.mano:
        raise DataError("no MANO model is named", remedy=MANO_REMEDY)
    right = load_mano(options.mano, side="right")
    if options.mano_left:
        return right, load_mano(options.mano_left, side="left")
    return right, mirror_model(right) if options.mano == "standin" else None


@dataclass(frozen=True)
class Labels:
    """All labels of one split as columns; pictures are read from ``paths`` when they are wanted.

    Attributes:
        names: of the frames.
        paths: of the pictures.
        image_wh: (N, 2).
        bbox_xywh: (N, 4) square boxes in pixels of the picture as stored (left hands not yet mirrored).
        left: (N,) bool.
        K: (N, 3, 3).
        root_mm: (N, 3) wrist.
        joints_mm: (N, 21, 3) thumb-first, NaN where the set gives none (HO-3D evaluation without ground truth).
        keypoints_2d: (N, 21, 2) pixels, NaN likewise.
        pose: (N, 48) axis-angle for a layer of the hand's own side with ``flat_hand_mean=False``, NaN likewise.
        betas: (N, 10), NaN likewise.
        ids: (N,) the frame's number in result files: line of HO-3D's list, DexYCB's toolkit number.
        verts_mm: (N, 778, 3) where the set has true meshes, else None.
        summary: one line for the log.
        complete: whether every frame of the official list on disk is here, in its order (a submission needs that).
    """

    names: list[str]
    paths: list[str]
    image_wh: NDArray[np.int64]
    bbox_xywh: Float
    left: NDArray[np.bool_]
    K: Float
    root_mm: Float
    joints_mm: Float
    keypoints_2d: Float
    pose: Float
    betas: Float
    ids: NDArray[np.int64]
    verts_mm: NDArray[np.float32] | None
    summary: str
    complete: bool

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int] | NDArray[np.integer], note: str) -> Labels:
        """Some of the frames."""
        rows = np.asarray(indices, np.int64)
        changed: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        changed |= {name: [getattr(self, name)[i] for i in rows] for name in ("names", "paths")}
        return replace(self, **changed, summary=f"{note} {self.summary}", complete=False)

    def limited(self, limit: int) -> Labels:
        """``limit`` frames spread evenly, or all for 0."""
        if not limit or limit >= len(self):
            return self
        return self.take(np.linspace(0, len(self) - 1, limit).round().astype(int), f"{limit} frames of:")

    @property
    def has_joints(self) -> bool:
        return bool(np.isfinite(self.joints_mm).all())


# ------------------------------------------------------------------------------------------------ reading labels


def load_labels(
    options: DataOptions, split: Split, right: ManoModel, left: ManoModel | None = None, *, verts: bool = False
) -> Labels:
    """Reads and checks every label of a split.

    Training frames whose box misses the picture are left out and counted, as in the original; a test frame is never
    left out: HO-3D's must have a box, DexYCB's gets the whole picture. ``verts`` also reads HO-3D's true meshes where
    they are there (half a gigabyte of text for the whole evaluation split).

    Raises:
        DataError: no root, bad or missing files, labels that are not finite, a test box outside the picture, left hands
            whose MANO file is not given.
    """
    if not options.root:
        raise DataError(
            "--data.root is empty: it names the folder of the data set",
            remedy="make data-ho3d writes a licence-free stand-in to data/standin/ho3d",
        )
    frames, path_of, complete = _open(options, split, right, left, verts)
    rows: list[dict[str, Any]] = []
    dropped = 0
    for frame in _progress(frames, f"labels of {options.dataset} {split}"):
        side = frame.side or "right"
        if options.sides not in ("both", side):
            complete = False
            continue
        row = _row(frame, right.hands_mean, options, split)
        if np.isnan(row["bbox_xywh"]).any():
            if split == "train":
                dropped += 1
                continue
            if options.dataset == "ho3d":
                raise DataError(f"{frame.name}: the annotated box lies outside the picture")
            width, height = frame.image_size
            row["bbox_xywh"] = np.array([0.0, 0.0, width - 1, height - 1])  # as the original: whole, not squared
        row |= {"names": frame.name, "paths": str(path_of(frame)), "left": side == "left"}
        rows.append(row)
    if not rows:
        raise DataError(f"no frame of the {split} split is left: {frames.summary()}", path=options.root)
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    for key in columns.keys() - {"names", "paths", "verts_mm"}:
        columns[key] = np.array(columns[key])
    meshes = columns.pop("verts_mm")
    note = f"; {dropped} left out because their box misses the picture" if dropped else ""
    labels = Labels(
        **columns,
        verts_mm=None if any(v is None for v in meshes) else np.array(meshes, np.float32),
        summary=frames.summary() + note,
        complete=complete and not dropped,
    )
    return labels.limited(options.train_limit if split == "train" else options.test_limit)


class _Frames:
    """Frames without their pictures, from any of the readers."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[Frame]:
        return (self.reader.labels(i) for i in range(len(self.reader)))

    def summary(self) -> str:
        return str(self.reader.summary())


def _open(
    options: DataOptions, split: Split, right: ManoModel, left: ManoModel | None, with_verts: bool
) -> tuple[_Frames, Callable[[Frame], Path], bool]:
    """(frames, picture of a frame, whether nothing of the list was left out)."""
    root = Path(options.root)
    missing = options.missing
    if options.dataset == "ho3d":
        part: Literal["train", "evaluation"] = "train" if split == "train" else "evaluation"
        if options.annotations:
            annotated = _annotated(root / part, Path(options.annotations) / f"HO3D_{part}_data.json", missing)
            return annotated if part == "train" else _with_truth(root, *annotated, with_verts=with_verts)
        verts = with_verts and part == "evaluation" and (root / "evaluation_verts.json").is_file()
        official = ho3d.open(root, part, depth=False, verts=verts, missing=missing, index=_index(options, part))
        if split == "test":
            refuse_unlabelled(official, root)
        return _Frames(official), lambda frame: official.path(frame.name, "rgb"), not official.missing
    name = "s0_train" if split == "train" else f"s0_{options.dexycb_split}"
    if options.annotations:
        return _annotated(root, Path(options.annotations) / f"DEX_YCB_{name}_data.json", missing)
    sides = ("right", "left") if options.sides == "both" else (options.sides,)
    if "left" in sides and left is None:
        raise DataError(
            "DexYCB's left hands need the left hand's PCA components",
            remedy="give --data.mano_left MANO_LEFT.pkl, use --data.sides right, or name --data.annotations",
        )
    components: dict[str, Float] = {m.side: m.hands_components for m in (right, left) if m is not None}
    index = _index(options, name)
    toolkit = dexycb.open(
        root, name, depth=False, sides=sides, hands_components=components, missing=missing, index=index
    )
    complete = not toolkit.missing and not toolkit.other_side
    return _Frames(toolkit), lambda frame: toolkit.path(frame.name, "color"), complete


def refuse_unlabelled(official: ho3d.HO3D, root: Path) -> None:
    """Stops where evaluation frames of HO-3D have no label."""
    if official.unlabelled:
        raise DataError(
            f"{official.unlabelled} of {official.listed} evaluation frames have no label: they have no box",
            path=root,
            remedy="unpack the evaluation split again; no frame of it is left out silently",
        )


def _annotated(
    root: Path, file: Path, missing: Literal["skip", "error"]
) -> tuple[_Frames, Callable[[Frame], Path], bool]:
    if not file.is_file():
        raise MissingFileError(
            "no such annotation file",
            path=file,
            remedy="make it with python -m handoccnet.prepare, or leave out --data.annotations to read the metas",
        )
    frames = handoccnet_json.open(root, file, missing=missing)
    names = dict(zip(frames.names(), (frames.annotations.file_names[i] for i in frames.rows), strict=True))
    complete = frames.annotations.complete and not frames.missing
    return _Frames(frames), lambda frame: root / names[frame.name], complete


class _Evaluation(_Frames):
    """HO-3D's evaluation frames of an annotation file with their lines in the official list, and what it gives them."""

    def __init__(
        self, frames: _Frames, lines: list[int], xyz: Float | None, verts: NDArray[np.float32] | None, note: str
    ) -> None:
        super().__init__(frames.reader)
        self.lines, self.xyz, self.verts, self.note = lines, xyz, verts, note

    def __iter__(self) -> Iterator[Frame]:
        for line, frame in zip(self.lines, super().__iter__(), strict=True):
            extra = {**frame.extra, "list_index": line}
            if self.xyz is None:
                yield replace(frame, extra=extra)
                continue
            joints_mm = self.xyz[line]
            if np.linalg.norm(joints_mm[0] - extra["root_mm"]) > ho3d.WRIST_MM:
                raise DataError(
                    f"{frame.name}: evaluation_xyz.json puts the wrist of line {line + 1} at "
                    f"{joints_mm[0].round().tolist()} mm, the annotation at {extra['root_mm'].round().tolist()} mm",
                    remedy="the ground truth belongs to another list or version of HO-3D",
                )
            verts_mm = None if self.verts is None else self.verts[line].astype(np.float64)
            yield replace(frame, joints_mm=joints_mm, skeleton=ho3d.SKELETON, verts_mm=verts_mm, extra=extra)

    def summary(self) -> str:
        return super().summary() + self.note


def _with_truth(
    root: Path, frames: _Frames, path_of: Callable[[Frame], Path], complete: bool, *, with_verts: bool
) -> tuple[_Frames, Callable[[Frame], Path], bool]:
    """Annotated evaluation frames with the public ground truth in the root; complete by the official list.

    Without ``evaluation.txt``, which HandOccNet's layout does not need, the file's order is taken for the list's, and
    the number of frames says whether it can be the whole list.
    """
    names = [name.replace("/rgb/", "/") for name in frames.reader.names()]
    official = root / "evaluation.txt"
    if official.is_file():
        listed = ho3d.read_list(official)
        line_of = {name: line for line, name in enumerate(listed)}
        strangers = [name for name in names if name not in line_of]
        if strangers:
            raise DataError(
                f"{len(strangers)} annotated frames are not in the list, the first is {strangers[0]}",
                path=official,
                remedy="the annotations belong to another version of HO-3D: python -m handoccnet.prepare makes them",
            )
        lines, count = [line_of[name] for name in names], len(listed)
        note = "" if names == listed else f"; evaluation.txt has {count} frames, or another order"
        complete = complete and names == listed
    else:
        lines, count = frames.reader.rows.tolist(), len(frames.reader.annotations)
        whole = count in {splits["evaluation"] for splits in ho3d.LISTED.values()}
        note = "" if whole else "; no evaluation.txt, and not as many frames as an official list has"
        complete = complete and whole
    if not (root / "evaluation_xyz.json").is_file():
        return _Evaluation(frames, lines, None, None, f"{note}; wrist only (no evaluation_xyz.json)"), path_of, complete
    xyz = ho3d.of_length(ho3d.read_evaluation_xyz(root / "evaluation_xyz.json"), count, root, "xyz")
    verts = None
    if with_verts and (root / "evaluation_verts.json").is_file():
        verts = ho3d.of_length(ho3d.read_evaluation_verts(root / "evaluation_verts.json"), count, root, "verts")
    return _Evaluation(frames, lines, xyz, verts, f"{note}; joints from evaluation_xyz.json"), path_of, complete


def _index(options: DataOptions, split: str) -> Path | None:
    return Path(options.index) / f"{options.dataset}_{split}.json" if options.index else None


def _progress(frames: _Frames, what: str) -> Iterable[Frame]:
    if len(frames) < 2000:
        return frames
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    bar: Iterable[Frame] = tqdm(frames, desc=what, unit="frame", mininterval=20 if quiet else 0.5)
    return bar


def _row(frame: Frame, hands_mean: Float, options: DataOptions, split: Split) -> dict[str, Any]:
    """The columns of one frame; a box of NaN where the picture does not show it."""
    joints = np.full((21, 3), np.nan)
    pixels = np.full((21, 2), np.nan)
    if frame.joints_mm is not None:
        joints = reorder(frame.joints_mm, frame.skeleton, SKELETON)
        if (joints[:, 2] <= 0).any():
            raise DataError(f"{frame.name}: joints behind the camera")
        pixels = project(joints, frame.K) if frame.keypoints_2d is None else frame.keypoints_2d
    pose, betas = _mano_labels(frame, hands_mean)
    if split == "train" and not (np.isfinite(pose).all() and np.isfinite(joints).all()):
        raise DataError(f"{frame.name}: a training frame needs 21 joints and MANO parameters")
    if options.dataset == "ho3d" and split == "test":
        if "bbox_xywh" not in frame.extra:
            raise DataError(f"{frame.name}: an HO-3D evaluation frame needs a box, and this one has none")
        given = check_bbox(frame.extra["bbox_xywh"], frame.image_size, name=frame.name)
        box = square_bbox(given, frame.image_size, HO3D_TEST_EXPANSION, rule=options.box_rule)
    else:
        if not np.isfinite(pixels).all():
            raise DataError(f"{frame.name}: no 2D joints to take the box from")
        around = bbox_of_points(pixels, JOINTS_EXPANSION)
        box = square_bbox(around, frame.image_size, 1.0, rule=options.box_rule)
    extra = frame.extra
    return {
        "image_wh": frame.image_size,
        "bbox_xywh": box,
        "K": frame.K,
        "root_mm": extra["root_mm"],
        "joints_mm": joints,
        "keypoints_2d": pixels,
        "pose": pose,
        "betas": betas,
        "ids": next((extra[key] for key in ("list_index", "toolkit_index", "annotation_id") if key in extra), -1),
        "verts_mm": frame.verts_mm,
    }


def _mano_labels(frame: Frame, hands_mean: Float) -> tuple[Float, Float]:
    """(48,) pose without the mean hand and (10,) betas, NaN where the frame has none."""
    if "pose" not in frame.extra:
        return np.full(48, np.nan), np.full(10, np.nan)
    pose = np.array(frame.extra["pose"], np.float64)
    if frame.extra["flat_hand_mean"]:  # HO-3D's poses are over the flat hand, the network's layer adds the mean
        pose[3:] -= hands_mean
    return pose, np.asarray(frame.extra["betas"], np.float64)


# ------------------------------------------------------------------------------------------------ samples


@dataclass(frozen=True)
class Augmentation:
    """What one training sample is changed by: box scale, turn in degrees, factors on red, green, blue."""

    scale: float = 1.0
    rotate_deg: float = 0.0
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)


def draw_augmentation(rng: np.random.Generator, options: AugmentOptions) -> Augmentation:
    """The original's distributions; its two unseeded generators are one seeded one here."""
    scale = 1 + options.scale * float(np.clip(rng.standard_normal(), -1, 1))
    turn = options.rotate_deg * float(np.clip(rng.standard_normal(), -2, 2))
    turned = rng.uniform() < options.rotate_share
    red, green, blue = rng.uniform(1 - options.colour, 1 + options.colour, 3).tolist()
    return Augmentation(scale, turn if turned else 0.0, (red, green, blue))


@dataclass(frozen=True)
class Crop:
    """A crop and its geometry.

    Attributes:
        image: (3, size, size) float32 RGB in 0..1.
        to_crop: (2, 3) pixel of the picture as stored -> pixel of the crop, mirroring included.
        to_picture: (2, 3) the other way round.
    """

    image: Tensor
    to_crop: NDArray[np.float32]
    to_picture: NDArray[np.float32]


def cut(
    rgb: NDArray[np.uint8],
    bbox_xywh: ArrayLike,
    *,
    left: bool = False,
    augmentation: Augmentation | None = None,
    size: int = SIZE,
) -> Crop:
    """The network's input from a picture (H, W, 3) and a square box; mirrored for a left hand.

    Mirroring is part of the affine (column u becomes W - 1 - u), so the picture is not copied.
    """
    aug = augmentation or Augmentation()
    x, y, w, h = np.asarray(bbox_xywh, np.float64).tolist()
    width = rgb.shape[1]
    if left:  # the original mirrors the box's centre
        x = width - 1 - (x + w / 2) - w / 2
    to_crop, to_picture = crop_affine([x, y, w, h], scale=aug.scale, angle_deg=aug.rotate_deg, size=size)
    if left:
        to_crop, to_picture = to_crop.copy(), to_picture.copy()
        to_crop[:, 2] += to_crop[:, 0] * (width - 1)
        to_crop[:, 0] *= -1
        to_picture[0] *= -1
        to_picture[0, 2] += width - 1
    # colour factors and the scale to 0..1 in one pass in place; grey levels are not negative, so only white is cut
    image = warp(rgb, to_crop, size=size).mul_(torch.tensor(aug.colour).view(3, 1, 1) / 255)
    return Crop(image.clamp_(max=1.0), to_crop, to_picture)


def turn_root(pose: ArrayLike, angle_deg: float) -> Float:
    """(48,) pose after turning the camera's picture by ``angle_deg``: Rz(-angle) times the root's rotation."""
    from scipy.spatial.transform import Rotation

    turned = np.array(pose, np.float64)
    turned[:3] = (Rotation.from_euler("z", -angle_deg, degrees=True) * Rotation.from_rotvec(turned[:3])).as_rotvec()
    return turned


class HandSamples:
    """Crops with targets. ``samples[(epoch, index)]`` is augmented by (seed, epoch, index), ``samples[index]`` is not.

    A sample: ``name``, ``index``, ``image`` (3, size, size) in 0..1, ``to_picture`` (2, 3), ``left``, ``root_mm`` (3,);
    with labels also ``pose`` (48,), ``betas`` (10,), ``joints_img`` (21, 2) fractions of the crop, ``joints_root_mm``
    (21, 3) wrist at the origin, turned and mirrored like the picture, and ``joints_mm`` (21, 3) as annotated.

    Args:
        labels: of a split.
        augment: ranges, or None for none at all.
        seed: of the run.
        size: edge of the crop in pixels.
    """

    def __init__(
        self, labels: Labels, *, augment: AugmentOptions | None = None, seed: int = 0, size: int = SIZE
    ) -> None:
        self.labels, self.augment, self.seed, self.size = labels, augment, seed, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (-1, key)
        augmentation = None
        if epoch >= 0 and self.augment is not None:
            augmentation = draw_augmentation(sample_rng(self.seed, epoch, index), self.augment)
        return self.sample(index, augmentation)

    def sample(self, index: int, augmentation: Augmentation | None = None) -> dict[str, Any]:
        """One sample with a given augmentation."""
        labels = self.labels
        width, height = labels.image_wh[index].tolist()
        left = bool(labels.left[index])
        aug = augmentation or Augmentation()
        rgb = read_rgb(labels.paths[index], expected_size=(width, height))
        crop = cut(rgb, labels.bbox_xywh[index], left=left, augmentation=aug, size=self.size)
        sample: dict[str, Any] = {
            "name": labels.names[index],
            "index": index,
            "image": crop.image,
            "to_picture": crop.to_picture,
            "left": left,
            "root_mm": labels.root_mm[index].astype(np.float32),
        }
        if np.isfinite(labels.joints_mm[index]).all():
            pixels = apply_affine(crop.to_crop, labels.keypoints_2d[index])
            a = np.deg2rad(-aug.rotate_deg)
            turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
            joints = (labels.joints_mm[index] - labels.joints_mm[index, :1]) * [-1.0 if left else 1.0, 1, 1]
            sample["joints_img"] = (pixels / self.size).astype(np.float32)
            sample["joints_root_mm"] = (joints @ turn.T).astype(np.float32)
            sample["joints_mm"] = labels.joints_mm[index].astype(np.float32)
        if np.isfinite(labels.pose[index]).all():
            pose = mirror_pose(labels.pose[index]) if left else labels.pose[index]
            sample["pose"] = turn_root(pose, aug.rotate_deg).astype(np.float32)
            sample["betas"] = labels.betas[index].astype(np.float32)
        return sample

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """Stacks what all samples have; ``name`` stays a list."""
        keys = [key for key in samples[0] if key != "name" and all(key in s for s in samples)]
        batch: Batch = {key: torch.stack([torch.as_tensor(s[key]) for s in samples]) for key in keys}
        batch["name"] = [s["name"] for s in samples]
        return batch


def to_camera(joints_mm: ArrayLike, verts_mm: ArrayLike, root_mm: ArrayLike, left: ArrayLike) -> tuple[Float, Float]:
    """Predicted (B, 21, 3) joints and (B, V, 3) vertices of right hands in the annotated frame.

    The wrist goes to the annotated one (B, 3), which HO-3D and DexYCB give to everybody; left hands (B,) bool are
    mirrored back.
    """
    joints, verts = np.array(joints_mm, np.float64), np.array(verts_mm, np.float64)
    flip = np.where(np.asarray(left, bool)[:, None, None], [-1.0, 1, 1], [1.0, 1, 1])
    root = joints[:, :1].copy()
    target = np.asarray(root_mm, np.float64)[:, None]
    return (joints - root) * flip + target, (verts - root) * flip + target
