"""Modules built from code and weights: `build` does it in a process of its own.

`keras_applications` and `efficientnet_lite` define the networks, `torch_weights` reads PyTorch's
weights, `keras_export` writes the SavedModel, `keras_models` that of a model of Keras 3.
`importing` runs `keras_models` and `timm_models` in environments that have keras-hub or timm.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
