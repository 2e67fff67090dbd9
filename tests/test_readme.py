"""Every command of the README files is executed here, on tiny data, with outputs turned to a temporary folder.

Commands are taken from the ``sh`` blocks, so that a new or changed command is run too. What is replaced: the paths of
data and results, and options that make minutes out of seconds (a preset's size, the number of frames).
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TOGETHER = ["README.md", "v2v_posenet/README.md", "handoccnet/README.md", "docs/datasets.md", "benchmarks/README.md"]
ALONE = {  # the pages whose commands need nothing of the others', and a result that they must leave
    "sohandnet/README.md": "sohandnet/standin/joint/eval/metrics.json",
    "selfsup_fitting/README.md": "selfsup/fitted/eval/metrics.json",
    "hand3d_wild/README.md": "wild/eval_stb/metrics.json",
}
READMES = [*TOGETHER, *ALONE]
NOT_RUN = {  # a word of a block that is not run here -> why
    "iccv09Data": "other people's data",
    "45_7.729756_0.00000100_net_encoder.pth": "other people's weights",
    "/path/to/": "other people's data",
    "handoccnet.export": "takes most of a minute; tests/handoccnet/test_export.py runs the program",
}
SHORT_TRAINING = "--epochs 1 --data.train_limit 16 --data.val_limit 4 --workers 0"


def blocks(readme: str) -> list[tuple[str, str]]:
    """(tag, text) of the blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / readme).read_text(), re.MULTILINE | re.DOTALL)


