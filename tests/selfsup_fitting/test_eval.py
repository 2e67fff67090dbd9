"""Evaluation and prediction: the protocol's numbers, the files, the report, bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup_fitting.config import EvalConfig, PredictConfig, PrepareConfig
from selfsup_fitting.convert import checkpoint_of, load_estimator, save_checkpoint
from selfsup_fitting.data import normalised
from selfsup_fitting.eval import (
    THRESHOLDS_MM,
    evaluate,
    from_uvd,
    joint_errors,
    main,
    protocol,
    scores,
    to_uvd,
    training_mean,
)
from selfsup_fitting.model import Estimator, heatmap_variance
from selfsup_fitting.multiview import fuse_views
from selfsup_fitting.predict import camera_of, find_center, load_crop, numbers, predict, read_picture
from selfsup_fitting.predict import main as predict_main
from selfsup_fitting.prepare import prepare
from selfsup_fitting.priors import PoseDenoiser, save_prior
from selfsup_fitting.shards import Shards
from selfsup_fitting.spheres import EVAL_NYU, EVAL_SPHERES, PALM
from shared.datasets.nyu import K, read_depth
from shared.errors import DataError, MissingFileError, exit_on_error
from shared.predictions import read_predictions
from tests.selfsup_fitting.test_model import FOLDER
from tests.selfsup_fitting.trees import nyu_tree, prepared, write_original


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    prepared(nyu_tree(folder / "nyu", 4), folder / "shards")
    torch.manual_seed(0)
    save_checkpoint(folder / "run/checkpoints/last.pt", checkpoint_of(Estimator(1, 64), mode="synthetic", epoch=2))
    save_prior(folder / "denoiser.pt", PoseDenoiser())
    return folder


def run(place: Path, **changes: Any) -> dict[str, Any]:
    options = {"checkpoint": [str(place / "run/checkpoints/last.pt")], "data": str(place / "shards"), **changes}
    return evaluate(EvalConfig(**options), "config: 1\n")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_metric_of_the_original() -> None:
    with np.load(FOLDER / "metric.npz") as file:
        measured = dict(file)
    errors = joint_errors(measured["est"], measured["gt"])[:, 0]
    found = scores(errors)
    for name, key in (("mean_mm", "mean_error_14"), ("mean_12_mm", "mean_error_12")):
        print(f"{key}: max diff {abs(found[name] - float(measured[key])):.3g}")
        assert found[name] == pytest.approx(float(measured[key]), abs=1e-4)
    np.testing.assert_allclose(np.delete(found["per_joint_mm"], [11, 12]), measured["per_joint_12"], atol=1e-4)
    np.testing.assert_allclose(THRESHOLDS_MM, measured["thresholds"], atol=1e-5)
    assert list(found["worst_of_12_below"].values()) == pytest.approx(measured["fraction_below_12"].tolist())
    assert list(found["worst_joint_below"].values()) == pytest.approx(measured["fraction_below_14"].tolist())


def test_frames_count_alike_and_the_interval_shrinks() -> None:
    rng = np.random.default_rng(0)
    errors = rng.uniform(5, 25, (400, 14))
    few, many = scores(errors[:100]), scores(errors)
    assert many["mean_mm"] == pytest.approx(errors.mean())
    assert 0 < many["mean_95_interval_mm"] < few["mean_95_interval_mm"]
    assert scores(errors[:1])["mean_95_interval_mm"] is None


def test_pixels_and_back(place: Path) -> None:
    centers = Shards(place / "shards/test").field("center_mm")[:, 0]
    spheres = np.random.default_rng(0).normal(0, 60, (len(centers), 41, 3))
    back = from_uvd(to_uvd(spheres, centers), centers)
    np.testing.assert_allclose(back, spheres[:, list(EVAL_SPHERES)], atol=1e-6)


# --- a whole evaluation -----------------------------------------------------------------------------------------------


def test_files_and_numbers(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run(place, out=str(tmp_path))
    printed = capsys.readouterr().out
    assert "4 frames; 14 joints of NYU, crops around the annotated palm joint" in printed
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    shards = Shards(place / "shards/test")
    uvd = read_predictions(tmp_path / "predictions_uvd.txt", 14)
    with np.load(tmp_path / "predictions.npz") as file:
        spheres = file["spheres_mm"]
        assert file["number"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(uvd, to_uvd(spheres[:, 0], shards.field("center_mm")[:, 0]), atol=1e-3)
    expected = joint_errors(spheres, shards.field("joints_mm"))
    assert metrics["mean_mm"] == pytest.approx(expected[:, 0].mean(), abs=1e-3)
    assert metrics["mean_all_views_mm"] == pytest.approx(expected.mean())
    assert [e["mean_mm"] for e in metrics["views"].values()] == pytest.approx(expected.mean((0, 2)).tolist())
    depth, T = (torch.from_numpy(shards.field(name)) for name in ("depth_mm", "T_canon_view"))
    with torch.inference_mode():
        maps = load_estimator(metrics["checkpoint"]).build()(normalised(depth.flatten(0, 1)))[-1].heatmaps
    fused = fuse_views(torch.from_numpy(spheres), T.double(), heatmap_variance(maps).view(4, 3, 41))[:, 0].numpy()
    truth = shards.field("joints_mm")[:, 0]
    assert metrics["mean_fused_views_mm"] == pytest.approx(joint_errors(fused, truth).mean(), abs=1e-3)
    assert abs(metrics["mean_fused_views_mm"] - expected[:, 0].mean()) > 0.01  # not the first view alone
    assert f"views fused, without denoiser    {metrics['mean_fused_views_mm']:8.2f} mm" in printed
    assert metrics["complete"]
    assert metrics["mode"] == "synthetic"
    train = Shards(place / "shards/train").field("joints_mm").mean(0)
    base = np.linalg.norm(shards.field("joints_mm") - train, axis=-1)[..., list(EVAL_NYU)]
    assert metrics["baseline_mean_pose"]["mean_all_views_mm"] == pytest.approx(base.mean(), rel=1e-5)
    page = (tmp_path / "report.html").read_text()
    assert "Spheres drawn over the captured depth" in page
    assert page.count("data:image/png") >= 2 + 4 + 4  # curves, frames, fits
    picture = np.asarray(Image.open(tmp_path / "fit_best.png"))
    assert picture.std() > 20
    assert (tmp_path / "eval_config.yaml").read_text() == "config: 1\n"


def test_one_view_is_not_fused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(place / "nyu", tmp_path / "one", views=[2])
    capsys.readouterr()
    assert "mean_fused_views_mm" not in run(place, data=str(tmp_path / "one"), out=str(tmp_path / "out"))
    assert "views fused" not in capsys.readouterr().out


def test_denoiser_changes_the_palm_only(place: Path, tmp_path: Path) -> None:
    metrics = run(place, out=str(tmp_path), denoiser=str(place / "denoiser.pt"))
    with np.load(tmp_path / "predictions.npz") as file:
        moved = np.abs(file["spheres_mm"] - file["spheres_denoised_mm"]).max((0, 1, 3))
    assert (moved[list(PALM)] > 0.1).all()
    assert moved[len(PALM) :].max() < 1e-4
    first = metrics["views"]["1"]
    assert metrics["mean_mm"] == pytest.approx(first["mean_denoised_mm"], abs=1e-3)
    assert first["mean_mm"] != first["mean_denoised_mm"]


def test_a_part_is_called_a_part(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run(place, out=str(tmp_path), limit=2, baseline=False)
    assert not metrics["complete"]
    assert "(a part of the split)" in capsys.readouterr().out
    assert "baseline_mean_pose" not in metrics


def test_a_single_frame_has_no_interval(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(place, out=str(tmp_path), limit=1)
    assert "95 %" not in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "metrics.json").read_text()


def test_a_part_that_was_prepared_is_a_part(place: Path, tmp_path: Path) -> None:
    prepared(place / "nyu", tmp_path / "some", limit=3)
    metrics = run(place, data=str(tmp_path / "some"), out=str(tmp_path / "out"))
    assert metrics["frames"] == 3
    assert not metrics["complete"]


def test_crops_of_the_original_are_scored_where_they_are(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Shards(place / "shards/test")
    write_original(tmp_path / "npy-64/test", shards, old_layout=False)
    prepare(PrepareConfig(original=str(tmp_path), out=str(tmp_path / "new"), splits=["test"]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions_uvd.txt").write_text("of an earlier evaluation")
    capsys.readouterr()
    metrics = run(place, data=str(tmp_path / "new"), out=str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "no baseline: " in printed  # there is no training split
    assert "manifest.json" in printed
    assert "baseline_mean_pose" not in metrics
    assert "crops around the annotated palm joint scored without their place in the camera" in metrics["protocol"]
    assert not (tmp_path / "out/predictions_uvd.txt").exists()
    assert "u v d" not in printed
    assert metrics["mean_mm"] == pytest.approx(run(place, out=str(tmp_path / "same"))["mean_mm"], abs=1e-3)
    assert (tmp_path / "out/report.html").is_file()


def test_no_mean_pose_of_other_cameras_or_centres(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    prepared(place / "nyu", folder, splits=["train"], views=[1, 2])
    prepared(place / "nyu", folder, splits=["test"])
    shards = Shards(folder / "test")
    mean, why = training_mean(str(folder), shards)
    assert mean is None
    assert why.startswith("cameras (1, 2, 3) here, (1, 2) in the training split")
    assert "baseline_mean_pose" not in run(place, data=str(folder), out=str(tmp_path / "out"))
    prepared(place / "nyu", tmp_path / "near", splits=["train"], centers="nearest")
    assert training_mean(str(tmp_path / "near"), shards)[1].startswith("centers palm here, nearest in")
    assert training_mean(str(place / "shards"), shards)[1] == ""


def test_nothing_is_predicted_that_cannot_be_finished(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predicted(*_: object) -> None:
        raise AssertionError("predicted")

    monkeypatch.setattr("selfsup_fitting.eval.predict_spheres", predicted)
    (tmp_path / "other.json").write_text('{"split": "test", "frames": 9, "mean_all_views_mm": 10.0}')
    with pytest.raises(DataError, match="frames 9 there, 4 here"):
        run(place, compare=str(tmp_path / "other.json"))
    with pytest.raises(OSError, match=r"other\.json"):
        run(place, out=str(tmp_path / "other.json"))
    folder = tmp_path / "damaged"
    shutil.copytree(place / "shards", folder)
    (folder / "train/manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged manifest"):
        run(place, data=str(folder), out=str(tmp_path / "out"))


def test_summary_of_two_checkpoints(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(place, out=str(tmp_path / "first"))
    torch.manual_seed(5)
    other = tmp_path / "run/checkpoints/last.pt"
    save_checkpoint(other, checkpoint_of(Estimator(1, 64), mode="self-supervised", epoch=1))
    capsys.readouterr()
    file = tmp_path / "first/metrics.json"
    second = run(place, checkpoint=[str(other)], compare=str(file))
    base, a, b = (
        m["mean_all_views_mm"] for m in (first["baseline_mean_pose"], first, second)
    )  # mean pose, then each checkpoint
    found = capsys.readouterr().out.split("summary: ")[1].splitlines()
    assert found[0] == "mean error of 14 joints over all views, 4 test frames, no denoiser"
    assert [line.split() for line in found[1:4]] == [
        ["mean", "pose", "of", "the", "training", "split", f"{base:.2f}", "mm"],
        ["synthetic", f"{a:.2f}", "mm", f"({a / base:.2f}", "of", "the", "mean", "pose)"],
        ["self-supervised", f"{b:.2f}", "mm", f"({b / base:.2f}", "of", "the", "mean", "pose)"],
    ]
    assert found[4].strip() == f"{abs(100 * (1 - b / a)):.1f} % {'lower' if b < a else 'higher'} than synthetic"
    assert second["compared_with"]["lower_by"] == pytest.approx(1 - b / a)
    with pytest.raises(DataError, match="frames 4 there, 2 here"):
        run(place, out=str(tmp_path / "part"), limit=2, compare=str(file))
    with pytest.raises(MissingFileError, match="no such evaluation"):
        run(place, compare=str(tmp_path / "none.json"))
    for text in ("{", "[]", '{"frames": 4}', '{"frames": 4, "mean_all_views_mm": null}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"expected the metrics\.json of an evaluation"):
            run(place, compare=str(tmp_path / "bad.json"))


def test_half_precision_is_near(place: Path, tmp_path: Path) -> None:
    plain = run(place, out=str(tmp_path / "a"))["mean_all_views_mm"]
    half = run(place, out=str(tmp_path / "b"), precision="bfloat16")["mean_all_views_mm"]
    assert half == pytest.approx(plain, abs=2.0)
    assert half != plain


def test_results_lie_in_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["eval", str(place / "run/checkpoints/last.pt"), "--data", str(place / "shards"), "--split", "train"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert json.loads((place / "run/eval/metrics.json").read_text())["split"] == "train"


def test_bad_arguments(place: Path) -> None:
    with pytest.raises(DataError, match="expected one checkpoint, got 0"):
        evaluate(EvalConfig(), "")
    with pytest.raises(DataError, match="no captured frames are given"):
        run(place, data="")
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        run(place, checkpoint=["none.pt"])
    for changes in ({"batch_size": 0}, {"limit": -1}):
        with pytest.raises(DataError, match="--batch_size must be at least 1, --limit 0 or more"):
            run(place, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="torch sees no CUDA device -- use --device cpu or auto"):
        run(place, device="cuda")
    options = PredictConfig(
        images=["x.png"], checkpoint=str(place / "run/checkpoints/last.pt"), device="cuda", out=str(tmp_path)
    )
    with pytest.raises(DataError, match="torch sees no CUDA device"):
        predict(options)


def test_the_protocol_says_what_crops_are_cut_around(place: Path, tmp_path: Path) -> None:
    prepared(place / "nyu", tmp_path / "near", centers="nearest")
    metrics = run(place, data=str(tmp_path / "near"), out=str(tmp_path / "out"))
    assert metrics["protocol"] == "14 joints of NYU, crops around centres found in the pictures, mean over frames"
    assert metrics["protocol"] in (tmp_path / "out/report.html").read_text()
    assert protocol({"centers": "folder"}) == "14 joints of NYU, crops around the centres of folder, mean over frames"


def test_a_network_that_answers_nonsense(place: Path, tmp_path: Path) -> None:
    network = Estimator(1, 64)
    with torch.no_grad():
        network.stacks[0].score.bias.fill_(3e38)  # finite weights, an answer that is not
    save_checkpoint(tmp_path / "bad.pt", checkpoint_of(network))
    with pytest.raises(DataError, match="prediction for test/0000001 is not finite"):
        run(place, checkpoint=[str(tmp_path / "bad.pt")], out=str(tmp_path))


# --- predict ----------------------------------------------------------------------------------------------------------


def test_prediction_of_a_picture_is_the_evaluations(place: Path, tmp_path: Path) -> None:
    run(place, out=str(tmp_path / "eval"))
    with np.load(tmp_path / "eval/predictions.npz") as file:
        expected, center = file["spheres_mm"][0, 0] + file["center_mm"][0, 0], file["center_mm"][0, 0]
    options = PredictConfig(
        images=[str(place / "nyu/test/depth_1_0000001.png")],
        checkpoint=str(place / "run/checkpoints/last.pt"),
        center=",".join(repr(float(v)) for v in center),
        out=str(tmp_path / "out"),
    )
    content = json.loads(predict(options)[0].read_text())
    np.testing.assert_allclose(content["spheres_mm"], expected, atol=0.1)
    assert np.array(content["joints_uv"]).shape == (14, 2)
    assert (tmp_path / "out/depth_1_0000001.png").is_file()


def test_centre_is_found_without_being_given(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "nyu/test/depth_1_0000001.png"
    truth = Shards(place / "shards/test")[0]["center_mm"][0]
    found = find_center(read_depth(path), K, path)
    assert np.linalg.norm(found - truth) < 80
    words = ["predict", str(path), "--checkpoint", str(place / "run/checkpoints/last.pt"), "--out", str(tmp_path)]
    words += ["--denoiser", str(place / "denoiser.pt"), "--precision", "bfloat16"]
    monkeypatch.setattr(sys, "argv", words)
    predict_main()
    assert json.loads((tmp_path / "depth_1_0000001.json").read_text())["center_mm"] == pytest.approx(found.tolist())


def test_formats_of_depth(place: Path, tmp_path: Path) -> None:
    path = place / "nyu/test/depth_1_0000001.png"
    depth = read_depth(path)
    np.testing.assert_array_equal(read_picture(path), depth)
    Image.fromarray(depth.astype(np.uint16)).save(tmp_path / "depth.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "depth.png"), depth)
    np.save(tmp_path / "depth.npy", depth)
    np.testing.assert_array_equal(read_picture(tmp_path / "depth.npy"), depth)
    crop = Shards(place / "shards/test")[0]["depth_mm"][0]
    np.save(tmp_path / "crop.npy", crop)
    same, center = load_crop(tmp_path / "crop.npy", "", "588,587,320,240")
    np.testing.assert_array_equal(same, crop)
    assert center.tolist() == [0, 0, 0]


def test_pictures_that_cannot_be_used(place: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such picture"):
        read_picture(tmp_path / "none.png")
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match="red channel is not empty"):
        read_picture(tmp_path / "photo.png")
    np.save(tmp_path / "nan.npy", np.full((480, 640), np.nan, np.float32))
    with pytest.raises(DataError, match=r"not finite \(NaN\)"):
        read_picture(tmp_path / "nan.npy")
    np.save(tmp_path / "far.npy", np.full((480, 640), 2**40))
    with pytest.raises(DataError, match=r"far\.npy: holds depth of 1\.1e\+12 mm, more than 65535"):
        read_picture(tmp_path / "far.npy")
    for value in (100.0, 700.0):
        np.save(tmp_path / "back.npy", np.full((64, 64), value, np.float32))
        with pytest.raises(DataError, match="nothing in this crop is nearer than the background"):
            load_crop(tmp_path / "back.npy", "", "588,587,320,240")
    for spread in (1.0, 0.5):
        np.save(tmp_path / "unit.npy", np.linspace(-spread, 1, 4096, dtype=np.float32).reshape(64, 64))
        with pytest.raises(DataError, match=r"holds numbers from -\S+ to 1, as a normalised crop does -- multiply"):
            load_crop(tmp_path / "unit.npy", "", "588,587,320,240")
    for middle in (np.zeros(2), np.full(3, np.nan), np.array(["a", "b", "c"])):
        np.savez(tmp_path / "crop.npz", depth_mm=np.full((64, 64), 5.0), center_mm=middle)
        with pytest.raises(DataError, match=r"crop\.npz: center_mm: expected three numbers"):
            load_crop(tmp_path / "crop.npz", "", "588,587,320,240")
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DataError, match=r"two\.npz: expected an array depth_mm, found a, b"):
        read_picture(tmp_path / "two.npz")
    metres = np.full((480, 640), 0.7, np.float32)
    np.save(tmp_path / "metres.npy", metres)
    for center in ("", "0,0,700"):
        with pytest.raises(DataError, match=r"nothing is farther than 0\.7: is this depth in mm\? -- multiply metres"):
            load_crop(tmp_path / "metres.npy", center, "588,587,320,240")
    metres[0, 0] = 400
    np.save(tmp_path / "near.npy", metres)
    with pytest.raises(DataError, match=r"near\.npy: the crop reaches 150 mm .* which is 1 mm away -- give --center x"):
        load_crop(tmp_path / "near.npy", "", "588,587,320,240")
    (tmp_path / "depth.tif").write_bytes(b"II*")
    with pytest.raises(DataError, match=r"the suffix '\.tif' is none of \.png, \.npy, \.npz -- convert the picture"):
        read_picture(tmp_path / "depth.tif")
    with pytest.raises(DataError, match="is a folder -- name one depth picture in it"):
        read_picture(tmp_path)
    np.save(tmp_path / "cube.npy", np.zeros((4, 4, 4)))
    with pytest.raises(DataError, match=r"expected depth \(H, W\)"):
        read_picture(tmp_path / "cube.npy")
    np.save(tmp_path / "empty.npy", np.zeros((480, 640), np.float32))
    with pytest.raises(DataError, match="nothing was measured"):
        load_crop(tmp_path / "empty.npy", "", "588,587,320,240")
    path = place / "nyu/test/depth_1_0000001.png"
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_picture(tmp_path / "cut.png")
    with pytest.raises(DataError, match="no depth within the cube"):
        load_crop(path, "0,0,5000", "588,587,320,240")
    with pytest.raises(DataError, match="reaches 150 mm before and behind"):
        load_crop(path, "0,0,100", "588,587,320,240")


def test_a_folder_one_bad_picture_and_crops_of_ours(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        shutil.copy(place / "nyu/test/depth_1_0000001.png", folder / name)
    (folder / "b.png").write_bytes(b"x")
    options = PredictConfig(
        images=[str(folder)], checkpoint=str(place / "run/checkpoints/last.pt"), out=str(folder / "out")
    )
    with pytest.raises(DataError, match="1 of 3 pictures could not be used"):
        predict(options)
    assert "b.png" in capsys.readouterr().err
    first = json.loads((folder / "out/a.json").read_text())
    assert json.loads((folder / "out/sub/a.json").read_text()) == first
    again = dataclasses.replace(options, images=[str(folder / "out/a_crop.npz")], out=str(tmp_path / "again"))
    assert json.loads(predict(again)[0].read_text()) == first  # the crop knows its centre
    (folder / "b.png").unlink()
    assert len(predict(options)) == 2  # its own results are no pictures
    with pytest.raises(DataError, match=r"the folder holds no \.png, \.npy, \.npz file"):
        predict(dataclasses.replace(options, images=[str(folder / "out")]))


def test_results_do_not_replace_what_is_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    shutil.copy(place / "nyu/test/depth_1_0000001.png", picture)
    before = picture.read_bytes()
    monkeypatch.chdir(tmp_path)
    words = ["predict", "a.png", "--checkpoint", str(place / "run/checkpoints/last.pt"), "--out", "."]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        exit_on_error(predict_main)
    assert end.value.code == 2
    assert "a.png: would be overwritten by the results -- give another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert picture.read_bytes() == before


def test_arguments_of_predict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no depth picture"):
        predict(PredictConfig())
    with pytest.raises(DataError, match="--checkpoint is missing"):
        predict(PredictConfig(images=["a.png"]))
    with pytest.raises(DataError, match="same name"):
        predict(PredictConfig(images=["a/x.png", "b/x.png"], checkpoint="c.pt"))
    for text in ("1,2", "1,2,x", "1,2,nan"):
        with pytest.raises(DataError, match="--center: expected 3 numbers"):
            numbers(text, 3, "--center")
    for text in ("0,500,2,3", "500,1e-300,2,3", "1e300,500,2,3"):
        with pytest.raises(DataError, match="focal lengths must be 1 to 1,000,000 pixels"):
            camera_of(text)
