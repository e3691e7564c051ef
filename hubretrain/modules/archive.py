"""A module as bytes, for a machine that has not got it."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from hubretrain.modules.store import StoredModule, tree_sha256


def packed(module: StoredModule) -> bytes:
    """The module's folder as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(module.folder, arcname=".")
    return buffer.getvalue()


def unpacked(module: StoredModule, data: bytes) -> StoredModule:
    """The module, from its folder where that is here, else from its archive.

    Args:
        module: The module as it is where it was packed.
        data: What :func:`packed` made of it.
    """
    if module.folder.is_dir() and tree_sha256(module.folder) == module.sha256:
        return module
    folder = Path(tempfile.gettempdir()) / f"hubretrain-{os.getuid()}" / module.sha256
    if not folder.is_dir():
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(aside, filter="data")
        try:
            aside.rename(folder)
        except OSError:  # another worker was quicker
            if not folder.is_dir():
                raise
    return replace(module, folder=folder)
