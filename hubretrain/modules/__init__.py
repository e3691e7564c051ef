"""The modules that can be cached: their catalogue, where they come from, how they are loaded.

`catalogue` and `keras_handles` name them, `sources`, `archive` and `network` bring them, `store`
keeps them, `saved_model` checks that they are whole; `backbone` loads one, `classifier` adds a
head, `cut` divides it, `complexity` says what it costs. This room is the one door to TensorFlow
Hub. `builders` makes modules from code and weights, in processes of their own.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
