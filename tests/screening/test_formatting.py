"""Words of leaderboard rows."""

from __future__ import annotations

from typing import Any

import pytest

from hubretrain.runs import ENSEMBLE, MODULE
from hubretrain.screening import formatting

NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"head": "softmax", "l2": 316.2, "trained_on": "all views"}, "softmax, l2 316, all views"),
        ({"head": "logistic", "l2": 3.1623, "adjust": 0.75}, "logistic, l2 3.16, adjusted 0.75"),
        ({"head": "softmax", "l2": NAN, "class_weight": "balanced"}, "softmax, balanced"),
        ({"head": "softmax", "class_weight": "a: 2", "adjust": 0.0}, "softmax, class weights a: 2"),
        (
            {"head": "logistic", "layers": "all", "l2": 10.0},
            "logistic, all layers, l2 10",
        ),
        ({"head": "mlp", "layers": "last", "l2": 0.01}, "mlp, decay 0.01"),
        ({"head": "none"}, ""),
        ({"head": NAN}, ""),
    ],
)
def test_a_head_is_described_by_what_is_not_the_default(row: dict[str, Any], words: str) -> None:
    assert formatting.head_words(row) == words


def test_an_ensemble_is_named_by_its_number_of_members() -> None:
    ensemble = {"kind": ENSEMBLE, "module": "a + b + c", "n_members": 2}  # a module is "b + c"
    assert formatting.row_name(ensemble) == "ensemble of 2"
    assert formatting.row_name({"kind": MODULE, "module": "b + c"}) == "b + c"


def test_an_estimate_is_in_percent_or_in_nats_and_may_lack_an_interval() -> None:
    row = {"accuracy": 0.9321, "accuracy_low": 0.9, "accuracy_high": 0.96, "log_loss": 0.31415}
    assert formatting.estimate_words(row, "accuracy") == ("93.2", "90.0", "96.0")
    assert formatting.estimate_words(row, "log_loss") == ("0.314", "", "")
    assert formatting.estimate_words(row, "top_3") is None
    averaged = {"averaged_unadjusted_accuracy": 0.5}
    assert formatting.estimate_words(averaged, "averaged_unadjusted_accuracy") == ("50.0", "", "")
