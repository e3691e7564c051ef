"""Checkpoints of a training: weights, optimizers, counters; intact after kill -9.

    checkpoint/state.json                which checkpoint counts, and every counter
    checkpoint/at_0003_000120.*          weights and optimizers after 3 epochs and 120 steps
    checkpoint/best_0002.*               weights of the best epoch so far

A checkpoint is written under a new name, then `state.json` points to it, then the former one is
removed. So the last good one survives a kill and a full disk.

TensorFlow finds variables in a checkpoint by attribute names: those of `Optimizer`, and `variables`
and `optimizers` below, cannot be renamed without breaking older checkpoints.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hubretrain.errors import RunError, WriteError, first_line, unreadable
from hubretrain.files import Number, conforming, read_record, write_record
from hubretrain.finetuning.optimizers import Optimizer
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.tensorflow import tf

_INFINITE = {"best_score": -math.inf, "loss_of_best": math.inf, "least_loss": math.inf}
"""Attributes of `State` that are infinite at first."""


@dataclass
class State:
    """Where training stands: everything but the variables.

    The names of the attributes are those in `state.json`.

    Attributes:
        base_epochs: Epochs of the training policy that training began with.
        epochs: Epochs after which training ends, more than `base_epochs` once extended.
        extension: Epochs that were added last.
        concluded: Finished epochs when the result was last evaluated and kept; -1 for never.
        epoch: Finished epochs.
        batch: Finished steps of the current epoch.
        loss_sum: Sum of the losses of these steps, each times its number of images.
        step: Finished steps of all epochs.
        best_epoch: Epoch whose weights are kept.
        best_score: Its score, larger is better.
        loss_of_best: Its validation loss.
        least_loss: Least validation loss.
        strength: How far the weights that are kept are from the start, 0, to the best epoch, 1.
        strength_of: Best epoch that it was chosen for; -1 for none.
        since_least: Epochs since then, which early stopping counts.
        since_reduced: Epochs without a better loss, which the plateau schedule counts.
        scale: Factor that plateaus have reduced the learning rate by.
        stopped: Whether training ended early.
        diverged: Loss that was not finite and ended training, such as `nan`; None for none.
        history: One row per epoch.
    """

    base_epochs: int
    epochs: int
    extension: int = 0
    concluded: int = -1
    epoch: int = 0
    batch: int = 0
    loss_sum: Number = 0.0
    step: int = 0
    best_epoch: int = -1
    best_score: Number = float("-inf")
    loss_of_best: Number = float("inf")
    least_loss: Number = float("inf")
    strength: float = 1.0
    strength_of: int = -1
    since_least: int = 0
    since_reduced: int = 0
    scale: float = 1.0
    stopped: bool = False
    diverged: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left to train."""
        return bool(self.history) and (self.stopped or self.epoch >= self.epochs)

    def epochs_planned_at(self, epoch: int) -> int:
        """Return how many epochs were planned when an epoch was trained, which its rates follow."""
        (row,) = (row for row in self.history if row["epoch"] == epoch)
        return int(row.get("planned_epochs", self.epochs))

    def extend(self, more: int) -> bool:
        """Add epochs, unless these were added before and their result was not kept yet.

        A call that was interrupted is repeated with the same arguments, and must not add twice.

        Returns:
            Whether epochs were added.
        """
        if self.extension == more and not (self.is_finished and self.concluded >= self.epoch):
            return False
        self.epochs = (self.epoch if self.is_finished else self.epochs) + more
        self.extension, self.stopped, self.since_least = more, False, 0
        return True

    def choose(self, score: float, loss: float) -> bool:
        """Keep an epoch if its score is the best so far; of equal ones the less loss.

        Returns:
            Whether it is kept.
        """
        if (score, -loss) <= (self.best_score, -self.loss_of_best):
            return False
        self.best_epoch, self.best_score, self.loss_of_best = self.epoch, score, loss
        return True

    def count(self, loss: float, *, patience: int | None, reduce_after: int, factor: float) -> None:
        """Count an epoch's validation loss for early stopping and for the plateau schedule.

        The counts are those of Keras' EarlyStopping and ReduceLROnPlateau, which forget theirs
        when training resumes.

        Args:
            loss: Validation loss of the epoch.
            patience: Epochs without a better loss after which training stops; None for never.
            reduce_after: Epochs without a better loss after which the learning rate is reduced.
            factor: Factor of the reduction.
        """
        if loss < self.least_loss:
            self.least_loss, self.since_least, self.since_reduced = loss, 0, 0
            return
        self.since_least += 1
        self.since_reduced += 1
        if self.since_reduced >= reduce_after:
            self.scale, self.since_reduced = self.scale * factor, 0
        self.stopped = patience is not None and self.since_least >= patience


