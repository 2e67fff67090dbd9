"""The rasteriser against OpenDR's pictures, a per-pixel loop, and its own rules."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion

from hand3d_wild.render import render
from shared.errors import DataError
from tests.hand3d_wild.golden_files import arrays, golden_hand

SQUARE = np.ones((3, 3), bool)
TRIANGLE = np.array([[0, 1, 2]])
RED, GREEN, BLUE = np.eye(3)


@pytest.mark.parametrize("sample", range(4))
def test_golden_pictures(sample: int) -> None:
    gold = arrays("synth")
    ours = render(gold["verts_uvz"][sample], golden_hand().faces, gold["vertex_colors"][sample])
    mask = np.unpackbits(gold["mask_bits"][sample], axis=-1).astype(bool)
    beyond, lost = int((ours.mask & ~mask).sum()), int((mask & ~binary_dilation(ours.mask, SQUARE)).sum())
    inner = binary_erosion(ours.mask & mask, SQUARE)
    difference = np.abs(np.rint(255 * ours.colors) - gold["hand_rgb"][sample].astype(float)).max(-1)[inner]
    print(f"mask: {beyond} and {lost} px beyond; colours: mean diff {difference.mean():.3g}, "
          f"max diff {difference.max():.3g}, {100 * (difference <= 8).mean():.1f} % within 8")  # fmt: skip
    assert beyond <= 5
    assert lost <= 5
    assert difference.mean() < 2
    assert (difference <= 8).mean() >= 0.95
    assert not ours.colors[~ours.mask].any()


def slow(verts: NDArray[np.float64], faces: NDArray[np.int64], colors: NDArray[np.float64], size: int) -> tuple[
    NDArray[np.int32], NDArray[np.float64]
]:  # fmt: skip
    """One pixel and one triangle after the other."""
    face, out = np.full((size, size), -1, np.int32), np.zeros((size, size, 3))
    depth = np.full((size, size), np.inf)
    for index, corners in enumerate(faces):
        (ua, va, za), (ub, vb, zb), (uc, vc, zc) = verts[corners]
        area = (ub - ua) * (vc - va) - (vb - va) * (uc - ua)
        for i in range(size):
            for j in range(size):
                a = ((ub - j) * (vc - i) - (vb - i) * (uc - j)) / area
                b = ((uc - j) * (va - i) - (vc - i) * (ua - j)) / area
                c = 1 - a - b
                z = a * za + b * zb + c * zc
                if min(a, b, c) >= -1e-12 and z < depth[i, j] - 1e-12:
                    depth[i, j], face[i, j] = z, index
                    out[i, j] = a * colors[corners[0]] + b * colors[corners[1]] + c * colors[corners[2]]
    return face, out


def test_agrees_with_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        verts = rng.uniform(-4, 20, (12, 3))
        faces = rng.permuted(np.tile(np.arange(12), (15, 1)), axis=1)[:, :3]
        faces = np.unique(np.sort(faces, 1), axis=0)  # the same triangle twice would leave a tie to the rounding
        colors = rng.uniform(0, 1, (12, 3))
        ours = render(verts, faces, colors, 16)
        face, out = slow(verts, faces, colors, 16)
        assert np.array_equal(ours.face, face)
        assert np.abs(ours.colors - out).max() < 1e-5


def test_pixel_centres_orientation_and_interpolation() -> None:
    # Right angle at (2, 1); along u to 6, along v to 5: pixel (row i, column j) looks at (u, v) = (j, i).
    verts = np.array([[2.0, 1, 0], [6, 1, 0], [2, 5, 0]])
    for faces in (TRIANGLE, TRIANGLE[:, ::-1]):  # both sides are seen
        seen = render(verts, faces, np.eye(3), (8, 7))
        assert seen.mask.shape == (7, 8)
        rows, columns = np.nonzero(seen.mask)
        assert {(i, j) for i in range(7) for j in range(8) if j >= 2 and i >= 1 and (j - 2) + (i - 1) <= 4} == set(
            zip(rows.tolist(), columns.tolist(), strict=True)
        )
        assert seen.colors[1, 2] == pytest.approx(RED)
        assert seen.colors[1, 6] == pytest.approx(GREEN)
        assert seen.colors[5, 2] == pytest.approx(BLUE)
        assert seen.colors[1, 3] == pytest.approx(0.75 * RED + 0.25 * GREEN)


def test_smaller_z_is_nearer_and_ties_go_to_the_first() -> None:
    verts = np.array([[0.0, 0, 1], [9, 0, 1], [0, 9, 1], [0, 0, -1], [9, 0, -1], [0, 9, -1]])
    colors = np.repeat(np.eye(3)[:2], 3, 0)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    assert render(verts, faces, colors, 10).colors[2, 2] == pytest.approx(GREEN)
    assert render(verts, faces[::-1], colors, 10).colors[2, 2] == pytest.approx(GREEN)
    verts[3:, 2] = 1
    assert render(verts, faces, colors, 10).colors[2, 2] == pytest.approx(RED)
    assert render(verts, faces[::-1], colors, 10).colors[2, 2] == pytest.approx(GREEN)
    verts[:3] = [[0.0, 0, -1], [9, 0, 3], [0, 9, 3]]  # they cross at u + v = 4.5
    crossing = render(verts, faces, colors, 10)
    assert crossing.colors[1, 1] == pytest.approx(RED)
    assert crossing.colors[4, 4] == pytest.approx(GREEN)


def test_no_gap_between_neighbours() -> None:
    """A fan of triangles about random points fills its polygon: no pixel inside is lost at an edge or a corner."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
        rim = 50 + 45 * np.stack((np.cos(angle), np.sin(angle)), 1)
        centre = rng.uniform(45, 55, (1, 2))
        if rng.uniform() < 0.5:
            centre, rim = np.round(centre), np.round(rim)  # corners exactly on pixel centres
        verts = np.concatenate((np.concatenate((centre, rim)), np.zeros((41, 1))), 1)
        k = np.arange(40)
        faces = np.stack((np.zeros(40, int), 1 + k, 1 + (k + 1) % 40), 1)
        mask = render(verts, faces, np.ones((41, 3)), 100).mask
        filled = mask.copy()
        for row in filled:
            inside = np.flatnonzero(row)
            if len(inside):
                row[inside[0] : inside[-1]] = True
        gaps = filled & ~mask
        assert not (gaps & binary_erosion(filled, SQUARE)).any()


