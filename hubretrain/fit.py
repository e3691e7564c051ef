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
from hubretrain.fitting import HeadPath, fit_path
from hubretrain.folds import TEST, write_folds
from hubretrain.heads import Heads, probabilities
from hubretrain.leakage import kept_together, worst_deviation
from hubretrain.metrics import METRICS
from hubretrain.problems import Kind
from hubretrain.progress import Bar
from hubretrain.runs import Run
from hubretrain.splits import cut_parts

N_RESAMPLES = 1000
UNBALANCED = 1.5  # the largest class has this many times an equal share
KINDS: tuple[Kind, ...] = ("softmax", "logistic")
CLASS_WEIGHTS = (None, "balanced")
L2 = tuple(float(l2) for l2 in np.logspace(0, 5, 11))  # 1 / C of scikit-learn


@dataclass(frozen=True)
class Screened:
    """The best head of one module, by cross-validation.

    Attributes:
        module: The module's name.
        kind: ``softmax`` or ``logistic``.
        class_weight: ``none`` or ``balanced``.
        l2: Strength of the penalty, 1 / C of scikit-learn.
        probabilities: Its out-of-fold probabilities, float32 (n_images, n_classes), for the
            images that some fold validates.
        heads: Two of this kind: fitted on all but the test split (fold -1), and without
            fold 0 too (fold 0), for fine-tuning to start from and validate on.
        n_heads: How many heads were fitted to find it.
        seconds: How long that took.
    """

    module: str
    kind: str
    class_weight: str
    l2: float
    probabilities: npt.NDArray[np.float32]
    heads: Heads
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
    metric: str | None = None,
    n_folds: int = 5,
    test_fraction: float = 0.2,
    top: int = 3,
    keep_duplicates_together: bool = True,
    seed: int = 0,
    quiet: bool = False,
) -> Screening:
    """Fits heads on every cached module and ranks the modules.

    Args:
        dataset: The labelled images.
        run: Where to keep what is found; a run with folds keeps them.
        cache: Where the bottlenecks are.
        modules: Which cached modules; by default all of them.
        metric: A name of :data:`METRICS` to choose by. By default balanced accuracy where the
            classes are unbalanced, else accuracy.
        n_folds: Folds of the cross-validation.
        test_fraction: Share of the images kept for the test split.
        top: At most so many modules are shortlisted.
        keep_duplicates_together: Look for near duplicates and keep them in one part.
        seed: Of the split and the resamples.
        quiet: Show no progress.

    Raises:
        CacheError: Nothing is cached, or what is cached is not finished.
        HeadError: The heads cannot be fitted.
        SplitError: A class is too small for the folds.
        RunError: The run folder cannot be written.
    """
    files = _bottleneck_files(dataset, cache, modules)
    images = usable_images(dataset, cache, near_duplicates=keep_duplicates_together, quiet=quiet)
    images["fold"] = cut_parts(
        images, run.folds_file, n_folds=n_folds, test_fraction=test_fraction, seed=seed
    )
    write_folds(run.folds_file, images.assign(group=images["cluster"]))
    development = images[images["fold"] != TEST].reset_index(drop=True)
    test = images[images["fold"] == TEST].reset_index(drop=True)
    largest = development["class_index"].value_counts().max() / len(development)
    unbalanced = bool(largest * len(dataset.class_names) > UNBALANCED)
    metric = _metric(metric, unbalanced)
    screened = [
        _screen(file, development, dataset.class_names, metric, quiet=quiet) for file in files
    ]
    validated = development[development["fold"] >= 0].reset_index(drop=True)
    weights = intervals.group_resamples(
        validated["cluster"].to_numpy(), n_resamples=N_RESAMPLES, seed=seed
    )
    board = _leaderboard(screened, validated, weights, metric, top)
    for file, one in zip(files, screened, strict=True):
        one.heads.save(run.heads_file(one.module), _module_facts(file))
    board = _with_test(board, run, files, test, weights_seed=seed)
    write_table(run.leaderboard_file, board)
    write_table(run.out_of_fold_file, _out_of_fold_table(screened, validated, dataset))
    notes = _notes(images, dataset, metric, board, keep_duplicates_together)
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
            "duplicates_kept_together": keep_duplicates_together,
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


