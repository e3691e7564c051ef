"""The fit stage: heads on every cached module, compared on images that they never saw.

Every head is fitted on all folds but one and scores that one, so each image gets probabilities
from heads that never saw it, nor any image of its group. The test split takes no part in any
choice; it is looked at once, for the shortlist, when all is chosen. The result of a module is
kept, so an interrupted fit resumes, and a later one adds modules to the same run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.bottlenecks import Bottlenecks, bottleneck_files
from hubretrain.data import ImageDataset, SplitOptions, join_labels, targets
from hubretrain.data.splitting import (
    NEW,
    TEST,
    changed_since_cut,
    cut_parts,
    previous_parts,
    read_cut_with,
    read_folds,
    write_folds,
)
from hubretrain.errors import CacheError, RunError
from hubretrain.evaluation import (
    Evaluator,
    LabelThresholds,
    Predictions,
    at_temperature,
)
from hubretrain.files import StrPath
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, Head, ModuleHeads
from hubretrain.locks import in_use
from hubretrain.runs import (
    CANDIDATES,
    EFFECTS,
    LEADERBOARD,
    OUT_OF_FOLD,
    PER_CLASS,
    TEST_PREDICTIONS,
    FitRecord,
    ModuleRecord,
    Run,
)
from hubretrain.screening.comparison import ModuleComparison
from hubretrain.screening.fitted import Screening, notes
from hubretrain.screening.leaderboard import columns
from hubretrain.screening.options import ScreenOptions
from hubretrain.screening.result import ScreenResult
from hubretrain.screening.stages import Stages
from hubretrain.screening.sweep import Sweep

TEST_METRICS = ("top_3", "unadjusted_accuracy", "balanced_accuracy", "accuracy")
TEST_METRICS_OF_LABELS = (
    *("mean_average_precision", "micro_average_precision", "macro_f1", "micro_f1"),
    *("subset_accuracy", "hamming_loss"),
)


def screen_modules(
    dataset: ImageDataset,
    run: Run | StrPath,
    options: ScreenOptions = ScreenOptions(),
    *,
    cache: StrPath = "cache",
    modules: Sequence[str] = (),
) -> Screening:
    """Fit heads on every cached module and rank the modules.

    Args:
        dataset: The labelled images.
        run: The run to keep the result in, or its folder; one that has folds keeps them, and its
            modules.
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

    Examples:
        >>> from hubretrain import open_dataset, screen_modules
        >>> screening = screen_modules(open_dataset("data/digits"), "runs/digits")
        >>> screening.leaderboard["module"].tolist()
        ['small', '1-nearest-neighbour of small', 'majority class']
    """
    run, cache = Run.of(run), Path(cache)
    files = _bottleneck_files(dataset, cache, modules, run)
    images = dataset.usable_images(cache, near_duplicates=options.split.keep_duplicates_together)
    changes = _changes(images, run)
    development, test = _split(images, run, options.split, dataset.multi_label)
    labels = targets(development["label"], dataset.class_names, dataset.multi_label)
    sweep = Sweep.of(options, dataset.class_names, labels)
    stages = Stages(development, sweep, run, options.split.seed, test["sha256"].tolist())
    with in_use(run.screened_folder):
        screened = stages.results(files)
    results = [result for result, _ in screened]
    heads = {result.module: heads for result, heads in screened}
    comparison = ModuleComparison(development, results, sweep, options.split.seed)
    board, effects = comparison.leaderboard(options.top), comparison.effects()
    listed = board[board["shortlist"].notna()].sort_values("shortlist")
    test_predictions = _test_predictions(heads, files, listed["module"].tolist(), test)
    board = _with_test(board, test_predictions, test, sweep, options.split.seed)
    of_ensemble = _ensemble_on_test(comparison.ensemble, heads, files, test)
    sentences = (
        *notes.on_images(images, dataset, sweep, options.split.keep_duplicates_together),
        *notes.on_labels(labels, sweep),
        *comparison.notes(board),
        *notes.on_race(run),
        *notes.on_more_images(run, files, development, sweep, listed["module"].tolist(), options),
        *changes,
    )
    shortlist = tuple(listed["module"])
    looks = _looks(run, test_predictions, results)
    with run.writing_fit() as written:
        cut_with = read_cut_with(run.folds_file) if run.folds_file.exists() else options.split
        write_folds(written.folds_file, images.assign(group=images["cluster"]), cut_with)
        for result in results:
            heads[result.module].save(written.heads_file(result.module), result.about["module"])
        on_test = test_predictions | of_ensemble
        _write_tables(written, board, effects, comparison, heads, test, on_test)
        record = _record(dataset, options, cache, comparison, shortlist, looks, sentences)
        run.publish_fit(written, record)
    return Screening(run, sweep.metric, board, effects, sentences)


def _bottleneck_files(
    dataset: ImageDataset, cache: Path, modules: Sequence[str], run: Run
) -> list[Path]:
    """Return the bottleneck files of the modules, and of those that the run has already.

    Raises:
        CacheError: A module is not cached.
        RunError: The run was fitted on other classes.
    """
    folder = dataset.cache_folder(cache)
    files = {path.stem: path for path in bottleneck_files(folder)}
    for name in modules:
        if name not in files:
            raise CacheError(
                f"{name} is not cached in {folder}/ (there are: {', '.join(files)}); "
                "run `hubretrain cache` with this module first."
            )
    earlier = run.fit if run.is_fitted else None
    if earlier is not None and earlier.multi_label != dataset.multi_label:
        has = "several labels per image" if earlier.multi_label else "one class per image"
        raise RunError(
            f"{run.folder} was fitted on {has}, the data set has not; choose another folder with "
            "`run`."
        )
    if earlier is not None and earlier.class_names != dataset.class_names:
        raise RunError(
            f"{run.folder} was fitted on the classes {', '.join(earlier.class_names)}, the data "
            f"set has {', '.join(dataset.class_names)}; choose another folder with `run`."
        )
    kept = set(earlier.modules) if earlier else set()
    names = kept | set(modules) if modules else set(files)
    return [path for name, path in files.items() if name in names]


def _changes(images: pd.DataFrame, run: Run) -> tuple[str, ...]:
    """Return sentences on folds and labels that changed since the run's folds were cut.

    Raises:
        RunError: No image is in the folds: the run is of another data set.
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
    changes = []
    if run.changed_folds():
        changes.append(
            f"{run.folds_file} is another one than that of the fit before: heads are fitted anew."
        )
    elif changed_since_cut(run.folds_file):
        changes.append(f"{run.folds_file} is another one than was cut; it is used as it is.")
    n_changed = int((labels.notna() & (labels != images["label"])).sum())
    is_gone = ~earlier["sha256"].isin(images["sha256"]) & ~earlier["path"].isin(images["path"])
    if n_gone := int(is_gone.sum()):
        changes.append(f"{n_gone:,} images of the fit before are gone or cannot be decoded.")
    if n_changed:
        changes.append(
            f"{n_changed:,} labels have changed since the folds were cut; images keep their folds."
        )
    return tuple(changes)


