"""The checker: stand-in copies of every set pass; broken ones fail and say why."""

import gzip
import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from shared.camera import project, uvd_to_xyz
from shared.datasets import check as checker
from shared.datasets.check import SETS, DataSet, Part, SplitReport, _compare_counts, check, curl_mm, main
from shared.datasets.fingertips import read_tips
from shared.errors import DataError
from shared.standin.all import write_sets, writers
from shared.standin.stb import mat_bytes

WRITERS = {  # data set of the checker: stand-in and its folder
    "icvl": "icvl",
    "nyu": "nyu",
    "msra": "msra",
    "hands2017": "hands2017",
    "itop-front": "itop",
    "itop-top": "itop",
    "ho3d-v2": "ho3d",
    "ho3d-v3": "ho3d",
    "dexycb": "dexycb",
    "stb": "stb",
    "panoptic": "panoptic",
    "mpii-nzsl": "mpii_nzsl",
    "freihand": "freihand",
    "dexter-object": "dexter_object",
    "egodexter": "egodexter",
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets that the tests below break; the others are written where they are checked."""
    root = tmp_path_factory.mktemp("sets")
    write_sets(root, ["stb", "mpii_nzsl", "egodexter", "dexter_object", "panoptic"])
    return root


def test_every_set_has_a_reader_and_a_writer() -> None:
    assert set(WRITERS) == set(SETS)
    assert set(WRITERS.values()) <= set(writers())
    for info in SETS.values():
        assert callable(importlib.import_module(f"shared.datasets.{info.module}").open)


@pytest.mark.parametrize("dataset", [name for name in SETS if name not in ("itop-top", "ho3d-v3")])
def test_a_stand_in_copy_is_usable(trees: Path, tmp_path: Path, dataset: str) -> None:
    name = WRITERS[dataset]
    root = trees / name
    if not root.is_dir():
        root = tmp_path / name
        write_sets(tmp_path, [name], frames=153 if name == "msra" else None)  # one for each person and gesture
    report = check(dataset, root, max_frames=24)
    assert report.usable, checker.to_text(report)
    found = [part for part in report.splits if part.found]
    assert found
    for part in found:
        assert part.frames > 0
        assert part.checked == min(part.frames, 24)
        assert part.release.startswith("a part: ") or part.release == ""
        assert not part.problems
        if part.name not in ("test",) or dataset != "hands2017":  # HANDS2017's test labels were never released
            assert part.figures["joints inside the picture"] > 0.9
    sheet = checker.draw_sheet(dataset, root, frames=4)
    assert sheet.shape[0] > 200
    assert sheet.std() > 5


def test_ho3d_of_the_other_version_and_itop_of_the_other_view(tmp_path: Path) -> None:
    from shared.standin.ho3d import write_ho3d

    for version, other in (("v2", "v3"), ("v3", "v2")):
        root = tmp_path / version
        write_ho3d(root, frames=2, version=version)
        assert check(f"ho3d-{version}", root).usable
        assert f"HO-3D {version}" in problems(f"ho3d-{other}", root) or version in problems(f"ho3d-{other}", root)
    write_sets(tmp_path, ["itop"])
    assert check("itop-top", tmp_path / "itop", max_frames=8).usable


@pytest.fixture
def copy(trees: Path, tmp_path: Path) -> Any:
    """A function that copies one of the trees, to be broken."""

    def make(name: str) -> Path:
        shutil.copytree(trees / name, tmp_path / name)
        return tmp_path / name

    return make


def problems(dataset: str, root: Path, **options: Any) -> str:
    report = check(dataset, root, **options)
    assert not report.usable
    text = checker.to_text(report)
    assert "NOT usable" in text
    return " | ".join(problem for part in report.splits if part.found or not part.frames for problem in part.problems)


def test_an_empty_folder_names_every_place_that_was_looked_at(tmp_path: Path) -> None:
    text = problems("stb", tmp_path)
    assert str(tmp_path / "labels") in text
    assert "download: https://github.com/zhjwustc" in text
    assert "looked for" in problems("egodexter", tmp_path / "nowhere")


def test_a_missing_label_file_is_a_problem_although_the_other_split_is_fine(copy: Any) -> None:
    root = copy("egodexter")
    (root / "data" / "Desk" / "annotation.txt_3D.txt").unlink()
    assert "annotation.txt_3D.txt: missing: original 3-D labels of Desk" in problems("egodexter", root)


def test_a_split_that_was_never_unpacked_is_no_problem(copy: Any) -> None:
    root = copy("mpii_nzsl")
    shutil.rmtree(root / "hand_labels" / "manual_test")
    report = check("mpii-nzsl", root)
    assert report.usable
    assert [part.found for part in report.splits] == [True, False]
    assert "test: not here" in checker.to_text(report)
    assert not check("mpii-nzsl", root, split="test").usable  # unless it is asked for


def test_truncated_pictures_are_listed_by_name(copy: Any) -> None:
    root = copy("panoptic")
    for number in (1, 3):
        path = root / "hand143_panopticdb" / "imgs" / f"{number:08d}.jpg"
        path.write_bytes(path.read_bytes()[:5000])
    text = problems("panoptic", root)
    assert "2 of 4 frames cannot be decoded" in text
    assert "00000001.jpg" in text
    report = check("panoptic", root)
    assert list(report.splits[0].undecodable) == ["imgs/00000001", "imgs/00000003"]


def rewrite_stb(root: Path, change: Any) -> None:
    for path in (root / "labels").glob("*.mat"):
        path.write_bytes(mat_bytes(change(loadmat(path)["handPara"])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p * np.array([1, -1, 1])[:, None, None], "bend like those of the other hand"),
        (lambda p: p * np.array([1, -1, -1])[:, None, None], "lie behind the camera"),
        (lambda p: p / 1000, "expected 25 to 400: wrong unit"),
        (lambda p: p + np.array([900, 0, 0])[:, None, None], "of the joints lie inside the picture"),
        (lambda p: p + np.array([0, 0, 300])[:, None, None], "just below the measured surface: labels and pictures"),
    ],
)
def test_labels_in_another_frame_are_noticed(copy: Any, change: Any, message: str) -> None:
    root = copy("stb")
    rewrite_stb(root, change)
    assert message in problems("stb", root)


def test_labels_upside_down_or_mirrored_against_the_depth_are_noticed(tmp_path: Path) -> None:
    write_sets(tmp_path, ["egodexter"], frames=16)
    folder = tmp_path / "egodexter"
    for path in folder.glob("data/*/annotation.txt_3D.txt"):
        tips = np.nan_to_num(read_tips(path, 3)) * [1, -1, 1]
        path.write_text("".join("".join(f"{x},{y},{z};" for x, y, z in frame) + "\n" for frame in tips))
    assert "the labels fit the depth pictures better upside down" in problems("egodexter", folder)


def test_2d_labels_that_do_not_belong_to_the_3d_ones_are_noticed() -> None:
    from shared.datasets.base import Frame

    joints = np.random.default_rng(0).normal((0, 0, 500), 40, (21, 3))
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    points = project(joints, K)
    for shift, expected in ((0.0, False), (15.0, True)):
        figures = checker._Figures(DataSet("stb", ()))
        labels = points + np.array([shift, 0])
        figures.add(Frame("a", (640, 480), K, "thumb_first", joints_mm=joints, keypoints_2d=labels))
        report = SplitReport("a")
        figures.judge(report)
        assert any("2-D labels lie 15.0 px" in text for text in report.problems) is expected


def test_counts_tell_the_release() -> None:
    msra = SETS["msra"].parts[0]
    for frames, expected in ((76375, "the first release"), (76391, "the second release"), (12, "a part: 12 frames")):
        report = SplitReport("all", frames=frames)
        _compare_counts(report, msra)
        assert report.release.startswith(expected)
        assert not report.warnings
    report = SplitReport("all", frames=80000)
    _compare_counts(report, msra)
    assert "80,000 frames, published: 76,375 (the first release), 76,391 (the second release)" in report.warnings[0]
    report = SplitReport("val", frames=5)
    _compare_counts(report, Part("val", {}))
    assert "no published count" in report.release


def test_frames_are_spread_over_the_set() -> None:
    assert checker._spread(10, 0).tolist() == list(range(10))
    assert checker._spread(10, 3).tolist() == [0, 4, 9]
    assert checker._spread(2, 5).tolist() == [0, 1]


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no reader is called 'nyv' -- known: icvl, nyu"):
        check("nyv", tmp_path)
    with pytest.raises(DataError, match=r"split: nyu has no 'val' -- known: train, test"):
        check("nyu", tmp_path, split="val")
    with pytest.raises(DataError, match="max_frames: expected 0"):
        check("nyu", tmp_path, max_frames=-1)
    with pytest.raises(DataError, match="no frame can be drawn"):
        checker.draw_sheet("nyu", tmp_path)
    with pytest.raises(DataError, match="no stand-in is called 'nyv'"):
        write_sets(tmp_path, ["nyv"])
    with pytest.raises(DataError, match="frames: expected 1 or more, got 0"):
        write_sets(tmp_path, ["stb"], frames=0)


def test_the_program_prints_and_writes_its_report(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy("stb")
    out, sheet = root / "report.json", root / "sheet.png"
    arguments = ["--dataset", "stb", "--data", str(root), "--split", "test SK_depth"]
    assert main([*arguments, "--json", str(out), "--sheet", str(sheet), "--max-frames", "2"]) == 0
    assert "stb in " in (printed := capsys.readouterr().out)
    assert "usable" in printed
    report = json.loads(out.read_text())
    assert report["usable"] is True
    assert report["splits"][0]["checked"] == 2
    with Image.open(sheet) as image:
        assert image.size[0] > 300
    rewrite_stb(root, lambda p: p / 1000)
    sheet.unlink()
    assert main([*arguments, "--json", str(out), "--sheet", str(sheet)]) == 1
    assert json.loads(out.read_text())["usable"] is False
    assert "no contact sheet" in capsys.readouterr().out
    assert not sheet.exists()


@pytest.mark.parametrize("module", ["shared.datasets.check", "shared.standin.all"])
def test_help_is_quick_and_unknown_options_are_refused(module: str) -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
    took = time.perf_counter() - start
    assert done.returncode == 0
    assert "--dataset" in done.stdout
    assert took < 3, took  # 0.3 s alone; other tests share the machine
    done = subprocess.run([sys.executable, "-m", module, "--colour", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "colour" in done.stderr
    loaded = f"import sys, {module}; assert not {{'torch', 'matplotlib', 'lightning'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], check=True, timeout=60)


def test_stand_in_sets_are_the_same_every_time(trees: Path, tmp_path: Path) -> None:
    write_sets(tmp_path, ["stb", "mpii-nzsl", "egodexter", "dexter_object", "panoptic"])
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len([path for path in trees.rglob("*") if path.is_file()])
    for path in files:
        assert (tmp_path / path).read_bytes() == (trees / path).read_bytes(), path
    write_sets(tmp_path / "other", ["panoptic"], seed=1, frames=1)
    first = "panoptic/hand143_panopticdb/imgs/00000000.jpg"
    assert (tmp_path / "other" / first).read_bytes() != (tmp_path / first).read_bytes()


def test_bending_fingers_tell_the_hand_on_published_ground_truth(real_data: Path) -> None:
    """The figures quoted in the module: NYU's hands bend like right hands, ICVL's like left ones."""
    shares = {}
    for name, skeleton, joints, K in (
        ("nyu", "nyu14", 14, [[588.03, 0, 320], [0, 587.07, 240], [0, 0, 1]]),
        ("icvl", "icvl", 16, [[240.99, 0, 160], [0, 240.96, 120], [0, 0, 1]]),
    ):
        with gzip.open(real_data / "predictions" / name / f"{name}_test_groundtruth_label.txt.gz") as file:
            uvd = np.loadtxt(file, max_rows=3000).reshape(-1, joints, 3)
        hands = uvd_to_xyz(uvd, np.array(K))
        shares[name] = np.mean([curl_mm(hand, skeleton) < 0 for hand in hands])
        mirrored = np.mean([curl_mm(hand * [-1, 1, 1], skeleton) < 0 for hand in hands])
        assert mirrored == pytest.approx(1 - shares[name])
    print(f"share of frames that bend like right hands: {shares}")
    assert shares["nyu"] > 0.9
    assert shares["icvl"] < 0.05


def test_skeletons_without_finger_bases_have_no_bend() -> None:
    assert curl_mm(np.zeros((5, 3)), "fingertips") is None
    assert curl_mm(np.zeros((15, 3)), "itop") is None
    assert curl_mm(np.zeros((1, 3)), "mano") is None
