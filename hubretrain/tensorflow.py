"""The door to TensorFlow: imports it quietly, and with an allocator that keeps its memory."""

from __future__ import annotations

import os
import sys
from typing import Any

from hubretrain.quiet import silent_stderr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without this, TensorFlow gives each large tensor back to the system and asks for it again, and
# the page faults take 40 % of a forward pass on a processor, and more of a training step.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or "tensorflow" in sys.modules:
    import tensorflow as tf
else:
    with silent_stderr():
        import tensorflow as tf

        # The first look for accelerators logs too.
        tf.config.list_physical_devices()


def frozen(function: Any, *, lower_control_flow: bool = True) -> Any:
    """A concrete function without variables or calls: the same graph, inlined, of constants.

    Args:
        function: A concrete function.
        lower_control_flow: Make switches and merges of conditions and loops.
    """
    from tensorflow.python.framework import convert_to_constants  # no public name leads there

    return convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=lower_control_flow
    )


__all__ = ["frozen", "tf"]
