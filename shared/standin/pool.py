"""Frames of a stand-in set drawn by several processes; the files are the same with any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from shared.errors import DataError

T = TypeVar("T")


def in_processes(draw: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """``draw(*job)`` of every job, in their order.

    Args:
        draw: a function of a module, which may be called in any order.
        jobs: its arguments.
        workers: processes; 1 works in this one.

    Raises:
        DataError: fewer than one worker.
    """
    if workers < 1:
        raise DataError(f"workers must be 1 or more, got {workers}")
    if workers == 1 or len(jobs) < 2:
        yield from (draw(*job) for job in jobs)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import torch

    # a frame is milliseconds of small operations: threads that wait for each other cost more than they bring
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(draw, *zip(*jobs, strict=True), chunksize=8)
