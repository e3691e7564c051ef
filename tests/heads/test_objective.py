"""Gradient and Hessian against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.losses import HeadLosses
from hubretrain.heads.objective import Objective
from tests.heads.samples import blobs


def losses_of(kind, labels, folds, random):
    n_problems, n_classes = 4, 3
    return HeadLosses(
        kind,
        labels,
        random.uniform(0.5, 2, len(labels)),
        folds,
        random.uniform(0.5, 2, (n_problems, n_classes)),
        np.array([0, 1, -1, 2]),
        np.array([0, 1, 2, 1]),
    )


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_gradient_and_hessian_are_those_of_finite_differences(kind):
    features, labels, folds = blobs()
    random = np.random.default_rng(1)
    rows = FeatureBlocks([features], np.arange(len(labels)), standardize=True, memory=1 << 20)
    losses = losses_of(kind, labels, folds, random)
    objective = Objective(rows, losses)
    index = np.arange(len(losses))
    unknowns = random.normal(size=(len(losses), losses.n_outputs, 6))
    evaluation = objective.evaluate(unknowns, 2.0, index)
    hessian = objective.hessian(unknowns, 2.0, index)
    size, step = losses.n_outputs * 6, 1e-5
    for unknown in range(size):
        k, j = divmod(unknown, 6)
        low, high = unknowns.copy(), unknowns.copy()
        low[:, k, j] -= step
        high[:, k, j] += step
        below, above = objective.evaluate(low, 2.0, index), objective.evaluate(high, 2.0, index)
        slope = (above.value - below.value) / (2 * step)
        np.testing.assert_allclose(evaluation.gradient[:, k, j], slope, rtol=1e-6, atol=1e-6)
        bend = (above.gradient - below.gradient).reshape(len(losses), size) / (2 * step)
        # Biases carry an extra bend along the direction that changes nothing.
        extra = hessian[:, unknown] - bend
        extra.reshape(len(losses), -1, 6)[..., 5] -= extra.reshape(len(losses), -1, 6)[..., 5].mean(
            axis=1, keepdims=True
        )
        np.testing.assert_allclose(extra, 0, atol=1e-5)
