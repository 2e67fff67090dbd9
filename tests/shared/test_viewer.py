"""The viewer: which files it reads how, what it shows, what it says; its page with a recorder and with viser itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import types
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared import camera, predictions, protocols, score, skeletons, viewer
from shared.errors import DataError, MissingFileError
from shared.viewer import GREY, Hands, Options


def hands(n: int = 7, joints: int = 21, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels in front of a camera on both sides of its axis, and predictions whose error grows with the frame, mm."""
    rng = np.random.default_rng(seed)
    gt = rng.normal(scale=40, size=(n, joints, 3)) + np.array([0, 0, 400])
    return gt, gt + rng.normal(size=gt.shape) * (1.0 + np.arange(n)[:, None, None])


def write(path: Path, values: np.ndarray) -> Path:
    predictions.write_predictions(path, values, decimals=9)
    return path


def as_file(joints: np.ndarray, form: str, protocol: protocols.Protocol) -> np.ndarray:
    if form == "uvd":
        return camera.xyz_to_uvd(joints, camera.intrinsics(*protocol.camera))
    return camera.flip_y(joints) if form == "xyz-y-up" else joints


# --- reading ---


@pytest.mark.parametrize(
    ("dataset", "forms"),
    [
        ("msra", ("xyz-y-up", "xyz-y-up")),
        ("msra", ("uvd", "xyz-y-up")),
        ("nyu", ("xyz-y-up", "uvd")),
        ("icvl", ("uvd", "xyz")),
        ("hands2017", ("xyz", "uvd")),
    ],
)
def test_axes_are_told_from_the_numbers(tmp_path: Path, dataset: str, forms: tuple[str, str]) -> None:
    protocol = protocols.get(dataset)
    gt, pred = hands(joints=len(skeletons.get(protocol.skeleton)))
    files = [write(tmp_path / n, as_file(v, f, protocol)) for n, v, f in zip("pg", (pred, gt), forms, strict=True)]
    found = viewer.load(dataset, *files)
    np.testing.assert_allclose(found.pred_mm, pred, atol=1e-5)
    np.testing.assert_allclose(found.gt_mm, gt, atol=1e-5)
    np.testing.assert_allclose(found.errors, np.linalg.norm(pred - gt, axis=-1), atol=1e-5)
    assert found.skeleton == protocol.skeleton
    assert all(form in found.title for form in forms)


def test_format_overrides_the_guess(tmp_path: Path) -> None:
    gt, pred = (values + np.array([500, 500, 0]) for values in hands())  # all positive: would be taken for pixels
    files = [write(tmp_path / n, v) for n, v in (("p", pred), ("g", gt))]
    assert not np.allclose(viewer.load("msra", *files).gt_mm, gt, atol=1)
    np.testing.assert_allclose(viewer.load("msra", *files, form="xyz").gt_mm, gt, atol=1e-5)
    np.testing.assert_allclose(viewer.load("msra", *files, form="xyz-y-up").gt_mm, camera.flip_y(gt), atol=1e-5)


def test_metres_of_itop_become_millimetres(tmp_path: Path) -> None:
    gt, pred = (values * 10 for values in hands(joints=15))
    files = [write(tmp_path / n, camera.flip_y(v) / 1000) for n, v in (("p", pred), ("g", gt))]
    np.testing.assert_allclose(viewer.load("itop", *files).gt_mm, gt, atol=1e-4)
    files = [write(tmp_path / n, camera.flip_y(v)) for n, v in (("p", pred), ("g", gt))]
    np.testing.assert_allclose(viewer.load("itop", *files).gt_mm, gt, atol=1e-4)


def test_errors_are_those_of_the_score_program(tmp_path: Path) -> None:
    """Also after an alignment, and the skeletons shown are then the aligned ones."""
    gt, pred = hands()
    for dataset in ("msra", "stb-auc0-50"):
        files = [write(tmp_path / n, v) for n, v in (("p", pred), ("g", gt))]
        options = score.Options(dataset, str(files[1]), "xyz", "xyz", predictions=[str(files[0])])
        _, results = score.score_files(options)
        found = viewer.load(dataset, *files, form="xyz")
        np.testing.assert_allclose(found.errors, results[0].errors, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(found.pred_mm - found.gt_mm, axis=-1), found.errors, atol=1e-9)
    assert np.abs(found.gt_mm[:, 0]).max() == 0  # root-relative
    assert "root-relative" in found.title


