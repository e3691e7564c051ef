"""How good predictions are: one table of metrics, each over many resamples at once.

Every metric reads `probabilities` (n_images, n_classes), `labels` (n_images,) and `weights`, how
often each image counts. Weights of shape (n_images,) give one value. Weights of shape
(n_resamples, n_images), which is what `intervals.group_resamples` draws, give (n_resamples,)
values. Weighting by an integer is the same as repeating the image that many times.

    accuracy, balanced accuracy, top-k,      sums over images of what one image contributes,
    macro F1, log loss, calibration error    so all resamples are one matrix product
    ROC AUC, average precision               running totals of the weights down the ranking

A class is present when an image with positive weight carries its label. Means over classes
(balanced accuracy, macro F1, ROC AUC, average precision) run over the present classes only, so
that a class missing from a split, or from one resample, neither counts as 0 nor makes the rest
undefined. scikit-learn does the same in `balanced_accuracy_score`; for its other scores it is
`labels=present`.

Every metric takes and raises what `check_predictions` does. It returns float64 of shape () or
(n_resamples,), in [0, 1] and the higher the better where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from hubretrain.errors import DataError

FloatArray: TypeAlias = npt.NDArray[np.float64]
AnyArray: TypeAlias = npt.NDArray[Any]
MetricFunction: TypeAlias = Callable[[AnyArray, AnyArray, AnyArray | None], FloatArray]

# Rows of weights that are turned into floats at once: 256 x 8,000 images is 16 MB.
CHUNK = 256
# Weights that are ranked at once: running totals are fastest while they stay in the cache.
RANKING_CELLS = 2**18
# Rows rounded for a CSV, or softmax in half precision, may miss 1 by this much.
SUM_TOLERANCE = 0.01
TINY = float(np.finfo(np.float64).tiny)


class Metric(NamedTuple):
    """One row of `METRICS`.

    Attributes:
        function: `(probabilities, labels, weights=None)` to float64 `()` or `(n_resamples,)`.
        higher_is_better: False for losses.
        is_share: True when the metric is a share of 1 and a difference of it reads well in
            points (hundredths); False for the log loss, in nats.
        is_mean_over_classes: True when rare classes count as much as frequent ones, so that its
            interval rests on their few groups.
    """

    function: MetricFunction
    higher_is_better: bool
    is_share: bool = True
    is_mean_over_classes: bool = False


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


def _totals(weights: AnyArray, terms: AnyArray) -> FloatArray:
    """Returns `weights @ terms`, float64 (..., n_terms), of terms (n_images, n_terms)."""
    terms = np.asarray(terms, dtype=np.float64)
    rows = np.atleast_2d(weights)
    # uint8 weights would be summed by a loop; as floats they go to BLAS, a cache-full at a time.
    chunks = [
        rows[start : start + CHUNK].astype(np.float64, copy=False) @ terms
        for start in range(0, len(rows), CHUNK)
    ]
    return np.concatenate(chunks).reshape(*weights.shape[:-1], terms.shape[1])


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Returns the quotient, NaN where the denominator is 0."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _mean_over_present(per_class: FloatArray) -> FloatArray:
    """Returns the mean of the last axis without its NaN; NaN where there is nothing else."""
    defined = ~np.isnan(per_class)
    return _ratio(np.where(defined, per_class, 0.0).sum(axis=-1), 1.0 * defined.sum(axis=-1))


def _weighted_mean(weights: AnyArray, terms: AnyArray) -> FloatArray:
    totals = _totals(weights, np.column_stack([terms, np.ones(len(terms))]))
    return np.asarray(totals[..., 0] / totals[..., 1])


def accuracy(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns the share of images whose most probable class is their label.

    Of classes that tie for most probable the first counts, as `argmax` has it.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    return _weighted_mean(weights, probabilities.argmax(axis=1) == labels)


def top_k(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None, k: int = 3
) -> FloatArray:
    """Returns the share of images whose label is among the `k` most probable classes.

    Of tied classes the later ranks higher, as in scikit-learn's `top_k_accuracy_score`, so with
    exact ties `top_k(k=1)` can differ from `accuracy`.
    """
    if k < 1:
        raise DataError(f"Top-k was asked for k = {k}; expected at least 1.")
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    of_label = probabilities[np.arange(len(labels)), labels][:, None]
    later = np.arange(probabilities.shape[1]) > labels[:, None]
    n_above = ((probabilities > of_label) | ((probabilities == of_label) & later)).sum(axis=1)
    return _weighted_mean(weights, n_above < k)


def recall_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns, for each class, the share of its images that are predicted as it.

    Returns:
        float64, shape (n_classes,) or (n_resamples, n_classes), in [0, 1]; NaN for a class that
        is not present.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    n_classes = probabilities.shape[1]
    is_class = np.eye(n_classes)[labels]
    right = probabilities.argmax(axis=1) == labels
    totals = _totals(weights, np.hstack([is_class * right[:, None], is_class]))
    return _ratio(totals[..., :n_classes], totals[..., n_classes:])


def balanced_accuracy(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns the mean over present classes of the recall.

    Brodersen, Ong, Stephan and Buhmann (2010), The balanced accuracy and its posterior
    distribution, ICPR, https://doi.org/10.1109/ICPR.2010.764.
    """
    return _mean_over_present(recall_per_class(probabilities, labels, weights))


