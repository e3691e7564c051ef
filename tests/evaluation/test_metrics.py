"""Metrics against scikit-learn, against repeated images, and at their edges."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as oracle

from hubretrain.errors import DataError
from hubretrain.evaluation.metrics import (
    METRICS,
    accuracy,
    balanced_accuracy,
    calibration_error,
    log_loss,
    macro_f1,
    reliability_bins,
    top_k,
)
from hubretrain.evaluation.ranking_metrics import mean_average_precision, roc_auc
from tests.evaluation.samples import SHARES, drawn_weights, predictions


def macro(per_class, labels, weights):
    """Return scikit-learn's binary score, averaged over the classes with weight."""
    present = np.unique(labels[weights > 0])
    return np.mean([per_class(labels == c, c, weights) for c in present])


def oracles(probabilities, labels, weights):
    """Return the value of each metric that scikit-learn has."""
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(probabilities.shape[1])
    present = np.unique(labels[weights > 0])
    return {
        "accuracy": oracle.accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": oracle.recall_score(
            labels, predicted, labels=present, average="macro", sample_weight=weights
        ),
        "top_3": oracle.top_k_accuracy_score(
            labels, probabilities, k=3, labels=classes, sample_weight=weights
        ),
        "macro_f1": oracle.f1_score(
            labels, predicted, labels=present, average="macro", sample_weight=weights
        ),
        "roc_auc": macro(
            lambda y, c, w: oracle.roc_auc_score(y, probabilities[:, c], sample_weight=w),
            labels,
            weights,
        ),
        "mean_average_precision": macro(
            lambda y, c, w: oracle.average_precision_score(y, probabilities[:, c], sample_weight=w),
            labels,
            weights,
        ),
        "log_loss": oracle.log_loss(labels, probabilities, labels=classes, sample_weight=weights),
    }


@pytest.mark.parametrize("decimals", [None, 3, 2], ids=["no ties", "ties", "mostly ties"])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_agrees_with_scikit_learn_under_any_weights(seed, decimals):
    probabilities, labels = predictions(seed, decimals=decimals)
    weights = drawn_weights(seed, len(labels))
    values = {
        name: metric.function(probabilities, labels, weights) for name, metric in METRICS.items()
    }
    for row, counts in enumerate(weights):
        for name, expected in oracles(probabilities, labels, counts).items():
            assert values[name][row] == pytest.approx(expected, abs=1e-10), name


def test_scikit_learns_own_macro_averages_agree_when_every_class_is_present():
    probabilities, labels = predictions(0)
    predicted = probabilities.argmax(axis=1)
    one_hot = np.eye(len(SHARES))[labels]
    assert balanced_accuracy(probabilities, labels) == pytest.approx(
        oracle.balanced_accuracy_score(labels, predicted), abs=1e-10
    )
    assert macro_f1(probabilities, labels) == pytest.approx(
        oracle.f1_score(labels, predicted, average="macro"), abs=1e-10
    )
    assert roc_auc(probabilities, labels) == pytest.approx(
        oracle.roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-10
    )
    assert mean_average_precision(probabilities, labels) == pytest.approx(
        oracle.average_precision_score(one_hot, probabilities, average="macro"), abs=1e-10
    )


@pytest.mark.parametrize("name", METRICS)
def test_an_integer_weight_is_the_image_repeated(name):
    probabilities, labels = predictions(1, decimals=4)
    weights = drawn_weights(1, len(labels), n_resamples=1)[0]
    repeated = np.repeat(np.arange(len(labels)), weights)
    function = METRICS[name].function
    assert function(probabilities, labels, weights) == pytest.approx(
        function(probabilities[repeated], labels[repeated], None), abs=1e-12
    )


@pytest.mark.parametrize("name", METRICS)
def test_many_resamples_at_once_are_each_resample_alone(name):
    probabilities, labels = predictions(2)
    # More rows than one chunk of either kind, and not a multiple of it.
    weights = drawn_weights(2, len(labels), n_resamples=301)
    function = METRICS[name].function
    together = function(probabilities, labels, weights)
    assert together.shape == (301,)
    for row in (0, 31, 32, 255, 256, 300):
        assert together[row] == pytest.approx(
            function(probabilities, labels, weights[row]), abs=1e-12
        )


@pytest.mark.parametrize("name", METRICS)
def test_scaling_all_weights_changes_nothing(name):
    probabilities, labels = predictions(3)
    weights = drawn_weights(3, len(labels))
    function = METRICS[name].function
    np.testing.assert_allclose(
        function(probabilities, labels, weights * 0.37),
        function(probabilities, labels, weights),
        atol=1e-12,
    )


@pytest.mark.parametrize("name", METRICS)
def test_a_certain_and_right_model_is_perfect_and_a_wrong_one_is_not(name):
    labels = np.arange(40) % 5
    right = np.eye(5)[labels]
    metric = METRICS[name]
    best = 1.0 if metric.higher_is_better else 0.0
    assert metric.function(right, labels, None) == pytest.approx(best, abs=1e-12)
    # Sure of the next class, and the label the least probable of all.
    surely_wrong = (0.01 + 0.96 * np.eye(5)[(labels + 1) % 5]) * (1 - right)
    wrong = metric.function(surely_wrong / surely_wrong.sum(axis=1, keepdims=True), labels, None)
    # Recalls and the area are 0; a float64 of 0 costs -log(eps), 36.04 nats.
    expected = {"log_loss": (36, 36.1), "calibration_error": (0.9, 1)}
    low, high = expected.get(name, (0, 0.2))
    assert low <= wrong <= high


