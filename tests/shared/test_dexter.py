"""Dexter+Object and EgoDexter: five tips, three markers for missing ones, two cameras, axes that are a hypothesis."""

import pickle
import re
import shutil
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.camera import project
from shared.datasets import dexter_object, egodexter
from shared.datasets.base import FrameDataset
from shared.datasets.fingertips import numbered_files, read_tips
from shared.errors import DataError, MissingFileError
from shared.standin.dexter_object import write_dexter_object
from shared.standin.egodexter import write_egodexter

TIPS_3D = "10, 20, 400; 11.5, 21, 401; 0, 0, 32001; -12, 22, 402; 13, 23, 403; 1, 2, 3; 4, 5, 6"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_dexter_object_labels_have_x_left_and_y_up_and_32001_is_missing(tmp_path: Path) -> None:
    got = dexter_object.read_labels(write(tmp_path / "a.txt", TIPS_3D + "\n"))
    assert got.shape == (1, 5, 3)
    np.testing.assert_array_equal(got[0, 1], [-11.5, -21, 401])
    assert np.isnan(got[0, 2]).all()
    as_is = dexter_object.read_labels(tmp_path / "a.txt", axes="opencv")
    np.testing.assert_array_equal(as_is[0, 3], [-12, 22, 402])
    with pytest.raises(DataError, match="axes: expected one of left-up"):
        dexter_object.read_labels(tmp_path / "a.txt", axes="up")


def test_dexter_object_2d_labels(tmp_path: Path) -> None:
    got = dexter_object.read_keypoints(write(tmp_path / "a.txt", "1, 2; -1, -1; 32001, 32001; 0, 0; 5, 6;\n"))
    assert np.isnan(got[0, [1, 2]]).all()
    np.testing.assert_array_equal(got[0, [0, 3, 4]], [[1, 2], [0, 0], [5, 6]])


