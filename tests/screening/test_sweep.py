"""The sweep that options and labels ask for."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.errors import HeadError
from hubretrain.evaluation import STRENGTHS
from hubretrain.screening.options import L2, ScreenOptions
from hubretrain.screening.sweep import Sweep

EVEN, UNEVEN = np.arange(30) % 3, np.array([0] * 20 + [1] * 6 + [2] * 4)


def sweep_of(labels=UNEVEN, **options):
    return Sweep.of(ScreenOptions(**options), ("2024", "NA", "x"), labels)


def test_unbalanced_classes_are_chosen_by_balanced_accuracy_with_adjustment():
    assert (sweep_of().metric, sweep_of().strengths) == ("balanced_accuracy", STRENGTHS)
    assert (sweep_of(EVEN).metric, sweep_of(EVEN).strengths) == ("accuracy", (0.0,))
    assert sweep_of(metric="log_loss").strengths == (0.0,)
    assert sweep_of(EVEN, metric="macro_f1").strengths == STRENGTHS


def test_strengths_that_are_asked_for_are_compared_with_none():
    assert sweep_of(adjust=(1.0, 0.5)).strengths == (0.0, 0.5, 1.0)
    assert sweep_of(adjust=(0.0,)).strengths == (0.0,)
    assert sweep_of().l2 == L2


def test_weights_by_class_name_are_weights_in_class_order():
    weights = (None, "balanced", {"NA": 2, "2024": 0.5})
    assert sweep_of(class_weights=weights).class_weights == (None, "balanced", (0.5, 2.0, 1.0))


def test_an_unknown_metric_or_class_is_named_with_what_is_expected():
    with pytest.raises(HeadError, match="`metric` is 'f1'; expected one of accuracy"):
        sweep_of(metric="f1")
    with pytest.raises(HeadError, match="names the class 'two'; expected one of 2024, NA, x"):
        sweep_of(class_weights=({"two": 5.0},))
    with pytest.raises(HeadError, match="gives NA 0; expected above 0"):
        sweep_of(class_weights=({"NA": 0.0},))
