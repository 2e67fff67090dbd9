"""One HTML page about a run: what was set, how good it is, and what the best and the worst frames look like.

The page is a single file: styles inside, pictures as base64 PNG, no script, nothing from the network. Every text is
escaped. The pictures are also written beside it. ``plot_*`` make the two usual figures for any number of methods.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import camera, draw, metrics, skeletons
from shared.errors import DataError
from shared.safe_io import atomic_path, atomic_write_text

Array = NDArray[np.float64]
Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]  # title, header, rows
Frames = Callable[[int], tuple[NDArray[Any], ArrayLike]]

THRESHOLDS_MM = (10, 20, 30, 40, 50)
_COLOURS = ("#0b6fa4", "#d1495b", "#3a9d5d", "#e08e0b", "#6f4e9c", "#6b7280", "#008b8b", "#a0522d")


def _axes(width: float, height: float) -> tuple[Any, Any, Any]:
    """A figure, its canvas and axes in our look, without touching Matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, canvas, axes


def _write(canvas: Any, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        canvas.print_png(str(temporary))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # Matplotlib would read formulas


def _check_errors(errors: Mapping[str, Array]) -> None:
    if not errors:
        raise DataError("nothing to plot: no errors were given")
    widths = {e.shape[1] for e in errors.values()}
    if len(widths) > 1:
        raise DataError(f"the methods have different numbers of joints: {sorted(widths)}")


def plot_success_rates(errors: Mapping[str, Array], path: str | Path, *, unit: str = "mm") -> None:
    """Share of frames whose worst joint is within a distance of 0..80 mm (0..30 px), a curve per method, as PNG.

    Args:
        errors: method name -> (N, J) errors.
        path: of the PNG.
        unit: "mm" or "px".
    """
    _check_errors(errors)
    thresholds = np.linspace(0, 80 if unit == "mm" else 30, 161)
    _, canvas, axes = _axes(6.2, 4.2)
    for i, (name, e) in enumerate(errors.items()):
        label = f"{_plain(name)} (mean {metrics.mean_error(e):.2f} {unit})"
        style = "-" if i < len(_COLOURS) else "--"
        rate = 100 * metrics.success_rate(e, thresholds)
        axes.plot(thresholds, rate, style, color=_COLOURS[i % len(_COLOURS)], linewidth=2, label=label)
    axes.set(xlim=(0, thresholds[-1]), ylim=(0, 100))
    axes.set_xlabel(f"distance to the ground truth ({unit})")
    axes.set_ylabel("frames with every joint within (%)")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _write(canvas, path)


def plot_per_joint(errors: Mapping[str, Array], skeleton: str, path: str | Path, *, unit: str = "mm") -> None:
    """Mean error of each joint and of all, a bar per method, as PNG; arguments as :func:`plot_success_rates`."""
    _check_errors(errors)
    joints = skeletons.get(skeleton).joints
    if next(iter(errors.values())).shape[1] != len(joints):
        found = next(iter(errors.values())).shape[1]
        raise DataError(f"the {skeleton} order has {len(joints)} joints, the errors {found}")
    places = np.arange(len(joints) + 1) + 0.0
    places[-1] += 0.5  # the mean stands apart
    _, canvas, axes = _axes(max(6.2, 0.42 * len(places) + 0.1 * len(errors) * len(places)), 4.2)
    width = 0.8 / len(errors)
    for i, (name, e) in enumerate(errors.items()):
        heights = np.append(metrics.per_joint_error(e), metrics.mean_error(e))
        shift = (i - (len(errors) - 1) / 2) * width
        axes.bar(places + shift, heights, width * 0.92, color=_COLOURS[i % len(_COLOURS)], label=_plain(name))
    axes.set_xticks(places, [*(j.replace("_", " ") for j in joints), "mean"], rotation=60, ha="right", fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    axes.set_ylabel(f"mean error ({unit})")
    if len(errors) > 1:
        axes.margins(y=0.12)
        axes.legend(frameon=False, fontsize=8, ncols=min(4, len(errors)), loc="upper right")
    _write(canvas, path)


def plot_joint_accuracy(e: Array, skeleton: str, path: str | Path) -> None:
    """A curve per joint, as PNG: share of frames whose error of it is below 0..100 mm (strictly, 100 values)."""
    bones = skeletons.get(skeleton)
    if e.shape[1] != len(bones):
        raise DataError(f"the {skeleton} order has {len(bones)} joints, the errors {e.shape[1]}")
    distances = np.linspace(0, 100, 100)
    _, canvas, axes = _axes(8.0, 4.6)
    for joint, (name, rate) in enumerate(zip(bones.joints, metrics.accuracy(e, distances), strict=True)):
        colour = tuple(c / 255 for c in bones.colors[joint])
        axes.plot(distances, 100 * rate, color=colour, linewidth=1.4, label=name.replace("_", " "))
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.set_xlabel("maximum allowed distance to the ground truth (mm)")
    axes.set_ylabel("frames within (%)")
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _write(canvas, path)


def example_frames(e: Array) -> dict[str, int]:
    """Indices of the best, the median, the 90th percentile and the worst frame by mean error (NaN frames left out)."""
    error = metrics.frame_error(e, "mean")
    ranked = np.argsort(error, kind="stable")[: int((~np.isnan(error)).sum())]
    if not len(ranked):
        return {}
    last = len(ranked) - 1
    places = {"best": 0, "median": last // 2, "90th percentile": round(0.9 * last), "worst": last}
    return {name: int(ranked[i]) for name, i in places.items()}


def frame_picture(
    image: NDArray[Any],
    K: ArrayLike,
    gt_mm: Array,
    pred_mm: Array,
    skeleton: str,
    *,
    mask: NDArray[np.bool_] | None = None,
    title: str = "",
) -> draw.RGB:
    """Three panels: ground truth on the image, prediction on the image, both in 3-D (ground truth grey).

    Args:
        image: (H, W) depth in mm, or (H, W, 3) uint8.
        K: (3, 3) of that image, pixels.
        gt_mm, pred_mm: (J, 3) camera frame, mm.
        skeleton: name of the joint order.
        mask: (J,) joints that have a label.
        title: in front of the panel names.
    """
    known = np.ones(len(gt_mm), np.bool_) if mask is None else mask
    if image.ndim == 2:
        z = gt_mm[known, 2]
        span = max(200.0, float(np.ptp(z)) * 1.3)
        picture = draw.depth_to_rgb(image, center_mm=float((z.min() + z.max()) / 2), cube_mm=span)
    else:
        picture = image
    pixels = []
    for joints in (gt_mm, pred_mm):
        front = joints[:, 2] > 1.0  # a prediction behind the camera has no pixel
        uv = np.full((len(joints), 2), np.nan)
        uv[front] = camera.project(joints[front], K)
        pixels.append(uv)
    crop, (left, top) = draw.crop_around(picture, pixels[0][known], margin=max(20, picture.shape[1] // 16))
    scale = max(1.0, 380 / max(crop.shape[:2]))
    panels = [
        draw.draw_skeleton(crop, uv - [left, top], skeleton, scale=scale, mask=m)
        for uv, m in zip(pixels, (known, None), strict=True)
    ]
    panels.append(draw.skeleton_3d([gt_mm, pred_mm], skeleton, masks=[known, None]))
    names = [f"{title}: ground truth" if title else "ground truth", "prediction", "both (ground truth grey)"]
    return draw.side_by_side(panels, names)


_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;background:#f4f5f7;margin:0}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;margin:8px 0 2px}h2{font-size:18px;margin:0 0 12px}
section{background:#fff;border:1px solid #e1e4e8;border-radius:8px;padding:18px 20px;margin:18px 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:4px 12px;border-bottom:1px solid #eceff1;text-align:right}
th:first-child,td:first-child{text-align:left}th{color:#52606d;font-weight:600}
tr.best td{font-weight:600}
.scroll{overflow-x:auto}.side{display:flex;flex-wrap:wrap;gap:18px}.side>*{flex:1 1 420px;min-width:0}
img{max-width:100%;height:auto;display:block}figure{margin:0 0 18px}figcaption{color:#52606d;font-size:13px}
td.text{text-align:left;overflow-wrap:anywhere}p{margin:6px 0}.quiet{color:#52606d}
"""


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], text: bool = False) -> str:
    kind = ' class="text"' if text else ""
    head = "".join(f"<th>{html.escape(str(h))}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td{kind}>{html.escape(_cell(c))}</td>" for c in row) + "</tr>\n" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.2f}"
    return str(value)


def _image(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", repr(value) if isinstance(value, float) else str(value)))
    return rows


def write_report(
    path: str | Path,
    *,
    title: str,
    config: Mapping[str, Any],
    gt_mm: ArrayLike,
    pred_mm: ArrayLike,
    skeleton: str,
    baseline_mm: ArrayLike | None = None,
    mask: NDArray[np.bool_] | None = None,
    frames: Frames | None = None,
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Writes the page at ``path`` and its pictures ``<stem>_*.png`` beside it.

    Args:
        path: of the HTML file.
        title: heading.
        config: the run's options; nested mappings become ``group.name``.
        gt_mm, pred_mm: (N, J, 3), one camera frame, mm.
        skeleton: name of the joint order.
        baseline_mm: (N, J, 3) or anything that broadcasts to it: what the mean pose of the training set would score.
        mask: (N, J) joints that have a label.
        frames: index -> (image, K): (H, W) depth mm or (H, W, 3) uint8, and the (3, 3) matrix of that image. Called
            for the few frames that are shown only.
        tables: further tables, (title, header, rows).
        notes: paragraphs under the heading (data, checkpoint, what the numbers do not cover).

    Returns:
        The path of the page.

    Raises:
        DataError: shapes, or predictions that are not finite.
    """
    path = Path(path)
    gt, pred = np.asarray(gt_mm, np.float64), np.asarray(pred_mm, np.float64)
    joints = skeletons.get(skeleton).joints
    if gt.ndim != 3 or gt.shape[1:] != (len(joints), 3) or not len(gt):
        raise DataError(f"expected ground truth (N, {len(joints)}, 3) in the {skeleton} order, got {gt.shape}")
    errors = {"prediction": metrics.joint_errors(pred, gt, mask)}
    if baseline_mm is not None:
        errors["mean pose"] = metrics.joint_errors(np.broadcast_to(np.asarray(baseline_mm), gt.shape), gt, mask)
    e = errors["prediction"]

    def picture(name: str) -> Path:
        return path.with_name(f"{path.stem}_{name}.png")

    plot_success_rates(errors, picture("success_rate"))
    plot_per_joint(errors, skeleton, picture("per_joint"))
    header = ["", "mean (mm)", "median", "mean of worst joint", *(f"≤ {t} mm (%)" for t in THRESHOLDS_MM)]
    rows = [
        [
            name,
            metrics.mean_error(x),
            metrics.median_error(x),
            float(np.nanmean(metrics.frame_error(x, "max"))),
            *(100 * metrics.success_rate(x, THRESHOLDS_MM)),
        ]
        for name, x in errors.items()
    ]
    per_joint = [[joint, *(metrics.per_joint_error(x)[j] for x in errors.values())] for j, joint in enumerate(joints)]
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="quiet">{len(gt):,} frames, {len(joints)} joints</p>']
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    parts.append(
        "<section><h2>Errors</h2>"
        + _table(header, rows)
        + '<p class="quiet">Camera frame. ≤ t: share of frames whose worst joint is within t.</p></section>'
    )
    parts.append(
        '<section><div class="side">'
        + _image(picture("success_rate"), "Frames whose worst joint is within a distance")
        + _image(picture("per_joint"), "Mean error of each joint")
        + "</div></section>"
    )
    examples = example_frames(e)
    if frames is not None and examples:
        shown = []
        frame_mean = metrics.frame_error(e, "mean")
        for name, index in examples.items():
            image, K = frames(index)
            m = None if mask is None else mask[index]
            panels = frame_picture(np.asarray(image), K, gt[index], pred[index], skeleton, mask=m, title=name)
            target = picture("frame_" + name.replace(" ", "_"))
            draw.save(target, panels)
            shown.append(_image(target, f"{name}: frame {index}, mean error {frame_mean[index]:.2f} mm"))
        parts.append("<section><h2>Frames</h2>" + "".join(shown) + "</section>")
    parts.append("<section><h2>Mean error per joint (mm)</h2>" + _table(["joint", *errors], per_joint) + "</section>")
    for name, head, body in tables:
        parts.append(f"<section><h2>{html.escape(name)}</h2>{_table(head, body)}</section>")
    parts.append("<section><h2>Configuration</h2>" + _table([], _flat(config), text=True) + "</section>")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
    atomic_write_text(path, page)
    return path
