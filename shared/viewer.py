"""Predicted and labelled hands side by side as skeletons that can be turned: ``python -m shared.viewer --help``.

    python -m shared.viewer --eval runs/v2v/standin/eval
    python -m shared.viewer --dataset msra --predictions test_res.txt --ground-truth test_s3_gt.txt

A page on this machine alone, served by viser (``pip install -r requirements/viewer.txt``). The hands lie in the frame
in which the protocol measures them (:mod:`shared.protocols`: the camera's, or after its alignment), OpenCV axes, mm, so
what is seen is what the error says.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError, exit_on_error

if TYPE_CHECKING:
    from shared.protocols import Protocol

Array = NDArray[np.float64]
Format = Literal["auto", "uvd", "xyz", "xyz-y-up"]

Y_UP = ("msra", "nyu14", "itop")  # protocols of the data sets whose own world has y up
GREY = (150, 150, 150)
_UNIT_MM = 100.0  # length of one unit of the scene: viser's cameras and clipping planes are made for a few units
_METRES_BELOW = 50.0  # a median depth below this is in metres: no camera of these data sets sees a hand at 5 cm


@dataclass
class Options:
    """Options of the viewer.

    Args:
        dataset: data set or protocol of the files (python -m shared.score --list-protocols shows them)
        predictions: prediction file
        ground_truth: labels; for HO-3D and FreiHAND evaluation_xyz.json or its folder
        eval: folder of an evaluation (metrics.json, test_res.txt, *_gt.txt) instead of the three above
        format: what the numbers of the text rows are: u v d (pixels, pixels, mm), x y z (y down), x y z with y up; auto
            takes u v d where hardly any of the first two numbers is negative, else the data set's own axes
        frame: frame to begin with, counted from 0; default: the median one
        host: address to serve on; another one than 127.0.0.1 lets others in
        port: port to serve on; the next free one is taken if it is in use
    """

    dataset: str | None = None
    predictions: Path | None = None
    ground_truth: Path | None = None
    eval: Path | None = None
    format: Format = "auto"
    frame: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080


@dataclass(frozen=True)
class Hands:
    """What is shown.

    Attributes:
        title: data set and how its files were read.
        skeleton: name of the joint order.
        pred_mm, gt_mm: (N, J, 3) in the frame the errors are measured in, OpenCV axes; NaN where there is no label.
        errors: (N, J) distances in mm, NaN where there is no label.
    """

    title: str
    skeleton: str
    pred_mm: Array
    gt_mm: Array
    errors: Array

    def mean_errors(self) -> Array:
        """(N,) mean over the labelled joints of each frame, NaN without any."""
        from shared.metrics import frame_error

        return frame_error(self.errors, "mean")

    def picks(self) -> dict[str, int]:
        """The best, the median and the worst frame by mean error, as in the report."""
        from shared.report import example_frames

        found = example_frames(self.errors)
        return {name: found[name] for name in ("best", "median", "worst")}

    def readout(self, frame: int) -> str:
        """The errors of a frame as Markdown: its mean, its rank among all, and each joint."""
        from shared import skeletons

        errors, means = self.errors[frame], self.mean_errors()
        labelled, ranked = ~np.isnan(errors), means[~np.isnan(means)]
        if not labelled.any():
            return f"**Frame {frame}** is not (wholly) labelled."
        rank = int((ranked < means[frame]).sum()) + 1
        lines = [
            f"**Frame {frame}**: mean error **{means[frame]:.2f} mm**, worst joint {errors[labelled].max():.2f} mm",
            f"rank {rank} of {len(ranked)} (1 is best); mean of all frames {np.nanmean(self.errors):.2f} mm",
            "",
            "| joint | mm |",
            "|---|---:|",
        ]
        joints = skeletons.get(self.skeleton).joints
        cells = [f"{e:.2f}" if e == e else "no label" for e in errors]
        lines += [f"| {joint} | {cell} |" for joint, cell in zip(joints, cells, strict=True)]
        return "\n\n".join(lines[:2]) + "\n".join(["", *lines[2:]])


# ------------------------------------------------------------------------------------------------------- loading


def guess_format(values: Array, protocol: Protocol) -> str:
    """``uvd`` or the axes of the data set's world, from (N, J, 3) numbers of a file.

    Pixels are not negative, but for a joint beyond the border; millimetres are, left of and below the optical axis.
    """
    world = "xyz-y-up" if protocol.name in Y_UP else "xyz"
    negative, known = (values[..., :2] < 0).sum(), np.isfinite(values[..., :2]).sum()
    return "uvd" if protocol.camera is not None and negative < 0.01 * known else world


def to_camera(values: Array, form: str, protocol: Protocol) -> Array:
    """Numbers of a text file (N, J, 3) -> mm in OpenCV axes; metres are told by their depths."""
    from shared import camera

    depths = values[..., 2][np.isfinite(values[..., 2])]
    scale = protocol.to_mm if 2 * (np.abs(depths) < _METRES_BELOW).sum() > len(depths) else 1.0
    if form == "uvd":
        if protocol.camera is None:
            raise DataError(f"{protocol.name} has no camera to convert u v d with", remedy="use --format xyz")
        return camera.uvd_to_xyz(values * [1.0, 1.0, scale], camera.intrinsics(*protocol.camera), check_depth=False)
    return camera.flip_y(values * scale) if form == "xyz-y-up" else values * scale


def _read_text(path: Path, form: Format, protocol: Protocol, finite: bool) -> tuple[Array, str]:
    from shared import skeletons
    from shared.predictions import read_rows

    values = read_rows(path, len(skeletons.get(protocol.skeleton)), finite=finite).values
    chosen = guess_format(values, protocol) if form == "auto" else form
    return to_camera(values, chosen, protocol), chosen


def _read_pair(
    protocol: Protocol, predictions: Path, ground_truth: Path, form: Format
) -> tuple[Array, Array, tuple[str, str]]:
    """Predictions and labels (N, J, 3) mm and what their numbers are, for each kind of file."""
    from shared.predictions import Axes, read_dexycb, read_mesh_json, read_points_json

    if protocol.files == "text":
        gt, gt_form = _read_text(ground_truth, form, protocol, finite=False)
        pred, pred_form = _read_text(predictions, form, protocol, finite=True)
        return pred, gt, (pred_form, gt_form)
    if protocol.files == "dexycb":
        index, gt = read_dexycb(ground_truth)
        found, pred = read_dexycb(predictions)
        if not np.array_equal(index, found):
            raise DataError(f"its {len(found)} frames are not the {len(index)} of {ground_truth}", path=predictions)
        return pred, np.where((gt != -1).any((1, 2), keepdims=True), gt, np.nan), ("xyz", "xyz")
    axes: Axes = "opengl" if protocol.files == "ho3d" else "opencv"
    labels = ground_truth / "evaluation_xyz.json" if ground_truth.is_dir() else ground_truth
    return read_mesh_json(predictions, axes)[0], read_points_json(labels, 21, axes), ("json", "json")


def load(dataset: str, predictions: Path, ground_truth: Path, form: Format = "auto") -> Hands:
    """Reads both files and measures as the protocol's headline does.

    Raises:
        MissingFileError, DataError: see :mod:`shared.predictions`; a set without 3-D labels, files of different length,
            an alignment that needs joints which have no label.
    """
    from shared import metrics, protocols

    protocol = protocols.get(dataset)
    if protocol.dims != 3:
        raise DataError(f"{protocol.name} has no 3-D joints to show", remedy="choose another data set")
    pred, gt, (pred_form, gt_form) = _read_pair(protocol, predictions, ground_truth, form)
    if len(pred) != len(gt):
        raise DataError(
            f"{len(pred)} rows, but the labels {ground_truth} have {len(gt)}",
            path=predictions,
            remedy="give the labels of the same split",
        )
    mask = np.asarray(np.isfinite(gt).all(-1))
    if not mask.any():
        raise DataError("no joint has a label", path=ground_truth, remedy="give the labels of a split that has some")
    alignment = protocol.alignments[0]
    if alignment != "none":  # it needs whole hands: a frame without one is shown as if it had no label at all
        mask = np.broadcast_to(np.asarray(mask.all(-1))[:, None], mask.shape)
        pred, filled = metrics.ALIGNMENTS[alignment](pred, np.where(mask[..., None], gt, pred), protocol.root)
    else:
        filled = np.where(mask[..., None], gt, 0.0)
    errors = metrics.joint_errors(pred, filled, mask)
    how = pred_form if pred_form == gt_form else f"{pred_form}, labels {gt_form}"
    title = f"{protocol.name}, read as {how}, {protocols.ALIGNMENT_TEXT[alignment]}"
    return Hands(title, protocol.skeleton, pred, np.where(mask[..., None], filled, np.nan), errors)


def load_eval(folder: Path) -> Hands:
    """The predictions and labels that an evaluation left in its folder: x y z in mm, the data set's own world.

    Raises:
        MissingFileError, DataError: not such a folder, an evaluation without labels, or what :func:`load` raises.
    """
    facts = folder / "metrics.json"
    remedy = "name the folder an evaluation wrote to, such as runs/v2v/standin/eval"
    if not facts.is_file():
        raise MissingFileError("this is no folder of an evaluation", path=facts, remedy=remedy)
    try:
        dataset = str(json.loads(facts.read_bytes())["dataset"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"it names no data set ({error!r})", path=facts, remedy=remedy) from error
    results = [folder / name for name in ("test_res.txt", "fit_res.txt") if (folder / name).is_file()]
    labels = sorted(folder.glob("*_gt.txt"))
    if len(results) != 1 or len(labels) != 1:
        raise DataError(
            f"expected test_res.txt (or fit_res.txt) and one *_gt.txt, found {len(results)} and {len(labels)}",
            path=folder,
            remedy="give --dataset, --predictions and --ground-truth",
        )
    dataset = dataset.removesuffix("-front").removesuffix("-top")
    from shared import protocols

    return load(dataset, results[0], labels[0], "xyz-y-up" if protocols.get(dataset).name in Y_UP else "xyz")


def load_options(options: Options) -> Hands:
    """What the command line asks for.

    Raises:
        DataError: neither or both of the two ways to name the files, a frame or port that does not exist.
    """
    files = {"dataset": options.dataset, "predictions": options.predictions, "ground-truth": options.ground_truth}
    missing = [f"--{name}" for name, value in files.items() if value is None]
    if options.eval is not None:
        if len(missing) < len(files) or options.format != "auto":
            raise DataError("--eval names everything by itself", remedy="leave out the other files and --format")
        hands = load_eval(options.eval)
    elif options.dataset is None or options.predictions is None or options.ground_truth is None:
        raise DataError(f"{', '.join(missing)} not given", remedy="name the files, or --eval FOLDER of an evaluation")
    else:
        hands = load(options.dataset, options.predictions, options.ground_truth, options.format)
    if options.frame is not None and not 0 <= options.frame < len(hands.errors):
        raise DataError(f"--frame {options.frame} is not one of the frames 0 to {len(hands.errors) - 1}")
    if not 0 < options.port < 65536:
        raise DataError(f"--port must be in 1 to 65535, got {options.port}")
    return hands


# ------------------------------------------------------------------------------------------------------- the page


def segments(
    joints: Array, skeleton: str, color: tuple[int, int, int] | None
) -> tuple[Array, NDArray[np.uint8], Array, NDArray[np.uint8]]:
    """Bones (E, 2, 3) and joints (M, 3) that are there, each with colours 0..255; fingers' colours for ``None``."""
    from shared import skeletons

    bones = skeletons.get(skeleton)
    seen = np.asarray(np.isfinite(joints).all(-1))
    colors = np.array([color or c for c in bones.colors], np.uint8)
    edges = np.array([e for e in bones.edges if seen[list(e)].all()], np.intp).reshape(-1, 2)
    return joints[edges], np.repeat(colors[edges[:, 1]][:, None], 2, axis=1), joints[seen], colors[seen]


