"""GrabCut's start map and result against the original's, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hand3d_wild.masks import PALM, SKELETON, grabcut, hand_mask, start_map
from shared import skeletons
from shared.errors import DataError


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_start_maps_and_masks_are_the_originals(golden: Path) -> None:
    g = np.load(golden / "hand3d_wild/segmentation.npz")
    for i in range(3):
        ours, theirs = start_map(g["anno_mano_order"][i]), g["trimap"][i]
        zones, sure = int(((ours != 0) != (theirs != 0)).sum()), int(((ours == 1) != (theirs == 1)).sum())
        expected = np.unpackbits(g["grabcut_mask_bits"][i], axis=-1).astype(bool)
        from_theirs, from_ours = grabcut(g["image"][i], theirs), hand_mask(g["image"][i], g["anno_mano_order"][i])
        print(
            f"hand {i}: zones max diff {zones} px, sure foreground {sure} px, IoU {iou(from_theirs, expected):.4f} "
            f"from the stored map, {iou(from_ours, expected):.4f} from ours"
        )
        assert zones == 0
        assert sure <= 100
        assert iou(from_theirs, expected) >= 0.95
        assert iou(from_ours, expected) >= 0.85


def test_triangles_join_the_wrist_with_neighbouring_fingers() -> None:
    names = skeletons.get(SKELETON).joints
    assert [[names[j] for j in corners] for corners in PALM] == [
        ["wrist", "thumb_mcp", "thumb_pip"],
        ["wrist", "thumb_mcp", "index_mcp"],
        ["wrist", "index_mcp", "middle_mcp"],
        ["wrist", "middle_mcp", "ring_mcp"],
        ["wrist", "ring_mcp", "pinky_mcp"],
    ]


def test_masks_do_not_depend_on_what_was_cut_before(golden: Path) -> None:
    g = np.load(golden / "hand3d_wild/segmentation.npz")
    first = grabcut(g["image"][0], g["trimap"][0])
    grabcut(g["image"][1], g["trimap"][1])
    assert (grabcut(g["image"][0], g["trimap"][0]) == first).all()


def test_invisible_joints_draw_nothing(golden: Path) -> None:
    joints = np.load(golden / "hand3d_wild/segmentation.npz")["anno_mano_order"][0].copy()
    whole = start_map(joints)
    visible = np.ones(21, bool)
    visible[4] = False
    joints[4] = np.nan
    part = start_map(joints, visible=visible)
    assert (part != 0).sum() < (whole != 0).sum()
    assert ((part != 0) <= (whole != 0)).all()


def test_what_is_refused() -> None:
    picture, joints = np.zeros((320, 320, 3), np.uint8), np.full((21, 2), 100.0)
    with pytest.raises(DataError, match=r"expected joints \(21, 2\)"):
        start_map(joints[:20])
    with pytest.raises(DataError, match="not finite"):
        start_map(joints * np.nan)
    with pytest.raises(DataError, match="of one size"):
        grabcut(picture, np.ones((10, 10), np.uint8))
    with pytest.raises(DataError, match="both hand and background"):
        hand_mask(picture, joints + 3000)
