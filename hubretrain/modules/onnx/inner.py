"""Inner layers of an ONNX network: its graph as `regions` searches it, and where its channels are.

The rules are those of SavedModels. ONNX's operators are told by TensorFlow's names, and shapes are
those that a pass has, so that no network is too dynamic for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hubretrain.modules.layers import LayerPoint
from hubretrain.modules.onnx.adapted import PIXELS, PREFIX, adapted
from hubretrain.modules.onnx.graphs import onnx
from hubretrain.modules.onnx.images import ImageInput
from hubretrain.modules.onnx.outputs import channel_axes, node_reads, nodes_between
from hubretrain.modules.onnx.runtime import open_session
from hubretrain.modules.regions import N_IMAGES, layer_points

_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_TYPES = {
    **dict.fromkeys(("Relu", "PRelu", "ThresholdedRelu"), "Relu"),
    **dict.fromkeys(("Elu", "Celu"), "Elu"),
    **dict.fromkeys(("HardSigmoid", "Sigmoid"), "Sigmoid"),
    **dict.fromkeys(("Gelu", "FastGelu", "BiasGelu"), "Gelu"),
    **dict.fromkeys(("HardSwish", "Swish", "QuickGelu"), "Swish"),
    "Max": "Maximum",
    "Min": "Minimum",
    "Clip": "ClipByValue",
    "Add": "AddV2",
    "Sum": "AddN",
    "Div": "RealDiv",
    "Reciprocal": "Rsqrt",
    "Where": "Select",
    "Unsqueeze": "ExpandDims",
    **dict.fromkeys(("Dropout", "QuantizeLinear", "DequantizeLinear"), "Identity"),
    **dict.fromkeys(("Flatten", "Transpose"), "Reshape"),
    **dict.fromkeys(
        (
            *("BatchNormalization", "InstanceNormalization", "GroupNormalization"),
            *("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"),
            *("LpNormalization", "LRN"),
        ),
        "FusedBatchNorm",
    ),
    "AveragePool": "AvgPool",
    "LpPool": "AvgPool",
    "Concat": "ConcatV2",
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger", "QLinearConv"), "Conv2D"),
    **dict.fromkeys(("Gemm", "MatMulInteger", "QLinearMatMul"), "MatMul"),
}


class _Shape(tuple[int, ...]):
    """A shape, as far as `regions` asks TensorFlow's."""

    @property
    def rank(self) -> int:
        return len(self)

    def is_fully_defined(self) -> bool:
        return True

    def num_elements(self) -> int:
        return int(np.prod(self))


@dataclass(frozen=True)
class _DType:
    is_floating: bool


@dataclass(eq=False)
class _Tensor:
    name: str
    op: _Operation
    shape: _Shape
    dtype: _DType
    users: list[_Operation] = field(default_factory=list)

    def consumers(self) -> list[_Operation]:
        return self.users


@dataclass(eq=False)
class _Operation:
    type: str
    inputs: list[_Tensor] = field(default_factory=list)
    outputs: list[_Tensor] = field(default_factory=list)


class _Graph:
    """A network as `regions` searches it.

    Args:
        graph: The network's graph.
        start: Name of its input.
        output: The tensor that holds the features.
        shape_of: Shape of each tensor between them, of `N_IMAGES` images.
    """

    def __init__(
        self, graph: Any, start: str, output: str, shape_of: Mapping[str, tuple[int, ...]]
    ) -> None:
        nodes = nodes_between(graph, start, output)
        self._axes = channel_axes(nodes)
        self._certain = _certain(nodes, self._axes, shape_of)
        self._shape_of = shape_of
        images = _Operation("Placeholder")
        tensor_of = {start: self._tensor(start, images)}
        images.outputs = [tensor_of[start]]
        self.path: list[Any] = [images]
        for node in nodes:
            operation = _Operation(_type_of(node, graph))
            for name in dict.fromkeys(node_reads(node)):
                if name in tensor_of:
                    operation.inputs.append(tensor_of[name])
                    tensor_of[name].users.append(operation)
            operation.outputs = [self._tensor(name, operation) for name in node.output if name]
            tensor_of |= {tensor.name: tensor for tensor in operation.outputs}
            self.path.append(operation)
        self.position: dict[Any, int] = {o: i for i, o in enumerate(self.path)}

    def _tensor(self, name: str, operation: _Operation) -> _Tensor:
        """Return a tensor with its shape, channels last; where they are unknown it is no map."""
        shape, axis = list(self._shape_of.get(name, ())), self._axes.get(name)
        is_map = axis is not None and name in self._certain and len(shape) > 2
        if is_map and axis == 1:
            shape.append(shape.pop(1))
        return _Tensor(name, operation, _Shape(shape), _DType(is_map))

    def point_name(self, operation: _Operation) -> str:
        return operation.outputs[0].name


