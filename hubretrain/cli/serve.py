"""hubretrain serve: an export answers over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from hubretrain.cli.command import Command, echo
from hubretrain.cli.options import export_first, format_option, model_argument, options_from
from hubretrain.serving import ServeLimits


@click.command(cls=Command, short_help="Serve a model over HTTP.")
@model_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    default=8501,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen at; 0 takes any free one.",
)
@click.option("--name", help="Name of the model in its URL; by default that of its run.")
@format_option
@options_from(ServeLimits, "limits")
def serve(
    model: Path,
    host: str,
    port: int,
    name: str | None,
    format: str | None,
    limits: ServeLimits,
) -> None:
    """Serve a model: a page to drop images on, and the REST interface of TensorFlow Serving.

    By default that of the latest run.

    A SavedModel is a program: it may read and write files of this machine, so serve exports that
    you trust; --format litert runs a model that cannot.

    / the page; POST /predict an image; POST /v1/models/NAME:predict; /healthz; /metrics.
    """
    export_first(model)
    from hubretrain.serving import serve_export

    def ready(url: str, name: str, runtime: str) -> None:
        echo(f"Serving {name} with {runtime} at {url}")

    serve_export(model, host=host, port=port, name=name, format=format, limits=limits, ready=ready)
