"""Speed and exactness of many heads against scikit-learn, and the cost of streaming rows.

::

    python benchmarks/bench_heads.py features.npz                 # features, labels, groups
    python benchmarks/bench_heads.py cache/x/module.h5 --labels metadata.csv \
        --image image_id --label dx --group lesion_id
    python benchmarks/bench_heads.py --out-of-core-rows 1000000   # 5 GB in --folder

Ratios are of one run on one machine; other load blurs them, so CPU seconds are shown too.
`LogisticRegressionCV` starts each C from the last one's solution, as we do, and stops after
100 iterations, its default; more would make it slower.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from hubretrain.heads import FitInputs, HeadPath, probabilities
from hubretrain.heads.path import fit_path

C = np.logspace(-4, 0, 10)
N_FOLDS = 5
SYNTHETIC = {"n_features": 1280, "n_classes": 3, "n_folds": 2, "n_l2": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, help=".npz, or a bottleneck file")
    parser.add_argument("--labels", type=Path, help="CSV of labels, with a bottleneck file")
    parser.add_argument("--image", default="image_id", help="CSV column of file names")
    parser.add_argument("--label", default="dx", help="CSV column of labels")
    parser.add_argument("--group", default="lesion_id", help="CSV column of groups")
    parser.add_argument("--exact-folds", type=int, default=1, help="folds to check for exactness")
    parser.add_argument("--no-baseline", action="store_true", help="do not time scikit-learn")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the fastest counts")
    parser.add_argument("--out-of-core-rows", type=int, help="synthetic rows to stream")
    parser.add_argument("--folder", default=None, help="folder of the temporary synthetic rows")
    parser.add_argument("--streamed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    if options.streamed:
        stream(options.streamed)
    elif options.out_of_core_rows:
        out_of_core(options.out_of_core_rows, options.folder)
    else:
        against_scikit_learn(*read(options), options)


def read(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return float32 features, labels as numbers, and groups."""
    if options.source.suffix == ".npz":
        with np.load(options.source) as file:
            features, names, groups = file["features"], file["labels"], file["groups"]
    else:
        table = pd.read_csv(options.labels).set_index(options.image)
        with h5py.File(options.source, "r") as file:
            features = file["view_000"][:]
            paths = [Path(path).stem for path in file["images/path"].asstr()[:]]
        names = table.loc[paths, options.label].to_numpy()
        groups = table.loc[paths, options.group].to_numpy()
    return features, np.unique(names, return_inverse=True)[1], groups


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a function's result, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def against_scikit_learn(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, options: argparse.Namespace
) -> None:
    cut = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    splits = list(cut.split(features, labels, groups))
    folds = np.zeros(len(labels), dtype=int)
    for fold, (_, held) in enumerate(splits):
        folds[held] = fold
    n_classes = int(labels.max()) + 1
    print(f"{len(labels):,} images x {features.shape[1]:,} features, {n_classes} classes")

    def fit(patience: int | None) -> HeadPath:
        inputs = FitInputs.checked(features, labels, n_classes, folds)
        return fit_path(inputs, "softmax", 1 / C, patience=patience)

    rows = []
    for name, patience in ("ends past the lowest loss", 1), ("whole path", None):
        runs = [timed(partial(fit, patience)) for _ in range(options.repeats)]
        path = runs[0][0]
        passes = int(path.iterations.sum())
        rows.append([f"fit_path, {name}", min(r[1] for r in runs), min(r[2] for r in runs), passes])
    scaled = StandardScaler().fit_transform(features)
    if not options.no_baseline:
        baseline = LogisticRegressionCV(
            Cs=C, cv=splits, scoring="neg_log_loss", l1_ratios=(0,), refit=False,
            use_legacy_attributes=False,
        )  # fmt: skip
        _, wall, cpu = timed(lambda: baseline.fit(scaled, labels))
        rows.append(["LogisticRegressionCV", wall, cpu, int(np.sum(baseline.n_iter_))])
        ours = path.validation_loss.mean(axis=(0, 1))
        apart = np.abs(ours + baseline.scores_.mean(axis=0).ravel())
        print("validation loss apart from LogisticRegressionCV's:", np.round(apart, 4))
    table = pd.DataFrame(rows, columns=["", "seconds", "cpu seconds", "passes of all heads"])
    table["ratio"] = table["seconds"].iloc[-1] / table["seconds"]
    table["cpu ratio"] = table["cpu seconds"].iloc[-1] / table["cpu seconds"]
    print(table.round(2).to_string(index=False))
    print(exactness(fit(1), features, labels, folds, options.exact_folds))


