"""The one door to ONNX Runtime."""

from __future__ import annotations

from typing import Any

from hubretrain.errors import EngineError

INSTALL = "install it with: pip install 'hubretrain[onnx]'"
_ERRORS_ONLY, _FATAL_ONLY = 3, 4


def open_session(content: bytes, n_threads: int = 0, *, quiet: bool = False) -> Any:
    """Return a session that runs a model on the CPU.

    Args:
        content: Bytes of the model.
        n_threads: Threads of one run; 0 for as many as there are cores.
        quiet: Whether ONNX Runtime is to log no errors, since it raises them too.

    Raises:
        EngineError: ONNX Runtime is not installed.
        Exception: It cannot run the model; it raises types of its own.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime is not installed ({error}); {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY if quiet else _ERRORS_ONLY
    options.intra_op_num_threads = n_threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def reason(error: Exception) -> str:
    """Return what ONNX Runtime says is wrong, without its codes, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    parts = text.split(" : ")
    return parts[-1].rstrip(". ")[:300] if text.startswith("[ONNXRuntimeError]") else text[:300]
