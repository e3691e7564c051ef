"""Metrics: one table of them, each computed over many resamples at once.

Every metric reads `probabilities` of shape (n_images, n_classes), `labels` of shape (n_images,)
and `weights`, how often each image counts. Weights of shape (n_images,) give one value. Weights of
shape (n_resamples, n_images), as `intervals.group_resamples` draws them, give n_resamples values.
Weighting by an integer is the same as repeating the image that many times.

    accuracy, balanced accuracy, top-k,      sums over images of what one image contributes,
    macro F1, log loss, calibration error    so all resamples are one matrix product
    ROC AUC, average precision               running totals of the weights down the ranking

Where an image may have several labels, `labels` are indicators, bool of shape (n_images,
n_classes), probabilities are each of their own, and a label is predicted where its probability is
above 1/2. The same functions then compute `LABEL_METRICS`.

A class is present when an image with positive weight carries its label. Means over classes
(balanced accuracy, macro F1, ROC AUC, average precision) run over the present classes only, so
that a class missing from a split, or from one resample, neither counts as 0 nor makes the rest
undefined. scikit-learn does the same in `balanced_accuracy_score`; for its other scores it is
`labels=present`.

Every metric takes and raises what `check_predictions` does. It returns float64 of shape () or
(n_resamples,). Values lie in [0, 1] and higher is better unless the docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.errors import DataError
from hubretrain.evaluation.checks import check_predictions, mean_over_present, ratio
from hubretrain.evaluation.ranking_metrics import (
    average_precision_per_class,
    mean_average_precision,
    micro_average_precision,
    roc_auc,
    roc_auc_per_class,
)

MetricFunction: TypeAlias = Callable[[AnyArray, AnyArray, AnyArray | None], FloatArray]

# Rows of weights that are converted to float64 at once: 256 rows of 8,000 images are 16 MB.
CHUNK_ROWS = 256
N_BINS = 15  # of the calibration error and the reliability diagram, as in Guo et al. (2017)


class Metric(NamedTuple):
    """A metric and what one must know to compare values of it.

    Attributes:
        function: Function `(probabilities, labels, weights=None)` to float64 of shape `()` or
            `(n_resamples,)`.
        higher_is_better: False for losses.
        is_share: True if the metric is a share of 1, so that differences are shown in points
            (hundredths); False for the log loss, in nats.
        is_mean_over_classes: True if rare classes count as much as frequent ones, so that the
            confidence interval rests on their few groups.
        is_of_decision: True if only the predicted class counts, so that a decision rule such as
            logit adjustment changes the metric; False if the probabilities themselves count.
        compares_images: True if images are compared with each other, in a ranking or in bins, so
            that all predictions must be of one model; see `hubretrain.evaluation.parts`.
        per_class: Function to float64 of shape `(..., n_classes)` whose mean over the present
            classes the metric is; given of those that compare images by class.
    """

    function: MetricFunction
    higher_is_better: bool
    is_share: bool = True
    is_mean_over_classes: bool = False
    is_of_decision: bool = False
    compares_images: bool = False
    per_class: MetricFunction | None = None


def weighted_totals(weights: AnyArray, terms: AnyArray) -> FloatArray:
    """Return `weights @ terms`, float64 (..., n_terms), of terms (n_images, n_terms)."""
    terms = np.asarray(terms, dtype=np.float64)
    rows = np.atleast_2d(weights)
    # A matrix product of uint8 is a plain loop in numpy; of float64 it is BLAS. Chunks, because
    # all weights as float64 would take eight times their memory.
    chunks = [
        rows[start : start + CHUNK_ROWS].astype(np.float64, copy=False) @ terms
        for start in range(0, len(rows), CHUNK_ROWS)
    ]
    return np.concatenate(chunks).reshape(*weights.shape[:-1], terms.shape[1])


def _weighted_mean(weights: AnyArray, terms: AnyArray) -> FloatArray:
    totals = weighted_totals(weights, np.column_stack([terms, np.ones(len(terms))]))
    return np.asarray(totals[..., 0] / totals[..., 1])


def _indicators(probabilities: AnyArray, labels: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Return the classes of each image and those predicted, 0 or 1, (n_images, n_classes)."""
    if labels.ndim == 2:
        return labels, probabilities > 0.5
    one_hot = np.eye(probabilities.shape[1])
    return one_hot[labels], one_hot[probabilities.argmax(axis=1)]


def _counts(probabilities: AnyArray, labels: AnyArray, weights: AnyArray) -> list[FloatArray]:
    """Return hits, images and predictions of each class, each float64 (..., n_classes)."""
    is_class, is_predicted = _indicators(probabilities, labels)
    terms = np.hstack([is_class * is_predicted, is_class, is_predicted])
    return np.split(weighted_totals(weights, terms), 3, axis=-1)


