from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from hubretrain.evaluation.evaluator import Evaluator
from hubretrain.finetuning.results import (
    order_of,
    regret_ends,
    screening_metric,
    with_fine_tuned,
)
from hubretrain.runs import VALIDATION_PREDICTIONS, FineTunedModuleRecord, OrderRecord, Run


def test_an_order_that_held_has_tau_1_and_no_regret():
    order = order_of({"a": 0.9, "b": 0.8, "c": 0.7}, {"a": 0.95, "b": 0.9, "c": 0.85}, "accuracy")
    assert order == OrderRecord(("a", "b", "c"), ("a", "b", "c"), 1.0, 0.0, "accuracy")


def test_regret_is_what_the_first_of_the_screening_lacks():
    screening, finetuned = {"a": 0.9, "b": 0.8, "c": 0.7}, {"a": 0.80, "b": 0.86, "c": 0.81}
    order = order_of(screening, finetuned, "balanced_accuracy")
    assert order.finetuned == ("b", "c", "a")
    assert order.regret == pytest.approx(0.06)
    expected = kendalltau([3, 2, 1], [1, 3, 2]).statistic
    assert order.kendall_tau == pytest.approx(expected)


def test_of_a_loss_the_least_is_best():
    order = order_of({"a": 0.3, "b": 0.4}, {"a": 0.5, "b": 0.2}, "log_loss")
    assert (order.screening, order.finetuned) == (("a", "b"), ("b", "a"))
    assert order.regret == pytest.approx(0.3)
    assert order.kendall_tau == -1.0


def test_where_all_are_tied_there_is_no_tau():
    order = order_of({"a": 0.3, "b": 0.4}, {"a": 0.5, "b": 0.5}, "accuracy")
    assert order.kendall_tau is None
    assert order.regret == 0.0


def test_an_ensemble_of_one_member_does_not_stand_in_for_its_module():
    names = ["2024", "b", "2024", "majority class", "b_random"]
    kinds = ["module", "module", "ensemble", "reference", "reference"]
    board = pd.DataFrame({"module": names, "kind": kinds, "accuracy": [0.9, 0.8, 0.85, 0.3, 0.2]})
    screened = screening_metric(board, ("2024", "b", "b_random"), "accuracy")
    assert screened == {"2024": 0.9, "b": 0.8, "b_random": 0.2}


def test_a_fine_tuned_module_stands_below_its_head_with_the_paired_difference():
    record = FineTunedModuleRecord(
        test={"accuracy": (0.8, 0.7, 0.9), "top_3": (1.0, 0.9, 1.0)},
        head_test={},
        validation={"accuracy": (0.85, 0.8, 0.9), "log_loss": (0.5, 0.4, 0.6)},
        head_validation={},
        adjust=0.5,
        priors=(0.5, 0.5),
        identity={},
        kept_epoch=4,
        temperature=1.5,
        uncalibrated_log_loss={},
        over_head={"validation": (0.02, -0.01, 0.05)},
    )
    board = pd.DataFrame(
        {
            "rank": pd.array([1, 2, pd.NA], "Int64"),
            "module": ["a", "b", "majority class"],
            "kind": ["module", "module", "reference"],
            "tied": [True, True, False],
            "shortlist": pd.array([2, 1, pd.NA], "Int64"),
            "accuracy": [0.9, 0.8, 0.3],
            "test_accuracy": [0.7, 0.6, None],
            "gflops": [3.0, 1.0, None],
        }
    )
    once = with_fine_tuned(board, {"a": record, "gone": record})
    table = with_fine_tuned(once, {"a": record})
    pd.testing.assert_frame_equal(once, table)
    assert table["module"].tolist() == ["a", "a, fine-tuned", "b", "majority class"]
    row = table.loc[1]
    assert (row["kind"], row["head"], row["gflops"]) == ("fine-tuned", "epoch 4", 3.0)
    assert [row[c] for c in ("accuracy", "accuracy_low", "test_accuracy")] == [0.85, 0.8, 0.8]
    assert [row[f"over_head{end}"] for end in ("", "_low", "_high")] == [0.02, -0.01, 0.05]
    assert row["calibrated_log_loss"] == 0.5  # the record's metrics are at the temperature
    assert pd.isna(row["rank"])
    assert pd.isna(row["shortlist"])
    assert table["tied"].tolist() == [True, False, True, False]
    assert "test_top_3" not in table  # only what the board shows of heads


def test_the_regret_of_an_order_has_its_paired_interval(tmp_path):
    rng, run, names = np.random.default_rng(0), Run(tmp_path / "run"), ("a", "b")
    images = pd.DataFrame({"path": [f"{i}.png" for i in range(60)], "class_index": [0, 1, 2] * 20})
    images = images.assign(sha256=images["path"], label="x", cluster=np.arange(60))
    probs, records = {}, {}
    for name, signal in zip(names, (0.2, 0.8), strict=True):
        raw = rng.dirichlet(np.ones(3), 60) + signal * np.eye(3)[images["class_index"]]
        probs[name] = (raw / raw.sum(axis=1, keepdims=True)).round(6)
        table = images[["path", "sha256", "label"]].copy()
        table[["p(0)", "p(1)", "p(2)"]] = probs[name]
        run.finetune_folder(name).mkdir(parents=True)
        VALIDATION_PREDICTIONS.write(run.finetune_folder(name), table[::-1])
        records[name] = FineTunedModuleRecord({}, {}, {}, {}, 0.0, (0.4, 0.3, 0.3), {}, 1, 1.0, {})
    evaluator = Evaluator(images["class_index"].to_numpy(), np.arange(60), 3)
    for metric, sign in (("accuracy", 1), ("log_loss", -1)):
        change = evaluator.effect([(probs["b"], probs["a"])], metric)
        order = OrderRecord(("a", "b"), ("b", "a"), -1.0, sign * change.estimate, metric)
        low, high = regret_ends(run, records, order, images, 3)
        assert low < order.regret < high
        expected = sorted((sign * change.low, sign * change.high))
        assert (low, high) == pytest.approx(expected, abs=1e-4)
    held = OrderRecord(("b", "a"), ("b", "a"), 1.0, 0.0, "accuracy")
    assert regret_ends(run, records, held, images, 3) is None
