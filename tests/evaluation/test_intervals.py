"""Intervals against brute force, closed forms and simulation with a known truth."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hubretrain.errors import DataError
from hubretrain.evaluation.intervals import (
    Difference,
    Resampled,
    difference,
    effect,
    effective_groups,
    group_resamples,
    interval,
    resample,
    tied_with_best,
)
from hubretrain.evaluation.metrics import METRICS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """Yields the benchmark, whose synthetic model and truth the tests share."""
    # On the path, so that processes which it starts find it too.
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("bench_intervals")
    sys.path.remove(str(BENCHMARKS))


def right_or_wrong(right, n_classes=2):
    """Return certain predictions of class 0 images that are right where told."""
    wrong = (~np.asarray(right, bool)).astype(int)
    return np.eye(n_classes)[wrong], np.zeros(len(wrong), int)


def compared(metric, first, second, labels, groups, weights):
    """Return the difference of two models on the same resamples."""
    return difference(
        *(resample(metric, probs, labels, groups, weights) for probs in (first, second))
    )


def small(seed=0, n_groups=40):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(1, 5, n_groups))
    labels = rng.integers(0, 3, n_groups)[groups]
    probabilities = rng.dirichlet(np.ones(3), len(groups)) + 0.3 * np.eye(3)[labels]
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels, groups


# ---------------------------------------------------------------------- resamples


def test_images_of_one_group_are_always_drawn_together():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = group_resamples(groups, n_resamples=200)
    assert weights.dtype == np.uint8
    assert weights.shape == (200, 6)
    np.testing.assert_array_equal(weights[:, [0, 0]], weights[:, [2, 5]])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    assert not np.array_equal(weights[:, 0], weights[:, 1])


def test_each_resample_draws_as_many_groups_as_there_are():
    groups = np.repeat(np.arange(50), 3)
    weights = group_resamples(groups, n_resamples=100)
    np.testing.assert_array_equal(weights[:, ::3].sum(axis=1), 50)


def test_counts_have_the_moments_of_drawing_with_replacement():
    weights = group_resamples(np.arange(10), n_resamples=20_000).astype(float)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.04)
    # Multinomial: variance (1 - 1/n), covariance -1/n.
    expected = np.eye(10) - 1 / 10
    np.testing.assert_allclose(np.cov(weights.T), expected, atol=0.05)


def test_the_seed_and_not_the_names_of_groups_decides_the_draw():
    numbers = np.array([3, 1, 2, 3, 1, 2, 4])
    names = np.array(["c", "a", "b", "c", "a", "b", "d"])
    first = group_resamples(numbers, n_resamples=20, seed=7)
    np.testing.assert_array_equal(first, group_resamples(names, n_resamples=20, seed=7))
    assert not np.array_equal(first, group_resamples(numbers, n_resamples=20, seed=8))


def test_a_resample_is_the_metric_of_the_images_drawn():
    probabilities, labels, groups = small()
    weights = group_resamples(groups, n_resamples=25)
    balanced = resample("balanced_accuracy", probabilities, labels, groups, weights)
    area = resample("roc_auc", probabilities, labels, groups, weights)
    for row, counts in enumerate(weights):
        drawn = np.repeat(np.arange(len(labels)), counts)
        assert balanced.per_resample[row] == pytest.approx(
            balanced_accuracy_score(labels[drawn], probabilities[drawn].argmax(axis=1)), abs=1e-10
        )
        assert area.per_resample[row] == pytest.approx(
            roc_auc_score(labels[drawn], probabilities[drawn], multi_class="ovr"), abs=1e-10
        )
    assert area.estimate == pytest.approx(
        roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-10
    )


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.array([1, 1, 1]), "There are 1 groups; confidence intervals need at least 2"),
        (np.array([]), "There are 0 groups"),
        (np.array(["a", None, "b"], dtype=object), "1 images have no group"),
        (np.array([1.0, np.nan, 2.0]), "1 images have no group"),
        (np.ones((3, 2)), "shape (3, 2); expected (n_images,)"),
    ],
)
def test_groups_that_cannot_be_drawn_are_refused(groups, message):
    with pytest.raises(DataError) as caught:
        group_resamples(groups)
    assert message in str(caught.value)


def test_no_resamples_are_refused():
    with pytest.raises(DataError, match="`n_resamples` is 0"):
        group_resamples(np.arange(5), n_resamples=0)


# ---------------------------------------------------------------------- effective groups


def test_metrics_that_count_images_rest_on_all_groups():
    labels, groups = np.array([0] * 90 + [1] * 10), np.arange(100)
    assert effective_groups(groups, labels, "accuracy") == 100
    assert effective_groups(groups, labels, "log_loss") == 100


def test_means_over_classes_rest_mostly_on_the_rarest_class():
    groups = np.arange(1000)
    even = np.arange(1000) % 2
    rare = (np.arange(1000) < 10).astype(int)
    # Two equal halves: freedom (2/500)^2 / (2 / (500^2 x 499)) = 998.
    assert effective_groups(groups, even, "macro_f1") == pytest.approx(999)
    assert 10 < effective_groups(groups, rare, "macro_f1") < 11
    # Ten images of one group are one group.
    together = np.where(rare == 1, 0, groups)
    assert effective_groups(together, rare, "macro_f1") == 2


# ---------------------------------------------------------------------- intervals


def test_the_interval_of_a_share_is_the_closed_form_on_many_groups():
    right = np.arange(2000) < 1400
    probabilities, labels = right_or_wrong(right)
    groups = np.arange(2000)
    weights = group_resamples(groups, n_resamples=4000)
    estimate, low, high = interval(resample("accuracy", probabilities, labels, groups, weights))
    error = np.sqrt(0.7 * 0.3 / 2000)
    assert estimate == pytest.approx(0.7)
    assert low == pytest.approx(0.7 - 1.96 * error, abs=0.12 * error)
    assert high == pytest.approx(0.7 + 1.96 * error, abs=0.12 * error)


def test_groups_of_dependent_images_widen_the_interval_as_their_number_says():
    right = np.arange(500) < 350
    probabilities, labels = right_or_wrong(np.repeat(right, 4))
    grouped, alone = np.repeat(np.arange(500), 4), np.arange(2000)
    widths = []
    for groups in (grouped, alone):
        weights = group_resamples(groups, n_resamples=2000)
        _, low, high = interval(resample("accuracy", probabilities, labels, groups, weights))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.08)


@pytest.mark.parametrize("n_groups", [6, 12, 30])
def test_on_few_groups_the_interval_is_as_wide_as_students(n_groups):
    # The log loss of these is a sample of a nearly normal quantity.
    losses = 1 + 0.3 * stats.norm.ppf((np.arange(n_groups) + 0.5) / n_groups)
    probabilities = np.column_stack([np.exp(-losses), 1 - np.exp(-losses)])
    groups, labels = np.arange(n_groups), np.zeros(n_groups, int)
    weights = group_resamples(groups, n_resamples=20_000)
    estimate, low, high = interval(resample("log_loss", probabilities, labels, groups, weights))
    half = stats.t.ppf(0.975, n_groups - 1) * losses.std(ddof=1) / np.sqrt(n_groups)
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    assert estimate == pytest.approx(losses.mean())


def test_more_confidence_is_a_wider_interval_inside_which_the_narrower_lies():
    probabilities, labels, groups = small()
    row = resample("accuracy", probabilities, labels, groups, group_resamples(groups))
    wide, narrow = interval(row, 0.99), interval(row, 0.8)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_all_images_right_or_wrong_gets_the_end_of_clopper_and_pearson():
    groups = np.arange(20)
    weights = group_resamples(groups, n_resamples=50)
    for n_right in (20, 0):
        probabilities, labels = right_or_wrong(np.full(20, n_right == 20))
        expected = stats.binomtest(n_right, 20).proportion_ci()
        estimate, low, high = interval(resample("accuracy", probabilities, labels, groups, weights))
        assert estimate == n_right / 20
        assert (low, high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("name", METRICS)
def test_the_interval_of_a_nearly_perfect_model_stays_in_range_and_has_width(name):
    labels = np.arange(200) % 4
    probabilities = np.eye(4)[np.where(np.arange(200) == 7, 0, labels)] * 0.9 + 0.025
    groups = np.arange(200)
    weights = group_resamples(groups, n_resamples=200)
    estimate, low, high = interval(resample(name, probabilities, labels, groups, weights))
    assert 0 <= low <= estimate <= high
    assert high > low
    assert high <= 1 or name == "log_loss"


def test_roc_auc_of_one_class_and_unknown_metrics_are_refused():
    probabilities, labels = right_or_wrong(np.ones(20, bool))
    groups = np.arange(20)
    weights = group_resamples(groups, n_resamples=10)
    with pytest.raises(DataError, match="`metric` roc_auc is undefined"):
        resample("roc_auc", probabilities, labels, groups, weights)
    with pytest.raises(DataError, match="`metric` is 'auc'; expected one of accuracy, balanced"):
        resample("auc", probabilities, labels, groups, weights)


def test_groups_of_other_images_are_refused():
    probabilities, labels, groups = small()
    weights = group_resamples(groups, n_resamples=10)
    with pytest.raises(DataError, match="`groups` has 9 images and `labels`"):
        resample("macro_f1", probabilities, labels, groups[:9], weights)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    probabilities, labels, groups = small()
    row = resample("accuracy", probabilities, labels, groups, group_resamples(groups))
    with pytest.raises(DataError, match="expected between 0 and 1, such as"):
        interval(row, confidence)


def test_a_share_that_is_the_same_in_all_groups_gets_the_ends_that_markov_allows():
    # One group says little: of 2.5 % of the mean, and of the rest, it could be the exception.
    alone = Resampled("accuracy", 0.6, np.full(50, 0.6), 1)
    assert interval(alone) == pytest.approx((0.6, 0.6 * 0.025, 1 - 0.4 * 0.025))
    assert interval(alone._replace(estimate=1.0)) == pytest.approx((1, 0.025, 1))
    many = interval(alone._replace(n_groups=100))
    assert many == pytest.approx((0.6, 0.6 * 0.025**0.01, 1 - 0.4 * 0.025**0.01))


def test_a_loss_that_is_the_same_in_all_groups_has_an_interval_of_some_width():
    # Such as of a head that knows nothing: log 3 of each image of three equally frequent classes.
    labels = np.arange(30) % 3
    weights = group_resamples(labels, n_resamples=50)
    row = resample("log_loss", np.full((30, 3), 1 / 3), labels, np.arange(30), weights)
    share = 0.025 ** (1 / 30)
    assert interval(row) == pytest.approx(np.log(3) * np.array([1, share, 1 / share]))


def test_an_estimate_at_an_end_has_an_interval_though_rounding_moves_its_resamples():
    moved = np.array([0.4, 0.6] * 10)
    for end in (0.0, 1.0):
        expected = stats.binomtest(int(20 * end), 20).proportion_ci()
        row = interval(Resampled("accuracy", end, moved, 20))
        assert row == pytest.approx((end, expected.low, expected.high))
    assert interval(Resampled("log_loss", 0.0, moved, 20)) == (0, 0, 0)


@pytest.mark.parametrize("counts", [[1] * 60, [2] * 40, [100] + [1] * 10, [5] * 20])
def test_the_standard_error_of_a_mean_over_classes_of_few_groups_is_unbiased(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    groups, rng, variances = np.arange(len(labels)), np.random.default_rng(0), []
    weights = group_resamples(groups, n_resamples=150)
    for _ in range(60):
        predicted = np.where(rng.random(len(labels)) < 0.5, labels, (labels + 1) % len(counts))
        probs = np.eye(len(counts))[predicted]
        row = resample("balanced_accuracy", probs, labels, groups, weights)
        variances.append((row.widening * row.per_resample.std()) ** 2)
    # Each image is right with probability 1 / 2: variance 1 / 4.
    true = 0.25 * np.sum(1 / np.array(counts)) / len(counts) ** 2
    # The formula takes the number of classes in a resample for its mean.
    assert np.mean(variances) == pytest.approx(true, rel=0.15)


# ------------------------------------------- a model that was chosen, between two expectations


def of_share(estimate, error, n_groups=50, seed=0):
    """Return an accuracy whose resamples have exactly this mean and standard error."""
    values = np.random.default_rng(seed).normal(size=400)
    values = (values - values.mean()) / values.std()
    return Resampled("accuracy", estimate, estimate + error * values, n_groups)


def test_without_a_gap_the_interval_of_a_chosen_model_is_that_of_one_model():
    row = of_share(0.7, 0.03)
    assert interval(row, 0.95, row) == pytest.approx(interval(row), rel=1e-12)


def test_ends_that_are_far_apart_are_the_one_sided_ends_of_both():
    low, high = of_share(0.3, 0.02), of_share(0.8, 0.03)
    estimate, lower, upper = interval(low, 0.95, high)
    assert estimate == 0.3
    assert lower == pytest.approx(interval(low, 0.9).low, abs=1e-9)
    assert upper == pytest.approx(interval(high, 0.9).high, abs=1e-9)
    assert interval(high, 0.95, low)[1:] == pytest.approx((lower, upper), abs=1e-12)


@pytest.mark.parametrize("gap", [0.01, 0.03, 0.06])
def test_the_quantile_solves_imbens_and_manskis_equation(gap):
    low, high = of_share(0.5 - gap / 2, 0.02), of_share(0.5 + gap / 2, 0.02)
    _, lower, upper = interval(low, 0.95, high)
    error = 0.02 * np.sqrt(50 / 49) / (0.25 - gap**2 / 4)  # on the logit scale, of both
    ends = special.logit([low.estimate, high.estimate])
    c = (ends[0] - special.logit(lower)) / error
    assert c == pytest.approx((special.logit(upper) - ends[1]) / error, rel=1e-9)
    inside = stats.t.cdf(c + (ends[1] - ends[0]) / error, 49) - stats.t.cdf(-c, 49)
    assert inside == pytest.approx(0.95, abs=1e-9)


@pytest.mark.parametrize(("of_gap", "expected"), [(0.0, 0.95), (0.5, 0.984), (1.0, 0.95)])
def test_a_value_anywhere_between_two_expectations_is_held_at_least_95_times_in_100(
    of_gap, expected
):
    """Estimates of both ends share their errors, as those on the same images mostly do.

    Of a gap of 1.5 errors the quantile is 1.66, so the middle is held within 2.41 errors.
    """
    rng, n, error, gap = np.random.default_rng(3), 4000, 0.02, 0.03
    truth = 0.6 + of_gap * gap
    row = of_share(0.5, 1.0, n_groups=10**6).per_resample - 0.5
    held = []
    for deviation in rng.normal(size=n) * error:
        ends = [
            Resampled("accuracy", of + deviation, of + deviation + error * row, 10**6)
            for of in (0.6, 0.6 + gap)
        ]
        _, low, high = interval(ends[0], 0.95, ends[1])
        held.append(low <= truth <= high)
    # The binomial standard error of 4,000 draws is at most 0.34 points.
    assert np.mean(held) == pytest.approx(expected, abs=3 * 0.0034)


def test_of_a_chosen_model_that_is_always_right_the_interval_reaches_to_1():
    row, deployed = of_share(0.8, 0.05), Resampled("accuracy", 1.0, np.ones(400), 50)
    estimate, low, high = interval(row, 0.95, deployed)
    assert (estimate, low, high) == (0.8, interval(row).low, 1.0)


def test_losses_have_ends_of_both_models_too():
    values = of_share(0.5, 1.0).per_resample - 0.5
    high, low = (Resampled("log_loss", of, of * (1 + 0.01 * values), 50) for of in (0.9, 0.5))
    estimate, lower, upper = interval(high, 0.95, low)
    assert estimate == 0.9
    assert lower == pytest.approx(interval(low, 0.9).low, abs=1e-9)
    assert upper == pytest.approx(interval(high, 0.9).high, abs=1e-9)


# ---------------------------------------------------------------------- differences


def test_the_paired_difference_of_shares_is_mcnemars_closed_form():
    n = 2000
    # 100 images only the first has right, 60 only the second, 1,400 both.
    first = np.arange(n) < 1500
    second = (np.arange(n) < 1400) | (np.arange(n) >= n - 60)
    groups = np.arange(n)
    weights = group_resamples(groups, n_resamples=4000)
    better, labels = right_or_wrong(first)
    worse, _ = right_or_wrong(second)
    change = compared("accuracy", better, worse, labels, groups, weights)
    error = np.sqrt((100 + 60) / n - (40 / n) ** 2) / np.sqrt(n)
    assert change.estimate == pytest.approx(40 / n)
    assert change.low == pytest.approx(40 / n - 1.96 * error, abs=0.12 * error)
    assert change.high == pytest.approx(40 / n + 1.96 * error, abs=0.12 * error)
    assert change.p == pytest.approx(2 * stats.norm.sf(40 / n / error), rel=0.25)
    alone = interval(resample("accuracy", better, labels, groups, weights))
    # What unpaired intervals would give up.
    assert change.high - change.low < 0.6 * np.sqrt(2) * (alone.high - alone.low)


def test_the_other_way_round_is_the_same_difference_with_its_sign_turned():
    probabilities, labels, groups = small()
    other = np.roll(probabilities, 1, axis=1)
    weights = group_resamples(groups)
    there = compared("log_loss", probabilities, other, labels, groups, weights)
    back = compared("log_loss", other, probabilities, labels, groups, weights)
    assert back.estimate == -there.estimate
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p == pytest.approx(there.p)


def test_a_model_does_not_differ_from_itself():
    probabilities, labels, groups = small()
    change = compared(
        "macro_f1", probabilities, probabilities, labels, groups, group_resamples(groups)
    )
    assert (change.estimate, change.low, change.high, change.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("n_groups", [5.0, 30.0, 1000.0])
def test_p_is_below_five_percent_exactly_when_the_interval_leaves_out_0(n_groups):
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, 20_000) + 0.2 * rng.exponential(1, 20_000)
    zero = Resampled("accuracy", 0.0, np.zeros(20_000), n_groups)
    seen = set()
    for shift in np.linspace(-6, 6, 61):
        change = difference(Resampled("accuracy", shift + 0.1, noise + shift, n_groups), zero)
        leaves_out = change.low > 0 or change.high < 0
        assert (change.p < 0.05) == leaves_out
        assert 0 <= change.p <= 1
        seen.add(leaves_out)
    assert seen == {True, False}


def test_models_of_different_metrics_or_draws_are_not_compared():
    row = Resampled("accuracy", 0.5, np.zeros(10), 9)
    with pytest.raises(DataError, match="metrics accuracy, log_loss; expected one"):
        difference(row, row._replace(metric="log_loss"))
    with pytest.raises(DataError, match="expected the weights of one call"):
        tied_with_best([row, row._replace(per_resample=np.zeros(11))])


def test_a_difference_that_is_the_same_in_all_groups_is_not_certain():
    nothing, all_right = (Resampled("accuracy", x, np.full(30, x), 20) for x in (0.0, 1.0))
    seen = 0.025 ** (1 / 20)
    change = difference(all_right, nothing)
    assert (change.estimate, change.low, change.high) == pytest.approx((1, 2 * seen - 1, 1))
    assert change.p == pytest.approx(stats.binomtest(20, 20).pvalue)  # the sign test
    few = difference(all_right._replace(n_groups=3), nothing._replace(n_groups=3))
    assert few.low < 0 < 0.05 < few.p
    losses = [Resampled("log_loss", x, np.full(30, x), 20) for x in (0.5, 0.4)]
    change = difference(*losses)
    assert 0 < change.low < 0.1 < change.high < 0.15
    assert change.p == pytest.approx(stats.binomtest(20, 20).pvalue)


# ---------------------------------------------------------------------- ties


def rows_around(truth, seed, n_groups=200, n_resamples=300, metric="accuracy"):
    """Return models of that true accuracy, on groups whose difficulty they share."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (n_groups, 1)) + rng.normal(0, 1, (n_groups, len(truth)))
    right = noise / np.sqrt(2) < stats.norm.ppf(truth)
    weights = group_resamples(np.arange(n_groups), n_resamples=n_resamples, seed=seed)
    values = (weights.astype(float) @ right / n_groups).T
    return [
        Resampled(metric, float(r.mean()), v, n_groups)
        for r, v in zip(right.T, values, strict=True)
    ]


