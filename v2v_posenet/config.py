"""Options of V2V-PoseNet as dataclasses (standard library only, so that ``--help`` is quick)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convention:
    """How pixels become voxels and heat maps become millimetres; stored in every checkpoint.

    A network trained with one convention is off by 2 to 3 mm under another (README, ledger), so it is never guessed.
    """

    name: Literal["port", "zero", "author"] = "port"
    pixel_origin: Literal[0, 1] = 1  # number of the first pixel: 1 in the port (a quirk), 0 in the data sets' readmes
    rounding: Literal["trunc", "floor"] = "trunc"  # of voxel coordinates; trunc draws (-1, 0) into voxel 0
    invert_scale: bool = False  # scale = 100/new_size (the port's integral program) instead of new_size/100


CONVENTIONS: dict[str, Convention] = {
    "port": Convention("port", 1, "trunc", False),
    "port-integral": Convention("port", 1, "trunc", True),
    "zero": Convention("zero", 0, "floor", False),
    "author": Convention("author", 0, "floor", False),
}
