"""A backbone cut in two: the trunk gives activations, the top turns them into bottlenecks.

A cut is an operation that every path from the pixels to the bottleneck passes: no shortcut goes
around it. So the trunk's one tensor is all that the top needs, whether it was just computed or
read from a file, and a gradient with respect to it is that of the whole module.

Features of inner layers below the cut are not a function of its tensor. The trunk gives them too,
as they are final, and the top passes them through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hubretrain.modules.backbone import Backbone
from hubretrain.modules.graph import ModuleGraph, spatial_statistics
from hubretrain.modules.regions import cuts
from hubretrain.tensorflow import tf


@dataclass(frozen=True)
class Cut:
    """A module in two pieces: `top(trunk(images))` equals `backbone(images)`.

    Attributes:
        name: Name of the operation whose output is the cut, in the module's graph.
        kind: Type of that operation, such as `Relu6`.
        shape: Shape of what the trunk gives for one image: of the activations, such as (7, 7, 192);
            or, where the backbone has layers below the cut, the length of one vector: the
            activations, flattened, followed by the features of those layers.
        trunk: float32 images (n_images, image_size, image_size, 3), RGB in [0, 1], to activations
            (n_images, *shape), float32.
        top: Activations to what the backbone gives, float32 of shape (n_images, n_features), all
            its layers included. Gradients flow to the activations and to the variables; a
            `tf.GradientTape` watches the variables.
        n_below: Number of features of layers below the cut, the last ones of the trunk's vector.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    trunk: Callable[[tf.Tensor], tf.Tensor]
    top: Callable[[tf.Tensor], tf.Tensor]
    n_below: int = 0

    @property
    def activations_shape(self) -> tuple[int, ...]:
        """Shape of what the trunk gives for one image, without the features of layers below."""
        return (self.shape[0] - self.n_below,) if self.n_below else self.shape


def cut_below(backbone: Backbone, variables: Sequence[tf.Variable]) -> Cut:
    """Cut a backbone as high as possible with all of `variables` in the top.

    Args:
        backbone: A loaded module, with or without inner layers.
        variables: Variables that training is to change; with none, the top is the identity.

    Raises:
        ModuleError: The module's graph cannot be cut below them; the message says why.
    """
    graph = backbone.graph()
    first = _first_reader(graph, backbone, variables)
    for operation in reversed(cuts(graph)):
        if graph.position[operation] < first and _is_per_image(operation.outputs[0]):
            return _cut_at(graph, operation, backbone)
    raise graph.refused("every cut that no shortcut goes around lies above a layer to be trained")


def _first_reader(graph: ModuleGraph, backbone: Backbone, variables: Sequence[tf.Variable]) -> int:
    """Return the position of the first operation that depends on one of the variables."""
    index = {id(v): i for i, v in enumerate(backbone.variables)}
    read = [index[id(v)] for v in variables]
    if not graph.variables_read.issuperset(read):
        raise graph.refused("its function does not name the variables that it reads")
    return min((graph.first_reader.get(i, len(graph.path)) for i in read), default=len(graph.path))


def _is_per_image(tensor: Any) -> bool:
    """Return whether a tensor holds one row of numbers per image, of a known shape.

    Dense layers of maps are matrix products with a row for each position instead.
    """
    shape = tensor.shape
    is_computed = tensor.op.type != "Placeholder"
    return is_computed and tensor.dtype == tf.float32 and shape.is_fully_defined() and shape[0] == 2


def _cut_at(graph: ModuleGraph, operation: Any, backbone: Backbone) -> Cut:
    """Return the two pieces on either side of an operation's output."""
    activations = operation.outputs[0]
    shape = tuple(activations.shape[1:])
    points = graph.tensors(backbone.layer_names)
    is_below = [graph.position[t.op] < graph.position[operation] for t in points]
    below = [t for t, b in zip(points, is_below, strict=True) if b]
    above = [t for t, b in zip(points, is_below, strict=True) if not b]
    lower = graph.piece([graph.images], [activations, *below], backbone.variables)
    upper = graph.piece([activations], [graph.output, *above], backbone.variables)
    widths = [2 * t.shape[-1] for t in below]

    def trunk(images: tf.Tensor) -> tf.Tensor:
        result, *maps = lower(images)
        if not below:
            return result
        flat = tf.reshape(result, (-1, math.prod(shape)))
        return tf.concat([flat, *map(spatial_statistics, maps)], axis=1)

    def top(inputs: tf.Tensor) -> tf.Tensor:
        final: list[tf.Tensor] = []
        if below:
            flat, *final = tf.split(inputs, [math.prod(shape), *widths], axis=1)
            inputs = tf.reshape(flat, (-1, *shape))
        output, *maps = upper(inputs)
        if not points:
            return output
        computed = iter([spatial_statistics(m) for m in maps])
        passed = iter(final)
        features = [next(passed) if b else next(computed) for b in is_below]
        return tf.concat([output, *features], axis=1)

    size = backbone.stored.image_size
    given = (math.prod(shape) + sum(widths),) if below else shape
    return Cut(
        graph.point_name(operation),
        operation.type,
        given,
        _traced(trunk, (size, size, 3)),
        _traced(top, given),
        n_below=sum(widths),
    )


def _traced(function: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...]) -> Any:
    return tf.function(function, input_signature=[tf.TensorSpec((None, *shape), tf.float32)])