def exactness(
    path: HeadPath, features: np.ndarray, labels: np.ndarray, folds: np.ndarray, n_folds: int
) -> str:
    """Return the gaps to scikit-learn converged tightly, for all heads that did not stop early.

    scikit-learn starts from our solution to save hours; it is a convex problem, and `proved`
    bounds how far from the one minimum it ends: |gradient|^2 / (2 l2 objective).
    """
    worst = dict.fromkeys(["objective", "validation loss", "probability", "proved"], 0.0)
    probs, scaler = probabilities(path.out_of_fold, path.kind), StandardScaler()
    scaled = scaler.fit_transform(features.astype(np.float64))
    mean, deviation = scaler.mean_, scaler.scale_
    for fold in range(n_folds):
        train, held = folds != fold, folds == fold
        for i in np.flatnonzero(~path.stopped_early[0, fold]):
            model = LogisticRegression(C=1 / path.l2[i], tol=1e-7, max_iter=20_000, warm_start=True)
            head = np.ravel_multi_index((0, fold, i), path.objective.shape)
            model.coef_ = (path.heads.weight[:, head] * deviation[:, None]).T.astype(np.float64)
            model.intercept_ = path.heads.bias[head] + mean @ path.heads.weight[:, head]
            model.fit(scaled[train], labels[train])
            train_probs = model.predict_proba(scaled[train])
            row = np.arange(len(train_probs))
            best = -np.log(train_probs[row, labels[train]]).sum()
            best += path.l2[i] / 2 * (model.coef_**2).sum()
            train_probs[row, labels[train]] -= 1
            gradient = train_probs.T @ scaled[train] + path.l2[i] * model.coef_
            expected = model.predict_proba(scaled[held])
            loss = -np.log(expected[np.arange(len(expected)), labels[held]]).mean()
            gaps = {
                "objective": path.objective[0, fold, i] / best - 1,
                "validation loss": abs(path.validation_loss[0, fold, i] - loss),
                "probability": np.abs(probs[held, 0, i] - expected).max(),
                "proved": (gradient**2).sum() / (2 * path.l2[i] * best),
            }
            worst = {name: max(worst[name], value) for name, value in gaps.items()}
    listed = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    return f"largest gap on {n_folds} fold(s): {listed}"


def out_of_core(n_rows: int, folder: str | None) -> None:
    """Fit a quarter of the synthetic rows, then all, from disk in a process of its own each."""
    with tempfile.TemporaryDirectory(dir=folder) as workspace:
        for n in (n_rows // 4, n_rows):
            path = Path(workspace) / "rows.h5"
            synthesise(path, n)
            subprocess.run([sys.executable, __file__, "--streamed", str(path)], check=True)
            path.unlink()


def synthesise(path: Path, n_rows: int) -> None:
    """Write features whose spectrum falls like that of images, in three overlapping classes."""
    random = np.random.default_rng(0)
    n_features, n_classes = SYNTHETIC["n_features"], SYNTHETIC["n_classes"]
    centres = random.normal(size=(n_classes, n_features)).astype(np.float32) * 0.1
    mix = random.normal(size=(100, n_features)).astype(np.float32) / 10
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("view_000", (n_rows, n_features), np.float32)
        file["labels"] = labels = random.integers(0, n_classes, n_rows)
        for start in range(0, n_rows, 10_000):
            part = labels[start : start + 10_000]
            noise = random.standard_normal((len(part), n_features), dtype=np.float32)
            hidden = random.standard_normal((len(part), 100), dtype=np.float32)
            rows[start : start + len(part)] = centres[part] + hidden @ mix + noise / 2


def stream(path: Path) -> None:
    """Fit the rows of a file without ever holding them all; print seconds and peak memory."""
    with h5py.File(path, "r") as file:
        labels, rows = file["labels"][:], file["view_000"]
        folds = np.arange(len(labels)) % SYNTHETIC["n_folds"]
        inputs = FitInputs.checked(rows, labels, SYNTHETIC["n_classes"], folds)
        l2 = len(labels) * np.logspace(-2, -4, SYNTHETIC["n_l2"])
        result, wall, cpu = timed(lambda: fit_path(inputs, "softmax", l2, patience=None, memory=0))
        passes = int(result.iterations.max(axis=(0, 1)).sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"{len(labels):,} rows of {path.stat().st_size / 1e9:.2f} GB: {wall:.1f} s "
        f"({cpu:.1f} s CPU), {passes} passes, {1e6 * wall / passes / len(labels):.2f} us per row "
        f"and pass; peak memory {peak:.2f} GiB; all converged: {result.converged.all()}",
        flush=True,
    )


if __name__ == "__main__":
    main()
