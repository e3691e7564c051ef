"""Uncertainty of metrics: confidence intervals, paired differences and ties.

Everything rests on one draw of resamples: whole groups, drawn with replacement, as weights per
image. All models of a leaderboard share the draw, so their differences are paired.

    weights = group_resamples(groups)
    rows = [resample("macro_f1", probs, labels, groups, weights) for probs in models]
    interval(rows[0])               one model                   -> estimate, low, high
    difference(rows[0], rows[1])    two models, paired          -> estimate, low, high, p
    tied_with_best(rows)            which models may be best    -> True or False for each

Everywhere `metric` is a name in `METRICS`, `labels` are integers of shape (n_images,), `groups`
name the group of each image, shape (n_images,), `weights` come from `group_resamples`, shape
(n_resamples, n_images), and `confidence` lies in (0, 1). Other values raise a DataError.

Groups are drawn, not images, because the images of one group are not independent: Field and Welsh
(2007), Bootstrapping clustered data, JRSS B 69:369,
https://doi.org/10.1111/j.1467-9868.2007.00593.x.
They are not drawn within classes: a new sample would also have other numbers of images per class,
and 95 % intervals that keep these numbers fixed held the truth only 92 and 90 times in 100 for the
accuracy and the log loss of 1,000 images.

Measured by simulation (benchmarks/bench_intervals.py), the intervals hold the truth 93 to 97 times
in 100, with seven groups in the rarest class. They do less well for the macro F1 of so few groups
(93), for a ROC AUC of 0.995 (92), and for the calibration error of 1,000 images (90), which is
biased.

Selection bias is not in these intervals: `hubretrain.evaluation.selection` removes it from the
predictions before they come here. Such predictions come with their parts, each perhaps of another
model; see `hubretrain.evaluation.parts`.

None of this covers the variation of training: other training images would have given other heads.
An interval is about these predictions on new groups, not about training again: Bates, Hastie and
Tibshirani (2023), Cross-validation: what does it estimate, https://arxiv.org/abs/2104.00673.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.errors import DataError
from hubretrain.evaluation.metrics import METRICS, Metric
from hubretrain.evaluation.parts import metric_values
from hubretrain.evaluation.ranking_metrics import TINY


class Resampled(NamedTuple):
    """A metric of one model, on the images themselves and on every resample.

    Attributes:
        metric: Name in `METRICS`.
        estimate: Value on the images themselves.
        per_resample: Values on the resamples, float64 array of shape (n_resamples,); models that
            are compared share the resamples.
        n_groups: Number of groups that the spread rests on; see `effective_groups`.
    """

    metric: str
    estimate: float
    per_resample: FloatArray
    n_groups: float


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, in the units of the metric."""

    estimate: float
    low: float
    high: float


class Difference(NamedTuple):
    """A metric of one model minus that of another, in the units of the metric.

    Attributes:
        metric: Name in `METRICS`.
        estimate: Difference on the images themselves; positive where the first model has the
            larger value, whether larger is better or not.
        low: Lower end of the confidence interval.
        high: Upper end of the confidence interval.
        p: Two-sided p-value in [0, 1]: the smallest 1 - confidence whose interval excludes 0.
        confidence: Confidence of the interval, in (0, 1).
    """

    metric: str
    estimate: float
    low: float
    high: float
    p: float
    confidence: float


