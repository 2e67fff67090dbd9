"""Mesh rasteriser and projection loss of training by fitting against the original's way, single thread.

The rasteriser's baseline draws the whole 640 x 640 picture in C++ (a plain port of the original's CUDA kernel, compiled
here), then clamps and reduces it with torch, as the original does. The projection loss's baseline is torch with one
picture a sphere, (B, V, V, 41, 64, 64) numbers at every step, as the original. Results are compared before anything is
timed; both sides take turns in one process, memory is measured in a process for each. Writes
``benchmarks/results/selfsup_render.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup_fitting.hand import Hand, load_hand
from selfsup_fitting.kernels import ops
from selfsup_fitting.kinematics import forward_kinematics, hand_tensors, pose_spheres, skin
from selfsup_fitting.render import project
from selfsup_fitting.synth import draw
from shared.safe_io import atomic_write_text

RESULT = Path(__file__).parent / "results" / "selfsup_render.json"
IMAGES = 48  # synthetic images beside a batch of captured frames
FRAMES, VIEWS = 25, 3

# The original's kernel as a program for one thread: every pixel of every face, depth interpolated linearly.
SOURCE = r"""
#include <algorithm>
#include <cmath>

extern "C" void rasterize(const float* corners, int batch, int faces, int width, int height, float* out) {
  for (int b = 0; b < batch; ++b) {
    float* image = out + static_cast<long>(b) * width * height;
    std::fill(image, image + static_cast<long>(width) * height, 1000.0f);
    for (int f = 0; f < faces; ++f) {
      const float* p = corners + (static_cast<long>(b) * faces + f) * 9;
      const float u[3] = {p[0], p[3], p[6]}, v[3] = {p[1], p[4], p[7]}, z[3] = {p[2], p[5], p[8]};
      if ((v[2] - v[0]) * (u[1] - u[0]) < (v[1] - v[0]) * (u[2] - u[0])) continue;
      int left, right;
      if (u[0] < u[1]) {
        left = u[2] < u[0] ? 2 : 0;
        right = u[1] < u[2] ? 2 : 1;
      } else {
        left = u[2] < u[1] ? 2 : 1;
        right = u[0] < u[2] ? 2 : 0;
      }
      const int middle = 3 - left - right;
      if (u[left] == u[right]) continue;
      const float denominator = (v[1] - v[2]) * (u[0] - u[2]) + (u[2] - u[1]) * (v[0] - v[2]);
      const int x1 = static_cast<int>(std::min(u[right], width - 1.0f));
      for (int x = static_cast<int>(std::max(std::ceil(u[left]), 0.0f)); x <= x1; ++x) {
        const int a = x <= u[middle] ? left : middle, c = x <= u[middle] ? middle : right;
        const float y1 = u[a] == u[c] ? v[middle] : v[a] + (v[c] - v[a]) * ((x - u[a]) / (u[c] - u[a]));
        const float y2 = v[left] + (v[right] - v[left]) * ((x - u[left]) / (u[right] - u[left]));
        const int last = static_cast<int>(std::min(std::max(y1, y2), height - 1.0f));
        for (int y = static_cast<int>(std::max(std::ceil(std::min(y1, y2)), 0.0f)); y <= last; ++y) {
          float w[3];
          w[0] = ((v[1] - v[2]) * (x - u[2]) + (u[2] - u[1]) * (y - v[2])) / denominator;
          w[1] = ((v[2] - v[0]) * (x - u[2]) + (u[0] - u[2]) * (y - v[2])) / denominator;
          w[2] = 1.0f - w[0] - w[1];
          float sum = 0.0f, depth = 0.0f;
          for (int k = 0; k < 3; ++k) {
            w[k] = static_cast<float>(std::min(std::max(static_cast<double>(w[k]), 0.0), 1.0));
            sum += w[k];
          }
          for (int k = 0; k < 3; ++k) depth += w[k] / sum * z[k];
          float* pixel = image + static_cast<long>(y) * width + x;
          *pixel = std::fmin(*pixel, depth);
        }
      }
    }
  }
}
"""


def compile_baseline(folder: Path) -> Any:
    """The function of SOURCE."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "c++"
    source, library = folder / "baseline.cpp", folder / "baseline.so"
    source.write_text(SOURCE)
    command = [compiler, "-O3", "-std=c++17", "-fPIC", "-shared", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library)).rasterize


