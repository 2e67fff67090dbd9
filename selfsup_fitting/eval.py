"""Evaluates an estimator: ``python -m selfsup_fitting.eval runs/selfsup/x/checkpoints/last.pt --data DIR``.

Predicts every view of every prepared frame, writes the first view's joints in the community's text format (u v d of 14
joints a line), reads that file back and scores it. Errors of the other views, each joint, with and without the denoiser
are in ``metrics.json`` and the report, which has pictures of the spheres over the captured depth. Crops are those of
``prepare``: around the annotated palm joint, as in the paper, unless it was told otherwise; every number says so. Crops
of the original's files have no place in a camera; they are scored as they are, without a text file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup_fitting.config import EvalConfig
from shared.errors import DataError, exit_on_error
from shared.options import parse
from shared.precision import choose_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from selfsup_fitting.shards import Shards

    Array = NDArray[np.float64]

CENTERS = {"palm": "the annotated palm joint", "nearest": "centres found in the pictures"}
THRESHOLDS_MM = tuple(0.5 + 5 * i for i in range(17))  # of the original's stand-alone script: 0.5 to 80.5


def scores(errors: Array) -> dict[str, Any]:
    """The protocol's numbers of (N, 14) distances in mm; frames count alike (the original averaged its batches).

    ``mean_95_interval_mm`` is the half width for independent frames; those of a recording resemble their neighbours, so
    that it is a lower bound; None for a single frame.

    ``worst_joint_below`` is the share of frames whose largest error is strictly below 0.5, 5.5, ... 80.5 mm, as in the
    original's script; ``mean_12_mm`` leaves out the two sides of the wrist, as that script does.
    """
    import numpy as np

    from selfsup_fitting.spheres import EVAL_NYU, EVAL_NYU_12

    twelve = [EVAL_NYU.index(joint) for joint in EVAL_NYU_12]
    worst, worst_12 = errors.max(1), errors[:, twelve].max(1)
    means = errors.mean(1)
    half = 1.96 * float(means.std(ddof=1)) / np.sqrt(len(means)) if len(means) > 1 else None
    return {
        "mean_mm": float(means.mean()),
        "mean_95_interval_mm": None if half is None else float(half),
        "median_mm": float(np.median(errors)),
        "mean_12_mm": float(errors[:, twelve].mean()),
        "per_joint_mm": errors.mean(0).tolist(),
        "mean_worst_joint_mm": float(worst.mean()),
        "worst_joint_below": {f"{t:g}": float((worst < t).mean()) for t in THRESHOLDS_MM},
        "worst_of_12_below": {f"{t:g}": float((worst_12 < t).mean()) for t in THRESHOLDS_MM},
    }


def protocol(prepared: dict[str, Any], *, placed: bool = True) -> str:
    """What the numbers are, in words, of frames prepared with these options, ``placed`` in their camera or not."""
    centers = str(prepared.get("centers", "palm"))
    around = CENTERS.get(centers, f"the centres of {centers}")
    where = "" if placed else " scored without their place in the camera, which these files do not have"
    return f"14 joints of NYU, crops around {around}{where}, mean over frames"


def joint_errors(spheres_mm: Array, joints_mm: Array) -> Array:
    """(..., 14) distances of the scored spheres (..., 41, 3) to the annotations (..., 36, 3), mm."""
    import numpy as np

    from selfsup_fitting.spheres import EVAL_NYU, EVAL_SPHERES

    difference = spheres_mm[..., list(EVAL_SPHERES), :] - joints_mm[..., list(EVAL_NYU), :]
    return np.asarray(np.linalg.norm(difference.astype(np.float64), axis=-1))


def main() -> None:
    parsed = parse(
        EvalConfig,
        prog="python -m selfsup_fitting.eval",
        description="Evaluate an estimator on prepared NYU frames; write predictions, numbers, a report with pictures.",
        positional="checkpoint",
        positional_help="a run's checkpoint, or the original's .pth",
    )
    evaluate(parsed.options, parsed.yaml)


def output_folder(options: EvalConfig) -> Path:
    """``--out``, or ``eval`` in the checkpoint's run."""
    if options.out:
        return Path(options.out)
    folder = Path(options.checkpoint[0]).resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "eval"


