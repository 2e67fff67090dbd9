"""Runs that are killed, interrupted, split over processes or fed a NaN (shared/training.py)."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shared.errors import DataError, MissingFileError
from shared.training import EpochBatches, MetricsFile, load_payload, sample_rng, save_checkpoint

ROOT = Path(__file__).parents[2]
BASE = ["--epochs", "3", "--batch_size", "4", "--log_every", "1", "--checkpoint_every", "2"]  # 6 steps an epoch


def tiny(run: Path, *extra: str, base: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.shared.tiny_program", "--run", str(run), *(base or BASE), *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)


def losses(run: Path) -> list[float]:
    with open(run / "metrics.csv") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 18 steps."""
    run = tmp_path_factory.mktemp("whole") / "run"
    result = tiny(run)
    assert result.returncode == 0, result.stderr
    return run


# step 0: before any checkpoint; 4: mid-epoch, just after one; 5: last of an epoch; 6: first of the next; 17: the last
@pytest.mark.parametrize(("step", "workers"), [(0, 0), (4, 0), (5, 0), (6, 2), (17, 2)])
def test_killed_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path, step: int, workers: int) -> None:
    run = tmp_path / "run"
    killed = tiny(run, "--workers", str(workers), "--kill", str(step))
    assert killed.returncode == -9
    resume = ["--resume"] if (run / "checkpoints/last.pt").exists() else []
    assert bool(resume) == (step >= 2)
    again = tiny(run, "--workers", str(workers), *resume)
    assert again.returncode == 0, again.stderr
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "metrics.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    leftovers = [p for p in run.rglob("*.part*")]
    assert len(leftovers) <= 1  # SIGKILL in the middle of a write may leave one temporary file, never a half checkpoint


