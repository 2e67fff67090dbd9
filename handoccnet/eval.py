"""Evaluates HandOccNet: ``python -m handoccnet.eval runs/handoccnet/standin/checkpoints/last.pt --data.root DIR``.

Predicts every test frame, writes the benchmark's result file (``pred{epoch}.json`` and the zip of the HO-3D challenge,
or DexYCB's text lines), reads it back and scores it where ground truth is there: the same code scores anyone's file.
Ends with a table, ``metrics.json`` and a report with pictures. No frame is ever left out or replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handoccnet.config import DataOptions, EvalConfig
from shared.errors import DataError, exit_on_error
from shared.options import parse
from shared.precision import choose_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from handoccnet.data import Labels
    from shared.mano import ManoModel

    Array = NDArray[np.float64]


def main() -> None:
    parsed = parse(
        EvalConfig,
        prog="python -m handoccnet.eval",
        description="Evaluate a checkpoint of HandOccNet; write predictions, the challenge's zip, numbers, a report.",
        positional="checkpoint",
        positional_help="a run's checkpoint, or a converted snapshot",
    )
    evaluate(parsed.options, parsed.yaml)


def data_options(options: EvalConfig, trained: dict[str, Any]) -> DataOptions:
    """The test data: what the command line says, else as in training."""
    given = options.data
    dataset = given.dataset or trained.get("dataset", "ho3d")

    def as_trained(value: str | None, name: str, otherwise: str) -> Any:
        if value is not None:
            return value
        return trained.get(name, otherwise) if dataset == trained.get("dataset") else otherwise

    return DataOptions(
        dataset=dataset,
        root=given.root,
        annotations=as_trained(given.annotations, "annotations", ""),
        mano=given.mano or trained.get("mano", ""),
        mano_left=as_trained(given.mano_left, "mano_left", ""),
        dexycb_split=as_trained(given.dexycb_split, "dexycb_split", "test"),
        sides=trained.get("sides", "both"),
        box_rule=trained.get("box_rule", "reference"),
        missing=as_trained(given.missing, "missing", "error"),
        test_limit=given.limit,
    )


def output_folder(options: EvalConfig) -> Path:
    """``--out``, or ``eval`` in the checkpoint's run."""
    if options.out:
        return Path(options.out)
    folder = Path(options.checkpoint[0]).resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "eval"


def check_writable(out: Path) -> None:
    """Creates the folder of the results; raises OSError where nothing can be written into it."""
    import tempfile

    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()


def refuse_replacing(out: Path, dataset: str, split: str, complete: bool) -> None:
    """Stops where the numbers of a whole split would make way for those of a part of it or of another split.

    Raises:
        DataError: names the file.
    """
    path = out / "metrics.json"
    try:
        there = json.loads(path.read_bytes())
        old, whole = (there["dataset"], there["split"]), there["complete"] is True
    except (OSError, ValueError, KeyError, TypeError):  # none, or not ours
        return
    if whole and (not complete or old != (dataset, split)):
        now = f"{'' if complete else 'a part of '}{dataset} {split}"
        raise DataError(
            f"holds the numbers of the whole {' '.join(map(str, old))}; those of {now} would replace it",
            path=path,
            remedy="give another --out",
        )


