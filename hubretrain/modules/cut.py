"""A backbone cut in two: the trunk gives activations, the top turns them into bottlenecks.

A cut is an operation that every path from the pixels to the bottleneck passes: no shortcut goes
around it. So the trunk's one tensor is all that the top needs, whether it was just computed or
read from a file, and a gradient with respect to it is that of the whole module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.modules.backbone import Backbone
from hubretrain.tensorflow import tf

# Stateful operations without side effects: leaving them out of a piece loses nothing.
_HARMLESS = {"ReadVariableOp", "Placeholder", "VarHandleOp"}


@dataclass(frozen=True)
class Cut:
    """A module in two pieces: `top(trunk(images))` equals `backbone(images)`.

    Attributes:
        name: Name of the operation whose output is the cut, in the module's graph.
        kind: Type of that operation, such as `Relu6`.
        shape: Shape of the activations of one image, such as (7, 7, 192).
        trunk: float32 images (n_images, image_size, image_size, 3), RGB in [0, 1], to activations
            (n_images, *shape), float32.
        top: Activations to bottlenecks, float32 of shape (n_images, n_features). Gradients flow to
            the activations and to the variables; a `tf.GradientTape` watches the variables.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    trunk: Callable[[tf.Tensor], tf.Tensor]
    top: Callable[[tf.Tensor], tf.Tensor]


def cut_below(backbone: Backbone, variables: Sequence[tf.Variable]) -> Cut:
    """Cut a backbone as high as possible with all of `variables` in the top.

    Args:
        backbone: A loaded module.
        variables: Variables that training is to change; with none, the top is the identity.

    Raises:
        ModuleError: The module's graph cannot be cut below them; the message says why.
    """
    graph = _Graph(backbone)
    first = graph.first_user({id(v) for v in variables})
    for operation in reversed(graph.cuts()):
        if graph.position[operation] < first:
            return graph.cut_at(operation)
    raise graph.refused("every cut that no shortcut goes around lies above a layer to be trained")


