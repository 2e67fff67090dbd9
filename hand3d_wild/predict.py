"""A hand's joints and mesh from a picture and a box.

    python -m hand3d_wild.predict photo.jpg --bbox 340,232,120,140 --checkpoint model.pt --mano MANO_RIGHT.pkl --out out

The box is tight around the hand's joints; the network is shown 2.2 times its longer side, as in training, and whether
the hand then fills about 1 / 2.2 of the crop is checked. 2-D joints of any detector do instead of a box, and crops that
are square already can be given as they are. Each picture gives ``NAME_crop.png`` (what the network saw),
``NAME_joints.png``, ``NAME_mesh.png``, ``NAME.obj``, ``NAME.ply``, ``NAME.json`` and ``NAME.npz``. Folders are taken in
natural order, animations (GIF, WebP, APNG) and videos frame by frame. A picture that cannot be used is reported and
passed over; the exit status is then 1.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hand3d_wild.config import PredictConfig
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.frames import PICTURES, Picture, follows, list_files, lookup, read_pictures
from shared.inputs import refuse_overwriting
from shared.options import parse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hand3d_wild.inference import Hand, Predictor, View

    Float = NDArray[np.float64]
    RGB = NDArray[np.uint8]

ENDINGS = ("_crop.png", "_joints.png", "_mesh.png", ".obj", ".ply", ".json", ".npz")
SHARES = (0.3, 0.62)  # of the crop's edge that a hand covers where the crop is right: 1 / 2.2 is 0.45


@dataclass(frozen=True)
class Job:
    """A picture that can be used: its crop, and what belongs to it as far as it is needed.

    Attributes:
        joints: (21, 3) u, v, confidence in the picture, order ``wild``.
        maps: (S, S, 21) heat maps.
        mask: (256, 256) silhouette in the network's frame.
    """

    item: Picture
    view: View
    joints: Float | None
    maps: NDArray[np.float32] | None
    mask: Float | None


# ------------------------------------------------------------------------------------------------ what comes in


def without_maps(files: Sequence[tuple[Path, str]], folder: str) -> list[tuple[Path, str]]:
    """The files without the heat maps among them (``x_0.png`` beside ``x.png``); the rest has all of theirs.

    Raises:
        MissingFileError: no such folder, or fewer heat maps than pictures need.
    """
    from hand3d_wild.heatmaps import require_groups

    if not Path(folder).is_dir():
        raise MissingFileError("--heatmaps: no such folder", path=folder, remedy="check the path")
    names = {name for _, name in files}
    kept = [(p, n) for p, n in files if not (re.search(r"_[0-6]$", n) and n[:-2] in names)]
    require_groups(folder, [name for path, name in kept if path.suffix.lower() in PICTURES])
    return kept


def read_table(path: str, what: str, shape: str) -> dict[str, Any]:
    """A JSON object of picture name -> something.

    Raises:
        MissingFileError, DataError: no such file, or another structure.
    """
    from shared.datasets.labels import read_json

    remedy = f'write {{"photo.jpg": {shape}, ...}}'
    if not Path(path).is_file():
        raise MissingFileError(f"no such file of {what}", path=path, remedy=remedy)
    content = read_json(path, max_bytes=2**26)
    if not isinstance(content, dict):
        raise DataError(
            f"expected an object of {what} by picture, got {type(content).__name__}", path=path, remedy=remedy
        )
    return content


def read_boxes(path: str) -> dict[str, Float]:
    """Tight boxes (4,) x, y, w, h by picture.

    Raises:
        MissingFileError, DataError: no such file; a box that is not four finite numbers with w and h above 0.
    """
    return {name: _box(value, path, name) for name, value in read_table(path, "boxes", "[340, 232, 120, 140]").items()}


def _box(value: Any, path: str, name: str) -> Float:
    import numpy as np

    try:
        box = np.array(value, np.float64)
    except (TypeError, ValueError):
        box = np.empty(0)
    if box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] > 0).all():
        raise DataError(f"{name}: expected x, y, w, h with w and h above 0, got {str(value)[:60]}", path=path)
    return box


def read_keypoints(path: str, order: str) -> dict[str, Float]:
    """(21, 3) u, v, confidence in the order ``wild`` by picture; two numbers a joint have confidence 1, a confidence
    below 0 (some detectors' word for missing) counts as 0.

    Raises:
        MissingFileError, DataError: no such file, another structure, an unknown order, no joint of confidence above 0.
    """
    import numpy as np

    from shared import skeletons

    index = skeletons.order(order, "wild")
    shape = f"[[u, v, confidence] x {len(index)}]"
    out = {}
    for name, value in read_table(path, "keypoints", shape).items():
        try:
            points = np.array(value, np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape not in ((21, 2), (21, 3)) or not np.isfinite(points).all():
            raise DataError(f"{name}: expected 21 x [u, v] or [u, v, confidence] in pixels", path=path)
        if points.shape[1] == 2:
            points = np.concatenate((points, np.ones((21, 1))), 1)
        points[:, 2] = points[:, 2].clip(0)
        if not points[:, 2].any():
            raise DataError(f"{name}: no joint has a confidence above 0", path=path)
        out[name] = points[index]
    return out


# ------------------------------------------------------------------------------------------------ the crop


def view_of(rgb: RGB, corners: Float, side: str, name: str) -> View:
    """The crop around points (n, 2) of the picture: a square of 2.2 times the longer side of their box.

    Raises:
        DataError: a box outside the picture, or too small.
    """
    import numpy as np

    from hand3d_wild.crop import crop_box, mirror_points
    from hand3d_wild.inference import View

    height, width = rgb.shape[:2]
    low, high = corners.min(0), corners.max(0)
    if (high < 0).any() or (low > [width - 1, height - 1]).any():
        raise DataError(f"{name}: the box lies outside the picture of {width} x {height} pixels")
    shown = mirror_points(corners, width) if side == "left" else corners
    box = crop_box(shown, np.ones(len(shown), np.bool_), (width, height), name=name)
    return View(rgb, box, "left" if side == "left" else "right")


def whole_view(rgb: RGB, side: str, name: str) -> View:
    """A picture that is a crop already.

    Raises:
        DataError: it is not square.
    """
    from hand3d_wild.inference import View

    height, width = rgb.shape[:2]
    if height != width or height < 2:
        raise DataError(
            f"{name}: --crops takes square pictures (the hand's box enlarged 2.2 times), it has {width} x {height}",
            remedy="give a box or keypoints of the whole picture instead",
        )
    return View(rgb, (0, height - 1, 0, width - 1), "left" if side == "left" else "right", whole=True)


def share_problem(share: float) -> str:
    """What is wrong with a crop in which the hand's joints cover this share of the edge; empty where it looks right."""
    if SHARES[0] <= share <= SHARES[1]:
        return ""
    kind = "small" if share < SHARES[0] else "large"
    return (
        f"the hand covers {100 * share:.0f} % of the crop's edge, about {100 / 2.2:.0f} % is expected: the box is too "
        f"{'large' if kind == 'small' else 'small'} or elsewhere; it should be tight around the joints, the program "
        "enlarges it 2.2 times"
    )


# ------------------------------------------------------------------------------------------------ what goes out


def write_results(out: Path, item: Picture, view: View, hand: Hand, predictor: Predictor, fit: dict[str, Any]) -> None:
    """All files of one hand."""
    import numpy as np
    import torch

    from hand3d_wild.fit import params_of
    from hand3d_wild.overlay import mesh_overlay, verts_uvz, write_obj, write_ply
    from shared.draw import draw_skeleton, save
    from shared.safe_io import atomic_path, atomic_write_text

    assert item.rgb is not None

    def named(ending: str) -> Path:
        return out / f"{item.name}{ending}"

    faces = predictor.faces(view.side)
    uvz = verts_uvz(hand.verts_2d, hand.verts_mm / 1000, hand.px_per_m)
    save(named("_crop.png"), view.input(predictor.size))
    save(named("_joints.png"), draw_skeleton(item.rgb, hand.keypoints_2d, "wild"))
    save(named("_mesh.png"), mesh_overlay(item.rgb, uvz, faces))
    write_obj(named(".obj"), hand.verts_mm / 1000, faces)
    write_ply(named(".ply"), hand.verts_mm / 1000, faces)
    record = {
        "image": str(item.source),
        "hand": view.side,
        "skeleton": "wild",
        "crop_top_bottom_left_right": list(view.box),
        "crop_of": "mirrored picture" if view.side == "left" else "picture",
        "hand_share_of_crop": hand.share,
        "crop_warning": share_problem(hand.share),
        "keypoints_2d": hand.keypoints_2d.tolist(),
        "joints_root_mm": (hand.joints_mm - hand.joints_mm[:1]).tolist(),
        "px_per_m": hand.px_per_m,
        "params": params_of(torch.from_numpy(hand.params)),
        **fit,
    }
    atomic_write_text(named(".json"), json.dumps(record, indent=1) + "\n")
    with atomic_path(named(".npz")) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            joints_mm=hand.joints_mm,
            verts_mm=hand.verts_mm,
            keypoints_2d=hand.keypoints_2d,
            verts_2d=hand.verts_2d,
            params=hand.params,
            px_per_m=hand.px_per_m,
        )


