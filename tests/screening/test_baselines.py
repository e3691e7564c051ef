"""The references against scikit-learn's."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hubretrain.heads.features import FeatureBlocks
from hubretrain.screening import baselines
from hubretrain.screening.baselines import majority_class, nearest_neighbour, prevalences


def blobs(n_images=240):
    rng = np.random.default_rng(0)
    labels = rng.choice(3, n_images, p=[0.6, 0.3, 0.1])
    raw = rng.normal(size=(n_images, 6)) + 2 * np.eye(6)[labels]
    return raw, labels, np.arange(n_images) % 4


def rows_of(raw):
    return FeatureBlocks([raw], np.arange(len(raw)), standardize=True, memory=1 << 30)


def test_the_nearest_neighbour_is_that_of_scikit_learn_among_the_other_folds(monkeypatch):
    monkeypatch.setattr(baselines, "BLOCK", 50)
    raw, labels, folds = blobs()
    said = nearest_neighbour(rows_of(raw), labels, folds, 3)
    scaled = StandardScaler().fit_transform(raw)
    for fold in range(4):
        model = KNeighborsClassifier(1, metric="cosine").fit(
            scaled[folds != fold], labels[folds != fold]
        )
        expected = model.predict(scaled[folds == fold])
        np.testing.assert_array_equal(said[folds == fold].argmax(axis=1), expected)


def test_an_image_that_every_fold_trains_on_is_no_neighbour_of_itself():
    raw, labels, folds = blobs()
    folds = np.where(folds == 0, 0, -1)
    said = nearest_neighbour(rows_of(raw), labels, folds, 3)
    assert (said[folds == -1].argmax(axis=1) != labels[folds == -1]).any()


def test_too_many_images_to_compare_all_pairs_get_no_neighbours(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_IMAGES", 100)
    raw, labels, folds = blobs()
    assert nearest_neighbour(rows_of(raw), labels, folds, 3) is None


def test_the_majority_is_that_of_the_other_folds():
    labels, folds = np.array([0, 0, 0, 1, 1, 1, 1, 2]), np.array([0, 0, 0, 1, 1, -1, 1, 1])
    said = majority_class(labels, folds, 3)
    np.testing.assert_allclose(said[0], [0, 4 / 5, 1 / 5])
    np.testing.assert_allclose(said[3], [3 / 4, 1 / 4, 0])
    np.testing.assert_array_equal(said[5], 0)


def test_the_nearest_neighbour_of_several_labels_is_that_of_scikit_learn():
    raw, labels, folds = blobs()
    several = np.stack([labels == 0, labels > 0, raw[:, 5] > 0], axis=1)
    found = nearest_neighbour(rows_of(raw), several, folds, 3)
    scaled = StandardScaler().fit_transform(raw)
    for fold in range(4):
        model = KNeighborsClassifier(1, metric="cosine").fit(
            scaled[folds != fold], several[folds != fold]
        )
        np.testing.assert_array_equal(found[folds == fold], model.predict(scaled[folds == fold]))


def test_prevalences_are_the_share_of_each_label_for_every_image():
    labels = np.array([[True, False], [True, True], [False, False], [True, False]])
    np.testing.assert_array_equal(prevalences(labels), np.tile([0.75, 0.25], (4, 1)))
