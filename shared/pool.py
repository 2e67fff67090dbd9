"""Several processes at one task, and what is said when one of them dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from shared.errors import DataError

T = TypeVar("T")


def in_processes(
    work: Callable[..., T],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    start: tuple[Callable[..., None], Any] | None = None,
    chunk: int = 1,
    remedy: str = "go on with --resume, and fewer --workers",
) -> Iterator[T]:
    """``work(*job)`` of every job, in their order; the results are the same with any number of workers.

    Args:
        work: a function of a module.
        jobs: its arguments.
        workers: processes; 1 works in this one, unless there is a ``start``.
        start: a function and its argument, called once in each process.
        chunk: jobs that a process takes at a time.
        remedy: what the user can do when a process was killed.

    Raises:
        DataError: fewer than one worker, or a process was killed.
    """
    if workers < 1:
        raise DataError(f"workers must be 1 or more, got {workers}")
    if start is None and (workers == 1 or len(jobs) < 2):
        yield from (work(*job) for job in jobs)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    begin: dict[str, Any] = {"initializer": start[0], "initargs": start[1:]} if start else {}
    # spawn: a fork of a process with threads of torch or OpenCV can hang
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), **begin) as pool:
        try:
            yield from pool.map(work, *zip(*jobs, strict=True), chunksize=chunk)
        except BrokenProcessPool:
            # the pool asks the others to end and waits for them; one that had hardly started was seen to live on
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise DataError("a worker was killed (out of memory?)", remedy=remedy) from None
        finally:
            pool.shutdown(cancel_futures=True)
