"""How epochs are compared on the validation fold, and how a trained model decides there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, BoolArray, Float32Array
from hubretrain.data import targets
from hubretrain.errors import DataError
from hubretrain.evaluation import (
    FEWEST_POSITIVES,
    UNCALIBRATED,
    Calibration,
    DecisionRule,
    LabelThresholds,
    Rule,
    at_temperature,
    best_thresholds,
    calibrate,
    choice_parts,
    metric_named,
)
from hubretrain.runs import (
    FineTunedModuleRecord,
)

_TOP_1 = DecisionRule(0.0, ())


def labels_of(images: pd.DataFrame, class_names: Sequence[str]) -> AnyArray:
    """Return the labels of images of a data set as `TrainingImages` has them.

    Args:
        images: Column `class_index`, or where images may have several labels `label`.
        class_names: Class names in class order.
    """
    if "class_index" in images:
        return np.asarray(images["class_index"], dtype=np.int64)
    return targets(images["label"], class_names, True)


def recorded_rule(record: FineTunedModuleRecord) -> Rule:
    """Return the decision rule of a fine-tuned module, for probabilities at its temperature."""
    thresholds = tuple(map(float, record.thresholds))
    rule = LabelThresholds(thresholds) if thresholds else DecisionRule(record.adjust, record.priors)
    return rule.at_temperature(record.temperature)


def top_1_accuracy(probs: Float32Array, labels: AnyArray) -> float:
    """Return the share of images whose top-1 class is right.

    Of several labels per image it is the share whose labels are those with more than 1/2.
    """
    if labels.ndim > 1:
        return float(((probs > 0.5) == labels).all(axis=1).mean())
    return float((probs.argmax(axis=1) == labels).mean())


def thresholds_on(probs: AnyArray, labels: BoolArray, otherwise: LabelThresholds) -> Rule:
    """Return the thresholds of the best F1 on images.

    A label that too few of them have, or lack, keeps the threshold that it had: the head's was
    chosen on all folds.

    Args:
        probs: float (n_images, n_labels), of images that were not trained on.
        labels: bool (n_images, n_labels).
        otherwise: Thresholds of labels with too few images.
    """
    n_positive = labels.sum(axis=0)
    is_chosen = np.minimum(n_positive, len(labels) - n_positive) >= FEWEST_POSITIVES
    chosen = best_thresholds(probs, labels).values  # noqa: PD011 - no table
    return LabelThresholds(tuple(np.where(is_chosen, chosen, otherwise.values).tolist()))


def scores_of(probs: AnyArray, labels: AnyArray, groups: AnyArray, rule: Rule) -> AnyArray:
    """Return the scores that decide about the images of the validation fold after training.

    That fold chooses the thresholds of labels. So that they are not evaluated on the images that
    they were chosen on, each half of the groups is decided by the thresholds of the other.

    Args:
        probs: float (n_images, n_classes), of the validation fold.
        labels: Its labels, see `TrainingImages`.
        groups: Group of each image, (n_images,).
        rule: Decision rule; of labels, the thresholds where there are too few images.
    """
    if isinstance(rule, DecisionRule) or len(set(groups.tolist())) < 2:
        return rule.adjust(probs)
    scores, parts = np.empty_like(probs), choice_parts(labels, groups)
    for part in np.unique(parts):
        here = parts == part
        scores[here] = thresholds_on(probs[~here], labels[~here], rule).adjust(probs[here])
    return scores


class Validation(NamedTuple):
    """Values of an epoch on the validation fold.

    Attributes:
        loss: Mean loss, weighted as in training.
        accuracy: See `top_1_accuracy`.
        metric: Metric of choice; NaN where there is none, or where it is undefined.
    """

    loss: float
    accuracy: float
    metric: float


UNKNOWN = Validation(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class Criterion:
    """How epochs are compared on the validation fold: by the metric of choice.

    It is that of the decisions after the rule, or of the probabilities at the temperature, of the
    model as it would be exported at the end of the epoch. Thresholds of labels are chosen anew for
    each epoch, as `scores_of` does.

    Attributes:
        metric: Name of the metric; None where epochs are compared by their loss.
        labels: Labels of the validation fold, see `TrainingImages`.
        groups: Group of each image, (n_images,).
        head_rule: Decision rule of the head that training starts from.
        rule: Decision rule of what was trained.
        head_calibration: Calibration of the head, by its out-of-fold probabilities.
    """

    metric: str | None = None
    labels: AnyArray = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: AnyArray = field(default_factory=lambda: np.zeros(0, np.int64))
    head_rule: Rule = _TOP_1
    rule: Rule = _TOP_1
    head_calibration: Calibration = UNCALIBRATED

    def rule_of(self, probs: AnyArray, epoch: int) -> Rule:
        """Return the decision rule of an epoch's model; epoch 0 is the head.

        Args:
            probs: Its probabilities of the validation fold.
            epoch: Number of the epoch.
        """
        if epoch and isinstance(self.rule, LabelThresholds):
            return thresholds_on(probs, self.labels, self.rule)
        return self.rule if epoch else self.head_rule

    def scores(self, probs: AnyArray, epoch: int) -> AnyArray:
        """Return the scores that decide about the images of the validation fold in an epoch."""
        if epoch == 0:
            return self.head_rule.adjust(probs)
        return scores_of(probs, self.labels, self.groups, self.rule)

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
        metric = metric_named(self.metric)
        if metric.is_of_decision:  # the temperature keeps decisions
            values = self.scores(probs, epoch)
        else:
            temperature = self.calibration_of(probs, epoch).temperature
            values = at_temperature(probs, temperature, self.labels.ndim > 1)
        try:
            return float(metric.function(values, self.labels, None))
        except DataError:  # such as ROC AUC without images of a class
            return float("nan")

    def score(self, value: float) -> float:
        """Return what epochs are compared by, larger is better: 0 for an undefined metric."""
        if self.metric is None or np.isnan(value):
            return 0.0
        return value if metric_named(self.metric).higher_is_better else -value
