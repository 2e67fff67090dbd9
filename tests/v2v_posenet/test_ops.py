"""The kernels of V2V-PoseNet against the measurements of the port, by their laws, and what they say about bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.errors import DataError
from tests.golden.fill import uniform
from v2v_posenet.kernels import ops, reference

NS = "v2v_posenet/public/"
BACKENDS = ["reference", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once per implementation; gives the device its tensors belong on."""
    if request.param == "cpu" and isinstance(ops.KERNELS.load("cpu"), str):
        pytest.skip("the C++ kernels are not built: make kernels")
    monkeypatch.setenv("HANDPOSE_KERNELS", request.param)
    return "cuda" if request.param == "cuda" else "cpu"


def f64(value: object) -> Tensor:
    return torch.as_tensor(np.asarray(value), dtype=torch.float64)


def scene(crop: np.ndarray, box: object = None, **changes: Any) -> dict[str, Any]:
    """Arguments of voxelize for one crop; the cube has voxels of 2 mm around (0, 0, 300), nothing is moved."""
    height, width = crop.shape
    arguments = {
        "depth": torch.from_numpy(crop.astype(np.float32).reshape(-1).copy()),
        "boxes_ltrb": torch.tensor([[0, 0, width, height] if box is None else box]),
        "image_wh": torch.tensor([[width, height]]),
        "camera": f64([[300.0, 300.0, width / 2, height / 2]]),
        "ref_mm": f64([[0.0, 0.0, 300.0]]),
        "cube_mm": f64([176.0]),
        "scale": f64([1.0]),
        "angle_rad": f64([0.0]),
        "shift": f64([[4.0, 4.0, 4.0]]),
        "max_depth_mm": f64([700.0]),
        "y_up": True,
        "pixel_origin": 0,
    }
    return arguments | changes


def voxelize(device: str, arguments: dict[str, Any]) -> Tensor:
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return ops.voxelize(**moved).cpu()


def occupied(grids: Tensor) -> list[tuple[int, int, int]]:
    return [tuple(index) for index in grids[0, 0].nonzero().tolist()]


def golden_scene(golden: Path, ref: object = None) -> dict[str, Any]:
    z = np.load(golden / "v2v_posenet" / "voxelize.npz")
    return scene(
        z["depth_crop"],
        z["bbox_ltrb"].tolist(),
        image_wh=torch.from_numpy(z["image_wh"])[None],
        camera=f64([[*z["focal"], 160.0, 120.0]]),
        ref_mm=f64([z["refpoint"] if ref is None else ref]),
        cube_mm=f64([z["cubic_size"]]),
        max_depth_mm=f64([z["max_depth"]]),
        pixel_origin=1,
    )


def moves(case: np.ndarray, inverted: bool = False, author: bool = False) -> dict[str, Tensor]:
    """Scale, angle and shift of a row new_size, angle, t."""
    scale = 100.0 / case[0] if inverted else case[0] / 100.0
    return {"scale": f64([scale]), "angle_rad": f64([case[1]]), "shift": f64([case[2:] - (1.0 if author else 0.0)])}


# ------------------------------------------------------------------------------------------------- measurements


@pytest.mark.parametrize("variant", ["port", "integral"])
def test_voxels_and_joints_of_the_port(golden: Path, device: str, variant: str) -> None:
    z = np.load(golden / "v2v_posenet" / "voxelize.npz")
    frame = golden_scene(golden)
    differ, distance = 0, 0.0
    for i, case in enumerate(z["cases"]):
        moved = moves(case, inverted=variant == "integral")
        voxels = voxelize(device, frame | moved).flatten().nonzero()[:, 0].numpy()
        differ += len(np.setxor1d(voxels, z[f"vox_{variant}_{i}"]))
        joints = f64(z["joints"])[None].to(device)
        g = ops.joint_coordinates(joints, frame["ref_mm"], frame["cube_mm"], **moved).cpu()
        distance = max(distance, np.abs(g[0].numpy() - z[f"joint_coord_{variant}_{i}"]).max())
    print(f"{variant}: voxels that differ {differ}, joints max diff {distance:.3g} fine voxels")
    assert differ == 0
    assert distance <= 1e-9


