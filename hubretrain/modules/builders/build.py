"""Builds a module from code and weights, in a process of its own.

TensorFlow numbers the functions of a graph by what the process traced before, and the numbers
are part of the SavedModel. In a new process the same module is the same bytes.

    python -m hubretrain.modules.builders.build lite:0 FOLDER
    python -m hubretrain.modules.builders.build 'keras:VGG16?weights=none' FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hubretrain.errors import HubretrainError, ModuleError
from hubretrain.modules import keras_handles
from hubretrain.modules.network import network


def build_module(handle: str, folder: Path) -> None:
    """Builds a module into a folder that does not exist yet.

    Args:
        handle: `lite:0`, `lite:1` or `lite:2`, or what `keras_handles` describes.
        folder: Where to.

    Raises:
        ModuleError: It cannot be built; the message says why.
    """
    command = [sys.executable, "-m", __name__, handle, str(folder)]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # Keras' download bar
    ran = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"]
        raise ModuleError(lines[-1])


def _build_here(handle: str, folder: Path) -> None:
    if handle.startswith(keras_handles.PREFIX):
        from hubretrain.modules.builders import keras_applications

        keras_applications.export(keras_handles.parse(handle), folder)
        return
    from hubretrain.modules.builders import efficientnet_lite, keras_export

    source, _, what = handle.partition(":")
    if source != "lite" or not what.isdigit():
        raise ModuleError(f"{handle!r} cannot be built; expected lite:0, lite:1 or lite:2.")
    keras_export.export_keras(efficientnet_lite.build(int(what)), folder)


if __name__ == "__main__":
    try:
        with network():  # Keras downloads ImageNet weights
            _build_here(sys.argv[1], Path(sys.argv[2]))
    except HubretrainError as error:
        sys.exit(str(error))
