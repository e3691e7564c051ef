"""hubretrain serve: an export answers over HTTP."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
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
    default=32_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Of a request.",
)
@click.option(
    "--max-pixels",
    default=40_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Of an image.",
)
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds for a request to arrive, and again for its answer.",
)
@click.option(
    "--queue",
    default=128,
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
    from hubretrain.serve import serve_export

    def ready(url: str, called: str, engine: str) -> None:
        click.echo(f"Serving {called} with {engine} at {url}")

    serve_export(
        model,
        host=host,
        port=port,
        name=name,
        form=form,
        n_bytes=max_bytes,
        n_pixels=max_pixels,
        seconds=timeout,
        n_images=queue,
        ready=ready,
    )
