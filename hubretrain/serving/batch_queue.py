"""The bounded queue before the model: images that wait together run in one batch."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubretrain.export import Runtime
from hubretrain.serving.prometheus import Metrics

Pixels = Mapping[int, np.ndarray[Any, np.dtype[np.float32]]]  # size: (1, size, size, 3)
Probabilities = np.ndarray[Any, np.dtype[np.float32]]


class FullError(Exception):
    """The request queue is full."""


@dataclass
class _Job:
    """One image that waits for the model."""

    pixels: Pixels
    answer: asyncio.Future[Probabilities]


class BatchQueue:
    """A queue that gathers the images of all requests and runs them in batches.

    There is no delay to fill a batch: it holds what arrived while the previous one ran.

    Args:
        runtime: The model.
        max_images: Largest number of images in flight: being decoded, waiting or running.
        max_batch_size: Largest number of images per batch.
        metrics: Metrics to record images and batches in.
    """

    def __init__(
        self, runtime: Runtime, max_images: int, max_batch_size: int, metrics: Metrics
    ) -> None:
        self._runtime, self._metrics = runtime, metrics
        self.max_images, self.max_batch_size = max_images, max_batch_size
        self.n_in_flight = 0
        self._n_of: Counter[str] = Counter()  # images in flight of each client
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def reserve(self, n_images: int, client: str = "") -> Iterator[None]:
        """Reserve room for images while they are decoded and answered.

        An eighth of the room is kept for other clients than the one that has the rest.

        Raises:
            FullError: The queue is full, or the client has its share of it.
        """
        most = self.max_images - self.max_images // 8
        n_of_client = self._n_of[client] + n_images
        # One request may fill an idle queue.
        is_too_much = n_of_client > most and self.n_in_flight > 0
        if is_too_much or self.n_in_flight + n_images > self.max_images:
            raise FullError
        self.n_in_flight += n_images
        self._n_of[client] += n_images
        self._metrics.in_flight.set(self.n_in_flight)
        try:
            yield
        finally:
            self.n_in_flight -= n_images
            self._n_of[client] -= n_images
            if not self._n_of[client]:
                del self._n_of[client]
            self._metrics.in_flight.set(self.n_in_flight)

    async def probabilities(self, pixels: Pixels) -> Probabilities:
        """Return the probabilities (n_classes,) of one image.

        Args:
            pixels: float32 (1, size, size, 3) in [0, 1], by size.
        """
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_batches())
        answer: asyncio.Future[Probabilities] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Job(pixels, answer))
        return await answer

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.max_batch_size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [job for job in batch if not job.answer.done()]  # the clients of others left
            if not batch:
                continue
            pixels = {
                size: np.concatenate([job.pixels[size] for job in batch])
                for size in batch[0].pixels
            }
            self._metrics.batch_size.observe(len(batch))
            try:
                rows = await loop.run_in_executor(self._thread, self._runtime, pixels)
            except Exception as error:  # the requests get it; the queue goes on
                for job in batch:
                    if not job.answer.done():
                        job.answer.set_exception(error)
                continue
            for job, row in zip(batch, rows, strict=True):
                if not job.answer.done():
                    job.answer.set_result(row)

    async def close(self) -> None:
        """Stop running batches; images that wait get no answer."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)
