"""Metrics of a ranking, one class against the rest: ROC AUC and average precision.

Both follow from running totals of the weights down the ranking, over many resamples at once;
`hubretrain.evaluation.metrics` describes the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import sparse

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.evaluation.checks import check_predictions, mean_over_present, ratio

# Weights (images x resamples) that are ranked at once: running totals are fastest while they stay
# in the CPU's cache.
RANKING_CELLS = 2**18
TINY = float(np.finfo(np.float64).tiny)


def roc_auc_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return, for each class against the rest, the area under the ROC curve.

    It is the chance that an image of the class gets a higher probability of the class than an
    image of another class does, ties counting half: Hanley and McNeil (1982), Radiology 143:29,
    https://doi.org/10.1148/radiology.143.1.7063747.

    Returns:
        float64 array of shape (n_classes,) or (n_resamples, n_classes) in [0, 1]; NaN for a class
        that is not present, or that every image belongs to.
    """
    return _rank_per_class(probabilities, labels, weights, _area_under_roc)


def roc_auc(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the mean over present classes of `roc_auc_per_class`: macro, one against the rest.

    The value is NaN with only one class present.
    """
    return mean_over_present(roc_auc_per_class(probabilities, labels, weights))


def average_precision_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return, for each class against the rest, the average precision.

    It is the sum over thresholds of (rise of recall) x precision, equal probabilities sharing one
    threshold and nothing interpolated, as in scikit-learn's `average_precision_score`; Boyd, Eng
    and Page (2013), Area under the precision-recall curve, ECML,
    https://doi.org/10.1007/978-3-642-40994-3_29.

    Returns:
        float64 array of shape (n_classes,) or (n_resamples, n_classes) in [0, 1]; NaN for a class
        that is not present, and for a label that every image has besides others: it ranks nothing.
    """
    values = _rank_per_class(probabilities, labels, weights, _average_precision)
    labels = np.asarray(labels)
    if labels.ndim == 2:
        weights = np.ones(len(labels)) if weights is None else np.asarray(weights)
        values[(weights.astype(np.float64) @ ~labels) == 0] = np.nan
    return values


def mean_average_precision(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the mean over present classes of `average_precision_per_class`."""
    return mean_over_present(average_precision_per_class(probabilities, labels, weights))


def micro_average_precision(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the average precision of one ranking of all pairs of an image and a class.

    So it also compares the probability of one class with that of another. NaN without a positive.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    is_class = labels if labels.ndim == 2 else np.eye(probabilities.shape[1], dtype=bool)[labels]
    if not is_class.any():
        return np.full(weights.shape[:-1], np.nan)
    ranking = _ranking(probabilities.ravel(), is_class.ravel(), probabilities.shape[1])
    return _values([ranking], weights, _average_precision)[..., 0]


# A block is a run of equal scores in the ranking of one class. Only blocks with an image of the
# class change either metric. For each of them, and each resample, `hits` is the weight of the
# images of the class in the block, `block` that of all its images, and `until` that of all images
# from the top of the ranking to the end of the block: arrays of shape (n_blocks, n_resamples).
# `total` is the weight of all images, (n_resamples,).
RankingValue: TypeAlias = Callable[[AnyArray, AnyArray, AnyArray, FloatArray], FloatArray]


def _area_under_roc(
    hits: AnyArray, block: AnyArray, until: AnyArray, total: FloatArray
) -> FloatArray:
    # The rank-sum form (Hanley and McNeil 1982): an image of the block stands behind
    # until - block / 2 of the weight, ties counting half; what is left it beats. Of the pairs
    # within the class exactly half are won, n_class ** 2 / 2, which is taken off again.
    n_class = hits.sum(axis=0, dtype=np.float64)
    ranks = (hits * (2.0 * until - block)).sum(axis=0) / 2
    return ratio(n_class * (total - n_class / 2) - ranks, n_class * (total - n_class))


def _average_precision(
    hits: AnyArray,
    block: AnyArray,  # noqa: ARG001 - the signature that ROC AUC needs
    until: AnyArray,
    total: FloatArray,  # noqa: ARG001
) -> FloatArray:
    hits_until = np.cumsum(hits, axis=0, dtype=hits.dtype)
    # A resample may hold no image down to a block: its precision is 0 / 0 and its hits are 0, so
    # the product must be 0, not NaN.
    gained = (hits * (hits_until / np.maximum(until, TINY))).sum(axis=0)
    return ratio(gained, hits_until[-1].astype(np.float64))


def _ranking(scores: AnyArray, is_class: AnyArray, per_image: int = 1) -> sparse.csr_matrix:
    """Return a matrix that turns weights into `hits`, `block` and the increments of `until`.

    Args:
        scores: float (n_images * per_image,).
        is_class: bool of the same shape.
        per_image: Scores of each image, which follow one another.

    Returns:
        int32 sparse matrix of shape (3 * n_blocks, n_images) of zeros and ones; its product with
        the weights of the images, (n_images, n_resamples), stacks the three.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    begins = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    ends = np.append(begins[1:], len(order))
    of_class = np.flatnonzero(is_class[order])
    blocks, n_hits = np.unique(
        np.searchsorted(begins, of_class, side="right") - 1, return_counts=True
    )
    begins, ends = begins[blocks], ends[blocks]
    sizes = ends - begins
    inside = np.arange(sizes.sum()) + np.repeat(ends - np.cumsum(sizes), sizes)
    columns = np.concatenate([order[of_class], order[inside], order[: ends[-1]]])
    n_columns = np.concatenate([n_hits, sizes, np.diff(ends, prepend=0)])
    return sparse.csr_matrix(
        (np.ones(len(columns), np.int32), columns // per_image, np.append(0, np.cumsum(n_columns))),
        shape=(len(n_columns), len(order) // per_image),
    )


def _rank_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None, value: RankingValue
) -> FloatArray:
    """Return `value` of each class's ranking, float64 (..., n_classes); NaN where not present."""
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    if labels.ndim == 2:
        present = np.flatnonzero(labels.any(axis=0))
        rankings = [_ranking(probabilities[:, c], labels[:, c]) for c in present]
    else:
        present = np.unique(labels)
        rankings = [_ranking(probabilities[:, c], labels == c) for c in present]
    values = np.full((*weights.shape[:-1], probabilities.shape[1]), np.nan)
    values[..., present] = _values(rankings, weights, value)
    return values


def _values(
    rankings: list[sparse.csr_matrix], weights: AnyArray, value: RankingValue
) -> FloatArray:
    """Return `value` of each ranking, float64 (..., n_rankings)."""
    rows = np.atleast_2d(weights)
    # Integers of 32 bits add up twice as fast as floats, and no total reaches 2**31 images.
    dtype = np.int32 if np.issubdtype(rows.dtype, np.integer) else np.float64
    values = np.full((len(rows), len(rankings)), np.nan)
    step = max(1, RANKING_CELLS // rows.shape[1])
    for start in range(0, len(rows), step):
        chunk = np.ascontiguousarray(rows[start : start + step].T, dtype=dtype)
        total = chunk.sum(axis=0, dtype=np.float64)
        for c, ranking in enumerate(rankings):
            hits, block, increments = np.split(ranking @ chunk, 3)
            until = np.cumsum(increments, axis=0, dtype=dtype)
            values[start : start + step, c] = value(hits, block, until, total)
    return values.reshape(*weights.shape[:-1], len(rankings))
