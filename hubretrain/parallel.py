"""The same function over many jobs, ahead of their use."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R], items: Iterable[T], n_ahead: int | None = None
) -> Iterator[tuple[T, R]]:
    """Maps with threads, in order, a bounded number of items ahead, so that memory stays flat.

    Args:
        function: What to do; it should spend its time where Python lets other threads run.
        items: What to do it to.
        n_ahead: Results that may wait to be taken; by default 8 a processor.

    Yields:
        Each item with its result.
    """
    n_threads = max(2, os.cpu_count() or 1)
    waiting: collections.deque[tuple[T, Future[R]]] = collections.deque()
    pool = ThreadPoolExecutor(n_threads)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > (n_ahead or 8 * n_threads):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
