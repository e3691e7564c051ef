"""Metrics of cross-fitted predictions: of the two models, never of a mixture of both."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from hubretrain.errors import DataError
from hubretrain.evaluation.evaluator import TOP_1, Evaluator, Predictions
from hubretrain.evaluation.intervals import resample
from hubretrain.evaluation.metrics import METRICS, calibration_error, recall_per_class
from hubretrain.evaluation.parts import class_values, metric_values
from hubretrain.evaluation.ranking_metrics import average_precision_per_class, roc_auc_per_class
from hubretrain.evaluation.selection import choice_parts
from tests.evaluation.samples import drawn_weights, predictions

POOLED = [name for name, metric in METRICS.items() if not metric.compares_images]
BY_CLASS = [name for name, metric in METRICS.items() if metric.per_class is not None]
TINY = 1e-12  # of sums of some hundred shares in another order


def two_temperatures(seed, n_images=400):
    """Return probabilities of two classes, the same sharpened to one power, and labels.

    Of two classes a temperature keeps every ranking, that of the images included. In units of
    1 / 1,024, so that no two probabilities become equal by rounding.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice(2, n_images, p=[0.7, 0.3])
    counts = np.clip(rng.normal(400 + 200 * labels, 150).round(), 1, 1023)
    probs = np.stack([1024 - counts, counts], axis=1) / 1024
    sharp = probs**4
    sharp /= sharp.sum(axis=1, keepdims=True)
    return probs, sharp, labels


@pytest.mark.parametrize("name", BY_CLASS)
def test_two_candidates_of_one_ranking_and_two_temperatures_have_the_value_of_either(name):
    mild, sharp, labels = two_temperatures(0)
    groups = np.arange(len(labels)) // 2
    parts = choice_parts(labels, groups)
    mixture = np.where((parts == 0)[:, None], mild, sharp)
    evaluator = Evaluator(labels, groups, n_resamples=100, parts=parts)
    either = evaluator.resample(name, mild)
    for probs in (sharp, mixture):
        of_probs = evaluator.resample(name, probs)
        assert of_probs.estimate == pytest.approx(either.estimate, abs=TINY)
        np.testing.assert_allclose(of_probs.per_resample, either.per_resample, atol=TINY)
    pooled = Evaluator(labels, groups, n_resamples=100)
    assert pooled.resample(name, mild).estimate == pytest.approx(
        pooled.resample(name, sharp).estimate, abs=TINY
    )
    assert pooled.resample(name, mixture).estimate < either.estimate - 0.005


def test_the_calibration_errors_of_two_candidates_do_not_cancel():
    rng = np.random.default_rng(1)
    parts, n_images = np.arange(20_000) % 2, 20_000
    labels = rng.integers(0, 2, n_images)
    # Both say 0.7; the first is right 9 times in 10, the second 5 times: of all images 7.
    right = rng.random(n_images) < np.where(parts == 0, 0.9, 0.5)
    predicted = np.where(right, labels, 1 - labels)
    probs = 0.3 + 0.4 * np.eye(2)[predicted]
    assert calibration_error(probs, labels) < 0.01
    assert metric_values("calibration_error", probs, labels, None, parts) == pytest.approx(
        0.2, abs=0.01
    )


@pytest.mark.parametrize(
    ("name", "score"), [("roc_auc", roc_auc_score), ("mean_average_precision", None)]
)
def test_a_class_is_the_mean_of_scikit_learns_values_within_parts_by_its_images(name, score):
    score = score or average_precision_score
    probs, labels = predictions(3, n_images=200)
    parts = np.random.default_rng(0).integers(0, 2, 200)
    classes = []
    for c in range(5):
        values = [score(labels[parts == k] == c, probs[parts == k, c]) for k in range(2)]
        n_images = [((labels == c) & (parts == k)).sum() for k in range(2)]
        classes.append(np.average(values, weights=n_images))
    result = class_values(METRICS[name].per_class, probs, labels, None, parts)
    np.testing.assert_allclose(result, classes, atol=TINY)
    assert metric_values(name, probs, labels, None, parts) == pytest.approx(
        np.mean(classes), abs=TINY
    )


@pytest.mark.parametrize("name", METRICS)
def test_a_resample_is_the_same_as_repeating_its_images_in_their_parts(name):
    probs, labels = predictions(4, n_images=120)
    parts = np.random.default_rng(1).integers(0, 2, 120)
    weights = drawn_weights(2, 120)
    values = metric_values(name, probs, labels, weights, parts)
    assert values.shape == (4,)
    for row, value in zip(weights, values, strict=True):
        repeated = np.repeat(np.arange(120), row)
        expected = metric_values(name, probs[repeated], labels[repeated], None, parts[repeated])
        assert value == pytest.approx(float(expected), abs=TINY)
        assert metric_values(name, probs, labels, row, parts) == pytest.approx(value, abs=TINY)


