"""Trains the centre network of one leave-one-subject-out fold of MSRA.

    python -m v2v_posenet.train_center --data.root DIR --data.test_subject 3 --out runs/center_3

Schedule, augmentation and loss follow DeepPrior++. Everything random is a function of (seed, epoch, index), so a run
that was stopped and continued with ``--resume`` ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import Frame
from shared.errors import DataError, exit_on_error
from shared.precision import choose_device
from v2v_posenet import centers

if TYPE_CHECKING:
    from shared.datasets.msra import MsraDataset

MIDDLE_MCP = 5  # in the joint order "msra"


@dataclass
class CenterData:
    """The fold.

    Args:
        root: folder with P0 to P8
        test_subject: person left out, 0 to 8; the network must not see it
        drop_handless: leave out the frames known to show no hand
        max_frames: use only this many frames, evenly spread; 0 means all [frames]
    """

    root: str
    test_subject: int = 3
    drop_handless: bool = True
    max_frames: int = 0


@dataclass
class TrainCenter:
    """Options of the program.

    Args:
        data: the fold
        out: folder for center_net.pt
        target: which point to learn: the mean of all joints, or the base of the middle finger as in DeepPrior++
        cube_mm: edge of the cube a patch shows [mm]
        min_pixels: fewer pixels than this are no hand; such frames are left out [pixels]
        mass_iterations: how often the centre of mass is taken again inside the cube
        epochs: passes over the data in total; a resumed run continues up to this number [epochs]
        batch_size: patches per step [patches]
        lr: step size of Adam from the second epoch on, before its decay by exp(-0.04 epoch)
        weight_decay: factor of the sum of squared weights in the loss
        shift_mm: standard deviation of the random shift of the starting point, per axis [mm]
        filters: filters per convolution
        hidden: units of the two hidden layers
        seed: of weights, order and augmentation
        workers: loader processes; 0 loads in the training process [processes]
        device: cpu, cuda, or auto (cuda where there is one)
        resume: continue from center_net.pt in the out folder
    """

    data: CenterData
    out: str
    target: Literal["mean", "middle_mcp"] = "mean"
    cube_mm: float = 200.0
    min_pixels: int = centers.MIN_PIXELS
    mass_iterations: int = 1
    epochs: int = 100
    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 1e-4
    shift_mm: float = 5.0
    filters: int = 8
    hidden: int = 1024
    seed: int = 0
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    resume: bool = False


def rough_center(
    frame: Frame, *, cube_mm: float = 200.0, min_pixels: int = centers.MIN_PIXELS, iterations: int = 1
) -> NDArray[np.float64] | None:
    """Centre of mass of a frame's crop, OpenCV axes, mm; None where it shows no hand."""
    assert frame.depth_mm is not None
    return centers.mass_center(
        frame.depth_mm, frame.K, frame.crop_xy, cube_mm=cube_mm, min_pixels=min_pixels, iterations=iterations
    )


def true_centers(joints_mm: NDArray[np.float64], target: str) -> NDArray[np.float64]:
    """(N, 21, 3) joints in the order ``msra`` -> (N, 3) points the network learns."""
    return joints_mm[:, MIDDLE_MCP] if target == "middle_mcp" else joints_mm.mean(1)


@dataclass
class CenterSamples:
    """Every frame twice: sample 2 i starts at the true centre of frame i, sample 2 i + 1 at its centre of mass.

    ``samples[index]`` gives a (1, 128, 128) patch and the (3,) offset to the true centre in half cube edges. With equal
    chance the start is shifted, the image is turned by any angle, or neither; drawn from (seed, epoch, index).
    """

    data: MsraDataset
    frames: NDArray[np.int64]
    rough_mm: NDArray[np.float64]
    truth_mm: NDArray[np.float64]
    cube_mm: float
    shift_mm: float
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return 2 * len(self.frames)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        row = index // 2
        frame, truth = self.data[int(self.frames[row])], self.truth_mm[row]
        start = (self.rough_mm if index % 2 else self.truth_mm)[row]
        kind, angle = rng.integers(3), 0.0
        if kind == 0:
            start = start + rng.normal(0, self.shift_mm, 3)
        elif kind == 1:
            angle = rng.uniform(0, 2 * np.pi)
            truth = centers.rotate_about(truth, start, frame.K, angle)
        assert frame.depth_mm is not None
        patch = centers.crop_patch(frame.depth_mm, frame.K, frame.crop_xy, start, self.cube_mm, angle_rad=angle)
        return patch[None], ((truth - start) / (self.cube_mm / 2)).astype(np.float32)


def make_samples(options: TrainCenter, split: Literal["train", "test"], progress: bool = True) -> CenterSamples:
    """Opens a split and finds the centre of mass of every frame; frames without a hand are counted and left out."""
    from tqdm import tqdm

    from shared.datasets import msra

    data = msra.open(
        options.data.root, split, test_subject=options.data.test_subject, drop_handless=options.data.drop_handless
    )
    limit = min(options.data.max_frames or len(data), len(data))
    wanted = np.unique(np.linspace(0, len(data) - 1, limit).round().astype(np.int64))
    found = [
        rough_center(
            data[int(i)],
            cube_mm=options.cube_mm,
            min_pixels=options.min_pixels,
            iterations=options.mass_iterations,
        )
        for i in tqdm(wanted, desc=f"centre of mass, {split}", disable=not progress)
    ]
    kept = np.array([i for i, point in zip(wanted, found, strict=True) if point is not None], np.int64)
    print(f"{data.summary()}; {len(kept)} used, {len(wanted) - len(kept)} without a hand")
    if not len(kept):
        raise DataError(
            f"no frame of the {split} split shows a hand", path=options.data.root, remedy="check the images"
        )
    rough = np.stack([point for point in found if point is not None])
    truth = true_centers(data.joints_mm[kept], options.target)
    return CenterSamples(data, kept, rough, truth, options.cube_mm, options.shift_mm, options.seed)


