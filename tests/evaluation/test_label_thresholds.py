"""The decision rule of images with several labels: a threshold for each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import f1_score

from hubretrain.evaluation.label_thresholds import (
    FEWEST_POSITIVES,
    UNCHOSEN,
    LabelThresholds,
    best_thresholds,
)
from hubretrain.evaluation.temperature import at_temperature, calibrate


def several_labels(n_images=400, prevalences=(0.5, 0.2, 0.05), seed=0):
    """Indicators, and probabilities that rank them better than chance; some are equal."""
    random = np.random.default_rng(seed)
    labels = random.random((n_images, len(prevalences))) < prevalences
    logits = 2 * labels - 2 + random.normal(size=labels.shape)
    return labels, expit(logits).round(2)


def test_scores_above_a_half_are_probabilities_above_their_thresholds():
    _, probs = several_labels()
    rule = LabelThresholds((0.5, 0.31, 0.07))
    np.testing.assert_allclose(rule.adjust(probs), expit(logit(probs) - logit(rule.values)))
    np.testing.assert_array_equal(rule.decide(probs), probs > rule.values)
    np.testing.assert_array_equal(rule.adjust(probs) > 0.5, rule.decide(probs))
    assert rule.adjust(probs.astype(np.float32)).dtype == np.float32


def test_a_probability_that_equals_its_threshold_is_not_decided_on():
    thresholds = np.random.default_rng(0).random(1000)
    rule = LabelThresholds(tuple(thresholds.tolist()))
    assert not rule.decide(thresholds[None]).any()


def test_no_other_thresholds_have_a_better_f1_on_the_images_that_choose_them():
    labels, probs = several_labels()
    chosen = f1_score(labels, best_thresholds(probs, labels).decide(probs), average=None)
    for k in range(labels.shape[1]):
        others = [f1_score(labels[:, k], probs[:, k] > t) for t in np.linspace(0, 0.99, 199)]
        assert chosen[k] == pytest.approx(max(others), abs=1e-12)


def test_labels_that_few_images_have_or_lack_are_decided_on_from_a_half():
    random = np.random.default_rng(1)
    n_positive = (0, FEWEST_POSITIVES - 1, FEWEST_POSITIVES, 40 - FEWEST_POSITIVES + 1, 40)
    labels = np.arange(40)[:, None] < np.array(n_positive)
    chosen = np.array(best_thresholds(random.random(labels.shape), labels).values) != UNCHOSEN
    assert chosen.tolist() == [False, False, True, False, False]


def test_a_rule_decides_the_same_of_probabilities_at_a_temperature():
    labels, probs = several_labels()
    rule = best_thresholds(probs, labels)
    cooled = at_temperature(probs, 1.7, multi_label=True)
    np.testing.assert_allclose(cooled, expit(logit(np.clip(probs, 1e-30, 1)) / 1.7))
    np.testing.assert_array_equal(rule.at_temperature(1.7).decide(cooled), rule.decide(probs))
    assert rule.at_temperature(1.0) == rule


def test_overconfident_labels_get_back_the_temperature_of_their_sigmoids():
    random = np.random.default_rng(2)
    logits = random.normal(-1, 1.5, (4000, 5))
    labels = random.random(logits.shape) < expit(logits)
    calibration = calibrate(expit(2.5 * logits), labels)
    assert calibration.temperature == pytest.approx(2.5, rel=0.05)
    assert calibration.log_loss_after < calibration.log_loss_before
    exact = at_temperature(expit(2.5 * logits), calibration.temperature, multi_label=True)
    loss = -np.log(np.where(labels, exact, 1 - exact)).mean()
    assert calibration.log_loss_after == pytest.approx(loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certain_labels_stay_finite_at_a_temperature(dtype):
    certain = np.array([[0.0, 1.0]], dtype)
    cooled = at_temperature(certain, 0.5, multi_label=True)
    assert np.isfinite(cooled).all()
    assert cooled.dtype == dtype
