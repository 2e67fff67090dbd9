"""Annotation files made from the data sets' own labels, in the layout of the author's."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handoccnet.config import DataOptions
from handoccnet.data import load_labels
from handoccnet.prepare import prepare
from shared.datasets import dexycb, ho3d
from shared.errors import DataError
from shared.mano import load_mano, save_npz
from shared.skeletons import reorder
from shared.standin.dexycb import write_dexycb
from shared.standin.ho3d import write_ho3d

ROOT = Path(__file__).parents[2]


def test_ho3d_files_have_the_authors_fields(golden: Path, tmp_path: Path) -> None:
    write_ho3d(tmp_path, frames=2, seed=5, version="v3")
    command = [sys.executable, "-m", "handoccnet.prepare", "--root", str(tmp_path), "--mano", "standin"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for split, count in (("train", 2), ("evaluation", 2)):
        file = tmp_path / f"annotations/HO3D_{split}_data.json"
        assert f"{file}: {count} annotations" in result.stdout
        ours = json.loads(file.read_text())
        theirs = json.loads((golden / f"handoccnet/HO3D_{split}_data.json").read_text())
        for part in ("images", "annotations"):
            assert set(ours[part][0]) >= set(theirs[part][0]), part
        for image in ours["images"]:
            assert (tmp_path / split / image["file_name"]).is_file()
            assert image["file_name"].endswith(".jpg")  # v3
    frame = ho3d.open(tmp_path, "train").labels(0)
    record = json.loads((tmp_path / "annotations/HO3D_train_data.json").read_text())["annotations"][0]
    assert frame.joints_mm is not None
    joints = reorder(frame.joints_mm, "mano", "thumb_first") / 1000
    np.testing.assert_allclose(record["joints_coord_cam"], joints, atol=1e-9)
    mean = load_mano("standin").hands_mean  # HO-3D's poses are for the flat hand, the files' are not
    np.testing.assert_allclose(record["mano_param"]["pose"][3:], frame.extra["pose"][3:] - mean, atol=1e-9)


def test_dexycb_files_keep_the_toolkits_numbers_and_both_hands(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dexycb(tmp_path, frames=24, seed=5)
    written = prepare(DataOptions(dataset="dexycb", root=str(tmp_path), mano="standin"), tmp_path / "out")
    assert [path.name for path, _ in written] == [f"DEX_YCB_s0_{part}_data.json" for part in ("train", "val", "test")]
    content = json.loads(written[0][0].read_text())
    theirs = json.loads((golden / "handoccnet/DEX_YCB_s0_train_data.json").read_text())
    assert set(content["annotations"][0]) >= set(theirs["annotations"][0])
    assert {a["hand_type"] for a in content["annotations"]} == {"right", "left"}
    toolkit = dexycb.open(tmp_path, "s0_train", depth=False)
    assert [a["id"] for a in content["annotations"]] == [
        toolkit.labels(i).extra["toolkit_index"] for i in range(len(toolkit))
    ]
    rights = prepare(DataOptions(dataset="dexycb", root=str(tmp_path), mano="standin", sides="right"), tmp_path / "r")
    assert {a["hand_type"] for a in json.loads(rights[0][0].read_text())["annotations"]} == {"right"}
    assert len(rights) < 3  # this seed's test frames are all of left hands: that split is passed over and said so
    assert "s0_test is passed over" in capsys.readouterr().out


def test_an_evaluation_frame_without_label_is_not_left_out(tmp_path: Path) -> None:
    write_ho3d(tmp_path, frames=4, seed=5)
    sequence, number = (tmp_path / "evaluation.txt").read_text().split()[0].split("/")
    path = tmp_path / "evaluation" / sequence / "meta" / f"{number}.pkl"
    meta = {**pickle.loads(path.read_bytes()), "handJoints3D": None}
    path.write_bytes(pickle.dumps(meta, 2).replace(b"cnumpy._core.", b"cnumpy.core."))
    with pytest.raises(DataError, match="1 of 2 evaluation frames have no label"):
        prepare(DataOptions(root=str(tmp_path), mano="standin"), tmp_path / "out")
    assert not (tmp_path / "out/HO3D_evaluation_data.json").exists()


@pytest.mark.parametrize("sides", ["both", "right"])
def test_a_file_of_a_part_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], sides: Any) -> None:
    write_dexycb(tmp_path, frames=24, seed=5)  # a few cameras and frames of the split
    options = DataOptions(dataset="dexycb", root=str(tmp_path), mano="standin", sides=sides)
    prepare(options, tmp_path / "out")
    assert "a part of the split: " in capsys.readouterr().out
    content = json.loads((tmp_path / "out/DEX_YCB_s0_train_data.json").read_text())
    (own,) = content["handpose"]
    assert own["complete"] is False
    assert ("right hands only" in own["part"]) is (sides == "right")
    read = DataOptions(dataset="dexycb", root=str(tmp_path), annotations=str(tmp_path / "out"), mano="standin")
    labels = load_labels(read, "train", load_mano("standin"))
    assert not labels.complete
    assert "made from a part of its split" in labels.summary


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no MANO model is named"):
        prepare(DataOptions(root=str(tmp_path)), tmp_path)
    with pytest.raises(DataError, match=r"neither train\.txt nor evaluation\.txt"):
        prepare(DataOptions(root=str(tmp_path), mano="standin"), tmp_path)
    with pytest.raises(DataError, match="no frame of any split is there"):
        prepare(DataOptions(dataset="dexycb", root=str(tmp_path), mano="standin"), tmp_path)
    save_npz(load_mano("standin"), tmp_path / "right.npz")
    with pytest.raises(DataError, match=r"--mano_left MANO_LEFT\.pkl"):
        prepare(DataOptions(dataset="dexycb", root=str(tmp_path), mano=str(tmp_path / "right.npz")), tmp_path)
    command = [sys.executable, "-m", "handoccnet.prepare", "--mano", "standin"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--root is empty" in result.stderr
