"""Pictures of hands: skeletons over depth or colour images, 3-D views, panels and contact sheets.

Images are (H, W, 3) uint8 RGB arrays in and out; ``save`` writes them. Key points are pixels counted from 0, a whole
number is the centre of a pixel. Colours and bones come from ``shared.skeletons``; the look of the depth maps and the
3-D view (azimuth 62, elevation 7 degrees) is that of the drawings of V2V-PoseNet's authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import skeletons
from shared.errors import DataError
from shared.safe_io import atomic_path

if TYPE_CHECKING:
    from PIL import Image

RGB = NDArray[np.uint8]

_TINT = (1.0, 0.94, 0.8)
_SMOOTH = 4  # lines are drawn this much larger and then reduced
GREY = (150, 150, 150)


def _check_image(image: ArrayLike) -> RGB:
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise DataError(
            f"expected an image (H, W, 3) of uint8, got {array.shape} of {array.dtype}",
            remedy="depth maps go through depth_to_rgb first",
        )
    return array


def depth_to_rgb(
    depth_mm: ArrayLike,
    *,
    center_mm: float | None = None,
    cube_mm: float | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> RGB:
    """A depth map as a warm grey picture: near is dark, far is light, what is not measured is the far end.

    Args:
        depth_mm: (H, W) depths, mm.
        center_mm: depth of middle grey; by default the middle of the measured range (1 % cut off at both ends).
        cube_mm: depths from ``center - cube/2`` (black) to ``center + cube/2`` (white); by default the measured range.
        valid: (H, W) where there is a measurement; by default ``depth_mm > 0``.
    """
    depth = np.asarray(depth_mm, np.float64)
    if depth.ndim != 2:
        raise DataError(f"expected a depth map (H, W), got shape {depth.shape}")
    seen = np.isfinite(depth) & (depth > 0 if valid is None else valid)
    near, far = np.percentile(depth[seen], [1, 99]) if seen.any() else (0.0, 1.0)
    middle = (near + far) / 2 if center_mm is None else center_mm
    span = max(far - near, 1.0) if cube_mm is None else cube_mm
    grey = np.clip((np.where(seen, depth, np.inf) - middle) / span + 0.5, 0, 1)
    return np.asarray(np.rint(255 * grey[..., None] * np.array(_TINT)), np.uint8)


def crop_around(image: ArrayLike, keypoints: ArrayLike, margin: int = 70) -> tuple[RGB, tuple[int, int]]:
    """The part of an image around its key points plus ``margin`` pixels, and its (left, top) in the image.

    The crop ends at the image's border; at least one pixel is left, also when all key points lie outside.
    """
    array, points = _check_image(image), np.asarray(keypoints, np.float64)
    points = points[np.isfinite(points).all(-1)]
    if not len(points):
        return array, (0, 0)
    height, width = array.shape[:2]
    low = np.clip(np.floor(points.min(0)) - margin, 0, [width - 1, height - 1]).astype(int)
    high = np.maximum(np.clip(np.ceil(points.max(0)) + margin + 1, 1, [width, height]).astype(int), low + 1)
    return array[low[1] : high[1], low[0] : high[0]], (int(low[0]), int(low[1]))


def enlarge(image: ArrayLike, scale: float) -> RGB:
    """A resized copy; sharp pixels when enlarged by a whole number, smooth otherwise."""
    from PIL import Image

    array = _check_image(image)
    size = (max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale)))
    how = Image.Resampling.NEAREST if scale >= 1 and scale == int(scale) else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(array).resize(size, how))


def draw_skeleton(
    image: ArrayLike,
    keypoints: ArrayLike,
    skeleton: str,
    *,
    mask: NDArray[np.bool_] | None = None,
    scale: float = 1.0,
    width: float = 3.0,
    color: tuple[int, int, int] | None = None,
) -> RGB:
    """A copy of the image with bones and joints drawn over it, without stairs at the edges.

    Args:
        image: (H, W, 3) uint8.
        keypoints: (J, 2) pixels of ``image``, before ``scale``; may lie outside. NaN is skipped like a masked joint.
        skeleton: name of the joint order.
        mask: (J,) joints to draw; a bone is drawn if both its ends are.
        scale: enlarge the picture first (small depth crops look better at 2 or 3).
        width: of bones, in pixels of the result; joints are twice as wide.
        color: one colour for everything instead of the fingers' colours.

    Raises:
        DataError: image or key points of another shape, unknown skeleton.
    """
    from PIL import Image, ImageDraw

    bones = skeletons.get(skeleton)
    points = np.asarray(keypoints, np.float64)
    if points.shape != (len(bones), 2):
        raise DataError(f"expected key points ({len(bones)}, 2) in the {skeleton} order, got {points.shape}")
    base = Image.fromarray(enlarge(image, scale)).convert("RGBA")
    shown = np.asarray(np.isfinite(points).all(-1))
    if mask is not None:
        shown &= mask
    size = (base.width * _SMOOTH, base.height * _SMOOTH)
    # Far outside points are pulled in, Pillow would otherwise draw kilometres of line.
    large = np.clip((points + 0.5) * scale * _SMOOTH, -8 * max(size), 9 * max(size))
    colours = [color or c for c in bones.colors]
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    for extra, dark in ((1.2, True), (0.0, False)):  # a dark rim keeps light colours visible on light ground
        for parent, child in bones.edges:
            if shown[parent] and shown[child]:
                ends = [tuple(large[parent].tolist()), tuple(large[child].tolist())]
                fill = (40, 30, 20, 255) if dark else (*colours[child], 255)
                pen.line(ends, fill=fill, width=round((width + extra) * _SMOOTH))
        for joint in np.flatnonzero(shown):
            x, y = large[joint].tolist()
            r = (width + extra / 2) * _SMOOTH
            fill = (40, 30, 20, 255) if dark else (*colours[joint], 255)
            pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    layer = layer.resize(base.size, Image.Resampling.BOX)
    return np.asarray(Image.alpha_composite(base, layer).convert("RGB"))


def _with_title(image: RGB, title: str, width: int, height: int) -> Image.Image:
    """The image in the middle of a white panel of ``width`` x ``height`` below a line of text."""
    from PIL import Image, ImageDraw, ImageFont

    bar = 24 if title else 0
    panel = Image.new("RGB", (width, height + bar), "white")
    picture = Image.fromarray(image)
    panel.paste(picture, ((width - picture.width) // 2, bar + (height - picture.height) // 2))
    if title:
        font = ImageFont.load_default(15)
        while len(title) > 1 and font.getlength(title) > width - 4:
            title = title[:-2].rstrip() + "…"
        ImageDraw.Draw(panel).text((width / 2, 11), title, fill=(30, 30, 30), font=font, anchor="mm")
    return panel


def contact_sheet(
    images: Sequence[ArrayLike], columns: int, titles: Sequence[str] | None = None, *, gap: int = 8
) -> RGB:
    """Images in rows of ``columns`` on white, each under its title, all cells as large as the largest image.

    Raises:
        DataError: no images, or another number of titles.
    """
    from PIL import Image

    arrays = [_check_image(i) for i in images]
    if not arrays or columns < 1 or (titles is not None and len(titles) != len(arrays)):
        wrong = "no images" if not arrays else f"{columns} columns, {len(titles or [])} titles for {len(arrays)} images"
        raise DataError(f"cannot make a contact sheet: {wrong}")
    width, height = max(a.shape[1] for a in arrays), max(a.shape[0] for a in arrays)
    names = list(titles) if titles is not None else [""] * len(arrays)
    full = height + (24 if any(names) else 0)
    rows = -(-len(arrays) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (full + gap) + gap), "white")
    for i, (array, name) in enumerate(zip(arrays, names, strict=True)):
        panel = _with_title(array, name, width, height)
        sheet.paste(panel, (gap + i % columns * (width + gap), gap + i // columns * (full + gap) + full - panel.height))
    return np.asarray(sheet)


def side_by_side(images: Sequence[ArrayLike], titles: Sequence[str] | None = None, *, gap: int = 8) -> RGB:
    """Images in one row on white, scaled to the height of the tallest, each under its title.

    Raises:
        DataError: no images, or another number of titles.
    """
    arrays = [_check_image(i) for i in images]
    if not arrays or (titles is not None and len(titles) != len(arrays)):
        raise DataError(f"expected images and a title for each, got {len(arrays)} and {len(titles or [])} titles")
    tallest = max(a.shape[0] for a in arrays)
    resized = [a if a.shape[0] == tallest else enlarge(a, tallest / a.shape[0]) for a in arrays]
    names = list(titles) if titles is not None else [""] * len(arrays)
    if any(names):
        names = [name or " " for name in names]  # one height for all
    panels = [np.asarray(_with_title(a, n, a.shape[1], tallest)) for a, n in zip(resized, names, strict=True)]
    space = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (space, panel)][1:], axis=1)


def skeleton_3d(
    hands_mm: Sequence[ArrayLike],
    skeleton: str,
    *,
    size: tuple[int, int] = (380, 380),
    azimuth_deg: float = 62.0,
    elevation_deg: float = 7.0,
    colors: Sequence[tuple[int, int, int] | None] | None = None,
    masks: Sequence[NDArray[np.bool_] | None] | None = None,
) -> RGB:
    """One or more skeletons in a 3-D box seen obliquely from the camera's side.

    Args:
        hands_mm: each (J, 3), mm, OpenCV axes; drawn in order, so the last lies on top.
        skeleton: name of the joint order.
        size: (width, height) of the picture, pixels.
        azimuth_deg, elevation_deg: direction of the view as MATLAB counts it (azimuth 0 looks along +y of the plot);
            the plot's axes are (-z, x, -y), so that up is up.
        colors: one colour for a whole hand, None for the fingers' colours; for two hands the first is grey by default.
        masks: (J,) joints to draw, one per hand.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bones = skeletons.get(skeleton)
    hands = [np.asarray(h, np.float64) for h in hands_mm]
    for hand in hands:
        if hand.shape != (len(bones), 3):
            raise DataError(f"expected joints ({len(bones)}, 3) in the {skeleton} order, got {hand.shape}")
    if not hands:
        raise DataError("no hand to draw")
    paint = list(colors) if colors is not None else [GREY] * (len(hands) - 1) + [None]
    shown = [np.asarray(np.isfinite(h).all(-1)) for h in hands]
    if masks is not None:
        shown = [s if m is None else s & m for s, m in zip(shown, masks, strict=True)]
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0.0, 0.02, 0.93, 0.98), projection="3d")
    for hand, colour, seen in zip(hands, paint, shown, strict=True):
        x, y, z = -hand[:, 2], hand[:, 0], -hand[:, 1]
        rgb = np.array([colour or c for c in bones.colors]) / 255
        thick = 1.6 if colour else 2.6
        for parent, child in bones.edges:
            if seen[parent] and seen[child]:
                ends = [parent, child]
                axes.plot(x[ends], y[ends], z[ends], color=rgb[child], linewidth=thick, solid_capstyle="round")
        axes.scatter(x[seen], y[seen], z[seen], c=rgb[seen], s=8 if colour else 16, depthshade=False)
    all_points = np.concatenate([h[s] for h, s in zip(hands, shown, strict=True)])
    if len(all_points):
        middle = (all_points.min(0) + all_points.max(0)) / 2
        half = max(float(np.ptp(all_points, 0).max()) / 2 * 1.05, 10.0)
        axes.set_xlim(-middle[2] - half, -middle[2] + half)
        axes.set_ylim(middle[0] - half, middle[0] + half)
        axes.set_zlim(-middle[1] - half, -middle[1] + half)
    axes.set_box_aspect((1, 1, 1), zoom=1.05)
    axes.view_init(elev=elevation_deg, azim=azimuth_deg - 90)  # Matplotlib counts from +x, MATLAB from -y
    for axis, name in ((axes.xaxis, "-z"), (axes.yaxis, "x"), (axes.zaxis, "-y")):
        axis.set_label_text(f"{name} (mm)", fontsize=7)
        axis.labelpad = -8
        axis.set_tick_params(labelsize=6, pad=-3)
        axis.set_major_locator(_ticks())
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5)


def save(path: str | Path, image: ArrayLike) -> None:
    """Writes a PNG; the file is complete or untouched."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(_check_image(image)).save(temporary, format="PNG")


def png_bytes(image: ArrayLike) -> bytes:
    """The image as the bytes of a PNG file."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(_check_image(image)).save(out, format="PNG", optimize=True)
    return out.getvalue()
