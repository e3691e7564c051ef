"""Folds against scikit-learn's StratifiedGroupKFold: worst deviation and seconds.

python benchmarks/bench_splits.py [HAM10000_metadata.csv]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from hubretrain.data.splitting.leakage import leak_chances, worst_deviation
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


if __name__ == "__main__":
    main()
