from .choice import choose_engine as choose_engine
from .choice import gpu_in_sight as gpu_in_sight
from .choice import open_engine as open_engine
from .engine import OPENVINO_BATCH_SIZE as OPENVINO_BATCH_SIZE
from .engine import Engine as Engine
from .quantization import calibrate as calibrate
from .tensorflow import BATCH_SIZE as BATCH_SIZE
from .tensorflow import TensorFlowEngine as TensorFlowEngine
