"""A loaded network and the way from a picture to its input and back, for prediction and evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hand3d_wild.crop import (
    CUT,
    MIDDLE,
    NETWORK,
    STORED,
    Box,
    crop_rgb,
    cut_points,
    cut_rgb,
    from_crop,
    mirror_points,
    resize_as_tester,
    to_crop,
)
from shared.errors import DataError
from shared.precision import choose_device

if TYPE_CHECKING:
    from torch import Tensor

    from hand3d_wild.decoder import Prediction

Float = NDArray[np.float64]
RGB = NDArray[np.uint8]
Side = Literal["right", "left"]


@dataclass(frozen=True)
class View:
    """One hand in one picture and how the network is shown it.

    Attributes:
        rgb: the picture as it is (H, W, 3).
        box: (top, bottom, left, right), ends included, of the picture (mirrored for a left hand).
        side: a left hand is mirrored for the network and back.
        whole: show the whole crop through the authors' tester's filter; else the middle 306 of 320 pixels, which is
            what training showed.
    """

    rgb: RGB
    box: Box
    side: Side = "right"
    whole: bool = False

    @property
    def scale(self) -> float:
        """Pixels of the picture per pixel of the network's 256."""
        edge = self.box[3] - self.box[2] + 1
        return edge / NETWORK if self.whole else CUT / NETWORK * edge / STORED

    def crop(self) -> RGB:
        """(320, 320, 3) the stored form of the crop, mirrored for a left hand."""
        return crop_rgb(self.rgb[:, ::-1] if self.side == "left" else self.rgb, self.box)

    def input(self, size: int) -> RGB:
        """(size, size, 3) what the network sees."""
        if self.whole:
            top, bottom, left, right = self.box
            picture = self.rgb[:, ::-1] if self.side == "left" else self.rgb
            return resize_as_tester(np.ascontiguousarray(picture[top : bottom + 1, left : right + 1]), size)
        return cut_rgb(self.crop(), (int(MIDDLE), int(MIDDLE)), size=size)

    def to_network(self, points: ArrayLike) -> Float:
        """Points (..., 2) of the picture in the network's 256 pixels."""
        there = np.asarray(points, np.float64)
        if self.side == "left":
            there = mirror_points(there, self.rgb.shape[1])
        if self.whole:
            return to_crop(there, self.box, size=NETWORK)
        return cut_points(to_crop(there, self.box))

    def from_network(self, points: ArrayLike) -> Float:
        """Inverse of :meth:`to_network`."""
        there = np.asarray(points, np.float64)
        if self.whole:
            there = from_crop(there, self.box, size=NETWORK)
        else:
            there = from_crop(there * (CUT / NETWORK) + MIDDLE, self.box)
        return mirror_points(there, self.rgb.shape[1]) if self.side == "left" else there

    def maps(self, points: ArrayLike, peaks: ArrayLike, size: int) -> NDArray[np.float32]:
        """(size, size, 21) heat maps of joints (21, 2) of the picture, order ``wild``, peaks (21,) in 0..1."""
        from hand3d_wild.heatmaps import SIGMA, gaussian_maps

        known = np.clip(np.asarray(peaks, np.float64), 0, 1)
        there = np.where(known[:, None] > 0, self.to_network(points), 0) * (size / NETWORK)
        return gaussian_maps(there, known, size, sigma=SIGMA if self.whole else SIGMA * STORED / CUT)

    def stored_maps(self, pictures: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
        """(size, size, 21) heat maps of the original's seven files (7, H, W, 3) of this crop, seen as the crop is."""
        from hand3d_wild.heatmaps import unpack

        return unpack(np.stack([replace(self, rgb=picture).input(size) for picture in pictures]))


@dataclass(frozen=True)
class Hand:
    """One predicted hand. Joints are in the order ``wild``; OpenCV axes; a left hand is given as a left hand.

    Attributes:
        joints_mm: (21, 3) mm, turned like the camera, not placed (origin as MANO's).
        verts_mm: (778, 3) likewise.
        keypoints_2d: (21, 2) pixels of the picture.
        verts_2d: (778, 2) likewise.
        px_per_m: scale of the orthographic camera in the picture.
        palm_mm, palm_2d: (3,), (2,) the middle of the palm.
        params: (22,) float32, the network's numbers, in its frame (mirrored for a left hand).
        share: longer side of the joints' box over the edge of the crop; about 1 / 2.2 where the crop is right.
    """

    joints_mm: Float
    verts_mm: Float
    keypoints_2d: Float
    verts_2d: Float
    px_per_m: float
    palm_mm: Float
    palm_2d: Float
    params: NDArray[np.float32]
    share: float


class Predictor:
    """A loaded network: views in, hands out.

    Args:
        checkpoint: in our format; the authors' weights go through ``python -m hand3d_wild.convert`` first.
        mano: MANO_RIGHT.pkl, its ``.npz``, or ``"standin"``; empty takes the stand-in where the network was trained
            with it.
        device, precision: where and how the network runs.

    Raises:
        DataError: no or another method's checkpoint, no MANO, no such device.
    """

    def __init__(self, checkpoint: str | Path, mano: str, *, device: str = "cpu", precision: str = "float32") -> None:
        from hand3d_wild.convert import load_checkpoint
        from shared.mano import load_mano

        if not str(checkpoint):
            raise DataError(
                "no checkpoint is given",
                remedy="--checkpoint FILE: train one with python -m hand3d_wild.train, or convert the authors' with "
                "python -m hand3d_wild.convert",
            )
        loaded = load_checkpoint(checkpoint)
        trained = loaded.extra.get("data", {})
        mano = mano or str(trained.get("mano", "") if isinstance(trained, dict) else "")
        if not mano:
            raise DataError(
                "no MANO model is named",
                remedy="give --mano MANO_RIGHT.pkl, which mano.is.tue.mpg.de gives out after registration; "
                "--mano standin is a free hand, for the stand-in data",
            )
        device = choose_device(device)
        self.model = load_mano(mano, side="right")
        self.extra = loaded.extra
        self.device, self.precision = device, precision
        self.network = loaded.build(self.model).to(device)
        self.size, self.form = self.network.image_size, self.network.form

    def forward(self, image: Tensor) -> Prediction:
        """The network's output for (B, C, S, S) in 0..1."""
        import torch

        with (
            torch.inference_mode(),
            torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            pred: Prediction = self.network(image.to(self.device))
        return pred

    def predict(self, views: Sequence[View], maps: Sequence[NDArray[np.float32]] | None = None) -> list[Hand]:
        """One hand for each view.

        Args:
            views: pictures and boxes.
            maps: (S, S, 21) heat maps of each view (:meth:`View.maps`), for a network of that form.

        Raises:
            DataError: a network with heat maps and none given; a prediction that is not finite.
        """
        import torch

        pictures = [view.input(self.size).astype(np.float32) * np.float32(1 / 255) for view in views]
        if self.form == "heatmaps":
            if maps is None:
                raise DataError(
                    "this network needs 21 heat maps beside the picture",
                    remedy="give 2-D joints (--keypoints), of which the maps are made",
                )
            pictures = [np.concatenate(pair, -1) for pair in zip(pictures, maps, strict=True)]
        image = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return self.hands(views, self.forward(image))

    def decode(self, views: Sequence[View], params: Tensor) -> list[Hand]:
        """Hands of given numbers (B, 22), such as fitted ones."""
        import torch

        with torch.inference_mode():
            return self.hands(views, self.network.decoder(params.to(self.device)))

    def hands(self, views: Sequence[View], pred: Any) -> list[Hand]:
        """The network's output as hands in their pictures."""
        from shared.mano import PALM_VERTS

        arrays = {
            name: getattr(pred, name).double().cpu().numpy()
            for name in ("joints_2d", "verts_2d", "joints_m", "verts_m")
        }
        numbers = pred.params.vector.float().cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(arrays["verts_2d"]).all((1, 2)))
        if len(bad):
            raise DataError(f"the network's prediction for picture {bad[0] + 1} of the batch is not finite")
        found = []
        for i, view in enumerate(views):
            flip = np.array([-1.0, 1, 1]) if view.side == "left" else np.ones(3)
            verts_mm, verts_2d = arrays["verts_m"][i] * 1000 * flip, view.from_network(arrays["verts_2d"][i])
            keypoints = arrays["joints_2d"][i]
            edge = NETWORK if view.whole else NETWORK * STORED / CUT
            found.append(
                Hand(
                    joints_mm=arrays["joints_m"][i] * 1000 * flip,
                    verts_mm=verts_mm,
                    keypoints_2d=view.from_network(keypoints),
                    verts_2d=verts_2d,
                    px_per_m=float(numbers[i, 0]) * view.scale,
                    palm_mm=verts_mm[list(PALM_VERTS)].mean(0),
                    palm_2d=verts_2d[list(PALM_VERTS)].mean(0),
                    params=numbers[i],
                    share=float(np.ptp(keypoints, axis=0).max() / edge),
                )
            )
        return found

    def faces(self, side: Side) -> NDArray[np.int64]:
        """(1538, 3) triangles, counter-clockwise from outside for that hand."""
        return self.model.faces if side == "right" else np.ascontiguousarray(self.model.faces[:, ::-1])
