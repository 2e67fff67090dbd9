"""Tiny NYU trees and prepared frames for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

from selfsup_fitting.config import PrepareConfig
from selfsup_fitting.prepare import prepare
from shared.standin.nyu import write_nyu


def nyu_tree(root: Path, frames: int = 3) -> Path:
    """A stand-in NYU folder with a training and a test split."""
    write_nyu(root, frames=frames, seed=0)
    return root


def prepared(root: Path, out: Path, **options: object) -> Path:
    """Its shards."""
    prepare(PrepareConfig(data=str(root), out=str(out), jobs=1, **options))  # type: ignore[arg-type]
    return out
