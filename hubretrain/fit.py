"""The fit stage: heads on every cached module, compared on images that they never saw.

Every head is fitted on all folds but one and scores that one, so each image gets probabilities
from heads that never saw it, nor any image of its group. The test split takes no part in any
choice; it is looked at once, for the shortlist, when all is chosen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain import intervals
from hubretrain.bottlenecks import Bottlenecks
from hubretrain.contents import folder_of, usable_images
from hubretrain.dataset import ImageDataset
from hubretrain.errors import CacheError, HeadError
from hubretrain.files import write_table
from hubretrain.heads import Heads, HeadSettings, fit_heads, out_of_fold
from hubretrain.metrics import METRICS
from hubretrain.progress import Bar
from hubretrain.runs import Run
from hubretrain.splits import (
    TEST,
    leaked_images,
    previous_parts,
    random_split_leak,
    read_folds,
    split_images,
    worst_deviation,
    write_folds,
)

N_RESAMPLES = 1000
UNBALANCED = 1.5  # the largest class has this many times an equal share


@dataclass(frozen=True)
class Screened:
    """The best head of one module, by cross-validation.

    Attributes:
        module: The module's name.
        settings: The best head's.
        probabilities: Its out-of-fold probabilities, float32 (n_images, n_classes), for the
            images outside the test split.
        n_heads: How many heads were fitted to find it.
        seconds: How long that took.
    """

    module: str
    settings: HeadSettings
    probabilities: npt.NDArray[np.float32]
    n_heads: int
    seconds: float


@dataclass(frozen=True)
class Screening:
    """What ``fit`` found.

    Attributes:
        run: Where it is kept.
        metric: The metric of choice.
        leaderboard: One row a module, best first.
        notes: Sentences that a reader of the leaderboard should know.
    """

    run: Run
    metric: str
    leaderboard: pd.DataFrame
    notes: tuple[str, ...]


def screen_modules(
    dataset: ImageDataset,
    run: Run,
    *,
    cache: Path = Path("cache"),
    modules: Sequence[str] = (),
    settings: Sequence[HeadSettings] | None = None,
    metric: str | None = None,
    n_folds: int = 5,
    test_fraction: float = 0.2,
    top: int = 3,
    seed: int = 0,
    quiet: bool = False,
) -> Screening:
    """Fits heads on every cached module and ranks the modules.

    Args:
        dataset: The labelled images.
        run: Where to keep what is found; a run with folds keeps them.
        cache: Where the bottlenecks are.
        modules: Which cached modules; by default all of them.
        settings: Which heads to try; by default softmax and logistic over a grid of l2.
        metric: A name of :data:`METRICS` to choose by. By default balanced accuracy where the
            classes are unbalanced, else accuracy.
        n_folds: Folds of the cross-validation.
        test_fraction: Share of the images kept for the test split.
        top: At most so many modules are shortlisted.
        seed: Of the split and the resamples.
        quiet: Show no progress.

    Raises:
        CacheError: Nothing is cached, or what is cached is not finished.
        HeadError: The heads cannot be fitted.
        SplitError: A class is too small for the folds.
        RunError: The run folder cannot be written.
    """
    files = _bottleneck_files(dataset, cache, modules)
    images = usable_images(dataset, cache, quiet=quiet)
    images["fold"] = _parts(images, run, n_folds, test_fraction, seed)
    write_folds(run.folds_file, images.assign(group=images["cluster"]))
    development = images[images["fold"] != TEST].reset_index(drop=True)
    test = images[images["fold"] == TEST].reset_index(drop=True)
    n_classes = len(dataset.class_names)
    largest = development["class_index"].value_counts().max() / len(development)
    unbalanced = bool(largest * n_classes > UNBALANCED)
    metric = _metric(metric, unbalanced)
    settings = list(settings or HeadSettings.grid(unbalanced=unbalanced))
    screened = [
        _screen(file, development, n_classes, settings, metric, quiet=quiet) for file in files
    ]
    weights = intervals.group_resamples(
        development["cluster"].to_numpy(), n_resamples=N_RESAMPLES, seed=seed
    )
    board = _leaderboard(screened, development, weights, metric, top)
    _keep_heads(run, files, screened, images, dataset.class_names)
    board = _with_test(board, run, files, test, weights_seed=seed)
    write_table(run.leaderboard_file, board)
    write_table(run.out_of_fold_file, _out_of_fold_table(screened, development, dataset))
    notes = _notes(images, dataset, metric, board)
    run.record(
        "fit",
        {
            "data": str(dataset.root.resolve()),
            "data_options": dataset.opened_with,
            "cache": str(cache.resolve()),
            "class_names": list(dataset.class_names),
            "metric": metric,
            "n_folds": n_folds,
            "test_fraction": test_fraction,
            "seed": seed,
            "shortlist": board.loc[board["shortlist"], "module"].tolist(),
            "test_looked_at": True,
            "modules": {f.stem: _module_facts(f) for f in files},
            "notes": list(notes),
        },
    )
    return Screening(run, metric, board, notes)


def _bottleneck_files(dataset: ImageDataset, cache: Path, modules: Sequence[str]) -> list[Path]:
    place = folder_of(dataset, cache)
    files = {path.stem: path for path in sorted(place.glob("*.h5"))}
    if not files:
        raise CacheError(
            f"{place}/ holds no bottlenecks; make some with: hubretrain cache --module NAME"
        )
    for name in modules:
        if name not in files:
            raise CacheError(
                f"{name} is not cached in {place}/ (there are: {', '.join(files)}); "
                f"cache it with: hubretrain cache --module {name}"
            )
    return [files[name] for name in modules] if modules else list(files.values())


def _module_facts(file: Path) -> dict[str, Any]:
    with Bottlenecks(file) as bottlenecks:
        return dict(bottlenecks.facts)


def _parts(
    images: pd.DataFrame, run: Run, n_folds: int, test_fraction: float, seed: int
) -> npt.NDArray[np.int8]:
    """The part of each image: as in the run's ``folds.csv`` where it is there, else newly cut."""
    previous = None
    if run.folds_file.exists():
        earlier = read_folds(run.folds_file)
        previous = previous_parts(earlier, images["path"].tolist(), images["sha256"].tolist())
    return split_images(
        images["label"],
        images["cluster"],
        n_folds=n_folds,
        test_fraction=test_fraction,
        seed=seed,
        previous=previous,
        given=images["split"] if (images["split"] != "").any() else None,
    )


