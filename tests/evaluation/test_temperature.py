from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from hubretrain.errors import DataError
from hubretrain.evaluation.logit_adjustment import DecisionRule, class_priors
from hubretrain.evaluation.metrics import METRICS
from hubretrain.evaluation.temperature import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    fit_temperature,
    temperature_of,
)
from tests.samples import at_temperature


def overconfident(n_images=4000, n_classes=4, factor=2.5, seed=0):
    """Labels drawn from a softmax, and the probabilities of a model whose logits are too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n_images, n_classes))
    drawn = random.random((n_images, 1)) > softmax(logits, axis=1).cumsum(axis=1)
    return softmax(factor * logits, axis=1), np.minimum(drawn.sum(axis=1), n_classes - 1)


def test_the_temperature_undoes_what_made_the_logits_too_large():
    probs, labels = overconfident()
    temperature = fit_temperature(probs, labels)
    assert temperature == pytest.approx(2.5, rel=0.06)
    better = at_temperature(probs, temperature)
    assert np.allclose(better.sum(axis=1), 1)
    for metric, share in (("log_loss", 0.8), ("calibration_error", 0.3)):
        function = METRICS[metric].function
        assert function(better, labels, None) < share * function(probs, labels, None)


def test_no_other_temperature_has_a_lower_log_loss():
    probs, labels = overconfident(n_images=300, factor=0.6)
    best = fit_temperature(probs, labels)
    loss = METRICS["log_loss"].function
    values = [
        loss(at_temperature(probs, t), labels, None)
        for t in np.geomspace(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE, 200)
    ]
    assert loss(at_temperature(probs, best), labels, None) <= min(values) + 1e-9


def test_decisions_stay_when_the_strength_is_divided_too():
    probs, labels = overconfident()
    priors = tuple(class_priors(labels[labels < 3], 4))
    before = DecisionRule(0.75, priors).decide(probs)
    after = DecisionRule(0.75 / 1.9, priors).decide(at_temperature(probs, 1.9))
    assert (before == after).all()
    assert (before != probs.argmax(axis=1)).any()


def test_the_temperature_of_images_that_are_all_right_or_wrong_is_bounded():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert fit_temperature(probs, np.array([0, 1, 0])) == pytest.approx(
        LOWEST_TEMPERATURE, rel=0.01
    )
    assert fit_temperature(probs, np.array([1, 0, 1])) == pytest.approx(
        HIGHEST_TEMPERATURE, rel=0.01
    )
    certain = np.array([[1.0, 0.0]])
    assert LOWEST_TEMPERATURE <= fit_temperature(certain, np.array([0])) <= HIGHEST_TEMPERATURE


def test_what_are_no_probabilities_is_refused():
    with pytest.raises(DataError, match="sum to"):
        fit_temperature(np.array([[0.5, 0.1]]), np.array([0]))


def test_a_table_of_predictions_has_the_temperature_of_its_rows():
    probs, labels = overconfident(n_images=300)
    names = ["10", "b", "c", "d"]  # a class may be called a number, which a CSV would take for one
    table = pd.DataFrame({f"p({name})": probs[:, c].round(6) for c, name in enumerate(names)})
    table["label"] = [int(names[k]) if k == 0 else names[k] for k in labels]
    assert temperature_of(table, names) == pytest.approx(fit_temperature(probs, labels), rel=1e-3)
    with pytest.raises(DataError):
        temperature_of(table.head(0), names)