def test_equal_models_stay_in_the_set_95_times_in_100_neither_more_nor_less():
    kept = [tied_with_best(rows_around(np.full(8, 0.7), seed)).mean() for seed in range(300)]
    # Any of the equals is a best.
    assert np.mean(kept) == pytest.approx(0.95, abs=3 * np.std(kept) / np.sqrt(300))


def test_clearly_worse_models_leave_the_set_and_the_best_does_not():
    truth = np.array([0.8, 0.8, 0.6, 0.5])
    sets = np.array([tied_with_best(rows_around(truth, seed, 400)) for seed in range(40)])
    assert sets[:, :2].any(axis=1).all()
    assert not sets[:, 2:].any()


def test_chance_among_many_models_does_not_exclude_one_that_ties():
    # One model against 40 equals: each of them alone would throw it out 5 times in 200.
    n_draws = 60
    rows = [rows_around(np.full(41, 0.7), seed, n_resamples=200) for seed in range(n_draws)]
    kept = [tied_with_best(models).mean() for models in rows]
    assert np.mean(kept) == pytest.approx(0.95, abs=3 * np.std(kept) / np.sqrt(n_draws))
    singly = np.mean(
        [all(difference(first, other).high >= 0 for other in others) for first, *others in rows]
    )
    # The first is in all 40 differences, so any two of them are correlated by a half.
    of_first = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    expected = np.mean(stats.norm.cdf(np.sqrt(2) * stats.norm.ppf(0.975) - of_first) ** 40)
    slack = 3 * np.sqrt(expected * (1 - expected) / n_draws)
    assert singly == pytest.approx(expected, abs=slack)


