"""Joints from depth images.

    python -m v2v_posenet.predict depth.png --checkpoint model.pt --fx 475.1 --fy 475.1 --u0 315.9 --v0 245.3 --out out
    python -m v2v_posenet.predict P3/1 --checkpoint e8.pt e9.pt --dataset msra --center_checkpoint center_net.pt

An image is a 16-bit PNG, a ``.npy`` array or an MSRA ``.bin`` file; a folder stands for all of these in it, in natural
order. Each gives ``NAME.json`` and a picture ``NAME_joints.png`` in the output folder. An image that cannot be used is
reported and skipped; the exit status is then 1. Everything is in OpenCV camera axes (x right, y down, z forward) and
mm; pixels count from 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.camera import project
from shared.datasets.base import Frame
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.inputs import outside, parse_bbox, parse_numbers, read_intrinsics, refuse_overwriting, unfold
from shared.precision import choose_device
from v2v_posenet import centers
from v2v_posenet.centers import FAR_MM, MIN_PIXELS, NEAR_MM

# v2v_posenet.inference.Predictor and center_net.CenterRefiner. jsonargparse (4.40 and later) runs the imports under
# TYPE_CHECKING to resolve the options' types, which would load torch for --help, so they are not named there.
Predictor = Any
CenterRefiner = Any
SUFFIXES = (".png", ".npy", ".bin")
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
PRESETS: dict[str, tuple[float, float, float, float]] = {  # fx, fy, u0, v0 of the sets the method was trained on
    "msra": (241.42, 241.42, 160.0, 120.0),
    "icvl": (241.42, 241.42, 160.0, 120.0),
    "nyu": (588.036865, 587.075073, 320.0, 240.0),
    "hands2017": (475.065948, 475.065857, 315.944855, 245.287079),
    "itop": (1 / 0.0035, 1 / 0.0035, 160.0, 120.0),
}
PRESET_SIZES = dict.fromkeys(PRESETS, (320, 240)) | dict.fromkeys(("nyu", "hands2017"), (640, 480))  # width, height


@dataclass
class Predict:
    """Options of the program.

    Args:
        images: depth images or folders of them
        checkpoint: one or more networks; the joints of several are averaged
        out: folder for the results
        dataset: take the intrinsics of this data set
        intrinsics: JSON file with fx, fy, u0, v0, or with a 3x3 matrix K
        fx: focal length in columns [pixels]
        fy: focal length in rows [pixels]
        u0: column of the principal point, counted from 0 [pixels]
        v0: row of the principal point, counted from 0 [pixels]
        center: x,y,z of the hand in camera axes, y down [mm]
        bbox: left,top,right,bottom around the hand, right and bottom excluded [pixels]
        centers: centre file, one line per image, in the world of the checkpoint's data set (y up for msra, nyu, itop)
        center_checkpoint: center_net.pt that improves automatic, boxed and tracked centres
        cube: edge of the cube around the centre; 0 means the checkpoint's [mm]
        depth_scale: millimetres per unit of a PNG or .npy image [mm]
        near: nearer depths are no hand, for the automatic centre [mm]
        far: farther depths are no hand, for the automatic centre [mm]
        min_pixels: fewer depth pixels in the cube are no hand [pixels]
        track: start from the joints of the image before (a folder in time order); detects anew when the hand is lost
        refine: position within a cell for Gaussian networks: none (as in the paper), softargmax or parabola
        batch_size: images per pass of the network; 1 with --track [images]
        overlay: draw the joints into a picture
        device: cpu, cuda, or auto (cuda where there is one)
    """

    images: list[str] = field(default_factory=list)
    checkpoint: list[str] = field(default_factory=list)
    out: str = "predictions"
    dataset: Literal["msra", "icvl", "nyu", "hands2017", "itop"] | None = None
    intrinsics: str | None = None
    fx: float | None = None
    fy: float | None = None
    u0: float | None = None
    v0: float | None = None
    center: str | None = None
    bbox: str | None = None
    centers: str | None = None
    center_checkpoint: str | None = None
    cube: float = 0.0
    depth_scale: float = 1.0
    near: float = NEAR_MM
    far: float = FAR_MM
    min_pixels: int = MIN_PIXELS
    track: bool = False
    refine: Literal["none", "softargmax", "parabola"] = "none"
    batch_size: int = 4
    overlay: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class DepthImage:
    """``depth_mm`` (h, w) float32, 0 = no measurement, placed at ``crop_xy`` of an image of ``image_size`` (w, h)."""

    depth_mm: NDArray[np.float32]
    crop_xy: tuple[int, int]
    image_size: tuple[int, int]

    @property
    def cropped(self) -> bool:
        """Whether somebody already cut out the hand."""
        return self.depth_mm.shape != self.image_size[::-1]


# --- what comes in ---


def list_images(inputs: Sequence[str], out: Path) -> list[tuple[Path, str]]:
    """(file, name of its results) of all images; folders unfolded in natural order, without what lies under ``out``."""
    if not inputs:
        raise DataError("no image is given", remedy="give depth images (.png, .npy, .bin) or folders of them")
    found: list[tuple[Path, str]] = []
    for word in inputs:
        path = Path(word)
        if path.is_dir():
            inside = unfold(path, SUFFIXES, outside(out))
            if not inside:
                raise DataError(
                    f"the folder holds no {', '.join(SUFFIXES)} file", path=path, remedy="give another folder"
                )
            found += inside
        elif path.exists():
            found.append((path, path.stem))
        else:
            raise MissingFileError("no such image or folder", path=path, remedy="check the path")
    owners: dict[str, Path] = {}
    for path, name in found:
        if name in owners:
            raise DataError(
                f"would write the same result {name}.json as {owners[name]}", path=path, remedy="use two output folders"
            )
        owners[name] = path
    return found


def read_image(path: Path, depth_scale: float) -> DepthImage:
    """A depth image in mm.

    Raises:
        DataError: not one of the three formats, 8-bit or colour PNG, negative depth, nothing measured at all.
    """
    from shared.datasets import msra
    from shared.datasets.images import read_png16
    from shared.safe_io import load_npy

    suffix = path.suffix.lower()
    if suffix == ".bin":
        crop, (left, top, _, _), size = msra.read_depth(path)
        image = DepthImage(crop, (left, top), size)
    elif suffix in (".png", ".npy"):
        values: NDArray[Any] = read_png16(path) if suffix == ".png" else load_npy(path)
        if values.ndim != 2 or values.dtype.kind not in "uif":
            raise DataError(
                f"expected numbers of shape (height, width), found {values.dtype} {values.shape}",
                path=path,
                remedy="save the depth map alone",
            )
        depth = np.nan_to_num(values.astype(np.float32) * np.float32(depth_scale), nan=0.0, posinf=0.0, neginf=-1.0)
        if depth.size and depth.min() < 0:
            raise DataError("negative depth", path=path, remedy="depth is positive, 0 where nothing was measured")
        image = DepthImage(depth, (0, 0), depth.shape[::-1])
    else:
        raise DataError(
            f"the suffix {suffix!r} is none of {', '.join(SUFFIXES)}", path=path, remedy="convert the image"
        )
    if not (image.depth_mm > 0).any():
        raise DataError("the image is all background (every depth is 0)", path=path, remedy="give an image of a hand")
    return image


def camera_matrix(options: Predict, images: Sequence[Path]) -> NDArray[np.float64]:
    """(3, 3) intrinsics from exactly one of the three sources; MSRA files alone need none.

    Raises:
        DataError: no source or several, numbers missing or not positive, a malformed file.
    """
    from shared.camera import intrinsics

    numbers = {name: getattr(options, name) for name in ("fx", "fy", "u0", "v0")}
    given = [name for name, value in numbers.items() if value is not None]
    sources = [name for name in ("dataset", "intrinsics") if getattr(options, name) is not None]
    sources += ["fx, fy, u0 and v0"] if given else []
    how = "give --fx --fy --u0 --v0, --intrinsics FILE, or --dataset NAME"
    if len(sources) > 1:
        raise DataError(f"the camera is given twice: {' and '.join(sources)}", remedy=how)
    if not sources:
        if any(path.suffix.lower() != ".bin" for path in images):
            raise DataError("the camera's intrinsics are not given", remedy=how)
        return intrinsics(*PRESETS["msra"])
    if options.dataset is not None:
        return intrinsics(*PRESETS[options.dataset])
    if options.intrinsics is not None:
        return read_intrinsics(Path(options.intrinsics))
    missing = [f"--{name}" for name in numbers if name not in given]
    if missing:
        raise DataError(f"the camera needs {' '.join(missing)} too", remedy=how)
    return intrinsics(numbers["fx"], numbers["fy"], numbers["u0"], numbers["v0"])


# --- where the hand is ---


@dataclass
class CenterFinder:
    """The reference point of one image after the other, from whatever the options give.

    ``fixed``: (3,) mm or None; ``box``: left, top, right, bottom or None; ``rows``: (n, 3) mm of a centre file or None.
    """

    options: Predict
    K: NDArray[np.float64]
    cube_mm: float
    fixed: NDArray[np.float64] | None = None
    box: tuple[int, int, int, int] | None = None
    rows: NDArray[np.float64] | None = None
    refiner: CenterRefiner | None = None
    previous_mm: NDArray[np.float64] | None = None

    def find(self, image: DepthImage, index: int) -> tuple[NDArray[np.float64], str]:
        """The centre (3,) in mm and where it comes from.

        Raises:
            DataError: no hand found; the point lies behind the camera, outside the image, or has no depth around it.
        """
        if self.options.track and self.previous_mm is not None:
            tracked = self._refine(image, centers.track_center(self.previous_mm))
            if self._problem(image, tracked) is None:
                return tracked, "tracked"
        if self.fixed is not None:
            center, source = self.fixed, "given"
        elif self.rows is not None:
            center, source = self.rows[index], "file"
            if not np.isfinite(center).all():
                raise DataError(f"line {index + 1} of the centre file is invalid: no hand in this image")
        else:
            center, source = self._refine(image, self._rough(image)), "bbox" if self.box is not None else "automatic"
        problem = self._problem(image, center)
        if problem is not None:
            raise DataError(problem, remedy="check the centre, the intrinsics and --depth_scale")
        return center, source

    def _rough(self, image: DepthImage) -> NDArray[np.float64]:
        depth, (left, top) = image.depth_mm, image.crop_xy
        limits: dict[str, Any] = {"near_mm": self.options.near, "far_mm": self.options.far}
        if self.box is not None:
            x0, y0, x1, y1 = (
                int(v) for v in np.clip(np.array(self.box) - [left, top, left, top], 0, [*depth.shape[::-1]] * 2)
            )
            depth, left, top = depth[y0:y1, x0:x1], left + x0, top + y0
        if image.cropped and self.box is None:
            refiner = self.refiner  # start as its training did
            point = centers.mass_center(
                depth,
                self.K,
                (left, top),
                cube_mm=self.cube_mm if refiner is None else refiner.cube_mm,
                iterations=1 if refiner is None else refiner.mass_iterations,
                min_pixels=self.options.min_pixels,
                **limits,
            )
        else:
            region = self.options.min_pixels
            point = centers.detect_hand(depth, self.K, (left, top), cube_mm=self.cube_mm, min_region=region, **limits)
        if point is None:
            where = f"the box {self.box}" if self.box is not None else "the image"
            raise DataError(
                f"no hand found: {where} has no region of {self.options.min_pixels} pixels between "
                f"{self.options.near:g} and {self.options.far:g} mm",
                remedy="check --depth_scale, --near and --far, or give --center or --bbox",
            )
        return point

    def _refine(self, image: DepthImage, rough: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.refiner is None:
            return rough
        return self.refiner(image.depth_mm, self.K, image.crop_xy, rough)

    def _problem(self, image: DepthImage, center: NDArray[np.float64]) -> str | None:
        text = ", ".join(f"{value:.0f}" for value in center)
        if not center[2] > 0:
            return f"the centre ({text}) mm lies behind the camera"
        box = np.array(centers.cube_box(center, self.cube_mm, self.K))
        width, height = image.image_size
        if box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height:
            u, v = project(center, self.K)
            where = f"at pixel ({u:.0f}, {v:.0f}) of {width}x{height}"
            return f"the hand lies outside the image: the centre ({text}) mm is {where}"
        left, top, right, bottom = np.clip(box - [*image.crop_xy] * 2, 0, [*image.depth_mm.shape[::-1]] * 2)
        part = image.depth_mm[top:bottom, left:right]
        count = int((np.abs(part - center[2]) <= self.cube_mm / 2)[part > 0].sum())
        if count < self.options.min_pixels:
            return f"no hand in the cube: {count} depth pixels within {self.cube_mm / 2:g} mm of the centre ({text}) mm"
        return None


# --- what goes out ---


def result_of(
    path: Path,
    frame: Frame,
    source: str,
    joints_mm: NDArray[np.float64],
    uv: NDArray[np.float64],
    confidence: NDArray[np.float32],
    voxels: int,
    predictor: Predictor,
    checkpoints: Sequence[str],
) -> dict[str, Any]:
    """The content of one JSON file."""
    from shared import skeletons

    K = frame.K

    def rounded(array: Any, digits: int = 3) -> Any:
        return [[None if v != v else round(float(v), digits) for v in row] for row in np.atleast_2d(array)]

    return {
        "image": str(path),
        "frame": "OpenCV camera axes (x right, y down, z forward), mm; pixels from 0",
        "skeleton": predictor.skeleton,
        "joint_names": list(skeletons.get(predictor.skeleton).joints),
        "joints_mm": rounded(joints_mm),
        "joints_uv": rounded(uv),
        "confidence": rounded(confidence, 5)[0],
        "center_mm": rounded(frame.center_mm)[0],
        "center_from": source,
        "cube_mm": predictor.checkpoints[0].cube_mm,
        "voxels": voxels,
        "intrinsics": {"fx": K[0, 0], "fy": K[1, 1], "u0": K[0, 2], "v0": K[1, 2]},
        "checkpoints": list(checkpoints),
    }


def predict(options: Predict, progress: bool = True) -> list[tuple[Path, str]]:
    """Runs the program and returns the skipped images with the reason.

    Raises:
        DataError: options that cannot be used. Images that cannot be used do not raise.
    """
    from tqdm import tqdm

    from shared.safe_io import atomic_write_text

    out = Path(options.out)
    images = list_images(options.images, out)
    K = camera_matrix(options, [path for path, _ in images])
    _check(options)
    read = [options.intrinsics, options.centers, options.center_checkpoint, *options.checkpoint]
    endings = (".json", "_joints.png") if options.overlay else (".json",)
    refuse_overwriting(out, images, endings, [word for word in read if word])
    predictor = make_predictor(options)
    finder = make_finder(options, predictor, K, len(images))

    skipped: list[tuple[Path, str]] = []
    waiting: list[tuple[Path, str, Frame, str]] = []
    size = 1 if options.track else options.batch_size

    def flush() -> None:
        if not waiting:
            return
        found = predictor.predict_frames([frame for _, _, frame, _ in waiting])
        for i, (path, name, frame, source) in enumerate(waiting):
            content = result_of(
                *(path, frame, source, found.joints_mm[i], found.uv[i], found.confidence[i]),
                *(int(found.voxels[i]), predictor, options.checkpoint),
            )
            atomic_write_text(out / f"{name}.json", json.dumps(content, indent=1) + "\n")
            if options.overlay:
                save_overlay(out / f"{name}_joints.png", frame, found.uv[i], finder.cube_mm)
        finder.previous_mm = found.joints_mm[-1]
        waiting.clear()

    for index, (path, name) in enumerate(tqdm(images, desc="images", disable=not progress or len(images) == 1)):
        try:
            image = read_image(path, options.depth_scale)
            if options.dataset is not None and image.image_size != PRESET_SIZES[options.dataset]:
                has, needs = ("{}x{}".format(*size) for size in (image.image_size, PRESET_SIZES[options.dataset]))
                raise DataError(
                    f"the image has {has} pixels, the camera of {options.dataset} {needs}",
                    path=path,
                    remedy="give the intrinsics of the camera that took it",
                )
            center, source = finder.find(image, index)
        except DataError as error:
            text = str(error)
            skipped.append((path, text if str(path) in text else f"{path}: {text}"))
            finder.previous_mm = None
            continue
        waiting.append((path, name, make_frame(image, K, center, predictor.skeleton), source))
        if len(waiting) == size:
            flush()
    flush()
    return skipped


def make_predictor(options: Predict) -> Predictor:
    """Loads the networks, with the cube of the options where one is given.

    A set's networks learned that pixels without a measurement lie on a plane at a certain depth (MSRA: 700 mm). With
    another camera that plane could stand in the middle of the cube, so it is left out there.
    """
    from dataclasses import replace

    from v2v_posenet.convert import load_checkpoint
    from v2v_posenet.inference import Predictor

    loaded = [load_checkpoint(path) for path in options.checkpoint]
    if options.cube:
        loaded = [replace(checkpoint, cube_mm=options.cube) for checkpoint in loaded]
    camera = options.dataset or ("msra" if options.intrinsics is None and options.fx is None else "own")
    loaded = [c if c.dataset.startswith(camera) else replace(c, max_depth_mm=0.0) for c in loaded]
    return Predictor(loaded, device=choose_device(options.device), refine=options.refine)


def make_finder(options: Predict, predictor: Predictor, K: NDArray[np.float64], count: int) -> CenterFinder:
    """The source of centres the options name, checked against the number of images."""
    checkpoint = predictor.checkpoints[0]
    finder = CenterFinder(options, K, checkpoint.cube_mm)
    if options.center is not None:
        finder.fixed = np.array(parse_numbers("center", options.center, "x y z"))
    if options.bbox is not None:
        finder.box = parse_bbox(options.bbox)
    if options.centers is not None:
        from shared.datasets.centers import read_centers

        unit_mm = 1000.0 if checkpoint.dataset.startswith("itop") else 1.0
        finder.rows, _ = read_centers(options.centers, y_up=checkpoint.y_up, unit_mm=unit_mm)
        if len(finder.rows) != count:
            raise DataError(
                f"{len(finder.rows)} centres for {count} images",
                path=options.centers,
                remedy="a centre file has one line per image, in the order in which they are processed",
            )
    if options.center_checkpoint is not None:
        from v2v_posenet.center_net import load_center_checkpoint

        finder.refiner, _ = load_center_checkpoint(options.center_checkpoint, choose_device(options.device))
    return finder


def make_frame(image: DepthImage, K: NDArray[np.float64], center: NDArray[np.float64], skeleton: str) -> Frame:
    """The record the predictor takes."""
    return Frame(
        name="image",
        image_size=image.image_size,
        K=K,
        skeleton=skeleton,
        depth_mm=image.depth_mm,
        crop_xy=image.crop_xy,
        center_mm=center,
    )


def save_overlay(path: Path, frame: Frame, uv: NDArray[np.float64], cube_mm: float) -> None:
    """The depth map, grey within the cube, with the joints drawn on it, as a PNG; small images twice as large."""
    from shared import draw

    assert frame.center_mm is not None
    picture = draw.depth_to_rgb(frame.full_depth_mm(), center_mm=float(frame.center_mm[2]), cube_mm=cube_mm)
    scale = 2 if frame.image_size[0] < 640 else 1
    draw.save(path, draw.draw_skeleton(picture, uv, frame.skeleton, scale=scale))


def _check(options: Predict) -> None:
    given = [f"--{name}" for name in ("center", "bbox", "centers") if getattr(options, name) is not None]
    if len(given) > 1:
        raise DataError(f"the centre is given by {' and '.join(given)}", remedy="give one of them")
    if not options.checkpoint:
        raise DataError("no checkpoint is given", remedy="give --checkpoint FILE (several files are averaged)")
    for name, low in (("depth_scale", 0.0), ("near", 0.0), ("far", options.near), ("batch_size", 0), ("min_pixels", 0)):
        if not low < getattr(options, name) < float("inf"):
            raise DataError(f"--{name} must be above {low:g}, got {getattr(options, name)}")
    if not 0 <= options.cube < 1e5:
        raise DataError(f"--cube must be an edge in mm, or 0 for the checkpoint's, got {options.cube}")


def _join_words(argv: Sequence[str]) -> Iterator[str]:
    """Lets ``--checkpoint a.pt b.pt images`` end the checkpoints where the images begin."""
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--checkpoint" and words:
            files = [words.pop(0)]
            while words and Path(words[0]).suffix in CHECKPOINT_SUFFIXES:
                files.append(words.pop(0))
            yield f"--checkpoint={json.dumps(files)}"
        else:
            yield word


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status: 1 when an image was skipped."""
    from shared.options import parse

    parsed = parse(
        Predict,
        prog="python -m v2v_posenet.predict",
        description="Finds the joints of the hand in depth images (16-bit PNG, .npy, MSRA .bin, or folders of them).",
        argv=list(_join_words(sys.argv[1:] if argv is None else argv)),
        positional="images",
        positional_help="depth images or folders of them",
    )
    skipped = predict(parsed.options)
    print(f"results in {parsed.options.out}")
    if skipped:
        print(f"{len(skipped)} skipped:", *(f"  {text}" for _, text in skipped), sep="\n", file=sys.stderr)
    return 1 if skipped else 0


if __name__ == "__main__":
    exit_on_error(main)
