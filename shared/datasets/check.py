"""Looks through a user's copy of a data set and says whether our readers can use it.

    python -m shared.datasets.check --dataset nyu --data PATH [--json OUT] [--sheet OUT.png] [--max-frames N]

It opens every split, decodes frames with a progress bar and reports: the layout found or what is missing and where it
was looked for; frames per split beside the published counts and the release they belong to; pictures that cannot be
decoded, by name; what the reader skipped; value ranges; and whether labels and pictures are in one frame:

- joints (or 2-D labels) lie inside the picture;
- the measured depth at a joint lies slightly in front of it (a joint is under the skin), and does not do so better when
  the labels are turned upside down or mirrored;
- a hand is as large as a hand (millimetres, not metres);
- fingers bend towards the palm of the hand the reader names. A mirrored or y-up label is a reflection and bends the
  other way, so this notices a flip also where there is no depth. Measured on published ground truth: the sign is the
  same in 96 % of NYU's test frames and in 99 % of ICVL's, which has the geometry of a *left* hand (see ``SETS``).

``check(dataset, root)`` -> :class:`Report` does the same for programs. Exit status: 0 usable, 1 not usable, 2 a wrong
option.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.camera import project
from shared.datasets.base import Frame, FrameDataset
from shared.errors import DataError, exit_on_error
from shared.safe_io import atomic_write_text
from shared.skeletons import SKELETONS

Float = NDArray[np.float64]


@dataclass
class Options:
    """What to check.

    Args:
        dataset: one of icvl, nyu, msra, hands2017, itop-front, itop-top, ho3d-v2, ho3d-v3, dexycb, stb, panoptic,
            mpii-nzsl, freihand, dexter-object, egodexter.
        data: folder the set was unpacked in.
        split: only this split; all of them by default.
        max_frames: frames decoded per split, evenly spaced; 0 decodes every frame.
        json: write the report to this file too.
        sheet: draw frames with their joints into this PNG.
    """

    dataset: str
    data: Path
    split: str | None = None
    max_frames: int = 1000
    json: Path | None = None
    sheet: Path | None = None


@dataclass(frozen=True)
class Part:
    """One split as the reader opens it, and the counts that were published for it: {frames: what has that many}."""

    split: str
    published: dict[int, str]
    options: dict[str, Any] = field(default_factory=dict)
    key: str = ""  # what the report calls it, where options matter

    @property
    def name(self) -> str:
        return self.key or self.split


@dataclass(frozen=True)
class DataSet:
    """A reader module below ``shared.datasets`` and what is known of the set."""

    module: str
    parts: tuple[Part, ...]
    body: bool = False  # ITOP: a person rather than a hand
    curl: bool = True  # judge whether fingers bend like those of the hand that the reader names


_STB = {"train": {15000: "the published set"}, "test": {3000: "the published set"}}
SETS: dict[str, DataSet] = {
    # ICVL is called a right hand everywhere; its published test labels bend like a left hand (99 % of 1,596 frames).
    "icvl": DataSet(
        "icvl",
        (
            Part("train", {22068: "originals", 331006: "all label lines"}),
            Part("test", {1596: "the published set"}),
        ),
        curl=False,
    ),
    "nyu": DataSet("nyu", (Part("train", {72757: "the published set"}), Part("test", {8252: "the published set"}))),
    "msra": DataSet("msra", (Part("all", {76375: "the first release", 76391: "the second release"}),)),
    "hands2017": DataSet(
        "hands2017", (Part("train", {957032: "the published set"}), Part("test", {295510: "the published set"}))
    ),
    "itop-front": DataSet(
        "itop",
        (
            Part("train", {39795: "all frames", 17991: "valid frames (from memory)"}, {"view": "side"}),
            Part("test", {10501: "all frames", 4863: "valid frames"}, {"view": "side"}),
        ),
        body=True,
    ),
    "itop-top": DataSet(
        "itop",
        (
            Part("train", {39795: "all frames", 17991: "valid frames (from memory)"}, {"view": "top"}),
            Part("test", {10501: "all frames", 4863: "valid frames"}, {"view": "top"}),
        ),
        body=True,
    ),
    "ho3d-v2": DataSet(
        "ho3d",
        (
            Part("train", {66034: "the v2 list"}, {"version": "v2"}),
            Part("evaluation", {11524: "the v2 list"}, {"version": "v2"}),
        ),
    ),
    "ho3d-v3": DataSet(
        "ho3d",
        (
            Part("train", {78297: "the v3 list"}, {"version": "v3"}),
            Part("evaluation", {20137: "the v3 list"}, {"version": "v3"}),
        ),
    ),
    "dexycb": DataSet(
        "dexycb",
        (
            Part("s0_train", {465504: "with unlabelled frames", 406888: "labelled (as users report)"}),
            Part("s0_val", {}),
            Part("s0_test", {98954: "as users report"}),
        ),
    ),
    "stb": DataSet(
        "stb",
        tuple(
            Part(split, _STB[split], {"camera": camera}, f"{split} {camera}")
            for split in ("train", "test")
            for camera in ("BB_left", "BB_right", "SK_color", "SK_depth")
        ),
    ),
    "panoptic": DataSet("panoptic", (Part("train", {14817: "the published set"}),)),
    "mpii-nzsl": DataSet(
        "mpii_nzsl", (Part("train", {1912: "the published set"}), Part("test", {846: "the published set"}))
    ),
    "freihand": DataSet(
        "freihand",
        (
            Part("training", {32560: "one version of each sample"}),
            Part("evaluation", {3960: "the published set"}),
        ),
    ),
    "dexter-object": DataSet(
        "dexter_object",
        tuple(Part("test", {3014: "the published set"}, {"camera": c}, f"test {c}") for c in ("color", "depth")),
    ),
    "egodexter": DataSet(
        "egodexter",
        tuple(
            Part("test", {3190: "all frames", 1485: "annotated frames"}, {"camera": c}, f"test {c}")
            for c in ("color", "depth")
        ),
    ),
}


@dataclass
class SplitReport:
    """What was found in one split. ``problems`` make a copy unusable, ``warnings`` deserve a look."""

    name: str
    found: bool = True
    frames: int = 0
    checked: int = 0
    summary: str = ""
    release: str = ""
    undecodable: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The whole answer; ``usable`` is what the exit status says."""

    dataset: str
    root: str
    splits: list[SplitReport]

    @property
    def usable(self) -> bool:
        """At least one split is there, and no split that is there has a problem."""
        return any(part.found for part in self.splits) and not any(part.problems for part in self.splits if part.found)

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "usable": self.usable}, indent=1) + "\n"


