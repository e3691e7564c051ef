"""Quality of a split: how even its classes are, and which images it leaks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hubretrain.arrays import FloatArray
from hubretrain.data.splitting.codes import check_length, codes, label_codes
from hubretrain.data.splitting.folds import TEST, TRAIN, Column
from hubretrain.errors import SplitError


def worst_deviation(parts: Column, labels: Column, multi_label: bool = False) -> float:
    """Return the largest gap between the share of a class in one part and in all images.

    Args:
        parts: Part of each image, shape (n_images,).
        labels: Class of each image, shape (n_images,), as in `split_images`.
        multi_label: Whether an image may have several labels or none.

    Returns:
        Percentage points, 0 to 100; 0 without images.
    """
    rows, numbers, names = label_codes(labels, multi_label)
    part_codes, part_names = codes(parts, "part")
    check_length("parts", parts, len(labels))
    if not names:
        return 0.0
    counts = np.zeros((len(part_names), len(names)))
    np.add.at(counts, (part_codes[rows], numbers), 1)
    n_images = np.bincount(part_codes)
    shares = counts / n_images[:, None]
    return float(100 * np.abs(shares - counts.sum(axis=0) / n_images.sum()).max())


def part_table(parts: Column, labels: Column, multi_label: bool = False) -> pd.DataFrame:
    """Count the images of each class in each part.

    Args:
        parts: Part of each image, shape (n_images,).
        labels: Class of each image, shape (n_images,), as in `split_images`.
        multi_label: Whether an image may have several labels or none.

    Returns:
        int64 of shape (n_parts, n_classes): rows `test`, `train`, `fold 0`, ..., those that have
        images; columns the classes.
    """
    rows, numbers, names = label_codes(labels, multi_label)
    counts = pd.crosstab(np.asarray(parts)[rows], np.array(names, object)[numbers])
    present = sorted(set(np.asarray(parts).tolist()))
    order = [p for p in (TEST, TRAIN) if p in present] + [p for p in present if p >= 0]
    counts = counts.reindex(order, fill_value=0)
    part_names = {TEST: "test", TRAIN: "train"}
    counts.index = pd.Index([part_names.get(part, f"fold {part}") for part in order])
    counts.columns.name = None
    return counts


def leaked_images(parts: Column, groups: Column) -> int:
    """Count the validation and test images whose group is in another part too.

    Args:
        parts: Part of each image, `TEST`, `TRAIN` or a fold, shape (n_images,).
        groups: Group of each image, shape (n_images,).
    """
    group_codes, _ = codes(groups, "group")
    check_length("parts", parts, len(group_codes))
    table = pd.DataFrame({"part": np.asarray(parts), "group": group_codes})
    torn = table.groupby("group")["part"].transform("nunique") > 1
    return int((torn & (table["part"] != TRAIN)).sum())


def leak_chances(groups: Column, fraction: float = 0.2) -> FloatArray:
    """Return the chance of each validation image to be leaked by a split that ignores groups.

    Of n images m are drawn for validation, without replacement. Given that one image of a group
    of s is drawn, its s - 1 others are all drawn too with probability
    prod_{j=1}^{s-1} (m - j) / (n - j); otherwise at least one of them is trained on: a leak.

    Args:
        groups: Group of each image, shape (n_images,).
        fraction: Share of the images drawn for validation, (0, 1).

    Returns:
        float64 of shape (n_images,), [0, 1]; the mean is the expected share of validation images
        that leak.

    Raises:
        SplitError: One side of the split would be empty.
    """
    group_codes, _ = codes(groups, "group")
    n = len(group_codes)
    n_drawn = round(fraction * n)
    if not 0 < n_drawn < n:
        raise SplitError(
            f"A share of {fraction} of {n} images leaves one side empty; expected images on both."
        )
    sizes = np.bincount(group_codes)
    j = np.arange(1, max(int(sizes.max()), 2))
    all_drawn = np.cumprod(np.concatenate([[1.0], np.maximum(n_drawn - j, 0) / (n - j)]))
    return np.asarray(1 - all_drawn[sizes - 1][group_codes])


def kept_together(parts: Column, clusters: Column, grouped: bool, duplicates: bool) -> str:
    """Return the sentence of every leaderboard: what does not straddle splits, and what leaked.

    Args:
        parts: Part of each image, shape (n_images,).
        clusters: Cluster of each image, shape (n_images,).
        grouped: Whether the data set has groups.
        duplicates: Whether near duplicates were searched.
    """
    n = len(parts)
    n_leaked = leaked_images(parts, clusters)
    by_given = " by the given split" if n_leaked else ""
    by_random = f"{leak_chances(clusters).mean():.1%}" if 0 < round(0.2 * n) < n else "none"
    return (
        f"Groups kept together{'' if grouped else ' (none are given)'}, "
        f"duplicates {'' if duplicates else 'neither searched for nor '}kept together, "
        f"images leaked{by_given}: {n_leaked} (a random split would have leaked {by_random})."
    )
