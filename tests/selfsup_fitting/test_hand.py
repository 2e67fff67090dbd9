"""The stand-in hand's properties (spec 1.7), the constants, the file, and the import of the author's pickle."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfsup_fitting import hand_import, spheres
from selfsup_fitting.hand import Hand, check_hand, load_hand, save_hand
from selfsup_fitting.hand_import import read_pickle
from selfsup_fitting.kernels import ops
from selfsup_fitting.kinematics import forward_kinematics, pose_spheres, skin
from selfsup_fitting.losses import collision
from selfsup_fitting.render import project, sphere_depth
from selfsup_fitting.sampler import sample_poses
from selfsup_fitting.spheres import BONES, GROUPS, PALM, PARENTS, SPHERE_BONES
from selfsup_fitting.standin_hand import standin_hand
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano

GOLDEN = Path(__file__).parents[1] / "golden/selfsup_fitting"
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"side": "left"},
    {"lengths": 1.12, "thickness": 0.9},
    {"lengths": (0.95, 1.1, 1.0, 1.1, 0.9, 1.1), "thickness": 1.1},
    {"lengths": 0.88, "thickness": 0.95, "side": "left"},
)


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=lambda i: str(SHAPES[i]))
def any_hand(request: pytest.FixtureRequest) -> Hand:
    return standin_hand(**SHAPES[request.param])


def volume_mm3(verts: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = verts[faces].swapaxes(0, 1)
    return float((a * np.cross(b, c)).sum() / 6)


# --- spec 1.7, point by point ---


def test_1_bones(any_hand: Hand) -> None:
    assert any_hand.bone_names == BONES
    assert any_hand.parents == PARENTS == (-1, 0, 0, 2, 3, 0, 5, 6, 0, 8, 9, 0, 11, 12, 0, 14, 15)
    assert BONES[2] == "finger4joint1"
    assert BONES[16] == "finger5joint3"
    turns = any_hand.offsets[:, :3, :3]
    np.testing.assert_allclose(turns @ turns.swapaxes(1, 2), np.tile(np.eye(3), (17, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1)


def test_2_axes(any_hand: Hand) -> None:
    """Local x is across the finger; the signs are in test_kinematics."""
    origins = np.linalg.inv(any_hand.offsets)[:, :3, 3]
    for bone in range(2, 17):
        if (bone - 2) % 3 < 2:
            along = origins[bone + 1] - origins[bone]
            assert abs(any_hand.offsets[bone, 0, :3] @ along) < 0.05 * np.linalg.norm(along)


def test_3_spheres(any_hand: Hand) -> None:
    assert tuple(any_hand.sphere_bone) == SPHERE_BONES
    assert all(SPHERE_BONES[a] == SPHERE_BONES[b] for a, b in spheres.BONE_PAIRS)
    origins = np.linalg.inv(any_hand.offsets)[:, :3, 3]
    # Where NYU annotates: second joints, the thumb's two, the wrist's sides, the palm; tips near the end of the skin.
    for sphere, bone in ((14, 3), (20, 6), (26, 9), (32, 12), (38, 15), (40, 16)):
        assert np.linalg.norm(any_hand.sphere_mm[sphere] - origins[bone]) < 4
    for sphere in (15, 21, 27, 33, 39):
        skin_mm = any_hand.verts_mm[any_hand.weights[:, SPHERE_BONES[sphere]] > 0.5]
        outwards = any_hand.sphere_mm[sphere] - origins[SPHERE_BONES[sphere]]
        beyond = (skin_mm - any_hand.sphere_mm[sphere]) @ (outwards / np.linalg.norm(outwards))
        assert 4 < beyond.max() < 14
    away = 1 if any_hand.sphere_mm[39, 1] < 0 else -1  # of the thumb
    wrist = origins[0]
    assert 8 < away * (any_hand.sphere_mm[0] - wrist)[1] < 25
    assert -25 < away * (any_hand.sphere_mm[1] - wrist)[1] < -8
    assert -95 < (any_hand.sphere_mm[2] - wrist)[0] < -50


def agreement(hand: Hand, poses: torch.Tensor) -> tuple[float, float, float]:
    """Mean and median |sphere depth - mesh depth| where both are, mm, and the silhouettes' overlap, at 64 x 64."""
    wrist = np.linalg.inv(hand.offsets[0])[0, 3]
    near = (hand.verts_mm[hand.faces][..., 0] < wrist + 20).all(1)
    faces = torch.from_numpy(hand.faces[near][:, [1, 0, 2]].copy())
    transforms = forward_kinematics(poses, hand)
    # Straight at 64 x 64, so that both pictures have their samples at the same places.
    mesh = ops.rasterize(project(skin(transforms, hand), 64), faces, 64, 64).depth
    ball = sphere_depth(pose_spheres(transforms, hand), torch.from_numpy(hand.sphere_radius_mm).float())
    in_mesh, in_ball = mesh < 900, ball < 99.9
    difference = (mesh - ball)[in_mesh & in_ball].abs()
    overlap = (in_mesh & in_ball).sum() / (in_mesh | in_ball).sum()
    return float(difference.mean()), float(difference.median()), float(overlap)


