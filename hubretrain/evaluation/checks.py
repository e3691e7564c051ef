"""Checks of what every metric takes: probabilities, labels and weights; and their means.

Labels are the class of each image, or, where an image may have several labels, indicators of them.
"""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.errors import DataError

# Rows rounded for a CSV, or softmax in half precision, may miss 1 by this much.
SUM_TOLERANCE = 0.01


def check_predictions(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Return probabilities, labels and weights as arrays that every metric can rely on.

    Args:
        probabilities: Floating array of shape (n_images, n_classes) in [0, 1]; rows sum to 1,
            unless an image may have several labels.
        labels: Integer array of shape (n_images,) in [0, n_classes); or, where an image may have
            several, bool (n_images, n_classes), True for each label that it has.
        weights: How often each image counts: non-negative numbers of shape (n_images,) or
            (n_resamples, n_images); None counts each image once.

    Raises:
        DataError: A value is not finite or outside its range, or an array is empty or has the
            wrong shape.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise DataError(
            f"`probabilities` has shape {probabilities.shape}; expected (n_images, n_classes), "
            "neither of them 0."
        )
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise DataError(f"`probabilities` has dtype {probabilities.dtype}; expected floats.")
    if not np.isfinite(probabilities).all():
        rows = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
        raise DataError(
            f"`probabilities` of {len(rows)} images are NaN or infinite, image {rows[0]} first; "
            "expected finite numbers."
        )
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise DataError(
            f"`probabilities` lie in [{probabilities.min():.6g}, {probabilities.max():.6g}]; "
            "expected [0, 1], so apply the softmax first."
        )
    if labels.dtype == bool:
        checked = _checked_indicators(labels, probabilities)
    else:
        _check_sums(probabilities)
        checked = _checked_labels(labels, probabilities)
    return probabilities, checked, _checked_weights(weights, labels)


def _check_sums(probabilities: AnyArray) -> None:
    excess = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1)
    if excess.max() > SUM_TOLERANCE:
        row = int(excess.argmax())
        raise DataError(
            f"`probabilities` of image {row} sum to {probabilities[row].sum():.6g}; expected 1."
        )


def _checked_indicators(labels: AnyArray, probabilities: AnyArray) -> AnyArray:
    if labels.shape != probabilities.shape:
        raise DataError(
            f"`labels` has shape {labels.shape}; expected {probabilities.shape}, an indicator for "
            "each probability."
        )
    return labels


def _checked_labels(labels: AnyArray, probabilities: AnyArray) -> IntArray:
    n_images, n_classes = probabilities.shape
    if labels.shape != (n_images,):
        raise DataError(
            f"`labels` has shape {labels.shape}; expected ({n_images},), one label per image."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"`labels` has dtype {labels.dtype}; expected integers from 0 to {n_classes - 1}."
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"`labels` run from {labels.min()} to {labels.max()}; "
            f"expected 0 to {n_classes - 1}, the columns of the probabilities."
        )
    return labels.astype(np.int64, copy=False)


def _checked_weights(weights: AnyArray | None, labels: AnyArray) -> AnyArray:
    n_images = len(labels)
    weights = np.ones(n_images, np.uint8) if weights is None else np.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[-1] != n_images or weights.size == 0:
        raise DataError(
            f"`weights` has shape {weights.shape}; "
            f"expected ({n_images},) or (n_resamples, {n_images})."
        )
    if not (np.isfinite(weights).all() and weights.min() >= 0):
        raise DataError("`weights` holds negative or non-finite values; expected at least 0.")
    if not (weights.max(axis=-1) > 0).all():
        raise DataError("`weights` is 0 for every image; expected at least one above 0.")
    return weights


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return the quotient, float64; NaN where the denominator is 0."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def mean_over_present(per_class: FloatArray) -> FloatArray:
    """Return the mean over the last axis that skips NaN; NaN where all values are NaN."""
    defined = ~np.isnan(per_class)
    return ratio(np.where(defined, per_class, 0.0).sum(axis=-1), 1.0 * defined.sum(axis=-1))
