"""The orthographic camera, pictures of whole hands and heat maps, against the original and by their laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup_fitting.hand import Hand, load_hand
from selfsup_fitting.kernels import ops, reference
from selfsup_fitting.kinematics import forward_kinematics, hand_tensors, skin
from selfsup_fitting.render import depth_maps, heatmaps, mesh_depth, project, sphere_depth, unproject
from selfsup_fitting.synth import draw
from shared.errors import DataError
from tests.selfsup_fitting.test_ops import arrays


@pytest.fixture(scope="module")
def standin() -> Hand:
    return load_hand("standin")


@pytest.fixture
def folder(golden: Path) -> Path:
    return golden / "selfsup_fitting"


def meshes(hand: Hand, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Skinned hands in random poses, their faces, and zooms."""
    draws = draw(7, 0, range(count))
    return skin(forward_kinematics(draws.pose, hand, draws.scale), hand), hand_tensors(hand).faces, draws.zoom


def test_camera_golden(folder: Path) -> None:
    stored = arrays(folder / "camera.npz")
    xyz, zoom = stored["xyz"], stored["rand_f"]
    found = {
        "uvd16": project(xyz, 16),
        "uvd16_scaled": project(xyz, 16, zoom),
        "uvd640_scaled": project(xyz, 640, zoom),
        "xyz_from_uvd16_scaled": unproject(project(xyz, 16, zoom), 16),
    }
    for name, ours in found.items():
        difference = float((ours - stored[name]).abs().max())
        print(f"{name} max diff {difference:.3g}")
        assert difference <= 1e-4
    torch.testing.assert_close(unproject(found["uvd640_scaled"], 640, zoom), xyz, rtol=0, atol=1e-4)


def test_heatmaps_golden(folder: Path) -> None:
    stored = arrays(folder / "camera.npz")
    uvd = stored["uvd16_scaled"]
    maps = heatmaps(uvd)
    depths = depth_maps(maps, uvd[..., 2])
    for name, ours in (("uv", maps), ("d", depths)):
        difference = float((ours[:, ::5] - stored[f"{name}_heatmaps_every_5th"]).abs().max())
        print(f"{name} heat maps max diff {difference:.3g}")
        assert difference <= 1e-5
    one = heatmaps(torch.tensor([3.0, 9.0]))
    assert one[9, 3] == 1  # rows are v
    assert one.argmax() == 9 * 16 + 3
    assert heatmaps(torch.zeros(0, 41, 3)).shape == (0, 41, 16, 16)


