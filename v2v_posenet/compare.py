"""Several result files against one ground truth: means, per-joint bars and a histogram of errors.

    python -m v2v_posenet.compare --ground-truth gt.txt --result a.txt --result b.txt --names a b --out figures

Rows are ``x y z`` in mm (convert pixels with ``v2v_posenet.convert_result`` first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.errors import DataError, exit_on_error
from shared.metrics import joint_errors, mean_error, per_joint_error
from shared.options import parse
from v2v_posenet.config import CompareConfig
from v2v_posenet.plot import Array, joint_names, new_figure, read_pair, save_figure

HISTOGRAM_MM = np.linspace(0.0, 10.0, 201)  # 200 bins, as in the port


def plot_bars(errors: Mapping[str, Array], joints: Sequence[str], path: Path) -> Path:
    """Grouped bars: the mean error of each joint, one colour per result; ``errors`` maps names to (N, J) mm."""
    figure, axes = new_figure(12, 6)
    width = 0.8 / len(errors)
    for i, (name, e) in enumerate(errors.items()):
        place = np.arange(len(joints)) + (i - (len(errors) - 1) / 2) * width
        axes.bar(place, per_joint_error(e), width, label=f"{name}, mean {mean_error(e):.2f} mm")
    axes.set_xticks(range(len(joints)), list(joints), rotation=60)
    axes.set(ylabel="mean error (mm)")
    axes.legend()
    return save_figure(figure, path)


def plot_histogram(errors: Mapping[str, Array], path: Path) -> Path:
    """All joint errors in 200 bins from 0 to 10 mm; larger ones are counted in the legend."""
    figure, axes = new_figure()
    for name, e in errors.items():
        beyond = float((e > HISTOGRAM_MM[-1]).mean())
        axes.hist(e.ravel(), HISTOGRAM_MM.tolist(), histtype="step", label=f"{name}, {beyond:.1%} beyond 10 mm")
    axes.set(xlabel="error (mm)", ylabel="joints", xlim=(0, 10))
    axes.legend()
    return save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(
        CompareConfig,
        prog="python -m v2v_posenet.compare",
        description="Compares result files with each other against one ground truth.",
        argv=argv,
    ).options
    names = args.names or [path.stem for path in args.result]
    if len(names) != len(args.result) or len(set(names)) != len(names):
        raise DataError(
            f"{len(args.result)} results and the names {', '.join(names)}",
            remedy="give --names a different name per result",
        )
    errors = {}
    for name, path in zip(names, args.result, strict=True):
        gt, pred = read_pair(args.ground_truth, path)
        errors[name] = joint_errors(pred, gt)
        print(f"{name}: mean {mean_error(errors[name]):.2f} mm over {len(gt)} frames and {gt.shape[1]} joints")
    joints = joint_names(gt.shape[1], args.skeleton)
    print(plot_bars(errors, joints, args.out / "compare_joint_mean_error.png"))
    print(plot_histogram(errors, args.out / "compare_error_histogram.png"))
    return 0


if __name__ == "__main__":
    exit_on_error(main)
