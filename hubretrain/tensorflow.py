"""The one import of TensorFlow: without its start-up log, with an allocator that keeps memory."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

from hubretrain.quiet import silent_stderr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# tensorflow-hub 0.16.1 imports it; whoever runs hubretrain can do nothing about it.
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
# By default TensorFlow returns each large tensor's memory to the system and requests it again; the
# page faults take 40 % of a forward pass on a CPU, and more of a training step. The BFC allocator
# ("best fit with coalescing", which TensorFlow uses on GPUs) keeps it.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or "tensorflow" in sys.modules:
    import tensorflow as tf
else:
    with silent_stderr():
        import tensorflow as tf

        # The first look for accelerators logs too.
        tf.config.list_physical_devices()


def _is_of_more_than_a_fingerprint(record: logging.LogRecord) -> bool:
    """Return whether a message of TensorFlow's is another than of a damaged `fingerprint.pb`.

    It holds a random number that nothing here reads, and TensorFlow prints a traceback of it.
    """
    return not str(record.msg).startswith("Fingerprint was found, but there was an error")


logging.getLogger("absl").addFilter(_is_of_more_than_a_fingerprint)


def frozen(function: Any, *, lower_control_flow: bool = True) -> Any:
    """Return the same graph with variables as constants and calls inlined.

    Args:
        function: A concrete function.
        lower_control_flow: Turn conditions and loops into switches and merges.
    """
    # Nothing in TensorFlow's public interface freezes a concrete function.
    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=lower_control_flow
    )


def inlined(function: Any, *, also_compiled: bool = False) -> Any:
    """Return the definition of the same graph with every call of a function inlined.

    What the function captured (variables, tables) stays a placeholder of the same name, so the
    graph can be imported again with the same variables, and trained.

    Args:
        function: A concrete function.
        also_compiled: Inline those too that XLA is to compile, such as Keras' grouped
            convolutions. To look at, not to run: no kernel of the CPU may be able to.

    Returns:
        A GraphDef; conditions and loops stay single operations.
    """
    # As in TensorFlow's own convert_to_constants: nothing public inlines a graph.
    from tensorflow.python.framework.convert_to_constants import disable_lower_using_switch_merge
    from tensorflow.python.grappler import tf_optimizer

    whole = tf.compat.v1.MetaGraphDef()
    whole.graph_def.CopyFrom(disable_lower_using_switch_merge(function.graph.as_graph_def()))
    if also_compiled:
        functions = whole.graph_def.library.function
        nodes = [node for body in functions for node in body.node_def]
        for definition in (*functions, *nodes, *whole.graph_def.node):
            definition.attr.pop("_XlaMustCompile", None)
            definition.attr.pop("_noinline", None)
    kept = [tensor.name for tensor in (*function.inputs, *function.outputs)]
    whole.collection_def["train_op"].node_list.value.extend(kept)
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1  # small graphs too
    config.graph_options.rewrite_options.optimizers.append("function")
    return _without_handle_copies(tf_optimizer.OptimizeGraph(config, whole))


def _without_handle_copies(definition: Any) -> Any:
    """Return a graph definition whose operations take the handles of variables themselves.

    Inlining puts an `Identity` before each argument of a function. Behind one, LiteRT's converter
    does not see that a variable is constant: it neither folds nor quantises it, and the model is
    several times slower.
    """
    source = {
        node.name: node.input[0]
        for node in definition.node
        if node.op == "Identity" and node.attr["T"].type == tf.resource.as_datatype_enum
    }
    for node in definition.node:
        for i, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[i] = name
        node.attr.pop("_class", None)  # "on the same device as" such a copy
    return definition


__all__ = ["frozen", "inlined", "tf"]
