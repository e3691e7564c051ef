"""hubretrain predict: the likeliest classes of images."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubretrain.cli.command import Command
from hubretrain.cli.options import export_first

if TYPE_CHECKING:
    from hubretrain.export import Prediction


@click.command(cls=Command)
@click.argument("model", metavar="RUN_OR_EXPORT", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Classes shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "--tta",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="K",
    help="Mean over K views: the image and K - 1 augmented as in training.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["litert", "litert_int8", "onnx", "savedmodel"]),
    help="What to run; by default LiteRT where it is there.",
)
@click.pass_context
def predict(
    context: click.Context,
    model: Path,
    images: tuple[str, ...],
    top: int,
    as_json: bool,
    as_csv: bool,
    tta: int,
    form: str | None,
) -> None:
    """Show the likeliest classes of each IMAGE.

    An IMAGE is a file, a folder, a URL, or -, for a list on standard input, one a line. Where the
    decision is not simply the likeliest class, it is shown too. Exit code 1 if any image failed.
    """
    # numpy starts a thread a processor for products that prediction has none of: 0.1 s.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from hubretrain.export import predict_images

    if as_json and as_csv:
        raise click.UsageError("--json and --csv are two forms of output; ask for one.")
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be of any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    export_first(model)
    found = predict_images(model, _listed(images), top, tta=tta, format=form)
    write = _json_lines if as_json else _csv_lines if as_csv else _text_lines
    failures: list[str] = []
    for line in write(_told(found, failures), top):
        click.echo(line)
    if failures:
        context.exit(1)


def _listed(images: Iterable[str]) -> Iterator[str]:
    for one in images:
        if one == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from filter(None, (line.strip() for line in sys.stdin))
        else:
            yield one


def _told(found: Iterable[Prediction], failures: list[str]) -> Iterator[Prediction]:
    """Passes predictions on, and says on standard error which failed."""
    for one in found:
        if one.error:
            failures.append(one.path)
            click.echo(f"hubretrain: {one.path}: {one.error}", err=True)
        yield one


def _text_lines(found: Iterable[Prediction], _top: int) -> Iterator[str]:
    for one in found:
        if not one.error:
            shown = ", ".join(f"{name} {probability:.1%}" for name, probability in one.classes)
            differs = one.decision != one.classes[0][0]
            yield f"{one.path}: {shown}" + (f"; decided: {one.decision}" if differs else "")


def _json_lines(found: Iterable[Prediction], _top: int) -> Iterator[str]:
    before = "["
    for one in found:
        row: dict[str, object]
        if one.error:
            row = {"path": one.path, "error": one.error}
        else:
            row = {"path": one.path, "decision": one.decision, "classes": dict(one.classes)}
        yield before + json.dumps(row, ensure_ascii=False)
        before = ","
    yield "]" if before == "," else "[]"


def _csv_lines(found: Iterable[Prediction], top: int) -> Iterator[str]:
    columns = [f"{what}_{k}" for k in range(1, top + 1) for what in ("class", "probability")]
    yield _csv_line(["path", "decision", *columns, "error"])
    for one in found:
        pairs = [part for name, p in one.classes for part in (name, f"{p:.6g}")]
        pairs += [""] * (2 * top - len(pairs))
        yield _csv_line([one.path, one.decision, *pairs, one.error])


def _csv_line(fields: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
