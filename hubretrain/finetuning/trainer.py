"""Training a backbone from its fitted head: the loop, resumable at each checkpoint.

Linear probing first, then fine-tuning (Kumar et al. 2022, https://arxiv.org/abs/2202.10054):
before the first step the model predicts exactly what the head predicted.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.data.images import to_unit_tensor
from hubretrain.errors import ModuleError, RunError
from hubretrain.finetuning.activation_cache import TRUNK_FACTS, ActivationCache, worth_caching
from hubretrain.finetuning.checkpoints import Checkpoints, State
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.input_pipeline import (
    Index,
    PixelSource,
    TrainingImages,
    balanced,
    epoch_views,
    shuffled,
    split,
)
from hubretrain.finetuning.optimizers import Optimizer, depth_groups
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.schedule import REDUCTION, Schedule, schedule_for
from hubretrain.finetuning.steps import Steps, pixels_spec
from hubretrain.finetuning.tensorboard import log_epoch
from hubretrain.modules import Classifier, Cut, cut_below
from hubretrain.progress import Bar
from hubretrain.run_tables import HISTORY
from hubretrain.tensorflow import tf

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_CHECKPOINTS = 300.0


class Trainer:
    """One fine-tuning, resumable within an epoch.

    Args:
        classifier: The model, with its fitted head.
        folder: Where history and checkpoints are kept.
        tuning: What is asked for.
        devices: Where it runs; on several, a copy of the classifier that is spread over them is
            trained, and the classifier itself follows at the end of each epoch.
        identity: What the result depends on besides; a checkpoint of another is not resumed.
        seconds_between_checkpoints: How much a kill may cost.

    Raises:
        ModuleError: The backbone cannot be trained as asked.
    """

    def __init__(
        self,
        classifier: Classifier,
        folder: Path,
        tuning: FineTuneOptions,
        devices: Devices,
        *,
        identity: dict[str, Any] | None = None,
        seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
    ) -> None:
        self.classifier, self.folder, self.tuning = classifier, folder, tuning
        self.devices = devices
        self._seconds = seconds_between_checkpoints
        with devices.strategy.scope():
            self._trained = classifier if devices.n_replicas == 1 else classifier.replica()
            originals, copies = classifier.all_variables, self._trained.all_variables
            copy_of = {id(v): copy for v, copy in zip(originals, copies, strict=True)}
            layers = [
                [copy_of[id(v)] for v in layer]
                for layer in classifier.trained_layers(tuning.unfreeze_last)
            ]
            self.optimizer = Optimizer(depth_groups(layers, tuning.depth_decay))
            self.head_optimizer = Optimizer([(self._trained.head_variables, 1.0)])
        self._start = [tf.identity(v) for v in self.optimizer.trained] if tuning.l2_sp else []
        # BatchNorm statistics are no trainable variables, so all of the backbone is kept.
        self._variables = copies
        stored = classifier.backbone.stored
        self.identity = {
            **tuning.identity(),
            "module_sha256": stored.sha256,
            "image_size": stored.image_size,
            "value_range": list(stored.value_range),
            **(identity or {}),
        }
        optimizers = [self.optimizer, *([self.head_optimizer] if tuning.warmup_head else [])]
        self.checkpoints = Checkpoints(
            folder, self._variables, optimizers, self.identity, is_chief=devices.is_chief
        )
        self.pixels = PixelSource(stored.image_size, tuning.augmentation, tuning.seed)
        self._source: PixelSource | ActivationCache = self.pixels
        self._predict = tf.function(
            lambda given: classifier.probabilities(to_unit_tensor(given)),
            input_signature=[pixels_spec(stored.image_size)],
        )
        self.notes: list[str] = []
        self.state = State(0, 0)

    def fit(
        self, train: TrainingImages, validation: TrainingImages, *, more_epochs: int | None = None
    ) -> pd.DataFrame:
        """Trains until the last epoch or until the validation loss stops falling.

        The best epoch's weights are in the model afterwards. Running it again goes on from the
        last checkpoint, and comes to what it would have come to without the interruption: to the
        bit on one thread (`TF_NUM_INTRAOP_THREADS=1`), else to the rounding of sums whose order
        threads decide.

        Args:
            train: What to learn from.
            validation: What tells when to stop; never learned from.
            more_epochs: Epochs to add to a training that is finished. Where it was interrupted
                while doing these, it goes on.

        Returns:
            One row an epoch: epoch, phase, step, learning_rate, loss, validation_loss,
            validation_accuracy, kept.

        Raises:
            RunError: A checkpoint cannot be written or read.
        """
        self._begin(len(train), more_epochs)
        cut = self._cut()
        with ExitStack() as open_files:
            if cut is not None and not self.state.is_finished:
                self._source = open_files.enter_context(
                    ActivationCache(
                        self.folder,
                        cut,
                        self.pixels,
                        train,
                        validation,
                        n_views=self.tuning.trunk_views,
                        facts={name: self.identity[name] for name in TRUNK_FACTS},
                    )
                )
            self._trace(cut if isinstance(self._source, ActivationCache) else None)
            self._train(train, validation)
        if isinstance(self._source, ActivationCache):
            self.notes.append(self._source.told())
        self.checkpoints.read_best(self.state)
        self._follow()
        self._write_history()  # a kill may have come between a checkpoint and its row
        return self.history()

    def _trace(self, cut: Cut | None) -> None:
        self._steps = Steps(
            self.classifier,
            self._trained,
            {"head": self.head_optimizer, "all": self.optimizer},
            self._start,
            self.devices,
            self.tuning,
            cut,
        )

    def _train(self, train: TrainingImages, validation: TrainingImages) -> None:
        state = self.state
        if not state.history:  # epoch 0: the head as it was fitted
            self._close_epoch(0, "head", float("nan"), 0.0, validation)
        while not state.is_finished:
            epoch = state.epoch + 1
            phase = "head" if epoch <= self.tuning.warmup_head else "all"
            loss, rate = self._train_epoch(epoch, phase, train)
            if not np.isfinite(loss):
                self._give_up(loss)
                break
            self._close_epoch(epoch, phase, loss, rate, validation)
            row = state.history[-1]
            if self.devices.is_chief:
                _log.info(
                    "epoch %d: loss %.4f, validation loss %.4f, validation accuracy %.3f",
                    state.epoch,
                    row["loss"],
                    row["validation_loss"],
                    row["validation_accuracy"],
                )

    def history(self) -> pd.DataFrame:
        """One row an epoch; `kept` marks the one whose weights were kept."""
        table: pd.DataFrame = pd.DataFrame(self.state.history)
        table["kept"] = table["epoch"] == self.state.best_epoch
        return table

    def probabilities(
        self, images: TrainingImages, *, what: str = "predicting"
    ) -> npt.NDArray[np.float32]:
        """Class probabilities of images as they are: float32 of shape (n_images, n_classes)."""
        if not len(images):
            return np.zeros((0, int(self.classifier.bias.shape[0])), np.float32)
        batches = split(np.arange(len(images)), 48)
        found = []
        with Bar(what, len(images)) as bar:
            for pixels in self.pixels.batches(images, batches, [0 * b for b in batches]):
                found.append(self._predict(pixels).numpy())
                bar.advance(len(pixels))
        return np.concatenate(found)

    @property
    def schedule(self) -> Schedule:
        """The policy with the epochs that were added to it."""
        return replace(self._policy, epochs=self.state.epochs - self.tuning.warmup_head)

    def _begin(self, n_images: int, more_epochs: int | None) -> None:
        """Reads where training stands, and settles how long it goes on."""
        restored, tuning = self.checkpoints.restore(), self.tuning
        base = restored.base_epochs if restored else tuning.epochs
        self._policy = schedule_for(
            n_images,
            epochs=base,
            batch_size=tuning.batch_size,
            learning_rate=tuning.learning_rate,
            kind=tuning.schedule,
        )
        if restored is None:
            if more_epochs is not None:
                raise RunError(
                    f"{self.folder} holds no fine-tuning that {more_epochs} epochs could be added "
                    f"to; begin one with --epochs {more_epochs}."
                )
            epochs = self._policy.epochs
            self.state = State(epochs, epochs + tuning.warmup_head)
            return
        self.state = state = restored
        if tuning.epochs not in (None, state.base_epochs, state.epochs - tuning.warmup_head):
            raise RunError(
                f"{self.folder} holds a fine-tuning of {state.base_epochs} epochs, now "
                f"{tuning.epochs} are asked for; add some with --epochs +N, or begin anew with "
                "--restart."
            )
        if more_epochs is not None and state.diverged is not None:
            raise RunError(
                f"{self.folder} holds a fine-tuning that cannot go on: the loss became "
                f"{state.diverged}; begin anew with --restart and a smaller --learning-rate."
            )
        if more_epochs is not None and state.extend(more_epochs):
            self.checkpoints.save(state)

    def conclude(self) -> None:
        """Notes that what it came to was judged and kept: more epochs are more from here on."""
        self.state.concluded = self.state.epoch
        self.checkpoints.point_to(self.state)

    def _cut(self) -> Cut | None:
        """Where the frozen part ends, if its activations are to be cached."""
        if self.tuning.unfreeze_last is None or not self.tuning.trunk_views:
            return None
        if self.tuning.train_batchnorm:
            why = "BatchNorm is trained, so nothing of the backbone is frozen"
        elif self.devices.n_replicas > 1:
            why = "its activations are kept for one device only"
        else:
            head = {id(v) for v in self._trained.head_variables}
            trained = [v for v in self.optimizer.trained if id(v) not in head]
            try:
                return worth_caching(cut_below(self.classifier.backbone, trained), self.pixels.size)
            except ModuleError as error:
                why = str(error)
        self.notes.append(f"The frozen part runs in each epoch: {why}.")
        return None

    def _follow(self) -> None:
        """Brings the classifier to where its copy on several devices is."""
        if self._trained is not self.classifier:
            for variable, trained in zip(
                self.classifier.all_variables, self._variables, strict=True
            ):
                variable.assign(trained.numpy())

    def _train_epoch(self, epoch: int, phase: str, train: TrainingImages) -> tuple[float, float]:
        state, schedule, seed = self.state, self.schedule, self.tuning.seed
        if self.tuning.balanced_sampling:
            order = balanced(train.labels, seed, epoch)
        else:
            order = shuffled(len(train), seed, epoch)
        cached = self._source if isinstance(self._source, ActivationCache) else None
        views = cached.epoch_views(order, epoch) if cached else epoch_views(order, epoch)
        if cached:
            cached.fill(views)
        batches, views_of = split(order, schedule.batch_size), split(views, schedule.batch_size)
        optimizer = self.head_optimizer if phase == "head" else self.optimizer
        rate, saved = 0.0, time.monotonic()
        with Bar(f"epoch {epoch} of {state.epochs}", len(train)) as bar:
            bar.done = state.batch * schedule.batch_size
            todo = list(zip(batches, views_of, strict=True))[state.batch :]
            for (batch, _), parts in zip(todo, self._parts(train, todo), strict=True):
                rate = self._rate(phase, len(batches))
                optimizer.set_rate(rate)
                loss = self.devices.run(self._steps.train[phase], parts)
                if not np.isfinite(loss):
                    return loss, rate
                state.loss_sum += loss * len(batch)
                state.step += 1
                state.batch += 1
                bar.advance(len(batch))
                is_due = time.monotonic() - saved >= self._seconds
                if is_due and state.batch < len(batches) and self.devices.n_replicas == 1:
                    self.checkpoints.save(state)
                    saved = time.monotonic()
        return state.loss_sum / len(train), rate

    def _parts(self, images: TrainingImages, todo: list[tuple[Index, Index]]) -> Any:
        """What each local replica is given of each batch: inputs, labels, weights."""
        shares = [self.devices.share(batch) for batch, _ in todo]
        views = [self.devices.share(numbers) for _, numbers in todo]
        flat = self._source.batches(
            images, [s for each in shares for s in each], [v for each in views for v in each]
        )
        for (batch, _), each in zip(todo, shares, strict=True):
            total = images.weights[batch].sum()
            yield [(next(flat), images.labels[s], images.weights[s] / total) for s in each]

    def _rate(self, phase: str, n_steps: int) -> float:
        """The learning rate of the next step: the head alone learns at the peak."""
        if phase == "head":
            return self.schedule.learning_rate
        step = self.state.step - self.tuning.warmup_head * n_steps
        return self.schedule.learning_rate_at(step, n_steps, self.state.scale)

    def _give_up(self, loss: float) -> None:
        """Ends a training whose loss is no number any more, at its best epoch."""
        state = self.state
        state.stopped, state.diverged = True, str(loss)
        state.batch, state.loss_sum = 0, 0.0
        self.checkpoints.read_best(state)
        self.checkpoints.save(state)

    @property
    def diverged(self) -> str | None:
        """What to do about a loss that became NaN or infinite; None if it did not."""
        state = self.state
        if state.diverged is None:
            return None
        return (
            f"the loss became {state.diverged} in epoch {state.epoch + 1}; training ended there, "
            f"and epoch {state.best_epoch}, the best before, is what is judged and exported. To "
            "train further fine-tune with --restart and a --learning-rate below "
            f"{self.schedule.learning_rate:g}."
        )

    def _close_epoch(
        self, epoch: int, phase: str, loss: float, rate: float, validation: TrainingImages
    ) -> None:
        """Validates, decides, and makes everything durable."""
        self._follow()
        batches = split(np.arange(len(validation)), 48)
        sums = np.zeros(2)
        given = self._source.batches(validation, batches, [0 * b for b in batches])
        for batch, inputs in zip(batches, given, strict=True):
            of_batch = self._steps.evaluate(
                inputs, validation.labels[batch], validation.weights[batch]
            )
            sums += [float(x) for x in of_batch]
        validation_loss, accuracy = self.devices.agreed(
            [sums[0] / float(validation.weights.sum()), sums[1] / len(validation)]
        )
        state, schedule = self.state, self.schedule
        state.epoch, state.batch, state.loss_sum = epoch, 0, 0.0
        row = {
            "epoch": epoch,
            "phase": phase,
            "step": state.step,
            "learning_rate": rate,
            "loss": loss,
            "validation_loss": validation_loss,
            "validation_accuracy": accuracy,
        }
        state.history.append(row)
        is_best = state.count(
            validation_loss,
            patience=schedule.patience,
            reduce_after=schedule.reduce_after,
            factor=REDUCTION,
        )
        if phase == "head":  # patience is for the training proper
            state.stopped, state.scale, state.since_best, state.since_reduced = False, 1.0, 0, 0
        self.checkpoints.save(state, is_best=is_best)
        self._write_history()
        if self.devices.is_chief:
            log_epoch(self.folder, row)

    def _write_history(self) -> None:
        if self.devices.is_chief:
            HISTORY.write(self.folder, self.history())