def macro_f1(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns the mean over present classes of F1, 2 hits / (images of it + predictions of it).

    The mean of F1 scores, not the F1 of mean precision and recall: Opitz and Burst (2019), Macro
    F1 and Macro F1, https://arxiv.org/abs/1911.03347. scikit-learn's default also counts classes
    that are predicted but not present, as 0; with `labels=present` it agrees.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    n_classes = probabilities.shape[1]
    one_hot = np.eye(n_classes)
    is_class, is_predicted = one_hot[labels], one_hot[probabilities.argmax(axis=1)]
    totals = _totals(weights, np.hstack([is_class * is_predicted, is_class, is_predicted]))
    hits, of_class, predicted = np.split(totals, 3, axis=-1)
    f1 = _ratio(2 * hits, of_class + predicted)
    return _mean_over_present(np.where(of_class > 0, f1, np.nan))


def log_loss(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns the mean of -log of the probability given to the label, in nats.

    Probabilities are first clipped to [eps, 1 - eps], eps the machine precision of their dtype,
    as in scikit-learn's `log_loss`; so one float32 zero costs at most 15.9 nats. A strictly
    proper score: Gneiting and Raftery (2007), JASA 102:359,
    https://doi.org/10.1198/016214506000001437.

    At least 0; lower is better.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    eps = float(np.finfo(probabilities.dtype).eps)
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return _weighted_mean(weights, -np.log(np.clip(of_label, eps, 1 - eps)))


def calibration_error(
    probabilities: AnyArray,
    labels: AnyArray,
    weights: AnyArray | None = None,
    n_bins: int = 15,
) -> FloatArray:
    """Returns the expected calibration error: how far confidence is from accuracy, on average.

    Images are put into `n_bins` bins of equal width by the probability of their predicted class,
    bins closed on the right; the value is sum over bins of (share of images in the bin) x
    |accuracy - mean confidence|. Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern
    neural networks, ICML, https://arxiv.org/abs/1706.04599, equation 3.

    Equal width, because the bins then do not depend on the images: models share them, and a
    resample is still a sum. The estimate is biased upwards, more so on few images, and a resample
    doubles that bias (Roelofs et al. 2022, https://arxiv.org/abs/2012.08668): compare models of
    one data set by it, and do not read its interval as covering the true value.

    In [0, 1]; lower is better.
    """
    if n_bins < 1:
        raise DataError(f"The calibration error was asked for {n_bins} bins; expected at least 1.")
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    confidence = probabilities.max(axis=1).astype(np.float64)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    in_bin = np.eye(n_bins)[np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)]
    totals = _totals(weights, np.column_stack([in_bin * gap[:, None], np.ones(len(gap))]))
    return np.asarray(np.abs(totals[..., :-1]).sum(axis=-1) / totals[..., -1])


def roc_auc_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns, for each class against the rest, the area under the ROC curve.

    The chance that an image of the class gets a higher probability of it than an image of another
    class, ties counting half: Hanley and McNeil (1982), Radiology 143:29,
    https://doi.org/10.1148/radiology.143.1.7063747.

    Returns:
        float64, shape (n_classes,) or (n_resamples, n_classes), in [0, 1]; NaN for a class that
        is not present, or that every image belongs to.
    """
    return _rank_per_class(probabilities, labels, weights, _area_under_roc)


def roc_auc(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns the mean over present classes of `roc_auc_per_class`: macro, one against the rest.

    NaN with only one class present.
    """
    return _mean_over_present(roc_auc_per_class(probabilities, labels, weights))


def average_precision_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns, for each class against the rest, the average precision.

    The sum over thresholds of (rise of recall) x precision, equal probabilities sharing one
    threshold and nothing interpolated, as in scikit-learn's `average_precision_score`; Boyd, Eng
    and Page (2013), Area under the precision-recall curve, ECML,
    https://doi.org/10.1007/978-3-642-40994-3_29.

    Returns:
        float64, shape (n_classes,) or (n_resamples, n_classes), in [0, 1]; NaN for a class that
        is not present.
    """
    return _rank_per_class(probabilities, labels, weights, _average_precision)


def mean_average_precision(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns the mean over present classes of `average_precision_per_class`."""
    return _mean_over_present(average_precision_per_class(probabilities, labels, weights))


# In one class's ranking only blocks count, runs of equal scores with an image of the class. For
# each block `hits` is the weight of the class in it, `block` of all images in it, and `until` of
# all images from the top of the ranking to its end: (n_blocks, n_resamples).
RankingValue: TypeAlias = Callable[[AnyArray, AnyArray, AnyArray, FloatArray], FloatArray]


def _area_under_roc(
    hits: AnyArray, block: AnyArray, until: AnyArray, total: FloatArray
) -> FloatArray:
    # The rank-sum form: among itself, the class wins exactly half of its own pairs.
    n_class = hits.sum(axis=0, dtype=np.float64)
    ranks = (hits * (2.0 * until - block)).sum(axis=0) / 2
    return _ratio(n_class * (total - n_class / 2) - ranks, n_class * (total - n_class))


def _average_precision(
    hits: AnyArray,
    block: AnyArray,  # noqa: ARG001 - the signature that ROC AUC needs
    until: AnyArray,
    total: FloatArray,  # noqa: ARG001
) -> FloatArray:
    found = np.cumsum(hits, axis=0, dtype=hits.dtype)
    # A block without weight has no precision and no hits: 0, not NaN.
    gained = (hits * (found / np.maximum(until, TINY))).sum(axis=0)
    return _ratio(gained, found[-1].astype(np.float64))


def _ranking(scores: AnyArray, is_class: AnyArray) -> sparse.csr_matrix:
    """Returns (3 n_blocks, n_images): times weights, `hits`, `block` and the steps of `until`."""
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
        (np.ones(len(columns), np.int32), columns, np.append(0, np.cumsum(n_columns))),
        shape=(len(n_columns), len(order)),
    )


