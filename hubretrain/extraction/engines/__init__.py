"""What runs the frozen module over batches of pixels: TensorFlow, OpenVINO or ONNX Runtime.

`choice` chooses, `engine` is what both have in common, `quantization` makes the int8 model.
`tensorflow`, `openvino` and `onnxruntime` are the engines. `conversion` makes OpenVINO's models,
`pooling` the features of inner layers in them, and `openvino_library` is the one door to OpenVINO
and NNCF.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
