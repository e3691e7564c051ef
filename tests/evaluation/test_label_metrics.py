"""Metrics of images that may have several labels, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as oracle

from hubretrain.errors import DataError
from hubretrain.evaluation import LabelThresholds, Predictions
from hubretrain.evaluation.evaluator import Evaluator
from hubretrain.evaluation.metrics import (
    LABEL_METRICS,
    METRICS,
    f1_per_class,
    metric_named,
    precision_per_class,
    recall_per_class,
)
from hubretrain.evaluation.parts import metric_values
from hubretrain.evaluation.selection import candidate_values, choice_parts, choose

DECIDED = {
    "macro_f1": lambda y, p, w: oracle.f1_score(y, p > 0.5, average="macro", sample_weight=w),
    "micro_f1": lambda y, p, w: oracle.f1_score(y, p > 0.5, average="micro", sample_weight=w),
    "subset_accuracy": lambda y, p, w: oracle.accuracy_score(y, p > 0.5, sample_weight=w),
    "hamming_loss": lambda y, p, w: oracle.hamming_loss(y, p > 0.5, sample_weight=w),
}
RANKED = {
    "mean_average_precision": lambda y, p, w: oracle.average_precision_score(
        y, p, average="macro", sample_weight=w
    ),
    "micro_average_precision": lambda y, p, w: oracle.average_precision_score(
        y, p, average="micro", sample_weight=w
    ),
    "roc_auc": lambda y, p, w: oracle.roc_auc_score(y, p, average="macro", sample_weight=w),
}
LOSS = {
    "log_loss": lambda y, p, w: np.mean(
        [oracle.log_loss(y[:, k], p[:, k], sample_weight=w) for k in range(y.shape[1])]
    )
}
ORACLES = {**DECIDED, **RANKED, **LOSS}


def sample(n_images=300, prevalences=(0.5, 0.2, 0.1, 0.05), seed=0):
    """Labels, probabilities, some of them equal, and groups of up to three images."""
    random = np.random.default_rng(seed)
    labels = random.random((n_images, len(prevalences))) < prevalences
    probs = expit(2 * labels - 1 + random.normal(size=labels.shape)).round(2)
    return labels, probs, random.integers(n_images // 3, size=n_images)


@pytest.mark.parametrize("name", list(ORACLES))
def test_a_metric_is_what_scikit_learn_computes(name):
    labels, probs, _ = sample()
    value = LABEL_METRICS[name].function(probs, labels, None)
    assert value == pytest.approx(ORACLES[name](labels, probs, None), rel=1e-12)


@pytest.mark.parametrize("name", list(ORACLES))
def test_a_metric_of_a_resample_is_what_scikit_learn_computes_with_its_weights(name):
    labels, probs, groups = sample()
    weights = Evaluator(labels, groups, n_resamples=5).weights
    values = LABEL_METRICS[name].function(probs, labels, weights)
    expected = [ORACLES[name](labels, probs, row) for row in weights]
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (recall_per_class, oracle.recall_score),
        (precision_per_class, oracle.precision_score),
        (f1_per_class, oracle.f1_score),
    ],
)
def test_figures_of_a_label_are_those_of_scikit_learn(function, expected):
    labels, probs, _ = sample()
    np.testing.assert_allclose(function(probs, labels), expected(labels, probs > 0.5, average=None))


def test_the_calibration_error_is_the_mean_gap_of_pairs_in_bins_of_their_probability():
    labels, probs, _ = sample()
    p, y = probs.ravel(), labels.ravel()
    bins = np.clip(np.ceil(p * 15) - 1, 0, 14)
    gaps = [abs((y[bins == b] - p[bins == b]).sum()) for b in range(15)]
    value = LABEL_METRICS["calibration_error"].function(probs, labels, None)
    assert value == pytest.approx(sum(gaps) / len(p))


def test_a_label_that_no_image_has_or_every_image_is_left_out_of_the_means():
    labels, probs, _ = sample()
    constant = np.column_stack([np.zeros(len(labels), bool), np.ones(len(labels), bool)])
    wider, scores = np.hstack([labels, constant]), np.hstack([probs, probs[:, :2]])
    for name in ("mean_average_precision", "roc_auc"):
        without = metric_named(name).function(probs, labels, None)
        assert metric_named(name).function(scores, wider, None) == pytest.approx(without)
        assert np.isnan(metric_named(name).per_class(scores, wider, None)[-2:]).all()


def test_a_figure_of_nothing_but_absent_labels_is_left_out():
    labels, probs, groups = sample()
    metrics = Evaluator(np.zeros_like(labels), groups).metrics(Predictions(probs, probs))
    undefined = {"mean_average_precision", "micro_average_precision", "roc_auc", "macro_f1"}
    assert set(LABEL_METRICS) - set(metrics) == undefined


def test_every_metric_has_an_interval_around_it_and_none_of_one_class_is_among_them():
    labels, probs, groups = sample()
    rule = LabelThresholds((0.5, 0.4, 0.3, 0.3))
    predictions = Predictions(probs, rule.adjust(probs))
    metrics = Evaluator(labels, groups).metrics(predictions)
    assert list(metrics) == list(LABEL_METRICS)
    for name, (estimate, low, high) in metrics.items():
        evaluated = predictions.of(name)
        assert estimate == pytest.approx(LABEL_METRICS[name].function(evaluated, labels, None))
        assert low < estimate < high
    f1 = oracle.f1_score(labels, probs > rule.values, average="macro")
    assert metrics["macro_f1"].estimate == pytest.approx(f1)


def test_a_row_of_a_label_has_its_figures_with_intervals():
    labels, probs, groups = sample()
    table = Evaluator(labels, groups).per_class("abcd", "small", Predictions(probs, probs))
    assert table["n_images"].tolist() == labels.sum(axis=0).tolist()
    assert table["n_groups"].tolist() == [len(set(groups[of])) for of in labels.T]
    expected = {
        "average_precision": oracle.average_precision_score(labels, probs, average=None),
        "recall": oracle.recall_score(labels, probs > 0.5, average=None),
        "precision": oracle.precision_score(labels, probs > 0.5, average=None),
        "f1": oracle.f1_score(labels, probs > 0.5, average=None),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values)
        assert (table[f"{name}_low"] < values).all()
        assert (table[f"{name}_high"] >= values).all()


@pytest.mark.parametrize("name", list(LABEL_METRICS))
def test_predictions_of_one_model_in_each_part_are_never_compared_across_parts(name):
    """Probabilities of one part may be shifted without a change of any ranking."""
    labels, probs, groups = sample()
    parts = choice_parts(labels, groups)
    of_parts = [
        (LABEL_METRICS[name].function(probs[parts == k], labels[parts == k], None), k)
        for k in (0, 1)
    ]
    value = float(metric_values(name, probs, labels, None, parts))
    assert min(of_parts)[0] - 0.01 <= value <= max(of_parts)[0] + 0.01
    if name in RANKED:
        shifted = np.where(parts[:, None] == 1, probs / 2 + 0.5, probs)
        assert float(metric_values(name, shifted, labels, None, parts)) == pytest.approx(value)


def test_halves_hold_whole_groups_and_half_of_every_label():
    labels, _, groups = sample(n_images=2000)
    parts = choice_parts(labels, groups)
    assert all(len(set(parts[groups == group])) == 1 for group in set(groups))
    shares = [labels[parts == k].sum(axis=0) / labels.sum(axis=0) for k in (0, 1)]
    assert np.abs(shares[0] - shares[1]).max() < 0.1
    order = np.random.default_rng(1).permutation(len(labels))
    np.testing.assert_array_equal(choice_parts(labels[order], groups[order]), parts[order])


def test_a_choice_by_decisions_without_a_part_looks_at_no_label_of_it():
    labels, probs, groups = sample()
    parts = choice_parts(labels, groups)
    candidates = [probs, 1 - probs, probs**2]
    values = candidate_values("macro_f1", candidates, labels, parts)
    other = np.where(parts[:, None] == 0, ~labels, labels)
    again = candidate_values("macro_f1", candidates, other, parts)
    np.testing.assert_array_equal(values[1], again[1])
    assert choose(values, "macro_f1").best in (0, 2)


def test_indicators_of_another_shape_than_the_probabilities_are_one_sentence():
    labels, probs, _ = sample()
    with pytest.raises(DataError, match=r"`labels` has shape \(300, 3\); expected \(300, 4\)"):
        LABEL_METRICS["micro_f1"].function(probs, labels[:, :3], None)
    with pytest.raises(DataError, match="sum to"):
        METRICS["log_loss"].function(probs, labels.argmax(axis=1), None)