def golden_hands(folder: Path, tz: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    hand, stored = load_hand(folder / "hand.npz"), arrays(folder / "raster_hand.npz")
    pose = stored["pose"].clone()
    pose[:, 5] = tz
    return stored, skin(forward_kinematics(pose, hand, stored["scale"]), hand), hand_tensors(hand).faces


@pytest.mark.parametrize(("interpolation", "tz"), [("harmonic", -190), ("linear", -190), ("linear", -10)])
def test_hands_golden(folder: Path, interpolation: ops.Interpolation, tz: int) -> None:
    stored, verts, faces = golden_hands(folder, tz)
    depth = mesh_depth(verts, faces, stored["rand_f"], interpolation=interpolation)
    error = (depth - stored[f"depth64_{interpolation}_tz_m{-tz}"]).abs()
    print(f"{interpolation}, tz {tz}: max diff {error.max():.3g} mm, {(error > 5e-3).float().mean():.3g} beyond 5e-3")
    assert (error > 5e-3).float().mean() <= 1e-3
    assert (depth < 100).float().mean() > 0.1


def test_samples_of_the_large_picture_golden(folder: Path) -> None:
    stored, verts, faces = golden_hands(folder, -190)
    verts_uvd = project(verts, 640, stored["rand_f"])[:2]
    large = ops.rasterize(verts_uvd, faces[:, [1, 0, 2]], 640, 640, interpolation="harmonic").depth.clamp(max=100)
    rows = reference.sample_positions(640, 10, large.device)
    assert rows.tolist() == [10 * i + k for i in range(64) for k in (4, 5)]
    error = (large[:, rows][:, :, rows] - stored["samples128_harmonic_tz_m190"]).abs()
    print(f"samples max diff {error.max():.3g} mm")
    assert (error > 5e-3).float().mean() <= 1e-3


@pytest.mark.parametrize("interpolation", ["linear", "harmonic"])
def test_fused_equals_unfused_on_a_hundred_poses(standin: Hand, interpolation: ops.Interpolation) -> None:
    verts, faces, zoom = meshes(standin, 100)
    turned = faces[:, [1, 0, 2]]
    worst = 0.0
    for part in torch.arange(100).split(10):
        small = mesh_depth(verts[part], faces, zoom[part], interpolation=interpolation)
        large = ops.rasterize(project(verts[part], 640, zoom[part]), turned, 640, 640, interpolation=interpolation)
        positions = reference.sample_positions(640, 10, large.depth.device)
        samples = large.depth[:, positions][:, :, positions]
        assert torch.equal(small, reference.mean_2x2(samples, 100.0))
        clamped = large.depth.clamp(max=100)[:, None]
        reduced = torch.nn.functional.interpolate(clamped, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
        finite = reduced > -1000  # 1/z goes wild where it changes its sign
        worst = max(worst, float((small - reduced)[finite].abs().max()))
    print(f"{interpolation}: fused equals unfused; torch's clamp and reduction max diff {worst:.3g} mm")
    assert worst <= 1e-4


def test_linear_and_harmonic_agree_in_front_of_zero(standin: Hand) -> None:
    verts, faces, zoom = meshes(standin, 32)
    moved = verts - torch.nn.functional.pad(verts[..., 2].amax(1)[:, None, None] + 100, (2, 0))  # z at most -100
    differences = []
    for mesh in (moved, verts):
        linear, harmonic = (mesh_depth(mesh, faces, zoom, interpolation=i) for i in ("linear", "harmonic"))
        differences.append((linear - harmonic).abs()[linear < 99])
    before, around = differences
    roots = (-moved[:, faces, 2]).sqrt()
    bound = float((roots.amax(-1) - roots.amin(-1)).square().max())  # of a face whose corners are so far apart
    share = float((before > 0.5).float().mean())
    print(
        f"linear against harmonic: max diff {before.max():.3g} mm of at most {bound:.3g}, {share:.3g} of the pixels "
        f"beyond 0.5 mm at z < -100; {around.max():.3g} mm around 0 (README, Q1)"
    )
    assert before.max() <= bound + 1e-3
    assert share < 0.005
    assert around.max() > 5


def test_the_winding_is_right_and_left_alone(standin: Hand) -> None:
    verts, faces, _ = meshes(standin, 4)
    before = faces.clone()
    culled, both_sides = mesh_depth(verts, faces), mesh_depth(verts, faces, cull=False)
    assert torch.equal(faces, before)  # the original swaps the columns in place
    inside_out = mesh_depth(verts, faces[:, [1, 0, 2]])
    seen = culled < 100
    assert seen.float().mean() > 0.03
    closed = (culled - both_sides).abs() < 1e-3
    assert closed.float().mean() > 0.99  # a closed mesh seen from outside
    assert (inside_out - culled)[seen & (inside_out < 100)].median() > 3  # its far side


def test_gradient_of_a_hand(standin: Hand) -> None:
    verts, faces, zoom = meshes(standin, 2)
    verts.requires_grad_()
    depth = mesh_depth(verts, faces, zoom)
    (gradient,) = torch.autograd.grad(depth.sum(), verts)
    step = 0.25
    moved = mesh_depth(verts + torch.tensor([0, 0, step]), faces, zoom) - depth
    inside = (depth < 99) & (depth + step < 100)
    assert inside.sum() > 100
    covered = torch.nn.functional.avg_pool2d((depth < 99.9).float(), 1)
    assert gradient[..., 2].sum().item() == pytest.approx((moved.sum() / step).item(), rel=1e-3)
    assert 0.8 * covered.sum() < gradient[..., 2].sum() <= covered.sum() * 1.001


def test_spheres_cover_the_mesh(standin: Hand) -> None:
    from selfsup_fitting.kinematics import pose_spheres

    pose = torch.zeros(1, 26)
    transforms = forward_kinematics(pose, standin)
    spheres = sphere_depth(pose_spheres(transforms, standin), hand_tensors(standin).radius_mm)
    mesh = mesh_depth(skin(transforms, standin), hand_tensors(standin).faces)
    both = (spheres < 100) & (mesh < 100)
    assert both.sum() > 300
    assert (spheres - mesh)[both].abs().mean() < 10


def test_zoom_errors() -> None:
    with pytest.raises(DataError, match=r"zoom: expected \(3,\), one factor for each picture, got \(2,\)"):
        project(torch.zeros(3, 5, 3), 64, torch.ones(2))
    assert np.allclose(project(torch.zeros(2, 1, 3), 64, torch.ones(2))[0, 0], [32, 32, 0])
