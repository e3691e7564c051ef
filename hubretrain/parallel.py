"""Read-ahead: a function over many items in threads, in order; and BLAS in one thread."""

from __future__ import annotations

import collections
import contextvars
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _OneBlasThread:
    """Context in which BLAS computes with one thread, as long as anyone is inside.

    How many it uses belongs to the process: two threads that each set and restored it would leave
    it set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            if self._n_inside == 0:
                self._limits = threadpool_limits(1)
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._limits.restore_original_limits()


one_blas_thread = _OneBlasThread()


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
