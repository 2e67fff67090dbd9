"""Scenes: deterministic, inside the image, anatomically plausible, and the same in mesh, joints, pose and picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shared.camera import project
from shared.errors import DataError
from shared.mano import ManoLayer, load_mano, mirror_model
from shared.skeletons import SKELETONS, reorder
from shared.standin.scene import (
    GESTURES,
    TIPS,
    Scene,
    closed_faces,
    depth_noise,
    sample_articulation,
    sample_scene,
    subject_betas,
    to_skeleton,
)

K = np.array([[241.42, 0, 160], [0, 241.42, 120], [0, 0, 1]])
SIZE = (320, 240)


def scene(seed: int = 0, index: int = 0, **options: Any) -> Scene:
    return sample_scene(seed, index, K=K, image_size=SIZE, **options)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(3, i, subject=i % 4) for i in range(40)]


def test_same_numbers_same_scene() -> None:
    first, again = scene(1, 5, rgb=True, with_object=True), scene(1, 5, rgb=True, with_object=True)
    for name in Scene.__dataclass_fields__:
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    others = [scene(2, 5), scene(1, 6), scene(1, 5, subject=1)]
    assert all(not np.array_equal(first.pose, other.pose) for other in others)


def test_hands_lie_in_the_image_at_the_distance_asked_for(scenes: list[Scene]) -> None:
    for s in scenes:
        uv = project(s.verts_mm, K)
        assert uv.min() >= 2.9
        assert (uv.max(0) <= np.array(SIZE) - 1 - 2.9).all()
        middle = (s.verts_mm[:, 2].min() + s.verts_mm[:, 2].max()) / 2
        assert middle >= 280
        assert middle <= 480 + 1e-6
    assert np.ptp([s.transl_mm[2] for s in scenes]) > 100
    close = scene(0, 0, distance_mm=(60, 60))
    assert project(close.verts_mm, K).min() >= 2.9, "a hand that does not fit is moved away"


def test_pose_shape_and_translation_give_the_mesh(scenes: list[Scene]) -> None:
    for side, model in (("right", load_mano("standin")), ("left", mirror_model(load_mano("standin")))):
        layer = ManoLayer(model, n_pca=None, flat_hand_mean=True, tips=TIPS, dtype=torch.float64)
        s = scene(3, 7, side=side)
        out = layer(*(torch.from_numpy(v)[None] for v in (s.pose, s.betas, s.transl_mm)))
        assert np.abs(out.verts[0].numpy() - s.verts_mm).max() < 1e-9
        assert np.abs(out.joints[0].numpy() - s.joints_mm).max() < 1e-9
        assert s.side == side


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_lid_closes_the_hand(side: Any) -> None:
    faces = closed_faces(side)
    edges = {(a, b) for f in faces.tolist() for a, b in zip(f, f[1:] + f[:1], strict=True)}
    assert len(edges) == 3 * len(faces) == 3 * 1552
    assert all((b, a) in edges for a, b in edges)
    a, b, c = scene(3, 7, side=side).verts_mm[faces].transpose(1, 0, 2)
    assert (a * np.cross(b, c)).sum() > 0, "outwards"


def test_left_is_the_mirror_image_of_right() -> None:
    right, left = scene(3, 8), scene(3, 8, side="left")
    shape_right = right.verts_mm - right.verts_mm.mean(0)
    shape_left = left.verts_mm - left.verts_mm.mean(0)
    assert np.abs(shape_left - shape_right * [-1, 1, 1]).max() < 1e-6


def test_depth_is_the_surface_and_joints_are_just_behind_it(scenes: list[Scene]) -> None:
    """A visible fingertip is on the surface; a visible chain joint less than a finger's or palm's thickness behind it.

    A mirrored or turned picture would put the joints beside the hand or before it.
    """
    behind, on_hand = [], []
    for s in scenes:
        uv = project(s.joints_mm, K).round().astype(int)
        depth = s.depth_mm[uv[:, 1], uv[:, 0]]
        on_hand.append(depth > 0)
        behind.append(np.where(depth > 0, s.joints_mm[:, 2] - depth, np.nan))
    hit = np.mean(on_hand, axis=0)
    print(f"joints on the hand: chain {hit[:16].mean():.3f}, tips {hit[16:].mean():.3f}")
    assert hit[:16].min() > 0.97
    assert hit[16:].mean() > 0.6  # a tip on the outline projects beside the last pixel half of the time
    chain = np.concatenate([b[:16] for b in behind])
    assert np.nanmin(chain) > 0
    assert np.nanmedian(chain) < 20
    for s in scenes:  # a tip on the outline: the pixel beside it may see what is behind, its neighbours see the tip
        for (u, v), z in zip(project(s.joints_mm[16:], K).round().astype(int), s.joints_mm[16:, 2], strict=True):
            window = s.depth_mm[v - 1 : v + 2, u - 1 : u + 2]
            assert z - window[window > 0].min() > -6
    # Fingers that are not hidden: the depth before a middle joint is less than a finger's thickness.
    gaps = []
    for i in range(12):
        s = scene(9, i, gesture="5")
        uv = project(s.joints_mm, K).round().astype(int)
        gap = s.joints_mm[:, 2] - s.depth_mm[uv[:, 1], uv[:, 0]]
        gaps += gap[[2, 3, 5, 6, 8, 9, 11, 12]].tolist()
    print(f"finger joints behind the surface: {min(gaps):.1f} mm at least, {np.percentile(gaps, 40):.1f} mm mostly")
    assert min(gaps) > 2
    assert np.percentile(gaps, 40) < 12  # the rest are hidden by another finger or seen along the finger


def test_hands_mostly_show_the_palm_with_fingers_up() -> None:
    facing, up, thumb_right = [], [], []
    for i in range(60):
        j = dict(zip(SKELETONS["mano"].joints, scene(4, i).joints_mm, strict=True))
        along = j["middle_mcp"] - j["wrist"]
        across = j["index_mcp"] - j["pinky_mcp"]
        normal = np.cross(across, along)  # of a right hand: out of its palm
        facing.append(normal[2] / np.linalg.norm(normal))
        up.append(along[1] < 0)
        thumb_right.append(across[0] > 0)
    assert np.mean(np.array(facing) < 0) > 0.85
    assert np.mean(up) > 0.85
    assert np.mean(thumb_right) > 0.75


def test_the_normal_of_the_palm_points_where_fingers_bend() -> None:
    j = dict(zip(SKELETONS["mano"].joints, scene(5, 0, gesture="T").joints_mm, strict=True))
    normal = np.cross(j["index_mcp"] - j["pinky_mcp"], j["middle_mcp"] - j["wrist"])
    assert (j["middle_tip"] - j["middle_mcp"]) @ normal > 0


@pytest.mark.parametrize("gesture", GESTURES)
def test_gestures_stretch_the_fingers_they_name(gesture: str) -> None:
    """Bent by more than half: the tip is nearer to the wrist than a straight finger's."""
    reach = []
    for i in range(12):
        j = dict(zip(SKELETONS["mano"].joints, scene(6, i, gesture=gesture).joints_mm, strict=True))
        reach.append(
            [
                np.linalg.norm(j[f"{f}_tip"] - j["wrist"]) / np.linalg.norm(j[f"{f}_mcp"] - j["wrist"])
                for f in ("index", "middle", "ring", "pinky")
            ]
        )
    ratio = np.median(reach, axis=0)
    for bend, r in zip(GESTURES[gesture][1:], ratio, strict=True):
        if bend >= 0.9:
            assert r < 1.3
        elif bend <= 0.1:
            assert r > 1.45