def test_egodexter_labels_keep_their_axes_and_zero_is_missing(tmp_path: Path) -> None:
    text = "10,20,400; 0,-0,0; ,,;-12, 22,402;13,23,403;\n"
    got = egodexter.read_labels(write(tmp_path / "a.txt", text))
    np.testing.assert_array_equal(got[0, [0, 3]], [[10, 20, 400], [-12, 22, 402]])
    assert np.isnan(got[0, [1, 2]]).all()
    points = egodexter.read_keypoints(write(tmp_path / "b.txt", "1,2;-1,-1;3,4;5,6;7,8;\n"))
    assert np.isnan(points[0, 1]).all()
    assert np.isfinite(points[0, [0, 2, 3, 4]]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3;4,5,6\n", "line 1: expected 5 fingertips separated by ';', got 2"),
        (f"{TIPS_3D}\n1,2;1,2;1,2;1,2;1,2\n", r"line 2, fingertip 1: expected 3 numbers, got '1,2'"),
        (TIPS_3D.replace("11.5", "x"), "line 1, fingertip 2: expected 3 numbers"),
        (TIPS_3D.replace("11.5", "nan"), "line 1, fingertip 2: expected 3 numbers"),
        (TIPS_3D.replace("11.5", "1e999"), "line 1, fingertip 2: expected 3 numbers"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.txt", text)
    for module in (dexter_object, egodexter):
        with pytest.raises(DataError, match=message) as error:
            module.read_labels(path)
        assert str(path) in str(error.value)


@settings(max_examples=100, deadline=2000)
@given(data=st.data())
def test_damaged_text_raises_only_data_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = f"{TIPS_3D}\n{TIPS_3D}\n".encode()
    cut = data.draw(st.integers(0, len(good)))
    path = tmp_path_factory.mktemp("fuzz") / "a.txt"
    path.write_bytes(good[:cut] + data.draw(st.binary(max_size=30)) + good[cut + data.draw(st.integers(0, 30)) :])
    start = time.process_time()
    try:
        tips = read_tips(path, 3)
        assert np.isfinite(tips[~np.isnan(tips)]).all()
    except DataError:
        pass
    assert time.process_time() - start < 1


def test_a_huge_label_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(DataError, match="at most 8388608"):
        read_tips(tmp_path / "a.txt", 3)


def test_pictures_belong_to_the_line_of_their_number(tmp_path: Path) -> None:
    for number in (5, 2, 10):
        (tmp_path / f"image_{number:05d}_color.png").touch()
    (tmp_path / "notes.txt").touch()
    got = numbered_files(tmp_path, (".png",), lines=11)
    assert [(line, name[6:11]) for line, name in got] == [(2, "00002"), (5, "00005"), (10, "00010")]
    # numbers that do not run from 0: the position counts, if the number of pictures allows it
    assert [line for line, _ in numbered_files(tmp_path, (".png",), lines=3)] == [0, 1, 2]
    with pytest.raises(DataError, match="3 pictures numbered 2 to 10 do not fit 9 label lines"):
        numbered_files(tmp_path, (".png",), lines=9)


def test_depth_markers_become_zero(tmp_path: Path) -> None:
    for module, size in ((dexter_object, (240, 320)), (egodexter, (480, 640))):
        values = np.full(size, 500, np.uint16)
        values[0, :3] = (0, 32001, 65535)
        Image.fromarray(values).save(tmp_path / "d.png")
        depth = module.read_depth(tmp_path / "d.png")
        assert depth.dtype == np.float32
        np.testing.assert_array_equal(depth[0, :4], [0, 0, 0, 500])
        Image.fromarray(values[:100]).save(tmp_path / "d.png")
        with pytest.raises(DataError, match=r"expected .* pixels, the header says"):
            module.read_depth(tmp_path / "d.png")


def test_colour_pictures_may_be_bmp(tmp_path: Path) -> None:
    rgb = np.zeros((480, 640, 3), np.uint8)
    rgb[1, 2] = (10, 20, 30)
    for suffix in ("bmp", "png"):
        Image.fromarray(rgb).save(tmp_path / f"c.{suffix}")
        np.testing.assert_array_equal(dexter_object.read_color(tmp_path / f"c.{suffix}"), rgb)
    with pytest.raises(MissingFileError, match="no such picture"):
        dexter_object.read_color(tmp_path / "none.bmp")
    data = (tmp_path / "c.bmp").read_bytes()
    for content, message in (
        (data[:5000], "damaged or truncated picture"),
        (b"BM" + bytes(100), "not a readable PNG or JPEG or BMP"),
        (data[:18] + (60000).to_bytes(4, "little") + data[22:], "expected 640x480 pixels, the header says 60000x480"),
    ):
        (tmp_path / "c.bmp").write_bytes(content)
        with pytest.raises(DataError, match=message):
            dexter_object.read_color(tmp_path / "c.bmp")


@pytest.mark.parametrize(
    ("module", "origin"), [(dexter_object, [19.0473, -1.8514, -4.7501]), (egodexter, [20.2365, 1.2846, 5.7360])]
)
def test_the_depth_camera_seen_from_the_colour_camera(module: ModuleType, origin: list[float]) -> None:
    np.testing.assert_allclose(module.depth_to_color(np.zeros(3)), origin)
    rotation = module.T_COLOR_DEPTH[:, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=6e-4)  # published with four decimals


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dexter")
    write_dexter_object(root / "do", frames=8, seed=4)
    write_egodexter(root / "ego", frames=8, seed=4)
    return {"dexter_object": root / "do", "egodexter": root / "ego"}


MODULES = {"dexter_object": dexter_object, "egodexter": egodexter}


@pytest.mark.parametrize("name", MODULES)
def test_the_stand_in_set_reads_back(trees: dict[str, Path], name: str) -> None:
    module, root = MODULES[name], trees[name]
    dataset = module.open(root)
    assert isinstance(dataset, FrameDataset)
    assert 0 < len(dataset) < 8  # some frames have no label at all
    assert "skipped 1 frames without a label" in dataset.summary()
    valid = []
    for i, frame_name in enumerate(dataset.names()):
        frame = dataset[i]
        assert (frame.name, frame.skeleton, frame.side) == (frame_name, "fingertips", "left")
        assert frame.joints_mm.shape == (5, 3)
        assert frame.depth_mm is None
        assert frame.rgb.shape == (480, 640, 3)
        assert np.isfinite(frame.joints_mm[frame.joints_valid]).all()
        assert np.isnan(frame.joints_mm[~frame.joints_valid]).all()
        valid.append(frame.joints_valid)
    assert not np.all(valid)  # the writer hides some tips
    assert f"{int(np.sum(valid))} fingertips" in dataset.summary()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[1].joints_mm, dataset[1].joints_mm)
    depth = module.open(root, camera="depth")
    assert len(depth) == len(dataset)
    np.testing.assert_allclose(module.depth_to_color(depth[0].joints_mm), dataset[0].joints_mm, atol=1e-9)
    np.testing.assert_array_equal(depth[0].K, module.K_DEPTH)
    np.testing.assert_array_equal(dataset[0].K, module.K_COLOR)
    below = module.open(root / "data")
    assert below.names() == dataset.names()


@pytest.mark.parametrize("name", MODULES)
def test_tips_lie_just_below_the_measured_surface_and_flipped_ones_do_not(trees: dict[str, Path], name: str) -> None:
    dataset = MODULES[name].open(trees[name], camera="depth")
    shares = {}
    for label, sign in (("as read", (1, 1)), ("upside down", (1, -1)), ("mirrored", (-1, 1))):
        fits = []
        for i in range(len(dataset)):
            frame = dataset[i]
            tips = frame.joints_mm[frame.joints_valid] * (*sign, 1)
            fits += [
                near_surface(frame.depth_mm, uv, z) for uv, z in zip(project(tips, frame.K), tips[:, 2], strict=True)
            ]
        shares[label] = np.mean(fits)
    assert shares["as read"] > 0.8, shares
    assert shares["upside down"] < 0.5, shares
    assert shares["mirrored"] < 0.5, shares


def near_surface(depth_mm: np.ndarray, uv: np.ndarray, z: float) -> bool:
    """A measurement within two pixels is 8 mm behind to 24 mm in front of the tip."""
    column, row = np.rint(uv).astype(int)
    window = depth_mm[max(row - 2, 0) : max(row + 3, 0), max(column - 2, 0) : max(column + 3, 0)]
    measured = window[window > 0]
    return bool((abs(z - measured - 8) < 16).any())


@pytest.mark.parametrize("name", MODULES)
def test_2d_labels_are_the_projection_into_the_depth_picture(trees: dict[str, Path], name: str) -> None:
    module = MODULES[name]
    dataset = module.open(trees[name], camera="depth")
    for i in range(len(dataset)):
        frame = dataset[i]
        uv = project(frame.joints_mm[frame.joints_valid], module.K_DEPTH)
        labelled = frame.extra["keypoints_2d_depth"][frame.joints_valid]
        assert np.nanmax(np.abs(uv - labelled)) <= 0.51  # whole pixels


def test_dexter_object_axes_are_found_from_the_2d_labels(trees: dict[str, Path], tmp_path: Path) -> None:
    found = dexter_object.open(trees["dexter_object"])
    assert found.axes == "left-up"
    assert "label axes left-up (median 0." in found.summary()
    root = tmp_path / "copy"
    shutil.copytree(trees["dexter_object"], root)
    for path in root.glob("data/*/annotations/*3D.txt"):  # the same set, had its authors labelled in OpenCV axes
        tips = read_tips(path, 3)
        tips[..., :2] *= -1
        path.write_text("".join("; ".join(f"{x:.4f}, {y:.4f}, {z:.4f}" for x, y, z in t) + "\n" for t in tips))
    other = dexter_object.open(root)
    assert other.axes == "opencv"
    np.testing.assert_allclose(other[0].joints_mm, found[0].joints_mm, atol=1e-3)
    forced = dexter_object.open(root, axes="left-up")
    assert forced.axes_distance_px > 20
    for path in root.glob("data/*/annotations/*2D.txt"):
        path.unlink()
    blind = dexter_object.open(root)
    assert blind.axes == "left-up"
    assert "no 2-D labels to compare with" in blind.summary()


def test_egodexter_depth_frames_carry_the_warped_colour(trees: dict[str, Path], tmp_path: Path) -> None:
    frame = egodexter.open(trees["egodexter"], camera="depth")[0]
    assert frame.rgb.shape == (480, 640, 3)
    assert (frame.rgb.any(-1) == frame.valid).mean() > 0.99
    root = tmp_path / "copy"
    shutil.copytree(trees["egodexter"], root)
    for folder in root.glob("data/*/color_on_depth"):
        shutil.rmtree(folder)
    assert egodexter.open(root, camera="depth")[0].rgb is None


@pytest.mark.parametrize("name", MODULES)
def test_corrected_labels_are_read_where_a_user_put_them(trees: dict[str, Path], name: str, tmp_path: Path) -> None:
    module = MODULES[name]
    with pytest.raises(MissingFileError, match=r"my_.*3D.txt: missing: corrected 3-D labels"):
        module.open(trees[name], labels="corrected")
    root = tmp_path / "copy"
    shutil.copytree(trees[name], root)
    for path in [*root.glob("data/*/annotations/*3D.txt"), *root.glob("data/*/annotation.txt_3D.txt")]:
        lines = path.read_text().splitlines(keepends=True)
        blank = "; ".join(["0, 0, 32001"] * 5) if name == "dexter_object" else ";".join([",,"] * 5)
        path.with_name(f"my_{path.name}").write_text(blank + "\n" + "".join(lines[1:]))
    assert len(module.open(root, labels="corrected")) < len(module.open(root))


@pytest.mark.parametrize("name", MODULES)
def test_errors_name_what_to_do(trees: dict[str, Path], name: str, tmp_path: Path) -> None:
    module = MODULES[name]
    with pytest.raises(MissingFileError, match=r"no folder of .* here; looked for .*data.*handtracker\.mpi-inf"):
        module.open(tmp_path)
    for options, message in (
        ({"split": "train"}, "split: expected one of test"),
        ({"camera": "left"}, "camera: expected one of color, depth"),
        ({"labels": "new"}, "labels: expected one of original, corrected"),
    ):
        with pytest.raises(DataError, match=message):
            module.open(trees[name], **options)
    root = tmp_path / "copy"
    shutil.copytree(trees[name], root)
    sequence = module.open(root).names()[0].split("/")[0]
    last = module.SEQUENCES[-1]
    shutil.rmtree(root / "data" / last)
    assert re.search(rf"missing sequences: .*{last}", module.open(root).summary())
    labels = next(p for p in (root / "data" / sequence).rglob("*3D.txt"))
    text = labels.read_text()
    labels.write_text(text * 2)
    with pytest.raises(DataError, match=r"lines, but .* has "):
        module.open(root)
    labels.unlink()
    with pytest.raises(MissingFileError, match=r"3D.txt: missing: original 3-D labels of .* download: "):
        module.open(root)
    labels.write_text(text)
    shutil.rmtree(root / "data" / sequence / "color")
    with pytest.raises(MissingFileError, match="no color pictures of"):
        module.open(root)


def test_a_set_without_a_labelled_tip_says_so(trees: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trees["egodexter"], root)
    for path in root.glob("data/*/annotation.txt_3D.txt"):
        path.write_text("0,0,0;0,0,0;0,0,0;0,0,0;0,0,0;\n" * len(path.read_text().splitlines()))
    with pytest.raises(MissingFileError, match="no picture with a labelled fingertip"):
        egodexter.open(root)
