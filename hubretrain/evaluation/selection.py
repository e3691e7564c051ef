"""Choosing the best of many candidates, and what the choice is worth on images it never saw.

The best of many looks better than it is, because it was chosen for its luck too. So the choice
itself is cross-validated: groups are dealt out to two halves, the best candidate by one half says
what it says of the other. Every image then has probabilities of a candidate that was neither
fitted nor chosen on it, and any metric, interval or paired difference of these carries no luck of
the choice. It is nested cross-validation (Varma and Simon 2006,
https://doi.org/10.1186/1471-2105-7-91) whose inner folds are the out-of-fold probabilities that
are there already, which costs no further fit. Tsamardinos, Greasidou and Borboudakis (2018),
https://doi.org/10.1007/s10994-018-5714-4, correct a metric with a bootstrap in place of the parts;
here one prediction an image comes out, which serves all metrics, classes and comparisons.

Two parts, because the choices without each of many parts are mostly the same one, chosen on nearly
all images, and so is its luck: of 100 equally good candidates, 95 % intervals hold the truth 71
times in 100 with ten parts, 84 with five, 95 with two.

    parts = choice_parts(labels, groups)
    values = candidate_values(metric, candidates, labels, parts)
    choice = choose(values, metric)                  which is best, and which without each part
    crossfitted(choice, parts, lambda i: candidates[i])

Candidates are probabilities out of fold (n_images, n_classes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.errors import DataError
from hubretrain.evaluation.checks import AnyArray, FloatArray
from hubretrain.evaluation.metrics import METRICS

N_PARTS = 2


class Choice(NamedTuple):
    """Which candidate is best.

    Attributes:
        best: By all images; its own value is optimistic.
        without: int64 (n_parts,), the best by all images but those of each part.
    """

    best: int
    without: npt.NDArray[np.int64]


def choice_parts(
    labels: AnyArray, groups: AnyArray, *, n_parts: int = N_PARTS
) -> npt.NDArray[np.int64]:
    """Deals groups out to parts: whole groups, classes spread evenly.

    The names of the groups decide, not the order of the images.

    Args:
        labels: int (n_images,).
        groups: (n_images,), integers or text.
        n_parts: At most as many as there are groups are used.

    Returns:
        int64 (n_images,), from 0.

    Raises:
        DataError: Fewer than two groups.
    """
    codes, names = pd.factorize(np.asarray(groups), sort=True)
    if len(names) < 2:
        raise DataError(f"There are {len(names)} groups; a choice is checked on 2 or more.")
    # A group goes with the rarest of its classes, whose groups are the ones to spread.
    size = np.bincount(labels)
    rarity = np.argsort(np.argsort(size, kind="stable"), kind="stable")[labels]
    rarest = np.full(len(names), len(size))
    np.minimum.at(rarest, codes, rarity)
    part_of_group = np.empty(len(names), dtype=np.int64)
    part_of_group[np.lexsort((np.arange(len(names)), rarest))] = np.arange(len(names)) % n_parts
    return part_of_group[codes]


def candidate_values(
    metric: str, candidates: Iterable[AnyArray], labels: AnyArray, parts: AnyArray
) -> FloatArray:
    """Returns the metric of each candidate on all images, and without each part.

    Returns:
        float64 (1 + n_parts, n_candidates); NaN where the metric is undefined.

    Raises:
        DataError: No candidates; see `predictions.check_predictions`.
    """
    function = METRICS[metric].function
    kept = np.arange(-1, parts.max() + 1)[:, None] != parts
    columns = [function(one, labels, kept) for one in candidates]
    if not columns:
        raise DataError("There are no candidates to choose from; expected at least one.")
    return np.stack(columns, axis=1)


def choose(values: FloatArray, metric: str, among: AnyArray | None = None) -> Choice:
    """Returns the best candidate by `candidate_values`, of equals the first.

    Args:
        values: float64 (1 + n_parts, n_candidates).
        metric: A name in `METRICS`.
        among: bool (n_candidates,), which may be chosen; all by default.

    Raises:
        DataError: None may be chosen.
    """
    score = np.nan_to_num(values if METRICS[metric].higher_is_better else -values, nan=-np.inf)
    if among is not None:
        if not np.any(among):
            raise DataError("No candidate may be chosen; expected at least one.")
        score = np.where(among, score, -np.inf)
        first = int(np.argmax(among))
        # With nothing defined, argmax would fall on one that may not be chosen.
        best = np.where(np.isfinite(score.max(axis=1)), score.argmax(axis=1), first)
    else:
        best = score.argmax(axis=1)
    return Choice(int(best[0]), best[1:].astype(np.int64))


def crossfitted(choice: Choice, parts: AnyArray, said: Callable[[int], AnyArray]) -> AnyArray:
    """Returns, for each image, what the candidate chosen without its part says of it.

    Args:
        choice: From `choose`.
        parts: int (n_images,).
        said: A candidate's number to its values, (n_images, ...).
    """
    found = np.array(said(choice.best))
    for part, candidate in enumerate(choice.without):
        if candidate != choice.best:
            here = parts == part
            found[here] = said(int(candidate))[here]
    return found