def test_of_classes_of_one_group_an_equally_good_model_stays_95_times_in_100():
    n_classes, n_models, n_draws, kept = 40, 4, 150, []
    labels = groups = np.arange(n_classes)
    for seed in range(n_draws):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(len(labels), 1)) + rng.normal(size=(len(labels), n_models))
        right = noise / np.sqrt(2) < stats.norm.ppf(0.75)
        weights = group_resamples(groups, n_resamples=200, seed=seed)
        probs = [np.eye(n_classes)[np.where(of, labels, labels - 1)] for of in right.T]
        rows = [resample("balanced_accuracy", p, labels, groups, weights) for p in probs]
        kept.append(tied_with_best(rows).mean())
    slack = 3 * np.std(kept) / np.sqrt(n_draws)
    assert np.mean(kept) == pytest.approx(0.95, abs=slack)


def test_a_model_that_is_always_right_does_not_tie_with_one_that_never_is():
    rows = [Resampled("accuracy", x, np.full(30, x), 20) for x in (1.0, 0.0, 1.0)]
    assert tied_with_best(rows).tolist() == [True, False, True]
    # Of three groups, each of which decides by chance, one in eight says the same three times.
    assert tied_with_best([row._replace(n_groups=3) for row in rows]).all()
    losses = [Resampled("log_loss", x, np.full(30, x), 20) for x in (0.4, 0.5)]
    assert tied_with_best(losses).tolist() == [True, False]


