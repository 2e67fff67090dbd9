"""Options of the viewer (no heavy import: ``--help`` is quick)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ViewerConfig:
    """Options of the viewer.

    Args:
        hand: standin, a hand .npz, or the original's preprocessed_hand.pkl
        vae: pose VAE for the prior term; auto takes runs/selfsup/vae/prior.pt, or else
            runs/selfsup/standin/prior/vae/prior.pt, where there is one; empty none
        crop: depth crop to compare with: 64 x 64 .npz or .npy in mm around its centre, or a .png of this viewer
        pose: pose.json of an earlier export to begin with, or the _fit.json of a fit
        preset: pose to begin with otherwise: zero, fist, pinch, point, spread, or random
        seed: of random poses and noise
        export: folder; writes pose.json, the depth pictures and a figure there instead of opening a page
        host: address to serve on; another one than 127.0.0.1 lets others in
        port: port to serve on; the next free one is taken if it is in use
    """

    hand: str = "standin"
    vae: str = "auto"
    crop: str = ""
    pose: str = ""
    preset: str = "zero"
    seed: int = 0
    export: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