def test_floor_differs_from_truncation_as_measured(golden: Path, device: str) -> None:
    z = np.load(golden / "v2v_posenet" / "voxelize.npz")
    frame = golden_scene(golden)
    for case, counts in zip(z["cases"], z["n_voxels_differ_if_floor"], strict=True):
        for inverted, count in zip((False, True), counts, strict=True):
            arguments = frame | moves(case, inverted)
            trunc, floor = (voxelize(device, arguments | {"rounding": name}) for name in ("trunc", "floor"))
            assert int((trunc != floor).sum()) == count


def test_background_plane_of_the_port(golden: Path, device: str) -> None:
    z = np.load(golden / "v2v_posenet" / "voxelize.npz")
    voxels = voxelize(device, golden_scene(golden, z["background_refpoint"])).flatten().nonzero()[:, 0].numpy()
    print(f"voxels of the background plane that differ: {len(np.setxor1d(voxels, z['background_vox']))}")
    np.testing.assert_array_equal(voxels, z["background_vox"])


def test_author_mode(golden: Path, device: str) -> None:
    z = np.load(golden / "v2v_posenet" / "author_mode.npz")
    frame = golden_scene(golden) | {"pixel_origin": 0, "author": True}
    differ, distance = 0, 0.0
    for i, case in enumerate(z["cases"]):
        moved = moves(case, author=True)
        voxels = voxelize(device, frame | moved).flatten().nonzero()[:, 0].numpy()
        differ = max(differ, len(np.setxor1d(voxels, z[f"vox_{i}"])))
        joints = f64(z["joints"])[None].to(device)
        g = ops.joint_coordinates(joints, frame["ref_mm"], frame["cube_mm"], **moved, author=True).cpu()
        distance = max(distance, np.abs(g[0].numpy() / 2 - z[f"target_peak_{i}"]).max())
    cells = torch.from_numpy(z["decode_index"])[None].to(device)
    world = ops.decode(cells, f64(z["refpoint"])[None], f64([z["cubic_size"]]), grid=88, mode="author").cpu()
    decoded = np.abs(world[0].numpy() - z["decode_world"]).max()
    print(
        f"author: voxels that differ at most {differ}, joints max diff {distance:.3g}, decoded max diff {decoded:.3g}"
    )
    assert differ == 0
    assert distance <= 1e-9
    assert decoded <= 1e-9


def test_gaussian_targets_of_the_port(golden: Path, device: str) -> None:
    z = np.load(golden / "v2v_posenet" / "heatmap.npz")
    worst, worst_sum = 0.0, 0.0
    for i, case in enumerate(z["cases"]):
        joints = f64(z["joints_with_two_outside" if i == 0 else "joints"])[None].to(device)
        g = ops.joint_coordinates(joints, f64(z["refpoint"])[None], f64([z["cubic_size"]]), **moves(case))
        maps = ops.gaussian_heatmaps(g / 2)[0]
        index, top = ops.argmax3d(maps[None])
        flat = (index[0, :, 0] * 44 + index[0, :, 1]) * 44 + index[0, :, 2]
        seen = z[f"max_{i}"] > 1e-15  # the maps of joints far outside vanish in float32
        np.testing.assert_array_equal(flat.cpu().numpy()[seen], z[f"argmax_{i}"][seen])
        maps = maps.cpu().double().numpy()
        pairs = [(top[0].cpu().numpy(), z[f"max_{i}"]), (maps[1, :, 20, 20], z[f"joint1_x{i}"])]
        if f"stride4_{i}" in z:
            pairs.append((maps[:, ::4, ::4, ::4], z[f"stride4_{i}"]))
        if i == len(z["cases"]) - 1:
            a, b, c = z["joint7_window_start"]
            pairs.append((maps[7, a : a + 11, b : b + 11, c : c + 11], z["joint7_window"]))
        worst = max(worst, *(np.abs(ours - theirs).max() for ours, theirs in pairs))
        sums = maps.sum(axis=(1, 2, 3))
        worst_sum = max(worst_sum, (np.abs(sums - z[f"sum_{i}"]) / np.maximum(z[f"sum_{i}"], 1e-12)).max())
    print(f"Gaussian targets max diff {worst:.3g}, sums max relative diff {worst_sum:.3g}")
    assert worst <= 1e-6
    assert worst_sum <= 1e-5


