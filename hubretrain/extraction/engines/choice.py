"""Which engine runs a module, decided before anything is loaded, and how it is opened."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubretrain.errors import EngineError
from hubretrain.extraction.engines.engine import OPENVINO_BATCH_SIZE, Engine
from hubretrain.extraction.options import ENGINES, PRECISIONS
from hubretrain.modules import StoredModule

_NAMES = {"tensorflow": "TensorFlow", "onnxruntime": "ONNX Runtime"}


def choose_engine(
    engine: str = "auto",
    precision: str = "f32",
    *,
    module: StoredModule | None = None,
    layers: Sequence[str] = (),
    cached: str | None = None,
) -> str:
    """Return the engine that runs a frozen module: `tensorflow`, `openvino` or `onnxruntime`.

    `auto` keeps the engine of the features that are cached. Without any, it takes OpenVINO where
    it is installed, no GPU is in sight and the module can be converted, or where the precision
    requires it; else TensorFlow, or ONNX Runtime for an ONNX module. Imports no TensorFlow unless
    a module has to be converted for the first time.

    Args:
        engine: `auto`, `tensorflow`, `openvino` or `onnxruntime`.
        precision: `f32`; `bf16` or `int8`, which OpenVINO alone can compute.
        module: The module, probed, if `auto` is to check that OpenVINO can run it.
        layers: Names of the inner layers whose features are computed too.
        cached: The engine of the bottleneck file, if there is one.

    Raises:
        EngineError: The engine is not installed, cannot run the module, or cannot compute in this
            precision on this machine.
    """
    for name, value, choices in (
        ("engine", engine, ENGINES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in choices:
            raise EngineError(f"`{name}` is {value!r}; expected one of {', '.join(choices)}.")
    if engine == "auto" and cached is not None:
        engine = cached
    is_onnx = module is not None and module.is_onnx
    other = "onnxruntime" if is_onnx else "tensorflow"
    if engine == "auto":
        takes_openvino = precision != "f32" or _suits_openvino(module, layers)
        engine = "openvino" if takes_openvino else other
    if engine == "openvino":
        _check_openvino(precision)
    elif module is not None and engine in _NAMES and engine != other:
        kind = "an ONNX module" if is_onnx else "a SavedModel"
        raise EngineError(
            f"{module.name} is {kind}, which {_NAMES[engine]} does not run; choose "
            f"`engine=openvino` or `engine={other}`."
        )
    elif precision != "f32":
        raise EngineError(
            f"the {_NAMES[engine]} engine computes f32 only, not {precision}; "
            f"choose `engine=openvino`, which runs on a CPU."
        )
    return engine


def open_engine(
    module: StoredModule,
    engine: str = "tensorflow",
    precision: str = "f32",
    batch_size: int | None = None,
    quantised: Path | None = None,
    *,
    cuts_views: bool = False,
    layers: Sequence[str] = (),
) -> Engine[Any]:
    """Open the engine that `choose_engine` chose.

    Args:
        module: The module, probed.
        engine: `tensorflow`, `openvino` or `onnxruntime`.
        precision: `f32`, `bf16` or `int8`, as chosen.
        batch_size: Images per forward pass; by default what the engine does best with. On a GPU
            that is measured.
        quantised: Where `calibrate` left the quantised model, for `int8`.
        cuts_views: Whether the engine is to be given whole images with draws; TensorFlow only.
        layers: Names of the inner layers whose features are to follow the module's own output.

    Raises:
        EngineError: The engine cannot convert or run the module, or memory does not suffice.
        ModuleError: The module cannot be loaded.
    """
    if (precision == "int8") != (quantised is not None):
        raise ValueError("a quantised model belongs to int8, and to nothing else")
    if engine == "openvino":
        from hubretrain.extraction.engines import openvino

        return openvino.OpenVINOEngine(
            module, precision, batch_size or OPENVINO_BATCH_SIZE, quantised, layers
        )
    if engine == "onnxruntime":
        from hubretrain.extraction.engines import onnxruntime

        size = batch_size or onnxruntime.BATCH_SIZE
        return onnxruntime.OnnxRuntimeEngine(module, size, layers)
    from hubretrain.extraction.engines import tensorflow
    from hubretrain.modules import Backbone
    from hubretrain.tensorflow import tf

    backbone = Backbone(module, layers)
    if batch_size is None and tf.config.list_physical_devices("GPU"):
        # Whole images wait for an engine that cuts views, so few of them may.
        largest = (2 if cuts_views else 16) * tensorflow.BATCH_SIZE
        batch_size = tensorflow.best_batch_size(
            lambda size: tensorflow.TensorFlowEngine(backbone, size), last=largest
        )
    engine_class = tensorflow.ViewCuttingEngine if cuts_views else tensorflow.TensorFlowEngine
    return engine_class(backbone, batch_size or tensorflow.BATCH_SIZE)


def gpu_in_sight() -> bool:
    """Return whether device files suggest a GPU that TensorFlow might use; imports no library.

    NVIDIA's and AMD's drivers make them, and the Windows Subsystem for Linux its own.
    `CUDA_VISIBLE_DEVICES` can hide an NVIDIA one, as it does from TensorFlow.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    nvidia = Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()
    return (nvidia and not hidden) or Path("/dev/kfd").exists()


def _suits_openvino(module: StoredModule | None, layers: Sequence[str]) -> bool:
    if not _is_installed("openvino") or gpu_in_sight():
        return False
    if module is not None:
        from hubretrain.extraction.engines.conversion import converted

        try:
            converted(module, layers)
        except EngineError:
            return False
    return True


def _check_openvino(precision: str) -> None:
    """Raise if OpenVINO cannot compute in a precision here.

    Raises:
        EngineError: A library is not installed, or the CPU has no bfloat16.
    """
    needed = ("openvino", "nncf") if precision == "int8" else ("openvino",)
    missing = [library for library in needed if not _is_installed(library)]
    if missing:
        with_int8 = " with int8" if precision == "int8" else ""
        raise EngineError(
            f"the OpenVINO engine{with_int8} needs {missing[0]}, which is not installed; install "
            "it with: pip install 'hubretrain[openvino]'"
        )
    if precision == "bf16":
        from hubretrain.extraction.engines.openvino_library import can_bf16

        if not can_bf16():
            raise EngineError(
                "this CPU has no bfloat16 (AVX512-BF16 or AMX), so OpenVINO would compute f32 and "
                "call it bf16; choose `precision=f32` or `precision=int8`."
            )


def _is_installed(library: str) -> bool:
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None  # not just a folder of that name
