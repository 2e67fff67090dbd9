"""Spheres and joints of a hand in a depth picture: ``python -m selfsup_fitting.predict depth.png --checkpoint CKPT``.

For every picture writes ``<name>.json`` (41 spheres and 14 joints in the camera's frame, mm, and the joints' pixels),
``<name>.png`` (captured depth, drawn spheres, difference) and ``<name>_crop.npz``, the crop that the network saw: the
viewer shows it, and it can be predicted again. A folder stands for the pictures in it. A picture that cannot be used is
reported and left out; the exit status is 2 then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup_fitting.config import PredictConfig
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse
from shared.precision import choose_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SUFFIXES = (".png", ".npy", ".npz")
ENDINGS = (".json", ".png", "_crop.npz")  # of what is written
MOST_MM = 65535.0  # of a 16-bit picture
HAND_MM = 150.0  # how far behind its nearest point a hand may reach, where no centre is given


def numbers(text: str, count: int, flag: str) -> list[float]:
    """``"1,2,3"`` -> [1.0, 2.0, 3.0].

    Raises:
        DataError: another count, or something that is no finite number.
    """
    import math

    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise DataError(f"{flag}: expected {count} numbers with commas between, got {text!r}")
    return values


def camera_of(text: str) -> Array:
    """(3, 3) of ``fx,fy,cx,cy``."""
    from shared import camera

    fx, fy, cx, cy = numbers(text, 4, "--intrinsics")
    if not (1 <= fx <= 1e6 and 1 <= fy <= 1e6):
        raise DataError(f"--intrinsics: focal lengths must be 1 to 1,000,000 pixels, got {text!r}")
    return camera.intrinsics(fx, fy, cx, cy)


def list_pictures(inputs: Sequence[str], out: Path) -> list[tuple[Path, str]]:
    """(file, name of its results) of all pictures; folders unfolded in natural order, without what lies under ``out``.

    Raises:
        DataError: a folder without pictures, names that would overwrite one another.
    """
    from shared.inputs import outside, unfold

    found: list[tuple[Path, str]] = []
    for path in map(Path, inputs):
        inside = unfold(path, SUFFIXES, outside(out)) if path.is_dir() else [(path, path.stem)]
        if not inside:
            raise DataError(
                f"the folder holds no {', '.join(SUFFIXES)} file",
                path=path,
                remedy="give another folder, or another --out (what lies under it is passed over)",
            )
        found += inside
    if len({name for _, name in found}) != len(found):
        raise DataError("two pictures have the same name, their results would overwrite each other")
    return found


def read_arrays(path: Path) -> dict[str, Any]:
    """``depth_mm``, and what else there is, of an ``.npz``; of a ``.npy`` or a lone array, that one as ``depth_mm``.

    Raises:
        MissingFileError, DataError: no such file, damaged, or several arrays none of which is ``depth_mm``.
    """
    from shared.safe_io import load_npy, load_npz

    arrays: dict[str, Any] = {"depth_mm": load_npy(path)} if path.suffix.lower() == ".npy" else load_npz(path)
    if "depth_mm" not in arrays and len(arrays) != 1:
        raise DataError(f"expected an array depth_mm, found {', '.join(arrays) or 'none'}", path=path)
    return arrays if "depth_mm" in arrays else {"depth_mm": next(iter(arrays.values()))}


def read_picture(path: str | Path) -> NDArray[np.float32]:
    """(H, W) depth in mm of a 16-bit PNG, of NYU's 8-bit PNG, or of a ``.npy`` or ``.npz``.

    Raises:
        MissingFileError, DataError: no such file; damaged; not a depth picture; depth that is not finite.
    """
    import numpy as np

    from shared.datasets.images import read_png16, read_rgb

    path = Path(path)
    if path.is_dir():
        raise DataError("is a folder", path=path, remedy="name one depth picture in it")
    if not path.is_file():
        raise MissingFileError("no such picture", path=path, remedy="name a depth picture (.png or .npy)")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"the suffix {path.suffix!r} is none of {', '.join(SUFFIXES)}",
            path=path,
            remedy="convert the picture to a 16-bit PNG in mm",
        )
    if path.suffix.lower() != ".png":
        depth = read_arrays(path)["depth_mm"]
        if depth.ndim != 2 or depth.dtype.kind not in "iuf":
            raise DataError(f"expected depth (H, W) in mm, found {depth.dtype} {depth.shape}", path=path)
        depth = depth.astype(np.float32)
    else:
        try:
            depth = read_png16(path).astype(np.float32)
        except DataError as error:
            try:
                rgb = read_rgb(path, any_mode=False)
            except DataError:
                raise error from None
            if rgb[..., 0].any():
                raise DataError(
                    "an RGB picture whose red channel is not empty: not NYU's depth (G * 256 + B)",
                    path=path,
                    remedy="give a 16-bit depth PNG in mm",
                ) from None
            depth = (rgb[..., 1].astype(np.uint16) << 8 | rgb[..., 2]).astype(np.float32)
    if not np.isfinite(depth).all():
        raise DataError("holds depth that is not finite (NaN)", path=path, remedy="write 0 where nothing was measured")
    if np.abs(depth).max(initial=0) > MOST_MM:
        raise DataError(f"holds depth of {np.abs(depth).max():.3g} mm, more than {MOST_MM:g}", path=path)
    return np.asarray(depth)


def find_center(depth_mm: NDArray[np.float32], K: Array, path: str | Path) -> Array:
    """(3,) the mean of what lies within 150 mm behind the nearest point: a hand held towards the camera.

    Raises:
        DataError: nothing was measured.
    """
    import numpy as np

    seen = depth_mm[depth_mm > 0]
    if not len(seen):
        raise DataError("nothing was measured in this picture", path=path, remedy="is it a depth picture in mm?")
    near = float(np.percentile(seen, 0.5))
    rows, columns = np.nonzero((depth_mm > 0) & (depth_mm < near + HAND_MM))
    z = depth_mm[rows, columns].astype(np.float64)
    x, y = (columns - K[0, 2]) * z / K[0, 0], (rows - K[1, 2]) * z / K[1, 1]
    return np.array([x.mean(), y.mean(), z.mean()])


def load_crop(path: str | Path, center: str, intrinsics: str) -> tuple[NDArray[np.float32], Array]:
    """The 64 x 64 crop of a picture in mm and its centre; a 64 x 64 array is a crop already.

    Its centre is the one given, else the file's ``center_mm``, else 0.

    Raises:
        DataError: what the readers refuse; a centre with nothing around it, or one behind the camera; depth that is not
            in mm by the look of it.
    """
    import numpy as np

    from selfsup_fitting.prepare import crop

    path = Path(path)
    picture, K = read_picture(path), camera_of(intrinsics)
    if picture.shape == (64, 64) and path.suffix.lower() != ".png":
        stored = np.asarray(read_arrays(path).get("center_mm", np.zeros(3)))
        if stored.shape != (3,) or stored.dtype.kind not in "iuf" or not np.isfinite(stored).all():
            raise DataError(f"center_mm: expected three numbers, found {stored.dtype} {stored.shape}", path=path)
        middle = np.array(numbers(center, 3, "--center")) if center else stored.astype(np.float64)
        if np.abs(picture).max() <= 2:
            raise DataError(
                f"holds numbers from {picture.min():g} to {picture.max():g}, as a normalised crop does",
                path=path,
                remedy="multiply them by 100: a 64 x 64 array holds mm relative to the crop's centre",
            )
        if (picture >= 100).all():
            raise DataError(
                "nothing in this crop is nearer than the background (100)",
                path=path,
                remedy="a 64 x 64 .npy holds mm relative to the crop's centre",
            )
        return np.minimum(picture, np.float32(100)), middle
    if 0 < picture.max() <= HAND_MM:
        raise DataError(
            f"nothing is farther than {picture.max():.3g}: is this depth in mm?",
            path=path,
            remedy="multiply metres by 1000",
        )
    middle = np.array(numbers(center, 3, "--center")) if center else find_center(picture, K, path)
    if middle[2] <= HAND_MM:
        given = "--center: " if center else ""
        raise DataError(
            f"{given}the crop reaches 150 mm before and behind its centre, which is {middle[2]:.0f} mm away",
            path=path,
            remedy=f"give {'' if center else '--center '}x,y,z in the camera's frame, mm",
        )
    cut = crop(picture, middle, K)
    if (cut >= 100).all():
        raise DataError(
            f"no depth within the cube around {middle.round(1).tolist()} mm",
            path=path,
            remedy="check --center (mm, camera frame) and --intrinsics",
        )
    return cut, middle


def write_hand(out: Path, name: str, spheres_mm: Array, center_mm: Array, K: Array, crop_mm: Any, radii: Any) -> Path:
    """``<name>.json``, ``<name>.png`` and ``<name>_crop.npz`` of (41, 3) spheres around a centre; returns the first."""
    import numpy as np
    import torch

    from selfsup_fitting.pictures import fit_row
    from selfsup_fitting.render import sphere_depth
    from selfsup_fitting.spheres import EVAL_NYU, EVAL_SPHERES
    from shared import camera
    from shared.draw import save
    from shared.safe_io import atomic_path, atomic_write_text

    placed = spheres_mm + center_mm
    joints = placed[list(EVAL_SPHERES)]
    content = {
        "frame": "camera: x right, y down, z forward, mm",
        "center_mm": center_mm.tolist(),
        "spheres_mm": placed.round(3).tolist(),
        "nyu_joints": list(EVAL_NYU),
        "joints_mm": joints.round(3).tolist(),
        "joints_uv": camera.project(joints, K).round(3).tolist() if (joints[:, 2] > 0).all() else None,
    }
    atomic_write_text(out / f"{name}.json", json.dumps(content, indent=1) + "\n")
    drawn = sphere_depth(torch.from_numpy(spheres_mm).float(), torch.tensor(radii).float()).numpy()
    save(out / f"{name}.png", fit_row(crop_mm, drawn, 4))
    with atomic_path(out / f"{name}_crop.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, depth_mm=crop_mm, center_mm=center_mm, allow_pickle=False)
    return out / f"{name}.json"


def main() -> None:
    options = parse(
        PredictConfig,
        prog="python -m selfsup_fitting.predict",
        description="Spheres and joints of a hand in depth pictures.",
        positional="images",
        positional_help="depth pictures (.png, .npy) or folders of them",
    ).options
    predict(options)


def predict(options: PredictConfig) -> list[Path]:
    """All pictures; returns the JSON files.

    Raises:
        DataError: no picture, no checkpoint, results that would overwrite one another or what is read; at the end,
            after the others are done, pictures that cannot be used.
    """
    if not options.images:
        raise DataError(
            "no depth picture is given", remedy="python -m selfsup_fitting.predict depth.png --checkpoint ..."
        )
    if not options.checkpoint:
        raise DataError("--checkpoint is missing", remedy="train one: python -m selfsup_fitting.train")
    from shared.inputs import refuse_overwriting

    K, out, files = camera_of(options.intrinsics), Path(options.out), []
    pictures = list_pictures(options.images, out)
    refuse_overwriting(out, pictures, ENDINGS, [options.checkpoint, options.denoiser, options.hand])
    import torch

    from selfsup_fitting.convert import load_estimator
    from selfsup_fitting.data import normalised
    from selfsup_fitting.hand import load_hand
    from selfsup_fitting.priors import load_prior

    device = choose_device(options.device)
    network = load_estimator(options.checkpoint).build().to(device)
    denoiser = load_prior(options.denoiser, "denoiser") if options.denoiser else None
    radii = load_hand(options.hand).sphere_radius_mm
    refused: list[DataError] = []
    for path, name in pictures:
        try:
            crop_mm, center = load_crop(path, options.center, options.intrinsics)
        except DataError as error:
            refused.append(error)
            if len(pictures) > 1:
                print(f"skipped: {error}", file=sys.stderr)
            continue
        image = normalised(torch.from_numpy(crop_mm).to(device))[None]
        with torch.inference_mode():
            with torch.autocast(image.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                spheres = network(image)[-1].spheres_mm.float().cpu()
            if denoiser is not None:
                spheres = denoiser(spheres)
        files.append(write_hand(out, name, spheres[0].double().numpy(), center, K, crop_mm, radii))
        print(f"{path}: centre {center.round(1).tolist()} mm, {files[-1]} and .png")
    if refused:
        several = DataError(f"{len(refused)} of {len(pictures)} pictures could not be used", remedy="see above")
        raise refused[0] if len(pictures) == 1 else several
    return files


if __name__ == "__main__":
    exit_on_error(main)
