"""The door to OpenVINO and NNCF: the one import of both, without their telemetry."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """Both libraries report their use over the network unless they cannot import what does it.

    Who runs hubretrain did not agree to that, so for the time of the import they cannot.
    """
    kept = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        if kept is not None:
            sys.modules["openvino_telemetry"] = kept


with _no_telemetry():
    import openvino as ov


def import_nncf() -> Any:
    """NNCF, which only a calibration needs; it reports errors and nothing else."""
    with _no_telemetry():
        import nncf
    nncf.set_log_level(40)
    return nncf


__all__ = ["import_nncf", "ov"]
