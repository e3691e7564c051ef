from __future__ import annotations

import numpy as np
import pytest

from hubretrain.evaluation import Resampled
from hubretrain.evaluation.intervals import tied_with_best
from hubretrain.racing.elimination import PRIOR_DRIFT, PRIOR_WEIGHT, alive_after, drift_of


def models(estimates, error=0.01, metric="accuracy", seed=0, n=1000):
    """Estimates whose resamples have independent errors of one size."""
    random = np.random.default_rng(seed)
    return {
        f"m{i}": Resampled(metric, value, value + random.normal(0, error, n), 500.0)
        for i, value in enumerate(estimates)
    }


def test_with_all_images_those_are_alive_that_tie_with_the_best():
    rows = models([0.80, 0.79, 0.77, 0.70])
    tied = tied_with_best(list(rows.values()), 0.95)
    expected = [name for name, is_tied in zip(rows, tied, strict=True) if is_tied]
    assert alive_after(rows, 0.0, 0.05, 0.95) == expected
    assert 1 <= len(expected) < 4


def test_the_fewer_the_images_the_more_stay_alive():
    rows = models([0.80, 0.77, 0.74, 0.70, 0.60])
    n_alive = [len(alive_after(rows, n, 0.01, 0.95)) for n in (0, 1, 4, 16, 64, 256)]
    assert n_alive == sorted(n_alive)
    assert n_alive[0] < n_alive[-1] == 5


def test_a_lead_counts_in_errors_of_both_kinds():
    """Two models: the bound of the lead is the quantile times the root of both variances."""
    rows = models([0.5, 0.0], error=0.01, n=20_000)
    error = np.std(rows["m0"].per_resample - rows["m1"].per_resample)
    (bound,) = (1.645 * np.hypot(error, 0.02 * np.sqrt(3)),)
    for lead, n_alive in ((0.95 * bound, 2), (1.08 * bound, 1)):
        moved = models([0.5, 0.5 - lead], error=0.01, n=20_000)
        assert len(alive_after(moved, 3.0, 0.02, 0.95)) == n_alive


def test_the_best_come_first_also_of_a_loss():
    rows = models([0.6, 0.5, 0.55], metric="log_loss", error=0.1)
    assert alive_after(rows, 1.0, 0.01, 0.95) == ["m1", "m2", "m0"]


def test_without_a_history_the_drift_is_the_prior():
    assert drift_of([]) == drift_of([(8.0, {"a": 0.5}, {"a": 0.1})]) == PRIOR_DRIFT


@pytest.mark.parametrize("drift", [0.005, 0.03])
def test_the_drift_of_many_modules_is_found(drift):
    random, n = np.random.default_rng(1), 400
    values = random.normal(0.7, 0.05, n)
    history = []
    for size in (7.0, 8.0, 10.0, 11.0):
        step = size - history[-1][0] if history else 0.0
        values = values + random.normal(0, drift * np.sqrt(step), n) + 0.02 * step
        noise = np.zeros(n)
        history.append((size, dict(enumerate(values)), dict(enumerate(noise))))
    seen = drift_of(history)
    n_changes = 3 * n
    expected = np.sqrt(
        (PRIOR_WEIGHT * PRIOR_DRIFT**2 + n_changes * drift**2) / (PRIOR_WEIGHT + n_changes)
    )
    # The standard error of a standard deviation of as many normal values, four times.
    assert seen == pytest.approx(expected, rel=4 / np.sqrt(2 * n_changes))


def test_what_the_resamples_explain_is_no_drift():
    """Distances to the mean that change by noise alone leave the drift near the prior or below."""
    random, n, error = np.random.default_rng(2), 300, 0.02
    before, after = random.normal(0, error, n), random.normal(0, error / 2, n)
    history = [
        (8.0, dict(enumerate(0.7 + before)), dict.fromkeys(range(n), error)),
        (9.0, dict(enumerate(0.7 + after)), dict.fromkeys(range(n), error / 2)),
    ]
    unexplained = drift_of([(s, v, dict.fromkeys(range(n), 0.0)) for s, v, _ in history])
    assert drift_of(history) < 0.8 * unexplained
