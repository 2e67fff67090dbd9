"""Options of SO-HandNet as dataclasses, and its published recipes (no heavy import: ``--help`` is quick)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from shared.errors import DataError
from shared.options import TrainOptions

Stage = Literal["autoencoder", "estimator", "joint"]
Estimator = Literal["v2.1", "v3", "v4", "v5", "v6"]
NodeCentre = Literal["center", "avg"]
Intrinsics = Literal["true", "reference"]
Crop = Literal["ground-truth", "centers", "depth"]
OnOff = Literal["on", "off"]
STAGES: tuple[Stage, ...] = ("autoencoder", "estimator", "joint")


@dataclass
class DataOptions:
    """Which frames.

    Args:
        store: folder that python -m sohandnet.prepare wrote
        train_limit: train on this many frames, evenly spread; 0 means all [frames]
        val_limit: validate on this many test frames, evenly spread; 0 means all, -1 none [frames]
    """

    store: str = ""
    train_limit: int = 0
    val_limit: int = 0


@dataclass
class ModelOptions:
    """The three networks; the defaults are the published ones.

    Args:
        estimator: pose head; v2.1 is the published one (README has the table of what each reads)
        node_centre: what a node's neighbours are measured from: the node itself (center) or their mean (avg)
        detach_global: stop the estimator's gradient at the global feature (v2.1, v3 and v6), as the original does
        pair_nodes: nodes that each point is attached to [nodes]
        normals: the points carry normals
        width: factor of all hidden widths, which are rounded up to multiples of 16; 1 is the published size
    """

    estimator: Estimator = "v2.1"
    node_centre: NodeCentre = "center"
    detach_global: bool = True
    pair_nodes: int = 3
    normals: bool = True
    width: float = 1.0


@dataclass
class AugmentOptions:
    """Augmentation of training samples.

    Args:
        mode: none (the published runs), corrected (what is below), or reference (the original's --augment yes with its
            mistakes: normals jittered and scaled, box length scaled; rotate_deg does not apply)
        rotate_deg: turn about z, uniform in plus minus this [degrees]
        jitter: standard deviation of every point coordinate, cut at five times that [box lengths]
        node_jitter: standard deviation of every node coordinate, cut at 2.5 times that [box lengths]
        scale_min: smallest size [factor]
        scale_max: largest size [factor]
        keep_points: autoencoder stage: keep a share of the points drawn from this to 1, the same points for the whole
            batch, which is then rebuilt from them; 1 keeps all [0 to 1]
    """

    mode: Literal["none", "corrected", "reference"] = "none"
    rotate_deg: float = 30.0
    jitter: float = 0.01
    node_jitter: float = 0.04
    scale_min: float = 0.8
    scale_max: float = 1.2
    keep_points: float = 1.0


@dataclass
class StageOptions:
    """One stage's length and learning rate; the original's are in sohandnet/configs/paper.yaml.

    Args:
        epochs: passes over the training set [epochs]
        batch_size: frames per step and device, labelled and unlabelled together [frames]
        lr: learning rate of the first epoch
        decay: the stairs schedule multiplies the rate by this
        decay_every: so often [epochs]
        lr_floor: the stairs do not go below this rate
    """

    epochs: int = 30
    batch_size: int = 12
    lr: float = 1e-3
    decay: float = 0.5
    decay_every: int = 10
    lr_floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "decay_every"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} of a stage must be at least 1, got {getattr(self, name)}")


@dataclass
class OptimOptions:
    """The optimiser, Adam.

    Args:
        schedule: stairs (the original's, see the stages), cosine to zero over the stage, or constant
        warmup_steps: steps of linear rise at the start; 0 means none [steps]
        weight_decay: 5e-4 in the original
        decoupled: decoupled decay of the weight matrices alone (AdamW); without, the original's L2 term in the gradient
            of every parameter
        ema: share kept of the averaged weights per step, such as 0.999; they are what is validated and stored for use;
            0 trains without
        bn_decay_every: the momentum of the batch norms is multiplied by bn_decay so often, down to 0.01; 0 never, as in
            all of the original's scripts [epochs]
        bn_decay: see there
    """

    schedule: Literal["stairs", "cosine", "constant"] = "stairs"
    warmup_steps: int = 0
    weight_decay: float = 5e-4
    decoupled: bool = False
    ema: float = 0.0
    bn_decay_every: int = 0
    bn_decay: float = 0.6


@dataclass
class LossOptions:
    """The losses.

    Args:
        pose_weight: of the pose loss in the joint stage, beside the decoder's Chamfer loss
        bone_weight: of the bone length loss (mean relative error of the bones), with gradient; 0 leaves it out
        chamfer: who finds the nearest neighbours: native (this project's kernels where they are built), reference
            (plain torch), or faiss (an extra package, CPU only)
        unlabelled_step: joint stage with unlabelled frames: own (an optimiser step of their own before the labelled
            ones, as in the original), or shared (one step on the sum)
    """

    pose_weight: float = 100.0
    bone_weight: float = 0.0
    chamfer: Literal["native", "faiss", "reference"] = "native"
    unlabelled_step: Literal["own", "shared"] = "own"


@dataclass
class Recipe(TrainOptions):
    __doc__ = (
        (TrainOptions.__doc__ or "")
        .replace(
            "epochs: passes over the training set in total; a resumed run continues up to this number [epochs]",
            "epochs: passes over the training set in total; 0 means the stage's own number [epochs]",
        )
        .replace(
            "batch_size: samples per step and per device [samples]",
            "batch_size: samples per step and per device; 0 means the stage's own number [samples]",
        )
        .replace(
            "Args:\n",
            "Args:\n"
            "        labelled_list: text file with the names of the labelled training frames, one a line\n"
            "        label_ratio: instead of a list: label this share of the training frames, drawn with label_seed;\n"
            "            the list is written to the run's folder [0 to 1]\n"
            "        label_seed: of that draw\n"
            "        label_rule: list (batches of labelled and unlabelled frames, reshuffled every epoch), or\n"
            "            positional (the original's: frames in order, the first of every batch are labelled)\n"
            "        unlabelled: on trains on the frames without a label too (autoencoder and joint stages); off\n"
            "            leaves them out\n"
            "        deterministic: refuse operations whose result depends on the order of threads\n",
            1,
        )
    )

    epochs: int = 0
    batch_size: int = 0
    labelled_list: str = ""
    label_ratio: float = 1.0
    label_seed: int = 0
    label_rule: Literal["list", "positional"] = "list"
    unlabelled: OnOff = "on"
    deterministic: bool = False
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    autoencoder: StageOptions = field(default_factory=lambda: StageOptions(30, 12, 1e-3, 0.5, 10))
    estimator: StageOptions = field(default_factory=lambda: StageOptions(30, 40, 1e-5, 0.5, 5))
    joint: StageOptions = field(default_factory=lambda: StageOptions(45, 18, 1e-5, 0.1, 30, 1e-7))

    def __post_init__(self) -> None:
        given = self.epochs, self.batch_size
        self.epochs, self.batch_size = (number or 1 for number in given)  # 0: each stage has its own
        super().__post_init__()
        self.epochs, self.batch_size = given
        if not 0.0 < self.label_ratio <= 1.0:
            raise DataError(f"--label_ratio must be above 0 and at most 1, got {self.label_ratio}")
        if self.labelled_list and self.label_ratio != 1.0:
            raise DataError(
                "--labelled_list and --label_ratio exclude one another: the list says how many frames are labelled",
                remedy="give one of them",
            )
        if self.labelled_list and self.label_rule == "positional":
            raise DataError(
                "--label_rule positional decides by the place in the batch and reads no list",
                remedy="leave out --labelled_list and give --label_ratio",
            )

    def of_stage(self, stage: Stage, **changes: Any) -> TrainConfig:
        """The options of one stage's run: these, with the given ``run``, ``init``, ..."""
        shared = {item.name: getattr(self, item.name) for item in fields(Recipe)}
        return TrainConfig(**{**shared, "stage": stage, **changes})


@dataclass
class TrainConfig(Recipe):
    __doc__ = (Recipe.__doc__ or "").replace(
        "Args:\n",
        "Args:\n"
        "        stage: autoencoder (encoder and decoder), estimator (encoder and pose head), or joint (all three)\n"
        "        run: folder of the run; empty means runs/sohandnet/<stage>\n"
        "        lr: learning rate of the first epoch, instead of the stage's own; 0 means the stage's own\n"
        "        resume: continue the run from its last checkpoint\n"
        "        init: checkpoints that the stage starts from; the first that holds a network gives it. The joint\n"
        "            stage takes those of the estimator and of the autoencoder, in this order\n",
        1,
    )

    stage: Stage = "autoencoder"
    run: str = ""
    lr: float = 0.0
    resume: bool = False
    init: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        own: StageOptions = getattr(self, self.stage)
        self.epochs, self.batch_size = self.epochs or own.epochs, self.batch_size or own.batch_size
        self.lr = self.lr or own.lr

    @property
    def schedule(self) -> StageOptions:
        """This stage's stairs, from its learning rate."""
        own: StageOptions = getattr(self, self.stage)
        return replace(own, lr=self.lr)


@dataclass
class PipelineConfig(Recipe):
    __doc__ = (Recipe.__doc__ or "").replace(
        "Args:\n",
        "Args:\n"
        "        run: folder; each stage's run is a folder in it; finished stages are skipped, a killed one goes on\n"
        "        evaluate: evaluate the joint stage's networks on the test frames\n"
        "        report: with the HTML page and pictures\n"
        "        allow_missing: evaluate also where preparation had to skip test frames\n",
        1,
    )

    run: str = "runs/sohandnet/pipeline"
    evaluate: bool = True
    report: bool = True
    allow_missing: bool = False


@dataclass
class AblationConfig(Recipe):
    __doc__ = (Recipe.__doc__ or "").replace(
        "Args:\n",
        "Args:\n"
        "        run: folder; one pipeline for each combination is a folder in it, finished ones are skipped\n"
        "        ratios: shares of the training frames that are labelled [0 to 1]\n"
        "        seeds: of the labelled draw, weights and order; a table row is their mean and spread\n"
        "        modes: with the unlabelled frames (on), without (off), or both\n",
        1,
    )

    run: str = "runs/sohandnet/ablation"
    ratios: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    seeds: list[int] = field(default_factory=lambda: [0])
    modes: list[OnOff] = field(default_factory=lambda: ["on", "off"])


@dataclass
class ConvertConfig:
    """Which of the original's checkpoints are converted, into one file of ours.

    Args:
        input: <epoch>_<score>_<lr>_net_{encoder,decoder,estimater}.pth, one to three of them in any order
        output: file to write, .pt
        node_centre: how the networks were trained; the file does not say, and for the published ones it is not known
            (README, ledger Q5)
        intrinsics: of the frames they were trained on; reference for everything the original made
    """

    input: list[str] = field(default_factory=list)
    output: str = ""
    node_centre: NodeCentre = "center"
    intrinsics: Intrinsics = "reference"


def stairs(epoch: int, lr: float, decay: float, every: int, floor: float = 0.0) -> float:
    """The original's learning rate in ``epoch`` (from 0) of a stage: times ``decay`` every so often, above a floor."""
    return max(lr * decay ** (epoch // every), floor)


def bn_momentum(epoch: int, step: int | None, factor: float = 0.6, start: float = 0.1) -> float:
    """Momentum of the batch norms in ``epoch``; no script of the original gives a step, which leaves it at 0.1."""
    return start if step is None or epoch < 1 else max(0.01, start * factor ** (epoch // step))


def positional_labels(count: int, batch_size: int, ratio: float) -> Sequence[int]:
    """Positions that count as labelled in the original: the first int(batch_size * ratio) of every batch."""
    labelled = int(batch_size * ratio)
    return [place for place in range(count) if place % batch_size < labelled]
