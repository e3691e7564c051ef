"""Screening of all modules: linear heads on each, then networks on those that tie with the best.

The result of each module and kind of heads is kept, so that an interrupted fit resumes, and what
tied with the best in one fit and does not in the next need not be fitted again in a third.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.bottlenecks import Bottlenecks, ForwardPassLog
from hubretrain.evaluation import N_PARTS, Evaluator, choice_parts, intervals
from hubretrain.heads import (
    DECAYS,
    MOST_COMPONENTS,
    Kind,
    MLPOptions,
    ModuleHeads,
    Projection,
    n_steps,
    seconds_of_step,
)
from hubretrain.runs import Run
from hubretrain.screening.candidates import ALL_LAYERS
from hubretrain.screening.leaderboard import choosable
from hubretrain.screening.result import ScreenResult, merged, merged_heads
from hubretrain.screening.screen import identity_of, screen
from hubretrain.screening.sweep import LINEAR, MLP, Sweep

_log = logging.getLogger(__name__)
LONG_SECONDS = 60.0  # from which it is told how long networks take


@dataclass(frozen=True)
class Stages:
    """Screens the modules of a run.

    Attributes:
        images: The images outside of the test split; see `screen`.
        sweep: What to compare.
        run: The run that keeps the results.
        seed: Random seed of the resamples by which ties are found.
        test: The contents of the images in the test split, of which view 0 is read at the end.
    """

    images: pd.DataFrame
    sweep: Sweep
    run: Run
    seed: int
    test: Sequence[str] = ()
    _projections: dict[str, Projection] = field(default_factory=dict)

    def results(self, files: Sequence[Path]) -> list[tuple[ScreenResult, ModuleHeads]]:
        """Return the screenings of the modules with these bottleneck files, and their heads.

        Raises:
            CacheError: A cache is not finished, or lacks images.
            HeadError: The heads cannot be fitted.
            WriteError: The run folder cannot be written.
        """
        linear = tuple(kind for kind in self.sweep.kinds if kind in LINEAR)
        first = linear or self.sweep.kinds
        self._check({file: self._kept(file, first) is not None for file in files})
        if first == (MLP,):
            self._tell_time(files)
        alone = {file: self._part(file, first) for file in files}
        with_networks: set[str] = set()
        if linear and MLP in self.sweep.kinds:
            with_networks = {file.stem for file in files}
        elif self.sweep.mlp_where_tied:
            with_networks = self._tied([result for result, _ in alone.values()])
        self._tell_time([file for file in files if file.stem in with_networks])
        results = []
        for file, (result, heads) in alone.items():
            if file.stem in with_networks:
                result, heads = self._with_networks(file, result, heads)
            results.append((_with_costs(file, result), heads()))
        return results

    def _check(self, is_kept: Mapping[Path, bool]) -> None:
        """Read all that will be read, so that damage of the last module is not found hours later.

        Of a module whose screening is kept, that is the test split.
        """
        if all(is_kept.values()):
            return
        for file, kept in is_kept.items():
            with Bottlenecks(file) as bottlenecks:
                bottlenecks.check(() if kept else self.images["sha256"].tolist(), self.test)

    def _kept(self, file: Path, kinds: tuple[Kind, ...]) -> ScreenResult | None:
        """Return the screening of a module with some kinds of heads that is kept."""
        path = self.run.screened_file(file.stem, MLP if kinds == (MLP,) else "linear")
        return ScreenResult.load(path, identity_of(file, self.images, self._sweep_of(kinds)))

    def _sweep_of(self, kinds: tuple[Kind, ...]) -> Sweep:
        return replace(self.sweep, kinds=kinds, mlp_where_tied=False)

    def _part(
        self, file: Path, kinds: tuple[Kind, ...]
    ) -> tuple[ScreenResult, Callable[[], ModuleHeads]]:
        """Return a module's screening with some kinds of heads, kept or made now, and its heads."""
        path = self.run.screened_file(file.stem, MLP if kinds == (MLP,) else "linear")
        result = self._kept(file, kinds)
        if result is None:
            sweep = self._sweep_of(kinds)
            result, heads = screen(file, self.images, sweep, self._projections)
            result.save(path, heads)
        return result, lambda: ScreenResult.load_heads(path)

    def _with_networks(
        self, file: Path, linear: ScreenResult, linear_heads: Callable[[], ModuleHeads]
    ) -> tuple[ScreenResult, Callable[[], ModuleHeads]]:
        networks, heads = self._part(file, (MLP,))
        metric, parts = self.sweep.metric, choice_parts(*self._labels_and_groups())
        return (
            merged(linear, networks, metric, parts, MLP),
            lambda: merged_heads(linear, networks, metric, (linear_heads(), heads())),
        )

    def _tell_time(self, files: Sequence[Path]) -> None:
        """Log how long the networks on these modules take, where that is over a minute."""
        files = [file for file in files if self._kept(file, (MLP,)) is None]
        seconds = sum(seconds_of_networks(file, self.images, self.sweep) for file in files)
        if seconds > LONG_SECONDS:
            _log.info(
                "Networks on %s take about %.0f minutes; `heads=softmax` does without.",
                *(", ".join(file.stem for file in files), max(1, seconds / 60)),
            )

    def _labels_and_groups(self) -> tuple[AnyArray, AnyArray]:
        validated = self.images[self.images["fold"] >= 0]
        return self.sweep.targets(validated), validated["cluster"].to_numpy()

    def _tied(self, results: Sequence[ScreenResult]) -> set[str]:
        """Return the modules that tie with the best."""
        labels, groups = self._labels_and_groups()
        evaluator = Evaluator(labels, groups, self.seed, parts=choice_parts(labels, groups))
        metric = self.sweep.metric
        modules = choosable(results)
        resampled = [evaluator.resample(metric, of.chosen.of(metric)) for of in modules]
        tied = intervals.tied_with_best(resampled)
        return {of.module for of, is_tied in zip(modules, tied, strict=True) if is_tied}


def seconds_of_networks(file: Path, images: pd.DataFrame, sweep: Sweep) -> float:
    """Return about how long the networks on a module take, by some steps that are timed.

    Args:
        file: Bottleneck file of the module.
        images: See `screen`.
        sweep: What to compare.
    """
    with Bottlenecks(file) as bottlenecks:
        n_features = bottlenecks.n_features_of("last")
        if ALL_LAYERS in sweep.layers and bottlenecks.has_layers:
            n_features = min(bottlenecks.n_features_of("all"), MOST_COMPONENTS, len(images))
    n_weights = 1 if None in sweep.class_weights else len(sweep.class_weights)
    n_folds = images.loc[images["fold"] >= 0, "fold"].nunique()
    n_networks = n_folds * n_weights * len(DECAYS) * MLPOptions().n_seeds
    of_fold = max(1, len(images) * (n_folds - 1) // n_folds)
    n_all = n_steps(of_fold)
    if n_folds > 1:  # and without each part, to choose by
        n_all += N_PARTS * n_steps(max(1, of_fold * (N_PARTS - 1) // N_PARTS))
    seconds = seconds_of_step(n_features, len(sweep.class_names))
    return n_networks * n_all * seconds / (os.cpu_count() or 1)


def _with_costs(file: Path, result: ScreenResult) -> ScreenResult:
    """Return the result with what the forward passes took."""
    log, name = ForwardPassLog(file.parent), str(result.about["module"]["module"])
    seconds = log.table.loc[log.table["module"] == name, "seconds"]
    costs = {
        "images_per_second": log.images_per_second(name),
        "seconds_to_cache": float(seconds.sum()),
    }
    return replace(result, about={**result.about, **costs})
