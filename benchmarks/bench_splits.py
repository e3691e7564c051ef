"""Folds against scikit-learn's StratifiedGroupKFold: worst deviation and seconds.

python benchmarks/bench_splits.py [HAM10000_metadata.csv]

Of several labels per image, where they are installed, against the packages iterative-stratification
(first order, Sechidis et al. 2011) and scikit-multilearn (second order, Szymański and Kajdanowicz
2017). They know no groups: they cut groups as if each were one image with the labels of all its
images.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from hubretrain.data.splitting.leakage import leak_chances, part_table, worst_deviation
from hubretrain.data.splitting.splits import split_images


def theirs(table: pd.DataFrame, n_folds: int, seed: int) -> np.ndarray:
    parts = np.zeros(len(table), int)
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, rows) in enumerate(folds.split(table, table["label"], table["group"])):
        parts[rows] = fold
    return parts


def compare(name: str, table: pd.DataFrame, n_folds: int, seed: int) -> None:
    start = time.process_time()
    ours = split_images(table["label"], table["group"], n_folds=n_folds, test_fraction=0, seed=seed)
    middle = time.process_time()
    other = theirs(table, n_folds, seed)
    end = time.process_time()
    print(
        f"{name}, {n_folds} folds, seed {seed}: "
        f"{worst_deviation(ours, table['label']):.4f} points in {middle - start:.2f} s; "
        f"scikit-learn {worst_deviation(other, table['label']):.4f} in {end - middle:.2f} s"
    )


def iterative(flags: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    folds = MultilabelStratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return folds_of(folds.split(flags, flags), len(flags))


def second_order(flags: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    from skmultilearn.model_selection import IterativeStratification

    np.random.seed(seed)  # noqa: NPY002 - it takes no seed
    return folds_of(IterativeStratification(n_folds, order=2).split(flags, flags), len(flags))


def folds_of(folds: object, n: int) -> np.ndarray:
    parts = np.zeros(n, int)
    for fold, (_, rows) in enumerate(folds):
        parts[rows] = fold
    return parts


def worst_pair(parts: np.ndarray, flags: np.ndarray) -> float:
    """Return the largest gap between the share of a pair of labels in one part and in all."""
    pairs = list(combinations(range(flags.shape[1]), 2))
    shares = [
        [(flags[rows, a] & flags[rows, b]).mean() for a, b in pairs]
        for rows in (np.ones(len(parts), bool), *(parts == p for p in np.unique(parts)))
    ]
    return float(100 * np.abs(np.array(shares[1:]) - shares[0]).max())


def compare_multi_label(table: pd.DataFrame, n_folds: int, seed: int) -> None:
    """Compare folds by three columns; one location has fewer lesions than there are parts."""
    columns = ["label", "localization", "sex"]
    table = table[table["localization"] != "acral"]
    names = table[columns].apply(lambda cells: cells.name + ":" + cells)
    labels = names.agg("|".join, axis=1)
    flags = labels.str.get_dummies("|")
    numbers, _ = pd.factorize(table["group"])
    of_groups = flags.groupby(numbers).max().to_numpy()

    def ours() -> np.ndarray:
        return split_images(
            labels, table["group"], multi_label=True, n_folds=n_folds, test_fraction=0, seed=seed
        )

    ways: dict[str, Callable[[], np.ndarray]] = {"hubretrain": ours}
    if importlib.util.find_spec("iterstrat"):
        ways["iterative-stratification"] = lambda: iterative(of_groups, n_folds, seed)[numbers]
    if importlib.util.find_spec("skmultilearn"):
        ways["scikit-multilearn"] = lambda: second_order(of_groups, n_folds, seed)[numbers]
    for name, way in ways.items():
        start = time.process_time()
        parts = way()
        seconds = time.process_time() - start
        print(
            f"{flags.shape[1]} labels, {n_folds} folds, seed {seed}, {name}: "
            f"{worst_deviation(parts, labels, True):.3f} points, of pairs "
            f"{worst_pair(parts, flags.to_numpy(bool)):.2f}, in {seconds:.2f} s"
        )


def many_labels(n_images: int, n_labels: int) -> pd.DataFrame:
    """Images with three labels each in the mean, the c-th label as frequent as 1 / c."""
    random = np.random.default_rng(0)
    odds = 1 / np.arange(1, n_labels + 1)
    n_drawn = random.poisson(3, n_images)
    drawn = random.choice(n_labels, n_drawn.sum(), p=odds / odds.sum())
    pairs = pd.DataFrame({"image": np.repeat(np.arange(n_images), n_drawn), "label": drawn})
    pairs = pairs.drop_duplicates()
    pairs = pairs[pairs.groupby("label")["image"].transform("size") >= 6]
    labels = pairs["label"].astype(str).groupby(pairs["image"]).agg("|".join)
    return pd.DataFrame({"label": labels.reindex(range(n_images), fill_value="")})


def made_up(n_groups: int, n_classes: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    sizes = np.where(random.random(n_groups) < 0.125, random.integers(2, 5, n_groups), 1)
    group = np.repeat(np.arange(n_groups), sizes)
    return pd.DataFrame({"label": random.integers(0, n_classes, n_groups)[group], "group": group})


def main() -> None:
    if len(sys.argv) > 1:
        table = pd.read_csv(sys.argv[1]).rename(columns={"dx": "label", "lesion_id": "group"})
        for n_folds in (5, 10):
            for seed in (0, 1, 2):
                compare("HAM10000", table, n_folds, seed)
        for n_folds in (5, 10):
            for seed in (0, 1, 2):
                compare_multi_label(table, n_folds, seed)
        start = time.process_time()
        parts = split_images(table["label"], table["group"])
        seconds = time.process_time() - start
        print(f"with a test split: {worst_deviation(parts, table['label']):.4f} in {seconds:.2f} s")
        leak = 100 * leak_chances(table["group"]).mean()
        print(f"a random split leaks {leak:.1f} % of its validation images")
    for n_classes in (10, 1000):
        table = made_up(80_000, n_classes)
        start = time.process_time()
        parts = split_images(table["label"], table["group"])
        seconds = time.process_time() - start
        deviation = worst_deviation(parts, table["label"])
        print(f"{len(table):,} images, {n_classes} classes: {deviation:.4f} in {seconds:.1f} s")
    for n_images, n_labels in ((100_000, 80), (20_000, 2000)):
        labels = many_labels(n_images, n_labels)["label"]
        start = time.process_time()
        parts = split_images(labels, np.arange(n_images), multi_label=True)
        seconds = time.process_time() - start
        counts = part_table(parts, labels, True)
        print(
            f"{n_images:,} images, {counts.shape[1]:,} labels: "
            f"{worst_deviation(parts, labels, True):.4f} in {seconds:.1f} s; labels missing from "
            f"a part: {int((counts == 0).sum().sum())} of {counts.size:,}"
        )


if __name__ == "__main__":
    main()
