"""Models of Keras 3, in files or as presets of keras-hub, as modules.

A script, too, for an environment that has keras-hub but not hubretrain, so nothing of hubretrain is
imported here, and errors are `ValueError`:

    python -I keras_models.py '{"preset": ..., "folder": ..., ...}'
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERAS_SUFFIX = ".keras"
_PROBABILITIES = ("softmax", "sigmoid")
#: Backbones of keras-hub whose first token stands for the image; others say by `use_class_token`.
_WITH_CLASS_TOKEN = ("DINOV2Backbone", "DINOV3Backbone", "DeiTBackbone")


def read_keras_file(path: Path) -> tuple[int, bool]:
    """Read what a `.keras` file says of itself; it imports no Keras.

    Returns:
        The major version of the Keras that wrote it, and whether its model takes levels, 0 to 255.

    Raises:
        ValueError: It is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            version = str(json.loads(archive.read("metadata.json"))["keras_version"])
            config = json.loads(archive.read("config.json"))["config"]
        return int(version.split(".")[0]), _takes_levels(config)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no file that Keras' `model.save(FILE.keras)` writes, or is truncated "
            f"({error}); write or copy it again."
        ) from error


def _takes_levels(config: dict[str, Any]) -> bool:
    """Return whether one of the first layers scales 255 to a small number.

    That is how networks of Keras Applications and of Keras' guides begin.
    """
    for layer in config.get("layers", [])[:3]:
        of_layer = layer["config"]
        if layer["class_name"] == "Rescaling":
            return bool(_largest(of_layer["scale"]) < 0.1)
        if layer["class_name"] == "Normalization":
            return bool(_largest(of_layer.get("mean") or 0) > 2)
    return False


def _largest(value: Any) -> float:
    return max(map(_largest, value)) if isinstance(value, list) else abs(float(value))


def load_file(path: Path, keras: Any) -> Any:
    """Return the model of a `.keras` file without its classifier; its code is not run.

    Args:
        path: The file.
        keras: Keras 3 or `tf_keras`, whichever wrote it.

    Raises:
        ValueError: It cannot be loaded, or gives no features of images.
    """
    try:
        model = keras.models.load_model(str(path), compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} cannot be loaded ({reason}); where a layer is of your own code or a Lambda, "
            "write the model by `model.export(FOLDER)` there and name the folder."
        ) from error
    return features_of(model, keras, str(path))


def features_of(model: Any, keras: Any, name: str) -> Any:
    """Return the model of what a classifier classifies, maps averaged over positions.

    Args:
        model: A model of one input and one output.
        keras: The library that it is of.
        name: What it is called in messages.

    Raises:
        ValueError: It has several inputs or outputs, or gives neither vectors nor maps.
    """
    if len(model.inputs or ()) != 1 or len(model.outputs or ()) != 1:
        raise ValueError(f"{name} has several inputs or outputs; expected images to features.")
    output, layers = model.outputs[0], list(model.layers)
    while len(layers) > 1 and _is_classifier(layers[-1]):
        output = layers.pop().input
    if len(output.shape) == 4:
        output = keras.layers.GlobalAveragePooling2D(name="hubretrain_pool")(output)
    if len(output.shape) != 2:
        shape = tuple(output.shape)
        raise ValueError(f"{name} gives {shape}; expected vectors, (n, d), or maps, (n, h, w, d).")
    return model if output is model.outputs[0] else keras.Model(model.inputs[0], output)


def _is_classifier(layer: Any) -> bool:
    """Return whether a last layer makes probabilities, or hands on what the one before made."""
    kind = type(layer).__name__
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    return kind == "Softmax" or (kind in ("Dense", "Activation") and activation in _PROBABILITIES)


