"""Prediction from single depth images: geometry, where the hand is looked for, files, and bad images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared import camera
from shared.errors import DataError, MissingFileError
from shared.predictions import read_rows
from shared.standin.views import save_image
from sohandnet import predict as program
from sohandnet.convert import checkpoint_of, save_checkpoint
from sohandnet.data import StoreSamples, collate
from sohandnet.model import SoHandNet, folded
from sohandnet.orient import ICVL_K, joint_box, make_space
from sohandnet.predict import Input, Predict, camera_matrix, list_images, main, predict, predict_depth, read_depth
from tests.sohandnet.tiny_tree import golden_frame, make_store, write_tree


class Still(torch.nn.Module):
    """A network that always sees the same joints, and remembers what it was given."""

    def __init__(self, joints: np.ndarray | None = None) -> None:
        super().__init__()
        self.joints = torch.nn.Parameter(torch.zeros(16, 3) if joints is None else torch.from_numpy(joints).float())
        self.batches: list[dict[str, Any]] = []

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        self.batches.append(batch)
        return self.joints[None]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "hand_0.png"
    save_image(path, golden_frame(0)[0])
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("predict") / "net.pt"
    network = SoHandNet(width=0.1, parts=("encoder", "estimator"))
    sizes = {"points": 512, "nodes": 16, "neighbours": 4}
    save_checkpoint(path, checkpoint_of(network, intrinsics="reference", store=sizes))
    return str(path)


def hand() -> tuple[np.ndarray, np.ndarray]:
    """Depth without the wall behind, and the label's joints in mm."""
    depth, uvd = golden_frame(0)
    return np.where(depth < 800, depth, 0).astype(np.float32), camera.uvd_to_xyz(uvd, ICVL_K)


# --- the function ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intrinsics", ["true", "reference"])
def test_the_middle_of_the_cloud_is_the_middle_of_the_hand(intrinsics: Any) -> None:
    """Joints at the origin of the normalised frame lie at the mean of the cropped points, in true millimetres."""
    depth, _ = hand()
    network = Still()
    found = predict_depth(network, depth, ICVL_K, expected=Input(intrinsics))
    v, u = np.nonzero(depth)
    points = camera.uvd_to_xyz(np.stack([u, v, depth[v, u]], 1), ICVL_K)
    near = (np.abs(points - found.center_mm) <= 100).all(1)
    shift = 0 if intrinsics == "true" else 400 / 240  # the original's pixels are numbered from one (Q2)
    np.testing.assert_allclose(found.joints_mm[0], points[near].mean(0), atol=2 + shift)
    np.testing.assert_allclose(found.uvd[:, :2], camera.project(found.joints_mm, ICVL_K), rtol=1e-9)
    np.testing.assert_array_equal(found.uvd[:, 2], found.joints_mm[:, 2])
    batch = network.batches[0]
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        **{"pc": (1, 3, 1024), "sn": (1, 3, 1024), "node": (1, 3, 64), "node_knn": (1, 64, 9)}
    }


def test_the_same_frame_as_in_the_store(tmp_path: Path) -> None:
    """With the labels' box as the crop, a network sees what preparation stores, up to the drawn points."""
    made = make_store(write_tree(tmp_path / "icvl", train=2, test=2), tmp_path / "store", split="train").split("train")
    stored = collate([StoreSamples(made)[0]])
    torch.manual_seed(0)
    network = folded(SoHandNet(width=0.1, parts=("encoder", "estimator")).eval())
    depth, joints = golden_frame(0)[0], hand()[1]
    oracle = Still(stored["gt_xyz"][0].T.numpy().copy())
    found = predict_depth(oracle, depth, ICVL_K, center_mm=joints.mean(0), cube_mm=400, passes=1)
    assert found.crop_points > made.arrays["crop_points"][0]

    class Two(torch.nn.Module):
        """The labels in the first pass (of whatever crop), the network in the second."""

        calls = 0

        def forward(self, batch: dict[str, Any]) -> torch.Tensor:
            self.calls += 1
            if self.calls == 1:
                from sohandnet import orient

                low, high = joint_box(make_space("true").from_camera(joints))
                cube = orient.cube_box(joints.mean(0), 400, make_space("true"))
                points = orient.crop_points(depth, make_space("true"), *cube)
                box = orient.oriented_box(points)
                assert (low >= cube[0]).all()
                assert (high <= cube[1]).all()
                labels = orient.normalise(make_space("true").from_camera(joints), box)
                return torch.from_numpy(labels).float()[None]
            return network(batch)

    two = Two()
    two.register_parameter("where", torch.nn.Parameter(torch.zeros(1)))
    second = predict_depth(two, depth, ICVL_K, center_mm=joints.mean(0), cube_mm=400, passes=2)
    assert second.crop_points == made.arrays["crop_points"][0]
    box = made.box(0)
    np.testing.assert_allclose(np.ptp(second.cloud[0]), np.ptp(made.arrays["cloud"][0, 0]), atol=0.02)
    with torch.inference_mode():
        expected = made.joints_mm(network(stored)[0].double().numpy(), 0)
    print(f"other points of one crop: joints max diff {np.abs(second.joints_mm - expected).max():.3g} mm")
    assert np.abs(second.joints_mm - expected).max() < 0.1 * box.length


