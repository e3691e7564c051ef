"""A loaded module: images in, bottlenecks out, and its variables to train."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hubretrain.arrays import Float32Array
from hubretrain.errors import ModuleError, NotTrainableError, first_line
from hubretrain.modules.adapting import Network, class_output
from hubretrain.modules.complexity import complexity
from hubretrain.modules.graph import ModuleGraph, as_map, spatial_statistics
from hubretrain.modules.layers import LayerPoint
from hubretrain.modules.regions import layer_points
from hubretrain.modules.store import StoredModule, remember
from hubretrain.tensorflow import tf

import tensorflow_hub as hub  # isort: skip  (behind the door: it imports TensorFlow)

_log = logging.getLogger(__name__)


class Backbone:
    """A loaded module, checked on a probe batch.

    Args:
        stored: The module. If it was never probed, it is probed now and the result kept.
        layers: Names of inner layers (`StoredModule.layer_points`) whose features are to follow the
            module's own output.

    Attributes:
        stored: The module with its image size and number of features.
        layer_names: The inner layers, in the order of their features.
        variables: Every variable, in the module's order.
        trainable_variables: Those that training may change; empty where the module has none.

    Raises:
        ModuleError: It cannot be loaded, is no image feature vector module, or has no such layer.
        NotTrainableError: It is an ONNX module, which TensorFlow does not run.

    Examples:
        >>> from hubretrain import Backbone, resolve
        >>> backbone = Backbone(resolve("modules/small"))
        >>> images = np.zeros((2, 8, 8, 3), np.float32)  # RGB in [0, 1]
        >>> backbone(images).shape.as_list()
        [2, 5]
    """

    def __init__(self, stored: StoredModule, layers: Sequence[str] = ()) -> None:
        if stored.is_onnx:
            raise NotTrainableError(
                f"{stored.name} is an ONNX module, which is run as it is: it can be cached, "
                "screened and exported, but neither trained nor explained; choose another module."
            )
        self.stored, self.layer_names = stored, tuple(layers)
        self._loaded: Any = _load(stored)
        self._network = Network(self._loaded, stored.handle)
        self._takes_training = self._network.takes_training
        self.variables: list[tf.Variable] = list(getattr(self._loaded, "variables", ()))
        self.trainable_variables: list[tf.Variable] = list(
            getattr(self._loaded, "trainable_variables", ())
        )
        self._graphs: dict[bool, ModuleGraph] = {}
        self._functions: dict[tuple[bool, int], Any] = {}
        if not stored.probed:
            self.stored = self._probe()
            remember(self.stored)
        if self.layer_names:
            self.graph().tensors(self.layer_names)  # an unknown name is an error now, not later

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the bottlenecks of a batch of images.

        Args:
            images: float32 of shape (n_images, image_size, image_size, 3), RGB in [0, 1]; or
                of another height and width, if the module's graph can compute with them.
            training: Run BatchNorm and dropout as in training, if the module supports it.

        Returns:
            float32 of shape (n_images, n_features): the module's own output, and then mean and
            standard deviation (`spatial_statistics`) of each of `layer_names`.

        Raises:
            ModuleError: The module has no layer of such a name, or takes no such images.
        """
        if not self.layer_names and self._is_of_own_size(images):
            return self.own_output(images, training)
        # A function of its own, because a gradient tape does not look into an imported graph.
        return self._forward(training and self._takes_training, images.shape[1])(images)

    def own_output(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the module's own output; arguments as of a call."""
        return self._network(images, training, self.stored.value_range)

    def with_maps(self, images: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Return its own output, and the feature map of each of `layer_names`.

        To be called in a function that is traced; arguments as of a call.
        """
        if not self.layer_names and self._is_of_own_size(images):
            return [self.own_output(images, training)]
        graph = self.graph(training)
        ends = [graph.output, *graph.tensors(self.layer_names)]
        output, *maps = graph.piece([graph.images], ends, self.variables)(images)
        return [output, *map(as_map, maps)]

    def _is_of_own_size(self, images: tf.Tensor) -> bool:
        """Return whether images need not go through the flat graph, which is of no fixed size."""
        own = self.stored.image_size  # 0 while it is probed
        return not own or images.shape[1] in (None, own)

    def check_size(self, size: int, training: bool = False) -> None:
        """Raise where the module cannot take images of another height and width.

        Args:
            size: Pixels.
            training: Whether it is to take them in training, too.

        Raises:
            ModuleError: It cannot; the message says why.
        """
        self.graph(training and self._takes_training)
        images = tf.zeros((2, size, size, 3))
        try:
            shape = tuple(self(images).shape)  # in training it would change BatchNorm
        except Exception as error:  # TensorFlow raises many types where shapes do not fit
            raise self._refused_size(size, first_line(error)) from error
        if shape != (2, self.n_features):
            raise self._refused_size(size, f"of two it gives features of shape {shape}")

    def _refused_size(self, size: int, why: str) -> ModuleError:
        own = self.stored.image_size
        return ModuleError(
            f"{self.stored.name} takes images of {own} x {own} pixels, not of {size} x {size} "
            f"({why})."
        )

    @property
    def n_features(self) -> int:
        """Length of what it gives for an image: its own output, and twice each layer's width."""
        widths = {point.name: point.n_features for point in self.stored.layer_points or ()}
        return self.stored.n_features + sum(widths[name] for name in self.layer_names)

    def graph(self, training: bool = False) -> ModuleGraph:
        """Return the flat graph of the forward pass, traced at the first use.

        Raises:
            ModuleError: It cannot be made flat; the message says why.
        """
        if training not in self._graphs:
            with tf.init_scope():  # not as a part of a function that is being traced
                self._graphs[training] = self._trace(self.stored.image_size, training)
        return self._graphs[training]

    def _trace(self, size: int, training: bool) -> ModuleGraph:
        forward = functools.partial(self.own_output, training=training)
        name = self.stored.name
        return ModuleGraph(forward, self.variables, size, name, training=training)

    def replica(self) -> Backbone:
        """Return a copy with variables of its own, in the distribution strategy of this scope.

        Graphs are shared: in a strategy's scope a graph cannot be traced, only used.
        """
        copy = Backbone(self.stored)
        copy.layer_names, copy._graphs = self.layer_names, self._graphs
        return copy

    def _forward(self, training: bool, size: int) -> Any:
        """Return the function of a call that gives the layers too, of images of a size."""
        if (training, size) not in self._functions:
            spec = tf.TensorSpec((None, size, size, 3), tf.float32)
            features = functools.partial(self._all_features, training=training)
            self._functions[training, size] = tf.function(features, input_signature=[spec])
        return self._functions[training, size]

    def _all_features(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        output, *maps = self.with_maps(images, training)
        return tf.concat([output, *map(spatial_statistics, maps)], axis=1)

    @property
    def saved_object(self) -> Any:
        """Object of the SavedModel, for another SavedModel to contain."""
        return self._loaded

    @property
    def is_tf1(self) -> bool:
        """Whether it is in TensorFlow 1's format, whose graph cannot be trained further."""
        return isinstance(getattr(self._loaded, "graph", None), tf.Graph)

    @property
    def why_not_trainable(self) -> str:
        """Why training can change none of its variables; empty where it can."""
        if self.trainable_variables:
            return ""
        if self.is_tf1:
            return "is in TensorFlow 1's format, which TensorFlow 2 runs but cannot train"
        return "has no trainable variables"

    def layers(self) -> list[tuple[str, list[tf.Variable]]]:
        """Return (layer name, its trainable variables) of each layer, in network order.

        A layer's variables are those whose names agree up to the last `/`. The order is that in
        which a forward pass first reads one of them. The file's order may be alphabetical, so only
        this one makes "the last 23 layers" the same from every source.
        """
        layers: dict[str, list[tf.Variable]] = {}
        for variable in sorted(self.trainable_variables, key=self._reading_order()):
            name = variable.name.rpartition("/")[0] or variable.name
            layers.setdefault(name, []).append(variable)
        return list(layers.items())

    def _reading_order(self) -> Callable[[tf.Variable], int]:
        """Return the position of a variable in the order of reading; unread ones come last."""
        if not self.trainable_variables:
            return lambda _: 0
        size = self.stored.image_size
        spec = tf.TensorSpec((1, size, size, 3), tf.float32)
        forward = tf.function(lambda images: self(images)).get_concrete_function(spec)
        # A graph captures a variable's handle when its trace first reads the variable.
        position = {id(handle): i for i, handle in enumerate(forward.captured_inputs)}
        return lambda variable: position.get(id(variable.handle), len(position))

    def _probe(self) -> StoredModule:
        """Return the module with the image size and features of a pass over two images."""
        handle = self.stored.handle
        size = self.stored.image_size or self._network.image_size
        if not size:
            raise ModuleError(f"{handle} takes images of any size; set `image_size`, such as 224.")
        features = self._probe_features(size)
        if output := class_output(self._loaded, self.stored.name, features.shape[-1]):
            raise ModuleError(
                f"{handle} is a classifier ({features.shape[-1]:,} {output}); expected a feature "
                "vector module, which TF-Hub has beside most classifiers."
            )
        if not np.isfinite(features).all():
            raise ModuleError(
                f"{handle} gives NaN or infinite features for ordinary images; expected finite "
                "numbers. Its weights may be damaged, or its `value_range` another."
            )
        counted = complexity(self, size)
        return replace(
            self.stored,
            image_size=size,
            n_features=int(features.shape[1]),
            n_parameters=counted.n_parameters,
            gflops=counted.gflops,
            layer_points=self._find_layers(size),
        )

    def _find_layers(self, size: int) -> tuple[LayerPoint, ...]:
        """Return the points of the module's graph; none, with a note, where it has no maps."""
        try:
            points = layer_points(self._trace(size, training=False))
            reason = "its graph holds no feature maps"
        except ModuleError as error:
            points, reason = (), str(error)
        if not points:
            _log.info("%s offers its output only, no inner layers: %s", self.stored.name, reason)
        return points

    def _probe_features(self, size: int) -> Float32Array:
        """Return the bottlenecks of two images of noise, their shape checked."""
        handle = self.stored.handle
        noise = np.random.default_rng(0).random((2, size, size, 3), dtype=np.float32)
        try:
            features: Float32Array = self(tf.constant(noise)).numpy()
        except ModuleError:
            raise
        except Exception as error:
            raise ModuleError(
                f"{handle} refuses float32 images of shape (2, {size}, {size}, 3) "
                f"({first_line(error)}); expected an image feature vector module."
            ) from error
        if features.ndim != 2 or features.shape[0] != 2 or features.shape[1] < 1:
            raise ModuleError(
                f"{handle} gives shape {features.shape} for 2 images; expected feature vectors, "
                "(2, n_features), or maps, (2, height, width, n_features)."
            )
        if notes := self._network.form.notes():
            _log.info("%s: %s.", self.stored.name, ", ".join(notes))
        return features


def _load(stored: StoredModule) -> Any:
    """Load the SavedModel.

    One in TensorFlow 1's format may hold several graphs, told apart by tags: the one for serving
    is loaded.
    """
    reason, cause = "", None
    for tags in (None, ["serve"], []):
        try:
            return hub.load(str(stored.folder), tags=tags)
        except Exception as error:  # TensorFlow raises nearly every type on damaged models
            reason = reason or first_line(error)
            cause = cause or error
            if "tags" not in str(error):
                break
    raise ModuleError(
        f"{stored.folder} cannot be loaded as a SavedModel ({reason}); "
        "expected TF-Hub's feature vector format."
    ) from cause
