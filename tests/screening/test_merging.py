"""Two screenings of different heads made one, against one screening of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hubretrain.evaluation import choice_parts
from hubretrain.screening.result import merged, merged_heads
from hubretrain.screening.screen import screen
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import images_of, write_features

CLASSES = ("a", "b", "c")


@pytest.mark.parametrize("metric", ["balanced_accuracy", "log_loss"])
@pytest.mark.parametrize("seed", range(3))
def test_merging_is_screening_both_kinds_at_once(tmp_path, metric, seed):
    images, features = images_of(90, seed=seed)
    file = write_features(tmp_path / "noisy.h5", images, [features, features[:, ::-1]])
    sweep = Sweep(metric, CLASSES, (None, "balanced"), (1.0, 10.0), (0.0, 1.0))
    kinds = ("softmax",), ("logistic",)
    (softmax, of_softmax), (logistic, of_logistic), (both, of_both) = (
        screen(file, images, replace(sweep, kinds=some)) for some in (*kinds, sum(kinds, ()))
    )
    validated = images[images["fold"] >= 0]
    parts = choice_parts(validated["class_index"].to_numpy(), validated["cluster"].to_numpy())
    one = merged(softmax, logistic, metric, parts, "logistic")
    for name in ("chosen", "ensemble_member", "uncorrected", "n_features", "n_heads"):
        assert one.about[name] == both.about[name]
    for name in both.predictions:
        if not name.startswith(("with_", "without_")):
            np.testing.assert_array_equal(one.predictions[name], both.predictions[name])
    for name, values in both.chosen_by.items():
        np.testing.assert_array_equal(one.chosen_by[name], values)
    columns = list(both.candidates.columns)
    order = columns[:7]
    pd.testing.assert_frame_equal(
        one.candidates.sort_values(order).reset_index(drop=True),
        both.candidates.sort_values(order).reset_index(drop=True),
    )
    heads = merged_heads(softmax, logistic, metric, (of_softmax, of_logistic))
    for role in ("deployed", "warm_start", "ensemble_member"):
        merged_head, head = getattr(heads, role), getattr(of_both, role)
        assert (merged_head.kind, merged_head.l2) == (head.kind, head.l2)
        np.testing.assert_array_equal(merged_head.weight, head.weight)


def test_of_equal_heads_the_simpler_is_kept(tmp_path):
    images, features = images_of(60)
    file = write_features(tmp_path / "noisy.h5", images, [features])
    sweep = Sweep("accuracy", CLASSES, l2=(1.0,), strengths=(0.0,), kinds=("softmax",))
    result, heads = screen(file, images, sweep)
    other = replace(result, about={**result.about, "chosen": "another", "ensemble_member": "x"})
    parts = np.zeros(len(images), np.int64)
    one = merged(result, other, "accuracy", parts, "same")
    assert one.about["chosen"] == result.about["chosen"]
    assert merged_heads(result, other, "accuracy", (heads, heads)).deployed is heads.deployed
    assert one.identity not in (result.identity, other.identity)
