"""Pictures of a fit: the spheres drawn as depth beside the captured depth, and where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared import draw

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
SHOWN_MM = (-100.0, 100.0)
_SCALE = 3


def grey(depth_mm: Array, scale: int = _SCALE) -> draw.RGB:
    """A 64 x 64 crop as a picture: near is dark, 100 mm (background) is light."""
    low, high = SHOWN_MM
    return draw.enlarge(
        draw.depth_to_rgb(depth_mm - low + 1, center_mm=(high - low) / 2 + 1, cube_mm=high - low), scale
    )


def difference(captured_mm: Array, drawn_mm: Array, scale: int = _SCALE) -> draw.RGB:
    """Captured depth in grey; red where only the spheres are, blue where only the capture is, else by the distance."""
    a, b = captured_mm < SHOWN_MM[1], drawn_mm < SHOWN_MM[1]
    picture = np.full((*captured_mm.shape, 3), 255, np.uint8)
    off = np.clip(np.abs(captured_mm - drawn_mm) / 40, 0, 1)
    both = a & b
    picture[both] = np.stack([70 + 180 * off[both], 170 - 120 * off[both], 90 - 40 * off[both]], -1).astype(np.uint8)
    picture[a & ~b], picture[~a & b] = (60, 110, 220), (220, 60, 60)
    return draw.enlarge(picture, scale)


def fit_row(captured_mm: Array, drawn_mm: Array, scale: int = _SCALE) -> draw.RGB:
    """Captured, drawn, difference."""
    return draw.side_by_side(
        [grey(captured_mm, scale), grey(drawn_mm, scale), difference(captured_mm, drawn_mm, scale)], gap=4
    )


def save_fit_sheet(path: Path, depth_mm: Tensor, spheres_mm: Tensor, radii_mm: Tensor, *, frames: int = 4) -> None:
    """Writes a sheet of the first frames: a row a frame, for each view captured, drawn and difference.

    Args:
        path: of the PNG.
        depth_mm: (B, V, 64, 64) captured.
        spheres_mm: (B, V, 41, 3) predicted in each view.
        radii_mm: (41,).
        frames: rows.
    """
    from selfsup_fitting.render import sphere_depth

    drawn = sphere_depth(spheres_mm[:frames].detach(), radii_mm).cpu().numpy()
    captured = depth_mm[:frames].cpu().numpy()
    rows = [fit_row(c, d, 2) for c, d in zip(captured.reshape(-1, 64, 64), drawn.reshape(-1, 64, 64), strict=True)]
    titles = [f"frame {i + 1}, view {v + 1}" for i in range(len(captured)) for v in range(captured.shape[1])]
    draw.save(path, draw.contact_sheet(rows, captured.shape[1], titles))
