"""Evaluation: the original's metric to the digit, both millimetres side by side, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared import camera
from shared.errors import DataError
from shared.metrics import joint_errors
from shared.predictions import read_predictions, read_rows
from shared.score import Options, score_files
from sohandnet import eval as program
from sohandnet.convert import checkpoint_of, save_checkpoint
from sohandnet.eval import EvalConfig, cloud_picture, evaluate, output_folder, project_all, scores, write_texts
from sohandnet.model import SoHandNet
from sohandnet.orient import ICVL_K, Box, denormalise, make_space
from sohandnet.store import open_store
from tests.sohandnet.tiny_tree import GOLDEN, make_store, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("eval") / "icvl", train=4, test=3)


@pytest.fixture(scope="module")
def store(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tree, tmp_path_factory.mktemp("eval") / "store").root


def write_network(
    path: Path, seed: int = 0, intrinsics: str = "true", parts: Any = ("encoder", "estimator"), joints: int = 16
) -> str:
    torch.manual_seed(seed)
    network = SoHandNet(width=0.1, parts=parts, joints=joints)
    save_checkpoint(path, checkpoint_of(network, intrinsics=intrinsics, stage="estimator", epoch=seed))
    return str(path)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_network(tmp_path_factory.mktemp("eval") / "net.pt")


def run(network: str, store: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = EvalConfig(checkpoints=[network], store=str(store), out=str(out), device="cpu", report=False)
    return evaluate(dataclasses.replace(given, **changes))


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_golden_metric(tmp_path: Path) -> None:
    """De-normalisation, errors and the text line of the original's evaluation script, in its space."""
    golden = np.load(GOLDEN / "metric.npz")
    box = Box(golden["volume_rotate"], golden["volume_length"][:, 0], golden["volume_offset"])
    space = make_space("reference")
    pred, gt = (denormalise(golden[key].reshape(-1, 3, 16).swapaxes(1, 2), box) for key in ("pred", "gt_xyz"))
    pred_mm, gt_mm = space.to_camera(pred), space.to_camera(gt)
    found = scores(pred_mm, gt_mm, ["a/1"] * 5)["reference_metric"]
    pairs = {
        "world_pred": (pred, golden["world_pred"]),
        "world_gt": (gt, golden["world_gt"]),
        "joint_error": (np.linalg.norm(pred - gt, axis=-1), golden["joint_error"]),
        "mean_error": (found["mean_error"], golden["mean_error_mm"]),
        "per_joint_error": (found["per_joint_error"], golden["per_joint_mean"]),
    }
    write_texts(tmp_path, pred_mm, gt_mm, ICVL_K)
    line = (tmp_path / "Test_estimation.txt").read_text().splitlines()[0]
    assert line.endswith(" ")
    pairs["text"] = np.array(line.split(), float), np.array(str(golden["result_line0"]).split(), float)
    pairs["text of the labels"] = read_predictions(tmp_path / "Test_groundtruth.txt", 16), golden["world_gt"]
    for name, (ours, theirs) in pairs.items():
        difference = float(np.abs(np.asarray(ours) - theirs).max())
        print(f"{name}: max diff {difference:.3g} mm")
        assert difference < 1e-4, name


def test_true_millimetres_are_larger(tmp_path: Path) -> None:
    """An error along x counts 1 / 0.567 of the original's, one along z the same."""
    gt = np.random.default_rng(0).uniform([-50, -50, 300], [50, 50, 400], (4, 16, 3))
    names = ["a/1", "a/2", "b/1", "b/2"]
    x, y, z = 10 * np.eye(3)
    found = scores(gt + x, gt, names)
    assert found["mean_error_mm"] == pytest.approx(10)
    assert found["reference_metric"]["mean_error"] == pytest.approx(10 * 0.7531 * 240.99 / 320)
    assert scores(gt + z, gt, names)["reference_metric"]["mean_error"] == pytest.approx(10)
    assert scores(gt + y, gt, names)["reference_metric"]["mean_error"] == pytest.approx(10.08, abs=0.01)
    moved = gt.copy()
    moved[:2, 3] += [0, 0, 25]
    rates = scores(moved, gt, names)
    assert rates["success_rate"] == {"10": 0.5, "20": 0.5, "30": 1.0, "40": 1.0, "50": 1.0}
    assert rates["per_sequence_error_mm"] == {"a": pytest.approx(25 / 16), "b": 0}


def test_published_predictions_in_both_metrics(real_data: Path) -> None:
    """V2V-PoseNet's ICVL predictions: 6.28 mm in the public evaluation, 5.56 in the original's metric."""
    folder = real_data / "predictions" / "icvl"
    uvd = [
        read_rows(folder / name, 16).values
        for name in ("CVPR18_ICVL_V2V_PoseNet.txt.gz", "icvl_test_groundtruth_label.txt.gz")
    ]
    pred, gt = (camera.uvd_to_xyz(values, ICVL_K) for values in uvd)
    found = scores(pred, gt, ["test/1"] * len(gt))
    print(f"true {found['mean_error_mm']:.3f} mm, original's {found['reference_metric']['mean_error']:.3f}")
    assert found["mean_error_mm"] == pytest.approx(6.284, abs=1e-3)
    assert found["reference_metric"]["mean_error"] == pytest.approx(5.56, abs=5e-3)


