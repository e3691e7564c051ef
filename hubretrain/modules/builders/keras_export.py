"""Keras backbones as modules: trainable SavedModels in TF-Hub's format.

The format is the reusable SavedModel of https://www.tensorflow.org/hub/reusable_saved_models with
the image feature vector of https://www.tensorflow.org/hub/common_saved_model_apis/images. It holds
variables and traced functions only, nothing of Keras, so any TensorFlow 2 loads it.

The names of the traced functions (`call`, `serve`) are part of the SavedModel: renaming one changes
the digest of every module that is built, and every cache made with it is refused.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubretrain.errors import ModuleError, first_line
from hubretrain.modules.builders import keras_models
from hubretrain.tensorflow import tf

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)


def export_keras(
    model: tf_keras.Model,
    folder: str | os.PathLike[str],
    *,
    preprocess: Callable[[Any], Any] | None = None,
) -> None:
    """Write a pooled Keras model as a module that can be cached, fine-tuned and exported.

    `hub.load(folder)` then returns an object with

    - `__call__(images, training=False)`: float32 RGB images `(batch, height, width, 3)` in
      [0, 1] to float32 features `(batch, n_features)`; height and width are the model's, or
      free where the model's are. With `training=True` batch normalisation uses the batch's
      statistics and updates its moving averages in the same call, and dropout is active;
    - `variables` and `trainable_variables`: lists in network order, named
      `<layer>/<weight>:0`, so that what precedes the last slash groups them by layer;
    - `regularization_losses`: a list of functions without arguments that return a scalar;
    - `signatures["serving_default"]`: `inputs` to `feature_vector`, without training.

    Args:
        model: Model of one image input and one output `(batch, n_features)`; a layer that is not
            trainable stays so.
        folder: Folder to write, with its parents; it appears complete or not at all.
        preprocess: TensorFlow operations from images in [0, 1] to the range that the model
            expects; they become part of the module.

    Raises:
        ModuleError: The folder is not empty or cannot be written, the model is no image backbone,
            or the names of its variables do not tell their layers.
    """
    folder = Path(folder)
    _check_backbone(model)
    _check_names([variable.name for variable in model.variables])
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModuleError(f"{folder} exists already; delete it, or choose another folder.")
    module, signatures = _trace(model, preprocess)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A folder beside it, because a rename is atomic only within a file system.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
            written = Path(aside, folder.name)
            tf.saved_model.save(module, str(written), signatures=signatures)
            written.replace(folder)
    except (OSError, tf.errors.OpError) as error:
        raise ModuleError(
            f"{folder} cannot be written: {first_line(error)}; free disk space or fix permissions."
        ) from error


def export_file(path: Path, folder: Path) -> None:
    """Write the model of a `.keras` file as a module of what it classifies.

    Args:
        path: File of Keras 3, or of `tf_keras`.
        folder: Folder to write, which does not exist yet.

    Raises:
        ModuleError: It cannot be loaded, or gives no features of images.
    """
    try:
        version, _ = keras_models.read_keras_file(path)
        if version < 3:
            export_keras(keras_models.load_file(path, tf_keras), folder)
            return
        os.environ["KERAS_BACKEND"] = "tensorflow"
        import keras

        keras_models.export_keras3(keras_models.load_file(path, keras), folder)
    except ValueError as error:
        raise ModuleError(str(error)) from error


def _check_backbone(model: tf_keras.Model) -> None:
    """Raise unless the model maps images to feature vectors."""
    if len(model.inputs or ()) != 1 or len(model.outputs or ()) != 1:
        raise ModuleError(f"The model {model.name} needs exactly one input and one output.")
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4 or shape[3] != 3:
        raise ModuleError(
            f"The model {model.name} takes {shape}; expected RGB images (batch, height, width, 3)."
        )
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or shape[1] is None:
        raise ModuleError(
            f"The model {model.name} returns {shape}; expected pooled features "
            "(batch, n_features), as with pooling='avg'."
        )


def _check_names(names: list[str]) -> None:
    """Raise unless every variable's name tells its layer and no two are the same."""
    without_layer = [name for name in names if "/" not in name]
    if without_layer:
        raise ModuleError(f"The variable {without_layer[0]} names no layer before a slash.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModuleError(f"Two variables are named {twice}; give the layers different names.")


def _trace(
    model: tf_keras.Model, preprocess: Callable[[Any], Any] | None
) -> tuple[tf.train.Checkpoint, dict[str, Any]]:
    """Return the object to be saved, its functions traced, and its signatures."""
    inputs = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="inputs")

    def call(images: Any, training: bool = False) -> Any:
        if preprocess is not None:
            images = preprocess(images)
        return tf.cast(model(images, training=training), tf.float32)

    traced = tf.function(call)
    for training in (False, True):
        traced.get_concrete_function(inputs, training=training)

    def serve(inputs: Any) -> dict[str, Any]:
        return {"feature_vector": traced(inputs, training=False)}

    # A concrete function, because saving would trace any other one twice more.
    signature = tf.function(serve).get_concrete_function(inputs)

    # The Keras model itself is not attached, as saving would then trace functions of each of its
    # layers, which nobody calls.
    module = tf.train.Checkpoint(
        variables=list(model.variables),
        trainable_variables=list(model.trainable_variables),
        regularization_losses=_regularization_losses(model),
    )
    module.__call__ = traced
    return module, {"serving_default": signature}


def _regularization_losses(model: tf_keras.Model) -> list[Any]:
    """Return one function for the sum of all weight penalties; none where there are none."""
    if not model.losses:
        return []
    penalty = tf.function(lambda: tf.add_n(model.losses), input_signature=[])
    penalty.get_concrete_function()
    return [penalty]
