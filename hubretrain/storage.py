"""Bytes and versions of image files: below the data set's folder, or at a URL.

A path with `://` in it (`https://`, `s3://`, `gs://`, `memory://` ...) is read through fsspec
(https://filesystem-spec.readthedocs.io), which the extra `hubretrain[remote]` installs. No other
file imports it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from hubretrain.errors import DataError, first_line

Stamp = tuple[int, int, int]
_VERSION = (
    "ETag",
    "etag",
    "LastModified",
    "Last-Modified",
    "Content-MD5",
    "Digest",
    "mtime",
    "updated",
    "created",
    "version_id",
)
_importing = threading.Lock()


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def located(root: Path, path: str) -> str:
    """Return where an image is: its URL, or its file below `root`."""
    return path if is_remote(path) else str(root / path)


def read_bytes(location: str) -> bytes:
    """Return the bytes of an image file.

    Args:
        location: What `located` returns.

    Raises:
        OSError: It cannot be read.
        DataError: No installed library reads such a URL.
    """
    if not is_remote(location):
        return Path(location).read_bytes()
    files, path = _file_system(location)
    try:
        return bytes(files.cat_file(path))
    except Exception as error:  # each kind of storage raises types of its own
        raise _unreadable(error) from error


def stamp_of(location: str) -> Stamp:
    """Return size and two times of a file, which change when its bytes do, as in git's index.

    The times of a URL are a hash of what the server tells of its version.

    Raises:
        OSError: The file is missing, or the server does not answer.
        DataError: No installed library reads such a URL.
    """
    if not is_remote(location):
        status = os.stat(location)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
    files, path = _file_system(location)
    try:
        info = files.info(path)
    except Exception as error:
        raise _unreadable(error) from error
    version = [info.get(name) for name in _VERSION]
    if not any(version):  # no version is known: the file is read each time
        return int(info.get("size") or 0), time.time_ns(), 0
    number = int.from_bytes(hashlib.sha256(repr(version).encode()).digest()[:6], "big")
    return int(info.get("size") or 0), number, 0


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    with _importing:
        try:
            import fsspec

            files, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            needed = (
                "s3fs" if url.startswith("s3:") else "gcsfs" if url.startswith("g") else "fsspec"
            )
            raise DataError(
                f"{url} cannot be read without {needed} ({error}); install it with: "
                "pip install 'hubretrain[remote]'"
            ) from error
        except ValueError as error:
            raise DataError(
                f"{url} cannot be read as a URL ({error}); expected s3://, gs:// or https://."
            ) from error
    return files, str(path)


def _unreadable(error: Exception) -> OSError:
    reason = first_line(error)
    return OSError(0, reason if len(reason) > 3 else type(error).__name__)
