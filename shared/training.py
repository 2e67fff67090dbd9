"""Run folders and training runs that can be killed at any moment and continued to the same bytes.

Lightning's Trainer moves data, wraps the model for several processes, scales gradients and runs the hooks. What it
does not give is an exact continuation in the middle of an epoch, so three things are ours:

- everything random is a function of a counter: a sample's augmentation of (seed, epoch, index), dropout of
  (seed, step, rank), the order of an epoch of (seed, epoch). There is no generator state to save, and the number of
  loader workers cannot matter.
- :class:`EpochBatches` deals the samples: every sample exactly once an epoch, over any number of processes, from any
  batch on.
- a checkpoint names (epoch, next batch); continuing sets Lightning's counters to it and deals from there.

A method hands over a :class:`Task`; nothing here knows which method it is.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from shared.errors import DataError, MissingFileError
from shared.options import TrainOptions, describe_command
from shared.safe_io import atomic_path, atomic_write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SampleKey = tuple[int, int]  # (epoch, index): what a training data set is asked for


class TrainingSet(Sized, Protocol):
    """A training set: ``data[(epoch, index)]`` is a sample whose randomness depends on (seed, epoch, index) alone."""

    def __getitem__(self, key: SampleKey, /) -> Any: ...


@dataclasses.dataclass
class Task:
    """What a method gives to :func:`fit`.

    Attributes:
        model: the network.
        train_set: see :class:`TrainingSet`.
        val_set: ``val_set[index]``, or None.
        collate: list of samples -> batch (a dict; ``batch["name"]`` lists the samples' names).
        loss: (model, batch) -> (scalar loss, numbers for the log).
        evaluate: (model, batch) -> per-sample numbers, each (B,); averaged over the validation set.
        optimizer: model -> optimizer.
        scheduler: optimizer, steps per epoch -> scheduler stepped after every step, or None for a constant rate.
        payload: model -> the method's checkpoint (format, options, ``state_dict``), without training state.
        load: (model, payload) -> None, strict.
        monitor: name of the number from ``evaluate`` whose minimum makes the best checkpoint.
    """

    model: nn.Module
    train_set: TrainingSet
    collate: Callable[[list[Any]], dict[str, Any]]
    loss: Callable[[nn.Module, dict[str, Any]], tuple[Tensor, dict[str, float | Tensor]]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    payload: Callable[[nn.Module], dict[str, Any]]
    load: Callable[[nn.Module, Mapping[str, Any]], None]
    val_set: Any = None
    evaluate: Callable[[nn.Module, dict[str, Any]], dict[str, Tensor]] | None = None
    monitor: str = "error_mm"
    scheduler: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler] | None = None


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch; the same on every worker, rank and resumed run."""
    return np.random.default_rng((seed, epoch, index))


def schedule_factor(
    schedule: Literal["constant", "cosine"], step: int, *, total_steps: int, warmup_steps: int = 0
) -> float:
    """What the learning rate is multiplied by before step ``step`` (from 0).

    A linear rise over ``warmup_steps`` (0: none), times one (constant) or a half cosine to zero at ``total_steps``.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return warm
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))


class EpochBatches:
    """Batches of (epoch, index) keys for one process and one epoch, from any batch on.

    The samples of an epoch are permuted by (seed, epoch) and cut into global batches of ``world * batch_size``; process
    ``rank`` takes every ``world``-th sample of each, so that the processes together see each sample exactly once, and
    a run on two processes sees the same global batches as a run on one with twice the batch. Where the last global
    batch has fewer samples than processes, the idle ones get its first sample with weight 0: all must join the
    gradient exchange.

    Args:
        count: samples in the set.
        batch_size: samples per process and step.
        seed, epoch: of the order.
        rank, world: this process and how many there are.
        start: first batch to deal.
        repeat_first: deal the unshuffled first batch again and again (``--overfit-batch``).
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        repeat_first: bool = False,
    ) -> None:
        if count < 1:
            raise DataError("the training set is empty", remedy="check --data.root and the split")
        self.count, self.global_size = count, batch_size * world
        self.seed, self.epoch, self.rank, self.world, self.start = seed, epoch, rank, world, start
        self.repeat_first = repeat_first
        self.total = -(-count // self.global_size)

    def __len__(self) -> int:
        return self.total - self.start

    def order(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(count,) the sample indices in the order of this epoch."""
        if self.repeat_first:
            return np.arange(self.count)
        return np.random.default_rng((self.seed, self.epoch, 0x5EED)).permutation(self.count)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self.order()
        for batch in range(self.start, self.total):
            first = 0 if self.repeat_first else batch * self.global_size
            chunk = order[first : first + self.global_size]
            mine = chunk[self.rank :: self.world]
            yield [(self.epoch, int(index)) for index in (mine if len(mine) else chunk[:1])]

    def weight(self, batch: int) -> float:
        """What this process's mean loss counts in the mean over processes, so that each sample counts the same."""
        size = self.global_size if self.repeat_first else min(self.global_size, self.count - batch * self.global_size)
        size = min(size, self.count)
        return len(range(self.rank, size, self.world)) * self.world / size


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """One run: ``config.yaml``, ``environment.json``, ``metrics.csv``, ``checkpoints/``, ``tensorboard/``."""

    root: Path

    @property
    def last(self) -> Path:
        return self.root / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.root / "checkpoints" / "best.pt"

    def start(self, config_yaml: str, *, seed: int, resume: bool) -> None:
        """Writes what is needed to repeat the run.

        Raises:
            DataError: the folder holds a run already and ``resume`` is false (nothing is overwritten).
            MissingFileError: ``resume`` without a checkpoint to continue from.
        """
        if resume and not self.last.is_file():
            raise MissingFileError(
                "there is no checkpoint to resume from",
                path=self.last,
                remedy="leave out --resume, or give the run's folder as --run",
            )
        if not resume and self.last.is_file():
            raise DataError(
                "this folder holds a run already",
                path=self.root,
                remedy="continue it with --resume, or choose another --run",
            )
        if is_main_process():
            self.root.mkdir(parents=True, exist_ok=True)
            if not resume:
                (self.root / "metrics.csv").unlink(missing_ok=True)  # of a run that died before its first checkpoint
            if not resume:  # a resumed run keeps the options it was started with
                atomic_write_text(self.root / "config.yaml", config_yaml)
            environment = self.root / "environment.json"
            entries = json.loads(environment.read_text()) if resume and environment.is_file() else []
            entries.append({"command": describe_command(), "seed": seed, **describe_environment()})
            atomic_write_text(environment, json.dumps(entries, indent=1) + "\n")


def is_main_process() -> bool:
    """True in the first process of a run, under Lightning's launcher, torchrun and SLURM alike."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ and (name != "SLURM_PROCID" or "SLURM_NTASKS" in os.environ):
            return int(os.environ[name]) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0
    return True


def describe_environment() -> dict[str, Any]:
    """Versions, commit and machine of this process."""
    import importlib.metadata

    versions = {}
    for name in ("torch", "lightning", "numpy", "handpose"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return {
        "commit": commit,
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _canonical(value: Any) -> Any:
    """The same nested value with equal strings as one object: pickle writes a repeated object as a reference."""
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_canonical(item) for item in value)
    return sys.intern(value) if type(value) is str else value


def save_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """``torch.save`` through memory and a rename: never half a file, and equal payloads give equal bytes."""
    import torch

    buffer = io.BytesIO()  # a file name would become part of the archive and of its bytes
    torch.save(_canonical(payload), buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_payload(path: Path) -> dict[str, Any]:
    """A checkpoint written by :func:`save_checkpoint`, read without running anything it says.

    Raises:
        MissingFileError: no such file.
        DataError: not a torch file, truncated, or with objects other than tensors and plain values.
    """
    import pickle

    import torch

    if not path.is_file():
        raise MissingFileError("no such checkpoint", path=path, remedy="train first, or give the path of a checkpoint")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        OSError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"not a readable checkpoint ({reason})",
            path=path,
            remedy="the file may be truncated; copy or train it again",
        ) from None
    if not isinstance(payload, dict):
        raise DataError(f"expected a dictionary, found {type(payload).__name__}", path=path)
    return payload


class MetricsFile:
    """``metrics.csv``: one row (step, epoch, name, value) a number, so that new numbers never change the columns.

    Continuing at a step removes the rows beyond it, which a killed run may have left.
    """

    def __init__(self, path: Path, *, keep_to_step: int) -> None:
        self.path = path
        rows = [["step", "epoch", "name", "value"]]
        if path.is_file():
            with open(path, newline="") as file:
                rows += [row for row in list(csv.reader(file))[1:] if len(row) == 4 and int(row[0]) <= keep_to_step]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        atomic_write_text(path, text.getvalue())

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        with open(self.path, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [step, epoch, name, repr(float(v))] for name, v in values.items()
            )


class _Deferred:
    """A loader whose workers start at the first batch: Lightning asks for an iterator twice an epoch and uses one."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


class StopRun(Exception):
    """Leaves the training loop from inside (first Ctrl-C, ``max_steps``); the last checkpoint has been written."""


def _seed_step(seed: int, step: int, rank: int) -> None:
    import torch

    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))


