"""hubretrain predict: the most probable classes of images."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubretrain.cli.command import Command, echo
from hubretrain.cli.options import (
    export_first,
    format_option,
    json_option,
    model_and_images_argument,
    tta_option,
)
from hubretrain.csv_tables import as_cell

if TYPE_CHECKING:
    from hubretrain.export import Prediction


@click.command(cls=Command)
@model_and_images_argument
@click.option(
    "--top", default=3, show_default=True, type=click.IntRange(1), help="Number of classes to show."
)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@tta_option
@format_option
@click.pass_context
def predict(
    context: click.Context,
    model_and_images: tuple[Path, tuple[str, ...]],
    top: int,
    as_json: bool,
    as_csv: bool,
    tta: int | None,
    format: str | None,
) -> None:
    """Show the most probable classes of each IMAGE, by default with the latest run.

    An IMAGE is a file, a folder, a URL, or - for a list on standard input, one per line. If the
    decision is not the top-1 class, it is shown, too. Of a model of several labels per image, the
    labels above their thresholds are shown; --csv has the probability of every label, and --json
    of at least --top. Exit code 1 if any image failed.
    """
    # numpy starts a thread per CPU for matrix products, which prediction has none of: 0.1 s.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from hubretrain.export import Export, predict_images

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other; choose one.")
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be of any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    model, images = model_and_images
    export_first(model)
    opened = Export.open(model)
    labels = opened.class_names if opened.multi_label else []
    top = len(labels) if labels and as_csv else top
    predictions = predict_images(model, _listed(images), top, tta=tta, format=format)
    write = _json_lines if as_json else _csv_lines if as_csv else _text_lines
    failures: list[str] = []
    for line in write(_with_errors_shown(predictions, failures), top, labels):
        # A program reads a CSV, which has no other way to write these characters.
        (click.echo if as_csv else echo)(line)
    if failures:
        context.exit(1)


def _listed(images: Iterable[str]) -> Iterator[str]:
    for image in images:
        if image == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from filter(None, (line.strip() for line in sys.stdin))
        else:
            yield image


def _with_errors_shown(
    predictions: Iterable[Prediction], failures: list[str]
) -> Iterator[Prediction]:
    """Pass predictions on, and show on standard error which failed."""
    for prediction in predictions:
        if prediction.error:
            failures.append(prediction.path)
            echo(f"hubretrain: {prediction.path}: {prediction.error}", err=True)
        yield prediction


def _text_lines(
    predictions: Iterable[Prediction], _top: int, _labels: Sequence[str]
) -> Iterator[str]:
    for prediction in predictions:
        if prediction.labels is not None:
            yield f"{prediction.path}: {_label_words(prediction.labels, prediction.classes)}"
        elif not prediction.error:
            classes, decision = prediction.classes, prediction.decision
            shown = ", ".join(f"{name} {probability:.1%}" for name, probability in classes)
            suffix = f"; decided: {decision}" if decision != classes[0][0] else ""
            yield f"{prediction.path}: {shown}{suffix}"


def _label_words(labels: Sequence[str], classes: Sequence[tuple[str, float]]) -> str:
    """Return the labels that are decided on with their probabilities, or what comes nearest."""
    probs = dict(classes)
    if labels:
        return ", ".join(f"{name} {probs[name]:.1%}" for name in labels)
    name, probability = classes[0]
    return f"no label; most probable: {name} {probability:.1%}"


def _json_lines(
    predictions: Iterable[Prediction], _top: int, _labels: Sequence[str]
) -> Iterator[str]:
    before = "["
    for prediction in predictions:
        row: dict[str, object] = {"path": prediction.path}
        if prediction.error:
            row |= {"error": prediction.error}
        elif prediction.labels is not None:
            row |= {"labels": prediction.labels, "classes": dict(prediction.classes)}
        else:
            row |= {"decision": prediction.decision, "classes": dict(prediction.classes)}
        yield before + json.dumps(row, ensure_ascii=False)
        before = ","
    yield "]" if before == "," else "[]"


def _csv_lines(predictions: Iterable[Prediction], top: int, labels: Sequence[str]) -> Iterator[str]:
    if labels:
        yield _csv_line(["path", "decision", *(f"p({name})" for name in labels), "error"])
        for prediction in predictions:
            probs = {name: f"{p:.6g}" for name, p in prediction.classes}
            of_labels = [probs.get(name, "") for name in labels]
            yield _csv_line([prediction.path, prediction.decision, *of_labels, prediction.error])
        return
    columns = [f"{what}_{k}" for k in range(1, top + 1) for what in ("class", "probability")]
    yield _csv_line(["path", "decision", *columns, "error"])
    for prediction in predictions:
        pairs = [part for name, p in prediction.classes for part in (name, f"{p:.6g}")]
        pairs += [""] * (2 * top - len(pairs))
        yield _csv_line([prediction.path, prediction.decision, *pairs, prediction.error])


def _csv_line(fields: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(map(as_cell, fields))
    return line.getvalue()
