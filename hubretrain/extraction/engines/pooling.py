"""Inner layers in OpenVINO: mean and standard deviation of feature maps, as cheap as they can be.

A converted model gives feature maps as outputs of their own (`layer_output`); `pooled` puts the
statistics in their place. What makes them cheap, on the CPU plugin:

- The variance is mean square - mean^2 (`MOST_SQUARES` says how exactly), and the mean square comes
  from `ReduceL2`, so that no map of squares is written.
- The statistics as the model's first output: operations are run depth first from the last one, so
  each map is reduced while it is in the cache, and its memory is free again for the next.
- In bfloat16, maps are read as they are. The plugin computes in float32 what comes after the last
  convolution, and took every map that is only reduced for such an end: it wrote it in float32, and
  converted it for the convolution that reads it too.
- In int8, the 8-bit map that the next convolution reads is pooled, not the one before rounding,
  which would have to be written too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubretrain.extraction.engines.engine import MOST_SQUARES
from hubretrain.extraction.engines.openvino_library import ov
from hubretrain.modules import LEAST_VARIANCE, RELATIVE_VARIANCE

op = ov.opset13
#: Tensor name of the module's own output.
OUTPUT = "features"
_NHWC_OF_NCHW, _NCHW_OF_NHWC = [0, 2, 3, 1], [0, 3, 1, 2]
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
    results = [op.result(output)]
    if layers:
        maps = [values[layer_output(name)] for name in layers]
        pairs = [value for a_map in maps for value in _statistics(a_map, precision)]
        results.insert(0, op.result(op.concat(pairs, axis=1)))
    changed = ov.Model(results, model.get_parameters(), model.get_friendly_name())
    if layers and precision == "bf16":
        _read_maps_in_bf16(results[0], output.get_node())
    return changed


def _statistics(a_map: Any, precision: str) -> tuple[Any, Any]:
    """Return mean and standard deviation over positions, both (n_images, n_channels), float32."""
    shape, a_map, axes = a_map.get_partial_shape(), *_in_own_layout(a_map)
    n_positions = shape[1].get_length() * shape[2].get_length()
    if precision == "int8":
        return _centred(a_map, axes, n_positions, ov.Type.bf16)
    if n_positions > MOST_SQUARES:
        return _centred(a_map, axes, n_positions, ov.Type.f32)
    mean = op.reduce_mean(a_map, axes, keep_dims=False)
    length = op.reduce_l2(a_map, axes, keep_dims=False)
    mean_square = op.multiply(op.multiply(length, length), np.float32(1 / n_positions))
    variance = op.subtract(mean_square, op.multiply(mean, mean))
    variance = op.maximum(variance, np.float32(0))
    return mean, _deviation(variance, mean_square)


def _centred(a_map: Any, axes: Any, n_positions: int, dtype: Any) -> tuple[Any, Any]:
    """Return statistics by way of a map of differences from the mean, of type `dtype`.

    In float32 they are the most exact. In bfloat16 they are the fastest of an 8-bit map, of which
    the plugin takes means as it is, but no squares; each difference is rounded by at most 1/512 of
    itself, and so is their length.
    """
    mean = op.reduce_mean(a_map, axes, keep_dims=True)
    differences = op.convert(op.subtract(a_map, mean), dtype)
    length = op.convert(op.reduce_l2(differences, axes, keep_dims=False), ov.Type.f32)
    mean = op.squeeze(mean, axes)
    variance = op.multiply(op.multiply(length, length), np.float32(1 / n_positions))
    return mean, _deviation(variance, op.add(variance, op.multiply(mean, mean)))


def _deviation(variance: Any, mean_square: Any) -> Any:
    """Return the deviation as `hubretrain.modules.spatial_statistics` does, which tells why."""
    floor = op.multiply(mean_square, np.float32(RELATIVE_VARIANCE))
    return op.sqrt(op.add(op.add(variance, floor), np.float32(LEAST_VARIANCE)))


def _in_own_layout(a_map: Any) -> tuple[Any, Any]:
    """Return a map in OpenVINO's own layout where it has one, and the axes of its positions."""
    source = _before_transposition(a_map)
    return source, np.array([1, 2] if source is a_map else [2, 3], np.int64)