def test_trilinear_targets_of_the_port(golden: Path) -> None:
    z = np.load(golden / "v2v_posenet" / "onehot.npz")
    worst, worst_value = 0.0, 0.0
    for i, case in enumerate(z["cases"]):
        ref, cube = f64(z["refpoint"])[None], f64([z["cubic_size"]])
        g = ops.joint_coordinates(f64(z["joints"])[None], ref, cube, **moves(case, inverted=True))
        cells = ops.clip_cells(g / 2, 44)
        worst = max(worst, np.abs(cells[0].numpy() - z[f"coord_{i}"]).max())
        flat, weights = reference.corner_weights(cells, (44, 44, 44))
        maps = torch.zeros(cells.shape[1], 44**3, dtype=torch.float64).scatter_(1, flat[0], weights[0])
        j, x, y, k = z[f"nonzero_index_{i}"].T
        expected = np.zeros((cells.shape[1], 44, 44, 44))
        expected[j, x, y, k] = z[f"nonzero_value_{i}"]
        worst_value = max(worst_value, np.abs(maps.numpy().reshape(expected.shape) - expected).max())
        if i == 0:
            world = ops.decode(cells, ref, cube, grid=88, mode="integral")
            back = np.abs(world[0].numpy() - z["coord_0_back_to_world"]).max()
    print(f"trilinear targets: coordinates max diff {worst:.3g}, weights {worst_value:.3g}, back to mm {back:.3g}")
    assert worst <= 1e-9
    assert worst_value <= 1e-6
    assert back <= 1e-6


def test_decoding_of_the_port(golden: Path, device: str) -> None:
    z = np.load(golden / "v2v_posenet" / "decode.npz")
    maps = torch.from_numpy(uniform(NS + "decode/heatmap", (2, 21, 44, 44, 44))).to(device)
    index, top = ops.argmax3d(maps)
    np.testing.assert_array_equal(index.cpu(), z["argmax_no_half"])
    assert torch.equal(top, maps.amax(dim=(2, 3, 4)))
    refs = f64(z["refpoints"][:, 0])
    for cube in (200, 250):
        world = ops.decode(index, refs, f64([cube, cube]), grid=88).cpu()
        difference = np.abs(world.numpy() - z[f"world_cubic{cube}"]).max()
        print(f"arg-max, cube {cube}: max diff {difference:.3g} mm")
        assert difference <= 1e-6

    logits = torch.from_numpy(uniform(NS + "decode/logits", (2, 21, 44, 44, 44), -1, 1) * 15).to(device)
    coords, lse = ops.soft_argmax(logits)
    world = ops.decode(coords, refs, f64([200, 200]), grid=88, mode="integral").cpu()
    coord_64 = np.abs(coords.cpu().numpy() - z["soft_coord_f64"]).max()
    lse_64 = np.abs(lse.cpu().numpy() - z["soft_logsumexp"]).max()
    world_200 = np.abs(world.numpy() - z["soft_world_cubic200"]).max()
    print(f"soft-argmax max diff {coord_64:.3g} cells, logsumexp {lse_64:.3g}, decoded {world_200:.3g} mm")
    assert coord_64 <= 1e-4
    assert lse_64 <= 1e-4
    assert world_200 <= 1e-2  # the stored ones come from a float32 run

    rect = torch.from_numpy(uniform(NS + "decode/rect_logits", (1, 3, 4, 6, 8), -3, 3)).to(device)
    difference = np.abs(ops.soft_argmax(rect)[0].cpu().numpy() - z["rect_soft_coord"]).max()
    print(f"soft-argmax of 4 x 6 x 8 max diff {difference:.3g}")
    assert difference <= 1e-5


