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
    DataSource,
    cache_option,
    data_options,
    json_option,
    modules_option,
    options_from,
    run_of_data,
    run_option,
    split_as_cut,
)
from hubretrain.runs import ENSEMBLE, MODULE
from hubretrain.screening import ScreenOptions, formatting

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from hubretrain.runs import Run
    from hubretrain.screening import Screening

NO_TERMINAL = 200  # characters: a file, or a program, has room for whole rows


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
@click.option("--costs", is_flag=True, help="Print what each module costs, too.")
@json_option
def fit(
    source: DataSource,
    modules: tuple[str, ...],
    cache: Path,
    run: Path | None,
    options: ScreenOptions,
    costs: bool,
    as_json: bool,
) -> None:
    """Fit heads on every cached module of DATA and rank the modules.

    With --module only these modules, and those that the run has already. A cached module called
    NAME_random is the randomly initialised control of NAME: a baseline.

    A run keeps its folds and the results of its modules: rerun the command to resume, or to add
    modules.
    """
    from hubretrain.screening import screen_modules

    dataset = source.open(cache)
    chosen = run_of_data(dataset, run, cache)
    options = replace(options, split=split_as_cut(chosen, options.split))
    screening = screen_modules(dataset, chosen, options, cache=cache, modules=modules)
    if as_json:
        echo(_as_json(screening))
        return
    for note in screening.notes:
        echo(in_flags(note))
    print_leaderboard(screening.leaderboard, screening.metric, costs=costs)
    if looks := screening.run.looks_at_test():
        echo(looks)
    if len(screening.effects):
        echo("What the options are worth; the intervals hold together at 95 %:")
    for sentence in screening.effects["sentence"]:
        echo(f"{sentence[0].upper()}{sentence[1:]}")
    if why := _why_ensemble_is_not_exported(screening.run):
        # The sentence is for `export`, whose option it names.
        echo(f"Not to be exported: {why.replace('`head`', 'hubretrain export --head')}")
    folder = screening.run.folder
    echo(f"Results are in {folder}/. Next: {next_command('finetune', folder)}")


def _why_ensemble_is_not_exported(run: Run) -> str:
    """Return why the run's ensemble cannot be exported; empty where it can, or there is none."""
    from hubretrain.export import why_not_joined
    from hubretrain.heads import Ensemble

    if not run.ensemble_file.exists():
        return ""
    return why_not_joined(run.fit, Ensemble.load(run.checked_ensemble()).weights)


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


def print_leaderboard(
    board: pd.DataFrame, metric: str, console: Console | None = None, *, costs: bool = False
) -> None:
    """Print estimates with 95 % confidence intervals, then what the marks mean.

    A narrow terminal gets fewer metrics, and heads below the table instead of a column, so that
    no number is broken. An ensemble of one model is left out.

    Args:
        board: The leaderboard.
        metric: The metric of choice.
        console: Where to print; standard output by default.
        costs: Print what modules cost, too.
    """
    console = console or _standard_output()
    if "n_members" in board:
        board = board[(board["kind"] != ENSEMBLE) | board["n_members"].ne(1)]
    metrics, has_heads = _columns_that_fit(board, metric, console)
    console.print(_table(board, metrics, has_heads=has_heads))
    console.print(_legend(board, metrics), highlight=False)
    if not has_heads:
        for _, row in board[board["kind"] == MODULE].iterrows():
            console.print(f"Head of {row['module']}: {formatting.head_words(row)}", highlight=False)
    for _, row in board[board["kind"] == ENSEMBLE].iterrows():
        console.print(f"The ensemble: {row['module']}", highlight=False)
    for _, row in board[board["shortlist"].notna()].sort_values("shortlist").iterrows():
        figures = ", ".join(
            f"{formatting.metric_name(name)} {_estimate(row, f'test_{name}')}"
            for name in formatting.shown_metrics(metric, board)
            if formatting.has_number(row, f"test_{name}")
        )
        if figures:
            console.print(f"Test split, {row['module']}: {figures}", highlight=False)
    if costs:
        console.print(_costs(board))


