"""The steps of an epoch, its evaluation on the validation fold, and its record.

An epoch is recorded for early stopping, in a checkpoint, in `history.csv` and for TensorBoard.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, IntArray
from hubretrain.errors import RunError
from hubretrain.finetuning.checkpoints import Checkpoints, State
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.input_pipeline import (
    EVALUATION_BATCH_SIZE,
    InputSource,
    PixelSource,
    TrainingImages,
    epoch_order,
    shuffled,
    split,
)
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.results import UNKNOWN, Criterion, Validation, top_1_accuracy
from hubretrain.finetuning.schedule import REDUCTION, Schedule, Speed, n_small_epochs
from hubretrain.finetuning.steps import Steps, TrainedModel
from hubretrain.modules import Cut
from hubretrain.progress import Bar
from hubretrain.runs import HISTORY
from hubretrain.tensorflow import tf

_log = logging.getLogger(__name__)
_NOT_LOGGED = {"epoch", "phase", "step", "planned_epochs"}
N_WARM_UP, N_TIMED = 2, 4  # steps that are made to measure their time


class EpochLoop:
    """Trains and evaluates epochs.

    Args:
        model: The model that is trained.
        options: How to train it.
        devices: Where to train it.
        inputs: Source of pixels, or of activations behind the cut.
        small: Source of smaller pixels, which the first epochs show.
        cut: Where the frozen part ends, for activations; None for pixels.
        checkpoints: Checkpoints that are written within an epoch.
        seconds_between_checkpoints: Time between those.
    """

    def __init__(
        self,
        model: TrainedModel,
        options: FineTuneOptions,
        devices: Devices,
        inputs: InputSource,
        small: InputSource,
        cut: Cut | None,
        checkpoints: Checkpoints,
        seconds_between_checkpoints: float,
    ) -> None:
        self.model, self.options, self.devices = model, options, devices
        self._inputs, self._small, self._checkpoints = inputs, small, checkpoints
        self._seconds_between_checkpoints = seconds_between_checkpoints
        self._steps = Steps(model, options, devices, cut)

    def train(
        self, number: int, phase: str, images: TrainingImages, state: State, schedule: Schedule
    ) -> tuple[float, float]:
        """Train the rest of an epoch.

        Args:
            number: Number of the epoch, from 1.
            phase: What is trained: `head`, or `all` that is not frozen.
            images: Images to train on.
            state: Where training stands; it is updated at each step.
            schedule: The training policy.

        Returns:
            The mean loss and the last learning rate; a loss that is not finite ends it at once.
        """
        batch_size = schedule.batch_size
        # Both depend on seed and epoch only, so a resumed epoch just skips the steps that are done.
        order = epoch_order(
            images, self.options.seed, number, is_balanced=self.options.balanced_sampling
        )
        is_small = self.options.small_first and number <= n_small_epochs(state.base_epochs)
        inputs = self._small if is_small else self._inputs
        train = (self._steps.train_small if is_small else self._steps.train)[phase]
        views = inputs.epoch_views(order, number)
        inputs.fill(views)
        steps = list(zip(split(order, batch_size), split(views, batch_size), strict=True))
        optimizer = self.model.optimizers[phase]
        learning_rate, saved = 0.0, time.monotonic()
        what, n_done = f"epoch {number} of {state.epochs}", state.batch * batch_size
        with Bar(what, len(images), already=n_done) as bar:
            pending = steps[state.batch :]
            parts_of_steps = self._parts(inputs, images, pending)
            for (batch, _), parts in zip(pending, parts_of_steps, strict=True):
                learning_rate = self._learning_rate(phase, len(steps), state, schedule)
                optimizer.set_rate(learning_rate)
                loss = self.devices.run(train, parts)
                if not np.isfinite(loss):
                    return loss, learning_rate
                state.loss_sum += loss * len(batch)
                state.step += 1
                state.batch += 1
                bar.advance(len(batch))
                is_due = time.monotonic() - saved >= self._seconds_between_checkpoints
                # Machines would decide at different times, and all of them take part in saving.
                if is_due and state.batch < len(steps) and self.devices.n_replicas == 1:
                    self._checkpoints.save(state)
                    saved = time.monotonic()
        return state.loss_sum / len(images), learning_rate

    def _parts(
        self, source: InputSource, images: TrainingImages, steps: list[tuple[IntArray, IntArray]]
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Yield, for each step, the inputs, labels and weights of each local replica."""
        batches = [self.devices.share(batch) for batch, _ in steps]
        views = [self.devices.share(numbers) for _, numbers in steps]
        inputs = source.batches(
            images,
            [part for parts in batches for part in parts],
            [part for parts in views for part in parts],
        )
        # Divided by the batch's own sum, rare classes would weigh less: batches that hold one have
        # larger sums than others.
        mean = images.weights.mean()
        for (batch, _), parts in zip(steps, batches, strict=True):
            total = mean * np.float32(len(batch))
            yield [(next(inputs), images.labels[p], images.weights[p] / total) for p in parts]

    def speed(self, images: TrainingImages, batch_size: int, n_cached_views: int) -> Speed:
        """Time a few steps and evaluations, warmed up. The optimizer's state is not kept as it was.

        Args:
            images: The training images.
            batch_size: Images per step.
            n_cached_views: See `Speed`; with any, the steps are made on `inputs`, which are
                activations, and not on smaller images.
        """
        self.model.optimizers["all"].set_rate(0.0)
        small_step = None
        if train_small := self._steps.train_small.get("all"):
            small_step = self._seconds_of(train_small, self._small, images, batch_size)
        step = self._seconds_of(self._steps.train["all"], self._inputs, images, batch_size)
        return Speed(step, small_step, self._seconds_of_evaluation(images), n_cached_views)

    def _seconds_of(
        self, step: Any, source: InputSource, images: TrainingImages, batch_size: int
    ) -> float:
        """Return the seconds per image of some steps, after the first ones."""
        order = np.resize(shuffled(len(images), 0, 1), (N_WARM_UP + N_TIMED) * batch_size)
        views = source.epoch_views(order, 1)
        steps = list(zip(split(order, batch_size), split(views, batch_size), strict=True))
        started = 0.0
        for k, parts in enumerate(self._parts(source, images, steps), 1):
            self.devices.run(step, parts)
            if k == N_WARM_UP:
                started = time.monotonic()
        return (time.monotonic() - started) / (N_TIMED * batch_size)

    def _seconds_of_evaluation(self, images: TrainingImages) -> float:
        pixels = PixelSource(self._image_size, self.options.augmentation, self.options.seed)
        some = images.first(2 * EVALUATION_BATCH_SIZE)
        self.model.probabilities(pixels, some.first(EVALUATION_BATCH_SIZE), what="timing")
        started = time.monotonic()
        self.model.probabilities(pixels, some, what="timing")
        return (time.monotonic() - started) / len(some)

    @property
    def _image_size(self) -> int:
        return self.model.classifier.backbone.stored.image_size

    def _learning_rate(
        self, phase: str, steps_per_epoch: int, state: State, schedule: Schedule
    ) -> float:
        """Return the learning rate of the next step: the peak, while the head alone is trained."""
        if phase == "head":
            return schedule.learning_rate
        step = state.step - self.options.warmup_head * steps_per_epoch
        return schedule.learning_rate_at(step, steps_per_epoch, state.scale)

    def validate(self, images: TrainingImages, criterion: Criterion, epoch: int) -> Validation:
        """Return the values of an epoch on the validation fold, the same on all machines."""
        loss, probs = self._steps.validate(self._inputs, images)
        values = [loss, top_1_accuracy(probs, images.labels), criterion.value(probs, epoch)]
        values = self.devices.agreed(values)
        return Validation(*values)


