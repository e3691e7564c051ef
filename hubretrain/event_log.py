"""Epochs for TensorBoard: ``finetune/<module>/tensorboard/``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubretrain.tensorflow_door import tf

_LEFT_OUT = {"epoch", "phase", "step"}


def log_epoch(folder: Path, row: Mapping[str, Any]) -> None:
    """Adds one row of the history, each number a scalar at its epoch.

    The events are written as TensorFlow's own summaries, without the tensorboard package, which
    only looking at them needs: ``tensorboard --logdir runs``. An epoch that is done again after a
    kill is logged again, with the same numbers.
    """
    writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
    with writer.as_default(), tf.device("cpu:0"):
        for name, value in row.items():
            if name in _LEFT_OUT or not math.isfinite(value):
                continue
            summary = tf.compat.v1.Summary(
                value=[tf.compat.v1.Summary.Value(tag=f"epoch/{name}", simple_value=float(value))]
            )
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=row["epoch"])
    writer.close()
