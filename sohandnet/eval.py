"""Evaluates SO-HandNet: ``python -m sohandnet.eval runs/sohandnet/joint/checkpoints/last.pt --store stores/icvl``.

Predicts every frame of a split, writes the predictions as text (camera mm, pixels and depth, and the original's two
files), reads them back and scores them in true millimetres and in the original's metric, side by side: its inverted
intrinsics make its "mm" about a tenth smaller (README, ledger Q1). How the frames were cropped is printed with every
number. Ends with a table, ``metrics.json`` and a report with pictures.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError, exit_on_error
from shared.options import parse
from shared.precision import choose_device
from sohandnet.eval_config import EvalConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from sohandnet.config import NodeCentre
    from sohandnet.convert import Checkpoint
    from sohandnet.data import StoreSamples
    from sohandnet.model import SoHandNet
    from sohandnet.store import Split

    Array = NDArray[np.float64]

THRESHOLDS_MM = (10, 20, 30, 40, 50)
XYZ, UVD = "predictions_xyz.txt", "predictions_uvd.txt"
XYZ_LABELS, UVD_LABELS = "labels_xyz.txt", "labels_uvd.txt"
REFERENCE_FILES = ("Test_estimation.txt", "Test_groundtruth.txt")  # the original's names


def main() -> None:
    parsed = parse(
        EvalConfig,
        prog="python -m sohandnet.eval",
        description="Evaluate checkpoints of SO-HandNet and write predictions, numbers and a report.",
        positional="checkpoints",
        positional_help="checkpoint files; several are averaged",
    )
    evaluate(parsed.options, parsed.yaml)


def evaluate(options: EvalConfig, config_yaml: str = "") -> dict[str, Any]:
    """Predicts, writes, scores and reports; returns what is in ``metrics.json``.

    Raises:
        MissingFileError, DataError: no checkpoint, one without encoder and estimator, one trained in another space than
            the store's, a store that is not complete.
    """
    import numpy as np

    from shared.predictions import read_predictions
    from shared.report import write_report
    from shared.safe_io import atomic_write_text
    from sohandnet.data import StoreSamples, limited
    from sohandnet.store import check_folder, open_store, protocol_line

    if not options.checkpoints:
        raise DataError("no checkpoint given", remedy="name one: runs/sohandnet/<run>/checkpoints/last.pt")
    if not options.store:
        raise DataError("--store is empty", remedy="it names the folder that python -m sohandnet.prepare wrote")
    if options.batch_size < 1 or options.workers < 0:
        raise DataError(f"--batch_size {options.batch_size} and --workers {options.workers}: at least 1 and 0")
    store = open_store(options.store)
    split = store.split(options.split)
    left_out = check_complete(split, options.allow_missing)
    networks, checkpoints = load_networks(options, store.options["intrinsics"])
    joints = split.arrays["joints"].shape[2]
    for path, network in zip(options.checkpoints, networks, strict=True):
        if network.sizes["joints"] != joints:
            raise DataError(f"has {network.sizes['joints']} joints, the store {joints}", path=path)
    out = output_folder(options)
    check_folder(out, "out")
    samples = StoreSamples(split, indices=limited(len(split), options.limit))
    normalised = predict_all(networks, samples, options)

    names = [split.names[i] for i in samples.indices]
    gt_mm = split.joints_mm(index=samples.indices)
    write_texts(out, split.joints_mm(normalised, samples.indices), gt_mm, np.asarray(store.options["K"]))
    pred_mm = read_predictions(out / XYZ, gt_mm.shape[1])
    metrics: dict[str, Any] = {
        "dataset": "icvl",
        "split": options.split,
        "protocol": f"camera-frame joint error, no alignment; {protocol_line(store.options)}",
        "intrinsics": store.options["intrinsics"],
        "crop": store.options["crop"],
        "node_centre": networks[0].sizes["node_centre"],
        "estimator": networks[0].sizes["estimator"],
        "frames": len(names),
        "frames_in_split": len(split) + sum(left_out.values()),
        "left_out": left_out,
        "checkpoints": list(options.checkpoints),
        **scores(pred_mm, gt_mm, names),
    }
    baseline_mm = None
    if options.baseline:
        mean = np.swapaxes(store.split("train").arrays["joints"].mean(0, dtype=np.float64), 0, 1)
        baseline_mm = split.joints_mm(np.broadcast_to(mean, gt_mm.shape), samples.indices)
        base = scores(baseline_mm, gt_mm, names)
        metrics["baseline_mean_pose_mm"] = base["mean_error_mm"]
        metrics["baseline_mean_pose_reference"] = base["reference_metric"]["mean_error"]
        metrics["ratio_to_baseline"] = metrics["mean_error_mm"] / base["mean_error_mm"]
    atomic_write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    if config_yaml:
        atomic_write_text(out / "eval_config.yaml", config_yaml)
    print_table(metrics)
    print(
        f"predictions: {out / XYZ} (x y z, mm), {out / UVD} (u v d), {out / REFERENCE_FILES[0]} (the original's space)"
    )
    if options.report:
        page = write_report(
            out / "report.html",
            title=f"SO-HandNet on ICVL ({options.split})",
            config={**networks[0].sizes, **run_facts(checkpoints[0]), "store": dict(store.options)},
            gt_mm=gt_mm,
            pred_mm=pred_mm,
            baseline_mm=baseline_mm,
            skeleton=store.options["skeleton"],
            frames=pictures(split, samples.indices, options),
            tables=tables(metrics, store.options["skeleton"]),
            notes=[metrics["protocol"], f"left out by preparation: {left_out or 'nothing'}"],
        )
        print(f"report: {page}")
    return metrics


# ------------------------------------------------------------------------------------------------------- what goes in


def check_complete(split: Split, allow_missing: bool) -> dict[str, int]:
    """How many frames preparation left out, by reason.

    Raises:
        DataError: some were and ``allow_missing`` is false: without them the error comes out too small.
    """
    skipped = split.skipped
    if skipped and not allow_missing:
        reason, names = next(iter(skipped.items()))
        count = sum(map(len, skipped.values()))
        raise DataError(
            f"the {split.name} split is not complete: preparation skipped {count} of {len(split) + count} frames, "
            f"{len(names)} {reason}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}",
            path=split.root,
            remedy="prepare the whole split, or score the rest with --allow_missing, which metrics.json will say",
        )
    return {reason: len(names) for reason, names in skipped.items()}


def load_networks(options: EvalConfig, intrinsics: str) -> tuple[list[SoHandNet], list[Checkpoint]]:
    """The checkpoints' networks, ready for inference, and the checkpoints.

    Raises:
        DataError: a checkpoint without encoder or estimator, or trained on clouds of the other intrinsics.
    """
    import torch

    from sohandnet.convert import load_checkpoint
    from sohandnet.model import folded

    networks, checkpoints = [], []
    for path in options.checkpoints:
        checkpoint = load_checkpoint(path)
        checkpoint.need("encoder", "estimator", path=path)
        check_intrinsics(checkpoint, path, intrinsics)
        if options.node_centre is not None:
            checkpoint = with_node_centre(checkpoint, options.node_centre)
        dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        networks.append(folded(checkpoint.build(), dtype).to(choose_device(options.device)))
        checkpoints.append(checkpoint)
    return networks, checkpoints


def check_intrinsics(checkpoint: Checkpoint, path: str | Path, intrinsics: str) -> None:
    """Raises DataError if the network was trained on clouds of another space than these."""
    if checkpoint.intrinsics != intrinsics:
        raise DataError(
            f"was trained on clouds with {checkpoint.intrinsics} intrinsics, these have {intrinsics} ones",
            path=path,
            remedy=f"prepare the frames with --intrinsics {checkpoint.intrinsics}",
        )


def with_node_centre(checkpoint: Checkpoint, node_centre: NodeCentre) -> Checkpoint:
    """The same weights, used with another node centre (README, ledger Q5)."""
    return dataclasses.replace(checkpoint, model={**checkpoint.model, "node_centre": node_centre})


def predict_all(networks: Sequence[SoHandNet], samples: StoreSamples, options: EvalConfig) -> Array:
    """(n, J, 3) normalised joints of all samples, the mean of the networks."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from sohandnet.data import collate

    loader: Any = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=options.batch_size,
        num_workers=options.workers,
        collate_fn=collate,
    )
    device, found = choose_device(options.device), []
    with torch.inference_mode(), tqdm(total=len(samples), unit="frame", desc="predict", mininterval=1.0) as bar:
        for batch in loader:
            moved = {k: v.to(device) for k, v in batch.items() if k in ("pc", "sn", "node", "node_knn")}
            joints = torch.stack([network(moved) for network in networks]).mean(0)
            found.append(joints.double().cpu().numpy())
            bar.update(len(joints))
    normalised = np.concatenate(found)
    bad = ~np.isfinite(normalised).all((1, 2))
    if bad.any():
        raise DataError(
            f"the network predicts numbers that are not finite for {samples.split.names[samples.indices[bad][0]]}",
            path=options.checkpoints[0],
            remedy="the training diverged: take another checkpoint",
        )
    return normalised