def check(
    dataset: str, root: str | Path, *, split: str | None = None, max_frames: int = 1000, progress: bool = False
) -> Report:
    """Opens the splits of a copy and examines up to ``max_frames`` frames of each (0: all).

    A split whose files are not there is reported and is no problem as long as another one is (people download the test
    part alone); anything wrong with files that are there is.

    Raises:
        DataError: an unknown data set or split, or a negative ``max_frames``.
    """
    if dataset not in SETS:
        raise DataError(f"dataset: no reader is called {dataset!r}", remedy=f"known: {', '.join(SETS)}")
    info = SETS[dataset]
    parts = [part for part in info.parts if split in (None, part.split, part.name)]
    if not parts:
        raise DataError(f"split: {dataset} has no {split!r}", remedy=f"known: {', '.join(p.name for p in info.parts)}")
    if max_frames < 0:
        raise DataError(f"max_frames: expected 0 (all) or more, got {max_frames}")
    module = importlib.import_module(f"shared.datasets.{info.module}")
    reports = [_check_part(module, info, part, Path(root), max_frames, progress) for part in parts]
    return Report(dataset, str(root), reports)


def _check_part(module: Any, info: DataSet, part: Part, root: Path, max_frames: int, progress: bool) -> SplitReport:
    report = SplitReport(part.name)
    try:
        frames: FrameDataset = module.open(root, part.split, **part.options)
    except DataError as error:
        # A folder that is not there is a split nobody unpacked; a file missing from a folder that is there is a fault.
        path = error.path or root
        absent = isinstance(error, FileNotFoundError) and (path.is_dir() or not path.parent.is_dir())
        report.found = not absent
        report.summary = "not here" if absent else "cannot be opened"
        report.problems.append(str(error))
        return report
    report.frames, report.summary = len(frames), frames.summary()
    names = frames.names()
    if len(names) != len(frames) or len(set(names)) != len(names):
        report.problems.append(f"{len(frames)} frames, but {len(set(names))} different names")
    _compare_counts(report, part)
    figures = _Figures(info)
    for index in _progress(_spread(len(frames), max_frames), f"{part.name}: frames", progress):
        try:
            frame = frames[index]
        except DataError as error:
            report.undecodable[names[index]] = str(error)
            continue
        figures.add(frame)
    report.checked = figures.frames + len(report.undecodable)
    figures.judge(report)
    if report.undecodable:
        first = "; ".join(list(report.undecodable.values())[:3])
        report.problems.append(f"{len(report.undecodable)} of {report.checked} frames cannot be decoded: {first}")
    return report


