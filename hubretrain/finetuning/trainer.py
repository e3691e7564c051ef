"""Training of a backbone from its fitted head: the loop, resumable at each checkpoint.

Linear probing first, then fine-tuning (Kumar et al. 2022, https://arxiv.org/abs/2202.10054):
before the first step the model predicts exactly what the head predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import Float32Array
from hubretrain.errors import ModuleError, RunError
from hubretrain.finetuning.activation_cache import ActivationCache, cacheable_cut
from hubretrain.finetuning.checkpoints import Checkpoints, State
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.epoch_loop import (
    Epoch,
    EpochLoop,
    EpochRecorder,
    ZeroActivations,
)
from hubretrain.finetuning.input_pipeline import InputSource, PixelSource, TrainingImages
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.results import UNKNOWN, Criterion
from hubretrain.finetuning.schedule import Schedule, Speed, schedule_for, smaller
from hubretrain.finetuning.steps import TrainedModel
from hubretrain.modules import Classifier, Cut

SECONDS_BETWEEN_CHECKPOINTS = 300.0
STRENGTHS = (0.2, 0.4, 0.6, 0.8)  # of the interpolation between start and best epoch, beside 1


class Trainer:
    """One fine-tuning, resumable within an epoch.

    Args:
        classifier: The model, with its fitted head.
        folder: Folder of history and checkpoints.
        options: How to train.
        devices: Where to train.
        identity: What the result depends on besides the options and the module; a checkpoint of
            another identity is not resumed.
        criterion: How epochs are compared; None for the least validation loss.
        seconds_between_checkpoints: At most this much training within an epoch is lost by a kill.

    Attributes:
        notes: Sentences for the person who trains.
        state: Where training stands.

    Raises:
        ModuleError: The backbone cannot be trained as the options say.
    """

    def __init__(
        self,
        classifier: Classifier,
        folder: Path,
        options: FineTuneOptions,
        devices: Devices,
        *,
        identity: dict[str, Any] | None = None,
        criterion: Criterion | None = None,
        seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
    ) -> None:
        self.folder, self.options, self.devices = folder, options, devices
        self._seconds_between_checkpoints = seconds_between_checkpoints
        self.criterion = criterion or Criterion()
        self.model = TrainedModel(classifier, options, devices)
        stored = classifier.backbone.stored
        self.identity = {
            **options.identity(),
            "module_sha256": stored.sha256,
            "image_size": stored.image_size,
            "value_range": list(stored.value_range),
            **(identity or {}),
        }
        phases = ["all", "head"] if options.warmup_head else ["all"]
        self.checkpoints = Checkpoints(
            folder,
            self.model.variables,
            [self.model.optimizers[phase] for phase in phases],
            self.identity,
            is_chief=devices.is_chief,
        )
        self.pixels = PixelSource(stored.image_size, options.augmentation, options.seed)
        self.notes: list[str] = []
        self.state = State(0, 0)

    def fit(
        self, train: TrainingImages, validation: TrainingImages, *, more_epochs: int | None = None
    ) -> pd.DataFrame:
        """Train until the last epoch, or until plateaus of the validation loss end it.

        The best epoch's weights are in the model afterwards. Calling it again after an
        interruption resumes from the last checkpoint and gives what an uninterrupted training
        would have given: the same bits on one thread (`TF_NUM_INTRAOP_THREADS=1`), else equal up
        to rounding, because threads sum in any order.

        Args:
            train: Images to train on.
            validation: Images that choose the epoch; never trained on.
            more_epochs: Epochs to add to a finished training. If the training was interrupted
                while doing these, they are not added twice.

        Returns:
            One row per epoch: epoch, phase, step, learning_rate, loss, validation_loss,
            validation_accuracy, validation_metric, planned_epochs, kept.

        Raises:
            RunError: A checkpoint cannot be written or read.
        """
        self.begin(len(train), more_epochs)
        with ExitStack() as stack:
            activations = self._activations(train, validation)
            if activations is not None:
                stack.enter_context(activations)
            self.prepare(activations)
            if not self.state.history:
                self.model.scale_head(self.pixels, train)
            self._train(train, validation)
            self.checkpoints.read_best(self.state)
            self._interpolate(validation)
        if activations is not None:
            self.notes.append(activations.note())
        self.recorder.write_history()  # a kill may have come between a checkpoint and its row
        return self.recorder.history()

    def fit_without_validation(self, train: TrainingImages, other: State) -> None:
        """Train as another training did until its best epoch, at least 1; resumable as `fit` is.

        The rates are those of its epochs, and so is how far from the start the weights are.

        Args:
            train: Images to train on.
            other: Where the other stands, which began with as many epochs.
        """
        self.begin(len(train))
        state, until = self.state, other.best_epoch
        with ExitStack() as stack:
            if state.epoch < until and state.diverged is None:
                activations = self._activations(train, train.first(0))
                if activations is not None:
                    stack.enter_context(activations)
                    stack.callback(activations.path.unlink, missing_ok=True)
                self.prepare(activations)
                if not state.step:
                    self.model.scale_head(self.pixels, train)
            while state.epoch < until and state.diverged is None:
                state.epochs = other.epochs_planned_at(state.epoch + 1)
                self._train_epoch(train, None)
        if state.diverged is None:
            self.checkpoints.read_best(state)
            if self.options.interpolate:
                self.model.interpolate(other.strength, self.model.ends())
        self.model.synchronize()

    def check(self, more_epochs: int | None = None) -> State | None:
        """Return where an earlier training stands, and change nothing; None where there is none.

        Raises:
            RunError: The folder holds a training that cannot be continued like this.
        """
        restored = self.checkpoints.read_state()
        if restored is None:
            _check_beginning(self.folder, more_epochs)
        else:
            _check_continuation(self.folder, self.options, restored, more_epochs)
        return restored

    def begin(self, n_images: int, more_epochs: int | None = None) -> None:
        """Read where training stands, and decide how many epochs it takes.

        Raises:
            RunError: The folder holds a training that cannot be continued like this.
        """
        self.check(more_epochs)
        restored = self.checkpoints.restore()
        self._policy = _policy(n_images, self.options, restored)
        if restored is None:
            epochs = self._policy.epochs
            self.state = State(epochs, epochs + self.options.warmup_head)
        else:
            self.state = restored
            if more_epochs is not None and restored.extend(more_epochs):
                self.checkpoints.save(restored)
        self.recorder = EpochRecorder(
            self.folder,
            self.state,
            self.checkpoints,
            self.criterion.metric,
            is_chief=self.devices.is_chief,
        )

    def _activations(
        self, train: TrainingImages, validation: TrainingImages
    ) -> ActivationCache | None:
        """Open the cache of the frozen part's activations; None where there is none to use."""
        options = self.options
        if options.unfreeze_last is None or not options.trunk_views:
            return None
        try:
            cut = cacheable_cut(self.model, options, self.devices)
        except ModuleError as error:
            self.notes.append(f"The frozen part runs in each epoch: {error}.")
            return None
        if self.state.is_finished:
            return None
        return ActivationCache(
            self.folder,
            cut,
            self.pixels,
            train,
            validation,
            n_views=options.trunk_views,
            identity={
                **self.identity,
                "layers": self.model.classifier.backbone.layer_names,
            },
        )

    def prepare(self, activations: ActivationCache | None) -> None:
        """Trace the steps, on cached activations or else on pixels."""
        cut = None if activations is None else activations.cut
        self.epochs = self._loop(activations or self.pixels, cut)

    def _loop(self, inputs: InputSource, cut: Cut | None) -> EpochLoop:
        return EpochLoop(
            self.model,
            self.options,
            self.devices,
            inputs,
            replace(self.pixels, size=smaller(self.pixels.size)),
            cut,
            self.checkpoints,
            self._seconds_between_checkpoints,
        )

    def speed(self, train: TrainingImages) -> Speed:
        """Return how long an image takes, by a few real steps; the model is not to be used after.

        Args:
            train: The training images.
        """
        options, cut = self.options, None
        if options.unfreeze_last is not None and options.trunk_views:
            with suppress(ModuleError):
                cut = cacheable_cut(self.model, options, self.devices)
        loop = self._loop(self.pixels if cut is None else ZeroActivations(cut), cut)
        batch_size = _policy(len(train), options, None).batch_size
        return loop.speed(train, batch_size, 0 if cut is None else options.trunk_views)

    def _train(self, train: TrainingImages, validation: TrainingImages) -> None:
        state = self.state
        if not state.history:  # epoch 0: the head as it was fitted
            self._close_epoch(0, "head", float("nan"), 0.0, validation)
        while not state.is_finished:
            self._train_epoch(train, validation)

    def _train_epoch(self, train: TrainingImages, validation: TrainingImages | None) -> None:
        """Train the next epoch, or end a training whose loss is not finite."""
        state, number = self.state, self.state.epoch + 1
        phase = "head" if number <= self.options.warmup_head else "all"
        loss, learning_rate = self.epochs.train(number, phase, train, state, self.schedule)
        if np.isfinite(loss):
            self._close_epoch(number, phase, loss, learning_rate, validation)
        else:
            self._stop_diverged(loss)

    @property
    def schedule(self) -> Schedule:
        """The training policy, with the epochs that were added to it."""
        return replace(self._policy, epochs=self.state.epochs - self.options.warmup_head)

    def _close_epoch(
        self,
        number: int,
        phase: str,
        loss: float,
        learning_rate: float,
        validation: TrainingImages | None,
    ) -> None:
        """Evaluate the model on the validation fold, and record the epoch; without one keep it."""
        averaged = self.model.optimizers[phase].averaged if number else nullcontext
        values, score = UNKNOWN, float(number)
        if validation is not None:
            with averaged():
                self.model.synchronize()
                values = self.epochs.validate(validation, self.criterion, number)
            score = self.criterion.score(values.metric)
        epoch = Epoch(number, phase, learning_rate, loss, values, score)
        self.recorder.record(epoch, self.schedule, averaged)

    def _interpolate(self, validation: TrainingImages) -> None:
        """Set the weights where they are best on the way from the start to the best epoch."""
        state, ends = self.state, self.model.ends()
        if self.options.interpolate and state.best_epoch > 0:
            if state.strength_of != state.best_epoch:
                state.strength = self._best_strength(validation, ends)
                state.strength_of = state.best_epoch
                self.checkpoints.point_to(state)
            if state.strength < 1:
                self.notes.append(
                    f"The weights are {state.strength:.0%} of the way from the start to epoch "
                    f"{state.best_epoch}, which is better on the validation fold than all of it."
                )
            self.model.interpolate(state.strength, ends)
        self.model.synchronize()

    def _best_strength(self, validation: TrainingImages, ends: Mapping[int, Any]) -> float:
        """Return the best of `STRENGTHS` on the validation fold, 1 where none is better."""
        state, best = self.state, 1.0
        key_of_best = (state.best_score, -state.loss_of_best)
        for strength in STRENGTHS:
            self.model.interpolate(strength, ends)
            values = self.epochs.validate(validation, self.criterion, state.best_epoch)
            key = (self.criterion.score(values.metric), -values.loss)
            if key > key_of_best:
                best, key_of_best = strength, key
        return best

    def _stop_diverged(self, loss: float) -> None:
        """End a training whose loss is NaN or infinite at its best epoch."""
        state = self.state
        state.stopped, state.diverged = True, str(loss)
        state.batch, state.loss_sum = 0, 0.0
        if state.best_epoch >= 0:
            self.checkpoints.read_best(state)
        self.checkpoints.save(state)

    @property
    def diverged(self) -> str | None:
        """What to do about a loss that became NaN or infinite; None if it did not."""
        state = self.state
        if state.diverged is None:
            return None
        return (
            f"the loss became {state.diverged} in epoch {state.epoch + 1}, which ended training; "
            f"the best epoch before, {state.best_epoch}, is kept. To train "
            "further, fine-tune with `restart=True` and a `learning_rate` below "
            f"{self.schedule.learning_rate:g}."
        )

    def conclude(self) -> None:
        """Record that the result was kept, so that further epochs are added to it."""
        self.state.concluded = self.state.epoch
        self.checkpoints.point_to(self.state)

    def probabilities(self, images: TrainingImages, *, what: str = "predicting") -> Float32Array:
        """Return class probabilities of unaugmented images: float32 (n_images, n_classes).

        Args:
            images: Images to predict.
            what: Name of the progress bar.
        """
        return self.model.probabilities(self.pixels, images, what=what)

    def passes_left(self, n_train: int, n_validation: int, more_epochs: int | None = None) -> float:
        """Return the work that is left, in images that the backbone is evaluated on.

        Args:
            n_train: Number of training images.
            n_validation: Number of validation images.
            more_epochs: Epochs that are added.
        """
        state = self.check(more_epochs)
        epochs = _policy(n_train, self.options, state).epochs + self.options.warmup_head
        state = state or State(epochs, epochs)
        n_left = 0 if state.stopped else max(0, state.epochs - state.epoch)
        n_left += more_epochs or 0
        n_cached = self._n_cached_views
        passes = passes_of(n_left, n_train, n_cached)
        passes += n_validation * (1 if n_cached else n_left)
        if self.options.all_folds and n_left:
            passes += passes_of(state.epoch + n_left, n_train + n_validation, n_cached)
        return passes

    def passes_until(self, epoch: int, n_train: int) -> float:
        """Return the same of training without a validation fold until an epoch."""
        state = self.check() or State(0, 0)
        n_left = 0 if state.diverged is not None else max(0, epoch - state.epoch)
        return passes_of(n_left, n_train, self._n_cached_views)

    @property
    def _n_cached_views(self) -> int:
        return self.options.trunk_views if self.options.unfreeze_last is not None else 0


