"""Transfer scores against scikit-learn's evidence and shrinkage, and the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import BayesianRidge

from hubretrain.heads.features import FeatureBlocks
from hubretrain.screening.transferability import transfer_scores


def features(seed=0, n_images=300, n_features=12, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n_images)
    centres = rng.normal(size=(3, n_features)) * signal
    mix = rng.normal(size=(n_features, n_features))
    return (centres[labels] + rng.normal(size=(n_images, n_features))) @ mix, labels


def scores(raw, labels):
    rows = FeatureBlocks([raw], np.arange(len(labels)), standardize=True, memory=1 << 30)
    return transfer_scores(rows, labels, 3)


def test_log_me_is_the_evidence_that_bayesian_ridge_finds():
    raw, labels = features()
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    evidence = []
    for c in range(3):
        model = BayesianRidge(
            alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=2000,
            compute_score=True,
        ).fit(scaled, (labels == c).astype(float))  # fmt: skip
        evidence.append(model.scores_[-1] / len(labels))
    assert scores(raw, labels)["log_me"] == pytest.approx(np.mean(evidence), abs=1e-5)


def test_the_h_score_is_its_formula_with_the_shrinkage_of_ledoit_and_wolf():
    raw, labels = features(1)
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    shrunk, shrinkage = ledoit_wolf(scaled, assume_centered=True)
    means = np.stack([scaled[labels == c].mean(axis=0) for c in labels])
    between = means.T @ means / len(labels)
    expected = np.trace(np.linalg.solve(shrunk, (1 - shrinkage) * between))
    assert scores(raw, labels)["h_score"] == pytest.approx(expected, rel=1e-6)


def test_both_rise_with_how_far_the_classes_are_apart():
    found = [scores(*features(2, signal=s)) for s in (0.0, 0.5, 2.0)]
    for name in ("log_me", "h_score"):
        assert found[0][name] < found[1][name] < found[2][name]


def test_more_features_than_images_and_one_class_end():
    raw, labels = features(3, n_images=10, n_features=40)
    assert np.isfinite(list(scores(raw, labels).values())).all()
    alone = scores(raw, np.zeros(10, dtype=int))
    assert np.isnan(alone["log_me"])
    assert alone["h_score"] == pytest.approx(0, abs=1e-9)


def test_indicators_of_classes_have_the_evidence_of_the_classes_and_no_h_score():
    raw, labels = features()
    of_classes, of_labels = scores(raw, labels), scores(raw, np.eye(3, dtype=bool)[labels])
    assert of_labels == pytest.approx({"log_me": of_classes["log_me"]})
