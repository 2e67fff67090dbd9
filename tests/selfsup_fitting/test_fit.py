"""Fitting the hand to one frame: the error falls, the files are there, bad input is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsup_fitting.config import FitConfig
from selfsup_fitting.convert import checkpoint_of, save_checkpoint
from selfsup_fitting.fit import fit, fit_pose, fit_spheres, main, plausibility, pose_to_spheres, residual, start_poses
from selfsup_fitting.hand import load_hand
from selfsup_fitting.kinematics import forward_kinematics, skin
from selfsup_fitting.losses import bone_length, collision, projection
from selfsup_fitting.model import Estimator
from selfsup_fitting.multiview import rigid_inverse, transform
from selfsup_fitting.render import mesh_depth, sphere_depth
from selfsup_fitting.viewer_scene import HandScene, read_crop, read_pose
from shared.errors import DataError

HAND = load_hand("standin")
RADII = torch.tensor(HAND.sphere_radius_mm).float()


@pytest.fixture(scope="module")
def target() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pose, its spheres and the crop they draw."""
    pose = start_poses(3, 5, HAND)[2:]
    spheres = pose_to_spheres(pose, HAND)[0]
    return pose, spheres, sphere_depth(spheres, RADII)


def disturbed(pose: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    moved = pose.repeat(3, 1) + 0.12 * torch.randn(3, 26, generator=generator)
    moved[:, 3:6] += 6 * torch.randn(3, 3, generator=generator)
    return moved


def test_pose_is_found_again(target: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    pose, truth, depth = target
    start = disturbed(pose)
    found, left, trace = fit_pose(depth, HAND, start, steps=120)
    before = (pose_to_spheres(start, HAND) - truth).norm(dim=-1).mean(-1)
    after = (pose_to_spheres(found, HAND) - truth).norm(dim=-1).mean(-1)
    best = int(left.argmin())
    print(f"spheres: {float(before.mean()):.1f} -> {float(after[best]):.2f} mm, loss {trace[0]:.0f} -> {trace[-1]:.1f}")
    assert float(after[best]) < 0.3 * float(before.mean())
    assert trace[-1] < 0.1 * trace[0]
    assert trace[-1] == pytest.approx(float(left[best]))


def test_spheres_are_found_again(target: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    pose, _, depth = target
    start = pose_to_spheres(disturbed(pose), HAND)
    found, left, trace = fit_spheres(depth, HAND, start, steps=80)
    assert found.shape == start.shape
    assert float(left.min()) < 0.2 * float(residual(start, RADII, depth).min())
    assert trace[-1] < trace[0]
    lengths = torch.tensor(HAND.bone_lengths_mm()).float()
    assert float(plausibility(found, lengths).sum()) < 3 * 400  # the hand stays one


def test_plausibility_of_each_is_the_losses(target: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    spheres = 0.7 * pose_to_spheres(disturbed(target[0]), HAND)
    lengths = torch.tensor(HAND.bone_lengths_mm()).float()
    views = spheres[:, None]
    both = collision(views, reduction="reference") + len(views) * bone_length(views, lengths)
    each = plausibility(spheres, lengths)
    assert each.shape == (3,)
    torch.testing.assert_close(each.sum(), both)


@pytest.mark.parametrize("lr", [1e30, 3.0])
def test_a_learning_rate_that_is_too_large_ends_no_worse_than_it_began(
    target: tuple[torch.Tensor, torch.Tensor, torch.Tensor], lr: float
) -> None:
    pose, _, depth = target
    start = disturbed(pose)
    spheres, lengths = pose_to_spheres(start, HAND), torch.tensor(HAND.bone_lengths_mm()).float()
    before = residual(spheres, RADII, depth) + plausibility(spheres, lengths)
    found, left, trace = fit_pose(depth, HAND, start, steps=4, lr=lr)
    after = pose_to_spheres(found, HAND)
    assert bool((residual(after, RADII, depth) + plausibility(after, lengths) <= before + 1e-3).all())
    torch.testing.assert_close(residual(after, RADII, depth), left)
    assert trace[-1] == pytest.approx(float(left.min()))


def test_results_do_not_replace_the_picture(
    target: tuple[torch.Tensor, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    for name in ("frame.png", "x_crop.npz"):
        (tmp_path / name).write_bytes(b"a picture")
    with pytest.raises(DataError, match=r"frame\.png: would be overwritten by the results -- give another --out"):
        fit(FitConfig(image=[str(tmp_path / "frame.png")], out=str(tmp_path)))
    options = FitConfig(image=[str(tmp_path / "x.npy")], init=str(tmp_path / "x_crop.npz"), out=str(tmp_path))
    with pytest.raises(DataError, match=r"x_crop\.npz: would be overwritten"):
        fit(options)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"a picture"}


def test_the_viewer_shows_a_fit(
    target: tuple[torch.Tensor, torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "frame.npy", target[2].numpy())
    result = fit(FitConfig(image=[str(tmp_path / "frame.npy")], steps=2, starts=2, out=str(tmp_path / "out")))
    pose, size = read_pose(tmp_path / "out/frame_fit.json")
    assert size == 0.9
    np.testing.assert_allclose(pose[3:], result["pose"][3:])
    np.testing.assert_allclose(np.sin(pose[:3]), np.sin(result["pose"][:3]), atol=1e-6)
    np.testing.assert_array_equal(read_crop(tmp_path / "out/frame_crop.npz"), target[2].numpy())
    scene = HandScene(HAND, crop_mm=read_crop(tmp_path / "out/frame_crop.npz"))
    view = scene.look(pose, size)
    spheres = json.loads((tmp_path / "out/frame.json").read_text())["spheres_mm"]
    np.testing.assert_allclose(view.centers_mm, spheres, atol=0.01)
    assert view.terms["model to data, mm^2"] + 500 * view.terms["data to model, mm"] == pytest.approx(
        result["loss"], rel=1e-3
    )
    far = result | {"pose": [7.0, 0.0, 0.0, 90.0, *[0.0] * 22]}  # more than a turn, beyond the slider
    (tmp_path / "far.json").write_text(json.dumps(far))
    pose, _ = read_pose(tmp_path / "far.json")
    assert pose[0] == pytest.approx(7 - 2 * np.pi)
    assert pose[3] == 90
    for bad in ([0.0] * 25, [*[0.0] * 25, float("nan")], [*[0.0] * 25, 1e9]):
        (tmp_path / "far.json").write_text(json.dumps(far | {"pose": bad}))
        with pytest.raises(DataError, match=r"far\.json: (this is no pose|thumb flexion 3 is)"):
            read_pose(tmp_path / "far.json")


def test_candidates_do_not_touch_one_another(target: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    pose, _, depth = target
    start = disturbed(pose)
    together, _, _ = fit_pose(depth, HAND, start, steps=10)
    alone, _, _ = fit_pose(depth, HAND, start[1:2], steps=10)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0.02)


def test_target_spheres_instead_of_a_crop(target: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    pose, truth, depth = target
    found, left, _ = fit_pose(depth, HAND, disturbed(pose), steps=150, target_mm=truth)
    off = (pose_to_spheres(found, HAND) - truth).norm(dim=-1).mean(-1)
    assert float(off[left.argmin()]) < 2.0


def test_starting_poses_have_the_palm_in_the_middle() -> None:
    spheres = pose_to_spheres(start_poses(8, 0, HAND), HAND)
    assert float(spheres[:, 2].abs().max()) < 1e-2
    assert not torch.equal(start_poses(2, 0, HAND), start_poses(2, 1, HAND))


@pytest.mark.parametrize("parameters", ["pose", "spheres"])
@pytest.mark.parametrize("with_init", [False, True])
def test_program(
    target: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parameters: str,
    with_init: bool,
) -> None:
    np.save(tmp_path / "frame.npy", target[2].numpy())
    words = ["fit", str(tmp_path / "frame.npy"), "--parameters", parameters, "--steps", "5", "--starts", "2"]
    if with_init:
        torch.manual_seed(0)
        save_checkpoint(tmp_path / "start.pt", checkpoint_of(Estimator(1, 64)))
        words += ["--init", str(tmp_path / "start.pt")]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "out")])
    main()
    result = json.loads((tmp_path / "out/frame_fit.json").read_text())
    assert ("pose" in result) == (parameters == "pose")
    assert result["starts"] == (1 if with_init else 2)
    assert len(result["losses"]) == 6
    hand = json.loads((tmp_path / "out/frame.json").read_text())
    assert np.array(hand["spheres_mm"]).shape == (41, 3)
    assert hand["joints_uv"] is None  # a bare crop has no camera
    assert (tmp_path / "out/frame.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one depth picture, got 0"),
        ({"image": ["a.png", "b.png"]}, "expected one depth picture, got 2"),
        ({"image": ["a.png"], "steps": 0}, "--steps and --starts"),
        ({"image": ["a.png"], "lr": 0.0}, "--lr must be positive"),
        ({"image": ["none.png"]}, "no such picture"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(FitConfig(**options))  # type: ignore[arg-type]


def test_three_views_of_a_mesh_pull_the_pose_to_its_place() -> None:
    pose = start_poses(6, 5, HAND)[5:]
    angles = torch.tensor([0.0, 0.9, -0.9])
    T = torch.eye(4).repeat(1, 3, 1, 1)
    T[0, :, 0, 0] = T[0, :, 2, 2] = angles.cos()
    T[0, :, 0, 2], T[0, :, 2, 0] = angles.sin(), -angles.sin()

    def seen(points: torch.Tensor) -> torch.Tensor:
        """(1, 3, P, 3) of (1, P, 3) in the first view."""
        return transform(rigid_inverse(T), points[:, None].expand(-1, 3, -1, -1))

    truth = seen(pose_to_spheres(pose, HAND))
    verts = seen(skin(forward_kinematics(pose, HAND, torch.full((1, 3), 0.9)), HAND))
    hand_only = HAND.verts_mm[:, 0] < HAND.sphere_mm[5, 0] + 20  # no sphere stands for the forearm
    depth = mesh_depth(verts[0], torch.from_numpy(HAND.faces[hand_only[HAND.faces].all(1)]))[None]
    unit = torch.ones(26)
    unit[3:6] = 30.0
    values = (disturbed(pose)[:1] / unit).requires_grad_()
    optimizer = torch.optim.Adam([values], lr=0.02)
    losses, errors = [], []
    for _ in range(80):
        optimizer.zero_grad()
        spheres = seen(pose_to_spheres(values * unit, HAND))
        loss, _ = projection(spheres, T, RADII, depth)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        errors.append(float((spheres.detach() - truth).norm(dim=-1).mean()))
    print(f"projection {losses[0]:.0f} -> {losses[-1]:.0f}, spheres {errors[0]:.1f} -> {errors[-1]:.1f} mm")
    assert losses[-1] < 0.6 * losses[0]
    assert errors[-1] < 0.6 * errors[0]