def fit(task: Task, options: TrainOptions, run: RunFolder, *, resume: bool = False) -> dict[str, float]:
    """Trains ``task`` and returns the last validation's numbers.

    Writes ``checkpoints/last.pt`` (every ``checkpoint_every`` steps and after every epoch), ``checkpoints/best.pt``
    (smallest ``task.monitor``), ``metrics.csv`` and TensorBoard events. The first Ctrl-C finishes the step, saves and
    leaves; a loss or gradient that is not finite stops the run and names the samples, before the weights are touched.

    Raises:
        DataError: NaN or infinite loss or gradient; a checkpoint of another run's shape on resume.
    """
    import torch

    trainer, module = _build(task, options, run, resume)
    previous = signal.getsignal(signal.SIGINT)
    interrupts = threading.current_thread() is threading.main_thread()

    def on_interrupt(signum: int, frame: Any) -> None:
        module.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one leaves at once
        print("\nfinishing this step, saving and leaving (Ctrl-C again leaves at once)", file=sys.stderr, flush=True)

    try:
        if interrupts:
            signal.signal(signal.SIGINT, on_interrupt)
        if resume and module.epoch >= options.epochs and is_main_process():
            print(f"nothing left to train: {module.epoch} of {options.epochs} epochs are done")
        trainer.fit(module)
    except StopRun as reason:
        if is_main_process():
            print(f"stopped: {reason}; continue with --resume", file=sys.stderr)
    finally:
        if interrupts:
            signal.signal(signal.SIGINT, previous)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    results: dict[str, float] = module.results
    return results


