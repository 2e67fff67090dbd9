"""Evaluates a checkpoint by the paper's protocols.

    python -m hand3d_wild.eval runs/wild/train/checkpoints/last.pt --dataset stb --root STB

``stb`` (sequence B1, held out; predicted palm moved to the labelled one), ``dexter_object`` and ``egodexter`` (visible
fingertips, centroids aligned), ``mpii_nzsl`` (2-D, in pixels of the picture and of the network's crop), ``pretrain``
(the synthetic test set). Writes predictions and scores what it reads back; PCK curves are drawn over the published
ones, and a report shows mesh, joints and mask of the best, the median and the worst picture. No picture is left out
but those whose label has no joint to crop around; they are counted, as is what of the set is not there.
"""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hand3d_wild.config import EvalConfig
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hand3d_wild.inference import Hand, Predictor, View
    from shared.datasets.base import Frame

    Float = NDArray[np.float64]

HAND_MM = 150.0  # a hand is about this long: the least extent that a crop around fingertips assumes
PROTOCOLS = {
    "stb": "STB B1, 21 joints, predicted palm (mean of vertices 22 and 95) moved to the labelled one",
    "dexter_object": "Dexter+Object, visible fingertips, their centroids aligned",
    "egodexter": "EgoDexter, visible fingertips, their centroids aligned",
    "mpii_nzsl": "MPII+NZSL test, 2-D, pixels of the picture",
    "pretrain": "synthetic test set, wrists aligned",
}
GAPS = {
    "missing_sequences": "sequences without folder",
    "without_pictures": "sequences without pictures",
    "without_labels": "label files missing",
    "missing_images": "labels without picture",
    "without_image": "labels without picture",
    "without_label": "pictures without label",
}
"""The readers' words for what of a set is not there."""
SKELETONS = {
    "stb": "stb",
    "dexter_object": "fingertips",
    "egodexter": "fingertips",
    "mpii_nzsl": "thumb_first",
    "pretrain": "wild",
}


def main(argv: Sequence[str] | None = None) -> None:
    parsed = parse(
        EvalConfig,
        prog="python -m hand3d_wild.eval",
        description="Evaluate a checkpoint on STB, Dexter+Object, EgoDexter, MPII+NZSL or the synthetic test set.",
        argv=argv,
        positional="checkpoint",
        positional_help="a run's checkpoint, or a converted one",
    )
    evaluate(parsed.options, parsed.yaml)


def evaluate(options: EvalConfig, config_yaml: str) -> dict[str, Any]:
    """Predicts, writes, scores and reports; returns what is in ``metrics.json``.

    Raises:
        DataError: no checkpoint or several, one of another method, no MANO, bad data.
    """
    if len(options.checkpoint) != 1:
        raise DataError(
            f"expected one checkpoint, got {len(options.checkpoint)}",
            remedy="name one: runs/wild/<run>/checkpoints/last.pt",
        )
    if not options.root:
        raise DataError("--root is empty: it names the folder of the data set", remedy="give --root DIR")
    if options.batch_size < 1 or options.limit < 0:
        raise DataError(
            f"--batch_size must be at least 1 and --limit not negative, got {options.batch_size}, {options.limit}"
        )
    from hand3d_wild.inference import Predictor
    from hand3d_wild.store import make_folder
    from shared.safe_io import atomic_write_text

    predictor = Predictor(options.checkpoint[0], options.mano, device=options.device, precision=options.precision)
    out = make_folder(output_folder(options))
    atomic_write_text(out / "eval_config.yaml", config_yaml)
    run = evaluate_synthetic if options.dataset == "pretrain" else evaluate_pictures
    metrics = run(options, predictor, out)
    atomic_write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    print_metrics(metrics)
    print(f"report: {out / 'report.html'}")
    return metrics