def main(argv: Sequence[str] | None = None) -> int:
    parsed = parse(
        PredictConfig,
        prog="python -m hand3d_wild.predict",
        description="Joints, mesh and 22 numbers of a hand in a picture, given a box tight around its joints; the "
        "network is shown a square of 2.2 times that box, as in training (another factor is the likeliest reason for "
        "bad results).",
        argv=argv,
        positional="images",
        positional_help="pictures, folders of them, animations (GIF, WebP, APNG), videos",
    )
    return predict(parsed.options)


def check(options: PredictConfig) -> None:
    """Options that do not fit together.

    Raises:
        DataError: not exactly one of --bbox, --boxes, --keypoints, --crops; --fit without what it fits to; heat maps
            without crops; options that would be ignored.
    """
    places = {"--bbox": options.bbox, "--boxes": options.boxes, "--keypoints": options.keypoints}
    given = [name for name, value in places.items() if value]
    if options.crops and options.keypoints:
        given.remove("--keypoints")  # of crops too: for heat maps and --fit
    given += ["--crops"] if options.crops else []
    if len(given) != 1:
        raise DataError(
            f"{' and '.join(given)} exclude one another" if given else "no box is given",
            remedy="--bbox x,y,w,h or --boxes FILE says where the hand is, --keypoints FILE gives its 2-D joints, "
            "--crops takes the pictures as they are; this method has no detector",
        )
    if options.heatmaps and not options.crops:
        raise DataError("--heatmaps are those of crops", remedy="give the crops, and --crops")
    if options.heatmaps and options.keypoints:
        raise DataError("--heatmaps and --keypoints exclude one another", remedy="maps are made of the keypoints")
    if options.fit in ("joints", "both") and not options.keypoints:
        raise DataError(f"--fit {options.fit} needs 2-D joints", remedy="give --keypoints FILE")
    if options.fit in ("mask", "both") and not options.masks:
        raise DataError(f"--fit {options.fit} needs silhouettes", remedy="give --masks FOLDER with <name>.png")
    if options.masks and options.fit not in ("mask", "both"):
        raise DataError("--masks are for the fit to silhouettes", remedy="give --fit mask or --fit both, or no --masks")
    if options.track and options.crops:
        raise DataError("--track looks for a box, --crops are shown as they are", remedy="leave out one of them")
    if options.masks and not Path(options.masks).is_dir():
        raise MissingFileError("--masks: no such folder", path=options.masks, remedy="check the path")
    if options.batch_size < 1:
        raise DataError(f"--batch_size must be at least 1, got {options.batch_size}")


