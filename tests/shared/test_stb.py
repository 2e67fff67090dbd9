"""The STB reader: cameras, the palm, depth bytes, label files that are not what they should be."""

import contextlib
import io
import json
import pickle
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.spatial.transform import Rotation

from shared.camera import project
from shared.datasets import stb
from shared.datasets.base import FrameDataset
from shared.datasets.matlab import read_array
from shared.errors import DataError, MissingFileError
from shared.standin.stb import write_stb


def mat_bytes(value: np.ndarray, name: str = "handPara", *, compress: bool = False) -> bytes:
    file = io.BytesIO()
    savemat(file, {name: value}, do_compression=compress)
    return file.getvalue()


LABELS = np.random.default_rng(0).uniform(-100, 600, (3, 21, 4))


def test_labels_are_transposed_to_frames_joints_xyz(tmp_path: Path) -> None:
    for compress in (False, True):
        (tmp_path / "a.mat").write_bytes(mat_bytes(LABELS, compress=compress))
        got = stb.read_labels(tmp_path / "a.mat")
        assert got.shape == (4, 21, 3)
        assert got[2, 5, 1] == LABELS[1, 5, 2]


@pytest.mark.parametrize("dtype", ["f8", "f4", "i2", "u1", "i4", "u4", "i8"])
def test_the_matlab_reader_agrees_with_scipy(tmp_path: Path, dtype: str) -> None:
    values = (np.abs(LABELS) / 3).astype(dtype)
    for compress in (False, True):
        file = io.BytesIO()
        savemat(file, {"note": "text", "handPara": values, "x": np.eye(2)}, do_compression=compress)
        (tmp_path / "a.mat").write_bytes(file.getvalue())
        for name in ("handPara", "x"):
            np.testing.assert_array_equal(read_array(tmp_path / "a.mat", name), loadmat(tmp_path / "a.mat")[name])
    with pytest.raises(DataError, match="no variable y; it has note, handPara, x"):
        read_array(tmp_path / "a.mat", "y")


def test_sizes_in_the_header_that_crash_other_readers_are_refused(tmp_path: Path) -> None:
    """Words of the header replaced by absurd numbers: scipy 1.17 dies of some of these."""
    good = mat_bytes(LABELS)
    for at in range(128, 200, 4):
        for word in (0, 7, 14, 15, 2**28, 2**31 - 1, 2**32 - 1):
            (tmp_path / "a.mat").write_bytes(good[:at] + struct.pack("<I", word) + good[at + 4 :])
            with contextlib.suppress(DataError):
                assert stb.read_labels(tmp_path / "a.mat").shape[1:] == (21, 3)


