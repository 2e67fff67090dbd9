"""Trains one stage of SO-HandNet: ``python -m sohandnet.train --stage autoencoder --config FILE --data.store DIR``.

Read top to bottom: options, data, labels, networks, loss, run. ``--resume`` continues a killed run to the same bytes.
``python -m sohandnet.pipeline`` runs the three stages one after another.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from shared.errors import DataError, exit_on_error
from shared.options import parse
from sohandnet.config import OptimOptions, Recipe, Stage, StageOptions, TrainConfig, bn_momentum, stairs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sohandnet.model import SoHandNet

PARTS_OF: dict[Stage, tuple[str, ...]] = {
    "autoencoder": ("encoder", "decoder"),
    "estimator": ("encoder", "estimator"),
    "joint": ("encoder", "decoder", "estimator"),
}
LABELLED_FILE = "labelled.txt"


def lr_factor(optim: OptimOptions, stage: StageOptions, step: int, per_epoch: int, epochs: int) -> float:
    """What the stage's learning rate is multiplied by before step ``step``; the stairs are the original's."""
    from shared.training import schedule_factor

    base = schedule_factor(
        "cosine" if optim.schedule == "cosine" else "constant",
        step,
        total_steps=per_epoch * epochs,
        warmup_steps=optim.warmup_steps,
    )
    if optim.schedule != "stairs":
        return base
    return base * stairs(step // per_epoch, stage.lr, stage.decay, stage.decay_every, stage.lr_floor) / stage.lr


def make_optimizer(optim: OptimOptions, network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam over the parameters that this stage trains, with the original's L2 term or with decoupled decay.

    One optimiser for all networks equals the original's one each: their settings are the same.
    """
    import torch

    parameters = [p for p in network.parameters() if p.requires_grad]
    if not optim.decoupled:
        return torch.optim.Adam(parameters, lr=lr, weight_decay=optim.weight_decay, fused=True)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def freeze_untrained(network: SoHandNet, stage: Stage) -> list[str]:
    """Marks what gets no gradient in this stage (spec 2.7), so that several processes need not wait for it.

    In the estimator stage v2.1 and v5 read the first PointNet's features and a detached global feature: the neighbour
    convolution and the node PointNet only update their batch statistics. Returns the modules' names.
    """
    reads = network.sizes["estimator"] == "v5" or (
        network.sizes["estimator"] == "v2.1" and network.sizes["detach_global"]
    )
    if stage != "estimator" or not reads:
        return []
    for part in (network.encoder.knn, network.encoder.nodes):
        part.requires_grad_(False)
    return ["encoder.knn", "encoder.nodes"]


def start_from(
    network: SoHandNet,
    paths: Sequence[str],
    *,
    intrinsics: str,
    labels: Mapping[str, Any],
) -> list[str]:
    """Loads each of the network's parts from the first of the checkpoints that holds it; returns lines for the log.

    Raises:
        MissingFileError, DataError: a checkpoint that cannot be read, of other sizes, another node centre, other
            intrinsics or other labels than this run's; a part that none of them holds.
    """
    from sohandnet.convert import load_checkpoint
    from sohandnet.labels import check_same_labels

    state: dict[str, Any] = {}
    lines: dict[str, str] = {}
    for path in paths:
        start = load_checkpoint(path)
        parts = [part for part in network.parts if part in start.parts and part not in lines]
        only_estimator = {"estimator", "detach_global", "joints"}  # what encoder and decoder do not depend on
        for name, value in network.sizes.items():
            if name in only_estimator and "estimator" not in parts:
                continue
            if start.model.get(name) != value:
                raise DataError(
                    f"was trained with {name} = {start.model.get(name)}, this run has {value}",
                    path=path,
                    remedy=f"set --model.{name} to the checkpoint's, or give another --init",
                )
        if start.intrinsics != intrinsics:
            raise DataError(
                f"was trained on frames of {start.intrinsics} intrinsics, this store has {intrinsics}",
                path=path,
                remedy="prepare the frames with the checkpoint's --intrinsics",
            )
        check_same_labels(start.extra.get("labels"), labels, path)
        for part in parts:
            lines[part] = f"{part}: weights of {path}"
            state |= {key: value for key, value in start.state_dict.items() if key.startswith(f"{part}.")}
    if paths and (missing := [part for part in network.parts if part not in lines and part != "estimator"]):
        raise DataError(
            f"no --init checkpoint holds the {' and '.join(missing)}: {', '.join(paths)}",
            remedy="the estimator stage starts from the autoencoder's checkpoint, the joint stage from the estimator's "
            "and the autoencoder's",
        )
    network.load_state_dict(state, strict=False)
    return [lines.get(part, f"{part}: random weights") for part in network.parts]


