"""From probabilities to a decision for images with several labels: a threshold for each label.

A label is decided on where its probability is above its threshold. The thresholds are those of the
best F1 of each label on images that the model was not fitted on; Lipton, Elkan and Naryanaswamy
(2014), Optimal thresholding of classifiers to maximize F1 measure, ECML,
https://doi.org/10.1007/978-3-662-44851-9_15. They are chosen, so what they are worth is measured on
other images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hubretrain.arrays import AnyArray, BoolArray, FloatArray
from hubretrain.evaluation.logit_adjustment import DecisionRule

UNCHOSEN = 0.5  # the threshold of a label with too few images to choose one by
FEWEST_POSITIVES = 5  # images with a label, and without, from which its threshold is chosen


@dataclass(frozen=True)
class LabelThresholds:
    """The decision rule of images with several labels.

    Attributes:
        values: Threshold of each label in class order, in (0, 1).
    """

    values: tuple[float, ...]

    def adjust(self, probs: AnyArray) -> AnyArray:
        """Return scores that decide: a label is decided on where its score is above 1/2.

        With p the probability and t the threshold they are sigmoid(logit(p) - logit(t)) =
        p (1 - t) / (p (1 - t) + (1 - p) t), so their order is that of the probabilities.

        Args:
            probs: float (n_images, n_labels) in [0, 1].
        """
        thresholds = np.array(self.values).astype(probs.dtype)
        odds_for, odds_against = probs * (1 - thresholds), (1 - probs) * thresholds
        return np.asarray(odds_for / (odds_for + odds_against))

    def decide(self, probs: AnyArray) -> BoolArray:
        """Return which labels are decided on, bool (n_images, n_labels)."""
        return np.asarray(self.adjust(probs) > 0.5)

    def at_temperature(self, temperature: float) -> LabelThresholds:
        """Return the rule that decides the same of probabilities at a temperature.

        Those are sigmoid(logit(p) / T), and so are the thresholds.
        """
        values = np.array(self.values)
        if temperature == 1:
            return self
        odds = (values / (1 - values)) ** (1 / temperature)
        return LabelThresholds(tuple((odds / (1 + odds)).tolist()))


Rule: TypeAlias = DecisionRule | LabelThresholds
"""How the probabilities of a model become decisions."""


def best_thresholds(probs: AnyArray, labels: AnyArray) -> LabelThresholds:
    """Return the thresholds of the best F1 of each label on these images.

    Each lies halfway between two neighbouring probabilities, so that no image lies on it; of equal
    F1 the highest is taken. A label that fewer than `FEWEST_POSITIVES` images have, or lack, gets
    `UNCHOSEN`.

    Args:
        probs: float (n_images, n_labels) in [0, 1], of images that the model was not fitted on.
        labels: bool (n_images, n_labels).
    """
    n_positive = labels.sum(axis=0)
    is_chosen = np.minimum(n_positive, len(labels) - n_positive) >= FEWEST_POSITIVES
    values = [
        _best_threshold(probs[:, k].astype(np.float64), labels[:, k]) if chosen else UNCHOSEN
        for k, chosen in enumerate(is_chosen.tolist())
    ]
    return LabelThresholds(tuple(values))


def _best_threshold(probs: FloatArray, is_positive: BoolArray) -> float:
    order = np.argsort(-probs, kind="stable")
    ranked = probs[order]
    n_decided = np.arange(1, len(ranked) + 1)
    f1 = 2 * np.cumsum(is_positive[order]) / (n_decided + is_positive.sum())
    below = np.append(ranked[1:], 0.0)
    f1 = np.where(ranked > below, f1, -1.0)  # equal probabilities are decided alike
    best = int(f1.argmax())
    threshold = (ranked[best] + below[best]) / 2
    return float(np.clip(threshold, np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).eps))
