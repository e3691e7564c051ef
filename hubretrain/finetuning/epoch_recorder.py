"""The record of each epoch: early stopping, checkpoint, `history.csv`, TensorBoard."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from hubretrain.errors import RunError
from hubretrain.finetuning.checkpoints import Checkpoints, State
from hubretrain.finetuning.result import Validation
from hubretrain.finetuning.schedule import REDUCTION, Schedule
from hubretrain.runs import HISTORY
from hubretrain.tensorflow import tf

_log = logging.getLogger(__name__)
_NOT_LOGGED = {"epoch", "phase", "step"}


class Epoch(NamedTuple):
    """A finished epoch.

    Attributes:
        number: Number of the epoch; 0 is the head as it was fitted.
        phase: `head` where the head alone was trained, else `all`.
        learning_rate: Learning rate of its last step.
        loss: Mean training loss.
        validation: Values on the validation fold.
        score: What epochs are compared by, larger is better.
    """

    number: int
    phase: str
    learning_rate: float
    loss: float
    validation: Validation
    score: float


class EpochRecorder:
    """Counts finished epochs and writes them to disk.

    Args:
        folder: Folder of the fine-tuning.
        state: Where training stands; it is updated.
        checkpoints: Checkpoints of the fine-tuning.
        is_chief: Whether this machine writes the history.
    """

    def __init__(
        self, folder: Path, state: State, checkpoints: Checkpoints, *, is_chief: bool
    ) -> None:
        self.folder, self.state, self.checkpoints = folder, state, checkpoints
        self.is_chief = is_chief

    def record(
        self,
        epoch: Epoch,
        schedule: Schedule,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Decide whether training stops, then write checkpoint, history and TensorBoard's events.

        Args:
            epoch: The epoch.
            schedule: The training policy.
            averaged: Context in which the variables have the weights that were evaluated.

        Raises:
            RunError: The folder cannot be written.
        """
        state = self.state
        state.epoch, state.batch, state.loss_sum = epoch.number, 0, 0.0
        row = {
            "epoch": epoch.number,
            "phase": epoch.phase,
            "step": state.step,
            "learning_rate": epoch.learning_rate,
            "loss": epoch.loss,
            "validation_loss": epoch.validation.loss,
            "validation_accuracy": epoch.validation.accuracy,
            "validation_metric": epoch.validation.metric,
        }
        state.history.append(row)
        is_best = state.choose(epoch.score, epoch.validation.loss)
        state.count(
            epoch.validation.loss,
            patience=schedule.patience,
            reduce_after=schedule.reduce_after,
            factor=REDUCTION,
        )
        if epoch.phase == "head":  # a warm-up of the head uses up no patience
            state.stopped, state.scale, state.since_least, state.since_reduced = False, 1.0, 0, 0
        self.checkpoints.save(state, is_best=is_best, averaged=averaged)
        self.write_history()
        if self.is_chief:
            log_epoch(self.folder, row)
            if epoch.number:
                self._say(epoch)

    def _say(self, epoch: Epoch) -> None:
        _log.info(
            "epoch %d: loss %.4f, validation loss %.4f, validation accuracy %.3f",
            epoch.number,
            epoch.loss,
            epoch.validation.loss,
            epoch.validation.accuracy,
        )

    def history(self) -> pd.DataFrame:
        """Return one row per epoch; `kept` marks the one whose weights are kept."""
        table: pd.DataFrame = pd.DataFrame(self.state.history)
        table["kept"] = table["epoch"] == self.state.best_epoch
        return table

    def write_history(self) -> None:
        """Write `history.csv`."""
        if self.is_chief:
            HISTORY.write(self.folder, self.history())


def log_epoch(folder: Path, row: Mapping[str, Any]) -> None:
    """Write a row of the history for TensorBoard, each number as a scalar at its epoch.

    The events are TensorFlow's own protocol buffers, so the tensorboard package is needed only to
    look at them: `tensorboard --logdir runs`. An epoch that is repeated after a kill is logged
    again, with the same numbers.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        _write_events(folder / "tensorboard", row)
    except tf.errors.OpError as error:
        raise RunError(
            f"{folder}/tensorboard/ cannot be written ({error.message}); free disk space and rerun "
            "the command to resume from the last checkpoint."
        ) from error


def _write_events(folder: Path, row: Mapping[str, Any]) -> None:
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(), tf.device("cpu:0"):
        for name, value in row.items():
            if name in _NOT_LOGGED or not math.isfinite(value):
                continue
            summary = tf.compat.v1.Summary(
                value=[tf.compat.v1.Summary.Value(tag=f"epoch/{name}", simple_value=float(value))]
            )
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=row["epoch"])
    writer.close()
