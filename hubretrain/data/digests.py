"""The sha256 of every image file, kept in a table so that an unchanged file is read once.

On disk: `digests.csv` with columns `path, size, mtime_ns, ctime_ns, sha256`. A file whose
three numbers are the same is taken to be the same, as git's index does; one that was changed
less than two seconds before the table was written is read again, for it may have changed
once more within the clock's tick.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from hubretrain.errors import DataError
from hubretrain.files import write_table
from hubretrain.parallel import ahead
from hubretrain.storage import Stamp, is_remote, located, read_bytes, stamp_of

_RACY_NANOSECONDS = 2_000_000_000
_SECONDS_TO_KEEP = 30.0
_N_ASKING = 16  # servers that are asked for versions answer many at a time


def image_digests(
    root: Path,
    paths: Sequence[str],
    table_file: Path,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The sha256 of each image file, as lower-case hex.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        table_file: The `digests.csv` to read first and to bring up to date.
        progress: Called with the number of images just read.

    Raises:
        DataError: A file cannot be read.
    """
    known = _read(table_file)
    now = time.time_ns()
    places = [located(root, path) for path in paths]
    facts = _stamps(places)
    digests = [known.get((path, *fact), "") for path, fact in zip(paths, facts, strict=True)]
    todo = [i for i, digest in enumerate(digests) if not digest]
    if not todo:
        return digests

    n_threads = min(8, (os.cpu_count() or 1) * 2)
    kept_at = time.monotonic()
    try:
        for i, digest in ahead(lambda i: _content_sha256(places[i]), todo, n_threads=n_threads):
            digests[i] = digest
            if progress is not None:
                progress(1)
            if time.monotonic() - kept_at > _SECONDS_TO_KEEP:  # a kill costs no more than these
                _write(table_file, paths, facts, digests, now)
                kept_at = time.monotonic()
    finally:
        _write(table_file, paths, facts, digests, now)
    return digests


def _content_sha256(place: str) -> str:
    """The sha256 of one image file's bytes, as lower-case hex.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        # hashlib lets other threads run while it digests, so a pool of them pays.
        return hashlib.sha256(read_bytes(place)).hexdigest()
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror}; check its rights.") from error


def _stamps(places: Sequence[str]) -> list[Stamp]:
    def stamp(place: str) -> Stamp:
        try:
            return stamp_of(place)
        except OSError as error:
            raise DataError(f"{place} cannot be read: {error.strerror}.") from error

    if not any(map(is_remote, places)):
        return [stamp(place) for place in places]
    with ThreadPoolExecutor(_N_ASKING) as pool:
        return list(pool.map(stamp, places))


def _read(table_file: Path) -> dict[tuple[str, int, int, int], str]:
    try:
        table = pd.read_csv(table_file, dtype={"path": str, "sha256": str}, keep_default_na=False)
        columns = [table[c].tolist() for c in ("path", "size", "mtime_ns", "ctime_ns", "sha256")]
    except (OSError, ValueError, KeyError):
        return {}  # missing or damaged: it is only a memory, and every file is read again
    return {(p, s, m, c): digest for p, s, m, c, digest in zip(*columns, strict=True)}


def _write(
    table_file: Path,
    paths: Sequence[str],
    facts: Sequence[tuple[int, int, int]],
    digests: Sequence[str],
    read_at: int,
) -> None:
    rows = [
        (path, *fact, digest)
        for path, fact, digest in zip(paths, facts, digests, strict=True)
        if digest and max(fact[1:]) < read_at - _RACY_NANOSECONDS
    ]
    columns = ["path", "size", "mtime_ns", "ctime_ns", "sha256"]
    write_table(table_file, pd.DataFrame(rows, columns=columns))
