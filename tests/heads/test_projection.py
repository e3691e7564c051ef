"""Principal components: scikit-learn's, exact where the rows are few, and undone in the weights."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hubretrain.errors import HeadError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads import projection as projection_module
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.heads import Head, probabilities
from hubretrain.heads.inputs import TRAIN_ONLY, FitInputs
from hubretrain.heads.mlp import MLPFitter, MLPOptions
from hubretrain.heads.path import ALL_IMAGES, PathFitter
from hubretrain.heads.projection import Projection
from hubretrain.heads.solver import SolverOptions
from tests.heads.samples import digits, fitted

RULE = DecisionRule(0.0, (0.5, 0.5))


def wide(n_rows, n_features=500, rank=20, seed=0):
    """Features of all layers in small: many, and mostly combinations of a few."""
    random = np.random.default_rng(seed)
    strong = random.normal(size=(n_rows, rank)) @ random.normal(size=(rank, n_features))
    offset, scale = 10 * random.normal(size=n_features), 10.0 ** random.uniform(-1, 1, n_features)
    noise = random.normal(size=(n_rows, n_features))
    return ((strong + noise + offset) * scale).astype(np.float32)


def assert_components_are(ours, theirs, atol):
    """Compare apart from the sign and the unit of all."""
    sign = np.sign((ours * theirs).sum(axis=0))
    unit = np.sqrt(np.square(theirs).mean())
    np.testing.assert_allclose(ours * sign, theirs / unit, atol=atol)


def test_few_rows_or_features_give_the_components_of_scikit_learn():
    for features in (wide(60), wide(60)[:, :40], wide(600)[:, :40]):
        rows = StandardScaler().fit_transform(features.astype(np.float64))
        expected = PCA(30, svd_solver="full").fit_transform(rows)
        ours = Projection.fitted([features], np.arange(len(features)), 30).project(features)
        assert_components_are(ours, expected, atol=1e-4)


def test_many_rows_give_nearly_the_components_of_scikit_learn():
    features = wide(300)
    rows = StandardScaler().fit_transform(features.astype(np.float64))
    projection = Projection.fitted([features], np.arange(300), 40)
    oracle = PCA(40, svd_solver="full").fit(rows)
    kept = np.square(projection.project(features) * projection.unit).sum() / 300
    # The first 20 hold what is no noise; the others may be any directions of the same noise.
    np.testing.assert_allclose(kept, oracle.explained_variance_.sum() * 299 / 300, rtol=2e-3)
    ours, theirs = (
        values[:, :20] / np.sqrt(np.square(values).mean())
        for values in (projection.project(features), oracle.transform(rows))
    )
    np.testing.assert_allclose(
        np.abs((ours * theirs).sum(axis=0)), np.square(ours).sum(axis=0), rtol=1e-2
    )


def test_heads_on_as_many_components_as_rows_are_those_on_all_features():
    features, labels, folds = wide(90), np.arange(90) % 3, np.arange(90) // 3 % 3
    projection = Projection.fitted([features], np.arange(90))
    assert projection.n_components == 89  # the mean takes one
    options = {"kind": "softmax", "n_classes": 3, "folds": folds, "tol": 1e-9}
    # A weight W of standardised features is V Q' / unit.
    expected = fitted(features.astype(np.float64), labels, l2=[10 * projection.unit**2], **options)
    rows = projection.project(features).astype(np.float64)
    path = fitted(rows, labels, l2=[10.0], standardize=False, **options)
    np.testing.assert_allclose(path.objective, expected.objective, rtol=1e-5)
    np.testing.assert_allclose(path.out_of_fold, expected.out_of_fold, atol=1e-3)
    weight, bias = projection.raw(path.heads.weight[:, 0], path.heads.bias[0])
    logits = features @ weight + bias
    np.testing.assert_allclose(
        logits, features @ expected.heads.weight[:, 0] + expected.heads.bias[0], atol=1e-2
    )


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_a_head_on_components_is_the_same_head_on_features(kind):
    features, random = wide(120), np.random.default_rng(3)
    projection = Projection.fitted([features], np.arange(120), 25)
    first = random.normal(size=(25, 6)), random.normal(size=6)
    settings = {"rule": RULE, "weight_of_class": np.ones(2)}
    if kind == "mlp":
        last = random.normal(size=(6, 2)), random.normal(size=2)
        hidden = {"hidden_weight": first[0], "hidden_bias": first[1]}
        head = Head(kind, *last, **settings, **hidden)
    else:
        head = Head(kind, *first, **settings)
    raw = projection.raw_head(head, ("block_1", "block_2"))
    assert (raw.n_features, raw.layers, raw.kind) == (500, ("block_1", "block_2"), kind)
    np.testing.assert_allclose(
        raw.probabilities(features.astype(np.float64)),
        head.probabilities(projection.project(features)),
        atol=1e-4,
    )


def test_the_mean_variance_of_the_components_is_1():
    features = wide(120)
    rows = Projection.fitted([features], np.arange(120), 25).project(features)
    assert np.square(rows).mean() == pytest.approx(1, rel=1e-5)


def test_constant_features_take_no_part():
    features = wide(50)
    without = Projection.fitted([features[:, 3:]], np.arange(50), 10).project(features[:, 3:])
    features[:, :3] = [0, 1e-30, 1e4]
    features[:, 2] += np.float32(1e-3) * (np.arange(50) % 2)  # as rounding leaves it
    rows = Projection.fitted([features], np.arange(50), 10).project(features)
    np.testing.assert_allclose(np.abs(rows), np.abs(without), atol=1e-3)
    same = np.ones((5, 4), np.float32)
    np.testing.assert_array_equal(Projection.fitted([same], np.arange(5)).project(same), 0)


def test_rows_that_are_not_finite_are_one_sentence():
    features = wide(50)
    features[7, 3] = np.nan
    with pytest.raises(HeadError, match=r"1 of 50 feature rows hold NaN or infinity, as rows of"):
        Projection.fitted([features], np.arange(50))
    is_used = np.where(np.arange(50) == 7, -1, np.arange(50))
    projection = Projection.fitted([features], is_used)
    (rows,) = projection.project_parts([features], is_used, memory=1 << 30)
    assert np.isfinite(rows).all()
    assert (rows[7] == 0).all()


def test_one_image_per_class_is_enough():
    features = wide(3)
    rows = Projection.fitted([features], np.arange(3)).project(features)
    path = fitted(rows, np.arange(3), kind="softmax", n_classes=3, l2=[1.0], standardize=False)
    assert rows.shape == (3, 2)
    assert (path.heads.probabilities(rows)[:, 0].argmax(axis=1) == np.arange(3)).all()


def test_views_from_a_file_into_a_temporary_file_give_the_same_rows(tmp_path):
    views = [wide(80, seed=1), wide(80, seed=2)]
    row_image = np.tile(np.arange(80), 2)
    row_image[[3, 100]] = -1
    in_memory = Projection.fitted(views, row_image, 20).project_parts(views, row_image, 1 << 30)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        parts = [file.create_dataset(f"view_{v}", data=view) for v, view in enumerate(views)]
        projected = Projection.fitted(parts, row_image, 20).project_parts(parts, row_image, 0)
    for mapped, rows in zip(projected, in_memory, strict=True):
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(mapped, rows)


def test_components_come_from_the_first_view_and_from_others_as_far_as_there_is_room(monkeypatch):
    monkeypatch.setattr(projection_module, "MOST_ROWS", 90)
    views = [wide(80, seed=1), wide(80, seed=2)]
    row_image = np.tile(np.arange(80), 2)
    chosen = np.concatenate([views[0], views[1][np.linspace(0, 79, 10).round().astype(int)]])
    expected = Projection.fitted([chosen], np.arange(90), 20)
    projection = Projection.fitted(views, row_image, 20)
    np.testing.assert_array_equal(projection.basis, expected.basis)
    monkeypatch.setattr(projection_module, "MOST_ROWS", 40)
    few = Projection.fitted(views, row_image, 20)
    rows = views[0][np.linspace(0, 79, 40).round().astype(int)]
    np.testing.assert_array_equal(few.basis, Projection.fitted([rows], np.arange(40), 20).basis)


def split(n_images, n_folds=3):
    """Labels, and folds of which some images are in none."""
    folds = np.arange(n_images) // 3 % (n_folds + 1)
    return np.arange(n_images) % 3, np.where(folds == n_folds, TRAIN_ONLY, folds)


def fitted_without_each_fold(features, labels, folds, l2, n_components):
    projection = Projection.fitted([features], np.arange(len(labels)), n_components, folds)
    inputs = FitInputs.checked(projection.project(features), labels, 3, folds)
    rows = FeatureBlocks(
        inputs.parts, inputs.row_image, standardize=False, memory=0, as_they_are=True
    )
    options = SolverOptions(tol=1e-9)
    fitter = PathFitter(inputs, rows, "softmax", (None,), options, projection.bases)
    return projection, fitter, fitter.fit_folds(np.array([l2]), None)


def axes_of_others(rows, folds, without, n_axes):
    """Axes that each other fold's rows gave, made orthonormal: what heads may be combined of."""
    others = [of for of in np.unique(folds) if of != without]
    spans = [np.linalg.svd(rows[folds == of])[2][: n_axes[of]].T for of in others]
    return np.linalg.qr(np.concatenate(spans, axis=1))[0]


