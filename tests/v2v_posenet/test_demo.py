"""The demo: the same joints as the predict program, its messages, and the page with gradio itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shared.errors import DataError
from tests.shared.test_msra import bin_bytes
from tests.shared.test_viewer import forbid_network
from tests.v2v_posenet.test_predict import CAMERA, hand_depth, options, read, save_png, tiny_checkpoint
from v2v_posenet import demo, predict
from v2v_posenet.demo import Demo, Session

NUMBERS = list(CAMERA.values())


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return demo.open_session(Demo([tiny_checkpoint(tmp_path / "net.pt")], device="cpu"))


@pytest.fixture
def image(tmp_path: Path) -> str:
    depth, _ = hand_depth()
    return str(save_png(tmp_path / "folder/hand.png", depth))


# --- one image ---


def test_same_result_as_the_predict_program(tmp_path: Path, session: Session, image: str) -> None:
    """With the network's own camera (and its background) and with another one; also centre, cube and scale."""
    center = hand_depth()[1]
    given = ",".join(f"{c:.1f}" for c in center)
    own = {"dataset": "msra", **dict.fromkeys(CAMERA)}
    cases = [
        (own, (NUMBERS,)),
        (own, (NUMBERS, 180.0, given, 1.0)),
        ({"fx": 250.0, "fy": 250.0}, ([250.0, 250.0, 160.0, 120.0],)),
    ]
    for number, (changes, arguments) in enumerate(cases):
        picture, result = demo.find_joints(session, image, *arguments)
        if number == 1:
            changes = {**changes, "cube": 180.0, "center": given}
        assert predict.predict(options(tmp_path, Path(image), **changes), progress=False) == []
        expected = read(tmp_path, "hand")
        assert result == expected | {"image": "hand.png"}
        assert picture.shape == (480, 640, 3)
        assert picture.dtype == np.uint8
        assert result["center_from"] == ("given" if number == 1 else "automatic")
        assert result["cube_mm"] == (180 if number == 1 else 200)


def test_background_only_with_the_camera_it_was_learned_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session: Session
) -> None:
    seen: list[predict.Predict] = []

    def stop(given: predict.Predict, progress: bool = True) -> None:
        seen.append(given)
        raise DataError("enough")

    monkeypatch.setattr(demo, "predict", stop)
    depth, _ = hand_depth()
    cases = [(depth, NUMBERS), (depth, [241.0, *NUMBERS[1:]]), (np.pad(depth, 1), NUMBERS)]
    for index, (array, camera) in enumerate(cases):
        path = save_png(tmp_path / f"{index}.png", array)
        with pytest.raises(DataError, match="enough"):
            demo.find_joints(session, str(path), camera)
    assert [s.dataset for s in seen] == ["msra", None, None]
    assert [s.fx for s in seen] == [None, 241.0, 241.42]
    assert seen[2].v0 == 120.0


def test_scale_and_other_formats(tmp_path: Path, session: Session, image: str) -> None:
    depth, _ = hand_depth()
    expected = demo.find_joints(session, image, NUMBERS)[1]
    np.save(tmp_path / "hand.npy", depth / 1000)
    found = demo.find_joints(session, str(tmp_path / "hand.npy"), NUMBERS, depth_scale=1000.0)[1]
    np.testing.assert_allclose(found["joints_mm"], expected["joints_mm"], atol=0.01)
    (tmp_path / "hand.bin").write_bytes(bin_bytes(depth[40:200, 60:260], 60, 40))
    center = ",".join(str(c) for c in expected["center_mm"])
    found = demo.find_joints(session, str(tmp_path / "hand.bin"), NUMBERS, center=center)[1]
    np.testing.assert_allclose(found["joints_mm"], expected["joints_mm"], atol=0.01)


def test_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session: Session, image: str) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    demo.find_joints(session, image, NUMBERS)
    assert sorted(tmp_path.rglob("*")) == before


# --- messages ---