def serve(hands: Hands, options: Options) -> Any:
    """Starts the page in the background and returns viser's server; ``stop()`` ends it.

    Raises:
        DataError: viser is not installed.
    """
    try:
        viser: Any = importlib.import_module("viser")
    except ImportError as error:
        raise DataError(
            f"the viewer needs viser ({error})",
            remedy="run make view-results, or pip install -r requirements/viewer.txt",
        ) from error
    picks = hands.picks()
    count, start = len(hands.errors), picks["median"] if options.frame is None else options.frame
    server: Any = viser.ViserServer(host=options.host, port=options.port, label="handpose", verbose=False)
    # Any page open in the browser could ask for viser's public tunnel over the web socket; nothing here goes out.
    server.request_share_url = lambda verbose=True: None
    server.gui.configure_theme(show_share_button=False, show_logo=False)
    scene, gui = server.scene, server.gui
    scene.set_up_direction("-y")
    server.initial_camera.position = (0.7, -0.4, -2.1)  # a little beside the camera that took the frames
    server.initial_camera.look_at = (0.0, 0.0, 0.0)

    gui.add_markdown(f"{hands.title}; {count} frames. Predictions in colours, labels grey; drag to turn.")
    slider = gui.add_slider("frame", 0, max(count - 1, 1), 1, start)
    buttons = gui.add_button_group("go to", tuple(picks))
    boxes = {"prediction": gui.add_checkbox("prediction", True), "ground truth": gui.add_checkbox("ground truth", True)}
    text = gui.add_markdown("")

    def draw() -> None:
        frame = min(int(slider.value), count - 1)
        both = np.stack([hands.pred_mm[frame], hands.gt_mm[frame]])
        middle = np.nanmean(both.reshape(-1, 3), axis=0)
        with server.atomic():
            for joints, name, color in zip(both, boxes, (None, GREY), strict=True):
                lines, line_colors, points, point_colors = segments((joints - middle) / _UNIT_MM, hands.skeleton, color)
                show = bool(boxes[name].value)
                parts = (("bones", lines), ("joints", points))
                for part, array in parts:
                    if not len(array):  # fingertips have no bones, an unlabelled frame has nothing
                        scene.remove_by_name(f"/{name}/{part}")
                if len(lines):
                    scene.add_line_segments(f"/{name}/bones", lines, line_colors, thickness=0.04, visible=show)
                if len(points):
                    options_of = {
                        "point_size": 0.06,
                        "point_shape": "circle",
                        "point_shading": "flat",
                        "precision": "float32",
                        "visible": show,
                    }
                    scene.add_point_cloud(f"/{name}/joints", points, point_colors, **options_of)
            text.content = hands.readout(frame)

    def jump(event: Any) -> None:
        slider.value = picks[event.target.value]

    slider.on_update(lambda _: draw())
    buttons.on_click(jump)
    for box in boxes.values():
        box.on_update(lambda _: draw())
    draw()
    return server


def main(argv: Sequence[str] | None = None) -> int:
    """The program; runs until Ctrl-C."""
    from shared.options import parse

    options = parse(
        Options,
        prog="python -m shared.viewer",
        description="Shows predicted and labelled hands as skeletons in the browser, on this machine alone.",
        argv=argv,
    ).options
    hands = load_options(options)
    server = serve(hands, options)
    print(f"viewer: http://{options.host}:{server.get_port()} ({hands.title}); Ctrl-C ends it", flush=True)
    server.sleep_forever()
    return 0


if __name__ == "__main__":
    exit_on_error(main)
