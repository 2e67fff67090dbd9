"""The figures and the numbers printed with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import DataError
from shared.metrics import accuracy, joint_errors
from shared.predictions import write_predictions
from tests.golden.fill import uniform
from tests.v2v_posenet.test_model import NS, fixture
from v2v_posenet import compare, plot


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Ground truth, a result that is 3 mm off along x, and one that is exact except for joint 1."""
    gt = uniform(NS + "metrics/gt", (50, 21, 3), -80, 80).astype(np.float64)
    other = gt.copy()
    other[:, 1, 2] += 42.0
    paths = []
    for name, values in (("gt", gt), ("shifted", gt + np.array([3.0, 0, 0])), ("one_joint", other)):
        paths.append(str(tmp_path / f"{name}.txt"))
        write_predictions(paths[-1], values, decimals=4)
    return paths


def shape(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 10  # something is drawn
        return image.size


def test_curve_of_the_figure_is_the_ports() -> None:
    golden = fixture("metrics.npz")
    gt = uniform(NS + "metrics/gt", (200, 21, 3), -80, 80).astype(np.float64)
    pred = gt + uniform(NS + "metrics/noise", (200, 21, 3), -25, 25).astype(np.float64)
    pred[3, 2] = gt[3, 2]
    assert np.allclose(plot.THRESHOLDS_MM, golden["dist"])
    difference = np.abs(accuracy(joint_errors(pred, gt), plot.THRESHOLDS_MM) - golden["acc"]).max()
    print(f"accuracy curve: max diff {difference:.3g}")
    assert difference < 1e-6


def test_plot_writes_two_files(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    command = ["--ground-truth", files[0], "--result", files[2], "--out", str(out), "--title", "msra_s3"]
    assert plot.main([*command, "--skeleton", "msra"]) == 0
    text = capsys.readouterr().out
    assert "wrist: 0.00 mm\nindex_mcp: 42.00 mm\n" in text
    assert "mean: 2.00 mm over 50 frames" in text
    assert sorted(p.name for p in out.iterdir()) == ["msra_s3_joint_acc.png", "msra_s3_joint_mean_error.png"]
    assert {shape(p) for p in out.iterdir()} == {(1200, 720)}
    plot.main(command)
    assert "\n2: 42.00 mm\n" in capsys.readouterr().out  # the port numbers its joints from 1


def test_plot_needs_no_display(files: list[str], tmp_path: Path) -> None:
    command = ["--ground-truth", files[0], "--result", files[2], "--out", str(tmp_path / "figures")]
    code = (
        f"import sys; from v2v_posenet import plot; plot.main({command!r}); print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.endswith("False\n")  # pyplot is global state and looks for a display


def test_compare_any_number_of_results(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    command = ["--ground-truth", files[0], "--out", str(out)]
    for path in (*files[1:], files[0]):
        command += ["--result", path]
    assert compare.main([*command, "--names", "base", "integral", "perfect"]) == 0
    text = capsys.readouterr().out
    assert "base: mean 3.00 mm over 50 frames and 21 joints\nintegral: mean 2.00 mm" in text
    assert "perfect: mean 0.00 mm" in text
    assert sorted(p.name for p in out.iterdir()) == ["compare_error_histogram.png", "compare_joint_mean_error.png"]
    assert shape(out / "compare_joint_mean_error.png") == (1440, 720)
    assert shape(out / "compare_error_histogram.png") == (1200, 720)
    compare.main(command)
    assert "shifted: mean 3.00 mm" in capsys.readouterr().out  # names of the files


def test_mistakes_are_named(files: list[str], tmp_path: Path) -> None:
    base = ["--ground-truth", files[0], "--result", files[1], "--out", str(tmp_path / "figures")]
    with pytest.raises(DataError, match="1 results and the names a, b -- give --names a different name per result"):
        compare.main([*base, "--names", "a", "b"])
    with pytest.raises(DataError, match="2 results and the names a, a"):
        compare.main([*base, "--result", files[2], "--names", "a", "a"])
    short = tmp_path / "short.txt"
    write_predictions(short, np.zeros((49, 21, 3)))
    for program in (plot, compare):
        with pytest.raises(
            DataError, match=r"short.txt: has 49 frames of 21 joints, .*gt.txt has 50 of 21.*same split"
        ):
            program.main(["--ground-truth", files[0], "--result", str(short), "--out", str(tmp_path)])
        with pytest.raises(DataError, match="skeleton 'nyu14' has 14 joints, the files have 21"):
            program.main([*base, "--skeleton", "nyu14"])
