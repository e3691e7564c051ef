"""Two runs on the same folds, compared image by image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.data import targets
from hubretrain.data.splitting import read_folds
from hubretrain.errors import RunError
from hubretrain.evaluation import Evaluator, choice_parts, metric_named
from hubretrain.files import StrPath
from hubretrain.heads import ENSEMBLE_NAME
from hubretrain.runs import LEADERBOARD, MODULE, OUT_OF_FOLD, FitRecord, Run

USUAL_METRICS = ("balanced_accuracy", "accuracy", "log_loss")
USUAL_OF_LABELS = ("mean_average_precision", "macro_f1", "micro_f1", "log_loss")


def compare_runs(first: Run | StrPath, second: Run | StrPath) -> pd.DataFrame:
    """Compare the models of two runs that were fitted on the same folds.

    The best module of each, which its own estimates chose; then each module, and the ensemble, that
    both have. Metrics of decisions are of `decision` in `out_of_fold.csv`, without selection bias
    within a module; others are of the probabilities there, which are of the exported candidate.

    Args:
        first: A fitted run, or its folder.
        second: Another one.

    Returns:
        One row per pair of models and metric (the first run's metric of choice, then the usual
        ones): first, second (names of the models), metric, of_first, of_second, difference (second
        minus first), low, high, p. The intervals of all rows hold together at 95 % confidence.
        Fractions; the log loss in nats.

    Raises:
        RunError: One is not fitted or damaged, or their classes, images, labels or folds differ.

    Examples:
        >>> from hubretrain import compare_runs
        >>> pairs = compare_runs("runs/digits", "runs/digits")
        >>> pairs.loc[0, ["difference", "low", "high"]].astype(float).tolist()
        [0.0, 0.0, 0.0]
    """
    runs = (Run.of(first), Run.of(second))
    fits = [run.fit for run in runs]
    folds = _same_folds(runs, fits)
    tables = [
        {str(name): rows.set_index("path").loc[folds.index] for name, rows in table}
        for table in (OUT_OF_FOLD.read(run.folder).groupby("module") for run in runs)
    ]
    names, multi_label = fits[0].class_names, fits[0].multi_label
    labels = targets(folds["label"], names, multi_label)
    groups = folds["group"].to_numpy()
    evaluator = Evaluator(labels, groups, fits[0].seed, parts=choice_parts(labels, groups))
    pairs = _pairs([_best(run) for run in runs], tables)
    usual = USUAL_OF_LABELS if multi_label else USUAL_METRICS
    metrics = [m for m in dict.fromkeys((fits[0].metric, *usual)) if _is_defined(m, labels)]
    rows = []
    for of_first, of_second in pairs:
        models = tables[0][of_first], tables[1][of_second]
        for metric in metrics:
            probs = [_evaluated(model, names, metric, multi_label) for model in models]
            of = evaluator if metric_named(metric).is_of_decision else evaluator.of_one_model
            estimates = [of.resample(metric, values).estimate for values in probs]
            change = of.effect([(probs[1], probs[0])], metric, len(pairs) * len(metrics))
            rows.append(
                (
                    *(of_first, of_second, metric, *estimates),
                    *(change.estimate, change.low, change.high, change.p),
                )
            )
    columns = ["first", "second", "metric", "of_first", "of_second", "difference"]
    return pd.DataFrame(rows, columns=[*columns, "low", "high", "p"])


def _same_folds(runs: Sequence[Run], fits: Sequence[FitRecord]) -> pd.DataFrame:
    """Return the images that both runs evaluate on, by path: label, group.

    In the order of the fit, by which images are divided into the halves that choose.

    Raises:
        RunError: They are not the same.
    """
    first, second = runs
    if fits[0].multi_label != fits[1].multi_label:
        raise RunError(
            f"Images of one of {first.folder} and {second.folder} may have several labels, so "
            "their models cannot be compared."
        )
    if fits[0].class_names != fits[1].class_names:
        raise RunError(
            f"{first.folder} and {second.folder} have different classes "
            f"({', '.join(fits[0].class_names)}; {', '.join(fits[1].class_names)}), so their "
            "models cannot be compared."
        )
    tables = [read_folds(run.checked(run.folds_file)) for run in runs]
    ours, theirs = (table[table["fold"] >= 0] for table in tables)
    columns = ["sha256", "label", "group", "fold"]
    both = ours.merge(theirs, on="path", how="outer", suffixes=("_of_first", "_of_second"))
    differs = np.any([both[f"{c}_of_first"] != both[f"{c}_of_second"] for c in columns], axis=0)
    if differs.any():
        path = both.loc[differs, "path"].iloc[0]
        raise RunError(
            f"{first.folder} and {second.folder} were not fitted on the same folds: "
            f"{differs.sum():,} of {len(both):,} images differ in content, label, group or fold, "
            f"or are in one alone (first: {path}); copy folds.csv and folds.json of one into the "
            "folder of a new run, and fit it with the options of the other."
        )
    order = OUT_OF_FOLD.read(first.folder)["path"].drop_duplicates()
    return ours.set_index("path").loc[order, ["label", "group"]]


def _best(run: Run) -> str:
    board = LEADERBOARD.read(run.folder)
    return str(board.loc[board["kind"] == MODULE, "module"].iloc[0])


def _pairs(best: Sequence[str], tables: Sequence[dict[str, pd.DataFrame]]) -> list[tuple[str, str]]:
    """Return the models to compare: the best of each, then what both have."""
    both = [name for name in tables[0] if name in tables[1]]
    both.sort(key=lambda name: (name == ENSEMBLE_NAME, name))
    return list(dict.fromkeys([(best[0], best[1]), *((name, name) for name in both)]))


def _is_defined(metric: str, labels: AnyArray) -> bool:
    """Return whether labels of these classes give a metric a value."""
    return metric != "roc_auc" or labels.ndim == 2 or len(set(labels.tolist())) > 1


def _evaluated(
    model: pd.DataFrame, class_names: Sequence[str], metric: str, multi_label: bool
) -> AnyArray:
    """Return what a metric evaluates: 1 for the decision if it is of decisions, or probabilities.

    Probabilities are written with six decimals, so those of classes are made to sum to 1 again.
    """
    if multi_label and metric_named(metric).is_of_decision:
        return targets(model["decision"], class_names, True).astype(np.float64)
    names = np.array(class_names)
    if metric_named(metric).is_of_decision:
        return (model["decision"].to_numpy()[:, None] == names).astype(np.float64)
    probs = model[[f"p({name})" for name in class_names]].to_numpy(np.float64)
    return probs if multi_label else probs / probs.sum(axis=1, keepdims=True)