def test_4_spheres_cover_the_mesh(any_hand: Hand) -> None:
    poses = sample_poses(100, torch.Generator().manual_seed(0))
    for name, chosen, bound in (("zero pose", torch.zeros(1, 26), 8.0), ("100 poses", poses, 10.0)):
        mean, median, overlap = agreement(any_hand, chosen)
        print(f"{name}: spheres and mesh differ by mean {mean:.2f}, median {median:.2f} mm; overlap {overlap:.3f}")
        assert mean <= bound
        assert overlap >= 0.80


def test_5_collisions(any_hand: Hand) -> None:
    poses = torch.cat((torch.zeros(1, 26), sample_poses(2000, torch.Generator().manual_seed(0))))
    centers = pose_spheres(forward_kinematics(poses, any_hand), any_hand)
    rest = torch.cdist(centers[0], centers[0])
    other = torch.tensor(GROUPS)[:, None] != torch.tensor(GROUPS)
    print(f"nearest spheres of different groups at rest: {float(rest[other].min()):.1f} mm apart")
    assert rest[other].min() > 12
    assert collision(centers[:1, None]) == 0
    free = float((torch.cdist(centers[1:], centers[1:])[:, other] >= 6).all(1).float().mean())
    mean = float(collision(centers[1:, None], reduction="reference")) / 2000
    print(f"{100 * free:.1f} % of the sampled poses collide nowhere, mean {mean:.2f}")
    assert 0.85 < free < 1
    assert 0 < mean < 3


def test_6_mesh(any_hand: Hand) -> None:
    volume = volume_mm3(any_hand.verts_mm, any_hand.faces)
    print(f"volume {volume / 1e6:.3f} litre")
    assert -1e6 < volume < -0.3e6
    edges: dict[tuple[int, int], int] = {}
    for a, b, c in any_hand.faces.tolist():
        for edge in ((a, b), (b, c), (c, a)):
            edges[edge] = edges.get(edge, 0) + 1
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges), "closed"
    np.testing.assert_allclose(any_hand.weights.sum(1), 1)
    wrist = np.linalg.inv(any_hand.offsets[0])[0, 3]
    forearm = any_hand.verts_mm[:, 0] > wrist + 25
    assert forearm.sum() > 50
    assert (any_hand.weights[forearm, :2].sum(1) == 1).all()
    assert any_hand.verts_mm[:, 0].max() > wrist + 80


def test_6_size() -> None:
    """A straightened average hand: wrist crease to middle fingertip, and across the knuckles."""
    hand = load_hand("standin")
    pose = torch.zeros(1, 26, dtype=torch.float64)
    pose[0, 6:22] = torch.tensor([0, -0.2, -0.4, -0.34] * 4)
    verts = skin(forward_kinematics(pose, hand), hand)[0].numpy()
    wrist = -np.linalg.inv(hand.offsets[0])[0, 3]
    length = verts[:, 0].max() - wrist + 8  # the crease is 8 mm behind the joint
    middle = verts[(verts[:, 0] > wrist + 55) & (verts[:, 0] < wrist + 85)]
    palm = np.ptp(middle[hand.weights[(verts[:, 0] > wrist + 55) & (verts[:, 0] < wrist + 85), :2].sum(1) > 0.5, 1])
    print(f"hand {length:.0f} mm long, palm {palm:.0f} mm wide")
    assert 185 < length < 203
    assert 70 < palm < 92


def test_7_origin() -> None:
    hand = load_hand("standin")
    to_palm, to_mean = np.linalg.norm(hand.sphere_mm[2]), np.linalg.norm(hand.verts_mm.mean(0))
    print(f"origin {to_palm:.1f} mm from sphere 2, {to_mean:.1f} mm from the vertices' mean")
    assert 25 < to_palm < 35
    assert to_mean < 20


def test_8_shared_vertices(any_hand: Hand) -> None:
    assert len(np.unique(any_hand.verts_mm, axis=0)) == len(any_hand.verts_mm)
    assert set(any_hand.faces.ravel()) == set(range(len(any_hand.verts_mm)))
    used = (any_hand.weights > 1e-9).sum(1)
    assert used.min() >= 1
    assert used.max() <= 4


