"""Networks of Keras Applications as modules that take images in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from hubretrain.errors import ModuleError, first_line
from hubretrain.hdf5 import open_hdf5
from hubretrain.modules.builders.keras_export import export_keras
from hubretrain.modules.keras_handles import APPLICATIONS, NONE, KerasHandle
from hubretrain.tensorflow import tf

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

# ImageNet's mean and standard deviation per channel, from
# tf_keras/src/applications/imagenet_utils.py: Caffe's of pixels in [0, 255], Torch's in [0, 1].
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_DEVIATION = (0.229, 0.224, 0.225)


def build(handle: KerasHandle) -> tf_keras.Model:
    """Return the network without its classifier, its last feature map averaged over positions.

    Returns:
        A model from float32 RGB images (n, image_size, image_size, 3), in the range that the
        application's `preprocess_input` gives, to float32 features (n, n_features). Random
        weights are the same wherever they are drawn by the same version of TensorFlow.

    Raises:
        ModuleError: The weights could not be downloaded, or are of another architecture.
    """
    make = getattr(tf_keras.applications, handle.application)
    size = handle.image_size
    options: dict[str, Any] = {"alpha": handle.alpha} if handle.alpha is not None else {}
    tf_keras.utils.set_random_seed(handle.seed)
    file = handle.weights_file
    if file is not None and not file.is_file():
        raise ModuleError(f"{file} does not exist; expected a file of weights for {handle}.")
    weights = None if handle.weights == NONE or file is not None else handle.weights
    try:
        model = make(
            weights=weights,
            include_top=False,
            pooling="avg",
            input_shape=(size, size, 3),
            **options,
        )
    except Exception as error:  # Keras raises a bare Exception for failed downloads
        raise ModuleError(f"{handle} cannot be built ({first_line(error)}).") from error
    if file is not None:
        _load(model, file, handle)
    return model


def export(handle: KerasHandle, folder: Path) -> None:
    """Build a network and write it as a module; see `export_keras`.

    Raises:
        ModuleError: See `build`.
    """
    export_keras(
        build(handle), folder, preprocess=preprocessing(APPLICATIONS[handle.application].range)
    )


def preprocessing(kind: str) -> Callable[[Any], Any]:
    """Return the function from RGB in [0, 1] to the range that a network expects.

    Each is the `preprocess_input` of the applications with that range, for pixels in [0, 1]
    instead of [0, 255].

    Args:
        kind: Range of an `Application`.
    """
    if kind == "tf":
        return lambda images: images * 2.0 - 1.0
    if kind == "caffe":
        return lambda images: images[..., ::-1] * 255.0 - tf.constant(_CAFFE_MEAN_BGR)
    if kind == "torch":
        mean, deviation = tf.constant(_TORCH_MEAN), tf.constant(_TORCH_DEVIATION)
        return lambda images: (images - mean) / deviation
    return lambda images: images * 255.0


def _load(model: tf_keras.Model, file: Path, handle: KerasHandle) -> None:
    """Load weights from a file in their order, as Keras does; none may be missing."""
    try:
        if h5py.is_hdf5(file):
            open_hdf5(file, is_ours=False).close()  # Keras follows links and reads any other file
        model.load_weights(str(file))
    except Exception as error:  # ValueError, KeyError, OSError of h5py, TensorFlow's own
        n = model.count_params()
        raise ModuleError(
            f"{file} does not hold weights of {handle}, {n:,} parameters without classifier "
            f"({first_line(error)}); expected what Keras' save_weights writes of the same "
            "network with include_top=False."
        ) from error
