"""Joint orders by name: names of the joints, bones, colours, and the reordering between them.

A joint has the same name in every order (``"index_pip"``), so orders are converted by name and never by index lists.
Sources of the orders: the data sets' own readmes. Bones and colours: the drawings of V2V-PoseNet's authors (light to
saturated from the base of a finger to its tip; thumb red, index green, middle orange, ring blue, pinky magenta).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_HUES = {
    "thumb": (255, 0, 0),
    "index": (0, 185, 0),
    "middle": (255, 140, 0),
    "ring": (20, 80, 255),
    "pinky": (230, 0, 230),
    "right_arm": (255, 0, 0),
    "left_arm": (20, 80, 255),
    "right_leg": (255, 140, 0),
    "left_leg": (0, 185, 0),
}
_ROOT_COLOUR = (230, 230, 0)


@dataclass(frozen=True)
class Skeleton:
    """A joint order with what is needed to draw it.

    Attributes:
        name: the key in ``SKELETONS``.
        joints: joint names in order.
        edges: bones as (parent, child) indices into ``joints``.
        colors: one (red, green, blue) 0..255 per joint; a bone has the colour of its child.
        root: index of the joint that root-relative errors refer to (wrist or palm).
        mirror: for each joint the index it takes when the picture is mirrored: left and right parts of a body change
            places, the joints of one hand stay.
    """

    name: str
    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    colors: tuple[tuple[int, int, int], ...]
    root: int
    mirror: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, joint: str) -> int:
        """Position of a joint; DataError with the known names if there is none of that name."""
        if joint not in self.joints:
            known = ", ".join(self.joints)
            raise DataError(f"the {self.name} skeleton has no joint {joint!r}", remedy=f"it has {known}")
        return self.joints.index(joint)


def _skeleton(name: str, joints: str, chains: str, root: str | None = None) -> Skeleton:
    """Builds a Skeleton from blank-separated names; ``chains`` holds bones as ``limb:a-b-c`` words, base to tip."""
    names = tuple(joints.split())
    colours = dict.fromkeys(names, _ROOT_COLOUR)
    edges = []
    for chain in chains.split():
        limb, path = chain.split(":")
        links = path.split("-")
        edges += [(names.index(a), names.index(b)) for a, b in pairwise(links)]
        for step, joint in enumerate(links[1:], 1):
            weight = 0.3 + 0.7 * step / (len(links) - 1)  # 1 at the tip
            if limb in _HUES:
                red, green, blue = (round(255 + weight * (hue - 255)) for hue in _HUES[limb])
                colours[joint] = (red, green, blue)
    other = {"right": "left", "left": "right"}
    swapped = [side_name(n, other) for n in names]
    return Skeleton(
        name=name,
        joints=names,
        edges=tuple(edges),
        colors=tuple(colours[n] for n in names),
        root=names.index(root or names[0]),
        mirror=tuple(names.index(n) for n in swapped),
    )


def side_name(joint: str, other: dict[str, str]) -> str:
    """``right_knee`` -> ``left_knee`` with ``other`` = {"right": "left", ...}; names without a side stay."""
    side, _, part = joint.partition("_")
    return f"{other[side]}_{part}" if side in other else joint


def _finger(finger: str, parts: str = "mcp pip dip tip") -> str:
    return " ".join(f"{finger}_{part}" for part in parts.split())


def _hand(name: str, joints: str, parts: str = "mcp pip dip tip", base: str = "wrist") -> Skeleton:
    chains = [f"{f}:{base}-" + _finger(f, parts).replace(" ", "-") for f in FINGERS]
    return _skeleton(name, joints, " ".join(chains), base)


def _fingers(order: Sequence[str], parts: str = "mcp pip dip tip") -> str:
    return " ".join(_finger(f, parts) for f in order)


_NYU_ORDER = ("pinky", "ring", "middle", "index")
_NYU14_JOINTS = f"{_fingers(_NYU_ORDER, 'tip mid')} thumb_tip thumb_mid thumb_root wrist_side_1 wrist_side_2 palm"
_NYU14_CHAINS = "palm:palm-wrist_side_2 palm:palm-wrist_side_1 thumb:palm-thumb_root-thumb_mid-thumb_tip " + " ".join(
    f"{f}:palm-{f}_mid-{f}_tip" for f in reversed(_NYU_ORDER)
)
# The file has KNU3_A, KNU3_B, KNU2_A, KNU2_B, KNU1_A, KNU1_B for each finger; the joints that are scored have the names
# they have in "nyu14".
_NYU36_JOINTS = (
    _fingers(_NYU_ORDER, "tip knu3_b knu2_a mid knu1_a knu1_b")
    + " thumb_tip thumb_mid thumb_knu2_a thumb_root thumb_knu1_a thumb_knu1_b"
    + " wrist_side_1 wrist_side_2 palm palm_4 palm_5 palm_6"
)
_NYU36_CHAINS = (
    "palm:palm-wrist_side_2 palm:palm-wrist_side_1 palm:palm-palm_4 palm:palm-palm_5 palm:palm-palm_6 "
    "thumb:palm-thumb_knu1_b-thumb_knu1_a-thumb_root-thumb_knu2_a-thumb_mid-thumb_tip "
    + " ".join(f"{f}:palm-{f}_knu1_b-{f}_knu1_a-{f}_mid-{f}_knu2_a-{f}_knu3_b-{f}_tip" for f in reversed(_NYU_ORDER))
)
_ITOP_JOINTS = (
    "head neck right_shoulder left_shoulder right_elbow left_elbow right_hand left_hand torso "
    "right_hip left_hip right_knee left_knee right_foot left_foot"
)
_ITOP_CHAINS = (
    "neck:head-neck neck:neck-torso right_arm:neck-right_shoulder-right_elbow-right_hand "
    "left_arm:neck-left_shoulder-left_elbow-left_hand right_leg:torso-right_hip-right_knee-right_foot "
    "left_leg:torso-left_hip-left_knee-left_foot"
)
_MANO_BLOCKS = ("index", "middle", "pinky", "ring", "thumb")

SKELETONS: dict[str, Skeleton] = {
    s.name: s
    for s in (
        _hand("mano", f"wrist {_fingers(_MANO_BLOCKS, 'mcp pip dip')} {_fingers(FINGERS, 'tip')}"),  # also HO-3D
        _hand("thumb_first", f"wrist {_fingers(FINGERS)}"),  # FreiHAND, DexYCB, Panoptic, MPII+NZSL
        _hand("wild", f"wrist {_fingers(_MANO_BLOCKS)}"),
        _hand("msra", f"wrist {_fingers(('index', 'middle', 'ring', 'pinky', 'thumb'))}"),
        _hand("hands2017", f"wrist {_fingers(FINGERS, 'mcp')} {_fingers(FINGERS, 'pip dip tip')}"),
        _hand("stb", f"palm {_fingers(FINGERS[::-1])}", base="palm"),
        _hand("icvl", f"palm {_fingers(FINGERS, 'root mid tip')}", "root mid tip", "palm"),
        _skeleton("nyu14", _NYU14_JOINTS, _NYU14_CHAINS, "palm"),
        _skeleton("nyu36", _NYU36_JOINTS, _NYU36_CHAINS, "palm"),
        _skeleton("itop", _ITOP_JOINTS, _ITOP_CHAINS, "torso"),
        _skeleton("fingertips", _fingers(FINGERS, "tip"), ""),  # Dexter+Object, EgoDexter: tips only, no bones
    )
}


def get(name: str) -> Skeleton:
    """The skeleton of that name; DataError with the known names otherwise."""
    if name not in SKELETONS:
        raise DataError(f"no joint order is called {name!r}", remedy=f"known: {', '.join(SKELETONS)}")
    return SKELETONS[name]


def order(src: str, dst: str) -> NDArray[np.intp]:
    """Index array with ``joints_dst = joints_src[..., order(src, dst), :]``; also for masks and names.

    Raises:
        DataError: an unknown order, or joints of ``dst`` that ``src`` does not have (all are named).
    """
    have, want = get(src).joints, get(dst).joints
    missing = [name for name in want if name not in have]
    if missing:
        raise DataError(f"the {src} order lacks these joints of {dst}: {', '.join(missing)}")
    return np.array([have.index(name) for name in want], np.intp)


def reorder(joints: NDArray[Any], src: str, dst: str) -> NDArray[Any]:
    """Brings joints (..., J_src, C) from one named order into another: (..., J_dst, C).

    ``dst`` may have fewer joints (``"nyu36"`` -> ``"nyu14"``). Frame and unit are whatever comes.

    Raises:
        DataError: unknown order, missing joints (named), or an array whose next-to-last axis is not J_src long.
    """
    index = order(src, dst)
    joints = np.asarray(joints)
    if joints.ndim < 2 or joints.shape[-2] != len(get(src)):
        raise DataError(f"expected joints (..., {len(get(src))}, C) in the {src} order, got shape {joints.shape}")
    return joints[..., index, :]
