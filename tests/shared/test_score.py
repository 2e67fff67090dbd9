import gzip
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from shared import camera, metrics, predictions, protocols, score, skeletons
from shared.errors import DataError

ICVL_K = camera.intrinsics(*protocols.PROTOCOLS["icvl"].camera)


def hands(n=6, j=16, seed=0):
    """Hands in front of a camera and predictions that are a few millimetres off, (n, j, 3) mm."""
    rng = np.random.default_rng(seed)
    gt = rng.normal(scale=40, size=(n, j, 3)) + np.array([20, 60, 400])
    return gt, gt + rng.normal(scale=6, size=gt.shape)


@pytest.fixture
def icvl(tmp_path):
    """Ground truth and prediction files of a tiny ICVL, and their errors."""
    gt, pred = hands()
    predictions.write_predictions(tmp_path / "gt.txt", camera.xyz_to_uvd(gt, ICVL_K), decimals=9)
    predictions.write_predictions(tmp_path / "pred.txt", camera.xyz_to_uvd(pred, ICVL_K), decimals=9)
    return tmp_path, gt, pred


def run(*words):
    """Runs the program in this process and returns its JSON (written beside the first prediction)."""
    words = [str(w) for w in words]
    assert score.main(words) == 0
    return json.loads(open(words[words.index("--json") + 1]).read())


def test_real_predictions(real_data, tmp_path, capsys):
    expected = json.loads((real_data / "predictions" / "expected.json").read_text())
    worst = 0.0
    for dataset in ("icvl", "nyu"):
        methods = [m for m in expected["methods"] if m["dataset"] == dataset]
        files = [real_data / "predictions" / m["file"] for m in methods]
        out = tmp_path / f"{dataset}.json"
        truth = real_data / "predictions" / dataset / f"{dataset}_test_groundtruth_label.txt.gz"
        words = ["--dataset", dataset, "--predictions", files[0], "--ground-truth", truth, *files[1:], "--json", out]
        data = run(*words, "--plot", tmp_path / dataset)
        assert data["mean_error_mm"] == data["results"][0]["mean_error_mm"]
        for m, r in zip(methods, data["results"], strict=True):
            rates = [
                (m["frames_max_le"], r["success_rate"]),
                (m["frames_mean_le"], r["success_rate_mean_joint"]),
                (m["joints_le"], r["success_rate_all_joints"]),
            ]
            gaps = [
                abs(r["mean_error_mm"] - m["mean_mm"]),
                abs(r["median_error_mm"] - m["median_mm"]),
                abs(r["mean_of_frame_max_mm"] - m["mean_of_frame_max_mm"]),
                abs(r["max_error_mm"] - m["max_mm"]),
                abs(r["auc"] - m["auc_joints_0_50_100"]),
                abs(r["auc_by_grid"]["20-50x31"] - m["auc_joints_20_50_31"]),
                np.abs(np.subtract(r["per_joint_error_mm"], m["per_joint_mm"])).max(),
                *(np.abs(np.subtract(want, list(got.values()))).max() for want, got in rates),
            ]
            assert [int(t) for t in r["success_rate"]] == m["thresholds_mm"]
            assert r["frames"] == m["frames"]
            assert r["format"] == "uvd"
            worst = max(worst, *gaps)
        printed = capsys.readouterr().out
        assert all(m["published_mm"] in printed for m in methods)
        assert (tmp_path / dataset / "success_rate.png").stat().st_size > 10_000
        assert (tmp_path / dataset / "per_joint.png").stat().st_size > 10_000
    print(f"published predictions of ICVL and NYU, max diff {worst:.3g}")
    assert worst < 1e-4


def test_json_and_table(icvl, capsys):
    folder, gt, pred = icvl
    out = folder / "o.json"
    data = run(
        "--dataset", "icvl", "--predictions", folder / "pred.txt", "--ground-truth", folder / "gt.txt", "--json", out
    )
    e = metrics.joint_errors(pred, gt)
    assert data["mean_error_mm"] == pytest.approx(e.mean(), abs=1e-5)
    np.testing.assert_allclose(data["per_joint_error_mm"], e.mean(0), atol=1e-5)
    assert data["frames"] == 6
    assert data["success_rate"]["20"] == (e.max(1) <= 20).mean()
    assert data["joints"] == list(skeletons.SKELETONS["icvl"].joints)
    assert data["auc_grid"] == {"lo": 0, "hi": 50, "n": 100}
    text = capsys.readouterr().out
    assert f"{e.mean():8.3f}" in text
    assert "thumb_tip" in text
    assert "the whole test set has 1,596 frames" in text


