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