def test_mixed_loss_of_the_port(golden: Path, device: str) -> None:
    z = np.load(golden / "v2v_posenet" / "loss.npz")
    n, k, r = z["shape"].tolist()
    logits = torch.from_numpy(uniform(NS + "loss/heatmap", (n, k, r, r, r), -4, 4)).to(device).requires_grad_()
    target = torch.from_numpy(uniform(NS + "loss/target_coord", (n, k, 3), 0, r - 2)).to(device)
    for weight in (0.5, 0.05, 1.0, 0.0):
        logits.grad = None
        result = ops.integral_loss(logits, target, weight=weight)
        result.loss.backward()
        gradient, expected = logits.grad, z[f"mixed_{weight}_grad"]
        loss = abs(result.loss.item() / z[f"mixed_{weight}"] - 1)
        grad = np.abs(gradient.cpu().numpy() - expected).max() / np.abs(expected).max()
        print(f"mixed loss, weight {weight}: max relative diff {loss:.3g}, gradient {grad:.3g}")
        assert loss <= 1e-5
        assert grad <= 1e-4
    coords = np.abs(result.coords.detach().cpu().numpy() - z["pred_coord"]).max()
    print(f"mixed loss, coordinates max diff {coords:.3g}")
    assert coords <= 1e-4


# ------------------------------------------------------------------------------------------------- hand-made cases


def one_pixel(column: int, row: int, z: float) -> np.ndarray:
    image = np.zeros((200, 200), np.float32)
    image[row, column] = z
    return image


def test_a_pixel_goes_where_geometry_says(device: str) -> None:
    # x = 20.5 mm, 10 voxels of 2 mm right of the centre and a bit; y = 10.5 mm, 5 voxels up; z = 5 mm, 2 voxels behind
    image = one_pixel(120, 90, 305.0)
    camera = f64([[305.0, 305.0, 99.5, 100.5]])
    assert occupied(voxelize(device, scene(image, camera=camera))) == [(54, 49, 46)]
    assert occupied(voxelize(device, scene(image, camera=camera, y_up=False))) == [(54, 38, 46)]
    assert occupied(voxelize(device, scene(image, camera=camera, y_up=torch.tensor([False])))) == [(54, 38, 46)]
    # counted from 1, the pixel is one further right and one further down: 21.5 mm, 9.5 mm
    assert occupied(voxelize(device, scene(image, camera=camera, pixel_origin=1))) == [(54, 48, 46)]


def test_turn_scale_and_shift(device: str) -> None:
    camera = f64([[304.0, 304.0, 100.0, 100.0]])
    right = scene(one_pixel(121, 100, 304.0), camera=camera)  # 10.5 voxels right of the centre
    quarter = f64([np.pi / 2])
    # From x towards y; the turn is about coordinate 44, and the 0.5 keeps it off the faces of voxels.
    assert occupied(voxelize(device, right | {"ref_mm": f64([[0.0, -1.0, 303.0]])})) == [(54, 44, 44)]
    assert occupied(voxelize(device, right | {"ref_mm": f64([[0.0, -1.0, 303.0]]), "angle_rad": quarter})) == [
        (43, 54, 44)
    ]
    # twice as large about 44: x 10.5 -> 21, y 0.5 -> 1, z 0.5 -> 1 from the centre
    assert occupied(voxelize(device, right | {"ref_mm": f64([[0.0, -1.0, 303.0]]), "scale": f64([2.0])})) == [
        (65, 45, 45)
    ]
    shifted = right | {"ref_mm": f64([[0.0, -1.0, 303.0]]), "shift": f64([[5.0, 4.0, 1.5]])}
    assert occupied(voxelize(device, shifted)) == [(53, 44, 47)]


def test_points_are_rounded_to_float32(device: str) -> None:
    # x = 2 - 2e-9 mm is voxel 44 in float64; float32 makes it 2 mm, the first of voxel 45
    image = one_pixel(101, 100, 2.0)
    arguments = scene(image, camera=f64([[1.0 + 1e-9, 1.0, 100.0, 100.0]]), ref_mm=f64([[0.0, 0.0, 2.0]]))
    assert occupied(voxelize(device, arguments)) == [(45, 44, 44)]