@pytest.mark.parametrize("n_components", [48, 1000])
def test_heads_without_a_fold_are_those_of_scikit_learn_on_the_axes_of_the_other_folds(
    n_components,
):
    features, (labels, folds) = wide(96), split(96)
    l2 = 10.0
    projection, fitter, path = fitted_without_each_fold(features, labels, folds, l2, n_components)
    rows = StandardScaler().fit_transform(features.astype(np.float64))
    n_axes = dict.fromkeys(np.unique(folds).tolist(), min(n_components, 96) // 4)
    probs = probabilities(path.out_of_fold[:, 0, 0], "softmax")
    for fold in range(3):
        axes = axes_of_others(rows, folds, fold, n_axes)
        pca = PCA(svd_solver="full").fit(rows[folds != fold] @ axes)
        components = pca.transform(rows @ axes) / projection.unit
        head = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=10_000)
        head.fit(components[folds != fold], labels[folds != fold])
        expected = head.predict_proba(components[folds == fold])
        np.testing.assert_allclose(probs[folds == fold], expected, atol=1e-3)
    axes = axes_of_others(rows, folds, None, n_axes)
    head = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=10_000)
    head.fit(rows @ axes / projection.unit, labels)
    np.testing.assert_allclose(
        fitter.refit([l2]).probabilities(projection.project(features))[:, 0],
        head.predict_proba(rows @ axes / projection.unit),
        atol=1e-3,
    )