class _Graph:
    """The operations of a module's inference from its pixels to its bottleneck.

    Attributes:
        path: Those on some path from the images to the output, in topological order: no operation
            stands before one whose output it reads.
        position: Index of each operation in `path`.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.function = self._inference()
        graph = self.function.graph
        operations = graph.get_operations()  # in the order of tracing, which is topological
        captured = {c.name for c in graph.internal_captures}
        (self.images,) = (i for i in graph.inputs if i.name not in captured)
        n_outputs = len(tf.nest.flatten(self.function.structured_outputs))
        if n_outputs != 1:
            raise self.refused(f"it gives {n_outputs} outputs")
        self.output = graph.outputs[0]  # further ones are intermediates that gradients need
        reached = _reached(operations, {self.images.op})
        needed = _needed(self.output.op)
        self.path = [o for o in operations if o in reached and o in needed]
        self.position = {o: i for i, o in enumerate(self.path)}
        if self.output.op not in self.position:
            raise self.refused("its output does not depend on the images")
        for operation in needed:
            if operation.op_def.is_stateful and operation.type not in _HARMLESS:
                calls = "Call" in operation.type
                reason = "calls functions inside functions" if calls else "keeps state"
                raise self.refused(f"it {reason} ({operation.type})")

    def refused(self, why: str) -> ModuleError:
        """Return the error that says why there is no such cut."""
        return ModuleError(f"the graph of {self.backbone.stored.name} cannot be cut: {why}")

    def _inference(self) -> Any:
        """Return the concrete function for a batch of any size, in inference mode.

        A module has one per combination of its non-tensor arguments, such as `training`: the one
        whose flags are all false is inference.
        """
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
        """Return the operations that every path passes, from the pixels up; the output is one.

        Number the operations of `path` in their order. Every edge leads from a lower number to a
        higher one. Then every path from images to output passes operation k if and only if no edge
        (i, j) with i < k < j jumps over it:

        - An edge that jumps over k is part of a path that avoids k, for `path` holds only what the
          images reach and the output needs: images -> i -> j -> output, with rising numbers.
        - A path that avoids k begins below k and ends above it with rising numbers, so one of its
          edges jumps over k.

        So one scan suffices: k is a cut if no edge from below k ends above k. Such an operation may
        give several tensors; it counts if only its first one is used, for a cut is one tensor.
        """
        furthest = 0  # the highest end of an edge from the operations before this one
        cuts = []
        for i, operation in enumerate(self.path):
            edges = [
                (self.position[user], output)
                for output, tensor in enumerate(operation.outputs)
                for user in tensor.consumers()
                if user in self.position
            ]
            uses_first_only = all(output == 0 for _, output in edges)
            if furthest <= i and uses_first_only and operation.outputs:
                cuts.append(operation)
            furthest = max([furthest, *(end for end, _ in edges)])
        return [o for o in cuts if o.outputs[0].dtype == tf.float32 and o is not self.images.op]

    def first_user(self, variables: Iterable[int]) -> int:
        """Return the position of the first operation that depends on one of the variables (ids)."""
        ids = set(variables)
        handles = {placeholder.op for placeholder, _, v in self.captures() if id(v) in ids}
        if len(handles) < len(ids):
            raise self.refused("its function does not name the variables that it reads")
        operations = self.function.graph.get_operations()
        depending = _reached(operations, handles)
        return min(
            (self.position[o] for o in depending if o in self.position), default=len(self.path)
        )

    def captures(self) -> list[tuple[Any, Any, tf.Variable | None]]:
        """Return each capture: placeholder in the graph, tensor outside, variable if it is one."""
        variables = {id(v.handle): v for v in self.backbone.variables}
        pairs = zip(
            self.function.graph.internal_captures, self.function.captured_inputs, strict=True
        )
        return [(inner, outer, variables.get(id(outer))) for inner, outer in pairs]

    def cut_at(self, operation: Any) -> Cut:
        """Return the two pieces on either side of an operation's output."""
        activations = operation.outputs[0]
        shape = tuple(activations.shape[1:])
        size = self.backbone.stored.image_size
        low, high = self.backbone.stored.value_range
        pixels = tf.TensorSpec((None, size, size, 3), tf.float32)
        trunk = self._piece(self.images, activations, pixels, lambda x: low + (high - low) * x)
        if None in shape:  # of a module of free height and width: what this image size gives
            shape = tuple(trunk.get_concrete_function().structured_outputs.shape[1:])
        if None in shape:
            shape = tuple(trunk(tf.zeros((1, size, size, 3))).shape[1:])
        middle = tf.TensorSpec((None, *shape), tf.float32)
        top = self._piece(activations, self.output, middle, lambda x: x)
        return Cut(operation.name, operation.type, shape, trunk, top)

    def _piece(self, start: Any, end: Any, spec: Any, before: Callable[[Any], Any]) -> Any:
        """Return the operations between two tensors as a function of its own.

        A gradient tape does not look into an imported graph, so each variable is reported to it by
        `watch_variable` when the function that contains the graph is called.
        """
        if start is end:
            return tf.function(before, input_signature=[spec])
        definition, used = self._between(start, end)
        captures = [c for c in self.captures() if c[0].op.name in used]

        def run(inputs: tf.Tensor) -> tf.Tensor:
            graph = tf.compat.v1.get_default_graph()
            mapping = {start.name: before(inputs)}
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
        """Return the graph definition of what `end` needs above `start`, and its names.

        Control dependencies (inputs that begin with ^) are left out: inference without side
        effects needs none, and they would draw in operations below `start`.
        """
        names = {operation.name for operation in _needed(end.op, stop=start.op)}
        whole = self.function.graph.as_graph_def()
        part = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
        for node in whole.node:
            if node.name in names:
                copy = part.node.add()
                copy.CopyFrom(node)
                del copy.input[:]
                copy.input.extend(i for i in node.input if not i.startswith("^"))
        # `input_map` replaces tensors of the definition only, so the start stands in it too.
        if start.op.name not in names:
            placeholder = part.node.add()
            placeholder.name, placeholder.op = start.op.name, "Placeholder"
            placeholder.attr["dtype"].type = start.dtype.as_datatype_enum
        return part, names


def _reached(operations: Sequence[Any], starts: set[Any]) -> set[Any]:
    """Return the operations that data of `starts` flows into, `starts` included."""
    reached = set(starts)
    for operation in operations:
        if any(tensor.op in reached for tensor in operation.inputs):
            reached.add(operation)
    return reached


def _needed(end: Any, stop: Any = None) -> set[Any]:
    """Return the operations whose data flow into `end`, `end` included; not those below `stop`."""
    needed: set[Any] = set()
    pending = [end]
    while pending:
        operation = pending.pop()
        if operation in needed or operation is stop:
            continue
        needed.add(operation)
        pending.extend(tensor.op for tensor in operation.inputs)
    return needed