def accuracy(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the share of images whose most probable class is their label.

    Of classes that tie for most probable the first counts, as in `argmax`.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    return _weighted_mean(weights, probabilities.argmax(axis=1) == labels)


def top_k(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None, k: int = 3
) -> FloatArray:
    """Return the share of images whose label is among the `k` most probable classes.

    Of tied classes the later ranks higher, as in scikit-learn's `top_k_accuracy_score`, so with
    exact ties `top_k(k=1)` can differ from `accuracy`.
    """
    if k < 1:
        raise DataError(f"`k` is {k}; expected at least 1.")
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    label_probs = probabilities[np.arange(len(labels)), labels][:, None]
    is_later = np.arange(probabilities.shape[1]) > labels[:, None]
    n_above = ((probabilities > label_probs) | ((probabilities == label_probs) & is_later)).sum(
        axis=1
    )
    return _weighted_mean(weights, n_above < k)


def recall_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return, for each class, the share of its images that are predicted as this class.

    Returns:
        float64 array of shape (n_classes,) or (n_resamples, n_classes) in [0, 1]; NaN for a class
        that is not present.
    """
    hits, n_images, _ = _counts(*check_predictions(probabilities, labels, weights))
    return ratio(hits, n_images)


def precision_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return, for each class, the share of the images predicted as this class that are of it.

    Returns:
        float64 array of shape (n_classes,) or (n_resamples, n_classes) in [0, 1]; NaN for a class
        that is not predicted.
    """
    hits, _, n_predicted = _counts(*check_predictions(probabilities, labels, weights))
    return ratio(hits, n_predicted)


def f1_per_class(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return, for each class, F1 = 2 hits / (images + predictions of the class).

    Returns:
        float64 array of shape (n_classes,) or (n_resamples, n_classes) in [0, 1]; NaN for a class
        that is not present.
    """
    counts = _counts(*check_predictions(probabilities, labels, weights))
    hits, n_images, n_predicted = counts
    return np.where(n_images > 0, ratio(2 * hits, n_images + n_predicted), np.nan)


def balanced_accuracy(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the mean over present classes of the recall.

    Brodersen, Ong, Stephan and Buhmann (2010), The balanced accuracy and its posterior
    distribution, ICPR, https://doi.org/10.1109/ICPR.2010.764.
    """
    return mean_over_present(recall_per_class(probabilities, labels, weights))


def macro_f1(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the mean over present classes of F1 = 2 hits / (images + predictions of the class).

    The mean of F1 scores, not the F1 of mean precision and recall: Opitz and Burst (2019), Macro
    F1 and Macro F1, https://arxiv.org/abs/1911.03347. scikit-learn's default also counts classes
    that are predicted but not present, as 0; with `labels=present` it agrees.
    """
    return mean_over_present(f1_per_class(probabilities, labels, weights))


def micro_f1(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return F1 of all pairs of an image and a class, so that frequent classes count most."""
    counts = _counts(*check_predictions(probabilities, labels, weights))
    hits, n_images, n_predicted = (count.sum(axis=-1) for count in counts)
    return ratio(2 * hits, n_images + n_predicted)


def subset_accuracy(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the share of images of which every label is predicted and no other."""
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    is_class, is_predicted = _indicators(probabilities, labels)
    return _weighted_mean(weights, (is_class == is_predicted).all(axis=1))


def hamming_loss(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the share of pairs of an image and a label that are predicted wrongly.

    Lower is better.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    is_class, is_predicted = _indicators(probabilities, labels)
    return _weighted_mean(weights, (is_class != is_predicted).mean(axis=1))


def log_loss(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Return the mean of -log of the probability given to the label, in nats.

    Probabilities are first clipped to [eps, 1 - eps], eps the machine precision of their dtype,
    as in scikit-learn's `log_loss`; so one float32 zero costs at most 15.9 nats. A strictly
    proper score: Gneiting and Raftery (2007), JASA 102:359,
    https://doi.org/10.1198/016214506000001437.

    Where an image may have several labels, it is the mean over them of that of each, yes or no.

    The value is at least 0; lower is better.
    """
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    eps = float(np.finfo(probabilities.dtype).eps)
    if labels.ndim == 2:
        exact = np.clip(probabilities.astype(np.float64), eps, 1 - eps)
        return _weighted_mean(weights, -np.log(np.where(labels, exact, 1 - exact)).mean(axis=1))
    label_probs = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return _weighted_mean(weights, -np.log(np.clip(label_probs, eps, 1 - eps)))


def reliability_bins(confidence: AnyArray, n_bins: int = N_BINS) -> IntArray:
    """Return the bin of each confidence: `n_bins` bins of equal width, closed on the right.

    Args:
        confidence: Floating array of the probabilities of the predicted classes, in [0, 1].
        n_bins: Number of bins.

    Returns:
        int64 array of the same shape in [0, n_bins); bin b holds (b / n_bins, (b + 1) / n_bins].
    """
    return np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)


def calibration_error(
    probabilities: AnyArray,
    labels: AnyArray,
    weights: AnyArray | None = None,
    n_bins: int = N_BINS,
) -> FloatArray:
    """Return the expected calibration error: the mean gap between confidence and accuracy.

    Images are put into `reliability_bins` by the probability of their predicted class; the value
    is the sum over bins of (share of images in the bin) x |accuracy - mean confidence|. Guo,
    Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML,
    https://arxiv.org/abs/1706.04599, equation 3.

    Bins have equal width, because then they do not depend on the images: models share them, and
    the value of a resample is still a sum. The estimate is biased upwards, more so on few images,
    and a resample doubles that bias (Roelofs et al. 2022, https://arxiv.org/abs/2012.08668):
    compare models of one data set by it, and do not read its interval as covering the true value.

    Where an image may have several labels, all pairs of an image and a label are put into bins, by
    the probability of the label, and the gap is that to the share of pairs where the image has it.

    The value lies in [0, 1]; lower is better.
    """
    if n_bins < 1:
        raise DataError(f"`n_bins` is {n_bins}; expected at least 1.")
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    if labels.ndim == 2:
        return _label_calibration_error(probabilities, labels, weights, n_bins)
    confidence = probabilities.max(axis=1).astype(np.float64)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    in_bin = np.eye(n_bins)[reliability_bins(confidence, n_bins)]
    totals = weighted_totals(weights, np.column_stack([in_bin * gap[:, None], np.ones(len(gap))]))
    return np.asarray(np.abs(totals[..., :-1]).sum(axis=-1) / totals[..., -1])


def _label_calibration_error(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray, n_bins: int
) -> FloatArray:
    n_images, n_labels = labels.shape
    gap, bins = labels - probabilities.astype(np.float64), reliability_bins(probabilities, n_bins)
    cells = n_bins * np.arange(n_images)[:, None] + bins
    gaps = np.bincount(cells.ravel(), gap.ravel(), n_images * n_bins).reshape(n_images, n_bins)
    totals = weighted_totals(weights, np.column_stack([gaps, np.full(n_images, n_labels)]))
    return np.asarray(np.abs(totals[..., :-1]).sum(axis=-1) / totals[..., -1])


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, higher_is_better=True, is_of_decision=True),
    "balanced_accuracy": Metric(
        balanced_accuracy, higher_is_better=True, is_mean_over_classes=True, is_of_decision=True
    ),
    "top_3": Metric(top_k, higher_is_better=True),
    "macro_f1": Metric(
        macro_f1, higher_is_better=True, is_mean_over_classes=True, is_of_decision=True
    ),
    "roc_auc": Metric(
        roc_auc,
        higher_is_better=True,
        is_mean_over_classes=True,
        compares_images=True,
        per_class=roc_auc_per_class,
    ),
    "mean_average_precision": Metric(
        mean_average_precision,
        higher_is_better=True,
        is_mean_over_classes=True,
        compares_images=True,
        per_class=average_precision_per_class,
    ),
    "log_loss": Metric(log_loss, higher_is_better=False, is_share=False),
    "calibration_error": Metric(calibration_error, higher_is_better=False, compares_images=True),
}
"""Metrics of images that have one label, their class."""

LABEL_METRICS: dict[str, Metric] = {
    "mean_average_precision": METRICS["mean_average_precision"],
    "micro_average_precision": Metric(
        micro_average_precision, higher_is_better=True, compares_images=True
    ),
    "macro_f1": METRICS["macro_f1"],
    "micro_f1": Metric(micro_f1, higher_is_better=True, is_of_decision=True),
    "subset_accuracy": Metric(subset_accuracy, higher_is_better=True, is_of_decision=True),
    "hamming_loss": Metric(hamming_loss, higher_is_better=False, is_of_decision=True),
    "roc_auc": METRICS["roc_auc"],
    "log_loss": METRICS["log_loss"],
    "calibration_error": METRICS["calibration_error"],
}
"""Metrics of images that may have several labels."""


def metrics_of(multi_label: bool) -> dict[str, Metric]:
    """Return the metrics of images that may have several labels, or of those that have one."""
    return LABEL_METRICS if multi_label else METRICS


def metric_named(name: str) -> Metric:
    """Return a metric of `METRICS` or `LABEL_METRICS`.

    Raises:
        DataError: There is none of the name.
    """
    metric = METRICS.get(name) or LABEL_METRICS.get(name)
    if metric is None:
        raise DataError(f"`metric` is {name!r}; expected one of {', '.join(METRICS)}.")
    return metric
