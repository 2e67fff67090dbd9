"""A hand's mesh from a picture and a box.

    python -m handoccnet.predict photo.jpg --bbox 340,232,120,140 --checkpoint model.pt --mano MANO_RIGHT.pkl --out out

Each picture gives ``NAME_crop.png`` (what the network saw), ``NAME_joints.png``, ``NAME_mesh.png``, ``NAME.obj`` and
``NAME.json``; with ``--fit`` also the four files of the original's second demo. Folders are taken in natural order,
animations (GIF, WebP, APNG) and videos frame by frame. A picture that cannot be used is reported and passed over; the
exit status is then 1; so is a hand that is not finite.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handoccnet.config import PredictConfig
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.frames import Picture, follows, list_files, lookup, read_pictures
from shared.inputs import parse_numbers, refuse_overwriting
from shared.options import parse
from shared.precision import choose_device

Float = NDArray[np.float64]
RGB = NDArray[np.uint8]
DEMO_EXPANSION = 1.25  # of the user's box, as in the original's demos
SKELETON = "thumb_first"
ENDINGS = ("_crop.png", "_joints.png", "_mesh.png", ".obj", ".json")
FIT_ENDINGS = ("_2d_prediction.png", "_projection.png", "_3dmesh.obj", "_3dmesh.json")  # with --fit, too


# ------------------------------------------------------------------------------------------------ what comes in


def read_boxes(path: str) -> dict[str, Float]:
    """Boxes by picture, of ``{"photo.jpg": [x, y, w, h], ...}`` or of a COCO-like annotation file.

    Raises:
        MissingFileError, DataError: no such file; another structure, a box that is not four finite numbers.
    """
    remedy = 'write {"photo.jpg": [340, 232, 120, 140], ...}'
    file = Path(path)
    if not file.is_file():
        raise MissingFileError("no such file of boxes", path=file, remedy=remedy)
    counts: Mapping[str, int] = {}
    try:
        content = json.loads(file.read_bytes()[: 64 << 20])
        if "images" in content and "annotations" in content:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            counts = Counter(str(names[a["image_id"]]) for a in content["annotations"])
            content = {names[a["image_id"]]: a["bbox"] for a in content["annotations"]}
        boxes = {str(name): np.array(box, np.float64) for name, box in content.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DataError(f"not a file of boxes ({error!r})", path=file, remedy=remedy) from None
    for name, count in counts.items():
        if count > 1:
            raise DataError(
                f"{count} boxes for {name}", path=file, remedy="keep one a picture; give others in a file of their own"
            )
    for name, box in boxes.items():
        if box.shape != (4,) or not np.isfinite(box).all():
            raise DataError(f"{name}: expected four numbers x, y, w, h", path=file, remedy=remedy)
    return boxes


def camera_of(options: PredictConfig, image_size: tuple[int, int]) -> Float:
    """(3, 3) pinhole matrix: the given intrinsics, or the focal length with the picture's centre."""
    if options.intrinsics:
        fx, fy, cx, cy = parse_numbers("intrinsics", options.intrinsics, "fx fy cx cy")
    else:
        fx = fy = options.focal
        cx, cy = image_size[0] / 2, image_size[1] / 2
    if fx <= 0 or fy <= 0:
        raise DataError(f"the focal length must be positive, got {fx:g} and {fy:g}")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


# ------------------------------------------------------------------------------------------------ the network


@dataclass(frozen=True)
class HandPrediction:
    """One hand; OpenCV axes (x right, y down, z forward), mm.

    Attributes:
        joints_mm: (21, 3) thumb-first, in MANO's own frame: turned like the camera, not placed.
        verts_mm: (778, 3) likewise.
        keypoints_2d: (21, 2) pixels of the picture.
        pose: (48,) axis-angle for the MANO layer of ``hand`` with the mean pose added (``flat_hand_mean=False``).
        betas: (10,) shape.
        bbox_xywh: (4,) square box that was cut out, pixels of the picture.
        crop: (S, S, 3) uint8, what the network saw (mirrored for a left hand).
        hand: right or left.
    """

    joints_mm: Float
    verts_mm: Float
    keypoints_2d: Float
    pose: Float
    betas: Float
    bbox_xywh: Float
    crop: RGB
    hand: Literal["right", "left"]


