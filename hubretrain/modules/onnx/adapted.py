"""An ONNX network as one graph from pixels to feature vectors, which every engine and export takes.

What is put before it: scale and shift of values, the order and number of channels, type and layout.
What is put behind it: type, and the mean over positions or tokens. A network of one image at a time
becomes the body of a loop (`Scan`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.modules.onnx.graphs import onnx, opset_of
from hubretrain.modules.onnx.images import ImageInput
from hubretrain.modules.onnx.outputs import inner_graphs, needed_nodes

PIXELS, FEATURES = "pixels", "features"
_PREFIX = "network/"
_IR_VERSION = 8  # constants need not be inputs since 4
_FIRST_SCAN, _AXES_AS_INPUT = 9, 13
# Luma of ITU-R BT.601, as tf.image.rgb_to_grayscale computes it.
_LUMA = (0.2989, 0.5870, 0.1140)


class _Builder:
    """Nodes and constants in the order in which they are added.

    Args:
        opset: Version of ONNX's operators that they are to be of.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add an operation and return the name of its output."""
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, value: npt.ArrayLike) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def on_axes(self, op: str, given: str, axes: list[int]) -> str:
        """Add an operation on axes, which are an attribute or, later, an input."""
        if self.opset < _AXES_AS_INPUT:
            return self(op, given, axes=axes)
        return self(op, given, self.constant(np.array(axes, np.int64)))


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
    del graph.node[:], graph.value_info[:], graph.output[:], graph.input[:]
    graph.node.extend(nodes)
    _rename(graph)
    add = _Builder(opset_of(model))
    looped = image.one_by_one and add.opset >= _FIRST_SCAN
    before = "image" if looped else PIXELS
    given = add.on_axes("Unsqueeze", before, [0]) if looped else before
    _to_input(add, given, image, _PREFIX + image.name, unit=unit)
    n_before = len(add.nodes)
    features = _to_vectors(add, _PREFIX + output, pooling)
    if looped:
        features = add.on_axes("Squeeze", features, [0])
    add("Identity", features, output="feature" if looped else FEATURES)
    body = [*add.nodes[:n_before], *graph.node, *add.nodes[n_before:]]
    constants = [*graph.initializer, *add.constants]
    kind = onnx.TensorProto.FLOAT if unit else onnx.TensorProto.UINT8
    edge, info = image.image_size, onnx.helper.make_tensor_value_info
    if looped:
        scanned = onnx.helper.make_graph(
            body,
            "of_one_image",
            [info("image", kind, [edge, edge, 3])],
            [info("feature", onnx.TensorProto.FLOAT, None)],
        )
        body = [
            onnx.helper.make_node("Scan", [PIXELS], [FEATURES], num_scan_inputs=1, body=scanned)
        ]
    whole = onnx.helper.make_graph(
        body,
        "hubretrain",
        [info(PIXELS, kind, ["n_images", edge, edge, 3])],
        [info(FEATURES, onnx.TensorProto.FLOAT, None)],
        constants,
    )
    whole.sparse_initializer.extend(graph.sparse_initializer)
    changed = onnx.helper.make_model(whole, opset_imports=model.opset_import)
    changed.ir_version = max(int(model.ir_version), _IR_VERSION)
    changed.functions.extend(model.functions)
    return changed


def _rename(graph: Any) -> None:
    """Put a prefix before the names of all tensors of a graph, and of the graphs in it."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = _PREFIX + value.name
    for sparse in graph.sparse_initializer:
        sparse.values.name = _PREFIX + sparse.values.name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name and _PREFIX + name for name in names]
        for inner in inner_graphs(node):
            _rename(inner)


def _to_input(add: _Builder, pixels: str, image: ImageInput, output: str, *, unit: bool) -> None:
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


def _to_vectors(add: _Builder, given: str, pooling: list[int] | None) -> str:
    """Add what makes float32 vectors of the network's output."""
    given = add("Cast", given, to=onnx.TensorProto.FLOAT)
    if pooling is None or not pooling:
        return given
    if pooling == [0]:
        first = add.constant(np.array(0, np.int64))
        return add("Gather", given, first, axis=1)
    if add.opset < 18:
        return add("ReduceMean", given, axes=pooling, keepdims=0)
    axes = add.constant(np.array(pooling, np.int64))
    return add("ReduceMean", given, axes, keepdims=0)
