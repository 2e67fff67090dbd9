"""Trains the estimator: ``python -m selfsup_fitting.train --config selfsup_fitting/configs/standin_synthetic.yaml``.

Two stages. ``--mode synthetic`` needs no data at all; ``--mode self-supervised --init CHECKPOINT --data.root DIR`` adds
captured views, whose labels enter no loss. Read top to bottom: options, data, network, loss, run. ``--resume``
continues a killed run to the same bytes.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup_fitting.config import OptimOptions, TrainConfig
from shared.errors import DataError, exit_on_error
from shared.options import check_ranges, parse

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from selfsup_fitting.hand import Hand
    from selfsup_fitting.priors import PoseVAE

RANGES: dict[str, tuple[float, float]] = {
    "data.train_limit": (0, math.inf),
    "data.val_limit": (-1, math.inf),
    "data.val_images": (1, math.inf),
    "synth.images": (1, math.inf),
    "synth.epoch_images": (1, math.inf),
    "synth.jitter": (0, math.inf),
    "augment.resize_share": (0, 1),
    "optim.lr": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.warmup_steps": (0, math.inf),
    "loss.multiview_steps": (0, math.inf),
    "diverge_factor": (0, math.inf),
}
REAL_TERMS = ("mv_projection", "mv_consistency", "prior", "collision", "bone_length", "temporal")


def lr_factor(options: OptimOptions, step: int, per_epoch: int, epochs: int) -> float:
    """What the learning rate is multiplied by before step ``step``; ``step`` is the original's stairs, by epochs."""
    from shared.training import schedule_factor

    base = schedule_factor(
        "cosine" if options.schedule == "cosine" else "constant",
        step,
        total_steps=per_epoch * epochs,
        warmup_steps=options.warmup_steps,
    )
    if options.schedule == "step":
        base *= 0.1 ** (step // per_epoch // max(1, epochs // 3))
    return base


class Divergence:
    """Notices a loss that grows: compares its running mean with the lowest there was.

    The author warned that some runs are "quite off" (his issue 7); better to say so than to train on for hours.

    Args:
        factor: how many times the lowest is too much; 0 never stops.
        steps: length of the running mean, and steps before the first comparison.
    """

    def __init__(self, factor: float, steps: int = 100) -> None:
        self.factor, self.steps = factor, steps
        self.mean, self.lowest, self.count = 0.0, float("inf"), 0

    def recall(self, metrics: Path, step: int) -> None:
        """Takes the lowest mean from the log of a run that is resumed at ``step``; its running mean begins anew.

        The log (``metrics.csv``) has the loss of every few steps only, so ten lines at least make a mean.
        """
        if not metrics.is_file():
            return
        with metrics.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 4 and row[2] == "train/loss" and int(row[0]) <= step]
        losses = [float(row[3]) for row in rows]
        count = max(10, self.steps * len(losses) // max(1, step))
        means = (sum(losses[end - count : end]) / count for end in range(count, len(losses) + 1))
        self.lowest = min(means, default=self.lowest)

    def __call__(self, loss: float) -> None:
        """Raises DataError when the loss diverged."""
        if not self.factor:
            return
        self.count += 1
        self.mean += (loss - self.mean) / min(self.count, self.steps)
        if self.count < self.steps:
            return
        self.lowest = min(self.lowest, self.mean)
        if self.mean > self.factor * self.lowest:
            raise DataError(
                f"the training diverges: the loss is {self.mean:.4g} (mean of {self.steps} steps), "
                f"{self.mean / self.lowest:.1f} times its lowest",
                remedy="lower --optim.lr or start from another --init; --diverge_factor 0 trains on",
            )


class Criterion:
    """All terms of a batch, weighted, summed over stacks: (loss, numbers for the log).

    Args:
        options: switches and weights.
        hand: lengths and radii of the spheres.
        vae: frozen; needed with ``options.prior`` where captured frames come.
    """

    def __init__(self, options: TrainConfig, hand: Hand, vae: PoseVAE | None = None) -> None:
        import torch

        from selfsup_fitting.losses import TemporalSmoothness

        self.options, self.vae = options, vae
        self.radii = torch.tensor(hand.sphere_radius_mm, dtype=torch.float32)
        self.lengths = torch.tensor(hand.bone_lengths_mm(options.loss.lengths), dtype=torch.float32)
        self.smoothness = [TemporalSmoothness() for _ in range(options.model.stacks)]
        self.epoch = -1
        self.watch = Divergence(options.diverge_factor)

    def __call__(self, net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float | Tensor]]:
        import torch

        from selfsup_fitting.data import augmented, normalised

        synthetic, depth = batch.get("synthetic"), batch.get("depth_mm")
        images, factors = [], None
        if synthetic is not None:
            images.append(synthetic.depth)
        if depth is not None:
            seen, factors = augmented(normalised(depth.flatten(0, 1)), self.options.augment)
            images.append(seen)
        preds = net(torch.cat(images))
        count = 0 if synthetic is None else len(synthetic.depth)
        if batch["epoch"] != self.epoch:
            self.epoch = batch["epoch"]
            for smooth in self.smoothness:
                smooth.reset()
        terms: dict[str, Tensor] = {}
        log: dict[str, float | Tensor] = {}
        with torch.autocast(images[0].device.type, enabled=False):
            for stack, pred in enumerate(preds):
                part: dict[str, Tensor] = {}
                if synthetic is not None:
                    part |= self.synthetic_terms(pred.part(0, count), synthetic)
                if depth is not None and factors is not None:
                    part |= self.captured_terms(pred.part(count, None), batch, factors, stack, log)
                if synthetic is not None and depth is not None:
                    from selfsup_fitting.losses import latent_distance

                    latents = (pred.latent[:count].float(), pred.latent[count:].float())
                    part["domain"] = self.options.loss.domain * latent_distance(*latents)
                for name, value in part.items():
                    terms[name] = terms.get(name, value.new_zeros(())) + value
        loss = torch.stack(list(terms.values())).sum()
        self.watch(float(loss.detach()))
        return loss, {**{name: value.detach() for name, value in terms.items()}, **log}

    def synthetic_terms(self, pred: Any, target: Any) -> dict[str, Tensor]:
        """``synt_uv`` and ``synt_d`` of one stack, and ``synt_xy`` where it has a weight."""
        from selfsup_fitting.losses import depth_loss, heatmap_loss, position_loss

        weights = self.options.loss
        terms = {
            "synt_uv": weights.synt_uv * heatmap_loss(pred.heatmaps, target.heatmaps),
            "synt_d": weights.synt_d * depth_loss(pred.spheres_mm, target.spheres_mm),
        }
        if weights.synt_xy:
            terms["synt_xy"] = weights.synt_xy * position_loss(pred.spheres_mm, target.spheres_mm)
        return terms

    def captured_terms(
        self, pred: Any, batch: dict[str, Any], factors: Tensor, stack: int, log: dict[str, float | Tensor]
    ) -> dict[str, Tensor]:
        """The terms of captured views, of one stack; the projection by view goes into ``log``."""
        import torch

        from selfsup_fitting import losses

        options, weights = self.options, self.options.loss
        depth, T = batch["depth_mm"], batch["T_canon_view"]
        frames, views = depth.shape[:2]
        xy = pred.spheres_mm[..., :2] / factors[:, None]
        spheres = torch.cat([xy, pred.spheres_mm[..., 2:]], -1).unflatten(0, (frames, views))
        multiview = not weights.multiview_steps or batch["iteration"] < weights.multiview_steps
        terms = {"uv_hm_mean": weights.uv_hm_mean * losses.heatmap_energy(pred.heatmaps)}
        if options.mv_projection:
            value, by_view = losses.projection(spheres, T, self.radii.to(depth.device), depth, multiview=multiview)
            terms["mv_projection"] = weights.projection * value
            own = by_view.diagonal() if by_view.ndim == 2 else by_view
            log.update({f"projection_view{i + 1}": own[i] for i in range(views)})
        if options.mv_consistency:
            factor = weights.consistency if multiview else 0.0
            value = losses.consistency(spheres, T, weights.consistency_reduction, weights.sums)
            terms["mv_consistency"] = factor * value
        if options.prior and self.vae is not None:
            x = spheres.flatten(0, 1).flatten(1) * 0.01
            recon, mu, logvar = self.vae.to(x.device)(x, torch.randn(len(x), 32, device=x.device))
            value = losses.vae_objective(
                recon, x, mu, logvar, reduction=weights.sums, views=views, kl_share=weights.prior_kl
            )
            terms["pose_prior"] = weights.prior * value
        if options.collision:
            value = losses.collision(spheres, views=weights.views, reduction=weights.sums)
            terms["collision"] = weights.collision * value
        if options.bone_length:
            value = losses.bone_length(spheres, self.lengths.to(depth.device), views=weights.views)
            terms["bone_length"] = weights.bone_length * value
        if options.temporal:
            terms["temporal_smooth"] = weights.temporal * self.smoothness[stack](spheres)
        return terms


