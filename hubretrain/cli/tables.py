"""The leaderboard as a table that fits the terminal."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

from rich.measure import Measurement
from rich.table import Table

from hubretrain.cli.command import terminal
from hubretrain.runs import ENSEMBLE, MODULE
from hubretrain.screening import formatting

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

WIDE_TERMINAL = 100  # characters from which intervals and settings fit


def print_leaderboard(board: pd.DataFrame, metric: str, console: Console | None = None) -> None:
    """Print estimates with 95 % confidence intervals, then what the marks mean.

    A terminal narrower than 100 characters gets the metric of choice and accuracy; costs are shown
    as far as they fit.

    Args:
        board: The leaderboard.
        metric: The metric of choice.
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    _print_table(board, metric, console)
    legend = (
        "Percent, with 95 % confidence intervals; log loss in nats. 1, 2, ...: shortlist, the best "
        "of the tied modules. =: also statistically tied with the best."
    )
    if board["averaged_views"].notna().any():
        legend += (
            " Averaged: the same head on several views of each image, one forward pass per view."
        )
    if board["adjust"].gt(0).any():
        legend += (
            " Adjusted: by the rule that decides; accuracy, balanced accuracy and macro F1 are of "
            "its decisions, top-3 accuracy is of the probabilities."
        )
    console.print(legend, highlight=False)
    for _, row in board[board["kind"] == ENSEMBLE].iterrows():
        console.print(f"The ensemble: {row['module']}", highlight=False)
    for _, row in board[board["shortlist"].notna()].sort_values("shortlist").iterrows():
        if formatting.has_number(row, "test_accuracy"):
            figures = ", ".join(
                f"{formatting.metric_name(name)} {_estimate(row, f'test_{name}')}"
                for name in formatting.shown_metrics(metric, board)
                if formatting.has_number(row, f"test_{name}")
            )
            console.print(f"Test split, {row['module']}: {figures}", highlight=False)


def _print_table(board: pd.DataFrame, metric: str, console: Console) -> None:
    is_wide = console.width >= WIDE_TERMINAL
    metrics = formatting.shown_metrics(metric, board)
    metrics = metrics if is_wide else list(dict.fromkeys((metric, "accuracy")))
    costs = [
        name for name in formatting.COSTS if is_wide and name in board and board[name].notna().any()
    ]
    table = _table(board, metrics, costs)
    unbounded = console.options.update(max_width=10_000)
    while costs and Measurement.get(console, unbounded, table).maximum > console.width:
        costs.pop()  # the least important is last; a cell that wraps would hide more than it shows
        table = _table(board, metrics, costs)
    console.print(table)


def _table(board: pd.DataFrame, metrics: list[str], costs: list[str]) -> Table:
    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    table.add_column("", no_wrap=True)
    # Names of baselines are the longest; they may wrap, those of modules may not.
    longest = board.loc[board["kind"] == MODULE, "module"].str.len().max()
    width = max(int(longest), len("1-nearest-neighbour of"))
    table.add_column("module", overflow="fold", max_width=width)
    for name in metrics:
        table.add_column(formatting.metric_name(name), no_wrap=len(metrics) > 2)
    table.add_column("head")
    for name in costs:
        table.add_column(formatting.COSTS[name].title, justify="right")
    nearest = board.index[board["module"].str.startswith("1-nearest")]
    for _, row in board.drop(index=nearest[1:]).iterrows():  # the best of them is the baseline
        cells = [_estimate(row, name) for name in metrics]
        name, head = formatting.row_name(row), formatting.head_words(row)
        table.add_row(_mark(row), name, *cells, head, *(_cost(row, cost) for cost in costs))
        n_views = row["averaged_views"]
        if isinstance(n_views, Integral):
            cells = [_estimate(row, formatting.AVERAGED + name) for name in metrics]
            of_passes = [
                _cost(row, cost, int(n_views)) if cost in formatting.COSTS_OF_A_PASS else ""
                for cost in costs
            ]
            name, head = f"  {n_views} views averaged", f"{n_views} passes per image"
            table.add_row("", name, *cells, head, *of_passes)
    return table


def _cost(row: Any, name: str, times: int = 1) -> str:
    """Return a multiple of a cost; '' where it is not known."""
    if not formatting.has_number(row, name):
        return ""
    return f"{times * row[name]:{formatting.COSTS[name].format}}"


def _estimate(row: Any, column: str) -> str:
    """Return an estimate and its interval, such as `93.2 (91.0-95.1)`."""
    words = formatting.estimate_words(row, column)
    return "" if words is None else f"{words[0]} ({words[1]}-{words[2]})"


def _mark(row: Any) -> str:
    rank = row["shortlist"]
    if isinstance(rank, Integral):
        return str(rank)
    return "=" if row["tied"] else ""
