"""Augmentation by its laws: what turns together, what stays, and the original's mistakes where they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sohandnet.augment import augment
from sohandnet.config import AugmentOptions
from sohandnet.orient import Box, denormalise


def sample(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sn = rng.normal(size=(3, 1024))
    return {
        "pc": rng.uniform(-0.4, 0.4, (3, 1024)).astype(np.float32),
        "sn": (sn / np.linalg.norm(sn, axis=0)).astype(np.float32),
        "node": rng.uniform(-0.3, 0.3, (3, 64)).astype(np.float32),
        "gt_xyz": rng.uniform(-0.4, 0.4, (3, 16)).astype(np.float32),
        "rotation": np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32),
        "offset": rng.uniform(0, 3, 3).astype(np.float32),
        "length": np.float32(130),
    }


def changed(options: AugmentOptions, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    before, after = sample(), sample()
    augment(after, options, np.random.default_rng(seed))
    return before, after


def world(s: dict[str, Any], key: str = "gt_xyz") -> np.ndarray:
    return denormalise(s[key].T, Box(s["rotation"].astype(float), float(s["length"]), s["offset"].astype(float)))


STILL = {"jitter": 0.0, "node_jitter": 0.0, "scale_min": 1.0, "scale_max": 1.0}


def test_a_turn_about_z_leaves_the_hand_where_it_was() -> None:
    """Positions, normals, nodes and joints turn together; rotation and offset undo it."""
    before, after = changed(AugmentOptions(mode="corrected", rotate_deg=40, **STILL))
    for key in ("pc", "node", "gt_xyz"):
        np.testing.assert_array_equal(after[key][2], before[key][2])
        assert np.abs(after[key] - before[key]).max() > 0.01
        np.testing.assert_allclose(world(after, key), world(before, key), atol=1e-3)
    turned = after["sn"].T @ after["rotation"].T
    np.testing.assert_allclose(turned, before["sn"].T @ before["rotation"].T, atol=1e-5)
    angle = np.degrees(np.arctan2(after["gt_xyz"][1], after["gt_xyz"][0]) - np.arctan2(*before["gt_xyz"][[1, 0]]))
    assert np.ptp(np.mod(angle + 180, 360)) < 1e-2
    assert after["length"] == before["length"]


def test_turns_stay_in_their_range() -> None:
    def angle(seed: int, limit: float) -> float:
        before, after = changed(AugmentOptions(mode="corrected", rotate_deg=limit, **STILL), seed)
        return float(np.degrees(np.arctan2(*(before["rotation"].T @ after["rotation"])[[0, 1], [1, 1]])))

    angles = np.array([angle(seed, 30) for seed in range(60)])
    assert np.abs(angles).max() <= 30.001
    assert angles.min() < -15
    assert angles.max() > 15
    assert angle(0, 0) == pytest.approx(0, abs=1e-4)


def test_a_scale_makes_a_larger_hand_and_leaves_the_length() -> None:
    """Q19: millimetres measured with the length are those of the scaled hand."""
    still = {**STILL, "scale_min": 1.1, "scale_max": 1.1}
    before, after = changed(AugmentOptions(mode="corrected", rotate_deg=0, **still))
    assert after["length"] == before["length"]
    np.testing.assert_allclose(after["pc"], 1.1 * before["pc"], rtol=1e-5)
    np.testing.assert_allclose(after["node"], 1.1 * before["node"], rtol=1e-5)
    np.testing.assert_allclose(after["sn"], before["sn"], atol=1e-6)
    np.testing.assert_allclose(world(after), 1.1 * world(before), rtol=1e-4)
    scales = [
        changed(AugmentOptions(mode="corrected", rotate_deg=0, jitter=0, node_jitter=0), seed)[1]["offset"][0]
        for seed in range(40)
    ] / sample()["offset"][0]
    assert 0.8 <= scales.min() < 0.9
    assert 1.1 < scales.max() <= 1.2001


def test_jitter_is_cut_and_normals_stay_units() -> None:
    options = AugmentOptions(mode="corrected", rotate_deg=0, scale_min=1, scale_max=1)
    moved, nodes = [], []
    for seed in range(20):
        before, after = changed(options, seed)
        moved.append(after["pc"] - before["pc"])
        nodes.append(after["node"] - before["node"])
        np.testing.assert_allclose(np.linalg.norm(after["sn"], axis=0), 1, atol=1e-5)
        assert 0.005 < np.abs(after["sn"] - before["sn"]).std() < 0.02
        np.testing.assert_array_equal(after["gt_xyz"], before["gt_xyz"])  # joints have no jitter
    assert np.std(moved) == pytest.approx(0.01, rel=0.02)
    assert np.abs(moved).max() <= 0.05 + 1e-6
    assert 0.09 < np.abs(nodes).max() <= 0.1 + 1e-6  # 2.5 standard deviations are reached
    assert np.std(nodes) == pytest.approx(0.0393, rel=0.05)


def test_the_originals_way() -> None:
    """Normals and length are scaled too, so that a de-normalised distance comes out scaled twice; nothing turns."""
    still = {**STILL, "scale_min": 1.2, "scale_max": 1.2}
    before, after = changed(AugmentOptions(mode="reference", rotate_deg=40, **still))
    np.testing.assert_allclose(after["length"], 1.2 * before["length"], rtol=1e-6)
    np.testing.assert_allclose(after["sn"], 1.2 * before["sn"], rtol=1e-5)
    np.testing.assert_array_equal(after["rotation"], before["rotation"])
    distance = [np.linalg.norm(world(s)[3] - world(s)[9]) for s in (before, after)]
    assert distance[1] == pytest.approx(1.2**2 * distance[0], rel=1e-4)
    _, noisy = changed(AugmentOptions(mode="reference", scale_min=1, scale_max=1))
    assert np.linalg.norm(noisy["sn"], axis=0).std() > 0.003  # jittered, not made units again


def test_samples_stay_float32() -> None:
    for mode in ("corrected", "reference"):
        _, after = changed(AugmentOptions(mode=mode))  # type: ignore[arg-type]
        assert all(np.asarray(value).dtype == np.float32 for value in after.values())
