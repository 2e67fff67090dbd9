"""Heat maps: the original's packing, and blobs from joints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hand3d_wild.heatmaps import (
    GROUPS,
    PEAKS,
    SIGMA,
    gaussian_maps,
    group_paths,
    pack,
    peaks_of,
    read_group,
    read_maps,
    require_groups,
    unpack,
    write_group,
)
from shared.errors import DataError, MissingFileError
from shared.skeletons import order
from tests.hand3d_wild.golden_files import arrays, max_diff


def test_packing_is_golden() -> None:
    gold = arrays("heatmaps")
    maps = gold["maps_openpose_order"]
    packed = pack(maps, "thumb_first")
    assert packed.dtype == np.uint8
    assert max_diff("packed", packed, gold["packed"]) == 0
    back = unpack(packed)
    expected = maps[order("thumb_first", "wild")].transpose(1, 2, 0)
    assert max_diff("unpacked", back, expected) <= 1 / 255
    assert np.array_equal(pack(back.transpose(2, 0, 1)), packed)  # order "wild" by default; floor is undone by nothing


def test_groups_are_the_originals() -> None:
    assert GROUPS == ((0, 5, 6), (7, 8, 9), (10, 11, 12), (17, 18, 19), (20, 13, 14), (15, 16, 1), (2, 3, 4))


def test_files_there_and_back(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).uniform(0, 1, (21, 40, 40)).astype(np.float32)
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "7.png")
    write_group(tmp_path, "7", maps)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in group_paths(tmp_path, "7"))
    read, back = read_group(tmp_path, "7")
    assert np.array_equal(read, picture)
    assert back.shape == (40, 40, 21)
    assert (np.abs(back.transpose(2, 0, 1) - maps) < 1 / 255).all()


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    maps = np.zeros((21, 8, 8), np.float32)
    Image.new("RGB", (8, 8)).save(tmp_path / "3.png")
    write_group(tmp_path, "3", maps)
    (tmp_path / "3_2.png").unlink()
    (tmp_path / "3_5.png").unlink()
    with pytest.raises(MissingFileError, match=r"2 of 7 heat-map files are missing.*: 3_2\.png, 3_5\.png"):
        read_group(tmp_path, "3")
    write_group(tmp_path, "3", maps)
    Image.new("RGB", (9, 8)).save(tmp_path / "3_4.png")
    with pytest.raises(DataError, match=r"3_4.png: is 9 x 8 pixels, its picture 8 x 8"):
        read_group(tmp_path, "3")
    (tmp_path / "3_4.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3_4\.png: not a readable PNG"):
        read_group(tmp_path, "3")


def test_fewer_files_than_pictures_is_one_error(tmp_path: Path) -> None:
    for stem in ("a", "c"):
        write_group(tmp_path, stem, np.zeros((21, 8, 8), np.float32))
    require_groups(tmp_path, ["a", "c"])
    (tmp_path / "c_6.png").unlink()
    with pytest.raises(MissingFileError, match=r"8 of 21 .* missing, of 2 of 3 pictures: b_0\.png, .*b_6"):
        require_groups(tmp_path, ["a", "b", "c"])
    with pytest.raises(MissingFileError, match=r"b_6\.png, c_6\.png"):
        require_groups(tmp_path, ["b", "c"])
    with pytest.raises(MissingFileError, match=r"c_6\.png, \.\.\. -- "):
        require_groups(tmp_path, ["b", "c", "d"])


def test_peaks_are_the_joints(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    points, heights = rng.uniform(40, 280, (21, 2)), rng.uniform(*PEAKS, 21)
    heights[4] = 0
    points[5] = (1.0, 318.0)  # half of the blob is outside
    write_group(tmp_path, "a", gaussian_maps(points, heights, 320).transpose(2, 0, 1))
    found = peaks_of(unpack(read_maps(tmp_path, "a")))
    assert not found[4].any()
    inside = np.arange(21) > 5
    difference = np.abs(found[inside, :2] - points[inside]).max()
    print(f"peaks of stored maps: max diff {difference:.3g} px")
    assert difference < 0.2
    assert np.abs(found[5, :2] - points[5]).max() < 8.6
    assert np.abs(found[:, 2] - heights).max() < 2 / 255


def test_blobs_stand_at_the_joints() -> None:
    rng = np.random.default_rng(0)
    points, peaks = rng.integers(60, 260, (21, 2)), rng.uniform(*PEAKS, 21)
    peaks[4] = 0
    maps = gaussian_maps(points, peaks, 320)
    assert maps.shape == (320, 320, 21)
    assert maps.dtype == np.float32
    v, u = np.mgrid[:320, :320]
    for joint in range(21):
        row, column = np.unravel_index(maps[..., joint].argmax(), (320, 320))
        if joint == 4:
            assert not maps[..., joint].any()
            continue
        assert (column, row) == tuple(points[joint])
        exact = peaks[joint] * np.exp(-0.5 * ((u - points[joint, 0]) ** 2 + (v - points[joint, 1]) ** 2) / 8.6**2)
        assert np.abs(maps[..., joint] - exact).max() < 1e-5
    assert pytest.approx(8.6) == 320 * SIGMA


def test_size_and_sigma_scale_together() -> None:
    point = np.array([[100.0, 40.0]])
    large, small = gaussian_maps(point, [0.8], 320), gaussian_maps(point / 2, [0.8], 160)
    assert np.allclose(large[::2, ::2], small, atol=1e-6)
    assert gaussian_maps(point, [0.8], 320, sigma=2 * SIGMA).sum() == pytest.approx(4 * large.sum(), rel=0.02)
    outside = gaussian_maps([[-50.0, 400.0], [np.nan, 3]], [1.0, 0.0], 32)
    assert outside.shape == (32, 32, 2)
    assert outside.max() < 0.01


def test_bad_maps() -> None:
    for call, message in (
        (lambda: gaussian_maps(np.zeros((21, 3)), np.ones(21), 8), r"points \(J, 2\)"),
        (lambda: gaussian_maps(np.zeros((21, 2)), np.ones(20), 8), r"peaks \(J,\)"),
        (lambda: gaussian_maps(np.zeros((2, 2)), np.array([0.5, 1.5]), 8), "peaks of heat maps.*0.5 to 1.5"),
        (lambda: gaussian_maps(np.array([[0, 0], [0, np.inf]]), np.ones(2), 8), "joint 1 is not finite"),
        (lambda: pack(np.zeros((20, 4, 4))), "21 heat maps"),
        (lambda: pack(np.full((21, 4, 4), 1.1)), "lie in 0..1"),
        (lambda: unpack(np.zeros((7, 4, 4, 3), np.float32)), "seven RGB pictures"),  # type: ignore[arg-type]
        (lambda: unpack(np.zeros((6, 4, 4, 3), np.uint8)), "seven RGB pictures"),
    ):
        with pytest.raises(DataError, match=message):
            call()