def test_joint_limits_hold() -> None:
    rng = np.random.default_rng(0)
    angles = np.array(
        [np.linalg.norm(sample_articulation(rng, g), axis=1) for g in GESTURES for _ in range(20)]
    )  # (N, 15)
    assert np.rad2deg(angles[:, [1, 4, 7, 10]]).max() <= 105 + 1e-6
    assert np.rad2deg(angles[:, [2, 5, 8, 11]]).max() <= 75 + 1e-6
    assert np.rad2deg(angles[:, [0, 3, 6, 9]]).max() < 95
    assert np.rad2deg(angles[:, 12:]).max() <= 76


def test_subjects_differ_in_size() -> None:
    layer = ManoLayer(load_mano("standin"), n_pca=None, flat_hand_mean=True)
    betas = torch.tensor(np.array([subject_betas(s) for s in range(9)]), dtype=torch.float32)
    joints = layer(torch.zeros(9, 48), betas).joints
    lengths = (joints[:, 18] - joints[:, 0]).norm(dim=1)
    print(f"hand lengths {lengths.min():.0f} to {lengths.max():.0f} mm")
    assert lengths.max() - lengths.min() > 15
    assert lengths.min() > 150
    assert lengths.max() < 225


def test_object_hides_and_is_hidden() -> None:
    hidden = 0
    for i in range(8):
        s, alone = scene(7, i, with_object=True, rgb=True), scene(7, i)
        assert s.object_verts_mm is not None
        assert s.object_faces is not None
        assert np.array_equal(s.verts_mm, alone.verts_mm)
        assert not (s.mask & s.object_mask).any()
        assert s.object_mask.any()
        assert ((s.depth_mm > 0) == (s.mask | s.object_mask)).all()
        both = alone.mask & s.object_mask
        assert (s.depth_mm[both] <= alone.depth_mm[both]).all()
        hidden += int(both.sum())
        nearest = np.linalg.norm(s.verts_mm[:, None] - s.object_verts_mm, axis=2).min()
        assert nearest < 80
    assert hidden > 500


def test_colour_picture_shows_the_hand() -> None:
    s = scene(8, 1, rgb=True)
    assert s.rgb is not None
    assert s.rgb.shape == (240, 320, 3)
    assert s.rgb.dtype == np.uint8
    red, blue = s.rgb[s.mask][:, 0].astype(int), s.rgb[s.mask][:, 2].astype(int)
    assert (red >= blue).mean() > 0.95
    assert s.rgb[~s.mask].std() > 10
    assert scene(8, 1).rgb is None


