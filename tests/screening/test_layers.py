"""Features of all layers against those of the last, on features whose worth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.errors import CacheError
from hubretrain.evaluation.evaluator import Evaluator
from hubretrain.screening.screen import screen
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import images_of, write_features

SWEEP = Sweep("accuracy", ("a", "b", "c"), (None,), (1.0, 10.0, 100.0), (0.0,), kinds=("softmax",))


def screened(tmp_path, inner, *, n_images=240, n_views=1, sweep=SWEEP, signal=1.0, n_features=6):
    images, features = images_of(n_images, n_features, signal=signal)
    file = tmp_path / "module.h5"
    many = [features] * n_views
    write_features(file, images, many, inner=None if inner is None else [inner(images)] * n_views)
    return images, file, *screen(file, images, sweep)


def noise(images, n_channels=20, seed=3):
    return np.random.default_rng(seed).normal(size=(len(images), 2 * n_channels)).astype(np.float32)


def informative(images):
    values = noise(images)
    values[np.arange(len(images)), images["class_index"]] += 4
    return values


def effect_of(result, images):
    evaluator = Evaluator(images["class_index"].to_numpy(), images["cluster"].to_numpy())
    pair = result.predictions["with_layers"], result.predictions["without_layers"]
    return evaluator.effect([pair], "accuracy")


def test_an_inner_layer_that_knows_the_classes_is_chosen_and_kept(tmp_path):
    images, file, result, heads = screened(tmp_path, informative)
    assert result.about["chosen"]["layers"] == "all"
    assert result.about["n_features"] == 6 + 40
    assert effect_of(result, images).low > 0.05
    assert heads.deployed.layers == heads.warm_start.layers == ("block/Relu",)
    with Bottlenecks(file) as bottlenecks:
        features = bottlenecks.rows(images["sha256"].tolist(), layers=heads.deployed.layers)
    right = heads.deployed.probabilities(features).argmax(axis=1) == images["class_index"]
    assert right.mean() > 0.9


def test_the_kept_head_without_a_fold_gives_that_fold_its_cross_validated_probabilities(tmp_path):
    sweep = replace(SWEEP, l2=(10.0,), layers=("all",))
    images, file, result, heads = screened(tmp_path, informative, sweep=sweep)
    with Bottlenecks(file) as bottlenecks:
        features = bottlenecks.rows(images["sha256"].tolist(), layers="all")
    fold_0 = images["fold"].to_numpy() == 0
    probs = heads.warm_start.probabilities(features[fold_0])
    np.testing.assert_allclose(probs, result.predictions["unadjusted"][fold_0], atol=1e-4)


def test_the_kept_head_without_a_fold_has_not_seen_its_rows(tmp_path):
    sweep = replace(SWEEP, l2=(10.0,), layers=("all",))
    images, file, _, heads = screened(tmp_path, lambda images: noise(images, 150), sweep=sweep)
    fold_0 = images["fold"].to_numpy() == 0

    def others_in_fold_0(images):  # of the same mean and deviation, which all rows share
        values, random = noise(images, 150), np.random.default_rng(4)
        for column in values.T:
            column[fold_0] = random.permutation(column[fold_0])
        return values

    _, _, _, others = screened(tmp_path / "others", others_in_fold_0, sweep=sweep)
    with Bottlenecks(file) as bottlenecks:
        features = bottlenecks.rows(images["sha256"].tolist(), layers="all")
    probs = [of.warm_start.probabilities(features) for of in (heads, others)]
    np.testing.assert_allclose(probs[0], probs[1], atol=1e-4)
    deployed = [of.deployed.probabilities(features) for of in (heads, others)]
    assert np.abs(deployed[0] - deployed[1]).max() > 0.05


def test_components_that_are_kept_for_networks_change_nothing(tmp_path, monkeypatch):
    sweep = replace(SWEEP, l2=(10.0,))
    images, file, alone, _ = screened(tmp_path, informative, sweep=sweep)
    projections = {}
    screen(file, images, sweep, projections)
    kept = projections["module"]
    again, _ = screen(file, images, sweep, projections)
    assert projections["module"] is kept
    for name, probs in alone.predictions.items():
        np.testing.assert_array_equal(again.predictions[name], probs)
    monkeypatch.setattr("hubretrain.screening.fitting.MEMORY_OF_PROJECTIONS", 0)
    none = {}
    screen(file, images, sweep, none)
    assert none == {}


def test_photographs_that_gain_nothing_lose_nothing(tmp_path):
    images, _, result, _ = screened(tmp_path, noise, n_images=400)
    _, _, alone, _ = screened(tmp_path / "alone", None, n_images=400)
    assert result.about["chosen"]["layers"] == "last"
    evaluator = Evaluator(images["class_index"].to_numpy(), images["cluster"].to_numpy())
    pair = result.chosen.adjusted, alone.chosen.adjusted
    change = evaluator.effect([pair], "accuracy")
    assert change.low <= 0 <= change.high
    assert effect_of(result, images).high < 0.02


def test_layers_that_say_the_same_as_the_last_leave_the_last(tmp_path):
    def same(images):
        return np.tile(images_of(len(images))[1], 2)

    images, _, result, _ = screened(tmp_path, same)
    difference = effect_of(result, images)
    assert difference.low <= 0 <= difference.high
    assert abs(difference.estimate) < 0.02


def test_the_choice_of_layers_is_not_optimistic_where_nothing_tells_the_classes_apart(tmp_path):
    lows, highs = [], []
    for seed in range(4):
        images, features = images_of(150, signal=0.0, seed=seed)
        file = write_features(
            tmp_path / f"{seed}.h5", images, [features], inner=[noise(images, seed=10 + seed)]
        )
        result, _ = screen(file, images, SWEEP)
        evaluator = Evaluator(images["class_index"].to_numpy(), images["cluster"].to_numpy())
        always = np.tile(np.eye(3)[0], (len(images), 1))
        change = evaluator.effect([(result.chosen.adjusted, always)], "accuracy")
        lows.append(change.low)
        highs.append(change.estimate)
    assert max(lows) <= 0
    assert np.mean(highs) <= 0.01


@pytest.mark.parametrize("n_views", [1, 2])
def test_more_features_than_images_and_constant_layers_are_fitted(tmp_path, n_views):
    def inner(images):
        values = noise(images, 120)
        values[:, 40:140] = 7.0
        return values

    _, _, result, heads = screened(tmp_path, inner, n_images=60, n_views=n_views)
    assert set(result.candidates["layers"]) == {"last", "all"}
    for name in ("unadjusted", "member"):
        np.testing.assert_allclose(result.predictions[name].sum(axis=1), 1, rtol=1e-5)
    assert np.isfinite(heads.deployed.weight).all()
    constant = screened(tmp_path / "c", lambda images: np.full((len(images), 8), 3.0, np.float32))
    assert constant[2].about["chosen"]["layers"] == "last"


def test_a_cache_of_the_last_layer_fits_that_and_says_so_where_all_were_asked_for(tmp_path):
    _, file, result, heads = screened(tmp_path, None)
    assert set(result.candidates["layers"]) == {"last"}
    assert result.about["lacks_layers"]
    assert heads.deployed.layers == ()
    images, _ = images_of(240)
    with pytest.raises(CacheError, match="holds features of the last layer alone; run `hubretrain"):
        screen(file, images, replace(SWEEP, layers=("all",)))
