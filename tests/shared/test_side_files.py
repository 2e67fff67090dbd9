"""Arrays from untrusted values, numbers in big JSON files, record-wise JSON, and the index of unlabelled frames."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.datasets import side_files
from shared.datasets.side_files import checked_array, iter_json_records, labelled_frames, read_json_array
from shared.errors import DataError, MissingFileError


def test_checked_array_takes_arrays_lists_and_unit_axes() -> None:
    for value in (
        np.float32([[1], [2], [3]]),
        [1, 2, 3],
        [[1, 2, 3]],
        (1.0, np.int32(2), np.float32(3)),
        np.int64([1, 2, 3]),
    ):
        np.testing.assert_array_equal(checked_array(value, (3,), path="f", field="x"), [1.0, 2, 3])
    assert checked_array([[[1, 2]]], (1, 1, 2), path="f", field="x").dtype == np.float64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "numbers of shape"),
        ([1, 2, "3"], "numbers of shape"),
        ([1, 2, True], "numbers of shape"),
        (None, "got NoneType"),
        (np.zeros((3, 1, 2)), r"expected shape \(3,\), got \(3, 1, 2\)"),
        (np.array(["a", "b", "c"]), "got dtype"),
        (np.array([True, False, True]), "got dtype bool"),
        ([1, 2, float("nan")], "not finite"),
        (np.array([1, np.inf, 0]), "not finite"),
        ([1, 2, 10**400], "not finite"),
    ],
)
def test_checked_array_says_what_is_wrong(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        checked_array(value, (3,), path="file.yml", field="focal")
    assert "file.yml" in str(error.value)
    assert "focal" in str(error.value)


def test_a_list_that_unfolds_to_gigabytes_is_refused_at_once() -> None:
    bomb: list[object] = [1.0] * 10
    for _ in range(30):
        bomb = [bomb] * 10
    start = time.process_time()
    with pytest.raises(DataError):
        checked_array(bomb, (10, 10, 10), path="f", field="x")
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("tail", [(), (3,), (2, 3), (1, 4)])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_equals_the_json_module(tmp_path: Path, tail: tuple[int, ...], indent: int | None) -> None:
    values = np.random.default_rng(0).normal(size=(7, *tail)) * 10.0 ** np.arange(-3, 4).reshape(-1, *[1] * len(tail))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values.tolist(), indent=indent) + "\n")
    np.testing.assert_array_equal(read_json_array(path, tail, page="p"), values)


def test_json_array_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_files, "_BLOCK", 7)  # blocks end inside numbers, between brackets, everywhere
    values = np.random.default_rng(1).normal(size=(50, 2, 2))
    (tmp_path / "a.json").write_text(json.dumps(values.tolist()))
    np.testing.assert_array_equal(read_json_array(tmp_path / "a.json", (2, 2), page="p"), values)


def test_empty_json_array(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[ ]")
    assert read_json_array(tmp_path / "a.json", (2, 3), page="p").shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with b''"),
        ('{"a": 1}', "expected a JSON list"),
        ("<!DOCTYPE html>", "expected a JSON list"),
        ("[[1, 2], [3, 4, 5]]", "entry 1"),
        ("[[1, 2], [3]]", "entry 1"),
        ("[[1, 2], 3, 4]", "entry 1"),
        ("[[1, NaN]]", "entry 0"),
        ("[[1, null]]", "entry 0"),
        ('[[1, "2"]]', "entry 0"),
        ("[[1, 2], [3, 4]", "entry 1"),
        ("[[1, 2], [3, 4", "cut off"),
        ("[[1, 2]", "whole entries|entry"),
        ("[[1, 2]] [", "cut off|entry"),
        ("[[1, 1e999]]", "not finite"),
        ("[[1, 2 3]]", "not a number"),
        ("[[1, ]]", "not a number|whole entries"),
        ("[[1, 1-2]]", "not a number"),
        ("[[1, 2],]", "not a number|entry|whole entries"),
    ],
)
def test_json_array_refuses_anything_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_json_array(tmp_path / "a.json", (2,), page="p")
    assert "a.json" in str(error.value)


def test_json_array_of_one_endless_number(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" + "1" * (10 << 20))
    with pytest.raises(DataError, match="separated by commas"):
        read_json_array(tmp_path / "a.json", (), page="p")


def test_missing_file_names_the_page(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"x\.json.*https://page"):
        read_json_array(tmp_path / "x.json", (), page="https://page")
    with pytest.raises(MissingFileError, match=r"x\.json.*https://page"):
        list(iter_json_records(tmp_path / "x.json", page="https://page"))


def test_records_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"info": {"a": [1]}, "images": [{"id": i, "x": 0.1 * i} for i in range(40)], "b": [], "n": [1, 23, 456]}
    path = tmp_path / "a.json"
    expected = [("images", record) for record in content["images"]] + [("n", n) for n in content["n"]]
    for indent in (None, 1):
        path.write_text(json.dumps(content, indent=indent))
        assert list(iter_json_records(path, page="p")) == expected
    path.write_text("{}")
    assert list(iter_json_records(path, page="p")) == []


def test_records_across_refills(tmp_path: Path) -> None:
    records = [{"id": i, "text": "x" * 100_000} for i in range(12)] + [7, 89]  # larger than one read
    (tmp_path / "a.json").write_text(json.dumps({"a": records}))
    assert [record for _, record in iter_json_records(tmp_path / "a.json", page="p")] == records


def test_records_need_little_memory(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "w") as file:
        file.write('{"a": [' + ", ".join(json.dumps({"id": i, "x": [0.123456] * 200}) for i in range(2000)) + "]}")
    assert (tmp_path / "a.json").stat().st_size > 4e6
    tracemalloc.start()
    assert sum(1 for _ in iter_json_records(tmp_path / "a.json", page="p")) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut off"),
        ("[1]", r"expected \{"),
        ("<html>", r"expected \{"),
        ("{1: 2}", 'expected "'),
        ('{"a" 1}', "expected :"),
        ('{"a": [1 2]}', "expected ,"),
        ('{"a": [{"b": 1}', "cut off"),
        ('{"a": [{"b": ', "not valid JSON"),
        ('{"a": [x]}', "not valid JSON"),
        ('{"a": [' + "[" * 100_000, "nested too deeply|not valid JSON"),
        ('{"a": ["' + "x" * (5 << 20), "not valid JSON"),
        ('{"a": [' + "1" * 10_000 + "]}", "not valid JSON"),
    ],
)
def test_records_refuse_anything_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    start = time.process_time()
    with pytest.raises(DataError, match=message) as error:
        list(iter_json_records(tmp_path / "a.json", page="p"))
    assert "a.json" in str(error.value)
    assert time.process_time() - start < 1


@settings(max_examples=60, deadline=1000)
@given(data=st.binary(max_size=200), cut=st.integers(0, 60))
def test_any_bytes_give_an_error_or_a_value(tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int) -> None:
    path = tmp_path_factory.mktemp("h") / "a.json"
    for content in (
        data,
        b"[[1, 2], [3, 4], [5e3, -6.5]]"[:cut] + data,
        b'{"a": [{"b": 1}, {"c": [2]}], "d": 3}'[:cut] + data,
    ):
        path.write_bytes(content)
        for read in (lambda: read_json_array(path, (2,), page="p"), lambda: list(iter_json_records(path, page="p"))):
            with suppress(DataError):  # anything else fails the test
                read()


def test_the_index_is_made_once_and_belongs_to_its_frames(tmp_path: Path) -> None:
    asked: list[str] = []

    def labelled(name: str) -> bool:
        asked.append(name)
        return name != "b"

    index = tmp_path / "deep" / "index.json"
    for _ in range(2):
        assert labelled_frames(["a", "b", "c"], labelled, index=index).tolist() == [True, False, True]
    assert asked == ["a", "b", "c"]
    with pytest.raises(DataError, match="does not belong to these 2 frames"):
        labelled_frames(["a", "c"], labelled, index=index)
    stored = json.loads(index.read_text())
    for damage in ({**stored, "unlabelled": [3]}, {**stored, "unlabelled": ["x"]}, {"stamp": stored["stamp"]}, []):
        index.write_text(json.dumps(damage))
        with pytest.raises(DataError, match="does not belong"):
            labelled_frames(["a", "b", "c"], labelled, index=index)
    index.write_text(json.dumps(stored)[:-5])
    with pytest.raises(DataError, match="does not belong"):
        labelled_frames(["a", "b", "c"], labelled, index=index)
