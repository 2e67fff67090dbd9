"""A page to try a checkpoint of V2V-PoseNet on depth images: ``python -m v2v_posenet.demo --help``.

    python -m v2v_posenet.demo --checkpoint runs/v2v/standin/checkpoints/last.pt

Served by gradio (``pip install -r requirements/demo.txt``) to this machine alone: no public link, no statistics, no
look for newer versions, no fonts from elsewhere. It does to one image what ``python -m v2v_posenet.predict`` does.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, exit_on_error
from v2v_posenet.predict import PRESET_SIZES, PRESETS, SUFFIXES, Predict, make_predictor, predict, read_image

MAX_UPLOAD = "64mb"  # 2,000 x 2,000 numbers of 8 bytes pass
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
CAMERA_FIELDS = ("fx", "fy", "u0", "v0")


@dataclass
class Demo:
    """Options of the demo.

    Args:
        checkpoint: one or more networks; the joints of several are averaged
        center_checkpoint: center_net.pt that improves automatic centres
        refine: position within a cell for Gaussian networks: none (as in the paper), softargmax or parabola
        device: cpu, cuda, or auto (cuda where there is one)
        host: address to serve on; another one than 127.0.0.1 lets others in
        port: port to serve on
    """

    checkpoint: list[str] = field(default_factory=list)
    center_checkpoint: str | None = None
    refine: Literal["none", "softargmax", "parabola"] = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    host: str = "127.0.0.1"
    port: int = 7860


@dataclass(frozen=True)
class Session:
    """What all requests share.

    Attributes:
        base: options of the predict program, complete but for the image, the camera and the centre.
        camera: name in ``PRESETS`` of the camera the network was trained with.
        cube_mm: edge of the cube the network was trained with.
    """

    base: Predict
    camera: str
    cube_mm: float


def open_session(options: Demo) -> Session:
    """Loads the networks once, so that a bad checkpoint is noticed before the page is there.

    Raises:
        DataError: no checkpoint, one that cannot be used, a device or port that does not exist.
    """
    if not options.checkpoint:
        raise DataError("no checkpoint is given", remedy="give --checkpoint FILE; make train-v2v trains one")
    if not 0 < options.port < 65536:
        raise DataError(f"--port must be in 1 to 65535, got {options.port}")
    base = Predict(
        checkpoint=options.checkpoint,
        center_checkpoint=options.center_checkpoint,
        refine=options.refine,
        device=options.device,
    )
    first = make_predictor(base).checkpoints[0]
    return Session(base, next(name for name in PRESETS if first.dataset.startswith(name)), first.cube_mm)


def find_joints(
    session: Session,
    image: str | None,
    camera: Sequence[float | None],
    cube_mm: float | None = None,
    center: str = "",
    depth_scale: float | None = None,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The picture with the joints (H, W, 3) and the content of the predict program's JSON file.

    Args:
        session: from :func:`open_session`.
        image: 16-bit PNG, ``.npy`` or MSRA ``.bin`` file.
        camera: fx, fy, u0, v0, pixels from 0.
        cube_mm: edge of the cube; 0 or None is the checkpoint's.
        center: x,y,z of the hand in mm, OpenCV axes; empty finds it.
        depth_scale: millimetres per unit of a PNG or .npy image; None is 1.

    Raises:
        DataError: no image, an unusable one, numbers that make no sense, no hand found. Messages name the image without
            its folder.
    """
    from PIL import Image

    if not image:
        raise DataError("no image is given", remedy=f"choose a {', '.join(SUFFIXES)} file first")
    path, scale = Path(image), 1.0 if depth_scale is None else depth_scale
    options = replace(session.base, images=[image], cube=cube_mm or 0.0, center=center.strip() or None)
    options = replace(options, depth_scale=scale)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if not 0 < scale < float("inf"):
                raise DataError(f"the depth scale must be above 0, got {scale:g}")
            same_camera = tuple(camera) == PRESETS[session.camera]
            if same_camera and read_image(path, scale).image_size == PRESET_SIZES[session.camera]:
                own: Any = session.camera
                options = replace(options, dataset=own)  # keeps the background that the network learned
            else:
                fx, fy, u0, v0 = camera
                options = replace(options, fx=fx, fy=fy, u0=u0, v0=v0)
            skipped = predict(replace(options, out=folder), progress=False)
            if skipped:
                raise DataError(skipped[0][1])
        except DataError as error:
            raise DataError(str(error).replace(str(path), path.name)) from error
        result = json.loads((Path(folder) / f"{path.stem}.json").read_text())
        with Image.open(Path(folder) / f"{path.stem}_joints.png") as picture:
            return np.asarray(picture.convert("RGB")), result | {"image": path.name}


