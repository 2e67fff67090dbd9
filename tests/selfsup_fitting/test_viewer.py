"""The viewer: what it draws and measures, its files and messages, its page with viser, and in a real browser."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup_fitting import viewer, viewer_scene
from selfsup_fitting.hand import load_hand
from selfsup_fitting.kinematics import forward_kinematics, pose_spheres, skin
from selfsup_fitting.priors import PoseVAE, load_prior, save_prior
from selfsup_fitting.render import mesh_depth, sphere_depth
from selfsup_fitting.sampler import USUAL_RANGES, sample_poses
from selfsup_fitting.spheres import POSE_NAMES
from selfsup_fitting.viewer_config import ViewerConfig
from selfsup_fitting.viewer_scene import PRESETS, HandScene, read_crop, read_pose, slider_range, unusual
from shared.errors import DataError, MissingFileError


@pytest.fixture
def scene() -> HandScene:
    return HandScene(load_hand("standin"))


def preset(name: str) -> np.ndarray:
    return np.array(PRESETS[name])


# --- the scene ---


def test_pictures_are_the_librarys(scene: HandScene) -> None:
    hand = scene.hand
    poses = sample_poses(10, torch.Generator().manual_seed(0))
    transforms = forward_kinematics(poses, hand, torch.full((10, 3), 0.9))
    ball = sphere_depth(pose_spheres(transforms, hand), torch.from_numpy(hand.sphere_radius_mm).float())
    mesh = mesh_depth(skin(transforms, hand), torch.from_numpy(hand.faces))
    worst = 0.0
    for pose, a, b in zip(poses, ball, mesh, strict=True):
        view = scene.look(pose.numpy())
        worst = max(worst, np.abs(view.sphere_mm - a.numpy()).max())
        flips = (np.abs(view.mesh_mm - b.numpy()) > 1e-3).mean()  # a rounding may flip a sample on a silhouette
        assert flips < 0.002
        shown = scene.pictures(view)
        assert list(shown) == ["spheres", "mesh", "spheres - mesh"]
        assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in shown.values())
    print(f"viewer spheres max diff {worst:.3g} mm")
    assert worst < 0.05


@pytest.mark.parametrize("index", range(26), ids=POSE_NAMES)
def test_every_number_changes_both_pictures_and_a_usual_value_is_within_the_slider(
    scene: HandScene, index: int
) -> None:
    low, high = slider_range(index)
    assert low < USUAL_RANGES[index][0] < USUAL_RANGES[index][1] < high
    pose = preset("zero")
    before = scene.pictures(scene.look(pose))
    pose[index] = high
    after = scene.pictures(scene.look(pose))
    assert not np.array_equal(before["spheres"], after["spheres"])
    assert not np.array_equal(before["mesh"], after["mesh"])


def test_switches(scene: HandScene) -> None:
    pose = preset("fist")
    plain = scene.look(pose)
    assert np.abs(scene.look(pose, interpolation="harmonic").mesh_mm - plain.mesh_mm).max() > 1
    noisy = scene.look(pose, noise_seed=1)
    assert not np.array_equal(noisy.mesh_mm, plain.mesh_mm)
    np.testing.assert_array_equal(noisy.mesh_mm, scene.look(pose, noise_seed=1).mesh_mm)
    assert not np.array_equal(noisy.mesh_mm, scene.look(pose, noise_seed=2).mesh_mm)
    np.testing.assert_array_equal(noisy.sphere_mm, plain.sphere_mm)
    np.testing.assert_allclose(scene.look(pose, size=1.0).verts_mm * 0.9, plain.verts_mm, atol=1e-3)


def test_terms(scene: HandScene) -> None:
    terms = scene.look(preset("zero")).terms
    assert terms == {"collision": 0, "bone length": 0}
    assert scene.look(preset("zero"), size=1.1).terms["bone length"] > 10  # every bone is too long
    many = [scene.look(pose.numpy(), 1.0) for pose in sample_poses(150, torch.Generator().manual_seed(0))]
    worst = max(many, key=lambda view: view.terms["collision"])
    assert worst.terms["collision"] > 5
    distances = torch.cdist(*[torch.from_numpy(worst.centers_mm)] * 2) + 100 * torch.eye(41)
    assert distances.min() < 6
    torch.manual_seed(0)
    scene.vae = PoseVAE().eval()
    assert {"VAE", "VAE reconstruction, mm"} <= set(scene.look(preset("zero")).terms)
    own = scene.look(preset("point"))
    scene.crop_mm = own.sphere_mm
    fits = {name: scene.look(preset(name)).terms for name in ("point", "fist")}
    assert fits["point"]["model to data, mm^2"] == pytest.approx(0, abs=1e-3)
    assert fits["point"]["data to model, mm"] == pytest.approx(0, abs=1e-3)
    assert fits["fist"]["model to data, mm^2"] > 100
    assert fits["fist"]["data to model, mm"] > 0.1
    assert list(scene.pictures(own))[3:] == ["crop", "spheres - crop"]


def test_the_vae_sees_hands_as_it_was_trained(scene: HandScene, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, found = PoseVAE(), {}
    for center in (None, "mean", "palm"):
        save_prior(tmp_path / "prior.pt", network, center=center)
        scene.vae = load_prior(tmp_path / "prior.pt", "vae")
        assert scene.vae.center == center
        pose = preset("point")
        found[center] = scene.look(pose).terms["VAE reconstruction, mm"]
        pose[3:6] += 20.0
        moved = scene.look(pose).terms["VAE reconstruction, mm"]
        assert (moved == pytest.approx(found[center], rel=1e-4)) == (center == "palm")
    assert found[None] == found["mean"] != found["palm"]
    save_prior(tmp_path / "prior.pt", network, center="thumb")
    with pytest.raises(DataError, match="names a centre 'thumb', expected mean or palm"):
        load_prior(tmp_path / "prior.pt", "vae")


def test_a_vae_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert viewer.load(ViewerConfig())[0].vae is None
    for path, center in (("runs/selfsup/standin/prior/vae", "mean"), ("runs/selfsup/vae", "palm")):
        save_prior(tmp_path / path / "prior.pt", PoseVAE(), center=center)
        vae = viewer.load(ViewerConfig())[0].vae
        assert vae is not None
        assert vae.center == center


def test_presets_look_like_their_names(scene: HandScene) -> None:
    tips = [15, 21, 27, 33, 39]
    centers = {name: scene.look(preset(name)).centers_mm for name in PRESETS}
    spread = {name: float(np.linalg.norm(np.diff(c[tips], axis=0), axis=1).sum()) for name, c in centers.items()}
    palm = {name: np.linalg.norm(c[tips] - c[2], axis=1) for name, c in centers.items()}
    assert max(spread, key=lambda name: spread[name]) == "spread"
    assert (palm["fist"][:4] < 65).all()
    assert palm["point"][0] > 85
    assert (palm["point"][1:4] < 65).all()
    assert np.linalg.norm(centers["pinch"][15] - centers["pinch"][39]) < 20
    assert np.linalg.norm(centers["zero"][15] - centers["zero"][39]) > 40
    for name, pose in PRESETS.items():
        assert not unusual(np.array(pose)), name
        assert scene.look(np.array(pose)).terms["collision"] == 0, name


def test_unusual_values_are_named() -> None:
    pose = preset("zero")
    pose[7], pose[12] = 2.5, 0.3
    assert unusual(pose) == ["index flexion 1 2.50 (usual -0.25 to 1.89)"]


def test_colours() -> None:
    a = np.full((2, 3), 100, np.float32)
    b = a.copy()
    a[0], b[0] = (0, 0, 0), (0, 20, -20)
    a[1, 0], b[1, 1] = 5, 5
    found = viewer_scene.difference(a, b)
    assert found[0].tolist() == [[255, 255, 255], [40, 90, 220], [210, 50, 40]]
    assert found[1].tolist() == [[250, 170, 60], [70, 170, 110], [255, 255, 255]]
    grey = viewer_scene.grey(np.array([[-150.0, -100, 0, 100, 1000]], np.float32))
    assert grey[0, :, 0].tolist() == [0, 0, 128, 255, 255]


# --- files ---


def test_crop_files(tmp_path: Path, scene: HandScene) -> None:
    depth = scene.look(preset("pinch")).mesh_mm
    (tmp_path / "c.png").write_bytes(viewer_scene.depth_png(depth))
    assert np.abs(read_crop(tmp_path / "c.png") - depth).max() < 0.002
    Image.fromarray(viewer_scene.grey(depth)[..., 0]).save(tmp_path / "g.png")
    assert np.abs(read_crop(tmp_path / "g.png") - depth).max() < 0.5
    np.save(tmp_path / "c.npy", depth)
    np.savez(tmp_path / "c.npz", depth_mm=depth, other=np.zeros(3))
    np.savez(tmp_path / "one.npz", anything=np.where(depth == 100, np.nan, depth))
    for name in ("c.npy", "c.npz", "one.npz"):
        np.testing.assert_array_equal(read_crop(tmp_path / name), depth)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.txt", lambda p: p.write_text("1"), r"expected a depth crop as \.npz, \.npy or \.png"),
        ("a.npz", lambda p: np.savez(p, a=np.zeros(1), b=np.zeros(1)), "expected an array depth_mm, found a, b"),
        ("a.npy", lambda p: np.save(p, np.zeros((64, 63))), r"64 x 64 numbers, got float64 \(64, 63\)"),
        ("a.npy", lambda p: np.save(p, np.full((64, 64), "x")), "64 x 64 numbers, got <U1"),
        ("a.npy", lambda p: np.save(p, np.full((64, 64), 700.0)), "the whole crop is background -- the numbers are mm"),
        ("a.npy", lambda p: np.save(p, np.full((64, 64), -5000.0)), "depth -5000 mm is not around a crop's centre"),
        ("a.png", lambda p: Image.new("L", (32, 32)).save(p), r"a\.png: .*64"),
        ("a.png", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), r"a\.png"),
    ],
)
def test_bad_crops(tmp_path: Path, name: str, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_crop(tmp_path / name)


def test_missing_files(tmp_path: Path) -> None:
    for name in ("a.png", "a.npy", "a.npz"):
        with pytest.raises(MissingFileError):
            read_crop(tmp_path / name)
    with pytest.raises(MissingFileError, match=r"no such pose file -- give a pose\.json that the viewer exported"):
        read_pose(tmp_path / "pose.json")


def test_export_without_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], scene: HandScene) -> None:
    out = tmp_path / "out"
    assert viewer.main(["--preset", "spread", "--vae", "", "--export", str(out)]) == 0
    assert capsys.readouterr().out.count("written: ") == 4
    pose, size = read_pose(out / "pose.json")
    np.testing.assert_array_equal(pose, PRESETS["spread"])
    assert size == 0.9
    view = scene.look(pose)
    assert np.abs(read_crop(out / "mesh.png") - view.mesh_mm).max() < 0.002
    assert np.abs(read_crop(out / "spheres.png") - view.sphere_mm).max() < 0.002
    content = json.loads((out / "pose.json").read_text())
    np.testing.assert_allclose(content["spheres_mm"], view.centers_mm, atol=1e-3)
    assert content["terms"] == pytest.approx(view.terms)
    figure = np.asarray(Image.open(out / "figure.png").convert("RGB"))
    assert min(figure.shape[:2]) > 600
    assert figure.std() > 20

    words = ["--pose", str(out / "pose.json"), "--crop", str(out / "mesh.png"), "--vae", "", "--export"]
    assert viewer.main([*words, str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again/pose.json").read_text())
    assert again["pose"] == content["pose"]
    assert "model to data, mm^2" in again["terms"]
    assert Image.open(tmp_path / "again/figure.png").width > Image.open(out / "figure.png").width  # with the crop's


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"this is no pose of the viewer \(JSONDecodeError"),
        ("[]", "this is no pose of the viewer"),
        ('{"pose": {"index": 1}}', "missing or unknown: index, "),
        (json.dumps({"pose": dict.fromkeys(POSE_NAMES, 0) | {"thumb flexion 1": "bent"}}), "this is no pose"),
        (
            json.dumps({"pose": dict.fromkeys(POSE_NAMES, 0) | {"thumb flexion 1": float("nan")}}),
            "1 is nan, the viewer shows -0.5 ",
        ),
        (json.dumps({"pose": dict.fromkeys(POSE_NAMES, 0), "size": 5}), "size is 5, the viewer shows 0.7 to 1.2"),
    ],
)
def test_bad_poses(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pose.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pose(tmp_path / "pose.json")
    assert "pose.json" in str(caught.value)


# --- options ---


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for config, message in [
        (ViewerConfig(port=0), "--port must be in 1 to 65535, got 0"),
        (ViewerConfig(preset="wave"), "--preset must be one of zero, fist, pinch, point, spread, random; got 'wave'"),
        (ViewerConfig(vae="none.pt"), r"none\.pt: no such checkpoint"),
        (ViewerConfig(crop="none.png"), r"none\.png"),
        (ViewerConfig(hand="none.npz"), r"none\.npz"),
    ]:
        with pytest.raises(DataError, match=message):
            viewer.load(config)
    scene, pose, size = viewer.load(ViewerConfig(preset="random", seed=3))
    assert scene.vae is None
    assert size == 0.9
    assert (pose != 0).all()
    np.testing.assert_array_equal(pose, viewer.load(ViewerConfig(preset="random", seed=3))[1])
    assert not np.array_equal(pose, viewer.load(ViewerConfig(preset="random", seed=4))[1])
    save_prior("runs/selfsup/vae/prior.pt", PoseVAE())  # is found by itself
    assert viewer.load(ViewerConfig())[0].vae is not None
    assert viewer.load(ViewerConfig(vae=""))[0].vae is None


def test_viser_missing(monkeypatch: pytest.MonkeyPatch, scene: HandScene) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(DataError, match=r"needs viser .* pip install -r requirements/viewer.txt, or --export FOLDER"):
        viewer.serve(scene, preset("zero"), 0.9, ViewerConfig())


def test_command_line_ends_with_one_line() -> None:
    words = [sys.executable, "-m", "selfsup_fitting.viewer", "--preset", "wave"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --preset")
    assert result.stderr.count("\n") == 1


def test_ball_is_closed_and_turned_outwards() -> None:
    verts, faces = viewer.ball()
    np.testing.assert_allclose(np.linalg.norm(verts, axis=1), 1, atol=1e-6)
    edges = {(int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1), strict=True)}
    assert len(edges) == 3 * len(faces)
    assert all((b, a) in edges for a, b in edges)
    corners = verts[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * corners.mean(1)).sum(1) > 0).all()


# --- the page, on viser itself ---


@pytest.fixture
def page(scene: HandScene, capfd: pytest.CaptureFixture[str]) -> Iterator[viewer.Page]:
    pytest.importorskip("viser", reason="viser is not installed (requirements/viewer.txt)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = viewer.serve(scene, preset("zero"), 0.9, ViewerConfig(port=port))
    yield page
    page.server.stop()


def test_a_fitted_pose_beyond_the_sliders_is_shown_as_it_is(scene: HandScene) -> None:
    pytest.importorskip("viser", reason="viser is not installed (requirements/viewer.txt)")
    pose = preset("zero")
    pose[3], pose[7] = 90.0, -1.5
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = viewer.serve(scene, pose, 0.9, ViewerConfig(port=port))
    try:
        np.testing.assert_allclose(page.pose, pose)
    finally:
        page.server.stop()


def test_controls(page: viewer.Page) -> None:
    assert len(page.sliders) == 26
    assert [slider.label for slider in page.sliders] == list(POSE_NAMES)
    assert page.server.get_host() == "127.0.0.1"
    assert page.server.request_share_url() is None
    first, count = page.picture.image, page.updates
    page.sliders[7].value = 1.2
    assert page.updates == count + 1
    assert not np.array_equal(page.picture.image, first)
    page.presets.value = "fist"
    np.testing.assert_allclose(page.pose, PRESETS["fist"])
    assert page.updates == count + 2  # once, not 26 times
    click(page.random)
    assert not np.array_equal(page.pose, PRESETS["fist"])
    page.size.value = 1.1
    assert "| bone length | 0 |" not in page.text.content
    click(page.reset)
    np.testing.assert_allclose(page.pose, 0)
    assert page.size.value == 0.9
    np.testing.assert_array_equal(page.picture.image, first)
    page.sliders[7].value = 2.3
    assert "Unusual: index flexion 1 2.30" in page.text.content
    assert "train_prior vae" in page.text.content
    for control, value in ((page.interpolation, "harmonic"), (page.noise, True)):
        before = page.picture.image
        control.value = value
        assert not np.array_equal(page.picture.image, before)
    for name in ("mesh", "spheres"):
        page.shown[name].value = False
    assert not page.mesh.visible
    assert not page.balls.visible
    np.testing.assert_allclose(100 * page.balls.batched_positions, page.look().centers_mm, atol=1e-4)
    np.testing.assert_allclose(100 * page.mesh.vertices, page.look().verts_mm, atol=1e-4)


def click(button: Any, client: Any = None, value: Any = None) -> None:
    """What viser does when a page clicks: the callbacks, here in this thread."""
    target = types.SimpleNamespace(value=value)
    for callback in button._impl.update_cb:
        callback(types.SimpleNamespace(client=client, target=target))


def test_crops_and_exports(page: viewer.Page, tmp_path: Path) -> None:
    buffer = tmp_path / "crop.npz"
    np.savez(buffer, depth_mm=page.scene.look(preset("point")).mesh_mm)
    small = page.picture.image
    page.take_crop("Crop.NPZ", buffer.read_bytes())
    assert "data to model, mm" in page.text.content
    assert page.picture.image.shape[0] > small.shape[0]
    page.take_crop("notes.txt", b"")
    assert page.text.content == "**notes.txt cannot be used**: expected a depth crop as .npz, .npy or .png"
    click(page.clear)
    assert "data to model" not in page.text.content
    sent: dict[str, bytes] = {}
    client = types.SimpleNamespace(
        send_file_download=lambda name, content, save_immediately: sent.update({name: content})
    )
    page.sliders[12].value = 0.5
    click(page.save_pose, client)
    click(page.save_sheet, client)
    (tmp_path / "pose.json").write_bytes(sent["pose.json"])
    np.testing.assert_array_equal(read_pose(tmp_path / "pose.json")[0], page.pose)
    (tmp_path / "hand.png").write_bytes(sent["hand.png"])
    assert Image.open(tmp_path / "hand.png").width > 3 * 64 * 5


# --- in a real browser ---


class Browser:
    """Headless Chromium through chromedriver's HTTP protocol."""

    def __init__(self, downloads: Path) -> None:
        driver = shutil.which("chromedriver")
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if driver is None or chromium is None:
            pytest.skip("no chromium with chromedriver (Debian: chromium, chromium-driver)")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.url, self.chromium, self.downloads = f"http://127.0.0.1:{port}", chromium, downloads

    def start(self) -> None:
        until(lambda: self._call("/status")["ready"], "chromedriver to answer")
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"]
        arguments += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        arguments += ["--disable-background-networking", "--no-first-run"]
        options = {"binary": self.chromium, "args": arguments}
        session = self._call("/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self.url += f"/session/{session['sessionId']}"
        allow = {"behavior": "allow", "downloadPath": str(self.downloads)}
        self._call("/chromium/send_command", {"cmd": "Browser.setDownloadBehavior", "params": allow})

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()[:500]) from None

    def open(self, address: str) -> None:
        self._call("/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, css: str) -> list[str]:
        return [next(iter(e.values())) for e in self._call("/elements", {"using": "css selector", "value": css})]

    def keys(self, element: str, text: str) -> None:
        self._call(f"/element/{element}/value", {"text": text})

    def picture(self) -> str:
        """The page's depth picture as its PNG bytes in base64: what is really shown."""
        script = (
            "const done = arguments[0]; const image = [...document.querySelectorAll('img')]"
            ".find(i => i.src.startsWith('blob:')); if (!image) { done(''); return; }"
            "fetch(image.src).then(r => r.arrayBuffer())"
            ".then(b => done(btoa(String.fromCharCode(...new Uint8Array(b))))).catch(() => done(''));"
        )
        return str(self._call("/execute/async", {"script": script, "args": []}))

    def click(self, label: str) -> None:
        script = "[...document.querySelectorAll('button')].find(b => b.textContent === arguments[0]).click()"
        self.run(script, label)

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE"), timeout=20)
        self.process.terminate()
        self.process.wait(20)


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The condition's value as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if value := condition():
                return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    (tmp_path / "downloads").mkdir()
    browser = Browser(tmp_path / "downloads")
    try:
        browser.start()
        yield browser
    finally:
        browser.close()


END = "\ue010"  # the key


def opened(browser: Browser, page: viewer.Page) -> tuple[list[str], str]:
    """The page's 27 slider elements (size first) and its first picture, which is the one that the server drew."""
    browser.open(f"http://127.0.0.1:{page.server.get_port()}")
    sliders = until(lambda: len(found := browser.find("[role=slider]")) == 27 and found, "27 sliders")
    first = until(browser.picture, "the picture")
    shown = Image.open(io.BytesIO(base64.b64decode(first)))
    np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), page.picture.image)
    return sliders, first


