"""C++ and CUDA against the plain torch reference on drawn cases; gradients; torch.library and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.v2v_posenet.test_ops import SMALL, f64, random_batch
from v2v_posenet.kernels import ops, reference

# J, X, Y, Z; the edges 31, 32, 33 lie around the lanes of a vector and a warp
SHAPES = [(1, 1, 1, 1), (3, 2, 3, 4), (2, 31, 32, 33), (2, 33, 31, 32), (1, 44, 44, 44)]
FLOATS = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def native(request: pytest.FixtureRequest) -> str:
    """A device whose native kernels are there."""
    if isinstance(why := ops.KERNELS.load(request.param), str):
        pytest.skip(f"{request.param} kernels: {why}")
    return request.param


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


def to(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def maps_of(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0, spread: float = 5.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread
    return values.to(device, dtype)


def targets_for(maps: Tensor, seed: int = 1) -> Tensor:
    """Targets in and somewhat around the volumes."""
    draw = torch.rand((*maps.shape[:2], 3), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (draw * 1.2 - 0.1).to(maps.device) * torch.tensor(maps.shape[2:], device=maps.device)


def worst(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if not ours.numel():
        return 0.0
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30))


# ------------------------------------------------------------------------------------------------- equal results


@pytest.mark.parametrize("author", [False, True])
@pytest.mark.parametrize("rounding", ["trunc", "floor"])
def test_voxels_and_joints_equal_the_reference(native: str, both: Both, rounding: str, author: bool) -> None:
    rng = np.random.default_rng(0)
    names = ("ref_mm", "cube_mm", "scale", "angle_rad", "shift")
    voxels, planes, distance = 0, 0, 0.0
    for grid, margin in ((88, 4), (32, 1), (33, 0), (1, 0)):
        batch = to(native, random_batch(rng, [*SMALL, (60, 70)], grid, margin))
        options = {"rounding": rounding, "author": author, "pixel_origin": int(rng.integers(2))}
        ours, theirs = both(lambda b=batch, o=options: ops.voxelize(**b, **o))
        assert torch.equal(ours, theirs)
        voxels += int(ours.sum())
        planes += int(ours[batch["boxes_ltrb"][:, 2] == batch["boxes_ltrb"][:, 0]].sum() > 0)
        joints = f64(rng.uniform(-300, 300, (len(batch["scale"]), 21, 3))).to(native)
        chain = [batch[name] for name in names]
        size = {"grid": grid, "margin": margin, "author": author}
        ours, theirs = both(lambda j=joints, c=chain, s=size: ops.joint_coordinates(j, *c, **s))
        distance = max(distance, float((ours - theirs).abs().max()))
    print(f"{native}: {voxels} voxels equal, joints max diff {distance:.3g} fine voxels")
    assert voxels > 10_000
    assert planes > 0  # crops without a pixel, whose grid is all background plane
    assert distance <= 1e-9


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
def test_types_of_the_grid(native: str, both: Both, dtype: torch.dtype) -> None:
    batch = to(native, random_batch(np.random.default_rng(1), SMALL, 32, 2))
    ours, theirs = both(lambda: ops.voxelize(**batch, dtype=dtype))
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)
    assert torch.equal(ours.float(), ops.voxelize(**batch))


def test_empty_batches(native: str, both: Both) -> None:
    batch = to(native, random_batch(np.random.default_rng(1), []))
    for grids in both(lambda: ops.voxelize(**batch)):
        assert grids.shape == (0, 1, 88, 88, 88)
    maps = torch.zeros(0, 21, 4, 4, 4, device=native, requires_grad=True)
    cells = torch.zeros(0, 21, 3, device=native)
    assert [tuple(value.shape) for value in ops.argmax3d(maps)] == [(0, 21, 3), (0, 21)]
    assert [tuple(value.shape) for value in ops.soft_argmax(maps)] == [(0, 21, 3), (0, 21)]
    assert ops.gaussian_heatmaps(cells, size=4).shape == maps.shape
    for loss in (*both(lambda: ops.gaussian_mse(maps, cells)), *both(lambda: ops.integral_loss(maps, cells).loss)):
        assert loss.isnan()  # as torch's own mean
        loss.backward()
    assert maps.grad is not None
    assert maps.grad.shape == maps.shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_maps_equal_the_reference(native: str, both: Both, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = maps_of((2, *shape), dtype, native)
    maps[0, 0, -1, 0, 0] = maps.max()  # a tie
    for ours, theirs in zip(*both(lambda: ops.argmax3d(maps)), strict=True):
        assert torch.equal(ours, theirs)
    cells = targets_for(maps)
    size = shape[1]
    coords, gaussian, mse, terms = (
        both(lambda: ops.soft_argmax(maps)),
        both(lambda: ops.gaussian_heatmaps(cells, size=size, dtype=dtype)),
        both(lambda: ops.gaussian_mse(maps, cells)),
        both(lambda: ops.integral_loss(maps, cells)[:4] if min(shape[1:]) > 1 else ()),
    )
    found = {
        "coordinates": worst(coords[0][0], coords[1][0]),
        "logsumexp": worst(coords[0][1], coords[1][1]),
        "heat maps": worst(*gaussian),
        "mse": worst(*mse),
        "mixed loss": max((worst(a, b) for a, b in zip(*terms, strict=True)), default=0.0),
    }
    print(f"{native} {shape} {dtype}: " + ", ".join(f"{name} max diff {value:.3g}" for name, value in found.items()))
    step = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    assert found["heat maps"] <= step
    assert max(value for name, value in found.items() if name != "heat maps") <= 1e-5  # float32 whatever the maps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_equal_the_reference(native: str, both: Both, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = maps_of((2, *shape), dtype, native).requires_grad_()
    cells = targets_for(maps)
    pull = torch.randn(2, shape[0], 3, generator=torch.Generator().manual_seed(3)).to(native)

    def soft() -> Tensor:
        coords, lse = ops.soft_argmax(maps)
        return (coords * pull).sum() + (lse * pull[..., 0]).sum()

    losses: dict[str, Callable[[], Tensor]] = {"mse": lambda: 1000.0 * ops.gaussian_mse(maps, cells), "soft": soft}
    if min(shape[1:]) > 1:
        losses["mixed"] = lambda: ops.integral_loss(maps, cells, weight=0.3).loss
        losses["coords"] = lambda: (ops.integral_loss(maps, cells).coords * pull).sum()
    bound = {torch.float32: 2e-5, torch.bfloat16: 2**-7}[dtype]
    for name, loss in losses.items():
        ours, theirs = both(lambda loss=loss: torch.autograd.grad(loss(), maps)[0])
        difference = worst(ours, theirs)
        print(f"{native} {shape} {dtype} gradient of {name}: max diff {difference:.3g} of the largest")
        assert ours.dtype == dtype
        assert difference <= bound


def test_non_contiguous_input(native: str, both: Both) -> None:
    maps = maps_of((2, 3, 8, 9, 10), torch.float32, native)
    cells = targets_for(maps)
    strange = maps.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    plain = maps.clone().requires_grad_()
    wide = torch.stack([cells, cells], dim=-1)[..., 1]
    assert not strange.is_contiguous()
    assert not wide.is_contiguous()

    def everything(values: Tensor, targets: Tensor) -> list[Tensor]:
        loss = ops.integral_loss(values, targets).loss + ops.gaussian_mse(values, targets)
        return [*ops.argmax3d(values), *ops.soft_argmax(values), torch.autograd.grad(loss, values)[0]]

    native_pairs, plain_pairs = both(
        lambda: list(zip(everything(strange, wide), everything(plain, cells), strict=True))
    )
    for odd, even in native_pairs:
        assert torch.equal(odd, even)
    for odd, even in plain_pairs:  # torch adds up in the order of the memory
        torch.testing.assert_close(odd, even)

    batch = to(native, random_batch(np.random.default_rng(2), SMALL, 32, 2))
    spread = {
        name: torch.stack([value, value], dim=-1)[..., 0] if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    for odd, even in zip(both(lambda: ops.voxelize(**spread)), both(lambda: ops.voxelize(**batch)), strict=True):
        assert torch.equal(odd, even)


def test_repeated_and_threaded_runs_give_the_same_bits(native: str) -> None:
    maps = maps_of((2, 5, 44, 44, 44), torch.float32, native).requires_grad_()
    cells = targets_for(maps)
    batch = to(native, random_batch(np.random.default_rng(3), [(60, 70)] * 3))

    def everything() -> list[Tensor]:
        result = ops.integral_loss(maps, cells)
        mse = ops.gaussian_mse(maps, cells)
        gradients = [torch.autograd.grad(loss, maps)[0] for loss in (result.loss, mse)]
        return [ops.voxelize(**batch), *ops.argmax3d(maps), *result, mse, ops.gaussian_heatmaps(cells), *gradients]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = everything()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
def test_arguments_may_stay_on_the_cpu_and_bad_boxes_on_the_gpu_are_harmless() -> None:
    batch = random_batch(np.random.default_rng(4), SMALL)
    expected = ops.voxelize(**batch)
    mixed = ops.voxelize(**(batch | {"depth": batch["depth"].cuda()}))
    assert mixed.device.type == "cuda"
    assert torch.equal(mixed.cpu(), expected)
    wild = to("cuda", batch)
    wild["boxes_ltrb"] = wild["boxes_ltrb"] * 1000
    assert ops.voxelize(**wild)[1:].sum() == 0


# ------------------------------------------------------------------------------------------------- gradients


def tiny(seed: int = 0) -> tuple[Tensor, Tensor]:
    logits = maps_of((1, 2, 3, 4, 5), torch.float64, "cpu", seed, 1.0).requires_grad_()
    return logits, targets_for(logits)


def test_gradcheck_in_float64() -> None:
    logits, cells = tiny()
    assert torch.autograd.gradcheck(lambda v: ops.gaussian_mse(v, cells), logits)
    assert torch.autograd.gradcheck(lambda v: ops.soft_argmax(v), logits)
    assert torch.autograd.gradcheck(lambda v: ops.integral_loss(v, cells, weight=0.3).loss, logits)
    assert torch.autograd.gradcheck(lambda v: ops.integral_loss(v, cells).coords, logits)


def test_written_gradients_equal_autograd_through_the_reference() -> None:
    logits, cells = tiny(1)
    pairs = [
        (ops.gaussian_mse(logits, cells), reference.gaussian_mse(logits, cells)),
        (ops.integral_loss(logits, cells, weight=0.2)[0], reference.integral_loss(logits, cells, weight=0.2)[0]),
        (ops.soft_argmax(logits)[0].prod(), reference.soft_argmax(logits)[0].prod()),
    ]
    for written, plain in pairs:
        ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (written, plain))
        print(f"written gradient max diff {(ours - theirs).abs().max():.3g}")
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_fused_losses_equal_the_unfused_ones() -> None:
    logits = maps_of((2, 3, 12, 12, 12), torch.float32, "cpu").requires_grad_()
    cells = targets_for(logits)
    fused = ops.gaussian_mse(logits, cells, sigma=1.3, offset=0.0)
    dense = torch.nn.functional.mse_loss(logits, ops.gaussian_heatmaps(cells, size=12, sigma=1.3, offset=0.0))
    torch.testing.assert_close(fused, dense)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (fused, dense)))

    clipped = ops.clip_cells(cells, 12)
    flat, weights = reference.corner_weights(clipped, (12, 12, 12))
    target = torch.zeros(2, 3, 12**3).scatter_(2, flat, weights.float())
    probability = logits.flatten(2).log_softmax(dim=-1)
    index = torch.stack(torch.meshgrid(*[torch.arange(12.0)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    coords = probability.exp() @ index
    dense = 0.7 * -(target * probability).sum(-1).mean() + 0.3 * (coords - clipped).abs().mean().float()
    fused = ops.integral_loss(logits, cells, weight=0.7).loss
    torch.testing.assert_close(fused, dense, rtol=1e-5, atol=0)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (fused, dense))
    print(f"mixed loss, fused against dense: gradient max diff {(ours - theirs).abs().max():.3g}")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_targets_get_no_gradient_and_float16_goes_through_the_reference() -> None:
    logits = maps_of((1, 2, 4, 4, 4), torch.float16, "cpu").requires_grad_()
    cells = torch.ones(1, 2, 3, requires_grad=True)
    loss = ops.gaussian_mse(logits, cells) + ops.integral_loss(logits, cells).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert cells.grad is None
    assert logits.grad is not None
    assert logits.grad.dtype == torch.float16
    assert logits.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------- torch.library


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_opcheck(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDPOSE_KERNELS", backend)
    space = torch.ops.v2v_posenet
    maps = maps_of((1, 2, 4, 5, 6), torch.float32, "cpu").requires_grad_()
    cells = targets_for(maps.detach())
    odd = maps_of((1, 2, 5, 6, 2), torch.bfloat16, "cpu").permute(0, 1, 4, 2, 3)  # not contiguous
    coords, lse = (value.detach() for value in ops.soft_argmax(maps))
    one = torch.ones(())
    batch = random_batch(np.random.default_rng(0), [(3, 4), (0, 2)], 16, 2)
    cameras = torch.cat([batch["camera"], batch["max_depth_mm"][:, None], f64([[1.0], [0.0]])], dim=1)
    chain = torch.cat(
        [batch["ref_mm"], *(batch[n][:, None] for n in ("cube_mm", "scale", "angle_rad")), batch["shift"]], 1
    )
    frames = torch.cat([batch["boxes_ltrb"], batch["image_wh"]], dim=1)
    for operator, arguments in (
        (space.voxelize, (batch["depth"], frames, cameras, chain, 1, False, False, 16, 2, torch.bfloat16)),
        (space.joint_coordinates, (f64(np.ones((2, 3, 3))), chain, True, 16, 2)),
        (space.gaussian_heatmaps, (cells, 7, 1.7, 0.5, torch.bfloat16)),
        (space.gaussian_mse, (maps, cells, 1.7, 0.5)),
        (space.gaussian_mse, (odd, cells, 1.7, 0.5)),
        (space.gaussian_mse_backward, (one, maps.detach(), cells, 1.7, 0.5)),
        (space.argmax3d, (maps.detach(),)),
        (space.argmax3d, (odd,)),
        (space.soft_argmax, (maps,)),
        (space.soft_argmax, (odd,)),
        (space.soft_argmax_backward, (odd, coords, lse, coords, lse)),
        (space.integral_loss, (maps, cells)),
        (space.integral_loss_backward, (maps.detach(), cells, coords, lse, one, one, coords, lse)),
    ):
        torch.library.opcheck(operator, arguments)


def test_a_training_step_compiles_without_a_break() -> None:
    batch = random_batch(np.random.default_rng(0), [(30, 40), (20, 30)], 8, 1)
    joints = batch["ref_mm"][:, None] + torch.randn(2, 3, 3, dtype=torch.float64)
    names = ("ref_mm", "cube_mm", "scale", "angle_rad", "shift")
    weight = torch.full((3, 1, 2, 2, 2), 0.1, requires_grad=True)

    def step() -> Tensor:
        maps = torch.nn.functional.conv3d(ops.voxelize(**batch), weight, stride=2)
        cells = ops.joint_coordinates(joints, *(batch[name] for name in names), grid=8, margin=1) / 2
        return ops.gaussian_mse(maps, cells) + ops.integral_loss(maps, cells).loss

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), step())
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss in (compiled(), step())))
