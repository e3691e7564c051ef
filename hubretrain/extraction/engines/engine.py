"""What every engine is: batches of pixels in, bottlenecks out, several batches in flight."""

from __future__ import annotations

import abc
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from hubretrain.arrays import Float32Array, Pixels

Slot = TypeVar("Slot")

# Small, for two or more batches are in flight at once, each on its own cores; of 1 to 48 the
# fastest, or as fast, on every module measured (benchmarks/bench_engines.py).
OPENVINO_BATCH_SIZE = 8

# Positions of the largest feature map whose variance is taken as mean square - mean^2, in one pass
# instead of two. Of so many squares the sum is exact to some 1e-6 of itself, next to 1e-4 of it
# that `hubretrain.modules.spatial_statistics` adds to a variance; of 12,544 (112 x 112) it is not.
MOST_SQUARES = 2048


class Engine(abc.ABC, Generic[Slot]):
    """A frozen module, ready to run over batches.

    Every batch is padded to one fixed size, so that a feature vector depends neither on how many
    images happened to travel with it nor on which. Each batch in flight has a slot of its own: a
    buffer, and whatever else runs one batch.

    Args:
        image_size: Height and width of the module's input, pixels.
        batch_size: Images per forward pass.
        slots: One slot for each batch that can be computed at a time.

    Attributes:
        name: `tensorflow`, `openvino` or `onnxruntime`.
        precision: `f32`, `bf16` or `int8`.
        batch_size: Images per forward pass.
        cuts_views: Whether it is given whole images with their draws instead of views.
        n_ahead: Batches that may be submitted before the first result is taken, so that the
            module never waits for pixels and memory stays flat.
        busy_seconds: Time that its forward passes took, summed over those that ran at a time.
    """

    name: str
    precision: str = "f32"
    cuts_views: bool = False

    def __init__(self, image_size: int, batch_size: int, slots: Sequence[Slot]) -> None:
        self.image_size, self.batch_size = image_size, batch_size
        self.n_ahead = len(slots) + 1
        self.busy_seconds = 0.0
        self._busy_lock = threading.Lock()
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._pool = ThreadPoolExecutor(len(slots), thread_name_prefix=self.name)

    def submit(self, images: Sequence[Any]) -> Future[Float32Array]:
        """Start a forward pass and return at once.

        Args:
            images: At most `batch_size`, each uint8 of shape (image_size, image_size, 3), RGB;
                or, where the engine cuts the views, each a pair of a whole image, uint8 of shape
                (height, width, 3), and its draw or None.

        Returns:
            A future of what a call returns; it raises EngineError where the engine fails.
        """
        if len(images) > self.batch_size:
            raise ValueError(f"{len(images)} images in a batch of at most {self.batch_size}")
        return self._pool.submit(self._forward_in_slot, images)

    def __call__(self, images: Sequence[Any]) -> Float32Array:
        """Return the bottlenecks of at most `batch_size` images.

        Args:
            images: See `submit`.

        Returns:
            float32 of shape (len(images), n_features).

        Raises:
            EngineError: The engine cannot run the module, or not with so many images at once.
        """
        return self.submit(images).result()

    def close(self) -> None:
        """Wait for the batches that are being computed and drop those that are not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Engine[Slot]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forward_in_slot(self, images: Sequence[Any]) -> Float32Array:
        slot = self._free.get()
        started = time.perf_counter()
        try:
            return self._forward(images, slot)
        finally:
            self._free.put(slot)
            with self._busy_lock:
                self.busy_seconds += time.perf_counter() - started

    @abc.abstractmethod
    def _forward(self, images: Sequence[Any], slot: Slot) -> Float32Array:
        """Compute one batch in a slot that no other batch uses now."""

    @staticmethod
    def _fill(buffer: Pixels, images: Sequence[Pixels]) -> None:
        """Copy images into a batch and clear the rest of it."""
        for row, image in zip(buffer, images, strict=False):
            row[:] = image
        buffer[len(images) :] = 0
