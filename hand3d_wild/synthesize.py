"""The synthetic pretraining set: random hands before backgrounds, with masks and the 22 numbers.

    python -m hand3d_wild.synthesize --out data/wild_synthetic --mano standin

Distributions, camera and pictures are the original's (``create_synthetic_data`` of boukhayma/3dhand), without its
contrast stretch, OpenDR's outline and the training code's debugging rotation (README, ledger). Picture i follows from
(seed, i) alone: the files are the same for any number of processes, and an interrupted run goes on with ``--resume``.

    OUT/manifest.json            options, hand model, whether the set is complete
    OUT/<split>/images/%06d.png  320 x 320, RGB
    OUT/<split>/masks/%06d.png   0 or 255
    OUT/<split>/numbers.npz      index (N,); params (N, 22), in pixels of the 320-pixel picture, metres and rad;
                                 joints_2d (N, 21, 2) pixels, joints_m (N, 21, 3), both in the order "wild"

Heat maps are not stored: :mod:`hand3d_wild.synth_data` makes them from the joints.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hand3d_wild.synthesize_config import SynthesizeConfig
from shared.errors import DataError, MissingFileError, exit_on_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hand3d_wild.decoder import Decoder
    from shared.mano import ManoModel

SIZE = 320
EXTENT = (2.0, 2.4)
"""The picture's edge over the hand's larger extent: the hand covers 42 to 50 % of the edge."""
FACING = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
"""Rotation that shows the palm with the fingers up; the decoder's hand lies with its fingers along -x."""
SPLITS = ("train", "test")
KINDS = ("images", "masks")
FORMAT, VERSION = "handpose/hand3d_wild/synthetic", 1
_PART = 50  # pictures that a process takes at a time
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # of every complete PNG


class Draw(NamedTuple):
    """The random numbers of one picture.

    Attributes:
        pose: (6,) PCA coefficients.
        betas: (10,) shape.
        rot: (3,) axis-angle, rad.
        factor: picture's edge over the hand's extent.
        place: (2,) where the hand stands between its leftmost/topmost and rightmost/lowest place, 0..1.
        rng: the generator after them: colours, then background.
    """

    pose: NDArray[np.float64]
    betas: NDArray[np.float64]
    rot: NDArray[np.float64]
    factor: float
    place: NDArray[np.float64]
    rng: np.random.Generator


def draw(
    seed: int,
    index: int,
    *,
    pose_range: float = 2.0,
    shape_range: float = 0.03,
    facing: float = 0.0,
    spread: float = 1.0,
) -> Draw:
    """The random numbers of picture ``index``: the original's distributions.

    Uniform pose and shape; angle uniform in -pi..pi about an axis of three uniform numbers of which one, at random, is
    replaced by 1 before it is normalised. With ``facing``, three uniform angles of up to so many degrees instead, about
    the picture's vertical, horizontal and viewing axis, away from a palm that faces the camera with its fingers up.
    ``spread`` less than 1 keeps the hand that much nearer to the middle.
    """
    import numpy as np

    rng = np.random.default_rng((seed, index))
    betas, pose = shape_range * rng.uniform(-1, 1, 10), pose_range * rng.uniform(-1, 1, 6)
    if facing:
        from scipy.spatial.transform import Rotation

        turn = Rotation.from_euler("yxz", rng.uniform(-facing, facing, 3), degrees=True)
        rot = (turn * Rotation.from_matrix(FACING)).as_rotvec()
    else:
        angle, axis = rng.uniform(-math.pi, math.pi), rng.uniform(-1, 1, 3)
        axis[rng.integers(3)] = 1
        rot = angle * axis / np.linalg.norm(axis)
    factor, place = float(rng.uniform(*EXTENT)), rng.uniform(0, 1, 2)
    return Draw(pose, betas, rot, factor, place if spread == 1 else 0.5 + spread * (place - 0.5), rng)


