"""The greedy ensemble: better than its members, honest, and back from its file."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.errors import HeadError
from hubretrain.evaluation.label_thresholds import best_thresholds
from hubretrain.evaluation.metrics import accuracy, balanced_accuracy, log_loss
from hubretrain.evaluation.selection import choice_parts
from hubretrain.files import read_record, write_record
from hubretrain.heads.ensemble import Ensemble, crossfitted_ensemble, greedy_ensemble
from hubretrain.heads.heads import probabilities


def members(seed=0, n_images=600, noises=(1.0, 1.0, 1.2, 5.0)):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n_images, p=[0.8, 0.15, 0.05])
    logits = 1.5 * np.eye(3)[labels] + np.log([0.8, 0.15, 0.05])
    probs = {
        f"m{i}": probabilities(logits + noise * rng.normal(size=logits.shape), "softmax")
        for i, noise in enumerate(noises)
    }
    return probs, labels


def test_the_mean_has_a_lower_log_loss_than_every_member_and_weights_sum_to_1():
    probs, labels = members()
    found = greedy_ensemble(probs, labels, "accuracy", (0.0,))
    alone = [float(log_loss(one, labels)) for one in probs.values()]
    assert float(log_loss(found.mean(probs), labels)) < min(alone) - 0.01
    assert sum(found.weights.values()) == pytest.approx(1)
    assert {"m0", "m1"} <= set(found.weights)
    assert "m3" not in found.weights


def test_the_first_member_is_the_best_alone_and_a_useless_second_is_left_out():
    probs, labels = members(1, noises=(0.5, 20.0))
    assert greedy_ensemble(probs, labels, "accuracy", (0.0,)).weights == {"m0": 1.0}


def test_the_rule_is_chosen_for_the_metric():
    probs, labels = members(2)
    strengths = (0.0, 0.5, 1.0)
    assert greedy_ensemble(probs, labels, "log_loss", strengths).rule.strength == 0
    balanced = greedy_ensemble(probs, labels, "balanced_accuracy", strengths)
    assert balanced.rule.strength > 0
    plain, decided = balanced.mean(probs), balanced.adjusted(probs)
    assert balanced_accuracy(decided, labels) > balanced_accuracy(plain, labels) + 0.1
    assert accuracy(decided, labels) < accuracy(plain, labels)


def test_out_of_40_coin_tossers_a_cross_fitted_ensemble_is_not_better_than_a_coin():
    values = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 200)
        probs = {f"m{i}": rng.dirichlet([2, 2], 200) for i in range(40)}
        parts = choice_parts(labels, np.arange(200))
        _, decided = crossfitted_ensemble(probs, probs, labels, parts, "accuracy", (0.0,))
        naive = greedy_ensemble(probs, labels, "accuracy", (0.0,)).adjusted(probs)
        values.append([float(accuracy(naive, labels)), float(accuracy(decided, labels))])
    naive, honest = np.mean(values, axis=0)
    assert naive > 0.54
    assert abs(honest - 0.5) < 0.03


def test_members_are_chosen_on_one_kind_of_scores_and_may_be_judged_on_another():
    probs, labels = members(3)
    parts = choice_parts(labels, np.arange(len(labels)))
    better = {name: 0.2 * one + 0.8 * np.eye(3)[labels] for name, one in probs.items()}
    strengths = (0.0, 0.5, 1.0)
    results = crossfitted_ensemble(probs, better, labels, parts, "balanced_accuracy", strengths)
    for part in range(2):
        here = parts == part
        others = {name: one[~here] for name, one in probs.items()}
        chosen = greedy_ensemble(others, labels[~here], "balanced_accuracy", strengths)
        for result, expected in zip(results, (chosen.mean, chosen.adjusted), strict=True):
            np.testing.assert_array_equal(result[here], expected(better)[here])


def test_images_without_scores_are_judged_but_nothing_is_chosen_by_them():
    probs, labels = members(5)
    parts = choice_parts(labels, np.arange(len(labels)))
    unscored = np.arange(len(labels)) % 3 == 0
    within = {name: np.where(unscored[:, None], np.nan, one) for name, one in probs.items()}
    unadjusted, _ = crossfitted_ensemble(within, probs, labels, parts, "accuracy", (0.0,))
    for part in range(2):
        chosen_on = ~unscored & (parts != part)
        others = {name: one[chosen_on] for name, one in probs.items()}
        ensemble = greedy_ensemble(others, labels[chosen_on], "accuracy", (0.0,))
        np.testing.assert_array_equal(
            unadjusted[parts == part], ensemble.mean(probs)[parts == part]
        )
    nothing = {name: np.full_like(one, np.nan) for name, one in probs.items()}
    unadjusted, _ = crossfitted_ensemble(nothing, probs, labels, parts, "accuracy", (0.0,))
    np.testing.assert_allclose(unadjusted, np.mean(list(probs.values()), axis=0), rtol=1e-12)


def test_an_ensemble_comes_back_from_its_file_and_a_missing_one_is_said(tmp_path):
    probs, labels = members(4)
    found = greedy_ensemble(probs, labels, "balanced_accuracy", (0.0, 1.0))
    found.save(tmp_path / "ensemble.json", ["a", "b", "c"])
    back = Ensemble.load(tmp_path / "ensemble.json")
    np.testing.assert_array_equal(back.adjusted(probs), found.adjusted(probs))
    with pytest.raises(HeadError, match=r"none.json is missing; run `hubretrain fit` again, on"):
        Ensemble.load(tmp_path / "none.json")


def several_labels(noises=(1.0, 1.0, 5.0), n_images=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((n_images, 3)) < (0.5, 0.2, 0.1)
    logits = 3.0 * labels - 2
    probs = {
        f"m{i}": probabilities(logits + noise * rng.normal(size=logits.shape), "logistic", True)
        for i, noise in enumerate(noises)
    }
    return probs, labels


def test_an_ensemble_of_several_labels_has_a_lower_log_loss_and_a_threshold_for_each(tmp_path):
    probs, labels = several_labels()
    found = greedy_ensemble(probs, labels, "mean_average_precision", (0.0,))
    alone = [float(log_loss(one, labels)) for one in probs.values()]
    assert float(log_loss(found.mean(probs), labels)) < min(alone)
    assert set(found.weights) == {"m0", "m1"}
    assert found.rule == best_thresholds(found.mean(probs), labels)
    found.save(tmp_path / "ensemble.json", ("a", "b", "c"))
    back = Ensemble.load(tmp_path / "ensemble.json")
    assert (back.weights, back.rule) == (found.weights, found.rule)


def test_each_half_is_decided_by_the_thresholds_of_an_ensemble_of_the_other():
    probs, labels = several_labels()
    parts = choice_parts(labels, np.arange(len(labels)))
    options = (labels, parts, "mean_average_precision", (0.0,))
    mean, adjusted = crossfitted_ensemble(probs, probs, *options)
    for part in (0, 1):
        outside, inside = parts != part, parts == part
        others = {name: of[outside] for name, of in probs.items()}
        of_others = greedy_ensemble(others, labels[outside], "mean_average_precision", (0.0,))
        here = {name: of[inside] for name, of in probs.items()}
        np.testing.assert_allclose(mean[inside], of_others.mean(here))
        decided = of_others.rule.decide(of_others.mean(here))
        np.testing.assert_array_equal(adjusted[inside] > 0.5, decided)


def test_an_ensemble_file_without_a_decision_rule_is_one_sentence(tmp_path):
    probs, labels = members()
    found = greedy_ensemble(probs, labels, "accuracy", (0.0,))
    found.save(tmp_path / "ensemble.json", ("a", "b", "c"))
    record = read_record(tmp_path / "ensemble.json")
    del record["adjust"]
    write_record(tmp_path / "ensemble.json", record)
    with pytest.raises(HeadError, match="has no decision rule; run"):
        Ensemble.load(tmp_path / "ensemble.json")
