"""V2V-PoseNet on all of its data sets, through its programs' own functions, on stand-in trees in the official forms."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from shared.camera import flip_y, project
from shared.datasets.base import Frame, FrameDataset
from shared.errors import DataError, MissingFileError
from shared.options import parse
from shared.predictions import read_predictions
from shared.standin.hands2017 import write_hands2017
from shared.standin.icvl import write_icvl
from shared.standin.itop import write_itop
from shared.standin.msra import write_msra
from shared.standin.nyu import write_nyu
from v2v_posenet import eval as evaluation
from v2v_posenet.config import (
    CONVENTIONS,
    DATASETS,
    AugmentOptions,
    DataOptions,
    EvalConfig,
    EvalData,
    ModelOptions,
    OptimOptions,
    TrainConfig,
)
from v2v_posenet.convert import checkpoint_of
from v2v_posenet.convert_result import CAMERAS, convert_points
from v2v_posenet.data import VoxelSamples, center_places, convention_of, grids, limited, open_frames, target_cells
from v2v_posenet.inference import Prediction, Predictor
from v2v_posenet.kernels import ops
from v2v_posenet.model import V2VPoseNet
from v2v_posenet.results import read_world, write_author_result

CONFIGS = Path(__file__).parents[2] / "v2v_posenet/configs"
SETS = list(DATASETS)
LABELLED = [name for name in SETS if name != "hands2017"]  # in the test split
TEST_FRAMES = {"msra": 2, "icvl": 2, "nyu": 2, "hands2017": 2, "itop-front": 3, "itop-top": 3}
GRID = 88


def root_of(trees: Path, name: str) -> str:
    return str(trees / name.partition("-")[0])


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small tree per data set; centre files as the stand-in writers lay them out, in the root."""
    base = tmp_path_factory.mktemp("trees")
    write_msra(base / "msra", subjects=2, gestures=("1", "5"), frames_per_gesture=1)
    write_icvl(base / "icvl", frames=2)
    write_nyu(base / "nyu", frames=2)
    write_hands2017(base / "hands2017", frames=2)
    write_itop(base / "itop", frames=4)
    return base


def options_of(trees: Path, name: str, **changes: Any) -> DataOptions:
    values = {"dataset": name, "root": root_of(trees, name), "test_subject": 1, **changes}
    return DataOptions(**values)


def samples(frames: FrameDataset, name: str, convention: str, **options: Any) -> VoxelSamples:
    variant = "integral" if convention == "port-integral" else "gaussian"
    conv = convention_of(convention.removesuffix("-integral"), variant)  # type: ignore[arg-type]
    return VoxelSamples(frames, DATASETS[name], grid=options.pop("grid", GRID), convention=conv, **options)


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_presets_are_the_papers(name: str) -> None:
    argv = ["--config", str(CONFIGS / f"{name}.yaml")]
    preset = parse(TrainConfig, prog="train", description="", argv=argv).options
    assert preset.data.dataset == name
    assert (preset.variant, preset.epochs, preset.batch_size) == ("gaussian", 10, 8)
    assert (preset.optim.name, preset.optim.lr, preset.optim.schedule) == ("rmsprop", 2.5e-4, "constant")
    assert (preset.model.convention, preset.model.grid, preset.model.sigma_cells) == ("author", 88, 1.7)
    assert preset.model.widths == ModelOptions().widths
    assert preset.data.cube_mm == 0  # the table's
    assert preset.augment == AugmentOptions()
    assert preset.data.validation == ("none" if name == "hands2017" else "test")


def test_msra_preset_is_another_name_of_paper() -> None:
    msra, paper = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("msra", "paper"))
    assert msra == paper


@pytest.mark.parametrize("name", SETS)
def test_readers_cameras_are_the_authors(trees: Path, name: str) -> None:
    frame = open_frames(options_of(trees, name), "test")[0]
    fx, fy, u0, v0 = CAMERAS[name]
    assert np.array_equal(frame.K, [[fx, 0, u0], [0, fy, v0], [0, 0, 1]])
    assert frame.skeleton == DATASETS[name].skeleton


