"""The fit stage: heads on every cached module, compared on images that they never saw.

Every head is fitted on all folds but one and scores that one, so each image gets probabilities
from heads that never saw it, nor any image of its group. The test split takes no part in any
choice; it is looked at once, for the shortlist, when all is chosen. What a module came to is kept,
so a fit that was stopped goes on, and a later one adds modules to the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.bottlenecks import Bottlenecks, ForwardPassLog, bottleneck_files
from hubretrain.data import ImageDataset
from hubretrain.data.splitting import (
    NEW,
    TEST,
    cut_parts,
    kept_together,
    previous_parts,
    read_folds,
    worst_deviation,
    write_folds,
)
from hubretrain.errors import CacheError, HeadError, RunError
from hubretrain.evaluation import METRICS, STRENGTHS, Evaluator, Predictions
from hubretrain.heads import ClassWeight, ModuleHeads
from hubretrain.run_tables import (
    CANDIDATES,
    EFFECTS,
    LEADERBOARD,
    OUT_OF_FOLD,
    PER_CLASS,
    TEST_PREDICTIONS,
)
from hubretrain.runs import FitRecord, ModuleRecord, Run
from hubretrain.screening.comparison import ModuleComparison
from hubretrain.screening.leaderboard import columns
from hubretrain.screening.options import ClassWeightByName, ScreenOptions
from hubretrain.screening.result import ScreenResult
from hubretrain.screening.screen import Sweep, identity_of, screen

TEST_METRICS = ("top_3", "plain_accuracy", "balanced_accuracy", "accuracy")
UNBALANCED = 1.5  # the largest class has this many times an equal share


@dataclass(frozen=True)
class Screening:
    """What `fit` found.

    Attributes:
        run: Where it is kept.
        metric: The metric of choice.
        leaderboard: A row a module, the ensemble, and the references; best first.
        effects: A row a question: effect, metric, estimate, low, high, p, n_modules, sentence.
        notes: Sentences that a reader of the leaderboard should know.
    """

    run: Run
    metric: str
    leaderboard: pd.DataFrame
    effects: pd.DataFrame
    notes: tuple[str, ...]


def screen_modules(
    dataset: ImageDataset,
    run: Run,
    options: ScreenOptions = ScreenOptions(),
    *,
    cache: Path = Path("cache"),
    modules: Sequence[str] = (),
) -> Screening:
    """Fit heads on every cached module and rank the modules.

    Args:
        dataset: The labelled images.
        run: Where to keep what is found; a run with folds keeps them, and its modules.
        options: What heads are compared, and by what.
        cache: The cache folder, which holds the bottlenecks.
        modules: Names of cached modules; by default all of them. `NAME_random` is taken for the
            randomly initialised control of `NAME`: a baseline.

    Raises:
        CacheError: Nothing is cached, or what is cached is not finished.
        HeadError: The heads cannot be fitted.
        SplitError: A class is too small for the folds.
        RunError: The run folder belongs to another data set.
        WriteError: The run folder cannot be written.
    """
    split = options.split
    files = _bottleneck_files(dataset, cache, modules, run)
    images = dataset.usable_images(cache, near_duplicates=split.keep_duplicates_together)
    notes = _changes(images, run)
    images["fold"] = cut_parts(
        images,
        run.folds_file,
        n_folds=split.n_folds,
        test_fraction=split.test_fraction,
        seed=split.seed,
    )
    write_folds(run.folds_file, images.assign(group=images["cluster"]))
    development = images[images["fold"] != TEST].reset_index(drop=True)
    test = images[images["fold"] == TEST].reset_index(drop=True)
    largest = development["class_index"].value_counts().max() / len(development)
    metric = _metric(options.metric, bool(largest * len(dataset.class_names) > UNBALANCED))
    adjust = options.adjust
    if adjust is None:
        facts = METRICS[metric]
        adjust = STRENGTHS if facts.is_of_decision and facts.is_mean_over_classes else (0.0,)
    sweep = Sweep(
        metric,
        dataset.class_names,
        _class_weights(options.class_weights, dataset.class_names),
        tuple(float(one) for one in options.l2),
        tuple(sorted({0.0, *map(float, adjust)})),
        options.views,
    )
    screened = [_screened(file, development, sweep, run) for file in files]
    comparison = ModuleComparison(development, screened, sweep, split.seed)
    board, effects = comparison.leaderboard(options.top), comparison.effects()
    shortlist = board[board["shortlist"].notna()].sort_values("shortlist")["module"].tolist()
    test_predictions = _test_predictions(run, files, shortlist, test)
    board = _with_test(board, test_predictions, test, split.seed)
    _write(run, board, effects, comparison, test, test_predictions)
    notes = (
        *_notes(images, dataset, board, sweep.metric, split.keep_duplicates_together),
        *comparison.notes(),
        *notes,
    )
    run.write_fit(
        FitRecord(
            data=dataset.root.resolve(),
            data_options=dataset.opened_with,
            cache=cache.resolve(),
            class_names=dataset.class_names,
            metric=sweep.metric,
            class_weights=tuple(one or "none" for one in options.class_weights),
            l2=sweep.l2,
            adjust=sweep.strengths,
            views=options.views,
            n_folds=split.n_folds,
            test_fraction=split.test_fraction,
            top=options.top,
            duplicates_kept_together=split.keep_duplicates_together,
            seed=split.seed,
            shortlist=tuple(shortlist),
            test_looked_at=_looks(run, shortlist, screened, test),
            modules={one.module: ModuleRecord.of(one.about["module"]) for one in screened},
            notes=notes,
        )
    )
    return Screening(run, sweep.metric, board, effects, notes)


def _bottleneck_files(
    dataset: ImageDataset, cache: Path, modules: Sequence[str], run: Run
) -> list[Path]:
    """The caches to fit on: those asked for, and those that the run has already."""
    place = dataset.cache_folder(cache)
    files = {path.stem: path for path in bottleneck_files(place)}
    for name in modules:
        if name not in files:
            raise CacheError(
                f"{name} is not cached in {place}/ (there are: {', '.join(files)}); "
                "run `hubretrain cache` with it first."
            )
    earlier = run.fit if run.is_fitted else None
    if earlier is not None and earlier.class_names != dataset.class_names:
        raise RunError(
            f"{run.folder} was fitted on the classes {', '.join(earlier.class_names)}, the data "
            f"set has {', '.join(dataset.class_names)}; choose another folder with `run`."
        )
    wanted = set(modules) | set(earlier.modules if earlier else ()) if modules else set(files)
    return [path for name, path in files.items() if name in wanted]


def _changes(images: pd.DataFrame, run: Run) -> tuple[str, ...]:
    """What differs from the images that the run's folds were cut for.

    Raises:
        RunError: Everything: the run is of another data set.
    """
    if not run.folds_file.exists():
        return ()
    earlier = read_folds(run.folds_file)
    previous = previous_parts(earlier, images["path"].tolist(), images["sha256"].tolist())
    if (previous == NEW).all():
        raise RunError(
            f"{run.folds_file} holds none of these images, so the run belongs to another data "
            "set; choose another folder with `run`."
        )
    labels = images["sha256"].map(dict(zip(earlier["sha256"], earlier["label"], strict=True)))
    n = int((labels.notna() & (labels != images["label"])).sum())
    sentence = f"{n:,} labels have changed since the folds were cut; images keep their folds."
    return (sentence,) if n else ()


def _metric(metric: str | None, unbalanced: bool) -> str:
    if metric is not None:
        if metric not in METRICS:
            raise HeadError(f"`metric` is {metric!r}; expected one of {', '.join(METRICS)}.")
        return metric
    return "balanced_accuracy" if unbalanced else "accuracy"


def _class_weights(
    asked: Sequence[ClassWeightByName], class_names: Sequence[str]
) -> tuple[ClassWeight, ...]:
    """Weights by class name become weights by class number, 1 for a class that is not named."""
    found: list[ClassWeight] = []
    for one in asked:
        if isinstance(one, dict):
            for name, weight in one.items():
                if name not in class_names:
                    raise HeadError(
                        f"`class_weights` names the class {name!r}; expected one of "
                        f"{', '.join(class_names)}."
                    )
                if not 0 < weight < np.inf:
                    raise HeadError(f"`class_weights` gives {name} {weight:g}; expected above 0.")
            found.append(tuple(float(one.get(name, 1.0)) for name in class_names))
        else:
            found.append(one)
    return tuple(found)


def _screened(file: Path, images: pd.DataFrame, sweep: Sweep, run: Run) -> ScreenResult:
    """Return the screening of a module: kept by an earlier fit, else made now and kept."""
    path, identity = run.screened_file(file.stem), identity_of(file, images, sweep)
    result = ScreenResult.load(path, identity) if _has_heads(run, file.stem) else None
    if result is None:
        result, heads = screen(file, images, sweep)
        heads.save(run.heads_file(file.stem), result.about["module"])
        result.save(path)
    log, name = ForwardPassLog(file.parent), str(result.about["module"]["module"])
    seconds = log.table.loc[log.table["module"] == name, "seconds"]
    costs = {
        "images_per_second": log.images_per_second(name),
        "seconds_to_cache": float(seconds.sum()),
    }
    return replace(result, about={**result.about, **costs})


def _has_heads(run: Run, module: str) -> bool:
    try:
        ModuleHeads.load(run.heads_file(module))
    except HeadError:
        return False
    return True


def _test_predictions(
    run: Run, files: Sequence[Path], shortlist: Sequence[str], test: pd.DataFrame
) -> dict[str, Predictions]:
    """Return the predictions of the test split by the shortlist, and by nothing else."""
    file_of = {file.stem: file for file in files}
    predictions = {}
    for name in shortlist if len(test) else ():
        head = ModuleHeads.load(run.heads_file(name)).deployed
        with Bottlenecks(file_of[name]) as bottlenecks:
            features = bottlenecks.rows(test["sha256"].tolist())
        probs = head.probabilities(features)
        predictions[name] = Predictions(probs, head.rule.adjust(probs))
    return predictions


def _with_test(
    board: pd.DataFrame, predictions: Mapping[str, Predictions], test: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """Return the leaderboard with the metrics of the shortlist on the test split."""
    labels, groups = test["class_index"].to_numpy(), test["cluster"].to_numpy()
    evaluator = Evaluator.if_grouped(labels, groups, seed)
    if evaluator is None:
        return board
    for name, of_module in predictions.items():
        metrics = evaluator.metrics(of_module)
        shown = {metric: metrics.get(metric) for metric in TEST_METRICS}
        for column, value in columns(shown, "test_").items():
            # An ensemble of one member has its module's name, and no place on the shortlist.
            is_module = (board["module"] == name) & board["shortlist"].notna()
            board.loc[is_module, column] = value
    return board


def _looks(
    run: Run, shortlist: Sequence[str], screened: Sequence[ScreenResult], test: pd.DataFrame
) -> tuple[Mapping[str, str], ...]:
    """Return each different look at the test split so far: module to identity of its result."""
    looks = run.fit.test_looked_at if run.is_fitted else ()
    identities = {one.module: one.identity for one in screened}
    look = {name: identities[name] for name in shortlist}
    return looks if look in looks or not len(test) else (*looks, look)


def _write(
    run: Run,
    board: pd.DataFrame,
    effects: pd.DataFrame,
    comparison: ModuleComparison,
    test: pd.DataFrame,
    test_predictions: Mapping[str, Predictions],
) -> None:
    names = comparison.sweep.class_names
    candidates = pd.concat([result.candidates for result in comparison.results])
    per_class = [
        comparison.evaluator.per_class(names, module, of_module)
        for module, of_module in comparison.predictions().items()
    ]
    out_of_fold = [
        predictions_table(comparison.images, names, module, of_module, decimals=6)
        for module, of_module in comparison.predictions().items()
    ]
    test = test.drop(columns="fold")
    on_test = [
        predictions_table(test, names, module, of_module)
        for module, of_module in test_predictions.items()
    ] or [predictions_table(test[:0], names, "", Predictions(*np.zeros((2, 0, len(names)))))]
    LEADERBOARD.write(run.folder, board)
    EFFECTS.write(run.folder, effects)
    CANDIDATES.write(run.folder, candidates)
    PER_CLASS.write(run.folder, pd.concat(per_class, ignore_index=True))
    OUT_OF_FOLD.write(run.folder, pd.concat(out_of_fold, ignore_index=True))
    TEST_PREDICTIONS.write(run.folder, pd.concat(on_test, ignore_index=True))
    if comparison.ensemble is not None:
        comparison.ensemble.save(run.ensemble_file, names)


def predictions_table(
    images: pd.DataFrame,
    class_names: Sequence[str],
    module: str,
    predictions: Predictions,
    decimals: int | None = None,
) -> pd.DataFrame:
    """Return the predictions of one module: one row per image."""
    table = images[[c for c in ("path", "sha256", "label", "fold") if c in images]].copy()
    table.insert(0, "module", module)
    table["decision"] = np.array(class_names)[predictions.adjusted.argmax(axis=1)]
    for c, name in enumerate(class_names):
        probs = predictions.unadjusted[:, c]
        table[f"p({name})"] = probs if decimals is None else probs.round(decimals)
    return table


def _notes(
    images: pd.DataFrame,
    dataset: ImageDataset,
    board: pd.DataFrame,
    metric: str,
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
        notes.append(f"{n_tied} modules cannot be told apart from the best at 95 %.")
    return tuple(notes)
