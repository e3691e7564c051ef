"""How much of the spread a draw of groups shows, against sums over all draws."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hubretrain.evaluation.resamples import bootstrap_widening, effective_groups, group_resamples


def every_draw(n_groups):
    """Return how often each of all n ** n draws of groups holds each group."""
    draws = product(range(n_groups), repeat=n_groups)
    return np.array([np.bincount(draw, minlength=n_groups) for draw in draws])


@pytest.mark.parametrize("n_groups", [2, 3, 50])
def test_of_a_mean_over_all_groups_the_divisor_is_n_less_1(n_groups):
    labels = np.arange(n_groups) % 2
    expected = np.sqrt(n_groups / (n_groups - 1))
    assert bootstrap_widening(np.arange(n_groups), labels, "accuracy") == pytest.approx(expected)


@pytest.mark.parametrize("counts", [[1, 1], [2, 3], [1, 4], [1, 2, 2]])
def test_of_a_mean_over_classes_it_is_the_share_of_the_variance_that_all_draws_show(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = every_draw(len(labels))
    in_class = np.stack([drawn[:, labels == c].sum(axis=1) for c in range(len(counts))], axis=1)
    is_present = in_class > 0
    n = np.array(counts)
    # Groups of variance 1 and mean 0 in all classes, so the mean over classes is 0: the variance
    # of what is drawn is that within the classes that are present, and that of which these are.
    within = ((1 - 1 / n) / np.maximum(in_class, 1) * is_present).mean(axis=0)
    share = is_present.mean(axis=0)
    shown = (within + share * (1 - share) / n).sum() / share.sum() ** 2
    expected = np.sqrt((1 / n).sum() / len(n) ** 2 / shown) if shown > 0 else 1.0
    widening = bootstrap_widening(np.arange(len(labels)), labels, "balanced_accuracy")
    assert widening == pytest.approx(expected)


def test_the_freedom_of_a_mean_over_classes_is_satterthwaites():
    labels, groups = np.repeat([0, 1, 2], [4, 10, 25]), np.arange(39)
    variance = 1 / np.array([4, 10, 25])
    freedom = variance.sum() ** 2 / (variance**2 / np.array([3, 9, 24])).sum()
    assert effective_groups(groups, labels, "macro_f1") == pytest.approx(1 + freedom)
    # A class of one group has half a degree of freedom.
    labels = np.repeat([0, 1], [1, 10])
    freedom = 1.1**2 / (1 / 0.5 + 0.01 / 9)
    expected = max(2.0, 1 + freedom)
    assert effective_groups(np.arange(11), labels, "roc_auc") == pytest.approx(expected)


def test_two_groups_are_enough_and_by_default_a_thousand_are_drawn_with_seed_0():
    weights = group_resamples(np.array([0, 1, 1]))
    assert weights.shape == (1000, 3)
    np.testing.assert_array_equal(weights, group_resamples(np.array([0, 1, 1]), seed=0))
    assert (weights[:, 0] + weights[:, 1] == 2).all()
    assert group_resamples(np.array([0, 1]), n_resamples=1).shape == (1, 2)
