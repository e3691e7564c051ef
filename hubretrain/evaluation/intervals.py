"""How sure a leaderboard is: intervals, differences and ties.

Everything rests on one draw of resamples: whole groups, drawn with replacement, as weights per
image. All models of a leaderboard share it, so their differences are paired.

    weights = group_resamples(groups)
    rows = [resample("macro_f1", model, labels, groups, weights) for model in probabilities]
    interval(rows[0])               one model                  -> estimate, low, high
    difference(rows[0], rows[1])    two models, paired         -> estimate, low, high, p
    tied_with_best(rows)            which may be the best      -> True or False for each

Everywhere `metric` is a name in `METRICS`, `labels` are integers (n_images,), `groups` say which
group each image belongs to (n_images,), `weights` come from `group_resamples` (n_resamples,
n_images), and `confidence` lies in (0, 1). What does not fit raises a DataError.

Groups are drawn, not images, because images of one group share their luck: Field and Welsh (2007),
Bootstrapping clustered data, JRSS B 69:369, https://doi.org/10.1111/j.1467-9868.2007.00593.x.
They are not drawn within classes: a new sample would have other numbers of images of each class
too, and 95 % intervals that keep them fixed held the truth only 92 and 90 times in 100 for the
accuracy and the log loss of 1,000 images.

Measured so (benchmarks/bench_intervals.py), intervals hold the truth 93 to 97 times in 100, with
seven groups in the rarest class. They do less well for the macro F1 of so few (93), a ROC AUC of
0.995 (92), and the calibration error of 1,000 images (90), which is biased.

The luck of having been chosen is not in these intervals either;
`hubretrain.evaluation.selection` takes it
out of the predictions before they come here.

What none of this sees is that other training images would have given other heads. An interval is
about these predictions on new groups, not about training again: Bates, Hastie and Tibshirani
(2023), Cross-validation: what does it estimate, https://arxiv.org/abs/2104.00673.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from hubretrain.errors import DataError
from hubretrain.evaluation.checks import AnyArray, FloatArray
from hubretrain.evaluation.metrics import METRICS, Metric
from hubretrain.evaluation.ranking_metrics import TINY


class Resampled(NamedTuple):
    """A metric of one model, on the images as they are and on every resample.

    Attributes:
        metric: A name in `METRICS`.
        estimate: On the images as they are.
        per_resample: float64, shape (n_resamples,); the same resamples for all models compared.
        n_groups: How many groups the spread rests on: `effective_groups`.
    """

    metric: str
    estimate: float
    per_resample: FloatArray
    n_groups: float


class Interval(NamedTuple):
    """An estimate and the ends of its interval, in the units of the metric."""

    estimate: float
    low: float
    high: float


class Difference(NamedTuple):
    """A metric of one model less that of another, in the units of the metric.

    Attributes:
        metric: A name in `METRICS`.
        estimate: Positive where the first model has the larger value, better or not.
        low: Lower end of the interval.
        high: Upper end of the interval.
        p: The smallest 1 - confidence whose interval leaves out 0, two-sided, in [0, 1].
        confidence: Of the interval.
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
    """Returns how often each resample of the groups holds each image.

    Each resample draws as many groups as there are, with replacement, and takes all images of
    each. Its number of images therefore varies. The same groups and seed give the same weights.

    Args:
        groups: Which group each image belongs to; integers or text, shape (n_images,).
        n_resamples: At least 1; 1,000 for 95 % intervals.
        seed: Of the draw.

    Returns:
        uint8, shape (n_resamples, n_images).

    Raises:
        DataError: Fewer than two groups, a missing group, or fewer than one resample.
    """
    of_image, n_groups = _numbered(groups)
    if n_resamples < 1:
        raise DataError(f"{n_resamples} resamples were asked for; expected at least 1.")
    rng = np.random.default_rng(seed)
    weights = np.empty((n_resamples, len(of_image)), np.uint8)
    for row in weights:
        # A group drawn more than 255 times out of n draws with chance 1 / n does not occur.
        drawn = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        row[:] = drawn.astype(np.uint8)[of_image]
    return weights


def _numbered(groups: AnyArray) -> tuple[npt.NDArray[np.int64], int]:
    """Returns the number of each image's group, and how many groups there are."""
    groups = np.asarray(groups)
    if groups.ndim != 1:
        raise DataError(f"Groups have shape {groups.shape}; expected (n_images,).")
    codes, names = pd.factorize(groups)
    if (codes < 0).any():
        raise DataError(f"{(codes < 0).sum()} images have no group; give each one a group.")
    if len(names) < 2:
        raise DataError(
            f"There are {len(names)} groups; intervals need at least 2, so group by something "
            "finer, or by image."
        )
    return codes, len(names)


