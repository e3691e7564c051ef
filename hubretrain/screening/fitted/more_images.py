"""What more labelled images would bring, by heads that were fitted on fewer folds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.errors import CacheError, HeadError
from hubretrain.evaluation import (
    Evaluator,
    Predictions,
    intervals,
    metric_named,
)
from hubretrain.files import read_json, write_record
from hubretrain.progress import Bar
from hubretrain.screening.screen import Probe, identity_of

_log = logging.getLogger(__name__)
FILE_NAME = "learning_curve.json"
EXPONENT, EXPONENTS = 0.5, (0.25, 1.0)
LITTLE = 0.01  # of a share: what is not worth labelling as many images again


@dataclass(frozen=True)
class LearningCurve:
    """A metric with more and more images to train on, and what twice as many would bring.

    The error of a classifier falls with the number n of its training images about as n^-c (Cortes
    et al. 1993, Learning curves: asymptotic values and rate of convergence, NIPS 6; Hestness et al.
    2017, https://arxiv.org/abs/1712.00409). If r times the images brought a gain, twice as many
    again bring (1 - 2^-c) / (r^c - 1) of it. The estimate has c = 1/2, its interval all of c from
    1/4 to 1.

    Attributes:
        identity: Digest of all that it depends on.
        module: Name of the module.
        metric: Name of the metric.
        n_images: Numbers of training images: about half of them, and all.
        values: The metric with each of them.
        gain: What twice as many would bring: estimate and ends of its interval; in the
            direction of better.
        of_class: Class name to the gain of its recall, as `gain`.
    """

    identity: str
    module: str
    metric: str
    n_images: tuple[int, ...]
    values: tuple[float, ...]
    gain: tuple[float, float, float]
    of_class: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    def sentence(self) -> str:
        """Say what twice the images would bring."""
        is_share = metric_named(self.metric).is_share
        scale, digits, unit = (100, 1, "points") if is_share else (1, 3, "nats")
        gain, low, high = (f"{round(scale * v, digits) + 0.0:+.{digits}f}" for v in self.gain)
        steps = " to ".join(f"{n:,}" for n in self.n_images)
        name = self.metric.replace("_", " ")
        text = (
            f"Twice the images would bring heads on {self.module} about {gain} {unit} of {name} "
            f"(95 % {low} to {high}), by what {steps} training images brought"
        )
        surely = {name: ends for name, ends in self.of_class.items() if ends[1] > 0}
        if surely:
            most = max(surely, key=lambda name: surely[name][0])
            text += f"; most for {most} ({100 * surely[most][0]:+.1f} points of its recall)"
        if is_share and self.gain[2] < LITTLE:
            text += ": another backbone or fine-tuning is the better try"
        return f"{text}."


def learning_curve(
    file: Path, images: pd.DataFrame, probe: Probe, folder: Path, seed: int
) -> LearningCurve | None:
    """Return the learning curve of a module; None where the folds do not allow one.

    Each fold is scored by heads on all others, and by heads on half of the others. It is kept in a
    folder, so that a fit that is repeated does not repeat it.

    Args:
        file: Bottleneck file of the module.
        images: As `hubretrain.screening.screen.screen` takes them.
        probe: The heads that are fitted.
        folder: The folder.
        seed: Random seed of the resamples.

    Raises:
        WriteError: The folder cannot be written.
    """
    n_folds = images["fold"].nunique()
    if (images["fold"] < 0).any() or n_folds < 3:
        return None
    identity = f"{identity_of(file, images, probe.sweep)} {seed}"
    path = folder / FILE_NAME
    try:
        kept = read_json(path, LearningCurve, CacheError, "")
        if kept.identity == identity:
            return kept
    except (CacheError, FileNotFoundError):  # it is computed again
        pass
    half = (n_folds - 1) // 2
    try:
        with Bar(f"learning curve of {file.stem}", n_folds + 1, "fits") as bar:
            of_half = _scored(file, images, probe, half, bar)
            with bar.part(1 / bar.total):
                of_all = probe.predictions(file, images)
    except HeadError as error:  # such as a class that half of the images lack
        _log.info("There is no learning curve: %s", error)
        return None
    steps = (half, n_folds - 1)
    curve = _curve(identity, file.stem, images, probe, [of_half, of_all], steps, seed)
    write_record(path, asdict(curve))
    return curve


def _scored(file: Path, images: pd.DataFrame, probe: Probe, n_train: int, bar: Bar) -> Predictions:
    """Return predictions of every fold by heads that were fitted on the next `n_train` folds."""
    fold = images["fold"].to_numpy()
    names = sorted(set(fold.tolist()))
    shape = (len(images), len(probe.sweep.class_names))
    unadjusted, adjusted = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for k, name in enumerate(names):
        others = [names[(k + 1 + i) % len(names)] for i in range(n_train)]
        taken = np.isin(fold, [name, *others])
        part = images[taken].assign(fold=np.where(fold[taken] == name, 0, -1))
        with bar.part(1 / bar.total):
            predictions = probe.predictions(file, part.reset_index(drop=True))
        unadjusted[fold == name] = predictions.unadjusted
        adjusted[fold == name] = predictions.adjusted
    return Predictions(unadjusted, adjusted)


def _curve(
    identity: str,
    module: str,
    images: pd.DataFrame,
    probe: Probe,
    scored: list[Predictions],
    steps: tuple[int, int],
    seed: int,
) -> LearningCurve:
    metric, labels = probe.metric, probe.targets(images)
    evaluator = Evaluator(labels, images["cluster"].to_numpy(), seed)
    rows = [evaluator.resample(metric, of.of(metric)) for of in scored]
    last = intervals.difference(rows[1], rows[0])
    sign = 1.0 if metric_named(metric).higher_is_better else -1.0
    ends = sorted((sign * last.low, sign * last.high))
    per_fold, ratio = len(images) / images["fold"].nunique(), steps[1] / steps[0]
    of_class = {}
    if labels.ndim == 1 and metric_named(metric).is_of_decision:
        of_class = _by_class(scored, evaluator, probe.sweep.class_names, ratio)
    return LearningCurve(
        identity,
        module,
        metric,
        tuple(round(step * per_fold) for step in steps),
        tuple(round(row.estimate, 6) for row in rows),
        _next(sign * last.estimate, ends[0], ends[1], ratio),
        of_class,
    )


def _by_class(
    scored: list[Predictions], evaluator: Evaluator, class_names: tuple[str, ...], ratio: float
) -> dict[str, tuple[float, float, float]]:
    changes = evaluator.recall_changes(scored[1].adjusted, scored[0].adjusted)
    return {
        class_names[c]: _next(change.estimate, change.low, change.high, ratio)
        for c, change in changes.items()
    }


def _next(estimate: float, low: float, high: float, ratio: float) -> tuple[float, float, float]:
    """Return what twice the images bring, where `ratio` times as many brought this."""
    middle, most, least = ((1 - 2.0**-c) / (ratio**c - 1) for c in (EXPONENT, *EXPONENTS))
    ends = (low * (least if low > 0 else most), high * (most if high > 0 else least))
    return round(estimate * middle, 6), round(ends[0], 6), round(ends[1], 6)
