"""Options of V2V-PoseNet as dataclasses, and the facts about its data sets (no heavy import: ``--help`` is quick)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.options import TrainOptions

Variant = Literal["gaussian", "integral"]
DatasetName = Literal["msra", "icvl", "nyu", "hands2017", "itop-front", "itop-top"]
Source = Literal["auto", "port", "integral", "torch7"]
To = Literal["world", "pixel"]


@dataclass(frozen=True)
class Convention:
    """How pixels become voxels and heat maps become millimetres; stored in every checkpoint.

    A network trained with one convention is off by 2 to 3 mm under another (README, ledger), so it is never guessed.
    """

    name: Literal["port", "zero", "author"] = "port"
    pixel_origin: Literal[0, 1] = 1  # number of the first pixel: 1 in the port (a quirk), 0 in the data sets' readmes
    rounding: Literal["trunc", "floor"] = "trunc"  # of voxel coordinates; trunc draws (-1, 0) into voxel 0
    invert_scale: bool = False  # scale = 100/new_size (the port's integral program) instead of new_size/100


CONVENTIONS: dict[str, Convention] = {
    "port": Convention("port", 1, "trunc", False),
    "port-integral": Convention("port", 1, "trunc", True),
    "zero": Convention("zero", 0, "floor", False),
    "author": Convention("author", 0, "floor", False),
}


@dataclass(frozen=True)
class DataSpec:
    """What V2V-PoseNet fixes for a data set (both codes; the README's table lists it).

    Attributes:
        joints: number of joints regressed.
        cube_mm: edge of the cube around the centre, mm.
        background_mm: depth that a pixel without a measurement gets, mm; 0 leaves it at the camera.
        y_up: whether y of the grid's world points up (the network's axes; everything outside is OpenCV, y down).
        skeleton: the joint order.
        reader: module in ``shared.datasets``.
    """

    joints: int
    cube_mm: float
    background_mm: float
    y_up: bool
    skeleton: str
    reader: str


DATASETS: dict[str, DataSpec] = {
    "msra": DataSpec(21, 200.0, 700.0, True, "msra", "msra"),
    "icvl": DataSpec(16, 200.0, 600.0, False, "icvl", "icvl"),
    "nyu": DataSpec(14, 250.0, 1200.0, True, "nyu14", "nyu"),
    "hands2017": DataSpec(21, 250.0, 1500.0, False, "hands2017", "hands2017"),
    "itop-front": DataSpec(15, 2000.0, 0.0, True, "itop", "itop"),
    "itop-top": DataSpec(15, 2000.0, 0.0, True, "itop", "itop"),
}


@dataclass
class DataOptions:
    """Which frames.

    Args:
        dataset: data set to read
        root: its folder, as unpacked from the official archive
        test_subject: person left out for testing (MSRA only) [0 to 8]
        validation: what is validated on after an epoch: the test split as in both originals, one training subject
            held out (MSRA), or nothing
        val_subject: the training subject held out with --data.validation subject [0 to 8]
        val_limit: validate on this many frames, evenly spread; 0 means all [frames]
        centers: folder of the centre files, auto (in the root or beside it), or gt (mean of the labelled joints: not a
            fair test)
        cube_mm: edge of the cube around the centre; 0 means the data set's own (README) [mm]
        train_limit: train on this many frames, evenly spread; 0 means all [frames]
        test_limit: test on this many frames, evenly spread; 0 means all [frames]
        drop_handless: leave out the MSRA frames that are known to show no hand
    """

    dataset: DatasetName = "msra"
    root: str = ""
    test_subject: int = 3
    validation: Literal["test", "subject", "none"] = "test"
    val_subject: int = 0
    val_limit: int = 0
    centers: str = "auto"
    cube_mm: float = 0.0
    train_limit: int = 0
    test_limit: int = 0
    drop_handless: bool = False


@dataclass
class AugmentOptions:
    """Ranges of the augmentation (both codes: 80 to 120 percent, 40 degrees, 4 voxels of the 88 grid).

    Args:
        rotate_deg: turn in the image plane, uniform in plus minus this [degrees]
        scale_min: smallest size [percent]
        scale_max: largest size [percent]
        shift: move by up to this share of the margin [0 to 1]
    """

    rotate_deg: float = 40.0
    scale_min: float = 80.0
    scale_max: float = 120.0
    shift: float = 1.0


@dataclass
class ModelOptions:
    """The network and its input.

    Args:
        convention: pixel and voxel conventions: port, zero (pixels from 0, floor) or author (the torch7 code)
        grid: edge of the input grid, divisible by 8 [fine voxels]
        widths: channels at the four levels [channels]
        init: weights of batch norms at the start: 1 (port) or uniform in 0 to 1 (author)
        sigma_cells: standard deviation of the Gaussian targets [cells of 2 fine voxels]
        heatmap_weight: share of the cross-entropy in the integral variant's loss [0 to 1]
    """

    convention: Literal["port", "zero", "author"] = "port"
    grid: int = 88
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    init: Literal["port", "author"] = "port"
    sigma_cells: float = 1.7
    heatmap_weight: float = 0.5


@dataclass
class OptimOptions:
    """The optimiser.

    Args:
        name: adam (port) or rmsprop (author, paper; alpha 0.99, eps 1e-8)
        lr: learning rate [per step]
        schedule: constant as in all three sources, or cosine to zero over the run
        warmup_steps: steps of linear rise at the start; 0 means none [steps]
    """

    name: Literal["adam", "rmsprop"] = "adam"
    lr: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0


@dataclass
class TrainConfig(TrainOptions):
    __doc__ = (TrainOptions.__doc__ or "").replace(
        "Args:\n",
        "Args:\n"
        "        variant: gaussian heat maps with arg-max, or integral (soft-argmax with the mixed loss)\n"
        "        run: folder of the run; empty means runs/v2v/<data set>-<variant>\n"
        "        resume: continue the run from its last checkpoint\n"
        "        init_from: checkpoint whose weights the training starts from; empty means random weights\n",
        1,
    )

    variant: Variant = "gaussian"
    run: str = ""
    resume: bool = False
    init_from: str = ""
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)


@dataclass
class EvalData:
    """Which frames are evaluated; what is left out is as in training.

    Args:
        root: folder of the data set
        dataset: data set to read; default: the one the checkpoint was trained for
        test_subject: MSRA person to test on; default: the one left out in training [0 to 8]
        centers: folder of the centre files, auto, or gt; default: as in training
        limit: this many frames, evenly spread; 0 means all [frames]
    """

    root: str = ""
    dataset: DatasetName | None = None
    test_subject: int | None = None
    centers: str | None = None
    limit: int = 0


@dataclass
class EvalConfig:
    """What is evaluated and where the results go.

    Args:
        checkpoints: one or several checkpoints (several: their joints are averaged, the papers' epoch ensemble)
        split: test, or train (writes fit_res.txt)
        out: folder of the results; empty means eval/ in the run's folder, or beside the checkpoint
        refine: sub-voxel position for the gaussian variant: none, softargmax or parabola
        precision: of the network: float32, bfloat16, float16, or auto (what the device multiplies natively)
        device: cpu, cuda, or auto
        batch_size: frames per network call [frames]
        workers: loader processes [processes]
        baseline: compare with the mean pose of the training split
        allow_missing: go on where pictures of the split are missing; metrics.json says how many
    """

    checkpoints: list[str] = field(default_factory=list)
    split: Literal["test", "train"] = "test"
    out: str = ""
    refine: Literal["none", "softargmax", "parabola"] = "none"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 12
    workers: int = 2
    baseline: bool = True
    allow_missing: bool = False
    data: EvalData = field(default_factory=EvalData)


@dataclass
class ConvertConfig:
    """Which checkpoint is converted.

    Args:
        input: epoch{n}.pth of the port, or the author's model.net (torch7)
        output: file to write, .pt or .safetensors
        convention: how the network was trained to see pixels; a wrong one costs 2 to 3 mm
        dataset: data set it was trained on
        source: what the file is (also --from); auto looks at its bytes and keys
        cube_mm: edge of the cube (also --cube); 0 means the data set's own [mm]
    """

    input: Path
    output: Path
    convention: Literal["port", "port-integral", "zero", "author"]
    dataset: DatasetName
    source: Source = "auto"
    cube_mm: float = 0.0


@dataclass
class ConvertResultConfig:
    """Which result file is converted.

    Args:
        dataset: whose camera and axes
        to: coordinates to write: world is x y z, pixel is u v z
        input: text file, plain or gzip, one frame per line
        output: text file to write, three decimals
    """

    dataset: Literal["msra", "icvl", "nyu", "hands2017", "itop"]
    to: To
    input: Path
    output: Path


@dataclass
class PlotConfig:
    """What is drawn.

    Args:
        ground_truth: labels, x y z in mm, one frame per line
        result: predictions in the same format and order
        out: folder for the figures
        title: start of the file names
        skeleton: joint order for the names in the figures, such as msra; default: the joints' numbers from 1
    """

    ground_truth: Path
    result: Path
    out: Path
    title: str = "result"
    skeleton: str | None = None


@dataclass
class CompareConfig:
    """What is compared.

    Args:
        ground_truth: labels, x y z in mm, one frame per line
        result: predictions in the same format and order; several files, or the flag several times
        out: folder for the figures
        names: a name per result for the figures; default: the file names
        skeleton: joint order for the names in the figures, such as msra; default: the joints' numbers from 1
    """

    ground_truth: Path
    result: list[Path]
    out: Path
    names: list[str] | None = None
    skeleton: str | None = None