def evaluate(options: EvalConfig, config_yaml: str) -> dict[str, Any]:
    """Predicts, writes, scores and reports; returns what is in ``metrics.json``.

    Raises:
        DataError: no checkpoint or several, one of another method, no prepared frames, frames that are not finite,
            another evaluation that cannot be compared with.
    """
    if len(options.checkpoint) != 1:
        raise DataError(
            f"expected one checkpoint, got {len(options.checkpoint)}",
            remedy="name one: runs/selfsup/<run>/checkpoints/last.pt",
        )
    if options.batch_size < 1 or options.limit < 0:
        raise DataError(
            f"--batch_size must be at least 1, --limit 0 or more, got {options.batch_size}, {options.limit}"
        )
    import numpy as np
    import torch

    from selfsup_fitting.convert import load_estimator
    from selfsup_fitting.data import open_shards
    from selfsup_fitting.hand import load_hand
    from selfsup_fitting.multiview import fuse_views
    from selfsup_fitting.priors import load_prior
    from selfsup_fitting.shards import spread
    from selfsup_fitting.spheres import EVAL_NYU, EVAL_SPHERES
    from shared.predictions import read_predictions, write_predictions
    from shared.safe_io import atomic_write_text

    checkpoint = load_estimator(options.checkpoint[0])
    other = read_metrics(options.compare) if options.compare else None
    shards = open_shards(options.data, options.split)
    denoiser = load_prior(options.denoiser, "denoiser") if options.denoiser else None
    hand = load_hand(options.hand)
    chosen = spread(len(shards), options.limit)
    if other is not None:
        check_comparable(other, options.split, len(chosen), options.compare)
    mean, no_baseline = training_mean(options.data, shards) if options.baseline else (None, "")
    out = output_folder(options)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{shards.manifest.summary()}, of which {len(chosen)} are evaluated", flush=True)
    if no_baseline:
        print(f"no baseline: {no_baseline}", flush=True)
    device = choose_device(options.device)
    spheres, variance = predict_spheres(checkpoint.build().to(device), shards, options)
    cleaned = spheres
    if denoiser is not None:
        with torch.inference_mode():
            flat = torch.from_numpy(spheres.reshape(-1, *spheres.shape[2:])).float()
            cleaned = denoiser(flat).double().numpy().reshape(spheres.shape)

    gt, centers = shards.field("joints_mm", chosen).astype(np.float64), shards.field("center_mm", chosen)
    placed = bool(centers.any())  # not the original's files, which do not say where their crops were
    file = out / "predictions_uvd.txt"
    if placed:
        write_predictions(file, to_uvd(cleaned[:, 0], centers[:, 0]), decimals=4)
        joints = from_uvd(read_predictions(file, 14), centers[:, 0])  # scored as any other file would be
    else:
        file.unlink(missing_ok=True)  # of an earlier evaluation
        joints = cleaned[:, 0][:, list(EVAL_SPHERES)]
    errors = np.linalg.norm(joints - gt[:, 0][:, list(EVAL_NYU)], axis=-1)

    whole = not any(shards.manifest.skipped.values()) and not shards.manifest.options.get("limit")
    complete = options.split == "test" and len(chosen) == len(shards) and whole
    metrics: dict[str, Any] = {
        "split": options.split,
        "frames": len(chosen),
        "complete": complete,
        "protocol": protocol(shards.manifest.options, placed=placed),
        "view": shards.manifest.views[0],
        "denoiser": options.denoiser or None,
        **scores(errors),
        "views": {},
        "checkpoint": str(options.checkpoint[0]),
        "mode": checkpoint.extra.get("mode"),
        "epoch": checkpoint.extra.get("epoch"),
    }
    for view, camera in enumerate(shards.manifest.views):
        entry = {"mean_mm": float(joint_errors(spheres[:, view], gt[:, view]).mean())}
        if denoiser is not None:
            entry["mean_denoised_mm"] = float(joint_errors(cleaned[:, view], gt[:, view]).mean())
        metrics["views"][str(camera)] = entry
    metrics["mean_all_views_mm"] = float(joint_errors(spheres, gt).mean())
    if len(shards.manifest.views) > 1:
        poses = shards.field("T_canon_view", chosen).astype(np.float64)
        fused = fuse_views(*(torch.from_numpy(array) for array in (spheres, poses, variance))).numpy()
        metrics["mean_fused_views_mm"] = float(joint_errors(fused[:, 0], gt[:, 0]).mean())
    baseline = None
    if mean is not None:
        base_errors = np.linalg.norm(gt - mean, axis=-1)[..., list(EVAL_NYU)]
        baseline = np.broadcast_to(mean[0, list(EVAL_NYU)], joints.shape)
        metrics["baseline_mean_pose"] = {
            "mean_mm": float(base_errors[:, 0].mean()),
            "mean_all_views_mm": float(base_errors.mean()),
        }
        metrics["ratio_to_baseline"] = metrics["mean_all_views_mm"] / metrics["baseline_mean_pose"]["mean_all_views_mm"]
    if other is not None:
        metrics["compared_with"] = compared(metrics, other, options.compare)
    atomic_write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    atomic_write_text(out / "eval_config.yaml", config_yaml)
    _save_arrays(out / "predictions.npz", spheres, cleaned, centers, shards.field("number", chosen))
    pictures = draw_fits(out, shards, chosen, cleaned, errors, hand.sphere_radius_mm)
    write_page(out, metrics, checkpoint.model, gt, joints, baseline, centers, shards, chosen, pictures)
    print_table(metrics)
    text = f"{file} (u v d of 14 joints), " if placed else ""
    print(f"predictions: {text}{out / 'predictions.npz'} (spheres of all views)")
    print(f"report:      {out / 'report.html'}")
    for path in pictures:
        print(f"picture:     {path}")
    if other is not None:
        print_summary(metrics, other)
    return metrics


