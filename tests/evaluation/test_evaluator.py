"""Metrics, classes and effects with intervals, against what they should be by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, recall_score

from hubretrain.errors import DataError
from hubretrain.evaluation.evaluator import TOP_1, Evaluator, Predictions
from hubretrain.evaluation.intervals import difference, group_resamples, interval, resample
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.evaluation.metrics import METRICS


def predictions(seed, n_images=300):
    rng = np.random.default_rng(seed)
    labels = np.arange(n_images) % 3
    probs = rng.dirichlet(np.ones(3), n_images) + 0.4 * np.eye(3)[labels]
    return probs / probs.sum(axis=1, keepdims=True), labels


@pytest.fixture
def evaluator():
    return Evaluator(np.arange(300) % 3, np.arange(300) // 2, n_resamples=200)


def test_every_metric_has_the_interval_of_its_own_probabilities(evaluator):
    probs, labels = predictions(0)
    adjusted = DecisionRule(1.0, (0.6, 0.3, 0.1)).adjust(probs)
    metrics = evaluator.metrics(Predictions(probs, adjusted))
    assert list(metrics) == [*METRICS, *TOP_1]
    weights = group_resamples(evaluator.groups, n_resamples=200, seed=0)
    for name, value in metrics.items():
        metric = TOP_1.get(name, name)
        of = adjusted if METRICS[metric].is_of_decision and name not in TOP_1 else probs
        assert value == interval(resample(metric, of, labels, evaluator.groups, weights))
    assert metrics["accuracy"] != metrics["unadjusted_accuracy"]


def test_cross_fitted_predictions_get_ends_that_hold_the_deployed_model_too(evaluator):
    probs, labels = predictions(0)
    deployed = 0.8 * probs + 0.2 * np.eye(3)[labels]
    own = Predictions(deployed, DecisionRule(0.5, (0.6, 0.3, 0.1)).adjust(deployed))
    both = Predictions(probs, DecisionRule(1.0, (0.6, 0.3, 0.1)).adjust(probs), own)
    weights = group_resamples(evaluator.groups, n_resamples=200, seed=0)
    for name, value in evaluator.metrics(both).items():
        metric = TOP_1.get(name, name)
        is_adjusted = METRICS[metric].is_of_decision and name not in TOP_1
        rows = [
            resample(
                metric,
                of.adjusted if is_adjusted else of.unadjusted,
                labels,
                evaluator.groups,
                weights,
            )
            for of in (both, own)
        ]
        assert value == interval(rows[0], 0.95, rows[1])
        assert value.estimate == rows[0].estimate
    table = evaluator.per_class(["a", "b", "c"], "model", both)
    of_one = evaluator.per_class(["a", "b", "c"], "model", both._replace(deployed=None))
    assert (table["recall"] == of_one["recall"]).all()
    assert (table["average_precision_high"] > of_one["average_precision_high"]).all()


def test_a_metric_that_is_undefined_is_absent():
    evaluator = Evaluator(np.zeros(20, int), np.arange(20))
    probs = np.full((20, 2), 0.5)
    assert "roc_auc" not in evaluator.metrics(Predictions(probs, probs))
    assert evaluator.interval("roc_auc", probs) is None
    assert evaluator.interval("accuracy", probs).estimate == 1


def test_fewer_than_two_groups_have_no_intervals():
    labels, groups = np.arange(6) % 2, np.zeros(6, int)
    assert Evaluator.if_grouped(labels, groups, 0) is None
    assert Evaluator.if_grouped(labels[:0], groups[:0], 0) is None
    assert Evaluator.if_grouped(labels, np.arange(6), 3).weights.shape == (1000, 6)
    with pytest.raises(DataError, match="There are 1 groups"):
        Evaluator(labels, groups)


def test_recall_and_average_precision_of_each_class_are_scikit_learns(evaluator):
    unadjusted, labels = predictions(0)
    adjusted, _ = predictions(1)
    table = evaluator.per_class(["a", "b", "c"], "model", Predictions(unadjusted, adjusted))
    assert table["module"].tolist() == ["model"] * 3
    recalls = recall_score(labels, adjusted.argmax(axis=1), average=None)
    np.testing.assert_allclose(table["recall"], recalls)
    for c in range(3):
        expected = average_precision_score(labels == c, unadjusted[:, c])
        assert table["average_precision"][c] == pytest.approx(expected)
        assert table["average_precision_low"][c] < expected < table["average_precision_high"][c]
    assert table["n_groups"].tolist() == [100, 100, 100]


def test_a_class_that_is_not_there_has_no_recall():
    labels = np.arange(40) % 2
    probs = np.eye(3)[labels]
    evaluator = Evaluator(labels, np.arange(40), n_resamples=20)
    table = evaluator.per_class(["a", "b", "c"], "model", Predictions(probs, probs))
    assert table["recall"].tolist()[:2] == [1, 1]
    assert table.loc[2, ["recall", "recall_low", "average_precision"]].isna().all()


def test_an_effect_on_one_model_is_its_paired_difference(evaluator):
    pair = predictions(2)[0], predictions(3)[0]
    rows = [evaluator.resample("balanced_accuracy", probs) for probs in pair]
    assert evaluator.effect([pair], "balanced_accuracy") == difference(*rows)


def test_effects_that_are_shown_together_hold_together(evaluator):
    pair = predictions(2)[0], predictions(3)[0]
    rows = [evaluator.resample("balanced_accuracy", probs) for probs in pair]
    one = difference(*rows)
    joint = evaluator.effect([pair], "balanced_accuracy", n_effects=5)
    assert joint[2:4] == pytest.approx(difference(*rows, confidence=0.99)[2:4])
    assert joint.confidence == 0.95
    assert joint.p == pytest.approx(min(1, 5 * one.p))


def test_the_recall_of_a_class_of_one_group_has_an_interval_of_some_width():
    labels, groups = np.array([0] * 30 + [1] * 5), np.arange(35)
    groups[30:] = 30
    probs = np.eye(2)[labels]
    probs[30:32] = [1, 0]  # three of five images of the one group are right
    evaluator = Evaluator(labels, groups, n_resamples=50)
    table = evaluator.per_class(["many", "one group"], "model", Predictions(probs, probs))
    recall = table.set_index("class").loc["one group"]
    assert recall["n_groups"] == 1
    assert recall["recall"] == pytest.approx(0.6)
    # By Markov's inequality, of one group: 2.5 % of what was seen, and of what was not.
    assert recall["recall_low"] == pytest.approx(0.025 * 0.6)
    assert recall["recall_high"] == pytest.approx(1 - 0.025 * 0.4)


def test_an_effect_on_several_models_is_the_mean_and_surer_than_each(evaluator):
    pairs = [(predictions(s)[0], predictions(s + 50)[0]) for s in range(6)]
    each = [evaluator.effect([pair], "accuracy") for pair in pairs]
    together = evaluator.effect(pairs, "accuracy")
    assert together.estimate == pytest.approx(np.mean([change.estimate for change in each]))
    assert together.high - together.low < min(change.high - change.low for change in each)