def test_missing_labels(tmp_path: Path) -> None:
    gt, pred = hands(joints=5)
    gt[2, 1], gt[4] = np.nan, np.nan
    np.savetxt(tmp_path / "g", gt.reshape(7, -1))
    found = viewer.load("dexter-object", write(tmp_path / "p", pred), tmp_path / "g")
    assert np.isnan(found.errors[4]).all()
    assert np.isnan(found.errors[2]).sum() == 1
    assert "no label" in found.readout(2)
    assert "not (wholly) labelled" in found.readout(4)
    assert 4 not in found.picks().values()
    _, _, points, colors = viewer.segments(found.gt_mm[2], "fingertips", GREY)
    assert len(points) == len(colors) == 4

    gt[:] = np.nan
    np.savetxt(tmp_path / "g", gt.reshape(7, -1))
    with pytest.raises(DataError, match=r"no joint has a label -- give the labels of a split that has some"):
        viewer.load("dexter-object", tmp_path / "p", tmp_path / "g")


def test_a_partly_labelled_hand_is_not_aligned(tmp_path: Path) -> None:
    gt, pred = hands()
    gt[3, 5] = np.nan
    np.savetxt(tmp_path / "g", gt.reshape(7, -1))
    found = viewer.load("stb-auc0-50", write(tmp_path / "p", pred), tmp_path / "g")
    assert np.isnan(found.errors).all(1).tolist() == [False] * 3 + [True] + [False] * 3
    assert np.isfinite(found.pred_mm[3]).all()


def test_dexycb_and_mesh_files(tmp_path: Path) -> None:
    gt, pred = hands()
    gt[1] = -1  # DexYCB's mark for no label
    predictions.write_dexycb(tmp_path / "g", range(7), gt)
    predictions.write_dexycb(tmp_path / "p", range(7), pred)
    found = viewer.load("dexycb", tmp_path / "p", tmp_path / "g")
    np.testing.assert_allclose(found.gt_mm[2:], gt[2:], atol=1e-4)
    assert np.isnan(found.errors[1]).all()
    predictions.write_dexycb(tmp_path / "p", range(1, 8), pred)
    with pytest.raises(DataError, match=r"its 7 frames are not the 7 of"):
        viewer.load("dexycb", tmp_path / "p", tmp_path / "g")

    gt, pred = hands()
    opengl = np.array([1, -1, -1]) / 1000
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps((gt * opengl).tolist()))
    (tmp_path / "pred.json").write_text(json.dumps([(pred * opengl).tolist(), np.zeros((7, 778, 3)).tolist()]))
    for labels in (tmp_path, tmp_path / "evaluation_xyz.json"):
        found = viewer.load("ho3d", tmp_path / "pred.json", labels)
        np.testing.assert_allclose(found.pred_mm, pred, atol=1e-6)
        np.testing.assert_allclose(found.gt_mm, gt, atol=1e-6)


def test_eval_folder(tmp_path: Path) -> None:
    """World axes whatever the numbers look like, with the data set's name from metrics.json."""
    gt, pred = (values + np.array([500, -500, 0]) for values in hands(joints=15))
    (tmp_path / "metrics.json").write_text('{"dataset": "itop-front"}')
    write(tmp_path / "test_res.txt", camera.flip_y(pred))
    write(tmp_path / "test_gt.txt", camera.flip_y(gt))
    found = viewer.load_options(Options(eval=tmp_path))
    np.testing.assert_allclose(found.gt_mm, gt, atol=1e-5)
    (tmp_path / "test_res.txt").rename(tmp_path / "fit_res.txt")
    assert viewer.load_eval(tmp_path).skeleton == "itop"
    write(tmp_path / "train_gt.txt", gt)
    with pytest.raises(DataError, match=r"one \*_gt\.txt, found 1 and 2 -- give --dataset"):
        viewer.load_eval(tmp_path)


# --- messages ---