# --- centre files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_place_of_centre_files_is_found(trees: Path, tmp_path: Path, name: str) -> None:
    source, root = Path(root_of(trees, name)), tmp_path / "data"
    own = {"itop-front": "itop_center/side", "itop-top": "itop_center/top"}.get(name, f"{name}_center")
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("*_center"))
    expected = open_frames(options_of(trees, name), "test")[0].center_mm
    assert expected is not None
    with pytest.raises(DataError, match=rf"no centre files of {name}; looked for .*{own}"):
        open_frames(options_of(trees, name, root=str(root)), "test")
    places = center_places(name, root)
    assert len(places) == len(set(places)) >= 8
    for place in places:
        shutil.copytree(source / own, place)
        found = open_frames(options_of(trees, name, root=str(root)), "test")[0].center_mm
        assert found is not None
        assert np.array_equal(found, expected), place
        shutil.rmtree(place)


def test_the_two_views_of_itop_have_centres_of_their_own(trees: Path) -> None:
    front, top = (open_frames(options_of(trees, name), "test")[0] for name in ("itop-front", "itop-top"))
    given = trees / "itop/itop_center"
    for name, frame in (("itop-front", front), ("itop-top", top)):
        named = open_frames(options_of(trees, name, centers=str(given)), "test")[0]  # the folder above both
        assert named.center_mm is not None
        assert frame.center_mm is not None
        assert frame.joints_mm is not None
        assert np.array_equal(named.center_mm, frame.center_mm)
        assert np.linalg.norm(frame.center_mm - frame.joints_mm[8]) < 200  # near the torso, in mm
    assert not np.array_equal(front.center_mm, top.center_mm)


def test_centres_beside_a_relative_root(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trees / "hands2017", tmp_path / "set", ignore=shutil.ignore_patterns("*_center"))
    shutil.copytree(trees / "hands2017/hands2017_center", tmp_path / "hands2017_center")
    monkeypatch.chdir(tmp_path / "set")
    assert open_frames(DataOptions(dataset="hands2017", root="."), "train")[0].center_mm is not None


def test_centres_from_labels_need_labels(trees: Path) -> None:
    assert open_frames(options_of(trees, "hands2017", centers="gt"), "train")[0].center_mm is None
    with pytest.raises(
        DataError, match=r"--data\.centers gt: the test split of hands2017 has no labels.*validation none"
    ):
        open_frames(options_of(trees, "hands2017", centers="gt"), "test")


def test_no_root_is_an_error() -> None:
    with pytest.raises(DataError, match=r"--data\.root is empty"):
        open_frames(DataOptions(dataset="icvl"), "train")


def test_icvl_trains_on_rotated_copies(trees: Path) -> None:
    names = open_frames(options_of(trees, "icvl"), "train").names()
    assert sum(name.startswith("45/") for name in names) == len(names) // 2 == 2


# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["port", "port-integral", "zero", "author"])
@pytest.mark.parametrize("name", SETS)
def test_labels_survive_the_way_through_the_grid(trees: Path, name: str, convention: str) -> None:
    """Joints to cells to heat maps to maxima to millimetres in OpenCV axes: back within half a cell on every axis."""
    frames = open_frames(options_of(trees, name, centers="gt" if name != "hands2017" else "auto"), "train")
    data = samples(frames, name, convention, gt_centers=True)
    batch = data.collate([data[0], data[1]])
    gt = np.stack([frames[i].joints_mm for i in (0, 1)])
    cells = target_cells(batch, data.convention, GRID)
    if convention == "port-integral":
        decoded = ops.decode(cells, batch["ref_mm"], batch["cube_mm"], grid=GRID, mode="integral")
        bound = 1e-6  # no quantisation
    else:
        maps = ops.gaussian_heatmaps(cells, size=GRID // 2, offset=0.0 if convention == "author" else 0.5)
        mode = "author" if convention == "author" else "port"
        decoded = ops.decode(ops.argmax3d(maps)[0], batch["ref_mm"], batch["cube_mm"], grid=GRID, mode=mode)
        bound = (0.751 if convention == "author" else 0.501) * 2 * data.cube_mm / GRID  # and the author's floors
    back = data.to_world(decoded.numpy())
    inside = (np.abs(gt - gt.mean(1, keepdims=True)) < data.cube_mm / 2 * 0.95).all(-1)
    worst = np.abs(back - gt)[inside].max()
    print(f"{name} {convention}: {inside.mean():.0%} of joints inside, max diff {worst:.3g} mm, bound {bound:.3g}")
    assert inside.mean() > 0.8
    assert worst <= bound


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_joints_lie_in_the_drawn_points(trees: Path, name: str, augmented: bool) -> None:
    """Points and joints take the same way: a wrong sign of y on either side would part them."""
    frames = open_frames(options_of(trees, name), "train")
    data = samples(frames, name, "zero", augment=AugmentOptions(), seed=3)
    batch = data.collate([data[(0, i) if augmented else i] for i in range(2)])
    points = [grid[0].nonzero().double() for grid in grids(batch, data.convention, GRID)]
    cells = target_cells(batch, data.convention, GRID)
    near, mirrored = [], []
    for voxels, joints in zip(points, cells * 2, strict=True):
        inside = ((joints > 4) & (joints < GRID - 4)).all(-1)
        near.append(torch.cdist(joints[inside], voxels + 0.5).min(1).values)
        turned = joints[inside] * torch.tensor([1.0, -1, 1]) + torch.tensor([0.0, GRID, 0])
        mirrored.append(torch.cdist(turned, voxels + 0.5).min(1).values)
    ours, other = torch.cat(near).mean().item(), torch.cat(mirrored).mean().item()
    voxel_mm = data.cube_mm / GRID
    print(f"{name}: joints are {ours * voxel_mm:.1f} mm from the surface, with y turned {other * voxel_mm:.1f} mm")
    assert ours * voxel_mm < (150 if name.startswith("itop") else 14)
    assert other > 1.3 * ours


# --- the programs -----------------------------------------------------------------------------------------------------


def tiny_config(trees: Path, name: str, run: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 2,
        "log_every": 1,
        "threads": 1,
        "accelerator": "cpu",
        "run": str(run),
        "data": options_of(trees, name, train_limit=4, validation="none" if name == "hands2017" else "test"),
        "model": ModelOptions(convention="author", grid=16, widths=(2, 2, 4, 4), sigma_cells=1.0),
        "optim": OptimOptions(name="rmsprop", lr=1e-3),
    }
    return TrainConfig(**values | changes)


@pytest.fixture(scope="session")
def runs(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch on each set, in the author's way."""
    from v2v_posenet.train import train

    base = tmp_path_factory.mktemp("runs")
    for name in SETS:
        train(tiny_config(trees, name, base / name), "variant: gaussian\n")
    return base


def eval_config(trees: Path, runs: Path, name: str, **changes: Any) -> EvalConfig:
    values: dict[str, Any] = {
        "checkpoints": [str(runs / name / "checkpoints/last.pt")],
        "workers": 0,
        "device": "cpu",
        "batch_size": 2,
        "data": EvalData(root=root_of(trees, name)),
    }
    return EvalConfig(**values | changes)


@pytest.mark.parametrize("name", LABELLED)
def test_train_and_evaluate(
    trees: Path, runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("shared.report.write_report", lambda path, **_: path)  # drawn once, in the test of the oracle
    options = eval_config(trees, runs, name, out=str(tmp_path))
    metrics = evaluation.evaluate(options, "text: of the options\n")
    frames = open_frames(options_of(trees, name), "test")
    assert metrics["frames"] == metrics["frames_in_split"] == len(frames) == TEST_FRAMES[name]
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "eval_config.yaml").read_text() == "text: of the options\n"
    assert 0 < metrics["mean_error_mm"] < 2000
    assert metrics["baseline_mean_pose_mm"] > 0
    assert metrics["left_out"] == (
        {"frames without valid labels": 1}
        if name.startswith("itop")
        else {"invalid centre": 0}
        if name == "msra"
        else {}
    )

    # both files say the same, in the port's and in the author's way
    port = read_predictions(tmp_path / "test_res.txt", DATASETS[name].joints)
    theirs = read_predictions(tmp_path / "result.txt", DATASETS[name].joints)
    pred_mm = read_world(tmp_path / "test_res.txt", name)
    world = theirs * 1000 if name.startswith("itop") else convert_points(theirs, name, "world")
    difference = np.abs(world - port).max()
    print(f"{name}: the author's file against the port's, max diff {difference:.3g} mm")
    assert difference < 1e-4
    assert np.array_equal(port, flip_y(pred_mm) if DATASETS[name].y_up else pred_mm)
    if name.startswith("itop"):
        assert np.abs(theirs[..., 2]).max() < 10  # metres
    else:
        uv = project(pred_mm, frames[0].K)
        assert np.abs(theirs[..., :2] - uv).max() < 1e-3

    gt = read_world(tmp_path / ("test_s1_gt.txt" if name == "msra" else "test_gt.txt"), name)
    assert np.abs(gt - np.stack([frames[i].joints_mm for i in range(len(frames))])).max() < 1e-4
    assert np.isclose(metrics["mean_error_mm"], np.linalg.norm(pred_mm - gt, axis=-1).mean(), atol=1e-9)
    shown = capsys.readouterr().out
    assert ("mAP at 10 cm" in shown) == ("map_10cm" in metrics) == name.startswith("itop")
    if name.startswith("itop"):
        hits = np.linalg.norm(pred_mm - gt, axis=-1) < 100
        assert metrics["map_10cm"] == hits.mean()
        assert metrics["ap_10cm_per_joint"] == hits.mean(0).tolist()
        assert list(metrics["success_rate"]) == ["50", "100", "150", "200", "300"]


def test_hands2017_writes_the_challenge_file(trees: Path, runs: Path, tmp_path: Path, capsys: Any) -> None:
    metrics = evaluation.evaluate(eval_config(trees, runs, "hands2017", out=str(tmp_path)), "")
    shown = capsys.readouterr().out
    assert "hands2017 has no labels for the test split: nothing to score" in shown
    assert "it is not complete" not in shown
    assert metrics["mean_error_mm"] is None
    assert metrics["protocol"] == "none: this split has no labels"
    assert "baseline_mean_pose_mm" not in metrics
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    lines = [line.split("\t") for line in (tmp_path / "hands2017_challenge.txt").read_text().splitlines()]
    boxes = (Path(root_of(trees, "hands2017")) / "frame/BoundingBox.txt").read_text().splitlines()
    assert [line[0] for line in lines] == [box.split()[0] for box in boxes] == [f"image_D{i:08d}.png" for i in (1, 2)]
    values = np.array([line[1:] for line in lines], float)
    assert values.shape == (2, 63)
    assert np.abs(values.reshape(2, 21, 3) - read_world(tmp_path / "test_res.txt", "hands2017")).max() < 1e-4
    assert np.abs(values.reshape(2, 21, 3) - read_predictions(tmp_path / "result.txt", 21)).max() < 1e-4
    assert not list(tmp_path.glob("*gt*"))
    evaluation.evaluate(
        eval_config(
            trees, runs, "hands2017", out=str(tmp_path), data=EvalData(root=root_of(trees, "hands2017"), limit=1)
        ),
        "",
    )
    assert "it is not complete" in capsys.readouterr().out


def test_hands2017_training_split_is_scored(
    trees: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.report.write_report", lambda path, **_: path)
    metrics = evaluation.evaluate(eval_config(trees, runs, "hands2017", split="train", out=str(tmp_path)), "")
    assert metrics["mean_error_mm"] > 0
    assert (tmp_path / "fit_res.txt").is_file()
    assert (tmp_path / "train_gt.txt").is_file()
    assert not (tmp_path / "hands2017_challenge.txt").exists()


class Oracle(Predictor):
    """Says what the labels say."""

    def predict_frames(self, frames: Any) -> Prediction:
        joints = np.stack([frame.joints_mm for frame in frames])
        empty = np.zeros(len(frames))
        return Prediction(joints, project(joints, frames[0].K), empty.astype(np.float32), empty.astype(np.int64))


@pytest.mark.parametrize("name", LABELLED)
def test_an_oracle_is_scored_zero(
    trees: Path, runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("v2v_posenet.inference.Predictor", Oracle)
    if name not in ("nyu", "itop-top"):  # the page of a hand and of a body
        monkeypatch.setattr("shared.report.write_report", lambda path, **_: path)
    metrics = evaluation.evaluate(eval_config(trees, runs, name, out=str(tmp_path)), "")
    print(f"{name}: an oracle is off by {metrics['mean_error_mm']:.3g} mm")
    assert metrics["mean_error_mm"] < 1e-4  # four decimals in both files
    assert set(metrics["success_rate"].values()) == {1.0}
    assert metrics["ratio_to_baseline"] < 1e-5
    if name.startswith("itop"):
        assert metrics["map_10cm"] == 1.0
    if name in ("nyu", "itop-top"):
        assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", LABELLED)
def test_the_scoring_program_agrees(
    trees: Path, runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``shared.score`` reads the author's format of every set and comes to the same numbers."""
    from shared import score

    monkeypatch.setattr("shared.report.write_report", lambda path, **_: path)
    metrics = evaluation.evaluate(eval_config(trees, runs, name, out=str(tmp_path), baseline=False), "")
    frames = open_frames(options_of(trees, name), "test")
    gt_mm = np.stack([frames[i].joints_mm for i in range(len(frames))])
    write_author_result(tmp_path / "gt.txt", evaluation.author_points(gt_mm, name, frames[0].K))
    protocol = {"nyu": "nyu14"}.get(name, name.partition("-")[0])
    form = "xyz-y-up" if name.startswith("itop") else "uvd"
    files = ["--ground_truth", str(tmp_path / "gt.txt"), "--json", str(tmp_path / "score.json")]
    formats = ["--format", form, "--ground_truth_format", form]
    assert score.main(["--protocol", protocol, *files, *formats, str(tmp_path / "result.txt")]) in (0, None)
    (result,) = json.loads((tmp_path / "score.json").read_text())["results"]
    difference = abs(result["mean_error_mm"] - metrics["mean_error_mm"])
    print(f"{name}: {metrics['mean_error_mm']:.3f} mm, max diff to shared.score {difference:.3g}")
    # the public evaluation's focal lengths differ a little from those of the point clouds (ICVL most)
    assert difference < (0.002 * metrics["mean_error_mm"] if name in ("icvl", "nyu") else 1e-4)


# --- incomplete sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["icvl", "nyu", "hands2017"])
def test_missing_pictures_stop_the_evaluation(
    trees: Path, runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("shared.report.write_report", lambda path, **_: path)
    root = tmp_path / name
    shutil.copytree(root_of(trees, name), root)
    file = {
        "icvl": "Testing/Depth/test_seq_2/image_0000.png",
        "nyu": "test/depth_1_0000002.png",
        "hands2017": "frame/images/image_D00000001.png",
    }[name]
    (root / file).unlink()
    options = eval_config(trees, runs, name, out=str(tmp_path / "eval"), data=EvalData(root=str(root)))
    with pytest.raises(
        MissingFileError, match=r"1 of 2 frames have missing pictures: .*(image|depth)_.*--allow_missing"
    ):
        evaluation.evaluate(options, "")
    assert not (tmp_path / "eval").exists()
    metrics = evaluation.evaluate(dataclasses.replace(options, allow_missing=True), "")
    assert metrics["frames"] == 1
    assert metrics["left_out"] == {"missing pictures": 1}
    assert metrics["allow_missing"] is True
    assert ("it is not complete" in capsys.readouterr().out) == (name == "hands2017")


def test_many_missing_pictures_are_not_all_listed(trees: Path) -> None:
    frames = open_frames(options_of(trees, "icvl"), "test")
    frames.skipped["missing pictures"] = [f"picture{i}" for i in range(7)]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"7 of 9 frames have missing pictures: picture0, .*picture4, \.\.\."):
        evaluation.check_complete(frames, options_of(trees, "icvl"), EvalConfig())


def test_invalid_centres_leave_the_split_but_not_the_challenge(trees: Path, runs: Path, tmp_path: Path) -> None:
    for name in ("nyu", "hands2017"):
        centers = tmp_path / f"{name}_center"
        shutil.copytree(Path(root_of(trees, name)) / f"{name}_center", centers)
        lines = (centers / "center_test_refined.txt").read_text().splitlines()
        (centers / "center_test_refined.txt").write_text("\n".join([lines[0], "invalid"]) + "\n")
    data = options_of(trees, "nyu", centers=str(tmp_path / "nyu_center"))
    frames = open_frames(data, "test")
    assert len(frames) == 1
    assert evaluation.check_complete(frames, data, EvalConfig()) == {"frames without a centre": 1}
    data = options_of(trees, "hands2017", centers=str(tmp_path / "hands2017_center"))
    with pytest.raises(MissingFileError, match=r"1 of 2 frames have frames without a centre"):
        evaluation.check_complete(open_frames(data, "test"), data, EvalConfig())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named(trees: Path, runs: Path, tmp_path: Path, workers: int) -> None:
    root = tmp_path / "icvl"
    shutil.copytree(root_of(trees, "icvl"), root)
    picture = root / "Testing/Depth/test_seq_1/image_0000.png"
    picture.write_bytes(picture.read_bytes()[:200])
    options = eval_config(trees, runs, "icvl", workers=workers, data=EvalData(root=str(root)))
    with pytest.raises(DataError, match=r"image_0000\.png: ") as caught:
        evaluation.evaluate(options, "")
    assert "Traceback" not in str(caught.value)


def test_a_missing_training_split_is_noticed_before_predicting(trees: Path, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(trees / "nyu", tmp_path / "nyu", ignore=shutil.ignore_patterns("train"))
    options = eval_config(trees, runs, "nyu", out=str(tmp_path / "eval"), data=EvalData(root=str(tmp_path / "nyu")))
    with pytest.raises(MissingFileError, match="train"):
        evaluation.evaluate(options, "")
    assert not (tmp_path / "eval").exists()


# --- where results go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "split", "folder"),
    [
        ("runs/a/checkpoints/last.pt", "test", "runs/a/eval"),
        ("runs/a/checkpoints/last.pt", "train", "runs/a/eval-train"),
        ("weights/v2v.safetensors", "test", "weights/eval"),
        ("last.pt", "test", "eval"),
        ("checkpoints/last.pt", "test", "eval"),
    ],
)
def test_output_folder_is_relative_where_the_checkpoint_is(checkpoint: str, split: Any, folder: str) -> None:
    assert evaluation.output_folder(EvalConfig(checkpoints=[checkpoint], split=split)) == Path(folder)
    assert evaluation.output_folder(EvalConfig(checkpoints=[checkpoint], out="there")) == Path("there")


def test_output_folder_from_inside_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run/checkpoints")
    folder = evaluation.output_folder(EvalConfig(checkpoints=["last.pt"]))
    assert folder == Path("../eval")


def test_checkpoint_says_how_the_data_was_chosen(trees: Path, runs: Path) -> None:
    from v2v_posenet.convert import load_checkpoint

    stored = load_checkpoint(runs / "msra/checkpoints/last.pt")
    assert stored.extra["data"] == {"test_subject": 1, "centers": "auto", "drop_handless": False}
    options = EvalConfig(data=EvalData(root="r", test_subject=2))
    merged = evaluation.data_options(options, stored.extra["data"], "msra")
    assert (merged.root, merged.test_subject, merged.centers) == ("r", 2, "auto")


def test_a_frame_without_depth_or_centre_is_named() -> None:
    frame = Frame("P0/1/000007", (320, 240), np.eye(3), "msra")
    network = V2VPoseNet(21, (2, 2, 4, 4))
    checkpoint = checkpoint_of(
        network,
        variant="gaussian",
        convention=CONVENTIONS["zero"],
        dataset="msra",
        skeleton="msra",
        cube_mm=200.0,
        grid=16,
    )
    with pytest.raises(DataError, match="frame 'P0/1/000007' has no depth image"):
        Predictor(checkpoint).predict_frames([frame])
    data = samples([frame], "msra", "zero")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="frame P0/1/000007 has no depth image"):
        data[0]
    frame = dataclasses.replace(frame, depth_mm=np.zeros((240, 320), np.float32))
    data = samples([frame], "msra", "zero")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"frame P0/1/000007 has no reference point.*make_centers"):
        data[0]


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_joints_behind_the_camera_are_drawn_in_the_middle() -> None:
    K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    uv = evaluation.project_all(np.array([[[10.0, 20, 100], [10, 20, -100], [10, 20, 0]]]), K)
    assert uv.tolist() == [[[60, 60], [50, 40], [50, 40]]]


def test_share_of_joints_outside_the_cube() -> None:
    joints = np.zeros((2, 2, 3))
    joints[1, 1, 2] = 105.0  # beyond half the cube on one axis
    assert evaluation.outside_share(joints, np.zeros((2, 3)), 200.0) == 0.25
    assert evaluation.outside_share(joints, np.array([[0.0, 0, 0], [0, 0, 50]]), 200.0) == 0.0


def test_mean_pose_of_the_training_split(trees: Path) -> None:
    frames = open_frames(options_of(trees, "nyu"), "train")
    joints = np.stack([frames[i].joints_mm for i in range(2)])
    centers = np.stack([frames[i].center_mm for i in range(2)])
    assert np.allclose(evaluation.mean_pose(frames, False), (joints - centers[:, None]).mean(0))
    assert np.allclose(evaluation.mean_pose(frames, True), (joints - joints.mean(1, keepdims=True)).mean(0))
    few = limited(frames, 1)
    assert np.allclose(evaluation.mean_pose(few, False), joints[0] - centers[0])
    with pytest.raises(DataError, match=r"no labels for a mean pose -- use --no-baseline"):
        evaluation.mean_pose(open_frames(options_of(trees, "hands2017"), "test"), False)
