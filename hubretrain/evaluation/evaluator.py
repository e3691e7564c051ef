"""Metrics with confidence intervals of any predictions of the same images.

    evaluator = Evaluator(labels, groups, seed)
    predictions = Predictions(probs, rule.adjust(probs))
    evaluator.metrics(predictions)                       metric -> estimate, low, high
    evaluator.per_class(class_names, "a", predictions)   recall, average precision per class
    evaluator.effect(pairs, "accuracy")                  paired difference, mean over the pairs

All predictions share one draw of resamples, so their differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, IntArray
from hubretrain.errors import DataError
from hubretrain.evaluation import intervals
from hubretrain.evaluation.intervals import Difference, Interval, Resampled
from hubretrain.evaluation.metrics import (
    MetricFunction,
    f1_per_class,
    metric_named,
    metrics_of,
    precision_per_class,
    recall_per_class,
)
from hubretrain.evaluation.parts import class_values
from hubretrain.evaluation.ranking_metrics import average_precision_per_class

N_RESAMPLES = 1000
CONFIDENCE = 0.95
TOP_1 = {f"unadjusted_{metric}": metric for metric in ("accuracy", "balanced_accuracy")}
"""Metrics of the top-1 class whatever the decision rule: name to the metric it is."""


class Predictions(NamedTuple):
    """Predictions of some images by one model, before and after its decision rule.

    Attributes:
        unadjusted: Probabilities, float (n_images, n_classes).
        adjusted: The same after logit adjustment: the largest is the decision. Of several labels
            per image, the scores of `LabelThresholds`: those above 1/2 are decided on.
        deployed: Of cross-fitted predictions, those of the one model that is deployed; it was
            chosen by all of the images. None if all are of one model.
    """

    unadjusted: AnyArray
    adjusted: AnyArray
    deployed: Predictions | None = None

    def of(self, metric: str) -> AnyArray:
        """Return what a metric evaluates: the adjusted probabilities if it is of decisions."""
        is_of_decision = metric not in TOP_1 and metric_named(metric).is_of_decision
        return self.adjusted if is_of_decision else self.unadjusted


class Evaluator:
    """The images that predictions are evaluated on, and one draw of resamples for all.

    Args:
        labels: int (n_images,); or, where an image may have several, bool (n_images, n_classes).
        groups: Group of each image, (n_images,).
        seed: Random seed of the resamples.
        n_resamples: Number of resamples.
        parts: int (n_images,), from `choice_parts`, where the predictions are cross-fitted, so
            that each part may be of another model; None if each prediction is of one model. See
            `hubretrain.evaluation.parts`.

    Attributes:
        labels: As they were given.
        groups: Group of each image, (n_images,).
        weights: uint8 (n_resamples, n_images), how often each resample holds each image.
        parts: int (n_images,) or None.

    Raises:
        DataError: There are fewer than two groups.
    """

    def __init__(
        self,
        labels: AnyArray,
        groups: AnyArray,
        seed: int = 0,
        n_resamples: int = N_RESAMPLES,
        parts: IntArray | None = None,
    ) -> None:
        self.labels, self.groups, self.parts = labels, groups, parts
        self.weights = intervals.group_resamples(groups, n_resamples=n_resamples, seed=seed)

    @classmethod
    def if_grouped(cls, labels: AnyArray, groups: AnyArray, seed: int) -> Evaluator | None:
        """Return an evaluator, or None for fewer than two groups, which have no intervals."""
        return cls(labels, groups, seed) if len(set(groups.tolist())) > 1 else None

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    @property
    def of_one_model(self) -> Evaluator:
        """The same images and resamples, for predictions of one model."""
        evaluator = copy(self)
        evaluator.parts = None
        return evaluator

    def resample(self, metric: str, probs: AnyArray) -> Resampled:
        """Return a metric on the images and on every resample.

        Raises:
            DataError: The metric is undefined for these labels.
        """
        return intervals.resample(metric, probs, self.labels, self.groups, self.weights, self.parts)

    def interval(
        self, metric: str, probs: AnyArray, deployed: AnyArray | None = None
    ) -> Interval | None:
        """Return a metric with its interval; None where it is undefined for these labels.

        Args:
            metric: Name of the metric.
            probs: Probabilities, (n_images, n_classes).
            deployed: Those of the one model that is deployed, where `probs` are cross-fitted.
        """
        try:
            row = self.resample(metric, probs)
            own = None if deployed is None else self.of_one_model.resample(metric, deployed)
        except DataError:  # such as ROC AUC with one class
            return None
        return intervals.interval(row, CONFIDENCE, own)

    def of(self, metric: str, predictions: Predictions) -> Interval | None:
        """Return a metric or one of `TOP_1` of what it evaluates, as `interval` does."""
        deployed = predictions.deployed and predictions.deployed.of(metric)
        return self.interval(TOP_1.get(metric, metric), predictions.of(metric), deployed)

    def metrics(self, predictions: Predictions) -> dict[str, Interval]:
        """Return every metric and those of `TOP_1`, with intervals; undefined ones are absent.

        Of several labels per image they are those of `LABEL_METRICS`.
        """
        names = (*metrics_of(self.multi_label), *(() if self.multi_label else TOP_1))
        values = {name: self.of(name, predictions) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def per_class(
        self, class_names: Sequence[str], module: str, predictions: Predictions
    ) -> pd.DataFrame:
        """Return recall and average precision with intervals, one row per class.

        Of several labels per image also precision and F1.

        Args:
            class_names: Class names in class order.
            module: Name of the model, for the column `module`.
            predictions: Its predictions of the images.
        """
        values = {
            "recall": self._class_values(recall_per_class, "macro_f1", predictions),
            "average_precision": self._class_values(
                average_precision_per_class, "mean_average_precision", predictions
            ),
        }
        if self.multi_label:
            values |= {
                "precision": self._class_values(precision_per_class, "macro_f1", predictions),
                "f1": self._class_values(f1_per_class, "macro_f1", predictions),
            }
        rows = []
        for c, name in enumerate(class_names):
            is_class = self.labels[:, c] if self.multi_label else self.labels == c
            n_groups = len(set(self.groups[is_class].tolist()))
            row: dict[str, Any] = {"module": module, "class": name}
            row |= {"n_images": int(is_class.sum()), "n_groups": n_groups}
            for metric, of_models in values.items():
                of_class = [(float(one[c]), resampled[:, c]) for one, resampled in of_models]
                ends = _class_interval(of_class, n_groups)
                row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), ends, strict=True))
            rows.append(row)
        return pd.DataFrame(rows)

    def _class_values(
        self, function: MetricFunction, mean: str, predictions: Predictions
    ) -> list[tuple[AnyArray, AnyArray]]:
        """Return values of the classes, and on the resamples; also of the deployed model.

        Args:
            function: Metric of each class.
            mean: Name of a metric that evaluates the same probabilities.
            predictions: What to evaluate.
        """
        models = [(predictions.of(mean), self.parts)]
        if predictions.deployed is not None:
            models.append((predictions.deployed.of(mean), None))
        return [
            (
                class_values(function, probs, self.labels, None, parts),
                class_values(function, probs, self.labels, self.weights, parts),
            )
            for probs, parts in models
        ]

    def recall_changes(self, scores: AnyArray, other: AnyArray) -> dict[int, Difference]:
        """Return the paired difference of the recall of each class that is there, by its number.

        The intervals of all of them hold at once with 95 % confidence, as those of `effect`.

        Args:
            scores: What decides, (n_images, n_classes).
            other: What is compared with it.
        """
        classes = np.unique(self.labels)
        confidence = 1 - (1 - CONFIDENCE) / len(classes)
        of_both = []
        for of in (scores, other):
            estimates = recall_per_class(of, self.labels, None)
            of_both.append((estimates, recall_per_class(of, self.labels, self.weights)))
        changes = {}
        for c in classes.tolist():
            n_groups = len(np.unique(self.groups[self.labels == c]))
            rows = [_of_class(float(one[c]), values[:, c], n_groups) for one, values in of_both]
            changes[c] = intervals.difference(rows[0], rows[1], confidence)
        return changes

    def effect(
        self, pairs: Sequence[tuple[AnyArray, AnyArray]], metric: str, n_effects: int = 1
    ) -> Difference:
        """Return the difference of a metric, mean over the pairs, on the same resamples.

        Args:
            pairs: Probabilities with and without what is tested, one pair per model.
            metric: Name of the metric.
            n_effects: Number of effects that are shown together. The intervals of all of them hold
                at once with 95 % confidence, and p is adjusted likewise (Bonferroni): of seven
                intervals that hold singly, one leaves out its truth in up to 30 % of the cases.
        """
        with_it, without_it = (
            _mean([self.resample(metric, pair[side]) for pair in pairs]) for side in (0, 1)
        )
        change = intervals.difference(with_it, without_it, 1 - (1 - CONFIDENCE) / n_effects)
        return change._replace(p=min(1.0, n_effects * change.p), confidence=CONFIDENCE)


def _class_interval(models: Sequence[tuple[float, AnyArray]], n_groups: int) -> Interval:
    if any(np.isnan(estimate) for estimate, _ in models):
        return Interval(np.nan, np.nan, np.nan)
    rows = [_of_class(estimate, resampled, n_groups) for estimate, resampled in models]
    return intervals.interval(rows[0], CONFIDENCE, *rows[1:])


def _of_class(estimate: float, resampled: AnyArray, n_groups: int) -> Resampled:
    """Return a share of one class; any share has the interval of an accuracy."""
    values = np.where(np.isnan(resampled), estimate, resampled)
    return Resampled("accuracy", estimate, values, float(n_groups))


def _mean(rows: Sequence[Resampled]) -> Resampled:
    values = np.mean([row.per_resample for row in rows], axis=0)
    estimate = float(np.mean([row.estimate for row in rows]))
    n_groups = min(row.n_groups for row in rows)
    return Resampled(rows[0].metric, estimate, values, n_groups, rows[0].widening)
