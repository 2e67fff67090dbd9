"""Evaluates V2V-PoseNet: ``python -m v2v_posenet.eval runs/v2v/standin/checkpoints/last.pt --data.root DIR``.

Predicts every frame of a split, writes the predictions in the port's and in the author's text format, reads the port's
back and scores it: the same code scores anyone's file. Ends with a table, ``metrics.json`` and a report with pictures.
The HANDS2017 test frames come without labels: there it writes the challenge file and scores nothing.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse
from shared.precision import choose_device
from v2v_posenet.config import DataOptions, EvalConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shared.datasets.base import Frame, FrameDataset
    from v2v_posenet.inference import Predictor

    Array = NDArray[np.float64]

CHALLENGE_RESULT = "hands2017_challenge.txt"


def main() -> None:
    parsed = parse(
        EvalConfig,
        prog="python -m v2v_posenet.eval",
        description="Evaluate checkpoints of V2V-PoseNet and write predictions, numbers and a report.",
        positional="checkpoints",
        positional_help="checkpoint files; several are averaged",
    )
    evaluate(parsed.options, parsed.yaml)


def data_options(options: EvalConfig, trained: dict[str, Any], dataset: str) -> DataOptions:
    """The training run's data options, with what the command line says instead."""
    known = {f.name for f in dataclasses.fields(DataOptions)}
    merged = {"dataset": dataset, **{k: v for k, v in trained.items() if k in known}}
    given = {
        "dataset": options.data.dataset,
        "test_subject": options.data.test_subject,
        "centers": options.data.centers,
    }
    merged |= {key: value for key, value in given.items() if value is not None}
    return DataOptions(**{**merged, "root": options.data.root})


def output_folder(options: EvalConfig) -> Path:
    """``--out``, or ``eval`` in the run of the first checkpoint; relative where the checkpoint's path is."""
    if options.out:
        return Path(options.out)
    folder = Path(options.checkpoints[0]).parent
    if folder.name == "checkpoints":
        folder = folder.parent
    elif folder.resolve().name == "checkpoints":  # called from inside it
        folder = folder / ".."
    return folder / ("eval" if options.split == "test" else "eval-train")


