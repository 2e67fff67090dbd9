"""From frames to batches: crops, centres, augmentation parameters; and from a batch to grids and targets on its device.

A loader process ships the depth crop and a dozen numbers of a sample (30 to 80 KB) instead of its 20 MB of volumes;
grid and target are made in the training process by ``kernels.ops``, on the GPU where there is one.

World means the grid's own axes: y up for MSRA, NYU and ITOP as in both originals, which rotated targets and the
weights of published checkpoints depend on. Frames come in and joints leave in OpenCV axes; the flip is here and
nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.camera import flip_y
from shared.datasets.base import Frame, FrameDataset
from shared.datasets.centers import PAGE
from shared.errors import DataError
from shared.training import sample_rng
from v2v_posenet.config import CONVENTIONS, DATASETS, AugmentOptions, Convention, DataOptions, DataSpec, Variant
from v2v_posenet.kernels import ops

Batch = dict[str, Any]

_VIEWS = {"itop-front": "side", "itop-top": "top"}


def convention_of(name: str, variant: Variant) -> Convention:
    """The convention that options name (the port's integral program inverts the scale)."""
    return CONVENTIONS["port-integral" if (name, variant) == ("port", "integral") else name]


def margin_of(grid: int) -> int:
    """Fine voxels between the grid and the virtual outer grid: 4 for 88, in proportion for other sizes, at least 1."""
    return max(1, round(grid / 22))


class Subset:
    """Some frames of a data set, in their order."""

    def __init__(self, frames: FrameDataset, indices: Sequence[int]) -> None:
        self.frames, self.indices, self.skeleton = frames, [int(i) for i in indices], frames.skeleton

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[self.indices[index]]

    def names(self) -> list[str]:
        names = self.frames.names()
        return [names[i] for i in self.indices]

    def summary(self) -> str:
        return f"{len(self)} of: {self.frames.summary()}"


def limited(frames: FrameDataset, limit: int) -> FrameDataset:
    """``limit`` frames spread evenly over the set, or all for 0."""
    if not limit or limit >= len(frames):
        return frames
    return Subset(frames, np.linspace(0, len(frames) - 1, limit).round().astype(int).tolist())


def center_places(name: str, root: Path) -> list[Path]:
    """Folders in which the centre files of a data set are looked for, best first.

    ``<set>_center`` (ITOP: ``itop_center/side`` and ``top``), or as the author keeps and publishes them:
    ``Result_<SET>/center``, ``<SET>/center``; in the root, beside it, or in the folder the archive unpacks to.
    """
    archive = {"msra": "cvpr15_MSRAHandGestureDB", "itop-front": "ITOP", "itop-top": "ITOP"}.get(name, name.upper())
    beside = root.parent if root.name not in ("", "..") else root / ".."
    if name.startswith("itop"):
        view = _VIEWS[name]
        published = name.replace("itop-", "ITOP_")
        folders = [f"itop_center/{view}", f"Result_ITOP/center/{view}_view", f"{published}/center"]
    else:
        folders = [f"{name}_center", f"Result_{name.upper()}/center"]
    places = [base / folder for folder in folders for base in (root, beside, root / archive)]
    if not name.startswith("itop"):  # one folder of this name could not say which view it is for
        places += [root / "center", root / archive / "center"]
    return places


def center_source(name: str, root: Path, centers: str) -> Path | None:
    """What ``--data.centers`` means for a reader: None for ``gt``, or the file or folder to read.

    Raises:
        DataError: ``auto``, and no folder of centre files is in any of :func:`center_places`.
    """
    if centers == "gt":
        return None
    if centers != "auto":
        given = Path(centers)
        views = [given / _VIEWS[name], given / f"{_VIEWS[name]}_view"] if name in _VIEWS else []
        return next((folder for folder in views if folder.is_dir()), given)
    places = center_places(name, root)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise DataError(
            f"no centre files of {name}; looked for {', '.join(str(place) for place in places)}",
            path=root,
            remedy=f"put the author's ({PAGE}) there or name their folder with --data.centers; python -m "
            "v2v_posenet.make_centers makes them for MSRA; --data.centers gt cheats with the labels",
        )
    return found


def open_frames(options: DataOptions, split: str) -> FrameDataset:
    """The frames of ``split`` (``train`` or ``test``) with their reference points.

    Raises:
        DataError: no root, no centre files, ``--data.centers gt`` for a split without labels, or whatever the reader
            finds wrong.
    """
    if not options.root:
        raise DataError(
            "--data.root is empty: it names the folder of the data set",
            remedy="make data-msra writes a licence-free stand-in to data/standin/msra",
        )
    name = options.dataset
    reader = importlib.import_module(f"shared.datasets.{DATASETS[name].reader}")
    extra: dict[str, dict[str, Any]] = {
        "msra": {"test_subject": options.test_subject, "drop_handless": options.drop_handless},
        "icvl": {"include_rotated": True},
        "nyu": {"joints": "nyu14"},
        **{itop: {"view": view} for itop, view in _VIEWS.items()},
    }
    centers = center_source(name, Path(options.root), options.centers)
    frames: FrameDataset = reader.open(options.root, split, centers=centers, **extra.get(name, {}))
    if centers is None and getattr(frames, "joints_mm", None) is None:
        raise DataError(
            f"--data.centers gt: the {split} split of {name} has no labels to take centres from",
            path=options.root,
            remedy="use centre files; in training, --data.validation none leaves the test split alone",
        )
    return frames


def split_validation(options: DataOptions, train: FrameDataset) -> tuple[FrameDataset, FrameDataset | None]:
    """The training frames that are left and the validation frames, by ``--data.validation``."""
    if options.validation == "none":
        return train, None
    if options.validation == "test":
        return train, limited(open_frames(options, "test"), options.val_limit)
    names = train.names()
    held = [name.split("/")[0] == f"P{options.val_subject}" for name in names]
    if options.dataset != "msra" or not any(held) or all(held):
        raise DataError(
            f"--data.validation subject: P{options.val_subject} is not one of several training subjects",
            remedy="choose --data.val_subject among the training subjects of MSRA, or --data.validation test",
        )
    rest = Subset(train, [i for i, h in enumerate(held) if not h])
    return rest, limited(Subset(train, [i for i, h in enumerate(held) if h]), options.val_limit)


def crop_to_cube(
    depth_mm: NDArray[np.float32],
    crop_xy: tuple[int, int],
    K: NDArray[np.float64],
    center_mm: NDArray[np.float64],
    reach_mm: float,
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The part of a depth image that can show points within ``reach_mm`` of the centre on every axis, and its corner.

    Pixels outside it lie outside the cube whatever their depth between the cube's faces, so leaving them out changes no
    voxel. A cube that touches the camera plane keeps the whole image.
    """
    near, far = center_mm[2] - reach_mm, center_mm[2] + reach_mm
    if near <= 1.0:
        return depth_mm, crop_xy
    height, width = depth_mm.shape
    box = []
    for axis, corner, size in ((0, crop_xy[0], width), (1, crop_xy[1], height)):
        f, c = K[axis, axis], K[axis, 2]
        low, high = center_mm[axis] - reach_mm, center_mm[axis] + reach_mm
        start = min(low / near, low / far) * f + c - corner - 2  # two pixels of slack for the numbering conventions
        stop = max(high / near, high / far) * f + c - corner + 3
        box.append((int(np.clip(np.floor(start), 0, size)), int(np.clip(np.ceil(stop), 0, size))))
    (left, right), (top, bottom) = box
    return np.ascontiguousarray(depth_mm[top:bottom, left:right]), (crop_xy[0] + left, crop_xy[1] + top)


class VoxelSamples:
    """Frames as samples. ``samples[(epoch, index)]`` is augmented by (seed, epoch, index), ``samples[index]`` is not.

    Args:
        frames: with ``center_mm``, or with joints where ``gt_centers``.
        spec: the data set's constants.
        cube_mm: edge of the cube; 0 takes the spec's.
        grid: edge of the grid, fine voxels.
        convention: pixel and voxel conventions.
        augment: ranges, or None for none at all.
        seed: of the run.
        gt_centers: use the mean of the labelled joints as the centre.
    """

    def __init__(
        self,
        frames: FrameDataset,
        spec: DataSpec,
        *,
        grid: int,
        convention: Convention,
        cube_mm: float = 0.0,
        augment: AugmentOptions | None = None,
        seed: int = 0,
        gt_centers: bool = False,
    ) -> None:
        self.frames, self.spec, self.convention, self.augment, self.seed = frames, spec, convention, augment, seed
        self.cube_mm = cube_mm or spec.cube_mm
        self.margin = margin_of(grid)
        self.gt_centers = gt_centers
        moved = 1.0 + 2.0 * self.margin / grid  # half a cube, the shift and the outer grid together
        smallest = 1.0 if augment is None else min(augment.scale_min / 100, 100 / augment.scale_max)
        self.reach_mm = self.cube_mm / 2 * moved * (1.0 if augment is None else np.sqrt(2) / smallest) + 1.0

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        frame = self.frames[index]
        if frame.depth_mm is None:
            raise DataError(f"frame {frame.name} has no depth image")
        center = self.center_of(frame)
        depth, (left, top) = crop_to_cube(frame.depth_mm, frame.crop_xy, frame.K, center, float(self.reach_mm))
        scale, angle, shift = 1.0, 0.0, np.full(3, float(self.margin))
        if epoch is not None and self.augment is not None:
            scale, angle, shift = self.draw(sample_rng(self.seed, epoch, index))
        h, w = depth.shape
        sample = {
            "name": frame.name,
            "index": index,
            "depth": depth.reshape(-1),
            "boxes_ltrb": np.array([left, top, left + w, top + h], np.int64),
            "image_wh": np.array(frame.image_size, np.int64),
            "camera": np.array([frame.K[0, 0], frame.K[1, 1], frame.K[0, 2], frame.K[1, 2]]),
            "ref_mm": self.to_world(center),
            "scale": scale,
            "angle_rad": angle,
            "shift": shift,
        }
        if frame.joints_mm is not None:
            sample["joints_mm"] = self.to_world(frame.joints_mm)
        return sample

    def to_world(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """OpenCV axes to the grid's world and back."""
        return flip_y(points_mm) if self.spec.y_up else points_mm

    def center_of(self, frame: Frame) -> NDArray[np.float64]:
        """(3,) reference point in OpenCV axes, mm."""
        if self.gt_centers and frame.joints_mm is not None:
            return np.asarray(frame.joints_mm.mean(axis=0))
        if frame.center_mm is None:
            raise DataError(
                f"frame {frame.name} has no reference point",
                remedy="put the centre files beside the data (--data.centers DIR), make them with "
                "python -m v2v_posenet.make_centers, or use --data.centers gt",
            )
        return frame.center_mm

    def draw(self, rng: np.random.Generator) -> tuple[float, float, NDArray[np.float64]]:
        """Scale, angle in radians and shift in fine voxels, drawn in the originals' order (size, angle, shift)."""
        assert self.augment is not None
        size = rng.uniform(self.augment.scale_min, self.augment.scale_max)
        angle = np.deg2rad(rng.uniform(-self.augment.rotate_deg, self.augment.rotate_deg))
        spread = self.augment.shift
        if self.convention.name == "author":  # whole voxels, -margin to margin
            size = float(np.floor(size))
            shift = self.margin + np.round(spread * rng.integers(-self.margin, self.margin + 1, 3))
        else:
            shift = self.margin * (1 - spread) + rng.uniform(0.0, 2.0 * self.margin * spread, 3)
        scale = 100.0 / size if self.convention.invert_scale else size / 100.0
        return scale, float(angle), shift.astype(np.float64)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """A batch: the crops packed one after another, everything else stacked."""
        batch: Batch = {"name": [s["name"] for s in samples], "index": torch.tensor([s["index"] for s in samples])}
        batch["depth"] = torch.from_numpy(np.concatenate([s["depth"] for s in samples]))
        keys = ["boxes_ltrb", "image_wh", "camera", "ref_mm", "scale", "angle_rad", "shift"]
        if all("joints_mm" in s for s in samples):
            keys.append("joints_mm")
        for key in keys:
            batch[key] = torch.from_numpy(np.stack([np.asarray(s[key]) for s in samples]))
        count = len(samples)
        batch["cube_mm"] = torch.full((count,), self.cube_mm, dtype=torch.float64)
        batch["max_depth_mm"] = torch.full((count,), self.spec.background_mm, dtype=torch.float64)
        batch["y_up"] = torch.full((count,), self.spec.y_up)
        return batch


def grids(batch: Batch, convention: Convention, grid: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 1, grid, grid, grid) occupancy of a batch."""
    return ops.voxelize(
        batch["depth"],
        batch["boxes_ltrb"],
        batch["image_wh"],
        batch["camera"],
        batch["ref_mm"],
        batch["cube_mm"],
        batch["scale"],
        batch["angle_rad"],
        batch["shift"],
        batch["max_depth_mm"],
        batch["y_up"],
        pixel_origin=convention.pixel_origin,
        rounding=convention.rounding,
        author=convention.name == "author",
        grid=grid,
        margin=margin_of(grid),
        dtype=dtype,
    )


def target_cells(batch: Batch, convention: Convention, grid: int) -> Tensor:
    """(B, J, 3) float64 joints in cells of two fine voxels, not clipped."""
    fine = ops.joint_coordinates(
        batch["joints_mm"],
        batch["ref_mm"],
        batch["cube_mm"],
        batch["scale"],
        batch["angle_rad"],
        batch["shift"],
        author=convention.name == "author",
        grid=grid,
        margin=margin_of(grid),
    )
    return fine / 2.0
