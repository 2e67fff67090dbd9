"""Rasteriser, sphere renderer and projection loss: cases made by hand, the original's measurements, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup_fitting.kernels import ops
from shared.errors import DataError


@pytest.fixture(autouse=True, params=["reference", "auto"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with the reference and with what is built."""
    monkeypatch.setenv("HANDPOSE_KERNELS", request.param)
    return str(request.param)


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind in "if"}


@pytest.fixture
def losses(golden: Path) -> dict[str, Tensor]:
    folder = golden / "selfsup_fitting"
    return arrays(folder / "losses.npz") | arrays(folder / "camera_multiview.npz")


def mesh(*corners: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """One picture of separate triangles, given corner by corner."""
    return torch.tensor([corners], dtype=torch.float32), torch.arange(len(corners)).view(-1, 3)


# ------------------------------------------------------------------------------------------------- mesh


@pytest.mark.parametrize("interpolation", ["linear", "harmonic"])
def test_raster_golden(golden: Path, interpolation: ops.Interpolation) -> None:
    stored = arrays(golden / "selfsup_fitting" / "raster_small.npz")
    verts, (width, height) = stored["face_vertices"].reshape(2, 36, 3), (int(stored[n]) for n in ("width", "height"))
    raster = ops.rasterize(verts, torch.arange(36).view(12, 3), width, height, interpolation=interpolation)
    expected = stored[f"depth_{interpolation}"]
    assert torch.equal(raster.depth < 1000, expected < 1000)
    assert torch.equal(raster.face >= 0, expected < 1000)
    difference = float((raster.depth - expected).abs().max())
    print(f"small pictures, {interpolation}: max diff {difference:.3g} mm")
    assert difference <= 1e-4
    if interpolation == "harmonic":
        one = torch.tensor([[0, 1, 2]])
        alone = ops.rasterize(stored["face_vertices"][0], one, width, height, interpolation=interpolation)
        expected = stored["depth_harmonic_each"]
        assert torch.equal(alone.depth < 1000, expected < 1000)
        difference = float((alone.depth - expected).abs().max())
        print(f"each triangle alone: max diff {difference:.3g} mm")
        assert difference <= 1e-4


def test_a_triangle_drawn_by_hand() -> None:
    verts, faces = mesh((1, 1, 10), (4, 1, 13), (1, 4, 16))  # depth 10 + (u - 1) + 2 (v - 1)
    depth, face = ops.rasterize(verts, faces, 6, 6)
    expected = torch.full((6, 6), 1000.0)
    for v in range(1, 5):
        for u in range(1, 6 - v):
            expected[v, u] = 10 + (u - 1) + 2 * (v - 1)
    torch.testing.assert_close(depth[0], expected)
    assert torch.equal(face[0] >= 0, expected < 1000)
    weights = ops.barycentric_weights(verts, faces, face)
    torch.testing.assert_close(weights[0, 2, 2], torch.tensor([1 / 3, 1 / 3, 1 / 3]))
    torch.testing.assert_close(weights.sum(-1), (face >= 0).float())
    torch.testing.assert_close((weights * verts[0, :, 2]).sum(-1)[face >= 0], depth[face >= 0])

    turned = faces[:, [1, 0, 2]]
    assert (ops.rasterize(verts, turned, 6, 6).face == -1).all()
    assert torch.equal(ops.rasterize(verts, turned, 6, 6, cull=False).face, face)
    harmonic = ops.rasterize(verts, faces, 6, 6, interpolation="harmonic").depth[0, 2, 2]
    torch.testing.assert_close(harmonic, torch.tensor(3 / (1 / 10 + 1 / 13 + 1 / 16)))
    assert ops.rasterize(verts, faces, 6, 6, background=12.5).depth.max() == 12.5
    assert (ops.rasterize(verts, faces, 6, 6, background=12.5).face >= 0).sum() == 4  # depths 10, 11, 12, 12


def test_which_face_wins() -> None:
    near, far = ((0, 0, 5), (4, 0, 5), (0, 4, 5)), ((0, 0, 9), (4, 0, 9), (0, 4, 9))
    verts, faces = mesh(*far, *near, *near)
    depth, face = ops.rasterize(verts, faces, 5, 5)
    assert set(face.flatten().tolist()) == {-1, 1}  # the nearer, and of equal ones the first
    assert set(depth.flatten().tolist()) == {5.0, 1000.0}
    assert set(ops.rasterize(verts, faces.flip(0), 5, 5).face.flatten().tolist()) == {-1, 0}


def test_faces_that_are_not_drawn() -> None:
    good = ((0, 0, 5), (4, 0, 5), (0, 4, 5))
    expected = ops.rasterize(*mesh(*good), 5, 5).depth
    nan, inf = float("nan"), float("inf")
    for bad in (
        ((0, 0, nan), (4, 0, 1), (0, 4, 1)),
        ((nan, 0, 1), (4, 0, 1), (0, 4, 1)),
        ((0, 0, 1), (4, -inf, 1), (0, 4, 1)),
        ((0, 0, 1), (4, 0, -inf), (0, 4, 1)),
        ((0, 0, 1), (2e6, 0, 1), (0, 2e6, 1)),
        ((0, 0, 1), (2, 2, 1), (4, 4, 1)),  # no area
        ((3, 3, 1), (3, 3, 1), (3, 3, 1)),
    ):
        depth, face = ops.rasterize(*mesh(*bad, *good), 5, 5, cull=False)
        assert torch.equal(depth, expected)
        assert set(face.flatten().tolist()) == {-1, 1}


def test_two_triangles_leave_no_gap() -> None:
    corners = torch.tensor([[3.3, 2.1, 1.0], [17.8, 4.4, 2.0], [15.2, 18.9, 3.0], [1.7, 14.6, 4.0]])[None]
    depth = ops.rasterize(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), 20, 20).depth[0]
    for row in depth:
        inside = torch.nonzero(row < 1000).flatten()
        assert len(inside) == 0 or int(inside[-1] - inside[0]) == len(inside) - 1
    assert (depth < 1000).sum() > 150


