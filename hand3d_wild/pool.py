"""Several processes at one task, and what is said when one of them dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from shared.errors import DataError

T = TypeVar("T")
Part = TypeVar("Part")


def in_processes(
    work: Callable[[Part], T], parts: Sequence[Part], workers: int, start: Callable[..., None], *words: Any
) -> Iterator[T]:
    """``work(part)`` of every part, in their order.

    Args:
        work: a function of a module.
        parts: its arguments.
        workers: processes.
        start: called once in each process, with ``words``.

    Raises:
        DataError: a process was killed.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # spawn: a fork of a process with threads of torch or OpenCV can hang
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=start, initargs=words) as pool:
        try:
            yield from pool.map(work, parts)
        except BrokenProcessPool:
            raise DataError(
                "a worker was killed (out of memory?)", remedy="go on with --resume, and fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
