"""Trains on prepared pictures: ``python -m hand3d_wild.train --config hand3d_wild/configs/standin.yaml``.

The second stage: 2-D joints, 3-D joints where there are any, masks, a regulariser. ``--init_from`` begins with the
weights of a pretraining (or of the authors), the path that the reference lacks. Read top to bottom: options, data,
network, loss, run. ``--resume`` continues a killed run to the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hand3d_wild.config import (
    TRAIN_RANGES,
    LossOptions,
    ModelOptions,
    OptimOptions,
    PretrainConfig,
    TrainConfig,
    Weight,
)
from shared.errors import DataError, exit_on_error
from shared.options import check_ranges, parse

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from hand3d_wild.model import WildNet
    from shared.mano import ManoModel

MANO_REMEDY = (
    "give --data.mano MANO_RIGHT.pkl, which mano.is.tue.mpg.de gives out after registration; "
    "--data.mano standin is a free hand, for the stand-in data"
)


def weight_at(weight: Weight, step: int) -> float:
    """The value of a weight at a step (from 0): the number itself, or the last entry of the schedule that has begun."""
    if isinstance(weight, list):
        return [value for begin, value in weight if begin <= step][-1]
    return weight


def check_weights(loss: LossOptions) -> None:
    """Refuses schedules that cannot be meant.

    Raises:
        DataError: a negative weight; a schedule that is not [[0, value], [step, value], ...] with rising steps.
    """
    for name in ("w_2d", "w_3d", "w_mask", "w_reg"):
        weight = getattr(loss, name)
        pairs = weight if isinstance(weight, list) else [[0, weight]]
        steps = [pair[0] for pair in pairs if len(pair) == 2]
        rising = len(steps) == len(pairs) > 0 and steps[0] == 0 and steps == sorted(set(steps))
        if not rising or not all(math.isfinite(pair[1]) and pair[1] >= 0 for pair in pairs):
            raise DataError(
                f"--loss.{name}: expected a number of at least 0, or [[0, value], [step, value], ...] with rising "
                f"steps, got {weight}"
            )


def lr_factor(options: OptimOptions, step: int, total_steps: int) -> float:
    """What the learning rate is multiplied by before step ``step``: stairs as torch's StepLR, a cosine, or 1."""
    from shared.training import schedule_factor

    factor = schedule_factor(
        "cosine" if options.schedule == "cosine" else "constant",
        step,
        total_steps=total_steps,
        warmup_steps=options.warmup_steps,
    )
    if options.schedule == "step":
        return factor * options.gamma ** (step // options.step_size)
    return factor


def length(options: TrainConfig | PretrainConfig, samples: int) -> TrainConfig | PretrainConfig:
    """The options with ``iterations`` turned into epochs and a last step."""
    if not options.iterations:
        return options
    if options.iterations < 0:
        raise DataError(f"--iterations must not be negative, got {options.iterations}")
    per_epoch = -(-samples // (options.batch_size * options.devices * options.num_nodes))
    last = min(options.iterations, options.max_steps or options.iterations)
    return dataclasses.replace(options, epochs=-(-options.iterations // per_epoch), max_steps=last)


def build(options: ModelOptions, mano: ManoModel, *, seed: int, init_from: str) -> WildNet:
    """A new network, or one with the weights of a checkpoint of the same sizes (the unused stem may be another).

    Raises:
        DataError: a checkpoint of other sizes.
    """
    import torch

    from hand3d_wild.convert import load_checkpoint
    from hand3d_wild.model import WildNet, initialise

    torch.manual_seed(seed)
    sizes = {name: value for name, value in dataclasses.asdict(options).items() if name != "init"}
    network = WildNet(mano, **sizes)
    initialise(network, options.init)
    if init_from:
        start = load_checkpoint(init_from)
        for name, value in network.sizes.items():
            if name != "form" and start.model.get(name) != value:
                raise DataError(
                    f"its network has {name} {start.model.get(name)}, this run's {value}",
                    path=init_from,
                    remedy=f"set --model.{name} {start.model.get(name)}",
                )
        if start.model["form"] != network.form:  # its other stem has never seen a picture
            stem = "conv11.weight" if network.form == "heatmaps" else "conv1.weight"
            fresh = network.state_dict()[stem].clone()
            if network.form == "heatmaps":  # the colours' filters are worth keeping; the maps' start beside them
                fresh[:, :3] = start.state_dict["conv1.weight"]
            start.state_dict[stem] = fresh
        network.load_state_dict(start.state_dict)
    return network


def adam(options: OptimOptions) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """The optimiser of the parameters that are trained."""
    import torch

    def make(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [p for p in net.parameters() if p.requires_grad],
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
            fused=True,
        )

    return make


def pa_errors(pred_m: Tensor, gt_mm: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) mean joint errors in mm of joints (B, 21, 3): joint 0 aligned, and after the similarity alignment."""
    import torch

    from shared.metrics import handoccnet_errors

    root, aligned = handoccnet_errors(pred_m.float().cpu().numpy() * 1000, gt_mm.cpu().numpy())
    return torch.from_numpy(root).to(pred_m.device), torch.from_numpy(aligned).to(pred_m.device)


def sample_errors(pred: Any, batch: Mapping[str, Any], *, has_3d: bool) -> dict[str, Tensor]:
    """(B,) numbers of each sample: ``error_px`` over its visible joints, with 3-D labels ``error_mm`` and ``pa_mm``;
    ``size_ratio``, the extent of the predicted joints over that of the labelled ones."""
    import torch

    pred = pred.with_palm(batch["palm"])
    visible = batch["visible"]
    joints = pred.joints_2d.float()
    distance = torch.linalg.vector_norm(joints - batch["joints_2d"], dim=-1)
    out = {"error_px": (distance * visible).sum(1) / visible.sum(1).clamp(min=1)}
    out["size_ratio"] = extent(joints, visible) / extent(batch["joints_2d"], visible).clamp(min=1)
    if has_3d:
        out["error_mm"], out["pa_mm"] = pa_errors(pred.joints_m, batch["joints_mm"])
    return out


def extent(points: Tensor, visible: Tensor) -> Tensor:
    """(B,) longer side of the box of the visible points (B, J, 2); 0 where none is."""
    import torch

    shown = visible[..., None]
    high = torch.where(shown, points, -torch.inf).amax(1)
    low = torch.where(shown, points, torch.inf).amin(1)
    return torch.nan_to_num((high - low).amax(1), neginf=0.0).clamp(min=0)


def main() -> None:
    parsed = parse(
        TrainConfig,
        prog="python -m hand3d_wild.train",
        description="Train on prepared pictures. Presets: hand3d_wild/configs/*.yaml (perspective, 3d_norm, "
        "3d_norm_no_detach, author, standin, tiny).",
    )
    train(parsed.options, parsed.yaml)


def train(options: TrainConfig, config_yaml: str) -> dict[str, float]:
    """One run, from options to checkpoints; returns the last validation's numbers.

    Raises:
        DataError: bad options, MANO or data, a run folder that is taken, a loss that is not finite.
    """
    if options.resume and options.init_from:
        raise DataError("--resume continues with the run's own weights", remedy="leave out --init_from")
    if not options.data.store:
        raise DataError("--data.store is empty", remedy="python -m hand3d_wild.prepare makes a store")
    if not options.data.mano:
        raise DataError("no MANO model is named", remedy=MANO_REMEDY)
    check_weights(options.loss)
    check_ranges(options, TRAIN_RANGES)
    import torch

    from hand3d_wild.convert import checkpoint_of
    from hand3d_wild.data import WildSamples, choose_val
    from hand3d_wild.losses import wild_losses
    from hand3d_wild.model import WildNet
    from hand3d_wild.store import open_split
    from shared.mano import load_mano
    from shared.training import RunFolder, Task, fit, is_main_process

    run = RunFolder(Path(options.run or "runs/wild/train"))
    run.start(config_yaml, seed=options.seed, resume=options.resume)

    # ---- data
    mano = load_mano(options.data.mano, side="right")
    shape: dict[str, Any] = {"size": options.model.image_size, "form": options.model.form, "heatmaps": options.heatmaps}
    train_split = open_split(options.data.store, "train")
    train_set = WildSamples(train_split, options.data, seed=options.seed, limit=options.data.train_limit, **shape)
    val_split = choose_val(options.data)
    val_set = None
    if val_split is not None:
        val_set = WildSamples(val_split, options.data, limit=options.data.val_limit, **shape)
    options = length(options, len(train_set))  # type: ignore[assignment]

    # ---- network
    network = build(options.model, mano, seed=options.seed, init_from=options.init_from)

    # ---- loss: the schedule of the weights follows the learning rate's counter, which a checkpoint restores
    counter: list[torch.optim.lr_scheduler.LRScheduler] = []

    def loss(net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float | Tensor]]:
        step = counter[0].last_epoch
        weights = {
            "joints_2d": weight_at(options.loss.w_2d, step),
            "joints_3d": weight_at(options.loss.w_3d, step),
            "mask": weight_at(options.loss.w_mask, step),
            "reg": weight_at(options.loss.w_reg, step),
        }
        terms = wild_losses(
            net(batch["image"]),
            batch,
            weights,
            loss_3d=options.loss.loss_3d,
            loss_mask=options.loss.loss_mask,
            coverage=options.loss.coverage,
            common_std=options.loss.common_std,
            shape_weight=options.loss.shape_weight,
        )
        return torch.stack(list(terms.values())).sum(), {**terms, "w_mask": weights["mask"]}

    has_3d = val_set is not None and val_set.has_3d

    def evaluate(net: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        return sample_errors(net(batch["image"]), batch, has_3d=has_3d)

    def scheduler(optimizer: torch.optim.Optimizer, per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
        total = options.iterations or per_epoch * options.epochs
        made = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(options.optim, step, total))
        counter[:] = [made]
        return made

    def payload(net: nn.Module) -> dict[str, Any]:
        assert isinstance(net, WildNet)
        return checkpoint_of(net, data={"mano": "standin" if options.data.mano == "standin" else ""}).as_dict()

    def load(net: nn.Module, saved: Mapping[str, Any]) -> None:
        net.load_state_dict(saved["state_dict"])

    # ---- run
    if is_main_process():
        print(f"train: {train_set.summary}")
        print(f"validation: {val_set.summary if val_set is not None else 'none'}")
        print(f"hand model: {mano.source} (sha256 {mano.sha256[:12]}...)")
        count = sum(p.numel() for p in network.parameters())
        print(f"network: {count:,} parameters, {options.model.form}, {options.model.image_size} pixels")
        print(f"weights: {options.init_from or options.model.init}; 3-D loss {options.loss.loss_3d}")
        print(f"run folder: {run.root}", flush=True)
    task = Task(
        model=network,
        train_set=train_set,
        val_set=val_set,
        collate=WildSamples.collate,
        loss=loss,
        evaluate=evaluate,
        optimizer=adam(options.optim),
        scheduler=scheduler,
        payload=payload,
        load=load,
        monitor="error_mm" if has_3d else "error_px",
    )
    return fit(task, options, run, resume=options.resume)


if __name__ == "__main__":
    exit_on_error(main)
