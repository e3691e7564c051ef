"""Which tensor of an ONNX graph holds the features, and whether that is a classifier's output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.modules.onnx.graphs import FLOATING, onnx
from hubretrain.modules.onnx.handles import OnnxHandle

# What an output of features is called, the surest first; the first eight as of SavedModels.
_VECTORS = (
    *("default", "feature_vector", "features", "embedding", "embeddings"),
    *("pooler_output", "image_embeds", "pooled_output", "last_hidden_state"),
)
_CLASSES = ("logits", "probabilities", "predictions", "classes", "scores")
_SQUASHING = {"Softmax", "LogSoftmax", "Sigmoid", "ArgMax", "TopK"}
_SAME = {"Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_DENSE = {"Gemm", "MatMul"}
_N_CLASSES = (1000, 1001, 21841, 21842, 21843)  # of ImageNet, and with one for the background
# What numbers about shapes come from: no way of features.
_ABOUT_SHAPES = {"Shape", "Size"}
_NAMED = 12  # outputs that a message names


def choose_output(model: Any, handle: OnnxHandle) -> str:
    """Return the name of the tensor that holds the features.

    Args:
        model: The network, its shapes inferred.
        handle: Which output is chosen, if one is.

    Raises:
        ModuleError: There is none of that name, or several that may be meant, or the only one is a
            classifier's.
    """
    graph = model.graph
    outputs = {output.name: output for output in graph.output}
    if handle.output:
        computed = {name for node in graph.node for name in node.output}
        if handle.output not in computed:
            raise ModuleError(
                f"{handle.source} holds no tensor {handle.output!r}; its outputs: "
                f"{', '.join(list(outputs)[:_NAMED])}."
            )
        return handle.output
    names = [name for name in _VECTORS if name in outputs]
    if not names and len(outputs) != 1:
        described = [f"{name} {_shape_words(output)}" for name, output in outputs.items()]
        raise ModuleError(
            f"{handle.source} gives several outputs: {', '.join(described[:_NAMED])}; choose one "
            "by `output`."
        )
    name = names[0] if names else next(iter(outputs))
    _check_type(outputs[name], handle)
    if what := _class_output(graph, outputs[name]):
        inner = _before_last_layer(graph, name)
        advice = f"{inner!r} is the tensor before its last layer; " if inner else ""
        raise ModuleError(
            f"{handle.source} is a classifier ({what}); expected features, such as a tensor inside "
            f"that is chosen by `output`: {advice}{name!r} would take its scores as features."
        )
    return name


def _check_type(output: Any, handle: OnnxHandle) -> None:
    """Raise where an output is known to be no tensor of floating numbers."""
    kind = output.type.WhichOneof("value")
    dtype = output.type.tensor_type.elem_type
    if kind not in (None, "tensor_type") or (kind and dtype not in (0, *FLOATING)):
        what = kind.removesuffix("_type")
        name = onnx.TensorProto.DataType.Name(dtype).lower() if what == "tensor" else f"a {what}"
        raise ModuleError(
            f"{handle.source} gives {name} as {output.name}; expected features, floating numbers."
        )


def _class_output(graph: Any, output: Any) -> str:
    """Return what makes an output a classifier's, in words; empty where nothing does."""
    if output.name.lower() in _CLASSES:
        return f"its output is called {output.name}"
    maker = _maker_of(graph, output.name)
    while maker is not None and maker.op_type in _SAME:
        maker = _maker_of(graph, maker.input[0])
    shape = _dims(output)
    if maker is None or output.name in _VECTORS:
        return ""
    if maker.op_type in _SQUASHING:
        return f"its output {output.name} comes from {maker.op_type}"
    dense = maker
    if maker.op_type == "Add":
        makers = [_maker_of(graph, name) for name in maker.input]
        dense = next((m for m in makers if m is not None and m.op_type != "Constant"), maker)
    if dense.op_type in _DENSE and shape and shape[-1] in _N_CLASSES:
        return f"its output {output.name} is a dense layer of {shape[-1]:,} numbers"
    return ""


def _before_last_layer(graph: Any, name: str) -> str:
    """Return the tensor that the last dense layer before an output reads; empty without one."""
    constants = {tensor.name for tensor in graph.initializer}
    for _ in range(len(graph.node)):
        maker = _maker_of(graph, name)
        if maker is None:
            return ""
        inputs = [
            given
            for given in maker.input
            if given
            and given not in constants
            and ((of := _maker_of(graph, given)) is None or of.op_type != "Constant")
        ]
        if not inputs:
            return ""
        if maker.op_type in _DENSE:
            return str(inputs[0])
        name = inputs[0]
    return ""


