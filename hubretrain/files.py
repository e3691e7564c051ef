"""Atomic writes of files and folders, digests of files, and safe opening of foreign ones.

A file that others are computed from carries its own digest, so that damage is an error instead of
another result: JSON by `write_record` under the key `sha256`, HDF5 by `write_digest_block` in the
bytes before the HDF5 itself, which are checked before the HDF5 library sees any byte.
"""

from __future__ import annotations

import contextlib
import csv
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hubretrain.errors import HubretrainError, WriteError, first_line, unreadable

if TYPE_CHECKING:
    import h5py
    import pandas as pd

    Number = float
else:

    class Number(float):
        """A float that is null in JSON where it is NaN or infinite, and read as NaN."""


T = TypeVar("T")

_SECONDS_PER_DAY = 86_400.0
_BLOCK = 2**20
# What spreadsheets begin to compute at, in any width; a number is harmless.
_FORMULA = re.compile(
    r"'*[\t\r\n]*(?![+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$)[=+\-@\uff1d\uff0b\uff0d\uff20]"
)
_KINDS = {  # what is no regular file, and may block or never end
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
OWN_DIGEST = "sha256"
_LONGEST_LINE = 2**24


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


def as_cell(text: str) -> str:
    """Return a text as a cell of a CSV that no spreadsheet takes for a formula.

    A text that begins with one of `= + - @`, perhaps after tabs and ends of lines, and is no
    number, gets an apostrophe before it, as does one that begins with apostrophes and then these;
    `of_cell` takes it away (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    return f"'{text}" if _FORMULA.match(text) else text


def of_cell(cell: str) -> str:
    """Return the text of which `as_cell` made a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def without_escapes(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that `write_table` wrote with `of_cell` of each text."""
    return _mapped(table, of_cell)


def _mapped(table: pd.DataFrame, function: Callable[[str], str]) -> pd.DataFrame:
    changed = {}
    for name in table.columns:
        if table[name].dtype.kind not in "biufcmM":
            cells = table[name].tolist()
            mapped = [function(cell) if isinstance(cell, str) else cell for cell in cells]
            if any(new is not old for new, old in zip(mapped, cells, strict=True)):
                changed[name] = mapped
    return table.assign(**changed) if changed else table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV atomically; floats are read back with the same value, texts by `of_cell`."""
    table = _mapped(table, as_cell)
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


def write_record(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object as `write_json` does, with its own digest under the key `sha256`."""
    write_json(path, {**value, OWN_DIGEST: _own_digest(value)})


def read_record(path: Path) -> dict[str, Any]:
    """Return a JSON object that `write_record` wrote, without its digest.

    One without a digest is not compared with any.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON object, or is damaged.
    """
    import msgspec

    try:
        value = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    digest = value.pop(OWN_DIGEST, None)
    if digest is not None and digest != _own_digest(value):
        raise ValueError(f"its content is not the one of its {OWN_DIGEST}")
    return value


def write_digest_block(path: Path, n_bytes: int, changing: Sequence[tuple[int, int]] = ()) -> None:
    """Write the digest of a file into its first bytes, as one line of JSON.

    Args:
        path: The file.
        n_bytes: Number of bytes at its start that nothing else uses, enough for the line.
        changing: First byte and length of each part that the digest does not cover.
    """
    block: dict[str, object] = {
        "n_bytes": n_bytes,
        "size": path.stat().st_size,
        "changing": [list(part) for part in changing],
    }
    block["sha256"] = _digest_but(path, block)
    line = json.dumps(block).encode()
    if len(line) >= n_bytes:
        raise ValueError(f"the digest block takes {len(line)} bytes, expected less than {n_bytes}")
    with path.open("r+b") as file:
        file.write(line.ljust(n_bytes - 1) + b"\n")


def check_digest_block(path: Path) -> None:
    """Compare a file with the digest in its first bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It has no such digest, or other bytes.
    """
    with io.BufferedReader(open_regular(path)) as file:
        line = file.readline(_LONGEST_LINE)
    try:
        block = json.loads(line)
        n_bytes, digest = block["n_bytes"], block.pop("sha256")
        is_sound = (
            len(line) == n_bytes
            and block["size"] == path.stat().st_size
            and digest == _digest_but(path, block)
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError("its first bytes are no digest") from None
    if not is_sound:
        raise ValueError("its bytes are not those that were written")


def _digest_but(path: Path, block: Mapping[str, Any]) -> str:
    """Return the digest of a file without its digest block and the parts that may change."""
    digest = hashlib.sha256(json.dumps(block).encode())
    with path.open("rb") as file:
        position = int(block["n_bytes"])
        for first, n_bytes in [*block["changing"], [block["size"], 0]]:
            file.seek(position)
            left = first - position
            while left > 0 and (data := file.read(min(left, _BLOCK))):
                digest.update(data)
                left -= len(data)
            position = first + n_bytes
    return digest.hexdigest()


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
    """Read a JSON file as a type, checked by msgspec.

    Args:
        path: The file.
        kind: A dataclass, a `TypedDict`, or a type of the standard library. Keys that it does not
            know are left unread, so that a later version may add some.
        error: What is raised.
        remedy: What to do about a damaged file, a clause.

    Raises:
        FileNotFoundError: It is missing, or its folder is none.
        HubretrainError: Of the type `error`: it cannot be read, or is no such JSON.
    """
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes(), type=kind, dec_hook=_converted)
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


def _converted(kind: type[Any], value: object) -> object:
    """Return a value of JSON as a type that msgspec does not know.

    Raises:
        ValueError: It is of another type.
    """
    if kind is Number and (value is None or type(value) in (int, float)):
        return Number("nan" if value is None else value)  # type: ignore[arg-type]
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `{kind.__name__.lower()}`, got `{type(value).__name__}`")


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


def open_hdf5(
    path: Path, mode: Literal["r", "r+"] = "r", *, is_ours: bool = True, locking: bool = True
) -> h5py.File:
    """Open an HDF5 file after checking that reading or writing it touches no other file.

    HDF5 follows links, external storage and virtual data sets to any file of this machine, and
    allocates what a header claims. So there may be none of these, nor references; and in a file of
    ours data sets are contiguous and no larger than the file.

    Args:
        path: The file.
        mode: `r`, or `r+` to write too.
        is_ours: Whether hubretrain wrote it; others may have data sets in chunks.
        locking: Whether HDF5 locks the file.

    Raises:
        OSError: It is missing, damaged, or holds what is refused; the text says what.
    """
    import h5py

    with open_regular(path) as raw:
        n_bytes = os.fstat(raw.fileno()).st_size
    file = h5py.File(path, mode, locking=locking)
    try:
        _check_group(file.id, n_bytes, is_ours)
    except OSError:
        file.close()
        raise
    except Exception as error:  # h5py raises nearly every type on a damaged file
        file.close()
        raise OSError(first_line(error)) from error
    return file


def array_in(group: h5py.Group, name: str, kinds: str, n_axes: int) -> h5py.Dataset:
    """Return a data set of a group of an open HDF5 file, not yet read.

    Args:
        group: The group.
        name: Name of the data set.
        kinds: Kinds that its type may have, letters of `numpy.dtype.kind`; `O` is text.
        n_axes: Number of its axes.

    Raises:
        OSError: It is missing, or not such an array.
    """
    import h5py

    try:
        dataset = group.get(name)
    except Exception as error:  # of a damaged file
        raise OSError(f"{name} cannot be read ({first_line(error)})") from error
    if not isinstance(dataset, h5py.Dataset):
        raise OSError(f"{name} is missing")
    if dataset.dtype.kind not in kinds or len(dataset.shape or ()) != n_axes:
        raise OSError(f"{name} is of type {dataset.dtype} and shape {dataset.shape}")
    return dataset


def _check_group(root: Any, n_bytes: int, is_ours: bool) -> None:
    """Raise OSError where an object below an HDF5 group is not plain data of the file itself."""
    import h5py

    todo, visited = [(root, "")], set()
    while todo:
        group, path = todo.pop()
        address = h5py.h5o.get_info(group).addr
        if address in visited:  # hard links may form a cycle
            continue
        visited.add(address)
        _check_attributes(group, path or "/")
        for name in group:
            inner = f"{path}/{name.decode('utf-8', 'backslashreplace')}"
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise OSError(f"{inner} is a link, not data of this file")
            member = h5py.h5o.open(group, name)
            if isinstance(member, h5py.h5g.GroupID):
                todo.append((member, inner))
            elif isinstance(member, h5py.h5d.DatasetID):
                _check_attributes(member, inner)
                _check_dataset(member, inner, n_bytes, is_ours)
            else:
                raise OSError(f"{inner} is neither a group nor a data set")


def _check_attributes(owner: Any, path: str) -> None:
    import h5py

    for i in range(h5py.h5a.get_num_attrs(owner)):
        attribute = h5py.h5a.open(owner, index=i)
        _check_type(attribute.get_type(), f"the attribute {attribute.name!r} of {path}")


def _check_dataset(dataset: Any, path: str, n_bytes: int, is_ours: bool) -> None:
    import h5py

    created = dataset.get_create_plist()
    layout = created.get_layout()
    if created.get_external_count() or layout == h5py.h5d.VIRTUAL:
        raise OSError(f"{path} is stored in another file")
    kind = dataset.get_type()
    _check_type(kind, path)
    if not is_ours:
        return
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise OSError(f"{path} is stored in chunks")
    needed = math.prod(dataset.shape) * kind.get_size()
    first = (dataset.get_offset() or 0) if layout == h5py.h5d.CONTIGUOUS else 0
    if needed > dataset.get_storage_size() or first + needed > n_bytes:
        raise OSError(f"{path} should have {needed:,} bytes, which the file does not hold")


def _check_type(kind: Any, path: str) -> None:
    """Raise OSError unless a type is of numbers, text and truth values, or columns of these."""
    import h5py

    h5t = h5py.h5t
    if kind.get_class() == h5t.COMPOUND:
        for i in range(kind.get_nmembers()):
            _check_type(kind.get_member_type(i), path)
    elif kind.get_class() not in (h5t.INTEGER, h5t.FLOAT, h5t.STRING, h5t.ENUM):
        raise OSError(f"{path} is neither numbers nor text")
