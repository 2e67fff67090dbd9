"""The synthetic set: the original's numbers, the same files whatever the processes, resuming, colours, backgrounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hand3d_wild.backgrounds import list_pictures, load_background, procedural_background
from hand3d_wild.colors import load_colors, nearest_colors, procedural_skin, read_obj, vertex_normals
from hand3d_wild.decoder import Decoder
from hand3d_wild.synthesize import EXTENT, SIZE, Draw, Painter, draw, main, place_hand, read_manifest, synthesize
from hand3d_wild.synthesize_config import SynthesizeConfig
from shared.errors import DataError, MissingFileError
from shared.mano import load_mano
from tests.hand3d_wild.conftest import kill_a_worker
from tests.hand3d_wild.golden_files import arrays, golden_hand, max_diff

ROOT = Path(__file__).parents[2]
KINEMATIC = [0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19]  # of the order "wild", the 16 joints without tips


def options(folder: Path, **changes: Any) -> SynthesizeConfig:
    return SynthesizeConfig(**{"out": str(folder), "mano": "standin", "train": 5, "test": 2, "workers": 1, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    assert synthesize(options(out)) == {"train": 5, "test": 2}
    return out


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", range(4))
def test_golden_numbers(sample: int) -> None:
    gold = arrays("synth")
    decoder = Decoder(golden_hand(), torch.float64)
    pose, betas, rot = (gold[name][sample] for name in ("pose", "betas", "rot"))
    numbers = Draw(pose, betas, rot, float(gold["extent_factor"][sample]), np.zeros(2), np.random.default_rng(0))
    low = place_hand(decoder, numbers)
    high = place_hand(decoder, numbers._replace(place=np.ones(2)))
    trans = gold["trans"][sample]
    share = (trans - low.params[1:3]) / (high.params[1:3] - low.params[1:3])
    assert ((share >= 0) & (share <= 1)).all()  # the reference's place is one of ours
    placed = place_hand(decoder, numbers._replace(place=share))
    assert max_diff("scale", placed.params[0], gold["scale"][sample]) < 1e-5
    assert max_diff("joints", placed.joints_2d[KINEMATIC].ravel(), gold["joints32"][sample]) < 1e-5
    assert max_diff("verts", placed.verts_uvz, gold["verts_uvz"][sample]) < 1e-4  # stored as float32
    assert max_diff("numbers", np.concatenate(([1], placed.params)), gold["gt"][sample]) < 1e-5
    for place, edge in ((low, 0), (high, SIZE - 1)):
        extreme = place.verts_uvz[:, :2].min(0) if edge == 0 else place.verts_uvz[:, :2].max(0)
        assert np.allclose(extreme, edge, atol=1e-6)


def test_distributions() -> None:
    drawn = [draw(0, i) for i in range(4000)]
    pose, betas = np.stack([d.pose for d in drawn]), np.stack([d.betas for d in drawn])
    rot = np.stack([d.rot for d in drawn])
    angle = np.linalg.norm(rot, axis=1)
    assert 1.99 < np.abs(pose).max() <= 2
    assert 0.0299 < np.abs(betas).max() <= 0.03
    assert pose.std() == pytest.approx(2 / 3**0.5, rel=0.02)
    assert angle.max() <= np.pi
    assert angle.mean() == pytest.approx(np.pi / 2, rel=0.05)  # uniform, not the debugging line's constant pi / 2
    assert angle.std() == pytest.approx(np.pi / 12**0.5, rel=0.05)
    axis = np.abs(rot / angle[:, None])
    assert np.allclose(np.bincount(axis.argmax(1), minlength=3) / 4000, 1 / 3, atol=0.03)
    assert (axis.max(1) > 0.577).all()  # one component was 1 before the axis was normalised
    factor = np.array([d.factor for d in drawn])
    assert (factor.min(), factor.max()) == pytest.approx(EXTENT, abs=0.01)
    same, other = draw(0, 3), draw(1, 3)
    assert np.array_equal(same.pose, drawn[3].pose)
    assert not np.array_equal(other.pose, drawn[3].pose)
    wide = draw(0, 3, pose_range=4.0, shape_range=0.3)
    assert np.allclose(wide.pose, 2 * drawn[3].pose)
    assert np.allclose(wide.betas, 10 * drawn[3].betas)


def test_hands_that_face_the_camera_near_the_middle() -> None:
    """Palm towards the camera (its normal along -z), fingers up, each turned by less than the three angles together."""
    decoder = Decoder(load_mano("standin"), torch.float64)
    drawn = [draw(0, i, facing=20, spread=0.1) for i in range(200)]
    vector = torch.zeros(200, 22, dtype=torch.float64)
    vector[:, 3:6] = torch.from_numpy(np.stack([d.rot for d in drawn]))
    joints = decoder(vector).joints_m.numpy()  # wrist, index, middle, pinky, ring, thumb
    fingers, across = joints[:, 5] - joints[:, 0], joints[:, 1] - joints[:, 9]
    palm = np.cross(across, fingers)
    for direction, axis in ((fingers, [0, -1, 0]), (palm, [0, 0, -1])):
        angle = np.rad2deg(np.arccos((direction / np.linalg.norm(direction, axis=1)[:, None]) @ axis))
        print(f"away from facing the camera: {angle.mean():.1f} degrees on average, {angle.max():.1f} at most")
        assert angle.max() < 45
        assert angle.std() > 3
    places = np.stack([d.place for d in drawn])
    assert 0.45 <= places.min() < 0.46
    assert 0.54 < places.max() <= 0.55
    for name, value in (("facing", -1.0), ("spread", 1.5), ("spread", float("nan"))):
        with pytest.raises(DataError, match=f"--{name} must"):
            synthesize(SynthesizeConfig(out="unused", mano="standin", **{name: value}))  # type: ignore[arg-type]


def test_numbers_describe_the_pictures(made: Path) -> None:
    numbers = np.load(made / "train/numbers.npz")
    decoder = Decoder(load_mano("standin"), torch.float64)
    for i in range(5):
        hand = decoder(torch.from_numpy(numbers["params"][i])[None])
        assert max_diff("joints, px", hand.joints_2d[0], numbers["joints_2d"][i]) < 1e-9
        assert max_diff("joints, m", hand.joints_m[0], numbers["joints_m"][i]) < 1e-12
        mask = np.asarray(Image.open(made / f"train/masks/{i:06d}.png"))
        assert mask.shape == (SIZE, SIZE)
        rows, columns = np.nonzero(mask)
        verts = hand.verts_2d[0].numpy()
        for pixels, axis in ((columns, 0), (rows, 1)):
            assert 0 <= pixels.min() - verts[:, axis].min() < 2
            assert 0 <= verts[:, axis].max() - pixels.max() < 2
        extent = np.ptp(verts, axis=0).max() / SIZE
        assert 1 / EXTENT[1] - 1e-9 <= extent <= 1 / EXTENT[0] + 1e-9
    assert numbers["index"].tolist() == [0, 1, 2, 3, 4]
    assert np.load(made / "test/numbers.npz")["index"].tolist() == [5, 6]


# --- files ------------------------------------------------------------------------------------------------------------


def test_layout_and_manifest(made: Path) -> None:
    names = set(contents(made))
    expected = {"manifest.json", "train/numbers.npz", "test/numbers.npz"}
    for split, count in (("train", 5), ("test", 2)):
        expected |= {f"{split}/{kind}/{i:06d}.png" for i in range(count) for kind in ("images", "masks")}
    assert names == expected
    manifest = read_manifest(made)
    assert manifest["complete"] is True
    assert manifest["options"]["seed"] == 0
    assert manifest["mano"]["source"] == "standin"
    picture = np.asarray(Image.open(made / "train/images/000000.png"))
    assert picture.shape == (SIZE, SIZE, 3)
    assert not np.array_equal(picture, np.asarray(Image.open(made / "train/images/000001.png")))


def test_background_outside_and_colours_inside(made: Path) -> None:
    painter = Painter(options(made))
    drawn, placed = painter.numbers(2)
    picture, mask = painter.paint(2, drawn, placed)
    assert np.array_equal(picture, np.asarray(Image.open(made / "train/images/000002.png")))
    assert np.array_equal(mask, np.asarray(Image.open(made / "train/masks/000002.png")) > 0)
    assert 0.02 < mask.mean() < 0.2
    painter.colors = np.ones((1, 778, 3), np.float32)
    drawn, placed = painter.numbers(2)
    white, _ = painter.paint(2, drawn, placed)
    assert (white[mask] == 255).all()
    assert white[~mask].std() > 10


@pytest.mark.slow
def test_files_do_not_depend_on_the_processes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hand3d_wild.synthesize._PART", 3)  # three parts: both processes have work
    synthesize(options(tmp_path / "two", workers=2))
    assert contents(tmp_path / "two") == contents(made)


def test_a_picture_depends_on_its_index_alone(made: Path, tmp_path: Path) -> None:
    """Threads, the order of the work and the size of the set change nothing; another seed does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        synthesize(options(tmp_path / "more", train=3, test=4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    synthesize(options(tmp_path / "seed", train=1, test=0, seed=1))
    mine, more, seed = contents(made), contents(tmp_path / "more"), contents(tmp_path / "seed")
    assert mine["train/images/000002.png"] == more["train/images/000002.png"]
    assert mine["train/images/000003.png"] == more["test/images/000000.png"]
    assert mine["test/masks/000001.png"] == more["test/masks/000003.png"]
    assert mine["train/images/000000.png"] != seed["train/images/000000.png"]


def test_resume_after_an_interruption(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    painted: list[int] = []
    real = Painter.paint

    def paint(self: Painter, index: int, *rest: Any) -> Any:
        if len(painted) == 3:
            raise KeyboardInterrupt
        painted.append(index)
        return real(self, index, *rest)

    monkeypatch.setattr(Painter, "paint", paint)
    with pytest.raises(KeyboardInterrupt):
        synthesize(options(out))
    assert read_manifest(out)["complete"] is False
    with pytest.raises(DataError, match=r"holds a set already.*--resume"):
        synthesize(options(out))
    torn = out / "train/images/000001.png"
    torn.write_bytes(torn.read_bytes()[:-20])  # as after a power failure
    (out / "train/masks/000000.png").write_bytes(b"")
    again: list[int] = []

    def count(self: Painter, index: int, *rest: Any) -> Any:
        again.append(index)
        return real(self, index, *rest)

    monkeypatch.setattr(Painter, "paint", count)
    synthesize(options(out, resume=True))
    assert painted == [0, 1, 2]
    assert again == [0, 1, 3, 4, 5, 6]
    assert contents(out) == contents(made)


def test_pictures_of_an_unknown_set_are_not_kept(tmp_path: Path) -> None:
    out = tmp_path / "set"
    synthesize(options(out, train=1, test=1))
    (out / "manifest.json").unlink()
    before = contents(out)
    for resume in (False, True):
        with pytest.raises(DataError, match=r"pictures of an unknown set .* -- empty it, or give another --out"):
            synthesize(options(out, train=1, test=1, seed=7, resume=resume))
    assert contents(out) == before


def test_a_killed_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hand3d_wild.synthesize._PART", 1)
    killer = kill_a_worker()
    with pytest.raises(DataError, match=r"a worker was killed \(out of memory\?\) -- go on with --resume"):
        synthesize(options(tmp_path / "set", workers=2))
    killer.join()
    assert synthesize(options(tmp_path / "set", resume=True)) == {"train": 5, "test": 2}


def test_other_options_do_not_continue_a_set(made: Path) -> None:
    for changes, named in (({"seed": 4}, "seed"), ({"train": 6}, "train"), ({"pose_range": 1.0}, "pose_range")):
        with pytest.raises(DataError, match=f"with other options: {named}"):
            synthesize(options(made, resume=True, **changes))
    before = contents(made)
    synthesize(options(made, resume=True, workers=3))  # another number of processes is no other set
    assert contents(made) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "--out names no folder"),
        ({"mano": ""}, "--mano names no hand model.*--mano standin"),
        ({"scans": "scans"}, "--scans needs the registered meshes"),
        ({"train": 0}, "--train must be at least 1"),
        ({"test": -1}, "--test at least 0, got 5 and -1"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"seed": -1}, "--seed must not be negative, got -1"),
        ({"pose_range": -1.0}, "--pose_range must not be negative, got -1.0"),
        ({"shape_range": float("nan")}, "--shape_range must not be negative, got nan"),
    ],
)
def test_bad_options(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        synthesize(options(tmp_path / "set", **changes))
    assert not (tmp_path / "set").exists()


def test_bad_folders_are_found_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for changes, message in (
        ({"mano": str(tmp_path / "MANO_RIGHT.pkl")}, "expected a MANO model"),
        ({"meshes": str(tmp_path / "empty")}, r"no \.obj file here"),
        ({"backgrounds": str(tmp_path / "empty")}, "no picture here"),
    ):
        with pytest.raises(MissingFileError, match=message):
            synthesize(options(tmp_path / "set", **changes))
    assert not (tmp_path / "set").exists()


def test_bad_manifests(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no synthetic set here"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not a readable manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "handpose/hand3d_wild/store", "version": 1}))
    with pytest.raises(DataError, match="not a manifest of handpose/hand3d_wild/synthetic"):
        read_manifest(tmp_path)
    half = {"format": "handpose/hand3d_wild/synthetic", "version": 1, "complete": True, "mano": {"source": "standin"}}
    (tmp_path / "manifest.json").write_text(json.dumps(half | {"options": {"train": "3"}}))
    with pytest.raises(DataError, match="its options or its hand model are missing"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/train/images: cannot be a folder"):
        synthesize(options(tmp_path / "file"))


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    words = ["--out", str(out), "--mano", "standin", "--train", "1", "--test", "1", "--workers", "1"]
    assert main(words) == 0
    assert "1 pictures for training, 1 for testing" in capsys.readouterr().out
    result = subprocess.run(
        [sys.executable, "-m", "hand3d_wild.synthesize", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {out}: this folder holds a set already")


# --- colours ----------------------------------------------------------------------------------------------------------


def write_obj(path: Path, verts: Any, colors: Any = None, faces: Any = ()) -> None:
    rows = verts if colors is None else np.concatenate((verts, colors), 1)
    lines = ["v " + " ".join(f"{x:.6f}" for x in row) for row in np.asarray(rows)]
    lines += [f"f {a + 1} {b + 1}//7 {c + 1}" for a, b, c in faces]
    path.write_text("# a comment\n" + "\n".join(lines) + "\n")


def test_scans_colour_registered_meshes(tmp_path: Path) -> None:
    hand, rng = load_mano("standin"), np.random.default_rng(0)
    for name in ("meshes", "scans", "coloured"):
        (tmp_path / name).mkdir()
    expected = []
    for k in (4, 10, 1):
        registered = hand.v_template + rng.normal(0, 1e-3, (778, 3))
        scan = registered[rng.integers(0, 778, 3000)] + rng.normal(0, 2e-3, (3000, 3))
        colors = rng.uniform(0, 1, (3000, 3))
        write_obj(tmp_path / f"meshes/{k:02d}_01r.obj", registered, faces=hand.faces)
        write_obj(tmp_path / f"scans/{k:02d}_01r.obj", scan, colors)
        nearest = np.linalg.norm(registered[:, None] - scan[None], axis=-1).argmin(1)
        write_obj(tmp_path / f"coloured/{k}.obj", registered, colors[nearest], hand.faces)
        expected.append(colors[nearest])
    found = load_colors(tmp_path / "meshes", hand, tmp_path / "scans")
    in_order = [expected[2], expected[0], expected[1]]  # 1, 4, 10
    assert found.shape == (3, 778, 3)
    assert (np.abs(found - np.stack(in_order)).max(-1) < 1e-5).mean() > 0.999  # a rounded digit may change a neighbour
    assert np.allclose(load_colors(tmp_path / "coloured", hand), np.stack(in_order), atol=1e-5)
    with pytest.raises(DataError, match=r"01_01r\.obj: its vertices have no colours.*--scans"):
        load_colors(tmp_path / "meshes", hand)
    with pytest.raises(DataError, match=r"no colours.*raw scans with 'v x y z r g b'"):
        load_colors(tmp_path / "meshes", hand, tmp_path / "meshes")
    (tmp_path / "scans/04_01r.obj").unlink()
    with pytest.raises(MissingFileError, match=r"04_01r\.obj: no such mesh"):
        load_colors(tmp_path / "meshes", hand, tmp_path / "scans")
    with pytest.raises(DataError, match=r"topology of .*standin_right\.npz"):
        load_colors(tmp_path / "coloured", golden_hand())
    set_ = options(tmp_path / "set", train=2, test=0, meshes=str(tmp_path / "coloured"))
    synthesize(set_)
    picture = np.asarray(Image.open(tmp_path / "set/train/images/000000.png"))
    mask = np.asarray(Image.open(tmp_path / "set/train/masks/000000.png"))
    assert picture[mask].std() > 40  # random colours, not skin


def test_nearest_colours_of_a_grid() -> None:
    scan = np.stack(np.meshgrid(*(np.arange(4.0),) * 3), -1).reshape(-1, 3)
    colors = (scan / 3).astype(np.float32)
    points = np.random.default_rng(0).uniform(-0.4, 3.4, (200, 3))
    assert np.allclose(nearest_colors(points, scan, colors), np.round(points).clip(0, 3) / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v 0 0 0 1 1\n", "'v x y z r g b'"),
        ("v 0 0 nan\n", "finite numbers"),
        ("v 0 0 0\nv 0 0 0 1 1 1\n", "its lines are not a mesh's"),
        ("v 0 0 x\n", "its lines are not a mesh's"),
        ("v 0 0 0\nf 1 1\n", "its lines are not a mesh's"),
        ("v 0 0 0 200 100 3\n", "colours must lie in 0..1, got 3 to 200.*divide them by 255"),
        ("hello\n", "expected lines"),
    ],
)
def test_bad_meshes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.obj").write_text(text)
    with pytest.raises(DataError, match=message):
        read_obj(tmp_path / "x.obj")


def test_procedural_skin_is_skin() -> None:
    hand = load_mano("standin")
    normals = vertex_normals(hand.v_template, hand.faces)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    outwards = ((hand.v_template - hand.v_template.mean(0)) * normals).sum(1)
    assert (outwards > 0).mean() > 0.6
    skins = np.stack([procedural_skin(hand, normals, np.random.default_rng(k)) for k in range(60)])
    assert skins.min() >= 0
    assert skins.max() <= 1
    assert (skins[..., 0].mean(1) > skins[..., 2].mean(1)).all()  # more red than blue
    assert skins.mean((1, 2)).std() > 0.05  # people differ
    assert skins.std(1).mean() > 0.03  # and a hand is not one colour
    palm, back = normals[:, 1] < -0.7, normals[:, 1] > 0.7
    assert skins[:, palm].mean() > skins[:, back].mean()


# --- backgrounds ------------------------------------------------------------------------------------------------------


def test_backgrounds_of_a_folder_take_turns(tmp_path: Path) -> None:
    folder = tmp_path / "rooms"
    folder.mkdir()
    for k, color in ((2, (200, 0, 0)), (10, (0, 200, 0))):
        Image.new("RGB", (90, 40 * k), color).save(folder / f"{k}.png")
    (folder / "notes.txt").write_text("no picture")
    assert [p.name for p in list_pictures(folder)] == ["2.png", "10.png"]
    assert load_background(folder / "2.png", SIZE).shape == (SIZE, SIZE, 3)
    synthesize(options(tmp_path / "set", train=3, test=1, backgrounds=str(folder)))
    for i, channel in ((0, 0), (1, 1), (2, 0)):
        picture = np.asarray(Image.open(tmp_path / f"set/train/images/{i:06d}.png"))
        mask = np.asarray(Image.open(tmp_path / f"set/train/masks/{i:06d}.png"))
        assert (picture[~mask] == 200 * np.eye(3)[channel]).all()
    (folder / "3.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"3\.jpg: cannot be read as a picture.*remove it"):
        list_pictures(folder)
    Image.effect_noise((200, 200), 50).save(folder / "4.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:2000])  # its head can be read
    with pytest.raises(DataError, match=r"4\.png: cannot be read as a picture"):
        load_background(folder / "4.png", SIZE)


def test_backgrounds_of_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png: cannot be read as a picture \(expected 8 bits, its mode is I;16\)"):
        list_pictures(tmp_path)


def test_procedural_backgrounds_differ_and_repeat() -> None:
    first, again, other = (procedural_background(np.random.default_rng(k)) for k in (0, 0, 1))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 10
    assert first.std() > 10