def _build(task: Task, options: TrainOptions, run: RunFolder, resume: bool) -> tuple[Any, Any]:
    """The Trainer and the module around ``task`` (Lightning takes seconds to import, hence inside a function)."""
    import logging
    import warnings

    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips; ours says what is used
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings(
        "ignore", message=".*isinstance.treespec, LeafSpec.*"
    )  # inside lightning 2.6.6 on torch 2.13
    if options.threads:
        torch.set_num_threads(options.threads)

    saved = load_payload(run.last) if resume else None

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model
            self.epoch = 0  # of the epoch under way, and the next batch in it: what a checkpoint says
            self.batch = 0
            self.step = 0  # optimiser steps so far
            self.best = float("inf")
            self.results: dict[str, float] = {}
            self.stop_requested = False
            self.totals: dict[str, Tensor] = {}
            self.bar: Any = None
            self.started = 0.0
            self.steps_here = 0

        # ---- data

        def batches(self) -> EpochBatches:
            return EpochBatches(
                len(task.train_set),
                options.batch_size,
                seed=options.seed,
                epoch=self.epoch,
                rank=self.trainer.global_rank,
                world=self.trainer.world_size,
                start=self.batch,
                repeat_first=options.overfit_batch,
            )

        def train_dataloader(self) -> Any:
            self.sampler = self.batches()
            loader: Any = DataLoader(
                task.train_set,  # type: ignore[arg-type]
                batch_sampler=self.sampler,
                num_workers=options.workers,
                collate_fn=task.collate,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # its own, or starting workers would draw from the model's
            )
            return _Deferred(loader)

        def val_dataloader(self) -> Any:
            if task.val_set is None or task.evaluate is None:
                return []
            mine = range(self.trainer.global_rank, len(task.val_set), self.trainer.world_size)
            return DataLoader(
                task.val_set,
                sampler=mine,
                batch_size=options.batch_size,
                num_workers=options.workers,
                collate_fn=task.collate,
                generator=torch.Generator(),
            )

        # ---- training

        def configure_optimizers(self) -> Any:
            optimizer = task.optimizer(self.model)
            if task.scheduler is None:
                return optimizer
            scheduler = task.scheduler(optimizer, EpochBatches.__len__(self.batches()) + self.batch)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def on_fit_start(self) -> None:
            if saved is not None:
                self.restore(saved)
            if self.trainer.is_global_zero:
                self.metrics = MetricsFile(run.root / "metrics.csv", keep_to_step=self.step)

        def on_train_epoch_start(self) -> None:
            self.freeze_norms()
            total = self.sampler.total
            self.started, self.steps_here = time.monotonic(), 0
            if self.trainer.is_global_zero:
                quiet = not sys.stderr.isatty()
                self.bar = tqdm(
                    total=total,
                    initial=self.batch,
                    desc=f"epoch {self.epoch + 1}/{options.epochs}",
                    unit="step",
                    mininterval=20 if quiet else 0.2,
                    maxinterval=60 if quiet else 10,
                    dynamic_ncols=True,
                )

        def freeze_norms(self) -> None:
            self.model.train()
            if options.freeze_batchnorm:
                for part in self.model.modules():
                    if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                        part.eval()

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            _seed_step(options.seed, self.step, self.trainer.global_rank)
            loss, self.logged = task.loss(self.model, batch)
            if not torch.isfinite(loss):
                self.refuse("the loss is not finite", batch, loss)
            self.last_batch, self.last_loss = batch, loss.detach()
            return loss * self.sampler.weight(self.batch)

        def refuse(self, what: str, batch: dict[str, Any], loss: Tensor) -> None:
            names = list(batch.get("name", []))
            record = {
                "epoch": self.epoch,
                "batch": self.batch,
                "step": self.step,
                "loss": repr(float(loss.detach())),
                "samples": names,
            }
            path = run.root / f"stopped_step{self.step}_rank{self.trainer.global_rank}.json"
            atomic_write_text(path, json.dumps(record, indent=1) + "\n")
            where = f"step {self.step} of epoch {self.epoch + 1}"
            raise DataError(
                f"{what} (loss {record['loss']}) at {where}; samples: {', '.join(map(str, names))}",
                path=path,
                remedy="look at these samples and their labels, or lower the learning rate; "
                "the last checkpoint is untouched",
            )

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            if options.precision == "16":
                return  # the scaler skips steps that overflow, by design
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if not torch.isfinite(norm):
                self.refuse("the gradient is not finite", self.last_batch, self.last_loss)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.batch += 1
            self.step += 1
            self.steps_here += 1
            self.sync_stop()
            last = self.batch >= self.sampler.total
            if self.step % options.log_every == 0 or last:
                self.write_log()
            if self.trainer.is_global_zero:
                left = (options.epochs - self.epoch) * self.sampler.total - self.batch
                seconds = left * (time.monotonic() - self.started) / self.steps_here
                self.bar.set_postfix_str(
                    f"loss={float(self.last_loss):.4g}, run ends in {_minutes(seconds)}", refresh=False
                )
                self.bar.update()
            if last:
                return  # the epoch's end validates and saves; until then the checkpoint before it stands
            if self.stop_requested:
                self.save_last()
                raise StopRun(f"interrupted at step {self.step}")
            if options.max_steps and self.step >= options.max_steps:
                self.save_last()
                raise StopRun(f"max_steps {options.max_steps} reached")
            if options.checkpoint_every and self.step % options.checkpoint_every == 0:
                self.save_last()

        def sync_stop(self) -> None:
            if self.trainer.world_size > 1:  # all leave after the same step, or the others would wait for ever
                flag = torch.tensor(float(self.stop_requested), device=self.device)
                torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
                self.stop_requested = bool(flag.item())

        def write_log(self) -> None:
            values = {"train/loss": self.last_loss * self.sampler.weight(self.batch - 1)}
            values |= {f"train/{name}": torch.as_tensor(value).detach() for name, value in self.logged.items()}
            stacked = torch.stack([v.float().to(self.device) for v in values.values()])
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(stacked)
                stacked /= self.trainer.world_size
            if self.trainer.is_global_zero:
                numbers = dict(zip(values, stacked.tolist(), strict=True))
                self.metrics.write(self.step, self.epoch, numbers)
                rate = self.trainer.optimizers[0].param_groups[0]["lr"]
                self.logger.log_metrics({**numbers, "train/lr": rate}, step=self.step)  # type: ignore[union-attr]

        # ---- validation

        def on_validation_epoch_start(self) -> None:
            self.totals = {}

        def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
            assert task.evaluate is not None
            for name, values in task.evaluate(self.model, batch).items():
                pair = torch.stack(
                    [values.double().sum(), torch.tensor(float(len(values)), dtype=torch.float64, device=values.device)]
                )
                self.totals[name] = self.totals.get(name, torch.zeros_like(pair)) + pair

        def on_validation_epoch_end(self) -> None:
            names = sorted(self.totals)
            if not names:
                return
            totals = torch.stack([self.totals[name] for name in names])
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(totals)
            self.results = dict(zip(names, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))

        # ---- ends of epochs, checkpoints

        def on_train_epoch_end(self) -> None:
            if self.bar is not None:
                self.bar.close()
            validated = bool(self.totals)
            self.totals = {}
            self.epoch, self.batch = self.epoch + 1, 0
            if self.trainer.is_global_zero and validated:
                numbers = {f"val/{name}": value for name, value in self.results.items()}
                self.metrics.write(self.step, self.epoch - 1, numbers)
                self.logger.log_metrics(numbers, step=self.step)  # type: ignore[union-attr]
                shown = ", ".join(f"{name} {value:.4g}" for name, value in self.results.items())
                print(f"epoch {self.epoch}/{options.epochs}: {shown}", flush=True)
            better = validated and self.results.get(task.monitor, float("inf")) < self.best
            if better:
                self.best = self.results[task.monitor]
            if better and self.trainer.is_global_zero:
                # before `last`: killed between the two, the epoch is repeated and is better once more
                save_checkpoint(run.best, self.method_payload())
            self.save_last()
            if self.epoch < options.epochs and (self.stop_requested or 0 < options.max_steps <= self.step):
                raise StopRun(f"after epoch {self.epoch}")

        def method_payload(self) -> dict[str, Any]:
            return {**task.payload(self.model), "epoch": self.epoch, "step": self.step, "results": dict(self.results)}

        def save_last(self) -> None:
            if not self.trainer.is_global_zero:
                return
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            payload = self.method_payload()
            payload["training"] = {
                "epoch": self.epoch,
                "batch": self.batch,
                "step": self.step,
                "best": self.best,
                "samples": len(task.train_set),
                "global_batch": self.sampler.global_size,
                "seed": options.seed,
                "optimizer": self.trainer.optimizers[0].state_dict(),
                "schedulers": [c.scheduler.state_dict() for c in self.trainer.lr_scheduler_configs],
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            save_checkpoint(run.last, payload)

        def restore(self, payload: Mapping[str, Any]) -> None:
            state = payload["training"]
            # the method's own facts (format, network, data), then what decides which sample comes when
            ours = {name: value for name, value in task.payload(self.model).items() if name != "state_dict"}
            ours |= {
                "samples": len(task.train_set),
                "global_batch": options.batch_size * self.trainer.world_size,
                "seed": options.seed,
            }
            theirs = {**payload, **state}
            for name, value in ours.items():
                if _canonical(theirs.get(name)) != _canonical(value):
                    raise DataError(
                        f"the checkpoint was made with {name} = {theirs.get(name)}, this run has {value}",
                        path=run.last,
                        remedy="resume with the options of the run's config.yaml, or start a new run",
                    )
            task.load(self.model, payload)
            self.trainer.optimizers[0].load_state_dict(state["optimizer"])
            for config, saved_state in zip(self.trainer.lr_scheduler_configs, state["schedulers"], strict=True):
                config.scheduler.load_state_dict(saved_state)
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None and state["scaler"] is not None:
                scaler.load_state_dict(state["scaler"])

    module = Module()
    if saved is not None:
        if "training" not in saved:
            raise DataError(
                "this checkpoint holds weights only, no training state",
                path=run.last,
                remedy="resume needs the run's last.pt",
            )
        state = saved["training"]
        module.epoch, module.batch, module.step, module.best = (state[k] for k in ("epoch", "batch", "step", "best"))
        module.results = dict(saved["results"])

    precision: Any = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[options.precision]
    many = options.devices * options.num_nodes > 1
    accelerator = options.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    elif accelerator == "cuda" and not torch.cuda.is_available():
        raise DataError("--accelerator cuda: torch finds no CUDA device here", remedy="use --accelerator auto or cpu")
    trainer = pl.Trainer(
        accelerator="gpu" if accelerator == "cuda" else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy="ddp" if many else "auto",
        precision=precision,
        max_epochs=options.epochs,
        logger=_tensorboard(run, module.step),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=options.validate_every,
        gradient_clip_val=options.grad_clip or None,
        sync_batchnorm=options.sync_batchnorm and accelerator == "cuda",
    )
    if module.epoch:  # Lightning's counters at the place where the checkpoint was written
        counters: list[Any] = [trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_progress.total]
        for progress in counters:
            progress.ready = progress.started = progress.processed = progress.completed = module.epoch
    return trainer, module


def _tensorboard(run: RunFolder, step: int) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run.root, name=None, version="tensorboard", purge_step=step + 1 if step else None)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