def baseline_raster(rasterize: Any, corners: Tensor) -> Tensor:
    batch, faces = corners.shape[:2]
    image = torch.empty(batch, 640, 640)
    pointers = (ctypes.c_void_p(corners.data_ptr()), batch, faces, 640, 640, ctypes.c_void_p(image.data_ptr()))
    rasterize(*pointers)
    image = image.clamp(max=100.0)
    return torch.nn.functional.interpolate(image[:, None], size=(64, 64), mode="bilinear", align_corners=False)[:, 0]


def baseline_projection(centers: Tensor, transforms: Tensor, radii: Tensor, depth: Tensor) -> Tensor:
    """9 E + 4500 F over all pairs, with one picture for each sphere."""
    g = (torch.arange(64.0) - 32) * (300 / 64)
    moved = centers[:, :, None] @ transforms[..., :3, :3].mT + transforms[..., None, :3, 3]  # (B, V, V, J, 3)
    x, y, z = (value[..., None, None] for value in moved.unbind(-1))
    q = radii[:, None, None] ** 2 - (g - x) ** 2 - (g[:, None] - y) ** 2
    covered = q > 0.01
    surface = z - torch.where(covered, q, torch.ones_like(q)).sqrt()
    rendered = torch.where(covered, surface, torch.full_like(q, 100.0)).amin(dim=3)
    model = ((rendered - depth[:, None]) ** 2).mean()

    pixels = torch.stack([g.expand(64, 64), g[:, None].expand(64, 64)], dim=-1).expand(*depth.shape, 2)
    points = torch.cat([pixels, depth[..., None]], dim=-1)[:, None, :, None]  # (B, 1, V, 1, 64, 64, 3)
    distance = ((points - moved[..., None, None, :]).norm(dim=-1) - radii[:, None, None]).abs().amin(dim=3)
    data = torch.where(depth[:, None] > 99, torch.zeros_like(distance), distance).clamp(0, 50).mean()
    return 9 * model + 4500 * data


def our_projection(centers: Tensor, transforms: Tensor, radii: Tensor, depth: Tensor) -> Tensor:
    terms = ops.projection_loss(centers, transforms, radii, depth)
    return 9 * terms.model_to_data.mean() + 4500 * terms.data_to_model.mean()


