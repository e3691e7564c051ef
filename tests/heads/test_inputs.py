"""Inputs of a fit: weights of images, images that take no part, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.errors import HeadError
from tests.heads.samples import blobs, fitted


def test_sample_weights_count_like_repeated_images():
    features, labels, folds = blobs()
    times = np.arange(90) % 4
    options = {"kind": "softmax", "n_classes": 3, "l2": [3.0], "class_weights": ["balanced"]}
    options |= {"standardize": False, "tol": 1e-13}
    weighted = fitted(features, labels, folds=folds, sample_weight=times, **options)
    repeated = fitted(
        np.repeat(features, times, axis=0),
        np.repeat(labels, times),
        folds=np.repeat(folds, times),
        **options,
    )
    np.testing.assert_allclose(weighted.heads.weight, repeated.heads.weight, atol=1e-6)
    np.testing.assert_allclose(weighted.validation_loss, repeated.validation_loss, atol=1e-6)


def test_images_below_fold_0_take_no_part_at_all():
    features, labels, folds = blobs()
    without = np.arange(90) < 80
    dirty, unknown = features.copy(), labels.copy()
    dirty[~without], unknown[~without] = np.nan, -1
    options = {"kind": "softmax", "n_classes": 3, "l2": [10.0, 1.0], "patience": None}
    partial = fitted(dirty, unknown, folds=np.where(without, folds, -1), **options)
    alone = fitted(features[without], labels[without], folds=folds[without], **options)
    np.testing.assert_array_equal(partial.heads.weight, alone.heads.weight)
    np.testing.assert_array_equal(partial.out_of_fold[without], alone.out_of_fold)
    assert np.isnan(partial.out_of_fold[~without]).all()


def test_an_image_weighs_the_same_however_many_views_it_has():
    features, labels, folds = blobs()
    options = {"kind": "softmax", "n_classes": 3, "l2": [5.0], "folds": folds, "tol": 1e-13}
    single = fitted(features, labels, **options)
    rows = np.r_[np.arange(90), np.arange(0, 90, 2), np.full(3, -1)]
    stacked = np.r_[features, features[::2], np.full((3, 5), np.nan)]
    uneven = fitted(stacked, labels, rows=rows, standardize=True, **options)
    assert single.objective.shape == uneven.objective.shape == (1, 3, 1)
    triple = fitted([features] * 3, labels, **options)
    np.testing.assert_allclose(single.heads.weight, triple.heads.weight, atol=1e-6)
    np.testing.assert_allclose(single.objective, triple.objective, rtol=1e-9)


def test_an_absent_class_is_named_with_its_fold():
    features, labels, _ = blobs()
    options = {"kind": "softmax", "n_classes": 3, "l2": [1.0], "class_names": ["cat", "dog", "owl"]}
    folds = np.where(labels == 1, 2, np.arange(90) // 3 % 3)
    with pytest.raises(HeadError, match="Class dog has no training image when fold 2 is left out"):
        fitted(features, labels, folds=folds, **options)
    with pytest.raises(HeadError, match="Class owl has no training image at all"):
        fitted(features[labels < 2], labels[labels < 2], **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l2": []}, r"`l2` is \[\]; expected one number or more"),
        ({"l2": [-1.0]}, r"`l2` is \[-1.0\]; .* at least 0"),
        ({"labels": np.full(90, 3)}, "`labels` run from 3 to 3; expected 0 to 2"),
        ({"folds": np.zeros(80)}, r"`folds` has shape \(80,\); expected \(90,\)"),
        ({"sample_weight": np.full(90, -1)}, "`sample_weight` holds negative values"),
        ({"class_weights": ["heavy"]}, "`class_weight` is 'heavy'; expected none, balanced, or 3"),
        ({"rows": np.arange(80)}, "`features` has 90 rows and `rows` names the images of 80"),
        ({"rows": np.zeros(90)}, "89 of 90 images have no feature row"),
        ({"folds": np.full(90, -1)}, "`folds` excludes every image"),
        ({"kind": "ridge"}, "`kind` is 'ridge'; expected softmax or logistic"),
    ],
)
def test_what_cannot_be_fitted_is_named(changes, message):
    features, labels, folds = blobs()
    options = {"labels": labels, "kind": "softmax", "n_classes": 3, "l2": [1.0], "folds": folds}
    options |= changes
    with pytest.raises(HeadError, match=message):
        fitted(features, options.pop("labels"), **options)
