"""Offline mode, network timeout, and download progress."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from hubretrain.errors import first_line
from hubretrain.progress import is_progress_shown

OFFLINE = "HUBRETRAIN_OFFLINE"
_PROGRESS = "TFHUB_DOWNLOAD_PROGRESS"
TIMEOUT_SECONDS = 20.0


def is_offline() -> bool:
    """Return whether `$HUBRETRAIN_OFFLINE` forbids the network."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "no", "false", "off")


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Let libraries download within the block: with a timeout, or offline not at all.

    Libraries look into their own caches first, so offline they find what is there. Each has
    another switch for offline use, or none, so connections are refused at the socket instead.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # most libraries set none
    try:
        with _refused() if is_offline() else contextlib.nullcontext():
            yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def shown_progress() -> Iterator[None]:
    """Let tensorflow_hub show the progress of downloads within the block, in a terminal."""
    if not (sys.stderr.isatty() and is_progress_shown()):
        yield
        return
    before = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it writes to standard output
            yield
    finally:
        os.environ.pop(_PROGRESS)
        if before is not None:
            os.environ[_PROGRESS] = before


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Replace the two functions that every connection goes through."""
    targets = [(socket.socket, "connect"), (socket, "getaddrinfo")]
    originals = [getattr(owner, name) for owner, name in targets]
    for owner, name in targets:
        setattr(owner, name, _refuse)
    try:
        yield
    finally:
        for (owner, name), function in zip(targets, originals, strict=True):
            setattr(owner, name, function)


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENETUNREACH, "offline: the network is not used")


def reason_of(error: BaseException) -> str:
    """Return the one line of a library's error that says what is wrong."""
    if isinstance(error, EOFError) or type(error).__name__ == "ReadError":
        return f"the download is truncated or damaged: {str(error).rstrip('. ')}"
    text = str(error).strip().partition("\n")[0]
    if "Caused by" not in text:
        return first_line(error)
    # urllib3 wraps its causes in each other's names, behind a URL of any length.
    cause = text.rpartition("Caused by")[2].rpartition(": ")[2]
    return cause.rstrip("')\" ").removesuffix(".")
