"""Heads against scikit-learn and closed forms: the solver reaches the minimum."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from hubretrain.extraction import CacheOptions
from hubretrain.heads.heads import probabilities
from tests.heads.samples import C, digits, exact, fitted, objective_of


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_every_fold_and_l2_is_as_exact_as_scikit_learn_on_real_features(class_weight):
    features, labels, folds = digits(450)
    path = fitted(
        features,
        labels,
        kind="softmax",
        n_classes=10,
        l2=1 / C,
        folds=folds,
        class_weights=[class_weight],
        patience=None,
    )
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    probs = probabilities(path.out_of_fold, path.kind)
    for i, c in enumerate(C):
        for fold in range(3):
            train, held = folds != fold, folds == fold
            weight = np.ones(10)
            if class_weight == "balanced":
                weight = train.sum() / (10 * np.bincount(labels[train]))
            model = exact("softmax", C=c, class_weight=dict(enumerate(weight)))
            model.fit(scaled[train], labels[train])
            best = objective_of(model, scaled[train], labels[train], 1 / c, weight[labels[train]])
            expected = model.predict_proba(scaled[held])
            loss = log_loss(labels[held], expected, labels=range(10))
            assert abs(path.objective[0, fold, i] / best - 1) < 1e-5
            assert abs(path.validation_loss[0, fold, i] - loss) < 1e-3
            assert np.abs(probs[held, 0, i] - expected).max() < 2e-2
            assert path.converged[0, fold, i]


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_logistic_heads_are_those_of_one_vs_rest(class_weight):
    features, labels, folds = digits(300)
    options = {"kind": "logistic", "n_classes": 10, "folds": folds, "patience": None}
    path = fitted(features, labels, l2=1 / C[1:], class_weights=[class_weight], **options)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    probs = probabilities(path.out_of_fold, path.kind)
    for i, c in enumerate(C[1:]):
        for fold in range(3):
            train, held = folds != fold, folds == fold
            weight = None if class_weight == "none" else class_weight
            model = exact("logistic", C=c, class_weight=weight).fit(scaled[train], labels[train])
            expected = model.predict_proba(scaled[held])
            assert np.abs(probs[held, 0, i] - expected).max() < 2e-2
            loss = log_loss(labels[held], expected, labels=range(10))
            assert abs(path.validation_loss[0, fold, i] - loss) < 1e-3


def test_without_a_penalty_one_binary_feature_gives_the_shares_of_its_two_groups():
    feature = np.repeat([0.0, 1.0], [40, 60])[:, None]
    labels = np.r_[np.repeat([0, 1], [30, 10]), np.repeat([0, 1], [15, 45])]
    for kind in ("softmax", "logistic"):
        path = fitted(feature, labels, kind=kind, n_classes=2, l2=[0], tol=1e-12)
        probs = path.heads.probabilities(np.array([[0.0], [1.0]]))[:, 0, 1]
        np.testing.assert_allclose(probs, [10 / 40, 45 / 60], atol=1e-6)


def test_the_same_input_gives_the_same_bytes():
    features, labels, folds = digits(300)
    options = {"kind": "softmax", "n_classes": 10, "l2": [1e3, 1e2], "folds": folds}
    first, second = (fitted(features, labels, **options) for _ in range(2))
    assert first.heads.weight.tobytes() == second.heads.weight.tobytes()
    assert first.out_of_fold.tobytes() == second.out_of_fold.tobytes()


@pytest.mark.parametrize("n_features", [1, 3, 40, 300])
@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_any_number_of_features_is_fitted_even_more_than_images(n_features, kind):
    features, labels, _ = digits(120)
    features = features[:, 20 : 20 + n_features] if n_features < 300 else features
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    path = fitted(features, labels, kind=kind, n_classes=10, l2=[50.0], tol=1e-9)
    expected = exact(kind, C=1 / 50).fit(scaled, labels).predict_proba(scaled)
    assert np.abs(path.heads.probabilities(features)[:, 0] - expected).max() < 1e-3


def test_two_hundred_classes_are_fitted():
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 200
    features = random.normal(size=(200, 30))[labels] + random.normal(size=(1000, 30))
    scaled = StandardScaler().fit_transform(features)
    path = fitted(features.astype(np.float32), labels, kind="softmax", n_classes=200, l2=[10.0])
    expected = exact("softmax", C=0.1).fit(scaled, labels).predict_proba(scaled)
    assert np.abs(path.heads.probabilities(features)[:, 0] - expected).max() < 1e-2


@pytest.mark.parametrize("n_features", [2, 400])
@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_without_a_penalty_separable_classes_still_end(kind, n_features):
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = np.eye(3, n_features)[labels] * 10 + random.normal(size=(60, n_features)) * 0.1
    path = fitted(features, labels, kind=kind, n_classes=3, l2=[0.0], max_iter=200)
    assert path.iterations.max() <= 200
    assert np.isfinite(path.heads.weight).all()
    assert (path.heads.logits(features)[:, 0].argmax(axis=1) == labels).all()


def test_on_real_cached_features_every_fold_and_l2_is_as_exact_as_scikit_learn(
    real_data, real_models, tmp_path
):
    from hubretrain.bottlenecks import Bottlenecks
    from hubretrain.data.dataset import open_dataset
    from hubretrain.extraction.cache import cache_bottlenecks
    from hubretrain.modules import resolve

    for folder in sorted((real_data / "flowers").iterdir()):
        if folder.is_dir():
            (tmp_path / "flowers" / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:24]:
                (tmp_path / "flowers" / folder.name / image.name).symlink_to(image)
    dataset = open_dataset(tmp_path / "flowers")
    module = resolve(str(real_models / "mobilenet_v2_035_224"))
    (cached,) = cache_bottlenecks(
        dataset, [module], CacheOptions(n_views=1), cache=tmp_path / "cache"
    )
    with Bottlenecks(cached.file) as bottlenecks:
        features = bottlenecks.view(0)[:]
        row_of = {path: i for i, path in enumerate(bottlenecks.paths)}
    chosen = [i for i, path in enumerate(dataset.images["path"]) if path in row_of]
    features = features[[row_of[dataset.images["path"][i]] for i in chosen]]
    labels = dataset.labels[chosen]
    folds = np.arange(len(labels)) % 2
    n_classes = len(dataset.class_names)
    options = {"kind": "softmax", "n_classes": n_classes, "folds": folds, "patience": None}
    path = fitted(features, labels, l2=1 / C[1:3], **options)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    probs = probabilities(path.out_of_fold, path.kind)
    for i, c in enumerate(C[1:3]):
        for fold in range(2):
            train, held = folds != fold, folds == fold
            model = LogisticRegression(C=c, tol=1e-5, max_iter=2000)
            model.fit(scaled[train], labels[train])
            ones = np.ones(train.sum())
            best = objective_of(model, scaled[train], labels[train], 1 / c, ones)
            expected = model.predict_proba(scaled[held])
            loss = log_loss(labels[held], expected, labels=range(n_classes))
            assert abs(path.objective[0, fold, i] / best - 1) < 1e-5
            assert abs(path.validation_loss[0, fold, i] - loss) < 1e-3
            assert np.abs(probs[held, 0, i] - expected).max() < 2e-2