def _rank_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None, value: RankingValue
) -> FloatArray:
    """Returns `value` of each class's ranking, float64 (..., n_classes); NaN without images."""
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    present = np.unique(labels)
    rankings = [_ranking(probabilities[:, c], labels == c) for c in present]
    rows = np.atleast_2d(weights)
    # Whole counts add up twice as fast as floats, and no total reaches 2**31 images.
    kind = np.int32 if np.issubdtype(rows.dtype, np.integer) else np.float64
    values = np.full((len(rows), probabilities.shape[1]), np.nan)
    step = max(1, RANKING_CELLS // len(labels))
    for start in range(0, len(rows), step):
        chunk = np.ascontiguousarray(rows[start : start + step].T, dtype=kind)
        total = chunk.sum(axis=0, dtype=np.float64)
        for c, ranking in zip(present, rankings, strict=True):
            hits, block, steps = np.split(ranking @ chunk, 3)
            until = np.cumsum(steps, axis=0, dtype=kind)
            values[start : start + step, c] = value(hits, block, until, total)
    return values.reshape(*weights.shape[:-1], -1)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, higher_is_better=True),
    "balanced_accuracy": Metric(
        balanced_accuracy, higher_is_better=True, is_mean_over_classes=True
    ),
    "top_3": Metric(top_k, higher_is_better=True),
    "macro_f1": Metric(macro_f1, higher_is_better=True, is_mean_over_classes=True),
    "roc_auc": Metric(roc_auc, higher_is_better=True, is_mean_over_classes=True),
    "mean_average_precision": Metric(
        mean_average_precision, higher_is_better=True, is_mean_over_classes=True
    ),
    "log_loss": Metric(log_loss, higher_is_better=False, is_share=False),
    "calibration_error": Metric(calibration_error, higher_is_better=False),
}
