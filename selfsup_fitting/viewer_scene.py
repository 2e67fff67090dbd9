"""What the viewer shows, without a page: a pose in, pictures, surfaces and loss terms out; its files.

Pictures are 64 x 64 depth crops in mm around the crop's centre, background 100, shown in grey from -100 (black) to 100
(white). Everything runs on the CPU, under ten milliseconds an update on an ordinary core.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsup_fitting import losses
from selfsup_fitting.hand import Hand
from selfsup_fitting.kernels import ops
from selfsup_fitting.kinematics import POSE_SIZE, forward_kinematics, hand_tensors, pose_spheres, skin
from selfsup_fitting.priors import SCALE, PoseVAE
from selfsup_fitting.render import IMAGE, mesh_depth, sphere_depth
from selfsup_fitting.sampler import USUAL_RANGES
from selfsup_fitting.spheres import GROUPS, MEAN_SCALE, POSE_NAMES
from selfsup_fitting.synth import PALM, depth_noise
from shared.errors import DataError, MissingFileError

Float = NDArray[np.float32]
RGB = NDArray[np.uint8]
Interpolation = Literal["linear", "harmonic"]

FAR_MM = 100.0  # background of a crop, and the ends of the grey scale
MOST = 1000.0  # of a number in a fitted pose, radians or mm
SIZES = (0.7, 1.2)  # of the hand, a factor on all axes; training sees 0.8 to 1.0
_STRAIGHT, _BENT, _BENT_THUMB = (0.0, -0.2, -0.4, -0.34), (0.0, 1.15, 1.35, 0.9), (-0.35, 0.55, 0.1, -0.8)
_AT_EASE = (0.0,) * 6

# Finger angles in the order of spheres.POSE_NAMES, in front of them the palm at rest.
PRESETS: dict[str, tuple[float, ...]] = {
    "zero": (0.0,) * POSE_SIZE,
    "fist": (*_AT_EASE, *_BENT * 4, *_BENT_THUMB),
    "pinch": (
        *_AT_EASE,
        *(0.0, 0.55, 0.48, 0.29),
        *(0.0, 0.1, 0.0, 0.0),
        *(0.0, 0.05, 0.0, 0.0),
        *(-0.1, 0.0, -0.1, -0.1),
        *(-0.22, 0.45, 0.02, -0.51),
    ),
    "point": (*_AT_EASE, *_STRAIGHT, *_BENT * 3, *_BENT_THUMB),
    "spread": (
        *_AT_EASE,
        *(0.35, -0.2, -0.4, -0.34),
        *(0.1, -0.2, -0.4, -0.34),
        *(-0.25, -0.2, -0.4, -0.34),
        *(-0.6, -0.2, -0.4, -0.34),
        *(0.45, 0.0, 0.0, 0.25),
    ),
}


def slider_range(index: int) -> tuple[float, float]:
    """Ends of the slider of one number of the pose: beyond the usual values on both sides; radians, mm."""
    low, high = USUAL_RANGES[index]
    if index < 3:
        return -3.15, 3.15
    more = 0.25 * (high - low)
    step = 5.0 if index < 6 else 0.05
    return float(np.floor((low - more) / step) * step), float(np.ceil((high + more) / step) * step)


def unusual(pose: NDArray[np.floating]) -> list[str]:
    """A line for each number that no sampled pose has: its name, value and the usual range."""
    lines = []
    for name, value, (low, high) in zip(POSE_NAMES, pose, USUAL_RANGES, strict=True):
        # At 0 every number is at rest, although the sampler turns palms one way only.
        if value != 0 and not low - 1e-6 <= value <= high + 1e-6:
            lines.append(f"{name} {value:.2f} (usual {low:.2f} to {high:.2f})")
    return lines


@dataclass(frozen=True)
class View:
    """One pose, seen.

    Attributes:
        pose: (26,) and the size that it was drawn with.
        size: factor on all axes.
        verts_mm: (V, 3) camera frame; centers_mm: (41, 3).
        sphere_mm, mesh_mm: (64, 64) depth crops; the mesh's with noise if that was asked for.
        terms: loss terms by name, without weights.
    """

    pose: NDArray[np.float64]
    size: float
    verts_mm: Float
    centers_mm: Float
    sphere_mm: Float
    mesh_mm: Float
    terms: dict[str, float]


class HandScene:
    """A hand to be posed, with the networks and the captured crop that it is judged by."""

    def __init__(self, hand: Hand, vae: PoseVAE | None = None, crop_mm: Float | None = None) -> None:
        self.hand, self.vae, self.crop_mm = hand, vae, crop_mm
        self.constants = hand_tensors(hand)
        self.lengths = torch.from_numpy(hand.bone_lengths_mm()).float()

    @torch.no_grad()
    def look(
        self,
        pose: NDArray[np.floating],
        size: float = MEAN_SCALE,
        interpolation: Interpolation = "linear",
        noise_seed: int | None = None,
    ) -> View:
        """Poses, draws and measures.

        Args:
            pose: (26,) radians and mm.
            size: factor on all axes.
            interpolation: of depth inside a triangle; ``harmonic`` is the original's (README, Q1).
            noise_seed: adds sensor noise to the mesh's depth.
        """
        posed = torch.as_tensor(np.asarray(pose, np.float32))[None]
        transforms = forward_kinematics(posed, self.hand, torch.full((1, 3), float(size)))
        verts, centers = skin(transforms, self.hand), pose_spheres(transforms, self.hand)
        mesh = mesh_depth(verts, self.constants.faces, interpolation=interpolation)
        if noise_seed is not None:
            normal = torch.randn(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(noise_seed))
            mesh = FAR_MM * depth_noise(mesh / FAR_MM, normal)
        ball = sphere_depth(centers, self.constants.radius_mm)
        return View(
            np.array(pose, np.float64),
            float(size),
            verts[0].numpy(),
            centers[0].numpy(),
            ball[0].numpy(),
            mesh[0].numpy(),
            self.terms(centers[0]),
        )

    def terms(self, centers_mm: Tensor) -> dict[str, float]:
        """Loss terms of one hand (41, 3) as the training sees them, unweighted; fitting terms where there is a crop."""
        each = centers_mm[None, None]
        found = {
            "collision": losses.collision(each, reduction="reference"),
            "bone length": losses.bone_length(each, self.lengths),
        }
        if self.vae is not None:
            known = centers_mm - centers_mm[PALM] if self.vae.center == "palm" else centers_mm
            x = SCALE * known.reshape(1, -1)
            recon, mu, logvar = self.vae(x)
            found["VAE"] = losses.vae_objective(recon, x, mu, logvar)
            found["VAE reconstruction, mm"] = (recon - x).view(-1, 3).norm(dim=1).mean() / SCALE
        if self.crop_mm is not None:
            depth = torch.from_numpy(self.crop_mm)[None, None]
            fit = ops.projection_loss(each, None, self.constants.radius_mm, depth)
            found["model to data, mm^2"] = fit.model_to_data.mean()
            found["data to model, mm"] = fit.data_to_model.mean()
        return {name: float(value) for name, value in found.items()}

    def pictures(self, view: View) -> dict[str, RGB]:
        """Title -> (64, 64, 3): both depths, their difference, and the crop with its own difference to the spheres."""
        shown = {
            "spheres": grey(view.sphere_mm),
            "mesh": grey(view.mesh_mm),
            "spheres - mesh": difference(view.sphere_mm, view.mesh_mm),
        }
        if self.crop_mm is not None:
            shown["crop"] = grey(self.crop_mm)
            shown["spheres - crop"] = difference(view.sphere_mm, self.crop_mm)
        return shown


def finger_colors() -> NDArray[np.uint8]:
    """(41, 3): the palm grey, each finger its own colour."""
    table = [(150, 150, 150), (70, 140, 220), (80, 180, 100), (230, 200, 60), (180, 100, 200), (230, 90, 60)]
    return np.array([table[group] for group in GROUPS], np.uint8)


def grey(depth_mm: Float) -> RGB:
    """(H, W) mm -> (H, W, 3): -100 black, 100 and the background white."""
    level = np.rint((np.clip(depth_mm, -FAR_MM, FAR_MM) + FAR_MM) * (255 / (2 * FAR_MM)))
    return np.repeat(level.astype(np.uint8)[..., None], 3, 2)


def difference(a_mm: Float, b_mm: Float, span_mm: float = 20.0) -> RGB:
    """(H, W, 3): where both are, blue where a is nearer, red where it is farther, full colour at ``span_mm``; what only
    one of the silhouettes has is orange (a) or green (b)."""
    in_a, in_b = a_mm < FAR_MM - 0.1, b_mm < FAR_MM - 0.1
    share = np.clip((a_mm - b_mm) / span_mm, -1, 1)[..., None]
    nearer, farther = np.array([40, 90, 220]), np.array([210, 50, 40])
    color = 255 - np.abs(share) * (255 - np.where(share < 0, nearer, farther))
    color = np.where((in_a & in_b)[..., None], color, 255)
    color = np.where((in_a & ~in_b)[..., None], np.array([250, 170, 60]), color)
    color = np.where((~in_a & in_b)[..., None], np.array([70, 170, 110]), color)
    return np.asarray(np.rint(color), np.uint8)


# ------------------------------------------------------------------------------------------------------- files


def read_crop(path: str | Path) -> Float:
    """(64, 64) mm, background 100, of a crop file.

    ``.npy`` holds the array, ``.npz`` has it as ``depth_mm`` or as its only array: mm around the crop's centre; what is
    not finite or beyond 100 becomes background. A ``.png`` is grey, from -100 mm (0) to 100 mm and background (largest
    value), 8 or 16 bits, as the viewer exports it.

    Raises:
        MissingFileError, DataError: no such file; another kind of file, size or content; nothing but background.
    """
    from selfsup_fitting.predict import read_arrays
    from shared.datasets.images import read_png16, read_rgb

    path = Path(path)
    size = (IMAGE, IMAGE)
    if path.suffix == ".png":
        try:
            values = read_png16(path, expected_size=size) / 65535
        except MissingFileError:
            raise
        except DataError:
            values = read_rgb(path, expected_size=size, formats=("PNG",))[..., 0] / 255
        depth = np.asarray(2 * FAR_MM * values - FAR_MM)
    elif path.suffix in (".npy", ".npz"):
        depth = read_arrays(path)["depth_mm"]
    else:
        raise DataError("expected a depth crop as .npz, .npy or .png", path=path)
    if depth.shape != size or depth.dtype.kind not in "iuf":
        raise DataError(f"expected a depth crop of 64 x 64 numbers, got {depth.dtype} {depth.shape}", path=path)
    depth = np.where(np.isfinite(depth) & (depth < FAR_MM), depth, FAR_MM)
    if depth.min() >= FAR_MM - 1:
        raise DataError(
            "nothing is nearer than 100 mm behind the centre: the whole crop is background",
            path=path,
            remedy="the numbers are mm relative to the crop's centre",
        )
    if depth.min() < -1000:
        raise DataError(f"depth {depth.min():.0f} mm is not around a crop's centre", path=path)
    return depth.astype(np.float32)


def depth_png(depth_mm: Float) -> bytes:
    """A 16-bit grey PNG that :func:`read_crop` reads, -100 mm is 0 and 100 mm is 65535 (steps of 3 micrometres)."""
    from PIL import Image

    values = np.rint((np.clip(depth_mm, -FAR_MM, FAR_MM) + FAR_MM) * (65535 / (2 * FAR_MM))).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def sheet_png(scene: HandScene, view: View, scale: int = 5) -> bytes:
    """All pictures of a view in a row, enlarged, as a PNG."""
    from shared.draw import enlarge, png_bytes, side_by_side

    pictures = scene.pictures(view)
    return png_bytes(side_by_side([enlarge(image, scale) for image in pictures.values()], list(pictures)))


def pose_json(scene: HandScene, view: View) -> str:
    """The pose with names, its size, spheres and loss terms as JSON; :func:`read_pose` reads it."""
    content = {
        "pose": {name: float(value) for name, value in zip(POSE_NAMES, view.pose, strict=True)},
        "size": view.size,
        "hand": scene.hand.name,
        "spheres_mm": np.round(view.centers_mm.astype(float), 4).tolist(),
        "terms": view.terms,
    }
    return json.dumps(content, indent=1) + "\n"


def read_pose(path: str | Path) -> tuple[NDArray[np.float64], float]:
    """(26,) and the size, of a file written by :func:`pose_json`, or of the ``<name>_fit.json`` of a fit.

    A fit knows no sliders: its 26 numbers may lie beyond them, and turns come back within half a turn.

    Raises:
        MissingFileError, DataError: no such file; not such a file, numbers missing, unknown or out of the sliders.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError("no such pose file", path=path, remedy="give a pose.json that the viewer exported")
    try:
        content: Any = json.loads(path.read_bytes())
        named = content["pose"]
        fitted = isinstance(named, list)
        if fitted:
            named = dict(zip(POSE_NAMES, named, strict=True))
        if set(named) != set(POSE_NAMES):
            wrong = sorted(set(named) ^ set(POSE_NAMES))
            raise DataError(f"expected the 26 numbers of a pose by name; missing or unknown: {', '.join(wrong[:6])}")
        pose, size = np.array([float(named[name]) for name in POSE_NAMES]), float(content.get("size", MEAN_SCALE))
    except DataError as error:
        raise DataError(str(error), path=path) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"this is no pose of the viewer ({error!r})"[:300], path=path) from error
    ranges = [(-MOST, MOST) if fitted else slider_range(index) for index in range(POSE_SIZE)]
    spans = {"size": SIZES, **dict(zip(POSE_NAMES, ranges, strict=True))}
    for (name, (low, high)), value in zip(spans.items(), (size, *pose), strict=True):
        if not low <= value <= high:  # nor where it is not a number
            raise DataError(f"{name} is {value:g}, the viewer shows {low:g} to {high:g}", path=path)
    if fitted:
        pose[:3] = (pose[:3] + np.pi) % (2 * np.pi) - np.pi
    return pose, size