# --- the program -----------------------------------------------------------------------------------------------------


def test_files_and_numbers_of_a_run(network: str, store: Path, tree: Path, tmp_path: Path, capsys: Any) -> None:
    metrics = run(network, store, tmp_path, data=str(tree), report=True)
    split = open_store(store).split("test")
    gt = split.joints_mm()
    pred = read_predictions(tmp_path / "predictions_xyz.txt", 16)
    assert metrics["mean_error_mm"] == pytest.approx(float(joint_errors(pred, gt).mean()))
    assert metrics["frames"] == metrics["frames_in_split"] == 3
    assert metrics["crop"] == "ground-truth"
    assert "optimistic" in metrics["protocol"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    mean = open_store(store).split("train").arrays["joints"].mean(0).T
    baseline = split.joints_mm(np.broadcast_to(mean, gt.shape))
    assert metrics["baseline_mean_pose_mm"] == pytest.approx(float(joint_errors(baseline, gt).mean()), rel=1e-6)
    assert metrics["ratio_to_baseline"] == pytest.approx(metrics["mean_error_mm"] / metrics["baseline_mean_pose_mm"])
    # the pixel files are what the public evaluation reads
    _, results = score_files(
        Options(
            protocol="icvl",
            ground_truth=str(tmp_path / "labels_uvd.txt"),
            predictions=[str(tmp_path / "predictions_uvd.txt")],
        )
    )
    assert results[0].scores["mean_error_mm"] == pytest.approx(metrics["mean_error_mm"], abs=5e-3)
    out = capsys.readouterr().out
    assert "true mm   original's space" in out
    assert metrics["protocol"] in out
    page = (tmp_path / "report.html").read_text()
    assert "True millimetres and the original&#x27;s metric" in page
    assert "optimistic" in page
    assert (tmp_path / "report_frame_worst.png").stat().st_size > 5000


def test_predictions_are_the_networks(network: str, store: Path, tmp_path: Path) -> None:
    """Batch by batch or all at once, and averaged over checkpoints."""
    one = run(network, store, tmp_path / "one", batch_size=2)
    other = write_network(tmp_path / "other.pt", seed=5)
    two = run(other, store, tmp_path / "two", baseline=False)
    assert one["mean_error_mm"] != pytest.approx(two["mean_error_mm"], rel=1e-3)
    run(network, store, tmp_path / "both", checkpoints=[network, other])
    each = [read_predictions(tmp_path / name / "predictions_xyz.txt", 16) for name in ("one", "two", "both")]
    np.testing.assert_allclose(each[2], (each[0] + each[1]) / 2, atol=2e-3)
    assert "baseline_mean_pose_mm" not in two
    few = run(network, store, tmp_path / "few", limit=1)
    assert few["frames"] == 1
    np.testing.assert_allclose(read_predictions(tmp_path / "few/predictions_xyz.txt", 16)[0], each[0][0], atol=2e-3)


def test_node_centre_and_precision_can_be_chosen(network: str, store: Path, tmp_path: Path) -> None:
    """Q5: weights of the original do not say how they were trained; both ways can be evaluated."""
    stored = run(network, store, tmp_path / "a")
    same = run(network, store, tmp_path / "b", node_centre="center")
    avg = run(network, store, tmp_path / "c", node_centre="avg")
    low = run(network, store, tmp_path / "d", precision="bfloat16")
    assert stored["node_centre"] == "center"
    assert avg["node_centre"] == "avg"
    assert stored["mean_error_mm"] == same["mean_error_mm"]
    rough = read_predictions(tmp_path / "d/predictions_xyz.txt", 16) - read_predictions(
        tmp_path / "a/predictions_xyz.txt", 16
    )
    assert 0 < np.abs(rough).max() < 20
    assert low["mean_error_mm"] == pytest.approx(stored["mean_error_mm"], rel=0.1)


def test_a_store_in_the_originals_space(tree: Path, store: Path, network: str, tmp_path: Path) -> None:
    other = make_store(tree, tmp_path / "reference", intrinsics="reference").root
    with pytest.raises(DataError, match=r"net\.pt: was trained on clouds with true intrinsics, these have reference"):
        run(network, other, tmp_path / "a")
    published = write_network(tmp_path / "published.pt", intrinsics="reference")
    with pytest.raises(DataError, match="prepare the frames with --intrinsics reference"):
        run(published, store, tmp_path / "b")
    metrics = run(published, other, tmp_path / "c")
    assert metrics["intrinsics"] == "reference"
    assert metrics["mean_error_mm"] > metrics["reference_metric"]["mean_error"]
    assert "the original's (x shrunk to 0.567)" in metrics["protocol"]
    truth = read_predictions(tmp_path / "c/labels_xyz.txt", 16)
    np.testing.assert_allclose(truth, open_store(store).split("test").joints_mm(), atol=2e-3)


def test_an_incomplete_split(tree: Path, network: str, tmp_path: Path) -> None:
    broken = shutil.copytree(tree, tmp_path / "icvl")
    (broken / "Testing/Depth/test_seq_1/image_0001.png").unlink()
    made = make_store(broken, tmp_path / "store").root
    message = (
        r"the test split is not complete: preparation skipped 1 of 3 frames, 1 missing pictures: test_seq_1/image_0001"
    )
    with pytest.raises(DataError, match=message):
        run(network, made, tmp_path / "a")
    metrics = run(network, made, tmp_path / "b", allow_missing=True)
    assert metrics["left_out"] == {"missing pictures": 1}
    assert (metrics["frames"], metrics["frames_in_split"]) == (2, 3)


def test_what_cannot_be_evaluated(network: str, store: Path, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint given"):
        run(network, store, tmp_path, checkpoints=[])
    with pytest.raises(DataError, match="--store is empty"):
        evaluate(EvalConfig(checkpoints=[network]))
    with pytest.raises(DataError, match="--batch_size 0 and --workers 0"):
        run(network, store, tmp_path, batch_size=0)
    half = write_network(tmp_path / "half.pt", parts=("encoder", "decoder"))
    with pytest.raises(DataError, match="holds encoder and decoder, not the estimator"):
        run(half, store, tmp_path)
    more = write_network(tmp_path / "more.pt", joints=21)
    with pytest.raises(DataError, match=r"more\.pt: has 21 joints, the store 16"):
        evaluate(EvalConfig(checkpoints=[network, more], store=str(store), out=str(tmp_path)))
    with pytest.raises(DataError, match="--out is a file, or lies in one"):
        evaluate(EvalConfig(checkpoints=[network], store=str(store), out=network))
    only_test = make_store(tree, tmp_path / "store", split="test").root
    with pytest.raises(DataError, match="the store has no train split"):
        run(network, only_test, tmp_path)
    assert run(network, only_test, tmp_path, baseline=False)["frames"] == 3
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="--device cuda, but torch sees no CUDA device"):
            run(network, store, tmp_path, device="cuda")


def test_a_network_that_diverged(store: Path, tmp_path: Path) -> None:
    net = SoHandNet(width=0.1, parts=("encoder", "estimator"))
    with torch.no_grad():
        for parameter in net.estimator.parameters():
            parameter.fill_(1e30)
    save_checkpoint(tmp_path / "large.pt", checkpoint_of(net, intrinsics="true"))
    with pytest.raises(DataError, match=r"large\.pt: .* not finite for test_seq_1/image_0000"):
        run(str(tmp_path / "large.pt"), store, tmp_path)


def test_pictures_with_and_without_the_data_set(store: Path, tree: Path, tmp_path: Path) -> None:
    """The stored points fall where the depth map has them."""
    split = open_store(store).split("test")
    drawn = cloud_picture(split, 1)
    config = EvalConfig(data=str(tree))
    depth, K = program.pictures(split, np.array([2, 1]), config)(1)
    np.testing.assert_array_equal(K, ICVL_K)
    seen = drawn > 0
    assert 900 < seen.sum() < 9 * 1024
    hand = depth < 800
    assert hand[seen].mean() > 0.85  # a point is drawn larger than a pixel
    both = seen & hand
    assert np.median(np.abs(drawn[both] - depth[both])) < 3
    np.testing.assert_array_equal(program.pictures(split, np.array([2, 1]), EvalConfig())(1)[0], drawn)
    smaller = write_tree(tmp_path / "icvl", train=1, test=2)
    with pytest.raises(DataError, match="has no frame test_seq_1/image_0002"):
        program.pictures(split, np.arange(3), EvalConfig(data=str(smaller)))(2)


def test_joints_behind_the_camera_have_a_pixel() -> None:
    joints = np.array([[10.0, 20.0, 400.0], [5.0, 5.0, -3.0]])
    uvd = project_all(joints, ICVL_K)
    np.testing.assert_allclose(uvd[0], [*camera.project(joints[0], ICVL_K), 400])
    np.testing.assert_allclose(uvd[1], [160, 120, -3])


def test_where_results_go() -> None:
    checkpoint = "runs/sohandnet/joint/checkpoints/last.pt"
    assert output_folder(EvalConfig(checkpoints=[checkpoint])) == Path("runs/sohandnet/joint/eval")
    assert output_folder(EvalConfig(checkpoints=[checkpoint], split="train")).name == "eval-train"
    assert output_folder(EvalConfig(checkpoints=["a/net.pt"])) == Path("a/eval")
    assert output_folder(EvalConfig(checkpoints=["a/net.pt"], out="b")) == Path("b")


def test_the_program(network: str, store: Path, tmp_path: Path, monkeypatch: Any) -> None:
    words = [network, "--store", str(store), "--out", str(tmp_path), "--no-report", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["eval", *words])
    program.main()
    assert "node_centre" in (tmp_path / "eval_config.yaml").read_text()
    assert not (tmp_path / "report.html").exists()
