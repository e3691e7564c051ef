"""Fitting many heads: against scikit-learn, closed forms and finite differences."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hubretrain.errors import HeadError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.heads import ROLES, Head, ModuleHeads
from hubretrain.heads.losses import HeadLosses
from hubretrain.heads.path import fit_path, l2_of
from hubretrain.heads.solver import Objective

C = np.logspace(-4, -1, 4)


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are fastest on one thread, above all while others use the machine."""
    with threadpool_limits(1):
        yield


def digits(n_images=600):
    """Real features: scanned digits' pixels, and products of neighbours, 300 in all."""
    pixels, labels = load_digits(return_X_y=True)
    products = [pixels[:, :-step] * pixels[:, step:] for step in (1, 8, 9, 3)]
    features = np.hstack([pixels, *products])[:n_images, :300]
    folds = np.arange(n_images) // 10 % 3
    return features.astype(np.float32), labels[:n_images], folds


def blobs(n_images=90, n_features=5, n_classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n_images) % n_classes
    centres = random.normal(size=(n_classes, n_features))
    features = centres[labels] + random.normal(size=(n_images, n_features)) * 1.5
    return features * 3 + 7, labels, np.arange(n_images) // n_classes % 3


def exact(kind, **options):
    one = LogisticRegression(tol=1e-8, max_iter=20_000, **options)
    return one if kind == "softmax" else OneVsRestClassifier(one)


