"""Rows and order of the leaderboard, against what they should be by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hubretrain.evaluation.evaluator import Evaluator
from hubretrain.evaluation.intervals import tied_with_best
from hubretrain.screening.leaderboard import (
    columns,
    is_random_control,
    known_costs,
    pretrained_of,
    ranked,
)


def test_losses_rank_from_the_lowest_and_baselines_come_last():
    labels, rng = np.arange(300) % 3, np.random.default_rng(0)
    evaluator = Evaluator(labels, np.arange(300) // 2, n_resamples=200)
    good = rng.dirichlet(np.ones(3), 300) + 0.4 * np.eye(3)[labels]
    good /= good.sum(axis=1, keepdims=True)
    probs = {"good": good, "better": 0.5 * good + 0.5 * np.eye(3)[labels]}
    rows = [
        {
            "module": name,
            "kind": "module",
            **columns({"log_loss": evaluator.interval("log_loss", values)}),
        }
        for name, values in probs.items()
    ]
    rows.append({"module": "always", "kind": "reference", "log_loss": 0.0})
    resampled = {name: evaluator.resample("log_loss", values) for name, values in probs.items()}
    board = ranked(rows, [resampled], "log_loss", 3)
    assert board["module"].tolist() == ["better", "good", "always"]
    assert board["rank"].tolist()[:2] == [1, 2]
    assert board["tied"].tolist() == [True, False, False]
    assert board["shortlist"].tolist()[0] == 1
    assert board["shortlist"].isna().tolist() == [False, True, True]


def test_a_cost_counts_only_when_it_is_known_of_all():
    tied = pd.DataFrame(
        {
            "module": ["a", "b", "c"],
            "gflops": [3.0, np.nan, 1.0],
            "ms_per_image": [2.0, 1.0, 3.0],
        }
    )
    assert known_costs(tied) == ["ms_per_image"]
    assert known_costs(tied.assign(gflops=[3.0, 2.0, 1.0])) == ["gflops", "ms_per_image"]
    assert known_costs(tied[["module"]]) == []


def test_the_shortlist_is_the_best_of_the_tied_whatever_they_cost():
    rng, n = np.random.default_rng(0), 400
    labels = np.zeros(n, np.int64)
    labels[::2] = 1
    evaluator = Evaluator(labels, np.arange(n), n_resamples=200)
    rows, resampled = [], {}
    for name, gflops, share in (
        ("a", 9.0, 0.81),
        ("b", 1.0, 0.8),
        ("c", 5.0, 0.81),
        ("d", 2, 0.77),
    ):
        right = rng.permutation(n) < share * n
        probs = np.eye(2)[np.where(right, labels, 1 - labels)]
        resampled[name] = evaluator.resample("accuracy", probs)
        accuracy = resampled[name].estimate
        rows.append({"module": name, "kind": "module", "gflops": gflops, "accuracy": accuracy})
    board = ranked(rows, [resampled], "accuracy", 3)
    assert board["tied"].all()
    assert not tied_with_best([*resampled.values()], 0.6).all()  # they are, at 95 %
    assert board["module"].tolist() == ["c", "a", "b", "d"]
    assert board["shortlist"].tolist()[:3] == [1, 2, 3]
    assert board["shortlist"].isna().tolist() == [False, False, False, True]


def test_only_a_module_that_is_worse_by_both_predictions_is_left_out_of_the_tied():
    n = 400
    labels = np.arange(n) % 2
    evaluator = Evaluator(labels, np.arange(n), n_resamples=200)

    def of(share):
        right = np.random.default_rng(round(100 * share)).permutation(n) < share * n
        return evaluator.resample("accuracy", np.eye(2)[np.where(right, labels, 1 - labels)])

    crossfitted = {"a": of(0.9), "b": of(0.7), "c": of(0.71)}
    deployed = {"a": of(0.91), "b": of(0.92), "c": of(0.72)}
    rows = [
        {"module": name, "kind": "module", "accuracy": row.estimate}
        for name, row in crossfitted.items()
    ]
    tied = [ranked(rows, of, "accuracy", 3) for of in ([crossfitted], [crossfitted, deployed])]
    assert [set(board.loc[board["tied"], "module"]) for board in tied] == [{"a"}, {"a", "b"}]


def test_a_random_control_is_known_by_its_name():
    assert is_random_control("mobilenet_v2_random")
    names = ["MobileNet_alpha0.75", "MobileNet-mine", "mobilenet_v2", "VGG16", "VGG16-mine"]
    assert pretrained_of("mobilenet_v2_random", names) == "mobilenet_v2"
    assert pretrained_of("MobileNet_random", names) == "MobileNet-mine"  # weights from a file
    assert pretrained_of("VGG16_random", names) == "VGG16"
    assert pretrained_of("MobileNet_alpha0.5_random", names) is None
    assert not is_random_control("random_forest")