def test_the_model_with_the_best_estimate_is_always_in_the_set():
    for seed in range(20):
        rows = rows_around(np.linspace(0.5, 0.9, 6), seed)
        assert tied_with_best(rows)[np.argmax([row.estimate for row in rows])]


def test_for_losses_the_best_is_the_lowest():
    rows = rows_around(np.array([0.9, 0.5]), 0, metric="log_loss")
    np.testing.assert_array_equal(tied_with_best(rows), [False, True])


def test_a_copy_of_a_model_ties_with_it_and_shares_its_fate():
    rows = rows_around(np.array([0.8, 0.5]), 1)
    tied = tied_with_best([rows[0], rows[0], rows[1], rows[1]])
    np.testing.assert_array_equal(tied, [True, True, False, False])
    assert tied_with_best(rows[:1]).tolist() == [True]
    with pytest.raises(DataError, match="no models to compare"):
        tied_with_best([])
    with pytest.raises(DataError, match="expected above 0"):
        tied_with_best(rows, confidence=0.05)


# ---------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("accuracy", 0.018, 0.009, 0.027), "views: +1.8 points (95 % +0.9 to +2.7)"),
        (("roc_auc", -0.0051, -0.0102, -0.0001), "views: -0.5 points (95 % -1.0 to +0.0)"),
        (("log_loss", -0.1234, -0.2, 0.01), "views: -0.123 nats (95 % -0.200 to +0.010)"),
        (("accuracy", 0.6, 0.5, 0.7), "views: +60.0 points (95 % +50.0 to +70.0)"),
    ],
)
def test_an_effect_is_told_in_points_or_nats_with_its_interval(change, sentence):
    assert effect("views", Difference(*change, p=0.01, confidence=0.95)) == sentence


