"""Logit adjustment against its closed form and the rule that it is meant to be."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.evaluation.logit_adjustment import STRENGTHS, DecisionRule, class_priors
from hubretrain.evaluation.metrics import balanced_accuracy
from hubretrain.heads.heads import probabilities


def test_for_softmax_it_is_a_shift_of_the_logits_by_the_log_priors():
    rng = np.random.default_rng(0)
    logits, priors = rng.normal(size=(50, 4)), (0.7, 0.2, 0.07, 0.03)
    for strength in (0.0, 0.5, 1.0, 1.5):
        expected = probabilities(logits - strength * np.log(priors), "softmax")
        rule, probs = DecisionRule(strength, priors), probabilities(logits, "softmax")
        np.testing.assert_allclose(rule.adjust(probs), expected, atol=1e-12)
        np.testing.assert_array_equal(rule.decide(probs), expected.argmax(axis=1))


def test_with_true_probabilities_strength_1_has_the_best_balanced_accuracy():
    rng = np.random.default_rng(1)
    priors = np.array([0.8, 0.15, 0.05])
    labels = rng.choice(3, 200_000, p=priors)
    seen = np.eye(3)[labels] + rng.normal(0, 0.8, (len(labels), 3))
    likely = priors * np.exp((seen - 0.5) / 0.64)
    likely /= likely.sum(axis=1, keepdims=True)
    rules = [DecisionRule(strength, tuple(priors)) for strength in (0, 0.5, 1, 1.5)]
    values = [float(balanced_accuracy(rule.adjust(likely), labels)) for rule in rules]
    assert np.argmax(values) == 2
    # Bayes' rule by simulation of its own: three classes at equal priors, noise of 0.8.
    fair = np.exp((seen - 0.5) / 0.64).argmax(axis=1)
    expected = np.mean([(fair[labels == c] == c).mean() for c in range(3)])
    assert values[2] == pytest.approx(expected)
    assert values[0] < expected - 0.1


def test_a_class_without_images_has_half_an_image():
    np.testing.assert_allclose(class_priors(np.array([0, 0, 1]), 3), np.array([4, 2, 1]) / 7)


def test_strengths_rise_evenly_from_none_to_one_and_a_half():
    np.testing.assert_array_equal(STRENGTHS, np.arange(7) / 4)


def test_float32_stays_float32():
    probs = np.full((2, 2), 0.5, np.float32)
    assert DecisionRule(1.0, (0.9, 0.1)).adjust(probs).dtype == np.float32


def test_without_adjustment_top_1_decides_and_no_priors_are_needed():
    probs = np.array([[0.2, 0.8], [0.5, 0.5]])
    assert DecisionRule(0.0, ()).adjust(probs) is probs
    assert DecisionRule(0.0, ()).decide(probs).tolist() == [1, 0]
