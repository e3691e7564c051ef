"""What every metric is given: probabilities, labels and weights, checked."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hubretrain.errors import DataError

FloatArray: TypeAlias = npt.NDArray[np.float64]
AnyArray: TypeAlias = npt.NDArray[Any]

# Rows rounded for a CSV, or softmax in half precision, may miss 1 by this much.
SUM_TOLERANCE = 0.01


def check_predictions(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> tuple[AnyArray, npt.NDArray[np.int64], AnyArray]:
    """Returns probabilities, labels and weights as arrays that every metric can rely on.

    Args:
        probabilities: Floating, shape (n_images, n_classes), in [0, 1], rows summing to 1.
        labels: Integer, shape (n_images,), in [0, n_classes).
        weights: None for one of each image, or non-negative numbers, shape (n_images,) or
            (n_resamples, n_images).

    Raises:
        DataError: Not finite, outside its range, of a wrong shape, or empty.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise DataError(
            f"Probabilities have shape {probabilities.shape}; expected (n_images, n_classes), "
            "neither of them 0."
        )
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise DataError(f"Probabilities are {probabilities.dtype}; expected floats.")
    if not np.isfinite(probabilities).all():
        rows = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
        raise DataError(
            f"Probabilities of {len(rows)} images are NaN or infinite, image {rows[0]} first."
        )
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise DataError(
            f"Probabilities lie in [{probabilities.min():.6g}, {probabilities.max():.6g}]; "
            "expected [0, 1], so apply the softmax first."
        )
    excess = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1)
    if excess.max() > SUM_TOLERANCE:
        row = int(excess.argmax())
        raise DataError(
            f"Probabilities of image {row} sum to {probabilities[row].sum():.6g}; expected 1."
        )
    return probabilities, _checked_labels(labels, probabilities), _checked_weights(weights, labels)


def _checked_labels(labels: AnyArray, probabilities: AnyArray) -> npt.NDArray[np.int64]:
    n_images, n_classes = probabilities.shape
    if labels.shape != (n_images,):
        raise DataError(
            f"Labels have shape {labels.shape}; expected ({n_images},), one for each image."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"Labels are {labels.dtype}; expected integers from 0 to {n_classes - 1}.")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"Labels run from {labels.min()} to {labels.max()}; "
            f"expected 0 to {n_classes - 1}, the columns of the probabilities."
        )
    return labels.astype(np.int64, copy=False)


def _checked_weights(weights: AnyArray | None, labels: AnyArray) -> AnyArray:
    n_images = len(labels)
    weights = np.ones(n_images, np.uint8) if weights is None else np.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[-1] != n_images or weights.size == 0:
        raise DataError(
            f"Weights have shape {weights.shape}; "
            f"expected ({n_images},) or (n_resamples, {n_images})."
        )
    if not (np.isfinite(weights).all() and weights.min() >= 0):
        raise DataError("Weights are negative or not finite; expected how often an image counts.")
    if not (weights.max(axis=-1) > 0).all():
        raise DataError("Weights are 0 for every image; expected at least one image that counts.")
    return weights


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Returns the quotient, NaN where the denominator is 0."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def mean_over_present(per_class: FloatArray) -> FloatArray:
    """Returns the mean of the last axis without its NaN; NaN where there is nothing else."""
    defined = ~np.isnan(per_class)
    return ratio(np.where(defined, per_class, 0.0).sum(axis=-1), 1.0 * defined.sum(axis=-1))
