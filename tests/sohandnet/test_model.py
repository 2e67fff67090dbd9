"""The networks against the original's numbers, and the algebra that saves work against the plain computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sohandnet.model import Decoder, Dense, Estimator, Features, SoHandNet, UpConv, folded, rows_at, scaled
from tests.golden.fill import uniform
from tests.sohandnet.common import batch_of, golden, reference_network, relative

VARIANTS = {"v21": "v2.1", "v3": "v3", "v4": "v4", "v5": "v5", "v6": "v6"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


def random_batch(size: int, *, seed: int = 0, points: int = 40, nodes: int = 16, joints: int = 16) -> dict[str, Tensor]:
    """Clouds around few nodes; the last node is far away, hence empty."""
    generator = torch.Generator().manual_seed(seed)
    pc = torch.rand(size, 3, points, generator=generator) - 0.5
    node = torch.rand(size, 3, nodes, generator=generator) - 0.5
    node[:, :, -1] = 9.0
    distance = torch.cdist(node.transpose(1, 2), node.transpose(1, 2))
    return {
        "pc": pc,
        "sn": nn.functional.normalize(torch.randn(size, 3, points, generator=generator), dim=1),
        "node": node,
        "node_knn": distance.argsort(2)[:, :, :5],
        "gt_xyz": torch.rand(size, 3, joints, generator=generator) - 0.5,
    }


@pytest.mark.parametrize("mode", ["center", "avg"])
def test_encoder_and_every_estimator_give_the_originals_numbers(folder: Path, mode: str) -> None:
    expected = golden("encoder.npz")
    batch = batch_of(expected)
    for name in VARIANTS:
        network = reference_network(folder, "encoder", f"estimator_{name}", node_centre=mode)
        with torch.inference_mode():
            features = network.encode(batch)
            pose = network.estimator(features).flatten(1)
            joints = network(batch)
        found = relative(pose, expected[f"pose_{name}_{mode}"])
        print(f"pose {name} {mode} max diff {found:.3g}")
        assert found < 1e-4
        assert torch.equal(joints, pose.view(2, 3, 16).transpose(1, 2))
    np.testing.assert_array_equal(features.pairs.numpy(), expected["node_count"])
    assert int((features.pairs == 0).sum()) == 3  # or the fixture would not cover empty nodes
    assert bool((features.mean[features.pairs == 0] == 0).all())
    pairs = {
        "mean": (features.mean.transpose(1, 2), expected["cluster_mean"]),
        "masked max": (features.pooled.transpose(1, 2), expected["masked_max"]),
        "centre": (features.centre.transpose(1, 2), expected[f"knn_center_{mode}"]),
        "neighbours": (features.neighbours.transpose(1, 2)[:, ::4], expected[f"knn_feature_{mode}_c4"]),
        "final": (features.final.transpose(1, 2)[:, ::16], expected[f"final_pn_out_{mode}_c16"]),
        "feature": (features.feature, expected[f"feature_{mode}"]),
    }
    for name, (value, reference) in pairs.items():
        found = relative(value, reference)
        print(f"{name} {mode} max diff {found:.3g}")
        assert found < 1e-5, name


def test_decoder_gives_the_originals_numbers(folder: Path) -> None:
    expected = golden("decoder.npz")
    network = reference_network(folder, "decoder", finest=True)
    feature = torch.from_numpy(uniform("sohandnet/decoder/feature", (2, 1024), -1, 1))
    with torch.inference_mode():
        clouds = network.decoder(feature)
    assert clouds.finest is not None
    pairs = {
        "fc_256": clouds.full[:, :, :256],
        "pc5_1024": clouds.full[:, :, 256:],
        "pc_1280": clouds.full,
        "pc4_256": clouds.coarse,
        "pc6_4096_every16": clouds.finest[:, :, ::16],
    }
    for name, value in pairs.items():
        found = relative(value, expected[name])
        print(f"decoder {name} max diff {found:.3g}")
        assert found < 1e-5, name


def test_reconstruction_from_the_encoders_feature(folder: Path) -> None:
    expected = golden("encoder.npz")
    network = reference_network(folder, "encoder", "decoder")
    with torch.inference_mode():
        clouds = network.decoder(network.encode(batch_of(expected)).feature)
    found = relative(clouds.full, expected["recon_center"])
    print(f"reconstruction max diff {found:.3g}")
    assert found < 1e-5
    assert clouds.finest is None  # the level that nobody reads is not there


def plain_features(pooled: Tensor, feature: Tensor) -> Features:
    empty = torch.zeros(0)
    return Features(pooled.transpose(1, 2), empty, empty, feature, empty, empty, empty, empty, None, None)


@pytest.mark.parametrize("name", ["v21", "v4", "v5"])
def test_estimators_alone(folder: Path, name: str) -> None:
    expected = golden("estimator_standalone.npz")
    network = reference_network(folder, f"estimator_{name}")
    pooled = torch.from_numpy(uniform("sohandnet/estimator/masked_max", (2, 384, 64), -1, 1))
    feature = torch.from_numpy(uniform("sohandnet/estimator/feature", (2, 1024), -1, 1))
    with torch.inference_mode():
        pose = network.estimator(plain_features(pooled, feature)).flatten(1)
    key = next(key for key in expected if name in key.replace(".", ""))
    found = relative(pose, expected[key])
    print(f"estimator {name} max diff {found:.3g}")
    assert found < 1e-5


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("v2.1", 2_114_864), ("v3", 3_687_728), ("v4", 670_000), ("v5", 1_066_288), ("v6", 4_093_232)],
)
def test_estimators_have_the_published_number_of_parameters(variant: Any, parameters: int) -> None:
    assert sum(p.numel() for p in Estimator(variant).parameters()) == parameters


# ------------------------------------------------------------------------------------------------- savings


def plain_pair_layer(network: SoHandNet, features: Features, batch: dict[str, Tensor]) -> Tensor:
    """v3 and v6 as the original computes them: everything copied to the pairs, one wide layer, batch norm, mean."""
    layer, index = network.estimator.layer, features.pair_node
    assert layer is not None
    k = index.shape[1] // batch["pc"].shape[2]
    copies = [rows_at(part, index) for part in (features.pooled, features.neighbours, features.final)]
    copies.append(features.feature.detach()[:, None].expand(-1, index.shape[1], -1))
    if network.sizes["estimator"] == "v6":
        centres = rows_at(features.mean, index)
        points = batch["pc"].transpose(1, 2).repeat(1, k, 1)
        normals = batch["sn"].transpose(1, 2).repeat(1, k, 1)
        assert features.pair_feature is not None
        copies = [points - centres, points, centres, normals, features.pair_feature, *copies]
    return layer(torch.cat(copies, 2)).mean(1)


@pytest.mark.parametrize("variant", ["v3", "v6"])
def test_pair_layer_on_nodes_equals_that_on_pairs_in_training(variant: Any) -> None:
    torch.manual_seed(0)
    networks = [SoHandNet(estimator=variant, width=0.25, parts=("encoder", "estimator")) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    batch = random_batch(3)
    results = []
    for network, ours in zip(networks, (True, False), strict=True):
        features = network.encode(batch)
        mean = network.estimator.mean_feature(features) if ours else plain_pair_layer(network, features, batch)
        pose = network.estimator.head(mean)
        (pose**2).sum().backward()
        results.append((pose, features, network))
    assert bool((results[0][1].pairs == 0).any())
    found = relative(results[0][0], results[1][0].detach().numpy())
    print(f"{variant} pose in training mode max diff {found:.3g}")
    assert found < 1e-4
    largest = max(float(p.grad.abs().max()) for p in networks[1].parameters() if p.grad is not None)
    for (name, ours), other in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert ours.grad is not None, name
        assert other.grad is not None, name
        scale = max(
            1e-2 * largest, float(other.grad.abs().max())
        )  # biases before a batch norm have rounding noise only
        assert float((ours.grad - other.grad).abs().max()) < 2e-3 * scale, name
    for (name, ours), other in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6, msg=name)


def test_neighbour_layer_on_nodes_equals_that_on_neighbours() -> None:
    torch.manual_seed(0)
    network = SoHandNet(width=0.25, node_centre="avg", parts=("encoder",))
    batch = random_batch(2)
    features = network.encode(batch)
    table = torch.cat((features.mean, features.pooled), 2)
    near = rows_at(table, batch["node_knn"].flatten(1)).unflatten(1, (16, -1)).clone()
    near[..., :3] -= features.centre[:, :, None]
    plain = network.encoder.knn[1](network.encoder.knn[0](near)).amax(2)
    print(f"neighbour convolution max diff {relative(features.neighbours, plain.detach().numpy()):.3g}")
    torch.testing.assert_close(features.neighbours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_upsampled_convolution_equals_upsampling_then_convolving(size: int) -> None:
    torch.manual_seed(0)
    up = UpConv(16, 32).double()
    x = torch.randn(2, 16, size, size, dtype=torch.float64, requires_grad=True)
    plain = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    plain = torch.relu(up.norm(up.conv(plain)))
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), [x, *up.parameters()])
    found = up(x)
    torch.testing.assert_close(found, plain)
    for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), [x, *up.parameters()]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------------------------------------- laws


def test_order_of_points_does_not_matter() -> None:
    torch.manual_seed(0)
    network = SoHandNet(width=0.25).eval()
    batch = random_batch(2)
    order = torch.randperm(batch["pc"].shape[2])
    mixed = {**batch, "pc": batch["pc"][:, :, order], "sn": batch["sn"][:, :, order]}
    with torch.inference_mode():
        torch.testing.assert_close(network(mixed), network(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", list(VARIANTS.values()))
def test_a_batch_of_one_equals_one_of_a_batch(variant: Any) -> None:
    torch.manual_seed(0)
    network = SoHandNet(estimator=variant, width=0.25).eval()
    batch = random_batch(3)
    with torch.inference_mode():
        alone = network({key: value[1:2] for key, value in batch.items()})
        torch.testing.assert_close(alone, network(batch)[1:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", list(VARIANTS.values()))
def test_an_empty_batch_gives_no_joints(variant: Any) -> None:
    network = SoHandNet(estimator=variant, width=0.1, joints=21).eval()
    batch = {name: value[:0] for name, value in random_batch(1).items()}
    with torch.inference_mode():
        assert network(batch).shape == (0, 21, 3)
        clouds = network.decoder(network.encode(batch).feature)
    assert (clouds.full.shape, clouds.coarse.shape) == ((0, 3, 1280), (0, 3, 256))


@pytest.mark.parametrize("variant", ["v2.1", "v3", "v6"])
def test_detach_global_stops_the_gradient(variant: Any) -> None:
    torch.manual_seed(0)
    reached = {}
    for detach in (True, False):
        network = SoHandNet(estimator=variant, detach_global=detach, width=0.25, parts=("encoder", "estimator"))
        features = network.encode(random_batch(2))
        features.feature.retain_grad()
        network.estimator(features).sum().backward()
        reached[detach] = features.feature.grad is not None
    assert reached == {True: False, False: True}


def test_without_normals() -> None:
    network = SoHandNet(normals=False, estimator="v6", width=0.25, parts=("encoder", "estimator")).eval()
    batch = random_batch(2)
    with torch.inference_mode():
        first = network(batch)
        assert torch.equal(first, network({**batch, "sn": -batch["sn"]}))
    assert first.shape == (2, 16, 3)


def test_widths() -> None:
    assert [scaled(c, 1.0) for c in (64, 100)] == [64, 100]
    assert [scaled(c, 0.5) for c in (64, 384, 8)] == [32, 192, 16]
    assert scaled(384, 0.3) == 128  # 115.2, up to a multiple of 16
    full = Decoder(width=0.25)(torch.zeros(2, 256)).full
    assert full.shape == (2, 3, 1280)


def test_initial_weights_have_the_originals_spread() -> None:
    torch.manual_seed(0)
    network = SoHandNet(parts=("encoder", "decoder"))
    weight = network.encoder.points_out.linear.weight
    assert abs(float(weight.detach().std()) / (2 / 320) ** 0.5 - 1) < 0.02
    up = network.decoder.up[2].conv  # by fan-out
    assert abs(float(up.weight.detach().std()) / (2 / (9 * 256)) ** 0.5 - 1) < 0.02
    assert bool((up.bias == 0.001).all())
    assert float(network.decoder.dense[3].linear.bias.detach().abs().max()) > 0.9


def test_weighted_batch_norm_equals_repeated_rows() -> None:
    torch.manual_seed(0)
    layers = [Dense(4, 16).double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    rows, weights = (
        torch.randn(5, 16, dtype=torch.float64),
        torch.tensor([3.0, 0.0, 1.0, 7.0, 2.0], dtype=torch.float64),
    )
    ours = layers[0].activate_weighted(rows, weights)
    repeated = layers[1].activate(rows.repeat_interleave(weights.long(), 0))
    torch.testing.assert_close(ours.repeat_interleave(weights.long(), 0), repeated)
    for a, b in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("variant", list(VARIANTS.values()))
def test_folded_network_gives_the_same_joints(variant: Any) -> None:
    torch.manual_seed(0)
    network = SoHandNet(estimator=variant, width=0.25)
    batch = random_batch(4)
    for _ in range(3):  # batch statistics that are not those of the start
        network(batch)
    network.eval()
    small = folded(network)
    assert small.parts == ("encoder", "estimator")
    assert not any(isinstance(part, nn.BatchNorm1d) for part in small.modules())
    with torch.inference_mode():
        expected = network(batch)
        found = relative(small(batch), expected.numpy())
        print(f"folded {variant} max diff {found:.3g}")
        assert found < 1e-4
        low = folded(network, torch.bfloat16)(batch)
    assert low.dtype == torch.float32
    print(f"bfloat16 {variant} max diff {relative(low, expected.numpy()):.3g}")
    assert 0 < relative(low, expected.numpy()) < 0.1


def test_bfloat16_autocast_leaves_the_geometry_alone() -> None:
    torch.manual_seed(0)
    network = SoHandNet(width=0.25)
    batch = random_batch(2)
    with torch.autocast("cpu", torch.bfloat16):
        features = network.encode(batch)
        clouds = network.decoder(features.feature)
    assert features.mean.dtype == torch.float32
    assert features.pooled.dtype == torch.bfloat16
    assert torch.isfinite(clouds.full).all()
    assert torch.equal(features.mean, network.encode(batch).mean)
