"""Feature rows: streamed, reordered, scaled, constant, of other types, unfinished."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubretrain.errors import HeadError
from tests.heads.samples import blobs, digits, fitted


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_rows_streamed_from_a_file_give_what_rows_in_memory_give(tmp_path, kind):
    features, labels, folds = digits(400)
    options = {"kind": kind, "n_classes": 10, "l2": [1e4, 1e3], "folds": folds}
    expected = fitted(features, labels, **options)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["view_000"] = features
        streamed = fitted(file["view_000"], labels, memory=0, **options)
    mapped = np.memmap(tmp_path / "raw", features.dtype, "w+", shape=features.shape)
    mapped[:] = features
    from_map = fitted(mapped, labels, memory=0, **options)
    np.testing.assert_allclose(streamed.objective, expected.objective, rtol=1e-6)
    np.testing.assert_allclose(streamed.out_of_fold, expected.out_of_fold, atol=1e-3)
    np.testing.assert_array_equal(streamed.heads.weight, from_map.heads.weight)


def test_streamed_rows_can_be_chosen_and_reordered(tmp_path):
    features, labels, folds = digits(400)
    chosen = np.random.default_rng(0).permutation(400)[:300]
    rows = np.full(400, -1)
    rows[chosen] = np.arange(300)
    options = {"kind": "softmax", "n_classes": 10, "l2": [1e3], "folds": folds[chosen]}
    expected = fitted(features[chosen], labels[chosen], **options)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["view_000"] = features
        reordered = fitted(file["view_000"], labels[chosen], rows=rows, memory=0, **options)
    np.testing.assert_allclose(reordered.objective, expected.objective, rtol=1e-5)
    np.testing.assert_allclose(reordered.out_of_fold, expected.out_of_fold, atol=5e-2)


@settings(max_examples=20)
@given(
    st.integers(0, 10_000),
    st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    st.lists(st.floats(-50, 50), min_size=5, max_size=5),
)
def test_units_and_offsets_of_the_features_do_not_matter(seed, exponents, offsets):
    features, labels, folds = blobs(seed=seed)
    options = {"kind": "softmax", "n_classes": 3, "l2": [10.0], "folds": folds, "tol": 1e-13}
    expected = fitted(features, labels, **options)
    rescaled = fitted(features * 10.0 ** np.array(exponents) + offsets, labels, **options)
    np.testing.assert_allclose(rescaled.objective, expected.objective, rtol=1e-8)
    np.testing.assert_allclose(rescaled.out_of_fold, expected.out_of_fold, atol=1e-4)


def test_constant_features_get_no_weight():
    features, labels, folds = digits(200)
    features[:, 1], features[:, 7] = 0.1, 1e6
    path = fitted(features, labels, kind="softmax", n_classes=10, l2=[1e3], folds=folds)
    assert np.abs(path.heads.weight[[1, 7]]).max() < 1e-6
    assert path.converged.all()


def test_float16_and_scattered_arrays_are_fitted_like_their_float32_copies():
    features, labels, folds = digits(200)
    half = features.astype(np.float16)
    options = {"kind": "softmax", "n_classes": 10, "l2": [1e3], "folds": folds}
    expected = fitted(half.astype(np.float32), labels, **options)
    scattered = np.asfortranarray(half.repeat(2, axis=0))[::2]
    np.testing.assert_array_equal(
        fitted(scattered, labels, **options).heads.weight, expected.heads.weight
    )


def test_unfinished_rows_are_counted_and_the_way_out_is_named():
    features, labels, folds = digits(200)
    features[[3, 50], 7], features[80] = np.nan, np.inf
    with pytest.raises(HeadError, match=r"3 of 200 feature rows hold NaN .* `hubretrain cache`"):
        fitted(features, labels, kind="softmax", n_classes=10, l2=[1.0], folds=folds)
