"""Are figures chance where there is no signal, and do intervals hold the deployed head's truth?

    python benchmarks/bench_honesty.py null --modules 20 --images 60 --repetitions 50
    python benchmarks/bench_honesty.py coverage --images 200 --repetitions 100

Both screen modules as `hubretrain fit` does, with new images, labels and training each time; only
the features are made up. `null`: features are noise, so every figure should be chance. `coverage`:
features carry a signal; the truth is the value of the deployed head, chosen and fitted on all
images, on new images; how often does the interval of the leaderboard hold it? And how often is one
of two modules of the same quality said to be worse than the other?
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from bench_intervals import CLASS_SHARES

from hubretrain.bottlenecks import BottleneckWriter, RowIndex
from hubretrain.data.splitting.splits import split_images
from hubretrain.evaluation import METRICS, STRENGTHS
from hubretrain.screening.comparison import ModuleComparison
from hubretrain.screening.screen import screen
from hubretrain.screening.sweep import Sweep

METRICS_OF_NULL = ("accuracy", "balanced_accuracy", "roc_auc")
MIN_GROUPS = 6  # of a class: each of 5 folds has one


def images_of(labels, groups, seed, n_folds=5):
    """Return the table of images that a screening takes, in folds of whole groups."""
    fold = split_images(labels, groups, n_folds=n_folds, test_fraction=0.0, seed=seed)
    paths = [f"{i}.png" for i in range(len(labels))]
    return pd.DataFrame(
        {
            "path": paths,
            "sha256": paths,
            "class_index": labels,
            "cluster": groups,
            "fold": fold.astype(int),
        }
    )


def screened(images, modules, metric, folder, seed):
    """Screen modules given as features, (n_images, n_features); return the comparison and heads."""
    n_classes = images["class_index"].max() + 1
    of_mean = METRICS[metric].is_of_decision and METRICS[metric].is_mean_over_classes
    sweep = Sweep(
        metric,
        tuple(f"class {c}" for c in range(n_classes)),
        strengths=STRENGTHS if of_mean else (0.0,),
    )
    results, heads = [], []
    for m, features in enumerate(modules):
        file = Path(folder) / f"m{m}.h5"
        file.unlink(missing_ok=True)
        rows = RowIndex(
            tuple(images["path"]), tuple(images["sha256"]), np.ones(len(images), np.int16)
        )
        about = {"module": file.stem, "handle": file.stem, "module_sha256": "0"}
        about |= {"image_size": 8, "value_range": "[0.0, 1.0]"}
        with BottleneckWriter(file, rows, features.shape[1], about) as writer:
            everything = np.arange(len(images))
            writer.write(np.zeros(len(images), int), everything, features)
            writer.seal()
        result, of_module = screen(file, images, sweep)
        results.append(result)
        heads.append(of_module.deployed)
    return ModuleComparison(images, results, sweep, seed), heads


def null_repetition(options, folder, seed):
    """Return the figures of the best and the mean module and of the ensemble."""
    rng = np.random.default_rng([seed, options.images, options.modules])
    n_groups = options.images // options.group_size
    groups = np.repeat(np.arange(n_groups), options.group_size)
    labels = (np.arange(n_groups) % options.classes)[groups]
    groups = rng.permutation(n_groups)[groups]
    images = images_of(labels, groups, seed)
    shape = len(labels), options.features
    # Images of a group share half of the variance of the noise.
    modules = [
        (rng.normal(size=shape) + rng.normal(size=(n_groups, shape[1]))[groups]).astype(np.float32)
        for _ in range(options.modules)
    ]
    comparison, _ = screened(images, modules, options.metric, folder, seed)
    predictions = comparison.predictions()
    ensemble = predictions.pop("ensemble")
    for metric in METRICS_OF_NULL:

        def value(of, metric=metric):
            return float(comparison.evaluator.resample(metric, of.of(metric)).estimate)

        yield metric, "module", float(np.mean([value(of) for of in predictions.values()]))
        yield metric, "best module", value(comparison.best())
        yield metric, "ensemble", value(ensemble)
    naive = max(result.about["uncorrected"] for result in comparison.results)
    yield options.metric, "best module, uncorrected", naive


def null(options):
    """Print the mean of each figure with its standard error."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for seed in range(options.seed, options.seed + options.repetitions)
            for row in null_repetition(options, folder, seed)
        ]
    table = pd.DataFrame(rows, columns=["metric", "of", "value"])
    table["value"] *= 100
    result = table.groupby(["metric", "of"], sort=False)["value"].agg(["mean", "sem"])
    print(
        f"{options.modules} modules x {options.images} images, {options.classes} classes, groups "
        f"of {options.group_size}, chosen by {options.metric}: chance is "
        f"{100 / options.classes:.1f}, of ROC AUC 50"
    )
    print(result.round(1).to_string())


