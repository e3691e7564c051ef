"""Nested selection: the bias of the choice must not be in what is shown."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.errors import DataError
from hubretrain.evaluation.intervals import group_resamples, interval, resample
from hubretrain.evaluation.metrics import METRICS, accuracy
from hubretrain.evaluation.selection import candidate_values, choice_parts, choose, crossfitted


def configurations(qualities, seed, n_groups=80):
    """Return predictions that are right with the given probabilities, and their groups."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(1, 4, n_groups))
    labels = rng.integers(0, 7, n_groups)[groups]
    right = rng.random((len(qualities), len(groups))) < np.asarray(qualities)[:, None]
    return np.eye(7)[np.where(right, labels, (labels + 1) % 7)], labels, groups


def chosen(metric, models, labels, groups):
    """Return the choice, its own value, and the cross-fitted predictions."""
    parts = choice_parts(labels, groups)
    values = candidate_values(metric, models, labels, parts)
    choice = choose(values, metric)
    return choice, values[0, choice.best], crossfitted(choice, parts, lambda n: models[n])


def test_the_best_of_100_equally_bad_is_optimistic_until_it_is_corrected():
    optimism = []
    for seed in range(60):
        models, labels, groups = configurations(np.full(100, 0.3), seed)
        _, naive, probs = chosen("accuracy", models, labels, groups)
        weights = group_resamples(groups, n_resamples=200, seed=seed)
        estimate, low, high = interval(resample("accuracy", probs, labels, groups, weights))
        optimism.append([naive - 0.3, estimate - 0.3, low < 0.3 < high, high - low])
    naive, corrected, covered, widths = np.transpose(optimism)
    # The best of 100 is 2.5 standard errors of 80 groups too high, less what its ties are worth.
    assert 0.06 < naive.mean() < 2.7 * np.sqrt(0.3 * 0.7 / 80)
    assert abs(corrected.mean()) < 3 * corrected.std() / np.sqrt(60)
    assert corrected.std() / np.sqrt(60) < 0.006
    assert covered.mean() == pytest.approx(0.95, abs=3 * np.sqrt(0.05 * 0.95 / 60))
    # The intervals are as wide as what they are of varies: a deviation of 60 is 9 % uncertain.
    assert widths.mean() / 2 / 1.96 == pytest.approx(corrected.std(), rel=3 / np.sqrt(2 * 60))


def test_a_clear_winner_needs_no_correction():
    models, labels, groups = configurations([0.3, 0.9, *[0.3] * 20], 1, n_groups=300)
    choice, naive, probs = chosen("accuracy", models, labels, groups)
    assert choice.best == 1
    assert set(choice.without.tolist()) == {1}
    assert accuracy(probs, labels) == naive


def test_each_image_is_predicted_by_the_best_of_all_other_parts():
    models, labels, groups = configurations([0.5] * 8, 2, n_groups=15)
    parts = choice_parts(labels, groups, n_parts=4)
    values = candidate_values("balanced_accuracy", models, labels, parts)
    probs = crossfitted(choose(values, "balanced_accuracy"), parts, lambda n: models[n])
    for part in range(4):
        others, inside = parts != part, parts == part
        own = [
            METRICS["balanced_accuracy"].function(m[others], labels[others], None) for m in models
        ]
        np.testing.assert_array_equal(probs[inside], models[int(np.argmax(own))][inside])


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_chooses_the_better_of_two(name):
    models, labels, groups = configurations([0.4, 0.95], 3)
    choice, *_ = chosen(name, 0.9 * models + 0.1 / 7, labels, groups)
    assert choice.best == 1


def test_of_equals_the_first_is_chosen_and_only_among_those_that_may_be():
    models, labels, groups = configurations([0.5], 4)
    same = np.repeat(models, 4, axis=0)
    values = candidate_values(
        "log_loss", 0.9 * same + 0.1 / 7, labels, choice_parts(labels, groups)
    )
    assert choose(values, "log_loss").best == 0
    assert choose(values, "log_loss", np.array([False, False, True, True])).best == 2


def test_an_undefined_candidate_is_never_chosen():
    values = np.array([[np.nan, 0.2, 0.1]] * 3)
    assert choose(values, "accuracy").best == 1
    assert choose(values, "log_loss").best == 2
    nothing = np.full((3, 3), np.nan)
    assert choose(nothing, "accuracy", np.array([False, True, True])).best == 1


def test_parts_hold_whole_groups_and_classes_evenly_in_any_order_of_images():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), rng.integers(1, 4, 400))
    labels = rng.choice(3, 400, p=[0.8, 0.15, 0.05])[groups]
    parts = choice_parts(labels, groups)
    assert all(len(set(parts[groups == g])) == 1 for g in range(400))
    for c in range(3):
        n_groups = [len(set(groups[(labels == c) & (parts == part)])) for part in range(2)]
        assert max(n_groups) - min(n_groups) <= 1
    order = rng.permutation(len(groups))
    np.testing.assert_array_equal(choice_parts(labels[order], groups[order]), parts[order])


def test_choosing_from_nothing_is_refused():
    models, labels, groups = configurations([0.5], 4)
    parts = choice_parts(labels, groups)
    with pytest.raises(DataError, match="no candidates to choose from"):
        candidate_values("accuracy", [], labels, parts)
    with pytest.raises(DataError, match="No candidate may be chosen"):
        choose(candidate_values("accuracy", models, labels, parts), "accuracy", np.array([False]))
    with pytest.raises(DataError, match="There are 1 groups"):
        choice_parts(labels, np.zeros(len(labels)))
