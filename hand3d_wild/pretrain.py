"""The first stage: ``python -m hand3d_wild.pretrain --config hand3d_wild/configs/pretrain_standin.yaml``.

The 22 numbers of synthetic pictures (``python -m hand3d_wild.synthesize``) are learned directly, group by group. The
checkpoint is what ``python -m hand3d_wild.train --init_from`` begins with. ``--resume`` continues a killed run to the
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hand3d_wild.config import PRETRAIN_RANGES, PretrainConfig
from hand3d_wild.train import MANO_REMEDY, adam, build, length, lr_factor
from shared.errors import DataError, exit_on_error
from shared.options import check_ranges, parse

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def main() -> None:
    parsed = parse(
        PretrainConfig,
        prog="python -m hand3d_wild.pretrain",
        description="Pretrain on synthetic pictures. Presets: hand3d_wild/configs/pretrain{,_standin}.yaml.",
    )
    pretrain(parsed.options, parsed.yaml)


def sample_numbers(pred: Any, truth: Any, joints_2d: Tensor) -> dict[str, Tensor]:
    """(B,) numbers of each sample: ``error_px`` of the joints in the 256-pixel frame, ``error_mm`` with the wrists
    aligned and ``pa_mm`` against the hand of the true numbers."""
    import torch

    from hand3d_wild.train import pa_errors

    root, aligned = pa_errors(pred.joints_m, truth.joints_m.float() * 1000)
    distance = torch.linalg.vector_norm(pred.joints_2d.float() - joints_2d, dim=-1).mean(1)
    return {"error_px": distance, "error_mm": root, "pa_mm": aligned}


def loss_weights(options: PretrainConfig) -> dict[str, float]:
    """The weights by the names of :func:`hand3d_wild.losses.pretrain_losses`."""
    return {name: getattr(options.loss, f"w_{name}") for name in ("scale", "trans", "rot", "pose", "betas")}


def pretrain(options: PretrainConfig, config_yaml: str) -> dict[str, float]:
    """One run, from options to checkpoints; returns the last validation's numbers.

    Raises:
        DataError: bad options, MANO or data, a run folder that is taken, a loss that is not finite.
    """
    if options.resume and options.init_from:
        raise DataError("--resume continues with the run's own weights", remedy="leave out --init_from")
    if not options.data.root:
        raise DataError("--data.root is empty", remedy="python -m hand3d_wild.synthesize makes a set")
    if not options.data.mano:
        raise DataError("no MANO model is named", remedy=MANO_REMEDY)
    check_ranges(options, PRETRAIN_RANGES)
    import torch

    from hand3d_wild.convert import checkpoint_of
    from hand3d_wild.losses import pretrain_losses
    from hand3d_wild.model import WildNet
    from hand3d_wild.synth_data import SynthSamples
    from shared.mano import load_mano
    from shared.training import RunFolder, Task, fit, is_main_process

    run = RunFolder(Path(options.run or "runs/wild/pretrain"))
    run.start(config_yaml, seed=options.seed, resume=options.resume)

    # ---- data
    mano = load_mano(options.data.mano, side="right")
    data: dict[str, Any] = {
        "size": options.model.image_size,
        "form": options.model.form,
        "reference_translation": options.data.reference_translation,
        "cache": options.data.cache,
    }
    train_set = SynthSamples(options.data.root, "train", seed=options.seed, limit=options.data.train_limit, **data)
    val_set, without = None, "none"
    if train_set.manifest["options"].get("test") == 0:
        without = "none, the set was made with --test 0"
    elif options.data.val_limit >= 0:
        val_set = SynthSamples(options.data.root, "test", limit=options.data.val_limit, **data)
    options = length(options, len(train_set))  # type: ignore[assignment]

    # ---- network and loss
    network = build(options.model, mano, seed=options.seed, init_from=options.init_from)
    weights = loss_weights(options)

    def terms(params: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        return pretrain_losses(
            params.float(), batch["params"], weights, norm=options.loss.norm, rotation=options.loss.rotation
        )

    def loss(net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float | Tensor]]:
        parts = terms(net(batch["image"]).params.vector, batch)
        return torch.stack(list(parts.values())).sum(), dict(parts)

    def evaluate(net: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        pred = net(batch["image"])
        truth = network.decoder(batch["params"])
        numbers = sample_numbers(pred, truth, batch["joints_2d"])
        total = torch.stack(list(terms(pred.params.vector, batch).values())).sum()
        return {**numbers, "loss": total.expand(len(batch["params"]))}

    def scheduler(optimizer: torch.optim.Optimizer, per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
        total = options.iterations or per_epoch * options.epochs
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(options.optim, step, total))

    def payload(net: nn.Module) -> dict[str, Any]:
        assert isinstance(net, WildNet)
        return checkpoint_of(net, data={"mano": "standin" if options.data.mano == "standin" else ""}).as_dict()

    def load(net: nn.Module, saved: Mapping[str, Any]) -> None:
        net.load_state_dict(saved["state_dict"])

    # ---- run
    if is_main_process():
        print(f"train: {train_set.summary}")
        print(f"validation: {val_set.summary if val_set is not None else without}")
        print(f"hand model: {mano.source} (sha256 {mano.sha256[:12]}...)")
        count = sum(p.numel() for p in network.parameters())
        print(f"network: {count:,} parameters, {options.model.form}, {options.model.image_size} pixels")
        print(f"run folder: {run.root}", flush=True)
    task = Task(
        model=network,
        train_set=train_set,
        val_set=val_set,
        collate=SynthSamples.collate,
        loss=loss,
        evaluate=evaluate,
        optimizer=adam(options.optim),
        scheduler=scheduler,
        payload=payload,
        load=load,
        monitor="loss",
    )
    return fit(task, options, run, resume=options.resume)


if __name__ == "__main__":
    exit_on_error(main)
