"""The predict program: images and cameras in, centres found, results written, and everything a user can get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared import skeletons
from shared.datasets.centers import write_centers
from shared.errors import DataError, MissingFileError
from tests.shared.test_msra import bin_bytes
from tests.v2v_posenet.test_centers import K, Shift, blob_hand, render_spheres
from v2v_posenet import predict as program
from v2v_posenet.center_net import CenterNet, CenterRefiner, save_center_checkpoint
from v2v_posenet.convert import checkpoint_of, save_checkpoint
from v2v_posenet.inference import Predictor
from v2v_posenet.model import V2VPoseNet
from v2v_posenet.predict import CenterFinder, DepthImage, Predict

CAMERA = {"fx": 241.42, "fy": 241.42, "u0": 160.0, "v0": 120.0}


def tiny_checkpoint(path: Path, seed: int = 0, dataset: str = "msra", skeleton: str = "msra") -> str:
    torch.manual_seed(seed)
    network = V2VPoseNet(21, (2, 2, 2, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5)
    options = {"variant": "gaussian", "convention": program_convention(), "dataset": dataset, "skeleton": skeleton}
    save_checkpoint(path, checkpoint_of(network, cube_mm=200.0, grid=16, **options))  # type: ignore[arg-type]
    return str(path)


def program_convention():
    from v2v_posenet.config import CONVENTIONS

    return CONVENTIONS["zero"]


def hand_depth(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A full depth image in mm (whole numbers) and the mean of its joints."""
    joints, spheres, radii = blob_hand(np.random.default_rng(seed))
    return np.round(render_spheres(spheres, radii)), joints.mean(0)


