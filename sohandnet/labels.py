"""Which training frames count as labelled, and how batches are made of labelled and unlabelled ones.

The list of labelled frames is the single source of truth: drawn once with a seed (or given), written to the run's
folder, and compared between the stages. The original instead takes the first frames of every unshuffled batch, so that
changing the batch size changes the labels (README, ledger Q8); that rule is kept as ``positional`` for comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError
from shared.training import EpochBatches, SampleKey
from sohandnet.config import Recipe, Stage, positional_labels

Flags = NDArray[np.bool_]
Places = NDArray[np.int64]


def labelled_flags(options: Recipe, names: Sequence[str], batch_size: int) -> Flags:
    """(n,) which of the training frames ``names`` count as labelled.

    Args:
        options: ``labelled_list``, or ``label_ratio`` with ``label_seed`` or ``label_rule``.
        names: of the frames, in order.
        batch_size: frames per step on all devices together; for the positional rule.

    Raises:
        MissingFileError, DataError: a list that cannot be read, is empty, names a frame twice or an unknown one.
    """
    if options.labelled_list:
        return _from_list(Path(options.labelled_list), names)
    flags = np.zeros(len(names), np.bool_)
    if options.label_rule == "positional":
        flags[list(positional_labels(len(names), batch_size, options.label_ratio))] = True
        return flags
    count = max(1, round(len(names) * options.label_ratio))
    flags[np.random.default_rng((options.label_seed, 0x1ABE1)).permutation(len(names))[:count]] = True
    return flags


def _from_list(path: Path, names: Sequence[str]) -> Flags:
    if not path.is_file():
        raise MissingFileError("no such list of labelled frames", path=path, remedy="give a text file, one name a line")
    place = {name: i for i, name in enumerate(names)}
    flags = np.zeros(len(names), np.bool_)
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        if name not in place:
            raise DataError(
                f"line {number} names {name[:80]!r}, which is no training frame of this store",
                path=path,
                remedy=f"the frames are called like {names[0]!r}; all names are in the store's train/names.txt",
            )
        if flags[place[name]]:
            raise DataError(f"line {number} names {name!r} for the second time", path=path, remedy="remove it")
        flags[place[name]] = True
    if not flags.any():
        raise DataError("lists no frame", path=path, remedy="one name a line")
    return flags


def label_record(flags: Flags, names: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint remembers of the labelled frames: how many of how many, and a digest of their names."""
    chosen = sorted(name for name, flag in zip(names, flags, strict=True) if flag)
    digest = hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16]
    return {"labelled": len(chosen), "frames": len(names), "digest": digest}


def check_same_labels(theirs: Any, ours: Mapping[str, Any], path: str | Path) -> None:
    """Refuses to continue a stage that saw other labels: what it learned from them would leak into this one.

    Raises:
        DataError: with both shares; nothing for checkpoints that say nothing (converted ones).
    """
    if not isinstance(theirs, Mapping) or dict(theirs) == dict(ours):
        return
    shares = [f"{r.get('labelled')} of {r.get('frames')} training frames" for r in (theirs, ours)]
    what = f"{shares[0]}; this run has {shares[1]}"
    if shares[0] == shares[1]:
        what = f"another draw of {shares[0]} than this run's"
    raise DataError(
        f"was trained with the labels of {what}",
        path=path,
        remedy="give all stages the same --labelled_list (labelled.txt in the run's folder), or the same --label_ratio "
        "and --label_seed; with --label_rule positional also the same batch size",
    )


