"""The door to TensorFlow: imports it quietly, and with an allocator that keeps its memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Sends what native code writes to standard error to nowhere, for a moment.

    TensorFlow's C++ logs before it reads ``TF_CPP_MIN_LOG_LEVEL``, so nothing gentler helps.
    """
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


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without this, TensorFlow gives each large tensor back to the system and asks for it again, and
# the page faults take 40 % of a forward pass on a processor, and more of a training step.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or "tensorflow" in sys.modules:
    import tensorflow as tf
else:
    with _silent_stderr():
        import tensorflow as tf

        # The first look for accelerators logs too.
        tf.config.list_physical_devices()

__all__ = ["frozen", "tf"]


def frozen(function: Any) -> Any:
    """A concrete function without variables or calls: the same graph, inlined, of constants."""
    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants.convert_variables_to_constants_v2(function)