def test_lower_faces(device: str) -> None:
    # x = -88.9 mm: coordinate -0.45, which truncates to 0
    image = one_pixel(11, 100, 300.0)
    arguments = scene(image, camera=f64([[300.0, 300.0, 99.9, 100.0]]))
    assert occupied(voxelize(device, arguments)) == [(0, 44, 44)]
    assert occupied(voxelize(device, arguments | {"rounding": "floor"})) == []
    assert occupied(voxelize(device, arguments | {"camera": f64([[300.0, 300.0, 101.1, 100.0]])})) == []  # -1.05


def filled(rng: np.random.Generator, height: int, width: int, holes: float) -> np.ndarray:
    image = rng.uniform(260, 340, (height, width)).astype(np.float32)
    image[rng.random((height, width)) < holes] = 0
    return image


@pytest.mark.parametrize("author", [False, True])
@pytest.mark.parametrize("far", [330.0, 388.3, 470.0, 211.5])
def test_background_is_drawn_where_it_can_enter_the_cube(device: str, far: float, author: bool) -> None:
    # The same as an image whose empty pixels were filled in by hand; 388.3 and 211.5 enter only when moved.
    rng = np.random.default_rng(int(far))
    image = filled(rng, 60, 80, 0.6)
    box = [17, 9, 63, 41]
    full = np.full((60, 80), np.float32(far))
    crop = image[9:41, 17:63]
    full[9:41, 17:63] = np.where(crop == 0, np.float32(far), crop)
    for scale, shift in ((1.0, 4.0), (0.8, 0.0), (0.8, 7.9)):
        moved = {"scale": f64([scale]), "shift": f64([[shift] * 3]), "angle_rad": f64([0.3]), "author": author}
        common = {"max_depth_mm": f64([far]), "image_wh": torch.tensor([[80, 60]]), "camera": f64([[100, 100, 40, 30]])}
        ours = voxelize(device, scene(crop, box, **common, **moved))
        expected = voxelize(device, scene(full, **common, **moved))
        assert ours.sum() > 100
        assert torch.equal(ours, expected)


def test_no_measurement_and_nan_are_no_points(device: str) -> None:
    image = np.zeros((5, 5), np.float32)
    image[2, 2] = np.nan
    image[2, 3] = np.inf
    assert voxelize(device, scene(image)).sum() == 0


def random_batch(
    rng: np.random.Generator, areas: list[tuple[int, int]], grid: int = 88, margin: int = 4
) -> dict[str, Any]:
    """A batch with a crop of each (height, width), all arguments drawn; some planes cut the cube."""
    batch = len(areas)
    left, top = rng.integers(0, 20, batch), rng.integers(0, 20, batch)
    height, width = np.array(areas, np.int64).reshape(-1, 2).T
    crops = [filled(rng, h, w, 0.3).reshape(-1) for h, w in areas]
    return {
        "depth": torch.from_numpy(np.concatenate([*crops, np.zeros(0, np.float32)])),
        "boxes_ltrb": torch.from_numpy(np.stack([left, top, left + width, top + height], axis=1).astype(np.int64)),
        "image_wh": torch.from_numpy(np.stack([left + width + 7, top + height + 3], axis=1).astype(np.int64)),
        "camera": f64(np.stack([*rng.uniform(50, 300, (2, batch)), left + 10.2, top + 9.7], axis=1)),
        "ref_mm": f64(rng.uniform(-20, 20, (batch, 3)) + np.array([0, 0, 300])),
        "cube_mm": f64(rng.uniform(150, 300, batch)),
        "scale": f64(rng.uniform(0.8, 1.2, batch)),
        "angle_rad": f64(rng.uniform(-0.7, 0.7, batch)),
        "shift": f64(rng.uniform(0, 2 * margin, (batch, 3))),
        "max_depth_mm": f64(rng.choice([310.0, 420.0, 700.0], batch)),
        "y_up": torch.from_numpy(rng.random(batch) < 0.5),
        "grid": grid,
        "margin": margin,
    }


SMALL = [(0, 0), (0, 5), (1, 1), (1, 31), (4, 8), (3, 11), (40, 33)]


