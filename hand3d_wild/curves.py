"""PCK curves: ours, the published figures, and the authors' curve files where a user has them.

``published.json`` holds facts read off the published curves (their repository's folder PCK, figures 4 to 8): areas,
and the share of joints within a few thresholds. The curves themselves are under a non-commercial licence and are not
here; :func:`read_curve` reads a user's copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataError

Float = NDArray[np.float64]
PUBLISHED = Path(__file__).with_name("published.json")
FOLDERS = {"stb": "stereo", "dexter_object": "dexter+object", "egodexter": "egodexter", "mpii_nzsl": "mpii+nzsl"}
RANGES = {"mm": ((20, 50), (0, 50)), "px": ((0, 30),)}


def published(dataset: str) -> dict[str, dict[str, Any]]:
    """method -> ``label``, ``pck_at`` (threshold -> share), ``auc`` ("20-50" -> area), ``from`` and ``to``."""
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {
        name: {**curve, "pck_at": {float(t): share for t, share in curve["pck_at"].items()}}
        for name, curve in content.get(dataset, {}).items()
    }


def pck(errors: ArrayLike, thresholds: ArrayLike) -> Float:
    """Share of all labelled joints (NaN: none) within each threshold, pooled over joints and pictures."""
    values = np.sort(np.asarray(errors, np.float64).ravel())
    values = values[~np.isnan(values)]
    if not len(values):
        raise DataError("no labelled joint to score")
    return np.asarray(np.searchsorted(values, np.asarray(thresholds, np.float64), side="right") / len(values))


def areas(errors: ArrayLike, low: float, high: float) -> dict[str, float]:
    """Area under the pooled PCK curve at whole thresholds: trapezoid over the range, and the plain mean of the samples
    (papers quote either: 0.763 on Dexter+Object is the plain mean, 0.674 on EgoDexter the trapezoid)."""
    thresholds = np.arange(low, high + 1)
    curve = pck(errors, thresholds)
    return {"trapezoid": float(np.trapezoid(curve, thresholds) / (high - low)), "mean": float(curve.mean())}


def write_curve(path: Path, curve: Float) -> None:
    """The authors' one-column format: the value at 0, 1, 2, ..."""
    from shared.safe_io import atomic_write_text

    atomic_write_text(path, "".join(f"{value:.6f}\n" for value in curve))


def read_curve(path: Path) -> tuple[Float, Float]:
    """(thresholds, values) of a curve file: one column (row number is the threshold), two, or three (the third counts).

    Columns are separated by blanks, tabs, commas or semicolons.

    Raises:
        DataError: a line that is not one to three numbers, lines of different length, an empty or huge file.
    """
    from shared.datasets.labels import read_text

    rows = [line for line in read_text(path, max_bytes=2**20).splitlines() if line.strip()]
    try:
        table = np.array([[float(word) for word in re.split(r"[\s,;]+", row.strip(" \t;"))] for row in rows])
    except ValueError:
        table = np.empty((0, 0))
    if table.ndim != 2 or table.shape[1] not in (1, 2, 3) or not np.isfinite(table).all():
        raise DataError("expected lines of one to three numbers, the same on each line", path=path)
    if table.shape[1] == 1:
        return np.arange(len(table), dtype=np.float64), table[:, 0]
    return table[:, 0], table[:, -1]


def published_lines(dataset: str, folder: str) -> dict[str, tuple[Float, Float]]:
    """Label -> (thresholds, values) of the authors' curve files for a data set; {} without a folder.

    Raises:
        DataError: a folder without any of them, or a file that is no curve.
    """
    if not folder or dataset not in FOLDERS:
        return {}
    place = Path(folder) / FOLDERS[dataset]
    place = place if place.is_dir() else Path(folder)
    known = published(dataset)
    found: dict[str, tuple[Float, Float]] = {}
    for file in sorted(p for p in place.glob("*") if p.is_file()):
        name = file.stem if file.suffix == ".txt" else file.name
        if name in known:
            found[known[name]["label"]] = read_curve(file)
    if not found:
        raise DataError(
            f"none of the curve files {', '.join(known)} is here", path=place, remedy="give the repository's folder PCK"
        )
    return found


def plot(
    path: Path, ours: Mapping[str, Float], dataset: str, *, unit: str = "mm", lines: Mapping[str, Any] | None = None
) -> None:
    """PNG of our curves (name -> errors) over the published ones: lines where we have them, else points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from shared.safe_io import atomic_path

    figure = Figure(figsize=(7.2, 4.8), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.grid(True, color="#e3e3e3", linewidth=0.8)
    last = 50 if unit == "mm" else 30
    thresholds = np.linspace(0, last, 2 * last + 1)
    colours = ("#0b6fa4", "#d1495b", "#3a9d5d")
    for i, (name, errors) in enumerate(ours.items()):
        axes.plot(thresholds, pck(errors, thresholds), color=colours[i % 3], linewidth=2.4, label=name)
    markers = "os^Dv<>Ph*Xdp"
    greys = np.linspace(0.25, 0.75, max(1, len(published(dataset))))
    for i, curve in enumerate(published(dataset).values()):
        label, shade = f"{curve['label']} (published)", str(greys[i])
        if lines and curve["label"] in lines:
            axes.plot(*lines[curve["label"]], color=shade, linewidth=1.1, label=label)
        elif not lines:
            at = curve["pck_at"]
            axes.plot(list(at), list(at.values()), markers[i % 13], color=shade, markersize=5, label=label)
    axes.set(xlim=(0, last), ylim=(0, 1), xlabel=f"error threshold ({unit})", ylabel="share of joints within (PCK)")
    axes.legend(frameon=False, fontsize=7, loc="lower right", ncols=2)
    with atomic_path(path) as temporary:
        canvas.print_png(str(temporary))


def table(dataset: str, ours: Mapping[str, Float], unit: str) -> tuple[list[str], list[Sequence[object]]]:
    """Header and rows: areas of ours (both conventions) and of the published curves (trapezoid)."""
    ranges = RANGES[unit]
    header = ["", *(f"AUC {a}-{b} {unit}" for a, b in ranges), *(f"{a}-{b}, plain mean" for a, b in ranges)]
    rows: list[Sequence[object]] = []
    for name, errors in ours.items():
        both = [areas(errors, a, b) for a, b in ranges]
        rows.append([name, *(f"{x['trapezoid']:.4f}" for x in both), *(f"{x['mean']:.4f}" for x in both)])
    for curve in published(dataset).values():
        found = [curve["auc"].get(f"{a}-{b}") for a, b in ranges]
        rows.append(
            [f"{curve['label']} (published)", *(f"{x:.4f}" if x else "-" for x in found), *("-" for _ in ranges)]
        )
    return header, rows
