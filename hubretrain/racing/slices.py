"""Growing slices of the images: each holds the one before, all classes and folds in proportion."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from hubretrain.arrays import FloatArray, IntArray

LEAST_CLUSTERS = 2  # of each class in each fold, as far as there are any


def slice_order(images: pd.DataFrame, seed: int) -> IntArray:
    """Return the order in which images join the slices: whole clusters, by class and fold.

    The first n images of it are a slice: a sample in which each class has its share within each
    fold, but for the first `LEAST_CLUSTERS` clusters of each class in each fold, which come first
    of all so that every class is trained on and scored from the beginning.

    Args:
        images: The images outside of the test split: `cluster`, `label` and `fold`.
        seed: Random seed of the order within a class and fold.

    Returns:
        Positions in `images`, int64 (n_images,).
    """
    clusters = images.groupby("cluster", sort=True).agg(
        n=("label", "size"), label=("label", "first"), fold=("fold", "first")
    )
    names = clusters.index.astype(str)
    clusters["key"] = [hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in names]
    clusters = clusters.sort_values("key", kind="stable")
    cells = clusters.groupby(["label", "fold"], sort=False)
    before = cells["n"].cumsum() - clusters["n"]
    entry: FloatArray = (before / cells["n"].transform("sum")).to_numpy(np.float64)
    # Below every share, and of the first clusters of each cell alike.
    entry = np.where(cells.cumcount() < LEAST_CLUSTERS, cells.cumcount() - LEAST_CLUSTERS, entry)
    order = np.lexsort([clusters["key"].to_numpy(str), entry])
    rank = pd.Series(np.arange(len(order)), index=clusters.index[order])
    return np.argsort(images["cluster"].map(rank).to_numpy(), kind="stable")


def slice_of(images: pd.DataFrame, order: IntArray, n_images: int) -> pd.DataFrame:
    """Return a slice of at least `n_images` images, whole clusters, in the order of the table.

    Args:
        images: As of `slice_order`.
        order: What it returns.
        n_images: Size of the slice; all images where there are no more.
    """
    if n_images >= len(images):
        return images
    last = images["cluster"].iloc[order[max(0, n_images - 1)]]
    taken = set(images["cluster"].iloc[order[:n_images]]) | {last}
    return images[images["cluster"].isin(taken)].reset_index(drop=True)
