"""Uncertainty of metrics: confidence intervals, paired differences and ties.

Everything rests on one draw of resamples: whole groups, drawn with replacement, as weights per
image. All models of a leaderboard share the draw, so their differences are paired.

    weights = group_resamples(groups)
    rows = [resample("macro_f1", probs, labels, groups, weights) for probs in models]
    interval(rows[0])               one model                   -> estimate, low, high
    interval(rows[0], 0.95, row)    a model chosen among many   -> estimate, low, high
    difference(rows[0], rows[1])    two models, paired          -> estimate, low, high, p
    tied_with_best(rows)            which models may be best    -> True or False for each

Everywhere `metric` is a name in `METRICS`, `labels` are integers of shape (n_images,) (or it is one
in `LABEL_METRICS` and they are indicators, bool of shape (n_images, n_classes)), `groups`
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

Selection bias is not in the estimates: `hubretrain.evaluation.selection` removes it from the
predictions before they come here. Such predictions come with their parts, each perhaps of another
model; see `hubretrain.evaluation.parts`. Half of the images choose worse than all do, so they are
worse than the model that is deployed, which all images chose, on new images; what that model shows
on the images that chose it is better. Its interval reaches from the one to the other: `interval`
takes both.

Heads out of fold were trained on fewer images than the deployed one, which makes an interval
pessimistic, and these images and no others: Bates, Hastie and Tibshirani (2023), Cross-validation:
what does it estimate, https://arxiv.org/abs/2104.00673. `benchmarks/bench_honesty.py coverage`
trains anew each time, and has what remains of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from hubretrain.arrays import AnyArray, BoolArray, FloatArray
from hubretrain.errors import DataError
from hubretrain.evaluation.metrics import metric_named
from hubretrain.evaluation.parts import metric_values
from hubretrain.evaluation.resamples import bootstrap_widening, effective_groups, group_resamples

__all__ = [
    "Difference",
    "Interval",
    "Resampled",
    "difference",
    "effect",
    "effective_groups",
    "group_resamples",
    "interval",
    "resample",
    "tied_with_best",
]

NO_SPREAD = 1e-12  # of a standard error: rounding of sums that are equal on all resamples


class Resampled(NamedTuple):
    """A metric of one model, on the images themselves and on every resample.

    Attributes:
        metric: Name in `METRICS`.
        estimate: Value on the images themselves.
        per_resample: Values on the resamples, float64 array of shape (n_resamples,); models that
            are compared share the resamples.
        n_groups: Number of groups that the spread rests on; see `effective_groups`.
        widening: Factor that makes the bootstrap's standard error unbiased, see
            `bootstrap_widening`; at least that of a mean over `n_groups` groups is taken.
    """

    metric: str
    estimate: float
    per_resample: FloatArray
    n_groups: float
    widening: float = 1.0


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
        labels: Integer array of shape (n_images,), or indicators of several labels.
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
    metric_named(metric)
    estimate = float(metric_values(metric, probabilities, labels, None, parts))
    values = metric_values(metric, probabilities, labels, weights, parts)
    # In a resample with one class present ROC AUC is undefined; the estimate adds no spread.
    values = np.where(np.isnan(values), estimate, values)
    if np.isnan(estimate):
        raise DataError(
            f"`metric` {metric} is undefined for labels of one class; expected at least 2."
        )
    n_groups = effective_groups(groups, labels, metric)
    widening = bootstrap_widening(groups, labels, metric)
    return Resampled(metric, estimate, values, n_groups, widening)


def _half_width(confidence: float, n_groups: float, widening: float, sides: int = 2) -> float:
    """Return the half width of a confidence interval, in bootstrap standard errors.

    It is Student's quantile for n - 1 degrees of freedom, at least 1, times what makes the
    standard error unbiased.
    """
    freedom = max(n_groups - 1, 1.0)
    return float(stats.t.isf((1 - confidence) / sides, freedom)) * _factor(n_groups, widening)


def _factor(n_groups: float, widening: float) -> float:
    """Return what makes a standard error unbiased: at least that of a mean over so many groups."""
    n = max(n_groups, 2.0)
    return max(widening, float(np.sqrt(n / (n - 1))))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"`confidence` is {confidence}; expected between 0 and 1, such as 0.95.")


def _unseen(confidence: float, n_groups: float, sides: int = 2) -> float:
    """Return the share of groups of which none may be seen among `n_groups`, by chance.

    The share q with (1 - q) ** n_groups = (1 - confidence) / sides: Clopper and Pearson (1934),
    https://doi.org/10.1093/biomet/26.4.404.
    """
    return float(1 - ((1 - confidence) / sides) ** (1 / n_groups))


def interval(
    row: Resampled, confidence: float = 0.95, deployed: Resampled | None = None
) -> Interval:
    """Return the confidence interval of one model's metric.

    It is estimate +- Student's quantile x bootstrap standard error, computed on the logit scale
    for shares and on the log scale for the log loss, and transformed back. So the interval stays
    inside [0, 1] and reaches further away from an end than towards it; Boyd, Eng and Page (2013)
    found that best for the average precision, https://doi.org/10.1007/978-3-642-40994-3_29.

    Where no resample moves a share, all groups have the same one, x, as a single group has. By
    Markov's inequality n groups of at least x are more probable than (1 - confidence) / 2 only if
    the share of all is at least x (1 - q), with q of `_unseen`, and likewise from above. So ends
    the interval; of 1 and 0 this is Clopper and Pearson's. A log loss has no largest value, so its
    upper end is as far on the log scale.

    With `deployed`, the value on new images lies between two expectations, one too low and one too
    high, and the interval holds all that is between them: Imbens and Manski (2004), Confidence
    intervals for partially identified parameters, https://doi.org/10.1111/j.1468-0262.2004.00555.x.
    Where both agree it is the interval of one; the further apart they are, the more the quantile
    falls, to that of one side, because the value cannot be near both ends.

    Args:
        row: Metric of the predictions; if cross-fitted, of models that each part chose for the
            other.
        confidence: Share of the cases in which the interval holds the value, in (0, 1).
        deployed: The same metric, on the same resamples, of the one model that all images chose;
            None where `row` is of that model already.

    Returns:
        The estimate of `row`, with the ends.

    Raises:
        DataError: The metrics differ, or `confidence` is not in (0, 1).
    """
    _check_confidence(confidence)
    rows = [row] if deployed is None else [row, deployed]
    _check_rows(rows)
    if not all(_has_error(each) for each in rows):
        ends = [_ends_without_error(each, confidence) for each in rows]
        return Interval(row.estimate, min(low for low, _ in ends), max(high for _, high in ends))
    is_share = metric_named(row.metric).is_share
    values = np.array([each.estimate for each in rows])
    # Delta method: the standard error of f(x) is that of x times f'(x), which is 1 / (x (1 - x))
    # of the logit and 1 / x of the logarithm.
    slopes = 1 / (values * (1 - values)) if is_share else 1 / values
    errors = slopes * [
        each.per_resample.std() * _factor(each.n_groups, each.widening) for each in rows
    ]
    values = special.logit(values) if is_share else np.log(values)
    quantile = _quantile(confidence, row.n_groups, float(np.ptp(values)), float(errors.max()))
    lowest, highest = values.argmin(), values.argmax()
    ends_of = np.array(
        [
            values[lowest] - quantile * errors[lowest],
            values[highest] + quantile * errors[highest],
        ]
    )
    low, high = special.expit(ends_of) if is_share else np.exp(ends_of)
    return Interval(row.estimate, float(low), float(high))


def _has_error(row: Resampled) -> bool:
    """Return whether resamples tell how uncertain a metric is."""
    is_at_end = row.estimate in ((0, 1) if metric_named(row.metric).is_share else (0,))
    return not is_at_end and float(row.per_resample.std()) > NO_SPREAD


def _ends_without_error(row: Resampled, confidence: float) -> tuple[float, float]:
    """Return the ends of the interval of a metric, also where resamples tell nothing."""
    if _has_error(row):
        _, low, high = interval(row, confidence)
        return low, high
    seen = 1 - _unseen(confidence, row.n_groups)
    if not metric_named(row.metric).is_share:
        return row.estimate * seen, row.estimate / seen
    return row.estimate * seen, 1 - (1 - row.estimate) * seen


def _quantile(confidence: float, n_groups: float, gap: float, error: float) -> float:
    """Return the quantile for an interval around all that lies between two expectations.

    It is the c with T(c + gap / error) - T(-c) = confidence, T Student's distribution function for
    n_groups - 1 degrees of freedom, at least 1: from the two-sided quantile, without a gap, to the
    one-sided one.
    """
    freedom = max(n_groups - 1, 1.0)
    two_sided = float(stats.t.isf((1 - confidence) / 2, freedom))
    if gap <= 0 or error <= 0:
        return two_sided

    def excess(c: float) -> float:
        return float(stats.t.cdf(c + gap / error, freedom) - stats.t.cdf(-c, freedom)) - confidence

    one_sided = float(stats.t.isf(1 - confidence, freedom))
    if excess(one_sided) >= 0:  # so far apart that rounding leaves nothing of the other end
        return one_sided
    return float(optimize.brentq(excess, one_sided, two_sided))


def difference(first: Resampled, second: Resampled, confidence: float = 0.95) -> Difference:
    """Return the paired difference of two models' metrics: the first minus the second.

    The interval is estimate +- Student's quantile x bootstrap standard error of the difference on
    the same resamples. Where no resample moves a difference, all groups have the same one. Then
    the half width is what the share of groups that may be unseen by chance, `_unseen`, could make
    of it if they had the opposite extreme: of a share -1 or 1, of a log loss the negative. Two
    models without any difference are one model, as far as these images tell: its interval is 0.

    Raises:
        DataError: The models have different metrics or numbers of resamples.
    """
    _check_rows([first, second])
    _check_confidence(confidence)
    estimate = first.estimate - second.estimate
    error = float((first.per_resample - second.per_resample).std())
    n_groups = min(first.n_groups, second.n_groups)
    is_share = metric_named(first.metric).is_share
    if abs(estimate) <= NO_SPREAD and error <= NO_SPREAD:
        half, p = 0.0, 1.0
    elif error <= NO_SPREAD:
        furthest = _furthest(estimate, is_share=is_share)
        half = furthest * _unseen(confidence, n_groups)
        p = min(1.0, 2 * float(1 - abs(estimate) / furthest) ** n_groups)
    else:
        half = _half_width(confidence, n_groups, first.widening) * error
        # The inverse of `_half_width`: the confidence at which the interval just touches 0.
        student = abs(estimate) / (error * _factor(n_groups, first.widening))
        p = float(2 * stats.t.sf(student, max(n_groups - 1, 1.0)))
    low, high = estimate - half, estimate + half
    if is_share:
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(first.metric, estimate, low, high, p, confidence)


def _furthest(estimate: float, *, is_share: bool) -> float:
    """Return how far from a difference that of a group that was not seen may be."""
    return (1.0 if is_share else abs(estimate)) + abs(estimate)


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


def tied_with_best(
    rows: Sequence[Resampled], confidence: float = 0.95, later: float = 0.0
) -> BoolArray:
    """Return which models are statistically tied with the best.

    The models form a confidence set: it contains the truly best model at the given confidence. A
    model is left out if some other model beats it by more than the largest of all differences
    would by chance: its largest difference in standard errors exceeds the 95 % quantile, over the
    resamples, of that same largest difference when each is centred at 0. Only the test of the
    truly best model can wrongly leave it out, so no further correction for the number of models is
    due. This is multiple comparison with the best (Hsu 1981, Annals of Statistics 9:1026) with a
    bootstrapped maximum in place of Dunnett's quantile, as in the confidence sets for the best of
    Mogstad, Romano, Shaikh and Wilhelm, https://arxiv.org/abs/2401.15205.

    A lead that no resample moves has no standard error. It leaves a model out where its one-sided
    interval, as `difference` has it, excludes 0.

    Args:
        rows: The metric of each model, on the same resamples.
        confidence: That the best is among the tied, in (.5, 1).
        later: Standard deviation of what a lead may still change by for other reasons than these
            images, such as more images to train on; added in quadrature to its standard error.

    Returns:
        bool array of shape (n_models,); True for the best by estimate and for all that tie with
        it.

    Raises:
        DataError: There are no models, they have different metrics or numbers of resamples, or
            `confidence` is not in (0.5, 1).
    """
    if not rows:
        raise DataError("There are no models to compare; expected at least one.")
    _check_confidence(confidence)
    if confidence <= 0.5:
        raise DataError(f"`confidence` is {confidence}; expected above 0.5, such as 0.95.")
    _check_rows(rows)
    metric = metric_named(rows[0].metric)
    sign = 1.0 if metric.higher_is_better else -1.0
    estimates = sign * np.array([row.estimate for row in rows])
    values = sign * np.stack([row.per_resample for row in rows])
    # The bootstrap's maximum is as much too narrow on few groups as its standard error is.
    n_groups = min(row.n_groups for row in rows)
    widening = _half_width(confidence, n_groups, rows[0].widening, sides=1)
    widening /= stats.norm.ppf(confidence)
    unseen = _unseen(confidence, n_groups, sides=1)
    tied = np.ones(len(rows), bool)
    for i in range(len(rows)):
        lead = estimates - estimates[i]
        deviation = values - values[i]
        deviation -= deviation.mean(axis=1, keepdims=True)
        error = deviation.std(axis=1)
        differs = error > NO_SPREAD
        if differs.any():
            largest = (deviation[differs] / error[differs, None]).max(axis=0)
            critical = widening * np.quantile(largest, confidence)
            tied[i] = (lead[differs] / np.hypot(error[differs], later)).max() <= critical
        # A model and its copy, itself included, differ nowhere: nothing to test.
        constant = lead[~differs].max() - stats.norm.ppf(confidence) * later
        tied[i] &= constant <= max(
            _furthest(constant, is_share=metric.is_share) * unseen, NO_SPREAD
        )
    return tied


def effect(name: str, change: Difference) -> str:
    """Return the sentence for an effect, such as "views: +1.8 points (95 % +0.9 to +2.7)".

    Args:
        name: What was changed.
        change: Metric with the change minus the metric without it. A share is shown in points,
            hundredths of the whole; the log loss in nats.
    """
    is_share = metric_named(change.metric).is_share
    unit, scale, digits = ("points", 100, 1) if is_share else ("nats", 1, 3)
    value, low, high = (
        # Adding 0 turns a rounded -0.0 into 0.0.
        f"{round(scale * number, digits) + 0.0:+.{digits}f}"
        for number in (change.estimate, change.low, change.high)
    )
    return f"{name}: {value} {unit} ({100 * change.confidence:g} % {low} to {high})"
