"""Writes every stand-in set that has a writer, each into a folder of its own.

    python -m shared.standin.all --out DIR [--datasets msra,nyu,...] [--frames N] [--seed 0]

A writer is a module ``shared/standin/<name>.py`` with ``write_<name>(root, *, frames, seed)``; nothing has to be
registered.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError, exit_on_error


@dataclass
class Options:
    """What to write.

    Args:
        out: folder; each set goes into a folder below it, named like its writer.
        datasets: names separated by commas; all of them by default.
        frames: frames per set; each writer's own default otherwise.
        seed: the same seed gives the same files.
        workers: processes of the writers that can use several; the files are the same [processes]
    """

    out: Path
    datasets: str = ""
    frames: int | None = None
    seed: int = 0
    workers: int = 1


def writers() -> list[str]:
    """Names of the sets that can be written, found without importing anything."""
    return sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if f"\ndef write_{path.stem}(" in path.read_text(encoding="utf-8")
    )


def write_sets(
    out: str | Path,
    datasets: list[str] | None = None,
    *,
    frames: int | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> list[Path]:
    """Writes the named sets (all by default) below ``out`` and returns their folders.

    Raises:
        DataError: a set without a writer, or fewer than one frame.
    """
    known = writers()
    names = [name.replace("-", "_") for name in datasets or known]
    for name in names:
        if name not in known:
            raise DataError(f"datasets: no stand-in is called {name!r}", remedy=f"known: {', '.join(known)}")
    if frames is not None and frames < 1:
        raise DataError(f"frames: expected 1 or more, got {frames}")
    done = []
    for name in _progress(names, progress):
        write = getattr(importlib.import_module(f"shared.standin.{name}"), f"write_{name}")
        accepted = inspect.signature(write).parameters
        count = "frames" if "frames" in accepted else "total_frames"  # MSRA counts frames per gesture otherwise
        options = {"seed": seed} | ({count: frames} if frames is not None else {})
        options |= {"workers": workers} if "workers" in accepted else {}
        write(Path(out) / name, **options)
        done.append(Path(out) / name)
    return done


def _progress(names: list[str], show: bool) -> list[str]:
    if not show:
        return names
    from tqdm import tqdm

    bar: list[str] = tqdm(names, "stand-in sets", unit=" sets")
    return bar


def main(argv: list[str] | None = None) -> int:
    from shared.options import parse

    options = parse(
        Options,
        prog="python -m shared.standin.all",
        description="Writes tiny data sets in the official formats, rendered from a hand that needs no licence.",
        argv=argv,
    ).options
    names = options.datasets.replace(",", " ").split()
    import torch

    torch.set_num_threads(1)  # a frame is milliseconds of small operations: threads that wait for each other cost more
    done = write_sets(
        options.out, names, frames=options.frames, seed=options.seed, workers=options.workers, progress=True
    )
    for path in done:
        print(path)
    return 0


if __name__ == "__main__":
    exit_on_error(main)
