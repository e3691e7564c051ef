"""Fine-tuning results: metrics, predictions, and whether the order of the screening held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from hubretrain.arrays import AnyArray, Float32Array, IntArray
from hubretrain.evaluation import METRICS, DecisionRule, Evaluator, Predictions
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