# ------------------------------------------------------------------------------------------------------ what comes out


def output_folder(options: EvalConfig) -> Path:
    """``--out``, or ``eval`` in the run of the first checkpoint."""
    if options.out:
        return Path(options.out)
    folder = Path(options.checkpoints[0]).parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return folder / ("eval" if options.split == "test" else "eval-train")


def write_texts(out: Path, pred_mm: Array, gt_mm: Array, K: Array) -> None:
    """Predictions and labels (n, J, 3) camera mm, as camera mm, as pixels and depth, and as the original writes them.

    The original's lines are x y z in its own space (y up), with a blank at the end.
    """
    from shared.predictions import write_predictions
    from sohandnet.orient import make_space

    reference = make_space("reference", K)
    for joints, xyz, uvd, original in (
        (pred_mm, XYZ, UVD, REFERENCE_FILES[0]),
        (gt_mm, XYZ_LABELS, UVD_LABELS, REFERENCE_FILES[1]),
    ):
        write_predictions(out / xyz, joints)
        write_predictions(out / uvd, project_all(joints, K))
        write_predictions(out / original, reference.from_camera(joints), decimals=6, trailing_blank=True)


def project_all(joints_mm: Array, K: Array) -> Array:
    """(..., 3) pixels and depth; joints at or behind the camera (a broken network's) go to the principal point."""
    import numpy as np

    from shared.camera import project

    front = joints_mm[..., 2:] > 0
    pixels = project(np.where(front, joints_mm, [0.0, 0.0, 1.0]), K)
    return np.concatenate([pixels, joints_mm[..., 2:]], -1)


