"""hubretrain fit: heads, and the leaderboard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubretrain.cli.command import Command, echo, in_flags
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
from hubretrain.screening import ScreenOptions

if TYPE_CHECKING:
    from hubretrain.screening import Screening


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
    from hubretrain.cli.tables import print_leaderboard

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
    echo(f"Results are in {folder}/. Next: hubretrain finetune {folder}")


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
