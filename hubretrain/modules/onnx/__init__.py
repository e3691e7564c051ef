"""ONNX files as modules: read, described, and made one graph from pixels to feature vectors.

`handles` names a file and what it does not say itself; `graphs` reads it and is the door to onnx,
`runtime` that to ONNX Runtime. `images` tells what images a network takes, `outputs` where its
features are, `inner` which inner layers it has; `adapted` is the graph with all of it, made by
`building`. `network` is one in the store;
`probing` says what only loading a module tells, by `measuring` of ONNX networks.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
