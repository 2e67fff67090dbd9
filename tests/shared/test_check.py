"""The checker: stand-in copies of every set pass; broken ones fail and say why."""

import gzip
import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from shared.camera import uvd_to_xyz
from shared.datasets import check as checker
from shared.datasets.check import SETS, DataSet, Part, SplitReport, _compare_counts, check, curl_mm, main
from shared.errors import DataError
from shared.standin.all import write_sets, writers
from shared.standin.stb import mat_bytes

WRITERS = {  # data set of the checker: stand-in and its folder
    "icvl": "icvl",
    "nyu": "nyu",
    "msra": "msra",
    "hands2017": "hands2017",
    "itop-front": "itop",
    "itop-top": "itop",
    "ho3d-v2": "ho3d",
    "ho3d-v3": "ho3d",
    "dexycb": "dexycb",
    "stb": "stb",
    "panoptic": "panoptic",
    "mpii-nzsl": "mpii_nzsl",
    "freihand": "freihand",
    "dexter-object": "dexter_object",
    "egodexter": "egodexter",
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets that the tests below break; the others are written where they are checked."""
    root = tmp_path_factory.mktemp("sets")
    write_sets(root, ["stb", "mpii_nzsl", "egodexter", "dexter_object", "panoptic"])
    return root


def test_every_set_has_a_reader_and_a_writer() -> None:
    assert set(WRITERS) == set(SETS)
    assert set(WRITERS.values()) <= set(writers())
    for info in SETS.values():
        assert callable(importlib.import_module(f"shared.datasets.{info.module}").open)
