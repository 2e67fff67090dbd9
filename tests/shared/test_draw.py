import numpy as np
import pytest
from PIL import Image

from shared import draw
from shared.errors import DataError
from shared.skeletons import SKELETONS

WHITE = np.full((120, 160, 3), 255, np.uint8)


def fan(name):
    """A made-up flat hand: a child lies 12 pixels or millimetres farther from the root, every limb in its direction."""
    s = SKELETONS[name]
    angles = np.linspace(0, 2 * np.pi, len(s), endpoint=False)
    return np.stack([80 + 40 * np.cos(angles), 60 + 40 * np.sin(angles)], -1)


def test_depth_colours_follow_the_authors_drawing():
    depth = np.array([[300.0, 400.0, 500.0, 0.0, np.nan]])
    picture = draw.depth_to_rgb(depth, center_mm=400, cube_mm=200)
    assert picture[0, 0].tolist() == [0, 0, 0]  # near is dark
    assert picture[0, 1].tolist() == [128, 120, 102]
    assert picture[0, 2].tolist() == [255, 240, 204]  # far: white with the tint 1, 0.94, 0.8
    assert picture[0, 3].tolist() == picture[0, 4].tolist() == [255, 240, 204]  # nothing measured
    hidden = draw.depth_to_rgb(depth, center_mm=400, cube_mm=200, valid=np.array([[False, True, True, False, False]]))
    assert hidden[0, 0].tolist() == [255, 240, 204]


def test_depth_range_is_chosen_when_none_is_given():
    depth = np.linspace(300, 500, 1000).reshape(20, 50)
    picture = draw.depth_to_rgb(depth)
    assert picture[0, 0, 0] == 0
    assert picture[-1, -1, 0] == 255
    assert draw.depth_to_rgb(np.zeros((3, 4))).tolist() == np.full((3, 4, 3), [255, 240, 204]).tolist()
    with pytest.raises(DataError, match=r"depth map \(H, W\), got shape \(3, 4, 1\)"):
        draw.depth_to_rgb(np.zeros((3, 4, 1)))


@pytest.mark.parametrize("name", SKELETONS)
def test_every_joint_is_drawn_in_its_colour_at_its_place(name):
    points = fan(name)
    picture = draw.draw_skeleton(WHITE, points, name)
    assert (WHITE == 255).all()  # the input stays
    for joint, (u, v) in enumerate(np.rint(points).astype(int)):
        np.testing.assert_allclose(picture[v, u], SKELETONS[name].colors[joint], atol=3)


@pytest.mark.parametrize("scale", [1, 3])
def test_key_points_are_pixel_centres(scale):
    points = np.full((5, 2), np.nan)
    points[2] = [10, 20]
    picture = draw.draw_skeleton(WHITE, points, "fingertips", scale=scale, width=2 * scale)
    rows, columns = np.nonzero((picture != 255).any(-1))
    middle = np.array([columns.mean(), rows.mean()])
    np.testing.assert_allclose((middle + 0.5) / scale - 0.5, [10, 20], atol=0.2)
    assert picture.shape == (120 * scale, 160 * scale, 3)


def test_hidden_joints_and_their_bones_are_left_out():
    points = fan("icvl")
    mask = np.ones(16, bool)
    mask[3] = False
    picture = draw.draw_skeleton(WHITE, points, "icvl", mask=mask)
    u, v = np.rint(points[3]).astype(int)
    assert picture[v, u].tolist() == [255, 255, 255]
    between = np.rint(0.3 * points[2] + 0.7 * points[3]).astype(int)
    assert picture[between[1], between[0]].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(picture, draw.draw_skeleton(WHITE, np.where(mask[:, None], points, np.nan), "icvl"))


def test_one_colour_and_points_far_outside():
    points = fan("msra")
    points[4] = [1e12, -1e12]
    picture = draw.draw_skeleton(WHITE, points, "msra", color=(10, 20, 250))
    u, v = np.rint(points[8]).astype(int)
    np.testing.assert_allclose(picture[v, u], [10, 20, 250], atol=3)


