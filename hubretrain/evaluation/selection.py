"""Cross-fitted selection: measure the best of many candidates on images that did not choose it.

The best of many candidates looks better than it is, because it was chosen for its chance errors
too. So the choice itself is cross-validated: the groups are divided into two parts, and the best
candidate by one part predicts the other part. Every image then has probabilities of a candidate
that was neither fitted nor chosen on it, and any metric, confidence interval or paired difference
comes without the optimism of choosing and measuring on the same images. If the values that are
chosen by are of heads fitted without the part, it is nested cross-validation (Varma and Simon 2006,
https://doi.org/10.1186/1471-2105-7-91). If they are the out-of-fold values that exist already, it
costs no further fit, but the heads of one part have seen the labels of the other: enough for
candidates on the same features, not for competing modules; see `hubretrain.screening.selection`.
Tsamardinos, Greasidou and Borboudakis (2018),
https://doi.org/10.1007/s10994-018-5714-4, correct one metric by a bootstrap instead; here one
prediction per image results, which serves all metrics, classes and comparisons.

Two parts, because the choices made without each of many parts are mostly the same choice, made on
nearly all images, and so is its bias: of 100 equally good candidates, 95 % intervals hold the
truth 71 times in 100 with ten parts, 84 with five, 95 with two.

    parts = choice_parts(labels, groups)
    values = candidate_values(metric, candidates, labels, parts)
    choice = choose(values, metric)                  the best of all, and the best without each part
    crossfitted(choice, parts, lambda i: candidates[i])

Candidates are out-of-fold probabilities of shape (n_images, n_classes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.errors import DataError
from hubretrain.evaluation.label_thresholds import best_thresholds
from hubretrain.evaluation.metrics import metric_named

N_PARTS = 2


class Choice(NamedTuple):
    """The best candidate, by all images and without each part.

    Attributes:
        best: Index of the best candidate by all images; its own value is optimistic.
        without: int64 array of shape (n_parts,): for each part, the index of the best candidate
            by all images outside of it.
    """

    best: int
    without: IntArray


def choice_parts(labels: AnyArray, groups: AnyArray, *, n_parts: int = N_PARTS) -> IntArray:
    """Divide the images into parts of whole groups over which the classes spread evenly.

    The names of the groups decide, not the order of the images.

    Args:
        labels: Integer array of shape (n_images,); or, where an image may have several, bool
            (n_images, n_labels): then groups of the same labels are dealt out in turn.
        groups: Group of each image, integers or text of shape (n_images,).
        n_parts: Number of parts; at most as many as there are groups are used.

    Returns:
        int64 array of shape (n_images,): the part of each image, from 0.

    Raises:
        DataError: There are fewer than two groups.
    """
    codes, names = pd.factorize(np.asarray(groups), sort=True)
    if len(names) < 2:
        raise DataError(f"There are {len(names)} groups; nested selection needs at least 2.")
    if labels.ndim == 2:
        order = _by_labels(labels, codes, len(names))
    else:
        # A group goes with the rarest of its classes, whose few groups must be spread first.
        n_per_class = np.bincount(labels)
        rarity = np.argsort(np.argsort(n_per_class, kind="stable"), kind="stable")[labels]
        rarest = np.full(len(names), len(n_per_class))
        np.minimum.at(rarest, codes, rarity)
        order = np.lexsort((np.arange(len(names)), rarest))
    part_of_group = np.empty(len(names), dtype=np.int64)
    part_of_group[order] = np.arange(len(names)) % n_parts
    return part_of_group[codes]


def _by_labels(labels: BoolArray, codes: IntArray, n_groups: int) -> IntArray:
    """Return the groups in the order of their rarest label, then of the next, and so on."""
    rare_first = np.argsort(labels.sum(axis=0), kind="stable")
    has = np.zeros((n_groups, labels.shape[1]), bool)
    np.logical_or.at(has, codes, labels[:, rare_first])
    as_text = np.packbits(~has, axis=1)
    return np.lexsort((np.arange(n_groups), *as_text.T[::-1]))


def candidate_values(
    metric: str, candidates: Iterable[AnyArray], labels: AnyArray, parts: AnyArray
) -> FloatArray:
    """Return the metric of each candidate on all images, and on the images outside each part.

    Of several labels per image, a metric of decisions is that at the best thresholds of these very
    images: to compare candidates by, not to report.

    Returns:
        float64 array of shape (1 + n_parts, n_candidates), all images first; NaN where the
        metric is undefined.

    Raises:
        DataError: There are no candidates, or they are no predictions; see `check_predictions`.
    """
    # Row 0 compares with part -1, which no image is in, so it keeps all images.
    kept = np.arange(-1, parts.max() + 1)[:, None] != parts
    columns = [_values(metric, probs, labels, kept) for probs in candidates]
    if not columns:
        raise DataError("There are no candidates to choose from; expected at least one.")
    return np.stack(columns, axis=1)


def _values(metric: str, probs: AnyArray, labels: AnyArray, kept: BoolArray) -> FloatArray:
    of = metric_named(metric)
    if labels.ndim == 1 or not of.is_of_decision:
        return of.function(probs, labels, kept)
    values = [value_at_best(metric, probs[rows], labels[rows]) for rows in kept]
    return np.array(values)


def value_at_best(metric: str, probs: AnyArray, labels: AnyArray) -> float:
    """Return a metric; of decisions on several labels at the best thresholds of these images."""
    if labels.ndim == 2 and metric_named(metric).is_of_decision:
        probs = best_thresholds(probs, labels).adjust(probs)
    return float(metric_named(metric).function(probs, labels, None))


def choose(values: FloatArray, metric: str, among: AnyArray | None = None) -> Choice:
    """Return the best candidate by `candidate_values`; of equal ones the first.

    Args:
        values: float64 array of shape (1 + n_parts, n_candidates).
        metric: Name of a metric, which tells whether higher or lower values are better.
        among: bool array of shape (n_candidates,) of those that may be chosen; None for all.

    Raises:
        DataError: No candidate may be chosen.
    """
    score = np.nan_to_num(values if metric_named(metric).higher_is_better else -values, nan=-np.inf)
    if among is not None:
        if not np.any(among):
            raise DataError("No candidate may be chosen; expected at least one.")
        score = np.where(among, score, -np.inf)
        first = int(np.argmax(among))
        # With nothing defined, argmax would fall on a candidate that may not be chosen.
        best = np.where(np.isfinite(score.max(axis=1)), score.argmax(axis=1), first)
    else:
        best = score.argmax(axis=1)
    return Choice(int(best[0]), best[1:].astype(np.int64))


def crossfitted(
    choice: Choice, parts: AnyArray, probabilities_of: Callable[[int], AnyArray]
) -> AnyArray:
    """Return, for each image, the probabilities of the candidate that was chosen without its part.

    Args:
        choice: Result of `choose`.
        parts: int array of shape (n_images,), of `choice_parts`.
        probabilities_of: Function from a candidate's index to its values, (n_images, ...).
    """
    probs = np.array(probabilities_of(choice.best))
    for part, candidate in enumerate(choice.without):
        if candidate != choice.best:
            in_part = parts == part
            probs[in_part] = probabilities_of(int(candidate))[in_part]
    return probs
