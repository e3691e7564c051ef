"""The export stage and prediction: a trained model as a folder that takes images.

`export` is the stage: it joins a run's heads with their modules. `writer` writes the folder,
`manifest` documents, reads and checks it, `card` is its model card; `graph` is the exported graph,
and `views` the views that it averages over; `litert` and `onnx` convert and run. Of heads on ONNX
modules `onnx_writer` writes the folder, and `onnx_graph` is the graph. `runtimes` runs every format
behind one interface; `predict` is the other stage,
`evaluate` compares what it gives with the labels of another data set, and `fitted_run` is a run
that predicts.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
