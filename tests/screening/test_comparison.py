"""The comparison of modules: each figure is of models, none of a mixture of two."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.evaluation import average_precision_per_class, choice_parts
from hubretrain.evaluation.parts import class_values, metric_values
from hubretrain.screening.comparison import ModuleComparison
from hubretrain.screening.screen import screen
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import images_of, write_features

CLASSES = ("a", "b", "c")
METRIC = "mean_average_precision"
RANKINGS = ("roc_auc", METRIC, "calibration_error")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two modules of noisy features and two views, chosen by a ranking."""
    folder = tmp_path_factory.mktemp("features")
    sweep = Sweep(METRIC, CLASSES, (None, "balanced"), (1.0, 10.0, 100.0), (0.0,))
    results = []
    images, features = images_of(90)
    noise = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    for name, values in (("first", features), ("second", features + noise)):
        file = write_features(folder / f"{name}.h5", images, [values, values[:, ::-1]])
        results.append(screen(file, images, sweep)[0])
    return ModuleComparison(images, results, sweep, seed=0)


def test_rankings_of_modules_views_and_ensemble_are_within_the_parts_of_the_choice(compared):
    labels = compared.images["class_index"].to_numpy()
    parts = choice_parts(labels, compared.images["cluster"].to_numpy())
    board = compared.leaderboard(2)
    probs_of = {result.module: result.chosen.unadjusted for result in compared.results}
    averaged = {result.module: result.averaged.unadjusted for result in compared.results}
    rows = board[board["kind"] == "module"].set_index("module")
    for metric in RANKINGS:
        for name, probs in probs_of.items():
            within = float(metric_values(metric, probs, labels, None, parts))
            assert rows.loc[name, metric] == pytest.approx(within, abs=1e-9)
    pooled = float(metric_values(METRIC, probs_of["first"], labels))
    assert rows.loc["first", METRIC] != pytest.approx(pooled, abs=1e-4)
    for name, probs in averaged.items():
        within = float(metric_values(METRIC, probs, labels, None, parts))
        assert rows.loc[name, f"averaged_{METRIC}"] == pytest.approx(within, abs=1e-9)
    of_ensemble = compared.predictions()["ensemble"].unadjusted
    ensemble = board[board["kind"] == "ensemble"].iloc[0]
    within = float(metric_values(METRIC, of_ensemble, labels, None, parts))
    assert ensemble[METRIC] == pytest.approx(within, abs=1e-9)
    table = compared.evaluator.per_class(CLASSES, "first", compared.predictions()["first"])
    of_class = class_values(average_precision_per_class, probs_of["first"], labels, None, parts)
    np.testing.assert_allclose(table["average_precision"], of_class)


def test_effects_on_a_ranking_are_within_the_parts_of_the_choice(compared):
    labels = compared.images["class_index"].to_numpy()
    parts = choice_parts(labels, compared.images["cluster"].to_numpy())
    effects = compared.effects().set_index("effect")["estimate"]
    names = {"softmax instead of logistic heads": "softmax", "class weights": "class_weights"}
    for effect, key in names.items():
        with_it, without_it = (
            [
                float(metric_values(METRIC, of.predictions[f"{side}_{key}"], labels, None, parts))
                for of in compared.results
            ]
            for side in ("with", "without")
        )
        expected = np.mean(with_it) - np.mean(without_it)
        assert effects[effect] == pytest.approx(expected, abs=1e-9)
