"""Joints from depth images, one at a time and without labels.

    python -m sohandnet.predict depth.png --checkpoint joint/checkpoints/last.pt --dataset icvl --out predictions
    python -m sohandnet.predict images/ --checkpoint last.pt --intrinsics camera.json --center=0,0,400

An image is a 16-bit PNG or a ``.npy`` array; a folder stands for all of these in it, in natural order. Each gives
``NAME.json`` and a picture ``NAME_joints.png``; all together ``predictions_xyz.txt`` (mm) and ``predictions_uvd.txt``
(pixels and mm). An image that cannot be used is reported and skipped; the exit status is then 1. Everything is in
OpenCV camera axes (x right, y down, z forward) and mm; pixels count from 0.

The hand is a cube around ``--center``, or around the nearest object of the image or of ``--bbox``. The network was
trained on the box of the labelled joints + 20 mm, if the store says so: ``--passes 2`` crops again to the box of the
first prediction, which is the nearest thing to that without labels.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import camera
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.inputs import (
    parse_bbox,
    parse_numbers,
    read_intrinsics,
    refuse_overwriting,
    refuse_same_results,
    unfold,
)
from shared.options import parse
from shared.precision import choose_device
from sohandnet import orient
from sohandnet.orient import MIN_POINTS

Array = NDArray[np.float64]
Network = Any  # sohandnet.model.SoHandNet; naming it here would load torch for --help (see shared.options)
SUFFIXES = (".png", ".npy")
SKELETON, JOINTS = "icvl", 16


@dataclass
class Predict:
    """Options of the program.

    Args:
        images: depth images or folders of them
        checkpoint: network with encoder and estimator
        out: folder for the results
        dataset: take the intrinsics of this data set
        intrinsics: JSON file with fx, fy, u0, v0, or with a 3x3 matrix K
        fx: focal length in columns [pixels]
        fy: focal length in rows [pixels]
        u0: column of the principal point, counted from 0 [pixels]
        v0: row of the principal point, counted from 0 [pixels]
        center: x,y,z of the hand in camera axes, y down [mm]
        bbox: left,top,right,bottom around the hand, right and bottom excluded [pixels]
        cube: edge of the cube around the hand [mm]
        passes: how often to predict; later passes crop to the box of the joints before + 20 mm
        depth_scale: millimetres per unit of the image [mm]
        seed: of the random points
        overlay: draw the joints into a picture
        cloud: also draw the oriented points with the joints (NAME_cloud.png)
        device: cpu, cuda, or auto (cuda where there is one)
    """

    images: list[str] = field(default_factory=list)
    checkpoint: str = ""
    out: str = "predictions"
    dataset: Literal["icvl"] | None = None
    intrinsics: str | None = None
    fx: float | None = None
    fy: float | None = None
    u0: float | None = None
    v0: float | None = None
    center: str | None = None
    bbox: str | None = None
    cube: float = 200.0
    passes: int = 1
    depth_scale: float = 1.0
    seed: int = 0
    overlay: bool = True
    cloud: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Prediction(NamedTuple):
    """What one image gives.

    Attributes:
        joints_mm: (J, 3) camera frame.
        uvd: (J, 3) pixels and mm.
        center_mm: (3,) of the cube.
        cloud: (6, N) oriented points and normals the network saw.
        joints: (J, 3) normalised, in the axes of ``cloud``.
        crop_points: points of the crop before sampling.
    """

    joints_mm: Array
    uvd: Array
    center_mm: Array
    cloud: NDArray[np.float32]
    joints: Array
    crop_points: int


class Input(NamedTuple):
    """What a network was trained on: intrinsics mode of the clouds, points, SOM nodes and neighbours of each node."""

    intrinsics: orient.Intrinsics = "true"
    points: int = orient.POINTS
    nodes: int = 64
    neighbours: int = 9


def load_network(path: str | Path, device: str = "cpu") -> tuple[Network, Input]:
    """A network ready for :func:`predict_depth`, and what it expects.

    Raises:
        MissingFileError, DataError: see :func:`sohandnet.convert.load_checkpoint`; no encoder or estimator in it.
    """
    from sohandnet.convert import load_checkpoint
    from sohandnet.model import folded

    checkpoint = load_checkpoint(path)
    checkpoint.need("encoder", "estimator", path=path)
    if checkpoint.model.get("joints", JOINTS) != JOINTS:
        raise DataError(f"has {checkpoint.model['joints']} joints, this program draws {JOINTS} (ICVL)", path=path)
    store = checkpoint.extra.get("store", {})  # a converted checkpoint has none: the published sizes
    try:
        sizes = {key: int(store[key]) for key in ("points", "nodes", "neighbours") if key in store}
        if min(sizes.values(), default=1) < 1:
            raise ValueError(f"sizes of at least 1, not {sizes}")
    except (ValueError, TypeError) as error:
        raise DataError(f"remembers a store that cannot be ({error})", path=path) from None
    mode: Any = checkpoint.intrinsics
    return folded(checkpoint.build()).to(device), Input(mode, **sizes)


def predict_depth(
    network: Network,
    depth_mm: ArrayLike,
    K: ArrayLike,
    *,
    expected: Input = Input(),  # noqa: B008 -- an immutable tuple
    center_mm: ArrayLike | None = None,
    bbox: tuple[int, int, int, int] | None = None,
    cube_mm: float = 200.0,
    passes: int = 1,
    rng: np.random.Generator | None = None,
) -> Prediction:
    """The 16 joints of the hand in one depth image.

    Args:
        network: of :func:`load_network`, or any module from a batch to normalised joints (B, J, 3).
        depth_mm: (H, W) mm along z, 0 where nothing was measured.
        K: (3, 3) pinhole matrix of the image, pixels from 0.
        expected: what the network was trained on.
        center_mm: (3,) camera point in the hand; without it the nearest large object is taken.
        bbox: left, top, right, bottom: look for that object in this part only (the last two excluded).
        cube_mm: edge of the cube around it.
        passes: later ones crop to the box of the joints before + 20 mm.
        rng: of the random points; a fixed one by default.

    Raises:
        DataError: the depth map's shape, no hand in it, a crop of fewer than ``MIN_POINTS`` points, or a
            network that does not give numbers.
    """
    import torch

    from sohandnet.kernels import ops
    from sohandnet.som import train_som

    depth = np.asarray(depth_mm, np.float32)
    if depth.ndim != 2:
        raise DataError(f"expected a depth map (H, W), got shape {depth.shape}")
    space = orient.make_space(expected.intrinsics, K)
    center = np.asarray(_find(depth, K, bbox, cube_mm) if center_mm is None else center_mm, np.float64)
    if center.shape != (3,) or not np.isfinite(center).all() or not center[2] > 0:
        raise DataError(f"expected a centre (3,) in front of the camera, got {center.tolist()} mm")
    rng = np.random.default_rng(0) if rng is None else rng
    corners = orient.cube_box(center, cube_mm, space)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for _ in range(passes):
        points = orient.crop_points(depth, space, *corners)
        if len(points) < MIN_POINTS:
            text = ", ".join(f"{value:.0f}" for value in center)
            raise DataError(
                f"the crop around ({text}) mm has {len(points)} points, at least {MIN_POINTS} are needed",
                remedy="check the centre, the intrinsics and the scale of the depth",
            )
        cloud, box = orient.oriented_cloud(points, rng, expected.points)
        pc, sn = (torch.from_numpy(part[None].copy()) for part in (cloud[:3], cloud[3:]))
        node = train_som(pc, expected.nodes)
        batch = {"pc": pc, "sn": sn, "node": node, "node_knn": ops.node_knn(node, expected.neighbours)}
        with torch.inference_mode():
            found = network({key: value.to(device) for key, value in batch.items()})
        joints = found[0].detach().double().cpu().numpy()
        if not np.isfinite(joints).all():
            raise DataError("the network predicts numbers that are not finite", remedy="take another checkpoint")
        in_space = orient.denormalise(joints, box)
        corners = orient.joint_box(in_space)
    joints_mm = space.to_camera(in_space)
    return Prediction(joints_mm, _project(joints_mm, K), center, cloud, joints, len(points))


def _find(depth: NDArray[np.float32], K: ArrayLike, bbox: tuple[int, int, int, int] | None, cube_mm: float) -> Array:
    part = depth
    if bbox is not None:
        left, top, right, bottom = np.clip(bbox, 0, [*depth.shape[::-1]] * 2)
        part = np.zeros_like(depth)
        part[top:bottom, left:right] = depth[top:bottom, left:right]
    center = orient.find_hand(part, K, cube_mm=cube_mm)
    if center is None:
        where = "the image" if bbox is None else f"the box {tuple(map(int, bbox))}"
        raise DataError(
            f"no hand found: {where} has no region of more than {orient.MIN_REGION} pixels between "
            f"{orient.NEAR_MM:g} and {orient.FAR_MM:g} mm",
            remedy="check --depth_scale, or give --center or --bbox",
        )
    return center


def _project(joints_mm: Array, K: ArrayLike) -> Array:
    """(J, 3) u, v, d; NaN pixels for a joint that is not in front of the camera."""
    front = joints_mm[:, 2:] > 0
    pixels = camera.project(np.where(front, joints_mm, [0.0, 0.0, 1.0]), K)
    return np.concatenate([np.where(front, pixels, np.nan), joints_mm[:, 2:]], 1)


# ---------------------------------------------------------------------------------------------------- the program


def list_images(inputs: Sequence[str]) -> list[tuple[Path, str]]:
    """(file, name of its results) of all images; folders unfolded in natural order.

    Raises:
        MissingFileError, DataError: no image, a path that is not there, a folder without images, one name twice.
    """
    found: list[tuple[Path, str]] = []
    for word in inputs:
        path = Path(word)
        if path.is_dir():
            inside = unfold(path, SUFFIXES, lambda file: not file.stem.endswith(_DRAWN))
            if not inside:
                raise DataError(f"the folder holds no {' or '.join(SUFFIXES)} file", path=path)
            found += inside
        elif path.is_file():
            found.append((path, path.stem))
        else:
            raise MissingFileError("no such image or folder", path=path, remedy="check the path")
    if not found:
        raise DataError("no image is given", remedy=f"give depth images ({', '.join(SUFFIXES)}) or folders of them")
    refuse_same_results(found)
    return found


_DRAWN = ("_joints", "_cloud")  # our own pictures, in case the results lie beside the images


def read_depth(path: Path, depth_scale: float = 1.0) -> NDArray[np.float32]:
    """(H, W) mm of a 16-bit PNG or a ``.npy`` array; 0 where nothing was measured (0, NaN, 32001 and above).

    Raises:
        DataError: another format, damaged or truncated, negative depths, nothing measured at all.
    """
    from shared.datasets.icvl import NO_READING
    from shared.datasets.images import read_png16
    from shared.safe_io import load_npy

    if path.suffix.lower() == ".png":
        values: NDArray[Any] = read_png16(path)
        values = np.where(values >= NO_READING, 0, values)
    elif path.suffix.lower() == ".npy":
        values = load_npy(path)
    else:
        raise DataError(f"the suffix {path.suffix!r} is none of {', '.join(SUFFIXES)}", path=path)
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise DataError(f"expected numbers (height, width), found {values.dtype} {values.shape}", path=path)
    depth = np.nan_to_num(values.astype(np.float32) * np.float32(depth_scale), nan=0.0, posinf=0.0, neginf=-1.0)
    if depth.size and depth.min() < 0:
        raise DataError("negative depth", path=path, remedy="depth is positive, 0 where nothing was measured")
    if not (depth > 0).any():
        raise DataError("nothing was measured in the image (every depth is 0)", path=path)
    return np.asarray(depth, np.float32)


def camera_matrix(options: Predict) -> Array:
    """(3, 3) intrinsics from exactly one of the three sources.

    Raises:
        MissingFileError, DataError: no source or several, numbers missing or not positive, a malformed file.
    """
    numbers = {name: getattr(options, name) for name in ("fx", "fy", "u0", "v0")}
    given = [name for name, value in numbers.items() if value is not None]
    sources = [name for name in ("dataset", "intrinsics") if getattr(options, name) is not None]
    sources += ["fx, fy, u0, v0"] if given else []
    how = "give --fx --fy --u0 --v0, --intrinsics FILE, or --dataset icvl"
    if len(sources) != 1:
        what = f"given twice: {' and '.join(sources)}" if sources else "not given"
        raise DataError(f"the camera's intrinsics are {what}", remedy=how)
    if options.dataset is not None:
        return orient.ICVL_K
    if options.intrinsics is not None:
        return read_intrinsics(Path(options.intrinsics))
    missing = [f"--{name}" for name in numbers if name not in given]
    if missing:
        raise DataError(f"the camera needs {' '.join(missing)} too", remedy=how)
    return camera.intrinsics(**numbers)


def predict(options: Predict, progress: bool = True) -> list[str]:
    """Runs the program; returns what was skipped, a line for each image.

    Raises:
        DataError: options that cannot be used. Images that cannot be used do not raise.
    """
    from tqdm import tqdm

    from shared.predictions import write_predictions
    from shared.safe_io import atomic_write_text
    from sohandnet.prepare import frame_rng
    from sohandnet.store import check_folder

    images = list_images(options.images)
    K = camera_matrix(options)
    if not options.checkpoint:
        raise DataError("no checkpoint is given", remedy="give --checkpoint FILE")
    check_folder(options.out, "out")
    drawn = [f"{kind}.png" for kind, on in zip(_DRAWN, (options.overlay, options.cloud), strict=True) if on]
    refuse_overwriting(Path(options.out), images, (".json", *drawn), [options.intrinsics or "", options.checkpoint])
    for name, low in (("cube", 0.0), ("depth_scale", 0.0), ("passes", 0), ("seed", -1)):
        if not low < getattr(options, name) < 1e5:
            raise DataError(f"--{name} must be above {low:g}, got {getattr(options, name)}")
    where = _where(options)
    network, expected = load_network(options.checkpoint, choose_device(options.device))
    out, skipped, rows = Path(options.out), [], []
    for path, name in tqdm(images, desc="images", disable=not progress or len(images) == 1):
        try:
            depth = read_depth(path, options.depth_scale)
            if options.dataset is not None and depth.shape != (240, 320):
                size = f"{depth.shape[1]}x{depth.shape[0]}"
                raise DataError(
                    f"has {size} pixels, the camera of ICVL 320x240", path=path, remedy="give its own camera"
                )
            found = predict_depth(
                *(network, depth, K),
                expected=expected,
                cube_mm=options.cube,
                passes=options.passes,
                rng=frame_rng(options.seed, name),
                **where,
            )
        except DataError as error:
            skipped.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        rows.append((name, found))
        content = json.dumps(result_of(path, found, K, options), indent=1)
        atomic_write_text(out / f"{name}.json", content + "\n")
        if options.overlay:
            save_overlay(out / f"{name}_joints.png", depth, found)
        if options.cloud:
            save_cloud(out / f"{name}_cloud.png", found)
    if rows:
        names = [re.sub(r"\s", "_", name) for name, _ in rows]
        write_predictions(out / "predictions_xyz.txt", np.stack([found.joints_mm for _, found in rows]), names=names)
        uvd = np.nan_to_num(np.stack([found.uvd for _, found in rows]), nan=-1.0)
        write_predictions(out / "predictions_uvd.txt", uvd, names=names)
    return skipped


def _where(options: Predict) -> dict[str, Any]:
    """The arguments of :func:`predict_depth` that say where the hand is."""
    if options.center is not None and options.bbox is not None:
        raise DataError("the hand's place is given by --center and --bbox", remedy="give one of them")
    if options.center is not None:
        return {"center_mm": parse_numbers("center", options.center, "x y z")}
    return {} if options.bbox is None else {"bbox": parse_bbox(options.bbox)}


def result_of(path: Path, found: Prediction, K: Array, options: Predict) -> dict[str, Any]:
    """The content of one JSON file."""
    from shared import skeletons

    def rounded(values: Array) -> list[Any]:
        return [[None if v != v else round(float(v), 3) for v in row] for row in np.atleast_2d(values)]

    source = "given" if options.center is not None else "bbox" if options.bbox is not None else "nearest object"
    return {
        "image": str(path),
        "frame": "OpenCV camera axes (x right, y down, z forward), mm; pixels from 0",
        "skeleton": SKELETON,
        "joint_names": list(skeletons.get(SKELETON).joints),
        "joints_mm": rounded(found.joints_mm),
        "joints_uv": rounded(found.uvd[:, :2]),
        "center_mm": rounded(found.center_mm)[0],
        "center_from": source,
        "cube_mm": options.cube,
        "passes": options.passes,
        "crop_points": found.crop_points,
        "intrinsics": {"fx": K[0, 0], "fy": K[1, 1], "u0": K[0, 2], "v0": K[1, 2]},
        "checkpoint": options.checkpoint,
    }


def save_overlay(path: Path, depth_mm: NDArray[np.float32], found: Prediction) -> None:
    """The depth map with the joints on it; small images twice as large."""
    from shared import draw

    picture = draw.depth_to_rgb(depth_mm, center_mm=float(found.center_mm[2]), cube_mm=300.0)
    scale = 2 if depth_mm.shape[1] < 640 else 1
    draw.save(path, draw.draw_skeleton(picture, found.uvd[:, :2], SKELETON, scale=scale))


def save_cloud(path: Path, found: Prediction) -> None:
    """The oriented points, seen along the third axis and along the second, with the joints on them, as a PNG.

    Box lengths; the first axis points right, colours show the remaining axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from shared import skeletons
    from shared.safe_io import atomic_path

    bones = skeletons.get(SKELETON)
    figure: Any = Figure(figsize=(9, 4.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, (across, depth) in enumerate(((1, 2), (2, 1)), 1):
        axes = figure.add_subplot(1, 2, place)
        axes.scatter(found.cloud[0], found.cloud[across], c=found.cloud[depth], s=4, cmap="Greys")
        for parent, child in bones.edges:
            ends = [parent, child]
            colour = tuple(c / 255 for c in bones.colors[child])
            axes.plot(found.joints[ends, 0], found.joints[ends, across], color=colour, linewidth=2, marker="o", ms=3)
        axes.set_aspect("equal")
        axes.set(xlabel="axis 1 (box lengths)", ylabel=f"axis {across + 1}")
    with atomic_path(path) as temporary:
        canvas.print_png(str(temporary))


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status: 1 when an image was skipped."""
    parsed = parse(
        Predict,
        prog="python -m sohandnet.predict",
        description="Finds the joints of the hand in depth images (16-bit PNG, .npy, or folders of them).",
        argv=argv,
        positional="images",
        positional_help="depth images or folders of them",
    )
    skipped = predict(parsed.options)
    print(f"results in {parsed.options.out}")
    if skipped:
        print(f"{len(skipped)} skipped:", *(f"  {text}" for text in skipped), sep="\n", file=sys.stderr)
    return 1 if skipped else 0


if __name__ == "__main__":
    exit_on_error(main)
