"""What one model's predictions come to: curves, counts at thresholds, calibration, top k.

Everything is a count or follows from counts, so that what the page shows at a threshold is what
scikit-learn gives at it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve

from hubretrain.evaluation import N_BINS, reliability_bins, top_k

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

N_STEPS = 200  # thresholds 0, 1/200, ..., 1
MAX_K = 5
FEW_CLASSES = 20  # up to which curves are drawn finely


def thresholds() -> Floats:
    """Those that the slider stops at: float64 (N_STEPS + 1,), 0 to 1."""
    return np.arange(N_STEPS + 1) / N_STEPS


def counts_at_thresholds(probabilities: Floats, labels: Ints) -> tuple[Ints, Ints]:
    """How many images reach each threshold with the probability of a class.

    Args:
        probabilities: float64 (n_images, n_classes).
        labels: int64 (n_images,).

    Returns:
        Of its own class, and of other classes: int64 (n_classes, N_STEPS + 1) each, the true and
        the false positives of `probability >= threshold`.
    """
    at = thresholds()
    n_classes = probabilities.shape[1]
    right, wrong = np.zeros((2, n_classes, len(at)), np.int64)
    for c in range(n_classes):
        for counts, rows in ((right, labels == c), (wrong, labels != c)):
            some = np.sort(probabilities[rows, c])
            counts[c] = len(some) - np.searchsorted(some, at, side="left")
    return right, wrong


def confusion(labels: Ints, decided: Ints, n_classes: int) -> Ints:
    """Images of each class (rows) that are decided to be each class: int64 (class, class)."""
    return np.bincount(labels * n_classes + decided, minlength=n_classes**2).reshape(
        n_classes, n_classes
    )


def class_curves(probabilities: Floats, labels: Ints) -> list[dict[str, list[float]] | None]:
    """Precision-recall and ROC curve of each class against the rest, with few points.

    Returns:
        `recall`, `precision`, `fpr`, `tpr` of each class; None where it is all or none of
        the images.
    """
    n_classes = probabilities.shape[1]
    step = 0.004 if n_classes <= FEW_CLASSES else 0.02
    found: list[dict[str, list[float]] | None] = []
    for c in range(n_classes):
        is_class = labels == c
        if is_class.all() or not is_class.any():
            found.append(None)
            continue
        precision, recall, _ = precision_recall_curve(is_class, probabilities[:, c])
        fpr, tpr, _ = roc_curve(is_class, probabilities[:, c])
        kept, drawn = _sparse(recall[::-1], precision[::-1], step), _sparse(fpr, tpr, step)
        found.append(
            {
                "recall": _rounded(recall[::-1][kept]),
                "precision": _rounded(precision[::-1][kept]),
                "fpr": _rounded(fpr[drawn]),
                "tpr": _rounded(tpr[drawn]),
            }
        )
    return found


def calibration(probabilities: Floats, labels: Ints) -> list[dict[str, float]]:
    """The reliability diagram: bins of the likeliest class's probability, closed on the right.

    Guo et al. (2017), https://arxiv.org/abs/1706.04599, figure 1.

    Returns:
        `low`, `high`, `n`, `confidence` (mean) and `accuracy` of each bin with images.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
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


def top_shares(probabilities: Floats, labels: Ints) -> list[float]:
    """Share of images whose class is among the k likeliest, k from 1 on."""
    most = min(MAX_K, probabilities.shape[1])
    return [round(float(top_k(probabilities, labels, k=k)), 6) for k in range(1, most + 1)]


def likeliest(probabilities: Floats, k: int = 3) -> tuple[Ints, Ints]:
    """The k likeliest classes of each image and their probabilities in thousandths."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    of = np.take_along_axis(probabilities, order, axis=1)
    return order, np.rint(1000 * of).astype(np.int64)


def _sparse(x: Floats, y: Floats, step: float) -> list[int]:
    """Points that lie more than a step apart, with the first and the last."""
    kept = [0]
    for i in range(1, len(x) - 1):
        if abs(x[i] - x[kept[-1]]) + abs(y[i] - y[kept[-1]]) >= step:
            kept.append(i)
    return [*kept, len(x) - 1] if len(x) > 1 else kept


def _rounded(values: Floats) -> list[float]:
    return [round(float(v), 4) for v in values]


def finite(value: Any, digits: int = 6) -> float | None:
    """A number as JSON takes it: rounded, None for NaN."""
    number = float(value)
    return round(number, digits) if np.isfinite(number) else None
