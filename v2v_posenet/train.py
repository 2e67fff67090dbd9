"""Trains V2V-PoseNet: ``python -m v2v_posenet.train --config v2v_posenet/configs/standin.yaml --data.root DIR``.

Read top to bottom: options, data, network, loss, run. ``--resume`` continues a killed run to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError, exit_on_error
from shared.options import parse
from v2v_posenet.config import DATASETS, ModelOptions, OptimOptions, TrainConfig, Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from v2v_posenet.convert import Checkpoint


def make_optimizer(options: OptimOptions, network: nn.Module) -> torch.optim.Optimizer:
    """Adam with torch's defaults (port), or the author's RMSprop."""
    import torch

    if options.name == "adam":
        return torch.optim.Adam(network.parameters(), lr=options.lr)
    return torch.optim.RMSprop(network.parameters(), lr=options.lr, alpha=0.99, eps=1e-8)


def make_schedule(
    options: OptimOptions, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then constant or a half cosine to zero at ``total_steps``."""
    from torch.optim.lr_scheduler import LambdaLR

    from shared.training import schedule_factor

    def factor(step: int) -> float:
        return schedule_factor(options.schedule, step, total_steps=total_steps, warmup_steps=options.warmup_steps)

    return LambdaLR(optimizer, factor)


def decode_error_mm(pred: Tensor, batch: dict[str, Any], variant: Variant, model: ModelOptions) -> Tensor:
    """(B,) mean joint error in mm of heat maps (gaussian) or logits (integral)."""
    from v2v_posenet.kernels import ops

    if variant == "integral":
        cells, mode = ops.soft_argmax(pred)[0], "integral"
    else:
        cells, mode = ops.argmax3d(pred)[0], "author" if model.convention == "author" else "port"
    world = ops.decode(cells, batch["ref_mm"], batch["cube_mm"], grid=model.grid, mode=mode)  # type: ignore[arg-type]
    return (world - batch["joints_mm"]).norm(dim=-1).mean(dim=-1)


def main() -> None:
    parsed = parse(
        TrainConfig,
        prog="python -m v2v_posenet.train",
        description="Train V2V-PoseNet. Presets: v2v_posenet/configs/*.yaml (standin, paper, author, port, ...).",
    )
    train(parsed.options, parsed.yaml)


def train(options: TrainConfig, config_yaml: str) -> dict[str, float]:
    """One run, from options to checkpoints; returns the last validation's numbers.

    Raises:
        DataError: bad options or data, a run folder that is taken, a loss that is not finite.
    """
    model, variant, spec = options.model, options.variant, DATASETS[options.data.dataset]
    if model.grid % 8 or model.grid < 16:
        raise DataError(f"--model.grid must be divisible by 8 and at least 16, got {model.grid}")

    import torch

    from shared.training import RunFolder, Task, fit, is_main_process
    from v2v_posenet.convert import checkpoint_of, load_checkpoint
    from v2v_posenet.data import (
        VoxelSamples,
        convention_of,
        grids,
        limited,
        open_frames,
        split_validation,
        target_cells,
    )
    from v2v_posenet.kernels import ops
    from v2v_posenet.model import V2VPoseNet

    # ---- data
    convention = convention_of(model.convention, variant)
    cube_mm = options.data.cube_mm or spec.cube_mm
    train_frames, val_frames = split_validation(options.data, open_frames(options.data, "train"))
    train_frames = limited(train_frames, options.data.train_limit)
    common: dict[str, Any] = {
        "grid": model.grid,
        "convention": convention,
        "cube_mm": cube_mm,
        "gt_centers": options.data.centers == "gt",
    }
    train_set = VoxelSamples(train_frames, spec, augment=options.augment, seed=options.seed, **common)
    val_set = None if val_frames is None or not has_labels(val_frames) else VoxelSamples(val_frames, spec, **common)

    # ---- network
    torch.manual_seed(options.seed)
    network = V2VPoseNet(spec.joints, model.widths, init=model.init)
    if options.init_from:
        start = load_checkpoint(options.init_from)
        check_fits(start, network, options.init_from)
        network.load_state_dict(start.state_dict)

    # ---- loss: grids and targets are made here, on the batch's device
    def loss(net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float | Tensor]]:
        pred = net(grids(batch, convention, model.grid).contiguous(memory_format=torch.channels_last_3d))
        cells = target_cells(batch, convention, model.grid)
        if variant == "integral":
            terms = ops.integral_loss(pred, cells, weight=model.heatmap_weight)
            return terms.loss, {"cross_entropy": terms.cross_entropy, "l1_cells": terms.l1}
        offset = 0.0 if model.convention == "author" else 0.5
        return ops.gaussian_mse(pred, cells, sigma=model.sigma_cells, offset=offset), {}

    def evaluate(net: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        pred = net(grids(batch, convention, model.grid))
        return {"error_mm": decode_error_mm(pred, batch, variant, model)}

    def payload(net: nn.Module) -> dict[str, Any]:
        assert isinstance(net, V2VPoseNet)
        return checkpoint_of(
            net,
            variant=variant,
            convention=convention,
            dataset=options.data.dataset,
            skeleton=spec.skeleton,
            cube_mm=cube_mm,
            grid=model.grid,
            data={name: getattr(options.data, name) for name in ("test_subject", "centers", "drop_handless")},
        ).as_dict()

    def load(net: nn.Module, saved: Mapping[str, Any]) -> None:
        net.load_state_dict(saved["state_dict"])

    # ---- run
    run = RunFolder(Path(options.run or f"runs/v2v/{options.data.dataset}-{variant}"))
    run.start(config_yaml, seed=options.seed, resume=options.resume)
    if is_main_process():
        print(f"train: {train_frames.summary()}")
        print(f"validation: {val_frames.summary() if val_set is not None and val_frames is not None else 'none'}")
        count = sum(p.numel() for p in network.parameters())
        print(f"network: {count:,} parameters, grid {model.grid}, cube {cube_mm:g} mm")
        print(f"kernels: {'native' if ops.KERNELS.native('cpu') else 'torch reference'} on the CPU")
        print(f"run folder: {run.root}", flush=True)
    task = Task(
        model=network.to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
        train_set=train_set,
        val_set=val_set,
        collate=train_set.collate,
        loss=loss,
        evaluate=evaluate,
        optimizer=lambda net: make_optimizer(options.optim, net),
        scheduler=lambda optimizer, per_epoch: make_schedule(options.optim, optimizer, per_epoch * options.epochs),
        payload=payload,
        load=load,
    )
    return fit(task, options, run, resume=options.resume)


def has_labels(frames: Any) -> bool:
    """Whether the set is labelled (the HANDS2017 test split is not)."""
    return len(frames) > 0 and frames[0].joints_mm is not None


def check_fits(checkpoint: Checkpoint, network: Any, path: str) -> None:
    """Refuses weights of another size of network before torch lists a hundred keys."""
    if (checkpoint.joints, tuple(checkpoint.widths)) != (network.joints, tuple(network.widths)):
        raise DataError(
            f"a network of {checkpoint.joints} joints and widths {list(checkpoint.widths)}; "
            f"this run has {network.joints} and {list(network.widths)}",
            path=path,
            remedy="set --model.widths and the data set to those of the checkpoint",
        )


if __name__ == "__main__":
    exit_on_error(main)