def _metric(metric: str | None, unbalanced: bool) -> str:
    if metric is not None:
        if metric not in METRICS:
            raise HeadError(f"--metric is {metric!r}; expected one of {', '.join(METRICS)}.")
        return metric
    return "balanced_accuracy" if unbalanced else "accuracy"


def _screen(
    file: Path,
    images: pd.DataFrame,
    n_classes: int,
    settings: Sequence[HeadSettings],
    metric: str,
    *,
    quiet: bool,
) -> Screened:
    """Fits every head of one module on every fold and keeps the best."""
    started = time.monotonic()
    with Bottlenecks(file) as bottlenecks:
        views = _views(bottlenecks, images)
    labels = images["class_index"].to_numpy()
    function, higher, *_ = METRICS[metric]
    best: tuple[float, HeadSettings, npt.NDArray[np.float32]] | None = None
    folds = images["fold"].to_numpy()
    n_heads = len(settings) * len(set(folds[folds >= 0]))
    with Bar(f"fitting {file.stem}", n_heads, "heads", quiet=quiet) as bar:
        found = out_of_fold(views, labels, folds, n_classes, settings, bar.advance)
        for one, probabilities in zip(settings, found, strict=True):
            value = float(function(probabilities, labels, None)) * (1 if higher else -1)
            if best is None or value > best[0]:
                best = (value, one, probabilities)
    assert best is not None
    return Screened(file.stem, best[1], best[2], n_heads, time.monotonic() - started)


def _views(bottlenecks: Bottlenecks, images: pd.DataFrame) -> npt.NDArray[np.float32]:
    """All cached views of the images: float32 (n_views, n_images, n_features)."""
    sha256s = images["sha256"].tolist()
    return np.stack([bottlenecks.rows(sha256s, v) for v in range(bottlenecks.n_views)])


def _leaderboard(
    screened: Sequence[Screened],
    images: pd.DataFrame,
    weights: npt.NDArray[np.uint8],
    metric: str,
    top: int,
) -> pd.DataFrame:
    labels, groups = images["class_index"].to_numpy(), images["cluster"].to_numpy()
    rows, resampled = [], []
    for one in screened:
        row: dict[str, Any] = {"module": one.module, **one.settings.as_row()}
        for name in METRICS:
            result = intervals.resample(name, one.probabilities, labels, groups, weights)
            estimate, low, high = intervals.interval(result)
            row |= {name: estimate, f"{name}_low": low, f"{name}_high": high}
            if name == metric:
                resampled.append(result)
        row |= {"n_heads": one.n_heads, "seconds_to_fit": round(one.seconds, 2)}
        rows.append(row)
    board = pd.DataFrame(rows)
    board["tied"] = intervals.tied_with_best(resampled)
    board = board.sort_values(
        [metric, "module"], ascending=[not METRICS[metric].higher_is_better, True], kind="stable"
    ).reset_index(drop=True)
    board["shortlist"] = board["tied"] & (board["tied"].cumsum() <= top)
    board.insert(0, "rank", np.arange(1, len(board) + 1))
    return board


