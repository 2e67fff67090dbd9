"""Scores prediction files, ours or other people's: ``python -m shared.score --help``.

Everything that is printed or written to JSON comes from :mod:`shared.metrics` under a named protocol
(:mod:`shared.protocols`). Lengths are millimetres unless the protocol is in pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import DataError, MissingFileError, exit_on_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from shared.protocols import Protocol

THRESHOLDS = (10, 20, 30, 40, 50, 60, 70, 80)
_PRINTED = 5  # thresholds in the printed table; the JSON has all


@dataclass
class Options:
    """Options of the scoring program.

    Args:
        protocol: name of a protocol; --dataset is another name of this option
        ground_truth: labels: text rows, for DexYCB result lines, for HO-3D and FreiHAND the folder of
            evaluation_xyz.json and evaluation_verts.json
        format: what the numbers of the prediction rows are: u v d (pixels, pixels, mm), x y z (mm, y down), x y z with
            y up; auto takes the protocol's own unless another fits the ground truth far better, and says so
        ground_truth_format: the same for the ground truth; auto is the protocol's own
        joint_order: comma-separated column of the file for each joint, for files in another joint order
        rows: first:last of the ground truth's rows to score, counted from 0, last excluded (702 and more: 702:)
        json: file to write all results to
        plot: folder to write success_rate.png and per_joint.png to
        list_protocols: print the protocols and leave
        predictions: prediction files; the flag may be left out
        names: their names in tables and figures, in order
    """

    protocol: str | None = None
    ground_truth: str | None = None
    format: Literal["auto", "uvd", "xyz", "xyz-y-up"] = "auto"
    ground_truth_format: Literal["auto", "uvd", "xyz", "xyz-y-up"] = "auto"
    joint_order: str | None = None
    rows: str | None = None
    json: str | None = None
    plot: str | None = None
    list_protocols: bool = False
    predictions: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


@dataclass
class Result:
    """Scores of one file.

    Attributes:
        name: as shown.
        path: of the file.
        format: how its numbers were read.
        errors: (N, J) errors after the protocol's first alignment, NaN where the ground truth has no label.
        scores: everything else, as written to JSON.
    """

    name: str
    path: str
    format: str
    errors: NDArray[np.float64]
    scores: dict[str, Any]


# ------------------------------------------------------------------------------------------------------- scoring


def score_arrays(
    pred: NDArray[np.float64], gt: NDArray[np.float64], protocol: Protocol, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Errors (N, J) after the headline alignment, and all scores of a protocol as JSON-ready numbers.

    Args:
        pred, gt: (N, J, D) in the protocol's joint order and ``unit``, one frame.
        mask: (N, J) joints that have a label; all by default.

    Raises:
        DataError: shapes, values that are not finite, or a mask under an alignment that needs every joint.
    """
    import numpy as np

    from shared import metrics

    unit = protocol.unit
    if mask is not None and not mask.all():
        if protocol.alignments not in (("none",), ("root",)):
            raise DataError(f"{protocol.name} aligns whole hands, but {int((~mask).sum())} joints have no label")
        if protocol.alignments == ("root",) and not mask[:, protocol.root].all():
            frame = int((~mask[:, protocol.root]).argmax())
            raise DataError(f"frame {frame} has no label for joint {protocol.root}, to which errors are relative")
        gt = np.where(mask[..., None], gt, 0.0)
    by_alignment, first = {}, None
    for alignment in protocol.alignments:
        e = metrics.joint_errors(*metrics.ALIGNMENTS[alignment](pred, gt, protocol.root), mask)
        first = e if first is None else first
        area = metrics.auc(e, *metrics.AUC_GRIDS[protocol.grid])
        by_alignment[alignment] = {f"mean_error_{unit}": metrics.mean_error(e), "auc": area}
    assert first is not None
    e = first
    rates = {
        kind: dict(zip(map(str, THRESHOLDS), metrics.success_rate(e, THRESHOLDS, kind).tolist(), strict=True))
        for kind in ("max", "mean", "joint")
    }
    scores: dict[str, Any] = {
        "frames": len(e),
        f"mean_error_{unit}": metrics.mean_error(e),
        f"median_error_{unit}": metrics.median_error(e),
        f"mean_of_frame_max_{unit}": float(np.nanmean(metrics.frame_error(e, "max"))),
        f"max_error_{unit}": float(np.nanmax(e)),
        f"per_joint_error_{unit}": metrics.per_joint_error(e).tolist(),
        "success_rate": rates["max"],
        "success_rate_mean_joint": rates["mean"],
        "success_rate_all_joints": rates["joint"],
        "auc": by_alignment[protocol.alignments[0]]["auc"],
        "auc_by_grid": {
            name: metrics.auc(e, *grid) for name, grid in metrics.AUC_GRIDS.items() if ("px" in name) == (unit == "px")
        },
        "alignments": by_alignment,
    }
    if protocol.below:
        scores["map"], per_joint = metrics.itop_map(e, protocol.below)
        scores["ap_per_joint"] = per_joint.tolist()
    return e, scores


