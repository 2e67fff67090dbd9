"""Reads an official MANO file once and keeps it as plain arrays.

    python -m shared.mano_import --input MANO_RIGHT.pkl --output mano/MANO_RIGHT.npz

Nothing in the pickle is executed and neither chumpy nor SciPy is needed (:mod:`shared.safe_io`). The ``.npz`` loads
without pickle, everywhere a MANO file is asked for, to the same bits. Beside it goes a ``.json`` with the sha256 of
both files. The arrays stay under MANO's licence: do not pass them on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shared.errors import DataError, exit_on_error
from shared.options import parse


@dataclass
class Options:
    """Options of the program.

    Args:
        input: MANO_RIGHT.pkl or MANO_LEFT.pkl, as the official archive has them, or an .npz to check
        output: .npz to write, or a folder (there, or ending in /) for one named like the input; empty only checks
        side: which hand, whatever the file's name says; auto goes by that name, or by an .npz's own entry
        flip_shapedirs_x: negate x of the shape directions: the left model was released with it unmirrored
    """

    input: str = ""
    output: str = ""
    side: Literal["auto", "right", "left"] = "auto"
    flip_shapedirs_x: bool = False


def main(argv: list[str] | None = None) -> int:
    options = parse(
        Options,
        prog="python -m shared.mano_import",
        description="Check a MANO file and save it as plain arrays; nothing in it is executed.",
        argv=argv,
    ).options
    for line in import_mano(options):
        print(line)
    return 0


def import_mano(options: Options) -> list[str]:
    """Reads, checks and converts; returns the lines that say what was found.

    Raises:
        DataError: no input, not a MANO file (foreign name in the pickle, wrong shapes, trailing data), an output that
            does not end in .npz or is the input.
    """
    if not options.input:
        raise DataError(
            "--input is empty: it names MANO_RIGHT.pkl or MANO_LEFT.pkl",
            remedy="mano.is.tue.mpg.de gives them out after registration",
        )
    source, target = Path(options.input), Path(options.output)
    if options.output and (options.output.endswith("/") or target.is_dir()):
        target /= f"{source.stem}.npz"
    if options.output and target.suffix != ".npz":
        raise DataError("the file to write must end in .npz", path=target, remedy="--output MANO_RIGHT.npz")
    if options.output and target.exists() and source.exists() and target.samefile(source):
        raise DataError("input and output are the same file", path=target, remedy="choose another --output")
    import numpy as np

    from shared.mano import JOINT_NAMES, load_mano, save_npz
    from shared.safe_io import atomic_write_text

    model = load_mano(source, flip_shapedirs_x=options.flip_shapedirs_x)
    if options.side != "auto":
        model = replace(model, side=options.side)
    extent = 1000 * np.ptp(model.v_template, axis=0)
    components = "none" if model.hands_coeffs is None else f"{len(model.hands_coeffs)} training poses"
    lines = [
        f"{source}: MANO, {model.side} hand",
        f"  sha256      {model.sha256}",
        f"  mesh        {len(model.v_template)} vertices, {len(model.faces)} triangles, "
        + " x ".join(f"{v:.0f}" for v in extent)
        + " mm at rest",
        f"  joints      {', '.join(JOINT_NAMES[:16])}",
        f"  parameters  10 shape, 45 PCA components, {components}, mean pose {np.abs(model.hands_mean).max():.3f} rad",
    ]
    if options.output:
        import hashlib

        target.parent.mkdir(parents=True, exist_ok=True)
        save_npz(model, target)
        record: dict[str, Any] = {
            "side": model.side,
            "source": source.name,
            "source_sha256": model.sha256,
            "npz_sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
            "flip_shapedirs_x": options.flip_shapedirs_x,
        }
        atomic_write_text(target.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        lines.append(f"  written     {target} (sha256 {record['npz_sha256']}) and {target.with_suffix('.json').name}")
    return lines


if __name__ == "__main__":
    exit_on_error(main)
