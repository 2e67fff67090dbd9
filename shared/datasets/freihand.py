"""FreiHAND: 224 x 224 colour crops of one right hand with joints, MANO parameters and masks.

Layout (the data set's repository): ``training/rgb/########.jpg`` (four versions of 32,560 samples: version k of sample
i is picture i + 32,560 k; 0 is the green-screen original, 1 to 3 have other backgrounds),
``training/mask/########.jpg``, ``evaluation/rgb/########.jpg``, ``training_{K,xyz,mano,scale,verts}.json``,
``evaluation_{K,scale}.json`` and, since the evaluation annotations are public, ``evaluation_{xyz,mano,verts}.json``.
Metres and OpenCV axes in the files, mm here.

Whole data set:

* ``open(root, split, ...) -> FreiHAND``: a :class:`~shared.datasets.base.FrameDataset`.

Single files:

* ``read_rgb(path)``, ``read_mask(path)``
* ``read_intrinsics(path)``, ``read_xyz(path)``, ``read_verts(path)``, ``read_scale(path)``, ``read_mano(path) -> Mano``

``Frame.extra`` holds (where the files are): ``pose`` (48,) axis-angle for a layer with ``flat_hand_mean=False``,
``betas`` (10,), ``flat_hand_mean`` False, ``root_mm`` (3,) the wrist, ``uv_root`` (2,) and ``mano_scale`` as stored,
``scale_mm``, ``mask`` (224, 224) bool, ``sample`` and ``version``. The layer's translation is ``root_mm`` minus the
wrist of its rest pose.

Not seen on real files: all JSONs but K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import Frame
from shared.datasets.images import read_rgb
from shared.datasets.side_files import Float, file_names, read_json_array
from shared.errors import DataError, MissingFileError

PAGE = "https://lmb.informatik.uni-freiburg.de/projects/freihand/"
SKELETON = "thumb_first"
IMAGE_SIZE = (224, 224)


def read_intrinsics(path: str | Path) -> Float:
    """(N, 3, 3) pinhole matrices, pixels: ``training_K.json`` or ``evaluation_K.json``.

    Raises:
        MissingFileError, DataError: no such file; not a list of 3 x 3 matrices, a focal length that is not positive.
    """
    K: Float = read_json_array(path, (3, 3), page=PAGE)
    bad = np.flatnonzero((K[:, 0, 0] <= 0) | (K[:, 1, 1] <= 0))
    if len(bad):
        raise DataError(f"entry {bad[0]}: expected positive focal lengths, got {K[bad[0]].tolist()}", path=path)
    return K


def read_xyz(path: str | Path) -> Float:
    """(N, 21, 3) joints in mm, OpenCV axes, order "thumb_first": ``training_xyz.json`` or ``evaluation_xyz.json``.

    Raises:
        MissingFileError, DataError: no such file; not a list of 21 x 3 numbers each.
    """
    xyz: Float = read_json_array(path, (21, 3), page=PAGE)
    return xyz * 1000


def read_verts(path: str | Path) -> NDArray[np.float32]:
    """(N, 778, 3) float32 vertices in mm, OpenCV axes: ``training_verts.json`` or ``evaluation_verts.json``.

    Raises:
        MissingFileError, DataError: no such file; not a list of 778 x 3 numbers each.
    """
    verts: NDArray[np.float32] = read_json_array(path, (778, 3), page=PAGE, dtype=np.float32)
    verts *= 1000
    return verts


def read_scale(path: str | Path) -> Float:
    """(N,) length of a reference bone in mm: ``training_scale.json`` or ``evaluation_scale.json``.

    Raises:
        MissingFileError, DataError: no such file; not a list of numbers.
    """
    scale: Float = read_json_array(path, (), page=PAGE)
    return scale * 1000


@dataclass(frozen=True, slots=True)
class Mano:
    """MANO parameters of all samples: ``pose`` (N, 48) axis-angle without the mean, ``betas`` (N, 10), ``uv_root``
    (N, 2) pixels and ``scale`` (N,) as stored."""

    pose: Float
    betas: Float
    uv_root: Float
    scale: Float


def read_mano(path: str | Path) -> Mano:
    """Reads ``training_mano.json``: 61 numbers a sample, or (as released) a list that holds these 61.

    Raises:
        MissingFileError, DataError: no such file; not 61 numbers each.
    """
    try:
        values: Float = read_json_array(path, (1, 61), page=PAGE)[:, 0]
    except MissingFileError:
        raise
    except DataError:
        values = read_json_array(path, (61,), page=PAGE)
    return Mano(values[:, :48], values[:, 48:58], values[:, 58:60], values[:, 60])


def read_mask(path: str | Path, *, expected_size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """(H, W) bool, True on the hand. Masks are JPEGs, whose greys near the edge are decided at one half.

    Raises:
        MissingFileError, DataError: no such file; not a picture, damaged, another size.
    """
    return read_rgb(path, expected_size=expected_size)[..., 0] > 127


def open(
    root: str | Path,
    split: Literal["training", "evaluation"],
    *,
    versions: Sequence[int] = (0,),
    rgb: bool = True,
    mask: bool = False,
    verts: bool = False,
    missing: Literal["skip", "error"] | None = None,
) -> FreiHAND:
    """Opens one split of FreiHAND.

    Args:
        root: folder with ``training/``, ``evaluation/`` and the JSON files.
        split: which.
        versions: which of the four backgrounds of the training samples, (0, 1, 2, 3) for all 130,240 pictures.
        rgb: decode colour.
        mask: decode masks into ``extra["mask"]`` (training only; the samples have one each, whatever the version).
        verts: read the vertices (a large file).
        missing: skip and count pictures that are not on disk (default for training), or stop with an error (default for
            evaluation, whose results must not leave frames out).

    Raises:
        MissingFileError: K or (training) xyz, or pictures, are not there.
        DataError: unknown option; JSON files of different lengths.
    """
    return FreiHAND(Path(root), split, tuple(versions), rgb, mask, verts, missing)


class FreiHAND:
    """One split of FreiHAND by index; see :func:`open`. Pictures are read when they are asked for."""

    skeleton = SKELETON

    def __init__(
        self,
        root: Path,
        split: str,
        versions: tuple[int, ...],
        rgb: bool,
        mask: bool,
        verts: bool,
        missing: str | None,
    ) -> None:
        if split not in ("training", "evaluation"):
            raise DataError(f"FreiHAND has the splits training and evaluation, got {split!r}")
        if not versions or not set(versions) <= set(range(4 if split == "training" else 1)):
            known = "0 to 3" if split == "training" else "only 0"
            raise DataError(f"versions of {split}: expected {known}, got {versions}")
        if missing not in (None, "skip", "error"):
            raise DataError(f"missing must be skip or error, got {missing!r}")
        if mask and split == "evaluation":
            raise DataError("FreiHAND has masks for the training split only")
        self.root, self.split, self.rgb, self.mask = root, split, rgb, mask
        self._K = read_intrinsics(root / f"{split}_K.json")
        count = len(self._K)

        def optional(kind: str, read: Any, required: bool = False) -> Any:
            path = root / f"{split}_{kind}.json"
            if not required and not path.is_file():
                return None
            value = read(path)
            length = len(value.pose) if isinstance(value, Mano) else len(value)
            if length != count:
                raise DataError(
                    f"has {length} entries, {split}_K.json has {count}",
                    path=path,
                    remedy="both files have to be of the same release of FreiHAND",
                )
            return value

        self._xyz = optional("xyz", read_xyz, required=split == "training")
        self._mano: Mano | None = optional("mano", read_mano)
        self._scale = optional("scale", read_scale)
        self._verts = optional("verts", read_verts, required=True) if verts else None
        pictures = file_names(root / split / "rgb")
        masks = file_names(root / split / "mask")
        absent, self._rows = [], []
        for version in versions:
            for sample in range(count):
                picture = f"{sample + version * count:08d}.jpg"
                lacking = [f"rgb/{picture}"] * (rgb and picture not in pictures)
                lacking += [f"mask/{sample:08d}.jpg"] * (mask and f"{sample:08d}.jpg" not in masks)
                if lacking:
                    absent.append(lacking[0])
                else:
                    self._rows.append((sample, version))
        if absent and ((missing or ("skip" if split == "training" else "error")) == "error" or not self._rows):
            raise MissingFileError(
                f"{len(absent)} of {count * len(versions)} pictures are not there, the first is {absent[0]}",
                path=root / split,
                remedy=f"unpack all of FreiHAND (from {PAGE}), or open it with missing='skip'",
            )
        self.missing, self.samples = len(absent), count

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> list[str]:
        """The pictures' numbers, eight digits: sample + version x number of samples."""
        return [f"{sample + version * self.samples:08d}" for sample, version in self._rows]

    def summary(self) -> str:
        """Pictures used and left out, and which annotations there are."""
        have = {"joints": self._xyz, "MANO": self._mano, "scale": self._scale, "vertices": self._verts}
        return (
            f"FreiHAND {self.split}: {len(self)} pictures of {self.samples} samples, {self.missing} missing on disk; "
            + "with "
            + (", ".join(name for name, value in have.items() if value is not None) or "intrinsics only")
        )

    def labels(self, index: int) -> Frame:
        """The frame without its picture and mask."""
        sample, version = self._rows[index]
        extra: dict[str, Any] = {"sample": sample, "version": version}
        joints_mm = None if self._xyz is None else self._xyz[sample]
        if joints_mm is not None:
            extra["root_mm"] = joints_mm[0]
        if self._mano is not None:
            extra |= {
                "pose": self._mano.pose[sample],
                "betas": self._mano.betas[sample],
                "flat_hand_mean": False,
                "uv_root": self._mano.uv_root[sample],
                "mano_scale": float(self._mano.scale[sample]),
            }
        if self._scale is not None:
            extra["scale_mm"] = float(self._scale[sample])
        return Frame(
            name=f"{sample + version * self.samples:08d}",
            image_size=IMAGE_SIZE,
            K=self._K[sample],
            skeleton=SKELETON,
            joints_mm=joints_mm,
            verts_mm=None if self._verts is None else self._verts[sample].astype(np.float64),
            side="right",
            extra=extra,
        )

    def __getitem__(self, index: int) -> Frame:
        frame = self.labels(index)
        folder = self.root / self.split
        extra = dict(frame.extra)
        if self.mask:
            extra["mask"] = read_mask(folder / "mask" / f"{extra['sample']:08d}.jpg", expected_size=IMAGE_SIZE)
        rgb = read_rgb(folder / "rgb" / f"{frame.name}.jpg", expected_size=IMAGE_SIZE) if self.rgb else None
        return replace(frame, rgb=rgb, extra=extra)
