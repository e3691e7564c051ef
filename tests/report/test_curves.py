from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from hubretrain.evaluation.metrics import calibration_error
from hubretrain.report import curves
from tests.report.samples import predictions


def test_thinned_curves_keep_their_areas() -> None:
    said, labels = predictions()
    for c, curve in enumerate(curves.class_curves(said, labels)):
        assert curve is not None
        area = np.trapezoid(curve["tpr"], curve["fpr"])
        assert area == pytest.approx(roc_auc_score(labels == c, said[:, c]), abs=0.005)
        steps = np.diff(curve["recall"]) * np.array(curve["precision"][1:])
        exact = average_precision_score(labels == c, said[:, c])
        assert steps.sum() == pytest.approx(exact, abs=0.01)


def test_the_bins_of_the_reliability_diagram_are_those_of_the_calibration_error() -> None:
    said, labels = predictions()
    bins = curves.calibration(said, labels)
    assert sum(one["n"] for one in bins) == len(labels)
    gaps = sum(one["n"] * abs(one["accuracy"] - one["confidence"]) for one in bins)
    assert gaps / len(labels) == pytest.approx(float(calibration_error(said, labels)), abs=1e-4)


def test_counts_at_thresholds_include_the_threshold_itself() -> None:
    said = np.array([[0.5, 0.5], [0.505, 0.495], [1.0, 0.0]])
    right, wrong = curves.counts_at_thresholds(said, np.array([0, 1, 0]))
    assert right[0, 100] == 2
    assert wrong[0, 100] == 1
    assert wrong[0, 102] == 0
    assert right[0, 200] == 1
    assert right[:, 0].tolist() == [2, 1]


def test_a_class_that_is_all_or_none_of_the_images_has_no_curve() -> None:
    said = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1]])
    assert curves.class_curves(said, np.array([0, 0])) == [None, None, None]


def test_the_threshold_of_each_label_lies_on_its_curves() -> None:
    random = np.random.default_rng(0)
    labels = random.random((80, 3)) < 0.4
    probs = np.clip(random.normal(0.35 + 0.3 * labels, 0.2), 0, 1)
    thresholds = (0.3, 0.6, 2.0)
    marks = curves.at_thresholds(probs, labels, thresholds)
    for c, curve in enumerate(curves.class_curves(probs, labels)):
        decided = probs[:, c] > thresholds[c]
        truth, mark = labels[:, c], marks[c]
        assert mark["recall"] == pytest.approx(recall_score(truth, decided), abs=1e-4)
        assert mark["tpr"] == mark["recall"]
        false = recall_score(~truth, decided)
        assert mark["fpr"] == pytest.approx(false, abs=1e-4)
        if decided.any():
            expected = precision_score(truth, decided)
            assert mark["precision"] == pytest.approx(expected, abs=1e-4)
            assert (
                min(
                    abs(r - mark["recall"]) + abs(p - mark["precision"])
                    for r, p in zip(curve["recall"], curve["precision"], strict=True)
                )
                < 0.01
            )
        else:
            assert mark["precision"] is None
