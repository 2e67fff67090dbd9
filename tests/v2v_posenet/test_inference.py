"""Decoding against the measurements, the fast network against the plain one, and the whole way from a depth image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.camera import backproject, project
from shared.datasets.base import Frame
from shared.errors import DataError
from tests.golden.fill import uniform
from tests.v2v_posenet.test_model import NS, TINY, ball, fixture
from v2v_posenet.config import CONVENTIONS
from v2v_posenet.convert import Checkpoint, checkpoint_of, save_checkpoint
from v2v_posenet.inference import (
    Predictor,
    choose_dtype,
    decode_maps,
    fold_batch_norms,
    prepare,
    refine_peaks,
)
from v2v_posenet.kernels import ops
from v2v_posenet.model import ConvNorm, V2VPoseNet

K = np.array([[240.0, 0, 160], [0, 250.0, 120], [0, 0, 1]])


def random_network(joints: int = 2, seed: int = 0, widths: Any = TINY) -> V2VPoseNet:
    torch.manual_seed(seed)
    network = V2VPoseNet(joints, widths)
    for name, value in network.state_dict().items():
        if "running_var" in name or name.endswith("norm.weight"):
            nn.init.uniform_(value, 0.5, 1.5)
        elif "num_batches" not in name:
            nn.init.normal_(value, std=0.1 if value.ndim == 1 else (1 / value[0].numel()) ** 0.5)
    return network.eval()


def checkpoint(network: V2VPoseNet | None = None, convention: str = "port", **options: Any) -> Checkpoint:
    options = {"variant": "gaussian", "dataset": "mine", "skeleton": "fingertips", "cube_mm": 200.0, **options}
    return checkpoint_of(network or random_network(), convention=CONVENTIONS[convention], **options)


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_gaussian_decoding_golden() -> None:
    golden = fixture("decode.npz")
    maps = torch.from_numpy(uniform(NS + "decode/heatmap", (2, 21, 44, 44, 44)))
    ref = torch.from_numpy(golden["refpoints"][:, 0])
    assert np.array_equal(ops.argmax3d(maps)[0].numpy(), golden["argmax_no_half"])
    for cube in (200, 250):
        joints, peak = decode_maps(maps, ref, torch.full((2,), float(cube)), checkpoint())
        difference = np.abs(joints.numpy() - golden[f"world_cubic{cube}"]).max()
        print(f"decoded joints, cube {cube}: max diff {difference:.3g} mm")
        assert difference < 1e-6
        assert torch.equal(peak, maps.flatten(2).amax(-1))


def test_ties_take_the_first_cell() -> None:
    maps = torch.zeros(1, 2, 44, 44, 44)
    maps[0, 1, 5, 6, 7] = maps[0, 1, 30, 2, 1] = 3
    assert np.array_equal(ops.argmax3d(maps)[0].numpy(), fixture("decode.npz")["tie_argmax"])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_integral_decoding_golden(layout: str) -> None:
    golden = fixture("decode.npz")
    logits = torch.from_numpy(uniform(NS + "decode/logits", (2, 21, 44, 44, 44), -1, 1) * 15)
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last_3d)
    coords, logsumexp = ops.soft_argmax(logits)
    assert np.abs(coords.numpy() - golden["soft_coord_f64"]).max() < 1e-4
    assert np.abs(logsumexp.numpy() - golden["soft_logsumexp"]).max() < 1e-3
    ref = torch.from_numpy(golden["refpoints"][:, 0])
    joints, confidence = decode_maps(logits, ref, torch.full((2,), 200.0), checkpoint(variant="integral"))
    difference = np.abs(joints.numpy() - golden["soft_world_cubic200"]).max()
    print(f"integral joints, {layout}: max diff {difference:.3g} mm")
    assert difference < 5e-3
    expected = F.softmax(logits.flatten(2).double(), -1).amax(-1)
    assert np.allclose(confidence, expected, rtol=1e-3)


def test_author_decoding_golden() -> None:
    golden = fixture("author_mode.npz")
    index = torch.from_numpy(golden["decode_index"])
    maps = torch.zeros(1, len(index), 44, 44, 44)
    for joint, (x, y, z) in enumerate(index):
        maps[0, joint, x, y, z] = 1
    ref = torch.from_numpy(golden["refpoint"])[None]
    cube = torch.full((1,), float(golden["cubic_size"]))
    joints, _ = decode_maps(maps, ref, cube, checkpoint(convention="author"))
    difference = np.abs(joints[0].numpy() - golden["decode_world"]).max()
    print(f"author's decoding: max diff {difference:.3g} mm")
    assert difference < 1e-9
    assert (decode_maps(maps, ref, cube, checkpoint())[0] - joints).abs().max() > 1  # 2i + 1 against 2i + 0.5


def test_refinement_finds_the_middle_of_a_gaussian() -> None:
    torch.manual_seed(0)
    cells = torch.rand(1, 40, 3, dtype=torch.float64) * 30 + 7
    maps = ops.gaussian_heatmaps(cells, offset=0.0)
    index = ops.argmax3d(maps)[0]
    error = {m: (refine_peaks(maps, index, m) - cells).abs().max().item() for m in ("none", "softargmax", "parabola")}  # type: ignore[arg-type]
    print(f"cells off: {error}, parabola max diff {error['parabola']:.3g}")
    assert 0.4 < error["none"] <= 0.5
    assert error["softargmax"] < 0.05
    assert error["parabola"] < 1e-4
    half = decode_maps(maps, torch.zeros(1, 3), torch.tensor([88.0]), checkpoint(), "parabola")[0]
    assert torch.allclose(half, (cells + 0.5) * 2 - 44, atol=1e-3)  # the cell's middle, as without refinement


def test_refinement_at_the_border_and_on_flat_maps() -> None:
    cells = torch.tensor([[[0.3, 42.8, 20.0], [-5.0, 50.0, 20.3]]], dtype=torch.float64)
    maps = ops.gaussian_heatmaps(cells, offset=0.0)
    index = ops.argmax3d(maps)[0]
    parabola = refine_peaks(maps, index, "parabola")
    assert parabola[0, 0, :2].tolist() == [0.0, 43.0]  # no neighbour on one side
    assert abs(parabola[0, 1, 2] - 20.3) < 1e-3
    soft = refine_peaks(maps, index, "softargmax")
    assert (soft >= 0).all()
    assert (soft <= 43).all()
    for flat in (torch.zeros(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8), -torch.ones(1, 1, 8, 8, 8)):
        middle = torch.tensor([[[4, 4, 4]]])
        assert refine_peaks(flat, middle, "parabola").tolist() == [[[4.0, 4.0, 4.0]]]
        assert refine_peaks(flat, middle, "softargmax").isfinite().all()
    spike = torch.zeros(1, 1, 8, 8, 8)
    spike[0, 0, 4, 4, 4:6] = torch.tensor([1.0, 0.9])
    assert refine_peaks(spike, torch.tensor([[[4, 4, 4]]]), "parabola")[0, 0].tolist() == [4.0, 4.0, 4.0]


def test_unknown_refinement() -> None:
    with pytest.raises(DataError, match="refine must be one of none, softargmax, parabola, got 'subpixel'"):
        refine_peaks(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 3).long(), "subpixel")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="refine must be one of"):
        Predictor(checkpoint(), refine="subpixel")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="refine='parabola' is for the Gaussian variant"):
        decode_maps(
            torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 3), torch.ones(1), checkpoint(variant="integral"), "parabola"
        )
    with pytest.raises(DataError, match="checkpoint 0 is of the integral variant, which has no refine='softargmax'"):
        Predictor(checkpoint(variant="integral"), refine="softargmax")


# --- the fast network -------------------------------------------------------------------------------------------------


def test_folding_changes_nothing_but_the_rounding() -> None:
    network = random_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norms(network.train())
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm3d) for m in folded.modules())
    assert isinstance(folded.stem, ConvNorm)
    grid = torch.cat([ball(24, 6.0), ball(24, 3.0)])
    with torch.inference_mode():
        expected = network.eval()(grid)
        for mode in ("dense", "sparse"):
            folded.stem.mode = mode  # type: ignore[assignment]
            assert torch.allclose(folded(grid), expected, atol=1e-5 * float(expected.abs().max()))
        fast = prepare(network, precision="float32")(grid.to(torch.uint8))
    assert torch.allclose(fast, expected, atol=1e-5 * float(expected.abs().max()))
    assert fast.is_contiguous()


@pytest.fixture(scope="module")
def overfitted() -> tuple[V2VPoseNet, Tensor]:
    """A small network that has learned the joints of two grids, and the grids."""
    torch.manual_seed(0)
    grid = torch.cat([ball(24, 5.0), ball(24, 8.0)])
    network = V2VPoseNet(3, (4, 8, 8, 8)).train()
    step = torch.optim.Adam(network.parameters(), lr=1e-2)
    target = ops.gaussian_heatmaps(torch.rand(2, 3, 3) * 8 + 2, size=12)
    for _ in range(80):
        loss = F.mse_loss(network(grid), target)
        step.zero_grad()
        loss.backward()
        step.step()
    return network.eval(), grid


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_moves_a_trained_joint_by_less_than_a_cell(
    precision: Any, overfitted: tuple[V2VPoseNet, Tensor]
) -> None:
    """Reduced precision is judged on peaked maps: random ones change their maximum at the slightest noise."""
    network, grid = overfitted
    origin, cube = torch.zeros(2, 3), torch.full((2,), 200.0)
    saved = checkpoint(network, grid=24)
    with torch.inference_mode():
        exact = network(grid)
        fast = prepare(network, precision=precision)(grid)
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    a, b = (decode_maps(maps, origin, cube, saved, "parabola")[0] for maps in (exact, fast))
    moved, cell = (a - b).abs().max().item(), 200.0 / 12
    print(f"{precision}: heat maps max diff {(fast - exact).abs().max():.3g}, joints max diff {moved:.3g} mm")
    assert (exact.flatten(2).amax(-1) > 0.2).all()  # there is something to find
    assert moved < 0.25 * cell


def test_precision_is_chosen_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native, raising=False)
        assert choose_dtype("auto", cpu) == expected
    for native, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert choose_dtype("auto", cuda) == expected
    assert choose_dtype("float32", cuda) == torch.float32
    with pytest.raises(DataError, match="precision must be one of auto, float32, bfloat16, float16, got 'half'"):
        choose_dtype("half", cpu)  # type: ignore[arg-type]


def test_compile_switch_compiles_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiler(function: Any, dynamic: bool) -> Any:
        def compiled(x: Tensor) -> Tensor:
            calls.append((x.shape, dynamic))
            return function(x)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    grid = ball(16, 4.0)
    with torch.inference_mode():
        prepare(random_network(), precision="float32")(grid)
        assert calls == []
        prepare(random_network(), precision="float32", compile_trunk=True)(grid)
    assert calls == [((1, 2, 8, 8, 8), False)]


@pytest.mark.slow
def test_compiled_network_agrees() -> None:
    network, grid = random_network(), ball(16, 4.0)
    with torch.inference_mode():
        expected = network(grid)
        fast = prepare(network, precision="float32", compile_trunk=True)(grid)
    assert torch.allclose(fast, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.gpu
def test_gpu_agrees() -> None:
    network, grid = random_network(), ball(24, 6.0)
    with torch.inference_mode():
        expected = network(grid)
        fast = prepare(network, device="cuda", precision="float32")(grid.cuda()).cpu()
    assert torch.allclose(fast, expected, atol=1e-2 * float(expected.abs().max()))  # TF32


def test_fast_network_refuses_a_wrong_grid() -> None:
    with pytest.raises(DataError, match="edges divisible by 8"):
        prepare(random_network())(torch.zeros(1, 1, 12, 16, 16))


# --- the whole way ----------------------------------------------------------------------------------------------------


class Occupied(nn.Module):
    """Instead of a network: a map that is highest where the grid is occupied."""

    def forward(self, grid: Tensor) -> Tensor:
        return F.avg_pool3d(grid, 2).expand(-1, 2, -1, -1, -1)


def one_pixel(u: int, v: int, z: float) -> np.ndarray:
    depth = np.zeros((240, 320), np.float32)
    depth[v, u] = z
    return depth


@pytest.mark.parametrize("y_up", [False, True])
@pytest.mark.parametrize("convention", ["port", "zero", "author"])
def test_a_point_comes_back_where_it_was(convention: str, y_up: bool) -> None:
    u, v, z = 200, 90, 350.0
    predictor = Predictor(checkpoint(convention=convention, y_up=y_up, cube_mm=22.0))
    predictor.networks = [Occupied()]  # type: ignore[list-item]
    point = backproject([u, v, z], K)
    joints_mm, uv, confidence, voxels = predictor(one_pixel(u, v, z), K, point + np.array([3.0, -4.0, 2.0]))
    origin = CONVENTIONS[convention].pixel_origin
    expected = backproject([u + origin, v + origin, z], K)  # the port counts pixels from 1: one pixel right and down
    cell = 22.0 / 44
    assert joints_mm.shape == (2, 3)
    assert np.abs(joints_mm - expected).max() <= 0.76 * cell
    assert origin == 0 or np.abs(joints_mm - point).max() > 2 * cell
    assert np.allclose(uv, project(joints_mm, K))
    assert voxels == 1
    assert np.allclose(confidence, 1 / 8)


def hand_like_frames() -> list[Frame]:
    frames = []
    for i, center in enumerate(([10.0, -5.0, 350.0], [-60.0, 30.0, 420.0], [0.0, 0.0, 300.0])):
        rng = np.random.default_rng(i)
        depth = np.zeros((240, 320), np.float32)
        u, v = project(center, K).astype(int)
        depth[v - 25 : v + 25, u - 20 : u + 30] = center[2] + rng.uniform(-40, 40, (50, 50))
        frames.append(
            Frame(
                name=f"f{i}",
                image_size=(320, 240),
                K=K,
                skeleton="fingertips",
                depth_mm=depth,
                center_mm=np.array(center),
            )
        )
    return frames


def test_predictor_is_the_sum_of_its_parts() -> None:
    frames = hand_like_frames()[:1]
    network = random_network()
    saved = checkpoint(network, dataset="msra", grid=40)
    assert (saved.y_up, saved.max_depth_mm) == (True, 700.0)
    got = Predictor(saved, precision="float32").predict_frames(frames)
    frame = frames[0]
    ref = torch.from_numpy(frame.center_mm * [1, -1, 1])[None]
    grid = ops.voxelize(
        torch.from_numpy(frame.depth_mm.reshape(-1)),
        torch.tensor([[0, 0, 320, 240]]),
        torch.tensor([[320, 240]]),
        torch.tensor([[240.0, 250, 160, 120]]),
        ref,
        torch.tensor([200.0]),
        torch.ones(1),
        torch.zeros(1),
        torch.full((1, 3), 2.0),  # the margin of a grid of 40
        torch.tensor([700.0]),
        True,
        grid=40,
        margin=2,
    )
    with torch.inference_mode():
        joints, peak = decode_maps(network(grid), ref, torch.tensor([200.0]), saved)
    assert np.allclose(got.joints_mm, joints.numpy() * [1, -1, 1], atol=1e-9)
    assert np.allclose(got.confidence, peak, atol=1e-4)
    assert got.voxels == grid.sum() > 500


def test_batch_crop_and_single_image_agree() -> None:
    frames = hand_like_frames()
    predictor = Predictor(checkpoint(grid=40), precision="float32", refine="parabola")
    batch = predictor.predict_frames(frames)
    assert batch.joints_mm.shape == (3, 2, 3)
    assert batch.confidence.shape == (3, 2)
    for i, frame in enumerate(frames):
        assert frame.depth_mm is not None
        assert frame.center_mm is not None
        rows, columns = (np.flatnonzero(frame.depth_mm.any(axis)) for axis in (1, 0))
        crop = frame.depth_mm[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        corner = int(columns[0]), int(rows[0])
        for single in (
            predictor(frame.depth_mm, K, frame.center_mm),
            predictor(crop, K, frame.center_mm, crop_xy=corner, image_size=(320, 240)),
            predictor(crop, K, frame.center_mm, crop_xy=corner),
        ):
            assert np.allclose(single.joints_mm, batch.joints_mm[i], atol=1e-3)
            assert single.voxels == batch.voxels[i]


def test_ensemble_averages_millimetres(tmp_path: Path) -> None:
    frames = hand_like_frames()
    members = [checkpoint(random_network(seed=1), grid=40), checkpoint(random_network(seed=2), "zero", grid=40)]
    paths = [tmp_path / "a.pt", tmp_path / "b.safetensors"]
    for path, member in zip(paths, members, strict=True):
        save_checkpoint(path, member)
    both = Predictor(paths, precision="float32").predict_frames(frames)
    one, two = (Predictor(path, precision="float32").predict_frames(frames) for path in paths)
    assert np.abs(one.joints_mm - two.joints_mm).max() > 10
    assert np.allclose(both.joints_mm, (one.joints_mm + two.joints_mm) / 2)
    assert np.allclose(both.confidence, (one.confidence + two.confidence) / 2)


def test_empty_cube_has_no_confidence() -> None:
    predictor = Predictor(checkpoint(grid=40))
    got = predictor(np.zeros((240, 320)), K, [0.0, 0.0, 350.0], image_size=(320, 240))
    assert got.voxels == 0
    assert (got.confidence == 0).all()
    behind = predictor(np.zeros((240, 320)), K, [0.0, 0.0, -500.0])
    assert np.isnan(behind.uv).all()
    assert np.isfinite(behind.joints_mm).all()


def test_predictor_mistakes_are_named(tmp_path: Path) -> None:
    predictor = Predictor(checkpoint(grid=40))
    frame = hand_like_frames()[0]
    blank = Frame(name="P0/1/000000", image_size=(320, 240), K=K, skeleton="fingertips")
    with pytest.raises(DataError, match="frame 'P0/1/000000' has no depth image"):
        predictor.predict_frames([blank])
    assert frame.depth_mm is not None
    blank = Frame(name="f", image_size=(320, 240), K=K, skeleton="fingertips", depth_mm=frame.depth_mm)
    with pytest.raises(DataError, match="frame 'f' has no centre -- give a centre file"):
        predictor.predict_frames([blank])
    with pytest.raises(DataError, match="frames is empty"):
        predictor.predict_frames([])
    with pytest.raises(DataError, match=r"depth_mm must be \(h, w\), got shape \(2, 3, 4\)"):
        predictor(np.zeros((2, 3, 4)), K, [0, 0, 300])
    for center, matrix in (
        ([0, 0, np.nan], K),
        ([0, 0], K),
        ([0, 0, 300], K[:2]),
        ([0, 0, 300], K + np.eye(3)[[1, 0, 2]]),
    ):
        with pytest.raises(DataError, match=r"expected center_mm of 3 finite numbers and a \(3, 3\) K without skew"):
            predictor(frame.depth_mm, matrix, center)
    with pytest.raises(DataError, match="checkpoints is empty"):
        Predictor([])
    with pytest.raises(DataError, match=r"checkpoint 1 has \(3, 'fingertips', 'mine'\).*an ensemble needs networks"):
        Predictor([checkpoint(), checkpoint(random_network(3))])
    with pytest.raises(DataError, match="no such checkpoint file"):
        Predictor(tmp_path / "missing.pt")
    assert predictor.skeleton == "fingertips"
