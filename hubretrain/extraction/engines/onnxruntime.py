"""ONNX Runtime as an engine: runs ONNX modules where OpenVINO is not installed, float32."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from hubretrain.arrays import Float32Array, Pixels
from hubretrain.errors import EngineError
from hubretrain.extraction.engines.engine import Engine
from hubretrain.modules import StoredModule
from hubretrain.modules.onnx import FEATURES, PIXELS, features_model, open_session, reason

#: Images of a batch; they are run one by one, so it only bounds what is waited for.
BATCH_SIZE = 8


class OnnxRuntimeEngine(Engine[None]):
    """An ONNX module in ONNX Runtime, on the CPU.

    A run takes one image on one thread, and as many runs go on at a time as there are CPUs: so a
    feature vector depends neither on its neighbours nor on the number of threads.

    Args:
        module: The module.
        batch_size: Images that are submitted at a time.
        layers: Names of the inner layers whose features are to follow the module's own output.

    Raises:
        EngineError: ONNX Runtime is not installed, or cannot run the module.
        ModuleError: The module's files are damaged.
    """

    name = "onnxruntime"

    def __init__(
        self, module: StoredModule, batch_size: int = BATCH_SIZE, layers: Sequence[str] = ()
    ) -> None:
        self._handle = module.handle
        model = features_model(module, layers)
        try:
            self._session: Any = open_session(model.SerializeToString(), n_threads=1, quiet=True)
        except EngineError:
            raise
        except Exception as error:  # it raises types of its own
            raise self._failed(error) from error
        threads = os.environ.get("OMP_NUM_THREADS", "")  # a worker's share of the CPUs
        n_slots = int(threads) if threads.isdigit() else os.cpu_count() or 1
        super().__init__(module.image_size, batch_size, [None] * max(1, n_slots))

    def _forward(self, images: Sequence[Pixels], slot: None) -> Float32Array:
        del slot  # a session may run several times at once
        try:
            rows = [self._session.run([FEATURES], {PIXELS: image[None]})[0] for image in images]
        except Exception as error:  # it raises types of its own
            raise self._failed(error) from error
        features: Float32Array = np.concatenate(rows)
        return features

    def _failed(self, error: Exception) -> EngineError:
        return EngineError(f"ONNX Runtime cannot run {self._handle} ({reason(error)}).")
