"""hubretrain runs: what runs there are, two of them compared, and the removal of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from hubretrain.cli.command import Group, echo, print_table, terminal
from hubretrain.cli.options import RUNS, json_option, named_run_argument

if TYPE_CHECKING:
    import pandas as pd

    from hubretrain.runs import RunSummary


@click.group(cls=Group, invoke_without_command=True, short_help="List, compare and remove runs.")
@json_option
@click.pass_context
def runs(context: click.Context, as_json: bool) -> None:
    """List the runs in runs/, the latest first: data set, modules, the best, date and size."""
    if context.invoked_subcommand is not None:
        return
    from hubretrain.runs import list_runs

    summaries = list_runs(RUNS)
    if as_json:
        rows = [{**asdict(s), "written": s.written.isoformat()} for s in summaries]
        echo(json.dumps(rows, indent=2, default=str, ensure_ascii=False))
    elif summaries:
        titles = ("run", "data set", "modules", "best", "date", "size")
        print_table(titles, [_row(summary) for summary in summaries], numbers=("size",))
        for summary in summaries:
            if summary.problem:
                echo(f"hubretrain: {summary.problem}", err=True)
    else:
        echo(f"{RUNS}/ holds no run. Next: hubretrain fit")


def _row(summary: RunSummary) -> tuple[str, ...]:
    from hubretrain.screening import formatting

    best = "cannot be read" if summary.problem else "not fitted"
    if summary.estimate is not None:
        metric = summary.metric
        ends = dict(zip((metric, f"{metric}_low", f"{metric}_high"), summary.estimate, strict=True))
        words = formatting.estimate_words(ends, metric)
        value = "" if words is None else f"{words[0]} ({words[1]}-{words[2]})"
        best = f"{summary.best}: {formatting.metric_name(metric)} {value}"
    modules = [f"{m}, fine-tuned" if m in summary.fine_tuned else m for m in summary.modules]
    date = f"{summary.written:%Y-%m-%d %H:%M}"
    return summary.name, summary.data, "; ".join(modules), best, date, decimal(summary.n_bytes)


@runs.command()
@named_run_argument("first")
@named_run_argument("second")
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare two runs on the same folds: what SECOND gains over FIRST, image by image.

    The best module of each, and each module and the ensemble that both have, out of fold. The 95 %
    intervals are paired, and hold together.
    """
    from hubretrain.screening import compare_runs

    pairs = compare_runs(first, second)
    if as_json:
        echo(json.dumps(json.loads(pairs.to_json(orient="records")), indent=2))
        return
    titles = ("models", "metric", first.name, second.name, "difference", "95 % interval")
    rows = [_pair(row) for _, row in pairs.iterrows()]
    print_table(titles, rows, numbers=titles[2:5])
    terminal().print(
        f"Percent and points; log loss in nats. Difference: {second.name} minus {first.name}, out "
        "of fold on the same images. The best of each run is chosen by its own estimate.",
        highlight=False,
        markup=False,
    )


def _pair(row: pd.Series[Any]) -> tuple[str, ...]:
    from hubretrain.evaluation import metric_named
    from hubretrain.screening import formatting

    is_same = row["first"] == row["second"]
    models = str(row["first"]) if is_same else f"{row['second']} instead of {row['first']}"
    scale, digits = (100, 1) if metric_named(row["metric"]).is_share else (1, 3)
    values = [f"{scale * row[name]:.{digits}f}" for name in ("of_first", "of_second")]
    change, low, high = (
        f"{round(scale * row[name], digits) + 0.0:+.{digits}f}"  # adding 0 turns -0.0 into 0.0
        for name in ("difference", "low", "high")
    )
    name = formatting.metric_name(row["metric"])
    return models, name, *values, change, f"{low} to {high}"


@runs.command()
@named_run_argument("run")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(run: Path, yes: bool) -> None:
    """Remove a run: its tables, heads, fine-tunings, exports and reports.

    A run that is in use is refused, as is what is no run; files that are not the run's stay.
    """
    from hubretrain.runs import Run, check_removable, remove_run

    removed = Run(run)
    check_removable(removed)
    if not yes:
        click.confirm(f"Remove {run}/ for good?", abort=True)
    left = remove_run(removed)
    echo(f"{run}/ is removed.")
    if left:
        echo(f"What is not the run's stays in it: {', '.join(left)}")
