"""The leaderboard: a row a module, the ensemble, the references; intervals, ties, costs, effects.

Rows are plain dictionaries that become a DataFrame saved as CSV. Metrics of decisions (accuracy,
balanced accuracy, macro F1) are those of the chosen decision rule; `plain_*` are those of the
likeliest class; the other metrics judge the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.errors import DataError
from hubretrain.evaluation import (
    METRICS,
    Difference,
    Resampled,
    average_precision_per_class,
    intervals,
    recall_per_class,
)
from hubretrain.run_tables import ENSEMBLE, MODULE, REFERENCE
from hubretrain.screening.result import ScreenResult

TWIN_SUFFIX = "_random"  # a module of this name has random weights: a reference, not a candidate
PLAIN = ("accuracy", "balanced_accuracy")
AVERAGED = ("balanced_accuracy", "accuracy", "top_3")
COSTS = ("gflops", "ms_an_image", "n_parameters")


@dataclass(frozen=True)
class Evaluator:
    """What predictions are judged by: labels, groups and one draw of resamples for all.

    Attributes:
        labels: int (n_images,).
        groups: (n_images,).
        weights: uint8 (n_resamples, n_images), of `intervals.group_resamples`.
        metric: The metric of choice.
    """

    labels: AnyArray
    groups: AnyArray
    weights: npt.NDArray[np.uint8]
    metric: str

    def resample(self, name: str, said: AnyArray) -> Resampled:
        """One metric of one model on every resample."""
        return intervals.resample(name, said, self.labels, self.groups, self.weights)

    def columns(self, name: str, said: AnyArray, prefix: str = "") -> dict[str, float]:
        """One metric with its interval, {} where it is undefined for these labels."""
        try:
            estimate, low, high = intervals.interval(self.resample(name, said))
        except DataError:  # such as ROC AUC with one class
            return {}
        column = prefix + name
        return {column: estimate, f"{column}_low": low, f"{column}_high": high}

    def all_columns(self, plain: AnyArray, decided: AnyArray) -> dict[str, float]:
        """Every metric with its interval: of the decisions, or of the probabilities."""
        found: dict[str, float] = {}
        for name, metric in METRICS.items():
            found |= self.columns(name, decided if metric.is_of_decision else plain)
        for name in PLAIN:
            found |= self.columns(name, plain, "plain_")
        return found

    def of_choice(self, plain: AnyArray, decided: AnyArray) -> Resampled:
        """The metric of choice on every resample."""
        is_of_decision = METRICS[self.metric].is_of_decision
        return self.resample(self.metric, decided if is_of_decision else plain)


def is_twin(module: str) -> bool:
    """Whether a module is the random-weight twin of another, by its name."""
    return module.endswith(TWIN_SUFFIX)


def twinned_by(twin: str, modules: Iterable[str]) -> str | None:
    """The module whose random-weight twin this is: `NAME`, or `NAME-` and a weights file."""
    name = twin.removesuffix(TWIN_SUFFIX)
    found = [m for m in modules if m == name or m.startswith(f"{name}-")]
    return min(found, key=len, default=None)


def module_row(one: ScreenResult, judge: Evaluator) -> dict[str, Any]:
    """The row of one module."""
    said, about = one.predictions, one.about
    row: dict[str, Any] = {
        "module": one.module,
        "kind": REFERENCE if is_twin(one.module) else MODULE,
        **about["chosen"],
        **judge.all_columns(said["plain"], said["decided"]),
        f"{judge.metric}_uncorrected": about["naive"],
    }
    if "averaged" in said:
        for name in AVERAGED:
            source = "averaged" if METRICS[name].is_of_decision else "averaged_plain"
            row |= judge.columns(name, said[source], "averaged_")
    return row | costs(about) | about["hints"] | {"n_heads": about["n_heads"]}


def costs(about: Mapping[str, Any]) -> dict[str, float]:
    """What a module costs, NaN where it is not known.

    Returns:
        gflops (10^9 floating-point operations an image), ms_an_image and seconds_to_cache (on the
        machine that cached), n_parameters, n_features, seconds_to_fit.
    """
    module = about["module"]
    speed = float(about.get("images_per_second") or np.nan)
    return {
        "n_parameters": float(module.get("n_parameters") or np.nan),
        "gflops": float(module.get("gflops") or np.nan),
        "ms_an_image": 1000 / speed,
        "seconds_to_cache": float(about.get("seconds_to_cache") or np.nan),
        "n_features": about["n_features"],
        "seconds_to_fit": about["seconds_to_fit"],
    }


def ensemble_row(
    weights: Mapping[str, float],
    adjust: float,
    plain: AnyArray,
    decided: AnyArray,
    averaged: tuple[AnyArray, AnyArray] | None,
    members: Sequence[ScreenResult],
    judge: Evaluator,
) -> dict[str, Any]:
    """The row of the ensemble, with its members' summed cost."""
    of = {one.module: costs(one.about) for one in members if one.module in weights}
    row: dict[str, Any] = {
        "module": " + ".join(sorted(weights, key=lambda name: (-weights[name], name))),
        "kind": ENSEMBLE,
        "head": "ensemble",
        "adjust": adjust,
        **judge.all_columns(plain, decided),
    }
    if averaged is not None:
        for name in AVERAGED:
            said = averaged[METRICS[name].is_of_decision]
            row |= judge.columns(name, said, "averaged_")
    names = next(iter(of.values()))
    return row | {name: float(np.sum([one[name] for one in of.values()])) for name in names}