def test_formats_are_recognised(icvl):
    folder, _, pred = icvl
    files = {}
    for name, values in (("xyz", pred), ("xyz-y-up", camera.flip_y(pred)), ("uvd", camera.xyz_to_uvd(pred, ICVL_K))):
        files[name] = folder / f"{name}.txt"
        predictions.write_predictions(files[name], values, decimals=9, names=[f"a\\{i}.png" for i in range(6)])
    data = run("--dataset", "icvl", "--ground-truth", folder / "gt.txt", "--json", folder / "o", *files.values())
    assert [r["format"] for r in data["results"]] == list(files)
    for r in data["results"]:
        assert r["mean_error_mm"] == pytest.approx(data["mean_error_mm"], abs=1e-5)
    # A bad prediction in the protocol's own format is not read as something else ...
    noise = np.random.default_rng(1).normal(scale=150, size=pred.shape)
    predictions.write_predictions(folder / "bad.txt", camera.xyz_to_uvd(pred, ICVL_K) + noise)
    assert (
        run("--dataset", "icvl", "--ground-truth", folder / "gt.txt", "--json", folder / "o", folder / "bad.txt")[
            "format"
        ]
        == "uvd"
    )
    # ... and a given format is used as it is.
    forced = run(
        "--dataset",
        "icvl",
        "--ground-truth",
        folder / "gt.txt",
        "--json",
        folder / "o",
        files["xyz"],
        "--format",
        "xyz-y-up",
    )
    assert forced["format"] == "xyz-y-up"
    assert forced["mean_error_mm"] > 50


def test_ground_truth_format(icvl):
    folder, gt, _ = icvl
    predictions.write_predictions(folder / "gt_up.txt", camera.flip_y(gt), decimals=9)
    words = ["--dataset", "icvl", "--predictions", folder / "pred.txt", "--json", folder / "o"]
    a = run(*words, "--ground-truth", folder / "gt.txt")
    b = run(*words, "--ground-truth", folder / "gt_up.txt", "--ground-truth-format", "xyz-y-up")
    assert a["mean_error_mm"] == pytest.approx(b["mean_error_mm"], abs=1e-5)


def test_rows_and_joint_order(icvl):
    folder, gt, pred = icvl
    e = metrics.joint_errors(pred, gt)
    words = ["--dataset", "icvl", "--ground-truth", folder / "gt.txt", "--json", folder / "o"]
    data = run(*words, "--predictions", folder / "pred.txt", "--rows", "2:5")
    assert data["mean_error_mm"] == pytest.approx(e[2:5].mean(), abs=1e-5)
    predictions.write_predictions(folder / "part.txt", camera.xyz_to_uvd(pred[2:5], ICVL_K), decimals=9)
    assert run(*words, "--predictions", folder / "part.txt", "--rows", "2:5")["mean_error_mm"] == data["mean_error_mm"]
    backwards = list(range(15, -1, -1))
    predictions.write_predictions(folder / "back.txt", camera.xyz_to_uvd(pred[:, backwards], ICVL_K), decimals=9)
    order = ",".join(map(str, backwards))
    data = run(*words, "--predictions", folder / "back.txt", "--joint-order", order)
    assert data["mean_error_mm"] == pytest.approx(e.mean(), abs=1e-5)


def test_missing_labels_are_masked_and_become_null(tmp_path):
    gt, pred = hands(5, 5)
    lines = gt.copy()
    lines[1, 2] = np.nan
    lines[:, 4] = np.nan
    (tmp_path / "gt.txt").write_text("\n".join(" ".join(map(str, f.ravel())) for f in lines))
    predictions.write_predictions(tmp_path / "p.txt", pred, decimals=9)
    data = run(
        "--protocol", "egodexter", "--predictions", tmp_path / "p.txt", "--ground-truth", tmp_path / "gt.txt",
        "--json", tmp_path / "o.json",
    )  # fmt: skip
    e = np.linalg.norm(pred - lines, axis=-1)
    assert data["per_joint_error_mm"][4] is None
    assert data["per_joint_error_mm"][2] == pytest.approx(np.nanmean(e[:, 2]), abs=1e-5)
    assert data["mean_error_mm"] == pytest.approx(np.nanmean(e), abs=1e-5)


