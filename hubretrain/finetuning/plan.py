"""The plan of a fine-tuning: which modules, for how many epochs, on images of which size.

For a time that is granted it is made from a few real steps of each module, and kept in
`options.json`, so that a fine-tuning that is resumed goes on as it was planned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from hubretrain.data import ImageDataset
from hubretrain.data.splitting import TEST
from hubretrain.errors import ModuleError, NotTrainableError, RunError
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.module import ModuleFineTuning
from hubretrain.finetuning.options import OPTIONS, FineTuneOptions, saved_options
from hubretrain.finetuning.schedule import Speed, n_small_epochs, schedule_for
from hubretrain.finetuning.trainer import STRENGTHS
from hubretrain.runs import LEADERBOARD, MODULE, VALIDATION_FOLD, Run

# As many times the policy's epochs are planned at most: more would hardly change the weights.
MOST_EPOCHS = 3


def best_modules(run: Run, top: int) -> list[str]:
    """Return the best modules of a run: its shortlist, then the others by rank.

    Args:
        run: A fitted run.
        top: Number of modules.

    Raises:
        RunError: The run is not fitted, or compares fewer modules.
    """
    names = best_first(run)
    if len(names) < top:
        raise RunError(
            f"`top` is {top}, but {run.folder} compares {len(names)} modules "
            f"({', '.join(names)}); choose fewer, or cache more and fit again."
        )
    return names[:top]


def best_first(run: Run) -> list[str]:
    """Return the modules of a run but its randomly initialised controls: shortlist, then others."""
    board = LEADERBOARD.read(run.folder)
    ranked = board.loc[board["kind"] == MODULE, "module"].tolist()
    return list(dict.fromkeys([*run.fit.shortlist, *ranked]))


def latest_finetuning(run: Run) -> str:
    """Return the module of the run that was fine-tuned last.

    Raises:
        RunError: There is none.
    """
    folders = [path.parent for path in (run.folder / "finetune").glob(f"*/{OPTIONS}")]
    if not folders:
        raise RunError(f"{run.folder} holds no fine-tuning to resume; leave out `resume`.")

    def modified(folder: Path) -> int:
        state = folder / "checkpoint" / "state.json"
        return (state if state.exists() else folder / OPTIONS).stat().st_mtime_ns

    return max(folders, key=modified).name


@dataclass(frozen=True)
class Sizes:
    """Numbers of images of the parts of a run."""

    train: int
    validation: int
    test: int

    @classmethod
    def of(cls, images: pd.DataFrame) -> Sizes:
        """Count images by their `fold`."""
        n_test, n_validation = ((images["fold"] == part).sum() for part in (TEST, VALIDATION_FOLD))
        n_train = len(images) - n_test - n_validation
        return cls(int(n_train), int(n_validation), int(n_test))


@dataclass(frozen=True)
class Plan:
    """How one module would be trained.

    Attributes:
        module: Name of the module.
        options: With the planned `epochs` and `small_first`.
        seconds_per_epoch: Of an epoch, with its evaluation.
        seconds_per_small_epoch: Of one on smaller images; None where there are none.
        seconds: Of all, with loading the module and evaluating the result.
        is_enough: Whether these are at least as many epochs as the training policy's.
    """

    module: str
    options: FineTuneOptions
    seconds_per_epoch: float
    seconds_per_small_epoch: float | None
    seconds: float
    is_enough: bool

    @property
    def epochs(self) -> int:
        """Number of epochs, without those in which the head alone is trained."""
        assert self.options.epochs is not None
        return self.options.epochs

    def sentence(self) -> str:
        """Say the plan."""
        epochs = "epoch" if self.epochs == 1 else "epochs"
        text = f"{self.module}: {self.epochs} {epochs} of about {duration(self.seconds_per_epoch)}"
        if self.options.small_first and self.seconds_per_small_epoch is not None:
            n_small = n_small_epochs(self.epochs)
            each = duration(self.seconds_per_small_epoch)
            text += f", the first {n_small} on smaller images, of about {each}"
        return f"{text}; {duration(self.seconds)} in all"


def plan_of(
    module: str, speed: Speed, sizes: Sizes, options: FineTuneOptions, seconds_to_begin: float = 0.0
) -> Plan:
    """Return the plan of a module.

    Without `hours` it is the training policy's. With them there are as many epochs as take no more
    time, at most `MOST_EPOCHS` times the policy's; and where full-size images would not last for
    the policy's, the first epochs are on smaller ones. At least one epoch is planned.

    Args:
        module: Name of the module.
        speed: How long an image takes.
        sizes: Numbers of images.
        options: How to train.
        seconds_to_begin: Until the first step.
    """
    policy = schedule_for(
        sizes.train,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        kind=options.schedule,
    ).epochs
    evaluation = speed.evaluation * sizes.validation
    full = speed.step * sizes.train + evaluation
    small = None if speed.small_step is None else speed.small_step * sizes.train + evaluation

    def total(epochs: int, is_small: bool) -> float:
        n_small = n_small_epochs(epochs) if is_small else 0
        n_full = epochs - n_small + options.warmup_head
        n_all = sizes.train + sizes.validation if options.all_folds else 0
        step = n_small * (speed.small_step or speed.step) + n_full * speed.step
        step += min(epochs, speed.n_cached_views) * speed.evaluation
        return (
            seconds_to_begin
            + 2 * speed.evaluation * (sizes.test * (1 + options.all_folds) + sizes.validation)
            + evaluation * (1 + len(STRENGTHS) * options.interpolate + n_small + n_full)
            + step * (sizes.train + n_all)
        )

    epochs, is_small = policy, options.small_first
    if options.hours is not None:
        granted, candidates = 3600 * options.hours, range(1, MOST_EPOCHS * policy + 1)
        epochs = max((n for n in candidates if total(n, is_small) <= granted), default=0)
        if epochs < policy and small is not None and not is_small:
            on_small = max((n for n in candidates if total(n, True) <= granted), default=0)
            if on_small > max(epochs, 1):
                epochs, is_small = min(on_small, policy), True
    chosen = replace(options, epochs=max(1, epochs), small_first=is_small)
    seconds = total(max(1, epochs), is_small)
    return Plan(module, chosen, full, small, seconds, is_enough=epochs >= policy)


def choose(plans: Sequence[Plan], hours: float) -> Plan:
    """Return the plan that is followed: of the costliest network that the time is enough for.

    The networks of a shortlist are tied as the best by their heads; trained, the larger of two was
    better. Where the time is enough for none, the one that gets furthest is trained.

    Args:
        plans: A plan of each network.
        hours: The time that was granted.

    Raises:
        RunError: It is not enough for an epoch of any network.
    """
    enough = [plan for plan in plans if plan.is_enough]
    if enough:
        return max(enough, key=lambda plan: plan.seconds_per_epoch)
    fastest = min(plans, key=lambda plan: plan.seconds_per_epoch)
    if fastest.seconds > 3600 * hours:
        needed = -(-fastest.seconds // 36) / 100  # rounded up
        raise RunError(
            f"`hours` is {hours:g}, but one epoch of {fastest.module}, with loading and "
            f"evaluation, takes about {duration(fastest.seconds)}; grant "
            f"{needed:g}, or train the last layers alone with `unfreeze_last=20`."
        )
    return fastest


def timed_plans(
    dataset: ImageDataset,
    run: Run,
    images: pd.DataFrame,
    modules: Sequence[str],
    options: Mapping[str, FineTuneOptions],
    devices: Devices,
) -> list[Plan]:
    """Return a plan of each module, by the time of a few of its steps; nothing is written.

    A module that cannot be trained is left out, unless none can.

    Args:
        dataset: The data set.
        run: A fitted run.
        images: Its images, with their `fold`.
        modules: Names of modules of the run.
        options: Name of a module to how it is trained.
        devices: Where to train.

    Raises:
        RunError: There are several devices, on which no steps are timed.
        ModuleError: No module can be trained.
    """
    if devices.n_replicas > 1:
        raise RunError(
            f"a fine-tuning is planned by steps on one device, but there are {devices.n_replicas}; "
            "set `epochs` instead of `hours`."
        )
    plans: list[Plan] = []
    refusal: ModuleError | None = None
    for name in modules:
        try:
            plans.append(_timed(dataset, run, images, name, options[name], devices))
        except NotTrainableError as error:
            refusal = refusal or error
    if refusal is not None and not plans:
        raise refusal
    return plans


def _timed(
    dataset: ImageDataset,
    run: Run,
    images: pd.DataFrame,
    name: str,
    options: FineTuneOptions,
    devices: Devices,
) -> Plan:
    started = time.monotonic()
    module = ModuleFineTuning(dataset, run, images, name, run.fit, devices)
    may_be_small = options.hours is not None and options.unfreeze_last is None
    try:
        module.prepare(replace(options, small_first=may_be_small or options.small_first), 0.0)
    except NotTrainableError:
        raise
    except ModuleError:  # it takes images of one size
        if not may_be_small or options.small_first:
            raise
        module.prepare(options, 0.0)
    speed = module.speed()
    return plan_of(name, speed, Sizes.of(images), options, time.monotonic() - started)


def remembered(
    run: Run, modules: Sequence[str], options: FineTuneOptions
) -> tuple[str, FineTuneOptions] | None:
    """Return the module and the options that were planned before for the same time and options."""
    for name in modules:
        try:
            saved = saved_options(run.finetune_folder(name))
        except RunError:
            continue
        chosen = replace(options, epochs=saved.epochs, small_first=saved.small_first)
        if chosen == replace(saved, all_folds=options.all_folds):
            return name, chosen
    return None


def duration(seconds: float) -> str:
    """Return a time in words, in a unit that leaves few digits."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
