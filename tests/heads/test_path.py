"""The path over l2: where it ends, what does not change it, and refitting."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from hubretrain.errors import HeadError
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.inputs import FitInputs
from hubretrain.heads.path import PathFitter, l2_of
from hubretrain.heads.solver import SolverOptions
from tests.heads.samples import blobs, digits, exact, fitted


def test_softmax_of_two_classes_takes_twice_the_l2_of_scikit_learn():
    features, labels, _ = blobs(n_classes=2)
    scaled = StandardScaler().fit_transform(features)
    for kind in ("softmax", "logistic"):
        l2 = l2_of(kind, 0.05, 2)
        path = fitted(features, labels, kind=kind, n_classes=2, l2=[l2], tol=1e-13)
        expected = exact("softmax", C=0.05).fit(scaled, labels).predict_proba(scaled)
        np.testing.assert_allclose(path.heads.probabilities(features)[:, 0], expected, atol=1e-6)


def test_a_path_ends_once_its_validation_loss_rises():
    features, labels, folds = blobs(300, 12)
    options = {"kind": "softmax", "n_classes": 3, "folds": folds}
    l2 = np.logspace(4, -2, 7)
    whole = fitted(features, labels, l2=l2, patience=None, **options)
    short = fitted(features, labels, l2=l2, **options)
    pooled = whole.validation_loss[0].mean(axis=0)
    last = int(np.argmax(np.diff(pooled) > 0)) + 1
    assert 1 < last < len(l2) - 1
    assert not whole.stopped_early.any()
    assert short.stopped_early[0, 0].tolist() == [False] * (last + 1) + [True] * (6 - last)
    np.testing.assert_array_equal(
        short.out_of_fold[:, :, : last + 1], whole.out_of_fold[:, :, : last + 1]
    )
    assert np.isnan(short.out_of_fold[:, :, last + 1 :]).all()
    assert np.isnan(short.objective[..., last + 1 :]).all()


def fitter_of(features, labels, folds):
    inputs = FitInputs.checked([features], labels, int(labels.max()) + 1, folds)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=1 << 28)
    return PathFitter(inputs, rows, "softmax", (None,), SolverOptions())


def weak_signal(n_images, n_factors, strength, seed):
    """Return images whose class lies where few of their features vary, below strong factors."""
    rng = np.random.default_rng(seed)
    labels, folds = np.arange(n_images) % 2, np.arange(n_images) // 2 % 5
    factors = rng.normal(size=(n_images, n_factors)) @ rng.normal(size=(n_factors, 300))
    sign = np.sign(rng.normal(size=300)) * (2 * labels - 1)[:, None]
    noise = strength * rng.normal(size=(n_images, 300))
    return (
        (factors / np.sqrt(n_factors) + noise + strength * sign).astype(np.float32),
        labels,
        folds,
    )


def test_a_path_does_not_end_before_the_best_of_another_criterion():
    reached, whole = [], []
    for seed in range(3):
        features, labels, folds = weak_signal(120, 60, 0.04, seed)
        l2 = np.logspace(5, 0, 11)

        def accuracy(probs, labels=labels):
            return (probs.argmax(axis=1) == labels).mean()

        def criterion(probs, accuracy=accuracy):
            return -4 * np.sqrt(120) * accuracy(probs)

        fitter = fitter_of(features, labels, folds)
        of_patience = fitter.fit_folds(l2, 2, criterion=criterion)
        of_all = fitter_of(features, labels, folds).fit_folds(l2, None)
        for path, best in ((of_patience, reached), (of_all, whole)):
            n_fitted = int((~path.stopped_early[0, 0]).sum())
            best.append(max(accuracy(path.out_of_fold[:, 0, i]) for i in range(n_fitted)))
    # What counts as a gain is half a standard error: 1 / 4 / sqrt(120).
    assert np.mean(reached) > np.mean(whole) - 0.25 / np.sqrt(120)


def test_a_path_goes_on_beyond_an_end_where_it_is_best():
    features, labels, folds = weak_signal(200, 5, 0.5, 0)  # separable: weak penalties are best
    fitter, l2 = fitter_of(features, labels, folds), np.array([1e5, 1e4])
    path = fitter.fit_folds(l2, 2, beyond=(1e2, 1e3, 1e6))
    assert path.l2.tolist() == [1e5, 1e4, 1e2, 1e3, 1e6]
    assert path.stopped_early[0, 0].tolist() == [False, False, False, False, True]
    direct = fitter_of(features, labels, folds).fit_folds(path.l2[:4], None)
    np.testing.assert_array_equal(path.objective[..., :4], direct.objective)
    noise = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    fitter = fitter_of(noise, labels, folds)
    path = fitter.fit_folds(np.array([1e2, 1e1, 1.0]), 2, beyond=(1e-1, 1e3, 1e4))
    assert path.stopped_early[0, 0].tolist() == [False, False, False, True, False, False]
    loss = path.validation_loss.mean(axis=(0, 1))
    assert loss[5] < loss[4] < loss[0]
    direct = fitter_of(noise, labels, folds).fit_folds(np.array([1e4, 1e3]), None)
    np.testing.assert_allclose(path.objective[0, :, [5, 4]].T, direct.objective[0], rtol=1e-6)


def test_a_path_covers_its_reach_wherever_its_best_is():
    features, labels, folds = weak_signal(200, 5, 0.5, 0)
    noise = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    l2, beyond = np.array([1e2, 1e1, 1.0]), (1e-2, 1e-1, 1e3, 1e4)
    for of, reach in ((features, (1e-1, 1e3)), (noise, (1e-2, 1e3)), (noise, (1e2, 1e4))):
        free = fitter_of(of, labels, folds).fit_folds(l2, 1, beyond=beyond)
        path = fitter_of(of, labels, folds).fit_folds(l2, 1, beyond=beyond, reach=reach)
        is_within = (path.l2 >= reach[0]) & (path.l2 <= reach[1])
        assert not path.stopped_early[..., is_within].any()
        assert not path.stopped_early[~free.stopped_early].any()
    inputs = FitInputs.checked([noise], labels, 2, folds)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=1 << 28)
    fitter = PathFitter(inputs, rows, "softmax", (None, "balanced"), SolverOptions())
    path = fitter.fit_folds(l2, 1, beyond=beyond, reach=[[1e2, 1e-2], [1e2, 1e2]])
    assert path.stopped_early[:, 0, 4].tolist() == [True, False]


def test_the_order_of_l2_does_not_matter():
    features, labels, folds = blobs()
    options = {"kind": "softmax", "n_classes": 3, "folds": folds, "patience": None}
    falling = fitted(features, labels, l2=[100.0, 10.0, 1.0], **options)
    mixed = fitted(features, labels, l2=[1.0, 100.0, 10.0, 1.0], **options)
    np.testing.assert_array_equal(mixed.objective, falling.objective[:, :, [2, 0, 1, 2]])
    np.testing.assert_array_equal(mixed.out_of_fold, falling.out_of_fold[:, :, [2, 0, 1, 2]])


def test_class_weights_fitted_together_are_those_fitted_alone():
    features, labels, folds = blobs(91)
    options = {"kind": "softmax", "n_classes": 3, "l2": [30.0, 3.0], "folds": folds, "tol": 1e-12}
    weights = [None, "balanced", {0: 2.0}, [1.0, 2.0, 3.0]]
    together = fitted(features, labels, class_weights=weights, patience=None, **options)
    for w, weight in enumerate(weights):
        alone = fitted(features, labels, class_weights=[weight], patience=None, **options)
        np.testing.assert_allclose(together.objective[w], alone.objective[0], rtol=1e-9)
    assert together.class_weights == ("none", "balanced", "0: 2", "0: 1, 1: 2, 2: 3")


def test_refitting_gives_the_head_of_all_folds():
    features, labels, folds = digits(300)
    options = {"kind": "softmax", "n_classes": 10, "tol": 1e-9}
    l2 = [1e4, 1e3, 1e2, 1e1, 1]
    inputs = FitInputs.checked(features, labels, 10, folds)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=1 << 30)
    weights = [None, "balanced"]
    fitter = PathFitter(inputs, rows, "softmax", weights, SolverOptions(tol=options["tol"]))
    fitter.fit_folds(np.array(l2), 1)
    refitted = fitter.refit([3e3, 1e1])
    expected = fitted(features, labels, l2=[3e3, 1e1], class_weights=weights, **options).heads
    assert refitted.settings["l2"].tolist() == [3e3, 1e1] * 2
    assert refitted.settings["fold"].tolist() == [-1] * 4
    assert refitted.settings["class_weight"].tolist() == ["none"] * 2 + ["balanced"] * 2
    np.testing.assert_allclose(
        refitted.probabilities(features), expected.probabilities(features), atol=2e-3
    )


def test_heads_of_all_images_are_not_refitted():
    features, labels, _ = blobs()
    inputs = FitInputs.checked(features, labels, 3)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=1 << 30)
    fitter = PathFitter(inputs, rows, "softmax", [None], SolverOptions())
    fitter.fit_folds(np.array([1.0]), 1)
    with pytest.raises(HeadError, match="There are no folds to refit heads of"):
        fitter.refit([1.0])
