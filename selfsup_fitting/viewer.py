"""The hand with 26 sliders, in the browser: ``python -m selfsup_fitting.viewer --help``.

    python -m selfsup_fitting.viewer
    python -m selfsup_fitting.viewer --crop crop.npz --preset point
    python -m selfsup_fitting.viewer --preset fist --export out     # pictures and JSON without a page

A page on this machine alone, served by viser (``pip install -r requirements/viewer.txt``): the hand drawn as spheres
and as a mesh, as depth crops and as surfaces to turn, with the loss terms that training would see. Replaces the
author's ``mesh/interactive_viewer.py``.
"""

from __future__ import annotations

import importlib
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfsup_fitting.viewer_config import ViewerConfig
from shared.errors import DataError, exit_on_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from selfsup_fitting.viewer_scene import HandScene

_UNIT_MM = 100.0  # length of one unit of the scene: viser's cameras and clipping planes are made for a few units
_ENLARGE = 4
_AUTO_VAE = (Path("runs/selfsup/vae/prior.pt"), Path("runs/selfsup/standin/prior/vae/prior.pt"))
_NO_VAE = "no pose VAE: `python -m selfsup_fitting.train_prior vae` trains one"


def load(config: ViewerConfig) -> tuple[HandScene, NDArray[np.float64], float]:
    """The scene, and the pose (26,) and size to begin with.

    Raises:
        MissingFileError, DataError: files that cannot be used, a preset or port that does not exist.
    """
    import torch

    from selfsup_fitting.hand import load_hand
    from selfsup_fitting.priors import load_prior
    from selfsup_fitting.sampler import sample_poses
    from selfsup_fitting.spheres import MEAN_SCALE
    from selfsup_fitting.viewer_scene import PRESETS, HandScene, read_crop, read_pose

    if not 0 < config.port < 65536:
        raise DataError(f"--port must be in 1 to 65535, got {config.port}")
    if config.preset not in (*PRESETS, "random"):
        raise DataError(f"--preset must be one of {', '.join(PRESETS)}, random; got {config.preset!r}")
    vae = config.vae
    if vae == "auto":
        vae = str(next((path for path in _AUTO_VAE if path.is_file()), ""))
    scene = HandScene(
        load_hand(config.hand),
        load_prior(vae, "vae") if vae else None,
        read_crop(config.crop) if config.crop else None,
    )
    if config.pose:
        return (scene, *read_pose(config.pose))
    if config.preset == "random":
        pose = sample_poses(1, torch.Generator().manual_seed(config.seed))[0].double().numpy()
        return scene, pose, MEAN_SCALE
    return scene, np.array(PRESETS[config.preset]), MEAN_SCALE


