"""OpenVINO as an engine: faster on a CPU, in float32, bfloat16 or as a quantised model.

A module is converted once, by way of TensorFlow, and kept in OpenVINO's own format:

    <store>/openvino/<name>-<key>/model.xml, model.bin

The key is made of the module's digest, its image size and range, and OpenVINO's version. Later
runs read it and import no TensorFlow.

This file is the one door to OpenVINO and NNCF: it imports both, without their telemetry.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hubretrain.arrays import Float32Array, Pixels
from hubretrain.data.images import to_unit
from hubretrain.errors import EngineError
from hubretrain.extraction.engines.engine import OPENVINO_BATCH_SIZE, Engine
from hubretrain.modules import StoredModule, store_folder

MODEL = "model.xml"


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """Hide the telemetry package while OpenVINO or NNCF is imported.

    Both report their use over the network unless they cannot import what does that, and whoever
    runs hubretrain did not agree to it.
    """
    imported = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        if imported is not None:
            sys.modules["openvino_telemetry"] = imported


with _no_telemetry():
    import openvino as ov

# The first `data` in a process makes a C++ static, which lets go of the GIL on the way: two threads
# that are there at once wait for each other for ever, one for the GIL, one for the static. While
# this file is imported, Python holds every other thread back that comes for it.
_ = ov.Tensor(ov.Type.u8, [1]).data


def import_nncf() -> Any:
    """Import NNCF, which only a calibration needs; it logs errors and nothing else."""
    with _no_telemetry():
        import nncf
    nncf.set_log_level(logging.ERROR)
    return nncf


class OpenVINOEngine(Engine[Any]):
    """A module in OpenVINO, on the CPU.

    One batch runs on each of a few groups of cores ("throughput hint"). Shapes are fixed, and no
    sum runs over more than one image: so a feature vector depends neither on its neighbours
    nor on its position.

    Args:
        module: The module.
        precision: `f32`, `bf16`, or `int8`.
        batch_size: Images per forward pass.
        quantised: The folder of the quantised model, for `int8`.

    Raises:
        EngineError: OpenVINO cannot convert or run the module.
    """

    name = "openvino"

    def __init__(
        self,
        module: StoredModule,
        precision: str = "f32",
        batch_size: int = OPENVINO_BATCH_SIZE,
        quantised: Path | None = None,
    ) -> None:
        self.precision, self._handle = precision, module.handle
        model = read(quantised) if quantised else converted(module)
        size = module.image_size
        hint = "bf16" if precision == "bf16" else "f32"  # f32 even where bf16 is the default
        try:
            model.reshape([batch_size, size, size, 3])
            settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
            if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
                settings["INFERENCE_NUM_THREADS"] = threads  # a worker's share of the CPUs
            compiled = ov.Core().compile_model(model, "CPU", settings)
            n_requests = max(2, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
            requests = [compiled.create_infer_request() for _ in range(n_requests)]
        except RuntimeError as error:
            raise self._failed(error) from error
        super().__init__(size, batch_size, requests)

    def _forward(self, images: Sequence[Pixels], slot: Any) -> Float32Array:
        self._fill(slot.get_input_tensor().data, images)
        try:
            slot.start_async()
            slot.wait()
        except RuntimeError as error:
            raise self._failed(error) from error
        features: Float32Array = slot.get_output_tensor().data[: len(images)].copy()
        return features

    def _failed(self, error: RuntimeError) -> EngineError:
        return EngineError(
            f"OpenVINO cannot run {self._handle} ({_reason(error)}); choose `engine=tensorflow`."
        )


def can_bf16() -> bool:
    """Return whether this CPU computes in bfloat16; where it cannot, OpenVINO takes float32."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def converted(module: StoredModule) -> Any:
    """Return a module as an OpenVINO model, converted now if that was never done.

    Its input is uint8 of shape (n_images, image_size, image_size, 3), its output float32.

    Raises:
        EngineError: OpenVINO cannot convert it.
        ModuleError: It cannot be loaded, or the store cannot be written.
    """
    folder = _folder_of(module)
    with contextlib.suppress(EngineError):
        return read(folder)
    shutil.rmtree(folder, ignore_errors=True)  # missing or damaged
    _convert(module, folder)
    return read(folder)


