"""Silhouettes of hands: GrabCut started from the joints.

Bones drawn 70 pixels thick are probably hand, bones of one pixel and the five triangles of the palm are hand, and the
rest is background to begin with. OpenCV's GrabCut then separates the colours. Values of the start map: 0 background,
1 hand, 3 probably hand (OpenCV's constants). The triangles are given in the network's joint order; the seed applied
them to joints in the data set's own order, which filled other triangles (README, ledger).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import skeletons
from shared.errors import DataError

SKELETON = "wild"  # order of the joints: wrist, index, middle, little, ring, thumb
THICKNESS = 70
PALM = ((0, 17, 18), (0, 17, 1), (0, 1, 5), (0, 5, 13), (0, 13, 9))
ITERATIONS = 5


def start_map(joints: ArrayLike, size: int = 320, *, visible: ArrayLike | None = None) -> NDArray[np.uint8]:
    """(size, size) uint8 start map of 21 joints (21, 2) in the order ``wild``, pixels of the crop.

    Bones and triangles with an invisible end are left out.

    Raises:
        DataError: another shape, or a visible joint that is not finite.
    """
    import cv2

    points = np.asarray(joints, np.float64)
    if points.shape != (21, 2):
        raise DataError(f"expected joints (21, 2) in the {SKELETON} order, got {points.shape}")
    shown = np.ones(21, np.bool_) if visible is None else np.asarray(visible, np.bool_)
    if not np.isfinite(points[shown]).all():
        raise DataError("a visible joint is not finite")
    # far outside is as good as a few pictures away, and OpenCV's integers cannot overflow
    whole = np.trunc(np.clip(np.where(shown[:, None], points, 0), -8 * size, 8 * size)).astype(np.int32)
    out = np.zeros((size, size), np.uint8)
    bones = [edge for edge in skeletons.get(SKELETON).edges if shown[list(edge)].all()]
    for value, thickness in ((3, THICKNESS), (1, 1)):
        for a, b in bones:
            cv2.line(out, whole[a].tolist(), whole[b].tolist(), value, thickness)
    for corners in PALM:
        if shown[list(corners)].all():
            cv2.fillConvexPoly(out, whole[list(corners)], 1)
    return out


def grabcut(rgb: NDArray[np.uint8], start: NDArray[np.uint8], *, iterations: int = ITERATIONS) -> NDArray[np.bool_]:
    """(H, W) bool: GrabCut's foreground of a picture (H, W, 3) from a start map (H, W).

    Its random state is set first, so that equal input gives equal masks in every process.

    Raises:
        DataError: shapes that do not fit, or a start map without foreground or without background.
    """
    import cv2

    if rgb.shape != (*start.shape, 3):
        raise DataError(f"expected a picture and a start map of one size, got {rgb.shape[:2]} and {start.shape}")
    hand = (start == 1) | (start == 3)
    if not hand.any() or hand.all():
        raise DataError("the start map needs both hand and background pixels; are the joints inside the picture?")
    labels = start.copy()
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(
            np.ascontiguousarray(rgb),
            labels,
            (0, 0, 1, 1),  # ignored: the map is the start
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            iterations,
            cv2.GC_INIT_WITH_MASK,
        )
    except cv2.error as error:
        raise DataError(f"GrabCut failed ({str(error).strip().splitlines()[-1]})") from None
    return np.asarray((labels == 1) | (labels == 3))


def hand_mask(rgb: NDArray[np.uint8], joints: ArrayLike, *, visible: ArrayLike | None = None) -> NDArray[np.bool_]:
    """(S, S) bool silhouette of the hand in a square crop; joints (21, 2) in the order ``wild``, its pixels."""
    return grabcut(rgb, start_map(joints, rgb.shape[0], visible=visible))
