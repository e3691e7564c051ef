"""Which function of a SavedModel is the network, what it takes, and what its output is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.tensorflow import tf

_SIGNATURES = ("image_feature_vector", "default", "serving_default")
VECTORS = (
    *("default", "feature_vector", "features", "embedding", "embeddings"),
    *("pooler_output", "image_embeds", "pooled_output"),
)
"""What an output of features is called, the surest first."""
_CLASSES = ("logits", "probabilities", "predictions", "classes", "scores")


@dataclass(frozen=True)
class ChosenFunction:
    """The function that is the network.

    Attributes:
        call: The function.
        takes_training: Whether it takes `training`.
        spec: What it says of its images, None where it says nothing.
        argument: Name of its one input, of a signature; it is called with positions otherwise.
    """

    call: Callable[..., Any]
    takes_training: bool
    spec: Any
    argument: str | None = None


def choose_function(loaded: Any, handle: str) -> ChosenFunction:
    """Return the function of a loaded SavedModel that takes images.

    Args:
        loaded: What loading the SavedModel gave.
        handle: The module's handle, for messages.

    Raises:
        ModuleError: None does.
    """
    if inputs := _non_image_inputs(loaded):
        raise ModuleError(f"{handle} takes {inputs}; expected a module of images.")
    if callable(loaded):
        concrete = getattr(loaded.__call__, "concrete_functions", ())
        names = {n for f in concrete for n in f.structured_input_signature[1]}
        names |= {a for f in concrete for a in getattr(f.function_type, "parameters", ())}
        specs = sorted(filter(_may_be_images, specs_of(concrete)), key=_preference)
        return ChosenFunction(loaded, "training" in names, specs[0] if specs else None)
    signatures = {
        key: function
        for key, function in getattr(loaded, "signatures", {}).items()
        if len(function.structured_input_signature[1]) == 1
        and all(map(_may_be_images, specs_of([function])))
    }
    keys = [key for key in _SIGNATURES if key in signatures] or list(signatures)
    if not keys or (keys[0] not in _SIGNATURES and len(keys) > 1):
        known = ", ".join(getattr(loaded, "signatures", {})) or "none"
        raise ModuleError(
            f"{handle} cannot be called and has no serving signature of one input (its signatures: "
            f"{known}); expected a feature vector module: export it with one signature "
            "serving_default, from images to features."
        )
    function = signatures[keys[0]]
    (argument,) = function.structured_input_signature[1]
    (spec,) = specs_of([function])
    return ChosenFunction(function, takes_training=False, spec=spec, argument=argument)


def functions_of(loaded: Any) -> list[Any]:
    """Return every concrete function that a SavedModel offers."""
    functions = list(getattr(loaded.__call__, "concrete_functions", ()) if callable(loaded) else ())
    return functions + list(getattr(loaded, "signatures", {}).values())


def specs_of(functions: Any) -> list[Any]:
    """Return what some concrete functions say of their tensors."""
    return [
        spec
        for function in functions
        for spec in tf.nest.flatten(function.structured_input_signature)
        if isinstance(spec, tf.TensorSpec)
    ]


def vector_output(outputs: Any, handle: str) -> Any:
    """Return the one output of a call that holds the features.

    Args:
        outputs: What the function gave: a tensor, or several by name or in order.
        handle: The module's handle, for messages.

    Raises:
        ModuleError: It gave several, and none is called as features are.
    """
    if isinstance(outputs, Mapping):
        return outputs[_vector_name(outputs, handle)]
    if isinstance(outputs, (list, tuple)):
        if len(outputs) != 1:
            raise ModuleError(
                f"{handle} gives {len(outputs)} outputs without names; expected one: export it "
                "with the features alone."
            )
        return outputs[0]
    return outputs


def _vector_name(outputs: Mapping[str, Any], handle: str) -> str:
    names = [name for name in VECTORS if name in outputs]
    if not names and len(outputs) != 1:
        shapes = ", ".join(f"{name} {_shape(outputs[name])}" for name in sorted(outputs))
        raise ModuleError(
            f"{handle} gives several outputs: {shapes}; expected one, or one called "
            f"{', '.join(VECTORS[:4])} or {VECTORS[4]}: export it with the features alone."
        )
    return names[0] if names else next(iter(outputs))


def class_output(loaded: Any, module: str, n_outputs: int) -> str:
    """Return what a classifier's output is called; empty where the module is no classifier.

    Many feature vectors have about 1,000 numbers, so their length alone decides nothing, and what
    another function of the module is called decides nothing where its output is of another length.

    Args:
        loaded: The loaded SavedModel.
        module: Its name.
        n_outputs: Length of the vectors that it gives.
    """
    for function in functions_of(loaded):
        outputs = function.structured_outputs
        if isinstance(outputs, Mapping) and not any(name in outputs for name in VECTORS):
            for name in _CLASSES:
                if name in outputs and _shape(outputs[name])[-1:] in ((n_outputs,), (None,), ()):
                    return name
    return "classes" if n_outputs in (1000, 1001) and "classif" in module else ""


def _shape(output: Any) -> tuple[int | None, ...]:
    shape = getattr(output, "shape", None)
    return () if shape is None or shape.rank is None else tuple(shape.as_list())


def _may_be_images(spec: Any) -> bool:
    is_number = spec.dtype.is_floating or spec.dtype.is_integer
    return is_number and spec.shape.rank in (None, 4)


def _preference(spec: Any) -> tuple[bool, bool]:
    """Return the order of what one function says of its images: any number of them first."""
    fixes_number = spec.shape.rank is not None and spec.shape[0] is not None
    return fixes_number, not spec.dtype.is_floating


def _non_image_inputs(loaded: Any) -> str:
    """Return what the module takes, in words; empty where that may be a batch of images."""
    specs = specs_of(functions_of(loaded))
    if not specs or any(map(_may_be_images, specs)):
        return ""
    if any(spec.dtype == tf.string for spec in specs):
        return "strings, so it is a text module or decodes image files itself"
    return f"{specs[0].dtype.name} of shape {specs[0].shape}"
