"""Options of HandOccNet as dataclasses (no heavy import: ``--help`` is quick)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from shared.options import TrainOptions, check_ranges

DatasetName = Literal["ho3d", "dexycb"]
TipsName = Literal["manopth", "ho3d", "ho3d_viewer", "freihand", "smplx", "wild"]


@dataclass
class DataOptions:
    """Which frames and which hand model.

    Args:
        dataset: data set to read
        root: its folder, as unpacked from the official archive (with annotations: the folder that holds HandOccNet's
            pictures, HO3D/data or DEX_YCB/data)
        annotations: folder of HandOccNet's annotation files (HO3D_train_data.json, ...); empty reads the data set's own
            metas instead
        mano: MANO_RIGHT.pkl, or an .npz made by python -m shared.mano_import, or the word standin
        mano_left: MANO_LEFT.pkl, for DexYCB's left hands without annotation files
        dexycb_split: what DexYCB is tested on: test (the readme and the published files), or val (the newest code)
        sides: hands that are used; left ones are mirrored
        box_rule: reference (the author's helper, one pixel lost, boxes moved in) or clipped (exact)
        missing: frames that are not on disk: error, or skip (counted; for a part of a data set)
        index: folder for the lists of frames without a label, so that the next start is quicker; empty keeps none
        train_limit: train on this many frames, evenly spread; 0 means all [frames]
        test_limit: test on this many frames, evenly spread; 0 means all (a submission needs all) [frames]
        val_limit: validate on this many test frames, evenly spread; 0 means all, -1 none [frames]
    """

    dataset: DatasetName = "ho3d"
    root: str = ""
    annotations: str = ""
    mano: str = ""
    mano_left: str = ""
    dexycb_split: Literal["test", "val"] = "test"
    sides: Literal["both", "right", "left"] = "both"
    box_rule: Literal["reference", "clipped"] = "reference"
    missing: Literal["error", "skip"] = "error"
    index: str = ""
    train_limit: int = 0
    test_limit: int = 0
    val_limit: int = 500


@dataclass
class ModelOptions:
    """Sizes of the network; the defaults are the published one, the stand-in configuration is smaller.

    Args:
        image_size: edge of the crop, a power of two [pixels]
        stem: channels of the first convolution
        blocks: bottlenecks of the four stages
        channels: of the map and the transformers
        heads: attention heads
        hidden: widths of the two layers before pose and shape
        tips: fingertip vertices of the predicted joints
    """

    image_size: int = 256
    stem: int = 64
    blocks: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    channels: int = 256
    heads: int = 4
    hidden: list[int] = field(default_factory=lambda: [1024, 512])
    tips: TipsName = "manopth"


@dataclass
class AugmentOptions:
    """Augmentation of training samples; the defaults are the original's.

    Args:
        scale: the box grows or shrinks by a normal number, cut at 1, times this share
        rotate_deg: turn by a normal number, cut at 2, times this [degrees]
        rotate_share: share of the samples that are turned [0 to 1]
        colour: each colour channel is multiplied by 1 plus or minus up to this [0 to 1]
    """

    scale: float = 0.25
    rotate_deg: float = 30.0
    rotate_share: float = 0.6
    colour: float = 0.2


@dataclass
class OptimOptions:
    """The optimiser: Adam, as in the original.

    Args:
        lr: learning rate for reference_batch samples a step
        schedule: ho3d (times 0.7 every 10 epochs), dexycb (times 0.9 every epoch), auto (by the data set), constant, or
            cosine to zero over the run
        reference_batch: global batch that lr is meant for; another one (devices times batch_size) scales lr in
            proportion; 0 never scales [samples]
        warmup_steps: steps of linear rise at the start; 0 means none [steps]
    """

    lr: float = 1e-4
    schedule: Literal["auto", "ho3d", "dexycb", "constant", "cosine"] = "auto"
    reference_batch: int = 64
    warmup_steps: int = 0


@dataclass
class LossOptions:
    """Weights of the five losses (the original's lambdas).

    Args:
        mano_verts: vertices against MANO of the labels, squared metres
        mano_joints: joints against MANO of the labels, squared metres
        mano_pose: rotation matrices
        mano_shape: betas
        joints_img: 2D joints, fractions of the crop
    """

    mano_verts: float = 1e4
    mano_joints: float = 1e4
    mano_pose: float = 10.0
    mano_shape: float = 0.1
    joints_img: float = 100.0


@dataclass
class TrainConfig(TrainOptions):
    __doc__ = (TrainOptions.__doc__ or "").replace(
        "Args:\n",
        "Args:\n"
        "        run: folder of the run; empty means runs/handoccnet/<data set>\n"
        "        resume: continue the run from its last checkpoint\n"
        "        init_from: checkpoint whose weights the training starts from; empty means random weights\n"
        "        init: starting weights behind the backbone: original (tiny normals, slow to begin without ImageNet\n"
        "            weights in the backbone), or torch (the framework's defaults)\n"
        "        backbone_weights: ImageNet weights of ResNet-50, torchvision's names; empty means random weights\n",
        1,
    )

    epochs: int = 70
    batch_size: int = 16
    run: str = ""
    resume: bool = False
    init_from: str = ""
    init: Literal["original", "torch"] = "original"
    backbone_weights: str = ""
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    loss: LossOptions = field(default_factory=LossOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            {
                "data.train_limit": (0, math.inf),
                "data.test_limit": (0, math.inf),
                "data.val_limit": (-1, math.inf),
                "augment.scale": (0, 0.99),
                "augment.rotate_deg": (0, 180),
                "augment.rotate_share": (0, 1),
                "augment.colour": (0, 1),
                "optim.lr": (0, math.inf),
                "optim.reference_batch": (0, math.inf),
                "optim.warmup_steps": (0, math.inf),
            },
        )


@dataclass
class EvalData:
    """Which frames are evaluated; what is left empty is as in training.

    Args:
        root: folder of the data set
        dataset: data set to read; default: the one the checkpoint was trained for
        annotations: folder of HandOccNet's annotation files
        mano: MANO_RIGHT.pkl or .npz, or the word standin; default: standin where the checkpoint was trained with it
        mano_left: MANO_LEFT.pkl, for DexYCB's left hands without annotation files
        dexycb_split: test or val
        missing: frames that are not on disk: error, or skip (counted; for a part of a data set)
        limit: this many frames, evenly spread; 0 means all (a submission needs all) [frames]
    """

    root: str = ""
    dataset: DatasetName | None = None
    annotations: str | None = None
    mano: str = ""
    mano_left: str | None = None
    dexycb_split: Literal["test", "val"] | None = None
    missing: Literal["error", "skip"] | None = None
    limit: int = 0


@dataclass
class EvalConfig:
    """What is evaluated and where the results go.

    Args:
        checkpoint: checkpoint of a run
        out: folder of the results; empty means eval/ in the run's folder, or beside the checkpoint
        tips: fingertip vertices of the predicted joints, ho3d for those of HO-3D's own labels; default: the network's
        precision: of the network: float32 or bfloat16
        device: cpu, cuda, or auto
        batch_size: crops per network call [crops]
        workers: loader processes [processes]
        baseline: compare with the mean pose of the training split
        decimals: digits after the point in the prediction file [digits of a metre]
    """

    checkpoint: list[str] = field(default_factory=list)
    out: str = ""
    tips: TipsName | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 32
    workers: int = 2
    baseline: bool = True
    decimals: int = 6
    data: EvalData = field(default_factory=EvalData)

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "workers": 0, "decimals": 0, "data.limit": 0}
        check_ranges(self, {name: (low, math.inf) for name, low in least.items()})


@dataclass
class PredictConfig:
    """Options of the demo.

    Args:
        images: pictures, folders of them, animations or videos
        checkpoint: a run's checkpoint, or a converted snapshot
        bbox: x,y,w,h around the hand, counted from the top left corner [pixels]
        boxes: JSON file with a box for each picture by file name, or a COCO-like annotation file, instead of bbox
        out: folder for the results
        hand: which hand it is; a left one is mirrored for the network and back
        mano: MANO_RIGHT.pkl, or an .npz made by python -m shared.mano_import, or the word standin
        fit: also write what the original's second demo writes: the translation that fits 3D to 2D joints
        depth: expected distance of the hand for the fit; 0 estimates it from the joints alone [mm]
        method: of the fit, newton or lbfgs (the original's optimiser)
        focal: of the camera, whose centre is the picture's; the original's value is not your camera's [pixels]
        intrinsics: fx,fy,cx,cy where they are known, instead of focal [pixels]
        track: follow the hand: from the second frame on the box comes from the joints before
        box_rule: reference (the author's helper, one pixel lost, boxes moved in) or clipped (exact)
        precision: of the network: float32 or bfloat16
        device: cpu, cuda, or auto (cuda where there is one)
        batch_size: crops per network call; 1 with --track [crops]
    """

    images: list[str] = field(default_factory=list)
    checkpoint: str = ""
    bbox: str = ""
    boxes: str = ""
    out: str = "predictions"
    hand: Literal["right", "left"] = "right"
    mano: str = ""
    fit: bool = False
    depth: float = 0.0
    method: Literal["newton", "lbfgs"] = "newton"
    focal: float = 500.0
    intrinsics: str = ""
    track: bool = False
    box_rule: Literal["reference", "clipped"] = "reference"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 8
