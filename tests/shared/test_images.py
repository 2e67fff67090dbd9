"""Pictures that are not trusted: what is decoded, and what is refused before it costs memory."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.datasets.images import read_png16, read_rgb
from shared.datasets.labels import read_label_bytes
from shared.errors import DataError, MissingFileError

DEPTH = np.random.default_rng(0).integers(0, 65536, (24, 32)).astype(np.uint16)
COLOUR = np.random.default_rng(1).integers(0, 256, (24, 32, 3)).astype(np.uint8)


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_png16_is_as_stored(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEPTH)  # written by hand, not by Pillow
    (tmp_path / "a.png").write_bytes(png(32, 24, 16, 0, rows))
    values = read_png16(tmp_path / "a.png", expected_size=(32, 24))
    assert values.dtype == np.uint16
    assert np.array_equal(values, DEPTH)
    assert values.flags.writeable  # torch.from_numpy asks for it


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_rgb_is_as_stored_and_alpha_is_not_blended(tmp_path: Path, mode: str) -> None:
    stored = COLOUR if mode == "RGB" else np.dstack([COLOUR, np.zeros((24, 32), np.uint8)])
    Image.fromarray(stored).save(tmp_path / "a.png")
    assert np.array_equal(read_rgb(tmp_path / "a.png", any_mode=False), COLOUR)


def test_jpeg_and_grey_become_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.full((24, 32, 3), 100, np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray(COLOUR[..., 0]).save(tmp_path / "grey.png")
    assert np.abs(read_rgb(tmp_path / "a.jpg").astype(int) - 100).max() <= 2
    assert np.array_equal(read_rgb(tmp_path / "grey.png"), np.repeat(COLOUR[..., :1], 3, 2))
    with pytest.raises(DataError, match=r"grey\.png: expected an RGB picture of 8 bits, the picture's mode is L"):
        read_rgb(tmp_path / "grey.png", any_mode=False)


@pytest.mark.parametrize(
    ("array", "what"),
    [(COLOUR, "8 bits, RGB"), (COLOUR[..., 0], "8 bits, grey"), (np.dstack([COLOUR, COLOUR[..., 0]]), "8 bits, RGBA")],
)
def test_png16_refuses_other_kinds(tmp_path: Path, array: np.ndarray, what: str) -> None:
    Image.fromarray(array).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png: expected one channel of 16 bits, the PNG has {what}"):
        read_png16(tmp_path / "a.png")


def test_png16_refuses_sixteen_bit_colour(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4, 2, 16, 2, b"\0" * 50))
    with pytest.raises(DataError, match="16 bits, RGB"):
        read_png16(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_png16, read_rgb])
def test_missing_and_wrong_size(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(MissingFileError, match=r"none\.png: no such picture"):
        read(tmp_path / "none.png")
    Image.fromarray(DEPTH).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: expected 640x480 pixels, the header says 32x24"):
        read(tmp_path / "a.png", expected_size=(640, 480))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: not a readable PNG.*unpack the file again"):
        read(tmp_path / "text.png")


@pytest.mark.parametrize(("size", "colour", "depth"), [((60000, 60000), 0, 16), ((30000, 30000), 2, 8)])
def test_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int], colour: int, depth: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(*size, depth, colour, b"\0" * 1_000_000))
    read = read_png16 if colour == 0 else read_rgb
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"bomb\.png: the header claims \d+x\d+ pixels, more than the limit"):
            read(tmp_path / "bomb.png")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_jpeg_above_the_limit(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: the header claims 32x24 pixels, more than the limit of 700"):
        read_rgb(tmp_path / "a.jpg", max_pixels=700)


@pytest.mark.parametrize(("name", "mode"), [("a.png", "I;16"), ("a.tif", "I;16"), ("b.tif", "F")])
def test_more_than_eight_bits_are_not_made_white(tmp_path: Path, name: str, mode: str) -> None:
    Image.fromarray(DEPTH if mode == "I;16" else DEPTH.astype(np.float32)).save(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: expected a picture of 8 bits, the picture's mode is {mode}"):
        read_rgb(tmp_path / name, formats=("PNG", "TIFF"))


def test_an_error_of_the_disk_is_told(tmp_path: Path) -> None:
    for name, read in (("a.png", read_png16), ("a.jpg", read_rgb), ("a.json", read_label_bytes)):
        (tmp_path / name).symlink_to("/proc/self/mem")  # opens, and cannot be read
        with pytest.raises(DataError, match=rf"{name}: cannot be read \(Input/output error\)"):
            read(tmp_path / name, **({"max_bytes": 10} if read is read_label_bytes else {}))  # type: ignore[operator]


def test_truncated(tmp_path: Path) -> None:
    Image.fromarray(DEPTH).save(tmp_path / "a.png")
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg")
    for name, read in (("a.png", read_png16), ("a.jpg", read_rgb)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: -len(content) // 8])
        with pytest.raises(DataError, match=rf"{name}: damaged or truncated picture"):
            read(tmp_path / name)


@settings(max_examples=60, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), value=st.binary(min_size=1, max_size=8), length=st.integers(0, 3000))
def test_arbitrary_damage_is_a_dataerror_or_a_picture(tmp_path: Path, at: int, value: bytes, length: int) -> None:
    Image.fromarray(DEPTH).save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    broken = (content[:at] + value + content[at + len(value) :])[:length]
    (tmp_path / "bad.png").write_bytes(broken)
    for read in (read_png16, read_rgb):
        with contextlib.suppress(DataError):  # anything else fails the test
            assert read(tmp_path / "bad.png").ndim in (2, 3)