def read(folder: Path) -> Any:
    """Read a stored model.

    Raises:
        EngineError: It is missing or damaged.
    """
    try:
        return ov.Core().read_model(folder / MODEL)
    except RuntimeError as error:
        raise EngineError(f"{folder / MODEL} cannot be read ({_reason(error)}).") from error


@contextlib.contextmanager
def storing(model: Any, folder: Path) -> Iterator[Path]:
    """Write a model into a folder beside `folder`, which is moved there at the end, whole.

    Yields:
        The folder, for what else belongs into it.

    Raises:
        EngineError: It cannot be written.
    """
    try:
        # Not mkdtemp: its folders are of mode 0700, whatever the umask.
        aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        aside.mkdir(parents=True)
    except OSError as error:
        raise EngineError(
            f"{folder.parent}/ cannot be written ({error.strerror}); free disk space or fix "
            "permissions."
        ) from error
    try:
        ov.save_model(model, aside / MODEL, compress_to_fp16=False)
        read(aside)  # a full disk leaves a short file without an error
        yield aside
        try:
            os.replace(aside, folder)
        except OSError:
            if not (folder / MODEL).is_file():  # else another process was as fast
                raise
    except (OSError, RuntimeError) as error:
        raise EngineError(f"{folder}/ cannot be written ({_reason(error)}).") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _folder_of(module: StoredModule) -> Path:
    identity = (module.sha256, module.image_size, module.value_range, ov.get_version())
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return store_folder() / "openvino" / f"{module.name}-{key}"


def _convert(module: StoredModule, folder: Path) -> None:
    """Convert by way of a SavedModel that takes uint8 pixels, as TensorFlow's engine does."""
    from hubretrain.data.images import to_unit_tensor  # imports TensorFlow
    from hubretrain.modules import Backbone  # imports TensorFlow
    from hubretrain.tensorflow import tf

    backbone = Backbone(module)
    size = module.image_size

    @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8, "pixels")])  # type: ignore[untyped-decorator]
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        return {"features": backbone(to_unit_tensor(pixels))}

    whole = tf.Module()
    whole.module, whole.forward = backbone.saved_object, forward
    with tempfile.TemporaryDirectory() as saved_model:
        tf.saved_model.save(whole, saved_model, signatures={"serving_default": forward})
        try:
            model = ov.Core().read_model(saved_model)
            _check_conversion(model, backbone, tf)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot convert {module.handle} ({_reason(error)}); "
                "choose `engine=tensorflow`."
            ) from error
        with storing(model, folder):
            pass


def _check_conversion(model: Any, backbone: Any, tf: Any) -> None:
    """Compare a conversion with TensorFlow on noise; one that differs is not stored.

    Raises:
        RuntimeError: Features differ by more than rounding: over 1e-4 of their length (float32
            keeps 6e-8 per operation, and networks have hundreds of them in a row).
    """
    size = backbone.stored.image_size
    noise = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    expected = backbone(tf.constant(to_unit(noise))).numpy()
    features = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(noise)[0]
    if features.shape != expected.shape:
        raise RuntimeError(f"it gives shape {features.shape}, TensorFlow {expected.shape}")
    scale = max(float(np.linalg.norm(expected)), 1e-30)
    error = float(np.linalg.norm(features - expected)) / scale
    if not error <= 1e-4:
        raise RuntimeError(f"its features differ from TensorFlow's by {error:.1e}")


def _reason(error: Exception) -> str:
    """Return the line of OpenVINO's long reports that says what is wrong."""
    boilerplate = (
        "Exception from",
        "Check '",
        "FrontEnd API",
        "Model wasn't",
        "Summary",
        "To facilitate",
    )
    lines = [line.strip(" .-") for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(boilerplate)]
    return lines[0] if lines else type(error).__name__