# --- where it comes from, and its proportions ---


def test_same_geometry_as_the_mano_standin() -> None:
    """With the rest bend undone, the skin is the MANO-format stand-in's, vertex by vertex, but for blended joints."""
    hand, mano = load_hand("standin"), load_mano("standin")
    pose = torch.zeros(1, 26, dtype=torch.float64)
    pose[0, 6:22] = torch.tensor([0, -0.2, -0.4, -0.34] * 4)
    pose[0, 24:26] = 0.15
    verts = skin(forward_kinematics(pose, hand), hand)[0].numpy()[:778]
    expected = 1000 * mano.v_template @ np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]).T
    expected += (verts - expected)[mano.weights[:, 0] == 1].mean(0)
    difference = np.linalg.norm(verts - expected, axis=1)
    print(f"skin against the MANO-format stand-in: mean {difference.mean():.3f}, max diff {difference.max():.3g} mm")
    assert np.median(difference) < 0.05
    assert difference.max() < 4


def test_proportions() -> None:
    base, longer = load_hand("standin"), standin_hand(lengths=(1, 1.2, 1, 1, 1, 1))
    origins = [np.linalg.inv(hand.offsets)[:, :3, 3] for hand in (base, longer)]
    same = [bone for bone in range(17) if bone not in (3, 4)]
    np.testing.assert_allclose(origins[1][same], origins[0][same])
    bones = [np.linalg.norm(o[3] - o[2]) for o in origins]
    assert bones[1] == pytest.approx(1.2 * bones[0])
    whole = standin_hand(lengths=1.2, thickness=1.2)
    lengths = whole.bone_lengths_mm() / base.bone_lengths_mm()
    np.testing.assert_allclose(lengths, 1.2)
    assert volume_mm3(whole.verts_mm, whole.faces) / volume_mm3(base.verts_mm, base.faces) == pytest.approx(1.2**3)
    thick = standin_hand(thickness=1.2)
    np.testing.assert_allclose(thick.sphere_radius_mm[11:], 1.2 * base.sphere_radius_mm[11:])
    np.testing.assert_allclose(whole.sphere_radius_mm, 1.2 * base.sphere_radius_mm)
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(np.linalg.inv(thick.offsets)[2:5, :3, 3], axis=0), axis=1),
        np.linalg.norm(np.diff(np.linalg.inv(base.offsets)[2:5, :3, 3], axis=0), axis=1),
    )


def test_left_is_the_mirror_image_in_every_pose() -> None:
    right, left = (standin_hand(side=side) for side in ("right", "left"))
    mirror = torch.tensor([1.0, -1, 1], dtype=torch.float64)
    pose = sample_poses(20, torch.Generator().manual_seed(2)).double()
    other = pose * torch.tensor([-1.0, 1, -1, 1, -1, 1] + [1] * 20, dtype=torch.float64)
    ours, theirs = (
        (pose_spheres(forward_kinematics(p, h), h), skin(forward_kinematics(p, h), h))
        for p, h in ((pose, right), (other, left))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a * mirror, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": 0.4}, "factors in 0.5 to 2; got 0.4 and 1"),
        ({"lengths": (1, 1)}, r"one or six lengths .*; got \(1, 1\)"),
        ({"lengths": float("nan")}, "got nan"),
        ({"thickness": 3.0}, "got 1.0 and 3.0"),
        ({"side": "both"}, 'side must be "right" or "left", got \'both\''),
    ],
)
def test_impossible_proportions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        standin_hand(**options)


# --- the constants ---


def test_reference_figures_agree_with_one_another() -> None:
    """Lengths of the table are 0.9 x the distances of its offsets; groups, NYU names and evaluation joints fit."""
    offsets = np.array([row[1:4] for row in spheres.REFERENCE_SPHERES])
    pairs = np.array(spheres.BONE_PAIRS)
    lengths = 0.9 * np.linalg.norm(offsets[pairs[:, 0]] - offsets[pairs[:, 1]], axis=1)
    difference = np.abs(lengths - spheres.REFERENCE_LENGTHS_MM).max()
    print(f"reference lengths max diff {difference:.3g} mm")
    assert difference < 0.02  # offsets are rounded to 0.01 mm
    assert len(pairs) == 35
    assert len(SPHERE_BONES) == 41
    assert [GROUPS.count(g) for g in range(6)] == [11, 6, 6, 6, 6, 6]
    assert all((SPHERE_BONES[s] == 0) == (s in PALM) for s in range(41))
    assert sorted(n for n in spheres.SPHERE_TO_NYU if n >= 0) == list(range(36))
    assert spheres.EVAL_SPHERES == (33, 32, 27, 26, 21, 20, 15, 14, 39, 40, 38, 0, 1, 2)
    assert len(spheres.EVAL_SPHERES_12) == 12
    names = spheres.NYU_JOINTS
    assert [names[i] for i in (0, 3, 22, 24, 29, 30, 32)] == [
        "F1_KNU3_A",
        "F1_KNU2_B",
        "F4_KNU1_A",
        "TH_KNU3_A",
        "TH_KNU1_B",
        "PALM_1",
        "PALM_3",
    ]