def test_messages(tmp_path: Path) -> None:
    gt, pred = hands()
    p, g = write(tmp_path / "p", pred), write(tmp_path / "g", gt)
    for options, message in [
        (Options(), r"--dataset, --predictions, --ground-truth not given -- name the files, or --eval FOLDER"),
        (Options("msra", p), r"--ground-truth not given"),
        (Options("msra", p, g, eval=tmp_path), r"--eval names everything by itself"),
        (Options(eval=tmp_path, format="xyz"), r"--eval names everything by itself"),
        (Options("msra", p, g, frame=7), r"--frame 7 is not one of the frames 0 to 6"),
        (Options("msra", p, g, port=0), r"--port must be in 1 to 65535, got 0"),
        (Options("nobody", p, g), r"no protocol is called 'nobody'"),
        (Options("mpii-nzsl-2d", p, g), r"has no 3-D joints to show -- choose another data set"),
        (Options("stb-auc0-50", p, g, format="uvd"), r"has no camera to convert u v d with -- use --format xyz"),
        (Options("msra", write(tmp_path / "short", pred[:5]), g), r"short: 5 rows, but the labels .*g have 7"),
    ]:
        with pytest.raises(DataError, match=message):
            viewer.load_options(options)
    with pytest.raises(MissingFileError, match=r"metrics\.json: this is no folder of an evaluation -- name the folder"):
        viewer.load_options(Options(eval=tmp_path))
    for content in ("{}", "[1]", "{"):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(DataError, match=r"metrics\.json: it names no data set"):
            viewer.load_options(Options(eval=tmp_path))


def test_viser_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(DataError, match=r"the viewer needs viser .* pip install -r requirements/viewer.txt"):
        viewer.serve(example(), Options())


def test_command_line_ends_with_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "shared.viewer", "--eval", str(tmp_path / "none")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


# --- what is shown ---


def example() -> Hands:
    """Seven frames whose error is not in order: best 2, median 5, worst 0."""
    gt, _ = hands()
    size = np.array([9.0, 1, 0.5, 8, 2, 5, 7])
    pred = gt + np.array([1.0, 0, 0]) * size[:, None, None]
    return Hands("a title", "msra", pred, gt, np.repeat(size[:, None], 21, 1))


def test_picks_and_readout() -> None:
    shown = example()
    assert shown.picks() == {"best": 2, "median": 5, "worst": 0}
    text = shown.readout(5)
    assert "**Frame 5**: mean error **5.00 mm**" in text
    assert "rank 4 of 7" in text
    assert f"mean of all frames {np.mean([9.0, 1, 0.5, 8, 2, 5, 7]):.2f} mm" in text
    assert text.count("\n|") == 21 + 2
    assert "| thumb_tip | 5.00 |" in text


def test_segments() -> None:
    skeleton = skeletons.get("msra")
    joints = np.arange(63.0).reshape(21, 3)
    lines, line_colors, points, point_colors = viewer.segments(joints, "msra", None)
    assert lines.shape == line_colors.shape == (20, 2, 3)
    tip = next(i for i, edge in enumerate(skeleton.edges) if edge[1] == skeleton.index("thumb_tip"))
    np.testing.assert_array_equal(lines[tip], joints[[19, 20]])
    assert line_colors[tip].tolist() == [list(skeleton.colors[20])] * 2
    assert point_colors.tolist() == [list(c) for c in skeleton.colors]
    np.testing.assert_array_equal(points, joints)
    joints[20] = np.nan
    lines, line_colors, points, _ = viewer.segments(joints, "msra", GREY)
    assert len(lines) == 19
    assert len(points) == 20
    assert np.unique(line_colors).tolist() == [150]
    assert viewer.segments(joints[:5], "fingertips", GREY)[0].shape == (0, 2, 3)


# --- the page ---


class Handle:
    """A control that remembers what is done to it; a new value calls back, as in viser."""

    def __init__(self, value: object = None) -> None:
        self.__dict__.update(_value=value, callbacks=[], content="")

    @property
    def value(self) -> object:
        return self._value

    @value.setter
    def value(self, value: object) -> None:
        self.__dict__["_value"] = value
        self.fire()

    def on_update(self, callback) -> None:
        self.callbacks.append(callback)

    on_click = on_update

    def fire(self, value: object = None) -> None:
        for callback in self.callbacks:
            callback(types.SimpleNamespace(target=types.SimpleNamespace(value=value)))


