"""Of labels without signal every figure is chance: of a module, of the best, and of the ensemble.

The fits are real. A figure out of fold alone would not be: of these modules the ensemble had 9
points above chance where members were chosen by scores of heads that had seen the other half.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.evaluation import choice_parts
from hubretrain.screening.comparison import ModuleComparison
from hubretrain.screening.screen import screen
from hubretrain.screening.selection import SETTINGS, Outside, outside_of
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import images_of, write_features

N_IMAGES, N_MODULES, N_CLASSES, N_REPETITIONS = 60, 6, 3, 10
L2 = (10.0, 100.0, 1000.0)
CLASSES = ("a", "b", "c")


def figures(folder, seed, metric, group_size):
    """Return the metric of the mean module, the best and the ensemble, and what is uncorrected."""
    rng = np.random.default_rng(seed)
    images, _ = images_of(N_IMAGES, n_folds=5)
    cluster = np.repeat(rng.permutation(N_IMAGES // group_size), group_size)
    images["cluster"] = cluster
    images["class_index"] = np.repeat(np.arange(N_IMAGES // group_size) % N_CLASSES, group_size)
    images["fold"] = choice_parts(images["class_index"].to_numpy(), cluster, n_parts=5)
    sweep = Sweep(metric, CLASSES, (None,), L2, (0.0,), kinds=("softmax",))
    results = []
    for m in range(N_MODULES):
        shared = rng.normal(size=(N_IMAGES, 30))[cluster]
        features = (shared + rng.normal(size=shared.shape)).astype(np.float32)
        file = write_features(folder / f"m{m}.h5", images, [features])
        results.append(screen(file, images, sweep)[0])
        file.unlink()
    comparison = ModuleComparison(images, results, sweep, seed)
    predictions = comparison.predictions()
    ensemble = predictions.pop("ensemble")

    def value(of):
        return comparison.evaluator.resample(metric, of.of(metric)).estimate

    return [
        float(np.mean([value(of) for of in predictions.values()])),
        value(comparison.best()),
        value(ensemble),
        max(result.about["uncorrected"] for result in results),
    ]


@pytest.mark.parametrize(
    ("metric", "group_size"),
    [("accuracy", 1), pytest.param("roc_auc", 2, marks=pytest.mark.slow)],
)
def test_without_signal_module_best_module_and_ensemble_are_at_chance(tmp_path, metric, group_size):
    values = [figures(tmp_path, seed, metric, group_size) for seed in range(N_REPETITIONS)]
    *honest, uncorrected = np.transpose(values)
    chance = 0.5 if metric == "roc_auc" else 1 / N_CLASSES
    for of in honest:
        assert abs(of.mean() - chance) < 2.5 * of.std(ddof=1) / np.sqrt(N_REPETITIONS)
    assert uncorrected.mean() - chance > 5 * uncorrected.std(ddof=1) / np.sqrt(N_REPETITIONS)


def test_heads_that_choose_for_a_half_are_fitted_outside_of_it_in_folds_of_whole_groups():
    images, _ = images_of(120, n_folds=4)
    images["cluster"] = np.arange(120) // 2
    images["class_index"] = np.arange(120) // 2 % 3
    images.loc[:9, "fold"] = -2  # trained on by every fold, so also here
    validated = images["fold"] >= 0
    parts = choice_parts(*(images.loc[validated, c].to_numpy() for c in ("class_index", "cluster")))
    for part in range(2):
        outside = outside_of(images, part)
        expected = [*images.index[~validated], *images.index[validated][parts != part]]
        assert sorted(outside.index) == sorted(expected)
        assert (outside.loc[outside.index < 10, "fold"] < 0).all()
        scored = outside[outside["fold"] >= 0]
        assert scored["fold"].nunique() == 4
        assert (scored.groupby("cluster")["fold"].nunique() == 1).all()
        assert (scored.groupby("class_index")["fold"].nunique() == 4).all()


def test_a_class_too_small_for_folds_of_a_half_is_trained_on_in_all_of_them():
    images, _ = images_of(40, n_folds=2)
    images["class_index"] = [2, 2, 1, 1, 1, 1, *[0] * 34]
    for part in range(2):
        outside = outside_of(images, part)
        fold = outside.groupby("class_index")["fold"]
        assert fold.min().tolist() == [0, 0, -1]
        assert fold.max().tolist() == [1, 1, -1]
    images["class_index"] = [1, *[0] * 39]  # in one half alone
    for part in range(2):
        outside = outside_of(images, part)
        assert outside.loc[outside["class_index"] == 1, "fold"].tolist() == [-1]


def test_every_candidate_of_a_half_is_one_of_all_images(tmp_path):
    # Where the path of all images ends is known from all labels, so no choice may depend on it.
    images, features = images_of(90, n_features=60, signal=0.0)
    file = write_features(tmp_path / "noise.h5", images, [features])
    sweep = Sweep("accuracy", CLASSES, strengths=(0.0,))
    result, _ = screen(file, images, sweep)
    assert np.isfinite(result.chosen_by["nested"]).all()
    with Bottlenecks(file) as bottlenecks:
        for part in range(2):
            of_part = Outside.of_part(bottlenecks, images, sweep, part)
            fitted = set(result.candidates[SETTINGS].itertuples(index=False, name=None))
            assert set(of_part.metrics["accuracy"]) <= fitted
            assert max(of_part.metrics["accuracy"].values()) == result.chosen_by["nested"][1 + part]
            np.testing.assert_array_equal(
                result.predictions["member_within"][of_part.scored], of_part.member
            )
            # What it chooses is judged by its scores out of fold, on the part alone.
            values = of_part.metrics["accuracy"]
            _, _, kind, weight, l2, _ = max(values, key=lambda each: values[each])
            alone = replace(
                sweep,
                kinds=(kind,),
                class_weights=(None if weight == "none" else weight,),
                l2=(l2,),
            )
            expected = screen(file, images, alone)[0].predictions["unadjusted"]
            inside = (
                choice_parts(*(images[c].to_numpy() for c in ("class_index", "cluster"))) == part
            )
            nested = result.predictions["nested_unadjusted"][inside]
            np.testing.assert_allclose(nested, expected[inside], atol=0.02)
    crossfitted = result.predictions["unadjusted"]
    assert np.abs(result.predictions["nested_unadjusted"] - crossfitted).max() > 0.1
