"""Regret of the shortlist, for ways to choose and order it.

    python benchmarks/bench_shortlist.py --images 1600 --repetitions 400

Modules are right or wrong image by image, with a correlation of 0.6 on the normal scale, so the
truly best one is known. Those that `tied_with_best` keeps are candidates for a shortlist of three.
The price of a module is random, or rises with its quality. Regret is what the truly best module has
more than the first of the shortlist, which `finetune` takes, or more than the best of the three.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy import stats

from hubretrain.evaluation.intervals import Resampled, group_resamples, tied_with_best

TOP, CORRELATION, BEST, N_RESAMPLES = 3, 0.6, 0.8, 300


def cheapest_first(of):
    """Return the tied modules, the cheapest first."""
    return sorted(of["tied"], key=lambda i: of["price"][i])


def best_then_cheapest(of):
    """Return the best by estimate, then the cheapest of the tied."""
    return [of["ranking"][0], *(i for i in cheapest_first(of) if i != of["ranking"][0])]


def cheapest_within_one_error(of):
    """Return the cheapest within one standard error of the best, then the others by estimate."""
    best = of["ranking"][0]
    near = [i for i in of["tied"] if of["estimate"][best] - of["estimate"][i] <= of["error"][i]]
    first = min(near, key=lambda i: of["price"][i])
    return [first, *(i for i in by_estimate(of) if i != first)]


def by_estimate(of):
    """Return the tied modules, the best by estimate first."""
    return [i for i in of["ranking"] if i in of["tied"]]


def by_share_of_resamples(of):
    """Return the tied modules, that first which is the best in most resamples."""
    return sorted(by_estimate(of), key=lambda i: -of["times_best"][i])


WAYS = {
    "the cheapest of the tied first": cheapest_first,
    "the best, then the cheapest of the tied": best_then_cheapest,
    "the cheapest within one standard error, then by estimate": cheapest_within_one_error,
    "by how many resamples it is the best in": by_share_of_resamples,
    "by estimate": by_estimate,
}


def qualities():
    """Yield names of situations, the accuracies in each, and whether quality has its price."""
    for n_modules in (5, 20):
        for points in (1, 2, 4):
            gaps = np.full(n_modules, points / 100)
            gaps[0] = 0
            yield f"one of {n_modules} better by {points} points", BEST - gaps, False
        spread = BEST - np.linspace(0, 0.06, n_modules)
        yield f"{n_modules} spread over 6 points", spread, False
        yield f"{n_modules} spread over 6 points, the better the dearer", spread, True


def compared(quality, is_dearer, weights, rng):
    """Return what the ways choose by, of modules on one draw of images."""
    n_images, n_modules = weights.shape[1], len(quality)
    shared = rng.normal(size=(n_images, 1))
    own = rng.normal(size=(n_images, n_modules))
    score = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * own
    right = (score < stats.norm.ppf(quality)).astype(np.float32)
    estimate = right.mean(axis=0, dtype=np.float64)
    resampled = (weights @ right / weights.sum(axis=1, keepdims=True)).astype(np.float64)
    rows = [
        Resampled("accuracy", float(e), values, float(n_images))
        for e, values in zip(estimate, resampled.T, strict=True)
    ]
    ranking = np.argsort(-estimate, kind="stable").tolist()
    best_of = resampled.argmax(axis=1)
    return {
        "estimate": estimate,
        "ranking": ranking,
        "error": (resampled - resampled[:, ranking[:1]]).std(axis=0),
        "times_best": np.bincount(best_of, minlength=n_modules),
        "tied": set(np.flatnonzero(tied_with_best(rows)).tolist()),
        "price": quality if is_dearer else rng.permutation(n_modules),
    }


def simulated(n_images, repetitions):
    """Return a row per situation, repetition and way."""
    weights = group_resamples(np.arange(n_images), n_resamples=N_RESAMPLES).astype(np.float32)
    rows = []
    for situation, quality, is_dearer in qualities():
        for seed in range(repetitions):
            rng = np.random.default_rng([seed, n_images, len(quality)])
            of = compared(quality, is_dearer, weights, rng)
            price_rank = stats.rankdata(of["price"])
            for way, order in WAYS.items():
                listed = order(of)[:TOP]
                regret = 100 * (quality.max() - quality[listed])
                rows.append(
                    {
                        "situation": situation,
                        "way": way,
                        "first_regret": regret[0],
                        "best_of_3_regret": regret.min(),
                        "without_best_by_estimate_percent": 100 * (of["ranking"][0] not in listed),
                        "without_truly_best_percent": 100 * (regret.min() > 0),
                        "cheaper_than_first_percent": 100
                        * (price_rank[listed[0]] - 1)
                        / (len(quality) - 1),
                    }
                )
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--repetitions", type=int, default=400)
    options = parser.parse_args()
    table = simulated(options.images, options.repetitions)
    figures = table.columns[2:].tolist()
    print(f"{options.images:,} images, {options.repetitions:,} repetitions; regret in points")
    for situation, rows in [("all situations", table), *table.groupby("situation", sort=False)]:
        means = rows.groupby("way", sort=False)[figures].mean()
        print(f"\n{situation}\n{means.round(2).to_string()}")
    errors = table.groupby("way", sort=False)[["first_regret", "best_of_3_regret"]].sem()
    print(f"\nStandard errors of the regrets, all situations\n{errors.round(3).to_string()}")


if __name__ == "__main__":
    main()
