"""Quiet for native code that greets at length on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_one_at_a_time = threading.Lock()  # two at once would leave standard error closed


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Sends what native code writes to standard error to nowhere, for a moment.

    TensorFlow's C++ logs before it reads `TF_CPP_MIN_LOG_LEVEL`, and LiteRT reads nothing, so
    nothing gentler helps.
    """
    with _one_at_a_time:
        yield from _silent()


def _silent() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # no standard error to begin with
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