def test_depth_is_red_plus_256_green(tmp_path: Path) -> None:
    rgb = np.zeros((480, 640, 3), np.uint8)
    rgb[3, 5] = (17, 2, 99)
    Image.fromarray(rgb).save(tmp_path / "d.png")
    depth = stb.read_depth(tmp_path / "d.png")
    assert depth.dtype == np.float32
    assert depth[3, 5] == 17 + 512
    assert depth.sum() == 529
    Image.fromarray(rgb[:240]).save(tmp_path / "d.png")
    with pytest.raises(DataError, match="expected 640x480"):
        stb.read_depth(tmp_path / "d.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "d.png")
    with pytest.raises(DataError, match="expected an RGB picture"):
        stb.read_depth(tmp_path / "d.png")


def test_the_rotation_is_rodrigues_and_the_transforms_are_inverse() -> None:
    np.testing.assert_allclose(
        stb.R_DEPTH_COLOR, Rotation.from_rotvec([0.00531, -0.01196, 0.00301]).as_matrix(), atol=1e-15
    )
    points = LABELS.T
    np.testing.assert_allclose(stb.color_to_depth(stb.depth_to_color(points)), points, atol=1e-10)
    # the colour camera's origin, seen from the depth camera, is the readme's translation
    np.testing.assert_allclose(stb.depth_to_color(np.array([-24.0381, -0.4563, -1.2326])), 0, atol=1e-12)


def test_projection_agrees_with_the_reference(golden: Path) -> None:
    """Left and right pixels measured on the original projection code."""
    with np.load(golden / "hand3d_wild" / "geometry.npz") as data:
        worst = 0.0
        left = data["mm_xyz"].transpose(0, 2, 1).astype(np.float64)
        for key, points in (("mm_uv_left", left), ("mm_uv_right", stb.left_to_right(left))):
            expected = data[key].transpose(0, 2, 1)[..., :2]
            worst = max(worst, float(np.abs(project(points, stb.K["BB_left"]) - expected).max()))
    print(f"STB projection max diff {worst:.3g} px")
    assert worst < 1e-4


def test_cameras_and_order_agree_with_the_measured_constants(golden: Path) -> None:
    constants = json.loads((golden / "hand3d_wild" / "orders.json").read_text())
    bumblebee, sense = constants["stb_bumblebee"], constants["stb_realsense"]
    assert stb.K["BB_left"][[0, 1, 0, 1], [0, 1, 2, 2]].tolist() == [bumblebee[k] for k in ("fx", "fy", "tx", "ty")]
    assert bumblebee["baseline_mm"] == stb.BASELINE_MM
    for camera, name in (("SK_color", "color"), ("SK_depth", "depth")):
        expected = [sense[f"{k}_{name}"] for k in ("fx", "fy", "tx", "ty")]
        assert stb.K[camera][[0, 1, 0, 1], [0, 1, 2, 2]].tolist() == expected
    # through the wild order: the thumb-first gather of this reader is the golden one composed
    to_wild, back = constants["gather_stb_to_mano21"], constants["gather_mano21_to_openpose"]
    assert [to_wild[i] for i in back] == stb._TO_THUMB_FIRST


def test_the_wrist_lies_beyond_the_palm() -> None:
    joints = LABELS.T.copy()
    for factor in (2.0, 2.2):
        wrist = stb.palm_to_wrist(joints, factor)
        np.testing.assert_allclose(wrist[:, 0], joints[:, 9] + factor * (joints[:, 0] - joints[:, 9]))
        np.testing.assert_array_equal(wrist[:, 1:], joints[:, 1:])
    np.testing.assert_allclose(stb.palm_to_wrist(joints, 1.0), joints)


def _bad(value: object, **keys: object) -> bytes:
    return mat_bytes(np.asarray(value), **keys)


def _bomb() -> bytes:
    """A compressed element of a few kilobytes that inflates to 512 MB."""
    squeezer = zlib.compressobj(9)
    body = squeezer.compress(struct.pack("<II", 14, 2**29)) + b"".join(
        squeezer.compress(bytes(2**20)) for _ in range(512)
    )
    body += squeezer.flush()
    return mat_bytes(LABELS)[:128] + struct.pack("<II", 15, len(body)) + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB 5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "MATLAB 7.3"),
        (bytes(4000), "not a MATLAB 5 file"),
        (mat_bytes(LABELS)[:-100], r"damaged MATLAB file \(an element of \d+ bytes where \d+ are left"),
        (_bad(LABELS, name="other"), "no variable handPara; it has other"),
        (_bad(LABELS[:2]), r"expected handPara of shape \(3, 21, n\), got \(2, 21, 4\)"),
        (_bad([["a"]]), "handPara is not a real numeric array"),
        (_bad(LABELS + 1j), "handPara is not a real numeric array"),
        (_bad(np.where(LABELS > 500, np.nan, LABELS)), "not finite"),
        (_bomb(), "inflates to more than the limit"),
    ],
)
def test_a_bad_label_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.mat"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(DataError, match=message) as error:
        stb.read_labels(path)
    assert str(path) in str(error.value)
    assert time.process_time() - start < 1.5


def test_a_damaged_compressed_element_and_a_huge_file(tmp_path: Path) -> None:
    good = bytearray(mat_bytes(LABELS, compress=True))
    good[140:160] = bytes(20)
    (tmp_path / "a.mat").write_bytes(good)
    with pytest.raises(DataError, match="damaged MATLAB file"):
        stb.read_labels(tmp_path / "a.mat")
    with (tmp_path / "b.mat").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(DataError, match="at most 33554432"):
        stb.read_labels(tmp_path / "b.mat")
    with pytest.raises(MissingFileError, match="no such label file"):
        stb.read_labels(tmp_path / "c.mat")