def draw(n_images, options, rng, shares):
    """Return features of two modules of the same quality, labels and groups."""
    n_of_class = np.maximum(np.round(shares * n_images / options.group_size), MIN_GROUPS)
    of_group = np.repeat(np.arange(len(shares)), n_of_class.astype(int))
    groups = np.repeat(np.arange(len(of_group)), options.group_size)
    labels, n_features = of_group[groups], options.features
    means = np.random.default_rng(999).normal(size=(len(shares), n_features))
    means *= options.signal / np.linalg.norm(means, axis=1, keepdims=True)
    shared = rng.normal(size=(len(of_group), n_features))[groups]
    noise = rng.normal(size=(len(labels), n_features))
    of_image = noise if options.group_size == 1 else (shared + noise) / np.sqrt(2)
    modules = [
        means[labels] + 0.8 * of_image + 0.6 * rng.normal(size=noise.shape) for _ in range(2)
    ]
    return [features.astype(np.float32) for features in modules], labels, groups


def coverage_repetition(options, folder, seed, new_features, new_labels, shares):
    """Yield, for each module, estimate, ends and truth, and whether it is tied."""
    rng = np.random.default_rng([seed, options.images])
    modules, labels, groups = draw(options.images, options, rng, shares)
    images = images_of(labels, groups, seed)
    comparison, heads = screened(images, modules, options.metric, folder, seed)
    board = comparison.leaderboard(2)
    # An ensemble of one member has the name of its module.
    board = board[board["kind"] == "module"].set_index("module")
    weight = (np.bincount(labels) / np.bincount(new_labels))[new_labels]
    for name, head, features in zip(("m0", "m1"), heads, new_features, strict=True):
        probs = head.probabilities(features)
        of = METRICS[options.metric]
        probs = head.rule.adjust(probs) if of.is_of_decision else probs
        truth = float(of.function(probs, new_labels, weight))
        row = board.loc[name]
        ends = (row[options.metric + end] for end in ("", "_low", "_high"))
        yield (*ends, row[f"{options.metric}_uncorrected"], truth, row["tied"])


def coverage(options):
    """Print bias, coverage and width."""
    shares = CLASS_SHARES / CLASS_SHARES.sum() if options.classes == 7 else None
    if shares is None:
        shares = np.full(options.classes, 1 / options.classes)
    of_new = argparse.Namespace(**{**vars(options), "group_size": 1})
    uniform = np.full(len(shares), 1 / len(shares))
    new, new_labels, _ = draw(1200 * len(shares), of_new, np.random.default_rng(5), uniform)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for seed in range(options.seed, options.seed + options.repetitions)
            for row in coverage_repetition(options, folder, seed, new, new_labels, shares)
        ]
    estimate, low, high, uncorrected, truth, tied = np.array(rows, float).T
    print(
        f"{options.images} images, {options.classes} classes, groups of {options.group_size}, "
        f"{options.metric}, {options.repetitions} repetitions of two modules: the interval holds "
        f"the deployed head {100 * np.mean((low <= truth) & (truth <= high)):.1f} (too high "
        f"{100 * np.mean(low > truth):.1f}, too low {100 * np.mean(high < truth):.1f}), width "
        f"{100 * np.mean(high - low):.1f}; truth {100 * truth.mean():.1f}, bias cross-fitted "
        f"{100 * np.mean(estimate - truth):+.1f}, uncorrected "
        f"{100 * np.mean(uncorrected - truth):+.1f}; said to be worse than its equal "
        f"{100 * (1 - tied.reshape(-1, 2).all(axis=1).mean()):.1f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["null", "coverage"])
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--modules", type=int, default=20, help="of null; coverage has two")
    parser.add_argument("--classes", type=int, help="default 3 of null, 7 of coverage")
    parser.add_argument("--group-size", type=int, default=1)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--signal", type=float, default=2.5)
    parser.add_argument("--metric", help="default accuracy of null, balanced accuracy of coverage")
    options = parser.parse_args()
    is_null = options.what == "null"
    options.classes = options.classes or (3 if is_null else 7)
    options.metric = options.metric or ("accuracy" if is_null else "balanced_accuracy")
    (null if is_null else coverage)(options)


if __name__ == "__main__":
    main()
