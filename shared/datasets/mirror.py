"""Turning a left hand into a right one: the picture, the camera, the joints and the MANO parameters together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.datasets.base import Frame
from shared.errors import DataError

_FLIP_X = np.array([-1.0, 1.0, 1.0])
_POINTS = frozenset({"root_mm", "transl_mm", "object_corners_mm"})  # x is negated
_IMAGES = frozenset({"seg", "mask"})  # columns are reversed
_SAME = frozenset(
    {
        "betas",
        "flat_hand_mean",
        "list_index",
        "toolkit_index",
        "annotation_id",
        "image_id",
        "sample",
        "version",
        "scale_mm",
        "mano_scale",
        "ycb_ids",
        "object_name",
    }
)
# A mirrored object is no rigid motion of the object, and PCA coefficients belong to one side's basis.
_DROPPED = frozenset({"T_cam_object", "T_cam_objects", "pose_pca"})


def mirror_pose(pose: ArrayLike) -> NDArray[np.float64]:
    """Axis-angle pose (..., 3 n) of the mirrored hand: y and z of every rotation vector negated."""
    vectors = np.asarray(pose, np.float64)
    return (vectors.reshape(*vectors.shape[:-1], -1, 3) * [1, -1, -1]).reshape(vectors.shape)


def mirror_frame(frame: Frame) -> Frame:
    """The frame seen in a mirror: column u becomes W - 1 - u, x becomes -x, left becomes right and the other way round.

    K is changed so that the mirrored points still project onto the mirrored picture. ``pose`` is for the other side's
    MANO layer, and exact if that layer is the mirror image of this side's. What cannot be mirrored is left out of
    ``extra``: object poses and PCA coefficients.

    Raises:
        DataError: ``extra`` holds something of which this function does not know how it is mirrored.
    """
    width = frame.image_size[0]
    K = frame.K.copy()
    # u = (fx x + s y) / z + cx  ->  W - 1 - u with x = -x': the focal length stays, skew and centre change
    K[0, 1:] *= -1
    K[0, 2] += width - 1
    extra: dict[str, Any] = {}
    for key, value in frame.extra.items():
        if key in _SAME:
            extra[key] = value
        elif key in _POINTS:
            extra[key] = value * _FLIP_X
        elif key in _IMAGES:
            extra[key] = np.ascontiguousarray(value[:, ::-1])
        elif key == "pose":
            extra[key] = mirror_pose(value)
        elif key == "uv_root":
            extra[key] = _mirror_pixels(value, width)
        elif key == "bbox_xywh":  # edges: the box from x to x + w covers pixels up to its last one
            x, y, w, h = value
            extra[key] = np.array([width - 1 - x - w, y, w, h])
        elif key not in _DROPPED:
            raise DataError(
                f"do not know how extra[{key!r}] of {frame.name} is mirrored; remove it from the frame first"
            )
    depth_mm = frame.depth_mm
    left, top = frame.crop_xy
    if depth_mm is not None:
        left = width - left - depth_mm.shape[1]
        depth_mm = np.ascontiguousarray(depth_mm[:, ::-1])
    sides: dict[str | None, Literal["right", "left"] | None] = {"right": "left", "left": "right", None: None}
    return replace(
        frame,
        K=K,
        depth_mm=depth_mm,
        crop_xy=(left, top),
        rgb=None if frame.rgb is None else np.ascontiguousarray(frame.rgb[:, ::-1]),
        joints_mm=None if frame.joints_mm is None else frame.joints_mm * _FLIP_X,
        keypoints_2d=None if frame.keypoints_2d is None else _mirror_pixels(frame.keypoints_2d, width),
        center_mm=None if frame.center_mm is None else frame.center_mm * _FLIP_X,
        verts_mm=None if frame.verts_mm is None else frame.verts_mm * _FLIP_X,
        side=sides[frame.side],
        extra=extra,
    )


def _mirror_pixels(pixels: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    return pixels * [-1, 1] + [width - 1, 0]
