"""Modules in OpenVINO's own format.

A module is converted once, a SavedModel by way of TensorFlow, and kept:

    <store>/openvino/<name>-<key>/model.xml, model.bin, digests.json

The key is made of the module's digest, its image size and range, the names of its inner layers, and
OpenVINO's version. Later runs read it and import no TensorFlow; a damaged one is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hubretrain.arrays import Float32Array, Pixels
from hubretrain.data.images import to_unit
from hubretrain.errors import EngineError, first_line
from hubretrain.extraction.engines.openvino_library import ov, read, reason, storing
from hubretrain.extraction.engines.pooling import OUTPUT, layer_output, pooled, with_direct_maps
from hubretrain.modules import StoredModule, store_folder

_F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def converted(module: StoredModule, layers: Sequence[str] = ()) -> Any:
    """Return a module as an OpenVINO model, converted now if that was never done.

    Its input is uint8 of shape (n_images, image_size, image_size, 3). Its outputs are float32: the
    module's own, and the feature map of each of `layers`, which `pooled` is to make small.

    Raises:
        EngineError: OpenVINO cannot convert it.
        ModuleError: It cannot be loaded, or the store cannot be written.
    """
    folder = _folder_of(module, tuple(layers))
    with contextlib.suppress(EngineError):
        return read(folder)
    shutil.rmtree(folder, ignore_errors=True)  # missing or damaged
    if module.is_onnx:
        _convert_network(module, tuple(layers), folder)
    else:
        _convert(module, tuple(layers), folder)
    return read(folder)


def _folder_of(module: StoredModule, layers: tuple[str, ...]) -> Path:
    identity = (module.sha256, module.image_size, module.value_range, ov.get_version())
    described = repr((*identity, layers) if layers else identity)
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    return store_folder() / "openvino" / f"{module.name}-{key}"


def _convert_network(module: StoredModule, layers: tuple[str, ...], folder: Path) -> None:
    """Convert an ONNX network, and compare the result with ONNX Runtime's on noise."""
    from hubretrain.modules.onnx import PIXELS, features_model, open_session  # imports onnx

    shape = (2, module.image_size, module.image_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content = features_model(module, layers, maps=True).SerializeToString()
    try:
        model = ov.Core().read_model(content)
        if layers:
            content = features_model(module, layers).SerializeToString()
        expected = open_session(content, quiet=True).run([OUTPUT], {PIXELS: noise})[0]
        _check_features(model, layers, noise, expected, "ONNX Runtime")
    except RuntimeError as error:
        raise _not_converted(module, error, "onnxruntime") from error
    with storing(model, folder):
        pass


def _not_converted(module: StoredModule, error: Exception, other: str) -> EngineError:
    return EngineError(
        f"OpenVINO cannot convert {module.handle} ({reason(error)}); choose `engine={other}`."
    )


def _convert(module: StoredModule, layers: tuple[str, ...], folder: Path) -> None:
    """Convert by way of a SavedModel that takes uint8 pixels, as TensorFlow's engine does."""
    from hubretrain.data.images import to_unit_tensor  # imports TensorFlow
    from hubretrain.modules import Backbone  # imports TensorFlow
    from hubretrain.tensorflow import tf

    backbone = Backbone(module, layers)
    size = module.image_size

    @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8, "pixels")])  # type: ignore[untyped-decorator]
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        output, *maps = backbone.with_maps(to_unit_tensor(pixels))
        named = {layer_output(name): a_map for name, a_map in zip(layers, maps, strict=True)}
        return {OUTPUT: output, **named}

    noise = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    whole = tf.Module()
    whole.module, whole.forward = backbone.saved_object, forward
    with tempfile.TemporaryDirectory() as saved_model:
        try:
            tf.saved_model.save(whole, saved_model, signatures={"serving_default": forward})
        except tf.errors.OpError as error:
            raise EngineError(
                f"{saved_model} cannot be written ({first_line(error)}); free disk space, or set "
                "TMPDIR to another folder."
            ) from error
        try:
            model = with_direct_maps(ov.Core().read_model(saved_model))
            expected = backbone(tf.constant(to_unit(noise))).numpy()
            _check_features(model, layers, noise, expected, "TensorFlow")
        except RuntimeError as error:
            raise _not_converted(module, error, "tensorflow") from error
        with storing(model, folder):
            pass


def _check_features(
    model: Any, layers: Sequence[str], noise: Pixels, expected: Float32Array, library: str
) -> None:
    """Compare a conversion with another library on noise; one that differs is not stored.

    Args:
        model: As converted.
        layers: Names of its inner layers.
        noise: Images.
        expected: Their features by the other library.
        library: Its name.

    Raises:
        RuntimeError: The module's own output, or the statistics of a layer, differ by more than
            rounding: over 1e-4 of their length (float32 keeps 6e-8 per operation, and networks have
            hundreds of them in a row).
    """
    outputs = ov.Core().compile_model(pooled(model, layers), "CPU", _F32)(noise)
    *statistics, output = (outputs[i] for i in range(len(outputs)))
    features: Float32Array = np.concatenate([output, *statistics], axis=1)
    if features.shape != expected.shape:
        raise RuntimeError(f"it gives shape {features.shape}, {library} {expected.shape}")
    widths = [model.output(layer_output(name)).partial_shape[3].get_length() for name in layers]
    ends = np.cumsum([output.shape[1], *(2 * width for width in widths)])
    names = ["its features", *(f"means and deviations of layer {name}" for name in layers)]
    for start, end, name in zip([0, *ends], ends, names, strict=False):
        _check_close(features[:, start:end], expected[:, start:end], name, library)


def _check_close(given: Float32Array, expected: Float32Array, name: str, library: str) -> None:
    """Raise RuntimeError where numbers differ by over 1e-4 of their length."""
    scale = max(float(np.linalg.norm(expected)), 1e-30)
    error = float(np.linalg.norm(given - expected)) / scale
    if not error <= 1e-4:
        raise RuntimeError(f"{name} differ from {library}'s by {error:.1e}")
