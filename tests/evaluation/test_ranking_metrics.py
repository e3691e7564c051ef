"""Ranking metrics against scikit-learn and against counting pairs."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from hubretrain.evaluation.metrics import METRICS, recall_per_class
from hubretrain.evaluation.ranking_metrics import (
    average_precision_per_class,
    roc_auc,
    roc_auc_per_class,
)
from tests.evaluation.samples import drawn_weights, predictions


def test_per_class_values_are_scikit_learns_and_nan_without_images():
    probabilities, labels = predictions(5)
    weights = np.where(labels == 3, 0, drawn_weights(5, len(labels), 1)[0])
    recall = recall_per_class(probabilities, labels, weights)
    precision = average_precision_per_class(probabilities, labels, weights)
    area = roc_auc_per_class(probabilities, labels, weights)
    for values in (recall, precision, area):
        assert values.shape == (5,)
        np.testing.assert_array_equal(np.isnan(values), np.arange(5) == 3)
    predicted = probabilities.argmax(axis=1)
    for c in (0, 1, 2, 4):
        is_class, scores = labels == c, probabilities[:, c]
        assert recall[c] == pytest.approx(
            oracle.recall_score(is_class, predicted == c, sample_weight=weights), abs=1e-10
        )
        assert precision[c] == pytest.approx(
            oracle.average_precision_score(is_class, scores, sample_weight=weights), abs=1e-10
        )
        assert area[c] == pytest.approx(
            oracle.roc_auc_score(is_class, scores, sample_weight=weights), abs=1e-10
        )


def test_roc_auc_is_undefined_and_the_rest_is_not_when_only_one_class_is_present():
    probabilities, _ = predictions(6)
    labels = np.zeros(len(probabilities), int)
    assert np.isnan(roc_auc(probabilities, labels))
    for name in set(METRICS) - {"roc_auc"}:
        assert np.isfinite(METRICS[name].function(probabilities, labels, None)), name


def test_roc_auc_counts_pairs():
    probabilities, labels = predictions(9, n_images=60, decimals=3)
    for c in range(5):
        of_class, of_others = probabilities[labels == c, c], probabilities[labels != c, c]
        wins = (of_class[:, None] > of_others) + 0.5 * (of_class[:, None] == of_others)
        assert roc_auc_per_class(probabilities, labels)[c] == pytest.approx(wins.mean(), abs=1e-12)