class Checkpoints:
    """The checkpoints of one fine-tuning.

    Args:
        folder: Folder of the fine-tuning.
        variables: All variables that the model's predictions depend on.
        optimizers: Optimizers, which training depends on besides.
        identity: Options, module and data; checkpoints of others are refused.
        is_chief: Whether this machine writes the checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        variables: Sequence[tf.Variable],
        optimizers: Sequence[Optimizer],
        identity: dict[str, Any],
        *,
        is_chief: bool = True,
    ) -> None:
        self.folder, self.checkpoint_folder = folder, folder / "checkpoint"
        self.identity = json.loads(json.dumps(identity))
        self._is_chief = is_chief
        self._all = tf.train.Checkpoint(variables=list(variables), optimizers=list(optimizers))
        self._weights = tf.train.Checkpoint(variables=list(variables))

    def save(
        self,
        state: State,
        *,
        is_best: bool = False,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Write a checkpoint, then point to it; a kill in between leaves the former one.

        Args:
            state: Where training stands.
            is_best: Whether the weights are the best so far.
            averaged: Context in which the variables have the weights that were evaluated.

        Raises:
            RunError: The folder cannot be written.
        """
        if not self._is_chief:
            # Every machine takes part in reading variables that are spread over them.
            with tempfile.TemporaryDirectory() as aside:
                if is_best:
                    with averaged():
                        self._weights.write(str(Path(aside) / "best"))
                self._all.write(str(Path(aside) / "at"))
            return
        name, best = _names(state)
        try:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            if is_best:
                with averaged():
                    self._weights.write(str(self.checkpoint_folder / best))
            self._all.write(str(self.checkpoint_folder / name))
            self.point_to(state)  # from here on this checkpoint counts
        except (OSError, WriteError, tf.errors.OpError) as error:
            reason = first_line(error)
            raise RunError(
                f"{self.checkpoint_folder}/ cannot be written ({reason}); free disk space and "
                "rerun the command to resume from the last checkpoint."
            ) from error
        for path in self.checkpoint_folder.iterdir():
            if path.name != "state.json" and path.name.split(".")[0] not in (name, best):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def point_to(self, state: State) -> None:
        """Write `state.json`, once the checkpoints that it names are written."""
        if self._is_chief:
            name, best = _names(state)
            pointer = {"checkpoint": name, "best": best, "identity": self.identity}
            write_record(self.checkpoint_folder / "state.json", {**pointer, **asdict(state)})

    def restore(self) -> State | None:
        """Read the checkpoint that counts into the variables; return None where there is none.

        Raises:
            RunError: It is another fine-tuning's, damaged, or of variables of other shapes.
        """
        if (state := self.read_state()) is not None:
            self._read(self._all, _names(state)[0])
        return state

    def read_state(self) -> State | None:
        """Return where training stands, and leave the variables; None where there is no checkpoint.

        Raises:
            RunError: The checkpoint is another fine-tuning's, or damaged.
        """
        path, remedy = self.checkpoint_folder / "state.json", "start again with `restart=True`"
        try:
            values = read_record(path)
            identity = conforming(values.get("identity"), dict[str, Any])
            state = conforming(values, State)
            if lacking := [field.name for field in fields(State) if field.name not in values]:
                raise ValueError(f"it lacks {lacking[0]}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(unreadable(path, error, remedy)) from error
        for row in state.history:  # in JSON infinity and NaN are null
            row |= {name: float("nan") for name, value in row.items() if value is None}
        for name, infinity in _INFINITE.items():
            if math.isnan(getattr(state, name)):
                setattr(state, name, infinity)
        self._check(identity)
        return state

    def _check(self, saved: dict[str, Any]) -> None:
        """Raise where a checkpoint's options, data or module are others."""
        options = {field.name for field in fields(FineTuneOptions)}
        for name, value in self.identity.items():
            if name not in saved:
                raise RunError(
                    f"{self.folder} holds a fine-tuning of an earlier hubretrain, which did not "
                    f"record its {name}; start again with `restart=True`."
                )
            if saved[name] != value and name in options:
                raise RunError(
                    f"{self.folder} holds a fine-tuning with {name} = {saved[name]}, but `{name}` "
                    f"is {value}; continue it with `resume=True`, use the same options or another "
                    "run, or start again with `restart=True`."
                )
            if saved[name] != value:
                raise RunError(
                    f"{self.folder} holds a fine-tuning on other data or another module: its "
                    f"{name} was {saved[name]} and is {value}; restore what it was, or start again "
                    "with `restart=True`."
                )

    def read_best(self, state: State) -> None:
        """Read the best epoch's weights into the variables."""
        self._read(self._weights, f"best_{state.best_epoch:04d}")

    def _read(self, checkpoint: Any, name: str) -> None:
        try:
            checkpoint.read(str(self.checkpoint_folder / name)).assert_existing_objects_matched()
        except Exception as error:  # TensorFlow raises nearly every type on damaged files
            reason = first_line(error)
            raise RunError(
                f"{self.checkpoint_folder}/{name} does not fit this model ({reason}); start again "
                "with `restart=True`."
            ) from error


def _names(state: State) -> tuple[str, str]:
    """Return the names of the last checkpoint and of the best one."""
    return f"at_{state.epoch:04d}_{state.batch:06d}", f"best_{state.best_epoch:04d}"
