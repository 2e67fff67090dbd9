"""One pretraining sample of hand3d_wild beside the original's way, in one run, one thread.

    python -m benchmarks.bm_wild_loader [--rounds 40] [--out FILE]

"original's way": the PNG through Pillow, OpenCV's resize, 256 x 256 x 3 new Gaussian numbers in float64, clip, divide,
transpose. Ours: OpenCV's decoder, or a memory map of decoded pictures; float32 noise from a pool.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.bm_wild_decoder import measure, save, table
from hand3d_wild.synth_data import SynthSamples
from hand3d_wild.synthesize import synthesize
from hand3d_wild.synthesize_config import SynthesizeConfig

BASE = "original's way"
PICTURES = 16


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_wild_loader", description="Times of a sample.")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each variant")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/wild_loader.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    state = np.random.RandomState(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        synthesize(SynthesizeConfig(out=str(root), mano="standin", train=PICTURES, test=0, workers=1))
        plain, cached = SynthSamples(root), SynthSamples(root, cache=Path(folder) / "cache")
        maps = SynthSamples(root, form="heatmaps", cache=Path(folder) / "cache")
        turn = 0

        def original() -> Any:
            nonlocal turn
            turn += 1
            picture = np.asarray(Image.open(plain.paths[turn % PICTURES]).convert("RGB"))
            u, v = state.randint(0, 11, 2)
            cut = cv2.resize(picture[v : v + 306, u : u + 306], (256, 256)).astype(np.float64)
            noisy = np.clip(cut + state.normal(0, 1, cut.shape), 0, 255) / 255
            return torch.from_numpy(noisy.transpose(2, 0, 1)).float()

        rows = measure(
            {
                BASE: original,
                "ours, PNG": lambda: plain[0, state.randint(PICTURES)],
                "ours, memory map": lambda: cached[0, state.randint(PICTURES)],
                "ours, memory map, 21 heat maps too": lambda: maps[0, state.randint(PICTURES)],
            },
            args.rounds,
            BASE,
        )
    table("one pretraining sample, one thread", rows)
    save(args.out, 1, {"one sample": rows})


if __name__ == "__main__":
    main()
