"""Runtimes of an exported model: LiteRT, ONNX Runtime and TensorFlow behind one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hubretrain.errors import RunError
from hubretrain.evaluation import at_temperature
from hubretrain.export import litert, onnx
from hubretrain.export.manifest import MODEL_OF, Export, pixels_name
from hubretrain.export.views import AveragedView

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


class OverViews:
    """A model whose probabilities are averaged over views, as an export with `tta` does itself.

    Args:
        runtime: A model that takes images as they are.
        views: The views.
        temperature: Its calibration temperature: probabilities are averaged without it.
        multi_label: Whether an image may have several labels, so that no row sums to 1.
    """

    def __init__(
        self,
        runtime: Runtime,
        views: Sequence[AveragedView],
        temperature: float,
        multi_label: bool = False,
    ) -> None:
        self.name, self._runtime = runtime.name, runtime
        self._views, self._temperature, self._multi_label = views, temperature, multi_label

    def __call__(self, pixels: Mapping[int, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return probabilities, float32 (n_images, n_classes), of pixels by size."""
        views = {
            size: np.concatenate([view.of(images) for view in self._views])
            for size, images in pixels.items()
        }
        probs = self._runtime(views)
        plain = at_temperature(probs, 1 / self._temperature, self._multi_label)
        of_views = plain.reshape(len(self._views), -1, probs.shape[1])
        return at_temperature(of_views.mean(axis=0), self._temperature, self._multi_label)


def open_runtime(export: Export, format: str | None = None, tta: int | None = None) -> Runtime:
    """Open an exported model in a format.

    Args:
        export: The export.
        format: One of `FORMATS`; by default LiteRT if the export has it and it is installed, else
            TensorFlow, or ONNX Runtime for the export of an ONNX module.
        tta: Number of views whose probabilities are averaged, 1 to 8; by default those of the
            export.

    Raises:
        RunError: The export lacks that format, its model is damaged, or it averages over another
            number of views.
        DataError: The augmentation that the model was trained on has fewer views.
        EngineError: The library that runs the format is not installed.
    """
    if tta not in (None, export.n_views):
        if export.n_views > 1:
            raise RunError(
                f"`tta` is {tta}, but {export.folder} averages over its {export.n_views} views "
                "itself; leave it out, or run `hubretrain export` with another number."
            )
        views = export.views(tta)
        runtime, temperature = open_runtime(export, format), export.manifest["temperature"]
        return OverViews(runtime, views, temperature, export.multi_label)
    if format is None:
        has_litert = export.has("litert") and litert.is_installed()
        other = "savedmodel" if export.has("savedmodel") else "onnx"
        format = "litert" if has_litert else other
    if format == "savedmodel":
        return SavedModel(export)
    content, path = export.content(format), export.folder / MODEL_OF[format]
    if format == "onnx":
        return onnx.Onnx(content, export.sizes, path)
    return litert.LiteRT(content, export.sizes, path)
