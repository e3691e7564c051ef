"""Screening on growing slices against halving and against all images, on recorded learning curves.

    python benchmarks/bench_racing.py record DATA --cache CACHE --run RUN --output CURVES.npz
        [--seeds 20] [--layers last]
    python benchmarks/bench_racing.py race CURVES.npz ... [--share 0.25]

`record` fits the quick heads of `hubretrain screen` on slices of 1/16, 1/8, ... and all of the
images outside of the test split, for each cached module and as many orders of the images, and keeps
the metric of choice on its resamples. It resumes. `race` then replays, order by order:

- the race of `hubretrain screen` with as many passes as `--share` of those for all modules on all
  images, and without a limit;
- successive halving as in SHiFT (Renggli et al., VLDB 2022, https://arxiv.org/abs/2204.01457): the
  same passes in rounds of equal cost, after each of which the better half goes on;
- one slice of the same cost for all modules.

The truth is the metric with all images. Regret is what the truly best module has more of it than
the first that is named, in points.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from hubretrain.bottlenecks import bottleneck_files
from hubretrain.data import open_dataset
from hubretrain.evaluation import Evaluator, Resampled, choice_parts
from hubretrain.racing.elimination import alive_after, drift_of
from hubretrain.racing.slices import slice_of, slice_order
from hubretrain.runs import Run
from hubretrain.screening import Probe

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
N_RESAMPLES, TOP, CONFIDENCE = 300, 3, 0.95
SLACK = 1.05  # of a budget: whole clusters make slices a little larger than they are asked for


def record(options):
    """Fit and keep what is not kept yet: one array per module, order and slice."""
    dataset = open_dataset(options.data)
    images = dataset.split(folds_file=Run(options.run).folds_file, cache=options.cache)
    images = images[images["fold"] >= 0].reset_index(drop=True)
    labels = images["class_index"].to_numpy()
    probe = Probe.of(None, options.layers, dataset.class_names, labels)
    kept = dict(np.load(options.output)) if options.output.exists() else {}
    for seed in range(options.seeds):
        order = slice_order(images, seed)
        for share in SHARES:
            slice_ = slice_of(images, order, round(share * len(images)))
            truth, groups = slice_["class_index"].to_numpy(), slice_["cluster"].to_numpy()
            parts = choice_parts(truth, groups)
            evaluator = Evaluator(truth, groups, 0, N_RESAMPLES, parts)
            for file in bottleneck_files(dataset.cache_folder(options.cache)):
                key = f"{file.stem}|{seed if share < 1 else 0}|{len(slice_)}"
                if key not in kept:
                    predictions = probe.predictions(file, slice_)
                    row = evaluator.resample(probe.metric, predictions.of(probe.metric))
                    n_groups = [row.n_groups, row.widening]
                    kept[key] = np.array([row.estimate, *n_groups, *row.per_resample])
        np.savez(options.output, **kept)
        print(f"order {seed + 1} of {options.seeds}", flush=True)


class Curves:
    """The recorded curves of one data set."""

    def __init__(self, path):
        self.rows = {}
        for key, values in np.load(path).items():
            module, seed, n = key.split("|")
            row = Resampled("accuracy", values[0], values[3:], values[1], values[2])
            self.rows[module, int(seed), int(n)] = row
        self.modules = sorted({module for module, _, _ in self.rows})
        self.seeds = sorted({seed for _, seed, _ in self.rows})
        self.n_images = max(n for _, _, n in self.rows)
        self.truth = {m: self.rows[m, 0, self.n_images].estimate for m in self.modules}
        self.best = max(self.modules, key=self.truth.get)
        self.all_passes = len(self.modules) * self.n_images

    def sizes(self, seed):
        """Return the sizes of the slices of an order."""
        return [*sorted({n for _, s, n in self.rows if s == seed} - {self.n_images}), self.n_images]

    def at(self, module, seed, n):
        """Return the metric of a module on a slice."""
        return self.rows[module, seed if n < self.n_images else 0, n]


def raced(curves, seed, budget):
    """Return the modules that are alive, best first, and the passes, as `race_modules` ends."""
    alive, passes, before, history = list(curves.modules), 0, 0, []
    for n in curves.sizes(seed):
        cost = len(alive) * (n - before)
        if passes + cost > SLACK * budget or len(alive) == 1:
            break
        passes, before = passes + cost, n
        rows = {module: curves.at(module, seed, n) for module in alive}
        mean = np.mean([row.per_resample for row in rows.values()], axis=0)
        values = {module: row.estimate for module, row in rows.items()}
        errors = {module: float((row.per_resample - mean).std()) for module, row in rows.items()}
        history.append((math.log2(n), values, errors))
        doublings = math.log2(curves.n_images / n)
        alive = alive_after(rows, doublings, drift_of(history), CONFIDENCE)
    return alive, passes


def halved(curves, seed, budget):
    """Return what successive halving leaves, best first, and its passes."""
    alive, n_rounds = list(curves.modules), math.ceil(math.log2(len(curves.modules)))
    passes, before = 0, 0
    for _ in range(n_rounds):
        affordable = before + SLACK * budget / n_rounds / len(alive)
        n = max((n for n in curves.sizes(seed) if n <= affordable), default=curves.sizes(seed)[0])
        passes += len(alive) * max(0, n - before)
        before = max(before, n)
        ranked = sorted(alive, key=lambda m: -curves.at(m, seed, before).estimate)
        alive = ranked[: math.ceil(len(alive) / 2)]
    dropped = [m for m in ranked if m not in alive]
    return alive + dropped, passes


def at_once(curves, seed, budget):
    """Return all modules, ranked on one slice of the same cost, and the passes."""
    affordable = SLACK * budget / len(curves.modules)
    n = max((n for n in curves.sizes(seed) if n <= affordable), default=curves.sizes(seed)[0])
    order = sorted(curves.modules, key=lambda m: -curves.at(m, seed, n).estimate)
    return order, n * len(curves.modules)


def shown(curves, module):
    """Return a module with its truth and the 95 % interval of that, in points."""
    row = curves.at(module, 0, curves.n_images)
    low, high = 100 * np.quantile(row.per_resample, (0.025, 0.975))
    return f"{module} {100 * row.estimate:.1f} ({low:.1f}-{high:.1f})"


def replay(options):
    """Print regret, passes and how often the shortlist has the best, by data set and way."""
    rows = []
    for path in options.curves:
        curves = Curves(path)
        ranked = sorted(curves.truth.items(), key=lambda item: -item[1])
        print(path.stem, *(shown(curves, name) for name, _ in ranked), sep="; ")
        budget = options.share * curves.all_passes
        ways = {
            "race": lambda s, c=curves, b=budget: raced(c, s, b),
            "race without a limit": lambda s, c=curves: raced(c, s, math.inf),
            "successive halving": lambda s, c=curves, b=budget: halved(c, s, b),
            "one slice": lambda s, c=curves, b=budget: at_once(c, s, b),
        }
        for way, race in ways.items():
            for seed in curves.seeds:
                order, passes = race(seed)
                first, listed = order[0], order[:TOP]
                regret = [curves.truth[curves.best] - curves.truth[m] for m in (first, *listed)]
                rows.append(
                    {
                        "data": path.stem,
                        "way": way,
                        "times fewer passes": curves.all_passes / passes,
                        "regret of the first": 100 * regret[0],
                        "regret of the shortlist": 100 * min(regret[1:]),
                        "best on it, percent": 100 * (curves.best in listed),
                        "best alive, percent": 100 * (curves.best in order),
                    }
                )
    table = pd.DataFrame(rows)
    for name, of in [("all", table), *table.groupby("data", sort=False)]:
        figures = of.columns[2:].tolist()
        print(f"\n{name}: {len(of) // of['way'].nunique()} orders")
        print(of.groupby("way", sort=False)[figures].mean().round(2).to_string())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("data", type=Path)
    recording.add_argument("--cache", type=Path, required=True)
    recording.add_argument("--run", type=Path, required=True)
    recording.add_argument("--output", type=Path, required=True)
    recording.add_argument("--seeds", type=int, default=20)
    recording.add_argument("--layers", choices=("last", "all"), default="last")
    racing = commands.add_parser("race")
    racing.add_argument("curves", type=Path, nargs="+")
    racing.add_argument("--share", type=float, default=0.25)
    options = parser.parse_args()
    record(options) if options.command == "record" else replay(options)


if __name__ == "__main__":
    main()