def test_batch_of_one_equals_one_of_a_batch(device: str) -> None:
    batch = random_batch(np.random.default_rng(5), SMALL, 32, 2)
    together = voxelize(device, batch)
    areas = [h * w for h, w in SMALL]
    for b, (start, area) in enumerate(zip(np.cumsum([0, *areas[:-1]]), areas, strict=True)):
        alone = {name: v[b : b + 1] if isinstance(v, Tensor) else v for name, v in batch.items()}
        alone["depth"] = batch["depth"][start : start + area]
        assert torch.equal(voxelize(device, alone)[0], together[b])
    joints = f64(np.random.default_rng(6).uniform(-100, 100, (len(SMALL), 5, 3)))
    names = ("ref_mm", "cube_mm", "scale", "angle_rad", "shift")
    together = ops.joint_coordinates(joints.to(device), *(batch[name] for name in names), grid=32, margin=2)
    for b in range(len(SMALL)):
        one = slice(b, b + 1)
        alone = ops.joint_coordinates(joints[one].to(device), *(batch[name][one] for name in names), grid=32, margin=2)
        assert torch.equal(alone[0], together[b])


def test_points_and_joints_take_the_same_way(device: str) -> None:
    # A pixel's point, fed as a joint, lies in the voxel that the pixel fills.
    rng = np.random.default_rng(7)
    for _ in range(20):
        batch = random_batch(rng, [(1, 1)]) | {"y_up": False, "max_depth_mm": f64([700.0])}
        batch["depth"] = torch.tensor([300.0])
        fx, fy, u0, v0 = batch["camera"][0]
        left, top = batch["boxes_ltrb"][0, :2]
        point = torch.stack([(left + 1 - u0) * 300 / fx, (top + 1 - v0) * 300 / fy, f64(300.0)]).float().double()
        names = ("ref_mm", "cube_mm", "scale", "angle_rad", "shift")
        g = ops.joint_coordinates(point[None, None].to(device), *(batch[name] for name in names))[0, 0].cpu()
        inside = bool(((g > -1) & (g < 88)).all())
        assert occupied(voxelize(device, batch)) == ([tuple(g.trunc().long().tolist())] if inside else [])


@pytest.mark.parametrize("mode", ["port", "integral", "author"])
def test_decoding_inverts_the_chain(mode: str) -> None:
    rng = np.random.default_rng(8)
    joints, ref, cube = (
        f64(rng.uniform(-90, 90, (2, 5, 3)) + np.array([0, 0, 300])),
        f64(rng.normal(0, 9, (2, 3))),
        f64([200, 250]),
    )
    ref[:, 2] += 300
    still = (f64([1, 1]), f64([0, 0]), f64([[2.0] * 3] * 2))
    cells = ops.joint_coordinates(joints, ref, cube, *still, grid=44, margin=2) / 2
    offset = {"port": 0.5, "integral": 0.0, "author": 0.25}[mode]
    back = ops.decode(cells - offset, ref, cube, grid=44, mode=mode)
    print(f"{mode}: there and back max diff {(back - joints).abs().max():.3g} mm")
    torch.testing.assert_close(back, joints, rtol=0, atol=1e-9)


def test_first_maximum_and_nan(device: str) -> None:
    maps = torch.zeros(1, 6, 33, 31, 32)
    maps[0, 1, 5, 6, 7] = maps[0, 1, 30, 2, 1] = 2.0
    maps[0, 2, 9, 9, 9] = float("nan")
    maps[0, 2, 1, 1, 1] = float("inf")
    maps[0, 2, 20, 0, 0] = float("nan")
    maps[0, 3] = -float("inf")
    maps[0, 4] = -1.0
    maps[0, 4, 32, 30, 31] = -0.5
    maps[0, 5, 0, 0, 0] = -0.0  # equal to the zeros behind it
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        index, top = ops.argmax3d(maps.to(device, dtype))
        assert index.cpu().tolist() == [[[0, 0, 0], [5, 6, 7], [9, 9, 9], [0, 0, 0], [32, 30, 31], [0, 0, 0]]]
        assert top.dtype == dtype
        expected = torch.tensor([[0.0, 2.0, float("nan"), -float("inf"), -0.5, 0.0]])
        torch.testing.assert_close(top.cpu().float(), expected, equal_nan=True, rtol=0, atol=0)


