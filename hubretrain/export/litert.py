"""The door to LiteRT (formerly TensorFlow Lite): models that run without TensorFlow.

`ai-edge-litert` runs them; TensorFlow's converter makes them.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.errors import EngineError, RunError, first_line
from hubretrain.export.manifest import pixels_name
from hubretrain.quiet import silent_stderr

Pixels = Mapping[int, npt.NDArray[np.float32]]


def is_installed() -> bool:
    """Whether LiteRT can run here."""
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError:  # no wheel for this platform
        return False
    return True


class LiteRT:
    """A LiteRT model on the processor.

    An interpreter holds one image and runs on one thread; several of them work on a batch side by
    side, which is as fast as one batch on several threads, and a row's bits then depend on no
    other row. An image that comes alone has an interpreter with all processors.

    Args:
        model: The bytes of a `.tflite` file: interpreters are made while it is in use, when
            another may have taken the file's place.
        sizes: Heights and widths of the inputs.
        place: The file, for errors.

    Raises:
        EngineError: LiteRT is not installed.
        RunError: The bytes are no such model.
    """

    name = "LiteRT"

    def __init__(self, model: bytes, sizes: Sequence[int], place: Path) -> None:
        try:
            from ai_edge_litert import interpreter
        except ImportError as error:
            raise EngineError(
                f"LiteRT is not installed ({error}); install it with: pip install ai-edge-litert"
            ) from None
        self._interpreter = interpreter
        self._model, self._sizes, self._place = model, sizes, place
        self.n_processors = os.cpu_count() or 1
        self._alone: Any = None
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._n_made = 0
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Probabilities, float32 (n_images, n_classes), of pixels by size; one call at a time."""
        n_images = len(next(iter(pixels.values())))
        if n_images == 1:
            if self._alone is None:
                self._alone = self._made(self.n_processors)
            return self._of_one(self._alone, pixels, 0)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.n_processors)
        return np.concatenate(list(self._pool.map(lambda i: self._row(pixels, i), range(n_images))))

    def _row(self, pixels: Pixels, i: int) -> npt.NDArray[np.float32]:
        try:
            one = self._idle.get_nowait()
        except queue.Empty:
            one = self._made(1)
        try:
            return self._of_one(one, pixels, i)
        finally:
            self._idle.put(one)

    def _made(self, n_threads: int) -> Any:
        try:
            with silent_stderr():
                made = self._interpreter.Interpreter(
                    model_content=self._model, num_threads=n_threads
                )
                made.allocate_tensors()
                runner = made.get_signature_runner("pixels")
        except (ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise RunError(f"{self._place} cannot be run ({reason}); export again.") from error
        return runner

    def _of_one(self, runner: Any, pixels: Pixels, i: int) -> npt.NDArray[np.float32]:
        inputs = {pixels_name(size, self._sizes): pixels[size][i : i + 1] for size in self._sizes}
        return np.asarray(runner(**inputs)["probabilities"])


def convert(saved_model: Path, file: Path, *, int8: bool = False) -> None:
    """Makes a LiteRT model of the signature `pixels` of a SavedModel.

    Args:
        saved_model: Its folder.
        file: Where to write.
        int8: Keep weights in 8 bits and quantise activations as they come ("dynamic range").

    Raises:
        EngineError: The model holds something that LiteRT lacks.
    """
    from hubretrain.tensorflow import tf

    try:
        with silent_stderr():
            converter = tf.lite.TFLiteConverter.from_saved_model(
                str(saved_model), signature_keys=["pixels"]
            )
            if int8:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            made = converter.convert()
    except Exception as error:  # the converter raises types of its own, and plain Exception
        lines = [line for line in str(error).splitlines() if "needs" in line or "Op" in line]
        reason = lines[0].strip() if lines else first_line(error)
        raise EngineError(f"the model cannot be converted to LiteRT ({reason[:200]})") from error
    file.write_bytes(made)
