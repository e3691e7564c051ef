"""The bounded queue before the model: images that wait together run together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubretrain.export import Runtime
from hubretrain.serving.prometheus import Metrics

Pixels = Mapping[int, np.ndarray[Any, np.dtype[np.float32]]]
Row = np.ndarray[Any, np.dtype[np.float32]]


class FullError(Exception):
    """There is no room for so many images more."""


@dataclass
class _Waiting:
    pixels: Pixels
    answer: asyncio.Future[Row]


class BatchQueue:
    """Gathers images of all requests and runs them; never more than `n_most` at once.

    There is no delay to fill a batch: it holds what came while the one before it ran.

    Args:
        runner: The model.
        n_most: Images that may be read, decoded, waiting or running together.
        batch_size: Images that run together, at most.
        counts: Told of each batch.
    """

    def __init__(self, runner: Runtime, n_most: int, batch_size: int, counts: Metrics) -> None:
        self._runner, self._counts = runner, counts
        self.n_most, self.batch_size = n_most, batch_size
        self.n_inside = 0
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def room(self, n_images: int) -> Iterator[None]:
        """Holds room for images while they are decoded and answered.

        Raises:
            FullError: There is none.
        """
        if self.n_inside + n_images > self.n_most:
            raise FullError
        self.n_inside += n_images
        self._counts.waiting.set(self.n_inside)
        try:
            yield
        finally:
            self.n_inside -= n_images
            self._counts.waiting.set(self.n_inside)

    async def probabilities(self, pixels: Pixels) -> Row:
        """Probabilities (n_classes,) of one image, by size float32 (1, size, size, 3)."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(pixels, answer))
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.batch_size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [one for one in batch if not one.answer.done()]  # nobody waits for the others
            if not batch:
                continue
            sizes = batch[0].pixels
            pixels = {size: np.concatenate([one.pixels[size] for one in batch]) for size in sizes}
            self._counts.batch_size.observe(len(batch))
            try:
                rows = await loop.run_in_executor(self._thread, self._runner, pixels)
            except Exception as error:  # the request gets it; the queue goes on
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            for one, row in zip(batch, rows, strict=True):
                if not one.answer.done():
                    one.answer.set_result(row)

    async def close(self) -> None:
        """Ends the work; what waits is given up."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)
