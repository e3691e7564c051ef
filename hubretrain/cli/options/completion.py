"""What a shell completes: names of modules, metrics, runs and classes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

RUNS = Path("runs")


def complete_runs(_context: click.Context, _parameter: click.Parameter, text: str) -> list[Any]:
    """Return the runs in `runs/`; files where none begins so."""
    names = _beginning(sorted(file.parent.name for file in RUNS.glob("*/run.json")), text)
    return names or [click.shell_completion.CompletionItem(text, type="file")]


def complete_modules(context: click.Context, _parameter: click.Parameter, text: str) -> list[Any]:
    """Return modules that are cached, those of the catalogue, and folders."""
    from hubretrain.modules import read_catalogue

    cache = Path(context.params.get("cache") or "cache")
    cached = sorted({file.stem for file in cache.glob("*/*.h5")})
    catalogue = [name for m in read_catalogue() for name in (m.name, *m.aliases)]
    names = _beginning(dict.fromkeys([*cached, *catalogue]), text)
    return names or [click.shell_completion.CompletionItem(text, type="dir")]


def complete_metrics(_context: click.Context, _parameter: click.Parameter, text: str) -> list[Any]:
    """Return the names of metrics."""
    from hubretrain.evaluation import LABEL_METRICS, METRICS

    return _beginning(dict.fromkeys([*METRICS, *LABEL_METRICS]), text)


def complete_classes(context: click.Context, _parameter: click.Parameter, text: str) -> list[Any]:
    """Return the classes of the run that is named or the latest, or of the class folders."""
    from hubretrain.data import default_folder
    from hubretrain.errors import HubretrainError
    from hubretrain.runs import Run, latest_run

    folders = context.params.get("data") or ()
    with contextlib.suppress(HubretrainError, OSError):
        if "data" in context.params:
            folder = Path(folders[0]) if folders else default_folder(Path("data"))
            names = [path.name for path in folder.iterdir() if path.is_dir()]
        else:
            run = context.params.get("run")
            names = list((Run(run) if run else latest_run(RUNS)).fit.class_names)
        return _beginning(sorted(names), text)
    return []


def _beginning(names: Iterable[str], text: str) -> list[Any]:
    complete = click.shell_completion.CompletionItem
    return [complete(name) for name in names if name.startswith(text) and not name.startswith(".")]


COMPLETIONS = {"metric": complete_metrics, "exclude_class": complete_classes}
"""By the name of a dataclass's field."""
