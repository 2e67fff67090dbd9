"""Fixtures every test may use: the golden folder, real data where a variable points to it, one torch thread."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers on two cores

# A first call that imports something takes a second on a busy machine: no deadline for single examples.
hypothesis.settings.register_profile("handpose", deadline=None)
hypothesis.settings.load_profile("handpose")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of measurements taken on the original programs."""
    return GOLDEN


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real ground truth and published predictions; skipped where HANDPOSE_TEST_DATA does not point to them."""
    root = os.environ.get("HANDPOSE_TEST_DATA")
    if not root:
        pytest.skip("HANDPOSE_TEST_DATA is not set: needs real label and prediction files")
    return Path(root)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
