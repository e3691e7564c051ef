"""Heads of images that may have several labels, against scikit-learn's one label at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier

from hubretrain.errors import HeadError
from hubretrain.heads.estimators import LogisticHead, MLPHead, SoftmaxHead
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.inputs import FitInputs
from hubretrain.heads.mlp import MLPFitter, MLPOptions, Network, differentiate
from hubretrain.heads.path import PathFitter
from hubretrain.heads.solver import SolverOptions
from tests.heads.samples import digits, fitted

QUICK = MLPOptions(n_hidden=16, n_seeds=1, n_steps=60, n_epochs=2)
NAMES = ("even", "large", "round", "seven")


def labelled_digits(n_images=600):
    """Real features, and what digits may have in common: some have several labels, some none."""
    features, digit, folds = digits(n_images)
    labels = np.stack([digit % 2 == 0, digit > 4, np.isin(digit, (0, 6, 8, 9)), digit == 7], axis=1)
    return features, labels, folds


def objective(head, features, is_positive, l2, weight):
    """What LogisticRegression minimises, over C, in float64."""
    scores = features @ head.coef_[0] + head.intercept_[0]
    losses = np.logaddexp(0, np.where(is_positive, -scores, scores))
    return weight @ losses + l2 / 2 * (head.coef_**2).sum()


def test_all_labels_folds_and_penalties_have_the_objective_of_one_against_the_rest():
    features, labels, folds = labelled_digits()
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-3)
    features = features.astype(np.float64)
    levels = [1000.0, 30.0]
    path = fitted(
        features,
        labels,
        kind="logistic",
        n_classes=4,
        l2=levels,
        folds=folds,
        class_weights=(None, "balanced"),
        standardize=False,
        patience=None,
        tol=1e-9,
    )
    assert path.heads.multi_label
    for w, class_weight in enumerate((None, "balanced")):
        for f in range(3):
            rows = folds != f
            for i, l2 in enumerate(levels):
                oracle = OneVsRestClassifier(
                    LogisticRegression(
                        C=1 / l2, class_weight=class_weight, tol=1e-9, max_iter=10_000
                    )
                ).fit(features[rows], labels[rows].astype(int))
                total = 0.0
                for k, model in enumerate(oracle.estimators_):
                    y = labels[rows, k]
                    of = {None: (1, 1), "balanced": (1 / (2 * (1 - y.mean())), 1 / (2 * y.mean()))}
                    weight = np.where(y, of[class_weight][1], of[class_weight][0])
                    total += objective(model, features[rows], y, l2, weight)
                assert path.objective[w, f, i] == pytest.approx(total, rel=1e-6)
                validated = folds == f
                probs = expit(path.out_of_fold[validated, w, i])
                expected = oracle.predict_proba(features[validated])
                np.testing.assert_allclose(probs, expected, atol=1e-3)


def test_the_validation_loss_is_the_mean_over_the_labels():
    features, labels, folds = labelled_digits()
    path = fitted(features, labels, kind="logistic", n_classes=4, l2=300.0, folds=folds)
    for f in range(3):
        here = folds == f
        probs = expit(path.out_of_fold[here, 0, 0].astype(np.float64))
        expected = np.mean([log_loss(labels[here, k], probs[:, k]) for k in range(4)])
        assert path.validation_loss[0, f, 0] == pytest.approx(expected, rel=1e-6)


def test_refitting_gives_the_heads_of_all_images():
    features, labels, folds = labelled_digits()
    inputs = FitInputs.checked(features, labels, 4, folds, class_names=NAMES)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=1 << 30)
    fitter = PathFitter(inputs, rows, "logistic", (None, "balanced"), SolverOptions(1e-7))
    fitter.fit_folds(np.array([1000.0, 100.0]), None)
    refitted = fitter.refit([100.0])
    alone = fitted(
        features,
        labels,
        kind="logistic",
        n_classes=4,
        l2=100.0,
        class_weights=(None, "balanced"),
        tol=1e-7,
    )
    assert refitted.multi_label
    assert refitted.class_names == NAMES
    ours, theirs = (heads.probabilities(features) for heads in (refitted, alone.heads))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("class_weight", [None, "balanced", (2.0, 1.0, 3.0)])
def test_a_label_that_all_training_images_have_or_none_is_a_constant(class_weight):
    random = np.random.default_rng(0)
    features, folds = random.normal(size=(60, 4)), np.arange(60) % 3
    labels = np.stack([features[:, 0] > 0, folds == 1, np.ones(60, bool)], axis=1)
    path = fitted(
        features,
        labels,
        kind="logistic",
        n_classes=3,
        l2=[10.0, 1.0, 0.0],
        folds=folds,
        class_weights=[class_weight],
        patience=None,
    )
    probs = expit(path.out_of_fold.astype(np.float64))
    assert np.isfinite(probs).all()
    np.testing.assert_allclose(probs[folds == 1, :, :, 1], 0.5 / 40.5, rtol=1e-5)
    np.testing.assert_allclose(probs[:, :, :, 2], 40 / 40.5, rtol=1e-5)
    assert average_precision_score(labels[:, 0], probs[:, 0, 1, 0]) > 0.9
    assert path.converged.all()


def test_one_label_alone_is_one_problem():
    features, labels, folds = labelled_digits(200)
    path = fitted(features, labels[:, :1], kind="logistic", n_classes=1, l2=100.0, folds=folds)
    wider = fitted(features, labels, kind="logistic", n_classes=4, l2=100.0, folds=folds)
    np.testing.assert_allclose(
        path.out_of_fold[..., 0], wider.out_of_fold[..., 0], atol=0.05, rtol=0.02
    )


def test_softmax_and_indicators_of_another_shape_are_one_sentence():
    features, labels, folds = labelled_digits(60)
    with pytest.raises(HeadError, match="exclude one another; expected logistic"):
        fitted(features, labels, kind="softmax", n_classes=4, l2=1.0, folds=folds)
    with pytest.raises(HeadError, match=r"`labels` has shape \(60, 4\); expected \(n_images, 3\)"):
        FitInputs.checked(features, labels, 3, folds)


def test_more_labels_than_fit_into_memory_are_one_sentence_before_anything_is_fitted():
    features, folds = np.zeros((30, 2000), np.float32), np.arange(30) % 3
    labels = np.ones((30, 9000), bool)
    with pytest.raises(
        HeadError, match=r"9,000 labels .* GB of memory; .* `l2` or `class_weights`"
    ):
        fitted(features, labels, kind="logistic", n_classes=9000, l2=[1.0, 10.0], folds=folds)


def test_gradients_of_sigmoid_outputs_are_differences_of_the_loss():
    random = np.random.default_rng(0)
    network = Network(
        *(random.normal(size=shape) for shape in ((5, 4), (4,), (4, 3), (3,))),
    )
    rows, targets = random.normal(size=(7, 5)), random.integers(2, size=(7, 3)).astype(float)
    weight, kept = random.random((7, 3)), random.integers(2, size=(7, 4)) * 2.0
    _, gradients = differentiate(network, rows, targets, weight, kept)
    for values, gradient in zip(network, gradients, strict=True):
        for at in np.ndindex(values.shape):
            ends = []
            for step in (1e-6, -1e-6):
                values[at] += step
                ends.append(differentiate(network, rows, targets, weight, kept)[0])
                values[at] -= step
            assert gradient[at] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


def networks(features, labels, folds, class_weights=(None,), options=QUICK):
    inputs = FitInputs.checked(features, labels, labels.shape[1], folds)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=1 << 30)
    fitter = MLPFitter(inputs, rows, class_weights, options)
    return fitter.fit_folds(0.1), fitter.refit(0.1)


def test_networks_of_several_labels_score_images_that_they_were_not_fitted_on():
    features, labels, folds = labelled_digits()
    path, refitted = networks(features, labels, folds)
    for f in range(3):
        here = folds == f
        logits = path.heads.logits(features[here])[:, f]
        np.testing.assert_allclose(path.out_of_fold[here, 0, 0], logits, atol=1e-3)
        probs = expit(path.out_of_fold[here, 0, 0].astype(np.float64))
        expected = np.mean([log_loss(labels[here, k], probs[:, k]) for k in range(4)])
        assert path.validation_loss[0, f, 0] == pytest.approx(expected, rel=1e-5)
    assert refitted.multi_label
    probs = expit(path.out_of_fold[:, 0, 0])
    assert average_precision_score(labels, probs) > 0.9
    assert average_precision_score(labels, refitted.probabilities(features)[:, 0]) > 0.95


def test_balanced_networks_give_a_rare_label_higher_probabilities():
    features, labels, folds = labelled_digits()
    options = MLPOptions(n_hidden=64, n_seeds=1)
    path, _ = networks(features, labels, folds, (None, "balanced"), options)
    plain, balanced = expit(path.out_of_fold[:, :, 0, 3]).mean(axis=0)
    assert plain == pytest.approx(labels[:, 3].mean(), abs=0.02)
    assert balanced > plain


def test_networks_take_a_label_without_a_positive_in_training_and_one_that_is_always_on():
    features, labels, folds = labelled_digits(90)
    strange = np.column_stack([labels[:, 0], folds == 1, np.ones(90, bool), np.zeros(90, bool)])
    path, refitted = networks(features, strange, folds, (None, "balanced"))
    probs = expit(path.out_of_fold[:, :, 0])
    assert np.isfinite(probs).all()
    assert (probs[folds == 1, :, 1] < 0.2).all()
    assert (probs[:, :, 2] > 0.8).all()
    assert (probs[:, :, 3] < 0.2).all()
    assert np.isfinite(refitted.probabilities(features)).all()


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_the_estimator_of_several_labels_is_one_against_the_rest_of_scikit_learn(class_weight):
    features, labels = make_multilabel_classification(200, 10, n_classes=4, random_state=0)
    head = LogisticHead(0.1, class_weight=class_weight).fit(features, labels)
    model = LogisticRegression(C=0.1, class_weight=class_weight, tol=1e-9, max_iter=10_000)
    oracle = OneVsRestClassifier(model).fit(features, labels)
    np.testing.assert_allclose(
        head.predict_proba(features), oracle.predict_proba(features), atol=1e-5
    )
    np.testing.assert_array_equal(head.predict(features), oracle.predict(features))
    assert head.predict(features).dtype.kind == oracle.predict(features).dtype.kind
    np.testing.assert_array_equal(head.classes_, oracle.classes_)
    assert head.multilabel_ == oracle.multilabel_
    assert head.score(features, labels) == oracle.score(features, labels)
    scores = head.decision_function(features)
    np.testing.assert_allclose(scores, oracle.decision_function(features), atol=1e-4)


@pytest.mark.parametrize("head", [LogisticHead(0.1), MLPHead(n_hidden=16, n_seeds=1, n_epochs=2)])
def test_estimators_of_several_labels_work_in_searches_and_cross_validation(head):
    features, labels = make_multilabel_classification(150, 10, n_classes=3, random_state=0)
    probs = cross_val_predict(clone(head), features, labels, method="predict_proba", cv=3)
    assert probs.shape == labels.shape
    assert average_precision_score(labels, probs) > labels.mean()
    name = "C" if isinstance(head, LogisticHead) else "decay"
    search = GridSearchCV(clone(head), {name: [0.1, 1.0]}, scoring="average_precision", cv=3)
    assert search.fit(features, labels).best_score_ > labels.mean()


def test_a_softmax_does_not_take_indicators():
    features, labels = make_multilabel_classification(50, 10, n_classes=3, random_state=0)
    with pytest.raises(ValueError, match="1d array"):
        SoftmaxHead().fit(features, labels)
