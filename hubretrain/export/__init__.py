"""The export stage and prediction: a trained model as a folder that takes images.

`export` is the stage, `writer` writes the folder, `manifest` reads and checks it; `graph` is the
exported graph; `litert` and `onnx` convert and run; `runtimes` runs any format alike; `predict`
is the other stage.
Also: `targets`.
Also: `orientation`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