def test_root_relative_protocol_needs_its_root(tmp_path):
    gt, pred = hands(4, 21)
    _, scores = score.score_arrays(pred, gt, protocols.get("stb-auc20-50"))
    e = metrics.joint_errors(pred - pred[:, :1], gt - gt[:, :1])
    assert scores["mean_error_mm"] == pytest.approx(e.mean())
    assert scores["auc"] == pytest.approx(metrics.auc(e, 20, 50, 31))
    mask = np.ones((4, 21), bool)
    mask[2, 0] = False
    with pytest.raises(DataError, match="frame 2 has no label for joint 0"):
        score.score_arrays(pred, gt, protocols.get("stb-auc20-50"), mask)
    with pytest.raises(DataError, match="aligns whole hands, but 1 joints have no label"):
        score.score_arrays(pred, gt, protocols.get("dexycb-s0"), mask)


def test_itop_in_metres(tmp_path, capsys):
    gt, pred = hands(8, 15)
    pred[:, 0] += 99
    predictions.write_predictions(tmp_path / "g.txt", camera.flip_y(gt) / 1000, decimals=9)
    predictions.write_predictions(tmp_path / "p.txt", camera.flip_y(pred) / 1000, decimals=9)
    words = ["--protocol", "itop", "--predictions", tmp_path / "p.txt", "--ground-truth", tmp_path / "g.txt"]
    data = run(*words, "--json", tmp_path / "o")
    e = metrics.joint_errors(pred, gt)
    assert data["mean_error_mm"] == pytest.approx(e.mean(), abs=1e-4)
    assert data["map"] == (e < 100).mean()
    assert data["ap_per_joint"][0] < 1
    assert f"{100 * data['map']:.2f}" in capsys.readouterr().out


def test_pixels(tmp_path):
    rng = np.random.default_rng(0)
    gt = rng.uniform(0, 300, (4, 21, 2))
    pred = gt + rng.normal(scale=5, size=gt.shape)
    predictions.write_predictions(tmp_path / "g.txt", gt, decimals=9)
    predictions.write_predictions(tmp_path / "p.txt", pred, decimals=9)
    words = ["--protocol", "mpii-nzsl-2d", "--predictions", tmp_path / "p.txt", "--ground-truth", tmp_path / "g.txt"]
    data = run(*words, "--json", tmp_path / "o", "--plot", tmp_path / "plots")
    assert data["mean_error_px"] == pytest.approx(np.linalg.norm(pred - gt, axis=-1).mean(), abs=1e-6)
    assert "mean_error_mm" not in data
    assert (tmp_path / "plots" / "success_rate.png").exists()


# -------------------------------------------------------------------------------------------------- mesh and DexYCB


@pytest.mark.parametrize("protocol", ["ho3d-v2", "freihand"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_mesh_protocols(tmp_path, protocol, as_folder, capsys):
    gt, pred = hands(3, 21)
    gt_v, pred_v = hands(3, 778, 1)
    axes = "opengl" if protocol == "ho3d-v2" else "opencv"
    flip = np.array([1, -1, -1]) if axes == "opengl" else np.ones(3)
    for name, values in (("xyz", gt), ("verts", gt_v)):
        (tmp_path / f"evaluation_{name}.json").write_text(json.dumps((values * flip / 1000).tolist()))
    predictions.write_mesh_json(tmp_path / "pred.zip", pred, pred_v, axes, decimals=9)
    truth = tmp_path if as_folder else tmp_path / "evaluation_xyz.json"
    words = ["--protocol", protocol, "--predictions", tmp_path / "pred.zip", "--ground-truth", truth]
    data = run(*words, "--json", tmp_path / "o.json")
    want = metrics.ho3d_scores(pred, gt, pred_v, gt_v, scale_translation=protocol == "ho3d-v2")
    assert data["official"] == pytest.approx(want, abs=1e-5)
    assert ("xyz_scale_trans_al_mean3d" in want) == (protocol == "ho3d-v2")
    assert data["mean_error_mm"] == pytest.approx(10 * want["xyz_mean3d"], abs=1e-4)
    assert "f_al_score_15" in capsys.readouterr().out


def test_mesh_counts_must_agree(tmp_path):
    gt, _ = hands(3, 21)
    gt_v, _ = hands(3, 778)
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(gt.tolist()))
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(gt_v[:2].tolist()))
    predictions.write_mesh_json(tmp_path / "p.json", gt[:2], gt_v[:2], "opengl")
    options = score.Options(protocol="ho3d-v3", ground_truth=str(tmp_path), predictions=[str(tmp_path / "p.json")])
    with pytest.raises(DataError, match=r"evaluation_verts\.json: 2 meshes, but .* has 3 frames"):
        score.score_files(options)
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(gt_v.tolist()))
    with pytest.raises(DataError, match=r"p\.json: 2 rows, but the ground truth .* has 3"):
        score.score_files(options)