def output_folder(options: EvalConfig) -> Path:
    """``--out``, or ``eval_<dataset>`` in the checkpoint's run."""
    if options.out:
        return Path(options.out)
    folder = Path(options.checkpoint[0]).resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / f"eval_{options.dataset}"


# ------------------------------------------------------------------------------------------------ what is evaluated


@dataclass(frozen=True)
class Item:
    """One labelled hand.

    Attributes:
        view: the picture and its crop.
        points: (21, 2) pixels of the picture, order ``wild``; NaN where nothing is labelled.
        target: (J, 3) mm or (J, 2) pixels in the set's order; NaN where nothing is labelled.
        name: of the picture.
        maps: (S, S, 21) heat maps where the network needs them.
        detected: whether the maps show a hand: a detector may have missed it.
    """

    view: View
    points: Float
    target: Float
    name: str
    maps: NDArray[np.float32] | None
    detected: bool = True


def open_frames(options: EvalConfig) -> list[tuple[Any, int]]:
    """(data set, index) of every picture that is evaluated, in order."""
    from shared.datasets import dexter_object, egodexter, mpii_nzsl, stb

    if options.dataset == "stb":
        cameras = {"left": ("BB_left",), "right": ("BB_right",), "both": ("BB_left", "BB_right")}
        sets: list[Any] = [stb.open(options.root, "test", camera=c) for c in cameras[options.stb_camera]]  # type: ignore[arg-type]
    elif options.dataset == "dexter_object":
        sets = [dexter_object.open(options.root, labels=options.tip_labels)]
    elif options.dataset == "egodexter":
        sets = [egodexter.open(options.root, labels=options.tip_labels)]
    else:
        sets = [mpii_nzsl.open(options.root, "test")]
    for frames in sets:
        print(frames.summary(), flush=True)
    places = [(frames, i) for frames in sets for i in range(len(frames))]
    if options.limit and options.limit < len(places):
        places = [places[i * len(places) // options.limit] for i in range(options.limit)]
    return places


def gaps_of(sets: Iterable[Any]) -> dict[str, int]:
    """What of the data sets is not there: numbers by the words of :data:`GAPS`, without zeros."""
    found: Counter[str] = Counter()
    for frames in sets:
        for name, words in GAPS.items():
            value = getattr(frames, name, 0)
            found[words] += value if isinstance(value, int) else len(value)
    return {words: count for words, count in found.items() if count}


def require_detections(places: Sequence[tuple[Any, int]], options: EvalConfig) -> None:
    """Refuses a folder of detections that lacks some pictures' files.

    Raises:
        MissingFileError: how many are missing, and the first.
    """
    names = {id(frames): frames.names() for frames, _ in places}
    files = [detections_file(names[id(frames)][i], options) for frames, i in places]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MissingFileError(
            f"no such keypoint file, as for {len(missing)} of {len(files)} pictures",
            path=missing[0],
            remedy='a detector that sees no hand writes {"people": []}',
        )


def detections_file(name: str, options: EvalConfig) -> Path:
    from hand3d_wild.prepare import detections_folder

    return detections_folder(options.heatmaps, options.dataset) / f"{name}_keypoints.json"


def item_of(frame: Frame, options: EvalConfig, size: int, form: str) -> Item:
    """A frame with its crop: 2.2 times the box of the labelled joints; fingertips count at least a hand's length.

    Raises:
        NoCropError: the label has no joint to crop around.
        MissingFileError, DataError: its detections are not there, or no such file.
    """
    import numpy as np

    from hand3d_wild.crop import crop_box, mirror_points
    from hand3d_wild.inference import View
    from hand3d_wild.prepare import find_hand, to_wild
    from shared import skeletons
    from shared.camera import project

    assert frame.rgb is not None
    target: Any = frame.keypoints_2d if frame.joints_mm is None else frame.joints_mm
    valid = np.isfinite(target).all(-1) if frame.joints_valid is None else frame.joints_valid
    target = np.where(valid[:, None], target, np.nan)
    own = target
    smallest = 0.0
    if frame.joints_mm is not None:
        own = np.full((len(target), 2), np.nan)
        own[valid] = project(target[valid], frame.K)
        if frame.skeleton == "fingertips":
            smallest = float(frame.K[0, 0] * HAND_MM / np.median(target[valid, 2]))
    points = np.full((21, 2), np.nan)
    if frame.skeleton == "fingertips":
        wild = skeletons.get("wild")
        points[[wild.index(joint) for joint in skeletons.get("fingertips").joints]] = own
    else:
        points = to_wild(own, frame.skeleton)
    side = frame.side or "right"
    width = frame.image_size[0]
    shown = mirror_points(points, width) if side == "left" else points
    known = np.isfinite(points).all(-1)
    box = crop_box(shown, known, frame.image_size, smallest=smallest, name=frame.name)
    view = View(frame.rgb, box, side)
    maps, detected = None, True
    if form == "heatmaps":
        joints, peaks = points, known.astype(np.float64)
        if options.heatmaps != "labels":
            hand = find_hand(detections_file(frame.name, options), side)
            detected = hand is not None
            found = to_wild(np.zeros((21, 3)) if hand is None else hand, "thumb_first")
            joints, peaks = found[:, :2], found[:, 2]
        maps = view.maps(joints, peaks, size)
    return Item(view, points, target, frame.name, maps, detected)


def in_order(hand: Hand, dataset: str) -> Float:
    """A predicted hand's joints as the data set orders them: (J, 3) mm, or (J, 2) pixels for the 2-D set."""
    import numpy as np

    from shared import skeletons
    from shared.skeletons import reorder

    wild = hand.keypoints_2d if dataset == "mpii_nzsl" else hand.joints_mm
    if dataset != "stb":
        return reorder(wild, "wild", SKELETONS[dataset])
    names = skeletons.get("stb").joints[1:]
    return np.concatenate((hand.palm_mm[None], wild[[skeletons.get("wild").index(joint) for joint in names]]))


def aligned(pred: Float, target: Float, dataset: str) -> Float:
    """Predictions (N, J, D) moved as the protocol says: joint 0, the labelled fingertips' centroid, or not at all."""
    import numpy as np

    if dataset == "mpii_nzsl":
        return pred
    if dataset in ("stb", "pretrain"):
        return pred - pred[:, :1] + target[:, :1]
    known = np.isfinite(target).all(-1, keepdims=True)
    count = known.sum(1, keepdims=True)
    shift = (np.where(known, target - pred, 0).sum(1, keepdims=True)) / np.maximum(count, 1)
    return np.asarray(pred + shift)


def errors_of(pred: Float, target: Float) -> Float:
    """(N, J) distances, NaN where nothing is labelled."""
    import numpy as np

    return np.asarray(np.linalg.norm(pred - target, axis=-1))


def mean_pose(store: str) -> tuple[Float, Float]:
    """The baseline: mean of the training split's right hands, order ``wild``.

    Returns:
        (21, 3) mm around joint 0 (STB's palm), NaN without 3-D labels; (21, 2) pixels of the 320-pixel crop.
    """
    import numpy as np

    from hand3d_wild.store import MADE, open_split

    rows = open_split(store, "train").rows
    rows = rows[rows["picture"] == MADE]
    solid = rows["joints_mm"][rows["has_3d"]]
    flat = np.where(rows["visible"][..., None], rows["points"], np.nan)
    joints = (solid - solid[:, :1]).mean(0) if len(solid) else np.full((21, 3), np.nan)
    return joints, np.nanmean(flat, 0)


def baseline_of(item: Item, mean: tuple[Float, Float], dataset: str) -> Float:
    """The mean pose in the frame of one picture, as :func:`in_order` gives predictions."""
    import numpy as np

    from hand3d_wild.crop import cut_points
    from hand3d_wild.inference import Hand

    flip = np.array([-1.0, 1, 1]) if item.view.side == "left" else np.ones(3)
    joints = mean[0] * flip
    points = item.view.from_network(cut_points(mean[1]))
    none = np.empty(0)
    hand = Hand(joints, none, points, none, 0.0, joints[0], points[0], np.empty(0, np.float32), 0.0)
    return in_order(hand, dataset)


# ------------------------------------------------------------------------------------------------ scores


def evaluate_pictures(options: EvalConfig, predictor: Predictor, out: Path) -> dict[str, Any]:
    """All of a data set's pictures: predictions file, scores, curves, report."""
    import numpy as np
    from tqdm import tqdm

    from hand3d_wild import curves
    from hand3d_wild.crop import NoCropError
    from shared.predictions import read_rows, write_predictions

    dataset, unit = options.dataset, "px" if options.dataset == "mpii_nzsl" else "mm"
    if options.heatmaps != "labels" and not Path(options.heatmaps).is_dir():
        raise MissingFileError("--heatmaps: no such folder", path=options.heatmaps, remedy="check the path")
    lines = curves.published_lines(dataset, options.curves)
    mean = mean_pose(options.store) if options.store else None
    places = open_frames(options)
    gaps = gaps_of({id(frames): frames for frames, _ in places}.values())
    from_detections = predictor.form == "heatmaps" and options.heatmaps != "labels"
    if from_detections:
        require_detections(places, options)
    preds, targets, bases, scales, names = [], [], [], [], []
    used: list[tuple[Any, int]] = []
    undetected = 0
    with tqdm(total=len(places), unit="picture", desc="predict", mininterval=1.0) as bar:
        for begin in range(0, len(places), options.batch_size):
            items = []
            for frames, i in places[begin : begin + options.batch_size]:
                bar.update()
                try:
                    items.append(item_of(frames[i], options, predictor.size, predictor.form))
                except NoCropError:
                    continue
                used.append((frames, i))
            if not items:
                continue
            undetected += sum(not item.detected for item in items)
            maps = [item.maps for item in items if item.maps is not None]
            hands = predictor.predict([item.view for item in items], maps or None)
            preds += [in_order(hand, dataset) for hand in hands]
            targets += [item.target for item in items]
            bases += [baseline_of(item, mean, dataset) for item in items] if mean is not None else []
            scales += [item.view.scale for item in items]
            names += [item.name for item in items]
    if not names or undetected == len(names):
        what = "label has a joint to crop around" if not names else "picture has a detected hand"
        raise DataError(f"not a single {what}", path=options.heatmaps if names else options.root)
    target = np.stack(targets)
    moved = aligned(np.stack(preds), target, dataset)
    file = out / "predictions.txt"
    write_predictions(file, moved, names=names)
    pred = read_rows(file, target.shape[1], dims=target.shape[2], max_rows=len(names)).values
    errors = {"ours": errors_of(pred, target)}
    if dataset == "mpii_nzsl":
        errors["ours, pixels of the network's 256"] = errors["ours"] / np.array(scales)[:, None]
    if unit == "mm" and SKELETONS[dataset] == "fingertips":
        several = np.isfinite(errors["ours"]).sum(1) > 1
        if several.any():
            errors["ours, without pictures of a single tip"] = errors["ours"][several]
    base = aligned(np.stack(bases), target, dataset) if mean is not None and np.isfinite(bases).all() else None
    if mean is not None and base is None:
        kind = "3-D" if unit == "mm" else "2-D"
        print(f"no mean pose to compare with: the store's training split has no {kind} labels of all joints")
    scored = {**errors, **({"mean pose": errors_of(base, target)} if base is not None else {})}
    metrics: dict[str, Any] = {
        "dataset": dataset,
        "protocol": PROTOCOLS[dataset],
        "pictures": len(names),
        "joints": int(np.isfinite(errors["ours"]).sum()),
        "complete": not options.limit and not gaps,
        "missing": gaps,
        "labels_without_joints": len(places) - len(used),
        **({"without_detections": undetected} if from_detections else {}),
        "unit": unit,
        "form": predictor.form,
        "heatmaps": options.heatmaps if predictor.form == "heatmaps" else "none",
        "checkpoint": str(options.checkpoint[0]),
        "mano_sha256": predictor.model.sha256,
        "scores": {name: score(e, unit) for name, e in scored.items()},
    }
    if dataset == "stb":
        metrics["scores"]["ours"]["pa_mean"] = procrustes(pred, target)
        if base is not None:
            metrics["scores"]["mean pose"]["pa_mean"] = procrustes(base, target)
    ratios(metrics)
    last = 50 if unit == "mm" else 30
    curves.write_curve(out / "pck.txt", curves.pck(errors["ours"], np.arange(last + 1)))
    curves.plot(out / "report_pck.png", scored, dataset, unit=unit, lines=lines)

    def example(index: int) -> tuple[Item, Hand]:
        frames, i = used[index]
        item = item_of(frames[i], options, predictor.size, predictor.form)
        return item, predictor.predict([item.view], None if item.maps is None else [item.maps])[0]

    pictures = draw_examples(out, errors["ours"], example, predictor, unit)
    write_page(out, metrics, [("Areas under the PCK curves", *curves.table(dataset, scored, unit))], pictures)
    return metrics


def score(errors: Float, unit: str) -> dict[str, float]:
    """Mean, median and areas of errors (N, J)."""
    import numpy as np

    from hand3d_wild.curves import RANGES, areas

    out = {"mean": float(np.nanmean(errors)), "median": float(np.nanmedian(errors))}
    for low, high in RANGES[unit]:
        for kind, value in areas(errors, low, high).items():
            out[f"auc_{low}_{high}_{kind}"] = value
    return out


def procrustes(pred: Float, target: Float) -> float:
    """Mean joint error after the similarity alignment, mm."""
    from shared.metrics import align_procrustes, joint_errors

    return float(joint_errors(align_procrustes(pred, target), target).mean())


def ratios(metrics: dict[str, Any]) -> None:
    """Adds ``ratio_to_baseline`` and ``pa_ratio_to_baseline`` where there is a baseline."""
    scores = metrics["scores"]
    if "mean pose" in scores:
        metrics["ratio_to_baseline"] = scores["ours"]["mean"] / scores["mean pose"]["mean"]
        if "pa_mean" in scores["mean pose"]:
            metrics["pa_ratio_to_baseline"] = scores["ours"]["pa_mean"] / scores["mean pose"]["pa_mean"]


# ------------------------------------------------------------------------------------------------ the synthetic set


def evaluate_synthetic(options: EvalConfig, predictor: Predictor, out: Path) -> dict[str, Any]:
    """The 22 numbers against the true ones, group by group, and the joints that follow from both."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from hand3d_wild.losses import pretrain_losses
    from hand3d_wild.synth_data import SynthSamples
    from shared.draw import draw_skeleton, save, side_by_side
    from shared.report import example_frames

    samples = SynthSamples(options.root, "test", size=predictor.size, form=predictor.form, limit=options.limit)
    print(samples.summary, flush=True)
    decoder = predictor.network.decoder
    groups: dict[str, list[float]] = {}
    joints: dict[str, list[Float]] = {name: [] for name in ("pred", "true", "pred_2d", "true_2d")}
    for begin in tqdm(range(0, len(samples), options.batch_size), unit="batch", desc="predict", mininterval=1.0):
        batch = SynthSamples.collate([samples[i] for i in range(begin, min(begin + options.batch_size, len(samples)))])
        pred = predictor.forward(batch["image"])
        vector = pred.params.vector.float().cpu()
        for i in range(len(vector)):
            parts = pretrain_losses(vector[i : i + 1], batch["params"][i : i + 1])
            for name, value in parts.items():
                groups.setdefault(name, []).append(float(value))
        with torch.inference_mode():
            truth = decoder(batch["params"].to(predictor.device))
        joints["pred"].append(pred.joints_m.double().cpu().numpy() * 1000)
        joints["true"].append(truth.joints_m.double().cpu().numpy() * 1000)
        joints["pred_2d"].append(pred.joints_2d.double().cpu().numpy())
        joints["true_2d"].append(batch["joints_2d"].double().numpy())
    all_ = {name: np.concatenate(parts) for name, parts in joints.items()}
    pred_mm = aligned(all_["pred"], all_["true"], "pretrain")
    mean = all_["true"] - all_["true"][:, :1]  # of this set itself: no method that ignores the picture does better
    base = np.broadcast_to(mean.mean(0), mean.shape)
    errors = {"ours": errors_of(pred_mm, all_["true"]), "mean pose": errors_of(base, mean)}
    metrics: dict[str, Any] = {
        "dataset": "pretrain",
        "protocol": PROTOCOLS["pretrain"],
        "pictures": len(samples),
        "complete": not options.limit,
        "unit": "mm",
        "form": predictor.form,
        "checkpoint": str(options.checkpoint[0]),
        "mano_sha256": predictor.model.sha256,
        "losses": {name: float(np.mean(values)) for name, values in groups.items()},
        "error_px": float(errors_of(all_["pred_2d"], all_["true_2d"]).mean()),
        "scores": {name: score(e, "mm") for name, e in errors.items()},
    }
    metrics["scores"]["ours"]["pa_mean"] = procrustes(pred_mm, all_["true"])
    metrics["scores"]["mean pose"]["pa_mean"] = procrustes(np.array(base), mean)
    ratios(metrics)
    pictures = []
    for name, index in example_frames(errors["ours"]).items():
        shown = (samples[index]["image"][..., :3] * 255).round().astype(np.uint8)
        scale = predictor.size / 256
        panels = [draw_skeleton(shown, all_[key][index] * scale, "wild", scale=2) for key in ("true_2d", "pred_2d")]
        file = out / f"report_{name.replace(' ', '_')}.png"
        save(file, side_by_side(panels, [f"{name}: true", "predicted"]))
        pictures.append((file, f"{name}: picture {index}, {errors['ours'][index].mean():.1f} mm"))
    rows = [[name, f"{value:.5g}"] for name, value in metrics["losses"].items()]
    rows.append(["total", f"{sum(metrics['losses'].values()):.5g}"])
    rows.append(["joints, pixels of 256", f"{metrics['error_px']:.3f}"])
    write_page(out, metrics, [("Weighted losses of the original", ["", "value"], rows)], pictures)
    return metrics


# ------------------------------------------------------------------------------------------------ for the reader


def draw_examples(out: Path, errors: Float, example: Any, predictor: Predictor, unit: str) -> list[tuple[Path, str]]:
    """``report_{best,median,...}.png``: labelled joints, predicted joints, mesh, and GrabCut's mask of the labels."""
    import numpy as np

    from hand3d_wild.crop import CUT, MIDDLE, NETWORK
    from hand3d_wild.masks import hand_mask
    from hand3d_wild.overlay import mask_overlay, mesh_overlay, verts_uvz
    from shared.draw import draw_skeleton, save, side_by_side
    from shared.report import example_frames

    zoom = CUT / NETWORK
    pictures = []
    for name, index in example_frames(errors).items():
        item, hand = example(index)
        crop = item.view.crop()

        def there(points: Float, view: View = item.view) -> Float:
            return view.to_network(points) * zoom + MIDDLE

        flip = np.array([-1.0, 1, 1]) if item.view.side == "left" else np.ones(3)
        uvz = verts_uvz(there(hand.verts_2d), hand.verts_mm * flip / 1000, float(hand.params[0]) * zoom)
        panels = [
            draw_skeleton(crop, there(item.points), "wild"),
            draw_skeleton(crop, there(hand.keypoints_2d), "wild"),
            mesh_overlay(crop, uvz, predictor.faces("right")),
        ]
        titles = [f"{name}: labels", "predicted joints", f"mesh, {np.nanmean(errors[index]):.1f} {unit}"]
        if np.isfinite(item.points).all():
            try:
                panels.append(mask_overlay(crop, hand_mask(crop, there(item.points))))
                titles.append("GrabCut mask of the labels")
            except DataError:
                pass  # joints outside the crop: there is no mask to show
        file = out / f"report_{name.replace(' ', '_')}.png"
        save(file, side_by_side(panels, titles))
        pictures.append((file, f"{name}: {item.name}, mean error {np.nanmean(errors[index]):.2f} {unit}"))
    return pictures


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:1320px;margin:0 auto;padding:20px}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:4px 12px;"
    "border-bottom:1px solid #e3e6ea;text-align:right}th:first-child,td:first-child{text-align:left}"
    "img{max-width:100%}figcaption{color:#52606d;font-size:13px}figure{margin:0 0 18px}"
)