class Placed(NamedTuple):
    """A hand in the picture: ``params`` (22,), ``verts_uvz`` (778, 3) pixels, pixels, metres, ``joints_2d`` (21, 2)
    pixels, ``joints_m`` (21, 3); order ``"wild"``, all float64."""

    params: NDArray[np.float64]
    verts_uvz: NDArray[np.float64]
    joints_2d: NDArray[np.float64]
    joints_m: NDArray[np.float64]


def place_hand(decoder: Decoder, numbers: Draw, *, size: int = SIZE) -> Placed:
    """The hand of some random numbers, scaled to its share of the picture and wholly inside it.

    Args:
        decoder: in float64.
        numbers: from :func:`draw`.
        size: edge of the picture, pixels.
    """
    import numpy as np
    import torch

    vector = np.concatenate(([1.0, 0.0, 0.0], numbers.rot, numbers.pose, numbers.betas))
    with torch.no_grad():
        hand = decoder(torch.from_numpy(vector)[None])
    verts, joints = hand.verts_m[0].numpy(), hand.joints_m[0].numpy()
    low, high = verts[:, :2].min(0), verts[:, :2].max(0)
    scale = size / (numbers.factor * (high - low).max())
    first, last = -scale * low, size - 1 - scale * high  # the mesh touches 0, or the last pixel
    trans = first + numbers.place * (last - first)
    vector[0], vector[1:3] = scale, trans
    uvz = np.concatenate((trans + scale * verts[:, :2], verts[:, 2:]), 1)
    return Placed(vector, uvz, trans + scale * joints[:, :2], joints.copy())


class Painter:
    """Pictures of one set by index; what it needs is loaded once in each process.

    Args:
        options: of the program.

    Raises:
        MissingFileError, DataError: from the hand model, meshes, scans or backgrounds.
    """

    def __init__(self, options: SynthesizeConfig) -> None:
        import torch

        from hand3d_wild.backgrounds import list_pictures
        from hand3d_wild.colors import load_colors, vertex_normals
        from hand3d_wild.decoder import Decoder
        from shared.mano import load_mano

        self.options = options
        self.mano: ManoModel = load_mano(options.mano)
        self.decoder = Decoder(self.mano, torch.float64)
        self.normals = vertex_normals(self.mano.v_template, self.mano.faces)
        self.colors = load_colors(options.meshes, self.mano, options.scans) if options.meshes else None
        self.backgrounds = list_pictures(options.backgrounds) if options.backgrounds else []

    def numbers(self, index: int) -> tuple[Draw, Placed]:
        """The random numbers and the hand of picture ``index``."""
        options = self.options
        ranges = {name: getattr(options, name) for name in ("pose_range", "shape_range", "facing", "spread")}
        drawn = draw(options.seed, index, **ranges)
        return drawn, place_hand(self.decoder, drawn)

    def paint(self, index: int, drawn: Draw, placed: Placed) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """((320, 320, 3) picture, (320, 320) silhouette)."""
        import numpy as np

        from hand3d_wild.backgrounds import load_background, procedural_background
        from hand3d_wild.colors import procedural_skin
        from hand3d_wild.render import render

        if self.colors is not None:
            colors = self.colors[drawn.rng.integers(len(self.colors))]
        else:
            colors = procedural_skin(self.mano, self.normals, drawn.rng)
        if self.backgrounds:
            picture = load_background(self.backgrounds[index % len(self.backgrounds)], SIZE).copy()
        else:
            picture = procedural_background(drawn.rng, SIZE)
        seen = render(placed.verts_uvz, self.mano.faces, colors, SIZE)
        picture[seen.mask] = np.rint(255 * seen.colors[seen.mask].clip(0, 1)).astype(np.uint8)
        return picture, seen.mask


def paths_of(out: Path, index: int, train: int) -> tuple[Path, Path]:
    """Picture and mask file of ``index``: the first ``train`` are the training split."""
    folder, number = (out / "train", index) if index < train else (out / "test", index - train)
    return folder / "images" / f"{number:06d}.png", folder / "masks" / f"{number:06d}.png"


