"""From a depth image to an oriented, normalised cloud, and from normalised joints back to the camera.

Four coordinate systems, in the order of the way in:

============  =================================================================================================
camera        OpenCV axes (x right, y down, z forward), true millimetres; what everything outside speaks
space         x right, y UP, z forward, "mm": true ones, or the original program's, whose factors are inverted, so
              that x is 0.567 of its true size (:class:`Space`; README, ledger Q1)
oriented      the space turned about the camera's centre onto the principal axes of the hand's points
normalised    oriented / length - offset; the points span 1/1.2 along the first axis and have the mean 0
============  =================================================================================================

The steps are those of the original's ICVL_train_process.m (MATLAB): box of the joints, PCA, normals, sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared import camera
from shared.errors import DataError

Array = NDArray[np.float64]
Intrinsics = Literal["true", "reference"]

POINTS, NORMAL_NEIGHBOURS, MARGIN_MM, LENGTH_FACTOR = 1024, 30, 20.0, 1.2
MIN_POINTS = 10  # fewer points have no stable principal axes; a hand at 1 m still covers hundreds of pixels
REFERENCE_FACTORS = (0.7531, 1.004)  # f / image size, where the original needed image size / f
ICVL_K = camera.intrinsics(240.99, 240.96, 160, 120)  # the public evaluation's, which true millimetres refer to
NEAR_MM, FAR_MM = 100.0, 1500.0  # depths outside are no hand, for find_hand
MIN_REGION = 200  # pixels; smaller regions are noise, for find_hand
SEARCH_STEP_MM = 10.0  # of depth, for find_hand


@dataclass(frozen=True, eq=False)
class Space:
    """The unrotated space of clouds and joints: camera axes with y up, perhaps out of scale.

    Attributes:
        name: ``"true"`` or ``"reference"``.
        K: (3, 3) true pinhole matrix of the camera, pixels from 0.
        scale: (3,) space = camera * scale (y negative: up).
        pixel_shift: added to the pixels of clouds, not to those of labels: 1 in the original, whose loops start at one.
    """

    name: Intrinsics
    K: Array
    scale: Array
    pixel_shift: int

    def from_camera(self, points_mm: ArrayLike) -> Array:
        """(..., 3) camera mm -> space."""
        return np.asarray(points_mm, np.float64) * self.scale

    def to_camera(self, points: ArrayLike) -> Array:
        """(..., 3) space -> camera mm; exact, as both are pinhole cameras with one principal point."""
        return np.asarray(points, np.float64) / self.scale


def make_space(name: Intrinsics, K: ArrayLike = ICVL_K) -> Space:
    """The space of an intrinsics mode.

    ``reference`` multiplies normalised pixels by f/size instead of size/f: relative to true millimetres x
    shrinks to 0.567 and y grows by 0.8 %. The ratio is ICVL's; with another camera's K it is applied to its true
    millimetres, which is what a network trained on the original's ICVL clouds has to see.

    Raises:
        DataError: another name, or a K that is no pinhole matrix.
    """
    if name not in ("true", "reference"):
        raise DataError(f"intrinsics: expected true or reference, got {name!r}")
    K = np.asarray(K, np.float64)
    if K.shape != (3, 3) or not np.isfinite(K).all() or not min(K[0, 0], K[1, 1]) > 0:
        raise DataError(f"K: expected a 3x3 pinhole matrix with positive focal lengths, got {K.tolist()}")
    if name == "true":
        return Space(name, K, np.array([1.0, -1.0, 1.0]), 0)
    scale = np.array([REFERENCE_FACTORS[0] * ICVL_K[0, 0] / 320, -REFERENCE_FACTORS[1] * ICVL_K[1, 1] / 240, 1.0])
    return Space(name, K, scale, 1)


# ------------------------------------------------------------------------------------------------------------ crops


def joint_box(joints: ArrayLike, margin_mm: float = MARGIN_MM) -> tuple[Array, Array]:
    """Lowest and highest corner (3,) of the joints' box (J, 3) grown on every side; in the joints' own space."""
    points = np.asarray(joints, np.float64)
    return points.min(0) - margin_mm, points.max(0) + margin_mm


def cube_box(center_mm: ArrayLike, cube_mm: float, space: Space) -> tuple[Array, Array]:
    """Corners in ``space`` of a cube of true ``cube_mm`` around a camera point (3,)."""
    center = np.asarray(center_mm, np.float64)
    corners = space.from_camera(np.stack([center - cube_mm / 2, center + cube_mm / 2]))
    return corners.min(0), corners.max(0)


def crop_points(depth_mm: NDArray[Any], space: Space, low: ArrayLike, high: ArrayLike) -> Array:
    """(n, 3) points in ``space`` of the pixels whose point lies in the box, borders included.

    Args:
        depth_mm: (H, W), 0 where nothing was measured.
        space: of the points and the box.
        low, high: (3,) corners.

    The order is column by column, as MATLAB stores pictures (it decides which points a seeded draw takes).
    """
    depth = np.asarray(depth_mm).T
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    u, v = np.nonzero((depth > 0) & (depth >= low[2]) & (depth <= high[2]))
    uvd = np.stack([u + space.pixel_shift, v + space.pixel_shift, depth[u, v]], 1).astype(np.float64)
    points = space.from_camera(camera.uvd_to_xyz(uvd, space.K))
    return points[((points >= low) & (points <= high)).all(1)]


def find_hand(depth_mm: NDArray[Any], K: ArrayLike, *, cube_mm: float = 200.0, min_region: int = MIN_REGION) -> Any:
    """(3,) camera mm of the middle of the nearest large object of a depth image, taken to be the hand, or None.

    From near to far the first connected region of more than ``min_region`` pixels starts; the object is what hangs
    together with it within ``cube_mm`` of depth. If it leaves the image (a forearm), its other end is the hand. Then,
    some rounds, the middle of its extents in the cube around the last middle: a forearm fills its side of the cube, so
    that the cube moves until the fingertips lie at its other face. (The mean of the points, as in DeepPrior++'s
    detector, is drawn to the forearm: with the stand-in a joint lay outside the cube in 19 of 100 frames, now in 6.)
    Wrong where something else is nearer than the hand.
    """
    from scipy import ndimage

    depth = np.asarray(depth_mm, np.float64)
    measured = (depth >= NEAR_MM) & (depth <= FAR_MM)
    if np.count_nonzero(measured) <= min_region:
        return None
    nearest = depth[measured].min()
    for limit in np.arange(nearest, FAR_MM, SEARCH_STEP_MM) + SEARCH_STEP_MM:
        regions, _ = ndimage.label(measured & (depth <= limit))
        sizes = np.bincount(regions.ravel())[1:]
        if sizes.max() > min_region:
            break
    else:
        return None
    start = regions == 1 + sizes.argmax()
    regions, _ = ndimage.label(measured & (depth <= depth[start].min() + cube_mm))
    v, u = np.nonzero(regions == regions[start][0])
    points = camera.uvd_to_xyz(np.stack([u, v, depth[v, u]], 1), K)
    center = points[start[v, u]].mean(0)
    border = (u == 0) | (v == 0) | (u == depth.shape[1] - 1) | (v == depth.shape[0] - 1)
    if border.any():
        away = np.linalg.norm(points - points[border].mean(0), axis=1)
        center = points[np.linalg.norm(points - points[away.argmax()], axis=1) <= cube_mm / 2].mean(0)
    for _ in range(10):
        inside = points[(np.abs(points - center) <= cube_mm / 2).all(1)]
        if not len(inside):
            return None
        center = np.percentile(inside, (1, 99), axis=0).mean(0)
    return center


# ------------------------------------------------------------------------------------------------ box, normals, sample


class Box(NamedTuple):
    """The oriented box: ``normalised = points @ rotation / length - offset``.

    ``rotation`` (3, 3) has the axes as columns; ``length`` is 1.2 x the extent along the first, in the space's mm;
    ``offset`` (3,) is the mean in units of the length. Batches have leading dimensions on all three.
    """

    rotation: Array
    length: Any
    offset: Array


def oriented_box(points: ArrayLike) -> Box:
    """The box of a cropped cloud (n, 3) in one space.

    Axes: principal directions, variances descending; the first with y >= 0, the third with z >= 0, the second their
    right-handed complement. The rotation is about the camera's centre, length and offset are of the whole crop.

    Raises:
        DataError: fewer than ``MIN_POINTS`` points, or all in one place.
    """
    cloud = np.asarray(points, np.float64)
    if len(cloud) < MIN_POINTS:
        raise DataError(f"a crop of {len(cloud)} points has no principal axes, at least {MIN_POINTS} are needed")
    centred = cloud - cloud.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    first, third = axes[:, 0], axes[:, 2]
    first = -first if first[1] < 0 else first
    third = -third if third[2] < 0 else third
    rotation = np.stack([first, np.cross(third, first), third], 1)
    turned = cloud @ rotation
    length = LENGTH_FACTOR * float(np.ptp(turned[:, 0]))
    if not length > 0:
        raise DataError("the points of the crop all lie in one place")
    return Box(rotation, length, turned.mean(0) / length)


def normalise(points: ArrayLike, box: Box) -> Array:
    """(..., n, 3) space -> normalised."""
    length = np.asarray(box.length)[..., None, None]
    return np.asarray(points, np.float64) @ box.rotation / length - np.asarray(box.offset)[..., None, :]


def denormalise(points: ArrayLike, box: Box) -> Array:
    """(..., n, 3) normalised -> space: ``((p + offset) length) rotation^T``; inverse of :func:`normalise`."""
    length = np.asarray(box.length)[..., None, None]
    turned = (np.asarray(points, np.float64) + np.asarray(box.offset)[..., None, :]) * length
    return np.asarray(turned @ np.swapaxes(box.rotation, -1, -2))


def normals_at(points: Array, index: NDArray[np.int64], neighbours: int = NORMAL_NEIGHBOURS) -> Array:
    """(m, 3) unit normals of ``points[index]``, fitted to the whole cloud (n, 3).

    Direction of least variance of the nearest ``neighbours`` points (itself included, all points if there are fewer),
    turned towards the camera at the origin. Neighbours at equal distance make a few differ by some degrees between
    implementations.
    """
    from scipy.spatial import cKDTree

    queries, back = np.unique(index, return_inverse=True)  # a small cloud is drawn several times over
    _, near = cKDTree(points).query(points[queries], k=min(neighbours, len(points)))
    group = points[near.reshape(len(queries), -1)]
    centred = group - group.mean(1, keepdims=True)
    normals = np.linalg.eigh(np.swapaxes(centred, 1, 2) @ centred)[1][..., 0]
    away = np.einsum("ij,ij->i", normals, points[queries]) > 0
    return np.asarray(np.where(away[:, None], -normals, normals)[back])


def sample_indices(available: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count,) indices below ``available``, each as often as possible the same number of times.

    Without replacement where there are enough; otherwise whole copies in order, then a random subset.
    """
    copies, rest = divmod(count, available)
    return np.concatenate([np.tile(np.arange(available), copies), rng.permutation(available)[:rest]]).astype(np.int64)


def oriented_cloud(points: Array, rng: np.random.Generator, count: int = POINTS) -> tuple[NDArray[np.float32], Box]:
    """(6, count) float32 normalised positions and turned unit normals of a cropped cloud (n, 3), and its box.

    Raises:
        DataError: see :func:`oriented_box`.
    """
    box = oriented_box(points)
    index = sample_indices(len(points), count, rng)
    turned = normals_at(points, index) @ box.rotation
    return np.concatenate([normalise(points[index], box), turned], 1).T.astype(np.float32), box
