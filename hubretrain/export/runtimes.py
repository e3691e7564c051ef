"""Runtimes of an exported model: LiteRT, ONNX Runtime and TensorFlow behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hubretrain.errors import RunError
from hubretrain.export import litert, onnx
from hubretrain.export.manifest import MODEL_OF, Export, pixels_name

FORMATS = ("litert", "litert_int8", "onnx", "savedmodel")


class Runtime(Protocol):
    """A function of pixels by size, float32 (n, size, size, 3) in [0, 1].

    It returns probabilities, float32 (n, n_classes).

    Attributes:
        name: Name of the library that runs the model.
    """

    name: str

    def __call__(self, pixels: Mapping[int, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Run a batch; one call at a time."""


class SavedModel:
    """The SavedModel in TensorFlow: slow to start, and what the other formats are tested against.

    Raises:
        RunError: TensorFlow cannot load it.
    """

    name = "TensorFlow"

    def __init__(self, export: Export) -> None:
        from hubretrain.tensorflow import tf

        self._tf, self._sizes = tf, export.sizes
        export.model("savedmodel")
        try:
            self._loaded: Any = tf.saved_model.load(str(export.folder))
            self._function = self._loaded.signatures["pixels"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise RunError(
                f"{export.folder} holds no SavedModel with a signature `pixels` ({error}); export "
                "again."
            ) from error

    def __call__(self, pixels: Mapping[int, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return probabilities, float32 (n_images, n_classes), of pixels by size."""
        inputs = {
            pixels_name(size, self._sizes): self._tf.constant(pixels[size]) for size in self._sizes
        }
        return np.asarray(self._function(**inputs)["probabilities"].numpy())


def open_runtime(export: Export, format: str | None = None) -> Runtime:
    """Open an exported model in a format.

    Args:
        export: The export.
        format: One of `FORMATS`; by default LiteRT if the export has it and it is installed, else
            TensorFlow.

    Raises:
        RunError: The export lacks that format, or its model is damaged.
        EngineError: The library that runs the format is not installed.
    """
    if format is None:
        has_litert = export.has("litert") and litert.is_installed()
        format = "litert" if has_litert else "savedmodel"
    if format == "savedmodel":
        return SavedModel(export)
    content, path = export.content(format), export.folder / MODEL_OF[format]
    if format == "onnx":
        return onnx.Onnx(content, export.sizes, path)
    return litert.LiteRT(content, export.sizes, path)
