"""Atomic writes of files and folders, JSON, digests, and safe opening of foreign files.

JSON that others are computed from carries its own digest under the key `sha256` (`write_record`),
so that damage is an error instead of another result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hubretrain.errors import HubretrainError, WriteError, unreadable

if TYPE_CHECKING:
    Number = float
else:

    class Number(float):
        """A float that is null in JSON where it is NaN or infinite, and read as NaN."""


T = TypeVar("T")
StrPath = str | os.PathLike[str]

_SECONDS_PER_DAY = 86_400.0
_BLOCK = 2**20
_KINDS = {  # what is no regular file, and may block or never end
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
OWN_DIGEST = "sha256"
MAX_TEXT_BYTES = 2**30  # of a table or a JSON file, which is read into memory many times as large


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
        OSError: It cannot be read, or is no regular file, such as a pipe.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; NaN and infinity, which JSON lacks, become null."""
    with whole_file(path) as aside:
        text = json.dumps(_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def write_record(path: Path, value: Mapping[str, object], key: str = OWN_DIGEST) -> None:
    """Write a JSON object as `write_json` does, with its own digest under a key."""
    write_json(path, {**value, key: _own_digest(value)})


def read_record(path: Path, key: str = OWN_DIGEST) -> dict[str, Any]:
    """Return a JSON object that `write_record` wrote, without its digest.

    Args:
        path: The file.
        key: The key of the digest.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON object, or is damaged.
    """
    import msgspec

    try:
        value = conforming(msgspec.json.decode(read_regular(path)), dict[str, Any])
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if value.pop(key, None) != _own_digest(value):
        raise ValueError(f"its content is not the one of its {key}")
    return value


def _own_digest(value: Mapping[str, object]) -> str:
    text = json.dumps(_jsonable(dict(value)), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _jsonable(value: object) -> object:
    if isinstance(value, dict):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, kind: type[T], error: type[HubretrainError], remedy: str) -> T:
    """Read a JSON file that `write_record` wrote as a type, checked by msgspec.

    Args:
        path: The file.
        kind: A dataclass or a `TypedDict`. Keys that it does not know are left unread, so that a
            later version may add some.
        error: What is raised.
        remedy: What to do about a damaged file, a clause.

    Raises:
        FileNotFoundError: It is missing, or its folder is none.
        HubretrainError: Of the type `error`: it cannot be read, or is no such JSON.
    """
    try:
        return conforming(read_record(path), kind)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except (OSError, ValueError, RecursionError, HubretrainError) as reason:
        raise error(unreadable(path, reason, remedy)) from reason


def conforming(value: object, kind: type[T]) -> T:
    """Return a value of a JSON file as a type, as `read_json` does.

    Raises:
        ValueError: It is of another type; the text says where and which.
    """
    import msgspec

    try:
        return msgspec.convert(value, kind, dec_hook=_converted)
    except HubretrainError as error:  # of a dataclass that checks its values
        raise ValueError(str(error)) from error
    except msgspec.ValidationError as error:
        # Backticks are of parameters, which the command line turns into flags.
        raise ValueError(str(error).replace("`", "'")) from error


def _converted(kind: type[Any], value: object) -> object:
    """Return a value of JSON as a type that msgspec does not know.

    Raises:
        ValueError: It is of another type.
    """
    if kind is Number and (value is None or type(value) in (int, float)):
        return Number("nan" if value is None else value)  # type: ignore[arg-type]
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected '{kind.__name__.lower()}', got '{type(value).__name__}'")


def reserve(path: Path, n_bytes: int) -> None:
    """Make a file of `n_bytes`, so that a full disk is noticed before anything is computed.

    Raises:
        OSError: The disk is full, or the file cannot be made.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, n_bytes)


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> io.FileIO:
    """Open a regular file to read bytes; what may block or never end is refused.

    Args:
        path: The file.
        max_bytes: Size of the largest file that is opened.

    Raises:
        OSError: It cannot be opened, is a pipe, a device or a socket, or is larger.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer; regular files do not know it.
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0)  # noqa: SIM115
    try:
        check_regular(os.fstat(file.fileno()), path, max_bytes)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`.

    Raises:
        OSError: It cannot be opened or read, is a pipe, a device or a socket, or is larger.
    """
    with open_regular(path, max_bytes) as file:
        return file.readall()


def check_regular(
    status: os.stat_result, path: str | os.PathLike[str], max_bytes: int | None = None
) -> None:
    """Raise OSError where `open_regular` would refuse a file of this status."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    if max_bytes is not None and status.st_size > max_bytes:
        raise OSError(errno.EFBIG, too_large(status.st_size, max_bytes), str(path))


def too_large(n_bytes: int, max_bytes: int) -> str:
    """Return the reason why a file of `n_bytes` is not read."""
    return f"it has {n_bytes:,} bytes; at most {max_bytes:,} are read"
