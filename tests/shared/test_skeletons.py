import json
from itertools import pairwise

import numpy as np
import pytest

from shared.errors import DataError
from shared.skeletons import SKELETONS, get, order, reorder

HANDS_21 = ["mano", "thumb_first", "wild", "msra", "hands2017"]


@pytest.mark.parametrize("name", SKELETONS)
def test_every_skeleton_is_a_tree_with_a_colour_per_joint(name):
    s = SKELETONS[name]
    assert s.name == name
    assert len(set(s.joints)) == len(s.joints) == len(s) == len(s.colors) == len(s.mirror)
    if name == "fingertips":
        assert s.edges == ()
        return
    children = [child for _, child in s.edges]
    assert len(s.edges) == len(s) - 1
    assert len(set(children)) == len(children)  # one parent each
    reached, todo = set(), [min(set(range(len(s))) - set(children))]
    while todo:
        joint = todo.pop()
        reached.add(joint)
        todo += [child for parent, child in s.edges if parent == joint]
    assert reached == set(range(len(s)))


@pytest.mark.parametrize(
    ("name", "chains"),
    [
        ("msra", [(0, 17, 18, 19, 20), (0, 1, 2, 3, 4), (0, 5, 6, 7, 8), (0, 9, 10, 11, 12), (0, 13, 14, 15, 16)]),
        ("icvl", [(0, 1, 2, 3), (0, 4, 5, 6), (0, 7, 8, 9), (0, 10, 11, 12), (0, 13, 14, 15)]),
        ("nyu14", [(13, 12), (13, 11), (13, 10, 9, 8), (13, 7, 6), (13, 5, 4), (13, 3, 2), (13, 1, 0)]),
        ("hands2017", [(0, 1, 6, 7, 8), (0, 2, 9, 10, 11), (0, 3, 12, 13, 14), (0, 4, 15, 16, 17), (0, 5, 18, 19, 20)]),
        ("itop", [(0, 1), (1, 2, 4, 6), (1, 3, 5, 7), (1, 8), (8, 9, 11, 13), (8, 10, 12, 14)]),
    ],
)
def test_bones_are_those_of_the_authors_drawings(name, chains):
    assert set(SKELETONS[name].edges) == {pair for chain in chains for pair in pairwise(chain)}


def test_orders_of_the_data_sets():
    # HO-3D's own conversion to the usual order, section 7 of its notes.
    to_usual = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    assert order("mano", "thumb_first").tolist() == to_usual
    assert order("nyu36", "nyu14").tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32]
    assert SKELETONS["stb"].joints[:2] == ("palm", "pinky_mcp")
    assert SKELETONS["stb"].joints[-1] == "thumb_tip"
    assert SKELETONS["msra"].joints[17] == "thumb_mcp"
    assert SKELETONS["hands2017"].joints[6:9] == ("thumb_pip", "thumb_dip", "thumb_tip")
    assert SKELETONS["nyu14"].root == 13


def test_wild_order_agrees_with_the_measured_one(golden):
    orders = json.loads((golden / "hand3d_wild" / "orders.json").read_text())
    assert order("thumb_first", "wild").tolist() == orders["gather_openpose_to_mano21"]
    assert order("wild", "thumb_first").tolist() == orders["gather_mano21_to_openpose"]


@pytest.mark.parametrize("src", HANDS_21)
@pytest.mark.parametrize("dst", HANDS_21)
def test_reorder_round_trip_and_names(src, dst):
    x = np.random.default_rng(0).normal(size=(2, 4, 21, 3))
    y = reorder(x, src, dst)
    np.testing.assert_array_equal(reorder(y, dst, src), x)
    index = SKELETONS[src].index("ring_pip")
    np.testing.assert_array_equal(y[..., SKELETONS[dst].index("ring_pip"), :], x[..., index, :])


def test_mirror_swaps_the_sides_of_a_body_only():
    itop = SKELETONS["itop"]
    assert [itop.joints[i] for i in itop.mirror][2:4] == ["left_shoulder", "right_shoulder"]
    assert itop.mirror[8] == 8
    assert SKELETONS["mano"].mirror == tuple(range(21))


def test_tips_are_saturated_and_bases_light():
    s = SKELETONS["thumb_first"]
    assert s.colors[0] == (230, 230, 0)
    assert s.colors[s.index("thumb_tip")] == (255, 0, 0)
    assert sum(s.colors[s.index("thumb_mcp")]) > sum(s.colors[s.index("thumb_tip")])


def test_errors_name_what_is_missing():
    with pytest.raises(DataError, match=r"stb order lacks .*wrist"):
        reorder(np.zeros((21, 3)), "stb", "mano")
    with pytest.raises(DataError, match=r"'smplx'.*known: mano"):
        get("smplx")
    with pytest.raises(DataError, match=r"expected joints \(\.\.\., 21, C\).*\(16, 3\)"):
        reorder(np.zeros((16, 3)), "mano", "msra")
    with pytest.raises(DataError, match=r"no joint 'wrist'.*palm"):
        SKELETONS["icvl"].index("wrist")