def _standard_output() -> Console:
    console = terminal()
    return console if console.is_terminal else terminal(width=NO_TERMINAL)


def _columns_that_fit(board: pd.DataFrame, metric: str, console: Console) -> tuple[list[str], bool]:
    """Return the metrics of the widest table that fits, and whether it has a column of heads."""
    from rich.measure import Measurement

    names = formatting.shown_metrics(metric, board)
    several = formatting.has_several_labels(board)
    few = (
        names[:2]
        if several
        else [metric, "balanced_accuracy" if metric == "accuracy" else "accuracy"]
    )
    choices = [(names, True), (few, True), (names, False), (few, False), ([metric], False)]
    unbounded = console.options.update(max_width=10_000)
    for metrics, has_heads in choices:
        table = _table(board, metrics, has_heads=has_heads)
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            return metrics, has_heads
    return choices[-1]


def _legend(board: pd.DataFrame, metrics: list[str]) -> str:
    """Return what the marks and words mean that the table has."""
    unit = "Percent, with 95 % confidence intervals"
    parts = [f"{unit}; log loss in nats." if "log_loss" in metrics else f"{unit}."]
    is_listed = board["shortlist"].notna()
    if is_listed.any():
        parts.append("1, 2, ...: shortlist, the best of the tied modules.")
        if not board.loc[is_listed, "shortlist"].is_monotonic_increasing:
            parts.append("Of those with equal estimates the cheaper comes first on it.")
    if (board["tied"].eq(True) & ~is_listed).any():
        parts.append("=: also statistically tied with the best.")
    if board["averaged_views"].notna().any():
        parts.append(
            "Averaged: the same head on several views of each image, one forward pass per view."
        )
    if formatting.has_several_labels(board):
        parts.append("F1 and subset accuracy are of the labels above their thresholds.")
    if board["adjust"].gt(0).any():
        of_probs = ", top-3 accuracy is of the probabilities" if "top_3" in metrics else ""
        parts.append(
            "Adjusted: by the rule that decides; accuracy, balanced accuracy and macro F1 are of "
            f"its decisions{of_probs}."
        )
    return " ".join(parts)


def _table(board: pd.DataFrame, metrics: list[str], *, has_heads: bool) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    table.add_column("", no_wrap=True)
    # Names of baselines are the longest; they may wrap, those of modules may not.
    longest = board.loc[board["kind"] == MODULE, "module"].str.len().max()
    width = max(int(longest), len("1-nearest-neighbour of"))
    table.add_column("module", overflow="fold", max_width=width)
    for name in metrics:
        table.add_column(formatting.metric_name(name), no_wrap=True)
    if has_heads:
        table.add_column("head")
    nearest = board.index[board["module"].str.startswith("1-nearest")]
    for _, row in board.drop(index=nearest[1:]).iterrows():  # the best of them is the baseline
        cells = [_estimate(row, name) for name in metrics]
        head = [formatting.head_words(row)] * has_heads
        table.add_row(_mark(row), formatting.row_name(row), *cells, *head)
        n_views = row["averaged_views"]
        if isinstance(n_views, Integral):
            cells = [_estimate(row, formatting.AVERAGED + name) for name in metrics]
            head = [f"{n_views} passes per image"] * has_heads
            table.add_row("", f"  {n_views} views averaged", *cells, *head)
    return table


def _costs(board: pd.DataFrame) -> Table:
    """Return what each module costs, as far as that is known."""
    from rich.table import Table

    modules = board[board["kind"] == MODULE]
    names = [name for name in formatting.COSTS if name in modules and modules[name].notna().any()]
    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    table.add_column("module", overflow="fold")
    for name in names:
        table.add_column(formatting.COSTS[name].title, justify="right")
    for _, row in modules.iterrows():
        table.add_row(str(row["module"]), *(_cost(row, name) for name in names))
        n_views = row["averaged_views"]
        if isinstance(n_views, Integral):
            of_passes = [
                _cost(row, name, int(n_views)) if name in formatting.COSTS_OF_A_PASS else ""
                for name in names
            ]
            table.add_row(f"  {n_views} views averaged", *of_passes)
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