def test_dexycb(tmp_path, capsys):
    gt, pred = hands(5, 21)
    truth = gt.copy()
    truth[2] = -1
    predictions.write_dexycb(tmp_path / "gt.txt", [0, 1, 2, 3, 4], truth)
    predictions.write_dexycb(tmp_path / "p.txt", [4, 3, 1, 0], pred[[4, 3, 1, 0]])
    words = ["--protocol", "dexycb", "--ground-truth", tmp_path / "gt.txt", "--json", tmp_path / "o"]
    data = run(*words, "--predictions", tmp_path / "p.txt")
    printed = capsys.readouterr().out
    want = metrics.dexycb_scores(pred[[0, 1, 3, 4]], gt[[0, 1, 3, 4]])
    for line, alignment in (("absolute", "none"), ("root_relative", "root"), ("procrustes", "procrustes-reflection")):
        got = data["alignments"][alignment]
        assert got["mean_error_mm"] == pytest.approx(want[line]["mpjpe_mm"], abs=1e-3)
        assert got["auc"] == pytest.approx(want[line]["auc"], abs=1e-3)
        assert f"{got['mean_error_mm']:.4f} / {got['auc']:.4f}" in printed
    assert data["frames"] == 4
    predictions.write_dexycb(tmp_path / "short.txt", [0, 3, 9], pred[[0, 3, 4]])
    with pytest.raises(DataError, match=r"2 of 4 frames are missing, first 1 \(3 rows came\)"):
        score.main([str(w) for w in [*words, tmp_path / "short.txt"]])
    predictions.write_dexycb(tmp_path / "gt.txt", [0], np.full((1, 21, 3), -1.0))
    with pytest.raises(DataError, match="every frame is marked -1"):
        score.main([str(w) for w in [*words, tmp_path / "p.txt"]])


