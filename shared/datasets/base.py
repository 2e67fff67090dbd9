"""The one record that every reader hands out.

All geometry is in OpenCV axes (x right, y down, z forward) and millimetres, also for the RGB mesh sets whose files
are in metres: one unit in memory leaves one conversion, at the reader's edge. Pixels are counted from 0,
(u, v) = (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of one hand (or body) with whatever the data set says about it.

    Attributes:
        name: the frame's name inside the data set, with ``/``, without suffix (``"P0/1/000000"``).
        image_size: (width, height) of the full image in pixels.
        K: (3, 3) float64 pinhole matrix of the full image, pixels.
        depth_mm: (h, w) float32 depth along z in mm; 0 where nothing was measured. The full image, or a crop of it that
            starts at ``crop_xy``.
        crop_xy: (left, top) of ``depth_mm`` in the full image, pixels; (0, 0) for a full image.
        rgb: (H, W, 3) uint8 full image, or None.
        joints_mm: (J, 3) float64 camera-frame joints in the data set's own order (``skeleton``), mm.
        joints_valid: (J,) bool; None means all.
        keypoints_2d: (J, 2) float64 pixels of the full image where the set labels them; otherwise None.
        center_mm: (3,) float64 reference point of the hand (a centre file's), mm; None where there is none.
        verts_mm: (778, 3) float64 mesh vertices, mm.
        skeleton: the name of the joint order in ``shared.skeletons``.
        side: which hand.
        subject: the person, where the set says.
        extra: what only this set has (MANO parameters, object pose, boxes); documented by its reader.
    """

    name: str
    image_size: tuple[int, int]
    K: NDArray[np.float64]
    skeleton: str
    depth_mm: NDArray[np.float32] | None = None
    crop_xy: tuple[int, int] = (0, 0)
    rgb: NDArray[np.uint8] | None = None
    joints_mm: NDArray[np.float64] | None = None
    joints_valid: NDArray[np.bool_] | None = None
    keypoints_2d: NDArray[np.float64] | None = None
    center_mm: NDArray[np.float64] | None = None
    verts_mm: NDArray[np.float64] | None = None
    side: Literal["right", "left"] | None = "right"
    subject: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(h, w) bool: where ``depth_mm`` holds a measurement."""
        if self.depth_mm is None:
            raise ValueError(f"{self.name} has no depth image")
        return self.depth_mm > 0

    def full_depth_mm(self) -> NDArray[np.float32]:
        """(H, W) float32: ``depth_mm`` placed in the full image, 0 elsewhere."""
        if self.depth_mm is None:
            raise ValueError(f"{self.name} has no depth image")
        width, height = self.image_size
        image = np.zeros((height, width), np.float32)
        left, top = self.crop_xy
        h, w = self.depth_mm.shape
        image[top : top + h, left : left + w] = self.depth_mm
        return image


@runtime_checkable
class FrameDataset(Protocol):
    """What ``open()`` of a reader returns: a sequence of Frames that can be sent to worker processes."""

    skeleton: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def names(self) -> list[str]:
        """The frames' names in order, without decoding a single image."""
        ...

    def summary(self) -> str:
        """One line for the log: frames, what was skipped and why, which release."""
        ...
