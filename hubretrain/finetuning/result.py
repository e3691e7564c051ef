"""Fine-tuning results: metrics, predictions, and whether the order of the screening held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from hubretrain.arrays import AnyArray, Float32Array, IntArray
from hubretrain.errors import DataError
from hubretrain.evaluation import (
    METRICS,
    UNCALIBRATED,
    Calibration,
    DecisionRule,
    Evaluator,
    Predictions,
    at_temperature,
    calibrate,
)
from hubretrain.run_tables import ENSEMBLE
from hubretrain.runs import Figures, OrderRecord


@dataclass(frozen=True)
class FineTuneResult:
    """The result of fine-tuning one module.

    Attributes:
        module: Name of the module.
        history: One row per epoch.
        test: Metrics on the test split, {} without one.
        head_test: The same of the head that training started from.
        validation: Metrics on the validation fold.
        head_validation: The same of the head that training started from.
        export: Folder of the run's export: of the module that is best on the validation fold.
        notes: Sentences that a reader of the result should know.
        temperature: Temperature of the model's probabilities; all metrics are with it.
        uncalibrated_log_loss: Log loss without it of `test` and `validation`, nats; a part without
            images is absent.
        diverged: What to do about a loss that became NaN or infinite; None if it did not.
    """

    module: str
    history: pd.DataFrame
    test: Figures
    head_test: Figures
    validation: Figures
    head_validation: Figures
    export: Path
    notes: tuple[str, ...] = ()
    temperature: float = 1.0
    uncalibrated_log_loss: Mapping[str, float] = field(default_factory=dict)
    diverged: str | None = None

    @property
    def kept_epoch(self) -> int:
        """Epoch whose weights were kept; 0 is the head that training started from."""
        return int(self.history.loc[self.history["kept"], "epoch"].iloc[0])


_TOP_1 = DecisionRule(0.0, ())


class Validation(NamedTuple):
    """Values of an epoch on the validation fold.

    Attributes:
        loss: Mean loss, weighted as in training.
        accuracy: Share of images whose top-1 class is right.
        metric: Metric of choice; NaN where there is none, or where it is undefined.
    """

    loss: float
    accuracy: float
    metric: float


@dataclass(frozen=True, eq=False)
class Criterion:
    """How epochs are compared on the validation fold: by the metric of choice.

    It is that of the decisions after the rule, or of the probabilities at the temperature, of the
    model as it would be exported at the end of the epoch.

    Attributes:
        metric: Name of the metric; None where epochs are compared by their loss.
        labels: int64 of shape (n_images,), of the validation fold.
        groups: Group of each image, (n_images,).
        head_rule: Decision rule of the head that training starts from.
        rule: Decision rule of what was trained.
        head_calibration: Calibration of the head, by its out-of-fold probabilities.
    """

    metric: str | None = None
    labels: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: AnyArray = field(default_factory=lambda: np.zeros(0, np.int64))
    head_rule: DecisionRule = _TOP_1
    rule: DecisionRule = _TOP_1
    head_calibration: Calibration = UNCALIBRATED

    def rule_of(self, epoch: int) -> DecisionRule:
        """Return the decision rule of an epoch's probabilities; epoch 0 is the head."""
        return self.rule if epoch else self.head_rule

    def calibration_of(self, probs: Float32Array, epoch: int) -> Calibration:
        """Return the calibration of an epoch's model, by its probabilities of the validation fold.

        That fold chooses the epoch, so it flatters what was trained, which it may only soften.
        """
        if epoch == 0:
            return self.head_calibration
        return calibrate(probs, self.labels, self.groups, may_sharpen=False)

    def value(self, probs: Float32Array, epoch: int) -> float:
        """Return the metric of an epoch's probabilities (n_images, n_classes)."""
        if self.metric is None:
            return float("nan")
        metric = METRICS[self.metric]
        if metric.is_of_decision:  # the temperature keeps decisions
            values = self.rule_of(epoch).adjust(probs)
        else:
            values = at_temperature(probs, self.calibration_of(probs, epoch).temperature)
        try:
            return float(metric.function(values, self.labels, None))
        except DataError:  # such as ROC AUC without images of a class
            return float("nan")

    def score(self, value: float) -> float:
        """Return what epochs are compared by, larger is better: 0 for an undefined metric."""
        if self.metric is None or np.isnan(value):
            return 0.0
        return value if METRICS[self.metric].higher_is_better else -value


def rounded_metrics(
    probs: Float32Array, labels: IntArray, groups: AnyArray, seed: int, rule: DecisionRule
) -> Figures:
    """Return every metric on some images with its interval, rounded for `run.json`.

    Metrics of decisions are those of the decision rule, as on the leaderboard; `unadjusted_*` are
    those of the top-1 class. One that is undefined there is absent, all of them for fewer than
    two groups.
    """
    evaluator = Evaluator.if_grouped(labels, groups, seed)
    if evaluator is None:
        return {}
    metrics = evaluator.metrics(Predictions(probs, rule.adjust(probs)))
    return {
        name: (round(estimate, 6), round(low, 6), round(high, 6))
        for name, (estimate, low, high) in metrics.items()
    }


def predictions_table(
    images: pd.DataFrame, probs: Float32Array, class_names: Sequence[str]
) -> pd.DataFrame:
    """Return path, sha256, label and the probability of each class, one row per image."""
    table = images[["path", "sha256", "label"]].copy()
    for c, name in enumerate(class_names):
        table[f"p({name})"] = probs[:, c].round(6)
    return table


def screening_metric(board: pd.DataFrame, modules: Iterable[str], metric: str) -> dict[str, float]:
    """Return a metric of the modules on the leaderboard: module name to its value."""
    # An ensemble of one member has its module's name.
    rows = board[board["module"].isin(list(modules)) & (board["kind"] != ENSEMBLE)]
    return dict(zip(rows["module"], rows[metric].astype(float), strict=True))


def order_of(
    screening: Mapping[str, float], finetuned: Mapping[str, float], metric: str
) -> OrderRecord:
    """Return whether modules rank after fine-tuning as they did when they were screened.

    Args:
        screening: Module name to its metric on the leaderboard; other modules are left out.
        finetuned: Module name to its metric on the validation fold after fine-tuning.
        metric: Name of the metric.
    """
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    names = list(finetuned)
    first, second = ([sign * values[n] for n in names] for values in (screening, finetuned))
    tau = float(kendalltau(first, second).statistic)
    chosen = names[int(np.argmax(first))]
    return OrderRecord(
        screening=_best_first(names, first),
        finetuned=_best_first(names, second),
        kendall_tau=tau if np.isfinite(tau) else None,
        regret=max(second) - second[names.index(chosen)],
        metric=metric,
    )


def _best_first(names: Sequence[str], values: Sequence[float]) -> tuple[str, ...]:
    return tuple(names[i] for i in np.argsort(-np.asarray(values), kind="stable"))
