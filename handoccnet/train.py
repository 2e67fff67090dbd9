"""Trains HandOccNet: ``python -m handoccnet.train --config handoccnet/configs/standin.yaml --data.root DIR``.

Read top to bottom: options, data, network, loss, run. ``--resume`` continues a killed run to the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handoccnet.config import DatasetName, OptimOptions, TrainConfig
from shared.errors import DataError, exit_on_error
from shared.options import parse

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def scaled_lr(options: OptimOptions, global_batch: int) -> float:
    """The learning rate for a global batch: in proportion to the reference's (the author's advice, his issue 16)."""
    return options.lr * (global_batch / options.reference_batch if options.reference_batch else 1.0)


def lr_factor(options: OptimOptions, dataset: DatasetName, step: int, per_epoch: int, epochs: int) -> float:
    """What the learning rate is multiplied by before step ``step``; the stairs are the original's (README, ledger)."""
    from shared.training import schedule_factor

    schedule = dataset if options.schedule == "auto" else options.schedule
    base = schedule_factor(
        "cosine" if schedule == "cosine" else "constant",
        step,
        total_steps=per_epoch * epochs,
        warmup_steps=options.warmup_steps,
    )
    epoch = step // per_epoch
    if schedule == "ho3d":
        return base * 0.7 ** min(epoch // 10, 6)
    if schedule == "dexycb":
        return base * 0.9 ** min(epoch, 24)
    return base


def hand_errors(pred: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """(B,) mean joint errors in mm: ``error_mm`` with the wrists aligned, ``pa_mm`` after the similarity alignment."""
    import torch

    from shared.metrics import handoccnet_errors

    joints = pred["joints_mm"].float()
    root, aligned = handoccnet_errors(joints.cpu().numpy(), batch["joints_root_mm"].cpu().numpy())
    return {"error_mm": torch.from_numpy(root).to(joints.device), "pa_mm": torch.from_numpy(aligned).to(joints.device)}


def main() -> None:
    parsed = parse(
        TrainConfig,
        prog="python -m handoccnet.train",
        description="Train HandOccNet. Presets: handoccnet/configs/*.yaml (standin, paper, tiny).",
    )
    train(parsed.options, parsed.yaml)


def train(options: TrainConfig, config_yaml: str) -> dict[str, float]:
    """One run, from options to checkpoints; returns the last validation's numbers.

    Raises:
        DataError: bad options, MANO or data, a run folder that is taken, a loss that is not finite.
    """
    if options.init_from and options.backbone_weights:
        raise DataError(
            "--init_from and --backbone_weights exclude one another: the checkpoint's backbone would be overwritten",
            remedy="give one of them",
        )
    if options.resume and (options.init_from or options.backbone_weights):
        raise DataError(
            "--resume continues with the run's own weights", remedy="leave out --init_from and --backbone_weights"
        )
    import torch
    from torch import nn

    from handoccnet.convert import checkpoint_of, load_backbone, load_checkpoint
    from handoccnet.data import HandSamples, load_labels, open_mano
    from handoccnet.losses import hand_losses
    from handoccnet.model import HandOccNet
    from shared.training import RunFolder, Task, fit, is_main_process

    run = RunFolder(Path(options.run or f"runs/handoccnet/{options.data.dataset}"))
    run.start(config_yaml, seed=options.seed, resume=options.resume)

    # ---- data
    right, left = open_mano(options.data)
    train_labels = load_labels(options.data, "train", right, left)
    val_labels = None
    if options.data.val_limit >= 0:
        val_labels = load_labels(options.data, "test", right, left).limited(options.data.val_limit)
    size = options.model.image_size
    train_set = HandSamples(train_labels, augment=options.augment, seed=options.seed, size=size)
    val_set = None
    if val_labels is not None and val_labels.has_joints:
        val_set = HandSamples(val_labels, size=size)

    # ---- network
    torch.manual_seed(options.seed)
    network = HandOccNet(right, **dataclasses.asdict(options.model))
    if options.init == "torch":
        for part in (network.fit, network.set, network.head, network.encoder, network.hand_head):
            for layer in part.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    layer.reset_parameters()
    if options.init_from:
        start = load_checkpoint(options.init_from)
        if start.model != network.sizes:
            raise DataError(
                f"a network of the sizes {start.model}; this run's has {network.sizes}",
                path=options.init_from,
                remedy="set --model.* to those of the checkpoint",
            )
        network.load_state_dict(start.state_dict)
        weights = f"weights of {options.init_from}"
    else:
        weights = load_backbone(network, options.backbone_weights)
    devices = options.devices * options.num_nodes
    lr = scaled_lr(options.optim, devices * options.batch_size)

    # ---- loss: the targets come from MANO of the labels, on the batch's device
    def loss(net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float | Tensor]]:
        pred = net(batch["image"])
        target = {**network.hand.targets(batch["pose"], batch["betas"]), "joints_img": batch["joints_img"]}
        terms = hand_losses(pred, target, dataclasses.asdict(options.loss))
        return torch.stack(list(terms.values())).sum(), dict(terms)

    def evaluate(net: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        return hand_errors(net(batch["image"]), batch)

    def scheduler(optimizer: torch.optim.Optimizer, per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
        def factor(step: int) -> float:
            return lr_factor(options.optim, options.data.dataset, step, per_epoch, options.epochs)

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def payload(net: nn.Module) -> dict[str, Any]:
        assert isinstance(net, HandOccNet)
        data = {"dataset": options.data.dataset, "mano": "standin" if options.data.mano == "standin" else ""}
        asked = ("box_rule", "sides", "annotations", "mano_left", "dexycb_split", "missing")
        data |= {name: getattr(options.data, name) for name in asked}
        return checkpoint_of(net, data=data).as_dict()

    def load(net: nn.Module, saved: Mapping[str, Any]) -> None:
        net.load_state_dict(saved["state_dict"])

    # ---- run
    if is_main_process():
        print(f"train: {train_labels.summary}")
        why = "--data.val_limit is negative" if val_labels is None else f"no true joints in {val_labels.summary}"
        print(f"validation: {f'none ({why})' if val_labels is None or val_set is None else val_labels.summary}")
        print(f"hand model: {right.source} (sha256 {right.sha256[:12]}...)")
        count = sum(p.numel() for p in network.parameters())
        print(f"network: {count:,} parameters, {size} x {size} pixels; {weights}")
        print(f"learning rate: {lr:.3g} for batches of {devices} x {options.batch_size}")
        print(f"run folder: {run.root}", flush=True)
    task = Task(
        model=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        train_set=train_set,
        val_set=val_set,
        collate=train_set.collate,
        loss=loss,
        evaluate=evaluate,
        optimizer=lambda net: torch.optim.Adam(net.parameters(), lr=lr, fused=True),
        scheduler=scheduler,
        payload=payload,
        load=load,
    )
    return fit(task, options, run, resume=options.resume)


if __name__ == "__main__":
    exit_on_error(main)
