"""Rows, order, classes and effects of the leaderboard, against what they should be by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, recall_score

from hubretrain.evaluation.intervals import difference, group_resamples, resample
from hubretrain.screening.leaderboard import (
    Evaluator,
    by_cost,
    effect_of,
    is_twin,
    per_class,
    ranked,
    twinned_by,
)


def predictions(seed, n_images=300):
    rng = np.random.default_rng(seed)
    labels = np.arange(n_images) % 3
    said = rng.dirichlet(np.ones(3), n_images) + 0.4 * np.eye(3)[labels]
    return said / said.sum(axis=1, keepdims=True), labels


@pytest.fixture
def judge():
    labels = np.arange(300) % 3
    groups = np.arange(300) // 2
    return Evaluator(labels, groups, group_resamples(groups, n_resamples=200), "balanced_accuracy")


def test_recall_and_average_precision_of_each_class_are_scikit_learns(judge):
    plain, labels = predictions(0)
    decided, _ = predictions(1)
    table = per_class(["a", "b", "c"], {"model": (plain, decided)}, judge)
    recalls = recall_score(labels, decided.argmax(axis=1), average=None)
    np.testing.assert_allclose(table["recall"], recalls)
    for c in range(3):
        expected = average_precision_score(labels == c, plain[:, c])
        assert table["average_precision"][c] == pytest.approx(expected)
        assert table["average_precision_low"][c] < expected < table["average_precision_high"][c]
    assert table["n_groups"].tolist() == [100, 100, 100]


def test_a_class_that_is_not_there_has_no_recall():
    labels = np.arange(40) % 2
    said = np.eye(3)[labels]
    groups = np.arange(40)
    judge = Evaluator(labels, groups, group_resamples(groups, n_resamples=20), "accuracy")
    table = per_class(["a", "b", "c"], {"model": (said, said)}, judge)
    assert table["recall"].tolist()[:2] == [1, 1]
    assert table.loc[2, ["recall", "recall_low", "average_precision"]].isna().all()


def test_an_effect_on_one_module_is_its_paired_difference(judge):
    first, second = predictions(2)[0], predictions(3)[0]
    rows = [
        resample("balanced_accuracy", said, judge.labels, judge.groups, judge.weights)
        for said in (first, second)
    ]
    assert effect_of([(first, second)], judge) == difference(*rows)


def test_an_effect_on_several_modules_is_the_mean_and_surer_than_each(judge):
    pairs = [(predictions(s)[0], predictions(s + 50)[0]) for s in range(6)]
    each = [effect_of([pair], judge) for pair in pairs]
    together = effect_of(pairs, judge)
    assert together.estimate == pytest.approx(np.mean([one.estimate for one in each]))
    assert together.high - together.low < min(one.high - one.low for one in each)


def test_losses_rank_from_the_lowest_and_references_come_last(judge):
    loss = Evaluator(judge.labels, judge.groups, judge.weights, "log_loss")
    said = {name: predictions(seed)[0] for seed, name in enumerate(("good", "better"))}
    said["better"] = 0.5 * said["better"] + 0.5 * np.eye(3)[judge.labels]
    rows = [
        {"module": name, "kind": "module", **loss.columns("log_loss", one)}
        for name, one in said.items()
    ]
    rows.append({"module": "always", "kind": "reference", "log_loss": 0.0})
    of_choice = {name: loss.of_choice(one, one) for name, one in said.items()}
    board = ranked(rows, of_choice, "log_loss", 3)
    assert board["module"].tolist() == ["better", "good", "always"]
    assert board["rank"].tolist()[:2] == [1, 2]
    assert board["tied"].tolist() == [True, False, False]
    assert board["shortlist"].tolist()[0] == 1
    assert board["shortlist"].isna().tolist() == [False, True, True]


def test_a_cost_orders_only_when_it_is_known_of_all():
    tied = pd.DataFrame(
        {
            "module": ["a", "b", "c"],
            "gflops": [3.0, np.nan, 1.0],
            "ms_an_image": [2.0, 1.0, 3.0],
        }
    )
    assert by_cost(tied)["module"].tolist() == ["b", "a", "c"]
    assert by_cost(tied.assign(gflops=[3.0, 2.0, 1.0]))["module"].tolist() == ["c", "b", "a"]
    assert by_cost(tied[["module"]])["module"].tolist() == ["a", "b", "c"]


def test_a_twin_is_known_by_its_name():
    assert is_twin("mobilenet_v2_random")
    names = ["MobileNet_alpha0.75", "MobileNet-mine", "mobilenet_v2", "VGG16", "VGG16-mine"]
    assert twinned_by("mobilenet_v2_random", names) == "mobilenet_v2"
    assert twinned_by("MobileNet_random", names) == "MobileNet-mine"  # weights from a file
    assert twinned_by("VGG16_random", names) == "VGG16"
    assert twinned_by("MobileNet_alpha0.5_random", names) is None
    assert not is_twin("random_forest")