def build_page(session: Session) -> Any:
    """The page as gradio Blocks, not yet served.

    Raises:
        DataError: gradio is not installed.
    """
    os.environ.update(QUIET)  # read when gradio and its libraries are imported
    try:
        gr: Any = importlib.import_module("gradio")
    except ImportError as error:
        raise DataError(
            f"the demo needs gradio ({error})", remedy="run make demo-v2v, or pip install -r requirements/demo.txt"
        ) from error

    def answer(image: str | None, *numbers: Any) -> tuple[Any, Any]:
        *camera, cube_mm, center, scale = numbers
        try:
            return find_joints(session, image, camera, cube_mm, center, scale)
        except DataError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    # Uploads are deleted when the page is closed down, and after an hour.
    with gr.Blocks(title="V2V-PoseNet", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        names = ", ".join(Path(path).name for path in session.base.checkpoint)
        gr.Markdown(f"## V2V-PoseNet: 3D joints from a depth image\n{names}, trained for {session.camera}")
        with gr.Row():
            with gr.Column():
                image = gr.File(label=f"depth image ({', '.join(SUFFIXES)})", file_types=list(SUFFIXES))
                with gr.Row():
                    values = dict(zip(CAMERA_FIELDS, PRESETS[session.camera], strict=True))
                    camera = [gr.Number(v, label=f"{n} (pixels)", min_width=80) for n, v in values.items()]
                with gr.Row():
                    cube = gr.Number(session.cube_mm, label="cube (mm)", min_width=80)
                    scale = gr.Number(1.0, label="mm per unit", min_width=80)
                    center = gr.Textbox(label="centre x,y,z (mm); empty: automatic", min_width=160)
                button = gr.Button("Find the joints", variant="primary")
            with gr.Column():
                # Without its share button, which would send the picture to a public server.
                picture = gr.Image(label="joints", format="png", interactive=False, buttons=["download", "fullscreen"])
                result = gr.JSON(label="joints, OpenCV camera axes, mm")
        button.click(answer, [image, *camera, cube, center, scale], [picture, result], api_name="find_joints")
    return page


def serve(session: Session, options: Demo) -> Any:
    """Starts the page in the background and returns gradio's Blocks; ``close()`` ends it.

    Raises:
        DataError: gradio is not installed, or the port is in use.
    """
    page = build_page(session)
    gr: Any = importlib.import_module("gradio")
    fonts = ["system-ui", "sans-serif"]
    try:
        page.launch(
            server_name=options.host,
            server_port=options.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            theme=gr.themes.Default(font=fonts, font_mono=["monospace"]),
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
        )
    except OSError as error:
        raise DataError(f"cannot serve on {options.host}:{options.port} ({error})", remedy="choose --port") from error
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """The program; runs until Ctrl-C."""
    from shared.options import parse

    options = parse(
        Demo,
        prog="python -m v2v_posenet.demo",
        description="Serves a page on this machine that finds hand joints in uploaded depth images.",
        argv=argv,
    ).options
    page = serve(open_session(options), options)
    print(f"demo: http://{options.host}:{options.port}; Ctrl-C ends it", flush=True)
    page.block_thread()
    return 0


if __name__ == "__main__":
    exit_on_error(main)