def evaluate(options: EvalConfig, config_yaml: str) -> dict[str, Any]:
    """Predicts, writes, scores and reports; returns what is in ``metrics.json``, or {} without ground truth.

    Raises:
        DataError: no checkpoint or several, one of another method, no MANO, bad data, results that would replace those
            of more frames.
        OSError: nothing can be written into the folder of the results.
    """
    if len(options.checkpoint) != 1:
        raise DataError(
            f"expected one checkpoint, got {len(options.checkpoint)}",
            remedy="name one: runs/handoccnet/<run>/checkpoints/last.pt",
        )
    device = choose_device(options.device)

    from handoccnet.convert import load_checkpoint
    from handoccnet.data import load_labels, open_mano
    from handoccnet.inference import prepare
    from shared.metrics import joint_errors
    from shared.report import write_report
    from shared.safe_io import atomic_write_text

    checkpoint = load_checkpoint(options.checkpoint[0])
    data = data_options(options, checkpoint.extra.get("data", {}))
    right, left = open_mano(data)
    out = output_folder(options)
    check_writable(out)

    # ---- all that may be missing, before the hours of predicting
    labels = load_labels(data, "test", right, left, verts=True)
    print(labels.summary, flush=True)
    split = "evaluation" if data.dataset == "ho3d" else f"s0_{data.dexycb_split}"
    refuse_replacing(out, data.dataset, split, labels.complete)
    gt_verts_mm, truth = true_meshes(labels, right) if labels.has_joints else (None, "")
    mean = None
    if options.baseline and labels.has_joints:
        try:
            mean = mean_hand(data, right, left)
        except DataError as error:
            print(f"no baseline: {error}", flush=True)
    network = prepare(checkpoint.build(right), device=device, precision=options.precision)
    pred_mm, verts_mm = predict_all(network, labels, options, size=int(checkpoint.model["image_size"]))
    if options.tips is not None:
        pred_mm = with_tips(pred_mm, verts_mm, options.tips)
    tips = options.tips or checkpoint.model["tips"]

    epoch = int(checkpoint.extra.get("epoch", 0))
    pred_mm, verts_mm = write_and_read(out, epoch, data.dataset, labels, pred_mm, verts_mm, options.decimals, split)
    if gt_verts_mm is None:
        print("the set has no ground truth here (HO-3D: evaluation_xyz.json in the root): nothing to score")
        return {}

    metrics: dict[str, Any] = {
        "dataset": data.dataset,
        "split": split,
        "frames": len(labels),
        "complete": labels.complete,
        "protocol": "wrist moved to the annotated one; PA: similarity, proper rotation; AUC of PA joints, 0 to 50 mm",
        "meshes": truth,
        "tips": tips,
        **scores(pred_mm, verts_mm, labels.joints_mm, gt_verts_mm),
        "official": official_scores(data.dataset, pred_mm, verts_mm, labels, gt_verts_mm),
        "checkpoint": str(options.checkpoint[0]),
        "epoch": epoch,
        "mano_sha256": right.sha256,
    }
    baseline_mm = None
    if mean is not None:
        baseline_mm, baseline_verts_mm = mean_hands(*mean, labels)
        metrics["baseline_mean_pose"] = scores(baseline_mm, baseline_verts_mm, labels.joints_mm, gt_verts_mm)
        metrics["ratio_to_baseline"] = metrics["mpjpe_mm"] / metrics["baseline_mean_pose"]["mpjpe_mm"]
    atomic_write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    atomic_write_text(out / "eval_config.yaml", config_yaml)
    write_report(
        out / "report.html",
        title=f"HandOccNet on {data.dataset} ({metrics['split']})",
        config={**checkpoint.model, "epoch": epoch, "tips": tips, "box_rule": data.box_rule},
        gt_mm=labels.joints_mm,
        pred_mm=pred_mm,
        baseline_mm=baseline_mm,
        skeleton="thumb_first",
        frames=lambda index: (picture(labels, index), labels.K[index]),
        tables=[score_table(metrics)],
        notes=[labels.summary, metrics["protocol"], f"true meshes: {truth}"],
    )
    draw_meshes(out, labels, joint_errors(pred_mm, labels.joints_mm), verts_mm, gt_verts_mm, right)
    print_table(metrics)
    print(f"report:   {out / 'report.html'}")
    for file in sorted(out.glob("report_*.png")):
        print(f"picture:  {file}")
    return metrics


# ------------------------------------------------------------------------------------------------ predictions