def read_metrics(path: str) -> dict[str, Any]:
    """``metrics.json`` of an earlier evaluation.

    Raises:
        MissingFileError, DataError: there is none, or it is another kind of file.
    """
    from shared.errors import MissingFileError

    file = Path(path)
    if not file.is_file():
        raise MissingFileError("no such evaluation", path=file, remedy="evaluate the other checkpoint first")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        sound = 0 < float(found["mean_all_views_mm"]) < float("inf")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"expected the metrics.json of an evaluation ({error!r})", path=file) from None
    if not sound:
        raise DataError(f"has a mean error of {found['mean_all_views_mm']}", path=file, remedy="evaluate it again")
    return dict(found)


def training_mean(root: str, shards: Shards) -> tuple[Array | None, str]:
    """(V, 36, 3) mean of the training split's labels, for the frames of ``shards``; or None and why there is none.

    Raises:
        DataError: a training split that is damaged.
    """
    import numpy as np

    from selfsup_fitting.data import open_shards
    from shared.errors import MissingFileError

    try:
        train = open_shards(root, "train")
    except MissingFileError as error:
        return None, str(error)
    for name, here, there in (
        ("cameras", shards.manifest.views, train.manifest.views),
        ("centers", *(part.manifest.options.get("centers", "palm") for part in (shards, train))),
    ):
        if here != there:
            return None, f"{name} {here} here, {there} in the training split, whose mean pose lies elsewhere then"
    return train.field("joints_mm").mean(0).astype(np.float64), ""


def check_comparable(other: dict[str, Any], split: str, frames: int, path: str) -> None:
    """Refuses numbers of other frames.

    Raises:
        DataError: another split or another number of frames.
    """
    for key, here in (("split", split), ("frames", frames)):
        if other.get(key) != here:
            raise DataError(f"{key} {other.get(key)} there, {here} here", path=path, remedy="evaluate it again")


def compared(metrics: dict[str, Any], other: dict[str, Any], path: str) -> dict[str, Any]:
    """How much lower the error is than another checkpoint's."""
    before, now = other["mean_all_views_mm"], metrics["mean_all_views_mm"]
    return {"file": path, "mode": other.get("mode"), "mean_all_views_mm": before, "lower_by": 1 - now / before}