def test_validation_images_take_no_part_in_the_basis_of_their_fold():
    features, (_, folds) = wide(96), split(96)
    other, random = features.copy(), np.random.default_rng(5)
    for column in other.T:  # other rows of the same mean and deviation
        column[folds == 1] = random.permutation(column[folds == 1])
    spans = []
    for some in (features, other):
        projection = Projection.fitted([some], np.arange(96), 48, folds)
        spans.append(
            {of: projection.basis @ columns for of, (columns, _) in projection.bases.items()}
        )
    assert spans[0][1].shape == (500, 36)
    overlap = {of: np.linalg.norm(spans[0][of].T @ spans[1][of]) ** 2 for of in spans[0]}
    assert overlap[1] == pytest.approx(36, rel=1e-4)
    assert max(overlap[0], overlap[2]) < 35
    assert overlap[ALL_IMAGES] < 47


def test_folds_of_few_images_have_a_basis_too(monkeypatch):
    monkeypatch.setattr(projection_module, "MOST_ROWS", 40)
    features, (_, folds) = wide(96), split(96)
    folds[[2, 50]] = 7, 8  # row 2 is of the sample, row 50 is not
    projection = Projection.fitted([features], np.arange(96), 12, folds)
    assert set(projection.bases) == {ALL_IMAGES, 0, 1, 2, 7, 8}
    n_directions = {of: columns.shape[1] for of, (columns, _) in projection.bases.items()}
    assert n_directions[8] == n_directions[ALL_IMAGES] == 13
    assert n_directions[7] == 12
    alone = Projection.fitted([features], np.arange(96), 12, np.zeros(96, np.int64))
    assert set(alone.bases) == {ALL_IMAGES, 0}


def test_networks_without_a_fold_are_combinations_of_its_basis_and_those_of_all_of_any():
    features, (labels, folds) = wide(96), split(96)
    projection = Projection.fitted([features], np.arange(96), 48, folds)
    inputs = FitInputs.checked(projection.project(features), labels, 3, folds)
    rows = FeatureBlocks(
        inputs.parts, inputs.row_image, standardize=False, memory=0, as_they_are=True
    )
    options = MLPOptions(n_hidden=8, n_seeds=2, n_epochs=2, n_steps=4)
    fitter = MLPFitter(inputs, rows, options=options, bases=projection.bases)
    path = fitter.fit_folds([0.1])
    for f in range(3):
        columns, weight = projection.bases[f].columns, path.heads.hidden_weight[:, f]
        np.testing.assert_allclose(columns @ (columns.T @ weight), weight, atol=1e-5)
    turned = rows.turned(projection.bases[0].columns)  # into a file: there is no memory for a copy
    expected = inputs.parts[0] @ projection.bases[0].columns
    np.testing.assert_array_equal(next(turned.blocks())[1], expected)
    np.testing.assert_array_equal(turned.take(np.array([3, 1])), expected[[3, 1]])
    assert np.isfinite(fitter.refit([0.1]).hidden_weight).all()


def test_digits_are_told_apart_as_well_by_their_components():
    features, labels, folds = digits()
    projection = Projection.fitted([features], np.arange(len(features)), 100)
    options = {"kind": "softmax", "n_classes": 10, "folds": folds}
    expected = fitted(features, labels, l2=[1e3 * projection.unit**2], **options)
    rows = projection.project(features)
    path = fitted(rows, labels, l2=[1e3], standardize=False, **options)
    np.testing.assert_allclose(path.validation_loss, expected.validation_loss, atol=0.01)
