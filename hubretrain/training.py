"""Training a backbone from its fitted head: the loop, its checkpoints, its resumption.

Linear probing first, then fine-tuning (Kumar et al. 2022, https://arxiv.org/abs/2202.10054):
before the first step the model predicts exactly what the head predicted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.augmentation import Augmentation
from hubretrain.classifier import Classifier
from hubretrain.errors import RunError
from hubretrain.files import write_json, write_table
from hubretrain.images import decode, view
from hubretrain.parallel import ahead
from hubretrain.progress import Bar
from hubretrain.schedule import Schedule
from hubretrain.storage import located, read_bytes
from hubretrain.tensorflow_door import tf

Pixels = npt.NDArray[np.uint8]
_FIRST_EPOCH_VIEW = 1_000  # views of the cache are numbered below, those of epochs from here


@dataclass(frozen=True)
class TrainingImages:
    """Some images of a data set, with what training needs of each.

    Attributes:
        root: The folder that paths are relative to.
        paths: The image files.
        sha256s: Their contents.
        labels: int64 of shape (n_images,), class indices.
        weights: float32 of shape (n_images,), the weight of each image in the loss.
    """

    root: Path
    paths: Sequence[str]
    sha256s: Sequence[str]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass
class _State:
    """Where training stands; everything but the variables. Written beside each checkpoint."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = -1
    best_loss: float = float("inf")
    stopped: bool = False
    history: list[dict[str, float]] | None = None


