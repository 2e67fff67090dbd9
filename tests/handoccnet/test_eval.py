"""The evaluation program: the challenge's files, scores, and that nothing is left out in silence."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handoccnet.config import DataOptions, EvalConfig
from handoccnet.convert import checkpoint_of, save_checkpoint
from handoccnet.data import load_labels, to_camera
from handoccnet.eval import (
    data_options,
    evaluate,
    label_hands,
    mean_hand,
    mean_hands,
    official_scores,
    true_meshes,
    with_tips,
    write_and_read,
)
from handoccnet.model import HandOccNet
from handoccnet.prepare import prepare
from shared.errors import DataError
from shared.mano import TIPS, ManoModel, load_mano, mirror_model
from shared.options import parse
from shared.standin.dexycb import write_dexycb
from shared.standin.ho3d import write_ho3d
from tests.golden.fill import uniform
from tests.handoccnet.test_data import golden_tree


@pytest.fixture(scope="module")
def hand() -> ManoModel:
    return load_mano("standin")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_ho3d(root / "ho3d", frames=6, seed=2)
    write_dexycb(root / "dexycb", frames=24, seed=2)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, hand: ManoModel) -> Path:
    torch.manual_seed(0)
    network = HandOccNet(hand, image_size=64, stem=4, blocks=(1, 1, 1, 1), channels=16, heads=2, hidden=(32, 16))
    path = tmp_path_factory.mktemp("run") / "checkpoints/last.pt"
    path.parent.mkdir()
    save_checkpoint(path, checkpoint_of(network, epoch=7, data={"dataset": "ho3d", "mano": "standin"}))
    return path


def run(*words: str) -> dict[str, Any]:
    parsed = parse(EvalConfig, prog="eval", description="", argv=words, positional="checkpoint")
    return evaluate(parsed.options, parsed.yaml)


def test_prediction_file_is_the_originals(golden: Path, hand: ManoModel, tmp_path: Path) -> None:
    root, annotations = golden_tree(golden, tmp_path / "mini")
    record = json.loads((annotations / "HO3D_evaluation_data.json").read_text())
    names = [image["file_name"].replace("/rgb/", "/").removesuffix(".png") for image in record["images"]]
    (root / "evaluation.txt").write_text("\n".join(names) + "\n")
    options = DataOptions(root=str(root), annotations=str(annotations), mano="standin")
    labels = load_labels(options, "test", hand)
    joints = np.stack([uniform(f"handoccnet/eval/joints{i}", (21, 3), -0.1, 0.1) for i in range(3)]) * 1000.0
    verts = np.stack([uniform(f"handoccnet/eval/verts{i}", (778, 3), -0.1, 0.1) for i in range(3)]) * 1000.0
    joints, verts = to_camera(joints, verts, labels.root_mm, labels.left)
    back = write_and_read(tmp_path, 70, "ho3d", labels, joints, verts, decimals=7)
    written = json.loads((tmp_path / "pred70.json").read_text())
    expected = json.loads((golden / "handoccnet/pred_sub.json").read_text())
    worst = np.abs(np.array(written[0]) - expected[0]).max()
    worst = max(worst, np.abs(np.array(written[1])[:, ::16] - expected[1]).max())
    print(f"HO-3D prediction file: max diff {worst:.3g} m")
    assert worst <= 2e-7
    np.testing.assert_allclose(back[0], joints, atol=1e-4)
    with zipfile.ZipFile(tmp_path / "pred70.zip") as archive:
        assert archive.namelist() == ["pred.json"]
        assert json.loads(archive.read("pred.json")) == written

    z = np.load(golden / "handoccnet/metrics.npz")
    gl = np.array([1.0, -1, -1])
    order = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]  # HO-3D's to thumb-first
    noise = np.stack([uniform(f"handoccnet/eval/gtx{i}", (21, 3), -0.012, 0.012) for i in range(3)]) * 1000.0 * gl
    noise_verts = (
        np.stack([uniform(f"handoccnet/eval/gtv{i}", (778, 3), -0.012, 0.012) for i in range(3)]) * 1000.0 * gl
    )
    true = type(labels)(**{**vars(labels), "joints_mm": joints + noise[:, order]})
    ours = official_scores("ho3d", joints, verts, true, verts + noise_verts)
    pairs = {
        "xyz_mean3d": z["ho3d_xyz_mean_m_f64"] * 100,
        "xyz_procrustes_al_mean3d": z["ho3d_xyz_pa_mean_m_f64"] * 100,
        "xyz_scale_trans_al_mean3d": z["ho3d_xyz_sctr_mean_m_f64"] * 100,
        "mesh_mean3d": z["ho3d_mesh_mean_m_f64"] * 100,
        "mesh_al_mean3d": z["ho3d_mesh_pa_mean_m_f64"] * 100,
        "xyz_auc3d": z["ho3d_xyz_auc_f64"],
        "mesh_al_auc3d": z["ho3d_mesh_pa_auc_f64"],
        "f_score_5": z["ho3d_f5_f64"],
        "f_al_score_15": z["ho3d_f15_aligned_f64"],
    }
    off = {name: abs(ours[name] - float(value)) for name, value in pairs.items()}
    print("HO-3D scores: max diff " + ", ".join(f"{name} {value:.2g}" for name, value in off.items()))
    assert max(off.values()) < 1e-4


def test_whole_evaluation_of_ho3d(sets: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run(str(checkpoint), "--data.root", str(sets / "ho3d"), "--workers", "0")
    out = checkpoint.parents[1] / "eval"
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["frames"] == 3
    assert metrics["complete"] is True
    assert metrics["ratio_to_baseline"] == pytest.approx(
        metrics["mpjpe_mm"] / metrics["baseline_mean_pose"]["mpjpe_mm"]
    )
    assert 0 < metrics["pa_mpjpe_mm"] < metrics["mpjpe_mm"]
    # wrists are moved to the truth before the file is written, so the official absolute error is the root-aligned one
    assert metrics["official"]["xyz_mean3d"] * 10 == pytest.approx(metrics["mpjpe_mm"], abs=0.5)
    for name in ("pred7.json", "pred7.zip", "report.html", "report_mesh_best.png", "report_mesh_worst.png"):
        assert (out / name).stat().st_size > 1000, name
    text = capsys.readouterr().out
    for word in ("PA-MPJPE", "PA-MPVPE", "F@5", "F@15", "AUC", "mean pose", "submission:"):
        assert word in text, word


def test_switches_change_the_result(sets: Path, checkpoint: Path, tmp_path: Path) -> None:
    def errors(*words: str) -> dict[str, Any]:
        common = ("--data.root", str(sets / "ho3d"), "--workers", "0", "--no-baseline")
        return run(str(checkpoint), *common, "--out", str(tmp_path / str(len(words) and words[0])), *words)

    plain, tips, half, limited = (
        errors(*words) for words in ((), ("--tips", "ho3d"), ("--precision", "bfloat16"), ("--data.limit", "1"))
    )
    assert plain["tips"] == "manopth"
    assert tips["tips"] == "ho3d"
    assert 0 < abs(tips["mpjpe_mm"] - plain["mpjpe_mm"]) < 10
    assert tips["pa_mpvpe_mm"] == plain["pa_mpvpe_mm"]
    assert 0 < abs(half["mpjpe_mm"] - plain["mpjpe_mm"]) < 20
    assert limited["frames"] == 1


def test_a_part_is_no_submission(
    sets: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data.root", str(sets / "ho3d"), "--workers", "0", "--data.limit", "2", "--out", str(tmp_path))
    metrics = run(str(checkpoint), *words, "--no-baseline")
    assert metrics["complete"] is False
    assert "baseline_mean_pose" not in metrics
    assert (tmp_path / "pred7_part.json").is_file()
    assert not list(tmp_path.glob("*.zip"))
    assert "not a submission" in capsys.readouterr().out


def test_without_ground_truth_it_writes_and_says_so(
    sets: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(sets / "ho3d", root)
    for name in ("xyz", "verts"):
        (root / f"evaluation_{name}.json").unlink()
    assert run(str(checkpoint), "--data.root", str(root), "--workers", "0", "--out", str(tmp_path / "out")) == {}
    assert (tmp_path / "out/pred7.zip").is_file()
    assert "nothing to score" in capsys.readouterr().out


def test_dexycb_writes_the_toolkits_lines(sets: Path, checkpoint: Path, tmp_path: Path) -> None:
    words = (
        "--data.root",
        str(sets / "dexycb"),
        "--data.dataset",
        "dexycb",
        "--data.missing",
        "skip",
        "--workers",
        "0",
    )
    metrics = run(str(checkpoint), *words, "--out", str(tmp_path))
    rows = [line.split(",") for line in (tmp_path / "pred7_s0_test_part.txt").read_text().splitlines()]
    assert {len(row) for row in rows} == {64}
    assert metrics["split"] == "s0_test"
    assert metrics["official"]["root_relative"]["mpjpe_mm"] == pytest.approx(metrics["mpjpe_mm"], abs=1e-3)


def test_true_meshes_of_dexycb_lie_on_the_true_joints(sets: Path, hand: ManoModel) -> None:
    options = DataOptions(dataset="dexycb", root=str(sets / "dexycb"), mano="standin", missing="skip")
    labels = load_labels(options, "train", hand, mirror_model(hand))
    assert labels.left.any()
    verts, source = true_meshes(labels, hand)
    assert "left hands mirrored" in source
    tips = verts[:, list(TIPS["manopth"])] - labels.joints_mm[:, [4, 8, 12, 16, 20]]
    tips[labels.left, 2] = 0  # DexYCB's left middle tip is vertex 445, which mirrors to none of the right hand's
    assert np.abs(tips).max() < 0.02


def test_mean_hands_are_the_mean_of_the_training_labels(sets: Path, hand: ManoModel) -> None:
    options = DataOptions(root=str(sets / "ho3d"), mano="standin")
    train, test = load_labels(options, "train", hand), load_labels(options, "test", hand)
    joints, verts = mean_hands(*mean_hand(options, hand, None), test)
    expected = (train.joints_mm - train.joints_mm[:, :1]).mean(0)
    np.testing.assert_allclose(joints - test.root_mm[:, None], np.broadcast_to(expected, joints.shape), atol=1e-6)
    many = train.take(np.arange(600) % len(train), "600 of:")
    parts = [len(part) for part, _ in label_hands(many, hand)]
    assert parts == [256, 256, 88]  # never the meshes of a whole split at once
    tips = verts[:, list(TIPS["ho3d"])]
    np.testing.assert_allclose(tips, joints[:, [4, 8, 12, 16, 20]], atol=1e-3)


def test_tips_of_another_set() -> None:
    rng = np.random.default_rng(0)
    joints, verts = rng.normal(size=(2, 21, 3)), rng.normal(size=(2, 778, 3))
    moved = with_tips(joints, verts, "ho3d")
    np.testing.assert_array_equal(moved[:, 4], verts[:, 728])
    np.testing.assert_array_equal(moved[:, 20], verts[:, 694])
    np.testing.assert_array_equal(moved[:, 1], joints[:, 1])


def test_what_is_refused(sets: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one checkpoint, got 0"):
        run("--data.root", str(sets / "ho3d"))
    with pytest.raises(DataError, match=r"--data\.root is empty"):
        run(str(checkpoint))
    torch.save({"format": "handpose/v2v_posenet", "version": 1}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="handpose/v2v_posenet"):
        run(str(tmp_path / "other.pt"), "--data.root", str(sets / "ho3d"))
    network = HandOccNet(
        load_mano("standin"), image_size=64, stem=2, blocks=(1, 1, 1, 1), channels=8, heads=2, hidden=(8, 8)
    )
    save_checkpoint(tmp_path / "licensed.pt", checkpoint_of(network))
    with pytest.raises(DataError, match=r"no MANO model is named.*mano\.is\.tue\.mpg\.de"):
        run(str(tmp_path / "licensed.pt"), "--data.root", str(sets / "ho3d"))


def test_predictions_that_are_not_finite_are_named(sets: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["hand_head.shape.bias"].fill_(3e38)  # finite, but MANO overflows
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(DataError, match=r"prediction for \w+/\d+ is not finite"):
        run(str(tmp_path / "nan.pt"), "--data.root", str(sets / "ho3d"), "--workers", "0", "--out", str(tmp_path))


def test_meshes_are_asked_for_where_only_joints_are_there(sets: Path, checkpoint: Path, tmp_path: Path) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(sets / "ho3d", root)
    (root / "evaluation_verts.json").unlink()
    with pytest.raises(DataError, match="true joints but no true meshes"):
        run(str(checkpoint), "--data.root", str(root), "--workers", "0", "--out", str(tmp_path / "out"))


# ------------------------------------------------------------------------------------------------ before the work


@pytest.fixture
def no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused has to be refused before the hours of predicting."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("predicted first")

    monkeypatch.setattr("handoccnet.eval.predict_all", fail)


def test_what_is_missing_is_found_before_predicting(
    sets: Path, checkpoint: Path, tmp_path: Path, no_prediction: None
) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(sets / "ho3d", root)
    (root / "evaluation_verts.json").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="true joints but no true meshes"):
        run(str(checkpoint), "--data.root", str(root), "--out", str(tmp_path / "out"))
    with pytest.raises(OSError, match="file"):
        run(str(checkpoint), "--data.root", str(sets / "ho3d"), "--out", str(tmp_path / "file"))


def test_without_a_train_split_there_is_no_baseline(
    sets: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(sets / "ho3d", root, ignore=shutil.ignore_patterns("train", "train.txt"))
    metrics = run(str(checkpoint), "--data.root", str(root), "--workers", "0", "--out", str(tmp_path / "out"))
    assert "baseline_mean_pose" not in metrics
    assert metrics["mpjpe_mm"] > 0
    assert "no baseline: " in capsys.readouterr().out


def test_numbers_of_the_whole_are_not_replaced(
    sets: Path, checkpoint: Path, tmp_path: Path, no_prediction: None
) -> None:
    words = (str(checkpoint), "--data.root", str(sets / "ho3d"), "--out", str(tmp_path))
    whole = {"dataset": "ho3d", "split": "evaluation", "complete": True}
    for there, more, refused in (
        (whole, ("--data.limit", "1"), "the whole ho3d evaluation; those of a part of ho3d evaluation would"),
        ({**whole, "split": "s0_val"}, (), "the whole ho3d s0_val; those of ho3d evaluation would"),
        (whole, (), ""),
        ({**whole, "complete": False}, ("--data.limit", "1"), ""),
        ([], ("--data.limit", "1"), ""),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(there))
        with pytest.raises(DataError if refused else AssertionError, match=refused or "predicted first"):
            run(*words, *more)


def test_what_is_left_empty_is_as_in_training() -> None:
    trained = {"dataset": "dexycb", "annotations": "a", "mano_left": "l", "dexycb_split": "val", "missing": "skip"}
    given = data_options(EvalConfig(), trained)
    assert {name: getattr(given, name) for name in trained} == trained
    other = EvalConfig()
    other.data.annotations, other.data.dexycb_split, other.data.missing = "", "test", "error"
    given = data_options(other, trained)
    assert (given.annotations, given.dexycb_split, given.missing, given.mano_left) == ("", "test", "error", "l")
    other.data = type(other.data)(dataset="ho3d")  # another set than the training's: its files are not there
    assert data_options(other, trained).annotations == ""
    assert data_options(EvalConfig(), {}).missing == "error"  # checkpoints from before these entries


@pytest.mark.parametrize(
    "words", ["--batch_size 0", "--batch_size=-1", "--workers=-1", "--decimals=-2", "--data.limit=-3"]
)
def test_numbers_that_mean_nothing(words: str) -> None:
    name = words.split("=")[0].split()[0]
    with pytest.raises(DataError, match=f"{name} must be at least"):
        run("last.pt", *words.split())


# ------------------------------------------------------------------------------------------------ annotation files


def test_annotations_of_ho3d_are_scored_and_judged_by_the_list(
    sets: Path, hand: ManoModel, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(sets / "ho3d", root)
    options = DataOptions(root=str(root), mano="standin")
    prepare(options, tmp_path / "a")
    words = (str(checkpoint), "--data.root", str(root), "--workers", "0")
    direct = run(*words, "--out", str(tmp_path / "direct"))
    annotated = run(*words, "--out", str(tmp_path / "annotated"), "--data.annotations", str(tmp_path / "a"))
    assert annotated["complete"] is True
    assert annotated["mpjpe_mm"] == pytest.approx(direct["mpjpe_mm"], rel=1e-6)
    assert annotated["pa_mpvpe_mm"] == pytest.approx(direct["pa_mpvpe_mm"], rel=1e-6)

    file = tmp_path / "a/HO3D_evaluation_data.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][1:]
    file.write_text(json.dumps(content))
    capsys.readouterr()
    part = run(*words, "--out", str(tmp_path / "part"), "--data.annotations", str(tmp_path / "a"), "--no-baseline")
    assert (part["complete"], part["frames"]) == (False, 2)
    assert not list((tmp_path / "part").glob("*.zip"))
    assert "evaluation.txt has 3 frames, or another order" in capsys.readouterr().out
    with_files = DataOptions(root=str(root), annotations=str(tmp_path / "a"), mano="standin")
    truth, whole = load_labels(with_files, "test", hand, verts=True), load_labels(options, "test", hand, verts=True)
    np.testing.assert_array_equal(truth.joints_mm, whole.joints_mm[1:])  # by line, not by position
    assert truth.verts_mm is not None
    assert whole.verts_mm is not None
    np.testing.assert_array_equal(truth.verts_mm, whole.verts_mm[1:])

    lines = (root / "evaluation.txt").read_text().split()
    (root / "evaluation.txt").write_text("\n".join([lines[0], lines[2], lines[1]]))
    with pytest.raises(DataError, match="puts the wrist of line"):
        load_labels(with_files, "test", hand)
    (root / "evaluation.txt").write_text("\n".join(lines[:2]))
    with pytest.raises(DataError, match=r"1 annotated frames are not in the list.*handoccnet\.prepare"):
        load_labels(with_files, "test", hand)
    (root / "evaluation.txt").unlink()
    for name in ("xyz", "verts"):
        (root / f"evaluation_{name}.json").unlink()
    labels = load_labels(with_files, "test", hand)
    assert not labels.complete
    assert "no evaluation.txt, and not as many frames as an official list has" in labels.summary
