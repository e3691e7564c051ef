"""What a head must beat: answers that need no fitting."""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import AnyArray
from hubretrain.heads import FeatureBlocks

MOST_IMAGES = 30_000  # every pair is compared; beyond this it takes longer than the heads
BLOCK = 1024


def majority_class(labels: AnyArray, folds: AnyArray, n_classes: int) -> AnyArray:
    """Probabilities of always saying the class shares of the other folds.

    Returns:
        float64 (n_images, n_classes); 0 for images of folds below 0.
    """
    said = np.zeros((len(labels), n_classes))
    for fold in np.unique(folds[folds >= 0]):
        said[folds == fold] = _shares(labels[folds != fold], n_classes)
    return said


def _shares(labels: AnyArray, n_classes: int) -> AnyArray:
    return np.asarray(np.bincount(labels, minlength=n_classes) / len(labels))


def nearest_neighbour(
    rows: FeatureBlocks, labels: AnyArray, folds: AnyArray, n_classes: int
) -> AnyArray | None:
    """The class of the image in another fold whose standardised features point most alike.

    Args:
        rows: One row an image, in order.
        labels: int (n_images,).
        folds: int (n_images,); images of a fold below 0 are neighbours to all.
        n_classes: How many.

    Returns:
        float64 (n_images, n_classes), 1 for that class; None for more than 30,000 images.
    """
    if rows.n_rows > MOST_IMAGES or rows.n_rows != len(labels):
        return None
    unit = np.concatenate([block for _, block in rows.blocks()])
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    nearest = np.empty(len(labels), dtype=np.int64)
    for start in range(0, len(labels), BLOCK):
        here = slice(start, start + BLOCK)
        alike = unit[here] @ unit.T
        alike[(folds[here, None] == folds) & (folds[here, None] >= 0)] = -np.inf
        alike[np.arange(len(alike)), np.arange(start, start + len(alike))] = -np.inf
        nearest[here] = alike.argmax(axis=1)
    return np.eye(n_classes)[labels[nearest]]