def _compare_counts(report: SplitReport, part: Part) -> None:
    known = ", ".join(f"{count:,} ({what})" for count, what in part.published.items()) or "no published count"
    if report.frames in part.published:
        report.release = part.published[report.frames]
    elif part.published and report.frames > max(part.published):
        report.release = "more frames than any known release"
        report.warnings.append(f"{report.frames:,} frames, published: {known}")
    else:
        report.release = f"a part: {report.frames:,} frames, published: {known}"


class _Figures:
    """Sums over frames, judged at the end: single frames may well look odd."""

    def __init__(self, info: DataSet) -> None:
        self.info = info
        self.frames = 0
        self.inside: list[float] = []
        self.sizes_mm: list[float] = []
        self.curls: list[bool] = []  # does this frame look like the side it names?
        self.behind = 0
        self.depth_seen = False
        self.label_gap_px: list[float] = []
        self.gaps_mm: dict[str, list[Float]] = {"as labelled": [], "upside down": [], "mirrored": []}
        self.depth_range = [np.inf, -np.inf]
        self.joint_range = [np.full(3, np.inf), np.full(3, -np.inf)]
        self.empty: list[str] = []

    def add(self, frame: Frame) -> None:
        self.frames += 1
        depth = None
        if frame.depth_mm is not None:
            measured = frame.depth_mm[frame.valid]
            if not measured.size:
                self.empty.append(frame.name)
            else:
                self.depth_range[0] = min(self.depth_range[0], float(measured.min()))
                self.depth_range[1] = max(self.depth_range[1], float(measured.max()))
                depth = frame.full_depth_mm()
                self.depth_seen = True
        if frame.rgb is not None and frame.rgb.min() == frame.rgb.max():
            self.empty.append(frame.name)
        pixels = frame.keypoints_2d
        if frame.joints_mm is not None:
            joints = frame.joints_mm
            usable = np.isfinite(joints).all(axis=1)
            if frame.joints_valid is not None:
                usable &= frame.joints_valid
            self.behind += int((joints[usable, 2] <= 0).sum())
            usable &= joints[:, 2] > 0
            if usable.sum() > 1:
                self._add_geometry(frame, joints, usable, depth)
            if pixels is None and np.isfinite(frame.K).all():
                pixels = np.full((len(joints), 2), np.nan)
                pixels[usable] = project(joints[usable], frame.K, check_depth=False)
        if pixels is not None:
            known = np.isfinite(pixels).all(axis=1)
            if frame.joints_valid is not None:
                known &= frame.joints_valid
            size = np.array(frame.image_size)
            within = np.all((pixels[known] > -0.5) & (pixels[known] < size - 0.5), axis=1)
            self.inside += within.astype(float).tolist()

    def _add_geometry(self, frame: Frame, joints: Float, usable: NDArray[np.bool_], depth: Any) -> None:
        points = joints[usable]
        self.joint_range = [
            np.minimum(self.joint_range[0], points.min(0)),
            np.maximum(self.joint_range[1], points.max(0)),
        ]
        if len(points) > 2:
            self.sizes_mm.append(float(np.linalg.norm(points.max(0) - points.min(0))))
        curl = curl_mm(joints, frame.skeleton) if usable.all() else None
        if curl is not None and frame.side is not None:
            self.curls.append((curl < 0) == (frame.side == "right"))
        if not np.isfinite(frame.K).all():
            return
        pixels = project(points, frame.K, check_depth=False)
        if frame.keypoints_2d is not None:
            self.label_gap_px += np.linalg.norm(pixels - frame.keypoints_2d[usable], axis=1).tolist()
        if depth is not None:
            # A set is flipped about the axis of its camera, which is where y-up and mirrored worlds come from.
            for name, sign in (("as labelled", (1, 1)), ("upside down", (1, -1)), ("mirrored", (-1, 1))):
                self.gaps_mm[name].append(_gaps(points * (*sign, 1), frame.K, depth))

    def judge(self, report: SplitReport) -> None:
        out = report.figures
        limits = (400.0, 3000.0) if self.info.body else (25.0, 400.0)
        if self.inside:
            share = out["joints inside the picture"] = float(np.mean(self.inside))
            if share < 0.6:
                report.problems.append(
                    f"only {share:.0%} of the joints lie inside the picture: labels and pictures do not belong "
                    "together, or axes or unit are wrong"
                )
        for name, value in zip("xyz", np.stack(self.joint_range, 1), strict=True):
            if np.isfinite(value).all():
                out[f"joints {name} min mm"], out[f"joints {name} max mm"] = float(value[0]), float(value[1])
        if np.isfinite(self.depth_range).all():
            out["depth min mm"], out["depth max mm"] = self.depth_range
        if self.behind:
            report.problems.append(f"{self.behind} joints lie behind the camera (z <= 0): wrong axes")
        if self.sizes_mm:
            size = out["median size mm"] = float(np.median(self.sizes_mm))
            if not limits[0] < size < limits[1]:
                report.problems.append(
                    f"the joints of a frame span {size:.3g} mm, expected {limits[0]:g} to {limits[1]:g}: wrong unit"
                )
        if self.label_gap_px:
            distance = out["2-D labels from projected joints px"] = float(np.median(self.label_gap_px))
            if distance > 10:
                report.problems.append(f"2-D labels lie {distance:.1f} px (median) from the projected joints")
        if len(self.curls) >= 4:
            share = out["frames bending like the named hand"] = float(np.mean(self.curls))
            if share < 0.25 and self.info.curl:
                # where there is depth it has the last word: a set may well be mirrored as a whole, pictures and labels
                (report.warnings if self.depth_seen else report.problems).append(
                    f"in {1 - share:.0%} of the frames the fingers bend like those of the other hand: the labels are "
                    "flipped (y up, or mirrored)"
                )
        self._judge_depth(report)
        if self.empty:
            report.warnings.append(f"{len(self.empty)} empty pictures, first {self.empty[0]}")

    def _judge_depth(self, report: SplitReport) -> None:
        gaps = {name: np.concatenate(values) for name, values in self.gaps_mm.items() if values}
        if not gaps or np.isnan(gaps["as labelled"]).all():
            return
        limit = 250.0 if self.info.body else 40.0
        # share of all joints with a measurement 0 (10 for noise) to limit in front of them; no measurement counts as no
        shares = {name: float(np.mean((gap > -10) & (gap < limit))) for name, gap in gaps.items()}
        report.figures["median depth of joints below the surface mm"] = float(np.nanmedian(gaps["as labelled"]))
        report.figures.update({f"share just below the surface, {name}": share for name, share in shares.items()})
        if len(gaps["as labelled"]) < 25:
            return  # a handful of frames proves nothing
        best = max(shares, key=lambda name: shares[name])
        if shares[best] > shares["as labelled"] + 0.15:
            report.problems.append(
                f"the labels fit the depth pictures better {best}: {shares[best]:.0%} of the joints lie just below the "
                f"measured surface then, {shares['as labelled']:.0%} as labelled"
            )
        elif shares["as labelled"] < 0.3:
            report.problems.append(
                f"only {shares['as labelled']:.0%} of the joints lie just below the measured surface: labels and "
                "pictures do not belong together"
            )


