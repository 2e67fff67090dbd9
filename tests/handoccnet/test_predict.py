"""The demo: from a picture and a box to files, against the author's pipeline; left hands, videos, wrong input."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from handoccnet import predict as demo
from handoccnet.convert import checkpoint_of, read_reference, save_checkpoint
from handoccnet.model import HandOccNet
from handoccnet.overlay import mesh_overlay, obj_text
from handoccnet.predict import Predictor, main
from shared.camera import project
from shared.errors import DataError
from shared.frames import list_files
from shared.mano import load_mano, save_npz
from tests.handoccnet.snapshots import GOLDEN, arrays, golden_hand, tiny, write_snapshot
from tests.handoccnet.test_data import picture
from tests.shared.videos import CENTRE_BOX, assert_video_crops, write_video

BBOX = "300,180,90,100"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.pt"
    save_checkpoint(path, checkpoint_of(tiny()))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(picture(5)).save(path, quality=95)
    return path


def run(checkpoint: Path, out: Path, *words: str) -> int:
    return main([*words, "--checkpoint", str(checkpoint), "--mano", "standin", "--out", str(out)])


# ------------------------------------------------------------------------------------------------ against the original


def test_obj_text_is_the_originals() -> None:
    golden = json.loads((GOLDEN / "obj.json").read_text())
    assert obj_text(golden["verts"], golden["faces"]) == golden["obj"]


def test_pipeline_equals_the_originals(tmp_path: Path) -> None:
    z = arrays("pipeline")
    network, _ = read_reference(write_snapshot(tmp_path / "snapshot_70.pth.tar"), mano=golden_hand())
    save_checkpoint(tmp_path / "model.pt", checkpoint_of(network))
    save_npz(golden_hand(), tmp_path / "right.npz")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was trained with a MANO file.*")
        predictor = Predictor(tmp_path / "model.pt", str(tmp_path / "right.npz"))
    (hand,) = predictor.predict([picture(int(arrays("crops")["seed"]))], [z["bbox"]])
    inside = (hand.keypoints_2d - hand.bbox_xywh[:2]) / hand.bbox_xywh[2:]
    off = {
        "box": np.abs(hand.bbox_xywh - z["processed_f64"]).max(),
        "crop": np.abs(inside - z["joints_crop01"][0]).max(),
        "px": np.abs(hand.keypoints_2d - z["joints_image_px"][0]).max(),
        "joints_m": np.abs(hand.joints_mm / 1000 - z["joints_cam"][0]).max(),
        "verts_m": np.abs(hand.verts_mm[::4] / 1000 - z["verts_cam"][0]).max(),
    }
    print("pipeline: max diff " + ", ".join(f"{name} {value:.3g}" for name, value in off.items()))
    limits = {"box": 1e-4, "crop": 2e-3, "px": 0.5, "joints_m": 5e-4, "verts_m": 5e-4}
    for name, value in off.items():
        assert value < limits[name], name


# ------------------------------------------------------------------------------------------------ files


def test_all_files_are_written_and_agree(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(checkpoint, out, str(photo), "--bbox", BBOX, "--fit", "--depth", "500") == 0
    endings = ["", "_3dmesh"]
    names = {f"photo{e}.{kind}" for e in endings for kind in ("json", "obj")}
    names |= {f"photo_{e}.png" for e in ("crop", "joints", "mesh", "2d_prediction", "projection")}
    assert {p.name for p in out.iterdir()} == names
    record = json.loads((out / "photo.json").read_text())
    joints = np.array(record["joints_root_mm"])
    assert joints.shape == (21, 3)
    assert not joints[0].any()
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    assert record["camera"] == {"fx": 500.0, "fy": 500.0, "cx": 320.0, "cy": 240.0}
    off = np.abs(project(np.array(record["joints_mm"]), K) - record["keypoints_2d"]).mean()
    assert record["reprojection_px"] == pytest.approx(off, rel=1e-6)
    verts = np.array(
        [[float(v) for v in line.split()[1:]] for line in (out / "photo.obj").read_text().splitlines()[:778]]
    )
    wrist = np.array(record["joints_mm"])[0] - np.array(record["joints_root_mm"])[0]
    fitted = json.loads((out / "photo_3dmesh.json").read_text())
    assert set(fitted) == {"hand_scale", "hand_translation", "mano_pose", "mano_shape"}
    placed = verts * [1, -1, -1] * 1000 + np.array(fitted["hand_translation"]) * 1000
    assert np.linalg.norm(placed - wrist, axis=1).min() < 40  # the mesh is at the joints
    assert len(fitted["mano_pose"]) == 48
    assert Image.open(out / "photo_crop.png").size == (64, 64)
    assert Image.open(out / "photo_mesh.png").size == (640, 480)


def test_without_fit_the_four_files_are_not_written(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "out", str(photo), "--bbox", BBOX)
    assert not list((tmp_path / "out").glob("*_3dmesh*"))


def test_a_left_hand_is_the_mirror_image_of_a_right_one(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, "standin")
    rgb = picture(3)
    mirrored = np.ascontiguousarray(rgb[:, ::-1])
    (right,) = predictor.predict([rgb], [[300, 180, 91, 101]])
    (left,) = predictor.predict([mirrored], [[640 - 300 - 91, 180, 91, 101]], hand="left")
    np.testing.assert_allclose(left.joints_mm, right.joints_mm * [-1, 1, 1], atol=0.05)
    np.testing.assert_allclose(left.keypoints_2d, [639, 0] + right.keypoints_2d * [-1, 1], atol=0.05)
    np.testing.assert_allclose(left.pose.reshape(16, 3), right.pose.reshape(16, 3) * [1, -1, -1], atol=1e-3)
    assert left.hand == "left"

    def outward(verts: NDArray[np.float64], faces: NDArray[np.int64]) -> float:
        a, b, c = (verts[faces[:, i]] for i in range(3))
        return float(np.einsum("ij,ij->", a - verts.mean(0), np.cross(b - a, c - a)))

    assert outward(right.verts_mm, predictor.faces("right")) > 0
    assert outward(left.verts_mm, predictor.faces("left")) > 0


def test_box_rule_and_precision_are_options(checkpoint: Path) -> None:
    exact, half = (Predictor(checkpoint, "standin", precision=name) for name in ("float32", "bfloat16"))
    (a,), (b,) = (exact.predict([picture(3)], [[-40, 180, 91, 91]], box_rule=rule) for rule in ("reference", "clipped"))
    assert a.bbox_xywh[2] == 90 * 1.25
    assert b.bbox_xywh[2] == 91 * 1.25
    (c,) = half.predict([picture(3)], [[-40, 180, 91, 91]])
    assert 0 < np.abs(c.verts_mm - a.verts_mm).max() < 30


def test_several_pictures_in_a_batch_are_as_one_by_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2, 10):
        Image.fromarray(picture(number)).save(folder / f"im{number}.png")
    Image.fromarray(picture(4)[:300]).save(folder / "im11.png")  # of another size: a batch of its own
    names = [name for _, name in list_files([str(folder)], tmp_path / "out")]
    assert names == ["im1", "im2", "im10", "im11"]
    run(checkpoint, tmp_path / "out", str(folder), "--bbox", BBOX)
    run(checkpoint, tmp_path / "single", str(folder), "--bbox", BBOX, "--batch_size", "1")
    for name in names:
        a, b = (json.loads((tmp_path / where / f"{name}.json").read_text()) for where in ("out", "single"))
        np.testing.assert_allclose(a["joints_root_mm"], b["joints_root_mm"], atol=0.05)
        np.testing.assert_allclose(a["keypoints_2d"], b["keypoints_2d"], atol=0.05)


def test_boxes_by_file_and_intrinsics(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"photo.jpg": [300, 180, 90, 100]}))
    run(checkpoint, tmp_path / "a", str(photo), "--boxes", str(boxes), "--intrinsics", "600,610,310,250")
    run(checkpoint, tmp_path / "b", str(photo), "--bbox", BBOX)
    a, b = (json.loads((tmp_path / name / "photo.json").read_text()) for name in "ab")
    assert a["keypoints_2d"] == b["keypoints_2d"]
    assert a["camera"] == {"fx": 600.0, "fy": 610.0, "cx": 310.0, "cy": 250.0}
    coco = {
        "images": [{"id": 7, "file_name": f"{tmp_path.name}/photo.jpg"}],
        "annotations": [{"image_id": 7, "bbox": [300, 180, 90, 100]}],
    }
    boxes.write_text(json.dumps(coco))
    run(checkpoint, tmp_path / "d", str(photo), "--boxes", str(boxes))
    assert json.loads((tmp_path / "d/photo.json").read_text())["keypoints_2d"] == a["keypoints_2d"]
    boxes.write_text(json.dumps({"other.jpg": [1, 2, 3, 4]}))
    assert run(checkpoint, tmp_path / "c", str(photo), "--boxes", str(boxes)) == 1


def test_animation_frame_by_frame_and_tracking(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [Image.fromarray(picture(seed)) for seed in (1, 30)]
    images[0].save(tmp_path / "wave.gif", save_all=True, append_images=images[1:])
    given: list[list[float]] = []
    original = demo.Predictor.predict

    def spy(self: Predictor, pictures: object, boxes: list[NDArray[np.float64]], **options: object) -> object:
        given.extend(np.round(box, 3).tolist() for box in boxes)
        return original(self, pictures, boxes, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(demo.Predictor, "predict", spy)
    assert run(checkpoint, tmp_path / "out", str(tmp_path / "wave.gif"), "--bbox", BBOX, "--track") == 0
    first = json.loads((tmp_path / "out/wave/000000.json").read_text())
    assert (tmp_path / "out/wave/000001.json").is_file()
    points = np.array(first["keypoints_2d"])
    assert given[0] == [300, 180, 90, 100]
    box = np.array(given[1])
    np.testing.assert_allclose(box[2:], np.ptp(points, axis=0) * 1.2, rtol=1e-3)
    given.clear()
    run(checkpoint, tmp_path / "still", str(tmp_path / "wave.gif"), "--bbox", BBOX)
    assert given == [[300, 180, 90, 100]] * 2


def test_the_users_files_are_not_overwritten(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / f"{photo.stem}.json").write_text(json.dumps({photo.name: [1, 2, 30, 40]}))
    before = (tmp_path / f"{photo.stem}.json").read_bytes()
    with pytest.raises(DataError, match=rf"{photo.stem}\.json: would be overwritten by the results"):
        run(checkpoint, tmp_path, str(photo), "--boxes", str(tmp_path / f"{photo.stem}.json"))
    assert (tmp_path / f"{photo.stem}.json").read_bytes() == before
    other = photo.rename(photo.with_name(f"{photo.stem}_projection.png"))
    twice = [str(tmp_path / photo.name), str(other), "--bbox", BBOX]
    (tmp_path / photo.name).write_bytes(other.read_bytes())
    assert run(checkpoint, tmp_path, *twice) == 0
    with pytest.raises(DataError, match=r"_projection\.png: would be overwritten"):
        run(checkpoint, tmp_path, *twice, "--fit")


def test_a_video_is_seen_in_order_upright_and_in_its_colours(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg is needed
    write_video(tmp_path / "clip.mp4")
    assert run(checkpoint, tmp_path / "out", str(tmp_path / "clip.mp4"), "--bbox", CENTRE_BOX) == 0
    assert_video_crops(tmp_path / "out/clip")


def test_the_overlay_lies_where_the_mesh_projects() -> None:
    model = load_mano("standin")
    verts = model.v_template * 1000 - model.v_template.mean(0) * 1000 + [20.0, -30, 500]
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    black = np.zeros((480, 640, 3), np.uint8)
    drawn = mesh_overlay(black, verts, model.faces, K).any(-1)
    rows, columns = np.nonzero(drawn)
    pixels = project(verts, K)
    assert abs(columns.min() - pixels[:, 0].min()) < 1.5
    assert abs(rows.max() - pixels[:, 1].max()) < 1.5
    assert not black.any()


# ------------------------------------------------------------------------------------------------ wrong input


def test_bad_pictures_are_reported_and_passed_over(
    checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:3000])
    (tmp_path / "text.png").write_text("not a picture")
    words = [str(tmp_path / name) for name in ("broken.jpg", "text.png", "photo.jpg")]
    assert run(checkpoint, tmp_path / "out", *words, "--bbox", BBOX) == 1
    captured = capsys.readouterr()
    assert (tmp_path / "out/photo.json").is_file()
    assert captured.err.count("error: ") == 2
    assert "broken.jpg" in captured.err
    assert "text.png" in captured.err
    assert "1 pictures" in captured.out
    assert "2 could not be used" in captured.out


@pytest.mark.parametrize(
    ("box", "message"),
    [("700,10,20,20", "lies outside the picture"), ("10,10,0,20", "no extent"), ("10,10,1,1", "less than two pixels")],
)
def test_boxes_that_show_nothing(
    checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], box: str, message: str
) -> None:
    assert run(checkpoint, tmp_path / "out", str(photo), "--bbox", box) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no box is given"),
        (["--bbox", BBOX, "--boxes", "b.json"], "exclude one another"),
        (["--bbox", "1,2,3"], "--bbox takes x,y,w,h"),
        (["--bbox", "1,2,3,nan"], "--bbox takes x,y,w,h"),
        (["--boxes", "absent.json"], "no such file of boxes"),
        (["--bbox", BBOX, "--intrinsics", "1,2"], "--intrinsics takes fx,fy,cx,cy"),
        (["--bbox", BBOX, "--focal", "0"], "focal length must be positive"),
        (["--bbox", BBOX, "--depth", "-1"], "--depth must not be negative"),
    ],
)
def test_options_that_do_not_fit(checkpoint: Path, photo: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(checkpoint, tmp_path / "out", str(photo), *words)


def test_what_is_missing_is_said_with_the_remedy(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint is given.*handoccnet\.convert"):
        main([str(photo), "--bbox", BBOX, "--mano", "standin"])
    with pytest.raises(DataError, match=r"mano\.is\.tue\.mpg\.de.*--mano standin"):
        main([str(photo), "--bbox", BBOX, "--checkpoint", str(checkpoint)])
    with pytest.raises(DataError, match="no picture is given"):
        run(checkpoint, tmp_path, "--bbox", BBOX)
    with pytest.raises(DataError, match="no such picture or folder"):
        run(checkpoint, tmp_path, "absent.jpg", "--bbox", BBOX)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"suffix '\.txt'"):
        run(checkpoint, tmp_path, str(tmp_path / "notes.txt"), "--bbox", BBOX)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder holds no"):
        run(checkpoint, tmp_path, str(tmp_path / "empty"), "--bbox", BBOX)
    Image.fromarray(picture(1)).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"would write the same photo\.json"):
        run(checkpoint, tmp_path, str(photo), str(tmp_path / "photo.png"), "--bbox", BBOX)
    boxes = tmp_path / "boxes.json"
    for content, message in (
        ("[1]", "not a file of boxes"),
        ('{"images": [], "annotations": [{}]}', "not a file of boxes"),
        ('{"a.jpg": [1, 2]}', "expected four numbers"),
    ):
        boxes.write_text(content)
        with pytest.raises(DataError, match=message):
            run(checkpoint, tmp_path, str(photo), "--boxes", str(boxes))


def test_two_boxes_for_one_picture_are_refused(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    annotations = [{"image_id": 1, "bbox": [300, 180, 90, 100]}, {"image_id": 1, "bbox": [1, 1, 50, 50]}]
    content = {"images": [{"id": 1, "file_name": "photo.jpg"}], "annotations": annotations}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"boxes\.json: 2 boxes for photo\.jpg"):
        run(checkpoint, tmp_path / "out", str(photo), "--boxes", str(tmp_path / "boxes.json"))


def test_a_hand_that_is_not_finite_is_reported_and_passed_over(
    checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [str(photo), str(tmp_path / "b.png")]
    Image.fromarray(picture(6)).save(pictures[1])
    whole = Predictor.predict

    def spoilt(self: Predictor, *args: Any, **more: Any) -> list[demo.HandPrediction]:
        first, *others = whole(self, *args, **more)
        return [dataclasses.replace(first, betas=first.betas * np.nan), *others]

    monkeypatch.setattr(Predictor, "predict", spoilt)
    assert run(checkpoint, tmp_path / "out", *pictures, "--bbox", BBOX) == 1
    captured = capsys.readouterr()
    assert "photo.jpg: the predicted hand of photo is not finite" in captured.err
    assert "1 pictures" in captured.out
    assert "1 could not be used" in captured.out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["b.json"]
    assert run(checkpoint, tmp_path / "out2", pictures[0], "--bbox", BBOX) == 1  # a batch of nothing but such hands


def test_a_box_is_not_carried_into_the_next_animation(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        first, second = (Image.fromarray(picture(seed)) for seed in (1, 2))
        first.save(tmp_path / f"{name}.webp", save_all=True, append_images=[second], lossless=True)
    given: list[list[float]] = []
    whole = Predictor.predict

    def watched(self: Predictor, pictures: Any, boxes: Any, **more: Any) -> list[demo.HandPrediction]:
        given.extend(np.asarray(box).tolist() for box in boxes)
        return whole(self, pictures, boxes, **more)

    monkeypatch.setattr(Predictor, "predict", watched)
    words = [str(tmp_path / "a.webp"), str(tmp_path / "b.webp"), "--bbox", BBOX, "--track"]
    assert run(checkpoint, tmp_path / "out", *words) == 0
    asked = [300.0, 180.0, 90.0, 100.0]
    assert [box == asked for box in given] == [True, False, True, False]


def test_another_methods_checkpoint_is_refused(photo: Path, tmp_path: Path) -> None:
    torch.save({"format": "handpose/v2v_posenet", "version": 1}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="handpose/v2v_posenet"):
        run(tmp_path / "other.pt", tmp_path / "out", str(photo), "--bbox", BBOX)


def test_obj_refuses_what_is_no_mesh() -> None:
    with pytest.raises(DataError, match="expected finite vertices"):
        obj_text([[0.0, np.nan, 1.0]], [[0, 0, 0]])


def test_the_program_ends_with_one_line(photo: Path) -> None:
    command = [sys.executable, "-m", "handoccnet.predict", str(photo), "--bbox", BBOX]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no checkpoint is given")


def test_sizes_of_the_published_network_are_the_default() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in HandOccNet(load_mano("standin")).parameters())
    assert 39_000_000 < count < 40_000_000