def passes_of(n_epochs: int, n_images: int, n_cached_views: int) -> float:
    """Return the work of epochs, in images that the backbone is evaluated on.

    A step forward and back costs about three evaluations. Of a frozen part whose activations are
    kept, only its evaluation on each view is counted.
    """
    if n_cached_views:
        return float(min(n_epochs, n_cached_views) * n_images)
    return 3.0 * n_epochs * n_images


def _policy(n_images: int, options: FineTuneOptions, restored: State | None) -> Schedule:
    return schedule_for(
        n_images,
        epochs=options.epochs if restored is None else restored.base_epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        kind=options.schedule,
    )


def _check_beginning(folder: Path, more_epochs: int | None) -> None:
    """Raise where epochs are to be added to a training that is not there."""
    if more_epochs is not None:
        raise RunError(
            f"{folder} holds no fine-tuning to add epochs to; begin one with "
            f"`epochs={more_epochs}`."
        )


def _check_continuation(
    folder: Path, options: FineTuneOptions, state: State, more_epochs: int | None
) -> None:
    """Raise where a training that is there cannot be continued as asked."""
    if options.epochs not in (None, state.base_epochs, state.epochs - options.warmup_head):
        raise RunError(
            f"{folder} holds a fine-tuning of {state.base_epochs} epochs, but `epochs` is "
            f"{options.epochs}; add epochs with `more_epochs`, or start again with `restart=True`."
        )
    if more_epochs is not None and state.diverged is not None:
        raise RunError(
            f"{folder} holds a fine-tuning whose loss became {state.diverged}, so it cannot "
            "continue; start again with `restart=True` and a smaller `learning_rate`."
        )