def test_crop_around():
    picture = np.arange(120 * 160 * 3, dtype=np.uint8).reshape(120, 160, 3)
    crop, (left, top) = draw.crop_around(picture, [[50, 40], [60.5, 70]], margin=10)
    assert (left, top) == (40, 30)
    np.testing.assert_array_equal(crop, picture[30:81, 40:72])
    crop, offset = draw.crop_around(picture, [[-500, 900]], margin=5)
    assert crop.size
    assert offset == (0, 119)
    assert draw.crop_around(picture, [[np.nan, 0]])[0].shape == picture.shape


def test_panels_and_contact_sheet():
    red, blue = (np.full((30, 40, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255)))
    row = draw.side_by_side([red, blue], gap=6)
    assert row.shape == (30, 86, 3)
    assert row[15, 10].tolist() == [255, 0, 0]
    assert row[15, 60].tolist() == [0, 0, 255]
    assert draw.side_by_side([red, np.repeat(blue, 2, 0)]).shape == (60, 80 + 8 + 40, 3)  # scaled to one height
    assert draw.side_by_side([red, blue], ["one", ""]).shape == (54, 88, 3)
    titled = draw.contact_sheet([red, blue, red], 2, ["a" * 50, "", "c"], gap=4)
    assert titled.shape == (2 * (54 + 4) + 4, 2 * 44 + 4, 3)
    assert (titled[4:28, 4:44] < 128).any()  # letters
    assert (titled[4:28, 48:] == 255).all()  # no letters
    assert titled[40, 60].tolist() == [0, 0, 255]
    assert draw.contact_sheet([red], 3).shape == (30 + 16, 3 * 48 + 8, 3)


def test_3d_view_sees_the_hand_from_the_cameras_side():
    s = SKELETONS["msra"]
    hand = np.zeros((21, 3))
    hand[:, 2] = 500
    up, right = s.index("middle_tip"), s.index("thumb_tip")
    hand[up, 1], hand[right, 0] = -80, 80  # y down: the finger points up; x right: the thumb points right
    picture = draw.skeleton_3d([hand], "msra", size=(300, 280))
    assert picture.shape == (280, 300, 3)

    def middle(joint):
        rows, columns = np.nonzero((np.abs(picture.astype(int) - s.colors[joint]) < 12).all(-1))
        return columns.mean(), rows.mean()

    root = middle(0)
    assert middle(up)[1] < root[1] - 20
    assert abs(middle(up)[0] - root[0]) < 15
    assert middle(right)[0] > root[0] + 20


def test_3d_view_of_two_hands_and_hidden_joints():
    rng = np.random.default_rng(0)
    a, b = rng.normal(scale=40, size=(2, 16, 3)) + np.array([0, 0, 400])
    two = draw.skeleton_3d([a, b], "icvl")
    assert (np.abs(two.astype(int) - draw.GREY) < 8).all(-1).any()
    red = (np.abs(two.astype(int) - [255, 0, 0]) < 8).all(-1)
    assert red.any()
    hidden = np.ones(16, bool)
    hidden[1:4] = False
    masked = draw.skeleton_3d([a, b], "icvl", masks=[None, hidden])
    assert not (np.abs(masked.astype(int) - [255, 0, 0]) < 8).all(-1).any()


def test_save_and_bytes(tmp_path):
    picture = draw.draw_skeleton(WHITE, fan("itop"), "itop")
    draw.save(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    assert draw.png_bytes(picture).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: draw.draw_skeleton(np.zeros((9, 9)), fan("icvl"), "icvl"),
            r"image \(H, W, 3\) of uint8, got \(9, 9\)",
        ),
        (lambda: draw.draw_skeleton(WHITE, fan("icvl"), "msra"), r"key points \(21, 2\).* got \(16, 2\)"),
        (lambda: draw.skeleton_3d([np.zeros((16, 3))], "msra"), r"joints \(21, 3\).* got \(16, 3\)"),
        (lambda: draw.skeleton_3d([], "msra"), "no hand to draw"),
        (lambda: draw.contact_sheet([], 2), "no images"),
        (lambda: draw.contact_sheet([WHITE], 2, ["a", "b"]), "2 titles for 1 images"),
        (lambda: draw.side_by_side([WHITE], ["a", "b"]), "got 1 and 2 titles"),
    ],
)
def test_errors(call, message):
    with pytest.raises(DataError, match=message):
        call()
