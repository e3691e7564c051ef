"""The sha256 of every image file, kept in a table so that an unchanged file is read once.

On disk: `digests.csv` with columns `path, size, mtime_ns, ctime_ns, sha256`. A file whose size
and two times are the same is taken to be unchanged, as git's index does; one that was changed less
than two seconds before the table was written is read again, because it may have changed once more
within the resolution of the file system's clock.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from hubretrain.csv_tables import INTEGER, NAME, read_table, write_table
from hubretrain.errors import DataError
from hubretrain.parallel import ahead
from hubretrain.storage import Stamp, is_remote, located, sha256_of, stamp_of

FILE_NAME = "digests.csv"
_TYPES = {"path": NAME, "size": INTEGER, "mtime_ns": INTEGER, "ctime_ns": INTEGER, "sha256": NAME}
COLUMNS = tuple(_TYPES)
_RACY_NANOSECONDS = 2_000_000_000
_SECONDS_BETWEEN_WRITES = 30.0  # a killed process loses no more than these
_N_STAMP_THREADS = 16  # servers answer many requests for versions at a time


def image_digests(
    root: Path,
    paths: Sequence[str],
    folder: Path,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the sha256 of each image file, as lower-case hex.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        folder: The data set's folder in the cache, whose `digests.csv` is read first and updated.
        progress: Called with the number of images just read.

    Raises:
        DataError: A file cannot be read.
    """
    started = time.time_ns()
    table_file = folder / FILE_NAME
    cached = _read(table_file)
    locations = [located(root, path) for path in paths]
    stamps = _stamps(locations)
    digests = [cached.get((path, *stamp), "") for path, stamp in zip(paths, stamps, strict=True)]
    todo = [i for i, digest in enumerate(digests) if not digest]
    if not todo:
        return digests

    n_threads = min(8, (os.cpu_count() or 1) * 2)
    written = time.monotonic()
    try:
        for i, digest in ahead(lambda i: _sha256(locations[i]), todo, n_threads=n_threads):
            digests[i] = digest
            if progress is not None:
                progress(1)
            if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                _write(table_file, paths, stamps, digests, started)
                written = time.monotonic()
    finally:
        _write(table_file, paths, stamps, digests, started)
    return digests


def forget_digests(folder: Path, paths: Sequence[str]) -> None:
    """Forget the digests of files that were found to have other bytes, so that they are read again.

    Args:
        folder: The data set's folder in the cache.
        paths: The image files.
    """
    table_file = folder / FILE_NAME
    cached, forgotten = _read(table_file), set(paths)
    rows = [(*key, sha256) for key, sha256 in cached.items() if key[0] not in forgotten]
    if len(rows) < len(cached):
        write_table(table_file, pd.DataFrame(rows, columns=list(COLUMNS)), digested=True)


def known_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the image files, by path, when their digests were kept.

    Args:
        folder: The data set's folder in the cache.
    """
    return {path: size for path, size, *_ in _read(folder / FILE_NAME)}


def _sha256(location: str) -> str:
    try:
        return sha256_of(location)
    except OSError as error:
        raise _unreadable(location, error) from error


def _stamps(locations: Sequence[str]) -> list[Stamp]:
    def stamp(location: str) -> Stamp:
        try:
            return stamp_of(location)
        except OSError as error:
            raise _unreadable(location, error) from error

    if not any(map(is_remote, locations)):
        return [stamp(location) for location in locations]
    with ThreadPoolExecutor(_N_STAMP_THREADS) as pool:
        return list(pool.map(stamp, locations))


def _unreadable(location: str, error: OSError) -> DataError:
    advice = "rerun the command, or take it out of the data set"
    if error.errno == errno.EACCES:
        advice = "check its permissions"
    return DataError(f"{location} cannot be read: {error.strerror or error}; {advice}.")


def _read(table_file: Path) -> dict[tuple[str, int, int, int], str]:
    """Return the digest of each (path, size, mtime_ns, ctime_ns)."""
    try:
        table = read_table(table_file, _TYPES, digested=True)
        columns = [table[name].tolist() for name in COLUMNS]
    except (OSError, ValueError, KeyError):
        return {}  # missing or damaged: every file is read again
    return {(path, *stamp): sha256 for path, *stamp, sha256 in zip(*columns, strict=True)}


def _write(
    table_file: Path,
    paths: Sequence[str],
    stamps: Sequence[Stamp],
    digests: Sequence[str],
    read_at: int,
) -> None:
    rows = [
        (path, *stamp, digest)
        for path, stamp, digest in zip(paths, stamps, digests, strict=True)
        if digest and max(stamp[1:]) < read_at - _RACY_NANOSECONDS
    ]
    write_table(table_file, pd.DataFrame(rows, columns=list(COLUMNS)), digested=True)