def predict(options: PredictConfig) -> int:
    """Runs the predictor; returns the exit status, 1 where a picture had to be passed over.

    Raises:
        DataError: options that do not fit together, no checkpoint, no MANO, no picture at all.
    """
    out = Path(options.out)
    files = list_files(options.images, out)
    check(options)
    if options.heatmaps:
        files = without_maps(files, options.heatmaps)
    refuse_overwriting(out, files, ENDINGS, [options.boxes, options.keypoints, options.checkpoint, options.mano])
    fixed = None
    if options.bbox:
        words = options.bbox.replace(",", " ").split()
        fixed = _box([float(w) if _is_number(w) else w for w in words], "--bbox", options.bbox)
    boxes = read_boxes(options.boxes) if options.boxes else {}
    keypoints = read_keypoints(options.keypoints, options.order) if options.keypoints else {}
    from hand3d_wild.inference import Predictor
    from hand3d_wild.store import make_folder

    predictor = Predictor(options.checkpoint, options.mano, device=options.device, precision=options.precision)
    if predictor.form == "heatmaps" and not (keypoints or options.heatmaps):
        raise DataError(
            "this network needs heat maps beside the picture",
            remedy="give 2-D joints: --keypoints FILE; or with --crops the maps: --heatmaps FOLDER",
        )
    if predictor.form == "rgb" and options.heatmaps:
        raise DataError("this network sees the picture alone", path=options.checkpoint, remedy="leave out --heatmaps")
    make_folder(out)
    failed, written, warned = 0, 0, 0
    tracked: Float | None = None
    source: Path | None = None
    waiting: list[Job] = []

    def flush() -> None:
        nonlocal tracked, written, warned
        if waiting:
            hands = _predict_batch(predictor, waiting, options, out)
            tracked = hands[-1].keypoints_2d if options.track else None
            for job, hand in zip(waiting, hands, strict=True):
                problem = share_problem(hand.share)
                if problem:
                    print(f"warning: {job.item.source} ({job.item.name}): {problem}", file=sys.stderr)
                    warned += 1
            written += len(waiting)
            waiting.clear()

    # who follows a hand needs joints only for its first frame, unless maps are made of them or they are fitted to
    every = not options.track or predictor.form == "heatmaps" or options.fit in ("joints", "both")
    for item in read_pictures(files):
        if source is not None and not follows(item, source):
            tracked = None
        source = item.source
        try:
            if item.rgb is None:
                raise DataError(item.problem)
            joints = lookup(item, keypoints)
            if keypoints and joints is None and every:
                raise DataError(f"{item.source}: the file of keypoints has none for {item.source.name}")
            view = _view(item, options, fixed, boxes, joints, tracked)
            job = Job(item, view, joints, _maps(item, view, joints, options, predictor), _mask(item, view, options))
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        waiting.append(job)
        if len(waiting) >= (1 if options.track else options.batch_size):
            flush()
    flush()
    parts = [f"{failed} could not be used"] if failed else []
    parts += [f"{warned} crops look wrong"] if warned else []
    print(f"{written} pictures -> {out}" + "".join(f", {part}" for part in parts))
    return 1 if failed else 0


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _view(
    item: Picture,
    options: PredictConfig,
    fixed: Float | None,
    boxes: dict[str, Float],
    joints: Float | None,
    tracked: Float | None,
) -> View:
    """The crop of a picture: of the hand followed so far, of its keypoints, of its box, or the picture itself."""
    assert item.rgb is not None
    if options.crops:
        return whole_view(item.rgb, options.hand, str(item.source))
    if tracked is not None:
        try:
            return view_of(item.rgb, tracked, options.hand, item.name)
        except DataError:
            pass  # the hand has left the picture: look where it was given
    if joints is not None:
        return view_of(item.rgb, joints[joints[:, 2] > 0, :2], options.hand, str(item.source))
    box = fixed if fixed is not None else lookup(item, boxes)
    if box is None:
        what = "keypoints" if options.keypoints else "boxes"
        raise DataError(f"{item.source}: the file of {what} has none for {item.source.name}")
    import numpy as np

    corners = np.stack((box[:2], box[:2] + box[2:]))
    return view_of(item.rgb, corners, options.hand, str(item.source))


