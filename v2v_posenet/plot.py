"""The port's figures: accuracy per joint over the distance, and the mean error of each joint.

    python -m v2v_posenet.plot --ground-truth test_s3_gt.txt --result test_res.txt --out figures --title msra_s3

Two files come out, ``msra_s3_joint_acc.png`` and ``msra_s3_joint_mean_error.png`` (the original wrote both to one
name and lost the first). No display is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, exit_on_error
from shared.metrics import accuracy, joint_errors, mean_error, per_joint_error
from shared.options import parse
from shared.predictions import read_predictions
from shared.safe_io import atomic_path
from shared.skeletons import get
from v2v_posenet.config import PlotConfig

Array = NDArray[np.float64]
THRESHOLDS_MM = np.linspace(0.0, 100.0, 100)


def new_figure(width: float = 10.0, height: float = 6.0) -> tuple[Any, Any]:
    """A figure of the file backend and its axes, in inches; safe without a display and in threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def joint_names(joints: int, skeleton: str | None) -> list[str]:
    """The skeleton's names where its J fits, otherwise the numbers 1 to J of the port's figures."""
    if skeleton is None:
        return [str(i + 1) for i in range(joints)]
    names = get(skeleton).joints
    if len(names) != joints:
        raise DataError(f"skeleton {skeleton!r} has {len(names)} joints, the files have {joints}")
    return list(names)


def plot_accuracy(e: Array, names: Sequence[str], path: Path) -> Path:
    """Figure 1: one curve per joint, the share of frames with an error strictly below; e (N, J) mm."""
    figure, axes = new_figure()
    for curve, name in zip(accuracy(e, THRESHOLDS_MM), names, strict=True):
        axes.plot(THRESHOLDS_MM, curve, label=name, linewidth=1.2)
    axes.set(xlabel="maximum allowed distance to GT (mm)", ylabel="fraction of frames", xlim=(0, 100), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2, loc="lower right")
    return save_figure(figure, path)


def plot_mean_errors(e: Array, names: Sequence[str], path: Path) -> Path:
    """Figure 2: one bar per joint and the overall mean as a line."""
    figure, axes = new_figure()
    axes.bar(range(len(names)), per_joint_error(e), tick_label=list(names), color="tab:blue")
    axes.axhline(mean_error(e), color="tab:red", linewidth=1, label=f"mean {mean_error(e):.2f} mm")
    axes.tick_params(axis="x", labelrotation=60)
    axes.set(ylabel="mean error (mm)")
    axes.legend()
    return save_figure(figure, path)


def read_pair(ground_truth: Path, result: Path) -> tuple[Array, Array]:
    """Labels and predictions (N, J, 3), world mm, of the same frames.

    Raises:
        DataError: unreadable, or different numbers of frames or joints.
    """
    gt, pred = read_predictions(ground_truth), read_predictions(result)
    if gt.shape != pred.shape:
        raise DataError(
            f"has {pred.shape[0]} frames of {pred.shape[1]} joints, {ground_truth} has {gt.shape[0]} of {gt.shape[1]}",
            path=result,
            remedy="give the labels of the same split, and the result of the whole split",
        )
    return gt, pred


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(
        PlotConfig,
        prog="python -m v2v_posenet.plot",
        description="Accuracy curves and mean errors per joint of a result file.",
        argv=argv,
    ).options
    gt, pred = read_pair(args.ground_truth, args.result)
    e = joint_errors(pred, gt)
    names = joint_names(e.shape[1], args.skeleton)
    for name, value in zip(names, per_joint_error(e), strict=True):
        print(f"{name}: {value:.2f} mm")
    print(f"mean: {mean_error(e):.2f} mm over {len(e)} frames")
    print(plot_accuracy(e, names, args.out / f"{args.title}_joint_acc.png"))
    print(plot_mean_errors(e, names, args.out / f"{args.title}_joint_mean_error.png"))
    return 0


if __name__ == "__main__":
    exit_on_error(main)