def train(options: TrainCenter, progress: bool = True) -> dict[str, float]:
    """Trains up to ``options.epochs`` and returns mean distances to the true centre on the person left out, mm."""
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from v2v_posenet.center_net import (
        CenterNet,
        CenterRefiner,
        center_loss,
        learning_rate,
        load_center_checkpoint,
        save_center_checkpoint,
    )

    _check(options)
    path = Path(options.out) / "center_net.pt"
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    model = CenterNet(options.filters, options.hidden)
    refiner = CenterRefiner(
        model=model,
        cube_mm=options.cube_mm,
        target=options.target,
        dataset="msra",
        test_subject=options.data.test_subject,
        min_pixels=options.min_pixels,
        mass_iterations=options.mass_iterations,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    settings = _settings(options)
    start = 0
    if path.exists() and not options.resume:
        raise DataError("a checkpoint is here already", path=path, remedy="add --resume, or give another --out")
    if options.resume and path.exists():
        loaded, state = load_center_checkpoint(path)
        _check_same(path, settings, state)
        assert state is not None
        model.load_state_dict(loaded.model.state_dict())
        optimizer.load_state_dict(state["optimizer"])
        start = state["epoch"]
        print(f"{path}: continuing after epoch {start}")
    model.to(device)

    samples = make_samples(options, "train", progress)
    for epoch in range(start, options.epochs):
        samples.epoch = epoch
        order = np.random.default_rng((options.seed, epoch)).permutation(len(samples)).tolist()
        loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]  # a sequence is enough, and needs no torch to be defined
            options.batch_size,
            sampler=order,
            num_workers=options.workers,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch, options.lr)
        model.train()
        total = 0.0
        for patches, offsets in tqdm(loader, desc=f"epoch {epoch + 1}/{options.epochs}", disable=not progress):
            loss = center_loss(model, model(patches.to(device)), offsets.to(device), options.weight_decay)
            if not torch.isfinite(loss):
                raise DataError(
                    f"the loss is {loss.item()} in epoch {epoch + 1}",
                    remedy=f"lower --lr (now {options.lr:g}); {path} holds the epoch before",
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(patches)
        print(f"epoch {epoch + 1}/{options.epochs}: loss {total / len(samples):.5f}")
        state = {"epoch": epoch + 1, "optimizer": optimizer.state_dict(), "settings": settings}
        save_center_checkpoint(path, refiner, state)

    model.eval()
    return _report(options, refiner, progress)


def _report(options: TrainCenter, refiner: Any, progress: bool) -> dict[str, float]:
    """Mean distance of both kinds of centre to the truth on the test person: for the log, nothing is chosen by it."""
    samples = make_samples(options, "test", progress)
    refined = np.concatenate([points for points in _refined(samples, refiner)])
    result = {
        "center_of_mass_mm": float(np.linalg.norm(samples.rough_mm - samples.truth_mm, axis=1).mean()),
        "network_mm": float(np.linalg.norm(refined - samples.truth_mm, axis=1).mean()),
    }
    print(
        f"distance to the true centre, P{options.data.test_subject}: "
        f"centre of mass {result['center_of_mass_mm']:.2f} mm, network {result['network_mm']:.2f} mm"
    )
    return result


def _refined(samples: CenterSamples, refiner: Any, batch: int = 64) -> Iterator[NDArray[np.float64]]:
    for first in range(0, len(samples.frames), batch):
        rows = range(first, min(first + batch, len(samples.frames)))
        frames = [samples.data[int(samples.frames[row])] for row in rows]
        starts = samples.rough_mm[first : first + batch]
        patches = [refiner.patch(f.depth_mm, f.K, f.crop_xy, c) for f, c in zip(frames, starts, strict=True)]
        yield refiner.refine(np.stack(patches), starts)


def _check(options: TrainCenter) -> None:
    for name in ("cube_mm", "epochs", "batch_size", "lr", "filters", "hidden"):
        if not getattr(options, name) > 0:
            raise DataError(f"--{name} must be above 0, got {getattr(options, name)}")


def _settings(options: TrainCenter) -> dict[str, Any]:
    """What must be equal for a resumed run to be the same run (not: number of epochs, workers, device, folders)."""
    free = {"data", "out", "epochs", "workers", "device", "resume"}
    settings = {key: value for key, value in vars(options).items() if key not in free}
    return settings | {f"data.{key}": value for key, value in vars(options.data).items() if key != "root"}


def _check_same(path: Path, settings: dict[str, Any], state: dict[str, Any] | None) -> None:
    before = (state or {}).get("settings", {})
    changed = [
        f"{name}: {before.get(name)!r} then, {now!r} now" for name, now in settings.items() if before.get(name) != now
    ]
    if changed:
        raise DataError(
            "the run to continue had other options (" + "; ".join(changed) + ")",
            path=path,
            remedy="repeat its options, or give another --out",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    from shared.options import parse
    from shared.safe_io import atomic_write_text

    parsed = parse(
        TrainCenter,
        prog="python -m v2v_posenet.train_center",
        description="Trains the network that finds the hand's centre, for one fold of MSRA.",
        argv=argv,
    )
    atomic_write_text(Path(parsed.options.out) / "center_options.yaml", parsed.yaml)
    train(parsed.options)
    return 0


if __name__ == "__main__":
    exit_on_error(main)
