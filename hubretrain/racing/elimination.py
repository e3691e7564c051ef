"""Who is left out of a race: modules that will hardly become the best with all images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from hubretrain.evaluation import Resampled, intervals, metric_named

PRIOR_DRIFT = 0.01  # of a share, for each doubling of the images; and of a log loss
PRIOR_WEIGHT = 4.0  # in observed changes


def alive_after(
    rows: Mapping[str, Resampled], n_doublings: float, drift: float, confidence: float
) -> list[str]:
    """Return the modules that may still become the best, best first.

    On a slice the leads of modules over one another are uncertain twice: by the images that are
    evaluated, which the paired resamples show, and because they change as heads learn from more
    images, some modules gaining more than others. The second is taken for a random walk in the
    logarithm of the number of images, with the variance `drift ** 2` per doubling, so a lead has
    the variance of both. A module is left out where it is not tied with the best at that
    uncertainty: `hubretrain.evaluation.intervals.tied_with_best`.

    Args:
        rows: Module name to the metric of choice on the slice, on the same resamples.
        n_doublings: How many times the slice can still be doubled, log2; 0 with all images.
        drift: What `drift_of` returns.
        confidence: That the best is kept, of this comparison, (.5, 1).
    """
    names = list(rows)
    later = drift * math.sqrt(n_doublings)
    tied = intervals.tied_with_best([rows[name] for name in names], confidence, later)
    sign = -1.0 if metric_named(rows[names[0]].metric).higher_is_better else 1.0
    kept = [name for name, is_tied in zip(names, tied, strict=True) if is_tied]
    return sorted(kept, key=lambda name: (sign * rows[name].estimate, name))


def drift_of(history: Sequence[tuple[float, Mapping[str, float], Mapping[str, float]]]) -> float:
    """Return by how much a lead changes per doubling of the images: a standard deviation.

    Of the modules that two successive slices have in common it is seen how their distances to the
    mean changed; what the resamples explain of that is taken off. A prior of `PRIOR_DRIFT` counts
    as `PRIOR_WEIGHT` such changes, because there are few.

    Args:
        history: Of each slice, smallest first: log2 of its number of images, and module name to
            the estimate and to the standard error of its distance to the mean.
    """
    total, n = PRIOR_WEIGHT * PRIOR_DRIFT**2, PRIOR_WEIGHT
    for (size, values, errors), (next_size, next_values, next_errors) in pairwise(history):
        common = [name for name in values if name in next_values]
        if len(common) < 2 or next_size <= size:
            continue
        change = np.array([next_values[name] - values[name] for name in common])
        # Of a slice within the next, the change has at most the noise that they do not share.
        noise = np.array([errors[name] ** 2 - next_errors[name] ** 2 for name in common])
        spread = (change - change.mean()) ** 2 * len(common) / (len(common) - 1)
        total += float(np.clip(spread - np.maximum(noise, 0), 0, None).sum()) / (next_size - size)
        n += len(common)
    return math.sqrt(total / n)
