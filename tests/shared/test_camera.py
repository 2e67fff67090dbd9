import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import camera
from shared.errors import DataError

K = camera.intrinsics(588.03, 587.07, 320, 240)


def some_points(*shape):
    rng = np.random.default_rng(1)
    return np.concatenate([rng.uniform(-200, 200, (*shape, 2)), rng.uniform(300, 900, (*shape, 1))], -1)


def test_one_point_by_hand():
    k = camera.intrinsics(500, 250, 160, 120)
    np.testing.assert_allclose(camera.project([100.0, -50.0, 500.0], k), [260, 95])
    np.testing.assert_allclose(camera.uvd_to_xyz([260.0, 95.0, 500.0], k), [100, -50, 500])


@settings(max_examples=50, deadline=None)
@given(st.floats(1, 5000), st.floats(1, 5000), st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 5000))
def test_round_trip(fx, fy, u0, v0, z):
    k = camera.intrinsics(fx, fy, u0, v0)
    p = np.array([13.0, -7.0, z])
    np.testing.assert_allclose(camera.uvd_to_xyz(camera.xyz_to_uvd(p, k), k), p, rtol=1e-8, atol=1e-6)


def test_conversions_of_the_author(golden):
    g = np.load(golden / "v2v_posenet" / "camera.npz")
    small = camera.intrinsics(241.42, 241.42, 160, 120)
    hands = camera.intrinsics(475.065948, 475.065857, 315.944855, 245.287079)
    nyu, itop = camera.intrinsics(588.036865, 587.075073, 320, 240), camera.intrinsics(1 / 0.0035, 1 / 0.0035, 160, 120)
    worst = 0.0
    for name, k, up in [("ICVL", small, False), ("NYU", nyu, True), ("MSRA", small, True)]:
        xyz = camera.uvd_to_xyz(g[f"{name}_in"], k)
        worst = max(worst, float(np.abs((camera.flip_y(xyz) if up else xyz) - g[f"{name}_out"]).max()))
    for name, k, up in [("HANDS2017", hands, False), ("ITOP", itop, True)]:
        xyz = camera.flip_y(g[f"{name}_in"]) if up else g[f"{name}_in"]
        worst = max(worst, float(np.abs(camera.xyz_to_uvd(xyz, k) - g[f"{name}_out"]).max()))
    print(f"author's camera conversions, max diff {worst:.3g}")
    assert worst < 6e-4


def test_batches_and_one_K_per_frame():
    p = some_points(4, 21)
    ks = np.stack([camera.intrinsics(500 + 10 * i, 510, 300 + i, 200) for i in range(4)])
    together = camera.xyz_to_uvd(p, ks)
    for i in range(4):
        np.testing.assert_allclose(together[i], camera.xyz_to_uvd(p[i], ks[i]), rtol=1e-13)
    np.testing.assert_allclose(camera.uvd_to_xyz(together, ks), p, rtol=1e-12)
    np.testing.assert_allclose(camera.project(p[0], K), camera.project(p, K)[0])


def test_crop_resize_and_affine_move_the_pixels_of_the_same_points():
    p = some_points(21)
    uv = camera.project(p, K)
    np.testing.assert_allclose(camera.project(p, camera.crop_K(K, 100, 50)), uv - [100, 50])
    np.testing.assert_allclose(camera.project(p, camera.resize_K(K, 0.5, 2)), (uv + 0.5) * [0.5, 2] - 0.5)
    turn = np.array([[0.0, -1.2, 30.0], [1.2, 0.0, 5.0]])
    rotated = camera.affine_K(K, turn)
    np.testing.assert_allclose(camera.project(p, rotated), uv @ turn[:, :2].T + turn[:, 2])
    # This K has off-diagonal entries.
    np.testing.assert_allclose(camera.backproject(camera.xyz_to_uvd(p, rotated), rotated), p)


def test_axes():
    p = some_points(5)
    np.testing.assert_array_equal(camera.flip_y([1, 2, 3]), [1, -2, 3])
    np.testing.assert_array_equal(camera.opengl_to_opencv([1, 2, -3]), [1, -2, 3])
    np.testing.assert_array_equal(camera.opengl_to_opencv(camera.opengl_to_opencv(p)), p)


@pytest.mark.parametrize("z", [0.0, -400.0, np.nan])
def test_depth_must_be_positive(z):
    p = some_points(2, 3)
    p[1, 2, 2] = z
    for call in (camera.project, camera.xyz_to_uvd, camera.backproject, camera.uvd_to_xyz):
        with pytest.raises(DataError, match=r"1 of 6 .* depth that is not positive \(first at \(1, 2\)"):
            call(p, K)
    assert camera.backproject(p, K, check_depth=False).shape == (2, 3, 3)


def test_shape_errors():
    with pytest.raises(DataError, match=r"expected points of shape \(\.\.\., 3\), got \(5, 2\)"):
        camera.project(np.ones((5, 2)), K)
    with pytest.raises(DataError, match=r"expected K of shape .* got \(4, 3, 3\) for \(2, 21, 3\)"):
        camera.project(some_points(2, 21), np.stack([K] * 4))
    with pytest.raises(DataError, match="positive focal lengths"):
        camera.intrinsics(0, 1, 2, 3)
    with pytest.raises(DataError, match="cannot be inverted"):
        camera.backproject([1.0, 2.0, 3.0], np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"expected K .* and A"):
        camera.affine_K(K, np.eye(2))


def test_project_without_the_check_of_depths_is_the_plain_formula() -> None:
    K = camera.intrinsics(500, 400, 320, 240)
    behind = np.array([[10.0, 20.0, -100.0], [10.0, 20.0, 0.0], [1.0, 2.0, 400.0]])
    with pytest.raises(DataError, match="2 of 3 points have a depth that is not positive"):
        camera.project(behind, K)
    uv = camera.project(behind, K, check_depth=False)
    np.testing.assert_allclose(uv[0], [320 - 50, 240 - 80])
    assert not np.isfinite(uv[1]).any()
    np.testing.assert_array_equal(uv[2], camera.project(behind[2], K))


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_rotation_vectors_agree_with_scipy(rotvec):
    from scipy.spatial.transform import Rotation

    np.testing.assert_allclose(camera.rotvec_to_rotmat(rotvec), Rotation.from_rotvec(rotvec).as_matrix(), atol=1e-11)
