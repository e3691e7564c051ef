"""Curves of one model's predictions: thresholds, precision-recall, ROC, calibration, top-k.

Everything is a count or follows from counts, so the page shows at a threshold what scikit-learn
computes at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.evaluation import N_BINS, reliability_bins, top_k

N_STEPS = 200  # thresholds 0, 1/200, ..., 1
MAX_K = 5
FEW_CLASSES = 20  # with more, curves have fewer points


def thresholds() -> FloatArray:
    """Return the thresholds of the slider: float64 (N_STEPS + 1,), 0 to 1."""
    return np.arange(N_STEPS + 1) / N_STEPS


def counts_at_thresholds(probabilities: FloatArray, labels: AnyArray) -> tuple[IntArray, IntArray]:
    """Count the true and the false positives of each class at each threshold.

    Args:
        probabilities: float64 (n_images, n_classes).
        labels: int64 (n_images,); or of several labels bool (n_images, n_classes).

    Returns:
        True positives and false positives of `probability >= threshold`: int64
        (n_classes, N_STEPS + 1) each.
    """
    steps = thresholds()
    n_classes = probabilities.shape[1]
    true_positives, false_positives = np.zeros((2, n_classes, len(steps)), np.int64)
    for c in range(n_classes):
        is_class = of_class(labels, c)
        for counts, rows in ((true_positives, is_class), (false_positives, ~is_class)):
            ascending = np.sort(probabilities[rows, c])
            counts[c] = len(ascending) - np.searchsorted(ascending, steps, side="left")
    return true_positives, false_positives


def of_class(labels: AnyArray, c: int) -> BoolArray:
    """Return which images are of a class, or have a label: bool (n_images,)."""
    return np.asarray(labels[:, c] if labels.ndim > 1 else labels == c)


def confusion(labels: IntArray, decisions: IntArray, n_classes: int) -> IntArray:
    """Count the images of each label (row) and decision (column): int64 (n_classes, n_classes)."""
    counts = np.bincount(labels * n_classes + decisions, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def class_curves(
    probabilities: FloatArray, labels: AnyArray
) -> list[dict[str, list[float]] | None]:
    """Return the precision-recall and ROC curve of each class against the rest, thinned.

    Returns:
        `recall`, `precision`, `fpr` and `tpr` per class; None for a class of all or none of the
        images.
    """
    n_classes = probabilities.shape[1]
    step = 0.004 if n_classes <= FEW_CLASSES else 0.02
    curves: list[dict[str, list[float]] | None] = []
    for c in range(n_classes):
        is_class = of_class(labels, c)
        if is_class.all() or not is_class.any():
            curves.append(None)
            continue
        precision, recall, _ = precision_recall_curve(is_class, probabilities[:, c])
        fpr, tpr, _ = roc_curve(is_class, probabilities[:, c])
        precision, recall = precision[::-1], recall[::-1]  # by rising recall
        pr_points, roc_points = _sparse(recall, precision, step), _sparse(fpr, tpr, step)
        curves.append(
            {
                "recall": _rounded(recall[pr_points]),
                "precision": _rounded(precision[pr_points]),
                "fpr": _rounded(fpr[roc_points]),
                "tpr": _rounded(tpr[roc_points]),
            }
        )
    return curves


def at_thresholds(
    probabilities: FloatArray, labels: BoolArray, thresholds: Sequence[float]
) -> list[dict[str, float | None]]:
    """Return where the threshold of each label lies on its curves.

    Args:
        probabilities: float64 (n_images, n_labels).
        labels: bool (n_images, n_labels).
        thresholds: Threshold of each label.

    Returns:
        `recall`, `precision`, `fpr` and `tpr` per label; None where there is none.
    """
    decided = probabilities > np.array(thresholds)
    hits, n_decided, n_with = (x.sum(axis=0) for x in (labels & decided, decided, labels))
    n_without = len(labels) - n_with
    return [
        {
            "recall": _share(hits[c], n_with[c]),
            "precision": _share(hits[c], n_decided[c]),
            "fpr": _share(n_decided[c] - hits[c], n_without[c]),
            "tpr": _share(hits[c], n_with[c]),
        }
        for c in range(labels.shape[1])
    ]


def _share(part: int, whole: int) -> float | None:
    return round(float(part / whole), 4) if whole else None


def calibration(probabilities: FloatArray, labels: AnyArray) -> list[dict[str, float]]:
    """Return the reliability diagram: bins of the top-1 probability, closed on the right.

    Guo et al. (2017), https://arxiv.org/abs/1706.04599, figure 1. Of several labels per image it is
    that of the probabilities of all labels; `accuracy` is the share of these that images have.

    Returns:
        `low`, `high`, `n`, `confidence` (mean) and `accuracy` per bin with images.
    """
    if labels.ndim > 1:
        confidence, right = probabilities.ravel(), labels.ravel()
    else:
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of_image = reliability_bins(confidence)
    bins = []
    for b in np.unique(bin_of_image).tolist():
        rows = bin_of_image == b
        bins.append(
            {
                "low": round(b / N_BINS, 4),
                "high": round((b + 1) / N_BINS, 4),
                "n": int(rows.sum()),
                "confidence": round(float(confidence[rows].mean()), 4),
                "accuracy": round(float(right[rows].mean()), 4),
            }
        )
    return bins


def top_k_accuracies(probabilities: FloatArray, labels: AnyArray) -> list[float]:
    """Return the top-k accuracy for k = 1, 2, ..., at most `MAX_K`; [] of several labels."""
    if labels.ndim > 1:
        return []
    max_k = min(MAX_K, probabilities.shape[1])
    return [round(float(top_k(probabilities, labels, k=k)), 6) for k in range(1, max_k + 1)]


def top_classes(probabilities: FloatArray, k: int = 3) -> tuple[IntArray, IntArray]:
    """Return the top-k classes of each image, and their probabilities in thousandths."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    of_order = np.take_along_axis(probabilities, order, axis=1)
    return order, np.rint(1000 * of_order).astype(np.int64)


def _sparse(x: FloatArray, y: FloatArray, step: float) -> list[int]:
    """Return the indices of points that lie at least a step apart, with the first and last."""
    kept = [0]
    for i in range(1, len(x) - 1):
        if abs(x[i] - x[kept[-1]]) + abs(y[i] - y[kept[-1]]) >= step:
            kept.append(i)
    return [*kept, len(x) - 1] if len(x) > 1 else kept


def _rounded(values: FloatArray) -> list[float]:
    return [round(float(v), 4) for v in values]


def finite(value: Any, digits: int = 6) -> float | None:
    """Round a number for JSON; None for NaN and infinity, which JSON lacks."""
    number = float(value)
    return round(number, digits) if np.isfinite(number) else None