def test_to_skeleton_gives_every_order() -> None:
    joints = scene(1, 2, gesture="5").joints_mm
    named = dict(zip(SKELETONS["mano"].joints, joints, strict=True))
    for order in ("mano", "thumb_first", "wild", "msra", "hands2017"):
        assert np.array_equal(to_skeleton(joints, order), reorder(joints, "mano", order))
    for order in ("stb", "icvl", "nyu14", "nyu36"):
        placed = to_skeleton(np.stack((joints, joints + 1)), order)
        assert placed.shape == (2, len(SKELETONS[order]), 3)
        assert np.allclose(placed[1] - placed[0], 1)
        by_name = dict(zip(SKELETONS[order].joints, placed[0], strict=True))
        palm = np.mean([named[n] for n in ("wrist", "index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp")], axis=0)
        inside = 0.32 if order.startswith("nyu") else 0.0  # NYU's outermost points lie inside the fingertips
        assert np.linalg.norm(by_name["palm"] - palm) < (8 if inside else 1e-6)
        for finger in ("thumb", "index", "middle", "ring", "pinky"):
            last = named[f"{finger}_dip"] - named[f"{finger}_tip"]
            assert np.allclose(by_name[f"{finger}_tip"], named[f"{finger}_tip"] + inside * last)
        # Every joint lies in the hand: near the line between two of the 21.
        assert np.linalg.norm(placed[0][:, None] - joints, axis=2).min(1).max() < 60
    chains = {
        "icvl": ("index_root", "index_mid", "index_tip"),
        "nyu36": ("index_knu1_b", "index_knu1_a", "index_mid", "index_knu2_a", "index_knu3_b", "index_tip"),
    }
    for order, chain in chains.items():
        by_name = dict(zip(SKELETONS[order].joints, to_skeleton(joints, order), strict=True))
        reach = [np.linalg.norm(by_name[n] - named["index_mcp"]) for n in chain]
        assert reach == sorted(reach), order
    nyu = to_skeleton(joints, "nyu36")
    assert np.array_equal(reorder(nyu, "nyu36", "nyu14"), to_skeleton(joints, "nyu14"))
    sides = dict(zip(SKELETONS["nyu36"].joints, nyu, strict=True))
    assert np.linalg.norm(sides["wrist_side_2"] - named["thumb_mcp"]) < np.linalg.norm(
        sides["wrist_side_1"] - named["thumb_mcp"]
    )
    moved = Rotation.from_euler("xyz", [0.4, -1.0, 2.0])  # labels move with the hand
    assert np.allclose(to_skeleton(moved.apply(joints), "nyu36"), moved.apply(nyu))
    for bad, message in ((joints[:20], "expected joints"), (joints[0], "expected joints")):
        with pytest.raises(DataError, match=message):
            to_skeleton(bad, "msra")
    with pytest.raises(DataError, match="no joints in the order 'itop'"):
        to_skeleton(joints, "itop")


def test_depth_noise_grows_and_drops_edges() -> None:
    flat = np.full((120, 160), 400, np.float32)
    flat[:, 80:] = 1200
    noisy = depth_noise(flat, np.random.default_rng(0))
    assert noisy.dtype == np.float32
    near, far = noisy[:, :78] - 400, noisy[:, 82:] - 1200
    assert 0.5 < near.std() < 2
    assert far.std() > 3 * near.std()
    assert np.array_equal(noisy, noisy.round())
    lost = noisy == 0
    assert not lost[:, :79].any()
    assert not lost[:, 81:].any()
    assert 0.1 < lost[:, 79:81].mean() < 0.45
    exact = depth_noise(flat, np.random.default_rng(0), step_mm=0, edge_dropout=0)
    assert not np.array_equal(exact, exact.round())
    assert (exact > 0).all()
    assert np.array_equal(noisy, depth_noise(flat, np.random.default_rng(0)))


@pytest.mark.parametrize(("background", "nearest"), [("plane", 750), ("body", 400)])
def test_background_fills_what_is_empty(background: Any, nearest: float) -> None:
    s = scene(2, 0)
    filled = depth_noise(s.depth_mm, np.random.default_rng(1), background=background, edge_dropout=0)
    assert (filled > 0).all()
    assert np.abs(filled[s.mask] - s.depth_mm[s.mask]).max() < 12
    assert filled[~s.mask].min() > nearest
    bare = depth_noise(s.depth_mm, np.random.default_rng(1))
    assert (bare[~s.mask] == 0).all()
    if background == "body":
        assert np.ptp(filled[~s.mask]) > 150, "a body before a wall"


def test_refuses_what_cannot_be() -> None:
    for options, message in (
        ({"side": "both"}, 'side must be "right" or "left"'),
        ({"gesture": "wave"}, "gesture must be one of"),
        ({"K": np.eye(2)}, "K must be a"),
        ({"image_size": (10, 240)}, "at least 32 x 32"),
    ):
        with pytest.raises(DataError, match=message):
            sample_scene(0, 0, **({"K": K, "image_size": SIZE} | options))
