"""Out-of-fold scores: of the right images, views and heads."""

from __future__ import annotations

import numpy as np

from hubretrain.heads.heads import probabilities
from tests.heads.samples import blobs, digits, fitted


def test_without_weights_the_probabilities_are_the_class_shares():
    features, labels, folds = blobs()
    labels = np.minimum(labels, np.where(np.arange(90) % 2, 2, 1))
    path = fitted(features, labels, kind="softmax", n_classes=3, l2=[1e9], folds=folds)
    for fold in range(3):
        share = np.bincount(labels[folds != fold]) / (folds != fold).sum()
        probs = probabilities(path.out_of_fold, path.kind)[folds == fold, 0, 0]
        np.testing.assert_allclose(probs, np.tile(share, (len(probs), 1)), atol=1e-4)


def test_heads_score_raw_features_as_they_did_out_of_fold():
    features, labels, folds = digits(200)
    path = fitted(features, labels, kind="logistic", n_classes=10, l2=[1e4, 1e3], folds=folds)
    logits = path.heads.logits(features).reshape(200, 1, 3, 2, 10)
    for fold in range(3):
        held = folds == fold
        np.testing.assert_allclose(logits[held, :, fold], path.out_of_fold[held], atol=1e-4)
    assert path.heads.settings["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    assert path.heads.settings["l2"].tolist() == [1e4, 1e3] * 3


def test_views_of_one_image_never_straddle_folds():
    features, labels, folds = blobs()
    views = [features, features + 0.3, features - 0.2]
    options = {"kind": "softmax", "n_classes": 3, "l2": [10.0], "standardize": False}
    before = fitted(views, labels, folds=folds, **options)
    changed = [view.copy() for view in views]
    for view in changed:  # the mean stays, so that only training on them could show
        view[folds == 0] = 2 * view[folds == 0].mean(axis=0) - view[folds == 0]
    after = fitted(changed, labels, folds=folds, **options)
    same = np.abs(before.heads.weight - after.heads.weight).max(axis=(0, 2))
    assert same[0] < 1e-4
    assert (same[1:] > 1e-2).all()


def test_out_of_fold_is_of_view_0_and_can_be_averaged_over_views():
    features, labels, folds = blobs()
    views = np.stack([features, features + 1, features - 3])
    path = fitted(
        views, labels, kind="softmax", n_classes=3, l2=[10.0], folds=folds, mean_over_views=True
    )
    each = np.stack([path.heads.logits(view) for view in views])
    for fold in range(3):
        held = folds == fold
        first, mean = path.out_of_fold[held, 0, 0], path.out_of_fold_mean[held, 0, 0]
        np.testing.assert_allclose(first, each[0, held, fold], atol=1e-4)
        np.testing.assert_allclose(mean, each[:, held, fold].mean(axis=0), atol=1e-4)
