"""Derivatives of the losses by the scores, against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.heads.losses import HeadLosses

KINDS = ["softmax", "logistic", "several labels"]


def losses_and_scores(kind, n_rows=12, n_classes=3, n_problems=4):
    random = np.random.default_rng(0)
    labels, n_weights = random.integers(0, n_classes, n_rows), n_classes
    if kind == "several labels":
        kind, n_weights = "logistic", 2  # without a label, and with it
        labels = random.random((n_rows, n_classes)) < 0.4
    losses = HeadLosses(
        kind,
        labels,
        random.uniform(0.5, 2, n_rows),
        np.arange(n_rows) % 3,
        random.uniform(0.5, 2, (n_problems, n_weights)),
        np.array([0, 1, -1, 2]),
        np.array([0, 1, 2, 1]),
    )
    return losses, random.normal(size=(n_problems, losses.n_outputs, n_rows)) * 3


@pytest.mark.parametrize("kind", KINDS)
def test_scores_become_the_derivative_of_the_loss(kind):
    losses, scores = losses_and_scores(kind)
    rows, step = slice(0, 12), 1e-6
    gradient = scores.copy()
    losses.differentiate(rows, gradient, curvature=False)
    for k, i in np.ndindex(losses.n_outputs, 12):
        low, high = scores.copy(), scores.copy()
        low[:, k, i] -= step
        high[:, k, i] += step
        below, above = (losses.differentiate(rows, z, curvature=False)[0] for z in (low, high))
        np.testing.assert_allclose(gradient[:, k, i], (above - below) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_curvature_is_the_sum_of_the_second_derivatives(kind):
    losses, scores = losses_and_scores(kind)
    second = losses.second_derivatives(slice(0, 12), scores)
    _, curvature = losses.differentiate(slice(0, 12), scores, curvature=True)
    np.testing.assert_allclose(curvature, second.sum(axis=-1), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_fold_that_a_problem_leaves_out_count_nothing(kind):
    losses, scores = losses_and_scores(kind)
    gradient = scores.copy()
    losses.differentiate(slice(0, 12), gradient, curvature=False)
    for problem, fold in enumerate(losses.fold):
        assert (gradient[problem][:, losses.row_fold == fold] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_best_biases_the_derivatives_add_up_to_0(kind):
    losses, _ = losses_and_scores(kind)
    bias, loss = losses.priors()
    scores = np.repeat(bias[:, :, None], 12, axis=2)
    value, _ = losses.differentiate(slice(0, 12), scores, curvature=False)
    np.testing.assert_allclose(scores.sum(axis=2), 0, atol=1e-12)
    np.testing.assert_allclose(value, loss)