def save_png(path: Path, depth: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(depth.astype(np.uint16)).save(path)
    return path


def options(tmp_path: Path, *images: Path, **changes: object) -> Predict:
    if not (tmp_path / "net.pt").exists():
        tiny_checkpoint(tmp_path / "net.pt")
    base = Predict([str(p) for p in images], [str(tmp_path / "net.pt")], str(tmp_path / "out"), device="cpu", **CAMERA)
    return replace(base, **changes)  # type: ignore[arg-type]


def read(tmp_path: Path, name: str) -> dict:
    return json.loads((tmp_path / "out" / f"{name}.json").read_text())


# --- results ---


def test_one_image_gives_joints_and_a_picture(tmp_path: Path) -> None:
    depth, _ = hand_depth()
    image = save_png(tmp_path / "hand.png", depth)
    assert program.predict(options(tmp_path, image), progress=False) == []
    result = read(tmp_path, "hand")
    direct = Predictor(str(tmp_path / "net.pt"))(depth, K, result["center_mm"])
    np.testing.assert_allclose(result["joints_mm"], direct.joints_mm, atol=2e-3)
    np.testing.assert_allclose(result["joints_uv"], direct.uv, atol=2e-3)
    np.testing.assert_allclose(result["confidence"], direct.confidence, atol=1e-4)
    assert result["joint_names"] == list(skeletons.get("msra").joints)
    assert result["skeleton"] == "msra"
    assert result["center_from"] == "automatic"
    assert result["cube_mm"] == 200
    assert result["voxels"] == direct.voxels > 0
    assert result["intrinsics"] == CAMERA
    assert result["checkpoints"] == [str(tmp_path / "net.pt")]
    picture = np.asarray(Image.open(tmp_path / "out/hand_joints.png"))
    assert picture.shape == (480, 640, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # depths and colours


def test_overlay_draws_the_joints_where_they_are(tmp_path: Path) -> None:
    """Also for a crop: a bone between two joints has the finger's colour halfway."""
    depth, center = hand_depth()
    image = DepthImage(depth[20:, 10:].astype(np.float32), (10, 20), (320, 240))
    uv = np.full((21, 2), np.nan)
    uv[[0, 1]] = [[100, 50], [140, 90]]
    program.save_overlay(tmp_path / "o.png", program.make_frame(image, K, center, "msra"), uv, 200.0)
    picture = np.asarray(Image.open(tmp_path / "o.png")).astype(int)
    assert np.abs(picture[141, 241] - skeletons.get("msra").colors[1]).max() <= 2
    row, column = np.argwhere(depth > 0)[len(np.argwhere(depth > 0)) // 2]
    assert picture[2 * row, 2 * column, 0] < 200  # the hand is darker than the white ground
    assert picture[0, 0, 0] == 255


def test_formats_and_scale_give_the_same_joints(tmp_path: Path) -> None:
    depth, _ = hand_depth()
    rows, columns = np.nonzero(depth)
    left, top = columns.min(), rows.min()
    crop = depth[top : rows.max() + 1, left : columns.max() + 1]
    save_png(tmp_path / "in/a.png", depth)
    np.save(tmp_path / "in/b.npy", depth.astype(np.float64))
    missing = np.where(depth == 0, np.nan, depth)
    missing[0, 0] = np.inf
    np.save(tmp_path / "in/c.npy", missing)
    (tmp_path / "in/d.bin").write_bytes(bin_bytes(crop, left, top))
    center = "5,-4,380"
    program.predict(options(tmp_path, tmp_path / "in", center=center, overlay=False), progress=False)
    results = [read(tmp_path, name) for name in "abcd"]
    assert all(r["joints_mm"] == results[0]["joints_mm"] for r in results)
    assert results[0]["center_from"] == "given"
    assert results[0]["center_mm"] == [5, -4, 380]
    assert not list((tmp_path / "out").glob("*.png"))
    save_png(tmp_path / "tenths/a.png", depth * 10)
    half = options(tmp_path, tmp_path / "tenths", center=center, depth_scale=0.1)
    program.predict(half, progress=False)
    assert read(tmp_path, "a")["joints_mm"] == results[0]["joints_mm"]


def test_ensemble_averages_and_cube_changes(tmp_path: Path) -> None:
    image = save_png(tmp_path / "hand.png", hand_depth()[0])
    two = [tiny_checkpoint(tmp_path / f"{i}.pt", i) for i in (1, 2)]
    joints = []
    for files in ([two[0]], [two[1]], two):
        program.predict(options(tmp_path, image, checkpoint=files, overlay=False), progress=False)
        joints.append(np.array(read(tmp_path, "hand")["joints_mm"]))
    np.testing.assert_allclose(joints[2], (joints[0] + joints[1]) / 2, atol=2e-3)
    assert not np.allclose(joints[0], joints[1])
    program.predict(options(tmp_path, image, checkpoint=[two[0]], cube=260.0, overlay=False), progress=False)
    assert read(tmp_path, "hand")["cube_mm"] == 260
    assert not np.allclose(read(tmp_path, "hand")["joints_mm"], joints[0])


def test_folder_in_natural_order_with_broken_images(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in (1, 2, 10):
        save_png(folder / f"f{number}.png", hand_depth(number)[0])
    (folder / "f3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    save_png(folder / "f4.png", np.zeros((240, 320)))
    (folder / "notes.txt").write_text("not an image")
    opts = options(tmp_path, folder)
    listed = program.list_images([str(folder)], tmp_path / "out")
    assert [name for _, name in listed] == ["f1", "f2", "f3", "f4", "f10"]
    skipped = program.predict(opts, progress=False)
    assert [path.name for path, _ in skipped] == ["f3.png", "f4.png"]
    assert all(str(path) in text for path, text in skipped)
    assert "all background" in skipped[1][1]
    written = sorted(p.stem for p in (tmp_path / "out").glob("*.json"))
    assert written == ["f1", "f10", "f2"]
    alone = program.predict(options(tmp_path, folder / "f10.png", out=str(tmp_path / "alone")), progress=False)
    assert alone == []
    ten = json.loads((tmp_path / "alone/f10.json").read_text())
    assert ten["joints_mm"] == read(tmp_path, "f10")["joints_mm"]  # batch of several equals batch of one


def test_results_in_the_input_folder_are_no_images(tmp_path: Path) -> None:
    save_png(tmp_path / "in/a/x.png", hand_depth()[0])
    opts = options(tmp_path, tmp_path / "in", out=str(tmp_path / "in/out"))
    for _ in range(2):
        assert program.predict(opts, progress=False) == []
    assert (tmp_path / "in/out/a/x.json").exists()


def test_results_do_not_replace_what_is_read(tmp_path: Path) -> None:
    first = save_png(tmp_path / "a.png", hand_depth()[0])
    second = save_png(tmp_path / "a_joints.png", hand_depth()[0])
    before = second.read_bytes()
    here = options(tmp_path, first, second, out=str(tmp_path))
    with pytest.raises(DataError, match=r"a_joints\.png: would be overwritten by the results -- give another --out"):
        program.predict(here, progress=False)
    assert second.read_bytes() == before
    (tmp_path / "a.json").write_text(json.dumps(dict(fx=475.1, fy=475.1, u0=160.0, v0=120.0)))
    camera = options(tmp_path, first, out=str(tmp_path), intrinsics=str(tmp_path / "a.json"))
    for name in ("fx", "fy", "u0", "v0"):
        setattr(camera, name, None)
    with pytest.raises(DataError, match=r"a\.json: would be overwritten"):
        program.predict(camera, progress=False)
    assert "joints_mm" not in (tmp_path / "a.json").read_text()


def test_msra_frames_need_no_intrinsics(tmp_path: Path) -> None:
    path = tmp_path / "000000_depth.bin"
    path.write_bytes(bin_bytes(hand_depth()[0]))
    none = dict.fromkeys(CAMERA)
    program.predict(options(tmp_path, path, **none), progress=False)
    assert read(tmp_path, "000000_depth")["intrinsics"] == CAMERA


def test_preset_of_another_resolution_is_refused(tmp_path: Path) -> None:
    image = save_png(tmp_path / "hand.png", hand_depth()[0])
    skipped = program.predict(options(tmp_path, image, **dict.fromkeys(CAMERA), dataset="nyu"), progress=False)
    assert "hand.png: the image has 320x240 pixels, the camera of nyu 640x480" in skipped[0][1]


def test_background_plane_only_for_the_networks_own_data(tmp_path: Path) -> None:
    """A hand at 680 mm: MSRA's plane at 700 mm would fill the cube of a user's picture."""
    depth = np.zeros((240, 320))
    depth[100:140, 140:180] = 680
    image = save_png(tmp_path / "far.png", depth)
    voxels = []
    for changes in ({}, dict.fromkeys(CAMERA) | {"dataset": "msra"}, dict.fromkeys(CAMERA) | {"dataset": "icvl"}):
        program.predict(options(tmp_path, image, center="0,0,680", overlay=False, **changes), progress=False)
        voxels.append(read(tmp_path, "far")["voxels"])
    assert voxels[1] > 2 * voxels[0]
    assert voxels[2] == voxels[0]


# --- centres ---


def finder(**changes: object) -> CenterFinder:
    opts = {name: changes.pop(name) for name in list(changes) if name in Predict.__dataclass_fields__}
    return CenterFinder(Predict(**opts), K, 200.0, **changes)  # type: ignore[arg-type]


def image_of(depth: np.ndarray) -> DepthImage:
    return DepthImage(depth.astype(np.float32), (0, 0), depth.shape[::-1])


def test_automatic_center_is_near_the_hand() -> None:
    depth, truth = hand_depth()
    depth[:, :40] = 1200  # something far behind
    center, source = finder().find(image_of(depth), 0)
    assert source == "automatic"
    assert np.linalg.norm(center - truth) < 40
    rows, columns = np.nonzero((depth > 0) & (depth < 1000))
    crop = depth[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    cropped = DepthImage(crop.astype(np.float32), (columns.min(), rows.min()), (320, 240))
    assert cropped.cropped
    assert np.linalg.norm(finder().find(cropped, 0)[0] - truth) < 40
    with pytest.raises(DataError, match=r"no hand found: the image has no region of 50 pixels between 10 and 200 mm"):
        finder(far=200.0).find(image_of(depth), 0)


def test_bbox_looks_only_inside() -> None:
    depth = np.zeros((240, 320))
    depth[50:80, 50:80] = 300
    depth[150:190, 200:240] = 400
    center, source = finder(box=(190, 140, 250, 200)).find(image_of(depth), 0)
    assert source == "bbox"
    np.testing.assert_allclose(center, [(219.5 - 160) * 400 / 241.42, (169.5 - 120) * 400 / 241.42, 400], atol=1e-6)
    part = DepthImage(depth[20:, 30:].astype(np.float32), (30, 20), (320, 240))
    np.testing.assert_allclose(finder(box=(190, 140, 250, 200)).find(part, 0)[0], center)
    with pytest.raises(DataError, match=r"no hand found: the box \(0, 0, 40, 40\)"):
        finder(box=(0, 0, 40, 40)).find(image_of(depth), 0)


@pytest.mark.parametrize(
    ("center", "message"),
    [
        ((0, 0, -300), "lies behind the camera"),
        ((900, 0, 300), r"outside the image: the centre \(900, 0, 300\) mm is at pixel \(884, 120\) of 320x240"),
        ((0, -900, 300), "outside the image"),
        ((0, 0, 1000), r"no hand in the cube: 0 depth pixels within 100 mm of the centre \(0, 0, 1000\)"),
    ],
)
def test_centers_without_a_hand_are_refused(center: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        finder(fixed=np.array(center, float)).find(image_of(hand_depth()[0]), 0)


def test_center_network_improves_automatic_and_boxed_centers_only() -> None:
    depth, _ = hand_depth()
    image = image_of(depth)
    shift = CenterRefiner(Shift(), 40.0, "mean", "msra", 3, 50, 1)  # type: ignore[arg-type]  # 20 mm to the right
    plain, right = finder().find(image, 0)[0], np.array([20, 0, 0])
    np.testing.assert_allclose(finder(refiner=shift).find(image, 0)[0], plain + right)
    box = (0, 0, 320, 240)
    np.testing.assert_allclose(
        finder(refiner=shift, box=box).find(image, 0)[0], finder(box=box).find(image, 0)[0] + right
    )
    fixed = finder(refiner=shift, fixed=plain).find(image, 0)
    np.testing.assert_array_equal(fixed[0], plain)
    tracked = finder(refiner=shift, track=True, previous_mm=plain[None]).find(image, 0)
    assert tracked[1] == "tracked"
    np.testing.assert_allclose(tracked[0], plain + right)


def test_tracking_falls_back_to_detection() -> None:
    depth, truth = hand_depth()
    image = image_of(depth)
    near = finder(track=True, previous_mm=np.stack([truth, truth + 4])).find(image, 0)
    assert near[1] == "tracked"
    np.testing.assert_allclose(near[0], truth + 2)
    lost = finder(track=True, previous_mm=np.array([[0, 0, 1200.0]])).find(image, 0)
    assert lost[1] == "automatic"
    behind = finder(track=True, previous_mm=np.array([[0, 0, -5.0]])).find(image, 0)
    assert behind[1] == "automatic"
    assert finder(track=False, previous_mm=np.stack([truth])).find(image, 0)[1] == "automatic"


def test_track_through_a_folder(tmp_path: Path) -> None:
    depth, _ = hand_depth()
    for i in range(3):
        save_png(tmp_path / f"in/{i}.png", depth)
    save_png(tmp_path / "in/1b.png", np.zeros((240, 320)))
    skipped = program.predict(options(tmp_path, tmp_path / "in", track=True, overlay=False), progress=False)
    assert [p.name for p, _ in skipped] == ["1b.png"]
    sources = [read(tmp_path, str(i))["center_from"] for i in range(3)]
    assert sources == ["automatic", "tracked", "automatic"]  # a gap starts anew
    previous = np.array(read(tmp_path, "0")["joints_mm"]).mean(0)
    np.testing.assert_allclose(read(tmp_path, "1")["center_mm"], previous, atol=2e-3)


def test_centers_from_a_file_are_y_up_for_msra(tmp_path: Path) -> None:
    for i in (1, 2):
        save_png(tmp_path / f"in/{i}.png", hand_depth()[0])
    write_centers(tmp_path / "c.txt", [[3, -20, 350], [np.nan] * 3], y_up=False)
    opts = options(tmp_path, tmp_path / "in", centers=str(tmp_path / "c.txt"), overlay=False)
    skipped = program.predict(opts, progress=False)
    assert "line 2 of the centre file is invalid" in skipped[0][1]
    assert read(tmp_path, "1")["center_mm"] == [3, 20, 350]
    write_centers(tmp_path / "c.txt", [[3, -20, 350]] * 3, y_up=False)
    with pytest.raises(DataError, match="3 centres for 2 images"):
        program.predict(opts, progress=False)


# --- what a user does wrong ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fx": 0.0}, "positive focal lengths.*fx=0"),
        ({"fy": -5.0}, "positive focal lengths"),
        ({"u0": float("nan")}, "finite centre"),
        ({"fy": None, "v0": None}, "the camera needs --fy --v0 too"),
        ({"dataset": "nyu"}, "given twice: dataset and fx"),
        (dict.fromkeys(CAMERA), "intrinsics are not given.*--dataset NAME"),
        (dict.fromkeys(CAMERA) | {"intrinsics": "nowhere.json"}, "no such intrinsics file"),
        ({"center": "1,2"}, "--center takes x,y,z, got '1,2'"),
        ({"center": "1,2,z"}, "--center takes x,y,z"),
        ({"center": "1,2,nan"}, "--center takes x,y,z"),
        ({"bbox": "1,2,3"}, "--bbox takes left,top,right,bottom"),
        ({"bbox": "10,10,5,20"}, "left < right"),
        ({"center": "0,0,300", "bbox": "1,2,3,4"}, "given by --center and --bbox"),
        ({"checkpoint": []}, "no checkpoint is given"),
        ({"checkpoint": ["nowhere.pt"]}, "nowhere.pt"),
        ({"center_checkpoint": "nowhere.pt"}, "no such centre checkpoint"),
        ({"depth_scale": 0.0}, "--depth_scale must be above 0"),
        ({"far": 5.0}, "--far must be above 10"),
        ({"batch_size": 0}, "--batch_size must be above 0"),
        ({"cube": -1.0}, "--cube must be an edge in mm"),
        ({"images": []}, "no image is given"),
        ({"images": ["nowhere.png"]}, "no such image or folder"),
    ],
)
def test_bad_options(tmp_path: Path, changes: dict, message: str) -> None:
    image = save_png(tmp_path / "hand.png", hand_depth()[0])
    with pytest.raises(DataError, match=message):
        program.predict(options(tmp_path, image, **changes), progress=False)
    assert not (tmp_path / "out").exists()


def test_more_bad_inputs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.png, \.npy, \.bin file"):
        program.list_images([str(tmp_path / "empty")], tmp_path)
    a, b = (save_png(tmp_path / d / "x.png", hand_depth()[0]) for d in "ab")
    with pytest.raises(DataError, match=r"same result x\.json"):
        program.list_images([str(a), str(b)], tmp_path / "out")
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="torch sees no CUDA device"):
            program.predict(options(tmp_path, a, device="cuda"), progress=False)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a.png", np.full((4, 4), 200, np.uint8), "16 bits"),
        ("a.png", np.zeros((4, 4, 3), np.uint8), "16 bits"),
        ("a.npy", np.zeros((4, 4, 3)), r"shape \(height, width\), found float64 \(4, 4, 3\)"),
        ("a.npy", np.full((4, 4), True), "found bool"),
        ("a.npy", np.full((4, 4), -1.0), "negative depth"),
        ("a.npy", np.full((4, 4), -np.inf), "negative depth"),
        ("a.npy", np.zeros((4, 4)), r"all background \(every depth is 0\)"),
        ("a.npy", np.zeros((0, 4)), "all background"),
    ],
)
def test_bad_images(tmp_path: Path, name: str, values: np.ndarray, message: str) -> None:
    path = tmp_path / name
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        np.save(path, values)
    with pytest.raises(DataError, match=message) as error:
        program.read_image(path, 1.0)
    assert str(path) in str(error.value)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*")
    with pytest.raises(DataError, match=r"suffix '\.tif' is none of \.png"):
        program.read_image(tmp_path / "a.tif", 1.0)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[1]",
            "3",
            '{"fx": 1}',
            '{"fx": "a", "fy": 1, "u0": 1, "v0": 1}',
            '{"fx": -1, "fy": 1, "u0": 1, "v0": 1}',
        ),
        *('{"K": [[1, 0], [0, 1]]}', '{"K": [[9, 5, 5], [0, 9, 5], [0, 0, 1]]}', '{"K": [[9, 0, 5], [0, 9, 5], 1]}'),
    ],
)
def test_bad_intrinsics_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(DataError, match=r"k\.json.*not usable as intrinsics"):
        program.camera_matrix(Predict(intrinsics=str(tmp_path / "k.json")), [])