def print_summary(metrics: dict[str, Any], other: dict[str, Any]) -> None:
    """Mean pose, the other checkpoint and this one, one line each."""
    base = metrics.get("baseline_mean_pose", {}).get("mean_all_views_mm")
    print(
        f"\nsummary: mean error of 14 joints over all views, {metrics['frames']} {metrics['split']} frames, no denoiser"
    )
    if base is not None:
        print(f"  {'mean pose of the training split':32} {base:7.2f} mm")
    for entry in (other, metrics):
        mean = entry["mean_all_views_mm"]
        share = "" if base is None else f"  ({mean / base:.2f} of the mean pose)"
        print(f"  {entry.get('mode') or 'unknown':32} {mean:7.2f} mm{share}")
    lower = 100 * metrics["compared_with"]["lower_by"]
    print(f"  {abs(lower):.1f} % {'lower' if lower >= 0 else 'higher'} than {other.get('mode') or 'the other'}")


# ------------------------------------------------------------------------------------------------ predictions


def predict_spheres(network: nn.Module, shards: Shards, options: EvalConfig) -> tuple[Array, Array]:
    """(N, V, 41, 3) spheres of the last stack, each view in its crop's frame, mm; (N, V, 41) heat maps' variances.

    Raises:
        DataError: a frame or a prediction that is not finite, named.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from selfsup_fitting.data import CapturedSet, normalised
    from selfsup_fitting.model import heatmap_variance

    frames = CapturedSet(shards, options.limit)
    device = next(network.parameters()).device
    half = options.precision == "bfloat16"
    parts, variances = [], []
    with torch.inference_mode(), tqdm(total=len(frames), unit="frame", desc="predict", mininterval=1.0) as bar:
        for start in range(0, len(frames), options.batch_size):
            batch = [frames[i] for i in range(start, min(start + options.batch_size, len(frames)))]
            depth = torch.from_numpy(np.stack([s.depth_mm for s in batch])).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                pred = network(normalised(depth.flatten(0, 1)))[-1]
            spheres = pred.spheres_mm.float().unflatten(0, depth.shape[:2]).cpu().double().numpy()
            bad = np.flatnonzero(~np.isfinite(spheres).all((1, 2, 3)))
            if len(bad):
                raise DataError(f"the network's prediction for {batch[bad[0]].name} is not finite")
            parts.append(spheres)
            variances.append(
                heatmap_variance(pred.heatmaps.float()).unflatten(0, depth.shape[:2]).cpu().double().numpy()
            )
            bar.update(len(batch))
    return np.concatenate(parts), np.concatenate(variances)


def to_uvd(spheres_mm: Array, center_mm: NDArray[np.float32]) -> Array:
    """(N, 14, 3) u, v (pixels) and depth (mm) in the picture of camera 1, of spheres (N, 41, 3) around the centres."""
    from selfsup_fitting.spheres import EVAL_SPHERES
    from shared import camera
    from shared.datasets.nyu import K

    return camera.xyz_to_uvd(spheres_mm[:, list(EVAL_SPHERES)] + center_mm[:, None], K)


def from_uvd(uvd: Array, center_mm: NDArray[np.float32]) -> Array:
    """The inverse of :func:`to_uvd`."""
    from shared import camera
    from shared.datasets.nyu import K

    return camera.uvd_to_xyz(uvd, K) - center_mm[:, None]


def _save_arrays(path: Path, spheres: Array, cleaned: Array, centers: Any, numbers: Any) -> None:
    import numpy as np

    from shared.safe_io import atomic_path

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, spheres_mm=spheres, spheres_denoised_mm=cleaned, center_mm=centers, number=numbers, allow_pickle=False
        )


# ------------------------------------------------------------------------------------------------ for the reader


def draw_fits(
    out: Path, shards: Shards, chosen: NDArray[np.intp], spheres: Array, errors: Array, radii: Array
) -> list[Path]:
    """``fit_{best,median,...}.png``: for every view captured depth, drawn spheres and their difference."""
    import torch

    from selfsup_fitting.pictures import fit_row
    from selfsup_fitting.render import sphere_depth
    from shared.draw import contact_sheet, save
    from shared.report import example_frames

    files = []
    for name, index in example_frames(errors).items():
        drawn = sphere_depth(torch.from_numpy(spheres[index]).float(), torch.tensor(radii).float()).numpy()
        captured = shards[int(chosen[index])]["depth_mm"]
        rows = [fit_row(c, d) for c, d in zip(captured, drawn, strict=True)]
        titles = [
            f"{name}, {shards.name(int(chosen[index]))}, camera {camera}: captured, spheres, difference"
            for camera in shards.manifest.views
        ]
        files.append(out / f"fit_{name.replace(' ', '_')}.png")
        save(files[-1], contact_sheet(rows, 1, titles))
    return files


def write_page(
    out: Path,
    metrics: dict[str, Any],
    model: dict[str, Any],
    gt: Array,
    joints: Array,
    baseline: Array | None,
    centers: Any,
    shards: Shards,
    chosen: NDArray[np.intp],
    pictures: list[Path],
) -> None:
    """``report.html``: the shared report of the first view, a table of the views, the pictures of the fits."""
    import base64

    import numpy as np

    from selfsup_fitting.spheres import EVAL_NYU
    from shared import camera
    from shared.report import write_report
    from shared.safe_io import atomic_write_text

    scale = shards[0]["depth_mm"].shape[-1] / 300.0
    far = 1000.0  # the orthographic crop, seen by a camera so far away that it is one within a pixel
    K = camera.intrinsics(scale * far * 100, scale * far * 100, 32.0, 32.0)
    shift = np.array([0.0, 0.0, far * 100])

    def frame(index: int) -> tuple[Any, Any]:
        depth = shards[int(chosen[index])]["depth_mm"][0].astype(np.float64)
        return np.where(depth < 100, depth + shift[2], 0.0), K

    header = ["camera", "mean error (mm)", *(["with denoiser (mm)"] if metrics["denoiser"] else [])]
    rows = [[name, *entry.values()] for name, entry in metrics["views"].items()]
    share = metrics["worst_joint_below"]
    write_report(
        out / "report.html",
        title=f"Training by fitting on NYU ({metrics['split']})",
        config={**model, "mode": metrics["mode"], "epoch": metrics["epoch"], "denoiser": metrics["denoiser"]},
        gt_mm=gt[:, 0][:, list(EVAL_NYU)] + shift,
        pred_mm=joints + shift,
        baseline_mm=None if baseline is None else baseline + shift,
        skeleton="nyu14",
        frames=frame,
        tables=[
            ("Views", header, rows),
            ("Frames whose worst joint is below", [f"{t} mm" for t in share], [list(share.values())]),
        ],
        notes=[
            shards.manifest.summary(),
            metrics["protocol"] + (" (palm spheres from the denoiser)" if metrics["denoiser"] else " (no denoiser)"),
        ],
    )
    figures = "".join(
        f'<figure><img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        "</figure>"
        for path in pictures
    )
    section = f"<section><h2>Spheres drawn over the captured depth</h2>{figures}</section>"
    page = (out / "report.html").read_text(encoding="utf-8")
    atomic_write_text(out / "report.html", page.replace("</main>", section + "</main>"))


def print_table(metrics: dict[str, Any]) -> None:
    """The numbers a reader looks for first."""
    part = "" if metrics["complete"] else " (a part of the split)"
    print(f"\nNYU {metrics['split']}: {metrics['frames']} frames{part}; {metrics['protocol']}")
    kind = "with denoiser" if metrics["denoiser"] else "no denoiser"
    interval = metrics["mean_95_interval_mm"]
    range_text = "" if interval is None else f" (95 %: +-{interval:.2f})"
    print(f"  camera {metrics['view']}, {kind:22} {metrics['mean_mm']:8.2f} mm{range_text}")
    for name, entry in metrics["views"].items():
        print(f"  camera {name}, without denoiser       {entry['mean_mm']:8.2f} mm")
    print(f"  all views, without denoiser      {metrics['mean_all_views_mm']:8.2f} mm")
    if "mean_fused_views_mm" in metrics:
        print(f"  views fused, without denoiser    {metrics['mean_fused_views_mm']:8.2f} mm")
    if "baseline_mean_pose" in metrics:
        print(f"  mean pose of the training split  {metrics['baseline_mean_pose']['mean_all_views_mm']:8.2f} mm")
        print(f"  ours / mean pose                 {metrics['ratio_to_baseline']:8.3f}")
    print()


if __name__ == "__main__":
    exit_on_error(main)