def scores(pred_mm: Array, gt_mm: Array, names: Sequence[str]) -> dict[str, Any]:
    """Errors in true mm, and under ``reference_metric`` the same in the original's space.

    Args:
        pred_mm, gt_mm: (n, J, 3) camera frame, true mm.
        names: of the frames; their first part is the sequence.
    """
    import numpy as np

    from shared.metrics import frame_error, joint_errors, mean_error, median_error, per_joint_error, success_rate
    from sohandnet.orient import make_space

    space = make_space("reference")
    e = joint_errors(pred_mm, gt_mm)
    reference = joint_errors(space.from_camera(pred_mm), space.from_camera(gt_mm))
    sequence = np.array([name.rpartition("/")[0] for name in names])

    def rates(errors: Array) -> dict[str, float]:
        return dict(zip(map(str, THRESHOLDS_MM), success_rate(errors, THRESHOLDS_MM).tolist(), strict=True))

    return {
        "mean_error_mm": mean_error(e),
        "median_error_mm": median_error(e),
        "mean_of_worst_joint_mm": float(frame_error(e, "max").mean()),
        "per_joint_error_mm": per_joint_error(e).tolist(),
        "success_rate": rates(e),
        "per_sequence_error_mm": {str(s): float(e[sequence == s].mean()) for s in np.unique(sequence)},
        "reference_metric": {
            "mean_error": mean_error(reference),
            "per_joint_error": per_joint_error(reference).tolist(),
            "success_rate": rates(reference),
        },
    }


