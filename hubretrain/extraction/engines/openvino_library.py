"""The one door to OpenVINO and NNCF: imports both, without their telemetry; models on a disk."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubretrain.errors import EngineError
from hubretrain.files import file_sha256, read_record, write_record

__all__ = ["MODEL", "can_bf16", "import_nncf", "ov", "read", "reason", "storing"]

FILES = MODEL, WEIGHTS = "model.xml", "model.bin"
DIGESTS = "digests.json"


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
    # Not nncf.set_log_level: it sets the level of all handlers of its logger, others' among them.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def can_bf16() -> bool:
    """Return whether this CPU computes in bfloat16; where it cannot, OpenVINO takes float32."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def read(folder: Path) -> Any:
    """Read a stored model, after its bytes were compared with the digests beside them.

    Raises:
        EngineError: It is missing or damaged.
    """
    try:
        digests = read_record(folder / DIGESTS)
        for name in FILES:
            if file_sha256(folder / name) != digests.get(name):
                raise ValueError(f"{name} is damaged or another one than {DIGESTS} names")
        return ov.Core().read_model(folder / MODEL)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"{folder}/ cannot be read ({reason(error)}); remove it and cache again."
        ) from error


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
        write_record(aside / DIGESTS, {name: _synced_sha256(aside / name) for name in FILES})
        ov.Core().read_model(aside / MODEL)  # a full disk leaves a short file without an error
        yield aside
        try:
            os.replace(aside, folder)
        except OSError:
            if not (folder / MODEL).is_file():  # else another process was as fast
                raise
    except (OSError, RuntimeError) as error:
        raise EngineError(f"{folder}/ cannot be written ({reason(error)}).") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _synced_sha256(path: Path) -> str:
    """Return the digest of a file that was just written, once it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_sha256(path)


def reason(error: Exception) -> str:
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
