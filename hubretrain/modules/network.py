"""Whether the network may be used, and how long it may keep silent."""

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
SECONDS_TO_ANSWER = 20.0


def is_offline() -> bool:
    """Whether `$HUBRETRAIN_OFFLINE` forbids the network."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "no", "false", "off")


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A stretch in which libraries may fetch: with a time limit, or offline not at all.

    Libraries look into their own caches first, so offline they find what is there. What they
    then try to reach is refused here, whichever of them tries and by whatever way.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_ANSWER)  # most would wait for ever
    try:
        with _refused() if is_offline() else contextlib.nullcontext():
            yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def shown_progress() -> Iterator[None]:
    """A stretch in which tensorflow_hub shows how far a download is, in a terminal."""
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
    places = [(socket.socket, "connect"), (socket, "getaddrinfo")]
    kept = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, _refuse)
    try:
        yield
    finally:
        for (place, name), function in zip(places, kept, strict=True):
            setattr(place, name, function)


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENETUNREACH, "offline: the network is not used")


def reason_of(error: BaseException) -> str:
    """The one line of a library's error that says what is wrong."""
    if isinstance(error, EOFError) or type(error).__name__ == "ReadError":
        return f"what was sent is truncated or damaged: {str(error).rstrip('. ')}"
    text = first_line(error)
    if "Caused by" in text:  # urllib3 wraps its causes in each other's names
        text = text.rpartition("Caused by")[2].rpartition(": ")[2].rstrip("')\" ")
    return text