def tables(metrics: Mapping[str, Any], skeleton: str) -> list[tuple[str, list[str], list[list[object]]]]:
    """The report's own tables: both metrics side by side, and the sequences."""
    from shared import skeletons

    reference = metrics["reference_metric"]
    joints = skeletons.get(skeleton).joints
    per_joint = zip(joints, metrics["per_joint_error_mm"], reference["per_joint_error"], strict=True)
    rows: list[list[object]] = [["mean", metrics["mean_error_mm"], reference["mean_error"]]]
    if "baseline_mean_pose_mm" in metrics:
        rows.append(["mean pose", metrics["baseline_mean_pose_mm"], metrics["baseline_mean_pose_reference"]])
    rows += [list(row) for row in per_joint]
    rows += [
        [f"worst joint within {t} mm (%)", 100 * metrics["success_rate"][t], 100 * reference["success_rate"][t]]
        for t in map(str, THRESHOLDS_MM)
    ]
    sequences: list[list[object]] = [[name, value] for name, value in metrics["per_sequence_error_mm"].items()]
    return [
        ("True millimetres and the original's metric", ["", "true mm", "original's space"], rows),
        ("Mean error per sequence (mm)", ["sequence", "mean"], sequences),
    ]


def run_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: checkpoint.extra[key] for key in ("stage", "epoch", "step", "label_ratio") if key in checkpoint.extra}


def pictures(split: Split, indices: NDArray[np.int64], options: EvalConfig) -> Callable[[int], tuple[Any, Any]]:
    """index -> (depth image (H, W) mm, K): the data set's where ``--data`` is given, else drawn from the points."""
    import numpy as np

    K = np.asarray(split.options["K"])
    if not options.data:
        return lambda index: (cloud_picture(split, int(indices[index])), K)
    from shared.datasets import icvl

    frames = icvl.open(
        options.data,
        "train" if split.name == "train" else "test",
        include_rotated=bool(split.options.get("include_rotated")),
    )
    places = {name: i for i, name in enumerate(frames.names())}

    def picture(index: int) -> tuple[Any, Any]:
        name = split.names[indices[index]]
        if name not in places:
            raise DataError(f"has no frame {name}", path=options.data, remedy="give the folder that was prepared")
        return icvl.read_depth(frames.folder / frames.files[places[name]]), K

    return picture


def cloud_picture(split: Split, index: int) -> NDArray[np.float32]:
    """(240, 320) mm: the stored points of a frame seen by the camera, each as 3 x 3 pixels, near over far."""
    import numpy as np

    from shared.camera import project
    from shared.datasets.icvl import SIZE

    points = split.joints_mm(np.swapaxes(split.arrays["cloud"][index, :3], 0, 1), index)
    points = points[np.argsort(-points[:, 2])].repeat(9, 0)
    around = np.tile(np.indices((3, 3)).reshape(2, 9).T - 1, (len(points) // 9, 1))
    u, v = (np.rint(project(points, split.options["K"])).astype(int) + around).T
    seen = (u >= 0) & (u < SIZE[0]) & (v >= 0) & (v < SIZE[1])
    picture = np.zeros(SIZE[::-1], np.float32)
    picture[v[seen], u[seen]] = points[seen, 2]  # of several values for one pixel the last stays, the nearest
    return picture


def print_table(metrics: Mapping[str, Any]) -> None:
    """The numbers a reader looks for first, with the protocol."""
    reference = metrics["reference_metric"]
    print(f"\nICVL {metrics['split']}: {metrics['frames']} frames\n  {metrics['protocol']}")
    print("                              true mm   original's space")
    print(f"  mean joint error           {metrics['mean_error_mm']:8.2f}   {reference['mean_error']:8.2f}")
    if "baseline_mean_pose_mm" in metrics:
        pair = metrics["baseline_mean_pose_mm"], metrics["baseline_mean_pose_reference"]
        ratio = metrics["ratio_to_baseline"]
        print(f"  mean-pose baseline         {pair[0]:8.2f}   {pair[1]:8.2f}   (ours is {ratio:.2f} of it)")
    for t in map(str, THRESHOLDS_MM):
        pair = 100 * metrics["success_rate"][t], 100 * reference["success_rate"][t]
        print(f"  worst joint within {t} mm   {pair[0]:8.1f} % {pair[1]:8.1f} %")
    print()


if __name__ == "__main__":
    exit_on_error(main)
