"""TensorFlow as an engine: always installed, on a CPU or a GPU, float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hubretrain.arrays import Float32Array, Pixels
from hubretrain.errors import EngineError, first_line
from hubretrain.extraction.engines.engine import MOST_SQUARES, Engine
from hubretrain.modules import LEAST_VARIANCE, RELATIVE_VARIANCE

if TYPE_CHECKING:
    from hubretrain.modules import Backbone
    from hubretrain.tensorflow import tf

# Divisible by the heights of the tiles in which CPUs compute matrix products (8 to 48 rows, by
# instruction set), so that no row of a batch is left over; see `TensorFlowEngine`.
BATCH_SIZE = 48
_WORTHWHILE_GAIN = 1.05  # of speed, for which a batch of twice the size is taken


class TensorFlowEngine(Engine[Pixels]):
    """The module's own graph in TensorFlow, float32.

    On a CPU a feature vector does not depend on its position in the batch either if `batch_size`
    is a multiple of 48: then every matrix product has a multiple of 48 rows, and no row falls to
    the kernels that finish a remainder, whose sums round otherwise. So a resumed cache is
    bit-equal to an uninterrupted one.

    Args:
        backbone: A loaded module.
        batch_size: Images per forward pass.
    """

    name = "tensorflow"

    def __init__(self, backbone: Backbone, batch_size: int = BATCH_SIZE) -> None:
        from hubretrain.data.images import to_unit_tensor
        from hubretrain.tensorflow import tf

        size = backbone.stored.image_size
        pixels = np.zeros((batch_size, size, size, 3), dtype=np.uint8)
        super().__init__(size, batch_size, [pixels])
        self._handle = backbone.stored.handle
        self._error_type = tf.errors.OpError

        @tf.function(input_signature=[tf.TensorSpec(pixels.shape, tf.uint8)])  # type: ignore[untyped-decorator]
        def forward(pixels: tf.Tensor) -> tf.Tensor:
            output, *maps = backbone.with_maps(to_unit_tensor(pixels))
            statistics = [_statistics(a_map) for a_map in maps]
            return tf.concat([output, *statistics], axis=1) if maps else output

        self._graph = forward

    def _forward(self, images: Sequence[Pixels], slot: Pixels) -> Float32Array:
        self._fill(slot, images)
        try:
            features: Float32Array = self._graph(slot).numpy()
        except self._error_type as error:
            raise self._failed(error) from error
        return features[: len(images)]

    def _failed(self, error: Any) -> EngineError:
        return EngineError(
            f"TensorFlow cannot run {self._handle} on {self.batch_size} images at once "
            f"({first_line(error)}); if memory is short, decrease `batch_size`."
        )


def _statistics(a_map: tf.Tensor) -> tf.Tensor:
    """Return what `spatial_statistics` returns, of all but the largest maps in a third of its time.

    That writes a map of squared differences, and consists of operations that every format of an
    export knows; see also `MOST_SQUARES`.
    """
    from hubretrain.modules import spatial_statistics
    from hubretrain.tensorflow import tf

    size = (a_map.shape[1], a_map.shape[2])
    if size[0] * size[1] > MOST_SQUARES:
        return spatial_statistics(a_map)
    a_map = tf.cast(a_map, tf.float32)
    mean = tf.squeeze(tf.nn.avg_pool2d(a_map, size, 1, "VALID"), (1, 2))
    length = tf.math.reduce_euclidean_norm(a_map, (1, 2))
    mean_square = tf.square(length) / (size[0] * size[1])
    variance = tf.maximum(mean_square - tf.square(mean), 0.0)
    floor = RELATIVE_VARIANCE * mean_square + LEAST_VARIANCE
    return tf.concat([mean, tf.sqrt(variance + floor)], axis=1)


class ViewCuttingEngine(TensorFlowEngine):
    """A TensorFlow engine that is given whole images and draws, and cuts the views itself.

    So augmentation runs where the module runs, on a GPU, in batches.
    """

    cuts_views = True

    def _forward(self, images: Sequence[Any], slot: Pixels) -> Float32Array:
        from hubretrain.data.images import batch_views

        pixels, draws = zip(*images, strict=True)
        try:
            views = batch_views(pixels, draws, self.image_size)
        except self._error_type as error:
            raise self._failed(error) from error
        return super()._forward(list(views), slot)


def best_batch_size(
    build: Callable[[int], Engine[Pixels]],
    first: int = BATCH_SIZE,
    last: int = 16 * BATCH_SIZE,
    seconds: float = 1.0,
) -> int:
    """Return the batch size of a GPU, by doubling until memory ends or less than 5 % is gained.

    Args:
        build: Makes an engine of a batch size.
        first: Smallest batch size, which must fit into memory.
        last: Largest batch size.
        seconds: Time for which each size is measured.

    Raises:
        EngineError: Not even `first` images fit into memory.
    """
    best, best_speed = first, images_per_second(build(first), seconds)
    size = 2 * first
    while size <= last:
        try:
            speed = images_per_second(build(size), seconds)
        except EngineError:
            break
        if speed < _WORTHWHILE_GAIN * best_speed:
            break
        best, best_speed = size, speed
        size *= 2
    return best


def images_per_second(engine: Engine[Pixels], seconds: float) -> float:
    """Return the speed of an engine on pixels in memory, after one batch of warming up.

    Args:
        engine: The engine, which is closed afterwards.
        seconds: Time for which it is measured.
    """
    shape = (engine.batch_size, engine.image_size, engine.image_size, 3)
    images = list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    with engine:
        engine(images)
        started, n_done = time.monotonic(), 0
        waiting = [engine.submit(images) for _ in range(engine.n_ahead)]
        while waiting:
            waiting.pop(0).result()
            n_done += len(images)
            if time.monotonic() - started < seconds:
                waiting.append(engine.submit(images))
        return n_done / (time.monotonic() - started)
