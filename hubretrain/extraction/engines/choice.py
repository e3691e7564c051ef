"""Which engine runs a module, decided before anything is loaded, and how it is opened."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from hubretrain.errors import EngineError
from hubretrain.extraction.engines.engine import OPENVINO_BATCH_SIZE, Engine
from hubretrain.extraction.options import ENGINES, PRECISIONS
from hubretrain.modules import StoredModule


def choose_engine(
    name: str = "auto",
    precision: str = "f32",
    *,
    module: StoredModule | None = None,
    before: str | None = None,
) -> str:
    """The engine that runs a frozen module: `tensorflow` or `openvino`.

    `auto` goes on with the engine that made the features that are there already. Without any,
    it takes OpenVINO where it is installed, no GPU is in sight and the module can be converted,
    or where the precision asks for it; TensorFlow otherwise. Imports no TensorFlow unless a
    module has to be converted for the first time.

    Args:
        name: `auto`, `tensorflow` or `openvino`.
        precision: `f32`; `bf16` or `int8`, which OpenVINO only can.
        module: The module, probed, if `auto` shall see whether OpenVINO can run it.
        before: The engine of the bottleneck file that is there, if one is.

    Raises:
        EngineError: The engine is not installed, or cannot compute so on this machine.
    """
    if name not in ENGINES or precision not in PRECISIONS:
        raise EngineError(
            f"engine {name!r} with precision {precision!r} is unknown; the engines are "
            f"{', '.join(ENGINES)}, the precisions {', '.join(PRECISIONS)}."
        )
    if name == "auto" and before is not None:
        name = before
    if name == "auto":
        name = "openvino" if precision != "f32" or _suits_openvino(module) else "tensorflow"
    if name == "tensorflow":
        if precision != "f32":
            raise EngineError(
                f"the TensorFlow engine computes f32 only, not {precision}; "
                f"that needs a CPU and `engine=openvino`."
            )
        return name
    missing = [lib for lib in ("openvino", "nncf")[: 1 + (precision == "int8")] if not _has(lib)]
    if missing:
        raise EngineError(
            f"the OpenVINO engine{' with int8' * (precision == 'int8')} needs {missing[0]}, which "
            "is not installed; install it with: pip install 'hubretrain[openvino]'"
        )
    if precision == "bf16":
        from hubretrain.extraction.engines.openvino import can_bf16

        if not can_bf16():
            raise EngineError(
                "this processor has no bfloat16 (AVX512-BF16 or AMX), so OpenVINO would compute "
                "f32 and call it bf16; choose `precision=f32` or `precision=int8`."
            )
    return name


def open_engine(
    module: StoredModule,
    name: str = "tensorflow",
    precision: str = "f32",
    batch_size: int | None = None,
    quantised: Path | None = None,
    *,
    cuts_views: bool = False,
) -> Engine[Any]:
    """Opens an engine that `choose_engine` chose.

    Args:
        module: The module, probed.
        name: `tensorflow` or `openvino`.
        precision: As chosen.
        batch_size: Images a forward pass; by default what the engine does best with. On a GPU that
            is found out by trying.
        quantised: Where `calibrate` left the quantised model, for `int8`.
        cuts_views: Give it whole images with draws; TensorFlow only.

    Raises:
        EngineError: OpenVINO cannot convert or run the module, or memory does not suffice.
        ModuleError: The module cannot be loaded.
    """
    if (precision == "int8") != (quantised is not None):
        raise ValueError("a quantised model belongs to int8, and to nothing else")
    if name == "openvino":
        from hubretrain.extraction.engines import openvino

        return openvino.OpenVINOEngine(
            module, precision, batch_size or OPENVINO_BATCH_SIZE, quantised
        )
    from hubretrain.extraction.engines import tensorflow
    from hubretrain.modules import Backbone
    from hubretrain.tensorflow import tf

    backbone = Backbone(module)
    engine = tensorflow.ViewCuttingEngine if cuts_views else tensorflow.TensorFlowEngine
    if batch_size is None and tf.config.list_physical_devices("GPU"):
        # Whole images wait for an engine that cuts views, so few of them may.
        most = (2 if cuts_views else 16) * tensorflow.BATCH_SIZE
        batch_size = tensorflow.best_batch_size(
            lambda n: tensorflow.TensorFlowEngine(backbone, n), last=most
        )
    return engine(backbone, batch_size or tensorflow.BATCH_SIZE)


def gpu_in_sight() -> bool:
    """Whether a GPU that TensorFlow might use is here, judged by device files: no library asked.

    NVIDIA's and AMD's drivers make them, and the Windows Subsystem for Linux its own.
    `CUDA_VISIBLE_DEVICES` can hide an NVIDIA one, as it does from TensorFlow.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    nvidia = Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()
    return (nvidia and not hidden) or Path("/dev/kfd").exists()


def _suits_openvino(module: StoredModule | None) -> bool:
    if not _has("openvino") or gpu_in_sight():
        return False
    if module is not None:
        from hubretrain.extraction.engines.openvino import converted

        try:
            converted(module)
        except EngineError:
            return False
    return True


def _has(library: str) -> bool:
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None  # not just a folder of that name
