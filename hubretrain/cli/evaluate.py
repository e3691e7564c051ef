"""hubretrain evaluate: an exported model on other labelled images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubretrain.cli.command import Command, echo, terminal
from hubretrain.cli.options import (
    DataSource,
    cache_option,
    data_options,
    export_first,
    format_option,
    json_option,
    model_argument,
    out_option,
    tta_option,
)

if TYPE_CHECKING:
    from hubretrain.export import EvaluatedExport


@click.command(cls=Command, short_help="Evaluate a model on other labelled images.")
@model_argument
@data_options
@cache_option
@out_option("evaluated", "Folder for page and tables, in a folder of the data set's name.")
@tta_option
@format_option
@json_option
def evaluate(
    model: Path,
    source: DataSource,
    cache: Path,
    folder: Path,
    tta: int | None,
    format: str | None,
    as_json: bool,
) -> None:
    """Evaluate RUN_OR_EXPORT on the labelled images of DATA, such as an external test set.

    Metrics with 95 % confidence intervals, bootstrapped over groups and duplicates; a page, and
    tables of predictions, classes and confusions. Images that the run was fitted or chosen on are
    left out. A model of several labels per image needs DATA with such labels.
    """
    export_first(model)
    from hubretrain.export import evaluate_export
    from hubretrain.report import write_evaluation

    dataset = source.open(cache)
    result = evaluate_export(model, dataset, tta=tta, format=format, cache=cache)
    folder /= dataset.name
    result.save(folder)
    write_evaluation(result, dataset.root, folder / "evaluation.html")
    for path, reason in result.failed.items():
        echo(f"hubretrain: {path}: {reason}", err=True)
    if as_json:
        figures = {name: interval._asdict() for name, interval in result.figures.items()}
        counts = {"n_images": len(result.predictions), "n_known": result.n_known}
        echo(json.dumps({**counts, "n_failed": len(result.failed), "metrics": figures}))
        return
    _print(result)
    echo(f"Tables are in {folder.as_posix()}/; open evaluation.html there in a browser.")


def _print(result: EvaluatedExport) -> None:
    from rich.table import Table

    from hubretrain.screening import formatting

    known = f"; {result.n_known:,} that the model was fitted or chosen on are left out"
    echo(f"{len(result.predictions):,} images{known if result.n_known else ''}.")
    metrics = Table("metric", "estimate", "95 % interval", box=None)
    for name, interval in result.figures.items():
        row = dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
        if words := formatting.estimate_words(row, name):
            metrics.add_row(formatting.metric_name(name), words[0], f"{words[1]} to {words[2]}")
    word = "label" if result.multi_label else "class"
    plain = ("threshold", "precision", "recall") if result.multi_label else ()
    shown = ("f1" if result.multi_label else "recall", "average_precision")
    names = [formatting.metric_name(name) for name in (*plain, *shown)]
    classes = Table(word, "images", *names, box=None)
    for _, row_of_class in result.per_class.iterrows():  # all intervals would need 100 columns
        texts = [_percent(row_of_class, name, with_interval=False) for name in plain]
        texts += [_percent(row_of_class, name) for name in shown]
        classes.add_row(row_of_class["class"], f"{row_of_class['n_images']:,}", *texts)
    console = terminal()
    console.print(metrics)
    console.print("Percent; log loss in nats.")
    console.print(classes)


def _percent(row: Any, name: str, *, with_interval: bool = True) -> str:
    """Return a share and its interval, in percent; '' where it is undefined."""
    if row["n_images"] == 0 or row[name] != row[name]:
        return ""
    if not with_interval:
        return f"{100 * row[name]:.1f}"
    estimate, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{estimate:.1f} ({low:.1f}-{high:.1f})"
