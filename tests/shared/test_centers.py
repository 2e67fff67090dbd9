"""Centre files and the long label files: what is read, and that every bad line is named."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.datasets.centers import centers_for, read_centers, write_centers
from shared.datasets.rows import MAX_LINE, Selection, files_present, read_lines, read_named_rows, skipped_text
from shared.errors import DataError, MissingFileError


def test_axes_and_units(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("1 2 3\ninvalid\n-4 5.5 600\ninvalid invalid invalid\n")
    xyz, valid = read_centers(tmp_path / "c.txt", y_up=False)
    assert valid.tolist() == [True, False, True, False]
    assert xyz[valid].tolist() == [[1, 2, 3], [-4, 5.5, 600]]
    assert np.isnan(xyz[~valid]).all()
    up, _ = read_centers(tmp_path / "c.txt", y_up=True, unit_mm=1000)
    assert up[0].tolist() == [1000, -2000, 3000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n1 2\n", "line 2: expected 'x y z' or 'invalid', got b'1 2'"),
        ("1 2 x\n", "line 1: expected"),
        ("1 2 nan\n", "line 1: expected"),
        ("1 2 3\n\n4 5 6\n", "line 2: blank, expected one line per frame"),
        ("", "no line in the file"),
    ],
)
def test_bad_center_lines(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_centers(tmp_path / "c.txt", y_up=False)


def test_option_takes_file_folder_or_none(tmp_path: Path) -> None:
    (tmp_path / "center_test.txt").write_text("1 2 3\n")
    for source in (tmp_path, tmp_path / "center_test.txt"):
        found = centers_for(source, "center_test.txt", 1, y_up=False)
        assert found is not None
        assert found[0].tolist() == [[1, 2, 3]]
    assert centers_for(None, "center_test.txt", 1, y_up=False) is None
    with pytest.raises(DataError, match=r"center_test\.txt: 1 centres for 2 labelled frames.*matched by line"):
        centers_for(tmp_path, "center_test.txt", 2, y_up=False)
    with pytest.raises(MissingFileError, match=r"center_train\.txt: no centre file here.*V2V-PoseNet_RELEASE"):
        centers_for(tmp_path, "center_train.txt", 1, y_up=False)


def test_real_center_file(real_data: Path) -> None:
    folder = real_data / "msra_center"
    expected = json.loads((folder / "expected.json").read_text())
    xyz, valid = read_centers(folder / "center_test_3_refined.txt.gz", y_up=True)
    assert (len(xyz), int((~valid).sum())) == (expected["rows"], expected["invalid_rows"])
    difference = np.abs(xyz[[0, -1]] * [1, -1, 1] - [expected["first"], expected["last"]]).max()
    print(f"centres max diff {difference:.3g}")
    assert difference < 1e-9


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.none(), st.tuples(*[st.floats(-2000, 2000)] * 3)), min_size=1), st.booleans())
def test_write_then_read(tmp_path: Path, rows: list[tuple[float, float, float] | None], y_up: bool) -> None:
    xyz = np.array([row or (np.nan,) * 3 for row in rows])
    valid = np.array([row is not None for row in rows])
    write_centers(tmp_path / "c.txt", xyz, valid, y_up=y_up, unit_mm=1000)
    back, back_valid = read_centers(tmp_path / "c.txt", y_up=y_up, unit_mm=1000)
    assert np.array_equal(valid, back_valid)
    assert np.allclose(xyz, back, rtol=1e-12, atol=1e-9, equal_nan=True)


def test_rows_tabs_blanks_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"a/b.png 1 2.5 \r\r\nc.png\t3\t-4e1\n\nd\\e.png  5 6")
    names, values, ignored = read_named_rows(tmp_path / "l.txt", 2)
    assert names == ["a/b.png", "c.png", "d/e.png"]
    assert values.tolist() == [[1, 2.5], [3, -40], [5, 6]]
    assert ignored == 0
    names, values, ignored = read_named_rows(tmp_path / "l.txt", 2, max_rows=1)
    assert (names, values.tolist(), ignored) == (["a/b.png"], [[1, 2.5]], 2)
    (tmp_path / "l.txt.gz").write_bytes(gzip.compress((tmp_path / "l.txt").read_bytes()))
    assert read_named_rows(tmp_path / "l.txt.gz", 2)[0] == ["a/b.png", "c.png", "d/e.png"]


def test_rows_are_exact_over_block_borders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-1000, 1000, (9000, 3))
    text = "".join(f"image_{i}.png {a!r} {b!r} {c!r}\n" for i, (a, b, c) in enumerate(values.tolist()))
    (tmp_path / "l.txt").write_text(text)
    names, read, _ = read_named_rows(tmp_path / "l.txt", 3)
    assert np.array_equal(read, values)
    assert names[4096] == "image_4096.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png 1 2\nb.png 1\n", "line 2: expected a name and 2 numbers, got 1"),
        (b"a.png 1 2\nb.png\n", "line 2: expected a name and 2 numbers, got 0"),
        (b"a.png 1 2\nb.png 1\nc.png 1 2 3\n", "line 2: expected a name and 2 numbers, got 1"),
        (b"a.png 1 nan\n", "line 1: expected a finite number, got b'nan'"),
        (b"a.png 1 1e999\n", "line 1: expected a finite number, got b'1e999'"),
        (b"a.png 1 x\n", "line 1: expected a finite number, got b'x'"),
        (b"a.png 1 \xff\n", "line 1: expected a finite number"),
        (b"../a.png 1 2\n", "line 1: '../a.png' is not a picture inside"),
        (b"/etc/a.png 1 2\n", "is not a picture inside"),
        (b"C:\\a.png 1 2\n", "is not a picture inside"),
        (b"", "no record in the file"),
        (b"a.png " + b"1" * MAX_LINE, f"line 1: longer than {MAX_LINE} bytes"),
        (b"\n" * 5000, "0 records in the first 1001 lines"),
    ],
)
def test_bad_rows(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_named_rows(tmp_path / "l.txt", 2)
    assert "l.txt" in str(caught.value)


def test_row_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.datasets.rows.MAX_ROWS", 3)
    (tmp_path / "l.txt").write_bytes(b"a 1\n" * 4)
    with pytest.raises(DataError, match="4 records in the first 4 lines, not a label file"):
        list(read_lines(tmp_path / "l.txt"))


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.txt: no such label file"):
        list(read_lines(tmp_path / "none.txt"))
    whole = gzip.compress(np.random.default_rng(0).bytes(100).hex().encode())
    for broken in (whole[:-20], b"no gzip", whole[:15] + b"\xff" * 30 + whole[45:]):
        (tmp_path / "l.txt.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"l\.txt\.gz: damaged gzip file"):
            list(read_lines(tmp_path / "l.txt.gz"))


def test_gzip_bomb_stops_early(tmp_path: Path) -> None:
    (tmp_path / "l.txt.gz").write_bytes(gzip.compress(b"\0" * 50_000_000))
    with pytest.raises(DataError, match="longer than"):
        list(read_lines(tmp_path / "l.txt.gz"))


@settings(max_examples=60, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 60))
def test_arbitrary_rows(tmp_path: Path, junk: bytes, at: int) -> None:
    good = b"a/b.png 1.5 2\nc.png 3 4\nd.png -5 6e2\n"
    (tmp_path / "l.txt").write_bytes(good[:at] + junk + good[at:])
    with contextlib.suppress(DataError):  # anything else fails the test
        names, values, _ = read_named_rows(tmp_path / "l.txt", 2)
        assert values.shape == (len(names), 2)
        assert np.isfinite(values).all()


def test_selection_counts_each_frame_once(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "b.png").touch()
    names = ["s/a.png", "s/b.png", "t/c.png", "d.png"]
    assert files_present(tmp_path, names).tolist() == [False, True, False, False]
    selection = Selection(names)
    selection.drop("bad ones", np.array([True, False, False, False]))
    selection.drop("none", np.zeros(4, bool))
    selection.drop_missing(tmp_path, names, page="page")
    assert selection.skipped == {"bad ones": ["s/a.png"], "missing pictures": ["t/c.png", "d.png"]}
    assert selection.keep.tolist() == [False, True, False, False]
    assert skipped_text(selection.skipped) == ", skipped 1 bad ones, skipped 2 missing pictures"
    with pytest.raises(MissingFileError, match=r"none of the 1 labelled pictures is here .*a\.png.*download: page"):
        Selection(["a.png"]).drop_missing(tmp_path, ["a.png"], page="page")
