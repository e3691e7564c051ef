"""Building of a module from code and weights, in a process of its own.

TensorFlow numbers the functions of a graph by what the process has traced before, and the numbers
are part of the SavedModel. Only in a new process does the same module always get the same bytes.

    python -m hubretrain.modules.builders.build lite:0 FOLDER
    python -m hubretrain.modules.builders.build 'keras:VGG16?weights=none' FOLDER
    python -m hubretrain.modules.builders.build net.keras FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hubretrain.errors import HubretrainError, ModuleError
from hubretrain.modules import keras_handles
from hubretrain.modules.builders import keras_models
from hubretrain.modules.network import network


def build_module(handle: str, folder: Path) -> None:
    """Build a module into a new folder.

    Args:
        handle: `lite:0`, `lite:1` or `lite:2`, a handle of `keras_handles`, or a `.keras` file.
        folder: Folder to make, which does not exist yet.

    Raises:
        ModuleError: It cannot be built; the message says why.
    """
    command = [sys.executable, "-m", __name__, handle, str(folder)]
    # Keras shows the progress of downloads on standard output.
    output = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    process = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        raise ModuleError(lines[-1] if lines else f"it ended with code {process.returncode}")


def _build_here(handle: str, folder: Path) -> None:
    """Build a module in this process."""
    if handle.startswith(keras_handles.PREFIX):
        from hubretrain.modules.builders import keras_applications

        keras_applications.export(keras_handles.parse(handle), folder)
        return
    if handle.endswith(keras_models.KERAS_SUFFIX):
        from hubretrain.modules.builders import keras_export

        keras_export.export_file(Path(handle), folder)
        return
    from hubretrain.modules.builders import efficientnet_lite, keras_export

    source, _, variant = handle.partition(":")
    if source != "lite" or not variant.isdigit():
        raise ModuleError(f"{handle!r} cannot be built; expected lite:0, lite:1 or lite:2.")
    keras_export.export_keras(efficientnet_lite.build(int(variant)), folder)


if __name__ == "__main__":
    try:
        with network():  # Keras downloads ImageNet weights
            _build_here(sys.argv[1], Path(sys.argv[2]))
    except HubretrainError as error:
        sys.exit(str(error))
