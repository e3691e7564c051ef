"""Suppression of what native libraries log to standard error at start-up."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_one_at_a_time = threading.Lock()  # two at once would leave standard error closed


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what native code writes to standard error inside.

    TensorFlow's C++ logs before it reads `TF_CPP_MIN_LOG_LEVEL`, and LiteRT reads no such
    variable, so nothing gentler helps. Only in the main thread: standard error belongs to the
    process, and other threads may write to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _one_at_a_time:
        yield from _silent()


def _silent() -> Iterator[None]:
    try:
        stderr = os.dup(2)
    except OSError:  # no standard error to begin with
        yield
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
