"""Writes the two centre files of one MSRA fold in the author's format.

    python -m v2v_posenet.make_centers --method network --checkpoint runs/center_3/center_net.pt \\
        --data.root DIR --data.test_subject 3 --out DIR/msra_center

``center_train_{s}_refined.txt`` and ``center_test_{s}_refined.txt`` get one line per labelled frame, in label order:
``x y z`` in mm with y up, or ``invalid`` three times where no hand was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, exit_on_error
from shared.precision import choose_device
from v2v_posenet import centers

BATCH = 64


@dataclass
class FoldData:
    """The fold.

    Args:
        root: folder with P0 to P8
        test_subject: person left out, 0 to 8
    """

    root: str
    test_subject: int = 3


@dataclass
class MakeCenters:
    """Options of the program.

    Args:
        data: the fold
        out: folder for the two files
        method: com = centre of mass of the crop; gt-mean = mean of the labelled joints (an upper bound, not a result);
            network = centre of mass improved by a trained network
        checkpoint: center_net.pt of this fold, for the method network
        cube_mm: edge of the cube around the centre of mass [mm]; the network uses its own
        min_pixels: fewer pixels than this are no hand [pixels]; the network uses its own
        mass_iterations: how often the centre of mass is taken again inside the cube; the network uses its own
        iterations: passes of the network, each around the result of the one before
        device: cpu, cuda, or auto (cuda where there is one)
        overwrite: replace files that are there
    """

    data: FoldData
    out: str
    method: Literal["com", "gt-mean", "network"] = "com"
    checkpoint: str | None = None
    cube_mm: float = 200.0
    min_pixels: int = centers.MIN_PIXELS
    mass_iterations: int = 1
    iterations: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    overwrite: bool = False


def make_centers(options: MakeCenters, progress: bool = True) -> dict[str, Path]:
    """Writes both files and returns their paths by split.

    Raises:
        DataError: a file is there already; the checkpoint is missing, needless or of another fold; the data are bad.
    """
    from tqdm import tqdm

    from shared.datasets import msra
    from shared.datasets.centers import write_centers
    from v2v_posenet.train_center import rough_center

    fold = options.data.test_subject
    if (options.method == "network") != (options.checkpoint is not None):
        raise DataError(
            f"--method {options.method} {'needs' if options.checkpoint is None else 'takes no'} --checkpoint"
        )
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    paths: dict[str, Path] = {split: Path(options.out) / f"center_{split}_{fold}_refined.txt" for split in splits}
    for path in paths.values():
        if path.exists() and not options.overwrite:
            raise DataError("the file is here already", path=path, remedy="add --overwrite, or give another --out")

    refiner = None
    cube_mm, min_pixels, mass_iterations = options.cube_mm, options.min_pixels, options.mass_iterations
    if options.checkpoint is not None:
        from v2v_posenet.center_net import load_center_checkpoint

        refiner, _ = load_center_checkpoint(options.checkpoint, choose_device(options.device))
        if refiner.test_subject != fold:
            raise DataError(
                f"the network left out P{refiner.test_subject}, so it has seen P{fold}",
                path=options.checkpoint,
                remedy=f"train one with --data.test_subject {fold}",
            )
        cube_mm, min_pixels, mass_iterations = refiner.cube_mm, refiner.min_pixels, refiner.mass_iterations

    for split in splits:
        data = msra.open(options.data.root, split, test_subject=fold)
        points = data.joints_mm.mean(1) if options.method == "gt-mean" else np.full((len(data), 3), np.nan)
        patches: list[NDArray[np.float32]] = []
        rows: list[int] = []
        frames = range(len(data)) if options.method != "gt-mean" else range(0)
        for i in tqdm(frames, desc=f"{options.method} {split}", disable=not progress):
            frame = data[i]
            rough = rough_center(frame, cube_mm=cube_mm, min_pixels=min_pixels, iterations=mass_iterations)
            if rough is None:
                continue
            points[i] = rough
            if refiner is None or frame.depth_mm is None:
                continue
            for _ in range(options.iterations - 1):
                points[i] = refiner(frame.depth_mm, frame.K, frame.crop_xy, points[i])
            patches.append(refiner.patch(frame.depth_mm, frame.K, frame.crop_xy, points[i]))
            rows.append(i)
            if len(rows) == BATCH:
                points[rows] = refiner.refine(patches, points[rows])
                patches, rows = [], []
        if refiner is not None and rows:
            points[rows] = refiner.refine(patches, points[rows])
        valid = np.isfinite(points).all(1)
        write_centers(paths[split], points, valid, y_up=True)
        apart = np.linalg.norm(points - data.joints_mm.mean(1), axis=1)[valid]
        mean = f"{apart.mean():.2f} mm from the mean of the joints" if len(apart) else "none found"
        print(f"{paths[split]}: {valid.sum()} centres, {(~valid).sum()} invalid; {mean}")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    from shared.options import parse

    parsed = parse(
        MakeCenters,
        prog="python -m v2v_posenet.make_centers",
        description="Writes the centre files of one MSRA fold in the format of V2V-PoseNet's authors.",
        argv=argv,
    )
    make_centers(parsed.options)
    return 0


if __name__ == "__main__":
    exit_on_error(main)