def test_a_class_that_a_part_lacks_counts_with_the_other_and_one_that_both_lack_does_not():
    probs, labels = predictions(5, n_images=200)
    labels = np.where(labels == 4, 0, labels)
    parts = np.where((labels == 3) | (np.arange(200) % 2 == 0), 0, 1)
    for function in (roc_auc_per_class, average_precision_per_class):
        values = class_values(function, probs, labels, None, parts)
        alone = function(probs[parts == 0], labels[parts == 0], None)
        assert values[3] == pytest.approx(alone[3], abs=TINY)
        assert np.isnan(values).tolist() == [False] * 4 + [True]
    of_metric = metric_values("mean_average_precision", probs, labels, None, parts)
    assert of_metric == pytest.approx(np.nanmean(values), abs=TINY)


def test_a_resample_without_any_image_of_a_part_is_that_of_the_other():
    probs, labels = predictions(6, n_images=100)
    parts = np.arange(100) % 2
    weights = np.stack([parts == 1, np.ones(100, bool)]).astype(np.uint8)
    for name in METRICS:
        values = metric_values(name, probs, labels, weights, parts)
        alone = METRICS[name].function(probs[parts == 1], labels[parts == 1], None)
        assert values[0] == pytest.approx(float(alone), abs=TINY)
        assert np.isfinite(values).all()


def test_of_one_class_in_each_part_a_ranking_is_undefined():
    probs, labels = predictions(7, n_images=60, shares=[0.5, 0.5])
    assert np.isnan(metric_values("roc_auc", probs, labels, None, labels))
    with pytest.raises(DataError, match="undefined"):
        resample("roc_auc", probs, labels, np.arange(60), np.ones((2, 60), int), labels)
    assert Evaluator(labels, np.arange(60), parts=labels).interval("roc_auc", probs) is None


@pytest.mark.parametrize("name", POOLED)
def test_metrics_of_single_images_need_no_parts(name):
    """They are averages of the values within the parts, with the weights that the text names."""
    probs, labels = predictions(8, n_images=300)
    parts = np.random.default_rng(3).integers(0, 2, 300)
    parts_of = [parts == 0, parts == 1]
    function = METRICS[name].function
    within = [function(probs[k], labels[k], None) for k in parts_of]
    sizes = [k.sum() for k in parts_of]
    expected = np.average(within, weights=sizes)
    if name == "balanced_accuracy":
        expected = class_values(recall_per_class, probs, labels, None, parts).mean()
    if name == "macro_f1":
        one_hot, predicted = np.eye(5)[labels], np.eye(5)[probs.argmax(axis=1)]
        hits, sums = one_hot * predicted, one_hot + predicted
        n_each = np.stack([sums[k].sum(axis=0) for k in parts_of])
        f1 = np.stack([2 * hits[k].sum(axis=0) for k in parts_of]) / n_each
        expected = ((n_each * f1).sum(axis=0) / n_each.sum(axis=0)).mean()
    assert metric_values(name, probs, labels, None, parts) == pytest.approx(expected, abs=TINY)
    assert metric_values(name, probs, labels, None, parts) == function(probs, labels, None)


def test_every_figure_of_an_evaluator_with_parts_is_within_them():
    probs, labels = predictions(9, n_images=300)
    groups = np.arange(300) // 2
    parts = choice_parts(labels, groups)
    evaluator = Evaluator(labels, groups, n_resamples=50, parts=parts)
    both = Predictions(probs, probs)
    metrics = evaluator.metrics(both)
    for name, value in metrics.items():
        expected = metric_values(TOP_1.get(name, name), probs, labels, None, parts)
        assert value.estimate == pytest.approx(float(expected), abs=TINY)
    table = evaluator.per_class(list("abcde"), "model", both)
    np.testing.assert_allclose(
        table["average_precision"],
        class_values(average_precision_per_class, probs, labels, None, parts),
    )
    np.testing.assert_allclose(table["recall"], recall_per_class(probs, labels))
    mild = np.sqrt(probs) / np.sqrt(probs).sum(axis=1, keepdims=True)
    effect = evaluator.effect([(mild, probs)], "roc_auc")
    values = [metric_values("roc_auc", each, labels, None, parts) for each in (mild, probs)]
    assert effect.estimate == pytest.approx(float(values[0] - values[1]), abs=TINY)


def test_parts_are_one_for_each_image():
    probs, labels = predictions(10, n_images=20)
    with pytest.raises(DataError, match=r"`parts` has shape \(19,\); expected \(20,\)"):
        metric_values("roc_auc", probs, labels, None, np.zeros(19, int))