def _stream(rng: np.random.Generator, places: Places, count: int) -> Places:
    """``count`` of the places: permutation after permutation."""
    rounds = -(-count // len(places))
    return np.concatenate([rng.permutation(places) for _ in range(rounds)])[:count]


class LabelledBatches:
    """A training set whose batches, cut by :class:`shared.training.EpochBatches`, have the right mixture.

    ``EpochBatches`` permutes the indices 0 .. len - 1 and cuts them; this set undoes the permutation, so that an index
    becomes a place in its batch, and puts there the frame that this module's rules want. Everything is a function of
    (seed, epoch), hence resuming and several processes stay exact.

    A mixed batch has ``labelled_per_step`` labelled frames and for the rest unlabelled ones; both kinds go through
    their frames permutation after permutation, and an epoch ends when both have been seen once. Other batches have
    frames of one kind. A last batch that would leave a process (or one of the kinds) with a single frame is shortened
    or dropped: batch norm needs two (ledger Q7 and Q28); reshuffling drops other frames every epoch.

    Args:
        samples: ``samples[(epoch, place)]`` gives a sample with ``labelled``.
        flags: (n,) which of them are labelled.
        stage, options: of the run.
        world: processes.

    Raises:
        DataError: fewer than two frames per process in a step.
    """

    def __init__(self, samples: Any, flags: Flags, stage: Stage, options: Recipe, *, batch_size: int, world: int = 1):
        self.samples, self.seed, self.world, self.repeat = samples, options.seed, world, options.overfit_batch
        self.positional = options.label_rule == "positional"
        every = np.arange(len(flags))
        self.labelled, self.unlabelled = every[flags], every[~flags]
        full = batch_size * world
        share = int(full * len(self.labelled) / len(flags) + 1e-9)
        if self.positional:
            share = int(full * options.label_ratio)
        use_all = options.unlabelled == "on" and stage != "estimator"
        self.mixed = stage == "joint" and use_all and len(self.unlabelled) > 0
        self.labelled_per_step = share
        if use_all:
            self.global_size = full
        else:  # as many labelled frames per step as with the others beside them
            self.global_size = share // world * world
            every = self.labelled
        self.places = every
        self.batch_size = self.global_size // world
        kinds = {"labelled": share, "unlabelled": full - share} if self.mixed else {"": self.global_size}
        for kind, size in kinds.items():
            if size < 2 * world or len(flags) < 2 * world:
                raise DataError(
                    f"a step has {size} {kind} frame(s) for {world} process(es), batch norm needs two each: "
                    f"{len(self.labelled)} of {len(flags)} training frames are labelled, {batch_size} frames a batch",
                    remedy="raise --batch_size or the share of labelled frames",
                )
        self._cached: tuple[int, Places, Places] | None = None
        self.count = len(self.plan(0))

    def __len__(self) -> int:
        return self.count

    def plan(self, epoch: int) -> Places:
        """(count,) the frames of an epoch, batch after batch."""
        rng = np.random.default_rng((self.seed, 0 if self.repeat else epoch, 0xBA7C4))
        if self.mixed and not self.positional:
            some, rest = self.labelled_per_step, self.global_size - self.labelled_per_step
            steps = max(-(-len(self.labelled) // some), -(-len(self.unlabelled) // rest))
            parts = [
                _stream(rng, places, steps * size).reshape(steps, size)
                for places, size in ((self.labelled, some), (self.unlabelled, rest))
            ]
            return np.concatenate(parts, axis=1).ravel()
        order = self.places if self.positional else rng.permutation(self.places)
        last = len(order) % self.global_size
        if self.mixed:
            alone = last - self.labelled_per_step  # unlabelled frames of the last batch
            drop = last if last < 2 * self.world else (alone if 0 < alone < 2 * self.world else 0)
        else:
            drop = last if last < 2 * self.world else 0
        if drop == len(order):
            raise DataError(
                f"{len(order)} training frame(s) for {self.world} process(es), batch norm needs two each",
                remedy="use more frames",
            )
        return order[: len(order) - drop]

    def __getitem__(self, key: SampleKey, /) -> Any:
        epoch, index = key
        if self._cached is None or self._cached[0] != epoch:
            dealt = EpochBatches(
                self.count, self.batch_size, seed=self.seed, epoch=epoch, world=self.world, repeat_first=self.repeat
            )
            place = np.empty(self.count, np.int64)
            place[dealt.order()] = np.arange(self.count)
            self._cached = epoch, place, self.plan(epoch)
        _, place, plan = self._cached
        sample = self.samples[(epoch, int(plan[place[index]]))]
        sample["epoch"] = epoch
        return sample