class FineTuning:
    """One fine-tuning, resumable at each epoch.

    Args:
        classifier: The model, with its fitted head.
        folder: Where history and checkpoints are kept.
        schedule: How long and how fast.
        augmentation: How each epoch's view of an image differs from it.
        unfreeze_last: Layers of the backbone to train; None for all.
        seed: Of the order and the augmentation.
        train_batchnorm: Let BatchNorm use and update the statistics of the batches.
        identity: What the result depends on besides; a checkpoint of another is not resumed.

    Raises:
        ModuleError: The backbone cannot be trained as asked.
        RunError: A checkpoint is there that another fine-tuning made.
    """

    def __init__(
        self,
        classifier: Classifier,
        folder: Path,
        schedule: Schedule,
        *,
        augmentation: Augmentation,
        unfreeze_last: int | None = None,
        seed: int = 0,
        train_batchnorm: bool = False,
        identity: dict[str, Any] | None = None,
    ) -> None:
        import tf_keras

        self.classifier, self.folder, self.schedule = classifier, folder, schedule
        self.augmentation, self.seed, self.train_batchnorm = augmentation, seed, train_batchnorm
        self.variables = classifier.trained_variables(unfreeze_last)
        self.optimizer = tf_keras.optimizers.Adam(learning_rate=schedule.learning_rate)
        self.optimizer.build(self.variables)
        # BatchNorm statistics are no trainable variables, so all of the backbone is kept.
        kept = {id(v): v for v in (*classifier.backbone.variables, *self.variables)}
        self._checkpoint = tf.train.Checkpoint(
            variables=list(kept.values()), optimizer=self.optimizer
        )
        self._best = tf.train.Checkpoint(variables=list(kept.values()))
        self.identity = json.loads(
            json.dumps(
                {
                    "schedule": asdict(schedule),
                    "augmentation": asdict(augmentation),
                    "unfreeze_last": unfreeze_last,
                    "seed": seed,
                    "train_batchnorm": train_batchnorm,
                    "module_sha256": classifier.backbone.stored.sha256,
                    **(identity or {}),
                }
            )
        )
        self.state = _State(history=[])
        self._step = self._traced_step()
        self._evaluate = tf.function(self._evaluated)

    def fit(
        self, train: TrainingImages, validation: TrainingImages, *, quiet: bool = False
    ) -> pd.DataFrame:
        """Trains until the last epoch or until the validation loss stops falling.

        The best epoch's weights are in the model afterwards. Running it again goes on from the
        last finished epoch.

        Args:
            train: What to learn from.
            validation: What tells when to stop; never learned from.
            quiet: Show no progress.

        Returns:
            One row an epoch: epoch, step, learning_rate, loss, validation_loss,
            validation_accuracy, kept.

        Raises:
            RunError: The loss became NaN, or a checkpoint cannot be written or read.
        """
        self._restore()
        state = self.state
        assert state.history is not None
        if not state.history:  # epoch 0: the head as it was fitted
            self._close_epoch(0, float("nan"), 0.0, validation)
        while state.epoch < self.schedule.epochs and not state.stopped:
            loss, learning_rate = self._train_epoch(state.epoch + 1, train, quiet=quiet)
            self._close_epoch(state.epoch + 1, loss, learning_rate, validation)
            row = state.history[-1]
            if not quiet:
                print(
                    f"epoch {state.epoch}: loss {row['loss']:.4f}, validation loss "
                    f"{row['validation_loss']:.4f}, validation accuracy "
                    f"{row['validation_accuracy']:.3f}",
                    flush=True,
                )
        self._best.read(str(self.folder / "checkpoint" / "best")).expect_partial()
        return self.history()

    def history(self) -> pd.DataFrame:
        """One row an epoch; ``kept`` marks the one whose weights were kept."""
        table: pd.DataFrame = pd.DataFrame(self.state.history)
        table["kept"] = table["epoch"] == self.state.best_epoch
        return table

    def probabilities(
        self, images: TrainingImages, *, what: str = "predicting", quiet: bool = False
    ) -> npt.NDArray[np.float32]:
        """Class probabilities of images as they are: float32 of shape (n_images, n_classes)."""
        found = []
        with Bar(what, len(images), quiet=quiet) as bar:
            for batch, pixels in self._batches(images, np.arange(len(images)), epoch=None):
                found.append(self.classifier.probabilities(_scaled(pixels)).numpy())
                bar.advance(len(batch))
        return np.concatenate(found)

    def _traced_step(self) -> Any:
        # Without BatchNorm in training mode dropout is off too: the few modules that have any
        # have it behind their features.
        @tf.function  # type: ignore[untyped-decorator]
        def step(pixels: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = self.classifier.logits(_scaled(pixels), self.train_batchnorm)
                loss = self.classifier.loss(logits, labels, weights)
            gradients = tape.gradient(loss, self.variables)
            self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
            return loss

        return step

    def _evaluated(
        self, pixels: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self.classifier.logits(_scaled(pixels))
        loss = self.classifier.loss(logits, labels, weights) * tf.reduce_sum(weights)
        hits = tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1) == labels, tf.float32))
        return loss, hits

    def _train_epoch(
        self, epoch: int, train: TrainingImages, *, quiet: bool
    ) -> tuple[float, float]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(train))
        n_steps = -(-len(train) // self.schedule.batch_size)
        losses, rate = [], 0.0
        with Bar(f"epoch {epoch} of {self.schedule.epochs}", len(train), quiet=quiet) as bar:
            for batch, pixels in self._batches(train, order, epoch=epoch):
                rate = self.schedule.learning_rate_at(self.state.step, n_steps)
                self.optimizer.learning_rate.assign(rate)
                loss = float(self._step(pixels, train.labels[batch], train.weights[batch]))
                if not np.isfinite(loss):
                    raise RunError(
                        f"the loss became {loss} in epoch {epoch}; the best epoch's weights are "
                        f"kept in {self.folder}. Fine-tune again with a --learning-rate below "
                        f"{self.schedule.learning_rate:g} and another --run, or remove the folder."
                    )
                losses.append(loss * len(batch))
                self.state.step += 1
                bar.advance(len(batch))
        return sum(losses) / len(train), rate

    def _close_epoch(
        self, epoch: int, loss: float, learning_rate: float, validation: TrainingImages
    ) -> None:
        """Validates, decides, and makes everything durable."""
        validation_loss, hits = 0.0, 0.0
        for batch, pixels in self._batches(validation, np.arange(len(validation)), epoch=None):
            labels, weights = validation.labels[batch], validation.weights[batch]
            batch_loss, batch_hits = self._evaluate(pixels, labels, weights)
            validation_loss += float(batch_loss)
            hits += float(batch_hits)
        validation_loss /= float(validation.weights.sum())
        state = self.state
        state.epoch = epoch
        assert state.history is not None
        state.history.append(
            {
                "epoch": epoch,
                "step": state.step,
                "learning_rate": learning_rate,
                "loss": loss,
                "validation_loss": validation_loss,
                "validation_accuracy": hits / len(validation),
            }
        )
        better = validation_loss < state.best_loss
        if better:
            state.best_epoch, state.best_loss = epoch, validation_loss
        state.stopped = epoch - state.best_epoch >= self.schedule.patience
        self._save(better)

    def _save(self, better: bool) -> None:
        """Writes a checkpoint, then points to it; a kill in between leaves the former one."""
        place = self.folder / "checkpoint"
        try:
            place.mkdir(parents=True, exist_ok=True)
            if better:
                self._best.write(str(place / "best.new"))
                for path in place.glob("best.new.*"):
                    os.replace(path, place / path.name.replace("best.new", "best"))
            name = f"epoch_{self.state.epoch:04d}"
            self._checkpoint.write(str(place / name))
            write_table(self.folder / "history.csv", self.history())
            write_json(  # from here on this checkpoint counts
                place / "state.json",
                {"checkpoint": name, "identity": self.identity, **asdict(self.state)},
            )
            for path in place.glob("epoch_*"):
                if not path.name.startswith(name + "."):
                    path.unlink(missing_ok=True)
        except (OSError, tf.errors.OpError) as error:
            raise RunError(
                f"{place}/ cannot be written ({error}); make room and run the same command "
                "again: it goes on from the last checkpoint."
            ) from error

    def _restore(self) -> None:
        place = self.folder / "checkpoint"
        try:
            facts = json.loads((place / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            shutil.rmtree(place, ignore_errors=True)
            return
        except (OSError, ValueError) as error:
            raise RunError(f"{place}/state.json is damaged ({error}); remove {place}.") from error
        for name, value in self.identity.items():
            if facts["identity"].get(name) != value:
                raise RunError(
                    f"{self.folder} holds a fine-tuning with {name} = "
                    f"{facts['identity'].get(name)}, now {value} is asked for; use the same "
                    "options, another --run, or --restart."
                )
        try:
            self._checkpoint.read(str(place / facts.pop("checkpoint"))).assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            raise RunError(f"{place} cannot be restored ({error}); use --restart.") from error
        facts.pop("identity")
        if facts["best_loss"] is None:  # JSON has no infinity
            facts["best_loss"] = float("inf")
        facts["history"] = [
            {k: float("nan") if v is None else v for k, v in row.items()}
            for row in facts["history"]
        ]
        self.state = _State(**facts)

    def _batches(
        self, images: TrainingImages, order: npt.NDArray[np.int64], epoch: int | None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Pixels]]:
        """Batches of pixels in the given order, read and cut by threads ahead of their use."""
        size = self.classifier.backbone.stored.image_size

        def pixels_of(i: int) -> Pixels:
            draw = None
            if epoch is not None:
                number = _FIRST_EPOCH_VIEW + epoch
                draw = self.augmentation.draw(images.sha256s[i], number, self.seed)
            return view(decode(read_bytes(located(images.root, images.paths[i]))), size, draw)

        batch: list[int] = []
        pixels: list[Pixels] = []
        n_ahead = 2 * self.schedule.batch_size
        for i, one in ahead(pixels_of, (int(i) for i in order), n_ahead):
            batch.append(i)
            pixels.append(one)
            if len(batch) == self.schedule.batch_size:
                yield np.array(batch), np.stack(pixels)
                batch, pixels = [], []
        if batch:
            yield np.array(batch), np.stack(pixels)


def _scaled(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(pixels, tf.float32) / 255.0