def evaluate(options: EvalConfig, config_yaml: str) -> dict[str, Any]:
    """Predicts, writes, scores and reports; returns what is in ``metrics.json``.

    Raises:
        DataError: no checkpoint, checkpoints that do not belong together, bad data, missing pictures, a frame without a
            centre.
    """
    if not options.checkpoints:
        raise DataError("no checkpoint given", remedy="name one: runs/v2v/<run>/checkpoints/last.pt")

    import numpy as np

    from shared.metrics import frame_error, itop_map, joint_errors, success_rate
    from shared.report import write_report
    from shared.safe_io import atomic_write_text
    from v2v_posenet.data import limited, open_frames
    from v2v_posenet.inference import Predictor
    from v2v_posenet.results import TEST_RESULT, TRAIN_RESULT, read_world, write_author_result, write_world

    device = choose_device(options.device)
    predictor = Predictor(options.checkpoints, device=device, precision=options.precision, refine=options.refine)
    first = predictor.checkpoints[0]
    data = data_options(options, first.extra.get("data", {}), first.dataset)
    whole = open_frames(data, options.split)
    left_out = check_complete(whole, data, options)
    frames = limited(whole, options.data.limit)
    print(frames.summary(), flush=True)
    # opened before the long part, so that a missing training split is noticed now
    mean_mm = None
    if options.baseline and getattr(whole, "joints_mm", None) is not None:
        mean_mm = mean_pose(open_frames(data, "train"), data.centers == "gt")

    pred_mm, gt_mm, centers_mm = predict_all(predictor, frames, options, gt_centers=data.centers == "gt")
    out = output_folder(options)
    result = out / (TEST_RESULT if options.split == "test" else TRAIN_RESULT)
    write_world(result, pred_mm, data.dataset)
    write_author_result(out / "result.txt", author_points(pred_mm, data.dataset, frames[0].K))
    print(f"predictions: {result} (the port's format: world, mm) and {out / 'result.txt'} (the author's)")
    metrics: dict[str, Any] = {
        "dataset": data.dataset,
        "split": options.split,
        "protocol": "camera-frame joint error, no alignment; centre: " + ("labels" if data.centers == "gt" else "file"),
        "frames": len(pred_mm),
        "frames_in_split": len(whole),
        "left_out": left_out,
        "allow_missing": options.allow_missing,
        "checkpoints": [str(path) for path in options.checkpoints],
    }

    def write_metrics() -> None:
        atomic_write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        atomic_write_text(out / "eval_config.yaml", config_yaml)

    if gt_mm is None:
        challenge = out / CHALLENGE_RESULT
        write_challenge(challenge, [name.rpartition("/")[2] + ".png" for name in frames.names()], pred_mm)
        print(f"challenge file: {challenge} ({len(pred_mm)} lines, BoundingBox.txt's order: name and 63 numbers)")
        if len(frames) < len(whole) or any(left_out.values()):
            print("  it is not complete: the challenge wants every test frame")
        print(f"{data.dataset} has no labels for the {options.split} split: nothing to score, no baseline, no report")
        metrics |= {"protocol": "none: this split has no labels", "mean_error_mm": None}
        write_metrics()
        return metrics

    write_world(out / labels_name(options.split, data), gt_mm, data.dataset)
    pred_mm = read_world(result, data.dataset)
    errors = joint_errors(pred_mm, gt_mm)
    body = data.dataset.startswith("itop")
    thresholds = [50, 100, 150, 200, 300] if body else [10, 20, 30, 40, 50]
    metrics |= {
        "mean_error_mm": float(errors.mean()),
        "median_error_mm": float(np.median(errors)),
        "per_joint_error_mm": errors.mean(axis=0).tolist(),
        "success_rate": dict(zip(map(str, thresholds), success_rate(errors, thresholds).tolist(), strict=True)),
        "mean_of_worst_joint_mm": float(frame_error(errors, "max").mean()),
        "joints_outside_cube": outside_share(gt_mm, centers_mm, first.cube_mm),
    }
    if body:
        mean_precision, precisions = itop_map(errors)
        metrics |= {"map_10cm": mean_precision, "ap_10cm_per_joint": precisions.tolist()}
    baseline_mm = None
    if mean_mm is not None:
        baseline_mm = mean_mm + centers_mm[:, None]
        metrics["baseline_mean_pose_mm"] = float(joint_errors(baseline_mm, gt_mm).mean())
        metrics["ratio_to_baseline"] = metrics["mean_error_mm"] / metrics["baseline_mean_pose_mm"]
    write_metrics()
    page = write_report(
        out / "report.html",
        title=f"V2V-PoseNet on {data.dataset} ({options.split})",
        config={
            "variant": first.variant,
            "grid": first.grid,
            **dataclasses.asdict(first.convention),
            **run_facts(first),
        },
        gt_mm=gt_mm,
        pred_mm=pred_mm,
        baseline_mm=baseline_mm,
        skeleton=first.skeleton,
        frames=lambda index: picture_of(frames[index]),
        notes=[frames.summary(), metrics["protocol"]],
    )
    print_table(metrics)
    print(f"report:   {page}")
    for picture in sorted(out.glob("report_*.png")):
        print(f"picture:  {picture}")
    return metrics


