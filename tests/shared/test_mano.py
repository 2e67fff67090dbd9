"""The MANO file reader and layer, against the official chumpy model and manopth (golden) and by its own laws."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roma
import torch

from shared.errors import DataError, MissingFileError
from shared.mano import (
    JOINT_NAMES,
    ORDERS,
    TIPS,
    ManoLayer,
    ManoModel,
    load_mano,
    mirror_model,
    mirror_pose,
    project_to_rotmat,
    rot6d_to_rotmat,
    rotvec_to_rotmat,
    save_npz,
)
from shared.mano_import import main
from shared.safe_io import load_npz
from tests.golden.fill import uniform


@pytest.fixture(scope="module")
def pickle_path(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    path.write_bytes(gzip.decompress((golden / "mano" / "MANO_STANDIN_chumpy.pkl.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def model(pickle_path: Path) -> ManoModel:
    return load_mano(pickle_path)


@pytest.fixture(scope="module")
def hand() -> ManoModel:
    return load_mano("standin")


def layer_like_manopth(model: ManoModel, config: dict[str, Any]) -> ManoLayer:
    """The layer with manopth's conventions, from the configuration of a golden case."""
    return ManoLayer(
        model,
        n_pca=config.get("ncomps", 10) if config["use_pca"] else None,
        flat_hand_mean=config["flat_hand_mean"],
        tips=TIPS["manopth"] if config.get("side") != "left" else (745, 317, 445, 556, 673),
        joint_order="thumb_first",
        unit="mm",
        center_joint=config.get("center_idx"),
        root_rot_mode={"axisang": "axisang", "rot6d": "rot6d_robust" if config.get("robust_rot") else "rot6d"}[
            config.get("root_rot_mode", "axisang")
        ],
        root_palm=bool(config.get("forward_root_palm")),
    )


CASES = json.loads((Path(__file__).parent.parent / "golden" / "mano" / "layer_cases.json").read_text())


@pytest.mark.parametrize("case", [name for name in CASES if name != "grad"])
def test_layer_matches_manopth(case: str, model: ManoModel, golden: Path) -> None:
    arrays = load_npz(golden / "mano" / "layer_cases.npz")

    def given(name: str) -> torch.Tensor | None:
        key = f"{case}/{name}"
        return torch.tensor(arrays[key]) if key in arrays else None

    layer = layer_like_manopth(model, CASES[case])
    transl = given("trans")
    out = layer(given("pose"), given("betas"), None if transl is None else transl * 1000)
    verts = float((out.verts - given("verts")).abs().max())
    joints = float((out.joints - given("joints")).abs().max())
    print(f"{case}: verts max diff {verts:.3g} mm, joints max diff {joints:.3g} mm")
    assert verts < 5e-4
    assert joints < 5e-4


def test_gradients_match_manopth(model: ManoModel, golden: Path) -> None:
    arrays = load_npz(golden / "mano" / "layer_cases.npz")
    layer = layer_like_manopth(model, CASES["grad"])
    inputs = {n: torch.tensor(arrays[f"grad/{n}"], requires_grad=True) for n in ("pose", "betas", "trans")}
    out = layer(inputs["pose"], inputs["betas"], inputs["trans"] * 1000)
    for name, ours, theirs in (
        ("verts", out.verts, "verts"),
        ("joints", out.joints, "joints"),
        ("v_shaped", layer.rest(inputs["betas"])[0], "v_shaped"),
        ("rest_joints", layer.rest(inputs["betas"])[1], "rest_joints"),
        ("rotmats", layer.pose_to_rotmats(inputs["pose"]), "rotmats"),
        ("articulation", layer.full_pose(inputs["pose"]), None),
    ):
        want = arrays[f"grad/{theirs}"] if theirs else arrays["grad/full_axisang"][:, 3:]
        diff = float((ours.detach() - torch.tensor(want)).abs().max())
        print(f"{name}: max diff {diff:.3g}")
        assert diff < (5e-4 if name in ("verts", "joints") else 1e-6)
    gv = torch.tensor(uniform("mano/grad/gv", (3, 778, 3), -1, 1))
    gj = torch.tensor(uniform("mano/grad/gj", (3, 21, 3), -1, 1))
    (((out.verts * gv).sum() + (out.joints * gj).sum()) / 1000).backward()
    for name, key in (("pose", "d_pose"), ("betas", "d_betas"), ("trans", "d_trans")):
        want = torch.tensor(arrays[f"grad/{key}"])
        diff = float((inputs[name].grad - want).abs().max() / want.abs().max())
        print(f"{key}: max diff {diff:.3g} of the largest")
        assert diff < 1e-4


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_layer_matches_the_official_model(dtype: torch.dtype, bound: float, model: ManoModel, golden: Path) -> None:
    arrays = load_npz(golden / "mano" / "official_chumpy_model.npz")
    layer = ManoLayer(model, n_pca=6, flat_hand_mean=False, tips=None, unit="m", dtype=dtype)
    out = layer(torch.tensor(arrays["pose"], dtype=dtype), torch.tensor(arrays["betas"], dtype=dtype))
    verts = float((out.verts.double() - torch.tensor(arrays["verts"])).abs().max())
    joints = float((out.joints.double() - torch.tensor(arrays["joints16"])).abs().max())
    print(f"{dtype}: verts max diff {verts:.3g} m, joints max diff {joints:.3g} m")
    assert max(verts, joints) < bound
    assert layer.joint_names == JOINT_NAMES[:16]


