"""hubretrain fit: heads, and the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hubretrain.cli.options import (
    RUNS,
    data_options,
    duplicates_option,
    folds_options,
    open_data,
    run_option,
)


@click.command()
@data_options
@run_option
@click.option(
    "--module",
    "-m",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this cached module; may be repeated. By default all that are cached.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="What to choose by; by default balanced accuracy "
    "where the classes are unbalanced, else accuracy.",
)
@folds_options
@click.option("--top", default=3, show_default=True, help="Longest shortlist.")
@duplicates_option
@click.option("--seed", default=0, show_default=True, help="Of the split and the resamples.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(
    names: tuple[str, ...],
    metric: str | None,
    n_folds: int,
    test_fraction: float,
    top: int,
    keep_duplicates_together: bool,
    seed: int,
    as_json: bool,
    cache_folder: Path,
    run_folder: Path | None,
    **data_options: Any,
) -> None:
    """Fit softmax and logistic heads on every cached module of DATA and rank the modules."""
    from hubretrain.fit import screen_modules
    from hubretrain.runs import Run

    dataset = open_data(data_options)
    found = screen_modules(
        dataset,
        Run(run_folder or RUNS / dataset.name),
        cache=cache_folder,
        modules=names,
        metric=metric,
        n_folds=n_folds,
        test_fraction=test_fraction,
        top=top,
        keep_duplicates_together=keep_duplicates_together,
        seed=seed,
    )
    if as_json:
        rows = json.loads(found.leaderboard.to_json(orient="records"))
        click.echo(
            json.dumps(
                {
                    "run": str(found.run.folder),
                    "metric": found.metric,
                    "leaderboard": rows,
                    "notes": found.notes,
                },
                indent=2,
            )
        )
        return
    for note in found.notes:
        click.echo(note)
    _print_leaderboard(found.leaderboard, found.metric)
    click.echo(f"Kept in {found.run.folder}/. Next: hubretrain finetune {found.run.folder}")


def _print_leaderboard(board: Any, metric: str) -> None:
    """The leaderboard as a table: estimates in percent with their 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    shown = list(dict.fromkeys((metric, "balanced_accuracy", "accuracy", "top_3")))
    table = Table(box=None)
    table.add_column("")
    table.add_column("module", no_wrap=True, overflow="fold")
    for name in shown:
        table.add_column(name.replace("_", " "))
    table.add_column("head")

    def cell(row: Any, name: str) -> str:
        estimate, low, high = (100 * row[name + end] for end in ("", "_low", "_high"))
        return f"{estimate:.1f} ({low:.1f}-{high:.1f})"

    for _, row in board.iterrows():
        mark = "*" if row["shortlist"] else "=" if row["tied"] else ""
        balanced = ", balanced" if row["class_weight"] == "balanced" else ""
        head = f"{row['head']}, l2 {row['l2']:.3g}{balanced}"
        table.add_row(mark, row["module"], *(cell(row, name) for name in shown), head)
    Console().print(table)
    click.echo("Percent, with 95 % intervals. *: shortlist. =: tied with the best too.")
    for _, row in board[board["shortlist"]].iterrows():
        if "test_accuracy" in row and row["test_accuracy"] == row["test_accuracy"]:
            figures = ", ".join(
                f"{name.replace('_', ' ')} {cell(row, 'test_' + name)}"
                for name in ("balanced_accuracy", "accuracy", "top_3")
            )
            click.echo(f"Test split, {row['module']}: {figures}")