# --- files ---


def test_file_round_trip(tmp_path: Path, any_hand: Hand) -> None:
    save_hand(any_hand, tmp_path / "hand.npz")
    loaded = load_hand(tmp_path / "hand.npz")
    for name in ("offsets", "verts_mm", "faces", "weights", "sphere_bone", "sphere_mm", "sphere_radius_mm"):
        ours, theirs = getattr(any_hand, name), getattr(loaded, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.name == any_hand.name


def test_fixture_file() -> None:
    toy = load_hand(GOLDEN / "hand.npz")
    assert (len(toy.verts_mm), len(toy.faces)) == (714, 1360)
    assert volume_mm3(toy.verts_mm, toy.faces) < 0


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weights", None, "this is no hand: missing weights"),
        ("version", lambda v: np.array(2), "has format version 2, this program reads 1"),
        ("bone_names", lambda v: v[::-1], "has bones finger5joint3"),
        ("vertices", lambda v: v.astype(str), "vertices must hold numbers"),
        ("faces", lambda v: v.astype(float), "faces must hold numbers"),
        ("vertices", lambda v: v[:, :2], r"vertices has shape \(859, 2\), expected \(859, 3\)"),
        ("vertices", lambda v: v * np.nan, "vertices holds values that are not finite"),
        ("faces", lambda v: v + 1, "faces name vertices 1 to 859, there are 859"),
        ("faces", lambda v: v[:0], "it has no mesh"),
        ("weights", lambda v: 2 * v, "sum to 1, off by 1"),
        ("bone_offset", lambda v: -v, "bone_offset must hold"),
        ("sphere_bone", lambda v: v[::-1], "not on the bones of the 41-sphere hand"),
        ("sphere_radius", lambda v: 0 * v, "sphere_radius must be positive"),
    ],
)
def test_bad_files(tmp_path: Path, key: str, change: Any, message: str) -> None:
    path = tmp_path / "hand.npz"
    save_hand(load_hand("standin"), path)
    arrays = dict(np.load(path))
    old = arrays.pop(key)
    if change is not None:
        arrays[key] = change(old)
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_hand(path)
    assert "hand.npz" in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        load_hand(tmp_path / "none.npz")
    with pytest.raises(DataError, match=r'expected "standin", an \.npz or the author\'s \.pkl'):
        load_hand(tmp_path / "hand.obj")
    hand = load_hand("standin")
    with pytest.raises(DataError, match="sphere_radius must be positive"):
        check_hand(replace(hand, sphere_radius_mm=-hand.sphere_radius_mm))


# --- the author's pickle ---


def author_dict(hand: Hand) -> dict[str, Any]:
    """The hand as the author's file has it: a soup of triangles, sparse weights, spheres with the bones."""
    soup = hand.faces.ravel()
    bones = []
    for index, name in enumerate(BONES):
        vertex = np.flatnonzero(hand.weights[soup, index])
        bone = {
            "name": name,
            "offset_matrix": hand.offsets[index],
            "weight_vertexid": vertex,
            "weight_coeff": hand.weights[soup[vertex], index],
        }
        own = np.flatnonzero(hand.sphere_bone == index)
        if len(own):
            bone["keypoint"] = [(hand.sphere_mm[s], float(hand.sphere_radius_mm[s])) for s in own]
        bones.append(bone)
    vertices = np.pad(hand.verts_mm[soup], ((0, 0), (0, 1)), constant_values=1)
    faces = np.arange(len(soup), dtype=np.int32).reshape(-1, 3)
    return {"vertices": vertices, "faces": faces, "bones": bones}


