"""The leaderboard: one row per module, the ensemble and the baselines, ranked.

Rows are dictionaries that become a DataFrame, saved as CSV. Metrics of decisions (accuracy,
balanced accuracy, macro F1) are those of the chosen decision rule; `unadjusted_*` are those of the
top-1 class; the other metrics evaluate the unadjusted probabilities. Where an image may have
several labels, the metrics are those of `LABEL_METRICS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.evaluation import (
    TOP_1,
    Calibration,
    DecisionRule,
    Evaluator,
    Interval,
    Predictions,
    Resampled,
    at_temperature,
    intervals,
    metric_named,
    metrics_of,
)
from hubretrain.heads import Ensemble
from hubretrain.runs import ENSEMBLE, MODULE, REFERENCE
from hubretrain.screening.result import ScreenResult

RANDOM_SUFFIX = "_random"
OF_PROBABILITIES = ("log_loss", "calibration_error")  # what a temperature changes
AVERAGED = ("balanced_accuracy", "accuracy", "top_3", "log_loss")
AVERAGED_OF_LABELS = (
    *("mean_average_precision", "micro_average_precision", "macro_f1", "micro_f1"),
    *("subset_accuracy", "log_loss"),
)
COSTS = ("gflops", "ms_per_image", "n_parameters")
Row = dict[str, Any]


def is_random_control(module: str) -> bool:
    """Return whether a module is the randomly initialised control of another, by its name."""
    return module.endswith(RANDOM_SUFFIX)


def choosable(results: Sequence[ScreenResult]) -> list[ScreenResult]:
    """Return the screenings without those of controls; with nothing but controls, all of them."""
    return [r for r in results if not is_random_control(r.module)] or list(results)


def pretrained_of(control: str, modules: Iterable[str]) -> str | None:
    """Return the module of a randomly initialised control.

    It is called `NAME`, or `NAME-` and a weights file; None where it is not among the modules.
    """
    name = control.removesuffix(RANDOM_SUFFIX)
    named = [m for m in modules if m == name or m.startswith(f"{name}-")]
    return min(named, key=len, default=None)


def columns(metrics: Mapping[str, Interval | None], prefix: str = "") -> dict[str, float]:
    """Return the columns of metrics: each with its ends in `_low` and `_high`."""
    values: dict[str, float] = {}
    for name, interval in metrics.items():
        if interval is not None:
            ends = (f"{prefix}{name}{end}" for end in ("", "_low", "_high"))
            values |= dict(zip(ends, interval, strict=True))
    return values


def module_row(result: ScreenResult, evaluator: Evaluator, metric: str) -> Row:
    """Return the row of one module; `metric` is the metric of choice."""
    row = {
        "module": result.module,
        "kind": REFERENCE if is_random_control(result.module) else MODULE,
        "n_members": 1,
        "averaged_views": None,
        **result.about["chosen"],
        **columns(evaluator.metrics(result.chosen)),
        f"{metric}_uncorrected": result.about["uncorrected"],
        **calibrated_columns(result.predictions["deployed"], result.calibration, evaluator),
    }
    if result.averaged is not None:
        row |= averaged_columns(result.averaged, result.n_views_averaged, evaluator, metric)
    n_heads = {"n_heads": result.about["n_heads"]}
    return row | costs(result.about) | result.about["hints"] | n_heads


def calibrated_columns(
    deployed: AnyArray, calibration: Calibration, evaluator: Evaluator
) -> dict[str, float]:
    """Return the columns of a model at its temperature, as it is exported.

    Args:
        deployed: Out-of-fold probabilities of the model, without the temperature.
        calibration: What was fitted to them.
        evaluator: What to evaluate on.
    """
    probs = at_temperature(deployed, calibration.temperature, evaluator.multi_label)
    metrics = {name: evaluator.of_one_model.interval(name, probs) for name in OF_PROBABILITIES}
    return {
        "temperature": calibration.temperature,
        "uncalibrated_log_loss": calibration.log_loss_before,
        **columns(metrics, "calibrated_"),
    }


def averaged_columns(
    averaged: Predictions, n_views: int, evaluator: Evaluator, metric: str
) -> dict[str, float]:
    """Return the columns of predictions averaged over views, one pass per view."""
    names = (*AVERAGED_OF_LABELS,) if evaluator.multi_label else (*AVERAGED, *TOP_1)
    metrics = {name: evaluator.of(name, averaged) for name in dict.fromkeys((metric, *names))}
    return {"averaged_views": n_views, **columns(metrics, "averaged_")}


def costs(about: Mapping[str, Any]) -> dict[str, float]:
    """Return what a module costs, NaN where it is not known.

    Returns:
        gflops (10^9 floating-point operations per image), ms_per_image and seconds_to_cache (on
        the machine that cached), n_parameters, n_features, seconds_to_fit.
    """
    module = about["module"]
    speed = float(about.get("images_per_second") or np.nan)
    return {
        "n_parameters": float(module.get("n_parameters") or np.nan),
        "gflops": float(module.get("gflops") or np.nan),
        "ms_per_image": 1000 / speed,
        "seconds_to_cache": float(about.get("seconds_to_cache") or np.nan),
        "n_features": about["n_features"],
        "seconds_to_fit": about["seconds_to_fit"],
    }


def ensemble_row(
    ensemble: Ensemble,
    predictions: Predictions,
    deployed: AnyArray,
    averaged: Predictions | None,
    results: Sequence[ScreenResult],
    evaluator: Evaluator,
    metric: str,
) -> Row:
    """Return the row of the ensemble, with the summed costs of its members.

    Args:
        ensemble: Chosen on all images.
        predictions: Cross-fitted predictions of the ensemble.
        deployed: Out-of-fold probabilities of the ensemble itself.
        averaged: The same from members averaged over views; None where there is one view.
        results: The modules, members or not.
        evaluator: What to evaluate on.
        metric: Metric of choice.
    """
    weights = ensemble.weights
    members = [costs(result.about) for result in results if result.module in weights]
    row: Row = {
        "module": " + ".join(sorted(weights, key=lambda name: (-weights[name], name))),
        "kind": ENSEMBLE,
        "n_members": len(weights),
        "head": "ensemble",
        "adjust": ensemble.rule.strength if isinstance(ensemble.rule, DecisionRule) else 0.0,
        **columns(evaluator.metrics(predictions)),
        **calibrated_columns(deployed, ensemble.calibration, evaluator),
    }
    if averaged is not None:
        row |= averaged_columns(averaged, results[0].n_views_averaged, evaluator, metric)
    return row | {name: float(np.sum([of[name] for of in members])) for name in members[0]}


def baseline_rows(
    constant: tuple[str, Predictions], results: Sequence[ScreenResult], evaluator: Evaluator
) -> list[Row]:
    """Return the rows of what needs no fitting: metrics of decisions only.

    Of several labels per image they are those of rankings, too, in which a label that is no more
    probable for one image than for another has its prevalence.
    """
    predictions_of = dict([constant])
    for result in results:
        if "nearest" in result.predictions and not is_random_control(result.module):
            name = f"1-nearest-neighbour of {result.module}"
            nearest = result.predictions["nearest"]
            predictions_of[name] = Predictions(nearest, nearest)
    shown = [
        name
        for name, metric in metrics_of(evaluator.multi_label).items()
        if metric.is_of_decision or (evaluator.multi_label and name not in OF_PROBABILITIES)
    ]
    return [
        {
            "module": module,
            "kind": REFERENCE,
            "head": "none",
            **columns({name: evaluator.of_one_model.of(name, of_row) for name in shown}),
        }
        for module, of_row in predictions_of.items()
    ]


def ranked(
    rows: Sequence[Mapping[str, Any]],
    resampled: Sequence[Mapping[str, Resampled]],
    metric: str,
    top: int,
) -> pd.DataFrame:
    """Return the leaderboard: best first, baselines last, with ties and the shortlist.

    Ties are among modules; see `intervals.tied_with_best`. A module is left out only where it is
    worse both by its cross-fitted predictions and by those of its deployed head: a difference of
    the first may be of what half of the images chose. The shortlist is the tied group, the best by
    estimate first, at most `top`; the column `shortlist` numbers it from 1. Of equal estimates the
    cheaper comes first.

    Args:
        rows: Rows of the modules, the ensemble and the baselines.
        resampled: Module name to the metric of choice, of the modules that may be shortlisted:
            cross-fitted, and of the deployed heads.
        metric: Metric of choice.
        top: Maximum length of the shortlist.
    """
    board = pd.DataFrame(rows)
    modules = list(resampled[0])
    tied = np.any([intervals.tied_with_best([of[m] for m in modules]) for of in resampled], axis=0)
    is_module, is_baseline = board["kind"] == MODULE, board["kind"] == REFERENCE
    board["tied"] = is_module & board["module"].map(dict(zip(modules, tied, strict=True))).eq(True)
    by = {
        "is_baseline": True,
        metric: not metric_named(metric).higher_is_better,
        **dict.fromkeys(known_costs(board[board["tied"]])[:1], True),
        "module": True,
    }
    board = (
        board.assign(is_baseline=is_baseline)
        .sort_values(list(by), ascending=list(by.values()), kind="stable", na_position="last")
        .drop(columns="is_baseline")
        .reset_index(drop=True)
    )
    number = board["tied"].cumsum()
    board["shortlist"] = number.where(board["tied"] & (number <= top)).astype("Int64")
    is_ranked = board["kind"] != REFERENCE
    board.insert(0, "rank", is_ranked.cumsum().where(is_ranked).astype("Int64"))
    return board


def known_costs(rows: pd.DataFrame) -> list[str]:
    """Return the costs that are known of all rows, that first by which they are compared."""
    return [name for name in COSTS if name in rows and rows[name].notna().all()]
