"""Does a frame's depth picture agree with its labels? A wrong axis, order or unit makes these numbers collapse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared import camera
from shared.datasets.base import Frame


def on_surface(frame: Frame, joints_mm: NDArray[np.float64], thickness_mm: float, *, radius: int = 1) -> float:
    """Share of the joints that lie less than ``thickness_mm`` behind a surface seen within ``radius`` pixels."""
    depth = frame.full_depth_mm()
    uv = np.rint(camera.project(joints_mm, frame.K)).astype(int)
    found = 0
    for (u, v), z in zip(uv, joints_mm[:, 2], strict=True):
        window = depth[max(v - radius, 0) : max(v + radius + 1, 0), max(u - radius, 0) : max(u + radius + 1, 0)]
        behind = z - window[window > 0]
        found += bool(((behind > -3) & (behind < thickness_mm)).any())
    return found / len(joints_mm)
