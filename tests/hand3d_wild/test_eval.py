"""Protocols and curves: perfect predictions score perfectly in every set, the published figures, the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hand3d_wild import curves
from hand3d_wild import eval as evaluation
from hand3d_wild.config import EvalConfig
from hand3d_wild.convert import checkpoint_of, save_checkpoint
from hand3d_wild.eval import aligned, errors_of, evaluate, in_order, item_of, main, mean_pose, open_frames
from hand3d_wild.inference import Hand, Predictor
from hand3d_wild.model import WildNet
from hand3d_wild.prepare import detections_folder, prepare, to_wild
from hand3d_wild.synthesize import main as synthesize
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano
from shared.predictions import read_rows
from shared.standin.all import write_sets
from tests.hand3d_wild.conftest import config

SETS = ("stb", "dexter_object", "egodexter", "mpii_nzsl")


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory, wild_trees: Path) -> dict[str, str]:
    root = tmp_path_factory.mktemp("tips")
    write_sets(root, ["dexter_object", "egodexter"], frames=6, seed=2)
    return {
        "stb": str(wild_trees / "stb"),
        "mpii_nzsl": str(wild_trees / "mpii_nzsl"),
        "dexter_object": str(root / "dexter_object"),
        "egodexter": str(root / "egodexter"),
    }


def checkpoint(path: Path, form: str = "rgb") -> str:
    torch.manual_seed(0)
    network = WildNet(load_mano("standin"), image_size=64, width=16, blocks=(1, 1, 1, 1), form=form)  # type: ignore[arg-type]
    save_checkpoint(path, checkpoint_of(network, data={"mano": "standin"}))
    return str(path)


def oracle(frame: Any, dataset: str) -> Hand:
    """A hand that is the label, moved: what no alignment may punish."""
    shift = np.array([30.0, -20, 400])
    joints, palm = np.zeros((21, 3)), np.zeros(3)
    points = np.zeros((21, 2))
    if dataset == "mpii_nzsl":
        points = to_wild(frame.keypoints_2d, frame.skeleton)
    elif dataset == "stb":
        joints = to_wild(frame.joints_mm, "stb") + shift
        palm = joints[0].copy()
        joints[0] += 50  # the wrist; it must not matter
    else:
        names = evaluation.SKELETONS[dataset]
        from shared import skeletons

        wild = skeletons.get("wild")
        for joint, place in zip(skeletons.get(names).joints, frame.joints_mm, strict=True):
            joints[wild.index(joint)] = np.nan_to_num(place) + shift
    none = np.empty(0)
    return Hand(joints, none, points, none, 1.0, palm, np.zeros(2), np.empty(0, np.float32), 0.45)


@pytest.mark.parametrize("dataset", SETS)
def test_a_moved_label_is_a_perfect_prediction(trees: dict[str, str], dataset: str) -> None:
    options = EvalConfig(dataset=dataset, root=trees[dataset])  # type: ignore[arg-type]
    places = open_frames(options)
    frames = [frames[i] for frames, i in places]
    items = [item_of(frame, options, 64, "rgb") for frame in frames]
    pred = np.stack([in_order(oracle(frame, dataset), dataset) for frame in frames])
    target = np.stack([item.target for item in items])
    errors = errors_of(aligned(pred, target, dataset), target)
    print(f"{dataset}: max error of moved labels {np.nanmax(errors):.3g}")
    assert np.nanmax(errors) < 1e-9
    assert (np.isfinite(errors) == np.isfinite(target).all(-1)).all()
    wrong = pred.copy()
    wrong[:, 2:4] += 10.0
    assert np.nanmax(errors_of(aligned(wrong, target, dataset), target)) > 4
    for item in items:  # the crop holds what is labelled, with the room of training around it
        seen = item.view.to_network(item.points[np.isfinite(item.points).all(-1)])
        assert seen.min() > -1
        assert seen.max() < 257
        back = item.view.from_network(item.view.to_network(item.points))
        assert np.nanmax(np.abs(back - item.points)) < 1e-9


def test_a_single_tip_is_aligned_to_nothing_left() -> None:
    target = np.full((2, 5, 3), np.nan)
    target[0, 2] = [1, 2, 3]
    target[1, :2] = [[0, 0, 0], [10, 0, 0]]
    errors = errors_of(aligned(np.zeros((2, 5, 3)), target, "egodexter"), target)
    assert errors[0, 2] == 0
    assert errors[1, :2].tolist() == [5, 5]
    assert np.isnan(errors[0, [0, 1, 3, 4]]).all()


@pytest.mark.parametrize("dataset", SETS)
def test_every_set_is_evaluated_and_reported(
    trees: dict[str, str], wild_store: Path, tmp_path: Path, dataset: str
) -> None:
    words = [
        checkpoint(tmp_path / "net.pt"),
        "--dataset",
        dataset,
        "--root",
        trees[dataset],
        "--store",
        str(wild_store),
    ]
    main([*words, "--out", str(tmp_path / "out")])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    unit = "px" if dataset == "mpii_nzsl" else "mm"
    assert metrics["unit"] == unit
    assert {"ours", "mean pose"} <= set(metrics["scores"])
    assert metrics["ratio_to_baseline"] > 0
    assert ("pa_ratio_to_baseline" in metrics) == (dataset == "stb")
    page = (tmp_path / "out/report.html").read_text()
    assert "ours RGB (published)" in page
    assert page.count("data:image/png") >= 3
    joints = 5 if evaluation.SKELETONS[dataset] == "fingertips" else 21
    rows = read_rows(tmp_path / "out/predictions.txt", joints, dims=2 if unit == "px" else 3)
    assert len(rows.values) == metrics["pictures"]
    curve = np.loadtxt(tmp_path / "out/pck.txt")
    assert len(curve) == (31 if unit == "px" else 51)
    assert (np.diff(curve) >= 0).all()


def test_heat_maps_come_from_labels_or_detections(trees: dict[str, str], tmp_path: Path) -> None:
    net = checkpoint(tmp_path / "net.pt", "heatmaps")
    words = [net, "--dataset", "mpii_nzsl", "--root", trees["mpii_nzsl"], "--out", str(tmp_path / "out")]
    main(words)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["heatmaps"] == "labels"
    with pytest.raises(MissingFileError, match="--heatmaps: no such folder"):
        main([*words, "--heatmaps", str(tmp_path / "nowhere")])
    (tmp_path / "det").mkdir()
    with pytest.raises(
        MissingFileError, match="no such keypoint file"
    ):  # fewer maps than pictures: no picture is left out
        main([*words, "--heatmaps", str(tmp_path / "det")])
    frames, i = open_frames(EvalConfig(dataset="mpii_nzsl", root=trees["mpii_nzsl"]))[0]
    frame = frames[i]
    file = tmp_path / "det/mpii_nzsl" / f"{frame.name}_keypoints.json"
    file.parent.mkdir(parents=True)
    hand = np.concatenate((frame.keypoints_2d, np.ones((21, 1))), 1).ravel().tolist()
    file.write_text(json.dumps({"people": [{f"hand_{frame.side}_keypoints_2d": hand}]}))
    main([*words, "--heatmaps", str(tmp_path / "det")])
    ours = item_of(frame, EvalConfig(dataset="mpii_nzsl", heatmaps=str(tmp_path / "det")), 64, "heatmaps").maps
    labels = item_of(frame, EvalConfig(dataset="mpii_nzsl"), 64, "heatmaps").maps
    assert ours is not None
    assert labels is not None
    assert np.abs(ours - labels).max() < 1e-5


def test_a_detector_that_misses_hands_is_evaluated(
    trees: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, det = checkpoint(tmp_path / "net.pt", "heatmaps"), tmp_path / "det"
    words = [net, "--dataset", "stb", "--root", trees["stb"], "--out", str(tmp_path / "out"), "--heatmaps", str(det)]
    places = open_frames(EvalConfig(dataset="stb", root=trees["stb"]))
    names = [frames.names()[i] for frames, i in places]
    for name in names:
        (det / f"stb/{name}_keypoints.json").parent.mkdir(parents=True, exist_ok=True)
        (det / f"stb/{name}_keypoints.json").write_text('{"people": []}')
    (det / f"stb/{names[0]}_keypoints.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "predict", lambda *_: 1 / 0)  # all files are looked for before anything is predicted
        with pytest.raises(MissingFileError, match=f"no such keypoint file, as for 1 of {len(names)} pictures"):
            main(words)
    (det / f"stb/{names[0]}_keypoints.json").write_text('{"people": []}')
    with pytest.raises(DataError, match="not a single picture has a detected hand"):
        main(words)
    hand = np.concatenate((np.random.default_rng(0).uniform(200, 300, (21, 2)), np.ones((21, 1))), 1).ravel().tolist()
    side = places[0][0][places[0][1]].side
    (det / f"stb/{names[0]}_keypoints.json").write_text(json.dumps({"people": [{f"hand_{side}_keypoints_2d": hand}]}))
    main(words)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["pictures"], metrics["without_detections"]) == (len(names), len(names) - 1)
    said = f"{len(names) - 1} of {len(names)} without detections"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "out/report.html").read_text()
    (det / f"stb/{names[1]}_keypoints.json").write_text('{"people": 3}')
    with pytest.raises(DataError, match="holds no 'people'"):
        main(words)


def test_detections_of_mpii_lie_in_either_folder(tmp_path: Path) -> None:
    assert detections_folder(tmp_path, "mpii") == tmp_path / "mpii"
    (tmp_path / "mpii_nzsl").mkdir()
    assert detections_folder(tmp_path, "mpii") == tmp_path / "mpii_nzsl"
    (tmp_path / "mpii").mkdir()
    assert detections_folder(tmp_path, "mpii") == tmp_path / "mpii"
    assert detections_folder(tmp_path, "mpii_nzsl") == tmp_path / "mpii_nzsl"
    assert detections_folder(tmp_path, "stb") == tmp_path / "stb"


def test_labels_without_joints_are_left_out_and_counted(
    trees: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mpii_nzsl"
    shutil.copytree(trees["mpii_nzsl"], root)
    file = next((root / "hand_labels/manual_test").glob("*.json"))
    label = json.loads(file.read_text())
    for name, seen in (("aa", 0), ("zz", 1)):  # no joint, and one alone
        hidden = {**label, "hand_pts": [[*p[:2], seen if i == 0 else 0] for i, p in enumerate(label["hand_pts"])]}
        file.with_name(f"{name}.json").write_text(json.dumps(hidden))
        shutil.copy(file.with_suffix(".jpg"), file.with_name(f"{name}.jpg"))
    words = [checkpoint(tmp_path / "net.pt"), "--dataset", "mpii_nzsl", "--out", str(tmp_path / "out"), "--root"]
    main([*words, str(root), "--batch_size", "1"])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["pictures"], metrics["labels_without_joints"], metrics["complete"]) == (1, 2, True)
    assert "left out 2 labels without joints" in capsys.readouterr().out
    for suffix in (".json", ".jpg"):
        file.with_suffix(suffix).unlink()
    with pytest.raises(DataError, match="not a single label has a joint"):
        main([*words, str(root)])


def test_a_set_with_gaps_is_not_complete(
    trees: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset in ("stb", "dexter_object", "mpii_nzsl"):
        root = tmp_path / dataset
        shutil.copytree(trees[dataset], root)
        words = [checkpoint(tmp_path / "net.pt"), "--dataset", dataset, "--root", str(root), "--out", str(root / "out")]
        main(words)
        whole = json.loads((root / "out/metrics.json").read_text())
        few = dataset == "dexter_object"  # the stand-in draws two of its six sequences
        assert (whole["complete"], whole["missing"]) == (not few, {"sequences without folder": 4} if few else {})
        assert ("part of the set" in capsys.readouterr().out) == few
        if dataset == "stb":
            next((root / "images").glob("B1*/BB_left*.png")).unlink()
            gap = {"labels without picture": 1}
        elif dataset == "dexter_object":
            frames = open_frames(EvalConfig(dataset="dexter_object", root=str(root)))[0][0]
            shutil.rmtree(frames.path(0).parents[1])
            gap = {"sequences without folder": 5}
        else:
            file = next((root / "hand_labels/manual_test").glob("*.json"))
            shutil.copy(file, file.with_name("alone.json"))
            gap = {"labels without picture": 1}
        main(words)
        metrics = json.loads((root / "out/metrics.json").read_text())
        assert (metrics["complete"], metrics["missing"]) == (False, gap)
        said = "(a part of the set, {1} {0})".format(*next(iter(gap.items())))
        assert said in capsys.readouterr().out
        assert said in (root / "out/report.html").read_text()


def test_a_store_without_3d_gives_no_baseline_and_says_so(
    trees: dict[str, str], wild_trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(config(wild_trees, tmp_path / "store", panoptic="", stb="", masks="none"))
    words = [checkpoint(tmp_path / "net.pt"), "--dataset", "stb", "--root", trees["stb"], "--limit", "2"]
    main([*words, "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")])
    assert "no mean pose to compare with: the store's training split has no 3-D labels" in capsys.readouterr().out


def test_the_synthetic_set_is_evaluated(tmp_path: Path) -> None:
    synthesize(["--out", str(tmp_path / "synth"), "--mano", "standin", "--train", "2", "--test", "4", "--workers", "1"])
    words = [checkpoint(tmp_path / "net.pt"), "--dataset", "pretrain", "--root", str(tmp_path / "synth")]
    main([*words, "--out", str(tmp_path / "out")])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(metrics["losses"]) == {"scale", "trans", "rot", "pose", "betas"}
    assert metrics["pictures"] == 4
    assert (tmp_path / "out/report_best.png").is_file()


def test_the_baseline_is_the_mean_of_the_training_labels(wild_store: Path) -> None:
    joints, points = mean_pose(str(wild_store))
    rows = np.load(wild_store / "train/rows.npy")
    solid = rows["joints_mm"][rows["has_3d"]]
    assert np.abs(joints - (solid - solid[:, :1]).mean(0)).max() < 1e-9
    assert joints[0].tolist() == [0, 0, 0]
    assert points.shape == (21, 2)
    assert 100 < points.mean() < 220


def test_what_is_refused(trees: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = checkpoint(tmp_path / "net.pt")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"checkpoint": []}, "expected one checkpoint, got 0"),
        ({"root": ""}, "--root is empty"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"root": str(tmp_path / "nowhere")}, "no folder of STB"),
        ({"checkpoint": [str(tmp_path / "nowhere.pt")]}, "no such checkpoint"),
        ({"store": str(tmp_path)}, "no prepared store"),
        ({"curves": str(tmp_path)}, "none of the curve files"),
    ]
    for changes, message in cases:
        options = EvalConfig(**{"checkpoint": [net], "root": trees["stb"], "out": str(tmp_path / "out"), **changes})
        with pytest.raises(DataError, match=message):
            evaluate(options, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="--device cuda"):
        Predictor(net, "standin", device="cuda")
    torch.manual_seed(0)
    other = WildNet(load_mano("standin"), image_size=64, width=16, blocks=(1, 1, 1, 1))
    save_checkpoint(tmp_path / "bare.pt", checkpoint_of(other))
    with pytest.raises(DataError, match="no MANO model is named"):
        Predictor(tmp_path / "bare.pt", "")
    with pytest.raises(DataError, match="no checkpoint is given"):
        Predictor("", "standin")


# ------------------------------------------------------------------------------------------------ curves


def test_published_figures_are_the_measured_ones(golden: Path) -> None:
    theirs = json.loads((golden / "hand3d_wild/pck_auc.json").read_text())
    worst, count = 0.0, 0
    for dataset, folder in curves.FOLDERS.items():
        ours = curves.published(dataset)
        assert set(ours) == set(theirs[folder])
        for name, curve in theirs[folder].items():
            assert ours[name]["label"] == curve["label"]
            for threshold, share in curve["pck_at"].items():
                worst, count = max(worst, abs(ours[name]["pck_at"][float(threshold)] - share)), count + 1
            for key in ("20_50", "0_50", "0_30"):
                if f"auc_{key}" in curve:
                    area = ours[name]["auc"][key.replace("_", "-")]
                    worst, count = max(worst, abs(area - curve[f"auc_{key}"]["value"])), count + 1
    print(f"{count} published figures: max diff {worst:.3g}")
    assert worst < 1e-9
    assert count > 100


def test_areas_by_hand() -> None:
    errors = np.array([[10.0, np.nan], [25.0, 100.0]])
    assert curves.pck(errors, [9, 10, 24, 25, 99, 100]).tolist() == [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1]
    both = curves.areas(errors, 20, 50)
    assert both["mean"] == pytest.approx((5 / 3 + 26 * 2 / 3) / 31)
    assert both["trapezoid"] == pytest.approx((4 / 3 + 0.5 + 25 * 2 / 3) / 30)
    with pytest.raises(DataError, match="no labelled joint"):
        curves.pck(errors * np.nan, [1])


def test_curve_files(tmp_path: Path) -> None:
    curves.write_curve(tmp_path / "one", np.array([0.0, 0.5, 1.0]))
    x, y = curves.read_curve(tmp_path / "one")
    assert (x.tolist(), y.tolist()) == ([0, 1, 2], [0, 0.5, 1])
    (tmp_path / "two").write_text("20, 0.5;\n30\t0.75\n\n40 0.9;\n")
    x, y = curves.read_curve(tmp_path / "two")
    assert (x.tolist(), y.tolist()) == ([20, 30, 40], [0.5, 0.75, 0.9])
    (tmp_path / "three").write_text("20 0.1 0.5\n30 0.2 0.75\n")
    assert curves.read_curve(tmp_path / "three")[1].tolist() == [0.5, 0.75]
    for number, content in enumerate(["", "1 2\n3\n", "a b\n", "1 2 3 4\n", "nan\n"]):
        (tmp_path / f"bad{number}").write_text(content)
        with pytest.raises(DataError, match="one to three numbers"):
            curves.read_curve(tmp_path / f"bad{number}")


def test_the_authors_files_are_drawn_as_lines(tmp_path: Path) -> None:
    (tmp_path / "PCK/stereo").mkdir(parents=True)
    curves.write_curve(tmp_path / "PCK/stereo/rgb", np.linspace(0, 1, 51))
    lines = curves.published_lines("stb", str(tmp_path / "PCK"))
    assert list(lines) == ["ours RGB"]
    assert curves.published_lines("stb", "") == {}
    errors = {"ours": np.random.default_rng(0).uniform(0, 60, (20, 21))}
    curves.plot(tmp_path / "points.png", errors, "stb")
    curves.plot(tmp_path / "lines.png", errors, "stb", lines=lines)
    assert (tmp_path / "points.png").read_bytes() != (tmp_path / "lines.png").read_bytes()
    header, rows = curves.table("stb", errors, "mm")
    assert len(header) == 5
    assert ["ours RGB (published)", "0.9940", "0.8048", "-", "-"] in [list(row) for row in rows]
