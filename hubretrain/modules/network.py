"""Offline mode, network timeout, and download progress."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubretrain.errors import first_line
from hubretrain.progress import is_progress_shown

OFFLINE = "HUBRETRAIN_OFFLINE"
_PROGRESS = "TFHUB_DOWNLOAD_PROGRESS"
TIMEOUT_SECONDS = 20.0
_this_thread = threading.local()


def is_offline() -> bool:
    """Return whether `$HUBRETRAIN_OFFLINE` forbids the network."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "no", "false", "off")


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Let libraries download within the block: with a timeout, or offline not at all.

    Libraries look into their own caches first, so offline they find what is there. Each has
    another switch for offline use, or none, so connections are refused at the socket instead.
    Only those of this thread: others may serve or read images meanwhile.
    """
    _watch_sockets()
    before = getattr(_this_thread, "is_downloading", False)
    _this_thread.is_downloading = True
    try:
        yield
    finally:
        _this_thread.is_downloading = before


@functools.cache
def _watch_sockets() -> None:
    sys.addaudithook(_on_event)


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a connection of this thread, or give it a timeout; most libraries set none."""
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    if not getattr(_this_thread, "is_downloading", False):
        return
    if is_offline():
        raise OSError(errno.ENETUNREACH, "the network is not used")
    if event == "socket.connect" and arguments[0].gettimeout() is None:
        arguments[0].settimeout(TIMEOUT_SECONDS)


@contextlib.contextmanager
def shown_progress() -> Iterator[None]:
    """Let tensorflow_hub show the progress of downloads within the block, in a terminal."""
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and sys.stderr.isatty() and is_progress_shown()):
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


def reason_of(error: BaseException) -> str:
    """Return in a few words what a library's error says is wrong.

    Libraries wrap what the system said in exceptions of their own, whose texts hold names of Python
    objects; the first that came from the system says it best.
    """
    if isinstance(error, EOFError) or type(error).__name__ == "ReadError":
        return f"the download is truncated or damaged: {str(error).rstrip('. ')}"
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return "no network, or no such host"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror[:1].lower() + cause.strerror[1:]
    return first_line(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    pending, known = [error], set()
    while pending:
        cause = pending.pop(0)
        if id(cause) not in known:
            known.add(id(cause))
            yield cause
            # `reason` is urllib's and urllib3's; the latter passes it on as an argument, too.
            nested = (getattr(cause, "reason", None), *cause.args, cause.__cause__)
            pending += [e for e in (*nested, cause.__context__) if isinstance(e, BaseException)]


def no_cache_of(handle: str) -> bool:
    """Return whether the library that downloads a handle has cached nothing on this machine.

    Asked before the libraries are imported, which takes seconds.
    """
    if handle.startswith("kaggle:"):
        folder = os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub"
    else:
        folder = os.environ.get("TFHUB_CACHE_DIR") or Path(tempfile.gettempdir()) / "tfhub_modules"
    # Failed downloads leave empty folders and files beside the modules, which are folders.
    return not any(path.is_dir() for path in Path(folder).glob("*/*"))
