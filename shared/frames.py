"""What the prediction programs on colour pictures are given: pictures, folders of them, animations and videos.

``list_files`` finds them, ``read_pictures`` gives their frames one after the other, ``lookup`` what a user's table (of
boxes or keypoints) says of a frame. Videos go through OpenCV, whose package brings its decoders along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shared.errors import DataError, MissingFileError
from shared.inputs import outside, refuse_same_results, unfold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    RGB = NDArray[np.uint8]

PICTURES = (".png", ".jpg", ".jpeg")
ANIMATIONS = (".gif", ".webp", ".apng")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One frame: where it comes from, the name of its results, and its pixels or why there are none.

    Attributes:
        source: the file.
        name: of the results, without a suffix; frames of an animation or video are ``NAME/000000`` and so on.
        rgb: (H, W, 3) uint8, red first; None where the file cannot be read.
        problem: what is wrong then, with the file's name.
    """

    source: Path
    name: str
    rgb: RGB | None
    problem: str = ""


def list_files(inputs: Sequence[str], out: Path) -> list[tuple[Path, str]]:
    """(file, name of its results); folders unfolded in natural order, without what lies under ``out``.

    Raises:
        MissingFileError, DataError: nothing given, a path that is not there, an unknown suffix, an empty folder, two
            files whose results would have one name.
    """
    known = (*PICTURES, *ANIMATIONS, *VIDEOS)
    if not inputs:
        raise DataError("no picture is given", remedy=f"give pictures, folders or videos ({' '.join(known)})")
    found: list[tuple[Path, str]] = []
    for word in inputs:
        path = Path(word)
        if path.is_dir():
            inside = unfold(path, known, outside(out))
            if not inside:
                raise DataError(f"the folder holds no {', '.join(known)} file", path=path)
            found += inside
        elif not path.exists():
            raise MissingFileError("no such picture or folder", path=path, remedy="check the path")
        elif path.suffix.lower() not in known:
            raise DataError(f"the suffix {path.suffix!r} is none of {', '.join(known)}", path=path)
        else:
            found.append((path, path.stem))
    refuse_same_results(found)
    return found


def read_pictures(files: Sequence[tuple[Path, str]]) -> Iterator[Picture]:
    """The frames of all files, one after the other; unreadable ones with the reason instead of pixels.

    Pictures come as stored; videos are turned as their header says, as every player does.
    """
    from shared.datasets.images import read_rgb

    for path, name in files:
        suffix = path.suffix.lower()
        try:
            if suffix in PICTURES:
                yield Picture(path, name, read_rgb(path))
            else:
                frames = _animation(path) if suffix in ANIMATIONS else _video(path)
                for number, rgb in enumerate(frames):
                    yield Picture(path, f"{name}/{number:06d}", rgb)
        except DataError as error:
            yield Picture(path, name, None, str(error))


def _animation(path: Path) -> Iterator[RGB]:
    import numpy as np
    from PIL import Image, ImageSequence

    from shared.datasets.images import MAX_PIXELS

    try:
        with Image.open(path, formats=("GIF", "WEBP", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}", path=path)
            for frame in ImageSequence.Iterator(image):
                yield np.array(frame.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # struct.error, IndexError and others: Pillow's decoders raise whatever they meet
        raise DataError(f"not a readable animation ({error})", path=path) from None


def _video(path: Path) -> Iterator[RGB]:
    import cv2
    import numpy as np

    video = cv2.VideoCapture(str(path))
    count = 0
    try:
        while True:
            there, frame = video.read()
            if not there:
                break
            count += 1
            yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV has blue first
    finally:
        video.release()
    if not count:
        raise DataError("not a readable video (no frame could be decoded)", path=path)


def lookup(item: Picture, table: Mapping[str, T]) -> T | None:
    """The entry of a picture under its result's name, its path, or any end of the path (``rgb/0000.png``), or None."""
    parts = item.source.parts
    keys = [item.name, *("/".join(parts[start:]) for start in range(len(parts)))]
    return next((table[key] for key in keys if key in table), None)
