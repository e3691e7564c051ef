"""Read-ahead: a function over many items in threads, in order."""

from __future__ import annotations

import collections
import contextvars
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    n_ahead: int | None = None,
    n_threads: int | None = None,
) -> Iterator[tuple[T, R]]:
    """Map a function over items in threads, a bounded number of items ahead: memory stays flat.

    Args:
        function: The function; it should spend its time where Python lets other threads run.
        items: Its arguments.
        n_ahead: Most results that wait to be taken; by default 16 per thread.
        n_threads: Number of threads; by default half of the CPUs: with more, the forward pass
            that runs beside them is slowed by more than they gain (seen on two CPUs, in few and
            noisy rounds).

    Yields:
        Each item with its result, in order.
    """
    n_threads = n_threads or max(1, (os.cpu_count() or 1) // 2)
    waiting: collections.deque[tuple[T, Future[R]]] = collections.deque()
    pool = ThreadPoolExecutor(n_threads)
    try:
        for item in items:
            # So that progress_shown reaches the threads, too.
            future = pool.submit(contextvars.copy_context().run, function, item)
            waiting.append((item, future))
            if len(waiting) > (n_ahead or 16 * n_threads):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
