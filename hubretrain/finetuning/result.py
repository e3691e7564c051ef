"""What fine-tuning came to: its figures, its predictions, and whether screening was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import kendalltau

from hubretrain.errors import DataError
from hubretrain.evaluation import METRICS, DecisionRule, intervals
from hubretrain.runs import OrderRecord

N_RESAMPLES = 1000
Figures = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class FineTuneResult:
    """What fine-tuning one module came to.

    Attributes:
        module: The module's name.
        history: One row an epoch.
        test: Metric name to (estimate, low, high) on the test split; {} without one.
        head_test: The same for the head that training started from.
        validation: The same as `test` on the validation fold.
        head_validation: The same as `head_test` on the validation fold.
        export: Where the run's export is: of the module that is best on the validation fold.
        notes: What one should know.
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
    diverged: str | None = None

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights were kept; 0 is the head that training started from."""
        return int(self.history.loc[self.history["kept"], "epoch"].iloc[0])


def judged(
    probabilities: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[Any],
    seed: int,
    rule: DecisionRule,
) -> Figures:
    """Every metric on some images, with its interval; one that is undefined there is absent.

    Metrics of decisions are those of the head's decision rule, as on the leaderboard;
    `plain_accuracy` is that of the likeliest class.
    """
    if len(set(groups.tolist())) < 2:
        return {}
    weights = intervals.group_resamples(groups, n_resamples=N_RESAMPLES, seed=seed)
    decided = rule.adjust(probabilities)
    said = {name: decided if METRICS[name].is_of_decision else probabilities for name in METRICS}
    found: Figures = {}
    for name, model in {**said, "plain_accuracy": probabilities}.items():
        try:
            metric = name.removeprefix("plain_")
            result = intervals.resample(metric, model, labels, groups, weights)
        except DataError:  # such as ROC AUC of a test split with one class
            continue
        estimate, low, high = intervals.interval(result)
        found[name] = (round(estimate, 6), round(low, 6), round(high, 6))
    return found


def predictions_table(
    images: pd.DataFrame, probs: npt.NDArray[np.float32], class_names: Sequence[str]
) -> pd.DataFrame:
    """Return path, sha256, label and the probability of each class, one row per image."""
    table = images[["path", "sha256", "label"]].copy()
    for c, name in enumerate(class_names):
        table[f"p({name})"] = probs[:, c].round(6)
    return table


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
