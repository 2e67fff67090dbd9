"""Preparation: geometry of every set, orders, mirrors, masks, skips that are counted and listed, resume."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hand3d_wild.crop import from_crop, mirror_points
from hand3d_wild.heatmaps import gaussian_maps, write_group
from hand3d_wild.prepare import main, prepare, read_detections, to_wild
from hand3d_wild.store import MADE, SKIPPED, SOURCES, open_split, read_manifest, text
from shared.camera import project
from shared.datasets import mpii_nzsl, stb
from shared.errors import DataError, MissingFileError
from shared.skeletons import reorder
from tests.hand3d_wild.conftest import config, kill_a_worker


def row_of(store: Path, split: str, name: str) -> np.void:
    rows = open_split(store, split).rows
    return rows[[text(n) for n in rows["name"]].index(name)]


def test_joint_orders_are_the_originals(golden: Path) -> None:
    g = np.load(golden / "hand3d_wild/geometry.npz")
    orders = json.loads((golden / "hand3d_wild/orders.json").read_text())
    for name, skeleton in (("stb", "stb"), ("openpose", "thumb_first")):
        ours = to_wild(g["sort_in"], skeleton)
        assert (ours == g[f"sort_{name}"]).all()
        assert (ours == g["sort_in"][orders[f"gather_{name}_to_mano21"]]).all()
    print("both permutations: max diff 0")


def test_stb_projection_is_the_originals(golden: Path) -> None:
    g = np.load(golden / "hand3d_wild/geometry.npz")
    worst = 0.0
    for joints, left, right in zip(g["mm_xyz"], g["mm_uv_left"], g["mm_uv_right"], strict=True):
        ours = project(joints.T, stb.K["BB_left"])
        worst = max(worst, float(np.abs(ours - left[:2].T).max()))
        ours = project(stb.left_to_right(joints.T), stb.K["BB_right"])
        worst = max(worst, float(np.abs(ours - right[:2].T).max()))
    print(f"STB millimetres to pixels: max diff {worst:.3g} px")
    assert worst < 1e-4


def test_counts_and_splits(wild_store: Path) -> None:
    manifest = read_manifest(wild_store)
    assert manifest["skipped"] == []
    counts = {split: list(c["by_source"].values()) for split, c in manifest["splits"].items()}
    assert counts == {"train": [4, 3, 4], "test": [0, 1, 0], "stb_test": [0, 0, 4]}
    for split, c in manifest["splits"].items():
        arrays = open_split(wild_store, split)
        assert (arrays.rows["picture"] == MADE).all()
        assert c["masks"] == len(arrays.rows)
        for i in range(len(arrays.rows)):
            share = arrays.mask(i).mean()
            assert 0.02 < share < 0.3, f"{split} {i}: the mask covers {share:.2f} of the crop"


def test_stb_is_mirrored_before_the_crop(wild_trees: Path, wild_store: Path) -> None:
    frames = stb.open(wild_trees / "stb", "train", camera="BB_right")
    frame = frames[0]
    row = row_of(wild_store, "train", frame.name)
    assert row["palm"]
    assert row["has_3d"]
    assert not row["left"]
    assert frame.joints_mm is not None
    assert np.abs(row["joints_mm"] - to_wild(frame.joints_mm, "stb") * [-1, 1, 1]).max() < 1e-9
    pixels = mirror_points(project(to_wild(frame.joints_mm, "stb"), frame.K), 640)
    assert np.abs(from_crop(row["points"], tuple(row["box"].tolist())) - pixels).max() < 1e-9


def test_mpii_is_mirrored_after_the_crop(wild_trees: Path, wild_store: Path) -> None:
    frames = mpii_nzsl.open(wild_trees / "mpii_nzsl", "train")
    sides = {frame.side: frame for frame in (frames[i] for i in range(len(frames)))}
    for side, frame in sides.items():
        row = row_of(wild_store, "train", frame.name)
        points = row["points"] if side == "right" else mirror_points(row["points"], 320)
        assert frame.keypoints_2d is not None
        expected = reorder(frame.keypoints_2d, "thumb_first", "wild")
        assert np.abs(from_crop(points, tuple(row["box"].tolist())) - expected).max() < 1e-9
        assert not row["palm"]
        assert not row["has_3d"]
        assert np.isnan(row["joints_mm"]).all()
        edge = row["box"][1] - row["box"][0]
        extent = np.ptp(expected, axis=0).max()
        if edge + 1 < min(frame.image_size):
            assert abs(edge / extent - 2.2) < 0.02


def test_missing_joints_stay_missing(wild_store: Path) -> None:
    rows = open_split(wild_store, "train").rows
    panoptic = rows[rows["source"] == SOURCES.index("panoptic")]
    assert (panoptic["visible"].sum(1) < 21).any()
    assert (np.isfinite(panoptic["points"]).all(-1) == panoptic["visible"]).all()


def broken(trees: Path, tmp_path: Path) -> Path:
    """The trees with an unreadable picture, labels without keypoints and a hand without a visible joint."""
    root = tmp_path / "trees"
    shutil.copytree(trees, root)
    folder = root / "mpii_nzsl/hand_labels/manual_train"
    names = sorted(p.stem for p in folder.glob("*.json"))
    (folder / f"{names[1]}.jpg").write_bytes(b"\xff\xd8 not a picture")
    label = json.loads((folder / f"{names[2]}.json").read_text())
    del label["hand_pts"]
    (folder / f"{names[2]}.json").write_text(json.dumps(label))
    file = root / "panoptic/hand143_panopticdb/hands_v143_14817.json"
    document = json.loads(file.read_text())
    document["root"][1]["joint_self"] = [[0.0, 0.0, 0.0]] * 21
    file.write_text(json.dumps(document))
    return root


def test_what_cannot_be_used_is_skipped_counted_and_listed(
    wild_trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = broken(wild_trees, tmp_path)
    manifest = prepare(config(root, tmp_path / "store", stb="", masks="none"))
    problems = {item["name"].split("/")[-1]: item["problem"] for item in manifest["skipped"]}
    assert len(problems) == 3
    text_ = " | ".join(problems.values())
    assert "no joint is visible" in text_
    assert "hand_pts" in text_
    assert "not a readable" in text_ or "damaged" in text_
    assert manifest["splits"]["train"]["pictures"] == 4
    assert "skipped: 3 picture" in capsys.readouterr().out
    rows = open_split(tmp_path / "store", "train").rows
    assert (rows["picture"] == SKIPPED).sum() == 3
    # repaired, they are made by a resumed run
    good = wild_trees / "mpii_nzsl/hand_labels/manual_train"
    for file in good.iterdir():
        shutil.copy(file, root / "mpii_nzsl/hand_labels/manual_train" / file.name)
    manifest = prepare(config(root, tmp_path / "store", stb="", masks="none", resume=True))
    assert manifest["splits"]["train"]["pictures"] == 6
    assert len(manifest["skipped"]) == 1


def test_nothing_usable_is_an_error(wild_trees: Path, tmp_path: Path) -> None:
    root = tmp_path / "trees"
    shutil.copytree(wild_trees / "panoptic", root / "panoptic")
    for file in (root / "panoptic/hand143_panopticdb/imgs").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a single picture could be used"):
        prepare(config(root, tmp_path / "store", stb="", mpii=""))


def test_a_killed_worker_ends_the_run(wild_trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hand3d_wild.prepare.CHUNK", 1)
    killer = kill_a_worker()
    with pytest.raises(DataError, match=r"a worker was killed \(out of memory\?\) -- go on with --resume"):
        prepare(config(wild_trees, tmp_path / "store", stb="", mpii="", masks="none", workers=2))
    killer.join()
    again = config(wild_trees, tmp_path / "store", stb="", mpii="", masks="none", resume=True)
    assert prepare(again)["splits"]["train"]["pictures"] == 4


@pytest.mark.slow
def test_workers_and_kills_do_not_change_a_store(
    wild_trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hand3d_wild.prepare.CHUNK", 1)
    whole, out = tmp_path / "whole", tmp_path / "store"
    some = {"panoptic": "", "stb_cameras": "left", "limit": 2}
    prepare(config(wild_trees, whole, **some))
    killer = kill_a_worker()
    with pytest.raises(DataError, match="a worker was killed"):
        prepare(config(wild_trees, out, workers=2, **some))
    killer.join()
    prepare(config(wild_trees, out, workers=2, resume=True, masks="none", **some))  # as if killed before the masks
    arrays = open_split(out, "train", write=True)
    arrays.rows[1:3]["picture"] = 0
    arrays.pictures[1:3] = 0
    del arrays
    prepare(config(wild_trees, out, resume=True, **some))
    for split in ("train", "test", "stb_test"):
        for file in ("pictures", "masks", "rows"):
            assert (out / split / f"{file}.npy").read_bytes() == (whole / split / f"{file}.npy").read_bytes(), split


def test_masks_of_the_user(wild_trees: Path, wild_store: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    rows = open_split(wild_store, "test").rows
    name = text(rows["name"][0])
    (masks / "mpii" / name).parent.mkdir(parents=True)
    mask = np.zeros((320, 320), np.uint8)
    mask[100:200, 50:150] = 1
    Image.fromarray(mask).save(masks / "mpii" / f"{name}.png")
    other = text(open_split(wild_store, "train").rows["name"][4])
    (masks / "mpii" / other).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask[:200]).save(masks / "mpii" / f"{other}.png")
    manifest = prepare(config(wild_trees, tmp_path / "store", stb="", panoptic="", masks=str(masks)))
    assert (open_split(tmp_path / "store", "test").mask(0) == mask).all()
    problems = {item["name"]: item["problem"] for item in manifest["skipped"]}
    assert "expected 320x320 pixels" in problems[other]
    assert any("no such picture" in problem for problem in problems.values())
    assert manifest["splits"]["train"]["masks"] == 0


def test_masks_of_two_sources_are_not_mixed(wild_trees: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    some = {"stb": "", "mpii": ""}
    out = tmp_path / "store"
    prepare(config(wild_trees, out, masks="none", **some))
    assert read_manifest(out)["masks"] == "none"
    with pytest.MonkeyPatch.context() as patch:  # killed after the masks
        patch.setattr("hand3d_wild.prepare._count", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(config(wild_trees, out, resume=True, **some))
    assert read_manifest(out)["masks"] == "grabcut"
    with pytest.raises(DataError, match="holds masks of --masks grabcut -- resume with --masks grabcut or none"):
        prepare(config(wild_trees, out, resume=True, masks=str(tmp_path / "masks"), **some))
    prepare(config(wild_trees, out, resume=True, masks="none", **some))
    manifest = read_manifest(out)
    assert manifest["masks"] == "grabcut"
    assert manifest["splits"]["train"]["masks"] == 4


def test_names_that_are_not_utf8_or_too_long(wild_trees: Path, tmp_path: Path) -> None:
    root = tmp_path / "trees"
    shutil.copytree(wild_trees / "mpii_nzsl", root / "mpii_nzsl")
    folder = root / "mpii_nzsl/hand_labels/manual_train"
    stems = sorted(p.stem for p in folder.glob("*.json"))
    odd = os.fsdecode(b"caf\xe9")
    for stem, name in zip(stems, (odd, "x" * 190), strict=False):
        for suffix in (".jpg", ".json"):
            (folder / f"{stem}{suffix}").rename(folder / f"{name}{suffix}")
    mask = np.zeros((320, 320), np.uint8)
    mask[100:200] = 255
    (tmp_path / "masks/mpii/manual_train").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / f"masks/mpii/manual_train/{odd}.png")
    manifest = prepare(config(root, tmp_path / "store", stb="", panoptic="", masks=str(tmp_path / "masks")))
    rows = open_split(tmp_path / "store", "train").rows
    assert b"manual_train/caf\xe9" in rows["name"].tolist()
    assert manifest["splits"]["train"]["masks"] == 1
    skipped = [item["problem"] for item in manifest["skipped"] if item["what"] == "picture"]
    assert skipped == ["the name has 203 bytes, at most 200 are kept"]
    prepare(config(root, tmp_path / "store", stb="", panoptic="", masks="none", resume=True))


def test_a_picture_that_the_disk_refuses_is_skipped(wild_trees: Path, tmp_path: Path) -> None:
    root = tmp_path / "trees"
    shutil.copytree(wild_trees / "mpii_nzsl", root / "mpii_nzsl")
    folder = root / "mpii_nzsl/hand_labels/manual_train"
    for suffix, file in zip((".jpg", ".json"), sorted(folder.glob("*.json")), strict=False):
        file.with_suffix(suffix).unlink()
        file.with_suffix(suffix).symlink_to("/proc/self/mem")
    manifest = prepare(config(root, tmp_path / "store", stb="", panoptic="", masks="none"))
    assert [item["problem"].split(": ")[1] for item in manifest["skipped"]] == [
        "cannot be read (Input/output error)"
    ] * 2
    assert manifest["splits"]["train"]["pictures"] == 1


def write_openpose(folder: Path, name: str, side: str, points: np.ndarray) -> None:
    file = folder / f"{name}_keypoints.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    hand = np.concatenate((points, np.full((21, 1), 0.7)), 1)
    faint = np.concatenate((points * 0, np.full((21, 1), 0.1)), 1)
    key = f"hand_{side}_keypoints_2d"
    people = [{key: faint.ravel().tolist()}, {key: hand.ravel().tolist()}]
    file.write_text(json.dumps({"version": 1.3, "people": people}))


def test_detections_take_the_way_of_the_labels(wild_trees: Path, tmp_path: Path) -> None:
    frames = mpii_nzsl.open(wild_trees / "mpii_nzsl", "train")
    for i in range(2):  # one right and one left hand; the third has no file, the test picture's file no hand
        frame = frames[i]
        assert frame.keypoints_2d is not None
        write_openpose(tmp_path / "det/mpii", frame.name, frame.side or "", frame.keypoints_2d)
    test = mpii_nzsl.open(wild_trees / "mpii_nzsl", "test").names()[0]
    (tmp_path / "det/mpii/manual_test").mkdir()
    (tmp_path / f"det/mpii/{test}_keypoints.json").write_text('{"people": []}')
    options = config(
        wild_trees, tmp_path / "store", panoptic="", stb="", masks="none", detections=str(tmp_path / "det")
    )
    manifest = prepare(options)
    rows = open_split(tmp_path / "store", "train").rows
    assert rows["detected"].tolist() == [True, True, False]
    difference = np.abs(rows["detections"][:2, :, :2] - rows["points"][:2]).max()
    print(f"detections against labels: max diff {difference:.3g} px")
    assert difference < 1e-3
    assert (rows["detections"][:2, :, 2] == np.float32(0.7)).all()
    problems = [item["problem"] for item in manifest["skipped"] if item["what"] == "detections"]
    assert len(problems) == 2
    assert any("no such keypoint file" in p for p in problems)
    assert any("holds no 'people'" in p for p in problems)
    assert manifest["splits"]["train"]["detections"] == 2


def test_detections_of_stored_heat_maps(wild_trees: Path, wild_store: Path, tmp_path: Path) -> None:
    rows = open_split(wild_store, "train").rows
    rows = rows[rows["source"] == SOURCES.index("mpii")]
    for row in rows:  # crops of right and left hands; the maps show right ones
        points = np.where(row["visible"][:, None], row["points"], 0)
        maps = gaussian_maps(points, 0.8 * row["visible"], 320).transpose(2, 0, 1)
        write_group(tmp_path / "det/mpii", row["name"].decode(), maps)
    (tmp_path / "det/mpii" / f"{rows['name'][1].decode()}_4.png").unlink()
    options = config(
        wild_trees, tmp_path / "store", panoptic="", stb="", masks="none", detections=str(tmp_path / "det")
    )
    manifest = prepare(options)
    made = open_split(tmp_path / "store", "train").rows
    assert made["detected"].tolist() == [True, False, True]
    for row in made[[0, 2]]:
        shown = row["visible"] & ((row["points"] > 10) & (row["points"] < 310)).all(-1)
        difference = np.abs(row["detections"][shown, :2] - row["points"][shown]).max()
        print(f"peaks against labels: max diff {difference:.3g} px")
        assert difference < 0.3
        assert (row["detections"][~row["visible"]] == 0).all()
    problems = [item["problem"] for item in manifest["skipped"] if item["what"] == "detections"]
    assert any("1 of 7 heat-map files are missing" in p for p in problems)
    assert len(problems) == 2  # and the test picture, which has none
    later = replace(options, out=str(tmp_path / "later"))
    prepare(replace(later, detections=""))
    prepare(replace(later, resume=True))
    assert open_split(tmp_path / "later", "train").rows.tobytes() == made.tobytes()


def test_a_store_cannot_be_a_file(wild_trees: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"taken: cannot be a folder \(File exists\)"):
        prepare(config(wild_trees, tmp_path / "taken", masks="none"))


def test_detection_files_that_are_refused(tmp_path: Path) -> None:
    for number, content in enumerate(["[]", '{"people": 3}', '{"people": [{"hand_right_keypoints_2d": [1, 2]}]}']):
        file = tmp_path / f"{number}.json"
        file.write_text(content)
        with pytest.raises(DataError, match="holds no 'people'"):
            read_detections(file, "right")


def test_left_hands_can_be_kept_for_other_programs(wild_trees: Path, tmp_path: Path) -> None:
    prepare(config(wild_trees, tmp_path / "store", panoptic="", masks="none", mirror=False))
    rows = open_split(tmp_path / "store", "train").rows
    left = rows["left"]
    assert left.sum() == 4 + 1  # all of STB, one of MPII's three
    frame = stb.open(wild_trees / "stb", "train")[0]
    assert frame.joints_mm is not None
    kept = row_of(tmp_path / "store", "train", frame.name)["joints_mm"]
    assert np.abs(kept - to_wild(frame.joints_mm, "stb")).max() < 1e-9


def test_refused_before_anything_is_written(wild_trees: Path, wild_store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set is named"):
        prepare(config(wild_trees, tmp_path / "a", panoptic="", mpii="", stb=""))
    with pytest.raises(DataError, match="--out is empty"):
        prepare(replace(config(wild_trees, tmp_path / "a"), out=""))
    with pytest.raises(DataError, match="--workers must be at least 1"):
        prepare(config(wild_trees, tmp_path / "a", workers=0))
    with pytest.raises(DataError, match="holds a store already"):
        prepare(config(wild_trees, wild_store))
    with pytest.raises(MissingFileError, match="no store to resume"):
        prepare(config(wild_trees, tmp_path / "a", resume=True))
    with pytest.raises(DataError, match="begun with other data sets"):
        prepare(config(wild_trees, wild_store, limit=1, resume=True))
    with pytest.raises(MissingFileError, match="--masks: no such folder"):
        prepare(config(wild_trees, tmp_path / "a", masks=str(tmp_path / "nowhere")))
    with pytest.raises(MissingFileError, match="--detections: no such folder"):
        prepare(config(wild_trees, tmp_path / "a", detections=str(tmp_path / "nowhere")))
    with pytest.raises(SystemExit):
        main(["--panoptik", "x"])
    assert not (tmp_path / "a").exists()


def test_limit_takes_pictures_from_all_over(wild_trees: Path, tmp_path: Path) -> None:
    manifest = prepare(config(wild_trees, tmp_path / "store", stb="", masks="none", limit=2))
    rows = open_split(tmp_path / "store", "train").rows
    assert [text(name) for name in rows["name"][:2]] == ["imgs/00000000", "imgs/00000002"]
    assert manifest["splits"]["train"]["pictures"] == 4


def test_damaged_stores_are_refused(wild_store: Path, tmp_path: Path) -> None:
    def copy() -> Path:
        root = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        (root / "test").mkdir(parents=True)
        shutil.copy(wild_store / "manifest.json", root)
        for file in (wild_store / "test").iterdir():
            shutil.copy(file, root / "test" / file.name)
        return root

    with pytest.raises(MissingFileError, match="no prepared store here"):
        open_split(tmp_path, "train")
    with pytest.raises(MissingFileError, match="has no split train"):
        open_split(copy(), "train")
    root = copy()
    (root / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not a readable manifest"):
        open_split(root, "test")
    (root / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="not a manifest of"):
        open_split(root, "test")
    root = copy()
    (root / "test/rows.npy").unlink()
    with pytest.raises(MissingFileError, match="a part of the store is missing"):
        open_split(root, "test")
    root = copy()
    data = (root / "test/pictures.npy").read_bytes()
    (root / "test/pictures.npy").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="damaged"):
        open_split(root, "test")
    root = copy()
    np.save(root / "test/masks.npy", np.zeros((1, 256, 32), np.uint8))
    with pytest.raises(DataError, match=r"expected \(1, 320, 40\) of uint8"):
        open_split(root, "test")
