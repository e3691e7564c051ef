"""Single-writer file lock, released when its process dies.

The lock is `flock` on a file beside the one that is written, which also tells who holds it. The
filelock package does not tell, and leaves its lock files behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hubretrain.errors import LockedError, WriteError


@contextlib.contextmanager
def only_writer(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file that may have one writer only.

    Args:
        path: The file.
        wait: Wait while another process holds it, for seconds of work.

    Raises:
        LockedError: Another process holds it.
        WriteError: The folder cannot be written.
    """
    lock = _lock_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(lock, path, wait=wait)
    except OSError as error:
        raise WriteError(
            f"{path.parent}/ cannot be written ({error.strerror}); fix permissions, or choose "
            "another folder."
        ) from error
    try:
        _sign(handle)
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Hold a lock of a file that others may hold, too, but not beside `only_writer`.

    Where the folder cannot be written, nothing is held: nobody can write it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        _sign(handle)
        yield
    finally:
        with contextlib.suppress(OSError):
            if _flock(handle):  # nobody else uses it
                _lock_of(path).unlink()
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Return whether some process holds the lock of a file."""
    try:
        handle = os.open(_lock_of(path), os.O_RDWR)
    except OSError:
        return False
    try:
        return not _flock(handle)
    finally:
        os.close(handle)


def _sign(handle: int) -> None:
    """Write into a lock file who holds it."""
    with contextlib.suppress(OSError):  # a full disk; the name is only for others to read
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _locked(lock: Path, path: Path, *, wait: bool) -> int:
    """Return the handle of a lock file that this process holds."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if not _flock(handle, wait=wait):
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            raise LockedError(
                f"{path} is being written by {holder or 'another process'}; "
                "wait for it, or stop it."
            )
        if lock.exists() and os.fstat(handle).st_ino == lock.stat().st_ino:
            return handle
        os.close(handle)  # its last holder removed the lock in between: take the new one


def _flock(handle: int, *, wait: bool = False) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
