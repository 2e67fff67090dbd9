"""Pictures, animations and videos frame by frame, and what is said of those that cannot be read."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shared.errors import DataError, MissingFileError
from shared.frames import Picture, follows, list_files, lookup, read_pictures
from tests.shared.videos import FRAMES, LOSS, frame, quarters, write_video

HUGE_GIF = (
    b"GIF89a" + struct.pack("<HHxxx", 65000, 65000) + b"," + struct.pack("<HHHHx", 0, 0, 65000, 65000) + b"\x08\0;"
)


def read(path: Path) -> list[Picture]:
    return list(read_pictures([(path, "clip")]))


@pytest.mark.parametrize("suffix", [".mp4", ".MOV", ".m4v", ".avi", ".mkv"])
def test_videos_in_order_upright_and_in_their_colours(tmp_path: Path, suffix: str) -> None:
    frames = read(write_video(tmp_path / f"clip{suffix}"))
    assert [f.name for f in frames] == [f"clip/{number:06d}" for number in range(FRAMES)]
    for number, item in enumerate(frames):
        assert item.rgb is not None
        assert item.rgb.shape == frame(number).shape
        assert item.rgb.dtype == np.uint8
        assert item.rgb.flags.c_contiguous
        assert np.abs(quarters(item.rgb) - quarters(frame(number))).max() <= LOSS


def test_a_phone_held_upright_gives_upright_frames(tmp_path: Path) -> None:
    """Its sensor lies on its side, and the track header says by how much to turn."""
    path = write_video(tmp_path / "clip.mp4")
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # the matrix of a header of version 0
    assert struct.unpack_from(">9i", content, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, at, 0, 1 << 16, 0, -1 << 16, 0, 0, 240 << 16, 0, 1 << 30)
    path.write_bytes(content)
    frames = read(path)
    assert len(frames) == FRAMES
    for number, item in enumerate(frames):
        expected = np.rot90(frame(number), -1)  # clockwise
        assert item.rgb is not None
        assert item.rgb.shape == expected.shape
        assert np.abs(quarters(item.rgb) - quarters(expected)).max() <= LOSS


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_animations_frame_by_frame(tmp_path: Path, suffix: str) -> None:
    first, *others = (Image.fromarray(frame(number)) for number in range(FRAMES))
    kind = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}[suffix]
    first.save(tmp_path / f"clip{suffix}", kind, save_all=True, append_images=others)
    frames = read(tmp_path / f"clip{suffix}")
    assert [f.name for f in frames] == [f"clip/{number:06d}" for number in range(FRAMES)]
    for number, item in enumerate(frames):
        assert item.rgb is not None
        assert np.abs(quarters(item.rgb) - quarters(frame(number))).max() <= LOSS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clip.mp4", b"no video", "not a readable video (no frame could be decoded)"),
        ("clip.avi", b"", "not a readable video"),
        ("wave.gif", b"GIF89a damaged", "not a readable animation"),
        ("wave.gif", HUGE_GIF, "not a readable animation (Image size (4225000000 pixels) exceeds limit"),
        ("photo.png", b"\x89PNG", "not a readable PNG or JPEG"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    (item,) = read(tmp_path / name)
    assert item.rgb is None
    assert item.name == "clip"
    assert f"{name}: {message}" in item.problem


def test_a_gif_that_breaks_off_keeps_its_frames_and_is_reported(tmp_path: Path) -> None:
    """Pillow raises struct.error where a file ends in a block's header."""
    path = tmp_path / "wave.gif"
    first, *others = (Image.fromarray(frame(number)) for number in range(FRAMES))
    first.save(path, save_all=True, append_images=others)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b",", len(content) // 2) + 1])
    *frames, last = read(path)
    assert len(frames) >= 1
    assert last.rgb is None
    assert "wave.gif: not a readable animation" in last.problem


def test_a_large_animation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.frames.MAX_PIXELS", 100)
    Image.fromarray(frame(0)).save(tmp_path / "wave.gif")
    (item,) = read(tmp_path / "wave.gif")
    assert "wave.gif: 320 x 240 pixels are more than 100" in item.problem


def test_a_video_that_breaks_off_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (320, 240))
    for number in range(20):
        writer.write(frame(number % FRAMES))
    writer.release()
    assert len(read(path)) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *frames, last = read(path)
    assert 5 < len(frames) < 15
    assert all(item.rgb is not None for item in frames)
    assert last.rgb is None
    assert f"clip.avi: {len(frames)} of 20 frames could be decoded" in last.problem


