"""The program that reads an official MANO pickle once: what it finds, writes and refuses."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import DataError
from shared.mano import load_mano
from shared.mano_import import Options, import_mano, main
from shared.safe_io import load_npz


@pytest.fixture
def official(golden: Path, tmp_path: Path) -> Path:
    """A pickle of real chumpy and SciPy objects, written by Python 2."""
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(gzip.decompress((golden / "mano/MANO_STANDIN_chumpy.pkl.gz").read_bytes()))
    return path


def test_official_pickle_becomes_plain_arrays(
    official: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new folder/right.npz"
    assert main(["--input", str(official), "--output", str(target)]) == 0
    printed = capsys.readouterr().out
    sha256 = hashlib.sha256(official.read_bytes()).hexdigest()
    for word in (sha256, "right hand", "778 vertices, 1538 triangles", "pinky_mcp", "1554 training poses"):
        assert word in printed
    want, ours = load_npz(golden / "mano/standin_right.npz"), load_npz(target)
    for key in ("v_template", "shapedirs", "posedirs", "weights", "J_regressor", "hands_components", "hands_mean", "f"):
        np.testing.assert_array_equal(ours[key], want[key], err_msg=key)
    record = json.loads(target.with_suffix(".json").read_text())
    assert record["source_sha256"] == sha256
    assert record["npz_sha256"] == load_mano(target).sha256
    assert record["side"] == "right"


def test_checking_alone_writes_nothing(official: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    import_mano(Options(input=str(official)))
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_gets_a_file_named_like_the_input(official: Path, tmp_path: Path) -> None:
    import_mano(Options(input=str(official), output=f"{tmp_path}/new/"))
    import_mano(Options(input=str(official), output=str(tmp_path)))
    for folder in (tmp_path / "new", tmp_path):
        assert load_mano(folder / "MANO_RIGHT.npz").side == "right"
        assert (folder / "MANO_RIGHT.json").is_file()


def test_left_hand_by_name_by_option_and_flipped(official: Path, tmp_path: Path) -> None:
    left = official.rename(tmp_path / "MANO_LEFT.pkl")
    assert "left hand" in import_mano(Options(input=str(left)))[0]
    assert "right hand" in import_mano(Options(input=str(left), side="right"))[0]
    import_mano(Options(input=str(left), side="right", output=str(tmp_path / "named_left.npz")))
    assert load_mano(tmp_path / "named_left.npz", side="right").side == "right"
    for name, flip in (("plain", False), ("flipped", True)):
        import_mano(Options(input=str(left), output=str(tmp_path / f"{name}.npz"), flip_shapedirs_x=flip))
    plain, flipped = (load_mano(tmp_path / f"{name}.npz").shapedirs for name in ("plain", "flipped"))
    np.testing.assert_array_equal(plain * np.array([-1.0, 1, 1])[None, :, None], flipped)


def refused(path: Path, tmp_path: Path, message: str) -> None:
    target = tmp_path / "never.npz"
    with pytest.raises(DataError, match=message) as error:
        import_mano(Options(input=str(path), output=str(target)))
    assert path.name in str(error.value)
    assert not target.exists()


def test_foreign_names_are_refused_and_not_run(official: Path, tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"cbuiltins\nexec\n(S'open(%r, \"w\")'\ntR." % str(witness).encode())
    refused(path, tmp_path, "exec")
    assert not witness.exists()
    official.write_bytes(official.read_bytes().replace(b"cchumpy.ch\nCh\n", b"cchumpy.os\nCh\n", 1))
    refused(official, tmp_path, "chumpy.os")


def test_damaged_files_are_refused(official: Path, tmp_path: Path) -> None:
    content = official.read_bytes()
    for name, data, message in (
        ("trailing.pkl", content + b"more", "after|trailing|end"),
        ("cut.pkl", content[:-100_000], "end|trunc|cut|short"),
        ("page.pkl", b"<html>please log in</html>", "page.pkl"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        refused(path, tmp_path, message)


def test_wrong_shapes_are_refused_by_key(golden: Path, tmp_path: Path) -> None:
    arrays: dict[str, Any] = dict(load_npz(golden / "mano/standin_right.npz"))
    arrays.pop("hands_coeffs_first64")
    arrays |= {"bs_style": "lbs", "bs_type": "lrotmin", "weights": arrays["weights"][:700]}
    path = tmp_path / "short.pkl"
    path.write_bytes(pickle.dumps(arrays, 2).replace(b"cnumpy._core.", b"cnumpy.core."))
    refused(path, tmp_path, r"weights must have shape \(778, 16\)")


def test_options_that_do_not_fit(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--input is empty.*mano\.is\.tue\.mpg\.de"):
        import_mano(Options())
    with pytest.raises(DataError, match=r"must end in \.npz"):
        import_mano(Options(input=str(official), output=str(tmp_path / "right.pkl")))
    import_mano(Options(input=str(official), output=str(tmp_path / "right.npz")))
    with pytest.raises(DataError, match="the same file"):
        import_mano(Options(input=str(tmp_path / "right.npz"), output=str(tmp_path / "right.npz")))
    with pytest.raises(DataError, match=r"absent\.pkl"):
        import_mano(Options(input=str(tmp_path / "absent.pkl")))


def test_a_wrong_file_ends_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "page.pkl"
    path.write_bytes(b"<html>please log in</html>")
    command = [sys.executable, "-m", "shared.mano_import", "--input", str(path)]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
