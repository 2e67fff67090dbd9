"""File names and numbers from a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import DataError, MissingFileError
from shared.inputs import (
    natural_key,
    outside,
    parse_bbox,
    parse_numbers,
    read_intrinsics,
    refuse_overwriting,
    refuse_same_results,
    unfold,
)


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


def test_a_box_is_in_whole_pixels() -> None:
    assert parse_bbox("1.4,2.6 30, 8") == (1, 3, 30, 8)
    for text in ("1,2,1.4,8", "1,8,30,8"):
        with pytest.raises(DataError, match="--bbox must have left < right and top < bottom, got"):
            parse_bbox(text)
    with pytest.raises(DataError, match="--bbox takes left,top,right,bottom, got '1,2,3'"):
        parse_bbox("1,2,3")


def test_results_of_one_name_are_refused() -> None:
    files = [(Path("a/x.png"), "x"), (Path("b/y.png"), "y")]
    refuse_same_results(files)
    with pytest.raises(DataError, match=r"^b/x\.npy: would write the same x\.json as a/x\.png -- use two --out$"):
        refuse_same_results([*files, (Path("b/x.npy"), "x")])


def test_results_do_not_replace_what_is_read(tmp_path: Path) -> None:
    out, photo, clip = tmp_path / "out", tmp_path / "photo.png", tmp_path / "clip.mp4"
    (out / "clip").mkdir(parents=True)
    (tmp_path / "link").symlink_to(out / "photo.json")
    files, endings = [(photo, "photo"), (clip, "clip")], (".json", "_mesh.png")
    fine = [str(out / "boxes.json"), str(out / "clip/boxes.json"), str(out / "photo.npz"), ""]
    refuse_overwriting(out, files, endings, fine)
    for word in ("out/photo.json", "out/../out/photo_mesh.png", "out/clip/000012.json", "link"):
        with pytest.raises(DataError, match=f"{word}: would be overwritten by the results -- give another --out"):
            refuse_overwriting(out, files, endings, [*fine, str(tmp_path / word)])
    with pytest.raises(DataError, match=r"photo_mesh\.png: would be overwritten"):
        refuse_overwriting(tmp_path, [*files, (tmp_path / "photo_mesh.png", "photo_mesh")], endings)


def test_intrinsics_of_a_file(tmp_path: Path) -> None:
    K = [[475.0, 0.0, 316.0], [0.0, 470.0, 245.0], [0.0, 0.0, 1.0]]
    path = tmp_path / "camera.json"
    for content in ({"fx": 475, "fy": 470, "u0": 316, "v0": 245}, {"K": K}):
        path.write_text(json.dumps(content))
        assert read_intrinsics(path).tolist() == K
    for text in ("[1]", "{}", "{", '{"fx": 0, "fy": 1, "u0": 1, "v0": 1}', '{"K": [[1, 2, 3], [0, 1, 2], [0, 0, 1]]}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r'camera\.json: not usable as intrinsics \(.*\) -- write \{"fx"'):
            read_intrinsics(path)
    with pytest.raises(MissingFileError, match="no such intrinsics file"):
        read_intrinsics(tmp_path / "none.json")
