"""The steps of an epoch, and its evaluation on the validation fold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from hubretrain.arrays import IntArray
from hubretrain.finetuning.checkpoints import Checkpoints, State
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.input_pipeline import (
    InputSource,
    TrainingImages,
    epoch_order,
    split,
)
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.result import Criterion, Validation
from hubretrain.finetuning.schedule import Schedule
from hubretrain.finetuning.steps import Steps, TrainedModel
from hubretrain.modules import Cut
from hubretrain.progress import Bar


class EpochLoop:
    """Trains and evaluates epochs.

    Args:
        model: The model that is trained.
        options: How to train it.
        devices: Where to train it.
        inputs: Source of pixels, or of activations behind the cut.
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
        cut: Cut | None,
        checkpoints: Checkpoints,
        seconds_between_checkpoints: float,
    ) -> None:
        self.model, self.options, self.devices = model, options, devices
        self._inputs, self._checkpoints = inputs, checkpoints
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
        views = self._inputs.epoch_views(order, number)
        self._inputs.fill(views)
        steps = list(zip(split(order, batch_size), split(views, batch_size), strict=True))
        optimizer = self.model.optimizers[phase]
        learning_rate, saved = 0.0, time.monotonic()
        what, n_done = f"epoch {number} of {state.epochs}", state.batch * batch_size
        with Bar(what, len(images), already=n_done) as bar:
            pending = steps[state.batch :]
            for (batch, _), parts in zip(pending, self._parts(images, pending), strict=True):
                learning_rate = self._learning_rate(phase, len(steps), state, schedule)
                optimizer.set_rate(learning_rate)
                loss = self.devices.run(self._steps.train[phase], parts)
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
        self, images: TrainingImages, steps: list[tuple[IntArray, IntArray]]
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Yield, for each step, the inputs, labels and weights of each local replica."""
        batches = [self.devices.share(batch) for batch, _ in steps]
        views = [self.devices.share(numbers) for _, numbers in steps]
        inputs = self._inputs.batches(
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
        accuracy = float((probs.argmax(axis=1) == images.labels).mean())
        values = self.devices.agreed([loss, accuracy, criterion.value(probs, epoch)])
        return Validation(*values)