def with_direct_maps(model: Any) -> Any:
    """Return a model whose feature maps stand beside the way from pixels to output.

    A map is turned into TensorFlow's layout to be an output, and where that comes before the next
    operation, turned back for it. The way back goes; else quantisation would take place in it.

    Args:
        model: As converted; it is changed.
    """
    for output in model.outputs:
        a_map = output.node.input_value(0)
        source = _before_transposition(a_map)
        for reader in a_map.get_target_inputs() if source is not a_map else ():
            back = reader.get_node()
            if back.get_type_name() == "Transpose" and _order(back) == _NCHW_OF_NHWC:
                for target in back.output(0).get_target_inputs():
                    target.replace_source_output(source)
    return model


@dataclass(frozen=True)
class MapSource:
    """Where a feature map comes from, for a model that is changed in between.

    Attributes:
        names: Of the operation that gives it, and of others that give the same, of which one alone
            may be left.
        transposed: Whether that is in OpenVINO's own layout.
    """

    names: tuple[str, ...]
    transposed: bool


def without_maps(model: Any) -> tuple[Any, dict[str, MapSource]]:
    """Return a model of the module's own output alone, and the maps that it still computes.

    Args:
        model: As converted, with maps.

    Returns:
        The model, and the maps by tensor name.
    """
    values = {o.get_any_name(): o.node.input_value(0) for o in model.outputs}
    output = values.pop(OUTPUT)
    sources = {}
    for name, value in values.items():
        source = _before_transposition(value)
        sources[name] = MapSource(_same_operations(source.get_node()), source is not value)
    own = op.result(output, name=f"{OUTPUT}/result")
    own.output(0).set_names({OUTPUT})
    return ov.Model([own], model.get_parameters(), model.get_friendly_name()), sources


def with_8_bit_maps(quantised: Any, sources: Mapping[str, MapSource]) -> Any:
    """Return a quantised model that gives maps too, in 8 bits where the next operation reads 8.

    Args:
        quantised: What became of the model of `without_maps`; it is changed.
        sources: The maps. Of those that quantisation has removed there is no output.
    """
    nodes = {node.get_friendly_name(): node for node in quantised.get_ops()}
    results = quantised.get_results()
    for name, source in sources.items():
        left = [nodes[n] for n in source.names if n in nodes]
        if not left:
            continue
        value = left[0].output(0)
        readers = (reader.get_node() for reader in value.get_target_inputs())
        rounded = [n for n in readers if n.get_type_name() == "FakeQuantize"]
        if rounded:
            value = min(rounded, key=lambda node: node.get_friendly_name()).output(0)
        # Names of their own, for others would depend on how many there were in this process.
        if source.transposed:
            order = op.constant(np.array(_NHWC_OF_NCHW, np.int64), name=f"{name}/order")
            value = op.transpose(value, order, name=f"{name}/map").output(0)
        result = op.result(value, name=f"{name}/result")
        result.output(0).set_names({name})
        results.append(result)
    return ov.Model(results, quantised.get_parameters(), quantised.get_friendly_name())


def _same_operations(node: Any) -> tuple[str, ...]:
    """Return the names of a node, and of others of its type, attributes and one input."""
    names = [node.get_friendly_name()]
    if len(node.inputs()) == 1:
        for reader in node.input_value(0).get_target_inputs():
            other = reader.get_node()
            same_type = other.get_type_info() == node.get_type_info()
            if same_type and other.get_attributes() == node.get_attributes():
                names.append(other.get_friendly_name())
    return tuple(dict.fromkeys(names))


def _before_transposition(a_map: Any) -> Any:
    """Return a map in OpenVINO's own layout, (n_images, n_channels, height, width), or itself."""
    node = a_map.get_node()
    if node.get_type_name() == "Transpose" and _order(node) == _NHWC_OF_NCHW:
        return node.input_value(0)
    return a_map


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
                # A bool, not a string that the plugin's threads would turn into one all at once.
                node.set_rt_info(True, _COMPUTE_IN_BF16)


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
