"""A backbone cut in two: the trunk gives activations, the top makes bottlenecks of them.

A cut is a place that every path from the pixels to the bottleneck passes: no shortcut goes around
it. So the trunk's one tensor is all that the top needs, whether it was computed a moment ago or
read from a file, and a gradient with respect to it is that of the whole module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.modules.backbone import Backbone
from hubretrain.tensorflow import tf

_READS_ONLY = {"ReadVariableOp", "Placeholder", "VarHandleOp"}


@dataclass(frozen=True)
class Cut:
    """A module in two pieces: `top(trunk(images))` is what `backbone(images)` is.

    Attributes:
        name: Of the operation whose output is the cut, as the module's graph calls it.
        kind: Of operation, such as `Relu6`.
        shape: Of one image's activations, such as (7, 7, 192).
        trunk: float32 images (n_images, image_size, image_size, 3), RGB in [0, 1], to activations
            (n_images, *shape), float32.
        top: Activations to bottlenecks, float32 of shape (n_images, n_features). Gradients flow to
            the activations and to the variables; a `tf.GradientTape` watches both by itself.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    trunk: Callable[[tf.Tensor], tf.Tensor]
    top: Callable[[tf.Tensor], tf.Tensor]


def cut_below(backbone: Backbone, variables: Sequence[tf.Variable]) -> Cut:
    """Cuts as high as possible with all of `variables` in the top.

    Args:
        backbone: A loaded module.
        variables: Those that training is to change; with none, the top is the identity.

    Raises:
        ModuleError: The module's graph cannot be cut below them; the message says why.
    """
    graph = _Graph(backbone)
    first = graph.first_user({id(v) for v in variables})
    for operation in reversed(graph.cuts()):
        if graph.place[operation] < first:
            return graph.cut_at(operation)
    raise graph.refused("every cut that no shortcut goes around lies above a layer to be trained")