def curl_mm(joints_mm: Float, skeleton: str) -> float | None:
    """How far the four fingertips lie to the normal's side of the palm plane, mm: negative for a right hand that bends.

    The normal is palm length (root to finger bases) x palm width (little to index base), in OpenCV axes. None for
    skeletons without finger bases (fingertips, bodies).
    """
    names = SKELETONS[skeleton].joints if skeleton in SKELETONS else ()
    if len(names) != len(joints_mm):
        return None

    def find(finger: str) -> Float | None:
        for part in ("mcp", "root", "knu1_b", "mid"):
            if f"{finger}_{part}" in names:
                joint: Float = joints_mm[names.index(f"{finger}_{part}")]
                return joint
        return None

    fingers = ("index", "middle", "ring", "pinky")
    found: list[Float] = [base for finger in fingers if (base := find(finger)) is not None]
    root = "wrist" if "wrist" in names else "palm"
    if len(found) < 4 or root not in names:
        return None
    bases = np.stack(found)
    tips = np.stack([joints_mm[names.index(f"{finger}_tip")] for finger in fingers])
    normal = np.cross(bases.mean(0) - joints_mm[names.index(root)], bases[0] - bases[3])
    return float((tips - bases).mean(0) @ normal / max(float(np.linalg.norm(normal)), 1e-9))