def reference_rows(
    majority: AnyArray, screened: Sequence[ScreenResult], judge: Evaluator
) -> list[dict[str, Any]]:
    """The rows of what needs no fitting: decisions only, for these have no probabilities."""
    said = {"majority class": majority}
    for one in screened:
        if "nearest" in one.predictions and not is_twin(one.module):
            said[f"1-nearest-neighbour of {one.module}"] = one.predictions["nearest"]
    rows = []
    for name, decided in said.items():
        row: dict[str, Any] = {"module": name, "kind": REFERENCE, "head": "none"}
        for metric, facts in METRICS.items():
            if facts.is_of_decision:
                row |= judge.columns(metric, decided)
        rows.append(row)
    return rows


def ranked(
    rows: Sequence[Mapping[str, Any]], resampled: Mapping[str, Resampled], metric: str, top: int
) -> pd.DataFrame:
    """The leaderboard: best first, references last, with ties and the shortlist.

    Ties are among modules; see `intervals.tied_with_best`. The shortlist is the tied group from
    the cheapest on (by the first cost that is known of all of it), at most `top`; `shortlist`
    numbers it from 1.

    Args:
        rows: Of modules, ensemble and references.
        resampled: Module name to the metric of choice; those that may be shortlisted.
        metric: Of choice.
        top: Longest shortlist.
    """
    board = pd.DataFrame(rows)
    modules = list(resampled)
    tied = intervals.tied_with_best([resampled[name] for name in modules])
    is_module = board["kind"] == MODULE
    board["tied"] = is_module & board["module"].map(dict(zip(modules, tied, strict=True))).eq(True)
    board["is_reference"] = board["kind"] == REFERENCE
    board = board.sort_values(
        ["is_reference", metric, "module"],
        ascending=[True, not METRICS[metric].higher_is_better, True],
        kind="stable",
        na_position="last",
    ).reset_index(drop=True)
    in_order = by_cost(board[board["tied"]])["module"].tolist()[:top]
    place = {name: at for at, name in enumerate(in_order, start=1)}
    numbers = board["module"].map(place).where(board["kind"] == MODULE)
    board["shortlist"] = numbers.astype("Int64")
    rank = (~board["is_reference"]).cumsum().where(~board["is_reference"])
    board.insert(0, "rank", rank.astype("Int64"))
    return board.drop(columns="is_reference")


def by_cost(tied: pd.DataFrame) -> pd.DataFrame:
    """Some rows from the cheapest on; as they are where no cost is known of all."""
    known = [name for name in COSTS if name in tied and tied[name].notna().all()]
    return tied.sort_values(known[0], kind="stable") if known else tied


def per_class(
    names: Sequence[str], said: Mapping[str, tuple[AnyArray, AnyArray]], judge: Evaluator
) -> pd.DataFrame:
    """Recall and average precision of each class, each with an interval.

    Args:
        names: Of the classes.
        said: Row name to its probabilities, plain and decided.
        judge: What to judge by.
    """
    n_groups = [len(set(judge.groups[judge.labels == c].tolist())) for c in range(len(names))]
    rows = []
    for model, (plain, decided) in said.items():
        found = {
            "recall": (recall_per_class, decided),
            "average_precision": (average_precision_per_class, plain),
        }
        values = {
            metric: (
                function(of, judge.labels, None),
                function(of, judge.labels, judge.weights),
            )
            for metric, (function, of) in found.items()
        }
        for c, name in enumerate(names):
            row: dict[str, Any] = {
                "module": model,
                "class": name,
                "n_images": int((judge.labels == c).sum()),
                "n_groups": n_groups[c],
            }
            for metric, (estimate, resampled) in values.items():
                row |= _class_columns(metric, float(estimate[c]), resampled[:, c], n_groups[c])
            rows.append(row)
    return pd.DataFrame(rows)


def _class_columns(
    metric: str, estimate: float, resampled: AnyArray, n_groups: int
) -> dict[str, float]:
    if np.isnan(estimate):
        return {metric: np.nan, f"{metric}_low": np.nan, f"{metric}_high": np.nan}
    filled = np.where(np.isnan(resampled), estimate, resampled)
    # Any share has the interval of an accuracy.
    one = Resampled("accuracy", estimate, filled, float(max(2, n_groups)))
    _, low, high = intervals.interval(one)
    return {metric: estimate, f"{metric}_low": low, f"{metric}_high": high}


def effect_of(
    pairs: Sequence[tuple[AnyArray, AnyArray]], judge: Evaluator, metric: str | None = None
) -> Difference:
    """The mean difference of a metric over modules, paired on the same resamples.

    Args:
        pairs: Decided probabilities with and without, a pair a module.
        judge: What to judge by.
        metric: Instead of the metric of choice.
    """
    name = metric or judge.metric
    with_it, without_it = (
        _mean([judge.resample(name, pair[side]) for pair in pairs]) for side in (0, 1)
    )
    return intervals.difference(with_it, without_it)


def _mean(rows: Sequence[Resampled]) -> Resampled:
    values = np.mean([row.per_resample for row in rows], axis=0)
    estimate = float(np.mean([row.estimate for row in rows]))
    return Resampled(rows[0].metric, estimate, values, min(row.n_groups for row in rows))
