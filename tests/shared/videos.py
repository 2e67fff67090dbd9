"""A tiny video whose frames tell their number, which side is up, and which colour channel is which."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

FRAMES = 3
SIZE = (320, 240)  # width, height
CENTRE_BOX = "140,100,40,40"  # around the point where the four quarters meet
LOSS = 12  # grey levels that the coding may change a plain colour by


def frame(number: int) -> NDArray[np.uint8]:
    """(240, 320, 3) RGB: quarters red and green over blue and a grey that grows with the number."""
    width, height = SIZE
    rgb = np.full((height, width, 3), 70 * number, np.uint8)
    rgb[: height // 2, : width // 2] = 240, 0, 0
    rgb[: height // 2, width // 2 :] = 0, 240, 0
    rgb[height // 2 :, : width // 2] = 0, 0, 240
    return rgb


def quarters(rgb: ArrayLike) -> NDArray[np.int64]:
    """(2, 2, 3) colours in the middle of the quarters of a picture."""
    array = np.asarray(rgb, np.int64)
    height, width = array.shape[:2]
    return array[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]


def write_video(path: Path) -> Path:
    """The frames as MPEG-4; its container is that of the suffix."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, SIZE)
    for number in range(FRAMES):
        writer.write(np.ascontiguousarray(frame(number)[..., ::-1]))
    writer.release()
    return path


def assert_video_crops(folder: Path) -> None:
    """A program's ``000000_crop.png`` and so on, cut around ``CENTRE_BOX``, show the quarters of their frames."""
    assert len(list(folder.glob("*_crop.png"))) == FRAMES
    for number in range(FRAMES):
        seen = quarters(Image.open(folder / f"{number:06d}_crop.png"))
        difference = np.abs(seen - quarters(frame(number))).max()
        print(f"frame {number}: colours differ by at most {difference} of 255")
        assert difference <= LOSS