def step(loss: Callable[..., Tensor], scene: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Forward and backward."""
    centers = scene[0].clone().requires_grad_()
    value = loss(centers, *scene[1:])
    value.backward()
    assert centers.grad is not None
    return value.detach(), centers.grad


def projection_scene(hand: Hand, frames: int) -> tuple[Tensor, ...]:
    """Predicted spheres, camera to camera, radii and captured depth of some frames seen by three cameras."""
    draws = draw(0, 0, range(2 * frames))
    spheres = pose_spheres(forward_kinematics(draws.pose, hand, draws.scale), hand)
    angles = torch.tensor([0.0, 0.7, -0.9])
    poses = torch.eye(4).repeat(VIEWS, 1, 1)
    poses[:, 0, 0] = poses[:, 2, 2] = angles.cos()
    poses[:, 0, 2], poses[:, 2, 0] = angles.sin(), -angles.sin()
    pairs = torch.linalg.inv(poses)[None] @ poses[:, None]
    radii = torch.from_numpy(hand.sphere_radius_mm).float()
    seen = spheres[:frames, None] @ poses[:, :3, :3]  # view v sees inverse(R_v) p
    depth, _ = ops.render_spheres(seen, radii)
    centers = seen + torch.randn(seen.shape, generator=torch.Generator().manual_seed(0)) * 15
    return centers, pairs.expand(frames, -1, -1, -1, -1), radii, depth


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of process CPU time, all calls in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:
                times[name].append(1000 * (time.process_time() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def peak_mib(which: str) -> float:
    """Memory that one step needs on top of what the process holds before it, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bm_selfsup_render", "--memory-of", which]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_memory(which: str) -> None:
    scene = projection_scene(load_hand("standin"), FRAMES)
    loss = baseline_projection if which == "baseline" else our_projection
    step(loss, tuple(value[:1] if value.dim() > 1 else value for value in scene))  # load what is loaded lazily
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports, which would hide a smaller one
    before = memory_mib("VmRSS")
    step(loss, scene)
    print(memory_mib("VmHWM") - before)


def memory_mib(which: str) -> float:
    """What this process holds (VmRSS) or has held at most (VmHWM); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(which))) / 1024


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed repetitions of the rasteriser")
    parser.add_argument("--slow-rounds", type=int, default=3, help="timed repetitions of the projection loss")
    parser.add_argument("--memory-of", choices=("baseline", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        measure_memory(options.memory_of)
        return

    hand = load_hand("standin")
    draws = draw(0, 0, range(IMAGES))
    uvd = project(skin(forward_kinematics(draws.pose, hand, draws.scale), hand), 640, draws.zoom).contiguous()
    faces = hand_tensors(hand).faces[:, [1, 0, 2]].contiguous()
    corners = uvd[:, faces].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        rasterize = compile_baseline(Path(folder))
        difference = (baseline_raster(rasterize, corners) - ops.rasterize_resized(uvd, faces)).abs()
        print(f"{len(faces)} faces; pictures max diff {difference.max():.3g} mm")
        assert float((difference > 5e-3).float().mean()) < 1e-3, "the pictures differ"
        scene = projection_scene(hand, FRAMES)
        (ours, our_grad), (theirs, their_grad) = step(our_projection, scene), step(baseline_projection, scene)
        error = float((our_grad - their_grad).abs().max() / their_grad.abs().max())
        print(f"loss {float(ours):.6g} and {float(theirs):.6g}, gradient max diff {error:.3g} of the largest")
        assert error < 1e-3, "the gradients differ"

        raster = medians(
            {
                "baseline": lambda: baseline_raster(rasterize, corners),
                "ours, fused": lambda: ops.rasterize_resized(uvd, faces),
            },
            options.rounds,
        )
    raster = {name: value / IMAGES for name, value in raster.items()}
    projection = medians(
        {"baseline": lambda: step(baseline_projection, scene), "ours": lambda: step(our_projection, scene)},
        options.slow_rounds,
    )
    memory = {name: peak_mib(name) for name in ("baseline", "ours")}
    ratios = {
        "rasteriser": raster["baseline"] / raster["ours, fused"],
        "projection loss, time": projection["baseline"] / projection["ours"],
        "projection loss, memory": memory["baseline"] / max(memory["ours"], 1.0),  # not to divide by nothing
    }
    for title, unit, values in (
        ("raster, clamp, resize", "ms an image", raster),
        (f"projection loss forward and backward, {FRAMES} x {VIEWS} views", "ms", projection),
        ("the same, peak memory", "MiB", memory),
    ):
        for name, value in values.items():
            print(f"{title:60} {name:12} {value:10.3f} {unit}")
    for name, value in ratios.items():
        print(f"{name:32} {value:8.1f} times")
    result = {
        "raster_ms_per_image": {name: round(value, 4) for name, value in raster.items()},
        "projection_ms": {name: round(value, 2) for name, value in projection.items()},
        "projection_peak_mib": {name: round(value, 2) for name, value in memory.items()},
        "times_better": {name: round(value, 1) for name, value in ratios.items()},
        "faces": len(faces),
        "clock": "median process CPU time, one thread, in turns",
        "kernels": "native" if ops.KERNELS.native("cpu") else "torch reference",
        "machine": cpu_name(),
        "torch": torch.__version__,
    }
    atomic_write_text(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
