"""From a depth image and a centre to joints in millimetres, with one network or an ensemble.

:func:`prepare` makes a trained network fast without changing what it computes (batch norms folded, channels-last
memory, half precision, the sparse stem); :class:`Predictor` adds the voxeliser and the decoding of its checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from shared.camera import project
from shared.datasets.base import Frame
from shared.errors import DataError
from shared.precision import Precision, choose_dtype
from v2v_posenet.convert import Checkpoint, load_checkpoint
from v2v_posenet.data import margin_of
from v2v_posenet.kernels import ops
from v2v_posenet.model import ConvNorm, Upsample, V2VPoseNet

Refine = Literal["none", "softargmax", "parabola"]
WINDOW = 4  # radius of the local soft-argmax in cells; with sigma 1.7 a radius of 2 would halve the offsets


# --- a fast network ---------------------------------------------------------------------------------------------------


def fold_batch_norms(network: V2VPoseNet) -> V2VPoseNet:
    """A copy in evaluation mode whose convolutions have taken over the scale and shift of their batch norms."""
    network = copy.deepcopy(network).eval()
    for unit in network.modules():
        if isinstance(unit, (ConvNorm, Upsample)):
            norm, conv = unit.norm, unit.conv
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert conv.bias is not None
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            outputs = (1, -1, 1, 1, 1) if isinstance(unit, Upsample) else (-1, 1, 1, 1, 1)
            with torch.no_grad():
                conv.weight.mul_(scale.view(outputs))
                conv.bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
            unit.norm = nn.Identity()  # type: ignore[assignment]
    return network


class FastNetwork(nn.Module):
    """A folded network: the stem in float32 where it is sparse, the trunk in ``dtype``, the output in float32.

    Takes (B, 1, X, Y, Z) of any float type and gives contiguous float32 maps (B, J, X/2, Y/2, Z/2).
    """

    def __init__(self, network: V2VPoseNet, dtype: torch.dtype, compile_trunk: bool) -> None:
        super().__init__()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.dtype = dtype
        self.sparse = next(network.parameters()).device.type == "cpu"
        if self.sparse:
            self.network.stem.float()  # exact, and the few patches are not faster in bfloat16
        self.network.output.float()
        self.trunk = torch.compile(self._trunk, dynamic=False) if compile_trunk else self._trunk

    def _trunk(self, x: Tensor) -> Tensor:
        network = self.network
        return network.last_features(network.encode_decode(network.front(x)))

    def forward(self, grid: Tensor) -> Tensor:
        self.network.check_grid(grid)
        x = self.network.stem(grid.to(torch.float32 if self.sparse else self.dtype))
        x = self.trunk(x.to(self.dtype).contiguous(memory_format=torch.channels_last_3d))
        # The 1^3 output layer as a product with the (cells, channels) view: joints come out contiguous, in float32.
        weight, bias = self.network.output.weight.flatten(1), self.network.output.bias
        cells = x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, x.shape[1]).float()
        assert bias is not None
        maps = torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), cells.transpose(1, 2))
        return maps.unflatten(2, x.shape[2:])


def prepare(
    network: V2VPoseNet,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    compile_trunk: bool = False,
) -> FastNetwork:
    """A copy of a trained network for inference; the original is not touched.

    Args:
        network: with batch norms, any device.
        device: where it will run.
        precision: of the trunk; the stem (on the CPU) and the output layer stay in float32.
        compile_trunk: through ``torch.compile``; the first call with each shape then takes a minute.

    Returns:
        :class:`FastNetwork`; call it under ``torch.inference_mode()``.
    """
    device = torch.device(device)
    dtype = choose_dtype(precision, device)
    return FastNetwork(fold_batch_norms(network).to(device), dtype, compile_trunk).eval()


# --- decoding ---------------------------------------------------------------------------------------------------------


def refine_peaks(heatmaps: Tensor, index: Tensor, method: Refine) -> Tensor:
    """Sub-cell positions around the maxima of Gaussian heat maps, in cells.

    Args:
        heatmaps: (B, J, X, Y, Z).
        index: (B, J, 3) int64, from ``ops.argmax3d``.
        method: ``none`` gives the index; ``softargmax`` the centre of mass of the positive values within
            :data:`WINDOW` cells; ``parabola`` the vertex of a parabola through the logarithms of a maximum and its two
            neighbours on each axis, exact for a Gaussian; an axis on which the three are not positive, not concave or
            not inside the volume keeps its index. Neither moves a joint by more than half a cell (``parabola``) or out
            of the window.

    Returns:
        (B, J, 3) float64.
    """
    if method not in get_args(Refine):
        raise DataError(f"refine must be one of {', '.join(get_args(Refine))}, got {method!r}")
    if method == "none":
        return index.double()
    shape = torch.tensor(heatmaps.shape[2:], device=index.device)
    radius = WINDOW if method == "softargmax" else 1
    step = torch.arange(-radius, radius + 1, device=index.device)
    place = index[..., None] + step  # (B, J, 3, 2r+1)
    inside = (place >= 0) & (place < shape[:, None])
    place = torch.minimum(place.clamp(min=0), shape[:, None] - 1)
    x, y, z = place.unbind(2)
    flat = (x[..., :, None, None] * shape[1] + y[..., None, :, None]) * shape[2] + z[..., None, None, :]
    values = heatmaps.flatten(2).gather(2, flat.flatten(2)).view(flat.shape).double()  # (B, J, w, w, w)
    if method == "softargmax":
        i, j, k = inside.unbind(2)
        mass = values.clamp(min=0) * (i[..., :, None, None] & j[..., None, :, None] & k[..., None, None, :])
        total = mass.sum((2, 3, 4)).clamp(min=1e-30)
        offset = torch.stack([(mass.sum(rest) * step).sum(-1) / total for rest in ((3, 4), (2, 4), (2, 3))], -1)
        return index + offset
    lines = torch.stack([values[:, :, :, 1, 1], values[:, :, 1, :, 1], values[:, :, 1, 1, :]], 2)  # (B, J, 3, 3)
    usable = inside.all(-1) & (lines > 0).all(-1)
    left, middle, right = torch.where(usable[..., None], lines, 1.0).log().unbind(-1)
    curvature = left - 2 * middle + right
    offset = 0.5 * (left - right) / torch.where(curvature < 0, curvature, 1.0)
    return index + torch.where(usable & (curvature < 0), offset, 0.0).clamp(-0.5, 0.5)


def decode_maps(
    maps: Tensor, ref_mm: Tensor, cube_mm: Tensor, checkpoint: Checkpoint, refine: Refine = "none"
) -> tuple[Tensor, Tensor]:
    """Heat maps or logits to joints, by the variant and the convention of their checkpoint.

    Args:
        maps: (B, J, X, Y, Z) network output.
        ref_mm: (B, 3) centres in the world of the grid, mm; cube_mm: (B,).
        checkpoint: says the variant and convention.
        refine: for the Gaussian variant only.

    Returns:
        Joints (B, J, 3) float64 mm in the world of the grid, and a confidence (B, J): the largest heat value, or for
        the integral variant the largest probability of a cell.
    """
    if checkpoint.variant == "integral":
        if refine != "none":
            raise DataError(
                f"refine={refine!r} is for the Gaussian variant", remedy="soft-argmax is sub-voxel already: use none"
            )
        cells, logsumexp = ops.soft_argmax(maps)
        confidence = (ops.argmax3d(maps)[1].float() - logsumexp).exp()
        return ops.decode(cells, ref_mm, cube_mm, grid=checkpoint.grid, mode="integral"), confidence
    index, peak = ops.argmax3d(maps)
    author = checkpoint.convention.name == "author"
    cells = refine_peaks(maps, index, refine)
    return ops.decode(cells, ref_mm, cube_mm, grid=checkpoint.grid, mode="author" if author else "port"), peak.float()


# --- the whole way ----------------------------------------------------------------------------------------------------


class Prediction(NamedTuple):
    """What a :class:`Predictor` gives for B images (the axis B is absent for a single one)."""

    joints_mm: NDArray[np.float64]  # (B, J, 3) camera frame, OpenCV axes (x right, y down, z forward), mm
    uv: NDArray[
        np.float64
    ]  # (B, J, 2) pixels of the full image, from 0; NaN where a joint is not in front of the camera
    confidence: NDArray[np.float32]  # (B, J); 0 where the cube was empty
    voxels: NDArray[np.int64]  # (B,) occupied voxels; a hand fills 2,000 and more, 0 means a wrong centre


class Predictor:
    """Joints from depth images.

    Args:
        checkpoints: one or several of our checkpoints (paths or loaded). Several are an ensemble: their joints are
            averaged in millimetres (as the paper does with the models of its ten epochs).
        device: ``"cpu"`` or ``"cuda"``.
        precision: see :func:`prepare`.
        refine: sub-voxel position for the Gaussian variant, see :func:`refine_peaks`.
        compile_trunk: see :func:`prepare`.

    Raises:
        DataError: a bad checkpoint, or an ensemble whose members differ in joints, order or data set.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint | str | Path] | Checkpoint | str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        refine: Refine = "none",
        compile_trunk: bool = False,
    ) -> None:
        if isinstance(checkpoints, (Checkpoint, str, Path)):
            checkpoints = [checkpoints]
        self.checkpoints = [c if isinstance(c, Checkpoint) else load_checkpoint(c) for c in checkpoints]
        if not self.checkpoints:
            raise DataError("checkpoints is empty", remedy="give at least one checkpoint")
        first = self.checkpoints[0]
        for i, other in enumerate(self.checkpoints):
            ours, theirs = ((c.joints, c.skeleton, c.dataset) for c in (first, other))
            if ours != theirs:
                raise DataError(
                    f"checkpoint {i} has {theirs} (joints, order, data set), checkpoint 0 has {ours}",
                    remedy="an ensemble needs networks for the same joints",
                )
            if other.variant == "integral" and refine != "none":
                raise DataError(
                    f"checkpoint {i} is of the integral variant, which has no refine={refine!r}", remedy="use none"
                )
        if refine not in get_args(Refine):
            raise DataError(f"refine must be one of {', '.join(get_args(Refine))}, got {refine!r}")
        self.device, self.refine = torch.device(device), refine
        self.networks = [
            prepare(c.build(), device=device, precision=precision, compile_trunk=compile_trunk)
            for c in self.checkpoints
        ]

    @property
    def skeleton(self) -> str:
        """The name of the joint order of the results."""
        return self.checkpoints[0].skeleton

    def __call__(
        self,
        depth_mm: ArrayLike,
        K: ArrayLike,
        center_mm: ArrayLike,
        *,
        crop_xy: tuple[int, int] = (0, 0),
        image_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """One image.

        Args:
            depth_mm: (h, w) depth along z in mm, 0 where nothing was measured; the full image or a crop of it.
            K: (3, 3) pinhole matrix of the full image, pixels counted from 0.
            center_mm: (3,) reference point, the middle of the cube: camera frame, OpenCV axes, mm.
            crop_xy: left and top of the crop in the full image.
            image_size: width and height of the full image; default: that of ``depth_mm`` with its offset.

        Returns:
            :class:`Prediction` without the axis B.
        """
        depth = np.ascontiguousarray(depth_mm, np.float32)
        if depth.ndim != 2:
            raise DataError(f"depth_mm must be (h, w), got shape {depth.shape}")
        size = image_size or (crop_xy[0] + depth.shape[1], crop_xy[1] + depth.shape[0])
        frame = Frame(
            name="image",
            image_size=size,
            K=np.asarray(K, np.float64),
            skeleton=self.skeleton,
            depth_mm=depth,
            crop_xy=crop_xy,
            center_mm=np.asarray(center_mm, np.float64),
        )
        joints_mm, uv, confidence, voxels = self.predict_frames([frame])
        return Prediction(joints_mm[0], uv[0], confidence[0], voxels[0])

    def predict_frames(self, frames: Sequence[Frame]) -> Prediction:
        """A batch of frames with depth and centre; the batch is run as one."""
        if not frames:
            raise DataError("frames is empty", remedy="give at least one frame")
        depth, boxes, sizes, cameras, centers = self._pack(frames)
        batch = len(frames)
        total = torch.zeros((batch, self.checkpoints[0].joints, 3), dtype=torch.float64)
        confidence = torch.zeros(total.shape[:2])
        grids: dict[tuple[object, ...], Tensor] = {}
        with torch.inference_mode():
            for checkpoint, network in zip(self.checkpoints, self.networks, strict=True):
                convention, axes = checkpoint.convention, [1.0, -1.0 if checkpoint.y_up else 1.0, 1.0]
                ref_mm = centers * torch.tensor(axes, dtype=torch.float64)
                cube_mm = torch.full((batch,), checkpoint.cube_mm, dtype=torch.float64)
                kind = (convention.pixel_origin, convention.rounding, convention.name == "author", checkpoint.grid)
                key = (*kind, checkpoint.cube_mm, checkpoint.y_up, checkpoint.max_depth_mm)
                if key not in grids:
                    grids[key] = ops.voxelize(
                        depth,
                        boxes,
                        sizes,
                        cameras,
                        ref_mm,
                        cube_mm,
                        torch.ones(batch),
                        torch.zeros(batch),
                        torch.full((batch, 3), float(margin_of(checkpoint.grid))),
                        torch.full((batch,), checkpoint.max_depth_mm),
                        checkpoint.y_up,
                        pixel_origin=convention.pixel_origin,
                        rounding=convention.rounding,
                        author=convention.name == "author",
                        grid=checkpoint.grid,
                        margin=margin_of(checkpoint.grid),
                    )
                maps = network(grids[key])
                joints, peak = decode_maps(
                    maps, ref_mm.to(maps.device), cube_mm.to(maps.device), checkpoint, self.refine
                )
                total += joints.cpu() * torch.tensor(axes, dtype=torch.float64)
                confidence += peak.cpu()
        voxels = next(iter(grids.values())).flatten(1).count_nonzero(1).cpu()
        joints_mm = (total / len(self.networks)).numpy()
        confidence = torch.where(voxels[:, None] > 0, confidence / len(self.networks), 0.0)
        return Prediction(joints_mm, self._project(joints_mm, frames), confidence.numpy(), voxels.numpy())

    def _pack(self, frames: Sequence[Frame]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        crops, boxes, sizes, cameras, centers = [], [], [], [], []
        for frame in frames:
            if frame.depth_mm is None or frame.center_mm is None:
                what = "depth image" if frame.depth_mm is None else "centre"
                raise DataError(
                    f"frame {frame.name!r} has no {what}", remedy="give a centre file, or compute centres first"
                )
            center, K = np.asarray(frame.center_mm, np.float64), np.asarray(frame.K, np.float64)
            if center.shape != (3,) or not np.isfinite(center).all() or K.shape != (3, 3) or abs(K[0, 1]) > 1e-9:
                raise DataError(
                    f"frame {frame.name!r}: expected center_mm of 3 finite numbers and a (3, 3) K without skew, got "
                    f"{center.tolist()} and {K.tolist()}"
                )
            height, width = frame.depth_mm.shape
            left, top = frame.crop_xy
            crops.append(torch.from_numpy(np.ascontiguousarray(frame.depth_mm, np.float32).reshape(-1)))
            boxes.append((left, top, left + width, top + height))
            sizes.append(frame.image_size)
            cameras.append((K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
            centers.append(center)
        return (
            torch.cat(crops).to(self.device),
            torch.tensor(boxes, dtype=torch.int64),
            torch.tensor(sizes, dtype=torch.int64),
            torch.tensor(cameras, dtype=torch.float64),
            torch.from_numpy(np.stack(centers)),
        )

    @staticmethod
    def _project(joints_mm: NDArray[np.float64], frames: Sequence[Frame]) -> NDArray[np.float64]:
        """(B, J, 2) pixels; NaN for joints at or behind the camera."""
        front = joints_mm[..., 2:] > 0
        uv = project(np.where(front, joints_mm, [0.0, 0.0, 1.0]), np.stack([frame.K for frame in frames]))
        return np.where(front, uv, np.nan)
