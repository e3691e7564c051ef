"""A module, loaded: images in, bottlenecks out, and its variables to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hubretrain.errors import ModuleError, first_line
from hubretrain.modules.complexity import complexity
from hubretrain.modules.store import StoredModule, remember
from hubretrain.tensorflow import tf

import tensorflow_hub as hub  # isort: skip  (behind the door: it imports TensorFlow)


class Backbone:
    """A loaded module, checked on a probe batch.

    Args:
        stored: The module. One that was never probed is probed now, and what is found kept.

    Attributes:
        stored: The module with its image size and number of features.
        variables: Every variable, in the module's order.
        trainable_variables: Those that training may change; empty where the module has none.

    Raises:
        ModuleError: It cannot be loaded, or is no feature vector module.
    """

    def __init__(self, stored: StoredModule) -> None:
        self.stored = stored
        self._loaded: Any = _load(stored)
        self._function, self._takes_training = _callable(self._loaded, stored)
        self.variables: list[tf.Variable] = list(getattr(self._loaded, "variables", ()))
        self.trainable_variables: list[tf.Variable] = list(
            getattr(self._loaded, "trainable_variables", ())
        )
        if not stored.probed:
            self.stored = self._probe()
            remember(self.stored)

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Bottlenecks of a batch of images.

        Args:
            images: float32 of shape (n_images, image_size, image_size, 3), RGB in [0, 1].
            training: Run BatchNorm and dropout as in training, where the module can.

        Returns:
            float32 of shape (n_images, n_features).
        """
        low, high = self.stored.value_range
        if (low, high) != (0.0, 1.0):
            images = low + (high - low) * images
        return self._function(images, training) if self._takes_training else self._function(images)

    @property
    def saved_object(self) -> Any:
        """What the SavedModel holds, for another SavedModel to contain."""
        return self._loaded

    @property
    def is_tf1(self) -> bool:
        """Whether it is of TensorFlow 1's format, whose graph cannot be trained further."""
        return isinstance(getattr(self._loaded, "graph", None), tf.Graph)

    @property
    def why_not_trainable(self) -> str:
        """Why training can change none of its variables; empty where it can."""
        if self.trainable_variables:
            return ""
        if self.is_tf1:
            return "is of TensorFlow 1's format, which TensorFlow 2 runs but cannot train"
        return "has no trainable variables"

    def layers(self) -> list[tuple[str, list[tf.Variable]]]:
        """Trainable variables by layer, in network order: (layer name, its variables).

        A layer's variables are those whose names agree up to the last `/`. The order is that
        in which a forward pass first reads one of them, whatever the order in the file, so
        "the last 23 layers" are the same from every source.
        """
        found: dict[str, list[tf.Variable]] = {}
        for variable in sorted(self.trainable_variables, key=self._order_of_reading()):
            found.setdefault(variable.name.rpartition("/")[0] or variable.name, []).append(variable)
        return list(found.items())

    def _order_of_reading(self) -> Callable[[tf.Variable], int]:
        """The place of a variable in the order of reading; those that are never read come last."""
        if not self.trainable_variables:
            return lambda _: 0
        size = self.stored.image_size
        spec = tf.TensorSpec((1, size, size, 3), tf.float32)
        forward = tf.function(lambda images: self(images)).get_concrete_function(spec)
        place = {id(handle): i for i, handle in enumerate(forward.captured_inputs)}
        return lambda variable: place.get(id(variable.handle), len(place))

    def _probe(self) -> StoredModule:
        """Finds image size and number of features with a batch of two."""
        where = self.stored.handle
        if takes := _no_images(self._loaded):
            raise ModuleError(f"{where} takes {takes}; expected a module of images.")
        size = self.stored.image_size or _fixed_size(self._loaded)
        if not size:
            raise ModuleError(
                f"{where} takes images of any size; say which to use with --image-size, "
                "such as 224."
            )
        noise = np.random.default_rng(0).random((2, size, size, 3), dtype=np.float32)
        try:
            features = self(tf.constant(noise))
            if isinstance(features, dict):
                raise TypeError(f"it gives several things: {', '.join(sorted(features))}")
            features = np.asarray(features)
        except Exception as error:
            reason = first_line(error)
            raise ModuleError(
                f"{where} refuses float32 images of shape (2, {size}, {size}, 3) ({reason}); "
                "expected an image feature vector module."
            ) from error
        if features.ndim != 2 or features.shape[0] != 2 or features.shape[1] < 1:
            raise ModuleError(
                f"{where} gives shape {features.shape} for 2 images; expected a feature vector, "
                "(2, n_features). Feature maps and classifiers of other kinds do not serve."
            )
        if said := _class_scores(self._loaded, self.stored.name, features.shape[-1]):
            raise ModuleError(
                f"{where} is a classifier ({features.shape[-1]:,} {said}); expected a feature "
                "vector module, which TF-Hub has beside most classifiers."
            )
        if not np.isfinite(features).all():
            raise ModuleError(
                f"{where} gives NaN or infinite features for ordinary images; expected finite "
                "numbers. Its weights may be damaged, or its input range another (--value-range)."
            )
        found = complexity(self, size)
        return replace(
            self.stored,
            image_size=size,
            n_features=int(features.shape[1]),
            n_parameters=found.n_parameters,
            gflops=found.gflops,
        )


