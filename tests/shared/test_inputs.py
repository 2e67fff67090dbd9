"""File names and numbers from a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import DataError
from shared.inputs import natural_key, outside, parse_numbers, unfold


def test_numbers_in_names_count_as_numbers() -> None:
    assert sorted(["a10", "a2", "2", "b", "10"], key=natural_key) == ["2", "10", "a2", "a10", "b"]


def test_a_folder_gives_its_pictures_without_the_results(tmp_path: Path) -> None:
    for name in ("f10.png", "f2.PNG", "notes.txt", "sub/f1.png", "out/f2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = unfold(tmp_path, (".png",), outside(tmp_path / "out"))
    assert [name for _, name in found] == ["f2", "f10", "sub/f1"]
    assert [path.name for path, _ in found] == ["f2.PNG", "f10.png", "f1.png"]


def test_links_to_and_among_the_results_count_as_results(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").touch()
    (tmp_path / "b.png").symlink_to(tmp_path / "out/a.png")
    (tmp_path / "c.png").touch()
    (tmp_path / "out/d.png").symlink_to(tmp_path / "c.png")
    assert [name for _, name in unfold(tmp_path, (".png",), outside(tmp_path / "out"))] == ["c"]


def test_numbers() -> None:
    assert parse_numbers("center", "1, 2.5 -3e2", "x y z") == [1.0, 2.5, -300.0]


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "1,2,x", "1,2,nan", "1,2,inf"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="--center takes x,y,z, got"):
        parse_numbers("center", text, "x y z")
