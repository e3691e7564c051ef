from __future__ import annotations

import numpy as np

from hubretrain.report.label_errors import confident_errors
from tests.report.samples import predictions


def test_confident_errors_are_those_of_the_paper_counted_one_by_one() -> None:
    said, labels = predictions(300, 5, seed=3)
    thresholds = [said[labels == c, c].mean() for c in range(5)]
    for row, found in enumerate(confident_errors(said, labels).tolist()):
        above = [c for c in range(5) if said[row, c] >= thresholds[c]]
        best = max(above, key=lambda c: said[row, c], default=int(labels[row]))
        if said[row].argmax() == labels[row]:
            best = int(labels[row])  # as cleanlab has it
        assert found == (best if best != labels[row] else -1)


def test_an_image_whose_likeliest_class_is_its_label_is_not_in_doubt() -> None:
    # Its own class is not confident (0.45 is below the mean of 0.675), the other is (0.4 = 0.4).
    said = np.array([[0.45, 0.4, 0.15], [0.9, 0.05, 0.05], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3]])
    assert confident_errors(said, np.array([0, 0, 1, 2])).tolist() == [-1, -1, -1, 1]


def test_planted_label_errors_come_first() -> None:
    sharp, labels = predictions(1000, 3, seed=1, margin=5.0)
    truly = labels.copy()
    planted = np.flatnonzero(sharp.argmax(axis=1) == labels)[:50]
    labels[planted] = (labels[planted] + 1) % 3
    other = confident_errors(sharp, labels)
    found = np.flatnonzero(other >= 0)
    order = found[np.argsort(sharp[found, labels[found]])]
    hits = np.isin(order[:40], planted)
    assert hits.mean() > 0.75
    assert (other[order[:40]][hits] == truly[order[:40]][hits]).all()