def check_options(options: TrainConfig) -> bool:
    """Whether captured frames are used; refuses options that contradict one another before anything is read."""
    if options.resume and options.init:
        raise DataError("--resume continues with the run's own weights", remedy="leave out --init")
    check_ranges(options, RANGES)
    if options.mode == "synthetic":
        if not options.synthesize:
            raise DataError("--mode synthetic with --no-synthesize leaves nothing to train on")
        return False
    if not any(getattr(options, name) for name in REAL_TERMS):
        raise DataError("--mode self-supervised with every term off", remedy="leave one on, or use --mode synthetic")
    if options.prior and not options.vae:
        raise DataError(
            "--prior needs a pose VAE",
            remedy="train one (python -m selfsup_fitting.train_prior vae) and name it by --vae, or give --no-prior",
        )
    if options.temporal and options.devices * options.num_nodes > 1:
        raise DataError("--temporal needs the frames in their order, on one device", remedy="use --devices 1")
    return True


def nyu_errors(spheres_mm: Tensor, joints_mm: Tensor) -> Tensor:
    """(..., 14) distances in mm of the scored spheres (..., 41, 3) to the annotations (..., 36, 3)."""
    from selfsup_fitting.spheres import EVAL_NYU, EVAL_SPHERES

    return (spheres_mm[..., list(EVAL_SPHERES), :] - joints_mm[..., list(EVAL_NYU), :]).norm(dim=-1)


