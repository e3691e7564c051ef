"""Bias and coverage of the metrics of a chosen head: of a mixture of two, and within the parts.

    python benchmarks/bench_mixture.py --images 400 --repetitions 200

Each repetition draws new images (normal features, unbalanced classes), fits the heads of a fit with
their class weights and penalties, chooses one by balanced accuracy, as `hubretrain fit` does, and
takes the cross-fitted predictions. `pooled` evaluates them as if they were of one model, which they
are not where the halves have different heads; `within` as `hubretrain.evaluation.parts` does. The
truth is the value of the chosen head, fitted on all images, on new ones. So the bias holds also
that the heads out of fold were fitted on fewer images, which is the same for both.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from bench_intervals import CLASS_SHARES
from sklearn.model_selection import StratifiedKFold

from hubretrain.evaluation import (
    METRICS,
    STRENGTHS,
    candidate_values,
    choice_parts,
    choose,
    class_priors,
    crossfitted,
)
from hubretrain.evaluation.intervals import group_resamples, interval, resample
from hubretrain.heads import FeatureBlocks, FitInputs, PathFitter, SolverOptions
from hubretrain.screening.candidates import LAST_LAYER, VIEW_0, Candidates, Source
from hubretrain.screening.fitting import PATIENCE
from hubretrain.screening.options import L2

CHOSEN_BY = "balanced_accuracy"
SHOWN = ("roc_auc", "mean_average_precision", "calibration_error", "log_loss")
N_FEATURES, SIGNAL, N_NEW = 32, 3.0, 20_000
SHARES = CLASS_SHARES / CLASS_SHARES.sum()


def draw(n_images, rng):
    """Return features, float32 (n_images, N_FEATURES), and labels; each class has 10 or more."""
    n_of_class = np.maximum(np.round(SHARES * n_images), 10).astype(int)
    labels = np.repeat(np.arange(len(SHARES)), n_of_class)
    means = np.random.default_rng(999).normal(size=(len(SHARES), N_FEATURES))
    means *= SIGNAL / np.linalg.norm(means, axis=1, keepdims=True)
    return (means[labels] + rng.normal(size=(len(labels), N_FEATURES))).astype(np.float32), labels


def chosen_head(features, labels, seed):
    """Return cross-fitted probabilities, their parts, whether the halves agree, and the head."""
    n_classes, folds = len(SHARES), np.zeros(len(labels), np.int64)
    splits = StratifiedKFold(5, shuffle=True, random_state=seed).split(features, labels)
    for fold, (_, validated) in enumerate(splits):
        folds[validated] = fold
    inputs = FitInputs.checked([features], labels, n_classes, folds)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=1 << 28)
    sources = [Source(LAST_LAYER, VIEW_0, kind) for kind in ("softmax", "logistic")]
    fitters = {
        source: PathFitter(inputs, rows, source.kind, (None, "balanced"), SolverOptions())
        for source in sources
    }
    paths = {source: of.fit_folds(np.array(L2), PATIENCE) for source, of in fitters.items()}
    candidates = Candidates(
        paths, folds >= 0, class_priors(labels, n_classes), STRENGTHS, lambda _: None
    )
    parts = choice_parts(labels, np.arange(len(labels)))
    adjusted = (candidates.adjusted(i) for i in range(len(candidates)))
    choice = choose(candidate_values(CHOSEN_BY, adjusted, labels, parts), CHOSEN_BY)
    source, weight, i = candidates.position(choice.best)
    heads = fitters[source].refit([float(paths[source].l2[i])])
    without = {candidates.position(int(one)) for one in choice.without}
    probs = crossfitted(choice, parts, candidates.unadjusted)
    return probs, parts, len(without) == 1, lambda new: heads.probabilities(new)[:, weight]


def repetition(seed, n_images, new_features, new_labels):
    """Return a row per metric and way: estimate, ends and truth."""
    features, labels = draw(n_images, np.random.default_rng([n_images, seed]))
    probs, parts, same, head = chosen_head(features, labels, seed)
    new_probs = head(new_features)
    groups = np.arange(len(labels))
    weights = group_resamples(groups, n_resamples=200, seed=seed)
    for metric in SHOWN:
        truth = float(METRICS[metric].function(new_probs, new_labels, None))
        for way, parts_of in {"pooled": None, "within": parts}.items():
            estimate, low, high = interval(
                resample(metric, probs, labels, groups, weights, parts_of)
            )
            held = low <= truth <= high
            yield metric, way, 100 * estimate, 100 * truth, 100 * held, same


def simulated(n_images, repetitions):
    """Return the table of biases and coverage, and the share of repetitions of one head."""
    new = draw(N_NEW, np.random.default_rng(5))
    rows = [row for seed in range(repetitions) for row in repetition(seed, n_images, *new)]
    names = ["metric", "way", "estimate", "truth", "coverage_percent", "same_head"]
    table = pd.DataFrame(rows, columns=names)
    table["bias"] = table["estimate"] - table["truth"]
    of = table.groupby(["metric", "way"], sort=False)
    result = of[["truth", "bias", "coverage_percent"]].mean()
    result.insert(2, "error_of_bias", of["bias"].std() / np.sqrt(repetitions))
    return result.reset_index(), float(table["same_head"].mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--images", type=int, default=400)
    options = parser.parse_args()
    table, same = simulated(options.images, options.repetitions)
    print(
        f"{options.images:,} images, {options.repetitions:,} repetitions, chosen by {CHOSEN_BY}; "
        f"both halves have one head in {same:.0%}; values in hundredths"
    )
    print(table.to_string(index=False, float_format=lambda x: f"{x:.2f}"))


if __name__ == "__main__":
    main()
