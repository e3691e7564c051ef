"""One writer a file, kept by a lock that a dead process does not hold."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hubretrain.errors import CacheError


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Holds the lock of a file that has one writer. The system lets go of it when the process dies.

    Raises:
        CacheError: Another process holds it, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.exists() and os.fstat(handle).st_ino == lock.stat().st_ino:
                    break
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace").strip()
                os.close(handle)
                raise CacheError(
                    f"{path} is being written by {holder or 'another process'}; "
                    "wait for it, or stop it."
                ) from None
            os.close(handle)  # its last holder removed the lock in between: take the new one
    except OSError as error:
        raise CacheError(
            f"{path.parent}/ cannot be written ({error.strerror}); mend its rights, "
            "or choose another folder."
        ) from error
    try:
        with contextlib.suppress(OSError):  # a full disk; it is only for others to read
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock of a file."""
    try:
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