def _maps(
    item: Picture, view: View, joints: Float | None, options: PredictConfig, predictor: Predictor
) -> NDArray[np.float32] | None:
    """(S, S, 21) heat maps of a picture, for networks that take them: of its files, or of its joints."""
    from hand3d_wild.heatmaps import read_maps

    if predictor.form != "heatmaps":
        return None
    if options.heatmaps:
        size = (view.rgb.shape[1], view.rgb.shape[0])
        return view.stored_maps(read_maps(options.heatmaps, item.name, size), predictor.size)
    assert joints is not None
    return view.maps(joints[:, :2], joints[:, 2], predictor.size)


def _mask(item: Picture, view: View, options: PredictConfig) -> Float | None:
    return read_mask(options.masks, item, view) if options.fit in ("mask", "both") else None


def _predict_batch(predictor: Predictor, jobs: list[Job], options: PredictConfig, out: Path) -> list[Hand]:
    """Predicts, fits where asked, and writes a batch."""
    maps = [job.maps for job in jobs if job.maps is not None]
    hands = predictor.predict([job.view for job in jobs], maps or None)
    notes: list[dict[str, Any]] = [{} for _ in jobs]
    if options.fit != "none":
        hands, notes = _fit(predictor, jobs, hands, options)
    for job, hand, note in zip(jobs, hands, notes, strict=True):
        write_results(out, job.item, job.view, hand, predictor, note)
    return hands