def group_resamples(
    groups: AnyArray, *, n_resamples: int = 1000, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Return how often each resample of the groups holds each image.

    Each resample draws as many groups as there are, with replacement, and takes all images of
    each. Its number of images therefore varies. The same groups and seed give the same weights.

    Args:
        groups: Group of each image, integers or text of shape (n_images,).
        n_resamples: Number of resamples, at least 1; 1,000 are enough for 95 % intervals.
        seed: Random seed of the draw.

    Returns:
        uint8 array of shape (n_resamples, n_images).

    Raises:
        DataError: There are fewer than two groups, an image has no group, or `n_resamples` is
            below 1.
    """
    group_of_image, n_groups = _numbered(groups)
    if n_resamples < 1:
        raise DataError(f"`n_resamples` is {n_resamples}; expected at least 1.")
    rng = np.random.default_rng(seed)
    weights = np.empty((n_resamples, len(group_of_image)), np.uint8)
    for row in weights:
        # uint8 is enough: a group is drawn about once, and more than 255 times never.
        counts = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        row[:] = counts.astype(np.uint8)[group_of_image]
    return weights


def _numbered(groups: AnyArray) -> tuple[IntArray, int]:
    """Return the group of each image as a number from 0, and the number of groups."""
    groups = np.asarray(groups)
    if groups.ndim != 1:
        raise DataError(f"`groups` has shape {groups.shape}; expected (n_images,).")
    codes, names = pd.factorize(groups)
    if (codes < 0).any():
        raise DataError(f"{(codes < 0).sum()} images have no group; give each one a group.")
    if len(names) < 2:
        raise DataError(
            f"There are {len(names)} groups; confidence intervals need at least 2, so group by "
            "something finer, or by image."
        )
    return codes, len(names)


def effective_groups(groups: AnyArray, labels: AnyArray, metric: str) -> float:
    """Return the number of groups that the spread of a metric rests on.

    For metrics that count images these are all groups. For means over classes, the classes with
    the fewest groups decide: if the metric is equally uncertain per group in each class, its
    variance is proportional to the sum over classes of v_c = 1 / n_c, with n_c the number of
    groups of class c, and its degrees of freedom are by Satterthwaite (1946,
    https://doi.org/10.2307/3002019)::

        (sum_c v_c)^2 / sum_c (v_c^2 / (n_c - 1))

    The result is one more: the number of groups of a single class with as many degrees of freedom.

    Returns:
        A number from 2 to the number of groups.
    """
    group_of_image, n_groups = _numbered(groups)
    if np.shape(labels) != group_of_image.shape:
        raise DataError(
            f"`groups` has {len(group_of_image)} images and `labels` {np.size(labels)}; expected "
            "the same images."
        )
    if not _metric(metric).is_mean_over_classes:
        return float(n_groups)
    pairs = np.unique(np.stack([labels, group_of_image]), axis=1)
    n_per_class = np.unique(pairs[0], return_counts=True)[1].astype(np.float64)
    variance = 1 / n_per_class
    # One group tells nothing about the spread of its class, yet 0 degrees of freedom would make
    # the sum infinite; 0.5 lets such a class dominate without that.
    freedom = variance.sum() ** 2 / (variance**2 / np.maximum(n_per_class - 1, 0.5)).sum()
    return float(np.clip(1 + freedom, 2, n_groups))


def resample(
    metric: str,
    probabilities: AnyArray,
    labels: AnyArray,
    groups: AnyArray,
    weights: AnyArray,
    parts: AnyArray | None = None,
) -> Resampled:
    """Return a metric of one model on the images themselves and on every resample.

    Args:
        metric: Name in `METRICS`.
        probabilities: Out-of-fold probabilities, floating array of shape (n_images, n_classes).
        labels: Integer array of shape (n_images,).
        groups: Group of each image, shape (n_images,).
        weights: Result of `group_resamples`, shape (n_resamples, n_images).
        parts: int (n_images,), from `choice_parts`, where the probabilities are cross-fitted: each
            part may be of another model, and `metric_values` averages what it says within each,
            on the images themselves and, with their weights, on each resample. None if they are
            of one model.

    Raises:
        DataError: The arrays are no predictions (see `check_predictions`), the metric is unknown,
            or it is undefined, as ROC AUC is with one class present.
    """
    _metric(metric)
    estimate = float(metric_values(metric, probabilities, labels, None, parts))
    values = metric_values(metric, probabilities, labels, weights, parts)
    # In a resample with one class present ROC AUC is undefined; the estimate adds no spread.
    values = np.where(np.isnan(values), estimate, values)
    if np.isnan(estimate):
        raise DataError(
            f"`metric` {metric} is undefined for labels of one class; expected at least 2."
        )
    return Resampled(metric, estimate, values, effective_groups(groups, labels, metric))


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise DataError(f"`metric` is {name!r}; expected one of {', '.join(METRICS)}.")
    return METRICS[name]


def _half_width(confidence: float, n_groups: float, sides: int = 2) -> float:
    """Return the half width of a confidence interval, in bootstrap standard errors.

    It is Student's quantile for n - 1 degrees of freedom, times sqrt(n / (n - 1)): the bootstrap's
    variance has the divisor n where the unbiased one has n - 1, so it is too small by that factor,
    which is noticed on few groups. Hesterberg (2015), What teachers should know about the
    bootstrap, https://arxiv.org/abs/1411.5279.
    """
    if not 0 < confidence < 1:
        raise DataError(f"`confidence` is {confidence}; expected between 0 and 1, such as 0.95.")
    student = stats.t.isf((1 - confidence) / sides, n_groups - 1)
    return float(student * np.sqrt(n_groups / (n_groups - 1)))


def _ends(
    metric: str, estimate: float, error: float, n_groups: float, confidence: float
) -> tuple[float, float]:
    """Return the ends of the interval around an estimate with this standard error."""
    half = _half_width(confidence, n_groups) * error
    # Delta method: the standard error of f(x) is that of x times f'(x).
    if not _metric(metric).is_share:
        # log(x) +- half / x, since the derivative of log(x) is 1 / x, and back by exp.
        factor = np.exp(half / estimate) if estimate > 0 else 1.0
        return float(estimate / factor), float(estimate * factor)
    if estimate in (0, 1):
        # Clopper and Pearson: the share p with p ** n_groups = (1 - confidence) / 2.
        bound = ((1 - confidence) / 2) ** (1 / n_groups)
        return (bound, 1.0) if estimate == 1 else (0.0, 1 - bound)
    # The derivative of logit(x) is 1 / (x (1 - x)).
    half /= estimate * (1 - estimate)
    low, high = special.expit(special.logit(estimate) + np.array([-half, half]))
    return float(low), float(high)


def interval(row: Resampled, confidence: float = 0.95) -> Interval:
    """Return the confidence interval of one model's metric.

    It is estimate +- Student's quantile x bootstrap standard error, computed on the logit scale
    for shares and on the log scale for the log loss, and transformed back. So the interval stays
    inside [0, 1] and reaches further away from an end than towards it; Boyd, Eng and Page (2013)
    found that best for the average precision, https://doi.org/10.1007/978-3-642-40994-3_29. A share
    of exactly 0 or 1, which no resample moves, gets the interval of Clopper and Pearson (1934) for
    that many groups that are all right or all wrong, https://doi.org/10.1093/biomet/26.4.404.
    """
    error = float(row.per_resample.std())
    ends = _ends(row.metric, row.estimate, error, row.n_groups, confidence)
    return Interval(row.estimate, *ends)


def difference(first: Resampled, second: Resampled, confidence: float = 0.95) -> Difference:
    """Return the paired difference of two models' metrics: the first minus the second.

    The interval is estimate +- Student's quantile x bootstrap standard error of the difference on
    the same resamples.

    Raises:
        DataError: The models have different metrics or numbers of resamples.
    """
    _check_rows([first, second])
    estimate = first.estimate - second.estimate
    error = float((first.per_resample - second.per_resample).std())
    n_groups = min(first.n_groups, second.n_groups)
    half = _half_width(confidence, n_groups) * error
    p = 1.0
    if estimate != 0:
        # The inverse of `_half_width`: the confidence at which the interval just touches 0.
        student = abs(estimate) / max(error, TINY) * np.sqrt((n_groups - 1) / n_groups)
        p = float(2 * stats.t.sf(student, n_groups - 1))
    return Difference(first.metric, estimate, estimate - half, estimate + half, p, confidence)


def _check_rows(rows: Sequence[Resampled]) -> None:
    if len({row.metric for row in rows}) != 1:
        raise DataError(
            f"The models have the metrics {', '.join(row.metric for row in rows)}; expected one "
            "metric."
        )
    if len({len(row.per_resample) for row in rows}) != 1:
        raise DataError(
            "The models have different numbers of resamples; expected the weights of one call of "
            "group_resamples."
        )


def tied_with_best(rows: Sequence[Resampled], confidence: float = 0.95) -> BoolArray:
    """Return which models are statistically tied with the best.

    The models form a confidence set: it contains the truly best model at the given confidence. A
    model is left out if some other model beats it by more than the largest of all differences
    would by chance: its largest difference in standard errors exceeds the 95 % quantile, over the
    resamples, of that same largest difference when each is centred at 0. Only the test of the
    truly best model can wrongly leave it out, so no further correction for the number of models is
    due. This is multiple comparison with the best (Hsu 1981, Annals of Statistics 9:1026) with a
    bootstrapped maximum in place of Dunnett's quantile, as in the confidence sets for the best of
    Mogstad, Romano, Shaikh and Wilhelm, https://arxiv.org/abs/2401.15205.

    Returns:
        bool array of shape (n_models,); True for the best by estimate and for all that tie with
        it.

    Raises:
        DataError: There are no models, they have different metrics or numbers of resamples, or
            `confidence` is not in (0.5, 1).
    """
    if not rows:
        raise DataError("There are no models to compare; expected at least one.")
    if confidence <= 0.5:
        raise DataError(f"`confidence` is {confidence}; expected above 0.5, such as 0.95.")
    _check_rows(rows)
    sign = 1.0 if _metric(rows[0].metric).higher_is_better else -1.0
    estimates = sign * np.array([row.estimate for row in rows])
    values = sign * np.stack([row.per_resample for row in rows])
    # The bootstrap's maximum is as much too narrow on few groups as its standard error is.
    n_groups = min(row.n_groups for row in rows)
    widening = _half_width(confidence, n_groups, sides=1) / stats.norm.ppf(confidence)
    tied = np.ones(len(rows), bool)
    for i in range(len(rows)):
        lead = estimates - estimates[i]
        deviation = values - values[i]
        deviation -= deviation.mean(axis=1, keepdims=True)
        error = deviation.std(axis=1)
        # A model and its copy, itself included, differ on no resample: nothing to test.
        differs = error > 1e-12
        if differs.any():
            largest = (deviation[differs] / error[differs, None]).max(axis=0)
            critical = widening * np.quantile(largest, confidence)
            tied[i] = (lead[differs] / error[differs]).max() <= critical
    return tied


def effect(name: str, change: Difference) -> str:
    """Return the sentence for an effect, such as "views: +1.8 points (95 % +0.9 to +2.7)".

    Args:
        name: What was changed.
        change: Metric with the change minus the metric without it. A share is shown in points,
            hundredths of the whole; the log loss in nats.
    """
    is_share = _metric(change.metric).is_share
    unit, scale, digits = ("points", 100, 1) if is_share else ("nats", 1, 3)
    value, low, high = (
        # Adding 0 turns a rounded -0.0 into 0.0.
        f"{round(scale * number, digits) + 0.0:+.{digits}f}"
        for number in (change.estimate, change.low, change.high)
    )
    return f"{name}: {value} {unit} ({100 * change.confidence:g} % {low} to {high})"
