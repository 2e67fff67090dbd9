"""Stand-in trees and a prepared store of them, made once a session; tests that change them copy them first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hand3d_wild.config import PrepareConfig
from hand3d_wild.prepare import prepare
from shared.standin.all import write_sets


@pytest.fixture(scope="session")
def wild_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``panoptic``, ``mpii_nzsl`` and ``stb`` below one folder, four moments each."""
    root = tmp_path_factory.mktemp("wild_trees")
    write_sets(root, ["panoptic", "mpii_nzsl", "stb"], frames=4, seed=3)
    return root


@pytest.fixture(scope="session")
def wild_store(wild_trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of :func:`wild_trees`: train 4 + 3 + 4, test 1, stb_test 4 pictures."""
    out = tmp_path_factory.mktemp("wild_store") / "store"
    prepare(config(wild_trees, out))
    return out


def config(trees: Path, out: Path, **changes: object) -> PrepareConfig:
    """Options that prepare all three sets in this process."""
    sets = {"panoptic": str(trees / "panoptic"), "mpii": str(trees / "mpii_nzsl"), "stb": str(trees / "stb")}
    return PrepareConfig(**{**sets, "out": str(out), "workers": 1, **changes})  # type: ignore[arg-type]


def kill_a_worker() -> threading.Thread:
    """Kills the first process that this one starts, as soon as it is there."""

    def wait() -> None:
        for _ in range(2000):
            if children := multiprocessing.active_children():
                os.kill(children[0].pid or 0, signal.SIGKILL)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