@dataclass(frozen=True)
class ZeroActivations:
    """Gives the top of a backbone zeros instead of activations, to time it by.

    Attributes:
        cut: The backbone in two pieces.
    """

    cut: Cut

    def epoch_views(self, order: IntArray, _epoch: int, /) -> IntArray:
        """Return view 0 for each position."""
        return np.zeros_like(order)

    def fill(self, _views: IntArray, /) -> None:
        """Do nothing."""

    def batches(
        self, _images: TrainingImages, batches: Sequence[IntArray], _views: Sequence[IntArray], /
    ) -> Iterator[tuple[AnyArray, ...]]:
        """Yield zeros of the shapes that `ActivationCache.batches` has."""
        for batch in batches:
            activations = np.zeros((len(batch), *self.cut.activations_shape), np.float16)
            yield activations, np.zeros((len(batch), self.cut.n_below), np.float32)


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
        metric: Name of the metric that epochs are compared by; None for the loss.
        is_chief: Whether this machine writes the history.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        checkpoints: Checkpoints,
        metric: str | None = None,
        *,
        is_chief: bool,
    ) -> None:
        self.folder, self.state, self.checkpoints = folder, state, checkpoints
        self.metric, self.is_chief = metric, is_chief

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
            "planned_epochs": state.epochs,
        }
        state.history.append(row)
        is_best = state.choose(epoch.score, epoch.validation.loss)
        if epoch.validation is not UNKNOWN:
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
        values = epoch.validation
        if values is UNKNOWN:
            _log.info("epoch %d, on all folds: loss %.4f", epoch.number, epoch.loss)
            return
        _log.info(
            "epoch %d: loss %.4f, validation loss %.4f, validation %s %.3f",
            epoch.number,
            epoch.loss,
            values.loss,
            (self.metric or "accuracy").replace("_", " "),
            values.accuracy if self.metric is None else values.metric,
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