def test_cut_off_empty_and_degenerate() -> None:
    big = np.array([[-500.0, -500, 0], [900, -500, 0], [-500, 900, 0]])
    assert render(big, TRIANGLE, np.eye(3), 20).mask.all()
    far = big + np.array([2000, 0, 0])
    assert not render(far, TRIANGLE, np.eye(3), 20).mask.any()
    line = np.array([[0.0, 0, 0], [5, 5, 0], [9, 9, 0]])
    assert not render(line, TRIANGLE, np.eye(3), 20).mask.any()
    nothing = render(np.zeros((0, 3)), np.zeros((0, 3), int), np.zeros((0, 3)), 5)
    assert nothing.mask.shape == (5, 5)
    assert (nothing.face == -1).all()


def test_parts_of_the_list_give_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = arrays("synth")
    args = (gold["verts_uvz"][0], golden_hand().faces, gold["vertex_colors"][0])
    whole = render(*args)
    monkeypatch.setattr("hand3d_wild.render._CHUNK", 500)
    parts = render(*args)
    assert np.array_equal(whole.face, parts.face)
    assert np.array_equal(whole.colors, parts.colors)


def test_bad_meshes() -> None:
    verts, colors = np.zeros((3, 3)), np.eye(3)
    for call, message in (
        (lambda: render(verts[:, :2], TRIANGLE, colors), r"vertices \(V, 3\)"),
        (lambda: render(verts, TRIANGLE[:, :2], colors), r"faces \(F, 3\)"),
        (lambda: render(verts, TRIANGLE + 1, colors), "faces must name 3 vertices, got 1 to 3"),
        (lambda: render(verts, TRIANGLE, colors[:2]), r"colors \(3, C\)"),
        (lambda: render(verts * np.nan, TRIANGLE, colors), "not finite"),
        (lambda: render(verts, TRIANGLE, colors, 0), "at least one pixel, got 0 x 0"),
    ):
        with pytest.raises(DataError, match=message):
            call()
