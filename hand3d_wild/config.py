"""Options of hand3d_wild's programs as dataclasses (no heavy import: ``--help`` is quick).

The names of the original's YAML keys are in README.md, beside ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from shared.options import TrainOptions

Weight = float | list[list[float]]  # a number, or [[step, value], ...]: the value from that step on


@dataclass
class PrepareConfig:
    """What is prepared and where it goes.

    Args:
        panoptic: folder of CMU Panoptic's hand143_panopticdb; empty leaves it out
        mpii: folder of MPII+NZSL's hand_labels; empty leaves it out
        stb: folder of STB, with labels/ and images/; empty leaves it out
        out: folder of the store
        stb_cameras: pictures of which of STB's stereo cameras
        masks: grabcut; none; or a folder with <source>/<name>.png of 320 x 320 pixels, one for each crop
        detections: folder with OpenPose's <source>/<name>_keypoints.json, source being panoptic, mpii or stb; or with
            heat maps of the crops, <source>/<name>_0.png to <name>_6.png, 320 x 320 pixels; empty for none
        mirror: turn left hands into right ones; without it the store is for other programs, training refuses it
        workers: processes [processes]
        limit: use this many pictures of each part, evenly spread; 0 means all [pictures]
        resume: continue a store that was begun with the same options
    """

    panoptic: str = ""
    mpii: str = ""
    stb: str = ""
    out: str = ""
    stb_cameras: Literal["both", "left", "right"] = "both"
    masks: str = "grabcut"
    detections: str = ""
    mirror: bool = True
    workers: int = 2
    limit: int = 0
    resume: bool = False


@dataclass
class ModelOptions:
    """Sizes of the network; the defaults are the published one.

    Args:
        form: rgb, or heatmaps for RGB and 21 heat maps
        image_size: edge of the input, a multiple of 32 [pixels]
        width: channels of the stem, a multiple of 16
        blocks: residual blocks of the four stages
        full_pool: average the whole last map instead of the published 7 x 7 window
        camera_gain: what the last layer's scale and translation, in pixels, are multiplied by: short trainings do not
            get there in steps of 1
        init: starting weights: kaiming (the original's choice), gaussian, xavier, orthogonal or default
    """

    form: Literal["rgb", "heatmaps"] = "rgb"
    image_size: int = 256
    width: int = 64
    blocks: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    full_pool: bool = False
    camera_gain: float = 1.0
    init: Literal["kaiming", "gaussian", "xavier", "orthogonal", "default"] = "kaiming"


@dataclass
class OptimOptions:
    """Adam; the weight decay is Adam's own (an L2 term in the gradient), as in the original.

    Args:
        lr: learning rate
        beta1: decay of the mean of gradients [0 to 1]
        beta2: decay of the mean of their squares [0 to 1]
        weight_decay: L2 term
        schedule: step (times gamma every step_size steps), cosine to zero over the run, or constant
        step_size: of schedule step [steps]
        gamma: of schedule step
        warmup_steps: steps of linear rise at the start; 0 means none [steps]
    """

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    schedule: Literal["step", "cosine", "constant"] = "step"
    step_size: int = 10000
    gamma: float = 0.5
    warmup_steps: int = 0


@dataclass
class HeatmapOptions:
    """The 21 maps of the second input form.

    Args:
        source: joints of the labels, or detections of a 2-D detector (python -m hand3d_wild.prepare --detections)
        jitter: of the labels' joints, standard deviation, pixels of 320; training only [pixels]
        missing: share of the joints without a map; training only [0 to 1]
    """

    source: Literal["labels", "detections"] = "labels"
    jitter: float = 2.0
    missing: float = 0.02


@dataclass
class DataOptions:
    """The prepared pictures.

    Args:
        store: folder that python -m hand3d_wild.prepare wrote
        mano: MANO_RIGHT.pkl, or an .npz made by python -m shared.mano_import, or the word standin
        depth: 3-D labels against the crop: scaled alike on all axes, or reference (depth left as it was, as the seed
            has it)
        root: what is compared with labels whose joint 0 is the palm: palm (the middle of two predicted vertices), or
            wrist (as the seed has it)
        noise: standard deviation of the pixel noise in training, of 255
        turn: largest turn of picture and labels about the crop's middle in training; the original has none [degrees]
        zoom: largest part by which the crop is enlarged or reduced in training; the original has none [0 to 1]
        val_split: validate on stb_test (B1, has 3-D), test (MPII+NZSL, 2-D only), or auto: the first that is there
        train_limit: train on this many pictures, evenly spread; 0 means all [pictures]
        val_limit: validate on this many, evenly spread; 0 means all, -1 none [pictures]
    """

    store: str = ""
    mano: str = ""
    depth: Literal["scaled", "reference"] = "scaled"
    root: Literal["palm", "wrist"] = "palm"
    noise: float = 1.0
    turn: float = 0.0
    zoom: float = 0.0
    val_split: Literal["auto", "stb_test", "test"] = "auto"
    train_limit: int = 0
    val_limit: int = 500


@dataclass
class LossOptions:
    """The four losses. A weight is a number, or a schedule [[0, 100], [30000, 10]]: the value from that step on.

    Args:
        loss_3d: perspective (squared metres), 3d_norm, or 3d_norm_no_detach (a free scale for each axis)
        loss_mask: sample (the paper's, gradient at the border only), or distance (signed distance, gradient everywhere)
        coverage: of loss_mask distance: weight of the silhouette's points that no vertex is near
        common_std: of the norm losses: one scale for the three axes
        shape_weight: of the shape within the regulariser
        w_2d: weight of the 2-D joints
        w_3d: weight of the 3-D joints
        w_mask: weight of the mask
        w_reg: weight of the regulariser
    """

    loss_3d: Literal["perspective", "3d_norm", "3d_norm_no_detach"] = "perspective"
    loss_mask: Literal["sample", "distance"] = "sample"
    coverage: float = 1.0
    common_std: bool = False
    shape_weight: float = 1e4
    w_2d: Weight = 4.0
    w_3d: Weight = 1e5
    w_mask: Weight = 10.0
    w_reg: Weight = 10.0


_RUN_DOC = (
    "        run: folder of the run; empty means runs/wild/{0}\n"
    "        resume: continue the run from its last checkpoint\n"
    "        iterations: steps of the whole run, instead of epochs; 0 counts epochs [steps]\n"
    "        init_from: checkpoint whose weights the training starts from (a pretraining's, or a converted one of the\n"
    "            authors); empty means new weights\n"
)


@dataclass
class TrainConfig(TrainOptions):
    __doc__ = (TrainOptions.__doc__ or "").replace("Args:\n", "Args:\n" + _RUN_DOC.format("train"), 1)

    batch_size: int = 16
    run: str = ""
    resume: bool = False
    iterations: int = 0
    init_from: str = ""
    data: DataOptions = field(default_factory=DataOptions)
    heatmaps: HeatmapOptions = field(default_factory=HeatmapOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    loss: LossOptions = field(default_factory=LossOptions)


@dataclass
class PretrainData:
    """The synthetic pictures.

    Args:
        root: folder that python -m hand3d_wild.synthesize wrote
        mano: MANO_RIGHT.pkl, or its .npz, or the word standin
        reference_translation: the original's mistake: translations are not scaled with the picture
        cache: keep decoded pictures in a memory-mapped file of this folder; empty decodes every time
        train_limit: train on this many pictures; 0 means all [pictures]
        val_limit: validate on this many; 0 means all, -1 none [pictures]
    """

    root: str = ""
    mano: str = ""
    reference_translation: bool = False
    cache: str = ""
    train_limit: int = 0
    val_limit: int = 0


@dataclass
class PretrainLoss:
    """Differences of the 22 numbers, group by group.

    Args:
        norm: L2 (mean of squares) or L1
        rotation: compare axis-angle vectors (the original), rotation matrices, or the angle between the rotations
            (geodesic)
        w_scale: weight of the scale
        w_trans: weight of the translation
        w_rot: weight of the rotation
        w_pose: weight of the pose
        w_betas: weight of the shape
    """

    norm: Literal["L2", "L1"] = "L2"
    rotation: Literal["vector", "matrix", "geodesic"] = "vector"
    w_scale: float = 0.1
    w_trans: float = 0.2
    w_rot: float = 5000.0
    w_pose: float = 1000.0
    w_betas: float = 100000.0


@dataclass
class PretrainConfig(TrainOptions):
    __doc__ = (TrainOptions.__doc__ or "").replace("Args:\n", "Args:\n" + _RUN_DOC.format("pretrain"), 1)

    batch_size: int = 32
    run: str = ""
    resume: bool = False
    iterations: int = 0
    init_from: str = ""
    data: PretrainData = field(default_factory=PretrainData)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=lambda: OptimOptions(beta1=0.5))
    loss: PretrainLoss = field(default_factory=PretrainLoss)


_AT_LEAST_0 = (0, math.inf)
_OPTIM_RANGES: dict[str, tuple[float, float]] = {
    "data.train_limit": _AT_LEAST_0,
    "data.val_limit": (-1, math.inf),
    "optim.lr": _AT_LEAST_0,
    "optim.beta1": (0, 0.999999),  # Adam divides by 1 - beta
    "optim.beta2": (0, 0.999999),
    "optim.weight_decay": _AT_LEAST_0,
    "optim.step_size": (1, math.inf),
    "optim.gamma": _AT_LEAST_0,
    "optim.warmup_steps": _AT_LEAST_0,
}
TRAIN_RANGES = _OPTIM_RANGES | {
    "data.noise": _AT_LEAST_0,
    "data.turn": (0, 180),
    "data.zoom": (0, 0.99),  # at 1 a picture could shrink to a point
    "heatmaps.jitter": _AT_LEAST_0,
    "heatmaps.missing": (0, 1),
    "loss.coverage": _AT_LEAST_0,
    "loss.shape_weight": _AT_LEAST_0,
}
PRETRAIN_RANGES = _OPTIM_RANGES | {f"loss.w_{name}": _AT_LEAST_0 for name in ("scale", "trans", "rot", "pose", "betas")}


@dataclass
class EvalConfig:
    """What is evaluated and where the results go.

    Args:
        checkpoint: checkpoint of a run, or a converted one
        dataset: stb (B1), dexter_object, egodexter, mpii_nzsl (test part), or pretrain (the synthetic test set)
        root: folder of the data set
        store: prepared store whose training split gives the mean pose (the baseline); empty leaves it out
        mano: MANO_RIGHT.pkl or its .npz, or the word standin; default: standin where the checkpoint was trained with it
        out: folder of the results; empty means eval_<dataset>/ in the run's folder, or beside the checkpoint
        curves: folder with the authors' PCK curve files (their repository's PCK), drawn as lines; without it the
            figures we carry are drawn as points
        stb_camera: pictures of which of STB's stereo cameras
        tip_labels: of Dexter+Object and EgoDexter: original, or corrected (not comparable with the papers)
        heatmaps: maps of the second input form: from the labels' joints (an upper bound, not a result), or from a
            folder with <dataset>/<name>_keypoints.json of OpenPose
        limit: this many pictures, evenly spread; 0 means all [pictures]
        precision: of the network: float32 or bfloat16
        device: cpu, cuda, or auto
        batch_size: crops per network call [crops]
    """

    checkpoint: list[str] = field(default_factory=list)
    dataset: Literal["stb", "dexter_object", "egodexter", "mpii_nzsl", "pretrain"] = "stb"
    root: str = ""
    store: str = ""
    mano: str = ""
    out: str = ""
    curves: str = ""
    stb_camera: Literal["left", "right", "both"] = "left"
    tip_labels: Literal["original", "corrected"] = "original"
    heatmaps: str = "labels"
    limit: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 32


@dataclass
class PredictConfig:
    """Options of the predictor. The network expects the hand in a square of 2.2 times the box of its joints.

    Args:
        images: pictures, folders of them, animations or videos
        checkpoint: a run's checkpoint, or a converted one of the authors
        bbox: x,y,w,h tight around the hand's joints; the program cuts out 2.2 times its longer side [pixels]
        boxes: JSON file with such a box for each picture by file name, {"photo.jpg": [x, y, w, h]}, instead of bbox
        keypoints: JSON file with 21 x [u, v] or [u, v, confidence] for each picture by file name, instead of a box;
            also what heat maps and --fit joints are made of
        crops: the pictures are crops already: square, the hand's box enlarged 2.2 times
        heatmaps: folder with a detector's heat maps of the --crops in the original's form, seven pictures <name>_0.png
            to <name>_6.png for each, of its size; instead of keypoints
        order: joint order of keypoints
        out: folder for the results
        hand: which hand it is; a left one is mirrored for the network and back
        mano: MANO_RIGHT.pkl, or an .npz made by python -m shared.mano_import, or the word standin
        fit: refine the 22 numbers: to the keypoints (joints), to --masks (mask), or to both
        masks: folder with <name>.png silhouettes of the pictures, for --fit mask
        track: follow the hand: from the second frame on the box comes from the joints before
        precision: of the network: float32 or bfloat16
        device: cpu, cuda, or auto (cuda where there is one)
        batch_size: crops per network call; 1 with --track [crops]
    """

    images: list[str] = field(default_factory=list)
    checkpoint: str = ""
    bbox: str = ""
    boxes: str = ""
    keypoints: str = ""
    crops: bool = False
    heatmaps: str = ""
    order: str = "thumb_first"
    out: str = "predictions"
    hand: Literal["right", "left"] = "right"
    mano: str = ""
    fit: Literal["none", "joints", "mask", "both"] = "none"
    masks: str = ""
    track: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 8