def make_folders(out: Path) -> None:
    """The folders of a set.

    Raises:
        DataError: they cannot be made.
    """
    from hand3d_wild.store import make_folder

    for split in SPLITS:
        for kind in KINDS:
            make_folder(out / split / kind)


def _complete(path: Path) -> bool:
    """Whether a PNG is there and whole."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def _write_png(path: Path, pixels: Any) -> None:
    """RGB or a mask, through a temporary file, without waiting for the disk: ``--resume`` tells a torn file by its end.

    OpenCV's choices (one filter for all rows): as small as Pillow's, and a third quicker to write and to decode.
    """
    import cv2
    import numpy as np

    ordered = pixels[..., ::-1] if pixels.ndim == 3 else np.where(pixels, 255, 0).astype(np.uint8)
    coded = cv2.imencode(".png", np.ascontiguousarray(ordered))[1]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(coded.tobytes())
    os.replace(temporary, path)


_painter: Painter | None = None


def _start(options: SynthesizeConfig) -> None:
    """In each process: one thread, so that sums come out the same everywhere."""
    global _painter
    import torch

    torch.set_num_threads(1)
    _painter = Painter(options)


def _make(indices: Sequence[int]) -> list[Placed]:
    """Writes what is missing of some pictures and returns their numbers."""
    assert _painter is not None
    options = _painter.options
    made = []
    for index in indices:
        drawn, placed = _painter.numbers(index)
        image, mask = paths_of(Path(options.out), index, options.train)
        if not (_complete(image) and _complete(mask)):
            picture, silhouette = _painter.paint(index, drawn, placed)
            _write_png(mask, silhouette)
            _write_png(image, picture)
        made.append(placed._replace(verts_uvz=placed.verts_uvz[:0]))
    return made


def _parts(options: SynthesizeConfig) -> Iterator[list[Placed]]:
    """The numbers of all pictures in order, as they are made."""
    import torch

    from shared.pool import in_processes

    count = options.train + options.test
    parts = [range(first, min(first + _PART, count)) for first in range(0, count, _PART)]
    workers = min(options.workers, len(parts))
    if workers <= 1:
        threads = torch.get_num_threads()
        try:
            _start(options)
            yield from map(_make, parts)
        finally:
            torch.set_num_threads(threads)
        return
    yield from in_processes(_make, [(part,) for part in parts], workers, start=(_start, options))


def _manifest(options: SynthesizeConfig, mano: ManoModel) -> dict[str, Any]:
    described = dataclasses.asdict(options)
    for name in ("out", "workers", "resume", "mano", "import_old"):
        del described[name]
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "options": described,
        "mano": {"source": mano.source, "sha256": mano.sha256},
    }


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The manifest of a synthetic set, complete or not.

    Raises:
        MissingFileError: the folder holds none.
        DataError: not readable, or of another program or version.
    """
    path = Path(root) / "manifest.json"
    remedy = "give the folder that python -m hand3d_wild.synthesize wrote"
    if not path.is_file():
        raise MissingFileError("no synthetic set here", path=path, remedy=remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"not a readable manifest ({error})", path=path, remedy=remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DataError(f"not a manifest of {FORMAT} version {VERSION}", path=path, remedy=remedy)
    options, mano = content.get("options"), content.get("mano")
    if not (
        isinstance(options, dict)
        and isinstance(options.get("train"), int)
        and isinstance(mano, dict)
        and isinstance(mano.get("source"), str)
    ):
        raise DataError("its options or its hand model are missing", path=path, remedy=remedy)
    return content


def _check(options: SynthesizeConfig) -> None:
    if not options.out:
        raise DataError("--out names no folder", remedy="give --out FOLDER")
    if not options.mano:
        raise DataError("--mano names no hand model", remedy="give --mano MANO_RIGHT.pkl, or --mano standin")
    if options.import_old and (options.meshes or options.backgrounds or options.resume):
        raise DataError(
            "--import_old renders nothing", remedy="leave out --meshes, --backgrounds and --resume; it is begun again"
        )
    if options.scans and not options.meshes:
        raise DataError("--scans needs the registered meshes", remedy="give their folder as --meshes")
    if options.train < 1 or options.test < 0:
        raise DataError(f"--train must be at least 1 and --test at least 0, got {options.train} and {options.test}")
    if options.workers < 1:
        raise DataError(f"--workers must be at least 1, got {options.workers}")
    if options.seed < 0:
        raise DataError(f"--seed must not be negative, got {options.seed}")
    for name in ("pose_range", "shape_range", "facing"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise DataError(f"--{name} must not be negative, got {value}")
    if not 0 <= options.spread <= 1:
        raise DataError(f"--spread must be 0 to 1, got {options.spread}")


def synthesize(options: SynthesizeConfig, *, progress: bool = False) -> dict[str, int]:
    """Renders a set, or what is missing of it; returns the pictures per split.

    Raises:
        DataError: options that cannot be; a folder that holds another set, or one and no ``resume``; a process that
            was killed.
        MissingFileError: no hand model, meshes, scans or backgrounds where they should be.
    """
    import numpy as np

    from shared.mano import load_mano
    from shared.safe_io import atomic_path, atomic_write_text

    _check(options)
    if options.import_old:
        from hand3d_wild.import_old import import_old

        return import_old(options, progress=progress)
    out = Path(options.out)
    manifest = _manifest(options, load_mano(options.mano))
    path = out / "manifest.json"
    if path.is_file():
        begun = read_manifest(out)
        changed = [k for k, v in manifest["options"].items() if begun.get("options", {}).get(k) != v]
        changed += ["mano"] if begun.get("mano", {}).get("sha256") != manifest["mano"]["sha256"] else []
        if changed:
            raise DataError(
                f"this folder holds a set with other options: {', '.join(changed)}",
                path=out,
                remedy="give another --out, or the same options",
            )
        if not options.resume:
            raise DataError(
                "this folder holds a set already", path=out, remedy="continue it with --resume, or give another --out"
            )
    elif any(file.is_file() for split in SPLITS for kind in KINDS for file in (out / split / kind).glob("*")):
        # whole pictures are kept, and the numbers would be of other hands
        raise DataError(
            "this folder holds pictures of an unknown set (there is no manifest.json)",
            path=out,
            remedy="empty it, or give another --out",
        )
    Painter(options)  # what is wrong with the user's folders is said here and not by a process of the pool
    make_folders(out)
    atomic_write_text(path, json.dumps(manifest, indent=1) + "\n")

    found: list[Placed] = []
    for part in _bar(_parts(options), options.train + options.test, progress):
        found += part
    counts = {"train": options.train, "test": options.test}
    first = 0
    for split, count in counts.items():
        chosen = found[first : first + count]
        arrays = {
            name: np.stack([getattr(one, name) for one in chosen]) if chosen else np.zeros((0, *shape))
            for name, shape in (("params", (22,)), ("joints_2d", (21, 2)), ("joints_m", (21, 3)))
        }
        with atomic_path(out / split / "numbers.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, index=np.arange(first, first + count), **arrays)
        first += count
    atomic_write_text(path, json.dumps(manifest | {"complete": True}, indent=1) + "\n")
    return counts


def _bar(parts: Iterable[list[Placed]], total: int, show: bool) -> Iterator[list[Placed]]:
    import sys

    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    with tqdm(total=total, unit=" pictures", disable=not show, mininterval=20 if quiet else 0.5) as bar:
        for part in parts:
            bar.update(len(part))
            yield part


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    from shared.options import parse

    options = parse(
        SynthesizeConfig,
        prog="python -m hand3d_wild.synthesize",
        description="Renders the synthetic pretraining set: coloured hands before backgrounds, with masks.",
        argv=argv,
    ).options
    counts = synthesize(options, progress=True)
    print(f"{options.out}: {counts['train']} pictures for training, {counts['test']} for testing")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
