"""The draw of whole groups that all uncertainty rests on, and how much of the spread it shows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.errors import DataError
from hubretrain.evaluation.metrics import metric_named


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
    n_groups, n_per_class = _groups_of_classes(groups, labels, metric)
    if len(n_per_class) == 1:
        return float(n_groups)
    variance = 1 / n_per_class
    # One group tells nothing about the spread of its class, yet 0 degrees of freedom would make
    # the sum infinite; 0.5 lets such a class dominate without that.
    freedom = variance.sum() ** 2 / (variance**2 / np.maximum(n_per_class - 1, 0.5)).sum()
    return float(np.clip(1 + freedom, 2, n_groups))


def _groups_of_classes(groups: AnyArray, labels: AnyArray, metric: str) -> tuple[int, FloatArray]:
    """Return the number of groups, and that of each class that a metric is the mean over."""
    group_of_image, n_groups = _numbered(groups)
    if len(labels) != len(group_of_image):
        raise DataError(
            f"`groups` has {len(group_of_image)} images and `labels` {len(labels)}; expected "
            "the same images."
        )
    if not metric_named(metric).is_mean_over_classes:
        return n_groups, np.array([float(n_groups)])
    if labels.ndim == 2:
        image, labels = np.nonzero(labels)
        group_of_image = group_of_image[image]
    pairs = np.unique(np.stack([labels, group_of_image]), axis=1)
    return n_groups, np.unique(pairs[0], return_counts=True)[1].astype(np.float64)


def bootstrap_widening(groups: AnyArray, labels: AnyArray, metric: str) -> float:
    """Return by what factor the bootstrap's standard error of a metric is too small on average.

    The bootstrap's variance of a mean over n groups has the divisor n where the unbiased one has
    n - 1 (Hesterberg 2015, https://arxiv.org/abs/1411.5279). Of a mean over classes it is smaller
    still where classes have few groups: a class of one has the same value in each resample that
    holds it, and the class is absent from more than a third of them. With groups that are equally
    uncertain in each class, independent and of one mean, of variance 1, the variance of the mean of
    K class means is sum_c 1 / n_c / K^2. The bootstrap draws N_c ~ Binomial(n, n_c / n) groups of
    class c, which is present with probability f_c = P(N_c > 0), and gives ::

        sum_c [f_c (1 - 1 / n_c) E(1 / N_c | N_c > 0) + f_c (1 - f_c) / n_c] / (sum_c f_c)^2

    its first term from the groups within a class, its second from absent classes. Of one class both
    variances are those above.
    """
    n_groups, n_per_class = _groups_of_classes(groups, labels, metric)
    n_drawn = np.arange(1, n_groups + 1)
    present, within = [], []
    for n in n_per_class:
        chance = stats.binom.pmf(n_drawn, n_groups, min(1.0, n / n_groups))
        present.append(chance.sum())
        within.append((1 - 1 / n) * (chance / n_drawn).sum())
    f = np.array(present)
    drawn = (np.array(within) + f * (1 - f) / n_per_class).sum() / f.sum() ** 2
    true = (1 / n_per_class).sum() / len(n_per_class) ** 2
    return float(np.sqrt(true / drawn)) if drawn > 0 else 1.0
