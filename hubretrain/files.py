"""Small files, written so that they are whole or not there."""

from __future__ import annotations

import contextlib
import csv
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

from hubretrain.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

_A_DAY = 86_400.0


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a place beside `path` to write to; on success it is moved to `path`.

    Raises:
        RunError: The folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        # Not mkstemp: its files are of mode 0600, and a process reads its umask only by setting it.
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; "
            "make room, mend its rights, or choose another folder."
        ) from error
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` to make a new one in, gone afterwards.

    What was killed a day ago or longer is removed first; nothing is that long in the making.

    Raises:
        RunError: It cannot be made.
    """
    prefix = f".{folder.name}.making."
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():  # else the old one may be in there
            _remove_old(folder.parent, re.compile(re.escape(prefix) + r"\w{8}"))
        aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    except OSError as error:
        raise RunError(
            f"{folder}/ cannot be written ({error.strerror}); mend its rights or make room."
        ) from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_old(parent: Path, name: re.Pattern[str]) -> None:
    for one in parent.iterdir():
        with contextlib.suppress(OSError):
            if name.fullmatch(one.name) and time.time() - one.stat().st_mtime > _A_DAY:
                shutil.rmtree(one)


def replace_folder(new: Path, folder: Path) -> None:
    """Moves a folder that was made in `folder_aside` to its place; what is there goes.

    Raises:
        OSError: It cannot be moved; what was there is there again.
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


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV, whole or not at all; floats keep their value at a reread."""
    with whole_file(path) as aside:
        table.to_csv(aside, index=False, lineterminator="\n")
        # pandas reads a bare carriage return as the end of a line, and quotes it only if told to.
        if b"\r" in aside.read_bytes():
            table.to_csv(aside, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON, whole or not at all; NaN and infinity, which JSON lacks, as null."""
    with whole_file(path) as aside:
        text = json.dumps(_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def _jsonable(value: object) -> object:
    if isinstance(value, dict):
        return {str(name): _jsonable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reserve(path: Path, n_bytes: int) -> None:
    """Makes a file of so many bytes, so that a full disk is known before anything is computed.

    Raises:
        OSError: The disk has no room, or the file cannot be made.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, n_bytes)