def square_of(
    bbox_xywh: ArrayLike, image_size: tuple[int, int], rule: Literal["reference", "clipped"], name: str
) -> Float:
    """(4,) the square that is cut out around a user's box.

    Raises:
        DataError: a box without extent, outside the picture, or of a single pixel; names ``name``.
    """
    from handoccnet.affine import check_bbox, square_bbox

    box = square_bbox(check_bbox(bbox_xywh, image_size, name=name), image_size, DEMO_EXPANSION, rule=rule)
    if np.isnan(box).any():
        raise DataError(f"{name}: the box shows less than two pixels", remedy="give a larger box")
    return box


class Predictor:
    """A loaded network: pictures and boxes in, hands out.

    Args:
        checkpoint: in our format; the author's snapshots go through ``python -m handoccnet.convert`` first.
        mano: MANO_RIGHT.pkl, its ``.npz``, or ``"standin"``.
        device, precision: where and how the network runs.

    Raises:
        DataError: no or another method's checkpoint, no MANO.
    """

    def __init__(self, checkpoint: str | Path, mano: str, *, device: str = "cpu", precision: str = "float32") -> None:
        from handoccnet.convert import load_checkpoint
        from handoccnet.data import MANO_REMEDY
        from handoccnet.inference import prepare
        from shared.mano import load_mano

        if not str(checkpoint):
            raise DataError(
                "no checkpoint is given",
                remedy="--checkpoint FILE: train one with make train-handoccnet, or convert the author's snapshot with "
                "python -m handoccnet.convert",
            )
        if not mano:
            raise DataError("no MANO model is named", remedy=MANO_REMEDY.replace("--data.mano", "--mano"))
        loaded = load_checkpoint(checkpoint)
        self.model = load_mano(mano, side="right")
        self.size = int(loaded.model["image_size"])
        self.device = device
        self.network = prepare(loaded.build(self.model), device=device, precision=precision)  # type: ignore[arg-type]

    def predict(
        self,
        pictures: Sequence[RGB],
        boxes_xywh: Sequence[ArrayLike],
        *,
        hand: Literal["right", "left"] = "right",
        box_rule: Literal["reference", "clipped"] = "reference",
    ) -> list[HandPrediction]:
        """One hand for each (picture, box) pair; repeat a picture for several hands.

        Args:
            pictures: (H, W, 3) uint8 RGB each.
            boxes_xywh: x, y, width, height each, pixels; the crop has 1.25 times the longer side.
            hand: of all of them.
            box_rule: see :func:`handoccnet.affine.square_bbox`.

        Raises:
            DataError: a box without extent or outside its picture.
        """
        import torch

        from handoccnet.affine import apply_affine
        from handoccnet.data import cut
        from shared.datasets.mirror import mirror_pose

        left = hand == "left"
        crops, squares = [], []
        for number, (rgb, given) in enumerate(zip(pictures, boxes_xywh, strict=True)):
            size = (rgb.shape[1], rgb.shape[0])
            box = square_of(given, size, box_rule, f"picture {number + 1}")
            squares.append(box)
            crops.append(cut(rgb, box, left=left, size=self.size))
        with torch.inference_mode():
            out = self.network(torch.stack([crop.image for crop in crops]).to(self.device))
        out = {key: out[key].double().cpu().numpy() for key in ("joints_mm", "verts_mm", "joints_img", "pose", "betas")}
        flip = np.array([-1.0, 1, 1]) if left else np.ones(3)
        hands = []
        for i, crop in enumerate(crops):
            hands.append(
                HandPrediction(
                    joints_mm=out["joints_mm"][i] * flip,
                    verts_mm=out["verts_mm"][i] * flip,
                    keypoints_2d=apply_affine(crop.to_picture, out["joints_img"][i] * self.size),
                    pose=mirror_pose(out["pose"][i]) if left else out["pose"][i],
                    betas=out["betas"][i],
                    bbox_xywh=squares[i],
                    crop=(crop.image.permute(1, 2, 0) * 255).round().byte().numpy(),
                    hand=hand,
                )
            )
        return hands

    def faces(self, hand: str) -> NDArray[np.int64]:
        """(1538, 3) triangles, counter-clockwise from outside for that hand."""
        return self.model.faces if hand == "right" else np.ascontiguousarray(self.model.faces[:, ::-1])


