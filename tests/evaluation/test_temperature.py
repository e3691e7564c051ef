from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from hubretrain.errors import DataError
from hubretrain.evaluation.logit_adjustment import DecisionRule, class_priors
from hubretrain.evaluation.metrics import METRICS
from hubretrain.evaluation.temperature import (
    PRIOR_DEVIATION,
    UNCALIBRATED,
    at_temperature,
    calibrate,
)
from tests import samples

LOSS = METRICS["log_loss"].function


def labels_of(probs, random):
    """Return labels drawn with these probabilities."""
    drawn = random.random((len(probs), 1)) > probs.cumsum(axis=1)
    return np.minimum(drawn.sum(axis=1), probs.shape[1] - 1)


def overconfident(n_images=4000, n_classes=4, factor=2.5, seed=0):
    """Labels drawn from a softmax, and the probabilities of a model whose logits are too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n_images, n_classes))
    return softmax(factor * logits, axis=1), labels_of(softmax(logits, axis=1), random)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_at_a_temperature_are_powers_that_sum_to_one(dtype):
    probs = overconfident(50)[0].astype(dtype)
    cooled = at_temperature(probs, 0.7)
    assert cooled.dtype == dtype
    np.testing.assert_allclose(cooled, samples.at_temperature(probs, 0.7), rtol=1e-5)
    np.testing.assert_allclose(at_temperature(cooled, 1 / 0.7), probs, rtol=1e-4)
    assert np.isfinite(at_temperature(np.eye(3, dtype=dtype), 0.05)).all()


def test_the_temperature_undoes_what_made_the_logits_too_large():
    probs, labels = overconfident()
    calibration = calibrate(probs, labels)
    assert calibration.temperature == pytest.approx(2.5, rel=0.06)
    better = at_temperature(probs, calibration.temperature)
    assert calibration.log_loss_before == pytest.approx(float(LOSS(probs, labels, None)))
    assert calibration.log_loss_after == pytest.approx(float(LOSS(better, labels, None)))
    for metric, share in (("log_loss", 0.8), ("calibration_error", 0.3)):
        function = METRICS[metric].function
        assert function(better, labels, None) < share * function(probs, labels, None)


@pytest.mark.parametrize("factor", [0.6, 2.5])
def test_no_other_temperature_is_more_likely_after_the_images_and_the_prior(factor):
    probs, labels = overconfident(n_images=30, factor=factor)

    def penalised(temperature):
        loss = 30 * float(LOSS(at_temperature(probs, temperature), labels, None))
        return loss + np.log(temperature) ** 2 / (2 * PRIOR_DEVIATION**2)

    best = penalised(calibrate(probs, labels).temperature)
    assert best <= min(map(penalised, np.geomspace(0.05, 20, 400))) + 1e-6


@pytest.mark.parametrize(("n_images", "scale"), [(90, 1e-2), (150, 1e-3), (600, 3e-4)])
def test_probabilities_that_are_nearly_equal_are_told_apart(n_images, scale):
    """As of a head of a very large penalty: every decision is right, by a thousandth."""
    random = np.random.default_rng(n_images)
    labels = np.arange(n_images) % 3
    logits = random.normal(0, 1, (n_images, 3)) + 8 * np.eye(3)[labels]
    probs = softmax(scale * logits, axis=1)
    assert probs.max() < 0.4
    calibration = calibrate(probs, labels)
    assert calibration.log_loss_before > 1.0
    assert calibration.log_loss_after < 0.1
    assert calibration.temperature < 10 * scale


def test_decisions_stay_when_the_rule_is_for_the_temperature():
    probs, labels = overconfident()
    rule = DecisionRule(0.75, tuple(class_priors(labels[labels < 3], 4)))
    after = rule.at_temperature(1.9).decide(at_temperature(probs, 1.9))
    assert (rule.decide(probs) == after).all()
    assert (rule.decide(probs) != probs.argmax(axis=1)).any()


def test_copies_of_an_image_in_its_group_change_no_temperature():
    probs, labels = overconfident(40)
    groups = np.repeat(np.arange(40), 5)
    once, often = calibrate(probs, labels), calibrate(probs[groups], labels[groups], groups)
    assert often.temperature == pytest.approx(once.temperature, rel=1e-4)
    assert calibrate(probs[groups], labels[groups]).temperature > 1.1 * once.temperature


def test_a_temperature_of_few_images_costs_less_than_a_fitted_parameter_does():
    """Of a model that is calibrated already: a parameter fitted to n images costs 1 / 2n nats."""
    random, losses, n_images = np.random.default_rng(0), [], 20
    probs = softmax(random.normal(0, 2, (20_000, 3)) + np.array([2, 0, 0]), axis=1)
    fresh = labels_of(probs, random)
    plain = float(LOSS(probs, fresh, None))
    for _ in range(200):
        rows = random.choice(len(probs), n_images)
        flattering = calibrate(probs[rows], probs[rows].argmax(axis=1)).temperature
        assert 0.2 < flattering < 1
        temperature = calibrate(probs[rows], labels_of(probs[rows], random)).temperature
        losses.append(float(LOSS(at_temperature(probs, temperature), fresh, None)) - plain)
    assert 0 < np.mean(losses) < 1 / (2 * n_images)


@pytest.mark.parametrize("n_images", [5, 100, 5000])
def test_a_fold_that_chose_the_model_and_is_all_right_sharpens_nothing(n_images):
    probs, labels = overconfident(n_images + 5000, factor=1.5)
    flattering = probs[:n_images].argmax(axis=1)
    assert calibrate(probs[:n_images], flattering).temperature < 0.9
    calibration = calibrate(probs[:n_images], flattering, may_sharpen=False)
    assert calibration.temperature == 1
    fresh, truth = probs[n_images:], labels[n_images:]
    after = at_temperature(fresh, calibration.temperature)
    assert LOSS(after, truth, None) <= LOSS(fresh, truth, None)


def test_a_fold_that_chose_the_model_still_softens_it():
    probs, labels = overconfident()
    chosen_on = calibrate(probs, labels, may_sharpen=False)
    assert chosen_on.temperature == pytest.approx(calibrate(probs, labels).temperature, rel=1e-4)


def test_without_a_temperature_probabilities_stay():
    probs, _ = overconfident(5)
    assert at_temperature(probs, UNCALIBRATED.temperature) is probs
    assert np.isnan([UNCALIBRATED.log_loss_before, UNCALIBRATED.log_loss_after]).all()


def test_what_are_no_probabilities_is_refused():
    with pytest.raises(DataError, match="sum to"):
        calibrate(np.array([[0.5, 0.1]]), np.array([0]))
