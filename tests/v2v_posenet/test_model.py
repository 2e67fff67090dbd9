"""The network against the measurements on the original, and its own laws."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.golden.fill import fill_state_dict, uniform
from v2v_posenet.convert import port_key_to_ours
from v2v_posenet.model import IntegralV2V, V2VPoseNet, occupied_blocks

FOLDER = Path(__file__).parents[1] / "golden" / "v2v_posenet"
NS = "v2v_posenet/public/"
TINY = (2, 3, 4, 5)


@cache
def fixture(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as data:
        return dict(data)


def filled(name: str = "net_v2v") -> V2VPoseNet:
    keys = json.loads((FOLDER / f"{name}.keys.json").read_text())
    network = V2VPoseNet(21)
    state = {
        port_key_to_ours(k.removeprefix("basic_model.")): torch.from_numpy(v) for k, v in fill_state_dict(keys).items()
    }
    network.load_state_dict(state)
    return network.eval()


def occupancy(name: str, shape: tuple[int, ...], threshold: float) -> torch.Tensor:
    return torch.from_numpy((uniform(NS + name, shape) < threshold).astype(np.float32))


def relative(got: torch.Tensor, expected: np.ndarray, what: str) -> float:
    difference = float(np.abs(got.detach().numpy() - expected).max() / np.abs(expected).max())
    print(f"{what}: max relative diff {difference:.3g}")
    return difference


def ball(size: int, radius: float) -> torch.Tensor:
    """A thin shell, as a depth camera sees it, in an otherwise empty grid (1, 1, size, size, size)."""
    axis = torch.arange(size) - size * 0.4
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return ((distance - radius).abs() < 0.6).float()[None, None]


def test_sizes_are_the_papers() -> None:
    network = V2VPoseNet(21)
    assert sum(p.numel() for p in network.parameters()) == 3_410_453
    assert len(list(network.parameters())) == 122
    assert len(network.state_dict()) == 212


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_full_grid_golden(mode: str) -> None:
    golden = fixture("net_v2v.npz")
    network = filled()
    network.stem.mode = mode
    grid = occupancy("net_v2v/input", (1, 1, 88, 88, 88), float(golden["input_threshold"]))
    assert grid.sum() == golden["input_sum"]
    with torch.inference_mode():
        front = network.features(grid)
        middle = network.encode_decode(front)
        out = network.heads(middle)
    assert relative(front[..., ::11, ::11, ::11], golden["front_stride11"], f"front {mode}") < 1e-4
    assert relative(middle[..., ::11, ::11, ::11], golden["encdec_stride11"], f"encoder-decoder {mode}") < 1e-4
    assert relative(out[..., ::4, ::4, ::4], golden["out_stride4"], f"output {mode}") < 1e-4
    flat = out.flatten(2)
    assert relative(flat.amin(-1), golden["out_min"], "min") < 1e-4
    assert relative(flat.amax(-1), golden["out_max"], "max") < 1e-4
    assert relative(flat.mean(-1), golden["out_mean"], "mean") < 1e-4
    assert relative(flat.std(-1, correction=0), golden["out_std"], "std") < 1e-4
    clear = golden["out_top_gap"] > 1e-3
    assert clear.sum() >= 10
    assert (flat.argmax(-1).numpy() == golden["out_argmax"])[clear].all()


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_small_grid_golden(mode: str) -> None:
    golden = fixture("net_v2v.npz")
    network = filled()
    network.stem.mode = mode
    grid = occupancy("net_v2v/small_input", (2, 1, 24, 24, 24), 0.05)
    target = torch.from_numpy(uniform(NS + "net_v2v/small_target", (2, 21, 12, 12, 12)))
    with torch.inference_mode():
        assert relative(network(grid), golden["small_eval"], f"small eval {mode}") < 1e-4

    network.train()
    out = network(grid)
    loss = F.mse_loss(out, target)
    loss.backward()
    assert relative(out[..., ::2, ::2, ::2], golden["small_train_stride2"], f"small train {mode}") < 1e-4
    assert abs(loss.item() / golden["small_train_loss"] - 1) < 1e-5
    parameters = dict(network.named_parameters())
    order = json.loads((FOLDER / "net_v2v.params.json").read_text())
    norms = np.array([parameters[port_key_to_ours(key)].grad.norm().item() for key in order])
    counts = golden["small_grad_l2"] > 1e-4
    assert counts.sum() == 92
    ratio = np.abs(norms / golden["small_grad_l2"] - 1)[counts].max()
    print(f"gradient norms {mode}: max relative diff {ratio:.3g}")
    assert ratio < 1e-3
    assert relative(network.output.weight.grad, golden["small_grad_output_weight"], "output gradient") < 1e-3
    assert relative(network.stem.conv.weight.grad, golden["small_grad_first_weight"], f"first gradient {mode}") < 1e-3
    for norm, name in ((network.stem.norm, "bn0"), (network.point2.norm, "bnlast")):
        for buffer in ("running_mean", "running_var"):
            assert relative(getattr(norm, buffer), golden[f"small_{name}_{buffer}"], f"{name} {buffer} {mode}") < 1e-4
        assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_five_steps_golden(optimizer: str) -> None:
    network = filled().train()
    grid = occupancy("net_v2v/small_input", (2, 1, 24, 24, 24), 0.05)
    target = torch.from_numpy(uniform(NS + "net_v2v/small_target", (2, 21, 12, 12, 12)))
    step = (
        torch.optim.Adam(network.parameters(), lr=1e-3)
        if optimizer == "adam"
        else torch.optim.RMSprop(network.parameters(), lr=2.5e-4, alpha=0.99, eps=1e-8)
    )
    losses = []
    for _ in range(5):
        loss = F.mse_loss(network(grid), target)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    difference = np.abs(np.array(losses) / fixture("net_v2v.npz")[f"small_{optimizer}_losses"] - 1).max()
    print(f"five steps of {optimizer}: max relative diff {difference:.3g}")
    assert difference < 5e-3


def test_integral_golden() -> None:
    golden = fixture("net_integral.npz")
    model = IntegralV2V(filled("net_integral")).eval()
    with torch.inference_mode():
        logits, coords = model(occupancy("net_integral/input", (1, 1, 88, 88, 88), 0.02))
    assert relative(logits[..., ::4, ::4, ::4], golden["heatmap_stride4"], "integral logits") < 1e-4
    difference = np.abs(coords.numpy() - golden["coord"]).max()
    print(f"integral coordinates: max diff {difference:.3g} cells")
    assert difference < 1e-3
    assert np.abs(logits.flatten(2).logsumexp(-1).numpy() - golden["heatmap_logsumexp"]).max() < 1e-3


def test_sparse_stem_equals_dense_on_a_shell() -> None:
    torch.manual_seed(0)
    networks = []
    for mode in ("dense", "sparse"):
        torch.manual_seed(1)
        network = V2VPoseNet(2, TINY)
        torch.nn.init.normal_(network.stem.conv.weight)
        torch.nn.init.normal_(network.stem.conv.bias)
        torch.nn.init.normal_(network.stem.norm.weight)  # negative ones too: pooling and batch norm must not be swapped
        torch.nn.init.normal_(network.stem.norm.bias)
        network.stem.mode = mode
        networks.append(network.double())
    dense, sparse = networks
    grid = torch.cat([ball(40, 9.0), torch.zeros(1, 1, 40, 40, 40), ball(40, 30.0)]).double()
    active = occupied_blocks(grid)
    assert 0.1 < active.float().mean() < 0.7
    assert not active[1].any()
    for training in (True, False):
        outputs = []
        for network in networks:
            network.train(training)
            network.zero_grad()
            out = network.stem(grid)
            (out * torch.linspace(-1, 2, out[0].numel()).view(out[0].shape)).sum().backward()
            outputs.append(out)
        assert outputs[0].shape == (3, 2, 20, 20, 20)
        assert (outputs[0] - outputs[1]).abs().max() < 1e-9
        for (name, a), (_, b) in zip(dense.stem.named_parameters(), sparse.stem.named_parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-7), name
    assert torch.allclose(dense.stem.norm.running_mean, sparse.stem.norm.running_mean)
    assert torch.allclose(dense.stem.norm.running_var, sparse.stem.norm.running_var)


def test_empty_grid() -> None:
    network = V2VPoseNet(2, TINY).eval()
    torch.nn.init.normal_(network.stem.conv.bias)
    grid = torch.zeros(1, 1, 16, 16, 16)
    with torch.inference_mode():
        sparse = network(grid)
        network.stem.mode = "dense"
        assert torch.allclose(network(grid), sparse, atol=1e-6)


def test_occupied_blocks_reach_exactly_three_voxels() -> None:
    for x in range(24):
        grid = torch.zeros(1, 1, 24, 24, 24)
        grid[0, 0, x, 12, 12] = 1
        expected = F.max_pool3d(grid, 14, 8, 3)[:, 0] > 0
        assert torch.equal(occupied_blocks(grid), expected), x


def test_batch_of_one_equals_one_of_a_batch() -> None:
    torch.manual_seed(0)
    network = V2VPoseNet(3, TINY, init="author").eval()
    grids = (torch.rand(3, 1, 16, 24, 8) < 0.05).float()
    with torch.inference_mode():
        whole = network(grids)
        assert whole.shape == (3, 3, 8, 12, 4)
        assert torch.allclose(whole[1:2], network(grids[1:2]), atol=1e-6)


def test_author_init_draws_the_norm_weights() -> None:
    torch.manual_seed(0)
    port, author = V2VPoseNet(3, TINY), V2VPoseNet(3, TINY, init="author")
    assert (port.stem.norm.weight == 1).all()
    weights = torch.cat([m.weight for m in author.modules() if isinstance(m, torch.nn.BatchNorm3d)])
    assert weights.min() >= 0
    assert weights.max() < 1
    assert 0.3 < weights.mean() < 0.7
    for network in (port, author):
        convolution = network.encode2.first.conv
        assert 0.0008 < convolution.weight.std() < 0.0012
        assert not convolution.bias.any()


@pytest.mark.parametrize("shape", [(1, 1, 12, 16, 16), (1, 2, 16, 16, 16), (1, 16, 16, 16)])
def test_wrong_grid_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"grid must be \(B, 1, X, Y, Z\) with edges divisible by 8"):
        V2VPoseNet(2, TINY)(torch.zeros(shape))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="joints must be positive"):
        V2VPoseNet(0)
    with pytest.raises(ValueError, match="widths four positive numbers"):
        V2VPoseNet(2, (1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="init must be"):
        V2VPoseNet(2, TINY, init="kaiming")  # type: ignore[arg-type]