# ------------------------------------------------------------------------------------------------ what goes out


def write_results(
    out: Path,
    item: Picture,
    hand: HandPrediction,
    faces: NDArray[np.int64],
    K: Float,
    fit: Any,
    index: int,
    all_files: bool,
) -> None:
    """All files of one hand; ``fit`` is a :class:`handoccnet.fit.Fit` whose row ``index`` is this hand's."""
    from handoccnet.overlay import mesh_overlay, write_obj
    from shared.camera import project
    from shared.draw import draw_skeleton, save
    from shared.safe_io import atomic_write_text

    assert item.rgb is not None
    translation = fit.translation_mm[index]

    def named(ending: str) -> Path:
        return out / f"{item.name}{ending}"

    joints_picture = draw_skeleton(item.rgb, hand.keypoints_2d, SKELETON)
    save(named("_crop.png"), hand.crop)
    save(named("_joints.png"), joints_picture)
    save(named("_mesh.png"), mesh_overlay(item.rgb, hand.verts_mm + translation, faces, K))
    write_obj(named(".obj"), hand.verts_mm / 1000, faces)
    record = {
        "image": str(item.source),
        "hand": hand.hand,
        "crop_bbox_xywh": hand.bbox_xywh.tolist(),
        "skeleton": SKELETON,
        "joints_root_mm": (hand.joints_mm - hand.joints_mm[:1]).tolist(),
        "keypoints_2d": hand.keypoints_2d.tolist(),
        "mano": {"pose": hand.pose.tolist(), "betas": hand.betas.tolist(), "flat_hand_mean": False},
        "camera": {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]},
        "joints_mm": (hand.joints_mm + translation).tolist(),
        "reprojection_px": float(fit.reprojection_px[index]),
    }
    atomic_write_text(named(".json"), json.dumps(record, indent=1) + "\n")
    if not all_files:
        return
    save(named("_2d_prediction.png"), joints_picture)
    projected = project(hand.joints_mm + translation, K)
    save(named("_projection.png"), draw_skeleton(item.rgb, projected, SKELETON))
    write_obj(named("_3dmesh.obj"), hand.verts_mm / 1000, faces)  # not translated, as in the original
    fitted = {
        "hand_scale": [1.0],
        "hand_translation": (translation / 1000).tolist(),
        "mano_pose": hand.pose.tolist(),
        "mano_shape": hand.betas.tolist(),
    }
    atomic_write_text(named("_3dmesh.json"), json.dumps(fitted) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parsed = parse(
        PredictConfig,
        prog="python -m handoccnet.predict",
        description="Mesh, joints and MANO parameters of a hand in a picture, given a box around it.",
        argv=argv,
        positional="images",
        positional_help="pictures, folders of them, animations (GIF, WebP, APNG), videos",
    )
    return predict(parsed.options)


def predict(options: PredictConfig) -> int:
    """Runs the demo; returns the exit status, 1 where a picture had to be passed over.

    Raises:
        DataError: options that do not fit together, no checkpoint, no MANO, no picture at all.
    """
    out = Path(options.out)
    files = list_files(options.images, out)
    if bool(options.bbox) == bool(options.boxes):
        raise DataError(
            "no box is given" if not options.bbox else "--bbox and --boxes exclude one another",
            remedy="--bbox x,y,w,h says where the hand is, --boxes FILE.json does so for each picture; "
            "this method has no detector",
        )
    if options.depth < 0 or options.batch_size < 1:
        raise DataError(
            f"--depth must not be negative and --batch_size at least 1, got {options.depth:g}, {options.batch_size}"
        )
    endings = (*ENDINGS, *FIT_ENDINGS) if options.fit else ENDINGS
    refuse_overwriting(out, files, endings, [options.boxes, options.checkpoint, options.mano])
    fixed = np.array(parse_numbers("bbox", options.bbox, "x y w h")) if options.bbox else None
    boxes = read_boxes(options.boxes) if options.boxes else {}
    camera_of(options, (640, 480))  # bad numbers stop here, before the network is loaded

    device = choose_device(options.device)
    predictor = Predictor(options.checkpoint, options.mano, device=device, precision=options.precision)
    failed, written = 0, 0
    tracked: tuple[Float, Path] | None = None  # a hand's box and the file that showed it
    waiting: list[tuple[Picture, Float]] = []

    def flush() -> None:
        nonlocal failed, tracked, written
        if waiting:
            count, last = _predict_batch(predictor, waiting, options, out)
            tracked = None if last is None else (last, waiting[-1][0].source)
            written += count
            failed += len(waiting) - count
            waiting.clear()

    for item in read_pictures(files):
        try:
            if item.rgb is None:
                raise DataError(item.problem)
            size = (item.rgb.shape[1], item.rgb.shape[0])
            before = tracked[0] if options.track and tracked and follows(item, tracked[1]) else None
            box = _box_for(item, fixed, boxes, before, options.box_rule, size)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        if waiting and waiting[0][0].rgb is not None and waiting[0][0].rgb.shape != item.rgb.shape:
            flush()
        waiting.append((item, box))
        if len(waiting) >= (1 if options.track else options.batch_size):
            flush()
    flush()
    print(f"{written} pictures -> {out}" + (f", {failed} could not be used" if failed else ""))
    return 1 if failed else 0


def _box_for(
    item: Picture,
    fixed: Float | None,
    boxes: dict[str, Float],
    tracked: Float | None,
    rule: Literal["reference", "clipped"],
    size: tuple[int, int],
) -> Float:
    """The box of a picture, after the checks that must not come in the middle of a batch."""
    if tracked is not None:
        try:
            square_of(tracked, size, rule, item.name)
            return tracked
        except DataError:
            pass  # the hand has left the picture: look where it was given
    box = fixed if fixed is not None else lookup(item, boxes)
    if box is None:
        raise DataError(f"{item.source}: the file of boxes has none for {item.source.name}")
    square_of(box, size, rule, str(item.source))
    return box


def _predict_batch(
    predictor: Predictor, items: list[tuple[Picture, Float]], options: PredictConfig, out: Path
) -> tuple[int, Float | None]:
    """Predicts and writes a batch of pictures of one size; a hand that is not finite is reported and passed over.

    Returns:
        How many were written, and the last hand's box for tracking, None where it is not finite.
    """
    from handoccnet.affine import bbox_of_points
    from handoccnet.fit import fit_translation

    pictures = [item.rgb for item, _ in items if item.rgb is not None]
    hands = predictor.predict(pictures, [box for _, box in items], hand=options.hand, box_rule=options.box_rule)
    found: list[tuple[Picture, HandPrediction]] = []
    for (item, _), hand in zip(items, hands, strict=True):
        if all(np.isfinite(a).all() for a in (hand.joints_mm, hand.verts_mm, hand.keypoints_2d, hand.pose, hand.betas)):
            found.append((item, hand))
        else:
            print(f"error: {item.source}: the predicted hand of {item.name} is not finite", file=sys.stderr)
    if not found:
        return 0, None
    K = camera_of(options, (pictures[0].shape[1], pictures[0].shape[0]))
    fit = fit_translation(
        np.stack([hand.joints_mm for _, hand in found]),
        np.stack([hand.keypoints_2d for _, hand in found]),
        K,
        depth_mm=options.depth or None,
        method=options.method,
    )
    for index, (item, hand) in enumerate(found):
        write_results(out, item, hand, predictor.faces(hand.hand), K, fit, index, options.fit)
    if found[-1][0] is not items[-1][0]:
        return len(found), None
    return len(found), bbox_of_points(found[-1][1].keypoints_2d, 1.2)  # times 1.25 it is the 1.5 of the training crops


if __name__ == "__main__":
    exit_on_error(main)