# --------------------------------------------------------------------------------------------------------------- files


def test_official_pickle_loads_bit_identical(model: ManoModel, golden: Path, pickle_path: Path) -> None:
    want = load_npz(golden / "mano" / "standin_right.npz")
    for ours, key in (
        (model.v_template, "v_template"),
        (model.faces, "f"),
        (model.shapedirs, "shapedirs"),
        (model.posedirs, "posedirs"),
        (model.J_regressor, "J_regressor"),
        (model.weights, "weights"),
        (model.hands_components, "hands_components"),
        (model.hands_mean, "hands_mean"),
    ):
        assert np.array_equal(ours, want[key]), key
    assert model.hands_coeffs is not None
    assert model.hands_coeffs.shape == (1554, 45)
    assert np.array_equal(model.hands_coeffs[:64], want["hands_coeffs_first64"])
    assert model.side == "right"
    assert model.source == str(pickle_path)
    assert len(model.sha256) == 64


def test_npz_round_trip_is_bit_identical(model: ManoModel, tmp_path: Path) -> None:
    save_npz(model, tmp_path / "mano.npz")
    again = load_mano(tmp_path / "mano.npz")
    for name in ("v_template", "faces", "shapedirs", "posedirs", "J_regressor", "weights", "hands_components"):
        assert np.array_equal(getattr(model, name), getattr(again, name)), name
    assert np.array_equal(model.hands_mean, again.hands_mean)
    assert np.array_equal(model.hands_coeffs, again.hands_coeffs)
    with pytest.raises(DataError, match=r"must end in \.npz"):
        save_npz(model, tmp_path / "mano.pkl")