def predict_all(network: nn.Module, labels: Labels, options: EvalConfig, *, size: int) -> tuple[Array, Array]:
    """(N, 21, 3) joints thumb-first and (N, 778, 3) vertices, camera frame, mm, in the order of the labels."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from handoccnet.data import HandSamples, to_camera

    samples = HandSamples(labels, size=size)
    loader: Any = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=options.batch_size,
        num_workers=options.workers,
        collate_fn=samples.collate,
    )
    device = next(network.parameters()).device
    pred, verts = [], []
    with tqdm(total=len(labels), unit="frame", desc="predict", mininterval=1.0) as bar, torch.inference_mode():
        for batch in loader:
            hand = network(batch["image"].to(device))
            values = [hand[key].cpu().numpy() for key in ("joints_mm", "verts_mm")]
            joints, mesh = to_camera(values[0], values[1], batch["root_mm"].numpy(), batch["left"].numpy())
            bad = np.flatnonzero(~np.isfinite(joints).all((1, 2)))
            if len(bad):
                raise DataError(f"the network's prediction for {batch['name'][bad[0]]} is not finite")
            pred.append(joints)
            verts.append(mesh)
            bar.update(len(joints))
    return np.concatenate(pred), np.concatenate(verts)


def with_tips(joints_mm: Array, verts_mm: Array, tips: str) -> Array:
    """Joints whose five fingertips are the vertices of another set (:data:`shared.mano.TIPS`)."""
    from shared.mano import TIPS

    joints = joints_mm.copy()
    joints[:, [4, 8, 12, 16, 20]] = verts_mm[:, list(TIPS[tips])]
    return joints


def write_and_read(
    out: Path,
    epoch: int,
    dataset: str,
    labels: Labels,
    joints_mm: Array,
    verts_mm: Array,
    decimals: int = 6,
    split: str = "evaluation",
) -> tuple[Array, Array]:
    """Writes the benchmark's result file and gives back what a reader gets from it.

    HO-3D: ``pred{epoch}.json`` in its joint order and camera, and ``pred{epoch}.zip`` with ``pred.json`` in it. A part
    of the set is called ``pred{epoch}_part.json`` and gets no zip. DexYCB: ``pred{epoch}_{split}.txt``, no meshes; a
    part has ``_part`` before the dot.
    """
    from shared.predictions import read_dexycb, read_mesh_json, write_dexycb, write_mesh_json
    from shared.skeletons import reorder

    out.mkdir(parents=True, exist_ok=True)
    if dataset == "dexycb":
        path = out / f"pred{epoch}_{split}{'' if labels.complete else '_part'}.txt"
        write_dexycb(path, labels.ids, joints_mm)
        print(f"predictions: {path} (DexYCB's toolkit, mm)")
        return read_dexycb(path, max_rows=len(labels))[1], verts_mm
    path = out / f"pred{epoch}{'' if labels.complete else '_part'}.json"
    joints = reorder(joints_mm, "thumb_first", "mano")
    write_mesh_json(path, joints, verts_mm, "opengl", decimals=decimals)
    print(f"predictions: {path} (HO-3D's layout, metres)")
    if labels.complete:
        write_mesh_json(path.with_suffix(".zip"), joints, verts_mm, "opengl", decimals=decimals)
        print(f"submission:  {path.with_suffix('.zip')} (pred.json inside)")
    else:
        print("not a submission: a part of the evaluation frames only")
    joints, verts_mm = read_mesh_json(path, "opengl", frames=len(labels))
    return reorder(joints, "mano", "thumb_first"), verts_mm


# ------------------------------------------------------------------------------------------------ scores


def true_meshes(labels: Labels, right: ManoModel) -> tuple[Array, str]:
    """(N, 778, 3) true vertices in the camera frame, mm, and where they come from."""
    import numpy as np

    from handoccnet.data import to_camera

    if labels.verts_mm is not None:
        return labels.verts_mm.astype(np.float64), "evaluation_verts.json"
    if not np.isfinite(labels.pose).all():
        raise DataError(
            "there are true joints but no true meshes", remedy="put evaluation_verts.json beside evaluation_xyz.json"
        )
    joints, verts = (np.concatenate(parts) for parts in zip(*label_hands(labels, right), strict=True))
    return to_camera(joints, verts, labels.root_mm, labels.left)[1], "MANO (right) of the labels, left hands mirrored"


def label_hands(labels: Labels, right: ManoModel) -> Iterator[tuple[Array, Array]]:
    """Joints and vertices of the right hand's MANO for the labels' pose and shape, left hands as right ones.

    In parts of a few hundred frames: the meshes of DexYCB's training split would take gigabytes.
    """
    import numpy as np
    import torch

    from handoccnet.regressor import Hand
    from shared.datasets.mirror import mirror_pose

    hand = Hand(right)
    pose = np.where(labels.left[:, None], mirror_pose(labels.pose), labels.pose)
    for start in range(0, len(labels), 256):
        part = slice(start, start + 256)
        with torch.inference_mode():
            made = hand(torch.tensor(pose[part]).float(), torch.tensor(labels.betas[part]).float())
        yield made["joints_mm"].double().numpy(), made["verts_mm"].double().numpy()


def mean_hand(data: DataOptions, right: ManoModel, left: ManoModel | None) -> tuple[Array, Array]:
    """(21, 3) joints and (778, 3) vertices, mm: the mean of the training labels as right hands, wrist at the origin."""
    import numpy as np

    from handoccnet.data import load_labels

    train = load_labels(data, "train", right, left)
    mirror = np.where(train.left[:, None, None], [-1.0, 1, 1], [1.0, 1, 1])
    joints = ((train.joints_mm - train.joints_mm[:, :1]) * mirror).mean(0)
    verts = sum((made_verts - made_joints[:, :1]).sum(0) for made_joints, made_verts in label_hands(train, right))
    return joints, verts / len(train)


def mean_hands(joints_mm: Array, verts_mm: Array, labels: Labels) -> tuple[Array, Array]:
    """What :func:`mean_hand` predicts for every test frame: joints and vertices in the camera frame, mm."""
    import numpy as np

    from handoccnet.data import to_camera

    tiled = [np.broadcast_to(a, (len(labels), *a.shape)) for a in (joints_mm, verts_mm)]
    # to_camera moves both by the joints' wrist, which is at the origin already
    return to_camera(tiled[0], tiled[1], labels.root_mm, labels.left)


def scores(pred_mm: Array, verts_mm: Array, gt_mm: Array, gt_verts_mm: Array) -> dict[str, float]:
    """The numbers of the papers' tables, mm and 0 to 1, of (N, 21, 3) joints and (N, 778, 3) vertices."""
    from shared.metrics import AUC_GRIDS, align_procrustes, align_root, auc, f_score, joint_errors

    moved = align_root(pred_mm, gt_mm)
    aligned_errors = joint_errors(align_procrustes(pred_mm, gt_mm), gt_mm)
    aligned = align_procrustes(verts_mm, gt_verts_mm)
    at_5, at_15 = f_score(aligned, gt_verts_mm, [5.0, 15.0]).mean(0).tolist()
    return {
        "mpjpe_mm": float(joint_errors(moved, gt_mm).mean()),
        "pa_mpjpe_mm": float(aligned_errors.mean()),
        "pa_mpvpe_mm": float(joint_errors(aligned, gt_verts_mm).mean()),
        "f_at_5": at_5,
        "f_at_15": at_15,
        "auc": auc(aligned_errors, *AUC_GRIDS["0-50x100"]),
    }


