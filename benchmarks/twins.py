"""What pretraining is worth: cached bottlenecks of modules and of their random-weight twins.

    python benchmarks/twins.py cache/flowers

For each bottleneck file one row: accuracy over 5 stratified folds of scikit-learn's ridge
classifier on standardized features of the images as they are. The label is the image's folder.
`hubretrain fit` shows the same as a leaderboard with intervals, over folds of whole groups; this
needs no tuning and takes seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hubretrain import Bottlenecks

PENALTY = 1000.0


def main() -> None:
    """Prints the table."""
    print("| module | features | accuracy, percent |\n|---|---|---|")
    for file in sorted(Path(sys.argv[1]).glob("*.h5")):
        with Bottlenecks(file) as cached:
            done = ~cached.todo()[:, 0]
            features = cached.view(0)[:][done]
            labels = np.array([Path(p).parts[0] for p in cached.paths])[done]
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        head = make_pipeline(StandardScaler(), RidgeClassifier(PENALTY))
        found = cross_val_score(head, features, labels, cv=folds)
        print(f"| {file.stem} | {features.shape[1]:,} | {100 * found.mean():.1f} |", flush=True)


if __name__ == "__main__":
    main()