def test_messages(tmp_path: Path, session: Session, image: str) -> None:
    blank = str(save_png(tmp_path / "blank.png", np.zeros((240, 320))))
    text = tmp_path / "text.txt"
    text.write_text("no image")
    for arguments, message in [
        ((None, NUMBERS), r"^no image is given -- choose a \.png, \.npy, \.bin file first"),
        ((blank, NUMBERS), r"^blank\.png: the image is all background"),
        ((str(text), NUMBERS), r"^text\.txt: the suffix '\.txt' is none of"),
        ((image, [None] * 4), r"the camera's intrinsics are not given"),
        ((image, [241.42, None, 160, 120]), r"the camera needs --fy too"),
        ((image, NUMBERS, -1.0), r"--cube must be an edge in mm"),
        ((image, NUMBERS, 0, "1,2"), r"--center takes x,y,z, got '1,2'"),
        ((image, NUMBERS, 0, "0,0,-400"), r"^hand\.png: the centre \(0, 0, -400\) mm lies behind the camera"),
        ((image, NUMBERS, 0, "", 0.0), r"the depth scale must be above 0, got 0"),
        ((image, NUMBERS, 0, "", float("nan")), r"the depth scale must be above 0, got nan"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            demo.find_joints(session, *arguments)
        assert str(tmp_path) not in str(caught.value)


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint is given -- give --checkpoint FILE"):
        demo.open_session(Demo())
    net = tiny_checkpoint(tmp_path / "net.pt")
    with pytest.raises(DataError, match=r"--port must be in 1 to 65535, got 70000"):
        demo.open_session(Demo([net], port=70000))
    with pytest.raises(DataError, match=r"none\.pt"):
        demo.open_session(Demo([str(tmp_path / "none.pt")]))


def test_gradio_missing(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(DataError, match=r"the demo needs gradio .* pip install -r requirements/demo\.txt"):
        demo.build_page(session)


def test_launch_is_private(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    """What is handed to gradio; and a port in use is a message."""
    launched: dict[str, object] = {}
    page = SimpleNamespace(launch=lambda **given: launched.update(given))
    themes = SimpleNamespace(Default=lambda **fonts: fonts)
    monkeypatch.setattr(demo, "build_page", lambda _: page)
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(themes=themes))
    assert demo.serve(session, Demo(port=1234)) is page
    assert launched["server_name"] == "127.0.0.1"
    assert launched["server_port"] == 1234
    assert launched["share"] is False
    assert launched["max_file_size"] == demo.MAX_UPLOAD
    assert launched["theme"] == {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none to download

    def busy(**_: object) -> None:
        raise OSError("Cannot find empty port")

    page.launch = busy
    with pytest.raises(
        DataError, match=r"cannot serve on 127\.0\.0\.1:7860 \(Cannot find empty port\) -- choose --port"
    ):
        demo.serve(session, Demo())


def test_command_line_ends_with_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "v2v_posenet.demo", "--checkpoint", str(tmp_path / "none.pt")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


# --- the page ---


def post(url: str, body: bytes, kind: str) -> dict | list:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def ask(url: str, image: str | None, *fields: object) -> tuple[str, list]:
    """Uploads an image, presses the button and waits: the last event's name and data."""
    file = None
    if image is not None:
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{Path(image).name}"\r\n\r\n'
        body = head.encode() + Path(image).read_bytes() + b"\r\n--x--\r\n"
        (path,) = post(f"{url}/gradio_api/upload", body, "multipart/form-data; boundary=x")
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": Path(image).name}
    call = f"{url}/gradio_api/call/find_joints"
    event = post(call, json.dumps({"data": [file, *fields]}).encode(), "application/json")["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as answer:
        lines = answer.read().decode().strip().splitlines()
    name = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")][-1]
    return name, json.loads([line.removeprefix("data: ") for line in lines if line.startswith("data: ")][-1])


def test_the_real_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session: Session, image: str) -> None:
    """An image goes in, joints come out, errors are shown, and nothing but loopback is ever called."""
    asked = forbid_network(monkeypatch)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pytest.importorskip("gradio", reason="gradio is not installed (requirements/demo.txt)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = demo.serve(session, replace(Demo(), port=port))
    try:
        url = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            html = answer.read().decode()
        assert "V2V-PoseNet" in html
        assert "fonts.googleapis.com" not in html
        config = json.load(urllib.request.urlopen(f"{url}/config", timeout=20))
        assert config["analytics_enabled"] is False
        buttons = [c["props"].get("buttons") for c in config["components"] if c["type"] == "image"]
        assert buttons == [["download", "fullscreen"]]  # no share

        name, (picture, result) = ask(url, image, *NUMBERS, 200, "", 1)
        assert name == "complete"
        assert result == demo.find_joints(session, image, NUMBERS)[1]
        assert picture["path"].endswith(".png")
        assert ask(url, None, *NUMBERS, 200, "", 1)[0] == "error"
        assert ask(url, image, *NUMBERS, 200, "1,2", 1)[0] == "error"
        assert not asked
    finally:
        page.close()
