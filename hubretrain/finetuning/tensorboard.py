"""Epochs for TensorBoard: `finetune/<module>/tensorboard/`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubretrain.errors import RunError
from hubretrain.tensorflow import tf

_LEFT_OUT = {"epoch", "phase", "step"}


def log_epoch(folder: Path, row: Mapping[str, Any]) -> None:
    """Adds one row of the history, each number a scalar at its epoch.

    The events are written as TensorFlow's own summaries, without the tensorboard package, which
    only looking at them needs: `tensorboard --logdir runs`. An epoch that is done again after a
    kill is logged again, with the same numbers.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        _log(folder / "tensorboard", row)
    except tf.errors.OpError as error:
        raise RunError(
            f"{folder}/tensorboard/ cannot be written ({error.message}); make room and run the "
            "same command again: it goes on from the last checkpoint."
        ) from error


def _log(folder: Path, row: Mapping[str, Any]) -> None:
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(), tf.device("cpu:0"):
        for name, value in row.items():
            if name in _LEFT_OUT or not math.isfinite(value):
                continue
            summary = tf.compat.v1.Summary(
                value=[tf.compat.v1.Summary.Value(tag=f"epoch/{name}", simple_value=float(value))]
            )
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=row["epoch"])
    writer.close()