@settings(max_examples=150, deadline=2000)
@given(data=st.data())
def test_damaged_bytes_raise_only_data_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = bytearray(mat_bytes(LABELS, compress=data.draw(st.booleans())))
    # damage the headers, where the sizes are, more often than the numbers
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(124, 220), st.integers(0, len(good) - 1)))
        good[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "a.mat"
    path.write_bytes(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    start = time.process_time()
    with contextlib.suppress(DataError):
        assert np.isfinite(stb.read_labels(path)).all()
    assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stb")
    write_stb(root, frames=8, seed=3)
    return root


def test_the_stand_in_set_reads_back(tree: Path) -> None:
    assert len(stb.open(tree, "train")) + len(stb.open(tree, "test")) == 8
    dataset = stb.open(tree, "test")
    assert isinstance(dataset, FrameDataset)
    assert dataset.names()[0] == "B1Counting/BB_left_0"
    frame = dataset[0]
    assert (frame.skeleton, frame.side, frame.image_size) == ("stb", "left", (640, 480))
    assert frame.rgb.shape == (480, 640, 3)
    assert frame.depth_mm is None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[1].rgb, dataset[1].rgb)
    depth = stb.open(tree, "test", camera="SK_depth")[0]
    assert depth.rgb is None
    assert depth.valid.any()


@pytest.mark.parametrize("camera", ["BB_left", "BB_right", "SK_color", "SK_depth"])
def test_joints_fall_on_the_hand_in_every_camera(tree: Path, camera: str) -> None:
    """In the picture itself: the stand-in hand is rendered on black here. Another camera's joints do not fall on it."""
    from shared.standin.stb import masks

    other = stb.color_to_depth if camera.startswith("SK") else stb.left_to_right
    variants = {
        "as read": lambda joints: joints,
        "y up": lambda joints: joints * [1, -1, 1],
        "mirrored": lambda joints: joints * [-1, 1, 1],
        "another camera's": other,
    }
    shares: dict[str, list[float]] = {name: [] for name in variants}
    for name, mask in masks(frames=8, seed=3, camera=camera).items():
        dataset = stb.open(tree, "test" if name.startswith("B1") else "train", camera=camera)
        joints = dataset[dataset.names().index(name)].joints_mm
        for variant, change in variants.items():
            shares[variant].append(on_mask(change(joints), stb.K[camera], mask))
    means = {variant: float(np.mean(values)) for variant, values in shares.items()}
    assert means.pop("as read") > 0.97, shares
    assert max(means.values()) < 0.85, means


def on_mask(joints: np.ndarray, K: np.ndarray, mask: np.ndarray) -> float:
    """Share of the projected joints within two pixels of the mask."""
    from scipy.ndimage import binary_dilation

    near = binary_dilation(mask, iterations=2)
    column, row = np.rint(project(joints, K)).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < mask.shape[1]) & (row < mask.shape[0])
    return float((inside & near[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)]).mean())


def test_wrist_option_hands_out_thumb_first_order(tree: Path) -> None:
    palm = stb.open(tree, "test")[0]
    wrist = stb.open(tree, "test", root_joint="wrist")
    assert "wrist extrapolated with 2" in wrist.summary()
    assert "palm as labelled" in stb.open(tree, "test").summary()
    frame = wrist[0]
    assert frame.skeleton == "thumb_first"
    np.testing.assert_array_equal(frame.joints_mm[1:5], palm.joints_mm[17:21])  # the thumb
    np.testing.assert_array_equal(frame.joints_mm[17:21], palm.joints_mm[1:5])  # the little finger
    np.testing.assert_allclose(frame.joints_mm[0], 2 * palm.joints_mm[0] - palm.joints_mm[9])
    far = stb.open(tree, "test", root_joint="wrist", wrist_factor=2.2)[0]
    assert np.linalg.norm(far.joints_mm[0] - palm.joints_mm[9]) > np.linalg.norm(frame.joints_mm[0] - palm.joints_mm[9])


def test_folders_without_images_and_inside_STB_are_found(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "STB"
    shutil.copytree(tree / "labels", root / "labels")
    for folder in (tree / "images").iterdir():
        shutil.copytree(folder, root / folder.name)
    for place in (root, tmp_path):
        assert stb.open(place, "train").names() == stb.open(tree, "train").names()
        stb.open(place, "train")[0]


def test_missing_pictures_and_sequences_are_counted(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    (root / "images" / "B1Counting" / "BB_left_0.png").unlink()
    (root / "labels" / "B1Random_BB.mat").unlink()
    dataset = stb.open(root, "test")
    full = stb.open(tree, "test")
    assert dataset.names() == [n for n in full.names() if n.startswith("B1Counting") and not n.endswith("_0")]
    np.testing.assert_array_equal(dataset[0].joints_mm, full[1].joints_mm)  # the labels moved with the pictures
    assert "skipped 1 labels without picture" in dataset.summary()
    assert "; no labels/B1Random_BB.mat" in dataset.summary()
    shutil.rmtree(root / "images" / "B1Random")
    assert "; no folder images/<SEQ> for B1Random" in stb.open(root, "test").summary()


def test_errors_name_what_to_do(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"looked for .*labels.*icip17"):
        stb.open(tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(MissingFileError, match="no BB_left frame of the test split; no folder images/<SEQ> for B1C"):
        stb.open(tmp_path, "test")
    for options, message in (
        ({"split": "val"}, "split: expected one of train, test, got 'val'"),
        ({"camera": "left"}, "camera: expected one of BB_left"),
        ({"root_joint": "middle"}, "root_joint: expected one of palm, wrist"),
    ):
        with pytest.raises(DataError, match=message):
            stb.open(tree, **options)
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    shutil.copy(root / "images/B1Counting/BB_left_0.png", root / "images/B1Counting/BB_left_77.png")
    with pytest.raises(DataError, match=r"BB_left_77.png has no label: B1Counting_BB.mat has 2 frames"):
        stb.open(root, "test")