def effective_groups(groups: AnyArray, labels: AnyArray, metric: str) -> float:
    """Returns how many groups the spread of a metric rests on.

    For metrics that count images, all groups. For means over classes, the classes with the fewest
    groups decide: were the metric equally uncertain per group in each class, its variance would
    be the sum over classes of 1 / groups of the class, and the number of groups with which one
    would know that variance as well is 1 + Satterthwaite's degrees of freedom (1946),
    https://doi.org/10.2307/3002019.

    Returns:
        At least 2, at most the number of groups.
    """
    of_image, n_groups = _numbered(groups)
    if np.shape(labels) != of_image.shape:
        raise DataError(
            f"The groups are for {len(of_image)} images and the labels for {np.size(labels)}."
        )
    if not _metric(metric).is_mean_over_classes:
        return float(n_groups)
    pairs = np.unique(np.stack([labels, of_image]), axis=1)
    of_class = np.unique(pairs[0], return_counts=True)[1].astype(np.float64)
    variance = 1 / of_class
    # A class with one group says nothing of its spread, but 0 degrees of freedom has no quantile.
    freedom = variance.sum() ** 2 / (variance**2 / np.maximum(of_class - 1, 0.5)).sum()
    return float(np.clip(1 + freedom, 2, n_groups))


def resample(
    metric: str,
    probabilities: AnyArray,
    labels: AnyArray,
    groups: AnyArray,
    weights: AnyArray,
) -> Resampled:
    """Returns a metric of one model on the images and on every resample.

    `probabilities` are out of fold, shape (n_images, n_classes), as `metrics.check_predictions`
    wants them.

    Raises:
        DataError: See there; an unknown metric; or one that is undefined, as ROC AUC is with one
            class present.
    """
    function = _metric(metric).function
    estimate = float(function(probabilities, labels, None))
    values = function(probabilities, labels, weights)
    # A resample without any image of a rare class may leave ROC AUC nothing to compare.
    values = np.where(np.isnan(values), estimate, values)
    if np.isnan(estimate):
        raise DataError(f"{metric} is undefined for these labels; expected at least two classes.")
    return Resampled(metric, estimate, values, effective_groups(groups, labels, metric))


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise DataError(f"There is no metric {name!r}; expected one of {', '.join(METRICS)}.")
    return METRICS[name]


def _reach(confidence: float, n_groups: float, sides: int = 2) -> float:
    """Returns how many bootstrap standard errors an interval reaches to each side.

    Student's quantile for n - 1 degrees of freedom, times sqrt(n / (n - 1)) because a bootstrap
    spreads as if divided by n: Hesterberg (2015), What teachers should know about the bootstrap,
    https://arxiv.org/abs/1411.5279.
    """
    if not 0 < confidence < 1:
        raise DataError(f"The confidence is {confidence}; expected between 0 and 1, such as 0.95.")
    student = stats.t.isf((1 - confidence) / sides, n_groups - 1)
    return float(student * np.sqrt(n_groups / (n_groups - 1)))


def _ends(
    metric: str, estimate: float, error: float, n_groups: float, confidence: float
) -> tuple[float, float]:
    """Returns the interval around an estimate with that standard error; see `interval`."""
    half = _reach(confidence, n_groups) * error
    if not _metric(metric).is_share:
        # The derivative of log(x) is 1 / x.
        factor = np.exp(half / estimate) if estimate > 0 else 1.0
        return float(estimate / factor), float(estimate * factor)
    if estimate in (0, 1):
        beyond = ((1 - confidence) / 2) ** (1 / n_groups)
        return (beyond, 1.0) if estimate == 1 else (0.0, 1 - beyond)
    # The derivative of logit(x) is 1 / (x (1 - x)).
    half /= estimate * (1 - estimate)
    low, high = special.expit(special.logit(estimate) + np.array([-half, half]))
    return float(low), float(high)


def interval(row: Resampled, confidence: float = 0.95) -> Interval:
    """Returns the interval of one model's metric.

    Estimate +- Student's quantile x bootstrap standard error, on the logit scale for shares and
    the log scale for the log loss, and back. So the interval keeps inside [0, 1] and reaches
    further away from an end than towards it: Boyd, Eng and Page (2013) found that best for the
    average precision, https://doi.org/10.1007/978-3-642-40994-3_29. A share of exactly 0 or 1,
    which no resample moves, gets what Clopper and Pearson (1934) give to that many right groups,
    https://doi.org/10.1093/biomet/26.4.404.
    """
    error = float(row.per_resample.std())
    ends = _ends(row.metric, row.estimate, error, row.n_groups, confidence)
    return Interval(row.estimate, *ends)


