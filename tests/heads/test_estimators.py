from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from hubretrain.heads import estimators
from hubretrain.heads.estimators import LogisticHead, MLPHead, SoftmaxHead


@parametrize_with_checks([SoftmaxHead(), LogisticHead(), MLPHead(n_hidden=32, n_seeds=1)])
def test_the_heads_are_scikit_learn_estimators(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        check(estimator)


def oracle(head, **options):
    exact = LogisticRegression(tol=1e-9, max_iter=10_000, **options)
    return exact if isinstance(head, SoftmaxHead) else OneVsRestClassifier(exact)


@pytest.mark.parametrize("head", [SoftmaxHead(), LogisticHead()], ids=["softmax", "logistic"])
@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_heads_agree_with_scikit_learn_at_every_c(head, load, class_weight):
    features, labels = load(return_X_y=True)
    features = StandardScaler().fit_transform(features)
    for c in (0.001, 1, 100):
        options = {"C": c, "class_weight": class_weight}
        theirs = oracle(head, **options).fit(features, labels)
        ours = head.set_params(**options).fit(features, labels)
        probs, expected = ours.predict_proba(features), theirs.predict_proba(features)
        np.testing.assert_allclose(probs, expected, atol=1e-5)
        assert ours.coef_.shape == (probs.shape[1] if probs.shape[1] > 2 else 1, features.shape[1])


def test_weights_by_class_name_are_those_of_scikit_learn():
    features, labels = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    options = {"C": 0.1, "class_weight": {"setosa": 3.0, "virginica": 0.5}}
    ours = SoftmaxHead(**options).fit(features, names)
    theirs = LogisticRegression(tol=1e-9, max_iter=10_000, **options).fit(features, names)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert (ours.predict(features) == theirs.predict(features)).all()
    assert ours.classes_.tolist() == ["setosa", "versicolor", "virginica"]


def test_heads_work_in_a_grid_search_over_a_pipeline():
    features, labels = load_digits(return_X_y=True)
    features, labels = features[:400], labels[:400]
    grid = {"C": [0.001, 0.01, 1.0]}
    scores = {}
    for head in (SoftmaxHead(tol=1e-8), LogisticRegression(max_iter=2000)):
        name = type(head).__name__.lower()
        search = GridSearchCV(
            make_pipeline(StandardScaler(), head),
            {f"{name}__C": grid["C"]},
            scoring="neg_log_loss",
            cv=3,
        ).fit(features, labels)
        scores[name] = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(scores["softmaxhead"], scores["logisticregression"], atol=1e-3)


def test_heads_work_in_cross_val_predict():
    features, labels = load_iris(return_X_y=True)
    probs = cross_val_predict(LogisticHead(), features, labels, method="predict_proba")
    expected = cross_val_predict(
        OneVsRestClassifier(LogisticRegression(tol=1e-9, max_iter=10_000)),
        features,
        labels,
        method="predict_proba",
    )
    np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_float32_features_are_computed_with_in_float32():
    features, labels = load_digits(return_X_y=True)
    head = SoftmaxHead(C=0.01, tol=1e-7).fit((features / 16).astype(np.float32), labels)
    assert head.coef_.dtype == np.float32
    exact = LogisticRegression(C=0.01, tol=1e-9, max_iter=10_000).fit(features / 16, labels)
    gap = head.predict_proba(features / 16) - exact.predict_proba(features / 16)
    assert np.abs(gap).max() < 1e-3


def test_a_head_that_does_not_converge_warns():
    features, labels = load_digits(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match=r"not converged to tol=1e-10 after 3 passes"):
        SoftmaxHead(max_iter=3).fit(features, labels)


@pytest.mark.parametrize(
    ("head", "labels", "weight", "message"),
    [
        (SoftmaxHead(C=0), [0, 1], None, "C is 0; expected a number above 0"),
        (SoftmaxHead(), [1, 1], None, "y holds 1 class"),
        (SoftmaxHead(), [0, 1], [1, 0], "y holds 1 class with any weight"),
        (SoftmaxHead(), [0, 1], [1, -1], "Negative values in sample_weight"),
    ],
)
def test_what_cannot_be_fitted_is_named(head, labels, weight, message):
    with pytest.raises(ValueError, match=message):
        head.fit(np.eye(2), labels, weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_hidden": 0}, "`n_hidden` is 0; expected at least 1"),
        ({"dropout": 1.0}, r"`dropout` is 1.0; expected \[0, 1\)"),
        ({"learning_rate": 0}, "`learning_rate` is 0; expected above 0"),
        ({"decay": -1}, r"expected one number or more, at least 0"),
    ],
)
def test_networks_that_cannot_be_trained_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MLPHead(**options).fit(np.eye(2), [0, 1])


def test_a_network_gives_the_same_bytes_for_a_seed_and_others_for_another():
    features, labels = load_iris(return_X_y=True)
    first, again, other = (
        MLPHead(n_hidden=8, n_seeds=1, random_state=seed).fit(features, labels).coefs_[0]
        for seed in (0, 0, 1)
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_a_sample_weight_per_feature_is_refused():
    with pytest.raises(ValueError, match=r"sample_weight has shape \(2, 2\); expected \(2,\)"):
        SoftmaxHead().fit(np.eye(2), [0, 1], np.eye(2))


def test_the_documented_examples_run():
    results = doctest.testmod(estimators)
    assert results.attempted > 0
    assert results.failed == 0
