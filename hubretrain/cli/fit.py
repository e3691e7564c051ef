"""hubretrain fit: heads, and the leaderboard as a table that fits the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubretrain.cli.command import Command, echo, in_flags, next_command, terminal
from hubretrain.cli.options import (
    RUNS,
    DataSource,
    cache_option,
    data_options,
    json_option,
    modules_option,
    options_from,
    run_option,
    split_as_cut,
)
from hubretrain.runs import ENSEMBLE, MODULE
from hubretrain.screening import ScreenOptions, formatting

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from hubretrain.screening import Screening

WIDE_TERMINAL = 100  # characters from which intervals and settings fit


class ClassWeight(click.ParamType):  # type: ignore[type-arg]
    """`none`, `balanced`, or `NAME=WEIGHT,NAME=WEIGHT`."""

    name = "weight"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | dict[str, float] | None:
        """Return the weights by class name, or what computes them."""
        if value in ("none", "balanced"):
            return None if value == "none" else str(value)
        weights = {}
        for pair in value.split(","):
            name, _, number = pair.rpartition("=")
            try:
                weights[name.strip()] = float(number)
            except ValueError:
                name = ""
            if not name:
                self.fail(
                    f"{value!r} is none of: none, balanced, NAME=WEIGHT,NAME=WEIGHT", param, ctx
                )
        return weights


def _kinds(value: str) -> tuple[str, ...]:
    """Return kinds of heads that commas separate."""
    return tuple(kind.strip() for kind in value.split(","))


PARAM_TYPES: dict[str, click.ParamType[Any]] = {
    "class_weights": ClassWeight(),
    "heads": click.types.FuncParamType(_kinds),
}


@click.command(cls=Command, short_help="Fit heads on the cached modules and rank the modules.")
@data_options
@modules_option
@cache_option
@run_option
@options_from(ScreenOptions, param_types=PARAM_TYPES)
@json_option
def fit(
    source: DataSource,
    modules: tuple[str, ...],
    cache: Path,
    run: Path | None,
    options: ScreenOptions,
    as_json: bool,
) -> None:
    """Fit heads on every cached module of DATA and rank the modules.

    With --module only these modules, and those that the run has already. A cached module called
    NAME_random is the randomly initialised control of NAME: a baseline.

    A run keeps its folds and the results of its modules: rerun the command to resume, or to add
    modules.
    """
    from hubretrain.runs import Run
    from hubretrain.screening import screen_modules

    dataset = source.open(cache)
    chosen = Run(run or RUNS / dataset.name)
    options = replace(options, split=split_as_cut(chosen, options.split))
    screening = screen_modules(dataset, chosen, options, cache=cache, modules=modules)
    if as_json:
        echo(_as_json(screening))
        return
    for note in screening.notes:
        echo(in_flags(note))
    print_leaderboard(screening.leaderboard, screening.metric)
    if looks := screening.run.looks_at_test():
        echo(looks)
    if len(screening.effects):
        echo("What the options are worth; the intervals hold together at 95 %:")
    for sentence in screening.effects["sentence"]:
        echo(f"{sentence[0].upper()}{sentence[1:]}")
    folder = screening.run.folder
    echo(f"Results are in {folder}/. Next: {next_command('finetune', folder)}")


def _as_json(screening: Screening) -> str:
    """Return notes, leaderboard and effects as JSON; null where there is no value."""
    rows = json.loads(screening.leaderboard.to_json(orient="records"))
    effects = json.loads(screening.effects.to_json(orient="records"))
    return json.dumps(
        {
            "run": str(screening.run.folder),
            "metric": screening.metric,
            "shortlist": [
                row["module"]
                for row in sorted(rows, key=lambda row: row["shortlist"] or 0)
                if row["shortlist"]
            ],
            "leaderboard": rows,
            "effects": effects,
            "notes": screening.notes,
        },
        indent=2,
    )


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
    from rich.measure import Measurement

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
    from rich.table import Table

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