def inner_layers(model: Any, image: ImageInput, output: str) -> tuple[tuple[LayerPoint, ...], str]:
    """Return the inner layers of a network whose features are worth keeping, shallow to deep.

    Args:
        model: The network with its weights; it is changed.
        image: What images it takes.
        output: The tensor that holds its features.

    Returns:
        The layers, each by the name of its tensor, and why there are none.
    """
    nodes = nodes_between(model.graph, image.name, output)
    names = [image.name, *dict.fromkeys(name for node in nodes for name in node.output if name)]
    whole = onnx.GraphProto()
    whole.CopyFrom(model.graph)
    try:
        shape_of = _shapes(model, image, output, names)
    except Exception as error:  # ONNX Runtime raises types of its own
        return (), f"the shapes of its tensors are unknown ({type(error).__name__})"
    points = layer_points(_Graph(whole, image.name, output, shape_of))
    return points, "" if points else "its graph holds no feature maps"


def _shapes(
    model: Any, image: ImageInput, output: str, names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that tensors have in a pass; only these leave the graph, not the maps."""
    n_images = 1 if image.one_by_one else N_IMAGES
    shaped = adapted(model, replace(image, one_by_one=False), output, None)
    del shaped.graph.output[:]
    for i, name in enumerate(names):
        shaped.graph.node.add(op_type="Shape", input=[PREFIX + name], output=[f"shape_{i}"])
        info = onnx.helper.make_tensor_value_info(f"shape_{i}", onnx.TensorProto.INT64, None)
        shaped.graph.output.append(info)
    session = open_session(shaped.SerializeToString(), quiet=True)
    pixels = np.zeros((n_images, image.image_size, image.image_size, 3), np.uint8)
    result = session.run(None, {PIXELS: pixels})
    shapes = {name: tuple(map(int, s)) for name, s in zip(names, result, strict=True)}
    return {
        name: (N_IMAGES, *shape[1:]) if shape[:1] == (n_images,) else shape
        for name, shape in shapes.items()
    }


def _certain(
    nodes: Sequence[Any], axes: Mapping[str, int], shape_of: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """Return the tensors whose channels are where `axes`, which knows no shapes, has them."""
    on_path = {name for node in nodes for name in node.output}
    certain: set[str] = set()
    for node in nodes:
        given = next((name for name in node.input if name in axes), "")
        kind = _TYPES.get(node.op_type, node.op_type)
        if kind in ("Conv2D", "ConvTranspose"):
            is_certain = True
        elif kind == "MatMul":  # by weights, not of two maps as in attention
            is_certain = node.input[0] in on_path and node.input[1] not in on_path
        else:
            before, after = shape_of.get(given, ()), shape_of.get(node.output[0], ())
            is_certain = given in certain and bool(before and after)
            if is_certain and node.op_type in _RESHAPES:
                axis = axes[given]
                is_certain = len(after) > 1 and before[axis] == after[axis]
            elif is_certain:
                is_certain = len(before) == len(after)
        if is_certain:
            certain |= set(node.output)
    return certain


def _type_of(node: Any, graph: Any) -> str:
    """Return what TensorFlow calls an operation."""
    kind = _TYPES.get(node.op_type, node.op_type)
    if kind != "Conv2D":
        return str(kind)
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    weights = next((t for t in graph.initializer if t.name in node.input[1:]), None)
    is_depthwise = groups > 1 and (weights is None or list(weights.dims[1:2]) == [1])
    return "DepthwiseConv2dNative" if is_depthwise else "Conv2D"
