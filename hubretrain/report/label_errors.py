"""Labels that are likely wrong, and hints at why an image is misclassified.

Confident learning: Northcutt, Jiang and Chuang (2021), Confident learning: estimating uncertainty
in dataset labels, JAIR 70, https://doi.org/10.1613/jair.1.12125. As in cleanlab, a label that is
the top-1 class of its image is not in doubt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.report.run_data import EvaluatedModel, RunData, near_pairs

MAX_HINTS = 3  # per image

COLUMNS = (
    "path",
    "label",
    "suggested",
    "self_confidence",
    "suggested_probability",
    "fold",
    "group",
    "sha256",
    "hint",
)


def confident_errors(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the class that each image confidently belongs to instead of its label.

    A class is confident where its probability is at least the mean that its own images give it
    (equation 2); of several confident classes the most probable counts. Images that confidently
    belong to another class than their label are the off-diagonal of the confident joint (equation
    1). Of those, images whose label is the top-1 class are left out, as cleanlab's
    `find_label_issues` does.

    Args:
        probabilities: float64 (n_images, n_classes), from models that did not see the image.
        labels: int64 (n_images,).

    Returns:
        int64 (n_images,), the other class, or -1 where the label is not in doubt.
    """
    n_classes = probabilities.shape[1]
    threshold = np.array(
        [
            probabilities[labels == c, c].mean() if (labels == c).any() else np.inf
            for c in range(n_classes)
        ]
    )
    # A mean of equal probabilities may exceed them by a rounding error.
    confident = np.where(probabilities >= threshold - 1e-12, probabilities, -1.0)
    other = confident.argmax(axis=1)
    doubtful = (confident.max(axis=1) >= 0) & (other != labels)
    doubtful &= probabilities.argmax(axis=1) != labels
    return np.where(doubtful, other, -1)


def label_errors(run_data: RunData, model: EvaluatedModel, hints: dict[int, str]) -> pd.DataFrame:
    """Return the labels to review, the most doubtful first: columns `COLUMNS` and `row`.

    Of several labels per image each is a decision of its own, with or without it, and has a row of
    its own where it is in doubt; what is suggested is to add it or to remove it.

    They are ordered by self-confidence, the probability that the model gives to the label.

    Args:
        run_data: The run.
        model: The model whose out-of-fold probabilities decide.
        hints: What is known of an image's duplicates and group, by row.
    """
    labels, names = run_data.labels[model.rows], np.array(run_data.class_names, dtype=object)
    if run_data.multi_label:
        doubtful, label, suggested = _doubtful_labels(model.probabilities, labels, names)
        probs = model.probabilities[doubtful, label]
        confidence = np.where(labels[doubtful, label], probs, 1 - probs)
        of_suggested = 1 - confidence
    else:
        other = confident_errors(model.probabilities, labels)
        doubtful = np.flatnonzero(other >= 0)
        suggested = names[other[doubtful]].tolist()
        confidence = model.probabilities[doubtful, labels[doubtful]]
        of_suggested = model.probabilities[doubtful, other[doubtful]]
    rows = model.rows[doubtful]
    images = run_data.images.iloc[rows]
    table = pd.DataFrame(
        {
            "path": images["path"].to_numpy(),
            "label": images["label"].to_numpy(),
            "suggested": suggested,
            "self_confidence": confidence.round(6),
            "suggested_probability": of_suggested.round(6),
            "fold": images["fold"].to_numpy(),
            "group": images["group"].to_numpy(),
            "sha256": images["sha256"].to_numpy(),
            "hint": [hints.get(int(row), "") for row in rows],
            "row": rows,
        }
    )
    return table.sort_values(
        ["self_confidence", "suggested_probability", "path"],
        ascending=[True, False, True],
        kind="stable",
        ignore_index=True,
    )


def _doubtful_labels(
    probs: FloatArray, labels: BoolArray, names: AnyArray
) -> tuple[IntArray, IntArray, list[str]]:
    """Return image, label and suggestion of each label that an image has, or lacks, in doubt."""
    doubtful = np.zeros(labels.shape, bool)
    for k in range(labels.shape[1]):
        pair = np.column_stack([1 - probs[:, k], probs[:, k]])
        doubtful[:, k] = confident_errors(pair, labels[:, k].astype(np.int64)) >= 0
    image, label = np.nonzero(doubtful)
    verbs = np.where(labels[image, label], "remove", "add")
    return image, label, [f"{verb} {names[k]}" for verb, k in zip(verbs, label, strict=True)]


def hints_of(run_data: RunData) -> dict[int, str]:
    """Return what is known of an image's duplicates and its group, by row.

    At most `MAX_HINTS` per image; images without a duplicate or a group are absent.
    """
    hints: defaultdict[int, list[str]] = defaultdict(list)
    for hints_of_kind in (_exact_duplicates, _near_duplicates, _groups):
        for row, hint in hints_of_kind(run_data):
            hints[row].append(hint)
    return {row: "; ".join(dict.fromkeys(hints[row][:MAX_HINTS])) for row in sorted(hints)}


def _exact_duplicates(run_data: RunData) -> Iterator[tuple[int, str]]:
    for sha256, rows in _rows_of(run_data).items():
        for row in rows if len(rows) > 1 and sha256 else ():
            others = [other for other in rows if other != row]
            yield row, _duplicate_hint("exact duplicate of", others, row, run_data.images)


def _near_duplicates(run_data: RunData) -> Iterator[tuple[int, str]]:
    rows_of, pairs = _rows_of(run_data), near_pairs(run_data)
    for a, b, similarity in () if pairs is None else pairs.itertuples(index=False):
        for content, other in ((a, b), (b, a)):
            for row in rows_of.get(content, ()) if rows_of.get(other) else ():
                what = f"near duplicate ({similarity:.2f}) of"
                yield row, _duplicate_hint(what, rows_of[other], row, run_data.images)


def _groups(run_data: RunData) -> Iterator[tuple[int, str]]:
    labels = run_data.images["label"]
    for rows in run_data.images.groupby("group", sort=False).indices.values():
        if len(rows) < 2:
            continue
        n_labels = labels.iloc[rows].nunique()
        different = "different labels" if run_data.multi_label else f"{n_labels} classes"
        more = f" with {different}" if n_labels > 1 else ""
        for row in map(int, rows):
            yield row, f"group of {len(rows)} images{more}"


def _rows_of(run_data: RunData) -> dict[str, list[int]]:
    """Return the rows of each content, by its digest."""
    rows_of: dict[str, list[int]] = {}
    for row, sha256 in enumerate(run_data.images["sha256"]):
        rows_of.setdefault(sha256, []).append(row)
    return rows_of


def _duplicate_hint(what: str, others: Sequence[int], row: int, images: pd.DataFrame) -> str:
    labels, first = images["label"], others[0]
    label = f", labelled {labels.iloc[first]}" if labels.iloc[first] != labels.iloc[row] else ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{what} {images['path'].iloc[first]}{label}{more}"
