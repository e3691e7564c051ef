"""hubretrain export: a run becomes a model that takes images."""

from __future__ import annotations

from pathlib import Path

import click

from hubretrain.cli.command import Command
from hubretrain.cli.options import chosen_run, run_argument


@click.command(cls=Command)
@run_argument
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["savedmodel", "litert", "onnx"]),
    help="May be repeated. The SavedModel is always written, and LiteRT where the model allows.",
)
@click.option("--head", metavar="MODULE", help="The fitted head of this module, not fine-tuned.")
@click.option("--ensemble", is_flag=True, help="The run's ensemble of heads.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where to; by default RUN/export, and RUN/exports/NAME for a head or the ensemble.",
)
def export(
    run_folder: Path | None,
    formats: tuple[str, ...],
    head: str | None,
    ensemble: bool,
    output: Path | None,
) -> None:
    """Export RUN, by default the latest, to be served: module and head in one model.

    What was fine-tuned is exported already, and gets the formats that it lacks. A run that was
    only fitted gives its shortlist's first head.
    """
    from hubretrain.export import export_run

    if head and ensemble:
        raise click.UsageError("--head and --ensemble are two different exports; ask for one.")
    run = chosen_run(run_folder)
    found = export_run(run, head=head, ensemble=ensemble, formats=formats, output=output)
    manifest = found.manifest
    what = "fine-tuned" if manifest.get("fine_tuned") else "fitted head"
    click.echo(f"{manifest['module']} ({what}), temperature {manifest['temperature']:.2f}:")
    names = [n for n in manifest["files"] if not n.startswith(("variables/", "assets/"))]
    for name in names:
        click.echo(f"  {found.folder / name}: {_size(found.folder, name)}")
    if manifest["not_converted"]:
        click.echo(f"  no LiteRT: {manifest['not_converted']}; TensorFlow runs it.")
    click.echo(f"Next: hubretrain predict {found.folder} IMAGE")


def _size(folder: Path, name: str) -> str:
    names = folder.rglob("*") if name == "saved_model.pb" else [folder / name]
    tree = [p for p in names if p.is_file() and p.suffix not in (".tflite", ".onnx")]
    n_bytes = sum(p.stat().st_size for p in (tree or [folder / name]))
    return f"{n_bytes / 1e6:,.1f} MB"