def ball(rings: int = 8, sides: int = 14) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices and faces (counter-clockwise from outside) of a unit sphere."""
    polar = np.linspace(0, np.pi, rings + 1)[1:-1, None]
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rows = np.stack(np.broadcast_arrays(np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)), -1)
    verts = np.concatenate((rows.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]))
    a = np.arange(sides)
    b = (a + 1) % sides
    top, bottom = len(verts) - 2, len(verts) - 1
    faces = [np.stack((np.full(sides, top), a, b), 1)]
    for ring in range(rings - 2):
        low, high = ring * sides, (ring + 1) * sides
        faces += [np.stack((low + a, high + a, high + b), 1), np.stack((low + a, high + b, low + b), 1)]
    last = (rings - 2) * sides
    faces.append(np.stack((last + a, np.full(sides, bottom), last + b), 1))
    return verts.astype(np.float32), np.concatenate(faces).astype(np.int32)


class Page:
    """The controls on viser's server and what they do.

    Attributes:
        scene: what is shown.
        sliders: the 26 numbers of the pose, in their order; size is a slider too.
        picture, text: the controls that hold the pictures and the terms.
        updates: how often the page was drawn.
    """

    def __init__(self, server: Any, scene: HandScene, pose: NDArray[np.float64], size: float, seed: int = 0) -> None:
        import torch

        from selfsup_fitting.sampler import USUAL_RANGES
        from selfsup_fitting.spheres import FINGERS, POSE_NAMES
        from selfsup_fitting.viewer_scene import PRESETS, SIZES, slider_range

        self.server, self.scene, self.updates = server, scene, 0
        self.start, self.start_size = pose, size
        self.generator = torch.Generator().manual_seed(seed)
        self.noise_seed = seed
        self.lock = threading.RLock()
        self.quiet = False
        gui = server.gui

        self.picture = gui.add_image(np.zeros((64, 64, 3), np.uint8), label="depth", format="png")
        self.text = gui.add_markdown("")
        self.presets = gui.add_button_group("pose", tuple(PRESETS))
        self.random, self.reset = gui.add_button("random pose"), gui.add_button("reset")
        with gui.add_folder("show"):
            self.interpolation = gui.add_dropdown("mesh depth", ("linear", "harmonic"), initial_value="linear")
            self.noise = gui.add_checkbox("sensor noise", False)
            self.shown = {name: gui.add_checkbox(name, True) for name in ("mesh", "spheres")}
            low, high = SIZES
            self.size = gui.add_slider("size", low, high, 0.01, min(max(size, low), high), marks=((0.8, ""), (1.0, "")))
        with gui.add_folder("files"):
            self.upload = gui.add_upload_button("load a crop", mime_type=".npz,.npy,.png")
            self.clear = gui.add_button("remove the crop")
            self.save_pose = gui.add_button("export pose (JSON)")
            self.save_sheet = gui.add_button("export pictures (PNG)")
        self.sliders: list[Any] = []
        for group in ("palm", *FINGERS):
            with gui.add_folder(group):
                for index, name in enumerate(POSE_NAMES):
                    if name.startswith(group + " "):
                        self.sliders.append(self._slider(gui, index, name, pose[index], slider_range, USUAL_RANGES))

        server.initial_camera.position = (0.7, -0.5, -3.0)  # a little beside the camera of the crops
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.scene.set_up_direction("-y")
        self.mesh: Any = None
        self.balls: Any = None
        for control in (*self.sliders, self.size, self.interpolation, self.noise, *self.shown.values()):
            control.on_update(lambda _: self.draw())
        self.presets.on_click(lambda event: self.set_pose(np.array(PRESETS[event.target.value])))
        self.random.on_click(lambda _: self.randomise())
        self.reset.on_click(lambda _: self.set_pose(self.start, self.start_size))
        self.upload.on_upload(lambda _: self.take_crop(self.upload.value.name, self.upload.value.content))
        self.clear.on_click(lambda _: self.drop_crop())
        self.save_pose.on_click(lambda event: self.send(event, "pose.json"))
        self.save_sheet.on_click(lambda event: self.send(event, "hand.png"))
        self.draw()

    @staticmethod
    def _slider(gui: Any, index: int, name: str, value: float, slider_range: Any, usual: Any) -> Any:
        """One number of the pose: marks at the ends of its usual range, radians or mm."""
        low, high = slider_range(index)
        digits, unit = (1, "mm") if 3 <= index < 6 else (2, "rad")
        marks = tuple((round(v, digits), f"{v:.{digits}f}") for v in usual[index])
        hint = f"{name}: usually {usual[index][0]:.2f} to {usual[index][1]:.2f} {unit}"
        step = 10.0**-digits
        low, high = min(low, float(value)), max(high, float(value))  # a fitted pose may lie beyond
        return gui.add_slider(name, low, high, step, float(value), marks=marks, hint=hint)

    @property
    def pose(self) -> NDArray[np.float64]:
        """(26,) as the sliders say."""
        return np.array([float(slider.value) for slider in self.sliders])

    def set_pose(self, pose: NDArray[np.float64], size: float | None = None) -> None:
        """Moves all sliders, then draws once."""
        with self.lock:
            self.quiet = True
            try:
                for slider, value in zip(self.sliders, pose, strict=True):
                    slider.value = min(max(float(value), slider.min), slider.max)
                if size is not None:
                    self.size.value = size
            finally:
                self.quiet = False
            self.draw()

    def randomise(self) -> None:
        from selfsup_fitting.sampler import sample_poses

        with self.lock:
            self.noise_seed += 1
            self.set_pose(sample_poses(1, self.generator)[0].double().numpy())

    def look(self) -> Any:
        """What the controls ask for, as a :class:`~selfsup_fitting.viewer_scene.View`."""
        seed = self.noise_seed if self.noise.value else None
        return self.scene.look(self.pose, float(self.size.value), self.interpolation.value, seed)

    def draw(self) -> None:
        """Everything anew: pictures, terms and surfaces; one at a time, and nothing while all sliders move."""
        from selfsup_fitting.viewer_scene import unusual
        from shared.draw import contact_sheet, enlarge

        with self.lock:
            if self.quiet:
                return
            view = self.look()
            pictures = self.scene.pictures(view)
            sheet = contact_sheet([enlarge(picture, _ENLARGE) for picture in pictures.values()], columns=3)
            table = ["| term | value |", "|---|---:|", *(f"| {k} | {v:.4g} |" for k, v in view.terms.items())]
            odd = unusual(view.pose)
            lines = [
                f"{', '.join(pictures)} (row by row). Differences: blue is nearer, red farther; orange and green have "
                "only the first or the second.",
                "\n".join(table),
                *([] if self.scene.vae else [_NO_VAE]),
                "Unusual: " + "; ".join(odd) if odd else "All angles are usual ones.",
            ]
            with self.server.atomic():
                self.picture.image = sheet
                self.text.content = "\n\n".join(lines)
                self._surfaces(view)
            self.updates += 1

    def _surfaces(self, view: Any) -> None:
        from selfsup_fitting.viewer_scene import finger_colors

        verts, centers = view.verts_mm / _UNIT_MM, view.centers_mm / _UNIT_MM
        if self.mesh is None:
            faces = self.scene.hand.faces.astype(np.int32)
            self.mesh = self.server.scene.add_mesh_simple("/mesh", verts, faces, color=(224, 186, 160), opacity=0.75)
            sphere_verts, sphere_faces = ball()
            radii = (self.scene.hand.sphere_radius_mm / _UNIT_MM).astype(np.float32)
            upright = np.tile(np.array([1.0, 0, 0, 0], np.float32), (len(radii), 1))
            self.balls = self.server.scene.add_batched_meshes_simple(
                "/spheres",
                sphere_verts,
                sphere_faces,
                upright,
                centers,
                batched_scales=radii,
                batched_colors=finger_colors(),
            )
        self.mesh.vertices = verts
        self.mesh.visible, self.balls.visible = (bool(self.shown[name].value) for name in ("mesh", "spheres"))
        self.balls.batched_positions = centers
        self.balls.batched_scales = (self.scene.hand.sphere_radius_mm * view.size / _UNIT_MM).astype(np.float32)

    def take_crop(self, name: str, content: bytes) -> None:
        """A crop that was uploaded: shown and compared with, or the reason why not."""
        from selfsup_fitting.viewer_scene import read_crop

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"crop{Path(name).suffix.lower()}"
            path.write_bytes(content)
            try:
                crop = read_crop(path)
            except DataError as error:
                self.text.content = f"**{name} cannot be used**: {str(error).removeprefix(f'{path}: ')}"
                return
        with self.lock:
            self.scene.crop_mm = crop
            self.draw()

    def drop_crop(self) -> None:
        with self.lock:
            self.scene.crop_mm = None
            self.draw()

    def send(self, event: Any, name: str) -> None:
        """Downloads to the browser that asked."""
        from selfsup_fitting.viewer_scene import pose_json, sheet_png

        view = self.look()
        content = pose_json(self.scene, view).encode() if name.endswith(".json") else sheet_png(self.scene, view)
        (event.client or self.server).send_file_download(name, content, save_immediately=True)


def serve(scene: HandScene, pose: NDArray[np.float64], size: float, config: ViewerConfig) -> Page:
    """Starts the page in the background; ``page.server.stop()`` ends it.

    Raises:
        DataError: viser is not installed.
    """
    try:
        viser: Any = importlib.import_module("viser")
    except ImportError as error:
        raise DataError(
            f"the viewer needs viser ({error})",
            remedy="pip install -r requirements/viewer.txt, or --export FOLDER, which needs no page",
        ) from error
    server: Any = viser.ViserServer(host=config.host, port=config.port, label="handpose", verbose=False)
    # Any page open in the browser could ask for viser's public tunnel over the web socket; nothing here goes out.
    server.request_share_url = lambda verbose=True: None
    server.gui.configure_theme(show_share_button=False, show_logo=False, control_width="large")
    return Page(server, scene, pose, size, config.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; the page runs until Ctrl-C."""
    from shared.options import parse

    config = parse(
        ViewerConfig,
        prog="python -m selfsup_fitting.viewer",
        description="Turn the joints of the sphere hand in the browser, on this machine alone; or export one pose.",
        argv=argv,
    ).options
    scene, pose, size = load(config)
    if config.export:
        from selfsup_fitting.viewer_scene import export

        for path in export(scene, scene.look(pose, size), config.export):
            print(f"written: {path}")
        return 0
    page = serve(scene, pose, size, config)
    print(f"viewer: http://{config.host}:{page.server.get_port()} ({scene.hand.name}); Ctrl-C ends it", flush=True)
    page.server.sleep_forever()
    return 0


if __name__ == "__main__":
    exit_on_error(main)