@pytest.mark.parametrize(
    "name", ["balanced_accuracy", "macro_f1", "roc_auc", "mean_average_precision"]
)
def test_a_class_without_images_is_left_out_of_the_mean(name):
    probabilities, labels = predictions(4)
    of_others = labels != 2
    function = METRICS[name].function
    gone = function(probabilities[of_others], labels[of_others], None)
    weightless = function(probabilities, labels, of_others.astype(np.uint8))
    assert gone == pytest.approx(weightless, abs=1e-12)
    assert gone == pytest.approx(
        oracles(probabilities[of_others], labels[of_others], np.ones(of_others.sum()))[name]
    )


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_agrees_with_scikit_learn_for_every_k_and_with_ties(k):
    probabilities, labels = predictions(7, decimals=2)
    expected = oracle.top_k_accuracy_score(labels, probabilities, k=k, labels=np.arange(5))
    assert top_k(probabilities, labels, k=k) == pytest.approx(expected, abs=1e-12)


def test_top_k_is_capped_at_the_number_of_classes():
    probabilities, labels = predictions(8, shares=[0.7, 0.3])
    assert top_k(probabilities, labels) == 1.0
    assert top_k(probabilities, labels, k=1) == pytest.approx(accuracy(probabilities, labels))


def test_calibration_error_of_guo_is_the_sum_over_bins():
    probabilities, labels = predictions(10)
    weights = drawn_weights(10, len(labels), 1)[0].astype(float)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if weights[inside].sum() > 0:
            gap = np.average(right[inside], weights=weights[inside]) - np.average(
                confidence[inside], weights=weights[inside]
            )
            expected += weights[inside].sum() / weights.sum() * abs(gap)
    assert calibration_error(probabilities, labels, weights) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_an_overconfident_coin_is_its_excess():
    probabilities = np.tile([0.9, 0.1], (100, 1))
    labels = np.arange(100) % 2
    assert calibration_error(probabilities, labels) == pytest.approx(0.4)


def test_float32_probabilities_of_zero_cost_what_scikit_learn_charges():
    probabilities = np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.75]], np.float32)
    labels = np.array([0, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = oracle.log_loss(labels, probabilities)
    # scikit-learn adds up in float32 here.
    assert log_loss(probabilities, labels) == pytest.approx(expected, rel=1e-6)


def test_a_certain_and_right_float32_costs_its_rounding():
    eps = float(np.finfo(np.float32).eps)
    loss = log_loss(np.eye(2, dtype=np.float32), np.arange(2))
    assert loss == pytest.approx(-np.log1p(-eps), rel=1e-6)


def test_bins_are_closed_on_the_right_and_the_first_holds_0():
    confidence = np.array([0.0, 0.01, 0.25, 0.26, 0.5, 0.75, 0.76, 1.0])
    assert reliability_bins(confidence, 4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert reliability_bins(np.array([0.5, 1.0])).tolist() == [7, 14]  # of 15


def test_in_one_bin_the_calibration_error_is_the_gap_of_the_means():
    probabilities, labels = predictions(11)
    gap = probabilities.max(axis=1).mean() - accuracy(probabilities, labels)
    assert calibration_error(probabilities, labels, n_bins=1) == pytest.approx(abs(gap))


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"roc_auc"}))
def test_one_image_of_several_classes_has_every_metric_but_the_area(name):
    value = METRICS[name].function(np.array([[0.2, 0.5, 0.3]]), np.array([1]), None)
    expected = {"log_loss": -np.log(0.5), "calibration_error": 0.5}.get(name, 1)
    assert value == pytest.approx(expected)


def test_the_table_tells_what_a_metric_is():
    every = set(METRICS)
    assert {n for n, m in METRICS.items() if m.is_share} == every - {"log_loss"}
    losses = {"log_loss", "calibration_error"}
    assert {n for n, m in METRICS.items() if not m.higher_is_better} == losses
    decided = {"accuracy", "balanced_accuracy", "macro_f1"}
    assert {n for n, m in METRICS.items() if m.is_of_decision} == decided
    rankings = {"roc_auc", "mean_average_precision"}
    of_classes = {"balanced_accuracy", "macro_f1", *rankings}
    assert {n for n, m in METRICS.items() if m.is_mean_over_classes} == of_classes
    assert {n for n, m in METRICS.items() if m.compares_images} == {*rankings, "calibration_error"}
    assert {n for n, m in METRICS.items() if m.per_class is not None} == rankings


def test_top_k_and_bins_below_one_are_refused():
    probabilities, labels = predictions(12)
    with pytest.raises(DataError, match="`k` is 0"):
        top_k(probabilities, labels, k=0)
    with pytest.raises(DataError, match="`n_bins` is 0"):
        calibration_error(probabilities, labels, n_bins=0)
