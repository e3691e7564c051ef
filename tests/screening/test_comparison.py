"""The comparison of modules: each figure is of models, none of a mixture of two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hubretrain.evaluation import (
    at_temperature,
    average_precision_per_class,
    calibrate,
    choice_parts,
)
from hubretrain.evaluation.intervals import difference, group_resamples, interval, resample
from hubretrain.evaluation.parts import class_values, metric_values
from hubretrain.heads import greedy_ensemble
from hubretrain.screening.comparison import ModuleComparison
from hubretrain.screening.screen import screen
from hubretrain.screening.selection import Outside, reach_of
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import images_of, write_features

CLASSES = ("a", "b", "c")
METRIC = "mean_average_precision"
SEED = 3
RANKINGS = ("roc_auc", METRIC, "calibration_error")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two modules of noisy features and two views, chosen by a ranking."""
    folder = tmp_path_factory.mktemp("features")
    sweep = Sweep(METRIC, CLASSES, (None, "balanced"), (1.0, 10.0, 100.0), (0.0,))
    results = []
    images, features = images_of(90, group_size=2)
    # Another view of the same classes, so that an ensemble is of both.
    other = (
        np.random.default_rng(1).normal(size=features.shape)
        + 0.9 * np.eye(6)[images["class_index"]]
    )
    for name, values in (("first", features), ("second", other.astype(np.float32))):
        file = write_features(folder / f"{name}.h5", images, [values, values[:, ::-1]])
        results.append(screen(file, images, sweep)[0])
    return ModuleComparison(images, results, sweep, SEED)


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
    effects = compared.effects().set_index("effect")
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
        assert effects.loc[effect, "estimate"] == pytest.approx(expected, abs=1e-9)
    assert effects["low"].lt(effects["estimate"]).all()
    # All of them hold together: each alone with 1 - 0.05 / n, by groups, on one draw.
    first, second = (of.predictions for of in compared.results)
    groups = compared.images["cluster"].to_numpy()
    weights = group_resamples(groups, seed=SEED)
    rows = [
        [
            resample(METRIC, of[f"{side}_softmax"], labels, groups, weights, parts)
            for of in (first, second)
        ]
        for side in ("with", "without")
    ]
    mean = [
        pair[0]._replace(
            estimate=np.mean([row.estimate for row in pair]),
            per_resample=np.mean([row.per_resample for row in pair], axis=0),
        )
        for pair in rows
    ]
    change = difference(*mean, confidence=1 - 0.05 / len(effects))
    row = effects.loc["softmax instead of logistic heads"]
    assert (row["low"], row["high"]) == pytest.approx((change.low, change.high), abs=1e-9)
    assert row["p"] == pytest.approx(min(1, len(effects) * change.p))


def test_intervals_are_at_95_percent_of_groups_that_the_seed_draws(compared):
    labels, groups = (compared.images[name].to_numpy() for name in ("class_index", "cluster"))
    parts, row = (
        choice_parts(labels, groups),
        compared.leaderboard(2).set_index("module").loc["first"],
    )
    probs = compared.results[0].chosen
    for metric in ("log_loss", "balanced_accuracy", METRIC):
        weights = group_resamples(groups, n_resamples=1000, seed=SEED)
        of = resample(metric, probs.of(metric), labels, groups, weights, parts)
        of_deployed = resample(metric, probs.deployed.of(metric), labels, groups, weights)
        expected = interval(of, 0.95, of_deployed)
        assert [row[f"{metric}{end}"] for end in ("", "_low", "_high")] == pytest.approx(expected)


def test_members_for_a_half_are_chosen_by_scores_of_heads_of_the_other_half_alone(compared):
    labels, groups = (compared.images[name].to_numpy() for name in ("class_index", "cluster"))
    parts, ensemble = choice_parts(labels, groups), compared.predictions()["ensemble"]
    scores = {kind: {of.module: of.predictions[kind] for of in compared.results}
              for kind in ("member", "member_within")}  # fmt: skip

    def chosen_by(kind, images):
        return greedy_ensemble(
            {name: probs[images] for name, probs in scores[kind].items()},
            labels[images],
            METRIC,
            (0.0,),
        )

    for part in range(2):
        here = parts == part
        members = {name: probs[here] for name, probs in scores["member"].items()}
        is_scored = np.isfinite(scores["member_within"]["first"][:, 0])
        expected = chosen_by("member_within", ~here & is_scored).mean(members)
        np.testing.assert_allclose(ensemble.unadjusted[here], expected, atol=1e-7)
        np.testing.assert_array_equal(ensemble.adjusted[here], ensemble.unadjusted[here])
        for kind, images in (("member", ~here), ("member_within", is_scored)):
            other = chosen_by(kind, images).mean(members)  # what would have seen labels of the half
            assert np.abs(other - expected).max() > 1e-3


def test_the_best_module_for_a_half_is_chosen_by_what_was_fitted_without_it(compared):
    values = {
        "first": {"nested": [0.9, 0.1, 0.9], "chosen": [0.1, 0.9, 0.1]},
        "second": {"nested": [0.5] * 3, "chosen": [0.5] * 3},
    }
    results = [
        replace(
            of, chosen_by={**of.chosen_by, **{k: np.array(v) for k, v in values[of.module].items()}}
        )
        for of in compared.results
    ]
    comparison = ModuleComparison(compared.images, results, compared.sweep, SEED)
    first, second = (of.predictions["nested_unadjusted"] for of in results)
    labels, groups = (compared.images[name].to_numpy() for name in ("class_index", "cluster"))
    is_first = choice_parts(labels, groups) == 1  # without part 1 the first is the better
    expected = np.where(is_first[:, None], first, second)
    np.testing.assert_array_equal(comparison.best().unadjusted, expected)


def test_the_ensemble_is_calibrated_on_its_own_probabilities_by_groups(compared):
    labels, groups = (compared.images[name].to_numpy() for name in ("class_index", "cluster"))
    probs = {of.module: of.predictions["ensemble_member"] for of in compared.results}
    own = compared.ensemble.mean(probs)
    assert len(compared.ensemble.weights) == 2
    assert compared.ensemble.calibration == calibrate(own, labels, groups)
    temperature = compared.ensemble.calibration.temperature
    assert temperature != pytest.approx(calibrate(own, labels).temperature, rel=1e-4)
    deployed = compared.deployed()
    np.testing.assert_allclose(deployed["ensemble"], at_temperature(own, temperature), rtol=1e-5)
    for of in compared.results:
        expected = at_temperature(of.predictions["deployed"], of.calibration.temperature)
        np.testing.assert_allclose(deployed[of.module], expected, rtol=1e-5)


def test_a_path_reaches_from_the_least_to_the_largest_l2_that_was_fitted_without_a_part():
    ends = [[[3.0, 0.1], [30.0, 10.0]], [[1.0, 0.3], [100.0, 3.0]], [[2.0, 0.2], [50.0, 1.0]]]
    nothing = np.zeros(0)
    parts = [Outside({}, nothing, nothing, {("last", 0): np.array(end)}) for end in ends]
    (reach,) = reach_of(parts).values()
    assert reach.tolist() == [[1.0, 0.1], [100.0, 10.0]]
