"""hubretrain fit: heads, and the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hubretrain.cli.command import Command
from hubretrain.cli.options import (
    RUNS,
    data_options,
    duplicates_option,
    folds_options,
    open_data,
    run_option,
)


def _class_weights(_context: Any, _parameter: Any, values: tuple[str, ...]) -> list[Any]:
    """Each `none`, `balanced`, or `NAME=WEIGHT,NAME=WEIGHT`."""
    return [_class_weight(value) for value in values]


def _class_weight(value: str) -> str | dict[str, float] | None:
    if value in ("none", "balanced"):
        return None if value == "none" else value
    weights = {}
    for pair in value.split(","):
        name, _, number = pair.rpartition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(
                f"{value!r} is none of: none, balanced, NAME=WEIGHT,NAME=WEIGHT"
            )
    return weights


def _numbers(_context: Any, _parameter: Any, value: str | None) -> tuple[float, ...] | None:
    """Numbers of at least 0, separated by commas."""
    if value is None:
        return None
    try:
        numbers = tuple(float(one) for one in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers, such as 1,10,100") from None
    if not all(0 <= one < float("inf") for one in numbers):
        raise click.BadParameter(f"{value!r}: expected numbers of at least 0")
    return numbers


@click.command(cls=Command)
@data_options
@run_option
@click.option(
    "--module",
    "-m",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this cached module, and those that the run has already; may be repeated. By "
    "default all that are cached.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="What to choose by; by default balanced accuracy "
    "where the classes are unbalanced, else accuracy.",
)
@click.option(
    "--class-weight",
    "class_weights",
    callback=_class_weights,
    multiple=True,
    default=("none", "balanced"),
    metavar="WEIGHT",
    help="To compare: none, balanced, or NAME=2,OTHER=0.5 by class (1 where not named); may be "
    "repeated. By default none and balanced.",
)
@click.option(
    "--adjust",
    callback=_numbers,
    metavar="STRENGTHS",
    help="Strengths of logit adjustment to choose from, such as 0,0.5,1; 0: the likeliest class "
    "decides. By default 0 to 1.5 for balanced accuracy and macro F1, else 0.",
)
@click.option(
    "--l2",
    callback=_numbers,
    metavar="L2",
    help="Penalties to compare, 1 / C of scikit-learn. By default 11 from 1 to 100,000.",
)
@click.option(
    "--views/--no-views",
    default=True,
    help="Compare training on all cached views with view 0 only.",
)
@folds_options
@click.option(
    "--top", default=3, show_default=True, type=click.IntRange(1), help="Longest shortlist."
)
@duplicates_option
@click.option("--seed", default=0, show_default=True, help="Of the split and the resamples.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(
    names: tuple[str, ...],
    run_folder: Path | None,
    cache_folder: Path,
    as_json: bool,
    adjust: tuple[float, ...] | None,
    l2: tuple[float, ...] | None,
    **options: Any,
) -> None:
    """Fit softmax and logistic heads on every cached module of DATA and rank the modules.

    A cached module called NAME_random counts as the twin of NAME with random weights: a reference.

    A run keeps its folds and what its modules came to: the same command again goes on where it
    was stopped, and a later one adds modules.
    """
    from hubretrain.runs import Run
    from hubretrain.screening import screen_modules

    dataset = open_data(options)
    for name, value in (("adjust", adjust), ("l2", l2)):
        if value is not None:
            options[name] = value
    run = Run(run_folder or RUNS / dataset.name)
    found = screen_modules(dataset, run, cache=cache_folder, modules=names, **options)
    if as_json:
        click.echo(_as_json(found))
        return
    from hubretrain.cli.tables import print_leaderboard

    for note in found.notes:
        click.echo(note)
    print_leaderboard(found.leaderboard, found.metric)
    for sentence in found.effects["sentence"]:
        click.echo(f"{sentence[0].upper()}{sentence[1:]}")
    click.echo(f"Kept in {found.run.folder}/. Next: hubretrain finetune {found.run.folder}")


def _as_json(found: Any) -> str:
    """Notes, leaderboard and effects; null where there is no value."""
    rows = json.loads(found.leaderboard.to_json(orient="records"))
    effects = json.loads(found.effects.to_json(orient="records"))
    return json.dumps(
        {
            "run": str(found.run.folder),
            "metric": found.metric,
            "shortlist": [
                row["module"]
                for row in sorted(rows, key=lambda row: row["shortlist"] or 0)
                if row["shortlist"]
            ],
            "leaderboard": rows,
            "effects": effects,
            "notes": found.notes,
        },
        indent=2,
    )
