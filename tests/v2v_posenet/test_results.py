"""Result files byte for byte, and the conversions between pixels and worlds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.errors import DataError
from shared.metrics import joint_errors
from shared.predictions import read_predictions
from tests.golden.fill import uniform
from tests.v2v_posenet.test_model import NS, fixture
from v2v_posenet import convert_result
from v2v_posenet.convert_result import convert_points
from v2v_posenet.results import ground_truth_name, read_world, write_author_result, write_world

DATASETS = {"ICVL": "icvl", "NYU": "nyu", "MSRA": "msra", "HANDS2017": "hands2017", "ITOP": "itop-front"}


def test_result_text_golden(tmp_path: Path) -> None:
    gt = uniform(NS + "metrics/gt", (200, 21, 3), -80, 80).astype(np.float64)
    pred = gt + uniform(NS + "metrics/noise", (200, 21, 3), -25, 25).astype(np.float64)
    pred[3, 2] = gt[3, 2]
    opencv = pred * [1, -1, 1]  # the file has MSRA's y up
    write_world(tmp_path / "test_res.txt", opencv[:4], "msra")
    assert (tmp_path / "test_res.txt").read_bytes() == bytes(fixture("metrics.npz")["result_text_first4"])
    assert np.abs(read_world(tmp_path / "test_res.txt", "msra") - opencv[:4]).max() < 6e-5


def test_ground_truth_text_golden(tmp_path: Path) -> None:
    joints = fixture("msra_tree.npz")["test_joints"] * [1, -1, 1]
    name = tmp_path / ground_truth_name("test", 3)
    write_world(name, joints[:2], "msra")
    assert name.name == "test_s3_gt.txt"
    assert name.read_bytes() == bytes(fixture("msra_tree.npz")["gt_text_first2"])


def test_y_down_data_sets_are_written_as_they_are(tmp_path: Path) -> None:
    joints = np.arange(48.0).reshape(1, 16, 3)
    write_world(tmp_path / "a.txt", joints, "icvl")
    assert (tmp_path / "a.txt").read_text().startswith("0.0000 1.0000 2.0000 3.0000")
    assert np.array_equal(read_world(tmp_path / "a.txt", "icvl"), joints)


def test_author_result_text(tmp_path: Path) -> None:
    write_author_result(tmp_path / "result.txt", [[[180.191894531, 141.635363261, 370.5], [1, 2, 3]], [[4, 5, 6]] * 2])
    assert (tmp_path / "result.txt").read_text() == "180.191894531 141.635363261 370.5 1 2 3 \n4 5 6 4 5 6 \n"


def test_wrong_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected joints \(N, 21, 3\) for msra, got shape \(2, 14, 3\)"):
        write_world(tmp_path / "a.txt", np.zeros((2, 14, 3)), "msra")
    with pytest.raises(DataError, match="unknown data set 'mrsa' -- use one of msra, icvl"):
        write_world(tmp_path / "a.txt", np.zeros((2, 21, 3)), "mrsa")
    with pytest.raises(DataError, match="split must be 'test' or 'train', got 'val'"):
        ground_truth_name("val", 3)
    with pytest.raises(DataError, match="expected finite values"):
        write_author_result(tmp_path / "a.txt", [[[1, np.nan, 2]]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", DATASETS)
def test_conversion_golden(name: str, tmp_path: Path) -> None:
    golden, dataset = fixture("camera.npz"), DATASETS[name]
    to = str(golden[f"{name}_direction"]).split("2")[1]
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    rows = golden[f"{name}_in"].reshape(3, -1)
    source.write_text("".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in rows))
    command = ["--dataset", dataset.split("-")[0], "--to", to, "--input", str(source), "--output", str(target)]
    assert convert_result.main(command) == 0
    exact = convert_points(golden[f"{name}_in"], dataset, to)  # type: ignore[arg-type]
    difference = np.abs(exact - golden[f"{name}_out"]).max()
    print(f"{name} to {to}: max diff {difference:.3g}")
    assert difference < 6e-4
    assert np.abs(read_predictions(target) - exact).max() <= 5.01e-4  # three decimals
    theirs = bytes(golden[f"{name}_out_text"]).split()
    assert [len(word.split(b".")[1]) for word in theirs] == [3] * len(theirs) == [3] * rows.size
    assert len(target.read_text().split()) == rows.size


@pytest.mark.parametrize("dataset", DATASETS.values())
def test_conversion_there_and_back(dataset: str) -> None:
    rng = np.random.default_rng(0)
    world = rng.uniform(-100, 100, (5, 4, 3)) + np.array([0, 0, 400])
    pixels = convert_points(world, dataset, "pixel")
    assert np.allclose(convert_points(pixels, dataset, "world"), world)
    up = dataset in ("msra", "nyu", "itop-front")
    higher = convert_points([0, 50, 400], dataset, "pixel")[1] < convert_points([0, 0, 400], dataset, "pixel")[1]
    assert higher == up


def test_conversion_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="to must be 'world' or 'pixel', got 'camera'"):
        convert_points([0, 0, 400], "msra", "camera")  # type: ignore[arg-type]
    path = tmp_path / "in.txt"
    path.write_text(" ".join(["1"] * 60) + "\n")
    command = ["--dataset", "msra", "--to", "pixel", "--input", str(path), "--output", str(tmp_path / "out.txt")]
    with pytest.raises(DataError, match="line 1 has 60"):
        convert_result.main(command)
    path.write_text(" ".join(["0 0 -5"] * 21) + "\n")
    with pytest.raises(DataError, match=r"in.txt: .*not positive"):
        convert_result.main(command)
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(("dataset", "expected"), [("icvl", 6.276), ("nyu", 8.419)])
def test_published_predictions(real_data: Path, dataset: str, expected: float) -> None:
    folder = real_data / "predictions" / dataset
    files = f"CVPR18_{dataset.upper()}_V2V_PoseNet.txt.gz", f"{dataset}_test_groundtruth_label.txt.gz"
    pred, gt = (convert_points(read_predictions(folder / file), dataset, "world") for file in files)
    error = joint_errors(pred, gt).mean()
    print(f"{dataset}: {error:.4f} mm, max diff {abs(error - expected):.3g}")
    assert abs(error - expected) < 1e-3
