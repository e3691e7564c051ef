"""Inner layers in OpenVINO: mean and standard deviation of feature maps, as cheap as they can be.

A converted model gives feature maps as outputs of their own (`layer_output`); `pooled` puts the
statistics in their place. What makes them cheap, on the CPU plugin:

- The mean square by `ReduceL2`, so that no map of squares is written.
- The statistics as the model's first output: operations are run depth first from the last one, so
  each map is reduced while it is in the cache, and its memory is free again for the next.
- In bfloat16, maps are read as they are. The plugin computes in float32 what comes after the last
  convolution, and took every map that is only reduced for such an end: it wrote it in float32, and
  converted it for the convolution that reads it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hubretrain.extraction.engines.openvino_library import ov

#: Tensor name of the module's own output.
OUTPUT = "features"
# As `hubretrain.modules.spatial_statistics`, which tells why.
_RELATIVE_DEVIATION, _LEAST_VARIANCE = 1e-4, 1e-12
_NHWC_OF_NCHW = [0, 2, 3, 1]
# Where the plugin's float32 end of a model begins: Graph::EnforceInferencePrecision in
# https://github.com/openvinotoolkit/openvino/blob/master/src/plugins/intel_cpu/src/graph.cpp
_HEAVY = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"}
_COMPUTE_IN_BF16 = "enforceBF16evenForGraphTail"  # read by Node::Node in node.cpp beside it


def layer_output(name: str) -> str:
    """Return the tensor name of a layer's feature map in a converted model."""
    return f"layer:{name}"


def pooled(model: Any, layers: Sequence[str], precision: str = "f32") -> Any:
    """Return a model that gives statistics of inner layers and the module's own output.

    Args:
        model: As converted, with `OUTPUT` and an output for each layer, (n_images, height, width,
            n_channels); further ones are left out. It is changed.
        layers: Names of the layers; with none, the module's own output is the only one.
        precision: What it will be compiled for: `f32`, `bf16` or `int8`.

    Returns:
        A model of two outputs, both float32: (n_images, the sum of 2 * n_channels), for each layer
        the means and then the standard deviations over positions; and the module's own output.

    Raises:
        KeyError: The model has no such output.
    """
    values = {name: o.node.input_value(0) for o in model.outputs for name in o.get_names()}
    output = values[OUTPUT]
    results = [ov.opset13.result(output)]
    if layers:
        maps = [values[layer_output(name)] for name in layers]
        results.insert(0, ov.opset13.result(_statistics_of(maps)))
    changed = ov.Model(results, model.get_parameters(), model.get_friendly_name())
    if layers and precision == "bf16":
        _read_maps_in_bf16(results[0], output.get_node())
    return changed


def _statistics_of(maps: Iterable[Any]) -> Any:
    """Return the statistics of all maps as one tensor."""
    return ov.opset13.concat([value for a_map in maps for value in _statistics(a_map)], axis=1)


def _statistics(a_map: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation over positions, both (n_images, n_channels), float32.

    The variance is mean square - mean^2. Its rounding error is some 1e-7 of the mean square, next
    to 1e-4 of it that are added: it changes a deviation by at most some 1e-3 of itself, which only
    a constant channel reaches.
    """
    op = ov.opset13
    axes, positions = [1, 2], a_map.get_partial_shape()
    source = a_map.get_node()
    if source.get_type_name() == "Transpose" and _order(source) == _NHWC_OF_NCHW:
        a_map, axes = source.input_value(0), [2, 3]  # OpenVINO's own layout
    n_positions = positions[1].get_length() * positions[2].get_length()
    mean = op.reduce_mean(a_map, np.array(axes, np.int64), keep_dims=False)
    length = op.reduce_l2(a_map, np.array(axes, np.int64), keep_dims=False)
    mean_square = op.multiply(op.multiply(length, length), np.float32(1 / n_positions))
    variance = op.subtract(mean_square, op.multiply(mean, mean))
    floor = op.multiply(mean_square, np.float32(_RELATIVE_DEVIATION))
    variance = op.add(op.maximum(variance, np.float32(0)), floor)
    return mean, op.sqrt(op.add(variance, np.float32(_LEAST_VARIANCE)))


def _order(transpose: Any) -> list[int]:
    """Return the order of a transposition, () where it is not constant."""
    order = transpose.input_value(1).get_node()
    return list(map(int, order.data)) if order.get_type_name() == "Constant" else []


def _read_maps_in_bf16(statistics: Any, output: Any) -> None:
    """Mark what the plugin would compute in float32 only for the sake of the statistics.

    What the module's own output needs stays as it is, and so do its bits. Sums are kept in
    float32 by the reductions themselves.
    """
    own = {node.get_friendly_name() for node in _light_above(output)}
    reductions = [n for n in _light_above(statistics) if n.get_type_name().startswith("Reduce")]
    for reduction in reductions:
        nodes = _light_above(reduction)
        if own.isdisjoint(node.get_friendly_name() for node in nodes):
            for node in nodes:
                node.get_rt_info()[_COMPUTE_IN_BF16] = "YES"


def _light_above(node: Any) -> list[Any]:
    """Return a node and what it depends on, up to convolutions and products of matrices."""
    nodes, pending = {}, [node]
    while pending:
        node = pending.pop()
        if node.get_friendly_name() in nodes or node.get_type_name() in _HEAVY | {"Constant"}:
            continue
        nodes[node.get_friendly_name()] = node
        pending += [value.get_node() for value in node.input_values()]
    return list(nodes.values())