def objective_of(model, features, labels, l2, weight):
    """What a softmax model of scikit-learn minimises, over C, in float64."""
    likely = model.predict_proba(features)[np.arange(len(labels)), labels]
    return -(weight * np.log(likely)).sum() + l2 / 2 * (model.coef_**2).sum()


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_every_fold_and_l2_is_as_exact_as_scikit_learn_on_real_features(class_weight):
    features, labels, folds = digits(450)
    path = fit_path(
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
    said = path.out_of_fold_probabilities()
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
            assert np.abs(said[held, 0, i] - expected).max() < 2e-2
            assert path.converged[0, fold, i]


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_logistic_heads_are_those_of_one_vs_rest(class_weight):
    features, labels, folds = digits(300)
    options = {"kind": "logistic", "n_classes": 10, "folds": folds, "patience": None}
    path = fit_path(features, labels, l2=1 / C[1:], class_weights=[class_weight], **options)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    said = path.out_of_fold_probabilities()
    for i, c in enumerate(C[1:]):
        for fold in range(3):
            train, held = folds != fold, folds == fold
            weight = None if class_weight == "none" else class_weight
            model = exact("logistic", C=c, class_weight=weight).fit(scaled[train], labels[train])
            expected = model.predict_proba(scaled[held])
            assert np.abs(said[held, 0, i] - expected).max() < 2e-2
            loss = log_loss(labels[held], expected, labels=range(10))
            assert abs(path.validation_loss[0, fold, i] - loss) < 1e-3


def problems_of(kind, labels, folds, random):
    n_problems, n_classes = 4, 3
    return HeadLosses(
        kind,
        labels,
        random.uniform(0.5, 2, len(labels)),
        folds,
        random.uniform(0.5, 2, (n_problems, n_classes)),
        np.array([0, 1, -1, 2]),
        np.array([0, 1, 2, 1]),
    )


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_gradient_and_hessian_are_those_of_finite_differences(kind):
    features, labels, folds = blobs()
    random = np.random.default_rng(1)
    rows = FeatureBlocks([features], np.arange(len(labels)), standardize=True, memory=1 << 20)
    problems = problems_of(kind, labels, folds, random)
    objective = Objective(rows, problems, *rows.eigenbasis())
    which = np.arange(len(problems))
    place = random.normal(size=(len(problems), problems.n_outputs, 6))
    here = objective.at(place, 2.0, which)
    hessian = objective.hessian(place, 2.0, which)
    size, step = problems.n_outputs * 6, 1e-5
    for unknown in range(size):
        k, j = divmod(unknown, 6)
        low, high = place.copy(), place.copy()
        low[:, k, j] -= step
        high[:, k, j] += step
        below, above = objective.at(low, 2.0, which), objective.at(high, 2.0, which)
        slope = (above.value - below.value) / (2 * step)
        np.testing.assert_allclose(here.gradient[:, k, j], slope, rtol=1e-6, atol=1e-6)
        bend = (above.gradient - below.gradient).reshape(len(problems), size) / (2 * step)
        # Biases carry an extra bend along the direction that changes nothing.
        extra = hessian[:, unknown] - bend
        extra.reshape(len(problems), -1, 6)[..., 5] -= extra.reshape(len(problems), -1, 6)[
            ..., 5
        ].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(extra, 0, atol=1e-5)


def test_without_weights_the_probabilities_are_the_class_shares():
    features, labels, folds = blobs()
    labels = np.minimum(labels, np.where(np.arange(90) % 2, 2, 1))
    path = fit_path(features, labels, kind="softmax", n_classes=3, l2=[1e9], folds=folds)
    for fold in range(3):
        share = np.bincount(labels[folds != fold]) / (folds != fold).sum()
        found = path.out_of_fold_probabilities()[folds == fold, 0, 0]
        np.testing.assert_allclose(found, np.tile(share, (len(found), 1)), atol=1e-4)


def test_without_a_penalty_one_binary_feature_gives_the_shares_of_its_two_groups():
    feature = np.repeat([0.0, 1.0], [40, 60])[:, None]
    labels = np.r_[np.repeat([0, 1], [30, 10]), np.repeat([0, 1], [15, 45])]
    for kind in ("softmax", "logistic"):
        path = fit_path(feature, labels, kind=kind, n_classes=2, l2=[0], tol=1e-12)
        found = path.heads.probabilities(np.array([[0.0], [1.0]]))[:, 0, 1]
        np.testing.assert_allclose(found, [10 / 40, 45 / 60], atol=1e-6)


def test_softmax_of_two_classes_takes_twice_the_l2_of_scikit_learn():
    features, labels, _ = blobs(n_classes=2)
    scaled = StandardScaler().fit_transform(features)
    for kind in ("softmax", "logistic"):
        l2 = l2_of(kind, 0.05, 2)
        path = fit_path(features, labels, kind=kind, n_classes=2, l2=[l2], tol=1e-13)
        expected = exact("softmax", C=0.05).fit(scaled, labels).predict_proba(scaled)
        np.testing.assert_allclose(path.heads.probabilities(features)[:, 0], expected, atol=1e-6)


def test_sample_weights_count_like_repeated_images():
    features, labels, folds = blobs()
    times = np.arange(90) % 4
    options = {"kind": "softmax", "n_classes": 3, "l2": [3.0], "class_weights": ["balanced"]}
    options |= {"standardize": False, "tol": 1e-13}
    weighted = fit_path(features, labels, folds=folds, sample_weight=times, **options)
    repeated = fit_path(
        np.repeat(features, times, axis=0),
        np.repeat(labels, times),
        folds=np.repeat(folds, times),
        **options,
    )
    np.testing.assert_allclose(weighted.heads.weight, repeated.heads.weight, atol=1e-6)
    np.testing.assert_allclose(weighted.validation_loss, repeated.validation_loss, atol=1e-6)


def test_the_heads_say_of_raw_features_what_was_said_out_of_fold():
    features, labels, folds = digits(200)
    path = fit_path(features, labels, kind="logistic", n_classes=10, l2=[1e4, 1e3], folds=folds)
    said = path.heads.logits(features).reshape(200, 1, 3, 2, 10)
    for fold in range(3):
        held = folds == fold
        np.testing.assert_allclose(said[held, :, fold], path.out_of_fold[held], atol=1e-4)
    assert path.heads.facts["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    assert path.heads.facts["l2"].tolist() == [1e4, 1e3] * 3


def test_images_below_fold_0_take_no_part_at_all():
    features, labels, folds = blobs()
    without = np.arange(90) < 80
    dirty, unknown = features.copy(), labels.copy()
    dirty[~without], unknown[~without] = np.nan, -1
    options = {"kind": "softmax", "n_classes": 3, "l2": [10.0, 1.0], "patience": None}
    found = fit_path(dirty, unknown, folds=np.where(without, folds, -1), **options)
    alone = fit_path(features[without], labels[without], folds=folds[without], **options)
    np.testing.assert_array_equal(found.heads.weight, alone.heads.weight)
    np.testing.assert_array_equal(found.out_of_fold[without], alone.out_of_fold)
    assert np.isnan(found.out_of_fold[~without]).all()


def test_views_of_one_image_never_straddle_folds():
    features, labels, folds = blobs()
    views = [features, features + 0.3, features - 0.2]
    options = {"kind": "softmax", "n_classes": 3, "l2": [10.0], "standardize": False}
    before = fit_path(views, labels, folds=folds, **options)
    changed = [view.copy() for view in views]
    for view in changed:  # the mean stays, so that only training on them could show
        view[folds == 0] = 2 * view[folds == 0].mean(axis=0) - view[folds == 0]
    after = fit_path(changed, labels, folds=folds, **options)
    same = np.abs(before.heads.weight - after.heads.weight).max(axis=(0, 2))
    assert same[0] < 1e-4
    assert (same[1:] > 1e-2).all()


def test_an_image_weighs_the_same_however_many_views_it_has():
    features, labels, folds = blobs()
    options = {"kind": "softmax", "n_classes": 3, "l2": [5.0], "folds": folds, "tol": 1e-13}
    one = fit_path(features, labels, **options)
    rows = np.r_[np.arange(90), np.arange(0, 90, 2), np.full(3, -1)]
    stacked = np.r_[features, features[::2], np.full((3, 5), np.nan)]
    two = fit_path(stacked, labels, rows=rows, standardize=True, **options)
    assert one.objective.shape == two.objective.shape == (1, 3, 1)
    three = fit_path([features] * 3, labels, **options)
    np.testing.assert_allclose(one.heads.weight, three.heads.weight, atol=1e-6)
    np.testing.assert_allclose(one.objective, three.objective, rtol=1e-9)


def test_out_of_fold_is_of_view_0_and_can_be_averaged_over_views():
    features, labels, folds = blobs()
    views = np.stack([features, features + 1, features - 3])
    path = fit_path(
        views, labels, kind="softmax", n_classes=3, l2=[10.0], folds=folds, mean_over_views=True
    )
    each = np.stack([path.heads.logits(view) for view in views])
    for fold in range(3):
        held = folds == fold
        first, mean = path.out_of_fold[held, 0, 0], path.out_of_fold_mean[held, 0, 0]
        np.testing.assert_allclose(first, each[0, held, fold], atol=1e-4)
        np.testing.assert_allclose(mean, each[:, held, fold].mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_rows_streamed_from_a_file_give_what_rows_in_memory_give(tmp_path, kind):
    features, labels, folds = digits(400)
    options = {"kind": kind, "n_classes": 10, "l2": [1e4, 1e3], "folds": folds}
    expected = fit_path(features, labels, **options)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["view_000"] = features
        streamed = fit_path(file["view_000"], labels, memory=0, **options)
    mapped = np.memmap(tmp_path / "raw", features.dtype, "w+", shape=features.shape)
    mapped[:] = features
    from_map = fit_path(mapped, labels, memory=0, **options)
    np.testing.assert_allclose(streamed.objective, expected.objective, rtol=1e-6)
    np.testing.assert_allclose(streamed.out_of_fold, expected.out_of_fold, atol=1e-3)
    np.testing.assert_array_equal(streamed.heads.weight, from_map.heads.weight)


def test_streamed_rows_can_be_chosen_and_reordered(tmp_path):
    features, labels, folds = digits(400)
    chosen = np.random.default_rng(0).permutation(400)[:300]
    rows = np.full(400, -1)
    rows[chosen] = np.arange(300)
    options = {"kind": "softmax", "n_classes": 10, "l2": [1e3], "folds": folds[chosen]}
    expected = fit_path(features[chosen], labels[chosen], **options)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["view_000"] = features
        found = fit_path(file["view_000"], labels[chosen], rows=rows, memory=0, **options)
    np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-5)
    np.testing.assert_allclose(found.out_of_fold, expected.out_of_fold, atol=5e-2)


def test_a_path_ends_once_its_validation_loss_rises():
    features, labels, folds = blobs(300, 12)
    options = {"kind": "softmax", "n_classes": 3, "folds": folds}
    l2 = np.logspace(4, -2, 7)
    whole = fit_path(features, labels, l2=l2, patience=None, **options)
    short = fit_path(features, labels, l2=l2, **options)
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
    falling = fit_path(features, labels, l2=[100.0, 10.0, 1.0], **options)
    mixed = fit_path(features, labels, l2=[1.0, 100.0, 10.0, 1.0], **options)
    np.testing.assert_array_equal(mixed.objective, falling.objective[:, :, [2, 0, 1, 2]])
    np.testing.assert_array_equal(mixed.out_of_fold, falling.out_of_fold[:, :, [2, 0, 1, 2]])


def test_class_weights_fitted_together_are_those_fitted_alone():
    features, labels, folds = blobs(91)
    options = {"kind": "softmax", "n_classes": 3, "l2": [30.0, 3.0], "folds": folds, "tol": 1e-12}
    asked = [None, "balanced", {0: 2.0}, [1.0, 2.0, 3.0]]
    together = fit_path(features, labels, class_weights=asked, patience=None, **options)
    for w, one in enumerate(asked):
        alone = fit_path(features, labels, class_weights=[one], patience=None, **options)
        np.testing.assert_allclose(together.objective[w], alone.objective[0], rtol=1e-9)
    assert together.class_weights == ("none", "balanced", "0: 2", "0: 1, 1: 2, 2: 3")


def test_refitting_gives_the_head_of_all_folds():
    features, labels, folds = digits(300)
    options = {"kind": "softmax", "n_classes": 10, "tol": 1e-9}
    l2 = [1e4, 1e3, 1e2, 1e1, 1]
    path = fit_path(features, labels, l2=l2, folds=folds, refit="best", **options)
    chosen = l2[int(np.nanargmin(path.validation_loss[0].mean(axis=0)))]
    assert path.refitted.facts["l2"].tolist() == [chosen]
    whole = fit_path(features, labels, l2=[chosen], **options)
    np.testing.assert_allclose(
        path.refitted.probabilities(features), whole.heads.probabilities(features), atol=1e-3
    )
    two = fit_path(features, labels, l2=l2, folds=folds, refit=[3e3, 1e1], **options).refitted
    other = fit_path(features, labels, l2=[3e3, 1e1], **options).heads
    np.testing.assert_allclose(
        two.probabilities(features), other.probabilities(features), atol=2e-3
    )


def test_the_same_input_gives_the_same_bytes():
    features, labels, folds = digits(300)
    options = {"kind": "softmax", "n_classes": 10, "l2": [1e3, 1e2], "folds": folds}
    first, second = (fit_path(features, labels, **options) for _ in range(2))
    assert first.heads.weight.tobytes() == second.heads.weight.tobytes()
    assert first.out_of_fold.tobytes() == second.out_of_fold.tobytes()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    st.lists(st.floats(-50, 50), min_size=5, max_size=5),
)
def test_units_and_offsets_of_the_features_do_not_matter(seed, exponents, offsets):
    features, labels, folds = blobs(seed=seed)
    options = {"kind": "softmax", "n_classes": 3, "l2": [10.0], "folds": folds, "tol": 1e-13}
    plain = fit_path(features, labels, **options)
    other = fit_path(features * 10.0 ** np.array(exponents) + offsets, labels, **options)
    np.testing.assert_allclose(other.objective, plain.objective, rtol=1e-8)
    np.testing.assert_allclose(other.out_of_fold, plain.out_of_fold, atol=1e-4)


def test_constant_features_get_no_weight():
    features, labels, folds = digits(200)
    features[:, 1], features[:, 7] = 0.1, 1e6
    path = fit_path(features, labels, kind="softmax", n_classes=10, l2=[1e3], folds=folds)
    assert np.abs(path.heads.weight[[1, 7]]).max() < 1e-6
    assert path.converged.all()


@pytest.mark.parametrize("n_features", [1, 3, 40, 300])
@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_any_number_of_features_is_fitted_even_more_than_images(n_features, kind):
    features, labels, _ = digits(120)
    features = features[:, 20 : 20 + n_features] if n_features < 300 else features
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    path = fit_path(features, labels, kind=kind, n_classes=10, l2=[50.0], tol=1e-9)
    expected = exact(kind, C=1 / 50).fit(scaled, labels).predict_proba(scaled)
    assert np.abs(path.heads.probabilities(features)[:, 0] - expected).max() < 1e-3


def test_two_hundred_classes_are_fitted():
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 200
    features = random.normal(size=(200, 30))[labels] + random.normal(size=(1000, 30))
    scaled = StandardScaler().fit_transform(features)
    path = fit_path(features.astype(np.float32), labels, kind="softmax", n_classes=200, l2=[10.0])
    expected = exact("softmax", C=0.1).fit(scaled, labels).predict_proba(scaled)
    assert np.abs(path.heads.probabilities(features)[:, 0] - expected).max() < 1e-2


def test_float16_and_scattered_arrays_are_fitted_like_their_float32_copies():
    features, labels, folds = digits(200)
    half = features.astype(np.float16)
    options = {"kind": "softmax", "n_classes": 10, "l2": [1e3], "folds": folds}
    expected = fit_path(half.astype(np.float32), labels, **options)
    scattered = np.asfortranarray(half.repeat(2, axis=0))[::2]
    np.testing.assert_array_equal(
        fit_path(scattered, labels, **options).heads.weight, expected.heads.weight
    )


@pytest.mark.parametrize("n_features", [2, 400])
@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_without_a_penalty_separable_classes_still_end(kind, n_features):
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = np.eye(3, n_features)[labels] * 10 + random.normal(size=(60, n_features)) * 0.1
    path = fit_path(features, labels, kind=kind, n_classes=3, l2=[0.0], max_iter=200)
    assert path.iterations.max() <= 200
    assert np.isfinite(path.heads.weight).all()
    assert (path.heads.logits(features)[:, 0].argmax(axis=1) == labels).all()


def test_unfinished_rows_are_counted_and_the_way_out_is_named():
    features, labels, folds = digits(200)
    features[[3, 50], 7], features[80] = np.nan, np.inf
    with pytest.raises(HeadError, match=r"3 of 200 feature rows hold NaN .* hubretrain cache"):
        fit_path(features, labels, kind="softmax", n_classes=10, l2=[1.0], folds=folds)


def test_an_absent_class_is_named_with_its_fold():
    features, labels, _ = blobs()
    options = {"kind": "softmax", "n_classes": 3, "l2": [1.0], "class_names": ["cat", "dog", "owl"]}
    folds = np.where(labels == 1, 2, np.arange(90) // 3 % 3)
    with pytest.raises(HeadError, match="class dog has no training image when fold 2 is left out"):
        fit_path(features, labels, folds=folds, **options)
    with pytest.raises(HeadError, match="class owl has no training image at all"):
        fit_path(features[labels < 2], labels[labels < 2], **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l2": []}, r"l2 is \[\]; expected one number or more"),
        ({"l2": [-1.0]}, r"l2 is \[-1.0\]; .* each at least 0"),
        ({"labels": np.full(90, 3)}, "labels go from 3 to 3; expected 0 to 2"),
        ({"folds": np.zeros(80)}, r"folds is of shape \(80,\); expected \(90,\)"),
        ({"sample_weight": np.full(90, -1)}, "sample_weight holds values below 0"),
        ({"class_weights": ["heavy"]}, "class weight is 'heavy'; expected none, balanced, or 3"),
        ({"rows": np.arange(80)}, "there are 90 feature rows for 80 expected ones of 90 images"),
        ({"rows": np.zeros(90)}, "89 of 90 images have no feature row"),
        ({"folds": np.full(90, -1)}, "there is no image to fit on"),
        ({"folds": None, "refit": "best"}, "refit asks for folds"),
        ({"kind": "ridge"}, "kind is 'ridge'; expected softmax or logistic"),
    ],
)
def test_what_cannot_be_fitted_is_said(changes, message):
    features, labels, folds = blobs()
    asked = {"labels": labels, "kind": "softmax", "n_classes": 3, "l2": [1.0], "folds": folds}
    asked |= changes
    with pytest.raises(HeadError, match=message):
        fit_path(features, asked.pop("labels"), **asked)


def test_the_heads_of_a_module_come_back_from_their_file(tmp_path):
    random = np.random.default_rng(0)
    features = random.normal(size=(20, 6)).astype(np.float32)

    def head(kind, strength):
        rule = DecisionRule(strength, (0.5, 0.3, 0.2))
        weight, bias = random.normal(size=(6, 3)).astype("f4"), np.ones(3, "f4")
        settings = ("all views", "2024: 1, NA: 2", 100.0, "log_loss")
        return Head(kind, weight, bias, rule, np.array([1.0, 2.0, 0.5]), *settings)

    path = tmp_path / "heads" / "module.h5"
    for kind in ("softmax", "logistic"):
        heads = ModuleHeads(*(head(kind, s) for s in (0.0, 0.5, 1.0)), ("2024", "NA", ""))
        heads.save(path, {"module": "pixels", "image_size": 8})
        read = ModuleHeads.load(path)
        assert read.class_names == heads.class_names
        for role in ROLES:
            written, back = getattr(heads, role), getattr(read, role)
            for name in ("weight", "bias", "weight_of_class"):
                np.testing.assert_array_equal(getattr(back, name), getattr(written, name))
            for name in ("kind", "rule", "trained_on", "class_weight", "l2", "aim"):
                assert getattr(back, name) == getattr(written, name)
            np.testing.assert_allclose(
                back.probabilities(features), written.probabilities(features), rtol=1e-6
            )


def test_a_head_file_that_is_missing_damaged_or_of_another_version_is_one_sentence(tmp_path):
    path = tmp_path / "module.h5"
    with pytest.raises(
        HeadError, match=r"module\.h5 cannot be read .*; run `hubretrain fit` again"
    ):
        ModuleHeads.load(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(
        HeadError, match=r"module\.h5 cannot be read .*; run `hubretrain fit` again"
    ):
        ModuleHeads.load(path)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "hubretrain heads 2"
    with pytest.raises(HeadError, match=r"is no head file of this version; run `hubretrain fit`"):
        ModuleHeads.load(path)


def test_fitting_heads_needs_no_tensorflow():
    code = "import sys, hubretrain.heads.path; print('tensorflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


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
    (cached,) = cache_bottlenecks(dataset, [module], n_views=1, folder=tmp_path / "cache")
    with Bottlenecks(cached.file) as bottlenecks:
        features = bottlenecks.view(0)[:]
        of = {path: i for i, path in enumerate(bottlenecks.paths)}
    chosen = [i for i, path in enumerate(dataset.images["path"]) if path in of]
    features = features[[of[dataset.images["path"][i]] for i in chosen]]
    labels = dataset.labels[chosen]
    folds = np.arange(len(labels)) % 2
    n_classes = len(dataset.class_names)
    options = {"kind": "softmax", "n_classes": n_classes, "folds": folds, "patience": None}
    path = fit_path(features, labels, l2=1 / C[1:3], **options)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    said = path.out_of_fold_probabilities()
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
            assert np.abs(said[held, 0, i] - expected).max() < 2e-2