def difference(first: Resampled, second: Resampled, confidence: float = 0.95) -> Difference:
    """Returns how much larger the metric of the first model is, on the same resamples.

    Estimate +- Student's quantile x bootstrap standard error of the paired difference.

    Raises:
        DataError: Different metrics or numbers of resamples.
    """
    _check_rows([first, second])
    estimate = first.estimate - second.estimate
    error = float((first.per_resample - second.per_resample).std())
    n_groups = min(first.n_groups, second.n_groups)
    half = _reach(confidence, n_groups) * error
    p = 1.0
    if estimate != 0:
        # The inverse of `_reach`: the confidence with which the interval just touches 0.
        away = abs(estimate) / max(error, TINY) * np.sqrt((n_groups - 1) / n_groups)
        p = float(2 * stats.t.sf(away, n_groups - 1))
    return Difference(first.metric, estimate, estimate - half, estimate + half, p, confidence)


def compare(
    metric: str,
    first: AnyArray,
    second: AnyArray,
    labels: AnyArray,
    groups: AnyArray,
    weights: AnyArray,
    confidence: float = 0.95,
) -> Difference:
    """Returns `difference` of the `resample` of each; of many models, resample each just once."""
    one, other = (resample(metric, model, labels, groups, weights) for model in (first, second))
    return difference(one, other, confidence)


def _check_rows(rows: Sequence[Resampled]) -> None:
    if len({row.metric for row in rows}) != 1:
        raise DataError(
            f"The models have metrics {', '.join(row.metric for row in rows)}; expected one."
        )
    if len({len(row.per_resample) for row in rows}) != 1:
        raise DataError("The models have different numbers of resamples; draw the groups once.")


def tied_with_best(rows: Sequence[Resampled], confidence: float = 0.95) -> npt.NDArray[np.bool_]:
    """Returns which models cannot be told from the best: a set with the best in it at 95 %.

    A model is left out when some other beats it by more than the luckiest of all others would by
    chance: its largest difference in standard errors exceeds the 95 % quantile of that same
    largest difference over the resamples, each less its mean. Only the test of the
    truly best model can lose it, so no further correction for the number of models is due. This
    is multiple comparison with the best (Hsu 1981, Annals of Statistics 9:1026) with a
    bootstrapped maximum in place of Dunnett's quantile, as the confidence sets for the best of
    Mogstad, Romano, Shaikh and Wilhelm have it, https://arxiv.org/abs/2401.15205.

    Returns:
        bool, shape (n_models,); True for the best by estimate and for all that tie with it.

    Raises:
        DataError: No models, different metrics or numbers of resamples, or a confidence that is
            not in (0.5, 1).
    """
    if not rows:
        raise DataError("There are no models to compare; expected at least one.")
    if confidence <= 0.5:
        raise DataError(f"The confidence is {confidence}; expected above 0.5, such as 0.95.")
    _check_rows(rows)
    sign = 1.0 if _metric(rows[0].metric).higher_is_better else -1.0
    estimates = sign * np.array([row.estimate for row in rows])
    values = sign * np.stack([row.per_resample for row in rows])
    # On few groups the largest difference, too, spreads more than its resamples.
    wider = _reach(confidence, min(row.n_groups for row in rows), 1) / stats.norm.ppf(confidence)
    tied = np.ones(len(rows), bool)
    for i in range(len(rows)):
        ahead = estimates - estimates[i]
        luck = values - values[i]
        luck -= luck.mean(axis=1, keepdims=True)
        error = luck.std(axis=1)
        # Between a model and itself, or its copy, there is no luck to measure.
        other = error > 1e-12
        if other.any():
            luckiest = (luck[other] / error[other, None]).max(axis=0)
            critical = wider * np.quantile(luckiest, confidence)
            tied[i] = (ahead[other] / error[other]).max() <= critical
    return tied


def effect(name: str, change: Difference) -> str:
    """Returns the sentence for an effect, such as "views: +1.8 points (95 % +0.9 to +2.7)".

    `name` is what was changed, `change` the metric with it less without it. Shares are told in
    points, hundredths of the whole; the log loss in nats.
    """
    is_share = _metric(change.metric).is_share
    unit, scale, digits = ("points", 100, 1) if is_share else ("nats", 1, 3)
    value, low, high = (
        # Adding 0 turns a rounded -0.0 into 0.0.
        f"{round(scale * number, digits) + 0.0:+.{digits}f}"
        for number in (change.estimate, change.low, change.high)
    )
    return f"{name}: {value} {unit} ({100 * change.confidence:g} % {low} to {high})"
