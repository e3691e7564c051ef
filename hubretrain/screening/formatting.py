"""Words of the leaderboard, for the terminal and for the report.

A row is a row of `leaderboard.csv`; values that are missing are NaN or absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from hubretrain import evaluation  # loaded where it is used: --help needs no numpy
from hubretrain.runs import ENSEMBLE

if TYPE_CHECKING:
    import pandas as pd

Row = Union["pd.Series[Any]", Mapping[str, Any]]


@dataclass(frozen=True)
class Cost:
    """How a cost is shown.

    Attributes:
        title: Title of a table's column.
        axis: Label of a chart's axis; empty for what is not drawn.
        format: Format of a number.
    """

    title: str
    axis: str
    format: str


COSTS = {
    "gflops": Cost("GFLOPs", "GFLOPs per image (10^9 floating-point operations)", ".2f"),
    "ms_per_image": Cost(
        "ms per image", "milliseconds per image, on the machine that cached", ".1f"
    ),
    "n_parameters": Cost("parameters", "parameters", ",.0f"),
    "seconds_to_cache": Cost("s to cache", "", ",.0f"),
    "seconds_to_fit": Cost("s to fit", "", ",.0f"),
}
COSTS_OF_A_PASS = ("gflops", "ms_per_image")
AVERAGED = "averaged_"  # begins the columns of predictions that are averaged over views
SHOWN_METRICS = ("balanced_accuracy", "accuracy", "top_3")
SHOWN_OF_LABELS = ("mean_average_precision", "macro_f1", "micro_f1", "subset_accuracy")
_METRIC_NAMES = {
    "f1": "F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "hamming_loss": "Hamming loss",
    "roc_auc": "ROC AUC",
    "top_3": "top-3 accuracy",
}


def has_several_labels(board: pd.DataFrame) -> bool:
    """Return whether a leaderboard is of images that may have several labels."""
    return "subset_accuracy" in board


def metric_name(metric: str) -> str:
    """Return the name of a metric for people."""
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))


def metric_amount(metric: str, amount: float) -> str:
    """Format a difference of a metric, such as `1.8 points`; of the log loss, in nats."""
    if evaluation.metric_named(metric).is_share:
        return f"{round(100 * amount, 1) + 0.0:.1f} points"  # adding 0 turns -0.0 into 0.0
    return f"{round(amount, 3) + 0.0:.3f} nats"


def cost_words(row: Row, cost: str) -> str:
    """Format a cost of a module with its unit, such as `0.39 GFLOPs per image`."""
    per_image = " per image" if cost == "gflops" else ""
    return f"{row[cost]:{COSTS[cost].format}} {COSTS[cost].title}{per_image}"


def shown_metrics(metric: str, board: pd.DataFrame) -> list[str]:
    """Return the metrics that the leaderboard shows, the metric of choice first.

    The top-3 accuracy is left out where it is 1 for all models, as it must be of three classes.
    """
    usual = SHOWN_OF_LABELS if has_several_labels(board) else SHOWN_METRICS
    names = list(dict.fromkeys((metric, *usual)))
    if metric != "top_3" and "top_3" in board and board["top_3"].dropna().eq(1).all():
        names.remove("top_3")
    return names


def estimate_words(row: Row, column: str) -> tuple[str, str, str] | None:
    """Format an estimate and the ends of its confidence interval; None without an estimate.

    Shares are in percent, the log loss in nats; ends that are missing are empty.
    """
    if not has_number(row, column):
        return None
    metric = column
    for prefix in ("test_", AVERAGED, "unadjusted_"):
        metric = metric.removeprefix(prefix)
    is_share = evaluation.metric_named(metric).is_share
    scale, digits = (100, 1) if is_share else (1, 3)
    estimate, low, high = (
        f"{scale * row[name]:.{digits}f}" if has_number(row, name) else ""
        for name in (column, f"{column}_low", f"{column}_high")
    )
    return estimate, low, high


def row_name(row: Row) -> str:
    """Return the name of a row; that of an ensemble is its size."""
    return f"ensemble of {int(row['n_members'])}" if row["kind"] == ENSEMBLE else str(row["module"])


def head_words(row: Row) -> str:
    """Describe the chosen head, such as `softmax, all layers, l2 316, adjusted 0.75`."""
    head = row["head"]
    if not isinstance(head, str) or head == "none":
        return ""
    parts = [head, "all layers"] if row.get("layers") == "all" else [head]
    if has_number(row, "l2"):
        penalty = "decay" if head == "mlp" else "l2"
        parts.append(
            f"{penalty} {row['l2']:,.0f}" if row["l2"] >= 10 else f"{penalty} {row['l2']:.3g}"
        )
    if row.get("trained_on") == "all views":
        parts.append("all views")
    weight = row.get("class_weight")
    if isinstance(weight, str) and weight != "none":
        parts.append("balanced" if weight == "balanced" else f"class weights {weight}")
    if has_number(row, "adjust") and row["adjust"]:
        parts.append(f"adjusted {row['adjust']:g}")
    return ", ".join(parts)


def has_number(row: Row, name: str) -> bool:
    """Return whether a row has a number in a column."""
    value = row.get(name)
    return isinstance(value, int | float) and not math.isnan(value)