def test_soft_argmax_of_a_peak_a_constant_and_a_nan(device: str) -> None:
    logits = torch.zeros(1, 3, 9, 17, 5)
    logits[0, 0, 2, 3, 4] = 200.0
    logits[0, 2, 1, 1, 1] = float("nan")
    coords, lse = ops.soft_argmax(logits.to(device))
    torch.testing.assert_close(coords[0, :2].cpu(), torch.tensor([[2.0, 3.0, 4.0], [4.0, 8.0, 2.0]]))
    torch.testing.assert_close(lse[0, :2].cpu(), torch.tensor([200.0, float(np.log(9 * 17 * 5))]))
    assert coords[0, 2].isnan().all()
    assert lse[0, 2].isnan()


def test_targets_of_the_integral_loss_are_clipped(device: str) -> None:
    logits = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    outside = torch.tensor([[[-3.0, 2.5, 6.7], [7.0, 6.0, 90.0]]], device=device)
    inside = torch.tensor([[[0.0, 2.5, 6.0], [6.0, 6.0, 6.0]]], device=device)
    assert ops.integral_loss(logits, outside).loss == ops.integral_loss(logits, inside).loss
    assert ops.integral_loss(logits, inside * float("nan")).loss.isnan()


# ------------------------------------------------------------------------------------------------- bad input


def bad_voxelize(**changes: Any) -> Any:
    return lambda: ops.voxelize(**(scene(np.zeros((4, 6), np.float32)) | changes))


