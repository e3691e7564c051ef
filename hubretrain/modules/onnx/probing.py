"""What only loading a module tells, of any kind of module; it imports the library of none."""

from __future__ import annotations

from hubretrain.modules.store import StoredModule


def probed(module: StoredModule) -> StoredModule:
    """Return a module with what only loading it tells, such as its image size.

    Raises:
        ModuleError: It cannot be run, or gives no finite vectors.
        EngineError: It is an ONNX module, and onnx or ONNX Runtime is not installed.
    """
    if module.probed:
        return module
    if module.is_onnx:
        from hubretrain.modules.onnx.measuring import measured  # imports onnx

        return measured(module)
    from hubretrain.modules.backbone import Backbone  # imports TensorFlow

    return Backbone(module).stored