def test_program_checks_and_converts(
    model: ManoModel, pickle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--input", str(pickle_path), "--output", str(tmp_path / "mano.npz")]) == 0
    printed = capsys.readouterr().out
    assert model.sha256 in printed
    assert "right hand" in printed
    assert "pinky_mcp" in printed
    assert np.array_equal(load_mano(tmp_path / "mano.npz").posedirs, model.posedirs)


@pytest.fixture(scope="module")
def content(golden: Path) -> dict[str, Any]:
    """What a MANO file holds, as plain arrays."""
    arrays: dict[str, Any] = dict(load_npz(golden / "mano" / "standin_right.npz"))
    arrays.pop("hands_coeffs_first64")
    return arrays | {"bs_style": "lbs", "bs_type": "lrotmin"}


def written(content: dict[str, Any], path: Path, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_accepts_plain_pickles_of_every_protocol(protocol: int, content: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_mano(written(content, tmp_path / "plain.pkl", protocol))
    assert np.array_equal(loaded.posedirs, content["posedirs"])
    assert loaded.hands_coeffs is None


@pytest.mark.parametrize("kind", ["csc", "csr", "coo"])
def test_accepts_every_sparse_regressor(kind: str, content: dict[str, Any], tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = getattr(sparse, f"{kind}_matrix")(content["J_regressor"])
    loaded = load_mano(written(content | {"J_regressor": matrix}, tmp_path / "sparse.pkl"))
    assert np.array_equal(loaded.J_regressor, content["J_regressor"])


@pytest.mark.parametrize("root", [-1, 2**32 - 1])
def test_accepts_both_spellings_of_the_root(root: int, content: dict[str, Any], tmp_path: Path) -> None:
    table = content["kintree_table"].astype(np.int64)
    table[0, 0] = root
    table = table.astype(np.int32) if root == -1 else table.astype(np.uint32)
    assert load_mano(written(content | {"kintree_table": table}, tmp_path / "root.pkl")).side == "right"


def _spoil(content: dict[str, Any], key: str, index: tuple[int, ...], value: float) -> dict[str, Any]:
    array = content[key].copy()
    array[index] = value
    return content | {key: array}


def test_refuses_what_is_no_model(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bad.pkl"
    for broken, message in (
        ([1, 2], "expected a dictionary"),
        ({1: 2}, "expected a dictionary"),
        ({k: v for k, v in content.items() if k not in ("f", "weights")}, "missing f, weights"),
        (content | {"posedirs": content["posedirs"][:, :, :100]}, r"posedirs must have shape \(778, 3, 135\)"),
        (content | {"hands_mean": "zero"}, "hands_mean must be an array of numbers"),
        (_spoil(content, "weights", (3, 4), np.nan), "weights holds values that are not finite"),
        (_spoil(content, "weights", (3, 4), 0.9), "weights must be non-negative"),
        (_spoil(content, "weights", (3, 4), -0.1), "weights must be non-negative"),
        (_spoil(content, "J_regressor", (3, 4), 0.9), "rows of J_regressor"),
        (_spoil(content, "f", (0, 0), 778), "vertex numbers 0 to 777"),
        (_spoil(content, "kintree_table", (0, 4), 5), "joint 4 comes before its parent 5"),
        (_spoil(content, "kintree_table", (0, 4), 1), "must hold the parents"),
        (_spoil(content, "kintree_table", (0, 0), 0), "must hold the parents"),
        (content | {"bs_style": "dqs"}, "bs_style must be 'lbs'"),
        (content | {"bs_type": "other"}, "bs_type must be 'lrotmin'"),
        (content | {"hands_coeffs": np.zeros((5, 44))}, r"shape \(N, 45\)"),
    ):
        with pytest.raises(DataError, match=message) as error:
            load_mano(written(broken, path))
        assert str(path) in str(error.value)
        assert "mano.is.tue.mpg.de" in str(error.value)
    with pytest.raises(MissingFileError, match=r"found no such file.*mano\.is\.tue\.mpg\.de"):
        load_mano(tmp_path / "absent.pkl")
    for name in ("page.pkl", "page.npz"):
        (tmp_path / name).write_text("<html>log in</html>")
        with pytest.raises(DataError, match=rf"no MANO model: .*{name}.*mano\.is\.tue\.mpg\.de"):
            load_mano(tmp_path / name)
    with pytest.raises(DataError, match='side must be "right" or "left"'):
        load_mano("standin", side="both")  # type: ignore[arg-type]


def test_side_comes_from_the_file_or_its_name(content: dict[str, Any], tmp_path: Path) -> None:
    path = written(content, tmp_path / "MANO_LEFT.pkl")
    assert load_mano(path).side == "left"
    plain = written(content, tmp_path / "hand.pkl")
    assert (load_mano(plain).side, load_mano(plain, side="left").side) == ("right", "left")
    with pytest.raises(DataError, match=r"MANO_LEFT\.pkl: this is the left hand by its name, expected the right one"):
        load_mano(path, side="right")
    with pytest.raises(DataError, match=r"the right hand by its name, expected the left one -- give MANO_LEFT\.pkl"):
        load_mano(path.rename(tmp_path / "MANO_RIGHT.pkl"), side="left")
    path = written(content, tmp_path / "MANO_LEFT.pkl")
    save_npz(load_mano(path), tmp_path / "right.npz")  # an .npz knows better than its name
    assert load_mano(tmp_path / "right.npz").side == "left"
    with pytest.raises(DataError, match=r"right\.npz: this is the left hand, expected the right one"):
        load_mano(tmp_path / "right.npz", side="right")
    arrays = dict(np.load(tmp_path / "right.npz"))
    np.savez(tmp_path / "odd.npz", **{**arrays, "side": np.array("both")})
    with pytest.raises(DataError, match="side must be right or left, got 'both'"):
        load_mano(tmp_path / "odd.npz")
    arrays.pop("side")
    np.savez(tmp_path / "old.npz", **arrays)  # from before the entry
    assert load_mano(tmp_path / "old.npz", side="left").side == "left"
    flipped = load_mano(path, flip_shapedirs_x=True)
    assert np.array_equal(flipped.shapedirs[:, 0], -content["shapedirs"][:, 0])
    assert np.array_equal(flipped.shapedirs[:, 1:], content["shapedirs"][:, 1:])
    layer = ManoLayer(load_mano(path), n_pca=None, flat_hand_mean=True)
    assert layer.tip_verts == (745, 317, 445, 556, 673)


# ----------------------------------------------------------------------------------------------------------- rotations


def test_rotvec_to_rotmat_near_and_far_from_zero() -> None:
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    worst = 0.0
    for angle in (0.0, 1e-12, 1e-6, 1e-3, 9.9e-3, 1.01e-2, 0.3, 3.1, 3.14159, 6.0):
        x, y, z = (direction * angle).T
        zero = torch.zeros_like(x)
        exact = torch.matrix_exp(torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3))
        ours = rotvec_to_rotmat(direction * angle)
        worst = max(worst, float((ours - exact).abs().max()))
        assert torch.allclose(ours, roma.rotvec_to_rotmat(direction * angle), atol=1e-12)
    print(f"rotvec_to_rotmat: max diff {worst:.3g}")
    assert worst < 1e-14


@pytest.mark.parametrize("scale", [0.0, 1e-7, 5e-3, 0.011, 1.0])
def test_rotvec_derivatives_are_exact(scale: float) -> None:
    start = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64) * scale
    assert torch.autograd.gradcheck(rotvec_to_rotmat, start.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(rotvec_to_rotmat, start.clone().requires_grad_())


def test_first_derivative_at_zero_is_the_cross_product_matrix() -> None:
    jacobian = torch.autograd.functional.jacobian(rotvec_to_rotmat, torch.zeros(3))
    for k, axis in enumerate(torch.eye(3)):
        assert torch.equal(jacobian[:, :, k], torch.linalg.cross(axis.expand(3, 3), torch.eye(3)).T)


@pytest.mark.parametrize("robust", [False, True])
def test_rot6d_and_projection_give_rotations(robust: bool) -> None:
    torch.manual_seed(1)
    rotation = rot6d_to_rotmat(torch.randn(20, 6, dtype=torch.float64), robust=robust)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(20, dtype=torch.float64))
    assert torch.allclose(project_to_rotmat(rotation * 1.3), rotation, atol=1e-12)
    mirrored = rotation * torch.tensor([1.0, 1.0, -1.0])
    assert torch.allclose(torch.linalg.det(project_to_rotmat(mirrored)), torch.ones(20, dtype=torch.float64))


# --------------------------------------------------------------------------------------------------------------- layer


@pytest.mark.parametrize("flat", [True, False])
def test_gradients_at_zero_pose_are_finite(flat: bool, hand: ManoModel) -> None:
    layer = ManoLayer(hand, n_pca=None, flat_hand_mean=flat)
    pose = torch.zeros(2, 48, requires_grad=True)
    out = layer(pose, torch.zeros(2, 10))
    (first,) = torch.autograd.grad(out.verts.square().sum() / 1e6, pose, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), pose)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()
    assert first.abs().max() > 0
    assert second.abs().max() > 0


def test_joints_without_mesh_are_the_same_joints(hand: ManoModel) -> None:
    layer = ManoLayer(hand, n_pca=None, flat_hand_mean=False, joint_order="thumb_first", root_palm=True)
    torch.manual_seed(2)
    pose, betas, transl = torch.randn(4, 48) * 0.4, torch.randn(4, 10), torch.randn(4, 3)
    full = layer(pose, betas, transl)
    fast = layer(pose, betas, transl, with_verts=False)
    assert fast.verts is None
    assert torch.allclose(fast.joints, full.joints, atol=1e-3)
    alone = layer(pose[1:2], betas[1:2], transl[1:2])
    assert torch.allclose(alone.verts, full.verts[1:2], atol=1e-3)


def test_units_orders_and_translation(hand: ManoModel) -> None:
    torch.manual_seed(3)
    pose = torch.randn(2, 48, dtype=torch.float64) * 0.3
    options: dict[str, Any] = {"n_pca": None, "flat_hand_mean": True, "dtype": torch.float64}
    mm = ManoLayer(hand, unit="mm", **options)(pose).joints
    m = ManoLayer(hand, unit="m", **options)(pose, transl=torch.tensor([[0.0, 0.0, 0.5]])).joints
    assert torch.allclose(m * 1000 - torch.tensor([0.0, 0.0, 500.0]), mm, atol=1e-9)
    for order, index in ORDERS.items():
        layer = ManoLayer(hand, joint_order=order, **options)
        assert torch.equal(layer(pose).joints, mm[:, list(index)])
        assert layer.joint_names == tuple(JOINT_NAMES[j] for j in index)
    for name, ids in TIPS.items():
        out = ManoLayer(hand, tips=name, **options)(pose)
        assert torch.equal(out.joints[:, 16:], out.verts[:, list(ids)])
        assert out.joints.shape == (2, 21, 3)


def test_global_rotation_turns_about_the_wrist(hand: ManoModel) -> None:
    layer = ManoLayer(hand, n_pca=None, flat_hand_mean=True)
    pose = torch.zeros(1, 48)
    pose[0, :3] = torch.tensor([0.4, -1.0, 0.7])
    turned, still = layer(pose).joints[0], layer(torch.zeros(1, 48)).joints[0]
    rotation = rotvec_to_rotmat(pose[0, :3])
    assert torch.allclose(turned, (still - still[0]) @ rotation.T + still[0], atol=1e-3)


def test_centring_is_dropped_when_translated(hand: ManoModel) -> None:
    layer = ManoLayer(hand, n_pca=None, flat_hand_mean=True, center_joint=9, joint_order="thumb_first")
    free = ManoLayer(hand, n_pca=None, flat_hand_mean=True, joint_order="thumb_first")
    pose = torch.zeros(2, 48)
    assert layer(pose).joints[:, 9].abs().max() == 0
    assert layer(pose, transl=torch.zeros(2, 3)).joints[:, 9].abs().max() == 0
    transl = torch.tensor([[0.0, 0.0, 400.0]])
    assert torch.allclose(layer(pose, transl=transl).verts, free(pose, transl=transl).verts)


def test_mirrored_model_gives_the_mirrored_hand(hand: ManoModel) -> None:
    left = mirror_model(hand)
    assert left.side == "left"
    options: dict[str, Any] = {"n_pca": None, "flat_hand_mean": False, "dtype": torch.float64, "tips": "ho3d"}
    torch.manual_seed(4)
    pose, betas = torch.randn(3, 48, dtype=torch.float64) * 0.4, torch.randn(3, 10, dtype=torch.float64)
    flip = torch.tensor([-1.0, 1.0, 1.0])
    right_out = ManoLayer(hand, **options)(pose, betas)
    left_out = ManoLayer(left, **options)(mirror_pose(pose), betas)
    assert torch.allclose(left_out.verts, right_out.verts * flip, atol=1e-9)
    assert torch.allclose(left_out.joints, right_out.joints * flip, atol=1e-9)
    assert torch.equal(mirror_pose(mirror_pose(pose)), pose)
    pca = {**options, "n_pca": 8}
    coefficients = torch.cat((pose[:, :3], torch.randn(3, 8, dtype=torch.float64)), 1)
    mirrored = torch.cat((mirror_pose(pose[:, :3]), coefficients[:, 3:]), 1)
    assert torch.allclose(
        ManoLayer(left, **pca)(mirrored).verts, ManoLayer(hand, **pca)(coefficients).verts * flip, atol=1e-9
    )


def test_constants_are_buffers_but_not_saved(hand: ManoModel) -> None:
    layer = ManoLayer(hand, n_pca=6, flat_hand_mean=False)
    assert layer.state_dict() == {}
    assert layer.double()(torch.zeros(1, 9, dtype=torch.float64)).verts.dtype == torch.float64
    assert "flat_hand_mean=False" in repr(layer)
    assert "standin" in repr(layer)


def test_refuses_options_and_shapes_that_do_not_fit(hand: ManoModel) -> None:
    base: dict[str, Any] = {"n_pca": None, "flat_hand_mean": True}
    for options, message in (
        ({"n_pca": 46}, "n_pca must be 1 to 45"),
        ({"tips": "nails"}, "tips must be one of"),
        ({"tips": (1, 2, 3, 4, 778)}, "five vertex ids"),
        ({"joint_order": "random"}, "joint_order must be one of"),
        ({"tips": None, "joint_order": "wild"}, "there are no tips"),
        ({"unit": "cm"}, 'unit must be "mm" or "m"'),
        ({"root_rot_mode": "euler"}, "root_rot_mode must be"),
        ({"center_joint": 21}, "center_joint must be 0 to 20"),
    ):
        with pytest.raises(DataError, match=message):
            ManoLayer(hand, **{**base, **options})
    layer = ManoLayer(hand, **base)
    pose = torch.zeros(2, 48)
    for arguments, message in (
        ((torch.zeros(2, 45),), r"pose must have shape \(B, 48\)"),
        ((torch.zeros(2, 15, 3, 3),), r"rotation matrices must have shape \(B, 16, 3, 3\)"),
        ((pose, torch.zeros(3, 10)), r"betas must have shape \(2, 10\)"),
        ((pose, None, torch.zeros(2, 4)), r"transl must have shape \(2, 3\)"),
    ):
        with pytest.raises(DataError, match=message):
            layer(*arguments)
