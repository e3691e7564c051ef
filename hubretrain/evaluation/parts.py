"""Metrics of predictions that come from another model in each part of the images.

Cross-fitted predictions (`hubretrain.evaluation.selection`) are of one candidate on one part and
often of another candidate on the other. Two candidates need not agree on how large a probability
is: one may be sure where the other hesitates. So metrics that compare images with each other, in a
ranking or in bins of confidence, must not compare an image of one part with an image of another:
that would measure a mixture, which is no model. They are computed within each part and averaged.

Averaged are the values of each class, before the mean over classes, with the images of the class in
the part as weights::

    value of class c = sum_k n_ck value_ck / sum_k n_ck      over the parts k where it is defined

So a class that a part lacks counts with the other parts alone. A resample does the same with its
own weights: n_ck is the sum of the weights of the images of class c in part k. The calibration
error has no classes: a part counts with the weight of all its images.

The other metrics are such averages already, so they are computed on all images at once. Accuracy,
top-k accuracy and log loss are means of what one image contributes, whatever the others are. A
recall of all images, (hits_1 + hits_2) / (n_1 + n_2), is the average above of the recalls within
the parts, and so is their mean over classes, the balanced accuracy. F1 of all images is the average
of F1 within the parts with images + predictions of the class as weights.

Where an image may have several labels, it counts for each of them; all images count for the average
precision of all pairs (micro).
"""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.errors import DataError
from hubretrain.evaluation.checks import check_predictions, mean_over_present, ratio
from hubretrain.evaluation.metrics import MetricFunction, metric_named, weighted_totals


def metric_values(
    metric: str,
    probabilities: AnyArray,
    labels: AnyArray,
    weights: AnyArray | None = None,
    parts: AnyArray | None = None,
) -> FloatArray:
    """Return a metric of predictions of which each part may come from another model.

    Args:
        metric: Name in `METRICS`.
        probabilities: As every metric takes them.
        labels: As every metric takes them.
        weights: As every metric takes them.
        parts: int (n_images,), from `choice_parts`; None if all predictions are of one model.

    Returns:
        float64 of shape () or (n_resamples,); NaN where the metric is undefined in every part.

    Raises:
        DataError: The arrays are no predictions (see `check_predictions`), or `parts` is not one
            number for each image.
    """
    of = metric_named(metric)
    if parts is None or not of.compares_images:
        return of.function(probabilities, labels, weights)
    if of.per_class is not None:
        values = class_values(of.per_class, probabilities, labels, weights, parts)
        return mean_over_present(values)

    def as_one_class(
        probabilities: AnyArray, labels: AnyArray, weights: AnyArray | None
    ) -> FloatArray:
        return of.function(probabilities, labels, weights)[..., None]

    every = np.ones((len(labels), 1))
    return _averaged(as_one_class, probabilities, labels, weights, parts, every)[..., 0]


def class_values(
    function: MetricFunction,
    probabilities: AnyArray,
    labels: AnyArray,
    weights: AnyArray | None = None,
    parts: AnyArray | None = None,
) -> FloatArray:
    """Return a metric of each class, of predictions as `metric_values` takes them.

    Args:
        function: Metric of shape (..., n_classes), such as `average_precision_per_class`.
        probabilities: As every metric takes them.
        labels: As every metric takes them.
        weights: As every metric takes them.
        parts: int (n_images,), from `choice_parts`; None if all predictions are of one model.

    Returns:
        float64 of shape (n_classes,) or (n_resamples, n_classes); NaN where it is undefined in
        every part.

    Raises:
        DataError: See `metric_values`.
    """
    if parts is None:
        return function(probabilities, labels, weights)
    labels = np.asarray(labels)
    of_class = labels if labels.ndim == 2 else np.eye(np.shape(probabilities)[-1])[labels]
    return _averaged(function, probabilities, labels, weights, parts, of_class)


def _averaged(
    function: MetricFunction,
    probabilities: AnyArray,
    labels: AnyArray,
    weights: AnyArray | None,
    parts: AnyArray,
    counts: AnyArray,
) -> FloatArray:
    """Return the average over parts; `counts` (n_images, n_values): what an image counts for."""
    probabilities, labels, weights = check_predictions(probabilities, labels, weights)
    parts = np.asarray(parts)
    if parts.shape != labels.shape[:1]:
        raise DataError(
            f"`parts` has shape {parts.shape}; expected {labels.shape[:1]}, as `labels`."
        )
    rows = np.atleast_2d(weights)
    sums, totals = np.zeros(()), np.zeros(())
    for part in np.unique(parts):
        inside = parts == part
        here = rows[:, inside]
        drawn = here.any(axis=1)  # of few groups, a resample may hold none of a part
        if not drawn.any():
            continue
        values = function(probabilities[inside], labels[inside], here[drawn])
        n_images = weighted_totals(here[drawn], counts[inside])
        n_images = np.where(np.isnan(values), 0.0, n_images)
        shape = len(rows), values.shape[-1]
        added, n_added = np.zeros(shape), np.zeros(shape)
        added[drawn], n_added[drawn] = n_images * np.nan_to_num(values), n_images
        sums, totals = sums + added, totals + n_added
    return ratio(sums, totals).reshape(*weights.shape[:-1], -1)