def _callable(loaded: Any, stored: StoredModule) -> tuple[Callable[..., tf.Tensor], bool]:
    """What to call, and whether it takes `training`."""
    if callable(loaded):
        concrete = getattr(loaded.__call__, "concrete_functions", ())
        names = {n for f in concrete for n in f.structured_input_signature[1]}
        names |= {a for f in concrete for a in getattr(f.function_type, "parameters", ())}
        return loaded, "training" in names
    signatures = getattr(loaded, "signatures", {})
    for key in ("image_feature_vector", "default", "serving_default"):
        if key in signatures and len(signatures[key].structured_input_signature[1]) == 1:
            return _signature(signatures[key]), False
    raise ModuleError(
        f"{stored.handle} cannot be called and has no serving signature of one input "
        f"(its signatures: {', '.join(signatures) or 'none'}); expected a feature vector module."
    )


def _load(stored: StoredModule) -> Any:
    """Loads the SavedModel; one of TensorFlow 1 may hold several graphs, of which one serves."""
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


def _functions(loaded: Any) -> list[Any]:
    """Every concrete function that the module offers."""
    found = list(getattr(loaded.__call__, "concrete_functions", ()) if callable(loaded) else ())
    return found + list(getattr(loaded, "signatures", {}).values())


def _no_images(loaded: Any) -> str:
    """What the module takes, in words, where that cannot be a batch of images; else empty."""
    specs = [
        spec
        for function in _functions(loaded)
        for spec in tf.nest.flatten(function.structured_input_signature)
        if isinstance(spec, tf.TensorSpec)
    ]
    if not specs or any(s.dtype.is_floating and s.shape.rank in (None, 4) for s in specs):
        return ""
    if any(spec.dtype == tf.string for spec in specs):
        return "strings, so it is a text module"
    return f"{specs[0].dtype.name} of shape {specs[0].shape}"


def _class_scores(loaded: Any, called: str, n_outputs: int) -> str:
    """What a classifier's output is called; empty where it is none.

    Many feature vectors have 1,000 or so numbers, so the length alone does not tell.
    """
    names = {
        name
        for function in _functions(loaded)
        if isinstance(function.structured_outputs, dict)
        for name in function.structured_outputs
    }
    for name in ("logits", "probabilities", "predictions", "classes", "scores"):
        if name in names and "feature_vector" not in names:
            return name
    return "classes" if n_outputs in (1000, 1001) and "classif" in called else ""


def _signature(function: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Calls a signature by its one input and takes its feature vector."""
    (argument,) = function.structured_input_signature[1]
    outputs = function.structured_outputs
    key = next((k for k in ("default", "feature_vector") if k in outputs), next(iter(outputs)))
    return lambda images: function(**{argument: images})[key]


def _fixed_size(loaded: Any) -> int:
    """Height and width that the module's own signatures fix, or 0."""
    for function in _functions(loaded):
        for spec in tf.nest.flatten(function.structured_input_signature):
            shape = getattr(spec, "shape", None)
            if shape is not None and shape.rank == 4 and shape[1] and shape[1] == shape[2]:
                return int(shape[1])
    return 0