ROW = torch.zeros(1, dtype=torch.float64)
MAPS = torch.zeros(2, 3, 4, 4, 4)
CELLS = torch.zeros(2, 3, 3)
BAD = [
    (bad_voxelize(depth=torch.zeros(4, 6)), r"depth: expected packed crops .* got \(4, 6\) float32 on cpu"),
    (bad_voxelize(depth=torch.zeros(24).double()), r"depth: expected packed crops .* float64"),
    (bad_voxelize(depth=torch.zeros(23)), r"depth: expected 24 values, the sum of the areas"),
    (bad_voxelize(boxes_ltrb=torch.tensor([0, 0, 6, 4])), r"boxes_ltrb: expected \(B, 4\)"),
    (bad_voxelize(boxes_ltrb=torch.tensor([[0, 0, 6, 4]]).int()), r"boxes_ltrb: expected int64, got .* int32"),
    (
        bad_voxelize(boxes_ltrb=torch.tensor([[1, 0, 7, 4]])),
        r"boxes_ltrb: expected 0 <= left .* \[1, 0, 7, 4, 6, 4\] .* 0",
    ),
    (bad_voxelize(boxes_ltrb=torch.tensor([[3, 0, 2, 4]])), r"boxes_ltrb: expected 0 <= left"),
    (bad_voxelize(boxes_ltrb=torch.tensor([[0, -1, 6, 3]])), r"boxes_ltrb: expected 0 <= left"),
    (bad_voxelize(image_wh=torch.tensor([[6, 4], [6, 4]])), r"image_wh: expected \(1, 2\), got \(2, 2\)"),
    (bad_voxelize(image_wh=torch.tensor([[6.0, 4.0]])), r"image_wh: expected int64"),
    (bad_voxelize(camera=f64([[1, 1, 1]])), r"camera: expected \(1, 4\) fx, fy, u0, v0, got \(1, 3\)"),
    (bad_voxelize(camera=f64([[0.0, 1, 1, 1]])), r"camera: expected positive focal lengths"),
    (bad_voxelize(camera=f64([[1, 1, np.nan, 1]])), r"camera and max_depth_mm: expected finite numbers"),
    (bad_voxelize(max_depth_mm=f64(700)), r"max_depth_mm: expected \(1,\)"),
    (bad_voxelize(max_depth_mm=f64([np.inf])), r"camera and max_depth_mm: expected finite numbers"),
    (bad_voxelize(ref_mm=f64([0, 0, 300])), r"ref_mm: expected \(1, 3\), got \(3,\)"),
    (bad_voxelize(ref_mm=f64([[0, 0, np.nan]])), r"ref_mm, cube_mm.*: expected finite numbers, got .*nan.* sample 0"),
    (bad_voxelize(cube_mm=f64([[200]])), r"cube_mm: expected \(1,\)"),
    (bad_voxelize(cube_mm=f64([0.0])), r"cube_mm: expected a positive edge in mm, got 0.0 for sample 0"),
    (bad_voxelize(scale=f64([-1.0])), r"scale: expected a positive factor, got -1.0"),
    (bad_voxelize(angle_rad=ROW[0]), r"angle_rad: expected \(1,\)"),
    (bad_voxelize(shift=ROW), r"shift: expected \(1, 3\)"),
    (bad_voxelize(y_up=torch.ones(1)), r"y_up: expected \(1,\) bool or a bool"),
    (bad_voxelize(pixel_origin=2), r"pixel_origin: expected 0 or 1, got 2"),
    (bad_voxelize(rounding="round"), r"rounding: expected trunc or floor, got 'round'"),
    (bad_voxelize(dtype=torch.int32), r"dtype: expected float32, .* got torch.int32"),
    (bad_voxelize(grid=0), r"grid: expected an edge of 1 to 1024 fine voxels, got 0"),
    (bad_voxelize(margin=-1), r"margin: expected 0 or more fine voxels, got -1"),
    (lambda: ops.joint_coordinates(torch.zeros(1, 3), *[ROW] * 5), r"joints_mm: expected \(B, J, 3\), got \(1, 3\)"),
    (lambda: ops.gaussian_heatmaps(torch.zeros(1, 3)), r"cells: expected \(B, J, 3\)"),
    (lambda: ops.gaussian_heatmaps(CELLS, size=0), r"size: expected an edge of 1 to 512 cells, got 0"),
    (lambda: ops.gaussian_heatmaps(CELLS, sigma=0.0), r"sigma: expected a positive width"),
    (lambda: ops.gaussian_heatmaps(CELLS, dtype=torch.uint8), r"dtype: expected a floating point type"),
    (lambda: ops.gaussian_mse(MAPS[0], CELLS), r"pred: expected a tensor \(B, J, X, Y, Z\), got \(3, 4, 4, 4\)"),
    (lambda: ops.gaussian_mse(MAPS.long(), CELLS), r"pred: expected a floating point type"),
    (lambda: ops.gaussian_mse(MAPS, CELLS[:1]), r"cells: expected \(2, 3, 3\) for these maps, got \(1, 3, 3\)"),
    (lambda: ops.gaussian_mse(MAPS, CELLS, sigma=-1.0), r"sigma: expected a positive width"),
    (lambda: ops.argmax3d(MAPS[..., :0]), r"heatmaps: expected volumes with at least one cell"),
    (lambda: ops.soft_argmax(MAPS[0]), r"logits: expected a tensor \(B, J, X, Y, Z\)"),
    (
        lambda: ops.integral_loss(MAPS[..., :1], CELLS),
        r"logits: expected volumes with at least two cells along each axis",
    ),
    (lambda: ops.integral_loss(MAPS, CELLS[:, :2]), r"target_cells: expected \(2, 3, 3\) for these maps"),
    (lambda: ops.integral_loss(MAPS, CELLS, weight=1.5), r"weight: expected a number from 0 to 1, got 1.5"),
    (lambda: ops.decode(CELLS[0], ROW, ROW, grid=8), r"cells: expected \(B, J, 3\)"),
    (lambda: ops.decode(CELLS, ROW, ROW, grid=8), r"ref_mm: expected \(2, 3\)"),
    (lambda: ops.decode(CELLS, CELLS[:, 0], ROW, grid=8), r"cube_mm: expected \(2,\)"),
    (lambda: ops.decode(CELLS, CELLS[:, 0], CELLS[:, 0, 0], grid=0), r"grid: expected a positive edge"),
    (
        lambda: ops.decode(CELLS, CELLS[:, 0], CELLS[:, 0, 0], grid=8, mode="argmax"),  # type: ignore[arg-type]
        r"mode: expected port, integral or author, got 'argmax'",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