def _fit(
    predictor: Predictor, jobs: list[Job], hands: list[Hand], options: PredictConfig
) -> tuple[list[Hand], list[dict[str, Any]]]:
    """Hands whose numbers are refined to their 2-D joints or silhouettes, and what to say about that."""
    import numpy as np
    import torch

    from hand3d_wild.fit import fit_hands

    given: dict[str, Any] = {}
    if options.fit in ("joints", "both"):
        joints = np.stack([job.view.to_network(job.joints[:, :2]) for job in jobs if job.joints is not None])
        given["joints_2d"] = torch.from_numpy(joints).float()
        given["confidence"] = torch.from_numpy(np.stack([j.joints[:, 2] for j in jobs if j.joints is not None])).float()
    if options.fit in ("mask", "both"):
        given["mask"] = torch.from_numpy(np.stack([job.mask for job in jobs if job.mask is not None]))
    start = torch.from_numpy(np.stack([hand.params for hand in hands]))
    decoder = copy.deepcopy(predictor.network.decoder).cpu()  # .cpu() alone would move the network's own
    fit = fit_hands(decoder, start=start, **given)
    fitted = predictor.decode([job.view for job in jobs], fit.params)
    notes = [
        {
            "fit": options.fit,
            "fit_objective": [float(fit.start[i]), float(fit.objective[i])],
            "fit_error_px": None if bool(fit.error_px[i].isnan()) else float(fit.error_px[i]),
        }
        for i in range(len(jobs))
    ]
    return fitted, notes


def read_mask(folder: str, item: Picture, view: View) -> Float:
    """(256, 256) float32 of 0 and 1: the silhouette of a picture in the network's frame.

    Raises:
        DataError: no such file, one of another size than the picture, or none of it within the crop.
    """
    import numpy as np

    from hand3d_wild.inference import View
    from shared.datasets.images import read_rgb

    assert item.rgb is not None
    path = Path(folder) / f"{item.name}.png"
    values = read_rgb(path, expected_size=(item.rgb.shape[1], item.rgb.shape[0]))
    bright = (values.max(-1, keepdims=True) > values.max() / 2).astype(np.uint8) * 255
    seen = View(bright.repeat(3, -1), view.box, view.side, view.whole).input(256)[..., 0] > 127
    if not seen.any():
        raise DataError("no pixel of the silhouette lies within the crop", path=path)
    return seen.astype(np.float32)


if __name__ == "__main__":
    exit_on_error(main)