def test_intrinsics_from_files_and_presets(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    for content in (CAMERA, {"K": K.tolist()}):
        path.write_text(json.dumps(content))
        np.testing.assert_array_equal(program.camera_matrix(Predict(intrinsics=str(path)), []), K)
    np.testing.assert_array_equal(program.camera_matrix(Predict(dataset="msra"), []), K)
    np.testing.assert_array_equal(program.camera_matrix(Predict(), [Path("a.bin")]), K)
    assert program.camera_matrix(Predict(dataset="nyu"), [])[1, 1] == 587.075073
    with pytest.raises(MissingFileError, match="fx"):
        program.camera_matrix(Predict(intrinsics=str(tmp_path / "no.json")), [])


# --- command line ---


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "v2v_posenet.predict", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(tmp_path: Path) -> None:
    image = save_png(tmp_path / "in/hand.png", hand_depth()[0])
    save_png(tmp_path / "in/none.png", np.zeros((240, 320)))
    nets = [tiny_checkpoint(tmp_path / f"{i}.pt", i) for i in (1, 2)]
    save_center_checkpoint(tmp_path / "c.pt", CenterRefiner(CenterNet(1, 2), 200.0, "mean", "msra", 3, 50, 1))
    words = [str(tmp_path / "in"), "--checkpoint", *nets, "--dataset", "msra", "--out", str(tmp_path / "out")]
    done = run(*words, "--center_checkpoint", str(tmp_path / "c.pt"))
    assert done.returncode == 1, done.stderr
    assert "1 skipped:" in done.stderr
    assert "none.png" in done.stderr
    assert read(tmp_path, "hand")["checkpoints"] == nets
    camera = [f"--{name}={value}" for name, value in CAMERA.items()]
    one = ["--checkpoint", nets[0], str(image), *camera, "--out", str(tmp_path / "out"), "--no-overlay"]
    done = run(*one, "--center", "-5,-4,380")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path, "hand")["center_mm"] == [-5, -4, 380]
    bad = run(*one, "--fx=-3")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: expected positive focal lengths")


def test_words_are_joined_as_documented() -> None:
    joined = list(
        program._join_words(["a.png", "--checkpoint", "x.pt", "y.ckpt", "b.png", "--bbox", "-1,2,3,4", "--track"])
    )
    assert joined == ["a.png", '--checkpoint=["x.pt", "y.ckpt"]', "b.png", "--bbox", "-1,2,3,4", "--track"]
    assert list(program._join_words(["--checkpoint"])) == ["--checkpoint"]


def test_help_is_quick_and_gives_units() -> None:
    code = (
        "import sys; from v2v_posenet.predict import main\n"
        "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "[mm]" in done.stdout
    assert "[pixels]" in done.stdout
