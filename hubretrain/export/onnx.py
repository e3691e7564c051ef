"""Converts to ONNX with tf2onnx, and runs ONNX models; an extra: `hubretrain[onnx]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubretrain.errors import EngineError, RunError, first_line
from hubretrain.export.manifest import pixels_name
from hubretrain.modules.onnx import INSTALL, open_session
from hubretrain.quiet import silent_stderr

OPSET = 17


class Onnx:
    """An ONNX model on the CPU.

    Args:
        model: The bytes of an `.onnx` file.
        sizes: Heights and widths of the inputs, pixels.
        path: The file, named in errors.

    Raises:
        EngineError: ONNX Runtime is not installed.
        RunError: The bytes are no ONNX model.
    """

    name = "ONNX Runtime"

    def __init__(self, model: bytes, sizes: Sequence[int], path: Path) -> None:
        self._sizes = sizes
        try:
            self._session = open_session(model)
        except EngineError:
            raise
        except Exception as error:  # it raises types of its own
            raise RunError(f"{path} cannot be run ({first_line(error)}); export again.") from error

    def __call__(self, pixels: Mapping[int, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return probabilities, float32 (n_images, n_classes), of pixels by size."""
        inputs = {pixels_name(size, self._sizes): pixels[size] for size in self._sizes}
        return np.asarray(self._session.run(["probabilities"], inputs)[0])


def convert(saved_model: Path, path: Path) -> None:
    """Convert the signature `pixels` of a SavedModel to an ONNX model.

    Args:
        saved_model: The SavedModel's folder.
        path: The file to write.

    Raises:
        EngineError: tf2onnx is not installed, or the model uses an operation that ONNX lacks.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise EngineError(f"tf2onnx is not installed ({error}); {INSTALL}") from None
    import logging

    from hubretrain.tensorflow import tf

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    loaded = tf.saved_model.load(str(saved_model))
    function = loaded.signatures["pixels"]
    specs = [
        tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for name, spec in function.structured_input_signature[1].items()
    ]

    def of(*pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        names = [spec.name for spec in specs]
        return function(**dict(zip(names, pixels, strict=True)))

    try:
        with silent_stderr():
            tf2onnx.convert.from_function(
                tf.function(of), input_signature=specs, opset=OPSET, output_path=str(path)
            )
    except Exception as error:  # it raises types of its own
        reason = first_line(error)[:200]
        raise EngineError(f"the model cannot be converted to ONNX ({reason})") from error