def load_preset(preset: str, random_weights: bool, image_size: int | None) -> tuple[Any, Any]:
    """Return a backbone of keras-hub with pooled output, and its preprocessing.

    Args:
        preset: Name of a preset, its handle (`kaggle://`, `hf://`), or its folder.
        random_weights: Draw the weights instead of loading them.
        image_size: Height and width of images, pixels; None for the preset's.

    Returns:
        A model of images `(n, image_size, image_size, 3)`, and the function from RGB in [0, 1] to
        what it takes: scale and offset of the preset's `ImageConverter`.

    Raises:
        ValueError: It is no preset of an image backbone.
    """
    import keras_hub  # before Keras, whose import takes seconds

    import keras  # isort: skip

    keras.utils.set_random_seed(0)
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except (OSError, ValueError) as error:
        raise ValueError(_why_no_preset(preset, str(error), keras_hub.__version__)) from error
    shape = {"image_shape": (image_size, image_size, 3)} if image_size else {}
    try:
        backbone = keras_hub.models.Backbone.from_preset(
            preset, load_weights=not random_weights, **shape
        )
    except ValueError as error:
        if image_size and "could not be loaded" in str(error):
            raise ValueError(f"its weights are not of {image_size} pixels") from error
        raise
    if len(backbone.inputs) != 1 or isinstance(backbone.output, (dict, list)):
        raise ValueError(f"{preset} is no preset of a backbone of one image and one output.")
    size = backbone.inputs[0].shape[1] or image_size or (converter.image_size or (None,))[0]
    if size is None:
        raise ValueError(f"{preset} takes images of any size; set the image size, such as 224.")
    if image_size not in (None, size):
        raise ValueError(f"it takes images of {size} pixels alone")
    images = keras.Input((size, size, 3), name="images")
    features = backbone(images)
    if len(features.shape) == 4:
        features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    elif len(features.shape) == 3:
        has_token = getattr(backbone, "use_class_token", None)
        if has_token is None:
            has_token = type(backbone).__name__ in _WITH_CLASS_TOKEN
        features = features[:, 0] if has_token else keras.ops.mean(features, 1)
    return keras.Model(images, features, name="backbone"), preprocessing(converter)


def _why_no_preset(preset: str, reason: str, version: str) -> str:
    """Return why a preset's `ImageConverter` cannot be loaded, and what to do."""
    if "Unknown preset" in reason:
        return (
            f"it is no preset of keras-hub {version}, no handle and no folder; "
            "keras_hub.models.Backbone.presets lists them"
        )
    if "image_converter.json" in reason:
        return (
            "it does not say how images are scaled; add the ImageConverter of its network by "
            f"save_to_preset({preset!r}), as the preset of a whole classifier has it"
        )
    return reason


def preprocessing(converter: Any) -> Callable[[Any], Any]:
    """Return the function from RGB in [0, 1] to what an `ImageConverter` makes of levels."""
    import numpy as np

    scale = np.float32(1.0 if converter.scale is None else converter.scale)
    offset = np.float32(0.0 if converter.offset is None else converter.offset)
    return lambda images: images * (np.float32(255) * scale) + offset


def export_keras3(model: Any, folder: Path, prepare: Callable[[Any], Any] | None = None) -> None:
    """Write a model of Keras 3 as a module in TF-Hub's format, which can be trained.

    `keras_export.export_keras` describes the format. Names of traced functions are part of it.

    Args:
        model: Model of images to vectors.
        folder: Folder to write.
        prepare: Operations before the model, which become part of the module.
    """
    import tensorflow as tf

    inputs = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="inputs")

    def call(images: Any, training: bool = False) -> Any:
        if prepare is not None:
            images = prepare(images)
        return tf.cast(model(images, training=training), tf.float32)

    traced = tf.function(call)
    for training in (False, True):
        traced.get_concrete_function(inputs, training=training)

    def serve(inputs: Any) -> dict[str, Any]:
        return {"feature_vector": traced(inputs, training=False)}

    signature = tf.function(serve).get_concrete_function(inputs)
    module = tf.train.Checkpoint(
        variables=[v.value for v in model.variables],
        trainable_variables=[v.value for v in model.trainable_variables],
    )
    module.__call__ = traced
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})


def main(preset: str, folder: str, random_weights: bool, image_size: int | None) -> None:
    """Write a preset as a module; arguments as of `load_preset` and `export_keras3`."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    model, prepare = load_preset(preset, random_weights, image_size)
    export_keras3(model, Path(folder), prepare)


if __name__ == "__main__":
    try:
        main(**json.loads(sys.argv[1]))
    except Exception as error:  # the libraries raise many types; the last line is what is shown
        sys.exit(" ".join(str(error).split())[:500])