# --------------------------------------------------------------------------------------------- options and mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predictions", "pred.txt", "--ground-truth", "gt.txt"], r"--protocol \(or --dataset\) is missing"),
        (["--dataset", "nyu15", "--predictions", "pred.txt"], "no protocol is called 'nyu15'.*nyu14"),
        (["--dataset", "icvl", "--ground-truth", "gt.txt"], "no prediction file was given"),
        (["--dataset", "icvl", "--predictions", "pred.txt"], "--ground-truth is missing"),
        (["--dataset", "icvl", "--predictions", "pred.txt", "--ground-truth", "no.txt"], r"no\.txt: there is no such"),
        (["--dataset", "icvl", "--predictions", "no.txt", "--ground-truth", "gt.txt"], r"no\.txt: there is no such"),
        (["--dataset", "icvl", "--predictions", "short.txt", "--ground-truth", "gt.txt"],
         r"short\.txt: 4 rows, but the ground truth .*gt\.txt has 6"),
        (["--dataset", "icvl", "--predictions", "short.txt", "--ground-truth", "gt.txt", "--rows", ":3"],
         r"short\.txt: 4 rows, but the ground truth .*gt\.txt has 3"),
        (["--dataset", "msra", "--predictions", "pred.txt", "--ground-truth", "gt.txt"],
         r"gt\.txt: line 1 has 48 numbers, expected 63"),
        (["--dataset", "icvl", "--predictions", "pred.txt", "--ground-truth", "gt.txt", "--rows", "3:9"], "within 0:6"),
        (["--dataset", "icvl", "--predictions", "pred.txt", "--ground-truth", "gt.txt", "--rows", "a:b"], "within 0:6"),
        (["--dataset", "icvl", "--predictions", "pred.txt", "--ground-truth", "gt.txt", "--joint-order", "1,2"],
         r"each of 0\.\.15 once"),
        (["--dataset", "icvl", "--predictions", "pred.txt", "--ground-truth", "gt.txt", "--names", "a", "b"],
         "2 --names for 1 prediction"),
        (["--dataset", "freihand", "--predictions", "pred.txt", "--ground-truth", "gt.txt", "--rows", "0:2"],
         "--rows is for text rows"),
        (["--dataset", "dexycb", "--predictions", "pred.txt", "--ground-truth", "gt.txt", "--format", "uvd"],
         "--format is for text rows"),
        (["--dataset", "stb-auc0-50", "--predictions", "p21", "--ground-truth", "p21", "--format", "uvd"],
         "no camera to convert u v d"),
    ],
)  # fmt: skip
def test_mistakes(icvl, monkeypatch, words, message):
    folder, _, pred = icvl
    monkeypatch.chdir(folder)
    predictions.write_predictions("short.txt", pred[:4])
    predictions.write_predictions("p21", hands(6, 21)[0])
    with pytest.raises(DataError, match=message):
        score.main(words)


def test_unknown_flags_are_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        score.main(["--predictoins", "a.txt"])
    assert "--predictoins" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        score.main(["--format", "mm"])
    assert "mm" in capsys.readouterr().err


def test_names_in_the_table(icvl, capsys):
    folder, _, pred = icvl
    (folder / "b").mkdir()
    predictions.write_predictions(folder / "b" / "pred.txt.gz", camera.xyz_to_uvd(pred, ICVL_K))
    words = ["--dataset", "icvl", "--ground-truth", folder / "gt.txt", "--json", folder / "o"]
    files = [folder / "pred.txt", folder / "b" / "pred.txt.gz"]
    assert [r["name"] for r in run(*words, *files)["results"]] == [f"{folder.name}/pred", "b/pred"]
    data = run(*words, "--predictions", *files, "--names", "ours", "theirs")
    assert [r["name"] for r in data["results"]] == ["ours", "theirs"]
    assert "theirs" in capsys.readouterr().out


def test_every_protocol_is_described(capsys):
    assert score.main(["--list-protocols"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(protocols.PROTOCOLS)
    for line, p in zip(lines, protocols.PROTOCOLS.values(), strict=True):
        assert line.split()[0] == p.name
        assert str(metrics.AUC_GRIDS[p.grid]) in line
        assert protocols.ALIGNMENT_TEXT[p.alignments[0]] in line
        assert p.skeleton in skeletons.SKELETONS
        assert set(p.alignments) <= set(metrics.ALIGNMENTS)
        assert p.root == skeletons.SKELETONS[p.skeleton].root
    assert protocols.get("nyu") is protocols.PROTOCOLS["nyu14"]


def test_help_is_quick_and_imports_nothing_heavy():
    program = "import sys; from shared import score\ntry: score.main(['--help'])\nexcept SystemExit: pass\n"
    program += "print([m for m in ('torch', 'matplotlib', 'scipy', 'PIL', 'lightning') if m in sys.modules])"
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    print(f"--help took {time.perf_counter() - start:.2f} s")
    assert out.splitlines()[-1] == "[]"
    assert "--ground_truth" in out


def test_program_ends_with_one_line_on_bad_input(icvl):
    folder, _, _ = icvl
    (folder / "cut.txt.gz").write_bytes(gzip.compress((folder / "pred.txt").read_bytes())[:500])
    words = ["--dataset", "icvl", "--predictions", folder / "cut.txt.gz", "--ground-truth", folder / "gt.txt"]
    command = [sys.executable, "-m", "shared.score", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {folder / 'cut.txt.gz'}: the compressed file is damaged or cut off")
    assert len(done.stderr.splitlines()) == 1
