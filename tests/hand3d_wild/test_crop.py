"""Crops, mirrors and resizes against the original's numbers, and what has no crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hand3d_wild.crop import (
    crop_box,
    crop_rgb,
    cut_points,
    cut_rgb,
    from_crop,
    mirror_points,
    resize_as_tester,
    to_crop,
    turn_matrix,
)
from shared.errors import DataError


def test_boxes_are_the_originals(golden: Path) -> None:
    g = np.load(golden / "hand3d_wild/geometry.npz")
    boxes = [
        crop_box(points[:, :2], points[:, 2] == 1, (int(width), int(height)))
        for (height, width), points in zip(g["crop_size_hw"], g["crop_pts"], strict=True)
    ]
    difference = np.abs(np.array(boxes) - g["crop_vs_ve_us_ue"])
    print(f"48 crop boxes: max diff {difference.max()}")
    assert len(boxes) == 48
    assert difference.max() == 0


def test_crops_points_and_mirror_are_the_originals(golden: Path) -> None:
    g, images = np.load(golden / "hand3d_wild/geometry.npz"), np.load(golden / "hand3d_wild/images.npz")
    for k in ("make0", "make1"):
        picture = images[f"{k}/img"].repeat(10, 0).repeat(10, 1)
        height, width = (int(n) for n in g[f"{k}/size_hw"])
        points = g[f"{k}/pts"]
        box = crop_box(points[:, :2], points[:, 2] == 1, (width, height))
        pixels = np.abs(crop_rgb(picture, box)[::4, ::4].astype(int) - images[f"{k}/crop_img_sub4"]).max()
        there = to_crop(points[:, :2], box)
        moved = np.abs(there - g[f"{k}/crop_pts"][:, :2]).max()
        flipped = np.abs(mirror_points(points[:, :2], width) - g[f"{k}/flip_pts"][:, :2]).max()
        print(f"{k}: pixels max diff {pixels}, points max diff {moved:.3g}, mirrored max diff {flipped:.3g}")
        assert pixels <= 1
        assert moved < 1e-4
        assert flipped < 1e-4
        assert np.abs(from_crop(there, box) - points[:, :2]).max() < 1e-9
        # the reference scales x and y of its 3-D labels by this, and leaves z (README, ledger)
        ratio = 320 / (box[3] - box[2] + 1)
        assert np.abs(g[f"{k}/crop_xyz"] / (g[f"{k}/xyz"] * [ratio, ratio, 1]) - 1).max() < 1e-6


def test_cuts_are_the_originals(golden: Path) -> None:
    g, images = np.load(golden / "hand3d_wild/geometry.npz"), np.load(golden / "hand3d_wild/images.npz")
    picture = images["aug_img"].repeat(10, 0).repeat(10, 1)
    mask = np.unpackbits(images["aug_mask_bits"], axis=-1)
    for i, (u, v) in enumerate(g["aug_start_u_v"].tolist()):
        pixels = np.abs(cut_rgb(picture, (u, v))[::4, ::4].astype(int) - images[f"aug{i}/img_sub4"]).max()
        points = np.abs(cut_points(g["aug_pts"][:, :2], (u, v)) - g[f"aug{i}/train_pts"][:, :2]).max()
        wrong = int((cut_rgb(mask, (u, v)) != np.unpackbits(images[f"aug{i}/mask_bits"], axis=-1)).sum())
        print(f"cut {i}: pixels max diff {pixels}, points max diff {points:.3g}, mask pixels that differ {wrong}")
        assert pixels <= 1
        assert points < 1e-4
        assert wrong == 0
    assert cut_rgb(picture, (3, 4), size=128).shape == (128, 128, 3)


def test_tester_input_is_the_originals(golden: Path) -> None:
    images = np.load(golden / "hand3d_wild/images.npz")
    picture = images["tester_img"].repeat(8, 0).repeat(8, 1)
    ours = resize_as_tester(picture).astype(np.float32).transpose(2, 0, 1)[:, ::4, ::4] / 255
    difference = float(np.abs(ours - images["tester_tensor_sub4"]).max())
    print(f"tester input: max diff {difference:.3g}")
    assert difference <= 2 / 255


def test_official_corner_convention() -> None:
    assert to_crop([[10.0, 20.0], [50.0, 60.0]], (20, 60, 10, 50), corners=True).tolist() == [[0, 0], [319, 319]]


def test_what_has_no_crop() -> None:
    points = np.full((21, 2), 50.0)
    with pytest.raises(DataError, match="photo: no joint is visible"):
        crop_box(points, np.zeros(21, bool), (100, 100), name="photo")
    with pytest.raises(DataError, match="too few for a crop"):
        crop_box(points, np.ones(21, bool), (100, 100))
    with pytest.raises(DataError, match="not finite"):
        crop_box(points * np.nan, np.ones(21, bool), (100, 100))
    assert crop_box(points, np.ones(21, bool), (100, 100), smallest=10) == (39, 61, 39, 61)


@pytest.mark.parametrize("size", [256, 128])
def test_a_cut_that_is_not_turned_is_the_plain_cut(size: int) -> None:
    """Both ways of resampling put everything at the same place; a quarter turn and a zoom are exact."""
    v, u = np.mgrid[0:320, 0:320]
    waves = 128 + 60 * np.sin(u / 17) + 60 * np.sin(v / 23)
    picture = np.stack([waves, waves.T, 255 - waves], -1).astype(np.uint8)
    plain = cut_rgb(picture, (3, 8), size=size).astype(int)
    worst = np.abs(cut_rgb(picture, (3, 8), size=size, matrix=turn_matrix(0, 1)) - plain).max()
    quarter = cut_rgb(np.rot90(picture, -1).copy(), (3, 8), size=size).astype(int)
    turned = np.abs(cut_rgb(picture, (3, 8), size=size, matrix=turn_matrix(np.pi / 2, 1)) - quarter).max()
    print(f"{size}: max diff {worst}, after a quarter turn {turned} of 255")
    assert worst <= 3
    assert turned <= 3
    points = np.array([[159.5, 159.5], [259.5, 159.5]])
    matrix = turn_matrix(np.pi / 2, 0.5)
    assert np.allclose(points @ matrix[:, :2].T + matrix[:, 2], [[159.5, 159.5], [159.5, 209.5]])
