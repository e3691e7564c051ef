"""Converts to LiteRT (formerly TensorFlow Lite) and runs it, without TensorFlow.

`ai-edge-litert` runs the models; TensorFlow's converter makes them.
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
    """Return whether LiteRT is installed."""
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError:  # no wheel for this platform
        return False
    return True


class LiteRT:
    """A LiteRT model on the CPU.

    An interpreter holds one image and runs on one thread; several of them work on a batch side by
    side, which is as fast as one batch on several threads, and a row's bits then depend on no
    other row. A single image has an interpreter that uses all CPU cores.

    Args:
        model: The bytes of a `.tflite` file. They are kept, for interpreters are made while the
            model is in use, when another file may have taken the place of `path`.
        sizes: Heights and widths of the inputs, pixels.
        path: The file, named in errors.

    Raises:
        EngineError: LiteRT is not installed.
        RunError: The bytes are no LiteRT model.
    """

    name = "LiteRT"

    def __init__(self, model: bytes, sizes: Sequence[int], path: Path) -> None:
        try:
            from ai_edge_litert import interpreter
        except ImportError as error:
            raise EngineError(
                f"LiteRT is not installed ({error}); install it with: pip install ai-edge-litert"
            ) from None
        self._interpreter = interpreter
        self._model, self._sizes, self._path = model, sizes, path
        self.n_cores = os.cpu_count() or 1
        self._all_cores: Any = None
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return probabilities, float32 (n_images, n_classes), of pixels by size.

        Not thread-safe: one call at a time.
        """
        n_images = len(next(iter(pixels.values())))
        if n_images == 1:
            if self._all_cores is None:
                self._all_cores = self._make_runner(self.n_cores)
            return self._run(self._all_cores, pixels, 0)
        if self._pool is None:
            self._idle.put(self._make_runner(1))  # here: what the first one logs is suppressed
            self._pool = ThreadPoolExecutor(self.n_cores)
        return np.concatenate(list(self._pool.map(lambda i: self._row(pixels, i), range(n_images))))

    def _row(self, pixels: Pixels, i: int) -> npt.NDArray[np.float32]:
        """Return the probabilities (1, n_classes) of one image, by an idle interpreter."""
        try:
            runner = self._idle.get_nowait()
        except queue.Empty:
            runner = self._make_runner(1)
        try:
            return self._run(runner, pixels, i)
        finally:
            self._idle.put(runner)

    def _make_runner(self, n_threads: int) -> Any:
        try:
            with silent_stderr():
                interpreter = self._interpreter.Interpreter(
                    model_content=self._model, num_threads=n_threads
                )
                interpreter.allocate_tensors()
                return interpreter.get_signature_runner("pixels")
        except (ValueError, RuntimeError) as error:
            raise RunError(
                f"{self._path} cannot be run ({first_line(error)}); export again."
            ) from error

    def _run(self, runner: Any, pixels: Pixels, i: int) -> npt.NDArray[np.float32]:
        inputs = {pixels_name(size, self._sizes): pixels[size][i : i + 1] for size in self._sizes}
        return np.asarray(runner(**inputs)["probabilities"])


def convert(saved_model: Path, path: Path, *, int8: bool = False) -> None:
    """Convert the signature `pixels` of a SavedModel to a LiteRT model.

    Args:
        saved_model: The SavedModel's folder.
        path: The file to write.
        int8: Keep weights in 8 bits and quantise activations at run time ("dynamic range").

    Raises:
        EngineError: The model uses an operation that LiteRT lacks.
    """
    from hubretrain.tensorflow import tf

    try:
        with silent_stderr():
            converter = tf.lite.TFLiteConverter.from_saved_model(
                str(saved_model), signature_keys=["pixels"]
            )
            if int8:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            model = converter.convert()
    except Exception as error:  # the converter raises types of its own, and plain Exception
        # The line that names the missing operations says more than the first one.
        lines = [line for line in str(error).splitlines() if "needs" in line or "Op" in line]
        reason = (lines or [first_line(error)])[0].strip()
        raise EngineError(f"the model cannot be converted to LiteRT ({reason[:200]})") from error
    path.write_bytes(model)
