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
from typing import NamedTuple, TypeAlias

import numpy as np

from hubretrain.errors import DataError
from hubretrain.evaluation.checks import (
    AnyArray,
    FloatArray,
    check_predictions,
    mean_over_present,
    ratio,
)
from hubretrain.evaluation.ranking_metrics import mean_average_precision, roc_auc

MetricFunction: TypeAlias = Callable[[AnyArray, AnyArray, AnyArray | None], FloatArray]

# Rows of weights that are turned into floats at once: 256 x 8,000 images is 16 MB.
CHUNK = 256


class Metric(NamedTuple):
    """One row of `METRICS`.

    Attributes:
        function: `(probabilities, labels, weights=None)` to float64 `()` or `(n_resamples,)`.
        higher_is_better: False for losses.
        is_share: True when the metric is a share of 1 and a difference of it reads well in
            points (hundredths); False for the log loss, in nats.
        is_mean_over_classes: True when rare classes count as much as frequent ones, so that its
            interval rests on their few groups.
        is_of_decision: True when only the class decided on counts, so that a decision rule such
            as logit adjustment changes it; False when the probabilities themselves are judged.
    """

    function: MetricFunction
    higher_is_better: bool
    is_share: bool = True
    is_mean_over_classes: bool = False
    is_of_decision: bool = False


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
    return ratio(totals[..., :n_classes], totals[..., n_classes:])


def balanced_accuracy(
    probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None = None
) -> FloatArray:
    """Returns the mean over present classes of the recall.

    Brodersen, Ong, Stephan and Buhmann (2010), The balanced accuracy and its posterior
    distribution, ICPR, https://doi.org/10.1109/ICPR.2010.764.
    """
    return mean_over_present(recall_per_class(probabilities, labels, weights))


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
    f1 = ratio(2 * hits, of_class + predicted)
    return mean_over_present(np.where(of_class > 0, f1, np.nan))


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


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, higher_is_better=True, is_of_decision=True),
    "balanced_accuracy": Metric(
        balanced_accuracy, higher_is_better=True, is_mean_over_classes=True, is_of_decision=True
    ),
    "top_3": Metric(top_k, higher_is_better=True),
    "macro_f1": Metric(
        macro_f1, higher_is_better=True, is_mean_over_classes=True, is_of_decision=True
    ),
    "roc_auc": Metric(roc_auc, higher_is_better=True, is_mean_over_classes=True),
    "mean_average_precision": Metric(
        mean_average_precision, higher_is_better=True, is_mean_over_classes=True
    ),
    "log_loss": Metric(log_loss, higher_is_better=False, is_share=False),
    "calibration_error": Metric(calibration_error, higher_is_better=False),
}