def write_page(
    out: Path, metrics: dict[str, Any], tables: list[tuple[str, Any, Any]], pictures: list[tuple[Path, str]]
) -> None:
    """``report.html``: one file, pictures inside, every text escaped."""
    from shared.safe_io import atomic_write_text

    scores = metrics["scores"]
    keys = list(scores["ours"])
    rows = [
        [name, *(f"{values[key]:.4g}" if key in values else "-" for key in keys)] for name, values in scores.items()
    ]
    tables = [(f"Errors ({metrics['unit']})", ["", *keys], rows), *tables]
    curve = out / "report_pck.png"
    if curve.is_file():
        pictures = [(curve, "Share of joints within a threshold, all joints pooled"), *pictures]
    title = html.escape(f"hand3d_wild on {metrics['dataset']}")
    about = f"{metrics['protocol']}; {metrics['pictures']} pictures{extent_of(metrics)}"
    parts = [f"<h1>{title}</h1>", f"<p>{html.escape(about)}.</p>"]
    for key in ("ratio_to_baseline", "pa_ratio_to_baseline"):
        if key in metrics:
            parts.append(f"<p>{key.replace('_', ' ')}: {metrics[key]:.3f}</p>")
    for name, header, body in tables:
        head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in body)
        parts.append(f"<h2>{html.escape(name)}</h2><table><tr>{head}</tr>{lines}</table>")
    for file, caption in pictures:
        data = base64.b64encode(file.read_bytes()).decode()
        text = html.escape(caption)
        parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
        )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    atomic_write_text(out / "report.html", page)


def extent_of(metrics: dict[str, Any]) -> str:
    """What is to be said of the pictures beside their number; empty for a whole set."""
    parts = [] if metrics["complete"] else ["a part of the set"]
    parts += [f"{count} {words}" for words, count in metrics.get("missing", {}).items()]
    if metrics.get("labels_without_joints"):
        parts.append(f"left out {metrics['labels_without_joints']} labels without joints")
    if "without_detections" in metrics:
        parts.append(f"{metrics['without_detections']} of {metrics['pictures']} without detections")
    return f" ({', '.join(parts)})" if parts else ""


def print_metrics(metrics: dict[str, Any]) -> None:
    """The numbers a reader looks for first."""
    print(f"\n{metrics['dataset']}: {metrics['pictures']} pictures{extent_of(metrics)}; {metrics['protocol']}")
    for name, values in metrics["scores"].items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"  {name}: {shown} ({metrics['unit']})")
    for key in ("ratio_to_baseline", "pa_ratio_to_baseline"):
        if key in metrics:
            print(f"  {key}: {metrics[key]:.3f}")
    print()


if __name__ == "__main__":
    exit_on_error(main)