def test_the_sentence_names_the_confidence():
    change = Difference("accuracy", 0.01, 0, 0.02, 0.1, 0.9)
    assert effect("more images", change) == "more images: +1.0 points (90 % +0.0 to +2.0)"


# ---------------------------------------------------------------------- coverage


def test_intervals_hold_the_truth_of_a_synthetic_model_with_groups(bench):
    metrics = {name: METRICS[name] for name in METRICS if name != "calibration_error"}
    table = bench.coverage(1000, 100, n_resamples=250, metrics=metrics, n_true=200_000)
    assert len(table) == 2 * len(metrics)
    # Three binomial standard errors of 100 repetitions: 88.5 to 101.5.
    slack = 300 * np.sqrt(0.05 * 0.95 / 100)
    kept = table["coverage_percent"].between(95 - slack, 95 + slack)
    assert kept.all(), table[~kept].to_string()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("n_images", [1000, 8000])
def test_intervals_hold_the_truth_93_to_97_times_in_100_but_for_one_standard_error(bench, n_images):
    table = bench.coverage(n_images, 1000, n_resamples=400, workers=2)
    table = table[table["metric"] != "calibration_error"]
    kept = table["coverage_percent"].between(93 - 0.7, 97 + 0.7)
    assert kept.all(), table[~kept].to_string()