def check_complete(frames: FrameDataset, data: DataOptions, options: EvalConfig) -> dict[str, int]:
    """How many labelled frames the reader left out, by reason.

    Frames without a centre or without valid labels do not belong to the split (the author's rule), except in the
    HANDS2017 test split, of which the challenge wants every frame.

    Raises:
        MissingFileError: pictures are missing and ``--allow_missing`` is not given; names the first few.
    """
    skipped: dict[str, list[str]] = getattr(frames, "skipped", {})
    challenge = data.dataset == "hands2017" and options.split == "test"
    missing = [
        (reason, name)
        for reason, names in skipped.items()
        if reason.startswith("missing pictures") or challenge
        for name in names
    ]
    if missing and not options.allow_missing:
        shown = ", ".join(name for _, name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise MissingFileError(
            f"the {options.split} split is not complete, {len(missing)} of {len(missing) + len(frames)} frames have "
            f"{' or '.join(sorted({reason for reason, _ in missing}))}: {shown}",
            path=data.root,
            remedy="unpack the whole set (python -m shared.datasets.check looks through it), or score the rest with "
            "--allow_missing, which metrics.json will say",
        )
    return {reason: len(names) for reason, names in skipped.items()} | dict(getattr(frames, "dropped", {}))


def labels_name(split: str, data: DataOptions) -> str:
    """The port's name of the labels' file, which has the subject in it; without one for the other data sets."""
    from v2v_posenet.results import ground_truth_name

    return ground_truth_name(split, data.test_subject) if data.dataset == "msra" else f"{split}_gt.txt"


def author_points(joints_mm: Array, dataset: str, K: Array) -> Array:
    """(N, J, 3) as the author publishes them: u, v, mm for ICVL, NYU and MSRA; else the data set's world (ITOP: m)."""
    import numpy as np

    from shared.camera import flip_y
    from v2v_posenet.results import spec_of

    if dataset in ("icvl", "nyu", "msra"):
        return np.concatenate([project_all(joints_mm, K), joints_mm[..., 2:]], axis=-1)
    world = flip_y(joints_mm) if spec_of(dataset).y_up else joints_mm
    return world / 1000 if dataset.startswith("itop") else world


def write_challenge(path: Path, names: list[str], joints_mm: Array) -> None:
    """Writes predictions as HANDS2017's training labels are: the picture's name and 63 numbers in mm, between tabs."""
    from shared.safe_io import atomic_write_text

    rows = joints_mm.reshape(len(joints_mm), -1).tolist()
    lines = ["\t".join([name, *(f"{x:.4f}" for x in row)]) for name, row in zip(names, rows, strict=True)]
    atomic_write_text(path, "".join(line + "\n" for line in lines))


def predict_all(
    predictor: Predictor, frames: FrameDataset, options: EvalConfig, *, gt_centers: bool
) -> tuple[Array, Array | None, Array]:
    """Predictions (N, J, 3), labels or None, centres (N, 3): OpenCV axes, mm, in the order of the data set."""
    import numpy as np
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    loader: Any = DataLoader(
        frames,  # type: ignore[arg-type]
        batch_size=options.batch_size,
        num_workers=options.workers,
        collate_fn=list,
    )
    pred, gt, centers = [], [], []
    with tqdm(total=len(frames), unit="frame", desc="predict", mininterval=1.0) as bar:
        for batch in loader:
            if gt_centers:
                batch = [dataclasses.replace(f, center_mm=f.joints_mm.mean(axis=0)) for f in batch]
            pred.append(predictor.predict_frames(batch).joints_mm)
            gt += [f.joints_mm for f in batch]
            centers += [f.center_mm for f in batch]
            bar.update(len(batch))
    labelled = all(joints is not None for joints in gt)
    return np.concatenate(pred), np.stack(gt) if labelled else None, np.stack(centers)


def project_all(joints_mm: Array, K: Array) -> Array:
    """(N, J, 2) pixels; joints at or behind the camera (a broken network's) go to the principal point."""
    import numpy as np

    from shared.camera import project

    front = joints_mm[..., 2:] > 0
    return project(np.where(front, joints_mm, [0.0, 0.0, 1.0]), K)


def picture_of(frame: Frame) -> tuple[NDArray[Any], Array]:
    """The depth crop of a frame and its own pinhole matrix."""
    from shared.camera import crop_K

    assert frame.depth_mm is not None
    return frame.depth_mm, crop_K(frame.K, *frame.crop_xy)


def outside_share(joints_mm: Array, centers_mm: Array, cube_mm: float) -> float:
    """Share of labelled joints that no network with this cube can reach."""
    import numpy as np

    return float((np.abs(joints_mm - centers_mm[:, None]) > cube_mm / 2).any(axis=-1).mean())


def mean_pose(frames: FrameDataset, gt_centers: bool) -> Array:
    """(J, 3) mean of (joint - centre) over a split, mm: what predicts without looking at the picture."""
    import numpy as np

    from v2v_posenet.data import Subset

    base, index = (frames.frames, frames.indices) if isinstance(frames, Subset) else (frames, slice(None))
    joints, centers = getattr(base, "joints_mm", None), getattr(base, "centers_mm", None)
    if joints is None:
        raise DataError("the training split has no labels for a mean pose", remedy="use --no-baseline")
    joints = joints[index]
    if gt_centers or centers is None:
        return np.asarray((joints - joints.mean(axis=1, keepdims=True)).mean(axis=0))
    return np.asarray((joints - centers[index][:, None]).mean(axis=0))


def run_facts(checkpoint: Any) -> dict[str, Any]:
    return {key: checkpoint.extra[key] for key in ("epoch", "step") if key in checkpoint.extra}


def print_table(metrics: dict[str, Any]) -> None:
    """The numbers a reader looks for first."""
    print(f"\n{metrics['dataset']} {metrics['split']}: {metrics['frames']} frames, {metrics['protocol']}")
    print(f"  mean joint error      {metrics['mean_error_mm']:8.2f} mm (median {metrics['median_error_mm']:.2f})")
    if "baseline_mean_pose_mm" in metrics:
        ratio = metrics["ratio_to_baseline"]
        print(f"  mean-pose baseline    {metrics['baseline_mean_pose_mm']:8.2f} mm (ours is {ratio:.2f} of it)")
    if "map_10cm" in metrics:
        print(f"  mAP at 10 cm          {100 * metrics['map_10cm']:8.2f} %")
    rates = "  ".join(f"{t} mm {100 * rate:5.1f} %" for t, rate in metrics["success_rate"].items())
    print(f"  frames whose worst joint is within   {rates}")
    print(f"  labelled joints outside the cube     {100 * metrics['joints_outside_cube']:.2f} %\n")


if __name__ == "__main__":
    exit_on_error(main)