def _gaps(points_mm: Float, K: Float, depth_mm: NDArray[np.float32]) -> Float:
    """Joint's depth minus measured depth, (n,) mm; NaN where nothing is measured.

    Of the 5 x 5 pixels around a joint the one whose depth is nearest to the joint's counts: fingertips lie at the edge.
    """
    pixels = np.rint(project(points_mm, K, check_depth=False)).clip(-1e6, 1e6).astype(int)
    steps = np.stack(np.meshgrid(range(-2, 3), range(-2, 3)), -1).reshape(-1, 2)
    around = pixels[:, None] + steps  # (n, 25, 2) column, row
    inside = ((around >= 0) & (around < depth_mm.shape[::-1])).all(-1)
    column, row = np.where(inside[..., None], around, 0).transpose(2, 0, 1)
    measured = np.where(inside, depth_mm[row, column], 0)
    gaps = np.where(measured > 0, points_mm[:, 2:] - measured, np.inf)
    nearest = np.take_along_axis(gaps, np.abs(gaps).argmin(1)[:, None], 1)[:, 0]
    return np.where(np.isfinite(nearest), nearest, np.nan)


def _spread(count: int, limit: int) -> NDArray[np.intp]:
    """At most ``limit`` (0: no limit) indices below ``count``, evenly spaced, with the first and the last."""
    wanted = count if limit == 0 else min(count, limit)
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.intp))


def _progress(indices: NDArray[np.intp], label: str, show: bool) -> Iterator[int]:
    if not show:
        yield from (int(i) for i in indices)
        return
    from tqdm import tqdm

    yield from (int(i) for i in tqdm(indices, label, unit=" frames", leave=False))