@pytest.mark.parametrize(("listed", "reported"), [(0, False), (-5, False), (4, False), (20, True)])
def test_a_frame_more_or_less_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: int, reported: bool
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    whole = cv2.VideoCapture

    class Claiming:
        def __init__(self, name: str) -> None:
            self.video = whole(name)
            self.read, self.release = self.video.read, self.video.release

        def get(self, _: int) -> float:
            return float(listed)

    monkeypatch.setattr(cv2, "VideoCapture", Claiming)
    assert (len(read(path)) == FRAMES + 1) is reported
    assert len(read(path.rename(tmp_path / "clip.mkv"))) == FRAMES  # whose number of frames is a guess


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".apng"])
def test_a_still_picture_has_its_own_name(tmp_path: Path, suffix: str) -> None:
    kind = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}[suffix]
    Image.fromarray(frame(0)).save(tmp_path / f"still{suffix}", kind)
    (item,) = read(tmp_path / f"still{suffix}")
    assert item.name == "clip"
    assert item.rgb is not None


def test_a_phones_picture_is_read_and_not_an_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (8064, 6048)).save(tmp_path / "photo.png")  # 48 million pixels
    (item,) = read(tmp_path / "photo.png")
    assert item.rgb is not None
    assert item.rgb.shape == (6048, 8064, 3)
    Image.fromarray(frame(0)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    (item,) = read(tmp_path / "cut.jpg")
    assert "copy or export it again" in item.problem
    assert "archive" not in item.problem
    monkeypatch.setattr("shared.frames.MAX_PIXELS", 100)
    (item,) = read(tmp_path / "photo.png")
    assert "more than the limit of 100" in item.problem


def test_a_picture_that_viewers_turn_is_told_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [(tmp_path / f"{name}.jpg", name) for name in ("plain", "a", "b")]
    for path, name in files:
        Image.fromarray(frame(0)).save(path, exif=exif if name != "plain" else Image.Exif())
    with pytest.warns(UserWarning, match=r"a\.jpg: viewers turn or mirror this picture.*used as stored") as caught:
        pictures = list(read_pictures(files))
    assert len(caught) == 1
    assert all(item.rgb is not None and item.rgb.shape == (240, 320, 3) for item in pictures)


def test_files_and_folders(tmp_path: Path) -> None:
    for name in ("b10.MP4", "b2.jpg", "c.gif", "notes.txt", "out/b2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [name for _, name in list_files([str(tmp_path)], tmp_path / "out")] == ["b2", "b10", "c"]
    assert list_files([str(tmp_path / "c.gif")], tmp_path) == [(tmp_path / "c.gif", "c")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="nowhere: no such picture or folder"):
        list_files([str(tmp_path / "nowhere")], tmp_path)
    for inputs, message in (
        ([], r"no picture is given -- give pictures, folders or videos \(\.png .*\.webm\)"),
        (["notes.txt"], r"suffix '\.txt' is none of \.png"),
        (["empty"], r"the folder holds no \.png"),
        (["b2.jpg", "out/b2.png"], r"would write the same b2\.json as .*b2\.jpg -- use two --out"),
    ):
        with pytest.raises(DataError, match=message):
            list_files([str(tmp_path / word) for word in inputs], tmp_path / "results")


def test_a_folder_of_results_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="all pictures of this folder lie under --out -- give another --out"):
        list_files([str(tmp_path)], tmp_path)


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".tiff"])
def test_other_formats_of_pictures(tmp_path: Path, suffix: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / f"a{suffix}")
    ((path, _),) = list_files([str(tmp_path)], tmp_path / "out")
    (item,) = read(path)
    assert np.array_equal(item.rgb, rgb)  # type: ignore[arg-type]


def test_who_may_be_followed() -> None:
    def item(name: str) -> Picture:
        return Picture(Path(name), "x", None)

    assert follows(item("a.mp4"), Path("a.mp4"))
    assert follows(item("a/2.png"), Path("a/1.JPG"))
    assert not follows(item("b.mp4"), Path("a.mp4"))
    assert not follows(item("b.png"), Path("a.gif"))
    assert not follows(item("b.gif"), Path("a.png"))


def test_a_table_is_searched_by_name_and_by_path() -> None:
    item = Picture(Path("set/rgb/0001.png"), "rgb/0001", None)
    absolute = Picture(Path("/set/rgb/0001.png"), "0001", None)
    assert lookup(absolute, {"/set/rgb/0001.png": 1, "0001.png": 2}) == 1
    for key in ("rgb/0001", "set/rgb/0001.png", "rgb/0001.png", "0001.png"):
        assert lookup(item, {key: 1, "0001": 2}) == 1
    assert lookup(item, {"rgb/0001": 1, "0001.png": 2}) == 1
    assert lookup(item, {"1.png": 1, "0001": 2}) is None
