"""Offline mode, network timeout, and download progress."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
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
    raise OSError(errno.ENETUNREACH, "the network is not used")


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
