"""The committed stand-in hand: a proper mesh, in MANO's format, with its ids and joints where users expect them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shared.mano import STANDIN, TIPS, load_mano
from shared.safe_io import load_npz
from shared.standin.build_hand import (
    FINGERS,
    WRIST_LOOP,
    boundary_loop,
    build_hand,
    flexion_axes,
    joint_targets,
    main,
    skeleton,
    skin_distance,
    surface_nets,
)
from shared.standin.render import render_depth
from shared.standin.scene import standin_layer


@pytest.fixture(scope="module")
def hand() -> dict[str, np.ndarray]:
    return load_npz(STANDIN)


@pytest.fixture(scope="module")
def verts_mm(hand: dict[str, np.ndarray]) -> np.ndarray:
    return hand["v_template"] * 1000


def test_has_the_official_keys_shapes_and_types(hand: dict[str, np.ndarray]) -> None:
    shapes = {
        "v_template": (778, 3),
        "f": (1538, 3),
        "shapedirs": (778, 3, 10),
        "posedirs": (778, 3, 135),
        "J_regressor": (16, 778),
        "J": (16, 3),
        "weights": (778, 16),
        "kintree_table": (2, 16),
        "hands_components": (45, 45),
        "hands_mean": (45,),
        "hands_coeffs": (1554, 45),
        "bs_style": (),
        "bs_type": (),
    }
    assert {key: value.shape for key, value in hand.items()} == shapes
    types = {key: value.dtype for key, value in hand.items() if value.ndim and key not in ("f", "kintree_table")}
    assert set(types.values()) == {np.dtype(np.float64)}
    assert (hand["f"].dtype, hand["kintree_table"].dtype) == (np.uint32, np.int64)
    assert STANDIN.stat().st_size < 400_000


def test_is_a_disk_with_the_published_opening(hand: dict[str, np.ndarray]) -> None:
    faces = hand["f"].astype(int)
    directed = [(a, b) for f in faces.tolist() for a, b in zip(f, f[1:] + f[:1], strict=True)]
    assert len(set(directed)) == len(directed), "a directed edge is used twice: not oriented, or not a manifold"
    edges = {tuple(sorted(e)) for e in directed}
    assert len(edges) == 2315
    assert 778 - len(edges) + 1538 == 1
    assert len(np.unique(faces)) == 778
    loop = boundary_loop(faces)
    assert len(loop) == 16
    ring = list(WRIST_LOOP)
    neighbours = {frozenset(p) for p in zip(ring, ring[1:] + ring[:1], strict=True)}
    assert {frozenset(p) for p in zip(loop, loop[1:] + loop[:1], strict=True)} == neighbours


def test_triangles_are_well_shaped_and_face_outwards(hand: dict[str, np.ndarray], verts_mm: np.ndarray) -> None:
    a, b, c = verts_mm[hand["f"].astype(int)].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1) / 2
    print(f"triangle areas {area.min():.2f} to {area.max():.1f} mm^2")
    assert area.min() > 1
    unit = normal / (2 * area[:, None])
    middle = (a + b + c) / 3
    outwards = skin_distance(middle + unit) > skin_distance(middle - unit)
    assert outwards.mean() > 0.995  # in the creases between fingers the field turns within a triangle
    # The volume inside (the opening closed by a fan) is that of an adult hand.
    rim = verts_mm[boundary_loop(hand["f"].astype(int))][::-1]
    lid = sum(float(rim.mean(0) @ np.cross(p, q)) for p, q in zip(rim, np.roll(rim, -1, 0), strict=True))
    volume = (float((a * np.cross(b, c)).sum()) + lid) / 6 / 1000
    assert 250 < volume < 500, f"{volume:.0f} ml"


def test_has_the_size_and_pose_of_a_right_hand(verts_mm: np.ndarray, hand: dict[str, np.ndarray]) -> None:
    low, high = verts_mm.min(0), verts_mm.max(0)
    assert 150 < high[0] - low[0] < 200
    assert 100 < high[2] - low[2] < 150
    joints = hand["J"] * 1000
    middle_tip = verts_mm[444]
    assert 180 < np.linalg.norm(middle_tip - joints[0]) < 195
    assert joints[0, 0] > 80
    assert middle_tip[0] < -80
    assert verts_mm[745, 2] > verts_mm[672, 2] + 80, "thumb side is +z, little finger -z"
    assert verts_mm[22, 1] > verts_mm[95, 1] + 15, "22 is on the back (+y), 95 on the palm"


def test_tips_lie_at_the_ends_of_the_fingers(verts_mm: np.ndarray) -> None:
    ends = {name: points[3] for name, points in skeleton().items()}
    for name, ids in TIPS.items():
        for finger, vertex in zip(("thumb", "index", "middle", "ring", "little"), ids, strict=True):
            assert np.linalg.norm(verts_mm[vertex] - ends[finger]) < 10, (name, finger)
    assert np.linalg.norm(verts_mm[445] - ends["middle"]) < 10


def test_joints_are_inside_and_where_the_bones_meet(hand: dict[str, np.ndarray], verts_mm: np.ndarray) -> None:
    joints = hand["J_regressor"] @ verts_mm
    assert np.abs(joints - joint_targets()).max() < 0.1
    assert np.allclose(joints, hand["J"] * 1000)
    depth_inside = -skin_distance(joints)
    assert depth_inside.min() > 5
    # And inside the mesh itself: seen along two axes, surface before and behind every joint.
    faces = torch.tensor(hand["f"].astype(int))
    K = torch.tensor([[3000.0, 0, 0], [0, 3000.0, 0], [0, 0, 1]], dtype=torch.float64)
    for turn in (np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])):
        points, joint_points = verts_mm @ turn.T + [0, 0, 3000], joints @ turn.T + [0, 0, 3000]
        for joint in joint_points:
            u, v = (3000 * joint[:2] / joint[2]).round().astype(int).tolist()
            seen = render_depth(torch.tensor(points), faces, K, (1, 1), crop_ltrb=(u, v, u + 1, v + 1))
            assert 0 < float(seen.depth_mm[0, 0, 0]) < joint[2]


def test_weights_regressor_and_components(hand: dict[str, np.ndarray]) -> None:
    weights, regressor = hand["weights"], hand["J_regressor"]
    assert weights.min() >= 0
    assert np.allclose(weights.sum(1), 1)
    assert (weights > 0).sum(1).max() <= 4
    assert regressor.min() >= 0
    assert np.allclose(regressor.sum(1), 1)
    components = hand["hands_components"]
    assert np.allclose(components @ components.T, np.eye(45), atol=1e-12)
    assert np.abs(hand["posedirs"]).max() < 2e-3
    assert np.abs(hand["shapedirs"][:, :, 0]).max() > 5e-3
    # No finger is moved by another finger's middle or end bone.
    tips = dict(zip(("thumb", "index", "middle", "ring", "little"), TIPS["wild"], strict=True))
    for finger, vertex in tips.items():
        own = 3 * FINGERS.index(finger) + 3
        assert weights[vertex, own] > 0.95


@pytest.mark.parametrize("finger", FINGERS)
def test_bending_a_finger_brings_its_tip_to_the_palm_and_leaves_the_others(finger: str) -> None:
    flex, _ = flexion_axes()
    first = 3 * FINGERS.index(finger)
    pose = torch.zeros(1, 48, dtype=torch.float64)
    for k in range(3):
        pose[0, 3 + 3 * (first + k) : 6 + 3 * (first + k)] = torch.tensor(flex[first + k]) * (1.2 if k < 2 else 0.8)
    layer = standin_layer()
    rest, bent = layer(torch.zeros(1, 48, dtype=torch.float64)), layer(pose)
    palm = rest.joints[0, [0, 1, 4, 7, 10]].mean(0)
    names = [f"{f}_tip" for f in ("thumb", "index", "middle", "ring", "pinky")]
    for name, before, after in zip(names, rest.joints[0, 16:], bent.joints[0, 16:], strict=True):
        if name.startswith(finger if finger != "little" else "pinky"):
            nearer = float((before - palm).norm() - (after - palm).norm())
            assert nearer > (10 if finger == "thumb" else 40)
            assert after[1] < before[1], "towards the palm side"
        else:
            assert float((before - after).norm()) < 0.5


def test_bent_fingers_keep_their_thickness() -> None:
    """No edge of the mesh is stretched to more than three times its length or 15 mm by a fist: no webbing."""
    flex, _ = flexion_axes()
    pose = torch.zeros(1, 48, dtype=torch.float64)
    angles = np.deg2rad([75, 90, 55] * 4 + [20, 40, 50])[:, None]
    pose[0, 3:] = torch.tensor((flex * angles).ravel())
    layer = standin_layer()
    rest, fist = (layer(p).verts[0].numpy() for p in (torch.zeros_like(pose), pose))
    faces = layer.faces.numpy()
    edges = np.concatenate((faces[:, :2], faces[:, 1:], faces[:, [0, 2]]))
    before, after = (np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1) for v in (rest, fist))
    stretched = (after > 3 * before) & (after > 15)
    print(f"fist: an edge grows to at most {(after / before).max():.2f} times, to {after.max():.1f} mm")
    assert not stretched.any()


def test_surface_nets_on_a_ball_is_closed_and_round() -> None:
    verts, faces = surface_nets(lambda p: np.linalg.norm(p, axis=1) - 7.3, np.full(3, -10.0), (21, 21, 21), 1.0)
    edges = {(a, b) for f in faces.tolist() for a, b in zip(f, f[1:] + f[:1], strict=True)}
    assert len(edges) == 3 * len(faces)
    assert all((b, a) in edges for a, b in edges)
    a, b, c = verts[faces].transpose(1, 0, 2)
    assert (a * np.cross(b, c)).sum() / 6 == pytest.approx(4 / 3 * np.pi * 7.3**3, rel=0.03)
    assert np.abs(np.linalg.norm(verts, axis=1) - 7.3).max() < 0.3


def test_finger_lengths_are_those_of_an_adult(hand: dict[str, np.ndarray]) -> None:
    joints = hand["J"] * 1000
    for i, (name, length) in enumerate(zip(FINGERS, (67, 74, 54, 69, 77), strict=True)):
        bones = np.linalg.norm(np.diff(joints[3 * i + 1 : 3 * i + 4], axis=0), axis=1)
        assert bones.sum() == pytest.approx(length, abs=6), name


def test_model_loads_as_a_mano_model() -> None:
    model = load_mano("standin")
    assert model.source == "standin"
    assert model.hands_coeffs is not None
    assert model.hands_coeffs.std(0)[0] > 3 * model.hands_coeffs.std(0)[-1]


@pytest.mark.slow
def test_building_again_gives_the_committed_hand(tmp_path: Path, hand: dict[str, np.ndarray]) -> None:
    assert main(["--out", str(tmp_path / "hand.npz")]) == 0
    again = load_npz(tmp_path / "hand.npz")
    assert list(again) == list(hand)
    for key in ("f", "kintree_table", "hands_coeffs", "bs_style", "bs_type"):
        assert np.array_equal(again[key], hand[key]), key
    difference = max(float(np.abs(again[k] - hand[k]).max()) for k in hand if hand[k].dtype == np.float64)
    print(f"built again: max diff {difference:.3g}")
    assert difference < 1e-5  # other machines round differently
    assert build_hand().keys() == hand.keys()
