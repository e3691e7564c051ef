"""Fine-tuned modules on the leaderboard, and whether the order of the screening held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from hubretrain.evaluation import (
    Evaluator,
    Predictions,
    metric_named,
)
from hubretrain.finetuning.results.candidates import recorded_probs
from hubretrain.finetuning.results.criterion import labels_of, recorded_rule, scores_of
from hubretrain.finetuning.results.mean import mean_name
from hubretrain.runs import (
    ENSEMBLE,
    FINE_TUNED,
    MEAN,
    VALIDATION_PREDICTIONS,
    EnsembleMeanRecord,
    FineTunedModuleRecord,
    OrderRecord,
    Run,
)

COSTS = ("n_parameters", "gflops", "ms_per_image")  # of a pass, which training leaves as they are


def with_fine_tuned(
    board: pd.DataFrame, records: Mapping[str, FineTunedModuleRecord]
) -> pd.DataFrame:
    """Return the leaderboard with rows for each fine-tuned module, below that of its head.

    They are of the module, and of its mean with the ensemble. Their metrics are of the validation
    fold, those of heads of all folds; so they have no rank, but `over_head` is the difference on
    that fold, paired. As with heads, what was trained on all folds is evaluated on the test split
    alone; on the fold it is the model that chose the epoch.

    Args:
        board: The leaderboard, with such rows of before or without.
        records: Module name to the result of its fine-tuning.
    """
    board = board[~board["kind"].isin([FINE_TUNED, MEAN])].reset_index(drop=True)
    position = {name: i for i, name in reversed([*board["module"].items()])}
    is_ensemble = board["kind"] == ENSEMBLE
    rows, places = [], [float(i) for i in board.index]
    for name, record in records.items():
        if name not in position:
            continue
        trained_on = ", all folds" if record.all_folds else ""
        epoch = f"epoch {record.kept_epoch}{trained_on}"
        members = board.loc[[position[name]]]
        named = {"module": f"{name}, {FINE_TUNED}", "kind": FINE_TUNED, "head": epoch}
        rows.append({**named, "n_members": 1, **_row(record, members)})
        places.append(position[name] + 0.5)
        if record.with_ensemble is None or not is_ensemble.any():
            continue
        ensemble = board[is_ensemble].head(1)
        members = pd.concat([members, ensemble])
        named = {"module": mean_name(name), "kind": MEAN, "head": f"{epoch}, and the ensemble"}
        n_members = 1 + int(ensemble["n_members"].iloc[0])
        rows.append({**named, "n_members": n_members, **_row(record.with_ensemble, members)})
        places.append(position[name] + 0.6)
    table = pd.concat([board, pd.DataFrame(rows)], ignore_index=True) if rows else board
    order = np.argsort(places, kind="stable")
    return table.iloc[order].astype({"tied": bool}).reset_index(drop=True)


def _row(
    record: FineTunedModuleRecord | EnsembleMeanRecord, members: pd.DataFrame
) -> dict[str, Any]:
    """Return what a row says of a model; `members` are the rows whose passes it takes."""
    row: dict[str, Any] = {"tied": False, "temperature": record.temperature}
    row |= {} if record.thresholds else {"adjust": record.adjust}
    row |= {cost: members[cost].sum(skipna=False) for cost in COSTS if cost in members}
    # On the leaderboard these two names are of probabilities before the temperature.
    after = {name: f"calibrated_{name}" for name in ("log_loss", "calibration_error")}
    figures = {after.get(name, name): values for name, values in record.validation.items()}
    row["uncalibrated_log_loss"] = record.uncalibrated_log_loss.get("validation", np.nan)
    figures |= {f"test_{m}": v for m, v in record.test.items() if f"test_{m}" in members}
    if "validation" in record.over_head:
        figures["over_head"] = record.over_head["validation"]
    for metric, values in figures.items():
        ends = (metric, f"{metric}_low", f"{metric}_high")
        row |= dict(zip(ends, values, strict=True))
    return row


def screening_metric(board: pd.DataFrame, modules: Iterable[str], metric: str) -> dict[str, float]:
    """Return a metric of the modules on the leaderboard: module name to its value."""
    # An ensemble of one member has its module's name.
    rows = board[board["module"].isin(list(modules)) & (board["kind"] != ENSEMBLE)]
    return dict(zip(rows["module"], rows[metric].astype(float), strict=True))


def order_of(
    screening: Mapping[str, float], finetuned: Mapping[str, float], metric: str
) -> OrderRecord:
    """Return whether modules rank after fine-tuning as they did when they were screened.

    Args:
        screening: Module name to its metric on the leaderboard; other modules are left out.
        finetuned: Module name to its metric on the validation fold after fine-tuning.
        metric: Name of the metric.
    """
    sign = 1.0 if metric_named(metric).higher_is_better else -1.0
    names = list(finetuned)
    first, second = ([sign * values[n] for n in names] for values in (screening, finetuned))
    tau = float(kendalltau(first, second).statistic)
    chosen = names[int(np.argmax(first))]
    return OrderRecord(
        screening=_best_first(names, first),
        finetuned=_best_first(names, second),
        kendall_tau=tau if np.isfinite(tau) else None,
        regret=max(second) - second[names.index(chosen)],
        metric=metric,
    )


def regret_ends(
    run: Run,
    records: Mapping[str, FineTunedModuleRecord],
    order: OrderRecord,
    images: pd.DataFrame,
    seed: int,
) -> tuple[float, float] | None:
    """Return the paired 95 % interval of the regret of an order; see `OrderRecord`.

    Args:
        run: The run, which holds the predictions of its fine-tuned modules.
        records: Module name to its result.
        order: The order.
        images: Validation fold: path, sha256, label, cluster, and `class_index` of one class each.
        seed: Random seed of the resamples.
    """
    class_names = () if "class_index" in images else run.fit.class_names
    labels, groups = labels_of(images, class_names), images["cluster"].to_numpy()
    evaluator, pair = Evaluator.if_grouped(labels, groups, seed), []
    for name in (order.finetuned[0], order.screening[0]):
        record = records[name]
        table = VALIDATION_PREDICTIONS.read(run.finetune_folder(name))
        probs = recorded_probs(table, images, multi_label=labels.ndim > 1)
        if probs is None or evaluator is None or order.regret == 0:
            return None
        scores = scores_of(probs, labels, groups, recorded_rule(record))
        pair.append(Predictions(probs, scores).of(order.metric))
    assert evaluator is not None
    change = evaluator.effect([(pair[0], pair[1])], order.metric)
    ends = round(change.low, 6), round(change.high, 6)
    return ends if metric_named(order.metric).higher_is_better else (-ends[1], -ends[0])


def _best_first(names: Sequence[str], values: Sequence[float]) -> tuple[str, ...]:
    return tuple(names[i] for i in np.argsort(-np.asarray(values), kind="stable"))
