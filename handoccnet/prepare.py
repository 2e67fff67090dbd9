"""Makes HandOccNet's annotation files from the data sets' own metas, so that nobody depends on a download.

    python -m handoccnet.prepare --dataset ho3d --root HO3D_v2 --mano MANO_RIGHT.pkl --out HO3D_v2/annotations

Writes ``HO3D_{train,evaluation}_data.json`` or ``DEX_YCB_s0_{train,val,test}_data.json`` as the author's loader reads
them; ours does with ``--data.annotations``, and starts faster than from hundreds of thousands of small files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import DataError, MissingFileError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    from handoccnet.config import DataOptions


@dataclass
class Prepare:
    """Options of the program.

    Args:
        dataset: ho3d or dexycb
        root: its folder, as unpacked from the official archive
        out: folder for the annotation files; empty means annotations/ in the root
        mano: MANO_RIGHT.pkl or .npz, or the word standin
        mano_left: MANO_LEFT.pkl, for DexYCB's left hands
        sides: hands of DexYCB to take
    """

    dataset: Literal["ho3d", "dexycb"] = "ho3d"
    root: str = ""
    out: str = ""
    mano: str = ""
    mano_left: str = ""
    sides: Literal["both", "right", "left"] = "both"


def main() -> None:
    options = parse(
        Prepare,
        prog="python -m handoccnet.prepare",
        description="Make HandOccNet's annotation files from HO-3D's or DexYCB's own labels.",
    ).options
    from handoccnet.config import DataOptions

    if not options.root:
        raise DataError("--root is empty: it names the folder of the data set")
    data = DataOptions(
        dataset=options.dataset,
        root=options.root,
        mano=options.mano,
        mano_left=options.mano_left,
        sides=options.sides,
    )
    for path, count in prepare(data, options.out or Path(options.root) / "annotations"):
        print(f"{path}: {count} annotations")


def prepare(options: DataOptions, out: str | Path) -> list[tuple[Path, int]]:
    """Writes the files of every split whose frames are there; returns them with their numbers of annotations.

    Raises:
        DataError: no MANO (its mean pose and components turn the labels' poses into the files'), no split at all.
    """
    from handoccnet.data import open_mano, refuse_unlabelled
    from shared.datasets import dexycb, handoccnet_json, ho3d

    right, left = open_mano(options)
    root, written = Path(options.root), []
    reader: Any
    if options.dataset == "ho3d":
        for split in ("train", "evaluation"):
            if (root / f"{split}.txt").is_file():
                reader = ho3d.open(root, split, depth=False)
                suffix = {"v2": ".png", "v3": ".jpg"}[reader.version]
                print(reader.summary())
                if split == "evaluation":
                    refuse_unlabelled(reader, root)
                path = Path(out) / f"HO3D_{split}_data.json"
                count = handoccnet_json.write_annotations(
                    path,
                    _each(reader, split),
                    right.hands_mean,
                    lambda frame, suffix=suffix: handoccnet_json.ho3d_file_name(frame, suffix),  # type: ignore[misc]
                    part=_part(reader),
                )
                written.append((path, count))
    else:
        sides = ("right", "left") if options.sides == "both" else (options.sides,)
        if "left" in sides and left is None:
            raise DataError(
                "DexYCB's left hands need the left hand's PCA components",
                remedy="give --mano_left MANO_LEFT.pkl, or take --sides right",
            )
        components: dict[str, Any] = {m.side: m.hands_components for m in (right, left) if m is not None}
        for part in ("train", "val", "test"):
            try:
                reader = dexycb.open(
                    root, f"s0_{part}", depth=False, sides=sides, hands_components=components, missing="skip"
                )
            except MissingFileError as error:
                print(f"s0_{part} is passed over: {error}")
                continue
            print(reader.summary())
            path = Path(out) / f"DEX_YCB_s0_{part}_data.json"
            count = handoccnet_json.write_annotations(
                path,
                _each(reader, part),
                right.hands_mean,
                handoccnet_json.dexycb_file_name,
                part=_part(reader, options.sides),
            )
            written.append((path, count))
    if not written:
        what = "neither train.txt nor evaluation.txt" if options.dataset == "ho3d" else "no frame of any split"
        raise DataError(f"{what} is there", path=root, remedy="unpack the data set there")
    return written


def _part(reader: Any, sides: str = "both") -> str:
    """What the file lacks of its split, said on stdout too; empty where it lacks nothing."""
    lacks = [f"{reader.missing} frames or folders missing on disk"] if reader.missing else []
    lacks += [f"{sides} hands only"] if sides != "both" else []
    if lacks:
        print(f"a part of the split: {', '.join(lacks)}; the file says so, and results on it are no submission")
    return ", ".join(lacks)


def _each(reader: Any, split: str) -> Iterator[Any]:
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    for index in tqdm(range(len(reader)), desc=split, unit="frame", mininterval=20 if quiet else 0.5):
        yield reader.labels(index)


if __name__ == "__main__":
    exit_on_error(main)