def _to_space(values: NDArray[np.float64], form: str, protocol: Protocol) -> NDArray[np.float64]:
    """Rows as the file has them -> millimetres in OpenCV axes (or pixels)."""
    from shared import camera

    if form == "uv":
        return values
    if form == "uvd":
        if protocol.camera is None:
            raise DataError(f"{protocol.name} has no camera to convert u v d with", remedy="give x y z in millimetres")
        depth_mm = values * [1.0, 1.0, protocol.to_mm]
        return camera.uvd_to_xyz(depth_mm, camera.intrinsics(*protocol.camera), check_depth=False)
    xyz_mm = values * protocol.to_mm
    return camera.flip_y(xyz_mm) if form == "xyz-y-up" else xyz_mm


def _pick_format(values: NDArray[np.float64], gt: NDArray[np.float64], protocol: Protocol) -> str:
    """The protocol's own format, unless the median error under another one is less than half as large.

    Pixels read as millimetres, or y upside down, cost 50 mm and more, so a usable file is never mistaken.
    """
    import numpy as np

    if protocol.format == "uv":
        return "uv"
    forms = [protocol.format, *(f for f in ("uvd", "xyz", "xyz-y-up") if f != protocol.format)]
    error = {
        form: float(np.nanmedian(np.linalg.norm(_to_space(values, form, protocol) - gt, axis=-1)))
        for form in forms
        if form != "uvd" or protocol.camera is not None
    }
    best = min(error, key=lambda form: error[form])
    return best if error[best] < 0.5 * error[protocol.format] else protocol.format


def _rows(text: str | None, n: int) -> slice:
    if text is None:
        return slice(0, n)
    first, colon, last = text.partition(":")
    try:
        chosen = slice(int(first or 0), int(last) if last else n)
    except ValueError:
        chosen = slice(0, 0)
    if not colon or not 0 <= chosen.start < chosen.stop <= n:
        raise DataError(f"--rows {text}: expected first:last within 0:{n}", remedy="for example 0:702")
    return chosen


def _order(text: str | None, joints: int) -> list[int]:
    if text is None:
        return list(range(joints))
    words = text.split(",")
    order = [int(w) if w.strip().isdecimal() else -1 for w in words]
    if sorted(order) != list(range(joints)):
        raise DataError(f"--joint-order {text}: expected each of 0..{joints - 1} once, comma separated")
    return order


def _mismatch(path: Path, found: int, wanted: int, gt_path: Path) -> DataError:
    return DataError(
        f"{found} rows, but the ground truth {gt_path} has {wanted}",
        path=path,
        remedy="is this another test set, or one sequence of it? --rows first:last scores a part of the ground truth",
    )


def _score_text(protocol: Protocol, options: Options, gt_path: Path, paths: list[Path]) -> list[Result]:
    import numpy as np

    from shared import skeletons
    from shared.predictions import read_rows

    joints = len(skeletons.get(protocol.skeleton))
    labels = read_rows(gt_path, joints, protocol.dims, finite=False)
    mask = np.asarray(np.isfinite(labels.values).all(-1))
    gt_form = protocol.format if options.ground_truth_format == "auto" else options.ground_truth_format
    gt = _to_space(labels.values, gt_form, protocol)
    part, order = _rows(options.rows, len(gt)), _order(options.joint_order, joints)
    results = []
    for path in paths:
        # The bound leaves room for files of a larger set, so that the message can name their true number of rows.
        rows = read_rows(path, joints, protocol.dims, max_rows=len(gt) + 80_000).values
        wanted = part.stop - part.start
        if len(rows) == len(gt):
            rows = rows[part]
        elif len(rows) != wanted:
            raise _mismatch(path, len(rows), wanted if options.rows else len(gt), gt_path)
        rows = rows[:, order]
        form = options.format if options.format != "auto" else _pick_format(rows, gt[part], protocol)
        errors, scores = score_arrays(_to_space(rows, form, protocol), gt[part], protocol, mask[part])
        results.append(Result("", str(path), form, errors, scores))
    return results


