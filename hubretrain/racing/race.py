"""The race: rung by rung all modules that are alive on the same slice, until the time is over."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.arrays import IntArray
from hubretrain.data import ImageDataset, Quarantine, targets
from hubretrain.data.splitting import write_folds
from hubretrain.errors import CacheError, EngineError, HeadError, ModuleError
from hubretrain.evaluation import Evaluator, Predictions, Resampled, choice_parts, intervals
from hubretrain.extraction import Cluster
from hubretrain.files import StrPath
from hubretrain.modules import StoredModule, Trust, resolve
from hubretrain.progress import Bar
from hubretrain.racing.elimination import alive_after, drift_of
from hubretrain.racing.entrants import run_lap
from hubretrain.racing.options import RaceOptions
from hubretrain.racing.pace import Lap, Pace
from hubretrain.racing.record import Race, Rung, read_race
from hubretrain.racing.slices import slice_of, slice_order
from hubretrain.runs import Run
from hubretrain.screening import Probe

_log = logging.getLogger(__name__)
SMALLEST_SHARE, SMALLEST_SLICE = 1 / 16, 200
OUT_OF_TIME, ONE_LEFT, ALL_IMAGES = (
    "the time is over",
    "one module is left",
    "all images were compared",
)


def race_modules(
    dataset: ImageDataset,
    modules: Sequence[str | StoredModule],
    run: Run | StrPath,
    options: RaceOptions = RaceOptions(),
    *,
    cache: StrPath = "cache",
    trust: Trust = True,
    cluster: Cluster | None = None,
    on_rung: Callable[[Race], None] | None = None,
) -> Race:
    """Compare modules on growing slices of the images, and leave out those that will not win.

    Calling it again resumes, with more time goes on. What was computed stays in the cache.

    Args:
        dataset: The labelled images.
        modules: Names, handles or folders of modules, or modules themselves, the cheapest first.
        run: The run whose folds are used, or its folder; they are cut if it has none.
        options: How to screen.
        cache: The cache folder.
        trust: Whether to take modules from outside the catalogue; see `resolve`.
        cluster: Worker processes on Ray that compute the features; by default this process does.
        on_rung: Called after each slice.

    Raises:
        CacheError: No module can be used.
        RunError: What the run keeps of an earlier call is damaged.
        HeadError: The heads cannot be fitted, or the time is not enough for two modules.
        SplitError: A class is too small for the folds.
        WriteError: The cache folder cannot be written.

    Examples:
        >>> from hubretrain import RaceOptions, open_dataset, race_modules
        >>> race = race_modules(
        ...     open_dataset("data/digits"), ["modules/small"], "runs/digits", RaceOptions(first=60)
        ... )
        >>> race.shortlist, race.end
        (('modules/small',), 'one module is left')
    """
    started = time.monotonic()
    names = tuple(of if isinstance(of, str) else of.name for of in modules)
    racing = _Racing.prepared(dataset, names, Run.of(run), options, Path(cache), trust)
    racing.started, racing.cluster = started, cluster
    racing.stored |= {of.name: of for of in modules if not isinstance(of, str)}
    return racing.race_to_end(on_rung)


@dataclass
class _Racing:
    """A race that is running."""

    dataset: ImageDataset
    run: Run
    images: pd.DataFrame
    order: IntArray
    probe: Probe
    options: RaceOptions
    cache: Path
    trust: Trust
    race: Race
    pace: Pace
    stored: dict[str, StoredModule] = field(default_factory=dict)
    cluster: Cluster | None = None
    started: float = field(default_factory=time.monotonic)
    spent: float = 0.0

    @classmethod
    def prepared(
        cls,
        dataset: ImageDataset,
        names: tuple[str, ...],
        run: Run,
        options: RaceOptions,
        cache: Path,
        trust: Trust,
    ) -> _Racing:
        """Return the race where it was left, or at its start."""
        images = _development(dataset, run, options, cache)
        labels = targets(images["label"], dataset.class_names, dataset.multi_label)
        probe = Probe.of(options.metric, options.layers, dataset.class_names, labels)
        order = slice_order(images, options.split.seed)
        identity = _identity(images, names, probe, options)
        race = read_race(run, identity) or Race(
            identity, probe.metric, names, len(images), top=options.top
        )
        if len(race.rungs) == 1 and set(names) - set(race.failed) - set(race.rungs[0].estimates):
            race = replace(race, rungs=())  # the time was over before all were compared
        race = replace(race, top=options.top, end="")
        pace = Pace(race.laps)
        racing = cls(dataset, run, images, order, probe, options, cache, trust, race, pace)
        racing.spent = race.seconds
        return racing

    @property
    def seconds(self) -> float:
        """Time of the race so far, with that of earlier calls."""
        return self.spent + time.monotonic() - self.started

    def race_to_end(self, on_rung: Callable[[Race], None] | None) -> Race:
        """Climb rung after rung; return what is known in the end."""
        while not (end := self._end()):
            n_images = self._next_size()
            rung = None if n_images is None else self._rung(n_images)
            if rung is None and self.race.alive:
                end = OUT_OF_TIME
                break
            if rung is None:  # every module has failed
                continue
            rungs = (*self.race.rungs, rung)
            self.race = replace(self.race, rungs=rungs, laps=dict(self.pace.laps))
            self.race.save(self.run)
            if on_rung is not None:
                on_rung(self.race)
        self.race = replace(self.race, end=end)
        self.race.save(self.run)
        if not self.race.rungs:
            raise self._too_short()
        return self.race

    def _end(self) -> str:
        race = self.race
        if not race.alive:
            names = "; ".join(f"{name}: {reason}" for name, reason in race.failed.items())
            raise CacheError(f"none of the modules can be used: {names}")
        if not race.rungs:
            return ""
        if len(race.alive) == 1:
            return ONE_LEFT
        return ALL_IMAGES if race.rungs[-1].n_images >= len(self.images) else ""

    def _next_size(self) -> int | None:
        """Return the size of the next slice, None where the time is not enough for one."""
        n_all, rungs = len(self.images), self.race.rungs
        if not rungs:
            return first_size(n_all, self.options.first)
        before = rungs[-1].n_images
        wanted = min(n_all, round(before * self.options.growth))
        granted = 60 * self.options.minutes - self.seconds
        if granted <= 0:
            return None
        return self.pace.largest(self.race.alive, before, wanted, granted)

    def _rung(self, n_images: int) -> Rung | None:
        """Compare the modules that are alive on a slice; None where the time ended before."""
        slice_ = slice_of(self.images, self.order, n_images)
        predictions = dict(self._laps(slice_))
        rungs = self.race.rungs
        is_complete = set(predictions) == set(self.race.alive)
        if not predictions or (rungs and not is_complete):
            return None
        slice_ = self._decodable(slice_)
        names = [name for name in self.race.alive if name in predictions]
        for name in names:  # an image that cannot be decoded was found after it
            if len(predictions[name].unadjusted) != len(slice_):
                predictions[name], _ = self._lap(name, slice_)
        rows = _resampled(slice_, {name: predictions[name] for name in names}, self.probe)
        n_doublings = max(0.0, math.log2(len(self.images) / len(slice_)))
        rung = _rung_of(len(slice_), rows, names, self.seconds, self._n_passes(len(slice_)))
        drift = drift_of([_log_of(each) for each in (*rungs, rung)])
        return replace(
            rung, alive=tuple(alive_after(rows, n_doublings, drift, self.options.confidence))
        )

    def _laps(self, slice_: pd.DataFrame) -> Iterator[tuple[str, Predictions]]:
        """Yield the predictions of each module in turn, while there is time."""
        n_before = self.race.rungs[-1].n_images if self.race.rungs else 0
        names = self.race.alive
        with Bar(f"{len(slice_):,} images", len(names), "modules") as bar:
            for name in names:
                left = 60 * self.options.minutes - self.seconds
                if left <= self.pace.seconds(name, n_before, len(slice_)):
                    return
                try:
                    with bar.part(1 / len(names)):
                        predictions, lap = self._lap(name, slice_)
                except (CacheError, EngineError, HeadError, ModuleError) as error:
                    _log.warning("%s is left out: %s", name, error)
                    failed = {**self.race.failed, name: str(error)}
                    self.race = replace(self.race, failed=failed)
                    continue
                self.pace = self.pace.with_lap(name, lap)
                yield name, predictions

    def _lap(self, name: str, slice_: pd.DataFrame) -> tuple[Predictions, Lap]:
        if name not in self.stored:
            self.stored[name] = resolve(name, trust=self.trust)
        return run_lap(
            self.dataset,
            slice_,
            self.stored[name],
            self.probe,
            self.options,
            self.cache,
            self.cluster,
        )

    def _decodable(self, slice_: pd.DataFrame) -> pd.DataFrame:
        reasons = Quarantine(self.dataset.cache_folder(self.cache)).reasons
        return slice_[~slice_["sha256"].isin(list(reasons))].reset_index(drop=True)

    def _n_passes(self, n_images: int) -> int:
        before = self.race.rungs[-1] if self.race.rungs else None
        passes, size = (before.n_passes, before.n_images) if before else (0, 0)
        return passes + len(self.race.alive) * (n_images - size)

    def _too_short(self) -> HeadError:
        return HeadError(
            f"`minutes` is {self.options.minutes:g}, which was not enough for one module on "
            f"{self._next_size():,} images; grant more, or fewer images with `first`: what was "
            "computed is kept."
        )


def first_size(n_images: int, first: int | None) -> int:
    """Return the size of the first slice.

    Args:
        n_images: Images outside of the test split.
        first: The option; None for a share of them.
    """
    return min(n_images, first or max(SMALLEST_SLICE, round(n_images * SMALLEST_SHARE)))


def _development(
    dataset: ImageDataset, run: Run, options: RaceOptions, cache: Path
) -> pd.DataFrame:
    """Return the images that the folds of a run validate; the folds are cut if it has none.

    The test split is not among them: no choice is made by it.
    """
    file = run.folds_file
    if not file.exists():
        run.refuse_new_split()
    images = dataset.split(options.split, folds_file=file, cache=cache)
    if not file.exists():
        write_folds(file, images.assign(group=images["cluster"]), options.split)
    return images[images["fold"] >= 0].reset_index(drop=True)


def _identity(
    images: pd.DataFrame, names: Sequence[str], probe: Probe, options: RaceOptions
) -> str:
    """Return the digest of all that rungs depend on."""
    chosen = (options.confidence, options.first, options.growth, options.engine, options.precision)
    digest = hashlib.sha256(json.dumps([names, repr(probe), *chosen, options.split.seed]).encode())
    table = images[["sha256", "label", "fold", "cluster"]]
    digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()


def _resampled(
    images: pd.DataFrame, predictions: Mapping[str, Predictions], probe: Probe
) -> dict[str, Resampled]:
    """Return the metric of choice of each module, on the same resamples."""
    labels, groups, metric = probe.targets(images), images["cluster"].to_numpy(), probe.metric
    evaluator = Evaluator(labels, groups, parts=choice_parts(labels, groups))
    return {name: evaluator.resample(metric, of.of(metric)) for name, of in predictions.items()}


def _rung_of(
    n_images: int,
    rows: Mapping[str, Resampled],
    names: Sequence[str],
    seconds: float,
    n_passes: int,
) -> Rung:
    """Return a rung on which all are alive."""
    estimates = {name: intervals.interval(row) for name, row in rows.items()}
    mean = np.mean([row.per_resample for row in rows.values()], axis=0)
    return Rung(
        n_images=n_images,
        estimates={name: tuple(map(float, ends)) for name, ends in estimates.items()},  # type: ignore[misc]
        errors={name: float((row.per_resample - mean).std()) for name, row in rows.items()},
        alive=tuple(names),
        seconds=seconds,
        n_passes=n_passes,
    )


def _log_of(rung: Rung) -> tuple[float, dict[str, float], Mapping[str, float]]:
    values = {name: estimate for name, (estimate, _, _) in rung.estimates.items()}
    return math.log2(rung.n_images), values, rung.errors
