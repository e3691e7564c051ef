"""The leaderboard as a table that fits the terminal."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = ("balanced_accuracy", "accuracy", "top_3")
ROOMY = 100  # columns of a terminal from which intervals and settings have room
COSTS = {
    "gflops": ("GFLOPs", "{:.2f}"),
    "ms_an_image": ("ms an image", "{:.1f}"),
    "n_parameters": ("parameters", "{:,.0f}"),
    "seconds_to_cache": ("s to cache", "{:,.0f}"),
    "seconds_to_fit": ("s to fit", "{:,.0f}"),
}


def print_leaderboard(board: Any, metric: str, console: Console | None = None) -> None:
    """Prints estimates in percent (the log loss in nats) with 95 % intervals, then what marks mean.

    A terminal narrower than 100 columns gets the metric of choice and accuracy, and no costs.

    Args:
        board: The leaderboard, a DataFrame.
        metric: The metric of choice.
        console: Where to; standard output by default.
    """
    console = console or Console()
    roomy = console.width >= ROOMY
    names = list(dict.fromkeys((metric, *SHOWN)))
    names = names if roomy else list(dict.fromkeys((metric, "accuracy")))
    known = [name for name in COSTS if roomy and name in board and board[name].notna().any()]
    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("module", overflow="fold")
    for name in names:
        table.add_column(name.replace("_", " "), no_wrap=roomy)
    table.add_column("head")
    for name in known:
        table.add_column(COSTS[name][0], justify="right")
    nearest = board.index[board["module"].str.startswith("1-nearest")]
    for index, row in board.iterrows():
        if index in nearest[1:]:  # the best of them is the one to beat
            continue
        cells = [_cell(row, _column(row, name, metric)) for name in names]
        costs = [COSTS[n][1].format(row[n]) if _there(row, n) else "" for n in known]
        table.add_row(_mark(row), _name(row), *cells, _head(row), *costs)
    console.print(table)
    legend = (
        "Percent, with 95 % intervals; log loss in nats. 1, 2, ...: shortlist, the cheapest of the "
        "tied first. =: tied with the best too."
    )
    if metric != "accuracy":
        legend += " Accuracy is that of the likeliest class, whatever the decision rule."
    console.print(legend, highlight=False)
    for _, row in board[board["kind"] == "ensemble"].iterrows():
        console.print(f"The ensemble: {row['module']}", highlight=False)
    for _, row in board[board["shortlist"].notna()].sort_values("shortlist").iterrows():
        if _there(row, "test_accuracy"):
            figures = ", ".join(
                f"{name.replace('_', ' ')} {_cell(row, _column(row, name, metric, 'test_'))}"
                for name in SHOWN
            )
            console.print(f"Test split, {row['module']}: {figures}", highlight=False)


def _there(row: Any, name: str) -> bool:
    value = row.get(name)
    return isinstance(value, int | float) and not math.isnan(value)


def _column(row: Any, name: str, metric: str, prefix: str = "") -> str:
    """The column to show: accuracy is the likeliest class's, unless it is the metric of choice."""
    plain = f"{prefix}plain_{name}"
    return plain if name == "accuracy" != metric and _there(row, plain) else prefix + name


def _cell(row: Any, name: str) -> str:
    if not _there(row, name):
        return ""
    scale, digits = (1, 3) if name == "log_loss" else (100, 1)
    estimate, low, high = (f"{scale * row[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return f"{estimate} ({low}-{high})"


def _mark(row: Any) -> str:
    place = row["shortlist"]
    if isinstance(place, Integral):
        return str(place)
    return "=" if row["tied"] else ""


def _name(row: Any) -> str:
    if row["kind"] == "ensemble":
        return f"ensemble of {str(row['module']).count(' + ') + 1}"
    return str(row["module"])


def _head(row: Any) -> str:
    """The chosen head in words, such as `softmax, l2 316, all views, adjusted 0.75`."""
    if row["head"] == "none":
        return ""
    parts = [str(row["head"])]
    if _there(row, "l2"):
        l2 = row["l2"]
        parts.append(f"l2 {l2:,.0f}" if l2 >= 10 else f"l2 {l2:.3g}")
    if row.get("trained_on") == "all views":
        parts.append("all views")
    if isinstance(row.get("class_weight"), str) and row["class_weight"] != "none":
        weight = row["class_weight"]
        parts.append("balanced" if weight == "balanced" else f"class weights {weight}")
    if _there(row, "adjust") and row["adjust"]:
        parts.append(f"adjusted {row['adjust']:g}")
    return ", ".join(parts)