def commands(readme: str) -> list[str]:
    lines = [line for tag, block in blocks(readme) if tag == "sh" for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything the commands name: trees, pictures, results, labels, a reference checkpoint."""
    import torch
    from PIL import Image

    from handoccnet.convert import checkpoint_of, save_checkpoint
    from shared.datasets import msra
    from shared.standin.all import write_sets
    from shared.standin.ho3d import write_ho3d
    from shared.standin.msra import write_msra
    from tests.golden.fill import fill_state_dict
    from tests.handoccnet.snapshots import tiny, write_snapshot
    from v2v_posenet.results import write_author_result, write_world

    folder = tmp_path_factory.mktemp("readme")
    write_msra(folder / "msra", total_frames=153, seed=0, workers=1)
    frames = msra.open(folder / "msra", "test", centers="auto")
    depth = frames[0].full_depth_mm()
    Image.fromarray(depth.astype(np.uint16)).save(folder / "depth.png")
    write_world(folder / "test_s3_gt.txt", frames.joints_mm, "msra")
    write_world(folder / "test_res.txt", frames.joints_mm + 1.0, "msra")
    uvd = np.random.default_rng(0).uniform(50, 200, (1596, 16, 3))  # as many rows as the ICVL test set
    write_author_result(folder / "result.txt", uvd)
    for name in ("predictions", "labels"):
        np.savetxt(folder / f"{name}.txt.gz", uvd.reshape(len(uvd), -1), "%.3f")
    spec = json.loads((ROOT / "tests/golden/v2v_posenet/net_v2v.keys.json").read_text())
    state = {key: torch.from_numpy(np.array(value)) for key, value in fill_state_dict(spec).items()}
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 14}, folder / "epoch14.pth")
    write_ho3d(folder / "ho3d", frames=8, seed=0)
    (folder / "ho3d/standin.json").touch()
    for name, frames in {"panoptic": 2, "mpii_nzsl": 4, "stb": 4}.items():
        write_sets(folder, [name], frames=frames)
        (folder / name / "standin.json").touch()
    Image.fromarray(np.full((480, 640, 3), 128, np.uint8)).save(folder / "photo.jpg")
    with gzip.open(ROOT / "tests/golden/mano/MANO_STANDIN_chumpy.pkl.gz") as packed:
        (folder / "MANO_RIGHT.pkl").write_bytes(packed.read())
    write_snapshot(folder / "snapshot_demo.pth.tar")
    save_checkpoint(folder / "best.pt", checkpoint_of(tiny()))
    (folder / "stamp").touch()
    return folder


def shorten(command: str, place: Path) -> str:
    """The same command on the tiny data and network, writing below ``place``."""
    for word, path in {
        "/data/cvpr15_MSRAHandGestureDB": "msra",
        "data/standin/msra": "msra",
        "runs/v2v": "runs",
        "runs/sohandnet": "runs/sohandnet",
        "runs/selfsup": "runs/selfsup",
        "data/standin/icvl": "sets/icvl",
        "data/standin/nyu": "sets/nyu",
        "data/stores": "stores",
        "data/standin ": "sets ",
        "/data/NYU": "sets/nyu",
        "/path/MANO_RIGHT.pkl": "MANO_RIGHT.pkl",
    }.items():
        command = command.replace(word, str(place / path.strip()) + (" " if path.endswith(" ") else ""))
    names = r"depth\.png|out|predictions\.txt\.gz|labels\.txt\.gz|scores\.json|figures|sheet\.png|nyu\.png|epoch14\.pth"
    names += r"|snapshot_demo\.pth\.tar|demo\.pt|MANO_RIGHT\.pkl"
    names += r"|photo\.jpg|msra_s3\.pt|result\.txt|result_world\.txt|test_s3_gt\.txt|test_res\.txt"
    command = re.sub(rf"(?<=[\s\"])({names})(?=[\s\"]|$)", lambda match: str(place / match[1]), command)
    command = re.sub(r"configs/standin([_-]s\w+)?\.yaml", "configs/tiny.yaml", command)
    command = command.replace("--frames 2000", "--frames 153").replace("--frames 64", "--frames 8")
    command = command.replace("--samples 60000", "--samples 512").replace("--steps 50", "--steps 2")
    if "--init" in command and "selfsup" in command:
        command += " --mode self-supervised"  # the small preset serves both modes
    command = command.replace("--seeds 0 1 2", "--seeds 0 --ratios 0.5")
    command = command.replace("--label-ratio 0.25", "--label-ratio 0.5")
    if "v2v_posenet.train " in command:
        command += f" {SHORT_TRAINING}"
    if "train_center" in command:
        command += " --epochs 1"
    if command.startswith("make"):
        variables = {"PY": sys.executable, "STAMP": str(place / "stamp"), "RUN": str(place / "runs/make")}
        if "v2v" in command:
            command = re.sub(r" CONFIG=\S+", "", command) + f" CONFIG=tiny STANDIN={place}"
            command = re.sub(r" DATA=\S+", f" DATA={place / 'msra'}", command)
            if "train-v2v" in command:
                command += f' ARGS="{SHORT_TRAINING}"'
            if "predict-v2v" in command:
                variables["CKPT"] = str(place / "runs/standin/checkpoints/last.pt")
        if "handoccnet" in command:
            command += f" CONFIG=tiny STANDIN={place}"
            variables["RUN"] = str(place / "runs/handoccnet")
        if "wild" in command:
            stores = f"WILD_STORE={place}/wild WILD_SYNTH={place}/synthetic"
            command += f" CONFIG=tiny STANDIN={place} {stores} WILD_PICTURES='--train 8 --test 4'"
            variables["RUN"] = str(place / "runs/wild")
        if "make mano" in command:
            command += f' ARGS="--output {place / "mano.npz"}"'
        if command == "make test":
            command += ' ARGS="tests/shared/test_camera.py"'
        if command == "make bench":
            command += " --dry-run"
        command += "".join(f" {name}={shlex.quote(value)}" for name, value in variables.items())
    return re.sub(r"^python ", f"{sys.executable} ", command)


def test_the_two_commands_are_there() -> None:
    assert commands("README.md")[:2] == ["make train-v2v", "make test"]


def run_commands(readmes: list[str], place: Path) -> int:
    """Runs the commands of some pages, each once, and says how many there were."""
    done: set[str] = set()
    listed = [(readme, command) for readme in readmes for command in commands(readme)]
    # those that need a checkpoint come after those that make one
    listed.sort(key=lambda item: "predict-v2v" in item[1] or "demo" in item[1])
    for readme, command in listed:
        line = shorten(command, place)
        if line in done:
            continue
        result = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=300)
        done.add(line)
        assert result.returncode == 0, f"{readme}: {command}\n{line}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return len(done)


def test_every_command_runs(place: Path) -> None:
    assert run_commands(TOGETHER, place) > 12
    assert (place / "runs/make/eval/report.html").is_file()
    assert (place / "runs/standin/eval/metrics.json").is_file()
    assert json.loads((place / "scores.json").read_text())["mean_error_mm"] == 0.0
    assert {path.name for path in (place / "out").glob("*.json")} == {"depth.json", "photo.json"}  # one a method
    assert (place / "msra_s3.pt").is_file()
    assert (place / "sheet.png").is_file()
    assert (place / "runs/handoccnet/eval/metrics.json").is_file()
    assert (place / "mano.npz").is_file()
    assert (place / "demo.pt").is_file()


@pytest.mark.parametrize("readme", list(ALONE))
def test_every_command_of_a_method_runs(readme: str, place: Path) -> None:
    assert run_commands([readme], place) >= 2
    assert (place / "runs" / ALONE[readme]).is_file()


@pytest.mark.parametrize("readme", READMES)
def test_commands_are_in_blocks_that_run(readme: str) -> None:
    for tag, block in blocks(readme):
        if tag != "sh" and ("python -m" in block or re.search(r"^make ", block, re.MULTILINE)):
            assert any(word in block for word in NOT_RUN), f"{readme}: tag this block sh, so that it is run:\n{block}"


def test_python_snippet_of_handoccnet(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    (snippet,) = [block for tag, block in blocks("handoccnet/README.md") if tag == "python"]
    monkeypatch.chdir(place)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the network was trained with a MANO file")
        exec(snippet, {"crops": torch.rand(2, 3, 64, 64)})


@pytest.mark.parametrize("readme", [*READMES, "THIRD_PARTY.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(readme: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / readme).read_text()):
        assert ((ROOT / readme).parent / target).exists(), f"{readme} links to {target}"


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    for target in phony[1].split():
        assert re.search(rf"^{target}:.*## \S", text, re.MULTILINE), f"{target} has no line in make help"


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_make_without_a_target_lists_them() -> None:
    result = make()
    assert "train-v2v" in result.stdout
    assert "DATA=/path" in result.stdout


def test_missing_checkpoint_and_missing_data_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "stamp").touch()
    predict = make("predict-v2v", f"STAMP={tmp_path}/stamp", f"CKPT={tmp_path}/none.pt", "ARGS=x.png")
    assert predict.returncode
    assert f"no checkpoint at {tmp_path}/none.pt" in predict.stderr
    check = make("check-data", f"STAMP={tmp_path}/stamp", "DATASET=nyu")
    assert check.returncode
    assert "make check-data DATASET=nyu DATA=/path" in check.stderr


def install(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The install script in a copy of its folder, where it has to fail before it installs anything."""
    (tmp_path / "requirements").mkdir()
    script = tmp_path / "requirements/install.sh"
    script.write_text((ROOT / "requirements/install.sh").read_text())
    environment = {"PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(["sh", str(script)], capture_output=True, text=True, timeout=60, env=environment)


def test_install_says_which_python_is_needed(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    result = install(tmp_path, PYTHON=str(old))
    assert result.returncode
    assert "Python 3.11, 3.12 or 3.13 is needed" in result.stderr
    assert "Python 3.8.1" in result.stderr


def test_install_says_how_to_get_venv(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text('#!/bin/sh\ncase "$2" in *venv*) exit 1;; *) exit 0;; esac\n')
    bare.chmod(0o755)
    result = install(tmp_path, PYTHON=str(bare))
    assert result.returncode
    assert "apt install python3-venv" in result.stderr


def test_install_says_when_the_disk_is_full(tmp_path: Path) -> None:
    result = install(tmp_path, PYTHON=sys.executable, HANDPOSE_NEED_MB="999999999")
    assert result.returncode
    assert "MB are free here" in result.stderr
