"""The result of a screening, written and read again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hubretrain.evaluation import DecisionRule
from hubretrain.heads import Head, ModuleHeads
from hubretrain.screening.result import ScreenResult


def result_of(module="2024", averaged=False):
    rng = np.random.default_rng(0)
    names = ["unadjusted", "adjusted", "deployed", "deployed_adjusted", "member"]
    if averaged:
        names += ["averaged_unadjusted", "averaged_adjusted"]
        names += ["deployed_averaged", "deployed_averaged_adjusted"]
    predictions = {name: rng.dirichlet(np.ones(3), 5).astype(np.float32) for name in names}
    about = {"chosen": {"l2": 10.0}, "uncorrected": 0.5, "module": {"module": module}}
    candidates = pd.DataFrame(
        {
            "module": [module, module],
            "class_weight": ["none", "NA: 1, 2024: 2"],
            "l2": [1.0, 10.0],
            "passes": [3, 4],
            "converged": [True, False],
        }
    )
    chosen_by = {"chosen": np.array([0.5, 0.4, np.nan])}
    return ScreenResult(module, "identity", about, predictions, candidates, chosen_by)


def heads_of():
    rule = DecisionRule(0.5, (0.2, 0.3, 0.5))
    linear = Head("softmax", np.ones((4, 3)), np.zeros(3), rule, np.ones(3), l2=10.0)
    return ModuleHeads(linear, linear, replace(linear, kind="logistic"), ("a", "b", "c"))


@pytest.mark.parametrize("module", ["2024", "None", "NA", " x ", 'a "b"', "two\nlines"])
def test_a_result_comes_back_from_its_file(tmp_path, module):
    result = result_of(module)
    path = tmp_path / "screened" / "module.h5"
    result.save(path, heads_of())
    read = ScreenResult.load(path, "identity")
    assert (read.module, read.about) == (module, result.about)
    pd.testing.assert_frame_equal(read.candidates, result.candidates, check_dtype=False)
    assert read.candidates["converged"].dtype == bool
    for name, probs in result.predictions.items():
        np.testing.assert_array_equal(read.predictions[name], probs)
    np.testing.assert_array_equal(read.chosen_by["chosen"], result.chosen_by["chosen"])
    heads = ScreenResult.load_heads(path)
    assert (heads.deployed.kind, heads.ensemble_member.kind) == ("softmax", "logistic")


def test_another_identity_or_a_damaged_file_is_no_result(tmp_path):
    path = tmp_path / "module.h5"
    assert ScreenResult.load(path, "identity") is None
    result_of().save(path, heads_of())
    assert ScreenResult.load(path, "another") is None
    path.write_bytes(path.read_bytes()[:500])
    assert ScreenResult.load(path, "identity") is None


def test_averaged_predictions_are_there_only_with_several_views():
    assert result_of().averaged is None
    averaged = result_of(averaged=True)
    predictions = averaged.predictions
    assert averaged.averaged.of("accuracy") is predictions["averaged_adjusted"]
    assert averaged.averaged.of("log_loss") is predictions["averaged_unadjusted"]
    assert averaged.chosen.of("accuracy") is predictions["adjusted"]
    assert averaged.chosen.deployed.of("accuracy") is predictions["deployed_adjusted"]
    assert averaged.averaged.deployed.of("log_loss") is predictions["deployed_averaged"]
