"""The result of fine-tuning one module: its metrics with intervals, and its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from hubretrain.arrays import AnyArray, Float32Array
from hubretrain.evaluation import (
    Evaluator,
    Predictions,
)
from hubretrain.runs import (
    EnsembleMeanRecord,
    Figures,
)


@dataclass(frozen=True)
class FineTuneResult:
    """The result of fine-tuning one module.

    Attributes:
        module: Name of the module.
        history: One row per epoch.
        test: Metrics on the test split, {} without one; with `all_folds` of what they trained.
        head_test: The same of the head that training started from.
        validation: Metrics on the validation fold, of what was trained without it.
        head_validation: The same of the head that training started from.
        export: Folder of the run's export: of the model that is best on the validation fold.
        notes: Sentences that a reader of the result should know.
        temperature: Temperature of the model's probabilities; all metrics are with it.
        uncalibrated_log_loss: Log loss without it of `test` and `validation`, nats; a part without
            images is absent.
        over_head: Metric of choice minus that of the head that training started from, of `test` and
            `validation`, with paired intervals.
        diverged: What to do about a loss that became NaN or infinite; None if it did not.
        all_folds: Whether the model was trained once more, on all folds.
        with_ensemble: The mean of its probabilities and the ensemble's; None without an ensemble
            that could be exported, or where no epoch was better than the head.
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
    over_head: Figures = field(default_factory=dict)
    diverged: str | None = None
    all_folds: bool = False
    with_ensemble: EnsembleMeanRecord | None = None

    @property
    def kept_epoch(self) -> int:
        """Epoch whose weights were kept; 0 is the head that training started from."""
        return int(self.history.loc[self.history["kept"], "epoch"].iloc[0])


def rounded_metrics(
    predictions: Predictions, labels: AnyArray, groups: AnyArray, seed: int
) -> Figures:
    """Return every metric on some images with its interval, rounded for `run.json`.

    Metrics of decisions are those of the decision rule, as on the leaderboard; `unadjusted_*` are
    those of the top-1 class. One that is undefined there is absent, all of them for fewer than
    two groups.
    """
    evaluator = Evaluator.if_grouped(labels, groups, seed)
    if evaluator is None:
        return {}
    metrics = evaluator.metrics(predictions)
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
