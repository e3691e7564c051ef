"""Bytes and versions of image files: below the data set's folder, or at a URL.

Tables and folders come from strangers. So a local file is read only if it is a regular one of at
most `MAX_BYTES`, and a URL only if it is `https://`, `http://`, `s3://` or `gs://`, without
fsspec's chains (`::`), and leads to no private address but those that
`$HUBRETRAIN_PRIVATE_ADDRESSES` permits. URLs are read through fsspec
(https://filesystem-spec.readthedocs.io), which the extra `hubretrain[remote]` installs. No other
file imports it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import ipaddress
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

from hubretrain.errors import DataError, first_line
from hubretrain.files import check_regular, open_regular, too_large

Stamp = tuple[int, int, int]
MAX_BYTES = 2**29
"""Size of the largest image file that is read: 89 megapixels of 16 bits have less."""
SCHEMES = ("https", "http", "s3", "gs")
PRIVATE_ADDRESSES = "HUBRETRAIN_PRIVATE_ADDRESSES"
_BLOCK = 2**20
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
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSAL = re.compile(rf"[^\s\[]+ is a private address; {PRIVATE_ADDRESSES}\S+ lets it be read")
_importing = threading.Lock()


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def located(root: Path, path: str) -> str:
    """Return where an image is: its URL, or its file below `root`."""
    return path if is_remote(path) else str(root / path)


def check_url(url: str) -> None:
    """Raise DataError unless a URL is one that is read."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "::" in url or re.search(r"[\x00-\x20\x7f]", url):
        raise DataError(
            f"{url!r} is no URL that is read; expected one that begins with "
            f"{', '.join(f'{name}://' for name in SCHEMES)}, without :: and spaces."
        )


def read_bytes(location: str) -> bytes:
    """Return the bytes of an image file.

    Args:
        location: What `located` returns.

    Raises:
        OSError: It cannot be read, is no regular file, or has more than `MAX_BYTES`.
        DataError: It is a URL that is not read, or no installed library reads it.
    """
    if is_remote(location):
        return _download(location)
    with open_regular(location, MAX_BYTES) as file:
        return _bounded(file)


def open_bytes(location: str) -> io.FileIO | io.BytesIO:
    """Open an image file to read parts of it; what is at a URL is downloaded.

    Raises:
        OSError: See `read_bytes`.
        DataError: See `read_bytes`.
    """
    if is_remote(location):
        return io.BytesIO(_download(location))
    return open_regular(location, MAX_BYTES)


def sha256_of(location: str) -> str:
    """Return the SHA-256 of an image file's bytes as lower-case hex.

    Raises:
        OSError: See `read_bytes`.
        DataError: See `read_bytes`.
    """
    with open_bytes(location) as file:  # hashlib lets other threads run while it digests
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(location: str) -> Stamp:
    """Return size and two times of a file, which change when its bytes do, as in git's index.

    The times of a URL are a hash of what the server tells of its version.

    Raises:
        OSError: The file is missing or is not read (see `read_bytes`), or the server does not
            answer.
        DataError: See `read_bytes`.
    """
    if not is_remote(location):
        status = os.stat(location)
        check_regular(status, location, MAX_BYTES)
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


def _download(url: str) -> bytes:
    files, path = _file_system(url)
    try:
        if url.startswith("http"):
            # Without blocks it is one request, whose body is read no further than it may go; any
            # size given spares the request that would ask for it.
            with files.open(path, "rb", block_size=0, size=1) as file:
                return _bounded(file)
        n_bytes = int(files.info(path).get("size") or 0)
        if n_bytes > MAX_BYTES:
            raise OSError(errno.EFBIG, too_large(n_bytes, MAX_BYTES))
        return bytes(files.cat_file(path))
    except Exception as error:  # each kind of storage raises types of its own
        raise _unreadable(error) from error


def _bounded(file: Any) -> bytes:
    """Read a file to its end, which may have moved since its size was asked for."""
    blocks, n_bytes = [], 0
    while block := file.read(_BLOCK):
        blocks.append(block)
        n_bytes += len(block)
        if n_bytes > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {MAX_BYTES:,} bytes")
    return b"".join(blocks)


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    check_url(url)
    scheme = url.partition("://")[0]
    with _importing:
        try:
            import fsspec

            options = {"get_client": _client} if scheme.startswith("http") else {}
            # Not url_to_fs, which takes chains and any protocol.
            files = fsspec.filesystem(scheme, **options)
            return files, str(files._strip_protocol(url))
        except ImportError as error:
            needed = {"s3": "s3fs", "gs": "gcsfs"}.get(scheme, "fsspec and aiohttp")
            raise DataError(
                f"{url} cannot be read without {needed} ({error}); install it with: "
                "pip install 'hubretrain[remote]'"
            ) from error
        except ValueError as error:
            raise DataError(f"{url} cannot be read as a URL ({error}).") from error


async def _client(**options: Any) -> Any:
    """Return the HTTP client of fsspec, which connects to public addresses only."""
    import aiohttp

    connector = aiohttp.TCPConnector(socket_factory=_public_socket)
    return aiohttp.ClientSession(connector=connector, **options)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return the socket of a connection, which redirects and name servers may lead anywhere."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]) and not _is_permitted(address[0]):
        raise OSError(
            errno.EACCES,
            f"{address[0]} is a private address; {PRIVATE_ADDRESSES}={address[0]} lets it be read",
        )
    return socket.socket(family, kind, protocol)


def _is_permitted(address: str) -> bool:
    """Return whether a private address is in a network that `$HUBRETRAIN_PRIVATE_ADDRESSES` names.

    Networks are separated by commas, such as `10.0.0.0/8,127.0.0.1`.
    """
    names = os.environ.get(PRIVATE_ADDRESSES, "").split(",")
    networks = [ipaddress.ip_network(name.strip(), strict=False) for name in names if name.strip()]
    ip = ipaddress.ip_address(address)
    return any(ip in network for network in networks)


def is_public(address: str) -> bool:
    """Return whether an IP address is of the internet, not of this machine or a local network."""
    ip: Any = ipaddress.ip_address(address)
    if ip.version == 6:  # some hold an address of IPv4
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return bool(ip.is_global and not ip.is_multicast)


def _unreadable(error: Exception) -> OSError:
    causes: list[BaseException] = [error]  # fsspec puts a bare "not found" in place of most
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for cause in causes:
        if refusal := _REFUSAL.search(str(cause)):
            return OSError(errno.EACCES, refusal[0])
    reason = next((line for c in causes if "://" not in (line := first_line(c))), first_line(error))
    return OSError(0, reason if len(reason) > 3 else type(error).__name__)