def write_pickle(path: Path, data: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4])
def test_import_of_the_authors_pickle(tmp_path: Path, protocol: int) -> None:
    """The soup of 3 vertices a triangle becomes the distinct ones again; poses and pictures are the same."""
    hand = load_hand("standin")
    path = write_pickle(tmp_path / "preprocessed_hand.pkl", author_dict(hand), protocol)
    imported = load_hand(path)
    assert imported.name == "preprocessed_hand.pkl"
    assert len(imported.verts_mm) == len(hand.verts_mm)
    np.testing.assert_allclose(imported.verts_mm[imported.faces], hand.verts_mm[hand.faces])
    np.testing.assert_allclose(imported.weights[imported.faces], hand.weights[hand.faces])
    np.testing.assert_array_equal(imported.sphere_mm, hand.sphere_mm)
    np.testing.assert_array_equal(imported.sphere_radius_mm, hand.sphere_radius_mm)
    pose = sample_poses(3, torch.Generator().manual_seed(0))
    ours, theirs = (skin(forward_kinematics(pose, h), h)[:, h.faces] for h in (hand, imported))
    torch.testing.assert_close(ours, theirs)


class Foreign:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_a_foreign_global_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {**author_dict(load_hand("standin")), "extra": Foreign()}
    with pytest.raises(DataError, match=r"this is no hand model: .*print") as caught:
        read_pickle(write_pickle(tmp_path / "hand.pkl", data))
    assert "hand.pkl" in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def change(data: dict[str, Any], where: str) -> dict[str, Any]:
    bones = [dict(bone) for bone in data["bones"]]
    if where == "raw":
        return {**data, "bones": bones + bones[:4]}
    if where == "order":
        return {**data, "bones": bones[::-1]}
    if where == "spheres":
        bones[0]["keypoint"] = bones[0]["keypoint"][:-1]
    if where == "pair":
        bones[0]["keypoint"] = [(1, 2, 3)]
    if where == "radius":
        bones[0]["keypoint"] = [(np.zeros(3), "thick")]
    if where == "no list":
        bones[0]["keypoint"] = 3
    if where == "ids":
        bones[2]["weight_vertexid"] = bones[2]["weight_vertexid"] + 10**6
    if where == "lengths":
        bones[2]["weight_coeff"] = bones[2]["weight_coeff"][:-1]
    if where == "offset":
        bones[3]["offset_matrix"] = np.eye(3)
    if where == "faces":
        return {**data, "faces": data["faces"] + 1}
    if where == "vertices":
        return {**data, "vertices": data["vertices"][:, :3]}
    if where == "keys":
        return {"vertices": data["vertices"]}
    return {**data, "bones": bones}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("raw", "a raw export with 21 bones"),
        ("order", "expected the bones metacarpals, carpals"),
        ("spheres", "expected 41 spheres, got 40"),
        ("pair", r"a keypoint must be \(position, radius\)"),
        ("radius", "the radius of a keypoint must be numbers"),
        ("no list", "keypoint of metacarpals must be a list"),
        ("ids", "weight_vertexid of finger4joint1 names vertices that do not exist"),
        ("lengths", "weight_coeff of finger4joint1 must be numbers of shape"),
        ("offset", r"offset_matrix of finger4joint2 must be numbers of shape \(4, 4\), got float64 \(3, 3\)"),
        ("faces", "faces name vertices that do not exist"),
        ("vertices", r"vertices must be numbers of shape \(None, 4\)"),
        ("keys", "expected vertices, faces and bones"),
    ],
)
def test_other_pickles(tmp_path: Path, where: str, message: str) -> None:
    path = write_pickle(tmp_path / "hand.pkl", change(author_dict(load_hand("standin")), where))
    with pytest.raises(DataError, match=message):
        load_hand(path)


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pickle(tmp_path / "preprocessed_hand.pkl", author_dict(load_hand("standin")))
    target = tmp_path / "hand.npz"
    assert hand_import.main(["--input", str(source), "--output", str(target)]) == 0
    assert "859 vertices, 1714 triangles" in capsys.readouterr().out
    assert load_hand(target).name == "preprocessed_hand.pkl"
    words = [
        "--lengths",
        "1.1",
        "1",
        "1",
        "1",
        "1",
        "1",
        "--thickness",
        "0.9",
        "--side",
        "left",
        "--output",
        str(target),
    ]
    assert hand_import.main(words) == 0
    written, made = load_hand(target), standin_hand(lengths=(1.1, 1, 1, 1, 1, 1), thickness=0.9, side="left")
    np.testing.assert_array_equal(written.verts_mm, made.verts_mm)
    with pytest.raises(DataError, match=r"are for the stand-in hand -- leave --input out"):
        hand_import.main(["--input", str(source), "--side", "left"])
    with pytest.raises(DataError, match=r"must end in \.npz"):
        hand_import.main(["--output", str(tmp_path / "hand.pkl")])
    with pytest.raises(MissingFileError, match="expected a hand model, found no such file"):
        hand_import.main(["--input", str(tmp_path / "none.pkl")])
