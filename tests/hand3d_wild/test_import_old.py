"""Sets of the original programs: numbers, pictures and splits arrive; what is damaged is skipped or refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hand3d_wild.import_old import KINEMATIC, read_rows
from hand3d_wild.synth_data import SynthSamples
from hand3d_wild.synthesize import Painter, main, synthesize
from hand3d_wild.synthesize_config import SynthesizeConfig
from shared.errors import DataError, MissingFileError

COUNT = 5


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Five pictures as ``create_synthetic_data`` left them, with Python 2's pickles (protocol 0)."""
    folder = tmp_path / "old"
    folder.mkdir()
    painter = Painter(SynthesizeConfig(mano="standin", seed=4))
    truth, labels = [], []
    for index in range(COUNT):
        drawn, placed = painter.numbers(index)
        Image.fromarray(painter.paint(index, drawn, placed)[0]).save(folder / f"{index}.png")
        truth.append(np.concatenate(([1.0], placed.params)))
        labels.append(placed.joints_2d[list(KINEMATIC)].ravel())
    (folder / "gt.pickle").write_bytes(pickle.dumps(truth, 0))
    (folder / "labels.pickle").write_bytes(pickle.dumps(labels, 0))
    return folder


def options(old: Path, **changes: Any) -> SynthesizeConfig:
    given = {"import_old": str(old), "out": str(old.parent / "new"), "mano": "standin", "test": 2, **changes}
    return SynthesizeConfig(**given)


def test_the_last_pictures_become_the_test_split(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = old.parent / "new"
    assert main(["--import_old", str(old), "--out", str(out), "--mano", "standin", "--test", "2"]) == 0
    assert "3 pictures for training, 2 for testing" in capsys.readouterr().out
    truth = pickle.loads((old / "gt.pickle").read_bytes())
    painter = Painter(SynthesizeConfig(mano="standin", seed=4))
    for split, first in (("train", 0), ("test", 3)):
        samples = SynthSamples(out, split)
        for i in range(len(samples)):
            assert np.array_equal(samples.params[i], truth[first + i][1:])
            assert np.array_equal(samples.picture(i), np.asarray(Image.open(old / f"{first + i}.png")))
            drawn, placed = painter.numbers(first + i)
            assert np.abs(samples.joints_2d[i] - placed.joints_2d).max() < 1e-9
            mask = np.asarray(Image.open(out / split / f"masks/{i:06d}.png"))
            assert np.array_equal(mask > 0, painter.paint(first + i, drawn, placed)[1])
    with pytest.raises(DataError, match="holds a set already"):
        synthesize(options(old))
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))  # as after a kill
    assert synthesize(options(old)) == {"train": 3, "test": 2}
    with pytest.raises(DataError, match="holds a set with other options"):
        synthesize(SynthesizeConfig(out=str(out), mano="standin", train=3, test=2))


def test_split_sets_and_damaged_pictures(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = pickle.loads((old / "gt.pickle").read_bytes())
    truth[1][0] = 0
    for split, chosen in (("train", range(4)), ("test", range(4, 5))):
        (old / split).mkdir()
        for number, index in enumerate(chosen):
            (old / f"{index}.png").rename(old / split / f"{number}.png")
        (old / split / "gt.pickle").write_bytes(pickle.dumps([truth[i] for i in chosen], 2))
    (old / "gt.pickle").unlink()
    (old / "train/0.png").write_bytes((old / "train/0.png").read_bytes()[:300])
    Image.new("RGB", (64, 64)).save(old / "train/2.png")
    assert synthesize(options(old)) == {"train": 1, "test": 1}
    problems = {
        item["name"]: item["problem"] for item in json.loads((old.parent / "new/manifest.json").read_text())["skipped"]
    }
    assert sorted(problems) == ["0.png", "1.png", "2.png"]
    assert "truncated" in problems["0.png"]
    assert "not valid" in problems["1.png"]
    assert "expected 320x320 pixels" in problems["2.png"]
    assert "skipped: 3 pictures" in capsys.readouterr().out
    with np.load(old.parent / "new/train/numbers.npz") as numbers:
        assert numbers["index"].tolist() == [3]
    assert np.array_equal(SynthSamples(old.parent / "new", "train").params[0], truth[3][1:])


def test_what_is_refused(old: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"backgrounds": str(old)}, "--import_old renders nothing"),
        ({"resume": True}, "--import_old renders nothing"),
        ({"import_old": str(tmp_path / "none")}, "--import_old: no such folder"),
        ({"test": 5}, "holds 5 pictures, the last 5 of them"),
    ):
        with pytest.raises(DataError, match=message):
            synthesize(options(old, **changes))
    (old / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"no gt\.pickle here, and none in train/"):
        synthesize(options(old, import_old=str(old / "empty")))
    labels = pickle.loads((old / "labels.pickle").read_bytes())
    (old / "labels.pickle").write_bytes(pickle.dumps([one + 3 for one in labels]))
    with pytest.raises(DataError, match=r"its joints are 4\.\d pixels from those of standin"):
        synthesize(options(old))
    (old / "labels.pickle").write_bytes(pickle.dumps(labels[:4]))
    with pytest.raises(DataError, match=r"holds 4 pictures, gt\.pickle beside it 5"):
        synthesize(options(old))
    assert not (tmp_path / "new").exists()
    (old / "labels.pickle").unlink()
    for number in range(COUNT):
        (old / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"not one picture could be used; 0\.png: .*no such picture"):
        synthesize(options(old))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([np.zeros(22)], "expected a list of 1 to 100,000 arrays of 23 finite numbers"),
        ([np.zeros(23), np.full(23, np.nan)], "got a list of 2"),
        ([], "got a list of 0"),
        ({"a": 1}, "got dict"),
        ([np.zeros(23), np.zeros(22)], "got a list of 2"),
    ],
)
def test_pickles_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "gt.pickle", 23, "numbers")


def test_hostile_and_torn_pickles(tmp_path: Path) -> None:
    file = tmp_path / "gt.pickle"
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"refers to os\.system"):
        read_rows(file, 23, "numbers")
    file.write_bytes(pickle.dumps([np.zeros(23)] * 9, 2)[:200])
    with pytest.raises(DataError, match="truncated"):
        read_rows(file, 23, "numbers")


def test_sets_of_the_original_size_are_read(tmp_path: Path) -> None:
    """20,000 arrays have about 660,000 instructions; a tenth of them is more than the reader's default allows."""
    rows = [np.full(23, float(i)) for i in range(4000)]
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps(rows, 0))
    assert np.array_equal(read_rows(tmp_path / "gt.pickle", 23, "numbers"), rows)