@pytest.mark.parametrize(("batch", "faces"), [(0, 2), (2, 0), (1, 1)])
def test_empty_and_tiny_pictures(batch: int, faces: int) -> None:
    verts = torch.zeros(batch, 6, 3)
    index = torch.zeros(faces, 3, dtype=torch.int32)
    raster = ops.rasterize(verts, index, 1, 1)
    assert raster.depth.shape == raster.face.shape == (batch, 1, 1)
    assert (raster.face == -1).all()
    crop = ops.rasterize_resized(verts, index, size=1, factor=2, far=7.0)
    assert torch.equal(crop, torch.full((batch, 1, 1), 7.0))
    one, _ = ops.rasterize(*mesh((-1, -1, 3), (2, -1, 3), (-1, 2, 3)), 1, 1)
    assert one.item() == 3


def soup(seed: int, faces: int = 6, size: float = 20, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random triangles, some overlapping, some reaching out of the picture."""
    draw = torch.rand((2, 3 * faces, 3), dtype=dtype, generator=torch.Generator().manual_seed(seed))
    low, high = torch.tensor([-3, -3, 20], dtype=dtype), torch.tensor([size + 3, size + 3, 90], dtype=dtype)
    return low + draw * (high - low), torch.arange(3 * faces).view(-1, 3)


def test_gradient_of_depth_is_the_weights() -> None:
    verts, faces = soup(1, dtype=torch.float32)
    verts.requires_grad_()
    depth, face = ops.rasterize(verts, faces, 20, 20, cull=False)
    pull = torch.randn(depth.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((depth * pull).sum(), verts)
    weights = ops.barycentric_weights(verts.detach(), faces, face)
    expected = torch.zeros(2, 18)
    for b, v, u in torch.nonzero(face >= 0).tolist():
        expected[b, faces[face[b, v, u]]] += weights[b, v, u] * pull[b, v, u]
    torch.testing.assert_close(gradient[..., 2], expected, rtol=1e-4, atol=1e-5)
    assert gradient[..., :2].abs().sum() > 0


def test_the_small_picture_equals_the_large_one_reduced() -> None:
    for factor in (2, 4, 10):
        verts, faces = soup(factor, 40, 16.0 * factor, torch.float32)
        large = ops.rasterize(verts, faces, 16 * factor, 16 * factor).depth.clamp(max=70.0)
        reduced = torch.nn.functional.interpolate(large[:, None], size=(16, 16), mode="bilinear", align_corners=False)
        small = ops.rasterize_resized(verts, faces, size=16, factor=factor, far=70.0)
        print(f"factor {factor}: fused against unfused max diff {(small - reduced[:, 0]).abs().max():.3g} mm")
        torch.testing.assert_close(small, reduced[:, 0], rtol=0, atol=2e-5)  # torch may add in another order
        assert (small < 70).any()


# ------------------------------------------------------------------------------------------------- spheres


def test_spheres_golden(losses: dict[str, Tensor]) -> None:
    joints, radii = losses["joints"], losses["sphere_radius"]
    depth, winner = ops.render_spheres(joints, radii)
    moved = joints[:, :, None] @ losses["mutual_transforms"][..., :3, :3].mT
    moved = moved + losses["mutual_transforms"][..., None, :3, 3]
    found = {
        "own views": (depth - losses["ball_depth"]).abs().max(),
        "view 0 in all": (ops.render_spheres(moved[:, 0], radii)[0] - losses["projected_depth_view0"]).abs().max(),
        "view 2 in all": (ops.render_spheres(moved[:, 2], radii)[0] - losses["projected_depth_view2"]).abs().max(),
    }
    print("sphere pictures, " + ", ".join(f"{name} max diff {value:.3g} mm" for name, value in found.items()))
    assert max(found.values()) <= 2e-3
    assert torch.equal(winner >= 0, depth < 100)


def test_a_sphere_drawn_by_hand() -> None:
    step = 300 / 64
    depth, winner = ops.render_spheres(torch.tensor([[2 * step, -step, 30.0]]), torch.tensor([10.0]))
    assert depth.shape == winner.shape == (64, 64)
    row, column = 31, 34
    assert depth[row, column] == 20
    torch.testing.assert_close(depth[row, column + 2], torch.tensor(30 - (100 - 4 * step**2) ** 0.5))
    assert (depth == 100).sum() == 64 * 64 - 13  # the pixels at most 2.13 steps away
    assert torch.equal(winner, torch.where(depth < 100, 0, -1).int())

    for radius, seen in ((0.0999, False), (0.11, True)):  # q > 0.01
        assert bool((ops.render_spheres(torch.zeros(1, 3), torch.tensor([radius]))[1] == 0).any()) == seen
    behind, _ = ops.render_spheres(torch.tensor([[0.0, 0.0, 115.0]]), torch.tensor([10.0]))
    assert (behind == 100).all()
    small, _ = ops.render_spheres(torch.tensor([[0.0, 0.0, 30.0]]), torch.tensor([10.0]), size=5, cube_mm=50.0)
    assert small.shape == (5, 5)
    assert small.min() > 20  # with an odd side no pixel has its sample in the middle


def test_ties_and_gradients_of_spheres() -> None:
    centers = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 5.0], [0.0, 0.0, 5.0]], requires_grad=True)
    depth, winner = ops.render_spheres(centers, torch.tensor([8.0, 8.0, 8.0]))
    assert set(winner.flatten().tolist()) == {-1, 1}
    (gradient,) = torch.autograd.grad(depth[32, 33], centers)
    step = 300 / 64
    slope = -step / (64 - step**2) ** 0.5
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0, 0], [slope, 0, 1], [0, 0, 0]]))
    assert torch.autograd.grad(ops.render_spheres(centers, torch.ones(3) * 8)[0][0].sum(), centers)[0].abs().sum() == 0


def worst(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_projection_golden(losses: dict[str, Tensor]) -> None:
    joints, radii, depth = losses["joints"].requires_grad_(), losses["sphere_radius"], losses["real_depth"]
    found = {}
    for name, pairs in (("multi", losses["mutual_transforms"]), ("single", None)):
        terms = ops.projection_loss(joints, pairs, radii, depth)
        assert terms.model_to_data.shape == terms.data_to_model.shape == ((2, 3, 3) if pairs is not None else (2, 3))
        loss = 9 * terms.model_to_data.mean() + 500 * 9 * terms.data_to_model.mean()
        found[name] = worst(loss.detach(), losses[f"mv_projection_{name}"])
        (gradient,) = torch.autograd.grad(loss, joints, retain_graph=True)
        found[f"{name} gradient"] = worst(gradient, losses[f"mv_projection_{name}_grad"])
        if pairs is not None:
            found["model to data"] = worst(9 * terms.model_to_data.mean().detach(), losses["model_to_data_x9"])
            found["data to model"] = worst(9 * terms.data_to_model.mean().detach(), losses["data_to_model_x9"])
        else:
            plain = terms.data_to_model.mean()
            found["plain"] = worst(plain.detach(), losses["data_to_model_plain"])
            (gradient,) = torch.autograd.grad(plain, joints)
            found["plain gradient"] = worst(gradient, losses["data_to_model_plain_grad"])
    print("projection, relative: " + ", ".join(f"{name} max diff {value:.3g}" for name, value in found.items()))
    assert max(value for name, value in found.items() if "gradient" not in name) <= 2e-4
    assert max(value for name, value in found.items() if "gradient" in name) <= 1e-3


def test_one_captured_pixel_by_hand() -> None:
    """A single pixel in the middle of a 4 x 4 image, one sphere behind it."""

    def terms(z: float, depth: float) -> tuple[float, Tensor]:
        captured = torch.full((1, 1, 4, 4), 100.0)
        captured[0, 0, 2, 2] = depth
        centers = torch.tensor([[[[0.0, 0.0, z]]]], requires_grad=True)
        data = ops.projection_loss(centers, None, torch.tensor([10.0]), captured).data_to_model.sum()
        (gradient,) = torch.autograd.grad(data, centers)
        return 16 * data.item(), 16 * gradient.flatten()

    for z, depth, expected, slope in (
        (30, 0, 20, 1),  # outside: the surface is 20 mm behind the pixel
        (5, 0, 5, -1),  # inside
        (59.9, 0, 49.9, 1),
        (60.1, 0, 50, 0),  # no farther than 50, no pull beyond
        (95, 99, 6, 1),
        (95, 99.5, 0, 0),  # background
    ):
        distance, gradient = terms(z, depth)
        assert distance == pytest.approx(expected, abs=1e-4)
        assert gradient.tolist() == pytest.approx([0, 0, slope], abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_show(losses: dict[str, Tensor], value: float) -> None:
    joints, radii, depth = losses["joints"].clone(), losses["sphere_radius"], losses["real_depth"].clone()
    depth[1, 2, 5, 6] = value
    joints[0, 1, 7, 1] = value
    for term in ops.projection_loss(joints, losses["mutual_transforms"], radii, depth):
        bad = torch.zeros(2, 3, 3, dtype=torch.bool)
        bad[1, :, 2] = bad[0, 1] = True
        assert torch.equal(term.isnan(), bad)
    joints.requires_grad_()
    terms = ops.projection_loss(joints, None, radii, depth)
    (gradient,) = torch.autograd.grad(sum(term.sum() for term in terms), joints)
    assert torch.equal(gradient.isnan().any(-1).any(-1), torch.tensor([[False, True, False], [False, False, True]]))


def test_radii_and_captured_depth_get_no_gradient(losses: dict[str, Tensor]) -> None:
    radii, depth = losses["sphere_radius"].requires_grad_(), losses["real_depth"].requires_grad_()
    terms = ops.projection_loss(losses["joints"].requires_grad_(), None, radii, depth)
    sum(term.sum() for term in terms).backward()  # type: ignore[union-attr]
    assert radii.grad is None
    assert depth.grad is None
    assert losses["joints"].grad is not None


# ------------------------------------------------------------------------------------------------- errors

V, F = torch.zeros(1, 3, 3), torch.tensor([[0, 1, 2]])
C, R, D = torch.zeros(1, 2, 4, 3), torch.ones(4), torch.zeros(1, 2, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.rasterize(V[0], F, 4, 4), r"verts_uvd: expected \(B, V, 3\), got \(3, 3\)"),
        (lambda: ops.rasterize(V.half(), F, 4, 4), "verts_uvd: expected float32 or float64, got .* float16"),
        (lambda: ops.rasterize(V, F[0], 4, 4), r"faces: expected \(F, 3\)"),
        (lambda: ops.rasterize(V, F.float(), 4, 4), "faces: expected int32 or int64"),
        (lambda: ops.rasterize(V, F + 1, 4, 4), "faces: expected indices of the 3 vertices, got 1 to 3"),
        (lambda: ops.rasterize(V, F - 1, 4, 4), "faces: expected indices of the 3 vertices, got -1 to 1"),
        (lambda: ops.rasterize(V, F, 0, 4), "width: expected 1 to 8192 pixels, got 0"),
        (lambda: ops.rasterize(V, F, 4, 8193), "height: expected 1 to 8192 pixels, got 8193"),
        (
            lambda: ops.rasterize(V, F, 4, 4, interpolation="cubic"),  # type: ignore[arg-type]
            "interpolation: expected linear or harmonic, got 'cubic'",
        ),
        (lambda: ops.rasterize_resized(V, F, factor=5), "factor: expected an even number, got 5"),
        (lambda: ops.rasterize_resized(V, F, size=0), "size: expected 1 to 8192 pixels"),
        (lambda: ops.rasterize_resized(V, F, size=900), r"size \* factor: expected 1 to 8192 pixels, got 9000"),
        (lambda: ops.barycentric_weights(V, F, torch.zeros(2, 4, 4)), r"face: expected \(1, H, W\)"),
        (lambda: ops.render_spheres(C[..., :2], R), r"centers_mm: expected \(..., J, 3\)"),
        (lambda: ops.render_spheres(C.int(), R), "centers_mm: expected float32 or float64"),
        (lambda: ops.render_spheres(C[:, :, :0], R[:0]), "centers_mm: expected at least one sphere"),
        (lambda: ops.render_spheres(C, R[:3]), r"radii_mm: expected \(4,\), one for each sphere, got \(3,\)"),
        (lambda: ops.render_spheres(C, R, cube_mm=0), "cube_mm: expected a positive edge in mm, got 0"),
        (lambda: ops.render_spheres(C, R, size=-1), "size: expected 1 to 8192 pixels, got -1"),
        (lambda: ops.projection_loss(C[0], None, R, D), r"centers_mm: expected \(B, V, J, 3\)"),
        (lambda: ops.projection_loss(C, None, R, D[..., :7]), r"depth_mm: expected \(1, 2, H, H\)"),
        (lambda: ops.projection_loss(C, None, R, D[:, :1]), r"depth_mm: expected \(1, 2, H, H\), got \(1, 1, 8, 8\)"),
        (lambda: ops.projection_loss(C, torch.zeros(1, 2, 4, 4), R, D), r"transforms: expected \(1, 2, 2, 4, 4\)"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