def test_where_the_hand_is(tmp_path: Path) -> None:
    depth, joints = hand()
    network = Still()
    near = predict_depth(network, depth, ICVL_K)
    np.testing.assert_allclose(near.center_mm, joints.mean(0), atol=50)  # the forearm pulls it down
    given = predict_depth(network, depth, ICVL_K, center_mm=joints.mean(0), cube_mm=60)
    assert given.crop_points < near.crop_points
    assert np.abs(given.joints_mm[0] - joints.mean(0)).max() < 30
    depth[5:60, 5:60] = 250  # something nearer
    assert predict_depth(network, depth, ICVL_K).center_mm[2] == pytest.approx(250, abs=1)
    boxed = predict_depth(network, depth, ICVL_K, bbox=(80, 60, 320, 999))
    np.testing.assert_allclose(boxed.center_mm, near.center_mm, atol=10)


def test_the_same_draw_every_time() -> None:
    depth, _ = hand()
    one, two = (predict_depth(Still(), depth, ICVL_K).cloud for _ in range(2))
    np.testing.assert_array_equal(one, two)
    other = predict_depth(Still(), depth, ICVL_K, rng=np.random.default_rng(5)).cloud
    assert not np.array_equal(one, other)


def test_depth_maps_without_a_hand() -> None:
    network, depth = Still(), hand()[0]
    with pytest.raises(DataError, match=r"expected a depth map \(H, W\), got shape \(3,\)"):
        predict_depth(network, np.zeros(3), ICVL_K)
    with pytest.raises(DataError, match="no hand found: the image has no region of more than 200 pixels"):
        predict_depth(network, np.zeros((240, 320)), ICVL_K)
    with pytest.raises(DataError, match=r"no hand found: the box \(0, 0, 20, 20\)"):
        predict_depth(network, depth, ICVL_K, bbox=(0, 0, 20, 20))
    with pytest.raises(DataError, match=r"the crop around \(0, 0, 5000\) mm has 0 points, at least 10 are needed"):
        predict_depth(network, depth, ICVL_K, center_mm=[0, 0, 5000])
    with pytest.raises(DataError, match="the network predicts numbers that are not finite"):
        predict_depth(Still(np.full((16, 3), np.nan)), depth, ICVL_K)
    for center in ([0, 0, -5], [0, 0], [0, np.nan, 300]):
        with pytest.raises(DataError, match=r"expected a centre .* in front of the camera"):
            predict_depth(network, depth, ICVL_K, center_mm=center)


def test_joints_behind_the_camera_have_no_pixel() -> None:
    far = np.zeros((16, 3))
    far[3] = -50  # box lengths
    found = predict_depth(Still(far), hand()[0], ICVL_K)
    assert np.isnan(found.uvd[3, :2]).all() == (found.joints_mm[3, 2] <= 0)
    assert (found.joints_mm[3, 2] <= 0) or np.isfinite(found.uvd).all()
    assert found.joints_mm[:, 2].min() < 0


# --- the program -----------------------------------------------------------------------------------------------------


