"""The predictor: every kind of input and crop, what is written, the check of the factor 2.2, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hand3d_wild.convert import checkpoint_of, save_checkpoint
from hand3d_wild.decoder import Decoder
from hand3d_wild.heatmaps import gaussian_maps, peaks_of, read_maps, write_group
from hand3d_wild.inference import Predictor, View
from hand3d_wild.model import WildNet
from hand3d_wild.predict import main, read_keypoints, share_problem, view_of
from shared.datasets import mpii_nzsl
from shared.errors import DataError, MissingFileError
from shared.frames import list_files
from shared.mano import load_mano
from tests.shared.videos import CENTRE_BOX, assert_video_crops, write_video

ENDINGS = ("_crop.png", "_joints.png", "_mesh.png", ".obj", ".ply", ".json", ".npz")


def checkpoint(path: Path, form: str = "rgb") -> str:
    torch.manual_seed(0)
    network = WildNet(load_mano("standin"), image_size=64, width=16, blocks=(1, 1, 1, 1), form=form)  # type: ignore[arg-type]
    save_checkpoint(path, checkpoint_of(network, data={"mano": "standin"}))
    return str(path)


@pytest.fixture
def net(tmp_path: Path) -> str:
    return checkpoint(tmp_path / "net.pt")


@pytest.fixture
def photo(tmp_path: Path, wild_trees: Path) -> Path:
    """A right hand, and its keypoints in ``keypoints.json``."""
    frames = mpii_nzsl.open(wild_trees / "mpii_nzsl", "train")
    frame = next(f for f in (frames[i] for i in range(len(frames))) if f.side == "right")
    assert frame.rgb is not None
    assert frame.keypoints_2d is not None
    Image.fromarray(frame.rgb).save(tmp_path / "photo.png")
    (tmp_path / "keypoints.json").write_text(json.dumps({"photo.png": frame.keypoints_2d.tolist()}))
    return tmp_path / "photo.png"


def tight_box(photo: Path) -> str:
    points = np.array(json.loads((photo.parent / "keypoints.json").read_text())["photo.png"])
    return ",".join(f"{n:.2f}" for n in (*points.min(0), *np.ptp(points, axis=0)))


def run(photo: Path, net: str, *words: str) -> dict[str, Any]:
    out = photo.parent / "out"
    assert main([str(photo), "--checkpoint", net, "--out", str(out), *words]) == 0
    record: dict[str, Any] = json.loads((out / "photo.json").read_text())
    return record


def test_files_of_a_box(photo: Path, net: str) -> None:
    record = run(photo, net, "--bbox", tight_box(photo))
    out = photo.parent / "out"
    assert all((out / f"photo{ending}").is_file() for ending in ENDINGS)
    arrays = np.load(out / "photo.npz")
    assert arrays["joints_mm"].shape == (21, 3)
    assert arrays["verts_mm"].shape == (778, 3)
    assert np.allclose(arrays["keypoints_2d"], record["keypoints_2d"])
    joints = arrays["joints_mm"]
    flat = arrays["keypoints_2d"] - arrays["keypoints_2d"][0]
    assert np.allclose(flat, (joints - joints[0])[:, :2] * record["px_per_m"] / 1000, atol=1e-2)
    lines = (out / "photo.obj").read_text().splitlines()
    first = np.array([float(word) for word in lines[0].split()[1:]])
    assert np.abs(first - arrays["verts_mm"][0] / 1000 * [1, -1, -1]).max() < 1e-6
    top, bottom, left, right = record["crop_top_bottom_left_right"]
    assert bottom - top == right - left
    size = max(float(n) for n in tight_box(photo).split(",")[2:])
    assert abs((right - left) / size - 2.2) < 0.02


def test_keypoints_give_the_crop_of_their_box(photo: Path, net: str) -> None:
    by_box = run(photo, net, "--bbox", tight_box(photo))
    by_points = run(photo, net, "--keypoints", str(photo.parent / "keypoints.json"))
    assert by_box["crop_top_bottom_left_right"] == by_points["crop_top_bottom_left_right"]
    boxes = photo.parent / "boxes.json"
    boxes.write_text(json.dumps({"photo.png": [float(n) for n in tight_box(photo).split(",")]}))
    assert run(photo, net, "--boxes", str(boxes))["keypoints_2d"] == by_box["keypoints_2d"]


def test_a_mirrored_left_hand_is_the_mirrored_right_hand(photo: Path, net: str) -> None:
    right = run(photo, net, "--keypoints", str(photo.parent / "keypoints.json"))
    rgb = np.asarray(Image.open(photo))
    Image.fromarray(np.ascontiguousarray(rgb[:, ::-1])).save(photo)
    points = np.array(json.loads((photo.parent / "keypoints.json").read_text())["photo.png"])
    points[:, 0] = rgb.shape[1] - points[:, 0]
    (photo.parent / "keypoints.json").write_text(json.dumps({"photo.png": points.tolist()}))
    left = run(photo, net, "--keypoints", str(photo.parent / "keypoints.json"), "--hand", "left")
    assert left["params"] == right["params"]
    ours, expected = np.array(left["keypoints_2d"]), np.array(right["keypoints_2d"])
    assert np.abs(ours - (expected * [-1, 1] + [rgb.shape[1], 0])).max() < 1e-9
    assert np.allclose(left["joints_root_mm"], np.array(right["joints_root_mm"]) * [-1, 1, 1])
    predictor = Predictor(net, "")
    assert (predictor.faces("left") == predictor.faces("right")[:, ::-1]).all()


def test_crops_are_seen_as_the_testers(photo: Path, net: str, tmp_path: Path, golden: Path) -> None:
    images = np.load(golden / "hand3d_wild/images.npz")
    picture = images["tester_img"].repeat(8, 0).repeat(8, 1)
    view = View(picture, (0, 319, 0, 319), whole=True)
    seen = view.input(256).astype(np.float32).transpose(2, 0, 1)[:, ::4, ::4] / 255
    difference = float(np.abs(seen - images["tester_tensor_sub4"]).max())
    print(f"tester input through a view: max diff {difference:.3g}")
    assert difference <= 2 / 255
    Image.fromarray(picture).save(tmp_path / "photo.png")
    record = run(photo, net, "--crops")
    assert record["crop_top_bottom_left_right"] == [0, 319, 0, 319]
    Image.fromarray(picture[:200]).save(tmp_path / "photo.png")
    assert main([str(photo), "--checkpoint", net, "--out", str(tmp_path / "o"), "--crops"]) == 1


def test_heat_maps_need_keypoints(photo: Path, tmp_path: Path) -> None:
    net = checkpoint(tmp_path / "maps.pt", "heatmaps")
    with pytest.raises(DataError, match="needs heat maps beside the picture"):
        main([str(photo), "--checkpoint", net, "--bbox", tight_box(photo), "--out", str(tmp_path / "o")])
    run(photo, net, "--keypoints", str(photo.parent / "keypoints.json"))
    view = View(np.asarray(Image.open(photo)), (0, 99, 0, 99))
    with pytest.raises(DataError, match="needs 21 heat maps"):
        Predictor(net, "").predict([view])


def test_stored_heat_maps_stand_for_keypoints(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = checkpoint(tmp_path / "maps.pt", "heatmaps")
    points = np.random.default_rng(0).uniform(60, 260, (21, 2))
    folder = tmp_path / "crops"
    folder.mkdir()
    for name in ("7", "8_1"):  # a picture's name may look like that of a heat map
        Image.open(photo).convert("RGB").resize((320, 320)).save(folder / f"{name}.png")
        write_group(folder, name, gaussian_maps(points, np.full(21, 0.8), 320).transpose(2, 0, 1))
    words = ["--crops", "--checkpoint", net]
    for hand in ("right", "left"):
        out = tmp_path / hand
        assert main([str(folder), *words, "--heatmaps", str(folder), "--hand", hand, "--out", str(out)]) == 0
        assert "2 pictures" in capsys.readouterr().out
        view = View(np.asarray(Image.open(folder / "7.png")), (0, 319, 0, 319), hand, whole=True)  # type: ignore[arg-type]
        maps = view.stored_maps(read_maps(folder, "7"), 64)
        difference = np.abs(peaks_of(maps)[:, :2] - peaks_of(view.maps(points, np.full(21, 0.8), 64))[:, :2]).max()
        print(f"{hand} hand, maps of files against maps of joints: max diff {difference:.3g} px of 64")
        assert difference < 1  # half a pixel of 64 from the filter, and half of one from the mirror's W - u
        expected = Predictor(net, "").predict([view] * 2, [maps, np.zeros_like(maps)])
        params = np.load(out / "7.npz")["params"]
        assert np.abs(params - expected[0].params).max() < 1e-4
        assert np.abs(params - expected[1].params).max() > 1e-2  # they are looked at
    (folder / "8_1_3.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 14 heat-map files are missing, of 1 of 2 pictures: 8_1_3\.png"):
        main([str(folder), *words, "--heatmaps", str(folder), "--out", str(tmp_path / "o")])
    Image.new("RGB", (64, 64)).save(folder / "8_1_3.png")
    assert main([str(folder), *words, "--heatmaps", str(folder), "--out", str(tmp_path / "o")]) == 1
    assert "8_1_3.png: is 64 x 64 pixels, its picture 320 x 320" in capsys.readouterr().err
    assert (tmp_path / "o/7.json").is_file()


def test_fit_moves_the_joints_onto_the_keypoints(photo: Path, net: str, capsys: pytest.CaptureFixture[str]) -> None:
    points = np.array(json.loads((photo.parent / "keypoints.json").read_text())["photo.png"])
    words = ("--keypoints", str(photo.parent / "keypoints.json"))

    def error(record: dict[str, Any]) -> float:
        from shared.skeletons import reorder

        return float(
            np.linalg.norm(np.array(record["keypoints_2d"]) - reorder(points, "thumb_first", "wild"), axis=-1).mean()
        )

    before, record = error(run(photo, net, *words)), run(photo, net, *words, "--fit", "joints")
    print(f"keypoint distance {before:.1f} -> {error(record):.1f} px, share {record['hand_share_of_crop']:.2f}")
    assert error(record) < 0.3 * before
    assert record["fit"] == "joints"
    assert record["fit_objective"][1] < record["fit_objective"][0]
    assert record["crop_warning"] == ""
    mask = np.zeros(np.asarray(Image.open(photo)).shape[:2], np.uint8)
    low, high = points.min(0).astype(int), points.max(0).astype(int)
    mask[low[1] : high[1], low[0] : high[0]] = 255
    (photo.parent / "masks").mkdir()
    Image.fromarray(mask).save(photo.parent / "masks/photo.png")
    masks = ("--masks", str(photo.parent / "masks"))
    assert run(photo, net, "--bbox", tight_box(photo), "--fit", "mask", *masks)["fit_error_px"] is None
    assert run(photo, net, *words, "--fit", "both", *masks)["fit"] == "both"
    Image.fromarray(mask[:-1]).save(photo.parent / "masks/photo.png")
    again = [str(photo), "--checkpoint", net, "--out", str(photo.parent / "o"), *words, *masks]
    assert main([*again, "--fit", "both"]) == 1
    assert "pixels, the header says" in capsys.readouterr().err
    Image.fromarray(mask * 0).save(photo.parent / "masks/photo.png")
    assert main([*again, "--fit", "mask"]) == 1
    assert "no pixel of the silhouette" in capsys.readouterr().err


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives(photo: Path, net: str) -> None:
    words = ("--keypoints", str(photo.parent / "keypoints.json"), "--fit", "joints")
    cpu, cuda = (np.array(run(photo, net, *words, "--device", d)["keypoints_2d"]) for d in ("cpu", "cuda"))
    difference = np.abs(cpu - cuda).max()
    print(f"fitted keypoints, cuda against cpu: max diff {difference:.3g} px")
    assert difference < 5


def test_the_fit_leaves_the_network_where_it_is(photo: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit runs on the CPU; on a GPU the decoder of the network has to stay there."""
    moved: list[Decoder] = []
    monkeypatch.setattr(Decoder, "cpu", lambda self: moved.append(self) or self)  # type: ignore[func-returns-value]
    kept: list[Predictor] = []
    start = Predictor.__init__

    def keep(self: Predictor, *words: Any, **more: Any) -> None:
        kept.append(self)
        start(self, *words, **more)

    monkeypatch.setattr(Predictor, "__init__", keep)
    run(photo, net, "--keypoints", str(photo.parent / "keypoints.json"), "--fit", "joints")
    assert len(moved) == 1
    assert moved[0] is not kept[0].network.decoder


