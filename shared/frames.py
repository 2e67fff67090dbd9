"""What the prediction programs on colour pictures are given: pictures, folders of them, animations and videos.

``list_files`` finds them, ``read_pictures`` gives their frames one after the other, ``lookup`` what a user's table (of
boxes or keypoints) says of a frame. Videos go through OpenCV, whose package brings its decoders along.
"""

from __future__ import annotations

import itertools
import warnings
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

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
ANIMATIONS = (".gif", ".webp", ".apng")
LISTED_VIDEOS = (".mp4", ".mov", ".m4v", ".avi")
VIDEOS = (*LISTED_VIDEOS, ".mkv", ".webm")
MAX_PIXELS = 100_000_000  # of a picture or frame: phones have up to 50 million pixels, some cameras 100
REMEDY = "the file may be damaged: copy or export it again"
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
            if not inside and unfold(path, known, lambda _: True):
                raise DataError("all pictures of this folder lie under --out", path=path, remedy="give another --out")
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

    Pictures come as stored, with a warning for the first one that its EXIF wants turned; videos are turned as their
    header says, as every player does.
    """
    from shared.datasets.images import read_rgb

    warned = False
    for path, name in files:
        suffix = path.suffix.lower()
        try:
            if suffix in PICTURES:
                rgb = read_rgb(path, max_pixels=MAX_PIXELS, formats=("PNG", "JPEG", "BMP", "TIFF"), remedy=REMEDY)
                if not warned and _is_turned(path):
                    warned = True
                    warnings.warn(
                        f"{path}: viewers turn or mirror this picture, as its EXIF says; it is used as stored, and so "
                        "must its box or keypoints be (said once)",
                        stacklevel=2,
                    )
                yield Picture(path, name, rgb)
            elif suffix in ANIMATIONS:
                yield from _named(path, name, _animation(path))
            else:
                for number, rgb in enumerate(_video(path)):
                    yield Picture(path, f"{name}/{number:06d}", rgb)
        except DataError as error:
            yield Picture(path, name, None, str(error))


def _is_turned(path: Path) -> bool:
    """Whether EXIF asks viewers to turn or mirror a picture that can be read."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # broken EXIF in a picture whose pixels are fine: Pillow's parser raises whatever it met
        return False


def _named(path: Path, name: str, frames: Iterator[RGB]) -> Iterator[Picture]:
    """The frames of an animation; one that is alone is a still picture and has the file's own name."""
    first = next(frames, None)
    if first is None:
        return
    try:
        second = next(frames, None)
    except DataError:
        yield Picture(path, f"{name}/{0:06d}", first)
        raise
    yield Picture(path, name if second is None else f"{name}/{0:06d}", first)
    if second is not None:
        for number, rgb in enumerate(itertools.chain([second], frames), 1):
            yield Picture(path, f"{name}/{number:06d}", rgb)


def _animation(path: Path) -> Iterator[RGB]:
    import numpy as np
    from PIL import Image, ImageSequence

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
    # MP4 and AVI keep a list of their frames; elsewhere the number is guessed from the duration, or 0 or negative
    listed = video.get(cv2.CAP_PROP_FRAME_COUNT) if path.suffix.lower() in LISTED_VIDEOS else 0.0
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
    if count < 0.95 * listed - 1:  # a frame or two more or less are the container's business
        raise DataError(f"{count} of {listed:.0f} frames could be decoded", path=path, remedy=REMEDY)


def follows(item: Picture, before: Path) -> bool:
    """Whether a picture may continue what the file ``before`` showed: a frame of the same animation or video, or one
    single picture after another."""
    return item.source == before or all(path.suffix.lower() in PICTURES for path in (item.source, before))


def lookup(item: Picture, table: Mapping[str, T]) -> T | None:
    """The entry of a picture under its result's name, its path, or any end of the path (``rgb/0000.png``), or None."""
    parts = item.source.parts
    keys = [item.name, str(item.source), *("/".join(parts[start:]) for start in range(1, len(parts)))]
    return next((table[key] for key in keys if key in table), None)
