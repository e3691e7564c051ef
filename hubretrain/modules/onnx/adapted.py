"""An ONNX network as one graph from pixels to feature vectors, which every engine and export takes.

What is put before it: scale and shift of values, the order and number of channels, type and layout.
What is put behind it: type, and the mean over positions or tokens; mean and deviation of inner
layers. A network of one image at a time becomes the body of a loop (`Scan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hubretrain.modules.layers import LEAST_VARIANCE, RELATIVE_VARIANCE, LayerPoint
from hubretrain.modules.onnx.building import Builder
from hubretrain.modules.onnx.graphs import FLOATING, onnx, opset_of
from hubretrain.modules.onnx.images import ImageInput
from hubretrain.modules.onnx.outputs import channel_axes, needed_nodes, nodes_between, read_names

PIXELS, FEATURES = "pixels", "features"
PREFIX = "network/"
# Luma of ITU-R BT.601, as tf.image.rgb_to_grayscale computes it.
_LUMA = (0.2989, 0.5870, 0.1140)


def adapted(
    model: Any,
    image: ImageInput,
    output: str,
    pooling: list[int] | None,
    layers: Sequence[LayerPoint] = (),
    *,
    unit: bool = False,
    maps: bool = False,
) -> Any:
    """Return the network as a model of `pixels` to `features`.

    Args:
        model: The network with its weights; it is changed.
        image: What images it takes.
        output: The tensor that holds the features.
        pooling: Axes of a mean, [0] for the first token, [] for vectors; None to leave the output
            as it is.
        layers: Inner layers whose mean and standard deviation over positions are to follow, as
            `hubretrain.modules.spatial_statistics` computes them.
        unit: Whether pixels are float32 in [0, 1], else uint8 levels.
        maps: Whether inner layers are to be outputs of their own instead, `layer:<name>`, whole
            maps (n_images, height, width, n_channels).

    Returns:
        A model whose `pixels` are of shape (n_images, image_size, image_size, 3), RGB, and whose
        `features` are float32.
    """
    graph = model.graph
    axes = channel_axes(nodes_between(graph, image.name, output)) if layers else {}
    nodes = needed_nodes(graph, output)
    read = read_names(nodes)
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    for field in ("node", "initializer", "value_info", "output", "input"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    is_float = _is_float32(graph)
    add = Builder(opset_of(model), model)
    before = "image" if image.one_by_one else PIXELS
    given = add.on_axes("Unsqueeze", before, [0]) if image.one_by_one else before
    _to_input(add, given, image, PREFIX + image.name, unit=unit)
    add.embed(model, PREFIX)
    results = {FEATURES: _to_vectors(add, PREFIX + output, pooling)}
    for point in layers:
        a_map = PREFIX + point.name
        if not is_float:
            a_map = add("Cast", a_map, to=onnx.TensorProto.FLOAT)
        a_map = _with_positions(add, a_map, point, axes[point.name])
        if maps:
            is_last = axes[point.name] == -1
            a_map = a_map if is_last else add("Transpose", a_map, perm=[0, 2, 3, 1])
            results[f"layer:{point.name}"] = a_map
        else:
            positions = [1, 2] if axes[point.name] == -1 else [2, 3]
            statistics = _statistics(add, a_map, positions)
            results[FEATURES] = add("Concat", results[FEATURES], statistics, axis=1)
    edge, kind = image.image_size, "float" if unit else "uint8"
    if image.one_by_one:
        for name, value in results.items():
            add("Identity", add.on_axes("Squeeze", value, [0]), output=f"one_{name}")
        body = add.model({"image": [edge, edge, 3]}, [f"one_{n}" for n in results], kind).graph
        body.ClearField("initializer")  # these stay outside, where engines look for weights
        add.nodes = []
        loop = onnx.helper.make_node("Scan", [PIXELS], list(results), num_scan_inputs=1, body=body)
        add.nodes.append(loop)
    else:
        for name, value in results.items():
            add("Identity", value, output=name)
    return add.model({PIXELS: ["n_images", edge, edge, 3]}, list(results), kind)


def _is_float32(graph: Any) -> bool:
    """Return whether a graph computes in float32 alone, so that its maps need no conversion."""
    others = set(FLOATING) - {onnx.TensorProto.FLOAT}
    kinds = {tensor.data_type for tensor in graph.initializer}
    for attribute in (a for node in graph.node for a in node.attribute):
        kinds.add(attribute.i if attribute.name in ("to", "dtype") else attribute.t.data_type)
    return others.isdisjoint(kinds)


def _with_positions(add: Builder, a_map: str, point: LayerPoint, axis: int) -> str:
    """Add the two axes of positions of tokens, which have one; maps stay as they are."""
    if point.width != 1:
        return a_map
    shape = [0, point.height, 1, point.n_channels]
    if axis == 1:
        shape = [0, point.n_channels, point.height, 1]
    return add("Reshape", a_map, add.constant(np.array(shape, np.int64)))


def _statistics(add: Builder, a_map: str, positions: list[int]) -> str:
    """Add mean and deviation of a map, as `spatial_statistics` does, which tells why."""
    mean = add.on_axes("ReduceMean", a_map, positions, keepdims=1)
    difference = add("Sub", a_map, mean)
    squares = add("Mul", difference, difference)
    variance = add.on_axes("ReduceMean", squares, positions, keepdims=0)
    mean = add.on_axes("Squeeze", mean, positions)
    mean_square = add("Add", variance, add("Mul", mean, mean))
    floor = add("Mul", mean_square, add.constant(np.float32(RELATIVE_VARIANCE)))
    floor = add("Add", floor, add.constant(np.float32(LEAST_VARIANCE)))
    return add("Concat", mean, add("Sqrt", add("Add", variance, floor)), axis=1)


def _to_input(add: Builder, pixels: str, image: ImageInput, output: str, *, unit: bool) -> None:
    """Add what makes the network's input of pixels in NHWC."""
    low, high = image.value_range
    given = pixels if unit else add("Cast", pixels, to=onnx.TensorProto.FLOAT)
    if not unit:
        given = add("Div", given, add.constant(np.float32(255)))
    if image.channels == "BGR":
        given = add("Gather", given, add.constant(np.array([2, 1, 0], np.int64)), axis=3)
    elif image.channels == "grey":
        luma = np.array(_LUMA, np.float32)[:, np.newaxis]
        given = add("MatMul", given, add.constant(luma))
    mean, std = np.array(image.mean), np.array(image.std)
    scale, shift = (high - low) / std, (low - mean) / std
    if (scale != 1).any():
        given = add("Mul", given, add.constant(scale.astype(np.float32)))
    if (shift != 0).any():
        given = add("Add", given, add.constant(shift.astype(np.float32)))
    if image.takes_levels:
        given = add("Floor", add("Add", given, add.constant(np.float32(0.5))))
    if image.dtype != onnx.TensorProto.FLOAT:
        given = add("Cast", given, to=image.dtype)
    if image.layout == "NCHW":
        given = add("Transpose", given, perm=[0, 3, 1, 2])
    add("Identity", given, output=output)


def _to_vectors(add: Builder, given: str, pooling: list[int] | None) -> str:
    """Add what makes float32 vectors of the network's output."""
    given = add("Cast", given, to=onnx.TensorProto.FLOAT)
    if pooling is None or not pooling:
        return given
    if pooling == [0]:
        first = add.constant(np.array(0, np.int64))
        return add("Gather", given, first, axis=1)
    return add.on_axes("ReduceMean", given, pooling, keepdims=0)
