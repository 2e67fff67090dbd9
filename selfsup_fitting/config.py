"""Options of training by fitting as dataclasses (no heavy import: ``--help`` is quick)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.options import TrainOptions

Views = Literal["all", "first"]


@dataclass
class PrepareConfig:
    """What is converted.

    Args:
        data: folder of the NYU hand pose data set, with train and test in it
        original: folder of the original program's npy-64 files instead of data; their poses are read in either layout
        out: folder for the shards, one folder a split
        splits: which ones
        views: cameras, the first one is the frame of everything
        shard_size: frames a file [frames]
        jobs: processes; 0 means as many as there are cores [processes]
        zbuffer: the nearest pixel wins where several fall into one; the original keeps the last of them
        clamp_far: depth behind the crop's centre by more than 100 mm becomes background, as in synthetic images
        intrinsics: official (the data set's MATLAB script) or reference (rounded, as in the original)
        centers: of the crops: palm (the annotated joint, as the original), nearest (the middle of what is within 150 mm
            behind the nearest point of each picture), or a folder with <split>_<camera>.txt, x y z of a frame a line
            [mm]
        calibration: where the cameras stand: sequence (fitted once a recording) or frame (to every frame's labels)
        missing: frames of which a picture is not there: error, or skip (counted)
        limit: convert this many frames a split, from the start; 0 means all [frames]
        keep_translation: of the original's files; false drops it, which is what the original trained with
    """

    data: str = ""
    original: str = ""
    out: str = ""
    splits: list[str] = field(default_factory=lambda: ["train", "test"])
    views: list[int] = field(default_factory=lambda: [1, 2, 3])
    shard_size: int = 1000
    jobs: int = 0
    zbuffer: bool = False
    clamp_far: bool = True
    intrinsics: Literal["official", "reference"] = "official"
    centers: str = "palm"
    calibration: Literal["sequence", "frame"] = "sequence"
    missing: Literal["error", "skip"] = "error"
    limit: int = 0
    keep_translation: bool = True


@dataclass
class DataOptions:
    """Captured frames; synthetic training needs none.

    Args:
        root: folder made by python -m selfsup_fitting.prepare
        train_limit: train on this many frames, evenly spread; 0 means all [frames]
        val_limit: validate on this many test frames, evenly spread; 0 means all, -1 none [frames]
        val_images: without root: validate on this many synthetic images [images]
    """

    root: str = ""
    train_limit: int = 0
    val_limit: int = 0
    val_images: int = 256


@dataclass
class ModelOptions:
    """Sizes of the hourglass; the defaults are the published ones, the stand-in configuration is smaller.

    Args:
        stacks: hourglasses one after the other, each supervised
        channels: of the 16 x 16 maps, a multiple of 64
    """

    stacks: int = 1
    channels: int = 256


@dataclass
class SynthOptions:
    """Synthetic images, made on the fly.

    Args:
        images: beside a batch of captured frames, per step [images]
        epoch_images: an epoch of synthetic training; as many whatever the stacks are (the original trained two of them
            on batches of 64 instead of 128) [images]
        interpolation: of depth inside a triangle: linear, or harmonic (the original's, wrong for this camera)
        noise_rounding: of the random pixel shifts: symmetric, or trunc (the original's, drifts by 0.16 pixels)
        center: of the crop: mean (of the vertices, as the original), or palm (as captured crops are)
        jitter: times the sampler's translation of up to 35 mm; captured crops that are cut exactly around the palm need
            little of it
        extra_mode: also draw the hand pattern that the original never reaches
    """

    images: int = 48
    epoch_images: int = 128000
    interpolation: Literal["linear", "harmonic"] = "linear"
    noise_rounding: Literal["symmetric", "trunc"] = "symmetric"
    center: Literal["mean", "palm"] = "mean"
    jitter: float = 1.0
    extra_mode: bool = False


@dataclass
class AugmentOptions:
    """Augmentation of captured images, in training only.

    Args:
        resize_share: share of the batches whose images shrink to 70 to 100 percent (the original: half) [0 to 1]
        depth_resample: 0 leaves depth as it is, 3 or 5 drops 5 percent of the pixels and smooths with that kernel
        padding: of the smoothing: replicate, or zero (the original's, which puts mid-depth around the image)
    """

    resize_share: float = 0.5
    depth_resample: Literal[0, 3, 5] = 0
    padding: Literal["replicate", "zero"] = "replicate"


@dataclass
class OptimOptions:
    """The optimiser: Adam, as in the original.

    Args:
        lr: learning rate; the author fine-tuned with 1e-4, synthetic training uses 1e-3
        weight_decay: added to the gradient
        schedule: constant (of 75 epochs in steps, the author showed the first 20, before the first step), step (times
            0.1 after every third of the epochs, as the release), or cosine to zero
        warmup_steps: steps of linear rise at the start; 0 means none [steps]
    """

    lr: float = 1e-4
    weight_decay: float = 1e-5
    schedule: Literal["step", "constant", "cosine"] = "constant"
    warmup_steps: int = 0


@dataclass
class LossOptions:
    """Weights of the terms, and where the original can be followed to the letter (README, ledger).

    Args:
        synt_uv: heat maps of synthetic images [no unit]
        synt_d: depth of the centres in synthetic images [1/mm^2]
        synt_xy: x and y of these centres; ours, for short trainings: 0 in the original, whose heat maps need millions
            of images to become sharp [1/mm^2]
        projection: model to data and data to model over all pairs of views [1/mm^2]
        consistency: distance to the median over the views [1/mm^2]
        consistency_reduction: of its numbers: sum (the author's logged run) or mean (the release, 900 times weaker)
        uv_hm_mean: energy of the heat maps of captured images [no unit]
        prior: pose VAE [no unit]
        prior_kl: share of the VAE's KL in it; 0 holds spheres to what the VAE can rebuild and does not pull them
            to the mean pose [no unit]
        temporal: difference to the frame before [1/mm^2]
        collision: spheres of different parts closer than 6 mm [1/mm^2]
        bone_length: lengths outside 80 to 105 percent [1/mm^2]
        domain: distance of mean latents, synthetic to captured; computed, and 0 in the original [no unit]
        lengths: what these percentages are of: the lengths of the hand, or nyu_reference (the original's list)
        views: that collision and bone_length look at: all, or first (the original's)
        sums: collision, the prior's KL and a consistency that is a sum grow with the batch (reference), or have the
            size of 25 frames (frame)
        multiview_steps: of every epoch, after which each view is fitted by itself; 0 means the whole epoch (1500 in the
            release) [steps]
    """

    synt_uv: float = 1e3
    synt_d: float = 0.1
    synt_xy: float = 0.0
    projection: float = 1.0
    consistency: float = 1e-4
    consistency_reduction: Literal["sum", "mean"] = "sum"
    uv_hm_mean: float = 1e-2
    prior: float = 1e-2
    prior_kl: float = 1.0
    temporal: float = 1.0
    collision: float = 1.0
    bone_length: float = 1.0
    domain: float = 0.0
    lengths: Literal["hand", "nyu_reference"] = "hand"
    views: Views = "all"
    sums: Literal["frame", "reference"] = "frame"
    multiview_steps: int = 0


@dataclass
class TrainConfig(TrainOptions):
    __doc__ = (TrainOptions.__doc__ or "").replace(
        "Args:\n",
        "Args:\n"
        "        mode: synthetic (needs no data at all) or self-supervised (captured views without labels as well)\n"
        "        run: folder of the run; empty means runs/selfsup/<mode>\n"
        "        resume: continue the run from its last checkpoint\n"
        "        init: checkpoint whose weights the training starts from; empty means random weights\n"
        "        hand: the hand of the synthesiser and of the spheres: standin, a hand .npz, or the original's\n"
        "            preprocessed_hand.pkl\n"
        "        vae: pose VAE for the prior, of python -m selfsup_fitting.train_prior vae, or the original's\n"
        "        synthesize: train on synthetic images as well\n"
        "        mv_projection: spheres of every view against the captured depth of every view\n"
        "        mv_consistency: the views must agree\n"
        "        prior: the pose VAE must find the pose likely\n"
        "        collision: fingers and palm must not run into one another\n"
        "        bone_length: lengths stay in a band\n"
        "        temporal: smooth motion; loads the frames in their order\n"
        "        diverge_factor: stop when the smoothed loss is this many times its lowest; 0 never stops\n",
        1,
    )

    mode: Literal["synthetic", "self-supervised"] = "synthetic"
    epochs: int = 20
    batch_size: int = 25
    run: str = ""
    resume: bool = False
    init: str = ""
    hand: str = "standin"
    vae: str = ""
    synthesize: bool = True
    mv_projection: bool = True
    mv_consistency: bool = True
    prior: bool = True
    collision: bool = True
    bone_length: bool = True
    temporal: bool = False
    diverge_factor: float = 3.0
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    synth: SynthOptions = field(default_factory=SynthOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    loss: LossOptions = field(default_factory=LossOptions)


@dataclass
class EvalConfig:
    """What is evaluated and where the results go.

    Args:
        checkpoint: a run's checkpoint, or the original's synthetic.pth or self-supervised.pth
        data: folder made by python -m selfsup_fitting.prepare
        split: test or train
        denoiser: pose denoiser for the palm, of python -m selfsup_fitting.train_prior denoiser, or the original's;
            empty evaluates without one
        hand: whose spheres are drawn in the report
        out: folder of the results; empty means eval/ in the run's folder, or beside the checkpoint
        device: cpu, cuda, or auto
        precision: of the network: float32 or bfloat16
        batch_size: frames per network call [frames]
        limit: this many frames, evenly spread; 0 means all [frames]
        baseline: compare with the mean pose of the training split, where there is one of the same cameras and centres
        compare: metrics.json of another checkpoint's evaluation, for example of the synthetic stage: a summary of both
    """

    checkpoint: list[str] = field(default_factory=list)
    data: str = ""
    split: Literal["test", "train"] = "test"
    denoiser: str = ""
    hand: str = "standin"
    out: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 32
    limit: int = 0
    baseline: bool = True
    compare: str = ""


@dataclass
class ConvertConfig:
    """Which checkpoint is converted.

    Args:
        input: .pth of the original program
        output: file to write
    """

    input: str = ""
    output: str = ""


@dataclass
class FitConfig:
    """What is fitted to one depth frame, and how.

    Args:
        image: 16-bit depth PNG in mm, NYU's 8-bit PNG, a .npy of a depth picture or of a 64 x 64 crop in mm
        center: x,y,z of the crop's centre in the camera's frame; empty takes the middle of what is nearest [mm]
        intrinsics: fx,fy,cx,cy of the camera [pixels]
        parameters: pose (26 numbers of the hand) or spheres (41 centres, free but for bone lengths and collisions)
        hand: standin, a hand .npz, or the original's preprocessed_hand.pkl
        init: checkpoint whose prediction the fit starts from; empty starts from several poses
        steps: of the optimiser [steps]
        lr: learning rate; where millimetres are meant, 30 mm count as one radian [radians]
        starts: poses that are tried at the same time, without init [poses]
        seed: of these poses
        out: folder for the results
    """

    image: list[str] = field(default_factory=list)
    center: str = ""
    intrinsics: str = "588.036865,587.075073,320,240"
    parameters: Literal["pose", "spheres"] = "pose"
    hand: str = "standin"
    init: str = ""
    steps: int = 200
    lr: float = 0.03
    starts: int = 16
    seed: int = 0
    out: str = "fitted"


@dataclass
class PredictConfig:
    """Options of the demo.

    Args:
        images: depth pictures or folders of them: 16-bit PNG in mm, NYU's 8-bit PNG, or .npy in mm; a 64 x 64 .npy or
            .npz is a crop, mm around its centre
        checkpoint: a run's checkpoint, or the original's
        center: x,y,z of the crop's centre in the camera's frame; empty takes the middle of what is nearest [mm]
        intrinsics: fx,fy,cx,cy of the camera [pixels]
        denoiser: pose denoiser for the palm; empty keeps the network's palm
        hand: whose radii are drawn
        out: folder for the results
        device: cpu, cuda, or auto
        precision: of the network: float32 or bfloat16
    """

    images: list[str] = field(default_factory=list)
    checkpoint: str = ""
    center: str = ""
    intrinsics: str = "588.036865,587.075073,320,240"
    denoiser: str = ""
    hand: str = "standin"
    out: str = "predictions"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
