"""Labels that are likely wrong, and hints at why an image is decided wrongly.

Confident learning: Northcutt, Jiang and Chuang (2021), Confident learning: estimating uncertainty
in dataset labels, JAIR 70, https://doi.org/10.1613/jair.1.12125. As in cleanlab, an image whose
likeliest class is its label is not in doubt.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.report.run_data import EvaluatedModel, RunData, near_pairs

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
    """The class that each image confidently is instead of its label.

    A class is confident where its probability is at least the mean that its own images give it
    (equation 2); of several the likeliest counts. Images that are confidently another class than
    their label are the off-diagonal of the confident joint (equation 1). Of those, images whose
    label is the likeliest class are left out, as cleanlab's `find_label_issues` does.

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
    confident = np.where(probabilities >= threshold - 1e-12, probabilities, -1.0)
    other = confident.argmax(axis=1)
    doubtful = (confident.max(axis=1) >= 0) & (other != labels)
    doubtful &= probabilities.argmax(axis=1) != labels
    return np.where(doubtful, other, -1)


def label_errors(gathered: RunData, model: EvaluatedModel, hints: dict[int, str]) -> pd.DataFrame:
    """Images to look at again, the most doubtful first: columns `COLUMNS` and `row`.

    They are ordered by self-confidence, the probability that the model gives to the label.

    Args:
        gathered: The run.
        model: Whose out-of-fold probabilities to judge by.
        hints: What is known of an image's copies, by row.
    """
    labels = gathered.images["class_index"].to_numpy()[model.rows]
    other = confident_errors(model.probabilities, labels)
    doubtful = np.flatnonzero(other >= 0)
    rows = model.rows[doubtful]
    images = gathered.images.iloc[rows]
    names = np.array(gathered.class_names, dtype=object)
    table = pd.DataFrame(
        {
            "path": images["path"].to_numpy(),
            "label": images["label"].to_numpy(),
            "suggested": names[other[doubtful]],
            "self_confidence": model.probabilities[doubtful, labels[doubtful]].round(6),
            "suggested_probability": model.probabilities[doubtful, other[doubtful]].round(6),
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


def hints_of(gathered: RunData) -> dict[int, str]:
    """What an image's copies and its group say, by row; images without either are absent."""
    images = gathered.images
    rows_of: dict[str, list[int]] = {}
    for row, sha256 in enumerate(images["sha256"]):
        rows_of.setdefault(sha256, []).append(row)
    hints: dict[int, list[str]] = {}
    labels, paths = images["label"].tolist(), images["path"].tolist()
    sha256s = images["sha256"].tolist()
    for rows in rows_of.values():
        for row in rows if len(rows) > 1 and sha256s[rows[0]] else ():
            others = [other for other in rows if other != row]
            hints.setdefault(row, []).append(_said("same file as", others, row, paths, labels))
    pairs = near_pairs(gathered)
    for a, b, similarity in () if pairs is None else pairs.itertuples(index=False):
        for this, that in ((a, b), (b, a)):
            for row in rows_of.get(this, ()) if rows_of.get(that) else ():
                what = f"near duplicate ({similarity:.2f}) of"
                hints.setdefault(row, []).append(_said(what, rows_of[that], row, paths, labels))
    for _, some in images.groupby("group", sort=False).indices.items():
        if len(some) < 2:
            continue
        kinds = {labels[row] for row in some}
        told = f"group of {len(some)} images" + (
            f" with {len(kinds)} classes" if len(kinds) > 1 else ""
        )
        for row in map(int, some):
            hints.setdefault(row, []).append(told)
    return {row: "; ".join(dict.fromkeys(told[:3])) for row, told in sorted(hints.items())}


def _said(what: str, others: list[int], row: int, paths: list[str], labels: list[str]) -> str:
    shown = others[0]
    differs = f", labelled {labels[shown]}" if labels[shown] != labels[row] else ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{what} {paths[shown]}{differs}{more}"
