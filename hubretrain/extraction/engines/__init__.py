"""What runs the frozen module over batches of pixels: TensorFlow, or OpenVINO on a processor.

Importing this imports neither.
"""

from hubretrain.extraction.engines.choice import (
    ENGINES,
    PRECISIONS,
    choose_engine,
    gpu_in_sight,
    open_engine,
)
from hubretrain.extraction.engines.engine import OPENVINO_BATCH_SIZE, Engine
from hubretrain.extraction.engines.quantization import calibrate
from hubretrain.extraction.engines.tensorflow import BATCH_SIZE, TensorFlowEngine

__all__ = [
    "BATCH_SIZE",
    "ENGINES",
    "OPENVINO_BATCH_SIZE",
    "PRECISIONS",
    "Engine",
    "TensorFlowEngine",
    "calibrate",
    "choose_engine",
    "gpu_in_sight",
    "open_engine",
]
