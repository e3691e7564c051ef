"""Coverage of the 95 % confidence intervals, by simulation, and the time of a leaderboard row.

    python benchmarks/bench_intervals.py --repetitions 1000 --images 1000 --images 8000

Each repetition draws a new set of groups, predictions of two models for them, and the intervals
that `hubretrain.evaluation.intervals` gives; the truth is the same model on a sample so large that
its own error does not matter. `coverage` should lie in 93 to 97 %; with 1,000 repetitions its
standard error is 0.7 points.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

# Each process has one core to itself: threads of BLAS in every one of them would fight over it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from hubretrain.evaluation import softmax
from hubretrain.evaluation.intervals import difference, group_resamples, interval, resample
from hubretrain.evaluation.metrics import METRICS

# Shares of the classes of HAM10000, and how many images a group has, 1.56 on average.
CLASS_SHARES = np.array([0.67, 0.11, 0.11, 0.05, 0.03, 0.014, 0.011])
GROUP_SIZES = np.array([0.65, 0.22, 0.08, 0.03, 0.01, 0.01])
IMAGES_PER_GROUP = float(GROUP_SIZES @ np.arange(1, 7))


def synthetic(n_images, rng, signal=2.2, shared=1.0):
    """Return labels, groups and the probabilities of two models, for about `n_images` images.

    The logit of a class is 0.7 log(share) + signal x (it is the label) + a normal effect of
    standard deviation `shared` that the group's images have in common + normal noise. The second
    model sees 0.2 less signal and noise of its own, so the two are paired but not equal.
    """
    shares = CLASS_SHARES / CLASS_SHARES.sum()
    n_groups, n_classes = round(n_images / IMAGES_PER_GROUP), len(shares)
    sizes = 1 + rng.choice(len(GROUP_SIZES), n_groups, p=GROUP_SIZES)
    groups = np.repeat(np.arange(n_groups), sizes)
    labels = rng.choice(n_classes, n_groups, p=shares)[groups]
    is_label = np.eye(n_classes)[labels]
    logits = 0.7 * np.log(shares) + rng.normal(0, shared, (n_groups, n_classes))[groups]
    logits = logits + signal * is_label + rng.normal(0, 1, logits.shape)
    worse = logits - 0.2 * is_label + rng.normal(0, 0.5, logits.shape)
    return labels, groups, [softmax(logits), softmax(worse)]


def true_values(n_images=3_200_000, seed=10**6, metrics=METRICS, **model):
    """Return the metrics of both models, by name, from a very large sample."""
    chunks = max(1, n_images // 200_000)
    values = []
    for chunk in range(chunks):
        rng = np.random.default_rng([seed, chunk])
        labels, _, models = synthetic(n_images // chunks, rng, **model)
        values.append(
            [[float(METRICS[name].function(p, labels, None)) for p in models] for name in metrics]
        )
    return dict(zip(metrics, np.mean(values, axis=0), strict=True))


def repetition(seed, n_images, n_resamples=1000, metrics=METRICS, **model):
    """Return, by metric, the interval of the first model and of the difference."""
    labels, groups, models = synthetic(n_images, np.random.default_rng([n_images, seed]), **model)
    weights = group_resamples(groups, n_resamples=n_resamples, seed=seed)
    intervals = {}
    for name in metrics:
        first, second = (resample(name, p, labels, groups, weights) for p in models)
        change = difference(first, second)
        intervals[name] = (tuple(interval(first)), (change.estimate, change.low, change.high))
    return intervals


def coverage(
    n_images,
    repetitions,
    n_resamples=1000,
    metrics=METRICS,
    workers=1,
    n_true=3_200_000,
    **model,
):
    """Return a table: how often the interval, or that of the difference, held the truth."""
    truth = true_values(n_true, metrics=metrics, **model)
    run = partial(repetition, n_images=n_images, n_resamples=n_resamples, metrics=metrics, **model)
    if workers == 1:
        repeated = [run(seed) for seed in range(repetitions)]
    else:
        with ProcessPoolExecutor(workers) as pool:
            repeated = list(pool.map(run, range(repetitions), chunksize=5))
    rows = []
    for name in metrics:
        first, second = truth[name]
        for which, true in enumerate((first, first - second)):
            estimate, low, high = np.array([intervals[name][which] for intervals in repeated]).T
            rows.append(
                {
                    "metric": name,
                    "of": ("one model", "difference")[which],
                    "truth": true,
                    "bias": estimate.mean() - true,
                    "coverage_percent": 100 * np.mean((low <= true) & (true <= high)),
                    "too_high_percent": 100 * np.mean(low > true),
                    "too_low_percent": 100 * np.mean(high < true),
                    "mean_width": np.mean(high - low),
                }
            )
    return pd.DataFrame(rows)


def speed(n_images=8000, n_resamples=1000, repeats=3):
    """Return a table: milliseconds per leaderboard row, by metric and in all."""
    labels, groups, (probabilities, _) = synthetic(n_images, np.random.default_rng(0))
    steps = {"draw the groups": lambda: group_resamples(groups, n_resamples=n_resamples)}
    weights = group_resamples(groups, n_resamples=n_resamples)
    for name in METRICS:
        steps[name] = partial(
            lambda name: interval(resample(name, probabilities, labels, groups, weights)), name
        )
    rows = [{"step": name, "milliseconds": 1000 * fastest(s, repeats)} for name, s in steps.items()]
    total = sum(row["milliseconds"] for row in rows[1:])
    return pd.DataFrame([*rows, {"step": "one leaderboard row", "milliseconds": total}])


def fastest(function, repeats):
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--images", type=int, action="append", help="default 1000 and 8000")
    # An interval needs their standard error only, which 400 give to 3.5 %.
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--signal", type=float, default=2.2, help="4: easy classes; 1: hard ones")
    parser.add_argument("--shared", type=float, default=1.0, help="spread of the group effects")
    options = parser.parse_args()
    model = {"signal": options.signal, "shared": options.shared}
    for n_images in options.images or [1000, 8000]:
        start = time.perf_counter()
        table = coverage(
            n_images, options.repetitions, options.resamples, workers=options.workers, **model
        )
        seconds = time.perf_counter() - start
        print(f"\n{n_images:,} images, {options.repetitions:,} repetitions, {seconds:.0f} s")
        print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}"), flush=True)
    print("\n8,000 images, 7 classes, 1,000 resamples")
    print(speed().to_string(index=False, float_format=lambda x: f"{x:.0f}"))


if __name__ == "__main__":
    main()