def _score_dexycb(protocol: Protocol, gt_path: Path, paths: list[Path]) -> list[Result]:
    import numpy as np

    from shared.predictions import read_dexycb

    index, gt = read_dexycb(gt_path)
    labelled = (gt != -1).any((1, 2))  # the data set's mark for frames without a hand label
    index, gt = index[labelled], gt[labelled]
    if not len(index):
        raise DataError("every frame is marked -1: nothing to score", path=gt_path)
    results = []
    for path in paths:
        found, pred = read_dexycb(path, max_rows=len(labelled) + 80_000)
        where = {frame: row for row, frame in enumerate(found.tolist())}
        missing = [frame for frame in index.tolist() if frame not in where]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(index)} frames are missing, first {missing[0]} ({len(found)} rows came)",
                path=path,
                remedy="every labelled frame of the split has to be there",
            )
        rows = pred[np.array([where[frame] for frame in index.tolist()])]
        errors, scores = score_arrays(rows, gt, protocol)
        results.append(Result("", str(path), "xyz", errors, scores))
    return results


def _score_meshes(protocol: Protocol, gt_path: Path, paths: list[Path]) -> list[Result]:
    from shared import metrics
    from shared.predictions import Axes, read_mesh_json, read_points_json

    axes: Axes = "opengl" if protocol.files == "ho3d" else "opencv"
    folder = gt_path if gt_path.is_dir() else gt_path.parent
    xyz_path = folder / "evaluation_xyz.json" if gt_path.is_dir() else gt_path
    verts_path = folder / "evaluation_verts.json"
    gt = read_points_json(xyz_path, 21, axes)
    gt_verts = read_points_json(verts_path, metrics.MESH_VERTICES, axes)
    if len(gt) != len(gt_verts):
        raise DataError(f"{len(gt_verts)} meshes, but {xyz_path} has {len(gt)} frames", path=verts_path)
    results = []
    for path in paths:
        pred, verts = read_mesh_json(path, axes, frames=2 * len(gt) + 1000)
        if len(pred) != len(gt):
            raise _mismatch(path, len(pred), len(gt), xyz_path)
        errors, scores = score_arrays(pred, gt, protocol)
        official = metrics.ho3d_scores(pred, gt, verts, gt_verts, scale_translation=protocol.files == "ho3d")
        results.append(Result("", str(path), "json", errors, scores | {"official": official}))
    return results


def score_files(options: Options) -> tuple[Protocol, list[Result]]:
    """Scores every file of ``options.predictions`` against ``options.ground_truth``.

    Raises:
        MissingFileError: a file that is not there.
        DataError: options that do not fit together, or a file that cannot be used (see the readers).
    """
    from shared import protocols

    if options.protocol is None:
        raise DataError("--protocol (or --dataset) is missing", remedy="--list-protocols shows them")
    protocol = protocols.get(options.protocol)
    if not options.predictions:
        raise DataError("no prediction file was given", remedy="--predictions FILE, and more files after the options")
    if options.ground_truth is None:
        raise DataError("--ground-truth is missing", remedy=f"{protocol.name}: {protocol.about}")
    if options.names and len(options.names) != len(options.predictions):
        raise DataError(f"{len(options.names)} --names for {len(options.predictions)} prediction files")
    if protocol.files != "text":
        unused = [n for n in ("joint_order", "rows") if getattr(options, n) is not None]
        unused += [n for n in ("format", "ground_truth_format") if getattr(options, n) != "auto"]
        if unused:
            raise DataError(f"--{unused[0].replace('_', '-')} is for text rows; {protocol.name} has none")
    gt_path, paths = Path(options.ground_truth), [Path(p) for p in options.predictions]
    for path in (gt_path, *paths):
        if not path.exists():
            raise MissingFileError("there is no such file", path=path)
    if protocol.files == "text":
        results = _score_text(protocol, options, gt_path, paths)
    elif protocol.files == "dexycb":
        results = _score_dexycb(protocol, gt_path, paths)
    else:
        results = _score_meshes(protocol, gt_path, paths)
    names = options.names or _short_names(paths)
    for result, name in zip(results, names, strict=True):
        result.name = name
    return protocol, results


def _short_names(paths: list[Path]) -> list[str]:
    """File names without suffix; with the folder where two would be the same."""
    short = [p.name.removesuffix(".gz").removesuffix(p.suffix if p.suffix != ".gz" else ".txt") for p in paths]
    return [s if short.count(s) == 1 else f"{p.parent.name}/{s}" for s, p in zip(short, paths, strict=True)]


# -------------------------------------------------------------------------------------------------------- output


