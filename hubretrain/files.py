"""Atomic writes of files and folders, and digests of files."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hubretrain.errors import WriteError

if TYPE_CHECKING:
    import pandas as pd

_SECONDS_PER_DAY = 86_400.0
_BLOCK = 2**20


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success that file is moved to `path`.

    Raises:
        WriteError: The folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        # Not mkstemp: its files are of mode 0600, and a process reads its umask only by setting it.
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written: {error.strerror}; "
            "free disk space, fix permissions, or choose another folder."
        ) from error
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to make a new one in; it is removed afterwards.

    Leftovers of processes that were killed a day ago or longer are removed first.

    Raises:
        WriteError: It cannot be made.
    """
    prefix = f".{folder.name}.making."
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():  # else the old one may be in there
            _remove_old(folder.parent, re.compile(re.escape(prefix) + r"\w{8}"))
        aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    except OSError as error:
        raise WriteError(
            f"{folder}/ cannot be written ({error.strerror}); free disk space, fix "
            "permissions, or choose another folder."
        ) from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_old(parent: Path, name: re.Pattern[str]) -> None:
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):
            age = time.time() - folder.stat().st_mtime
            if name.fullmatch(folder.name) and age > _SECONDS_PER_DAY:
                shutil.rmtree(folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Move a folder that was made in `folder_aside` to `folder`, replacing what is there.

    Raises:
        OSError: It cannot be moved; the old folder is back in its place.
    """
    old = new.with_name(f"{new.name}.old")
    if not folder.exists():
        os.replace(new, folder)
        return
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as lower-case hex.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV atomically; floats are read back with the same value."""
    with whole_file(path) as aside:
        table.to_csv(aside, index=False, lineterminator="\n")
        # pandas reads a bare carriage return as the end of a line, and quotes it only if told to.
        if b"\r" in aside.read_bytes():
            table.to_csv(aside, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; NaN and infinity, which JSON lacks, become null."""
    with whole_file(path) as aside:
        text = json.dumps(_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def _jsonable(value: object) -> object:
    if isinstance(value, dict):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reserve(path: Path, n_bytes: int) -> None:
    """Make a file of `n_bytes`, so that a full disk is noticed before anything is computed.

    Raises:
        OSError: The disk is full, or the file cannot be made.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, n_bytes)
