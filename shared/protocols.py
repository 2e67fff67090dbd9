"""Evaluation protocols by name: which joints, which units, which alignment, which thresholds.

A number without these cannot be compared, so ``shared.score`` takes them from here and prints them with every result.
Sources: the evaluation programs named in :mod:`shared.metrics`, the readmes of the data sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.errors import DataError

Files = Literal["text", "ho3d", "freihand", "dexycb"]
Format = Literal["uvd", "xyz", "xyz-y-up", "uv"]


@dataclass(frozen=True)
class Protocol:
    """One way to score.

    Attributes:
        name: as typed.
        about: the data set and what is scored, for one line of a list.
        skeleton: name of the joint order of the files, in ``shared.skeletons``.
        files: kind of files: text rows, the JSON of HO-3D or FreiHAND, DexYCB's result lines.
        format: what the numbers of text rows are; an evaluation may still read other formats.
        camera: fx, fy, u0, v0 that turn u v d into millimetres. For ICVL, NYU and MSRA the public evaluation's numbers,
            which differ in the last digits from the calibrations used to make point clouds.
        alignments: names in ``metrics.ALIGNMENTS``; the first is the headline.
        grid: name in ``metrics.AUC_GRIDS``.
        unit: of the results, "mm" or "px".
        to_mm: factor from the file's unit to millimetres (1000 for metres).
        root: joint that "root" alignment subtracts.
        below: report the share of joints strictly below this (ITOP's 10 cm rule), in ``unit``.
        official_frames: frames of the whole test set, to tell when a part is scored.
    """

    name: str
    about: str
    skeleton: str
    files: Files = "text"
    format: Format = "uvd"
    camera: tuple[float, float, float, float] | None = None
    alignments: tuple[str, ...] = ("none",)
    grid: str = "0-50x100"
    unit: Literal["mm", "px"] = "mm"
    to_mm: float = 1.0
    root: int = 0
    below: float | None = None
    official_frames: int | None = None

    @property
    def dims(self) -> int:
        """Numbers per joint in the files."""
        return 2 if self.format == "uv" else 3

    def line(self) -> str:
        """What a reader needs to know to compare, in one line."""
        from shared.metrics import AUC_GRIDS

        alignment = ", ".join(ALIGNMENT_TEXT[a] for a in self.alignments)
        rule = f"; share below {self.below:g} {self.unit}" if self.below else ""
        return f"{self.about}; {alignment}; AUC {AUC_GRIDS[self.grid]} ({self.unit}){rule}"


ALIGNMENT_TEXT = {
    "none": "absolute",
    "root": "root-relative",
    "scale-translation": "scaled by one bone and moved",
    "rigid": "rigidly aligned",
    "procrustes": "Procrustes (proper rotations)",
    "procrustes-reflection": "Procrustes (mirror images allowed, as the official program)",
}

_DEXYCB = ("none", "root", "procrustes-reflection")
_OFFICIAL = "with the official scores in cm (absolute, aligned with mirror images allowed, F at 5 and 15 mm)"
_TIPS = "five fingertips, missing ones nan in the ground truth"

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("icvl", "ICVL, 16 joints", "icvl", camera=(240.99, 240.96, 160, 120), official_frames=1596),
        Protocol(
            "nyu14", "NYU, 14 of 36 joints", "nyu14", camera=(588.03, 587.07, 320, 240), root=13, official_frames=8252
        ),
        Protocol("msra", "MSRA, 21 joints, all subjects pooled", "msra", camera=(241.42, 241.42, 160, 120)),
        Protocol(
            "hands2017",
            "HANDS2017, 21 joints (test labels are not public)",
            "hands2017",
            format="xyz",
            camera=(475.065948, 475.065857, 315.944855, 245.287079),
        ),
        Protocol(
            "itop",
            "ITOP, 15 joints, valid frames, files in metres",
            "itop",
            format="xyz",
            camera=(1 / 0.0035, 1 / 0.0035, 160, 120),
            to_mm=1000.0,
            root=8,
            below=100.0,
            official_frames=4863,
        ),
        Protocol("ho3d-v2", f"HO-3D v2, 21 joints and mesh, {_OFFICIAL}", "mano", "ho3d", official_frames=11524),
        Protocol("ho3d-v3", f"HO-3D v3, 21 joints and mesh, {_OFFICIAL}", "mano", "ho3d", official_frames=20137),
        Protocol(
            "freihand", f"FreiHAND, 21 joints and mesh, {_OFFICIAL}", "thumb_first", "freihand", official_frames=3960
        ),
        Protocol("dexycb-s0", "DexYCB split s0, 21 joints", "thumb_first", "dexycb", alignments=_DEXYCB),
        Protocol(
            "dexycb-handoccnet",
            "DexYCB as HandOccNet scores it",
            "thumb_first",
            "dexycb",
            alignments=("root", "procrustes"),
        ),
        Protocol("stb-auc20-50", "STB B1, 21 joints", "stb", format="xyz", alignments=("root",), grid="20-50x31"),
        Protocol("stb-auc0-50", "STB B1, 21 joints", "stb", format="xyz", alignments=("root",), grid="0-50x20"),
        Protocol(
            "stb-auc20-50-hand3d",
            "STB B1, 21 joints, points 8..19 of hand3d's curve",
            "stb",
            format="xyz",
            alignments=("root",),
            grid="20-50x12",
        ),
        Protocol(
            "stb-auc20-50-bihand", "STB B1, 21 joints", "stb", format="xyz", alignments=("root",), grid="20-50x20"
        ),
        Protocol("dexter-object", f"Dexter+Object, {_TIPS}", "fingertips", format="xyz", grid="20-50x31"),
        Protocol("egodexter", f"EgoDexter, {_TIPS}", "fingertips", format="xyz", grid="20-50x31"),
        Protocol(
            "mpii-nzsl-2d",
            "MPII+NZSL, 21 key points in pixels of the image, missing ones nan",
            "thumb_first",
            format="uv",
            grid="0-30px",
            unit="px",
        ),
    )
}
ALIASES = {"nyu": "nyu14", "dexycb": "dexycb-s0", "ho3d": "ho3d-v2"}


def get(name: str) -> Protocol:
    """The protocol of that name or alias; DataError with the known names otherwise."""
    name = ALIASES.get(name, name)
    if name not in PROTOCOLS:
        raise DataError(f"no protocol is called {name!r}", remedy=f"known: {', '.join([*PROTOCOLS, *ALIASES])}")
    return PROTOCOLS[name]


def list_protocols() -> str:
    """One line for each protocol."""
    width = max(map(len, PROTOCOLS))
    return "\n".join(f"{p.name:{width}}  {p.line()}" for p in PROTOCOLS.values())