def official_scores(
    dataset: str, pred_mm: Array, verts_mm: Array, labels: Labels, gt_verts_mm: Array
) -> dict[str, Any]:
    """The benchmark's own numbers: HO-3D's scores.txt (cm), or DexYCB's three lines and HandOccNet's two (mm)."""
    from shared.metrics import dexycb_scores, ho3d_scores
    from shared.skeletons import reorder

    if dataset == "dexycb":
        return dict(dexycb_scores(pred_mm, labels.joints_mm))
    pred, gt = (reorder(a, "thumb_first", "mano") for a in (pred_mm, labels.joints_mm))
    return dict(ho3d_scores(pred, gt, verts_mm, gt_verts_mm))


# ------------------------------------------------------------------------------------------------ for the reader

_ROWS = {
    "mpjpe_mm": ("joint error, wrists aligned (MPJPE)", "mm"),
    "pa_mpjpe_mm": ("joint error, PA (PA-MPJPE)", "mm"),
    "pa_mpvpe_mm": ("vertex error, PA (PA-MPVPE)", "mm"),
    "f_at_5": ("F@5 mm, aligned", ""),
    "f_at_15": ("F@15 mm, aligned", ""),
    "auc": ("AUC of PA joints, 0 to 50 mm", ""),
}


def score_table(metrics: dict[str, Any]) -> tuple[str, list[str], list[list[object]]]:
    """The table of the report: ours beside the mean pose."""
    baseline = metrics.get("baseline_mean_pose", {})
    header = ["", "prediction", *(["mean pose"] if baseline else [])]
    rows = [
        [f"{name} ({unit})" if unit else name, *(m[key] for m in (metrics, baseline) if m)]
        for key, (name, unit) in _ROWS.items()
    ]
    return "Hand metrics", header, rows


def print_table(metrics: dict[str, Any]) -> None:
    """The numbers a reader looks for first."""
    part = "" if metrics["complete"] else " (a part of the split)"
    print(f"\n{metrics['dataset']} {metrics['split']}: {metrics['frames']} frames{part}; {metrics['protocol']}")
    baseline = metrics.get("baseline_mean_pose")
    if baseline:
        print(f"  {'':38} {'prediction':>10}    {'mean pose':>9}")
    for key, (name, unit) in _ROWS.items():
        other = f"    {baseline[key]:9.3f}" if baseline else ""
        print(f"  {name:38} {metrics[key]:10.3f}{other} {unit}")
    if baseline:
        print(f"  joint error, ours / mean pose          {metrics['ratio_to_baseline']:10.3f}")
    print()


def picture(labels: Labels, index: int) -> NDArray[np.uint8]:
    from shared.datasets.images import read_rgb

    return read_rgb(labels.paths[index])


def draw_meshes(
    out: Path, labels: Labels, errors: Array, verts_mm: Array, gt_verts_mm: Array, right: ManoModel
) -> None:
    """``report_mesh_{best,median,worst}.png``: picture, true mesh, predicted mesh."""
    from handoccnet.overlay import around, mesh_overlay
    from shared.draw import enlarge, save, side_by_side
    from shared.report import example_frames

    for name, index in example_frames(errors).items():
        rgb, K = picture(labels, index), labels.K[index]
        faces = right.faces[:, ::-1] if labels.left[index] else right.faces
        rows, columns = around(rgb, gt_verts_mm[index], K)
        panels = [rgb, mesh_overlay(rgb, gt_verts_mm[index], faces, K), mesh_overlay(rgb, verts_mm[index], faces, K)]
        scale = max(1.0, 380 / max(rgb[rows, columns].shape[:2]))
        titles = [f"{name}: {labels.names[index]}", "true mesh", f"prediction, {errors[index].mean():.1f} mm"]
        file = out / f"report_mesh_{name.replace(' ', '_')}.png"
        save(file, side_by_side([enlarge(panel[rows, columns], scale) for panel in panels], titles))


if __name__ == "__main__":
    exit_on_error(main)
