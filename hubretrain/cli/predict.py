"""hubretrain predict: the likeliest classes of images."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("model", metavar="RUN_OR_EXPORT", type=click.Path(path_type=Path))
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Classes shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def predict(
    context: click.Context, model: Path, images: tuple[Path, ...], top: int, as_json: bool
) -> None:
    """Show the likeliest classes of each IMAGE."""
    from hubretrain.predict import predict_images

    found = predict_images(model, images, top)
    if as_json:
        rows = [
            {"path": str(one.path), "error": one.error}
            if one.error
            else {"path": str(one.path), "classes": dict(one.classes)}
            for one in found
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    for one in found:
        if one.error:
            click.echo(f"hubretrain: {one.path}: {one.error}", err=True)
        elif not as_json:
            shown = ", ".join(f"{name} {probability:.1%}" for name, probability in one.classes)
            click.echo(f"{one.path}: {shown}")
    if any(one.error for one in found):
        context.exit(1)