def averaged_network(network: SoHandNet) -> nn.Module:
    """The network with a moving average of its weights beside it (``.network``, ``.average``)."""
    import torch

    both = torch.nn.Module()
    both.network, both.average = network, copy.deepcopy(network).requires_grad_(False)
    return both


def update_average(both: Any, keep: float) -> None:
    """One step of the average; batch statistics and counters are copied."""
    import torch

    with torch.no_grad():
        average, current = both.average.state_dict(), both.network.state_dict()
        learned = {name for name, _ in both.network.named_parameters()}
        for name, value in average.items():
            if name in learned:
                value.lerp_(current[name], 1.0 - keep)
            else:
                value.copy_(current[name])


def main() -> None:
    parsed = parse(
        TrainConfig,
        prog="python -m sohandnet.train",
        description="Train one stage of SO-HandNet. Presets: sohandnet/configs/*.yaml.",
    )
    train(parsed.options, parsed.yaml)


def train(options: TrainConfig, config_yaml: str) -> dict[str, float]:
    """One run of one stage, from options to checkpoints; returns the last validation's numbers.

    Raises:
        DataError: bad options, store, labels or starting weights, a run folder that is taken, a loss that is not
            finite.
    """
    if options.resume and options.init:
        raise DataError("--resume continues with the run's own weights", remedy="leave out --init")
    stage = options.stage
    own_step = options.loss.unlabelled_step == "own"
    if options.precision == "16" and stage == "joint" and own_step and options.unlabelled == "on":
        raise DataError(
            "--precision 16 scales gradients once a step, --loss.unlabelled_step own takes two",
            remedy="take --precision bf16, or --loss.unlabelled_step shared",
        )
    import numpy as np
    import torch

    from shared.safe_io import atomic_write_text
    from shared.training import RunFolder, Task, fit, is_main_process
    from sohandnet.convert import RAW, checkpoint_of
    from sohandnet.data import StoreSamples, collate, limited
    from sohandnet.labels import LabelledBatches, label_record, labelled_flags
    from sohandnet.losses import BONES
    from sohandnet.model import SoHandNet
    from sohandnet.store import open_store, protocol_line

    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    world = options.devices * options.num_nodes

    # ---- data and labels
    store = open_store(options.data.store)
    split = store.split("train")
    indices = limited(len(split), options.data.train_limit)
    names = [split.names[i] for i in indices]
    flags = labelled_flags(options, names, options.batch_size * world)
    labels = label_record(flags, names)
    every = np.zeros(len(split), np.bool_)
    every[indices[flags]] = True
    samples = StoreSamples(split, indices=indices, labelled=every, augment=options.augment, seed=options.seed)
    train_set = LabelledBatches(samples, flags, stage, options, batch_size=options.batch_size, world=world)
    val_set = None
    if options.data.val_limit >= 0:
        test = store.split("test")
        val_set = StoreSamples(test, indices=limited(len(test), options.data.val_limit))
    intrinsics = str(store.options["intrinsics"])
    joints = int(split.arrays["joints"].shape[2])

    # ---- networks
    torch.manual_seed(options.seed)
    network = SoHandNet(**dataclasses.asdict(options.model), joints=joints, parts=PARTS_OF[stage])
    if options.model.width != 1.0 and is_main_process():
        print(f"widths times {options.model.width:g}: not the published network")
    started = start_from(network, options.init, intrinsics=intrinsics, labels=labels)
    frozen = freeze_untrained(network, stage)
    keep = options.optim.ema
    model: nn.Module = averaged_network(network) if keep else network
    bones = BONES.get(str(store.options["skeleton"]), ()) if options.loss.bone_weight else ()
    if options.loss.bone_weight and not bones:
        raise DataError(
            f"--loss.bone_weight: no bones are known for the skeleton {store.options['skeleton']!r}",
            remedy=f"known are {', '.join(BONES)}; set it to 0",
        )

    run = RunFolder(Path(options.run or f"runs/sohandnet/{stage}"))
    run.start(config_yaml, seed=options.seed, resume=options.resume)
    if is_main_process():
        chosen = [name for name, flag in zip(names, flags, strict=True) if flag]
        atomic_write_text(run.root / LABELLED_FILE, "".join(f"{name}\n" for name in chosen))

    optimizers: list[torch.optim.Optimizer] = []  # for the step on the unlabelled frames

    def optimizer_of(_: nn.Module) -> torch.optim.Optimizer:
        optimizer = make_optimizer(options.optim, network, options.lr)
        if keep:
            optimizer.register_step_post_hook(lambda *_: update_average(model, keep))
        optimizers[:] = [optimizer]
        return optimizer

    def scheduler(optimizer: torch.optim.Optimizer, per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
        def factor(step: int) -> float:
            return lr_factor(options.optim, options.schedule, step, per_epoch, options.epochs)

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def loss(_: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float | Tensor]]:
        set_bn_momentum(network, options.optim, batch["epoch"])
        if stage == "joint" and own_step and train_set.mixed:
            mask = batch["labelled"]
            if not bool(mask.all()):  # the last batch by the positional rule may hold labelled frames alone
                total = unlabelled_step(network, take(batch, ~mask), optimizers[0], options, world)
                if total is not None:
                    return total, {}
                batch = take(batch, mask)
        return stage_loss(network, batch, stage, options, bones)

    def evaluate(_: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        return validation_errors(cast(Any, model).average if keep else network, batch, store.options)

    def payload(_: nn.Module) -> dict[str, Any]:
        facts = {"stage": stage, "labels": labels, "store": dict(store.options), "unlabelled": options.unlabelled}
        saved = checkpoint_of(cast(Any, model).average if keep else network, intrinsics=intrinsics, **facts).as_dict()
        if keep:
            raw = checkpoint_of(network, intrinsics=intrinsics).state_dict
            saved["state_dict"] |= {f"{RAW}{name}": value for name, value in raw.items()}
        return saved

    def load(_: nn.Module, saved: Mapping[str, Any]) -> None:
        state = dict(saved["state_dict"])
        raw = {name.removeprefix(RAW): state.pop(name) for name in list(state) if name.startswith(RAW)}
        if keep != 0.0 and not raw:
            raise DataError(
                "the run was started without averaged weights",
                path=run.last,
                remedy="resume with the options of the run's config.yaml",
            )
        network.load_state_dict(raw or state)
        if keep:
            cast(Any, model).average.load_state_dict(state)

    # ---- run
    if is_main_process():
        print(f"train: {len(train_set)} samples an epoch of {len(names)} frames, {labels['labelled']} of them labelled")
        print(f"validation: {'none' if val_set is None else f'{len(val_set)} frames'}; {protocol_line(store.options)}")
        count = sum(p.numel() for p in network.parameters())
        print(
            f"networks: {count:,} parameters, estimator {options.model.estimator}, "
            f"node centre {options.model.node_centre}"
        )
        print("\n".join(started))
        if frozen:
            print(f"no gradient in this stage: {', '.join(frozen)}")
        print(f"run folder: {run.root}", flush=True)
    task = Task(
        model=model,
        train_set=train_set,
        val_set=val_set,
        collate=with_epoch(collate),
        loss=loss,
        evaluate=evaluate,
        monitor="chamfer" if stage == "autoencoder" else "error_mm",
        optimizer=optimizer_of,
        scheduler=scheduler,
        payload=payload,
        load=load,
    )
    return fit(task, dataclasses.replace(options, batch_size=train_set.batch_size), run, resume=options.resume)


def with_epoch(collate: Any) -> Any:
    """``collate``, and the epoch of training samples as ``batch["epoch"]``."""

    def collated(samples: list[Any]) -> dict[str, Any]:
        return {**collate(samples), "epoch": samples[0].get("epoch", 0)}

    return collated


def take(batch: Mapping[str, Any], mask: Tensor) -> dict[str, Any]:
    """The samples of a batch where ``mask`` (B,) is true."""
    chosen = mask.tolist()
    return {
        key: [name for name, keep in zip(value, chosen, strict=True) if keep]
        if isinstance(value, list)
        else (value[mask] if hasattr(value, "shape") and value.shape[:1] == mask.shape else value)
        for key, value in batch.items()
    }


def set_bn_momentum(network: nn.Module, optim: OptimOptions, epoch: int) -> None:
    """The momentum of the batch norms in this epoch; nothing to do where it does not decay (the default)."""
    import torch

    if optim.bn_decay_every:
        for part in network.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.momentum = bn_momentum(epoch, optim.bn_decay_every, optim.bn_decay)


def stage_loss(
    network: SoHandNet, batch: Mapping[str, Any], stage: Stage, options: Recipe, bones: Sequence[tuple[int, int]] = ()
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """The loss of a stage (spec 3, box lengths) and its terms; poses count for the batch's labelled frames only."""
    import torch

    from sohandnet.losses import bone_loss, decoder_loss, pose_loss

    if stage == "autoencoder" and options.augment.keep_points < 1.0:
        low = options.augment.keep_points
        count = batch["pc"].shape[2]
        kept = torch.randperm(count)[: max(1, int(count * (low + (1.0 - low) * torch.rand(()).item())))]
        kept = kept.to(batch["pc"].device)
        batch = {**batch, "pc": batch["pc"][:, :, kept], "sn": batch["sn"][:, :, kept]}
    features = network.encode(batch)
    terms: dict[str, float | Tensor] = {}
    total = features.feature.new_zeros((), dtype=torch.float32)
    if stage != "estimator":
        terms["decoder"] = decoder = decoder_loss(network.decoder(features.feature), batch["pc"], options.loss.chamfer)
        total = total + decoder
    if stage != "autoencoder":
        pred, gt, mask = network.estimator(features), batch["gt_xyz"], batch["labelled"]
        if not bool(mask.all()):
            pred, gt = pred[mask], gt[mask]
        pose = pose_loss(pred, gt)
        terms["pose"] = pose
        if bones:
            terms["bone"] = bone_loss(pred, gt, bones)
            pose = pose + options.loss.bone_weight * terms["bone"]
        total = total + (pose if stage == "estimator" else options.loss.pose_weight * pose)
    return total, terms


def unlabelled_step(
    network: SoHandNet, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer, options: Recipe, world: int
) -> Tensor | None:
    """The step that the original takes on the unlabelled frames of a batch before the one on the labelled frames.

    Encoder and decoder only: the estimator sees labelled frames alone (the original also runs it here, in training
    mode, and its batch statistics absorb the unlabelled frames: README, ledger Q18).

    Returns:
        None; or a number that is not finite, which the caller hands on as the loss so that the run stops, before
        the weights are touched.
    """
    import torch

    from sohandnet.losses import decoder_loss

    total = decoder_loss(network.decoder(network.encode(batch).feature), batch["pc"], options.loss.chamfer)
    optimizer.zero_grad()
    with torch.autocast(total.device.type, enabled=False):
        total.backward()
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if world > 1:
        for parameter in trained:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world
    norm = torch.nn.utils.get_total_norm([cast("Tensor", p.grad) for p in trained])
    if not bool(torch.isfinite(norm + total)):
        optimizer.zero_grad()
        return (norm + total).detach().requires_grad_()
    if options.grad_clip:
        torch.nn.utils.clip_grads_with_norm_(trained, options.grad_clip, norm)
    optimizer.step()
    optimizer.zero_grad()
    return None


def validation_errors(network: SoHandNet, batch: dict[str, Any], store_options: Mapping[str, Any]) -> dict[str, Tensor]:
    """(B,) numbers per frame: ``error_mm`` mean joint error in true millimetres, ``reference_mm`` in the original's
    space where the store has it; ``chamfer`` L_dec in box lengths, ``chamfer_mm`` mean distance between the clouds."""
    import torch

    from sohandnet.data import batch_joints_mm
    from sohandnet.kernels import ops

    network.eval()
    features = network.encode(batch)
    errors: dict[str, Tensor] = {}
    length = batch["length"].float()
    if "decoder" in network.parts:
        clouds = network.decoder(features.feature)
        full, coarse = (ops.chamfer_distance(cloud, batch["pc"]) for cloud in (clouds.full, clouds.coarse))
        errors["chamfer"] = full.forward + full.backward + coarse.forward + coarse.backward
        errors["chamfer_mm"] = (full.forward + full.backward) / 2 * length
    if "estimator" in network.parts:
        pred, gt = network.estimator(features).float(), batch["gt_xyz"]
        cpu = {name: batch[name].cpu() for name in ("rotation", "length", "offset")}
        joints = [torch.from_numpy(batch_joints_mm(value.cpu(), cpu, store_options)) for value in (pred, gt)]
        errors["error_mm"] = (joints[0] - joints[1]).norm(dim=2).mean(1)
        if store_options["intrinsics"] == "reference":
            errors["reference_mm"] = (pred - gt).norm(dim=1).mean(1) * length
    return errors


if __name__ == "__main__":
    exit_on_error(main)
