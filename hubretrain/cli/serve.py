"""hubretrain serve: an export answers over HTTP."""

from __future__ import annotations

import math
from pathlib import Path

import click

from hubretrain.cli.command import Command
from hubretrain.cli.options import export_first
from hubretrain.serving import Limits

MOST_PIXELS = 178_956_970  # Pillow reads no image that is larger, see images.py


def _seconds(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("nan is no number of seconds.")
    return value


@click.command(cls=Command)
@click.argument("model", metavar="RUN_OR_EXPORT", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", default=8501, show_default=True, type=click.IntRange(0, 65535), help="0: any free."
)
@click.option("--name", help="Of the model in its address; by default its run's.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["litert", "litert_int8", "onnx", "savedmodel"]),
    help="What to run; by default LiteRT where it is there.",
)
@click.option(
    "--max-bytes",
    default=Limits.max_bytes,
    show_default=True,
    type=click.IntRange(1),
    help="Of a request.",
)
@click.option(
    "--max-pixels",
    default=Limits.max_pixels,
    show_default=True,
    type=click.IntRange(1, MOST_PIXELS),
    help="Of an image.",
)
@click.option(
    "--timeout",
    default=Limits.timeout_seconds,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    callback=_seconds,
    help="Seconds for a request to arrive, and again for its answer.",
)
@click.option(
    "--queue",
    default=Limits.max_images,
    show_default=True,
    type=click.IntRange(1),
    help="Images inside at once; more are told to come again (503).",
)
def serve(
    model: Path,
    host: str,
    port: int,
    name: str | None,
    form: str | None,
    max_bytes: int,
    max_pixels: int,
    timeout: float,
    queue: int,
) -> None:
    """Serve a model: a page to drop images on, and TensorFlow Serving's REST form.

    / the page; POST /predict an image; POST /v1/models/NAME:predict; /healthz; /metrics.
    """
    export_first(model)
    from hubretrain.serving import serve_export

    def ready(url: str, called: str, engine: str) -> None:
        click.echo(f"Serving {called} with {engine} at {url}")

    serve_export(
        model,
        host=host,
        port=port,
        name=name,
        format=form,
        limits=Limits(max_bytes, max_pixels, timeout, queue),
        ready=ready,
    )
