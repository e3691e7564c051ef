"""Modules made from code and weights, in a process of its own: `build`.

`keras_applications` and `efficientnet_lite` are the networks, `torch_weights` reads PyTorch's
weights, `keras_export` writes the SavedModel.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
