"""The hand that is posed and rendered: mesh, 17 bones, 41 spheres, and its file.

Model space: millimetres, camera space (x right, y down, z forward) with x negated; at rest the camera sees the back of
a right hand whose fingers point to the right. The origin is the centre that crops are taken around.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from selfsup_fitting.spheres import (
    BONE_PAIRS,
    BONES,
    MEAN_SCALE,
    NUM_SPHERES,
    PARENTS,
    REFERENCE_LENGTHS_MM,
    SPHERE_BONES,
)
from shared.errors import DataError
from shared.safe_io import MIB, atomic_path, load_npz

Array = NDArray[np.float64]
Index = NDArray[np.int64]

VERSION = 1  # of the file
_REMEDY = "make one with python -m selfsup_fitting.hand_import"


@dataclass(frozen=True, eq=False)
class Hand:
    """A rest hand in model space; float64, int64. The order of bones and spheres is that of :mod:`.spheres`.

    Attributes:
        name: where it comes from.
        offsets: (17, 4, 4) rest matrices, model -> bone frame. Local x is the flexion axis; a finger's first bone turns
            sideways about local z (index, middle, thumb) or -y (ring, little).
        verts_mm: (V, 3), all distinct.
        faces: (F, 3); the signed volume is negative in model space (clockwise seen from outside), and positive after
            the mirroring to camera space.
        weights: (V, 17) skinning weights; rows sum to 1.
        sphere_bone: (41,) bone of each sphere.
        sphere_mm: (41, 3) rest centres.
        sphere_radius_mm: (41,).
    """

    name: str
    offsets: Array
    verts_mm: Array
    faces: Index
    weights: Array
    sphere_bone: Index
    sphere_mm: Array
    sphere_radius_mm: Array

    @property
    def bone_names(self) -> tuple[str, ...]:
        return BONES

    @property
    def parents(self) -> tuple[int, ...]:
        return PARENTS

    def bone_lengths_mm(self, preset: Literal["hand", "nyu_reference"] = "hand") -> Array:
        """(35,) reference lengths of the bone-length loss: 0.9 x the rest distances of the pairs, or the original's."""
        if preset == "nyu_reference":
            return np.array(REFERENCE_LENGTHS_MM)
        a, b = self.sphere_mm[np.array(BONE_PAIRS)].swapaxes(0, 1)
        return np.asarray(MEAN_SCALE * np.linalg.norm(a - b, axis=1))


def check_hand(hand: Hand, path: str | Path | None = None) -> Hand:
    """The same hand, if everything about it fits together.

    Raises:
        DataError: a wrong shape, numbers that are not finite, faces outside the mesh, weights that do not sum to 1,
            rest matrices without an inverse, spheres on other bones than everything downstream expects.
    """

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise DataError(f"this hand cannot be used: {message}", path=path, remedy=_REMEDY)

    count = len(hand.verts_mm)
    shapes = {"bone_offset": hand.offsets, "vertices": hand.verts_mm, "faces": hand.faces, "weights": hand.weights}
    shapes |= {"sphere_position": hand.sphere_mm, "sphere_radius": hand.sphere_radius_mm}
    expected: dict[str, tuple[int, ...]] = {"bone_offset": (17, 4, 4), "vertices": (count, 3), "weights": (count, 17)}
    expected |= {"faces": (len(hand.faces), 3), "sphere_position": (NUM_SPHERES, 3), "sphere_radius": (NUM_SPHERES,)}
    for key, array in shapes.items():
        require(array.shape == expected[key], f"{key} has shape {array.shape}, expected {expected[key]}")
        require(bool(np.isfinite(array).all()), f"{key} holds values that are not finite")
    require(count > 0 and len(hand.faces) > 0, "it has no mesh")
    low, high = int(hand.faces.min()), int(hand.faces.max())
    require(low >= 0 and high < count, f"faces name vertices {low} to {high}, there are {count}")
    off = float(np.abs(hand.weights.sum(1) - 1).max())
    require(
        bool((hand.weights > -1e-6).all()) and off < 1e-3, f"weights must be 0 or more and sum to 1, off by {off:g}"
    )
    proper = np.linalg.det(hand.offsets[:, :3, :3]).min() > 1e-3
    proper = proper and np.abs(hand.offsets[:, 3] - [0, 0, 0, 1]).max() < 1e-6
    require(
        bool(proper), "bone_offset must hold matrices model -> bone, last row 0 0 0 1, that turn nothing inside out"
    )
    require(tuple(hand.sphere_bone) == SPHERE_BONES, "its spheres are not on the bones of the 41-sphere hand")
    require(bool((hand.sphere_radius_mm > 0).all()), "sphere_radius must be positive")
    return hand


def save_hand(hand: Hand, path: str | Path) -> None:
    """Writes an ``.npz`` that :func:`load_hand` reads to the same numbers; no pickled objects in it."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            version=np.array(VERSION),
            name=np.array(hand.name),
            bone_names=np.array(BONES),
            bone_parent=np.array(PARENTS),
            bone_offset=hand.offsets,
            sphere_bone=hand.sphere_bone,
            sphere_position=hand.sphere_mm,
            sphere_radius=hand.sphere_radius_mm,
            vertices=hand.verts_mm,
            faces=hand.faces,
            weights=hand.weights,
        )


@lru_cache(1)
def _standin() -> Hand:
    from selfsup_fitting.standin_hand import standin_hand

    return standin_hand()


def load_hand(path: str | Path) -> Hand:
    """The hand of an ``.npz`` file or of the author's ``.pkl``; for the word ``"standin"`` the one that ships here.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is no hand, of another version, or does not pass :func:`check_hand`; see also
            :func:`selfsup_fitting.hand_import.read_pickle`.
    """
    if str(path) == "standin":
        return _standin()
    path = Path(path)
    if path.suffix == ".pkl":
        from selfsup_fitting.hand_import import read_pickle

        return read_pickle(path)
    if path.suffix != ".npz":
        raise DataError('expected "standin", an .npz or the author\'s .pkl', path=path, remedy=_REMEDY)
    arrays: dict[str, Any] = load_npz(path, max_bytes=64 * MIB)
    keys = ("bone_names", "bone_offset", "sphere_bone", "sphere_position", "sphere_radius", "vertices", "faces")
    if missing := [key for key in (*keys, "weights") if key not in arrays]:
        raise DataError(f"this is no hand: missing {', '.join(missing)}", path=path, remedy=_REMEDY)
    version = arrays.get("version", np.array(VERSION))
    if version.shape != () or version != VERSION:
        raise DataError(f"has format version {version}, this program reads {VERSION}", path=path, remedy=_REMEDY)
    if (names := tuple(arrays["bone_names"].ravel().tolist())) != BONES:
        raise DataError(f"has bones {', '.join(map(str, names))[:200]}; expected {', '.join(BONES)}", path=path)
    wrong = [key for key in (*keys[1:], "weights") if arrays[key].dtype.kind not in "iuf"]
    if wrong or arrays["faces"].dtype.kind == "f":
        raise DataError(f"{', '.join(wrong) or 'faces'} must hold numbers (faces whole ones)", path=path)
    real = {key: arrays[key].astype(np.float64) for key in (*keys[1:], "weights")}
    return check_hand(
        Hand(
            str(arrays["name"]) if "name" in arrays else path.name,
            real["bone_offset"],
            real["vertices"],
            arrays["faces"].astype(np.int64),
            real["weights"],
            arrays["sphere_bone"].astype(np.int64),
            real["sphere_position"],
            real["sphere_radius"],
        ),
        path,
    )
