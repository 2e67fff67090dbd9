"""Updates a second of the hand viewer, single thread: one slider moved, everything shown anew.

Ours is what the page does per update (pose, skin, both depth pictures, difference, loss terms), with and without
viser's page around it. The baseline is the pictures alone, computed the original viewer's way with our rasteriser:
skin of every corner of every triangle as a sum over all bones, the whole 640 x 640 picture, clamp and resize, one
picture a sphere. By turns in one process. Writes ``benchmarks/results/selfsup_viewer.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from selfsup_fitting import viewer
from selfsup_fitting.hand import Hand, load_hand
from selfsup_fitting.kernels import ops
from selfsup_fitting.kinematics import forward_kinematics, pose_spheres
from selfsup_fitting.priors import PoseVAE
from selfsup_fitting.render import project
from selfsup_fitting.sampler import sample_poses
from selfsup_fitting.viewer_config import ViewerConfig
from selfsup_fitting.viewer_scene import HandScene
from shared.safe_io import atomic_write_text

RESULT = Path(__file__).parent / "results" / "selfsup_viewer.json"
GOAL = 20.0  # updates a second


@torch.no_grad()
def original_way(hand: Hand, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both 64 x 64 depth pictures at size 0.9, as the original computes them."""
    transforms = forward_kinematics(torch.from_numpy(pose).float()[None], hand, torch.full((1, 3), 0.9))
    corners = hand.faces[:, [1, 0, 2]].ravel()
    homogeneous = torch.from_numpy(np.pad(hand.verts_mm[corners], ((0, 0), (0, 1)), constant_values=1)).float()
    weights = torch.from_numpy(hand.weights[corners]).float()
    each = (transforms[0, :, None] @ homogeneous[None, :, :, None])[..., :3, 0]  # (17, 3 F, 3)
    verts = (weights.T[..., None] * each).sum(0) * torch.tensor([-1.0, 1, 1])
    triangles = torch.arange(len(corners)).view(-1, 3)
    large = ops.rasterize(project(verts[None], 640), triangles, 640, 640).depth.clamp(max=100)
    mesh = F.interpolate(large[None], size=(64, 64), mode="bilinear", align_corners=False)[0, 0]

    centers, radii = pose_spheres(transforms, hand)[0], torch.from_numpy(hand.sphere_radius_mm).float()
    grid = (torch.arange(64) - 32) * (300 / 64)
    away = (grid - centers[:, 0, None, None]).square() + (grid[:, None] - centers[:, 1, None, None]).square()
    q = radii[:, None, None].square() - away
    ball = torch.where(q > 0.01, centers[:, 2, None, None] - q.clamp(min=0).sqrt(), torch.full_like(q, 100.0)).amin(0)
    return ball.clamp(max=100).numpy(), mesh.numpy()


def rate(calls: dict[str, Callable[[np.ndarray], object]], poses: np.ndarray) -> dict[str, float]:
    """Calls a second of each, from the median time, by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index, pose in enumerate(poses):
        for name, call in calls.items():
            start = time.perf_counter()
            call(pose)
            if index:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: 1 / float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hand = load_hand("standin")
    scene = HandScene(hand, PoseVAE().eval())
    poses = sample_poses(options.rounds + 1, torch.Generator().manual_seed(0)).double().numpy()
    view = scene.look(poses[0])
    for ours, theirs in zip((view.sphere_mm, view.mesh_mm), original_way(hand, poses[0]), strict=True):
        assert (np.abs(ours - theirs) > 0.05).mean() < 0.005, "the pictures differ"

    calls: dict[str, Callable[[np.ndarray], object]] = {
        "original's way, pictures only": lambda pose: original_way(hand, pose),
        "ours, pictures and terms": lambda pose: scene.pictures(scene.look(pose)),
    }
    page = None
    if importlib.util.find_spec("viser"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        page = viewer.serve(scene, poses[0], 0.9, ViewerConfig(port=port))
        calls["ours, whole page"] = page.set_pose
    rates = rate(calls, poses)
    if page is not None:
        page.server.stop()
    for name, value in rates.items():
        print(f"{name:32} {value:7.1f} updates/s" + (f" (goal {GOAL:.0f})" if "page" in name else ""))
    result = {
        "updates_per_second": {name: round(value, 1) for name, value in rates.items()},
        "goal": GOAL,
        "kernels": "native" if ops.KERNELS.native("cpu") else "torch reference",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    atomic_write_text(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
