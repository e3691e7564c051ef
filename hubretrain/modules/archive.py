"""A folder as bytes, for a machine that has not got it."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path


def packed(folder: Path) -> bytes:
    """The folder's files as a tar archive: the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                facts = tarfile.TarInfo(path.relative_to(folder).as_posix())
                facts.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(facts, file)
    return buffer.getvalue()


def unpacked(data: bytes) -> Path:
    """A folder with what :func:`packed` took; unpacked once on each machine."""
    name = hashlib.sha256(data).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"hubretrain-{os.getuid()}" / name
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
    return folder