def _metric(metric: str | None, unbalanced: bool) -> str:
    if metric is not None:
        if metric not in METRICS:
            raise HeadError(f"--metric is {metric!r}; expected one of {', '.join(METRICS)}.")
        return metric
    return "balanced_accuracy" if unbalanced else "accuracy"


def _screen(
    file: Path, images: pd.DataFrame, class_names: Sequence[str], metric: str, *, quiet: bool
) -> Screened:
    """Fits every head of one module on every fold and keeps the best."""
    started = time.monotonic()
    with Bottlenecks(file) as bottlenecks:
        views = _views(bottlenecks, images)
    labels, parts = images["class_index"].to_numpy(), images["fold"].to_numpy()
    validated = parts >= 0
    # Images that every fold trains on are a fold of their own, whose predictions nobody reads.
    folds = np.where(validated, parts, parts.max() + 1)
    function, higher, *_ = METRICS[metric]
    options: dict[str, Any] = {"n_classes": len(class_names), "class_names": class_names}
    best: tuple[float, HeadPath, int, int] | None = None
    n_heads = 0
    n_per_kind = len(CLASS_WEIGHTS) * len(set(folds.tolist())) * len(L2)
    with Bar(f"fitting {file.stem}", len(KINDS) * n_per_kind, "heads", quiet=quiet) as bar:
        for kind in KINDS:
            path = fit_path(
                views, labels, kind=kind, l2=L2, folds=folds, class_weights=CLASS_WEIGHTS, **options
            )
            for w, i in np.argwhere(~path.stopped_early.any(axis=1)).tolist():
                said = probabilities(path.out_of_fold[:, w, i], kind)
                value = float(function(said[validated], labels[validated], None))
                value = value if higher else -value
                if best is None or value > best[0]:
                    best = (value, path, w, i)
            n_heads += int((~path.stopped_early).sum())
            bar.advance(n_per_kind)
    assert best is not None
    _, path, w, i = best
    weight, l2 = CLASS_WEIGHTS[w], L2[i]
    said = probabilities(path.out_of_fold[validated, w, i], path.kind)
    whole = fit_path(views, labels, kind=path.kind, l2=[l2], class_weights=[weight], **options)
    of_fold_0 = path.heads.select([w * len(path.folds) * len(L2) + i])
    heads = whole.heads.joined(of_fold_0)
    seconds = time.monotonic() - started
    return Screened(file.stem, path.kind, path.class_weights[w], l2, said, heads, n_heads, seconds)


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
        row: dict[str, Any] = {
            "module": one.module,
            "head": one.kind,
            "l2": one.l2,
            "class_weight": one.class_weight,
        }
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


def _with_test(
    board: pd.DataFrame, run: Run, files: Sequence[Path], test: pd.DataFrame, weights_seed: int
) -> pd.DataFrame:
    """Adds the test split's figures of the shortlist, and of nothing else."""
    if test["cluster"].nunique() < 2:
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
    images: pd.DataFrame,
    dataset: ImageDataset,
    metric: str,
    board: pd.DataFrame,
    keep_duplicates_together: bool,
) -> tuple[str, ...]:
    parts, clusters = images["fold"].to_numpy(), images["cluster"].to_numpy()
    n_test = int((parts == TEST).sum())
    majority = images["class_index"].value_counts(normalize=True).max()
    size = (
        f"{len(images):,} images, {len(dataset.class_names)} classes, "
        f"{len(set(clusters)):,} groups; test split {n_test:,}, "
        f"{len(set(parts[parts >= 0]))} folds over the rest."
    )
    together = (
        f"{kept_together(parts, clusters, dataset.grouped, keep_duplicates_together)} "
        f"Worst deviation of a class share: {worst_deviation(parts, images['label']):.2f} points."
    )
    chosen = (
        f"Chosen by {metric.replace('_', ' ')}; always guessing the largest class is right for "
        f"{majority:.1%} of the images."
    )
    notes = [size, together, chosen]
    if (n := len(dataset.images) - len(images)) > 0:
        notes.append(f"{n} images are left out because they cannot be decoded.")
    if (n := int((images.groupby("sha256")["label"].transform("nunique") > 1).sum())) > 0:
        notes.append(f"{n} images are copies under different classes; see: hubretrain data check.")
    n_tied = int(board["tied"].sum())
    if n_tied > 1:
        notes.append(f"The first {n_tied} cannot be told apart from the best at 95 %.")
    return tuple(notes)
