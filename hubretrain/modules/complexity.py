"""What a module costs: parameters, floating-point operations, milliseconds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from hubretrain.tensorflow import frozen, inlined, tf


@dataclass(frozen=True)
class Complexity:
    """Costs of a module that are the same on every machine.

    Attributes:
        n_parameters: Numbers in the variables that a forward pass reads, BatchNorm's moving
            averages among them, as Keras counts "total parameters".
        gflops: 10^9 floating-point operations per image, or None where TensorFlow cannot count
            them. A multiplication and an addition are two operations, so this is twice the
            "multiply-adds" of papers on MobileNets. TensorFlow's profiler counts convolutions,
            matrix products, additions, products, pooling and means, but neither activations nor
            BatchNorm that is not folded; `Einsum`, as attention has it, is added to that.
    """

    n_parameters: int
    gflops: float | None


def complexity(backbone: Callable[[tf.Tensor], tf.Tensor], image_size: int) -> Complexity:
    """Count parameters and operations on the module's frozen graph for one image.

    Args:
        backbone: Function from images in [0, 1] to bottlenecks.
        image_size: Height and width of its input, pixels.
    """
    spec = tf.TensorSpec((1, image_size, image_size, 3), tf.float32)
    forward = tf.function(lambda images: backbone(images)).get_concrete_function(spec)
    n_parameters = sum(v.shape.num_elements() for v in forward.variables if v.dtype.is_floating)
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # the profiler calls a function that TensorFlow has deprecated
    try:
        options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        definition = inlined(frozen(forward, lower_control_flow=False), also_compiled=True)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(definition, name="")  # which infers every shape anew
        profile = tf.compat.v1.profiler.profile(
            graph, run_meta=tf.compat.v1.RunMetadata(), options={**options, "output": "none"}
        )
        n_operations = profile.total_float_ops + sum(map(_of_einsum, graph.get_operations()))
        gflops = round(n_operations / 1e9, 6)
    except Exception:  # many types: graphs beyond 2 GB, operations that cannot be frozen
        gflops = None
    finally:
        logger.setLevel(level)
    return Complexity(int(n_parameters), gflops)


def _of_einsum(operation: tf.Operation) -> int:
    """Return the operations of a sum of products, which the profiler does not count; else 0."""
    if operation.type != "Einsum" or len(operation.inputs) != 2:
        return 0
    subscripts = operation.get_attr("equation").decode().partition("->")[0].split(",")
    sizes = {
        label: size
        for labels, factor in zip(subscripts, operation.inputs, strict=True)
        for label, size in zip(labels, factor.shape, strict=True)
    }
    return 2 * math.prod(sizes.values())


def milliseconds(
    backbone: Callable[[tf.Tensor], tf.Tensor], image_size: int, seconds: float = 3.0
) -> float:
    """Return the median time of a forward pass of one image in TensorFlow on this machine.

    Args:
        backbone: Function from images in [0, 1] to bottlenecks.
        image_size: Height and width of its input, pixels.
        seconds: Time to measure for; at least three passes are made.
    """
    spec = tf.TensorSpec((1, image_size, image_size, 3), tf.float32)
    forward = tf.function(lambda images: backbone(images)).get_concrete_function(spec)
    image = tf.zeros(spec.shape)
    forward(image)  # the first pass plans memory
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        started = time.perf_counter()
        forward(image).numpy()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
