"""Where a training stands, on disk: weights, optimizer, counters; whole after kill -9.

::

    checkpoint/state.json                which checkpoint counts, and every counter
    checkpoint/at_0003_0120.*            weights and optimizer after 3 epochs and 120 steps
    checkpoint/best_0002.*               weights of the best epoch so far

A checkpoint is written under a new name, then `state.json` points to it, then the former one is
removed. So the last good one survives a kill and a full disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hubretrain.errors import RunError, WriteError, first_line
from hubretrain.files import write_json
from hubretrain.finetuning.optimizers import Optimizer
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.tensorflow import tf


@dataclass
class State:
    """Where training stands; everything but the variables.

    Attributes:
        base_epochs: Epochs that the policy is for, as begun.
        epochs: Epochs after which training ends; more than `base_epochs` once extended.
        extension: By how many epochs it was last extended.
        concluded: Epochs after which the result was last judged and kept; -1 for never.
        epoch: Finished epochs.
        batch: Finished steps of the epoch that is open.
        loss_sum: Their losses, each times its images.
        step: Finished steps of all epochs.
        best_epoch: The epoch of the least validation loss.
        best_loss: That loss.
        since_best: Epochs since, which early stopping counts.
        since_reduced: Epochs without a better loss, which the plateau counts.
        scale: What plateaus have left of the learning rate.
        stopped: Whether it ended early.
        diverged: What the loss became, if not a number, which ended it.
        history: One row an epoch.
    """

    base_epochs: int
    epochs: int
    extension: int = 0
    concluded: int = -1
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    step: int = 0
    best_epoch: int = -1
    best_loss: float = float("inf")
    since_best: int = 0
    since_reduced: int = 0
    scale: float = 1.0
    stopped: bool = False
    diverged: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train."""
        return bool(self.history) and (self.stopped or self.epoch >= self.epochs)

    def extend(self, more: int) -> bool:
        """Adds epochs, unless these were added before and their result is still to be kept.

        Returns:
            Whether it did.
        """
        if self.extension == more and not (self.is_finished and self.concluded >= self.epoch):
            return False
        self.epochs = (self.epoch if self.is_finished else self.epochs) + more
        self.extension, self.stopped, self.since_best = more, False, 0
        return True

    def count(self, loss: float, *, patience: int, reduce_after: int, factor: float) -> bool:
        """Counts an epoch's validation loss for early stopping and for the plateau.

        Returns:
            Whether the epoch is the best so far.
        """
        if loss < self.best_loss:
            self.best_epoch, self.best_loss = self.epoch, loss
            self.since_best = self.since_reduced = 0
            return True
        self.since_best += 1
        self.since_reduced += 1
        if self.since_reduced >= reduce_after:
            self.scale, self.since_reduced = self.scale * factor, 0
        self.stopped = self.since_best >= patience
        return False


class Checkpoints:
    """The checkpoints of one fine-tuning.

    Args:
        folder: Of the fine-tuning.
        variables: What the model's predictions depend on.
        optimizers: What else training depends on.
        identity: The options and data; a checkpoint of others is not read.
        is_chief: Whether this machine's checkpoints are the ones to keep.
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
        self.folder, self.place = folder, folder / "checkpoint"
        self.identity = json.loads(json.dumps(identity))
        self._is_chief = is_chief
        self._all = tf.train.Checkpoint(variables=list(variables), optimizers=list(optimizers))
        self._weights = tf.train.Checkpoint(variables=list(variables))

    def save(self, state: State, *, is_best: bool = False) -> None:
        """Writes a checkpoint, then points to it; a kill in between leaves the former one.

        Raises:
            RunError: The folder cannot be written.
        """
        if not self._is_chief:  # every machine takes part in reading what is spread over them
            with tempfile.TemporaryDirectory() as aside:
                if is_best:
                    self._weights.write(str(Path(aside) / "best"))
                self._all.write(str(Path(aside) / "at"))
            return
        name, best = _names(state)
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            if is_best:
                self._weights.write(str(self.place / best))
            self._all.write(str(self.place / name))
            self.point_to(state)  # from here on this checkpoint counts
        except (OSError, WriteError, tf.errors.OpError) as error:
            reason = first_line(error)
            raise RunError(
                f"{self.place}/ cannot be written ({reason}); make room and run the same command "
                "again: it goes on from the last checkpoint."
            ) from error
        for path in self.place.iterdir():
            if path.name != "state.json" and path.name.split(".")[0] not in (name, best):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def point_to(self, state: State) -> None:
        """Writes `state.json`, whose variables are there already."""
        if self._is_chief:
            name, best = _names(state)
            facts = {"checkpoint": name, "best": best, "identity": self.identity, **asdict(state)}
            write_json(self.place / "state.json", facts)

    def restore(self) -> State | None:
        """Reads the checkpoint that counts into the variables; None where there is none.

        Raises:
            RunError: It is another fine-tuning's, damaged, or of variables of other shapes.
        """
        try:
            facts = json.loads((self.place / "state.json").read_text(encoding="utf-8"))
            found = {name: facts.pop(name) for name in ("checkpoint", "best", "identity")}
            state = _state(facts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.place}/state.json is damaged ({type(error).__name__}: {error}); begin "
                "anew with --restart."
            ) from error
        self._check(found["identity"])
        self._read(self._all, found["checkpoint"])
        return state

    def _check(self, known: dict[str, Any]) -> None:
        """Raises where a checkpoint's options, data or module are not these."""
        options = {one.name for one in fields(FineTuneOptions)}
        for name, value in self.identity.items():
            if name not in known:
                raise RunError(
                    f"{self.folder} holds a fine-tuning of an earlier hubretrain, which did not "
                    f"note its {name}; begin anew with --restart."
                )
            if known[name] != value and name in options:
                raise RunError(
                    f"{self.folder} holds a fine-tuning with {name} = {known[name]}, now {value} "
                    "is asked for; go on with --resume, or use the same options, another run, or "
                    "--restart."
                )
            if known[name] != value:
                raise RunError(
                    f"{self.folder} holds a fine-tuning on other data or another module: its "
                    f"{name} was {known[name]} and is {value}; bring back what it was, or begin "
                    "anew with --restart."
                )

    def read_best(self, state: State) -> None:
        """Puts the best epoch's weights into the variables."""
        self._read(self._weights, f"best_{state.best_epoch:04d}")

    def _read(self, checkpoint: Any, name: str) -> None:
        try:
            checkpoint.read(str(self.place / name)).assert_existing_objects_matched()
        except Exception as error:  # TensorFlow raises nearly every type on damaged files
            reason = first_line(error)
            raise RunError(
                f"{self.place}/{name} does not fit this model ({reason}); begin anew with "
                "--restart."
            ) from error


def _names(state: State) -> tuple[str, str]:
    """Of the last checkpoint, and of the best one."""
    return f"at_{state.epoch:04d}_{state.batch:06d}", f"best_{state.best_epoch:04d}"


def _state(facts: dict[str, Any]) -> State:
    if facts["best_loss"] is None:  # JSON has no infinity
        facts["best_loss"] = float("inf")
    facts["history"] = [
        {k: float("nan") if v is None else v for k, v in row.items()} for row in facts["history"]
    ]
    return State(**facts)