class Recorder:
    """A stand-in for viser.ViserServer with the parts that the viewer uses."""

    def __init__(self, **options: object) -> None:
        self.options, self.drawn, self.controls = options, {}, {}
        self.gui = self.scene = self
        self.initial_camera = types.SimpleNamespace()
        self.theme: dict[str, object] = {}

    def atomic(self):
        import contextlib

        return contextlib.nullcontext()

    def configure_theme(self, **options: object) -> None:
        self.theme = options

    def set_up_direction(self, direction: str) -> None:
        self.up = direction

    def add_markdown(self, content: str) -> Handle:
        self.controls["text" if not content else "title"] = handle = Handle()
        handle.content = content
        return handle

    def add_slider(self, name: str, low: int, high: int, step: int, start: int) -> Handle:
        assert (low, step) == (0, 1)
        assert low <= start <= high
        return self.controls.setdefault(name, Handle(start))

    def add_checkbox(self, name: str, value: bool) -> Handle:
        return self.controls.setdefault(name, Handle(value))

    def add_button_group(self, name: str, options: tuple[str, ...]) -> Handle:
        return self.controls.setdefault(name, Handle(options))

    def add_line_segments(self, name: str, points: np.ndarray, colors: np.ndarray, **options: object) -> None:
        assert points.shape == colors.shape
        self.drawn[name] = (points, options["visible"])

    def add_point_cloud(self, name: str, points: np.ndarray, colors: np.ndarray, **options: object) -> None:
        assert points.shape == colors.shape
        self.drawn[name] = (points, options["visible"])

    def remove_by_name(self, name: str) -> None:
        self.drawn.pop(name, None)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", types.SimpleNamespace(ViserServer=Recorder))


@pytest.mark.usefixtures("recorder")
def test_controls_change_what_is_drawn() -> None:
    shown = example()
    page = viewer.serve(shown, Options(port=1234))
    assert page.options["host"] == "127.0.0.1"
    assert page.options["port"] == 1234
    assert page.up == "-y"  # the camera's y points down
    assert page.controls["title"].content.startswith("a title; 7 frames")
    assert page.controls["frame"].value == 5  # the median
    assert page.theme["show_share_button"] is False
    assert page.request_share_url() is None

    def apart() -> np.ndarray:  # mm from labels to predictions on the page
        return 100 * (page.drawn["/prediction/joints"][0] - page.drawn["/ground truth/joints"][0])

    np.testing.assert_allclose(apart(), np.tile([5.0, 0, 0], (21, 1)), atol=1e-9)
    page.controls["go to"].fire("worst")
    assert page.controls["frame"].value == 0
    np.testing.assert_allclose(apart()[:, 0], 9)
    assert "**Frame 0**" in page.controls["text"].content
    page.controls["frame"].value = 2
    np.testing.assert_allclose(apart()[:, 0], 0.5)
    middle = np.concatenate([page.drawn[f"/{n}/joints"][0] for n in ("prediction", "ground truth")]).mean(0)
    np.testing.assert_allclose(middle, 0, atol=1e-9)
    page.controls["prediction"].value = False
    seen = {name: visible for name, (_, visible) in page.drawn.items()}
    assert seen == {
        "/prediction/bones": False,
        "/prediction/joints": False,
        "/ground truth/bones": True,
        "/ground truth/joints": True,
    }


@pytest.mark.usefixtures("recorder")
def test_frame_option_single_frames_and_gaps() -> None:
    shown = example()
    assert viewer.serve(shown, Options(frame=3)).controls["frame"].value == 3
    single = replace(shown, pred_mm=shown.pred_mm[:1], gt_mm=shown.gt_mm[:1], errors=shown.errors[:1])
    page = viewer.serve(single, Options())
    page.controls["frame"].value = 1  # a slider needs two ends
    assert "**Frame 0**" in page.controls["text"].content
    shown.gt_mm[4] = np.nan
    shown.errors[4] = np.nan
    page = viewer.serve(shown, Options())
    assert "/ground truth/joints" in page.drawn
    page.controls["frame"].value = 4  # nothing of the frame before may stay
    assert set(page.drawn) == {"/prediction/bones", "/prediction/joints"}


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuses every connection and name but loopback's; the list it returns fills with what was asked for."""
    asked: list[object] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo
    local = ("127.0.0.1", "::1", "localhost", None)

    def refuse(what: object) -> None:
        asked.append(what)
        raise OSError("no network in this test")

    def watched(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in local:
            refuse(address)
        connect(self, address)

    def resolved(host: object, *rest: object, **more: object) -> object:
        if (host.decode() if isinstance(host, bytes) else host) not in local:
            refuse(host)
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return asked


def test_the_real_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """viser serves it on loopback and calls nobody else; also when somebody asks for its public tunnel."""
    pytest.importorskip("viser", reason="viser is not installed (requirements/viewer.txt)")
    asked = forbid_network(monkeypatch)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = viewer.serve(example(), Options(port=port))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=20) as answer:
            assert answer.status == 200
            assert b"<html" in answer.read().lower()
        server.request_share_url()
        assert "Share URL" not in capsys.readouterr().out  # the tunnel would be another process
        assert not asked
    finally:
        server.stop()