def _maker_of(graph: Any, name: str) -> Any:
    return next((node for node in graph.node if name in node.output), None)


def _dims(value: Any) -> list[int | None]:
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]


def _shape_words(value: Any) -> str:
    dims = [str(d.dim_value or d.dim_param or "?") for d in value.type.tensor_type.shape.dim]
    return f"({', '.join(dims)})"


def needed_nodes(graph: Any, output: str) -> list[Any]:
    """Return the nodes that a tensor depends on, in the order of the graph."""
    maker_of = {name: node for node in graph.node for name in node.output}
    pending, seen = [output], set()
    while pending:
        name = pending.pop()
        node = maker_of.get(name)
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            pending += node_reads(node)
    return [node for node in graph.node if id(node) in seen]


def nodes_between(graph: Any, start: str, output: str) -> list[Any]:
    """Return the nodes on some way from the input to the output, in the order of the graph."""
    reached, nodes = {start}, []
    for node in needed_nodes(graph, output):
        if node.op_type not in _ABOUT_SHAPES and not reached.isdisjoint(node_reads(node)):
            reached |= set(node.output)
            nodes.append(node)
    needed, result = {output}, []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed |= set(node_reads(node))
            result.append(node)
    return result[::-1]


def node_reads(node: Any) -> Iterator[str]:
    """Yield the names that a node reads, and those that graphs inside it do."""
    yield from node.input
    for inner in inner_graphs(node):
        for inner_node in inner.node:
            yield from node_reads(inner_node)
        yield from (output.name for output in inner.output)


def read_names(nodes: list[Any]) -> set[str]:
    """Return the names of all tensors that nodes, and graphs inside them, read."""
    return {name for node in nodes for name in node_reads(node)}


def inner_graphs(node: Any) -> list[Any]:
    """Return the graphs that are attributes of a node, such as the body of a loop."""
    return [
        inner
        for attribute in node.attribute
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def channel_axes(nodes: Iterable[Any]) -> dict[str, int]:
    """Return where maps and tokens have their channels: 1, or -1 for the last axis.

    Convolutions have them first and products with weights last; what else is done to a map leaves
    them there or moves them as it says. It need not be right where a reshaping mixes axes.

    Args:
        nodes: `nodes_between` the images, which have no known axis, and the features.
    """
    axes: dict[str, int] = {}
    for node in nodes:
        axis = next((axes[name] for name in node.input if name in axes), None)
        if "Conv" in node.op_type:
            axis = 1
        elif "MatMul" in node.op_type or node.op_type in ("Gemm", "Einsum"):
            axis = -1
        elif axis is not None and node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            moved = order.index(axis % len(order)) if order else None
            axis = {1: 1, len(order) - 1: -1}.get(moved) if moved is not None else None
        if axis is not None:
            axes |= dict.fromkeys(node.output, axis)
    return axes


def pooling_of(shape: tuple[int, ...], layout: str, source: str) -> list[int]:
    """Return how an output becomes one vector per image.

    Tokens are averaged, unless one or five of them are more than a square of positions: then the
    first is the class token (of a ViT, https://arxiv.org/abs/2010.11929; with four registers,
    https://arxiv.org/abs/2309.16588), and is taken.

    Args:
        shape: Shape of the output, of as many images as there were.
        layout: Layout of the input, which is that of maps.
        source: What the network is called in messages.

    Returns:
        The axes of a mean: [] for none, [0] for the first token.

    Raises:
        ModuleError: It is no vector, map or tokens.
    """
    if len(shape) == 2:
        return []
    if len(shape) == 3:
        n_tokens = shape[1]
        if any(math.isqrt(n) ** 2 == n > 0 for n in (n_tokens - 1, n_tokens - 5)) and (
            math.isqrt(n_tokens) ** 2 != n_tokens
        ):
            return [0]
        return [1]
    if len(shape) == 4:
        first = layout == "NCHW" and shape[1:3] != (1, 1)
        return [2, 3] if first else [1, 2]
    raise ModuleError(
        f"{source} gives shape {shape} for {shape[0] if shape else 1} images; expected feature "
        "vectors, maps, or tokens."
    )


def n_parameters(graph: Any, nodes: list[Any]) -> int:
    """Return how many floating numbers the nodes read as constants."""
    read = read_names(nodes)
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    for node in nodes:
        if node.op_type == "Constant":
            tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in FLOATING)
