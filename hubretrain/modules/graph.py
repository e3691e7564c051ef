"""The graph of a module's forward pass, flat: every function that it calls is inlined.

TF2 SavedModels call functions inside functions, Keras exports one, TF1 graphs are wrapped in one;
flat, all of them are the same kind of graph, of which pieces can be taken and inner tensors read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.modules.layers import LEAST_VARIANCE, RELATIVE_VARIANCE
from hubretrain.tensorflow import inlined, tf

_PREFIX = "flat/"
# What inlining puts before the names of a called function's operations.
_CALL = re.compile(r"^(?:(?:Stateful)?PartitionedCall(?:_\d+)?/)+")
# Stateful operations without side effects: leaving them out of a piece loses nothing.
_HARMLESS = {"ReadVariableOp", "Placeholder", "VarHandleOp"}


def spatial_statistics(maps: tf.Tensor) -> tf.Tensor:
    """Return mean and standard deviation over the positions of feature maps.

    The deviation is `sqrt(variance + 1e-4 * mean_square + 1e-12)`, with the population variance:
    1 % of the root mean square is added in quadrature. Without it the deviation of a channel that
    is constant would be rounding noise, which standardisation blows up, and its gradient infinite.

    Args:
        maps: Floating, of shape (n_images, height, width, n_channels); or tokens, `as_map`.

    Returns:
        float32 of shape (n_images, 2 * n_channels): all means, then all deviations.
    """
    maps = as_map(tf.cast(maps, tf.float32))
    mean = tf.reduce_mean(maps, (1, 2), keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(maps, mean), (1, 2))
    mean = tf.squeeze(mean, (1, 2))
    floor = RELATIVE_VARIANCE * (variance + tf.square(mean)) + LEAST_VARIANCE
    return tf.concat([mean, tf.sqrt(variance + floor)], axis=1)


def as_map(tensor: tf.Tensor) -> tf.Tensor:
    """Return tokens (n_images, n_tokens, n_channels) as a map of one column; a map as it is."""
    return tensor[:, :, tf.newaxis] if tensor.shape.rank == 3 else tensor


@dataclass(frozen=True)
class _Capture:
    """What the graph reads from outside: a listed variable by its index, or else the source.

    A source is a tensor or a variable: a SavedModel need not list its variables.
    """

    placeholder: str
    variable: int | None
    source: Any


class ModuleGraph:
    """The operations of a module's forward pass from its pixels to its bottleneck.

    Args:
        forward: The module: float32 images (n_images, image_size, image_size, 3) to bottlenecks.
        variables: Its variables.
        image_size: Height and width of its input, pixels.
        name: Name of the module, for messages.
        training: Whether it keeps state, as the pass in training may.

    Attributes:
        images: The pixels' tensor.
        output: The bottleneck's tensor.
        path: The operations on some path from the images to the output, in topological order: no
            operation stands before one whose output it reads. Shapes are those of two images.
        position: Index of each operation in `path`.
        variables_read: Indices of the variables that the graph reads anywhere.
        first_reader: Index of a variable to the position of the first operation that depends on it.

    Raises:
        ModuleError: The graph cannot be made flat, or its output does not depend on the images.
    """

    def __init__(
        self,
        forward: Callable[[tf.Tensor], tf.Tensor],
        variables: Sequence[tf.Variable],
        image_size: int,
        name: str,
        *,
        training: bool = False,
    ) -> None:
        self.name, self.training = name, training
        spec = tf.TensorSpec((None, image_size, image_size, 3), tf.float32, "images")
        function = tf.function(forward).get_concrete_function(spec)
        try:
            self._definition = inlined(function)
        except Exception as error:  # many types, of TensorFlow's optimizer
            raise self.refused(f"TensorFlow cannot inline its functions ({error})") from error
        indices = {id(v.handle): i for i, v in enumerate(variables)}
        variable_of = {id(v.handle): v for v in function.graph.variables}
        self._captures = [
            _Capture(inner.op.name, indices.get(id(outer)), variable_of.get(id(outer), outer))
            for inner, outer in zip(
                function.graph.internal_captures, function.captured_inputs, strict=True
            )
        ]
        self.variables_read = {c.variable for c in self._captures if c.variable is not None}
        self._start, self._end = function.inputs[0].name, function.outputs[0].name
        spec = tf.TensorSpec((2, image_size, image_size, 3), tf.float32)
        run = self._import(self._definition, [self._start], [self._end], variables)
        # Kept, because a graph does not keep itself alive.
        self._analysed = tf.function(run, input_signature=[spec]).get_concrete_function()
        self.images = self._analysed.inputs[0]
        self.output = self._analysed.graph.get_tensor_by_name(_PREFIX + self._end)
        needed = needed_for([self.output.op])
        stateful = {o.type for o in needed if o.op_def.is_stateful} - _HARMLESS
        if stateful and not training:
            raise self.refused(f"it keeps state ({', '.join(sorted(stateful))})")
        self.path: list[Any] = []
        self.position: dict[Any, int] = {}
        self.first_reader: dict[int, int] = {}
        self._order(needed, indices)
        if self.output.op not in self.position:
            raise self.refused("its output does not depend on the images")

    def _order(self, needed: Iterable[Any], indices: dict[int, int]) -> None:
        """Put the path into order, and note where a variable's value enters it first."""
        captured = zip(
            self._analysed.graph.internal_captures, self._analysed.captured_inputs, strict=True
        )
        read = {i.op: {indices[id(outer)]} for i, outer in captured if id(outer) in indices}
        order = TopologicalSorter({o: [t.op for t in o.inputs] for o in needed}).static_order()
        for operation in order:
            inputs = [t.op for t in operation.inputs]
            variables = read.get(operation, set()).union(*(read.get(o, ()) for o in inputs))
            if operation is self.images.op or any(o in self.position for o in inputs):
                self.position[operation] = len(self.path)
                self.path.append(operation)
                for index in variables:
                    self.first_reader.setdefault(index, self.position[operation])
            else:
                read[operation] = variables

    def refused(self, why: str) -> ModuleError:
        """Return the error that says why the graph cannot be used."""
        return ModuleError(f"the graph of {self.name} cannot be cut: {why}")

    def point_name(self, operation: Any) -> str:
        """Return the name of an operation without what importing and inlining put before it."""
        return _CALL.sub("", operation.name.removeprefix(_PREFIX))

    def tensors(self, names: Sequence[str]) -> list[Any]:
        """Return the outputs of operations of the path by their names without calls.

        Raises:
            ModuleError: There is none of that name.
        """
        by_name = {self.point_name(o): o.outputs[0] for o in reversed(self.path) if o.outputs}
        for name in names:
            if name not in by_name:
                raise ModuleError(
                    f"{self.name} has no layer {name}; expected one of those that `hubretrain "
                    f"modules show {self.name}` lists."
                )
        return [by_name[name] for name in names]

    def piece(
        self, starts: Sequence[Any], ends: Sequence[Any], variables: Sequence[Any]
    ) -> Callable[..., list[Any]]:
        """Return the operations between tensors as a Python function that is to be traced.

        Args:
            starts: Tensors to be given, in the order of the function's arguments.
            ends: Tensors to be returned, of operations of the path.
            variables: The variables to read, in the backbone's order.
        """
        given = [self._name(t) for t in starts]
        wanted = [self._name(t) for t in ends]
        computed = [name for name in wanted if name not in given]
        definition = self._definition if self.training else self._between(starts, ends)
        run = self._import(definition, given, computed, variables)

        def all_ends(*inputs: tf.Tensor) -> list[Any]:
            results = dict(zip(computed, run(*inputs), strict=True))
            return [results[n] if n in results else inputs[given.index(n)] for n in wanted]

        return all_ends

    def _name(self, tensor: Any) -> str:
        """Return the name of a tensor in the definition."""
        return self._start if tensor is self.images else str(tensor.name).removeprefix(_PREFIX)

    def _import(
        self,
        definition: Any,
        starts: Sequence[str],
        ends: Sequence[str],
        variables: Sequence[Any],
    ) -> Callable[..., list[Any]]:
        """Return a function that imports a definition into the graph that is being traced.

        Neither a gradient tape nor freezing looks into an imported graph, so each variable is
        reported to the function that contains the graph, by `watch_variable`.
        """
        present = {node.name for node in definition.node}
        captures = [c for c in self._captures if c.placeholder in present]

        def run(*inputs: tf.Tensor) -> list[Any]:
            graph = tf.compat.v1.get_default_graph()
            mapping = dict(zip(starts, inputs, strict=True))
            for capture in captures:
                index = capture.variable
                source = capture.source if index is None else variables[index]
                if isinstance(source, tf.Variable):
                    graph.watch_variable(source)
                    source = source.handle
                mapping[f"{capture.placeholder}:0"] = graph.capture(source)
            return list(
                tf.graph_util.import_graph_def(
                    definition,
                    input_map=mapping,
                    return_elements=list(ends),
                    name=_PREFIX.rstrip("/"),
                )
            )

        return run

    def _between(self, starts: Sequence[Any], ends: Sequence[Any]) -> Any:
        """Return the graph definition of what `ends` need above `starts`.

        Control dependencies (inputs that begin with ^) are left out: inference without side
        effects needs none, and they would draw in operations below `starts`.
        """
        operations = needed_for([t.op for t in ends], stop={t.op for t in starts})
        names = {operation.name.removeprefix(_PREFIX) for operation in operations}
        nodes = [node for node in self._definition.node if node.name in names]
        used = {name.partition(":")[0] for node in nodes for name in node.input}
        captured = {capture.placeholder for capture in self._captures} & used
        nodes += [node for node in self._definition.node if node.name in captured]
        part = tf.compat.v1.GraphDef(
            versions=self._definition.versions, library=self._definition.library
        )
        for node in nodes:
            copy = part.node.add()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(i for i in node.input if not i.startswith("^"))
        # `input_map` replaces tensors of the definition only, so the starts stand in it too.
        for start in starts:
            placeholder = part.node.add()
            placeholder.name, placeholder.op = self._name(start).partition(":")[0], "Placeholder"
            placeholder.attr["dtype"].type = start.dtype.as_datatype_enum
        return part


def needed_for(ends: Sequence[Any], stop: set[Any] | None = None) -> dict[Any, None]:
    """Return the operations whose data flow into `ends`, these included; not those of `stop`."""
    needed: dict[Any, None] = {}  # in the order of the search, which is always the same
    pending = list(ends)
    while pending:
        operation = pending.pop()
        if operation in needed or operation in (stop or ()):
            continue
        needed[operation] = None
        pending.extend(tensor.op for tensor in operation.inputs)
    return needed
