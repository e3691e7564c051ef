"""What runs an exported model: LiteRT, ONNX Runtime, or TensorFlow, each alike to its callers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hubretrain.errors import RunError
from hubretrain.export import litert as litert_door
from hubretrain.export import onnx as onnx_door
from hubretrain.export.manifest import MODEL_OF, Export, pixels_name

FORMATS = ("litert", "litert_int8", "onnx", "savedmodel")


class Runtime(Protocol):
    """Pixels by size, float32 (n, size, size, 3) in [0, 1], become probabilities (n, n_classes)."""

    name: str

    def __call__(self, pixels: Mapping[int, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Runs a batch; one call at a time."""


class SavedModel:
    """The SavedModel in TensorFlow: slow to begin, and what the others are measured against.

    Raises:
        RunError: TensorFlow cannot load it.
    """

    name = "TensorFlow"

    def __init__(self, exported: Export) -> None:
        from hubretrain.tensorflow import tf

        self._tf, self._sizes = tf, exported.sizes
        exported.model("savedmodel")
        try:
            self._loaded: Any = tf.saved_model.load(str(exported.folder))
            self._function = self._loaded.signatures["pixels"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise RunError(f"{exported.folder} holds no SavedModel that serves ({error}).") from (
                error
            )

    def __call__(self, pixels: Mapping[int, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Probabilities, float32 (n_images, n_classes), of pixels by size."""
        inputs = {
            pixels_name(size, self._sizes): self._tf.constant(pixels[size]) for size in self._sizes
        }
        return np.asarray(self._function(**inputs)["probabilities"].numpy())


def open_runtime(exported: Export, form: str | None = None) -> Runtime:
    """Opens the model in a format.

    Args:
        exported: The export.
        form: One of `FORMATS`; by default LiteRT where it is there, else TensorFlow.

    Raises:
        RunError: The model is not there in that format, or damaged, or of other classes.
        EngineError: What runs it is not installed.
    """
    if form is None:
        can = exported.has("litert") and litert_door.is_installed()
        form = "litert" if can else "savedmodel"
    if form == "savedmodel":
        return SavedModel(exported)
    content, place = exported.content(form), exported.folder / MODEL_OF[form]
    if form == "onnx":
        return onnx_door.Onnx(content, exported.sizes, place)
    return litert_door.LiteRT(content, exported.sizes, place)
