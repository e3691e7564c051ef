"""Devices to train on: one, all GPUs of a machine, several machines; float16."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hubretrain.arrays import IntArray
from hubretrain.errors import RunError
from hubretrain.tensorflow import tf


@dataclass(frozen=True)
class Devices:
    """The devices of a training, as one machine sees them.

    Attributes:
        strategy: Distribution strategy of TensorFlow.
        n_replicas: Number of devices over all machines: a batch is divided among them.
        local: Indices of the devices of this machine.
        is_chief: Whether this machine writes the run.
    """

    strategy: Any
    n_replicas: int = 1
    local: tuple[int, ...] = (0,)
    is_chief: bool = True

    def share(self, batch: IntArray) -> list[IntArray]:
        """Return the images of a batch for each local device: every n-th of them."""
        return [batch[replica :: self.n_replicas] for replica in self.local]

    def traced(self, step: Callable[..., Any], signature: list[Any]) -> Any:
        """Return a step as a graph that runs on every device."""
        if self.n_replicas == 1:
            return tf.function(step, input_signature=signature)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def on_each(*arguments: Any) -> Any:
            return self.strategy.run(step, args=arguments)

        return on_each

    def run(self, function: Any, parts: list[tuple[Any, ...]]) -> float:
        """Run a function on each device's part, and return the sum of its results."""
        if self.n_replicas == 1:
            return float(function(*parts[0]))
        first = self.local[0]
        arguments = [
            self.strategy.experimental_distribute_values_from_function(
                lambda context, k=k: tf.convert_to_tensor(
                    parts[context.replica_id_in_sync_group - first][k]
                )
            )
            for k in range(len(parts[0]))
        ]
        results = function(*arguments)
        return float(self.strategy.reduce(tf.distribute.ReduceOp.SUM, results, axis=None))

    def agreed(self, values: list[float]) -> list[float]:
        """Return the mean of each value over the machines, so that all decide alike."""
        if len(self.local) == self.n_replicas:
            return values

        @tf.function  # type: ignore[untyped-decorator]
        def everywhere() -> Any:
            return self.strategy.run(lambda: tf.constant(values, tf.float64))

        means = self.strategy.reduce(tf.distribute.ReduceOp.MEAN, everywhere(), axis=None)
        return [float(x) for x in means.numpy()]


def available_devices(*, mixed_precision: bool = False) -> Devices:
    """Return all GPUs of this machine, or of the machines that `TF_CONFIG` names; else the CPU.

    `TF_CONFIG` is TensorFlow's: https://www.tensorflow.org/guide/distributed_training#TF_CONFIG

    Raises:
        RunError: `TF_CONFIG` is malformed, or mixed precision is requested without a GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if mixed_precision and not gpus:
        raise RunError(
            "`mixed_precision` is True, but TensorFlow finds no GPU, and only a GPU gains by "
            "float16; leave it out, or continue on a machine with a GPU."
        )
    if mixed_precision:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision": True})
    task = _task()
    if task is not None:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        n_replicas, n_workers, index = strategy.num_replicas_in_sync, *task
        n_local = n_replicas // n_workers
        local = tuple(range(index * n_local, (index + 1) * n_local))
        return Devices(strategy, n_replicas, local, index == 0)
    if len(gpus) > 1:
        strategy = tf.distribute.MirroredStrategy()
        local = tuple(range(strategy.num_replicas_in_sync))
        return Devices(strategy, len(local), local)
    return Devices(tf.distribute.get_strategy())


def _task() -> tuple[int, int] | None:
    """Return (number of workers, index of this one), or None for one machine."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        config = json.loads(text)
        workers = [*config["cluster"].get("chief", ()), *config["cluster"].get("worker", ())]
        offset = len(config["cluster"].get("chief", ())) if config["task"]["type"] != "chief" else 0
        index = offset + int(config["task"]["index"])
        workers[index]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError(
            f"TF_CONFIG describes no cluster ({type(error).__name__}: {error}); expected "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}.'
        ) from None
    return (len(workers), index) if len(workers) > 1 else None
