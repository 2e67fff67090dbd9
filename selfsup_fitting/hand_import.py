"""Reads the author's hand model once and keeps it as plain arrays; also writes the stand-in hand in other proportions.

    python -m selfsup_fitting.hand_import --input preprocessed_hand.pkl --output hand.npz
    python -m selfsup_fitting.hand_import --lengths 1.05 1 1 1 0.9 1 --thickness 0.95 --output other.npz

Nothing in the pickle is executed (:mod:`shared.safe_io`). The mesh descends from a third party's hand model: do not
pass it on under handpose's licence.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup_fitting.prior_config import HandImportConfig
from selfsup_fitting.spheres import BONES, SPHERE_BONES
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    from selfsup_fitting.hand import Hand

_REMEDY = "give mesh/model/preprocessed_hand.pkl of the original program, or an .npz made from it"


def read_pickle(path: str | Path) -> Hand:
    """The hand of ``preprocessed_hand.pkl``, its 10144 stored vertices merged to the distinct ones.

    Vertices are one where position and skin weights agree exactly; triangles that lose a corner by it are dropped.

    Raises:
        MissingFileError: there is no such file.
        DataError: not a pickle of plain data (a foreign global is refused and named), not the preprocessed hand (the
            raw exports with 21 bones are told apart), arrays that do not fit.
    """
    import numpy as np

    from selfsup_fitting.hand import Hand, check_hand
    from shared.safe_io import load_restricted_pickle

    path = Path(path)

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise DataError(f"this is no preprocessed hand: {message}", path=path, remedy=_REMEDY)

    def numbers(value: Any, what: str, shape: tuple[int | None, ...]) -> Any:
        array = np.asarray(value) if isinstance(value, np.ndarray | list | tuple) else np.empty((), object)
        fits = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        need(array.dtype.kind in "iuf" and fits, f"{what} must be numbers of shape {shape}, got {_kind(value)}")
        return array

    try:
        data: Any = load_restricted_pickle(path)
    except MissingFileError:
        raise MissingFileError("expected a hand model, found no such file", path=path, remedy=_REMEDY) from None
    except DataError as error:
        raise DataError(f"this is no hand model: {error}") from error
    need(isinstance(data, dict) and {"vertices", "faces", "bones"} <= set(data), "expected vertices, faces and bones")
    bones = data["bones"]
    need(isinstance(bones, list) and all(isinstance(b, dict) for b in bones), "bones must be a list of dictionaries")
    need(len(bones) != 21, "this is a raw export with 21 bones")
    names = [str(bone.get("name")) for bone in bones]
    need(names == list(BONES), f"expected the bones {', '.join(BONES)}; got {', '.join(names)[:300]}")

    stored = numbers(data["vertices"], "vertices", (None, 4))
    faces = numbers(data["faces"], "faces", (None, 3))
    need(faces.size > 0 and faces.min() >= 0 and faces.max() < len(stored), "faces name vertices that do not exist")
    weights = np.zeros((len(stored), len(BONES)))
    offsets, spheres = np.zeros((len(BONES), 4, 4)), []
    for index, bone in enumerate(bones):
        offsets[index] = numbers(bone.get("offset_matrix"), f"offset_matrix of {BONES[index]}", (4, 4))
        vertex = numbers(bone.get("weight_vertexid"), f"weight_vertexid of {BONES[index]}", (None,))
        coefficient = numbers(bone.get("weight_coeff"), f"weight_coeff of {BONES[index]}", (len(vertex),))
        inside = vertex.dtype.kind in "iu" and (not len(vertex) or 0 <= vertex.min() <= vertex.max() < len(stored))
        need(bool(inside), f"weight_vertexid of {BONES[index]} names vertices that do not exist")
        np.add.at(weights[:, index], vertex, coefficient)
        keypoints = bone.get("keypoint", [])
        need(isinstance(keypoints, list), f"keypoint of {BONES[index]} must be a list")
        for point in keypoints:
            need(isinstance(point, tuple | list) and len(point) == 2, "a keypoint must be (position, radius)")
            radius = numbers([point[1]], "the radius of a keypoint", (1,))[0]
            spheres.append((index, *numbers(point[0], "the position of a keypoint", (3,)), radius))
    need(len(spheres) == len(SPHERE_BONES), f"expected {len(SPHERE_BONES)} spheres, got {len(spheres)}")

    rows = np.concatenate((stored[:, :3], weights.round(6)), 1)
    _, first, merged = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))  # distinct vertices keep the order of their first appearance
    faces = order[merged.ravel()][faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    keep = np.sort(first)
    values = np.array(spheres, np.float64)
    return check_hand(
        Hand(
            path.name,
            offsets,
            np.asarray(stored[keep, :3], np.float64),
            faces.astype(np.int64),
            weights[keep],
            values[:, 0].astype(np.int64),
            values[:, 1:4],
            values[:, 4],
        ),
        path,
    )


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if hasattr(value, "dtype") else type(value).__name__


def import_hand(config: HandImportConfig) -> list[str]:
    """Reads or makes a hand, writes it if asked to, and returns the lines that say what it is.

    Raises:
        DataError: an input that is no hand, proportions for a hand that has its own, an output that is not ``.npz``.
    """
    import numpy as np

    from selfsup_fitting.hand import load_hand, save_hand
    from selfsup_fitting.standin_hand import standin_hand

    if config.output and Path(config.output).suffix != ".npz":
        raise DataError("the file to write must end in .npz", path=config.output, remedy="--output hand.npz")
    if config.input == "standin":
        hand = standin_hand(lengths=config.lengths, thickness=config.thickness, side=config.side)
    elif config.lengths != [1.0] or config.thickness != 1.0 or config.side != "right":
        raise DataError("--lengths, --thickness and --side are for the stand-in hand", remedy="leave --input out")
    else:
        hand = load_hand(config.input)
    size = " x ".join(f"{v:.0f}" for v in np.ptp(hand.verts_mm, axis=0))
    lines = [
        f"{hand.name}",
        f"  mesh     {len(hand.verts_mm)} vertices, {len(hand.faces)} triangles, {size} mm at rest with forearm",
        f"  spheres  {len(hand.sphere_mm)}, radii {hand.sphere_radius_mm.min():.1f} to "
        f"{hand.sphere_radius_mm.max():.1f} mm",
    ]
    if config.output:
        save_hand(hand, config.output)
        lines.append(f"  written  {config.output}")
    return lines


def main(argv: list[str] | None = None) -> int:
    config = parse(
        HandImportConfig,
        prog="python -m selfsup_fitting.hand_import",
        description="Check a hand model and save it as plain arrays; or write the stand-in hand.",
        argv=argv,
    ).options
    for line in import_hand(config):
        print(line)
    return 0


if __name__ == "__main__":
    exit_on_error(main)
