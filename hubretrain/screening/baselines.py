"""Baselines: predictions that need no fitting."""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import AnyArray
from hubretrain.heads import FeatureBlocks

MAX_IMAGES = 30_000  # all pairs are compared; with more it takes longer than fitting the heads
BLOCK = 1024


def prevalences(labels: AnyArray) -> AnyArray:
    """Return the share of each of several labels as each image's probability of it.

    It is that of all images, the same for each: shares of the other folds would rank the images of
    a fold with many positives below those of others.

    Args:
        labels: bool (n_images, n_labels).
    """
    return np.tile(labels.mean(axis=0), (len(labels), 1))


def majority_class(labels: AnyArray, folds: AnyArray, n_classes: int) -> AnyArray:
    """Return the class shares of the other folds as each image's probabilities.

    Returns:
        float64 (n_images, n_classes); 0 for images of folds below 0.
    """
    probs = np.zeros((len(labels), n_classes))
    for fold in np.unique(folds[folds >= 0]):
        others = labels[folds != fold]
        probs[folds == fold] = np.bincount(others, minlength=n_classes) / len(others)
    return probs


def nearest_neighbour(
    features: FeatureBlocks, labels: AnyArray, folds: AnyArray, n_classes: int
) -> AnyArray | None:
    """Return the class, or labels, of the image in another fold with the highest cosine similarity.

    Args:
        features: Standardised features, one row per image, in order.
        labels: int (n_images,), or bool (n_images, n_classes).
        folds: int (n_images,); images of a fold below 0 are neighbours to all.
        n_classes: Number of classes.

    Returns:
        float64 (n_images, n_classes), 1 for what it has; None for more than `MAX_IMAGES` images.
    """
    if features.n_rows > MAX_IMAGES or features.n_rows != len(labels):
        return None
    unit = np.concatenate([block for _, block in features.blocks()])
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    nearest = np.empty(len(labels), dtype=np.int64)
    for start in range(0, len(labels), BLOCK):
        here = slice(start, start + BLOCK)
        similarity = unit[here] @ unit.T
        similarity[(folds[here, None] == folds) & (folds[here, None] >= 0)] = -np.inf
        n_rows = len(similarity)
        similarity[np.arange(n_rows), np.arange(start, start + n_rows)] = -np.inf  # itself
        nearest[here] = similarity.argmax(axis=1)
    if labels.ndim == 2:
        return labels[nearest].astype(np.float64)
    return np.eye(n_classes)[labels[nearest]]