def draw_sheet(dataset: str, root: str | Path, *, split: str | None = None, frames: int = 12) -> NDArray[np.uint8]:
    """A contact sheet of ``frames`` frames spread over the splits that are there, cropped around their joints.

    Raises:
        DataError: not a frame can be drawn.
    """
    from shared.draw import contact_sheet

    info = SETS[dataset]
    module = importlib.import_module(f"shared.datasets.{info.module}")
    found: list[tuple[Part, FrameDataset]] = []
    for part in info.parts:
        if split in (None, part.split, part.name):
            with contextlib.suppress(DataError):
                found.append((part, module.open(Path(root), part.split, **part.options)))
    pictures, titles = [], []
    for part, sequence in found:
        for index in _spread(len(sequence), max(1, frames // len(found))):
            with contextlib.suppress(DataError):  # the report names the frames that cannot be decoded
                frame = sequence[int(index)]
                pictures.append(_draw(frame))
                titles.append(f"{part.name}: {frame.name}")
    if not pictures:
        raise DataError("no frame can be drawn", path=root)
    return contact_sheet(pictures, 4, titles)


def _draw(frame: Frame, size: int = 300) -> NDArray[np.uint8]:
    from shared.draw import crop_around, depth_to_rgb, draw_skeleton, enlarge

    if frame.rgb is not None:
        picture = frame.rgb
    elif frame.depth_mm is not None:
        full = frame.full_depth_mm()
        joints = frame.joints_mm
        middle = None if joints is None else float(np.nanmedian(joints[:, 2]))
        # a window of depths around the hand, or a room would leave no grey for it
        picture = depth_to_rgb(full, center_mm=middle, cube_mm=None if middle is None else middle * 0.6)
    else:
        picture = np.full((*frame.image_size[::-1], 3), 255, np.uint8)
    pixels = frame.keypoints_2d
    if pixels is None and frame.joints_mm is not None and np.isfinite(frame.K).all():
        pixels = project(frame.joints_mm, frame.K, check_depth=False)
    if pixels is None:
        return enlarge(picture, size / max(picture.shape[:2]))
    known: NDArray[np.bool_] = np.asarray(np.isfinite(pixels).all(axis=1))
    if frame.joints_valid is not None:
        known &= frame.joints_valid
    span = float(np.ptp(pixels[known], axis=0).max()) if known.any() else 0.0
    crop, (left, top) = crop_around(picture, pixels[known], margin=round(0.25 * span + 10))
    scale = size / max(crop.shape[:2])
    return draw_skeleton(crop, pixels - (left, top), frame.skeleton, mask=known, scale=scale, width=2)


def to_text(report: Report) -> str:
    """The report for people."""
    lines = [f"{report.dataset} in {report.root}: {'usable' if report.usable else 'NOT usable'}"]
    for part in report.splits:
        lines.append(f"\n{part.name}: {part.summary}")
        if part.release:
            lines.append(f"  release: {part.release}")
        if part.checked:
            lines.append(f"  decoded {part.checked - len(part.undecodable):,} of {part.checked:,} frames looked at")
        if part.figures:
            text = "; ".join(f"{name} {value:.4g}" for name, value in part.figures.items())
            lines.append(textwrap.fill(text, 118, initial_indent="  ", subsequent_indent="  "))
        lines += [f"  {'PROBLEM: ' if part.found else ''}{text}" for text in part.problems]
        lines += [f"  warning: {text}" for text in part.warnings]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    from shared.options import parse

    description = "Looks through a copy of a data set and says whether the readers can use it."
    options = parse(Options, prog="python -m shared.datasets.check", description=description, argv=argv).options
    report = check(
        options.dataset, options.data, split=options.split, max_frames=options.max_frames, progress=sys.stderr.isatty()
    )
    print(to_text(report))
    if options.json:
        atomic_write_text(options.json, report.to_json())
    if options.sheet:
        if not report.usable:
            print("no contact sheet: nothing to draw in a copy that cannot be used")
        else:
            from shared.draw import save

            save(options.sheet, draw_sheet(options.dataset, options.data, split=options.split))
    return 0 if report.usable else 1


if __name__ == "__main__":
    exit_on_error(main)
