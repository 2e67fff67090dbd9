"""C++ and CUDA against the plain torch reference on drawn cases; gradients; torch.library and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfsup_fitting.kernels import ops
from tests.selfsup_fitting.test_ops import soup, worst


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def native(request: pytest.FixtureRequest) -> str:
    """A device whose native kernels are there."""
    if isinstance(why := ops.KERNELS.load(request.param), str):
        pytest.skip(f"{request.param} kernels: {why}")
    return str(request.param)


Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


@pytest.fixture
def both(native: str, monkeypatch: pytest.MonkeyPatch) -> Both:
    """Runs a function with the native kernels and with the reference."""

    def run(call: Callable[[], Any]) -> tuple[Any, Any]:
        monkeypatch.setenv("HANDPOSE_KERNELS", native)
        ours = call()
        monkeypatch.setenv("HANDPOSE_KERNELS", "reference")
        return ours, call()

    return run


def triangles(device: str, faces: int = 200, size: float = 60) -> tuple[Tensor, Tensor]:
    """Random triangles, among them ones without area, with a NaN, and very far away ones; depths of both signs."""
    verts, index = soup(3, faces, size, torch.float32)
    verts[..., 2] -= 50
    if faces >= 5:
        verts[:, 3] = verts[:, 4]
        verts[0, 7, 1] = float("nan")
        verts[1, 10, 0] = 3e6
        verts[0, 13, 2] = float("inf")
        verts[:, -6:] = verts[:, -6:].round()  # samples on corners and edges
    return verts.to(device), index.to(device)


def scene(device: str, frames: int = 2, spheres: int = 41, size: int = 64) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(spheres + size)
    centers = torch.rand((frames, 3, spheres, 3), generator=draw) * 160 - 80
    turns = torch.linalg.qr(torch.randn(frames, 3, 3, 3, 3, generator=draw))[0]
    pairs = torch.zeros(frames, 3, 3, 4, 4)
    pairs[..., :3, :3], pairs[..., 3, 3] = turns, 1
    pairs[..., :3, 3] = 10 * torch.randn(frames, 3, 3, 3, generator=draw)
    measured = torch.rand(frames, 3, size, size, generator=draw) < 0.3
    depth = torch.where(measured, 200 * torch.rand(frames, 3, size, size, generator=draw) - 90, 100)
    values = {
        "centers_mm": centers,
        "transforms": pairs,
        "radii_mm": 8 + 16 * torch.rand(spheres, generator=draw),
        "depth_mm": depth,
    }
    return {name: value.to(device) for name, value in values.items()}


# ------------------------------------------------------------------------------------------------- equal results


@pytest.mark.parametrize("faces", [0, 1, 31, 32, 33, 200])
@pytest.mark.parametrize("interpolation", ["linear", "harmonic"])
def test_meshes_equal_the_reference(native: str, both: Both, faces: int, interpolation: ops.Interpolation) -> None:
    verts, index = triangles(native, faces)
    covered = 0
    for width, height in ((60, 60), (1, 1), (31, 33)):
        for cull in (True, False):
            options: dict[str, Any] = {"interpolation": interpolation, "cull": cull}
            ours, theirs = both(lambda w=width, h=height, o=options: ops.rasterize(verts, index, w, h, **o))
            assert torch.equal(ours.depth, theirs.depth)
            assert torch.equal(ours.face, theirs.face)
            covered += int((ours.face >= 0).sum())
    for size, factor in ((6, 10), (15, 4), (30, 2), (1, 60)):
        ours, theirs = both(
            lambda s=size, f=factor: ops.rasterize_resized(
                verts, index, size=s, factor=f, interpolation=interpolation, cull=False
            )
        )
        assert torch.equal(ours, theirs)
    print(f"{native}: {faces} faces, {covered} samples equal")
    assert covered > 0 or faces == 0


@pytest.mark.parametrize("interpolation", ["linear", "harmonic"])
def test_gradients_of_meshes_equal_the_reference(native: str, both: Both, interpolation: ops.Interpolation) -> None:
    verts, index = triangles(native)
    verts[..., 2] = verts[..., 2].abs() + 1
    verts.requires_grad_()
    pull = torch.randn(2, 60, 60, generator=torch.Generator().manual_seed(0)).to(native)

    def gradient() -> list[Tensor]:
        large = ops.rasterize(verts, index, 60, 60, interpolation=interpolation, background=100.0).depth
        small = ops.rasterize_resized(verts, index, size=6, interpolation=interpolation, far=60.0)
        losses = (large * pull).sum(), (small * pull[:, :6, :6]).sum()
        return [torch.autograd.grad(loss, verts)[0].nan_to_num() for loss in losses]

    for ours, theirs in zip(*both(gradient), strict=True):
        difference = worst(ours, theirs)
        print(f"{native}, {interpolation}: gradient max diff {difference:.3g} of the largest")
        assert difference <= 1e-5
        assert theirs.abs().sum() > 0


@pytest.mark.parametrize(("spheres", "size"), [(1, 1), (2, 31), (41, 64), (31, 33), (33, 32)])
def test_spheres_equal_the_reference(native: str, both: Both, spheres: int, size: int) -> None:
    values = scene(native, 2, spheres, size)
    centers = values["centers_mm"].requires_grad_()
    pull = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(native)

    def render() -> tuple[Tensor, ...]:
        depth, winner = ops.render_spheres(centers, values["radii_mm"], size=size)
        return depth, winner, torch.autograd.grad((depth * pull).sum(), centers)[0]

    ours, theirs = both(render)
    picture = float((ours[0] - theirs[0]).detach().abs().max())
    difference = float((ours[2] - theirs[2]).abs().max() / theirs[2].abs().max().clamp_min(1e-30))
    print(f"{native}: {spheres} spheres, {size} x {size}: max diff {picture:.3g} mm, gradient {difference:.3g}")
    assert picture <= 2e-5  # torch's square root is not correctly rounded everywhere
    assert torch.equal(ours[1], theirs[1])
    assert difference <= 1e-5


@pytest.mark.parametrize(("frames", "spheres", "size"), [(0, 4, 8), (1, 1, 1), (2, 31, 33), (1, 41, 64)])
@pytest.mark.parametrize("multiview", [True, False])
def test_projection_equals_the_reference(
    native: str, both: Both, frames: int, spheres: int, size: int, multiview: bool
) -> None:
    values = scene(native, frames, spheres, size)
    if not multiview:
        values["transforms"] = None
    centers = values["centers_mm"].requires_grad_()

    def losses() -> list[Tensor]:
        terms = ops.projection_loss(**values)
        weights = torch.linspace(1, 2, terms.data_to_model.numel(), device=native).view_as(terms.data_to_model)
        gradients = [torch.autograd.grad((term * weights).sum(), centers, retain_graph=True)[0] for term in terms]
        return [*(term.detach() for term in terms), *gradients]

    ours, theirs = both(losses)
    found = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) if b.numel() else 0.0
        for a, b in zip(ours, theirs, strict=True)
    ]
    told = ", ".join(f"{value:.3g}" for value in found)
    print(f"{native} {frames} x {spheres} x {size}: terms and gradients max diff {told}")
    assert all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    assert max(found) <= 1e-5


def test_non_contiguous_input(native: str, both: Both) -> None:
    verts, index = triangles(native)
    values = scene(native)

    def spread(value: Tensor) -> Tensor:
        return torch.stack([value, value], dim=-1)[..., 1]

    def everything(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        centers = values["centers_mm"].clone().requires_grad_()
        moved = {name: change(centers if name == "centers_mm" else value) for name, value in values.items()}
        terms = ops.projection_loss(**moved)
        depth, winner = ops.render_spheres(moved["centers_mm"], moved["radii_mm"])
        loss = terms.model_to_data.sum() + terms.data_to_model.sum() + depth.mT.sum()
        raster = ops.rasterize(change(verts), change(index), 60, 60)
        crop = ops.rasterize_resized(change(verts), change(index), size=6)
        return [*raster, crop, depth, winner, *terms, torch.autograd.grad(loss, centers)[0]]

    assert not spread(verts).is_contiguous()
    for odd, even in zip(both(lambda: everything(spread)), both(lambda: everything(lambda value: value)), strict=True):
        for a, b in zip(odd, even, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_repeated_and_threaded_runs_give_the_same_bits(native: str) -> None:
    verts, index = triangles(native)
    verts = verts.nan_to_num(0.0, 0.0, 0.0).repeat(10, 1, 1).requires_grad_()
    values = scene(native, 8)
    centers = values["centers_mm"].requires_grad_()

    def everything() -> list[Tensor]:
        terms = ops.projection_loss(**values)
        depth, _ = ops.render_spheres(centers, values["radii_mm"])
        loss = terms.model_to_data.sum() + terms.data_to_model.sum() + depth.square().sum()
        raster = ops.rasterize(verts, index, 60, 60)
        crop = ops.rasterize_resized(verts.detach(), index, size=6)
        return [*raster, crop, depth, *terms, torch.autograd.grad(loss, centers)[0]]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = everything()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_the_winner_is_not_kept_where_no_gradient_is_wanted(native: str, both: Both) -> None:
    verts, index = triangles(native)
    space = torch.ops.selfsup_fitting
    for crop, face in both(lambda: space.rasterize_resized(verts, index, 6, 10, False, True, 100.0, False)):
        assert face.numel() == 0
        assert torch.equal(crop, space.rasterize_resized(verts, index, 6, 10, False, True, 100.0, True)[0])


@pytest.mark.gpu
def test_bad_faces_on_the_gpu_are_left_out() -> None:
    verts, index = triangles("cuda")
    wild = torch.cat([index, index[:1] + 10**6, index[:1] - 10**6])
    assert torch.equal(ops.rasterize(verts, wild, 60, 60).face, ops.rasterize(verts, index, 60, 60).face)


# ------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("interpolation", ["linear", "harmonic"])
def test_gradcheck_of_the_rasteriser(interpolation: ops.Interpolation) -> None:
    verts, faces = soup(0, 5, 12)
    verts = verts[:1].requires_grad_()
    options: dict[str, Any] = {"interpolation": interpolation, "cull": False}

    def resized(values: Tensor) -> Tensor:
        return ops.rasterize_resized(values, faces, size=3, factor=4, far=65.0, **options)

    def weights(values: Tensor) -> Tensor:
        return ops.barycentric_weights(values, faces, ops.rasterize(values, faces, 6, 6, **options).face)

    depth = ops.rasterize(verts, faces, 12, 12, **options).depth
    assert ((depth > 65) & (depth < 1000)).any()  # the clamp is met
    assert torch.autograd.gradcheck(lambda v: ops.rasterize(v, faces, 12, 12, **options).depth, verts)
    assert torch.autograd.gradcheck(resized, verts)
    assert torch.autograd.gradcheck(weights, verts)


def test_gradcheck_of_spheres_and_projection() -> None:
    draw = torch.Generator().manual_seed(0)
    centers = (torch.rand((1, 2, 5, 3), dtype=torch.float64, generator=draw) * 60 - 30).requires_grad_()
    radii = torch.linspace(8, 16, 5, dtype=torch.float64)
    captured = torch.rand((1, 2, 16, 16), dtype=torch.float64, generator=draw) * 130 - 10
    pairs = torch.eye(4, dtype=torch.float64).repeat(1, 2, 2, 1, 1)
    pairs[0, 0, 1, :3, 3] = torch.tensor([3.0, -4.0, 5.0])
    pairs[0, 1, 0, :3, :3] = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=draw))[0]
    assert torch.autograd.gradcheck(lambda c: ops.render_spheres(c, radii, size=16, cube_mm=100.0)[0], centers)
    for views in (pairs, None):
        terms = lambda c, v=views: tuple(ops.projection_loss(c, v, radii, captured, cube_mm=100.0))  # noqa: E731
        assert torch.autograd.gradcheck(terms, centers)


# ------------------------------------------------------------------------------------------------- torch.library


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_opcheck(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDPOSE_KERNELS", backend)
    space = torch.ops.selfsup_fitting
    verts, index = soup(1, 6, 20, torch.float32)
    verts.requires_grad_()
    values = scene("cpu", 1, 3, 8)
    flat = values["centers_mm"].flatten(0, 1).requires_grad_()
    radii, depth = values["radii_mm"], values["depth_mm"].flatten(0, 1)
    _, winner = ops.render_spheres(flat.detach(), radii, size=8)
    face = ops.rasterize(verts.detach(), index, 20, 20).face
    grad = torch.ones(face.shape)
    for operator, arguments in (
        (space.rasterize, (verts, index, 20, 20, False, True, 1000.0)),
        (space.rasterize, (verts.detach()[:, ::2].repeat(1, 2, 1), index, 3, 2, True, False, 10.0)),
        (space.rasterize_resized, (verts, index, 5, 4, False, True, 70.0, True)),
        (space.rasterize_resized, (verts.detach(), index, 5, 4, True, True, 70.0, False)),
        (space.rasterize_backward, (grad, verts.detach(), index, face, 20, 20, 1, False, None)),
        (space.render_spheres, (flat, radii, 8, 300.0)),
        (space.render_spheres_backward, (torch.ones(3, 8, 8), flat.detach(), radii, winner, 300.0)),
        (space.projection_terms, (flat, radii, depth, torch.tensor([0, 2, 1]), 300.0)),
    ):
        torch.library.opcheck(operator, arguments)


def test_a_fit_compiles_without_a_break() -> None:
    verts, index = soup(1, 6, 40, torch.float32)
    values = scene("cpu", 1, 5, 16)
    offset = torch.zeros(3, requires_grad=True)

    def step() -> Tensor:
        terms = ops.projection_loss(values["centers_mm"] + offset, *(values[n] for n in list(values)[1:]))
        crop = ops.rasterize_resized(verts + offset, index, size=4)
        picture, _ = ops.render_spheres(values["centers_mm"] + offset, values["radii_mm"], size=16)
        return terms.model_to_data.sum() + terms.data_to_model.sum() + crop.sum() + picture.sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), step())
    torch.testing.assert_close(*(torch.autograd.grad(loss, offset)[0] for loss in (compiled(), step())))
