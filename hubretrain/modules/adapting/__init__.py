"""Modules as people save them, made to take RGB images in NHWC and to give vectors.

`functions` chooses which of a SavedModel's functions and outputs is the network, `images` turns
images into its inputs, and `network` is the function with both, and its outputs as vectors.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
