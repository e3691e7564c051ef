"""What a split is worth: how even its classes are, and which images it leaks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.data.splitting.folds import TEST, TRAIN, Column
from hubretrain.data.splitting.splits import check_length, codes
from hubretrain.errors import SplitError

Floats = npt.NDArray[np.float64]


def worst_deviation(parts: Column, labels: Column) -> float:
    """Largest gap between a class's share of one part and its share of all images.

    Args:
        parts: the part of each image, shape `(n_images,)`.
        labels: the class of each image, shape `(n_images,)`.

    Returns:
        Percentage points, 0 to 100; 0 without images.
    """
    label_codes, class_names = codes(labels, "label")
    part_codes, part_names = codes(parts, "part")
    check_length("parts", parts, len(label_codes))
    if not len(label_codes):
        return 0.0
    counts = np.zeros((len(part_names), len(class_names)))
    np.add.at(counts, (part_codes, label_codes), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(100 * np.abs(shares - counts.sum(axis=0) / counts.sum()).max())


def part_table(parts: Column, labels: Column) -> pd.DataFrame:
    """How many images of each class each part holds.

    Args:
        parts: the part of each image, shape `(n_images,)`.
        labels: the class of each image, shape `(n_images,)`.

    Returns:
        int64 (n_parts, n_classes): rows `test`, `train`, `fold 0`, ... as far as they are
        there, columns the classes.
    """
    counts = pd.crosstab(np.asarray(parts), np.asarray(labels))
    order = [p for p in (TEST, TRAIN) if p in counts.index] + [p for p in counts.index if p >= 0]
    counts = counts.loc[order]
    names = {TEST: "test", TRAIN: "train"}
    counts.index = pd.Index([names.get(part, f"fold {part}") for part in order])
    counts.columns.name = None
    return counts


def leaked_images(parts: Column, groups: Column) -> int:
    """Number of validation and test images whose group also stands in another part.

    Args:
        parts: the part of each image, `TEST`, `TRAIN` or a fold, shape `(n_images,)`.
        groups: the group of each image, shape `(n_images,)`.
    """
    group_codes, _ = codes(groups, "group")
    check_length("parts", parts, len(group_codes))
    table = pd.DataFrame({"part": np.asarray(parts), "group": group_codes})
    torn = table.groupby("group")["part"].transform("nunique") > 1
    return int((torn & (table["part"] != TRAIN)).sum())


def leak_chances(groups: Column, fraction: float = 0.2) -> Floats:
    """Chance of each image to be leaked by a random split that ignores the groups.

    Of n images m are drawn for validation. Where an image of a group of s is drawn, all others of
    its group are drawn too with a chance of the product of (m - j) / (n - j) for j = 1 .. s - 1;
    otherwise one of them is trained on.

    Args:
        groups: the group of each image, shape `(n_images,)`.
        fraction: share of the images drawn for validation, in (0, 1).

    Returns:
        float64 `(n_images,)`, 0 to 1; the mean is the share of validation images to expect.

    Raises:
        SplitError: one side of the split would be empty.
    """
    group_codes, _ = codes(groups, "group")
    n = len(group_codes)
    n_drawn = round(fraction * n)
    if not 0 < n_drawn < n:
        raise SplitError(
            f"A share of {fraction} of {n} images leaves one side empty: expected images on both."
        )
    sizes = np.bincount(group_codes)
    j = np.arange(1, max(int(sizes.max()), 2))
    all_drawn = np.cumprod(np.concatenate([[1.0], np.maximum(n_drawn - j, 0) / (n - j)]))
    return np.asarray(1 - all_drawn[sizes - 1][group_codes])


def kept_together(parts: Column, clusters: Column, grouped: bool, duplicates: bool) -> str:
    """The sentence that every leaderboard carries: what does not straddle splits, and what leaked.

    Args:
        parts: the part of each image, shape `(n_images,)`.
        clusters: the cluster of each image, shape `(n_images,)`.
        grouped: whether the data set has groups.
        duplicates: whether near duplicates were looked for.
    """
    n = len(parts)
    n_leaked = leaked_images(parts, clusters)
    torn = " by the given split" if n_leaked else ""
    random = f"{leak_chances(clusters).mean():.1%}" if 0 < round(0.2 * n) < n else "none"
    return (
        f"Groups kept together{'' if grouped else ' (none are given)'}, "
        f"duplicates {'' if duplicates else 'not looked for, nor '}kept together, "
        f"images leaked{torn}: {n_leaked} (a random split would have leaked {random})."
    )
