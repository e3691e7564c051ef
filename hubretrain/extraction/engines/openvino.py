"""OpenVINO as an engine: faster on a CPU, in float32, bfloat16 or as a quantised model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hubretrain.arrays import Float32Array, Pixels
from hubretrain.errors import EngineError
from hubretrain.extraction.engines.conversion import converted
from hubretrain.extraction.engines.engine import OPENVINO_BATCH_SIZE, Engine
from hubretrain.extraction.engines.openvino_library import ov, read, reason
from hubretrain.extraction.engines.pooling import pooled
from hubretrain.modules import StoredModule


class OpenVINOEngine(Engine[Any]):
    """A module in OpenVINO, on the CPU.

    One batch runs on each of a few groups of cores ("throughput hint"). Shapes are fixed, and no
    sum runs over more than one image: so a feature vector depends neither on its neighbours
    nor on its position.

    Args:
        module: The module.
        precision: `f32`, `bf16`, or `int8`.
        batch_size: Images per forward pass.
        quantised: The folder of the quantised model, for `int8`.
        layers: Names of the inner layers whose features are to follow the module's own output.

    Raises:
        EngineError: OpenVINO cannot convert or run the module.
    """

    name = "openvino"

    def __init__(
        self,
        module: StoredModule,
        precision: str = "f32",
        batch_size: int = OPENVINO_BATCH_SIZE,
        quantised: Path | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        self.precision, self._handle = precision, module.handle
        self._other = "onnxruntime" if module.is_onnx else "tensorflow"
        model = read(quantised) if quantised else converted(module, layers)
        size = module.image_size
        hint = "bf16" if precision == "bf16" else "f32"  # f32 even where bf16 is the default
        try:
            if layers or len(model.outputs) > 1:
                model = pooled(model, layers, precision)
        except KeyError as error:
            raise EngineError(
                f"the model of {module.handle} in {quantised}/ gives no {error.args[0]}; cache "
                "again with `overwrite`, or choose `layers` last."
            ) from error
        try:
            model.reshape([batch_size, size, size, 3])
            settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
            if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
                settings["INFERENCE_NUM_THREADS"] = threads  # a worker's share of the CPUs
            compiled = ov.Core().compile_model(model, "CPU", settings)
            n_requests = max(2, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
            requests = [compiled.create_infer_request() for _ in range(n_requests)]
        except RuntimeError as error:
            raise self._failed(error) from error
        super().__init__(size, batch_size, requests)

    def _forward(self, images: Sequence[Pixels], slot: Any) -> Float32Array:
        self._fill(slot.get_input_tensor().data, images)
        try:
            slot.start_async()
            slot.wait()
        except RuntimeError as error:
            raise self._failed(error) from error
        # The module's own output comes last; see `pooling`.
        blocks = [tensor.data[: len(images)] for tensor in reversed(slot.output_tensors)]
        features: Float32Array = np.concatenate(blocks, axis=1)  # a copy
        return features

    def _failed(self, error: RuntimeError) -> EngineError:
        return EngineError(
            f"OpenVINO cannot run {self._handle} ({reason(error)}); choose `engine={self._other}`."
        )