def main() -> None:
    parsed = parse(
        TrainConfig,
        prog="python -m selfsup_fitting.train",
        description="Train by fitting. Presets: selfsup_fitting/configs/*.yaml (standin_synthetic, author_log, ...).",
    )
    train(parsed.options, parsed.yaml)


def train(options: TrainConfig, config_yaml: str) -> dict[str, float]:
    """One run, from options to checkpoints; returns the last validation's numbers.

    Raises:
        DataError: bad options or data, a run folder that is taken, a loss that diverges or is not finite.
    """
    captured = check_options(options)
    import torch

    from selfsup_fitting.convert import checkpoint_of, load_estimator
    from selfsup_fitting.data import CapturedSet, Collate, SyntheticSet, normalised, open_shards
    from selfsup_fitting.hand import load_hand
    from selfsup_fitting.losses import projection
    from selfsup_fitting.model import Estimator
    from selfsup_fitting.pictures import save_fit_sheet
    from selfsup_fitting.priors import load_prior
    from shared.training import RunFolder, Task, TrainingSet, fit, is_main_process

    # ---- data
    hand = load_hand(options.hand)
    world = options.devices * options.num_nodes
    train_set: TrainingSet
    val_set: Any = None
    if captured:
        shards = open_shards(options.data.root, "train", views=2 if options.mv_consistency else 1)
        train_set = CapturedSet(
            shards,
            options.data.train_limit,
            seed=options.seed,
            batch_size=options.batch_size,
            world=world,
            repeat_first=options.overfit_batch,
            synthetic_images=options.synth.images if options.synthesize else 0,
            in_order=options.temporal,
        )
        about = f"{shards.manifest.summary()}, of which {len(train_set)} are used, without their labels"
    else:
        train_set = SyntheticSet(options.synth.epoch_images, options.seed, repeat_first=options.overfit_batch)
        about = f"{len(train_set)} synthetic images an epoch"
    if options.data.val_limit >= 0:
        if options.data.root:
            val_set = CapturedSet(open_shards(options.data.root, "test"), options.data.val_limit, labels=True)
        else:
            val_set = SyntheticSet(options.data.val_images, options.seed, validation=True)

    # ---- network
    torch.manual_seed(options.seed)
    network = Estimator(**dataclasses.asdict(options.model))
    if options.init:
        start = load_estimator(options.init)
        if start.model != network.sizes:
            raise DataError(
                f"an estimator of {start.model}; this run's has {network.sizes}",
                path=options.init,
                remedy="set --model.stacks and --model.channels to those of the checkpoint",
            )
        network.load_state_dict(start.state_dict)
    vae = load_prior(options.vae, "vae") if captured and options.prior else None
    criterion = Criterion(options, hand, vae)
    run = RunFolder(Path(options.run or f"runs/selfsup/{options.mode}"))

    def evaluate(net: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        if "depth_mm" not in batch:
            target = batch["synthetic"]
            spheres = net(target.depth)[-1].spheres_mm
            return {"error_mm": (spheres - target.spheres_mm).norm(dim=-1).mean(-1)}
        depth = batch["depth_mm"]
        spheres = net(normalised(depth.flatten(0, 1)))[-1].spheres_mm.float().unflatten(0, depth.shape[:2])
        errors = nyu_errors(spheres, batch["joints_mm"]).mean(-1)  # (B, V)
        radii = criterion.radii.to(depth.device)
        each = [projection(s[None], T[None], radii, d[None])[0] for s, T, d in zip(
            spheres, batch["T_canon_view"], depth, strict=True)]  # fmt: skip
        if is_main_process() and batch["name"][0] == first_name:
            save_fit_sheet(run.root / f"images/epoch_{criterion.epoch + 1:04d}.png", depth, spheres, radii)
        views = {f"error_view{i + 1}_mm": errors[:, i] for i in range(errors.shape[1])}
        return {"error_mm": errors.mean(1), **views, "projection": torch.stack(each)}

    first_name = val_set[0].name if isinstance(val_set, CapturedSet) else ""

    def scheduler(optimizer: torch.optim.Optimizer, per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
        def factor(step: int) -> float:
            return lr_factor(options.optim, step, per_epoch, options.epochs)

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def payload(net: nn.Module) -> dict[str, Any]:
        assert isinstance(net, Estimator)
        return checkpoint_of(net, mode=options.mode, hand=hand.name).as_dict()

    def load(net: nn.Module, saved: Mapping[str, Any]) -> None:
        net.load_state_dict(saved["state_dict"])
        criterion.watch.recall(run.root / "metrics.csv", int(saved["step"]))

    # ---- run
    run.start(config_yaml, seed=options.seed, resume=options.resume)
    if is_main_process():
        from selfsup_fitting.kernels import ops

        print(f"train: {about}")
        print(f"validation: {'none' if val_set is None else f'{len(val_set)} samples'}")
        print(f"hand: {hand.name}")
        count = sum(p.numel() for p in network.parameters())
        print(f"network: {count:,} parameters; {options.init or 'random weights'}")
        if vae is not None and vae.center == "mean":
            print(
                f"warning: {options.vae} knows hands around their mean vertex, as in the original, and captured crops "
                "lie around the palm; train_prior vae --center palm makes one for these"
            )
        print(f"kernels: {'native' if ops.KERNELS.native('cpu') else 'torch reference'} on the CPU")
        print(f"run folder: {run.root}", flush=True)
    task = Task(
        model=network,
        train_set=train_set,
        val_set=val_set,
        collate=Collate(hand, options.synth),
        loss=criterion,
        evaluate=evaluate,
        optimizer=lambda net: torch.optim.Adam(
            net.parameters(), lr=options.optim.lr, weight_decay=options.optim.weight_decay, fused=True
        ),
        scheduler=scheduler,
        payload=payload,
        load=load,
        monitor="projection" if isinstance(val_set, CapturedSet) else "error_mm",  # labels choose nothing
    )
    return fit(task, options, run, resume=options.resume)


if __name__ == "__main__":
    exit_on_error(main)
