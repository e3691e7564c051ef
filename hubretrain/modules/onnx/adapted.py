"""An ONNX network as one graph from pixels to feature vectors, which every engine and export takes.

What is put before it: scale and shift of values, the order and number of channels, type and layout.
What is put behind it: type, and the mean over positions or tokens. A network of one image at a time
becomes the body of a loop (`Scan`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hubretrain.modules.onnx.building import Builder
from hubretrain.modules.onnx.graphs import onnx, opset_of
from hubretrain.modules.onnx.images import ImageInput
from hubretrain.modules.onnx.outputs import needed_nodes, read_names

PIXELS, FEATURES = "pixels", "features"
_PREFIX = "network/"
# Luma of ITU-R BT.601, as tf.image.rgb_to_grayscale computes it.
_LUMA = (0.2989, 0.5870, 0.1140)


def adapted(
    model: Any, image: ImageInput, output: str, pooling: list[int] | None, *, unit: bool = False
) -> Any:
    """Return the network as a model of `pixels` to `features`.

    Args:
        model: The network with its weights; it is changed.
        image: What images it takes.
        output: The tensor that holds the features.
        pooling: Axes of a mean, [0] for the first token, [] for vectors; None to leave the output
            as it is.
        unit: Whether pixels are float32 in [0, 1], else uint8 levels.

    Returns:
        A model whose `pixels` are of shape (n_images, image_size, image_size, 3), RGB, and whose
        `features` are float32.
    """
    graph = model.graph
    nodes = needed_nodes(graph, output)
    read = read_names(nodes)
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    for field in ("node", "initializer", "value_info", "output", "input"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    add = Builder(opset_of(model), model)
    before = "image" if image.one_by_one else PIXELS
    given = add.on_axes("Unsqueeze", before, [0]) if image.one_by_one else before
    _to_input(add, given, image, _PREFIX + image.name, unit=unit)
    add.embed(model, _PREFIX)
    features = _to_vectors(add, _PREFIX + output, pooling)
    edge, kind = image.image_size, "float" if unit else "uint8"
    if image.one_by_one:
        add("Identity", add.on_axes("Squeeze", features, [0]), output="feature")
        body = add.model({"image": [edge, edge, 3]}, ["feature"], kind).graph
        body.ClearField("initializer")  # these stay outside, where engines look for weights
        add.nodes = []
        add("Scan", PIXELS, output=FEATURES, num_scan_inputs=1, body=body)
    else:
        add("Identity", features, output=FEATURES)
    return add.model({PIXELS: ["n_images", edge, edge, 3]}, [FEATURES], kind)


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
