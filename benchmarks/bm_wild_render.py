"""One synthetic 320 x 320 picture of hand3d_wild: rendering, and everything around it, one thread.

    python -m benchmarks.bm_wild_render [--rounds 10] [--out FILE]

The original renders with OpenDR, colours and mask in two passes: 52 ms a picture on a Xeon core, chumpy's model
included. OpenDR cannot be installed today; "face by face" is a rasteriser of the same two passes in a plain loop over
the triangles. Ours lists all pixels of all triangles and does both in one pass.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bm_wild_decoder import measure, save, table
from hand3d_wild.backgrounds import procedural_background
from hand3d_wild.colors import procedural_skin
from hand3d_wild.render import render
from hand3d_wild.synthesize import SIZE, Painter, _write_png
from hand3d_wild.synthesize_config import SynthesizeConfig

BASE = "face by face, two passes"


def face_by_face(
    verts: NDArray[np.float64], faces: NDArray[np.int64], colors: NDArray[np.float32] | None
) -> NDArray[Any]:
    """One pass: the picture, or the mask where there are no colours."""
    depth = np.full((SIZE, SIZE), np.inf)
    out = np.zeros((SIZE, SIZE, 3) if colors is not None else (SIZE, SIZE))
    for corners in faces:
        a, b, c = verts[corners]
        low = np.maximum(np.ceil(np.minimum(np.minimum(a, b), c)[:2]), 0).astype(int)
        high = np.minimum(np.floor(np.maximum(np.maximum(a, b), c)[:2]), SIZE - 1).astype(int) + 1
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if (high <= low).any() or area == 0:
            continue
        u, v = np.arange(low[0], high[0]), np.arange(low[1], high[1])[:, None]
        wb = ((u - a[0]) * (c[1] - a[1]) - (v - a[1]) * (c[0] - a[0])) / area
        wc = ((b[0] - a[0]) * (v - a[1]) - (b[1] - a[1]) * (u - a[0])) / area
        wa = 1 - wb - wc
        z = wa * a[2] + wb * b[2] + wc * c[2]
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        seen = (wa >= 0) & (wb >= 0) & (wc >= 0) & (z < depth[window])
        depth[window][seen] = z[seen]
        if colors is None:
            out[window][seen] = 1
        else:
            mixed = wa[..., None] * colors[corners[0]] + wb[..., None] * colors[corners[1]]
            out[window][seen] = (mixed + wc[..., None] * colors[corners[2]])[seen]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_wild_render", description="Times of a picture.")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each variant")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/wild_render.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    painter = Painter(SynthesizeConfig(out="unused", mano="standin"))
    faces, rng = painter.mano.faces, np.random.default_rng(0)
    drawn, placed = painter.numbers(0)
    colors = procedural_skin(painter.mano, painter.normals, rng)
    both = (face_by_face(placed.verts_uvz, faces, colors), face_by_face(placed.verts_uvz, faces, None))
    ours = render(placed.verts_uvz, faces, colors, SIZE)
    apart = int((ours.mask != (both[1] > 0)).sum())
    print(f"masks differ in {apart} pixels, colours by {np.abs(ours.colors - both[0]).max():.2g}")
    picture, mask = painter.paint(0, drawn, placed)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.png"

        def whole() -> None:
            numbers = painter.numbers(0)
            for pixels in painter.paint(0, *numbers):
                _write_png(path, pixels)

        rows = measure(
            {
                BASE: lambda: (
                    face_by_face(placed.verts_uvz, faces, colors),
                    face_by_face(placed.verts_uvz, faces, None),
                ),
                "ours: colours and mask in one pass": lambda: render(placed.verts_uvz, faces, colors, SIZE),
                "ours with hand model": lambda: render(painter.numbers(0)[1].verts_uvz, faces, colors, SIZE),
                "  procedural skin": lambda: procedural_skin(painter.mano, painter.normals, rng),
                "  procedural background": lambda: procedural_background(rng, SIZE),
                "  both PNGs": lambda: (_write_png(path, picture), _write_png(path, mask)),
                "everything of one sample, files written": whole,
            },
            args.rounds,
            BASE,
        )
    table("one picture with mask, 320 x 320, one thread", rows)
    save(args.out, 1, {"one picture": rows})


if __name__ == "__main__":
    main()