def table(protocol: Protocol, results: Sequence[Result]) -> str:
    """The printed report."""
    from shared import skeletons

    unit, thresholds = protocol.unit, THRESHOLDS[:_PRINTED]
    width = max(20, *(len(r.name) for r in results))
    head = f"{'file':{width}}  {'read as':8} {'frames':>7} {'mean':>8} {'median':>8}  "
    head += " ".join(f"{f'<= {t}':>6}" for t in thresholds) + f" {'AUC':>7}"
    lines = [f"{protocol.name}: {protocol.line()}"]
    lines += [f"errors in {unit}; <= t: per cent of frames whose worst joint is within t {unit}", "", head]
    for r in results:
        s = r.scores
        rates = " ".join(f"{100 * s['success_rate'][str(t)]:6.2f}" for t in thresholds)
        errors = f"{s[f'mean_error_{unit}']:8.3f} {s[f'median_error_{unit}']:8.3f}"
        lines.append(f"{r.name:{width}}  {r.format:8} {s['frames']:7d} {errors}  {rates} {s['auc']:7.4f}")
    if len(protocol.alignments) > 1:
        lines += ["", f"{'alignment':{width}}" + "".join(f"  {r.name[:22]:>22}" for r in results)]
        for a in protocol.alignments:
            cells = [r.scores["alignments"][a] for r in results]
            lines.append(f"{a:{width}}" + "".join(f"  {c['mean_error_mm']:12.4f} / {c['auc']:.4f}" for c in cells))
    if protocol.below:
        lines += ["", f"mean over joints of the share below {protocol.below:g} {unit}, per cent:"]
        lines += [f"{r.name:{width}}  {100 * r.scores['map']:.2f}" for r in results]
    if "official" in results[0].scores:
        lines += ["", f"{'official score (cm)':{width}}" + "".join(f"  {r.name[:12]:>12}" for r in results)]
        for key in results[0].scores["official"]:
            lines.append(f"{key:{width}}" + "".join(f"  {r.scores['official'][key]:12.4f}" for r in results))
    lines += ["", f"{'mean per joint, ' + unit:{width}}" + "".join(f"  {r.name[:12]:>12}" for r in results)]
    for j, joint in enumerate(skeletons.get(protocol.skeleton).joints):
        cells = [r.scores[f"per_joint_error_{unit}"][j] for r in results]
        lines.append(f"{joint:{width}}" + "".join(f"  {c:12.3f}" for c in cells))
    official = protocol.official_frames
    if official and any(r.scores["frames"] != official for r in results):
        lines += ["", f"note: the whole test set has {official:,} frames; numbers of a part cannot be compared"]
    return "\n".join(lines)


def as_json(protocol: Protocol, results: Sequence[Result]) -> dict[str, Any]:
    """Protocol and scores; those of the first file at top level, those of every file under ``results``."""
    from shared import metrics, skeletons

    grid = metrics.AUC_GRIDS[protocol.grid]
    each = [{"name": r.name, "file": r.path, "format": r.format, **r.scores} for r in results]
    described = {
        "protocol": protocol.name,
        "about": protocol.line(),
        "unit": protocol.unit,
        "alignment": protocol.alignments[0],
        "auc_grid": {"lo": grid.lo, "hi": grid.hi, "n": grid.n},
        "joints": list(skeletons.get(protocol.skeleton).joints),
    }
    data: dict[str, Any] = described | each[0] | {"results": each}
    return data


def main(argv: Sequence[str] | None = None) -> int:
    """The program; ``argv`` without its name."""
    from shared.options import parse

    options = parse(
        Options,
        prog="python -m shared.score",
        description="Scores hand pose prediction files under a named protocol.",
        argv=argv,
        positional="predictions",
        positional_help="prediction files, plain or gzip",
        aliases={"dataset": "protocol"},
    ).options
    if options.list_protocols:
        from shared.protocols import list_protocols

        print(list_protocols())
        return 0
    protocol, results = score_files(options)
    print(table(protocol, results))
    if options.json:
        from shared.safe_io import atomic_write_text

        # JSON has no NaN: a joint that is never labelled becomes null.
        text = json.dumps(_without_nan(as_json(protocol, results)), indent=1, allow_nan=False)
        atomic_write_text(options.json, text + "\n")
    if options.plot:
        from shared.report import plot_per_joint, plot_success_rates

        errors = {r.name: r.errors for r in results}
        plot_success_rates(errors, Path(options.plot) / "success_rate.png", unit=protocol.unit)
        plot_per_joint(errors, protocol.skeleton, Path(options.plot) / "per_joint.png", unit=protocol.unit)
    return 0


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


if __name__ == "__main__":
    exit_on_error(main)