def _split(
    images: pd.DataFrame, run: Run, split: SplitOptions, multi_label: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut the folds; return the images outside and inside of the test split."""
    if not run.folds_file.exists():
        run.refuse_new_split()
    images["fold"] = cut_parts(images, run.folds_file, split, multi_label=multi_label)
    is_test = images["fold"] == TEST
    return images[~is_test].reset_index(drop=True), images[is_test].reset_index(drop=True)


def _test_predictions(
    heads: Mapping[str, ModuleHeads],
    files: Sequence[Path],
    shortlist: Sequence[str],
    test: pd.DataFrame,
) -> dict[str, Predictions]:
    """Return the predictions of the test split by the shortlist, and by nothing else."""
    file_of = {file.stem: file for file in files}
    predictions = {}
    for name in shortlist if len(test) else ():
        head = heads[name].deployed
        probs = _probabilities(head, file_of[name], test)
        calibrated = at_temperature(probs, head.calibration.temperature, head.multi_label)
        predictions[name] = Predictions(calibrated, head.rule.adjust(probs))
    return predictions


def _ensemble_on_test(
    ensemble: Ensemble | None,
    heads: Mapping[str, ModuleHeads],
    files: Sequence[Path],
    test: pd.DataFrame,
) -> dict[str, Predictions]:
    """Return the predictions of the test split by the ensemble; {} without one.

    They are written for its mean with a fine-tuned model, and evaluated by nothing before that.
    """
    if ensemble is None or not len(test):
        return {}
    file_of = {file.stem: file for file in files}
    mean = ensemble.mean(
        {
            name: _probabilities(heads[name].ensemble_member, file_of[name], test)
            for name in ensemble.weights
        }
    )
    multi_label = isinstance(ensemble.rule, LabelThresholds)
    calibrated = at_temperature(mean, ensemble.calibration.temperature, multi_label)
    return {ENSEMBLE_NAME: Predictions(calibrated, ensemble.rule.adjust(mean))}


def _probabilities(head: Head, file: Path, images: pd.DataFrame) -> AnyArray:
    """Return a head's probabilities of images (n_images, n_classes), without a temperature."""
    with Bottlenecks(file) as bottlenecks:
        features = bottlenecks.rows(images["sha256"].tolist(), layers=head.layers or "last")
    return head.probabilities(features)


def _with_test(
    board: pd.DataFrame,
    predictions: Mapping[str, Predictions],
    test: pd.DataFrame,
    sweep: Sweep,
    seed: int,
) -> pd.DataFrame:
    """Return the leaderboard with the metrics of the shortlist on the test split."""
    labels, groups = sweep.targets(test), test["cluster"].to_numpy()
    evaluator = Evaluator.if_grouped(labels, groups, seed)
    if evaluator is None:
        return board
    for name, of_module in predictions.items():
        metrics = evaluator.metrics(of_module)
        names = TEST_METRICS_OF_LABELS if sweep.multi_label else TEST_METRICS
        shown = {metric: metrics.get(metric) for metric in names}
        for column, value in columns(shown, "test_").items():
            # An ensemble of one member has its module's name, and no place on the shortlist.
            is_module = (board["module"] == name) & board["shortlist"].notna()
            board.loc[is_module, column] = value
    return board


def _write_tables(
    run: Run,
    board: pd.DataFrame,
    effects: pd.DataFrame,
    comparison: ModuleComparison,
    heads: Mapping[str, ModuleHeads],
    test: pd.DataFrame,
    test_predictions: Mapping[str, Predictions],
) -> None:
    names, multi_label = comparison.sweep.class_names, comparison.sweep.multi_label
    candidates = pd.concat([result.candidates for result in comparison.results])
    per_class = [
        comparison.evaluator.per_class(names, module, of_module)
        for module, of_module in comparison.predictions().items()
    ]
    if multi_label:
        per_class = [_with_thresholds(table, heads, comparison) for table in per_class]
    deployed = comparison.deployed()
    out_of_fold = [
        predictions_table(
            comparison.images,
            names,
            module,
            Predictions(deployed[module], of_module.adjusted),
            decimals=6,
            multi_label=multi_label,
        )
        for module, of_module in comparison.predictions().items()
    ]
    test = test.drop(columns="fold")
    on_test = [
        predictions_table(test, names, module, of_module, multi_label=multi_label)
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


def _with_thresholds(
    table: pd.DataFrame, heads: Mapping[str, ModuleHeads], comparison: ModuleComparison
) -> pd.DataFrame:
    """Return the rows of a model's labels with the thresholds that it is deployed with."""
    module = table["module"].iloc[0]
    rule = heads[module].deployed.rule if module in heads else None
    if rule is None and comparison.ensemble is not None:
        rule = comparison.ensemble.rule
    assert isinstance(rule, LabelThresholds)
    return table.assign(threshold=rule.values)


def predictions_table(
    images: pd.DataFrame,
    class_names: Sequence[str],
    module: str,
    predictions: Predictions,
    decimals: int | None = None,
    multi_label: bool = False,
) -> pd.DataFrame:
    """Return the predictions of one module: one row per image."""
    table = images[[c for c in ("path", "sha256", "label", "fold") if c in images]].copy()
    table.insert(0, "module", module)
    if multi_label:
        names = np.array(class_names, object)
        table["decision"] = [join_labels(names[row]) for row in predictions.adjusted > 0.5]
    else:
        table["decision"] = np.array(class_names)[predictions.adjusted.argmax(axis=1)]
    for c, name in enumerate(class_names):
        probs = predictions.unadjusted[:, c]
        table[f"p({name})"] = probs if decimals is None else probs.round(decimals)
    return table


def _looks(
    run: Run, modules: Iterable[str], results: Sequence[ScreenResult]
) -> tuple[Mapping[str, str], ...]:
    """Return each different look at the test split so far: module to identity of its result."""
    looks = run.fit.test_looked_at if run.is_fitted else ()
    identities = {result.module: result.identity for result in results}
    look = {name: identities[name] for name in modules}
    return looks if look in looks or not look else (*looks, look)


def _record(
    dataset: ImageDataset,
    options: ScreenOptions,
    cache: Path,
    comparison: ModuleComparison,
    shortlist: tuple[str, ...],
    looks: tuple[Mapping[str, str], ...],
    notes: tuple[str, ...],
) -> FitRecord:
    sweep, split = comparison.sweep, options.split
    attributes = {result.module: result.about["module"] for result in comparison.results}
    return FitRecord(
        data=dataset.root.resolve(),
        data_options=dataset.opened_with,
        cache=cache.resolve(),
        class_names=dataset.class_names,
        metric=sweep.metric,
        class_weights=tuple(weight or "none" for weight in options.class_weights),
        l2=sweep.l2,
        adjust=sweep.strengths,
        views=options.views,
        layers=options.layers,
        heads=options.heads,
        n_folds=split.n_folds,
        test_fraction=split.test_fraction,
        top=options.top,
        duplicates_kept_together=split.keep_duplicates_together,
        seed=split.seed,
        shortlist=shortlist,
        test_looked_at=looks,
        modules={name: ModuleRecord.of(of_module) for name, of_module in attributes.items()},
        notes=notes,
        multi_label=sweep.multi_label,
    )