def export(scene: HandScene, view: View, folder: str | Path) -> list[Path]:
    """Writes ``pose.json``, ``spheres.png`` and ``mesh.png`` (depth, 16 bits), and ``figure.png``; needs no display."""
    from shared.safe_io import atomic_path, atomic_write_text

    folder = Path(folder)
    contents = {
        "spheres.png": depth_png(view.sphere_mm),
        "mesh.png": depth_png(view.mesh_mm),
        "figure.png": _figure(scene, view),
    }
    atomic_write_text(folder / "pose.json", pose_json(scene, view))
    for name, content in contents.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in ("pose.json", *contents)]


def _figure(scene: HandScene, view: View) -> bytes:
    """Pictures, the spheres from the side, the pose in its usual ranges and the loss terms, drawn by matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    pictures = scene.pictures(view)
    figure = Figure(figsize=(3.0 * max(4, len(pictures)), 8.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2 * max(4, len(pictures)), height_ratios=(1, 1.6))
    for index, (title, image) in enumerate(pictures.items()):
        axes = figure.add_subplot(grid[0, 2 * index : 2 * index + 2])
        axes.imshow(image)
        axes.set(title=title, xticks=(), yticks=())  # with the frame: a crop's background is white like the page

    axes = figure.add_subplot(grid[1, :4])
    x, _, z = view.centers_mm.T
    order = np.argsort(view.centers_mm[:, 1])[::-1]
    for index in order:
        circle = {"radius": scene.hand.sphere_radius_mm[index] * view.size, "alpha": 0.6, "ec": "k", "lw": 0.5}
        circle["fc"] = finger_colors()[index] / 255
        axes.add_patch(Circle((x[index], z[index]), **circle))
    axes.set(xlim=(-150, 150), ylim=(150, -150), aspect="equal")
    axes.set_title("spheres seen along y: x right, z (away) down, mm")

    axes = figure.add_subplot(grid[1, 4:7])
    low, high = np.array(USUAL_RANGES).T
    unit = np.where(np.arange(POSE_SIZE) // 3 == 1, 20.0, 1.0)  # translations in units of 20 mm
    rows = np.arange(POSE_SIZE)
    axes.barh(rows, (high - low) / unit, left=low / unit, color="0.88", height=0.8, label="usual")
    axes.plot(view.pose / unit, rows, "o", ms=4)
    axes.set_yticks(rows, POSE_NAMES, fontsize=7)
    axes.invert_yaxis()
    axes.set_title("pose (rad; translation / 20 mm)")

    axes = figure.add_subplot(grid[1, 7:])
    axes.axis("off")
    lines = [f"{name}: {value:.4g}" for name, value in view.terms.items()]
    axes.text(0, 1, "\n".join([scene.hand.name, f"size {view.size:g}", "", *lines]), va="top", fontsize=9, wrap=True)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()