def test_files_of_a_run(image: Path, checkpoint: str, tmp_path: Path, capsys: Any) -> None:
    """A folder with a good and a truncated image: the good one is done, the other reported, status 1."""
    folder = tmp_path / "images"
    save_image(folder / "b 10.png", golden_frame(3)[0])
    save_image(folder / "b 9.png", golden_frame(2)[0])
    np.save(folder / "a.npy", golden_frame(1)[0].astype(np.float32) / 1000)
    (folder / "cut.png").write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    words = [str(folder / name) for name in ("b 9.png", "b 10.png", "cut.png")]
    words += ["--checkpoint", checkpoint, "--dataset", "icvl", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--cloud", "--passes", "2"]) == 1
    captured = capsys.readouterr()
    assert "1 skipped:" in captured.err
    assert "cut.png: damaged or truncated picture" in captured.err
    out = tmp_path / "out"
    found = json.loads((out / "b 10.json").read_text())
    assert found["skeleton"] == "icvl"
    assert found["center_from"] == "nearest object"
    assert found["intrinsics"] == {"fx": 240.99, "fy": 240.96, "u0": 160.0, "v0": 120.0}
    assert len(found["joint_names"]) == len(found["joints_mm"]) == len(found["joints_uv"]) == 16
    rows = read_rows(out / "predictions_xyz.txt", 16)
    assert rows.names == ["b_9", "b_10"]
    np.testing.assert_allclose(rows.values[1], found["joints_mm"], atol=2e-3)
    uvd = read_rows(out / "predictions_uvd.txt", 16).values
    np.testing.assert_allclose(uvd[1, :, :2], found["joints_uv"], atol=2e-3)
    for name in ("b 9_joints.png", "b 9_cloud.png", "b 10_joints.png"):
        assert (out / name).stat().st_size > 2000
    again = ["--checkpoint", checkpoint, "--dataset", "icvl", "--out", str(tmp_path / "plain"), "--no-overlay"]
    assert main([str(folder / "b 9.png"), *again, "--device", "cpu", "--passes", "2"]) == 0
    assert (tmp_path / "plain/b 9.json").read_text() == (out / "b 9.json").read_text()
    assert not (tmp_path / "plain/b 9_joints.png").exists()


def test_results_do_not_replace_what_is_read(image: Path, checkpoint: str, tmp_path: Path) -> None:
    for name in ("a.png", "a_joints.png", "a_cloud.png"):
        (tmp_path / name).write_bytes(image.read_bytes())
    given: dict[str, Any] = dict(checkpoint=checkpoint, dataset="icvl", device="cpu", out=str(tmp_path))
    for ending, drawn in (("_joints", {}), ("_cloud", {"cloud": True, "overlay": False})):
        files = [str(tmp_path / "a.png"), str(tmp_path / f"a{ending}.png")]
        with pytest.raises(DataError, match=rf"a{ending}\.png: would be overwritten by the results"):
            predict(Predict(images=files, **given, **drawn), progress=False)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {image.read_bytes()}


def test_scale_and_place_on_the_command_line(checkpoint: str, tmp_path: Path) -> None:
    depth, joints = golden_frame(0)[0], hand()[1]
    np.save(tmp_path / "metres.npy", depth.astype(np.float32) / 1000)
    center = ",".join(f"{x:.1f}" for x in joints.mean(0))
    given = dict(images=[str(tmp_path / "metres.npy")], checkpoint=checkpoint, device="cpu", overlay=False)
    camera_given = dict(fx=240.99, fy=240.96, u0=160.0, v0=120.0, depth_scale=1000.0)
    for name, where in (("c", {"center": center}), ("b", {"bbox": "50,40,300,220"})):
        assert predict(Predict(out=str(tmp_path / name), **given, **camera_given, **where), progress=False) == []  # type: ignore[arg-type]
    found = [json.loads((tmp_path / name / "metres.json").read_text()) for name in ("c", "b")]
    assert [f["center_from"] for f in found] == ["given", "bbox"]
    np.testing.assert_allclose(found[0]["center_mm"], joints.mean(0), atol=0.1)
    assert np.abs(joints - found[1]["center_mm"]).max() < 100  # the cube of 200 mm holds the hand


def test_what_the_checkpoint_expects(checkpoint: str, tmp_path: Path) -> None:
    network, expected = program.load_network(checkpoint)
    assert expected == Input("reference", 512, 16, 4)
    found = predict_depth(network, hand()[0], ICVL_K, expected=expected)
    assert found.cloud.shape == (6, 512)
    for joints, parts, message in (
        (16, ("encoder",), "not the estimator"),
        (21, ("encoder", "estimator"), "has 21 joints, this program draws 16"),
    ):
        other = SoHandNet(width=0.1, joints=joints, parts=parts)
        save_checkpoint(tmp_path / "other.pt", checkpoint_of(other, intrinsics="true"))
        with pytest.raises(DataError, match=message):
            program.load_network(tmp_path / "other.pt")
    for store in ({"nodes": "many"}, {"points": -1}):
        other = SoHandNet(width=0.1, parts=("encoder", "estimator"))
        save_checkpoint(tmp_path / "other.pt", checkpoint_of(other, intrinsics="true", store=store))
        with pytest.raises(DataError, match=r"other\.pt: remembers a store that cannot be"):
            program.load_network(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "no image is given"),
        ({"images": ["nowhere"]}, "nowhere: no such image or folder"),
        ({"checkpoint": ""}, "no checkpoint is given"),
        ({"checkpoint": "nowhere.pt"}, "nowhere.pt"),
        ({"cube": 0.0}, "--cube must be above 0, got 0.0"),
        ({"depth_scale": -1.0}, "--depth_scale must be above 0"),
        ({"passes": 0}, "--passes must be above 0, got 0"),
        ({"seed": -1}, "--seed must be above -1, got -1"),
        ({"out": str(Path(__file__))}, "--out is a file"),
        ({"center": "1,2,3", "bbox": "1,2,3,4"}, "given by --center and --bbox"),
        ({"center": "1,2"}, "--center takes x,y,z, got '1,2'"),
        ({"center": "1,2,nan"}, "--center takes x,y,z"),
        ({"bbox": "a,b,c,d"}, "--bbox takes left,top,right,bottom"),
        ({"bbox": "10,20,5,30"}, "--bbox must have left < right and top < bottom"),
        ({"dataset": None}, "the camera's intrinsics are not given"),
        ({"fx": 1.0}, "given twice: dataset and fx, fy, u0, v0"),
    ],
)
def test_bad_options(image: Path, checkpoint: str, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = dict(images=[str(image)], checkpoint=checkpoint, dataset="icvl", out=str(tmp_path), device="cpu")
    with pytest.raises(DataError, match=message):
        predict(Predict(**(given | changes)), progress=False)  # type: ignore[arg-type]


def test_cameras(tmp_path: Path) -> None:
    numbers = {"fx": 475.1, "fy": 476.0, "u0": 315.9, "v0": 245.3}
    np.testing.assert_array_equal(camera_matrix(Predict(dataset="icvl")), ICVL_K)
    np.testing.assert_array_equal(camera_matrix(Predict(**numbers)), camera.intrinsics(**numbers))
    with pytest.raises(DataError, match="the camera needs --fy --v0 too"):
        camera_matrix(Predict(fx=1.0, u0=1.0))
    path = tmp_path / "camera.json"
    for content in (numbers, {"K": camera.intrinsics(**numbers).tolist()}):
        path.write_text(json.dumps(content))
        np.testing.assert_array_equal(camera_matrix(Predict(intrinsics=str(path))), camera.intrinsics(**numbers))
    for text in ("{", "[]", '{"fx": 1}', '{"K": [[1, 2, 3]]}', '{"K": [[1, 9, 3], [0, 1, 3], [0, 0, 1]]}'):
        path.write_text(text)
        with pytest.raises(DataError, match="not usable as intrinsics"):
            camera_matrix(Predict(intrinsics=str(path)))
    with pytest.raises(MissingFileError, match="no such intrinsics file"):
        camera_matrix(Predict(intrinsics=str(tmp_path / "nowhere.json")))


def test_bad_images(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for values, message in (
        (np.zeros((4, 4)), "nothing was measured"),
        (np.full((4, 4), -1.0), "negative depth"),
        (np.full((4, 4), -np.inf), "negative depth"),
        (np.ones((4, 4, 3)), r"expected numbers \(height, width\), found float64 \(4, 4, 3\)"),
        (np.full((4, 4), "a"), "expected numbers"),
    ):
        np.save(path, values)
        with pytest.raises(DataError, match=message):
            read_depth(path)
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"the suffix '\.jpg' is none of \.png, \.npy"):
        read_depth(tmp_path / "x.jpg")
    np.save(path, np.array([[np.nan, 2.0], [np.inf, 3.0]]))
    np.testing.assert_array_equal(read_depth(path, 10), [[0, 20], [0, 30]])
    save_image(tmp_path / "far.png", np.array([[32001, 500], [0, 65535]], np.uint16))
    np.testing.assert_array_equal(read_depth(tmp_path / "far.png"), [[0, 500], [0, 0]])
    save_image(tmp_path / "small.png", np.full((4, 4), 500, np.uint16))
    skipped = predict_small(tmp_path)
    assert len(skipped) == 1
    assert "has 4x4 pixels, the camera of ICVL 320x240" in skipped[0]


def predict_small(folder: Path) -> list[str]:
    network = SoHandNet(width=0.1, parts=("encoder", "estimator"))
    save_checkpoint(folder / "net.pt", checkpoint_of(network, intrinsics="true"))
    given = Predict([str(folder / "small.png")], str(folder / "net.pt"), str(folder / "out"), "icvl", device="cpu")
    return predict(given, progress=False)


def test_folders_of_images(tmp_path: Path) -> None:
    for name in ("f/10.png", "f/9.png", "f/9_joints.png", "f/9_cloud.png", "f/g/1.npy", "f/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [name for _, name in list_images([str(tmp_path / "f")])] == ["9", "10", "g/1"]
    with pytest.raises(DataError, match=r"would write the same 9\.json as"):
        list_images([str(tmp_path / "f"), str(tmp_path / "f/9.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder holds no \.png or \.npy file"):
        list_images([str(tmp_path / "empty")])