def test_the_factor_is_stated_and_checked(capsys: pytest.CaptureFixture[str], photo: Path, net: str) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.count("2.2") >= 3
    assert share_problem(1 / 2.2) == ""
    assert "box is too large" in share_problem(0.2)
    assert "box is too small" in share_problem(0.9)
    file = photo.parent / "keypoints.json"
    run(photo, net, "--keypoints", str(file), "--fit", "joints")
    assert "crops look wrong" not in capsys.readouterr().out
    points, rgb = np.array(json.loads(file.read_text())["photo.png"]), np.asarray(Image.open(photo))
    low = points.min(0).astype(int) - 5
    edge = int(np.ptp(points, axis=0).max()) + 10  # a crop of 1.1 times the hand
    Image.fromarray(rgb[low[1] : low[1] + edge, low[0] : low[0] + edge]).save(photo)
    file.write_text(json.dumps({"photo.png": (points - low).tolist()}))
    record = run(photo, net, "--crops", "--keypoints", str(file), "--fit", "joints")
    captured = capsys.readouterr()
    assert "1 crops look wrong" in captured.out
    assert "tight around the joints" in captured.err
    assert "box is too small" in record["crop_warning"]


def test_folders_animations_videos_and_unreadable_pictures(
    photo: Path, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    rgb = np.asarray(Image.open(photo))
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(rgb).save(folder / "a2.jpg")
    Image.fromarray(rgb).save(folder / "a10.jpg")
    (folder / "a3.png").write_bytes(b"\x89PNG not at all")
    frames = [Image.fromarray(rgb), Image.fromarray(np.ascontiguousarray(rgb[::-1]))]
    frames[0].save(folder / "b.gif", save_all=True, append_images=frames[1:])
    writer = cv2.VideoWriter(str(folder / "c.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, rgb.shape[1::-1])
    for _ in range(3):
        writer.write(np.ascontiguousarray(rgb[..., ::-1]))
    writer.release()
    (folder / "d.mp4").write_bytes(b"no video")
    (folder / "e.gif").write_bytes(b"GIF89a no")
    names = [name for _, name in list_files([str(folder)], tmp_path / "out")]
    assert names == ["a2", "a3", "a10", "b", "c", "d", "e"]
    words = ["--bbox", tight_box(photo), "--checkpoint", net, "--out", str(tmp_path / "out"), "--track"]
    assert main([str(folder), *words]) == 1
    captured = capsys.readouterr()
    assert "7 pictures" in captured.out
    assert "3 could not be used" in captured.out
    for problem in ("a3.png", "d.mp4: not a readable video", "e.gif: not a readable animation"):
        assert problem in captured.err
    for name in ("a2", "a10", "b/000000", "b/000001", "c/000002"):
        assert (tmp_path / f"out/{name}.json").is_file()


def test_a_video_is_seen_in_order_upright_and_in_its_colours(net: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")
    words = ["--bbox", CENTRE_BOX, "--checkpoint", net, "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "clip.mp4"), *words]) == 0
    assert_video_crops(tmp_path / "out/clip")


def test_the_users_files_are_not_overwritten(photo: Path, net: str) -> None:
    keypoints = photo.parent / "keypoints.json"
    mine = keypoints.rename(photo.parent / "photo.json").read_bytes()
    words = [
        str(photo),
        "--checkpoint",
        net,
        "--out",
        str(photo.parent),
        "--keypoints",
        str(photo.parent / "photo.json"),
    ]
    with pytest.raises(DataError, match=r"photo\.json: would be overwritten by the results -- give another --out"):
        main(words)
    assert (photo.parent / "photo.json").read_bytes() == mine
    assert not (photo.parent / "photo.npz").exists()


def test_a_hand_is_not_followed_into_another_video(photo: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = view_of

    def spy(rgb: Any, corners: Any, side: str, name: str) -> View:
        seen.append(len(corners) == 21)  # of the joints before, not of the box
        return real(rgb, np.array([[20.0, 20], [80, 80]]), side, name)

    monkeypatch.setattr("hand3d_wild.predict.view_of", spy)
    frames = [Image.open(photo), Image.open(photo).rotate(180)]
    for name in ("one.gif", "two.gif"):
        frames[0].save(photo.parent / name, save_all=True, append_images=frames[1:])
    inputs = [str(photo.parent / name) for name in ("one.gif", "two.gif", "photo.png")]
    words = ["--checkpoint", net, "--bbox", "20,20,60,60", "--out", str(photo.parent / "out"), "--track"]
    assert main([*inputs, *words]) == 0
    assert seen == [False, True, False, True, False]


def test_who_follows_needs_keypoints_of_the_first_frame_only(photo: Path, net: str, tmp_path: Path) -> None:
    frames = [Image.open(photo)] * 3
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=[f.rotate(n) for n, f in enumerate(frames[1:], 1)])
    points = json.loads((tmp_path / "keypoints.json").read_text())["photo.png"]
    (tmp_path / "first.json").write_text(json.dumps({"a/000000": points}))
    words = [str(tmp_path / "a.webp"), "--checkpoint", net, "--keypoints", str(tmp_path / "first.json")]
    assert main([*words, "--out", str(tmp_path / "o"), "--track"]) == 0
    assert len(list((tmp_path / "o/a").glob("*.json"))) == 3
    for more in ([], ["--track", "--fit", "joints"]):
        assert main([*words, "--out", str(tmp_path / "p"), *more]) == 1


def test_a_negative_confidence_is_a_missing_joint(tmp_path: Path) -> None:
    points = [[1.0, 2.0, 0.5]] * 20 + [[0.0, 0.0, -1.0]]
    (tmp_path / "a.json").write_text(json.dumps({"a": points}))
    assert read_keypoints(str(tmp_path / "a.json"), "wild")["a"][:, 2].min() == 0


def test_what_is_refused(photo: Path, net: str, tmp_path: Path) -> None:
    box = ["--bbox", "10,10,50,50"]
    files = {
        "list.json": "[]",
        "short.json": '{"photo.png": [1, 2]}',
        "blind.json": json.dumps({"photo.png": [[1, 2, 0]] * 21}),
        "five.json": json.dumps({"photo.png": [[1, 2]] * 5}),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    cases: list[tuple[list[str], str]] = [
        ([], "no box is given"),
        ([*box, "--crops"], "--bbox and --crops exclude one another"),
        (["--bbox", "1,2,3"], "expected x, y, w, h"),
        (["--bbox", "1,2,3,x"], "expected x, y, w, h"),
        (["--bbox", "1,2,3,0"], "w and h above 0"),
        (["--boxes", str(tmp_path / "list.json")], "expected an object of boxes by picture"),
        (["--boxes", str(tmp_path / "short.json")], "expected x, y, w, h"),
        (["--boxes", str(tmp_path / "none.json")], "no such file of boxes"),
        (["--keypoints", str(tmp_path / "five.json")], "expected 21 x"),
        (["--keypoints", str(tmp_path / "blind.json")], "no joint has a confidence above 0"),
        (["--keypoints", str(tmp_path / "keypoints.json"), "--order", "nobody"], "no joint order is called"),
        ([*box, "--fit", "joints"], "--fit joints needs 2-D joints"),
        ([*box, "--fit", "mask"], "--fit mask needs silhouettes"),
        ([*box, "--fit", "mask", "--masks", str(tmp_path / "none")], "--masks: no such folder"),
        ([*box, "--heatmaps", str(tmp_path)], "--heatmaps are those of crops"),
        (["--crops", "--heatmaps", str(tmp_path / "none")], "--heatmaps: no such folder"),
        (["--crops", "--heatmaps", str(tmp_path)], "7 of 7 heat-map files are missing"),
        (
            ["--crops", "--keypoints", str(tmp_path / "five.json"), "--heatmaps", str(tmp_path)],
            "--heatmaps and --keypoints exclude",
        ),
        ([*box, "--out", str(tmp_path / "list.json")], r"list\.json: cannot be a folder \(File exists\)"),
        ([*box, "--batch_size", "0"], "--batch_size must be at least 1"),
        ([*box, "--masks", str(tmp_path)], "--masks are for the fit"),
        (["--crops", "--track"], "--track looks for a box"),
        ([*box, "--checkpoint", ""], "no checkpoint is given"),
    ]
    for words, message in cases:
        with pytest.raises(DataError, match=message):
            main([str(photo), "--checkpoint", net, "--out", str(tmp_path / "o"), *words])
    for inputs, message in (
        ([], "no picture is given"),
        ([str(tmp_path / "nowhere.png")], "no such picture"),
        ([str(tmp_path / "list.json")], "the suffix '.json'"),
        ([str(photo), str(photo)], "would write the same photo.json"),
        ([str(tmp_path / "empty")], "the folder holds no"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            list_files(inputs, tmp_path / "out")


def test_masks_that_do_not_fit_are_passed_over(
    photo: Path, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pair").mkdir()
    (tmp_path / "masks").mkdir()
    picture = Image.open(photo)
    for name in ("a", "b", "c"):
        picture.save(tmp_path / f"pair/{name}.png")
    Image.new("L", picture.size, 255).save(tmp_path / "masks/b.png")
    Image.new("L", (30, 30), 255).save(tmp_path / "masks/a.png")
    words = ["--fit", "mask", "--masks", str(tmp_path / "masks"), "--bbox", tight_box(photo), "--checkpoint", net]
    assert main([str(tmp_path / "pair"), *words, "--out", str(tmp_path / "o")]) == 1
    printed = capsys.readouterr()
    assert "masks/a.png: expected" in printed.err
    assert "masks/c.png: no such picture" in printed.err
    assert "1 pictures" in printed.out
    assert [p.name for p in (tmp_path / "o").glob("*.json")] == ["b.json"]


def test_heat_maps_for_a_network_without_them(photo: Path, net: str, tmp_path: Path) -> None:
    Image.open(photo).resize((320, 320)).save(tmp_path / "0.png")
    write_group(tmp_path, "0", np.zeros((21, 320, 320), np.float32))
    with pytest.raises(DataError, match="sees the picture alone"):
        main([str(tmp_path / "0.png"), "--crops", "--heatmaps", str(tmp_path), "--checkpoint", net])


def test_pictures_without_a_place_are_passed_over(
    photo: Path, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = [str(photo), "--checkpoint", net, "--out", str(tmp_path / "o")]
    (tmp_path / "other.json").write_text('{"other.png": [1, 2, 30, 40]}')
    assert main([*start, "--boxes", str(tmp_path / "other.json")]) == 1
    assert "the file of boxes has none for photo.png" in capsys.readouterr().err
    (tmp_path / "points.json").write_text(json.dumps({"other.png": [[1, 2]] * 21}))
    assert main([*start, "--keypoints", str(tmp_path / "points.json")]) == 1
    assert "the file of keypoints has none for photo.png" in capsys.readouterr().err
    assert main([*start, "--bbox", "9000,10,30,30"]) == 1
    assert "lies outside the picture" in capsys.readouterr().err
    with pytest.raises(DataError, match="too few for a crop"):
        view_of(np.zeros((50, 50, 3), np.uint8), np.array([[5.0, 5.0], [5.1, 5.1]]), "right", "photo")
    with pytest.raises(MissingFileError):
        main([str(tmp_path / "none.png"), "--bbox", "1,2,3,4"])
