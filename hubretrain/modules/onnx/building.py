"""Making of ONNX graphs: operations one after the other, and whole networks among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.modules.onnx.graphs import onnx
from hubretrain.modules.onnx.outputs import inner_graphs

_IR_VERSION = 8  # constants need not be inputs since 4
_AXES_AS_INPUT = {"Squeeze": 13, "Unsqueeze": 13, "ReduceSum": 13, "ReduceMean": 18}


class Builder:
    """Operations and constants in the order in which they are added.

    Args:
        opset: Version of ONNX's operators that they are to be of.
        of: The model whose other operators and functions are to be known; None for none.
    """

    def __init__(self, opset: int, of: Any = None) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._sparse: list[Any] = []
        self._imports = {"": opset}
        self._functions: dict[tuple[str, str], Any] = {}
        self._ir_version = _IR_VERSION
        if of is not None:
            self._know(of)

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

    def on_axes(self, op: str, given: str, axes: Sequence[int], **attributes: Any) -> str:
        """Add an operation on axes, which are an attribute or, later, an input."""
        if self.opset < _AXES_AS_INPUT[op]:
            return self(op, given, axes=list(axes), **attributes)
        return self(op, given, self.constant(np.array(axes, np.int64)), **attributes)

    def embed(self, model: Any, prefix: str) -> None:
        """Add the operations of a model, a prefix before the names of its tensors."""
        self._know(model)
        rename(model.graph, prefix)
        self.nodes += model.graph.node
        self.constants += model.graph.initializer
        self._sparse += model.graph.sparse_initializer

    def _know(self, model: Any) -> None:
        self._imports |= {o.domain: o.version for o in model.opset_import if o.domain}
        self._functions |= {(f.domain, f.name): f for f in model.functions}
        self._ir_version = max(self._ir_version, int(model.ir_version))

    def model(
        self, inputs: Mapping[str, Sequence[int | str]], outputs: Sequence[str], kind: str = "float"
    ) -> Any:
        """Return all of it as a model.

        Args:
            inputs: Name and shape of each input.
            outputs: Names of the outputs, which are float32.
            kind: Type of the inputs: `float` or `uint8`.
        """
        info, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.DataType.Value
        graph = onnx.helper.make_graph(
            self.nodes,
            "hubretrain",
            [info(name, number(kind.upper()), list(shape)) for name, shape in inputs.items()],
            [info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        graph.sparse_initializer.extend(self._sparse)
        imports = [onnx.helper.make_opsetid(*pair) for pair in self._imports.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        model.ir_version = self._ir_version
        model.functions.extend(self._functions.values())
        return model


def rename(graph: Any, prefix: str) -> None:
    """Put a prefix before the names of all tensors of a graph, and of the graphs in it."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = prefix + value.name
    for sparse in graph.sparse_initializer:
        sparse.values.name = prefix + sparse.values.name
    for node in graph.node:
        node.name = node.name and prefix + node.name
        for names in (node.input, node.output):
            names[:] = [name and prefix + name for name in names]
        for inner in inner_graphs(node):
            rename(inner, prefix)
