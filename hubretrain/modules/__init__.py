"""Modules (pretrained networks in TF-Hub's format): found, stored, loaded, cut, measured.

`catalogue` and `keras_handles` name modules; `sources`, `archive` and `network` download them;
`store` keeps them, and `saved_model` checks that they are complete. `backbone` loads one,
`classifier` adds a head, `complexity` counts what it costs. `adapting` makes SavedModels as people
have them take RGB images and give vectors, `onnx` does so for ONNX files. `graph` is a module's
graph without nested calls: `cut` divides it, `regions` finds the inner layers in it, and `layers`
chooses among these. `builders` makes modules from code and weights, in processes of their own.
This room is the one door to TensorFlow Hub.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