class _Graph:
    """The operations of a module's inference between its pixels and its bottleneck."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.function = self._inference()
        graph = self.function.graph
        operations = graph.get_operations()  # in topological order
        captured = {c.name for c in graph.internal_captures}
        (self.images,) = (i for i in graph.inputs if i.name not in captured)
        n_outputs = len(tf.nest.flatten(self.function.structured_outputs))
        if n_outputs != 1:
            raise self.refused(f"it gives {n_outputs} results")
        self.output = graph.outputs[0]  # behind it may stand what a gradient asked for
        below = _reached(operations, {self.images.op})
        needed = _needed(self.output.op)
        self.path = [o for o in operations if o in below and o in needed]
        self.place = {o: i for i, o in enumerate(self.path)}
        if self.output.op not in self.place:
            raise self.refused("its output does not depend on the images")
        for operation in needed:
            if operation.op_def.is_stateful and operation.type not in _READS_ONLY:
                what = "calls functions inside functions" if "Call" in operation.type else "has"
                raise self.refused(f"it {what} ({operation.type})")

    def refused(self, why: str) -> ModuleError:
        """The error that says why there is no such cut."""
        return ModuleError(f"the graph of {self.backbone.stored.name} cannot be cut: {why}")

    def _inference(self) -> Any:
        """The concrete function that computes a batch of any size, without training."""
        loaded = self.backbone.saved_object
        candidates = loaded.__call__.concrete_functions if callable(loaded) else ()
        for function in candidates:
            arguments, named = function.structured_input_signature
            flags = [a for a in (*arguments, *named.values()) if isinstance(a, bool)]
            specs = [a for a in tf.nest.flatten((arguments, named)) if isinstance(a, tf.TensorSpec)]
            is_batch = len(specs) == 1 and specs[0].shape.rank == 4 and specs[0].shape[0] is None
            if is_batch and not any(flags) and specs[0].dtype == tf.float32:
                return function
        raise self.refused("it has no function of one batch of images")

    def cuts(self) -> list[Any]:
        """The operations that no edge goes around, from the pixels up; the output is one.

        In a topological order of what lies on paths from images to output, every path passes an
        operation if and only if no edge jumps over it.
        """
        furthest = 0
        found = []
        for i, operation in enumerate(self.path):
            users = [
                (self.place[user], k)
                for k, tensor in enumerate(operation.outputs)
                for user in tensor.consumers()
                if user in self.place
            ]
            if furthest <= i and all(k == 0 for _, k in users) and operation.outputs:
                found.append(operation)
            furthest = max([furthest, *(place for place, _ in users)])
        return [o for o in found if o.outputs[0].dtype == tf.float32 and o is not self.images.op]

    def first_user(self, variables: Iterable[int]) -> int:
        """Where the first operation stands that depends on one of some variables (their ids)."""
        wanted = set(variables)
        handles = {placeholder.op for placeholder, _, v in self.captures() if id(v) in wanted}
        if len(handles) < len(wanted):
            raise self.refused("its function does not name the variables that it reads")
        operations = self.function.graph.get_operations()
        depending = _reached(operations, handles)
        return min((self.place[o] for o in depending if o in self.place), default=len(self.path))

    def captures(self) -> list[tuple[Any, Any, tf.Variable | None]]:
        """(placeholder in the graph, what it stands for, the variable if it is one)."""
        variables = {id(v.handle): v for v in self.backbone.variables}
        pairs = zip(
            self.function.graph.internal_captures, self.function.captured_inputs, strict=True
        )
        return [(inner, outer, variables.get(id(outer))) for inner, outer in pairs]

    def cut_at(self, operation: Any) -> Cut:
        """The two pieces on either side of an operation's output."""
        activations = operation.outputs[0]
        shape = tuple(activations.shape[1:])
        size = self.backbone.stored.image_size
        low, high = self.backbone.stored.value_range
        pixels = tf.TensorSpec((None, size, size, 3), tf.float32)
        trunk = self._piece(self.images, activations, pixels, lambda x: low + (high - low) * x)
        if None in shape:  # a module of free height and width: see what this size gives
            shape = tuple(trunk.get_concrete_function().structured_outputs.shape[1:])
        if None in shape:
            shape = tuple(trunk(tf.zeros((1, size, size, 3))).shape[1:])
        middle = tf.TensorSpec((None, *shape), tf.float32)
        top = self._piece(activations, self.output, middle, lambda x: x)
        return Cut(operation.name, operation.type, shape, trunk, top)

    def _piece(self, start: Any, end: Any, spec: Any, before: Callable[[Any], Any]) -> Any:
        """The operations between two tensors as a function of its own.

        An imported graph is not seen by a tape; a function that contains it is, when called.
        """
        if start is end:
            return tf.function(before, input_signature=[spec])
        definition, used = self._between(start, end)
        captures = [c for c in self.captures() if c[0].op.name in used]

        def run(given: tf.Tensor) -> tf.Tensor:
            graph = tf.compat.v1.get_default_graph()
            mapping = {start.name: before(given)}
            for inner, outer, variable in captures:
                if variable is not None:
                    graph.watch_variable(variable)
                mapping[inner.name] = graph.capture(outer)
            (result,) = tf.graph_util.import_graph_def(
                definition, input_map=mapping, return_elements=[end.name], name="piece"
            )
            return result

        return tf.function(run, input_signature=[spec])

    def _between(self, start: Any, end: Any) -> tuple[Any, set[str]]:
        """The graph definition of what `end` needs besides `start`, and its names.

        Control dependencies are left out: inference without side effects needs none.
        """
        names = {operation.name for operation in _needed(end.op, stop=start.op)}
        whole = self.function.graph.as_graph_def()
        part = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
        for node in whole.node:
            if node.name in names:
                kept = part.node.add()
                kept.CopyFrom(node)
                del kept.input[:]
                kept.input.extend(i for i in node.input if not i.startswith("^"))
        # What stands for the start is in the definition too, so that the map can replace it.
        if start.op.name not in names:
            kept = part.node.add()
            kept.name, kept.op = start.op.name, "Placeholder"
            kept.attr["dtype"].type = start.dtype.as_datatype_enum
        return part, names


def _reached(operations: Sequence[Any], starts: set[Any]) -> set[Any]:
    """The operations that data of `starts` flows into, and these."""
    found = set(starts)
    for operation in operations:
        if any(tensor.op in found for tensor in operation.inputs):
            found.add(operation)
    return found


def _needed(end: Any, stop: Any = None) -> set[Any]:
    """The operations whose data flow into `end`, and it; not those behind `stop`."""
    found: set[Any] = set()
    waiting = [end]
    while waiting:
        operation = waiting.pop()
        if operation in found or operation is stop:
            continue
        found.add(operation)
        waiting.extend(tensor.op for tensor in operation.inputs)
    return found