def _keep_heads(
    run: Run,
    files: Sequence[Path],
    screened: Sequence[Screened],
    images: pd.DataFrame,
    class_names: Sequence[str],
) -> None:
    """Refits each module's best head: on all but the test split, and without fold 0 too.

    Fine-tuning starts from the latter, because it validates on fold 0.
    """
    settings = {one.module: one.settings for one in screened}
    folds = images["fold"].to_numpy()
    for file in files:
        with Bottlenecks(file) as bottlenecks:
            chosen = images[folds != TEST]
            views = _views(bottlenecks, chosen)
            facts = bottlenecks.facts
        labels = chosen["class_index"].to_numpy()
        kept = chosen["fold"].to_numpy()
        heads = Heads.stacked(
            [
                fit_heads(views[:, rows], labels[rows], len(class_names), settings[file.stem])
                for rows in (kept != TEST, kept != 0)
            ],
            ["all", "without fold 0"],
        )
        heads.save(run.heads_file(file.stem), class_names, facts)


def _with_test(
    board: pd.DataFrame, run: Run, files: Sequence[Path], test: pd.DataFrame, weights_seed: int
) -> pd.DataFrame:
    """Adds the test split's figures of the shortlist, and of nothing else."""
    if not len(test):
        return board
    labels, groups = test["class_index"].to_numpy(), test["cluster"].to_numpy()
    weights = intervals.group_resamples(groups, n_resamples=N_RESAMPLES, seed=weights_seed)
    of = {file.stem: file for file in files}
    for index in board.index[board["shortlist"]]:
        module = str(board.loc[index, "module"])
        heads = Heads.load(run.heads_file(module))
        with Bottlenecks(of[module]) as bottlenecks:
            features = bottlenecks.rows(test["sha256"].tolist())
        probabilities = heads.probabilities(features)[:, 0]
        for name in ("balanced_accuracy", "accuracy", "top_3"):
            result = intervals.resample(name, probabilities, labels, groups, weights)
            estimate, low, high = intervals.interval(result)
            board.loc[index, f"test_{name}"] = estimate
            board.loc[index, f"test_{name}_low"] = low
            board.loc[index, f"test_{name}_high"] = high
    return board


def _out_of_fold_table(
    screened: Sequence[Screened], images: pd.DataFrame, dataset: ImageDataset
) -> pd.DataFrame:
    """Long table: module, image, and one column of probabilities a class."""
    tables = []
    for one in screened:
        table = images[["path", "sha256", "label", "fold"]].copy()
        table.insert(0, "module", one.module)
        for c, name in enumerate(dataset.class_names):
            table[f"p({name})"] = one.probabilities[:, c].round(6)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _notes(
    images: pd.DataFrame, dataset: ImageDataset, metric: str, board: pd.DataFrame
) -> tuple[str, ...]:
    parts, clusters = images["fold"].to_numpy(), images["cluster"].to_numpy()
    n_test = int((parts == TEST).sum())
    what = "groups and copies" if dataset.grouped else "copies of a file"
    leak = random_split_leak(clusters)
    majority = images["class_index"].value_counts(normalize=True).max()
    size = (
        f"{len(images):,} images, {len(dataset.class_names)} classes, "
        f"{len(set(clusters)):,} groups; test split {n_test:,}, "
        f"{len(set(parts[parts >= 0]))} folds over the rest."
    )
    together = (
        f"{what.capitalize()} kept together; images leaked: {leaked_images(parts, clusters)} "
        f"(a random split would have leaked {leak:.1%}). Worst deviation of a class share: "
        f"{worst_deviation(parts, images['label']):.2f} points."
    )
    chosen = (
        f"Chosen by {metric.replace('_', ' ')}; always guessing the largest class is right for "
        f"{majority:.1%} of the images."
    )
    notes = [size, together, chosen]
    if (n := len(dataset.images) - len(images)) > 0:
        notes.append(f"{n} images are left out because they cannot be decoded.")
    n_tied = int(board["tied"].sum())
    if n_tied > 1:
        notes.append(f"The first {n_tied} cannot be told apart from the best at 95 %.")
    return tuple(notes)