def push(browser: Browser, page: viewer.Page, sliders: list[str], first: str, indices: Sequence[int]) -> None:
    """Each slider goes to its end by keyboard and changes the picture, which comes back with the zero pose."""
    names = browser.run(
        "return [...document.querySelectorAll('[role=slider]')].map(s => {"
        "let box = s; while (box && !box.textContent.match(/[a-z]/)) box = box.parentElement; return box.textContent})"
    )
    for index in indices:
        slider = page.sliders[index]
        assert names[1 + index].startswith(slider.label)
        browser.keys(sliders[1 + index], END)
        until(lambda: browser.picture() not in ("", first), f"{slider.label} to change the picture")
        assert page.pose[index] == pytest.approx(slider.max, abs=0.011)
        page.set_pose(preset("zero"))
        until(lambda: browser.picture() == first, "the zero pose")


def test_in_a_browser(browser: Browser, page: viewer.Page, tmp_path: Path) -> None:
    """The page opens, sliders change the picture, a crop loads, exports download."""
    sliders, first = opened(browser, page)
    push(browser, page, sliders, first, (1, 7, 25))
    browser.click("fist")
    until(lambda: np.allclose(page.pose, PRESETS["fist"]), "the fist")
    np.savez(tmp_path / "crop.npz", depth_mm=page.scene.look(preset("point")).mesh_mm)
    browser.keys(browser.find("input[type=file]")[0], str(tmp_path / "crop.npz"))
    until(lambda: "data to model" in browser.run("return document.body.innerText"), "the fitting terms")

    saved = tmp_path / "downloads"
    for label, name in (("export pose (JSON)", "pose.json"), ("export pictures (PNG)", "hand.png")):
        browser.click(label)
        until(lambda file=saved / name: file.is_file() and file.stat().st_size, name)
    np.testing.assert_allclose(read_pose(saved / "pose.json")[0], PRESETS["fist"])
    assert Image.open(saved / "hand.png").width > 5 * 64 * 5


@pytest.mark.slow
def test_every_slider_in_a_browser(browser: Browser, page: viewer.Page) -> None:
    sliders, first = opened(browser, page)
    push(browser, page, sliders, first, range(26))
