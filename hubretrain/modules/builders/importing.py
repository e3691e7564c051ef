"""Presets of keras-hub and models of timm, made into modules in environments of their own.

Each library is run by a script beside this file, in a Python that need not have hubretrain: its
versions of Keras, PyTorch and NumPy are not those that hubretrain is installed with.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hubretrain.errors import ModuleError
from hubretrain.modules.network import is_offline
from hubretrain.modules.onnx import parse_handle

_log = logging.getLogger(__name__)
_READY = "requirements.txt"  # in an environment, once it is complete


@dataclass(frozen=True)
class _Library:
    """A library whose models become modules.

    Attributes:
        requirements: What is installed into its environment.
        script: File beside this one that makes a module.
        parameter: Name of the script's argument for the model.
        local: What it wants before the path of a folder.
    """

    requirements: tuple[str, ...]
    script: str
    parameter: str
    local: str = ""


_LIBRARIES = {
    "keras-hub": _Library(("keras-hub>=0.32,<0.33",), "keras_models.py", "preset"),
    "timm": _Library(
        ("timm>=1.0.31,<1.1", "torch>=2.6,<2.15", "onnx>=1.17"),
        "timm_models.py",
        "model",
        "local-dir:",
    ),
}
IMPORTED = tuple(f"{name}:" for name in _LIBRARIES)


@dataclass(frozen=True)
class ImportOptions:
    """How a model of another library becomes a module.

    Attributes:
        python: Python that has the library; None to make an environment in the store.
        random_weights: Draw the weights instead of loading them, as a control.
        image_size: Height and width of its input, pixels; None for its own.
    """

    python: Path | None = None
    random_weights: bool = False
    image_size: int | None = None


def import_into(source: str, folder: Path, options: ImportOptions, environments: Path) -> None:
    """Make a module of another library's model.

    Args:
        source: `keras-hub:PRESET`, which becomes a SavedModel, or `timm:MODEL`, which becomes an
            ONNX network; each with its preprocessing. Either may be a folder.
        folder: Folder to make, which does not exist yet.
        options: How.
        environments: Folder of environments, each made at its first use.

    Raises:
        ModuleError: The source is of no known library, the environment cannot be made, or the
            library refuses the model; the message says why.
    """
    name, _, model = source.partition(":")
    if name not in _LIBRARIES or not model:
        raise ModuleError(
            f"{source!r} is no model that can be imported; expected keras-hub:PRESET or "
            "timm:MODEL, such as keras-hub:dinov2_base or timm:convnext_tiny.fb_in22k."
        )
    library, local = _LIBRARIES[name], folder_of(source)
    if local is not None:
        _check_folder(local, source)
        model = f"{library.local}{local}"
    if is_offline() and not options.random_weights and local is None:
        raise ModuleError(f"{source} cannot be imported, because the network is not used.")
    python = options.python or _environment(name, library.requirements, environments)
    _log.info("making a module of %s by %s", source, python)
    with tempfile.TemporaryDirectory(prefix="hubretrain-import-") as aside:
        is_onnx = name == "timm"
        asked = {
            library.parameter: model,
            "folder": aside if is_onnx else str(folder),
            "random_weights": options.random_weights,
            "image_size": options.image_size,
        }
        script = Path(__file__).with_name(library.script)
        _run([str(python), "-I", str(script), json.dumps(asked)], source)
        if is_onnx:
            from hubretrain.modules.onnx import fetch  # imports onnx

            fetch(parse_handle(str(Path(aside, "model.onnx"))), folder)


def folder_of(source: str) -> Path | None:
    """Return the folder that a source names, existing or not; None where it is a name or handle."""
    model = source.partition(":")[2]
    if Path(model).is_dir() or (os.sep in model and ":" not in model):
        return Path(model).expanduser().resolve()
    return None


def _check_folder(folder: Path, source: str) -> None:
    """Raise unless it holds a model; it is known before an environment is made, which takes long.

    Both libraries write a `config.json`.
    """
    if not folder.is_dir():
        raise ModuleError(f"{source} cannot be imported: {folder} is no folder.")
    if not (folder / "config.json").is_file():
        raise ModuleError(
            f"{source} cannot be imported: {folder} holds no config.json; expected what "
            "`save_to_preset` of keras-hub writes, or a model of timm as Hugging Face has it."
        )


def _environment(name: str, requirements: Sequence[str], environments: Path) -> Path:
    """Return the Python of the environment of a library, which is made where it is not there."""
    folder, text = environments / name, "\n".join(requirements)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / _READY
    if ready.is_file() and ready.read_text(encoding="utf-8") == text:
        return python
    if is_offline():
        raise ModuleError(
            f"{folder} holds no environment with {name}, and the network is not used; set `python` "
            f"to one that has it, or import once with a network."
        )
    _log.info("installing %s into %s; once, minutes and gigabytes", ", ".join(requirements), folder)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], str(folder))
    _run([str(python), "-m", "pip", "install", "-q", *requirements], f"the environment of {name}")
    ready.write_text(text, encoding="utf-8")
    return python


def _run(command: Sequence[str], what: str) -> None:
    """Run a command.

    Raises:
        ModuleError: It failed, with its last line as the reason.
    """
    try:
        process = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
    except OSError as error:
        raise ModuleError(f"{command[0]} cannot be run ({error.strerror}).") from error
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"code {process.returncode}"]
        raise ModuleError(f"{what} could not be made by {command[0]} ({lines[-1].strip('. ')}).")
