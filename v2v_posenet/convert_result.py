"""Result files from pixels to the data set's world and back: one command for the author's five scripts.

    python -m v2v_posenet.convert_result --dataset icvl --to world --input result.txt --output result_world.txt

Rows hold ``u v z`` (pixels, pixels, mm; ITOP: metres) or ``x y z`` (mm; ITOP: metres) of every joint. *World* is the
data set's own, as in its label and centre files: y points up for MSRA, NYU and ITOP, down for ICVL and HANDS2017. The
intrinsics are those the author used, which for ICVL differ a little from the data set's own (240.99, 240.96): scored
with these, the published ICVL result is 6.284 mm, with the author's it is 6.276 mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.camera import backproject, flip_y, intrinsics, xyz_to_uvd
from shared.errors import DataError, exit_on_error
from shared.options import parse
from shared.predictions import read_predictions, write_predictions
from v2v_posenet.config import ConvertResultConfig, To
from v2v_posenet.results import spec_of

CAMERAS: dict[str, tuple[float, float, float, float]] = {  # fx, fy, u0, v0
    "msra": (241.42, 241.42, 160.0, 120.0),
    "icvl": (241.42, 241.42, 160.0, 120.0),
    "nyu": (588.036865, 587.075073, 320.0, 240.0),
    "hands2017": (475.065948, 475.065857, 315.944855, 245.287079),
    "itop-front": (1 / 0.0035, 1 / 0.0035, 160.0, 120.0),
    "itop-top": (1 / 0.0035, 1 / 0.0035, 160.0, 120.0),
}


def convert_points(values: ArrayLike, dataset: str, to: To) -> NDArray[np.float64]:
    """(..., 3) ``u v z`` to ``x y z`` of the data set's world (``to="world"``) or back (``to="pixel"``).

    The unit of z, x and y is that of the input.

    Raises:
        DataError: an unknown data set or direction; world points that are not in front of the camera.
    """
    spec = spec_of(dataset)
    K = intrinsics(*CAMERAS[dataset])
    if to == "world":
        world = backproject(values, K, check_depth=False)
        return flip_y(world) if spec.y_up else world
    if to == "pixel":
        return xyz_to_uvd(flip_y(values) if spec.y_up else values, K)
    raise DataError(f"to must be 'world' or 'pixel', got {to!r}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(
        ConvertResultConfig,
        prog="python -m v2v_posenet.convert_result",
        description="Converts a result file between pixels (u v z) and the data set's world (x y z).",
        argv=argv,
    ).options
    dataset = "itop-front" if args.dataset == "itop" else args.dataset  # both views have the same camera
    values = read_predictions(args.input, spec_of(dataset).joints)
    try:
        converted = convert_points(values, dataset, args.to)
    except DataError as error:
        raise DataError(str(error), path=args.input) from error
    write_predictions(args.output, converted, decimals=3)
    print(f"{args.output}: {len(values)} frames, {values.shape[1]} joints, {args.to} coordinates of {args.dataset}")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