def test_first_interrupt_saves_and_leaves(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = tiny(run, "--interrupt", "7")
    assert first.returncode == 0, first.stderr
    assert "saving and leaving" in first.stderr
    assert load_payload(run / "checkpoints/last.pt")["training"]["step"] == 8
    assert tiny(run, "--resume").returncode == 0
    assert (run / "checkpoints/last.pt").read_bytes() == (whole / "checkpoints/last.pt").read_bytes()


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    base = ["--epochs", "2", "--log_every", "1", "--dropout", "0", "--freeze_batchnorm"]
    two = tiny(tmp_path / "two", "--batch_size", "2", "--devices", "2", "--seen", str(tmp_path / "seen"), base=base)
    assert two.returncode == 0, two.stderr
    one = tiny(tmp_path / "one", "--batch_size", "4", base=base)
    assert one.returncode == 0, one.stderr
    seen = Counter(name for rank in "01" for name in (tmp_path / f"seen.{rank}").read_text().split())
    assert seen == Counter({f"sample{i:02d}": 2 for i in range(23)})  # once an epoch, two epochs
    a, b = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(a) == len(b) == 12
    worst = max(abs(x - y) for x, y in zip(a, b, strict=True))
    print(f"loss curves of one and two processes: max diff {worst:.3g}")
    assert worst < 1e-5


def test_nan_names_its_samples_and_leaves_the_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = tiny(run, "--nan", "3")
    assert result.returncode == 2
    assert "the loss is not finite" in result.stderr
    assert "sample03" in result.stderr
    assert "Traceback" not in result.stderr
    last = run / "checkpoints/last.pt"
    if last.exists():
        assert all(bool(v.isfinite().all()) for v in load_payload(last)["state_dict"].values())


def test_bad_data_in_a_loader_process_is_one_line() -> None:
    from torch.utils.data import DataLoader

    with pytest.raises(DataError, match=r"^frame 2: it is broken -- mend it$"):
        list(DataLoader(Broken(), num_workers=1, batch_size=1))  # type: ignore[arg-type]


class Broken:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise DataError("it is broken", path="frame 2", remedy="mend it")
        return index


def test_a_run_folder_is_never_overwritten(whole: Path, tmp_path: Path) -> None:
    before = (whole / "checkpoints/last.pt").read_bytes()
    result = tiny(whole)
    assert result.returncode == 2
    assert "holds a run already" in result.stderr
    assert "--resume" in result.stderr
    assert (whole / "checkpoints/last.pt").read_bytes() == before
    nothing = tiny(tmp_path / "none", "--resume")
    assert nothing.returncode == 2
    assert "no checkpoint to resume from" in nothing.stderr


def test_resume_with_another_batch_size_is_refused(whole: Path) -> None:
    result = tiny(whole, "--resume", base=[*BASE, "--batch_size", "5"])
    assert result.returncode == 2
    assert "global_batch = 4, this run has 5" in result.stderr


def test_resolved_config_can_be_fed_back(whole: Path, tmp_path: Path) -> None:
    config = (whole / "config.yaml").read_text().replace(str(whole), str(tmp_path / "again"))
    (tmp_path / "config.yaml").write_text(config)
    result = tiny(tmp_path / "again", base=["--config", str(tmp_path / "config.yaml")])
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again/metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    environment = (whole / "environment.json").read_text()
    for word in ("commit", "torch", "command", "seed", "tests.shared.tiny_program"):
        assert word in environment


def test_overfit_batch_repeats_the_first_samples() -> None:
    sampler = EpochBatches(10, 4, seed=0, epoch=3, repeat_first=True)
    assert list(sampler) == [[(3, i) for i in range(4)]] * 3


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 12, 13])
def test_every_sample_once_and_weights_add_up(count: int, world: int) -> None:
    samplers = [EpochBatches(count, 4, seed=1, epoch=0, rank=r, world=world) for r in range(world)]
    dealt = [list(s) for s in samplers]
    assert len({len(d) for d in dealt}) == 1  # as many steps on every rank, or the exchange would hang
    seen: Counter[int] = Counter()
    for batch in range(len(samplers[0])):
        total = 0.0
        for sampler, mine in zip(samplers, dealt, strict=True):
            weight = sampler.weight(batch)
            total += weight
            if weight:
                seen.update(index for _, index in mine[batch])
        assert total == pytest.approx(world)
    assert seen == Counter({i: 1 for i in range(count)})


def test_batches_from_the_middle_are_the_rest() -> None:
    whole = list(EpochBatches(23, 4, seed=5, epoch=2))
    assert list(EpochBatches(23, 4, seed=5, epoch=2, start=3)) == whole[3:]
    assert list(EpochBatches(23, 4, seed=5, epoch=1)) != whole  # another epoch, another order


def test_sample_rng_depends_on_all_three() -> None:
    values = {sample_rng(*key).integers(1 << 60) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(values) == 4


def test_equal_payloads_give_equal_files(tmp_path: Path) -> None:
    import torch

    first = {"a": torch.arange(3), "b": "key", "c": ["key"]}
    second = {"a": torch.arange(3), "b": "".join(["k", "ey"]), "c": ["".join(["ke", "y"])]}
    save_checkpoint(tmp_path / "first.pt", first)
    save_checkpoint(tmp_path / "second.pt", second)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()


@pytest.mark.parametrize("content", [b"", b"<html>login</html>", b"PK\x03\x04 truncated"])
def test_unreadable_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pt: not a readable checkpoint"):
        load_payload(tmp_path / "x.pt")
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        load_payload(tmp_path / "absent.pt")


def test_metrics_file_forgets_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, keep_to_step=0)
    for step in (1, 2, 3):
        file.write(step, 0, {"loss": step / 3})
    path.write_text(path.read_text() + "4,0,lo")  # a line cut short by the kill
    MetricsFile(path, keep_to_step=2)
    assert path.read_text() == "step,epoch,name,value\n1,0,loss,0.3333333333333333\n2,0,loss,0.6666666666666666\n"
